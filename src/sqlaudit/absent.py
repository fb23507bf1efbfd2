"""Does the database lack a history table? From its complaint to an error that names the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sqlalchemy.exc import DBAPIError

from sqlaudit.exceptions import HistoryTableError
from sqlaudit.tables import TrackedTable

_CODES: Final = {"42P01", "42703", 1146, 1054}  # no such table, no such column: of PostgreSQL and of MariaDB
_PHRASES: Final = ("no such table", "no such column", "has no column")  # of SQLite
_COLUMN: Final = re.compile(r"""column(?::| named)? ["']?(.+?)["']?(?: of | does not exist| in '|$)""")


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
        complaint = str(error.orig).partition("\n")[0]  # PostgreSQL goes on with the statement
        says_so = not codes.isdisjoint(_CODES) or any(phrase in complaint for phrase in _PHRASES)
        absent = [table for table in self._tables if _is_of(complaint, table)]
        if says_so and absent:
            names = " or ".join(repr(table.history.fullname) for table in absent)
            raise HistoryTableError(
                f"The database lacks the history table {names}, or a column of it; create it with "
                f"metadata.create_all(engine), or by a migration that Alembic generates. It said: {error.orig}",
                absent[-1].live,
            ) from error


def _is_of(complaint: str, table: TrackedTable) -> bool:
    """Tell whether a complaint is of a history table: it names it, or a column that it has and no other table."""
    history, column = table.history, _COLUMN.search(complaint)
    if re.search(rf"(?<!\w){re.escape(history.name)}(?!\w)", complaint):
        return True
    if column is None:
        return False
    owner, _, name = column[1].rpartition(".")
    others = {each.name for each in history.metadata.tables.values()}
    return name in {each.name for each in history.c} and owner.rpartition(".")[2] not in others
