"""When does a session write tracked rows? The one place that listens to SQLAlchemy.

Sessions that :func:`register_hooks` was given: ``before_flush`` and ``after_flush`` frame a
:class:`~sqlaudit.flush.Flush`, ``do_orm_execute`` sees to reads of the past and to bulk statements.
Tracked models (:func:`watch`): their mapper events tell the flush of its session what it wrote. In a session without
hooks they warn, or raise in strict mode, so that no write goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from itertools import chain
from operator import attrgetter
from types import MethodType
from typing import Any, Final, Self
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import (
    Column,
    Connection,
    Delete,
    Engine,
    MetaData,
    RootTransaction,
    Table,
    Update,
    UpdateBase,
    event,
    inspect,
)
from sqlalchemy.orm import (
    ColumnProperty,
    FromStatement,
    InstanceState,
    Mapper,
    ORMExecuteState,
    RelationshipProperty,
    Session,
    SessionTransaction,
    UOWTransaction,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.orm.mapper import _all_registries

from sqlaudit.bulk.appending import is_history, is_migrating, rewriting
from sqlaudit.bulk.namesakes import is_namesake
from sqlaudit.bulk.reading import notice_writes_within, source_written, table_written, unwrapped
from sqlaudit.bulk.recorder import Recorder
from sqlaudit.bulk.writes import roll_back
from sqlaudit.capture import OWN, uncaptured
from sqlaudit.exceptions import QueryError, SQLAuditError
from sqlaudit.flush import (
    Flush,
    Updating,
    followed_fields_changed,
    forget_restoring,
    forget_unit,
    forget_written_with,
    may_write_more,
    prepare_restoring,
    sources_of,
    unit_of,
)
from sqlaudit.handwritten import NOTICED, is_told_by_text, notice_text
from sqlaudit.history import Version, checked_session, where_rows_are
from sqlaudit.instant import (
    Instant,
    hide_if_excluded,
    instant_of_state,
    look_back_from,
    mix_into,
    refuse_change,
    refuse_changes,
    refuse_reference,
)
from sqlaudit.models import TrackedModel, link_columns, root_of, tracked_model
from sqlaudit.past import Past, beside_past, stays_in_past
from sqlaudit.statements import WRITE
from sqlaudit.tables import (
    INFO_KEY,
    find_association_tables,
    mappers_of,
    track_secondary,
    tracked_names,
    tracked_table,
    tracked_tables,
)
from sqlaudit.timetravel import PastSession, execute_within, instant_of, read_past

try:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
except ImportError:  # without greenlet there are none, and nothing is an instance of ()
    AsyncSession = async_scoped_session = async_sessionmaker = ()  # type: ignore[assignment, misc]

_DISABLED: Final = "sqlaudit_disabled"
_RECORDING: Final = "sqlaudit_recording"


# --- sessions ---------------------------------------------------------------------------------------------------


def register_hooks(target: Any = Session, *, engine: Any = None) -> None:
    """Record what the target's sessions write to tracked tables, from now on.

    Doing it twice does no more than doing it once, and sessions of overlapping targets record once.

    :param target: ``Session`` (all sessions, those of an ``AsyncSession`` included), a subclass of it, a session,
        a ``sessionmaker`` or ``scoped_session``, or their async kin
    :param engine: an engine, or a connection, or their async kin, of which statements are recorded that pass no
        session: ``connection.execute(update(table))``. SQL that was written by hand is handled as the configuration's
        ``on_uncaptured`` says
    :raises SQLAuditError: the target is none of these
    """
    if engine is not None:
        _record_engine(engine)
    target = _session_class(target, make=True)
    if not event.contains(target, "before_flush", _before_flush):
        event.listen(target, "before_flush", _begin_flush, insert=True)
        for name, listener in _SESSION_LISTENERS.items():
            # what others write after the flush is then none of its own
            event.listen(target, name, listener, insert=name == "after_flush")
        _wrap_methods(target)
        _registered.append(target)


_NOT_GIVEN: Final[Any] = object()


def unregister_hooks(target: Any = _NOT_GIVEN, *, engine: Any = None) -> None:
    """Stop recording what the target's sessions write; nothing happens if they were not registered.

    :param target: as :func:`register_hooks` takes it; by default all sessions, unless an engine is given
    :param engine: the engine, or connection, to stop recording; sessions are then left alone, unless a target is given
    """
    if engine is not None:
        _forget_engine(engine)
        if target is _NOT_GIVEN:
            return
    target = _session_class(Session if target is _NOT_GIVEN else target, make=False)
    if event.contains(target, "before_flush", _before_flush):
        event.remove(target, "before_flush", _begin_flush)
        for name, listener in _SESSION_LISTENERS.items():
            event.remove(target, name, listener)
        _unwrap_methods(target)
        _registered.remove(target)


def registered_targets() -> tuple[Any, ...]:
    """Return the session classes, the sessions, the engines and the connections that record."""
    return (*_registered, *_engines)


def records(session: Session) -> bool:
    """Tell whether a session records what it writes."""
    return any(isinstance(session, each) if isinstance(each, type) else session is each for each in _registered)


_registered: list[Any] = []


def _session_class(target: Any, *, make: bool) -> Any:
    if isinstance(target, (scoped_session, async_scoped_session)):
        target = target.session_factory
    if isinstance(target, sessionmaker):
        return target.class_
    if isinstance(target, async_sessionmaker):
        # An AsyncSession works through a Session, by default through Session itself: give the maker its own.
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
    raise SQLAuditError(
        f"{target!r} makes no sessions; give a Session class, a sessionmaker, or one of their async kin.", target
    )


def _begin_flush(session: Session, context: UOWTransaction, instances: object) -> None:
    """Take the instant of a flush, before other listeners, which may set timestamps."""
    flush: Flush | None = session.info.get(INFO_KEY)
    if flush is None or flush.context is not context:  # else a listener of an overlapping target came first
        flush = session.info[INFO_KEY] = Flush(session, context)
        if not session.info.get(_DISABLED):
            flush.begin()


def _before_flush(session: Session, context: UOWTransaction, instances: object) -> None:
    flush: Flush = session.info[INFO_KEY]
    if flush.is_announced:
        return  # a listener of an overlapping target came first
    flush.is_announced = True
    prepare_restoring(session, context)
    if session.info.get(_DISABLED):
        refuse_changes(session)
        return
    _hear_more(session, flush, chain(session._new, session._deleted, session._dirty_states))
    flush.prepare()


def _hear_more(session: Session, flush: Flush, states: Iterable[InstanceState[Any]]) -> None:
    """Hear the statements of a flush if it may write what its objects don't tell.

    Other listeners may, and defaults of columns; and links may go to an unknown place.
    """
    if not tracked_names or flush.is_heard:
        return
    mappers = {state.mapper for state in states} - flush.looked_at
    flush.looked_at |= mappers
    has_links = any(unit.links for unit in map(unit_of, mappers) if unit is not None)
    if (has_links and flush.chooses) or any(may_write_more(mapper, _MODEL_LISTENERS) for mapper in mappers):
        flush.is_heard = True
        for connection in _connections_of(session):
            _listen_to(session, connection)


def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    """Look at what a flush has found to write besides: orphans, and objects that listeners have added."""
    flush: Flush | None = session.info.get(INFO_KEY)
    if flush is not None and flush.is_announced and not transaction.nested and not session.info.get(_DISABLED):
        _hear_more(session, flush, flush.context.states)


def _after_flush(session: Session, context: UOWTransaction) -> None:
    flush: Flush | None = session.info.pop(INFO_KEY, None)
    if flush is not None and not session.info.get(_DISABLED):
        flush.record()
    forget_restoring(session)


def _after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    if not transaction.nested:  # a savepoint that a listener has rolled back does not end the flush
        session.info.pop(INFO_KEY, None)
    if INFO_KEY not in session.info:
        forget_restoring(session)


def _do_orm_execute(state: ORMExecuteState) -> Any:
    mapper = inspect(state.bind_arguments.get("mapper"), raiseerr=False)  # a class, too, may be given
    if isinstance(mapper, Mapper) and issubclass(mapper.class_, Version) and "bind" not in state.bind_arguments:
        # A session with binds knows none for histories.
        state.bind_arguments.update(where_rows_are(state.session, mapper.class_.__sqlaudit_model__.mapper))
    instant = instant_of(state)
    if instant is not None:
        return read_past(state, instant)
    if state.is_select and stays_in_past(state.statement) and not isinstance(state.statement, Past):
        # selectin_polymorphic tells nobody for whom it loads: it finds live objects, which do no harm to the past ones.
        state.statement = beside_past(state.statement)
    statement = unwrapped(state.statement)
    if isinstance(statement, (Update, Delete)) and not isinstance(state.statement, FromStatement):
        state.statement = statement  # a lambda would not tell how it is to be followed
        if state.is_orm_statement and not state.is_executemany:
            _spare_past_objects(state)
    writes_history = isinstance(statement, UpdateBase) and is_history(table_written(statement))
    if state.session.info.get(_DISABLED) and not writes_history:
        return None
    if is_told_by_text(statement):
        if _is_first(state):
            state.update_execution_options(**{NOTICED: True})
            notice_text(statement, state.session.bind, *_connections_of(state.session))
    elif writes_history or (
        isinstance(statement, UpdateBase) and (source_written(statement) is not None or is_namesake(statement))
    ):
        if _is_first(state) and not _is_recording(state.session):
            return _record_statement(state)
    elif WRITE not in state.execution_options:
        notice_writes_within(statement)
    return None


def _record_statement(state: ORMExecuteState) -> Any:
    with _recording(state.session):
        return execute_within(state, state.statement)


class _Recording:
    """The recording of what a session executes itself: whichever of its connections that is executed on is heard.

    Nobody asks the session which connection that will be: its answer may be another one the second time.

    :ivar flush: the flush that a listener executes the statement in, if it is executed in one; the statements of other
        flushes are recorded elsewhere
    """

    def __init__(self, session: Session) -> None:
        info = session.info
        self.flush = info.get(INFO_KEY)
        self.recorder = Recorder(
            lambda _: session,
            lambda _, table, __: bool(table is None or info.get(_DISABLED)) or info.get(INFO_KEY) is not self.flush,
            waits=True,
        )
        self._connections: set[Connection] = set()

    def listen(self, connection: Connection) -> None:
        if connection not in self._connections:
            self._connections.add(connection)
            self.recorder.listen(connection)

    def end(self) -> None:
        for connection in self._connections:
            self.recorder.remove(connection)


def _is_recording(session: Session) -> bool:
    """Tell whether what a session executes now is recorded already."""
    recordings: list[_Recording] = session.info.get(_RECORDING, [])
    return bool(recordings) and recordings[-1].flush is session.info.get(INFO_KEY)


def _connections_of(session: Session) -> set[Connection]:
    """Return the connections that a session has in its transaction; more may come."""
    transaction = session.get_transaction()
    return {each[0] for each in transaction._connections.values()} if transaction is not None else set()


@contextmanager
def _recording(session: Session) -> Iterator[None]:
    """Record the statements that a session executes itself; those of its flushes are seen to elsewhere.

    If one fails, what it did in part is undone; if recording fails, the transaction is rolled back.
    """
    recording = _Recording(session)
    recordings: list[_Recording] = session.info.setdefault(_RECORDING, [])
    recordings.append(recording)
    for connection in _connections_of(session):
        recording.listen(connection)
    try:
        yield
    except Exception:
        recording.recorder.settle_failed()
        raise
    finally:
        recordings.remove(recording)
        recording.end()
    try:
        recording.recorder.settle()
    except BaseException:
        roll_back(session)
        raise


def _spare_past_objects(state: ORMExecuteState) -> None:
    """Let a bulk statement be followed by the objects of the rows that it writes, rather than by all that match."""
    if state.update_delete_options._synchronize_session in ("auto", "evaluate") and any(
        isinstance(token, Instant)
        for _, _, token in state.session.identity_map.keys()  # noqa: SIM118  # quicker
    ):
        state.update_execution_options(synchronize_session="fetch")


def _is_first(state: ORMExecuteState) -> bool:
    """Tell whether no listener of an overlapping target has seen the statement yet."""
    return _do_orm_execute not in list(state._events_todo)[: state._starting_event_idx]


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if _engines:  # who listen to the connection, and ask whose it is
        _note_session(session, connection)
    for recording in session.info.get(_RECORDING, ()):
        recording.listen(connection)
    flush: Flush | None = session.info.get(INFO_KEY)
    if flush is not None and flush.is_heard:
        _listen_to(session, connection)


_SESSION_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "after_transaction_create": _after_transaction_create,
    "after_begin": _after_begin,
    "before_flush": _before_flush,
    "after_flush": _after_flush,
    "after_soft_rollback": _after_soft_rollback,
    "do_orm_execute": _do_orm_execute,
}


def _attaching(session: Session, state: InstanceState[Any]) -> None:
    """Keep an object of the past out of a session that would give it live rows, unless it is one no more.

    Every session is asked, at the price of one call for an object that is added; loading asks nobody.
    """
    if instant_of_state(state) is not None:
        _refuse_without_hooks(session, state)
    elif isinstance(state.identity_token, Instant):  # make_transient() has made a new object of one of the past
        state.identity_token, state.load_options = None, ()


def _refuse_without_hooks(session: Session, state: InstanceState[Any]) -> None:
    if isinstance(session, PastSession) or records(session):
        return
    raise QueryError(
        f"{state.class_.__name__} {state.identity} {instant_of_state(state)} was given to a session without hooks, and "
        "would refer to live rows; call register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
        state.obj(),
    )


class _AskedInMerges:
    """The key of a tracked model: a merge sets it, and there is no event for an object that the merge has loaded."""

    __slots__ = ()

    def merge(self, session: Session, source: InstanceState[Any], *args: Any) -> None:
        if instant_of_state(source) is not None:
            _refuse_without_hooks(session, source)
        super().merge(session, source, *args)  # type: ignore[misc]  # the property's


# --- engines ----------------------------------------------------------------------------------------------------

_engines: dict[Engine | Connection, Recorder] = {}


def _engine_or_connection(given: Any) -> Engine | Connection:
    given = getattr(given, "sync_engine", None) or getattr(given, "sync_connection", None) or given
    if not isinstance(given, (Engine, Connection)):
        raise SQLAuditError(f"{given!r} executes no statements; give an engine or a connection.", given)
    return given


def _record_engine(engine: Any) -> None:
    engine = _engine_or_connection(engine)
    if engine not in _engines:
        _engines[engine] = Recorder(_session_on, _is_seen_to_by_session)
        _engines[engine].listen(engine)


def _forget_engine(engine: Any) -> None:
    engine = _engine_or_connection(engine)
    recorder = _engines.pop(engine, None)
    if recorder is not None:
        recorder.remove(engine)


def _listen_to(session: Session, connection: Connection) -> None:
    """Record what others execute on a connection of a session."""
    _note_session(session, connection)
    if not _is_recorded(connection) and not event.contains(connection, "before_execute", _of_sessions.before):
        _of_sessions.listen(connection)


def _is_recorded(connection: Connection) -> bool:
    """Tell whether a connection is registered, its engine, or one from which that came by ``execution_options()``."""
    return bool(_engines) and any(each in _engines for each in _origins(connection))


def _origins(connection: Connection) -> Iterator[Any]:
    yield connection
    engine: Any = connection.engine
    while engine is not None:
        yield engine
        engine = getattr(engine, "_proxied", None)


_sessions: Final[WeakKeyDictionary[RootTransaction, list[ref[Session]]]] = WeakKeyDictionary()
"""The sessions with hooks that are in a transaction; several share that of a connection that they are bound to."""


def _note_session(session: Session, connection: Connection) -> None:
    transaction = connection.get_transaction()
    if transaction is not None:
        others = [each for each in _sessions.get(transaction, ()) if each() not in (session, None)]
        _sessions[transaction] = [*others, ref(session)]


def _sessions_on(connection: Connection) -> list[Session]:
    """Return the sessions with hooks that are in the transaction of a connection."""
    transaction = connection.get_transaction()
    found = _sessions.get(transaction, ()) if transaction is not None else ()
    return [session for each in found if (session := each()) is not None and session.in_transaction()]


def _session_on(connection: Connection) -> Session | None:
    """Return the session with hooks that is in the transaction of a connection, if one is: rather one that writes."""
    sessions = _sessions_on(connection)
    return next((each for each in sessions if _is_recording(each) or INFO_KEY in each.info), next(iter(sessions), None))


def _is_seen_to_by_session(connection: Connection, table: Any, options: Mapping[str, Any]) -> bool:
    """Tell whether a session with hooks sees to what a connection executes.

    What listeners execute while a session flushes is not the session's own, whose statements have a cache of their
    own, except those of links, which are like anybody's: they are recorded once, as statements or by their objects.

    :param table: the table that is written; ``None`` if the SQL was written by hand, and a flush has none such
    """
    session = _session_on(connection)
    if session is None:
        return False
    if session.info.get(_DISABLED) or table is None:
        return bool(session.info.get(_DISABLED))
    flush: Flush | None = session.info.get(INFO_KEY)
    if _is_recording(session) or flush is None or not flush.is_writing:
        return _is_recording(session)
    tracked = tracked_table(table)
    if tracked is not None and tracked.is_association:
        return flush.records_links
    return options.get("compiled_cache") not in (None, connection.engine._compiled_cache)


def _is_nothing_to_session(connection: Connection, table: Any, options: Mapping[str, Any]) -> bool:
    session = _session_on(connection)
    return session is None or not records(session) or _is_seen_to_by_session(connection, table, options)


_of_sessions: Final = Recorder(_session_on, _is_nothing_to_session)
"""Records what is executed on the connections that sessions give away."""


# --- the methods of sessions that there are no events for -------------------------------------------------------


def _recording_bulk_save(name: str, original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def bulk_save_objects(session: Session, objects: Iterable[object], *args: Any, **kw: Any) -> None:
        objects = list(objects)
        mappers: dict[Mapper[Any], None] = {}
        for state in map(inspect, objects):
            refuse_change(state)
            mappers[state.mapper] = None
        return _record_bulk(session, mappers, lambda: original(session, objects, *args, **kw))

    return bulk_save_objects


def _recording_bulk_mappings(name: str, original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def method(session: Session, mapper: Any, *args: Any, **kw: Any) -> None:
        return _record_bulk(session, [inspect(mapper)], lambda: original(session, mapper, *args, **kw))

    return method


def _record_bulk(session: Session, mappers: Collection[Mapper[Any]], write: Callable[[], None]) -> None:
    """Record what a method writes to tables of mappers, in one database or several.

    :raises ReadOnlyError: one is of a history class
    """
    written = any(tracked_model(mapper) is not None or sources_of(mapper) for mapper in mappers)
    is_of_interest = (written and not session.info.get(_DISABLED)) or any(
        is_history(each.local_table) for each in mappers
    )
    if not is_of_interest or _is_recording(session):
        return write()
    with _recording(session):
        return write()


def _giving_connection(name: str, original: Callable[..., Connection]) -> Callable[..., Connection]:
    @wraps(original)
    def connection(session: Session, *args: Any, **kw: Any) -> Connection:
        found = original(session, *args, **kw)
        if kw.get("execution_options") is not OWN:
            _listen_to(session, found)
        return found

    return connection


def _looking_up_in_past(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def _identity_lookup(session: Session, *args: Any, lazy_loaded_from: Any = None, **kw: Any) -> Any:
        """Look for what an object of the past refers to among the objects of its instant."""
        instant = None if lazy_loaded_from is None else instant_of_state(lazy_loaded_from)
        if instant is not None:
            kw["identity_token"] = instant
        return original(session, *args, lazy_loaded_from=lazy_loaded_from, **kw)

    return _identity_lookup


_METHODS: Final[dict[str, Callable[[str, Callable[..., Any]], Callable[..., Any]]]] = {
    "_identity_lookup": _looking_up_in_past,
    "bulk_save_objects": _recording_bulk_save,
    "bulk_insert_mappings": _recording_bulk_mappings,
    "bulk_update_mappings": _recording_bulk_mappings,
    "connection": _giving_connection,
}


@dataclass(frozen=True, slots=True)
class _Inherited:
    """The method of a target that has none of its own, looked up when it is called."""

    target: Any
    name: str

    def __call__(self, session: Session, *args: Any, **kw: Any) -> Any:
        if isinstance(self.target, type):
            return getattr(super(self.target, session), self.name)(*args, **kw)
        return getattr(type(session), self.name)(session, *args, **kw)


def _wrap_methods(target: Any) -> None:
    for name, wrap in _METHODS.items():
        method = wrap(name, vars(target).get(name) or _Inherited(target, name))
        setattr(target, name, method if isinstance(target, type) else MethodType(method, target))


def _unwrap_methods(target: Any) -> None:
    for name in _METHODS:
        original = getattr(vars(target).get(name), "__wrapped__", None)
        if original is None:  # somebody else has put his own method there
            continue
        delattr(target, name)
        if not isinstance(original, _Inherited):
            setattr(target, name, original)


# --- pausing ----------------------------------------------------------------------------------------------------


class tracking_disabled:
    """Leave what a session writes inside a ``with`` block (``async with`` for an ``AsyncSession``) out of history.

    What was changed before the block is flushed first, and recorded; what was changed inside is flushed when it
    ends. However it ends, tracking is on again afterwards.
    """

    def __init__(self, session: Any) -> None:
        self._given = session
        self._session = checked_session(getattr(session, "sync_session", session))

    def __enter__(self) -> Self:
        if self._given is not self._session and hasattr(self._given, "run_sync"):
            raise SQLAuditError("An AsyncSession needs: async with tracking_disabled(session).", self._given)
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
        self._session.info[_DISABLED] = self._session.info.get(_DISABLED, 0) + 1

    def _end(self) -> None:
        self._session.info[_DISABLED] -= 1


# --- tracked models ---------------------------------------------------------------------------------------------


def watch(model: TrackedModel) -> None:
    """Listen to the events of a tracked model, of its subclasses, and of the MetaData that it is in."""
    target = model.mapper.class_
    for name, listener in _MODEL_LISTENERS.items():
        event.listen(target, name, listener, raw=True, retval=True, propagate=True)
    event.listen(target, "after_mapper_constructed", _track_subclass, propagate=True)
    event.listen(target, "mapper_configured", _track_links, propagate=True)
    metadata = model.table.live.metadata
    metadata.info.setdefault(INFO_KEY, WeakSet()).add(model.mapper.registry)
    if not event.contains(metadata, "before_create", _before_create):
        event.listen(metadata, "before_create", _before_create)
        event.listen(metadata, "after_create", _after_create)
        event.listen(metadata, "before_drop", _before_create)
        event.listen(metadata, "after_drop", _after_drop)
    if not event.contains(Mapper, "mapper_configured", _warn_of_other_mapper):
        event.listen(Mapper, "mapper_configured", _warn_of_other_mapper)
        event.listen(Mapper, "mapper_configured", _watch_references)
        event.listen(Mapper, "after_configured", _watch_followed)
        event.listen(Column, "before_parent_attach", _adding_column)
        event.listen(Column, "after_parent_attach", _column_added)
        event.listen(object, "attribute_instrument", _attribute_added)
        event.listen(Session, "before_attach", _attaching, raw=True)
    look_again(model.mapper)


def look_again(mapper: Mapper[Any]) -> None:
    """Look at the mappers that were configured before a table was tracked, or its options were known."""
    for each in mappers_of(mapper.registry):
        if each.configured:
            _track_links(each, each.class_)
            _warn_of_other_mapper(each, each.class_)
            _watch_references(each, each.class_)
    _watch_followed()


def _inserted(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.group(state, connection).inserted.append(state)
    else:
        _unrecorded(mapper, connection, state)


def _inserting(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    flush: Flush | None = _session_of(state).info.get(INFO_KEY)
    if flush is not None and (flush.asks_late or flush.began is None):  # few do, and every insert comes here
        flush.inserting(state, connection)


def _updating(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.writing(state, connection, doomed=False)
        flush.group(state, connection).updating.append(Updating(state))
    else:
        _unrecorded(mapper, connection, state)


def _updated(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if state.key is None:  # a new object has taken the row of a deleted one: no before_update told of it
        _inserted(mapper, connection, state)


def _deleting(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.writing(state, connection, doomed=True)
    else:
        refuse_change(state)


def _deleted(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.group(state, connection).deleted.append(state)
    else:
        _unrecorded(mapper, connection, state)


_session_of: Final[Callable[[InstanceState[Any]], Session]] = attrgetter("session")


def _unrecorded(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    refuse_change(state)
    if _is_recorded(connection):  # by its statements
        return
    name = mapper.class_.__name__
    uncaptured(
        f"{name} was written by a session without hooks, and its history does not show it; "
        "call register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
        mapper.class_,
    )


_MODEL_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "before_insert": _inserting,
    "after_insert": _inserted,
    "before_update": _updating,
    "after_update": _updated,
    "before_delete": _deleting,
    "after_delete": _deleted,
}


def _warn_of_other_mapper(mapper: Mapper[Any], model_class: type[Any]) -> None:
    """Let a class that is not tracked, but mapped to a tracked table or to a history, warn or raise when it writes."""
    if tracked_model(mapper) is None and any(_is_live(table) or is_history(table) for table in mapper.tables):
        for name in ("before_insert", "before_update", "before_delete"):
            if not event.contains(model_class, name, _written_by_other_mapper):
                event.listen(model_class, name, _written_by_other_mapper, raw=True, retval=True)


def _watch_followed() -> None:
    """Listen to the classes that are not tracked, but that tracked rows follow by foreign key."""
    for mapper in [each for registry in _all_registries() for each in mappers_of(registry)]:
        if mapper.configured and tracked_model(mapper) is None and sources_of(mapper):
            for name, listener in _FOLLOWED_LISTENERS.items():
                if not event.contains(mapper.class_, name, listener):
                    event.listen(mapper.class_, name, listener, raw=True, retval=True)


def _updating_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _write_followed(mapper, connection, state, doomed=False)


def _deleting_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _write_followed(mapper, connection, state, doomed=True)


def _write_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any], *, doomed: bool) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.writing(state, connection, doomed=doomed)
    elif (doomed or followed_fields_changed(state)) and not _is_recorded(connection):
        uncaptured(
            f"{mapper.class_.__name__}, which is not tracked, was written by a session without hooks, and the history "
            "of the rows that follow it by foreign key will not show what becomes of them; call register_hooks(), or "
            "register_hooks(your_sessionmaker), at start-up.",
            mapper.class_,
        )


_FOLLOWED_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "before_insert": _inserting,
    "before_update": _updating_followed,
    "before_delete": _deleting_followed,
}


def _is_live(table: object) -> bool:
    tracked = tracked_table(table)
    return tracked is not None and tracked.live is table


def _written_by_other_mapper(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """Warn of an object that is written to a tracked table, and refuse one that is written to a history.

    :raises ReadOnlyError: it is
    """
    session = _session_of(state)
    history: Any = next(filter(is_history, mapper.tables), None)
    if history is not None and records(session) and not is_migrating(connection):
        raise rewriting(history)
    table = next(filter(_is_live, mapper.tables), None)
    is_unseen = not session.info.get(_DISABLED) and not _is_recorded(connection)
    if table is not None and tracked_model(mapper) is None and is_unseen:
        uncaptured(
            f"{mapper.class_.__name__} is not tracked and writes the tracked table {table.fullname!r}, whose history "
            "does not show it; write its rows through the tracked model, or track this one and map it alone.",
            mapper.class_,
        )


def _watch_references(mapper: Mapper[Any], model_class: type[Any]) -> None:
    """Listen to what is given to the relationships to tracked models, which may be of the past."""
    forget_written_with()
    for relationship in mapper.relationships:
        _watch_reference(model_class, relationship)


def _watch_reference(model_class: type[Any], relationship: RelationshipProperty[Any]) -> None:
    if not relationship.viewonly and tracked_model(relationship.mapper) is not None:
        name = "append" if relationship.uselist else "set"
        event.listen(getattr(model_class, relationship.key), name, refuse_reference, raw=True)


def _track_subclass(mapper: Mapper[Any], model_class: type[Any]) -> None:
    track_with_base(mapper)


def track_with_base(mapper: Mapper[Any]) -> None:
    """Track a class whose base class is tracked, unless it only reads rows of others: by a SELECT, or a union."""
    only_reads = mapper.concrete and not isinstance(mapper.local_table, Table)
    if tracked_model(mapper) is None and mapper.inherits is not None and not only_reads:
        parent = tracked_model(mapper.inherits)
        if parent is not None:
            TrackedModel(mapper, parent.options_for_subclass())


def _track_links(mapper: Mapper[Any], model_class: type[Any]) -> None:
    """Track the association tables between this model and others that are tracked."""
    model = tracked_model(mapper)
    if model is not None:
        model.table.complete()
        mix_into(mapper.get_property_by_column(mapper.primary_key[0]), _AskedInMerges)
        for prop in (*mapper.column_attrs, *mapper.relationships):
            _look_at_attribute(model_class, prop)


def _look_at_attribute(model_class: type[Any], prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> None:
    hide_if_excluded(model_class, prop)
    if isinstance(prop, RelationshipProperty):
        look_back_from(model_class, prop)
        _track_link(prop)


def _track_link(relationship: RelationshipProperty[Any]) -> None:
    secondary = relationship.secondary
    if isinstance(secondary, Table) and not relationship.viewonly and tracked_model(relationship.mapper) is not None:
        track_secondary(secondary, link_columns(relationship), relationship.parent)
        for mapper in mappers_of(relationship.mapper.registry):
            if mapper.local_table is secondary:
                _warn_of_other_mapper(mapper, mapper.class_)


# A table may get columns, and a class attributes, at any time.


def _adding_column(column: Column[Any], table: Table) -> None:
    tracked = tracked_table(table)
    if tracked is not None and tracked.live is table:
        tracked.refuse_column(column)


def _column_added(column: Column[Any], table: Table) -> None:
    tracked = tracked_table(table)
    if tracked is not None and tracked.live is table:
        tracked.follow(column)
        if not tracked.is_association:
            _grow(root_of(tracked))


def _attribute_added(model_class: type[Any], name: str, attribute: Any) -> None:
    """Do for an attribute that a class gets later what is done for the others when its mapper is configured."""
    mapper = inspect(model_class, raiseerr=False)
    if not isinstance(mapper, Mapper) or not mapper.configured:
        return
    forget_written_with()
    if isinstance(attribute.property, RelationshipProperty):
        _watch_reference(model_class, attribute.property)
    if (model := tracked_model(mapper)) is not None:
        _grow(model)
        if isinstance(attribute.property, (ColumnProperty, RelationshipProperty)):
            _look_at_attribute(model_class, attribute.property)


def _grow(model: TrackedModel) -> None:
    model.grow()
    for each in model.root.family():
        forget_unit(each.mapper)


# Association tables are known once the mappers are configured, which may be later than the first CREATE or DROP.


def _before_create(metadata: MetaData, connection: Connection, **kw: Any) -> None:
    find_association_tables(metadata)
    for table in tracked_tables(metadata):
        table.complete()


def _after_create(metadata: MetaData, connection: Connection, **kw: Any) -> None:
    for table in _late_tables(metadata, **kw):
        table.create(connection, checkfirst=True)


def _after_drop(metadata: MetaData, connection: Connection, **kw: Any) -> None:
    for table in _late_tables(metadata, **kw):
        table.drop(connection, checkfirst=True)


def _late_tables(
    metadata: MetaData, tables: Collection[Table] = (), _ddl_runner: Any = None, **kw: Any
) -> Iterator[Table]:
    """Yield the history tables that came to be after SQLAlchemy had listed the tables of the MetaData."""
    asked = getattr(_ddl_runner, "tables", None)  # those that are there already are asked for, too, but not listed
    for tracked in tracked_tables(metadata):
        if tracked.is_association and (asked is None or tracked.live in asked) and tracked.history not in tables:
            yield tracked.history
