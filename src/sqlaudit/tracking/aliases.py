"""How does a statement read the tables of an object, and tell apart a history table that it reads more than once?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, FromClause, and_

from sqlaudit.period import is_open
from sqlaudit.sql.comparing import all_equal
from sqlaudit.tracking.tables import TrackedTable


def joined_live_tables(chain: Sequence[TrackedTable], *, isouter: bool = False) -> FromClause:
    """Return the join of the live tables of a chain.

    :param isouter: include the rows that a subclass table lacks
    """
    base, *others = chain
    source: FromClause = base.live
    for table in others:
        source = source.join(table.live, all_equal(base.key, table.key), isouter=isouter)
    return source


def joined_versions(chain: Sequence[TrackedTable], *, isouter: bool = False) -> FromClause:
    """Return the join of the history tables of a chain, so that each row is one version.

    :param isouter: include the versions of rows that a subclass table lacks, or has lost: its tombstone is left out
    """
    base, *others = chain
    source: FromClause = base.history
    for table in others:
        is_same = all_equal((*table.history_key, table.version), (*base.history_key, base.version))
        if isouter:
            is_same = and_(is_same, table.role("operation") == base.role("operation"))
        source = source.join(table.history, is_same, isouter=isouter)
    return source


class HistoryAlias:
    """A history table in the FROM clause of a statement.

    :param clause: the element of the FROM clause; a new alias of the history table if omitted
    """

    __slots__ = ("clause", "table")

    def __init__(self, table: TrackedTable, clause: FromClause | None = None) -> None:
        self.table = table
        self.clause: FromClause = table.history.alias() if clause is None else clause

    def role(self, role: str) -> ColumnElement[Any]:
        """Return the audit column of a role: a field of :class:`~sqlaudit.AuditColumns`."""
        name: str = getattr(self.table.names, role)
        return self.clause.c[name]

    @property
    def key(self) -> list[ColumnElement[Any]]:
        """The columns that identify a row."""
        return [self.clause.c[column.key] for column in self.table.key]

    @property
    def stored(self) -> list[ColumnElement[Any]]:
        """The columns that hold what the live row held, in the order of ``table.columns``."""
        return [self.clause.c[column.key] for _, column in self.table.columns]

    @property
    def columns(self) -> list[tuple[Column[Any], ColumnElement[Any]]]:
        """The stored columns: (live column, column of this alias)."""
        return [(live, self.clause.c[column.key]) for live, column in self.table.columns]

    @property
    def audit(self) -> list[ColumnElement[Any]]:
        """The audit columns, in the order of :class:`~sqlaudit.AuditColumns`."""
        return [self.clause.c[name] for _, name in self.table.names.items()]

    @property
    def version(self) -> ColumnElement[int]:
        return self.role("version")

    @property
    def valid_from(self) -> ColumnElement[Any]:
        return self.role("valid_from")

    @property
    def valid_to(self) -> ColumnElement[Any]:
        return self.role("valid_to")

    @property
    def operation(self) -> ColumnElement[Any]:
        return self.role("operation")

    @property
    def changeset_id(self) -> ColumnElement[Any]:
        return self.role("changeset_id")

    @property
    def is_open(self) -> ColumnElement[bool]:
        """The condition that a version has not ended."""
        return is_open(self.valid_to)

    def has_key(self, key: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition that a version belongs to the row with a key."""
        return all_equal(self.key, key)

    def is_version_of(self, other: HistoryAlias, distance: int = 0) -> ColumnElement[bool]:
        """Return the condition that a version is of the same row as another, and its number is ``distance`` higher."""
        number = other.version + distance if distance else other.version
        return and_(self.has_key(other.key), self.version == number)

    def belongs_to(self, other: HistoryAlias) -> ColumnElement[bool]:
        """Return the condition that a version in the table of a subclass is part of a version in another table.

        The tombstone of a row that has left the subclass is not: there the row is of another class.
        """
        # Only equations of two columns: SQLAlchemy takes the condition of an inheritance apart to load a single column.
        return and_(self.is_version_of(other), self.operation == other.operation)
