"""Values that are hard to compare, to hash or to give are told, restored and undone as any other."""

import itertools
import json
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import Session, mapped_column, sessionmaker, validates

from effort import EFFORT, by_turns
from sqlaudit import (
    blame,
    changes_in,
    changesets,
    get_resource_changes,
    restore,
    track_table,
    undo,
    versions_of,
)

NULL, JSON_NULL = sa.null(), sa.JSON.NULL
NAN = float("nan")


class Vector:
    """An array, as NumPy's: it compares item by item, has no truth value, and can't be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *items: float) -> None:
        self.items = items

    def __eq__(self, other: object) -> Any:
        return Vector(*(item == other for item in self.items))

    def __ne__(self, other: object) -> Any:
        return Vector(*(item != other for item in self.items))

    def __bool__(self) -> bool:
        raise ValueError("The truth value of an array is ambiguous.")


class Shy:
    """A value that can't be compared at all."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("I am not to be compared.")


class Embedding(sa.TypeDecorator[Vector]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value.items)

    def process_result_value(self, value: Any, dialect: Any) -> Vector | None:
        return None if value is None else Vector(*json.loads(value))


class ComparedEmbedding(Embedding):
    cache_ok = True

    def compare_values(self, x: Any, y: Any) -> bool:
        return x.items == y.items


class Document(sa.TypeDecorator[Any]):
    """JSON with something of the user's around it; to SQLAlchemy, it is no JSON."""

    impl = sa.JSON
    cache_ok = True


class Blank(sa.TypeDecorator[str]):
    """Text that is never NULL: an empty one is None."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return value or ""

    def process_result_value(self, value: Any, dialect: Any) -> str | None:
        return value or None


class Stripped(Blank):
    """Text that is never NULL, and that takes nothing but text."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return "" if value is None else value.strip()


class ReadAsNone(Blank):
    """Text of old that is read as None, which is written as NULL."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return value


class Strict(sa.TypeDecorator[str]):
    """Text that may be NULL, but only the database may say so."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return value.upper()


class Shouted(sa.TypeDecorator[str]):
    impl = sa.String(50)
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.coalesce(sa.func.upper(bindparam), "NOTHING")


def same_items(x: Any, y: Any) -> bool:
    return [*(x or ())] == [*(y or ())]


