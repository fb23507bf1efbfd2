"""The databases that the suite runs on: what can each do, how is it reached, and what does a test find in it?

A test never names a database. It takes a fixture of ``fixtures.py``. If it needs a capability that not all databases
have, it names the capability: ``@pytest.mark.requires("arrays")``.
"""

import contextlib
import enum
import functools
import re
import shutil
import sqlite3
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from clock import Clock
from registering import recording
from servers import WITHOUT_TLS
from sqlaudit import SQLAuditConfig, clear_config, set_config

OTHER_SCHEMA = "sqlaudit_other"
SQLALCHEMY_2_1 = sa.__version__ >= "2.1"

Story = Callable[[sessionmaker[Session]], Any]
"""A function that writes to empty tables in sessions that record; each transaction takes a second of the clock."""


class Told(NamedTuple):
    """The outcome of a story."""

    result: Any
    """What the story returned."""
    end: datetime
    """The instant of its last transaction."""


def _tell(story: Story, engine: sa.Engine) -> Told:
    clock = Clock()
    set_config(SQLAuditConfig(clock=clock))
    with recording(engine) as sessions:
        result = story(sessions)
    clear_config()
    engine.dispose()
    return Told(result, clock.now)


class Changed(enum.IntEnum):
    """What the statements of a test may have changed."""

    NOTHING = 0
    ROWS = 1
    TABLES = 2


_READS = re.compile(r"\s*(SELECT|SAVEPOINT|RELEASE|ROLLBACK|BEGIN|COMMIT|SET|SHOW|EXPLAIN|PRAGMA|LOCK|WITH)\b", re.I)
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|REPLACE|MERGE|TRUNCATE)\b(?! OF)|\bnextval\b", re.I)


def _changed_by(statement: str) -> Changed:
    """Return what a statement may change. A wrong guess that it changes something only costs time."""
    if _WRITES.match(statement.lstrip()) or (_READS.match(statement) and _WRITES.search(statement)):
        return Changed.ROWS
    return Changed.NOTHING if _READS.match(statement) else Changed.TABLES


