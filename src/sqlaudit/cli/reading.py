"""The commands that read: log, show, blame, diff, changesets and marks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import click
from rich.console import Console
from rich.text import Text
from sqlalchemy import Table
from sqlalchemy.orm import Session

from sqlaudit.changes import Blame, Changeset, FieldChange, Operation
from sqlaudit.cli.database import Database
from sqlaudit.cli.failures import Failure, UsageProblem
from sqlaudit.cli.instants import INSTANT_HELP, instant_of, state
from sqlaudit.cli.options import shared_options
from sqlaudit.cli.output import STYLES, Output, print_trimmed, row_name, table_of
from sqlaudit.context import ActorType
from sqlaudit.display import NOTHING, instant, shortened, shortened_pair, shown
from sqlaudit.past.comparing import diff as diff_of
from sqlaudit.past.comparing import state_of
from sqlaudit.past.marks import marks as all_marks
from sqlaudit.retrieval.changeset_reader import changesets as all_changesets
from sqlaudit.retrieval.changesets import instant_of_changeset
from sqlaudit.retrieval.field_changes import blame as blame_of
from sqlaudit.retrieval.field_changes import get_resource_changes, versions_of
from sqlaudit.retrieval.grouping import by_row, by_transaction
from sqlaudit.tracking.history import version_info
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.sources import name_of
from sqlaudit.wire import names_in

_ACTOR: Final = click.Choice([str(each) for each in ActorType])
_OPERATION: Final = click.Choice([str(each) for each in Operation if each is not Operation.BASELINE])


def _complete_table(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of tables that begin so, for the completion of a shell."""
    with suppress(Exception):  # a shell asks while the command is not complete yet
        database = Database(ctx.params.get("url") or os.environ.get("SQLAUDIT_URL"), ctx.params.get("models") or ())
        return [name for name in database.sources if name.startswith(incomplete)]
    return []


TABLE = click.argument("table", shell_complete=_complete_table)
TABLES = click.argument("table", nargs=-1, shell_complete=_complete_table)
ANY_TABLE = click.argument("table", required=False, shell_complete=_complete_table)
KEY = click.argument("key")


def key_of(source: Any, text: str) -> Any:
    """Return the key that a text gives; the parts of a composite one are separated by commas."""
    count = len(model_of(source).root.table.key)
    if count == 1:
        return text
    parts = tuple(part.strip() for part in text.split(","))
    if len(parts) != count:
        names = ",".join(column.name for column in model_of(source).root.table.key)
        raise UsageProblem(f"The key of {name_of(source)} has {count} parts. Write them as {names}.")
    return parts


# --- log --------------------------------------------------------------------------------------------------------


@click.command(short_help="What changed, the latest first.")
@ANY_TABLE
@click.argument("key", required=False)
@click.option("--field", "filter_fields", multiple=True, metavar="NAME", help="Only this field. [repeatable]")
@click.option("--old", "filter_old_values", multiple=True, metavar="VALUE", help="Only from this value. [repeatable]")
@click.option("--new", "filter_new_values", multiple=True, metavar="VALUE", help="Only to this value. [repeatable]")
@click.option("--operation", "filter_operations", multiple=True, type=_OPERATION, help="Only these. [repeatable]")
@click.option("--user", "filter_user_ids", multiple=True, metavar="ID", help="Only by this user. [repeatable]")
@click.option("--actor-type", "filter_actor_types", multiple=True, type=_ACTOR, help="Only by these. [repeatable]")
@click.option("--on-behalf-of", "filter_on_behalf_of", multiple=True, metavar="ID", help="Only for this user.")
@click.option("--run", "filter_run_ids", multiple=True, metavar="ID", help="Only in this run. [repeatable]")
@click.option("--since", type=instant_of, metavar="WHEN", help="Only since an instant: '3 days ago'.")
@click.option("--until", type=instant_of, metavar="WHEN", help="Only until an instant.")
@click.option("--include", multiple=True, metavar="NAME", help="Also what this relationship leads to. [repeatable]")
@click.option("-n", "--limit", type=click.IntRange(0), default=50, show_default=True, help="The most field changes.")
@click.option("--oldest-first", is_flag=True, help="Begin with the oldest.")
@shared_options
def log(
    database: Database,
    output: Output,
    table: str | None,
    key: str | None,
    since: datetime | None,
    until: datetime | None,
    include: tuple[str, ...],
    limit: int,
    oldest_first: bool,
    **filters: tuple[str, ...],
) -> None:
    """Show field changes, the latest first: of all tables, of a TABLE, or of the row with a KEY."""
    if include and key is None:
        raise UsageProblem("--include needs a TABLE and a KEY.")
    asked: dict[str, Any] = {name: list(values) for name, values in filters.items() if values}
    asked |= {"limit": limit, "newest_first": not oldest_first, "include": include}
    if since or until:
        asked["filter_date_range"] = since, until
    with database.session() as session:
        changes: Iterable[FieldChange]
        if table is None:
            changes = islice(_changes_of_all(session, list(database.roots.values()), asked), min(limit, sys.maxsize))
        else:
            source = database.source(table)
            changes = get_resource_changes(source, session, None if key is None else key_of(source, key), **asked)
        if output.form != "table":
            output.reports(FieldChange, changes)
        else:
            _print_changes(output, changes)


