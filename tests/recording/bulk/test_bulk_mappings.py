"""Bulk statements on tables that are mapped oddly, or hang together, also where nothing waits for a commit."""

import enum
from collections.abc import Callable
from datetime import date
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from invariants import check_history, told


class Base(DeclarativeBase):
    pass


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Reversed(sa.TypeDecorator[str]):
    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value[::-1]

    process_result_value = process_bind_param


@sqlaudit.track_table()
class Named(Base):
    """Its attributes, its columns and the keys of these have different names."""

    __tablename__ = "odd names"

    code: Mapped[str] = mapped_column("the code", sa.String(20), key="kode", primary_key=True)
    value: Mapped[int] = mapped_column("select", key="v", default=0)


@sqlaudit.track_table()
class Decorated(Base):
    __tablename__ = "decorated"

    id: Mapped[str] = mapped_column(Reversed(), primary_key=True)
    value: Mapped[int] = mapped_column(default=0, onupdate=7)


@sqlaudit.track_table()
class Stamped(Base):
    __tablename__ = "stamped"

    color: Mapped[Color] = mapped_column(primary_key=True)
    at: Mapped[date] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


@sqlaudit.track_table()
class Counted(Base):
    """Python makes its keys, and counts its changes."""

    __tablename__ = "counted"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    value: Mapped[int] = mapped_column(default=0)
    count: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": count}


@sqlaudit.track_table()
class Node(Base):
    __tablename__ = "nodes"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("nodes.id", ondelete="CASCADE"))
    value: Mapped[int] = mapped_column(default=0)


@sqlaudit.track_table()
class Top(Base):
    __tablename__ = "tops"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    x: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "top"}


class Middle(Top):
    __tablename__ = "middles"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Top.id), primary_key=True)
    y: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "middle"}


class Bottom(Middle):
    __tablename__ = "bottoms"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Middle.id), primary_key=True)
    z: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "bottom"}


MODELS = (Named, Decorated, Stamped, Counted, Node, Top)
QUIETLY = {"synchronize_session": False}
MAY, JUNE = date(2024, 5, 1), date(2024, 6, 1)
named, tops, middles, bottoms = (each.__table__ for each in (Named, Top, Middle, Bottom))


