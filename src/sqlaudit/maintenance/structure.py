"""Can the history table hold what happens to its live table? Columns, indexes, triggers, policies and grants tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    Index,
    column,
    func,
    inspect,
    select,
    table,
    true,
    union_all,
)
from sqlalchemy.engine import Inspector
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.types import TypeEngine

from sqlaudit.maintenance.findings import Collector, FindingCode
from sqlaudit.period import PeriodToIndex
from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.widening import wide_enough
from sqlaudit.tracking.catalogue import oid_of, tables_with_guard
from sqlaudit.tracking.partitions import leave_rows_out, partition_bounds
from sqlaudit.tracking.protection import trigger_names, triggers_in_database
from sqlaudit.tracking.schema import schema_of
from sqlaudit.tracking.tables import TrackedTable, guard_index_name

_MIGRATE: Final = "Let Alembic generate a migration: alembic revision --autogenerate."


def _needed(tracked: TrackedTable) -> tuple[str, ...]:
    """Return the rights on a history table that recording needs."""
    return ("SELECT", "INSERT", "UPDATE") if tracked.append_only else ("SELECT", "INSERT", "UPDATE", "DELETE")


class Structure(NamedTuple):
    """What a history table can be asked, as far as its columns exist."""

    has_versions: bool
    """Whether it has the columns of keys, numbers, periods and operations."""
    stored: frozenset[str]
    """The names of the columns that the live table and the history table have."""


NOTHING: Final = Structure(False, frozenset())


def check_structure(
    connection: Connection, tracked: TrackedTable, findings: Collector, *, must_exist: bool
) -> Structure:
    """List what a history table lacks, and return what the check can ask it.

    :param must_exist: say that the table could not be checked if the database lacks it
    """
    inspector = inspect(connection)
    live, history = tracked.live, tracked.history
    schema = schema_of(connection, history)
    if not inspector.has_table(live.name, schema=schema_of(connection, live)):
        if must_exist:
            findings.unchecked.append(
                f"The database lacks the table {live.fullname!r}, or the role does not see it. Create it, or give the "
                "models to check."
            )
        return NOTHING
    if not inspector.has_table(history.name, schema=schema):
        findings.add(
            FindingCode.MISSING_TABLE,
            tracked,
            f"The database lacks the history table {history.fullname!r}.",
            "Create it by metadata.create_all(engine), or let Alembic generate a migration.",
        )
        return NOTHING
    structure = _check_columns(connection, inspector, tracked, findings)
    _check_indexes(connection, inspector, tracked, findings)
    _check_partitions(connection, tracked, findings)
    _check_protection(connection, tracked, findings)
    if connection.dialect.name == "postgresql":
        _check_policies(connection, tracked, findings)
        _check_grants(connection, tracked, findings)
    elif connection.dialect.name in MYSQL:
        _check_grants_on_mysql(connection, tracked, findings)
    return structure


# --- columns ----------------------------------------------------------------------------------------------------


def _check_columns(
    connection: Connection, inspector: Inspector, tracked: TrackedTable, findings: Collector
) -> Structure:
    live, history = (
        {found["name"]: found for found in inspector.get_columns(owner.name, schema=schema_of(connection, owner))}
        for owner in (tracked.live, tracked.history)
    )
    missing = {column.name for column in tracked.history.c if column.name not in history}
    for name in sorted(missing):
        findings.add(
            FindingCode.MISSING_COLUMN,
            tracked,
            f"The history table {tracked.history.fullname!r} lacks the column {name!r}.",
            _MIGRATE,
        )
    for live_column, old in tracked.columns:
        if live_column.name in live and old.name in history:
            wanted = old.type if old.name in tracked.hashed else live[live_column.name]["type"]
            fault = _narrowness(connection, wanted, old, history[old.name])
            if fault is not None:
                findings.add(
                    FindingCode.NARROW_COLUMN,
                    tracked,
                    f"The column {old.name!r} of the history table {tracked.history.fullname!r} {fault}.",
                    _MIGRATE,
                )
    needed = {*(column.name for column in tracked.history_key), *(name for _, name in tracked.names.items())}
    stored = {live_column.name for live_column, _ in tracked.columns} & live.keys() & history.keys()
    has_versions = missing.isdisjoint(needed) and {column.name for column in tracked.key} <= live.keys()
    return Structure(has_versions, frozenset(stored))


def _narrowness(
    connection: Connection, needed: TypeEngine[Any], old: Column[Any], history: ReflectedColumn
) -> str | None:
    """Return how a column of history falls short, or ``None``.

    :param needed: the type of the values that it has to hold: that of the live column, or of a hash
    """
    if old.nullable and not history["nullable"]:
        return "does not allow NULL"
    dialect = connection.dialect
    if not TRAITS[dialect.name].has_typed_columns:
        return None
    try:
        wide = wide_enough(history["type"], needed, dialect)
    except Exception:  # a type of the user's, or one that SQLAlchemy does not know
        return None
    if wide is None:
        return None
    types = (history["type"].compile(dialect), needed.compile(dialect))
    return f"is of type {types[0]}, which does not hold all values of {types[1]}, the type that it needs"


# --- indexes ----------------------------------------------------------------------------------------------------


def _check_indexes(connection: Connection, inspector: Inspector, tracked: TrackedTable, findings: Collector) -> None:
    history = tracked.history
    schema = schema_of(connection, history)
    primary = inspector.get_pk_constraint(history.name, schema=schema)["constrained_columns"]
    key = [column.name for column in tracked.history_key]
    if not {*key, tracked.version.name} <= set(primary):
        names = ", ".join([*key, tracked.version.name])
        _add_index(findings, tracked, f"its primary key ({names})", "Two versions of one number may be written.")
    existing = inspector.get_indexes(history.name, schema=schema)
    for index in sorted(history.indexes, key=lambda index: str(index.name)):
        if index.unique and not TRAITS[connection.dialect.name].has_partial_indexes:
            continue
        if not any(_serves(index, found, tracked) for found in existing):
            effect = "Two versions of one row may be open." if index.unique else "Reads take longer."
            _add_index(findings, tracked, f"the index {str(index.name)!r}", effect)
    if not TRAITS[connection.dialect.name].has_partial_indexes and not tables_with_guard(connection, [tracked]):
        name = guard_index_name(tracked)
        _add_index(findings, tracked, f"the index {name!r}", "Two versions of one row may be open.")


def _add_index(findings: Collector, tracked: TrackedTable, what: str, effect: str) -> None:
    message = f"The history table {tracked.history.fullname!r} lacks {what}. {effect}"
    findings.add(FindingCode.MISSING_INDEX, tracked, message, _MIGRATE)


def _serves(index: Index, found: Any, tracked: TrackedTable) -> bool:
    """Return whether an index of the database does what one of the MetaData is for, whatever its name."""
    if found["name"] == index.name:
        return True
    names = list(found["column_names"])
    if any(isinstance(expression, PeriodToIndex) for expression in index.expressions):
        return names[:2] == [tracked.valid_to.name, tracked.valid_from.name] or any(
            tracked.valid_from.name in expression and tracked.valid_to.name in expression
            for expression in found.get("expressions", ())
            if expression
        )
    wanted = [getattr(expression, "name", None) for expression in index.expressions]
    if not index.unique:
        return names[: len(wanted)] == wanted
    # A partitioned history may have the end in it, too.
    return bool(found["unique"]) and set(names) - {tracked.valid_to.name} == set(wanted)


# --- partitions -------------------------------------------------------------------------------------------------


def _check_partitions(connection: Connection, tracked: TrackedTable, findings: Collector) -> None:
    bounds, history = partition_bounds(connection, tracked.history), tracked.history
    if bounds is None and tracked.partitions is not None and connection.dialect.name == "postgresql":
        findings.add(
            FindingCode.MISSING_PARTITION,
            tracked,
            f"The history table {history.fullname!r} is to have {tracked.partitions} partitions, and has none.",
            "Copy it into a table that has them, as the page on partitions of sqlaudit's documentation tells, or leave "
            "partitions out of track_table.",
        )
    elif bounds is not None and leave_rows_out(bounds):
        findings.add(
            FindingCode.MISSING_PARTITION,
            tracked,
            f"The history table {history.fullname!r} lacks partitions, so that the versions of some rows have no "
            "place, and their writes fail.",
            f"CREATE TABLE … PARTITION OF {history.fullname} FOR VALUES WITH (MODULUS …, REMAINDER …), for the "
            "remainders that are missing.",
        )


# --- protection -------------------------------------------------------------------------------------------------


def _check_protection(connection: Connection, tracked: TrackedTable, findings: Collector) -> None:
    if not tracked.append_only:
        return
    names = trigger_names(tracked.history.name, connection.dialect.name)
    missing = sorted({*names} - triggers_in_database(connection, tracked.history).keys())
    if missing and connection.dialect.name in MYSQL and not _sees_triggers(connection, tracked):
        findings.unchecked.append(
            f"The role lacks the privilege TRIGGER on {tracked.history.fullname!r}, so it does not see whether "
            "triggers protect the history. Grant it, or check as another role."
        )
    elif missing:
        findings.add(
            FindingCode.MISSING_PROTECTION,
            tracked,
            f"The history table {tracked.history.fullname!r} is to be append-only, and lacks the triggers "
            f"{', '.join(map(repr, missing))}, so the database does not refuse to rewrite it.",
            f"Create them in a migration: op.protect_history({tracked.live.name!r}).",
        )


# --- row security -----------------------------------------------------------------------------------------------

_TABLES: Final = table(
    "pg_class", *map(column, ("oid", "relacl", "relrowsecurity", "relforcerowsecurity")), schema="pg_catalog"
)
_POLICIES: Final = table(
    "pg_policy", *map(column, ("polname", "polrelid", "polcmd", "polroles", "polpermissive")), schema="pg_catalog"
)
_ROLES: Final = table("pg_roles", *map(column, ("oid", "rolname")), schema="pg_catalog")
_COMMANDS: Final = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}


def _check_policies(connection: Connection, tracked: TrackedTable, findings: Collector) -> None:
    live, history = (_row_security(connection, owner) for owner in (tracked.live, tracked.history))
    names = f"{tracked.live.fullname!r}", f"{tracked.history.fullname!r}"
    if not live.is_enabled:
        return
    if not history.is_enabled:
        findings.add(
            FindingCode.MISSING_POLICY,
            tracked,
            f"The table {names[0]} has row security, and its history {names[1]} has none: it shows the versions of "
            "rows that are hidden.",
            f"ALTER TABLE {names[1]} ENABLE ROW LEVEL SECURITY, and create the policies of the live table there.",
        )
        return
    if live.is_forced and not history.is_forced:
        findings.add(
            FindingCode.MISSING_POLICY,
            tracked,
            f"Row security of the table {names[0]} applies to its owner, and that of its history {names[1]} does not.",
            f"ALTER TABLE {names[1]} FORCE ROW LEVEL SECURITY.",
        )
    for role in sorted(live.roles):
        missing = [command for command in _needed(tracked) if not history.allows(role, command)]
        if missing:
            findings.add(
                FindingCode.MISSING_POLICY,
                tracked,
                f"The table {names[0]} has policies for {role}, and its history {names[1]} has none for "
                f"{', '.join(missing)}.",
                f"CREATE POLICY … ON {names[1]} for {', '.join(missing)} TO {role}, with the condition of the live "
                "table's.",
            )


class _RowSecurity(NamedTuple):
    is_enabled: bool
    is_forced: bool
    policies: frozenset[tuple[str, str]]
    """The role and the command of each permissive policy."""

    @property
    def roles(self) -> set[str]:
        return {role for role, _ in self.policies}

    def allows(self, role: str, command: str) -> bool:
        return any((who, what) in self.policies for who in (role, "PUBLIC") for what in (command, "ALL"))


def _row_security(connection: Connection, owner: Any) -> _RowSecurity:
    oid = oid_of(connection, owner)
    flags = select(_TABLES.c.relrowsecurity, _TABLES.c.relforcerowsecurity).where(_TABLES.c.oid == oid)
    is_enabled, is_forced = connection.execute(flags).one()
    if not is_enabled:
        return _RowSecurity(False, False, frozenset())
    each_role = func.unnest(_POLICIES.c.polroles).table_valued("oid", name="each_role").render_derived()
    role = func.coalesce(_ROLES.c.rolname, "PUBLIC")
    policies = (
        select(role, _POLICIES.c.polcmd)
        .select_from(_POLICIES.join(each_role, true()).outerjoin(_ROLES, _ROLES.c.oid == each_role.c.oid))
        .where(_POLICIES.c.polrelid == oid, _POLICIES.c.polpermissive)
    )
    found = ((who, _text(command)) for who, command in connection.execute(policies))
    return _RowSecurity(True, is_forced, frozenset((who, _COMMANDS[command]) for who, command in found))


def _text(value: Any) -> str:
    """Return the text of PostgreSQL's type ``"char"``, which some drivers give as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


