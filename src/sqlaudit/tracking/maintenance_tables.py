"""What does maintenance remember in the database? Horizons, holds and erasures, in tables that its users declare.

The tables are declared next to the models, so that ``create_all`` and Alembic see them:

.. code-block:: python

    maintenance_tables(Base.metadata)

They are in the database of the tracked tables of the MetaData. Histories are named as ``Table.fullname`` names them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final
from weakref import ref

from sqlalchemy import JSON, BigInteger, Column, Connection, MetaData, Table, Text
from sqlalchemy.dialects import mysql

from sqlaudit.exceptions import QueryError, TrackingError
from sqlaudit.period import stored_instant_type
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import audit_column_types

_INFO_KEY: Final = "sqlaudit_maintenance"
with_maintenance_tables: Final[set[ref[MetaData]]] = set()
"""Every MetaData of this process that has had these tables."""


@dataclass(frozen=True, slots=True)
class MaintenanceTables:
    """The tables of a MetaData that maintenance writes.

    :param horizons: ``sqlaudit_horizons``: the instant before which each history has been pruned
    :param holds: ``sqlaudit_holds``: the rows and changesets that may be neither pruned nor erased
    :param erasures: ``sqlaudit_erasures``: which fields of which rows were erased, and no value. Where a user was
        erased, there is no row
    """

    horizons: Table
    holds: Table
    erasures: Table


def maintenance_tables(metadata: MetaData, *, schema: str | None = None) -> MaintenanceTables:
    """Return the tables of a MetaData that ``prune``, ``hold`` and ``erase`` write. It has them from then on.

    Call it next to the models; ``create_all`` and Alembic's autogenerate then create the tables.

    :param metadata: such as ``Base.metadata``
    :param schema: the schema of the tables; the default schema of the MetaData if omitted
    :raises TrackingError: another table has the name of one of them
    """
    known = maintenance_tables_of(metadata)
    if known is not None:
        return known
    for name in ("sqlaudit_horizons", "sqlaudit_holds", "sqlaudit_erasures"):
        key = ".".join(filter(None, (schema or metadata.schema, name)))
        if key in metadata.tables:
            raise TrackingError(
                f"maintenance_tables() needs the name {key!r}, and a table of this name exists already. Give another "
                "schema: maintenance_tables(metadata, schema=…).",
                metadata.tables[key],
            )
    types = audit_column_types()
    short_text, instant = types["changed_by"], stored_instant_type()
    long_text = Text().with_variant(mysql.LONGTEXT(collation="utf8mb4_bin"), "mysql", "mariadb")
    made = metadata.info[_INFO_KEY] = MaintenanceTables(
        horizons=Table(
            "sqlaudit_horizons",
            metadata,
            Column("history_table", short_text, primary_key=True),
            Column("pruned_before", instant, nullable=False),
            schema=schema,
        ),
        holds=Table(
            "sqlaudit_holds",
            metadata,
            Column("hold_id", types["changeset_id"], primary_key=True),
            Column("history_table", short_text),
            Column("row_key", long_text),
            Column("changeset_id", types["changeset_id"]),
            Column("reason", long_text, nullable=False),
            Column("held_by", short_text),
            Column("held_at", instant, nullable=False),
            schema=schema,
        ),
        erasures=Table(
            "sqlaudit_erasures",
            metadata,
            Column("erasure_id", types["changeset_id"], primary_key=True),
            Column("history_table", short_text, nullable=False, index=True),
            Column("row_key", long_text),
            Column("fields", JSON, nullable=False),
            Column("versions", BigInteger, nullable=False),
            Column("reason", long_text, nullable=False),
            Column("erased_by", short_text),
            Column("erased_at", instant, nullable=False),
            Column("caused_by", types["changeset_id"], index=True),
            schema=schema,
        ),
    )
    with_maintenance_tables.add(ref(metadata, with_maintenance_tables.discard))
    return made


def maintenance_tables_of(metadata: MetaData) -> MaintenanceTables | None:
    """Return the tables of a MetaData that maintenance writes, or ``None`` if it has none."""
    known: MaintenanceTables | None = metadata.info.get(_INFO_KEY)
    is_there = known is not None and metadata.tables.get(known.horizons.key) is known.horizons  # unless it was cleared
    return known if is_there else None


def tables_of(known: MaintenanceTables) -> list[Table]:
    """Return the tables one by one."""
    return [getattr(known, field.name) for field in fields(known)]


def declared_maintenance_tables(metadata: MetaData, purpose: str) -> MaintenanceTables:
    """Return the tables of a MetaData that maintenance writes.

    :param purpose: what needs them, such as ``"prune()"``
    :raises QueryError: the MetaData has none
    """
    if (known := maintenance_tables_of(metadata)) is None:
        raise QueryError(
            f"{purpose} needs tables of its own, which the MetaData of the models lacks. Write "
            "maintenance_tables(Base.metadata) next to the models, and create the tables with create_all() or a "
            "migration.",
            metadata,
        )
    return known


def required_maintenance_tables(connection: Connection, metadata: MetaData, purpose: str) -> MaintenanceTables:
    """Return the tables of a MetaData that maintenance writes, once they are found in the database.

    One statement for each table.

    :param purpose: what needs them, such as ``"prune()"``
    :raises QueryError: the MetaData has none, or the database lacks one
    """
    known = declared_maintenance_tables(metadata, purpose)
    if missing := [table for table in tables_of(known) if not table_exists(connection, table)]:
        names = ", ".join(repr(table.fullname) for table in missing)
        raise QueryError(
            f"{purpose} needs tables that the database lacks: {names}. Create them: "
            "Base.metadata.create_all(engine), or a migration.",
            metadata,
        )
    return known
