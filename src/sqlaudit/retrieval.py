"""What happened to these rows? Versions, field changes and blame, read from consecutive snapshots.

Every read here is one statement. All of them take a :class:`sqlalchemy.orm.Session`; with an ``AsyncSession``, use
``await session.run_sync(versions_of, Customer, 42)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, FromClause, Select, and_, false, or_, select, tuple_
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from sqlaudit.changes import Blame, FieldChange, Operation, diff
from sqlaudit.config import configured_session
from sqlaudit.context import user_id_text
from sqlaudit.exceptions import QueryError
from sqlaudit.history import TrackedModel, history_of, tracked_model_of
from sqlaudit.period import as_utc
from sqlaudit.statements import differs

_BATCH: Final = 500


class Filters(TypedDict, total=False):
    """What :func:`get_resource_changes` and :func:`stream_resource_changes` can be told."""

    filter_resource_ids: Any
    filter_fields: str | Iterable[str] | None
    filter_user_ids: Any
    filter_date_range: tuple[datetime | None, datetime | None] | None
    limit: int | None
    offset: int
    newest_first: bool


def get_resource_changes(
    model_class: type[Any], session: Session | None = None, **filters: Unpack[Filters]
) -> list[FieldChange]:
    """Return the field changes of a tracked model's rows, oldest first. One statement.

    Their order is (instant, key, version, field).

    :param session: ``None``: one of the configured ``session_factory``
    :param filter_resource_ids: one id or several; a tuple is one composite id; ids may be text, and one that cannot
        be converted to the key's type matches nothing
    :param filter_fields: one field name or several
    :param filter_user_ids: the ids of one user or of several, by whom the changes were made
    :param filter_date_range: (from, to), both included; either may be ``None``; aware datetimes
    :param limit: how many changes to return at most
    :param offset: how many changes to leave out first
    :param newest_first: turn the order around
    :raises TrackingError: the model is not tracked
    :raises QueryError: a filter does not make sense
    """
    if session is None:
        with configured_session() as made:
            return list(stream_resource_changes(model_class, made, **filters))
    return list(stream_resource_changes(model_class, session, **filters))


def stream_resource_changes(
    model_class: type[Any], session: Session, **filters: Unpack[Filters]
) -> Iterator[FieldChange]:
    """Yield what :func:`get_resource_changes` returns, in flat memory.

    The statement stays open until the iterator is exhausted or closed.
    """
    _check_session(session)
    read = _Reading(tracked_model_of(model_class), filters)
    return read.stream(session)


def versions_of(session: Session, model_class: type[Any], resource_id: Any) -> list[Any]:
    """Return the versions of one row, oldest first: instances of the model's history class. One statement.

    :param resource_id: the primary key; a tuple if it is composite; text is converted
    :raises TrackingError: the model is not tracked
    """
    _check_session(session)
    model = tracked_model_of(model_class)
    history = history_of(model_class)
    table = model.root.table
    statement = select(history).order_by(table.version)
    return list(session.scalars(statement.where(_ids(list(table.history_key), [resource_id]))))


def blame(session: Session, model_class: type[Any], resource_id: Any) -> dict[str, Blame]:
    """Return, for each field of a row, its value and the version that gave it. One statement.

    Empty if the row has no history, or is deleted.

    :param resource_id: the primary key; a tuple if it is composite; text is converted
    :raises TrackingError: the model is not tracked
    """
    _check_session(session)
    model = tracked_model_of(model_class)
    read = _Reading(model, {"newest_first": True}, with_unchanged=True)
    read.statement = read.statement.where(_ids(read.key, [resource_id]))
    found: dict[str, Blame] = {}
    unsettled: dict[str, tuple[int, Any]] = {}
    with closing(read.pairs(session)) as pairs:
        for info, _, old, new in pairs:
            if info["operation"] is Operation.DELETE:
                break
            if not found and not unsettled:
                unsettled = {name: (place, new[place]) for place, name in enumerate(read.names)}
            first = old is None or info["operation"] is not Operation.UPDATE
            changed = {name for name, *_ in diff(read.names, info["operation"], old, new)}
            for name in [name for name in unsettled if first or name in changed]:
                _, value = unsettled.pop(name)
                found[name] = Blame(**info, value=value)
            if not unsettled:
                break
    return {name: found[name] for name, _ in model.reported() if name in found}


def _check_session(session: object) -> None:
    if not isinstance(session, Session):
        if hasattr(session, "run_sync"):
            raise QueryError(
                "An AsyncSession was given; read through its run_sync: "
                "await session.run_sync(versions_of, Customer, 42).",
                session,
            )
        if not hasattr(session, "registry"):  # a scoped_session stands for a session
            raise QueryError(f"{session!r} is not a Session; give one.", session)


class _Reading:
    """One statement over the versions of a model, each beside the version before it."""

    def __init__(self, model: TrackedModel, filters: Filters, with_unchanged: bool = False) -> None:
        unknown = filters.keys() - Filters.__annotations__.keys()
        if unknown:
            raise QueryError(
                f"There is no filter {', '.join(sorted(unknown))}; there are {', '.join(Filters.__annotations__)}."
            )
        self.model = model
        self.limit = _checked_count("limit", filters.get("limit"))
        self.offset = _checked_count("offset", filters.get("offset")) or 0
        self.newest_first = bool(filters.get("newest_first"))
        fields = self._chosen_fields(model, filters.get("filter_fields"))
        self.names = [name for name, _ in fields]
        base = model.root.table
        tables = list(dict.fromkeys(table for each in model.family() for table in each.chain))
        now = {table: table.history.alias(f"now_{place}") for place, table in enumerate(tables)}
        before = {table: table.history.alias(f"before_{place}") for place, table in enumerate(tables)}
        owner = {table.history: table for table in tables}
        source: FromClause = now[base]
        own = set(model.chain)
        for table in tables[1:]:
            source = source.join(
                now[table], _same_version(table, now[table], base, now[base]), isouter=table not in own
            )
        source = source.outerjoin(before[base], _same_version(base, before[base], base, now[base], distance=-1))
        for table in tables[1:]:
            source = source.outerjoin(before[table], _same_version(table, before[table], base, before[base]))
        new = [now[owner[column.table]].c[column.key] for _, column in fields]
        old = [before[owner[column.table]].c[column.key] for _, column in fields]
        ids = [now[owner[column.table]].c[column.key] for column in model.resource_id_columns()]
        self.key = [now[base].c[column.key] for column in base.history_key]
        self._width = (len(ids), len(fields))
        roles = {role: now[base].c[name] for role, name in base.names.items()}
        statement = select(
            roles["version"],
            roles["valid_from"],
            roles["operation"],
            roles["changeset_id"],
            roles["changed_by"],
            roles["impersonated_by"],
            roles["reason"],
            roles["extra"],
            before[base].c[base.version.key],
            *ids,
            *new,
            *old,
        ).select_from(source)
        if not with_unchanged:
            statement = statement.where(
                or_(
                    and_(roles["operation"] == Operation.INSERT, or_(*(column.is_not(None) for column in new))),
                    and_(roles["operation"] == Operation.DELETE, or_(*(column.is_not(None) for column in new))),
                    and_(
                        roles["operation"] == Operation.UPDATE,
                        before[base].c[base.version.key].is_not(None),
                        or_(*(differs(one, other) for one, other in zip(new, old, strict=True))),
                    ),
                )
                if fields
                else false()
            )
        if (identities := _identities(model)) is not None:
            column, values = identities
            statement = statement.where(now[base].c[column.key].in_(values))
        if filters.get("filter_resource_ids") is not None:
            statement = statement.where(_ids(ids, _listed(filters["filter_resource_ids"], composite=len(ids) > 1)))
        if filters.get("filter_user_ids") is not None:
            users = [user_id_text(user) for user in _listed(filters["filter_user_ids"])]
            statement = statement.where(roles["changed_by"].in_(users))
        for condition in _date_range(roles["valid_from"], filters.get("filter_date_range")):
            statement = statement.where(condition)
        order = [roles["valid_from"], *self.key, roles["version"]]
        self.statement: Select[Any] = statement.order_by(*(c.desc() for c in order) if self.newest_first else order)

    @staticmethod
    def _chosen_fields(model: TrackedModel, chosen: str | Iterable[str] | None) -> list[tuple[str, Any]]:
        fields = sorted(model.reported(), key=lambda field: field[0])
        if chosen is None:
            return fields
        names = {chosen} if isinstance(chosen, str) else set(chosen)
        known = {name for name, _ in fields}
        if names - known:
            raise QueryError(
                f"{model.mapper.class_.__name__} has no tracked field {', '.join(map(repr, sorted(names - known)))}; "
                f"it has {', '.join(sorted(known))}."
            )
        return [(name, column) for name, column in fields if name in names]

    def pairs(self, session: Session) -> Iterator[tuple[dict[str, Any], Any, Sequence[Any] | None, Sequence[Any]]]:
        """Yield, for each version: its info, its resource id, the fields before it (if known), its fields."""
        ids, fields = self._width
        result = session.execute(self.statement.execution_options(yield_per=_BATCH))
        with closing(result):
            for version, at, operation, changeset, user, impersonated_by, reason, extra, before, *values in result:
                info = {
                    "version": version,
                    "timestamp": at,
                    "operation": operation,
                    "changeset_id": changeset,
                    "changed_by": user,
                    "impersonated_by": impersonated_by,
                    "reason": reason,
                    "extra": extra,
                }
                resource_id = values[0] if ids == 1 else tuple(values[:ids])
                old = None if before is None else values[ids + fields :]
                yield info, resource_id, old, values[ids : ids + fields]

    def stream(self, session: Session) -> Iterator[FieldChange]:
        end = None if self.limit is None else self.offset + self.limit
        return islice(self._changes(session), self.offset, end)

    def _changes(self, session: Session) -> Iterator[FieldChange]:
        label = self.model.label
        for info, resource_id, old, new in self.pairs(session):
            found = list(diff(self.names, info["operation"], old, new))
            for name, before, after in reversed(found) if self.newest_first else found:
                yield FieldChange(
                    **info,
                    resource_type=label,
                    resource_id=resource_id,
                    field_name=name,
                    old_value=before,
                    new_value=after,
                )


def _same_version(table: Any, one: Any, base: Any, other: Any, distance: int = 0) -> ColumnElement[bool]:
    keys = zip(table.history_key, base.history_key, strict=True)
    return and_(
        *(one.c[left.key] == other.c[right.key] for left, right in keys),
        one.c[table.version.key] == other.c[base.version.key] + distance,
    )


def _identities(model: TrackedModel) -> tuple[Any, list[Any]] | None:
    """Return the discriminator and its values for a model that shares its table with others, or ``None``."""
    mapper = model.mapper
    if model.parent is None or mapper.polymorphic_on is None:
        return None
    column = next((old for live, old in model.root.table.columns if live is mapper.polymorphic_on), None)
    return None if column is None else (column, [each.mapper.polymorphic_identity for each in model.family()])


def _checked_count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise QueryError(f"{name} is {value!r}; give a number from 0, or none.", value)
    return value


def _listed(value: Any, *, composite: bool = False) -> list[Any]:
    """Return one value or several as a list; text is one, and a tuple is one composite id."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or (composite and isinstance(value, tuple)):
        return [value]
    return list(value)


