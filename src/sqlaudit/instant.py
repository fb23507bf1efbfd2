"""Which objects are of the past? Those whose identity token is an instant: what they may do, and what they lack."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Column
from sqlalchemy.orm import (
    ColumnProperty,
    InstanceState,
    PassiveFlag,
    Query,
    RelationshipProperty,
    Session,
    WriteOnlyCollection,
)
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import PASSIVE_NO_RESULT
from sqlalchemy.sql import visitors
from sqlalchemy.sql.lambdas import PyWrapper

from sqlaudit.arguments import checked_when
from sqlaudit.config import utc_now
from sqlaudit.exceptions import QueryError, ReadOnlyError, warn_caller
from sqlaudit.past import BeforeBaseline, Past, Rules, S, Untracked, as_past, copied_as
from sqlaudit.period import OPEN_END, TICK
from sqlaudit.tables import tracked_table

TOKEN: Final = "identity_token"
"""The execution option, of SQLAlchemy's, that objects are loaded with."""
_LATEST: Final = OPEN_END - TICK  # an instant that open versions contain, for those who mean "for ever"


@dataclass(frozen=True, slots=True)
class Instant:
    """The identity token of objects that were read as of an instant.

    :ivar when: in UTC; or the id of a changeset, which a session has still to look up
    """

    when: datetime | UUID
    rules: Rules = Rules()  # noqa: RUF009  # frozen, and thus shared safely

    def __str__(self) -> str:
        return f"as of {self.when.isoformat() if isinstance(self.when, datetime) else f'changeset {self.when}'}"


def instant_from(
    when: datetime | UUID | str,
    untracked: Untracked = "raise",
    before_baseline: BeforeBaseline = "absent",
    *,
    text: bool = False,
) -> Instant:
    """Return the instant that a user means; one in the future is the present, with a warning.

    :raises QueryError: ``when`` is neither a datetime nor a changeset id, or a rule no known word
    """
    if untracked not in ("raise", "live"):
        raise QueryError(f"untracked is {untracked!r}; give 'raise' or 'live'.", untracked)
    if before_baseline not in ("absent", "warn", "raise"):
        raise QueryError(f"before_baseline is {before_baseline!r}; give 'absent', 'warn' or 'raise'.", before_baseline)
    rules = Rules(untracked, text, before_baseline)
    if isinstance(when, PyWrapper):
        raise QueryError(
            "A lambda is called once for all values of its variables, which an instant cannot be one of; make the "
            "statement before it: statement = as_of(…), lambda_stmt(lambda: statement).",
            when,
        )
    instant = checked_when(when)
    if isinstance(instant, UUID):
        return Instant(instant, rules)
    if instant > utc_now():
        warn_caller(f"{instant.isoformat()} is in the future; a read as of then gives the present.")
    return Instant(min(instant, _LATEST), rules)


def instant_of_object(obj: object) -> Instant | None:
    """Return the instant that an object was read as of; ``None`` if it is a live one."""
    return instant_of_state(instance_state(obj))


def instant_of_state(state: InstanceState[Any]) -> Instant | None:
    """Return the instant that the object of a state was read as of; ``None`` if it is a live one."""
    token = state.key[2] if state.key else None  # merge(load=False) leaves state.identity_token empty
    return token if isinstance(token, Instant) else None


def instant_of_statement(statement: Past) -> Instant:
    """Return the instant that a statement reads as of."""
    when = statement._past_changeset or statement._past_when.value
    assert when is not None
    return Instant(when, statement._past_rules)


def as_of_instant(statement: S, instant: Instant) -> S:
    """Return a statement that reads as of an instant, and whose objects are known by it."""
    return as_past(statement, instant.when, instant.rules).execution_options(**{TOKEN: instant})


# --- they are read-only -----------------------------------------------------------------------------------------


def refuse_change(state: InstanceState[Any]) -> None:
    """Raise if an object was read as of an instant.

    :raises ReadOnlyError: it was
    """
    instant = instant_of_state(state)
    if instant is not None:
        raise ReadOnlyError(
            f"{state.class_.__name__} {state.identity} {instant} is read-only; "
            "expunge or refresh it, and change the live object instead.",
            state.obj(),
        )


def is_unchanged_past(session: Session, state: InstanceState[Any], *, doomed: bool = False) -> bool:
    """Tell whether an object was read as of an instant; one that was given the values that it has is clean again.

    :param doomed: whether it is to be deleted
    :raises ReadOnlyError: it was read as of an instant, and is changed or doomed
    """
    if instant_of_state(state) is None:
        return False
    if doomed or session.is_modified(state.obj()):
        refuse_change(state)
    state._commit_all(state.dict, session.identity_map)
    return True


def refuse_changes(session: Session) -> None:
    """Raise if the session holds changes of objects that were read as of an instant.

    :raises ReadOnlyError: it does
    """
    for doomed, objects in ((False, session.dirty), (True, session.deleted)):
        for obj in objects:
            is_unchanged_past(session, instance_state(obj), doomed=doomed)


def refuse_reference(state: InstanceState[Any], value: object, *args: object) -> None:
    """Raise if an object is to refer to one of another instant, whose key it would take.

    :raises ReadOnlyError: it is
    """
    instant = None if value is None else instant_of_object(value)
    if instant is not None and instant != instant_of_state(state):
        given: InstanceState[Any] = instance_state(value)
        raise ReadOnlyError(
            f"{given.class_.__name__} {given.identity} {instant} cannot be given to a {state.class_.__name__} that is "
            "not of that instant; give the live object.",
            value,
        )


