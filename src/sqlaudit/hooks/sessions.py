"""When does a session write tracked rows? In a flush or in a statement; its events frame both.

A :class:`~sqlaudit.recording.flush.Flush` lasts from ``before_flush`` to ``after_flush``; ``do_orm_execute`` runs reads
of the past and records bulk statements. In a session without hooks the mapper events of tracked models
(:mod:`~sqlaudit.hooks.objects`) warn, or raise if the configuration says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Delete,
    Engine,
    Update,
    UpdateBase,
    event,
    inspect,
)
from sqlalchemy.orm import (
    FromStatement,
    Mapper,
    ORMExecuteState,
    Session,
    SessionTransaction,
    UOWTransaction,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.orm.session import _sessions
from sqlalchemy.util.concurrency import in_greenlet

from sqlaudit.asynchronous import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlaudit.exceptions import QueryError, SQLAuditError
from sqlaudit.hooks.engines import forget_engine, hear, record_engine, stop_hearing
from sqlaudit.hooks.methods import unwrap_methods, wrap_methods
from sqlaudit.hooks.scope import (
    DISABLED,
    is_recording,
    recorded_engines,
    recording_statements,
    records,
    registered,
)
from sqlaudit.past.objects import refuse_changes
from sqlaudit.past.pruned import SINCE
from sqlaudit.past.rendering import Instant, Past, has_past_guard, without_past_guard
from sqlaudit.past.running import execute_within, instant_of, turn_to_past
from sqlaudit.recording.bulk.parsing import ParsedWrite, unwrapped
from sqlaudit.recording.events import recorded_listeners, tell_recorded_by
from sqlaudit.recording.flush import Flush
from sqlaudit.recording.scope import enter_scope
from sqlaudit.tracking.history import Version
from sqlaudit.tracking.horizons import refuse_pruned_in
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.tables import INFO_KEY


def register_hooks(target: Any = Session, *, engine: Any = None) -> None:
    """Record what the sessions of a target write to tracked tables, from now on.

    Call it once, when the application starts. To call it twice does no harm: a session of two targets records once.

    :param target: ``Session``, the default, means all sessions, those of ``AsyncSession`` included. Or a subclass of
        ``Session``, a session, a ``sessionmaker`` or ``scoped_session``, or their async counterparts
    :param engine: also record statements that are executed on this engine or connection (sync or async) outside of any
        session, such as ``connection.execute(update(table))``. Hand-written SQL is treated as the
        configuration's ``on_uncaptured`` says
    :raises SQLAuditError: the target is something else
    """
    if engine is not None:
        record_engine(engine)
    target = _session_class(target, make=True)
    if not event.contains(target, "before_flush", _before_flush):
        event.listen(target, "before_flush", _begin_flush, insert=True)
        for name, listener in _SESSION_LISTENERS.items():
            event.listen(target, name, listener, insert=name in _FIRST)
        wrap_methods(target)
        registered.append(target)
        _log.info("Recording what %r writes", target)
        _enter_open_transactions()


_log: Final = logging.getLogger(__package__)
_NOT_GIVEN: Final[Any] = object()


def unregister_hooks(target: Any = _NOT_GIVEN, *, engine: Any = None) -> None:
    """Stop recording what the sessions of a target write. If they were not registered, nothing happens.

    :param target: what :func:`register_hooks` was given; all sessions if neither a target nor an engine is given
    :param engine: the engine or connection to stop recording. Sessions are left alone, unless a target is given, too
    """
    if engine is not None:
        forget_engine(engine)
        if target is _NOT_GIVEN:
            return
    target = _session_class(Session if target is _NOT_GIVEN else target, make=False)
    if event.contains(target, "before_flush", _before_flush):
        event.remove(target, "before_flush", _begin_flush)
        for name, listener in _SESSION_LISTENERS.items():
            event.remove(target, name, listener)
        unwrap_methods(target)
        registered.remove(target)
        _log.info("No longer recording what %r writes", target)
        stop_hearing()


def registered_targets() -> tuple[Any, ...]:
    """Return the session classes, the sessions, the engines and the connections that record."""
    return (*registered, *recorded_engines)


def _session_class(target: Any, *, make: bool) -> Any:
    if isinstance(target, (scoped_session, async_scoped_session)):
        target = target.session_factory
    if isinstance(target, sessionmaker):
        return target.class_
    if isinstance(target, async_sessionmaker):
        # AsyncSession uses a Session class, by default Session itself: give the sessionmaker its own subclass.
        shared = target.kw.get("sync_session_class", target.class_.sync_session_class)
        if make and not shared.__dict__.get("_sqlaudit_own"):
            shared = type(shared.__name__, (shared,), {"_sqlaudit_own": True})
            target.configure(sync_session_class=shared)
        return shared
    if isinstance(target, AsyncSession):
        return target.sync_session
    if isinstance(target, type) and issubclass(target, AsyncSession):
        return target.sync_session_class
    if isinstance(target, Session) or (isinstance(target, type) and issubclass(target, Session)):
        return target
    if isinstance(target, (Engine, Connection, AsyncEngine, AsyncConnection)):
        raise SQLAuditError(
            f"{target!r} makes no sessions. To record what it executes, write register_hooks(engine=…); to record "
            "sessions, give their sessionmaker.",
            target,
        )
    raise SQLAuditError(
        f"{target!r} does not make sessions. Give a Session class, a sessionmaker or a scoped_session, or their "
        "asynchronous counterparts.",
        target,
    )


def _enter_open_transactions() -> None:
    """Hear the connections of sessions that record, and that have begun a transaction before they were registered."""
    for session in filter(None, [reference() for reference in _sessions.valuerefs()]):
        transaction = session.get_transaction()
        if transaction is not None and records(session):
            for connection, *_ in list(transaction._connections.values()):
                _after_begin(session, transaction, connection)


def _begin_flush(session: Session, context: UOWTransaction, instances: object) -> None:
    """Take the instant of a flush before other listeners set timestamps."""
    flush: Flush | None = session.info.get(INFO_KEY)
    if flush is None or flush.context is not context:  # else a listener of an overlapping target came first
        flush = session.info[INFO_KEY] = Flush(session, context)
        if not session.info.get(DISABLED):
            flush.begin()


def _before_flush(session: Session, context: UOWTransaction, instances: object) -> None:
    flush: Flush = session.info[INFO_KEY]
    if flush.is_announced:
        return  # a listener of an overlapping target came first
    flush.is_announced = True
    if session.info.get(DISABLED):
        refuse_changes(session)
        return
    flush.prepare()


def _after_flush(session: Session, context: UOWTransaction) -> None:
    flush: Flush | None = session.info.pop(INFO_KEY, None)
    if flush is not None and not session.info.get(DISABLED):
        flush.record()
        if recorded_listeners:
            tell_recorded_by(session)


def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Forget a flush that has failed."""
    flush: Flush | None = session.info.get(INFO_KEY)
    if flush is not None and (transaction.parent is None or flush.writes_within(transaction)):
        del session.info[INFO_KEY]


