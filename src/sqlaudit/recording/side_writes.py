"""What may be written during a flush besides its objects? What listeners, cascades and column defaults write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnDefault, Table
from sqlalchemy.orm import (
    Mapper,
    Session,
)

_WRITTEN_WITH: Final = "sqlaudit_written_with"


def chooses_connections(session: Session) -> bool:
    """Tell whether a session may have several connections in one transaction."""
    own = vars(session)
    return (
        type(session).get_bind is not Session.get_bind
        or bool(own.get("binds") or own.get("_Session__binds"))  # 2.0 has them by the second name
        or "get_bind" in own
        or session.connection_callable is not None
    )


def others_listen(mapper: Mapper[Any], names: Iterable[str]) -> bool:
    """Tell whether listeners other than sqlaudit's hear what a flush does to objects of a mapper.

    :param names: the events
    """
    for name in names:
        for listener in getattr(mapper.dispatch, name):
            if not (getattr(listener, "__module__", None) or "").startswith("sqlaudit."):
                return True
    return False


@dataclass(frozen=True, slots=True)
class _WrittenWith:
    """The mappers whose objects a flush may write because it writes one of a mapper.

    :ivar mappers: those that lose what they refer to, and those that are deleted with it
    :ivar default: whether a default of one of their columns is given the execution, by whose connection it may write
    """

    mappers: frozenset[Mapper[Any]]
    default: bool
    generation: int


def may_write_more(mapper: Mapper[Any], events: Iterable[str]) -> bool:
    """Tell whether more may be executed, by others, on the connection of a flush that writes objects of a mapper.

    :param events: those of the unit of work
    """
    known: _WrittenWith | None = mapper.class_manager.info.get(_WRITTEN_WITH)
    if known is None or known.generation != _generation[0]:
        known = mapper.class_manager.info[_WRITTEN_WITH] = _written_with(mapper)
    return known.default or any(others_listen(each, events) for each in known.mappers)


_generation: Final = [0]


def forget_written_with() -> None:
    """Look anew at what flushes may write: there are more columns or relationships than before."""
    _generation[0] += 1


def _written_with(mapper: Mapper[Any]) -> _WrittenWith:
    reached: dict[Mapper[Any], bool] = {}
    waiting = [(mapper, True)]
    while waiting:
        base, is_deleted = waiting.pop()
        for each in base.self_and_descendants:
            if each not in reached or (is_deleted and not reached[each]):
                reached[each] = is_deleted
                if is_deleted:
                    waiting += [(prop.mapper, prop.cascade.delete) for prop in each.relationships if not prop.viewonly]
    columns = {column for each in reached for table in each.tables if isinstance(table, Table) for column in table.c}
    writes = any(_takes_execution(default) for column in columns for default in (column.default, column.onupdate))
    return _WrittenWith(frozenset(reached), writes, _generation[0])


def _takes_execution(default: Any) -> bool:
    """Tell whether SQLAlchemy calls a default with the execution; it puts a function around one without arguments."""
    function = default.arg if getattr(default, "is_callable", False) else None
    return function is not None and getattr(function, "__globals__", {}).get("__name__") != ColumnDefault.__module__
