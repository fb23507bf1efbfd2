"""A program that tracks nothing notices nothing of the hooks, as SQLAlchemy's own tests of its ORM show.

They are downloaded, as source of the version that is installed. With ``SQLAUDIT_TEST_EFFORT=10`` all of them run.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from effort import EFFORT

pytestmark = pytest.mark.slow

PART = [
    "dml/test_bulk.py",
    "dml/test_bulk_statements.py",
    "test_events.py",
    "test_session.py",
    "test_unitofwork.py",
]
NOTICED = {
    # They fire an event without the arguments that it has, to whoever listens.
    "DeferredMapperEventsTest::test_deferred_instrument_event",
    "DeferredMapperEventsTest::test_deferred_instrument_event_subclass_no_propagate",
    "DeferredMapperEventsTest::test_deferred_instrument_event_subclass_propagate",
    "DeferredMapperEventsTest::test_instrument_event_auto_remove",
    "DeferredMapperEventsTest::test_isolation_instrument_event",
    "SessionEventsTest::test_sessionmaker_gen_after_session_listen",
}
"""Tests that pass without the hooks only, and why programs are not like them."""

HANGS = 7200
"""The seconds after which a program is taken to hang."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONWARNINGS"))}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The directory of SQLAlchemy's source, with its tests, which the wheel lacks."""
    python = tmp_path / "pip" / "bin" / "python"  # the environment of these tests may lack pip
    source = f"sqlalchemy=={sa.__version__}"
    for command in (
        [sys.executable, "-m", "venv", tmp_path / "pip"],
        [python, "-m", "pip", "download", "--no-deps", "--no-binary", "sqlalchemy", source],
    ):
        ran = run(command, tmp_path, DISABLE_SQLALCHEMY_CEXT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
        if ran.returncode:
            pytest.skip(f"SQLAlchemy's source cannot be downloaded: {ran.stdout.strip().rpartition(chr(10))[2]}")
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as source_files:
        source_files.extractall(tmp_path, filter="data")
    return tmp_path / archive.name.removesuffix(".tar.gz")


def run(command: Sequence[str | Path], directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program. Its output and its errors are in ``stdout``."""
    return subprocess.run(
        command,
        cwd=directory,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANGS,
    )


def failed(suite: Path, *arguments: str) -> tuple[set[str], str]:
    """Run tests of the suite with the SQLAlchemy that is installed. Return the failed ones, and what was printed."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), ENVIRONMENT.get("PYTHONPATH")]))
    command = [sys.executable, "-s", "-m", "pytest", "-q", "-n", "0", "--maxfail=0", "--cache-clear"]
    ran = run([*command, *arguments], suite, PYTHONPATH=path)  # with -s, SQLAlchemy is not imported from its source
    assert ran.returncode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), ran.stdout
    cache = suite / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return set(json.loads(cache.read_text()) if cache.exists() else ()), ran.stdout


def test_sqlalchemys_own_tests_pass_with_hooks_as_without(suite: Path) -> None:
    paths = ["test/orm"] if EFFORT >= 10 else [f"test/orm/{name}" for name in PART]
    with_hooks, output = failed(suite, *paths, "-p", "hooks_in_another_suite")
    assert "sqlaudit still records" in output, output
    suspects = {test for test in with_hooks if test.partition("::")[2].partition("[")[0] not in NOTICED}
    without_hooks = set[str]()
    if suspects:
        without_hooks, _ = failed(suite, *sorted({test.partition("::")[0] for test in suspects}))
    assert suspects - without_hooks == set(), output
