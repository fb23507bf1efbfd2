"""How does the unit of work carry out a plan? Changes and links → new, dirty and deleted objects → flushes.

sqlaudit sets columns, not relationships: versions hold columns, and a relationship of a restored object is loaded on
access. It loads in sets, beforehand, what the unit of work would load object by object.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from sqlalchemy import JSON, Column, Connection, Dialect, Subquery, Table, literal, null, select, update
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Mapper,
    RelationshipDirection,
    RelationshipProperty,
    Session,
    class_mapper,
    make_transient_to_detached,
    object_mapper,
    selectinload,
    undefer,
)
from sqlalchemy.orm.attributes import flag_modified, instance_dict, instance_state, set_attribute, set_committed_value

from sqlaudit.changes import Conflict, Operation, Restored, RestoreReport
from sqlaudit.context import AuditContextManager, get_audit_context
from sqlaudit.exceptions import QueryError
from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.recording.policy import lacking, require_context
from sqlaudit.recording.tracked_mappers import user_fields_of
from sqlaudit.restoring.generated_keys import overriding_keys, tables_that_make_keys
from sqlaudit.restoring.ordering import Ordering, Stages
from sqlaudit.restoring.plan import Change, LinkChange, Plan, displayed
from sqlaudit.restoring.rows import display_key, read_by_value, stores_null, with_row_locks
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.models import TrackedModel, attribute_of, tracked_model
from sqlaudit.tracking.registry import mappers_of
from sqlaudit.tracking.sessions import bind_arguments_for

_log: Final = logging.getLogger(__package__)
_QUERIES: Final = ("dynamic", "write_only")


def carry_out(plan: Plan, reason: str, dry_run: bool, conflicts: Sequence[Conflict] = ()) -> RestoreReport:
    """Carry out a plan, and report what it changes; for a dry run, only report.

    :param reason: the reason of the changes, if the audit context has none
    :param conflicts: the later changes that are lost
    """
    items = (*map(_reported, plan.changes), *map(_reported_link, plan.links.values()))
    if items and not dry_run:
        with AuditContextManager(reason=get_audit_context().reason or reason):
            _execute_plan(plan, Ordering(plan.changes).stages())
        counts = Counter(str(item.operation) for item in items)
        _log.info("%s: %s", reason, ", ".join(f"{count} {operation}" for operation, count in sorted(counts.items())))
    return RestoreReport(items, tuple(conflicts))


def _reported(change: Change) -> Restored:
    fields = change.fields | {column.key: (old, displayed(new)) for column, (old, new) in change.unmapped.items()}
    return Restored(change.operation, change.model.label, display_key(change.key), fields)


def _reported_link(change: LinkChange) -> Restored:
    made = change.operation is Operation.INSERT
    fields: dict[str, tuple[Any, Any]] = {}
    if change.operation is not Operation.UPDATE:
        fields = {column.key: (None, value) if made else (value, None) for column, value in change.by_column.items()}
    fields |= {column.key: values for column, values in change.further.items() if values != (None, None)}
    return Restored(change.operation, change.table.live.fullname, display_key(change.key), fields)


def _execute_plan(plan: Plan, stages: Stages) -> None:
    """Carry out a plan by flushes. If one fails, discard what it set in the session.

    A validator or a listener may refuse a change after others have been flushed. Then roll back the transaction, or
    the innermost savepoint, as a failed flush does, so that half a plan is never committed.
    """
    session, application = plan.session, _Application(plan, stages)
    with session.no_autoflush:
        try:
            application.run()
        except BaseException:
            application.discard()
            transaction = session.get_nested_transaction() or session.get_transaction()
            if application.has_written and transaction is not None and transaction.is_active:
                transaction.rollback()
            raise


class _Application:
    def __init__(self, plan: Plan, stages: Stages) -> None:
        self.plan = plan
        self.stages = stages
        self.session: Session = plan.session
        self.links = list(plan.links.values())
        self.cleared = dict(stages.cleared)
        self.objects: dict[Change, Any] = {}
        self._nulls: dict[Mapper[Any], _Nulls] = {}
        self._doomed = {change for change in plan.changes if change.operation is Operation.DELETE}
        self._parentless: dict[RelationshipProperty[Any], list[InstanceState[Any]]] = defaultdict(list)
        """Objects that have lost a link by which they may have one parent, until that is flushed."""
        self.has_written = False

    def run(self) -> None:
        """Make the changes in as many flushes as foreign keys and unique values need.

        A table's rows are saved before rows that refer to them, and deleted after them. The unit of work alone would
        not order them: it goes by relationships, which are not set here and which not every foreign key has.
        """
        stages = self.stages
        self._require_context()
        self._load()
        with self._keeping_keys():
            for change, names in self.cleared.items():
                for name in names:
                    self._set(change, self.objects[change], name, None)
            if self.cleared:
                self._flush()
            self._change_links(Operation.DELETE)
            postponed = dict(stages.postponed)
            for stage in stages.stages:
                for changes in self._by_rank(change for change in stage if change not in self._doomed):
                    self._save(changes, postponed)
                    self._flush()
                doomed = [change for change in stage if change in self._doomed]
                for changes in reversed(self._by_rank(doomed)):
                    self._delete(changes)
                    self._flush()
                self._expire_collections(doomed)
            self._change_links(Operation.INSERT)
            self._write_link_values()
            for change, names in postponed.items():
                for name in names:
                    set_attribute(self.objects[change], name, change.new[name])
                for name in self.plan.automatic_fields(change.model) - names:
                    self._keep(change, self.objects[change], name)
            if postponed:
                self._flush()
            self._write_unmapped()
        self._expire_references()

    def _flush(self) -> None:
        self.session.flush()
        self.has_written = True

    def _require_context(self) -> None:
        """Check the required user and reason of all changes before the first flush.

        :raises ContextError: the user or the reason is missing
        """
        lacks = lacking(get_audit_context())
        for change in self.plan.changes if lacks is not None else ():
            fields = [field for field in user_fields_of(change.model.chain) if field is not None]
            values = [(change.new or change.old).get(attribute_of(change.mapper, field) or "") for field in fields]
            names_user = any(value not in (None, "") for value in values)
            require_context(lacks, f"{change.name} is to be written", change.mapper.class_, row_names_user=names_user)

    def _by_rank(self, changes: Iterable[Change]) -> list[list[Change]]:
        """Return the changes of each hierarchy, in the order of their ranks."""
        by_rank: dict[int, list[Change]] = defaultdict(list)
        for change in changes:
            by_rank[self.stages.ranks[change.model.root]].append(change)
        return [by_rank[rank] for rank in sorted(by_rank)]

    @contextmanager
    def _keeping_keys(self) -> Iterator[None]:
        """Let new rows get their old keys within the block, even ``GENERATED ALWAYS`` ones."""
        by_connection: dict[Connection, set[Table]] = defaultdict(set)
        for change in self.plan.changes:
            if change.operation is Operation.INSERT and (tables := tables_that_make_keys(change.mapper)):
                by_connection[connection_for_versions(self.session, change.mapper)] |= tables
        with ExitStack() as stack:
            for connection, tables in by_connection.items():
                stack.enter_context(overriding_keys(connection, tables))
            yield

    def discard(self) -> None:
        """Expunge new objects and expire changed ones, after a flush or a validator of the model has failed."""
        for change, obj in self.objects.items():
            if instance_state(obj).pending:
                self.session.expunge(obj)
            elif change.operation is not Operation.INSERT and instance_state(obj).persistent:
                self.session.add(obj)
                self.session.expire(obj)

    # -- what is there

    def _load(self) -> None:
        """Load the objects that change from the database, over what the session held."""
        by_model: dict[TrackedModel, dict[Key, Change]] = defaultdict(dict)
        for change in self.plan.changes:
            if change.operation is not Operation.INSERT:
                by_model[change.model][change.key] = change
        for model, changes in by_model.items():
            # FOR UPDATE again: without it, MariaDB reads its snapshot, which may be older than the lock.
            deferred = [
                undefer(getattr(model.mapper.class_, name))
                for name in self._written_together(changes.values())[model]
                if model.mapper.attrs[name].deferred
            ]
            for obj in self._load_rows(model, list(changes), *deferred, lock=True, populate_existing=True):
                loaded_key = instance_state(obj).key
                assert loaded_key is not None
                self.objects[changes[tuple(loaded_key[1])]] = obj
            for change in changes.values():
                if change not in self.objects:
                    self.objects[change] = self._find_hidden(change.mapper, change.key)

    def _load_rows(
        self, model: TrackedModel, keys: Sequence[Key], *options: Any, lock: bool = False, **execution: Any
    ) -> Iterator[Any]:
        if isinstance(model.mapper.selectable, Subquery):
            name = model.mapper.class_.__name__
            raise QueryError(
                f"{name} is mapped to a union of tables, whose rows may have equal keys and cannot be locked, so it "
                f"cannot be restored. Give a {name} of the session the values of its old version.",
                model.mapper.class_,
            )
        statement = select(model.mapper.class_).options(*options)
        if lock:
            statement = with_row_locks(self.session, statement, model)
        for chunk in chunks(keys):
            where = one_of(model.root.table.key, chunk)
            yield from self.session.scalars(
                statement.where(where), execution_options={**INTERNAL, **execution}
            ).unique()

    def _find_hidden(self, mapper: Mapper[Any], key: Key) -> Any:
        """Return the object of a row that a user's listener hides from queries.

        The object is expired and loads its attributes on access, which such listeners let pass.
        """
        obj = self._find_in_session(mapper, key)
        if obj is None:
            obj = mapper.class_manager.new_instance()
            for column, value in zip(mapper.primary_key, key, strict=True):
                set_committed_value(obj, mapper.get_property_by_column(column).key, value)
            make_transient_to_detached(obj)
            self.session.add(obj)
        self.session.expire(obj)
        return obj

    def _load_relationships(self, changes: Sequence[Change]) -> None:
        """Load the relationships that the unit of work examines when it deletes objects, in sets.

        Leave out tracked objects that this flush does not delete, so that no cascade deletes them. Leave out the object
        itself, too: the unit of work would find a circle.
        """
        keys: dict[TrackedModel, list[Key]] = defaultdict(list)
        for change in changes:
            keys[change.model].append(change.key)
        for model, owners in keys.items():
            if options := _all_relationships(model.mapper):
                for _ in self._load_rows(model, owners, *options):
                    pass
        going = {id(self.objects[change]) for change in changes}
        for change in changes:
            obj = self.objects[change]
            for relationship in _without_links(change.mapper):
                items = _loaded(obj, relationship)
                is_left = relationship.direction is RelationshipDirection.MANYTOONE and not relationship.cascade.delete
                kept = [
                    item
                    for item in items
                    if item is not obj and (is_left or id(item) in going or tracked_model(object_mapper(item)) is None)
                ]
                if len(kept) < len(items):
                    set_committed_value(obj, relationship.key, kept if relationship.uselist else (kept or [None])[0])

    # -- rows

    def _save(self, changes: Sequence[Change], postponed: Mapping[Change, set[str]]) -> None:
        written = self._written_together(changes)
        inserted = [change for change in changes if change.operation is Operation.INSERT]
        for change in inserted:
            self.objects[change] = self._make_object(change, postponed.get(change, set()))
        self._give_parents(inserted)
        self.session.add_all([self.objects[change] for change in inserted])
        for change in changes:
            if change.operation is Operation.UPDATE:
                self._update(change, self.objects[change], written[change.model])
        self._expire_collections(changes)

    def _delete(self, changes: Sequence[Change]) -> None:
        # A listener or a cascade may have deleted some of them.
        changes = [change for change in changes if instance_state(self.objects[change]).persistent]
        for change in changes:
            obj = self.objects[change]
            if loaded := instance_dict(obj).keys() & change.mapper.relationships.keys():
                self.session.expire(obj, loaded)
        self._load_relationships(changes)
        for change in changes:
            self.session.delete(self.objects[change])

    def _make_object(self, change: Change, postponed: set[str]) -> Any:
        """Make an object without calling its ``__init__``, which may do more than set attributes."""
        mapper = change.mapper
        obj = mapper.class_manager.new_instance()
        if (identify := mapper._set_polymorphic_identity) is not None:
            identify(instance_state(obj))
        nulls = self._nulls_of(mapper)
        for name, value in change.new.items():
            if name not in postponed and (value is not None or name not in nulls.left_out):
                self._set(change, obj, name, value)
        return obj

    def _set(self, change: Change, obj: Any, name: str, value: Any) -> None:
        """Set an attribute as the model's own code would, and store a ``None`` as it was stored in the version.

        Validators and mutable types receive ``None``. If they keep it, an SQL expression replaces it.
        """
        is_none = value is None or value is JSON.NULL
        set_attribute(obj, name, None if is_none else value)
        values = instance_dict(obj)
        if is_none and values.get(name, obj) is None and not self._is_stored_by_none(change, name, value):
            values[name] = null() if value is None else change.copy_expression(name)
        elif change.operation is not Operation.INSERT and not _seems_changed(obj, name):
            values[name] = literal(values[name], change.mapper.attrs[name].columns[0].type)  # never compared

    def _is_stored_by_none(self, change: Change, name: str, value: Any) -> bool:
        """Return whether the unit of work stores ``None`` as the wanted value: NULL, or the null of JSON."""
        nulls = self._nulls_of(change.mapper)
        if value is None:
            return change.operation is not Operation.INSERT and name in nulls.updated
        return name in nulls.of_json

    def _nulls_of(self, mapper: Mapper[Any]) -> _Nulls:
        if mapper not in self._nulls:
            self._nulls[mapper] = _Nulls(mapper, bind_arguments_for(self.session, mapper)["bind"].dialect)
        return self._nulls[mapper]

    def _written_together(self, stage: Iterable[Change]) -> dict[TrackedModel, set[str]]:
        """Return the attributes that all updates of a model set: the same ones, so that one executemany does."""
        written: dict[TrackedModel, set[str]] = defaultdict(set)
        for change in stage:
            if change.operation is Operation.UPDATE:
                written[change.model].update(change.fields)
        for model, names in written.items():
            names |= self.plan.automatic_fields(model)
        return written

    def _update(self, change: Change, obj: Any, names: set[str]) -> None:
        cleared = self.cleared.get(change, set())
        for name in sorted(names | cleared):
            if name in change.fields or name in cleared:
                self._set(change, obj, name, change.new[name])
            else:
                self._keep(change, obj, name)
        for composite in change.mapper.composites:
            instance_dict(obj).pop(composite.key, None)

    def _keep(self, change: Change, obj: Any, name: str) -> None:
        """Write an unchanged attribute, too: its value, or else its own column if ``onupdate`` would change it."""
        values = instance_dict(obj)
        value = values.get(name)
        is_given = value is not None or (name in values and self._is_stored_by_none(change, name, change.old.get(name)))
        if is_given and _is_unlike(obj, name, value, LoaderCallableStatus.NO_VALUE):
            flag_modified(obj, name)
        elif name in self.plan.automatic_fields(change.model):
            values[name] = change.mapper.attrs[name].columns[0]
            flag_modified(obj, name)

    def _write_unmapped(self) -> None:
        """Write the columns that no attribute is mapped to, after their rows: one statement per row and table.

        Those that have changed with the row get their values again.
        """
        for change in self.plan.changes:
            wanted = {column: value for column, (_, value) in change.unmapped.items()}
            automatic: frozenset[Column[Any]] = frozenset()
            if change.target is not None:
                automatic = self.plan.automatic_columns(change.model)
                if change.operation is Operation.UPDATE:
                    unmapped = change.target.unmapped
                    wanted |= {column: unmapped[column] for column in automatic & unmapped.keys()}
            for table in change.model.chain:
                values = {
                    column: null() if value is None else value
                    for column, value in wanted.items()
                    if column.table is table.live
                }
                if values:
                    kept = {column: column for column in table.live.c if column in automatic}
                    key = (column == part for column, part in zip(table.key, change.key, strict=True))
                    self.session.execute(
                        update(table.live).where(*key).values(kept | values),
                        bind_arguments=bind_arguments_for(self.session, change.mapper),
                    )

    def _give_parents(self, inserted: Sequence[Change]) -> None:
        """Give new objects the parents without which ``delete-orphan`` would take them for orphans."""
        children: dict[RelationshipProperty[Any], list[Change]] = defaultdict(list)
        for change in inserted:
            for mapper in change.mapper.iterate_to_root():
                for name, parent_class in mapper._delete_orphans:
                    children[class_mapper(parent_class).relationships[name]].append(change)
        for relationship, changes in children.items():
            remote_columns, local_columns = zip(*relationship.synchronize_pairs, strict=True)
            values = {change: change.new_values(local_columns) for change in changes if relationship.secondary is None}
            parents = self._objects_at_end(relationship.parent, remote_columns, set(filter(None, values.values())), [])
            for change in changes:
                state, parent = instance_state(self.objects[change]), parents.get(values.get(change) or ())
                _set_parent(state, relationship, state if parent is None else instance_state(parent))

    # -- links

    def _change_links(self, operation: Operation) -> None:
        by_relationship: dict[RelationshipProperty[Any], list[LinkChange]] = defaultdict(list)
        for change in self.links:
            if change.operation is operation:
                by_relationship[change.relationship].append(change)
        for relationship, changes in by_relationship.items():
            self._change_links_of(relationship, changes)
        if by_relationship:
            self._flush()
        for relationship, states in self._parentless.items():
            for state in states:
                _set_parent(state, relationship, None)
        self._parentless.clear()

    def _write_link_values(self) -> None:
        """Write the further columns of links, which no relationship gives a value: one statement per link."""
        for change in self.links:
            if not change.further or change.operation is Operation.DELETE:
                continue
            table, row = change.table.live, change.by_column
            if change.operation is Operation.UPDATE:
                row = dict(zip(change.table.key, change.key, strict=True))
            values = {column: null() if new is None else new for column, (_, new) in change.further.items()}
            self.session.execute(
                update(table).where(*(column == value for column, value in row.items())).values(values),
                bind_arguments=bind_arguments_for(self.session, change.table.mapper),
            )

    def _change_links_of(self, relationship: RelationshipProperty[Any], changes: Sequence[LinkChange]) -> None:
        width = len(relationship.synchronize_pairs)
        local_columns = [column for column, _ in relationship.synchronize_pairs]
        remote_columns = [column for column, _ in relationship.secondary_synchronize_pairs or ()]
        eager = [] if relationship.lazy in _QUERIES else [selectinload(relationship.class_attribute)]
        owners = self._objects_at_end(
            relationship.parent, local_columns, {change.link[:width] for change in changes}, eager
        )
        others = self._objects_at_end(
            relationship.mapper, remote_columns, {change.link[width:] for change in changes}, []
        )
        names = [attribute_of(relationship.parent, column) or "" for column in local_columns]
        for link, owner in owners.items():
            if eager and instance_state(owner).persistent and link != tuple([getattr(owner, name) for name in names]):
                self.session.expire(owner, [relationship.key])  # selectinload finds one spelling only
        for change in changes:
            owner, other = owners.get(change.link[:width]), others.get(change.link[width:])
            if owner is None or other is None:
                for reverse in relationship._reverse_property if other is not None else ():
                    if reverse.key in instance_dict(other) and reverse.lazy not in _QUERIES:
                        self.session.expire(other, [reverse.key])
                continue  # the unit of work deletes the links of a deleted object
            self._set_link(change, owner, other)

    def _set_link(self, change: LinkChange, owner: Any, other: Any) -> None:
        """Add or remove a link, whatever SQLAlchemy knows of the one parent that the other object may have.

        ``delete-orphan`` would delete an object that loses its link, though a later flush may give it another one.
        """
        relationship, state, values = change.relationship, instance_state(owner), instance_dict(owner)
        implementation = state.manager[relationship.key].impl
        is_added = change.operation is Operation.INSERT
        if is_added:
            _set_parent(instance_state(other), relationship, None)
        if not relationship.uselist:
            set_attribute(owner, relationship.key, other if is_added else None)
        elif is_added:
            implementation.append(state, values, other, None)
        else:
            implementation.remove(state, values, other, None)
        if not is_added and relationship.cascade.delete_orphan:
            _set_parent(instance_state(other), relationship, instance_state(other))
            self._parentless[relationship].append(instance_state(other))

    def _objects_at_end(
        self, mapper: Mapper[Any], columns: Sequence[Any], values: set[Key], options: Sequence[Any]
    ) -> dict[Key, Any]:
        """Return the objects at one end of links, new or loaded, by the values with which the links refer to them."""
        objects: dict[Key, Any] = {}
        for change, obj in self.objects.items():
            if issubclass(change.mapper.class_, mapper.class_):
                value = (
                    change.old_values(columns) if change.operation is Operation.DELETE else change.new_values(columns)
                )
                objects.update((known, obj) for known in {value, *self.plan.respelt.get(change, ())} & values)
        names = [attribute_of(mapper, column) or "" for column in columns]
        missing = [value for value in values if value not in objects or instance_state(objects[value]).key is not None]
        statement = select(mapper.class_).options(*options)

        def read(values: Collection[Key]) -> Iterator[tuple[Key, Any]]:
            for chunk in chunks(list(values)):
                for obj in self.session.scalars(statement.where(one_of(columns, chunk))).unique():
                    yield tuple([getattr(obj, name) for name in names]), obj

        objects |= read_by_value(missing, read)
        for value in values - objects.keys() if set(columns) == set(mapper.primary_key) else ():
            by_column = dict(zip(columns, value, strict=True))
            objects[value] = self._find_hidden(mapper, tuple([by_column[column] for column in mapper.primary_key]))
        return objects

    # -- what the session has loaded

    def _expire_collections(self, stage: Sequence[Change]) -> None:
        """Expire loaded relationships to which changes add objects, or from which they remove objects."""
        by_model: dict[TrackedModel, list[tuple[RelationshipProperty[Any], list[Any]]]] = {}
        for change in stage:
            if change.model not in by_model:
                by_model[change.model] = list(_collections_of(change.mapper))
            for relationship, columns in by_model[change.model]:
                for value in {change.old_values(columns), change.new_values(columns)} - {None}:
                    parent = self._find_in_session(relationship.parent, value)
                    if parent is not None and relationship.key in instance_dict(parent):
                        self.session.expire(parent, [relationship.key])

    def _expire_references(self) -> None:
        """Expire loaded relationships whose foreign keys were set. A flush may have loaded them by the old values."""
        for change in self.plan.changes:
            obj = self.objects[change]
            stale = [
                relationship.key
                for relationship in (() if change in self._doomed else change.mapper.relationships)
                if relationship.key in instance_dict(obj)
                and any(attribute_of(change.mapper, column) in change.fields for column in relationship.local_columns)
            ]
            if stale:
                self.session.expire(obj, stale)

    def _find_in_session(self, mapper: Mapper[Any], key: Key | None) -> Any:
        if key is None or len(key) != len(mapper.primary_key):
            return None
        return self.session.identity_map.get(mapper.identity_key_from_primary_key(key))


def _set_parent(
    state: InstanceState[Any], relationship: RelationshipProperty[Any], parent: InstanceState[Any] | None
) -> None:
    """Set the object that SQLAlchemy takes for the parent of another by a relationship, or forget it."""
    implementation = relationship.class_attribute.impl
    state.parents.pop(id(implementation.parent_token), None)
    if parent is not None:
        implementation.sethasparent(state, parent, True)


def _all_relationships(mapper: Mapper[Any]) -> list[Any]:
    """Return the options that load the relationships that the unit of work examines when it deletes an object."""
    return [
        selectinload(getattr(mapper.class_, relationship.key))
        for relationship in mapper.relationships
        if not relationship.viewonly and relationship.lazy not in _QUERIES
    ]


def _collections_of(mapper: Mapper[Any]) -> Iterator[tuple[RelationshipProperty[Any], list[Any]]]:
    """Yield the one-to-many relationships to a mapper, with its columns that hold the primary key of the owner."""
    for owner in mappers_of(mapper.registry):
        key = [owner.get_property_by_column(column).key for column in owner.primary_key]
        for relationship in owner.relationships:
            if relationship.direction is RelationshipDirection.ONETOMANY and mapper.isa(relationship.mapper):
                named = {attribute_of(owner, local): remote for local, remote in relationship.local_remote_pairs or ()}
                if named.keys() >= set(key):
                    yield relationship, [named[name] for name in key]


def _without_links(mapper: Mapper[Any]) -> list[RelationshipProperty[Any]]:
    return [
        relationship
        for relationship in mapper.relationships
        if not relationship.viewonly and relationship.secondary is None
    ]


def _loaded(obj: Any, relationship: RelationshipProperty[Any]) -> list[Any]:
    if relationship.key not in instance_dict(obj):
        return []
    state = instance_state(obj)
    return [
        item for _, item in state.manager[relationship.key].impl.get_all_pending(state, state.dict) if item is not None
    ]


def _seems_changed(obj: Any, name: str) -> bool:
    """Return whether the unit of work will see that an attribute was set: in JSON, it takes 1 and true for equal."""
    state = instance_state(obj)
    before = state.committed_state.get(name, LoaderCallableStatus.NO_VALUE)
    return _is_unlike(obj, name, state.dict[name], before)


def _is_unlike(obj: Any, name: str, value: Any, other: Any) -> bool:
    """Return whether the unit of work takes two values for different; False if it fails to compare them."""
    try:
        return instance_state(obj).manager[name].impl.is_equal(value, other) is not True
    except Exception:
        return False


class _Nulls:
    """The attributes of a mapper for which the unit of work stores ``None`` as NULL, or as the null of JSON.

    :ivar left_out: attributes that are NULL in a new row if they are given no value
    :ivar updated: attributes that an UPDATE sets to NULL if they are ``None``
    :ivar of_json: attributes that are stored as the null of JSON if they are ``None``
    """

    def __init__(self, mapper: Mapper[Any], dialect: Dialect) -> None:
        types = {prop.key: prop.columns[0].type for prop in mapper.column_attrs}
        evaluated = {name for name, type_ in types.items() if type_.should_evaluate_none}
        self.updated = {name for name, type_ in types.items() if stores_null(type_, dialect)}
        self.left_out = (self.updated | evaluated) - _with_default(mapper)
        self.of_json = {name for name in evaluated - self.updated if isinstance(types[name], JSON)}


def _with_default(mapper: Mapper[Any]) -> set[str]:
    """Return the attributes that have a default on INSERT."""
    later = getattr(mapper, "_insert_orm_defaults", {})  # SQLAlchemy 2.1
    defaults = {name for table in later for name, *_ in later[table]}
    for prop in mapper.column_attrs:
        column: Any = prop.columns[0]
        if isinstance(column, Column) and (column.default is not None or column.server_default is not None):
            defaults.add(prop.key)
    return defaults
