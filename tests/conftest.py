"""On which databases, servers and workers does a test run? The fixtures are in fixtures.py.

``SQLAUDIT_TEST_DATABASES=sqlite,postgresql`` restricts a run. ``SQLAUDIT_POSTGRESQL_URL`` and ``SQLAUDIT_MARIADB_URL``
name servers to use instead of the run's own servers (servers.py). The run creates its own databases there. It has to be
a superuser, and on PostgreSQL ``max_prepared_transactions`` has to be above 0.
With ``SQLAUDIT_REQUIRE_ALL_DATABASES=1`` tests fail if their database is missing. With ``SQLAUDIT_TEST_CASES=2`` each
test runs at most two of its cases, on whichever databases.
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

pytest.register_assert_rewrite("desk", "invariants", "lifecycle", "notes", "overlap", "reference")

DIRECTORY = pytest.StashKey[Path]()
CASES = int(os.environ.get("SQLAUDIT_TEST_CASES", "0"))
CLEANER = pytest.StashKey[subprocess.Popen[bytes]]()

# Times depend on the database and the machine; no test asserts one.
hypothesis.settings.register_profile("sqlaudit", deadline=None)
hypothesis.settings.load_profile("sqlaudit")


# The workers of pytest-xdist share one directory and one server of each kind.


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(fixtures, "sqlaudit-fixtures")  # pytest has a plugin of that name
    gc.set_threshold(200_000, 20, 50)  # much of what a test creates stays alive: classes and compiled statements
    if worker := getattr(config, "workerinput", None):
        config.stash[DIRECTORY] = Path(worker["directory"])
    else:
        config.stash[DIRECTORY] = servers.create_directory()
        config.stash[CLEANER] = servers.start_cleaner(config.stash[DIRECTORY])


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules and tests stay alive: later collections need not look at them


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:
    node.workerinput["directory"] = str(node.config.stash[DIRECTORY])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the directories whose files tests have kept."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    properties = [each for report in reports for each in getattr(report, "user_properties", ())]
    for directory in sorted({value for name, value in properties if name == "kept"}):
        terminalreporter.write_line(f"kept: {directory}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if cleaner := config.stash.get(CLEANER, None):
        servers.stop_cleaner(cleaner)


@pytest.fixture(scope="session")
def run_directory(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.stash[DIRECTORY]


class ByModuleAndDatabase(LoadScopeScheduling):
    """Gives all tests of a module on a database to one worker, so that their tables are created once."""

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        parameters = {each.partition("+")[0] for each in test.partition("[")[2].rstrip("]").split("-")}
        return f"{module} {next((name for name in DATABASES if name in parameters), '')}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log) -> ByModuleAndDatabase:
    return ByModuleAndDatabase(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Start one worker more than there are cores, because many tests wait for a database; none for single tests."""
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


def _is_spread(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("spread")
    return mark is not None and mark.args != (False,)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run each case of a test that is marked ``spread`` on one of its databases, in turn."""
    tests = defaultdict[str, dict[Any, list[pytest.Item]]](lambda: defaultdict(list))
    for item in items:
        if EFFORT == 1 and _is_spread(item) and "target" in getattr(item, "fixturenames", ()):
            case = tuple(id(value) for name, value in item.callspec.params.items() if name != "target")
            tests[item.nodeid.partition("[")[0]][case].append(item)
    unwanted = set[pytest.Item]()
    for name, cases in tests.items():
        for turn, on_each in enumerate(cases.values(), zlib.crc32(name.encode())):
            unwanted.update(item for place, item in enumerate(on_each) if place != turn % len(on_each))
    if CASES:
        unwanted |= _beyond_cases([item for item in items if item not in unwanted])
    config.hook.pytest_deselected(items=list(unwanted))
    items[:] = [item for item in items if item not in unwanted]


def _beyond_cases(items: list[pytest.Item]) -> set[pytest.Item]:
    """Return the items beyond the cases of a test that are wanted; they are chosen as if at random."""
    by_test = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        by_test[item.nodeid.partition("[")[0]].append(item)
    beyond = set[pytest.Item]()
    for cases in by_test.values():
        beyond.update(sorted(cases, key=lambda item: zlib.crc32(item.nodeid.encode()))[CASES:])
    return beyond
