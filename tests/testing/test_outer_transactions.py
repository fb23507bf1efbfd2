"""A suite that wraps each test in one transaction: its commits are changesets, and nothing of them is left."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from invariants import check_history, told
from sqlaudit import (
    Recorded,
    Recording,
    SQLAuditError,
    as_of,
    changesets,
    history_of,
    register_hooks,
    track_table,
    undo,
    unregister_hooks,
    versions_of,
)
from sqlaudit.testing import Clock, changeset_per_commit

Sessions = sessionmaker[Session]
START = datetime(2026, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase):
    pass


@track_table()
class Ticket(Base):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(sa.String(50))


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection in the transaction that wraps a test; it leaves nothing behind."""
    with engine.connect() as connection:
        transaction = connection.begin()
        yield changeset_per_commit(connection)
        transaction.rollback()
    with Session(engine) as session:
        assert session.scalars(sa.select(Ticket)).all() == session.scalars(sa.select(history_of(Ticket))).all() == []


@pytest.fixture
def joining(sessions: Sessions, connection: sa.Connection) -> Sessions:
    """A sessionmaker, as SQLAlchemy advises, for sessions that join the transaction."""
    return sessionmaker(connection, class_=sessions.class_, join_transaction_mode="create_savepoint")


def test_each_commit_is_a_changeset_with_an_instant_of_its_own(joining: Sessions) -> None:
    with Clock(START) as clock, joining() as session:
        session.add_all([Ticket(id=1, status="new"), Ticket(id=2, status="new")])
        session.flush()
        session.get_one(Ticket, 2).status = "open"  # the same transaction, so the same version
        session.commit()
        with session.begin_nested():
            session.get_one(Ticket, 1).status = "open"
        session.execute(sa.delete(Ticket).where(Ticket.id == 2))
        session.commit()
        session.get_one(Ticket, 1).status = "lost"
        session.flush()
        session.rollback()
        clock.move(days=1)
        session.get_one(Ticket, 1).status = "done"
        session.commit()
        check_history(session, Ticket)
        assert told(session, Ticket, "id", "status") == [
            ("insert", 1, "new"),
            ("update", 1, "open"),
            ("update", 1, "done"),
            ("insert", 2, "open"),
            ("delete", 2, "open"),
        ]
        seen = list(changesets(session))
        tick = timedelta(microseconds=1)
        assert [each.timestamp for each in seen] == [START, START + tick, START + timedelta(days=1)]
        statuses = [session.scalars(as_of(Ticket, each.changeset_id).order_by("id")).all() for each in seen]
        assert [[ticket.status for ticket in tickets] for tickets in statuses] == [["new", "open"], ["open"], ["done"]]
        undo(session, seen[-1].changeset_id)
        session.commit()
        assert session.get_one(Ticket, 1).status == "open"


def test_without_it_the_transaction_of_the_database_is_the_changeset(engine: sa.Engine, sessions: Sessions) -> None:
    with engine.connect() as connection, connection.begin() as transaction:
        with sessions(bind=connection, join_transaction_mode="create_savepoint") as session:
            session.add(Ticket(id=1, status="new"))
            session.commit()
            session.get_one(Ticket, 1).status = "open"
            session.commit()
            assert told(session, Ticket, "status") == [("insert", "open")]
        transaction.rollback()


def test_a_session_within_the_transaction_of_another_one_has_its_own_changeset(joining: Sessions) -> None:
    with joining() as session:
        session.add(Ticket(id=1, status="new"))
        session.flush()
        with joining.begin() as of_the_application:
            of_the_application.add(Ticket(id=2, status="new"))
        session.add(Ticket(id=3, status="new"))
        session.commit()
        assert len(list(changesets(session))) == 2
        (first,), (second,), (third,) = (versions_of(session, Ticket, key) for key in (1, 2, 3))
        assert first.audit_changeset_id == third.audit_changeset_id != second.audit_changeset_id
        assert first.valid_from == third.valid_from < second.valid_from


