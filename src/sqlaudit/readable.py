"""How is an old value read that its column's type reads no longer? As the database has it.

The types of a model change over the years, and its history stays: a member of an enum is gone, a class that was
pickled, a key that encrypted. One such value must not keep others from being read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from datetime import date, datetime
from functools import cache
from typing import Any, cast

from sqlalchemy import Date, Dialect, Enum
from sqlalchemy.types import NullType, TypeEngine


class _Readable:
    """Mixed into the class of a type: what makes it give a value as it is that it fails to read."""

    def _cached_result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        process = super()._cached_result_processor(dialect, coltype)  # type: ignore[misc]  # the type's own
        if isinstance(self, Date) and process is None:
            process = _as_date
        if process is None:
            return None

        def read(value: Any) -> Any:
            try:
                return process(value)
            except Exception:  # whatever a type of the user's raises
                return value

        return read

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let a copy that pickle or deepcopy makes be of the type itself, whose class can be found by its name."""
        state = {name: value for name, value in vars(self).items() if name != "_static_cache_key"}
        return _new, (type(self).__mro__[2],), state

    def _unwrapped_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        implementation = super()._unwrapped_dialect_impl(dialect)  # type: ignore[misc]  # the type's own
        if isinstance(implementation, Enum):
            implementation = copy(implementation)
            implementation.render_bind_cast = False  # history may keep an enum of PostgreSQL's as text
        return cast("TypeEngine[Any]", implementation)


def _new(type_class: Any) -> Any:
    return type_class.__new__(type_class)


def _as_date(value: Any) -> Any:
    """Return the date of a midnight, if the column was one of instants before it was one of dates."""
    if type(value) is datetime and value == datetime(value.year, value.month, value.day, tzinfo=value.tzinfo):
        return date(value.year, value.month, value.day)
    return value


def readable(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type that reads every value of history, and is in all else as the type of the live column."""
    if isinstance(type_, (NullType, _Readable)):
        return type_
    type_class: Any = type(type_)
    readable_class = _readable_class(type_class)
    made = readable_class.__new__(readable_class)
    made.__dict__.update({name: value for name, value in vars(type_).items() if name != "_static_cache_key"})
    return cast("TypeEngine[Any]", made)


@cache
def _readable_class(type_class: Any) -> Any:
    # SQLAlchemy asks a class itself for cache_ok, and Alembic renders the name of a type's class, and its module.
    own = {name: vars(type_class)[name] for name in ("__module__", "cache_ok") if name in vars(type_class)}
    return type(type_class.__name__, (_Readable, type_class), own)


def is_writable(value: Any, type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Tell whether a value of history can be given to its column's type again, which has read it or has not."""
    if value is None:
        return True
    if isinstance(type_, Enum):
        return value in (type_.enums if type_.enum_class is None else tuple(type_.enum_class))
    try:
        process = type_.dialect_impl(dialect).bind_processor(dialect)
        if process is not None:
            process(value)
    except Exception:  # whatever a type of the user's raises
        return False
    return True
