"""The commands erase and erasures: a person's values are gone from a history."""

from __future__ import annotations

import click
from rich.text import Text

from sqlaudit.cli.database import Database, name_of
from sqlaudit.cli.failures import UsageProblem
from sqlaudit.cli.options import acting, confirm, shared_options
from sqlaudit.cli.output import Output, counted, print_indented
from sqlaudit.cli.reading import KEY, TABLE, key_of
from sqlaudit.cli.text import instant, shown
from sqlaudit.maintenance import Erasure
from sqlaudit.maintenance import erase as erase_values
from sqlaudit.maintenance import erasures as all_erasures
from sqlaudit.retrieval.field_changes import versions_of


@click.command(short_help="Erase values from all versions of a row.")
@TABLE
@KEY
@click.option("--field", "fields", multiple=True, metavar="NAME", help="Erase this field. [repeatable]")
@click.option("--all", "is_all", is_flag=True, help="Erase all fields but the key.")
@click.option(
    "--value", "values", multiple=True, metavar="NAME=VALUE", help="What a live NOT NULL column gets instead."
)
@click.option("--reason", metavar="TEXT", required=True, help="Why; it is recorded.")
@click.option("--user", metavar="ID", help="Who you are; your login name if omitted.")
@click.option("--yes", is_flag=True, help="Do it without a question.")
@shared_options
def erase(
    database: Database,
    output: Output,
    table: str,
    key: str,
    fields: tuple[str, ...],
    is_all: bool,
    values: tuple[str, ...],
    reason: str,
    user: str | None,
    yes: bool,
) -> None:
    """Erase fields of the row of a TABLE with a KEY: from all its versions, and from the live row."""
    source = database.declared_source(table)
    if is_all == bool(fields):
        raise UsageProblem("Name the fields to erase with --field, or give --all.")
    given = dict(value.partition("=")[::2] for value in values)
    with database.session() as session, acting(user, None):
        resource_id = key_of(source, key)
        count = len(versions_of(session, source, resource_id))
        session.rollback()  # while the question waits, no transaction may stay open
        what = "all fields" if is_all else ", ".join(fields)
        row = f"{name_of(source)} {shown(resource_id)}"
        confirm(f"Erase {what} of {row} from {counted(count, 'version')}? This cannot be undone.", yes=yes)
        chosen = "all" if is_all else list(fields)
        made = erase_values(session, source, resource_id, fields=chosen, reason=reason, values=given or None)
        session.commit()
    _print_erasures(output, [made])


@click.command(short_help="What has been erased.")
@TABLE
@shared_options
def erasures(database: Database, output: Output, table: str) -> None:
    """Show what has been erased from the rows of a TABLE: which fields, when, by whom and why, but no value."""
    source = database.declared_source(table)
    with database.session() as session:
        found = all_erasures(session, source)
    if found or output.form != "table":
        _print_erasures(output, found)
    else:
        click.echo("No erasures.", err=True)


def _print_erasures(output: Output, found: list[Erasure]) -> None:
    if output.form != "table":
        output.data(each.to_dict() for each in found)
        return
    for each in found:
        what = f"{shown(each.table)} {shown(each.key)}: {shown(', '.join(each.fields))}"
        line = Text.assemble((what, "bold"), "  ", (shown(each.erased_by), "cyan"), f"  {instant(each.erased_at)}")
        output.console.print(line, soft_wrap=True)
        print_indented(output.console, 2, Text(f"{counted(each.versions, 'version')}; {shown(each.reason)}", "italic"))
