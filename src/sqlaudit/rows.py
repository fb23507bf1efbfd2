"""What did a row hold, now or then? Whole rows of a hierarchy of models, and links, read in sets.

Rows are read as values and not as objects: nothing of it enters the session, and what the database holds is seen
even where the session still has something older.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import JSON, Column, ColumnElement, Dialect, FromClause, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.types import TypeEngine

from sqlaudit.absent import explained
from sqlaudit.changes import Operation
from sqlaudit.history import moved, where_rows_are
from sqlaudit.keytypes import Key, one_of
from sqlaudit.models import TrackedModel, tracked_model
from sqlaudit.period import was_valid
from sqlaudit.readable import unrounded
from sqlaudit.statements import chunks, may_be_respelt
from sqlaudit.tables import TrackedTable

T = TypeVar("T")
Columns = Sequence[Column[Any]]
"""Columns of live tables."""
Link = tuple[Any, ...]
"""The values of the columns of an association table that refer to its ends."""


@dataclass(frozen=True, slots=True)
class Row:
    """The stored values of one object.

    :param key: as the row spells it now, or spelt it last, see :func:`keys_now`
    :param values: attribute → value; NULL is ``None``; ``JSON.NULL`` is what is ``None`` in Python alone: the null of
        JSON, or what a type of the user's reads as ``None``
    :param unmapped: live column → value, of the columns to which the class of the object maps no attribute
    :param version: the number of the version that they were read from; ``None`` for the live row
    """

    model: TrackedModel
    key: Key
    values: Mapping[str, Any]
    unmapped: Mapping[Column[Any], Any]
    version: int | None = None
    valid_from: datetime | None = None
    operation: Operation | None = None

    @property
    def mapper(self) -> Mapper[Any]:
        return self.model.mapper

    def get(self, columns: Iterable[Any]) -> Key | None:
        """Return the values of live columns; ``None`` if one is NULL, or not kept."""
        return values_of(self.mapper, self.values, columns)


def values_of(mapper: Mapper[Any], values: Mapping[str, Any], columns: Iterable[Any]) -> Key | None:
    """Return the values of columns, given those of attributes; ``None`` if one is NULL, or not known."""
    names = [attribute_of(mapper, column) for column in columns]
    found = tuple([values.get(name) if name else None for name in names])
    return None if any(value is None or value is JSON.NULL for value in found) else found


def attribute_of(mapper: Mapper[Any], column: Any) -> str | None:
    """Return the name of the attribute that a column is mapped to, if it is."""
    prop = mapper._columntoproperty.get(column)
    return None if prop is None else prop.key


def display_key(key: Key) -> Any:
    """Return a key as users know it: a tuple only if it is composite."""
    return key[0] if len(key) == 1 else key


def keys_now(table: TrackedTable, history: FromClause | None = None) -> list[ColumnElement[Any]]:
    """Return the columns that give the key of a version's row as the row spells it now, or spelt it last.

    A row keeps its identity, and its versions their numbers, when its key becomes 'aB' that was 'Ab' before and both
    are one to the collation. In Python they are two: the versions of a row need one key to be known by.

    :param history: the versions; those of the history table by default
    """
    versions = table.history if history is None else history
    here: list[ColumnElement[Any]] = [versions.c[column.key] for column in table.history_key]
    if not any(may_be_respelt(column.type) for column in table.key):
        return here
    live, newest = table.live.alias(), table.history.alias()
    of_live = [live.c[column.key] == part for column, part in zip(table.key, here, strict=True)]
    of_newest = [newest.c[column.key] == part for column, part in zip(table.history_key, here, strict=True)]
    order = newest.c[table.version.key].desc()
    return [
        func.coalesce(
            select(live.c[column.key]).where(*of_live).limit(1).scalar_subquery(),
            select(newest.c[old.key]).where(*of_newest).order_by(order).limit(1).scalar_subquery(),
        )
        for column, old in zip(table.key, table.history_key, strict=True)
    ]


def found_by(values: Collection[Key], read: Callable[[Collection[Key]], Iterable[tuple[Key, T]]]) -> dict[Key, T]:
    """Return what a read finds by each of the values, which the database may spell in another way.

    :param read: yields what it found, with the values that this has
    """
    found = dict(read(values))
    if not found.keys() <= set(values):
        for value in [value for value in values if value not in found]:
            found.update((value, thing) for _, thing in read([value]))
    return {value: found[value] for value in values if value in found}


class Hierarchy:
    """The tables of a model and of its subclasses, read together."""

    def __init__(self, root: TrackedModel) -> None:
        self.root = root
        family = root.family()
        for model in family:
            model.table.complete()
        self.tables = list(dict.fromkeys(table for model in family for table in model.chain))
        self.pairs = [pair for table in self.tables for pair in table.columns]
        self.old: dict[Column[Any], Column[Any]] = dict(self.pairs)
        self._places = {old: place for place, (_, old) in enumerate(self.pairs)}
        keys = {live for table in self.tables for live in table.key}
        self._of_keys = {place for place, (live, _) in enumerate(self.pairs) if live in keys}
        self._hiding = [
            place for place, (live, _) in enumerate(self.pairs) if place not in self._of_keys and _hides_null(live.type)
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

    def live(self, *, lock: bool = False) -> Select[Any]:
        """Return the select of the live rows.

        :param lock: whether nobody else shall change them until the transaction ends
        """
        base = self.root.table
        source: Any = base.live
        for table in self.tables[1:]:
            matches = zip(table.key, base.key, strict=True)
            source = source.outerjoin(table.live, and_(*(one == other for one, other in matches)))
        discriminator = self.root.discriminator
        statement = self._select([live for live, _ in self.pairs], discriminator).select_from(source)
        return locked(statement, self.root) if lock else statement

    def versions(self) -> Select[Any]:
        """Return the select of all versions."""
        base = self.root.table
        source: Any = base.history
        for table in self.tables[1:]:
            matches = zip((*table.history_key, table.version), (*base.history_key, base.version), strict=True)
            source = source.outerjoin(table.history, and_(*(one == other for one, other in matches)))
        discriminator = self.root.discriminator
        if discriminator is not None:
            discriminator = moved(discriminator, dict(base.columns))
        statement = self._select([old for _, old in self.pairs], discriminator)
        keys = [column.label(f"key{place}") for place, column in enumerate(keys_now(base))]
        statement = statement.add_columns(base.version, base.valid_from, base.role("operation"), *keys)
        return statement.select_from(source)

    def _select(self, columns: Sequence[ColumnElement[Any]], discriminator: Any) -> Select[Any]:
        nulls = [columns[place].is_(None) for place in self._hiding]
        kind = [] if discriminator is None else [discriminator]
        read = [column if place in self._of_keys else unrounded(column) for place, column in enumerate(columns)]
        labelled = [column.label(f"c{place}") for place, column in enumerate((*read, *nulls, *kind))]
        return select(*labelled)

    def read(self, session: Session, statement: Select[Any], parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """Return the rows of :meth:`live` or :meth:`versions`, with further conditions."""
        with explained(self.tables):
            result = session.execute(
                statement, dict(parameters or {}), bind_arguments=where_rows_are(session, self.root.table.mapper)
            )
            return [self._row(row) for row in result]

    def _row(self, row: Sequence[Any]) -> Row:
        end = len(self.pairs)
        values = list(row[:end])
        for place, is_null in zip(self._hiding, row[end:], strict=False):
            if values[place] is None and not is_null:
                values[place] = JSON.NULL
        end += len(self._hiding)
        model = self.root
        if model.discriminator is not None:
            model = self._model(row[end], values)
            end += 1
        of_version, key = row[end : end + 3], tuple(row[end + 3 :])
        key = key or tuple([values[self._places[column]] for column in self.root.table.history_key])
        mapped = {name: values[place] for name, place in self._names[model]}
        unmapped = {column: values[place] for column, place in self._unmapped[model]}
        return Row(model, key, mapped, unmapped, *of_version)

    def _model(self, identity: Any, values: Sequence[Any]) -> TrackedModel:
        mapper = self.root.mapper.polymorphic_map.get(identity)
        model = None if mapper is None else tracked_model(mapper)
        return self.root if model is None else model


def _hides_null(type_: TypeEngine[Any]) -> bool:
    """Tell whether values of a type may look like NULL in Python without being it, as JSON's null does."""
    is_users_own = not type(type_).__module__.startswith("sqlalchemy.")
    return isinstance(type_, JSON) or type_.should_evaluate_none or is_users_own or bool(type_._variant_mapping)


