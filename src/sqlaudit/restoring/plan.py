"""What has to change so that rows and links are as they were?

A plan compares target rows with live rows. It checks by reads, before anything is written, what the database would
refuse.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from sqlalchemy import JSON, Column, ForeignKeyConstraint, Table, select, type_coerce
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Mapper, RelationshipDirection, RelationshipProperty, Session, aliased
from sqlalchemy.types import NullType

from sqlaudit.changes import PLAIN, Equality, Operation, differ, equalities_of, equality_of, hashable
from sqlaudit.erased import ERASED
from sqlaudit.exceptions import QueryError
from sqlaudit.restoring.rows import (
    Link,
    LinkRow,
    Redacted,
    Row,
    display_key,
    is_written,
    keys_now,
    read_by_value,
    rows_now,
    rows_where,
    values_of,
    with_fields,
)
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.fitting import is_writable
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.tracking.catalogue import ask_once, stamped_columns
from sqlaudit.tracking.models import TrackedModel, attribute_of, root_of, tracked_model
from sqlaudit.tracking.schema import unique_together
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.tables import TrackedTable, tracked_table

_ANY_DIALECT: Final = DefaultDialect()

DeleteEffect = Callable[[Row], Row | None]
"""What the deletion of its parent does to a row: returns the row after it, or ``None`` if the row is deleted, too."""
GivenValues = Mapping[Any, Mapping[str, Any]]
"""The values that users give for columns that history does not store: class → attribute → value."""


# --- changes ----------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Change:
    """The change of one row.

    :ivar old: attribute → value of the live row; empty if there is none
    :ivar new: attribute → value after the change; empty if the row is deleted
    :ivar fields: attribute → (old value, new value), if they differ
    :ivar target: the target row; ``None`` if the row is deleted
    :ivar unmapped: live column that no attribute is mapped to → (old value, new value), if they differ
    """

    operation: Operation
    model: TrackedModel
    key: Key
    old: Mapping[str, Any]
    new: dict[str, Any]
    fields: dict[str, tuple[Any, Any]]
    target: Row | None = None
    unmapped: Mapping[Column[Any], tuple[Any, Any]] = field(default_factory=dict)

    @property
    def mapper(self) -> Mapper[Any]:
        return self.model.mapper

    @property
    def name(self) -> str:
        return display_name(self.model, self.key)

    def old_values(self, columns: Iterable[Any]) -> Key | None:
        """Return the values of columns before the change; ``None`` if one is NULL."""
        return values_of(self.mapper, self.old, columns)

    def new_values(self, columns: Iterable[Any]) -> Key | None:
        """Return the values of columns after the change; ``None`` if one is NULL."""
        return values_of(self.mapper, self.new, columns)

    def copy_expression(self, name: str) -> Any:
        """Return an expression that copies a value that Python reads as ``None`` from the version, if there is one."""
        number = None if self.target is None else self.target.version_of(name)
        if self.target is None or number is None or self.target.values.get(name) is not JSON.NULL:
            return JSON.NULL
        column = self.model.columns[name]
        (table,) = (table for table in self.model.chain if table.history is column.table)
        key = zip(table.history_key, self.target.key, strict=True)
        version = select(type_coerce(column, NullType())).where(table.version == number)
        return version.where(*(part == value for part, value in key)).scalar_subquery()


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A row to insert into an association table, or to delete from it, by a many-to-many relationship; or to update.

    :ivar link: the values of ``columns``
    :ivar further: the further columns that get a value or lose it → (old value, new value)
    """

    operation: Operation
    table: TrackedTable
    relationship: RelationshipProperty[Any]
    columns: tuple[Column[Any], ...]
    link: Link
    key: Key
    further: Mapping[Column[Any], tuple[Any, Any]] = field(default_factory=dict)

    @property
    def identity(self) -> frozenset[tuple[str, Any]]:
        """The link as pairs of column name and value, which are the same from both sides of the relationship."""
        return frozenset(zip((column.key for column in self.columns), self.link, strict=True))

    @property
    def by_column(self) -> dict[Any, Any]:
        return dict(zip(self.columns, self.link, strict=True))


@dataclass(frozen=True, slots=True)
class Referring:
    """A row that refers to a row that will be deleted.

    :ivar columns: its columns that refer to that row
    :ivar name: the name of that row
    :ivar effect: what the deletion does to it; ``None`` if it prevents the deletion
    """

    row: Row
    columns: tuple[Any, ...]
    name: str
    effect: DeleteEffect | None


def display_name(model: TrackedModel, key: Key) -> str:
    return f"{model.mapper.class_.__name__} {display_key(key)!r}"


