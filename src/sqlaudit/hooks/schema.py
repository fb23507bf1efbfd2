"""When are history tables created and dropped? With the tables of their MetaData, association tables included."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import (
    Connection,
    MetaData,
    Table,
)

from sqlaudit.tracking.registry import find_association_tables, tracked_tables

# Association tables are known once mappers are configured, which may be after the first CREATE or DROP.


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
