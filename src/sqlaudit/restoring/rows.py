"""What does a row hold now, and what did it hold then?

The functions read whole rows of a hierarchy of models, and links, in sets. They read values, not objects: nothing
enters the session, and the result is what the database holds, even where the session has an older state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Dialect,
    FromClause,
    Select,
    and_,
    exists,
    false,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.types import TypeEngine

from sqlaudit.changes import Operation
from sqlaudit.erased import ERASED, erased_columns
from sqlaudit.period import was_valid
from sqlaudit.recording.cascades import take_write_lock
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.comparing import all_equal, may_be_respelt
from sqlaudit.sql.fitting import hides_null
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.old_values import unrounded_column
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias, joined_versions
from sqlaudit.tracking.catalogue import can_lock_many
from sqlaudit.tracking.history import rebased_on_history
from sqlaudit.tracking.horizons import is_pruned_in, refuse_pruned_in
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import TrackedModel, attribute_of, tracked_model
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.tables import TrackedTable, prepare_connection

T = TypeVar("T")
_ROLES: Final = ("version", "valid_from", "operation")
_FURTHER_ROLES: Final = ("valid_to", "changed_by", "changeset_id")
"""The audit columns that :class:`Row` has, in its order. Only :func:`rows_since` reads the further ones."""
Columns = Sequence[Column[Any]]
"""Columns of live tables."""
Link = tuple[Any, ...]
"""The values of those columns of an association table that refer to its two ends."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """What history stores in place of a value. Of a live row, it is what history would store of it now."""

    stored: Any


@dataclass(frozen=True, slots=True)
class Row:
    """The stored values of one object.

    :param key: the key in its current spelling, see :func:`keys_now`
    :param values: attribute → value. ``None`` is NULL; of a redacted value the row has a :class:`Redacted`, also if it
        is the live row, whose value is not read. ``JSON.NULL`` stands for a value that only Python reads as
        ``None``: the null of JSON, or a value of a user's type
    :param unmapped: live column → value, for columns that the class maps to no attribute
    :param version: the number of the version that the values come from; ``None`` for the live row
    :param origins: for fields that :func:`with_fields` took from other versions, the numbers of these
    """

    model: TrackedModel
    key: Key
    values: Mapping[str, Any]
    unmapped: Mapping[Column[Any], Any]
    version: int | None = None
    valid_from: datetime | None = None
    operation: Operation | None = None
    valid_to: datetime | None = None
    changed_by: str | None = None
    changeset_id: UUID | None = None
    origins: Mapping[Any, int | None] | None = None

    @property
    def mapper(self) -> Mapper[Any]:
        return self.model.mapper

    def version_of(self, name: str) -> int | None:
        """Return the number of the version that the value of a field comes from; ``None`` for the live row."""
        return self.version if self.origins is None else self.origins.get(name, self.version)

    def comes_whole(self, name: str) -> bool:
        """Return whether a field has its value because the whole row has those of a version."""
        return self.version is not None and (self.origins is None or name not in self.origins)

    def get(self, columns: Iterable[Any]) -> Key | None:
        """Return the values of live columns; ``None`` if one is NULL or not stored."""
        return values_of(self.mapper, self.values, columns)


def with_fields(row: Row, fields: Mapping[Any, Row]) -> Row:
    """Return a row with some fields of other versions of it. Fields that its class does not have are left out.

    :param fields: attribute, or live column that no attribute is mapped to → the version that has its value
    """
    values, unmapped = dict(row.values), dict(row.unmapped)
    for field, version in fields.items():
        if field in values:
            values[field] = version.values[field]
        elif field in unmapped:
            unmapped[field] = version.unmapped[field]
    return replace(
        row, values=values, unmapped=unmapped, origins={field: version.version for field, version in fields.items()}
    )


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A link as it is now, or was at an instant.

    :param values: the values of :func:`further_columns`
    :param twin: another row of the same link, in a table that has a key of its own
    """

    key: Key
    values: Mapping[Column[Any], Any]
    twin: LinkRow | None = None

    def with_key(self, key: Key) -> LinkRow:
        """Return the row of this link that has a key, or one that has another key."""
        row: LinkRow | None = self
        while row is not None and row.key != key:
            row = row.twin
        return row or self


@dataclass(frozen=True, slots=True)
class LinkVersion:
    """A version of a link; for the attributes, see :class:`Row`.

    :param values: the values of :func:`further_columns`
    """

    link: Link
    values: Mapping[Column[Any], Any]
    version: int
    valid_from: datetime
    operation: Operation
    valid_to: datetime
    changed_by: str | None
    changeset_id: UUID