def _changes_of_all(session: Session, sources: Sequence[Any], asked: Mapping[str, Any]) -> Iterable[FieldChange]:
    """Return the field changes of all tables, in the order of time."""
    named = set(asked.get("filter_fields", ()))
    by_source = {source: {name for name, _ in model_of(source).reported_fields()} for source in sources}
    if unknown := named.difference(*by_source.values()):
        raise UsageProblem(f"No table has a field {', '.join(map(repr, sorted(unknown)))}.")
    found = []
    for source, fields in by_source.items():
        if not named or not named.isdisjoint(fields):
            own = {"filter_fields": sorted(named & fields)} if named else {}
            found.append(get_resource_changes(source, session, **{**asked, **own}))
    return merge(*found, key=attrgetter("timestamp"), reverse=bool(asked["newest_first"]))


def _print_changes(output: Output, changes: Iterable[FieldChange]) -> None:
    is_empty = True
    with output.paged() as console:
        for group in by_transaction(changes):
            if not is_empty:
                console.print()
            is_empty = False
            _print_heading(console, group[0])
            _print_fields(console, group)
    if is_empty:
        click.echo("No changes.", err=True)


def _print_heading(console: Console, info: Any) -> None:
    """Print when, who and why, and the id of the transaction where there is room."""
    line = Text.assemble((instant(info.timestamp), "bold"), "  ", who(info))
    if info.reason:
        line.append("  ").append(shown(info.reason), "italic")
    changeset_id = Text(str(info.changeset_id), "dim")
    line.truncate(console.width, overflow="ellipsis")
    if line.cell_len + 2 + changeset_id.cell_len <= console.width:
        line.pad_right(console.width - line.cell_len - changeset_id.cell_len)
        console.print(line.append_text(changeset_id), soft_wrap=True)
    else:
        console.print(line, soft_wrap=True)
        console.print(changeset_id, soft_wrap=True)


def who(info: Any) -> Text:
    """Return the user, for whom and as whom he acted, and the kind of actor unless it is a user."""
    text = Text(shown(info.changed_by), "cyan")
    if info.impersonated_by:
        text.append(f" (really {shown(info.impersonated_by)})")
    if info.actor_type not in (None, "user"):
        text.append(f" ({shown(str(info.actor_type))})")
    if info.on_behalf_of:
        text.append(f" for {shown(info.on_behalf_of)}")
    return text


def _print_fields(console: Console, changes: Sequence[FieldChange]) -> None:
    """Print the rows that a transaction changed, and below each its fields, old → new."""
    names = max(len(shown(change.field_name)) for change in changes)
    for of_row in by_row(changes):
        operation, name = of_row[0].operation, row_name(of_row[0].resource_type, of_row[0].resource_id)
        row = Text.assemble("  ", name, "  ", (str(operation), STYLES.get(operation, "")))
        row.truncate(console.width, overflow="ellipsis")
        console.print(row, soft_wrap=True)
        for change in of_row:
            line = Text.assemble("    ", f"{shown(change.field_name):{names}}", "  ")
            line.append_text(arrow(change.operation, change.old_value, change.new_value, console.width - line.cell_len))
            console.print(line, soft_wrap=True)


