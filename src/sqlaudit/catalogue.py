"""What does PostgreSQL's catalogue say of a table?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    Table,
    and_,
    column,
    func,
    literal_column,
    select,
    table,
    union_all,
)
from sqlalchemy.dialects.postgresql import OID

from sqlaudit.tables import TrackedTable, schema_of

_ATTRIBUTES: Final = table(
    "pg_attribute", *map(column, ("attrelid", "attname", "attnum", "atttypid")), schema="pg_catalog"
)
_TYPES: Final = table("pg_type", *map(column, ("oid", "typcategory")), schema="pg_catalog")


def oid_of(connection: Connection, table: Table) -> ColumnElement[Any]:
    """Return the number of a table that may be absent, as PostgreSQL's catalogue has it."""
    schema = schema_of(connection, table)
    name = func.quote_ident(table.name)
    return func.to_regclass(name if schema is None else func.concat(func.quote_ident(schema), ".", name), type_=OID())


def kept_as_text(connection: Connection, chain: Sequence[TrackedTable]) -> frozenset[Column[Any]]:
    """Return the live columns that have become of a type that PostgreSQL compares with no text, which history keeps.

    What a column was before, no other type of history's would hold. One statement, on PostgreSQL, once for a table.
    """
    if connection.dialect.name != "postgresql":
        return frozenset()
    here, past, kind, past_kind = _ATTRIBUTES.alias(), _ATTRIBUTES.alias(), _TYPES.alias(), _TYPES.alias()
    names = (
        select(literal_column(str(place), Integer()), here.c.attname)
        .join_from(here, past, and_(past.c.attname == here.c.attname, past.c.attnum > 0))
        .join(kind, kind.c.oid == here.c.atttypid)
        .join(past_kind, past_kind.c.oid == past.c.atttypid)
        .where(here.c.attrelid == oid_of(connection, tracked.live))
        .where(past.c.attrelid == oid_of(connection, tracked.history))
        .where(past_kind.c.typcategory == "S", kind.c.typcategory != "S")
        for place, tracked in enumerate(chain)
    )
    found = set(map(tuple, connection.execute(union_all(*names))))
    return frozenset(
        live for place, tracked in enumerate(chain) for live, _ in tracked.columns if (place, live.name) in found
    )
