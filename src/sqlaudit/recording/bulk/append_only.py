"""Does a statement write a history table? Only statements of sqlaudit and of migrations may."""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import Connection, Table

from sqlaudit.exceptions import ReadOnlyError
from sqlaudit.sql.options import WRITE
from sqlaudit.tracking.tables import tracked_table


def is_history(table: object) -> bool:
    """Return whether a table is the history of another."""
    tracked = tracked_table(table)
    return tracked is not None and bool(tracked.history == table)  # equal, not identical: the ORM annotates it


def refuse_rewriting(table: Any, clause: Any, connection: Connection) -> None:
    """Refuse a statement that writes a history table, unless sqlaudit or a migration executes it.

    :param table: the table that the statement writes
    :param connection: the connection that will execute it
    :raises ReadOnlyError: the statement is refused
    """
    if is_history(table) and WRITE not in clause.get_execution_options() and not is_migrating(connection):
        raise rewriting_error(table)


def rewriting_error(history: Table) -> ReadOnlyError:
    """Return the error for a statement that writes a history table."""
    return ReadOnlyError(
        f"A statement writes the history table {history.fullname!r}, which is never rewritten. Change the live rows, "
        "let sqlaudit.maintenance write history, or write it in a migration.",
        history,
    )


def is_migrating(connection: Connection) -> bool:
    """Return whether Alembic is running migrations on a connection."""
    operations = getattr(sys.modules.get("alembic.op"), "_proxy", None)
    return operations is not None and operations.migration_context.connection is connection
