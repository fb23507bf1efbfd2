"""What did one database transaction do? Its changeset, read from every history table that a session can read."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
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
    case,
    func,
    inspect,
    literal,
    literal_column,
    select,
    union_all,
)
from sqlalchemy.engine import Inspector
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.exc import NoSuchTableError, UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import changeset_uuid, checked_actor_type, checked_count, checked_range, checked_user
from sqlaudit.changes import Changeset, Operation
from sqlaudit.context import ACTOR_FACTS, ActorType
from sqlaudit.exceptions import QueryError
from sqlaudit.period import Mark
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.documents import text_under
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import tracked_model
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session
from sqlaudit.tracking.tables import TrackedTable, guard_name, known_metadata

_TABLES_PER_STATEMENT: Final = 100
_GROWTH: Final = 10
_existing: WeakKeyDictionary[Engine, set[tuple[str | None, str]]] = WeakKeyDictionary()
"""The history tables that were found in a database, by schema and name."""


@dataclass(frozen=True, slots=True)
class TablesOfBind:
    """The tracked tables on one bind of a session.

    :param bind_arguments: the arguments with which the session executes a statement on that bind
    """

    bind_arguments: dict[str, Any]
    tables: tuple[TrackedTable, ...]


def known_tables(session: Session) -> list[TablesOfBind]:
    """Return every tracked table, association tables included, that a session can read.

    Tables for which the session has no bind are left out. If several MetaData have tracked tables, those that the
    database lacks are left out, too. That takes one statement per bind and schema, until all have been found.
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
        by_bind = {bind: _existing_tables(session, arguments[bind], tables) for bind, tables in by_bind.items()}
    return [TablesOfBind(arguments[bind], tuple(tables)) for bind, tables in by_bind.items() if tables]


