"""How does the unit of work carry out a plan? Changes and links → objects that are new, dirty or deleted.

Columns are set, not relationships: snapshots are columns, and the relationships of a restored object are read when
they are asked for. What the unit of work would load object by object is loaded in sets before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import JSON, Column, Dialect, Subquery, literal, null, select, update
from sqlalchemy.orm import (
    LoaderCallableStatus,
    Mapper,
    RelationshipProperty,
    Session,
    class_mapper,
    make_transient_to_detached,
    selectinload,
    undefer,
)
from sqlalchemy.orm.attributes import flag_modified, instance_dict, instance_state, set_attribute, set_committed_value

from sqlaudit.changes import Operation
from sqlaudit.context import AuditContextManager, get_audit_context
from sqlaudit.exceptions import QueryError
from sqlaudit.flush import Restoring, forget_restoring, restoring
from sqlaudit.history import where_rows_are
from sqlaudit.keytypes import Key, one_of
from sqlaudit.models import TrackedModel
from sqlaudit.ordering import Stages, parents_of
from sqlaudit.plan import Change, LinkChange, Plan, constraints_of, covering
from sqlaudit.rows import attribute_of, found_by, locked, stores_null
from sqlaudit.statements import chunks

_QUERIES: Final = ("dynamic", "write_only")


def carry_out(plan: Plan, stages: Stages, reason: str) -> None:
    """Let the session make the changes of a plan, when it flushes; if one flush cannot, all but the last are made now.

    :param reason: why, if the context of the flush does not say
    """
    application = _Application(plan, stages, reason)
    with plan.session.no_autoflush:
        try:
            application.run()
        except BaseException:
            application.withdraw()
            raise


class _Application:
    def __init__(self, plan: Plan, stages: Stages, reason: str) -> None:
        self.plan = plan
        self.stages = stages
        self.session: Session = plan.session
        self.reason = reason
        self.links = list(plan.links.values())
        self.loosened = dict(stages.loosened)
        self.objects: dict[Change, Any] = {}
        self._nulls: dict[Mapper[Any], _Nulls] = {}

    def run(self) -> None:
        stages = self.stages
        self._load()
        self._leave_out_the_moved()
        for change, names in self.loosened.items():
            self._set_null(change, names)
        if self.loosened:
            self.session.flush()
        postponed = dict(stages.postponed)
        self._change_links(Operation.DELETE)
        for number, stage in enumerate(stages.stages):
            if number:
                self.session.flush()
            self._make(stage, postponed)
        self._change_links(Operation.INSERT)
        if postponed:
            self.session.flush()
        for change, names in postponed.items():
            for name in names:
                set_attribute(self.objects[change], name, change.new[name])
            self._touch(self.objects[change], names)
        self._write_unmapped()

    def withdraw(self) -> None:
        """Take back what the session would write, for something (a validator of the model) has refused it."""
        forget_restoring(self.session)
        for change, obj in self.objects.items():
            if instance_state(obj).pending:
                self.session.expunge(obj)
            elif change.operation is not Operation.INSERT and instance_state(obj).persistent:
                self.session.add(obj)
                self.session.expire(obj)

    # -- the next flush

    def _touch(self, obj: Any, names: Iterable[str] = ()) -> None:
        """Tell the next flush why an object is written, and in which order.

        :param names: the attributes that were set
        """
        found: Restoring = restoring(self.session)
        values = instance_dict(obj)
        found.reasons[instance_state(obj)] = self.reason, {name: values[name] for name in names if name in values}
        if not found.order:
            found.order = self._order()

    def _order(self) -> set[tuple[Mapper[Any], Mapper[Any]]]:
        ranks = self.stages.ranks
        pairs = ((parent, child) for child in ranks for parent in parents_of(child) if parent in ranks)
        return {
            (parent.mapper.base_mapper, child.mapper.base_mapper)
            for parent, child in pairs
            if ranks[parent] < ranks[child] and parent.mapper.base_mapper is not child.mapper.base_mapper
        }

    # -- what is there

    def _load(self) -> None:
        """Load the objects that change as the database has them, whatever the session held.

        Of those that go, load what the unit of work looks at, too: in sets, and when nothing resets it any more.
        """
        by_model: dict[TrackedModel, dict[Key, Change]] = defaultdict(dict)
        doomed: dict[TrackedModel, list[Key]] = defaultdict(list)
        for change in self.plan.changes:
            if change.operation is not Operation.INSERT:
                by_model[change.model][change.key] = change
            if change.operation is Operation.DELETE:
                doomed[change.model].append(change.key)
        for model, changes in by_model.items():
            # Under the lock again, or a snapshot of MariaDB's would show them as they were before it.
            deferred = [
                undefer(getattr(model.mapper.class_, name))
                for name in self._written_together(changes.values())[model]
                if model.mapper.attrs[name].deferred
            ]
            for obj in self._rows_of(model, list(changes), *deferred, lock=True, populate_existing=True):
                found = instance_state(obj).key
                assert found is not None
                self.objects[changes[tuple(found[1])]] = obj
            for change in changes.values():
                if change not in self.objects:
                    self.objects[change] = self._hidden(change.mapper, change.key)
        for model, keys in doomed.items():
            if options := _all_relationships(model.mapper):
                for _ in self._rows_of(model, keys, *options):
                    pass

    def _rows_of(
        self, model: TrackedModel, keys: Sequence[Key], *options: Any, lock: bool = False, **execution: Any
    ) -> Iterator[Any]:
        if isinstance(model.mapper.selectable, Subquery):
            name = model.mapper.class_.__name__
            raise QueryError(
                f"{name} selects from a union of tables, whose rows may have the same keys and can't be locked, and is "
                f"not restored; give a {name} of the session the values of its old version.",
                model.mapper.class_,
            )
        statement = select(model.mapper.class_).options(*options)
        if lock:
            statement = locked(statement, model)
        for chunk in chunks(keys):
            where = one_of(model.root.table.key, chunk)
            yield from self.session.scalars(statement.where(where), execution_options=execution).unique()

    def _hidden(self, mapper: Mapper[Any], key: Key) -> Any:
        """Return the object of a row that queries do not find, because a listener of the user's leaves out some rows.

        It loads its attributes itself, when it is asked for them: such listeners let this pass.
        """
        obj = self._in_session(mapper, key)
        if obj is None:
            obj = mapper.class_manager.new_instance()
            for column, value in zip(mapper.primary_key, key, strict=True):
                set_committed_value(obj, mapper.get_property_by_column(column).key, value)
            make_transient_to_detached(obj)
            self.session.add(obj)
        self.session.expire(obj)
        return obj

    def _leave_out_the_moved(self) -> None:
        """Keep those that get another parent, or none, from going with the one that they have now."""
        moved = {id(obj) for change, obj in self.objects.items() if change.operation is Operation.UPDATE}
        for change, obj in self.objects.items():
            if change.operation is Operation.DELETE and moved:
                for relationship in _downwards(change.mapper):
                    items = _loaded(obj, relationship)
                    if any(id(item) in moved for item in items):
                        kept = [item for item in items if id(item) not in moved]
                        value = kept if relationship.uselist else (kept or [None])[0]
                        set_committed_value(obj, relationship.key, value)

    # -- rows

    def _make(self, stage: Sequence[Change], postponed: Mapping[Change, set[str]]) -> None:
        written = self._written_together(stage)
        inserted = [change for change in stage if change.operation is Operation.INSERT]
        for change in inserted:
            obj = self.objects[change] = self._new(change, postponed.get(change, set()))
            self._touch(obj)
        self._give_parents(inserted)
        self.session.add_all([self.objects[change] for change in inserted])
        for change in stage:
            obj = self.objects[change]
            if change.operation is Operation.UPDATE:
                self._update(change, obj, written[change.model])
                self._touch(obj, change.fields)
            elif change.operation is Operation.DELETE:
                self._touch(obj)
                self.session.delete(obj)
        self._expire_collections(stage)

    def _new(self, change: Change, postponed: set[str]) -> Any:
        """Make an object without calling its ``__init__``, which may do more than to set attributes."""
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
        """Set an attribute as the model's own code would, and let a ``None`` be in the database what it was.

        Validators and mutable types are given ``None``: an SQL expression takes its place when they have let it pass.
        """
        is_none = value is None or value is JSON.NULL
        set_attribute(obj, name, None if is_none else value)
        values = instance_dict(obj)
        if is_none and values.get(name, obj) is None and not self._is_stored_by_none(change, name, value):
            values[name] = null() if value is None else change.copied(name)
        elif change.operation is not Operation.INSERT and not _seems_changed(obj, name):
            values[name] = literal(values[name], change.mapper.attrs[name].columns[0].type)  # is not compared

    def _is_stored_by_none(self, change: Change, name: str, value: Any) -> bool:
        """Tell whether the unit of work makes the wanted of ``None``: NULL, or the null of JSON."""
        nulls = self._nulls_of(change.mapper)
        if value is None:
            return change.operation is not Operation.INSERT and name in nulls.updated
        return name in nulls.of_json

    def _nulls_of(self, mapper: Mapper[Any]) -> _Nulls:
        if mapper not in self._nulls:
            self._nulls[mapper] = _Nulls(mapper, where_rows_are(self.session, mapper)["bind"].dialect)
        return self._nulls[mapper]

    def _written_together(self, stage: Iterable[Change]) -> dict[TrackedModel, set[str]]:
        """Return the attributes that the updates of each model set: the same for all, so that one statement does."""
        written: dict[TrackedModel, set[str]] = defaultdict(set)
        for change in stage:
            if change.operation is Operation.UPDATE:
                written[change.model].update(change.fields)
        for model, names in written.items():
            names |= self.plan.fields_of(model).automatic
        return written

    def _update(self, change: Change, obj: Any, names: set[str]) -> None:
        loosened = self.loosened.get(change, set())
        for name in sorted(names | loosened):
            if name in change.fields or name in loosened:
                self._set(change, obj, name, change.new[name])
            else:
                self._keep(change, obj, name)
        for composite in change.mapper.composites:
            instance_dict(obj).pop(composite.key, None)

    def _keep(self, change: Change, obj: Any, name: str) -> None:
        """Let an attribute be written as it is, if nothing stands in the way, or if it would change of itself."""
        values = instance_dict(obj)
        value = values.get(name)
        is_given = value is not None or (name in values and self._is_stored_by_none(change, name, change.old[name]))
        if is_given and _is_unlike(obj, name, value, LoaderCallableStatus.NO_VALUE):
            flag_modified(obj, name)
        elif name in self.plan.fields_of(change.model).automatic:
            values[name] = change.mapper.attrs[name].columns[0]
            flag_modified(obj, name)

    def _set_null(self, change: Change, names: set[str]) -> None:
        obj = self.objects[change]
        for name in names:
            self._set(change, obj, name, None)
        self._touch(obj, names)

    def _write_unmapped(self) -> None:
        """Write the columns that are mapped to no attribute, behind the flush of their rows. One statement per row."""
        changes = [change for change in self.plan.changes if change.unmapped]
        if not changes:
            return
        self.session.flush()
        with AuditContextManager(reason=get_audit_context().reason or self.reason):
            for change in changes:
                for table in change.model.chain:
                    automatic = {
                        column: column
                        for column in table.live.c
                        if column.onupdate is not None or column.server_onupdate is not None
                    }
                    values = {
                        column: null() if value is None else value
                        for column, (_, value) in change.unmapped.items()
                        if column.table is table.live
                    }
                    if values:
                        key = (column == part for column, part in zip(table.key, change.key, strict=True))
                        self.session.execute(
                            update(table.live).where(*key).values(automatic | values),
                            bind_arguments=where_rows_are(self.session, change.mapper),
                        )

    def _give_parents(self, inserted: Sequence[Change]) -> None:
        """Let new rows know the parents without which the unit of work would take them for orphans."""
        children: dict[RelationshipProperty[Any], list[Change]] = defaultdict(list)
        for change in inserted:
            for mapper in change.mapper.iterate_to_root():
                for name, parent_class in mapper._delete_orphans:
                    children[class_mapper(parent_class).relationships[name]].append(change)
        for relationship, changes in children.items():
            theirs, ours = zip(*relationship.synchronize_pairs, strict=True)
            values = {change: change.has(ours) for change in changes if relationship.secondary is None}
            parents = self._ends(relationship.parent, theirs, set(filter(None, values.values())), [])
            implementation = relationship.class_attribute.impl
            for change in changes:
                state, parent = instance_state(self.objects[change]), parents.get(values.get(change) or ())
                implementation.sethasparent(state, state if parent is None else instance_state(parent), True)

    # -- links

    def _change_links(self, operation: Operation) -> None:
        by_relationship: dict[RelationshipProperty[Any], list[LinkChange]] = defaultdict(list)
        for change in self.links:
            if change.operation is operation:
                by_relationship[change.relationship].append(change)
        for relationship, changes in by_relationship.items():
            self._change_links_of(relationship, changes)

    def _change_links_of(self, relationship: RelationshipProperty[Any], changes: Sequence[LinkChange]) -> None:
        width = len(relationship.synchronize_pairs)
        ours = [column for column, _ in relationship.synchronize_pairs]
        theirs = [column for column, _ in relationship.secondary_synchronize_pairs or ()]
        eager = [] if relationship.lazy in _QUERIES else [selectinload(relationship.class_attribute)]
        owners = self._ends(relationship.parent, ours, {change.link[:width] for change in changes}, eager)
        others = self._ends(relationship.mapper, theirs, {change.link[width:] for change in changes}, [])
        going = {id(obj) for change, obj in self.objects.items() if change.operation is Operation.DELETE}
        names = [attribute_of(relationship.parent, column) or "" for column in ours]
        for link, owner in owners.items():
            if eager and instance_state(owner).persistent and link != tuple([getattr(owner, name) for name in names]):
                self.session.expire(owner, [relationship.key])  # eager loading knows of one spelling alone
        for change in changes:
            owner, other = owners.get(change.link[:width]), others.get(change.link[width:])
            restoring(self.session).links[change.table.live, change.identity] = self.reason
            if owner is None or other is None or (id(owner) in going and eager):
                for reverse in relationship._reverse_property if other is not None else ():
                    if reverse.key in instance_dict(other) and reverse.lazy not in _QUERIES:
                        self.session.expire(other, [reverse.key])
                continue  # the unit of work ends the links of what goes
            self._touch_link(change, owner, other)

    def _touch_link(self, change: LinkChange, owner: Any, other: Any) -> None:
        relationship = change.relationship
        state, values = instance_state(owner), instance_dict(owner)
        implementation = state.manager[relationship.key].impl
        if change.operation is Operation.INSERT:
            if not relationship.uselist:
                set_attribute(owner, relationship.key, other)
            else:
                implementation.append(state, values, other, None)
        elif not relationship.uselist:
            set_attribute(owner, relationship.key, None)
        else:
            implementation.remove(state, values, other, None)

    def _ends(
        self, mapper: Mapper[Any], columns: Sequence[Any], values: set[Key], options: Sequence[Any]
    ) -> dict[Key, Any]:
        """Return the objects at the ends of links by the values that the links repeat: new ones, or loaded."""
        found: dict[Key, Any] = {}
        for change, obj in self.objects.items():
            if issubclass(change.mapper.class_, mapper.class_):
                value = change.had(columns) if change.operation is Operation.DELETE else change.has(columns)
                found.update((known, obj) for known in {value, *self.plan.respelt.get(change, ())} & values)
        names = [attribute_of(mapper, column) or "" for column in columns]
        missing = [value for value in values if value not in found or instance_state(found[value]).key is not None]
        statement = select(mapper.class_).options(*options)

        def read(some: Collection[Key]) -> Iterator[tuple[Key, Any]]:
            for chunk in chunks(list(some)):
                for obj in self.session.scalars(statement.where(one_of(columns, chunk))).unique():
                    yield tuple([getattr(obj, name) for name in names]), obj

        found |= found_by(missing, read)
        for value in values - found.keys() if set(columns) == set(mapper.primary_key) else ():
            by_column = dict(zip(columns, value, strict=True))
            found[value] = self._hidden(mapper, tuple([by_column[column] for column in mapper.primary_key]))
        return found

    # -- what the session has loaded

    def _expire_collections(self, stage: Sequence[Change]) -> None:
        """Let collections in the session that members come to, or leave, be read anew."""
        covered: dict[TrackedModel, list[tuple[Any, RelationshipProperty[Any]]]] = {}
        doomed = {id(obj) for change, obj in self.objects.items() if change.operation is Operation.DELETE}
        for change in stage:
            if change.model not in covered:
                constraints = constraints_of(change.model)
                covered[change.model] = [
                    (each, relationship) for each in constraints for relationship in covering(each)
                ]
            for constraint, relationship in covered[change.model]:
                columns = [element.parent for element in constraint.elements]
                for value in {change.had(columns), change.has(columns)} - {None}:
                    parent = self._in_session(relationship.parent, value)
                    if parent is not None and id(parent) not in doomed and relationship.key in instance_dict(parent):
                        self.session.expire(parent, [relationship.key])

    def _in_session(self, mapper: Mapper[Any], key: Key | None) -> Any:
        if key is None or len(key) != len(mapper.primary_key):
            return None
        return self.session.identity_map.get(mapper.identity_key_from_primary_key(key))


def _all_relationships(mapper: Mapper[Any]) -> list[Any]:
    """Return the options that load all that the unit of work looks at when it deletes an object."""
    return [
        selectinload(getattr(mapper.class_, relationship.key))
        for relationship in mapper.relationships
        if not relationship.viewonly and relationship.lazy not in _QUERIES
    ]


def _downwards(mapper: Mapper[Any]) -> list[RelationshipProperty[Any]]:
    return [
        relationship
        for relationship in mapper.relationships
        if not relationship.viewonly and relationship.secondary is None and relationship.direction.name == "ONETOMANY"
    ]


def _loaded(obj: Any, relationship: RelationshipProperty[Any]) -> list[Any]:
    if relationship.key not in instance_dict(obj):
        return []
    state = instance_state(obj)
    return [
        item for _, item in state.manager[relationship.key].impl.get_all_pending(state, state.dict) if item is not None
    ]


def _seems_changed(obj: Any, name: str) -> bool:
    """Tell whether the unit of work will see that an attribute was set: in JSON, it takes 1 and true for equal."""
    state = instance_state(obj)
    before = state.committed_state.get(name, LoaderCallableStatus.NO_VALUE)
    return _is_unlike(obj, name, state.dict[name], before)


def _is_unlike(obj: Any, name: str, value: Any, other: Any) -> bool:
    """Tell whether the unit of work takes two values for different; not so if it fails to compare them."""
    try:
        return instance_state(obj).manager[name].impl.is_equal(value, other) is not True
    except Exception:
        return False


class _Nulls:
    """Of which attributes of a mapper does ``None`` become NULL, or the null of JSON?

    :ivar left_out: those that a new row holds NULL in if they are given no value
    :ivar updated: those that an UPDATE sets to NULL if they are ``None``
    :ivar of_json: those that hold the null of JSON if they are ``None``
    """

    def __init__(self, mapper: Mapper[Any], dialect: Dialect) -> None:
        types = {prop.key: prop.columns[0].type for prop in mapper.column_attrs}
        evaluated = {name for name, type_ in types.items() if type_.should_evaluate_none}
        self.updated = {name for name, type_ in types.items() if stores_null(type_, dialect)}
        self.left_out = (self.updated | evaluated) - _with_default(mapper)
        self.of_json = {name for name in evaluated - self.updated if isinstance(types[name], JSON)}


def _with_default(mapper: Mapper[Any]) -> set[str]:
    """Return the attributes that get a value on INSERT if they are given none."""
    later = getattr(mapper, "_insert_orm_defaults", {})  # of SQLAlchemy 2.1
    defaults = {name for table in later for name, *_ in later[table]}
    for prop in mapper.column_attrs:
        column: Any = prop.columns[0]
        if isinstance(column, Column) and (column.default is not None or column.server_default is not None):
            defaults.add(prop.key)
    return defaults
