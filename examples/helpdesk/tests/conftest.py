"""Each test begins with a database that the migrations have made, and with ana, an admin, and ben."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("DATABASE_URL", f"sqlite+aiosqlite:///{tempfile.mkdtemp()}/test.db")  # before the application

from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from helpdesk import seed
from helpdesk.app import app

pytest_plugins = ["sqlaudit.testing.pytest"]

BEN = {"X-Token": "token-of-ben"}
ALEMBIC = Config(Path(__file__).parent.parent / "alembic.ini")


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    command.upgrade(ALEMBIC, "head")
    asyncio.run(seed.main())
    yield
    command.downgrade(ALEMBIC, "base")


@pytest.fixture
def client(tables: None) -> Iterator[TestClient]:
    """Send requests as ana, or as ben: ``client.get("/tickets", headers=BEN)``."""
    with TestClient(app, headers={"X-Token": "token-of-ana"}) as client:
        yield client