# --- grants -----------------------------------------------------------------------------------------------------


def _check_grants(connection: Connection, tracked: TrackedTable, findings: Collector) -> None:
    history = oid_of(connection, tracked.history)
    grants = func.aclexplode(_TABLES.c.relacl).table_valued("grantee", "privilege_type", name="grants")
    role = func.coalesce(_ROLES.c.rolname, "public")
    writers = (
        select(role.label("role"))
        .select_from(_TABLES.join(grants, true()).outerjoin(_ROLES, _ROLES.c.oid == grants.c.grantee))
        .where(
            _TABLES.c.oid == oid_of(connection, tracked.live),
            grants.c.privilege_type.in_(("INSERT", "UPDATE", "DELETE")),
        )
        .distinct()
        .subquery()
    )
    needed = _needed(tracked)
    rights = [
        func.has_any_column_privilege(writers.c.role, history, right)
        if right == "UPDATE"
        else func.has_table_privilege(writers.c.role, history, right)
        for right in needed
    ]
    for name, *has in connection.execute(select(writers.c.role, *rights).order_by(writers.c.role)):
        _add_grant(
            findings, tracked, name, [right for right, is_there in zip(needed, has, strict=True) if not is_there]
        )


def _add_grant(findings: Collector, tracked: TrackedTable, role: str, missing: Sequence[str]) -> None:
    if missing:
        rights = ", ".join(missing)
        findings.add(
            FindingCode.MISSING_GRANT,
            tracked,
            f"The role {role} may write the table {tracked.live.fullname!r}, but has no {rights} on its history "
            f"{tracked.history.fullname!r}.",
            f"GRANT {rights} ON {tracked.history.fullname} TO {role}. See history_grants().",
        )


