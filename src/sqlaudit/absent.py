"""Does the database lack a history table? From its complaint to an error that names the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError

from sqlaudit.exceptions import HistoryTableError
from sqlaudit.history import TrackedTable

_CODES: Final = {"42P01", "42703", 1146, 1054}  # no such table, no such column: of PostgreSQL and of MariaDB
_PHRASES: Final = ("no such table", "no such column", "has no column")  # of SQLite


@contextmanager
def explained(tables: Iterable[TrackedTable]) -> Iterator[None]:
    """Turn the database's complaint about an absent history table into an error that names the remedy.

    :param tables: those whose history the statements inside use
    :raises HistoryTableError: the history table of one of them, or a column of it, is absent
    """
    try:
        yield
    except DBAPIError as error:
        codes = {getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ())[:1]}
        says_so = not codes.isdisjoint(_CODES) or any(phrase in str(error.orig) for phrase in _PHRASES)
        absent = [table for table in tables if table.history.name in str(error)]
        if not says_so or not absent:
            raise
        names = " or ".join(repr(table.history.fullname) for table in absent)
        raise HistoryTableError(
            f"The database lacks the history table {names}, or a column of it; create it with "
            f"metadata.create_all(engine), or by a migration that Alembic generates. It said: {error.orig}",
            absent[-1].live,
        ) from error