# --- they lack the columns that are never stored ----------------------------------------------------------------


class _NotLoaded:
    """A column that is never stored, or a relationship by one: no read of the past fills its attribute."""

    __slots__ = ()

    def setup(self, compile_state: Any, *args: Any, memoized_populators: dict[Any, Any], **kw: Any) -> None:
        super().setup(compile_state, *args, memoized_populators=memoized_populators, **kw)  # type: ignore[misc]  # the property's
        if _reads_past(compile_state):
            memoized_populators.pop(self, None)

    def create_row_processor(self, context: Any, *args: Any) -> None:
        if not _reads_past(context.compile_state):
            super().create_row_processor(context, *args)  # type: ignore[misc]  # the property's


def _reads_past(compile_state: Any) -> bool:
    return isinstance(getattr(compile_state, "select_statement", None), Past)


class _Unknown:
    """Its attribute, which raises on an object of the past, and says why."""

    __slots__ = ()
    uses_objects: bool

    def _fire_loader_callables(self, state: InstanceState[Any], key: str, passive: PassiveFlag) -> Any:
        instant = instant_of_state(state)
        if instant is None:
            return super()._fire_loader_callables(state, key, passive)  # type: ignore[misc]  # the attribute's
        if not passive & PassiveFlag.SQL_OK:
            return PASSIVE_NO_RESULT
        what = "needs a column that is" if self.uses_objects else "is"
        raise QueryError(
            f"{state.class_.__name__}.{key} {what} excluded from history, and nothing is known of it {instant}; "
            "read it from the live object.",
            state.obj(),
        )


def hide_if_excluded(model_class: type[Any], prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> None:
    """Let past objects have no value of what needs an excluded column: its attribute raises."""
    if _is_unknown(prop):
        mix_into(prop, _NotLoaded)
        mix_into(getattr(model_class, prop.key).impl, _Unknown)


def _is_unknown(prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> bool:
    if isinstance(prop, ColumnProperty):
        return _is_excluded(prop.columns[0])
    if prop.lazy in ("write_only", "dynamic"):
        return False
    joins = [join for join in (prop.primaryjoin, prop.secondaryjoin) if join is not None]
    return any(_is_excluded(element) for join in joins for element in visitors.iterate(join))


def _is_excluded(element: Any) -> bool:
    tracked = tracked_table(element.table) if isinstance(element, Column) else None
    return tracked is not None and element.name in tracked.exclude


def mix_into(part: Any, mixin: Any) -> None:
    """Let a part of a mapping be of a class of its own with a mixin, once."""
    if not isinstance(part, mixin):
        part.__class__ = _mixed(mixin, part.__class__)


@cache
def _mixed(mixin: Any, original: Any) -> type[Any]:
    return type(original.__name__, (mixin, original), {"__slots__": (), "inherit_cache": True})


# --- their collections that are queries -------------------------------------------------------------------------


class _PastSelect:
    """A write-only collection that, of an object of the past, selects the past and writes nothing."""

    __slots__ = ()
    instance: Any

    def select(self) -> Any:
        statement, instant = super().select(), instant_of_object(self.instance)  # type: ignore[misc]  # the collection's
        return statement if instant is None else as_of_instant(statement, instant)

    def insert(self) -> Any:
        refuse_change(instance_state(self.instance))
        return super().insert()  # type: ignore[misc]  # the collection's

    def update(self) -> Any:
        refuse_change(instance_state(self.instance))
        return super().update()  # type: ignore[misc]  # the collection's

    def delete(self) -> Any:
        refuse_change(instance_state(self.instance))
        return super().delete()  # type: ignore[misc]  # the collection's


class _PastQuery:
    """A dynamic collection that, of an object of the past, queries the past and writes nothing."""

    instance: Any

    def __init__(self, attribute: Any, state: InstanceState[Any]) -> None:
        super().__init__(attribute, state)  # type: ignore[call-arg]  # the collection's
        if (instant := instant_of_state(state)) is not None:
            self._execution_options = self._execution_options.union({TOKEN: instant})  # type: ignore[has-type]  # Query's

    def _generate(self, session: Session | None = None) -> Query[Any]:
        query: Query[Any] = super()._generate(session)  # type: ignore[misc]  # the collection's
        instant = instant_of_object(self.instance)
        if instant is None:
            return query
        query_class: Any = type(query)
        past: Query[Any] = copied_as(_past_query_class(query_class), query)
        return past.execution_options(**{TOKEN: instant})


class _WithPastStatement:
    """A query of the past whose statement is of the past, too, wherever it is put."""

    _execution_options: Any

    @property
    def statement(self) -> Any:
        return as_of_instant(super().statement, self._execution_options[TOKEN])  # type: ignore[misc]  # the query's


@cache
def _past_query_class(query_class: Any) -> type[Any]:
    return type(query_class.__name__, (_WithPastStatement, query_class), {})


def look_back_from(model_class: type[Any], relationship: RelationshipProperty[Any]) -> None:
    """Let the write-only and dynamic collections of past objects select the past."""
    if relationship.lazy in ("write_only", "dynamic"):
        implementation = getattr(model_class, relationship.key).impl
        collection = implementation.query_class
        if not issubclass(collection, (_PastSelect, _PastQuery)):
            mixin = _PastSelect if issubclass(collection, WriteOnlyCollection) else _PastQuery
            implementation.query_class = type(collection.__name__, (mixin, collection), {"__slots__": ()})
