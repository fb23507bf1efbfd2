"""What type checkers know of the helpers for tests."""

from datetime import datetime
from typing import assert_type

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from sqlaudit.testing import Clock, changeset_per_commit


def a_connection_keeps_its_type(connection: Connection, asynchronous: AsyncConnection) -> None:
    assert_type(changeset_per_commit(connection), Connection)
    assert_type(changeset_per_commit(asynchronous), AsyncConnection)


def a_clock_gives_instants() -> None:
    with Clock() as clock:
        assert_type(clock, Clock)
        assert_type(clock.move(days=1, hours=0.5), datetime)
        assert_type(clock.now, datetime)
