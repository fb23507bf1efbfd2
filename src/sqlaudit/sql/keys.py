"""How does a key that passes through Python find its row again? It is *given* by the program, or *raw*.

A *given* key comes from the program: from the fields of an object, or from the parameters of a statement. It is bound
by the types of its columns, as SQLAlchemy's own statements bind it. A *raw* key was read from the database without
these types, because they may change or refuse a value: a TypeDecorator may convert it, an enum may have lost a member,
and Python has no year 0. Where the driver's value might not find the row again, a raw key is read as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from typing import cast as cast_type
from uuid import UUID
from weakref import ref

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Boolean,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    Select,
    String,
    Text,
    Time,
    Uuid,
    bindparam,
    cast,
    literal_column,
    type_coerce,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import BINARY, VARBINARY, TypeDecorator, TypeEngine, UserDefinedType

from sqlaudit.sql.dialects import TRAITS

Key = tuple[Any, ...]
Columns = Sequence[ColumnElement[Any]]
_TEXTS: Final = frozenset({"STRING", "TEXT", "UNICODE", "UNICODE_TEXT", "VARCHAR", "NVARCHAR", "CLOB"})
_MORE_TEXTS: Final = frozenset({"CHAR", "NCHAR", "TINYTEXT", "MEDIUMTEXT", "LONGTEXT"})
"""Texts that PostgreSQL pads with blanks, and texts that only MariaDB and MySQL have."""
_BYTES: Final = frozenset(
    {"LARGE_BINARY", "BLOB", "BYTEA", "BINARY", "VARBINARY", "TINYBLOB", "MEDIUMBLOB", "LONGBLOB"}
)
BYTES: Final = (LargeBinary, BINARY, VARBINARY, mysql.TINYBLOB, mysql.MEDIUMBLOB, mysql.LONGBLOB)
_EXACT_TYPES: Final = (Integer, String, Uuid, Boolean, Date, DateTime, Time)


class RawKey(tuple[Any, ...]):
    """A key that was read by the columns of :func:`raw_columns`. Only these columns find its row again."""

    __slots__ = ()


# --- types of raw values ----------------------------------------------------------------------------------------


class AsText(TypeDecorator[str]):
    """A value as text: the database casts the value to text, and reads the text as the value again."""

    impl = Text
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(column, Text())


class AsConstant(AsText):
    """A value as text in the SQL itself, because PostgreSQL gives only a constant the type of the column."""

    cache_ok = True


class AsStored(UserDefinedType[Any]):
    """A value as SQLite stores it: a text, a number or bytes, whatever the type of the column."""

    cache_ok = True


class AsNumber(TypeDecorator[Any]):
    """A number that Python would otherwise read as bytes or without all digits, such as MariaDB's BIT and FLOAT."""

    impl = Double
    cache_ok = True

    def __init__(self, number: TypeEngine[Any]) -> None:
        super().__init__()
        self.number = number

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return self.number

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return column.op("+")(literal_column("0" if isinstance(self.number, Integer) else "0e0"))


class KeyArray(TypeDecorator[list[Any]]):
    """Many values of a key in one array, converted to one Python type: psycopg refuses 5 beside ``Decimal("5.25")``."""

    impl = ARRAY
    cache_ok = True

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        super().__init__(item_type, dimensions=1)
        self.item_type = item_type

    def process_bind_param(self, value: list[Any] | None, dialect: Dialect) -> list[Any] | None:
        if value is None or isinstance(self.item_type, TypeDecorator) or len({*map(type, value)}) < 2:
            return value
        try:
            convert = _CONVERSIONS[self.item_type.python_type]
            return [item if item is None else convert(item) for item in value]
        except (KeyError, NotImplementedError, TypeError, ValueError, ArithmeticError):
            return value  # the driver may be able to convert the values


def _whole(value: Any) -> int:
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(value)
    return number


def _day(value: Any) -> date:
    if isinstance(value, str):
        return date.fromisoformat(value)
    return value.date() if isinstance(value, datetime) else cast_type(date, value)


def _instant(value: Any) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    return value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)  # noqa: DTZ001  # a date has no zone


