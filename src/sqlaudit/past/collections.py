"""How do dynamic and write-only relationships of past objects read? By statements as of the same instant."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy.orm import (
    InstanceState,
    Query,
    RelationshipProperty,
    Session,
    WriteOnlyCollection,
)
from sqlalchemy.orm.attributes import instance_state

from sqlaudit.past.attributes import needs_excluded, unknown
from sqlaudit.past.objects import instant_of_object, instant_of_state, refuse_change
from sqlaudit.past.rendering import TOKEN, past_statement
from sqlaudit.sql.subclassing import copied_with_class


class _PastSelect:
    """Mixin for a write-only collection: that of an object of the past selects the past, and refuses to write."""

    __slots__ = ()
    instance: Any
    unknown_key: str | None
    """The name of the relationship if it needs an excluded column."""

    def select(self) -> Any:
        statement, instant = super().select(), instant_of_object(self.instance)  # type: ignore[misc]  # the collection's
        if instant is not None and self.unknown_key is not None:
            raise unknown(instance_state(self.instance), self.unknown_key)
        return statement if instant is None else past_statement(statement, instant)

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
    """Mixin for a dynamic collection: that of an object of the past queries the past."""

    instance: Any
    unknown_key: str | None
    """The name of the relationship if it needs an excluded column."""

    def __init__(self, attribute: Any, state: InstanceState[Any]) -> None:
        super().__init__(attribute, state)  # type: ignore[call-arg]  # the collection's
        if (instant := instant_of_state(state)) is not None:
            if self.unknown_key is not None:
                raise unknown(state, self.unknown_key)
            self._execution_options = self._execution_options.union({TOKEN: instant})  # type: ignore[has-type]  # Query's

    def _generate(self, session: Session | None = None) -> Query[Any]:
        query: Query[Any] = super()._generate(session)  # type: ignore[misc]  # the collection's
        instant = instant_of_object(self.instance)
        if instant is None:
            return query
        query_class: Any = type(query)
        past: Query[Any] = copied_with_class(_past_query_class(query_class), query)
        return past.execution_options(**{TOKEN: instant})


class _WithPastStatement:
    """Mixin for a query of the past: its ``statement`` reads the past, too, also inside another statement."""

    _execution_options: Any

    @property
    def statement(self) -> Any:
        return past_statement(super().statement, self._execution_options[TOKEN])  # type: ignore[misc]  # the query's


@cache
def _past_query_class(query_class: Any) -> type[Any]:
    return type(query_class.__name__, (_WithPastStatement, query_class), {})


def read_collections_from_past(model_class: type[Any], relationship: RelationshipProperty[Any]) -> None:
    """Let the write-only and dynamic collections of past objects select the past."""
    if relationship.lazy in ("write_only", "dynamic"):
        implementation = getattr(model_class, relationship.key).impl
        collection = implementation.query_class
        if not issubclass(collection, (_PastSelect, _PastQuery)):
            mixin = _PastSelect if issubclass(collection, WriteOnlyCollection) else _PastQuery
            key = relationship.key if needs_excluded(relationship) else None
            members = {"__slots__": (), "unknown_key": key}
            implementation.query_class = type(collection.__name__, (mixin, collection), members)
