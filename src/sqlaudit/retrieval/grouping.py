"""Which field changes belong together? Those of one transaction under one audit context, and those of one row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter

from sqlaudit.changes import FieldChange


def by_transaction(changes: Iterable[FieldChange]) -> Iterator[list[FieldChange]]:
    """Yield the consecutive changes of one transaction under one audit context."""
    for _, group in groupby(changes, attrgetter("changeset_id", "timestamp", "changed_by", "reason")):
        yield list(group)


def by_row(changes: Iterable[FieldChange]) -> Iterator[list[FieldChange]]:
    """Yield the consecutive changes of one row by one operation, sorted by the names of their fields."""
    for _, group in groupby(changes, attrgetter("resource_type", "resource_id", "operation")):
        yield sorted(group, key=attrgetter("field_name"))
