"""What did a flush do to tracked rows? From the unit of work's objects to the keys that capture needs.

One :class:`Flush` lives in ``session.info["sqlaudit"]`` from ``before_flush`` to ``after_flush``. Work is
proportional to the objects that the flush writes, never to those that the session holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from sqlalchemy import ClauseElement, Column, ColumnDefault, Connection, Table, inspect
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Mapper,
    PassiveFlag,
    RelationshipDirection,
    Session,
    UOWTransaction,
)
from sqlalchemy.orm.attributes import instance_state

from sqlaudit.capture import (
    Capture,
    Changeset,
    Unseen,
    changeset_of,
    instant_before,
    lacking,
    lacks_reason,
    lacks_user,
    notice_replacing,
    own_connection,
)
from sqlaudit.catalogue import has_triggers
from sqlaudit.config import SQLAuditConfig, current_config
from sqlaudit.context import AuditContext, get_audit_context
from sqlaudit.dependents import Dependents, Occasion, record_moved
from sqlaudit.instant import is_unchanged_past
from sqlaudit.keytypes import Key
from sqlaudit.models import TrackedModel, link_columns, tracked_model
from sqlaudit.overriding import makes_its_keys, override_keys
from sqlaudit.references import Untracked, referred_columns, untracked_source
from sqlaudit.statements import NO_USER_FIELDS, UserFields
from sqlaudit.tables import INFO_KEY, TrackedTable, tracked_table

try:
    from sqlalchemy.orm.unitofwork import _DeleteAll, _SaveUpdateAll  # type: ignore[attr-defined, unused-ignore]
except ImportError:  # before SQLAlchemy 2.1
    from sqlalchemy.orm.unitofwork import (  # type: ignore[attr-defined, no-redef, unused-ignore]
        DeleteAll as _DeleteAll,
    )
    from sqlalchemy.orm.unitofwork import (  # type: ignore[attr-defined, no-redef, unused-ignore]
        SaveUpdateAll as _SaveUpdateAll,
    )

State = InstanceState[Any]
_UNIT_KEY: Final = "sqlaudit_unit"
_FOLLOWED: Final = "sqlaudit_followed"
_WRITTEN_WITH: Final = "sqlaudit_written_with"
_RESTORING: Final = "sqlaudit_restoring"
_Extent = tuple[str, ...]
_DOOMED: Final[_Extent] = ("",)  # the name of no attribute


@dataclass(slots=True)
class Restoring:
    """What restored objects tell the flush that writes them, and no other.

    :ivar reasons: why they are written, if the context does not say, and what was set: if that has been taken back,
        by a refresh for instance, the reason is void
    :ivar links: the same of links, by table and :func:`link_identity`
    :ivar order: (base mapper, base mapper whose rows refer to the first's), where no relationship need say so
    :ivar overridden: what ends the overriding of keys that the database makes
    :ivar overriding: the tables whose keys are overridden, by connection
    """

    reasons: WeakKeyDictionary[State, tuple[str, Mapping[str, Any]]] = field(default_factory=WeakKeyDictionary)
    links: dict[tuple[Table, frozenset[Any]], str] = field(default_factory=dict)
    order: set[tuple[Mapper[Any], Mapper[Any]]] = field(default_factory=set)
    overridden: list[Callable[[], None]] = field(default_factory=list)
    overriding: dict[Connection, set[Table]] = field(default_factory=lambda: defaultdict(set))

    def reason_of(self, state: State) -> str | None:
        """Return why an object is written, if it was restored."""
        reason, values = self.reasons.get(state, (None, {}))
        if values and not any(state.dict.get(name, state) is value for name, value in values.items()):
            return None
        return reason

    def override_keys(self, state: State, connection: Connection) -> None:
        """Let a restored object be inserted with its old key."""
        tables = {table for table in state.mapper.tables if isinstance(table, Table) and makes_its_keys(table)}
        if state in self.reasons and not tables <= self.overriding[connection]:
            self.overridden.append(override_keys(connection, tables - self.overriding[connection]))
            self.overriding[connection] |= tables


def restoring(session: Session) -> Restoring:
    """Return the place where a restore leaves what the next flush of the session needs to know."""
    found: Restoring = session.info.setdefault(_RESTORING, Restoring())
    return found


def forget_restoring(session: Session) -> None:
    """Let what a restore left be gone: its flush is over, or its work was rolled back."""
    found: Restoring | None = session.info.pop(_RESTORING, None)
    for end in found.overridden if found is not None else ():
        end()


def prepare_restoring(session: Session, context: UOWTransaction) -> None:
    """Let a flush write restored rows in an order that their foreign keys allow.

    The unit of work takes its order from the relationships that changed; restored rows have columns set.
    """
    found: Restoring | None = session.info.get(_RESTORING)
    if found is None:
        return
    save: Callable[[UOWTransaction, Mapper[Any]], Any] = _SaveUpdateAll
    delete: Callable[[UOWTransaction, Mapper[Any]], Any] = _DeleteAll
    for parent, child in found.order:
        save_parent, save_child = save(context, parent), save(context, child)
        delete_parent, delete_child = delete(context, parent), delete(context, child)
        context.dependencies |= {
            (save_parent, save_child),
            (save_child, delete_parent),
            (delete_child, delete_parent),
        }


def link_identity(columns: Iterable[Column[Any]], link: Iterable[Any]) -> frozenset[tuple[str, Any]]:
    """Return what tells a link from others, from whichever side it is seen."""
    return frozenset(zip((column.key for column in columns), link, strict=True))


def chooses_connections(session: Session) -> bool:
    """Tell whether a session may have several connections in one transaction."""
    own = vars(session)
    return (
        type(session).get_bind is not Session.get_bind
        or bool(own.get("binds") or own.get("_Session__binds"))  # 2.0 has them by the second name
        or "get_bind" in own
        or session.connection_callable is not None
    )


def others_listen(mapper: Mapper[Any], names: Iterable[str]) -> bool:
    """Tell whether listeners other than sqlaudit's hear what a flush does to objects of a mapper.

    :param names: the events
    """
    dispatch = mapper.dispatch
    listeners = (listener for name in names for listener in getattr(dispatch, name))
    return not all((getattr(listener, "__module__", None) or "").startswith("sqlaudit.") for listener in listeners)


@dataclass(frozen=True, slots=True)
class _WrittenWith:
    """The mappers whose objects a flush may write because it writes one of a mapper.

    :ivar mappers: those that lose what they refer to, and those that are deleted with it
    :ivar default: whether a default of one of their columns is given the execution, by whose connection it may write
    """

    mappers: frozenset[Mapper[Any]]
    default: bool
    generation: int


def may_write_more(mapper: Mapper[Any], events: Iterable[str]) -> bool:
    """Tell whether more may be executed, by others, on the connection of a flush that writes objects of a mapper.

    :param events: those of the unit of work
    """
    known: _WrittenWith | None = mapper.class_manager.info.get(_WRITTEN_WITH)
    if known is None or known.generation != _generation[0]:
        known = mapper.class_manager.info[_WRITTEN_WITH] = _written_with(mapper)
    return known.default or any(others_listen(each, events) for each in known.mappers)


_generation: Final = [0]


def forget_written_with() -> None:
    """Look anew at what flushes may write: there are more columns or relationships than before."""
    _generation[0] += 1


def _written_with(mapper: Mapper[Any]) -> _WrittenWith:
    reached: dict[Mapper[Any], bool] = {}
    waiting = [(mapper, True)]
    while waiting:
        base, is_deleted = waiting.pop()
        for each in base.self_and_descendants:
            if each not in reached or (is_deleted and not reached[each]):
                reached[each] = is_deleted
                if is_deleted:
                    waiting += [(prop.mapper, prop.cascade.delete) for prop in each.relationships if not prop.viewonly]
    columns = {column for each in reached for table in each.tables if isinstance(table, Table) for column in table.c}
    writes = any(_takes_execution(default) for column in columns for default in (column.default, column.onupdate))
    return _WrittenWith(frozenset(reached), writes, _generation[0])


def _takes_execution(default: Any) -> bool:
    """Tell whether SQLAlchemy calls a default with the execution; it puts a function around one without arguments."""
    function = default.arg if getattr(default, "is_callable", False) else None
    return function is not None and getattr(function, "__globals__", {}).get("__name__") != ColumnDefault.__module__


class Unit:
    """What the flush of a tracked model's objects needs to know of the model."""

    def __init__(self, model: TrackedModel) -> None:
        mapper = model.mapper
        self.model = model
        self.mapper = mapper
        self.key_names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        self.live: dict[str, Column[Any]] = {}
        for table in model.chain:
            for live, _ in table.columns:
                if live in mapper._columntoproperty:
                    self.live.setdefault(mapper.get_property_by_column(live).key, live)
        self.stored = frozenset(self.live)
        self.keys = frozenset(self.key_names)
        self.automatic = frozenset(name for name, column in self.live.items() if self._is_automatic(column))
        self.referring = frozenset(name for name, column in self.live.items() if column.foreign_keys)
        self.needed = self.automatic | self.referring
        columns = frozenset(prop.key for prop in mapper.column_attrs if isinstance(prop.columns[0], Column))
        self.watched = columns if self.automatic else self.stored
        self.excluded = columns - self.watched
        self.collections = frozenset(
            prop.key for prop in mapper.relationships if prop.direction is not RelationshipDirection.MANYTOONE
        )
        self.links = [
            relationship
            for relationship in mapper.relationships
            if relationship.secondary is not None
            and not relationship.viewonly
            and tracked_table(relationship.secondary) is not None
        ]
        self.has_orphans = any(each._delete_orphans for each in mapper.iterate_to_root())
        self._user_fields: dict[str | None, UserFields] = {}

    def followed(self) -> frozenset[str]:
        """Return the fields, the key's among them, that rows of other tables follow by foreign key."""
        columns = referred_columns(self.model.chain)
        return self.keys | {name for name, column in self.live.items() if column in columns}

    def _is_automatic(self, column: Column[Any]) -> bool:
        """Whether an UPDATE of other columns may change this one."""
        return (
            column.onupdate is not None
            or column.server_onupdate is not None
            or column.computed is not None
            or column is self.mapper.version_id_col
        )

    def user_fields(self, config: SQLAuditConfig) -> UserFields:
        """Return the columns that name the user of a row, before and after the callback."""
        fallback = config.user_model_user_id_field
        if fallback not in self._user_fields:
            named = self.live.get(self.model.options.user_id_field or ""), self.live.get(fallback or "")
            self._user_fields[fallback] = NO_USER_FIELDS if all(field is None for field in named) else named
        return self._user_fields[fallback]

    def key_of(self, state: State) -> Key:
        """Return the key that a written object has now; its identity may be older."""
        values = state.dict
        try:
            return tuple([values[name] for name in self.key_names])
        except KeyError:
            return tuple(state.key[1]) if state.key else tuple(self.mapper.primary_key_from_instance(state.obj()))

    def old_values(self, state: State, changed: Mapping[str, Any], names: Iterable[str]) -> dict[Column[Any], Any]:
        """Return what is known of an object's fields before they were ``changed``."""
        known: dict[Column[Any], Any] = {}
        for name in names:
            value = changed[name] if name in changed else state.dict.get(name, LoaderCallableStatus.NO_VALUE)
            if name in self.live and not isinstance(value, LoaderCallableStatus):
                known[self.live[name]] = value
        return known


def unit_of(mapper: Mapper[Any]) -> Unit | None:
    """Return the unit of a mapper, or ``None`` if its class is not tracked."""
    unit: Unit | None = mapper.class_manager.info.get(_UNIT_KEY)
    if unit is None and (model := tracked_model(mapper)) is not None:
        unit = mapper.class_manager.info[_UNIT_KEY] = Unit(model)
    return unit


def forget_unit(mapper: Mapper[Any]) -> None:
    """Let the unit of a mapper be made anew: its class has got columns or relationships."""
    mapper.class_manager.info.pop(_UNIT_KEY, None)


def _concerns_us(state: State) -> bool:
    """Tell whether an object is of a tracked class, or may be of the past: every flush asks it of every dirty one."""
    info = state.manager.info
    return INFO_KEY in info or info.get(_FOLLOWED) is not None or (state.key is not None and state.key[2] is not None)


def sources_of(mapper: Mapper[Any]) -> tuple[Untracked, ...]:
    """Return the tables of a class that is not tracked whose rows tracked ones follow by foreign key."""
    tables = (table for table in mapper.tables if isinstance(table, Table))
    found = tuple(source for source in map(untracked_source, tables) if source and source.live.primary_key)
    columns = referred_columns(found).intersection(mapper._columntoproperty)
    names = frozenset(mapper._columntoproperty[column].key for column in columns)
    mapper.class_manager.info[_FOLLOWED] = names if found else None
    return found


def followed_fields_changed(state: State) -> bool:
    """Tell whether fields of an object of such a class are about to change that rows of others refer to."""
    names: frozenset[str] | None = state.manager.info.get(_FOLLOWED)
    return names is not None and not names.isdisjoint(changed_values(state))


def changed_values(state: State) -> Mapping[str, Any]:
    """Return the committed values of an object that a flush finds changed, as the unit of work does.

    An attribute that was given an equal value, or another one and the old one again, is not among them.
    """
    committed = state.committed_state
    unchanged = [name for name, old in committed.items() if _is_as_it_was(state, name, old)]
    return {name: old for name, old in committed.items() if name not in unchanged} if unchanged else committed


def _is_as_it_was(state: State, name: str, old: Any) -> bool:
    value = state.dict.get(name, LoaderCallableStatus.NO_VALUE)
    if isinstance(old, LoaderCallableStatus) or isinstance(value, LoaderCallableStatus):
        return False
    if name not in state.mapper.column_attrs:
        return value is old
    if isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"):
        return False
    return state.manager[name].impl.is_equal(value, old) is True


class Updating:
    """An object that is about to be updated, with what it told then.

    After the UPDATE, attributes that were set to SQL expressions have been expired, and look like no change.
    """

    __slots__ = ("changed", "committed", "state")

    def __init__(self, state: State) -> None:
        self.state = state
        self.committed = dict(state.committed_state)
        self.changed = frozenset(changed_values(state))


@dataclass(slots=True)
class Group:
    """The objects of one unit that a flush writes through one connection."""

    unit: Unit
    connection: Connection
    reason: str | None = None
    inserted: list[State] = field(default_factory=list)
    updating: list[Updating] = field(default_factory=list)
    deleted: list[State] = field(default_factory=list)


@dataclass(slots=True)
class _Links:
    """The links of one association table that a flush may have changed."""

    added: set[Key] = field(default_factory=set)
    removed: set[Key] = field(default_factory=set)


_LinksByTable = dict[tuple[TrackedTable, tuple[Column[Any], ...], Connection | None], _Links]


@dataclass(slots=True)
class _ToAsk:
    """What the database must be asked before the objects of one base mapper and identity token are written.

    :ivar blind: the keys of rows whose old values their objects don't know
    :ivar parents: the keys of rows that others may follow
    :ivar untracked: the objects of classes without history whose rows tracked ones may follow
    :ivar links: the links that may change
    :ivar asked: the connections that have been asked
    """

    blind: dict[Unit, list[Key]] = field(default_factory=lambda: defaultdict(list))
    parents: dict[tuple[Unit, str | None], list[Key]] = field(default_factory=lambda: defaultdict(list))
    untracked: dict[Mapper[Any], list[State]] = field(default_factory=lambda: defaultdict(list))
    links: _LinksByTable = field(default_factory=lambda: defaultdict(_Links))
    asked: set[Connection] = field(default_factory=set)


_Questions = dict[tuple[Mapper[Any], Any], _ToAsk]


def _is_blind(unit: Unit, committed: Mapping[str, Any], values: Mapping[str, Any], *, whole: bool) -> bool:
    """Tell whether an object does not know its row as it was.

    :param whole: whether any of its columns may change, and not only those that have changed, or do by themselves
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
        self.restoring: Restoring | None = session.info.get(_RESTORING)
        self.began: datetime | None = None
        """The instant before the flush, or before its first tracked row, if other listeners have brought that later."""
        self.is_announced = False
        self._groups: dict[tuple[Mapper[Any], Connection, str | None], Group] = {}
        self._automatic: dict[State, dict[str, Any]] = {}
        self._doomed: dict[tuple[Mapper[Any], Key], State] = {}
        self._dependents = Dependents()
        self._followed: list[tuple[Occasion, tuple[Untracked, ...], list[State]]] = []
        self.prepared: dict[State, _Extent] | None = None
        """What of each object had changed when it was prepared; ``None`` if none ever is."""
        self._blind: set[State] = set()
        self._baselines: list[tuple[Unit, Capture, list[Key]]] = []
        self._told: set[tuple[Unit, Connection, Key]] = set()
        self.chooses = chooses_connections(session)
        self.asks_late = self.chooses or self.restoring is not None
        self._questions: _Questions = defaultdict(_ToAsk)
        self._followed_fields: dict[Unit, frozenset[str]] = {}
        self._changed_late: dict[Unit, bool] = {}
        self.looked_at: set[Mapper[Any]] = set()
        """The mappers of which it is known whether writing their objects may execute more than the flush tells."""
        self.is_heard = False
        """Whether statements of links are recorded when they are executed, whoever executes them."""

    def group(self, state: State, connection: Connection) -> Group:
        """Return the place for an object of a tracked class that the flush writes through a connection."""
        key = state.mapper, connection, None if self.restoring is None else self.restoring.reason_of(state)
        try:
            return self._groups[key]
        except KeyError:
            unit = cast(Unit, unit_of(state.mapper))
            return self._groups.setdefault(key, Group(unit, connection, key[-1]))

    def _context(self, reason: str | None) -> AuditContext:
        """Return the context of what is written for a reason, which that of the context itself precedes."""
        context = get_audit_context()
        return context if reason is None or context.reason is not None else replace(context, reason=reason)

    # -- before the flush

    def begin(self) -> None:
        """Take the instant, before any statement of the flush makes a timestamp, if it is to write tracked rows."""
        session = self.session
        if self.began is None and any(map(_concerns_us, (*session._new, *session._deleted, *session._dirty_states))):
            self.began = instant_before(session)

    def prepare(self) -> None:
        """Ask what nobody can tell after the flush; if it chooses among connections, as soon as it has chosen.

        :raises ContextError: the configuration requires a user or a reason, and there is none
        """
        self._require_context()
        self.begin()
        self.prepared = {}
        doomed = self.session._deleted  # the public properties would make a set of all dirty objects
        deleted = [state for state in doomed if _concerns_us(state)]
        dirty = [state for state in self.session._dirty_states if _concerns_us(state) and state not in doomed]
        for is_doomed, states in (True, deleted), (False, dirty):
            for state in states:
                self._look_at(state, is_doomed, self._questions)
        if not self.chooses and self._questions:
            connection = own_connection(self.session, None)
            for questions in self._questions.values():
                self._ask(questions, connection)
            self._questions.clear()

    def _begin_late(self, connection: Connection) -> None:
        if self.began is None and self.prepared is not None:
            self.began = instant_before(self.session, connection)

    def inserting(self, state: State, connection: Connection) -> None:
        """Ask before an object is inserted, which may take the row of one that goes."""
        self._begin_late(connection)
        if self.restoring is not None:
            self.restoring.override_keys(state, connection)
        if self._questions:
            self._ask_about(state, connection)

    def writing(self, state: State, connection: Connection, *, doomed: bool) -> None:
        """Ask before an object is updated or deleted, on the connection that the flush does it by.

        More may have become of the object than was known before the flush: other listeners may have changed or deleted
        it since, or a cascade did.
        """
        if self._questions:
            self._ask_about(state, connection)
        if self.prepared is None:
            return
        self._begin_late(connection)
        extent = _DOOMED if doomed else tuple(changed_values(state))
        if extent and self.prepared.get(state) != extent:
            self._require_context([state.obj()])
            late: _Questions = defaultdict(_ToAsk)
            self._look_at(state, doomed, late)
            for questions in late.values():
                self._ask(questions, connection)

    def _ask_about(self, state: State, connection: Connection) -> None:
        """Ask, once on each connection, what concerns the objects that are written with one."""
        questions = self._questions.get((state.mapper.base_mapper, state.identity_token))
        if questions is not None and connection not in questions.asked:
            questions.asked.add(connection)
            self._ask(questions, connection)

    def _look_at(self, state: State, doomed: bool, questions: _Questions) -> None:
        """Add what is to be asked because of an object."""
        if is_unchanged_past(self.session, state, doomed=doomed):
            return
        place = state.mapper.base_mapper, state.identity_token
        prepared = cast("dict[State, _Extent]", self.prepared)
        unit = unit_of(state.mapper)
        if unit is None or state.key is None:
            if state.manager.info.get(_FOLLOWED) is not None and (doomed or followed_fields_changed(state)):
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
        may_follow = bool(self._doomed) and not unit.referring.isdisjoint(committed)  # to a row that goes
        if goes or may_follow or not followed.isdisjoint(committed) or (may_change_late and followed - unit.keys):
            reason = None if self.restoring is None else self.restoring.reason_of(state)
            questions[place].parents[unit, reason].append(key)
        whole = goes or may_change_late
        is_written = whole or not unit.collections.issuperset(committed)
        if is_written and state not in self._blind and _is_blind(unit, committed, values, whole=whole):
            self._blind.add(state)
            questions[place].blind[unit].append(key)
        if (
            unit.links
            and not goes
            and self.records_links
            and any(relationship.key in committed for relationship in unit.links)
        ):
            self._collect_links(unit, state, None, questions[place].links)

    def _may_change_late(self, unit: Unit) -> bool:
        """Tell whether listeners may change an object after it has been looked at, even by SQL expressions."""
        found = self._changed_late.get(unit)
        if found is None:
            found = self._changed_late[unit] = others_listen(unit.mapper, ("before_update",))
        return found

    def _ask(self, questions: _ToAsk, connection: Connection) -> None:
        """Ask the database what nobody can tell after the flush."""
        self._dependents.written = self._written_so_far()
        for unit, keys in questions.blind.items():
            occasion, user_fields = self._occasion(connection), unit.user_fields(self.config)
            capture = Capture(connection, occasion.changeset, unit.model.chain, user_fields, occasion.context)
            capture.baseline(keys)
            self._baselines.append((unit, capture, keys))
        for (table, columns, _), some in questions.links.items():
            if some.removed and not _is_whole(table, columns):
                capture = Capture(connection, self._changeset(connection), (table,))
                live, _ = capture.keys_where(columns, list(some.removed))
                capture.baseline(list(live))
        for (unit, reason), keys in questions.parents.items():
            self._dependents.find(self._occasion(connection, reason), unit.model.chain, keys)
        for mapper, states in questions.untracked.items():
            occasion, sources = self._occasion(connection), sources_of(mapper)
            self._dependents.find(occasion, sources, [cast(Any, state.key)[1] for state in states])
            self._followed.append((occasion, sources, states))

    def _require_context(self, objects: Iterable[Any] | None = None) -> None:
        config = self.config
        if not config.require_reason and not config.require_user:
            return
        context = get_audit_context()
        needs_reason, needs_user = lacks_reason(config, context), lacks_user(config, context)
        if not needs_reason and not needs_user:
            return
        session = self.session
        if objects is None:
            changed = (obj for obj in session.dirty if session.is_modified(obj))
            objects = (*session.new, *session.deleted, *changed)
        for obj in objects:
            state: State = inspect(obj)
            unit = unit_of(state.mapper)
            if unit is None:
                continue
            write = f"{state.mapper.class_.__name__} is to be written"
            if needs_reason and (self.restoring is None or self.restoring.reason_of(state) is None):
                raise lacking("reason", write, obj)
            if not needs_user:
                continue
            fields = [column for column in unit.user_fields(config) if column is not None]
            if all(getattr(obj, state.mapper.get_property_by_column(field).key) in (None, "") for field in fields):
                raise lacking("user", write, obj)

    def _written_so_far(self) -> set[tuple[TrackedTable, Key]]:
        """Return the rows that the flush has written itself; what they were before is known, or was asked."""
        written: set[tuple[TrackedTable, Key]] = set()
        for group in self._groups.values():
            states = (*group.inserted, *(update.state for update in group.updating))
            keys = [group.unit.key_of(state) for state in states]
            written.update((table, key) for table in group.unit.model.chain for key in keys)
        return written

    # -- after the flush

    @property
    def is_writing(self) -> bool:
        """Whether the flush has begun to write: what is executed in ``before_flush`` is not its own."""
        return getattr(self.context, "transaction", None) is not None

    @property
    def records_links(self) -> bool:
        """Whether the links that the flush writes are recorded after it, by the objects."""
        return not self.is_heard or (self.restoring is not None and bool(self.restoring.links))

    def record(self) -> None:
        """Write the versions.

        :raises ContextError: a listener has added what lacks a required user or reason
        """
        if not self._groups and not self._baselines and not self._followed:
            return
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
            for reason, links_of_one in self._by_reason(table, columns, some).items():
                self._record_links(connection, table, columns, links_of_one, reason)
        self._dependents.settle()
        for occasion, sources, states in self._followed:
            record_moved(occasion, sources, [_key_now(state) for state in states if _has_moved(state)])
        for unit, capture, keys in self._baselines:  # no change came of some after all
            told = self._told
            capture.settle([key for key in keys if (unit, capture.connection, key) not in told])

    def _record_group(self, group: Group) -> None:
        unit = group.unit
        new: list[Key] = []
        rewritten: dict[Key, State] = {}
        updated: dict[Key, tuple[State, Mapping[str, Any]]] = {}
        moved: dict[Key, tuple[State, Mapping[str, Any]]] = {}
        moved_to: list[Key] = []
        deleted = {cast(Any, state.key)[1]: (state, state.committed_state) for state in group.deleted}
        for state in group.inserted:
            key = unit.key_of(state)
            if self._doomed and (replaced := self._doomed.get((unit.mapper.base_mapper, key), state)) is not state:
                rewritten[key] = replaced  # an UPDATE, in truth: the flush deletes and inserts the same key
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
        if new or updated or moved:
            notice_replacing(group.connection, unit.model.chain)
        changeset = self._changeset(group.connection)
        context = self._context(group.reason)
        capture = Capture(group.connection, changeset, unit.model.chain, unit.user_fields(self.config), context)
        must_be_found = not (unit.referring and (self._doomed or self._followed))  # else it may go with its parent
        if moved or rewritten or not deleted.keys().isdisjoint(new):
            keys = dict.fromkeys((*moved, *moved_to, *rewritten, *deleted, *new))
            fresh = {*moved_to, *new} - {*rewritten, *deleted}
            capture.settle(list(keys), inserted=fresh, before=old_of_lost, must_be_found=must_be_found)
        else:
            capture.inserted(new, must_be_found=must_be_found)
            capture.deleted(list(deleted), old_of_lost)
        unseen = Unseen.UPDATED if must_be_found else Unseen.DELETED
        capture.updated(list(updated), old_of_updated, unseen=unseen)
        if moved_to:
            record_moved(Occasion(group.connection, changeset, context), unit.model.chain, moved_to)

    def _with_automatic(self, state: State, changed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the old values of an object, also of fields that have changed by themselves, and were not set."""
        return {**self._automatic.get(state, {}), **changed}

    @staticmethod
    def _has_triggers(unit: Unit, connection: Connection) -> bool:
        """Tell whether a trigger may change what is stored of a row when a column is updated that is not."""
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
            if moved:  # the links, too, go from the old key to the new one
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

    def _by_reason(
        self, table: TrackedTable, columns: tuple[Column[Any], ...], links: _Links
    ) -> dict[str | None, _Links]:
        reasons = {} if self.restoring is None else self.restoring.links
        if not reasons:
            return {None: links}
        found: dict[str | None, _Links] = defaultdict(_Links)
        for link in links.added:
            found[reasons.get((table.live, link_identity(columns, link)))].added.add(link)
        for link in links.removed:
            found[reasons.get((table.live, link_identity(columns, link)))].removed.add(link)
        return found

    def _record_links(
        self,
        connection: Connection,
        table: TrackedTable,
        columns: tuple[Column[Any], ...],
        links: _Links,
        reason: str | None = None,
    ) -> None:
        changeset = self._changeset(connection)
        capture = Capture(connection, changeset, (table,), context=self._context(reason))
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

    def _changeset(self, connection: Connection) -> Changeset:
        return changeset_of(self.session, connection, self.began)

    def _occasion(self, connection: Connection, reason: str | None = None) -> Occasion:
        return Occasion(connection, self._changeset(connection), self._context(reason))


def _has_moved(state: State) -> bool:
    """Tell whether an object that is not tracked got another key, after it has been written."""
    return state.key is not None and _key_now(state) != tuple(state.key[1])


def _key_now(state: State) -> Key:
    return tuple(state.mapper.primary_key_from_instance(state.obj()))


def _is_whole(table: TrackedTable, columns: Iterable[Column[Any]]) -> bool:
    """Tell whether the columns of a link are all that its table stores."""
    return {live for live, _ in table.columns} <= set(columns)


def _values(state: State, mapper: Mapper[Any], pairs: Iterable[tuple[Any, Any]], then: bool) -> Key:
    """Return the values of an object that its links repeat: now, or before they were changed (``then``)."""
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
