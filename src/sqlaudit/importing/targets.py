"""What do all imports share? They write in the caller's transaction, and end by comparing with the live rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.orm import Session

from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.backfill import backfill
from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.recording.reconcile import record_changes
from sqlaudit.tracking.models import base_table_of
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable


@contextmanager
def import_target(where: Session | Connection, table: TrackedTable) -> Iterator[tuple[Session, Connection]]:
    """Give a session and a connection that write a table in the caller's transaction, which stays open."""
    if isinstance(where, Connection):
        if not where.in_transaction():
            where.begin()
        with Session(where) as session:
            yield session, where
        return
    session = checked_session(where)
    session.flush()
    yield session, connection_for_versions(session, table.mapper)


def reconcile_after_import(session: Session, connection: Connection, model_class: Any) -> tuple[int, int]:
    """Make the history agree with the live rows after an import.

    :return: the number of rows that got a baseline, and the number of versions that record changes missing before
    """
    versions = select(func.count()).select_from(base_table_of(model_class).history)
    baselines = backfill(session, model_class).rows
    before = connection.scalar(versions) or 0
    record_changes(session, model_class)
    return baselines, (connection.scalar(versions) or 0) - before


def column_names_of(connection: Connection, name: str, schema: str | None, remedy: str) -> set[str]:
    """Return the names of the columns of a table.

    :param remedy: what the error advises
    :raises QueryError: there is no such table
    """
    inspector = inspect(connection)
    if not inspector.has_table(name, schema=schema):
        raise QueryError(f"The table {name!r}, which is to be imported, does not exist. {remedy}", name)
    return {column["name"] for column in inspector.get_columns(name, schema=schema)}
