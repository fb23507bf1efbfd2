"""How does the change log of sqlaudit 0.5 to 0.7 become history? Field changes, as texts, become whole rows.

An entry records one write of one row: when, by whom, and for each changed field the text of its value before and after.
The value of a field at an instant is the new value of the last change before it; or else the old value of the first
change after it; or else the present value. The log recorded no deletions, and only tracked fields: a deleted row gets a
tombstone of now, and a column that was not tracked gets its present value.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    DateTime,
    Dialect,
    Insert,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    bindparam,
    insert,
    select,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from sqlaudit.asynchronous import also_async_where
from sqlaudit.changes import Operation
from sqlaudit.context import user_id_text
from sqlaudit.exceptions import QueryError
from sqlaudit.importing.targets import column_names_of, import_target, reconcile_after_import
from sqlaudit.importing.values import UNREAD, read_text
from sqlaudit.period import OPEN_END, TICK
from sqlaudit.recording.cascades import split_by_chain
from sqlaudit.recording.changeset import changeset_id_of
from sqlaudit.sql.batches import in_pages
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import joined_live_tables
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import TrackedModel, attribute_of, tracked_model_of
from sqlaudit.tracking.tables import TrackedTable, prepare_connection
from sqlaudit.wire import Report

_metadata: Final = MetaData()
_tables: Final = Table(
    "SQLAuditTables",
    _metadata,
    Column("table_id", Integer, primary_key=True),
    Column("table_name", String),
    Column("resource_id_field", String),
)
_fields: Final = Table(
    "SQLAuditFields",
    _metadata,
    Column("field_id", Integer, primary_key=True),
    Column("table_id", Integer),
    Column("field_name", String),
)
_logs: Final = Table(
    "SQLAuditLogs",
    _metadata,
    Column("record_id", Uuid, primary_key=True),
    Column("table_id", Integer),
    Column("resource_id", String),
    Column("timestamp", DateTime),
    Column("changed_by", String),
    Column("impersonated_by", String),
    Column("reason", String),
)
_changes: Final = Table(
    "SQLAuditFieldChanges",
    _metadata,
    Column("change_id", Integer, primary_key=True),
    Column("record_id", Uuid),
    Column("field_id", Integer),
    Column("old_value", String),
    Column("new_value", String),
)
_log: Final = logging.getLogger(__package__)


@dataclass(frozen=True, slots=True, repr=False)
class ChangeLogReport(Report):
    """What :func:`import_change_log` wrote.

    :param rows: the number of rows, deleted ones included, whose history was taken over from the log
    :param versions: the number of their versions
    :param left_alone: the number of rows that had a history already
    :param baselines: the number of live rows that the log did not know; they have a baseline of now
    :param recorded: the number of versions of now that make the history agree with the live rows
    :param unread: the number of texts that are no values of their columns; they are in ``extra["unread"]`` of their
        versions
    """

    rows: int
    versions: int
    left_alone: int
    baselines: int
    recorded: int
    unread: int


@dataclass(slots=True)
class _Log:
    """One entry of the log: one write of one row."""

    id: UUID
    at: datetime
    changed_by: str | None
    impersonated_by: str | None
    reason: str | None
    before: dict[str, str | None] = field(default_factory=dict)
    after: dict[str, str | None] = field(default_factory=dict)


@also_async_where
def import_change_log(
    where: Session | Connection, model_class: type[Any], *, time_zone: tzinfo = UTC
) -> ChangeLogReport:
    """Import what sqlaudit 0.5 to 0.7 logged of a model, in the caller's transaction.

    Rows that have a history are left alone, so a second import does nothing more. Two entries of one row and one
    instant become two versions, the later one 1 µs after the earlier. The log itself stays as it is.

    :param where: a session or a connection; if it is asynchronous, await the result. In a migration, ``op.get_bind()``
    :param model_class: a tracked model with a key of one column, by which the log names its rows
    :param time_zone: the time zone of the log's times
    :raises TrackingError: the model is not tracked
    :raises QueryError: there is no such log, or it does not name the rows by their key
    :raises ContextError: the log names a user by more characters than the history can hold
    :raises HistoryTableError: the database lacks the history table
    """
    model = tracked_model_of(model_class)
    with import_target(where, model.root.table) as (session, connection), explaining_history_errors(model.chain):
        importing = _Import(connection, model, time_zone)
        importing.run()
        baselines, recorded = reconcile_after_import(session, connection, model_class)
    counts = importing
    report = ChangeLogReport(counts.rows, counts.versions, counts.left_alone, baselines, recorded, counts.unread)
    _log.info("%s: %r", model.table.live.fullname, report)
    return report


class _Import:
    def __init__(self, connection: Connection, model: TrackedModel, time_zone: tzinfo) -> None:
        self.connection = connection
        self.model = model
        self.root = model.root.table
        self.time_zone = time_zone
        self.rows = self.versions = self.left_alone = self.unread = 0

    def run(self) -> None:
        table_id = self._table_id()
        of_table = select(_logs.c.resource_id).where(_logs.c.table_id == table_id)
        of_table = of_table.order_by(_logs.c.resource_id).distinct()
        for ids in in_pages(lambda s: self.connection.scalars(s).all(), of_table, lambda id: _logs.c.resource_id > id):
            by_key = {self._key(resource_id): resource_id for resource_id in ids}
            if twice := set(ids) - set(by_key.values()):
                raise QueryError(
                    f"The change log names rows of {self.root.live.fullname!r} in two ways, one of them "
                    f"{', '.join(sorted(twice))}. Give each row one name in the log.",
                    self.model,
                )
            self._import(by_key, table_id)

    def _table_id(self) -> int:
        """Return the id that the log gives the model's table.

        :raises QueryError: there is no log, it lacks the table, or it does not name the rows by their key
        """
        name = self.model.table.live.name
        for table in _metadata.tables.values():
            column_names_of(
                self.connection,
                table.name,
                None,
                "Connect to the database that has the change log of sqlaudit 0.5 to 0.7.",
            )
        logged = select(_tables).where(_tables.c.table_name == name)
        entry = self.connection.execute(logged).first()
        if entry is None:
            raise QueryError(
                f"The change log does not name the table {name!r}, so it has nothing to import for this model. Give a "
                "model whose changes it has logged.",
                self.model,
            )
        key = [self.model.mapper.get_property_by_column(column).key for column in self.model.mapper.primary_key]
        if key != [entry.resource_id_field]:
            raise QueryError(
                f"The change log names rows of {name!r} by {entry.resource_id_field!r}, but the key of the rows is "
                f"{', '.join(key)}. sqlaudit can only import logs that name rows by a key of one column.",
                self.model,
            )
        return int(entry.table_id)

    def _key(self, resource_id: str) -> Key:
        (column,) = self.root.key
        value = read_text(resource_id, column.type, self.connection.dialect)
        if value is UNREAD:
            raise QueryError(
                f"The change log names a row {resource_id!r}, which is not a key of {self.root.live.fullname!r}. "
                "Delete the logs of this row, or name the row by its key.",
                self.model,
            )
        return (value,)

    def _import(self, ids: Mapping[Key, str], table_id: int) -> None:
        """Import the entries of some rows."""
        known = select(*self.root.history_key).where(one_of(self.root.history_key, list(ids))).distinct()
        recorded = {tuple(row) for row in self.connection.execute(known)}
        self.left_alone += len(recorded)
        new = {key: id for key, id in ids.items() if key not in recorded}
        logs = self._logs_of(list(new.values()), table_id)
        new = {key: id for key, id in new.items() if id in logs}  # entries without field changes are ignored
        living = self._live_keys(list(new))
        for chain, keys_of_chain in split_by_chain(self.connection, self.root, [key for key in new if key in living]):
            model = next(submodel for submodel in self.model.root.family() if submodel.chain == chain)
            states = self._live(model, keys_of_chain)
            self._write(model, [(key, states[key], logs[new[key]]) for key in keys_of_chain])
        deleted = [key for key in new if key not in living]
        unknown = _deleted_values_of(self.model)
        self._write(self.model, [(key, unknown, logs[new[key]]) for key in deleted])

    def _live_keys(self, keys: list[Key]) -> set[Key]:
        statement = select(*self.root.key).where(one_of(self.root.key, keys))
        return {tuple(row) for row in self.connection.execute(statement)} if keys else set()

    def _live(self, model: TrackedModel, keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
        """Return the values of live rows: key → field → value."""
        named = _fields_of(model)
        chosen = select(*self.root.key, *named.values()).where(one_of(self.root.key, keys))
        chosen = chosen.select_from(joined_live_tables(model.chain))
        rows = self.connection.execute(chosen)
        return {tuple(row[:1]): dict(zip(named, row[1:], strict=True)) for row in rows}

    def _logs_of(self, ids: list[str], table_id: int) -> dict[str, list[_Log]]:
        """Return the entries of rows, the oldest first."""
        chosen = (
            select(_logs, _fields.c.field_name, _changes.c.old_value, _changes.c.new_value)
            .join(_changes, _changes.c.record_id == _logs.c.record_id)
            .join(_fields, _fields.c.field_id == _changes.c.field_id)
            .where(_logs.c.table_id == table_id, _logs.c.resource_id.in_(ids))
            .order_by(_logs.c.resource_id, _logs.c.timestamp, _changes.c.change_id)
        )
        entries: dict[str, dict[UUID, _Log]] = defaultdict(dict)
        for row in self.connection.execute(chosen):
            at = row.timestamp.replace(tzinfo=row.timestamp.tzinfo or self.time_zone).astimezone(UTC)
            of_whom = f"of a log of {row.resource_id!r}"
            changed_by = user_id_text(row.changed_by, f"changed_by {of_whom}")
            impersonated_by = user_id_text(row.impersonated_by, f"impersonated_by {of_whom}")
            log = _Log(row.record_id, at, changed_by, impersonated_by, row.reason)
            log = entries[row.resource_id].setdefault(row.record_id, log)
            log.before.setdefault(row.field_name, row.old_value)
            log.after[row.field_name] = row.new_value
        return {id: list(logs.values()) for id, logs in entries.items()}

    def _write(self, model: TrackedModel, rows: Sequence[tuple[Key, Mapping[str, Any], list[_Log]]]) -> None:
        reading = _TextReader(model, self.connection.dialect)
        versions = [version for key, live, logs in rows for version in self._versions(reading, key, live, logs)]
        prepare_connection(self.connection, model.chain)
        self.rows += len(rows)
        self.versions += len(versions)
        for table in model.chain if versions else ():
            self.connection.execute(_insert_into(table), [_row_of(table, model, version) for version in versions])

    def _versions(
        self, reading: _TextReader, key: Key, live: Mapping[str, Any], logs: Sequence[_Log]
    ) -> Iterator[_Version]:
        """Yield the versions of a row, the oldest first."""
        state = reading.before(logs, live)
        at, unread = logs[0].at, reading.take()
        is_insert = reading.begins_with_insert(logs)
        number = 1
        if not is_insert:
            audit = _audit(number, at, at, Operation.BASELINE, changeset_id=_changeset_id(logs[0]))
            yield _Version(key, dict(state), audit)
            number = 2
        for place, log in enumerate(logs):
            following = logs[place + 1].at if place + 1 < len(logs) else None
            end = OPEN_END if following is None else max(following, at + TICK)
            state |= reading.read(log.after)
            unread |= reading.take()
            operation = Operation.INSERT if is_insert and place == 0 else Operation.UPDATE
            extra = {"unread": unread} if unread else None
            yield _Version(key, dict(state), _audit(number, at, end, operation, log, extra))
            self.unread += len(unread)
            at, number, unread = end, number + 1, {}


@dataclass(frozen=True, slots=True)
class _Version:
    key: Key
    values: dict[str, Any]
    audit: dict[str, Any]


def _audit(
    number: int,
    begin: datetime,
    end: datetime,
    operation: Operation,
    log: _Log | None = None,
    extra: Any = None,
    *,
    changeset_id: UUID | None = None,
) -> dict[str, Any]:
    return {
        "version": number,
        "valid_from": begin,
        "valid_to": end,
        "operation": operation,
        "changeset_id": changeset_id if log is None else _changeset_id(log),
        "changed_by": log and log.changed_by,
        "impersonated_by": log and log.impersonated_by,
        "reason": log and log.reason,
        "extra": extra,
    }


def _changeset_id(log: _Log) -> UUID:
    return log.id if log.id.version == 7 else changeset_id_of(str(log.id), log.at)


def _insert_into(table: TrackedTable) -> Insert:
    audit_columns = [table.role(role) for role, _ in table.names.items()]
    typed = ((live, old, live.type if live.name in table.hashed else old.type) for live, old in table.columns)
    values: dict[Any, Any] = {
        old: table.recorded(live, bindparam(old.key, type_=_null_as_null(type_))) for live, old, type_ in typed
    }
    statement = insert(table.history).values(values | {column: bindparam(column.key) for column in audit_columns})
    return statement.execution_options(**INTERNAL)


def _row_of(table: TrackedTable, model: TrackedModel, version: _Version) -> dict[str, Any]:
    named = ((attribute_of(model.mapper, live), old) for live, old in table.columns)
    values = {old.key: version.values[name] for name, old in named if name}
    values |= {column.key: value for column, value in zip(table.history_key, version.key, strict=True)}
    return values | {table.role(role).key: value for role, value in version.audit.items()}


def _null_as_null(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type that stores ``None`` as NULL, not as the null of JSON, which the log does not have."""
    return JSON(none_as_null=True) if isinstance(type_, JSON) else type_


