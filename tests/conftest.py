"""Fixtures: every test that takes `engine`, `async_engine` or `database` runs on every database.

``SQLAUDIT_TEST_DATABASES=sqlite,postgresql`` restricts a run. ``SQLAUDIT_POSTGRESQL_URL`` and
``SQLAUDIT_MARIADB_URL`` name servers to use; the suite works in databases of its own there, and
needs ``max_prepared_transactions`` above 0 on PostgreSQL.
With ``SQLAUDIT_REQUIRE_ALL_DATABASES=1`` a database that is missing fails its tests.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncEngine

from databases import (
    CAPABILITIES,
    DATABASES,
    Database,
    MariaDB,
    PostgreSQL,
    SQLite,
    start_postgresql,
    stop_postgresql,
)
from sqlaudit import config, context, hooks

pytest.register_assert_rewrite("invariants", "lifecycle", "overlap", "reference")

SCRATCH = pytest.StashKey[Path]()

# Times depend on the database and the machine; no test asserts one.
hypothesis.settings.register_profile("sqlaudit", deadline=None)
hypothesis.settings.load_profile("sqlaudit")


# One directory and one PostgreSQL server for a run, owned by the process that began it: workers
# of pytest-xdist share them, and a worker that dies leaves nothing behind.


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    scratch = worker["scratch"] if worker else tempfile.mkdtemp(prefix="sqlaudit-")
    config.stash[SCRATCH] = Path(scratch)
    gc.set_threshold(50_000, 20, 50)  # each test compiles its statements anew, and nearly all of them stay


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["scratch"] = str(node.config.stash[SCRATCH])


def pytest_unconfigure(config: pytest.Config) -> None:
    if SCRATCH in config.stash and not hasattr(config, "workerinput"):
        stop_postgresql(config.stash[SCRATCH] / "postgresql")
        shutil.rmtree(config.stash[SCRATCH], ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" not in metafunc.fixturenames:
        return
    needed = {name for mark in metafunc.definition.iter_markers("requires") for name in mark.args}
    if unknown := needed - CAPABILITIES:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: no database has {unknown}")
    selected = os.environ.get("SQLAUDIT_TEST_DATABASES", ",".join(DATABASES)).split(",")
    if unknown := set(selected) - set(DATABASES):
        raise pytest.UsageError(f"SQLAUDIT_TEST_DATABASES: {unknown} are none of {list(DATABASES)}")
    able = [DATABASES[name] for name in selected if needed <= DATABASES[name].capabilities]
    asynchronous = "async_engine" in metafunc.fixturenames
    targets = [
        pytest.param((kind.name, driver), id=f"{kind.name}+{driver}" if driver else kind.name)
        for kind in able
        for driver in (kind.async_drivers if asynchronous else [None])
    ]
    if not targets:
        reason = f"none of the selected databases has {', '.join(sorted(needed))}"
        targets = [pytest.param(None, marks=pytest.mark.skip(reason), id="none")]
    metafunc.parametrize("target", targets, indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> tuple[str, str | None]:
    return request.param


@pytest.fixture
def database(target: tuple[str, str | None], request: pytest.FixtureRequest) -> Iterator[Database]:
    """One of the databases, empty."""
    database = request.getfixturevalue(f"{target[0]}_database")
    yield database
    database.clean()


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    engine = database.create_engine()
    yield engine
    engine.dispose()


@pytest.fixture
def async_engine(database: Database, target: tuple[str, str | None]) -> AsyncEngine:
    """An engine for each asynchronous driver; use it in ``asyncio.run``, as often as you like."""
    return database.create_async_engine(target[1])


@pytest.fixture
def base() -> Iterator[type[Any]]:
    """A declarative base of a test's own."""

    class Base(orm.DeclarativeBase):
        pass

    yield Base
    Base.registry.dispose()


@pytest.fixture
def sessions(engine: sa.Engine) -> Iterator[orm.sessionmaker[orm.Session]]:
    """Sessions that record; the test creates its tables."""
    maker = orm.sessionmaker(engine)
    hooks.register_hooks(maker)
    yield maker
    hooks.unregister_hooks(maker)


@pytest.fixture(scope="session")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = SQLite(tmp_path_factory.mktemp("sqlite"))
    yield database
    database.drop()


@pytest.fixture(scope="session")
def postgresql_database(pytestconfig: pytest.Config) -> Iterator[Database]:
    url = os.environ.get("SQLAUDIT_POSTGRESQL_URL")
    database = PostgreSQL(sa.make_url(url) if url else start_postgresql(pytestconfig.stash[SCRATCH] / "postgresql"))
    yield database
    database.drop()


@pytest.fixture(scope="session")
def mariadb_database() -> Iterator[Database]:
    url = os.environ.get("SQLAUDIT_MARIADB_URL")
    try:
        database = MariaDB(sa.make_url(url or "mariadb+pymysql://root@127.0.0.1:3306"))
    except sa.exc.OperationalError as error:
        if url or os.environ.get("SQLAUDIT_REQUIRE_ALL_DATABASES"):
            raise
        pytest.skip(f"SQLAUDIT_MARIADB_URL is not set, and no local server: {error.orig}")
    yield database
    database.drop()


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves hooks registered; end its configuration and audit context."""
    yield
    config.clear_config()
    context.clear_audit_context()
    leaked = hooks.registered_targets()
    for target in leaked:
        hooks.unregister_hooks(target)
    assert not leaked, f"hooks are still registered on {leaked}"
