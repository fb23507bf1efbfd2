"""How does a whole session read the past? Within :class:`time_travel`."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, cast

from sqlalchemy import (
    Connection,
    Engine,
)
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import When
from sqlaudit.asynchronous import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlaudit.exceptions import QueryError
from sqlaudit.past.objects import instant_from
from sqlaudit.past.rendering import BeforeBaseline, UntrackedPolicy
from sqlaudit.past.running import PastSession


class time_travel:
    """A ``with`` block with a read-only session in which every query reads the past.

    .. code-block:: python

        with time_travel(session, then) as past:
            past.get(Customer, 1)

    It covers the ORM and Core, joins, eager and lazy loads, subqueries, aggregates and ``get``. The session uses the
    connections and the transaction of the session that you give. With an ``AsyncSession`` or ``AsyncEngine``, ``async
    with`` gives an ``AsyncSession``. Writes raise. Objects are detached when the block ends.

    :param session_or_engine: a session, an engine or a connection, sync or async; it needs no hooks
    :param when: an aware datetime; or a :class:`Mark`; or a changeset id, also as text: the state right after that
        transaction. A naive datetime is taken as local time, with a warning. An instant in the future means the
        present, with a warning
    :param untracked: what to do with tables without history: ``"raise"``, or read their present rows: ``"live"``
    :param before_baseline: what to do if a row may have existed then, but its history begins later with a baseline, or
        versions are missing: leave the row ``"absent"``, ``"warn"`` or ``"raise"``. The latter two execute one more
        statement per table. A read by key checks that row, any other read checks all rows
    :param materialize: copy the rows of each table that the session reads into a temporary table, with the keys and
        indexes of the live table, when it is first read. This pays for several queries of whole tables. Reads by key
        read no copy. The role needs the right to create temporary tables, in a transaction that may write
    :param text: allow hand-written SQL, which cannot be rewritten and reads the present rows
    :raises QueryError: ``when`` is neither a datetime nor a changeset id, or there is nothing to read from; in the
        block, a table cannot be copied
    """

    _session_class: ClassVar[type[Session]] = Session
    _async_session_class: ClassVar[type[AsyncSession]] = AsyncSession

    def __init__(
        self,
        session_or_engine: Any,
        when: When,
        *,
        untracked: UntrackedPolicy = "raise",
        before_baseline: BeforeBaseline = "absent",
        materialize: bool = False,
        text: bool = False,
    ) -> None:
        self._materialize = materialize
        self._instant = instant_from(when, untracked, before_baseline, text=text)
        source = session_or_engine
        if isinstance(source, (scoped_session, async_scoped_session)):
            source = source()
        self._made: Any = None
        if isinstance(source, (Engine, Connection)):
            source = self._made = self._session_class(source)
        elif isinstance(source, (AsyncEngine, AsyncConnection)):
            source = self._made = self._async_session_class(source)
        if not isinstance(source, (Session, AsyncSession)):
            raise QueryError(
                f"time_travel() cannot read {session_or_engine!r}. Give a session or an engine.", session_or_engine
            )
        self._source = source
        self._past: Any = None

    def __enter__(self) -> Session:
        if not isinstance(self._source, Session):
            raise QueryError(
                "An AsyncSession or AsyncEngine needs an asynchronous block. Write: async with time_travel(…).",
                self._source,
            )
        self._past = self._past_of(self._source)
        return cast(Session, self._past)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._past.flush()  # raises if an object was changed
        finally:
            self._past.end()
            if self._made is not None:
                self._made.close()

    async def __aenter__(self) -> AsyncSession:
        if not isinstance(self._source, AsyncSession):
            raise QueryError(
                "A Session or Engine needs a block without async. Write: with time_travel(…).", self._source
            )
        past = self._past_of(self._source.sync_session)
        class_: Any = _sqlmodel_class(type(self._source)) or AsyncSession
        self._past = class_(sync_session_class=lambda **kw: past)
        return cast(AsyncSession, self._past)

    def _past_of(self, source: Session) -> PastSession:
        class_ = _past_session_class(_sqlmodel_class(type(source)))
        return class_(source, self._instant, materialize=self._materialize)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                await self._past.flush()
        finally:
            await self._past.run_sync(PastSession.end)
            if self._made is not None:
                await self._made.close()


def _sqlmodel_class(class_: type[Any]) -> Any:
    """Return the class of SQLModel's from which a class of sessions has its method ``exec``, or ``None``."""
    return next((base for base in class_.__mro__ if base.__module__.partition(".")[0] == "sqlmodel"), None)


@cache
def _past_session_class(sqlmodel_class: type[Session] | None) -> type[PastSession]:
    return PastSession if sqlmodel_class is None else type("PastSession", (PastSession, sqlmodel_class), {})
