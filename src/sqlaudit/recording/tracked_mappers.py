"""What does a flush need to know about a mapped class? Its key, its columns, and which columns change unset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ClauseElement, Column, Table
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Mapper,
    RelationshipDirection,
)

from sqlaudit.config import SQLAuditConfig, current_config
from sqlaudit.recording.clauses import NO_USER_FIELDS, UserFields
from sqlaudit.sql.comparing import may_be_respelt
from sqlaudit.sql.fitting import hides_null
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.foreign_keys import Chain, FollowedTable, referred_columns, untracked_source
from sqlaudit.tracking.models import TrackedModel, attribute_of, root_of, tracked_model
from sqlaudit.tracking.schema import changes_unset, conflict_clauses_of
from sqlaudit.tracking.tables import INFO_KEY

State = InstanceState[Any]
_TRACKED_MAPPER_KEY: Final = "sqlaudit_tracked_mapper"
FOLLOWED: Final = "sqlaudit_followed"


class TrackedMapper:
    """What a flush needs to know about a tracked model."""

    def __init__(self, model: TrackedModel) -> None:
        mapper = model.mapper
        self.model = model
        self.mapper = mapper
        self.key_names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        self.live: dict[str, Column[Any]] = {}
        quiet: set[str] = set()
        self.redacted: set[str] = set()
        for table in model.chain:
            for live, _ in table.columns:
                if (name := attribute_of(mapper, live)) and name not in self.live:
                    self.live[name] = live
                    if live.name in table.quiet:
                        quiet.add(name)
                    if live.name in table.redact:
                        self.redacted.add(name)
        self.stored = frozenset(self.live)
        self.keys = frozenset(self.key_names)
        self.may_be_respelt = any(may_be_respelt(column.type) for column in mapper.primary_key)
        self.automatic = frozenset(name for name, column in self.live.items() if self._is_automatic(column))
        self.referring = frozenset(name for name, column in self.live.items() if column.foreign_keys)
        self.needed = self.automatic | self.referring
        self.hiding_null = frozenset(name for name, column in self.live.items() if hides_null(column.type))
        columns = frozenset(prop.key for prop in mapper.column_attrs if isinstance(prop.columns[0], Column))
        noticed = self.stored - quiet
        self.watched = noticed if self.automatic.isdisjoint(noticed) else columns
        """The fields whose changes may make a version."""
        self.ignored = columns - self.watched
        """The fields that are excluded or quiet; a trigger may change others with them."""
        self.collections = frozenset(
            prop.key for prop in mapper.relationships if prop.direction is not RelationshipDirection.MANYTOONE
        )
        self.replacing = [table for table in model.chain if "REPLACE" in conflict_clauses_of(table.live)]
        self.has_orphans = any(ancestor._delete_orphans for ancestor in mapper.iterate_to_root())
        self._user_fields: dict[str | None, UserFields] = {}
        self._followed: tuple[frozenset[Column[Any]], frozenset[str]] | None = None

    def followed(self) -> frozenset[str]:
        """Return the fields of the key, and those that foreign keys with actions refer to."""
        columns = referred_columns(self.model.chain)
        if self._followed is None or self._followed[0] is not columns:
            self._followed = columns, self.keys | {name for name, column in self.live.items() if column in columns}
        return self._followed[1]

    def _is_automatic(self, column: Column[Any]) -> bool:
        """Return whether an UPDATE of other columns may change this column."""
        return changes_unset(column) or column is self.mapper.version_id_col

    def user_fields(self, config: SQLAuditConfig) -> UserFields:
        """Return the columns that name the user of a row: one is read before the callback, one after it.

        A column whose values history must not have names nobody.
        """
        fallback = config.user_model_user_id_field
        fallback = None if fallback in self.redacted else fallback
        if fallback not in self._user_fields:
            named = self.live.get(self.model.options.user_id_field or ""), self.live.get(fallback or "")
            self._user_fields[fallback] = NO_USER_FIELDS if all(field is None for field in named) else named
        return self._user_fields[fallback]

    def key_of(self, state: State) -> Key:
        """Return the current key of a written object; its identity key may be older."""
        values = state.dict
        try:
            return tuple(map(values.__getitem__, self.key_names))
        except KeyError:
            return tuple(state.key[1]) if state.key else tuple(self.mapper.primary_key_from_instance(state.obj()))

    def old_values(self, state: State, changed: Mapping[str, Any], names: Iterable[str]) -> dict[Column[Any], Any]:
        """Return the known old values of the named fields of an object; ``changed`` has those of changed fields."""
        known: dict[Column[Any], Any] = {}
        for name in names:
            value = changed[name] if name in changed else state.dict.get(name, LoaderCallableStatus.NO_VALUE)
            if name in self.live and not isinstance(value, LoaderCallableStatus):
                known[self.live[name]] = value
        return known


def tracked_mapper_of(mapper: Mapper[Any]) -> TrackedMapper | None:
    """Return the tracked mapper of a mapper, or ``None`` if its class is not tracked."""
    tracked_mapper: TrackedMapper | None = mapper.class_manager.info.get(_TRACKED_MAPPER_KEY)
    if tracked_mapper is None and (model := tracked_model(mapper)) is not None:
        tracked_mapper = mapper.class_manager.info[_TRACKED_MAPPER_KEY] = TrackedMapper(model)
    return tracked_mapper


def forget_tracked_mapper(mapper: Mapper[Any]) -> None:
    """Drop the tracked mapper of a mapper whose class got columns or relationships, so that it is made again."""
    mapper.class_manager.info.pop(_TRACKED_MAPPER_KEY, None)


def concerns_tracking(state: State) -> bool:
    """Return whether an object is tracked, followed by tracked rows, or of the past; a flush asks for each object."""
    info = state.manager.info
    return INFO_KEY in info or info.get(FOLLOWED) is not None or (state.key is not None and state.key[2] is not None)


def sources_of(mapper: Mapper[Any]) -> tuple[FollowedTable, ...]:
    """Return the tables of an untracked class that tracked rows follow by foreign key; remember the referred fields."""
    tables = (table for table in mapper.tables if isinstance(table, Table))
    sources = tuple(source for source in map(untracked_source, tables) if source and source.live.primary_key)
    names = frozenset(filter(None, (attribute_of(mapper, column) for column in referred_columns(sources))))
    mapper.class_manager.info[FOLLOWED] = names if sources else None
    return sources


def followed_fields_changed(state: State) -> bool:
    """Return whether an untracked object has changed in fields that foreign keys with actions refer to."""
    names: frozenset[str] | None = state.manager.info.get(FOLLOWED)
    return names is not None and not names.isdisjoint(changed_values(state))


def changed_values(state: State) -> Mapping[str, Any]:
    """Return the committed values of the attributes that changed, by the same test as the unit of work's.

    An attribute that was set to an equal value, or set back to its old value, has not changed.
    """
    values, changed = state.dict, {}
    for name, old in state.committed_state.items():
        if not _is_unchanged(state, name, old, values.get(name, LoaderCallableStatus.NO_VALUE)):
            changed[name] = old
    return changed


_PLAIN: Final = frozenset({bool, bytes, date, datetime, Decimal, float, int, str, UUID})
"""The types of most values of columns: such a value is neither SQL nor what a relationship holds."""


def _is_unchanged(state: State, name: str, old: Any, value: Any) -> bool:
    if isinstance(old, LoaderCallableStatus):
        return False
    if type(value) not in _PLAIN:
        if isinstance(value, LoaderCallableStatus):
            return False
        if name not in state.mapper.column_attrs:
            return value is old
        if isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"):
            return False
    return state.manager[name].impl.is_equal(value, old) is True


def user_fields_of(chain: Chain) -> UserFields:
    """Return the columns that name the user of a row of a chain of tables, by the current configuration."""
    if chain[0].is_association:
        return NO_USER_FIELDS
    kept, key = chain[-1].cache, (user_fields_of, *chain)
    if key not in kept:
        root = root_of(chain[0])
        kept[key] = next((model for model in root.family() if model.chain == chain), root).mapper
    tracked_mapper = tracked_mapper_of(kept[key])
    assert tracked_mapper is not None
    return tracked_mapper.user_fields(current_config())
