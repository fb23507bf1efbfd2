"""How are statements heard? Four listeners of an engine hear all of them, whoever executes them.

An engine is listened to when it is registered, or when a session with hooks uses it for the first time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import CompoundSelect, Connection, Engine, ExceptionContext, Select, UpdateBase, event
from sqlalchemy.orm import FromStatement, Session

from sqlaudit.exceptions import SQLAuditError
from sqlaudit.hooks.scope import (
    has_recorder,
    is_by_flush,
    is_recorded,
    is_recording,
    origins,
    recorded_engines,
    recorder_of,
    registered,
    session_on,
)
from sqlaudit.past.pruned import refuse_pruned_reads, refuse_pruned_result
from sqlaudit.past.rendering import Past
from sqlaudit.recording.bulk.append_only import refuse_rewriting
from sqlaudit.recording.bulk.namesakes import is_namesake, report_namesake
from sqlaudit.recording.bulk.other_writes import (
    affected_rows_can_be_selected,
    report_nested_writes,
    report_replacement,
    report_untracked_write,
)
from sqlaudit.recording.bulk.parsing import Parameters, ParsedWrite, unwrapped, wrapped_as
from sqlaudit.recording.bulk.recorder import (
    can_change_versions,
    finish,
    is_where_history_is,
    undo,
    undo_unexecuted,
    write_of,
)
from sqlaudit.recording.bulk.writes import roll_back
from sqlaudit.recording.events import recorded_listeners, tell_recorded
from sqlaudit.recording.handwritten import is_known_by_text, report_sql, report_text
from sqlaudit.recording.scope import scope_of
from sqlaudit.sql.options import WRITE
from sqlaudit.tracking.catalogue import has_citus
from sqlaudit.tracking.foreign_keys import FollowedTable
from sqlaudit.tracking.maintenance_tables import with_maintenance_tables
from sqlaudit.tracking.tables import INFO_KEY, tracked_names

_log: Final = logging.getLogger(__package__)


def record_engine(target: Any) -> None:
    """Record what is executed on an engine or a connection outside of sessions, too."""
    engine = _engine_or_connection(target)
    if engine not in recorded_engines:
        recorded_engines.append(engine)
        _log.info("Recording what %r executes", engine)
        hear(engine.engine)


def forget_engine(target: Any) -> None:
    engine = _engine_or_connection(target)
    if engine in recorded_engines:
        recorded_engines.remove(engine)
        _log.info("No longer recording what %r executes", engine)
        stop_hearing()


def _engine_or_connection(target: Any) -> Engine | Connection:
    target = getattr(target, "sync_engine", None) or getattr(target, "sync_connection", None) or target
    if not isinstance(target, (Engine, Connection)):
        raise SQLAuditError(f"{target!r} does not execute statements. Give an engine or a connection.", target)
    return target


_HEARD: Final = "sqlaudit_heard"
_hearing: Final = Lock()
_heard: Final[WeakSet[Engine]] = WeakSet()
_waiting: Final[WeakSet[Engine]] = WeakSet()
"""The engines that sessions with hooks use, before anything is tracked."""


def hear(engine: Engine) -> None:
    """Listen to the statements of an engine from now on, or as soon as a table is tracked."""
    if _HEARD in vars(engine):
        return
    with _hearing:  # two threads that listen at once would leave the engine without a listener
        if not tracked_names:
            _waiting.add(engine)
        elif _HEARD not in vars(engine):
            *_, root = origins(engine)
            for name, (listener, options) in _LISTENERS.items():
                _copy_listeners(root, name)
                event.listen(root, name, listener, **options)
            for each in (engine, root):
                vars(each)[_HEARD] = True
                _heard.add(each)


def hear_waiting() -> None:
    """Listen to the engines that were used before anything was tracked."""
    for engine in list(_waiting):
        hear(engine)
    _waiting.clear()


def stop_hearing() -> None:
    """Stop listening to engines, if neither sessions nor engines are registered."""
    if registered or recorded_engines:
        return
    with _hearing:
        for engine in list(_heard):
            for name, (listener, _) in _LISTENERS.items():
                if event.contains(engine, name, listener):
                    _copy_listeners(engine, name)
                    event.remove(engine, name, listener)
            del vars(engine)[_HEARD]
        _heard.clear()
        _waiting.clear()


def _copy_listeners(engine: Engine, name: str) -> None:
    """Copy the listeners of an event before they are changed, since other threads may be calling them one by one."""
    target = engine.dialect if name == "handle_error" else engine
    listeners = getattr(target.dispatch, name).for_modify(target.dispatch)
    listeners.listeners = listeners.listeners.copy()


def _before(
    connection: Connection, clause: Any, multiple: Any, single: Any, options: Mapping[str, Any]
) -> tuple[Any, Any, Any]:
    """Find out what a statement is about to write, and return it in a form that can be recorded.

    :raises ReadOnlyError: it writes a history table
    """
    unchanged = clause, multiple, single
    if isinstance(clause, Past):
        has_citus(connection)  # how the statement is rendered depends on it
    if WRITE in options or isinstance(clause, (Select, CompoundSelect)):  # their CTEs are known once compiled
        return unchanged
    session = session_on(connection)
    if session is not None and is_by_flush(session, options):
        return unchanged
    statement = unwrapped(clause)
    if not isinstance(statement, UpdateBase):
        if is_known_by_text(statement) and has_recorder(session, connection):
            report_text(statement, connection)
        return unchanged
    prepared = _prepared(connection, session, statement, multiple or [single], options)
    if prepared is None:
        scope_of(connection).heard.add(clause)
        return unchanged
    statement, parameters = prepared
    return wrapped_as(clause, statement), parameters if multiple else multiple, single


def _prepared(
    connection: Connection, session: Session | None, statement: Any, parameters: Parameters, options: Mapping[str, Any]
) -> tuple[Any, Parameters] | None:
    """Prepare the recording of an INSERT, UPDATE or DELETE. Return ``None`` if it cannot be recorded, or need not.

    :return: the statement and its parameters in the form to be executed
    :raises ReadOnlyError: it writes a history table
    """
    parsed = ParsedWrite(statement, parameters)
    if parsed.writes_history and (session is not None or is_recorded(connection)):
        refuse_rewriting(parsed.table, statement, connection)
    if not has_recorder(session, connection):
        return None
    source = parsed.source
    if source is None or (isinstance(source, FollowedTable) and not parsed.changes_referred_rows()):
        report_untracked_write(parsed)
        if is_namesake(parsed.table):
            report_namesake(statement, parsed.table, connection)
        return None
    if not is_where_history_is(connection, source, options) or not affected_rows_can_be_selected(parsed):
        return None
    if not can_change_versions(connection, parsed):
        return None
    return recorder_of(session, source).prepare(connection, parsed)


def _before_cursor(connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
    """Begin the write of a statement; report SQL for the driver, writing CTEs, and statements that listeners replace.

    :raises ReadOnlyError: a history table is written
    :raises PrunedError: it writes what it reads from a past that has been pruned
    """
    if context is None or WRITE in context.execution_options:
        return
    compiled, clause = context.compiled, context.invoked_statement
    if with_maintenance_tables and isinstance(clause, UpdateBase):
        refuse_pruned_reads(connection, context)
    if compiled is None:
        if has_recorder(session_on(connection), connection):
            report_sql(sql, connection)
        return
    if isinstance(clause, (UpdateBase, FromStatement)) and WRITE in clause.get_execution_options():
        if (write := write_of(clause)) is not None:
            write.begin()
        return
    ctes = clause is not None and getattr(compiled, "ctes", None)  # without a clause, the text has been reported
    is_replaced = (
        isinstance(clause, UpdateBase)
        and "compiled_cache" not in context.execution_options  # else a flush executes it, most likely
        and clause not in scope_of(connection).heard
    )
    if (ctes or is_replaced) and has_recorder(session_on(connection), connection):
        report_nested_writes([cte.element for cte in ctes or ()])
        if is_replaced:
            report_replacement(clause)


def _after(connection: Connection, clause: Any, multiple: Any, single: Any, options: Any, result: Any) -> None:
    """Note what a statement has written; write the versions if it was executed directly."""
    if with_maintenance_tables and not isinstance(clause, (Past, UpdateBase)):
        refuse_pruned_result(connection, result)  # of the past within a statement of the present
    is_prepared = isinstance(clause, (UpdateBase, FromStatement)) and WRITE in clause.get_execution_options()
    if is_prepared and (write := write_of(clause)) is not None:
        finish(write, result)
        if recorded_listeners and write.is_direct:
            _tell(connection)


def _tell(connection: Connection) -> None:
    """Tell the listeners what a statement has recorded, unless a flush or a call of a session will tell it."""
    session = session_on(connection)
    if session is None or not (INFO_KEY in session.info or is_recording(session)):
        try:
            tell_recorded(connection)
        except BaseException:
            roll_back(connection)
            raise


def _failed(context: ExceptionContext) -> None:
    """Undo what a statement did before it failed."""
    connection, executed = context.connection, context.execution_context
    if connection is None or context.is_disconnect:
        return
    if executed is None:
        undo_unexecuted(connection)
    elif WRITE not in executed.execution_options and (write := write_of(executed.invoked_statement)) is not None:
        undo(write)


_LISTENERS: Final[dict[str, tuple[Callable[..., Any], dict[str, bool]]]] = {
    "before_execute": (_before, {"retval": True}),
    "before_cursor_execute": (_before_cursor, {}),
    "after_execute": (_after, {}),
    "handle_error": (_failed, {}),
}
