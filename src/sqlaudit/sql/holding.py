"""May a column of history hold one of some values? A condition that leaves out only what equals none of them.

Python decides whether two values are equal, by what the type of the column reads. The database can do without most rows
before they are read: those that surely hold another value. It is asked for texts, for numbers within a tolerance, for
days, and for the first character of a document. What it stores in another way than the type would is not left out, as a
number that is still a text in history, because the column was a text once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    JSON,
    REAL,
    Boolean,
    ColumnElement,
    Date,
    DateTime,
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
    and_,
    bindparam,
    case,
    false,
    func,
    literal_column,
    or_,
    true,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.changes import differ, equality_of
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.lists import Condition

_Type = TypeEngine[Any]
_Told = ColumnElement[bool] | None
_Test = Callable[[ColumnElement[Any], _Type, Sequence[Any]], _Told]
"""Makes the condition that a column holds one of some values, which are not None; ``None`` if it does not know."""


def may_hold(column: ColumnElement[Any], type_: TypeEngine[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """Return the condition that a column holds a value that may equal one of some values.

    :param type_: the type by which the column is read
    :return: ``true()`` if the database cannot tell
    """
    given = list(values)
    wanted = [value for value in given if value is not None]
    variants = {_test_of(variant) for variant in (type_, *type_._variant_mapping.values())}
    test = variants.pop() if len(variants) == 1 else None
    holds = None if test is None else test(column, type_, wanted)
    if holds is None:
        return true()
    is_any = and_(column.is_not(None), holds) if wanted or test in _READ_AS_NONE else false()
    return or_(column.is_(None), is_any) if len(wanted) < len(given) else is_any


def _test_of(type_: TypeEngine[Any]) -> _Test | None:
    module = type(type_).__module__
    is_known = module.startswith("sqlalchemy.") and equality_of(type_) is None
    if not is_known or (isinstance(type_, (Date, DateTime, Time)) and "sqlite" in module):  # which stores as it is told
        return None
    if isinstance(type_, TypeDecorator) and not isinstance(type_, Interval):
        return None
    if isinstance(type_, String) and not isinstance(type_, Enum) and type_.__visit_name__.upper() not in _TEXTS:
        return None
    return next((test for kind, test in _TESTS if isinstance(type_, kind)), None)


_TEXTS: Final = frozenset(
    {
        *("STRING", "TEXT", "UNICODE", "UNICODE_TEXT", "VARCHAR", "NVARCHAR", "CLOB", "CHAR", "NCHAR"),
        *("TINYTEXT", "MEDIUMTEXT", "LONGTEXT", "CITEXT"),
    }
)


# --- values as the database is asked for them -------------------------------------------------------------------


def _texts(values: Iterable[str]) -> Any:
    texts = (str.__str__(value) for value in values)  # a driver would write a member of an enum by its name
    plain = sorted(text for text in texts if _is_storable(text))
    return bindparam(None, plain, unique=True, expanding=True, type_=String())


def _is_storable(text: str) -> bool:
    """Return whether any database holds such a text: not with a NUL on PostgreSQL, or with a lone surrogate."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _text(value: str) -> Any:
    return bindparam(None, value, unique=True, type_=String())


