"""Which commands are there? The program ``sqlaudit`` and its commands."""

from __future__ import annotations

import logging

import click

from sqlaudit import __version__
from sqlaudit.cli.checking import check
from sqlaudit.cli.copying import checkout, patch
from sqlaudit.cli.describing import sql, status
from sqlaudit.cli.erasing import erase, erase_actor, erasures
from sqlaudit.cli.pruning import hold, holds, prune, release
from sqlaudit.cli.reading import blame, changesets, diff, log, marks, show
from sqlaudit.cli.serving import serve
from sqlaudit.cli.writing import backfill, catch_up, mark, restore, undo


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sqlaudit")
def program() -> None:
    """Read and maintain the history that sqlaudit keeps: who changed what, when and why.

    Exit codes: 0 sound, 1 error, 2 usage, 3 findings.
    """
    logging.getLogger("sqlaudit").addHandler(logging.NullHandler())  # the commands themselves tell what was found


COMMANDS = [
    *(log, show, blame, diff, changesets, marks, mark, undo, restore),
    *(check, prune, hold, release, holds, erase, erase_actor, erasures),
    *(checkout, patch, backfill, catch_up, status, sql, serve),
]
for command in COMMANDS:
    program.add_command(command)
