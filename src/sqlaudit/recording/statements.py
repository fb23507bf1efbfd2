"""How are versions written in SQL? By statements that are built once per table and dialect.

The instant, the keys and the context are bound parameters. The statements use no database clock, no volatile function
and no MERGE, so that they also run on a distributed PostgreSQL. Only :meth:`Statements.close_and_snapshot` and
:meth:`Statements.close_and_tombstone` have data-modifying CTEs, or are blocks of statements, to save a round trip where
a server accepts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Executable,
    Integer,
    Select,
    Update,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    null,
    select,
    true,
    update,
)

from sqlaudit.changes import Operation
from sqlaudit.period import OpenEnd, UTCDateTime, is_open
from sqlaudit.recording.clauses import (
    NO_USER_FIELDS,
    ONE,
    Clauses,
    CompoundStatement,
    has_row,
    operation_text,
)
from sqlaudit.recording.prepared import step
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias, joined_live_tables
from sqlaudit.tracking.tables import TrackedTable

NO_VALUES: Final[Mapping[Column[Any], ColumnElement[Any]]] = MappingProxyType({})
_at = bindparam("sqlaudit_at", type_=UTCDateTime())


class LiveRows(Enum):
    """The live rows of which a snapshot writes versions."""

    ALL = auto()
    """All rows."""
    NEW = auto()
    """The rows without history, whose versions get number 1.

    Where a look for the history of a new key would lock its neighbours, so that inserts deadlock, the primary key of
    the history table refuses a second version number 1. The database undoes only that statement."""
    CLOSED = auto()
    """The rows whose last version was closed at the instant."""
    ABSENT = auto()
    """The rows without an open version and without a version that begins after the instant."""


class OpenVersions(Enum):
    """The open versions that a step ends."""

    ALL = auto()
    """All open versions."""
    CHANGED = auto()
    """The versions that differ from their live rows."""
    DELETED = auto()
    """The versions whose live rows are deleted."""


class Statements(Clauses):
    """The statements that write the versions of objects that live in a chain of tables.

    Those for the base table decide which versions are written; those for the other tables copy them. Each step returns
    the statements of its tables; the one for the base table comes first.
    """

    @step
    def snapshot(self, operation: Operation, rows: LiveRows) -> list[Executable]:
        """Write versions of live rows, which begin at the instant and are open."""
        return self._snapshot(operation, rows)

    def old_baseline(self, values: Mapping[Column[Any], ColumnElement[Any]]) -> list[Executable]:
        """Write the baseline of a live row that has changed, unless it has an open version. The statements aren't kept.

        :param values: the known old values: live column → value
        """
        statements = self._snapshot(Operation.BASELINE, LiveRows.ABSENT, values)
        return [statement.execution_options(preserve_rowcount=True, **INTERNAL) for statement in statements]

    def _snapshot(
        self, operation: Operation, rows: LiveRows, values: Mapping[Column[Any], ColumnElement[Any]] = NO_VALUES
    ) -> list[Executable]:
        base, past = self.base, HistoryAlias(self.base)
        last = self._newest(past, base.key).scalar_subquery()
        number = ONE if rows is LiveRows.NEW else func.coalesce(last, literal_column("0")) + ONE
        statement = self._by_primary_key(self._new_versions(operation, number, values=values), base.live, base.key)
        if rows is LiveRows.NEW and not TRAITS[self.dialect.name].locks_scanned_rows:
            # For a bound key PostgreSQL may scan the table to answer EXISTS, if it expects to find a version soon.
            has_versions = has_row(past, past.has_key(base.key)) if self.many else last.is_not(None)
            statement = statement.where(~has_versions)
        if rows is LiveRows.ABSENT:  # no version but the last is open, or begins later than the last
            ends_or_begins = case((past.is_open, past.valid_to), else_=past.valid_from)
            latest = self._newest(past, base.key, ends_or_begins).scalar_subquery()
            # Not coalesce(latest, :at): of an instant and a parameter MariaDB makes a text, and compares texts.
            statement = statement.where(func.coalesce(latest <= _at, true()))
        if rows is LiveRows.CLOSED:
            statement = statement.where(self._newest(past, base.key, past.valid_to).scalar_subquery() == _at)
        return [self._insert_into_history(base, statement), *self._copies_to_subclass_tables(values)]

    @step
    def close_and_snapshot(self) -> list[Executable]:
        """End the open versions that differ from their live rows, and write the next ones, which begin at the instant.

        The statement for the base table does what the first statements of :meth:`close` and :meth:`snapshot` do. Its
        rowcount is the number of rows that it has handled. A block of statements, which handles one row, does all that
        the two steps do, and has a rowcount if it has handled the row.
        """
        base = self.base
        if TRAITS[self.dialect.name].has_compound_statements:
            closes = self._closes(OpenVersions.CHANGED, guarded=True)
            return [CompoundStatement(*closes, *self._snapshot(Operation.UPDATE, LiveRows.ALL))]
        past = self._closed_in_cte(base, OpenVersions.CHANGED, (*base.history_key, base.version))
        statement = self._new_versions(Operation.UPDATE, past.version + ONE, past)
        return [
            self._insert_into_history(base, statement),
            *(self._close(table, OpenVersions.CHANGED, guarded=True) for table in self.chain[1:]),
            *self._copies_to_subclass_tables(),
        ]

    def _new_versions(
        self,
        operation: Operation,
        number: ColumnElement[Any],
        closed: HistoryAlias | None = None,
        values: Mapping[Column[Any], ColumnElement[Any]] = NO_VALUES,
    ) -> Select[Any]:
        """Return the select of the versions of live rows, which begin at the instant and are open.

        :param closed: the versions that precede them, in the FROM clause; the rows without one are left out
        :param values: values in place of those of the live row
        """
        base = self.base
        statement = select(
            *(base.recorded(live, values.get(live)) for live, _ in base.columns),
            number,
            _at,
            OpenEnd(),
            *self._audit_values(operation, self._user(None)),
        ).where(self._has_one_of_keys(base.key, again=closed is not None))
        of_base = {column for column, _ in base.columns}
        needs_base_only = all(field is None or field in of_base for field in self.user_fields)
        source = base.live if needs_base_only else joined_live_tables(self.chain, isouter=True)
        if closed is not None:
            source = source.join(closed.clause, closed.has_key(base.key))
        if base.is_association and not base.live.primary_key:  # it may have duplicate rows
            # Not DISTINCT: with it PostgreSQL takes the untyped literals for text.
            statement = statement.group_by(*(live for live, _ in base.columns))
            statement = statement if closed is None else statement.group_by(closed.version)
        return statement.select_from(source)

    def _copies_to_subclass_tables(
        self, values: Mapping[Column[Any], ColumnElement[Any]] = NO_VALUES
    ) -> Iterator[Executable]:
        for table in self.chain[1:]:
            copied = [table.recorded(live, values.get(live)) for live, _ in table.columns]
            yield self._copy_to_subclass_table(table, table.live, copied)

    def _copy_to_subclass_table(self, table: TrackedTable, source: Any, values: list[Any]) -> Executable:
        """Write, for a subclass table, the versions that this changeset has opened in the base table."""
        base_history, past = HistoryAlias(self.base), HistoryAlias(table)
        same_row = [source.c[column.key] for column in table.key]
        statement = (
            select(*values, *base_history.audit)
            .select_from(source.join(base_history.clause, base_history.has_key(same_row)))
            .where(
                self._has_one_of_keys(same_row),
                self._is_open(base_history),
                base_history.changeset_id == self._changeset,
                ~has_row(past, self._is_same_row(past.key, same_row), self._is_open(past)),
            )
        )
        return self._insert_into_history(table, self._by_primary_key(statement, source, same_row))

    @step
    def close(self, versions: OpenVersions, *, guarded: bool) -> list[Executable]:
        """End open versions.

        :param guarded: exclude the versions that do not begin before the instant
        """
        return self._closes(versions, guarded)

    def _closes(self, versions: OpenVersions, guarded: bool) -> list[Executable]:
        return [self._close(table, versions, guarded) for table in self.chain]

    def _close(self, table: TrackedTable, versions: OpenVersions, guarded: bool) -> Update:
        base, history, past = self.base, table.history, HistoryAlias(table, table.history)
        statement: Update = (
            update(history)
            .where(self._has_one_of_keys(table.history_key), self._is_open(past))
            .values({table.valid_to: _at})
        )
        statement = self._by_open_guard(statement, past)
        if table is not base:
            same = self._is_same_row(base.history_key, table.history_key), base.version == table.version
            return statement.where(has_row(base.history, *same, base.valid_to != OpenEnd()))
        if guarded:
            statement = statement.where(table.valid_from < _at)
        if versions is OpenVersions.CHANGED:
            statement = statement.where(self._has_changed(past))
        elif versions is OpenVersions.DELETED:
            statement = statement.where(self._is_deleted(past))
        return statement

    def _closed_in_cte(
        self, table: TrackedTable, versions: OpenVersions, columns: Iterable[Column[Any]]
    ) -> HistoryAlias:
        """Return the versions that a CTE ends, with some of their columns."""
        # The labels are not cut off, as SQLAlchemy does with long names of a CTE's columns.
        labelled = [column.label(column.key) for column in columns]
        closed = self._close(table, versions, guarded=True).returning(*labelled)
        return HistoryAlias(table, closed.cte("sqlaudit_closed"))

    @step
    def tombstone(self, versions: OpenVersions, *, guarded: bool) -> list[Executable]:
        """Write the tombstones of rows whose versions are still open; see :meth:`close`."""
        return self._tombstone(versions, guarded)

    def _tombstone(self, versions: OpenVersions, guarded: bool) -> list[Executable]:
        statements: list[Executable] = []
        for table in self.chain:
            past = HistoryAlias(table)
            statement = self._tombstones(past).where(self._has_one_of_keys(past.key), self._is_open(past))
            if table is self.base:
                if guarded:
                    statement = statement.where(past.valid_from < _at)
                if versions is OpenVersions.DELETED:
                    statement = statement.where(self._is_deleted(past))
            statements.append(self._insert_into_history(table, self._by_open_guard(statement, past)))
        return statements

    @step
    def close_and_tombstone(self, versions: OpenVersions) -> list[Executable]:
        """End open versions and write the tombstones that follow them, with one statement per table or for all.

        The statement does what those of :meth:`close` and :meth:`tombstone` do; for the rowcount see
        :meth:`close_and_snapshot`.
        """
        if TRAITS[self.dialect.name].has_compound_statements:
            return [CompoundStatement(*self._tombstone(versions, guarded=True), *self._closes(versions, guarded=True))]
        statements: list[Executable] = []
        for table in self.chain:
            past = self._closed_in_cte(table, versions, table.history.c)
            statements.append(self._insert_into_history(table, self._tombstones(past)))
        return statements

    def _tombstones(self, past: HistoryAlias) -> Select[Any]:
        """Return the select of the tombstones that follow versions."""
        if past.table is self.base:
            values = self._audit_values(Operation.DELETE, self._user(dict(past.columns)))
            return select(*past.stored, past.version + ONE, _at, _at, *values)
        base_history = HistoryAlias(self.base)
        return (
            select(*past.stored, *base_history.audit)
            .select_from(past.clause.join(base_history.clause, base_history.has_key(past.key)))
            .where(
                base_history.version == past.version + ONE,
                base_history.operation == operation_text(Operation.DELETE),
            )
        )

    @step
    def tombstone_left_tables(self) -> list[Executable]:
        """Write the tombstones of rows that are gone from a subclass table, where the base table has a new version."""
        statements: list[Executable] = []
        for table in self.chain[1:]:
            past, base_history = HistoryAlias(table), HistoryAlias(self.base)
            audit_values = {role: base_history.role(role) for role, _ in self.base.names.items()}
            audit_values |= {"operation": operation_text(Operation.DELETE), "valid_to": base_history.valid_from}
            statement = (
                select(*past.stored, *audit_values.values())
                .select_from(past.clause.join(base_history.clause, base_history.has_key(past.key)))
                .where(
                    self._has_one_of_keys(past.key),
                    self._is_open(base_history),
                    base_history.version == past.version + ONE,
                    base_history.changeset_id == self._changeset,
                    base_history.valid_from == past.valid_to,
                    past.operation != operation_text(Operation.DELETE),
                    ~has_row(table.live, self._is_same_row(table.key, past.key)),
                )
            )
            statements.append(self._insert_into_history(table, statement))
        return statements

    @step
    def remove(self) -> list[Executable]:
        """Delete one version, by its number."""
        return [
            delete(table.history).where(
                self._has_key(table.history_key),
                table.version == bindparam("sqlaudit_version", type_=Integer()),
            )
            for table in self.chain
        ]

    @step
    def reopen(self) -> list[Executable]:
        """Make one version, by its number, the open one again, unless it is the tombstone of a subclass table."""
        return [
            update(table.history)
            .where(
                self._has_key(table.history_key),
                table.version == bindparam("sqlaudit_version", type_=Integer()),
                table.role("operation") != operation_text(Operation.DELETE),
            )
            .values({table.valid_to: OpenEnd()})
            for table in self.chain
        ]

    @step
    def forget_baseline(self) -> list[Executable]:
        """Delete the baselines of this changeset that no change followed."""
        return [
            delete(table.history).where(
                self._has_one_of_keys(table.history_key),
                self._is_open(HistoryAlias(table, table.history)),
                table.role("operation") == operation_text(Operation.BASELINE),
                table.role("changeset_id") == self._changeset,
            )
            for table in self.chain
        ]

    @step
    def last(self) -> list[Executable]:
        """Read the last version of each row, and whether the live row is gone or differs from it."""
        base, history = self.base, HistoryAlias(self.base, self.base.history)
        user: ColumnElement[Any] = null()
        if self.user_fields is not NO_USER_FIELDS:
            row = (
                select(self._user(None))
                .select_from(joined_live_tables(self.chain, isouter=True))
                .where(self._is_same_row(base.key, base.history_key))
                .scalar_subquery()
            )
            user = func.coalesce(row, self._user(dict(base.columns)))
        statement = select(
            *self.key_types.read(base.history_key, as_raw=self.raw_keys),
            *history.audit,
            case((self._is_deleted(history), 1), else_=0).label("sqlaudit_gone"),
            case((self._has_changed(history), 1), else_=0).label("sqlaudit_changed"),
            user.label("sqlaudit_row_user"),
        ).where(self._is_last(history))
        if not (self.many and self.are_distributed):
            statement = statement.with_for_update()
        return [self._by_primary_key(statement, base.history, base.history_key)]

    @step
    def keys(self, columns: tuple[Column[Any], ...]) -> list[Executable]:
        """Find the live rows and the open versions whose ``columns`` of the base table have one of the given values."""
        return [
            select(*self._compared(self.base.key)).where(self._has_one_of_keys(columns)),
            select(*self._compared(self.base.history_key)).where(
                self._has_one_of_keys([self.base.history.c[column.key] for column in columns]),
                is_open(self.base.valid_to),
            ),
        ]
