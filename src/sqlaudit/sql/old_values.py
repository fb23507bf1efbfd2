"""How is an old value read that its column's type reads no longer? As the database has it.

The types of a model change over the years, and its history stays: a member of an enum is gone, a class that was
pickled, a key that encrypted. One such value must not keep others from being read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Final, cast

from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    ColumnElement,
    Date,
    Dialect,
    Enum,
    Float,
    Integer,
    Numeric,
    String,
    type_coerce,
)
from sqlalchemy.types import NullType, TypeEngine

from sqlaudit.sql.keys import BYTES, MYSQL, AsStored, stored_type
from sqlaudit.sql.texts import parser_of

_TEXTS: Final = {
    "postgresql": (25, 1042, 1043),  # pg_type.oid of text, bpchar and varchar
    **dict.fromkeys(MYSQL, (249, 250, 251, 252, 253, 254)),  # the protocol's texts of every size, and strings
}
"""What a driver calls the types of texts."""
_LARGE: Final = (249, 250, 251, 252)
"""What a driver of MariaDB's and MySQL's calls TEXT and BLOB, of every size."""


class Unread(str):
    """A text that is no JSON, and not to be taken for a text in JSON."""


class _Readable:
    """Mixed into the class of a type: what makes it give a value as it is that it fails to read."""

    def _cached_result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        type_ = stored_type(cast("TypeEngine[Any]", self), dialect)
        parse = parser_of(type_, dialect) if _may_be_text(type_, coltype, dialect) else None
        is_decoded = _may_be_bytes(type_, coltype, dialect)
        if parse is not None:
            coltype = _coltype_of(type_, dialect)
        process = super()._cached_result_processor(dialect, coltype)  # type: ignore[misc]  # the type's own
        if isinstance(self, Date) and process is None:
            process = _as_date
        if process is None and parse is None and not is_decoded:
            return None

        def read(value: Any) -> Any:
            try:
                text = value.decode() if is_decoded and isinstance(value, bytes) else value
                parsed = parse(text) if parse is not None and isinstance(text, str) else text
                if process is None or (type(parsed) is Decimal and isinstance(self, Numeric) and self.asdecimal):
                    return parsed  # and not rounded, as SQLite's numbers are
                return process(parsed)
            except Exception:  # whatever a type of the user's raises
                return Unread(value) if isinstance(type_, JSON) and isinstance(value, str) else value

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


def _may_be_text(type_: TypeEngine[Any], coltype: object, dialect: Dialect) -> bool:
    """Tell whether the values of a column may be texts, though they are not by its type."""
    if dialect.name == "sqlite":
        return isinstance(type_, (Integer, Boolean, Float, Numeric))
    if dialect.name in MYSQL and isinstance(type_, BYTES):
        return False
    return coltype in _TEXTS.get(dialect.name, ())


def _may_be_bytes(type_: TypeEngine[Any], coltype: object, dialect: Dialect) -> bool:
    """Tell whether MariaDB or MySQL may keep as bytes what is a text, or a number, by now."""
    is_large = dialect.name in MYSQL and coltype in _LARGE
    return (
        is_large
        and (isinstance(type_, String) or parser_of(type_, dialect) is not None)
        and not isinstance(type_, BYTES)
    )


def _coltype_of(type_: TypeEngine[Any], dialect: Dialect) -> int | None:
    """Return what a driver calls a type of numbers, for PostgreSQL's has a processor for no other."""
    if dialect.name != "postgresql":
        return None
    item_type = type_.item_type if isinstance(type_, ARRAY) else type_
    return 701 if isinstance(item_type, Float) else 1700  # double precision and numeric


def _new(type_class: Any) -> Any:
    return type_class.__new__(type_class)


def _as_date(value: Any) -> Any:
    """Return the date of a midnight, if the column was one of instants before it was one of dates."""
    if type(value) is datetime and value == datetime(value.year, value.month, value.day, tzinfo=value.tzinfo):
        return date(value.year, value.month, value.day)
    return value


class Unrounded(AsStored):
    """A number with all digits that SQLite has of it, though its column may have had more when it was written."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return lambda value: None if value is None else Decimal(str(value))


def unrounded(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column as it is read to be written again."""
    type_ = column.type
    if not isinstance(type_, Numeric) or isinstance(type_, Float) or not type_.asdecimal:
        return column
    is_sqlalchemys = type(type_).__module__.startswith("sqlalchemy.") and "sqlite" not in type_._variant_mapping
    return type_coerce(column, readable(type_).with_variant(Unrounded(), "sqlite")) if is_sqlalchemys else column


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
