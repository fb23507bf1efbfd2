"""Which attributes do objects of the past lack? Those that need an excluded column: reading them raises."""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import Column
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
from sqlaudit.tracking.tables import tracked_table


class _NotLoaded:
    """Mixin for the property of an excluded column, or a relationship by one: reads of the past do not load it."""

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
    uses_objects: bool

    def _fire_loader_callables(self, state: InstanceState[Any], key: str, passive: PassiveFlag) -> Any:
        instant = instant_of_state(state)
        if instant is None:
            return super()._fire_loader_callables(state, key, passive)  # type: ignore[misc]  # the attribute's
        if not passive & PassiveFlag.SQL_OK:
            return PASSIVE_NO_RESULT
        reason = "needs a column that is" if self.uses_objects else "is"
        raise QueryError(
            f"{state.class_.__name__}.{key} {reason} excluded from history, and nothing is known of it {instant}; "
            "read it from the live object.",
            state.obj(),
        )


def hide_if_excluded(model_class: type[Any], prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> None:
    """Let an attribute raise when it is read from a past object, if it needs an excluded column."""
    if _is_unknown(prop):
        add_mixin(prop, _NotLoaded)
        add_mixin(getattr(model_class, prop.key).impl, _Unknown)


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


def add_mixin(part: Any, mixin: Any) -> None:
    """Replace the class of a property or an attribute by a subclass of it with a mixin, once."""
    if not isinstance(part, mixin):
        part.__class__ = _mixed(mixin, part.__class__)


@cache
def _mixed(mixin: Any, original: Any) -> type[Any]:
    return type(original.__name__, (mixin, original), {"__slots__": (), "inherit_cache": True})
