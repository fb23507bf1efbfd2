"""A stock of items, with every kind of table that a bulk statement may write, and helpers for tests of bulk writes."""

from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit


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


class Crate(Base):
    """Not tracked."""

    __tablename__ = "bulk_crates"

    id: Mapped[int] = mapped_column(primary_key=True)


@sqlaudit.track_table()
class Part(Base):
    """A row that ``ON DELETE CASCADE`` deletes with its item, and that follows the item's key."""

    __tablename__ = "bulk_parts"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    item_id: Mapped[int] = mapped_column(sa.ForeignKey(Item.id, ondelete="CASCADE", onupdate="CASCADE"))
    crate_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Crate.id, ondelete="SET NULL"))


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


def happen(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        fill(session)


def insert_of(session: Session) -> Any:
    """Return the ``insert()`` of the session's dialect, which has its own ON CONFLICT."""
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
