"""What type checkers know of models and sessions of SQLModel."""

from datetime import UTC, datetime
from typing import assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, Session, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlaudit import Version, track_table, versions_of
from sqlaudit.integrations.sqlmodel import Temporal, time_travel

WHEN = datetime(2024, 1, 1, tzinfo=UTC)


@track_table()
class Ticket(Temporal, SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    title: str


def exec_gives_objects_of_the_past(session: Session, engine: Engine) -> None:
    past = session.exec(Ticket.as_of(WHEN, untracked="live").order_by("id")).one()
    assert_type(past, Ticket)
    assert_type(versions_of(session, Ticket, 1), list[Version[Ticket]])
    assert_type(past.versions, list[Version[Ticket]])
    with time_travel(session, WHEN) as travelled:
        assert_type(travelled, Session)
        assert_type(travelled.exec(select(Ticket)).one(), Ticket)
    with time_travel(engine, WHEN, untracked="live") as travelled:
        assert_type(travelled.exec(select(Ticket.title)).one(), str)


async def exec_gives_objects_of_the_past_asynchronously(session: AsyncSession, engine: AsyncEngine) -> None:
    assert_type((await session.exec(Ticket.as_of(WHEN))).one(), Ticket)
    assert_type(await versions_of(session, Ticket, 1), list[Version[Ticket]])
    async with time_travel(session, WHEN) as travelled:
        assert_type(travelled, AsyncSession)
        assert_type((await travelled.exec(select(Ticket))).one(), Ticket)
    async with time_travel(engine, WHEN) as travelled:
        assert_type((await travelled.exec(select(Ticket))).one(), Ticket)
