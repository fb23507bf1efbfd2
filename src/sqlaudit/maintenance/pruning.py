"""How is a history kept short? :func:`prune` removes the oldest versions of rows, and says since when it is complete.

It goes through the history by ranges of keys. For each row of a range, one aggregation finds the *cut*: the number of
the oldest version that stays. An update before the cut becomes a baseline, because what it changed is no longer known;
it keeps its period, its changeset and its user, who wrote it. All versions before the cut are deleted.

The horizon of the history is committed before the first version is deleted, so that no read as of an earlier instant
takes a pruned row for one that did not exist (:mod:`sqlaudit.tracking.horizons`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Engine,
    Integer,
    Select,
    Subquery,
    Table,
    Update,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    literal_column,
    not_,
    select,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlaudit.arguments import checked_count
from sqlaudit.asynchronous import also_async_where
from sqlaudit.changes import Operation
from sqlaudit.config import current_config
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.door import writable_history
from sqlaudit.maintenance.holding import Held, held_in
from sqlaudit.maintenance.progress import Callback, progress_reporter
from sqlaudit.maintenance.sizes import bytes_of, count_versions
from sqlaudit.maintenance.transactions import InTransactions, Runner, runner_for
from sqlaudit.period import TICK, UTCDateTime
from sqlaudit.recording.cascades import take_write_lock
from sqlaudit.recording.clauses import has_row
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, bound, raw_columns
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.sql.ranges import is_in_range, range_after
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.horizons import forget_horizons, read_horizons
from sqlaudit.tracking.maintenance_tables import MaintenanceTables, required_maintenance_tables
from sqlaudit.tracking.missing import codes_of, explaining_history_errors
from sqlaudit.tracking.models import base_table_of
from sqlaudit.tracking.policies import retentions
from sqlaudit.tracking.retention import Retention
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import TrackedTable
from sqlaudit.wire import Report

_log: Final = logging.getLogger(__package__)


@dataclass(frozen=True, slots=True, repr=False)
class PrunedTable(Report):
    """What :func:`prune` removed from one history, or would remove.

    :param table: the full name of the live table; of the base table, with joined inheritance
    :param rows: the number of versions. With joined inheritance a version counts once, although it has rows in several
        tables
    :param bytes: about how many bytes they take, their part of the indexes included, as the database reports the size
        of its tables; ``None`` if it does not, or if nothing was asked for: only a dry run asks
    :param pruned_before: the horizon: as of this instant and later ones, reads have all that they need. ``None`` if
        nothing has ever been pruned
    """

    table: str
    rows: int
    bytes: int | None
    pruned_before: datetime | None


@dataclass(frozen=True, slots=True, repr=False)
class PruneReport(Report):
    """What :func:`prune` removed, or would remove.

    :param rows: the number of versions in all tables
    :param bytes: about how many bytes they take; ``None`` if it is not known, or not a dry run
    :param tables: what was removed from each table
    :param dry_run: whether nothing was removed
    """

    rows: int
    bytes: int | None
    tables: tuple[PrunedTable, ...]
    dry_run: bool


@also_async_where
def prune(
    where: Engine | Connection | Session | scoped_session[Any],
    *models: type[Any] | Table,
    older_than: timedelta | str | None = None,
    keep_last: int | None = None,
    keep_tombstones: bool = True,
    dry_run: bool = False,
    chunk_size: int = 10_000,
    progress: Callback | bool | None = None,
) -> PruneReport:
    """Remove the oldest versions of rows. The open version of a row always stays.

    .. code-block:: python

        prune(engine, Customer, older_than="90d", keep_last=10, dry_run=True)
        prune(engine)  # as each track_table(retention=…) says

    A version goes if ``older_than`` and ``keep_last`` both allow it, and if no version before it stays. If the oldest
    version that stays is an update, it becomes a baseline: what it changed is no longer known. Rows and changesets
    with a :func:`hold` are left alone.

    From then on, reads as of an instant before the *horizon* raise :class:`~sqlaudit.PrunedError`. The horizon is the
    instant at which ``older_than`` begins; with ``keep_last`` alone it is right after that of the youngest version that
    became the oldest of its row. Reads as of later instants answer as before. The horizon is committed first, and never
    goes back, so you can stop ``prune`` and start it again. The application can go on writing and reading.

    :param where: an engine: each range of keys is a transaction of its own. Or a session or a connection: everything
        happens in its transaction, and on PostgreSQL reads of the past wait until that ends. If it is asynchronous,
        await the result
    :param models: tracked models, each for its whole hierarchy, and association tables. If omitted, all of which a
        retention is known
    :param older_than: remove only versions that ended longer ago: a positive ``timedelta``, or a text such as
        ``"36h"``, ``"90d"`` or ``"52w"``. If neither it nor ``keep_last`` is given, the models' retention counts
    :param keep_last: keep so many of the newest versions of each row
    :param keep_tombstones: keep the last version of a deleted row
    :param dry_run: only report what would be removed. This needs no tables of maintenance
    :param chunk_size: about how many versions a range of keys has; a row is never divided
    :param progress: ``True`` for a bar on the terminal, which needs the extra ``progress``; or a function that is
        called with the number of versions gone through and the number of all versions
    :raises TrackingError: a model is not tracked
    :raises QueryError: an argument is invalid, a model has no retention, there are no tables of maintenance, or
        transactions that read the past do not end
    :raises HistoryTableError: the database lacks the history table
    """
    if checked_count("chunk_size", chunk_size) == 0:
        raise QueryError("chunk_size is 0. Give the number of versions of a chunk, such as 10_000.", chunk_size)
    given = None
    if older_than is not None or keep_last is not None:
        given = Retention(older_than, keep_last, keep_tombstones)
        if not models:
            raise QueryError(
                "older_than and keep_last need models. Name them: prune(engine, Customer, older_than=…), or give each "
                "a retention and call prune(engine).",
                given,
            )
    now = current_config().now()
    found = []
    policies = _policies(models, given)
    are_several = not models and len({table.live.metadata for table in policies}) > 1
    for table, retention in policies.items():
        with (
            progress_reporter(progress, table.live.name) as report_progress,
            runner_for(where, table) as runner,
            explaining_history_errors([table, *_others(table)]),
        ):
            if are_several and not runner(table_exists, table.history):
                continue  # it is in the database of another MetaData
            task = _Pruning(table, retention, runner, now, chunk_size, report_progress)
            found.append(task.dry_run() if dry_run else task.run())
    sizes = [each.bytes for each in found]
    total = sum(size for size in sizes if size is not None) if None not in sizes else None
    return PruneReport(sum(each.rows for each in found), total, tuple(found), dry_run)


def _policies(models: Iterable[Any], given: Retention | None) -> dict[TrackedTable, Retention]:
    """Return the base tables to prune.

    :raises QueryError: a model has no retention
    """
    chosen = {base_table_of(model): model for model in models}
    if given is not None:
        return dict.fromkeys(chosen, given)
    known = retentions()
    for table, model in chosen.items():
        if table not in known:
            raise QueryError(
                f"Nothing says which versions of {table.live.fullname!r} may be removed. Give older_than or "
                "keep_last, or track_table(retention=Retention(…)).",
                model,
            )
    return {table: known[table] for table in chosen} if chosen else known


def _others(base: TrackedTable) -> list[TrackedTable]:
    """Return the tables of subclasses, which have parts of the versions of the base table."""
    tables = dict.fromkeys(table for chain in base.chains for table in chain)
    return [table for table in tables if table is not base]


class _Pruning:
    """Prunes one history.

    :ivar before: the instant from which on the history stays complete; versions that ended before it may go
    """

    def __init__(
        self,
        table: TrackedTable,
        retention: Retention,
        runner: Runner,
        now: datetime,
        chunk_size: int,
        report_progress: Callback | None,
    ) -> None:
        self.table = table
        self.others = _others(table)
        self.retention = retention
        self.runner = runner
        self.chunk_size = chunk_size
        self.report_progress = report_progress
        self.dialect = runner.connection.dialect
        self.before = now if retention.age is None else _earlier(now, retention.age)

    def run(self) -> PrunedTable:
        tables = self.runner(required_maintenance_tables, self.table.live.metadata, "prune()")
        self._set_horizon_of_count()
        is_announced, removed = False, 0
        for ends in self._ranges():
            if not is_announced:
                if not self.runner(self._has_old, ends):
                    continue
                _announce(self.runner, tables, self.table, self.before)
                is_announced = True
            removed += self.runner(self._remove, ends, tables)
            _log.debug("%s: pruned %d versions so far", self.table.live.fullname, removed)
        _log.info("%s: pruned %d versions", self.table.live.fullname, removed)
        horizons = self.runner(read_horizons, tables.horizons)
        return PrunedTable(self.table.live.fullname, removed, None, horizons.get(self.table.history.fullname))

    def dry_run(self) -> PrunedTable:
        self._set_horizon_of_count()
        counts = dict.fromkeys([self.table, *self.others], 0)
        for ends in self._ranges():
            for table, count in self.runner(self._count_old, ends).items():
                counts[table] += count
        sizes = [self._bytes(table, count) for table, count in counts.items()]
        size = None if None in sizes else sum(each for each in sizes if each is not None)
        rows = counts[self.table]
        return PrunedTable(self.table.live.fullname, rows, size, self.before if rows else None)

    def _bytes(self, table: TrackedTable, count: int) -> int | None:
        if count == 0:
            return 0
        size = self.runner(bytes_of, table.history)
        return None if size is None else size * count // max(1, self.runner(count_versions, table))

    def _set_horizon_of_count(self) -> None:
        """With a number of versions alone, let the history be complete since the youngest of the cuts."""
        if self.retention.age is not None:
            return

        def youngest(connection: Connection) -> datetime | None:
            cuts, version = self._cuts(connection, None), HistoryAlias(self.table)
            statement = select(func.max(version.valid_from)).join_from(version.clause, cuts, _is_cut(version, cuts))
            found: datetime | None = connection.scalar(statement, execution_options=INTERNAL)
            return found

        cut = self.runner(youngest)
        self.before = self.before if cut is None else min(self.before, cut + TICK)

    def _ranges(self) -> Iterator[tuple[Key, Key]]:
        total = self.runner(count_versions, self.table) if self.report_progress else 0
        columns, last, done = self.table.history_key, None, 0
        while (ends := self.runner(range_after, columns, last, self.chunk_size)) is not None:
            yield ends
            last = ends[1]
            done += self.chunk_size
            if self.report_progress:
                self.report_progress(min(done, total), total)

    # --- one range --------------------------------------------------------------------------------------------------

    def _has_old(self, connection: Connection, ends: tuple[Key, Key]) -> bool:
        cuts = self._cuts(connection, ends)
        return connection.execute(select(cuts).limit(1), execution_options=INTERNAL).first() is not None

    def _count_old(self, connection: Connection, ends: tuple[Key, Key]) -> dict[TrackedTable, int]:
        cuts = self._cuts(connection, ends)
        counts = {}
        for table in (self.table, *self.others):
            version = HistoryAlias(table)
            statement = select(func.count()).select_from(version.clause.join(cuts, _is_old(version, cuts)))
            counts[table] = connection.scalar(statement, execution_options=INTERNAL) or 0
        return counts

    def _remove(self, connection: Connection, ends: tuple[Key, Key], tables: MaintenanceTables) -> int:
        """Remove the old versions of the rows in a range; return their number.

        One statement finds and removes them, because the application goes on writing, and each statement may find other
        cuts. The others look at what it has left.
        """
        take_write_lock(connection, self.table)
        if connection.dialect.name == "postgresql":  # whoever is writing a hold has written it, or waits
            connection.execute(_LockTable(tables.holds, "SHARE"))
        cuts, firsts = self._cuts(connection, ends), self._firsts(connection, ends)
        with writable_history(connection, (self.table, *self.others)):
            removed: int = connection.execute(self._delete(cuts), execution_options=INTERNAL).rowcount
            if removed:
                for table in self.others:
                    connection.execute(self._delete_parts(table, ends), execution_options=INTERNAL)
                for table in (self.table, *self.others):
                    connection.execute(self._becomes_baseline(table, firsts), execution_options=INTERNAL)
        return removed

    def _cuts(self, connection: Connection, ends: tuple[Key, Key] | None) -> Subquery:
        """Return the rows that have old versions, each with the number of the oldest version that stays."""
        version, held = HistoryAlias(self.table), held_in(connection, self.table)
        number, last = version.version, func.max(version.version)
        is_young = version.valid_to >= literal(self.before, UTCDateTime())
        candidates: list[ColumnElement[int]] = [func.coalesce(func.min(case((is_young, number))), last + _ONE)]
        if kept := self.retention.kept:
            candidates.append(last + _ONE - kept)
        if held.changesets:
            is_held = version.changeset_id.in_(held.changesets)
            candidates.append(func.coalesce(func.min(case((is_held, number))) - _ONE, last))
        cut = _least(candidates)
        statement = select(
            *(column.label(f"key_{place}") for place, column in enumerate(version.key)), cut.label("cut")
        )
        statement = statement.group_by(*version.key).having(func.min(number) < cut)
        return self._within(statement, version, ends, held).subquery("cuts")

    def _firsts(self, connection: Connection, ends: tuple[Key, Key]) -> Subquery:
        """Return the rows whose beginning is gone, each with the number of its oldest version."""
        version = HistoryAlias(self.table)
        first = func.min(version.version)
        keys = (column.label(f"key_{place}") for place, column in enumerate(version.key))
        statement = select(*keys, first.label("cut")).group_by(*version.key).having(first > _ONE)
        return self._within(statement, version, ends, held_in(connection, self.table)).subquery("firsts")

    def _within(
        self, statement: Select[Any], version: HistoryAlias, ends: tuple[Key, Key] | None, held: Held
    ) -> Select[Any]:
        """Leave out the rows that are held, and those outside of a range."""
        if ends is not None:
            statement = statement.where(self._is_between(version.key, ends))
        return statement.where(not_(one_of(version.key, held.keys))) if held.keys else statement

    def _is_between(self, columns: Sequence[ColumnElement[Any]], ends: tuple[Key, Key]) -> ColumnElement[bool]:
        raw = raw_columns(columns, self.dialect)
        first, last = ([bound(column, value=part) for column, part in zip(raw, end, strict=True)] for end in ends)
        return is_in_range(columns, first, last, self.dialect)

    def _becomes_baseline(self, table: TrackedTable, cuts: Subquery) -> Update:
        is_update = table.role("operation") == Operation.UPDATE
        statement = update(table.history).values({table.role("operation"): Operation.BASELINE}).where(is_update)
        return statement.where(self._is_one_of(table, cuts, _is_cut))

    def _delete(self, cuts: Subquery) -> Delete:
        return delete(self.table.history).where(self._is_one_of(self.table, cuts, _is_old))

    def _delete_parts(self, table: TrackedTable, ends: tuple[Key, Key]) -> Delete:
        """Return the DELETE of the versions of a subclass table that are older than all of the base table."""
        part, version = HistoryAlias(table, table.history), HistoryAlias(self.table)
        is_not_older = has_row(version, version.has_key(part.key), version.version <= part.version)
        return delete(table.history).where(self._is_between(part.key, ends), not_(is_not_older))

    def _is_one_of(
        self, table: TrackedTable, cuts: Subquery, condition: Callable[[HistoryAlias, Subquery], ColumnElement[bool]]
    ) -> ColumnElement[bool]:
        """Return the condition of an UPDATE or DELETE of the versions for which a condition on the cuts is true."""
        if TRAITS[self.dialect.name].locks_rows:
            return condition(HistoryAlias(table, table.history), cuts)
        version = HistoryAlias(table)  # SQLite joins no other table in a DELETE
        found = select(*version.key, version.version).join_from(version.clause, cuts, condition(version, cuts))
        return tuple_(*table.history_key, table.version).in_(found)


# --- conditions -------------------------------------------------------------------------------------------------

_ONE: Final = literal_column("1", Integer())


def _is_cut(version: HistoryAlias, cuts: Subquery) -> ColumnElement[bool]:
    """Return the condition that a version is the oldest that stays."""
    return and_(version.has_key(list(cuts.c)[:-1]), version.version == cuts.c.cut)


def _is_old(version: HistoryAlias, cuts: Subquery) -> ColumnElement[bool]:
    """Return the condition that a version goes."""
    return and_(version.has_key(list(cuts.c)[:-1]), version.version < cuts.c.cut)


def _least(values: Sequence[ColumnElement[int]]) -> ColumnElement[int]:
    least, *others = values
    for other in others:
        least = case((other < least, other), else_=least)
    return least


def _earlier(now: datetime, age: timedelta) -> datetime:
    try:
        return now - age
    except OverflowError:
        raise QueryError(f"older_than is {age}, which no history can be. Give a shorter duration.", age) from None


# --- the horizon ------------------------------------------------------------------------------------------------

_LOCK_TIMEOUT: Final = "1s"
_LOCK_ATTEMPTS: Final = 120
_LOCK_NOT_AVAILABLE: Final = "55P03"


class _LockTable(ExecutableDDLElement):
    """Lock a table of PostgreSQL until the transaction ends."""

    def __init__(self, table: Table, mode: str) -> None:
        self.table, self.mode = table, mode


@compiles(_LockTable)
def _render_lock_table(element: _LockTable, compiler: DDLCompiler, **kw: Any) -> str:
    return f"LOCK TABLE {compiler.preparer.format_table(element.table)} IN {element.mode} MODE"


def _announce(runner: Runner, tables: MaintenanceTables, table: TrackedTable, before: datetime) -> None:
    """Write the horizon of a history, before anything is removed.

    On PostgreSQL this waits until all transactions have ended that have read the past. New ones wait meanwhile, so it
    gives them a turn after each second.

    :raises QueryError: the transactions have not ended for minutes
    """
    is_own = isinstance(runner, InTransactions)
    for _ in range(_LOCK_ATTEMPTS):
        try:
            runner(_write_horizon, tables, table, before, is_own)
        except DBAPIError as error:
            if not is_own or _LOCK_NOT_AVAILABLE not in codes_of(error):
                raise
            runner(_give_others_a_turn)
        else:
            return
    raise QueryError(
        f"Transactions that have read the past of {table.live.fullname!r} do not end, and prune() removes nothing from "
        "under them. End them, or call prune() again later.",
        table.live,
    )


def _give_others_a_turn(connection: Connection) -> None:
    connection.execute(select(func.pg_sleep(1)), execution_options=INTERNAL)


def _write_horizon(
    connection: Connection, tables: MaintenanceTables, table: TrackedTable, before: datetime, is_own: bool
) -> None:
    horizons, name = tables.horizons, table.history.fullname
    if connection.dialect.name == "postgresql":
        if is_own:
            connection.execute(select(func.set_config("lock_timeout", _LOCK_TIMEOUT, True)), execution_options=INTERNAL)
        connection.execute(_LockTable(horizons, "ACCESS EXCLUSIVE"))
    else:
        take_write_lock(connection, table)
    instant, is_this = literal(before, UTCDateTime()), horizons.c.history_table == name
    known = select(type_coerce(horizons.c.pruned_before, UTCDateTime())).where(is_this).with_for_update()
    earlier = connection.scalar(known, execution_options=INTERNAL)
    if earlier is None:
        connection.execute(
            insert(horizons).values(history_table=name, pruned_before=instant), execution_options=INTERNAL
        )
    elif earlier < before:
        connection.execute(update(horizons).where(is_this).values(pruned_before=instant), execution_options=INTERNAL)
    forget_horizons(connection)
