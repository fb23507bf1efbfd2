"""Who listens to the statements of a connection, and has what they write recorded?"""

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

from sqlaudit.absent import explained
from sqlaudit.bulk.appending import refuse_rewriting
from sqlaudit.bulk.inserts import prepare_followed_upsert, prepare_insert
from sqlaudit.bulk.keys import MAY_FAIL
from sqlaudit.bulk.locking import keep_others_out, prepare_change
from sqlaudit.bulk.namesakes import is_namesake, notice_namesake
from sqlaudit.bulk.reading import (
    Parameters,
    can_be_foreseen,
    is_followed,
    notice_writes_within,
    source_written,
    table_written,
    unwrapped,
    wrapped_as,
)
from sqlaudit.bulk.writes import Write, roll_back, transactions_of
from sqlaudit.capture import (
    Capture,
    Changeset,
    changeset_of,
    instant_before,
    lacking,
    lacks_reason,
    lacks_user,
    uncaptured,
)
from sqlaudit.changes import Operation
from sqlaudit.config import current_config
from sqlaudit.context import get_audit_context
from sqlaudit.dependents import Occasion
from sqlaudit.flush import unit_of
from sqlaudit.handwritten import NOTICED, is_told_by_text, notice_sql, notice_text
from sqlaudit.keytypes import Key
from sqlaudit.models import root_of
from sqlaudit.references import Chain, Source, Untracked
from sqlaudit.statements import NO_USER_FIELDS, WRITE, UserFields
from sqlaudit.tables import INFO_KEY, TrackedTable


class Recorder:
    """Records what the statements of a connection, or of an engine's connections, write to tracked tables.

    :param session_on: gives the session, if there is one, that is in a transaction on a connection
    :param is_paused: tells whether what a connection executes is nothing to it, by the table that it writes, which is
        not known of SQL that was written by hand, and by its execution options
    :param waits: whether it writes the versions when :meth:`settle` is called, and not after each statement
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

    def changeset(self, connection: Connection, began: datetime) -> Changeset:
        return changeset_of(self.session_on(connection), connection, began)

    def occasion(self, connection: Connection, began: datetime) -> Occasion:
        return Occasion(connection, self.changeset(connection, began), get_audit_context())

    def capture(self, connection: Connection, began: datetime, chain: Chain) -> Capture:
        return Capture(connection, self.changeset(connection, began), chain, user_fields_of(chain))

    def _began(self, connection: Connection) -> datetime:
        """Return the instant before the first of the statements whose versions have not been written yet."""
        unrecorded = self.writes if self.waits else connection.info.get(WRITE)
        return unrecorded[0].began if unrecorded else instant_before(self.session_on(connection), connection)

    def settle_failed(self) -> None:
        """Write the versions of what was executed before a statement failed, and undo what that did in part."""
        kept = []
        for write in self.writes:
            if write.is_rolled_back():
                write.forget()
            else:
                kept.append(write)
        self.writes = sorted(kept, key=lambda write: write.is_done)  # to undo takes with it what was written since
        with suppress(SQLAlchemyError):  # the database may have undone all of it, and take nothing more
            self.settle()

    def settle(self) -> None:
        """Write the versions of what has been executed."""
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
        """Find out what a statement is about to write.

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
            or (isinstance(source, Untracked) and not is_followed(statement, source, multiple or [single]))
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
        """Tell whether what cannot be recorded is to be noticed here: a session has noticed its own."""
        return not options.get(NOTICED) and not self.is_paused(connection, table, options)

    def before_cursor(
        self, connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool
    ) -> None:
        """Notice SQL that is given to the driver."""
        if context is None or context.compiled is not None or WRITE in context.execution_options:
            return
        if not self.is_paused(connection, None, {}):
            notice_sql(sql, connection)

    def after(self, connection: Connection, clause: Any, multiple: Any, single: Any, options: Any, result: Any) -> None:
        """Note what a statement has written."""
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
        """Undo what statements did that have failed.

        :param dead: whether only those that nobody holds any more: they could not even be compiled, and nobody told of
            that. Others are waiting for what a column's default executes.
        """
        writes: list[Write] = connection.info.get(WRITE, [])
        unfinished = [each for each in writes if not dead or each.statement() is None]
        connection.info[WRITE] = [each for each in writes if each not in unfinished]  # to undo them may fail, too
        for write in reversed(unfinished):
            if write.connection is connection and not write.is_rolled_back():
                with suppress(SQLAlchemyError):  # the database may have undone all of it, and take nothing more
                    write.settle()

    def _prepare(
        self, connection: Connection, clause: Any, source: Source, parameters: Parameters
    ) -> tuple[Any, Parameters]:
        """Return a statement and its parameters as they are to be executed, so that it can be recorded."""
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
            occasion=partial(self.occasion, connection, began),
            capture=partial(self.capture, connection, began),
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
            # The look for its rows needs no more than an UPDATE that has a criterion.
            asks_no_more = isinstance(clause, Update) and bool(clause._where_criteria)
            tables = [source] if isinstance(source, TrackedTable) else []
            with explained(tables, record=True, reads_as_user=asks_no_more):
                if not (is_insert and is_one):
                    keep_others_out(connection, source)
                if not is_one:
                    write.begin()
                clause = _prepared(write, clause, source, parameters)
        finally:
            write.transactions = transactions_of(connection)  # which our first statement may have begun
        clause = clause.execution_options(**{WRITE: ref(write)})  # the cache of statements keeps it
        write.statement = ref(clause)
        return clause, write.parameters


def _root_of(source: Source) -> Source:
    return source if isinstance(source, Untracked) or source.is_association else root_of(source).table


def _prepared(write: Write, clause: Any, source: Source, parameters: Parameters) -> Any:
    if not isinstance(clause, Insert):
        return prepare_change(write, clause, source, parameters)
    prepare: Any = prepare_insert if isinstance(source, TrackedTable) else prepare_followed_upsert
    return prepare(write, clause, source, parameters)


def _is_where_history_is(connection: Connection, source: Source, options: Mapping[str, Any]) -> bool:
    """Tell whether a statement is executed in the schemas of its connection, where ours are."""
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
    """See that there are a user and a reason, if they are required.

    :param is_flushing: whether the session flushes, which has asked for the user of the links of its objects
    :raises ContextError: there are not
    """
    config, context = current_config(), get_audit_context()
    write = f"The table {tracked.live.fullname!r} is to be written"
    if lacks_reason(config, context):
        raise lacking("reason", write, tracked.live)
    is_asked = tracked.is_association and is_flushing
    if not is_asked and lacks_user(config, context) and user_fields_of((tracked,)) is NO_USER_FIELDS:
        raise lacking("user", write, tracked.live)


def user_fields_of(chain: Chain) -> UserFields:
    if chain[0].is_association:
        return NO_USER_FIELDS
    root = root_of(chain[0])
    model = next((model for model in root.family() if model.chain == chain), root)
    unit = unit_of(model.mapper)
    assert unit is not None
    return unit.user_fields(current_config())
