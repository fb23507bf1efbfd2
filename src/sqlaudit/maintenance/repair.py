"""Which faults can sqlaudit mend without inventing history? Those for which the live rows or later versions say how.

A repair finds the rows again, in pages by their keys, locks them, and compares again what it is about to write. So it
mends no fault that has gone meanwhile, and no fault is mended twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, func, not_, select, update
from sqlalchemy.orm import Session

from sqlaudit.config import current_config
from sqlaudit.context import get_audit_context
from sqlaudit.maintenance.comparisons import Comparison
from sqlaudit.maintenance.findings import Collector, FindingCode
from sqlaudit.maintenance.sequences import Parts, Sequences
from sqlaudit.maintenance.transactions import Runner
from sqlaudit.period import is_open
from sqlaudit.recording.capture import WriteContext
from sqlaudit.recording.cascades import lock_rows, split_by_chain, take_write_lock
from sqlaudit.recording.changeset import ChangesetStamp, changeset_at, changeset_of
from sqlaudit.recording.reconcile import end_with_base, reconcile_rows
from sqlaudit.sql.batches import chunks, pages
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, bound, raw_columns, read_keys
from sqlaudit.sql.lists import has_one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.rights import lockable_tables
from sqlaudit.tracking.tables import TrackedTable

_log: Final = logging.getLogger(__package__)
_AHEAD: Final = timedelta(days=1)
"""How far the clock of another machine may be ahead."""
_BY_MIGRATION: Final = "Left: the schema is changed by a migration."
_UNKNOWN: Final = "Left: history does not say which of the two instants is right."
_LEFT: Final = {
    FindingCode.MISSING_TABLE: _BY_MIGRATION,
    FindingCode.MISSING_COLUMN: _BY_MIGRATION,
    FindingCode.NARROW_COLUMN: _BY_MIGRATION,
    FindingCode.MISSING_INDEX: _BY_MIGRATION,
    FindingCode.MISSING_PROTECTION: _BY_MIGRATION,
    FindingCode.MISSING_POLICY: "Left: the owner of the tables decides who sees which rows.",
    FindingCode.MISSING_GRANT: "Left: the owner of the tables decides who may write them.",
    FindingCode.REVERSED_PERIOD: _UNKNOWN,
    FindingCode.OVERLAP: _UNKNOWN,
    FindingCode.GAP: "Left: history does not say what was true in between.",
    FindingCode.OPEN_NOT_LAST: "Left: history lacks the version after it, or that version begins earlier.",
    FindingCode.MISSING_VERSION: "Left: the values of the missing versions are not known.",
    FindingCode.MISPLACED_TOMBSTONE: "Left: history does not say when the row was deleted, and by whom.",
    FindingCode.MISSING_TOMBSTONE: "Left: history does not say when the row was deleted, and by whom.",
    FindingCode.TWO_INSTANTS: _UNKNOWN,
    FindingCode.ORPHANED_VERSION: "Left: the values of the missing version are not known.",
    FindingCode.DIFFERENT_PERIOD: "Left: history does not say which of the two tables is right.",
    FindingCode.UNRECORDED_ROW: "Left: the row cannot be recorded, because its key has a NULL, its versions are "
    "hidden from the role, or one of them ends in the future.",
    FindingCode.UNRECORDED_CHANGE: "Left: the row's open version cannot be ended.",
    FindingCode.UNRECORDED_DELETION: "Left: the row's open version cannot be ended.",
}
"""Why a fault is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """How the rows with a fault are found and mended.

    :ivar statement: the select of their keys
    :ivar key: the columns that it selects
    :ivar work: mends the fault in the rows with some keys
    :ivar done: what it does
    """

    code: FindingCode
    table: TrackedTable
    statement: Select[Any]
    key: Sequence[ColumnElement[Any]]
    work: Callable[[Connection, Sequence[Key]], None]
    done: str


