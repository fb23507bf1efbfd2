"""What differs between two snapshots? Pure Python: no session, no SQL."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from sqlalchemy import Column, PickleType
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.context import Actor
from sqlaudit.erased import with_erased
from sqlaudit.wire import Report, Value

T = TypeVar("T")


class Operation(StrEnum):
    """What made a version: ``INSERT``, ``UPDATE``, ``DELETE`` or ``BASELINE``, equal to its text in small letters.

    A change of a relationship is ``LINK`` or ``UNLINK``: the insert or delete of a row of its association table.
    """

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    BASELINE = "baseline"
    LINK = "link"
    UNLINK = "unlink"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class VersionInfo(Actor, Report):
    """Which version, and who made it, when and why.

    :param timestamp: the instant, in UTC
    :param version: the number of the version within the life of its row, from 1
    :param changeset_id: the database transaction; the same for all versions that it wrote, in all tables
    """

    version: int
    timestamp: datetime
    operation: Operation
    changeset_id: UUID
    changed_by: str | None
    impersonated_by: str | None
    reason: str | None
    extra: Value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FieldChange(VersionInfo):
    """A difference in one field between two consecutive versions of a row.

    :param version: the number of the version in the history of its row, from 1
    :param timestamp: the instant of the version, in UTC
    :param operation: what made the version
    :param changeset_id: the database transaction; the same for all versions that it wrote, in all tables
    :param changed_by: the user; ``None`` if no user is known
    :param impersonated_by: the user who really acted, if ``changed_by`` was impersonated
    :param reason: why
    :param extra: what else the audit context held
    :param resource_type: the label of the table, by default the name of the class
    :param resource_id: the key of the row, a tuple if it is composite; or the value of ``resource_id_field``
    :param field_name: the name of the attribute
    :param old_value: the value before, of the column's Python type; ``None`` for an insert
    :param new_value: the value after; ``None`` for a delete
    """

    resource_type: str
    resource_id: Value
    field_name: str
    old_value: Value
    new_value: Value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Recorded(VersionInfo):
    """A version that was recorded, as the events of :class:`Recording` tell it.

    :param version: the number of the version in the history of its row, from 1
    :param timestamp: the instant of the version, in UTC
    :param operation: what made the version
    :param changeset_id: the database transaction; the same for all versions that it wrote, in all tables
    :param changed_by: the user; ``None`` if no user is known
    :param impersonated_by: the user who really acted, if ``changed_by`` was impersonated
    :param reason: why
    :param extra: what else the audit context held
    :param resource_type: the label of the table, by default the name of the class; for a link, the name of its table
    :param key: the key of the row; a tuple if it is composite
    """

    resource_type: str
    key: Value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Changeset(Actor, Report):
    """What one database transaction wrote, by whom, when and why.

    :param changeset_id: the id of the transaction in all histories
    :param timestamp: the instant of the transaction, in UTC
    :param changed_by: the user; ``None`` if no user is known
    :param reason: why
    :param impersonated_by: the user who really acted, if ``changed_by`` was impersonated
    :param extra: what else the audit context held
    :param tables: the full names of the tables whose rows it changed, sorted
    """

    changeset_id: UUID
    timestamp: datetime
    changed_by: str | None
    reason: str | None
    impersonated_by: str | None
    extra: Value
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Conflict(Report):
    """A later change of a row or link, which :func:`undo` would discard.

    :param resource_type: the label of the table, by default the name of the class; for a link, the name of its table
    :param key: the key of the row; a tuple if it is composite
    :param fields: the fields that the change and the undone changeset have in common, sorted; those by which the row
        refers to one that would be deleted; or nothing if the whole row is concerned: it was inserted, or is deleted
    :param changed_by: the user who made the change; ``None`` if no user is known
    :param timestamp: the instant of the change; ``None`` if the row has no history
    :param changeset_id: the transaction that made the change; ``None`` if the row has no history, or the version of the
        change has been removed
    """

    resource_type: str
    key: Value
    fields: tuple[str, ...] = ()
    changed_by: str | None = None
    timestamp: datetime | None = None
    changeset_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RowDiff(Report):
    """What differs between two states of a row. It is falsy if nothing does.

    :param resource_type: the label of the table, by default the name of the class
    :param resource_id: the key of the row, a tuple if it is composite; or the value of ``resource_id_field``
    :param operation: what leads from the old state to the new one: ``insert``, ``update`` or ``delete``; ``None`` if
        nothing differs
    :param fields: for each field that differs, the old and the new value
    :param is_unknown: the row was written, and what differs is unknown, because versions have been removed
    """

    resource_type: str
    resource_id: Value
    operation: Operation | None
    fields: Mapping[str, tuple[Value, Value]]
    is_unknown: bool = False

    def __bool__(self) -> bool:
        return self.operation is not None


@dataclass(frozen=True, slots=True, repr=False)
class Restored(Report):
    """What :func:`restore` or :func:`undo` did, or would do, to one row or link. It can be unpacked like a tuple.

    :param operation: ``insert``: the row came back; ``update``: it was changed; ``delete``: it was deleted
    :param resource_type: the label of the table, by default the name of the class; for a link, the name of its table
    :param key: the key of the row; a tuple if it is composite
    :param fields: for each field that differs, the value before and the value after
    """

    operation: Operation
    resource_type: str
    key: Value
    fields: Mapping[str, tuple[Value, Value]]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.operation, self.resource_type, self.key, self.fields))


@dataclass(frozen=True, slots=True, repr=False)
class RestoreReport(Report):
    """What :func:`restore` or :func:`undo` did, or would do. Iterate over it; it is falsy if there was nothing to do.

    :param items: one :class:`Restored` per row or link
    :param conflicts: the later changes that an undo with ``force=True`` discarded, or would discard
    """

    items: tuple[Restored, ...]
    conflicts: tuple[Conflict, ...] = ()

    def __iter__(self) -> Iterator[Restored]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Blame(VersionInfo):
    """The value of one field, and the version that set it.

    :param version: the number of the version in the history of its row, from 1
    :param timestamp: the instant of the version, in UTC
    :param operation: what made the version
    :param changeset_id: the database transaction; the same for all versions that it wrote, in all tables
    :param changed_by: the user; ``None`` if no user is known
    :param impersonated_by: the user who really acted, if ``changed_by`` was impersonated
    :param reason: why
    :param extra: what else the audit context held
    :param value: the value of the field
    :param unknown_before: the value may be older than this version, which is a baseline, or the first one after
        versions that have been removed. Nobody is named then: ``changed_by``, ``impersonated_by``, ``reason`` and
        ``extra`` are ``None``
    :param unknown_after: the value may have changed since, because the last version has been removed. Nobody is named
        then
    """

    value: Value
    unknown_before: bool = False
    unknown_after: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Page(Report, Generic[T]):
    """A part of what a query finds, in its order. Iterate over it, or read its ``items``.

    :param items: field changes, changesets or rows that differ
    :param next: the cursor of the next page: a short text that may be part of a URL. ``None`` on the last page
    :param total: the number of items of all pages, if it was asked for
    """

    items: list[T]
    next: str | None
    total: int | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


PLAIN: Final = frozenset({str, int, float, bool, bytes, Decimal, date, datetime, time, timedelta, UUID})
"""Types whose equal values are the same value, so that :func:`differ` need not be called for them."""

Equality = Callable[[Any, Any], Any]
"""A function that returns whether two values are equal, from a type that defines its own comparison."""


def equality_of(type_: TypeEngine[Any]) -> Equality | None:
    """Return a type's own comparison, or ``None``: its ``compare_values``, or the ``comparator`` of a PickleType."""
    while isinstance(type_, TypeDecorator) and type(type_).compare_values is TypeDecorator.compare_values:
        type_ = type_.impl_instance
    if isinstance(type_, PickleType) and type(type_).compare_values is PickleType.compare_values:
        return type_.comparator
    is_plain = type(type_).compare_values.__module__.startswith("sqlalchemy.")
    return None if is_plain else type_.compare_values


