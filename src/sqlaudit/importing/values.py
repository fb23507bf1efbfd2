"""Which value does a text of the change log stand for? A value of the column's type that the database can store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum as PythonEnum
from math import isfinite, isnan
from typing import Any, Final
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Dialect, SmallInteger
from sqlalchemy.types import TypeEngine

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import implementation_of

UNREAD: Final = object()
"""The result for a text that is no value of its column."""


def read_text(text: str | None, type_: TypeEngine[Any], dialect: Dialect) -> Any:
    """Return the value of the type that a text of the log stands for; ``UNREAD`` if there is none."""
    if text is None:
        return None
    try:
        python_type: type[Any] = dict if isinstance(type_, JSON) else type_.python_type
    except NotImplementedError:
        return UNREAD
    if issubclass(python_type, PythonEnum):
        return next((member for member in python_type if text in (member.name, str(member.value), str(member))), UNREAD)
    with suppress(ValueError, ArithmeticError, KeyError):
        value = _READERS[python_type](text)
        if not _can_be_stored(value, type_, dialect):
            return UNREAD
        is_naive = isinstance(value, datetime) and not getattr(type_, "timezone", False)
        return value.replace(tzinfo=None) if is_naive else value
    return UNREAD


def _can_be_stored(value: Any, type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Return whether a column of the type can store a value: SQLite checks neither length nor precision."""
    stored = implementation_of(type_, dialect)
    is_strict = TRAITS[dialect.name].has_typed_columns
    match value:
        case str():
            length: int | None = getattr(stored, "length", None)
            return not is_strict or length is None or len(value) <= length
        case int():
            is_big = isinstance(stored, BigInteger) or not is_strict
            bits = 63 if is_big else 15 if isinstance(stored, SmallInteger) else 31
            return -(1 << bits) <= value < 1 << bits
        case float() | Decimal() if not isfinite(value):
            return TRAITS[dialect.name].has_infinity and isnan(value)
        case Decimal():
            precision: int | None = getattr(stored, "precision", None)
            scale: int = getattr(stored, "scale", None) or 0
            return not is_strict or precision is None or abs(round(value, scale)) < 10 ** (precision - scale)
    return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _read_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


_TRUTH: Final = {"1": True, "0": False, "true": True, "false": False}
_READERS: Final[Mapping[type, Callable[[str], Any]]] = {
    str: str,
    int: int,
    float: float,
    bool: lambda text: _TRUTH[text.lower()],
    Decimal: Decimal,
    UUID: UUID,
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    time: time.fromisoformat,
    dict: _read_json,
    list: _read_json,
}
