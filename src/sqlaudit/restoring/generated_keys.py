"""How does a row get back a key that is ``GENERATED ALWAYS``? By ``INSERT … OVERRIDING SYSTEM VALUE``."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Table, event
from sqlalchemy.orm import Mapper

from sqlaudit.sql.dialects import TRAITS

_HEAD: Final = re.compile(r'INSERT INTO (?:[^("]|"(?:[^"]|"")*")+\((?:[^)"]|"(?:[^"]|"")*")*\)')


def tables_that_make_keys(mapper: Mapper[Any]) -> set[Table]:
    """Return the tables of a mapper that have a ``GENERATED ALWAYS`` column in their primary key."""
    return {
        table
        for table in mapper.tables
        if isinstance(table, Table)
        and any(column.identity is not None and column.identity.always for column in table.primary_key)
    }


@contextmanager
def overriding_keys(connection: Connection, tables: Collection[Table]) -> Iterator[None]:
    """Add ``OVERRIDING SYSTEM VALUE`` to INSERTs into the tables within the block, on PostgreSQL.

    SQLAlchemy has no construct for it, and the unit of work does not let others change its statements.
    """

    def override(
        connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        if context is not None and context.isinsert and context.compiled.statement.table in tables:
            statement = _HEAD.sub(lambda head: f"{head[0]} OVERRIDING SYSTEM VALUE", statement, count=1)
        return statement, parameters

    if not TRAITS[connection.dialect.name].overrides_identity:
        yield
        return
    event.listen(connection, "before_cursor_execute", override, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", override)
