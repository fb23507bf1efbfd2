"""What can a test use? A database, the tables and rows in it, and sessions that record.

The database has the tables of the module's ``Base``, which are empty. It has no tables if the test takes `base` or is
marked ``no_tables``. The tables of a module are created once (`databases.Database`).
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, sessionmaker

import servers
from clock import Clock
from databases import Database, MariaDB, PostgreSQL, Server, SQLite
from registering import recording
from sqlaudit import (
    SQLAuditConfig,
    clear_audit_context,
    clear_config,
    hooks,
    register_hooks,
    set_config,
    unregister_hooks,
)

# --- databases --------------------------------------------------------------------------------------------------


@pytest.fixture
def target(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    return request.param


@pytest.fixture
def database(target: tuple[str, str | None], request: pytest.FixtureRequest) -> Database:
    """A database, with the tables that the test needs; the test runs once for each database."""
    database = request.getfixturevalue(f"{target[0]}_database")
    needed = {"base", "tables", "happened"} & {*request.fixturenames}
    is_bare = needed == {"base"} or request.node.get_closest_marker("no_tables") is not None
    base = None if is_bare else getattr(request.module, "Base", None)
    if request.node.get_closest_marker("new_tables"):
        database.hold(None)
    assert base or not needed - {"base"}, "the module has no Base whose tables the test could find"
    database.hold(base and base.metadata, request.module.happen if "happened" in needed else None)
    return database


@pytest.fixture
def tables(database: Database) -> None:
    """The tables of the module's ``Base``, for a test that also takes `base`."""


@pytest.fixture
def happened(database: Database) -> Any:
    """The result of the module's function ``happen``; the rows that it wrote are in the database."""
    assert database.told is not None
    return database.told.result


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    engine = database.create_engine()
    yield engine
    engine.dispose()


@pytest.fixture
def async_engine(database: Database, target: tuple[str, str | None]) -> AsyncEngine:
    """An engine for each asynchronous driver; it may be used in more than one ``asyncio.run``."""
    return database.create_async_engine(target[1])


@pytest.fixture
def by_driver(database: Database, target: tuple[str, str]) -> Iterator[Callable[[Callable[[Session], Any]], Any]]:
    """A function for each installed driver: it calls a function with a session that records, synchronously."""
    try:
        engine: Any = database.create_driver_engine(target[1])
    except ImportError as error:
        pytest.skip(f"{target[1]}: {error}")
    is_async = isinstance(engine, AsyncEngine)
    sync_engine = engine.sync_engine if is_async else engine

    def run(work: Callable[[Session], Any]) -> Any:
        if not is_async:
            with sessions() as session:
                return work(session)

        async def run_async() -> Any:
            async with AsyncSession(engine, sync_session_class=sessions.class_) as session:
                return await session.run_sync(work)

        return asyncio.run(run_async())

    with recording(sync_engine) as sessions:
        yield run
    sync_engine.dispose()


@pytest.fixture(scope="session")
def sqlite_database(run_directory: Path) -> Iterator[Database]:
    database = SQLite(Path(tempfile.mkdtemp(prefix="sqlite-", dir=run_directory)))
    yield database
    database.drop()


@pytest.fixture(scope="session")
def postgresql_database(run_directory: Path) -> Iterator[Database]:
    yield from _on_a_server(PostgreSQL, run_directory, servers.start_postgresql)


@pytest.fixture(scope="session")
def mariadb_database(run_directory: Path) -> Iterator[Database]:
    yield from _on_a_server(MariaDB, run_directory, servers.start_mariadb)


def _on_a_server(kind: type[Server], directory: Path, start: Callable[[Path], str]) -> Iterator[Database]:
    """Give a database on the server that the environment names, or else the run's own, or else a local one."""
    variable = f"SQLAUDIT_{kind.name.upper()}_URL"
    given = os.environ.get(variable)
    database, reason = None, ""
    try:
        database = _created(kind, directory, start, given)
    except (servers.ServerError, sa.exc.SQLAlchemyError, ImportError) as error:
        reason = f"{kind.name}: {_in_one_line(error)} ({variable} is {'set' if given else 'not set'})"
    if database is None:
        if given or os.environ.get("SQLAUDIT_REQUIRE_ALL_DATABASES"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    yield database
    database.drop()


def _created(kind: type[Server], directory: Path, start: Callable[[Path], str], given: str | None) -> Server:
    if given is None:
        try:
            return kind(start(directory)).create()
        except servers.ServerError:
            if kind.local is None:
                raise
            with contextlib.suppress(sa.exc.OperationalError):  # there is no local server
                return _created(kind, directory, start, kind.local)
            raise
    database = kind(given)
    servers.note_database(directory, kind.name, given, database.name_on_server)
    return database.create()


def _in_one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())


# --- models, tables and sessions --------------------------------------------------------------------------------


@pytest.fixture
def base() -> Iterator[type[Any]]:
    """A declarative base for one test; the test creates its tables."""

    class Base(orm.DeclarativeBase):
        pass

    yield Base
    Base.registry.dispose()


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> Clock:
    """A `Clock` that sqlaudit uses; it continues after the story, if there is one."""
    clock = Clock()
    if "happened" in request.fixturenames:
        clock.now = request.getfixturevalue("database").told.end
    set_config(SQLAuditConfig(clock=clock))
    return clock


@pytest.fixture
def sessions(engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    """A sessionmaker whose sessions record."""
    with recording(engine) as maker:
        yield maker


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """A session that records."""
    with sessions() as session:
        yield session


@pytest.fixture
def recorded_engine(engine: sa.Engine, sessions: sessionmaker[Session]) -> Iterator[sa.Engine]:
    """The engine of `sessions`, whose connections record outside a session, too."""
    register_hooks(sessions, engine=engine)
    yield engine
    unregister_hooks(sessions, engine=engine)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves hooks registered; reset the configuration and the audit context."""
    yield
    clear_config()
    clear_audit_context()
    leaked = hooks.registered_targets()
    for target in leaked:
        unregister_hooks(target)
    assert not leaked, f"hooks are still registered on {leaked}"
