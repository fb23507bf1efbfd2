"""Who records what a session or a connection now executes? At most one recorder records a statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

from sqlalchemy import (
    Connection,
    Engine,
    RootTransaction,
    event,
)
from sqlalchemy.orm import (
    Session,
)

from sqlaudit.recording.bulk.recorder import Recorder
from sqlaudit.recording.bulk.writes import roll_back
from sqlaudit.recording.flush import Flush
from sqlaudit.tracking.tables import INFO_KEY, tracked_table

DISABLED: Final = "sqlaudit_disabled"
RECORDING: Final = "sqlaudit_recording"


def records(session: Session) -> bool:
    """Return whether a session records what it writes."""
    return any(isinstance(session, each) if isinstance(each, type) else session is each for each in registered)


registered: list[Any] = []


class _Recording:
    """Records what a session executes itself, by listening to all connections that the session uses.

    Asking the session which connection it will use is not safe: it may give another answer the next time.

    :ivar flush: the flush in which a listener executes the statement, if any; the statements of other flushes are
        recorded elsewhere
    """

    def __init__(self, session: Session) -> None:
        info = session.info
        self.flush = info.get(INFO_KEY)
        self.recorder = Recorder(
            lambda _: session,
            lambda _, table, __: bool(table is None or info.get(DISABLED)) or info.get(INFO_KEY) is not self.flush,
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


def is_recording(session: Session) -> bool:
    """Return whether a recording already records what a session now executes."""
    recordings: list[_Recording] = session.info.get(RECORDING, [])
    return bool(recordings) and recordings[-1].flush is session.info.get(INFO_KEY)


def connections_of(session: Session) -> set[Connection]:
    """Return the connections that a session has used so far in its transaction."""
    transaction = session.get_transaction()
    return {each[0] for each in transaction._connections.values()} if transaction is not None else set()


@contextmanager
def recording_statements(session: Session) -> Iterator[None]:
    """Record the statements that a session executes itself; its flushes are recorded elsewhere.

    If a statement fails, what it did before it failed is undone; if recording fails, the transaction is rolled back.
    """
    recording = _Recording(session)
    recordings: list[_Recording] = session.info.setdefault(RECORDING, [])
    recordings.append(recording)
    for connection in connections_of(session):
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


recorded_engines: dict[Engine | Connection, Recorder] = {}


def listen_to(session: Session, connection: Connection) -> None:
    """Record what is executed directly on a connection of a session."""
    note_session(session, connection)
    if not is_recorded(connection) and not event.contains(connection, "before_execute", _connection_recorder.before):
        _connection_recorder.listen(connection)


def _origins(connection: Connection) -> Iterator[Any]:
    yield connection
    engine: Any = connection.engine
    while engine is not None:
        yield engine
        engine = getattr(engine, "_proxied", None)


def is_recorded(connection: Connection) -> bool:
    """Return whether a connection is registered, or its engine, or the engine that ``execution_options()`` copied."""
    return bool(recorded_engines) and any(each in recorded_engines for each in _origins(connection))


_sessions: Final[WeakKeyDictionary[RootTransaction, list[ref[Session]]]] = WeakKeyDictionary()
"""The sessions with hooks in each transaction; sessions that are bound to one connection share its transaction."""


def note_session(session: Session, connection: Connection) -> None:
    transaction = connection.get_transaction()
    if transaction is not None:
        others = [each for each in _sessions.get(transaction, ()) if each() not in (session, None)]
        _sessions[transaction] = [*others, ref(session)]


def _sessions_on(connection: Connection) -> list[Session]:
    """Return the sessions with hooks that are in the transaction of a connection."""
    transaction = connection.get_transaction()
    found = _sessions.get(transaction, ()) if transaction is not None else ()
    return [session for each in found if (session := each()) is not None and session.in_transaction()]


def session_on(connection: Connection) -> Session | None:
    """Return a session with hooks in the transaction of a connection, if there is one; prefer one that writes."""
    sessions = _sessions_on(connection)
    return next((each for each in sessions if is_recording(each) or INFO_KEY in each.info), next(iter(sessions), None))


def session_records_it(connection: Connection, table: Any, options: Mapping[str, Any]) -> bool:
    """Return whether a session with hooks records, or with tracking disabled ignores, what a connection executes.

    During a flush, this distinguishes the unit of work's statements, which :class:`Flush` records, from those of other
    listeners: the unit of work uses compiled caches of its own, except for association tables, whose rows are recorded
    once, by the flush or by their statements.

    :param table: the table that is written; ``None`` for hand-written SQL, which a flush never executes
    """
    session = session_on(connection)
    if session is None:
        return False
    if session.info.get(DISABLED) or table is None:
        return bool(session.info.get(DISABLED))
    flush: Flush | None = session.info.get(INFO_KEY)
    if is_recording(session) or flush is None or not flush.is_writing:
        return is_recording(session)
    tracked = tracked_table(table)
    if tracked is not None and tracked.is_association:
        return flush.records_links
    cache = options.get("compiled_cache")  # compared by identity: two empty caches are equal
    return cache is not None and cache is not connection.engine._compiled_cache


def _not_for_us(connection: Connection, table: Any, options: Mapping[str, Any]) -> bool:
    session = session_on(connection)
    return session is None or not records(session) or session_records_it(connection, table, options)


_connection_recorder: Final = Recorder(session_on, _not_for_us)
"""Records what is executed directly on the connections that sessions return."""
