"""How long may a statement take? The database itself stops one that takes longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from inspect import isawaitable
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, event, literal_column, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.missing import codes_of
from sqlaudit.web.problems import Problem

_STEPS: Final = 10_000
"""The instructions of SQLite's machine after which it looks at the clock."""
_STOPPED: Final = {"57014", 1969, 3024, "SQLITE_INTERRUPT"}
"""The codes by which PostgreSQL, MariaDB, MySQL and SQLite say that they stopped a statement."""


@contextmanager
def limited(session: Session, seconds: float) -> Iterator[None]:
    """Let the database stop each statement of a session that takes longer, within the ``with`` block.

    After that time, the session begins no other statement. The connection is as it was before, once the session's
    transaction or the block has ended.

    :raises Problem: a statement would begin too late
    """
    limits: list[tuple[Connection, Callable[[], Any]]] = []
    end = time.monotonic() + seconds

    def limit(_session: Session, _transaction: Any, connection: Connection) -> None:
        if (set_limit := _LIMITS.get(connection.dialect.name)) is not None:
            limits.append((connection, set_limit(connection, seconds)))

    def refuse_late(_state: Any) -> None:
        if time.monotonic() > end:
            raise too_slow(seconds)

    def give_back(ending: Session | None = None) -> None:
        if ending is not None and ending.in_nested_transaction():  # only a savepoint ends
            return
        while limits:
            connection, end_limit = limits.pop()
            try:
                end_limit()
            except BaseException as error:
                with suppress(Exception):
                    connection.invalidate()  # nobody else should get it
                if not isinstance(error, Exception):  # the driver's own hide no cancellation of the page
                    raise

    event.listen(session, "after_begin", limit)
    event.listen(session, "do_orm_execute", refuse_late)
    for name in _ENDS:
        event.listen(session, name, give_back)
    try:
        yield
    finally:
        give_back()
        event.remove(session, "after_begin", limit)
        event.remove(session, "do_orm_execute", refuse_late)
        for name in _ENDS:
            event.remove(session, name, give_back)


_ENDS: Final = ("before_commit", "after_rollback")
"""The events at which the connection of a transaction is about to be given back."""


def too_slow(seconds: float) -> Problem:
    """Return the problem that a page takes longer than its seconds."""
    return Problem(503, "too_slow", seconds=f"{seconds:g}")


def was_stopped(error: DBAPIError) -> bool:
    """Return whether a database says that it stopped a statement, because it took too long."""
    return not codes_of(error).isdisjoint(_STOPPED)


def _on_postgresql(connection: Connection, seconds: float) -> Callable[[], Any]:
    # LOCAL ends with the transaction: behind a pooler, the next statement may be that of another client.
    commits_each = connection._is_autocommit_isolation()
    if commits_each:
        connection.exec_driver_sql("BEGIN", execution_options=INTERNAL)
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {round(seconds * 1000)}", execution_options=INTERNAL)
    return lambda: commits_each and connection.exec_driver_sql("COMMIT", execution_options=INTERNAL)


def _on_mysql(connection: Connection, seconds: float) -> Callable[[], Any]:
    if connection.dialect.is_mariadb:  # type: ignore[attr-defined]  # of the dialects of MySQL
        variable, statement, value = _MARIADB_VARIABLE, _SET_ON_MARIADB, seconds
    else:
        variable, statement, value = _MYSQL_VARIABLE, _SET_ON_MYSQL, round(seconds * 1000)
    before = connection.scalar(select(variable), execution_options=INTERNAL)
    connection.execute(statement, {"value": value}, execution_options=INTERNAL)
    return lambda: connection.execute(statement, {"value": before}, execution_options=INTERNAL)


_MARIADB_VARIABLE: Final[ColumnElement[Any]] = literal_column("@@SESSION.max_statement_time")
_MYSQL_VARIABLE: Final[ColumnElement[Any]] = literal_column("@@SESSION.max_execution_time")
_SET_ON_MARIADB: Final = text("SET SESSION max_statement_time = :value")
_SET_ON_MYSQL: Final = text("SET SESSION max_execution_time = :value")


def _on_sqlite(connection: Connection, seconds: float) -> Callable[[], Any]:
    driver: Any = connection.connection.driver_connection
    end = time.monotonic() + seconds

    def set_handler(handler: Any, steps: int) -> None:
        if isawaitable(waiting := driver.set_progress_handler(handler, steps)):  # aiosqlite
            await_only(waiting)

    set_handler(lambda: time.monotonic() > end, _STEPS)
    return lambda: set_handler(None, 0)


_LIMITS: Final = {
    "postgresql": _on_postgresql,
    "mariadb": _on_mysql,
    "mysql": _on_mysql,
    "sqlite": _on_sqlite,
}
