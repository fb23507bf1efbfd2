"""What does the database have at this point of the migrations? Operations check first: not all databases roll back DDL.

In ``--sql`` mode there is no database, and the arguments of the operations are trusted.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from alembic.operations.base import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Table, column, func, inspect, select
from sqlalchemy import table as sql_table
from sqlalchemy.engine import Inspector

from sqlaudit import HistoryTableError, SQLAuditError
from sqlaudit.sql.dialects import TRAITS
from sqlaudit_alembic.ops import CreateHistoryTableOp, Place

_TRANSLATION = "schema_translate_map"
created: WeakKeyDictionary[MigrationContext, dict[tuple[str | None, str], CreateHistoryTableOp]] = WeakKeyDictionary()
"""The history tables that a run has created, for ``--sql`` mode, which cannot inspect a database."""


def inspector_of(operations: Operations) -> Inspector | None:
    """Return an inspector of the database as it is now; ``None`` in ``--sql`` mode."""
    context = operations.get_context()
    return None if context.as_sql else inspect(operations.get_bind())


def need_history(inspector: Inspector | None, place: Place) -> None:
    if inspector is not None and not inspector.has_table(place.history, schema=place.schema):
        raise HistoryTableError(
            f"The history table {place.history!r} of {place.table!r} does not exist. Create it first: "
            "op.create_history_table(…), or alembic revision --autogenerate. If it has another name, pass "
            "history_table=….",
            place.table,
        )


def need_live(inspector: Inspector | None, place: Place) -> None:
    if inspector is not None and not inspector.has_table(place.table, schema=place.schema):
        raise SQLAuditError(
            f"The table {place.table!r} does not exist. Give the name that it has at this point of the migrations.",
            place.table,
        )


def need_schema(operations: Operations, place: Place) -> None:
    inspector = inspector_of(operations)
    if inspector is None or place.schema is None or operations.get_bind().get_execution_options().get(_TRANSLATION):
        return
    if place.schema not in inspector.get_schema_names():
        raise SQLAuditError(
            f"The schema {place.schema!r} for {place.history!r} does not exist. Create it first: "
            "op.execute(CreateSchema(…)).",
            place.table,
        )


def need_name(operations: Operations, name: str) -> None:
    """Check the length of a name of a table or column.

    :raises SQLAuditError: the name is empty or too long
    """
    dialect = operations.get_context().dialect
    longest = TRAITS[dialect.name].name_length or dialect.max_identifier_length
    length = len(name.encode() if TRAITS[dialect.name].measures_names_in_bytes else name)
    if not 0 < length <= longest:
        raise SQLAuditError(
            f"{name!r} cannot be a name in this database, where names have 1 to {longest} characters. Choose another "
            "name.",
            name,
        )


def columns_of(inspector: Inspector, table: str, schema: str | None) -> list[str]:
    return [column["name"] for column in inspector.get_columns(table, schema=schema)]


def key_of(inspector: Inspector, place: Place) -> tuple[str, ...]:
    """Return the names of the history's columns that identify a row."""
    audit_names = {name for _, name in place.names.items()}
    primary = inspector.get_pk_constraint(place.history, schema=place.schema)["constrained_columns"]
    return tuple(name for name in primary if name not in audit_names)


def takes_json_only(connection: Connection, table: Table, name: str) -> bool:
    """Return whether a column is MariaDB's JSON: a text with a CHECK of the column's name, which is not reflected."""
    if not getattr(connection.dialect, "is_mariadb", False):
        return False
    parameters = {
        "CONSTRAINT_SCHEMA": table.schema or func.database(),
        "TABLE_NAME": table.name,
        "CONSTRAINT_NAME": name,
    }
    statement = select(_CHECKS.c["CHECK_CLAUSE"]).where(*(_CHECKS.c[key] == value for key, value in parameters.items()))
    return "json_valid" in (connection.scalar(statement) or "")


_CHECKS: Final = sql_table(
    "CHECK_CONSTRAINTS",
    *map(column, ("CONSTRAINT_SCHEMA", "TABLE_NAME", "CONSTRAINT_NAME", "CHECK_CLAUSE")),
    schema="INFORMATION_SCHEMA",
)
