"""How is a history divided on PostgreSQL? Into partitions by the hash of the key: ``track_table(partitions=8)``.

Every statement of sqlaudit names the history table as a whole, and PostgreSQL finds the partitions. A user may divide a
history otherwise, by hand; sqlaudit then asks the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

from sqlalchemy import Connection, MetaData, Table, column, func, select, table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.catalogue import oid_of
from sqlaudit.tracking.tables import shortened


class CreatePartition(ExecutableDDLElement):
    """Create the partition of a history table whose keys have a remainder when their hash is divided."""

    def __init__(self, history: Table, modulus: int, remainder: int) -> None:
        self.history, self.modulus, self.remainder = history, modulus, remainder


@compiles(CreatePartition)
def _create_partition(element: CreatePartition, compiler: DDLCompiler, **kw: Any) -> str:
    history, name = element.history, partition_name(element.history.name, element.remainder)
    # A Table, because ``schema_translate_map`` applies to tables.
    partition = Table(name, MetaData(), schema=history.schema)
    return (
        f"CREATE TABLE {compiler.preparer.format_table(partition)} "
        f"PARTITION OF {compiler.preparer.format_table(history)} "
        f"FOR VALUES WITH (MODULUS {element.modulus}, REMAINDER {element.remainder})"
    )


def partition_name(history: str, number: int) -> str:
    """Return the name of a partition of a history table."""
    return shortened(f"{history}_p{number}")


def creating_partitions(history: Table, partitions: int | None, dialect: str) -> list[CreatePartition]:
    """Return the statements that create the partitions of a history table, or of a copy of one.

    :param dialect: the name of the dialect; on all but PostgreSQL, there are none
    """
    if partitions is None or dialect != "postgresql":
        return []
    return [CreatePartition(history, partitions, remainder) for remainder in range(partitions)]


# --- the catalogue ----------------------------------------------------------------------------------------------

_TABLES: Final = table(
    "pg_class",
    *map(column, ("oid", "relname", "relnamespace", "relkind", "relispartition", "relpartbound")),
    schema="pg_catalog",
)
_SCHEMAS: Final = table("pg_namespace", *map(column, ("oid", "nspname")), schema="pg_catalog")
_INHERITANCE: Final = table("pg_inherits", *map(column, ("inhrelid", "inhparent")), schema="pg_catalog")
_MODULUS: Final = re.compile(r"modulus (\d+)")


def partition_bounds(connection: Connection, history: Table) -> list[str] | None:
    """Return what each partition of a history table holds, such as ``FOR VALUES WITH (modulus 8, remainder 0)``.

    One statement, on PostgreSQL.

    :return: ``None`` if the table is not divided
    """
    if connection.dialect.name != "postgresql":
        return None
    whole, part = _TABLES.alias(), _TABLES.alias()
    belongs = _INHERITANCE.c.inhparent == whole.c.oid
    statement = (
        select(func.pg_get_expr(part.c.relpartbound, part.c.oid))
        .select_from(whole.outerjoin(_INHERITANCE, belongs).outerjoin(part, part.c.oid == _INHERITANCE.c.inhrelid))
        .where(whole.c.oid == oid_of(connection, history), whole.c.relkind == "p")
    )
    bounds = connection.scalars(statement, execution_options=INTERNAL).all()
    return [bound for bound in bounds if bound is not None] if bounds else None


def leave_rows_out(bounds: Sequence[str]) -> bool:
    """Return whether rows would find no partition. Of partitions that are not by hash, only whether there is one."""
    moduli = [_MODULUS.search(bound) for bound in bounds]
    if not bounds or None in moduli:
        return not bounds
    return sum(Fraction(1, int(modulus[1])) for modulus in moduli if modulus is not None) < 1


def names_of_partitions(connection: Connection, history: Table) -> set[str]:
    """Return the names of the partitions of a history table, without those of partitions. One statement."""
    statement = (
        select(_TABLES.c.relname)
        .join_from(_TABLES, _INHERITANCE, _INHERITANCE.c.inhrelid == _TABLES.c.oid)
        .where(_INHERITANCE.c.inhparent == oid_of(connection, history))
    )
    return set(connection.scalars(statement, execution_options=INTERNAL))


def partitions_in_database(connection: Connection) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the partitions of all tables: the schema and the name of each, and those of the table as a whole.

    One statement, on PostgreSQL.
    """
    if connection.dialect.name != "postgresql":
        return {}
    part, whole, schema, schema_of_whole = _TABLES.alias(), _TABLES.alias(), _SCHEMAS.alias(), _SCHEMAS.alias()
    statement = (
        select(schema.c.nspname, part.c.relname, schema_of_whole.c.nspname, whole.c.relname)
        .select_from(
            part.join(whole, whole.c.oid == func.pg_partition_root(part.c.oid))
            .join(schema, schema.c.oid == part.c.relnamespace)
            .join(schema_of_whole, schema_of_whole.c.oid == whole.c.relnamespace)
        )
        .where(part.c.relispartition, part.c.relkind.in_(("r", "p", "f")))
    )
    rows = connection.execute(statement, execution_options=INTERNAL)
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}
