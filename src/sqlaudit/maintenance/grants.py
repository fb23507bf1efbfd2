"""Which rights on history does a role need? Statements that grant them, for an administrator to execute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from sqlalchemy import MetaData, String, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import configure_mappers
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlaudit.exceptions import QueryError
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of, tables_of
from sqlaudit.tracking.models import base_table_of, tracked_model_of
from sqlaudit.tracking.protection import protecting, protection_of
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.tables import TrackedTable, tracked_table

_READ: Final = ("SELECT",)
_WRITE: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_WITH_ROLES: Final = ("postgresql", *MYSQL)


class Grant(ExecutableDDLElement):
    """Grant privileges on a table to a role; one of them may be for a column alone."""

    def __init__(self, privileges: Iterable[str], table: Table, role: str, update_of: str | None = None) -> None:
        self.privileges, self.table, self.role, self.update_of = tuple(privileges), table, role, update_of


class Revoke(ExecutableDDLElement):
    """Revoke all privileges on a table from a role."""

    def __init__(self, table: Table, role: str) -> None:
        self.table, self.role = table, role


def history_grants(
    models: MetaData | Iterable[Any],
    dialect: str,
    *,
    app: str | None = None,
    reader: str | None = None,
    maintainer: str | None = None,
) -> list[ExecutableDDLElement]:
    """Return the statements that give roles their rights on histories, for an administrator to execute.

    .. code-block:: python

        with engine.begin() as connection:
            statements = history_grants(
                Base.metadata, "postgresql", app="app", reader="auditor"
            )
            for statement in statements:
                connection.execute(statement)

    On PostgreSQL, what the roles had on these tables is revoked first. MariaDB and MySQL cannot revoke what was not
    granted: revoke it by hand, rights on the whole database included.

    The tables of :func:`maintenance_tables` are granted, too, if the MetaData has them.

    :param models: tracked models, which stand for their hierarchies and the links of their relationships, association
        tables; or a MetaData, for all that it has
    :param dialect: the name of the dialect: ``engine.dialect.name``, or ``op.get_context().dialect.name`` in a revision
    :param app: the role of the application. It may add versions and end open ones; if a history is not append-only, it
        may change and delete them, too
    :param reader: a role that only reads history
    :param maintainer: a role that may call the functions of ``sqlaudit.maintenance``: it may rewrite append-only
        histories, too. On MariaDB and MySQL it must be a user, whom the triggers, which are created again, name. An
        ``@`` divides the name of the user from the host
    :raises TrackingError: one of the models is not tracked
    :raises QueryError: the dialect has no roles
    """
    if dialect not in _WITH_ROLES:
        raise QueryError(
            f"There are no rights to grant on {dialect!r}. Give 'postgresql', 'mariadb' or 'mysql'.", dialect
        )
    tables = _tables_of(models)
    others = [
        table
        for metadata in dict.fromkeys(tracked.live.metadata for tracked in tables)
        if (known := maintenance_tables_of(metadata)) is not None
        for table in tables_of(known)
    ]
    roles = [role for role in (app, reader, maintainer) if role is not None]
    statements: list[ExecutableDDLElement] = []
    if dialect == "postgresql":
        statements += [
            Revoke(table, role) for table in (*(tracked.history for tracked in tables), *others) for role in roles
        ]
    for tracked in tables:
        if app is not None and tracked.append_only:
            statements.append(Grant(("SELECT", "INSERT", "UPDATE"), tracked.history, app, tracked.valid_to.name))
        elif app is not None:
            statements.append(Grant(_WRITE, tracked.history, app))
        if reader is not None:
            statements.append(Grant(_READ, tracked.history, reader))
        if maintainer is not None:
            statements.append(Grant((*_WRITE, "TRIGGER"), tracked.history, maintainer))
            if tracked.append_only and dialect in MYSQL:
                statements += protecting(protection_of(tracked, maintainers=[_user(maintainer)]), dialect)
    for table in others:
        statements += [Grant(_READ, table, role) for role in (app, reader) if role is not None]
        statements += [Grant(_WRITE, table, maintainer)] if maintainer is not None else []
    return statements


def _tables_of(models: MetaData | Iterable[Any]) -> list[TrackedTable]:
    configure_mappers()  # association tables are known afterwards
    if isinstance(models, MetaData):
        return tracked_tables(models)
    return list(dict.fromkeys(table for model in models for table in _tables_of_one(model)))


def _tables_of_one(model: Any) -> Iterator[TrackedTable]:
    if isinstance(model, Table):
        yield base_table_of(model)
        return
    for member in tracked_model_of(model).root.family():
        yield member.table
        for relationship in member.mapper.relationships:
            if (links := tracked_table(relationship.secondary)) is not None:
                yield links


def _user(name: str) -> str:
    return name.rpartition("@")[0] or name


def _role(compiler: DDLCompiler, name: str) -> str:
    if compiler.dialect.name not in MYSQL:
        return compiler.preparer.quote(name)
    user, _, host = name.rpartition("@") if "@" in name else (name, "", "")
    parts = [user, host] if host else [user]
    return "@".join(str(compiler.sql_compiler.render_literal_value(part, String())) for part in parts)


@compiles(Grant)
def _grant(element: Grant, compiler: DDLCompiler, **kw: Any) -> str:
    column = "" if element.update_of is None else f" ({compiler.preparer.quote(element.update_of)})"
    privileges = ", ".join(name + (column if name == "UPDATE" else "") for name in element.privileges)
    table = compiler.preparer.format_table(element.table)
    return f"GRANT {privileges} ON {table} TO {_role(compiler, element.role)}"


@compiles(Revoke)
def _revoke(element: Revoke, compiler: DDLCompiler, **kw: Any) -> str:
    return f"REVOKE ALL ON {compiler.preparer.format_table(element.table)} FROM {_role(compiler, element.role)}"
