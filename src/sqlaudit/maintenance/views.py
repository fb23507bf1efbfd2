"""How is the past read with psql or a BI tool? Through views of the database, on an instant that the session sets.

A view has the name and the columns of its live table. On PostgreSQL, the views are in a schema of their own, with a
function for each table that takes the instant. MariaDB, MySQL and SQLite have no such schemas: there, ``past_``
precedes the names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Engine,
    MetaData,
    String,
    Table,
    and_,
    cast,
    column,
    func,
    inspect,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy import table as sql_table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateSchema, DropSchema, ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlaudit.asynchronous import also_async_where
from sqlaudit.exceptions import QueryError
from sqlaudit.past.rendering import all_rows_at
from sqlaudit.period import OPEN_END, UTCDateTime
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.tables import TrackedTable, known_metadata

_PREFIX: Final = "past_"
_INSTANT: Final = "instant"
_SETTING: Final = "sqlaudit.as_of"
_VARIABLE: Final = "sqlaudit_as_of"
_COMMENT: Final = "Views of the past, made by sqlaudit. They are dropped and made again with it."
_PRESENT: Final = (OPEN_END - timedelta(microseconds=1)).replace(tzinfo=None).isoformat(" ")
"""The instant of a session that has set none: as of it, exactly the open versions are true."""


@also_async_where
def create_past_views(where: Engine | Connection, *models: Any, schema: str = "past") -> list[str]:
    """Create a view of the past for each tracked table, and return the names of the views.

    .. code-block:: python

        create_past_views(engine)

    ========== ================================================ ===================================
    database   the past of ``customers``                        the instant
    ========== ================================================ ===================================
    PostgreSQL ``past.customers``, ``past.customers_as_of(ts)``  ``SET sqlaudit.as_of = '2026-03-01'``
    MariaDB    ``past_customers``                               ``SET @sqlaudit_as_of = '2026-03-01'``
    SQLite     ``past_customers``                               the view ``past_instant``, made anew
    ========== ================================================ ===================================

    Without an instant, a view shows the present. Instants without a time zone are in UTC on MariaDB and SQLite, and in
    the session's time zone on PostgreSQL. Excluded columns are NULL. Views that exist are made anew. A migration that
    changes a tracked table has to drop them first.

    :param where: an engine or a connection. If it is asynchronous, await the result
    :param models: tracked models, each with its whole hierarchy, and association tables; all of this process if omitted
    :param schema: the schema of the views on PostgreSQL, which sqlaudit creates and drops as a whole
    :return: the names of the views
    :raises TrackingError: a model is not tracked
    :raises QueryError: the schema or a view exists, and sqlaudit has not made it
    """
    with _connected(where) as connection:
        made = _PostgreSQL(connection, schema) if connection.dialect.name == "postgresql" else _Views(connection)
        made.drop()
        tables = _tables_of(models)
        views = [made.view_of(table.live) for table in tables]
        inspector = inspect(connection)
        existing = [] if isinstance(made, _PostgreSQL) else [*inspector.get_table_names(), *inspector.get_view_names()]
        for view in views:
            if view.name in existing:
                raise QueryError(
                    f"There is a table or view {view.fullname!r} already, and sqlaudit has not made it. Rename it.",
                    view.fullname,
                )
        made.begin()
        for table in tables:
            made.create(table)
        return [view.fullname for view in views]


@also_async_where
def drop_past_views(where: Engine | Connection, *, schema: str = "past") -> None:
    """Drop what :func:`create_past_views` has made.

    :param where: an engine or a connection. If it is asynchronous, await the result
    :param schema: the schema of the views on PostgreSQL
    :raises QueryError: sqlaudit has not made the schema
    """
    with _connected(where) as connection:
        (_PostgreSQL(connection, schema) if connection.dialect.name == "postgresql" else _Views(connection)).drop()


@contextmanager
def _connected(where: Engine | Connection) -> Iterator[Connection]:
    if isinstance(where, Connection):
        yield where
    elif isinstance(where, Engine):
        with where.begin() as connection:
            yield connection
    else:
        raise QueryError(f"{where!r} is neither an engine nor a connection. Give one.", where)


def _tables_of(models: tuple[Any, ...]) -> list[TrackedTable]:
    found: dict[TrackedTable, None] = {}
    for model in models:
        found |= dict.fromkeys(table for each in model_of(model).root.family() for table in each.chain)
    for metadata in [] if models else known_metadata():
        find_association_tables(metadata)
        found |= dict.fromkeys(table for table in tracked_tables(metadata) if not table.is_obsolete)
    return sorted(found, key=lambda table: table.live.fullname)


class _Views:
    """Views of MariaDB, MySQL and SQLite."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.is_mysql = connection.dialect.name in MYSQL

    def view_of(self, table: Table) -> Table:
        """Return the view of a live table."""
        return Table(f"{_PREFIX}{table.fullname.replace('.', '_')}", MetaData())

    def drop(self) -> None:
        """Drop the views, and what gives the instant."""
        if self._has_instant():
            instant, inspector = Table(_PREFIX + _INSTANT, MetaData()), inspect(self.connection)
            for name in inspector.get_view_names():
                is_candidate = name.startswith(_PREFIX) and name != instant.name
                if is_candidate and instant.name in inspector.get_view_definition(name):
                    self.execute(_DDL("DROP VIEW {0}", Table(name, MetaData())))
            self.execute(_DDL(f"DROP {'FUNCTION' if self.is_mysql else 'VIEW'} {{0}}", instant))

    def _has_instant(self) -> bool:
        name = _PREFIX + _INSTANT
        if not self.is_mysql:
            return name in inspect(self.connection).get_view_names()
        routines = sql_table("routines", column("routine_schema"), column("routine_name"), schema="information_schema")
        is_ours = and_(routines.c.routine_schema == func.database(), routines.c.routine_name == name)
        return bool(self.connection.scalar(select(func.count()).select_from(routines).where(is_ours)))

    def begin(self) -> None:
        """Create what gives the instant of the session."""
        instant = Table(_PREFIX + _INSTANT, MetaData())
        if self.is_mysql:
            value: ColumnElement[Any] = literal_column(f"COALESCE(@{_VARIABLE}, '{_PRESENT}')")
            self.execute(
                _DDL("CREATE FUNCTION {0}() RETURNS DATETIME(6) DETERMINISTIC NO SQL RETURN {1}", instant, value)
            )
        else:
            self.execute(_DDL("CREATE VIEW {0} AS {1}", instant, select(literal(_PRESENT).label("at"))))

    def create(self, table: TrackedTable) -> None:
        """Create the view of a table."""
        at: Any = literal_column(f"{_PREFIX}{_INSTANT}()", UTCDateTime())
        if not self.is_mysql:
            instant = sql_table(_PREFIX + _INSTANT, column("at", UTCDateTime()))
            at = select(instant.c.at).scalar_subquery()
        self.execute(_DDL("CREATE VIEW {0} AS {1}", self.view_of(table.live), self.rows(table, at)))

    def rows(self, table: TrackedTable, at: Any) -> Any:
        return all_rows_at(table, self.connection.dialect, at)

    def execute(self, statement: ExecutableDDLElement) -> None:
        self.connection.execute(statement, execution_options=INTERNAL)


