"""How does a value get from one database into another? As the database stores it, or by its Python value.

Databases of one kind exchange values as they store them: PostgreSQL as texts, which it reads again without any loss.
Databases of two kinds exchange Python values, by the types of the columns. JSON and the labels of enums always travel
as texts. A type that the other database lacks becomes JSON or a text there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from typing import cast as cast_type

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Time,
    Uuid,
    bindparam,
    cast,
    type_coerce,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects.postgresql.ranges import AbstractRange
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.base import SchemaEventTarget
from sqlalchemy.types import CHAR, VARBINARY, TypeDecorator, TypeEngine

from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.keys import BYTES, AsConstant, AsText, raw_columns, undecorated
from sqlaudit.wire import json_value

_KEY_LENGTH: Final = 255
"""The length of a text or of bytes in a key or an index of MariaDB, if the type does not say it."""
_IN_JSON: Final = (ARRAY, AbstractRange, postgresql.HSTORE)


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """How the values of one column are copied into another database.

    :ivar column: the column that is copied
    :ivar type: the type that the column has in the other database
    :ivar reading: what a statement selects
    :ivar writing: a function that returns what an INSERT has for a parameter of a given name
    :ivar convert: a function that converts a value that was read; ``None`` if it is written as it is
    :ivar is_replaced: whether the other database has no such type, so that another one holds the values
    """

    column: Column[Any]
    type: TypeEngine[Any]
    reading: ColumnElement[Any]
    writing: Callable[[str], ColumnElement[Any]]
    convert: Callable[[Any], Any] | None = None
    is_replaced: bool = False


def are_of_one_kind(source: Dialect, target: Dialect) -> bool:
    """Return whether two databases store values alike."""
    return source.name == target.name or (source.name in MYSQL and target.name in MYSQL)


def transfer_of(
    column: Column[Any], source: Dialect, target: Dialect, *, is_indexed: bool, has_old_labels: bool = False
) -> Transfer:
    """Return how the values of a column are copied.

    :param is_indexed: whether a key or an index of the other database has the column
    :param has_old_labels: whether rows have labels of an enum that its type no longer has
    """
    below = undecorated(column.type, source)
    if isinstance(below, Enum):
        return _of_enum(column, below, source, target, is_indexed=is_indexed, has_old_labels=has_old_labels)
    if are_of_one_kind(source, target):
        return _as_stored(column, below, source, target)
    goal = undecorated(column.type, target)
    if isinstance(below, JSON) and isinstance(goal, (JSON, String)):
        return _of_json(column, target)
    return _by_python_value(column, below, source, target, is_indexed=is_indexed)


def as_any_text(transfer: Transfer, target: Dialect, *, is_indexed: bool) -> Transfer:
    """Return a transfer for texts that may be longer than those of the live column."""
    length = getattr(undecorated(transfer.column.type, target), "length", None) or _KEY_LENGTH
    return replace(transfer, type=_text(max(length, _KEY_LENGTH), target, is_indexed))


# --- databases of one kind --------------------------------------------------------------------------------------


def _as_stored(column: Column[Any], below: TypeEngine[Any], source: Dialect, target: Dialect) -> Transfer:
    type_ = _widened(below, target)
    [reading] = raw_columns([column], source)
    if isinstance(reading.type, AsConstant):  # a constant would be compiled anew for each row
        return Transfer(column, type_, type_coerce(column, AsText()), _cast_from_text(type_))
    return Transfer(column, type_, reading, _parameter(reading.type))


def _widened(type_: TypeEngine[Any], target: Dialect) -> TypeEngine[Any]:
    """Return a type that holds what the column held before it became narrower, where the database lets it."""
    if isinstance(type_, SchemaEventTarget):
        return cast_type("TypeEngine[Any]", copied_type(type_))
    if target.name != "postgresql":
        return type_
    limits: tuple[str, ...] = ()
    if isinstance(type_, String) and not isinstance(type_, CHAR):
        limits = ("length",)
    elif isinstance(type_, Numeric) and not isinstance(type_, Float):
        limits = ("precision", "scale")
    wide = copy(type_)
    for name in limits:
        setattr(wide, name, None)
    wide.__dict__.pop("_static_cache_key", None)
    return wide


def copied_type(type_: Any) -> Any:
    """Return a copy of a type that belongs to a table, such as an enum, for another table."""
    return type_.copy() if isinstance(type_, SchemaEventTarget) and hasattr(type_, "copy") else type_


# --- texts ------------------------------------------------------------------------------------------------------


def _cast_from_text(type_: TypeEngine[Any]) -> Callable[[str], ColumnElement[Any]]:
    return lambda name: cast(bindparam(name, type_=Text()), type_)


def _parameter(type_: TypeEngine[Any]) -> Callable[[str], ColumnElement[Any]]:
    return lambda name: bindparam(name, type_=type_)


def _of_enum(
    column: Column[Any],
    enum: Enum,
    source: Dialect,
    target: Dialect,
    *,
    is_indexed: bool,
    has_old_labels: bool,
) -> Transfer:
    reading = type_coerce(column, AsText())
    goal = undecorated(column.type, target)
    is_native = isinstance(goal, Enum) and goal.native_enum and target.supports_native_enum
    if target.name == "postgresql" and (isinstance(goal, mysql.ENUM) or not getattr(goal, "name", None)):
        is_native = False  # only a type with a name can be created
    if is_native and not has_old_labels and (target.name == "postgresql" or are_of_one_kind(source, target)):
        type_ = copied_type(goal)
        writing = _cast_from_text(type_) if target.name == "postgresql" else _parameter(Text())
        return Transfer(column, type_, reading, writing)
    text = String(_KEY_LENGTH) if target.name in MYSQL else String()
    return Transfer(column, text, reading, _parameter(Text()), is_replaced=has_old_labels)


def _of_json(column: Column[Any], target: Dialect) -> Transfer:
    goal = undecorated(column.type, target)
    type_ = copied_type(goal) if _can_compile(goal, target) else JSON()
    writing = _cast_from_text(type_) if target.name == "postgresql" else _parameter(Text())
    return Transfer(column, type_, type_coerce(column, AsText()), writing)


# --- databases of two kinds -------------------------------------------------------------------------------------


def _by_python_value(
    column: Column[Any], below: TypeEngine[Any], source: Dialect, target: Dialect, *, is_indexed: bool
) -> Transfer:
    goal = undecorated(column.type, target)
    type_ = _portable(goal, source, target, is_indexed=is_indexed)
    is_decorated = isinstance(column.type, TypeDecorator) and not isinstance(column.type, Interval)
    if isinstance(goal, JSON) and not is_decorated:
        type_ = JSON(none_as_null=True)  # or NULL would become the null of JSON
    if type_ is None and isinstance(below, _IN_JSON):
        reading: ColumnElement[Any] = type_coerce(column, below)
        return Transfer(column, JSON(), reading, _parameter(Text()), _as_json, is_replaced=True)
    if type_ is None:
        return Transfer(
            column, _text(None, target, is_indexed), type_coerce(column, AsText()), _parameter(Text()), is_replaced=True
        )
    writing = _parameter(column.type if is_decorated else type_)
    if isinstance(below, Float) and not is_decorated and source.name in MYSQL:
        [reading] = raw_columns([column], source)  # MariaDB shows six digits of a FLOAT
        return Transfer(column, type_, reading, writing, _conversion(below, goal, target))
    convert = _conversion(below, goal, target)
    return Transfer(column, type_, column, writing, convert)


def _conversion(below: TypeEngine[Any], goal: TypeEngine[Any], target: Dialect) -> Callable[[Any], Any] | None:
    traits = TRAITS[target.name]
    if isinstance(goal, (Numeric, Float)) and not traits.has_infinity:
        return _finite if traits.has_typed_columns else _a_number
    if isinstance(goal, DateTime) and not traits.has_time_zones:
        return _in_utc
    if isinstance(below, mysql.SET):
        return lambda value: ",".join(sorted(value)) if isinstance(value, (set, frozenset)) else value
    if isinstance(below, mysql.BIT):
        return lambda value: int.from_bytes(value, "big") if isinstance(value, bytes) else value
    if isinstance(goal, String) and not isinstance(below, String):
        return lambda value: value if value is None else str(value)
    return None


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(json_value(value))


def _finite(value: Any) -> Any:
    """Return a number, or ``None`` for NaN and infinity, which MariaDB does not have."""
    return None if isinstance(value, (float, Decimal)) and not math.isfinite(value) else value


def _a_number(value: Any) -> Any:
    """Return a number, or ``None`` for NaN, which SQLite does not have."""
    return None if isinstance(value, (float, Decimal)) and math.isnan(value) else value


def _in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo is not None else value


class _PreciseInterval(Interval):
    """An interval of MariaDB that keeps its microseconds."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return mysql.DATETIME(fsp=6)


