"""The commands that describe tables: status and sql."""

from __future__ import annotations

import click
from sqlalchemy import Dialect
from sqlalchemy.engine.url import URL
from sqlalchemy.schema import CreateIndex, CreateTable

from sqlaudit.cli.database import Database
from sqlaudit.cli.options import shared_options
from sqlaudit.cli.output import Output, print_trimmed, table_of
from sqlaudit.cli.reading import TABLE, TABLES
from sqlaudit.display import NOTHING, instant, shown, size
from sqlaudit.maintenance.growth import status_of
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.partitions import creating_partitions


@click.command(short_help="Versions, sizes and growth of tables.")
@TABLES
@shared_options
def status(database: Database, output: Output, table: tuple[str, ...]) -> None:
    """Show the history tables: versions, bytes, and how fast they grow."""
    sources = [database.source(name) for name in table] or list(database.sources.values())
    with database.connectable() as engine, engine.connect() as connection:
        rows = [status_of(connection, model_of(source).table) for source in sources]
    if output.form != "table":
        output.data(row.to_dict() for row in rows)
        return
    lines = [
        (
            shown(row.table),
            f"{row.versions:,}",
            size(row.bytes),
            f"{row.versions_a_day:,.1f}",
            size(row.bytes_a_day),
            NOTHING if row.pruned_before is None else instant(row.pruned_before),
        )
        for row in rows
    ]
    printed = table_of(["table", "versions", "size", "versions a day", "size a day", "pruned before"], lines)
    for column in printed.columns[1:-1]:
        column.justify = "right"
    print_trimmed(output.console, printed)


@click.command(short_help="The SQL that creates a history table.")
@TABLE
@click.option("--dialect", metavar="NAME", help="postgresql, mariadb, mysql or sqlite, if no --url is given.")
@shared_options
def sql(database: Database, output: Output, table: str, dialect: str | None) -> None:
    """Show the SQL that creates the history table of a TABLE."""
    source = database.declared_source(table)
    tracked = model_of(source).table
    history = tracked.history
    speaking: Dialect = URL.create(dialect).get_dialect()() if dialect else database.engine.dialect
    statements = [str(CreateTable(history).compile(dialect=speaking)).strip()]
    indexes = sorted(history.indexes, key=lambda index: str(index.name))
    statements += [str(CreateIndex(index).compile(dialect=speaking)).strip() for index in indexes]
    parts = creating_partitions(history, tracked.partitions, speaking.name)
    statements += [str(part.compile(dialect=speaking)) for part in parts]
    for statement in statements:
        click.echo(f"{statement};")
