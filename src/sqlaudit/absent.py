"""Does the database lack a history table? From its complaint to an error that names the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy.exc import DBAPIError

from sqlaudit.exceptions import HistoryTableError
from sqlaudit.tables import TrackedTable

_CODES: Final = {"42P01", "42703", 1146, 1054}  # no such table, no such column: of PostgreSQL and of MariaDB
_PHRASES: Final = ("no such table", "no such column", "has no column")  # of SQLite


class explained:
    """Within a ``with`` block, turn the complaint of a database that lacks a history table into the remedy.

    :param tables: those whose history the statements inside use
    :raises HistoryTableError: the history table of one of them, or a column of it, is absent
    """

    __slots__ = ("_tables",)

    def __init__(self, tables: Iterable[TrackedTable]) -> None:
        self._tables = tables

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, DBAPIError):
            return
        codes = {getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ())[:1]}
        says_so = not codes.isdisjoint(_CODES) or any(phrase in str(error.orig) for phrase in _PHRASES)
        absent = [table for table in self._tables if table.history.name in str(error)]
        if says_so and absent:
            names = " or ".join(repr(table.history.fullname) for table in absent)
            raise HistoryTableError(
                f"The database lacks the history table {names}, or a column of it; create it with "
                f"metadata.create_all(engine), or by a migration that Alembic generates. It said: {error.orig}",
                absent[-1].live,
            ) from error
