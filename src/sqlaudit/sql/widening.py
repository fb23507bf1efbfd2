"""Which type holds both the old and the new values of a column? History is widened, and never narrowed."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, cast

from sqlalchemy import (
    ARRAY,
    JSON,
    REAL,
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
    String,
    Text,
    Time,
    Uuid,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import CHAR, TypeEngine

from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.fitting import is_double, range_of
from sqlaudit.sql.keys import BYTES, stored_type

_Type = TypeEngine[Any]
_NUMBERS: Final = (Integer, Numeric, Boolean)


def wide_enough(existing: _Type, wanted: _Type, dialect: Dialect) -> _Type | None:
    """Return a type for a column of history that holds every value of two types.

    :param existing: the type that the column has, as reflected
    :param wanted: the new type of the live column
    :return: ``None`` if the existing type does
    """
    old, new = _stored_as(existing, dialect), _stored_as(wanted, dialect)
    if not TRAITS[dialect.name].has_typed_columns and _sqlite_holds(old, new):
        return None
    if not TRAITS[dialect.name].has_typed_columns and isinstance(old, Float) and isinstance(new, _NUMBERS):
        return Numeric()  # keeps each number as it is
    if TRAITS[dialect.name].compares_same_types_only and isinstance(old, Boolean) != isinstance(new, Boolean):
        return None if isinstance(old, Text) else Text()  # PostgreSQL has no implicit cast to a number
    if becomes_utc(existing, wanted, dialect):
        return postgresql.TIMESTAMP(timezone=bool(getattr(new, "timezone", False)))
    if dialect.name in MYSQL and _is_of_bytes(old, new) != _is_of_bytes(new, old):
        return None if isinstance(old, mysql.LONGBLOB) else mysql.LONGBLOB()  # some bytes are no valid text
    if _holds(old, new):
        return None
    if _holds(new, old):
        return wanted
    both = _common_type(old, new)
    if both is not None:
        return both
    if TRAITS[dialect.name].limits_bytes:
        return None if isinstance(old, mysql.LONGTEXT) else mysql.LONGTEXT()
    return Text()  # every database converts every value to text


def becomes_utc(existing: _Type, wanted: _Type, dialect: Dialect) -> bool:
    """Return whether an instant gets or loses a time zone, which PostgreSQL would take from the session."""
    old, new = _stored_as(existing, dialect), _stored_as(wanted, dialect)
    if dialect.name != "postgresql" or not isinstance(old, (Date, DateTime)) or not isinstance(new, DateTime):
        return False
    return bool(getattr(old, "timezone", False)) != bool(new.timezone)


def is_same_kind(existing: _Type, wanted: _Type, dialect: Dialect) -> bool:
    """Return whether keys of one type convert exactly to the other type, and are found again as such."""
    old, new = _stored_as(existing, dialect), _stored_as(wanted, dialect)
    if isinstance(new, postgresql.ENUM):
        return _holds(new, old)
    if TRAITS[dialect.name].pads_char and isinstance(new, CHAR) and not isinstance(old, CHAR):
        return False  # CHAR pads keys with blanks
    return bool(_kind_of_key(old) == _kind_of_key(new))


def _kind_of_key(type_: Any) -> Any:
    kinds = (postgresql.CITEXT, Boolean, Float, (Integer, Numeric), String, Uuid, DateTime, Date, Time, BYTES)
    kind = next((kind for kind in kinds if isinstance(type_, kind)), type(type_))
    return kind, kind is DateTime and bool(type_.timezone)


def _stored_as(type_: _Type, dialect: Dialect) -> _Type:
    """Return the type by which a database stores a type."""
    stored = stored_type(type_, dialect)
    if isinstance(stored, Enum):
        return stored if isinstance(stored, (mysql.ENUM, postgresql.ENUM)) else String(stored.length)
    return _stored_by_mysql(stored) if dialect.name in MYSQL else stored


def _stored_by_mysql(type_: Any) -> _Type:
    """Return a type with the limits that MariaDB and MySQL give it by default."""
    name = type(type_).__name__.upper()
    if name in ("TEXT", "UNICODETEXT"):
        return mysql.TEXT(type_.length or 2**16)
    if name in ("BLOB", "LARGEBINARY"):
        return LargeBinary(type_.length or 2**16)
    if isinstance(type_, Float):
        return Double() if is_double(type_) else REAL()
    if isinstance(type_, Numeric) and type_.precision is None:
        return Numeric(10, 0)
    if isinstance(type_, (DateTime, Time)) and not hasattr(type_, "fsp"):
        return mysql.DATETIME() if isinstance(type_, DateTime) else mysql.TIME()
    return cast("_Type", type_)


def _is_of_bytes(type_: Any, other: Any) -> bool:
    """Return whether a type of MariaDB holds bytes. BIT does, compared with any type but an integer or another BIT."""
    return isinstance(type_, BYTES) or (isinstance(type_, mysql.BIT) and not isinstance(other, (Integer, mysql.BIT)))


def _sqlite_holds(old: Any, new: Any) -> bool:
    """Return whether a SQLite column can keep its type and hold all values: Alembic's batch mode would cast them."""
    if isinstance(new, (Date, DateTime, Time)) or any(isinstance(type_, BYTES) for type_ in (old, new)):
        return True
    if isinstance(old, String):
        return not isinstance(new, String)
    return isinstance(old, _NUMBERS) and not isinstance(old, Float) and isinstance(new, (*_NUMBERS, Float))


