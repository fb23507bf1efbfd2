"""A patch makes of a checkout of the instant before a changeset that of the instant after it."""

import enum
import itertools
import random
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship, sessionmaker

from clock import at
from connecting import opened
from databases import Database
from sqlaudit import AuditColumns, QueryError, changesets, track_table
from sqlaudit.maintenance import checkout, patch
from sqlaudit.maintenance.patches import row_patch

WORDS = ["", "it's", 'a "b"', "back\\slash \\' x", "100% %s %(x)s :y", "ä😀\n\t", "NULL", "-- no comment"]


class Base(orm.DeclarativeBase):
    pass


class Colour(enum.Enum):
    red = "r"
    green = "g"


links = sa.Table(
    "links",
    Base.metadata,
    sa.Column("node_id", sa.ForeignKey("nodes.id"), primary_key=True),
    sa.Column("leaf_id", sa.ForeignKey("odd leaves.id"), primary_key=True),
)


@track_table(exclude=["secret"], audit_columns=AuditColumns(version="no", valid_to="until"))
class Node(Base):
    __tablename__ = "nodes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(10))
    word: Mapped[str | None] = mapped_column("a word", sa.String(50))
    secret: Mapped[str | None] = mapped_column(sa.String(50))
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("nodes.id"))
    leaves: Mapped[list["Leaf"]] = relationship(secondary=links)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "node"}


class Branch(Node):
    __tablename__ = "branches"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Node.id), primary_key=True)
    size: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "branch"}


@track_table()
class Leaf(Base):
    __tablename__ = "odd leaves"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    colour: Mapped[Colour | None]
    amount: Mapped[Decimal | None] = mapped_column(sa.Numeric(12, 4))
    ratio: Mapped[float | None] = mapped_column(sa.Double)
    flag: Mapped[bool | None]
    data: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    document: Mapped[Any | None] = mapped_column(sa.JSON)
    moment: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    day: Mapped[date | None]
    clock: Mapped[time | None]
    lapse: Mapped[timedelta | None] = mapped_column(sa.Interval)


def values(chance: random.Random) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "colour": [None, *Colour],
        "amount": [None, Decimal(0), Decimal("-1234.5678")],
        "ratio": [None, 0.1, -1e-300, 1e15],
        "flag": [None, True, False],
        "data": [None, b"", bytes(range(256))],
        "document": [None, sa.null(), {"a": WORDS, "b": [1, None]}, "text"],
        "moment": [None, datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC)],
        "day": [None, date(1, 1, 1), date(9999, 12, 31)],
        "clock": [None, time(1, 2, 3)],
        "lapse": [None, timedelta(days=3, seconds=4)],
    }
    return {name: chance.choice(some) for name, some in choices.items()}


def change(session: Session, chance: random.Random) -> None:
    """Do a few things at random in one transaction."""
    for _ in range(chance.randint(1, 5)):
        nodes, leaves = list(session.scalars(sa.select(Node))), list(session.scalars(sa.select(Leaf)))
        what = chance.randrange(7)
        if what == 0 or not nodes:
            id = chance.randrange(1, 40)
            if session.get(Node, id) is None:
                parent = chance.choice([None, *nodes])
                node = Branch(size=chance.randrange(9)) if chance.random() < 0.5 else Node()
                node.id, node.word, node.parent_id = id, chance.choice(WORDS), parent and parent.id
                session.add(node)
        elif what == 1 or not leaves:
            session.add(Leaf(id=uuid.UUID(int=chance.getrandbits(128), version=4), **values(chance)))
        elif what == 2:
            for name, value in values(chance).items():
                setattr(chance.choice(leaves), name, value)
        elif what == 3:
            node, parent = chance.choice(nodes), chance.choice([None, *nodes])
            node.word, node.parent_id = chance.choice([None, *WORDS]), parent and parent.id  # maybe in a circle
        elif what == 4:
            node, leaf = chance.choice(nodes), chance.choice(leaves)
            (node.leaves.remove if leaf in node.leaves else node.leaves.append)(leaf)
        elif what == 5:
            doomed = chance.choice(nodes)
            for node in nodes:
                if node.parent_id == doomed.id:
                    node.parent_id = None
            session.flush()
            session.delete(doomed)
        else:
            doomed = chance.choice(leaves)
            for node in nodes:
                if doomed in node.leaves:
                    node.leaves.remove(doomed)
            session.delete(doomed)
        session.flush()


TABLES = ["nodes", "branches", "odd leaves", "links"]


def everything(engine: sa.Engine) -> dict[str, list[str]]:
    """Return the rows of all tables."""
    tables = [sa.table(name) for name in TABLES]
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(sa.text("*")).select_from(table))))
            for table in tables
        }


