"""Where do commands run? In a directory with models, on a database with a history, at 80 columns in UTC."""

import gc
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy as sa

from warehouse_history import fill, models


@pytest.fixture(scope="module", autouse=True)
def quiet_collector() -> Iterator[None]:
    """Keep the collector off: what it finds of other tests would be printed among the output of the commands."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty directory, at 80 columns, in UTC, as the user ops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LOGNAME", "ops")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ModuleType]]:
    """Give a directory with the models of the page on the command line and a database with its history, to copy."""
    directory = tmp_path_factory.mktemp("filled")
    with models(directory) as module:
        engine = sa.create_engine(f"sqlite:///{directory / 'warehouse.db'}")
        fill(engine, module)
        engine.dispose()
        yield directory, module


@pytest.fixture
def module(terminal: None, filled: tuple[Path, ModuleType], tmp_path: Path) -> ModuleType:
    """Give the models of the page, which commands find in the working directory."""
    directory, module = filled
    for name in ("warehouse.py", "pyproject.toml"):
        shutil.copy(directory / name, tmp_path)
    return module


@pytest.fixture
def warehouse(
    module: ModuleType, filled: tuple[Path, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Give the URL of a database with the history of the page, and set it as the default."""
    shutil.copy(filled[0] / "warehouse.db", tmp_path)
    url = f"sqlite:///{tmp_path / 'warehouse.db'}"
    monkeypatch.setenv("SQLAUDIT_URL", url)
    return url
