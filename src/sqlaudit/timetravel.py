"""What did it look like then? Reads as of an instant, of single statements and of whole sessions.

The objects that a past read gives carry the instant as their identity token (:mod:`sqlaudit.instant`): in the session
they are distinct from the live ones, and whatever they load later is read as of the same instant. How SQL reads the
past tells :mod:`sqlaudit.past`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Concatenate, Final, NoReturn, ParamSpec, Protocol, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Engine,
    Executable,
    Result,
    Select,
    Sequence,
    Table,
    UpdateBase,
    event,
    false,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import ORMExecuteState, Session, aliased, scoped_session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.lambdas import StatementLambdaElement
from sqlalchemy.types import TypeDecorator

from sqlaudit.absent import explained
from sqlaudit.arguments import checked_range
from sqlaudit.begun import check_beginnings
from sqlaudit.changesets import instant_of_changeset
from sqlaudit.exceptions import QueryError, ReadOnlyError
from sqlaudit.history import history_of
from sqlaudit.instant import (
    TOKEN,
    Instant,
    as_of_instant,
    instant_from,
    instant_of_state,
    instant_of_statement,
    is_unchanged_past,
)
from sqlaudit.keytypes import implementation_of
from sqlaudit.models import tracked_model_of
from sqlaudit.past import BeforeBaseline, Past, Untracked, as_past, shorten_path, whose_objects_stay
from sqlaudit.period import UTCDateTime, as_utc, was_valid
from sqlaudit.tables import tracked_tables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
else:
    try:
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
    except ImportError:  # without greenlet there are none, and nothing is an instance of ()
        AsyncConnection = AsyncEngine = AsyncSession = async_scoped_session = ()

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
_CHANGESETS: Final = "sqlaudit_changesets"

# --- the type of select(Customer), which differs between SQLAlchemy 2.0 and 2.1 ---------------------------------

MYPY = False  # mypy takes it for true: it can copy the type of a function; pyright cannot, but infers what we return


class AsOf(Protocol[R_co]):
    def __call__(
        self,
        when: datetime | UUID | str,
        *,
        untracked: Untracked = "raise",
        before_baseline: BeforeBaseline = "absent",
    ) -> R_co: ...


def _typed_like(
    function: Callable[[M], R],
) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[Concatenate[M, P], R]]:
    return lambda given: given


def _giving(function: Callable[[M], R]) -> Callable[[Callable[..., Any]], Callable[[Any, Any, M], AsOf[R]]]:
    return lambda given: given


# --- statements -------------------------------------------------------------------------------------------------

if MYPY:

    @_typed_like(select)
    def as_of(
        model_class: type[Any],
        when: datetime | UUID | str,
        *,
        untracked: Untracked = "raise",
        before_baseline: BeforeBaseline = "absent",
    ) -> Any: ...

    class AsOfMethod:
        @_giving(select)
        def __get__(self, instance: object, owner: Any) -> Any: ...

else:

    def as_of(
        model_class: type[M],
        when: datetime | UUID | str,
        *,
        untracked: Untracked = "raise",
        before_baseline: BeforeBaseline = "absent",
    ):
        """Return ``select(model_class)`` as of an instant.

        It composes like any select and runs in a session with hooks, sync or async. The objects are as they were
        then, distinct from the live ones, and read-only: flushing a change of one raises. Whatever they load later is
        as of the same instant. In a subquery, a CTE or a union it gives columns, beside the present or another instant.

        :param when: an aware datetime, or a changeset id, also as text: the state right after that transaction. A
            naive datetime is taken as local time, with a warning; one in the future is the present, with a warning
        :param untracked: what to do with tables without history: ``"raise"``, or read them ``"live"``
        :param before_baseline: what to do if a row that may be meant was there, but its history begins later, with a
            baseline, or lacks what was before: leave it ``"absent"``, ``"warn"`` or ``"raise"``. The latter two take a
            statement more for each table. A statement that gives the key asks of that row, others of all
        :raises TrackingError: the model is not tracked
        :raises QueryError: ``when`` is neither a datetime nor a changeset id
        """
        tracked_model_of(model_class)
        return as_of_instant(select(model_class), instant_from(when, untracked, before_baseline))


def between(model_class: type[Any], start: datetime, end: datetime) -> Select[Any]:
    """Return the select of the versions whose period overlaps ``[start, end)``, in order.

    A range that ends where it begins is empty, and overlaps none.

    :param start: an aware datetime; a naive one is taken as local time, with a warning
    :param end: the same; it is not included
    :raises TrackingError: the model is not tracked
    :raises QueryError: one of them is not a datetime, or the range ends before it begins
    """
    table = tracked_model_of(model_class).root.table
    given = checked_range("The range", as_utc(start), as_utc(end))
    valid_from, valid_to = table.valid_from, table.valid_to
    statement = all_versions(model_class)
    if given["since"] == given["until"]:
        return statement.where(false())
    return statement.where(valid_from < given["until"], valid_to > given["since"], valid_from < valid_to)


def all_versions(model_class: type[Any]) -> Select[Any]:
    """Return the select of all versions of a tracked model's rows, in order.

    :raises TrackingError: the model is not tracked
    """
    table = tracked_model_of(model_class).root.table
    return select(history_of(model_class)).order_by(table.valid_from, *table.history_key, table.version)


class _UTC(FunctionElement[datetime]):
    """A column of dates or datetimes, naive ones being in UTC, to be compared with the ends of periods."""

    type = UTCDateTime()
    inherit_cache = True


@compiles(_UTC)
def _render_utc(element: _UTC, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    type_, text = implementation_of(column.type, compiler.dialect), compiler.process(column, **kw)
    if compiler.dialect.name == "postgresql" and not getattr(type_, "timezone", False):
        return f"(CAST({text} AS TIMESTAMP) AT TIME ZONE 'UTC')"
    if compiler.dialect.name == "sqlite" and isinstance(type_, Date):
        return f"({text} || ' 00:00:00.000000')"
    return text


def as_of_column(model_class: type[Any], when: Any) -> tuple[Any, ColumnElement[bool]]:
    """Return a model's versions, and the condition that they were true at another row's own time: a temporal join.

    .. code-block:: python

        customer, valid = as_of_column(Customer, Invoice.issued_at)
        select(Invoice, customer).join(customer, (customer.id == Invoice.customer_id) & valid)

    gives each invoice with the customer as it was when the invoice was issued, in one statement. With an outer join
    it gives ``None`` for a row that was not there then.

    A timestamp that Python makes while it is written, such as ``default=lambda: datetime.now(UTC)``, is not earlier
    than the versions of the same flush, and the join finds them. Others are earlier: one that your code sets before
    the flush; ``now()`` of PostgreSQL, which is the begin of the transaction; and one without fractions of a second
    or of the day (``CURRENT_TIMESTAMP`` of SQLite, ``DATETIME`` of MariaDB and MySQL, a date), which is the begin of
    its second or day. Give columns ``DATETIME(fsp=6)`` on MariaDB and MySQL.

    :param when: a column of dates or datetimes, in UTC
    :return: an alias of the model's history class, and the condition
    :raises TrackingError: the model is not tracked
    :raises QueryError: the column has no dates or datetimes
    """
    names = tracked_model_of(model_class).table.names
    column = when.__clause_element__() if hasattr(when, "__clause_element__") else when
    type_ = getattr(column, "type", None)
    if not isinstance(type_.impl_instance if isinstance(type_, TypeDecorator) else type_, (DateTime, Date)):
        raise QueryError(f"{when!r} is no column of dates or datetimes; give one, such as Invoice.issued_at.", when)
    version = aliased(history_of(model_class))
    instant = _UTC(column)
    return version, was_valid(getattr(version, names.valid_from), getattr(version, names.valid_to), instant)


# --- running them -----------------------------------------------------------------------------------------------


def instant_of(state: ORMExecuteState) -> Instant | None:
    """Return the instant that a statement is to be run as of: its own, that of whom it loads for, or its session's.

    ``None`` if it is of the present, or has been turned to the past already.
    """
    statement: Any = state.statement
    if isinstance(statement, Past) and statement._past_is_ready:
        return None
    token = state.execution_options.get(TOKEN)
    if isinstance(token, Instant) and isinstance(statement, StatementLambdaElement):
        # That is the instant of the first statement that the lambda gave; the one that it gives now knows its own.
        statement = statement._resolved
        return instant_of_statement(statement) if isinstance(statement, Past) else token
    if token is None and state.is_orm_statement and state.is_select:
        options = state.load_options
        token = options._identity_token
        for loaded_for in (options._lazy_loaded_from, options._refresh_state):
            if token is None and loaded_for is not None:
                token = instant_of_state(loaded_for)
    if isinstance(token, Instant):
        return token
    return state.session.instant if isinstance(state.session, PastSession) else None


def read_past(state: ORMExecuteState, instant: Instant) -> Result[Any]:
    """Run a statement as of an instant, in its own session and transaction.

    :raises ReadOnlyError: it writes
    """
    statement: Executable = state.statement
    if isinstance(statement, StatementLambdaElement):
        statement = statement._resolved
    if isinstance(statement, FunctionElement):
        statement = statement.select()
    if isinstance(statement, (UpdateBase, ExecutableDDLElement, Sequence)):
        raise ReadOnlyError(
            f"The past ({instant}) cannot be written; change the live rows, or restore an old state of them.", statement
        )
    if isinstance(state.session, ShardedSession):
        raise QueryError(
            "A ShardedSession cannot read the past of all shards at once; read that of one: "
            "time_travel(engine_of_the_shard, when).",
            state.session,
        )
    instant = _looked_up(state.session, instant)
    assert isinstance(instant.when, datetime)
    mapper = state.bind_mapper
    metadata = [mapper.local_table.metadata] if mapper and isinstance(mapper.local_table, Table) else []
    past = as_past(statement, instant.when, instant.rules, ready=True)
    if state.is_orm_statement:
        past = whose_objects_stay(past)
        if state.is_select and state.lazy_loaded_from is not None:
            shorten_path(past)
    if instant.rules.before_baseline != "absent":
        dialect = state.session.get_bind(**state.bind_arguments).dialect
        check_beginnings(state.session, cast(Past, past), state.parameters, dialect)
    with explained(chain.from_iterable(map(tracked_tables, metadata))):  # of which it asks if something is amiss
        return execute_within(state, past, {TOKEN: instant})


def execute_within(state: ORMExecuteState, statement: Executable, options: dict[str, Any] | None = None) -> Result[Any]:
    """Execute a statement within ``do_orm_execute``, as :meth:`ORMExecuteState.invoke_statement` does.

    That gives ``get_bind()`` an argument of its own, which a session of the user's may not take.
    """
    result: Result[Any] = state.session._execute_internal(
        statement,
        state.parameters,
        execution_options=state.local_execution_options.union(options or {}),
        bind_arguments=dict(state.bind_arguments),
        _parent_execute_state=state,
    )
    return result


def _looked_up(session: Session, instant: Instant) -> Instant:
    """Return an instant whose changeset, if it is given by one, has been looked up: once in a session."""
    if isinstance(instant.when, datetime):
        return instant
    known: dict[UUID, datetime] = session.info.setdefault(_CHANGESETS, {})
    if instant.when not in known:
        known[instant.when] = instant_of_changeset(getattr(session, "source", session), instant.when)
    return Instant(known[instant.when], instant.rules)


# --- whole sessions ---------------------------------------------------------------------------------------------


class PastSession(Session):
    """A read-only session in which every statement is as of one instant, by the connections of another session.

    :ivar instant: as of when it reads
    :ivar source: the session whose connections, and transaction, it uses
    """

    def __init__(self, source: Session, instant: Instant) -> None:
        super().__init__(expire_on_commit=False, query_cls=source._query_cls)
        self.source: Session = source.source if isinstance(source, PastSession) else source
        self.instant = instant
        self._is_over = False
        self.info.update((key, value) for key, value in source.info.items() if not str(key).startswith("sqlaudit"))
        for listener in self.source.dispatch.do_orm_execute:  # which may filter the rows of a tenant
            if listener not in list(self.dispatch.do_orm_execute):
                event.listen(self, "do_orm_execute", listener)
        event.listen(self, "do_orm_execute", _execute_in_past)
        event.listen(self, "before_flush", _refuse_flush)

    def get_bind(self, *args: Any, **kw: Any) -> Engine | Connection:
        return self.source.get_bind(*args, **kw)

    def _connection_for_bind(self, *args: Any, **kw: Any) -> Connection:
        if self._is_over:
            raise QueryError(
                f"The time travel is over; what is to be read {self.instant} must be read inside it.", self
            )
        return self.source._connection_for_bind(*args, **kw)

    def _autoflush(self) -> None:
        if self.autoflush:
            self.source._autoflush()

    def _get_impl(self, *args: Any, **kw: Any) -> Any:
        self.instant = _looked_up(self, self.instant)
        return super()._get_impl(*args, **{**kw, TOKEN: self.instant})

    def _identity_lookup(self, *args: Any, **kw: Any) -> Any:
        loaded_for = kw.get("lazy_loaded_from")
        kw[TOKEN] = self.instant if loaded_for is None else instant_of_state(loaded_for)
        return super()._identity_lookup(*args, **kw)

    def end(self) -> None:
        """Let go of the objects, and read no more."""
        self.close()
        self._is_over = True

    def connection(self, *args: Any, **kw: Any) -> NoReturn:
        """Raise: a bare connection would read live rows."""
        raise QueryError(
            f"A connection reads live rows, and cannot be turned to the past; execute the statement in the session, "
            f"which reads {self.instant}.",
            self,
        )

    def _refuse(self, *args: Any, **kw: Any) -> NoReturn:
        raise ReadOnlyError(
            f"This session reads {self.instant} and writes nothing; change the live rows in a session of the present.",
            self,
        )

    add = add_all = delete = merge = merge_all = _refuse
    bulk_save_objects = bulk_insert_mappings = bulk_update_mappings = _refuse


def _execute_in_past(state: ORMExecuteState) -> Any:
    instant = instant_of(state)
    return None if instant is None else read_past(state, instant)


def _refuse_flush(session: PastSession, *args: object) -> None:
    changed = (obj for obj in session.dirty if not is_unchanged_past(session, instance_state(obj)))
    for obj in (*session.new, *session.deleted, *changed):
        raise ReadOnlyError(
            f"{type(obj).__name__} was changed in a session that reads {session.instant} and writes nothing; "
            "change the live object instead.",
            obj,
        )


class time_travel:
    """Give a read-only session in which every query is as of an instant, inside a ``with`` block.

    ORM and Core, joins, eager and lazy loads, subqueries, aggregates, ``get``: all of it reads the past. The session
    uses the connections and the transaction of the given one. ``async with``, given an ``AsyncSession`` or
    ``AsyncEngine``, gives an ``AsyncSession``. Writes raise; objects are detached when the block ends.

    :param session_or_engine: a session, an engine or a connection, sync or async; it needs no hooks
    :param when: an aware datetime, or a changeset id, also as text: the state right after that transaction. A naive
        datetime is taken as local time, with a warning; one in the future is the present, with a warning
    :param untracked: what to do with tables without history: ``"raise"``, or read them ``"live"``
    :param before_baseline: what to do if a row that may be meant was there, but its history begins later, with a
        baseline, or lacks what was before: leave it ``"absent"``, ``"warn"`` or ``"raise"``. The latter two take a
        statement more for each table. A statement that gives the key asks of that row, others of all
    :param text: whether to allow SQL that was written by hand, which cannot be rewritten and reads live rows
    :raises QueryError: ``when`` is neither a datetime nor a changeset id, or there is nothing to read from
    """

    def __init__(
        self,
        session_or_engine: Any,
        when: datetime | UUID | str,
        *,
        untracked: Untracked = "raise",
        before_baseline: BeforeBaseline = "absent",
        text: bool = False,
    ) -> None:
        self._instant = instant_from(when, untracked, before_baseline, text=text)
        source = session_or_engine
        if isinstance(source, (scoped_session, async_scoped_session)):
            source = source()
        self._made: Any = None
        if isinstance(source, (Engine, Connection)):
            source = self._made = Session(source)
        elif isinstance(source, (AsyncEngine, AsyncConnection)):
            source = self._made = AsyncSession(source)
        if not isinstance(source, (Session, AsyncSession)):
            raise QueryError(f"{session_or_engine!r} cannot be read; give a session or an engine.", session_or_engine)
        self._source = source
        self._past: Any = None

    def __enter__(self) -> Session:
        if not isinstance(self._source, Session):
            raise QueryError("An AsyncSession or AsyncEngine needs: async with time_travel(…).", self._source)
        past = self._past = PastSession(self._source, self._instant)
        return past

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._past.flush()  # which raises if anything was changed
        finally:
            self._past.end()
            if self._made is not None:
                self._made.close()

    async def __aenter__(self) -> AsyncSession:
        if not isinstance(self._source, AsyncSession):
            raise QueryError("A Session or Engine needs: with time_travel(…), without async.", self._source)
        past = PastSession(self._source.sync_session, self._instant)
        session = self._past = AsyncSession(sync_session_class=lambda **kw: past)  # type: ignore[arg-type]  # makes one
        return session

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                await self._past.flush()
        finally:
            await self._past.close()
            self._past.sync_session.end()
            if self._made is not None:
                await self._made.close()