def _fields_of(model: TrackedModel) -> dict[str, Column[Any]]:
    """Return the live columns that history stores: field → column."""
    return {name: live for _, name, live in _fields_by_table(model)}


def _fields_by_table(model: TrackedModel) -> Iterator[tuple[TrackedTable, str, Column[Any]]]:
    for table in model.chain:
        for live, _ in table.columns:
            if name := attribute_of(model.mapper, live):
                yield table, name, live


def _deleted_values_of(model: TrackedModel) -> dict[str, Any]:
    """Return the values of a deleted row: ``None`` for every field, except the discriminator of the model."""
    nothing: dict[str, Any] = dict.fromkeys(_fields_of(model))
    discriminator = model.discriminator
    if discriminator is not None:
        nothing[model.mapper.get_property_by_column(discriminator).key] = model.mapper.polymorphic_identity
    return nothing


# --- from texts to values ---------------------------------------------------------------------------------------


class _TextReader:
    """Reads texts as values of fields, and remembers the texts that it cannot read, except those of redacted fields."""

    def __init__(self, model: TrackedModel, dialect: Dialect) -> None:
        fields = list(_fields_by_table(model))
        self.types = {name: Text() if live.name in table.hashed else live.type for table, name, live in fields}
        self.redacted = {name for table, name, live in fields if live.name in table.redact}
        self.dialect = dialect
        self._unread: dict[str, str] = {}

    def take(self) -> dict[str, str]:
        """Return the texts that could not be read since the last call: field → text."""
        unread, self._unread = self._unread, {}
        return unread

    def read(self, texts: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the values of the fields that history stores; ``None`` for a text that cannot be read."""
        values = {
            name: read_text(text, self.types[name], self.dialect) for name, text in texts.items() if name in self.types
        }
        self._unread |= {
            name: str(texts[name]) for name, value in values.items() if value is UNREAD and name not in self.redacted
        }
        return {name: None if value is UNREAD else value for name, value in values.items()}

    def before(self, logs: Sequence[_Log], live: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values before the first entry."""
        return dict(live) | self.read(_before(logs))

    def begins_with_insert(self, logs: Sequence[_Log]) -> bool:
        """Return whether the row had no values before the first entry; a text that cannot be read is a value, too."""
        known = [text for name, text in _before(logs).items() if name in self.types]
        return all(text is None for text in (*logs[0].before.values(), *known))


def _before(logs: Sequence[_Log]) -> dict[str, str | None]:
    """Return the texts of the fields before the first entry."""
    texts: dict[str, str | None] = {}
    for log in logs:
        texts = log.before | texts
    return texts
