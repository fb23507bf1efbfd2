"""What differs between two states? Of one row, or of all rows of a table.

Two states of a table are compared by the versions that began between them: only these rows can differ. The version
before the first of them is the old state of a row, and the last of them is the new one, so that the cost is that of the
rows that were written between the two instants, however many there are and however long their histories are.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Dialect,
    FromClause,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    select,
    union,
)
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, class_mapper, scoped_session, with_polymorphic

from sqlaudit.arguments import When, checked_when
from sqlaudit.asynchronous import also_async, also_async_iterator
from sqlaudit.changes import Equality, Operation, Page, RowDiff, equalities_of
from sqlaudit.changes import diff as diff_of
from sqlaudit.erased import erased_fields
from sqlaudit.exceptions import QueryError
from sqlaudit.past.bisection import version_at
from sqlaudit.period import EPOCH, TICK, UTCDateTime
from sqlaudit.retrieval.change_reader import BATCH, aliases, cached_statement, identities, rows_of
from sqlaudit.retrieval.changesets import instant_of_changeset
from sqlaudit.retrieval.cursors import checked_size, digest_of, key_cursor, key_in
from sqlaudit.retrieval.field_changes import versions_of
from sqlaudit.retrieval.ids import converted_ids, id_parameters, is_id, one_id
from sqlaudit.retrieval.restricting import is_restricted
from sqlaudit.sql.keys import bound, raw_columns
from sqlaudit.sql.ranges import is_beside, order_of
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.history import (
    Version,
    erased_fields_of,
    history_class_of,
    rebased_on_history,
    stored_values,
    version_info,
)
from sqlaudit.tracking.horizons import refuse_pruned_in
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session

_AnySession = Session | scoped_session[Any]
_NUMBERS: Final = 1 << 31
"""The number after the greatest one that a version may have."""
_GROWTH: Final = 4
_ANY_DIALECT: Final = DefaultDialect()
_NO_OFFSET: Final[ColumnElement[int]] = literal_column("0")
_ONE: Final[ColumnElement[int]] = literal_column("1")
_AHEAD: Final = 2_000
"""The versions that a page reads by their keys."""


# --- one row ----------------------------------------------------------------------------------------------------


@also_async
def diff(
    session: _AnySession,
    model_class: type[Any] | Table,
    resource_id: Any,
    a: When | int | Version,
    b: When | int | Version,
) -> RowDiff:
    """Return what differs between two states of a row.

    .. code-block:: python

        diff(session, Ticket, 7, 2, 5).fields  # {"status": ("open", "closed")}

    A state is given by a version or its number; or by an aware datetime, a :class:`Mark` or a changeset id, for the
    state right after that transaction. A row that did not exist, was deleted, or was of another class, has no fields.
    Before its first version, a row was what this version says, if it is a baseline. One to three statements for each
    state, and one more for a subclass.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model or an association table
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :param a: the old state
    :param b: the new state; it may be earlier than the old one
    :raises TrackingError: the model is not tracked
    :raises QueryError: the row has no history or no such version, or its state is unknown, because versions have been
        removed
    """
    session, model = checked_session(session), model_of(model_class)
    fields = model.reported_fields()
    names = [name for name, _ in fields]
    states = [state_of(session, model, model_class, resource_id, when) for when in (a, b)]
    old, new = (None if version is None else stored_values(version, names) for version in states)
    was_erased, is_erased = (() if version is None else erased_fields_of(version) for version in states)
    operation = _operation(old is not None, new is not None)
    changed = _changed(names, operation, old, new, equalities_of(fields), (was_erased, is_erased))
    return RowDiff(
        resource_type=model.label,
        resource_id=converted_ids(model.root.table.history_key, [resource_id])["ids"][0],
        operation=operation if changed else None,
        fields=changed,
    )


def _operation(was_there: bool, is_there: bool) -> Operation | None:
    if not was_there:
        return Operation.INSERT if is_there else None
    return Operation.UPDATE if is_there else Operation.DELETE


def _changed(
    names: Sequence[str],
    operation: Operation | None,
    old: Sequence[Any] | None,
    new: Sequence[Any] | None,
    equalities: Mapping[str, Equality],
    erased: tuple[Collection[str], Collection[str]],
) -> dict[str, tuple[Any, Any]]:
    values = old if operation is Operation.DELETE else new
    if operation is None or values is None:
        return {}
    if operation is Operation.DELETE:
        erased = (), erased[0]
    return {name: (before, after) for name, before, after in diff_of(names, operation, old, values, equalities, erased)}


def state_of(session: Session, model: TrackedModel, source: Any, resource_id: Any, when: Any) -> Any:
    """Return the version that was true, or ``None`` if the row did not exist or was of another class.

    :raises QueryError: the row has no history or no such version, or its state is unknown
    """
    version = _version_of_state(session, model, source, resource_id, when)
    is_there = version is not None and version_info(version)["operation"] is not Operation.DELETE
    return version if is_there and version.__sqlaudit_model__ in model.family() else None


def _version_of_state(session: Session, model: TrackedModel, source: Any, resource_id: Any, when: Any) -> Any:
    """Return the version that was true, of any class, or a tombstone; ``None`` if the row did not exist yet.

    :raises QueryError: the row has no history or no such version, or its state is unknown
    """
    name = f"{model.name} {resource_id!r}"
    ids = converted_ids(model.root.table.history_key, [resource_id])
    at = when
    if isinstance(when, Version):
        of_model = when.__sqlaudit_model__.root is model.root
        if not of_model or _key_of(when) != _key_of(_first(session, model, source, resource_id)):
            raise QueryError(f"{when!r} is not a version of {name}. Give one of versions_of(…).", when)
        at = version_info(when)["version"]
    is_number = isinstance(at, int) and not isinstance(at, bool)
    if not is_number:
        at = _instant(session, when)
        refuse_pruned_in(session, [model.root.table], at)
    version = _version(session, model, ids, at) if ids["ids"] else None
    first = None
    if version is None or version.__sqlaudit_model__ not in model.family():  # has it a history as a row of the model?
        first = _first(session, model, source, resource_id)
    if is_number:
        if version is None:
            raise QueryError(f"{name} has no version {at}. Give the number of one of versions_of(…).", when)
        return version
    if version is None or version_info(version)["timestamp"] > at:  # the first one, if none has begun
        first = first or _first(session, model, source, resource_id)
        operation = version_info(first)["operation"]
        if operation is Operation.INSERT:
            return None
        if operation is Operation.BASELINE:
            return first
        raise _unknown_error(name, at)
    is_tombstone = version_info(version)["operation"] is Operation.DELETE
    if not is_tombstone and getattr(version, model.root.table.names.valid_to) <= at:
        raise _unknown_error(name, at)
    return version


def _first(session: Session, model: TrackedModel, source: Any, resource_id: Any) -> Any:
    """Return the first version of a row, of any class.

    :raises QueryError: the row has no history as a row of the model
    """
    first = next(iter(versions_of(session, source, resource_id, limit=1)), None)
    if first is None:
        raise QueryError(
            f"{model.name} {resource_id!r} has no history. Check the key, or run backfill() for rows without history.",
            source,
        )
    if model.root is not model:  # the row may have been of another class before
        first = versions_of(session, model.root.mapper.class_, resource_id, limit=1)[0]
    return first


def _key_of(version: Any) -> Any:
    return tuple(getattr(version, name) for name in version.__sqlaudit_model__.root.key_names)


def _unknown_error(name: str, instant: datetime) -> QueryError:
    return QueryError(
        f"What {name} was as of {instant.isoformat()} is unknown, because versions have been removed. Compare other "
        "states: versions_of(…) gives those that are left.",
        instant,
    )


def _instant(session: Session, when: Any) -> datetime:
    if isinstance(when, bool):
        raise QueryError(f"{when!r} names no state. Give a version, its number, an instant or a changeset id.", when)
    wanted = checked_when(when)
    return wanted if isinstance(wanted, datetime) else instant_of_changeset(session, wanted)


def _version(session: Session, model: TrackedModel, ids: dict[str, list[Any]], at: int | datetime) -> Any:
    """Return the version of a number, or the last one that began no later than an instant."""
    root, table, key = model.root, model.root.table, one_id(ids)
    if isinstance(at, int) and not 0 < at < _NUMBERS:
        return None

    def build() -> Select[Any]:
        statement: Select[Any] = select(with_polymorphic(class_mapper(history_class_of(root)), "*"))
        number: ColumnElement[int] = bindparam("at", type_=Integer())
        if not isinstance(at, int):
            number = version_at(table, id_parameters(table.history_key), bindparam("at", type_=UTCDateTime()))
        return statement.where(is_id(table.history_key, key), table.version == number)

    statement = cached_statement(root, ("state", isinstance(at, int)), build)
    with closing(rows_of(session, root, statement, {**key, "at": at}, {})) as rows:
        return next((version for (version,) in rows), None)


# --- all rows ---------------------------------------------------------------------------------------------------


@also_async_iterator
def compare(
    session: _AnySession, models: type[Any] | Table | Collection[type[Any] | Table], a: When, b: When
) -> Generator[RowDiff]:
    """Yield the rows that differ between two instants, each once: what was inserted, updated and deleted between them.

    .. code-block:: python

        before = mark_named(session, "before the import")
        for row in compare(session, [Ticket, Tag], before, datetime.now(UTC)):
            print(row.operation, row.resource_type, row.resource_id, row.fields)

    One statement for each model, in constant memory; the rows of a model are in the order of their keys. What was
    inserted and deleted again between the two instants is left out, and so is a row that has its old values again. A
    row that is older than its history was what its baseline says. For a subclass, a row that becomes one of it is
    inserted, and a row that becomes one of another class is deleted.

    :param session: a session; with an ``AsyncSession``, iterate by ``async for``
    :param models: tracked models or association tables; one or several
    :param a: the earlier instant: an aware datetime, a :class:`Mark` or a changeset id, for the state right after that
        transaction
    :param b: the later instant
    :raises TrackingError: a model is not tracked
    :raises QueryError: an argument is no instant, or ``b`` is earlier than ``a``
    :raises PrunedError: the history was pruned, and ``a`` is before its horizon
    """
    session, chosen, begin, end = _checked(session, models, a, b)
    return _compare(session, chosen, begin, end)


@also_async
def compare_page(
    session: _AnySession,
    models: type[Any] | Table | Collection[type[Any] | Table],
    a: When,
    b: When,
    *,
    after: str | None = None,
    size: int = 50,
    count: bool = False,
) -> Page[RowDiff]:
    """Return a page of the rows that differ between two instants, and the cursor of the next page.

    .. code-block:: python

        page = compare_page(session, Ticket, before, now)
        page = compare_page(session, Ticket, before, now, after=page.next)

    The pages have what :func:`compare` yields, in the same order. The cursor is the key of the last row of its page. A
    page looks for its rows among the next two thousand versions by key and, if they do not suffice, among all versions
    that began between the instants. It executes up to three statements for each model that it comes to; a few more if
    many rows were written that do not differ.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param models: tracked models or association tables; one or several
    :param a: the earlier instant: an aware datetime, a :class:`Mark` or a changeset id, for the state right after that
        transaction
    :param b: the later instant. Give the same for all pages, not the time of each call
    :param after: the ``next`` of the page before; ``None`` for the first page
    :param size: the number of rows of a page
    :param count: also count the rows of all pages, which reads all of them
    :raises TrackingError: a model is not tracked
    :raises QueryError: an argument is no instant, ``b`` is earlier than ``a``, ``size`` is less than 1, ``after`` is
        not a cursor of this query, or the session is a ``ShardedSession``
    :raises PrunedError: the history was pruned, and ``a`` is before its horizon
    """
    size = checked_size(size)
    session, chosen, begin, end = _checked(session, models, a, b)
    if isinstance(session, ShardedSession):
        raise QueryError(
            "The rows of several shards have no common order, so they have no pages. Give a session of one shard.",
            session,
        )
    of_models = [[model.root.table.live.key, model.qualname] for model in chosen]
    digest = digest_of("compare", of_models, [(at - EPOCH) // TICK for at in (begin, end)])
    lengths = [len(model.root.table.key) for model in chosen]
    first, key = (0, None) if after is None else key_in(after, digest, lengths)
    found: list[tuple[RowDiff, int, Sequence[Any]]] = []
    for place, model in enumerate(chosen[first:], first):
        rows = _rows_after(session, model, begin, end, key if place == first else None, size + 1 - len(found))
        found += [(row, place, row_key) for row, row_key in rows]
        if len(found) > size:
            break
    shown = found[:size]
    return Page(
        items=[row for row, _, _ in shown],
        next=key_cursor(digest, *shown[-1][1:]) if len(found) > size else None,
        total=sum(1 for _ in _compare(session, chosen, begin, end)) if count else None,
    )


def _checked(
    session: _AnySession, models: type[Any] | Table | Collection[type[Any] | Table], a: When, b: When
) -> tuple[Session, list[TrackedModel], datetime, datetime]:
    session = checked_session(session)
    chosen = [model_of(source) for source in ([models] if isinstance(models, (type, Table)) else models)]
    begin, end = _instant(session, a), _instant(session, b)
    if begin > end:
        raise QueryError(f"{end} is before {begin}. Give the earlier instant first.", (a, b))
    refuse_pruned_in(session, [model.root.table for model in chosen], begin)
    return session, chosen, begin, end


def _compare(session: Session, models: Iterable[TrackedModel], begin: datetime, end: datetime) -> Generator[RowDiff]:
    for model in models:
        for row, _ in _written_rows(session, model, {"begin": begin, "end": end}):
            if row is not None:
                yield row


def _rows_after(
    session: Session, model: TrackedModel, begin: datetime, end: datetime, key: Sequence[Any] | None, size: int
) -> list[tuple[RowDiff, Sequence[Any]]]:
    """Return the first rows that differ, in the order of their keys, each with its raw key.

    They are looked for among the next versions by key, where they are if many rows were written; and if they do not
    suffice, among all versions between the instants.

    :param key: the raw key after which they begin; ``None`` for the first of all
    """
    found: list[tuple[RowDiff, Sequence[Any]]] = []
    ahead = _key_ahead(session, model, key)
    ranges = [(_named("after", key), _named("until", ahead))]
    if ahead is not None:
        ranges.append((_named("from", ahead), {}))
    for start, stop in ranges:
        limit = size - len(found)
        while True:
            count, parameters = 0, {"begin": begin, "end": end, "most": limit, **start, **stop}
            with closing(_written_rows(session, model, parameters)) as rows:
                for row, key in rows:
                    count += 1
                    if row is not None:
                        found.append((row, key))
                    if len(found) == size:
                        return found
            if count < limit:
                break
            start, limit = _named("after", key), limit * _GROWTH  # many rows were written that do not differ
    return found


def _named(name: str, key: Sequence[Any] | None) -> dict[str, Any]:
    return {f"{name}_{place}": part for place, part in enumerate(key or ())}


def _key_ahead(session: Session, model: TrackedModel, key: Sequence[Any] | None) -> Sequence[Any] | None:
    """Return the raw key of the version that is two thousand versions ahead; ``None`` if there are fewer.

    It is ``None``, too, where the primary key does not find that version.
    """
    table, dialect = model.root.table, _dialect_of(session, model)
    order = order_of(table.history_key, dialect)
    if is_restricted(session) or any(one is not other for one, other in zip(order, table.history_key, strict=True)):
        return None
    after = _named("after", key)

    def build() -> Select[Any]:
        statement = select(*raw_columns(table.history_key, dialect)).order_by(*order, table.version)
        return _beside(statement, table.history_key, dialect, after).offset(bindparam("ahead")).limit(_ONE)

    statement = cached_statement(model, ("ahead", dialect.name, len(after)), build)
    with closing(rows_of(session, model, statement, {"ahead": _AHEAD, **after}, {})) as rows:
        return next(rows, None)


def _beside(
    statement: Select[Any], key: Sequence[ColumnElement[Any]], dialect: Dialect, parameters: Collection[str]
) -> Select[Any]:
    """Let a statement read only the rows after, from, or before the raw keys that are among its parameters."""
    for name, operator in (("after", ">"), ("from", ">="), ("until", "<")):
        if f"{name}_0" in parameters:
            raw = raw_columns(key, dialect)
            values = [bound(column, name=f"{name}_{place}") for place, column in enumerate(raw)]
            statement = statement.where(is_beside(key, operator, values, dialect))
    return statement


def _dialect_of(session: Session, model: TrackedModel) -> Dialect:
    if isinstance(session, ShardedSession):  # it may choose a shard by an object alone
        return _ANY_DIALECT
    return session.get_bind(**bind_arguments_for(session, model.mapper)).dialect


class _Facts(NamedTuple):
    """What a row of the statement says of a version, after the key and before the id and the values.

    :ivar then: the number of the version that was true at the first instant, if there is one
    :ivar last: the number of the last version that began between the instants
    :ivar is_new: 1 if the first version that began between the instants is an insert
    """

    then: int
    last: int
    is_new: int
    version: int
    operation: Operation
    valid_to: datetime
    discriminator: Any
    extra: Any

    def is_in(self, of_family: tuple[Any, list[Any]] | None) -> bool:
        """Return whether the row exists with this version, as a row of the model: it may be of another class."""
        is_of_model = of_family is None or self.discriminator in of_family[1]
        return is_of_model and self.operation is not Operation.DELETE


def _written_rows(
    session: Session, model: TrackedModel, parameters: Mapping[str, Any]
) -> Generator[tuple[RowDiff | None, Sequence[Any]]]:
    """Yield how each row that was written between two instants differs, ``None`` if it does not, and its raw key."""
    fields = tuple(model.reported_fields())
    names, equalities, of_family = [name for name, _ in fields], equalities_of(fields), identities(model)
    dialect = _dialect_of(session, model)
    shape = ("compare", fields, dialect.name, frozenset(parameters))
    statement = cached_statement(model, shape, lambda: _versions_between(model, fields, dialect, parameters))
    key = len(model.root.table.key)
    ids = key + len(_Facts._fields)
    values = ids + len(model.resource_id_columns())
    with closing(rows_of(session, model, statement, parameters, {"yield_per": BATCH})) as rows:
        then: _Facts | None = None
        row_then: Sequence[Any] | None = None
        for row in rows:
            now = _Facts(*row[key:ids])
            if now.version != now.last:
                then, row_then = now, row
                continue
            if now.version == now.then:
                then, row_then = now, row
            was_there, is_there = not now.is_new and (then is None or then.is_in(of_family)), now.is_in(of_family)
            has_end = now.operation is not Operation.DELETE and now.valid_to <= parameters["end"]
            is_unknown = (then is None and not now.is_new) or has_end
            old = None if row_then is None else row_then[values:]
            operation = _operation(was_there, is_there)
            erased = erased_fields(None if then is None else then.extra, fields), erased_fields(now.extra, fields)
            changed = {} if is_unknown else _changed(names, operation, old, row[values:], equalities, erased)
            difference = None
            if changed or (is_unknown and operation is not None):
                resource_id = tuple(row[ids:values])
                difference = RowDiff(
                    resource_type=model.label,
                    resource_id=resource_id if len(resource_id) > 1 else resource_id[0],
                    operation=operation,
                    fields=changed,
                    is_unknown=is_unknown,
                )
            yield difference, row[:key]
            then = row_then = None


def _versions_between(
    model: TrackedModel, fields: Iterable[tuple[str, Column[Any]]], dialect: Dialect, parameters: Collection[str]
) -> Select[Any]:
    """Select the first and the last state of each row that was written between two instants, in the order of keys.

    :param parameters: those of the statement. ``most`` limits the number of rows, which are after the raw key of
        ``after_0`` and so on, from that of ``from_0``, or before that of ``until_0``. These are read by their keys
    """
    base = model.root.table
    tables = list(dict.fromkeys(table for submodel in model.family() for table in submodel.chain))
    written = HistoryAlias(base)
    is_by_key = "until_0" in parameters
    if "most" in parameters:
        # Without OFFSET 0, a database that wants few rows may go through the history by its key until it has them, and
        # read all of it if only the newest rows were written; or look few rows up by instants.
        inner = select(*written.key, written.version, written.operation, written.valid_from).offset(_NO_OFFSET)
        inner = _beside(inner if is_by_key else inner.where(_is_between(written)), written.key, dialect, parameters)
        written = HistoryAlias(base, inner.subquery("written"))
    is_baseline, is_insert = (written.operation == each for each in (Operation.BASELINE, Operation.INSERT))
    inserted = func.min(case((is_insert, written.version)))
    is_new = case((inserted == func.min(written.version), literal_column("1")), else_=literal_column("0"))
    touched = select(
        *(column.label(f"key_{place}") for place, column in enumerate(written.key)),
        func.min(case((is_baseline, written.version), else_=written.version - 1)).label("then"),
        func.max(written.version).label("last"),
        is_new.cast(Integer).label("is_new"),
    ).group_by(*written.key)
    if "most" in parameters:
        touched = touched.order_by(*order_of(written.key, dialect)).limit(bindparam("most"))
    if is_by_key or "most" not in parameters:
        touched = touched.where(_is_between(written))
    *key, then, last, new = touched.cte("touched").c
    numbers = union(
        select(*key, then, last, new, then.label("number")), select(*key, then, last, new, last.label("number"))
    ).subquery("states")
    *key, then, last, new, number = numbers.c
    old = aliases(tables, "version")
    version = old[base.history]
    source: FromClause = numbers.join(version.clause, and_(version.has_key(key), version.version == number))
    for table in tables[1:]:
        other = old[table.history]
        source = source.join(other.clause, other.belongs_to(version), isouter=True)
    of_family = identities(model)
    discriminator = null() if of_family is None else rebased_on_history(of_family[0], dict(version.columns))
    columns = [*model.resource_id_columns(), *(column for _, column in fields)]
    stored = [old[column.table].clause.c[column.key] for column in columns]
    facts = [then, last, new, version.version, version.operation, version.valid_to]
    facts += [discriminator.label("discriminator"), version.role("extra")]
    raw_key = raw_columns(version.key, dialect)
    order = [*order_of(version.key, dialect), version.version]
    return select(*raw_key, *facts, *stored).select_from(source).order_by(*order)


def _is_between(version: HistoryAlias) -> ColumnElement[bool]:
    return and_(version.valid_from > bindparam("begin"), version.valid_from <= bindparam("end"))
