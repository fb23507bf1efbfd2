"""Bulk statements: each does and returns what it would without us, and its rows are versioned, exactly."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased, sessionmaker, with_loader_criteria

import sqlaudit
from databases import Database
from invariants import check_history, told
from registering import recording
from stock import (
    SOURCES,
    Base,  # noqa: F401  # whose tables the tests find
    Crate,
    Guest,
    Item,
    Part,
    Person,
    Place,
    Tag,
    Worker,
    do_nothing,
    happen,  # noqa: F401  # what has happened when the tests begin
    item_tags,
    items,
    places,
    upsert,
)


@pytest.fixture
def sessions(happened: None, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, on a stock that is filled."""
    return sessions


@pytest.fixture
def plain(engine: sa.Engine) -> sessionmaker[Session]:
    """Sessions that record nothing."""
    return sessionmaker(engine)


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


def outcome(result: Any) -> Any:
    """Return what a caller can see of a result."""
    if isinstance(result, sa.CursorResult) and not result.returns_rows:
        return result.rowcount
    try:
        return sorted(tuple(row) for row in result)
    except sa.exc.ResourceClosedError:  # what the ORM gives for a statement that returns nothing
        return None


MOVE = items.update().where(items.c.id == sa.bindparam("old")).values(id=sa.bindparam("new"))

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
    "update from another table of none": lambda s: s.execute(
        sa.update(Item).where(Part.item_id == Item.id, Part.id == UUID(int=99)).values(stock=Part.item_id),
        execution_options={"synchronize_session": False},
    ),
    "update from a query": lambda s: s.execute(
        (lambda parts: sa.update(Item).where(Item.id == parts.c.item_id).values(stock=9))(
            sa.select(Part.item_id).distinct().subquery("parts_of_items")
        ),
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
    "update of keys by parameters, one after the other": lambda s: s.execute(
        MOVE, [{"old": 1, "new": 9}, {"old": 2, "new": 1}, {"old": 9, "new": 2}, {"old": 9, "new": 7}]
    ),
    "update of keys by an expression and parameters": lambda s: s.execute(
        items.update().where(items.c.id == sa.bindparam("old")).values(id=items.c.id + 10), [{"old": 1}, {"old": 2}]
    ),
    "update of a part of a key of an alias": lambda s: s.execute(
        (lambda it: sa.update(it).where(it.c.seat == "a").values(row=it.c.row + 10))(places.alias("it"))
    ),
    "update by a lambda": lambda s: s.execute(
        (lambda least: sa.lambda_stmt(lambda: sa.update(Item).where(Item.price > least).values(stock=1)))(15)
    ),
    "update of a table by a lambda": lambda s: s.execute(
        sa.lambda_stmt(lambda: items.update().where(items.c.price > 10).values(price=3))
    ),
    "update in an order": lambda s: s.execute(
        sa.update(Item).ordered_values((Item.price, Item.price + 1), (Item.stock, Item.price))
    ),
    "update of a mapped alias": lambda s: s.execute(
        (lambda it: sa.update(it).where(it.id < 3).values({it.price: 4}))(aliased(Item)),
        execution_options={"synchronize_session": False},
    ),
    "update under a loader criterion": lambda s: s.execute(
        sa.update(Item).values(price=5).options(with_loader_criteria(Item, Item.id < 3))
    ),
    "update by SQL": lambda s: s.execute(
        sa.update(Item).where(sa.text("price > 15")).values(price=4), execution_options={"synchronize_session": False}
    ),
    "update of a part of a key": lambda s: s.execute(
        sa.update(Place).values(seat=sa.case((Place.seat == "a", "c"), else_="d")),
        execution_options={"synchronize_session": False},
    ),
    "update of the key of an inserted subclass": lambda s: s.execute(
        sa.update(Person).where(Person.id == 2).values(id=22), execution_options={"synchronize_session": False}
    ),
    "update of a key that is not there": lambda s: s.execute(
        items.update().where(items.c.id == sa.bindparam("k")).values(price=1), [{"k": 1}, {"k": 77}]
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
    "delete many by keys": lambda s: (
        s.execute(places.delete().where(places.c.row == sa.bindparam("r")), [{"r": 1}, {"r": 7}]).rowcount
    ),
    "delete of a subclass": lambda s: s.execute(sa.delete(Worker).where(Worker.wage == 10)),
    "delete of a table of a subclass": lambda s: s.execute(Worker.__table__.delete()),
    "delete of a subclass, then of its base class": lambda s: (
        s.execute(sa.delete(Worker).where(Worker.id == 1)) and s.execute(sa.delete(Person).where(Person.id == 1))
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
    "insert a subclass by two statements": lambda s: (
        s.execute(Person.__table__.insert().values(id=50, kind="worker", name="x"))
        and s.execute(Worker.__table__.insert().values(id=50, wage=4))
    ),
    "insert what makes a row one of a subclass": lambda s: s.execute(Worker.__table__.insert().values(id=2, wage=4)),
    "insert what makes a row one of a subclass again": lambda s: [
        s.execute(statement) and s.commit()
        for statement in (
            Worker.__table__.delete(),
            Person.__table__.update().values(name="x"),
            Worker.__table__.insert().values(id=1, wage=4),
        )
    ],
    "insert inline": lambda s: s.execute(items.insert().inline().values(title="k")) and None,
    "insert NULLs": lambda s: (
        s.execute(
            sa.insert(Item).execution_options(render_nulls=True),
            [{"name": "a", "note": None}, {"name": "b", "note": "d"}],
        )
        and None
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
    "insert or update with another key": lambda s: (
        s.execute(upsert(s, items, {"price": 55}, "title").values(id=90, title="item 1")) and None
    ),
    "insert or update keys": lambda s: (
        s.execute(upsert(s, items, {"id": 100}, "title").values(title="item 1")) and None
    ),
    "insert or update links": lambda s: (
        s.execute(do_nothing(s, item_tags).values([{"item_id": 1, "tag_id": 1}, {"item_id": 3, "tag_id": 1}])) and None
    ),
    "insert or update from select": lambda s: (
        s.execute(
            upsert(s, items, {"price": 66}, "title").from_select(
                ["title"], sa.select(items.c.title).where(items.c.id < 3)
            )
        )
        and None
    ),
    "insert or move": lambda s: (
        s.execute(
            upsert(s, items, {"id": items.c.id + sa.literal_column("20")}, "id"),
            [{"id": 1, "title": "a"}, {"id": 2, "title": "b"}, {"id": 8, "title": "c"}],
        )
        and None
    ),
    "insert or move values": lambda s: (
        s.execute(
            upsert(s, items, {"id": items.c.id + sa.literal_column("20")}, "id").values(
                [{"id": 1, "title": "a"}, {"id": 8, "title": "c"}]
            )
        )
        and None
    ),
    "insert or update from columns without names": lambda s: (
        s.execute(
            upsert(s, items, {"price": 55}, "title").from_select(
                ["title", "price"], sa.select(sa.literal_column("'item 1'"), sa.text("5")).where(items.c.id == 1)
            )
        )
        and None
    ),
    "insert or update from columns of one name": lambda s: (
        s.execute(
            upsert(s, items, {"price": 55}, "title").from_select(
                ["title", "price"],
                sa.select(items.c.title.label("x"), (items.c.price + 1).label("x")).where(items.c.id < 3),
            )
        )
        and None
    ),
    "insert or update from a union of columns without names": lambda s: (
        s.execute(
            upsert(s, items, {"price": 55}, "title").from_select(
                ["title", "price"],
                sa.select(sa.literal_column("'item 1'"), sa.literal_column("5")).union_all(
                    sa.select(items.c.title, items.c.price).where(items.c.id == 2)
                ),
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
    "insert returning, and loaded by another statement": lambda s: sorted(
        (item.name, item.price)
        for item in s.scalars(sa.select(Item).from_statement(sa.insert(Item).values(name="a").returning(Item)))
    ),
    "delete returning": lambda s: s.execute(sa.delete(Place).where(Place.row == 1).returning(Place.seat)),
}

WITH_ALIASES: dict[str, Callable[[Any], Any]] = {
    "an update of a subclass": lambda guest: sa.update(guest).where(guest.id < 3).values(name="x"),
    "an update with criteria": lambda guest: (
        sa.update(guest).values(name="x").options(with_loader_criteria(Person, Person.id > 1))
    ),
    "an update with criteria for aliases, too": lambda guest: (
        sa.update(guest).values(name="x").options(with_loader_criteria(Guest, Guest.id < 1, include_aliases=True))
    ),
}

ON_CONFLICT: dict[str, Callable[[Session], Any]] = {
    "delete by a CTE": lambda s: (
        s.execute(sa.delete(Place).add_cte(sa.select(Part.item_id).cte("unused")).where(Place.row == 1)) and None
    ),
    "update by a CTE": lambda s: s.execute(
        (lambda cte: sa.update(Item).where(Item.id.in_(sa.select(cte.c.item_id))).values(price=5))(
            sa.select(Part.item_id).cte("with_parts")
        )
    ),
    "insert or update by key": lambda s: (
        s.execute(upsert(s, items, {"price": 55}, "id"), [{"id": 1, "title": "a"}, {"id": 90, "title": "new"}]) and None
    ),
    "insert or update many keys": lambda s: (
        s.execute(
            upsert(s, items, {"id": items.c.id + 100}, "title"),
            [{"title": "item 1"}, {"title": "item 2"}, {"title": "n"}],
        )
        and None
    ),
}

UPDATE_RETURNING: dict[str, Callable[[Session], Any]] = {
    "update returning": lambda s: s.execute(sa.update(Item).where(Item.id < 3).values(price=2).returning(Item.name)),
    "update returning objects": lambda s: sorted(
        (item.id, item.price) for item in s.scalars(sa.update(Item).values(price=2).returning(Item))
    ),
}


def check_same(name: str, statement: Callable[[Session], Any], sessions: Any, plain: Any, database: Database) -> None:
    """Fail unless a statement does and returns the same in a session that records, and is recorded."""
    seen = []
    for make in (plain, sessions):
        with make() as session:
            result = statement(session)
            if isinstance(result, sa.Result):
                result = outcome(result)
            session.commit()
            seen.append((result, rows(session)))
        if make is plain:
            database.reset()
    assert seen[1] == seen[0], name
    with sessions() as session:
        for source in SOURCES:
            check_history(session, source)


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_does_the_same_and_is_recorded(sessions: Any, plain: Any, database: Database, name: str) -> None:
    check_same(name, STATEMENTS[name], sessions, plain, database)


@pytest.mark.requires("on_conflict")
@pytest.mark.parametrize("name", ON_CONFLICT)
def test_a_statement_that_not_all_databases_have_is_recorded(
    sessions: Any, plain: Any, database: Database, name: str
) -> None:
    check_same(name, ON_CONFLICT[name], sessions, plain, database)


@pytest.mark.requires("on_conflict")  # MariaDB writes other rows of a table that a statement names twice
@pytest.mark.filterwarnings("ignore:.*cartesian product")
@pytest.mark.parametrize("name", WITH_ALIASES)
def test_a_statement_for_an_alias_writes_what_sqlalchemy_makes_of_it(
    sessions: Any, plain: Any, database: Database, name: str
) -> None:
    statement = WITH_ALIASES[name](aliased(Guest, name="alias"))
    quietly = {"synchronize_session": False}
    check_same(name, lambda s: s.execute(statement, execution_options=quietly) and None, sessions, plain, database)


@pytest.mark.parametrize("name", RETURNING)
def test_what_a_statement_returns_is_the_same(sessions: Any, plain: Any, database: Database, name: str) -> None:
    check_same(name, RETURNING[name], sessions, plain, database)


@pytest.mark.requires("update_returning")
@pytest.mark.parametrize("name", UPDATE_RETURNING)
def test_what_an_update_returns_is_the_same(sessions: Any, plain: Any, database: Database, name: str) -> None:
    check_same(name, UPDATE_RETURNING[name], sessions, plain, database)


@pytest.mark.parametrize(
    ("criterion", "parameters"),
    [
        (items.c.price == sa.bindparam("old"), [{"old": 10}, {"old": 10}]),
        (items.c.id == sa.bindparam("old"), [{"old": 1}, {"old": 11}]),
    ],
)
def test_moves_that_nobody_can_follow_are_noticed_and_left_alone(
    sessions: Any, criterion: Any, parameters: Any
) -> None:
    statement = items.update().where(criterion).values(id=items.c.id + 10)
    with sessions() as session:
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
        with pytest.raises(sqlaudit.CaptureError, match="Execute the statement once for each"):
            session.execute(statement, parameters)
        session.rollback()
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
        session.execute(statement, parameters)
        assert session.scalars(sa.select(Item.id).order_by(Item.id)).all() == [2, 3, 4, 21]


def test_what_was_inserted_before_the_rest_failed_is_recorded(sessions: Any) -> None:
    with sessions() as session:
        savepoint = session.begin_nested()
        with pytest.raises(sa.exc.IntegrityError):  # which are two statements, as the keys of the first differ
            session.execute(sa.insert(Item), [{"name": "a"}, {"name": "b", "price": 2}, {"name": "b", "price": 2}])
        if session.connection().dialect.name == "postgresql":
            savepoint.rollback()
        session.commit()
        check_history(session, Item)


def test_only_rows_that_changed_get_versions(sessions: Any) -> None:
    with sessions() as session:
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


def test_rows_whose_numbers_are_given_anew_go_on_with_their_history(sessions: Any) -> None:
    with sessions() as session:
        session.execute(sa.delete(Item).where(Item.id > 3))
        session.commit()
        session.execute(items.insert(), [{"title": "a"}, {"title": "b"}])
        session.execute(sa.insert(Item), [{"name": "c"}, {"name": "d"}])
        session.commit()
        assert session.scalar(sa.select(sa.func.count()).select_from(Item)) == 7
        check_history(session, Item)


def test_numbers_below_all_given_ones_are_recorded(sessions: Any) -> None:
    with sessions() as session:
        session.execute(sa.insert(Item), [{"id": -7, "name": "a"}, {"id": -5, "name": "b"}])
        session.execute(sa.insert(Item), [{"name": "c"}, {"name": "d"}])
        session.commit()
        check_history(session, Item)


@pytest.mark.parametrize("name", ["before_flush", "after_flush"])
def test_a_statement_that_a_listener_of_the_flush_executes_is_recorded(sessions: Any, name: str) -> None:
    def restock(session: Session, *args: Any) -> None:
        session.execute(sa.update(Item).where(Item.id == 2).values(stock=5))

    with sessions() as session:
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


@pytest.mark.parametrize("name", ["update", "delete"])
def test_rows_that_are_chosen_at_random_are_chosen_once(sessions: Any, name: str) -> None:
    with sessions() as session:
        session.execute(items.insert(), [{"title": f"more {number}"} for number in range(200)])
        is_mysql = session.connection().dialect.name in ("mysql", "mariadb")
        lucky = sa.select(Item.id).order_by(sa.func.rand() if is_mysql else sa.func.random()).limit(50).subquery()
        statement = sa.update(Item).values(price=0) if name == "update" else sa.delete(Item)
        result = session.execute(
            statement.where(Item.id.in_(sa.select(lucky.c.id))), execution_options={"synchronize_session": False}
        )
        assert result.rowcount == 50
        session.commit()
        for source in SOURCES:
            check_history(session, source)


def test_a_statement_with_schemas_of_its_own_is_refused(sessions: Any) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
    with sessions() as session, pytest.raises(sqlaudit.CaptureError, match="schema_translate_map of its own"):
        session.execute(sa.update(Item).values(price=1), execution_options={"schema_translate_map": {"a": "b"}})


def test_a_statement_with_no_schemas_of_its_own_is_recorded(sessions: Any) -> None:
    with sessions() as session:
        session.execute(sa.update(Item).values(price=1), execution_options={"schema_translate_map": {}})
        session.commit()
        check_history(session, Item)


RESULTS: dict[str, Callable[[Session], Any]] = {
    "insert": lambda s: s.execute(sa.insert(Item).values(name="new")),
    "insert into a table": lambda s: s.execute(items.insert().values(title="new")),
    "insert with a key": lambda s: s.execute(items.insert().values(id=44, title="new")),
    "insert many": lambda s: s.execute(items.insert(), [{"title": "a"}, {"title": "b"}]),
    "insert many objects": lambda s: s.execute(sa.insert(Item), [{"name": "a"}, {"name": "b"}]),
    "insert many with keys": lambda s: s.execute(items.insert(), [{"id": 50, "title": "a"}, {"id": 51, "title": "b"}]),
    "insert many values": lambda s: s.execute(items.insert().values([{"title": "a"}, {"title": "b"}])),
    "insert from select": lambda s: s.execute(items.insert().from_select(["title"], sa.select(items.c.title + "x"))),
    "insert or update": lambda s: s.execute(upsert(s, items, {"price": 4}, "title").values(title="item 1")),
    "insert or update a new row": lambda s: s.execute(upsert(s, items, {"price": 4}, "title").values(title="item 9")),
    "insert or do nothing": lambda s: s.execute(do_nothing(s, items).values(title="item 1")),
    "insert inline": lambda s: s.execute(items.insert().inline().values(title="x")),
    "insert with defaults returned": lambda s: s.execute(
        items.insert().values(title="rr").return_defaults(items.c.stock)
    ),
    "insert returning": lambda s: s.execute(items.insert().values(title="rr").returning(items.c.stock.label("x"))),
    "insert many returning": lambda s: s.execute(
        items.insert().returning(items.c.stock, items.c.title), [{"title": "rr"}, {"title": "ss"}]
    ),
    "update": lambda s: s.execute(sa.update(Item).values(price=4)),
    "update of a table": lambda s: s.execute(items.update().values(price=4)),
}


def told_by(result: Any) -> dict[str, Any]:
    """Return what a result tells of itself."""
    told: dict[str, Any] = {}
    of_insert = ("is_insert", "lastrowid", "inserted_primary_key", "inserted_primary_key_rows")
    for name in (*of_insert, "returns_rows", "rowcount", "keys"):
        try:
            value = getattr(result, name)
            told[name] = repr(value() if callable(value) else value)
        except Exception as error:
            told[name] = type(error)
    return told


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_tells_no_less(sessions: Any, plain: Any, database: Database, name: str) -> None:
    """Where it told nothing, by -1 or None, it may tell what we had to ask."""
    seen = []
    for make in (plain, sessions):
        with make() as session:
            seen.append(told_by(RESULTS[name](session)))
        database.reset()
    one, other = seen
    assert one == {
        key: one[key] if one[key] == "-1" or "None" in str(one[key]) else value for key, value in other.items()
    }


# --- statements that fail ---------------------------------------------------------------------------------------

FAILING: dict[str, Callable[[Any], Any]] = {
    "insert many with keys": lambda s: s.execute(
        items.insert(), [{"id": 10, "title": "a"}, {"id": 11, "title": "item 1"}]
    ),
    "insert many": lambda s: s.execute(items.insert(), [{"title": "a"}, {"title": "item 1"}]),
    "update many": lambda s: s.execute(
        items.update().where(items.c.id == sa.bindparam("k")).values(title=sa.bindparam("t")),
        [{"k": 1, "t": "a"}, {"k": 2, "t": "item 3"}],
    ),
    "what cannot be compiled": lambda s: s.execute(items.update().values(nonsense=1)),
    "what the database does not know": lambda s: s.execute(items.update().values(price=sa.func.nonsense())),
    "without a parameter": lambda s: s.execute(
        items.update().where(items.c.id == sa.bindparam("k")).values(price=sa.bindparam("p")), [{"k": 1, "p": 1}, {}]
    ),
}
FAILING_OF_SESSIONS: dict[str, Callable[[Session], Any]] = {
    "insert objects": lambda s: s.execute(sa.insert(Item), [{"id": 10, "name": "a"}, {"id": 11, "name": "item 1"}]),
    "insert objects of a subclass": lambda s: s.execute(sa.insert(Worker), [{"id": 9, "name": "a", "wage": None}]),
    "update objects": lambda s: s.execute(sa.update(Item), [{"id": 1, "name": "a"}, {"id": 2, "name": "item 3"}]),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(
        Item, [{"id": 10, "name": "a"}, {"id": 11, "name": "b", "price": 3}, {"id": 12, "name": "item 1"}]
    ),
    "bulk_save_objects": lambda s: s.bulk_save_objects([Item(id=10, name="a"), Tag(id=7), Item(id=12, name="item 1")]),
}


@pytest.mark.parametrize("name", FAILING | FAILING_OF_SESSIONS)
def test_what_a_statement_did_before_it_failed_is_undone_or_recorded(sessions: Any, name: str) -> None:
    with sessions() as session:
        session.execute(sa.delete(item_tags))
        with pytest.raises(sa.exc.SQLAlchemyError):
            (FAILING | FAILING_OF_SESSIONS)[name](session)
        if session.is_active and session.connection().dialect.name != "postgresql":
            session.commit()  # there, the failure ends the transaction
        session.rollback()
        for source in SOURCES:
            check_history(session, source)


@pytest.mark.parametrize("name", FAILING)
def test_what_a_statement_of_a_connection_did_before_it_failed_is_undone(
    recorded_engine: sa.Engine, sessions: Any, name: str
) -> None:
    with recorded_engine.connect() as connection:
        with pytest.raises(sa.exc.SQLAlchemyError):
            FAILING[name](connection)
        if connection.dialect.name == "postgresql":
            connection.rollback()
        connection.execute(items.update().where(items.c.id == 4).values(price=1))
        connection.commit()
    with sessions() as session:
        for source in SOURCES:
            check_history(session, source)
        assert told(session, Item, "id", "price")[-1] == ("update", 4, 1)


@pytest.mark.parametrize("name", ["what cannot be compiled", "what the database does not know", "without a parameter"])
def test_a_statement_that_failed_leaves_no_baseline(sessions: Any, plain: Any, database: Database, name: str) -> None:
    with plain() as session:
        session.execute(sqlaudit.history_of(Item).__table__.delete())  # the rows are older than their tracking
        session.commit()
    with sessions() as session:
        with pytest.raises(sa.exc.SQLAlchemyError):
            FAILING[name](session)
        if name != "what the database does not know" or session.connection().dialect.name != "postgresql":
            session.commit()
        session.rollback()
        assert told(session, Item, "id") == []


# --- what a statement does besides ------------------------------------------------------------------------------


@pytest.mark.requires("replacing_inserts")
def test_nobody_writes_between_the_look_for_rows_and_the_statement(database: Database, sessions: Any) -> None:
    """On SQLite, whose driver begins a transaction with the first write only."""
    engine = sa.create_engine(database.url)
    other = database.create_engine(connect_args={"timeout": 0})

    @sa.event.listens_for(engine, "before_cursor_execute")
    def write_meanwhile(connection: Any, cursor: Any, sql: str, *args: Any) -> None:
        if sql.startswith("UPDATE bulk_items "):
            with recording(other) as others, suppress(sa.exc.OperationalError), others.begin() as session:
                session.add(Item(name="new", price=10))

    with recording(engine) as recorded, recorded.begin() as session:
        session.execute(sa.update(Item).where(Item.price == 10).values(price=2))
    with sessions() as session:
        check_history(session, Item)
    engine.dispose()
    other.dispose()


KEEPING = {
    "sqlite": ["CREATE TRIGGER keep BEFORE DELETE ON bulk_tags WHEN OLD.id = 2 BEGIN SELECT RAISE(IGNORE); END"],
    "postgresql": [
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF OLD.id = 2 THEN RETURN NULL; END IF; RETURN OLD; END'",
        "CREATE TRIGGER keep BEFORE DELETE ON bulk_tags FOR EACH ROW EXECUTE FUNCTION keep()",
    ],
}


@pytest.mark.requires("on_conflict")  # where a trigger can keep a row from being deleted
def test_a_row_that_a_trigger_keeps_from_being_deleted_has_no_tombstone(
    engine: sa.Engine, sessions: Any, database: Database
) -> None:
    with engine.begin() as connection:
        for statement in KEEPING[database.name]:
            connection.exec_driver_sql(statement)
    with sessions.begin() as session:
        session.add_all([Tag(id=2), Tag(id=3)])
    with sessions.begin() as session:
        session.execute(sa.delete(Tag).where(Tag.id > 1))
    with sessions() as session:
        check_history(session, Tag)
        assert told(session, Tag, "id") == [("insert", 1), ("insert", 2), ("insert", 3), ("delete", 3)]


@pytest.mark.requires("writing_ctes")
@pytest.mark.parametrize("how", ["session", "connection"])
def test_a_statement_in_the_cte_of_another_is_noticed_and_executed_once(
    recorded_engine: sa.Engine, sessions: Any, how: str
) -> None:
    cte = items.update().values(price=items.c.price + 1).returning(items.c.id).cte()
    with sessions() as session:
        run = session.execute if how == "session" else session.connection().execute
        for statement in (
            sa.select(cte),
            sa.insert(Crate).from_select(["id"], sa.select(cte.c.id + 5)),
            sa.delete(Crate).where(Crate.id.in_(sa.select(cte.c.id))),
            Tag.__table__.insert().from_select(["id"], sa.select(cte.c.id + 5)),
            sa.update(Place).where(Place.row.in_(sa.select(cte.c.id))).values(taken=True),
            sa.delete(Place).where(Place.seat == "a").add_cte(cte),
        ):
            with pytest.warns(
                sqlaudit.SQLAuditWarning, match="also writes .*bulk_items'|by another statement within it"
            ):
                run(statement)
        assert session.scalars(sa.select(Item.price).where(Item.id == 1)).one() == 16
        for model in (Item, Place):
            sqlaudit.record_changes(session, model)
        session.commit()
        for source in SOURCES:
            check_history(session, source)


@pytest.mark.requires("updates_of_two_tables")
def test_an_update_of_two_tables_is_noticed(sessions: Any) -> None:
    crates: Any = Crate.__table__
    with sessions() as session:
        with pytest.warns(sqlaudit.SQLAuditWarning, match="also writes .*bulk_places'"):
            session.execute(
                items.update().where(places.c.row == items.c.id).values({items.c.price: 7, places.c.taken: True})
            )
        with pytest.warns(sqlaudit.SQLAuditWarning, match="also writes .*bulk_places'"):
            session.execute(crates.update().where(places.c.row == crates.c.id).values({places.c.taken: True}))
        check_history(session, Item)


@pytest.mark.requires("updates_of_two_tables")
@pytest.mark.filterwarnings("ignore:.*cartesian product")
def test_an_update_of_a_subclass_that_writes_other_rows_of_its_base_is_noticed(sessions: Any) -> None:
    update = sa.update(Worker).values(wage=7, name="x")
    with sessions() as session:
        session.execute(update.where(Worker.id == Person.id), execution_options={"synchronize_session": False})
        session.commit()
        check_history(session, Person)
        with pytest.warns(sqlaudit.SQLAuditWarning, match="also writes .*bulk_people'"):
            session.execute(update.where(Person.id > 0), execution_options={"synchronize_session": False})