def arrow(operation: Operation | None, old: Any, new: Any, width: int) -> Text:
    """Return ``old → new`` in at most ``width`` characters, shortened around the difference.

    What was inserted or deleted has one value only.
    """
    if operation in (Operation.INSERT, Operation.LINK):
        return Text(shortened(shown(new), width), "green")
    if operation in (Operation.DELETE, Operation.UNLINK):
        return Text(shortened(shown(old), width), "red strike")
    before, after = shown(old), shown(new)
    before, after = shortened_pair(before, after, max(16, width - 3))
    return Text.assemble((before, "red"), (" → ", "dim"), (after, "green"))


# --- show and blame ---------------------------------------------------------------------------------------------


@click.command(short_help="A row as it is, or as it was.")
@TABLE
@KEY
@click.option("--at", metavar="WHEN", help=f"As of {INSTANT_HELP}, or a version number. Now if omitted.")
@shared_options
def show(database: Database, output: Output, table: str, key: str, at: str | None) -> None:
    """Show the row of a TABLE with a KEY, now or as it was, and the version that it comes from."""
    with database.session() as session:
        source = database.source(table)
        model, resource_id = model_of(source), key_of(source, key)
        if at is None:
            version = next(iter(versions_of(session, source, resource_id, limit=1, newest_first=True)), None)
        else:
            version = state_of(session, model, source, resource_id, state(session, at, versions=True))
        if version is None:
            row = row_name(model.label, resource_id)
            raise Failure(f"{row} has no history. Check the key." if at is None else f"{row} did not exist then: {at}.")
        info = version_info(version)
        values = {name: getattr(version, name) for name in sorted(version.__sqlaudit_model__.columns)}
        ends = getattr(version, model.root.table.names.valid_to)
        if output.form != "table":
            output.one({**version.to_dict()})
            return
        with output.paged() as console:
            heading = f"{row_name(model.label, resource_id)}, version {info['version']}"
            console.print(Text.assemble((heading, "bold"), ", ", _period_text(info, ends)), soft_wrap=True)
            console.print(Text.assemble("  ", who(version), f"  {shown(info['reason'])}" if info["reason"] else ""))
            rows = [(name, Text(shown(value), "dim" if value is None else "")) for name, value in values.items()]
            console.print()
            print_trimmed(console, table_of(["field", "value"], rows, folded=["value"]))


def _period_text(info: Mapping[str, Any], ends: datetime) -> str:
    begins = instant(info["timestamp"])
    if info["operation"] == "delete":
        return f"deleted {begins}"
    return f"since {begins}" if ends.year == 9999 else f"from {begins} to {instant(ends)}"


@click.command(short_help="Who set each field of a row, and why.")
@TABLE
@KEY
@click.option("--at", metavar="WHEN", help=f"As of {INSTANT_HELP}. Now if omitted.")
@shared_options
def blame(database: Database, output: Output, table: str, key: str, at: str | None) -> None:
    """Show, for each field of a row, its value and who set it, when and why."""
    with database.session() as session:
        source = database.source(table)
        if isinstance(source, Table):
            raise UsageProblem(f"{name_of(source)} has links, which are made and removed whole. Use log.")
        when = None if at is None else state(session, at)
        if isinstance(when, UUID):
            when = instant_of_changeset(session, when)
        found = blame_of(session, source, key_of(source, key), at=when)
        if not found:
            then = "" if at is None else f", as of {at}"
            row = row_name(model_of(source).label, key_of(source, key))
            raise Failure(f"{row} is deleted, or has no history{then}. See sqlaudit log.")
        if output.form != "table":
            blames = ({"field_name": name, **each.to_dict()} for name, each in found.items())
            output.data(["field_name", *names_in(Blame)], blames)
            return
        rows = [
            (
                shown(name),
                shortened(shown(each.value), 60),
                Text("unknown", "dim") if each.unknown_before or each.unknown_after else who(each),
                instant(each.timestamp, seconds=False),
                Text(shown(each.reason), "italic") if each.reason else "",
            )
            for name, each in found.items()
        ]
        with output.paged() as console:
            headings = ["field", "value", "who", "when", "why"]
            print_trimmed(console, table_of(headings, rows, folded=["value", "who", "why"]))


