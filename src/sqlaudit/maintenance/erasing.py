"""How is a person forgotten? Their values go from every version of a row, and from the live row.

.. code-block:: python

    erase(session, Customer, 42, fields=["name", "email"], reason="request of 3 May", values={"name": "erased"})

What happened, when and in which order stays. The names of the erased columns stand in the ``extra`` of each version, so
that a read knows an erased value from one that was NULL, and :mod:`sqlaudit.erased` says what it gives. The table
``sqlaudit_erasures`` records each erasure, without a value, so that it can be repeated after a restore from a backup.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import Table, bindparam, insert, or_, select, type_coerce
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.asynchronous import also_async
from sqlaudit.config import current_config, current_user_id
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.erased_rows import (
    RowsToErase,
    columns_named,
    erasable_columns,
    refresh_objects,
    values_by_column,
)
from sqlaudit.maintenance.following import versions_that_followed
from sqlaudit.period import UTCDateTime
from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.retrieval.key_texts import checked_key, parsed_key
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.keys import Key
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.maintenance_tables import required_maintenance_tables
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.subjects import personal_names, subjects_of_metadata
from sqlaudit.wire import Report, Value

_AnySession = Session | scoped_session[Any]
_NO_TEXT = "Erase the row through a model whose key is made of numbers, texts, dates or UUIDs."


@dataclass(frozen=True, slots=True, repr=False)
class ErasedTable(Report):
    """What was erased of the rows of one table that followed a row.

    :param table: the full name of the table
    :param rows: the number of rows
    :param fields: the names of the erased columns
    :param versions: the number of their versions that had not been erased before
    """

    table: str
    rows: int
    fields: tuple[str, ...]
    versions: int


@dataclass(frozen=True, slots=True, repr=False)
class Erasure(Report):
    """What was erased of a row, without a value.

    :param erasure_id: the id of the erasure
    :param table: the full name of the table
    :param key: the key of the row, a tuple if it is composite; ``None`` if a user was erased from the history
    :param fields: the names of the erased columns
    :param versions: the number of versions that had not been erased before
    :param reason: why
    :param erased_by: the user; ``None`` if no user is known
    :param erased_at: when, in UTC
    :param followers: what was erased of the rows that followed the row, by their tables
    :param caused_by: the id of the erasure of the row that this row followed; ``None`` if this row was named itself
    """

    erasure_id: UUID
    table: str
    key: Value
    fields: tuple[str, ...]
    versions: int
    reason: str
    erased_by: str | None
    erased_at: datetime
    followers: tuple[ErasedTable, ...] = ()
    caused_by: UUID | None = None


@also_async
def erase(
    session: _AnySession,
    model_class: type[Any] | Table,
    resource_id: Any,
    *,
    fields: Collection[str] | Literal["all"] | None = None,
    reason: str,
    values: Mapping[Any, Any] | None = None,
    dry_run: bool = False,
) -> Erasure:
    """Erase fields of a row, in all its versions and in the live row, in the session's transaction.

    .. code-block:: python

        erase(
            session,
            Customer,
            42,
            fields=["name", "email"],
            reason="request of 3 May",
            values={"name": "erased", Order: {"address": "erased"}},
        )

    The live row gets NULL, or the value that you give, and no version of its own. Every other fact of a version stays.
    Reads give ``ERASED`` for the values; in SQL they are NULL. Erasing them again does nothing.

    With ``track_table(subject=…)``, rows follow the row: their ``personal`` fields are erased in the versions in which
    they followed it, and in the live rows of the open ones among these.

    What the session has still to flush is flushed first. Objects of the rows that it holds are refreshed. The number of
    statements follows the number of live rows, and that of the audit contexts of versions.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model, or an association table
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :param fields: the names of the fields, of subclasses, too; or ``"all"`` for all fields but the key, and the column
        that tells the class of a row. If omitted, those that ``track_table(personal=…)`` names
    :param reason: why; the user is that of the audit context
    :param values: what the live row gets instead of NULL, for columns that cannot be NULL; under a model as key, what
        live rows of this model get that follow the row
    :param dry_run: only report what would be erased
    :return: what was erased
    :raises TrackingError: the model is not tracked, or the subject of a model refers to no tracked model
    :raises QueryError: a row has a legal hold or no history; a field is part of the key, is unknown or is not stored;
        a column of a live row needs a value; the reason is empty; or the database lacks the table of erasures
    """
    session = checked_session(session)
    if not isinstance(reason, str) or not reason.strip() or "\0" in reason:
        raise QueryError(f"The reason of an erasure is {reason!r}. Give a text that says why.", reason)
    model = model_of(model_class).root
    if fields is None and not (fields := sorted(personal_names(model))):
        raise QueryError(
            f"{model.name} declares no personal fields. Name the fields: erase(…, fields=[…]), or declare them: "
            "track_table(personal=[…]).",
            model_class,
        )
    columns = erasable_columns(model, fields)
    key, _ = checked_key(model.table, resource_id, _NO_TEXT)
    erasing = _Erasing(session, model, key, [column.name for column in columns], values or {})
    if not erasing.row.have_history:
        raise QueryError(
            f"{model.table.live.fullname!r} {_one(key)!r} has no history to erase. Check the key; for a row without "
            "history, change the live row.",
            model.table.live,
        )
    if not dry_run:
        erasing.erase()
    record = Erasure(
        uuid4(),
        model.table.live.fullname,
        _one(key),
        tuple(sorted(erasing.row.names)),
        erasing.row.count,
        reason,
        current_user_id(),
        current_config().now(),
        tuple(_of_table(rows) for rows in erasing.followers if rows.versions),
    )
    if not dry_run and (record.versions or record.followers):
        _record(erasing, record)
    return record


@also_async
def erasures(session: _AnySession, model_class: type[Any] | Table) -> list[Erasure]:
    """Return the erasures of a model's rows, the earliest first. Keep them outside the backups of the database.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model, or an association table
    :raises TrackingError: the model is not tracked
    :raises QueryError: the database lacks the table of erasures
    """
    session = checked_session(session)
    table = model_of(model_class).root.table
    connection = connection_for_versions(session, table.mapper)
    columns = required_maintenance_tables(connection, table.live.metadata, "erasures()").erasures.c
    at = type_coerce(columns.erased_at, UTCDateTime()).label("at")
    is_of_table = columns.history_table == table.history.fullname
    causes = select(columns.erasure_id).where(is_of_table)
    statement = select(*columns, at).where(or_(is_of_table, columns.caused_by.in_(causes)))
    followers: dict[UUID, list[Any]] = defaultdict(list)
    rows = connection.execute(statement.order_by(at, columns.erasure_id), execution_options=INTERNAL).all()
    for row in rows:
        followers[row.caused_by].append(row)
    names = {each.history.fullname: each.live.fullname for each in tracked_tables(table.live.metadata)}
    return [
        Erasure(
            row.erasure_id,
            table.live.fullname,
            None if row.row_key is None else _one(parsed_key(table, row.row_key)),
            tuple(row.fields),
            row.versions,
            row.reason,
            row.erased_by,
            row.at,
            tuple(_by_table(followers[row.erasure_id], names)),
            row.caused_by,
        )
        for row in rows
        if row.history_table == table.history.fullname
    ]


@also_async
def replay_erasures(
    session: _AnySession,
    model_class: type[Any] | Table,
    erasures: Iterable[Erasure],
    *,
    values: Mapping[Any, Any] | None = None,
) -> int:
    """Erase again what was erased before, in the session's transaction: after a restore from an older backup.

    Rows that follow the rows are found anew. So erasures that another one caused are left out: replay those of the rows
    that they followed.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: the tracked model, or the association table, whose rows they erased
    :param erasures: what :func:`erasures` returned
    :param values: what live rows get instead of NULL, for columns that cannot be NULL, as for :func:`erase`
    :return: the number of versions that had values to erase
    :raises TrackingError: the model is not tracked
    :raises QueryError: an erasure is of another table, or names a column that the table no longer has, or it cannot be
        repeated, as for :func:`erase`
    """
    session, model = checked_session(session), model_of(model_class).root
    table, total = model.table, 0
    wanted = [record for record in erasures if record.caused_by is None]
    for record in wanted:
        _refuse_unfit(model, record)
    for record in wanted:
        key, _ = checked_key(table, record.key, _NO_TEXT)
        erasing = _Erasing(session, model, key, record.fields, values or {})
        erasing.erase()
        total += sum(rows.count for rows in erasing.groups)
        _record(erasing, record)
    return total


def _refuse_unfit(model: TrackedModel, record: Erasure) -> None:
    """Raise if an erasure cannot be of a model.

    :raises QueryError: it cannot
    """
    name = model.table.live.fullname
    if record.key is None:
        raise QueryError(
            "An erasure is of a user, whom it does not name. Call erase_actor() with the user again, and leave the "
            "erasure out: replay_erasures(…, [each for each in erasures if each.key is not None]).",
            record,
        )
    if record.table != name:
        raise QueryError(
            f"An erasure is of the table {record.table!r}, and {model.name} has {name!r}. Give the model of the "
            "erasure.",
            record,
        )
    if lacking := set(record.fields) - {column.name for column in columns_named(model, record.fields)}:
        raise QueryError(
            f"An erasure of {name!r} {record.key!r} names {', '.join(sorted(lacking))}, which {name!r} does not have. "
            "If the column was renamed, give the erasure with its new name: dataclasses.replace(erasure, fields=…).",
            record,
        )


class _Erasing:
    """The erasure of a row and of the rows that follow it. Everything is looked at before anything is written.

    :ivar row: the row itself
    :ivar followers: the rows that follow it, by their hierarchies
    :ivar groups: all of them
    """

    def __init__(
        self, session: Session, model: TrackedModel, key: Key, names: Collection[str], values: Mapping[Any, Any]
    ) -> None:
        self.session = session
        session.flush()
        subjects = subjects_of_metadata(model)
        columns = columns_named(model, names)
        own = {name: value for name, value in values.items() if isinstance(name, str)}
        of_models = _values_of_followers(model, values, {subject.model for subject in subjects})
        self.row = RowsToErase(session, model, columns, values_by_column(model, own, columns), {key: None})
        self.row.find()
        self.followers = []
        for follower, numbers in sorted(versions_that_followed(session, model, key, subjects).items(), key=_name):
            if fields := personal_names(follower):
                columns = erasable_columns(follower, fields)
                replacing = values_by_column(follower, of_models.get(follower, {}), columns)
                rows = RowsToErase(session, follower, columns, replacing, numbers, is_follower=True)
                rows.find()
                for each in rows.versions:
                    checked_key(follower.table, _one(each), _NO_TEXT)
                self.followers.append(rows)
        self.groups = [self.row, *self.followers]

    def erase(self) -> None:
        for rows in self.groups:
            rows.erase()


def _values_of_followers(
    model: TrackedModel, values: Mapping[Any, Any], following: Collection[TrackedModel]
) -> dict[TrackedModel, Mapping[str, Any]]:
    """Return what the live rows of other models get.

    :raises QueryError: the rows of a model follow no rows
    """
    given = {model_of(source).root: each for source, each in values.items() if not isinstance(source, str)}
    for each in given:
        if each not in following:
            raise QueryError(
                f"values has {each.name}, whose rows follow no others. Give values of {model.name} by the names of its "
                "fields.",
                each.mapper.class_,
            )
    return given


def _name(item: tuple[TrackedModel, Any]) -> str:
    return item[0].table.live.fullname


def _one(key: Key) -> Any:
    return key[0] if len(key) == 1 else key


# --- records ----------------------------------------------------------------------------------------------------


def _of_table(rows: RowsToErase) -> ErasedTable:
    return ErasedTable(rows.model.table.live.fullname, len(rows.versions), tuple(sorted(rows.names)), rows.count)


def _by_table(rows: Sequence[Any], names: Mapping[str, str]) -> Iterator[ErasedTable]:
    tables: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        tables[names.get(row.history_table, row.history_table)].append(row)
    for name, of_table in sorted(tables.items()):
        fields = sorted({field for row in of_table for field in row.fields})
        versions = sum(row.versions for row in of_table)
        yield ErasedTable(name, len({row.row_key for row in of_table}), tuple(fields), versions)


def _record(erasing: _Erasing, record: Erasure) -> None:
    """Record an erasure, unless it is known, and one of each row that followed. Refresh the objects of the rows."""
    row = erasing.row
    known = required_maintenance_tables(row.connection, row.model.table.live.metadata, "erase()").erasures
    statement = select(known.c.erasure_id).where(known.c.erasure_id == record.erasure_id)
    if row.connection.scalar(statement, execution_options=INTERNAL) is None:
        _insert(row, record, [(record.key, record.versions)])
    for rows in erasing.followers:
        caused = replace(record, fields=tuple(sorted(rows.names)), caused_by=record.erasure_id)
        _insert(rows, caused, [(_one(key), len(numbers)) for key, numbers in rows.versions.items()])
    refresh_objects(erasing.session, erasing.groups)  # past objects look at the record


def _insert(rows: RowsToErase, record: Erasure, counts: Iterable[tuple[Any, int]]) -> None:
    """Record the erasure of rows, given as keys and numbers of versions. An id that is given is that of one row."""
    table = rows.model.table
    known = required_maintenance_tables(rows.connection, table.live.metadata, "erase()").erasures
    values = [
        {
            "erasure_id": uuid4() if record.caused_by else record.erasure_id,
            "history_table": table.history.fullname,
            "row_key": checked_key(table, key, _NO_TEXT)[1],
            "fields": list(record.fields),
            "versions": count,
            "reason": record.reason,
            "erased_by": record.erased_by,
            "at": record.erased_at,
            "caused_by": record.caused_by,
        }
        for key, count in counts
    ]
    statement = insert(known).values(erased_at=bindparam("at", type_=UTCDateTime()))
    for chunk in chunks(values):
        rows.connection.execute(statement, list(chunk), execution_options=INTERNAL)
