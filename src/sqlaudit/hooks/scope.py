"""Who records what a session or a connection executes? At most one recorder records a statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Mapper, Session

from sqlaudit.recording.bulk.recorder import Recorder
from sqlaudit.recording.bulk.writes import roll_back
from sqlaudit.recording.events import recorded_listeners, tell_recorded_by
from sqlaudit.recording.flush import Flush
from sqlaudit.recording.scope import scope_of
from sqlaudit.tracking.foreign_keys import Source
from sqlaudit.tracking.tables import INFO_KEY, TrackedTable

DISABLED: Final = "sqlaudit_disabled"
_RECORDERS: Final = "sqlaudit_recorders"

registered: list[Any] = []
"""The session classes and sessions that record."""
recorded_engines: list[Engine | Connection] = []
"""The engines and connections that record outside of sessions, too."""


def records(session: Session) -> bool:
    """Return whether a session records what it writes."""
    return any(isinstance(session, target) if isinstance(target, type) else session is target for target in registered)


def is_recorded(connection: Connection) -> bool:
    """Return whether a connection is registered, or its engine, or the engine that ``execution_options()`` copied."""
    return bool(recorded_engines) and any(
        origin in recorded_engines for origin in (connection, *origins(connection.engine))
    )


def origins(engine: Any) -> Iterator[Engine]:
    """Yield an engine, the engine that ``execution_options()`` copied to make it, and so on."""
    while engine is not None:
        yield engine
        engine = getattr(engine, "_proxied", None)


def _writer_in(session: Session) -> Recorder | Flush | None:
    """Return what records the writes of a session now: its flush, or the recorder of its latest call, if any."""
    flush: Flush | None = session.info.get(INFO_KEY)
    recorders: Sequence[Recorder] = session.info.get(_RECORDERS, ())
    return recorders[-1] if recorders and recorders[-1].flush is flush else flush


def is_recording(session: Session) -> bool:
    """Return whether a recorder already records what a session now executes."""
    return isinstance(_writer_in(session), Recorder)


@contextmanager
def recording_statements(session: Session) -> Iterator[None]:
    """Record the statements that a session executes itself; its flushes are recorded elsewhere.

    If a statement fails, what it did before it failed is undone; if recording fails, the transaction is rolled back.
    """
    recorder = Recorder(session, is_direct=False)
    recorders: list[Recorder] = session.info.setdefault(_RECORDERS, [])
    recorders.append(recorder)
    try:
        yield
    except Exception:
        recorder.settle_failed()
        raise
    finally:
        recorders.remove(recorder)
        if not recorders:
            del session.info[_RECORDERS]
    try:
        recorder.settle()
        if recorded_listeners and recorder.flush is None and not recorders:
            tell_recorded_by(session)
    except BaseException:
        roll_back(session)
        raise


def session_on(connection: Connection) -> Session | None:
    """Return a session with hooks in the transaction of a connection, if any; of several, the last to begin a write."""
    found = None
    for reference in scope_of(connection).sessions:
        session = reference()
        if session is not None and session.in_transaction() and (found is None or _wrote_later(session, found)):
            found = session
    return found


def _wrote_later(session: Session, other: Session) -> bool:
    writer, other_writer = _writer_in(session), _writer_in(other)
    return writer is not None and (other_writer is None or writer.number > other_writer.number)


def has_recorder(session: Session | None, connection: Connection) -> bool:
    """Return whether to record or report what a connection executes, given the session in its transaction."""
    if session is not None and (is_recording(session) or records(session)):
        return not session.info.get(DISABLED)
    return is_recorded(connection)


def is_by_flush(session: Session, options: Mapping[str, Any]) -> bool:
    """Return whether the unit of work of a session executes a statement, which :class:`Flush` records.

    Its statements use the compiled caches of its mappers. Those that write association rows do not, and are recorded.
    """
    cache = options.get("compiled_cache")
    if cache is None:
        return False
    flush: Flush | None = session.info.get(INFO_KEY)
    if flush is None or (_RECORDERS in session.info and is_recording(session)):
        return False
    return flush.has_compiled_cache(cache)


def records_other_flush(connection: Connection, mapper: Mapper[Any]) -> bool:
    """Return whether the statements are recorded by which a session without hooks flushes objects of a mapper.

    They are not if a session with hooks is flushing objects of the same mapper on the connection.
    """
    session = session_on(connection)
    flush: Flush | None = None if session is None else session.info.get(INFO_KEY)
    return has_recorder(session, connection) and not (flush is not None and flush.writes_objects_of(mapper))


def recorder_of(session: Session | None, source: Source) -> Recorder:
    """Return the recorder of a statement that a connection executes.

    A flush records the rows that it has written before, since the statement may change them.

    :param source: the table that the statement writes
    """
    if session is None:
        return Recorder(None, is_direct=True)
    writer = _writer_in(session)
    flush: Flush | None = session.info.get(INFO_KEY)
    if flush is not None and flush.is_writing:
        flush.record_moved()
        if not (isinstance(source, TrackedTable) and source.is_association):
            flush.record_early()
    return writer if isinstance(writer, Recorder) else Recorder(session, is_direct=True)
