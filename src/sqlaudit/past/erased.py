"""Which attributes of past objects were erased? Those that their versions name. The objects have ``ERASED`` there.

A statement of the past selects the columns of models, and not the ``extra`` of versions. Once it has been executed, the
rows with erasures are looked up, with their versions at its instant. Databases without erasures take one statement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, event, select
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_state

from sqlaudit.erased import ERASED, erased_columns
from sqlaudit.period import was_valid
from sqlaudit.retrieval.key_texts import parsed_key
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.horizons import base_of
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of
from sqlaudit.tracking.models import root_of, tracked_model
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import TrackedTable, known_metadata

ERASED_ROWS: Final = "sqlaudit_erased_rows"
"""The execution option of a statement that loads past objects: an :class:`ErasedRows`."""


class ErasedRows:
    """The rows with erased values at the instant of a statement.

    :ivar columns: base table → key → the names of the erased columns
    """

    def __init__(self) -> None:
        self.columns: dict[TrackedTable, Mapping[Key, Iterable[str]]] = {}

    def look(self, connection: Connection, tables: Iterable[TrackedTable] | None, when: datetime) -> None:
        """Look them up, once the statement has been executed, or before.

        :param tables: the tables that the statement reads; ``None`` for all tables of the database
        """
        if tables is None:
            tables = [table for metadata in known_metadata() for table in tracked_tables(metadata)]
        by_metadata: dict[Any, set[TrackedTable]] = defaultdict(set)
        for table in tables:
            if not table.is_association and maintenance_tables_of(table.live.metadata) is not None:
                by_metadata[table.live.metadata].add(base_of(table))
        for metadata, bases in by_metadata.items():
            for base, keys in _keys_with_erasures(connection, metadata, bases).items():
                if columns := _erased_columns_at(connection, base, keys, when):
                    self.columns[base] = columns
                    _listen(root_of(base).mapper)


def _keys_with_erasures(
    connection: Connection, metadata: Any, bases: Iterable[TrackedTable]
) -> dict[TrackedTable, list[Key]]:
    tables, by_name = maintenance_tables_of(metadata), {base.history.fullname: base for base in bases}
    assert tables is not None
    if not table_exists(connection, tables.erasures):
        return {}
    columns = tables.erasures.c
    statement = select(columns.history_table, columns.row_key).where(
        columns.history_table.in_(sorted(by_name)), columns.row_key.is_not(None)
    )
    found: dict[TrackedTable, list[Key]] = defaultdict(list)
    for name, text in dict.fromkeys(map(tuple, connection.execute(statement, execution_options=INTERNAL))):
        found[by_name[name]].append(parsed_key(by_name[name], text))
    return found


def _erased_columns_at(
    connection: Connection, base: TrackedTable, keys: Iterable[Key], when: datetime
) -> dict[Key, Iterable[str]]:
    found: dict[Key, Iterable[str]] = {}
    statement = select(base.role("extra"), *base.history_key).where(was_valid(base.valid_from, base.valid_to, when))
    for chunk in chunks(list(keys)):
        versions = connection.execute(statement.where(one_of(base.history_key, chunk)), execution_options=INTERNAL)
        found |= {tuple(key): columns for extra, *key in versions if (columns := erased_columns(extra))}
    return found


def _listen(mapper: Mapper[Any]) -> None:
    for name in ("load", "refresh"):
        if not event.contains(mapper.class_, name, _hide_erased):
            event.listen(mapper.class_, name, _hide_erased, propagate=True)


def _hide_erased(obj: Any, context: Any, *_: object) -> None:
    rows = None if context is None else context.execution_options.get(ERASED_ROWS)
    if rows is None or not rows.columns:
        return
    state = instance_state(obj)
    model = tracked_model(state.mapper)
    if model is not None and state.key is not None:
        columns = rows.columns.get(model.root.table, {}).get(state.key[1], ())
        for name, column in model.columns.items() if columns else ():
            if column.name in columns and name in state.dict:
                state.dict[name] = ERASED
