"""The command check: is a history sound?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

import click
from rich.console import Console
from rich.text import Text

from sqlaudit.cli.database import Database
from sqlaudit.cli.options import FINDINGS, Writing, shared_options, writing_options
from sqlaudit.cli.output import Output, counted, print_indented
from sqlaudit.cli.reading import TABLES
from sqlaudit.display import shown
from sqlaudit.maintenance import CheckReport, Finding
from sqlaudit.maintenance import check as check_histories


@click.command(short_help="Find faults of histories, and mend them.")
@TABLES
@click.option("--repair", is_flag=True, help="Mend what can be mended without inventing history.")
@click.option("-n", "--limit", type=click.IntRange(0), default=20, show_default=True, help="Faults of a kind to list.")
@writing_options()
@shared_options
def check(
    database: Database,
    output: Output,
    table: tuple[str, ...],
    repair: bool,
    limit: int,
    writing: Writing,
) -> None:
    """Find the faults of the histories of TABLEs, of all if none is named. The exit code is 3 if any is left."""
    sources = database.chosen(table)
    if repair:
        writing.confirm(f"Mend the histories of {counted(len(sources), 'table')}?")
    progress = output.console.is_terminal and output.form == "table"
    with database.connectable() as engine, writing.acting():
        report = check_histories(engine, *sources, repair=repair, limit=limit, progress=progress)
    if output.form == "json":
        output.one(report.to_dict())
    elif output.form == "csv":
        output.reports(Finding, report.findings)
    else:
        _print_report(output, report)
    if not report.is_sound:
        click.get_current_context().exit(FINDINGS)


def _print_report(output: Output, report: CheckReport) -> None:
    with output.paged() as console:
        for _, group in groupby(report.findings, attrgetter("table", "code")):
            _print_findings(console, list(group))
        for told in report.unchecked:
            print_indented(console, 0, Text.assemble(("not checked: ", "yellow"), shown(told)))
        count = sum(report.counts.values())
        summary = f"{counted(report.tables, 'table')}, {counted(report.versions, 'version')}: {counted(count, 'fault')}"
        console.print(summary + (f", {report.repaired:,} mended" if report.repaired else ""))


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print the faults of one kind in one table, and once how to mend them."""
    first = findings[0]
    console.print(Text.assemble((f"{shown(first.table)}  ", "bold"), (str(first.code), "red")), soft_wrap=True)
    for finding in findings:
        key = "" if finding.key is None else f"{shown(finding.key)}: "
        print_indented(console, 2, Text(f"{key}{shown(finding.message)}"))
        if finding.repair is not None:
            print_indented(console, 4, Text(shown(finding.repair), "green" if finding.is_repaired else "yellow"))
    if first.repair is None:
        print_indented(console, 2, Text(shown(first.remedy), "italic"))
