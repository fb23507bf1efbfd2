"""What may be neither pruned nor erased? Rows and changesets with a legal hold.

.. code-block:: python

    hold(session, Customer, 42, reason="lawsuit 7 O 12/26")

A hold is a row of the table ``sqlaudit_holds``, which :func:`maintenance_tables` declares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Connection, Table, delete, insert, or_, select, type_coerce
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import changeset_uuid
from sqlaudit.asynchronous import also_async
from sqlaudit.config import current_config, current_user_id
from sqlaudit.exceptions import QueryError
from sqlaudit.period import UTCDateTime
from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.retrieval.changesets import tables_of_changeset
from sqlaudit.retrieval.key_texts import checked_key, parsed_key
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.maintenance_tables import (
    MaintenanceTables,
    maintenance_tables_of,
    required_maintenance_tables,
    with_maintenance_tables,
)
from sqlaudit.tracking.models import base_table_of
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable
from sqlaudit.wire import Report, Value

_AnySession = Session | scoped_session[Any]


@dataclass(frozen=True, slots=True, repr=False)
class Hold(Report):
    """A legal hold of a row, or of what a transaction wrote.

    :param hold_id: the id by which :func:`release` ends the hold
    :param table: the full name of the table of a row; ``None`` for a changeset
    :param key: the key of the row, a tuple if it is composite; ``None`` for a changeset
    :param changeset_id: the changeset; ``None`` for a row
    :param reason: why
    :param held_by: the user; ``None`` if no user is known
    :param held_at: since when, in UTC
    """

    hold_id: UUID
    table: str | None
    key: Value
    changeset_id: UUID | None
    reason: str
    held_by: str | None
    held_at: datetime


@dataclass(frozen=True, slots=True)
class Held:
    """What is held in a history.

    :ivar keys: the keys of the rows
    :ivar changesets: the ids of all changesets that are held, of whichever tables
    """

    keys: Sequence[Key]
    changesets: Sequence[UUID]


# --- what users call --------------------------------------------------------------------------------------------


@also_async
def hold(
    session: _AnySession,
    model_class: type[Any] | Table | None = None,
    resource_id: Any = None,
    *,
    changeset_id: UUID | str | None = None,
    reason: str,
) -> Hold:
    """Hold a row, or what a database transaction wrote: neither is pruned or erased until :func:`release`.

    .. code-block:: python

        hold(session, Customer, 42, reason="lawsuit 7 O 12/26")
        hold(session, changeset_id=changeset.changeset_id, reason="audit of 2026")

    All versions of a held row stay. Of a row that a held changeset has written, the version before that of the
    changeset stays, with all later ones. The hold is written in the session's transaction, and is effective once that
    has committed. A row may be held for several reasons, and is free when each hold is released. The row need not
    exist.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model or an association table
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :param changeset_id: instead of a row: the ``audit_changeset_id`` of a version
    :param reason: why; the user is that of the audit context
    :return: the hold
    :raises TrackingError: the model is not tracked
    :raises QueryError: neither a row nor a changeset is given, or both; the key does not fit; the reason is empty; no
        history has a version of the changeset; or there is no table of holds
    """
    session = checked_session(session)
    if not isinstance(reason, str) or not reason.strip() or "\0" in reason:
        raise QueryError(f"The reason of a hold is {reason!r}. Give a text that says why.", reason)
    if (model_class is None) == (changeset_id is None):
        raise QueryError(
            "hold() needs a row or a changeset. Write hold(session, Customer, 42, reason=…) or hold(session, "
            "changeset_id=…, reason=…).",
            session,
        )
    now, user = current_config().now(), current_user_id()
    if changeset_id is not None:
        wanted = changeset_uuid(changeset_id)
        made = Hold(uuid4(), None, None, wanted, reason, user, now)
        by_metadata = {table.live.metadata: table for table in tables_of_changeset(session, wanted)}
        with_tables = [table for table in by_metadata.values() if maintenance_tables_of(table.live.metadata)]
        for table in with_tables or by_metadata.values():
            _insert(session, table, made, None)
        return made
    table = base_table_of(model_class)
    key, text = checked_key(
        table, resource_id, "Hold the changesets of the row instead: hold(session, changeset_id=…, reason=…)."
    )
    made = Hold(uuid4(), table.live.fullname, key if len(key) > 1 else key[0], None, reason, user, now)
    _insert(session, table, made, text)
    return made


@also_async
def release(session: _AnySession, hold_id: UUID | str | Hold) -> None:
    """End a hold, in the session's transaction.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param hold_id: the ``hold_id`` of a :class:`Hold`, or the hold itself
    :raises QueryError: there is no such hold, or there is no table of holds
    """
    session = checked_session(session)
    wanted = hold_id.hold_id if isinstance(hold_id, Hold) else _hold_uuid(hold_id)
    statements = [
        (connection, delete(tables.holds).where(tables.holds.c.hold_id == wanted))
        for connection, tables, _ in _places(session)
    ]
    if not sum(connection.execute(each, execution_options=INTERNAL).rowcount for connection, each in statements):
        raise QueryError(f"There is no hold {wanted}. Call holds(session) to list them.", hold_id)


@also_async
def holds(session: _AnySession, model_class: type[Any] | Table | None = None) -> list[Hold]:
    """Return the holds, the earliest first.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model or an association table, for holds of its rows; all holds if omitted
    :raises TrackingError: the model is not tracked
    :raises QueryError: there is no table of holds
    """
    session = checked_session(session)
    wanted = None if model_class is None else base_table_of(model_class)
    found: dict[UUID, Hold] = {}
    for connection, tables, by_name in _places(session):
        columns = tables.holds.c
        at = type_coerce(columns.held_at, UTCDateTime()).label("at")
        statement = select(*(column for column in columns if column.name != "held_at"), at).order_by(at)
        for row in connection.execute(statement, execution_options=INTERNAL):
            table = by_name.get(row.history_table)
            if wanted is not None and table is not wanted:
                continue
            key = tuple(json.loads(row.row_key or "[null]"))
            with suppress(QueryError):
                key = key if table is None or row.row_key is None else parsed_key(table, row.row_key)
            name = row.history_table if table is None else table.live.fullname
            one = key if len(key) > 1 else key[0]
            made = Hold(row.hold_id, name, one, row.changeset_id, row.reason, row.held_by, row.at)
            if table is not None or row.hold_id not in found:  # another MetaData may know the table
                found[row.hold_id] = made
    return sorted(found.values(), key=lambda each: each.held_at)


# --- what prune and erase ask -----------------------------------------------------------------------------------


def held_in(connection: Connection, table: TrackedTable) -> Held:
    """Return what is held in the history of a hierarchy.

    :param table: its base table
    """
    tables = maintenance_tables_of(table.live.metadata)
    if tables is None:
        return Held((), ())
    columns = tables.holds.c
    statement = select(columns.row_key, columns.changeset_id).where(
        or_(columns.history_table == table.history.fullname, columns.changeset_id.is_not(None))
    )
    if TRAITS[connection.dialect.name].reads_snapshots:  # without a lock, it would miss what others have committed
        statement = statement.with_for_update(read=True)
    rows = connection.execute(statement, execution_options=INTERNAL).all()
    texts = dict.fromkeys(row.row_key for row in rows if row.row_key is not None)
    changesets = dict.fromkeys(row.changeset_id for row in rows if row.changeset_id is not None)
    return Held([parsed_key(table, text) for text in texts], list(changesets))


def refuse_held(connection: Connection, table: TrackedTable, keys: Iterable[Key], what: str) -> None:
    """Raise if one of some rows is held, itself or by a changeset that wrote it.

    :param table: the base table of the rows' hierarchy
    :param keys: the keys of the rows, as Python values of the types of the key
    :param what: what is refused, such as ``"erased"``
    :raises QueryError: a row is held
    """
    held, wanted = held_in(connection, table), [tuple(key) for key in keys]
    if not wanted or not (held.keys or held.changesets):
        return
    conditions: list[ColumnElement[bool]] = []
    if held.keys:
        conditions.append(one_of(table.history_key, held.keys))
    if held.changesets:
        conditions.append(table.role("changeset_id").in_(held.changesets))
    statement = select(*table.history_key).where(one_of(table.history_key, wanted), or_(*conditions)).limit(1)
    row = connection.execute(statement, execution_options=INTERNAL).first()
    if row is not None:
        key = row[0] if len(row) == 1 else tuple(row)
        raise QueryError(
            f"{table.live.fullname!r} {key!r} has a legal hold, so it cannot be {what}. Call holds(session) to see "
            "why, and release(session, hold) once it has ended.",
            table.live,
        )


# --- where ------------------------------------------------------------------------------------------------------


def _insert(session: Session, table: TrackedTable, made: Hold, key: str | None) -> None:
    connection = connection_for_versions(session, table.mapper)
    tables = required_maintenance_tables(connection, table.live.metadata, "hold()")
    values = {
        "hold_id": made.hold_id,
        "history_table": None if key is None else table.history.fullname,
        "row_key": key,
        "changeset_id": made.changeset_id,
        "reason": made.reason,
        "held_by": made.held_by,
        "held_at": type_coerce(made.held_at, UTCDateTime()),
    }
    connection.execute(insert(tables.holds).values(values), execution_options=INTERNAL)


def _places(session: Session) -> list[tuple[Connection, MaintenanceTables, dict[str, TrackedTable]]]:
    """Return the connection of each table of holds, and the tracked tables there by the names of their histories.

    :raises QueryError: there is none
    """
    found, missing = [], set()
    for metadata in filter(None, [reference() for reference in with_maintenance_tables]):
        tracked, tables = tracked_tables(metadata), maintenance_tables_of(metadata)
        if not tracked or tables is None:
            continue
        try:
            connection = connection_for_versions(session, tracked[0].mapper)
        except UnboundExecutionError:
            continue
        if table_exists(connection, tables.holds):
            found.append((connection, tables, {table.history.fullname: table for table in tracked}))
        missing.add(repr(tables.holds.fullname))
    if not found:
        raise QueryError(
            f"The database has no table {' or '.join(sorted(missing))}. Create it: Base.metadata.create_all(engine), "
            "or a migration."
            if missing
            else "Holds are kept in a table, which no MetaData has. Write maintenance_tables(Base.metadata) next to "
            "the models, and create the tables with create_all() or a migration.",
            session,
        )
    return found


def _hold_uuid(hold_id: Any) -> UUID:
    if isinstance(hold_id, UUID):
        return hold_id
    try:
        return UUID(hold_id)
    except (TypeError, ValueError, AttributeError):
        raise QueryError(f"{hold_id!r} is not the id of a hold. Give the hold_id of one of holds(session).") from None
