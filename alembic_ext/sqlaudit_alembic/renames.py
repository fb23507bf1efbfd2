"""How are tracked columns and tables renamed, with their history and its indexes?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from alembic.ddl.base import RenameTable
from alembic.operations.base import Operations
from sqlalchemy import Column, Index, MetaData, Select, String, Table, column, select, table
from sqlalchemy.engine import Inspector
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, DropIndex, ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlaudit import SQLAuditError
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.tracking.partitions import names_of_partitions, partition_name
from sqlaudit.tracking.tables import shortened
from sqlaudit_alembic.inspection import columns_of, inspector_of, key_of, need_history, need_live, need_name
from sqlaudit_alembic.maintenance import rename_erased, rename_in_maintenance
from sqlaudit_alembic.ops import CreateHistoryTableOp, Place, RenameTrackedColumnOp, RenameTrackedTableOp
from sqlaudit_alembic.protection import following_protection
from sqlaudit_alembic.rollbacks import undo_if_rolled_back


class _RenameColumn(ExecutableDDLElement):
    def __init__(self, table: Table, old: str, new: str) -> None:
        self.table, self.old, self.new = table, old, new


@compiles(_RenameColumn)
def _render_rename_column(element: _RenameColumn, compiler: DDLCompiler, **kw: Any) -> str:
    quote = compiler.preparer.quote
    table = compiler.preparer.format_table(element.table)
    return f"ALTER TABLE {table} RENAME COLUMN {quote(element.old)} TO {quote(element.new)}"


class _RenameIndex(ExecutableDDLElement):
    def __init__(self, table: Table, old: str, new: str) -> None:
        self.table, self.old, self.new = table, old, new


@compiles(_RenameIndex, "postgresql")
def _render_rename_index(element: _RenameIndex, compiler: DDLCompiler, **kw: Any) -> str:
    quote, schema = compiler.preparer.quote, element.table.schema
    prefix = f"{compiler.preparer.quote_schema(schema)}." if schema else ""
    return f"ALTER INDEX {prefix}{quote(element.old)} RENAME TO {quote(element.new)}"


@compiles(_RenameIndex, "mysql")
@compiles(_RenameIndex, "mariadb")
def _render_rename_index_of_table(element: _RenameIndex, compiler: DDLCompiler, **kw: Any) -> str:
    quote = compiler.preparer.quote
    table = compiler.preparer.format_table(element.table)
    return f"ALTER TABLE {table} RENAME INDEX {quote(element.old)} TO {quote(element.new)}"


@Operations.implementation_for(RenameTrackedColumnOp)
def rename_tracked_column(operations: Operations, operation: RenameTrackedColumnOp) -> None:
    place, inspector = operation.place, inspector_of(operations)
    need_live(inspector, place)
    need_history(inspector, place)
    need_name(operations, operation.new)
    _refuse_audit_column(operation)
    if inspector is not None:
        _refuse_taken(inspector, operation)
    is_stored = inspector is None or operation.old in columns_of(inspector, place.history, place.schema)
    with following_protection(operations, place):
        for name in (place.table, place.history)[: 2 if is_stored else 1]:
            table = _unqualified(name, place.schema)
            operations.execute(_RenameColumn(table, operation.old, operation.new))
            undo_if_rolled_back(operations, _RenameColumn(table, operation.new, operation.old))
    if inspector is not None:
        _rename_copied_indexes(operations, operation)
    if is_stored:
        rename_erased(operations, operation)


def _refuse_audit_column(operation: RenameTrackedColumnOp) -> None:
    names = {name for _, name in operation.place.names.items()}
    for name in (operation.new, operation.old):
        if name in names:
            raise SQLAuditError(
                f"{name!r} is the name of an audit column of {operation.place.history!r}. Choose another name, or "
                "rename the audit column first: track_table(audit_columns=…).",
                operation,
            )


def _refuse_taken(inspector: Inspector, operation: RenameTrackedColumnOp) -> None:
    place = operation.place
    for name in (place.table, place.history):
        existing_columns = columns_of(inspector, name, place.schema)
        if operation.new in existing_columns:
            raise SQLAuditError(
                f"{name!r} already has a column {operation.new!r}. Choose another name. If only history still has "
                "this column, because it was dropped from the live table, drop it there first: "
                "op.drop_history_column(…).",
                operation,
            )
        if name == place.table and operation.old not in existing_columns:
            raise SQLAuditError(
                f"{name!r} has no column {operation.old!r}. It has {', '.join(existing_columns)}.", operation
            )


def _rename_copied_indexes(operations: Operations, operation: RenameTrackedColumnOp) -> None:
    """Rename the indexes of history that have the column's name in theirs."""
    place, inspector = operation.place, inspector_of(operations)
    assert inspector is not None
    for index in inspector.get_indexes(place.history, schema=place.schema):
        now = [str(name) for name in index["column_names"]]
        before = [operation.old if name == operation.new else name for name in now]
        if operation.new in now and index["name"] == shortened(f"ix_{place.history}_{'_'.join(before)}"):
            new = Index(shortened(f"ix_{place.history}_{'_'.join(now)}"), *(Column[Any](name) for name in now))
            _rename_index(operations, _unqualified(place.history, place.schema), str(index["name"]), new)


