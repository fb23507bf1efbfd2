"""Which events of a mapped class show writes? The mapper events of tracked models, and of models that these follow."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import (
    Column,
    Connection,
    Table,
    event,
    inspect,
)
from sqlalchemy.orm import (
    ColumnProperty,
    InstanceState,
    Mapper,
    RelationshipProperty,
    Session,
)
from sqlalchemy.orm.mapper import _all_registries

from sqlaudit.exceptions import QueryError
from sqlaudit.hooks.configured import configured_mappers, newly_configured_mappers, remember_configured
from sqlaudit.hooks.engines import hear_waiting
from sqlaudit.hooks.schema import after_create, after_drop, before_create
from sqlaudit.hooks.scope import DISABLED, records, records_other_flush
from sqlaudit.past.attributes import add_mixin, hide_if_excluded
from sqlaudit.past.collections import read_collections_from_past
from sqlaudit.past.objects import Instant, instant_of_state, refuse_change, refuse_reference
from sqlaudit.past.running import PastSession
from sqlaudit.recording.bulk.append_only import is_history, is_migrating, rewriting_error
from sqlaudit.recording.flush import Flush, Updating
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.recording.tracked_mappers import followed_fields_changed, forget_tracked_mapper, sources_of
from sqlaudit.tracking.foreign_keys import newly_followed_tables
from sqlaudit.tracking.models import TrackedModel, link_columns, root_of, tracked_model
from sqlaudit.tracking.registry import mappers_of, track_secondary
from sqlaudit.tracking.tables import INFO_KEY, tracked_table


def _attaching(session: Session, state: InstanceState[Any]) -> None:
    """Refuse an object of the past in a session without hooks, in which it would load live rows.

    Every session calls this for each object that is added to it, but not for objects that it loads.
    """
    if instant_of_state(state) is not None:
        _refuse_without_hooks(session, state)
    elif isinstance(state.identity_token, Instant):  # make_transient() made it a new object
        state.identity_token, state.load_options = None, ()


def _refuse_without_hooks(session: Session, state: InstanceState[Any]) -> None:
    if isinstance(session, PastSession) or records(session):
        return
    raise QueryError(
        f"{state.class_.__name__} {state.identity} {instant_of_state(state)} was added to a session without hooks, "
        "which would load live rows for it. Call register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
        state.obj(),
    )


class _MergeGuard:
    """Mixed into a tracked model's key property: a merge sets the key, and fires no event for an object it loads."""

    __slots__ = ()

    def merge(self, session: Session, source: InstanceState[Any], *args: Any) -> None:
        if instant_of_state(source) is not None:
            _refuse_without_hooks(session, source)
        super().merge(session, source, *args)  # type: ignore[misc]  # the mixed class has it


def listen_to_model(model: TrackedModel) -> None:
    """Listen to the events of a tracked model, its subclasses and its MetaData."""
    target = model.mapper.class_
    for name, listener in MODEL_LISTENERS.items():
        # a new row must be known before other listeners change it
        is_first = name == "after_insert"
        event.listen(target, name, listener, raw=True, retval=True, propagate=True, insert=is_first)
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
        event.listen(Column, "before_parent_attach", _adding_column)
        event.listen(Column, "after_parent_attach", _column_added)
        event.listen(object, "attribute_instrument", _attribute_added)
        event.listen(Session, "before_attach", _attaching, raw=True)
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


