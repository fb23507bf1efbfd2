"""Bulk statements: each does and returns what it would without us, and its rows are versioned, exactly."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, relationship, sessionmaker

import sqlaudit
from invariants import check_history, recording, told


class Base(DeclarativeBase):
    pass


item_tags = sa.Table(
    "bulk_item_tags",
    Base.metadata,
    sa.Column("item_id", sa.ForeignKey("bulk_items.id", ondelete="CASCADE", onupdate="CASCADE"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("bulk_tags.id"), primary_key=True),
)


@sqlaudit.track_table(exclude=["note"])
class Item(Base):
    __tablename__ = "bulk_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("title", sa.String(50), unique=True)
    price: Mapped[int] = mapped_column(default=1)
    stock: Mapped[int] = mapped_column(server_default="0")
    note: Mapped[str | None] = mapped_column(sa.String(50))
    parts: Mapped[list["Part"]] = relationship(passive_deletes=True)
    tags: Mapped[list["Tag"]] = relationship(secondary=item_tags, passive_deletes=True)


@sqlaudit.track_table()
class Part(Base):
    """Goes with its item, or follows its key."""

    __tablename__ = "bulk_parts"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    item_id: Mapped[int] = mapped_column(sa.ForeignKey(Item.id, ondelete="CASCADE", onupdate="CASCADE"))


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "bulk_tags"

    id: Mapped[int] = mapped_column(primary_key=True)


@sqlaudit.track_table()
class Person(Base):
    __tablename__ = "bulk_people"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10), default="person")
    name: Mapped[str] = mapped_column(sa.String(50))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Worker(Person):
    __tablename__ = "bulk_workers"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id, ondelete="CASCADE"), primary_key=True)
    wage: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "worker"}


class Guest(Person):
    __mapper_args__ = {"polymorphic_identity": "guest"}


@sqlaudit.track_table()
class Place(Base):
    __tablename__ = "bulk_places"

    row: Mapped[int] = mapped_column(primary_key=True)
    seat: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
    taken: Mapped[bool] = mapped_column(default=False)


SOURCES = (Item, Part, Tag, Person, Place, item_tags)
items: Any = Item.__table__
places: Any = Place.__table__


@pytest.fixture
def maker(engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    with recording(engine, Base.metadata) as maker:
        yield maker


@pytest.fixture
def plain(engine: sa.Engine) -> sessionmaker[Session]:
    """Sessions that record nothing."""
    return sessionmaker(engine)


def fill(session: Session) -> None:
    session.add_all([Item(name=f"item {number}", price=number * 10) for number in range(1, 5)])
    for person in (Worker(name="Ada", wage=10), Person(name="Bob"), Guest(name="Eve")):
        session.add(person)
        session.flush()
    session.add_all([Place(row=row, seat=seat) for row in (1, 2) for seat in "ab"])
    session.add(Tag(id=1))
    session.flush()
    session.add_all([Part(id=UUID(int=id), item_id=id) for id in (1, 2)])
    session.execute(item_tags.insert().values(item_id=1, tag_id=1))
    session.commit()


def rows(session: Session) -> dict[str, list[Any]]:
    """Return all that the live tables hold; keys that are random are shown as ..."""
    return {
        table.name: sorted(
            (
                tuple("…" if isinstance(value, UUID) and value.int > 9 else value for value in row)
                for row in session.execute(sa.select(table))
            ),
            key=repr,
        )
        for table in (*(source.__table__ for source in SOURCES[:5]), Worker.__table__, item_tags)
    }


def insert_of(session: Session) -> Any:
    """Return the ``insert`` that has the database's ON CONFLICT."""
    return {"sqlite": sqlite, "postgresql": postgresql, "mysql": mysql, "mariadb": mysql}[
        session.connection().dialect.name
    ].insert


def upsert(session: Session, table: Any, set_: dict[str, Any], *elements: str) -> Any:
    statement = insert_of(session)(table)
    if hasattr(statement, "on_duplicate_key_update"):
        return statement.on_duplicate_key_update(set_)
    return statement.on_conflict_do_update(index_elements=list(elements), set_=set_)


def do_nothing(session: Session, table: Any) -> Any:
    statement = insert_of(session)(table)
    return (
        statement.prefix_with("IGNORE")
        if hasattr(statement, "on_duplicate_key_update")
        else statement.on_conflict_do_nothing()
    )


