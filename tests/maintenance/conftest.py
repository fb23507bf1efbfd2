"""Empty databases, for tests that make databases."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa


@pytest.fixture
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], sa.URL]]:
    """A function that returns the URL of an empty database of a kind: another one with each call."""
    made: list[Any] = []

    def create(kind: str) -> sa.URL:
        if kind == "sqlite":
            made.append(None)
            return sa.URL.create("sqlite", database=str(tmp_path / f"empty{len(made)}.db"))
        server = request.getfixturevalue(f"{kind}_database")
        made.append(type(server)(server.server.url).create())
        return made[-1].url

    yield create
    for database in filter(None, made):
        database.drop()