def _inserted(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.group(state, connection).inserted.append(state)
    else:
        _unrecorded(mapper, connection, state)


def _inserting(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    flush: Flush | None = _session_of(state).info.get(INFO_KEY)
    if flush is not None and (flush.has_many_connections or flush.began is None):  # rare, and each insert calls this
        flush.inserting(state, connection)


def _updating(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        changed = flush.writing(state, connection, doomed=False)
        flush.group(state, connection).updating.append(Updating(state, changed))
    else:
        _unrecorded(mapper, connection, state)


def _updated(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if state.key is None:  # a new object took the row of a deleted one, without before_update
        _inserted(mapper, connection, state)


def _deleting(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.writing(state, connection, doomed=True)
    else:
        refuse_change(state)


def _deleted(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.group(state, connection).deleted.append(state)
    else:
        _unrecorded(mapper, connection, state)


_session_of: Final[Callable[[InstanceState[Any]], Session]] = attrgetter("session")


def _unrecorded(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    refuse_change(state)
    if records_other_flush(connection, mapper):
        return
    name = mapper.class_.__name__
    report_unrecorded(
        f"{name} was written by a session without hooks, so its history does not show the change. Call "
        "register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
        mapper.class_,
    )


MODEL_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "before_insert": _inserting,
    "after_insert": _inserted,
    "before_update": _updating,
    "after_update": _updated,
    "before_delete": _deleting,
    "after_delete": _deleted,
}


def _warn_of_other_mapper(mapper: Mapper[Any]) -> None:
    """Listen to an untracked class that is mapped to a tracked table or a history table, to report its writes."""
    model_class = mapper.class_
    if tracked_model(mapper) is None and any(_is_live(table) or is_history(table) for table in mapper.tables):
        for name in ("before_insert", "before_update", "before_delete"):
            if not event.contains(model_class, name, _written_by_other_mapper):
                event.listen(model_class, name, _written_by_other_mapper, raw=True, retval=True)


def _listen_to_followed() -> None:
    """Listen to the untracked classes that tracked rows follow by foreign key, as far as a class or a key is new."""
    for mapper in newly_configured_mappers() | configured_mappers(newly_followed_tables()):
        if tracked_model(mapper) is None and sources_of(mapper):
            for name, listener in _FOLLOWED_LISTENERS.items():
                if not event.contains(mapper.class_, name, listener):
                    event.listen(mapper.class_, name, listener, raw=True, retval=True)


def _updating_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _write_followed(mapper, connection, state, doomed=False)


def _deleting_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _write_followed(mapper, connection, state, doomed=True)


def _write_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any], *, doomed: bool) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.writing(state, connection, doomed=doomed)
    elif (doomed or followed_fields_changed(state)) and not records_other_flush(connection, mapper):
        report_unrecorded(
            f"{mapper.class_.__name__}, which is not tracked, was written by a session without hooks, so the history "
            "of tracked rows that refer to it will not show what foreign key actions do to them. Call "
            "register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
            mapper.class_,
        )


_FOLLOWED_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "before_insert": _inserting,
    "before_update": _updating_followed,
    "before_delete": _deleting_followed,
}


def _is_live(table: object) -> bool:
    tracked = tracked_table(table)
    return tracked is not None and tracked.live is table


def _written_by_other_mapper(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """Warn of an untracked object that is written to a tracked table; refuse to write a history table.

    :raises ReadOnlyError: the object is mapped to a history table
    """
    session = _session_of(state)
    history: Any = next(filter(is_history, mapper.tables), None)
    if history is not None and records(session) and not is_migrating(connection):
        raise rewriting_error(history)
    table = next(filter(_is_live, mapper.tables), None)
    is_unseen = not session.info.get(DISABLED) and (records(session) or not records_other_flush(connection, mapper))
    if table is not None and tracked_model(mapper) is None and is_unseen:
        report_unrecorded(
            f"{mapper.class_.__name__} is not tracked, but writes the tracked table {table.fullname!r}, whose history "
            "does not show the change. Write the rows through the tracked model, or track this model instead.",
            mapper.class_,
        )


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
        add_mixin(mapper.get_property_by_column(mapper.primary_key[0]), _MergeGuard)
        for prop in (*mapper.column_attrs, *mapper.relationships):
            _handle_attribute(mapper.class_, prop)


def _handle_attribute(model_class: type[Any], prop: ColumnProperty[Any] | RelationshipProperty[Any]) -> None:
    hide_if_excluded(model_class, prop)
    if isinstance(prop, RelationshipProperty):
        read_collections_from_past(model_class, prop)
        _track_link(prop)


def _track_link(relationship: RelationshipProperty[Any]) -> None:
    secondary = relationship.secondary
    if isinstance(secondary, Table) and not relationship.viewonly and tracked_model(relationship.mapper) is not None:
        track_secondary(secondary, link_columns(relationship), relationship.parent)
        for mapper in configured_mappers([secondary]):
            if mapper.local_table is secondary:
                _warn_of_other_mapper(mapper)


# A table may get columns, and a class may get attributes, at any time.


def _adding_column(column: Column[Any], table: Table) -> None:
    tracked = tracked_table(table)
    if tracked is not None and tracked.live is table:
        tracked.refuse_columns([column])


def _column_added(column: Column[Any], table: Table) -> None:
    tracked = tracked_table(table)
    if tracked is not None and tracked.live is table:
        tracked.store_column(column)
        if not tracked.is_association:
            _handle_new_columns(root_of(tracked))


def _attribute_added(model_class: type[Any], name: str, attribute: Any) -> None:
    """Handle an attribute that a class gets after its mapper was configured, as the others were handled then."""
    mapper = inspect(model_class, raiseerr=False)
    if not isinstance(mapper, Mapper) or not mapper.configured:
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
