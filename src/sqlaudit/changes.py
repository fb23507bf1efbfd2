"""What differs between two snapshots? Pure Python: no session, no SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID


class Operation(StrEnum):
    """What made a version."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
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
    extra: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange(VersionInfo):
    """A difference in one field between two consecutive versions of a row.

    :param resource_id: the key of the row (a tuple if it is composite), or the value of ``resource_id_field``
    :param resource_type: the label of the table
    :param old_value: a value of the column's Python type; ``None`` for an insert
    :param new_value: the same; ``None`` for a delete
    """

    resource_type: str
    resource_id: Any
    field_name: str
    old_value: Any
    new_value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Changeset:
    """What one database transaction wrote, and by whom, when and why.

    :param timestamp: the instant, in UTC
    :param tables: the full names of the tables whose rows it changed, sorted
    """

    changeset_id: UUID
    timestamp: datetime
    changed_by: str | None
    reason: str | None
    impersonated_by: str | None
    extra: Any
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A later change of a row, which an undo would lose.

    :param model: the class of the row, or the association table of a link
    :param key: the key of the row; a tuple if it is composite
    :param changeset_id: the transaction that made the change; ``None``, as all that follows from it, if the row has
        no history
    """

    model: Any
    key: Any
    changed_by: str | None = None
    timestamp: datetime | None = None
    changeset_id: UUID | None = None


class Restored(NamedTuple):
    """What a restore did, or would do, to one row or link.

    :ivar operation: ``insert``: it was brought back; ``update``: it was changed; ``delete``: it was removed
    :ivar model: its class; the association table of a link
    :ivar key: a tuple if it is composite
    :ivar fields: field → (value before, value after), for those that differ
    """

    operation: Operation
    model: Any
    key: Any
    fields: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did, or would do: falsy if that is nothing."""

    items: tuple[Restored, ...]

    def __iter__(self) -> Iterator[Restored]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame(VersionInfo):
    """The value of one field, and the version that gave it."""

    value: Any


_PLAIN: Final = frozenset({str, int, float, bool, bytes, Decimal, date, datetime, time, timedelta, UUID})


def differ(old: Any, new: Any) -> bool:
    """Tell whether two values are different; NaN is equal to itself, ``True`` is not ``1``, inside of JSON either."""
    if old is new:
        return False
    kind = type(old)
    if kind is not type(new):
        if kind is bool or type(new) is bool:
            return True
    elif kind is dict:
        return old.keys() != new.keys() or any(differ(value, new[key]) for key, value in old.items())
    elif kind is list:
        return len(old) != len(new) or any(map(differ, old, new))
    return bool(old != new) and not (bool(old != old) and bool(new != new))


def diff(
    names: Sequence[str], operation: Operation, old: Iterable[Any] | None, new: Iterable[Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, old value, new value) for every field that an operation changed.

    ``new`` is the version's snapshot, ``old`` that of the version before it. An insert goes from ``None`` to
    the values, a delete from them to ``None``; a baseline changes nothing, nor does an update whose
    predecessor is no longer there (``old`` is ``None``).
    """
    if operation is Operation.INSERT:
        yield from ((name, None, value) for name, value in zip(names, new, strict=True) if value is not None)
    elif operation is Operation.DELETE:
        yield from ((name, value, None) for name, value in zip(names, new, strict=True) if value is not None)
    elif operation is Operation.UPDATE and old is not None:
        for name, before, after in zip(names, old, new, strict=True):
            # Most fields are as they were, and a call for each would cost more than all the rest.
            if before is after or (before == after and type(before) is type(after) and type(before) in _PLAIN):
                continue
            if differ(before, after):
                yield name, before, after