def outcome(result: Any) -> Any:
    """Return what a caller can see of a result."""
    if isinstance(result, sa.CursorResult) and not result.returns_rows:
        return result.rowcount
    try:
        return sorted(tuple(row) for row in result)
    except sa.exc.ResourceClosedError:  # what the ORM gives for a statement that returns nothing
        return None


other_item = aliased(Item)

STATEMENTS: dict[str, Callable[[Session], Any]] = {
    # UPDATE
    "update": lambda s: s.execute(sa.update(Item).where(Item.price > 10).values(price=Item.price + 1)),
    "update of a row": lambda s: s.execute(sa.update(Item).where(Item.id == 2).values(price=5)),
    "update of a row by more": lambda s: s.execute(
        sa.update(Item).where(Item.id == 2, Item.price == 3).values(price=5)
    ),
    "update of all": lambda s: s.execute(sa.update(Item).values(price=7)),
    "update of none": lambda s: s.execute(sa.update(Item).where(Item.price < 0).values(price=7)),
    "update to the same": lambda s: s.execute(
        sa.update(Item).values(price=sa.case((Item.id == 1, 99), else_=Item.price))
    ),
    "update of an excluded column": lambda s: s.execute(sa.update(Item).values(note="seen")),
    "update of a table": lambda s: s.execute(items.update().where(items.c.title.like("%2")).values(price=0)),
    "update by parameters": lambda s: s.execute(sa.update(Item).where(Item.id == 2), {"price": 3}),
    "update by keys": lambda s: s.execute(sa.update(Item), [{"id": 1, "price": 3}, {"id": 2, "price": 4}]),
    "update by keys of a table": lambda s: s.execute(
        items.update().where(items.c.id == sa.bindparam("k")).values(price=sa.bindparam("p")),
        [{"k": 1, "p": 3}, {"k": 2, "p": 4}],
    ),
    "update many times by criteria": lambda s: s.execute(
        items.update().where(items.c.price > sa.bindparam("least")).values(stock=items.c.stock + 1),
        [{"least": 15}, {"least": 25}],
    ),
    "update by a subquery of the same table": lambda s: s.execute(
        sa.update(Item)
        .where(Item.id.in_(sa.select(Part.item_id)))
        .values(stock=sa.select(sa.func.count()).select_from(Part).where(Part.item_id == Item.id).scalar_subquery())
    ),
    "update from another table": lambda s: s.execute(
        sa.update(Item).where(Part.item_id == Item.id, Part.id == UUID(int=2)).values(stock=9),
        execution_options={"synchronize_session": False},
    ),
    "update of a composite key": lambda s: s.execute(sa.update(Place).where(Place.seat == "a").values(taken=True)),
    "update of a base class": lambda s: s.execute(sa.update(Person).where(Person.id < 3).values(name="Zoe")),
    "update of a subclass": lambda s: s.execute(sa.update(Worker).where(Worker.wage == 10).values(wage=11)),
    "update of a subclass without a table": lambda s: s.execute(sa.update(Guest).values(name="Zoe")),
    "update by keys of a subclass": lambda s: s.execute(sa.update(Worker), [{"id": 1, "name": "Zoe", "wage": 12}]),
    "update of an alias": lambda s: s.execute(
        (lambda it: sa.update(it).where(it.c.id == 1).values(price=2))(items.alias("it"))
    ),
    "update of keys": lambda s: s.execute(sa.update(Item).where(Item.id < 3).values(id=Item.id + 100)),
    "update of a key by parameters": lambda s: s.execute(items.update().where(items.c.id == 3), {"id": 33}),
    "update by a lambda": lambda s: s.execute(
        (lambda least: sa.lambda_stmt(lambda: sa.update(Item).where(Item.price > least).values(stock=1)))(15)
    ),
    "query update": lambda s: s.query(Item).filter(Item.price > 10).update({"price": 1}),
    "update of links": lambda s: s.execute(item_tags.update().values(item_id=2)),
    # DELETE
    "delete": lambda s: s.execute(sa.delete(Item).where(Item.price > 10)),
    "delete of a row": lambda s: s.execute(sa.delete(Item).where(Item.id == 1)),
    "delete of all": lambda s: s.execute(sa.delete(Item)),
    "delete of a table": lambda s: s.execute(items.delete().where(items.c.price < 25)),
    "delete many times": lambda s: s.execute(
        places.delete().where(places.c.seat == sa.bindparam("x")), [{"x": "a"}, {"x": "c"}]
    ),
    "delete of a subclass without a table": lambda s: s.execute(sa.delete(Guest)),
    "delete of a base class": lambda s: s.execute(sa.delete(Person)),
    "query delete": lambda s: s.query(Item).filter(Item.price > 10).delete(),
    "delete of links": lambda s: s.execute(item_tags.delete()),
    # INSERT
    "insert": lambda s: s.execute(sa.insert(Item).values(name="new")).inserted_primary_key,
    "insert with a key": lambda s: s.execute(sa.insert(Item).values(id=77, name="new")),
    "insert many": lambda s: s.execute(sa.insert(Item), [{"name": "a"}, {"name": "b", "price": 2}]) and None,
    "insert many with keys": lambda s: (
        s.execute(sa.insert(Item), [{"id": 8, "name": "a"}, {"id": 9, "name": "b"}]) and None
    ),
    "insert many into a table": lambda s: s.execute(items.insert(), [{"title": "a"}, {"title": "b"}]).rowcount,
    "insert many values": lambda s: s.execute(sa.insert(Item).values([{"name": "a"}, {"name": "b"}])) and None,
    "insert with a key of Python's": lambda s: s.execute(sa.insert(Part), [{"item_id": 3}, {"item_id": 4}]) and None,
    "insert one with a key of Python's": lambda s: s.execute(sa.insert(Part).values(item_id=3)) and None,
    "insert a subclass": lambda s: (
        s.execute(sa.insert(Worker), [{"name": "Kim", "wage": 1}, {"name": "Lee", "wage": 2}]) and None
    ),
    "insert from select": lambda s: (
        s.execute(
            sa.insert(Item).from_select(
                ["title", "price"], sa.select(Item.name + " copy", Item.price).where(Item.id < 3)
            )
        )
        and None
    ),
    "insert links": lambda s: (
        s.execute(item_tags.insert(), [{"item_id": 2, "tag_id": 1}, {"item_id": 3, "tag_id": 1}]) and None
    ),
    "insert or update": lambda s: (
        s.execute(upsert(s, Item, {"price": sa.literal_column("55")}, "title"), [{"name": "item 1"}, {"name": "new"}])
        and None
    ),
    "insert or update from select": lambda s: (
        s.execute(
            upsert(s, items, {"price": 66}, "title").from_select(
                ["title"], sa.select(items.c.title).where(items.c.id < 3)
            )
        )
        and None
    ),
    "insert or do nothing": lambda s: (
        s.execute(do_nothing(s, Item).values([{"name": "item 1"}, {"name": "new"}])) and None
    ),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(Item, [{"name": "a"}, {"name": "b"}]),
    "bulk_insert_mappings of a subclass": lambda s: s.bulk_insert_mappings(Worker, [{"name": "Kim", "wage": 1}]),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(Item, [{"id": 1, "price": 3}, {"id": 2, "price": 20}]),
    "bulk_update_mappings of a subclass": lambda s: s.bulk_update_mappings(Worker, [{"id": 1, "wage": 3, "name": "Z"}]),
    "bulk_save_objects": lambda s: s.bulk_save_objects([Item(name="a"), Item(id=99, name="b")]),
}

