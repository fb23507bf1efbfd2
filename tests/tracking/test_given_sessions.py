"""Functions take a session and a model; one that is given in the place of the other is named."""

import asyncio
from collections.abc import Iterator
from inspect import isawaitable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from sqlaudit import (
    QueryError,
    SQLAuditError,
    TrackingError,
    as_of,
    backfill,
    blame,
    changes_page,
    changesets,
    compare,
    compare_page,
    diff,
    get_resource_changes,
    history_of,
    record_changes,
    restore,
    stream_resource_changes,
    track_table,
    versions_of,
)
from sqlaudit.testing import assert_recorded


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)


CALLS: dict[Any, tuple[Any, ...]] = {
    get_resource_changes: ("session", Customer),
    stream_resource_changes: ("session", Customer),
    versions_of: (Customer, "session", 1),
    changes_page: (Customer, "session"),
    changesets: (Customer,),
    blame: (Customer, "session", 1),
    diff: (Customer, "session", 1, 1, 2),
    compare: (Customer, "session", 1, 2),
    compare_page: (Customer, "session", 1, 2),
    restore: (Customer, "session", 1),
    record_changes: (Customer, "session"),
    backfill: (Customer, "session"),
    assert_recorded: (Customer, "session", 1),
    as_of: ("session", 1),
    history_of: ("session",),
}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    "session",
    [
        Session(),
        scoped_session(sessionmaker()),
        AsyncSession(),
        async_scoped_session(async_sessionmaker(), scopefunc=lambda: 1),
    ],
    ids=lambda session: type(session).__name__,
)
def test_arguments_in_the_wrong_order_are_named(function: Any, session: Any) -> None:
    async def run() -> None:
        result = function(*(session if argument == "session" else argument for argument in CALLS[function]))
        if isawaitable(result):
            await result
        elif isinstance(result, Iterator):
            list(result)

    with pytest.raises(
        (QueryError, TrackingError), match=r"is given where a (session|model) belongs\. Give a"
    ) as error:
        asyncio.run(run())
    assert isinstance(error.value, SQLAuditError)