# name: (type, values that differ in the database); NULL and JSON's null are among them wherever there are any
CASES: dict[str, tuple[Any, list[Any]]] = {
    "json": (sa.JSON(), [NULL, JSON_NULL, {"a": 1}, {"a": True}, []]),
    "json_none_as_null": (sa.JSON(none_as_null=True), [NULL, JSON_NULL, {"a": 1}]),
    "json_of_a_variant": (sa.Text().with_variant(sa.JSON(), "postgresql", "sqlite", "mariadb"), [NULL, JSON_NULL, [1]]),
    "jsonb": (sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), [NULL, JSON_NULL, ["a"]]),
    "mutable_dict": (MutableDict.as_mutable(sa.JSON()), [NULL, JSON_NULL, {"a": 1}, {"a": True}, {}]),
    "mutable_dict_none_as_null": (MutableDict.as_mutable(sa.JSON(none_as_null=True)), [NULL, JSON_NULL, {"a": 1}]),
    "mutable_list": (MutableList.as_mutable(sa.JSON()), [NULL, JSON_NULL, [1], [True], []]),
    "mutable_document": (MutableDict.as_mutable(Document()), [NULL, JSON_NULL, {"a": 1}]),
    "document": (Document(), [NULL, JSON_NULL, {"a": [1, {"b": None}]}]),
}
# Those that databases hold alike.
ALIKE: dict[str, tuple[Any, list[Any]]] = {
    "evaluates_none": (sa.String(50).evaluates_none(), [NULL, "", "a"]),
    "blank": (Blank(), [NULL, "", "a"]),
    "stripped": (Stripped(), [NULL, "", "a"]),
    "read_as_none": (ReadAsNone(), [NULL, "", "a"]),
    "strict": (Strict(), [NULL, "A", "B"]),
    "shouted": (Shouted(), [NULL, "A", "NOTHING"]),
    "embedding": (Embedding(), [NULL, Vector(1.0, 2.0), Vector(1.0, NAN), Vector(), Vector(1.0)]),
    "compared_embedding": (ComparedEmbedding(), [NULL, Vector(1.0, 2.0), Vector(1.0)]),
    "shy": (sa.PickleType(), [NULL, Shy("a"), Shy("b")]),
    "nested": (sa.PickleType(), [NULL, {"a": [Vector(1.0)]}, {"a": [Vector(2.0)]}, (Vector(1.0),)]),
    "compared_pickle": (sa.PickleType(comparator=same_items), [NULL, [1], [1, 2]]),
    "set": (sa.PickleType(), [NULL, {1}, frozenset({1, 2})]),
}
POSTGRESQL_CASES: dict[str, tuple[Any, list[Any]]] = {
    "float": (sa.Float(), [NULL, NAN, 1.5, float("inf")]),
    "numeric": (sa.Numeric(), [NULL, Decimal("NaN"), Decimal("1.5")]),
    "floats": (postgresql.ARRAY(sa.Float), [NULL, [], [NAN, None], [NAN, 1.0]]),
    "tuples": (postgresql.ARRAY(sa.Float, as_tuple=True), [NULL, (NAN,), (NAN, NAN)]),
    "matrix": (postgresql.ARRAY(sa.Integer, dimensions=2), [NULL, [[1]], [[1], [2]]]),
    "mutable_array": (MutableList.as_mutable(postgresql.ARRAY(sa.Integer)), [NULL, [], [1]]),
    "documents": (postgresql.ARRAY(postgresql.JSONB), [NULL, [], [{"a": 1}], [{"a": True}]]),
    "hstore": (MutableDict.as_mutable(postgresql.HSTORE()), [NULL, {}, {"a": None}, {"a": "b"}]),
    "jsonb_none_as_null": (postgresql.JSONB(none_as_null=True), [NULL, JSON_NULL, {"a": 1}]),
    "range": (postgresql.NUMRANGE(), [NULL, postgresql.Range(1, 5), postgresql.Range(empty=True)]),
    "multirange": (postgresql.INT4MULTIRANGE(), [NULL, [], [postgresql.Range(1, 3)]]),
}


class Things:
    """A model with columns of a type, and rows of it that change from each value to each other.

    :ivar given: what its validators are given
    :ivar states: what the database held after each transaction
    """

    def __init__(self, base: Any, name: str, type_: Any, values: list[Any]) -> None:
        neighbours = [*itertools.pairwise([*values, values[0]])]
        backwards = [(after, before) for before, after in neighbours]
        self.pairs = dict(enumerate([*neighbours, *(backwards if EFFORT > 1 else backwards[:1])], 1))
        given: list[Any] = []
        self.given = given
        self.states: list[list[str]] = []

        def see(obj: Any, name: str, value: Any) -> Any:
            given.append(value)
            return value

        columns = {
            "id": mapped_column(sa.Integer, primary_key=True),
            "other": mapped_column(sa.String(50), default="a", onupdate="b"),
            "value": mapped_column(type_, nullable=True),
            "filled": mapped_column(type_, nullable=True, default=lambda: values[-1]),
            "updated": mapped_column(type_, nullable=True, onupdate=lambda: values[-1]),
            "later": mapped_column(type_, nullable=True, deferred=True),
        }
        members = {"__tablename__": f"thing_{name}", "see": validates(*columns)(see), **columns}
        self.model: Any = track_table(table_label=name)(type(name.title(), (base,), members))

    def insert(self, session: Any) -> None:
        for key, (value, _) in self.pairs.items():
            values = dict.fromkeys(("value", "filled", "updated", "later"), value)
            session.execute(sa.insert(self.model).values(id=key, **values))

    def update(self, session: Any) -> None:
        for key, (before, value) in self.pairs.items():
            values = dict.fromkeys(("value", "filled", "later"), value)
            session.execute(
                sa.update(self.model).where(self.model.id == key).values(other="a", updated=before, **values)
            )

    def held(self, session: Any) -> list[str]:
        """Return what the database holds, whatever the type would make of it."""
        names = ("value", "filled", "updated", "later")
        columns = [sa.literal_column(f"{name}{how}") for name in names for how in ("", " IS NULL")]
        statement = sa.select(self.model.id, self.model.other, *columns).order_by(self.model.id)
        return [repr(tuple(row)) for row in session.execute(statement)]


