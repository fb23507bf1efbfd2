"""How does a database refuse to rewrite history? Triggers of an append-only history table raise an error.

They let through what recording needs: an INSERT, and an UPDATE that ends an open version, so that only ``valid_to``
changes, to an instant that is not before ``valid_from``. They refuse any other UPDATE, a DELETE and, on PostgreSQL, a
TRUNCATE, unless the *door* is open: see :func:`sqlaudit.maintenance.door.writable_history`.

On PostgreSQL a function compares whole rows. On MariaDB, MySQL and SQLite the trigger names the columns, so a change of
columns needs new triggers. On SQLite a third trigger refuses an INSERT OR REPLACE, which deletes without a DELETE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from sqlalchemy import Connection, MetaData, String, Table, column, func, literal_column, select, table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlaudit.period import OpenEnd
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.catalogue import oid_of
from sqlaudit.tracking.schema import schema_of
from sqlaudit.tracking.tables import TrackedTable, shortened

DOOR: Final = "sqlaudit_door"
"""The name of the variable that opens the door on MariaDB and MySQL."""
DOOR_SETTING: Final = "sqlaudit.door"
"""The name of the setting that opens the door on PostgreSQL, until the transaction ends."""
REFUSAL: Final = "is append-only"
"""What the message of every refusal contains."""


@dataclass(frozen=True, slots=True)
class Protection:
    """What the triggers of a history table have to know.

    :ivar history: the name of the history table
    :ivar key: the names of the columns that identify a row
    :ivar columns: the names of all columns
    :ivar maintainers: the names of the users, beside the one who creates the triggers, who may open the door on MariaDB
        and MySQL
    """

    history: str
    schema: str | None
    key: tuple[str, ...]
    columns: tuple[str, ...]
    version: str
    valid_from: str
    valid_to: str
    maintainers: tuple[str, ...] = ()

    def named(self, suffix: str) -> str:
        """Return the name of one of the triggers, or of the function."""
        return shortened(f"{self.history}_protect{suffix}")


def protection_of(tracked: TrackedTable, copy: Table | None = None, maintainers: Sequence[str] = ()) -> Protection:
    """Return the protection of the history table of a tracked table, or of a copy of it by ``to_metadata()``."""
    history = tracked.history if copy is None else copy
    return Protection(
        history.name,
        history.schema,
        tuple(stored.name for stored in tracked.history_key),
        tuple(stored.name for stored in history.c),
        tracked.version.name,
        tracked.valid_from.name,
        tracked.valid_to.name,
        tuple(maintainers),
    )


class Trigger(Enum):
    """A trigger of a protected history table: the end of its name. Each database has some of them."""

    ROWS = ""
    TRUNCATE = "_truncate"
    UPDATE = "_update"
    DELETE = "_delete"
    INSERT = "_insert"


_TRIGGERS: Final[dict[str, tuple[Trigger, ...]]] = {
    "postgresql": (Trigger.ROWS, Trigger.TRUNCATE),
    "sqlite": (Trigger.UPDATE, Trigger.DELETE, Trigger.INSERT),
    **dict.fromkeys(MYSQL, (Trigger.UPDATE, Trigger.DELETE)),
}


class CreateTrigger(ExecutableDDLElement):
    """Create one of the triggers."""

    def __init__(self, protection: Protection, trigger: Trigger) -> None:
        self.protection, self.trigger = protection, trigger


class DropTrigger(ExecutableDDLElement):
    """Drop one of the triggers, if it exists."""

    def __init__(self, protection: Protection, trigger: Trigger) -> None:
        self.protection, self.trigger = protection, trigger


class CreateFunction(ExecutableDDLElement):
    """Create, or replace, the function of PostgreSQL that the triggers execute."""

    def __init__(self, protection: Protection) -> None:
        self.protection = protection


class GuardPartitions(ExecutableDDLElement):
    """Let each partition refuse a TRUNCATE, too, because PostgreSQL gives it only the triggers of rows.

    :param is_guarded: False to end that
    """

    def __init__(self, protection: Protection, *, is_guarded: bool) -> None:
        self.protection, self.is_guarded = protection, is_guarded


class DropFunction(ExecutableDDLElement):
    """Drop the function of PostgreSQL, if it exists."""

    def __init__(self, protection: Protection) -> None:
        self.protection = protection


def protecting(protection: Protection, dialect: str) -> list[ExecutableDDLElement]:
    """Return the statements that protect a history table, whether or not it is protected already.

    :param dialect: the name of the dialect; on one that sqlaudit does not know, there are none
    """
    triggers = _TRIGGERS.get(dialect, ())
    return [
        *([CreateFunction(protection)] if dialect == "postgresql" else ()),
        *(DropTrigger(protection, trigger) for trigger in triggers),
        *(CreateTrigger(protection, trigger) for trigger in triggers),
        *([GuardPartitions(protection, is_guarded=True)] if dialect == "postgresql" else ()),
    ]


def unprotecting(protection: Protection, dialect: str, *, is_dropped: bool = False) -> list[ExecutableDDLElement]:
    """Return the statements that end the protection of a history table, if it has one.

    :param is_dropped: True if the table and its triggers have been dropped already
    """
    drops: list[ExecutableDDLElement] = []
    if not is_dropped:
        drops += [DropTrigger(protection, trigger) for trigger in _TRIGGERS.get(dialect, ())]
        drops += [GuardPartitions(protection, is_guarded=False)] if dialect == "postgresql" else []
    return [*drops, *([DropFunction(protection)] if dialect == "postgresql" else ())]


def trigger_names(history: str, dialect: str) -> tuple[str, ...]:
    """Return the names of the triggers that a protected history table has, which differ from table to table."""
    return tuple(shortened(f"{history}_protect{trigger.value}") for trigger in _TRIGGERS.get(dialect, ()))


_MAINTAINER: Final = re.compile(r"CAST\('((?:[^']|'')*)' AS BINARY\)")


def maintainers_in(trigger: str) -> tuple[str, ...]:
    """Return the maintainers that the text of a trigger of MariaDB or MySQL names."""
    return tuple(name.replace("''", "'") for name in _MAINTAINER.findall(trigger))


# --- SQL --------------------------------------------------------------------------------------------------------


def _qualified(compiler: DDLCompiler, protection: Protection, name: str) -> str:
    # A Table, because ``schema_translate_map`` applies to tables.
    return str(compiler.preparer.format_table(Table(name, MetaData(), schema=protection.schema)))


def _text(compiler: DDLCompiler, text: str) -> str:
    return str(compiler.sql_compiler.render_literal_value(text, String()))


def _open_end(compiler: DDLCompiler) -> str:
    return str(compiler.sql_compiler.process(OpenEnd()))


@compiles(CreateFunction, "postgresql")
def _function(element: CreateFunction, compiler: DDLCompiler, **kw: Any) -> str:
    """Qualify all operators and functions, so that nobody replaces them by a ``search_path`` of their own."""
    protection, quote = element.protection, compiler.preparer.quote
    valid_from, valid_to = quote(protection.valid_from), quote(protection.valid_to)
    return f"""CREATE OR REPLACE FUNCTION {_qualified(compiler, protection, protection.named(""))}() RETURNS trigger
