"""What does sqlaudit know of the transaction of a connection? One :class:`Scope`, an attribute of the connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from weakref import ref

from sqlalchemy import Connection, RootTransaction
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from sqlaudit.recording.bulk.writes import Write
    from sqlaudit.recording.changeset import ChangesetStamp


_SCOPE: Final = "sqlaudit_scope"


@dataclass(eq=False, slots=True)
class Scope:
    """What sqlaudit knows of the transaction that is open on a connection.

    :ivar transaction: a weak reference to the transaction, or ``None`` outside of one
    :ivar changeset: the changeset of the transaction, once it has one
    :ivar sessions: weak references to the sessions with hooks in the transaction; several may be bound to a connection
    :ivar unfinished: the writes of the statements that are now executed directly on the connection
    """

    transaction: ref[RootTransaction] | None = None
    changeset: ChangesetStamp | None = None
    sessions: tuple[ref[Session], ...] = ()
    unfinished: list[Write] = field(default_factory=list)


def scope_of(connection: Connection) -> Scope:
    """Return the scope of a connection, which forgets its transaction when another one has begun."""
    attributes = vars(connection)  # connection.info is the pool's, and outlives the transaction
    scope: Scope | None = attributes.get(_SCOPE)
    if scope is None:
        scope = attributes[_SCOPE] = Scope()
    transaction = connection.get_transaction()
    if transaction is None or scope.transaction is None or scope.transaction() is not transaction:
        scope.transaction = None if transaction is None else ref(transaction)
        scope.changeset, scope.sessions = None, ()
    return scope


def enter_scope(session: Session, connection: Connection) -> None:
    """Note that a session with hooks is in the transaction of a connection."""
    scope = scope_of(connection)
    if scope.transaction is not None:
        others = (
            [reference for reference in scope.sessions if reference() not in (session, None)] if scope.sessions else ()
        )
        scope.sessions = (*others, ref(session))