# --- does one type hold all values of another? -------------------------------------------------------------------


def _holds(type_: _Type, other: _Type) -> bool:
    for kind, holds in _RULES:
        if isinstance(type_, kind):
            return holds(type_, other)
    return isinstance(other, type(type_))


def _enum_holds(type_: Any, other: _Type) -> bool:
    if not isinstance(other, Enum):
        return False
    # PostgreSQL's ENUM has a name, and ALTER TYPE adds values to it.
    if isinstance(type_, postgresql.ENUM):
        return type_.name == other.name
    return set(other.enums) <= set(type_.enums)


def _set_holds(type_: Any, other: _Type) -> bool:
    return isinstance(other, mysql.SET) and set(other.values) <= set(type_.values)


def _text_holds(type_: Any, other: _Type) -> bool:
    if isinstance(type_, CHAR) and not isinstance(other, (CHAR, Uuid)):
        return False  # CHAR pads texts with blanks
    return _length(type_) >= _text_length(other)


def _number_holds(type_: Any, other: _Type) -> bool:
    if isinstance(other, Float) or not isinstance(other, (Numeric, Integer, Boolean)):
        return False
    (digits, scale), (other_digits, other_scale) = _digits(type_), _digits(other)
    return digits >= other_digits and scale >= other_scale


def _float_holds(type_: Any, other: _Type) -> bool:
    if isinstance(other, Float):
        return _bits(type_) >= _bits(other)
    return isinstance(other, Integer) and _digits(other)[0] <= (10 if _bits(type_) > 24 else 5)


def _integer_holds(type_: Any, other: _Type) -> bool:
    if not isinstance(other, (Integer, Boolean, mysql.BIT)):
        return False
    (low, high), (other_low, other_high) = range_of(type_), range_of(other)
    return low <= other_low and high >= other_high


def _bits_hold(type_: Any, other: Any) -> bool:
    if isinstance(type_, mysql.BIT):
        return isinstance(other, mysql.BIT) and range_of(type_) >= range_of(other)
    if not isinstance(other, postgresql.BIT):
        return False
    return _length(type_) >= _length(other) if type_.varying else not other.varying and type_.length == other.length


def _json_holds(type_: Any, other: _Type) -> bool:
    """Return whether a JSON type holds another type: PostgreSQL's JSONB loses the order of keys, and repeated keys."""
    return isinstance(other, JSON) and not (
        isinstance(type_, postgresql.JSONB) and not isinstance(other, postgresql.JSONB)
    )


def _datetime_holds(type_: Any, other: _Type) -> bool:
    if isinstance(type_, mysql.TIMESTAMP) and not isinstance(other, mysql.TIMESTAMP):
        return False  # TIMESTAMP begins in 1970
    if isinstance(other, DateTime):
        return _fraction(type_) >= _fraction(other) and bool(type_.timezone) == bool(other.timezone)
    return isinstance(other, Date) and not type_.timezone


def _time_holds(type_: Any, other: _Type) -> bool:
    return isinstance(other, Time) and _fraction(type_) >= _fraction(other)


def _bytes_hold(type_: Any, other: _Type) -> bool:
    return isinstance(other, BYTES) and _length(type_) >= _length(other)


def _array_holds(type_: Any, other: _Type) -> bool:
    if not isinstance(other, ARRAY) or isinstance(type_.item_type, String) != isinstance(other.item_type, String):
        return False
    return _holds(type_.item_type, other.item_type)


