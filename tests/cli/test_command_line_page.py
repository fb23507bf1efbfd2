"""What the page on the command line shows is what the commands print, at 80 columns."""

import re
import shlex
import sqlite3
from contextlib import closing

from click.testing import CliRunner

from sqlaudit import SQLAuditConfig, clear_config, set_config
from sqlaudit.cli.commands import program
from warehouse_history import PAGE, Clock

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ID_OF_HOLD = re.compile(r"\b(?!019ca000)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_COMMAND = re.compile(r"^\$ (.*)\n", re.MULTILINE)


def run(command: str) -> str:
    program_name, *arguments = shlex.split(command)
    if program_name == "sqlite3":
        file, statement = arguments
        with closing(sqlite3.connect(file)) as connection:
            rows = connection.execute(statement).fetchall()
            connection.commit()
        return "".join(f"{'|'.join(map(str, row))}\n" for row in rows)
    assert program_name == "sqlaudit"
    result = CliRunner().invoke(program, arguments, prog_name="sqlaudit")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    output = _ID_OF_HOLD.sub("7d3f0c52-8a41-4f6e-9b0d-2c5e81a9f734", result.output)
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def printed(page: str) -> str:
    """Return the page with what its commands print now."""
    clock = Clock()
    for _ in range(8):
        clock()
    set_config(SQLAuditConfig(clock=clock))
    try:

        def session(block: re.Match[str]) -> str:
            lines = [f"$ {command}\n{run(command)}" for command in _COMMAND.findall(block[1])]
            return f"```console\n{''.join(lines)}```"

        return _BLOCK.sub(session, page)
    finally:
        clear_config()


def test_each_command_prints_what_the_page_shows(warehouse: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert printed(page) == page
