"""What may a flush write in addition to its objects? The rows that listeners, cascades and column defaults write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnDefault, Table
from sqlalchemy.orm import (
    Mapper,
    Session,
)

_SIDE_WRITES: Final = "sqlaudit_side_writes"
_UNIT_OF_WORK: Final = (
    "before_insert",
    "after_insert",
    "before_update",
    "after_update",
    "before_delete",
    "after_delete",
)


def chooses_connections(session: Session) -> bool:
    """Return whether a session may use several connections in one transaction."""
    own = vars(session)
    return (
        type(session).get_bind is not Session.get_bind
        or bool(own.get("binds") or own.get("_Session__binds"))  # the second name is SQLAlchemy 2.0's
        or "get_bind" in own
        or session.connection_callable is not None
    )


def has_other_listeners(target: Mapper[Any] | Session, names: Iterable[str]) -> bool:
    """Return whether listeners other than sqlaudit's listen to events of a mapper or a session.

    :param names: the names of the events
    """
    for name in names:
        for listener in getattr(target.dispatch, name):
            if not (getattr(listener, "__module__", None) or "").startswith("sqlaudit."):
                return True
    return False


@dataclass(frozen=True, slots=True)
class _SideWrites:
    """What a flush may write because it writes an object of a mapper.

    :ivar mappers: this mapper, and those of related objects that lose their reference or are deleted by cascade
    :ivar default: True if a column default of theirs takes the execution context, whose connection can write
    :ivar generation: the generation in which this was found
    """

    mappers: frozenset[Mapper[Any]]
    default: bool
    generation: int


def may_write_more(mapper: Mapper[Any]) -> bool:
    """Return whether a listener or a column default may execute statements while a flush writes a mapper's objects."""
    known: _SideWrites | None = mapper.class_manager.info.get(_SIDE_WRITES)
    if known is None or known.generation != _generation[0]:
        known = mapper.class_manager.info[_SIDE_WRITES] = _side_writes_of(mapper)
    return known.default or any(has_other_listeners(other, _UNIT_OF_WORK) for other in known.mappers)


_generation: Final = [0]


def forget_side_writes() -> None:
    """Forget what flushes may write, since a class got columns or relationships."""
    _generation[0] += 1


def _side_writes_of(mapper: Mapper[Any]) -> _SideWrites:
    reached: dict[Mapper[Any], bool] = {}
    waiting = [(mapper, True)]
    while waiting:
        base, is_deleted = waiting.pop()
        for descendant in base.self_and_descendants:
            if descendant not in reached or (is_deleted and not reached[descendant]):
                reached[descendant] = is_deleted
                if is_deleted:
                    waiting += [
                        (prop.mapper, prop.cascade.delete) for prop in descendant.relationships if not prop.viewonly
                    ]
    columns = {
        column
        for reached_mapper in reached
        for table in reached_mapper.tables
        if isinstance(table, Table)
        for column in table.c
    }
    writes = any(_takes_execution(default) for column in columns for default in (column.default, column.onupdate))
    return _SideWrites(frozenset(reached), writes, _generation[0])


def _takes_execution(default: Any) -> bool:
    """Return whether a default takes the execution context; SQLAlchemy wraps a function without arguments."""
    function = default.arg if getattr(default, "is_callable", False) else None
    return function is not None and getattr(function, "__globals__", {}).get("__name__") != ColumnDefault.__module__
