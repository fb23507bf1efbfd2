"""Are the versions of each row in order? Each one is compared with the version before it, and with the base table's.

The first statement on a table only counts. It reads the history once, and finds the version before each one by the
primary key. A window function would sort the history: measured, it takes 3 to 8 times as long. The statements that list
faults follow if there is a fault. Each statement sees one state of the database, so a check finds no fault between the
write of a row and that of its version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    case,
    func,
    literal_column,
    not_,
    or_,
    select,
    type_coerce,
)

from sqlaudit.changes import Operation
from sqlaudit.maintenance.findings import Collector, FindingCode
from sqlaudit.recording.clauses import ONE, has_row, operation_text
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.keys import Key, RawKey, raw_columns
from sqlaudit.sql.lists import has_one_of
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.horizons import is_pruned
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import TrackedTable

Faults = dict[FindingCode, ColumnElement[bool]]
_STREAMED: Final = {"stream_results": True, "yield_per": 1000}
_BEGINNINGS: Final = (Operation.BASELINE, Operation.DELETE)
"""The operations of a version with which a history begins whose earlier versions have been pruned."""
_BY_HAND: Final = "If you know what is right, correct the history table by hand, as a role that may."


def count_where(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, ONE)))


def is_a(version: HistoryAlias, *operations: Operation) -> ColumnElement[bool]:
    return or_(*(version.operation == operation_text(operation) for operation in operations))


def read_rows(
    connection: Connection, table: TrackedTable, statement: Select[Any], key: Sequence[ColumnElement[Any]]
) -> Iterator[tuple[tuple[Any, ...], RawKey, Sequence[Any]]]:
    """Yield the key, the raw key and the other columns of each row that a select finds.

    :param key: the columns of the key; they are read by the types of history, which read values that are older than
        the type of their column
    """
    raw = raw_columns(key, connection.dialect)
    typed = [type_coerce(column, old.type) for column, old in zip(key, table.history_key, strict=True)]
    columns = [*typed, *raw, *statement.selected_columns]
    labelled = [column.label(f"sqlaudit_{place}") for place, column in enumerate(columns)]
    width = len(raw)
    with connection.execute(
        statement.with_only_columns(*labelled, maintain_column_froms=True), execution_options=_STREAMED
    ) as result:
        for row in result:
            yield tuple(row[:width]), RawKey(row[width : 2 * width]), row[2 * width :]


# --- the base table ---------------------------------------------------------------------------------------------


class Counted(NamedTuple):
    """What the first statement on a history counts."""

    versions: int
    open: int
    faults: int
    unfollowed: int = 0
    """How many versions have ended, are no tombstones, and have no version with the next number."""
    beginnings: int = 0
    """How many versions have no version before them and may be the first that :func:`prune` left.

    They are baselines and tombstones, and inserts where the history has been pruned.
    """


class Sequences:
    """The versions of the rows of a base table, or the links of an association table."""

    def __init__(self, connection: Connection, table: TrackedTable) -> None:
        self.connection = connection
        self.table = table
        self.version, self.before = HistoryAlias(table), HistoryAlias(table)
        self._beginnings: tuple[Operation, ...] = _BEGINNINGS
        tables = maintenance_tables_of(table.live.metadata)
        if tables is not None and table_exists(connection, tables.horizons):
            if is_pruned(connection, table):  # an insert: of a row that was deleted before, and is there again
                self._beginnings = (*_BEGINNINGS, Operation.INSERT)
            else:
                self._beginnings = (Operation.BASELINE,)

    @property
    def _pairs(self) -> FromClause:
        """Each version, with the version that has the number before its own, if there is one."""
        version, before = self.version, self.before
        is_before = and_(before.has_key(version.key), before.version == version.version - ONE)
        return version.clause.outerjoin(before.clause, is_before)

    def count(self) -> Counted:
        version, before = self.version, self.before
        lacks_before = and_(before.version.is_(None), version.version != ONE)
        statement = select(
            func.count().label("versions"),
            count_where(version.is_open).label("open"),
            func.count(case((self._follows_plainly(), None), (or_(*self._faults(at_once=True).values()), ONE))).label(
                "faults"
            ),
            func.count(before.version).label("followed"),
            count_where(is_a(version, Operation.DELETE)).label("tombstones"),
            count_where(is_a(before, Operation.DELETE)).label("followed_tombstones"),
            count_where(and_(lacks_before, is_a(version, *self._beginnings))).label("beginnings"),
        ).select_from(self._pairs)
        found = self.connection.execute(statement).one()
        # Of versions that are open, none is followed, unless there is a fault.
        ended, followed = found.versions - found.open - found.tombstones, found.followed - found.followed_tombstones
        unfollowed = max(ended - followed, int(found.faults > 0))
        return Counted(found.versions, found.open, found.faults, unfollowed, found.beginnings)

    def _follows_plainly(self) -> ColumnElement[bool]:
        """Return a condition that most versions fulfil, and none that has a fault: it spares most of the others."""
        version, before = self.version, self.before
        return and_(
            before.valid_to == version.valid_from,
            is_a(version, Operation.UPDATE),
            is_a(before, Operation.UPDATE),
            version.valid_from <= version.valid_to,
            not_(before.is_open),
        )

    def _faults(self, *, at_once: bool = False) -> Faults:
        """Return the condition of each fault that a version shows beside the version before it.

        :param at_once: leave out what asks for other versions, one by one. It would slow down the statement that
            counts; a fault that is only found in this way leaves another trace in its numbers
        """
        version, before = self.version, self.before
        is_tombstone, follows_tombstone = is_a(version, Operation.DELETE), is_a(before, Operation.DELETE)
        lacks_before = and_(before.version.is_(None), version.version != ONE)
        is_missing, is_open_before = not_(is_a(version, *self._beginnings)), before.is_open
        if not at_once:
            is_missing = or_(is_missing, self._has_earlier())
            is_open_before = or_(is_open_before, and_(lacks_before, self._has_earlier(is_open=True)))
        return {
            FindingCode.REVERSED_PERIOD: version.valid_from > version.valid_to,
            FindingCode.MISSING_VERSION: or_(
                and_(lacks_before, is_missing), and_(before.version.is_(None), is_a(version, Operation.UPDATE))
            ),
            FindingCode.OPEN_NOT_LAST: is_open_before,
            FindingCode.OVERLAP: and_(not_(before.is_open), before.valid_to > version.valid_from),
            FindingCode.GAP: and_(
                before.valid_to < version.valid_from, not_(follows_tombstone), not_(is_a(version, Operation.BASELINE))
            ),
            FindingCode.MISPLACED_TOMBSTONE: or_(
                and_(is_tombstone, or_(version.valid_from != version.valid_to, version.version == ONE)),
                and_(follows_tombstone, not_(is_a(version, Operation.INSERT, Operation.BASELINE))),
            ),
            FindingCode.MISSING_TOMBSTONE: and_(is_a(version, Operation.INSERT), not_(follows_tombstone)),
        }

    def _has_earlier(self, *, is_open: bool = False) -> ColumnElement[bool]:
        earlier, version = HistoryAlias(self.table), self.version
        criteria = [earlier.is_open] if is_open else []
        return has_row(earlier, earlier.has_key(version.key), earlier.version < version.version, *criteria).correlate(
            version.clause
        )

    def rows_with(self, code: FindingCode) -> Select[Any]:
        """Return the select of the keys of versions that have a fault beside the version before them."""
        return select(*self.version.key).select_from(self._pairs).where(self._faults()[code])

    def followed_open_versions(self, keys: Sequence[Key]) -> list[tuple[RawKey, int, datetime]]:
        """Return the open versions of rows that the version with the next number follows.

        :return: the raw key, the number, and when the next version begins
        """
        version, before, dialect = self.version, self.before, self.connection.dialect
        statement = (
            select(*raw_columns(version.key, dialect), before.version, version.valid_from)
            .select_from(self._pairs)
            .where(has_one_of(version.key, keys, dialect), before.is_open, version.valid_from >= before.valid_from)
        )
        found = self.connection.execute(statement).all()
        return [(RawKey(row[:-2]), row[-2], row[-1]) for row in found]

    def list_faults(self, counted: Counted, findings: Collector) -> None:
        if counted.faults or counted.beginnings:
            self._list_pairs(findings)
        if counted.unfollowed:
            self._list_unfollowed(findings)

    def _list_pairs(self, findings: Collector) -> None:
        version, before, faults = self.version, self.before, self._faults()
        statement = (
            select(
                *(
                    column
                    for each in (version, before)
                    for column in (each.version, each.valid_from, each.valid_to, each.operation)
                ),
                *(case((fault, ONE), else_=literal_column("0")) for fault in faults.values()),
            )
            .select_from(self._pairs)
            .where(or_(*faults.values()))
        )
        for key, raw_key, values in read_rows(self.connection, self.table, statement, version.key):
            pair = _Pair(*values[:8])
            for code, is_fault in zip(faults, values[8:], strict=True):
                if is_fault:
                    message, remedy = pair.told(code)
                    findings.add(code, self.table, message, remedy, key=key, raw_key=raw_key)

    def _list_unfollowed(self, findings: Collector) -> None:
        version, later = self.version, HistoryAlias(self.table)
        is_followed = has_row(later, later.has_key(version.key), later.version > version.version)
        is_live = has_row(self.table.live, all_equal(self.table.key, version.key))
        statement = select(version.version, version.valid_to).where(
            not_(version.is_open), not_(is_a(version, Operation.DELETE)), not_(is_followed), not_(is_live)
        )
        for key, raw_key, (number, end) in read_rows(self.connection, self.table, statement, version.key):
            findings.add(
                FindingCode.MISSING_TOMBSTONE,
                self.table,
                f"The last version, {number}, ended at {_told(end)}, and the row is gone, but no tombstone says who "
                "deleted it.",
                "If you know when and by whom the row was deleted, insert its tombstone by hand, as a role that may.",
                key=key,
                raw_key=raw_key,
            )


class _Pair(NamedTuple):
    """A version, and the one before it, whose values are ``None`` if there is none."""

    number: int
    begin: datetime
    end: datetime
    operation: Operation | None
    number_before: int | None
    begin_before: datetime | None
    end_before: datetime | None
    operation_before: Operation | None

    def told(self, code: FindingCode) -> tuple[str, str]:
        """Return what is wrong, and how to mend it."""
        number, begin, before = self.number, _told(self.begin), self.number_before
        if code is FindingCode.REVERSED_PERIOD:
            return f"Version {number} ends at {_told(self.end)}, before it begins at {begin}.", _BY_HAND
        if code is FindingCode.MISSING_VERSION:
            lacking = "version" if number == 1 else f"version {number - 1}"
            return (
                f"Version {number} is {_a(self.operation)}, and has no {lacking} before it.",
                "Restore the missing versions from a backup. If they have been removed on purpose, and none is left "
                f"before version {number}, make that version a baseline.",
            )
        if code is FindingCode.OPEN_NOT_LAST:
            which = "An earlier version" if before is None else f"Version {before}"
            return (
                f"{which} is open, although version {number} follows.",
                "End it when the version after it begins. check(…, repair=True) does so if no number is missing.",
            )
        if code is FindingCode.OVERLAP:
            return (
                f"Version {number} begins at {begin}, before version {before} ends at {_told(self.end_before)}.",
                _BY_HAND,
            )
        if code is FindingCode.GAP:
            return (
                f"Version {number} begins at {begin}, but version {before}, which is no tombstone, ends at "
                f"{_told(self.end_before)}.",
                _BY_HAND,
            )
        if code is FindingCode.MISSING_TOMBSTONE:
            what = "no version before it" if before is None else f"version {before}, which is no tombstone, before it"
            return (
                f"Version {number} is an insert, with {what}.",
                "If you know when and by whom the row was deleted, make the version before a tombstone by hand.",
            )
        if self.operation is not Operation.DELETE:
            return f"Version {number} is {_a(self.operation)} and follows the tombstone {before}.", _BY_HAND
        if before is None and number == 1:
            return f"Version {number} is a tombstone, and no version is before it.", _BY_HAND
        if self.operation_before is Operation.DELETE:
            return f"Version {number} is a tombstone and follows the tombstone {before}.", _BY_HAND
        return f"Version {number} is a tombstone, but lasts from {begin} until {_told(self.end)}.", _BY_HAND


def _told(instant: datetime | None) -> str:
    return "?" if instant is None else instant.isoformat()


def _a(operation: Operation | None) -> str:
    return f"an {operation}" if operation in (Operation.INSERT, Operation.UPDATE) else f"a {operation}"


# --- subclass tables --------------------------------------------------------------------------------------------


class Parts:
    """The versions in the history of a subclass table, each of which is part of a version in the base table."""

    def __init__(self, connection: Connection, base: TrackedTable, table: TrackedTable) -> None:
        self.connection = connection
        self.table = table
        self.version, self.base = HistoryAlias(table), HistoryAlias(base)

    @property
    def _pairs(self) -> FromClause:
        version, base = self.version, self.base
        is_same = and_(base.has_key(version.key), base.version == version.version)
        return version.clause.outerjoin(base.clause, is_same)

    def _faults(self) -> Faults:
        version, base = self.version, self.base
        agrees = and_(version.operation == base.operation, version.valid_to == base.valid_to)
        has_left = and_(is_a(version, Operation.DELETE), version.valid_to == version.valid_from)
        return {
            FindingCode.ORPHANED_VERSION: base.version.is_(None),
            FindingCode.DIFFERENT_PERIOD: or_(
                version.valid_from != base.valid_from,
                version.changeset_id != base.changeset_id,
                not_(or_(agrees, has_left)),
            ),
        }

    def rows_with(self, code: FindingCode) -> Select[Any]:
        """Return the select of the keys of versions that have a fault beside the version in the base table."""
        return select(*self.version.key).select_from(self._pairs).where(self._faults()[code])

    def count(self) -> Counted:
        statement = select(
            func.count(), count_where(self.version.is_open), count_where(or_(*self._faults().values()))
        ).select_from(self._pairs)
        return Counted(*self.connection.execute(statement).one())

    def list_faults(self, counted: Counted, findings: Collector) -> None:
        if not counted.faults:
            return
        version, base, faults = self.version, self.base, self._faults()
        statement = (
            select(version.version, base.version, version.valid_from, version.valid_to, base.valid_from, base.valid_to)
            .select_from(self._pairs)
            .where(or_(*faults.values()))
        )
        for key, raw_key, values in read_rows(self.connection, self.table, statement, version.key):
            number, number_of_base, begin, end, begin_of_base, end_of_base = values
            if number_of_base is None:
                findings.add(
                    FindingCode.ORPHANED_VERSION,
                    self.table,
                    f"Version {number} has no version in the history table {self.base.table.history.fullname!r}.",
                    "Restore the missing version from a backup.",
                    key=key,
                    raw_key=raw_key,
                )
            else:
                findings.add(
                    FindingCode.DIFFERENT_PERIOD,
                    self.table,
                    f"Version {number} lasts from {_told(begin)} until {_told(end)}, but in the history table "
                    f"{self.base.table.history.fullname!r} from {_told(begin_of_base)} until {_told(end_of_base)}; or "
                    "their operations or changesets differ.",
                    "Copy the audit columns from the base table. check(…, repair=True) does so if the version is open "
                    "and has ended in the base table.",
                    key=key,
                    raw_key=raw_key,
                )