class _PostgreSQL(_Views):
    """A schema of PostgreSQL, with views and functions."""

    def __init__(self, connection: Connection, schema: str) -> None:
        super().__init__(connection)
        self.schema = schema

    def view_of(self, table: Table) -> Table:
        return self._named(table.name if table.schema is None else f"{table.schema}_{table.name}")

    def _named(self, name: str) -> Table:
        return Table(name, MetaData(), schema=self.schema)

    def drop(self) -> None:
        schemas = sql_table("pg_namespace", column("oid"), column("nspname"), schema="pg_catalog")
        comment = func.obj_description(schemas.c.oid, "pg_namespace")
        found = self.connection.execute(select(comment).where(schemas.c.nspname == self.schema)).first()
        if found is not None and found[0] != _COMMENT:
            raise QueryError(
                f"The schema {self.schema!r} exists, and sqlaudit has not made it. Choose another: schema=….",
                self.schema,
            )
        if found is not None:
            self.execute(DropSchema(self.schema, cascade=True))

    def begin(self) -> None:
        self.execute(CreateSchema(self.schema))
        quoted = self.connection.dialect.identifier_preparer.quote(self.schema)
        self.execute(_DDL(f"COMMENT ON SCHEMA {quoted} IS {{0}}", literal(_COMMENT)))
        setting = cast(func.nullif(func.current_setting(_SETTING, true()), ""), DateTime(timezone=True))
        value = select(func.coalesce(setting, cast(literal(f"{_PRESENT}+00", String()), DateTime(timezone=True))))
        self.execute(_DDL("CREATE FUNCTION {0}() RETURNS timestamptz" + _SQL, self._named(_INSTANT), value))

    def create(self, table: TrackedTable) -> None:
        view = self.view_of(table.live)
        at = getattr(getattr(func, self.schema), _INSTANT)(type_=UTCDateTime())
        self.execute(_DDL("CREATE VIEW {0} AS {1}", view, self.rows(table, at)))
        rows = self.rows(table, literal_column("$1", UTCDateTime()))
        function = self._named(f"{view.name}_as_of")
        self.execute(_DDL("CREATE FUNCTION {0}(timestamptz) RETURNS SETOF {2}" + _SQL, function, rows, view))


_SQL: Final = " LANGUAGE sql STABLE AS $sqlaudit$ {1} $sqlaudit$"


class _DDL(ExecutableDDLElement):
    """A statement with the names of tables and the text of expressions in its places."""

    def __init__(self, template: str, *parts: Any) -> None:
        self.template = template
        self.parts = parts


@compiles(_DDL)
def _render(element: _DDL, compiler: DDLCompiler, **kw: Any) -> str:
    parts = (
        compiler.preparer.format_table(part)
        if isinstance(part, Table)
        else compiler.sql_compiler.process(part, literal_binds=True)
        for part in element.parts
    )
    return element.template.format(*parts)
