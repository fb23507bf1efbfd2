"""What did one database transaction do? Changesets, looked for in every history table that a session can read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Select, bindparam, func, inspect, select, union_all
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from sqlaudit.absent import explained
from sqlaudit.exceptions import QueryError
from sqlaudit.history import checked_session
from sqlaudit.tables import INFO_KEY, TrackedTable, known_metadata, tracked_tables

_TABLES_PER_STATEMENT: Final = 100
_existing: WeakKeyDictionary[Engine, set[tuple[str | None, str]]] = WeakKeyDictionary()
"""The history tables that were seen in a database, by schema and name."""


@dataclass(frozen=True, slots=True)
class Place:
    """The tracked tables that lie on one bind of a session.

    :param bind_arguments: those that lead a statement there
    """

    bind_arguments: dict[str, Any]
    tables: tuple[TrackedTable, ...]


def known_tables(session: Session) -> list[Place]:
    """Return every tracked table, association tables included, that a session can read.

    Those of models that the session has no bind for are left out. If several MetaData have tracked tables, those
    that the database lacks are, too: one statement per bind and schema, until all have been seen.
    """
    by_bind: dict[Any, list[TrackedTable]] = defaultdict(list)
    arguments: dict[Any, dict[str, Any]] = {}
    metadata = known_metadata()
    for each in metadata:
        for registry in list(each.info.get(INFO_KEY, ())):
            registry.configure(cascade=True)  # which finds the association tables
        for table in tracked_tables(each):
            where = _where(session, table)
            if where is not None:
                bind = where.get("bind")
                arguments.setdefault(bind, where)
                by_bind[bind].append(table)
    if len(metadata) > 1:
        by_bind = {bind: _that_exist(session, arguments[bind], tables) for bind, tables in by_bind.items()}
    return [Place(arguments[bind], tuple(tables)) for bind, tables in by_bind.items() if tables]


def _where(session: Session, table: TrackedTable) -> dict[str, Any] | None:
    """Return the bind arguments of a table's reads, or ``None`` if the session has no bind for it."""
    if isinstance(session, ShardedSession):
        return {"mapper": table.mapper}
    try:
        return {"bind": session.get_bind(table.mapper)}
    except UnboundExecutionError:
        return None


def _that_exist(session: Session, where: dict[str, Any], tables: Collection[TrackedTable]) -> list[TrackedTable]:
    """Return the tables whose history is in the database; all of them for shards, which may differ."""
    if "bind" not in where:
        return list(tables)
    connection = session.connection(bind_arguments=dict(where))  # it takes the bind out
    names = {table: (connection.schema_for_object(table.history), table.history.name) for table in tables}
    seen = _existing.setdefault(connection.engine, set())
    if not seen.issuperset(names.values()):
        seen.update(_history_tables(connection, {schema for schema, _ in names.values()}))
    return [table for table, name in names.items() if name in seen]


def _history_tables(connection: Connection, schemas: Iterable[str | None]) -> Iterator[tuple[str | None, str]]:
    inspector = inspect(connection)
    there = {*inspector.get_schema_names(), None} if set(schemas) - {None} else {None}
    for schema in there.intersection(schemas):
        yield from ((schema, name) for name in inspector.get_table_names(schema))


# --- one changeset ----------------------------------------------------------------------------------------------


def instant_of_changeset(session: Session, changeset_id: UUID | str) -> datetime:
    """Return the instant that a changeset stands for: the first at which all that it did was done.

    One statement per bind and 100 tracked tables.

    :raises QueryError: ``changeset_id`` is no UUID, or no history has a version of such a changeset
    """
    session = checked_session(session)
    wanted = changeset_uuid(changeset_id)

    def latest(table: TrackedTable) -> Select[Any]:
        return select(func.max(table.valid_from)).where(is_of_changeset(table))

    rows = read_all(session, known_tables(session), latest, {"changeset": wanted})
    instants: list[datetime] = [row[0] for row in rows if row[0] is not None]
    if instants:
        return max(instants)
    raise unknown_changeset(wanted)


def changeset_uuid(changeset_id: UUID | str) -> UUID:
    """Return the id of a changeset as a UUID.

    :raises QueryError: it cannot be one
    """
    if isinstance(changeset_id, UUID):
        return changeset_id
    try:
        return UUID(changeset_id)
    except (TypeError, ValueError, AttributeError):
        raise QueryError(
            f"{changeset_id!r} is no changeset id; give the UUID that a version has as audit_changeset_id.",
            changeset_id,
        ) from None


def unknown_changeset(changeset_id: UUID) -> QueryError:
    return QueryError(
        f"No history that this session can read has a changeset {changeset_id}; give the audit_changeset_id of a "
        "version, and a session with binds for the tables that it changed.",
        changeset_id,
    )


def is_of_changeset(table: TrackedTable) -> Any:
    """Return the condition that a version is of the changeset that the parameter names."""
    column = table.role("changeset_id")
    return column == bindparam("changeset", type_=column.type)


def read_all(
    session: Session,
    places: Iterable[Place],
    selecting: Callable[[TrackedTable], Select[Any]],
    parameters: dict[str, Any],
) -> Iterator[Sequence[Any]]:
    """Yield the rows that a select of each table gives: one statement per bind and 100 tables.

    :param selecting: gives the select of a table; all have the same columns
    """
    session._autoflush()
    for place in places:
        for start in range(0, len(place.tables), _TABLES_PER_STATEMENT):
            tables = place.tables[start : start + _TABLES_PER_STATEMENT]
            with explained(tables):
                statement = union_all(*map(selecting, tables))
                yield from session.execute(statement, parameters, bind_arguments=place.bind_arguments)