class Database:
    """A database that belongs to one test process.

    Tables that a module's tests share are created once. They are emptied after a test that wrote to them, as the
    statements of its engines show. `hold` is called before each test.
    """

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[str]]
    drivers: ClassVar[tuple[str, ...]]
    async_drivers: ClassVar[tuple[str, ...]]
    """The drivers of the suite's asynchronous tests; `drivers` may have further asynchronous ones."""

    url: sa.URL
    other_schema: str = OTHER_SCHEMA
    """A second schema, which exists and is empty at the beginning of a test."""
    told: Told | None = None
    """The outcome of the story that has written to the tables."""

    _metadata: sa.MetaData | None = None
    _story: Story | None = None
    _kept: Story | None = None
    _changed: Changed = Changed.TABLES

    def hold(self, metadata: sa.MetaData | None, story: Story | None = None) -> None:
        """Make the database hold the empty tables of `metadata` and nothing else, or the rows that a story leaves."""
        changed, self._changed = self._changed, Changed.TABLES  # until this method succeeds
        if metadata is None or metadata is not self._metadata or changed is Changed.TABLES:
            self.clear()
            self._first_engine.clear_compiled_cache()  # it would keep the models of other tests alive
            self._story = self._kept = None
            if metadata is not None:
                metadata.create_all(self._first_engine)
                self._first_engine.dispose()
            self._metadata = metadata
        elif changed is Changed.ROWS or self._story is not story:
            self.end_sessions()
            self.empty(metadata)
            self._story = None
        if metadata is not None and story is not None and story is not self._story:
            if story is self._kept:
                self._put_back(metadata)
            else:
                self.told = _tell(story, self.create_engine())
                self._keep(metadata)
            self._story = self._kept = story
        if metadata is not None:
            self._changed = Changed.NOTHING

    def reset(self) -> None:
        """Make the tables hold what they held when the test began; the test's engines remain usable."""
        assert self._metadata is not None
        self.empty(self._metadata)
        if self._story is not None:
            self._put_back(self._metadata)

    @functools.cached_property
    def _first_engine(self) -> sa.Engine:
        """The engine with which the engines of tests share the dialect and the compiled statements."""
        engine = self._prepared(sa.create_engine(self.url), is_pool_new=True)
        engine.connect().close()  # the dialect reads the server's version
        engine.dispose()
        return engine

    def create_engine(self, **options: Any) -> sa.Engine:
        """Create an engine; without options, one that shares compiled statements with others."""
        if options:
            return self._prepared(sa.create_engine(self.url, **options), is_pool_new=True)
        first = self._first_engine
        engine = sa.Engine(first.pool.recreate(), first.dialect, first.url)
        engine._compiled_cache = first._compiled_cache
        return self._prepared(engine, is_pool_new=False)

    def _prepared(self, engine: sa.Engine, *, is_pool_new: bool) -> sa.Engine:
        """Listen to an engine. A pool that was recreated from another pool has its listeners already."""
        sa.event.listen(engine, "before_cursor_execute", self._watch)
        return engine

    def _watch(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if self._changed is not Changed.TABLES:
            self._changed = max(self._changed, _changed_by(statement))

    def url_for(self, driver: str) -> sa.URL:
        return self.url.set(drivername=f"{self.url.get_backend_name()}+{driver}")

    def async_url(self, driver: str | None = None) -> sa.URL:
        """Return the URL for one of `async_drivers`, by default the first."""
        return self.url_for(driver or self.async_drivers[0])

    def create_driver_engine(self, driver: str) -> sa.Engine | AsyncEngine:
        """Create an engine of one of `drivers`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mariadbconnector's source has invalid escape sequences
            url = self.url_for(driver)
            if url.get_dialect().is_async:
                return self.create_async_engine(driver)
            return self._prepared(sa.create_engine(url), is_pool_new=True)

    def create_async_engine(self, driver: str | None = None, **options: Any) -> AsyncEngine:
        """Create an engine that by default pools no connections, so that several event loops can use it."""
        engine = create_async_engine(self.async_url(driver), **({"poolclass": sa.NullPool} | options))
        self._prepared(engine.sync_engine, is_pool_new=True)
        return engine

    def end_sessions(self) -> None:
        """End sessions that a failed test may have left open: the next test would wait for their locks for ever."""

    def clear(self) -> None:
        """Remove everything that the database holds, and end all sessions."""
        raise NotImplementedError

    def empty(self, metadata: sa.MetaData) -> None:
        """Delete all rows of the tables of `metadata`, and restart their sequences."""
        raise NotImplementedError

    def _keep(self, metadata: sa.MetaData) -> None:
        """Keep a copy of the rows that a story left."""
        raise NotImplementedError

    def _put_back(self, metadata: sa.MetaData) -> None:
        """Insert the rows that `_keep` has copied."""
        raise NotImplementedError

    def _names(self, metadata: sa.MetaData) -> list[str]:
        quoted = self._first_engine.dialect.identifier_preparer.format_table
        return [quoted(table).replace("%%", "%") for table in metadata.tables.values()]  # doubled for some drivers

    def drop(self) -> None:
        raise NotImplementedError


class SQLite(Database):
    name = "sqlite"
    capabilities = frozenset(
        {
            "null_in_keys",
            "cheap_temporary_tables",
            "counts_of_steps",
            "cyclic_cascades",
            "now_in_seconds",
            "on_conflict",
            "partial_indexes",
            "replacing_inserts",
            "row_values_in_set",
            "streamed_writes",
            "update_returning",
            "virtual_columns",
        }
    )
    drivers = ("pysqlite", "aiosqlite")
    async_drivers = ("aiosqlite",)

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.files = [directory / "main.db", directory / "other.db"]
        self.url = sa.URL.create("sqlite+pysqlite", database=str(self.files[0]))

    def _prepared(self, engine: sa.Engine, *, is_pool_new: bool) -> sa.Engine:
        """Enable savepoints, foreign keys and a second schema; don't wait for the disk."""
        if is_pool_new:
            sa.event.listen(engine, "connect", self._connected)

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return super()._prepared(engine, is_pool_new=is_pool_new)

    def _connected(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late
        cursor = connection.cursor()
        for pragma in ("foreign_keys=ON", "synchronous=OFF", "journal_mode=MEMORY"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute(f"ATTACH DATABASE ? AS {OTHER_SCHEMA}", (str(self.files[1]),))
        cursor.close()

    def clear(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)

    drop = clear

    def empty(self, metadata: sa.MetaData) -> None:
        self._run(*(f"DELETE FROM {name}" for name in self._names(metadata)))

    def _run(self, *statements: str, attached: Path | None = None) -> None:
        with contextlib.closing(sqlite3.connect(self.files[0], isolation_level=None)) as connection:  # no foreign keys
            connection.execute("PRAGMA synchronous=OFF")
            if attached:
                connection.execute("ATTACH DATABASE ? AS kept", (str(attached),))
            connection.executescript("; ".join(["BEGIN", *statements, "COMMIT"]))

    def _keep(self, metadata: sa.MetaData) -> None:
        shutil.copyfile(self.files[0], self.files[0].with_suffix(".kept"))

    def _put_back(self, metadata: sa.MetaData) -> None:
        copies = [f"INSERT INTO main.{name} SELECT * FROM kept.{name}" for name in self._names(metadata)]
        self._run(*copies, attached=self.files[0].with_suffix(".kept"))


class Server(Database):
    """A database of this process on a server that others may use."""

    local: ClassVar[str | None] = None
    """The URL of a server that this machine may run."""

    def __init__(self, server: str | sa.URL, name: str | None = None) -> None:
        self.name_on_server = name or f"sqlaudit_test_{uuid.uuid4().hex[:12]}"
        self.url = sa.make_url(server).set(database=self.name_on_server)
        self.server = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.StaticPool)

    def create(self) -> Self:
        raise NotImplementedError

    @staticmethod
    def session_id(connection: sa.Connection) -> int:
        """Return the number that the server gives a session."""
        raise NotImplementedError

    def waiting(self) -> set[int]:
        """Return the sessions in the database that wait for a lock until another session releases it."""
        raise NotImplementedError

    @contextlib.contextmanager
    def administration(self) -> Iterator[sa.Connection]:
        with self.server.connect() as connection:
            yield connection


class PostgreSQL(Server):
    name = "postgresql"
    capabilities = frozenset(
        {
            "arrays",
            "block_counts",
            "cheap_temporary_tables",
            "concurrent_writes",
            "cyclic_cascades",
            "deferred_constraints",
            "enum_types",
            "identity_always",
            "now_of_the_transaction",
            "on_conflict",
            "partial_indexes",
            "partitions",
            "row_values_in_set",
            "rules",
            "serial_columns",
            "two_phase",
            "update_returning",
            "writing_ctes",
        }
        | ({"virtual_columns"} if SQLALCHEMY_2_1 else set())
    )
    drivers = ("psycopg", "psycopg2", "pg8000", "asyncpg", "psycopg_async")
    async_drivers = ("asyncpg", "psycopg")

    def __init__(self, server: str | sa.URL, name: str | None = None) -> None:
        super().__init__(server, name)
        self.inside = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sa.StaticPool)

    def url_for(self, driver: str) -> sa.URL:
        url = super().url_for(driver)
        host = url.query.get("host")
        if driver != "pg8000" or host is None:
            return url
        socket = f"{host}/.s.PGSQL.{url.port or url.query.get('port', 5432)}"
        return url.set(query={"unix_sock": socket})

    def create(self) -> Self:
        with self.administration() as connection:
            connection.execute(sa.DDL(f"CREATE DATABASE {self.name_on_server}"))
        return self

    @staticmethod
    def session_id(connection: sa.Connection) -> int:
        return connection.connection.dbapi_connection.info.backend_pid

    def waiting(self) -> set[int]:
        statement = sa.text(_BLOCKERS)
        with self.administration() as connection:
            rows = connection.execute(statement, {"name": self.name_on_server}).all()
        blockers = {session: set(others) for session, others in rows if others}
        going = {session for session, _ in rows} - blockers.keys()
        for _ in blockers:  # the server ends a deadlock soon: sessions that wait for one are not counted
            going |= {session for session, others in blockers.items() if others & going}
        return blockers.keys() & going

    def end_sessions(self) -> None:
        with self.inside.connect() as connection:
            connection.execute(sa.text(_END_SESSIONS))

    def clear(self) -> None:
        self.end_sessions()
        with self.inside.connect() as connection:
            connection.execute(sa.text(_DROP_SCHEMAS))
            for schema in ("public", self.other_schema):
                connection.execute(sa.schema.CreateSchema(schema))

    def empty(self, metadata: sa.MetaData) -> None:
        self._run(*(f"DELETE FROM {name}" for name in self._names(metadata)), _RESTART_SEQUENCES)

    def _keep(self, metadata: sa.MetaData) -> None:
        copies = [f"CREATE TABLE {_KEPT}.{name} AS TABLE {name}" for name in self._names(metadata)]
        self._run(f"CREATE SCHEMA {_KEPT}", *copies, _KEEP_SEQUENCES)

    def _put_back(self, metadata: sa.MetaData) -> None:
        self._run(*(f"INSERT INTO {name} TABLE {_KEPT}.{name}" for name in self._names(metadata)), _SET_SEQUENCES)

    def _run(self, *statements: str) -> None:
        with self.inside.connect() as connection:
            as_replica = "SET session_replication_role = replica"  # disables foreign keys and triggers
            connection.exec_driver_sql("; ".join([as_replica, *statements]).replace("%", "%%"))

    def drop(self) -> None:
        self.inside.dispose()
        with self.administration() as connection:
            connection.execute(sa.DDL(f"DROP DATABASE {self.name_on_server} WITH (FORCE)"))
        self.server.dispose()


_BLOCKERS = """
SELECT pid, CASE WHEN wait_event_type = 'Lock' THEN pg_blocking_pids(pid) END FROM pg_stat_activity
WHERE datname = :name
"""
_END_SESSIONS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_DROP_SCHEMAS = """
DO $$
DECLARE name text;
BEGIN
  FOR name IN SELECT nspname FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
  LOOP
    EXECUTE format('DROP SCHEMA %I CASCADE', name);
  END LOOP;
END $$
"""
_RESTART_SEQUENCES = """
SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)
FROM pg_sequences WHERE last_value IS NOT NULL
"""
_KEPT = "sqlaudit_kept"
_KEEP_SEQUENCES = f"""
CREATE TABLE {_KEPT}.sequences AS SELECT * FROM pg_sequences WHERE last_value IS NOT NULL
"""
_SET_SEQUENCES = f"""
SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, last_value) FROM {_KEPT}.sequences
"""


class MariaDB(Server):
    name = "mariadb"
    capabilities = frozenset(
        {
            "case_insensitive",
            "compound_statements",
            "concurrent_writes",
            "counts_of_rows_read",
            "datetimes_in_seconds",
            "limited_updates",
            "now_in_seconds",
            "streamed_writes",
            "two_phase",
            "updates_of_two_tables",
            "virtual_columns",
        }
    )
    drivers = ("pymysql", "mysqldb", "mariadbconnector", "aiomysql", "asyncmy")
    async_drivers = ("aiomysql",)
    local = f"mariadb+pymysql://root@127.0.0.1:3306/?{WITHOUT_TLS}"

    def __init__(self, server: str | sa.URL, name: str | None = None) -> None:
        super().__init__(server, name)
        self.other_schema = f"{self.name_on_server}_other"
        self.kept = f"{self.name_on_server}_kept"
        self.schemas = [self.name_on_server, self.other_schema, self.kept]

    def url_for(self, driver: str) -> sa.URL:
        return super().url_for(driver).difference_update_query(["ssl_disabled"])  # only PyMySQL has this option

    def create(self) -> Self:
        with self.administration() as connection:
            for schema in self.schemas:
                connection.execute(sa.DDL(f"CREATE DATABASE {schema} CHARACTER SET utf8mb4"))
        return self

    @staticmethod
    def session_id(connection: sa.Connection) -> int:
        return connection.connection.dbapi_connection.thread_id()

    def waiting(self) -> set[int]:
        # information_schema.innodb_trx may be a tenth of a second old.
        sessions = sa.text("SELECT id FROM information_schema.processlist WHERE db = :name")
        with self.administration() as connection:
            _, _, status = connection.execute(sa.text("SHOW ENGINE INNODB STATUS")).one()
            ours = connection.scalars(sessions, {"name": self.name_on_server}).all()
        _, _, transactions = status.rpartition("\nTRANSACTIONS\n")  # the section after the latest deadlock
        return {int(id) for id in _LOCK_WAIT.findall(transactions)} & set(ours)

    def clear(self) -> None:
        self._drop()
        self.create()

    def empty(self, metadata: sa.MetaData) -> None:
        numbered = sa.text(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = :name AND auto_increment > 1"
        )
        with self.administration() as connection:
            connection.exec_driver_sql("SET foreign_key_checks = 0")
            connection = connection.execution_options(schema_translate_map={None: self.name_on_server})
            for table in metadata.tables.values():
                connection.execute(table.delete())
            quote = connection.dialect.identifier_preparer.quote
            for name in connection.scalars(numbered, {"name": self.name_on_server}).all():
                table = f"{quote(self.name_on_server)}.{quote(name)}"
                connection.exec_driver_sql(f"ALTER TABLE {table} AUTO_INCREMENT = 1")

    def _keep(self, metadata: sa.MetaData) -> None:
        self._copy("CREATE TABLE {kept}.{name} AS SELECT * FROM {own}.{name}", metadata)

    def _put_back(self, metadata: sa.MetaData) -> None:
        self._copy("INSERT INTO {own}.{name} SELECT * FROM {kept}.{name}", metadata)

    def _copy(self, statement: str, metadata: sa.MetaData) -> None:
        with self.administration() as connection:
            connection.exec_driver_sql("SET foreign_key_checks = 0")
            for table in metadata.tables.values():
                name = connection.dialect.identifier_preparer.quote(table.name)
                connection.exec_driver_sql(statement.format(kept=self.kept, own=self.name_on_server, name=name))

    def drop(self) -> None:
        self._drop()
        self.server.dispose()

    def _drop(self) -> None:
        self.end_sessions()
        with self.administration() as connection:
            for schema in self.schemas:
                connection.execute(sa.DDL(f"DROP DATABASE {schema}"))

    def end_sessions(self) -> None:
        sessions = sa.text(
            "SELECT id FROM information_schema.processlist WHERE db IN :schemas AND id <> connection_id()"
        ).bindparams(sa.bindparam("schemas", self.schemas, expanding=True))
        with self.administration() as connection:
            for session in connection.scalars(sessions).all():
                with contextlib.suppress(sa.exc.OperationalError):  # the session has just ended
                    connection.execute(sa.DDL(f"KILL {session}"))


_LOCK_WAIT = re.compile(r"^LOCK WAIT .*\n.*thread id (\d+)", re.MULTILINE)


DATABASES: dict[str, type[Database]] = {kind.name: kind for kind in (SQLite, PostgreSQL, MariaDB)}
CAPABILITIES = frozenset().union(*(kind.capabilities for kind in DATABASES.values()))
