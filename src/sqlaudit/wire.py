"""How does what sqlaudit returns look as a dict, as JSON and as a response of a web framework?

pydantic is not imported here. It asks a type for its schema by a method, and its schemas are dicts.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import getdoc
from typing import Annotated, Any, Final, Literal, TypeAlias
from uuid import UUID

from sqlaudit.context import ACTOR_FACTS, Actor
from sqlaudit.erased import ERASED
from sqlaudit.exceptions import QueryError

Mode: TypeAlias = Literal["python", "json"]
"""What the values of a dict are: those of the attributes, or what JSON can express."""

# --- values -----------------------------------------------------------------------------------------------------


def json_value(value: Any) -> Any:
    """Return what JSON can express of a value, whatever the type of its column.

    A value of a type that has no form in JSON is told as its text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Report):
        return value.to_dict("json")
    if value is ERASED:
        return {"erased": True}
    for types, form in _FORMS:
        if isinstance(value, types):
            return form(value)
    if is_dataclass(value) and not isinstance(value, type):  # the ranges of PostgreSQL, among others
        return {field.name: json_value(getattr(value, field.name)) for field in fields(value)}
    for method in ("model_dump", "tolist"):  # of pydantic; of NumPy, which pgvector uses
        if callable(get := getattr(value, method, None)) and not isinstance(value, type):
            return json_value(get())
    return str(value)


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _instant(value: datetime) -> str:
    """Return an instant in UTC; without a time zone as it is, for nobody knows in which one it was meant."""
    return value.isoformat() if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _duration(value: timedelta) -> str:
    """Return a duration as ISO 8601 has it, in days, hours, minutes and seconds."""
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06}".rstrip("0") if value.microseconds else ""
    times = ((hours, f"{hours}H"), (minutes, f"{minutes}M"), (seconds or fraction, f"{seconds}{fraction}S"))
    days, time_of_day = f"{value.days}D" if value.days else "", "".join(text for number, text in times if number)
    return f"{sign}P{days}T{time_of_day}".removesuffix("T") if days or time_of_day else "PT0S"


def _object(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {_name(json_value(key)): json_value(item) for key, item in value.items()}


def _name(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(key)


_FORMS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (Enum, lambda value: json_value(value.value)),
    (str, str),
    (int, int),
    (float, _number),
    (datetime, _instant),
    ((date, time), lambda value: value.isoformat()),
    (timedelta, _duration),
    ((Decimal, UUID), str),
    ((bytes, bytearray, memoryview), lambda value: b64encode(value).decode()),
    (Mapping, _object),
    ((list, tuple), lambda value: [*map(json_value, value)]),
    ((set, frozenset), lambda value: sorted(map(json_value, value), key=json.dumps)),
)
"""Types, and how JSON expresses their values. The first that fits counts."""


class _InJSON:
    """Lets pydantic write a value as :func:`json_value` does. It is an annotation."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        form = {"type": "function-plain", "function": json_value, "when_used": "json"}
        return {**handler(source), "serialization": form}


IN_JSON: Final = _InJSON()
Value: TypeAlias = Annotated[Any, IN_JSON]
"""A value of any type."""

# --- reports ----------------------------------------------------------------------------------------------------


class Report:
    """Base class of the dataclasses that sqlaudit returns: a short ``repr``, a dict, and a schema for pydantic."""

    __slots__ = ()

    def to_dict(self, mode: Mode = "python") -> dict[str, Any]:
        """Return a dict of the attributes.

        :param mode: ``"python"`` for the values as they are; ``"json"`` for what JSON can express
        :raises QueryError: there is no such mode
        """
        return dict_of(((name, getattr(self, name)) for name in names_in(type(self))), mode)

    def __repr__(self) -> str:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]  # each is
        shown = [f"{name}={told(value)}" for name, value in values if value is not None or name not in _CONTEXT]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        schema = handler(source)
        if issubclass(cls, Actor):
            text = {"type": "nullable", "schema": {"type": "str"}}
            schema["schema"]["computed_fields"] += [
                {"type": "computed-field", "property_name": name, "return_schema": text, "alias": name}
                for name in ACTOR_FACTS
            ]
        return schema

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        json_schema = handler(schema)
        summary, _, _ = (getdoc(cls) or "").partition("\n\n")
        handler.resolve_ref_schema(json_schema)["description"] = _ROLE.sub(r"\1", summary.replace("\n", " "))
        return json_schema


_CONTEXT: Final = frozenset({"changed_by", "impersonated_by", "reason", "extra"})
"""What a ``repr`` leaves out if it is not known."""
_ROLE: Final = re.compile(r":\w+:`~?(?:\w+\.)*(\w+)`|``")


def names_in(report: type[Any]) -> Iterator[str]:
    """Yield the names in the dicts of reports."""
    yield from (field.name for field in fields(report))
    if issubclass(report, Actor):
        yield from ACTOR_FACTS


def dict_of(values: Iterable[tuple[str, Any]], mode: Mode) -> dict[str, Any]:
    """Return names and values as a dict.

    :raises QueryError: there is no such mode
    """
    if mode not in ("python", "json"):
        raise QueryError(f'mode is {mode!r}. Give "python" or "json".', mode)
    form = json_value if mode == "json" else _plain
    return {name: form(value) for name, value in values}


def _plain(value: Any) -> Any:
    """Return a value as it is, but reports as dicts."""
    if isinstance(value, Report):
        return value.to_dict()
    if isinstance(value, (list, tuple)) and any(isinstance(item, Report) for item in value):
        return type(value)(map(_plain, value))
    return value


def told(value: Any) -> str:
    """Return the text of a value in a ``repr``."""
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, (Enum, UUID)) else repr(value)
