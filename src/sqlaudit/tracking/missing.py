"""Why did a statement that uses history fail? sqlaudit turns the database's error into one that names the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

from sqlaudit.exceptions import CaptureError, HistoryTableError
from sqlaudit.tracking.catalogue import is_known_to_be_distributed
from sqlaudit.tracking.protection import REFUSAL
from sqlaudit.tracking.tables import TrackedTable

_MISSING_CODES: Final = {"42P01", "42703", 1146, 1054}  # no such table or column, on PostgreSQL and on MariaDB
_MISSING_PHRASES: Final = ("no such table", "no such column", "has no column")  # on SQLite
_FORBIDDEN_CODES: Final = {"42501", 1142, 1143}  # to the role, or by a policy
_READ_ONLY_CODES: Final = {"25006", 1290, 1792, "SQLITE_READONLY"}
_NOT_SUPPORTED_CODE: Final = "0A000"
_NO_PARTITION_CODE: Final = "23514"  # a CHECK is violated, and a history table has none
_UNFIT_CODES: Final = {
    "22001",
    "22003",
    "42804",
    "42883",
    1264,
    1265,
    1366,
    1406,
}  # too long, too large, of another type
_COLUMN: Final = re.compile(r"""column(?::| named)? ["']?(.+?)["']?(?: of | does not exist| in '|$)""")


def codes_of(error: DBAPIError) -> set[Any]:
    """Return the codes of a database error. Each driver has its own attributes for them."""
    original = error.orig
    places = ("sqlstate", "pgcode", "errno", "sqlite_errorname")
    named = _message_fields_of(error).get("C")
    first = getattr(original, "args", ())[:1]
    return {
        *(getattr(original, place, None) for place in places),
        named,
        *(value for value in first if _is_code(value)),
    }


def is_forbidden(error: DBAPIError) -> bool:
    """Return whether a database says that its user lacks a right, or may only read."""
    return not codes_of(error).isdisjoint(_FORBIDDEN_CODES | _READ_ONLY_CODES)


def _is_code(value: object) -> bool:
    return isinstance(value, (int, str))


def _message_fields_of(error: DBAPIError) -> dict[str, str]:
    """Return the fields of PostgreSQL's error message by their letters, which pg8000 gives instead of a text."""
    first = next(iter(getattr(error.orig, "args", ())), None)
    return first if isinstance(first, dict) else {}


def _message_of(error: DBAPIError) -> str:
    """Return the first line of a database's error message. In PostgreSQL's, the statement follows."""
    return _message_fields_of(error).get("M", str(error.orig)).partition("\n")[0]


@contextmanager
def explaining_history_errors(tables: Iterable[TrackedTable], **options: bool) -> Iterator[None]:
    """Call :func:`explain_history_error` with a database error that the ``with`` block raises."""
    try:
        yield
    except DBAPIError as error:
        explain_history_error(error, tables, **options)
        raise


def explain_history_error(
    error: DBAPIError, tables: Iterable[TrackedTable], *, record: bool = False, reads_as_user: bool = False
) -> None:
    """Raise an error that names the remedy, if a database error is about a history table.

    :param tables: the tables whose history the failed statement uses
    :param record: whether the statement records a write
    :param reads_as_user: whether the user's statement needs the same rights on the live tables. Then an error about
        these rights is left unchanged
    :raises HistoryTableError: a history table or a column of it is missing, or a column cannot hold the live value
    :raises CaptureError: the connection's role lacks a right that recording needs, or Citus refuses the statement
    """
    tables, codes, message = list(tables), codes_of(error), _message_of(error)
    if record and REFUSAL in message:
        for table in tables:
            if _is_named(message, table.history) and not table.append_only:
                raise CaptureError(
                    f"The database refuses to rewrite the history of {table.live.fullname!r}, which is protected there "
                    "and not in the model. Give the model track_table(append_only=True), or end the protection by a "
                    f"migration: op.unprotect_history({table.live.name!r}). The database said: {message}",
                    table.live,
                ) from error
    if record and not codes.isdisjoint(_FORBIDDEN_CODES):
        for table in tables:
            is_live = not reads_as_user and _is_named(message, table.live)
            if is_live or _is_named(message, table.history):
                raise CaptureError(
                    "The role lacks a privilege that sqlaudit needs to record what it writes to "
                    f"{table.live.fullname!r}. Grant it SELECT on {table.live.fullname!r}, and {_rights_on(table)} on "
                    f"{table.history.fullname!r}. If the live table has policies, give the history "
                    f"table the same. The database said: {message}",
                    table.live,
                ) from error
    distributed = [table for table in tables if record and is_known_to_be_distributed(table)]
    if distributed and _NOT_SUPPORTED_CODE in codes:
        live, history = distributed[-1].live, distributed[-1].history
        raise CaptureError(
            f"Citus refuses a statement by which sqlaudit records what is written to the table {live.fullname!r}. "
            f"Distribute {history.fullname!r} by the same column as the live table, colocated with it, or make both "
            "reference tables. If they are so already, simplify the criterion of your UPDATE or DELETE: compare "
            f"columns of its own table with values. The database said: {message}",
            live,
        ) from error
    absent = [table for table in tables if _is_about(message, table)]
    if absent and is_missing_table(error):
        names = " or ".join(repr(table.history.fullname) for table in absent)
        raise HistoryTableError(
            f"The database lacks the history table {names}, or a column of it. Create it with "
            f"metadata.create_all(engine), or by a migration that Alembic generates. The database said: {message}",
            absent[-1].live,
        ) from error
    for table in tables if record and _NO_PARTITION_CODE in codes else ():
        if _is_named(message, table.history):
            raise HistoryTableError(
                f"The history table {table.history.fullname!r} has no partition for a version of a row. Create the "
                f"partition to which its key or the end of its period belongs. The database said: {message}",
                table.live,
            ) from error
    is_select = str(error.statement).lstrip().startswith("SELECT ")  # by the user's criterion, which may be at fault
    if record and not is_select and not codes.isdisjoint(_UNFIT_CODES):
        for table in tables:
            if _is_named(str(error.statement).partition(" SELECT ")[0], table.history):
                raise HistoryTableError(
                    f"A column of the history table {table.history.fullname!r} cannot hold the values of its column "
                    f"in {table.live.fullname!r}. Change its type, too, by a migration that Alembic generates. The "
                    f"database said: {message}",
                    table.live,
                ) from error


def _rights_on(table: TrackedTable) -> str:
    """Return the privileges on a history table that recording needs."""
    if table.append_only:
        return f"SELECT, INSERT and UPDATE ({table.valid_to.name})"
    return "SELECT, INSERT, UPDATE and DELETE"


def is_missing_table(error: DBAPIError) -> bool:
    """Return whether a database error says that there is no such table or column."""
    message = _message_of(error)
    return not codes_of(error).isdisjoint(_MISSING_CODES) or any(phrase in message for phrase in _MISSING_PHRASES)


def _is_named(message: str, table: Table) -> bool:
    return re.search(rf"(?<!\w){re.escape(table.name)}(?!\w)", message) is not None


def _is_about(message: str, table: TrackedTable) -> bool:
    """Return whether an error message names a history table, or a column of it without naming another table."""
    history, column = table.history, _COLUMN.search(message)
    if _is_named(message, history):
        return True
    if column is None:
        return False
    owner, _, name = column[1].rpartition(".")
    others = {table.name for table in history.metadata.tables.values()}
    return name in {stored_column.name for stored_column in history.c} and owner.rpartition(".")[2] not in others
