"""Why does the database refuse what records? From its complaint to an error that names the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

from sqlaudit.exceptions import CaptureError, HistoryTableError
from sqlaudit.tables import TrackedTable

_ABSENT: Final = {"42P01", "42703", 1146, 1054}  # no such table, no such column: of PostgreSQL and of MariaDB
_PHRASES: Final = ("no such table", "no such column", "has no column")  # of SQLite
_FORBIDDEN: Final = {"42501", 1142, 1143}  # to the role, or by a policy: of PostgreSQL and of MariaDB
_UNFIT: Final = {"22001", "22003", "42804", "42883", 1264, 1265, 1366, 1406}  # too long, too great, of another type
_COLUMN: Final = re.compile(r"""column(?::| named)? ["']?(.+?)["']?(?: of | does not exist| in '|$)""")


def codes_of(error: DBAPIError) -> set[Any]:
    """Return the codes that a database gives an error; each driver has its own place for them."""
    original = error.orig
    places = ("sqlstate", "pgcode", "errno", "sqlite_errorname")
    named = _fields_of(error).get("C")
    first = getattr(original, "args", ())[:1]
    return {*(getattr(original, place, None) for place in places), named, *(each for each in first if _is_code(each))}


def _is_code(value: object) -> bool:
    return isinstance(value, (int, str))


def _fields_of(error: DBAPIError) -> dict[str, str]:
    """Return what pg8000 gives instead of a text: the fields of PostgreSQL's message, by their letters."""
    first = next(iter(getattr(error.orig, "args", ())), None)
    return first if isinstance(first, dict) else {}


def _complaint_of(error: DBAPIError) -> str:
    """Return the first line of what the database says; PostgreSQL goes on with the statement."""
    return _fields_of(error).get("M", str(error.orig)).partition("\n")[0]


class explained:
    """Within a ``with`` block, turn the complaint of a database into the remedy, if it is of a history table.

    :param tables: those whose history the statements inside use
    :param record: whether the statements record what the user writes
    :param reads_as_user: whether they need the rights on live tables that the statement of the user needs; its own
        complaint is left alone then
    :raises HistoryTableError: the history table of one of them, or a column of it, is absent, or holds less than that
        of the live table
    :raises CaptureError: the role of the connection may not record
    """

    __slots__ = ("_reads_as_user", "_record", "_tables")

    def __init__(self, tables: Iterable[TrackedTable], *, record: bool = False, reads_as_user: bool = False) -> None:
        self._tables = tables
        self._record = record
        self._reads_as_user = reads_as_user

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, DBAPIError):
            return
        codes, complaint = codes_of(error), _complaint_of(error)
        if self._record and not codes.isdisjoint(_FORBIDDEN):
            self._explain_forbidden(error, complaint)
        absent = [table for table in self._tables if _is_of(complaint, table)]
        if absent and (not codes.isdisjoint(_ABSENT) or any(phrase in complaint for phrase in _PHRASES)):
            names = " or ".join(repr(table.history.fullname) for table in absent)
            raise HistoryTableError(
                f"The database lacks the history table {names}, or a column of it; create it with "
                f"metadata.create_all(engine), or by a migration that Alembic generates. It said: {complaint}",
                absent[-1].live,
            ) from error
        if self._record and not codes.isdisjoint(_UNFIT):
            self._explain_unfit(error, complaint)

    def _explain_unfit(self, error: DBAPIError, complaint: str) -> None:
        for table in self._tables:
            if _is_named(str(error.statement).partition(" SELECT ")[0], table.history):
                raise HistoryTableError(
                    f"A column of the history table {table.history.fullname!r} cannot hold what its column in "
                    f"{table.live.fullname!r} holds; change its type, too, by a migration that Alembic generates. "
                    f"The database said: {complaint}",
                    table.live,
                ) from error

    def _explain_forbidden(self, error: DBAPIError, complaint: str) -> None:
        for table in self._tables:
            is_live = not self._reads_as_user and _is_named(complaint, table.live)
            if is_live or _is_named(complaint, table.history):
                raise CaptureError(
                    f"The role may not record what it writes to {table.live.fullname!r}: grant it SELECT on "
                    f"{table.live.fullname!r}, and SELECT, INSERT, UPDATE and DELETE on {table.history.fullname!r}, "
                    f"whose policies, if it has any, must be those of the live table. The database said: {complaint}",
                    table.live,
                ) from error


def _is_named(complaint: str, table: Table) -> bool:
    return re.search(rf"(?<!\w){re.escape(table.name)}(?!\w)", complaint) is not None


def _is_of(complaint: str, table: TrackedTable) -> bool:
    """Tell whether a complaint is of a history table: it names it, or a column that it has and no other table."""
    history, column = table.history, _COLUMN.search(complaint)
    if _is_named(complaint, history):
        return True
    if column is None:
        return False
    owner, _, name = column[1].rpartition(".")
    others = {each.name for each in history.metadata.tables.values()}
    return name in {each.name for each in history.c} and owner.rpartition(".")[2] not in others
