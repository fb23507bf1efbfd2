"""The commands that describe tables: status and sql."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.text import Text
from sqlalchemy import Connection, Dialect
from sqlalchemy.engine.url import URL
from sqlalchemy.schema import CreateIndex, CreateTable

from sqlaudit.cli.database import Database
from sqlaudit.cli.options import FINDINGS, shared_options
from sqlaudit.cli.output import Output, print_trimmed, table_of
from sqlaudit.cli.reading import TABLE, TABLES
from sqlaudit.display import NOTHING, instant, shown, size
from sqlaudit.maintenance import check as check_histories
from sqlaudit.maintenance.growth import TableStatus, status_of
from sqlaudit.maintenance.sizes import count_versions
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.models import base_table_of
from sqlaudit.tracking.partitions import creating_partitions
from sqlaudit.wire import names_in

_QUICKLY_CHECKED: Final = 100_000
"""How many versions a history may have that is checked unasked."""


@click.command(short_help="Versions, sizes, growth and faults of tables.")
@TABLES
@click.option("--check/--no-check", "checks", default=None, help="Count the faults of all histories, or of none.")
@shared_options
def status(database: Database, output: Output, table: tuple[str, ...], checks: bool | None) -> None:
    """Show the history tables: versions, bytes, how fast they grow, and how many faults they have.

    The faults are counted, as check does, if the models are known: of histories of up to 100,000 versions, or of all
    with --check. The exit code is 3 if there are any.
    """
    sources = [database.source(name) for name in table] or list(database.sources.values())
    with database.connectable() as engine:
        with engine.connect() as connection:
            found = {source: status_of(connection, model_of(source).table) for source in sources}
            checked = _sources_to_check(connection, found, checks) if database.declared else []
        report = check_histories(engine, *checked, limit=0) if checked else None
    counts = {} if report is None else report.counts_by_table
    rows = [(row, counts.get(row.table, 0) if source in checked else None) for source, row in found.items()]
    if output.form == "table":
        _print_status(output, rows)
    else:
        output.data(
            [*names_in(TableStatus), "findings"], ({**row.to_dict(), "findings": findings} for row, findings in rows)
        )
    for told in () if report is None else report.unchecked:
        click.echo(f"Not checked: {shown(told)}", err=True)
    if database.declared and checks is None and len(checked) < len(rows):
        names = ", ".join(row.table for source, row in found.items() if source not in checked)
        click.echo(f"Not checked, because of their size: {shown(names)}. Add --check to check them, too.", err=True)
    if report is not None and (report.unchecked or any(findings for _, findings in rows)):
        click.get_current_context().exit(FINDINGS)


def _sources_to_check(connection: Connection, found: Mapping[Any, TableStatus], checks: bool | None) -> list[Any]:
    """Return the sources whose faults are counted. A check of a table is one of its whole hierarchy."""
    if checks is not None:
        return list(found) if checks else []
    known = {model_of(source).table: row.versions for source, row in found.items()}
    bases = {source: base_table_of(source) for source in found}
    for base in bases.values():
        if base not in known:
            known[base] = count_versions(connection, base)
    return [source for source, base in bases.items() if known[base] <= _QUICKLY_CHECKED]


def _print_status(output: Output, rows: Sequence[tuple[TableStatus, int | None]]) -> None:
    lines = [
        (
            shown(row.table),
            f"{row.versions:,}",
            f"{row.versions_a_day:,.1f}",
            size(row.bytes),
            size(row.bytes_a_day),
            NOTHING if findings is None else Text(f"{findings:,}", "red" if findings else ""),
            NOTHING if row.pruned_before is None else instant(row.pruned_before),
        )
        for row, findings in rows
    ]
    printed = table_of(["table", "versions", "a day", "size", "a day", "findings", "pruned before"], lines)
    for column in printed.columns[1:-1]:
        column.justify = "right"
    print_trimmed(output.console, printed)


@click.command(short_help="The SQL that creates a history table.")
@TABLE
@click.option(
    "--dialect", type=click.Choice(["postgresql", "mariadb", "mysql", "sqlite"]), help="If no --url is given."
)
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
