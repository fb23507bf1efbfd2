"""Does a statement write a tracked table by another Table of its name, which to SQLAlchemy is another table?

A reflected one, for instance, or what ``table()`` makes for a script.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, Table, TableClause

from sqlaudit.bulk.appending import refuse_rewriting
from sqlaudit.bulk.reading import table_written
from sqlaudit.capture import uncaptured
from sqlaudit.tables import (
    TrackedTable,
    is_there,
    known_metadata,
    schema_of,
    tracked_names,
    tracked_table,
    tracked_tables,
)

_ELSEWHERE: Final = "sqlaudit_elsewhere"


def notice_namesake(clause: Any, connection: Callable[[], Connection]) -> None:
    """Notice that a statement writes a tracked table by another one of its name.

    :param connection: gives the one that executes it, if that is of interest: names are mostly others
    :raises ReadOnlyError: it writes the history of one so
    """
    table = table_written(clause)
    if getattr(table, "name", None) not in tracked_names or tracked_table(table) is not None:
        return
    here = connection()
    tracked = next((each for each in _of_name(table, here) if _is_history_there(each, here)), None)
    if tracked is not None and tracked.live.name != table.name:
        refuse_rewriting(tracked.history, clause, connection)
    elif tracked is not None:
        uncaptured(
            f"A statement writes the tracked table {tracked.live.fullname!r} by another Table of this name, and its "
            "history will not show it; write it by the model, or by the Table that this has, or call record_changes() "
            "then.",
            tracked.live,
        )


def _of_name(table: TableClause, connection: Connection) -> list[TrackedTable]:
    usual = connection.dialect.default_schema_name
    tracked = (each for metadata in known_metadata() for each in tracked_tables(metadata))
    return [
        each
        for each in tracked
        if table.name in (each.live.name, each.history.name)
        and (schema_of(connection, each.live) or usual) == (schema_of(connection, table) or usual)
    ]


def _is_history_there(tracked: TrackedTable, connection: Connection) -> bool:
    """Tell whether it is the tracked table: in another database there may be another table of its name."""
    elsewhere: set[Table] = connection.info.setdefault(_ELSEWHERE, set())
    if tracked.history not in elsewhere and is_there(connection, tracked.history):
        return True
    elsewhere.add(tracked.history)
    return False