LANGUAGE plpgsql AS $sqlaudit$
DECLARE
  unended record;
BEGIN
  IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN
    unended := NEW;
    unended.{valid_to} := OLD.{valid_to};
    IF OLD.{valid_to} OPERATOR(pg_catalog.=) {_open_end(compiler)}::pg_catalog.timestamptz
      AND NEW.{valid_to} OPERATOR(pg_catalog.>=) OLD.{valid_from} AND unended OPERATOR(pg_catalog.*=) OLD
    THEN
      RETURN NEW;
    END IF;
  END IF;
  IF pg_catalog.current_setting('{DOOR_SETTING}', true) OPERATOR(pg_catalog.=) 'on' AND
    pg_catalog.has_table_privilege(COALESCE(pg_catalog.pg_partition_root(TG_RELID), TG_RELID), 'TRIGGER')
  THEN
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
      RETURN OLD;
    END IF;
    RETURN NEW;
  END IF;
  RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
    MESSAGE = pg_catalog.concat('the history table ', TG_TABLE_NAME, ' {REFUSAL}'),
    HINT = 'sqlaudit.maintenance may rewrite it, as a role that has the privilege TRIGGER on the table.';
END
$sqlaudit$"""


@compiles(DropFunction, "postgresql")
def _drop_function(element: DropFunction, compiler: DDLCompiler, **kw: Any) -> str:
    return f"DROP FUNCTION IF EXISTS {_qualified(compiler, element.protection, element.protection.named(''))}()"


@compiles(CreateTrigger, "postgresql")
def _on_postgresql(element: CreateTrigger, compiler: DDLCompiler, **kw: Any) -> str:
    protection, rows = element.protection, element.trigger is Trigger.ROWS
    history, function = (_qualified(compiler, protection, name) for name in (protection.history, protection.named("")))
    return (
        f"CREATE TRIGGER {compiler.preparer.quote(protection.named(element.trigger.value))} "
        f"BEFORE {'UPDATE OR DELETE' if rows else 'TRUNCATE'} ON {history} "
        f"FOR EACH {'ROW' if rows else 'STATEMENT'} EXECUTE FUNCTION {function}()"
    )


@compiles(DropTrigger, "postgresql")
def _drop_on_postgresql(element: DropTrigger, compiler: DDLCompiler, **kw: Any) -> str:
    protection = element.protection
    return (
        f"DROP TRIGGER IF EXISTS {compiler.preparer.quote(protection.named(element.trigger.value))} "
        f"ON {_qualified(compiler, protection, protection.history)}"
    )


@compiles(GuardPartitions, "postgresql")
def _guard_partitions(element: GuardPartitions, compiler: DDLCompiler, **kw: Any) -> str:
    protection = element.protection
    trigger = compiler.preparer.quote(protection.named(Trigger.TRUNCATE.value))
    history, function = (_qualified(compiler, protection, name) for name in (protection.history, protection.named("")))
    if compiler.preparer._double_percents:  # the literals double them again
        trigger, history, function = (name.replace("%%", "%") for name in (trigger, history, function))
    steps = [f"pg_catalog.concat({_text(compiler, f'DROP TRIGGER IF EXISTS {trigger} ON ')}, part)"]
    if element.is_guarded:
        ending = _text(compiler, f" FOR EACH STATEMENT EXECUTE FUNCTION {function}()")
        steps.append(
            f"pg_catalog.concat({_text(compiler, f'CREATE TRIGGER {trigger} BEFORE TRUNCATE ON ')}, part, {ending})"
        )
    executed = "\n".join(f"    EXECUTE {step};" for step in steps)
    return f"""DO $sqlaudit$
