"""The commands that write: undo, restore, mark, backfill and catch-up."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import groupby
from typing import Any

import click
from rich.console import Console
from rich.text import Text
from sqlalchemy.orm import Session

from sqlaudit.changes import Conflict, RestoreReport
from sqlaudit.cli.database import Database
from sqlaudit.cli.failures import Failure, UsageProblem
from sqlaudit.cli.instants import instant_of, state
from sqlaudit.cli.options import USER, Writing, acting, shared_options, writing_options
from sqlaudit.cli.output import STYLES, Output, counted, row_name
from sqlaudit.cli.reading import KEY, TABLE, TABLES, arrow, key_of
from sqlaudit.display import instant, shown
from sqlaudit.exceptions import UndoConflictError
from sqlaudit.maintenance import BackfillReport
from sqlaudit.maintenance import backfill as write_baselines
from sqlaudit.past.marks import mark as make_mark
from sqlaudit.past.marks import remove_mark
from sqlaudit.recording.reconcile import record_changes
from sqlaudit.restoring.restore import restore as restore_row
from sqlaudit.restoring.undo import undo as undo_changesets
from sqlaudit.tracking.sources import name_of
from sqlaudit.wire import names_in

# --- undo and restore -------------------------------------------------------------------------------------------


@click.command(short_help="Take back what transactions changed.")
@click.argument("changeset", nargs=-1)
@click.option("--field", "fields", multiple=True, metavar="NAME", help="Only this field. [repeatable]")
@click.option("--by", "by", metavar="ID", help="All that this user changed, with --since.")
@click.option("--since", type=instant_of, metavar="WHEN", help="All since an instant, with --by or --run.")
@click.option("--run", metavar="ID", help="All that this run of an agent or a job changed.")
@click.option("--whole-rows", is_flag=True, help="Whole rows as they were, not only what the changeset changed.")
@click.option("--force", is_flag=True, help="Discard later changes that conflict.")
@writing_options(plans=True)
@shared_options
def undo(
    database: Database,
    output: Output,
    changeset: tuple[str, ...],
    fields: tuple[str, ...],
    by: str | None,
    since: datetime | None,
    run: str | None,
    whole_rows: bool,
    force: bool,
    writing: Writing,
) -> None:
    """Take back what one or several CHANGESETs changed. Shows the plan first, and asks."""
    database.require_models()
    if not changeset and by is None and run is None:
        raise UsageProblem(
            "Name a CHANGESET (see sqlaudit changesets), or choose several with --by and --since, or --run."
        )

    def work(session: Session, *, dry_run: bool) -> RestoreReport:
        return undo_changesets(
            session,
            list(changeset) or None,
            user_id=by,
            since=since,
            run_id=run,
            fields=list(fields) or None,
            whole_rows=whole_rows,
            force=force,
            dry_run=dry_run,
        )

    _plan_and_do(database, output, work, writing)


@click.command(short_help="Write an old state of a row back.")
@TABLE
@KEY
@click.option(
    "--to", "to", required=True, metavar="WHEN", help="A version number, an instant, a changeset or mark:NAME."
)
@click.option("--field", "fields", multiple=True, metavar="NAME", help="Only this field. [repeatable]")
@click.option("--include", multiple=True, metavar="PATH", help="Also the rows of this relationship. [repeatable]")
@writing_options(plans=True)
@shared_options
def restore(
    database: Database,
    output: Output,
    table: str,
    key: str,
    to: str,
    fields: tuple[str, ...],
    include: tuple[str, ...],
    writing: Writing,
) -> None:
    """Write an old state of a row back. Shows the plan first, and asks."""
    source = database.declared_source(table)

    def work(session: Session, *, dry_run: bool) -> RestoreReport:
        at = state(session, to, versions=True)
        chosen = list(fields) or None
        return restore_row(session, source, key_of(source, key), at=at, fields=chosen, include=include, dry_run=dry_run)

    _plan_and_do(database, output, work, writing)


def _plan_and_do(database: Database, output: Output, work: Any, writing: Writing) -> None:
    """Show what would be done, ask, and do it in one transaction.

    What is done is planned anew, under locks: if it is no longer what was shown, nothing is done.
    """
    with database.session() as session, writing.acting():
        try:
            plan: RestoreReport = work(session, dry_run=True)
        except UndoConflictError as error:
            _print_conflicts(error.conflicts)
            raise Failure(
                "Later changes would be lost. Undo their changesets together with this one, or add --force."
            ) from error
        session.rollback()  # while the question waits, no transaction may stay open
        if output.form != "table":
            output.one(plan.to_dict())
        else:
            print_plan(output.console, plan)
        if writing.dry_run or not plan:
            return
        writing.confirm("Do this?")
        done: RestoreReport = work(session, dry_run=False)
        if not writing.yes and _told(done) != _told(plan):
            session.rollback()
            raise Failure("The rows have changed since, and nothing was done. Run the command again.")
        session.commit()
    click.echo(f"Done: {counted(len(done), 'row')}.", err=True)


def _told(report: RestoreReport) -> Any:
    return sorted(map(str, report.to_dict("json")["items"]))


def print_plan(console: Console, plan: RestoreReport) -> None:
    """Print the rows that an undo or a restore would change, and the later changes that it would discard."""
    if not plan:
        console.print("Nothing to do.")
    for item in sorted(plan, key=lambda item: (item.resource_type, str(item.key))):
        row = Text(f"{row_name(item.resource_type, item.key)}  ")
        console.print(row.append(str(item.operation), STYLES.get(item.operation, "")), soft_wrap=True)
        names = max(map(len, map(shown, item.fields)), default=0)
        for name, (old, new) in item.fields.items():
            line = Text(f"  {shown(name):{names}}  ")
            console.print(
                line.append_text(arrow(item.operation, old, new, console.width - line.cell_len)), soft_wrap=True
            )
    if plan.conflicts:
        _print_conflicts(plan.conflicts)


def _print_conflicts(conflicts: Iterable[Conflict]) -> None:
    click.echo("Later changes of the same fields:", err=True)
    for (label, key), group in groupby(conflicts, lambda each: (each.resource_type, each.key)):
        for each in group:
            fields = shown(", ".join(each.fields)) or "the whole row"
            when = "" if each.timestamp is None else f", {instant(each.timestamp)}"
            click.echo(f"  {row_name(label, key)}  {fields}: {shown(each.changed_by)}{when}", err=True)


# --- marks ------------------------------------------------------------------------------------------------------


@click.command(short_help="Give this instant a name.")
@click.argument("name")
@click.option("--remove", is_flag=True, help="Remove the mark.")
@USER
@shared_options
def mark(database: Database, output: Output, name: str, remove: bool, user: str | None) -> None:
    """Give this instant a NAME, usable as mark:NAME wherever an instant is."""
    database.require_models()
    with database.session() as session, acting(user):
        if remove:
            remove_mark(session, name)
            session.commit()
            click.echo(f"Removed the mark {shown(name)}.", err=True)
            return
        made = make_mark(session, name)
        session.commit()
        if output.form != "table":
            output.one({"name": made.name, "at": made.at, "changed_by": made.changed_by})
        else:
            output.console.print(f"{shown(made.name)}: {instant(made.at)}", soft_wrap=True)


# --- whole tables -----------------------------------------------------------------------------------------------


@click.command(short_help="Baselines for rows without history.")
@TABLES
@click.option("--at", type=instant_of, metavar="WHEN", help="Since when the rows are known to have been as they are.")
@click.option("--chunk-size", type=click.IntRange(1), default=10_000, show_default=True, help="Rows a transaction.")
@writing_options()
@shared_options
def backfill(
    database: Database,
    output: Output,
    table: tuple[str, ...],
    at: datetime | None,
    chunk_size: int,
    writing: Writing,
) -> None:
    """Give the rows of TABLEs that have no history a first version, a baseline. All tables if none is named."""
    sources = database.chosen(table)
    writing.confirm(f"Write baselines for the rows without history of {counted(len(sources), 'table')}?")
    reports = []
    try:
        with database.connectable() as engine, writing.acting():
            for source in sources:
                report = write_baselines(
                    engine, source, at=at, chunk_size=chunk_size, progress=output.console.is_terminal
                )
                reports.append({"table": name_of(source), **report.to_dict()})
    except KeyboardInterrupt:
        click.echo("Stopped. What is written is whole; run the command again to go on.", err=True)
        raise
    if output.form != "table":
        output.data(["table", *names_in(BackfillReport)], reports)
        return
    for each in reports:
        output.console.print(f"{shown(each['table'])}: {counted(each['rows'], 'row')}", soft_wrap=True)


@click.command("catch-up", short_help="Record what was changed past sqlaudit.")
@TABLES
@writing_options()
@shared_options
def catch_up(database: Database, output: Output, table: tuple[str, ...], writing: Writing) -> None:
    """Record what raw SQL or other programs changed in TABLEs: live rows that differ from their last version."""
    sources = database.chosen(table)
    writing.confirm(f"Record what changed in {counted(len(sources), 'table')}?")
    with database.session() as session, writing.acting():
        for source in sources:
            record_changes(session, source)
            session.commit()
            click.echo(f"{shown(name_of(source))}: recorded", err=True)
