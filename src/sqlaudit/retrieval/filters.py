"""Which field changes does a reader ask for? By their operation, and by their old and new values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypedDict

from sqlalchemy import Boolean, Column, Date, DateTime, Enum, Float, Integer, Numeric, String, Time, Uuid
from sqlalchemy.types import TypeEngine

from sqlaudit.changes import Equality, FieldChange, Operation, differ, equalities_of
from sqlaudit.erased import ERASED
from sqlaudit.exceptions import QueryError
from sqlaudit.retrieval.ids import converted_ids, listed_ids

_FROM_TEXT: Final = (Boolean, Date, DateTime, Float, Integer, Numeric, String, Time, Uuid)
"""The types whose values may be given as text, as ids may."""
_MOST_VALUES: Final = 1_000
"""The values, of all fields together, that a statement has as parameters, several times."""


class ChangeFilters(TypedDict, total=False):
    """Further arguments of :func:`~sqlaudit.get_resource_changes` and of all functions that read field changes."""

    include: str | Iterable[str]
    newest_first: bool
    filter_operations: Operation | str | Iterable[Operation | str] | None
    filter_old_values: Any
    filter_new_values: Any
    filter_actor_types: Any
    filter_on_behalf_of: Any
    filter_run_ids: Any
    filter_reasons: Any


class ValueFilter:
    """The values of a field that are asked for, on one side of a field change.

    :param fields: the names and columns of the fields; for links, those of the key of the other row
    :param given: one value, or a list, tuple or set of several
    :param link: the name under which links are reported
    """

    def __init__(self, fields: Sequence[tuple[str, Column[Any]]], given: Any, link: str | None = None) -> None:
        self.values: dict[str, list[Any]] = {}
        several = list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]
        if link is None:
            self.values = {name: values_of_type(column.type, several) for name, column in fields}
        else:
            columns = [column for _, column in fields]
            listed = listed_ids(given, composite=len(columns) > 1)
            keys = converted_ids(columns, [key for key in listed if key is not None])["ids"]
            self.values = {link: [key if isinstance(key, tuple) else (key,) for key in keys]}
            self.values[link] += [None] if None in listed else []
        self.equalities: dict[str, Equality] = {} if link else equalities_of(fields)

    @property
    def may_be_asked_in_sql(self) -> bool:
        """Whether a statement may have the values: no database holds ``ERASED``, and parameters are limited."""
        values = [value for of_field in self.values.values() for value in of_field]
        return len(values) <= _MOST_VALUES and all(value is not ERASED for value in values)

    def accepts(self, name: str, value: Any) -> bool:
        equality = self.equalities.get(name)
        return any(not differ(value, wanted, equality) for wanted in self.values[name])


def wanted_changes(
    operations: Sequence[Operation] | None, old: ValueFilter | None, new: ValueFilter | None
) -> Callable[[FieldChange], bool] | None:
    """Return a function that says whether a field change is asked for, or ``None`` if all are."""
    if operations is None and old is None and new is None:
        return None

    def is_wanted(change: FieldChange) -> bool:
        name = change.field_name
        return (
            (operations is None or change.operation in operations)
            and (old is None or old.accepts(name, change.old_value))
            and (new is None or new.accepts(name, change.new_value))
        )

    return is_wanted


def checked_operations(given: Any) -> list[Operation]:
    """Return the operations that a reader asks for.

    :raises QueryError: there is no such operation
    """
    known = {str(operation): operation for operation in Operation}
    listed = listed_ids(given)
    if unknown := [each for each in listed if not isinstance(each, str) or each not in known]:
        raise QueryError(
            f"filter_operations has {', '.join(map(repr, unknown))}. Give some of {', '.join(known)}.", given
        )
    return [known[each] for each in listed]


def values_of_type(type_: TypeEngine[Any], given: Iterable[Any]) -> list[Any]:
    """Return the values that a column of a type may hold. Those of simple types may be given as text."""
    if not isinstance(type_, _FROM_TEXT) or isinstance(type_, Enum):
        return list(given)
    column: Column[Any] = Column(type_)
    return [
        value
        for each in given
        for value in ([each] if each is None or each is ERASED else converted_ids([column], [each])["ids"])
    ]