def equalities_of(columns: Iterable[tuple[str, Column[Any]]]) -> dict[str, Equality]:
    """Return the comparisons of the columns whose types define their own: column name → comparison."""
    return {name: equal for name, column in columns if (equal := equality_of(column.type)) is not None}


def differ(old: Any, new: Any, equal: Equality | None = None) -> bool:
    """Return whether two values differ. NaN equals itself, and ``True`` differs from ``1``, within JSON, too.

    :param equal: the type's own comparison, see :func:`equality_of`
    """
    if old is new:
        return False
    if equal is not None and old is not None and new is not None:
        with suppress(Exception):
            return not equal(old, new)
    if isinstance(old, bool) is not isinstance(new, bool):
        return True
    for kind in (dict, list, tuple):
        if isinstance(old, kind) and isinstance(new, kind):
            return _items_differ(kind, old, new)
    return _is_unequal(old, new)


def _items_differ(kind: type[Any], old: Any, new: Any) -> bool:
    if len(old) != len(new):
        return True
    if kind is dict:
        return old.keys() != new.keys() or any(differ(value, new[key]) for key, value in old.items())
    return any(map(differ, old, new))


def _is_unequal(old: Any, new: Any) -> bool:
    """Return whether two values differ, even if comparing them gives no truth value, as with arrays."""
    try:
        unlike, is_nan = old != new, (old != old, new != new)
    except Exception:
        unlike, is_nan = None, (None, None)
    if isinstance(unlike, bool):
        return unlike and is_nan != (True, True)
    try:  # values that one type read from equal values of the database pickle to equal bytes
        return type(old) is not type(new) or pickle.dumps(old) != pickle.dumps(new)
    except Exception:
        return repr(old) != repr(new)


