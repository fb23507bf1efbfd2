"""What does the configuration require of a write? A user, a reason, and that no write goes unrecorded."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from sqlalchemy import Connection

from sqlaudit.config import current_config
from sqlaudit.context import AuditContext
from sqlaudit.exceptions import CaptureError, ContextError, SQLAuditWarning, warn_caller
from sqlaudit.tracking.rights import shows_more_in_history
from sqlaudit.tracking.tables import TrackedTable


def uncaptured(message: str, subject: object) -> None:
    """Warn of a write that cannot be recorded.

    :raises CaptureError: the configuration says so
    """
    config = current_config()
    if config.strict or config.on_uncaptured == "raise":
        raise CaptureError(message, subject)
    if config.on_uncaptured == "warn":
        warnings.warn(message, SQLAuditWarning, stacklevel=2)


def warn_of_history_in_sight(connection: Connection, chain: Iterable[TrackedTable]) -> None:
    """Warn if the role of a connection sees more of a history than of its live table. One statement on PostgreSQL."""
    if (table := shows_more_in_history(connection, chain)) is not None:
        warn_caller(
            f"Row security restricts the role to some rows of the tracked table {table.live.fullname!r}, but not of "
            f"{table.history.fullname!r}: it can read the history of all rows. Enable row level security for the "
            "history table and create the same policies."
        )


def notice_replacing(connection: Connection, table: TrackedTable) -> None:
    """Warn that SQLite may have deleted rows in the way of those that a flush has written to a table."""
    if connection.dialect.name == "sqlite":
        uncaptured(
            f"A flush writes the table {table.live.fullname!r}, a constraint of which has ON CONFLICT REPLACE, and "
            "history does not show rows that it deletes; write the table by statements: session.execute(insert(…)).",
            table.live,
        )


def lacking(context: AuditContext) -> str | None:
    """Return what a context lacks that the configuration requires: ``"reason"``, ``"user"``, or ``None``."""
    config = current_config()
    if config.require_reason and not context.reason:
        return "reason"
    if not config.require_user or context.user_id is not None:
        return None
    callback = config.get_user_id_callback
    return "user" if callback is None or callback() in (None, "") else None


def require_context(lacks: str | None, write: str, subject: object, *, row_names_user: bool = False) -> None:
    """Raise if a write lacks a required user or reason.

    :param lacks: what the context lacks, see :func:`lacking`
    :param write: what is to be written, as the beginning of the message
    :param row_names_user: whether the written row, or its table, has a column that names the user
    :raises ContextError: there is no user, or no reason
    """
    if lacks is not None and not (lacks == "user" and row_names_user):
        option = "user_id" if lacks == "user" else lacks
        raise ContextError(
            f"{write} without a {lacks}, and require_{lacks} is set; write it within AuditContextManager({option}=…).",
            subject,
        )
