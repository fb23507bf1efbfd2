"""Who is told what was recorded? The listeners of the events of :class:`~sqlaudit.Recording`.

Without listeners nothing is noted. With listeners, a capture notes the keys of the rows whose versions it writes; after
the flush or statement, one select for each table reads these versions. Before a commit, one select for each table reads
the versions of the changeset, so that what was rolled back to a savepoint is not told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast
from weakref import ref

from sqlalchemy import Connection, event, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlaudit.changes import Operation, Recorded, hashable
from sqlaudit.recording.changeset import ChangesetStamp, session_of_changeset
from sqlaudit.recording.scope import scope_of
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.keys import Key, RawKey, raw_columns
from sqlaudit.sql.lists import has_one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.foreign_keys import Chain
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.missing import codes_of
from sqlaudit.tracking.models import tracked_model


class Recording(event.EventTarget):
    """What to listen to, to be told what was recorded.

    .. code-block:: python

        from sqlalchemy import event
        from sqlaudit import Recording

        @event.listens_for(Recording, "recorded")
        def note(connection, items): ...

        @event.listens_for(Recording, "committed")
        def send(items): ...

    Each item is a :class:`Recorded`.

    ``recorded(connection, items)`` is called after a flush or a statement that has recorded something, in its
    transaction. It may execute statements on the connection. If it raises, the flush or statement fails. A row that the
    transaction has recorded before is told again if it is written again.

    ``committed(items)`` is called after the commit, with all that the transaction has recorded. Of what was rolled
    back, to a savepoint, too, nothing is told. If it raises, the error reaches the caller of the commit, and the
    transaction is committed. A session calls it when all its connections have committed, and cannot execute statements
    meanwhile.

    Both hear all sessions and engines that are registered. Listeners are plain functions, with an ``AsyncSession``,
    too. Baselines are not told.
    """


class RecordingEvents(event.Events[Recording]):
    """The events of :class:`Recording`."""

    _dispatch_target = Recording

    def recorded(self, connection: Connection, items: Sequence[Recorded]) -> None:
        """Called after a flush or a statement that has recorded something."""

    def committed(self, items: Sequence[Recorded]) -> None:
        """Called after a commit."""


_DISPATCH: Final[Any] = Recording().dispatch
recorded_listeners: Final = _DISPATCH.recorded.parent_listeners
"""The listeners, which SQLAlchemy adds and removes."""
committed_listeners: Final = _DISPATCH.committed.parent_listeners

_ROLES: Final = ("operation", "changeset_id", "changed_by", "impersonated_by", "reason", "extra")
_Place = tuple[Chain, ChangesetStamp]


@dataclass(slots=True)
class Notes:
    """What was recorded in a transaction of a connection.

    :ivar places: the tables that were written, and the changeset
    :ivar keys: the keys of the rows that no listener was told of yet
    :ivar items: what is to be told after the commit
    """

    places: dict[_Place, None] = field(default_factory=dict)
    keys: dict[_Place, dict[Key, None]] = field(default_factory=dict)
    items: list[Recorded] | None = None


def note(connection: Connection, chain: Chain, changeset: ChangesetStamp, keys: Iterable[Key]) -> None:
    """Note the keys of rows whose versions are written."""
    scope = scope_of(connection)
    if scope.notes is None:
        scope.notes = Notes()
        if committed_listeners:
            _watch_commit(connection)
    if committed_listeners and (session := session_of_changeset(connection, changeset)) is not None:
        _listen_after_commit(session)
    scope.notes.places[chain, changeset] = None
    if recorded_listeners:
        scope.notes.keys.setdefault((chain, changeset), {}).update(dict.fromkeys(keys))


# --- after a flush or a statement -------------------------------------------------------------------------------


def tell_recorded(connection: Connection) -> None:
    """Tell the listeners what has been recorded on a connection since they were last told."""
    notes = scope_of(connection).notes
    if notes is None or not notes.keys:
        return
    keys, notes.keys = notes.keys, {}
    items = [item for place, keys_of_place in keys.items() for item in _last_versions(connection, place, keys_of_place)]
    if items:
        _DISPATCH.recorded(connection, items)


def tell_recorded_by(session: Session) -> None:
    """Tell the listeners what has been recorded on the connections of a session since they were last told."""
    transaction = session.get_transaction()
    for connection, *_ in () if transaction is None else list(transaction._connections.values()):
        tell_recorded(connection)


def _last_versions(connection: Connection, place: _Place, keys: dict[Key, None]) -> Iterator[Recorded]:
    for kind in (False, True):
        for chunk in chunks([key for key in keys if isinstance(key, RawKey) is kind]):
            yield from {hashable(item.key): item for item in _versions(connection, place, chunk)}.values()


def _versions(connection: Connection, place: _Place, keys: Sequence[Key] | None = None) -> Iterator[Recorded]:
    """Yield the versions of a changeset in the last table of a chain, except baselines.

    :param keys: the keys of the rows; all if omitted
    """
    chain, changeset = place
    table = chain[-1]
    model = None if table.is_association or table.mapper is None else tracked_model(table.mapper)
    label = (model or model_of(table.live)).label
    audit = (table.version, table.valid_from, *map(table.role, _ROLES))
    statement = select(*audit).where(
        table.role("changeset_id") == changeset.id, table.role("operation") != Operation.BASELINE
    )
    if keys is not None:
        statement = statement.where(has_one_of(table.history_key, keys, connection.dialect))
    statement = statement.order_by(*table.history_key, table.version).execution_options(**INTERNAL)
    try:
        rows = connection.execute(statement.add_columns(*table.history_key)).all()
    except Exception:  # of a driver or a type: Python cannot read a key
        rows = connection.execute(statement.add_columns(*raw_columns(table.history_key, connection.dialect))).all()
    for row in rows:
        key = tuple(row[len(audit) :])
        yield Recorded(
            resource_type=label,
            key=key if len(key) > 1 else key[0],
            **dict(zip(("version", "timestamp", *_ROLES), row, strict=False)),
        )


# --- after a commit ---------------------------------------------------------------------------------------------

_ABORTED: Final = "25P02"
_COMMITTED: Final = "sqlaudit_committed"
_COMMITS: Final = ("_prepare_twophase_impl", "_commit_twophase_impl", "_commit_impl")


def _watch_commit(connection: Connection) -> None:
    """Wrap the methods by which a connection commits: SQLAlchemy has no event after a commit of a connection."""
    for name in _COMMITS:
        if name not in vars(connection):
            setattr(connection, name, _Commit(connection, name))


class _Commit:
    """A method of a connection that commits or prepares its transaction, and tells the listeners what it committed."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = ref(connection)  # the connection refers to this object
        self.name = name

    def __call__(self, *args: Any) -> None:
        connection = cast(Connection, self.connection())
        scope = scope_of(connection)
        notes, session = scope.notes, _committing_session(connection)
        if notes is not None and notes.items is None:
            notes.items = _committed(connection, notes) if committed_listeners else []
        getattr(type(connection), self.name)(connection, *args)
        if notes is None or not notes.items or self.name == _COMMITS[0]:
            return
        if session is None:
            _DISPATCH.committed(notes.items)
            return
        session.info.setdefault(_COMMITTED, []).extend(notes.items)
        _listen_after_commit(session)