def hashable(value: Any) -> Any:
    """Return a hashable object that stands for a value, which may be a list, a dict or an array. NaN equals itself."""
    if isinstance(value, dict):
        return dict, frozenset((name, hashable(item)) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(hashable, value))
    try:
        hash(value)
        return value if value == value else type(value)
    except Exception:
        return type(value), pickle.dumps(value)


def diff(
    names: Sequence[str],
    operation: Operation,
    old: Iterable[Any] | None,
    new: Iterable[Any],
    equalities: Mapping[str, Equality] = MappingProxyType({}),
    erased: tuple[Collection[str], Collection[str]] = ((), ()),
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, old value, new value) for every field that an operation changed.

    An insert changes each field from ``None`` to its value, and a delete from its value to ``None``. A baseline changes
    nothing. Neither does an update whose previous version has been removed.

    :param old: the values of the previous version, or ``None`` if there is none
    :param new: the values of the version
    :param equalities: the comparisons of the fields whose types define their own
    :param erased: the fields of the previous version, and of the version, that were erased: their values are
        ``ERASED``. A field that was erased in both has not changed, as far as anybody knows
    """
    if any(erased):
        yield from _diff_of_erased(names, operation, old, new, equalities, erased)
    elif operation is Operation.INSERT:
        yield from ((name, None, value) for name, value in zip(names, new, strict=True) if value is not None)
    elif operation is Operation.DELETE:
        yield from ((name, value, None) for name, value in zip(names, new, strict=True) if value is not None)
    elif operation is Operation.UPDATE and old is not None:
        for name, before, after in zip(names, old, new, strict=True):
            # Most fields are unchanged, and calling differ() for each would cost more than all the rest.
            if before is after or (type(before) is type(after) and type(before) in PLAIN and before == after):
                continue
            if differ(before, after, equalities.get(name)):
                yield name, before, after


def _diff_of_erased(
    names: Sequence[str],
    operation: Operation,
    old: Iterable[Any] | None,
    new: Iterable[Any],
    equalities: Mapping[str, Equality],
    erased: tuple[Collection[str], Collection[str]],
) -> Iterator[tuple[str, Any, Any]]:
    was_erased, is_erased = erased
    new = list(new)
    if operation is not Operation.UPDATE:
        yield from diff(names, operation, old, with_erased(names, new, is_erased))
    elif old is not None:
        old = list(old)
        changed = {name for name, *_ in diff(names, operation, old, new, equalities)}
        before, after = with_erased(names, old, was_erased), with_erased(names, new, is_erased)
        for name, old_value, new_value in zip(names, before, after, strict=True):
            if name in changed and old_value is not new_value:
                yield name, old_value, new_value
