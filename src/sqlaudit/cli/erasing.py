"""The commands erase, erase-actor and erasures: a person's values and name are gone from a history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import click
from rich.text import Text

from sqlaudit.cli.database import Database
from sqlaudit.cli.failures import UsageProblem
from sqlaudit.cli.options import Writing, acting, shared_options, writing_options
from sqlaudit.cli.output import Output, counted, print_indented
from sqlaudit.cli.reading import KEY, TABLE, TABLES, key_of
from sqlaudit.display import instant, shown
from sqlaudit.maintenance import ActorErasure, Erasure
from sqlaudit.maintenance import erase as erase_values
from sqlaudit.maintenance import erase_actor as erase_user
from sqlaudit.maintenance import erasures as all_erasures
from sqlaudit.retrieval.filters import values_of_type
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.sources import name_of
from sqlaudit.tracking.subjects import personal_names

_NAME_HELP: Final = "Erase this from reasons and extra, instead of the USER. [repeatable]"


@click.command(short_help="Erase values from all versions of a row.")
@TABLE
@KEY
@click.option("--field", "fields", multiple=True, metavar="NAME", help="Erase this field. [repeatable]")
@click.option("--all", "is_all", is_flag=True, help="Erase all fields but the key.")
@click.option(
    "--value",
    "values",
    multiple=True,
    metavar="NAME=VALUE",
    help="What a live NOT NULL column gets instead; TABLE.NAME=VALUE for rows that follow. [repeatable]",
)
@writing_options(plans=True, needs_reason=True)
@shared_options
def erase(
    database: Database,
    output: Output,
    table: str,
    key: str,
    fields: tuple[str, ...],
    is_all: bool,
    values: tuple[str, ...],
    writing: Writing,
) -> None:
    """Erase fields of the row of a TABLE with a KEY: from all its versions, and from the live row.

    Of rows that follow it, which their models' subject tells, the personal fields are erased, too. Without --field and
    --all, the personal fields of the row are. Shows what would be erased, and asks.
    """
    source = database.declared_source(table)
    if (is_all and fields) or not (is_all or fields or personal_names(model_of(source).root)):
        raise UsageProblem("Name the fields to erase with --field, or give --all.")
    options: dict[str, Any] = {"fields": "all" if is_all else list(fields) or None, "reason": writing.reason}
    options["values"] = _values(database, source, values)
    with database.session() as session, acting(writing.user):
        resource_id = key_of(source, key)
        plan = erase_values(session, source, resource_id, dry_run=True, **options)
        session.rollback()  # while the question waits, no transaction may stay open
        if writing.dry_run or (output.form == "table" and not writing.yes):
            _print_erasures(database, output, [plan], is_plan=True)
        if writing.dry_run:
            return
        count = plan.versions + sum(each.versions for each in plan.followers)
        writing.confirm(f"Erase this from {counted(count, 'version')}? It cannot be undone.")
        made = erase_values(session, source, resource_id, **options)
        session.commit()
    _print_erasures(database, output, [made])


def _values(database: Database, source: Any, texts: Iterable[str]) -> dict[Any, Any]:
    """Return what live rows get: by the names of fields and, for rows that follow, by models.

    :raises UsageProblem: a text cannot be read
    """
    given: dict[Any, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageProblem(f"--value is {text!r}. Write NAME=VALUE.")
        table, _, field = name.rpartition(".")
        model = database.source(table) if table else source
        (given.setdefault(model, {}) if table else given)[field] = _value(model, field, value)
    return given


def _value(source: Any, field: str, text: str) -> Any:
    """Return the value of a field that a text stands for.

    :raises UsageProblem: the field cannot have it
    """
    for model in model_of(source).root.family():
        if field in model.columns:
            values = values_of_type(model.columns[field].type, [text])
            if not values:
                raise UsageProblem(f"{field} of {name_of(source)} cannot be {text!r}. Give a value of its type.")
            return values[0]
    return text


@click.command("erase-actor", short_help="Erase a user from who changed what.")
@click.argument("user_id", metavar="USER")
@TABLES
@click.option("--name", "names", multiple=True, metavar="TEXT", help=_NAME_HELP)
@writing_options(plans=True, needs_reason=True)
@shared_options
def erase_actor(
    database: Database,
    output: Output,
    user_id: str,
    table: tuple[str, ...],
    names: tuple[str, ...],
    writing: Writing,
) -> None:
    """Erase a USER from the versions of TABLEs, or of all tables: who wrote them, their reasons and extra.

    Shows what would be erased, and asks.
    """
    sources = database.chosen(table)
    options: dict[str, Any] = {"names": names or None, "reason": writing.reason}
    with database.connectable() as engine, acting(writing.user):
        plan = erase_user(engine, user_id, *sources, dry_run=True, **options)
        if writing.dry_run or (output.form == "table" and not writing.yes):
            _print_tables(output, plan)
        if writing.dry_run:
            return
        writing.confirm(f"Erase the user from {counted(plan.versions, 'version')}? It cannot be undone.")
        try:
            done = erase_user(engine, user_id, *sources, **options)
        except KeyboardInterrupt:
            click.echo("Stopped. What is erased is erased; run the command again to go on.", err=True)
            raise
        _print_tables(output, done)


def _print_tables(output: Output, done: ActorErasure) -> None:
    if output.form != "table":
        output.one(done.to_dict())
        return
    for each in done.tables:
        count = f"{counted(each.versions, 'version')} of {counted(each.rows, 'row')}"
        output.console.print(f"{shown(each.table)}: {count}", soft_wrap=True)
    if not done.tables:
        output.console.print("No version names the user.")
    if done.held:
        click.echo(f"Left alone because of a hold: {counted(done.held, 'version')}.", err=True)


@click.command(short_help="What has been erased.")
@TABLE
@shared_options
def erasures(database: Database, output: Output, table: str) -> None:
    """Show what has been erased from the rows of a TABLE: which fields, when, by whom and why, but no value."""
    source = database.declared_source(table)
    with database.session() as session:
        found = all_erasures(session, source)
    if found or output.form != "table":
        _print_erasures(database, output, found)
    else:
        click.echo("No erasures.", err=True)


def _print_erasures(database: Database, output: Output, found: list[Erasure], *, is_plan: bool = False) -> None:
    if output.form != "table":
        output.reports(Erasure, found)
        return
    for each in found:
        row = shown(each.table) if each.key is None else database.row_name(each.table, each.key)
        what = f"{row}: {shown(', '.join(each.fields))}"
        line = Text(what, "bold")
        if not is_plan:
            line.append("  ", "").append(shown(each.erased_by), "cyan").append(f"  {instant(each.erased_at)}", "")
        output.console.print(line, soft_wrap=True)
        lines = [f"{counted(each.versions, 'version')}; {shown(each.reason)}"]
        lines += [
            f"{shown(table.table)}: {shown(', '.join(table.fields))} of {counted(table.rows, 'row')}, "
            f"{counted(table.versions, 'version')}"
            for table in each.followers
        ]
        for text in lines:
            print_indented(output.console, 2, Text(text, "italic"))