class Fields:
    """The attributes of a model that can be written, and the columns that need a value that history may lack."""

    def __init__(self, model: TrackedModel) -> None:
        mapper = model.mapper
        self.model = model
        self.columns: dict[str, Sequence[Column[Any]]] = {
            name: mapper.attrs[name].columns for name in model.columns if name in mapper.attrs
        }
        self.equalities = equalities_of((name, column) for name, (column, *_) in self.columns.items())
        self.key = frozenset(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        made = {name for name, (column, *_) in self.columns.items() if column.computed is not None}
        counters = {name for name, (column, *_) in self.columns.items() if column is mapper.version_id_col}
        always = {
            name
            for name, (column, *_) in self.columns.items()
            if column.identity is not None and column.identity.always and name not in self.key
        }
        self.unwritten = frozenset(made | counters | always)
        """Attributes to which only the database or the mapper gives a value."""
        self.quiet = frozenset(
            name
            for name, columns in self.columns.items()
            for table in model.chain
            if columns[0].table is table.live and columns[0].name in table.quiet
        )
        """Attributes whose changes alone make no version: an update leaves them as they are."""
        self.mandatory = frozenset(
            name
            for name, columns in self.columns.items()
            if name not in self.unwritten and not all(column.nullable for column in columns)
        )

    @cached_property
    def constraints(self) -> list[ForeignKeyConstraint]:
        """The foreign keys of the model's tables, except those that join the tables of one object."""
        tables = (table.live for table in self.model.chain)
        return [constraint for constraint in foreign_keys(tables) if not _is_inheritance(constraint)]

    @cached_property
    def needed(self) -> list[tuple[Column[Any], str | None]]:
        """The columns outside the key that need a value in a new row, each with its attribute, or ``None``."""
        mapper = self.model.mapper
        discriminator = mapper.polymorphic_on
        return [
            (column, attribute_of(mapper, column))
            for table in self.model.chain
            for column in table.live.c
            if _needs_value(column)
            and column is not mapper.version_id_col
            and column is not discriminator
            and attribute_of(mapper, column) not in self.key
        ]


def fields_of(model: TrackedModel) -> Fields:
    cache: dict[Any, Fields] = model.root.table.cache
    if (Fields, model) not in cache:
        cache[Fields, model] = Fields(model)
    return cache[Fields, model]


def _needs_value(column: Column[Any]) -> bool:
    """Return whether an INSERT must give the column a value, because nothing else does."""
    return not (
        column.nullable
        or column.system
        or column.default is not None
        or column.server_default is not None
        or column.computed is not None
        or column.identity is not None
    )


# --- the plan ---------------------------------------------------------------------------------------------------


class Plan:
    """The target rows and links of a restore or an undo, and the changes that lead there.

    :param values: the values that users give for columns that history does not store
    :param lock: lock the live rows that are read, so that they stay as they are until the plan is carried out
    """

    def __init__(self, session: Session, values: GivenValues, *, lock: bool) -> None:
        self.session = session
        self.values = values
        self.lock = lock
        self.targets: dict[TrackedModel, dict[Key, Row | None]] = defaultdict(dict)
        self.links: dict[tuple[TrackedTable, Any], LinkChange] = {}
        self.changes: list[Change] = []
        self.respelt: dict[Change, set[Key]] = defaultdict(set)
        """For each row that comes back, its key as rows and links that refer to it spell it."""
        self._live: dict[TrackedModel, dict[Key, Row | None]] = defaultdict(dict)
        self._automatic: dict[TrackedModel, frozenset[Column[Any]]] = {}
        self._automatic_fields: dict[TrackedModel, frozenset[str]] = {}

    def live(self, root: TrackedModel, keys: Iterable[Key]) -> Mapping[Key, Row | None]:
        """Return the live rows with these keys and with those asked before: one statement per 1,000 new keys."""
        live = self._live[root]
        if unseen := [key for key in keys if key not in live]:
            live.update(dict.fromkeys(unseen))
            rows = rows_now(self.session, root, root.table.key, unseen, lock=self.lock)
            live.update((row.key, row) for row in rows)
        return live

    def want(self, row: Row) -> None:
        """Make this row a target, unless its key has one already."""
        self.targets[row.model.root].setdefault(row.key, row)

    def want_fields(self, row: Row, fields: Mapping[Any, Row]) -> None:
        """Make these fields of a row a target, and the rest of it what it is now, if it is there.

        :param fields: attribute, or live column that no attribute is mapped to → the row that has its value
        """
        live = self.live(row.model.root, [row.key])[row.key]
        self.want(with_fields(row if live is None or live.model is not row.model else live, fields))

    def want_absent(self, model: TrackedModel, key: Key) -> None:
        """Make the deletion of a row the target, unless its key has one already."""
        self.targets[model.root].setdefault(key, None)

    def apply_delete_effect(self, row: Row, effect: DeleteEffect) -> None:
        """Apply the effect of a parent's deletion to a row, on top of any target that it has."""
        targets = self.targets[row.model.root]
        target = targets.get(row.key, row)
        targets[row.key] = None if target is None else effect(target)

    def link(self, change: LinkChange) -> None:
        """Plan a change of a link, unless there is one already. Its deletion prevails over an update."""
        planned = self.links.setdefault((change.table, change.identity), change)
        if planned.operation is Operation.UPDATE:
            self.links[change.table, change.identity] = change

    def restore_link(
        self,
        table: TrackedTable,
        relationship: RelationshipProperty[Any],
        columns: tuple[Column[Any], ...],
        link: Link,
        old: LinkRow,
        now: LinkRow | None,
    ) -> None:
        """Plan that a link gets back these values of its further columns, and that it exists.

        :param now: the live link, if there is one
        """
        if now is None:
            further = {
                column: (None, value)
                for column, value in old.values.items()
                if value is not None or _has_default(column)
            }
            _refuse_erased_link(table, old, further)
            self.link(LinkChange(Operation.INSERT, table, relationship, columns, link, old.key, further))
            return
        now = now.with_key(old.key)
        if changed := differing(now.values, old.values, column_equalities(old.values)):
            further = {column: (now.values[column], old.values[column]) for column in changed}
            _refuse_erased_link(table, old, further)
            self.link(LinkChange(Operation.UPDATE, table, relationship, columns, link, now.key, further))

    def unlink(self, change: LinkChange) -> None:
        """Plan no change of a link any more."""
        del self.links[change.table, change.identity]

    def automatic_columns(self, model: TrackedModel) -> frozenset[Column[Any]]:
        """Return the live columns that change whenever a row changes, unless they are set, too.

        One statement per engine and model on MariaDB and MySQL, where the database may do so by itself.
        """
        if model not in self._automatic:
            connection = self.session.connection(bind_arguments=bind_arguments_for(self.session, model.mapper))
            self._automatic[model] = ask_once(connection, model.chain, stamped_columns) | {
                column
                for table in model.chain
                for column in table.live.c
                if (column.onupdate is not None or column.server_onupdate is not None) and column.computed is None
            }
        return self._automatic[model]

    def automatic_fields(self, model: TrackedModel) -> frozenset[str]:
        """Return the attributes of :meth:`automatic_columns`, except quiet ones, and those that cannot be set."""
        if model not in self._automatic_fields:
            fields, columns = fields_of(model), self.automatic_columns(model)
            names = frozenset(name for name, (column, *_) in fields.columns.items() if column in columns)
            self._automatic_fields[model] = names - fields.unwritten - fields.quiet
        return self._automatic_fields[model]

    # -- what has to change

    def compare(self) -> None:
        """Compute the changes from targets and live rows: one statement per hierarchy and 1,000 rows.

        :raises QueryError: a row cannot become what it was
        """
        self.changes = []
        for root, targets in self.targets.items():
            live = self.live(root, targets)
            for key, target in targets.items():
                change = self._change(live[key], target)
                if change is not None:
                    self.changes.append(change)

    def _change(self, current: Row | None, target: Row | None) -> Change | None:
        if target is None:
            return None if current is None else self._deletion(current)
        if current is None:
            return self._insertion(target)
        if current.model is not target.model:
            raise QueryError(
                f"{display_name(current.model, current.key)} was a {target.mapper.class_.__name__} then, and a row "
                "cannot change its class. Delete the row first, or leave it out.",
                current.model.mapper.class_,
            )
        return self._update(current, target)

    @staticmethod
    def _deletion(current: Row) -> Change:
        fields = {name: (displayed(value), None) for name, value in current.values.items() if value is not None}
        return Change(Operation.DELETE, current.model, current.key, current.values, {}, fields)

    def _insertion(self, target: Row) -> Change:
        fields, given_values = fields_of(target.model), self.given(target.model)
        new = {name: value for name, value in target.values.items() if name not in fields.unwritten} | given_values
        lacking = [name or column.name for column, name in fields.needed if name is None or new.get(name) is None]
        if lacking:
            raise QueryError(
                f"{display_name(target.model, target.key)} cannot be brought back without {', '.join(lacking)}, which "
                f"cannot be NULL, and of which history has no value. Give {_as_values(target.model, lacking[0])}.",
                target.model.mapper.class_,
            )
        for name in fields.mandatory:
            if new.get(name) is None:
                new.pop(name, None)  # its column has a default
        _refuse_unknown(target, {}, new)
        for name in new.keys() - given_values.keys():
            self._refuse_unwritable(target, name, new[name])
        values = {name: (None, displayed(value)) for name, value in new.items() if value is not None}
        key = target.get(target.model.root.table.key) or target.key
        return Change(Operation.INSERT, target.model, key, {}, new, values, target, _unmapped({}, target))

    def _update(self, current: Row, target: Row) -> Change | None:
        fields, given_values = fields_of(target.model), self.given(target.model)
        new = dict(current.values)
        for name, value in target.values.items():
            if name in fields.unwritten or (name in fields.quiet and target.comes_whole(name)):
                continue  # keys are compared: a key may have been spelt differently
            if isinstance(value, Redacted) and value == current.values.get(name):
                continue  # it is what it was, as far as history knows
            if name in given_values and (
                value is ERASED or isinstance(value, Redacted) or not self._is_writable(target, name, value)
            ):
                value = given_values[name]
            elif value is None and name in fields.mandatory:
                if name not in given_values:
                    raise QueryError(
                        f"{display_name(target.model, target.key)} has no value of {name} in its version "
                        f"{target.version_of(name)}, and {name} cannot be NULL. Give {_as_values(target.model, name)}.",
                        target.model.mapper.class_,
                    )
                value = given_values[name]
            new[name] = value
        _refuse_unknown(target, current.values, new)
        changed = {
            name: (displayed(current.values.get(name)), displayed(new[name]))
            for name in differing(current.values, new, fields.equalities)
        }
        for name in changed:
            if name not in given_values:
                self._refuse_unwritable(target, name, new[name])
        unmapped = _unmapped(current.unmapped, target)
        if not changed and not unmapped:
            return None
        return Change(Operation.UPDATE, target.model, target.key, current.values, new, changed, target, unmapped)

    def _refuse_unwritable(self, target: Row, name: str, value: Any) -> None:
        """Raise if the type of a column can no longer write an old value.

        :raises QueryError: it cannot
        """
        if self._is_writable(target, name, value):
            return
        raise QueryError(
            f"{display_name(target.model, target.key)} has {value!r} as its {name} in its version "
            f"{target.version_of(name)}, which {target.model.columns[name].type!r} no longer accepts. Give "
            f"{_as_values(target.model, name)}.",
            target.model.mapper.class_,
        )

    def _is_writable(self, target: Row, name: str, value: Any) -> bool:
        column = target.model.columns.get(name)
        bind = bind_arguments_for(self.session, target.mapper).get("bind")
        return column is None or is_writable(value, column.type, bind.dialect if bind is not None else _ANY_DIALECT)

    def given(self, model: TrackedModel) -> dict[str, Any]:
        """Return the values that the user gives for rows of a model."""
        given_values: dict[str, Any] = {}
        for class_, values in self.values.items():
            if issubclass(model.mapper.class_, class_):
                given_values |= values
        return given_values

    # -- checks

    def doomed(self) -> list[Change]:
        return [change for change in self.changes if change.operation is Operation.DELETE]

    def saved(self) -> list[Change]:
        return [change for change in self.changes if change.operation is not Operation.DELETE]

    def referring(self) -> Iterator[Referring]:
        """Yield each live row that would still refer to a row that will be deleted.

        One statement per foreign key and 1,000 rows, two per relationship without a foreign key constraint.
        """
        for constraint, doomed in self._referred_to():
            child = tracked_table(constraint.table)
            if child is None or child.is_association or child.mapper is None:
                continue
            root = root_of(child)
            columns: tuple[Any, ...] = tuple([element.parent for element in constraint.elements])
            for row in rows_now(self.session, root, columns, list(doomed), lock=self.lock):
                value, target = row.get(columns), self.targets[root].get(row.key, row)
                if target is row or (value in doomed and target is not None and target.get(columns) == value):
                    # The value is unknown if its column is excluded, and may be equal only by collation.
                    change = doomed.get(value or ()) or next(iter(doomed.values()))
                    yield Referring(row, columns, change.name, effect_of_delete(constraint))
        for relationship, by_key in self._collected_by_doomed():
            columns = tuple([column for _, column in relationship.synchronize_pairs])
            for row, change in self._members(relationship, by_key):
                value, target = row.get(columns), self.targets[row.model.root].get(row.key, row)
                if target is row or (value and target is not None and target.get(columns) == value):
                    yield Referring(row, columns, change.name, effect_of_unit_of_work(relationship))

    def referring_to_absent(self) -> Iterator[Referring]:
        """Yield each target row that would come to refer to a row whose absence is a target, too. No statement."""
        for change in self.saved():
            for constraint in fields_of(change.model).constraints:
                columns = tuple([element.parent for element in constraint.elements])
                value = change.new_values(columns)
                if value is not None and value != change.old_values(columns) and change.target is not None:
                    name = self._absent_row(constraint, value)
                    if name is not None:
                        yield Referring(change.target, columns, name, effect_of_delete(constraint))

    def links_to_absent(self) -> list[LinkChange]:
        """Return the links to insert that would refer to a row whose absence is a target, too."""
        return [
            link
            for link in self.links.values()
            if link.operation is Operation.INSERT
            and any(
                self._absent_row(constraint, [link.by_column.get(element.parent) for element in constraint.elements])
                for constraint in link.table.live.foreign_key_constraints
            )
        ]

    def _absent_row(self, constraint: ForeignKeyConstraint, value: Sequence[Any]) -> str | None:
        """Return the name of the row that a foreign key refers to by its key, if its absence is a target."""
        table = tracked_table(constraint.referred_table)
        if table is None or table.mapper is None or table.is_association:
            return None
        by_column = dict(zip((element.column for element in constraint.elements), value, strict=True))
        root, key = root_of(table), tuple([by_column.get(column) for column in table.key])
        is_absent = root in self.targets and self.targets[root].get(key, key) is None
        return display_name(root, key) if is_absent else None

    def _collected_by_doomed(self) -> Iterator[tuple[RelationshipProperty[Any], dict[Key, Change]]]:
        """Yield the relationships without a foreign key constraint of rows that will be deleted, with these rows."""
        members: dict[RelationshipProperty[Any], dict[Key, Change]] = defaultdict(dict)
        for change in self.doomed():
            for relationship in collections_without_constraint(change.model):
                members[relationship][change.key] = change
        yield from members.items()

    def _members(
        self, relationship: RelationshipProperty[Any], owners: Mapping[Key, Change]
    ) -> Iterator[tuple[Row, Change]]:
        """Yield the live rows that are in a relationship of the given rows, each with the change of its owner."""
        model, owner = tracked_model(relationship.mapper), tracked_model(relationship.parent)
        assert model is not None
        assert owner is not None
        root, member = model.root, aliased(relationship.mapper.class_)
        names = [attribute_of(relationship.mapper, column) or "" for column in root.table.key]
        key = owner.root.table.key
        statement = (
            select(*(getattr(member, name) for name in names), *key)
            .select_from(relationship.parent.class_)
            .join(relationship.class_attribute.of_type(member))
        )
        width = len(names)
        found = {
            row[:width]: row[width:] for row in rows_where(self.session, owner.root.table, statement, key, list(owners))
        }
        for row in rows_now(self.session, root, root.table.key, list(found), lock=self.lock):
            yield row, owners.get(found.get(row.key, ())) or next(iter(owners.values()))

    def _referred_to(self) -> Iterator[tuple[ForeignKeyConstraint, dict[Key, Change]]]:
        """Yield each foreign key that may refer to rows that will be deleted, with their changes by referred value."""
        by_table: dict[Table, list[Change]] = defaultdict(list)
        for change in self.doomed():
            for table in change.model.chain:
                by_table[table.live].append(change)
        for metadata in {table.metadata for table in by_table}:
            for constraint in foreign_keys(metadata.tables.values()):
                changes = by_table.get(constraint.referred_table)
                if changes and not _is_inheritance(constraint):
                    columns = [element.column for element in constraint.elements]
                    values = ((change.old_values(columns), change) for change in changes)
                    yield constraint, {value: change for value, change in values if value is not None}

    def referring_links(self) -> Iterator[tuple[TrackedTable, tuple[Column[Any], ...], list[Key]]]:
        """Yield each association table that may link to rows that will be deleted, with columns and their values."""
        for constraint, doomed in self._referred_to():
            table = tracked_table(constraint.table)
            if table is not None and table.is_association:
                yield table, tuple([element.parent for element in constraint.elements]), list(doomed)

    def check_untracked(self) -> None:
        """Check that no row of an untracked table prevents a deletion: one statement per foreign key and 1,000 rows.

        :raises QueryError: a row does
        """
        for constraint, doomed in self._referred_to():
            parent = tracked_table(constraint.referred_table)
            assert parent is not None
            if (
                tracked_table(constraint.table) is not None
                or effect_of_delete(constraint) is not None
                or _is_link(constraint)
            ):
                continue
            columns = [element.parent for element in constraint.elements]
            for chunk in chunks(list(doomed)):
                statement = select(*columns).where(one_of(columns, chunk)).limit(1)
                result = self.session.execute(statement, bind_arguments=bind_arguments_for(self.session, parent.mapper))
                for row in result:
                    raise QueryError(
                        f"A row of {constraint.table.fullname!r}, which has no history, refers to "
                        f"{doomed[tuple(row)].name}, which would be deleted. Delete that row first.",
                        constraint.table,
                    )

    def check_write_only(self) -> None:
        """Check that the unit of work can delete the rows: it never loads what a write-only relationship holds.

        :raises QueryError: it cannot
        """
        for change in self.doomed():
            for relationship in change.mapper.relationships:
                if relationship.lazy == "write_only" and not (relationship.passive_deletes or relationship.viewonly):
                    raise QueryError(
                        f"{change.name} would be deleted, and SQLAlchemy deletes no {change.mapper.class_.__name__} "
                        f"while its write-only relationship {relationship.key!r} lacks passive_deletes=True; add that.",
                        change.mapper.class_,
                    )

    def check_references(self) -> None:
        """Check that every row that a restored row or link refers to will exist.

        One statement per foreign key and 1,000 rows.

        :raises QueryError: a row will not exist
        """
        wanted: dict[ForeignKeyConstraint, dict[Key, str]] = defaultdict(dict)
        for change in self.saved():
            for constraint in fields_of(change.model).constraints:
                columns = [element.parent for element in constraint.elements]
                value = change.new_values(columns)
                if value is not None and value != change.old_values(columns):
                    wanted[constraint].setdefault(value, change.name)
        for link in self.links.values():
            if link.operation is Operation.INSERT:
                self._check_other_columns(link)
                for constraint in link.table.live.foreign_key_constraints:
                    values = [link.by_column.get(element.parent) for element in constraint.elements]
                    if None not in values:
                        wanted[constraint].setdefault(tuple(values), f"A link of {link.table.live.fullname!r}")
        for constraint, referrers in wanted.items():
            absent = self._absent(constraint, referrers)
            for value in absent:
                raise QueryError(
                    f"{referrers[value]} would refer to a row of {constraint.referred_table.fullname!r}, "
                    f"{display_key(value)!r}, that no longer exists. Restore that row first, or include it.",
                    constraint.referred_table,
                )

    @staticmethod
    def _check_other_columns(link: LinkChange) -> None:
        table = link.table.live
        for column in table.c:
            if column not in link.by_column and column is not table.autoincrement_column and _needs_value(column):
                raise QueryError(
                    f"A link of {table.fullname!r} cannot be inserted again, because no relationship gives its column "
                    f"{column.name} a value, and the column cannot be NULL. Map a class to the table, or insert the "
                    "link yourself.",
                    table,
                )

    def _absent(self, constraint: ForeignKeyConstraint, values: Collection[Key]) -> list[Key]:
        """Return the values of a foreign key that no row will have once the plan is carried out."""
        columns = [element.column for element in constraint.elements]
        table = constraint.referred_table
        changes_of_table = [
            change
            for change in self.changes
            if any(table_of_model.live is table for table_of_model in change.model.chain)
        ]
        present = {change.new_values(columns) for change in changes_of_table}
        lost_values = {change.old_values(columns) for change in changes_of_table} - present
        unknown = [value for value in values if value not in present and value not in lost_values]
        tracked = tracked_table(table) or tracked_table(constraint.table)
        assert tracked is not None  # one end is
        found = read_by_value(
            unknown,
            lambda values_asked: (
                (row, row) for row in rows_where(self.session, tracked, select(*columns), columns, values_asked)
            ),
        )
        present.update(value for value, row in found.items() if row not in lost_values)
        absent = [value for value in values if value not in present]
        return self._not_brought_back(changes_of_table, absent) if columns == list(tracked.key) else absent

    def _not_brought_back(self, changes: Collection[Change], keys: list[Key]) -> list[Key]:
        """Return the keys without keys of rows that the plan brings back, and remember how ``keys`` spells these."""
        back = {
            change.target.key: change for change in changes if change.operation is Operation.INSERT and change.target
        }
        if not keys or not back:
            return keys
        table = next(iter(back.values())).model.root.table
        spellings = select(*table.history_key, *keys_now(table))
        width = len(table.key)

        def read(asked: Collection[Key]) -> Iterator[tuple[Key, Key]]:
            for row in rows_where(self.session, table, spellings, table.history_key, asked):
                yield row[:width], row[width:]

        found = read_by_value(keys, read)
        for key, known in found.items():
            if known in back:
                self.respelt[back[known]].add(key)
        return [key for key in keys if found.get(key) not in back]

    def check_respelt(self) -> None:
        """Check that keys can get back their spelling: MariaDB and MySQL refuse it while rows refer to the key.

        One statement per respelt row and foreign key without ON UPDATE CASCADE.

        :raises QueryError: a row refers to such a key
        """
        for change in self.saved():
            if change.operation is not Operation.UPDATE or fields_of(change.model).key.isdisjoint(change.fields):
                continue
            where = bind_arguments_for(self.session, change.mapper)
            if not TRAITS[where["bind"].dialect.name].refuses_respelt_keys:
                continue
            tables = {table.live for table in change.model.chain}
            for constraint in foreign_keys(change.model.table.live.metadata.tables.values()):
                if constraint.referred_table not in tables or (constraint.onupdate or "").upper() == "CASCADE":
                    continue
                value = change.old_values(element.column for element in constraint.elements)
                columns = [element.parent for element in constraint.elements]
                statement = select(*columns).where(one_of(columns, [value] if value else [])).limit(1)
                if self.session.execute(statement, bind_arguments=dict(where)).first() is not None:
                    raise QueryError(
                        f"{change.name} cannot get back the spelling of its key, because rows of "
                        f"{constraint.table.fullname!r} refer to it by a foreign key without ON UPDATE CASCADE. "
                        "Delete these rows first, or give the foreign key that option.",
                        change.model.mapper.class_,
                    )

    def check_unique(self) -> None:
        """Check that the unique values of restored rows are free: one statement per unique constraint and 1,000 rows.

        :raises QueryError: another row has one of them
        """
        changes = {(change.model.root, change.key): change for change in self.changes}
        for (root, columns), takers in self._changes_by_value().items():
            table = tracked_table(columns[0].table)
            assert table is not None
            width, wanted = len(columns), [value for taker in takers.values() if (value := taker.new_values(columns))]
            for row in rows_where(self.session, table, select(*columns, *table.key), columns, wanted):
                value, key = row[:width], row[width:]
                holder = changes.get((root, key))
                if holder is None or hashable(holder.old_values(columns)) == hashable(holder.new_values(columns)):
                    like = (
                        taker
                        for taker in takers.values()
                        if str(taker.new_values(columns)).casefold() == str(value).casefold()
                    )
                    taker = takers.get(hashable(value)) or next(
                        like, next(iter(takers.values()))
                    )  # equal by the collation
                    raise self._taken(taker, columns, display_name(root, key))

    def _changes_by_value(self) -> dict[tuple[TrackedModel, tuple[Column[Any], ...]], dict[Any, Change]]:
        """Return the changes by the columns and the :func:`hashable` form of the unique values that they set.

        :raises QueryError: two changes set the same value
        """
        takers: dict[tuple[TrackedModel, tuple[Column[Any], ...]], dict[Any, Change]] = defaultdict(dict)
        for change in self.saved():
            for columns in unique_columns(change.model):
                value = hashable(change.new_values(columns))
                if value is not None and value != hashable(change.old_values(columns)):
                    other = takers[change.model.root, columns].setdefault(value, change)
                    if other is not change:
                        raise self._taken(change, columns, other.name)
        return takers

    @staticmethod
    def _taken(taker: Change, columns: Sequence[Column[Any]], holder: str) -> QueryError:
        names = ", ".join(attribute_of(taker.mapper, column) or column.name for column in columns)
        return QueryError(
            f"{taker.name} cannot get back its {names}, because {holder} has the same. Change that row first, or "
            "restore it, too.",
            taker.model.mapper.class_,
        )


def _refuse_unknown(target: Row, current: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise if a row would get a value that history does not have, because it was erased or is redacted.

    :param current: the values of the live row
    :raises QueryError: it would
    """
    redacted = [name for name, value in values.items() if isinstance(value, Redacted) and value != current.get(name)]
    if redacted:
        names = ", ".join(sorted(redacted))
        raise QueryError(
            f"{display_name(target.model, target.key)} cannot get back its {names} of version "
            f"{target.version_of(min(redacted))}, because history has redacted values there. Name the other fields: "
            f"fields=[…]; or give {_as_values(target.model, min(redacted))}.",
            target.model.mapper.class_,
        )
    erased = [name for name, value in values.items() if value is ERASED]
    erased += [column.name for column, value in target.unmapped.items() if value is ERASED]
    erased.sort()
    if erased:
        raise QueryError(
            f"{display_name(target.model, target.key)} has no value of {', '.join(erased)} in its version, "
            f"because it was erased, so it cannot be restored. Name the other fields: restore(…, fields=[…]); or give "
            f"{_as_values(target.model, erased[0])}.",
            target.model.mapper.class_,
        )


def _refuse_erased_link(table: TrackedTable, old: LinkRow, further: Mapping[Column[Any], tuple[Any, Any]]) -> None:
    """Raise if a link would get a value that was erased.

    :raises QueryError: it would
    """
    erased = sorted(column.name for column, (_, value) in further.items() if value is ERASED)
    if erased:
        raise QueryError(
            f"The link {display_key(old.key)} of {table.live.fullname!r} has no value of {', '.join(erased)} in its "
            "version, because it was erased, so it cannot be restored. Leave the relationship out, and insert the link "
            "yourself.",
            table.live,
        )


def differing(old: Mapping[Any, Any], new: Mapping[Any, Any], equalities: Mapping[Any, Equality]) -> list[Any]:
    """Return the names of the new values that differ from the old ones.

    :param equalities: the comparisons of the fields whose types define their own
    """
    names = []
    for name, value in new.items():
        before = old.get(name)
        if before is value or (type(before) is type(value) and type(value) in PLAIN and before == value):
            continue
        if before is JSON.NULL or value is JSON.NULL or differ(before, value, equalities.get(name)):
            names.append(name)
    return names


def column_equalities(columns: Iterable[Column[Any]]) -> dict[Any, Equality]:
    """Return the comparisons of the columns whose types define their own."""
    return {column: equal for column in columns if (equal := equality_of(column.type)) is not None}


def _unmapped(current: Mapping[Column[Any], Any], target: Row) -> dict[Column[Any], tuple[Any, Any]]:
    """Return the unmapped columns that have to change: column → (old value, new value).

    :param current: the values of the live row; empty for a new row, which gets the columns' defaults at first
    """
    if not target.unmapped:
        return {}
    changed = {
        *differing(current, target.unmapped, {}),
        *(column for column in target.unmapped.keys() - current.keys() if _has_default(column)),
    }
    return {
        column: (displayed(current.get(column)), value)
        for column, value in target.unmapped.items()
        if column in changed and is_written(column)
    }


def _has_default(column: Column[Any]) -> bool:
    return column.default is not None or column.server_default is not None


def displayed(value: Any) -> Any:
    """Return a value of a :class:`~sqlaudit.restoring.rows.Row` as users see it."""
    if isinstance(value, Redacted):
        return value.stored
    return None if value is JSON.NULL else value


def _as_values(model: TrackedModel, name: str) -> str:
    """Return the argument that gives an attribute a value, for an error message."""
    return f"values={{{model.mapper.class_.__name__}: {{{name!r}: …}}}}"


# --- the schema -------------------------------------------------------------------------------------------------


def foreign_keys(tables: Iterable[Table]) -> Iterator[ForeignKeyConstraint]:
    for table in tables:
        yield from sorted(table.foreign_key_constraints, key=lambda constraint: list(constraint.column_keys))


def _is_inheritance(constraint: ForeignKeyConstraint) -> bool:
    """Return whether a foreign key joins the table of a subclass to the table of its base class."""
    child, parent = tracked_table(constraint.table), tracked_table(constraint.referred_table)
    if child is None or parent is None or child is parent or child.is_association or parent.is_association:
        return False
    return root_of(child) is root_of(parent) and {e.parent for e in constraint.elements} == set(child.key)


def unique_columns(model: TrackedModel, *, deferred: bool = True) -> Iterator[tuple[Column[Any], ...]]:
    """Yield each set of columns of a model that is unique together, except its key.

    :param deferred: include constraints that the database checks only at the end of the transaction
    """
    for table in model.chain:
        found = dict.fromkeys(unique_together(table.live, deferred=deferred))
        yield from (columns for columns in found if set(columns) != set(table.key))


def writable_relationships_over(constraint: ForeignKeyConstraint) -> Iterator[RelationshipProperty[Any]]:
    """Yield the relationships of the referred model that follow a foreign key and can be written."""
    pairs = {(element.column, element.parent) for element in constraint.elements}
    owner = tracked_table(constraint.referred_table)
    if owner is None or owner.mapper is None:
        return
    for mapper in owner.mapper.self_and_descendants:
        for relationship in mapper.relationships:
            if relationship.viewonly or relationship.secondary is not None or relationship.parent is not mapper:
                continue
            if set(relationship.synchronize_pairs) == pairs:
                yield relationship


def collections_without_constraint(model: TrackedModel) -> list[RelationshipProperty[Any]]:
    """Return the one-to-many relationships of a model that no foreign key constraint backs.

    Leave out those whose rows the unit of work never touches, by ``passive_deletes="all"``.
    """
    return [
        relationship
        for relationship in model.mapper.relationships
        if relationship.direction is RelationshipDirection.ONETOMANY
        and not relationship.viewonly
        and relationship.passive_deletes != "all"
        and tracked_model(relationship.mapper) is not None
        and not any(
            relationship in writable_relationships_over(constraint) for constraint in _constraints_behind(relationship)
        )
    ]


def _constraints_behind(relationship: RelationshipProperty[Any]) -> Iterator[ForeignKeyConstraint]:
    tables = {column.table for _, column in relationship.synchronize_pairs}
    return foreign_keys(table for table in tables if isinstance(table, Table))


def _is_link(constraint: ForeignKeyConstraint) -> bool:
    """Return whether the rows of a foreign key are links, which the unit of work deletes with the referred object."""
    owner = tracked_table(constraint.referred_table)
    return owner is not None and any(
        relationship.secondary is constraint.table and not relationship.viewonly
        for mapper in (owner.mapper.self_and_descendants if owner.mapper else ())
        for relationship in mapper.relationships
    )


def effect_of_delete(constraint: ForeignKeyConstraint) -> DeleteEffect | None:
    """Return what a parent's deletion does to a row by a foreign key.

    ``None`` if the row prevents the deletion, or if only the database knows what becomes of it: SET DEFAULT.
    """
    ondelete = (constraint.ondelete or "").upper()
    columns = [element.parent for element in constraint.elements]
    relationships = list(writable_relationships_over(constraint))
    if ondelete == "CASCADE" or any(relationship.cascade.delete for relationship in relationships):
        return lambda row: None
    if all(column.nullable for column in columns) and (ondelete == "SET NULL" or relationships):
        return lambda row: _without(row, columns)
    return None


def effect_of_unit_of_work(relationship: RelationshipProperty[Any]) -> DeleteEffect | None:
    """Return what the unit of work does to a row when it deletes the owner of the relationship.

    ``None`` if it cannot delete the owner, because the row's columns cannot be NULL.
    """
    columns: list[Any] = [column for _, column in relationship.synchronize_pairs]
    if relationship.cascade.delete:
        return lambda row: None
    if all(column.nullable for column in columns):
        return lambda row: _without(row, columns)
    return None


def _without(row: Row, columns: Sequence[Column[Any]]) -> Row:
    names = [attribute_of(row.mapper, column) for column in columns]
    return replace(row, values={**row.values, **{name: None for name in names if name}})
