"""How large is a history, and how fast does it grow?"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, func, literal, select

from sqlaudit.maintenance.sizes import bytes_of, count_versions
from sqlaudit.period import UTCDateTime
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.horizons import Look
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import TrackedTable
from sqlaudit.wire import Report

_DAYS: Final = 30
"""The days over which the growth is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TableStatus(Report):
    """How large a history is.

    :param table: the full name of the live table
    :param versions: the number of versions
    :param bytes: what they take, with their indexes; ``None`` if the database does not say
    :param versions_a_day: the mean of the last 30 days
    :param bytes_a_day: the mean of the last 30 days; ``None`` if the database does not say
    :param pruned_before: the instant before which versions have been removed; ``None`` if none have been
    """

    table: str
    versions: int
    bytes: int | None
    versions_a_day: float
    bytes_a_day: int | None
    pruned_before: datetime | None


def status_of(connection: Connection, table: TrackedTable) -> TableStatus:
    """Return how large a history is. It counts the versions."""
    history = table.history
    since = datetime.now(UTC) - timedelta(days=_DAYS)
    recent = select(func.count()).select_from(history).where(table.valid_from >= literal(since, UTCDateTime()))
    versions = count_versions(connection, table)
    first = connection.scalar(select(func.min(table.valid_from)), execution_options=INTERNAL)
    days = _DAYS if first is None else max(1.0, min(_DAYS, (datetime.now(UTC) - first) / timedelta(days=1)))
    a_day = (connection.scalar(recent, execution_options=INTERNAL) or 0) / days
    occupied = bytes_of(connection, history)
    return TableStatus(
        table=table.live.fullname,
        versions=versions,
        bytes=occupied,
        versions_a_day=round(a_day, 1),
        bytes_a_day=round(a_day * occupied / versions) if occupied and versions else None,
        pruned_before=_horizon_of(connection, table),
    )


def _horizon_of(connection: Connection, table: TrackedTable) -> datetime | None:
    tables = maintenance_tables_of(table.live.metadata)
    is_there = tables is not None and table_exists(connection, tables.horizons)
    return Look(connection).horizon_of(table) if is_there else None