@pytest.mark.spread
@pytest.mark.parametrize("seed", range(3))
def test_a_patch_turns_the_instant_before_into_the_instant_after(
    database: Database, engine, sessions: sessionmaker[Session], empty, seed
):
    chance = random.Random(seed)
    for _ in range(12):
        with sessions.begin() as session:
            change(session, chance)
    with sessions() as session:
        written = list(changesets(session))
        patches = [(each, patch(session, each.changeset_id)) for each in written]
    for number, (changeset, statements) in enumerate(patches[-6:]):
        with opened(empty(database.name)) as before, opened(empty(database.name)) as after:
            checkout(engine, changeset.timestamp - timedelta(microseconds=1), before)
            checkout(engine, changeset.timestamp, after)
            with before.begin() as connection:
                if database.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA foreign_keys = ON")
                cursor = connection.connection.cursor()
                for statement in statements:
                    cursor.execute(statement)
            assert everything(before) == everything(after), (number, statements)


def test_a_patch_is_a_script_of_the_dialect(session: Session):
    session.add(Node(id=1, kind="node", word="it's"))
    session.commit()
    session.get_one(Node, 1).word = None
    session.commit()
    session.delete(session.get_one(Node, 1))
    session.commit()
    quote = session.get_bind().dialect.identifier_preparer.quote
    word = quote("a word")
    assert [patch(session, each.changeset_id) for each in changesets(session)] == [
        [f"INSERT INTO nodes (id, kind, {word}, parent_id) VALUES (1, 'node', 'it''s', NULL)"],  # noqa: S608  # literals
        [f"UPDATE nodes SET {word} = NULL WHERE id = 1"],  # noqa: S608  # literals
        ["DELETE FROM nodes WHERE id = 1"],
    ]


def test_a_patch_of_a_row_leads_from_one_state_of_it_to_another(engine, clock, sessions: sessionmaker[Session]):
    chance, key = random.Random(1), uuid.UUID(int=7)
    states = []

    def commit(session: Session) -> None:
        session.commit()
        states.append(everything(engine))

    with sessions() as session:
        session.add_all([Leaf(id=key, **values(chance)), Branch(id=1, size=1, word="it's")])
        commit(session)
        for word in WORDS[:4]:
            for name, value in values(chance).items():
                setattr(session.get_one(Leaf, key), name, value)
            session.get_one(Branch, 1).word, session.get_one(Branch, 1).size = word, 7
            commit(session)
        session.execute(sa.delete(Branch.__table__))
        session.execute(sa.update(Node.__table__).values(kind="node"))
        commit(session)
        session.expunge_all()
        session.delete(session.get_one(Leaf, key))
        session.delete(session.get_one(Node, 1))
        commit(session)
        session.rollback()
        order = [*range(len(states)), *chance.sample(range(len(states)), len(states))]
        for a, b in itertools.pairwise([len(states) - 1, *order]):
            rows = (Leaf, key), (Branch if b % 2 else Node, "1")
            statements = [each for row in rows for each in row_patch(session, *row, at(a), at(b))]
            session.rollback()
            with engine.begin() as connection:
                for statement in statements:
                    connection.connection.cursor().execute(statement)
            assert everything(engine) == states[b], (a, b, statements)
        assert row_patch(session, Leaf, key, 2, at(1)) == []
        assert row_patch(session, Branch, 1, at(6), at(9)) == []
        with pytest.raises(QueryError, match="has no version 99"):
            row_patch(session, Leaf, key, 1, 99)


@pytest.mark.parametrize("changeset_id", [uuid.UUID(int=1), "no id", None])
def test_a_patch_of_no_changeset_is_refused(session: Session, changeset_id):
    with pytest.raises(QueryError):
        patch(session, changeset_id)


def test_new_and_deleted_rows_that_refer_to_each_other_in_a_circle(database: Database, engine, sessions, empty):
    with sessions.begin() as session:
        session.add_all([Node(id=1, kind="node", word="a"), Node(id=2, kind="node", word="b")])
        session.flush()
        session.get_one(Node, 1).parent_id, session.get_one(Node, 2).parent_id = 2, 1
    with sessions.begin() as session:
        session.get_one(Node, 1).parent_id = None
        session.flush()
        session.delete(session.get_one(Node, 2))
        session.flush()
        session.delete(session.get_one(Node, 1))
    with sessions() as session:
        made, gone = changesets(session)
        statements = [*patch(session, made.changeset_id), *patch(session, gone.changeset_id)]
    with opened(empty(database.name)) as target:
        checkout(engine, made.timestamp - timedelta(microseconds=1), target)
        with target.begin() as connection:
            if database.name == "sqlite":
                connection.exec_driver_sql("PRAGMA foreign_keys = ON")
            for statement in statements:
                connection.exec_driver_sql(statement)
        assert everything(target)["nodes"] == []
    assert len(statements) == 6