def _committed(connection: Connection, notes: Notes) -> list[Recorded]:
    """Return the versions of a transaction that is about to commit."""
    try:
        return list(_all_versions(connection, notes.places))
    except DBAPIError as error:
        if _ABORTED in codes_of(error):  # so PostgreSQL will roll back
            return []
        raise


def _all_versions(connection: Connection, places: Iterable[_Place]) -> Iterator[Recorded]:
    """Yield the versions of changesets; those of a row of a subclass once, from the table of the subclass."""
    seen = set()
    for place in sorted(places, key=lambda place: -len(place[0])):
        for item in _versions(connection, place):
            version = place[0][0], hashable(item.key), item.version
            if version not in seen:
                seen.add(version)
                yield item


def _committing_session(connection: Connection) -> Session | None:
    """Return the session whose commit is the commit of a connection; ``None`` if the transaction is not its own."""
    for reference in scope_of(connection).sessions:
        session = reference()
        transaction = None if session is None else session.get_transaction()
        if transaction is not None and connection in transaction._connections:
            _, _, is_own, *_ = transaction._connections[connection]
            if is_own:
                return session
    return None


def _listen_after_commit(session: Session) -> None:
    if not event.contains(session, "after_commit", _after_commit):
        event.listen(session, "after_commit", _after_commit)


def _after_commit(session: Session) -> None:
    items: list[Recorded] = session.info.pop(_COMMITTED, [])
    if not session.in_nested_transaction() and (transaction := session.get_transaction()) is not None:
        for connection, *_ in list(transaction._connections.values()):
            items += _of_changeset_per_commit(session, connection)
    if items:
        _DISPATCH.committed(items)


def _of_changeset_per_commit(session: Session, connection: Connection) -> list[Recorded]:
    """Return what a session has committed if each of its commits is a changeset in one transaction of a connection."""
    notes = scope_of(connection).notes
    if notes is None or notes.items is not None:
        return []
    places = [place for place in notes.places if session_of_changeset(connection, place[1]) is session]
    for place in places:  # the commit of the connection does not tell them again
        del notes.places[place]
    return list(_all_versions(connection, places))
