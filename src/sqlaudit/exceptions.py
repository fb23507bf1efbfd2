"""What can go wrong? One tree of errors, whose messages state a fact and its remedy."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from datetime import datetime
from types import FrameType
from typing import Any, Final


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


class PrunedError(QueryError):
    """What a read asks for has been pruned: its instant is before the horizon of a history.

    :ivar pruned_before: the horizon, an aware datetime in UTC: as of this instant and later ones, nothing is missing
    """

    def __init__(self, message: str, subject: object, pruned_before: datetime) -> None:
        super().__init__(message, subject)
        self.pruned_before = pruned_before


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


_NOT_THE_CALLER: Final = frozenset({"sqlaudit", "sqlaudit_alembic", "sqlalchemy", "sqlmodel", "alembic", "contextlib"})
"""The packages whose frames lie between the user's code and the cause of a warning."""


def warn_caller(message: str) -> None:
    """Issue a warning at the line of the user's code that led to it, however deep inside the cause is."""
    frame = _frame_of_caller()
    warnings.warn_explicit(
        message,
        SQLAuditWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )


def _frame_of_caller() -> FrameType:
    """Return the innermost frame of the user's code; the outermost frame if all belong to libraries.

    An ``AsyncSession`` works in a greenlet, whose frames end where it begins: those of the coroutine that waits for it
    follow.
    """
    frame = sys._getframe(2)
    greenlet = sys.modules.get("greenlet")
    waiting = None if greenlet is None else greenlet.getcurrent().parent
    while frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_CALLER:
        outer = frame.f_back
        while outer is None and waiting is not None:
            outer, waiting = waiting.gr_frame, waiting.parent
        if outer is None:
            break
        frame = outer
    return frame
