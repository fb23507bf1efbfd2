"""Which versions belong to a row, because their rows followed it? Those in which ``track_table(subject=…)`` led to it.

A row may follow another for a time: an order is moved to another customer. Its versions of that time follow. What
follows it then, its lines, follow through it: those of their versions that were true while it followed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, select
from sqlalchemy.orm import Session

from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.transactions import reading_latest
from sqlaudit.period import OPEN_END, is_open
from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.catalogue import can_lock_many
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.subjects import Subject
from sqlaudit.tracking.tables import TrackedTable

Period = tuple[datetime, datetime]
_ALWAYS: Final = datetime.min.replace(tzinfo=UTC), OPEN_END
Numbers = dict[Key, set[int]]
"""The versions of rows: key → numbers."""


def versions_that_followed(
    session: Session, model: TrackedModel, key: Key, subjects: Collection[Subject]
) -> dict[TrackedModel, Numbers]:
    """Return the versions that followed a row, of its own hierarchy, too, but without those of the row itself.

    One statement for the live rows and one for the versions of each subject and 1,000 rows. Live rows are locked.

    :param model: the topmost model of the row's hierarchy
    :raises QueryError: a live row that follows has no history
    :raises HistoryTableError: the database lacks a history table
    """
    found: dict[TrackedModel, Numbers] = {subject.model: defaultdict(set) for subject in subjects}
    todo: list[tuple[TrackedModel, Mapping[Key, list[Period]]]] = [(model, {key: [_ALWAYS]})]
    while todo:
        target, periods = todo.pop()
        for subject in (each for each in subjects if each.target is target):
            known = found[subject.model]
            new: dict[Key, list[Period]] = defaultdict(list)
            with explaining_history_errors([subject.table]):
                for version_key, number, period in _followers(session, subject, periods):
                    if number not in known[version_key] and (subject.model, version_key) != (model, key):
                        known[version_key].add(number)
                        new[version_key].append(period)
            if new:
                todo.append((subject.model, new))
    return {follower: numbers for follower, numbers in found.items() if any(numbers.values())}


def _followers(
    session: Session, subject: Subject, periods: Mapping[Key, list[Period]]
) -> Iterable[tuple[Key, int, Period]]:
    """Yield the key, the number and the period of each version that followed rows in their periods."""
    table, connection = subject.table, connection_for_versions(session, subject.table.mapper)
    columns = (*table.history_key, table.version, table.valid_from, table.valid_to)
    size = len(table.history_key)
    for chunk in chunks(list(periods)):
        live = [key for key in chunk if any(end >= OPEN_END for _, end in periods[key])]
        now = select(*table.key).where(one_of(subject.live, live)).order_by(*table.key)
        now = now.with_for_update() if can_lock_many(connection, table) else now
        keys = [tuple(row) for row in connection.execute(now, execution_options=INTERNAL)] if live else []
        statement = select(*columns, *subject.old).where(one_of(subject.old, chunk))
        for row in _rows_of_latest(connection, statement, table, keys):
            number, start, end = row[size : size + 3]
            followed = periods.get(tuple(row[size + 3 :]), [_ALWAYS])  # the key may have been spelt differently
            if any(_overlap((start, end), period) for period in followed):
                yield tuple(row[:size]), number, (start, end)
        for keys_of_chunk in chunks(keys):
            yield from _open_versions(session, table, keys_of_chunk)


def _rows_of_latest(
    connection: Connection, statement: Select[Any], table: TrackedTable, keys: Iterable[Key]
) -> Iterable[Row[Any]]:
    """Yield what a select of versions finds now, of live rows and of those that followed when the transaction began.

    :param keys: the keys of live rows
    """
    if not TRAITS[connection.dialect.name].reads_snapshots:
        yield from connection.execute(statement, execution_options=INTERNAL)
        return
    known = connection.execute(statement.with_only_columns(*table.history_key), execution_options=INTERNAL)
    for chunk in chunks(list({*keys, *map(tuple, known)})):  # a lock by other columns than the key could be one of all
        of_keys = statement.where(one_of(table.history_key, chunk))
        yield from connection.execute(reading_latest(of_keys, connection), execution_options=INTERNAL)


def _open_versions(session: Session, table: TrackedTable, keys: Iterable[Key]) -> Iterable[tuple[Key, int, Period]]:
    """Yield the open versions of live rows, which may say something else than these.

    :raises QueryError: a row has none
    """
    connection, keys = connection_for_versions(session, table.mapper), list(keys)
    statement = select(*table.history_key, table.version, table.valid_from, table.valid_to)
    statement = statement.where(one_of(table.history_key, keys), is_open(table.valid_to))
    missing = set(keys)
    for *key, number, start, end in connection.execute(
        reading_latest(statement, connection), execution_options=INTERNAL
    ):
        missing.discard(tuple(key))
        yield tuple(key), number, (start, end)
    if missing:
        row: Any = min(missing, key=repr)
        raise QueryError(
            f"{table.live.fullname!r} {row[0] if len(row) == 1 else row!r} follows the row that would be erased, and "
            "has no history. Call backfill() for its model first.",
            table.live,
        )


def _overlap(one: Period, other: Period) -> bool:
    """Return whether two periods have an instant in common; an empty one also touches one that ends or begins there.

    A tombstone has an empty period, and the values of the version that it ends.
    """
    if one[0] == one[1] or other[0] == other[1]:
        return one[0] <= other[1] and other[0] <= one[1]
    return one[0] < other[1] and other[0] < one[1]