RETURNING: dict[str, Callable[[Session], Any]] = {
    "insert returning": lambda s: s.execute(sa.insert(Item).returning(Item.name), [{"name": "a"}, {"name": "b"}]),
    "insert returning objects": lambda s: sorted(
        (item.id, item.name, item.price)
        for item in s.scalars(sa.insert(Item).returning(Item), [{"name": "a"}, {"name": "b"}])
    ),
    "insert returning in order": lambda s: s.scalars(
        sa.insert(Item).returning(Item.name, sort_by_parameter_order=True), [{"name": "b"}, {"name": "a"}]
    ).all(),
    "insert one returning": lambda s: s.execute(items.insert().values(title="a").returning(items.c.title, items.c.id)),
    "insert from select returning": lambda s: s.execute(
        items.insert().from_select(["title"], sa.select(items.c.title + " copy")).returning(items.c.price)
    ),
    "insert a subclass returning": lambda s: sorted(
        (worker.id, worker.name, worker.wage)
        for worker in s.scalars(sa.insert(Worker).returning(Worker), [{"name": "Kim", "wage": 1}])
    ),
    "delete returning": lambda s: s.execute(sa.delete(Place).where(Place.row == 1).returning(Place.seat)),
}

UPDATE_RETURNING: dict[str, Callable[[Session], Any]] = {
    "update returning": lambda s: s.execute(sa.update(Item).where(Item.id < 3).values(price=2).returning(Item.name)),
    "update returning objects": lambda s: sorted(
        (item.id, item.price) for item in s.scalars(sa.update(Item).values(price=2).returning(Item))
    ),
}


