"""How are history tables created, and history tables and their columns dropped?"""

from __future__ import annotations

from alembic.operations.base import Operations
from sqlalchemy import MetaData, Table
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

from sqlaudit import SQLAuditError
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.tracking.partitions import creating_partitions
from sqlaudit.tracking.tables import AddOpenGuard, collation_statements
from sqlaudit_alembic.inspection import columns_of, created, inspector_of, key_of, need_history, need_name, need_schema
from sqlaudit_alembic.ops import CreateHistoryTableOp, DropHistoryColumnOp, DropHistoryTableOp
from sqlaudit_alembic.protection import following_protection
from sqlaudit_alembic.rollbacks import undo_if_rolled_back


@Operations.implementation_for(CreateHistoryTableOp)
def create_history_table(operations: Operations, operation: CreateHistoryTableOp) -> None:
    place, inspector = operation.place, inspector_of(operations)
    tracked = operation.to_tracked()
    need_name(operations, place.history)
    need_schema(operations, place)
    if inspector is not None and inspector.has_table(place.history, schema=place.schema):
        raise SQLAuditError(
            f"A table {place.history!r} exists already. If this revision has been run before, tell Alembic: alembic "
            "stamp <revision>. If an interrupted migration has left the table, drop it.",
            place.table,
        )
    operations.execute(CreateTable(tracked.history))
    undo_if_rolled_back(operations, DropTable(tracked.history))
    has_partial_indexes = TRAITS[operations.get_context().dialect.name].has_partial_indexes
    for index in sorted(tracked.history.indexes, key=lambda index: str(index.name)):
        if has_partial_indexes or not index.unique:
            operations.execute(CreateIndex(index))
    for partition in creating_partitions(tracked.history, tracked.partitions, operations.get_context().dialect.name):
        operations.execute(partition)
    if not has_partial_indexes:
        for element in (*collation_statements(tracked.live, tracked.history), AddOpenGuard(tracked.history)):
            operations.execute(element)
    created.setdefault(operations.get_context(), {})[place.schema, place.table] = operation


@Operations.implementation_for(DropHistoryTableOp)
def drop_history_table(operations: Operations, operation: DropHistoryTableOp) -> None:
    place = operation.place
    need_history(inspector_of(operations), place)
    operations.execute(DropTable(Table(place.history, MetaData(), schema=place.schema)))
    created.get(operations.get_context(), {}).pop((place.schema, place.table), None)


@Operations.implementation_for(DropHistoryColumnOp)
def drop_history_column(operations: Operations, operation: DropHistoryColumnOp) -> None:
    place, inspector = operation.place, inspector_of(operations)
    need_history(inspector, place)
    if operation.column in {name for _, name in place.names.items()}:
        raise SQLAuditError(
            f"{operation.column!r} cannot be dropped from {place.history!r}, because every history table needs this "
            "audit column. Keep it.",
            operation,
        )
    if inspector is not None:
        if operation.column not in columns_of(inspector, place.history, place.schema):
            raise SQLAuditError(
                f"{place.history!r} has no column {operation.column!r}. If this revision has been run before, tell "
                "Alembic: alembic stamp <revision>.",
                operation,
            )
        if operation.column in key_of(inspector, place):
            raise SQLAuditError(
                f"{operation.column!r} belongs to the key of {place.history!r}, without which no version can be "
                "found. To drop the whole history table, use op.drop_history_table(…).",
                operation,
            )
        has_live = inspector.has_table(place.table, schema=place.schema)
        if has_live and operation.column in columns_of(inspector, place.table, place.schema):
            raise SQLAuditError(
                f"The live table {place.table!r} still has the column {operation.column!r}. Drop it there first, or "
                "exclude it from history: track_table(exclude=…).",
                operation,
            )
    with following_protection(operations, place):
        operations.drop_column(place.history, operation.column, schema=place.schema)
