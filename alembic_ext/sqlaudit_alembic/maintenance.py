"""How does what was erased, held or pruned follow a rename? Versions and the tables of maintenance get the new name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Final

from alembic.operations.base import Operations
from sqlalchemy import JSON, Column, MetaData, String, Table, Text, cast, func, literal, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Update
from sqlalchemy.sql.functions import FunctionElement

from sqlaudit.erased import MARK
from sqlaudit.maintenance.door import writable_history
from sqlaudit.sql.documents import text_under
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of
from sqlaudit.tracking.tables import audit_column_types, tracked_table
from sqlaudit_alembic.inspection import inspector_of
from sqlaudit_alembic.ops import Place, RenameTrackedColumnOp, RenameTrackedTableOp
from sqlaudit_alembic.rollbacks import undo_if_rolled_back

_ERASURES: Final = "sqlaudit_erasures"
_TABLES: Final = ("sqlaudit_horizons", "sqlaudit_holds", _ERASURES)


def rename_in_maintenance(operations: Operations, operation: RenameTrackedTableOp) -> None:
    """Give a renamed history its new name where horizons, holds and erasures name it."""
    old, new = (_full_name(place, place.history) for place in (operation.place, operation.renamed))
    for name in _TABLES if old != new else ():
        for table in _tables_named(operations, operation, name):
            for before, after, run in ((old, new, operations.execute), (new, old, _undoing(operations))):
                run(update(table).where(table.c.history_table == before).values(history_table=after))


def rename_erased(operations: Operations, operation: RenameTrackedColumnOp) -> None:
    """Give a renamed column its new name where versions and erasures name it as erased."""
    erasures = list(_tables_named(operations, operation, _ERASURES))
    if not erasures:
        return
    histories = dict(_histories(operations, operation.place))
    old, new = json.dumps(operation.old), json.dumps(operation.new)
    is_postgresql = operations.get_context().dialect.name == "postgresql"
    with ExitStack() as stack:
        if not operations.get_context().as_sql:
            stack.enter_context(writable_history(operations.get_bind(), list(histories.values())))
        for before, after, run in ((old, new, operations.execute), (new, old, _undoing(operations))):
            for history in histories.values():
                run(_renamed_in_versions(history, before, after, is_postgresql=is_postgresql))
            for table in erasures:
                run(_renamed_in_erasures(table, histories, before, after))


def _renamed_in_versions(history: Table, old: str, new: str, *, is_postgresql: bool) -> Update:
    (extra,) = history.c
    names = text_under(extra, MARK)
    renamed = func.replace(names, literal(old, String()), literal(new, String()))
    if is_postgresql:
        path = cast(literal(f"{{{MARK}}}", String()), postgresql.ARRAY(Text))
        document = func.jsonb_set(extra, path, func.to_jsonb(renamed), type_=extra.type)
    else:
        document = func.json_set(extra, literal(f"$.{MARK}", String()), renamed, type_=extra.type)
    return update(history).where(names != renamed).values({extra: document})


def _renamed_in_erasures(table: Table, histories: Iterable[str], old: str, new: str) -> Update:
    names = cast(table.c.fields, Text)
    renamed = func.replace(names, literal(old, String()), literal(new, String()))
    is_of_table = table.c.history_table.in_(sorted(histories))
    return update(table).where(is_of_table, names != renamed).values(fields=_AsJSON(renamed))


class _AsJSON(FunctionElement[Any]):
    """A text as a value of a column of JSON, which is a text on most databases."""

    type = JSON()
    inherit_cache = True


@compiles(_AsJSON)
def _render_text(element: _AsJSON, compiler: SQLCompiler, **kw: Any) -> str:
    (text,) = element.clauses
    return compiler.process(text, **kw)


@compiles(_AsJSON, "postgresql")
def _render_json(element: _AsJSON, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({_render_text(element, compiler, **kw)} AS JSON)"


def _undoing(operations: Operations) -> Any:
    return lambda statement: undo_if_rolled_back(operations, statement)


def _full_name(place: Place, name: str) -> str:
    return name if place.schema is None else f"{place.schema}.{name}"


def _all_metadata(operations: Operations) -> list[MetaData]:
    target = operations.get_context().opts.get("target_metadata")
    return [target] if isinstance(target, MetaData) else list(target or ())


def _tables_named(
    operations: Operations, operation: RenameTrackedTableOp | RenameTrackedColumnOp, name: str
) -> Iterator[Table]:
    """Yield a table of maintenance: those of the models and of the schema of the renamed table, if they exist."""
    inspector = inspector_of(operations)
    if inspector is None and not operation.maintenance:
        return
    known = filter(None, map(maintenance_tables_of, _all_metadata(operations)))
    schemas = dict.fromkeys(tables.erasures.schema for tables in known) or {operation.place.schema: None}
    for schema in schemas:
        if inspector is None or inspector.has_table(name, schema=schema):
            columns = Column("history_table", String()), Column("fields", JSON())
            yield Table(name, MetaData(), *columns, schema=schema)


def _histories(operations: Operations, place: Place) -> Iterator[tuple[str, Table]]:
    """Yield the histories of a table and its hierarchy by their full names: all their versions name its columns."""
    inspector = inspector_of(operations)
    found = {(place.history, place.schema): place.names.extra}
    for metadata in _all_metadata(operations):
        tracked = tracked_table(metadata.tables.get(_full_name(place, place.table)))
        for chain in () if tracked is None else tracked.chains:
            found |= {(table.history.name, table.history.schema): table.names.extra for table in chain}
    for (name, schema), extra in found.items():
        if inspector is None or inspector.has_table(name, schema=schema):
            table = Table(name, MetaData(), Column(extra, audit_column_types()["extra"]), schema=schema)
            yield table.fullname, table
