"""How does a key that the database always makes come back? ``OVERRIDING SYSTEM VALUE``, while a flush lasts."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Final

from sqlalchemy import Connection, Table, event

_HEAD: Final = re.compile(r'INSERT INTO (?:[^("]|"(?:[^"]|"")*")+\((?:[^)"]|"(?:[^"]|"")*")*\)')


def makes_its_keys(table: Table) -> bool:
    """Tell whether a table has a key that is ``GENERATED ALWAYS``."""
    return any(column.identity is not None and column.identity.always for column in table.primary_key)


def override_keys(connection: Connection, tables: Collection[Table]) -> Callable[[], None]:
    """Let what a connection inserts into the tables have the keys that it is given; return what ends this.

    SQLAlchemy has no construct for it, and the unit of work none of its own statements to give away.
    """
    if connection.dialect.name != "postgresql":
        return lambda: None

    def override(
        connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        if context is not None and context.isinsert and context.compiled.statement.table in tables:
            statement = _HEAD.sub(lambda head: f"{head[0]} OVERRIDING SYSTEM VALUE", statement, count=1)
        return statement, parameters

    event.listen(connection, "before_cursor_execute", override, retval=True)
    return lambda: event.remove(connection, "before_cursor_execute", override)