def _sees_triggers(connection: Connection, tracked: TrackedTable) -> bool:
    """Return whether MariaDB or MySQL shows the triggers of a history table to the user."""
    user = func.concat("'", func.replace(func.current_user(), "@", "'@'"), "'")
    rights = (
        select(privileges.c.GRANTEE).where(
            user == privileges.c.GRANTEE,
            privileges.c.PRIVILEGE_TYPE == "TRIGGER",
            *_on(connection, privileges, tracked),
        )
        for privileges in (_OF_TABLES, _OF_SCHEMAS, _OF_USERS)
    )
    return connection.execute(union_all(*rights)).first() is not None


def _on(connection: Connection, privileges: Any, tracked: TrackedTable, *, live: bool = False) -> list[Any]:
    """Return the condition that privileges are those on a history table, or on its live table."""
    owner = tracked.live if live else tracked.history
    places = {"TABLE_SCHEMA": schema_of(connection, owner) or func.database(), "TABLE_NAME": owner.name}
    return [privileges.c[name] == place for name, place in places.items() if name in privileges.c]


def _privileges(name: str, *more: str) -> Any:
    return table(name, *map(column, ("GRANTEE", "PRIVILEGE_TYPE", *more)), schema="INFORMATION_SCHEMA")


_OF_TABLES: Final = _privileges("TABLE_PRIVILEGES", "TABLE_SCHEMA", "TABLE_NAME")
_OF_COLUMNS: Final = _privileges("COLUMN_PRIVILEGES", "TABLE_SCHEMA", "TABLE_NAME")
_OF_SCHEMAS: Final = _privileges("SCHEMA_PRIVILEGES", "TABLE_SCHEMA")
_OF_USERS: Final = _privileges("USER_PRIVILEGES")


def _check_grants_on_mysql(connection: Connection, tracked: TrackedTable, findings: Collector) -> None:
    """List the users who may write the live table by a grant of this table; other grants are of both tables."""
    writers = select(_OF_TABLES.c.GRANTEE).where(
        *_on(connection, _OF_TABLES, tracked, live=True),
        _OF_TABLES.c.PRIVILEGE_TYPE.in_(("INSERT", "UPDATE", "DELETE")),
    )
    granted: dict[str, set[str]] = {name: set() for name in connection.scalars(writers.distinct())}
    for privileges in (_OF_TABLES, _OF_COLUMNS, _OF_SCHEMAS, _OF_USERS) if granted else ():
        rights = select(privileges.c.GRANTEE, privileges.c.PRIVILEGE_TYPE).where(
            privileges.c.GRANTEE.in_(list(granted)), *_on(connection, privileges, tracked)
        )
        if privileges is _OF_COLUMNS:  # of the columns of a period, in a history that nobody rewrites
            rights = rights.where(privileges.c.PRIVILEGE_TYPE == "UPDATE")
        for name, right in connection.execute(rights):
            granted[name].add(right)
    for name in sorted(granted):
        _add_grant(findings, tracked, name, [right for right in _needed(tracked) if right not in granted[name]])
