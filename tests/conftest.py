"""How a run of the tests is made: which databases, on which servers, by which worker; fixtures.py has the fixtures.

``SQLAUDIT_TEST_DATABASES=sqlite,postgresql`` restricts a run. ``SQLAUDIT_POSTGRESQL_URL`` and ``SQLAUDIT_MARIADB_URL``
name servers to use instead of those of the run (servers.py): it works in databases of its own there, as a superuser,
and needs ``max_prepared_transactions`` above 0 on PostgreSQL.
With ``SQLAUDIT_REQUIRE_ALL_DATABASES=1`` a database that is missing fails its tests.
"""

import gc
import os
import subprocess
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

import fixtures
import servers
from databases import CAPABILITIES, DATABASES
from effort import EFFORT

pytest.register_assert_rewrite("invariants", "lifecycle", "overlap", "reference")

DIRECTORY = pytest.StashKey[Path]()
CLEANER = pytest.StashKey[subprocess.Popen[bytes]]()

# Times depend on the database and the machine; no test asserts one.
hypothesis.settings.register_profile("sqlaudit", deadline=None)
hypothesis.settings.load_profile("sqlaudit")


# One directory and one server of each kind for a run: workers of pytest-xdist share them.


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(fixtures, "sqlaudit-fixtures")  # pytest has a plugin of that name
    gc.set_threshold(50_000, 20, 50)  # much of what a test makes stays: classes, and statements that were compiled
    if worker := getattr(config, "workerinput", None):
        config.stash[DIRECTORY] = Path(worker["directory"])
    else:
        config.stash[DIRECTORY] = servers.create_directory()
        config.stash[CLEANER] = servers.start_cleaner(config.stash[DIRECTORY])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["directory"] = str(node.config.stash[DIRECTORY])


def pytest_unconfigure(config: pytest.Config) -> None:
    if cleaner := config.stash.get(CLEANER, None):
        servers.stop_cleaner(cleaner)


@pytest.fixture(scope="session")
def run_directory(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.stash[DIRECTORY]


class ByModuleAndDatabase(LoadScopeScheduling):
    """Gives a worker the tests of a module on a database together, so that their tables are created once."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        parameters = {each.partition("+")[0] for each in test.partition("[")[2].rstrip("]").split("-")}
        return f"{module} {next((name for name in DATABASES if name in parameters), '')}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log) -> ByModuleAndDatabase:
    return ByModuleAndDatabase(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start one more than there are cores, for many tests wait for a database; and none for a test or two."""
    if config.args and all("::" in argument for argument in config.args):
        return 0
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 1


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
    asynchronous, each_driver = ("async_engine" in metafunc.fixturenames, "by_driver" in metafunc.fixturenames)
    targets = [
        pytest.param((kind.name, driver), id=f"{kind.name}+{driver}" if driver else kind.name)
        for kind in able
        for driver in (kind.async_drivers if asynchronous else kind.drivers if each_driver else [None])
    ]
    if not targets:
        reason = f"none of the selected databases has {', '.join(sorted(needed))}"
        targets = [pytest.param(None, marks=pytest.mark.skip(reason), id="none")]
    metafunc.parametrize("target", targets, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run each case of a test that is marked ``spread`` on one of its databases, by turns."""
    tests = defaultdict[str, dict[Any, list[pytest.Item]]](lambda: defaultdict(list))
    for item in items:
        if EFFORT == 1 and item.get_closest_marker("spread") and "target" in getattr(item, "fixturenames", ()):
            case = tuple(id(value) for name, value in item.callspec.params.items() if name != "target")
            tests[item.nodeid.partition("[")[0]][case].append(item)
    elsewhere = set[pytest.Item]()
    for name, cases in tests.items():
        for turn, on_each in enumerate(cases.values(), zlib.crc32(name.encode())):
            elsewhere.update(item for place, item in enumerate(on_each) if place != turn % len(on_each))
    config.hook.pytest_deselected(items=list(elsewhere))
    items[:] = [item for item in items if item not in elsewhere]
