"""What did a flush do to tracked rows? The unit of work's objects give the keys that :class:`Capture` needs.

One :class:`Flush` lives in ``session.info["sqlaudit"]`` from ``before_flush`` to ``after_flush``. Its work is
proportional to the number of objects that the flush writes, never to the number that the session holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, Final, cast

from sqlalchemy import Column, Connection, inspect
from sqlalchemy.orm import (
    LoaderCallableStatus,
    Mapper,
    PassiveFlag,
    Session,
    UOWTransaction,
)
from sqlalchemy.orm.attributes import instance_state

from sqlaudit.config import current_config
from sqlaudit.context import get_audit_context
from sqlaudit.past.objects import is_unchanged_past
from sqlaudit.recording.capture import Capture, Unseen, WriteContext
from sqlaudit.recording.cascades import Dependents, record_moved
from sqlaudit.recording.changeset import changeset_of, instant_before, own_connection
from sqlaudit.recording.policy import lacking, notice_replacing, require_context
from sqlaudit.recording.side_writes import chooses_connections, may_write_more, others_listen
from sqlaudit.recording.units import (
    FOLLOWED,
    State,
    Unit,
    changed_values,
    concerns_tracking,
    followed_fields_changed,
    sources_of,
    unit_of,
)
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.catalogue import has_triggers
from sqlaudit.tracking.foreign_keys import FollowedTable
from sqlaudit.tracking.models import link_columns
from sqlaudit.tracking.tables import TrackedTable, tracked_table

_Extent = tuple[str, ...]
_DOOMED: Final[_Extent] = ("",)  # no attribute has this name


class Updating:
    """An object before its UPDATE, with its committed values and the names of its changed attributes.

    After the UPDATE, attributes that were set to SQL expressions are expired, and look unchanged.
    """

    __slots__ = ("changed", "committed", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.committed = dict(state.committed_state)
        self.changed = frozenset(changed_values(state))


@dataclass(slots=True)
class Group:
    """The objects of one tracked model that a flush writes through one connection."""

    unit: Unit
    connection: Connection
    inserted: list[State] = field(default_factory=list)
    updating: list[Updating] = field(default_factory=list)
    deleted: list[State] = field(default_factory=list)


@dataclass(slots=True)
class _Links:
    """The rows of one association table that a flush may have changed."""

    added: set[Key] = field(default_factory=set)
    removed: set[Key] = field(default_factory=set)


_LinksByTable = dict[tuple[TrackedTable, tuple[Column[Any], ...], Connection | None], _Links]


@dataclass(slots=True)
class _ToAsk:
    """What to read from the database before the flush writes objects of one base mapper and identity token.

    :ivar blind: the keys of rows whose objects do not know the old values
    :ivar parents: the keys of rows on which other rows may depend by foreign key
    :ivar untracked: objects of untracked classes on which tracked rows may depend by foreign key
    :ivar links: the association rows that may change
    :ivar asked: the connections on which this has been read
    """

    blind: dict[Unit, list[Key]] = field(default_factory=lambda: defaultdict(list))
    parents: dict[Unit, list[Key]] = field(default_factory=lambda: defaultdict(list))
    untracked: dict[Mapper[Any], list[State]] = field(default_factory=lambda: defaultdict(list))
    links: _LinksByTable = field(default_factory=lambda: defaultdict(_Links))
    asked: set[Connection] = field(default_factory=set)


_Questions = dict[tuple[Mapper[Any], Any], _ToAsk]


def _is_blind(unit: Unit, committed: Mapping[str, Any], values: Mapping[str, Any], *, whole: bool) -> bool:
    """Return whether an object has not loaded old values that may be needed.

    :param whole: True if any stored value may be needed; False if only those that change unset or refer to rows
    """
    return not values.keys() >= (unit.stored if whole else unit.needed) or any(
        value is LoaderCallableStatus.NO_VALUE and name in unit.stored for name, value in committed.items()
    )


class Flush:
    """What one flush does to tracked rows."""

    def __init__(self, session: Session, context: UOWTransaction) -> None:
        self.session = session
        self.context = context
        self.config = current_config()
        self._requires = self.config.require_reason or self.config.require_user
        self.began: datetime | None = None
        """The instant before the flush, or before its first tracked row if other listeners add that row later."""
        self.is_announced = False
        self._groups: dict[tuple[Mapper[Any], Connection], Group] = {}
        self._automatic: dict[State, dict[str, Any]] = {}
        self._doomed: dict[tuple[Mapper[Any], Key], State] = {}
        self._dependents = Dependents()
        self._followed: list[tuple[WriteContext, tuple[FollowedTable, ...], list[State]]] = []
        self.prepared: dict[State, _Extent] | None = None
        """The changed attributes of each object when it was prepared; ``None`` until :meth:`prepare` is called."""
        self._blind: set[State] = set()
        self._baselines: list[tuple[Unit, Capture, list[Key]]] = []
        self._told: set[tuple[Unit, Connection, Key]] = set()
        self.chooses = chooses_connections(session)
        self._questions: _Questions = defaultdict(_ToAsk)
        self._followed_fields: dict[Unit, frozenset[str]] = {}
        self._changed_late: dict[Unit, bool] = {}
        self._records_links: bool | None = None

    def group(self, state: State, connection: Connection) -> Group:
        """Return the group of a tracked object that the flush writes through a connection."""
        key = state.mapper, connection
        try:
            return self._groups[key]
        except KeyError:
            unit = cast(Unit, unit_of(state.mapper))
            return self._groups.setdefault(key, Group(unit, connection))

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
        """
        if self._requires:
            self._require_context()
        if self.began is None:
            self.begin()
        self.prepared = {}
        doomed = self.session._deleted  # the public properties build a set of all dirty objects
        for state in (*doomed, *set(self.session._dirty_states).difference(doomed)):
            if concerns_tracking(state):
                self._look_at(state, state in doomed, self._questions)
        if not self.chooses and self._questions:
            connection = own_connection(self.session, None)
            for questions in self._questions.values():
                self._ask(questions, connection)
            self._questions.clear()

    def _begin_late(self, connection: Connection) -> None:
        if self.began is None and self.prepared is not None:
            self.began = instant_before(self.session, connection)

    def inserting(self, state: State, connection: Connection) -> None:
        """Read what is needed before an object is inserted: it may take the row of a deleted one."""
        self._begin_late(connection)
        if self._questions:
            self._ask_about(state, connection)

    def writing(self, state: State, connection: Connection, *, doomed: bool) -> None:
        """Read what is needed before an object is updated or deleted, on the connection that the flush uses.

        Other listeners or a cascade may have changed or deleted the object since :meth:`prepare` looked at it.
        """
        if self._questions:
            self._ask_about(state, connection)
        if self.prepared is None:
            return
        self._begin_late(connection)
        extent = _DOOMED if doomed else tuple(changed_values(state))
        if extent and self.prepared.get(state) != extent:
            if self._requires:
                self._require_context([state.obj()])
            late: _Questions = defaultdict(_ToAsk)
            self._look_at(state, doomed, late)
            for questions in late.values():
                self._ask(questions, connection)

    def _ask_about(self, state: State, connection: Connection) -> None:
        """Read, once on each connection, what is needed for all objects of an object's base mapper and token."""
        questions = self._questions.get((state.mapper.base_mapper, state.identity_token))
        if questions is not None and connection not in questions.asked:
            questions.asked.add(connection)
            self._ask(questions, connection)

    def _look_at(self, state: State, doomed: bool, questions: _Questions) -> None:
        """Add to ``questions`` what must be read because of an object."""
        if is_unchanged_past(self.session, state, doomed=doomed):
            return
        place = state.mapper.base_mapper, state.identity_token
        prepared = cast("dict[State, _Extent]", self.prepared)
        unit = unit_of(state.mapper)
        if unit is None or state.key is None:
            if state.manager.info.get(FOLLOWED) is not None and (doomed or followed_fields_changed(state)):
                prepared[state] = _DOOMED if doomed else tuple(changed_values(state))
                questions[place].untracked[state.mapper].append(state)
            return
        key, committed, values = state.key[1], changed_values(state), state.dict
        dies = doomed or (unit.has_orphans and state.mapper._is_orphan(state))
        may_change_late = not dies and self._may_change_late(unit)
        goes = dies or not unit.keys.isdisjoint(committed)
        prepared[state] = _DOOMED if dies else tuple(committed)
        if not committed and not dies and not may_change_late:
            return
        if goes:
            self._doomed[unit.mapper.base_mapper, key] = state
        if may_change_late:
            unchanged = unit.live.keys() & values.keys() - committed.keys()
            self._automatic[state] = {name: values[name] for name in unchanged}
        elif unit.automatic and not dies:
            self._automatic[state] = {name: values[name] for name in unit.automatic if name in values}
        if unit not in self._followed_fields:
            self._followed_fields[unit] = unit.followed()
        followed = self._followed_fields[unit]
        may_follow = bool(self._doomed) and not unit.referring.isdisjoint(committed)  # to a deleted row
        if goes or may_follow or not followed.isdisjoint(committed) or (may_change_late and followed - unit.keys):
            questions[place].parents[unit].append(key)
        whole = goes or may_change_late
        is_written = whole or not unit.collections.issuperset(committed)
        if is_written and state not in self._blind and _is_blind(unit, committed, values, whole=whole):
            self._blind.add(state)
            questions[place].blind[unit].append(key)
        if (
            unit.links
            and not goes
            and not self.chooses
            and any(relationship.key in committed for relationship in unit.links)
        ):
            self._collect_links(unit, state, None, questions[place].links)

    def _may_change_late(self, unit: Unit) -> bool:
        """Return whether listeners may change an object after :meth:`_look_at`, even by SQL expressions."""
        found = self._changed_late.get(unit)
        if found is None:
            found = self._changed_late[unit] = others_listen(unit.mapper, ("before_update",))
        return found

    def _ask(self, questions: _ToAsk, connection: Connection) -> None:
        """Write the baselines and find the dependent rows that could not be known after the flush."""
        self._dependents.written = self._written_so_far()
        for unit, keys in questions.blind.items():
            capture = self._write_context(connection).capture(unit.model.chain, unit.user_fields(self.config))
            capture.baseline(keys)
            self._baselines.append((unit, capture, keys))
        for (table, columns, _), some in questions.links.items():
            if some.removed and not _is_whole(table, columns):
                capture = self._write_context(connection).capture((table,))
                live, _ = capture.keys_where(columns, list(some.removed))
                capture.baseline(list(live))
        for unit, keys in questions.parents.items():
            self._dependents.find(self._write_context(connection), unit.model.chain, keys)
        for mapper, states in questions.untracked.items():
            write, sources = self._write_context(connection), sources_of(mapper)
            self._dependents.find(write, sources, [cast(Any, state.key)[1] for state in states])
            self._followed.append((write, sources, states))

    def _require_context(self, objects: Iterable[Any] | None = None) -> None:
        session, lacks = self.session, lacking(get_audit_context())
        if lacks is None:
            return
        if objects is None:
            changed = (obj for obj in session.dirty if session.is_modified(obj))
            objects = (*session.new, *session.deleted, *changed)
        for obj in objects:
            state: State = inspect(obj)
            unit = unit_of(state.mapper)
            if unit is not None:
                fields = [column for column in unit.user_fields(self.config) if column is not None]
                users = [getattr(obj, state.mapper.get_property_by_column(field).key) for field in fields]
                names_user = any(user not in (None, "") for user in users)
                write = f"{state.mapper.class_.__name__} is to be written"
                require_context(lacks, write, obj, row_names_user=names_user)

    def _written_so_far(self) -> set[tuple[TrackedTable, Key]]:
        """Return the rows that the flush has written so far; their old values are known or have been read."""
        written: set[tuple[TrackedTable, Key]] = set()
        for group in self._groups.values():
            states = (*group.inserted, *(update.state for update in group.updating))
            keys = [group.unit.key_of(state) for state in states]
            written.update((table, key) for table in group.unit.model.chain for key in keys)
        return written

    # -- after the flush

    @property
    def is_writing(self) -> bool:
        """Return whether the flush has begun to write. Statements of ``before_flush`` listeners precede that."""
        return getattr(self.context, "transaction", None) is not None

    @property
    def records_links(self) -> bool:
        """Return whether association rows are recorded after the flush, from its objects.

        Else their statements are recorded: if the connection is unknown, or if listeners may execute such statements.
        """
        if self._records_links is None:
            session = self.session
            states = chain(self.context.states, session._new, session._deleted, session._dirty_states)
            mappers = {state.mapper for state in states}
            self._records_links = not self.chooses and not any(map(may_write_more, mappers))
        return self._records_links

    def record(self) -> None:
        """Write the versions.

        :raises ContextError: a listener has added an object, and a required user or reason is missing
        """
        if not self._groups and not self._baselines and not self._followed:
            return
        if self._requires:
            for group in self._groups.values():
                self._require_context(state.obj() for state in group.inserted)
        links: _LinksByTable = defaultdict(_Links)
        for group in self._groups.values():
            self._record_group(group)
            if group.unit.links and self.records_links:
                for state in (*group.inserted, *(update.state for update in group.updating)):
                    self._collect_links(group.unit, state, group.connection, links)
                for state in group.deleted:
                    self._collect_links(group.unit, state, group.connection, links, deleted=True)
        for (table, columns, connection), some in links.items():
            assert connection is not None
            self._record_links(connection, table, columns, some)
        self._dependents.settle()
        for write, sources, states in self._followed:
            record_moved(write, sources, [_key_now(state) for state in states if _has_moved(state)])
        for unit, capture, keys in self._baselines:  # delete the baselines that no change followed
            told = self._told
            capture.settle([key for key in keys if (unit, capture.connection, key) not in told])

    def _record_group(self, group: Group) -> None:
        unit = group.unit
        new: list[Key] = []
        rewritten: dict[Key, State] = {}
        updated: dict[Key, tuple[State, Mapping[str, Any]]] = {}
        moved: dict[Key, tuple[State, Mapping[str, Any]]] = {}
        moved_to: list[Key] = []
        deleted: dict[Key, tuple[State, Mapping[str, Any]]] = {}
        for state in group.deleted:
            deleted[cast(Any, state.key)[1]] = (state, state.committed_state)
        for state in group.inserted:
            key = unit.key_of(state)
            if self._doomed and (replaced := self._doomed.get((unit.mapper.base_mapper, key), state)) is not state:
                rewritten[key] = replaced  # recorded as an UPDATE: the flush deletes and inserts the same key
            else:
                new.append(key)
        for update in group.updating:
            state, changed = update.state, {**update.state.committed_state, **update.committed}
            fields = {*update.changed, *changed_values(state)}
            is_updated = self._may_change_late(unit) or not unit.watched.isdisjoint(fields)
            if is_updated or (not unit.excluded.isdisjoint(fields) and self._has_triggers(unit, group.connection)):
                key, old_key = unit.key_of(state), cast(Any, state.key)[1]
                if key == old_key:
                    updated[key] = (state, changed)
                else:
                    moved[old_key] = (state, changed)
                    moved_to.append(key)

        def old_of_updated(key: Key) -> Mapping[Column[Any], Any]:
            state, changed = updated[key]
            changed = self._with_automatic(state, changed)
            return unit.old_values(state, changed, changed)

        def old_of_lost(key: Key) -> Mapping[Column[Any], Any]:
            if key in rewritten:
                return unit.old_values(rewritten[key], rewritten[key].committed_state, unit.stored)
            state, changed = moved.get(key) or deleted.get(key) or (None, {})
            if state is None:
                return {}
            return unit.old_values(state, self._with_automatic(state, changed), unit.stored)

        if not (new or rewritten or updated or moved or deleted):
            return
        if self._baselines:
            self._told.update((unit, group.connection, key) for key in (*rewritten, *updated, *moved, *deleted))
        if unit.replacing and (new or updated or moved):
            notice_replacing(group.connection, unit.replacing[0])
        write = self._write_context(group.connection)
        capture = write.capture(unit.model.chain, unit.user_fields(self.config))
        must_be_found = not (unit.referring and (self._doomed or self._followed))  # else a cascade may delete it
        if moved or rewritten or not deleted.keys().isdisjoint(new):
            keys = dict.fromkeys((*moved, *moved_to, *rewritten, *deleted, *new))
            fresh = {*moved_to, *new} - {*rewritten, *deleted}
            capture.settle(list(keys), inserted=fresh, before=old_of_lost, must_be_found=must_be_found)
        else:
            if new:
                capture.inserted(new, must_be_found=must_be_found)
            if deleted:
                capture.deleted(list(deleted), old_of_lost)
        if updated:
            unseen = Unseen.UPDATED if must_be_found else Unseen.DELETED
            capture.updated(list(updated), old_of_updated, unseen=unseen)
        if moved_to:
            record_moved(write, unit.model.chain, moved_to)

    def _with_automatic(self, state: State, changed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the old values of an object, including fields that changed without being set."""
        return {**self._automatic.get(state, {}), **changed}

    @staticmethod
    def _has_triggers(unit: Unit, connection: Connection) -> bool:
        """Return whether a trigger may change stored columns when only an excluded column is updated."""
        return any(has_triggers(connection, table) for table in unit.model.chain)

    @staticmethod
    def _collect_links(
        unit: Unit,
        state: State,
        connection: Connection | None,
        links: _LinksByTable,
        deleted: bool = False,
    ) -> None:
        committed = state.committed_state
        moved = state.key is not None and not unit.keys.isdisjoint(committed)
        for relationship in unit.links:
            if state.key is not None and not deleted and not moved and relationship.key not in committed:
                continue
            table = cast(TrackedTable, tracked_table(relationship.secondary))
            columns = link_columns(relationship)
            history = state.get_history(relationship.key, PassiveFlag.PASSIVE_NO_INITIALIZE)
            found = links[table, columns, connection]
            added, unchanged, removed = (list(items or ()) for items in history)
            theirs = relationship.secondary_synchronize_pairs or ()
            if moved:  # its links move from the old key to the new one
                added += unchanged
            for items, then, kept in (
                (added, False, found.added),
                (removed + (unchanged if deleted or moved else []), True, found.removed),
            ):
                here = _values(state, unit.mapper, relationship.synchronize_pairs, then)
                kept.update(
                    here + _values(instance_state(item), relationship.mapper, theirs, then)
                    for item in items
                    if item is not None
                )

    def _record_links(
        self,
        connection: Connection,
        table: TrackedTable,
        columns: tuple[Column[Any], ...],
        links: _Links,
    ) -> None:
        capture = self._write_context(connection).capture((table,))
        touched = list(links.added | links.removed)
        live, recorded = capture.keys_where(columns, touched)
        if set(columns) >= set(table.key):
            order = [columns.index(column) for column in table.key]
            gone = {
                tuple(link[index] for index in order): dict(zip(columns, link, strict=True)) for link in links.removed
            }
        else:
            gone = {}
        capture.settle(
            list(live | recorded | (gone.keys() if _is_whole(table, columns) else set())),
            inserted=live,
            before=lambda key: gone.get(key, {}),
        )

    def _write_context(self, connection: Connection) -> WriteContext:
        return WriteContext(connection, changeset_of(self.session, connection, self.began), get_audit_context())


def _has_moved(state: State) -> bool:
    """Return whether the flush gave an untracked object another key."""
    return state.key is not None and _key_now(state) != tuple(state.key[1])


def _key_now(state: State) -> Key:
    return tuple(state.mapper.primary_key_from_instance(state.obj()))


def _is_whole(table: TrackedTable, columns: Iterable[Column[Any]]) -> bool:
    """Return whether the columns of a link are the only ones that its history stores."""
    return {live for live, _ in table.columns} <= set(columns)


def _values(state: State, mapper: Mapper[Any], pairs: Iterable[tuple[Any, Any]], then: bool) -> Key:
    """Return the values of an object that its links repeat: the current ones, or the old ones (``then``)."""
    values = (
        dict(
            zip((mapper.get_property_by_column(column).key for column in mapper.primary_key), state.key[1], strict=True)
        )
        if state.key
        else {}
    )
    values |= state.dict
    if then:
        committed = state.committed_state.items()
        values |= {name: value for name, value in committed if not isinstance(value, LoaderCallableStatus)}
    return tuple(values.get(mapper.get_property_by_column(column).key) for column, _ in pairs)
