"""What does a failed migration leave behind, if the database does not roll back DDL? sqlaudit undoes its own DDL.

On MySQL and MariaDB a table that a failed migration has created remains, and would stop the next attempt. When the
transaction of the migration is rolled back, the statements that were noted here are executed, last first.
"""

from __future__ import annotations

import logging
from weakref import WeakKeyDictionary

from alembic.operations.base import Operations
from sqlalchemy import Connection, event
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.dml import Update

from sqlaudit.sql.dialects import TRAITS

_log = logging.getLogger(__name__)
_undoing: WeakKeyDictionary[Connection, list[str]] = WeakKeyDictionary()


def undo_if_rolled_back(operations: Operations, undo: ExecutableDDLElement | Update) -> None:
    """Note a statement to execute if the migration is rolled back; only on MySQL and MariaDB."""
    context = operations.get_context()
    if context.as_sql or not TRAITS[context.dialect.name].commits_ddl:
        return
    connection = operations.get_bind()
    if connection not in _undoing:
        event.listen(connection, "rollback", _undo)
        event.listen(connection, "commit", _forget)
    options = {"literal_binds": True} if isinstance(undo, Update) else {}
    _undoing.setdefault(connection, []).append(str(undo.compile(dialect=connection.dialect, compile_kwargs=options)))


def _forget(connection: Connection) -> None:
    _undoing[connection] = []


def _undo(connection: Connection) -> None:
    statements, _undoing[connection] = _undoing[connection], []
    if not statements or connection.invalidated:
        return
    driver = connection.connection
    driver.rollback()  # before DDL, which commits the transaction
    for statement in reversed(statements):
        cursor = driver.cursor()
        try:
            cursor.execute(statement)
        except connection.dialect.loaded_dbapi.Error as error:
            _log.warning("A statement of a failed migration could not be undone: %s: %s", statement, error)
        finally:
            cursor.close()