_RULES: Final[tuple[tuple[Any, Callable[[Any, Any], bool]], ...]] = (
    (Enum, _enum_holds),
    (mysql.SET, _set_holds),
    (String, _text_holds),
    (Float, _float_holds),
    (Numeric, _number_holds),
    (Integer, _integer_holds),
    (DateTime, _datetime_holds),
    (Time, _time_holds),
    (BYTES, _bytes_hold),
    ((mysql.BIT, postgresql.BIT), _bits_hold),
    (JSON, _json_holds),
    (ARRAY, _array_holds),
)


# --- which type holds both? --------------------------------------------------------------------------------------


def _common_type(old: Any, new: Any) -> _Type | None:
    """Return a type of the same kind that holds the values of both types, or ``None``."""
    if isinstance(old, mysql.ENUM) and isinstance(new, Enum):
        return mysql.ENUM(*dict.fromkeys((*old.enums, *new.enums)))
    if isinstance(old, mysql.SET) and isinstance(new, mysql.SET):
        return mysql.SET(*dict.fromkeys((*old.values, *new.values)))
    if all(isinstance(type_, String) and not isinstance(type_, (Enum, mysql.SET)) for type_ in (old, new)):
        length = max(_length(old), _text_length(new))
        return String(int(length), collation=old.collation) if length < 2**14 else None
    whole = (Integer, mysql.BIT)
    if isinstance(old, whole) and isinstance(new, whole):
        return BigInteger() if max(range_of(old)[1], range_of(new)[1]) < 2**63 else Numeric(20, 0)
    if isinstance(old, _NUMBERS) and isinstance(new, _NUMBERS) and not isinstance(old, Float) | isinstance(new, Float):
        digits, scale = (max(pair) for pair in zip(_digits(old), _digits(new), strict=True))
        return Numeric() if inf in (digits, scale) else Numeric(int(digits + scale), int(scale))
    if isinstance(old, postgresql.BIT) and isinstance(new, postgresql.BIT):
        return postgresql.BIT(varying=True)
    if hasattr(old, "fsp") | hasattr(new, "fsp") and all(isinstance(type_, (Date, DateTime)) for type_ in (old, new)):
        return mysql.DATETIME(fsp=max(_fraction(old), _fraction(new)))
    return None


# --- how much does a type hold? ----------------------------------------------------------------------------------


def _length(type_: Any) -> float:
    return _SIZES.get(type(type_).__name__) or getattr(type_, "length", None) or inf


_SIZES: Final = {
    **{f"TINY{kind}": 2**8 for kind in ("TEXT", "BLOB")},
    **{f"MEDIUM{kind}": 2**24 for kind in ("TEXT", "BLOB")},
    **{f"LONG{kind}": 2**32 for kind in ("TEXT", "BLOB")},
}


def _text_length(type_: Any) -> float:
    """Return the greatest length of a value's text."""
    if isinstance(type_, Enum):
        return max(map(len, type_.enums), default=0)
    if isinstance(type_, (Numeric, Integer)) and not isinstance(type_, Float):
        return sum(_digits(type_)) + 2
    if isinstance(type_, mysql.SET):
        return sum(map(len, type_.values)) + len(type_.values)
    for kind, length in ((Boolean, 5), (Uuid, 36), (DateTime, 32), (Date, 13), (Time, 21), (Float, 26)):
        if isinstance(type_, kind):
            return length
    return _length(type_) if isinstance(type_, String) else inf


def _digits(type_: Any) -> tuple[float, float]:
    """Return how many digits a number can have before and after the point."""
    if isinstance(type_, (Integer, Boolean)):
        return len(str(range_of(type_)[1])), 0
    if type_.precision is None:
        return inf, inf
    scale = type_.scale or 0
    return type_.precision - scale, scale


def _bits(type_: Any) -> int:
    if isinstance(type_, Double) or type(type_).__name__ in ("DOUBLE", "DOUBLE_PRECISION", "REAL_FLOAT"):
        return 53
    return 24 if type(type_).__name__ == "REAL" else type_.precision or 53


def _fraction(type_: Any) -> int:
    """Return how many digits the fraction of a second has: by default none on MariaDB and MySQL, else six."""
    if isinstance(type_, Date):
        return 0
    if hasattr(type_, "fsp"):
        return type_.fsp or 0
    precision: int | None = getattr(type_, "precision", None)
    return 6 if precision is None else precision
