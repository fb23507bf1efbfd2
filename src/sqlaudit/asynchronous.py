"""How do asynchronous applications call a synchronous function? With their own session, and ``await``.

.. code-block:: python

    versions = await versions_of(async_session, Customer, 42)
    async for change in stream_resource_changes(Customer, async_session):
        ...

SQLAlchemy executes the function in a greenlet, as ``AsyncSession.run_sync`` does, whenever its session is asynchronous.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast, overload

from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import greenlet_spawn

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import (
        AsyncAttrs,
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )
else:
    try:
        from sqlalchemy.ext.asyncio import (
            AsyncAttrs,
            AsyncConnection,
            AsyncEngine,
            AsyncSession,
            async_scoped_session,
            async_sessionmaker,
        )
    except ImportError:  # without greenlet; nothing is an instance of ()
        AsyncConnection = AsyncEngine = AsyncSession = async_scoped_session = async_sessionmaker = ()

        class AsyncAttrs:
            """Nothing that is asynchronous."""


__all__ = [
    "AsyncAttrs",
    "AsyncConnection",
    "AsyncEngine",
    "AsyncSession",
    "also_async",
    "also_async_iterator",
    "also_async_read",
    "also_async_stream",
    "also_async_where",
    "async_scoped_session",
    "async_sessionmaker",
]

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)

_Session = Session | scoped_session[Any]
if TYPE_CHECKING:
    _AsyncSession = AsyncSession | async_scoped_session[Any]
    _AsyncWhere = _AsyncSession | AsyncConnection | AsyncEngine


# --- what type checkers know of the functions -------------------------------------------------------------------


class _AlsoAsync(Protocol[S_contra, P, T_co]):
    @overload
    def __call__(self, session: S_contra, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    def __call__(self, session: _AsyncSession, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]: ...


class _AlsoAsyncWhere(Protocol[S_contra, P, T_co]):
    @overload
    def __call__(self, where: S_contra, *args: P.args, **kwargs: P.kwargs) -> T_co: ...
    @overload
    def __call__(self, where: _AsyncWhere, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]: ...


class _AlsoAsyncIterator(Protocol[S_contra, P, T_co]):
    @overload
    def __call__(self, session: S_contra, *args: P.args, **kwargs: P.kwargs) -> Generator[T_co]: ...
    @overload
    def __call__(self, session: _AsyncSession, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T_co]: ...


class _AlsoAsyncRead(Protocol[M_contra, P, T_co]):
    @overload
    def __call__(
        self, model_class: M_contra, session: _Session | None = None, *args: P.args, **kwargs: P.kwargs
    ) -> T_co: ...
    @overload
    def __call__(
        self, model_class: M_contra, session: _AsyncSession, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T_co]: ...


class _AlsoAsyncStream(Protocol[M_contra, P, T_co]):
    @overload
    def __call__(
        self, model_class: M_contra, session: _Session, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[T_co]: ...
    @overload
    def __call__(
        self, model_class: M_contra, session: _AsyncSession, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T_co]: ...


# --- decorators -------------------------------------------------------------------------------------------------


def also_async(function: Callable[Concatenate[S, P], T]) -> _AlsoAsync[S, P, T]:
    """Let a function give an awaitable if its ``session`` is an ``AsyncSession``."""
    return cast("_AlsoAsync[S, P, T]", _either(function, greenlet_spawn))


def also_async_where(function: Callable[Concatenate[S, P], T]) -> _AlsoAsyncWhere[S, P, T]:
    """Let a function give an awaitable if ``where`` is an asynchronous session, connection or engine."""
    return cast("_AlsoAsyncWhere[S, P, T]", _either(function, greenlet_spawn))


def also_async_read(function: Callable[Concatenate[M, _Session | None, P], T]) -> _AlsoAsyncRead[M, P, T]:
    """Let a function whose ``session`` is its second argument do what :func:`also_async` does."""
    return cast("_AlsoAsyncRead[M, P, T]", _either(function, greenlet_spawn))


def also_async_iterator(function: Callable[Concatenate[S, P], Generator[T]]) -> _AlsoAsyncIterator[S, P, T]:
    """Let a function give an asynchronous iterator if its ``session`` is an ``AsyncSession``."""
    return cast("_AlsoAsyncIterator[S, P, T]", _either(function, _iterate))


def also_async_stream(
    function: Callable[Concatenate[M, _Session, P], Generator[T]],
) -> _AlsoAsyncStream[M, P, T]:
    """Let a function whose ``session`` is its second argument do what :func:`also_async_iterator` does."""
    return cast("_AlsoAsyncStream[M, P, T]", _either(function, _iterate))


def _either(function: Callable[..., Any], run: Callable[[Callable[[Any], Any], Any], Any]) -> Callable[..., Any]:
    """Return a function that calls another one, or lets ``run`` do so if what it is given is asynchronous."""
    name, place = next(
        (name, place) for place, name in enumerate(signature(function).parameters) if name in ("session", "where")
    )

    @wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # pytest shows the line of the test
        is_positional = len(args) > place
        given = args[place] if is_positional else kwargs.get(name)
        if isinstance(given, async_scoped_session):
            given = given()
        if not isinstance(given, (AsyncSession, AsyncConnection, AsyncEngine)):
            return function(*args, **kwargs)

        def call(sync: Any) -> Any:
            if is_positional:
                return function(*args[:place], sync, *args[place + 1 :], **kwargs)
            return function(*args, **{**kwargs, name: sync})

        return run(call, _synchronous(given))

    return either


def _synchronous(given: AsyncSession | AsyncConnection | AsyncEngine) -> Any:
    if isinstance(given, AsyncSession):
        return given.sync_session
    return given.sync_engine if isinstance(given, AsyncEngine) else given.sync_connection


_END: Final = object()


async def _iterate(call: Callable[[Any], Generator[T]], sync: Any) -> AsyncGenerator[T]:
    iterator = await greenlet_spawn(call, sync)
    try:
        while (item := await greenlet_spawn(next, iterator, _END)) is not _END:
            yield cast("T", item)
    finally:
        await greenlet_spawn(iterator.close)
