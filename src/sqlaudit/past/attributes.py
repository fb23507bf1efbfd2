"""Which attributes do objects of the past lack? Those that need an excluded column: reading them raises."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from sqlalchemy import Column, ColumnElement
from sqlalchemy.orm import (
    ColumnProperty,
    InstanceState,
    PassiveFlag,
    RelationshipProperty,
)
from sqlalchemy.orm.base import PASSIVE_NO_RESULT
from sqlalchemy.sql import visitors

from sqlaudit.exceptions import QueryError
from sqlaudit.past.objects import instant_of_state
from sqlaudit.past.rendering import Past
from sqlaudit.tracking.tables import excluding, tracked_table


class _NotLoaded:
    """Mixin for the property of an excluded column, or one that needs one: reads of the past do not load it."""

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
    """Mixin for the attribute of a :class:`_NotLoaded` property: reading it from an object of the past raises."""

    __slots__ = ()

    def _fire_loader_callables(self, state: InstanceState[Any], key: str, passive: PassiveFlag) -> Any:
        if instant_of_state(state) is None:
            return super()._fire_loader_callables(state, key, passive)  # type: ignore[misc]  # the attribute's
        if not passive & PassiveFlag.SQL_OK:
            return PASSIVE_NO_RESULT
        raise unknown(state, key)


def unknown(state: InstanceState[Any], key: str) -> QueryError:
    """Return the error for an attribute of a past object that needs an excluded column."""
    prop = state.mapper.attrs[key]
    is_column = isinstance(prop, ColumnProperty) and isinstance(prop.columns[0], Column)
    return QueryError(
        f"{state.class_.__name__}.{key} {'is' if is_column else 'needs a column that is'} excluded from history, so "
        f"its value {instant_of_state(state)} is unknown. Read it from the live object.",
        state.obj(),
    )


def hide_if_excluded(model_class: type[Any], prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> None:
    """Let an attribute raise when it is read from a past object, if it needs an excluded column."""
    if needs_excluded(prop) and getattr(prop, "lazy", None) not in ("write_only", "dynamic"):
        add_mixin(prop, _NotLoaded)
        add_mixin(getattr(model_class, prop.key).impl, _Unknown)


def needs_excluded(prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> bool:
    """Return whether an attribute needs an excluded column, in its expression, its joins or a select it refers to."""
    if not excluding:
        return False
    parts: list[Any]
    if isinstance(prop, ColumnProperty):
        parts = [prop.columns[0]]
    else:
        target = prop.entity.selectable if prop.entity.is_aliased_class else None
        parts = [prop.primaryjoin, prop.secondaryjoin, prop.secondary, target]
    return any(_is_excluded(element) for part in parts if part is not None for element in visitors.iterate(part))


def _is_excluded(element: Any) -> bool:
    """Return whether an element of a statement is an excluded column, also of an alias or a subquery."""
    tables = ((column, tracked_table(column.table)) for column in _columns_behind(element))
    return any(tracked is not None and column.name in tracked.exclude for column, tracked in tables)


def _columns_behind(element: Any) -> Iterator[Column[Any]]:
    if isinstance(element, ColumnElement):
        yield from (column for column in element.base_columns if isinstance(column, Column))


def add_mixin(part: Any, mixin: Any) -> None:
    """Replace the class of a property or an attribute by a subclass of it with a mixin, once."""
    if not isinstance(part, mixin):
        part.__class__ = _mixed(mixin, part.__class__)


@cache
def _mixed(mixin: Any, original: Any) -> type[Any]:
    return type(original.__name__, (mixin, original), {"__slots__": (), "inherit_cache": True})
