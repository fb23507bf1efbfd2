"""A warning names the line of the user's code that led to it, however deep inside the cause is."""

import asyncio
import linecache
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit import (
    SQLAuditWarning,
    as_of,
    get_resource_changes,
    register_hooks,
    stream_resource_changes,
    track_table,
    unregister_hooks,
    versions_of,
)


class Base(DeclarativeBase):
    pass


@track_table()
class Row(Base):
    __tablename__ = "rows_to_warn_of"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))


BY_HAND = sa.text("UPDATE rows_to_warn_of SET name = 'x'")
NAIVE: Any = datetime(2020, 1, 1)  # noqa: DTZ001  # what is warned of


def execute(session: Session) -> None:
    session.execute(BY_HAND)  # here


def read(session: Session) -> None:
    get_resource_changes(Row, session, filter_date_range=(NAIVE, None))  # here


def stream(session: Session) -> None:
    list(stream_resource_changes(Row, session, filter_date_range=(NAIVE, None)))  # here


def make_a_select(session: Session) -> None:
    session.scalars(as_of(Row, NAIVE))  # here


def flush_without_hooks(session: Session) -> None:
    with Session(session.get_bind()) as other:
        other.add(Row())
        other.flush()  # here


def begin_without_hooks(session: Session) -> None:
    with sessionmaker(session.get_bind()).begin() as other:  # here
        other.add(Row())


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    "warned", [execute, read, stream, make_a_select, flush_without_hooks, begin_without_hooks], ids=lambda x: x.__name__
)
def test_a_warning_names_the_line_of_the_caller(session: Session, warned: Any) -> None:
    with pytest.warns(SQLAuditWarning) as seen:
        warned(session)
    check(seen)


async def execute_async(session: AsyncSession) -> None:
    await session.execute(BY_HAND)  # here


async def read_async(session: AsyncSession) -> None:
    await versions_of(session, Row, 1, since=NAIVE)  # here


async def stream_async(session: AsyncSession) -> None:
    changes = stream_resource_changes(Row, session, filter_date_range=(NAIVE, None))
    async for _ in changes:  # here
        pass


async def flush_async_without_hooks(session: AsyncSession) -> None:
    async with AsyncSession(session.bind) as other:
        other.add(Row())
        await other.flush()  # here


async def run_in_a_greenlet(session: AsyncSession) -> None:
    await session.run_sync(execute)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    "warned",
    [execute_async, read_async, stream_async, flush_async_without_hooks, run_in_a_greenlet],
    ids=lambda x: x.__name__,
)
def test_a_warning_of_an_async_session_names_the_line_of_the_caller(async_engine: AsyncEngine, warned: Any) -> None:
    async def run() -> None:
        sessions = async_sessionmaker(async_engine)
        register_hooks(sessions)
        try:
            async with sessions() as session:
                await warned(session)
        finally:
            unregister_hooks(sessions)
            await async_engine.dispose()

    with pytest.warns(SQLAuditWarning) as seen:
        asyncio.run(run())
    check(seen)


def check(seen: Any) -> None:
    places = {(warning.filename, warning.lineno) for warning in seen}
    assert [linecache.getline(*place).rstrip()[-6:] for place in places] == ["# here"]