def _existing_tables(session: Session, where: dict[str, Any], tables: Collection[TrackedTable]) -> list[TrackedTable]:
    """Return the tables whose history table is in the database; all tables for shards, which may differ.

    If several MetaData have a history table of one name, return that of the MetaData that fits the database best.
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
    return [max(same_name, key=lambda table: fits[table.live.metadata]) for same_name in by_name.values()]


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


# --- all changesets ---------------------------------------------------------------------------------------------


def changesets(
    session: Session | scoped_session[Any],
    *,
    since: datetime | Mark | None = None,
    until: datetime | Mark | None = None,
    user_id: str | int | UUID | None = None,
    limit: int | None = None,
    newest_first: bool = False,
    actor_type: ActorType | str | None = None,
    on_behalf_of: str | int | UUID | None = None,
    run_id: str | int | UUID | None = None,
) -> list[Changeset]:
    """Return what each database transaction wrote, oldest first.

    A transaction whose audit context changed has an entry for each context. A :func:`backfill` is a changeset of its
    own. Baselines that a first change wrote are not listed.

    It executes one statement per bind and 100 tracked tables; two with a filter or a limit. With a limit, it reads
    about as many versions as the changesets have that it returns, which takes more statements if they have many.

    :param session: a session
    :param since: the first instant, included; an aware datetime or a :class:`Mark`
    :param until: the last instant, included; an aware datetime or a :class:`Mark`
    :param user_id: the user who made the changes
    :param limit: the greatest number of entries to return
    :param newest_first: reverse the order
    :param actor_type: the kind of actor, such as ``"agent"``
    :param on_behalf_of: the user for whom a service or an agent worked
    :param run_id: the run of an agent or a job
    :raises QueryError: a filter is invalid
    """
    session = checked_session(session)
    actor: dict[str, Any] = {}
    if user_id is not None:
        actor["changed_by"] = checked_user("user_id", user_id)
    if actor_type is not None:
        actor["actor_type"] = checked_actor_type("actor_type", actor_type)
    if on_behalf_of is not None:
        actor["on_behalf_of"] = checked_user("on_behalf_of", on_behalf_of)
    if run_id is not None:
        actor["run_id"] = checked_user("run_id", run_id)
    parameters = {**checked_range("The range", since, until), **actor}
    count = None if limit is None else checked_count("limit", limit)
    places = known_tables(session)
    if parameters or count is not None:
        wanted = _chosen_ids(session, places, parameters, count, newest_first)
        entries = [entry for ids in chunks(wanted) for entry in _entries(session, places, ids)]
    else:
        entries = list(_entries(session, places, None))
    entries = [entry for entry in entries if all(getattr(entry, name) == value for name, value in actor.items())]
    entries.sort(key=_time_order, reverse=newest_first)
    return entries[:count]


def _time_order(entry: Changeset) -> tuple[Any, ...]:
    context = (entry.changed_by, entry.impersonated_by, entry.reason)
    return (entry.timestamp, entry.changeset_id, *(text or "" for text in context), _text_of(entry.extra))


def _text_of(extra: Any) -> str:
    return json.dumps(extra, sort_keys=True)


def _chosen_ids(
    session: Session, places: Sequence[TablesOfBind], parameters: dict[str, Any], limit: int | None, newest_first: bool
) -> list[UUID]:
    """Return the ids of the changesets that match the filters, in the order of their instants.

    With a limit, this reads the first versions of each table in that order, by its index, and ten times as many where
    these have too few changesets. So its cost is that of the changesets which are returned, however long history is.
    """
    read = partial(_instants, session, places, parameters, newest_first)
    size = None if limit is None else _GROWTH * (limit + 1)
    while True:
        instants, edge = read(size=size)
        if edge is not None and not newest_first:  # these changesets may have later versions
            for ids in chunks(list(instants)):
                instants |= read(ids=ids)[0]
        chosen = sorted(instants, key=lambda changeset_id: (instants[changeset_id], changeset_id), reverse=newest_first)
        if edge is None or limit is None or size is None:
            return chosen[:limit]
        if len(chosen) >= limit:
            last = instants[chosen[limit - 1]]
            if last > edge if newest_first else last < edge:
                return chosen[:limit]
        size *= _GROWTH


def _instants(
    session: Session,
    places: Sequence[TablesOfBind],
    parameters: dict[str, Any],
    newest_first: bool,
    *,
    size: int | None = None,
    ids: Sequence[UUID] | None = None,
) -> tuple[dict[UUID, datetime], datetime | None]:
    """Return the last instant of each changeset that matches the filters, and the instant up to which all were read.

    :param size: the greatest number of versions to read of each table
    :param ids: the ids of the changesets to read; all if omitted
    :return: for the instant, ``None`` if all versions were read
    """
    numbers = {table: number for number, table in enumerate(table for place in places for table in place.tables)}

    def instants_in(table: TrackedTable) -> Any:
        at, changeset = table.valid_from, table.role("changeset_id")
        statement = select(changeset.label("changeset"), at.label("at"))
        if "since" in parameters:
            statement = statement.where(at >= bindparam("since"))
        if "until" in parameters:
            statement = statement.where(at <= bindparam("until"))
        if "changed_by" in parameters:
            statement = statement.where(table.role("changed_by") == bindparam("changed_by"))
        for name in filter(parameters.__contains__, ACTOR_FACTS):
            statement = statement.where(text_under(table.role("extra"), name) == bindparam(name))
        if ids is not None:
            statement = statement.where(changeset.in_(ids))
        if size is not None:
            statement = statement.order_by(at.desc() if newest_first else at).limit(size)
        version = statement.subquery().c
        return select(
            literal(numbers[table], Integer),
            version.changeset,
            func.min(version.at),
            func.max(version.at),
            func.count(),
        ).group_by(version.changeset)

    instants: dict[UUID, datetime] = {}
    counts, edges = Counter[int](), dict[int, datetime]()
    outer, inner = (max, min) if newest_first else (min, max)
    for number, changeset_id, first, last, count in read_all(session, places, instants_in, parameters):
        instants[changeset_id] = max(last, instants.get(changeset_id, last))
        counts[number] += count
        edges[number] = inner(first, last, edges.get(number, first if newest_first else last))
    return instants, outer((edges[number] for number in counts if counts[number] == size), default=None)


def _entries(session: Session, places: Sequence[TablesOfBind], ids: Sequence[UUID] | None) -> Iterator[Changeset]:
    """Yield an entry for each context of each changeset, or of the changesets with the ids."""
    numbers = {table: number for number, table in enumerate(table for place in places for table in place.tables)}

    def contexts(table: TrackedTable) -> Any:
        changeset = table.role("changeset_id")
        columns = [changeset, *(table.role(role) for role in ("changed_by", "impersonated_by", "reason", "extra"))]
        baseline: ColumnElement[str] = literal_column(
            f"'{Operation.BASELINE.value}'"
        )  # a literal: pg8000 would send it as two different parameters
        is_baseline = case((table.role("operation") == baseline, literal_column("1")), else_=literal_column("0")).label(
            "is_baseline"
        )
        statement = select(
            literal(numbers[table], Integer), is_baseline, func.max(table.valid_from), *columns
        ).group_by(*columns, is_baseline)
        return statement if ids is None else statement.where(changeset.in_(ids))

    names = {number: table.live.fullname for table, number in numbers.items()}
    written: dict[UUID, dict[tuple[Any, ...], tuple[set[str], Any]]] = defaultdict(dict)
    instants: dict[UUID, datetime] = {}
    for number, is_baseline, at, changeset_id, *who_and_why, extra in read_all(session, places, contexts, {}):
        instants[changeset_id] = max(at, instants.get(changeset_id, at))
        context = (bool(is_baseline), *who_and_why, _text_of(extra))
        written[changeset_id].setdefault(context, (set(), extra))[0].add(names[number])
    for changeset_id, contexts_of_one in written.items():
        only_baselines = all(is_baseline for is_baseline, *_ in contexts_of_one)
        for (is_baseline, changed_by, impersonated_by, reason, _), (tables, extra) in contexts_of_one.items():
            if only_baselines or not is_baseline:
                yield Changeset(
                    changeset_id=changeset_id,
                    timestamp=instants[changeset_id],
                    changed_by=changed_by,
                    reason=reason,
                    impersonated_by=impersonated_by,
                    extra=extra,
                    tables=tuple(sorted(tables)),
                )


# --- one changeset ----------------------------------------------------------------------------------------------


def instant_of_changeset(session: Session | scoped_session[Any], changeset_id: UUID | str) -> datetime:
    """Return the instant of a changeset, for use where a time is expected.

    One statement per bind and 100 tracked tables.

    :param session: a session
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
