"""Which instant do versions get that a ``--sql`` script writes? The time of its run, which the database remembers.

The script does not contain the time at which it was generated. Before the first statement that writes versions, it lets
the session remember its time, in UTC and with microseconds (SQLite: milliseconds), and a new changeset id.
"""

# ruff: noqa: S608  # the names are sqlaudit's own

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sqlaudit.period import UTCDateTime
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.tracking.tables import audit_column_types


class ForgetRun(ExecutableDDLElement):
    """Drop the temporary table that remembers a run on SQLite, whose sessions have no variables, if it exists."""

    def __init__(self, name: str) -> None:
        self.name = name


class RememberRun(ExecutableDDLElement):
    """Remember the time and a new changeset id under a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class RunInstant(FunctionElement[Any]):
    """The time that :class:`RememberRun` has remembered."""

    type = UTCDateTime()
    inherit_cache = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.run = name


class RunChangeset(FunctionElement[UUID]):
    """The changeset id that :class:`RememberRun` has remembered."""

    type = audit_column_types()["changeset_id"]
    inherit_cache = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.run = name


@compiles(ForgetRun, "sqlite")
def _forget_on_sqlite(element: ForgetRun, compiler: DDLCompiler, **kw: Any) -> str:
    return f"DROP TABLE IF EXISTS temp.{element.name}"


# The SQL avoids percent signs, which not all drivers read alike.


@compiles(RememberRun, "sqlite")
def _remember_on_sqlite(element: RememberRun, compiler: DDLCompiler, **kw: Any) -> str:
    digits = " || ".join(f"substr('0123456789abcdef', 1 + (ms >> {shift} & 15), 1)" for shift in range(44, -1, -4))
    return (
        f"CREATE TEMPORARY TABLE {element.name} AS SELECT "
        "datetime(ms / 1000, 'unixepoch') || '.' || substr('000' || (ms - ms / 1000 * 1000), -3) || '000' AS instant, "
        f"{digits} || '7' || substr(lower(hex(randomblob(2))), 1, 3) || substr('89ab', 1 + (random() & 3), 1) || "
        "substr(lower(hex(randomblob(8))), 1, 15) AS changeset_id "
        "FROM (SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AS ms)"
    )


@compiles(RunInstant, "sqlite")
def _instant_on_sqlite(element: RunInstant, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(SELECT instant FROM temp.{element.run})"


@compiles(RunChangeset, "sqlite")
def _changeset_on_sqlite(element: RunChangeset, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(SELECT changeset_id FROM temp.{element.run})"


@compiles(RememberRun, "postgresql")
def _remember_on_postgresql(element: RememberRun, compiler: DDLCompiler, **kw: Any) -> str:
    random = "replace(CAST(gen_random_uuid() AS TEXT), '-', '')"
    return (
        f"SELECT set_config('sqlaudit.{element.name}_at', "
        "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', false), "
        f"set_config('sqlaudit.{element.name}_changeset_id', "
        "lpad(to_hex(CAST(floor(extract(epoch FROM now()) * 1000) AS BIGINT)), 12, '0') || '7' || "
        f"substr({random}, 1, 3) || substr('89ab', 1 + CAST(floor(random() * 4) AS INTEGER), 1) || "
        f"substr({random}, 18, 15), false)"
    )


@compiles(RunInstant, "postgresql")
def _instant_on_postgresql(element: RunInstant, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(current_setting('sqlaudit.{element.run}_at') AS TIMESTAMP WITH TIME ZONE)"


@compiles(RunChangeset, "postgresql")
def _changeset_on_postgresql(element: RunChangeset, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(current_setting('sqlaudit.{element.run}_changeset_id') AS UUID)"


@compiles(RememberRun, *MYSQL)
def _remember_on_mysql(element: RememberRun, compiler: DDLCompiler, **kw: Any) -> str:
    return (
        f"SET @{element.name}_at = UTC_TIMESTAMP(6), @{element.name}_changeset_id = LOWER(CONCAT("
        "LPAD(HEX(CAST(FLOOR(UNIX_TIMESTAMP(NOW(6)) * 1000) AS UNSIGNED)), 12, '0'), '7', "
        "SUBSTR(SHA2(UUID(), 256), 1, 3), ELT(1 + FLOOR(RAND() * 4), '8', '9', 'a', 'b'), "
        "SUBSTR(SHA2(CONCAT(UUID(), RAND()), 256), 1, 15)))"
    )


@compiles(RunInstant, *MYSQL)
def _instant_on_mysql(element: RunInstant, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(@{element.run}_at AS DATETIME(6))"


@compiles(RunChangeset, *MYSQL)
def _changeset_on_mysql(element: RunChangeset, compiler: SQLCompiler, **kw: Any) -> str:
    return f"@{element.run}_changeset_id"
