"""How large is a table? Its bytes, as its database says, indexes included; and how many versions a history has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    column,
    func,
    literal,
    select,
    table,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.exc import OperationalError

from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.schema import schema_of
from sqlaudit.tracking.tables import TrackedTable


def bytes_of(connection: Connection, of: Table) -> int | None:
    """Return how many bytes a table and its indexes take, or ``None`` if the database does not say. One statement."""
    select_size = _SELECTS.get(connection.dialect.name)
    if select_size is None:
        return None
    try:
        size: int | None = connection.scalar(select_size(connection, of), execution_options=INTERNAL)
    except OperationalError:
        if connection.dialect.name != "sqlite":  # which may have been compiled without dbstat
            raise
        return None
    return size


def count_versions(connection: Connection, table: TrackedTable) -> int:
    """Return how many versions a history has. One statement, which reads all of them."""
    return connection.scalar(select(func.count()).select_from(table.history), execution_options=INTERNAL) or 0


def _on_postgresql(connection: Connection, of: Table) -> Select[Any]:
    quote, schema = connection.dialect.identifier_preparer.quote, schema_of(connection, of)
    regclass = type_coerce(literal(".".join(quote(part) for part in (schema, of.name) if part)), REGCLASS)
    parts = func.pg_partition_tree(regclass).table_valued(column("relid", REGCLASS))
    partitions = select(func.sum(func.pg_total_relation_size(parts.c.relid))).scalar_subquery()
    return select(sql_cast(func.coalesce(partitions, func.pg_total_relation_size(regclass)), BigInteger))


def _on_mysql(connection: Connection, of: Table) -> Select[Any]:
    names, schema = ("TABLE_SCHEMA", "TABLE_NAME", "DATA_LENGTH", "INDEX_LENGTH"), schema_of(connection, of)
    owner, name, data, indexes = table("TABLES", *map(column, names), schema="INFORMATION_SCHEMA").c
    in_schema: ColumnElement[bool] = owner == (func.database() if schema is None else literal(schema))
    return select(data + indexes).where(in_schema, name == literal(of.name))


def _on_sqlite(connection: Connection, of: Table) -> Select[Any]:
    schema = schema_of(connection, of)
    pages = table("dbstat", *map(column, ("name", "pgsize", "schema"))).c
    master = table("sqlite_master", *map(column, ("name", "tbl_name")), schema=schema).c
    parts = select(master["name"]).where(master["tbl_name"] == of.name)
    is_part = and_(pages["name"].in_(parts), pages["schema"] == (schema or "main"))
    return select(func.sum(pages["pgsize"])).where(is_part)


_SELECTS: Final[dict[str, Callable[[Connection, Table], Select[Any]]]] = {
    "postgresql": _on_postgresql,
    "sqlite": _on_sqlite,
    **dict.fromkeys(MYSQL, _on_mysql),
}
