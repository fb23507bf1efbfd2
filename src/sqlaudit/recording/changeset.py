"""Which transaction does a version belong to? Its changeset has the id and the instant that its versions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, cast
from uuid import UUID
from weakref import ref

from sqlalchemy import Connection
from sqlalchemy.orm import Mapper, Session

from sqlaudit.config import current_config
from sqlaudit.exceptions import QueryError
from sqlaudit.period import as_utc
from sqlaudit.tracking.tables import INFO_KEY

try:
    from uuid import uuid7  # type: ignore[attr-defined]  # Python 3.14
except ImportError:
    from uuid_utils.compat import uuid7

_CHANGESET: Final = "sqlaudit_changeset"
OWN: Final[Mapping[str, Any]] = {}
"""Marks sqlaudit's own calls of ``Session.connection()``, by identity: the hooks don't listen to these connections."""


@dataclass(frozen=True, slots=True)
class ChangesetStamp:
    """What all versions of one database transaction share.

    :ivar id: a UUIDv7
    :ivar at: the instant before the first statement that writes a tracked row, in UTC, by the configured clock
    """

    id: UUID
    at: datetime


def own_connection(session: Session, mapper: Mapper[Any] | None, **arguments: Any) -> Connection:
    """Return the connection of a session on which sqlaudit writes the versions of a mapper's rows.

    :param arguments: further ``bind_arguments``
    """
    return session.connection(bind_arguments={"mapper": mapper, **arguments}, execution_options=OWN)


def instant_given(at: datetime | None) -> datetime:
    """Return the instant that the user gives, in UTC, or the configured clock's if it is ``None``.

    :raises QueryError: the instant is in the future
    """
    now = current_config().now()
    if at is None:
        return now
    if (instant := as_utc(at)) > now:
        raise QueryError(f"at is {at}, which is in the future; give an instant that has passed, or none.", at)
    return instant


def changeset_at(at: datetime) -> ChangesetStamp:
    """Return a new changeset at an instant in UTC, which no transaction remembers yet."""
    return ChangesetStamp(uuid7(), at)


def changeset_id_of(name: str, at: datetime) -> UUID:
    """Return the UUIDv7 of a transaction that another library recorded, computed from its name and instant in UTC."""
    milliseconds = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    digest = int.from_bytes(sha256(f"{name} {at.isoformat()}".encode()).digest()[:10])
    random_a, random_b = digest >> 68 & 0xFFF, digest & (1 << 62) - 1
    return UUID(int=milliseconds << 80 | 7 << 76 | random_a << 64 | 2 << 62 | random_b)


def changeset_of(session: Session | None, connection: Connection, began: datetime | None = None) -> ChangesetStamp:
    """Return the changeset of the current transaction of a connection and its session; make one if there is none.

    The database transaction remembers it, since it may outlive the session. The session's transaction remembers it,
    too, since it may span several databases.

    :param began: the instant of a new changeset, taken before the writes that it records; a flush has its own instant
    """
    changeset = _changeset_known(session, connection)
    if changeset is None:
        flush = session.info.get(INFO_KEY) if session else None
        changeset = changeset_at((flush and flush.began) or began or current_config().now())
        if session and (outermost := session.get_transaction()) is not None:
            session.info[_CHANGESET] = (ref(outermost), changeset)
    if (transaction := connection.get_transaction()) is not None:
        connection.info[INFO_KEY] = (ref(transaction), changeset)
    return changeset


def instant_before(session: Session | None, connection: Connection | None = None) -> datetime:
    """Return the instant of a transaction's changeset, or the configured clock's if it has none yet."""
    changeset = _changeset_known(session, connection)
    return current_config().now() if changeset is None else changeset.at


def _changeset_known(session: Session | None, connection: Connection | None) -> ChangesetStamp | None:
    for within, key in ((connection, INFO_KEY), (session, _CHANGESET)):
        transaction = None if within is None else within.get_transaction()
        remembered = None if within is None else within.info.get(key)
        if remembered is not None and transaction is not None and remembered[0]() is transaction:
            return cast(ChangesetStamp, remembered[1])
    return None
