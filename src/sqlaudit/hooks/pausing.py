"""How is recording paused? Within a block, for one session."""

from __future__ import annotations

from typing import Any, Self

from sqlaudit.exceptions import SQLAuditError
from sqlaudit.hooks.scope import DISABLED
from sqlaudit.tracking.sessions import checked_session


class tracking_disabled:
    """Record nothing of what a session writes inside a ``with`` block, or ``async with`` for an ``AsyncSession``.

    .. code-block:: python

        with tracking_disabled(session):
            session.add(Customer(name="Test"))

    Changes from before the block are flushed and recorded when it begins. Changes from inside it are flushed when it
    ends. Recording is on again after the block, however it ends.
    """

    def __init__(self, session: Any) -> None:
        self._given = session
        self._session = checked_session(getattr(session, "sync_session", session))

    def __enter__(self) -> Self:
        if self._given is not self._session and hasattr(self._given, "run_sync"):
            raise SQLAuditError(
                "An AsyncSession needs an asynchronous block. Write: async with tracking_disabled(session).",
                self._given,
            )
        self._session.flush()
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._session.flush()
        finally:
            self._end()

    async def __aenter__(self) -> Self:
        await self._given.flush()
        self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                await self._given.flush()
        finally:
            self._end()

    def _begin(self) -> None:
        self._session.info[DISABLED] = self._session.info.get(DISABLED, 0) + 1

    def _end(self) -> None:
        self._session.info[DISABLED] -= 1
