"""What happened to these rows? Versions, field changes and blame, read from consecutive snapshots.

Every read here is one statement, but for :func:`changes_in`, which reads many tables. All of them take a
:class:`sqlalchemy.orm.Session`; with an ``AsyncSession``, use ``await session.run_sync(versions_of, Customer, 42)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import fields as dataclass_fields
from datetime import date, datetime, time
from decimal import Decimal
from itertools import chain, islice, pairwise
from math import inf
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    Uuid,
    and_,
    bindparam,
    inspect,
    or_,
    select,
    tuple_,
)
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import InstanceState, Session, class_mapper, scoped_session, with_polymorphic
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.absent import explained
from sqlaudit.arguments import changeset_uuid, checked_count, checked_range, checked_user
from sqlaudit.changes import Blame, Equality, FieldChange, Operation, diff, differ, equalities_of
from sqlaudit.changesets import is_of_changeset, tables_of_changeset
from sqlaudit.config import configured_session
from sqlaudit.exceptions import QueryError
from sqlaudit.history import checked_session, history_of, moved, version_info, where_rows_are
from sqlaudit.keytypes import are_bound_in_sql, one_of
from sqlaudit.models import TrackedModel, root_of, tracked_model_of
from sqlaudit.period import OPEN_END
from sqlaudit.statements import OURS, any_of, differs, is_among
from sqlaudit.tables import TrackedTable

_BATCH: Final = 500
_WIDE: Final = 800
"""Fields of which a row holds the old and the new values: PostgreSQL selects at most 1,664 columns, SQLite 2,000."""
_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]+")
_FROM_TEXT: Final[Mapping[type[Any], Callable[[str], Any]]] = {
    date: date.fromisoformat,
    datetime: datetime.fromisoformat,
    time: time.fromisoformat,
    Decimal: Decimal,
    float: float,
}
_ANY_DIALECT: Final = DefaultDialect()


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
) -> list[FieldChange]:
    """Return the field changes of a tracked model's rows, oldest first. One statement.

    Their order is (instant, key, version, field). An update after a version that has been removed reports none, for
    what it changed is unknown; so does a baseline.

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
    reading = _Reading(
        model_class, filter_resource_ids, filter_fields, filter_user_ids, filter_date_range, limit, offset, newest_first
    )
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
) -> Generator[FieldChange]:
    """Yield what :func:`get_resource_changes` returns, in flat memory.

    The statement stays open until the iterator is exhausted or closed.
    """
    reading = _Reading(
        model_class, filter_resource_ids, filter_fields, filter_user_ids, filter_date_range, limit, offset, newest_first
    )
    return reading.changes(checked_session(session), yield_per=_BATCH)


def versions_of(session: Session | scoped_session[Any], model_class: type[Any], resource_id: Any) -> list[Any]:
    """Return the versions of one row, oldest first: instances of the model's history class. One statement.

    :param resource_id: the primary key; a tuple if it is composite; text is converted
    :raises TrackingError: the model is not tracked
    """
    return list(_versions(session, model_class, resource_id))


def blame(session: Session | scoped_session[Any], model_class: type[Any], resource_id: Any) -> dict[str, Blame]:
    """Return, for each field of a row, its value and the version that gave it. One statement.

    Empty if the row has no history, or is deleted. Where versions have been removed, what was before is unknown, and
    :attr:`~sqlaudit.changes.Blame.unknown_before` says so; where the last ones have been,
    :attr:`~sqlaudit.changes.Blame.unknown_after` says that what came after is.

    :param resource_id: the primary key; a tuple if it is composite; text is converted
    :raises TrackingError: the model is not tracked
    """
    with closing(_versions(session, model_class, resource_id, newest_first=True, yield_per=_BATCH)) as versions:
        version = next(versions, None)
        if version is None or version_info(version)["operation"] is Operation.DELETE:
            return {}
        found: dict[str, Blame] = {}
        model: TrackedModel = version.__sqlaudit_model__
        values = {name: getattr(version, name) for name in _field_names(model)}
        equalities = equalities_of((name, model.columns[name]) for name in values)
        is_last_missing = getattr(version, model.table.names.valid_to) != OPEN_END
        while version is not None and len(found) < len(values):
            info, before = version_info(version), next(versions, None)
            is_inserted, is_baseline = (info["operation"] is each for each in (Operation.INSERT, Operation.BASELINE))
            is_missing = before is None or version_info(before)["version"] != info["version"] - 1
            unknown = not is_inserted and (is_baseline or is_missing)
            if is_last_missing or (unknown and not is_baseline):
                info |= dict.fromkeys(_CONTEXT)
            first = is_inserted or is_missing or _has_ended(before)
            for name in values.keys() - found.keys():
                if first or differ(getattr(before, name, None), getattr(version, name), equalities.get(name)):
                    found[name] = Blame(
                        **info, value=values[name], unknown_before=unknown, unknown_after=is_last_missing
                    )
            version = before
    return {name: found[name] for name in values}


