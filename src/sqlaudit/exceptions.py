"""What can go wrong? One tree of errors, whose messages state a fact and its remedy."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any


class SQLAuditError(Exception):
    """Base class of all errors of sqlaudit.

    :ivar subject: the object that the error is about: a model, a table, a version …; or ``None``
    """

    def __init__(self, message: str, subject: object = None) -> None:
        super().__init__(message)
        self.subject = subject


class TrackingError(SQLAuditError):
    """A model is not tracked, cannot be tracked, or is tracked already."""


class ContextError(SQLAuditError):
    """The audit context is invalid, or lacks what the configuration requires."""


class CaptureError(SQLAuditError):
    """A write to a tracked table cannot be recorded. Nothing of the write has been kept."""


class HistoryTableError(CaptureError):
    """The database lacks a history table or a column of it, or a history column cannot hold what the live one holds."""


class ReadOnlyError(SQLAuditError):
    """Something tried to change the past: a version, or an object that was read as of an instant."""


class QueryError(SQLAuditError, ValueError):
    """An argument of a read, of :func:`restore` or of :func:`undo` is invalid or cannot be fulfilled."""


class UndoConflictError(SQLAuditError):
    """Changesets cannot be undone without losing later changes of the same fields or rows. Nothing has been written.

    :ivar conflicts: a :class:`Conflict` for each later change
    """

    def __init__(self, message: str, subject: object = None, conflicts: Iterable[object] = ()) -> None:
        super().__init__(message, subject)
        self.conflicts: tuple[Any, ...] = tuple(conflicts)


class MissingPackageError(SQLAuditError, ImportError):
    """A module of :mod:`sqlaudit.integrations` was imported, and a package that it needs cannot be.

    :ivar name: the name of the module
    """

    def __init__(self, module: str, extra: str, packages: str) -> None:
        super().__init__(
            f"{module} needs {packages}, which cannot be imported. Run pip install 'sqlaudit[{extra}]'.", packages
        )
        self.name = module


class SQLAuditWarning(UserWarning):
    """Something needs attention: most often a write that cannot be recorded."""


def warn_caller(message: str) -> None:
    """Issue a warning at the line of the user's code that called sqlaudit, however deep inside the cause is."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "sqlaudit":
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, SQLAuditWarning, stacklevel=depth)
