"""Do the open versions equal the live rows? Each table is compared with its own history, as a write does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
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
)

from sqlaudit.maintenance.findings import Collector, FindingCode
from sqlaudit.maintenance.sequences import count_where, read_rows
from sqlaudit.recording.clauses import NO_USER_FIELDS, ONE, Clauses, has_open_version, has_row
from sqlaudit.sql.comparing import all_equal, any_of
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.catalogue import columns_compared_as_text, tables_with_guard
from sqlaudit.tracking.tables import TrackedTable, prepare_connection


class Compared(NamedTuple):
    """What the first statement on a live table counts."""

    matched: int
    """How many live rows have an open version."""
    faults: int


class Comparison(Clauses):
    """A live table, compared with the open versions of its history.

    :param existing: the names of the columns that both tables have in the database
    """

    def __init__(self, connection: Connection, table: TrackedTable, existing: Collection[str]) -> None:
        prepare_connection(connection, (table,))
        super().__init__(
            (table,),
            NO_USER_FIELDS,
            True,
            connection.dialect,
            as_text=columns_compared_as_text(connection, (table,)),
            with_guard=tables_with_guard(connection, (table,)),
        )
        self.connection = connection
        self.table = table
        self.version = HistoryAlias(table)
        self.compared = [
            (live, old)
            for live, old in self.version.columns
            if live.name in existing and live.name not in table.quiet and self._is_compared(live)
        ]

    def _is_compared(self, column: Column[Any]) -> bool:
        """Return whether a column may differ: one of the key may be respelt, if the table is the base table."""
        is_base = all(chain[0] is self.table for chain in self.table.chains)
        return self._may_change(column) and (is_base or column not in self.table.key)

    @property
    def _pairs(self) -> FromClause:
        version = self.version
        return self.table.live.outerjoin(version.clause, and_(version.has_key(self.table.key), self._is_open(version)))

    def _differences(self) -> list[ColumnElement[bool]]:
        return [self._differs(live, old) for live, old in self.compared]

    def count(self) -> Compared:
        is_fault = or_(self.version.version.is_(None), any_of(*self._differences()))
        statement = select(func.count(self.version.version), count_where(is_fault)).select_from(self._pairs)
        return Compared(*self.connection.execute(statement).one())

    # --- selects of the rows whose history does not agree with them ----------------------------------------------

    def unrecorded_rows(self, *columns: ColumnElement[Any]) -> Select[Any]:
        """Return the select of the live rows that have no open version."""
        table = self.table
        has_open = has_open_version(table, table.key, with_guard=self.with_guard)
        return self._once(select(*columns or table.key).select_from(table.live).where(not_(has_open)))

    def changed_rows(self, *columns: ColumnElement[Any]) -> Select[Any]:
        """Return the select of the open versions that differ from their live rows."""
        matches = and_(self.version.version.is_not(None), any_of(*self._differences()))
        return self._once(select(*columns or self.version.key).select_from(self._pairs).where(matches))

    def _once(self, statement: Select[Any]) -> Select[Any]:
        """Return a select that gives each row once: a table without a primary key may have a link twice."""
        return statement if self.table.live.primary_key else statement.distinct()

    def deleted_rows(self, *columns: ColumnElement[Any]) -> Select[Any]:
        """Return the select of the open versions whose live rows are gone."""
        version, table = self.version, self.table
        is_live = has_row(table.live, all_equal(table.key, version.key))
        return select(*columns or version.key).select_from(version.clause).where(self._is_open(version), not_(is_live))

    # --- findings -------------------------------------------------------------------------------------------------

    def list_faults(self, counted: Compared, open_versions: int, findings: Collector) -> None:
        if counted.faults:
            self._list_unrecorded_rows(findings)
            self._list_changes(findings)
        if counted.matched != open_versions:
            self._list_deletions(findings)

    def _list_unrecorded_rows(self, findings: Collector) -> None:
        statement = self.unrecorded_rows(ONE)
        for key, raw_key, _ in read_rows(self.connection, self.table, statement, self.table.key):
            findings.add(
                FindingCode.UNRECORDED_ROW,
                self.table,
                "The live row has no open version.",
                "Write its baseline: check(…, repair=True), or backfill(…).",
                key=key,
                raw_key=raw_key,
            )

    def _list_changes(self, findings: Collector) -> None:
        flags = [case((fault, ONE), else_=literal_column("0")) for fault in self._differences()]
        statement = self.changed_rows(self.version.version, *flags)
        for key, raw_key, (number, *differ) in read_rows(self.connection, self.table, statement, self.version.key):
            names = [live.name for (live, _), is_different in zip(self.compared, differ, strict=True) if is_different]
            findings.add(
                FindingCode.UNRECORDED_CHANGE,
                self.table,
                f"The live row differs from its open version, {number}, in {', '.join(names)}.",
                "Record the change: check(…, repair=True), or record_changes(…).",
                key=key,
                raw_key=raw_key,
            )

    def _list_deletions(self, findings: Collector) -> None:
        statement = self.deleted_rows(self.version.version)
        for key, raw_key, (number,) in read_rows(self.connection, self.table, statement, self.version.key):
            findings.add(
                FindingCode.UNRECORDED_DELETION,
                self.table,
                f"Version {number} is open, but the live row is gone.",
                "Record the deletion: check(…, repair=True), or record_changes(…).",
                key=key,
                raw_key=raw_key,
            )
