"""What happens to the rows that a statement writes? Keys are noted before it runs, versions are written after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast
from weakref import ref

from sqlalchemy import ColumnElement, Connection, CursorResult, FromClause, func, select
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy
from sqlalchemy.orm import Session

from sqlaudit.exceptions import CaptureError
from sqlaudit.recording.bulk.keys import Keys, StoredKeys
from sqlaudit.recording.bulk.parsing import Parameters, ParsedWrite
from sqlaudit.recording.capture import Capture, MissingRows, WriteContext
from sqlaudit.recording.cascades import Dependents, record_changed_keys, split_by_chain
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.recording.scope import scope_of
from sqlaudit.recording.tracked_mappers import user_fields_of
from sqlaudit.sql.batches import KeyCollection, chunks
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, raw_columns, read_keys
from sqlaudit.sql.lists import has_one_of
from sqlaudit.tracking.catalogue import diverts_deletes
from sqlaudit.tracking.foreign_keys import Chain, FollowedTable, Source, Sources, referred_columns
from sqlaudit.tracking.tables import TrackedTable

KeysOf = Callable[[CursorResult[Any]], KeyCollection[Key]]


@dataclass(eq=False, slots=True, kw_only=True, weakref_slot=True)
class Write:
    """What a statement writes to a tracked table.

    :ivar is_direct: True if a connection executes the statement directly, not in a call of a session
    :ivar began: the instant before the statement, for a changeset that begins with it
    :ivar context: returns the transaction, and who writes
    :ivar statement: a weak reference to the statement, once it is prepared
    :ivar root: the same table; for a subclass table, the table of its base class
    :ivar above: for a subclass table, the tables of its base classes
    :ivar parsed: what the statement says
    :ivar source: the table that it writes, tracked or followed by tracked rows
    :ivar parameters: the parameters of each execution, in the form to be executed
    :ivar captures: the captures of rows that existed before, with their keys
    :ivar replaced: the captures of rows that it deletes, or leaves, because they conflict with rows that it writes
    :ivar stored: the keys in a temporary table
    :ivar dependents_of_flush: the rows that depend on those that the flush deletes, if a flush executes the statement
    :ivar new_keys: the keys that an UPDATE gives to rows, by their old keys
    :ivar find_new_keys: finds the new keys after an UPDATE that may give a row several keys, one after the other
    :ivar confined_to: what an UPDATE or DELETE was confined to: the table, the condition and the number of its rows
    :ivar missing_count: the number of these rows, or of the rows that a DELETE should delete, that it did not write
    :ivar keys_of: reads the keys of an INSERT's rows from its result
    :ivar inserted: the keys that ``keys_of`` has read
    :ivar may_update: True if the INSERT may have updated existing rows, or left them
    :ivar may_change_keys: True if it may have changed their keys
    :ivar conflict_clauses: how an UPDATE handles conflicting rows: IGNORE, REPLACE
    :ivar missing_key: given values by which no row is found, though the INSERT must have written one
    :ivar deleted_all_locked_rows: True if a DELETE deleted as many rows as expected
    :ivar is_uncounted: True if the driver does not tell how many rows it wrote
    :ivar locks_many: True if one statement can lock its rows
    :ivar is_safe: True if ``sql_safe_updates`` may require a key in the criterion on MariaDB and MySQL
    :ivar selected_count: the number of rows that it should write, if it was not confined to them
    :ivar is_row_by_row: True if a DELETE finds rows by columns that its own foreign key actions change, row by row
    :ivar unselected_count: how many more rows it wrote
    :ivar is_atomic: True if every database undoes what it did before it failed
    :ivar savepoint: the name of the savepoint that can undo what it did before it failed, if there is one
    :ivar is_executed: True once it is sent to the database
    :ivar is_done: True if it has been executed
    :ivar is_undone: True if it failed, and what it did before it failed is undone
    :ivar transactions: the transaction and the savepoint in which it is executed
    """

    is_direct: bool
    began: datetime
    context: Callable[[], WriteContext]
    connection: Connection
    parsed: ParsedWrite
    source: Source
    root: Source
    above: Chain
    parameters: Parameters = field(init=False)
    captures: list[tuple[Capture, Keys]] = field(default_factory=list)
    replaced: list[tuple[Capture, Keys]] = field(default_factory=list)
    stored: StoredKeys | None = None
    dependents: Dependents = field(default_factory=Dependents)
    dependents_of_flush: Dependents | None = None
    new_keys: dict[Key, Key] = field(default_factory=dict)
    find_new_keys: Callable[[], list[Key]] | None = None
    confined_to: tuple[FromClause, ColumnElement[bool], int] | None = None
    missing_count: int = 0
    keys_of: KeysOf = lambda result: []
    inserted: KeyCollection[Key] = ()
    statement: ref[Any] | None = None
    may_update: bool = False
    may_change_keys: bool = False
    conflict_clauses: Set[str] = frozenset()
    missing_key: Key | None = None
    deleted_all_locked_rows: bool = False
    is_uncounted: bool = False
    locks_many: bool = True
    is_safe: bool = False
    selected_count: int | None = None
    is_row_by_row: bool = False
    unselected_count: int = 0
    is_atomic: bool = False
    savepoint: str | None = None
    is_executed: bool = False
    is_done: bool = False
    is_undone: bool = False
    transactions: tuple[Any, Any] = (None, None)

    def __post_init__(self) -> None:
        self.parameters = self.parsed.parameters

    def capture(self, chain: Sources) -> Capture:
        """Return the capture that writes the versions of rows in a chain of tracked tables."""
        tracked = cast("Chain", chain)
        return self.context().capture(tracked, user_fields_of(tracked))

    def begin(self) -> None:
        """Set a savepoint if the statement may fail in the middle: only PostgreSQL undoes what it did before.

        It is set immediately before the statement is executed, so that it undoes nothing else: what column defaults
        execute, say.
        """
        connection = self.connection
        self.is_executed, self.transactions = True, transactions_of(connection)
        if self.is_atomic or self.savepoint or connection._is_autocommit_isolation():
            return
        scope = scope_of(connection)
        scope.savepoints += 1
        self.savepoint = f"sqlaudit_{scope.savepoints}"  # MariaDB would replace one of the same name
        connection.dialect.do_savepoint(connection, self.savepoint)

    def release_savepoint(self, *, rolls_back: bool = False) -> None:
        """Release the savepoint, if there is one.

        :param rolls_back: True to roll back to it first
        """
        name, self.savepoint = self.savepoint, None
        if name is not None:
            connection = self.connection
            if rolls_back:
                connection.dialect.do_rollback_to_savepoint(connection, name)
            connection.dialect.do_release_savepoint(connection, name)
            scope_of(connection).savepoints -= 1

    def prepare_rows(self, keys: Keys, *, changed: Set[Any] | None, is_replaced: bool = False) -> None:
        """Write baselines of the rows that the statement is about to write, and find the rows that depend on them.

        :param is_replaced: True if it deletes them, or leaves them, because they conflict with rows that it writes
        :param changed: the columns that it changes; ``None`` to look for dependent rows in any case
        """
        for chain, keys_of_chain in keys.split_by_chain(self.root):
            if isinstance(self.root, TrackedTable):
                capture = self.capture(chain)
                capture.baseline(keys_of_chain.unrecorded)
                (self.replaced if is_replaced else self.captures).append((capture, keys_of_chain))
            if changed is None or not referred_columns(chain).isdisjoint(changed):
                self.dependents.find(self.context(), chain, keys_of_chain)

    def note_result(self, result: CursorResult[Any]) -> None:
        """Note what the statement has done."""
        self.is_done = True
        is_read = not result.returns_rows or isinstance(result.cursor_strategy, FullyBufferedCursorFetchStrategy)
        if not is_read and (result.context._is_server_side or self.savepoint):  # sqlaudit needs the connection now
            rowcount = result.context.rowcount
            rewind_result(result, list(result.all()), rowcount)
        # SQLite counts rows while they are fetched; Python's driver counts none for a statement that begins with WITH.
        is_counted = not TRAITS[self.connection.dialect.name].has_late_rowcount or (is_read and result.rowcount >= 0)
        if self.parsed.is_insert:
            self.inserted = self.keys_of(result)
        elif self.parsed.is_delete:
            expected = sum(len(keys) for _, keys in self.captures)
            self.is_uncounted = result.rowcount < 0
            self.deleted_all_locked_rows = result.rowcount == expected and not self.is_row_by_row
            if self.is_row_by_row:
                self.unselected_count = result.rowcount - self._deleted_count()
            elif self.selected_count is None and len(self.parameters) == 1 and not result.returns_rows and is_counted:
                self.missing_count = expected - max(result.rowcount, 0)
        if self.confined_to is not None and result.rowcount >= 0 and is_counted:
            self.missing_count = self.confined_to[2] - result.rowcount
        if self.selected_count is not None:
            self.unselected_count = result.rowcount - self.selected_count
        self.release_savepoint()

    def settle(self) -> None:
        """Write the versions; if the statement failed, undo what it did before it failed."""
        try:
            if self.is_done:
                self._record()
            elif not self.is_undone:
                self._undo()
        finally:
            self.forget()

    def forget(self) -> None:
        """Drop the temporary table of keys."""
        stored, self.stored = self.stored, None
        if stored is not None:
            stored.drop()

    def _record(self) -> None:
        if self.missing_count > 0 and "REPLACE" not in self.conflict_clauses:
            self._require_found()
        if self.unselected_count > 0 and isinstance(self.root, TrackedTable):
            report_unrecorded(
                f"A statement wrote {self.unselected_count} more rows of the tracked table "
                f"{self.root.live.fullname!r} than the role sees, and sqlaudit cannot record these. Call "
                "record_changes() as a role that sees all rows.",
                self.root.live,
            )
        if self.missing_key is not None and isinstance(self.root, TrackedTable):
            report_unrecorded(
                f"A row that a statement inserted or updated in the tracked table {self.root.live.fullname!r} is not "
                f"found by its key {self.missing_key}: a trigger has written another row or none, the database stores "
                "the key differently, or row security hides it. Its history does not show it. Give keys as the "
                "database stores them, or call record_changes() afterwards.",
                self.root.live,
            )
        for keys in (self.inserted, list(self.new_keys.values())) if self.above else ():
            self.capture(self.above).baseline(keys)  # of the rows of base classes that get a row in the subclass table
        for capture, keys in self.captures if self.parsed.is_insert and self.may_change_keys else ():
            if len(capture.chain) > 1:  # a row that is replaced loses its row in the subclass table
                capture.settle(keys, missing_rows=MissingRows.UNKNOWN, forgets=False)
        for chain, new in split_by_chain(self.connection, self.root, self.inserted):
            capture = self.capture(chain)
            if self.may_update or self.above:
                missing_rows = MissingRows.LEFT if self.may_update else MissingRows.DELETED
                capture.settle(
                    new, inserted=frozenset(new), must_be_found=not self.may_update, missing_rows=missing_rows
                )
            else:
                capture.inserted(new)
            if self.may_change_keys:
                record_changed_keys(self.context(), chain, new)
            if self.dependents_of_flush is not None:
                self.dependents_of_flush.add(capture, new)
        stayed = {key for _, keys in self.replaced for key in keys}
        for capture, keys in self.replaced:
            capture.settle(keys)
        for capture, keys in self.captures:
            moved = self._moved_to(keys)
            if self.dependents_of_flush is not None and self.parsed.is_update:
                self.dependents_of_flush.add(capture, moved or keys)
            if self.new_keys:
                every = list(dict.fromkeys([*keys, *moved]))
                new = frozenset(moved) - stayed
                capture.settle(every, inserted=new, must_be_found=not self.conflict_clauses)
                record_changed_keys(self.context(), capture.chain, moved)
            elif self.parsed.is_update:
                capture.updated(
                    keys,
                    missing_rows=MissingRows.DELETED if "REPLACE" in self.conflict_clauses else MissingRows.UPDATED,
                )
            elif self.deleted_all_locked_rows and not self.above:
                capture.deleted(keys)
            else:
                is_deleted = self.deleted_all_locked_rows or (
                    self.is_uncounted and not diverts_deletes(self.connection, self.root.live)
                )
                capture.settle(keys, missing_rows=MissingRows.DELETED if is_deleted else MissingRows.UNKNOWN)
        self.dependents.settle()
        if isinstance(self.root, FollowedTable):
            record_changed_keys(self.context(), (self.root,), list(self.new_keys.values()))

    def _moved_to(self, keys: KeyCollection[Key]) -> Sequence[Key]:
        """Return the keys that an UPDATE of keys has given to rows."""
        if self.new_keys and self.find_new_keys is not None:
            return self.find_new_keys()
        return [self.new_keys[key] for key in keys] if self.new_keys else ()

    def _require_found(self) -> None:
        """Check that the locked rows are found by their keys: the statement wrote fewer, perhaps due to a trigger.

        :raises CaptureError: rows are not found, so their keys may have been misread
        """
        if (missing := self._count_missing()) <= 0:
            return
        live = self.root.live
        if self.parsed.is_delete and (self.confined_to is None or diverts_deletes(self.connection, live)):
            report_unrecorded(
                f"{missing} rows of the tracked table {live.fullname!r} are gone after a DELETE that did not count "
                "them: a trigger or a rule has deleted them in its place, or given them other keys. History shows "
                "them as deleted. If they have other keys, call record_changes().",
                live,
            )
            return
        assert self.confined_to is not None
        raise CaptureError(
            f"A statement was to write {self.confined_to[2]} rows of the tracked table {live.fullname!r}, but "
            f"{missing} of them are not found again by the keys that sqlaudit has read, and nothing of the statement "
            "was kept. Give the key columns the types that they have in the database. If a trigger or a rule gives "
            "the rows other keys, execute the statement within tracking_disabled(session), and call record_changes() "
            "afterwards.",
            live,
        )

    def _count_missing(self) -> int:
        """Return how many of the rows are missing, though neither the statement nor a cascade deleted them."""
        if self.captures and not self.locks_many:
            return sum(self._count_unknown(capture.chain[0], keys) for capture, keys in self.captures)
        asked: list[tuple[FromClause, ColumnElement[bool]]]
        if self.confined_to is None:
            asked = [(capture.chain[0].live, keys.among(capture.chain[0].key)) for capture, keys in self.captures]
        else:
            asked = [self.confined_to[:2]]
        existing = sum(
            self.connection.scalar(select(func.count()).select_from(written).where(criterion)) or 0
            for written, criterion in asked
        )
        if self.confined_to is not None and self.parsed.is_update:
            return self.confined_to[2] - existing
        return self.missing_count - existing - len(self.dependents.keys_in(self.root))

    def _count_unknown(self, table: TrackedTable, keys: Keys) -> int:
        """Return how many of the keys find neither a row nor a version.

        A row that was not locked may have been deleted by another transaction. Then it has versions, since rows without
        one get a baseline before the statement.
        """
        unknown, dialect = set(keys), self.connection.dialect
        for key in (table.key, table.history_key):
            chosen = select(*raw_columns(key, dialect))
            for chunk in chunks(list(unknown)):
                unknown -= {*read_keys(self.connection, chosen.where(has_one_of(key, chunk, dialect)))}
        return len(unknown)

    def _deleted_count(self) -> int:
        """Return how many rows are gone of those that a DELETE and its foreign key actions may have deleted."""
        keys = {*(key for _, keys in self.captures for key in keys), *self.dependents.keys_in(self.root)}
        key, dialect = self.root.key, self.connection.dialect
        count = select(func.count()).select_from(self.root.live)
        existing = (
            self.connection.scalar(count.where(has_one_of(key, chunk, dialect))) or 0 for chunk in chunks(list(keys))
        )
        return len(keys) - sum(existing)

    def is_rolled_back(self) -> bool:
        """Return whether the statement was rolled back: its transaction or savepoint is not the current one."""
        return transactions_of(self.connection) != self.transactions

    def _undo(self) -> None:
        self.is_undone = True
        self.release_savepoint(rolls_back=True)
        for capture, keys in (*self.captures, *self.replaced):
            capture.settle(keys)
        self.dependents.settle()


def rewind_result(result: CursorResult[Any], rows: Sequence[Any], rowcount: int) -> None:
    """Make a result that has been read return rows again, as if it had not been read.

    :param rowcount: its rowcount before it was read: SQLite counts while a result is read
    """
    result._rewind(rows)
    result.cursor_strategy = _RewoundResult(rows, result.context.rowcount)
    result.context._rowcount = rowcount


class _RewoundResult(FullyBufferedCursorFetchStrategy):
    def __init__(self, rows: Sequence[Any], rowcount: int) -> None:
        super().__init__(None, initial_buffer=rows)
        self._rowcount = rowcount

    def fetchone(self, result: Any, *args: Any) -> Any:
        return self._counted(result, super().fetchone(result, *args))

    def fetchmany(self, result: Any, *args: Any) -> Any:
        return self._counted(result, super().fetchmany(result, *args))

    def fetchall(self, result: Any, *args: Any) -> Any:
        return self._counted(result, super().fetchall(result, *args))

    def _counted(self, result: CursorResult[Any], read: Any) -> Any:
        if not self._rowbuffer:
            result.context._rowcount = self._rowcount
        return read


def roll_back(within: Connection | Session) -> None:
    """Roll back what could not be recorded, even if the caller catches the error."""
    transaction = within.get_nested_transaction() or within.get_transaction()
    if transaction is not None and transaction.is_active:
        transaction.rollback()


def transactions_of(connection: Connection) -> tuple[Any, Any]:
    both = connection.get_transaction(), connection.get_nested_transaction()
    return both[0] if both[0] and both[0].is_active else None, both[1] if both[1] and both[1].is_active else None