@pytest.fixture
def things(base: Any, engine: sa.Engine, database: Any, sessions: sessionmaker[Session]) -> dict[str, Things]:
    """A model for each case that the database has, with its rows inserted and changed, in two transactions."""
    is_postgresql = "arrays" in database.capabilities
    if is_postgresql:
        with engine.begin() as connection:
            connection.execute(sa.DDL("CREATE EXTENSION IF NOT EXISTS hstore"))
    cases = CASES | by_turns(ALIKE, database) | (POSTGRESQL_CASES if is_postgresql else {})
    things = {name: Things(base, name, *case) for name, case in cases.items()}
    base.metadata.create_all(engine)
    for step in (Things.insert, Things.update):
        with sessions.begin() as session:
            for each in things.values():
                step(each, session)
                each.states.append(each.held(session))
    return things


def held(things: dict[str, Things], sessions: sessionmaker[Session]) -> dict[str, list[str]]:
    with sessions() as session:
        return {name: each.held(session) for name, each in things.items()}


def test_hard_values_are_told(things, sessions):
    with sessions.begin() as session:
        for each in things.values():
            session.execute(sa.update(each.model).values(other="c", updated=each.model.updated))
    with sessions() as session:
        _, second, third = (each.changeset_id for each in changesets(session))
        by_second, by_third = (
            {(c.resource_type, c.resource_id, c.field_name) for c in changes_in(session, changeset)}
            for changeset in (second, third)
        )
        for name, each in things.items():
            label = name
            told = {(c.resource_id, c.field_name, c.version) for c in get_resource_changes(each.model, session)}
            for key in each.pairs:
                versions = versions_of(session, each.model, key)
                changed = {"value", "filled", "later"} if any(v.value is not None for v in versions[:2]) else set()
                assert {(n, version) for k, n, version in told if k == key and version > 1} == {
                    *((n, 2) for n in changed),
                    ("other", 3),
                }, name
                alone = get_resource_changes(each.model, session, key)
                assert {(key, c.field_name, c.version) for c in alone} == {one for one in told if one[0] == key}
                assert [{c.field_name for c in version.changes} for version in versions[1:]] == [changed, {"other"}]
                assert {n for k, key_, n in by_second if (k, key_) == (label, key)} == changed
                assert {n for k, key_, n in by_third if (k, key_) == (label, key)} == {"other"}
                blamed = {n: one.version for n, one in blame(session, each.model, key).items()}
                expected = dict.fromkeys(blamed, 1) | dict.fromkeys(changed, 2) | {"other": 3}
                assert blamed == expected, name


def test_hard_values_come_back_as_the_database_held_them(things, sessions):
    before, after = ({name: each.states[place] for name, each in things.items()} for place in (0, 1))
    undone(sessions, 1)
    assert held(things, sessions) == before
    undone(sessions, 2)
    assert held(things, sessions) == after
    assert restored(things, sessions) == before
    undone(sessions, -1)
    assert held(things, sessions) == after
    with sessions.begin() as session:
        for each in things.values():
            for thing in session.scalars(sa.select(each.model)):
                session.delete(thing)
    undone(sessions, -1)
    assert held(things, sessions) == after
    undone(sessions, -1)
    assert restored(things, sessions) == before, "the rows that were deleted"
    for name, each in things.items():
        for value in each.given:
            assert value is not sa.JSON.NULL, name
            assert not isinstance(value, sa.ClauseElement), name


def undone(sessions: sessionmaker[Session], place: int) -> None:
    with sessions.begin() as session:
        undo(session, changesets(session)[place].changeset_id)


def restored(things: dict[str, Things], sessions: sessionmaker[Session]) -> dict[str, list[str]]:
    """Restore the first version of each row, in a session that has loaded what there is; return what is held then."""
    with sessions.begin() as session:
        loaded = [session.scalars(sa.select(each.model)).all() for each in things.values()]
        for each in things.values():
            for key in each.pairs:
                restore(session, each.model, key, at=1)
            assert not restore(session, each.model, key, at=1), "nothing is left to do"
        del loaded
    return held(things, sessions)
