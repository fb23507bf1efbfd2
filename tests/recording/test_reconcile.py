"""What SQL that passed us by has done can be recorded afterwards."""

import enum
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from invariants import check_history, told
from stock import (
    Base,  # noqa: F401  # whose tables the tests find
    Item,
    fill,
)


@pytest.mark.parametrize("which", [[1, "2", 3, 5, 99], Item.price < 30, None])
def test_what_it_did_can_be_recorded_afterwards(sessions: Any, which: Any) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
    with sessions() as session:
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


@pytest.mark.slow
def test_more_ids_than_a_statement_takes_parameters_are_recorded(sessions: Any) -> None:
    """More than any database takes: 65,535 on PostgreSQL and MariaDB, 32,766 on SQLite."""
    with sessions() as session:
        with sqlaudit.tracking_disabled(session):
            session.add_all([Item(id=id, name=str(id)) for id in (1, 69_999)])
            session.flush()
        sqlaudit.record_changes(session, Item, range(1, 70_001))
        session.commit()
        check_history(session, Item)
        assert told(session, Item, "id") == [("insert", 1), ("insert", 69_999)]


class Colour(enum.Enum):
    violet = "v"
    blue = "b"
    red = "r"


@pytest.mark.filterwarnings("ignore:Hand-written SQL")
def test_keys_that_a_database_sorts_otherwise_than_it_compares_them_are_all_found(
    base: Any, sessions: sessionmaker[Session]
) -> None:
    @sqlaudit.track_table()
    class Tile(base):
        __tablename__ = "tiles"

        colour: Mapped[Colour] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    rows = [{"colour": colour.name, "number": number} for colour in Colour for number in range(700)]
    with sessions() as session:
        base.metadata.create_all(session.connection())
        session.execute(sa.text("INSERT INTO tiles (colour, number) VALUES (:colour, :number)"), rows)
        sqlaudit.record_changes(session, Tile)
        session.commit()
        check_history(session, Tile)


@pytest.mark.spread
@pytest.mark.parametrize("meanwhile", [None, "object", "statement"])
@pytest.mark.parametrize("becomes", ["clerk", "boss", "person", None])
def test_what_a_row_has_left_unseen_ends_in_the_table_of_its_subclass(
    base: Any, engine: sa.Engine, sessions: Any, becomes: str | None, meanwhile: str | None
) -> None:
    """A row is deleted, or becomes of another class, while tracking is disabled, and is perhaps written before it is
    recorded."""

    @sqlaudit.track_table()
    class Person(base):
        __tablename__ = "people"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(10))
        name: Mapped[str] = mapped_column(sa.String(10))

    class Clerk(Person):
        __tablename__ = "clerks"
        __mapper_args__ = {"polymorphic_identity": "clerk"}
        id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id), primary_key=True)
        desk: Mapped[int]

    class Head(Clerk):
        __tablename__ = "heads"
        __mapper_args__ = {"polymorphic_identity": "head"}
        id: Mapped[int] = mapped_column(sa.ForeignKey(Clerk.id), primary_key=True)
        staff: Mapped[int]

    class Boss(Person):
        __tablename__ = "bosses"
        __mapper_args__ = {"polymorphic_identity": "boss"}
        id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id), primary_key=True)
        car: Mapped[int]

    new = {
        "clerk": lambda: Clerk(id=1, name="Ada", desk=1),
        "boss": lambda: Boss(id=1, name="Ada", car=3),
        "person": lambda: Person(id=1, name="Ada"),
    }
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([Head(id=1, name="Ada", desk=1, staff=2), Head(id=2, name="Bob", desk=2, staff=1)])
    with sessions() as session, sqlaudit.tracking_disabled(session):
        session.delete(session.get_one(Person, 1))
        session.flush()
        session.add_all([] if becomes is None else [new[becomes]()])
        session.commit()
    with sessions.begin() as session:
        if meanwhile == "object" and becomes:
            session.get_one(Person, 1).name = "Eve"
        elif meanwhile == "statement":
            session.execute(sa.update(Person).values(name="Eve"))
    with sessions.begin() as session:
        sqlaudit.record_changes(session, Person)
        check_history(session, Person)
    with sessions.begin() as session:
        with sqlaudit.time_travel(session, datetime.now(UTC)) as past:
            for model in (Person, Clerk, Head, Boss):
                live = {(type(each), each.id, each.name) for each in session.scalars(sa.select(model))}
                assert {(type(each), each.id, each.name) for each in past.scalars(sa.select(model))} == live
        if meanwhile is None:
            gone = {
                each.field_name: (each.old_value, each.new_value)
                for each in sqlaudit.get_resource_changes(Person, session, 1)
                if each.version == 2
            }
            assert gone["staff"] == (2, None)
            assert ("desk" in gone) == (becomes != "clerk")
        if becomes is None:
            session.add(Head(id=1, name="Ida", desk=1, staff=1))
    with sessions() as session:
        check_history(session, Person)
