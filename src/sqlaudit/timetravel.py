"""What did it look like then? Reads as of an instant.

A past read runs the very same statement on the same connection, under a copy of the dialect whose compiler renders
``FROM customers`` as ``(SELECT … FROM customers_history WHERE valid_from <= :t AND valid_to > :t) AS customers``.
The instant is a parameter and the copy is made once per dialect, so that SQLAlchemy's statement cache works.

The objects that it gives carry the instant as their identity token: in the session they are distinct from the live
ones, and whatever they load later is read as of the same instant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar, cast

from sqlalchemy import Boolean, Column, Connection, Dialect, Result, Select, Table, bindparam, null, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstanceState, ORMExecuteState, Session, defer
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sqlaudit.absent import explained
from sqlaudit.exceptions import QueryError, ReadOnlyError
from sqlaudit.models import tracked_model_of
from sqlaudit.period import OPEN_END, TICK, UTCDateTime, as_utc, was_valid
from sqlaudit.tables import TrackedTable, tracked_table, tracked_tables

E = TypeVar("E")
P = ParamSpec("P")
R = TypeVar("R")
Untracked = Literal["raise", "live"]
_PAST: Final = "sqlaudit_past"
_AS_OF: Final = "sqlaudit_as_of"
_LATEST: Final = OPEN_END - TICK  # an instant that open versions contain, for those who mean "for ever"


@dataclass(frozen=True, slots=True)
class Instant:
    """The identity token of objects that were read as of an instant."""

    when: datetime
    untracked: Untracked = "raise"

    def __str__(self) -> str:
        return f"as of {self.when.isoformat()}"


class OnlyInThePast(FunctionElement[bool]):
    """A condition that is true in a read as of an instant, and an error everywhere else."""

    type = Boolean()
    inherit_cache = True


@compiles(OnlyInThePast)
def _render_only_in_the_past(element: OnlyInThePast, compiler: SQLCompiler, **kw: Any) -> str:
    if isinstance(compiler, PastCompiler):
        return "1 = 1"
    raise QueryError(
        "A read as of an instant was run outside a session with hooks, where it would give live rows; "
        "call register_hooks() and execute it in such a session."
    )


def _typed_like(
    function: Callable[[E], R],
) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[Concatenate[E, P], R]]:
    """Give a function the result type of another: that of ``select`` differs between SQLAlchemy 2.0 and 2.1."""
    return lambda given: given


@_typed_like(select)
def as_of(model_class: type[Any], when: datetime, *, untracked: Untracked = "raise") -> Select[Any]:
    """Return ``select(model_class)`` as of an instant.

    It composes like any select and runs in a session with hooks, sync or async. The objects are as they were then,
    distinct from the live ones, and read-only: flushing a change of one raises.

    :param when: an aware datetime; a naive one is taken as local time, with a warning
    :param untracked: what to do with tables without history: ``"raise"``, or read them ``"live"``
    :raises TrackingError: the model is not tracked
    :raises QueryError: ``when`` is not a datetime
    """
    model = tracked_model_of(model_class)
    if untracked not in ("raise", "live"):
        raise QueryError(f"untracked is {untracked!r}; give 'raise' or 'live'.", untracked)
    excluded = [
        prop.key
        for prop in model.mapper.column_attrs
        if isinstance(prop.columns[0], Column) and prop.key not in model.columns
    ]
    return (
        select(model_class)
        .where(OnlyInThePast())
        .options(*(defer(getattr(model_class, name), raiseload=True) for name in excluded))
        .execution_options(identity_token=Instant(min(as_utc(when), _LATEST), untracked))
    )


# --- running it -------------------------------------------------------------------------------------------------


def instant_of(state: ORMExecuteState) -> Instant | None:
    """Return the instant that a statement is to be run as of, or ``None``: its own, or that of the object it is for."""
    token = state.execution_options.get("identity_token")
    if token is None and state.is_orm_statement and state.is_select:
        options = state.load_options
        token = options._identity_token
        if token is None and options._lazy_loaded_from is not None:
            token = options._lazy_loaded_from.identity_token
    return token if isinstance(token, Instant) else None


def read_past(state: ORMExecuteState, instant: Instant) -> Result[Any]:
    """Run a statement as of an instant, in its own session and transaction."""
    if state.load_options._autoflush:
        state.session._autoflush()  # now: what a flush writes are the live tables
    connection = state.session.connection(bind_arguments=dict(state.bind_arguments))
    state.parameters = state.parameters or {}  # which invoke_statement() adds to
    mapper = state.bind_mapper
    tables = tracked_tables(mapper.local_table.metadata) if mapper and isinstance(mapper.local_table, Table) else ()
    with explained(tables), _dialect_swapped(connection, _past_dialect(connection, instant.untracked)):
        return state.invoke_statement(
            params={_AS_OF: instant.when}, execution_options={"identity_token": instant, "autoflush": False}
        )


@contextmanager
def _dialect_swapped(connection: Connection, dialect: Dialect) -> Iterator[None]:
    before = connection.dialect
    connection.dialect = dialect
    try:
        yield
    finally:
        connection.dialect = before


def _past_dialect(connection: Connection, untracked: Untracked) -> Dialect:
    dialect = connection.dialect
    if isinstance(dialect.statement_compiler, type) and issubclass(dialect.statement_compiler, PastCompiler):
        dialect = dialect._sqlaudit_live  # type: ignore[attr-defined]  # reads that a past read makes
    past: dict[Untracked, Dialect] = dialect.__dict__.setdefault(_PAST, {})
    if untracked not in past:
        made = copy.copy(dialect)
        made.__dict__.pop(_PAST)
        made.statement_compiler = type(
            "PastCompiler",
            (PastCompiler, dialect.statement_compiler),
            {"untracked": untracked, "__module__": __name__},
        )
        made._sqlaudit_live = dialect  # type: ignore[attr-defined]
        past[untracked] = made
    return past[untracked]


class PastCompiler(SQLCompiler):
    """Renders a tracked table as its rows at the instant that the parameter names."""

    untracked: Untracked = "raise"

    def visit_table(self, table: Table, asfrom: bool = False, **kw: Any) -> str:  # type: ignore[override]
        tracked = tracked_table(table)
        if not asfrom or tracked is None or tracked.history is table:
            if asfrom and tracked is None and self.untracked == "raise":
                raise QueryError(
                    f"{table.fullname!r} has no history and cannot be read as of an instant; track it, "
                    "or read it as it is now: as_of(…, untracked='live').",
                    table,
                )
            return cast(str, super().visit_table(table, asfrom=asfrom, **kw))  # type: ignore[no-untyped-call]  # SQLAlchemy's
        rows = self._rows(tracked)
        if kw.get("from_linter"):
            kw["from_linter"].froms[table] = table.fullname
        if kw.get("enclosing_alias") is not None:
            return f"({self.process(rows, asfrom=False)})"
        return f"({self.process(rows)}){self.get_render_as_alias_suffix(self.preparer.quote(_alias_name(table)))}"  # type: ignore[no-untyped-call]  # SQLAlchemy's

    def _rows(self, tracked: TrackedTable) -> Select[Any]:
        history = tracked.history
        stored = dict(tracked.columns)
        when = bindparam(_AS_OF, type_=UTCDateTime(), unique=False)
        return select(
            *(stored[column] if column in stored else null().label(column.name) for column in tracked.live.c)
        ).where(was_valid(history.c[tracked.valid_from.key], history.c[tracked.valid_to.key], when))

    def visit_column(self, column: Any, *args: Any, **kw: Any) -> str:
        table = column.table
        rendered = super().visit_column(column, *args, **kw)
        if (
            isinstance(table, Table)
            and kw.get("include_table", True)
            and (tracked := tracked_table(table)) is not None
            and tracked.live is table
        ):
            name = super().visit_column(column, include_table=False)
            return f"{self.preparer.quote(_alias_name(table))}.{name}"
        return rendered


def _alias_name(table: Table) -> str:
    return table.name if table.schema is None else f"{table.schema}_{table.name}"


def refuse_change(state: InstanceState[Any]) -> None:
    """Raise if an object was read as of an instant.

    :raises ReadOnlyError: it was
    """
    if isinstance(state.identity_token, Instant):
        raise ReadOnlyError(
            f"{state.class_.__name__} {state.identity} {state.identity_token} is read-only; "
            "expunge or refresh it, and change the live object instead.",
            state.obj(),
        )


def refuse_changes(session: Session) -> None:
    """Raise if the session holds changes of objects that were read as of an instant.

    :raises ReadOnlyError: it does
    """
    for objects in (session.dirty, session.deleted):
        for obj in objects:
            refuse_change(instance_state(obj))
