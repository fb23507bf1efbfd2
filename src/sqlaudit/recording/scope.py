"""What does sqlaudit know of a connection and its current transaction? One :class:`Scope` in ``connection.info``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import ref

from sqlalchemy import Connection, RootTransaction, Table
from sqlalchemy.orm import Session

from sqlaudit.tracking.tables import INFO_KEY

if TYPE_CHECKING:
    from sqlaudit.recording.bulk.writes import Write
    from sqlaudit.recording.changeset import ChangesetStamp


@dataclass(eq=False, slots=True)
class Scope:
    """What sqlaudit knows of a DBAPI connection, and of the transaction that is open on it.

    :ivar transaction: a weak reference to the transaction, or ``None`` outside of one
    :ivar changeset: the changeset of the transaction, once it has one
    :ivar sessions: weak references to the sessions with hooks in the transaction; several may be bound to a connection
    :ivar unfinished: the writes of the statements that are now executed directly on the connection
    :ivar keys_left: temporary tables of keys that could not be dropped yet
    :ivar elsewhere: history tables that the database does not have
    """

    transaction: ref[RootTransaction] | None = None
    changeset: ChangesetStamp | None = None
    sessions: tuple[ref[Session], ...] = ()
    unfinished: list[Write] = field(default_factory=list)
    keys_left: list[Table] = field(default_factory=list)
    elsewhere: set[Table] = field(default_factory=set)


def scope_of(connection: Connection) -> Scope:
    """Return the scope of a connection, which forgets its transaction when another one has begun."""
    scope: Scope | None = connection.info.get(INFO_KEY)
    if scope is None:
        scope = connection.info[INFO_KEY] = Scope()
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