def _portable(type_: Any, source: Dialect, target: Dialect, *, is_indexed: bool) -> TypeEngine[Any] | None:
    """Return the type of a database for values of a type, or ``None`` if it has none."""
    is_mysql = target.name in MYSQL
    if isinstance(type_, Uuid):
        return Uuid(as_uuid=type_.as_uuid)  # type: ignore[call-overload, no-any-return]  # either type
    if isinstance(type_, Boolean):
        return Boolean()
    if isinstance(type_, (Interval, postgresql.INTERVAL)):
        return _PreciseInterval() if is_mysql else Interval()
    if isinstance(type_, BYTES):
        if is_mysql:
            return VARBINARY(type_.length or _KEY_LENGTH) if is_indexed else mysql.LONGBLOB()
        return LargeBinary()
    if isinstance(type_, (mysql.SET, mysql.BIT)):
        return _text(None, target, is_indexed) if isinstance(type_, mysql.SET) else BigInteger()
    if isinstance(type_, String):
        return _text(type_.length, target, is_indexed)
    if isinstance(type_, Float):
        return Double(asdecimal=type_.asdecimal)  # type: ignore[call-overload, no-any-return]  # either type
    if isinstance(type_, Numeric):
        wide = (None, None) if not is_mysql else (65, 30) if type_.precision is None else (type_.precision, type_.scale)
        return Numeric(*wide, asdecimal=type_.asdecimal)  # type: ignore[call-overload, no-any-return]  # either type
    if isinstance(type_, (Integer, mysql.YEAR)):
        if not TRAITS[target.name].has_typed_columns:
            return Integer()  # as the key of a table it is the rowid
        return Numeric(20, 0) if isinstance(type_, mysql.BIGINT) and type_.unsigned else BigInteger()
    if isinstance(type_, DateTime):
        return mysql.DATETIME(fsp=6) if is_mysql else DateTime(timezone=type_.timezone)
    if isinstance(type_, Date):
        return Date()
    if isinstance(type_, mysql.TIME) and not is_mysql:
        return None  # it may be a duration of many hours
    if isinstance(type_, Time):
        return mysql.TIME(fsp=6) if is_mysql else Time(timezone=type_.timezone)
    is_of_dialect = type(type_).__module__.startswith("sqlalchemy.dialects.")
    is_foreign = is_of_dialect and type(type_).__module__.split(".")[2] != ("mysql" if is_mysql else target.name)
    return type_ if not is_foreign and _can_compile(type_, target) else None


def _text(length: int | None, target: Dialect, is_indexed: bool) -> TypeEngine[Any]:
    """Return the type for a text of any length; in a key or an index of MariaDB, the length is limited."""
    if target.name not in MYSQL:
        return String()
    return String(length or _KEY_LENGTH) if is_indexed else mysql.LONGTEXT()


def _can_compile(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    try:
        dialect.type_compiler_instance.process(type_)
    except (CompileError, AttributeError):
        return False
    return True
