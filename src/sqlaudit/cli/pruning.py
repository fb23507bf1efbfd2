"""The commands prune, hold, release and holds: what of a history goes, and what must stay?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.text import Text

from sqlaudit.cli.database import Database
from sqlaudit.cli.failures import UsageProblem
from sqlaudit.cli.options import USER, Writing, acting, shared_options, writing_options
from sqlaudit.cli.output import Output, counted, print_indented, print_trimmed, table_of
from sqlaudit.cli.reading import ANY_TABLE, TABLES, key_of
from sqlaudit.display import NOTHING, instant, shown, size
from sqlaudit.maintenance import Hold, PrunedTable, PruneReport
from sqlaudit.maintenance import hold as hold_row
from sqlaudit.maintenance import holds as all_holds
from sqlaudit.maintenance import prune as prune_histories
from sqlaudit.maintenance import release as release_hold

# --- prune ------------------------------------------------------------------------------------------------------


@click.command(short_help="Remove the oldest versions of rows.")
@TABLES
@click.option("--older-than", metavar="DURATION", help="Only versions that ended longer ago: 36h, 90d, 52w.")
@click.option("--keep-last", type=click.IntRange(1), help="Keep so many of the newest versions of each row.")
@click.option("--drop-tombstones", is_flag=True, help="Do not keep the last version of a deleted row either.")
@click.option("--chunk-size", type=click.IntRange(1), default=10_000, show_default=True, help="Versions a transaction.")
@writing_options(plans=True)
@shared_options
def prune(
    database: Database,
    output: Output,
    table: tuple[str, ...],
    older_than: str | None,
    keep_last: int | None,
    drop_tombstones: bool,
    chunk_size: int,
    writing: Writing,
) -> None:
    """Remove the oldest versions of rows of TABLEs, or of all tables with a retention. Shows the plan, and asks."""
    database.require_models()
    options: dict[str, Any] = {"keep_tombstones": not drop_tombstones, "chunk_size": chunk_size}
    options |= {"older_than": older_than, "keep_last": keep_last}
    is_table = output.form == "table"
    with database.connectable() as engine, writing.acting():
        sources = database.chosen(table) if table or older_than or keep_last else []
        plan = prune_histories(engine, *sources, dry_run=True, **options)
        if writing.dry_run or (is_table and not writing.yes) or not plan.rows:
            _print_pruned(output, plan)
        if writing.dry_run or not plan.rows:
            return
        writing.confirm("Remove them? As of earlier instants, these tables can then no longer be read.")
        try:
            done = prune_histories(engine, *sources, progress=is_table and output.console.is_terminal, **options)
        except KeyboardInterrupt:
            click.echo("Stopped. What is removed is removed; run the command again to go on.", err=True)
            raise
        _print_pruned(output, done)


def _print_pruned(output: Output, report: PruneReport) -> None:
    if output.form != "table":
        output.reports(PrunedTable, report.tables)
        return
    knows_sizes = any(each.bytes is not None for each in report.tables)  # only a dry run asks for them
    headings = ["table", "versions", *(["size"] if knows_sizes else []), "pruned before"]
    rows = [
        (
            shown(each.table),
            f"{each.rows:,}",
            *([size(each.bytes)] if knows_sizes else []),
            NOTHING if each.pruned_before is None else instant(each.pruned_before),
        )
        for each in report.tables
    ]
    table = table_of(headings, rows)
    for column in table.columns[1:-1]:
        column.justify = "right"
    print_trimmed(output.console, table)
    click.echo(f"{'To remove' if report.dry_run else 'Removed'}: {counted(report.rows, 'version')}.", err=True)


# --- holds ------------------------------------------------------------------------------------------------------


@click.command(short_help="Protect a row or a changeset from pruning.")
@ANY_TABLE
@click.argument("key", required=False)
@click.option("--changeset", metavar="ID", help="Instead of a row: what this transaction wrote.")
@click.option("--reason", metavar="TEXT", required=True, help="Why.")
@USER
@shared_options
def hold(
    database: Database,
    output: Output,
    table: str | None,
    key: str | None,
    changeset: str | None,
    reason: str,
    user: str | None,
) -> None:
    """Protect the row of a TABLE with a KEY, or a changeset: it is neither pruned nor erased until it is released."""
    database.require_models()
    if (table is None) == (changeset is None) or (table is None) != (key is None):
        raise UsageProblem("Name a TABLE and a KEY, or --changeset.")
    with database.session() as session, acting(user):
        source = None if table is None else database.source(table)
        resource_id = None if key is None else key_of(source, key)
        made = hold_row(session, source, resource_id, changeset_id=changeset, reason=reason)
        session.commit()
        _print_holds(database, output, [made])


@click.command(short_help="End a hold.")
@click.argument("hold_id", metavar="ID")
@shared_options
def release(database: Database, output: Output, hold_id: str) -> None:
    """End the hold with an ID, which sqlaudit holds shows."""
    database.require_models()
    with database.session() as session:
        release_hold(session, hold_id)
        session.commit()
    click.echo(f"Released {shown(hold_id)}.", err=True)


@click.command(short_help="What is protected from pruning.")
@ANY_TABLE
@shared_options
def holds(database: Database, output: Output, table: str | None) -> None:
    """Show the rows and changesets that are neither pruned nor erased."""
    database.require_models()
    with database.session() as session:
        found = all_holds(session, None if table is None else database.source(table))
    if found or output.form != "table":
        _print_holds(database, output, found)
    else:
        click.echo("No holds.", err=True)


def _print_holds(database: Database, output: Output, found: Sequence[Hold]) -> None:
    if output.form != "table":
        output.reports(Hold, found)
        return
    for each in found:
        what = f"changeset {each.changeset_id}" if each.table is None else database.row_name(each.table, each.key)
        line = Text.assemble((what, "bold"), "  ", (shown(each.held_by), "cyan"), f"  {instant(each.held_at)}")
        output.console.print(line, soft_wrap=True)
        print_indented(output.console, 2, Text.assemble((shown(each.reason), "italic")))
        output.console.print(Text(f"  {each.hold_id}", "dim"), soft_wrap=True)
