"""Which transaction does a version belong to? Its changeset has the id and the instant that its versions share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, cast
from uuid import UUID
from weakref import ref

from sqlalchemy import Connection
from sqlalchemy.orm import Mapper, Session

from sqlaudit.config import current_config
from sqlaudit.recording.scope import scope_of
from sqlaudit.tracking.tables import INFO_KEY

try:
    from uuid import uuid7  # type: ignore[attr-defined]  # Python 3.14
except ImportError:
    from uuid_utils.compat import uuid7

_CHANGESET: Final = "sqlaudit_changeset"
_PER_COMMIT: Final = "sqlaudit_changeset_per_commit"


@dataclass(frozen=True, slots=True)
class ChangesetStamp:
    """What all versions of one database transaction share.

    :ivar id: a UUIDv7
    :ivar at: the instant before the first statement that writes a tracked row, in UTC, by the configured clock
    """

    id: UUID
    at: datetime


def connection_for_versions(session: Session, mapper: Mapper[Any] | None, **arguments: Any) -> Connection:
    """Return the connection of a session on which sqlaudit writes the versions of a mapper's rows.

    :param arguments: further ``bind_arguments``
    """
    return session.connection(bind_arguments={"mapper": mapper, **arguments})


def changeset_at(at: datetime) -> ChangesetStamp:
    """Return a new changeset at an instant in UTC, which no transaction remembers yet."""
    return ChangesetStamp(uuid7(), at)


def changeset_id_of(name: str, at: datetime) -> UUID:
    """Return the UUIDv7 of a transaction that another library recorded, computed from its name and instant in UTC."""
    milliseconds = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    digest = int.from_bytes(sha256(f"{name} {at.isoformat()}".encode()).digest()[:10])
    random_a, random_b = digest >> 68 & 0xFFF, digest & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | random_a << 64 | 2 << 62 | random_b)


def separate_commits(connection: Connection) -> None:
    """Make each transaction of a session a changeset, though all of them are in one transaction of the connection."""
    vars(connection)[_PER_COMMIT] = True


def session_of_changeset(connection: Connection, changeset: ChangesetStamp) -> Session | None:
    """Return the session whose commit ends a changeset, though the transaction of the connection goes on.

    There is none unless :func:`separate_commits` was called.
    """
    if _PER_COMMIT in vars(connection):
        for reference in scope_of(connection).sessions:
            if (session := reference()) is not None and _changeset_of_session(session) is changeset:
                return session
    return None


def changeset_of(session: Session | None, connection: Connection, began: datetime | None = None) -> ChangesetStamp:
    """Return the changeset of the current transaction of a connection and its session; make one if there is none.

    The database transaction remembers it, since it may outlive the session. The session's transaction remembers it,
    too, since it may span several databases.

    :param began: the instant of a new changeset, taken before the writes that it records; a flush has its own instant
    """
    scope = scope_of(connection)
    is_per_commit = session is not None and _PER_COMMIT in vars(connection)
    changeset = (None if is_per_commit else scope.changeset) or _changeset_of_session(session)
    if changeset is None:
        changeset = changeset_at(_instant_of_flush(session) or began or current_config().now())
        if session and (outermost := session.get_transaction()) is not None:
            session.info[_CHANGESET] = (ref(outermost), changeset)
    if scope.transaction is not None and not is_per_commit:
        scope.changeset = changeset
    return changeset


def instant_before(session: Session | None, connection: Connection | None = None) -> datetime:
    """Return the instant of a transaction's changeset or of a session's flush, or else the configured clock's."""
    is_per_commit = session is not None and connection is not None and _PER_COMMIT in vars(connection)
    known = None if connection is None or is_per_commit else scope_of(connection).changeset
    changeset = known or _changeset_of_session(session)
    if changeset is not None:
        return changeset.at
    return _instant_of_flush(session) or current_config().now()


def _instant_of_flush(session: Session | None) -> datetime | None:
    flush = None if session is None else session.info.get(INFO_KEY)
    return None if flush is None else cast("datetime | None", flush.began)


def _changeset_of_session(session: Session | None) -> ChangesetStamp | None:
    remembered = None if session is None else session.info.get(_CHANGESET)
    if remembered is not None and session is not None and remembered[0]() is session.get_transaction():
        return cast(ChangesetStamp, remembered[1])
    return None
