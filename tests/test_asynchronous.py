"""Every function that takes a session or a connection takes an asynchronous one, too, and gives an awaitable."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from inspect import isfunction, signature
from typing import Any

import pytest
import sqlalchemy as sa
import sqlmodel
import sqlmodel.ext.asyncio.session as async_sqlmodel
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

import sqlaudit
from clock import Clock, at
from sqlaudit import (
    QueryError,
    Version,
    as_of,
    backfill,
    changesets,
    changesets_page,
    compare,
    compare_page,
    get_resource_changes,
    mark,
    marks,
    marks_table,
    record_changes,
    register_hooks,
    restore,
    stream_resource_changes,
    time_travel,
    track_table,
    undo,
    unregister_hooks,
    versions_of,
)
from sqlaudit.integrations import sqlmodel as of_sqlmodel
from sqlaudit.integrations.pydantic import version_model
from sqlaudit.testing import assert_recorded

pytestmark = [pytest.mark.usefixtures("clock"), pytest.mark.spread]


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(AsyncAttrs, Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(50))
    orders: Mapped[list["Order"]] = relationship()


@track_table()
class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey(Customer.id))


class Model(sqlmodel.SQLModel, registry=Base.registry):
    metadata = Base.metadata


@track_table()
class Hero(Model, table=True):
    id: int = sqlmodel.Field(primary_key=True)
    name: str = sqlmodel.Field(max_length=50)


marks_table(Base.metadata)


@asynccontextmanager
async def recording(engine: AsyncEngine, class_: type[AsyncSession] = AsyncSession) -> AsyncIterator[Any]:
    """Give a sessionmaker whose sessions record, on a database with two versions of a customer and of a hero."""
    sessions = async_sessionmaker(engine, class_=class_)
    register_hooks(sessions)
    try:
        async with sessions() as session:
            for model in (Customer, Hero):
                row: Any = model(id=1, name="Ada")
                session.add(row)
                await session.commit()
                await session.refresh(row)
                row.name = "Ada Lovelace"
                await session.commit()
        yield sessions
    finally:
        unregister_hooks(sessions)
        await engine.dispose()


def test_every_function_of_a_session_is_there_for_asynchronous_ones() -> None:
    functions = [value for name in sqlaudit.__all__ if isfunction(value := getattr(sqlaudit, name))]
    of_session = [function for function in functions if {"session", "where"} & set(signature(function).parameters)]
    assert len(of_session) > 20
    session = AsyncSession()
    for function in of_session:
        name = next(name for name in ("session", "where") if name in signature(function).parameters)
        others = [key for key, value in signature(function).parameters.items() if value.default is value.empty]
        given = {key: Customer for key in others if key not in ("filters", name)}
        result = function(**given, **{name: session})
        if isinstance(result, Coroutine):
            result.close()
        else:
            assert isinstance(result, (AsyncIterator, AbstractContextManager)), function


def test_reads_give_what_they_give_synchronously(async_engine: AsyncEngine) -> None:
    async def main() -> None:
        async with recording(async_engine) as sessions, sessions() as session:
            changes = await get_resource_changes(Customer, session, 1)
            assert [change.new_value for change in changes] == [1, "Ada", "Ada Lovelace"]
            assert changes == await session.run_sync(lambda sync: get_resource_changes(Customer, session=sync))
            assert changes == await get_resource_changes(Customer, session=session)
            scoped = async_scoped_session(lambda: session, lambda: None)
            assert changes == await get_resource_changes(Customer, scoped)
            assert changes == [change async for change in stream_resource_changes(Customer, session)]
            [row] = [row async for row in compare(session, Customer, at(-1), at(100))]
            assert row.fields == {"id": (None, 1), "name": (None, "Ada Lovelace")}
            assert (await compare_page(session, Customer, at(-1), at(100), size=1)).items == [row]
            page = await changesets_page(session, model=Customer, size=1)
            assert page.items == (await changesets(session))[:1]
            made = await mark(session, "now")
            assert await marks(session) == [made]
            assert (await assert_recorded(session, Customer, 1, operation="update")).name == "Ada Lovelace"
            with pytest.raises(QueryError, match="no tracked field"):
                await get_resource_changes(Customer, session, filter_fields="colour")

    asyncio.run(main())


def test_an_iterator_may_be_left_early(async_engine: AsyncEngine) -> None:
    async def main() -> None:
        async with recording(async_engine) as sessions, sessions() as session:
            changes = stream_resource_changes(Customer, session)
            assert (await anext(changes)).new_value == 1
            await changes.aclose()
            assert len(await versions_of(session, Customer, 1)) == 2

    asyncio.run(main())


def test_writes_are_awaited(async_engine: AsyncEngine) -> None:
    async def main() -> None:
        async with recording(async_engine) as sessions, sessions() as session:
            assert len(await restore(session, Customer, 1, at=1)) == 1
            await session.commit()
            assert (await session.get_one(Customer, 1)).name == "Ada"
            latest = (await changesets(session, newest_first=True, limit=1))[0]
            await undo(session, latest.changeset_id)
            await session.commit()
            assert (await session.get_one(Customer, 1)).name == "Ada Lovelace"
            await session.commit()  # SQLite lets nobody commit while another transaction reads
            async with async_engine.begin() as connection:
                await connection.execute(sa.update(Customer.__table__).values(name="Countess"))
                await connection.execute(sa.insert(Customer.__table__), [{"id": id, "name": "x"} for id in (2, 3)])
            await record_changes(session, Customer, [1])
            await session.commit()
            assert [version.name for version in await versions_of(session, Customer, 1)][-1] == "Countess"
        async with async_engine.begin() as connection:
            assert (await backfill(connection, Customer)).rows == 2
        assert (await backfill(async_engine, Customer)).rows == 0

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # drivers leave coroutines unawaited
@pytest.mark.parametrize("name", ["previous", "next", "changes", "extra_columns"])
def test_what_a_version_reads_is_awaited(async_engine: AsyncEngine, name: str) -> None:
    async def main() -> None:
        async with recording(async_engine) as sessions, sessions() as session:
            version = (await versions_of(session, Customer, 1))[-1]
            with pytest.raises(QueryError, match=f"await version.awaitable_attrs.{name}"):
                getattr(version, name)
            value = await getattr(version.awaitable_attrs, name)
            assert value == await session.run_sync(lambda _: getattr(version, name))
            session.expire(version)
            typed: Any = TypeAdapter(Version[Customer])
            for read in (version.to_dict, lambda: typed.dump_json(version), lambda: described.model_validate(version)):
                with pytest.raises(
                    (QueryError, PydanticSerializationError, ValidationError), match=r"await session\.refresh"
                ):
                    read()
            await session.refresh(version)
            assert version.to_dict("json") == json.loads(typed.dump_json(version))
            assert version.to_dict("json") == described.model_validate(version).model_dump(mode="json")

    described = version_model(Customer)
    asyncio.run(main())
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_attribute_that_has_to_load_says_what_to_await(async_engine: AsyncEngine) -> None:
    async def main() -> None:
        async with recording(async_engine) as sessions, sessions() as session:
            version = (await versions_of(session, Customer, 1))[-1]
            instant = version.valid_from
            past = (await session.scalars(as_of(Customer, instant))).one()
            await session.commit()  # which expires both
            for expired in (version, past):
                with pytest.raises(QueryError, match=r"await session\.refresh"):
                    assert expired.name
                await session.refresh(expired)
                assert expired.name == "Ada Lovelace"
            with pytest.raises(QueryError, match="selectinload"):
                assert past.orders
            assert await past.awaitable_attrs.orders == []
            loaded = await session.scalars(as_of(Customer, instant).options(selectinload(Customer.orders)))
            assert loaded.one().orders == []

    asyncio.run(main())
    gc.collect()


# --- SQLModel ---------------------------------------------------------------------------------------------------


def test_exec_of_sqlmodel_gives_objects_of_the_past(async_engine: AsyncEngine, clock: Clock) -> None:
    async def main() -> None:
        async with recording(async_engine, async_sqlmodel.AsyncSession) as sessions, sessions() as session:
            then = (await versions_of(session, Hero, 1))[0].valid_from
            assert (await session.exec(Hero.as_of(then))).one().name == "Ada"
            assert (await session.exec(Hero.all_versions())).first().name == "Ada"
            async with time_travel(session, then) as past:
                hero = (await past.exec(sqlmodel.select(Hero).where(Hero.name == "Ada"))).one()
                assert (hero.name, await past.get(Hero, 1)) == ("Ada", hero)
            async with of_sqlmodel.time_travel(async_engine, then) as past:
                assert (await past.exec(sqlmodel.select(Hero.name))).all() == ["Ada"]

    asyncio.run(main())


def test_exec_works_in_a_synchronous_past(engine: sa.Engine) -> None:
    with sqlmodel.Session(engine) as session:
        register_hooks(session)
        session.add(Hero(id=1, name="Ada"))
        session.commit()
        then = versions_of(session, Hero, 1)[0].valid_from
        session.get_one(Hero, 1).name = "Ada Lovelace"
        session.commit()
        assert session.exec(Hero.as_of(then)).one().name == "Ada"
        with time_travel(session, then) as past:
            assert past.exec(sqlmodel.select(Hero)).one().name == "Ada"
            assert past.execute(sa.select(Hero)).scalar_one().name == "Ada"
            with pytest.raises(sqlaudit.ReadOnlyError):
                past.exec(sa.delete(Hero))
        with of_sqlmodel.time_travel(engine, then) as past:
            assert past.exec(sqlmodel.select(Hero.name)).all() == ["Ada"]
        unregister_hooks(session)
