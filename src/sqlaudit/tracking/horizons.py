"""Since when is a history complete? Since its horizon, before which :func:`~sqlaudit.maintenance.prune` has pruned it.

The horizon is committed before the first version is removed. A read looks at it after its own statement: what the
statement has read was removed neither before nor meanwhile, if no horizon is later than its instant. On PostgreSQL the
look takes a lock that lets ``prune`` wait, so that one look is enough for the rest of the transaction. On MariaDB and
MySQL it is enough if the transaction reads from one snapshot. Elsewhere every statement looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import ColumnElement, Connection, Table, func, select, type_coerce
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlaudit.exceptions import HistoryTableError, PrunedError
from sqlaudit.period import UTCDateTime
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of, with_maintenance_tables
from sqlaudit.tracking.missing import is_missing_table
from sqlaudit.tracking.schema import schema_of
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.tables import TrackedTable

Horizons = Mapping[str, datetime]
"""Horizons by the full names of history tables."""
_SNAPSHOTS: Final = frozenset({"REPEATABLE READ", "SERIALIZABLE"})
_looked: Final[WeakKeyDictionary[Any, dict[Any, Horizons]]] = WeakKeyDictionary()
"""For each transaction: the horizons that it has looked at, by their table and its schema."""


def base_of(tracked: TrackedTable) -> TrackedTable:
    """Return the table that has all versions of a hierarchy, and the horizon of all its tables."""
    return tracked.chains[0][0] if tracked.chains else tracked


class Look:
    """A look at the horizons from a connection. It executes a statement only if the transaction has not looked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen: dict[Table, Horizons] = {}

    def horizons(self, table: Table) -> Horizons:
        """Return the horizons of a table of them."""
        if table not in self._seen:
            self._seen[table] = _horizons(self._connection, table)
        return self._seen[table]

    def horizon_of(self, tracked: TrackedTable) -> datetime | None:
        """Return the instant before which a history has been pruned, in UTC, or ``None``."""
        tables = maintenance_tables_of(tracked.live.metadata)
        return None if tables is None else self.horizons(tables.horizons).get(base_of(tracked).history.fullname)


def is_pruned(connection: Connection, tracked: TrackedTable) -> bool:
    """Return whether a history has been pruned."""
    return bool(with_maintenance_tables) and Look(connection).horizon_of(tracked) is not None


def is_pruned_in(session: Session, tracked: TrackedTable) -> bool:
    """Return whether a history that a session reads has been pruned."""
    if maintenance_tables_of(tracked.live.metadata) is None:
        return False
    return is_pruned(session.connection(bind_arguments=bind_arguments_for(session, tracked.mapper)), tracked)


def refuse_pruned(look: Look, reads: Iterable[tuple[TrackedTable, datetime]]) -> None:
    """Raise if a read needs what has been pruned.

    :param reads: the tables that are read, each with the earliest instant that the read needs
    :raises PrunedError: an instant is before the horizon of its table
    """
    for tracked, when in reads:
        horizon = look.horizon_of(tracked)
        if horizon is not None and when < horizon:
            raise PrunedError(
                f"{base_of(tracked).live.fullname!r} was pruned before {horizon.isoformat()}, so what it was at "
                f"{when.isoformat()} is no longer known. Read a later instant.",
                tracked.live,
                horizon,
            )


def refuse_pruned_in(session: Session, tables: Iterable[TrackedTable], when: datetime | None) -> None:
    """Raise if a session's read of tables needs what has been pruned. Nothing happens if there is no instant.

    :raises PrunedError: the instant is before the horizon of a table
    """
    if when is None or not with_maintenance_tables:
        return
    for tracked in tables:
        if maintenance_tables_of(tracked.live.metadata) is not None:
            where = bind_arguments_for(session, tracked.mapper)
            refuse_pruned(Look(session.connection(bind_arguments=where)), [(tracked, when)])


def refuse_pruned_versions(
    session: Session, tables: Iterable[TrackedTable], condition: Callable[[TrackedTable], ColumnElement[bool]]
) -> None:
    """Raise if a read needs all versions that meet a condition, and one of them began before the horizon of its table.

    Others that began then may have been removed. One statement for each table that has a horizon.

    :raises PrunedError: there is such a version
    """
    for tracked in tables if with_maintenance_tables else ():
        if maintenance_tables_of(tracked.live.metadata) is None:
            continue
        connection = session.connection(bind_arguments=bind_arguments_for(session, tracked.mapper))
        look = Look(connection)
        if look.horizon_of(tracked) is None:
            continue
        statement = select(func.min(tracked.valid_from)).where(condition(tracked))
        earliest = connection.scalar(statement, execution_options=INTERNAL)
        if earliest is not None:
            refuse_pruned(look, [(tracked, earliest)])


def _horizons(connection: Connection, table: Table) -> Horizons:
    place = table, schema_of(connection, table)
    known = (_looked.get(transaction, {}) for transaction in _transactions(connection))
    found = next((horizons[place] for horizons in known if place in horizons), None)
    if found is None:
        found = read_horizons(connection, table)
        transactions = _transactions(connection)
        if transactions and _is_enough(connection):
            _looked.setdefault(transactions[0], {})[place] = found
    return found


def forget_horizons(connection: Connection) -> None:
    """Let the transactions of a connection look again, because it has changed a horizon."""
    for transaction in _transactions(connection):
        _looked.pop(transaction, None)


def read_horizons(connection: Connection, table: Table) -> Horizons:
    """Return the horizons that a transaction sees. One statement.

    :raises HistoryTableError: the database lacks the table
    """
    statement = select(table.c.history_table, type_coerce(table.c.pruned_before, UTCDateTime()))
    try:
        rows = connection.execute(statement, execution_options=INTERNAL).all()
    except DBAPIError as error:
        if not is_missing_table(error):
            raise
        raise HistoryTableError(
            f"The database lacks the table {table.fullname!r}, which maintenance_tables() declares and which says what "
            "has been pruned. Create it with metadata.create_all(engine), or by a migration that Alembic generates.",
            table,
        ) from error
    return {row[0]: row[1] for row in rows}


def _transactions(connection: Connection) -> list[Any]:
    """Return the transactions of a connection, the innermost first."""
    found = connection.get_nested_transaction(), connection.get_transaction()
    return [transaction for transaction in found if transaction is not None]


def _is_enough(connection: Connection) -> bool:
    """Return whether no later statement of the transaction can miss what is pruned after a look at the horizons."""
    if connection._is_autocommit_isolation():
        return False
    if connection.dialect.name in MYSQL:
        return connection.get_isolation_level() in _SNAPSHOTS
    return connection.dialect.name == "postgresql"
