"""How do rows that are older than their tracking get a history? sqlaudit writes baselines, in batches.

A batch is a range of keys, and only its ends pass through Python. The statement that copies the rows locks them, so
that no row changes between the copy and the commit. It skips rows that other transactions have locked. They get their
baselines last, each in a transaction of its own: it waits for one row only, and so causes no deadlock.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Executable,
    bindparam,
    exists,
    func,
    literal_column,
    null,
    select,
)
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import checked_count, instant_or_now
from sqlaudit.asynchronous import also_async_where
from sqlaudit.changes import Operation
from sqlaudit.context import get_audit_context
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.progress import Callback, progress_reporter
from sqlaudit.maintenance.transactions import InSavepoints, InTransactions, Runner, connection_of, own_connection
from sqlaudit.period import OpenEnd, UTCDateTime
from sqlaudit.recording.capture import WriteContext
from sqlaudit.recording.cascades import lock_rows, split_by_chain, take_write_lock
from sqlaudit.recording.changeset import ChangesetStamp, changeset_at
from sqlaudit.recording.clauses import has_open_version
from sqlaudit.recording.policy import warn_of_visible_history
from sqlaudit.recording.prepared import step
from sqlaudit.recording.statements import Statements
from sqlaudit.sql.batches import chunks, in_pages
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, bound, raw_columns, read_keys
from sqlaudit.sql.ranges import compared_with, is_in_range, order_of, range_after
from sqlaudit.tracking.aliases import HistoryAlias, joined_live_tables
from sqlaudit.tracking.catalogue import can_lock_many
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import base_table_of
from sqlaudit.tracking.tables import TrackedTable, prepare_connection
from sqlaudit.wire import Report

_log: Final = logging.getLogger(__package__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class BackfillReport(Report):
    """What :func:`backfill` wrote.

    :param rows: the number of rows that got a baseline. With joined inheritance a row counts once, although each of its
        tables gets one
    :param changeset_id: the changeset of all these baselines, and of nothing else
    :param at: the instant at which they begin, in UTC. The baseline of a row whose deletion is recorded later begins
        after that deletion
    """

    rows: int
    changeset_id: UUID
    at: datetime


@also_async_where
def backfill(
    where: Engine | Connection | Session | scoped_session[Any],
    model_class: Any,
    *,
    at: datetime | None = None,
    chunk_size: int = 10_000,
    progress: Callback | bool | None = None,
) -> BackfillReport:
    """Write a baseline for each row that has no history: the row as it is now, as the first version of its history.

    With a model, the rows of its whole hierarchy get baselines; of links, give the association table. Rows that have an
    open version are left alone, so you can stop it and start it again. The application can go on writing.

    .. code-block:: python

        backfill(engine, Customer)

    :param where: an engine: each batch of rows is a transaction of its own. Or a session or a connection: everything
        happens in its transaction, and the rows stay locked until that ends. If it is asynchronous, await the
        result
    :param model_class: a tracked model, or an association table
    :param at: the instant since which the rows are known to have been as they are: an aware datetime, not in the
        future. A naive one is taken as local time, with a warning. Now, by the configured clock, if omitted
    :param chunk_size: the number of rows of a batch
    :param progress: ``True`` for a bar on the terminal, which needs the extra ``progress``; or a function that is
        called with the number of rows done and the number of all rows
    :raises TrackingError: the model is not tracked
    :raises QueryError: an argument is invalid
    :raises HistoryTableError: the database lacks the history table
    """
    table = base_table_of(model_class)
    if checked_count("chunk_size", chunk_size) == 0:
        raise QueryError("chunk_size is 0. Give the number of rows of a batch, such as 10_000.", chunk_size)
    changeset = changeset_at(instant_or_now(at))
    with (
        progress_reporter(progress, table.live.name) as report_progress,
        explaining_history_errors([table], record=True),
    ):
        if isinstance(where, Engine):
            with own_connection(where) as connection:
                return _Backfill(table, changeset, InTransactions(connection), chunk_size, report_progress).run()
        return _Backfill(table, changeset, InSavepoints(connection_of(where, table)), chunk_size, report_progress).run()


# --- the work ---------------------------------------------------------------------------------------------------


class _Backfill:
    def __init__(
        self,
        table: TrackedTable,
        changeset: ChangesetStamp,
        run: Runner,
        chunk_size: int,
        report_progress: Callback | None,
    ) -> None:
        self.table = table
        self.changeset = changeset
        self.runner = run
        self.chunk_size = chunk_size
        self.report_progress = report_progress
        self.chains = table.chains or [(table,)]
        self.statements: list[_Ranges] = []

    def run(self) -> BackfillReport:
        self.runner(warn_of_visible_history, [self.table])
        total = self.runner(self._count) if self.report_progress else 0
        last: Key | None = None
        done = written = 0
        while (batch := self.runner(self._write_batch, last)) is not None:
            last, rows = batch
            written += rows
            done += self.chunk_size
            _log.debug("%s: backfilled %d rows so far", self.table.live.fullname, written)
            if self.report_progress:
                self.report_progress(min(done, total), total)
        written += self._write_remaining()
        _log.info("%s: backfilled %d rows", self.table.live.fullname, written)
        return BackfillReport(written, self.changeset.id, self.changeset.at)

    def _count(self, connection: Connection) -> int:
        return connection.scalar(select(func.count()).select_from(self.table.live)) or 0

    def _write_batch(self, connection: Connection, last: Key | None) -> tuple[Key, int] | None:
        """Write baselines of the batch that follows a key; return its last key, and the number of baselines."""
        prepare_connection(connection, (table for chain in self.chains for table in chain))
        take_write_lock(connection, self.table)
        ends = range_after(connection, self.table.key, last, self.chunk_size)
        if ends is None:
            return None
        parameters: dict[str, Any] = {"sqlaudit_at": self.changeset.at, "sqlaudit_changeset": self.changeset.id}
        for name, end in zip(("first", "last"), ends, strict=True):
            parameters |= {f"sqlaudit_{name}_{place}": value for place, value in enumerate(end)}
        return ends[1], sum(self._write(connection, statements, parameters) for statements in self._ranges(connection))

    def _ranges(self, connection: Connection) -> list[_Ranges]:
        if not self.statements:
            is_distributed = not can_lock_many(connection, self.table)
            self.statements = [_Ranges(chain, self.chains, connection.dialect, is_distributed) for chain in self.chains]
        return self.statements

    @staticmethod
    def _write(connection: Connection, statements: _Ranges, parameters: dict[str, Any]) -> int:
        first, *others = statements.baseline()
        written = first.execute(connection, parameters).rowcount
        for statement in others if written else ():
            statement.execute(connection, parameters)
        return written

    def _write_remaining(self) -> int:
        """Write baselines of rows that were locked by others, and of rows whose history has ended."""
        connection = self.runner.connection
        key = raw_columns(self.table.key, connection.dialect)
        statement = (
            select(*key)
            .where(~has_open_version(self.table, self.table.key))
            .order_by(*order_of(self.table.key, connection.dialect))
        )
        statement = statement if self.table.live.primary_key else statement.distinct()

        def is_after(key: Key) -> ColumnElement[bool]:
            return compared_with(self.table.key, ">", key, connection.dialect)

        return sum(
            self.runner(self._write_missing_baselines, batch)
            for keys in in_pages(partial(self.runner, read_keys), statement, is_after)
            for batch in chunks(keys, self.runner.batch_size)
        )

    def _write_missing_baselines(self, connection: Connection, keys: Sequence[Key]) -> int:
        take_write_lock(connection, self.table)
        written = 0
        for chain, keys_of_chain in split_by_chain(connection, self.table, keys):
            for table in chain:
                lock_rows(connection, table, keys_of_chain)
            written += (
                WriteContext(connection, self.changeset, get_audit_context())
                .capture(chain)
                .write_missing_baselines(keys_of_chain)
            )
        return written


# --- statements -------------------------------------------------------------------------------------------------


class _Ranges(Statements):
    """The statements that write baselines of the objects of one chain whose keys are in a range.

    :param chains: the chains of all objects that have rows in the base table
    """

    def __init__(
        self,
        chain: tuple[TrackedTable, ...],
        chains: Sequence[tuple[TrackedTable, ...]],
        dialect: Dialect,
        are_distributed: bool,
    ) -> None:
        super().__init__(chain, (None, None), True, dialect, are_distributed=are_distributed)
        self.below = [other[-1] for other in chains if other[:-1] == chain]

    def _has_one_of_keys(self, columns: Sequence[ColumnElement[Any]], *, again: bool = False) -> ColumnElement[bool]:
        named = list(enumerate(raw_columns(columns, self.dialect)))
        ends = [[bound(column, f"sqlaudit_{name}_{place}") for place, column in named] for name in ("first", "last")]
        return is_in_range(columns, ends[0], ends[1], self.dialect)

    @step
    def baseline(self) -> list[Executable]:
        """Write baselines of the live rows that have no history, except rows that others have locked."""
        base, past = self.base, HistoryAlias(self.base)
        rows = joined_live_tables(self.chain)
        stored = [base.recorded(live) for live, _ in base.columns]
        live = select(*stored).select_from(rows).where(self._has_one_of_keys(base.key))
        live = self._by_primary_key(live, base.live, base.key)
        for table in self.below:
            live = live.where(~exists(literal_column("1")).where(all_equal(base.key, table.key)))
        columns: Sequence[ColumnElement[Any]] = [live for live, _ in base.columns]
        locks_shared = TRAITS[self.dialect.name].locks_shared_and_skips
        locked = live if self.are_distributed else live.with_for_update(read=locks_shared, skip_locked=True)
        if base.is_association and not base.live.primary_key:  # the table may have a link twice
            once = locked.subquery()
            columns = [once.c[column.key] for column, _ in base.columns]
            locked = select(*columns).group_by(*columns)
            key: Sequence[ColumnElement[Any]] = [once.c[column.key] for column in base.key]
        else:
            key = base.key
        has_history = exists(literal_column("1")).where(past.has_key(key), self._has_one_of_keys(past.key))
        statement = locked.where(~has_history).add_columns(
            literal_column("1"),
            bindparam("sqlaudit_at", type_=UTCDateTime()),
            OpenEnd(),
            *self._audit_values(Operation.BASELINE, null()),
        )
        return [
            self._insert_into_history(base, statement),
            *(
                self._copy_to_subclass_table(table, table.live, [table.recorded(live) for live, _ in table.columns])
                for table in self.chain[1:]
            ),
        ]
