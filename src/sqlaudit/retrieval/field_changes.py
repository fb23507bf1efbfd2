"""What happened to these rows? Versions, field changes and blame, read from consecutive snapshots.

Every read here is one statement, except :func:`changes_in`, which reads many tables. With an
``AsyncSession``, await them.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import fields
from datetime import datetime
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, TypeVar, Unpack, overload
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Table, bindparam, select
from sqlalchemy.orm import Mapped, QueryableAttribute, Session, class_mapper, scoped_session, with_polymorphic

from sqlaudit.arguments import changeset_uuid, checked_count, checked_range
from sqlaudit.asynchronous import AsyncSession, also_async, also_async_read, also_async_stream, async_scoped_session
from sqlaudit.changes import Blame, FieldChange, Operation, VersionInfo, differ, equalities_of
from sqlaudit.config import configured_session
from sqlaudit.period import OPEN_END, Mark
from sqlaudit.retrieval.change_reader import (
    BATCH,
    ChangeQuery,
    ChangeReport,
    DateRange,
    cached_statement,
    change_query,
    rows_of,
)
from sqlaudit.retrieval.changesets import tables_of_changeset
from sqlaudit.retrieval.filters import ChangeFilters
from sqlaudit.retrieval.ids import converted_ids, is_id, one_id
from sqlaudit.tracking.history import Version, erased_fields_of, history_class_of, stored_values, version_info
from sqlaudit.tracking.horizons import refuse_pruned_in, refuse_pruned_versions
from sqlaudit.tracking.links import Readable, Related, model_of, related_by
from sqlaudit.tracking.models import TrackedModel, tracked_model_of
from sqlaudit.tracking.sessions import checked_session

M = TypeVar("M")
_LATEST: Final = 60
"""The versions that :func:`blame` reads at once."""
_CONTEXT: Final = ("changed_by", "impersonated_by", "reason", "extra")


@also_async_read
def get_resource_changes(
    model_class: Readable,
    session: Session | scoped_session[Any] | None = None,
    filter_resource_ids: Any = None,
    filter_fields: str | Iterable[str] | None = None,
    filter_user_ids: Any = None,
    filter_date_range: DateRange | None = None,
    *,
    limit: int | None = None,
    offset: int = 0,
    **filters: Unpack[ChangeFilters],
) -> list[FieldChange]:
    """Return the field changes of a model's rows, oldest first. One statement, and one for each relationship.

    Their order is by instant, key, version and field. A baseline reports no field changes. Neither does an update whose
    previous version has been removed, because what it changed is unknown.

    .. code-block:: python

        get_resource_changes(Ticket, session, 7, include=["tags", "comments"])

    A relationship with an association table reports each link that was made or removed, under its name: the operation
    is ``link`` with the new value ``(3,)``, the key of the tag, or ``unlink`` with the old value ``(3,)``. Any other
    relationship reports the field changes of the rows that refer to the ticket. A row that moves from one ticket to
    another is reported for both. A link that moves is an ``unlink`` for one and a ``link`` for the other.

    :param model_class: a tracked model; or a relationship, such as ``Ticket.tags``, to read only what it leads to; or
        an association table, whose links are then rows that are inserted and deleted
    :param session: a session; if it is an ``AsyncSession``, await the result. If omitted, the configured
        ``session_factory`` makes one
    :param filter_resource_ids: one id or several. A tuple is one composite id. Ids may be text; an id that cannot be
        converted to the type of the key matches nothing. For a relationship, the ids of its owners
    :param filter_fields: the name of one field or of several, of the model itself
    :param filter_user_ids: the id of one user or of several
    :param filter_date_range: ``(from, to)``, aware datetimes or marks, both included; either may be ``None``
    :param include: the names of relationships to report, too; at one instant, they come after the model
    :param limit: the greatest number of field changes to return
    :param offset: the number of field changes to leave out first
    :param newest_first: reverse the order
    :param filter_operations: one operation or several, such as ``"update"`` or ``"unlink"``
    :param filter_old_values: one value, or a list, tuple or set of several, that a field had before; ``[None]`` for
        fields that were empty. Text is converted as for ids, and a value of another type matches nothing. The database
        looks for the values, without an index
    :param filter_new_values: the same for the values after
    :param filter_actor_types: one kind of actor or several, such as ``"agent"``
    :param filter_on_behalf_of: the id of one user, or of several, for whom a service or an agent worked
    :param filter_run_ids: the id of one run or of several
    :param filter_reasons: one whole reason or several
    :raises TrackingError: the model, or what a relationship leads to, is not tracked
    :raises QueryError: a filter is invalid, or the model has no such relationship
    :raises PrunedError: the history was pruned, and the date range begins before its horizon
    """
    query = change_query(
        model_class,
        filters,
        filter_resource_ids=filter_resource_ids,
        filter_fields=filter_fields,
        filter_user_ids=filter_user_ids,
        filter_date_range=filter_date_range,
        limit=limit,
        offset=offset,
    )
    report = ChangeReport(query)
    if session is None:
        with configured_session() as made:
            report.refuse_pruned(made, filter_date_range)
            return list(report.changes(made))
    session = checked_session(session)
    report.refuse_pruned(session, filter_date_range)
    return list(report.changes(session))


@also_async_stream
def stream_resource_changes(
    model_class: Readable,
    session: Session | scoped_session[Any],
    filter_resource_ids: Any = None,
    filter_fields: str | Iterable[str] | None = None,
    filter_user_ids: Any = None,
    filter_date_range: DateRange | None = None,
    *,
    limit: int | None = None,
    offset: int = 0,
    **filters: Unpack[ChangeFilters],
) -> Generator[FieldChange]:
    """Yield the field changes of a model's rows one by one, in constant memory.

    The parameters are those of :func:`get_resource_changes`. The statement stays open until the iterator is exhausted
    or closed. With ``include``, MariaDB's and MySQL's drivers read all rows at once. With an ``AsyncSession``, iterate
    by ``async for``.
    """
    query = change_query(
        model_class,
        filters,
        filter_resource_ids=filter_resource_ids,
        filter_fields=filter_fields,
        filter_user_ids=filter_user_ids,
        filter_date_range=filter_date_range,
        limit=limit,
        offset=offset,
    )
    report, session = ChangeReport(query), checked_session(session)
    report.refuse_pruned(session, filter_date_range)
    return report.changes(session, yield_per=BATCH)


@overload
def versions_of(
    session: Session | scoped_session[Any],
    model_class: type[M],
    resource_id: Any,
    *,
    limit: int | None = None,
    newest_first: bool = False,
    since: datetime | Mark | None = None,
) -> list[Version[M]]: ...


@overload
def versions_of(
    session: Session | scoped_session[Any],
    model_class: Table | Mapped[Any],
    resource_id: Any,
    *,
    limit: int | None = None,
    newest_first: bool = False,
    since: datetime | Mark | None = None,
) -> list[Version[Any]]: ...


@overload
def versions_of(
    session: AsyncSession | async_scoped_session[Any],
    model_class: type[M],
    resource_id: Any,
    *,
    limit: int | None = None,
    newest_first: bool = False,
    since: datetime | Mark | None = None,
) -> Coroutine[Any, Any, list[Version[M]]]: ...


@overload
def versions_of(
    session: AsyncSession | async_scoped_session[Any],
    model_class: Table | Mapped[Any],
    resource_id: Any,
    *,
    limit: int | None = None,
    newest_first: bool = False,
    since: datetime | Mark | None = None,
) -> Coroutine[Any, Any, list[Version[Any]]]: ...


@also_async
def versions_of(
    session: Session | scoped_session[Any],
    model_class: Readable,
    resource_id: Any,
    *,
    limit: int | None = None,
    newest_first: bool = False,
    since: datetime | Mark | None = None,
) -> list[Version[Any]]:
    """Return the versions of one row, oldest first, as objects of the model's history class. One statement.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model or an association table; or a relationship, for the versions of all links or
        rows to which it has led
    :param resource_id: the primary key, also as text; a tuple if the key is composite. For a relationship, the key of
        its owner
    :param limit: the greatest number of versions to return
    :param newest_first: reverse the order
    :param since: leave out the versions that began before this instant; an aware datetime or a :class:`Mark`
    :raises TrackingError: the model, or what the relationship leads to, is not tracked
    :raises QueryError: ``limit`` or ``since`` is invalid
    :raises PrunedError: the history was pruned, and ``since`` is before its horizon
    """
    related = related_by(model_class) if isinstance(model_class, QueryableAttribute) else None
    bounds: dict[str, Any] = {**checked_range("The range", since, None)}
    if limit is not None:
        bounds["limit"] = checked_count("limit", limit)
    return list(_versions(session, model_of(model_class), resource_id, related, bounds, newest_first=newest_first))


def latest_infos(session: Session, model_class: Readable, resource_id: Any, limit: int) -> list[VersionInfo]:
    """Return who made the latest versions of a row, when and why, the latest first. One statement, without values."""
    model = model_of(model_class)
    table, entity = model.root.table, history_class_of(model)
    ids = converted_ids(table.history_key, [resource_id])
    if not ids["ids"]:
        return []
    parameters = {**one_id(ids), "limit": limit}
    roles = {field.name: getattr(table.names, field.name, table.names.valid_from) for field in fields(VersionInfo)}

    def build() -> Select[Any]:
        statement = select(*(getattr(entity, name).label(role) for role, name in roles.items()))
        statement = statement.where(is_id(table.history_key, parameters))
        return statement.order_by(table.version.desc()).limit(bindparam("limit"))

    statement = cached_statement(model, ("infos",), build)
    with closing(rows_of(session, model, statement, parameters, {})) as rows:
        return [VersionInfo(**dict(zip(roles, row, strict=True))) for row in islice(rows, limit)]


@also_async
def blame(
    session: Session | scoped_session[Any],
    model_class: type[Any],
    resource_id: Any,
    *,
    at: datetime | Mark | None = None,
) -> dict[str, Blame]:
    """Return, for each field of a row, its value and the version that set it. One statement, or two.

    The dict is empty if the row has no history, is deleted, or is of another class now. Where versions have been
    removed, the origin of a value is unknown: see ``unknown_before`` and ``unknown_after`` of :class:`Blame`.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :param at: the instant at which the row had these values, an aware datetime or a :class:`Mark`; the present if
        omitted
    :raises TrackingError: the model is not tracked
    :raises QueryError: ``at`` is no instant
    :raises PrunedError: the history was pruned, and ``at`` is before its horizon
    """
    chosen = tracked_model_of(model_class)
    wanted = history_class_of(chosen)
    bounds = checked_range("The range", None, at)
    refuse_pruned_in(checked_session(session), [chosen.root.table], bounds.get("until"))
    with closing(_versions_backwards(session, chosen.root, resource_id, bounds)) as versions:
        version = next(versions, None)
        if not isinstance(version, wanted) or version_info(version)["operation"] is Operation.DELETE:
            return {}
        blames: dict[str, Blame] = {}
        model: TrackedModel = version.__sqlaudit_model__
        values = {name: getattr(version, name) for name in _field_names(model)}
        equalities = equalities_of((name, model.columns[name]) for name in values)
        end = getattr(version, model.table.names.valid_to)
        is_last_missing = end <= bounds["until"] if bounds else end != OPEN_END
        new = dict(zip(values, stored_values(version, values), strict=True))
        while version is not None and len(blames) < len(values):
            info, before = version_info(version), next(versions, None)
            is_inserted, is_baseline = (
                info["operation"] is operation for operation in (Operation.INSERT, Operation.BASELINE)
            )
            is_missing = before is None or version_info(before)["version"] != info["version"] - 1
            unknown = not is_inserted and (is_baseline or is_missing)
            is_pruned = is_missing and info["version"] > 1
            if is_last_missing or (unknown and (is_pruned or not is_baseline)):
                info |= dict.fromkeys(_CONTEXT)
            first = is_inserted or is_missing or _has_ended(before)
            erased = erased_fields_of(version)
            names = [name for name in values if name not in blames]
            old = {} if first or before is None else dict(zip(names, stored_values(before, names), strict=True))
            for name in names:
                if name in erased:  # nobody knows whether this version changed it, or an earlier one
                    nobody = info | dict.fromkeys(_CONTEXT)
                    blames[name] = Blame(
                        **nobody, value=values[name], unknown_before=True, unknown_after=is_last_missing
                    )
                elif first or differ(old[name], new[name], equalities.get(name)):
                    blames[name] = Blame(
                        **info, value=values[name], unknown_before=unknown, unknown_after=is_last_missing
                    )
            version, new = before, old
    return {name: blames[name] for name in values}


def _versions_backwards(
    session: object, root: TrackedModel, resource_id: Any, bounds: Mapping[str, Any]
) -> Generator[Any]:
    """Yield the versions of a row, the latest first: some at once, which mostly suffice, and others from a stream.

    Databases need several round trips for a stream.
    """
    number = root.table.names.version
    latest = list(_versions(session, root, resource_id, bounds={**bounds, "limit": _LATEST}, newest_first=True))
    yield from latest
    if len(latest) == _LATEST:
        last = getattr(latest[-1], number)
        with closing(
            _versions(session, root, resource_id, bounds=bounds, newest_first=True, yield_per=BATCH)
        ) as versions:
            yield from (version for version in versions if getattr(version, number) < last)


def _has_ended(version: Any) -> bool:
    """Return whether a version is a tombstone. A baseline after it begins another life of the row."""
    return version_info(version)["operation"] is Operation.DELETE


def _field_names(model: TrackedModel) -> list[str]:
    chosen = model.options.tracked_fields
    return sorted(name for name in model.columns if chosen is None or name in chosen)


@also_async
def changes_in(
    session: Session | scoped_session[Any], changeset_id: UUID | str, *, limit: int | None = None
) -> list[FieldChange]:
    """Return the field changes that one database transaction made, in all tables.

    It executes one statement per bind and 100 tracked tables to find the tables that the transaction wrote, and then
    one per hierarchy of models or association table. The changes of a model are in the order of key, version and field.
    For a link, the resource type is the name of its association table, and each of its columns is a field.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param changeset_id: the ``audit_changeset_id`` of a version, or the ``changeset_id`` of a :class:`Changeset`
    :param limit: the greatest number of changes to return
    :raises QueryError: ``changeset_id`` is no UUID, no history has a version of this changeset, or ``limit`` is invalid
    :raises PrunedError: a history that it wrote has been pruned since
    """
    session = checked_session(session)
    wanted = changeset_uuid(changeset_id)
    tables = tables_of_changeset(session, wanted)
    refuse_pruned_versions(session, tables, lambda table: table.role("changeset_id") == wanted)
    models = dict.fromkeys(model_of(table.live) for table in sorted(tables, key=lambda table: table.is_association))
    reports = (ChangeReport(ChangeQuery(model=model.root, changeset_ids=[wanted], limit=limit)) for model in models)
    return list(islice((change for report in reports for change in report.changes(session)), limit))


def _versions(
    session: object,
    model: TrackedModel,
    resource_id: Any,
    related: Related | None = None,
    bounds: Mapping[str, Any] = MappingProxyType({}),
    *,
    newest_first: bool = False,
    **options: Any,
) -> Generator[Any]:
    table = model.root.table
    asked = table.history_key if related is None else related.owner_key
    session = checked_session(session)
    ids = converted_ids(asked, [resource_id])
    if not ids["ids"] or bounds.get("limit") == 0:
        return
    refuse_pruned_in(session, [table], bounds.get("since"))
    parameters = {**one_id(ids), **bounds}

    def build() -> Select[Any]:
        statement = select(with_polymorphic(class_mapper(history_class_of(model)), "*"))
        order: list[ColumnElement[Any]] = [table.version]
        if related is not None:
            order = [table.valid_from, *table.history_key, *order]
        statement = statement.where(is_id(asked, parameters))
        if "since" in parameters:
            statement = statement.where(table.valid_from >= bindparam("since"))
        if "until" in parameters:
            statement = statement.where(table.valid_from <= bindparam("until"))
        if "limit" in parameters:
            statement = statement.limit(bindparam("limit"))
        return statement.order_by(*(column.desc() if newest_first else column for column in order))

    shape = ("versions", related, frozenset(parameters), newest_first)
    statement = cached_statement(model, shape, build)
    with closing(rows_of(session, model, statement, parameters, options)) as rows:
        for (version,) in islice(rows, bounds.get("limit")):
            yield version
