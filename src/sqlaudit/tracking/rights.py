"""What may the role of a connection see of a table, and lock? PostgreSQL's rights and row security.

``SET ROLE`` may change the answers at any time, so nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, Table, and_, false, func, not_, or_, select

from sqlaudit.tracking.catalogue import oid_of
from sqlaudit.tracking.tables import TrackedTable


def hides_rows(connection: Connection, tables: Iterable[Table]) -> bool:
    """Tell whether policies may hide rows of one of the tables from the role. One statement, on PostgreSQL."""
    return _asked(connection, or_(*(_has_policies(connection, table) for table in tables)))


def lockable(connection: Connection, tables: Sequence[Table]) -> set[Table]:
    """Return the tables of which the role may lock all rows that it may read. One statement, on PostgreSQL.

    ``SELECT … FOR UPDATE`` takes the right to UPDATE, and finds the rows that the policies let the role update.
    MariaDB lets everybody lock what they read.
    """
    if connection.dialect.name != "postgresql" or not tables:
        return set(tables)
    may_update = (func.has_any_column_privilege(oid_of(connection, table), "UPDATE") for table in tables)
    questions = [
        and_(may, not_(_has_policies(connection, table))) for may, table in zip(may_update, tables, strict=True)
    ]
    return {table for table, may in zip(tables, connection.execute(select(*questions)).one(), strict=True) if may}


def shows_more_in_history(connection: Connection, chain: Iterable[TrackedTable]) -> TrackedTable | None:
    """Return a table that has policies for the role while its history has none. One statement each, on PostgreSQL."""
    for table in chain:
        live, history = (_has_policies(connection, each) for each in (table.live, table.history))
        if _asked(connection, and_(live, not_(history))):
            return table
    return None


def _asked(connection: Connection, question: ColumnElement[bool]) -> bool:
    return connection.dialect.name == "postgresql" and bool(connection.scalar(select(question)))


def _has_policies(connection: Connection, table: Table) -> ColumnElement[bool]:
    """Return the condition that policies of a table, which may be absent, are active for the role."""
    return func.coalesce(func.row_security_active(oid_of(connection, table)), false())
