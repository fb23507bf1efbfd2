"""Who listens to the statements of a connection, and records what they write? A Recorder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, ExceptionContext, Insert, Update, UpdateBase, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sqlaudit.changes import Operation
from sqlaudit.context import get_audit_context
from sqlaudit.recording.bulk.append_only import refuse_rewriting
from sqlaudit.recording.bulk.inserts import prepare_insert
from sqlaudit.recording.bulk.keys import MAY_FAIL
from sqlaudit.recording.bulk.locking import keep_others_out, prepare_change
from sqlaudit.recording.bulk.namesakes import is_namesake, notice_namesake
from sqlaudit.recording.bulk.parsing import (
    Parameters,
    can_be_foreseen,
    is_followed,
    notice_writes_within,
    source_written,
    table_written,
    unwrapped,
    wrapped_as,
)
from sqlaudit.recording.bulk.upserts import prepare_followed_upsert
from sqlaudit.recording.bulk.writes import Write, roll_back, transactions_of
from sqlaudit.recording.capture import WriteContext
from sqlaudit.recording.changeset import changeset_of, instant_before
from sqlaudit.recording.handwritten import NOTICED, is_told_by_text, notice_sql, notice_text
from sqlaudit.recording.policy import lacking, require_context, uncaptured
from sqlaudit.recording.statements import NO_USER_FIELDS
from sqlaudit.recording.units import user_fields_of
from sqlaudit.sql.keys import Key
from sqlaudit.sql.own import WRITE
from sqlaudit.tracking.foreign_keys import FollowedTable, Source
from sqlaudit.tracking.missing import explained
from sqlaudit.tracking.models import root_of
from sqlaudit.tracking.tables import INFO_KEY, TrackedTable


class Recorder:
    """Records what the statements of a connection, or of an engine's connections, write to tracked tables.

    :param session_on: returns the session, if any, that is in a transaction on a connection
    :param is_paused: returns whether the recorder must ignore what a connection executes, given the table that it
        writes (``None`` for hand-written SQL) and the execution options
    :param waits: True to write the versions when :meth:`settle` is called, False to write them after each statement
    """

    def __init__(
        self,
        session_on: Callable[[Connection], Session | None],
        is_paused: Callable[[Connection, Any, Mapping[str, Any]], bool],
        *,
        waits: bool = False,
    ) -> None:
        self.session_on = session_on
        self.is_paused = is_paused
        self.waits = waits
        self.writes: list[Write] = []

    def listen(self, target: Engine | Connection) -> None:
        event.listen(target, "before_execute", self.before, retval=True)
        event.listen(target, "after_execute", self.after)
        if not self.waits:
            event.listen(target, "before_cursor_execute", self.before_cursor)
            event.listen(target.engine, "handle_error", self.failed)

    def remove(self, target: Engine | Connection) -> None:
        event.remove(target, "before_execute", self.before)
        event.remove(target, "after_execute", self.after)
        if not self.waits:
            event.remove(target, "before_cursor_execute", self.before_cursor)
            event.remove(target.engine, "handle_error", self.failed)

    def write_context(self, connection: Connection, began: datetime) -> WriteContext:
        changeset = changeset_of(self.session_on(connection), connection, began)
        return WriteContext(connection, changeset, get_audit_context())

    def _began(self, connection: Connection) -> datetime:
        """Return the instant before the first statement whose versions have not been written yet."""
        unrecorded = self.writes if self.waits else connection.info.get(WRITE)
        return unrecorded[0].began if unrecorded else instant_before(self.session_on(connection), connection)

    def settle_failed(self) -> None:
        """Undo what a failed statement did before it failed, and write the versions of the statements before it."""
        kept = []
        for write in self.writes:
            if write.is_rolled_back():
                write.forget()
            else:
                kept.append(write)
        self.writes = sorted(kept, key=lambda write: write.is_done)  # undoing also removes later writes
        with suppress(SQLAlchemyError):  # the database may have ended or aborted the transaction
            self.settle()

    def settle(self) -> None:
        """Write the versions of the statements that have been executed."""
        writes, self.writes = self.writes, []
        seen: set[tuple[Connection, Source, Key]] = set()
        for write in writes:
            if len(writes) > 1:
                place = write.connection, write.root
                write.inserted = [key for key in write.inserted if (*place, key) not in seen]
                seen.update((*place, key) for key in write.inserted)
            write.settle()

    # -- the events

    def before(
        self, connection: Connection, clause: Any, multiple: Any, single: Any, options: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        """Find out what a statement is about to write, and return it in a form that can be recorded.

        :raises ReadOnlyError: it writes a history table
        """
        statement = unwrapped(clause)
        if isinstance(statement, UpdateBase):
            refuse_rewriting(table_written(statement), statement, connection)
        if is_told_by_text(statement):
            if self._is_new(connection, None, options):
                notice_text(statement, connection)
        elif (
            not isinstance(statement, UpdateBase)
            or (source := source_written(statement)) is None
            or (isinstance(source, FollowedTable) and not is_followed(statement, source, multiple or [single]))
        ):
            notice_writes_within(statement)
            if is_namesake(statement) and self._is_new(connection, table_written(statement), options):
                notice_namesake(statement, connection)
        elif (
            WRITE not in statement.get_execution_options()
            and not self.is_paused(connection, source.live, options)
            and _is_where_history_is(connection, source, options)
            and can_be_foreseen(statement, source)
        ):
            prepared, parameters = self._prepare(connection, statement, source, multiple or [single])
            clause = wrapped_as(clause, prepared)
            multiple = parameters if multiple else multiple
        return clause, multiple, single

    def _is_new(self, connection: Connection, table: Any, options: Mapping[str, Any]) -> bool:
        """Return whether to report here what cannot be recorded; sessions check their own statements."""
        return not options.get(NOTICED) and not self.is_paused(connection, table, options)

    def before_cursor(
        self, connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool
    ) -> None:
        """Report SQL that is given directly to the driver."""
        if context is None or context.compiled is not None or WRITE in context.execution_options:
            return
        if not self.is_paused(connection, None, {}):
            notice_sql(sql, connection)

    def after(self, connection: Connection, clause: Any, multiple: Any, single: Any, options: Any, result: Any) -> None:
        """Note what a statement has written; unless the recorder waits, write the versions."""
        statement = unwrapped(clause)
        refers = statement.get_execution_options().get(WRITE) if hasattr(statement, "table") else None
        write: Write | None = refers and refers()
        if write is not None and write.recorder is self:
            write.done(result)
            if not self.waits:
                connection.info[WRITE] = [each for each in connection.info[WRITE] if each is not write]
                try:
                    write.settle()
                except BaseException:
                    roll_back(connection)
                    raise

    def failed(self, context: ExceptionContext) -> None:
        """Undo what a statement did before it failed."""
        executed = context.execution_context
        may_fail = executed is not None and executed.execution_options.get(MAY_FAIL, False)
        if context.connection is not None and not context.is_disconnect and not may_fail:
            self._undo_unfinished(context.connection)

    def _undo_unfinished(self, connection: Connection, *, dead: bool = False) -> None:
        """Undo what failed statements did before they failed.

        :param dead: undo only writes whose statement has been garbage collected. Such a statement failed to compile,
            which fires no event. A write that is still referenced may be waiting for a column default to execute.
        """
        writes: list[Write] = connection.info.get(WRITE, [])
        unfinished = [each for each in writes if not dead or each.statement() is None]
        connection.info[WRITE] = [each for each in writes if each not in unfinished]  # undoing may fail, too
        for write in reversed(unfinished):
            if write.connection is connection and not write.is_rolled_back():
                with suppress(SQLAlchemyError):  # the database may have ended or aborted the transaction
                    write.settle()

    def _prepare(
        self, connection: Connection, clause: Any, source: Source, parameters: Parameters
    ) -> tuple[Any, Parameters]:
        """Return a statement and its parameters in the form to be executed, which can be recorded."""
        if isinstance(source, TrackedTable):
            session = self.session_on(connection)
            _require_context(source, is_flushing=session is not None and INFO_KEY in session.info)
        notice_writes_within(clause)
        if not self.waits:
            self._undo_unfinished(connection, dead=True)
        root, began = _root_of(source), self._began(connection)
        write = Write(
            recorder=self,
            began=began,
            context=partial(self.write_context, connection, began),
            connection=connection,
            root=root,
            operation=Operation(clause.__visit_name__),
            is_further=root is not source,
            parameters=parameters,
        )
        is_insert, is_one = isinstance(clause, Insert), len(parameters) == 1 and not clause._prefixes
        if self.waits:
            self.writes.append(write)
        else:
            connection.info.setdefault(WRITE, []).append(write)
        try:
            # To select its rows takes no more privileges than an UPDATE with a criterion.
            asks_no_more = isinstance(clause, Update) and bool(clause._where_criteria)
            tables = [source] if isinstance(source, TrackedTable) else []
            with explained(tables, record=True, reads_as_user=asks_no_more):
                if not (is_insert and is_one):
                    keep_others_out(connection, source)
                if not is_one:
                    write.begin()
                clause = _prepared(write, clause, source, parameters)
        finally:
            write.transactions = transactions_of(connection)  # sqlaudit's first statement may have begun them
        clause = clause.execution_options(**{WRITE: ref(write)})  # weak: the statement cache keeps the options
        write.statement = ref(clause)
        return clause, write.parameters


def _root_of(source: Source) -> Source:
    return source if isinstance(source, FollowedTable) or source.is_association else root_of(source).table


def _prepared(write: Write, clause: Any, source: Source, parameters: Parameters) -> Any:
    if not isinstance(clause, Insert):
        return prepare_change(write, clause, source, parameters)
    prepare: Any = prepare_insert if isinstance(source, TrackedTable) else prepare_followed_upsert
    return prepare(write, clause, source, parameters)


def _is_where_history_is(connection: Connection, source: Source, options: Mapping[str, Any]) -> bool:
    """Return whether a statement uses its connection's schemas, as sqlaudit's statements do; report it if not."""
    name = "schema_translate_map"
    if (options.get(name) or None) == (connection.get_execution_options().get(name) or None):
        return True
    uncaptured(
        f"A statement that writes the table {source.live.fullname!r} has a {name} of its own, and history will not "
        "show it; give the map to the engine or the connection: execution_options(schema_translate_map=…).",
        source.live,
    )
    return False


def _require_context(tracked: TrackedTable, *, is_flushing: bool) -> None:
    """Raise if a required user or reason is missing.

    :param is_flushing: True if the session is flushing: the flush has required the user of its association rows
    :raises ContextError: the user or the reason is missing
    """
    names_user = (tracked.is_association and is_flushing) or user_fields_of((tracked,)) is not NO_USER_FIELDS
    write = f"The table {tracked.live.fullname!r} is to be written"
    require_context(lacking(get_audit_context()), write, tracked.live, row_names_user=names_user)
