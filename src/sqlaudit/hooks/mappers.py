"""Which classes are listened to? Tracked models, the classes that they follow, and those that share their tables.

They are told from others when a mapper is made or configured, and when a table or a class gains columns.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy import (
    Column,
    Table,
    event,
)
from sqlalchemy.orm import (
    ColumnProperty,
    Mapper,
    RelationshipProperty,
    Session,
)
from sqlalchemy.orm.mapper import _all_registries

from sqlaudit.hooks.configured import configured_mappers, newly_configured_mappers, remember_configured
from sqlaudit.hooks.engines import hear_waiting
from sqlaudit.hooks.objects import (
    FOLLOWED_LISTENERS,
    MODEL_LISTENERS,
    MergeGuard,
    is_live,
    refuse_past_object,
    written_by_other_mapper,
)
from sqlaudit.hooks.schema import (
    after_create,
    after_create_table,
    after_drop,
    after_drop_table,
    before_create,
    before_create_table,
)
from sqlaudit.past.attributes import add_mixin, hide_if_excluded
from sqlaudit.past.collections import read_collections_from_past
from sqlaudit.past.objects import refuse_reference
from sqlaudit.recording.bulk.append_only import is_history
from sqlaudit.recording.tracked_mappers import forget_tracked_mapper, sources_of
from sqlaudit.tracking.foreign_keys import newly_followed_tables
from sqlaudit.tracking.models import TrackedModel, link_columns, root_of, tracked_model
from sqlaudit.tracking.registry import mappers_of, track_secondary
from sqlaudit.tracking.tables import INFO_KEY, excluding, tracked_table


def listen_to_model(model: TrackedModel) -> None:
    """Listen to the events of a tracked model, its subclasses and its MetaData."""
    for name, listener in MODEL_LISTENERS.items():
        # a new row must be known before other listeners change it
        is_first = name == "after_insert"
        event.listen(model.mapper, name, listener, raw=True, retval=True, propagate=True, insert=is_first)
    metadata = model.table.live.metadata
    metadata.info.setdefault(INFO_KEY, WeakSet()).add(model.mapper.registry)
    if not event.contains(metadata, "before_create", before_create):
        event.listen(metadata, "before_create", before_create)
        event.listen(metadata, "after_create", after_create)
        event.listen(metadata, "before_drop", before_create)
        event.listen(metadata, "after_drop", after_drop)
    if not event.contains(Mapper, "mapper_configured", _mapper_configured):
        for mapper in [mapper for registry in _all_registries() for mapper in mappers_of(registry)]:
            if mapper.configured:
                remember_configured(mapper)
        event.listen(Mapper, "after_mapper_constructed", _track_subclass)
        event.listen(Mapper, "mapper_configured", _mapper_configured)
        event.listen(Mapper, "after_configured", _listen_to_followed)
        event.listen(Table, "before_create", before_create_table)
        event.listen(Table, "after_create", after_create_table)
        event.listen(Table, "after_drop", after_drop_table)
        event.listen(Column, "before_parent_attach", _adding_column)
        event.listen(object, "attribute_instrument", _attribute_added)
        event.listen(Session, "before_attach", refuse_past_object, raw=True)
    hear_waiting()


def handle_configured_mappers(model: TrackedModel) -> None:
    """Handle the mappers that were configured before a model and its subclasses were tracked or had their options."""
    family = {*model.mapper.self_and_descendants}
    # Anything may need an excluded column; otherwise only relationships to the family concern other mappers.
    for mapper in mappers_of(model.mapper.registry) if model.options.exclude else family:
        if mapper.configured:
            _track_links(mapper)
    for mapper in configured_mappers(table for member in family for table in member.tables):
        _warn_of_other_mapper(mapper)
    for mapper in configured_mappers(family):
        for relationship in mapper.relationships:
            if relationship.mapper in family:
                _listen_to_reference(mapper.class_, relationship)
                if tracked_model(mapper) is not None:
                    _handle_attribute(mapper.class_, relationship)
    _listen_to_followed()


def _mapper_configured(mapper: Mapper[Any], model_class: type[Any]) -> None:
    remember_configured(mapper)
    _warn_of_other_mapper(mapper)
    _listen_to_references(mapper)
    _track_links(mapper)


def _warn_of_other_mapper(mapper: Mapper[Any]) -> None:
    """Listen to an untracked class that is mapped to a tracked table or a history table, to report its writes."""
    model_class = mapper.class_
    if tracked_model(mapper) is None and any(is_live(table) or is_history(table) for table in mapper.tables):
        for name in ("before_insert", "before_update", "before_delete"):
            if not event.contains(model_class, name, written_by_other_mapper):
                event.listen(model_class, name, written_by_other_mapper, raw=True, retval=True)


def _listen_to_followed() -> None:
    """Listen to the untracked classes that tracked rows follow by foreign key, as far as a class or a key is new."""
    for mapper in newly_configured_mappers() | configured_mappers(newly_followed_tables()):
        if tracked_model(mapper) is None and sources_of(mapper):
            for name, listener in FOLLOWED_LISTENERS.items():
                if not event.contains(mapper.class_, name, listener):
                    event.listen(mapper.class_, name, listener, raw=True, retval=True)


def _listen_to_references(mapper: Mapper[Any]) -> None:
    """Listen to relationships to tracked models, to refuse references to objects of the past."""
    for relationship in mapper.relationships:
        _listen_to_reference(mapper.class_, relationship)


def _listen_to_reference(model_class: type[Any], relationship: RelationshipProperty[Any]) -> None:
    if not relationship.viewonly and tracked_model(relationship.mapper) is not None:
        name = "append" if relationship.uselist else "set"
        event.listen(getattr(model_class, relationship.key), name, refuse_reference, raw=True)


def _track_subclass(mapper: Mapper[Any], model_class: type[Any]) -> None:
    track_with_base(mapper)


def track_with_base(mapper: Mapper[Any]) -> None:
    """Track a class whose base class is tracked, unless it is mapped to a SELECT or a union, which it only reads."""
    only_reads = mapper.concrete and not isinstance(mapper.local_table, Table)
    if tracked_model(mapper) is None and mapper.inherits is not None and not only_reads:
        parent = tracked_model(mapper.inherits)
        if parent is not None:
            TrackedModel(mapper, parent.options_for_subclass())


def _track_links(mapper: Mapper[Any]) -> None:
    """Complete a tracked model whose mapper is configured: its table, association tables and attributes."""
    model = tracked_model(mapper)
    if model is not None:
        model.table.complete()
        add_mixin(mapper.get_property_by_column(mapper.primary_key[0]), MergeGuard)
        for prop in (*(mapper.column_attrs if excluding else ()), *mapper.relationships):
            _handle_attribute(mapper.class_, prop)


def _handle_attribute(model_class: type[Any], prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> None:
    hide_if_excluded(model_class, prop)
    if isinstance(prop, RelationshipProperty):
        read_collections_from_past(model_class, prop)
        _track_link(prop)


def _track_link(relationship: RelationshipProperty[Any]) -> None:
    secondary = relationship.secondary
    if isinstance(secondary, Table) and not relationship.viewonly and tracked_model(relationship.mapper) is not None:
        sides = [tracked_model(mapper) for mapper in (relationship.parent, relationship.mapper)]
        append_only = any(side is not None and side.options.append_only for side in sides)
        track_secondary(secondary, link_columns(relationship), relationship.parent, append_only=append_only)
        for mapper in configured_mappers([secondary]):
            if mapper.local_table is secondary:
                _warn_of_other_mapper(mapper)


# A table may get columns, and a class may get attributes, at any time.


def _adding_column(column: Column[Any], table: Table) -> None:
    tracked = tracked_table(table)
    if tracked is not None and tracked.live is table:
        tracked.refuse_columns([column])
        event.listen(column, "after_parent_attach", _column_added, once=True)


def _column_added(column: Column[Any], table: Table) -> None:
    tracked = tracked_table(table)
    if tracked is not None and tracked.live is table:
        tracked.store_column(column)
        if not tracked.is_association:
            _handle_new_columns(root_of(tracked))


def _attribute_added(model_class: type[Any], name: str, attribute: Any) -> None:
    """Handle an attribute that a class gets after its mapper was configured, as the others were handled then."""
    mapper: Mapper[Any] | None = vars(model_class).get("__mapper__")
    if mapper is None or not mapper.configured:
        return
    remember_configured(mapper)
    if isinstance(attribute.property, RelationshipProperty):
        _listen_to_reference(model_class, attribute.property)
    if (model := tracked_model(mapper)) is not None:
        _handle_new_columns(model)
        if isinstance(attribute.property, (ColumnProperty, RelationshipProperty)):
            _handle_attribute(model_class, attribute.property)


def _handle_new_columns(model: TrackedModel) -> None:
    model.forget_columns()
    for submodel in model.root.family():
        forget_tracked_mapper(submodel.mapper)