DECLARE
  part pg_catalog.regclass;
BEGIN
  FOR part IN SELECT relid FROM pg_catalog.pg_partition_tree({_text(compiler, history)})
    WHERE level OPERATOR(pg_catalog.>) 0
  LOOP
{executed}
  END LOOP;
END
$sqlaudit$"""  # noqa: S608  # literals


@compiles(DropTrigger, "sqlite")
@compiles(DropTrigger, *MYSQL)
def _drop_elsewhere(element: DropTrigger, compiler: DDLCompiler, **kw: Any) -> str:
    protection = element.protection
    return f"DROP TRIGGER IF EXISTS {_qualified(compiler, protection, protection.named(element.trigger.value))}"


def _ends_version(protection: Protection, compiler: DDLCompiler, is_same: str) -> str:
    """Return the condition that an UPDATE does nothing but end an open version.

    :param is_same: the condition that a column has kept its value, with ``{}`` for the column
    """
    quote = compiler.preparer.quote
    valid_from, valid_to = quote(protection.valid_from), quote(protection.valid_to)
    same = (is_same.replace("{}", quote(name)) for name in protection.columns if name != protection.valid_to)
    return " AND ".join(
        [f"OLD.{valid_to} = {_open_end(compiler)}", f"NEW.{valid_to} >= OLD.{valid_from}", *map(str, same)]
    )


@compiles(CreateTrigger, *MYSQL)
def _on_mysql(element: CreateTrigger, compiler: DDLCompiler, **kw: Any) -> str:
    protection = element.protection
    user = "CAST(SUBSTRING_INDEX({}, '@', 1) AS BINARY)"
    users = [
        user.format("CURRENT_USER()"),
        *(f"CAST({_text(compiler, name)} AS BINARY)" for name in protection.maintainers),
    ]
    # In a trigger, CURRENT_USER() is who has created it.
    refused = f"NOT (@{DOOR} <=> 1 AND {user.format('USER()')} IN ({', '.join(users)}))"
    if element.trigger is Trigger.UPDATE:
        # Equal bytes, too, because of collations; equal numbers, too, because a FLOAT is rounded as a text.
        is_same = "NEW.{} <=> OLD.{} AND CAST(NEW.{} AS BINARY) <=> CAST(OLD.{} AS BINARY)"
        refused = f"NOT ({_ends_version(protection, compiler, is_same)}) AND {refused}"
    return (
        f"CREATE TRIGGER {_qualified(compiler, protection, protection.named(element.trigger.value))} "
        f"BEFORE {element.trigger.name} ON {_qualified(compiler, protection, protection.history)} FOR EACH ROW "
        f"IF {refused} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {_message(compiler, protection)}; END IF"
    )


@compiles(CreateTrigger, "sqlite")
def _on_sqlite(element: CreateTrigger, compiler: DDLCompiler, **kw: Any) -> str:
    protection, quote = element.protection, compiler.preparer.quote
    history, valid_to = quote(protection.history), quote(protection.valid_to)  # a schema is the trigger's
    condition = ""
    if element.trigger is Trigger.UPDATE:
        condition = f"WHEN NOT ({_ends_version(protection, compiler, 'NEW.{} IS OLD.{} COLLATE BINARY')}) "
    elif element.trigger is Trigger.INSERT:
        is_row = " AND ".join(f"{quote(name)} = NEW.{quote(name)}" for name in protection.key)
        version, is_open = quote(protection.version), f"{valid_to} = {_open_end(compiler)}"
        exists = f"EXISTS (SELECT 1 FROM {history} WHERE "  # noqa: S608  # quoted names
        condition = (
            f"WHEN {exists}{is_row} AND {version} = NEW.{version}) OR {exists}rowid = NEW.rowid) "
            f"OR NEW.{is_open} AND {exists}{is_row} AND {is_open}) "
        )
    return (
        f"CREATE TRIGGER {_qualified(compiler, protection, protection.named(element.trigger.value))} "
        f"BEFORE {element.trigger.name} ON {history} {condition}"
        f"BEGIN SELECT RAISE(ABORT, {_message(compiler, protection)}); END"
    )


def _message(compiler: DDLCompiler, protection: Protection) -> str:
    return _text(compiler, f"the history table {protection.history} {REFUSAL}")


# --- the catalogue ----------------------------------------------------------------------------------------------


def protects_by_column(dialect: str) -> bool:
    """Return whether the triggers name the columns of the history, so that new columns need new triggers."""
    return dialect in _TRIGGERS and dialect != "postgresql"


def triggers_in_database(connection: Connection, history: Table) -> dict[str, str]:
    """Return the names and the texts of the triggers that protect a history table. One statement.

    It has all of them or none, unless somebody has dropped some. On PostgreSQL the texts are empty. On MariaDB and
    MySQL, a role needs the privilege TRIGGER on the table to see them.
    """
    names, schema = trigger_names(history.name, connection.dialect.name), schema_of(connection, history)
    if not names:
        return {}
    if connection.dialect.name == "postgresql":
        catalogue = table("pg_trigger", *map(column, ("tgname", "tgrelid")), schema="pg_catalog")
        statement = select(catalogue.c.tgname, literal_column("''")).where(
            catalogue.c.tgrelid == oid_of(connection, history), catalogue.c.tgname.in_(names)
        )
    elif connection.dialect.name == "sqlite":
        listed = table("sqlite_master", *map(column, ("type", "name", "tbl_name", "sql")), schema=schema)
        statement = select(listed.c.name, listed.c.sql).where(
            listed.c.type == "trigger", listed.c.tbl_name == history.name, listed.c.name.in_(names)
        )
    else:
        columns = ("TRIGGER_NAME", "ACTION_STATEMENT", "EVENT_OBJECT_SCHEMA", "EVENT_OBJECT_TABLE")
        triggers = table("TRIGGERS", *map(column, columns), schema="INFORMATION_SCHEMA").c
        statement = select(triggers["TRIGGER_NAME"], triggers["ACTION_STATEMENT"]).where(
            triggers["EVENT_OBJECT_SCHEMA"] == (schema or func.database()),
            triggers["EVENT_OBJECT_TABLE"] == history.name,
            triggers["TRIGGER_NAME"].in_(names),
        )
    return {row[0]: row[1] for row in connection.execute(statement, execution_options=INTERNAL)}


def is_protected(connection: Connection, history: Table, columns: Iterable[str] = ()) -> bool:
    """Return whether a history table has all its triggers, and whether they name the given columns if they name any."""
    triggers, names = triggers_in_database(connection, history), trigger_names(history.name, connection.dialect.name)
    if triggers.keys() != set(names):
        return False
    if not protects_by_column(connection.dialect.name):
        return True
    quote, text = connection.dialect.identifier_preparer.quote, "\n".join(triggers.values())
    return all(f"NEW.{quote(name)} " in text for name in columns)
