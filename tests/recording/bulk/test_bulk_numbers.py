"""Many rows that are inserted without their keys, which the database numbers: who numbers them, and is that known?"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from counting import counted
from databases import Database
from invariants import check_history, told
from registering import recording

ROWS = [{"name": name} for name in ("a", "b", "c")]


def model_of(base: Any, *key: Any, schema: str | None = None) -> Any:
    @sqlaudit.track_table()
    class Ticket(base):  # type: ignore[misc]
        __tablename__ = "Odd Tickets%"
        number: Mapped[int] = mapped_column("Odd 'Key\"", *key, primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(10))
        __table_args__ = {"schema": schema}

    return Ticket


@pytest.fixture
def sessions(base: Any, engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    """Sessions that record, once the test has its model."""
    with recording(engine, base.metadata) as sessions:
        yield sessions


def by_objects(session: Session, model: Any) -> None:
    session.execute(sa.insert(model), ROWS)


def by_mappings(session: Session, model: Any) -> None:
    session.bulk_insert_mappings(model, ROWS)


def by_the_connection(session: Session, model: Any) -> None:
    session.connection().execute(model.__table__.insert(), ROWS)


def by_a_connection_that_knows_the_model(session: Session, model: Any) -> None:
    session.connection().execute(sa.insert(model), ROWS)


INSERTS = [by_objects, by_mappings, by_the_connection, by_a_connection_that_knows_the_model]


def check(
    sessions: sessionmaker[Session], model: Any, insert: Callable[[Session, Any], None] = by_the_connection
) -> None:
    """See that what is inserted before, and behind, other rows is in history, and no other."""
    with sessions() as session:
        model.metadata.create_all(session.connection())
        session.add(model(name="first"))
        session.commit()
        insert(session, model)
        session.rollback()
        insert(session, model)
        session.add(model(name="last"))
        session.commit()
        assert sorted(told(session, model, "name")) == [("insert", name) for name in ("a", "b", "c", "first", "last")]
        assert not any("number" in row for row in ROWS)
        check_history(session, model)


@pytest.mark.parametrize("insert", INSERTS)
@pytest.mark.parametrize("key", [(), (sa.Identity(),), (sa.Identity(start=7, increment=3),)])
def test_rows_are_recorded_by_the_numbers_that_they_get(
    base: Any, sessions: Any, insert: Callable[[Session, Any], None], key: Any
) -> None:
    check(sessions, model_of(base, *key), insert)


@pytest.mark.parametrize("key", [(), (sa.Identity(start=7, increment=3),)])
def test_many_rows_are_recorded_by_the_numbers_that_they_get(base: Any, engine: sa.Engine, key: Any) -> None:
    model, rows = model_of(base, *key), [{"name": str(n)} for n in range(1_100)]
    with recording(engine, base.metadata) as sessions, sessions() as session:
        session.execute(sa.insert(model), rows)
        session.execute(sa.delete(model))  # what has been and gone leaves no trace, and SQLite its numbers
        session.commit()
        session.execute(sa.insert(model), rows)
        session.commit()
        session.execute(sa.delete(model))
        session.commit()
        for _ in range(2):
            session.execute(sa.insert(model), rows)
        session.commit()
        check_history(session, model)
        assert Counter(told(session, model)) == {("insert",): 3_300, ("delete",): 1_100}


@pytest.mark.parametrize("insert", INSERTS)
def test_schemas_make_no_difference(
    base: Any, engine: sa.Engine, database: Database, insert: Callable[[Session, Any], None]
) -> None:
    model = model_of(base, schema="here")
    with recording(
        engine.execution_options(schema_translate_map={"here": database.other_schema}), base.metadata
    ) as sessions:
        check(sessions, model, insert)


@pytest.mark.requires("serial_columns")
@pytest.mark.parametrize(
    ("statements", "numbers"),
    [
        ([], [2, 3, 4]),
        (["CREATE SEQUENCE others START 50", "ALTER TABLE t ALTER k SET DEFAULT nextval('others')"], [50, 51, 52]),
        (["ALTER TABLE t ALTER k SET DEFAULT 10 * nextval(pg_get_serial_sequence('t', 'k'))"], [20, 30, 40]),
        (
            [
                "CREATE FUNCTION otherwise() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN NEW.k := NEW.k + 100; RETURN NEW; END $$",
                "CREATE TRIGGER otherwise BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION otherwise()",
            ],
            [102, 103, 104],
        ),
    ],
)
def test_rows_that_are_numbered_otherwise_than_their_sequence_says_are_recorded(
    base: Any, engine: sa.Engine, statements: list[str], numbers: list[int]
) -> None:
    @sqlaudit.track_table()
    class Ticket(base):  # type: ignore[misc]
        __tablename__ = "t"
        k: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(10))

    with recording(engine, base.metadata) as sessions, sessions() as session:
        session.add(Ticket(name="first"))
        session.commit()
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        session.execute(sa.insert(Ticket), ROWS)
        session.commit()
        check_history(session, Ticket)
        assert session.scalars(sa.select(Ticket.k).order_by(Ticket.k)).all() == [1, *numbers]


@pytest.mark.requires("serial_columns")
def test_who_may_not_give_a_number_need_not(base: Any, engine: sa.Engine) -> None:
    model = model_of(base)
    table = model.__table__
    role = f"clerk_{uuid.uuid4().hex}"
    with recording(engine, base.metadata) as sessions, sessions() as session:
        connection = session.connection()
        quoted = connection.dialect.identifier_preparer.format_table
        for statement in (
            f"CREATE ROLE {role}",
            f"GRANT USAGE ON SCHEMA public TO {role}",
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
            f"GRANT INSERT (name), SELECT ON {quoted(table)} TO {role}",
            f"GRANT ALL ON {quoted(sqlaudit.history_of(model).__table__)} TO {role}",
            f"SET LOCAL ROLE {role}",
        ):
            connection.exec_driver_sql(statement)
        connection.execute(table.insert(), ROWS)
        check_history(session, model)
        assert len(told(session, model)) == 3


@pytest.mark.requires("serial_columns")
def test_numbers_are_drawn_ahead_and_the_rows_sent_as_without_us(base: Any, engine: sa.Engine) -> None:
    model = model_of(base)
    with recording(engine, base.metadata) as sessions, sessions() as session, counted(engine) as statements:
        session.execute(sa.insert(model), ROWS)
        (insert,) = (each for each in statements if each.startswith('INSERT INTO "Odd Tickets%%" '))
        assert "RETURNING" not in insert


def test_asynchronous_drivers_make_no_difference(base: Any, async_engine: AsyncEngine) -> None:
    model = model_of(base)
    sessions = async_sessionmaker(async_engine)
    sqlaudit.register_hooks(sessions)

    async def insert() -> None:
        async with async_engine.begin() as connection:
            await connection.run_sync(base.metadata.create_all)
        async with sessions() as session:
            await session.execute(sa.insert(model), ROWS)
            await session.commit()
            await session.run_sync(lambda session: check_history(session, model))
            assert len(await session.run_sync(lambda session: told(session, model))) == 3

    asyncio.run(insert())
    sqlaudit.unregister_hooks(sessions)