_CONVERSIONS: Final[Mapping[Any, Callable[[Any], Any]]] = {
    int: _whole,
    float: float,
    Decimal: lambda value: value if isinstance(value, Decimal) else Decimal(str(value)),
    str: lambda value: value if isinstance(value, str) else str(value),
    date: _day,
    datetime: _instant,
    UUID: lambda value: value if isinstance(value, UUID) else UUID(value),
}
"""Functions that convert a given value to the Python type that the column's type reads."""


def undecorated(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return the type below all TypeDecorators, as the program declares it."""
    while True:
        type_ = type_._variant_mapping.get(dialect.name, type_)
        if not isinstance(type_, TypeDecorator) or _is_sqlalchemys(type_):
            return type_
        type_ = type_.load_dialect_impl(dialect)


def implementation_of(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return the type that a dialect uses in place of a type, without TypeDecorators."""
    implementation = type_.dialect_impl(dialect)
    while isinstance(implementation, TypeDecorator):
        implementation = implementation.type_engine(dialect)
    return implementation


def stored_type(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return the type of a column in the database, with limits such as a length, which the dialect's type may lack."""
    below = undecorated(type_, dialect)
    return implementation_of(below, dialect) if isinstance(below, (TypeDecorator, Enum)) else below


def _is_sqlalchemys(type_: TypeEngine[Any]) -> bool:
    return type(type_).__module__.startswith("sqlalchemy.")


def _raw_type(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return the type that reads a raw key and finds its row again: the declared type only where it is safe."""
    below = undecorated(type_, dialect)
    if isinstance(below, (AsText, AsNumber, AsStored)):
        return below
    is_known, name = _is_sqlalchemys(below), below.__visit_name__.upper()
    is_whole = is_known and isinstance(below, Integer)
    traits = TRAITS[dialect.name]
    if not traits.has_typed_columns:
        if is_known and isinstance(below, Uuid):
            return String()
        return below if is_whole or (is_known and name in _TEXTS | _MORE_TEXTS) else AsStored()
    if is_known and name in _TEXTS and traits.pads_char:
        return AsText()  # if the column is a CHAR in the database, the cast removes the padding
    if is_whole or (is_known and (name in _TEXTS | _BYTES or isinstance(below, Uuid))):
        return below
    if is_known and isinstance(below, Numeric) and not isinstance(below, Float):
        return below if below.asdecimal else Numeric()
    if traits.compares_same_types_only:
        return below if is_known and isinstance(below, Boolean) else AsConstant()
    if not traits.converts_to_compare or (is_known and name in _MORE_TEXTS):
        return below
    if is_known and isinstance(below, Float):
        return AsNumber(Double())
    return AsNumber(Integer()) if is_known and (isinstance(below, Boolean) or name == "BIT") else AsText()


def raw_columns(columns: Columns, dialect: Dialect) -> list[ColumnElement[Any]]:
    """Return the columns with the types that read raw values and compare with them."""
    types: Sequence[TypeEngine[Any]] = [_raw_type(column.type, dialect) for column in columns]
    if any(isinstance(type_, AsConstant) for type_ in types):  # one expression takes either parameters or constants
        types = [AsConstant()] * len(types)
    return [_with_type(column, type_) for column, type_ in zip(columns, types, strict=True)]


def raw_values_differ(columns: Columns, dialect: Dialect) -> bool:
    """Return whether raw values of the columns are read or bound by other types than given values."""
    return any(one is not other for one, other in zip(raw_columns(columns, dialect), columns, strict=True))


def _with_type(column: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
    return column if type_ is column.type else type_coerce(column, type_)


# --- conditions -------------------------------------------------------------------------------------------------


def bound(column: ColumnElement[Any], name: str | None = None, value: Any = None) -> BindParameter[Any]:
    """Return the bind parameter for a given or raw value of a column."""
    is_constant = isinstance(column.type, AsConstant)
    if name is not None:
        return bindparam(name, type_=column.type, literal_execute=is_constant)
    return bindparam(None, value, type_=column.type, unique=True, literal_execute=is_constant)


def are_bound_in_sql(columns: Columns) -> bool:
    """Return whether a column's type has a ``bind_expression``. SQLAlchemy applies few of them in expanding lists."""
    return any(column.type._has_bind_expression for column in columns)


def is_array(type_: TypeEngine[Any]) -> bool:
    """Return whether a type is an array. SQLAlchemy does not say the types of the values in a list of tuples."""
    types = (type_, *type_._variant_mapping.values())
    return any(
        is_array(each.impl_instance) if isinstance(each, TypeDecorator) else isinstance(each, ARRAY) for each in types
    )


def is_raw(keys: Iterable[Key]) -> bool:
    """Return whether keys are raw, by the first of them: they are all given or all raw."""
    return type(next(iter(keys), None)) is RawKey


# --- what the types of a key allow ------------------------------------------------------------------------------


class KeyTypes:
    """What the types of a key's columns allow.

    :ivar differs: whether raw keys are read or bound by other types than given keys
    :ivar go_together: whether one statement can take many given keys, and Python can match its rows with them
    """

    def __init__(self, columns: Columns, dialect: Dialect) -> None:
        self._dialect = ref(dialect)  # a WeakKeyDictionary of dialects keeps this object
        self.differs = raw_values_differ(columns, dialect)
        self.go_together = all(share_statements(column.type, dialect) for column in columns)
        self._decorators = [_decorators(column.type, dialect) or [] for column in columns]

    def read(self, columns: Columns, *, as_raw: bool) -> Columns:
        """Return the columns to select so that :meth:`recognised` can match the rows with keys."""
        dialect = cast_type(Dialect, self._dialect())
        if as_raw or not self.go_together:
            return raw_columns(columns, dialect)
        return [_with_type(column, undecorated(column.type, dialect)) for column in columns]

    def recognised(self, keys: Sequence[Key], rows: Sequence[Sequence[Any]]) -> list[Key] | None:
        """Return the key of each row: as the database returned it or, where types do not allow that, as in ``keys``.

        :return: ``None`` if a row matches no key. Then select the rows of each key alone: they have that key.
        """
        if is_raw(keys):
            return list(map(RawKey, rows))
        if self.go_together and not any(self._decorators):
            return list(map(tuple, rows))
        if len(keys) == 1:
            return [keys[0]] * len(rows)
        asked = {self._undecorated(key): key for key in keys}
        found = [asked.get(tuple(row)) for row in rows]
        return None if None in found else found  # type: ignore[return-value]

    def without_equal_keys(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Return the keys without those that TypeDecorators convert to the same value as an earlier key."""
        if is_raw(keys) or len(keys) == 1 or not any(self._decorators):
            return keys
        apart: dict[Key, Key] = {}
        for key in keys:
            apart.setdefault(self._undecorated(key), key)
        return list(apart.values())

    def _undecorated(self, key: Key) -> Key:
        dialect, values = self._dialect(), list(key)
        for place, decorators in enumerate(self._decorators):
            for decorator in decorators:
                values[place] = decorator.process_bind_param(values[place], dialect)
        return tuple(values)


def share_statements(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    below = undecorated(type_, dialect)
    if type_.dialect_impl(dialect)._has_bind_expression or not _is_sqlalchemys(below):
        return False
    if _decorators(type_, dialect) is None:
        return False
    name = below.__visit_name__.upper()
    if TRAITS[dialect.name].pads_char and name in ("CHAR", "NCHAR", "CITEXT"):
        return False
    is_decimal = isinstance(below, Numeric) and not isinstance(below, Float) and below.asdecimal
    return isinstance(below, _EXACT_TYPES) or name in _BYTES or (is_decimal and TRAITS[dialect.name].has_decimals)


def _decorators(type_: TypeEngine[Any], dialect: Dialect) -> list[Any] | None:
    """Return the TypeDecorators that convert a given value, in order; ``None`` if one overrides ``bind_processor``."""
    decorators: list[Any] = []
    while True:
        type_ = type_._variant_mapping.get(dialect.name, type_)
        if not isinstance(type_, TypeDecorator) or _is_sqlalchemys(type_):
            return decorators
        if type(type_).bind_processor is not TypeDecorator.bind_processor:
            return None
        if type_._has_bind_processor:
            decorators.append(type_)
        type_ = type_.load_dialect_impl(dialect)


def read_keys(connection: Connection, statement: Select[Any]) -> list[RawKey]:
    """Return the raw keys that a select of :func:`raw_columns` columns finds."""
    return list(map(RawKey, connection.execute(statement)))
