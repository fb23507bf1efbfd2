"""Can a column hold an old value again after its type has changed? Python decides, before anything is written.

The database would truncate the value, round it, or fail. SQLite does not enforce types and holds every value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from ipaddress import ip_interface
from math import inf, isfinite
from struct import pack, unpack
from typing import Any, Final
from uuid import UUID

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
    Interval,
    Numeric,
    SmallInteger,
    String,
    Time,
    Uuid,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects.postgresql.ranges import AbstractRange
from sqlalchemy.types import BINARY, TypeDecorator, TypeEngine

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import BYTES, stored_type
from sqlaudit.sql.old_values import Unread


def is_writable(value: Any, type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Return whether a column of a type can hold a value from history again.

    :param value: as the type read it, or as the driver returned it if the type failed to read it
    """
    if value is None or value is JSON.NULL:  # JSON.NULL does not pass through Python: the database copies the value
        return True
    if isinstance(value, Unread):
        return False
    if isinstance(type_, Enum):
        return value in (type_.enums if type_.enum_class is None else tuple(type_.enum_class))
    is_own = not isinstance(type_._variant_mapping.get(dialect.name, type_), TypeDecorator)
    try:
        process = type_.dialect_impl(dialect).bind_processor(dialect)
        bound = value if process is None else process(value)
        is_checked = TRAITS[dialect.name].has_typed_columns
        return not is_checked or _holds(stored_type(type_, dialect), value if is_own else bound, dialect)
    except Exception:  # a user's type may raise anything
        return False


_CHECKED_CLASSES: Final = (str, bytes, int, float, Decimal, date, datetime, time, timedelta, UUID, list, dict, set)
"""The Python types whose values are checked. Values of other types, such as a driver's own, are accepted."""


def _holds(type_: Any, value: Any, dialect: Dialect) -> bool:
    holds = next((holds for kind, holds in _RULES if isinstance(type_, kind)), None)
    return holds is None or not isinstance(value, _CHECKED_CLASSES) or holds(type_, value, dialect)


def _text(type_: Any, value: Any, dialect: Dialect) -> bool:
    if not isinstance(value, str):
        return not isinstance(value, bytes)
    if TRAITS[dialect.name].limits_bytes and (size := _SIZES.get(type(type_).__name__.upper())):
        return len(value.encode()) < size
    return len(value) <= (type_.length or inf)


def _bytes(type_: Any, value: Any, dialect: Dialect) -> bool:
    if isinstance(value, str):
        return False
    if not TRAITS[dialect.name].limits_bytes or not isinstance(value, bytes):
        return True
    if isinstance(type_, BINARY):
        return len(value) == (type_.length or 1)  # the database would pad a shorter value
    size = _SIZES.get(type(type_).__name__.upper()) if type_.length is None else type_.length + 1
    return len(value) < (size or inf)


_SIZES: Final = {
    **dict.fromkeys(("TINYTEXT", "TINYBLOB"), 2**8),
    **dict.fromkeys(("TEXT", "UNICODETEXT", "BLOB", "LARGEBINARY"), 2**16),
    **dict.fromkeys(("MEDIUMTEXT", "MEDIUMBLOB"), 2**24),
}
"""The number of bytes that is too long for a type of MariaDB and MySQL."""


def _integer(type_: Any, value: Any, dialect: Dialect) -> bool:
    if isinstance(value, str):
        value = int(value)
    if not isinstance(value, (int, float, Decimal)) or value != int(value):
        return False
    low, high = range_of(type_)
    return bool(low <= value <= high)


def range_of(type_: Any) -> tuple[int, int]:
    """Return the smallest and the largest number that an integer, boolean or bit column holds."""
    if isinstance(type_, mysql.BIT):
        return 0, 2 ** (type_.length or 1) - 1
    name = type(type_).__name__
    bits = 8 if isinstance(type_, Boolean) or name == "TINYINT" else 24 if name == "MEDIUMINT" else 32
    bits = 64 if isinstance(type_, BigInteger) else 16 if isinstance(type_, SmallInteger) else bits
    if getattr(type_, "unsigned", False):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _numeric(type_: Any, value: Any, dialect: Dialect) -> bool:
    if not isinstance(value, (str, int, float, Decimal)):
        return False
    try:
        number = Decimal(repr(value) if isinstance(value, float) else value)
    except InvalidOperation:
        return False
    if not number.is_finite():
        return TRAITS[dialect.name].has_infinity and (number.is_nan() or type_.precision is None)
    precision, scale = type_.precision, type_.scale or 0
    precision = TRAITS[dialect.name].numeric_precision if precision is None else precision
    if precision is None:
        return True
    whole, _, fraction = format(abs(number), "f").partition(".")
    return len(whole.lstrip("0")) <= precision - scale and len(fraction.rstrip("0")) <= scale


