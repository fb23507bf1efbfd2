"""Has a statement read what has been pruned? The compiled statement knows its tables and their instants.

A statement is looked at after it has been executed: it can be exact then, see :mod:`sqlaudit.tracking.horizons`. The
drivers of MariaDB and MySQL execute nothing while they stream a result, so the horizons are looked at before.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.sql import visitors

from sqlaudit.sql.dialects import MYSQL
from sqlaudit.tracking.horizons import Look, refuse_pruned
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of
from sqlaudit.tracking.tables import TrackedTable

SINCE: Final = "sqlaudit_since"
"""The execution option of a statement that reads versions: the begin of the range for which it needs all of them."""


def look_before_stream(connection: Connection, statement: Any, options: Any) -> Look | None:
    """Return the horizons that a statement needs once its result is being streamed, or ``None``."""
    if connection.dialect.name not in MYSQL or not (options.get("stream_results") or options.get("yield_per")):
        return None
    look = Look(connection)
    for metadata in {part.metadata for part in visitors.iterate(statement) if isinstance(part, Table)}:
        if (tables := maintenance_tables_of(metadata)) is not None:
            look.horizons(tables.horizons)
    return look


def _tables_read(context: Any) -> list[TrackedTable]:
    """Return the tables that a statement reads as of an instant; none if no history of them may have been pruned."""
    tables = [tracked for _, tracked, _ in getattr(getattr(context, "compiled", None), "past_reads", ())]
    return tables if any(maintenance_tables_of(tracked.live.metadata) for tracked in tables) else []


def refuse_pruned_reads(
    connection: Connection, context: Any, look: Look | None = None, when: datetime | None = None
) -> list[TrackedTable]:
    """Raise if a statement reads what has been pruned.

    :param context: SQLAlchemy's context of the execution
    :param when: the instant as of which the whole statement reads, for tables that it reads from copies
    :param look: the horizons, if they have been looked at
    :return: the tables that it reads as of an instant; none if no history of them may have been pruned
    :raises PrunedError: it reads a table as of an instant before the table's horizon
    """
    if tables := _tables_read(context):
        refuse_pruned(look or Look(connection), _instants(context, when))
    return tables


def refuse_pruned_result(
    connection: Connection, result: Any, look: Look | None = None, when: datetime | None = None
) -> list[TrackedTable]:
    """Do what :func:`refuse_pruned_reads` does, for a statement that was executed; close its result before raising."""
    try:
        return refuse_pruned_reads(connection, getattr(result, "context", None), look, when)
    except BaseException:
        result.close()
        raise


def _instants(context: Any, when: datetime | None) -> Iterator[tuple[TrackedTable, datetime]]:
    """Yield each table that a statement reads, with the instant: SQLAlchemy keeps compiled statements for others."""
    names = context.compiled.bind_names
    values = context.compiled.construct_params(extracted_parameters=context.extracted_parameters, _check=False)
    for past, tracked, _ in context.compiled.past_reads:
        parameters = [each for each in (past._past_when, past._past_literal) if each in names]
        instant = values[names[parameters[0]]] if parameters else when
        if instant is not None:
            yield tracked, instant
