"""What becomes of the rows that one statement writes? Keys before it runs → versions when it has run."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from sqlalchemy import ColumnElement, Connection, CursorResult, FromClause, func, select
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy
from sqlalchemy.orm import Session

from sqlaudit.changes import Operation
from sqlaudit.exceptions import CaptureError
from sqlaudit.recording.bulk.keys import Keys, StoredKeys
from sqlaudit.recording.bulk.parsing import Parameters
from sqlaudit.recording.capture import Capture, Unseen, WriteContext
from sqlaudit.recording.cascades import Dependents, by_chain, record_moved
from sqlaudit.recording.policy import uncaptured
from sqlaudit.recording.units import user_fields_of
from sqlaudit.sql.batches import Portionable
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.catalogue import diverts_deletes
from sqlaudit.tracking.foreign_keys import Chain, FollowedTable, Source, Sources, referred_columns
from sqlaudit.tracking.tables import TrackedTable

_SAVEPOINT: Final = "sqlaudit"
KeysOf = Callable[[CursorResult[Any]], Portionable[Key]]


@dataclass(eq=False, slots=True, kw_only=True, weakref_slot=True)
class Write:
    """What a statement writes to a tracked table.

    :ivar recorder: whose it is
    :ivar began: the instant before it, for a changeset that begins with it
    :ivar context: gives the transaction, and who writes
    :ivar statement: gives the statement, as long as anybody holds it
    :ivar root: the table, tracked or followed by tracked rows, or for the table of a subclass that of its base
    :ivar is_further: whether it is the table of a subclass
    :ivar parameters: what it is executed with, once for each
    :ivar captures: what writes the versions of the rows that were there before, with their keys
    :ivar replaced: the same of rows that it deletes, for they are in the way of what it writes
    :ivar stored: the keys that are in a table
    :ivar moved_to: the keys that an UPDATE gives to rows, by those that they had
    :ivar confined_to: what an UPDATE or DELETE was confined to: the table, the condition of its rows, their number
    :ivar missed: how many of these, or of the rows that a DELETE was expected to take, it did not write
    :ivar keys_of: reads the keys of what an INSERT has made from its result
    :ivar inserted: these keys
    :ivar may_update: whether the INSERT may have come upon rows that were there
    :ivar may_move: whether it may have changed their keys
    :ivar conflict_words: what an UPDATE does about rows in its way: IGNORE, REPLACE
    :ivar lost: values of a row that the INSERT must have left, and that is not found by them
    :ivar is_whole: whether a DELETE took all the rows that it was expected to
    :ivar is_safe: whether ``sql_safe_updates`` may demand a key of MariaDB's and MySQL's: in its own criterion
    :ivar foreseen: how many rows it was expected to write, if it was not confined to these
    :ivar unforeseen: how many more it wrote
    :ivar has_savepoint: whether what it has done in part can be undone
    :ivar is_done: whether it has been executed
    :ivar transactions: what it is executed in: the transaction and the savepoint
    """

    recorder: object
    began: datetime
    context: Callable[[], WriteContext]
    connection: Connection
    root: Source
    operation: Operation
    is_further: bool
    parameters: Parameters
    captures: list[tuple[Capture, Keys]] = field(default_factory=list)
    replaced: list[tuple[Capture, Keys]] = field(default_factory=list)
    stored: StoredKeys | None = None
    dependents: Dependents = field(default_factory=Dependents)
    moved_to: dict[Key, Key] = field(default_factory=dict)
    confined_to: tuple[FromClause, ColumnElement[bool], int] | None = None
    missed: int = 0
    keys_of: KeysOf = lambda result: []
    inserted: Portionable[Key] = ()
    statement: Callable[[], Any] = lambda: None
    may_update: bool = False
    may_move: bool = False
    conflict_words: Set[str] = frozenset()
    lost: Key | None = None
    is_whole: bool = False
    is_safe: bool = False
    foreseen: int | None = None
    unforeseen: int = 0
    has_savepoint: bool = False
    is_done: bool = False
    transactions: tuple[Any, Any] = (None, None)

    def capture(self, chain: Sources) -> Capture:
        """Return what writes the versions of rows in a chain of tracked tables."""
        tracked = cast("Chain", chain)
        return self.context().capture(tracked, user_fields_of(tracked))

    def begin(self) -> None:
        """Make it possible to undo what the statement does before it fails, where the database keeps that."""
        connection = self.connection
        if connection.dialect.name != "postgresql" and not connection._is_autocommit_isolation():
            connection.dialect.do_savepoint(connection, _SAVEPOINT)
            self.has_savepoint = True

    def expect(self, keys: Keys, *, changed: Set[Any] | None, is_replaced: bool = False) -> None:
        """Give baselines to the rows, locked by now, that the statement is about to write.

        :param is_replaced: whether it deletes them, for they are in the way of what it writes
        :param changed: the columns that it changes of them; ``None`` if others may refer to any of these
        """
        for chain, some in keys.by_chain(self.root):
            if isinstance(self.root, TrackedTable):
                capture = self.capture(chain)
                capture.baseline(some.unrecorded)
                (self.replaced if is_replaced else self.captures).append((capture, some))
            if changed is None or not referred_columns(chain).isdisjoint(changed):
                self.dependents.find(self.context(), chain, some)

    def done(self, result: CursorResult[Any]) -> None:
        """Note what the statement has done."""
        self.is_done = True
        is_read = not result.returns_rows or isinstance(result.cursor_strategy, FullyBufferedCursorFetchStrategy)
        if not is_read and (result.context._is_server_side or self.has_savepoint):  # the connection has more to do
            rowcount = result.context.rowcount
            let_read_again(result, list(result.all()), rowcount)
        if self.operation is Operation.INSERT:
            self.inserted = self.keys_of(result)
        elif self.operation is Operation.DELETE:
            expected = sum(len(keys) for _, keys in self.captures)
            self.is_whole = result.rowcount == expected
            if self.foreseen is None and len(self.parameters) == 1 and not result.returns_rows:
                self.missed = expected - max(result.rowcount, 0)
        if self.confined_to is not None and result.rowcount >= 0:
            self.missed = self.confined_to[2] - result.rowcount
        if self.foreseen is not None:
            self.unforeseen = result.rowcount - self.foreseen
        if self.has_savepoint:
            self.connection.dialect.do_release_savepoint(self.connection, _SAVEPOINT)

    def settle(self) -> None:
        """Write the versions; undo what the statement did in part, if it failed."""
        try:
            (self._record if self.is_done else self._undo)()
        finally:
            self.forget()

    def forget(self) -> None:
        """Drop what the statement needed on its way."""
        if self.stored is not None:
            self.stored.drop()

    def _record(self) -> None:
        if self.missed > 0 and "REPLACE" not in self.conflict_words:
            self._require_found()
        if self.unforeseen > 0 and isinstance(self.root, TrackedTable):
            uncaptured(
                f"A statement wrote {self.unforeseen} more rows of the tracked table {self.root.live.fullname!r} than "
                "the role of the connection sees, and history does not show what became of them; call "
                "record_changes() as a role that sees all rows.",
                self.root.live,
            )
        if self.lost is not None and isinstance(self.root, TrackedTable):
            uncaptured(
                f"A row that a statement inserts or updates in the tracked table {self.root.live.fullname!r} is not "
                f"found by its key {self.lost}: a trigger has written another row or none, the database stores the key "
                "in another way, or row security hides it. Its history does not show it; give keys that the database "
                "stores as they are given, or call record_changes() then.",
                self.root.live,
            )
        for chain, new in by_chain(self.connection, self.root, self.inserted):
            capture = self.capture(chain)
            if self.may_update or self.is_further:
                unseen = Unseen.LEFT if self.may_update else Unseen.DELETED
                capture.settle(new, inserted=frozenset(new), must_be_found=not self.may_update, unseen=unseen)
            else:
                capture.inserted(new)
            if self.may_move:
                record_moved(self.context(), chain, new)
        for capture, keys in self.replaced:
            capture.settle(keys)
        for capture, keys in self.captures:
            if self.moved_to:
                moved = [self.moved_to[key] for key in keys]
                every = list(dict.fromkeys([*keys, *moved]))
                capture.settle(every, inserted=frozenset(moved), must_be_found=not self.conflict_words)
                record_moved(self.context(), capture.chain, moved)
            elif self.operation is Operation.UPDATE:
                capture.updated(keys, unseen=Unseen.DELETED if "REPLACE" in self.conflict_words else Unseen.UPDATED)
            elif self.is_whole and not self.is_further:
                capture.deleted(keys)
            else:
                capture.settle(keys, unseen=Unseen.DELETED if self.is_whole else Unseen.UNKNOWN)
        self.dependents.settle()
        if isinstance(self.root, FollowedTable):
            record_moved(self.context(), (self.root,), list(self.moved_to.values()))

    def _require_found(self) -> None:
        """See that the rows which were locked are found by their keys; the statement wrote fewer, as triggers may want.

        :raises CaptureError: they are not, and their keys may have been misread
        """
        if (lost := self._lost()) <= 0:
            return
        live = self.root.live
        if self.operation is Operation.DELETE and (self.confined_to is None or diverts_deletes(self.connection, live)):
            uncaptured(
                f"{lost} rows of the tracked table {live.fullname!r} are gone after a DELETE that did not count them: "
                "a trigger or a rule has deleted them in its place, or given them other keys. History shows them "
                "deleted; if they have other keys, call record_changes().",
                live,
            )
            return
        assert self.confined_to is not None
        raise CaptureError(
            f"Of the {self.confined_to[2]} rows of the tracked table {live.fullname!r} that a statement was to write, "
            f"{lost} are not found again by their keys as they were read, and nothing was kept; give the columns of "
            "the key the types that they have in the database. If a trigger or a rule gives the rows other keys, "
            "execute the statement within tracking_disabled(session), and call record_changes() then.",
            live,
        )

    def _lost(self) -> int:
        """Return how many of the rows are not there, and were not deleted by the statement or by cascade."""
        asked: list[tuple[FromClause, ColumnElement[bool]]]
        if self.confined_to is None:
            asked = [(capture.chain[0].live, keys.among(capture.chain[0].key)) for capture, keys in self.captures]
        else:
            asked = [self.confined_to[:2]]
        there = sum(
            self.connection.scalar(select(func.count()).select_from(written).where(criterion)) or 0
            for written, criterion in asked
        )
        if self.confined_to is not None and self.operation is Operation.UPDATE:
            return self.confined_to[2] - there
        return self.missed - there - self.dependents.number_in(self.root)

    def is_rolled_back(self) -> bool:
        """Tell whether the transaction, or savepoint, that the statement was executed in has been rolled back."""
        return transactions_of(self.connection) != self.transactions

    def _undo(self) -> None:
        connection = self.connection
        if self.has_savepoint:
            connection.dialect.do_rollback_to_savepoint(connection, _SAVEPOINT)
            connection.dialect.do_release_savepoint(connection, _SAVEPOINT)
            return
        for capture, keys in (*self.captures, *self.replaced):
            capture.settle(keys)
        self.dependents.settle()


def let_read_again(result: CursorResult[Any], rows: Sequence[Any], rowcount: int) -> None:
    """Let a result that has been read give rows, as if it were read for the first time.

    :param rowcount: how many it told before it was read: SQLite counts them meanwhile
    """
    result._rewind(rows)
    result.cursor_strategy = _ReadAgain(rows, result.context.rowcount)
    result.context._rowcount = rowcount


class _ReadAgain(FullyBufferedCursorFetchStrategy):
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
    """Undo what could not be recorded, whatever whoever executed it does next."""
    transaction = within.get_nested_transaction() or within.get_transaction()
    if transaction is not None and transaction.is_active:
        transaction.rollback()


def transactions_of(connection: Connection) -> tuple[Any, Any]:
    both = connection.get_transaction(), connection.get_nested_transaction()
    return tuple(each if each is not None and each.is_active else None for each in both)  # type: ignore[return-value]
