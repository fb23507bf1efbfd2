"""Which type holds the old values of a column, and the new ones? History is widened, and never narrowed."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Text,
    Time,
    Uuid,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import BINARY, CHAR, VARBINARY, TypeEngine

from sqlaudit.keytypes import MYSQL, implementation_of

_Type = TypeEngine[Any]


def wide_enough(existing: _Type, wanted: _Type, dialect: Dialect, *, is_key: bool = False) -> _Type | None:
    """Return a type for a column of history that holds every value of two types.

    :param existing: the type that the column has, as the database tells it
    :param wanted: the new type of the live column
    :param is_key: the column is of the key, and is compared with that of the live table
    :return: ``None``: the existing type does
    """
    old, new = _stored_as(existing, dialect), _stored_as(wanted, dialect)
    if dialect.name == "sqlite" and isinstance(new, (Date, DateTime, Time)):
        return None  # it minds no types, but Alembic's batch mode would make a number of the text of an instant
    if dialect.name == "postgresql" and not is_key and isinstance(old, Boolean) != isinstance(new, Boolean):
        return None if isinstance(old, Text) else Text()  # it makes no number of a truth
    if _holds(old, new):
        return None
    if _holds(new, old):
        return wanted
    both = _both(old, new)
    if both is not None or is_key:
        return both or wanted
    if dialect.name in MYSQL:
        return mysql.LONGBLOB() if isinstance(old, (LargeBinary, BINARY, VARBINARY)) else mysql.LONGTEXT()
    return Text()  # all values have a text, and every database gives it


def _stored_as(type_: _Type, dialect: Dialect) -> _Type:
    stored = implementation_of(type_, dialect)
    is_text = isinstance(stored, Enum) and not isinstance(stored, (mysql.ENUM, postgresql.ENUM))
    return String(stored.length) if is_text else stored  # type: ignore[attr-defined]  # Enum's


# --- does one type hold all values of another? -------------------------------------------------------------------


def _holds(one: _Type, other: _Type) -> bool:
    for kind, holds in _RULES:
        if isinstance(one, kind):
            return holds(one, other)
    return isinstance(other, type(one)) and not isinstance(one, ARRAY)


def _enum_holds(one: Any, other: _Type) -> bool:
    if not isinstance(other, Enum):
        return False
    # PostgreSQL's has a name, and gets values by its own statements.
    if isinstance(one, postgresql.ENUM):
        return one.name == other.name
    return set(other.enums) <= set(one.enums)


def _set_holds(one: Any, other: _Type) -> bool:
    return isinstance(other, mysql.SET) and set(other.values) <= set(one.values)


def _text_holds(one: Any, other: _Type) -> bool:
    if isinstance(one, CHAR) and not isinstance(other, (CHAR, Uuid)):
        return False  # which pads it
    return _length(one) >= _text_length(other)


def _number_holds(one: Any, other: _Type) -> bool:
    if isinstance(other, Float) or not isinstance(other, (Numeric, Integer, Boolean)):
        return False
    (digits, scale), (other_digits, other_scale) = _digits(one), _digits(other)
    return digits >= other_digits and scale >= other_scale


def _float_holds(one: Any, other: _Type) -> bool:
    if isinstance(other, Float):
        return _bits(one) >= _bits(other)
    return isinstance(other, Integer) and _digits(other)[0] <= (10 if _bits(one) > 24 else 5)


def _integer_holds(one: Any, other: _Type) -> bool:
    if not isinstance(other, (Integer, Boolean)):
        return False
    (low, high), (other_low, other_high) = _range(one), _range(other)
    return low <= other_low and high >= other_high


def _datetime_holds(one: Any, other: _Type) -> bool:
    if isinstance(other, DateTime):
        return _fraction(one) >= _fraction(other) and bool(one.timezone) == bool(other.timezone)
    return isinstance(other, Date) and not one.timezone


def _time_holds(one: Any, other: _Type) -> bool:
    return isinstance(other, Time) and _fraction(one) >= _fraction(other)


def _bytes_hold(one: Any, other: _Type) -> bool:
    return isinstance(other, (LargeBinary, BINARY, VARBINARY)) and _length(one) >= _length(other)


def _array_holds(one: Any, other: _Type) -> bool:
    return isinstance(other, ARRAY) and _holds(one.item_type, other.item_type)


_RULES: Final[tuple[tuple[Any, Callable[[Any, Any], bool]], ...]] = (
    (Enum, _enum_holds),
    (mysql.SET, _set_holds),
    (String, _text_holds),
    (Float, _float_holds),
    (Numeric, _number_holds),
    (Integer, _integer_holds),
    (DateTime, _datetime_holds),
    (Time, _time_holds),
    ((LargeBinary, BINARY, VARBINARY), _bytes_hold),
    (ARRAY, _array_holds),
)


# --- what holds both ---------------------------------------------------------------------------------------------


def _both(old: Any, new: Any) -> _Type | None:
    """Return a type of the same kind that holds the values of both, if there is one."""
    if isinstance(old, mysql.ENUM) and isinstance(new, Enum):
        return mysql.ENUM(*dict.fromkeys((*old.enums, *new.enums)))
    if isinstance(old, mysql.SET) and isinstance(new, mysql.SET):
        return mysql.SET(*dict.fromkeys((*old.values, *new.values)))
    if all(isinstance(each, String) and not isinstance(each, (Enum, mysql.SET)) for each in (old, new)):
        length = max(_length(old), _text_length(new))
        return String(int(length), collation=old.collation) if length < 2**14 else None
    if isinstance(old, Integer) and isinstance(new, Integer):
        low, high = (min if bound < 0 else max for bound in (-1, 1))
        needed = low(_range(old)[0], _range(new)[0]), high(_range(old)[1], _range(new)[1])
        return BigInteger() if needed[1] < 2**63 else Numeric(20, 0)
    numbers = (Numeric, Integer, Boolean)
    if (
        isinstance(old, numbers)
        and isinstance(new, numbers)
        and not any(isinstance(each, Float) for each in (old, new))
    ):
        digits, scale = (max(pair) for pair in zip(_digits(old), _digits(new), strict=True))
        return Numeric() if inf in (digits, scale) else Numeric(int(digits + scale), int(scale))
    if isinstance(old, DateTime) and isinstance(new, DateTime):
        return new
    if isinstance(old, JSON) and isinstance(new, JSON):
        return new
    return None


# --- how much is it? ---------------------------------------------------------------------------------------------


def _length(type_: Any) -> float:
    return _SIZES.get(type(type_).__name__) or getattr(type_, "length", None) or inf


_SIZES: Final = {
    **{f"TINY{kind}": 2**8 for kind in ("TEXT", "BLOB")},
    **{f"MEDIUM{kind}": 2**24 for kind in ("TEXT", "BLOB")},
    **{f"LONG{kind}": 2**32 for kind in ("TEXT", "BLOB")},
}


def _text_length(type_: Any) -> float:
    """Return how long the text of a value can be."""
    if isinstance(type_, Enum):
        return max(map(len, type_.enums), default=0)
    if isinstance(type_, (Numeric, Integer)) and not isinstance(type_, Float):
        return sum(_digits(type_)) + 2
    for kind, length in ((Boolean, 5), (Uuid, 36), (DateTime, 32), (Date, 13), (Time, 21)):
        if isinstance(type_, kind):
            return length
    return _length(type_) if isinstance(type_, String) else inf


def _digits(type_: Any) -> tuple[float, float]:
    """Return how many digits a number can have before the point, and behind it."""
    if isinstance(type_, (Integer, Boolean)):
        return len(str(_range(type_)[1])), 0
    if type_.precision is None:
        return inf, inf
    scale = type_.scale or 0
    return type_.precision - scale, scale


def _range(type_: Any) -> tuple[int, int]:
    name = type(type_).__name__
    bits = 8 if isinstance(type_, Boolean) or name == "TINYINT" else 24 if name == "MEDIUMINT" else 32
    bits = 64 if isinstance(type_, BigInteger) else 16 if isinstance(type_, SmallInteger) else bits
    if getattr(type_, "unsigned", False):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _bits(type_: Any) -> int:
    if isinstance(type_, Double) or type(type_).__name__ in ("DOUBLE", "DOUBLE_PRECISION", "REAL_FLOAT"):
        return 53
    return 24 if type(type_).__name__ == "REAL" else type_.precision or 53


def _fraction(type_: Any) -> int:
    """Return how many digits the fraction of a second has: on MariaDB none if nobody says so."""
    if hasattr(type_, "fsp"):
        return type_.fsp or 0
    precision: int | None = getattr(type_, "precision", None)
    return 6 if precision is None else precision