def _unqualified(name: str, schema: str | None) -> Table:
    return Table(name, MetaData(), schema=schema)


def _rename_index(operations: Operations, table: Table, old: str, new: Index) -> None:
    if TRAITS[operations.get_context().dialect.name].renames_indexes:
        operations.execute(_RenameIndex(table, old, str(new.name)))
        undo_if_rolled_back(operations, _RenameIndex(table, str(new.name), old))
        return
    if new.table is None:
        for column in list(new.expressions):
            table.append_column(column)  # type: ignore[arg-type]
    old_index = Index(old, _table=table)
    operations.execute(DropIndex(old_index))
    operations.execute(CreateIndex(new))


@Operations.implementation_for(RenameTrackedTableOp)
def rename_tracked_table(operations: Operations, operation: RenameTrackedTableOp) -> None:
    place, renamed, inspector = operation.place, operation.renamed, inspector_of(operations)
    need_live(inspector, place)
    need_history(inspector, place)
    need_name(operations, renamed.table)
    moves = [(place.table, renamed.table)]
    if place.history != renamed.history:
        moves.append((place.history, renamed.history))
    for _, new in moves:
        if inspector is not None and inspector.has_table(new, schema=place.schema):
            raise SQLAuditError(f"A table {new!r} exists already. Choose another name.", operation)
    indexes = list(_indexes_to_rename(operations, operation, inspector)) if len(moves) > 1 else []
    with following_protection(operations, place, renamed):
        for old, new in moves:
            operations.rename_table(old, new, schema=place.schema)
            undo_if_rolled_back(operations, RenameTable(new, old, schema=place.schema))
        for old_name, index in indexes:
            _rename_index(operations, _unqualified(renamed.history, place.schema), old_name, index)
        for old, new in list(_partitions_to_rename(operations, operation)):
            operations.rename_table(old, new, schema=place.schema)
    rename_in_maintenance(operations, operation)


def _partitions_to_rename(operations: Operations, operation: RenameTrackedTableOp) -> Iterator[tuple[str, str]]:
    """Yield the old and the new name of each partition that sqlaudit has named."""
    place, renamed, context = operation.place, operation.renamed, operations.get_context()
    if context.dialect.name != "postgresql" or place.history == renamed.history:
        return
    if context.as_sql:
        numbers: Iterable[int] = range(operation.partitions or 0)
    else:
        names = names_of_partitions(operations.get_bind(), _unqualified(renamed.history, place.schema))
        numbers = [number for number, _ in enumerate(names) if partition_name(place.history, number) in names]
    for number in numbers:
        yield partition_name(place.history, number), partition_name(renamed.history, number)


def _indexes_to_rename(
    operations: Operations, operation: RenameTrackedTableOp, inspector: Inspector | None
) -> Iterator[tuple[str, Index]]:
    """Yield the old name of each index to rename, and the index with its new name."""
    place, renamed, key = operation.place, operation.renamed, operation.key
    if inspector is None:
        if not key and not TRAITS[operations.get_context().dialect.name].renames_indexes:
            raise SQLAuditError(
                "SQLite must create an index again to rename it, and in --sql mode the columns of the index are "
                f"unknown. Give the names of the key columns: op.rename_tracked_table({operation.old!r}, "
                f"{operation.new!r}, key=[…]).",
                operation,
            )
        yield from _own_indexes(place, renamed, key or ["id"], as_of_index=operation.as_of_index)
        return
    names = _names_of_indexes(inspector, place)
    own_indexes = _own_indexes(place, renamed, key_of(inspector, place), as_of_index=True)
    yield from ((old, index) for old, index in own_indexes if old in names)
    for reflected in inspector.get_indexes(place.history, schema=place.schema):
        columns = [str(name) for name in reflected["column_names"]]
        if reflected["name"] == shortened(f"ix_{place.history}_{'_'.join(columns)}"):
            copy = Table(renamed.history, MetaData(), *(Column[Any](name) for name in columns), schema=place.schema)
            yield reflected["name"], Index(shortened(f"ix_{renamed.history}_{'_'.join(columns)}"), *copy.c)


def _own_indexes(place: Place, renamed: Place, key: Sequence[str], *, as_of_index: bool) -> Iterator[tuple[str, Index]]:
    """Yield the old name of each of sqlaudit's indexes, and the index of the renamed table."""
    columns = [Column(name, String()) for name in key]
    before, after = (
        CreateHistoryTableOp(of_place, columns, key, as_of_index).to_tracked().history.indexes
        for of_place in (place, renamed)
    )
    by_columns = {(index.unique, *index.columns.keys()): str(index.name) for index in before}
    yield from ((by_columns[index.unique, *index.columns.keys()], index) for index in after)


def _names_of_indexes(inspector: Inspector, place: Place) -> set[str]:
    """Return the names of the history's indexes, with SQLite's indexes on expressions, which are not reflected."""
    index_names = {str(index["name"]) for index in inspector.get_indexes(place.history, schema=place.schema)}
    if inspector.dialect.name == "sqlite":
        listed: Select[Any] = select(column("name")).select_from(table("sqlite_master", schema=place.schema))
        with inspector._operation_context() as connection:
            index_names |= set(connection.scalars(listed.where(column("tbl_name") == place.history)))
    return index_names