def _holds_text(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    """What is no text is told as one only if its type fails to read it."""
    if not all(isinstance(value, str) for value in values):
        return None
    return holds_text(column, _texts({*values, *(value.rstrip(" ") for value in values)}))


def _holds_member(column: ColumnElement[Any], type_: Any, values: Sequence[Any]) -> _Told:
    members: dict[str, Any] = {text: text for text in type_.enums}
    if not all(isinstance(value, (str, type_.enum_class or str)) for value in values):
        return None
    if type_.enum_class is not None:
        stores = type_.values_callable
        by_name = {name: member for name, member in type_.enum_class.__members__.items() if name == member.name}
        members = (
            dict(zip(type_.enums, by_name.values(), strict=True)) if stores else dict(type_.enum_class.__members__)
        )
    stored = {text for text, member in members.items() if any(not differ(member, value) for value in values)}
    return _holds_text(column, type_, [*stored, *(str(value) for value in values if type(value) is str)])


def _holds_whole(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    texts = [str(value) for value in values if type(value) is int]
    return _as_stored(holds_whole, column, texts) if len(texts) == len(values) else None


def _holds_number(column: ColumnElement[Any], type_: Any, values: Sequence[Any]) -> _Told:
    if isinstance(type_, Float) and type_.asdecimal:
        return None
    if not all(isinstance(value, (int, float, Decimal)) and isfinite(value) for value in values):
        return None
    scale = type_.scale if type_.scale is not None else type_.decimal_return_scale or 10
    numbers = [Decimal(str(value)) for value in values] or [Decimal(0)]
    low, high = min(numbers), max(numbers)
    steps = [abs(number) * _PRECISION + Decimal(10) ** -scale for number in (low, high)]
    kind = holds_float if isinstance(type_, Float) else holds_number
    return kind(column, _text(str(low - steps[0])), _text(str(high + steps[1])))


_PRECISION: Final = Decimal("1e-5")
"""MariaDB shows six digits of a FLOAT."""


def _holds_truth(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    if not all(isinstance(value, bool) for value in values):
        return None
    return _as_stored(holds_truth, column, [text for value in {*values} for text in _TRUTHS[value]])


_TRUTHS: Final = {True: ("1", "true"), False: ("0", "false")}


def _holds_uuid(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    try:
        texts = [(value if isinstance(value, UUID) else UUID(value)).hex for value in values]
    except (ValueError, AttributeError, TypeError):
        return None
    return holds_uuid(column, _text(texts[0] if texts else ""), _texts(texts))


def _holds_day(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    if not all(type(value) is date for value in values):
        return None
    return _as_stored(holds_day, column, [*(value.isoformat() for value in values), _NO_DAY])


def _holds_instant(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    """An instant with a time zone may be of another day in the time zone of the session."""
    if not all(isinstance(value, datetime) for value in values):
        return None
    numbers = {value.toordinal() + days for value in values for days in (-1, 0, 1)}
    days = [date.fromordinal(number) for number in numbers if 1 <= number <= date.max.toordinal()]
    return _as_stored(holds_instant, column, [*(day.isoformat() for day in days), _NO_DAY])


_NO_DAY: Final = "0000-00-00"
"""A day of MariaDB and MySQL, which some drivers read as ``None``."""


def _holds_time(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    if not all(isinstance(value, time) and value.tzinfo is None for value in values):
        return None
    return _as_stored(holds_time, column, [f"{value:%H:%M}" for value in values])


def _holds_document(column: ColumnElement[Any], _type: _Type, values: Sequence[Any]) -> _Told:
    """A text that is no JSON is told as it is."""
    begins = [next((begin for kinds, begin in _BEGINS if isinstance(value, kinds)), None) for value in values]
    if None in begins:
        return None
    texts = [value for value in values if isinstance(value, str)]
    characters = {*" \t\r\n", "n", *"".join(cast("list[str]", begins))}
    return holds_document(column, _texts(characters), _texts(texts))


_BEGINS: Final[Sequence[tuple[Any, str]]] = (
    (str, '"'),
    (dict, "{"),
    (list, "["),
    (bool, "tf"),
    ((int, float, Decimal), "-0123456789NI"),
)
"""The first characters of JSON by the types of its values."""
_TESTS: Final[Sequence[tuple[Any, _Test]]] = (
    (Enum, _holds_member),
    ((String, LargeBinary, Interval), _holds_text),
    (Boolean, _holds_truth),
    (Integer, _holds_whole),
    ((Numeric, Float), _holds_number),
    (Uuid, _holds_uuid),
    (DateTime, _holds_instant),
    (Date, _holds_day),
    (Time, _holds_time),
    (JSON, _holds_document),
)
_READ_AS_NONE: Final = (_holds_document, _holds_day, _holds_instant)
"""The tests of types that may read as None what is not NULL: the null of JSON, and the day 0000-00-00."""


# --- conditions -------------------------------------------------------------------------------------------------


class holds_text(Condition):
    """True if a column has one of some texts when it is cast to text.

    :param clauses: the column and the texts
    """

    inherit_cache = True


@compiles(holds_text)
def _text_is_among(element: holds_text, compiler: SQLCompiler, **kw: Any) -> str:
    column, texts = _clauses_of(element)
    return f"({compiler.process(sql_cast(column, Text).in_(texts), **kw)})"  # of a CHAR, without the blanks at its end


@compiles(holds_text, "sqlite", *MYSQL)
def _text_is_among_as_it_is(element: holds_text, compiler: SQLCompiler, **kw: Any) -> str:
    column, texts = _clauses_of(element)
    text: ColumnElement[Any] = type_coerce(column, String())
    if compiler.dialect.name == "sqlite":
        text = text.collate("BINARY")
    return f"({compiler.process(text.in_(texts), **kw)})"


class holds_document(Condition):
    """True if a column has a text that begins with one of some characters, or one of some texts.

    :param clauses: the column, the characters and the texts
    """

    inherit_cache = True


@compiles(holds_document)
def _document_begins(element: holds_document, compiler: SQLCompiler, **kw: Any) -> str:
    column, characters, texts = _clauses_of(element)
    text = sql_cast(column, Text)
    begins = func.substr(text, _ONE, _ONE).in_(characters)
    return f"({compiler.process(or_(begins, text.in_(texts)), **kw)})"


class _Holds(Condition):
    """True if what a column holds is one of some texts, or is not stored as its type stores.

    :param clauses: the column, one of the texts, and all of them
    """

    inherit_cache = True
    types: Sequence[str] = ()
    """The types which the column may have on PostgreSQL."""
    sqlite: Callable[[ColumnElement[Any]], ColumnElement[bool]]
    """Returns the condition that SQLite stores a value as the type does."""

    @staticmethod
    def value(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
        return sql_cast(column, Text)


def _as_stored(kind: type[_Holds], column: ColumnElement[Any], texts: Sequence[str]) -> ColumnElement[bool]:
    return kind(column, _text(texts[0] if texts else ""), _texts(texts))


@compiles(_Holds)
def _holds(element: _Holds, compiler: SQLCompiler, **kw: Any) -> str:
    column, one, texts = _clauses_of(element)
    dialect = compiler.dialect.name
    if dialect == "sqlite":
        is_stored = type(element).sqlite(column)
    elif dialect in MYSQL:
        is_stored = func.charset(column) == literal_column("'binary'")  # that of numbers and times
    else:
        types: list[ColumnElement[Any]] = [literal_column(f"'{name}'::regtype") for name in element.types]
        is_stored = func.pg_typeof(column, type_=String()).in_(types)
    value = case((is_stored, element.value(column, dialect)), else_=one)
    return f"({compiler.process(value.in_(texts), **kw)})"


def _has_type(name: str) -> Any:
    return staticmethod(lambda column: func.typeof(column) == literal_column(f"'{name}'"))


def _is_like(pattern: str) -> Any:
    return staticmethod(lambda column: type_coerce(column, String()).op("GLOB")(literal_column(f"'{pattern}'")))


def _first(count: str) -> Any:
    """Return the function that gives as many characters of a column as text."""
    characters: ColumnElement[Any] = literal_column(count)
    return staticmethod(lambda column, _dialect: func.substr(sql_cast(column, Text), _ONE, characters))


class holds_whole(_Holds):
    inherit_cache = True
    types = ("smallint", "integer", "bigint")
    sqlite = _has_type("integer")

    @staticmethod
    def value(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
        return sql_cast(sql_cast(column, Numeric(65, 0)) if dialect in MYSQL else column, Text)


class holds_truth(_Holds):
    inherit_cache = True
    types = ("boolean",)
    sqlite = _has_type("integer")

    @staticmethod
    def value(column: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
        if dialect == "postgresql":
            return sql_cast(column, Text)
        return sql_cast(type_coerce(column, Integer()) != literal_column("0"), Text)


class holds_day(_Holds):
    inherit_cache = True
    types = ("date", "timestamp")
    sqlite = _is_like("[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]*")
    value = _first("10")


class holds_instant(holds_day):
    inherit_cache = True
    types = ("timestamp", "timestamptz")


class holds_time(_Holds):
    inherit_cache = True
    types = ("time",)
    sqlite = _is_like("[0-9][0-9]:[0-9][0-9]*")
    value = _first("5")


class holds_uuid(Condition):
    """True if a column has one of some UUIDs, in one of the two common forms, or has another form.

    :param clauses: the column, one of the UUIDs as 32 digits, and all of them
    """

    inherit_cache = True


@compiles(holds_uuid)
def _uuid_is_among(element: holds_uuid, compiler: SQLCompiler, **kw: Any) -> str:
    column, one, texts = _clauses_of(element)
    text = sql_cast(column, Text)
    is_common = func.length(text).in_([literal_column("32"), literal_column("36")])
    digits = func.lower(func.replace(text, literal_column("'-'"), literal_column("''")))
    return f"({compiler.process(case((is_common, digits), else_=one).in_(texts), **kw)})"


class holds_number(Condition):
    """True if a column has a number between two, which are given as texts, or is not stored as its type stores.

    :param clauses: the column, the smallest and the greatest number
    """

    inherit_cache = True
    types: Sequence[str] = ("numeric",)
    number: TypeEngine[Any] = Numeric()


class holds_float(holds_number):
    inherit_cache = True
    types = ("real", "double precision")
    number = Double()


@compiles(holds_number)
def _number_is_between(element: holds_number, compiler: SQLCompiler, **kw: Any) -> str:
    column, *ends = _clauses_of(element)
    low, high = (sql_cast(end, element.number) for end in ends)
    types: list[ColumnElement[Any]] = [literal_column(f"'{name}'::regtype") for name in element.types]
    number = sql_cast(sql_cast(column, Text), element.number)
    value = case((func.pg_typeof(column, type_=String()).in_(types), number), else_=low)
    return f"({compiler.process(value.between(low, high), **kw)})"


@compiles(holds_number, "sqlite")
def _number_is_between_on_sqlite(element: holds_number, compiler: SQLCompiler, **kw: Any) -> str:
    column, *ends = _clauses_of(element)
    low, high = (sql_cast(end, REAL) for end in ends)
    is_number = func.typeof(column).in_([literal_column("'integer'"), literal_column("'real'")])
    value = case((is_number, type_coerce(column, REAL())), else_=low)
    return f"({compiler.process(value.between(low, high), **kw)})"


@compiles(holds_number, *MYSQL)
def _number_is_between_on_mysql(element: holds_number, compiler: SQLCompiler, **kw: Any) -> str:
    column, *ends = _clauses_of(element)
    low, high = (type_coerce(end, Float()) + literal_column("0e0") for end in ends)
    value = type_coerce(column, Float())
    is_text = func.charset(column) != literal_column("'binary'")
    return f"({compiler.process(or_(is_text, value.between(low, high)), **kw)})"


def _clauses_of(element: Condition) -> list[Any]:
    return list(element.clauses)


_ONE: Final[ColumnElement[int]] = literal_column("1", Integer)
