"""The commands checkout and patch: the past elsewhere, as a database of its own or as SQL."""

from __future__ import annotations

import click
from rich.text import Text

from sqlaudit.cli.database import Database
from sqlaudit.cli.instants import state
from sqlaudit.cli.options import shared_options
from sqlaudit.cli.output import Output, counted, print_indented, print_trimmed, table_of
from sqlaudit.cli.reading import key_of
from sqlaudit.display import instant, safe, shown
from sqlaudit.maintenance import checkout as check_out
from sqlaudit.maintenance import patch as statements_of


@click.command(short_help="Copy the past into a database of its own.")
@click.argument("when")
@click.option("--to", required=True, metavar="URL", help="An empty database, or a SQLite file to make: march.db.")
@click.option("--include", multiple=True, metavar="TABLE", help="Also this table without history, as it is now.")
@click.option("--row", nargs=2, metavar="TABLE KEY", help="Only this row, and what is connected with it.")
@shared_options
def checkout(
    database: Database, output: Output, when: str, to: str, include: tuple[str, ...], row: tuple[str, str] | None
) -> None:
    """Copy the tracked tables, as they were at an instant WHEN, into a database of their own."""
    target = database.target(to)
    with database.session() as session:
        at = state(session, when)
        rows = None
        if row is not None:
            source = database.source(row[0])
            rows = (source, key_of(source, row[1]))
        report = check_out(
            session,
            at,
            target,
            include=[database.untracked(name) for name in include],
            rows=rows,
            progress=output.form == "table" and output.console.is_terminal,
        )
    if output.form != "table":
        output.one(report.to_dict())
        return
    table = table_of(["table", "rows"], [(shown(name), f"{count:,}") for name, count in sorted(report.tables.items())])
    table.columns[1].justify = "right"
    print_trimmed(output.console, table)
    for note in report.notes:
        print_indented(output.console, 0, Text.assemble(("note: ", "yellow"), shown(note)))
    click.echo(f"Copied {counted(report.rows, 'row')} as of {instant(report.at)}.", err=True)


@click.command(short_help="What a transaction did, as SQL.")
@click.argument("changeset")
@shared_options
def patch(database: Database, output: Output, changeset: str) -> None:
    """Show the SQL statements that do again what a CHANGESET did, for a database of the same kind."""
    with database.session() as session:
        statements = statements_of(session, changeset)
    if output.form != "table":
        output.data(["statement"], ({"statement": statement} for statement in statements))
        return
    for statement in statements:
        click.echo(f"{safe(statement) if output.console.is_terminal else statement};")