def check_same(name: str, statement: Callable[[Session], Any], maker: Any, plain: Any) -> None:
    """Fail unless a statement does and returns the same in a session that records, and is recorded."""
    seen = []
    for make in (plain, maker):
        with maker() as session:
            fill(session)
        with make() as session:
            result = statement(session)
            if isinstance(result, sa.Result):
                result = outcome(result)
            session.commit()
            seen.append((result, rows(session)))
        if make is plain:
            Base.metadata.drop_all(plain.kw["bind"])
            Base.metadata.create_all(plain.kw["bind"])
    assert seen[1] == seen[0], name
    with maker() as session:
        for source in SOURCES:
            check_history(session, source)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_does_the_same_and_is_recorded(maker: Any, plain: Any, name: str) -> None:
    check_same(name, STATEMENTS[name], maker, plain)


@pytest.mark.parametrize("name", RETURNING)
def test_what_a_statement_returns_is_the_same(maker: Any, plain: Any, name: str) -> None:
    check_same(name, RETURNING[name], maker, plain)


@pytest.mark.requires("update_returning")
@pytest.mark.parametrize("name", UPDATE_RETURNING)
def test_what_an_update_returns_is_the_same(maker: Any, plain: Any, name: str) -> None:
    check_same(name, UPDATE_RETURNING[name], maker, plain)


def test_only_rows_that_changed_get_versions(maker: Any) -> None:
    with maker() as session:
        fill(session)
        session.execute(sa.update(Item).where(Item.id < 3).values(price=10, note="x"))
        session.execute(sa.update(Item).values(note="y"))
        session.commit()
        assert told(session, Item, "id", "price") == [
            ("insert", 1, 10),
            ("insert", 2, 20),
            ("update", 2, 10),
            ("insert", 3, 30),
            ("insert", 4, 40),
        ]


@pytest.mark.parametrize("name", ["before_flush", "after_flush"])
def test_a_statement_that_a_listener_of_the_flush_executes_is_recorded(maker: Any, name: str) -> None:
    def restock(session: Session, *args: Any) -> None:
        session.execute(sa.update(Item).where(Item.id == 2).values(stock=5))

    with maker() as session:
        fill(session)
        sa.event.listen(session, name, restock)
        session.get_one(Item, 1).price = 3
        session.commit()
        check_history(session, Item)
        assert told(session, Item, "id", "price", "stock")[:4] == [
            ("insert", 1, 10, 0),
            ("update", 1, 3, 0),
            ("insert", 2, 20, 0),
            ("update", 2, 20, 5),
        ]


def test_a_statement_with_schemas_of_its_own_is_refused(maker: Any) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
    with maker() as session:
        fill(session)
        with pytest.raises(sqlaudit.CaptureError, match="schema_translate_map of its own"):
            session.execute(sa.update(Item).values(price=1), execution_options={"schema_translate_map": {"a": "b"}})


def test_objects_that_are_selected_from_a_statement_are_noticed(maker: Any) -> None:
    statement = sa.insert(Item).values(name="new").returning(Item)
    with maker() as session, pytest.warns(sqlaudit.SQLAuditWarning, match="execute the statement itself"):
        session.scalars(sa.select(Item).from_statement(statement)).all()


# --- connections and engines ------------------------------------------------------------------------------------


@pytest.fixture
def recorded_engine(engine: sa.Engine, maker: Any) -> Iterator[sa.Engine]:
    sqlaudit.register_hooks(maker, engine=engine)
    yield engine
    sqlaudit.unregister_hooks(maker, engine=engine)


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


@pytest.mark.parametrize("name", CONNECTED)
def test_a_statement_of_a_connection_is_recorded(recorded_engine: sa.Engine, maker: Any, name: str) -> None:
    with maker() as session:
        fill(session)
    with sqlaudit.AuditContextManager(user_id="ana"), recorded_engine.begin() as connection:
        CONNECTED[name](connection)
    with maker() as session:
        for source in SOURCES:
            check_history(session, source)
        (last,) = sqlaudit.changesets(session, newest_first=True, limit=1)
        assert last.changed_by == "ana"


