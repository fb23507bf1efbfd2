"""What does a revision import, so that type checkers know its operations? Those of Alembic and of sqlaudit.

.. code-block:: python

    from sqlaudit_alembic import op

When a migration runs, it is the same as ``from alembic import op``, whose stub lacks the operations of plugins: each
operation is looked up there, so that it does not matter whether this module is imported before a migration begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from alembic.operations import Operations

from sqlaudit_alembic import ops

P = ParamSpec("P")

if TYPE_CHECKING:
    from alembic.op import *  # noqa: F403  # all of Alembic's operations

    def _operation(method: Callable[Concatenate[Operations, P], None]) -> Callable[P, None]: ...

    create_history_table = _operation(ops.CreateHistoryTableOp.create_history_table)
    drop_history_table = _operation(ops.DropHistoryTableOp.drop_history_table)
    backfill_history = _operation(ops.BackfillHistoryOp.backfill_history)
    renew_history = _operation(ops.RenewHistoryOp.renew_history)
    drop_history_column = _operation(ops.DropHistoryColumnOp.drop_history_column)
    protect_history = _operation(ops.ProtectHistoryOp.protect_history)
    unprotect_history = _operation(ops.UnprotectHistoryOp.unprotect_history)
    rename_tracked_column = _operation(ops.RenameTrackedColumnOp.rename_tracked_column)
    rename_tracked_table = _operation(ops.RenameTrackedTableOp.rename_tracked_table)
else:
    from alembic import op as _op

    def __getattr__(name: str) -> object:
        return getattr(_op, name)

    def __dir__() -> list[str]:
        return dir(_op)
