"""Which rows of a table may the connection's role see and lock? PostgreSQL's privileges and row security say so.

``SET ROLE`` may change the answers at any time, so they are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, Table, and_, false, func, not_, or_, select

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.tracking.catalogue import oid_of
from sqlaudit.tracking.tables import TrackedTable


def hides_rows(connection: Connection, tables: Iterable[Table]) -> bool:
    """Return whether policies may hide rows of one of the tables from the role. One statement, on PostgreSQL."""
    return _asked(connection, or_(*(_has_policies(connection, table) for table in tables)))


def lockable_tables(connection: Connection, tables: Sequence[Table]) -> set[Table]:
    """Return the tables in which the role may lock all rows that it may read. One statement, on PostgreSQL.

    ``SELECT … FOR UPDATE`` needs the privilege to UPDATE, and finds only rows that the policies let the role update.
    MariaDB lets every role lock the rows that it may read.
    """
    if not TRAITS[connection.dialect.name].has_row_security or not tables:
        return set(tables)
    may_update = (func.has_any_column_privilege(oid_of(connection, table), "UPDATE") for table in tables)
    questions = [
        and_(may, not_(_has_policies(connection, table))) for may, table in zip(may_update, tables, strict=True)
    ]
    return {table for table, may in zip(tables, connection.execute(select(*questions)).one(), strict=True) if may}


def table_with_visible_history(connection: Connection, chain: Iterable[TrackedTable]) -> TrackedTable | None:
    """Return a table whose policies apply to the role while its history has none. One statement each, on PostgreSQL."""
    for table in chain:
        live, history = (_has_policies(connection, table) for table in (table.live, table.history))
        if _asked(connection, and_(live, not_(history))):
            return table
    return None


def _asked(connection: Connection, question: ColumnElement[bool]) -> bool:
    return TRAITS[connection.dialect.name].has_row_security and bool(connection.scalar(select(question)))


def _has_policies(connection: Connection, table: Table) -> ColumnElement[bool]:
    """Return the condition that row security of a table is active for the role; false if the table does not exist."""
    return func.coalesce(func.row_security_active(oid_of(connection, table)), false())
