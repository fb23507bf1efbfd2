"""Which options do the commands share? Those that name the database, the models and the form of the output."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Final, TypeVar

import click
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sqlaudit.cli.database import Database
from sqlaudit.cli.failures import Failure, UsageProblem
from sqlaudit.cli.output import Format, Output
from sqlaudit.cli.secrets import without_secrets
from sqlaudit.context import AuditContextManager
from sqlaudit.display import safe
from sqlaudit.exceptions import SQLAuditError

F = TypeVar("F", bound=Callable[..., Any])
FINDINGS: Final = 3
"""The exit code of a command that worked, and found something wrong."""
_TRACEBACK: Final = "sqlaudit.cli.traceback"


def shared_options(function: F) -> F:
    """Add the options of every command that reads a database, and pass a ``Database`` and an ``Output`` first."""

    def command(
        *args: Any,
        url: str | None,
        models: tuple[str, ...],
        as_json: bool,
        as_csv: bool,
        no_pager: bool,
        **options: Any,
    ) -> Any:
        if as_json and as_csv:
            raise UsageProblem("--json and --csv exclude each other. Give one of the two.")
        form: Format = "json" if as_json else "csv" if as_csv else "table"
        database, output = Database(url, models), Output(form, not no_pager)
        with readable_errors(database):
            return function(database, output, *args, **options)

    wrapped: Any = update_wrapper(command, function)
    for option in (
        click.option(
            "--traceback", is_flag=True, expose_value=False, callback=_remember_traceback, help=_HELP["traceback"]
        ),
        click.option("--no-pager", is_flag=True, help="Never use a pager."),
        click.option("--csv", "as_csv", is_flag=True, help="Write CSV."),
        click.option("--json", "as_json", is_flag=True, help="Write JSON."),
        click.option("--models", multiple=True, metavar="MODULE:BASE", help=_HELP["models"]),
        click.option("--url", envvar="SQLAUDIT_URL", metavar="URL", help=_HELP["url"]),
    ):
        wrapped = option(wrapped)
    result: F = wrapped
    return result


_HELP: Final = {
    "url": "The database, such as postgresql://user@host/shop. [env: SQLAUDIT_URL]",
    "models": "The application's models. Without them, commands that only read look at the database. "
    "[env: SQLAUDIT_MODELS]",
    "traceback": "Show the traceback of an error.",
}


def _remember_traceback(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[_TRACEBACK] = value


@contextmanager
def readable_errors(database: Database) -> Iterator[None]:
    """Tell an error on one line, without control characters and passwords, unless its traceback is wanted."""
    try:
        yield
    except (click.exceptions.Exit, click.Abort, click.UsageError, BrokenPipeError):
        raise
    except Exception as error:
        if click.get_current_context().meta.get(_TRACEBACK):
            raise
        kind = type(error) if isinstance(error, Failure) else Failure
        raise kind(safe(without_secrets(_message(error), database.secrets))) from None


def _message(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.message
    if isinstance(error, DBAPIError) and error.orig is not None:
        text = " ".join(str(part) for part in error.orig.args if part) or str(error.orig)
        return f"The database says: {_on_one_line(text)}"
    if isinstance(error, (SQLAuditError, SQLAlchemyError)):
        return _on_one_line(str(error))
    if isinstance(error, OverflowError):
        return "A number is too large. Give a smaller one."
    return f"{type(error).__name__}: {_on_one_line(str(error))}. Add --traceback to see where it comes from."


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


# --- commands that write ----------------------------------------------------------------------------------------


USER: Final = click.option("--user", metavar="ID", help="Who you are; your login name if omitted.")


@dataclass(frozen=True, slots=True)
class Writing:
    """Who writes, why, and whether a command asks first.

    :ivar dry_run: the command only shows what it would do
    """

    user: str | None
    reason: str | None
    yes: bool
    dry_run: bool

    def acting(self) -> AuditContextManager:
        """Return the audit context of the command: the user and the reason."""
        return acting(self.user, self.reason)

    def confirm(self, question: str) -> None:
        """Ask a question, unless ``--yes`` is given.

        :raises click.Abort: the answer is no
        """
        if not self.yes:
            click.confirm(question, abort=True, err=True)


def writing_options(*, plans: bool = False, needs_reason: bool = False) -> Callable[[F], F]:
    """Add the options of a command that writes, and pass a :class:`Writing` as ``writing``.

    :param plans: it can only show what it would do
    :param needs_reason: it has to be given a reason
    """

    def add(function: F) -> F:
        def command(
            *args: Any, user: str | None, reason: str | None, yes: bool, dry_run: bool = False, **options: Any
        ) -> Any:
            return function(*args, writing=Writing(user, reason, yes, dry_run), **options)

        wrapped: Any = update_wrapper(command, function)
        wrapped = click.option("--reason", metavar="TEXT", required=needs_reason, help="Why; it is recorded.")(wrapped)
        wrapped = click.option("--yes", is_flag=True, help="Do it without a question.")(USER(wrapped))
        if plans:
            wrapped = click.option("--dry-run", is_flag=True, help="Only show what would be done.")(wrapped)
        result: F = wrapped
        return result

    return add


def acting_user(user: str | None) -> str | None:
    """Return the user who acts: the given one, or the login name, if there is one."""
    if user is None:
        with suppress(OSError, KeyError, ImportError):
            return getpass.getuser()
    return user


def acting(user: str | None, reason: str | None = None) -> AuditContextManager:
    """Return the audit context of a command: the given user, or the login name, and the reason."""
    given: dict[str, Any] = {"user_id": acting_user(user), "reason": reason}
    return AuditContextManager(**{name: value for name, value in given.items() if value is not None})
