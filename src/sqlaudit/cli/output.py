"""How is a result written? As a table for people, as JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sqlaudit.display import safe, shown
from sqlaudit.wire import Report, json_value, names_in

Format = Literal["table", "json", "csv"]
STYLES: Final = {
    "insert": "green",
    "link": "green",
    "update": "yellow",
    "delete": "red",
    "unlink": "red",
    "baseline": "dim",
}
"""The colours of operations."""


@dataclass
class Output:
    """Where and how a command writes its result.

    :ivar form: ``"table"``, ``"json"`` or ``"csv"``
    :ivar pages: show a long table in a pager if the output is a terminal
    """

    form: Format = "table"
    pages: bool = True

    @cached_property
    def console(self) -> Console:
        """A console on the standard output. In a pipe, its width is that of ``COLUMNS``, or 160."""
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
        return Console(highlight=False, markup=False, emoji=False, width=width, soft_wrap=False)

    @contextmanager
    def paged(self) -> Iterator[Console]:
        """Give the console; if it is a terminal, a pager shows what is longer than the screen."""
        if self.pages and self.console.is_terminal and not self.console.is_dumb_terminal:
            os.environ.setdefault("LESS", "-FRX")
            with self.console.pager(styles=not self.console.no_color):
                yield self.console
        else:
            yield self.console

    def data(self, names: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Write dicts as a JSON array or as CSV, one by one.

        :param names: the names in each dict
        """
        if self.form == "csv":
            self._csv(names, rows)
        else:
            self._json(rows)

    def reports(self, kind: type[Report], reports: Iterable[Report]) -> None:
        """Write reports of a kind as a JSON array or as CSV, one by one."""
        self.data(names_in(kind), (report.to_dict() for report in reports))

    def one(self, document: Mapping[str, Any]) -> None:
        """Write one dict as JSON, or as CSV of one row."""
        if self.form == "csv":
            self._csv(document, [document])
        else:
            self._write(_json_text(document, indent=2) + "\n")

    def _json(self, rows: Iterable[Mapping[str, Any]]) -> None:
        separator = "["
        for row in rows:
            self._write(f"{separator}\n  {_json_text(row)}")
            separator = ","
        self._write("[]\n" if separator == "[" else "\n]\n")

    def _csv(self, names: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
        is_terminal = sys.stdout.isatty()
        writer = csv.DictWriter(sys.stdout, list(names), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = {name: _cell(value) for name, value in row.items()}
            writer.writerow({name: safe(value) for name, value in values.items()} if is_terminal else values)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)


def _json_text(value: Any, indent: int | None = None) -> str:
    text = json.dumps(json_value(value), ensure_ascii=False, indent=indent)
    # JSON escapes the ASCII control characters itself. Others, such as U+009B, are commands for a terminal, too.
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1] for character in text
    )


def _cell(value: Any) -> str:
    form = json_value(value)
    return "" if form is None else form if isinstance(form, str) else json.dumps(form, ensure_ascii=False)


def table_of(headings: Sequence[str], rows: Iterable[Sequence[str | Text]], *, folded: Sequence[str] = ()) -> Table:
    """Return a table without lines, whose cells are plain text.

    :param folded: the columns whose long cells continue on a second line; those of the others are never cut off
    """
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for heading in headings:
        table.add_column(Text(heading), overflow="fold", no_wrap=heading not in folded)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def print_trimmed(console: Console, block: RenderableType) -> None:
    """Print a table or a paragraph without the spaces that would follow its last column."""
    with console.capture() as captured:
        console.print(block)
    for line in captured.get().splitlines():
        console.print(Text.from_ansi(line.rstrip()), soft_wrap=True)


def print_indented(console: Console, indent: int, text: Text) -> None:
    """Print a paragraph whose lines are indented."""
    print_trimmed(console, Padding(text, (0, 0, 0, indent)))


def counted(count: int, noun: str) -> str:
    """Return a number and a noun, such as ``1 row`` or ``1,000 rows``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def row_name(label: str, key: Any) -> str:
    """Return the name of a row as people call it, such as ``Ticket 7``."""
    return f"{shown(label)} {shown(key)}"