class Repair:
    """A repair of hierarchies of tracked tables whose faults have been collected.

    :param run: executes each page of rows in a transaction or in a savepoint
    :param session: the caller's session, to whose changeset the new versions belong; ``None`` for a changeset of each
        transaction
    """

    def __init__(self, run: Runner, findings: Collector, session: Session | None, *, in_transactions: bool) -> None:
        self.run = run
        self.findings = findings
        self.session = session
        self.in_transactions = in_transactions

    def mend(self, tables: Sequence[TrackedTable], comparisons: Iterable[Comparison]) -> None:
        """Mend the faults of a hierarchy.

        :param tables: the base table and the tables of subclasses
        :param comparisons: of the tables
        """
        # In a transaction of the runner, because a step may read the horizon of a pruned history.
        steps = self.run(lambda _: [*self._steps(tables, comparisons)])
        found = [step for step in steps if self.findings.by_table[step.code, step.table]]
        begin = min(map(steps.index, found), default=len(steps))
        for step in steps[begin:]:  # later steps, too: a step may uncover what they mend
            for keys in self._pages(step):
                self.run(step.work, keys)
        for step in found:
            self._note(step)

    def explain_rest(self) -> None:
        """Say of each listed fault that has not been mended why it is left."""
        for listed in self.findings.listed:
            if listed.finding.repair is None:
                self.findings.note(listed, _LEFT[listed.finding.code], is_repaired=False)

    def _steps(self, tables: Sequence[TrackedTable], comparisons: Iterable[Comparison]) -> Iterator[_Step]:
        base, *parts = tables
        connection = self.run.connection
        sequences = Sequences(connection, base)
        yield _Step(
            code=FindingCode.OPEN_NOT_LAST,
            table=base,
            statement=sequences.rows_with(FindingCode.OPEN_NOT_LAST),
            key=sequences.version.key,
            work=partial(self._end_followed, tables),
            done="The version has been ended at the beginning of the one that follows it.",
        )
        for table in parts:
            pairs = Parts(connection, base, table)
            yield _Step(
                code=FindingCode.DIFFERENT_PERIOD,
                table=table,
                statement=pairs.rows_with(FindingCode.DIFFERENT_PERIOD),
                key=pairs.version.key,
                work=partial(self._end_parts, base, table),
                done="The version has been ended when it ends in the base table.",
            )
        for comparison in comparisons:
            for code, statement, key, done in (
                (
                    FindingCode.UNRECORDED_ROW,
                    comparison.unrecorded_rows(),
                    list(comparison.table.key),
                    "The row has been recorded as it is now.",
                ),
                (
                    FindingCode.UNRECORDED_CHANGE,
                    comparison.changed_rows(),
                    comparison.version.key,
                    "The change has been recorded as a new version.",
                ),
                (
                    FindingCode.UNRECORDED_DELETION,
                    comparison.deleted_rows(),
                    comparison.version.key,
                    "The deletion has been recorded by a tombstone.",
                ),
            ):
                work = partial(self._record, tables)
                yield _Step(code=code, table=comparison.table, statement=statement, key=key, work=work, done=done)

    # --- finding rows again ---------------------------------------------------------------------------------------

    def _pages(self, step: _Step) -> Iterator[Sequence[Key]]:
        whole = step.statement.where(*(column.is_not(None) for column in step.key))
        return pages(self.run.connection, whole, step.key, partial(self.run, read_keys))

    def _note(self, step: _Step) -> None:
        """Say of each listed fault of a step that it has been mended, unless it is still there."""
        left = self.run(_count, step.statement)
        listed = [
            each
            for each in self.findings.listed
            if each.finding.code is step.code and each.tracked is step.table and each.raw_key is not None
        ]
        dialect = self.run.connection.dialect
        again = step.statement.with_only_columns(*raw_columns(step.key, dialect), maintain_column_froms=True)
        for some in chunks(listed):
            keys = [each.raw_key for each in some if each.raw_key is not None and None not in each.raw_key]
            still = {*self.run(read_keys, again.where(has_one_of(step.key, keys, dialect)))} if keys else set()
            for each in some:
                if each.raw_key in keys and each.raw_key not in still:
                    self.findings.note(each, step.done, is_repaired=True)
        mended = max(0, self.findings.by_table[step.code, step.table] - left)
        self.findings.repaired += mended
        _log.info("%s: %s: %d mended, %d left", step.table.live.fullname, step.code, mended, left)

    # --- mending --------------------------------------------------------------------------------------------------

    def _end_followed(self, tables: Sequence[TrackedTable], connection: Connection, keys: Sequence[Key]) -> None:
        """End open versions at the beginning of the versions that follow them."""
        base = tables[0]
        take_write_lock(connection, base)
        sequences = Sequences(connection, base)
        for key, number, end in sequences.followed_open_versions(keys):
            for table in tables:
                columns = raw_columns(table.history_key, connection.dialect)
                is_it = all_equal(columns, [bound(each, value=value) for each, value in zip(columns, key, strict=True)])
                statement = update(table.history).where(is_it, table.version == number, is_open(table.valid_to))
                connection.execute(statement.values({table.valid_to: end}), execution_options=INTERNAL)

    @staticmethod
    def _end_parts(base: TrackedTable, table: TrackedTable, connection: Connection, keys: Sequence[Key]) -> None:
        take_write_lock(connection, base)
        end_with_base(connection, base, [table], list(keys))

    def _record(self, tables: Sequence[TrackedTable], connection: Connection, keys: Sequence[Key]) -> None:
        """Record how rows differ from their histories."""
        base = tables[0]
        take_write_lock(connection, base)
        lockable = lockable_tables(connection, [table.live for table in tables])
        if TRAITS[connection.dialect.name].locks_rows:
            for chain, keys_of_chain in split_by_chain(connection, base, keys):
                for table in chain:
                    if table.live in lockable:
                        lock_rows(connection, table, keys_of_chain)
        changeset = self._changeset(connection)
        keys = self._without_future(connection, base, keys, changeset.at)
        reconcile_rows(WriteContext(connection, changeset, get_audit_context()), base, keys, as_baselines=True)
        if changeset.id not in self.findings.changeset_ids:
            self.findings.changeset_ids.append(changeset.id)

    @staticmethod
    def _without_future(
        connection: Connection, base: TrackedTable, keys: Sequence[Key], now: datetime
    ) -> Sequence[Key]:
        """Leave out rows with a version that ends in the future, because theirs would have to begin after it.

        The clocks of other machines may be ahead of this one by up to a day.
        """
        version, dialect = HistoryAlias(base), connection.dialect
        statement = select(*raw_columns(version.key, dialect)).where(
            has_one_of(version.key, keys, dialect), version.valid_to > now + _AHEAD, not_(version.is_open)
        )
        left = {*read_keys(connection, statement)}
        return [key for key in keys if key not in left] if left else keys

    def _changeset(self, connection: Connection) -> ChangesetStamp:
        if self.in_transactions:
            return changeset_at(current_config().now())
        return changeset_of(self.session, connection)


def _count(connection: Connection, statement: Select[Any]) -> int:
    return connection.scalar(select(func.count()).select_from(statement.subquery())) or 0
