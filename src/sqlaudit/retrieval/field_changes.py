"""What happened to these rows? Versions, field changes and blame, read from consecutive snapshots.

Every read here is one statement, except :func:`changes_in`, which reads many tables. All of them take a
:class:`sqlalchemy.orm.Session`; with an ``AsyncSession``, use ``await session.run_sync(versions_of, Customer, 42)``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from datetime import datetime
from itertools import chain, islice, pairwise
from math import inf
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Column,
    ColumnElement,
    Row,
    Select,
    String,
    and_,
    bindparam,
    or_,
    select,
)
from sqlalchemy.orm import Session, class_mapper, scoped_session, with_polymorphic

from sqlaudit.arguments import changeset_uuid, checked_actor_type, checked_count, checked_range, checked_user
from sqlaudit.changes import Blame, Equality, FieldChange, Operation, diff, differ, equalities_of
from sqlaudit.config import configured_session
from sqlaudit.context import ACTOR_FACTS
from sqlaudit.exceptions import QueryError
from sqlaudit.period import OPEN_END
from sqlaudit.retrieval.changesets import is_of_changeset, tables_of_changeset
from sqlaudit.retrieval.ids import converted_ids, has_id, listed_ids
from sqlaudit.sql.comparing import any_of, differs
from sqlaudit.sql.documents import text_under
from sqlaudit.sql.keys import are_bound_in_sql
from sqlaudit.sql.lists import is_among
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.history import history_of, rebased_on_history, version_info
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import TrackedModel, root_of, tracked_model_of
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session
from sqlaudit.tracking.tables import TrackedTable

_BATCH: Final = 500
_WIDE: Final = 800
"""The most fields with old and new values in one row: PostgreSQL selects at most 1,664 columns, SQLite 2,000."""


def get_resource_changes(
    model_class: type[Any],
    session: Session | scoped_session[Any] | None = None,
    filter_resource_ids: Any = None,
    filter_fields: str | Iterable[str] | None = None,
    filter_user_ids: Any = None,
    filter_date_range: tuple[datetime | None, datetime | None] | None = None,
    *,
    limit: int | None = None,
    offset: int = 0,
    newest_first: bool = False,
    filter_actor_types: Any = None,
    filter_on_behalf_of: Any = None,
    filter_run_ids: Any = None,
) -> list[FieldChange]:
    """Return the field changes of a model's rows, oldest first. One statement.

    Their order is by instant, key, version and field. A baseline reports no field changes. Neither does an update whose
    previous version has been removed, because what it changed is unknown.

    :param model_class: a tracked model
    :param session: a session; if omitted, the configured ``session_factory`` makes one
    :param filter_resource_ids: one id or several. A tuple is one composite id. Ids may be text; an id that cannot be
        converted to the type of the key matches nothing
    :param filter_fields: the name of one field or of several
    :param filter_user_ids: the id of one user or of several
    :param filter_date_range: ``(from, to)``, aware datetimes, both included; either may be ``None``
    :param limit: the greatest number of field changes to return
    :param offset: the number of field changes to leave out first
    :param newest_first: reverse the order
    :param filter_actor_types: one kind of actor or several, such as ``"agent"``
    :param filter_on_behalf_of: the id of one user, or of several, for whom a service or an agent worked
    :param filter_run_ids: the id of one run or of several
    :raises TrackingError: the model is not tracked
    :raises QueryError: a filter is invalid
    """
    query = _ChangeQuery(
        model=tracked_model_of(model_class),
        resource_ids=filter_resource_ids,
        fields=filter_fields,
        user_ids=filter_user_ids,
        dates=filter_date_range,
        limit=limit,
        offset=offset,
        newest_first=newest_first,
        actor_types=filter_actor_types,
        on_behalf_of=filter_on_behalf_of,
        run_ids=filter_run_ids,
    )
    reading = _ChangeReader(query)
    if session is None:
        with configured_session() as made:
            return list(reading.changes(made))
    return list(reading.changes(checked_session(session)))


def stream_resource_changes(
    model_class: type[Any],
    session: Session | scoped_session[Any],
    filter_resource_ids: Any = None,
    filter_fields: str | Iterable[str] | None = None,
    filter_user_ids: Any = None,
    filter_date_range: tuple[datetime | None, datetime | None] | None = None,
    *,
    limit: int | None = None,
    offset: int = 0,
    newest_first: bool = False,
    filter_actor_types: Any = None,
    filter_on_behalf_of: Any = None,
    filter_run_ids: Any = None,
) -> Generator[FieldChange]:
    """Yield the field changes of a model's rows one by one, in constant memory.

    The parameters are those of :func:`get_resource_changes`. The statement stays open until the iterator is exhausted
    or closed.
    """
    query = _ChangeQuery(
        model=tracked_model_of(model_class),
        resource_ids=filter_resource_ids,
        fields=filter_fields,
        user_ids=filter_user_ids,
        dates=filter_date_range,
        limit=limit,
        offset=offset,
        newest_first=newest_first,
        actor_types=filter_actor_types,
        on_behalf_of=filter_on_behalf_of,
        run_ids=filter_run_ids,
    )
    return _ChangeReader(query).changes(checked_session(session), yield_per=_BATCH)


def versions_of(session: Session | scoped_session[Any], model_class: type[Any], resource_id: Any) -> list[Any]:
    """Return the versions of one row, oldest first, as objects of the model's history class. One statement.

    :param session: a session; with an ``AsyncSession``, ``await session.run_sync(versions_of, Customer, 1)``
    :param model_class: a tracked model
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :raises TrackingError: the model is not tracked
    """
    return list(_versions(session, model_class, resource_id))


def blame(session: Session | scoped_session[Any], model_class: type[Any], resource_id: Any) -> dict[str, Blame]:
    """Return, for each field of a row, its value and the version that set it. One statement.

    The dict is empty if the row has no history, is deleted, or is of another class now. Where versions have been
    removed, the origin of a value is unknown: see ``unknown_before`` and ``unknown_after`` of :class:`Blame`.

    :param session: a session
    :param model_class: a tracked model
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :raises TrackingError: the model is not tracked
    """
    root, wanted = tracked_model_of(model_class).root.mapper.class_, history_of(model_class)
    with closing(_versions(session, root, resource_id, newest_first=True, yield_per=_BATCH)) as versions:
        version = next(versions, None)
        if not isinstance(version, wanted) or version_info(version)["operation"] is Operation.DELETE:
            return {}
        blames: dict[str, Blame] = {}
        model: TrackedModel = version.__sqlaudit_model__
        values = {name: getattr(version, name) for name in _field_names(model)}
        equalities = equalities_of((name, model.columns[name]) for name in values)
        is_last_missing = getattr(version, model.table.names.valid_to) != OPEN_END
        while version is not None and len(blames) < len(values):
            info, before = version_info(version), next(versions, None)
            is_inserted, is_baseline = (
                info["operation"] is operation for operation in (Operation.INSERT, Operation.BASELINE)
            )
            is_missing = before is None or version_info(before)["version"] != info["version"] - 1
            unknown = not is_inserted and (is_baseline or is_missing)
            if is_last_missing or (unknown and not is_baseline):
                info |= dict.fromkeys(_CONTEXT)
            first = is_inserted or is_missing or _has_ended(before)
            for name in values.keys() - blames.keys():
                if first or differ(getattr(before, name, None), getattr(version, name, None), equalities.get(name)):
                    blames[name] = Blame(
                        **info, value=values[name], unknown_before=unknown, unknown_after=is_last_missing
                    )
            version = before
    return {name: blames[name] for name in values}


def _has_ended(version: Any) -> bool:
    """Return whether a version is a tombstone. A baseline after it begins another life of the row."""
    return version_info(version)["operation"] is Operation.DELETE


def _field_names(model: TrackedModel) -> list[str]:
    chosen = model.options.tracked_fields
    return sorted(name for name in model.columns if chosen is None or name in chosen)


def changes_in(session: Session | scoped_session[Any], changeset_id: UUID | str) -> list[FieldChange]:
    """Return the field changes that one database transaction made, in all tables.

    It executes one statement per bind and 100 tracked tables to find the tables that the transaction wrote, and then
    one per hierarchy of models or association table. The changes of a model are in the order of key, version and field.
    For a link, the resource type is the name of its association table, and each of its columns is a field.

    :param session: a session
    :param changeset_id: the ``audit_changeset_id`` of a version, or the ``changeset_id`` of a :class:`Changeset`
    :raises QueryError: ``changeset_id`` is no UUID, or no history has a version of this changeset
    """
    session = checked_session(session)
    wanted = changeset_uuid(changeset_id)
    tables = tables_of_changeset(session, wanted)
    links = [table for table in tables if table.is_association]
    roots = dict.fromkeys(root_of(table) for table in tables if not table.is_association)
    changes: list[FieldChange] = []
    for root in roots:
        reading = _ChangeReader(_ChangeQuery(model=root, changeset_id=wanted))
        changes.extend(reading.changes(session))
    for table in links:
        changes.extend(_link_changes(session, table, wanted))
    return changes


def _link_changes(session: Session, table: TrackedTable, changeset_id: UUID) -> Iterator[FieldChange]:
    now, before = (HistoryAlias(table, table.history.alias(name)) for name in ("now_0", "before_0"))
    names = sorted(old.key for _, old in table.columns)
    equalities = equalities_of((name, table.history.c[name]) for name in names)
    key, roles = now.key, map(now.role, _ROLES)
    values = [alias.clause.c[name] for alias in (now, before) for name in names]
    statement = (
        select(*roles, *key, *values, before.version)
        .select_from(now.clause.outerjoin(before.clause, before.is_version_of(now, -1)))
        .where(is_of_changeset(table, now.clause))
        .order_by(*key, now.version)
    )
    ids = len(_ROLES)
    new = ids + len(key)
    old = new + len(names)
    with explaining_history_errors([table]):
        rows = session.execute(
            statement, {"changeset": changeset_id}, bind_arguments=bind_arguments_for(session, table.mapper)
        ).all()
    for row in rows:
        before_it = None if row[-1] is None else row[old:-1]
        yield from _changes_in_row(table.live.fullname, names, equalities, row[ids:new], row, before_it, row[new:old])


def _versions(
    session: object, model_class: type[Any], resource_id: Any, *, newest_first: bool = False, **options: Any
) -> Generator[Any]:
    model = tracked_model_of(model_class)
    table = model.root.table
    session = checked_session(session)
    parameters = converted_ids(table.history_key, [resource_id])

    def build() -> Select[Any]:
        statement = select(with_polymorphic(class_mapper(history_of(model_class)), "*"))
        order = table.version.desc() if newest_first else table.version
        return statement.where(has_id(table.history_key, parameters)).order_by(order)

    statement = _cached_statement(model, ("versions", frozenset(parameters), newest_first), build)
    with closing(_rows(session, model, statement, parameters, options)) as rows:
        for (version,) in rows:
            yield version


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChangeQuery:
    """Which field changes to read, from the arguments of :func:`get_resource_changes` or :func:`changes_in`."""

    model: TrackedModel
    resource_ids: Any = None
    fields: str | Iterable[str] | None = None
    user_ids: Any = None
    dates: tuple[datetime | None, datetime | None] | None = None
    limit: int | None = None
    offset: int = 0
    newest_first: bool = False
    actor_types: Any = None
    on_behalf_of: Any = None
    run_ids: Any = None
    changeset_id: UUID | None = None

    def actors(self) -> dict[str, list[str]]:
        """Return the values of the parameters that choose actors.

        :raises QueryError: a filter is invalid
        """
        filters = {
            "users": (self.user_ids, checked_user, "filter_user_ids"),
            "actor_type": (self.actor_types, checked_actor_type, "filter_actor_types"),
            "on_behalf_of": (self.on_behalf_of, checked_user, "filter_on_behalf_of"),
            "run_id": (self.run_ids, checked_user, "filter_run_ids"),
        }
        return {
            name: [check(argument, value) for value in listed_ids(given)]
            for name, (given, check, argument) in filters.items()
            if given is not None
        }


class _ChangeReader:
    """One statement that reads the versions of a model, each with the version before it."""

    def __init__(self, query: _ChangeQuery) -> None:
        self.model = model = query.model
        self.newest_first = query.newest_first
        self.offset = checked_count("offset", query.offset)
        self.end = None if query.limit is None else self.offset + checked_count("limit", query.limit)
        self.fields = _chosen_fields(model, query.fields)
        self.ids = tuple(model.resource_id_columns())
        self.parameters: dict[str, Any] = {**_date_range(query.dates), **query.actors()}
        parameters: dict[str, Any] = {}
        if query.resource_ids is not None:
            parameters = converted_ids(self.ids, listed_ids(query.resource_ids, composite=len(self.ids) > 1))
        # The versions of one row need no join: in the order of their numbers, each follows the version before it.
        self.of_one_row = (
            not model.options.resource_id_field
            and len(parameters.get("ids", ())) == 1
            and not self.parameters
            and _identities(model) is None
        )
        self.parameters |= parameters
        if query.changeset_id is not None:
            self.parameters["changeset"] = query.changeset_id
        self.is_wide = len(self.fields) > _WIDE and not self.of_one_row
        if self.end is not None and not self.of_one_row:
            self.parameters |= {"limit": self.end * 2 if self.is_wide else self.end, "offset": 0}
        shape = ("changes", self.fields, self.ids, frozenset(self.parameters), self.newest_first, self.of_one_row)
        self.statement = _cached_statement(model, shape, self._build)

    def _build(self) -> Select[Any]:
        model, base = self.model, self.model.root.table
        tables = list(dict.fromkeys(table for submodel in model.family() for table in submodel.chain))
        now, before, both = (_aliases(tables, name) for name in ("now", "before", "both"))
        version, version_before = now[base.history], before[base.history]
        source = version.clause
        for table in tables[1:]:
            other = now[table.history]
            source = source.join(other.clause, other.belongs_to(version), isouter=table not in model.chain)
        new = [now[column.table].clause.c[column.key] for _, column in self.fields]
        ids = [now[column.table].clause.c[column.key] for column in self.ids]
        roles = {role: version.role(role) for role, _ in base.names.items()}
        audit_columns = [roles[name] for name in _ROLES]
        if self.of_one_row:
            statement = select(*audit_columns, *ids, *new).select_from(source).where(has_id(ids, self.parameters))
            return statement.order_by(roles["version"].desc() if self.newest_first else roles["version"])
        source = source.outerjoin(version_before.clause, version_before.is_version_of(version, -1))
        for table in tables[1:]:
            other = before[table.history]
            source = source.outerjoin(other.clause, other.belongs_to(version_before))
        old = [before[column.table].clause.c[column.key] for _, column in self.fields]
        order: list[ColumnElement[Any]] = [roles["valid_from"], *version.key, roles["version"]]
        order = [column.desc() for column in order] if self.newest_first else order
        if self.is_wide:  # two rows for each version: first the version before it
            two = both[base.history]
            is_one = and_(two.has_key(version.key), two.version.between(roles["version"] - 1, roles["version"]))
            source = source.join(two.clause, is_one)
            for table in tables[1:]:
                other = both[table.history]
                source = source.outerjoin(other.clause, other.belongs_to(two))
            values, number = [both[column.table].clause.c[column.key] for _, column in self.fields], two.version
            order = [*order, number]
        else:
            values, number = [*new, *old], version_before.version
        statement = select(*audit_columns, *ids, *values, number).select_from(source).order_by(*order)
        statement = statement.where(
            or_(
                and_(
                    roles["operation"].in_([Operation.INSERT, Operation.DELETE]),
                    any_of(*(column.is_not(None) for column in new)),
                ),
                and_(
                    roles["operation"] == Operation.UPDATE,
                    version_before.version.is_not(None),
                    any_of(*(differs(one, other) for one, other in zip(new, old, strict=True))),
                ),
            )
        )
        if (identities := _identities(model)) is not None:
            discriminator, values = identities
            statement = statement.where(rebased_on_history(discriminator, dict(version.columns)).in_(values))
        parameters = self.parameters
        if "ids" in parameters:
            statement = statement.where(has_id(ids, self.parameters))
        if "users" in parameters:
            statement = statement.where(
                is_among(roles["changed_by"], bindparam("users", type_=roles["changed_by"].type, expanding=True))
            )
        for name in filter(parameters.__contains__, ACTOR_FACTS):
            told = text_under(version.role("extra"), name)
            statement = statement.where(is_among(told, bindparam(name, type_=String(), expanding=True)))
        if "changeset" in parameters:
            statement = statement.where(is_of_changeset(base, version.clause))
        if "since" in parameters:
            statement = statement.where(roles["valid_from"] >= bindparam("since"))
        if "until" in parameters:
            statement = statement.where(roles["valid_from"] <= bindparam("until"))
        if "limit" in parameters:
            statement = statement.limit(bindparam("limit")).offset(bindparam("offset"))
        return statement

    def changes(self, session: Session, **options: Any) -> Generator[FieldChange]:
        """Yield the field changes from ``offset`` to ``offset + limit``."""
        with closing(self._all_changes(session, options)) as changes:
            yield from islice(changes, self.offset, self.end)

    def _all_changes(self, session: Session, options: Mapping[str, Any]) -> Generator[FieldChange]:
        label, names, equalities = self.model.label, [name for name, _ in self.fields], equalities_of(self.fields)
        ids = len(_ROLES)  # the index of the resource id, after the audit columns
        new = ids + len(self.ids)
        old = new + len(names)
        with closing(_rows(session, self.model, self.statement, self.parameters, options)) as rows:
            for row, row_before in self._with_rows_before(rows):
                if row_before is not row:
                    before = None if row_before is None else row_before[new:old]
                else:
                    before = None if row[-1] is None else row[old:-1]
                changes = _changes_in_row(label, names, equalities, row[ids:new], row, before, row[new:old])
                yield from reversed(list(changes)) if self.newest_first else changes

    def _with_rows_before(self, rows: Iterable[Row[Any]]) -> Iterator[tuple[Row[Any], Row[Any] | None]]:
        """Yield each row with the row that has the version before it: another row, the same row, or ``None``."""
        if self.is_wide:
            last: Row[Any] | None = None
            for version_row in rows:
                is_changed = version_row[-1] == version_row[0]
                if is_changed:
                    yield version_row, last
                last = None if is_changed else version_row
            return
        if not self.of_one_row:
            yield from ((row, row) for row in rows)
            return
        neighbours = pairwise(chain(rows, (None,)) if self.newest_first else chain((None,), rows))
        for first, second in neighbours:
            row, before = (first, second) if self.newest_first else (second, first)
            if row is not None:
                yield row, before if before is not None and before[0] == row[0] - 1 else None


_ROLES: Final = (
    "version",
    "valid_from",
    "operation",
    "changeset_id",
    "changed_by",
    "impersonated_by",
    "reason",
    "extra",
)
_CONTEXT: Final = ("changed_by", "impersonated_by", "reason", "extra")
_SLOTS: Final = [getattr(FieldChange, field.name).__set__ for field in dataclass_fields(FieldChange)]


def _field_change(*values: Any) -> FieldChange:
    """Make a field change in half the time that the constructor takes: a report has one for each of its lines."""
    change = object.__new__(FieldChange)
    for fill, value in zip(_SLOTS, values, strict=True):
        fill(change, value)
    return change


def _changes_in_row(
    label: str,
    names: Sequence[str],
    equalities: Mapping[str, Equality],
    key: Sequence[Any],
    row: Sequence[Any],
    before: Sequence[Any] | None,
    now: Sequence[Any],
) -> Iterator[FieldChange]:
    """Yield the field changes of a row that begins with the audit columns, in the order of ``_ROLES``."""
    version, timestamp, operation, changeset_id, changed_by, impersonated_by, reason, extra = row[: len(_ROLES)]
    resource_id = key[0] if len(key) == 1 else tuple(key)
    for field_name, old_value, new_value in diff(names, operation, before, now, equalities):
        yield _field_change(
            version,
            timestamp,
            operation,
            changeset_id,
            changed_by,
            impersonated_by,
            reason,
            extra,
            label,
            resource_id,
            field_name,
            old_value,
            new_value,
        )


def _chosen_fields(model: TrackedModel, chosen: str | Iterable[str] | None) -> tuple[tuple[str, Column[Any]], ...]:
    fields = sorted(model.reported_fields(), key=itemgetter(0))
    if chosen is None:
        return tuple(fields)
    names = {chosen} if isinstance(chosen, str) else set(chosen)
    known = {name for name, _ in fields}
    if unknown := names - known:
        raise QueryError(
            f"{model.mapper.class_.__name__} has no tracked field {', '.join(sorted(map(repr, unknown)))}. It has "
            f"{', '.join(sorted(known))}."
        )
    return tuple((name, column) for name, column in fields if name in names)


def _aliases(tables: Iterable[TrackedTable], name: str) -> dict[Any, HistoryAlias]:
    """Return an alias of each history table: history table → alias."""
    return {
        table.history: HistoryAlias(table, table.history.alias(f"{name}_{place}")) for place, table in enumerate(tables)
    }


def _identities(model: TrackedModel) -> tuple[Any, list[Any]] | None:
    """Return the discriminator and its values for a subclass of the hierarchy, or ``None`` for other models."""
    mapper = model.mapper
    if model.parent is None or mapper.polymorphic_on is None:
        return None
    return mapper.polymorphic_on, [submodel.mapper.polymorphic_identity for submodel in model.family()]


def _date_range(dates: tuple[datetime | None, datetime | None] | None) -> dict[str, datetime]:
    """Return the parameters ``since`` and ``until`` of a date range, without those that are ``None``."""
    if dates is None:
        return {}
    try:
        start, end = dates
    except (TypeError, ValueError):
        raise QueryError(f"filter_date_range is {dates!r}. Give (from, to); either may be None.", dates) from None
    return checked_range("filter_date_range", start, end)


def _cached_statement(model: TrackedModel, shape: tuple[Any, ...], build: Callable[[], Select[Any]]) -> Select[Any]:
    """Return the statement of a shape from a cache: building it takes as long as executing it."""
    if are_bound_in_sql(model.root.table.key):  # the statement contains the ids
        return build()
    cache, key = model.root.table.cache, (*model.family(), *shape)
    statement: Select[Any] | None = cache.get(key)
    if statement is None:
        statement = cache[key] = build().execution_options(**INTERNAL)
    return statement


def _rows(
    session: Session,
    model: TrackedModel,
    statement: Select[Any],
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Generator[Row[Any]]:
    """Yield the rows of a statement. If it has a limit and they do not suffice, execute it again for the next rows.

    They suffice unless Python considers values equal that differ in the database, such as ``{"a": 1, "b": 2}`` and
    ``{"b": 2, "a": 1}``.
    """
    session._autoflush()
    parameters, where = dict(parameters), bind_arguments_for(session, model.mapper)
    count = size = parameters.get("limit", inf)
    while count == size:
        count = 0
        with explaining_history_errors(table for submodel in model.family() for table in submodel.chain):
            result = session.execute(statement, parameters, bind_arguments=where, execution_options=options)
        with closing(result):
            for batch in result.partitions(_BATCH):
                count += len(batch)
                yield from batch
        parameters["offset"] = parameters.get("offset", 0) + count
