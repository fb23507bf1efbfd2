"""What can go wrong: one tree of errors, each a fact and its remedy."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any


class SQLAuditError(Exception):
    """Base of every error that sqlaudit raises on its own account.

    ``subject`` is the object that the error is about (a model, a table, a version …), if there is one.
    """

    def __init__(self, message: str, subject: object = None) -> None:
        super().__init__(message)
        self.subject = subject


class TrackingError(SQLAuditError):
    """A model is not tracked, cannot be tracked, or is tracked already."""


class ContextError(SQLAuditError):
    """The audit context is invalid, or lacks what the configuration requires."""


class CaptureError(SQLAuditError):
    """A write to a tracked table cannot be recorded; it has not been kept."""


class HistoryTableError(CaptureError):
    """A history table, or a column of it, is absent from the database, or holds less than that of the live table."""


class ReadOnlyError(SQLAuditError):
    """Something tried to change the past: a version, or an object read as of an instant."""


class QueryError(SQLAuditError, ValueError):
    """An argument of a read does not make sense."""


class UndoConflictError(SQLAuditError):
    """What a changeset did cannot be undone, for rows have changed since.

    :ivar conflicts: a :class:`~sqlaudit.changes.Conflict` for each later change
    """

    def __init__(self, message: str, subject: object = None, conflicts: Iterable[object] = ()) -> None:
        super().__init__(message, subject)
        self.conflicts: tuple[Any, ...] = tuple(conflicts)


class SQLAuditWarning(UserWarning):
    """Something deserves attention, but nothing was lost."""


def warn_caller(message: str) -> None:
    """Warn of a line of the user's, however deep inside the library it is found out."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sqlaudit":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, SQLAuditWarning, stacklevel=depth)