def test_what_the_connection_executes_before_a_session_is_a_changeset(
    joining: Sessions, connection: sa.Connection
) -> None:
    register_hooks(joining, engine=connection)
    connection.execute(sa.insert(Ticket).values(id=1, status="new"))
    connection.execute(sa.update(Ticket).values(status="open"))
    with joining() as session:
        session.execute(sa.update(Ticket).values(status="done"))
        session.connection().execute(sa.insert(Ticket).values(id=2, status="new"))
        session.commit()
        check_history(session, Ticket)
        assert told(session, Ticket, "status") == [("insert", "open"), ("update", "done"), ("insert", "new")]
        assert len(list(changesets(session))) == 2
    unregister_hooks(joining, engine=connection)


@pytest.fixture
def heard() -> Iterator[list[list[tuple[int, str]]]]:
    """What the listeners of commits were told, each time."""
    heard: list[list[tuple[int, str]]] = []

    def hear(items: Sequence[Recorded]) -> None:
        heard.append([(item.key, str(item.operation)) for item in items])

    sa.event.listen(Recording, "committed", hear)
    yield heard
    sa.event.remove(Recording, "committed", hear)


def test_listeners_hear_each_commit_of_a_session(joining: Sessions, heard: list[Any]) -> None:
    with joining() as session:
        session.add_all([Ticket(id=1, status="new"), Ticket(id=2, status="new")])
        savepoint = session.begin_nested()
        session.add(Ticket(id=3, status="new"))
        savepoint.rollback()
        with session.begin_nested():
            session.add(Ticket(id=4, status="new"))
        assert heard == []
        session.commit()
        assert heard.pop() == [(1, "insert"), (2, "insert"), (4, "insert")]
        session.get_one(Ticket, 1).status = "lost"
        session.flush()
        session.rollback()
        session.commit()
        assert heard == []
        with joining.begin() as of_the_application:
            of_the_application.get_one(Ticket, 1).status = "open"
        assert heard.pop() == [(1, "update")]
        session.execute(sa.delete(Ticket).where(Ticket.id == 2))
        session.commit()
        assert heard == [[(2, "delete")]]


def test_the_commit_of_the_connection_tells_only_what_no_session_has_told(
    engine: sa.Engine, sessions: Sessions, heard: list[Any]
) -> None:
    with engine.connect() as connection:
        changeset_per_commit(connection)
        register_hooks(sessions, engine=connection)
        with connection.begin():
            with sessions(bind=connection, join_transaction_mode="create_savepoint") as session:
                session.add(Ticket(id=1, status="new"))
                session.commit()
            connection.execute(sa.update(Ticket).values(status="open"))
            assert heard == [[(1, "insert")]]
        assert heard == [[(1, "insert")], [(1, "update")]]
        unregister_hooks(sessions, engine=connection)


def test_each_commit_of_an_async_session_is_a_changeset(async_engine: AsyncEngine, heard: list[Any]) -> None:
    async def run() -> None:
        maker = async_sessionmaker(join_transaction_mode="create_savepoint", expire_on_commit=False)
        register_hooks(maker)
        try:
            async with async_engine.connect() as connection:
                transaction = await connection.begin()
                assert changeset_per_commit(connection) is connection
                async with maker(bind=connection) as session:
                    ticket = Ticket(id=1, status="new")
                    session.add(ticket)
                    await session.commit()
                    ticket.status = "open"
                    await session.commit()
                    assert await session.run_sync(told, Ticket, "status") == [("insert", "new"), ("update", "open")]
                    assert heard == [[(1, "insert")], [(1, "update")]]
                    assert len(await session.run_sync(lambda session: list(changesets(session)))) == 2
                await transaction.rollback()
            async with AsyncSession(async_engine) as session:
                assert (await session.scalars(sa.select(history_of(Ticket)))).all() == []
        finally:
            unregister_hooks(maker)

    asyncio.run(run())


@pytest.mark.spread
def test_only_an_open_connection_is_taken(engine: sa.Engine) -> None:
    wrong: Any = engine
    with pytest.raises(SQLAuditError, match=r"is not an open connection.*engine\.connect\(\)"):
        changeset_per_commit(wrong)
