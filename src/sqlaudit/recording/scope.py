"""What does sqlaudit know of the current transaction of a connection? One :class:`Scope` for each transaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet, ref

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from sqlaudit.recording.bulk.writes import Write
    from sqlaudit.recording.changeset import ChangesetStamp
    from sqlaudit.recording.events import Notes


@dataclass(eq=False, slots=True)
class Scope:
    """What sqlaudit knows of a connection while a transaction is open on it, or none.

    :ivar transaction: a weak reference to the transaction, or ``None`` outside of one
    :ivar changeset: the changeset of the transaction, once it has one
    :ivar sessions: weak references to the sessions with hooks in the transaction; several may be bound to a connection
    :ivar unfinished: the writes of the statements that are now executed directly on the connection
    :ivar savepoints: the number of savepoints that sqlaudit has set and not released
    :ivar notes: what was recorded, if there are listeners to tell
    :ivar heard: the statements that sqlaudit has looked at and does not record
    """

    transaction: ref[RootTransaction] | None = None
    changeset: ChangesetStamp | None = None
    sessions: tuple[ref[Session], ...] = ()
    unfinished: list[Write] = field(default_factory=list)
    savepoints: int = 0
    notes: Notes | None = None
    heard: WeakSet[Any] = field(default_factory=WeakSet)


write_numbers: Final = count()
"""Numbers flushes and recorders in the order in which they begin."""
_SCOPE: Final = "sqlaudit_scope"


def scope_of(connection: Connection) -> Scope:
    """Return the scope of the current transaction of a connection.

    It is an attribute of the connection, since ``connection.info`` belongs to the DBAPI connection, which several
    connections share in an SQLite database in memory.
    """
    scope: Scope | None = vars(connection).get(_SCOPE)
    transaction = connection.get_transaction()
    if scope is None or (scope.transaction and (transaction is None or scope.transaction() is not transaction)):
        sessions = () if scope is None else tuple(known for known in scope.sessions if _uses(known(), connection))
        scope = vars(connection)[_SCOPE] = Scope(sessions=sessions)
    if scope.transaction is None and transaction is not None:  # it may begin while a statement is unfinished
        scope.transaction = ref(transaction)
    return scope


def _uses(session: Session | None, connection: Connection) -> bool:
    """Return whether a session still uses a connection whose transaction its owner has ended, and not the session."""
    transaction = None if session is None else session.get_transaction()
    return transaction is not None and connection in transaction._connections


def enter_scope(session: Session, connection: Connection) -> None:
    """Note that a session with hooks is in the transaction of a connection."""
    scope = scope_of(connection)
    if scope.transaction is not None:
        others = [known for known in scope.sessions if known() not in (session, None)] if scope.sessions else ()
        scope.sessions = (*others, ref(session))
