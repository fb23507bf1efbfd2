"""Does a statement write a tracked table through another Table object of the same name?

A reflected table, for instance, or a script's ``table()``.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Table, TableClause

from sqlaudit.recording.bulk.append_only import refuse_rewriting
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.schema import schema_of, table_exists
from sqlaudit.tracking.tables import TrackedTable, known_metadata, tracked_names, tracked_table

_ELSEWHERE: Final = "sqlaudit_elsewhere"


def is_namesake(table: Any) -> bool:
    """Return whether a table only has the name of a tracked table or of a history."""
    return getattr(table, "name", None) in tracked_names and tracked_table(table) is None


def report_namesake(clause: Any, table: Any, connection: Connection) -> None:
    """Report a statement that writes a tracked table through another Table of the same name.

    :param table: the table that it writes
    :raises ReadOnlyError: it writes a history table this way
    """
    tracked = next(
        (candidate for candidate in _of_name(table, connection) if _is_history_there(candidate, connection)), None
    )
    if tracked is not None and tracked.live.name != table.name:
        refuse_rewriting(tracked.history, clause, connection)
    elif tracked is not None:
        report_unrecorded(
            f"A statement writes the tracked table {tracked.live.fullname!r} through another Table of the same name, "
            "so sqlaudit cannot record it. Use the model or its __table__, or call record_changes() afterwards.",
            tracked.live,
        )


def _of_name(table: TableClause, connection: Connection) -> list[TrackedTable]:
    usual = connection.dialect.default_schema_name
    tracked = (candidate for metadata in known_metadata() for candidate in tracked_tables(metadata))
    return [
        candidate
        for candidate in tracked
        if table.name in (candidate.live.name, candidate.history.name)
        and (schema_of(connection, candidate.live) or usual) == (schema_of(connection, table) or usual)
    ]


def _is_history_there(tracked: TrackedTable, connection: Connection) -> bool:
    """Return whether the database has the history table; another database may have a table of the same name."""
    elsewhere: set[Table] = connection.info.setdefault(_ELSEWHERE, set())
    if tracked.history not in elsewhere and table_exists(connection, tracked.history):
        return True
    elsewhere.add(tracked.history)
    return False
