"""What does a table's definition say? Its unique columns, its conflict clauses, its schema on a connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    PrimaryKeyConstraint,
    Table,
    TableClause,
    UniqueConstraint,
    inspect,
)

from sqlaudit.sql.dialects import MYSQL

_ON_CONFLICT: Final = "sqlaudit_on_conflict"
_TABLE_OPTIONS: Final = frozenset(
    f"{dialect}_{option}"
    for dialect in MYSQL
    for option in ("engine", "charset", "default_charset", "collate", "default_collate")
)


def unique_together(table: Table, *, partial: bool = False, deferred: bool = True) -> Iterator[tuple[Column[Any], ...]]:
    """Yield each group of columns that are unique together, except the primary key.

    :param partial: include columns that are unique only among some rows
    :param deferred: include columns that the database checks only at the end of the transaction
    """
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            is_deferred = constraint.deferrable and (constraint.initially or "").upper() == "DEFERRED"
            if deferred or not is_deferred:
                yield tuple(constraint.columns)
    for index in table.indexes:
        has_condition = any(option.get("where") is not None for option in index.dialect_options.values())
        columns = [expression for expression in index.expressions if isinstance(expression, Column)]
        if index.unique and len(columns) == len(index.expressions) and (partial or not has_condition):
            yield tuple(columns)


def table_options(table: Table) -> dict[str, Any]:
    """Return the options with which MariaDB and MySQL create a table: its engine, character set and collation."""
    return {name: value for name, value in table.kwargs.items() if name in _TABLE_OPTIONS and value is not None}


def candidate_keys(table: Table) -> Iterator[tuple[Column[Any], ...]]:
    """Yield each group of columns that are unique together, the primary key first."""
    if table.primary_key:
        yield tuple(table.primary_key)
    yield from unique_together(table, partial=True)


def changes_unset(column: Column[Any]) -> bool:
    """Return whether an UPDATE that does not set a column may change it."""
    return column.onupdate is not None or column.server_onupdate is not None or column.computed is not None


def conflict_clauses_of(table: Table) -> str:
    """Return the SQLite conflict clauses of a table's constraints, such as ``REPLACE``, in capitals."""
    cache = table.info if isinstance(table.info, dict) else {}
    if (words := cache.get(_ON_CONFLICT)) is None:
        unique = [
            constraint
            for constraint in table.constraints
            if isinstance(constraint, (PrimaryKeyConstraint, UniqueConstraint))
        ]
        names = ("sqlite_on_conflict_unique", "sqlite_on_conflict_primary_key")
        clauses = [constraint.dialect_kwargs.get("sqlite_on_conflict") for constraint in unique]
        clauses += [
            column.dialect_kwargs.get(name) for constraint in unique for column in constraint.columns for name in names
        ]
        words = cache[_ON_CONFLICT] = " ".join(clause.upper() for clause in clauses if clause)
    return words


def schema_of(connection: Connection, table: Table | TableClause) -> str | None:
    """Return the schema of a table on a connection, whose ``schema_translate_map`` may change it."""
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema: str | None = translated.get(table.schema, table.schema)
    return schema


def table_exists(connection: Connection, table: Table) -> bool:
    """Return whether a table exists in the database of a connection. One statement."""
    return inspect(connection).has_table(table.name, schema=schema_of(connection, table))
