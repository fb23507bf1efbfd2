"""How is a person forgotten? Their values go from every version of a row, and from the live row.

.. code-block:: python

    erase(session, Customer, 42, fields=["name", "email"], reason="request of 3 May", values={"name": "erased"})

What happened, when and in which order stays. The names of the erased columns stand in the ``extra`` of each version, so
that a read knows an erased value from one that was NULL, and :mod:`sqlaudit.erased` says what it gives. The table
``sqlaudit_erasures`` records each erasure, without a value, so that it can be repeated after a restore from a backup.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import Column, Connection, insert, null, select, type_coerce, update
from sqlalchemy.orm import InstanceState, Session, scoped_session

from sqlaudit.asynchronous import also_async
from sqlaudit.config import current_config, current_user_id
from sqlaudit.erased import erased_columns, marked
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.door import writable_history
from sqlaudit.maintenance.holding import refuse_held
from sqlaudit.period import UTCDateTime
from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.retrieval.key_texts import checked_key, parsed_key
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.keys import Key
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.history import Version
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.maintenance_tables import required_maintenance_tables
from sqlaudit.tracking.models import TrackedModel, tracked_model
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable
from sqlaudit.wire import Report, Value

_AnySession = Session | scoped_session[Any]
_NO_TEXT = "Erase the row through a model whose key is made of numbers, texts, dates or UUIDs."


@dataclass(frozen=True, slots=True, repr=False)
class Erasure(Report):
    """What was erased of a row, without a value.

    :param erasure_id: the id of the erasure
    :param table: the full name of the table
    :param key: the key of the row, a tuple if it is composite
    :param fields: the names of the erased columns
    :param versions: the number of versions that had not been erased before
    :param reason: why
    :param erased_by: the user; ``None`` if no user is known
    :param erased_at: when, in UTC
    """

    erasure_id: UUID
    table: str
    key: Value
    fields: tuple[str, ...]
    versions: int
    reason: str
    erased_by: str | None
    erased_at: datetime


@also_async
def erase(
    session: _AnySession,
    model_class: type[Any],
    resource_id: Any,
    *,
    fields: Collection[str] | Literal["all"],
    reason: str,
    values: Mapping[str, Any] | None = None,
) -> Erasure:
    """Erase fields of a row, in all its versions and in the live row, in the session's transaction.

    .. code-block:: python

        erase(
            session,
            Customer,
            42,
            fields=["name", "email"],
            reason="request of 3 May",
            values={"name": "erased"},
        )

    The live row gets NULL, or the value that you give, and no version of its own. Every other fact of a version stays.
    Reads give ``ERASED`` for the values; in SQL they are NULL. Erasing them again does nothing.

    What the session has still to flush is flushed first. Objects of the row that it holds are refreshed. The number of
    statements follows the number of versions.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :param fields: the names of the fields, of subclasses, too; or ``"all"`` for all fields but the key, and the column
        that tells the class of a row
    :param reason: why; the user is that of the audit context
    :param values: what the live row gets instead of NULL, for columns that cannot be NULL
    :return: what was erased
    :raises TrackingError: the model is not tracked
    :raises QueryError: the row has a legal hold or no history; a field is part of the key, is unknown or is not stored;
        a column of the live row needs a value; the reason is empty; or the database lacks the table of erasures
    """
    session = checked_session(session)
    if not isinstance(reason, str) or not reason.strip() or "\0" in reason:
        raise QueryError(f"The reason of an erasure is {reason!r}. Give a text that says why.", reason)
    model = model_of(model_class).root
    columns = _columns_of(model, fields)
    key, text = checked_key(model.table, resource_id, _NO_TEXT)
    made = _Erasing(session, model, key, columns, _values_by_column(model, values or {}, columns))
    versions = made.run()
    record = Erasure(
        uuid4(),
        model.table.live.fullname,
        key[0] if len(key) == 1 else key,
        tuple(sorted({column.name for column in columns})),
        versions,
        reason,
        current_user_id(),
        current_config().now(),
    )
    if versions:
        _record(made.connection, model.table, record, text)
        made.refresh_objects()
    return record


@also_async
def erasures(session: _AnySession, model_class: type[Any]) -> list[Erasure]:
    """Return the erasures of a model's rows, the earliest first. Keep them outside the backups of the database.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model
    :raises TrackingError: the model is not tracked
    :raises QueryError: the database lacks the table of erasures
    """
    session = checked_session(session)
    table = model_of(model_class).root.table
    connection = connection_for_versions(session, table.mapper)
    columns = required_maintenance_tables(connection, table.live.metadata, "erasures()").erasures.c
    at = type_coerce(columns.erased_at, UTCDateTime()).label("at")
    statement = (
        select(*columns, at).where(columns.history_table == table.history.fullname).order_by(at, columns.erasure_id)
    )
    found = []
    for row in connection.execute(statement, execution_options=INTERNAL):
        key = parsed_key(table, row.row_key)
        one = key[0] if len(key) == 1 else key
        made = row.erasure_id, table.live.fullname, one, tuple(row.fields), row.versions
        found.append(Erasure(*made, row.reason, row.erased_by, row.at))
    return found


@also_async
def replay_erasures(
    session: _AnySession,
    model_class: type[Any],
    erasures: Iterable[Erasure],
    *,
    values: Mapping[str, Any] | None = None,
) -> int:
    """Erase again what was erased before, in the session's transaction: after a restore from an older backup.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: the tracked model whose rows they erased
    :param erasures: what :func:`erasures` returned
    :param values: what live rows get instead of NULL, for columns that cannot be NULL
    :return: the number of versions that had values to erase
    :raises TrackingError: the model is not tracked
    :raises QueryError: an erasure is of another table, or cannot be repeated, as for :func:`erase`
    """
    session, model = checked_session(session), model_of(model_class).root
    total = 0
    for record in erasures:
        if record.table != model.table.live.fullname:
            raise QueryError(
                f"An erasure is of the table {record.table!r}, and {model.name} has "
                f"{model.table.live.fullname!r}. Give the model of the erasure.",
                record,
            )
        key, text = checked_key(model.table, record.key, _NO_TEXT)
        columns = [
            column
            for submodel in model.family()
            for column in submodel.columns.values()
            if column.name in record.fields
        ]
        made = _Erasing(session, model, key, columns, _values_by_column(model, values or {}, columns))
        total += made.run(is_required=False)
        known = required_maintenance_tables(made.connection, model.table.live.metadata, "erase()").erasures
        statement = select(known.c.erasure_id).where(known.c.erasure_id == record.erasure_id)
        if made.connection.scalar(statement, execution_options=INTERNAL) is None:
            _record(made.connection, model.table, record, text)
        made.refresh_objects()
    return total


# --- what is erased ---------------------------------------------------------------------------------------------


def _columns_of(model: TrackedModel, fields: Collection[str] | str) -> list[Column[Any]]:
    """Return the history columns of fields: of all columns of a hierarchy that have their names.

    :raises QueryError: a field cannot be erased
    """
    known = {name: column for submodel in model.family() for name, column in submodel.columns.items()}
    reasons = dict.fromkeys(_key_names(model), "the key, by which versions are found")
    if fields == "all":
        wanted = known.keys() - reasons.keys() - _telling(model)
    elif isinstance(fields, str) or not fields:
        raise QueryError(f'fields is {fields!r}. Give the names of the fields in a list, or "all".', fields)
    else:
        wanted = set(fields)
    for name in sorted(wanted):
        if name not in known:
            raise QueryError(
                f"{model.name} has no stored field {name!r}. It has "
                f"{', '.join(sorted(known.keys() - reasons.keys()))}.",
                name,
            )
        if name in reasons:
            raise QueryError(
                f"{model.name}.{name} is part of {reasons[name]}, so it cannot be erased. Change the key of the live "
                "row to one that names nobody, which makes a new history, delete the old row, and prune its history "
                "with keep_tombstones=False.",
                name,
            )
        if name in _telling(model):
            raise QueryError(
                f"{model.name}.{name} tells the class of a row, so it cannot be erased. Leave it out.", name
            )
    names = {known[name].name for name in wanted}
    columns = [column for submodel in model.family() for column in submodel.columns.values() if column.name in names]
    return list(dict.fromkeys(columns))


def _key_names(model: TrackedModel) -> set[str]:
    keys = {column for submodel in model.family() for table in submodel.chain for column in table.history_key}
    return {name for submodel in model.family() for name, column in submodel.columns.items() if column in keys}


def _telling(model: TrackedModel) -> set[str]:
    expression = model.discriminator
    told_by = set() if expression is None else {column.key for column in expression.base_columns}
    return {name for name, column in model.columns.items() if column.key in told_by}


def _values_by_column(
    model: TrackedModel, values: Mapping[str, Any], columns: Collection[Column[Any]]
) -> dict[Column[Any], Any]:
    known = {name: column for submodel in model.family() for name, column in submodel.columns.items()}
    for name in values:
        if name not in known or known[name] not in columns:
            raise QueryError(f"values has {name!r}, which is not erased. Add it to fields, or leave it out.", name)
    return {known[name]: value for name, value in values.items()}


class _Erasing:
    """Erases columns of one row, in the session's transaction."""

    def __init__(
        self,
        session: Session,
        model: TrackedModel,
        key: Key,
        columns: Sequence[Column[Any]],
        values: Mapping[Column[Any], Any],
    ) -> None:
        self.session, self.model, self.key, self.columns, self.values = session, model, key, columns, values
        session.flush()
        self.connection = connection_for_versions(session, model.table.mapper)
        self.tables = list(dict.fromkeys(table for submodel in model.family() for table in submodel.chain))
        self.names = {column.name for column in columns}

    def run(self, *, is_required: bool = True) -> int:
        """Erase them, and return the number of versions that had not been erased before.

        :raises QueryError: the row cannot be erased
        """
        connection, base = self.connection, self.model.table
        required_maintenance_tables(connection, base.live.metadata, "erase()")
        refuse_held(connection, base, [self.key], "erased")
        live = {table for table in self.tables if self._lock_live_row(table)}
        found = {table: self._versions(table) for table in self.tables}
        if is_required and not found[base]:
            raise QueryError(
                f"{base.live.fullname!r} {self.key[0] if len(self.key) == 1 else self.key!r} has no history to erase. "
                "Check the key; for a row without history, change the live row.",
                base.live,
            )
        changed = {table: list(filter(self._has_values, versions)) for table, versions in found.items()}
        if not changed[base]:
            return 0
        self._refuse_null(live)
        for table in live:
            self._erase_live(table)
        with writable_history(connection, self.tables):
            for table, versions in changed.items():
                self._erase_versions(table, versions)
            for table in live:
                self._copy_live(table)
        return len(changed[base])

    def _has_values(self, version: tuple[int, Any]) -> bool:
        return not self.names <= set(erased_columns(version[1]))

    def _versions(self, table: TrackedTable) -> list[tuple[int, Any]]:
        version = HistoryAlias(table, table.history)
        statement = select(version.version, version.role("extra")).where(version.has_key(self.key))
        return [(number, extra) for number, extra in self.connection.execute(statement, execution_options=INTERNAL)]

    def _lock_live_row(self, table: TrackedTable) -> bool:
        statement = select(table.key[0]).where(all_equal(table.key, self.key)).with_for_update()
        return self.connection.execute(statement, execution_options=INTERNAL).first() is not None

    def _pairs(self, table: TrackedTable) -> list[tuple[Column[Any], Column[Any]]]:
        return [(live, old) for live, old in table.columns if old in self.columns]

    def _refuse_null(self, live: Collection[TrackedTable]) -> None:
        lacking = [
            column.name
            for table in live
            for column, old in self._pairs(table)
            if not column.nullable and column.computed is None and self.values.get(old) is None
        ]
        if lacking:
            raise QueryError(
                f"{', '.join(lacking)} of the live row of {self.model.table.live.fullname!r} cannot be NULL. Give what "
                f"it gets: values={{{lacking[0]!r}: …}}.",
                self.model.table.live,
            )

    def _erase_versions(self, table: TrackedTable, versions: Iterable[Any]) -> None:
        extra = table.role("extra")
        nulls = {old.key: None for _, old in self._pairs(table)}
        for number, known in versions:
            statement = update(table.history).where(all_equal(table.history_key, self.key), table.version == number)
            statement = statement.values({**dict.fromkeys(nulls, null()), extra.key: marked(known, self.names)})
            self.connection.execute(statement, execution_options=INTERNAL)

    def _erase_live(self, table: TrackedTable) -> None:
        new = {live: self.values.get(old, null()) for live, old in self._pairs(table) if live.computed is None}
        if new:
            kept = {column: column for column in table.live.c if column.onupdate is not None and column not in new}
            statement = update(table.live).where(all_equal(table.key, self.key)).values({**kept, **new})
            self.connection.execute(statement, execution_options=INTERNAL)

    def _copy_live(self, table: TrackedTable) -> None:
        """Let the open version have what the live row has now, in the erased and the computed columns."""
        version = HistoryAlias(table, table.history)
        stored = {
            old.key: select(live).where(all_equal(table.key, self.key)).scalar_subquery()
            for live, old in table.columns
            if old in self.columns or live.computed is not None
        }
        if stored:
            statement = update(table.history).where(version.has_key(self.key), version.is_open).values(stored)
            self.connection.execute(statement, execution_options=INTERNAL)

    def refresh_objects(self) -> None:
        """Refresh the row's objects in the session: live ones, versions, and those of the past."""
        for state in list(self.session.identity_map.all_states()):
            obj, model = state.obj(), tracked_model(state.mapper)
            if isinstance(obj, Version):
                model = obj.__sqlaudit_model__
            if obj is None or model is None or model.root is not self.model or not self._is_of_row(state):
                continue
            self.session.refresh(obj)

    def _is_of_row(self, state: InstanceState[Any]) -> bool:
        identity = state.key[1] if state.key else ()
        return tuple(identity[: len(self.key)]) == tuple(self.key)


def _record(connection: Connection, table: TrackedTable, record: Erasure, key: str) -> None:
    known = required_maintenance_tables(connection, table.live.metadata, "erase()").erasures
    values = {
        "erasure_id": record.erasure_id,
        "history_table": table.history.fullname,
        "row_key": key,
        "fields": list(record.fields),
        "versions": record.versions,
        "reason": record.reason,
        "erased_by": record.erased_by,
        "erased_at": type_coerce(record.erased_at, UTCDateTime()),
    }
    connection.execute(insert(known).values(values), execution_options=INTERNAL)