def values_of(mapper: Mapper[Any], values: Mapping[str, Any], columns: Iterable[Any]) -> Key | None:
    """Look up the values of columns by their attributes; return ``None`` if one is NULL, redacted or unknown."""
    names = [attribute_of(mapper, column) for column in columns]
    looked_up = tuple([values.get(name) if name else None for name in names])
    return (
        None
        if any(value is None or value is JSON.NULL or isinstance(value, Redacted) for value in looked_up)
        else looked_up
    )


def display_key(key: Key) -> Any:
    """Return a key as users see it: a tuple only if it is composite."""
    return key[0] if len(key) == 1 else key


def keys_now(table: TrackedTable, history: FromClause | None = None) -> list[ColumnElement[Any]]:
    """Return the key columns of versions in one spelling: the live row's, or the newest version's if it is deleted.

    If a key changes from 'Ab' to 'aB' and the collation considers both equal, the row keeps its identity and its
    versions their numbers. In Python the keys differ, so the versions of a row need one common spelling.

    :param history: the FROM clause of the versions; by default, the history table
    """
    versions = table.history if history is None else history
    key: list[ColumnElement[Any]] = [versions.c[column.key] for column in table.history_key]
    if not any(may_be_respelt(column.type) for column in table.key):
        return key
    live, newest = table.live.alias(), HistoryAlias(table)
    of_live, of_newest = all_equal([live.c[column.key] for column in table.key], key), newest.has_key(key)
    order = newest.version.desc()
    return [
        func.coalesce(
            select(live.c[column.key]).where(of_live).limit(1).scalar_subquery(),
            select(old).where(of_newest).order_by(order).limit(1).scalar_subquery(),
        )
        for column, old in zip(table.key, newest.key, strict=True)
    ]


def read_by_value(values: Collection[Key], read: Callable[[Collection[Key]], Iterable[tuple[Key, T]]]) -> dict[Key, T]:
    """Return what a read finds for each value, even if the database spells the value differently.

    If the first read finds a different spelling, each value that it did not find is read alone.

    :param read: yields the database's spelling of a value, and what it finds for it
    """
    results = dict(read(values))
    if not results.keys() <= set(values):
        for value in [value for value in values if value not in results]:
            results.update((value, result) for _, result in read([value]))
    return {value: results[value] for value in values if value in results}


def is_written(column: Column[Any]) -> bool:
    """Return whether a column is written by statements, not by the database alone."""
    return column.computed is None and not (column.identity is not None and column.identity.always)


