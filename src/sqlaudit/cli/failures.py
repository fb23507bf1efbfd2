"""How does a command fail? With one line that says what is wrong and what to do, and an exit code."""

from __future__ import annotations

import click


class Failure(click.ClickException):
    """An error: exit code 1."""


class UsageProblem(Failure):
    """What the command was given names nothing, or is missing: exit code 2."""

    exit_code = 2