def _float(type_: Any, value: Any, dialect: Dialect) -> bool:
    if isinstance(value, (int, Decimal)):
        number = float(value)
        if Decimal(repr(number)) != value:
            return False
    elif not isinstance(value, float):
        return False
    else:
        number = value
    if not isfinite(number):
        return TRAITS[dialect.name].has_infinity
    by_default = TRAITS[dialect.name].has_double_floats and not isinstance(type_, REAL) and type_.precision is None
    if by_default or is_double(type_):
        return True
    return bool(unpack("f", pack("f", number))[0] == number or float(f"{number:.6g}") == number)


def is_double(type_: Any) -> bool:
    """Return whether a float type is declared with double precision, by its class or by more than 24 bits."""
    return isinstance(type_, (Double, mysql.DOUBLE, mysql.REAL)) or (type_.precision or 0) > 24


def _datetime(type_: Any, value: Any, dialect: Dialect) -> bool:
    if not isinstance(value, datetime):
        return isinstance(value, date)
    if isinstance(type_, mysql.TIMESTAMP) and not 1970 <= value.year <= 2038:
        return False
    return _has_fraction(type_, value.microsecond, dialect)


def _date(type_: Any, value: Any, dialect: Dialect) -> bool:
    return isinstance(value, date) and (not isinstance(value, datetime) or value.time() == time())


def _time(type_: Any, value: Any, dialect: Dialect) -> bool:
    if isinstance(value, timedelta):
        return TRAITS[dialect.name].has_durations and _has_fraction(type_, value.microseconds, dialect)
    return isinstance(value, time) and _has_fraction(type_, value.microsecond, dialect)


def _has_fraction(type_: Any, microsecond: int, dialect: Dialect) -> bool:
    """Return whether a type keeps all digits of a fraction of a second. MariaDB keeps none without a precision."""
    digits = getattr(type_, "fsp", getattr(type_, "precision", None))
    digits = TRAITS[dialect.name].fraction_digits if digits is None else digits
    return bool(microsecond % 10 ** (6 - digits) == 0)


def _uuid(type_: Any, value: Any, dialect: Dialect) -> bool:
    return isinstance(value, UUID) or UUID(value) is not None


def _bits(type_: Any, value: Any, dialect: Dialect) -> bool:
    if isinstance(type_, mysql.BIT):
        number = int.from_bytes(value, "big") if isinstance(value, bytes) else int(value)
        return number in range(range_of(type_)[1] + 1)
    if not set(value) <= {"0", "1"}:
        return False
    return len(value) <= (type_.length or inf) if type_.varying else len(value) == (type_.length or 1)


def _array(type_: Any, value: Any, dialect: Dialect) -> bool:
    item_type = stored_type(type_.item_type, dialect)
    return isinstance(value, list) and all(
        item is None or (_array(type_, item, dialect) if isinstance(item, list) else _holds(item_type, item, dialect))
        for item in value
    )


def _set(type_: Any, value: Any, dialect: Dialect) -> bool:
    return set(value.split(",") if isinstance(value, str) else value) - {""} <= set(type_.values)


def _only(*kinds: type) -> Callable[[Any, Any, Dialect], bool]:
    return lambda type_, value, dialect: isinstance(value, kinds)


_RULES: Final[Sequence[tuple[Any, Callable[[Any, Any, Dialect], bool]]]] = (
    (mysql.YEAR, lambda type_, value, dialect: 1901 <= int(value) <= 2155 or int(value) == 0),
    (mysql.SET, _set),
    (String, _text),
    (Boolean, _only(bool, int)),
    (Float, _float),
    (Numeric, _numeric),
    (Integer, _integer),
    (DateTime, _datetime),
    (Date, _date),
    (Time, _time),
    (Uuid, _uuid),
    ((Interval, postgresql.INTERVAL), _only(timedelta)),
    (AbstractRange, lambda type_, value, dialect: not isinstance(value, str)),
    (postgresql.INET, lambda type_, value, dialect: ip_interface(value) is not None),
    (postgresql.HSTORE, _only(dict)),
    ((mysql.BIT, postgresql.BIT), _bits),
    (BYTES, _bytes),
    (ARRAY, _array),
)


def hides_null(type_: TypeEngine[Any]) -> bool:
    """Return whether a value of the type may be ``None`` in Python without being NULL, as the null of JSON is."""
    is_users_own = not type(type_).__module__.startswith("sqlalchemy.")
    return isinstance(type_, JSON) or type_.should_evaluate_none or is_users_own or bool(type_._variant_mapping)
