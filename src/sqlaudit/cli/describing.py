"""The commands that describe tables: status and sql."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from sqlalchemy import Connection, Dialect, func, literal, select
from sqlalchemy.engine.url import URL
from sqlalchemy.schema import CreateIndex, CreateTable

from sqlaudit.cli.database import Database
from sqlaudit.cli.options import shared_options
from sqlaudit.cli.output import Output, print_trimmed, table_of
from sqlaudit.cli.reading import TABLE, TABLES
from sqlaudit.cli.text import NOTHING, instant, shown, size
from sqlaudit.maintenance.sizes import bytes_of
from sqlaudit.period import UTCDateTime
from sqlaudit.tracking.horizons import Look
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import TrackedTable

_DAYS: Final = 30
"""The days over which the growth is averaged."""


@click.command(short_help="Versions, sizes and growth of tables.")
@TABLES
@shared_options
def status(database: Database, output: Output, table: tuple[str, ...]) -> None:
    """Show the history tables: versions, bytes, and how fast they grow."""
    sources = [database.source(name) for name in table] or list(database.sources.values())
    with database.connectable() as engine, engine.connect() as connection:
        rows = [_status_of(connection, model_of(source).table) for source in sources]
    if output.form != "table":
        output.data(rows)
        return
    lines = [
        (
            shown(row["table"]),
            f"{row['versions']:,}",
            size(row["bytes"]),
            f"{row['versions_a_day']:,.1f}",
            size(row["bytes_a_day"]),
            NOTHING if row["pruned_before"] is None else instant(row["pruned_before"]),
        )
        for row in rows
    ]
    printed = table_of(["table", "versions", "size", "versions a day", "size a day", "pruned before"], lines)
    for column in printed.columns[1:-1]:
        column.justify = "right"
    print_trimmed(output.console, printed)


def _status_of(connection: Connection, table: TrackedTable) -> dict[str, Any]:
    history = table.history
    since = datetime.now(UTC) - timedelta(days=_DAYS)
    recent = select(func.count()).select_from(history).where(table.valid_from >= literal(since, UTCDateTime()))
    versions = connection.scalar(select(func.count()).select_from(history)) or 0
    first = connection.scalar(select(func.min(table.valid_from)))
    days = _DAYS if first is None else max(1.0, min(_DAYS, (datetime.now(UTC) - first) / timedelta(days=1)))
    a_day = (connection.scalar(recent) or 0) / days
    occupied = bytes_of(connection, history)
    return {
        "table": table.live.fullname,
        "versions": versions,
        "bytes": occupied,
        "versions_a_day": round(a_day, 1),
        "bytes_a_day": round(a_day * occupied / versions) if occupied and versions else None,
        "pruned_before": _horizon_of(connection, table),
    }


def _horizon_of(connection: Connection, table: TrackedTable) -> datetime | None:
    tables = maintenance_tables_of(table.live.metadata)
    is_there = tables is not None and table_exists(connection, tables.horizons)
    return Look(connection).horizon_of(table) if is_there else None


@click.command(short_help="The SQL that creates a history table.")
@TABLE
@click.option("--dialect", metavar="NAME", help="postgresql, mariadb, mysql or sqlite, if no --url is given.")
@shared_options
def sql(database: Database, output: Output, table: str, dialect: str | None) -> None:
    """Show the SQL that creates the history table of a TABLE."""
    source = database.declared_source(table)
    history = model_of(source).table.history
    speaking: Dialect = URL.create(dialect).get_dialect()() if dialect else database.engine.dialect
    statements = [str(CreateTable(history).compile(dialect=speaking)).strip()]
    indexes = sorted(history.indexes, key=lambda index: str(index.name))
    statements += [str(CreateIndex(index).compile(dialect=speaking)).strip() for index in indexes]
    for statement in statements:
        click.echo(f"{statement};")
