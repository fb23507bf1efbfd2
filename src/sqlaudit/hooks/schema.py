"""When are history tables created and dropped? With the tables of their MetaData, association tables included."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import (
    Connection,
    MetaData,
    Table,
)

from sqlaudit.sql.dialects import MYSQL
from sqlaudit.tracking.partitions import creating_partitions
from sqlaudit.tracking.protection import protecting, protection_of, unprotecting
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.tables import INFO_KEY, AddOpenGuard, TrackedTable, collation_statements, make_partial_only

# The listeners of a MetaData. Association tables are known once mappers are configured, which may be after the first
# CREATE or DROP.


def before_create(metadata: MetaData, connection: Connection, **kw: Any) -> None:
    find_association_tables(metadata)
    for table in tracked_tables(metadata):
        table.complete()


def after_create(metadata: MetaData, connection: Connection, **kw: Any) -> None:
    for table in _late_tables(metadata, **kw):
        table.create(connection, checkfirst=True)


def after_drop(metadata: MetaData, connection: Connection, **kw: Any) -> None:
    for table in _late_tables(metadata, **kw):
        table.drop(connection, checkfirst=True)


def _late_tables(
    metadata: MetaData, tables: Collection[Table] = (), _ddl_runner: Any = None, **kw: Any
) -> Iterator[Table]:
    """Yield the history tables that were made after SQLAlchemy had listed the tables of the MetaData."""
    asked = getattr(_ddl_runner, "tables", None)  # the requested tables; ``tables`` lacks those that exist
    for tracked in tracked_tables(metadata):
        if tracked.is_association and (asked is None or tracked.live in asked) and tracked.history not in tables:
            yield tracked.history


# The listeners of all tables.


def before_create_table(table: Table, connection: Connection, **kw: Any) -> None:
    """Prepare the creation of a history table, or of a copy of one by ``Table.to_metadata()``."""
    if (tracked := _tracked_by_history(table)) is not None:
        make_partial_only(table, tracked.history.name)


def after_create_table(table: Table, connection: Connection, **kw: Any) -> None:
    """Give a history table, or a copy of one, what it needs beyond its columns and indexes."""
    if (tracked := _tracked_by_history(table)) is None:
        return
    if connection.dialect.name in MYSQL:
        if table is tracked.history:
            for element in collation_statements(tracked.live, table):
                element(table, connection)
        AddOpenGuard(tracked.history)(table, connection)
    for partition in creating_partitions(table, tracked.partitions, connection.dialect.name):
        connection.execute(partition)
    for statement in protecting(protection_of(tracked, table), connection.dialect.name) if tracked.append_only else ():
        connection.execute(statement)


def after_drop_table(table: Table, connection: Connection, **kw: Any) -> None:
    """Drop what PostgreSQL keeps of the protection of a history table, or of a copy of one."""
    if (tracked := _tracked_by_history(table)) is not None and tracked.append_only:
        for statement in unprotecting(protection_of(tracked, table), connection.dialect.name, is_dropped=True):
            connection.execute(statement)


def _tracked_by_history(table: Table) -> TrackedTable | None:
    """Return the tracked table whose history table is a table or, unlike for :func:`tracked_table`, its original."""
    tracked: TrackedTable | None = table.info.get(INFO_KEY) if isinstance(table.info, dict) else None
    return tracked if tracked is not None and tracked.names.version in table.primary_key.columns else None
