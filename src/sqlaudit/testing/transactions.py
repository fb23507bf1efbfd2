"""Which changeset does a commit make, if the whole test runs in one transaction? One of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from sqlaudit.exceptions import SQLAuditError
from sqlaudit.recording.changeset import separate_commits

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

ConnectionT = TypeVar("ConnectionT", "Connection", "AsyncConnection")


def changeset_per_commit(connection: ConnectionT) -> ConnectionT:
    """Make each commit of a session a changeset with an instant of its own, though the test rolls all of them back.

    It is for suites whose sessions join a transaction that ends with the test:

    .. code-block:: python

        with engine.connect() as connection:
            changeset_per_commit(connection)
            transaction = connection.begin()
            joins = {"join_transaction_mode": "create_savepoint"}
            with Session(connection, **joins) as session:
                yield session
            transaction.rollback()

    Without it, all that a test commits is one changeset, because it is one transaction of the database. Call it before
    the sessions write. It lasts as long as the connection object, and is for tests only: ``as_of`` a changeset may show
    half of what one transaction of the database wrote.

    :param connection: the connection, or ``AsyncConnection``, to which the sessions are bound
    :return: the same connection
    :raises SQLAuditError: it is something else, or it is not open yet
    """
    target: Any = getattr(connection, "sync_connection", None) or connection
    if not isinstance(target, Connection):
        raise SQLAuditError(
            f"{connection!r} is not an open connection. Give the connection to which the sessions of the test are "
            "bound: connection = engine.connect().",
            connection,
        )
    separate_commits(target)
    return connection
