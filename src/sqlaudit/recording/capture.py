"""Which versions does a change make? Set-based SQL in the same transaction turns keys of written rows into versions.

The common case takes two statements per table and operation, whatever the number of rows: *close* the open versions,
*snapshot* the live rows (:meth:`Capture.inserted` takes one). On PostgreSQL one statement does both, unless Citus
distributes the tables; on MariaDB a block of statements does both for one row. The rowcounts show whether every row was
handled. If not, :meth:`Capture.settle` reads the last version of each row and makes the history agree with the live
rows. That happens for a row without history, a version of a later instant, a row that the same transaction has written
before, and an UPDATE that changed nothing.

The database copies the values; only old values that are known of a row without history come from Python. The database
clock is never read: the instant is a bound parameter.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from functools import cached_property
from typing import Any, Final, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, CursorResult, Select, literal, literal_column, null, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from sqlaudit.changes import Operation
from sqlaudit.config import current_config
from sqlaudit.context import AuditContext, user_id_text
from sqlaudit.period import OPEN_END, TICK, OpenEnd
from sqlaudit.recording.changeset import ChangesetStamp
from sqlaudit.recording.clauses import NO_USER_FIELDS, UserFields, copying_into, key_types_of
from sqlaudit.recording.events import committed_listeners, note, recorded_listeners
from sqlaudit.recording.policy import report_unrecorded, warn_of_visible_history
from sqlaudit.recording.prepared import Prepared
from sqlaudit.recording.statements import LiveRows, OpenVersions, Statements
from sqlaudit.sql.batches import Batch, KeyCollection, SelectedKeys, batches, chunks
from sqlaudit.sql.comparing import may_be_respelt
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, KeyTypes, RawKey, is_raw
from sqlaudit.sql.lists import are_unchanged_by_json, has_one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.catalogue import are_distributed, ask_once, columns_compared_as_text, tables_with_guard
from sqlaudit.tracking.foreign_keys import Chain
from sqlaudit.tracking.horizons import is_pruned
from sqlaudit.tracking.missing import explain_history_error, explaining_history_errors
from sqlaudit.tracking.rights import hides_rows
from sqlaudit.tracking.tables import TrackedTable, prepare_connection

T = TypeVar("T")
OldValues = Callable[[Key], Mapping[Column[Any], Any]]
"""Gives the known old values of a row: key → live column → value."""


_KEY_NAMES: Final = tuple(f"sqlaudit_key_{index}" for index in range(100))


def _no_old_values(key: Key) -> Mapping[Column[Any], Any]:
    return {}


_log: Final = logging.getLogger(__package__)


class MissingRows(Enum):
    """What a write is known to have done to rows that are no longer found."""

    DELETED = auto()
    """It deleted them, as far as sqlaudit knows."""
    UPDATED = auto()
    """It updated them, so they should still be there: sqlaudit warns."""
    LEFT = auto()
    """It did not change them: their open versions stay."""
    UNKNOWN = auto()
    """This is unknown: sqlaudit warns if row security may hide them, and else takes them for deleted."""


@dataclass(slots=True)
class _Last:
    """The last version of a row, as :meth:`Statements.last` reads it."""

    key: Key
    version: int
    valid_from: datetime
    valid_to: datetime
    operation: Operation
    is_own: bool
    same_context: bool
    is_deleted: bool
    has_changed: bool

    @property
    def is_open(self) -> bool:
        return self.valid_to == OPEN_END

    def ended_at(self, at: datetime) -> bool:
        """Return whether the live row exists and its last version was closed at an instant."""
        return self.valid_to == at and not self.is_deleted

    @property
    def agrees(self) -> bool:
        return self.is_deleted != self.is_open and not (self.is_open and self.has_changed)


def _by_recorded_key(before: OldValues, given_keys: Mapping[Key, Key]) -> OldValues:
    return lambda key: before(given_keys.get(key, key))


@dataclass(frozen=True, slots=True)
class WriteContext:
    """Who writes tracked rows, in which transaction, and through which connection."""

    connection: Connection
    changeset: ChangesetStamp
    context: AuditContext

    def capture(self, chain: Chain, user_fields: UserFields = NO_USER_FIELDS) -> Capture:
        """Return the capture that writes the versions of rows in a chain of tables.

        :param user_fields: see :class:`~sqlaudit.recording.clauses.Clauses`
        """
        if recorded_listeners or committed_listeners:
            return HeardCapture(self, chain, user_fields)
        return Capture(self, chain, user_fields)


class Capture:
    """Writes versions of rows in one chain of tables, in the transaction of a connection."""

    def __init__(self, write: WriteContext, chain: Chain, user_fields: UserFields) -> None:
        prepare_connection(write.connection, chain)
        self.connection = write.connection
        self.changeset = changeset = write.changeset
        self.context = context = write.context
        self.chain = chain
        self.is_append_only = chain[0].append_only
        self.user_fields = user_fields
        self._chosen: dict[tuple[bool, bool], Statements] = {}
        callback = None
        if context.user_id is None and (get_user_id := current_config().get_user_id_callback) is not None:
            callback = user_id_text(get_user_id(), "the id that get_user_id_callback gives")
        by_row = self.by_row = user_fields is not NO_USER_FIELDS
        self.user = context.user_id if context.user_id is not None or by_row else callback
        self.parameters: dict[str, Any] = {
            "sqlaudit_changeset": changeset.id,
            "sqlaudit_user": self.user,
            "sqlaudit_impersonated_by": context.impersonated_by,
            "sqlaudit_reason": context.reason,
            "sqlaudit_extra": context.extra,
            "sqlaudit_at": changeset.at,
        }
        if by_row:
            self.parameters["sqlaudit_callback_user"] = callback

    def inserted(self, keys: KeyCollection[Key], *, must_be_found: bool = True) -> None:
        """Write the first versions of new rows, with one statement per table and batch.

        :param must_be_found: see :meth:`settle`
        """
        for batch in self._batches(keys):
            statements = self._statements(batch)
            try:
                complete = not self._have_lost_first_versions(batch) and (
                    self._run(batch, statements.snapshot(Operation.INSERT, LiveRows.NEW)) == len(batch)
                )
            except IntegrityError:
                if not TRAITS[self.connection.dialect.name].locks_scanned_rows:
                    raise
                complete = False  # a key has a history; the database undid only this statement
            if not complete:
                for chunk in chunks(self._unsettled(batch)):
                    self.settle(chunk, inserted=frozenset(chunk), must_be_found=must_be_found)

    def _have_lost_first_versions(self, batch: Batch) -> bool:
        """Return whether new rows have a history that may be pruned, where only a second version number 1 is refused.

        The history is read without a lock, which would be one of its neighbours, too.
        """
        base = self.chain[0]
        if not TRAITS[self.connection.dialect.name].locks_scanned_rows or not is_pruned(self.connection, base):
            return False
        for chunk in chunks(list(batch)):
            has_history = has_one_of(base.history_key, chunk, self.connection.dialect)
            statement: Select[Any] = select(literal_column("1")).where(has_history).limit(1)
            if self.connection.execute(statement, execution_options=INTERNAL).first() is not None:
                return True
        return False

    def updated(
        self,
        keys: KeyCollection[Key],
        before: OldValues = _no_old_values,
        *,
        missing_rows: MissingRows = MissingRows.UPDATED,
    ) -> None:
        """Write versions of rows that may have changed, with two statements per table and batch.

        :param before: gives the known old values, for rows without history
        :param missing_rows: see :meth:`settle`
        """
        for batch in self._batches(keys):
            statements = self._statements(batch)
            if self._takes_one_statement(batch):
                if self._run(batch, statements.close_and_snapshot()) < len(batch):
                    self.settle(self._unsettled(batch), before=before, missing_rows=missing_rows)
                continue
            closed = self._run(batch, statements.close(OpenVersions.CHANGED, guarded=True))
            if closed == len(batch):
                self._run(batch, statements.snapshot(Operation.UPDATE, LiveRows.ALL))
                continue
            if closed and isinstance(batch, SelectedKeys):  # only the few other rows are read into memory
                self._run(batch, statements.snapshot(Operation.UPDATE, LiveRows.CLOSED))
                closed = 0
            self.settle(self._unsettled(batch), before=before, missing_rows=missing_rows, some_closed=closed > 0)

    def deleted(self, keys: KeyCollection[Key], before: OldValues = _no_old_values) -> None:
        """Write the tombstones of deleted rows, with two statements per table and batch.

        The statements check that the live row is gone, since a trigger or a rule may replace a deletion. On MariaDB
        and MySQL no trigger can, and the check would lock the neighbours of the deleted row.
        """
        locks_neighbours = TRAITS[self.connection.dialect.name].locks_scanned_rows
        versions = OpenVersions.ALL if locks_neighbours else OpenVersions.DELETED
        for batch in self._batches(keys):
            statements = self._statements(batch)
            if self._takes_one_statement(batch):
                complete = self._run(batch, statements.close_and_tombstone(versions)) >= len(batch)
            elif self._run(batch, statements.tombstone(versions, guarded=True)):
                complete = self._run(batch, statements.close(versions, guarded=True)) == len(batch)
            else:
                complete = False
            if not complete:
                self.settle(self._unsettled(batch), before=before)

    def baseline(self, keys: KeyCollection[Key]) -> None:
        """Write baselines, which begin at the instant, of the live rows that have no open version.

        A change in the same transaction ends a baseline at the same instant. If no change follows, :meth:`settle`
        deletes it, unless the history is append-only. A row that has a version of a later instant gets its baseline
        from :meth:`settle`.
        """
        for batch in self._batches(keys):
            self._run(batch, self._statements(batch).snapshot(Operation.BASELINE, LiveRows.ABSENT))

    def write_missing_baselines(self, keys: Sequence[Key]) -> int:
        """Write permanent baselines of the live rows that have no open version, and return their number.

        A baseline begins at the instant, or when the last version of its row ended, if that is later.
        """
        return sum(self._write_baselines(chunk, self._last(chunk)) for chunk in self._chunks(keys))

    def keys_where(self, columns: tuple[Column[Any], ...], values: Sequence[Key]) -> tuple[set[Key], set[Key]]:
        """Return the keys of the live rows, and of the open versions, whose ``columns`` have one of the values."""
        keys_found: tuple[set[Key], set[Key]] = (set(), set())
        for chunk in self._chunks(values):
            for keys, statement in zip(keys_found, self._statements(chunk).keys(columns), strict=True):
                keys.update(map(RawKey if is_raw(chunk) else tuple, self._read(statement, chunk)))
        return keys_found

    def settle(
        self,
        keys: KeyCollection[Key],
        *,
        inserted: Collection[Key] = frozenset(),
        before: OldValues = _no_old_values,
        must_be_found: bool = True,
        missing_rows: MissingRows = MissingRows.DELETED,
        forgets: bool = True,
        some_closed: bool = False,
    ) -> None:
        """Make the history of rows agree with the live rows, whatever happened to them.

        Where they disagree, the last version is first deleted if this transaction wrote it under the same context. So
        one version shows the whole change, and no version shows a change that was undone. If the history is
        append-only, the last version stays, with an empty period, as it does under another context.

        All changed versions are closed before any is opened, so that two transactions do not deadlock. On MariaDB and
        MySQL, a transaction that opens a version makes those wait that close a version of a neighbouring row (see
        :class:`~sqlaudit.tracking.tables.AddOpenGuard`), and waits for none of them itself.

        :param inserted: the keys of rows that are known to be new; other rows without history get a baseline
        :param before: gives the known old values
        :param must_be_found: warn if an inserted row cannot be found by the key it was given
        :param missing_rows: what the write did to rows that are no longer found
        :param forgets: False to keep the baselines of rows that have not changed, as an append-only history does
        :param some_closed: True if versions of some rows have been closed at the instant, and none opened after them
        """
        for chunk in self._chunks(keys):
            if whole := self._without_null_keys(chunk):
                with explaining_history_errors(self.chain, record=True):
                    self._settle(whole, inserted, before, must_be_found, missing_rows, forgets, some_closed)

    def _without_null_keys(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Return the keys without NULL, and warn of the others, which SQLite allows: they find no row again."""
        whole = [key for key in keys if all(value is not None for value in key)]
        if len(whole) < len(keys):
            live, partial = self.chain[0].live, next(key for key in keys if any(value is None for value in key))
            report_unrecorded(
                f"A row of the tracked table {live.fullname!r} has NULL in its key {partial}, so sqlaudit cannot tell "
                "its versions from those of other rows, and does not record it. Give each row a key without NULL.",
                live,
            )
        return whole

    def _settle(
        self,
        keys: Sequence[Key],
        inserted: Collection[Key],
        before: OldValues,
        must_be_found: bool,
        missing_rows: MissingRows,
        forgets: bool,
        some_closed: bool,
    ) -> None:
        last = self._last(keys)
        closed = {key for key, row in last.items() if some_closed and row.ended_at(self.changeset.at)}
        hidden = self._hidden_keys(last.values(), missing_rows)
        keys = self._key_types.without_equal_keys(keys)
        given_keys = self._recorded_keys_of(keys, last)
        if given_keys is not None:
            keys, inserted = list(given_keys), {recorded for recorded, key in given_keys.items() if key in inserted}
            before = _by_recorded_key(before, given_keys)
        new = inserted
        undone = [row for row in last.values() if not row.agrees and row.is_own and row.same_context]
        undone = [] if self.is_append_only else undone
        undone = [row for row in undone if row.key not in hidden and row.key not in closed]
        if undone:
            self._delete_own_versions(undone)
            inserted = {*inserted, *(row.key for row in undone if row.operation is Operation.INSERT)}
            last = self._last(keys)
        # A row that this transaction has deleted, and whose tombstone stays, is new if it exists.
        inserted = {*inserted, *(row.key for row in last.values() if row.is_own and row.operation is Operation.DELETE)}
        unrecorded = [key for key in keys if key not in inserted and (key not in last or not last[key].is_open)]
        unrecorded = [key for key in unrecorded if key not in closed]
        if unrecorded := [key for key in unrecorded if key not in last or not last[key].is_deleted]:
            _log.debug("%s: %d rows have no open version; they get baselines", self._table_name, len(unrecorded))
            self._write_old_baselines(unrecorded, before, last)
            last = self._last(keys)
            hidden |= self._hidden_keys([last[key] for key in unrecorded if key in last], missing_rows)
        deleted: dict[datetime, list[Key]] = defaultdict(list)
        changed: dict[datetime, list[Key]] = defaultdict(list)
        not_recorded: dict[datetime, list[Key]] = defaultdict(list)
        for key in dict.fromkeys((*last, *keys)):
            row = last.get(key)
            if key in hidden or key in closed:
                continue
            if row is None or (not row.is_open and not row.is_deleted):
                not_recorded[self._instant(row)].append(key)
            elif not row.agrees:
                (deleted if row.is_deleted else changed)[self._instant(row)].append(key)
        by_instant = [*deleted.items(), *changed.items(), *not_recorded.items()]
        if moved := sum(len(same_instant) for at, same_instant in by_instant if at > self.changeset.at):
            _log.info(
                "%s: %d versions begin later than their transaction, %s, because those before them are not earlier. "
                "Another transaction wrote first, or clocks differ.",
                self._table_name,
                moved,
                self.changeset.at.isoformat(),
            )
        for at, same_instant in deleted.items():
            statements = self._statements(same_instant)
            self._run(same_instant, statements.tombstone(OpenVersions.DELETED, guarded=False), at)
            self._run(same_instant, statements.close(OpenVersions.DELETED, guarded=False), at)
        for at, same_instant in changed.items():
            statements = self._statements(same_instant)
            self._run(same_instant, statements.close(OpenVersions.CHANGED, guarded=False), at)
        if closed:
            self._run(keys, self._statements(keys).snapshot(Operation.UPDATE, LiveRows.CLOSED))
        for at, same_instant in changed.items():
            statements = self._statements(same_instant)
            self._run(same_instant, statements.snapshot(Operation.UPDATE, LiveRows.ABSENT), at)
            if len(self.chain) > 1:
                self._run(same_instant, statements.tombstone_left_tables(), at)
        for at, same_instant in not_recorded.items():
            statements = self._statements(same_instant)
            written = self._run(same_instant, statements.snapshot(Operation.INSERT, LiveRows.ABSENT), at)
            if written < len(same_instant):
                expected = [key for key in same_instant if key in new or missing_rows is MissingRows.UPDATED]
                self._report_unwritten(same_instant, expected if must_be_found else [])
        if must_be_found and (
            lost := [key for key in new if key in last and last[key].is_deleted and not last[key].is_open]
        ):
            self._report_unwritten(lost, lost)
        forgets = forgets and not self.is_append_only
        if forgets and any(row.is_own and row.operation is Operation.BASELINE for row in last.values()):
            self._run(keys, self._statements(keys).forget_baseline())

    def _hidden_keys(self, last: Iterable[_Last], missing_rows: MissingRows) -> set[Key]:
        """Return the keys of rows that may exist although the role of the connection no longer sees them.

        sqlaudit warns of rows that row security may hide, and of rows that are gone after an UPDATE.
        """
        lost = [row.key for row in last if row.is_deleted and row.is_open]
        if not lost or missing_rows is MissingRows.DELETED:
            return set()
        if missing_rows is MissingRows.LEFT:
            return set(lost)
        live = self.chain[0].live
        if hides_rows(self.connection, [table.live for table in self.chain]):
            report_unrecorded(
                f"The role no longer sees the row {lost[0]} of the tracked table {live.fullname!r}: it was deleted, "
                "or row security hides it. sqlaudit does not know which, and leaves its version open. Call "
                "record_changes() as a role that the policies do not restrict.",
                live,
            )
            return set(lost)
        if missing_rows is MissingRows.UPDATED:
            report_unrecorded(
                f"The row {lost[0]} of the tracked table {live.fullname!r} does not exist after an UPDATE, so "
                "sqlaudit recorded its deletion. If a trigger has given it another key, history does not show the row "
                "under that key; call record_changes() afterwards.",
                live,
            )
        return set()

    def _report_unwritten(self, keys: Sequence[Key], new: Sequence[Key]) -> None:
        """Warn of rows whose versions could not be written.

        :param new: the keys of rows that must exist
        """
        table = self.chain[0]
        hides_history = hides_rows(self.connection, [table.history])
        if hides_history:
            self._report_locked_history(keys, new)
        live, recorded = self.keys_where(table.key, new)
        if len(live) < len(new) or (len(recorded) < len(new) and not hides_history):
            missing = next((key for key in new if key not in live or key not in recorded), new[0])
            cause = "a trigger or a rule has written another row or none, or the database stores the key differently"
            remedy = "Give keys as the database stores them, or call record_changes() afterwards"
            if hides_rows(self.connection, [table.live for table in self.chain]):
                cause = "row security hides it from the role that has inserted it"
                remedy = "Let a policy for SELECT show it, or call record_changes() as a role that sees it"
            report_unrecorded(
                f"A row of the tracked table {table.live.fullname!r} is not found by its key {missing}: {cause}. Its "
                f"history does not show it. {remedy}.",
                table.live,
            )

    def _report_locked_history(self, keys: Sequence[Key], new: Sequence[Key]) -> None:
        """Warn of rows that the role sees while it cannot see, or cannot UPDATE, their open versions."""
        table, last = self.chain[0], self._last(keys)
        live, recorded = self.keys_where(table.key, keys)
        if stuck := live - last.keys() - recorded.intersection(new):
            report_unrecorded(
                f"Row security hides the open version of the row {min(stuck)} in {table.history.fullname!r} from the "
                "role, or forbids to update it, so history does not show the change of the row. Give the history "
                f"table the policies of {table.live.fullname!r}, with one for UPDATE.",
                table.live,
            )

    def _recorded_keys_of(self, keys: Sequence[Key], last: Mapping[Key, _Last]) -> dict[Key, Key] | None:
        """Map the keys in the history to the given keys, if some are spelt differently: 'Ab' and 'aB', 1 and '1'.

        Some databases and collations take both spellings for one row. ``None`` means that no key is respelt.
        """
        unknown = [key for key in keys if key not in last]
        if not last or not unknown:
            return None
        may_be_one = any(may_be_respelt(column.type) for column in self.chain[0].key)
        if not may_be_one and len({tuple(map(type, key)) for key in (*unknown, *last)}) == 1:
            return None
        if not self._last(unknown):
            return None
        given_keys: dict[Key, Key] = {}
        for key in keys:
            for recorded in [key] if key in last else self._last([key]) or [key]:
                given_keys.setdefault(recorded, key)
        return given_keys

    @property
    def _table_name(self) -> str:
        return self.chain[0].live.fullname

    def _instant(self, last: _Last | None) -> datetime:
        """Return the instant of a row's next version: the changeset's, or the earliest that the last version allows."""
        if last is None:
            return self.changeset.at
        if last.is_own:
            return last.valid_from
        if last.is_open or last.operation is Operation.DELETE:
            return max(self.changeset.at, last.valid_from + TICK)
        return max(self.changeset.at, last.valid_to)

    def _delete_own_versions(self, rows: Sequence[_Last]) -> None:
        statements = self._statements([rows[0].key])
        for row in rows:
            parameters = self._key_parameters((row.key,))
            for statement in statements.remove():
                statement.execute(self.connection, parameters | {"sqlaudit_version": row.version})
            if row.operation is not Operation.INSERT:
                for statement in statements.reopen():
                    statement.execute(self.connection, parameters | {"sqlaudit_version": row.version - 1})

    def _write_baselines(self, keys: Sequence[Key], last: Mapping[Key, _Last]) -> int:
        """Write baselines of live rows without an open version; none begins before the row's last version ended."""
        beginning: dict[datetime, list[Key]] = defaultdict(list)
        for key in keys:
            beginning[self._instant(last.get(key))].append(key)
        return sum(
            self._run(same_instant, self._statements(same_instant).snapshot(Operation.BASELINE, LiveRows.ABSENT), at)
            for at, same_instant in beginning.items()
        )

    def _write_old_baselines(self, keys: Sequence[Key], before: OldValues, last: Mapping[Key, _Last]) -> None:
        """Write baselines of rows that have already changed, with their old values as far as they are known."""
        old_values = {key: values for key in keys if (values := self._old_values_of_live_row(key, before(key)))}
        self._write_baselines([key for key in keys if key not in old_values], last)
        for key, values in old_values.items():
            parameters = self.parameters | self._key_parameters((key,)) | {"sqlaudit_at": self._instant(last.get(key))}
            for statement in self._statements([key]).old_baseline(values):
                self.connection.execute(statement, parameters)
        last = self._last(keys)
        for key in keys:
            is_written = key in last and last[key].is_open
            is_respelt = key not in last and not last.keys() <= set(keys) and bool(self._last([key]))
            for table in () if is_written or is_respelt else self.chain:
                if any(live in before(key) for live, _ in table.columns):
                    self._insert_baseline_of_deleted(table, key, before(key), last.get(key))

    def _old_values_of_live_row(
        self, key: Key, known: Mapping[Column[Any], Any]
    ) -> dict[Column[Any], ColumnElement[Any]]:
        """Return the known old values of a row as expressions, without those of its key, unless it was respelt."""
        base_key = self.chain[0].key
        may_be_other = any(live in known and may_be_respelt(live.type) for live in base_key)
        is_respelt = may_be_other and key not in self.keys_where(base_key, [key])[0]
        return {
            live: _stored(known[live], _read_as(table, live, old))
            for table in self.chain
            for live, old in table.columns
            if live in known and (is_respelt or live not in table.key)
        }

    def _insert_baseline_of_deleted(
        self, table: TrackedTable, key: Key, known: Mapping[Column[Any], Any], last: _Last | None
    ) -> None:
        values: dict[Column[Any], Any] = {
            old: table.recorded(live, _stored(known.get(live), _read_as(table, live, old)))
            for live, old in table.columns
        }
        values |= dict(zip(table.history_key, key, strict=True))
        values |= {
            table.version: last.version + 1 if last is not None else 1,
            table.valid_from: self._instant(last),
            table.valid_to: OpenEnd(),
            table.role("operation"): Operation.BASELINE,
            table.role("changeset_id"): self.changeset.id,
        }
        self.connection.execute(copying_into(table).values(values).execution_options(**INTERNAL))

    def _last(self, keys: Sequence[Key]) -> dict[Key, _Last]:
        (statement,) = self._statements(keys).last()
        last_versions: dict[Key, _Last] = {}
        width = len(self.chain[0].key)
        rows = self._read(statement, keys).all()
        recognised = self._key_types.recognised(keys, [row[:width] for row in rows])
        if recognised is None:
            return {key: last for asked in keys for key, last in self._last([asked]).items()}
        for key, row in zip(recognised, rows, strict=True):
            number, valid_from, valid_to, operation, changeset, *context, is_deleted, has_changed, row_user = row[
                width:
            ]
            user = self.user if self.user is not None or not self.by_row else row_user
            is_own = changeset == self.changeset.id
            expected = [user, self.context.impersonated_by, self.context.reason, self.context.extra]
            last_versions[key] = _Last(
                key,
                number,
                valid_from,
                valid_to,
                operation,
                is_own,
                is_own and operation is not Operation.BASELINE and context == expected,
                bool(is_deleted),
                bool(has_changed),
            )
        return last_versions

    # -- running statements

    @cached_property
    def _key_types(self) -> KeyTypes:
        return key_types_of(self.chain[0], self.connection.dialect)

    def _share_statements(self, keys: KeyCollection[Key]) -> bool:
        if isinstance(keys, SelectedKeys):
            return True
        is_cut = TRAITS[self.connection.dialect.name].has_json_each and not are_unchanged_by_json(keys)
        return not is_cut and (self._key_types.go_together or is_raw(keys))

    def _batches(self, keys: KeyCollection[Key]) -> Iterator[Batch]:
        """Divide keys among statements: one key each, if the types of given keys make larger batches unsafe."""
        if not isinstance(keys, SelectedKeys) and len(keys) < 2:
            return iter([list(keys)] if keys else [])
        return batches(keys) if self._share_statements(keys) else ([key] for key in keys)

    def _chunks(self, keys: KeyCollection[Key]) -> Iterator[Sequence[Key]]:
        return chunks(keys) if self._share_statements(keys) else ([key] for key in keys)

    def _statements(self, keys: Batch) -> Statements:
        dialect = self.connection.dialect
        if isinstance(keys, SelectedKeys):
            as_text = self._ask_once(columns_compared_as_text)
            return Statements(self.chain, self.user_fields, True, dialect, keys, as_text=as_text)
        chosen = len(keys) > 1, type(keys[0]) is RawKey and self._key_types.differs
        if chosen not in self._chosen:
            many, raw_keys = chosen
            statements = self.chain[-1].statements.setdefault(dialect, {})
            signature = (self.chain, self.user_fields, *chosen)
            if signature not in statements:
                if not any(isinstance(parameters, tuple) for parameters in statements):
                    warn_of_visible_history(self.connection, self.chain)
                statements[signature] = Statements(
                    self.chain,
                    self.user_fields,
                    many,
                    dialect,
                    raw_keys=raw_keys,
                    as_text=self._ask_once(columns_compared_as_text),
                    with_guard=self._ask_once(tables_with_guard),
                    are_distributed=self._ask_once(are_distributed),
                )
            self._chosen[chosen] = statements[signature]
        return self._chosen[chosen]

    def _ask_once(self, question: Callable[[Connection, Sequence[TrackedTable]], T]) -> T:
        return ask_once(self.connection, self.chain, question)

    def _takes_one_statement(self, keys: Batch) -> bool:
        """Return whether one statement can close versions and write those that follow them. Citus refuses it."""
        traits = TRAITS[self.connection.dialect.name]
        if traits.has_compound_statements:
            return not isinstance(keys, SelectedKeys) and len(keys) == 1
        return traits.has_writing_ctes and not self._ask_once(are_distributed)

    @staticmethod
    def _key_parameters(keys: Batch) -> dict[str, Any]:
        if isinstance(keys, SelectedKeys):
            return {}
        if len(keys) == 1:
            return dict(zip(_KEY_NAMES, keys[0], strict=False))
        if len(keys[0]) == 1:
            return {"sqlaudit_keys": [key[0] for key in keys]}
        lists = {f"sqlaudit_keys_{place}": list(values) for place, values in enumerate(zip(*keys, strict=True))}
        return {"sqlaudit_keys": list(keys), "sqlaudit_keys_again": list(keys), **lists}

    def _unsettled(self, keys: Batch) -> Batch:
        """Return the keys of rows whose history may not agree with the live rows yet."""
        if not isinstance(keys, SelectedKeys):
            return keys
        criterion = self._statements(keys).unsettled(keys.columns)
        return SelectedKeys(self.connection, keys.chosen.where(criterion).params(self.parameters))

    def _run(self, keys: Batch, statements: Sequence[Prepared], at: datetime | None = None) -> int:
        """Execute the statements of a step, and return the rowcount of the one for the base table."""
        parameters = self.parameters | self._key_parameters(keys)
        if at is not None:
            parameters["sqlaudit_at"] = at
        first = None
        try:
            for statement in statements:
                rowcount = statement.execute(self.connection, parameters).rowcount
                first = rowcount if first is None else first
        except DBAPIError as error:
            explain_history_error(error, self.chain, record=True)
            raise
        return first or 0

    def _read(self, statement: Prepared, keys: Sequence[Key]) -> CursorResult[Any]:
        with explaining_history_errors(self.chain, record=True):
            return self.connection.execute(statement.statement, self.parameters | self._key_parameters(keys))


class HeardCapture(Capture):
    """A capture that notes the keys of the rows for the listeners of :class:`~sqlaudit.Recording`."""

    _notes_keys = True

    def _run(self, keys: Batch, statements: Sequence[Prepared], at: datetime | None = None) -> int:
        rowcount = super()._run(keys, statements, at)
        if rowcount and self._notes_keys:
            note(self.connection, self.chain, self.changeset, keys)
        return rowcount

    def _write_baselines(self, keys: Sequence[Key], last: Mapping[Key, _Last]) -> int:
        """Write baselines, which are not told: a backfill writes nothing else."""
        self._notes_keys = False
        try:
            return super()._write_baselines(keys, last)
        finally:
            self._notes_keys = True


def _read_as(table: TrackedTable, live: Column[Any], old: Column[Any]) -> Column[Any]:
    """Return the column whose type has the known values of a live column: of a hash, the history column is a text."""
    return live if live.name in table.hashed else old


def _stored(value: Any, column: Column[Any]) -> ColumnElement[Any]:
    return null() if value is None else literal(value, column.type)
