"""Which value does a text of the database stand for? A column that is a number now may be a text in history.

Then '12' is read as the number 12. A text that stands for no value of the type raises ValueError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_interface
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    Date,
    DateTime,
    Dialect,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    Time,
    Uuid,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects.postgresql.ranges import AbstractSingleRange
from sqlalchemy.types import TypeEngine

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import stored_type

Parser = Callable[[str], Any]


def parser_of(type_: TypeEngine[Any], dialect: Dialect) -> Parser | None:
    """Return the function that parses a text into the value that a driver returns for a type, or ``None``."""
    type_ = stored_type(type_, dialect)
    if isinstance(type_, Uuid) and not (type_.native_uuid and TRAITS[dialect.name].parses_values_in_driver):
        return None  # the type itself reads a text
    if TRAITS[dialect.name].parses_values_in_driver:
        if isinstance(type_, JSON):
            return cast("Any", dialect)._json_deserializer or json.loads
        if isinstance(type_, ARRAY):
            return _array_parser(parser_of(type_.item_type, dialect) or str)
        if isinstance(type_, AbstractSingleRange):
            return _range_parser(type_)
        if isinstance(type_, postgresql.INET):
            is_text = dialect.driver == "psycopg2" or getattr(dialect, "_native_inet_types", None) is False
            return _address_text if is_text else _address
    return next((parse for kind, parse in _PARSERS if isinstance(type_, kind)), None)


def _number(number: Callable[[str], Any]) -> Parser:
    def parse(text: str) -> Any:
        value = number(text)
        if "_" in text or (isinstance(value, float) and value == value and Decimal(repr(value)) != Decimal(text)):
            raise ValueError(text)  # Python accepts 1_000, and rounds to the nearest float
        return value

    return parse


def _truth(text: str) -> bool:
    if text not in _TRUTHS:
        raise ValueError(text)
    return _TRUTHS[text]


_TRUTHS: Final = {"true": True, "false": False, "1": True, "0": False}


def _bytes(text: str) -> bytes:
    if not text.startswith("\\x"):
        raise ValueError(text)
    return bytes.fromhex(text[2:])


_INTERVAL: Final = re.compile(r"(?:([-+]?\d+) days? ?)?(?:([-+]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?")


def _interval(text: str) -> timedelta:
    match = _INTERVAL.fullmatch(text)
    if match is None or not text:
        raise ValueError(text)  # months and years have no fixed length
    days, sign, hours, minutes, seconds, fraction = match.groups()
    parts = int(hours or 0), int(minutes or 0), int(seconds or 0), int((fraction or "").ljust(6, "0"))
    clock = timedelta(hours=parts[0], minutes=parts[1], seconds=parts[2], microseconds=parts[3])
    return timedelta(days=int(days or 0)) + (-clock if sign == "-" else clock)


def _address(text: str) -> Any:
    interface = ip_interface(text)
    return interface.ip if interface.network.prefixlen == interface.max_prefixlen else interface


def _address_text(text: str) -> str:
    return str(_address(text))


_PARSERS: Final[Sequence[tuple[type[TypeEngine[Any]], Parser]]] = (
    (Integer, _number(int)),
    (Boolean, _truth),
    (Float, _number(float)),
    (Numeric, _number(Decimal)),
    (DateTime, datetime.fromisoformat),
    (Date, date.fromisoformat),
    (Time, time.fromisoformat),
    (Uuid, UUID),
    (LargeBinary, _bytes),
    (Interval, _interval),
    (postgresql.INTERVAL, _interval),
    (mysql.YEAR, int),
)


# --- arrays and ranges ------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(r'\s*(?:([{},])|"((?:[^"\\]|\\.)*)"|([^{},"\s](?:[^{},"]*[^{},"\s])?))\s*')


def _array_parser(parse: Parser) -> Parser:
    def parse_array(text: str) -> Any:
        tokens = _tokens(text)
        if next(tokens) != ("{", None):
            raise ValueError(text)
        items = _items(tokens, parse)
        if next(tokens, None) is not None:
            raise ValueError(text)
        return items

    return parse_array


def _tokens(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield the tokens of an array: (a brace or comma, None), (``""``, a value) or (``"quoted"``, a value)."""
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(text)
        place = match.end()
        mark, quoted, plain = match.groups()
        if mark:
            yield mark, None
        else:
            yield "quoted" if plain is None else "", plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)


def _items(tokens: Iterator[tuple[str, str | None]], parse: Parser) -> list[Any]:
    items: list[Any] = []
    for mark, value in tokens:
        if mark == "}":
            return items
        if mark == "{":
            items.append(_items(tokens, parse))
        elif value is not None:
            items.append(None if not mark and value.upper() == "NULL" else parse(value))
    raise ValueError("an array that does not end")


_RANGE: Final = re.compile(r'([\[(])("?)([^",]*)\2,("?)([^",]*)\4([\])])')


class _DriverRange(postgresql.Range[Any]):
    """A range with the private attributes of psycopg's ranges, from which SQLAlchemy makes a range of its own."""

    _lower = property(lambda self: self.lower)
    _upper = property(lambda self: self.upper)
    _bounds = property(lambda self: None if self.empty else self.bounds)


def _range_parser(type_: AbstractSingleRange[Any]) -> Parser:
    kinds = (
        ((postgresql.INT4RANGE, postgresql.INT8RANGE), _number(int)),
        (postgresql.NUMRANGE, _number(Decimal)),
        (postgresql.DATERANGE, date.fromisoformat),
    )
    parse: Parser = next((parser for kind, parser in kinds if isinstance(type_, kind)), datetime.fromisoformat)

    def parse_range(text: str) -> Any:
        if text == "empty":
            return _DriverRange(empty=True)
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ValueError(text)
        left, _, lower, _, upper, right = match.groups()
        ends = (parse(end) if end else None for end in (lower, upper))
        return _DriverRange(*ends, bounds=cast("Any", left + right))

    return parse_range