def _has_ended(version: Any) -> bool:
    """Tell whether a version is the end of a life, behind which a baseline begins another."""
    return version_info(version)["operation"] is Operation.DELETE


def _field_names(model: TrackedModel) -> list[str]:
    chosen = model.options.tracked_fields
    return sorted(name for name in model.columns if chosen is None or name in chosen)


def changes_in(session: Session | scoped_session[Any], changeset_id: UUID | str) -> list[FieldChange]:
    """Return the field changes that one database transaction made, in all tables.

    One statement per hierarchy of models or association table that it touched, and one per bind and 100 tracked
    tables to find these. Those of a model come in the order of (key, version, field); the resource type of a link
    is the name of its table, each of its columns is a field.

    :raises QueryError: ``changeset_id`` is no UUID, or no history has a version of such a changeset
    """
    session = checked_session(session)
    wanted = changeset_uuid(changeset_id)
    tables = tables_of_changeset(session, wanted)
    links = [table for table in tables if table.is_association]
    roots = dict.fromkeys(root_of(table) for table in tables if not table.is_association)
    found: list[FieldChange] = []
    for root in roots:
        reading = _Reading(root.mapper.class_, None, None, None, None, None, 0, False, wanted)
        found.extend(reading.changes(session))
    for table in links:
        found.extend(_link_changes(session, table, wanted))
    return found


def _link_changes(session: Session, table: TrackedTable, changeset_id: UUID) -> Iterator[FieldChange]:
    now, before = table.history.alias("now_0"), table.history.alias("before_0")
    names = sorted(old.key for _, old in table.columns)
    equalities = equalities_of((name, table.history.c[name]) for name in names)
    key = [now.c[column.key] for column in table.history_key]
    roles = [now.c[getattr(table.names, name)] for name in _ROLES]
    number_before = before.c[table.version.key]
    statement = (
        select(*roles, *key, *(now.c[name] for name in names), *(before.c[name] for name in names), number_before)
        .select_from(now.outerjoin(before, _same_version(table, before, table, now, distance=-1)))
        .where(is_of_changeset(table, now))
        .order_by(*key, now.c[table.version.key])
    )
    ids = len(_ROLES)
    new = ids + len(key)
    old = new + len(names)
    with explained([table]):
        rows = session.execute(
            statement, {"changeset": changeset_id}, bind_arguments=where_rows_are(session, table.mapper)
        ).all()
    for row in rows:
        before_it = None if row[-1] is None else row[old:-1]
        yield from _changes_in_row(table.live.fullname, names, equalities, row[ids:new], row, before_it, row[new:old])


# --- versions ---------------------------------------------------------------------------------------------------


def _versions(
    session: object, model_class: type[Any], resource_id: Any, *, newest_first: bool = False, **options: Any
) -> Generator[Any]:
    model = tracked_model_of(model_class)
    table = model.root.table
    session = checked_session(session)
    parameters = ids_given(table.history_key, [resource_id])

    def build() -> Select[Any]:
        statement = select(with_polymorphic(class_mapper(history_of(model_class)), "*"))
        order = table.version.desc() if newest_first else table.version
        return statement.where(_has_id(table.history_key, parameters)).order_by(order)

    statement = _built_once(model, ("versions", frozenset(parameters), newest_first), build)
    with closing(_rows(session, model, statement, parameters, options)) as rows:
        for (version,) in rows:
            yield version


# --- field changes ----------------------------------------------------------------------------------------------