def stores_null(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    """Tell whether a type is sure to make NULL of ``None``: JSON makes its own null, and a user's type may anything."""
    if type_._has_bind_expression:
        return False
    try:
        processor = type_.dialect_impl(dialect).bind_processor(dialect)
        return processor is None or processor(None) is None
    except Exception:
        return False


def locked(statement: Select[Any], model: TrackedModel) -> Select[Any]:
    """Return a select of live rows that keeps others from changing them, in the order in which all of us do it."""
    return statement.order_by(*model.root.table.key).with_for_update(of=model.root.table.live)


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
    """Return the live rows whose columns have one of the values: one statement per 1,000."""
    hierarchy = hierarchy_of(model)
    statement = hierarchy.live(lock=lock)
    return [row for chunk in chunks(values) for row in hierarchy.read(session, statement.where(one_of(columns, chunk)))]


def rows_at(
    session: Session, model: TrackedModel, columns: Columns, values: Collection[Key], instant: datetime
) -> list[Row]:
    """Return the rows whose columns had one of the values at an instant: one statement per 1,000."""
    hierarchy, table = hierarchy_of(model), model.root.table
    statement = hierarchy.versions().where(was_valid(table.valid_from, table.valid_to, instant))
    old = [hierarchy.old[column] for column in columns]
    return [row for chunk in chunks(values) for row in hierarchy.read(session, statement.where(one_of(old, chunk)))]


def rows_of_versions(session: Session, model: TrackedModel, numbers: Mapping[Key, int]) -> list[Row]:
    """Return the rows as versions tell them, given by key and number: one statement per 1,000."""
    hierarchy, table = hierarchy_of(model), model.root.table
    statement = hierarchy.versions()
    columns = (*table.history_key, table.version)
    wanted = [(*key, number) for key, number in numbers.items()]
    return [row for chunk in chunks(wanted) for row in hierarchy.read(session, statement.where(one_of(columns, chunk)))]


def that_came_later(session: Session, table: TrackedTable, keys: Collection[Key], instant: datetime) -> set[Key]:
    """Return the keys of which the history says that they were inserted after an instant.

    Those that were there all along, before anything was recorded of them, are not among them, nor are those of which
    versions from before have been removed.
    """
    earlier, before = table.history.alias(), table.history.alias()
    statement = select(*keys_now(table)).where(
        table.role("operation") == Operation.INSERT,
        table.valid_from > instant,
        or_(
            table.version == 1,
            exists().where(
                *(before.c[column.key] == column for column in table.history_key),
                before.c[table.version.key] == table.version - 1,
            ),
        ),
        ~exists().where(
            *(earlier.c[column.key] == column for column in table.history_key),
            earlier.c[table.version.key] < table.version,
            earlier.c[table.valid_from.key] > instant,
        ),
    )
    return set(rows_where(session, table, statement, table.history_key, keys))


def rows_where(
    session: Session, table: TrackedTable, statement: Select[Any], columns: Sequence[Any], values: Collection[Key]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a select whose columns have one of the values: one statement per 1,000."""
    where = where_rows_are(session, table.mapper)
    for chunk in chunks(values):
        with explained([table]):
            rows = session.execute(statement.where(one_of(columns, chunk)), bind_arguments=where).all()
        yield from (tuple(row) for row in rows)


# --- links ------------------------------------------------------------------------------------------------------


def links_now(
    session: Session, table: TrackedTable, columns: Columns, by: Columns, values: Collection[Key]
) -> dict[Link, Key]:
    """Return the links whose ``by`` columns have one of the values, with their keys."""
    statement = select(*columns, *table.key)
    found = rows_where(session, table, statement, by, values)
    return {row[: len(columns)]: row[len(columns) :] for row in found}


def links_at(
    session: Session, table: TrackedTable, columns: Columns, by: Columns, values: Collection[Key], instant: datetime
) -> dict[Link, Key]:
    """Return the links of an instant whose ``by`` columns had one of the values, with their keys."""
    old = dict(table.columns)
    statement = select(*links_told(table, columns)).where(was_valid(table.valid_from, table.valid_to, instant))
    found = rows_where(session, table, statement, [old[column] for column in by], values)
    return {row[: len(columns)]: row[len(columns) :] for row in found}


def links_told(table: TrackedTable, columns: Columns) -> list[ColumnElement[Any]]:
    """Return the columns that give the link that a version tells, and its key."""
    keys, old = keys_now(table), dict(table.columns)
    now = dict(zip(table.history_key, keys, strict=True))
    return [*(now.get(old[column], old[column]) for column in columns), *keys]


# --- what a changeset wrote -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Written:
    """What a changeset wrote of one row.

    :param before: the number of the version that tells the state before; ``None`` if there was no row
    """

    key: Key
    before: int | None


def written_by(session: Session, table: TrackedTable, changeset_id: UUID) -> list[Written]:
    """Return what a changeset did to the rows of a table, without those of which it only wrote baselines."""
    statement = (
        select(*keys_now(table), table.version, table.role("operation"))
        .where(table.role("changeset_id") == changeset_id)
        .order_by(*table.history_key, table.version)
    )
    versions: dict[Key, list[tuple[int, Operation]]] = {}
    with explained([table]):
        for row in session.execute(statement, bind_arguments=where_rows_are(session, table.mapper)):
            versions.setdefault(tuple(row[:-2]), []).append((row[-2], row[-1]))
    return [
        Written(key, _before(*those[0]))
        for key, those in versions.items()
        if any(operation is not Operation.BASELINE for _, operation in those)
    ]


def _before(number: int, operation: Operation) -> int | None:
    if operation is Operation.INSERT:
        return None
    return number if operation is Operation.BASELINE else number - 1
