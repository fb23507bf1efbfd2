"""What did a flush do to tracked rows? The unit of work's objects give the keys that :class:`Capture` needs.

One :class:`Flush` lives in ``session.info["sqlaudit"]`` from ``before_flush`` to ``after_flush``. Its work is
proportional to the number of objects that the flush writes, never to the number that the session holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from sqlalchemy import Column, Connection, inspect
from sqlalchemy.orm import (
    LoaderCallableStatus,
    Mapper,
    Session,
    SessionTransaction,
    UOWTransaction,
    object_mapper,
)

from sqlaudit.config import current_config, redaction_key, required_redaction_key
from sqlaudit.context import get_audit_context
from sqlaudit.past.objects import is_unchanged_past
from sqlaudit.recording.capture import Capture, MissingRows, WriteContext
from sqlaudit.recording.cascades import Dependents, record_changed_keys
from sqlaudit.recording.changeset import changeset_of, connection_for_versions, instant_before
from sqlaudit.recording.policy import lacking, needs_key, report_replacing, require_context
from sqlaudit.recording.scope import write_numbers
from sqlaudit.recording.tracked_mappers import (
    FOLLOWED,
    State,
    TrackedMapper,
    changed_values,
    concerns_tracking,
    followed_fields_changed,
    sources_of,
    tracked_mapper_of,
)
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.catalogue import has_triggers
from sqlaudit.tracking.foreign_keys import FollowedTable, Sources
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.tables import TrackedTable, hashing

_Extent = tuple[str, ...]
_DOOMED: Final[_Extent] = ("",)  # no attribute has this name


class Updating:
    """An object before its UPDATE, with its committed values and the names of its changed attributes.

    After the UPDATE, attributes that were set to SQL expressions are expired, and look unchanged.
    """

    __slots__ = ("changed", "committed", "key", "state")

    def __init__(self, state: State, changed: Iterable[str]) -> None:
        assert state.key is not None
        self.state = state
        self.key: Key = state.key[1]
        self.committed = dict(state.committed_state)
        self.changed = frozenset(changed)

    @property
    def old_values(self) -> dict[str, Any]:
        """The committed values of the changed attributes, those that changed after the UPDATE included."""
        return {**self.state.committed_state, **self.committed}


@dataclass(slots=True)
class Group:
    """The objects of one tracked model that a flush writes through one connection."""

    tracked_mapper: TrackedMapper
    connection: Connection
    inserted: list[State] = field(default_factory=list)
    updating: list[Updating] = field(default_factory=list)
    deleted: list[State] = field(default_factory=list)


@dataclass(slots=True)
class _Preflight:
    """What to read from the database before the flush writes objects of one base mapper and identity token.

    :ivar partially_loaded: the keys of rows whose objects do not know the old values
    :ivar parents: the keys of rows on which other rows may depend by foreign key
    :ivar untracked: objects of untracked classes on which tracked rows may depend by foreign key
    :ivar done_on: the connections on which this has been read
    """

    partially_loaded: dict[TrackedMapper, list[Key]] = field(default_factory=lambda: defaultdict(list))
    parents: dict[TrackedMapper, list[Key]] = field(default_factory=lambda: defaultdict(list))
    untracked: dict[Mapper[Any], list[State]] = field(default_factory=lambda: defaultdict(list))
    done_on: set[Connection] = field(default_factory=set)


_Preflights = dict[tuple[Mapper[Any], Any], _Preflight]


def _is_partially_loaded(
    tracked_mapper: TrackedMapper, state: State, changed: Mapping[str, Any], *, whole: bool
) -> bool:
    """Return whether an object does not know old values that may be needed.

    :param changed: the committed values of its changed attributes
    :param whole: True if any stored value may be needed; False if only those that change unset or refer to rows
    """
    values, committed = state.dict, state.committed_state
    if not values.keys() >= (tracked_mapper.stored if whole else tracked_mapper.needed):
        return True
    for name, value in changed.items():
        if value is LoaderCallableStatus.NO_VALUE and name in tracked_mapper.stored:
            return True
    # None may be NULL or the null of JSON; that of an attribute that was set to an equal value is written, too.
    names = tracked_mapper.hiding_null
    if names and not whole:
        names &= committed.keys()
    return bool(names) and any(committed.get(name, values.get(name)) is None for name in names)


class Flush:
    """What one flush does to tracked rows."""

    def __init__(self, session: Session, context: UOWTransaction) -> None:
        self.session = session
        self.context = context
        self.number = next(write_numbers)
        self.config = current_config()
        self._requires = self.config.require_reason or self.config.require_user
        self.began: datetime | None = None
        """The instant before the flush, or before its first tracked row if other listeners add that row later."""
        self.is_announced = False
        self._groups: dict[tuple[Mapper[Any], Connection], Group] = {}
        self._automatic: dict[State, dict[str, Any]] = {}
        self._doomed: dict[tuple[TrackedModel, Key], State] = {}
        self.dependents = Dependents()
        self._followed: list[tuple[WriteContext, tuple[FollowedTable, ...], list[State]]] = []
        self.prepared: dict[State, _Extent] | None = None
        """The changed attributes of each object when it was prepared; ``None`` until :meth:`prepare` is called."""
        self._partially_loaded: set[State] = set()
        self._baselines: list[tuple[TrackedMapper, Capture, list[Key]]] = []
        self._recorded_keys: set[tuple[TrackedMapper, Connection, Key]] = set()
        self.has_many_connections = _chooses_connections(session)
        self._preflights: _Preflights = defaultdict(_Preflight)
        self._followed_fields: dict[TrackedMapper, frozenset[str]] = {}
        self._changed_late: dict[TrackedMapper, bool] = {}
        self._recorded_early: set[State] = set()
        """The objects whose rows have a history thanks to :meth:`record_early`, or had one before."""

    def group(self, state: State, connection: Connection) -> Group:
        """Return the group of a tracked object that the flush writes through a connection."""
        key = mapper, connection = state.manager.mapper, connection
        try:
            return self._groups[key]
        except KeyError:
            tracked_mapper = cast(TrackedMapper, tracked_mapper_of(mapper))
            return self._groups.setdefault(key, Group(tracked_mapper, connection))

    # -- before the flush

    def begin(self) -> None:
        """Take the instant if the flush is to write tracked rows, before its statements make timestamps."""
        session = self.session
        if self.began is None and any(
            map(concerns_tracking, (*session._new, *session._deleted, *session._dirty_states))
        ):
            self.began = instant_before(session)

    def prepare(self) -> None:
        """Read what cannot be known after the flush, or leave that to the writes if the session chooses connections.

        :raises ContextError: a required user or reason is missing
        :raises SQLAuditError: the key for redacted values is missing
        """
        if self._requires:
            self._require_context()
        if self.began is None:
            self.begin()
        if hashing and redaction_key() is None:
            self._require_key()
        self.prepared = {}
        doomed = self.session._deleted  # the public properties build a set of all dirty objects
        for state in (*doomed, *set(self.session._dirty_states).difference(doomed)):
            if concerns_tracking(state):
                self._inspect_state(state, state in doomed, self._preflights)
        if not self.has_many_connections and self._preflights:
            connection = connection_for_versions(self.session, None)
            for preflight in self._preflights.values():
                self._run_preflight(preflight, connection)
            self._preflights.clear()

    def _begin_late(self, connection: Connection) -> None:
        if self.began is None and self.prepared is not None:
            self.began = instant_before(self.session, connection)

    def inserting(self, state: State, connection: Connection) -> None:
        """Read what is needed before an object is inserted: it may take the row of a deleted one."""
        self._begin_late(connection)
        if self._preflights:
            self._run_preflight_of(state, connection)

    def writing(self, state: State, connection: Connection, *, doomed: bool) -> Iterable[str]:
        """Read what is needed before an object is updated or deleted, on the connection that the flush uses.

        Other listeners or a cascade may have changed or deleted the object since :meth:`prepare` looked at it.

        :return: the names of its changed attributes, and perhaps of some that have got their old values back
        """
        if self._preflights:
            self._run_preflight_of(state, connection)
        prepared = None if self.prepared is None else self.prepared.get(state)
        if prepared == tuple(state.committed_state) and not doomed:
            return prepared  # all that has been set had changed by then
        extent = _DOOMED if doomed else tuple(changed_values(state))
        if self.prepared is None:
            return extent
        self._begin_late(connection)
        if extent and prepared != extent:
            if self._requires:
                self._require_context([state.obj()])
            late_preflights: _Preflights = defaultdict(_Preflight)
            self._inspect_state(state, doomed, late_preflights)
            for preflight in late_preflights.values():
                self._run_preflight(preflight, connection)
        return extent

    def _run_preflight_of(self, state: State, connection: Connection) -> None:
        """Read, once on each connection, what is needed for all objects of an object's base mapper and token."""
        preflight = self._preflights.get((state.mapper.base_mapper, state.identity_token))
        if preflight is not None and connection not in preflight.done_on:
            preflight.done_on.add(connection)
            self._run_preflight(preflight, connection)

    def _inspect_state(self, state: State, doomed: bool, preflights: _Preflights) -> None:
        """Add to ``preflights`` what must be read because of an object."""
        has_token = state.key is not None and state.key[2] is not None  # few have one
        if has_token and is_unchanged_past(self.session, state, doomed=doomed):
            return
        prepared, mapper = self.prepared, state.manager.mapper  # state.mapper is a property, made for each object
        assert prepared is not None
        place = mapper.base_mapper, state.identity_token
        tracked_mapper = tracked_mapper_of(mapper)
        if tracked_mapper is None or state.key is None:
            if state.manager.info.get(FOLLOWED) is not None and (doomed or followed_fields_changed(state)):
                prepared[state] = _DOOMED if doomed else tuple(changed_values(state))
                preflights[place].untracked[state.mapper].append(state)
            return
        key, committed, values = state.key[1], changed_values(state), state.dict
        is_deleted = doomed or (tracked_mapper.has_orphans and state.mapper._is_orphan(state))
        may_change_late = not is_deleted and self._may_change_late(tracked_mapper)
        leaves_key = is_deleted or not tracked_mapper.keys.isdisjoint(committed)
        prepared[state] = _DOOMED if is_deleted else tuple(committed)
        if not committed and not is_deleted and not may_change_late:
            return
        if leaves_key:
            self._doomed[tracked_mapper.model.root, key] = state
        if may_change_late:
            unchanged = tracked_mapper.live.keys() & values.keys() - committed.keys()
            self._automatic[state] = {name: values[name] for name in unchanged}
        elif tracked_mapper.automatic and not is_deleted:
            self._automatic[state] = {name: values[name] for name in tracked_mapper.automatic if name in values}
        if tracked_mapper not in self._followed_fields:
            self._followed_fields[tracked_mapper] = tracked_mapper.followed()
        followed = self._followed_fields[tracked_mapper]
        may_follow = bool(self._doomed) and not tracked_mapper.referring.isdisjoint(committed)  # to a deleted row
        if (
            leaves_key
            or may_follow
            or not followed.isdisjoint(committed)
            or (may_change_late and followed - tracked_mapper.keys)
        ):
            preflights[place].parents[tracked_mapper].append(key)
        whole = leaves_key or may_change_late
        is_written = whole or not tracked_mapper.collections.issuperset(committed)
        is_respelt = leaves_key and not is_deleted and tracked_mapper.may_be_respelt  # its row then has no other key
        if (
            is_written
            and state not in self._partially_loaded
            and (is_respelt or _is_partially_loaded(tracked_mapper, state, committed, whole=whole))
        ):
            self._partially_loaded.add(state)
            preflights[place].partially_loaded[tracked_mapper].append(key)

    def _may_change_late(self, tracked_mapper: TrackedMapper) -> bool:
        """Return whether listeners may change an object after :meth:`_inspect_state`, even by SQL expressions."""
        if tracked_mapper not in self._changed_late:
            self._changed_late[tracked_mapper] = _has_other_listeners(tracked_mapper.mapper)
        return self._changed_late[tracked_mapper]

    def _run_preflight(self, preflight: _Preflight, connection: Connection) -> None:
        """Write the baselines and find the dependent rows that could not be known after the flush."""
        self.dependents.written = self._written_so_far()
        for tracked_mapper, keys in preflight.partially_loaded.items():
            capture = self._write_context(connection).capture(
                tracked_mapper.model.chain, tracked_mapper.user_fields(self.config)
            )
            capture.baseline(keys)
            self._baselines.append((tracked_mapper, capture, keys))
        for tracked_mapper, keys in preflight.parents.items():
            self.dependents.find(self._write_context(connection), tracked_mapper.model.chain, keys)
        for mapper, states in preflight.untracked.items():
            write, sources = self._write_context(connection), sources_of(mapper)
            self.dependents.find(write, sources, [cast(Any, state.key)[1] for state in states])
            self._followed.append((write, sources, states))

    def _require_context(self, objects: Iterable[Any] | None = None) -> None:
        session, lacks = self.session, lacking(get_audit_context())
        if lacks is None:
            return
        for obj in _written_objects(session) if objects is None else objects:
            state: State = inspect(obj)
            tracked_mapper = tracked_mapper_of(state.mapper)
            if tracked_mapper is not None:
                fields = [column for column in tracked_mapper.user_fields(self.config) if column is not None]
                users = [getattr(obj, state.mapper.get_property_by_column(field).key) for field in fields]
                names_user = any(user not in (None, "") for user in users)
                write = f"{state.mapper.class_.__name__} is to be written"
                require_context(lacks, write, obj, row_names_user=names_user)

    def _require_key(self) -> None:
        def hashes(obj: Any) -> bool:
            tracked_mapper = tracked_mapper_of(object_mapper(obj))
            return tracked_mapper is not None and needs_key(tracked_mapper.model.chain)

        for _ in _written_objects(self.session, hashes):
            required_redaction_key()

    def _written_so_far(self) -> set[tuple[TrackedTable, Key]]:
        """Return the rows that the flush has written so far; their old values are known or have been read."""
        written: set[tuple[TrackedTable, Key]] = set()
        for group in self._groups.values():
            states = (*group.inserted, *(update.state for update in group.updating))
            keys = [group.tracked_mapper.key_of(state) for state in states]
            written.update((table, key) for table in group.tracked_mapper.model.chain for key in keys)
        return written

    # -- after the flush

    @property
    def is_writing(self) -> bool:
        """Return whether the flush has begun to write. Statements of ``before_flush`` listeners precede that."""
        return getattr(self.context, "transaction", None) is not None

    def writes_within(self, transaction: SessionTransaction) -> bool:
        """Return whether a transaction of the session is the one that the flush has begun."""
        return getattr(self.context, "transaction", None) is transaction

    def has_compiled_cache(self, cache: Any) -> bool:
        """Return whether a compiled cache is that of a mapper whose objects the flush writes."""
        for mapper in self.context.mappers:  # noqa: SIM110  # quicker, and each statement of a flush calls this
            if mapper._compiled_cache is cache:  # two empty caches are equal
                return True
        return False

    def writes_objects_of(self, mapper: Mapper[Any]) -> bool:
        return mapper.base_mapper in self.context.mappers

    def record_early(self) -> None:
        """Record what a listener's statement may change next: inserted rows, and older rows that have been updated.

        The unit of work inserts the objects of a mapper together, and then calls ``after_insert`` for one by one.
        """
        for group in list(self._groups.values()):
            self._record_updated(group)
            if not group.inserted or group.inserted[-1] in self._recorded_early:
                continue
            base_mapper = group.tracked_mapper.mapper.base_mapper
            new_states: dict[Mapper[Any], list[State]] = defaultdict(list)
            for state, (is_deleted, _) in self.context.states.items():
                if state.key is None and not is_deleted and state.mapper.base_mapper is base_mapper:
                    new_states[state.mapper].append(state)
            for mapper, states in new_states.items():
                self._record_inserted(mapper, states, group.connection)

    def _record_inserted(self, mapper: Mapper[Any], states: Iterable[State], connection: Connection) -> None:
        tracked_mapper = tracked_mapper_of(mapper)
        if tracked_mapper is None:
            return
        root = tracked_mapper.model.root
        by_key = {tracked_mapper.key_of(state): state for state in states if state not in self._recorded_early}
        keys = [key for key in by_key if None not in key and (root, key) not in self._doomed]
        user_fields = tracked_mapper.user_fields(self.config)
        capture = self._write_context(connection).capture(tracked_mapper.model.chain, user_fields)
        live, recorded = capture.keys_where(tuple(root.table.key), keys)
        capture.inserted([key for key in keys if key in live - recorded], must_be_found=False)
        self._recorded_early.update(by_key[key] for key in keys if key in live)

    def _record_updated(self, group: Group) -> None:
        """Write the baselines and first versions of updated rows without history, whose old values only objects know.

        Of a row whose UPDATE is still to come nothing remains, since nothing has changed.
        """
        tracked_mapper, updated = group.tracked_mapper, dict[Key, Updating]()
        for update in group.updating:
            key = tracked_mapper.key_of(update.state)
            if update.state not in self._recorded_early and key == update.key:
                updated[key] = update
        if not updated:
            return
        write = self._write_context(group.connection)
        capture = write.capture(tracked_mapper.model.chain, tracked_mapper.user_fields(self.config))
        _, recorded = capture.keys_where(tuple(tracked_mapper.model.root.table.key), list(updated))
        self._recorded_early.update(updated[key].state for key in updated.keys() & recorded)
        if older := [key for key in updated if key not in recorded]:
            capture.updated(
                older,
                lambda key: self._old_of_updated(tracked_mapper, updated[key]),
                missing_rows=MissingRows.DELETED,
            )

    def record(self) -> None:
        """Write the versions.

        :raises ContextError: a listener has added an object, and a required user or reason is missing
        """
        if not self._groups and not self._baselines and not self._followed:
            return
        if self._requires:
            for group in self._groups.values():
                self._require_context(state.obj() for state in group.inserted)
        for group in self._groups.values():
            self._record_group(group)
        self._record_changed_keys()
        self.dependents.settle()
        for tracked_mapper, capture, keys in self._baselines:  # delete the baselines that no change followed
            recorded_keys = self._recorded_keys
            capture.settle([key for key in keys if (tracked_mapper, capture.connection, key) not in recorded_keys])

    def _record_group(self, group: Group) -> None:
        tracked_mapper = group.tracked_mapper
        new: list[Key] = []
        rewritten: dict[Key, State] = {}
        updated: dict[Key, Updating] = {}
        moved: dict[Key, tuple[State, Mapping[str, Any]]] = {}
        new_keys: list[Key] = []
        deleted: dict[Key, tuple[State, Mapping[str, Any]]] = {}
        for state in group.deleted:
            deleted[cast(Any, state.key)[1]] = (state, state.committed_state)
        for state in group.inserted:
            key = tracked_mapper.key_of(state)
            if self._doomed and (replaced := self._doomed.get((tracked_mapper.model.root, key), state)) is not state:
                rewritten[key] = replaced  # recorded as an UPDATE: the flush deletes and inserts the same key
            else:
                new.append(key)
        for update in group.updating:
            if self._may_have_changed(update, tracked_mapper, group.connection):
                key, old_key = tracked_mapper.key_of(update.state), update.key
                if key == old_key:
                    updated[key] = update
                else:
                    moved[old_key] = (update.state, update.old_values)
                    new_keys.append(key)

        def old_of_lost(key: Key) -> Mapping[Column[Any], Any]:
            if key in rewritten:
                return tracked_mapper.old_values(rewritten[key], rewritten[key].committed_state, tracked_mapper.stored)
            state, changed = moved.get(key) or deleted.get(key) or (None, {})
            if state is None:
                return {}
            return tracked_mapper.old_values(state, self._with_automatic(state, changed), tracked_mapper.stored)

        if not (new or rewritten or updated or moved or deleted):
            return
        if self._baselines:
            self._recorded_keys.update(
                (tracked_mapper, group.connection, key) for key in (*rewritten, *updated, *moved, *deleted)
            )
        if tracked_mapper.replacing and (new or updated or moved):
            report_replacing(group.connection, tracked_mapper.replacing[0])
        write = self._write_context(group.connection)
        capture = write.capture(tracked_mapper.model.chain, tracked_mapper.user_fields(self.config))
        must_be_found = not (
            tracked_mapper.referring and (self._doomed or self._followed)
        )  # else a cascade may delete it
        if moved or rewritten or not deleted.keys().isdisjoint(new):
            keys = dict.fromkeys((*moved, *new_keys, *rewritten, *deleted, *new))
            fresh = {*new_keys, *new} - {*rewritten, *deleted}
            capture.settle(list(keys), inserted=fresh, before=old_of_lost, must_be_found=must_be_found)
        else:
            if new:
                capture.inserted(new, must_be_found=must_be_found)
            if deleted:
                capture.deleted(list(deleted), old_of_lost)
        if updated:
            missing_rows = MissingRows.UPDATED if must_be_found else MissingRows.DELETED
            capture.updated(
                list(updated),
                lambda key: self._old_of_updated(tracked_mapper, updated[key]),
                missing_rows=missing_rows,
            )

    def record_moved(self) -> None:
        """Record what changed keys have done to the rows that refer to them, before a statement changes these."""
        if self._record_changed_keys():
            self.dependents.settle(is_last=False)

    def _record_changed_keys(self) -> bool:
        """Record the rows whose keys the database changed with those of the flush's objects; return if any changed."""
        changed: list[tuple[WriteContext, Sources, list[Key]]] = []
        for group in self._groups.values():
            tracked_mapper = group.tracked_mapper
            moved = [update.state for update in group.updating if not tracked_mapper.keys.isdisjoint(update.changed)]
            if keys := [tracked_mapper.key_of(state) for state in moved if _has_new_key(state)]:
                changed.append((self._write_context(group.connection), tracked_mapper.model.chain, keys))
        for write, followed, states in self._followed:
            if keys := [_current_key(state) for state in states if _has_new_key(state)]:
                changed.append((write, followed, keys))
        for write, sources, keys in changed:
            record_changed_keys(write, sources, keys)
        return bool(changed)

    def _may_have_changed(self, update: Updating, tracked_mapper: TrackedMapper, connection: Connection) -> bool:
        """Return whether an UPDATE may have changed columns whose changes make a version."""
        if self._may_change_late(tracked_mapper) or not tracked_mapper.watched.isdisjoint(update.changed):
            return True
        fields = {*update.changed, *changed_values(update.state)}
        return not tracked_mapper.watched.isdisjoint(fields) or (
            not tracked_mapper.ignored.isdisjoint(fields) and self._has_triggers(tracked_mapper, connection)
        )

    def _old_of_updated(self, tracked_mapper: TrackedMapper, update: Updating) -> Mapping[Column[Any], Any]:
        changed = self._with_automatic(update.state, update.old_values)
        return tracked_mapper.old_values(update.state, changed, changed)

    def _with_automatic(self, state: State, changed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the old values of an object, including fields that changed without being set."""
        return {**self._automatic.get(state, {}), **changed}

    @staticmethod
    def _has_triggers(tracked_mapper: TrackedMapper, connection: Connection) -> bool:
        """Return whether a trigger may change stored columns when only excluded or quiet columns are updated."""
        return any(has_triggers(connection, table) for table in tracked_mapper.model.chain)

    def _write_context(self, connection: Connection) -> WriteContext:
        return WriteContext(connection, changeset_of(self.session, connection, self.began), get_audit_context())


def _written_objects(session: Session, are_meant: Callable[[Any], bool] = lambda obj: True) -> Iterator[Any]:
    """Yield the objects that a flush would write.

    :param are_meant: which objects to look at; to ask the session whether an object is modified may load attributes
    """
    yield from filter(are_meant, (*session.new, *session.deleted))
    yield from filter(session.is_modified, filter(are_meant, session.dirty))


def _has_new_key(state: State) -> bool:
    """Return whether the flush gave an object another key."""
    return state.key is not None and _current_key(state) != tuple(state.key[1])


def _current_key(state: State) -> Key:
    return tuple(state.mapper.primary_key_from_instance(state.obj()))


def _chooses_connections(session: Session) -> bool:
    """Return whether a session may use several connections in one transaction."""
    own = vars(session)
    return (
        type(session).get_bind is not Session.get_bind
        or bool(own.get("binds") or own.get("_Session__binds"))  # the second name is SQLAlchemy 2.0's
        or "get_bind" in own
        or session.connection_callable is not None
    )


def _has_other_listeners(mapper: Mapper[Any]) -> bool:
    """Return whether listeners other than sqlaudit's may change an object before its UPDATE."""
    for listener in mapper.dispatch.before_update:  # quicker, and each flush calls this
        if not (getattr(listener, "__module__", None) or "").startswith("sqlaudit."):
            return True
    return False