class _Reading:
    """One statement over the versions of a model, each beside the version before it."""

    def __init__(
        self,
        model_class: type[Any],
        resource_ids: Any,
        fields: str | Iterable[str] | None,
        user_ids: Any,
        dates: tuple[datetime | None, datetime | None] | None,
        limit: int | None,
        offset: int,
        newest_first: bool,
        changeset_id: UUID | None = None,
    ) -> None:
        self.model = model = tracked_model_of(model_class)
        self.newest_first = newest_first
        self.offset = checked_count("offset", offset)
        self.end = None if limit is None else self.offset + checked_count("limit", limit)
        self.fields = _chosen_fields(model, fields)
        self.ids = tuple(model.resource_id_columns())
        self.parameters: dict[str, Any] = dict(_date_range(dates))
        if resource_ids is not None:
            self.parameters |= ids_given(self.ids, ids_listed(resource_ids, composite=len(self.ids) > 1))
        # The versions of one row, in the order of their numbers, come beside one another without a join.
        self.of_one_row = (
            not model.options.resource_id_field
            and len(self.parameters.get("ids", ())) == 1
            and len(self.parameters) == 1
            and user_ids is None
            and _identities(model) is None
        )
        if changeset_id is not None:
            self.parameters["changeset"] = changeset_id
        if user_ids is not None:
            self.parameters["users"] = [checked_user("filter_user_ids", user) for user in ids_listed(user_ids)]
        self.is_wide = len(self.fields) > _WIDE and not self.of_one_row
        if self.end is not None and not self.of_one_row:
            self.parameters |= {"limit": self.end * 2 if self.is_wide else self.end, "offset": 0}
        shape = ("changes", self.fields, self.ids, frozenset(self.parameters), newest_first, self.of_one_row)
        self.statement = _built_once(model, shape, self._build)

    def _build(self) -> Select[Any]:
        model, base = self.model, self.model.root.table
        tables = list(dict.fromkeys(table for each in model.family() for table in each.chain))
        now = {table: table.history.alias(f"now_{place}") for place, table in enumerate(tables)}
        before = {table: table.history.alias(f"before_{place}") for place, table in enumerate(tables)}
        owner = {table.history: table for table in tables}
        source: FromClause = now[base]
        for table in tables[1:]:
            source = source.join(
                now[table], _same_version(table, now[table], base, now[base]), isouter=table not in model.chain
            )
        new = [now[owner[column.table]].c[column.key] for _, column in self.fields]
        ids = [now[owner[column.table]].c[column.key] for column in self.ids]
        roles = {role: now[base].c[name] for role, name in base.names.items()}
        ours = [roles[name] for name in _ROLES]
        if self.of_one_row:
            statement = select(*ours, *ids, *new).select_from(source).where(_has_id(ids, self.parameters))
            return statement.order_by(roles["version"].desc() if self.newest_first else roles["version"])
        source = source.outerjoin(before[base], _same_version(base, before[base], base, now[base], distance=-1))
        for table in tables[1:]:
            source = source.outerjoin(before[table], _same_version(table, before[table], base, before[base]))
        old = [before[owner[column.table]].c[column.key] for _, column in self.fields]
        number_before = before[base].c[base.version.key]
        key = [now[base].c[column.key] for column in base.history_key]
        order: list[ColumnElement[Any]] = [roles["valid_from"], *key, roles["version"]]
        order = [column.desc() for column in order] if self.newest_first else order
        if self.is_wide:  # two rows, first that of the version before
            both = {table: table.history.alias(f"both_{place}") for place, table in enumerate(tables)}
            number = both[base].c[base.version.key]
            of_row = (both[base].c[old.key] == here for old, here in zip(base.history_key, key, strict=True))
            source = source.join(both[base], and_(*of_row, number.between(roles["version"] - 1, roles["version"])))
            for table in tables[1:]:
                source = source.outerjoin(both[table], _same_version(table, both[table], base, both[base]))
            values, order = [both[owner[column.table]].c[column.key] for _, column in self.fields], [*order, number]
        else:
            values, number = [*new, *old], number_before
        statement = select(*ours, *ids, *values, number).select_from(source).order_by(*order)
        statement = statement.where(
            or_(
                and_(
                    roles["operation"].in_([Operation.INSERT, Operation.DELETE]),
                    any_of(*(column.is_not(None) for column in new)),
                ),
                and_(
                    roles["operation"] == Operation.UPDATE,
                    number_before.is_not(None),
                    any_of(*(differs(one, other) for one, other in zip(new, old, strict=True))),
                ),
            )
        )
        if (identities := _identities(model)) is not None:
            discriminator, values = identities
            here = {live: now[base].c[old.key] for live, old in base.columns}
            statement = statement.where(moved(discriminator, here).in_(values))
        given = self.parameters
        if "ids" in given:
            statement = statement.where(_has_id(ids, self.parameters))
        if "users" in given:
            statement = statement.where(
                is_among(roles["changed_by"], bindparam("users", type_=roles["changed_by"].type, expanding=True))
            )
        if "changeset" in given:
            statement = statement.where(is_of_changeset(base, now[base]))
        if "since" in given:
            statement = statement.where(roles["valid_from"] >= bindparam("since"))
        if "until" in given:
            statement = statement.where(roles["valid_from"] <= bindparam("until"))
        if "limit" in given:
            statement = statement.limit(bindparam("limit")).offset(bindparam("offset"))
        return statement

    def changes(self, session: Session, **options: Any) -> Generator[FieldChange]:
        """Yield the field changes from ``offset`` to ``offset + limit``."""
        with closing(self._all_changes(session, options)) as changes:
            yield from islice(changes, self.offset, self.end)

    def _all_changes(self, session: Session, options: Mapping[str, Any]) -> Generator[FieldChange]:
        label, names, equalities = self.model.label, [name for name, _ in self.fields], equalities_of(self.fields)
        ids = len(_ROLES)  # the place of the resource id, after our columns
        new = ids + len(self.ids)
        old = new + len(names)
        with closing(_rows(session, self.model, self.statement, self.parameters, options)) as rows:
            for row, row_before in self._with_the_one_before(rows):
                if row_before is not row:
                    before = None if row_before is None else row_before[new:old]
                else:
                    before = None if row[-1] is None else row[old:-1]
                found = _changes_in_row(label, names, equalities, row[ids:new], row, before, row[new:old])
                yield from reversed(list(found)) if self.newest_first else found

    def _with_the_one_before(self, rows: Iterable[Row[Any]]) -> Iterator[tuple[Row[Any], Row[Any] | None]]:
        """Yield each row with the one that has the version before it: a row of its own, itself, or none."""
        if self.is_wide:
            last: Row[Any] | None = None
            for told in rows:
                is_changed = told[-1] == told[0]
                if is_changed:
                    yield told, last
                last = None if is_changed else told
            return
        if not self.of_one_row:
            yield from ((row, row) for row in rows)
            return
        neighbours = pairwise(chain(rows, (None,)) if self.newest_first else chain((None,), rows))
        for one, other in neighbours:
            row, before = (one, other) if self.newest_first else (other, one)
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
    """Make a field change in half the time that a frozen dataclass takes: there is one for every line of a report."""
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
    """Yield the field changes of a row that begins with our columns, in the order of ``_ROLES``."""
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
    fields = sorted(model.reported(), key=itemgetter(0))
    if chosen is None:
        return tuple(fields)
    names = {chosen} if isinstance(chosen, str) else set(chosen)
    known = {name for name, _ in fields}
    if unknown := names - known:
        raise QueryError(
            f"{model.mapper.class_.__name__} has no tracked field {', '.join(sorted(map(repr, unknown)))}; "
            f"it has {', '.join(sorted(known))}."
        )
    return tuple((name, column) for name, column in fields if name in names)


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
    return mapper.polymorphic_on, [each.mapper.polymorphic_identity for each in model.family()]