# --- diff -------------------------------------------------------------------------------------------------------


@click.command(short_help="What differs between two states of a row.")
@TABLE
@KEY
@click.argument("a")
@click.argument("b")
@shared_options
def diff(database: Database, output: Output, table: str, key: str, a: str, b: str) -> None:
    """Show what differs between two states, A and B, of a row.

    A state is the number of a version, an instant such as 'yesterday 14:00', a changeset id, or mark:NAME.
    """
    with database.session() as session:
        source = database.source(table)
        first, second = (state(session, text, versions=True) for text in (a, b))
        found = diff_of(session, source, key_of(source, key), first, second)
        if output.form == "json":
            output.one(found.to_dict())
        elif output.form == "csv":
            headings = ["field_name", "old_value", "new_value"]
            output.data(
                headings, (dict(zip(headings, (name, *pair), strict=True)) for name, pair in found.fields.items())
            )
        elif not found:
            click.echo("No difference.", err=True)
        else:
            with output.paged() as console:
                row = Text(f"{row_name(found.resource_type, found.resource_id)}  ", "bold")
                console.print(row.append(str(found.operation), STYLES.get(str(found.operation), "")), soft_wrap=True)
                names = max(map(len, map(shown, found.fields)), default=0)
                for name, (old, new) in found.fields.items():
                    line = Text(f"  {shown(name):{names}}  ")
                    console.print(
                        line.append_text(arrow(found.operation, old, new, console.width - line.cell_len)),
                        soft_wrap=True,
                    )


# --- changesets and marks ---------------------------------------------------------------------------------------


@click.command(short_help="The transactions, the latest first.")
@ANY_TABLE
@click.argument("key", required=False)
@click.option("--user", metavar="ID", help="Only those of this user.")
@click.option("--reason", metavar="TEXT", help="Only those with this reason.")
@click.option("--since", type=instant_of, metavar="WHEN", help="Only those since an instant: '3 days ago'.")
@click.option("--until", type=instant_of, metavar="WHEN", help="Only those until an instant.")
@click.option("-n", "--limit", type=click.IntRange(0), default=20, show_default=True, help="The most changesets.")
@click.option("--oldest-first", is_flag=True, help="Begin with the oldest.")
@shared_options
def changesets(
    database: Database,
    output: Output,
    table: str | None,
    key: str | None,
    user: str | None,
    reason: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    oldest_first: bool,
) -> None:
    """Show the transactions, the latest first: all, or those that changed a TABLE or the row with a KEY."""
    with database.session() as session:
        filters: dict[str, Any] = {"user_id": user, "reason": reason, "since": since, "until": until}
        if table is not None:
            filters["model"] = database.source(table)
            filters["key"] = None if key is None else key_of(filters["model"], key)
        given = {name: value for name, value in filters.items() if value is not None}
        found = all_changesets(session, limit=limit, newest_first=not oldest_first, **given)
        if output.form != "table":
            output.reports(Changeset, found)
        elif not found:
            click.echo("No changesets.", err=True)
        else:
            with output.paged() as console:
                for each in found:
                    _print_heading(console, each)
                    console.print(f"  {shown(', '.join(each.tables))}", soft_wrap=True)


@click.command(short_help="The instants that have a name.")
@shared_options
def marks(database: Database, output: Output) -> None:
    """Show the instants that have a name, the earliest first."""
    with database.session() as session:
        database.require_models()
        found = all_marks(session)
        if output.form != "table":
            names = ["name", "at", "changed_by"]
            output.data(names, ({name: getattr(each, name) for name in names} for each in found))
        elif not found:
            click.echo("No marks.", err=True)
        else:
            rows = [(shown(each.name), instant(each.at), shown(each.changed_by) or NOTHING) for each in found]
            print_trimmed(output.console, table_of(["mark", "when", "who"], rows, folded=["mark"]))
