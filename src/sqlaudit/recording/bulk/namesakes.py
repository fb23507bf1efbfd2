"""Does a statement write a tracked table by another Table of its name, which to SQLAlchemy is another table?

A reflected one, for instance, or what ``table()`` makes for a script.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Table, TableClause, UpdateBase

from sqlaudit.recording.bulk.append_only import refuse_rewriting
from sqlaudit.recording.bulk.parsing import table_written
from sqlaudit.recording.policy import uncaptured
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.schema import is_there, schema_of
from sqlaudit.tracking.tables import TrackedTable, known_metadata, tracked_names, tracked_table

_ELSEWHERE: Final = "sqlaudit_elsewhere"


def is_namesake(clause: Any) -> bool:
    """Tell whether a statement writes a table that has the name of a tracked one, but is another to SQLAlchemy."""
    table = table_written(clause) if isinstance(clause, UpdateBase) else None
    return getattr(table, "name", None) in tracked_names and tracked_table(table) is None


def notice_namesake(clause: Any, connection: Connection) -> None:
    """Notice that a statement that a connection executes writes a tracked table by another one of its name.

    :raises ReadOnlyError: it writes the history of one so
    """
    table = table_written(clause)
    tracked = next((each for each in _of_name(table, connection) if _is_history_there(each, connection)), None)
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
