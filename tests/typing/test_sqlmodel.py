"""What type checkers know of models and sessions of SQLModel."""

from datetime import UTC, datetime
from typing import Any, assert_type

from sqlalchemy import Engine, MetaData
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import registry
from sqlmodel import Field, Relationship, Session, SQLModel, col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from sqlaudit import (
    FieldChange,
    Page,
    Version,
    changes_page,
    changes_since,
    changesets,
    get_resource_changes,
    track_table,
    versions_of,
)
from sqlaudit.integrations.sqlmodel import Temporal, time_travel
from sqlaudit.testing import assert_recorded

WHEN = datetime(2024, 1, 1, tzinfo=UTC)


class Model(SQLModel, registry=registry()):
    """Has tables of its own: those of SQLModel are shared by the whole process."""

    metadata = MetaData()


@track_table()
class Comment(Model, table=True):
    id: int | None = Field(default=None, primary_key=True)
    ticket_id: int = Field(foreign_key="ticket.id")


@track_table()
class Ticket(Temporal, Model, table=True):
    id: int | None = Field(default=None, primary_key=True)
    title: str
    comments: list[Comment] = Relationship()


def a_relationship_is_given_as_a_column_is(session: Session) -> None:
    assert_type(get_resource_changes(col(Ticket.comments), session, 7), list[FieldChange])
    assert_type(versions_of(session, col(Ticket.comments), 7), list[Version[Any]])
    assert_type(changes_page(session, col(Ticket.comments), 7), Page[FieldChange])
    changesets(session, model=[Comment, col(Ticket.comments)])
    changes_since(session, model=col(Ticket.comments), key=7)
    assert_recorded(session, col(Ticket.comments), 7, operation="insert")


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
