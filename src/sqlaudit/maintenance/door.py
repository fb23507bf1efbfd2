"""How does maintenance rewrite an append-only history? Inside ``with writable_history(…)``, which opens the door.

What opens it, and who may:

* On PostgreSQL a setting that lasts until the transaction ends at most. Anyone can set it, so the trigger also asks for
  the privilege TRIGGER on the history table, which its owner has and GRANT gives.
* On MariaDB and MySQL a user variable. Anyone can set it, so the trigger also asks for the name of the user: of the one
  who created the trigger, or of a maintainer.
* SQLite has no users. The triggers are dropped, and created again, within the transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Connection, Table, false, func, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.protection import DOOR, DOOR_SETTING, triggers_in_database
from sqlaudit.tracking.schema import schema_of
from sqlaudit.tracking.tables import TrackedTable

_IS_OPEN: Final = "sqlaudit_door"


@contextmanager
def writable_history(connection: Connection, tables: Iterable[TrackedTable | Table]) -> Iterator[None]:
    """Let a connection change and delete versions of histories that may be append-only, until the block ends.

    The block has to end before the transaction does. It may stand within another one. One statement at each end; on
    SQLite more, if the histories are append-only. Where the role may not open the door, the database refuses what the
    block does.

    :param tables: the tracked tables, or their history tables
    """
    histories = list(dict.fromkeys(each.history if isinstance(each, TrackedTable) else each for each in tables))
    dialect = connection.dialect.name
    if dialect == "sqlite":
        with _without_triggers(connection, histories):
            yield
    elif (dialect == "postgresql" or dialect in MYSQL) and histories and not connection.info.get(_IS_OPEN):
        connection.info[_IS_OPEN] = True
        try:
            _turn(connection, is_open=True)
            yield
        except BaseException:
            with suppress(SQLAlchemyError):  # the transaction may have failed; on PostgreSQL its end closes the door
                _turn(connection, is_open=False)
            raise
        else:
            _turn(connection, is_open=False)
        finally:
            connection.info.pop(_IS_OPEN, None)
    else:
        yield


def _turn(connection: Connection, *, is_open: bool) -> None:
    statement: Any
    if connection.dialect.name == "postgresql":
        statement = select(func.set_config(DOOR_SETTING, "on" if is_open else "off", True))
    else:
        statement = text(f"SET @{DOOR} = {1 if is_open else 'NULL'}")
    connection.execute(statement, execution_options=INTERNAL)


@contextmanager
def _without_triggers(connection: Connection, histories: Iterable[Table]) -> Iterator[None]:
    dropped = {history: triggers_in_database(connection, history) for history in histories}
    for history, triggers in dropped.items():
        if triggers:  # Python's driver begins a transaction with an UPDATE, and not with the DROP
            first = next(iter(history.c))
            connection.execute(update(history).where(false()).values({first: first}), execution_options=INTERNAL)
        quote, schema = connection.dialect.identifier_preparer.quote, schema_of(connection, history)
        for name in triggers:
            qualified = quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"
            connection.exec_driver_sql(f"DROP TRIGGER {qualified}", execution_options=INTERNAL)
    try:
        yield
    except BaseException:
        with suppress(SQLAlchemyError):  # the transaction may have ended; its rollback brings the triggers back
            _create_again(connection, dropped)
        raise
    else:
        _create_again(connection, dropped)


def _create_again(connection: Connection, dropped: Mapping[Table, Mapping[str, str]]) -> None:
    for history, triggers in dropped.items():
        existing = triggers_in_database(connection, history) if triggers else {}
        for name, definition in triggers.items():
            if name not in existing:
                connection.exec_driver_sql(_in_schema(connection, history, definition), execution_options=INTERNAL)


def _in_schema(connection: Connection, history: Table, definition: str) -> str:
    """Return the text of a trigger with the schema, which SQLite does not keep."""
    if (schema := schema_of(connection, history)) is None:
        return definition
    before, name = "CREATE TRIGGER ", connection.dialect.identifier_preparer.quote(schema)
    return f"{before}{name}.{definition.removeprefix(before).removeprefix(f'{name}.')}"
