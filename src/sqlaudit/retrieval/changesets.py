"""What did one database transaction do? Its changeset, read from every history table that a session can read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Integer,
    MetaData,
    bindparam,
    func,
    inspect,
    literal,
    select,
    union_all,
)
from sqlalchemy.engine import Inspector
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.exc import NoSuchTableError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import changeset_uuid
from sqlaudit.asynchronous import also_async
from sqlaudit.exceptions import QueryError
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import tracked_model
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session
from sqlaudit.tracking.tables import TrackedTable, guard_name, known_metadata

_TABLES_PER_STATEMENT: Final = 100
_existing: WeakKeyDictionary[Engine, set[tuple[str | None, str]]] = WeakKeyDictionary()
"""The history tables that were found in a database, by schema and name."""


@dataclass(frozen=True, slots=True)
class TablesOfBind:
    """The tracked tables on one bind of a session.

    :param bind_arguments: the arguments with which the session executes a statement on that bind
    """

    bind_arguments: dict[str, Any]
    tables: tuple[TrackedTable, ...]


def known_tables(session: Session, wanted: Collection[TrackedTable] = ()) -> list[TablesOfBind]:
    """Return every tracked table, association tables included, that a session can read.

    Tables for which the session has no bind are left out. If several MetaData have tracked tables, those that the
    database lacks are left out, too. That takes one statement per bind and schema, until all have been found.

    :param wanted: the tables that are asked for, of which none is left out for one of the same name
    """
    by_bind: dict[Any, list[TrackedTable]] = defaultdict(list)
    arguments: dict[Any, dict[str, Any]] = {}
    all_metadata = known_metadata()
    for metadata in all_metadata:
        find_association_tables(metadata)
        for table in tracked_tables(metadata):
            if table.mapper is not None and tracked_model(table.mapper) is None:
                continue  # its registry has been disposed of
            try:
                where = bind_arguments_for(session, table.mapper)
            except UnboundExecutionError:
                continue
            bind = where.get("bind")
            arguments.setdefault(bind, where)
            by_bind[bind].append(table)
    if len(all_metadata) > 1:
        by_bind = {bind: _existing_tables(session, arguments[bind], tables, wanted) for bind, tables in by_bind.items()}
    return [TablesOfBind(arguments[bind], tuple(tables)) for bind, tables in by_bind.items() if tables]


def _existing_tables(
    session: Session, where: dict[str, Any], tables: Collection[TrackedTable], wanted: Collection[TrackedTable]
) -> list[TrackedTable]:
    """Return the tables whose history table is in the database; all tables for shards, which may differ.

    If several MetaData have a history table of one name, return the one that is wanted, or that of the MetaData that
    fits the database best.
    """
    if "bind" not in where:
        return list(tables)
    connection = session.connection(bind_arguments=dict(where))  # connection() removes the bind
    names = {table: (connection.schema_for_object(table.history), table.history.name) for table in tables}
    seen = _existing.setdefault(connection.engine, set())
    if not seen.issuperset(names.values()):
        seen.update(_history_tables(connection, {schema for schema, _ in names.values()}))
    by_name: dict[tuple[str | None, str], list[TrackedTable]] = defaultdict(list)
    for table, name in names.items():
        if name in seen:
            by_name[name].append(table)
    if len(by_name) == sum(map(len, by_name.values())):
        return [table for table, name in names.items() if name in seen]
    fits = _fitness(connection, names, by_name)

    def fitness(table: TrackedTable) -> tuple[bool, tuple[float, int]]:
        return table in wanted, fits[table.live.metadata]

    return [max(same_name, key=fitness) for same_name in by_name.values()]


def _fitness(
    connection: Connection,
    names: Mapping[TrackedTable, tuple[str | None, str]],
    by_name: Mapping[tuple[str | None, str], Collection[TrackedTable]],
) -> dict[MetaData, tuple[float, int]]:
    """Rate how well each MetaData fits a database: by the columns of shared names, and by how many tables exist."""
    inspector = inspect(connection)
    agreeing: dict[MetaData, list[float]] = defaultdict(list)
    for (schema, name), those in by_name.items():
        if len(those) > 1:
            columns = {("history", column["name"]) for column in inspector.get_columns(name, schema)}
            for table in those:
                live = connection.schema_for_object(table.live), table.live.name
                all_columns = {*columns, *(("live", column["name"]) for column in _columns(inspector, *live))}
                all_columns.discard(("history", guard_name(table)))
                known = {("history", column.name) for column in table.history.c}
                known |= {("live", column.name) for column in table.live.c}
                agreeing[table.live.metadata].append(len(known & all_columns) / len(known | all_columns))
    existing = Counter(table.live.metadata for those in by_name.values() for table in those)
    all_tables = Counter(table.live.metadata for table in names)
    return {
        metadata: (sum(agreeing[metadata]) / (len(agreeing[metadata]) or 1) * count / all_tables[metadata], count)
        for metadata, count in existing.items()
    }


def _columns(inspector: Inspector, schema: str | None, name: str) -> Sequence[ReflectedColumn]:
    try:
        return inspector.get_columns(name, schema)
    except NoSuchTableError:
        return ()


def _history_tables(connection: Connection, schemas: Iterable[str | None]) -> Iterator[tuple[str | None, str]]:
    inspector = inspect(connection)
    existing_schemas = {*inspector.get_schema_names(), None} if set(schemas) - {None} else {None}
    for schema in existing_schemas.intersection(schemas):
        yield from ((schema, name) for name in inspector.get_table_names(schema))


# --- one changeset ----------------------------------------------------------------------------------------------


@also_async
def instant_of_changeset(session: Session | scoped_session[Any], changeset_id: UUID | str) -> datetime:
    """Return the instant of a changeset, for use where a time is expected.

    One statement per bind and 100 tracked tables.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param changeset_id: the ``audit_changeset_id`` of a version, or the ``changeset_id`` of a :class:`Changeset`
    :raises QueryError: ``changeset_id`` is no UUID, or no history has a version of this changeset
    """
    session = checked_session(session)
    wanted = changeset_uuid(changeset_id)

    def latest(table: TrackedTable) -> Any:
        return select(func.max(table.valid_from)).where(is_of_changeset(table))

    rows = read_all(session, known_tables(session), latest, {"changeset": wanted})
    instants: list[datetime] = [row[0] for row in rows if row[0] is not None]
    if instants:
        return max(instants)
    raise unknown_changeset_error(wanted)


def tables_of_changeset(session: Session, changeset_id: UUID) -> list[TrackedTable]:
    """Return the tables that have versions of a changeset. One statement per bind and 100 tracked tables.

    :raises QueryError: no table has one
    """
    if found := tables_where(session, is_of_changeset, {"changeset": changeset_id}):
        return list(found)
    raise unknown_changeset_error(changeset_id)


def tables_where(
    session: Session,
    condition: Callable[[TrackedTable], ColumnElement[bool]],
    parameters: Mapping[str, Any] = MappingProxyType({}),
) -> dict[TrackedTable, set[UUID]]:
    """Return the tables that have versions that meet a condition, each with the changesets of these.

    One statement per bind and 100 tracked tables.
    """
    places = known_tables(session)
    tables = [table for place in places for table in place.tables]
    numbers = {table: number for number, table in enumerate(tables)}

    def changesets_in(table: TrackedTable) -> Any:
        return select(literal(numbers[table], Integer), table.role("changeset_id")).where(condition(table)).distinct()

    found: dict[int, set[UUID]] = defaultdict(set)
    for number, changeset_id in read_all(session, places, changesets_in, dict(parameters)):
        found[number].add(changeset_id)
    return {tables[number]: found[number] for number in sorted(found)}


def unknown_changeset_error(changeset_id: UUID) -> QueryError:
    return QueryError(
        f"No history that this session can read has a changeset {changeset_id}. Give the audit_changeset_id of a "
        "version, and a session with binds for the tables that the changeset wrote.",
        changeset_id,
    )


def is_of_changeset(table: TrackedTable, history: FromClause | None = None) -> ColumnElement[bool]:
    """Return the condition that a version belongs to the changeset of the parameter ``changeset``.

    :param history: an alias of the history table
    """
    column = (table.history if history is None else history).c[table.role("changeset_id").key]
    return column == bindparam("changeset", type_=column.type)


def read_all(
    session: Session,
    places: Iterable[TablesOfBind],
    selecting: Callable[[TrackedTable], Any],
    parameters: dict[str, Any],
) -> Iterator[Sequence[Any]]:
    """Yield the rows of a select of each table. One statement per bind and 100 tables.

    :param selecting: a function that returns the select of a table; all selects have the same columns
    """
    session._autoflush()
    for place in places:
        for start in range(0, len(place.tables), _TABLES_PER_STATEMENT):
            tables = place.tables[start : start + _TABLES_PER_STATEMENT]
            with explaining_history_errors(tables):
                statement = union_all(*map(selecting, tables))
                yield from session.execute(statement, parameters, bind_arguments=place.bind_arguments)
