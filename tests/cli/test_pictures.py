"""The pictures of the page on the command line show what the commands print. ``SQLAUDIT_DRAW=1`` draws them anew."""

import html
import io
import os
import re
import shlex

import pytest
from click.testing import CliRunner
from rich.console import Console

from blocks import ROOT
from sqlaudit.cli.commands import program
from sqlaudit.cli.output import Output

DIRECTORY = ROOT / "docs" / "pictures" / "cli"
COMMANDS = {
    "log": "sqlaudit log -n 6",
    "blame": "sqlaudit blame suppliers 1",
    "diff": "sqlaudit diff suppliers 1 1 4",
    "status": "sqlaudit status parts suppliers tags",
}
_FONT = re.compile(r" *@font-face \{.*?\}\n", re.DOTALL)
"""A font from elsewhere, without which a picture is whole."""
_TEXT = re.compile(r"<text [^>]*>(.*?)</text>")


def drawn(command: str) -> str:
    """Return an SVG of a terminal of 80 columns in which a command was executed."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, highlight=False, markup=False)
    console.print(f"$ {command}", style="bold")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "console", console)
        patch.setattr(Output, "pages", False, raising=False)
        result = CliRunner().invoke(program, [*shlex.split(command)[1:], "--no-pager"])
    assert result.exit_code == 0, result.output
    return _FONT.sub("", console.export_svg(title="", unique_id="sqlaudit"))


def words_of(svg: str) -> list[str]:
    return " ".join(html.unescape(text) for text in _TEXT.findall(svg)).split()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_picture_shows_what_the_command_prints(warehouse: str, name: str) -> None:
    file = DIRECTORY / f"{name}.svg"
    svg = drawn(COMMANDS[name])
    if os.environ.get("SQLAUDIT_DRAW"):
        file.write_text(svg, encoding="utf-8")
    size = re.compile(r"[\d.,]+|[kMG]?B")  # which depend on the version of SQLite, and on today
    shown, now = (
        [word for word in words_of(text) if name != "status" or not size.fullmatch(word)]
        for text in (file.read_text(encoding="utf-8"), svg)
    )
    assert shown == now
