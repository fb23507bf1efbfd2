"""The command ``sqlaudit``: history at a terminal, for operators and auditors. It needs the extra ``cli``."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Run the command, or say which extra to install."""
    try:
        program = import_module("sqlaudit.cli.commands")
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"The command sqlaudit needs {error.name}. Run pip install 'sqlaudit[cli]'.")
    program.program(prog_name="sqlaudit")
