"""Rows of every shape have pages: with keys and values of many types, in hierarchies, with few rights."""

import datetime as dt
import enum
import uuid
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from desk import crawled, links_of, visitor, words_of
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from sqlaudit import AuditContextManager, track_table
from sqlaudit.web import HistoryBrowser


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Base(DeclarativeBase):
    pass


class Untracked(Base):
    __tablename__ = "shapes_untracked"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@track_table()
class Sample(Base):
    __tablename__ = "shapes_samples"
    code: Mapped[uuid.UUID] = mapped_column(sa.Uuid, primary_key=True)
    day: Mapped[dt.date] = mapped_column(primary_key=True)
    colour: Mapped[Colour] = mapped_column(sa.Enum(Colour, native_enum=False, length=10), primary_key=True)
    raw: Mapped[bytes] = mapped_column(sa.LargeBinary(20))
    flag: Mapped[bool]
    ratio: Mapped[float]
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(10, 3))
    at: Mapped[dt.datetime]
    span: Mapped[dt.timedelta] = mapped_column(sa.Interval)
    tree: Mapped[Any] = mapped_column(sa.JSON)


@track_table(exclude=["secret"], quiet=["seen"])
class Animal(Base):
    __tablename__ = "shapes_animals"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str] = mapped_column("the name", sa.String(50))
    secret: Mapped[str | None] = mapped_column(sa.String(50))
    seen: Mapped[int] = mapped_column(default=0)
    mother_id: Mapped[int | None] = mapped_column(sa.ForeignKey("shapes_animals.id"))
    place_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Untracked.id))
    children: Mapped[list["Animal"]] = relationship()
    place: Mapped[Untracked | None] = relationship()
    siblings: Mapped[list["Animal"]] = relationship(
        viewonly=True, primaryjoin="foreign(Animal.mother_id) == remote(Animal.mother_id)", uselist=True
    )
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


@track_table(table_label="Good dog")
class Dog(Animal):
    __tablename__ = "shapes_dogs"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
    tricks: Mapped[int]
    toys: Mapped[list["Toy"]] = relationship()
    __mapper_args__ = {"polymorphic_identity": "dog"}


@track_table(resource_id_field="dog_id")
class Toy(Base):
    __tablename__ = "shapes_toys"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    dog_id: Mapped[int] = mapped_column(sa.ForeignKey(Dog.id))
    name: Mapped[str] = mapped_column(sa.String(50))


def happen(sessions: sessionmaker[Session]) -> None:
    with sessions() as session, AuditContextManager("ana"):
        key = {"code": uuid.UUID(int=7), "day": dt.date(2024, 2, 29), "colour": Colour.BLUE}
        values = {"raw": b"\0\xff", "flag": True, "ratio": 0.1, "amount": Decimal("1.250"), "tree": {"a": [1, None]}}
        session.add(Sample(**key, **values, at=dt.datetime(2024, 1, 1, 12), span=dt.timedelta(hours=36)))  # noqa: DTZ001  # without a zone
        session.add_all([Animal(id=1, name="Ada", secret="s"), Dog(id=2, name="Rex", tricks=1, mother_id=1)])
        session.flush()
        session.add(Toy(id=1, dog_id=2, name="ball"))
        session.commit()
        sample, dog = session.scalars(sa.select(Sample)).one(), session.get_one(Dog, 2)
        sample.flag, sample.ratio, sample.tree, sample.raw = False, float("0.2"), {"a": [1, 2]}, b"x"
        dog.tricks, dog.name = 2, "Rex the Good"
        session.get_one(Toy, 1).name = "bone"
        session.commit()


@pytest.mark.parametrize("is_restricted", [False, True])
@pytest.mark.spread
def test_rows_of_every_shape_have_pages(sessions: sessionmaker[Session], happened: None, is_restricted: bool) -> None:
    def authorize(request: Any, action: str, model: Any, key: Any) -> Any:
        return Animal.id < 9 if model is Animal else {"raw"} if model is Sample else True

    client = visitor(HistoryBrowser(sessions, Base, authorize=authorize if is_restricted else None))
    crawled(client)
    [sample] = [link for link in links_of(client.get("/tables/shapes_samples").text) if "row?" in link][:1]
    assert sample.endswith("row?key=00000000-0000-0000-0000-000000000007&key=2024-02-29&key=BLUE")
    text = words_of(client.get(f"/tables/{sample}").text)
    assert "flag true → false" in text
    assert ("raw hidden" in text) is is_restricted
    for table in ("shapes_animals", "shapes_dogs"):
        text = words_of(client.get(f"/tables/{table}/row?key=2").text)
        assert "tricks 2" in text
        assert "ana changed name Rex → Rex the Good, tricks 1 → 2" in text
        assert "mother_id 1" in text
    assert "children Good dog 2" in words_of(client.get("/tables/shapes_animals/row?key=1").text)
    assert "name ball → bone" in words_of(client.get("/tables/shapes_toys/row?key=1").text)