class Hierarchy:
    """The tables of a model and of its subclasses, which one SELECT reads by outer joins."""

    def __init__(self, root: TrackedModel) -> None:
        self.root = root
        family = root.family()
        for model in family:
            model.table.complete()
        self.tables = list(dict.fromkeys(table for model in family for table in model.chain))
        self.pairs = [pair for table in self.tables for pair in table.columns]
        self.old: dict[Column[Any], Column[Any]] = dict(self.pairs)
        self._recorded = [table.recorded(live) for table in self.tables for live, _ in table.columns]
        self._redacted = [place for place, (live, _) in enumerate(self.pairs) if self._recorded[place] is not live]
        self.discriminator = root.discriminator
        self._places = {old: place for place, (_, old) in enumerate(self.pairs)}
        self._key = [self._places[column] for column in root.table.history_key]
        keys = {live for table in self.tables for live in table.key}
        self._of_keys = {place for place, (live, _) in enumerate(self.pairs) if live in keys}
        self._hiding = [
            place for place, (live, _) in enumerate(self.pairs) if place not in self._of_keys and hides_null(live.type)
        ]
        self._names = {
            model: [(name, self._places[old]) for name, old in model.columns.items() if name in model.mapper.attrs]
            for model in family
        }
        self._unmapped = {
            model: [
                (live, self._places[old])
                for table in model.chain
                for live, old in table.columns
                if attribute_of(model.mapper, live) is None
            ]
            for model in family
        }

    @cached_property
    def live(self) -> Select[Any]:
        """The SELECT of the live rows."""
        base = self.root.table
        source: Any = base.live
        for table in self.tables[1:]:
            source = source.outerjoin(table.live, all_equal(table.key, base.key))
        return self._select(self._recorded, self.discriminator).select_from(source)

    @cached_property
    def versions(self) -> Select[Any]:
        """The SELECT of all versions."""
        base = self.root.table
        discriminator = self.discriminator
        if discriminator is not None:
            discriminator = rebased_on_history(discriminator, dict(base.columns))
        statement = self._select([old for _, old in self.pairs], discriminator)
        keys = [column.label(f"key{place}") for place, column in enumerate(keys_now(base))]
        statement = statement.add_columns(*keys, base.role("extra"), *map(base.role, _ROLES))
        return statement.select_from(joined_versions(self.tables, isouter=True))

    def _select(self, columns: Sequence[ColumnElement[Any]], discriminator: Any) -> Select[Any]:
        nulls = [columns[place].is_(None) for place in self._hiding]
        kind = [] if discriminator is None else [discriminator]
        read = [column if place in self._of_keys else unrounded_column(column) for place, column in enumerate(columns)]
        labelled = [column.label(f"c{place}") for place, column in enumerate((*read, *nulls, *kind))]
        return select(*labelled)

    def read(self, session: Session, statement: Select[Any], parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Execute :attr:`live` or :attr:`versions`, with further conditions, and return its rows."""
        with explaining_history_errors(self.tables):
            where = bind_arguments_for(session, self.root.table.mapper)
            if self._redacted:
                prepare_connection(session.connection(bind_arguments=dict(where)), self.tables)
            rows = session.execute(statement, parameters, execution_options=INTERNAL, bind_arguments=where)
            return [self._row(row) for row in rows]

    def _row(self, row: Sequence[Any]) -> Row:
        end = len(self.pairs)
        values = list(row[:end])
        for place, is_null in zip(self._hiding, row[end:], strict=False):
            if values[place] is None and not is_null:
                values[place] = JSON.NULL
        end += len(self._hiding)
        for place in self._redacted:
            if values[place] is not None:
                values[place] = Redacted(values[place])
        model = self.root
        if self.discriminator is not None:
            model = self._model(row[end], values)
            end += 1
        end_of_key = end + len(self._key)
        key = tuple(row[end:end_of_key]) or tuple([values[place] for place in self._key])
        erased = erased_columns(row[end_of_key]) if len(row) > end else ()
        if erased:
            values = [
                ERASED if old.name in erased else value for value, (_, old) in zip(values, self.pairs, strict=True)
            ]
        mapped = {name: values[place] for name, place in self._names[model]}
        unmapped = {column: values[place] for column, place in self._unmapped[model]}
        return Row(model, key, mapped, unmapped, *row[end_of_key + 1 :])

    def _model(self, identity: Any, values: Sequence[Any]) -> TrackedModel:
        """Return the model that the discriminator names, or the base model whose tables all have the row."""
        mapper = self.root.mapper.polymorphic_map.get(identity)
        model = (None if mapper is None else tracked_model(mapper)) or self.root
        while model.parent is not None and values[self._places[model.table.history_key[0]]] is None:
            model = model.parent
        return model


def stores_null(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Return whether a type is sure to store ``None`` as NULL: JSON may store its null, a user's type any value."""
    if type_._has_bind_expression:
        return False
    try:
        processor = type_.dialect_impl(dialect).bind_processor(dialect)
        return processor is None or processor(None) is None
    except Exception:
        return False


def with_row_locks(session: Session, statement: Select[Any], model: TrackedModel) -> Select[Any]:
    """Add FOR UPDATE to a SELECT of live rows, by key, as :func:`~sqlaudit.recording.cascades.lock_rows` locks them."""
    table, statement = model.root.table, statement.order_by(*model.root.table.key)
    return statement.with_for_update(of=table.live) if can_lock(session, table) else statement


def can_lock(session: Session, table: TrackedTable) -> bool:
    """Return whether one statement can lock many rows of a table. On SQLite, keep others from writing instead."""
    connection = session.connection(bind_arguments=bind_arguments_for(session, table.mapper))
    take_write_lock(connection, table)
    return can_lock_many(connection, table)


def hierarchy_of(model: TrackedModel) -> Hierarchy:
    """Return the hierarchy that a model belongs to."""
    root = model.root
    cache, key = root.table.cache, ("hierarchy", *root.family())
    hierarchy: Hierarchy | None = cache.get(key)
    if hierarchy is None:
        hierarchy = cache[key] = Hierarchy(root)
    return hierarchy


# --- rows -------------------------------------------------------------------------------------------------------


def rows_now(
    session: Session, model: TrackedModel, columns: Columns, values: Collection[Key], *, lock: bool = False
) -> list[Row]:
    """Return the live rows whose columns have one of the values: one statement per 1,000 values."""
    hierarchy = hierarchy_of(model)
    statement = with_row_locks(session, hierarchy.live, hierarchy.root) if lock else hierarchy.live
    return [row for chunk in chunks(values) for row in hierarchy.read(session, statement.where(one_of(columns, chunk)))]


def rows_at(
    session: Session, model: TrackedModel, columns: Columns, values: Collection[Key], instant: datetime
) -> list[Row]:
    """Return the rows whose columns had one of the values at an instant: one statement per 1,000 values.

    :raises PrunedError: the history has been pruned since
    """
    refuse_pruned_in(session, [model.root.table], instant)
    hierarchy, table = hierarchy_of(model), model.root.table
    statement = hierarchy.versions.where(was_valid(table.valid_from, table.valid_to, instant))
    old = [hierarchy.old[column] for column in columns]
    return [row for chunk in chunks(values) for row in hierarchy.read(session, statement.where(one_of(old, chunk)))]


def rows_of_versions(session: Session, model: TrackedModel, numbers: Mapping[Key, int]) -> list[Row]:
    """Return the rows of versions, given as key → version number: one statement per 1,000 versions."""
    hierarchy, table = hierarchy_of(model), model.root.table
    statement = hierarchy.versions
    columns = (*table.history_key, table.version)
    wanted = [(*key, number) for key, number in numbers.items()]
    return [row for chunk in chunks(wanted) for row in hierarchy.read(session, statement.where(one_of(columns, chunk)))]


def keys_inserted_after(session: Session, table: TrackedTable, keys: Collection[Key], instant: datetime) -> set[Key]:
    """Return the keys whose first version after an instant is an INSERT.

    A row that is older than its history is not among them, for its history begins with a baseline. Neither is a row
    whose preceding versions have been removed, unless :func:`prune` has removed them, which ended before its horizon.
    """
    version, earlier, before = HistoryAlias(table, table.history), HistoryAlias(table), HistoryAlias(table)
    is_known = true() if is_pruned_in(session, table) else false()
    statement = select(*keys_now(table)).where(
        version.operation == Operation.INSERT,
        version.valid_from > instant,
        or_(version.version == 1, is_known, exists().where(before.is_version_of(version, -1))),
        ~exists().where(earlier.has_key(version.key), earlier.version < version.version, earlier.valid_from > instant),
    )
    return set(rows_where(session, table, statement, table.history_key, keys))


def rows_where(
    session: Session, table: TrackedTable, statement: Select[Any], columns: Sequence[Any], values: Collection[Key]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a SELECT whose columns have one of the values: one statement per 1,000 values."""
    where = bind_arguments_for(session, table.mapper)
    for chunk in chunks(values):
        with explaining_history_errors([table]):
            limited = statement.where(one_of(columns, chunk))
            rows = session.execute(limited, execution_options=INTERNAL, bind_arguments=where).all()
        yield from (tuple(row) for row in rows)


# --- links ------------------------------------------------------------------------------------------------------


def links_now(
    session: Session, table: TrackedTable, columns: Columns, filter_columns: Columns, values: Collection[Key]
) -> dict[Link, LinkRow]:
    """Return the live links whose ``filter_columns`` have one of the values."""
    further = further_columns(table, columns)
    statement = select(*columns, *table.key, *map(unrounded_column, further))
    return _links(table, columns, further, rows_where(session, table, statement, filter_columns, values))


def _links(
    table: TrackedTable, columns: Columns, further: Columns, rows: Iterable[tuple[Any, ...]]
) -> dict[Link, LinkRow]:
    start = len(columns)
    end = start + len(table.key)
    links: dict[Link, LinkRow] = {}
    for row in rows:
        values = _values_of_link(further, row[end:])
        links[row[:start]] = LinkRow(row[start:end], values, links.get(row[:start]))
    return links


def _values_of_link(further: Columns, values: Sequence[Any]) -> dict[Any, Any]:
    """Return the values of further columns. If the ``extra`` of a version follows, it may name some as erased."""
    erased = erased_columns(values[-1]) if len(values) > len(further) else ()
    return {column: ERASED if column.name in erased else value for column, value in zip(further, values, strict=False)}


def further_columns(table: TrackedTable, columns: Columns) -> list[Column[Any]]:
    """Return the columns of an association table beside its key and the link's columns that statements write.

    Quiet ones are left out.
    """
    return [
        live
        for live, _ in table.columns
        if live not in columns and live not in table.key and live.name not in table.quiet and is_written(live)
    ]


def links_at(
    session: Session,
    table: TrackedTable,
    columns: Columns,
    filter_columns: Columns,
    values: Collection[Key],
    instant: datetime,
) -> dict[Link, LinkRow]:
    """Return the links of an instant whose ``filter_columns`` had one of the values.

    :raises PrunedError: the history has been pruned since
    """
    refuse_pruned_in(session, [table], instant)
    old = dict(table.columns)
    further = further_columns(table, columns)
    statement = select(
        *link_and_key_columns(table, columns),
        *(unrounded_column(old[column]) for column in further),
        table.role("extra"),
    ).where(was_valid(table.valid_from, table.valid_to, instant))
    rows = rows_where(session, table, statement, [old[column] for column in filter_columns], values)
    return _links(table, columns, further, rows)


def link_and_key_columns(table: TrackedTable, columns: Columns) -> list[ColumnElement[Any]]:
    """Return the columns that select the link and the key of a version, in their current spelling."""
    keys, old = keys_now(table), dict(table.columns)
    now = dict(zip(table.history_key, keys, strict=True))
    return [*(now.get(old[column], old[column]) for column in columns), *keys]


# --- what some changesets wrote ---------------------------------------------------------------------------------

Condition = Callable[[TrackedTable | HistoryAlias], ColumnElement[bool]]
"""Gives the condition that a version in a history table, or in an alias of it, is wanted."""


def numbers_where(session: Session, table: TrackedTable, condition: Condition) -> dict[Key, set[int]]:
    """Return the versions that meet a condition, without baselines: key → numbers. One statement."""
    statement = select(*keys_now(table), table.version).where(_is_change(table, condition))
    numbers: dict[Key, set[int]] = defaultdict(set)
    with explaining_history_errors([table]):
        where = bind_arguments_for(session, table.mapper)
        for row in session.execute(statement.order_by(*table.history_key), bind_arguments=where):
            numbers[tuple(row[:-1])].add(row[-1])
    return numbers


def rows_since(session: Session, model: TrackedModel, condition: Condition, *, lock: bool) -> dict[Key, list[Row]]:
    """Return the versions of each row from the one before the first that meets a condition. One statement.

    :param lock: read beyond the snapshot of the transaction, by locks
    """
    hierarchy, table = hierarchy_of(model), model.root.table
    statement = hierarchy.versions.add_columns(*map(table.role, _FURTHER_ROLES))
    statement = _since(statement, table, condition, lock=lock and can_lock(session, table))
    versions: dict[Key, list[Row]] = defaultdict(list)
    for row in hierarchy.read(session, statement):
        versions[row.key].append(row)
    return versions


def links_since(
    session: Session, table: TrackedTable, columns: Columns, condition: Condition, *, lock: bool
) -> dict[Key, list[LinkVersion]]:
    """Return the versions of each link from the one before the first that meets a condition. One statement."""
    roles = *_ROLES, *_FURTHER_ROLES
    further, old = further_columns(table, columns), dict(table.columns)
    statement = select(
        *map(table.role, roles),
        *link_and_key_columns(table, columns),
        *(unrounded_column(old[column]) for column in further),
        table.role("extra"),
    )
    lock, start = lock and can_lock(session, table), len(roles)
    end = start + len(columns)
    statement = _since(statement, table, condition, lock=lock)
    versions: dict[Key, list[LinkVersion]] = defaultdict(list)
    with explaining_history_errors([table]):
        for row in session.execute(statement, bind_arguments=bind_arguments_for(session, table.mapper)):
            end_of_key = end + len(table.key)
            values = _values_of_link(further, row[end_of_key:])
            versions[tuple(row[end:end_of_key])].append(LinkVersion(tuple(row[start:end]), values, *row[:start]))
    return versions


def _since(statement: Select[Any], table: TrackedTable, condition: Condition, *, lock: bool) -> Select[Any]:
    version = HistoryAlias(table)
    first = (
        select(*version.key, func.min(version.version).label("sqlaudit_first"))
        .where(_is_change(version, condition))
        .group_by(*version.key)
        .subquery()
    )
    statement = statement.where(
        all_equal(table.history_key, [first.c[column.key] for column in table.history_key]),
        table.version >= first.c.sqlaudit_first - 1,
    ).order_by(table.version)
    # A locking read is not confined to the transaction's snapshot.
    return statement.with_for_update(read=True, of=table.history) if lock else statement


def _is_change(source: TrackedTable | HistoryAlias, condition: Condition) -> ColumnElement[bool]:
    return and_(condition(source), source.role("operation") != Operation.BASELINE)