def _date_range(dates: tuple[datetime | None, datetime | None] | None) -> dict[str, datetime]:
    """Return the parameters ``since`` and ``until`` of a date range, as far as it has them."""
    if dates is None:
        return {}
    try:
        start, end = dates
    except (TypeError, ValueError):
        raise QueryError(f"filter_date_range is {dates!r}; give (from, to), either may be None.", dates) from None
    return checked_range("filter_date_range", start, end)


def ids_listed(value: Any, *, composite: bool = False) -> list[Any]:
    """Return one value or several as a list; text is one, and a tuple is one composite id."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or (composite and isinstance(value, tuple)):
        return [value]
    return list(value)


# --- ids --------------------------------------------------------------------------------------------------------


def ids_given(columns: Sequence[ColumnElement[Any]], ids: Iterable[Any]) -> dict[str, list[Any]]:
    """Return the parameter of :func:`_has_id`: the ids, as far as they are of the columns' types.

    :raises QueryError: one is an object of a mapped class
    """
    matching: list[Any] = []
    for value in ids:
        if isinstance(inspect(value, raiseerr=False), InstanceState):
            raise QueryError(f"{value!r} is an object, and no id; give its key.", value)
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if len(values) == len(columns):
            with suppress(TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
                key = tuple(_converted(part, column.type) for part, column in zip(values, columns, strict=True))
                matching.append(key if len(columns) > 1 else key[0])
    return {"ids": matching}


def _has_id(columns: Sequence[ColumnElement[Any]], given: Mapping[str, Any]) -> ColumnElement[bool]:
    """Return the condition that the columns have one of the ids."""
    if are_bound_in_sql(columns):
        return one_of(columns, [key if len(columns) > 1 else (key,) for key in given["ids"]])
    # The widest integer, so that an id that its column cannot hold is compared like any other, and matches nothing.
    types = [BigInteger() if isinstance(column.type, Integer) else column.type for column in columns]
    if len(columns) == 1:
        return is_among(columns[0], bindparam("ids", type_=types[0], expanding=True))
    return tuple_(*columns, types=types).in_(bindparam("ids", expanding=True))


def _converted(value: Any, type_: TypeEngine[Any]) -> Any:
    """Return an id as a value of a key column's Python type.

    :raises ValueError: it cannot be one (or another error of the type's own)
    """
    if isinstance(type_, TypeDecorator):
        return _accepted(value, type_)
    if isinstance(type_, Uuid):
        found = value if isinstance(value, UUID) else UUID(hex=_text(value))
        return found if type_.as_uuid else str(found)
    wanted = _python_type_of(type_)
    if wanted is None:
        return value
    if isinstance(value, bool) != (wanted is bool):
        raise ValueError(value)
    if wanted is int:
        return _whole_number(value, type_)
    if wanted is str:
        return _text(str(value) if isinstance(value, (int, UUID)) else value)
    if not isinstance(value, wanted):
        value = _FROM_TEXT[wanted](str(value) if isinstance(value, int) else _text(value))
    return value


def _accepted(value: Any, type_: TypeDecorator[Any]) -> Any:
    """Return an id as a value that a user's own type takes: as it is, or else converted for the type below."""
    below = type_.impl_instance
    taken = _python_type_of(below)
    try:
        bound = type_.process_bind_param(value, _ANY_DIALECT)
        if taken is None or isinstance(bound, taken):
            return value
    except NotImplementedError:
        own = _python_type_of(type_)
        is_own = own is not None and own is not taken and isinstance(value, own)  # an Interval
        return value if is_own or type_._has_bind_expression else _converted(value, below)
    except (TypeError, ValueError, AttributeError):
        pass
    value = _converted(value, below)
    type_.process_bind_param(value, _ANY_DIALECT)
    return value


def _python_type_of(type_: TypeEngine[Any]) -> type[Any] | None:
    try:
        return type_.python_type
    except NotImplementedError:  # SQLAlchemy 2.0 asks no type below
        return None


def _whole_number(value: Any, type_: TypeEngine[Any]) -> int:
    number = int(value) if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value) else value
    is_unsigned = any(getattr(each, "unsigned", False) for each in (type_, *type_._variant_mapping.values()))
    if not isinstance(number, int) or not -(1 << 63) <= number < 1 << (64 if is_unsigned else 63):
        raise ValueError(value)
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(value)
    value.encode()
    return value


