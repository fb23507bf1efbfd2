"""How is an old value read when its column's type can no longer read it? As the driver returns it.

The types of a model change over the years, but its history stays: an enum loses a member, a pickled class disappears,
an encryption key is lost. A value that cannot be read must not prevent others from being read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Any, cast

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

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import BYTES, AsStored, stored_type
from sqlaudit.sql.texts import parser_of


class Unread(str):
    """The text of a JSON column that its type failed to read, as opposed to a string within JSON."""


class _Readable:
    """Mixin for the class of a type: a value that the type fails to read is returned as it is."""

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

        if process is None and parse is not None and not is_decoded and not isinstance(type_, JSON):
            return _text_reader(parse)  # quicker: a row has many such columns

        def read(value: Any) -> Any:
            try:
                text = value.decode() if is_decoded and isinstance(value, bytes) else value
                parsed = parse(text) if parse is not None and isinstance(text, str) else text
                if process is None or (type(parsed) is Decimal and isinstance(self, Numeric) and self.asdecimal):
                    return parsed  # SQLAlchemy's processor for SQLite would round it
                return process(parsed)
            except Exception:  # a user's type may raise anything
                return Unread(value) if isinstance(type_, JSON) and isinstance(value, str) else value

        return read

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy as the original type, whose class can be imported by its name."""
        state = {name: value for name, value in vars(self).items() if name != "_static_cache_key"}
        return _new, (type(self).__mro__[2],), state

    def _unwrapped_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        implementation = super()._unwrapped_dialect_impl(dialect)  # type: ignore[misc]  # the type's own
        if isinstance(implementation, Enum):
            implementation = copy(implementation)
            implementation.render_bind_cast = False  # the history column of a PostgreSQL enum may be a text
        return cast("TypeEngine[Any]", implementation)


def _text_reader(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a function that parses a text, and returns all other values and texts that cannot be parsed."""

    def read_text(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value)
        except Exception:  # a user may have stored any text
            return value

    return read_text


def _may_be_text(type_: TypeEngine[Any], coltype: object, dialect: Dialect) -> bool:
    """Return whether the database may return texts for a column whose type is not a text."""
    traits = TRAITS[dialect.name]
    if not traits.has_typed_columns:
        return isinstance(type_, (Integer, Boolean, Float, Numeric))
    return coltype in traits.text_codes and not (traits.blob_codes and isinstance(type_, BYTES))


def _may_be_bytes(type_: TypeEngine[Any], coltype: object, dialect: Dialect) -> bool:
    """Return whether MariaDB or MySQL may return bytes for a column whose type is now a text or a number."""
    is_large = coltype in TRAITS[dialect.name].blob_codes
    return (
        is_large
        and (isinstance(type_, String) or parser_of(type_, dialect) is not None)
        and not isinstance(type_, BYTES)
    )


def _coltype_of(type_: TypeEngine[Any], dialect: Dialect) -> int | None:
    """Return the code of a number type: on PostgreSQL, SQLAlchemy's number types raise for any other code."""
    if dialect.name != "postgresql":
        return None
    item_type = type_.item_type if isinstance(type_, ARRAY) else type_
    return 701 if isinstance(item_type, Float) else 1700  # double precision and numeric


def _new(type_class: Any) -> Any:
    return type_class.__new__(type_class)


def _as_date(value: Any) -> Any:
    """Return the date of a datetime at midnight: the column may have been a DateTime before it became a Date."""
    if type(value) is datetime and value == datetime(value.year, value.month, value.day, tzinfo=value.tzinfo):
        return date(value.year, value.month, value.day)
    return value


class Unrounded(AsStored):
    """A number with all digits that SQLite stores, not rounded to the scale of the column.

    :ivar scale: the digits after the point that it has at least, as other reads of the column have
    """

    cache_ok = True

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return lambda value: None if value is None else self._number(Decimal(str(value)))

    def _number(self, number: Decimal) -> Decimal:
        exponent = number.as_tuple().exponent
        is_short = isinstance(exponent, int) and -exponent < self.scale
        return Decimal(f"{number:.{self.scale}f}") if is_short else number


def unrounded_column(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column for reading values that will be written again: SQLite does not round decimals."""
    type_ = column.type
    if not isinstance(type_, Numeric) or isinstance(type_, Float) or not type_.asdecimal:
        return column
    is_sqlalchemys = type(type_).__module__.startswith("sqlalchemy.") and "sqlite" not in type_._variant_mapping
    if not is_sqlalchemys:
        return column
    unrounded = Unrounded(type_.decimal_return_scale or type_.scale or 0)
    return type_coerce(column, readable_type(type_).with_variant(unrounded, "sqlite"))


def readable_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a copy of a live column's type that reads every value of history. All else is unchanged."""
    if isinstance(type_, (NullType, _Readable)):
        return type_
    type_class: Any = type(type_)
    readable_class = _readable_class(type_class)
    made = readable_class.__new__(readable_class)
    made.__dict__.update({name: value for name, value in vars(type_).items() if name != "_static_cache_key"})
    return cast("TypeEngine[Any]", made)


@cache
def _readable_class(type_class: Any) -> Any:
    # SQLAlchemy reads cache_ok from the class's own attributes; Alembic renders the class by its name and module.
    own = {name: vars(type_class)[name] for name in ("__module__", "cache_ok") if name in vars(type_class)}
    return type(type_class.__name__, (_Readable, type_class), own)