def test_a_connection_in_a_session_shares_its_changeset(recorded_engine: sa.Engine, maker: Any) -> None:
    with maker() as session:
        fill(session)
        session.get_one(Item, 1).price = 11
        session.flush()
        session.connection().execute(items.update().where(items.c.id == 2).values(price=12))
        session.execute(sa.update(Item).where(Item.id == 3).values(price=13))
        session.commit()
        (last,) = sqlaudit.changesets(session, newest_first=True, limit=1)
        changes = sqlaudit.changes_in(session, last.changeset_id)
        assert [(each.resource_id, each.new_value) for each in changes] == [(1, 11), (2, 12), (3, 13)]


def test_a_session_without_hooks_is_recorded_by_its_engine(recorded_engine: sa.Engine) -> None:
    with Session(recorded_engine) as session:
        fill(session)
        session.get_one(Item, 1).price = 11
        session.delete(session.get_one(Item, 2))
        third = session.get_one(Item, 3)
        third.tags.append(session.get_one(Tag, 1))
        session.get_one(Worker, 1).wage = 7
        session.commit()
        for source in SOURCES:
            check_history(session, source)


def test_a_rollback_leaves_nothing(recorded_engine: sa.Engine, maker: Any) -> None:
    with maker() as session:
        fill(session)
        before = told(session, Item, "id", "price")
    with recorded_engine.connect() as connection:
        connection.execute(items.update().values(price=0))
        connection.rollback()
    with maker() as session:
        savepoint = session.begin_nested()
        session.execute(sa.update(Item).values(price=0))
        savepoint.rollback()
        session.commit()
        assert told(session, Item, "id", "price") == before


def test_paused_tracking_pauses_statements_too(recorded_engine: sa.Engine, maker: Any) -> None:
    with maker() as session:
        fill(session)
        before = told(session, Item, "id", "price")
        with sqlaudit.tracking_disabled(session):
            session.execute(sa.update(Item).values(price=0))
            session.connection().execute(items.update().values(price=1))
            session.execute(sa.text("UPDATE bulk_items SET price = 2"))
        session.commit()
        assert told(session, Item, "id", "price") == before


def test_what_executes_no_statements_is_refused() -> None:
    with pytest.raises(sqlaudit.SQLAuditError, match="give an engine or a connection"):
        sqlaudit.register_hooks(engine="sqlite://")


# --- SQL that was written by hand -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["session", "connection", "driver"])
def test_sql_that_was_written_by_hand_is_noticed(recorded_engine: sa.Engine, maker: Any, how: str) -> None:
    sql = "UPDATE bulk_items SET price = 1"
    with maker() as session:
        fill(session)
        run = {
            "session": lambda: session.execute(sa.text(sql)),
            "connection": lambda: session.connection().execute(sa.text(sql)),
            "driver": lambda: session.connection().exec_driver_sql(sql),
        }[how]
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"bulk_items.*UPDATE bulk_items SET price") as seen:
            run()
        assert len(seen) == 1
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
        with pytest.raises(sqlaudit.CaptureError, match="record_changes"):
            run()
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
        run()
    with pytest.raises(sqlaudit.SQLAuditError, match="'warn', 'raise' or 'ignore'"):
        sqlaudit.SQLAuditConfig(on_uncaptured="whisper")  # type: ignore[arg-type]


@pytest.mark.parametrize("which", [[1, "2", 3, 5, 99], Item.price < 30, None])
def test_what_it_did_can_be_recorded_afterwards(maker: Any, which: Any) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
    with maker() as session:
        fill(session)
        session.execute(sa.text("UPDATE bulk_items SET price = price + 25 WHERE id = 1"))
        session.execute(sa.text("DELETE FROM bulk_parts WHERE item_id = 2"))
        session.execute(sa.text("DELETE FROM bulk_items WHERE id = 2"))
        session.execute(sa.text("INSERT INTO bulk_items (id, title, price) VALUES (5, 'new', 3)"))
        sqlaudit.record_changes(session, Item, which)
        session.commit()
        check_history(session, Item)
        assert told(session, Item, "id", "price") == [
            ("insert", 1, 10),
            ("update", 1, 35),
            ("insert", 2, 20),
            ("delete", 2, 20),
            ("insert", 3, 30),
            ("insert", 4, 40),
            ("insert", 5, 3),
        ]


def test_async_sessions_and_engines_are_recorded_too(async_engine: AsyncEngine) -> None:
    makers = async_sessionmaker(async_engine)
    sqlaudit.register_hooks(makers, engine=async_engine)

    async def work() -> list[Any]:
        async with async_engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
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