def _do_orm_execute(state: ORMExecuteState) -> Any:
    session = state.session
    version = _version_mapper(state)
    if version is not None and "bind" not in state.bind_arguments:
        # A session with binds has no bind for history classes.
        state.bind_arguments.update(bind_arguments_for(session, version.class_.__sqlaudit_model__.mapper))
    if version is not None and SINCE in state.execution_options:
        refuse_pruned_in(session, [version.class_.__sqlaudit_model__.root.table], state.execution_options[SINCE])
    instant = instant_of(state)
    if (instant is not None or version is not None) and not isinstance(state.statement, Past):
        _refuse_without_await(state)
    if instant is not None:
        return turn_to_past(state, instant)
    if state.statement.is_select and has_past_guard(state.statement) and not isinstance(state.statement, Past):
        # selectin_polymorphic does not say for which objects it loads: let it load live ones, beside those of the past.
        state.statement = without_past_guard(state.statement)
    statement = unwrapped(state.statement)
    if isinstance(statement, (Update, Delete)) and not isinstance(state.statement, FromStatement):
        state.statement = statement  # SQLAlchemy would annotate the lambda, not its statement, for synchronize_session
        if state.is_orm_statement and not state.is_executemany:
            _spare_past_objects(state)
    if (
        isinstance(statement, UpdateBase)
        and not session.info.get(DISABLED)
        and not is_recording(session)
        and ParsedWrite(statement).source is not None
    ):
        with recording_statements(session):
            return execute_within(state, state.statement)
    return None


def _version_mapper(state: ORMExecuteState) -> Mapper[Version] | None:
    """Return the mapper of the history class whose versions a statement reads, or ``None``."""
    mapper = state.bind_arguments.get("mapper")  # it may also be a class
    mapper = mapper if isinstance(mapper, Mapper) else inspect(mapper, raiseerr=False)
    return mapper if isinstance(mapper, Mapper) and issubclass(mapper.class_, Version) else None


def _refuse_without_await(state: ORMExecuteState) -> None:
    """Say what to await, instead of a bare MissingGreenlet, where an attribute loads in an asynchronous session.

    :raises QueryError: the session is asynchronous, and nothing awaits it
    """
    if not (state.is_column_load or state.is_relationship_load):
        return
    if in_greenlet() or not state.session.get_bind(**state.bind_arguments).dialect.is_async:
        return
    raise QueryError(
        "An attribute of a version, or of an object of the past, executes a statement, which an AsyncSession must "
        "await. "
        + (
            "It has expired. Write: await session.refresh(…), or let the session keep what it has read: "
            "async_sessionmaker(…, expire_on_commit=False)."
            if state.is_column_load
            else "Load the relationship with the object, by selectinload(), or write: await ….awaitable_attrs.…."
        ),
        state,
    )


def _spare_past_objects(state: ORMExecuteState) -> None:
    """Make a bulk statement synchronize the objects of the rows that it writes, not objects of the past that match."""
    if state.execution_options.get("synchronize_session", "auto") in ("auto", "evaluate") and any(
        isinstance(token, Instant)
        for _, _, token in state.session.identity_map.keys()  # noqa: SIM118  # quicker
    ):
        state.update_execution_options(synchronize_session="fetch")


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if isinstance(connection, Connection) and isinstance(connection.engine, Engine):  # no mock of a program's tests
        enter_scope(session, connection)
        hear(connection.engine)


_FIRST: Final = ("after_begin", "after_flush")  # before other listeners of these events write
_SESSION_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "after_begin": _after_begin,
    "before_flush": _before_flush,
    "after_flush": _after_flush,
    "after_transaction_end": _after_transaction_end,
    "do_orm_execute": _do_orm_execute,
}
