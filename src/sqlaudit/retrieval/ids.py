"""Which rows does a reader ask for? Ids as Python values or texts, converted to the types of the key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Integer,
    Uuid,
    bindparam,
    inspect,
)
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import InstanceState
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.exceptions import QueryError
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.keys import KeyArray, are_bound_in_sql
from sqlaudit.sql.lists import are_among, is_among, one_of

_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]+")
_FROM_TEXT: Final[Mapping[type[Any], Callable[[str], Any]]] = {
    date: date.fromisoformat,
    datetime: datetime.fromisoformat,
    time: time.fromisoformat,
    Decimal: Decimal,
    float: float,
}
_ANY_DIALECT: Final = DefaultDialect()


def listed_ids(value: Any, *, composite: bool = False) -> list[Any]:
    """Return one value or several as a list. A text is one value; a tuple is one if ids are ``composite``."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or (composite and isinstance(value, tuple)):
        return [value]
    return list(value)


def converted_ids(columns: Sequence[ColumnElement[Any]], ids: Iterable[Any]) -> dict[str, list[Any]]:
    """Return the parameters of :func:`has_id`: the ids that can be converted to the columns' types.

    :raises QueryError: an id is an object of a mapped class
    """
    matching: list[Any] = []
    for value in ids:
        if isinstance(inspect(value, raiseerr=False), InstanceState):
            raise QueryError(f"{value!r} is an object and not an id. Give its key.", value)
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if len(values) == len(columns):
            with suppress(TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
                key = tuple(_converted(part, column.type) for part, column in zip(values, columns, strict=True))
                matching.append(key if len(columns) > 1 else key[0])
    if len(columns) == 1:
        return {"ids": matching}
    return {"ids": matching} | {f"ids_{place}": [key[place] for key in matching] for place in range(len(columns))}


def has_id(columns: Sequence[ColumnElement[Any]], parameters: Mapping[str, Any]) -> ColumnElement[bool]:
    """Return the condition that the columns have one of the ids."""
    if are_bound_in_sql(columns):
        return one_of(columns, [key if len(columns) > 1 else (key,) for key in parameters["ids"]])
    types = [_type_of_id(column) for column in columns]
    if len(columns) == 1:
        return is_among(columns[0], bindparam("ids", type_=types[0], expanding=True))
    lists = [bindparam(f"ids_{place}", type_=KeyArray(type_)) for place, type_ in enumerate(types)]
    return are_among(*columns, bindparam("ids", expanding=True), *lists)


def _type_of_id(column: ColumnElement[Any]) -> TypeEngine[Any]:
    # The widest integer: an id that is too large for its column is compared like any other, and matches nothing.
    return BigInteger() if isinstance(column.type, Integer) else column.type


def one_id(parameters: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return the parameters of :func:`is_id` from those of :func:`has_id` with one id."""
    [key] = parameters["ids"]
    parts = key if len(parameters) > 1 else (key,)
    return {"ids": [key]} | {f"id_{place}": part for place, part in enumerate(parts)}


def is_id(columns: Sequence[ColumnElement[Any]], parameters: Mapping[str, Any]) -> ColumnElement[bool]:
    """Return the condition that the columns have one id. Databases read the versions in order then."""
    if are_bound_in_sql(columns):
        return has_id(columns, parameters)
    return all_equal(columns, id_parameters(columns))


def id_parameters(columns: Sequence[ColumnElement[Any]]) -> list[BindParameter[Any]]:
    """Return the parameters of one id, a parameter for each column, whose values :func:`one_id` gives."""
    return [bindparam(f"id_{place}", type_=_type_of_id(column)) for place, column in enumerate(columns)]


def _converted(value: Any, type_: TypeEngine[Any]) -> Any:
    """Return an id as a value of a key column's Python type.

    :raises ValueError: the id cannot be converted; the column's type may raise other errors
    """
    if isinstance(type_, TypeDecorator):
        return _accepted(value, type_)
    if isinstance(type_, Uuid):
        converted = value if isinstance(value, UUID) else UUID(hex=_text(value))
        return converted if type_.as_uuid else str(converted)
    wanted = _python_type_of(type_)
    if wanted is None:
        return value
    if isinstance(value, bool) != (wanted is bool):
        raise ValueError(value)
    if wanted is int:
        return _whole_number(value, type_)
    if wanted is str:
        return _text(str(value) if isinstance(value, (int, UUID)) else value)
    if not isinstance(value, wanted):
        value = _FROM_TEXT[wanted](str(value) if isinstance(value, int) else _text(value))
    return value


def _accepted(value: Any, type_: TypeDecorator[Any]) -> Any:
    """Return an id as a value that a user's type accepts: unchanged, or else converted for the type below it."""
    below = type_.impl_instance
    taken = _python_type_of(below)
    try:
        bound = type_.process_bind_param(value, _ANY_DIALECT)
        if taken is None or isinstance(bound, taken):
            return value
    except NotImplementedError:
        own = _python_type_of(type_)
        is_own = own is not None and own is not taken and isinstance(value, own)  # such as an Interval
        return value if is_own or type_._has_bind_expression else _converted(value, below)
    except (TypeError, ValueError, AttributeError):
        pass
    value = _converted(value, below)
    type_.process_bind_param(value, _ANY_DIALECT)
    return value


def _python_type_of(type_: TypeEngine[Any]) -> type[Any] | None:
    try:
        return type_.python_type
    except NotImplementedError:  # SQLAlchemy 2.0 does not ask the type below
        return None


def _whole_number(value: Any, type_: TypeEngine[Any]) -> int:
    number = int(value) if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) else value
    is_unsigned = any(getattr(variant, "unsigned", False) for variant in (type_, *type_._variant_mapping.values()))
    if not isinstance(number, int) or not -(1 << 63) <= number < 1 << (64 if is_unsigned else 63):
        raise ValueError(value)
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(value)
    value.encode()
    return value
