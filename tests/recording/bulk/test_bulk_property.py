"""Statements, objects and SQL, mixed at random in transactions that commit or roll back: history agrees with the rows.

That each statement does what it would without us is tested one by one in ``test_bulk``.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import FlushError, ObjectDeletedError, StaleDataError

import sqlaudit
from databases import Database
from effort import profile
from invariants import check_history
from stock import (
    SOURCES,
    Base,  # noqa: F401  # whose tables the tests find
    Guest,
    Item,
    Part,
    Person,
    Place,
    Tag,
    Worker,
    do_nothing,
    fill,
    item_tags,
    items,
    upsert,
)

REFUSED = (sa.exc.IntegrityError, sa.exc.DataError, StaleDataError, ObjectDeletedError, FlushError)
QUIETLY = {"synchronize_session": False}
people: Any = Person.__table__
workers: Any = Worker.__table__


def change_object(session: Session, a: int, b: int) -> None:
    if (item := session.get(Item, a)) is not None:
        item.price, item.name = b, f"{item.name[:20]}{b % 3}"
        if (tag := session.get(Tag, 1)) is not None and b % 2:
            item.tags = [] if item.tags else [tag]
    session.flush()


def delete_object(session: Session, a: int, b: int) -> None:
    if (found := session.get((Item, Person, Part)[b % 3], UUID(int=a) if b % 3 == 2 else a)) is not None:
        session.delete(found)
    session.flush()


def insert_halfway(session: Session, a: int, b: int) -> None:
    session.execute(items.insert(), [{"id": 20 + a, "title": f"half {a}"}, {"id": 40 + b, "title": f"half {a}"}])


def by_hand(session: Session, a: int, b: int) -> None:
    session.execute(sa.text("UPDATE bulk_items SET price = :price WHERE id >= :id"), {"price": b, "id": a})
    session.execute(sa.text("DELETE FROM bulk_places WHERE taken = :taken"), {"taken": bool(a % 2)})
    for model in (Item, Place):
        sqlaudit.record_changes(session, model)


OPERATIONS: dict[str, Callable[[Session, int, int], Any]] = {
    "change an object": change_object,
    "delete an object": delete_object,
    "add an object": lambda s, a, b: (s.add(Item(id=a + 10, name=f"added {a}", price=b)), s.flush()),
    "add a part": lambda s, a, b: (s.add(Part(id=UUID(int=a), item_id=b)), s.flush()),
    "add a worker": lambda s, a, b: (s.add(Worker(id=a, name="x", wage=b)), s.flush()),
    "update": lambda s, a, b: s.execute(sa.update(Item).where(Item.price >= a * 5).values(price=b * 5)),
    "update all": lambda s, a, b: s.execute(sa.update(Item).values(price=Item.price + b % 2, note="seen")),
    "update by keys": lambda s, a, b: s.execute(sa.update(Item), [{"id": a, "stock": b}]),
    "update many": lambda s, a, b: s.execute(
        items.update().where(items.c.id == sa.bindparam("k")).values(stock=sa.bindparam("n")),
        [{"k": a, "n": 1}, {"k": b, "n": 2}],
    ),
    "move": lambda s, a, b: s.execute(sa.update(Item).where(Item.id == a).values(id=b), execution_options=QUIETLY),
    "move by parameters": lambda s, a, b: s.execute(
        items.update().where(items.c.id == sa.bindparam("old")).values(id=sa.bindparam("new")),
        [{"old": a, "new": 90 + b}, {"old": b, "new": a}, {"old": 90 + b, "new": b}],
    ),
    "move many": lambda s, a, b: s.execute(
        sa.update(Item).where(Item.id >= a).values(id=Item.id + 50 * (b % 2)), execution_options=QUIETLY
    ),
    "update people": lambda s, a, b: s.execute(sa.update(Person).where(Person.id >= a).values(name=f"n{b}")),
    "update workers": lambda s, a, b: s.execute(sa.update(Worker).values(wage=b)),
    "update guests": lambda s, a, b: s.execute(sa.update(Guest).values(name=f"g{b}")),
    "update places": lambda s, a, b: s.execute(
        sa.update(Place).where(Place.row == a).values(taken=bool(b % 2), row=Place.row + b // 3),
        execution_options=QUIETLY,
    ),
    "update links": lambda s, a, b: s.execute(item_tags.update().values(item_id=a)),
    "delete": lambda s, a, b: s.execute(sa.delete(Item).where(Item.id.between(a, a + b % 3))),
    "delete many": lambda s, a, b: s.execute(
        items.delete().where(items.c.id == sa.bindparam("k")), [{"k": a}, {"k": b}]
    ),
    "delete workers": lambda s, a, b: s.execute(sa.delete(Worker).where(Worker.wage >= a), execution_options=QUIETLY),
    "delete people": lambda s, a, b: s.execute(sa.delete(Person).where(Person.id == a), execution_options=QUIETLY),
    "delete links": lambda s, a, b: s.execute(item_tags.delete()),
    "delete by query": lambda s, a, b: s.query(Place).filter(Place.row == a).delete(),
    "insert": lambda s, a, b: s.execute(sa.insert(Item).values(name=f"new {a} {b}")),
    "insert many": lambda s, a, b: s.execute(items.insert(), [{"title": f"m {a} {n}"} for n in range(b)]),
    "insert with keys": lambda s, a, b: s.execute(sa.insert(Item), [{"id": a, "name": f"k {a}", "price": b}]),
    "insert halfway": insert_halfway,
    "insert from select": lambda s, a, b: s.execute(
        items.insert().from_select(["title"], sa.select(items.c.title + f" {a}").where(items.c.id == b))
    ),
    "insert workers": lambda s, a, b: s.execute(sa.insert(Worker), [{"name": "x", "wage": n} for n in range(b)]),
    "insert a person, or what makes one a worker": lambda s, a, b: s.execute(
        workers.insert().values(id=a, wage=b) if b % 2 else people.insert().values(id=a, kind="person", name="p")
    ),
    "insert links": lambda s, a, b: s.execute(do_nothing(s, item_tags).values(item_id=a, tag_id=1)),
    "upsert": lambda s, a, b: s.execute(
        upsert(s, items, {"price": b}, "title").values([{"title": f"item {a}"}, {"title": f"item {b + 20}"}])
    ),
    "upsert by key": lambda s, a, b: s.execute(upsert(s, items, {"price": b}, "id").values(id=a, title=f"u {b}")),
    "do nothing": lambda s, a, b: s.execute(do_nothing(s, items).values(id=a, title=f"item {b}")),
    "bulk_insert_mappings": lambda s, a, b: s.bulk_insert_mappings(Worker, [{"id": a, "name": "b", "wage": b}]),
    "bulk_update_mappings": lambda s, a, b: s.bulk_update_mappings(Item, [{"id": a, "price": b}]),
    "bulk_save_objects": lambda s, a, b: s.bulk_save_objects([Place(row=a, seat="z"), Item(name=f"bulk {a} {b}")]),
    "a connection": lambda s, a, b: s.connection().execute(items.update().where(items.c.id >= a).values(stock=b)),
    "by hand": by_hand,
}
ENDS = ("commit", "commit", "rollback", "savepoint", "other context")
NUMBER = st.integers(1, 6)
STEPS = st.lists(st.tuples(st.sampled_from([*ENDS * 2, *OPERATIONS]), NUMBER, NUMBER), min_size=10, max_size=30)


def live_through(session: Session, steps: list[tuple[str, int, int]]) -> None:
    fill(session)
    for name, a, b in steps:
        if name == "commit":
            session.commit()
            check(session)
        elif name == "rollback":
            session.rollback()
        elif name == "savepoint":
            savepoint = session.begin_nested()
            try_to(session, OPERATIONS["update all"], a, b)
            try_to(session, OPERATIONS["delete"], a, b)
            if savepoint.is_active:
                savepoint.rollback()
        elif name == "other context":
            sqlaudit.set_audit_context(user_id=f"user {a}")
        else:
            try_to(session, OPERATIONS[name], a, b)
    session.commit()
    check(session)


def try_to(session: Session, operation: Callable[[Session, int, int], Any], a: int, b: int) -> None:
    """Do it, and go on in the transaction if the database refuses it, without a savepoint where that is possible."""
    savepoint = session.begin_nested() if session.connection().dialect.name == "postgresql" or a % 2 else None
    try:
        operation(session, a, b)
    except (*REFUSED, sa.exc.OperationalError) as error:
        if not isinstance(error, REFUSED) and "would lead to a duplicate entry" not in str(error):
            raise  # so MariaDB calls what ON UPDATE CASCADE would do, and nothing else
        if savepoint is not None and savepoint.is_active:
            savepoint.rollback()
        elif not session.is_active:  # the flush has rolled it back
            session.rollback()
    else:
        if savepoint is not None and savepoint.is_active:
            savepoint.commit()
    session.expire_all()


def check(session: Session) -> None:
    for source in SOURCES:
        check_history(session, source)
    session.rollback()


@pytest.mark.filterwarnings("ignore:DELETE statement on table:sqlalchemy.exc.SAWarning")
def test_history_agrees_with_the_rows_whatever_wrote_them(database: Database, sessions: sessionmaker[Session]) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))

    @profile(database, few=10, many=20)
    @given(STEPS)
    def lives(steps: list[tuple[str, int, int]]) -> None:
        database.reset()
        sqlaudit.clear_audit_context()
        with sessions() as session:
            live_through(session, steps)

    lives()
    sqlaudit.clear_audit_context()