def _date_range(column: Any, dates: tuple[datetime | None, datetime | None] | None) -> Iterator[ColumnElement[bool]]:
    if dates is None:
        return
    try:
        start, end = dates
    except (TypeError, ValueError):
        raise QueryError(f"filter_date_range is {dates!r}; give (from, to), either may be None.", dates) from None
    start, end = (None if date is None else as_utc(date) for date in (start, end))
    if start is not None and end is not None and start > end:
        raise QueryError(f"filter_date_range ends at {end}, before it begins at {start}; turn it around.", dates)
    if start is not None:
        yield column >= start
    if end is not None:
        yield column <= end


def _ids(columns: Sequence[ColumnElement[Any]], ids: Iterable[Any]) -> ColumnElement[bool]:
    """Return the condition that the columns have one of the values, as far as these are of the columns' types."""
    matching: list[Any] = []
    for value in ids:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if len(values) != len(columns):
            continue
        try:
            matching.append(tuple(_converted(part, column.type) for part, column in zip(values, columns, strict=True)))
        except (TypeError, ValueError, ArithmeticError):
            continue
    if not matching:
        return false()
    if len(columns) == 1:
        return columns[0].in_([value for (value,) in matching]) if len(matching) > 1 else columns[0] == matching[0][0]
    return tuple_(*columns).in_(matching)


def _converted(value: Any, type_: TypeEngine[Any]) -> Any:
    """Return an id as a value of a key column's Python type.

    :raises ValueError: it cannot be one
    """
    try:
        wanted = type_.python_type
    except NotImplementedError:
        return value
    if isinstance(value, wanted) and not (isinstance(value, bool) and wanted is not bool):
        return value
    if wanted is str and isinstance(value, (int, UUID)) and not isinstance(value, bool):
        return str(value)
    if wanted is int and isinstance(value, str):
        return int(value)
    if wanted is UUID and isinstance(value, str):
        return UUID(value)
    if isinstance(value, (str, int)) and not isinstance(value, bool) and wanted not in (bool, bytes, int, str):
        from_text: Callable[[str], Any] = getattr(wanted, "fromisoformat", wanted)
        return from_text(value if wanted.__name__ != "Decimal" else str(value))
    raise ValueError(value)
