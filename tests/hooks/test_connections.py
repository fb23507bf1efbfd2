"""Statements of connections: those of engines that record, and those that sessions give away."""

import asyncio
import gc
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from weakref import ref

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

import sqlaudit
from invariants import check_history, told
from registering import recording
from stock import (
    SOURCES,
    Base,  # noqa: F401  # whose tables the tests find
    Item,
    Part,
    Tag,
    Worker,
    fill,
    happen,  # noqa: F401  # what has happened when the tests begin
    item_tags,
    items,
)


@pytest.fixture
def sessions(happened: None, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, on a stock that is filled."""
    return sessions


CONNECTED = {
    "insert": lambda c: c.execute(items.insert().values(title="new")),
    "insert many": lambda c: c.execute(items.insert(), [{"title": "a"}, {"title": "b"}]),
    "insert many values": lambda c: c.execute(items.insert().values([{"title": "a"}, {"title": "b"}])),
    "insert from select": lambda c: c.execute(items.insert().from_select(["title"], sa.select(items.c.title + "x"))),
    "insert returning": lambda c: c.execute(
        items.insert().returning(items.c.id, items.c.price), [{"title": "a"}]
    ).all(),
    "update": lambda c: c.execute(items.update().where(items.c.price > 10).values(price=1)),
    "update many": lambda c: c.execute(
        items.update().where(items.c.id == sa.bindparam("k")).values(price=sa.bindparam("p")), [{"k": 1, "p": 9}]
    ),
    "delete": lambda c: c.execute(items.delete().where(items.c.price > 10)),
    "delete links": lambda c: c.execute(item_tags.delete()),
    "a lambda": lambda c: c.execute(sa.lambda_stmt(lambda: items.update().values(price=2))),
}


@pytest.mark.spread
def test_history_keeps_no_engine_that_nobody_holds(database: Any) -> None:
    engine = database.create_engine(query_cache_size=500)  # whose dialect no other engine has
    with recording(engine) as sessions:
        sqlaudit.register_hooks(sessions, engine=engine)
        with engine.begin() as connection:  # not by the unit of work, whose statements SQLAlchemy keeps for a mapper
            for name in ("insert many", "insert from select", "update", "delete"):
                CONNECTED[name](connection)
        with sessions() as session:
            assert len(session.scalars(sqlaudit.as_of(Item, datetime.now(UTC))).all()) == 4
            assert list(sqlaudit.stream_resource_changes(Item, session))
            assert list(sqlaudit.changesets(session))
        sqlaudit.unregister_hooks(sessions, engine=engine)
    engine.dispose()
    kept = ref(engine.dialect)
    for method in (each for cls in type(engine.dialect).__mro__ for each in vars(cls).values()):
        getattr(method, "cache_clear", int)()  # SQLAlchemy's own, which PostgreSQL's dialect has for all engines
    del engine, sessions, session, connection
    gc.collect()
    assert kept() is None


@pytest.mark.spread
@pytest.mark.parametrize("name", CONNECTED)
def test_a_statement_of_a_connection_is_recorded(recorded_engine: sa.Engine, sessions: Any, name: str) -> None:
    with sqlaudit.AuditContextManager(user_id="ana"), recorded_engine.begin() as connection:
        CONNECTED[name](connection)
    with sessions() as session:
        for source in SOURCES:
            check_history(session, source)
        (last,) = sqlaudit.changesets(session, newest_first=True, limit=1)
        assert last.changed_by == "ana"


def test_a_connection_in_a_session_shares_its_changeset(recorded_engine: sa.Engine, sessions: Any) -> None:
    with sessions() as session:
        session.get_one(Item, 1).price = 11
        session.flush()
        session.connection().execute(items.update().where(items.c.id == 2).values(price=12))
        session.execute(sa.update(Item).where(Item.id == 3).values(price=13))
        session.commit()
        (last,) = sqlaudit.changesets(session, newest_first=True, limit=1)
        changes = sqlaudit.changes_in(session, last.changeset_id)
        assert [(each.resource_id, each.new_value) for each in changes] == [(1, 11), (2, 12), (3, 13)]


def test_a_connection_that_a_session_gives_away_is_recorded(sessions: Any) -> None:
    with sessions() as session, sqlaudit.AuditContextManager(user_id="ana"):
        session.get_one(Item, 1).price = 11
        session.connection().execute(items.update().where(items.c.id == 2).values(price=12))
        session.get_one(Item, 3).price = 13
        session.commit()
        for source in SOURCES:
            check_history(session, source)
        (last,) = sqlaudit.changesets(session, newest_first=True, limit=1)
        assert [each.resource_id for each in sqlaudit.changes_in(session, last.changeset_id)] == [1, 2, 3]


def test_a_connection_is_recorded_while_a_session_has_it(engine: sa.Engine, sessions: Any) -> None:
    with engine.connect() as connection:
        with sessions(bind=connection) as session:
            session.connection().execute(items.update().values(price=1))
            session.commit()
            before = told(session, Item, "id", "price")
        connection.execute(items.update().values(price=2))
        connection.execute(sa.text("UPDATE bulk_items SET price = 3"))
        connection.commit()
        with sessions(bind=connection) as session:
            assert told(session, Item, "id", "price") == before
            sqlaudit.record_changes(session, Item)
            check_history(session, Item)
    assert before[:2] == [("insert", 1, 10), ("update", 1, 1)]


@pytest.mark.parametrize("is_begun", [True, False])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_session_is_recorded_after_the_owner_of_its_connection_has_ended_a_transaction(
    engine: sa.Engine, sessions: Any, end: str, is_begun: bool
) -> None:
    with engine.connect() as connection:
        if is_begun:
            connection.begin()
        session = sessions(bind=connection)
        session.execute(sa.insert(Tag).values(id=1001))
        getattr(connection, end)()
        if is_begun:
            connection.begin()
        session.add(Item(id=1001, name="a", tags=[Tag(id=1002), Tag(id=1003)]))
        session.flush()
        session.execute(sa.insert(Tag).values(id=1004))
        session.connection().execute(sa.update(items).where(items.c.id == 1001).values(price=7))
        connection.commit()
        session.close()
    with sessions() as session:
        for source in (Item, Tag, item_tags):
            check_history(session, source)
        assert told(session, item_tags, "tag_id")[-2:] == [("insert", 1002), ("insert", 1003)]


def test_a_session_without_hooks_is_recorded_by_its_engine(recorded_engine: sa.Engine) -> None:
    with Session(recorded_engine) as session:
        session.get_one(Item, 1).price = 11
        session.delete(session.get_one(Item, 2))
        third = session.get_one(Item, 3)
        third.tags.append(session.get_one(Tag, 1))
        session.get_one(Worker, 1).wage = 7
        session.commit()
        for source in SOURCES:
            check_history(session, source)


@pytest.mark.parametrize("options", [1, 2])
def test_an_engine_with_options_of_its_own_is_recorded_as_the_one_that_it_comes_from(
    recorded_engine: sa.Engine, sessions: Any, options: int
) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(strict=True))
    engine = recorded_engine
    for number in range(options):
        engine = engine.execution_options(**{f"option_{number}": True})
    with Session(engine) as session:
        session.get_one(Item, 1).price = 11
        session.execute(sa.update(Item).where(Item.id == 2).values(price=12))
        session.commit()
    with engine.begin() as connection:
        connection.execute(items.delete().where(items.c.id == 3))
    with sessions(bind=engine) as session:
        session.get_one(Item, 4).price = 11
        session.connection().execute(items.update().values(stock=7))
        session.commit()
        for source in SOURCES:
            check_history(session, source)


def test_a_rollback_leaves_nothing(recorded_engine: sa.Engine, sessions: Any) -> None:
    with sessions() as session:
        before = told(session, Item, "id", "price")
    with recorded_engine.connect() as connection:
        connection.execute(items.update().values(price=0))
        connection.rollback()
    with sessions() as session:
        savepoint = session.begin_nested()
        session.execute(sa.update(Item).values(price=0))
        savepoint.rollback()
        session.commit()
        assert told(session, Item, "id", "price") == before


@pytest.mark.parametrize("how", ["session", "connection", "connection of a session"])
def test_what_cannot_be_recorded_is_undone(recorded_engine: sa.Engine, sessions: Any, how: str) -> None:
    with sessions() as session:
        before = told(session, Item, "id", "price")

    def break_down(connection: Any, cursor: Any, sql: str, *args: Any) -> None:
        if "INSERT INTO bulk_items_history" in sql:
            raise ZeroDivisionError

    sa.event.listen(recorded_engine, "before_cursor_execute", break_down)
    with recorded_engine.connect() as connection, sessions() as session:
        target = {"session": session, "connection": connection}.get(how) or session.connection()
        with pytest.raises(ZeroDivisionError):
            target.execute(items.update().values(price=0))
        with suppress(sa.exc.InvalidRequestError):  # the session finds its transaction gone
            (connection if target is connection else session).commit()
    sa.event.remove(recorded_engine, "before_cursor_execute", break_down)
    with sessions() as session:
        assert told(session, Item, "id", "price") == before
        check_history(session, Item)


def test_paused_tracking_pauses_statements_too(recorded_engine: sa.Engine, sessions: Any) -> None:
    with sessions() as session:
        before = told(session, Item, "id", "price")
        with sqlaudit.tracking_disabled(session):
            session.execute(sa.update(Item).values(price=0))
            session.connection().execute(items.update().values(price=1))
            session.execute(sa.text("UPDATE bulk_items SET price = 2"))
        session.commit()
        assert told(session, Item, "id", "price") == before


def test_what_executes_no_statements_is_refused() -> None:
    with pytest.raises(sqlaudit.SQLAuditError, match="Give an engine or a connection"):
        sqlaudit.register_hooks(engine="sqlite://")


@pytest.mark.parametrize("name", ["before_insert", "after_insert", "after_update"])
def test_what_a_listener_of_the_mapper_executes_is_recorded_by_the_engine(
    recorded_engine: sa.Engine, sessions: Any, name: str
) -> None:
    def count(mapper: Any, connection: sa.Connection, target: Any) -> None:
        connection.execute(items.update().where(items.c.id == 1).values(stock=items.c.stock + 1))

    with sessions() as session:
        sa.event.listen(Part, name, count)
        try:
            session.add(Part(id=UUID(int=8), item_id=3))
            session.get_one(Part, UUID(int=2)).item_id = 1
            session.get_one(Item, 2).price = 7
            session.commit()
        finally:
            sa.event.remove(Part, name, count)
        for source in SOURCES:
            check_history(session, source)
        assert session.get_one(Item, 1).stock == 1
        assert told(session, Item, "id", "stock")[:3] == [("insert", 1, 0), ("update", 1, 1), ("insert", 2, 0)]


def test_async_sessions_and_engines_are_recorded_too(async_engine: AsyncEngine) -> None:
    makers = async_sessionmaker(async_engine)
    sqlaudit.register_hooks(makers, engine=async_engine)

    async def work() -> list[Any]:
        async with makers() as session:
            await session.run_sync(fill)
            returned = await session.scalars(sa.insert(Item).returning(Item.name), [{"name": "a"}, {"name": "b"}])
            assert sorted(returned) == ["a", "b"]
            await session.execute(sa.update(Item).where(Item.price > 10).values(price=3))
            await session.commit()
        async with async_engine.begin() as connection:
            await connection.execute(items.delete().where(items.c.title == "a"))
        async with makers() as session:
            for source in SOURCES:
                await session.run_sync(check_history, source)
            return await session.run_sync(told, Item, "name")

    found = asyncio.run(work())
    sqlaudit.unregister_hooks(makers, engine=async_engine)
    assert ("delete", "a") in found
    assert len(found) == 6 + 3 + 1
