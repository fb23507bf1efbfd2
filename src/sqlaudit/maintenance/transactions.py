"""In which transactions does a long task work? Each batch in one of its own, or all in the caller's."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Select
from sqlalchemy.exc import DBAPIError, IntegrityError

from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.sql.batches import CHUNK
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.tracking.missing import codes_of
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable

T = TypeVar("T")
_ATTEMPTS: Final = 10
"""How often a batch is tried: it fails if another transaction writes a row's first version at the same time."""
_LONGEST_PAUSE: Final = 0.5
"""The seconds that pass at most before a batch is tried again."""
_COLLISIONS: Final = {"40001", "40P01", 1205, 1213, "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_LOCKED"}
"""The codes of PostgreSQL, MariaDB and SQLite for a deadlock, a serialization failure and a lock timeout."""


class Runner(Protocol):
    connection: Connection
    batch_size: int
    """How many rows that other transactions have locked one call may wait for."""

    def __call__(self, work: Callable[..., T], *args: Any) -> T:
        """Execute ``work`` for one batch."""


def own_connection(engine: Engine) -> Connection:
    """Connect at READ COMMITTED (not on SQLite): a statement sees all earlier commits, and locks no gaps."""
    level = {"isolation_level": "READ COMMITTED"} if TRAITS[engine.dialect.name].locks_rows else {}
    return engine.connect().execution_options(**level)


def reading_latest(statement: Select[Any], connection: Connection) -> Select[Any]:
    """Return a select that reads what others have committed since the transaction's first SELECT.

    On MariaDB and MySQL a SELECT at REPEATABLE READ does so only if it locks. On PostgreSQL none does.
    """
    return statement.with_for_update() if TRAITS[connection.dialect.name].reads_snapshots else statement


def connection_of(where: Any, table: TrackedTable) -> Connection:
    if isinstance(where, Connection):
        return where
    session = checked_session(where)
    session.flush()
    return connection_for_versions(session, table.mapper)


class InTransactions:
    """Runs each batch in a transaction of its own, and repeats it after a collision, a little later each time."""

    batch_size = 1

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __call__(self, work: Callable[..., T], *args: Any) -> T:
        for attempt in range(_ATTEMPTS - 1):
            try:
                with self.connection.begin():
                    return work(self.connection, *args)
            except DBAPIError as error:
                if not has_collided(error):
                    raise
                self.connection.connection.rollback()  # SQLite's transaction outlives a COMMIT that failed
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.01 * 2**attempt)))  # or it meets the same ones again
        with self.connection.begin():
            return work(self.connection, *args)


class InSavepoints:
    """Runs all batches in the caller's transaction: each in a savepoint, repeated on IntegrityError; not on SQLite."""

    batch_size = CHUNK

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __call__(self, work: Callable[..., T], *args: Any) -> T:
        if not TRAITS[self.connection.dialect.name].locks_rows:  # no other transaction can write
            return work(self.connection, *args)
        for _ in range(_ATTEMPTS - 1):
            try:
                with self.connection.begin_nested():
                    return work(self.connection, *args)
            except IntegrityError:
                continue
        return work(self.connection, *args)


@contextmanager
def runner_for(where: Any, table: TrackedTable) -> Iterator[Runner]:
    """Give what runs the batches of a task: in transactions of its own if ``where`` is an engine."""
    if isinstance(where, Engine):
        with own_connection(where) as connection:
            yield InTransactions(connection)
    else:
        yield InSavepoints(connection_of(where, table))


def has_collided(error: DBAPIError) -> bool:
    """Return whether a batch failed because others were writing its rows, so that it may be repeated."""
    if isinstance(error, IntegrityError):  # another transaction wrote the first version of a row
        return True
    return not codes_of(error).isdisjoint(_COLLISIONS)