# --- running them -----------------------------------------------------------------------------------------------


def _built_once(model: TrackedModel, shape: tuple[Any, ...], build: Callable[[], Select[Any]]) -> Select[Any]:
    """Return the statement of a shape: building one takes as long as running it."""
    if are_bound_in_sql(model.root.table.key):  # and it has the ids
        return build()
    cache, key = model.root.table.cache, (*model.family(), *shape)
    statement: Select[Any] | None = cache.get(key)
    if statement is None:
        statement = cache[key] = build().execution_options(**OURS)
    return statement


def _rows(
    session: Session,
    model: TrackedModel,
    statement: Select[Any],
    parameters: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Generator[Row[Any]]:
    """Yield the rows of a statement; if it has a limit and they don't suffice, those that follow.

    They suffice unless Python finds values equal that the database tells apart, such as ``{"a": 1, "b": 2}`` and
    ``{"b": 2, "a": 1}``.
    """
    session._autoflush()
    parameters, where = dict(parameters), where_rows_are(session, model.mapper)
    count = size = parameters.get("limit", inf)
    while count == size:
        count = 0
        with explained(table for each in model.family() for table in each.chain):
            result = session.execute(statement, parameters, bind_arguments=where, execution_options=options)
        with closing(result):
            for batch in result.partitions(_BATCH):
                count += len(batch)
                yield from batch
        parameters["offset"] = parameters.get("offset", 0) + count
