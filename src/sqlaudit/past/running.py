"""How is a statement of the past executed? In its own session, or in a session that reads only the past."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NoReturn, cast
from uuid import UUID

from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Result,
    Sequence,
    UpdateBase,
    event,
)
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.lambdas import StatementLambdaElement

from sqlaudit.exceptions import QueryError, ReadOnlyError
from sqlaudit.past.baselines import check_for_unknown_rows
from sqlaudit.past.erased import ERASED_ROWS, ErasedRows
from sqlaudit.past.materialized import Copies
from sqlaudit.past.objects import instant_of_state, is_unchanged_past
from sqlaudit.past.rendering import TOKEN, Instant, Past, past_statement, shorten_path
from sqlaudit.retrieval.changesets import instant_of_changeset
from sqlaudit.tracking.maintenance_tables import with_maintenance_tables

_CHANGESETS: Final = "sqlaudit_changesets"


def instant_of(state: ORMExecuteState) -> Instant | None:
    """Return the instant of a statement: its own, that of the object for which it loads, or its session's.

    ``None`` for a statement of the present, or one that has been turned to the past already.
    """
    statement: Any = state.statement
    if isinstance(statement, StatementLambdaElement):
        statement = statement._resolved
    if isinstance(statement, Past):
        is_turned = isinstance(state.local_execution_options.get(TOKEN), Instant)
        return None if is_turned else statement._past_instant
    token = state.execution_options.get(TOKEN)
    if token is None and statement.is_select and state.is_orm_statement:
        options = state.load_options
        token = options._identity_token
        for loaded_for in (state.lazy_loaded_from, options._refresh_state):
            if token is None and loaded_for is not None:
                token = instant_of_state(loaded_for)
    if isinstance(token, Instant):
        return token
    return state.session.instant if isinstance(state.session, PastSession) else None


def turn_to_past(state: ORMExecuteState, instant: Instant) -> Result[Any] | None:
    """Let a session execute a statement as of an instant. Return its result if this function had to execute it.

    :raises ReadOnlyError: the statement writes
    :raises QueryError: the session is a ShardedSession
    """
    statement: Executable = state.statement
    if isinstance(statement, StatementLambdaElement):
        statement = statement._resolved
    is_function = isinstance(statement, FunctionElement)
    if isinstance(statement, FunctionElement):
        statement = statement.select()
    if isinstance(statement, (UpdateBase, ExecutableDDLElement, Sequence)):
        raise ReadOnlyError(
            f"A statement that reads {instant} cannot write. Change the live rows, or restore an old state of them.",
            statement,
        )
    if isinstance(state.session, ShardedSession):
        raise QueryError(
            "A ShardedSession cannot read the past of all shards at once. Read one shard: "
            "time_travel(engine_of_the_shard, when).",
            state.session,
        )
    instant = _with_changeset_instant(state.session, instant)
    assert isinstance(instant.when, datetime)
    past = statement
    slot = state.session.slot_at(instant.when) if isinstance(state.session, PastSession) else None
    if slot is not None or not isinstance(past, Past) or past._past_instant is not instant:
        past = past_statement(past, instant, slot)
        if state.is_orm_statement and state.is_select and state.lazy_loaded_from is not None:
            shorten_path(past)
    if instant.rules.before_baseline != "absent":
        dialect = state.session.get_bind(**state.bind_arguments).dialect
        check_for_unknown_rows(state.session, cast(Past, past), state.parameters, dialect)
    state.statement = past
    erased = {ERASED_ROWS: ErasedRows()} if state.is_orm_statement and with_maintenance_tables else {}
    state.update_execution_options(**{TOKEN: instant}, **erased)
    return execute_within(state, past) if is_function else None  # SQLAlchemy took it for a Core statement


def execute_within(state: ORMExecuteState, statement: Executable) -> Result[Any]:
    """Execute a statement within ``do_orm_execute``, as :meth:`ORMExecuteState.invoke_statement` does.

    That method passes an argument of its own to ``get_bind()``, which a user's session may not accept.
    """
    result: Result[Any] = state.session._execute_internal(
        statement,
        state.parameters,
        execution_options=state.local_execution_options,
        bind_arguments=dict(state.bind_arguments),
        _parent_execute_state=state,
    )
    return result


def _with_changeset_instant(session: Session, instant: Instant) -> Instant:
    """Return an instant with the datetime of its changeset, which a session looks up once."""
    if isinstance(instant.when, datetime):
        return instant
    known: dict[UUID, datetime] = session.info.setdefault(_CHANGESETS, {})
    if instant.when not in known:
        known[instant.when] = instant_of_changeset(getattr(session, "source", session), instant.when)
    return Instant(known[instant.when], instant.rules)


class PastSession(Session):
    """A read-only session that reads as of one instant, through the connections of another session.

    :ivar instant: the instant as of which it reads
    :ivar source: the session whose connections and transaction it uses
    :ivar copies: the copies of tables that it reads, or ``None``
    """

    def __init__(self, source: Session, instant: Instant, *, materialize: bool = False) -> None:
        super().__init__(expire_on_commit=False, query_cls=source._query_cls)
        self.source: Session = source.source if isinstance(source, PastSession) else source
        self.instant = instant
        self.copies = Copies() if materialize else None
        self._is_over = False
        self.info.update((key, value) for key, value in source.info.items() if not str(key).startswith("sqlaudit"))
        for listener in self.source.dispatch.do_orm_execute:  # it may filter the rows of a tenant
            if listener not in list(self.dispatch.do_orm_execute):
                event.listen(self, "do_orm_execute", listener)
        event.listen(self, "do_orm_execute", _execute_in_past)
        event.listen(self, "before_flush", _refuse_flush)

    def slot_at(self, when: datetime) -> int | None:
        """Return the slot of the copies that a statement as of an instant reads, or ``None`` if it reads history."""
        if self.copies is None or when != _with_changeset_instant(self, self.instant).when:
            return None
        return self.copies.slot_at(when)

    def get_bind(self, *args: Any, **kw: Any) -> Engine | Connection:
        return self.source.get_bind(*args, **kw)

    def _connection_for_bind(self, *args: Any, **kw: Any) -> Connection:
        if self._is_over:
            raise QueryError(
                f"The block of time_travel() has ended, so its session no longer reads. Read {self.instant} inside "
                "the block.",
                self,
            )
        connection = self.source._connection_for_bind(*args, **kw)
        if self.copies is not None:
            self.copies.listen_on(connection)
        return connection

    def _autoflush(self) -> None:
        if self.autoflush:
            self.source._autoflush()

    def _get_impl(self, *args: Any, **kw: Any) -> Any:
        self.instant = _with_changeset_instant(self, self.instant)
        return super()._get_impl(*args, **{**kw, TOKEN: self.instant})

    def _identity_lookup(self, *args: Any, **kw: Any) -> Any:
        loaded_for = kw.get("lazy_loaded_from")
        kw[TOKEN] = self.instant if loaded_for is None else instant_of_state(loaded_for)
        return super()._identity_lookup(*args, **kw)

    def end(self) -> None:
        """Expunge the objects, drop the copies, and refuse to read from now on."""
        try:
            self.close()
        finally:
            self._is_over = True
            if self.copies is not None:
                self.copies.end()

    def connection(self, *args: Any, **kw: Any) -> NoReturn:
        """Refuse to return a connection, which would read live rows."""
        raise QueryError(
            f"A connection reads live rows, and cannot read {self.instant}. Execute the statement in the session.",
            self,
        )

    def _refuse(self, *args: Any, **kw: Any) -> NoReturn:
        raise ReadOnlyError(
            f"This session reads {self.instant} and cannot write. Change the live rows in a session of the present.",
            self,
        )

    add = add_all = delete = merge = merge_all = _refuse
    bulk_save_objects = bulk_insert_mappings = bulk_update_mappings = _refuse


def _execute_in_past(state: ORMExecuteState) -> Any:
    instant = instant_of(state)
    return None if instant is None else turn_to_past(state, instant)


def _refuse_flush(session: PastSession, *args: object) -> None:
    changed = (obj for obj in session.dirty if not is_unchanged_past(session, instance_state(obj)))
    for obj in (*session.new, *session.deleted, *changed):
        raise ReadOnlyError(
            f"{type(obj).__name__} was changed in a session that reads {session.instant} and cannot write. Change the "
            "live object instead.",
            obj,
        )
