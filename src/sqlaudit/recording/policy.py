"""What does the configuration require of a write? A user, a reason, and that no write goes unrecorded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection

from sqlaudit.config import current_config, required_redaction_key
from sqlaudit.context import AuditContext
from sqlaudit.exceptions import CaptureError, ContextError, warn_caller
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.tracking.rights import table_with_visible_history
from sqlaudit.tracking.tables import TrackedTable

_log: Final = logging.getLogger(__package__)
_log.addHandler(logging.NullHandler())  # an application that sets up no logging sees the warning alone


def report_unrecorded(message: str, subject: object) -> None:
    """Warn of a write that cannot be recorded, unless the configuration says to ignore it.

    The warning is shown once for each place in the code; the log has each write.

    :raises CaptureError: the configuration is strict, or says to raise
    """
    config = current_config()
    if config.strict or config.on_uncaptured == "raise":
        raise CaptureError(message, subject)
    if config.on_uncaptured == "warn":
        _log.warning(message)
        warn_caller(message)


def warn_of_visible_history(connection: Connection, chain: Iterable[TrackedTable]) -> None:
    """Warn if row security hides live rows from the role, but no history. One statement per table, on PostgreSQL."""
    if (table := table_with_visible_history(connection, chain)) is not None:
        warn_caller(
            f"Row security shows the role only some rows of the tracked table {table.live.fullname!r}, but the "
            f"history of all rows in {table.history.fullname!r}. Enable row level security for the history table, and "
            "create the same policies."
        )


def report_replacing(connection: Connection, table: TrackedTable) -> None:
    """Warn, on SQLite, that a flush may have deleted rows that conflicted with those that it wrote to a table."""
    if TRAITS[connection.dialect.name].has_conflict_clauses:
        report_unrecorded(
            f"A flush writes the table {table.live.fullname!r}, which has a constraint with ON CONFLICT REPLACE, and "
            "sqlaudit cannot record the rows that SQLite deletes because of it. Write the table by statements: "
            "session.execute(insert(…)).",
            table.live,
        )


def needs_key(tables: Iterable[TrackedTable]) -> bool:
    """Return whether the history of some tables stores hashes of columns, for which there must be a key."""
    return any(table.hashed for table in tables)


def require_key(tables: Iterable[TrackedTable]) -> None:
    """Raise if history stores hashes of columns, and there is no key for them.

    :raises SQLAuditError: there is none
    """
    if needs_key(tables):
        required_redaction_key()


def lacking(context: AuditContext) -> str | None:
    """Return what the configuration requires and a context lacks: ``"reason"``, ``"user"``, or ``None``."""
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
    :param write: the beginning of the error message
    :param row_names_user: True if the written row, or its table, has a column that names the user
    :raises ContextError: the user or the reason is missing
    """
    if lacks is not None and not (lacks == "user" and row_names_user):
        option = "user_id" if lacks == "user" else lacks
        raise ContextError(
            f"{write} without a {lacks}, but require_{lacks} is set. Write it within AuditContextManager({option}=…).",
            subject,
        )
