"""How is an old value read that its column's type reads no longer? As the database has it.

The types of a model change over the years, and its history stays: a member of an enum is gone, a class that was
pickled, a key that encrypted. One such value must not keep others from being read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import copy
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    JSON,
    Boolean,
    Date,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    Time,
    Uuid,
)
from sqlalchemy.types import NullType, TypeEngine

from sqlaudit.keytypes import MYSQL, implementation_of

_TEXTS: Final = {
    "postgresql": (25, 1042, 1043),  # pg_type.oid of text, bpchar and varchar
    **dict.fromkeys(MYSQL, (249, 250, 251, 252, 253, 254)),  # the protocol's texts of every size, and strings
}
"""What a driver calls the types of texts."""
_DECIMAL: Final = {"postgresql": 1700}


class _Readable:
    """Mixed into the class of a type: what makes it give a value as it is that it fails to read."""

    def _cached_result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        parse = None
        if coltype in _TEXTS.get(dialect.name, ()):
            parse = _parser_of(implementation_of(cast("TypeEngine[Any]", self), dialect), dialect)
        if parse is not None and isinstance(self, Numeric):
            coltype = _DECIMAL.get(dialect.name)  # for which else there is no processor
        process = super()._cached_result_processor(dialect, coltype)  # type: ignore[misc]  # the type's own
        if isinstance(self, Date) and process is None:
            process = _as_date
        if process is None and parse is None:
            return None

        def read(value: Any) -> Any:
            try:
                parsed = parse(value) if parse is not None and isinstance(value, str) else value
                return parsed if process is None else process(parsed)
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


def _parser_of(type_: TypeEngine[Any], dialect: Dialect) -> Callable[[str], Any] | None:
    """Return what makes of a text the value that a driver gives for a type.

    History keeps a column as text that has been of a type and has become of another: '12' is the number 12 by now.
    """
    if dialect.name == "postgresql" and isinstance(type_, JSON):
        return cast("Any", dialect)._json_deserializer or json.loads
    if isinstance(type_, Uuid) and not (type_.native_uuid and dialect.supports_native_uuid):
        return None
    return next((parse for kind, parse in _PARSERS if isinstance(type_, kind)), None)


_PARSERS: Final[Sequence[tuple[type[TypeEngine[Any]], Callable[[str], Any]]]] = (
    (Integer, int),
    (Boolean, {"true": True, "false": False, "1": True, "0": False}.__getitem__),
    (Float, float),
    (Numeric, Decimal),
    (DateTime, datetime.fromisoformat),
    (Date, date.fromisoformat),
    (Time, time.fromisoformat),
    (Uuid, UUID),
    (LargeBinary, lambda text: bytes.fromhex(text.removeprefix("\\x"))),
)


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