def happen(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        session.add_all([Named(code="a", value=1), Named(code="b", value=2), Decorated(id="pq"), Decorated(id="rs")])
        session.add_all([Stamped(color=Color.RED, at=MAY), Stamped(color=Color.BLUE, at=MAY), Counted(), Counted()])
        session.add_all([Top(), Middle(), Bottom()])
        for _ in range(3):
            session.add(Node(parent_id=session.scalar(sa.select(sa.func.max(Node.id)))))
            session.flush()
        session.commit()


@pytest.fixture
def sessions(happened: None, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, when that has happened."""
    return sessions


WRITES: dict[str, list[Callable[[Session], Any]]] = {
    "names": [
        lambda s: s.execute(sa.update(Named).where(Named.value > 1).values(value=9)),
        lambda s: s.execute(sa.insert(Named), [{"code": "c", "value": 3}, {"code": "d"}]),
        lambda s: s.execute(sa.update(Named), [{"code": "a", "value": 30}]),
        lambda s: s.execute(named.update().where(named.c.kode == "b").values(v=4)),
        lambda s: s.execute(sa.delete(Named).where(Named.code == "c")),
        lambda s: s.execute(sa.update(Named).where(Named.value > 9).values(code="z"), execution_options=QUIETLY),
    ],
    "decorated keys": [
        lambda s: s.execute(sa.update(Decorated).where(Decorated.id == "pq").values(value=5)),
        lambda s: s.execute(sa.update(Decorated).values(value=Decorated.value + 1)),
        lambda s: s.execute(sa.insert(Decorated), [{"id": "tu"}, {"id": "vw"}]),
        lambda s: s.execute(
            sa.update(Decorated).where(Decorated.id == "rs").values(id="xy"), execution_options=QUIETLY
        ),
        lambda s: s.execute(sa.delete(Decorated).where(Decorated.id.in_(["tu", "pq"]))),
    ],
    "keys of two types": [
        lambda s: s.execute(sa.update(Stamped).where(Stamped.color == Color.RED, Stamped.at == MAY).values(value=5)),
        lambda s: s.execute(sa.insert(Stamped), [{"color": Color.RED, "at": JUNE}]),
        lambda s: s.execute(
            sa.update(Stamped).where(Stamped.color == Color.BLUE).values(at=JUNE), execution_options=QUIETLY
        ),
        lambda s: s.execute(sa.delete(Stamped).where(Stamped.at == MAY)),
    ],
    "keys of Python's": [
        lambda s: s.execute(sa.update(Counted).values(value=5)),
        lambda s: s.execute(sa.insert(Counted), [{"count": 1}, {"count": 1}]),
        lambda s: s.execute(sa.insert(Counted).values([{"value": 4, "count": 1}, {"value": 5, "count": 1}])),
        lambda s: s.execute(Counted.__table__.insert(), [{"value": 1, "count": 1}, {"value": 2, "count": 1}]),
        lambda s: s.bulk_update_mappings(
            Counted, [{"id": each.id, "value": 6, "count": each.count} for each in s.scalars(sa.select(Counted))]
        ),
    ],
    "a tree": [
        lambda s: s.execute(sa.update(Node).values(value=Node.id)),
        lambda s: s.execute(sa.insert(Node).values([{"value": sa.func.abs(-3)}, {"value": 4}])),
        lambda s: s.execute(Node.__table__.insert(), [{"value": value} for value in range(3)]),
        lambda s: s.execute(sa.delete(Node).where(Node.parent_id.is_(None), Node.value == 1)),
        lambda s: s.execute(sa.insert(Node).values(id=1)),
    ],
    "three tables": [
        lambda s: s.execute(sa.update(Top).values(x=3)),
        lambda s: s.execute(sa.update(Middle).values(y=3)),
        lambda s: s.execute(sa.update(Bottom).values(z=3)),
        lambda s: s.execute(sa.insert(Bottom), [{"x": 1, "y": 2, "z": 3}, {"z": 4}]),
        lambda s: s.execute(sa.update(Bottom), [{"id": 3, "x": 8, "z": 9}]),
        lambda s: s.execute(sa.delete(Bottom).where(Bottom.id == 3)),
        lambda s: s.execute(sa.update(Middle).where(Middle.id == 3).values(y=6)),
        lambda s: s.execute(bottoms.insert().values(id=3, z=5)),
        lambda s: s.execute(sa.delete(Bottom).where(Bottom.id == 3)),
        lambda s: [s.execute(bottoms.insert().values(id=3)), s.execute(tops.update().values(x=7))],
        lambda s: s.execute(sa.delete(Bottom).where(Bottom.id == 3)),
        lambda s: s.execute(sa.delete(Middle).where(Middle.id == 3)),
        lambda s: s.execute(sa.delete(Top).where(Top.id == 3)),
        lambda s: s.execute(tops.insert().values(id=90, kind="bottom")),
        lambda s: s.execute(middles.insert().values(id=90)),
        lambda s: s.execute(bottoms.insert().values(id=90)),
    ],
}


@pytest.mark.spread
@pytest.mark.parametrize("how", ["in one transaction", "in several", "without any"])
@pytest.mark.parametrize("name", WRITES)
def test_statements_are_recorded(sessions: sessionmaker[Session], name: str, how: str) -> None:
    if how == "without any":
        sessions.configure(bind=sessions.kw["bind"].execution_options(isolation_level="AUTOCOMMIT"))
    with sessions() as session:
        for write in WRITES[name]:
            write(session)
            if how != "in one transaction":
                session.commit()
                for model in MODELS:
                    check_history(session, model)
                session.rollback()
        session.commit()
        for model in MODELS:
            check_history(session, model)


def test_a_row_that_leaves_its_subclass_has_a_tombstone_there(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        session.execute(sa.delete(Bottom))
        session.commit()
        assert [operation for (operation,) in told(session, Bottom.__table__)] == ["insert", "delete"]


MOVE_BY_NAME = named.update().where(named.c.kode == sa.bindparam("old")).values(kode=sa.bindparam("new"))


@pytest.mark.requires("case_insensitive")
@pytest.mark.parametrize(
    "respell",
    [
        lambda session: setattr(session.get_one(Named, "a"), "code", "A"),
        lambda session: session.execute(sa.update(Named).where(Named.code == "a").values(code="A")),
        lambda session: session.execute(MOVE_BY_NAME, [{"old": "a", "new": "A"}]),
    ],
    ids=["object", "statement", "parameters"],
)
def test_a_key_that_is_spelt_otherwise_is_of_the_same_row(sessions: sessionmaker[Session], respell: Any) -> None:
    with sessions() as session:
        respell(session)
        session.commit()
        session.execute(sa.update(Named).where(Named.code == "a").values(value=2))
        session.commit()
        lives = [("insert", "a", 1), ("update", "A", 1), ("update", "A", 2), ("insert", "b", 2)]
        assert told(session, Named, "code", "value") == lives


@pytest.mark.requires("case_insensitive")
def test_rows_are_recorded_by_keys_that_are_spelt_otherwise(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        with sqlaudit.tracking_disabled(session):
            session.execute(named.update().values(v=7))
        sqlaudit.record_changes(session, Named, ["A"])
        session.commit()
        assert told(session, Named, "code", "value") == [("insert", "a", 1), ("update", "a", 7), ("insert", "b", 2)]


def test_moves_by_keys_that_a_database_may_take_for_one_are_found_afterwards(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        moves = [{"old": "a", "new": "X"}, {"old": "x", "new": "z"}, {"old": "b", "new": "x"}]
        session.execute(MOVE_BY_NAME, moves)
        assert session.scalars(sa.select(Named.value).where(Named.code == "x")).all() == [2]
        session.commit()
        check_history(session, Named)
