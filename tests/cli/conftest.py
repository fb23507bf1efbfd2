"""Where do commands run? In a directory with models, on a database with a history, at 80 columns in UTC."""

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from warehouse_history import fill, models


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty directory, at 80 columns, in UTC, as the user ops."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LOGNAME", "ops")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    gc.collect()
    gc.disable()  # what it finds of other tests would be printed among the output of the commands
    yield
    gc.enable()
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def warehouse(terminal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the URL of a database with the history of the page on the command line, and set it as the default."""
    url = f"sqlite:///{tmp_path / 'warehouse.db'}"
    monkeypatch.setenv("SQLAUDIT_URL", url)
    with models(tmp_path) as module:
        engine = sa.create_engine(url)
        fill(engine, module)
        engine.dispose()
        yield url
