"""What the reads of history report: field changes, versions, blame."""

import asyncio
import json
import math
import tracemalloc
from contextlib import closing, contextmanager
from datetime import timedelta
from decimal import Decimal
from itertools import chain, pairwise, product
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, load_only, mapped_column, scoped_session

import sqlaudit
from clock import START, at
from sqlaudit import (
    AuditContextManager,
    Operation,
    QueryError,
    SQLAuditConfig,
    SQLAuditError,
    SQLAuditWarning,
    TrackingError,
    blame,
    changes_in,
    changesets,
    get_resource_changes,
    history_of,
    stream_resource_changes,
    versions_of,
)
from sqlaudit.tracking.history import changes_of, neighbour

pytestmark = pytest.mark.usefixtures("clock")

TICK = timedelta(microseconds=1)
ADA, BOB = UUID(int=1), UUID(int=2)


class Base(DeclarativeBase):
    pass


@sqlaudit.track_table(table_label="Client")
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column("full_name", sa.String(50))
    city: Mapped[str | None] = mapped_column(sa.String(50))
    vip: Mapped[bool | None]
    score: Mapped[float | None] = mapped_column(sa.Double)
    data: Mapped[Any] = mapped_column(sa.JSON, nullable=True)


@sqlaudit.track_table()
class Seat(Base):
    __tablename__ = "seats"

    row: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    guest: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table()
class Token(Base):
    __tablename__ = "tokens"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table(tracked_fields=["price"], resource_id_field="code")
class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(sa.String(10))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    stock: Mapped[int | None]


@sqlaudit.track_table()
class Animal(Base):
    __tablename__ = "animals"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str | None] = mapped_column(sa.String(50))


class Dog(Animal):
    __tablename__ = "dogs"
    __mapper_args__ = {"polymorphic_identity": "dog"}

    id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
    breed: Mapped[str | None] = mapped_column(sa.String(50))


class Puppy(Dog):
    __tablename__ = "puppies"
    __mapper_args__ = {"polymorphic_identity": "puppy"}

    id: Mapped[int] = mapped_column(sa.ForeignKey(Dog.id), primary_key=True)
    toy: Mapped[str | None] = mapped_column(sa.String(50))


class Bird(Animal):
    __mapper_args__ = {"polymorphic_identity": "bird"}

    wings: Mapped[int | None]


@sqlaudit.track_table()
class Page(Base):
    """A model whose own fields hide those of its versions."""

    __tablename__ = "pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    previous: Mapped[str | None] = mapped_column(sa.String(50))
    next: Mapped[str | None] = mapped_column(sa.String(50))
    changes: Mapped[int | None]


class Untracked(Base):
    __tablename__ = "untracked"

    id: Mapped[int] = mapped_column(primary_key=True)


def happen(sessions):
    """Seconds 0 to 5: Ada inserts 1, Bob inserts 2, Ada changes 1 twice (name, then city), Bob 2, Ada deletes 1."""
    with sessions() as session:
        steps = [
            (ADA, lambda: session.add(Customer(id=1, name="Al", city="Rome"))),
            (BOB, lambda: session.add(Customer(id=2, name="Bo"))),
            (ADA, lambda: setattr(session.get(Customer, 1), "name", "Alan")),
            (ADA, lambda: setattr(session.get(Customer, 1), "city", None)),
            (BOB, lambda: [setattr(session.get(Customer, 2), name, "x") for name in ("name", "city")]),
            (ADA, lambda: session.delete(session.get(Customer, 1))),
        ]
        for user, step in steps:
            with AuditContextManager(user_id=user, reason="test"):
                step()
                session.commit()


@pytest.fixture
def story(happened, session):
    """A session after all that."""
    return session


STORY = [
    (0, 1, "city", None, "Rome"),
    (0, 1, "id", None, 1),
    (0, 1, "name", None, "Al"),
    (1, 2, "id", None, 2),
    (1, 2, "name", None, "Bo"),
    (2, 1, "name", "Al", "Alan"),
    (3, 1, "city", "Rome", None),
    (4, 2, "city", None, "x"),
    (4, 2, "name", "Bo", "x"),
    (5, 1, "id", 1, None),
    (5, 1, "name", "Alan", None),
]
USER = {0: ADA, 1: BOB, 2: ADA, 3: ADA, 4: BOB, 5: ADA}


def told(changes):
    return [
        ((each.timestamp - START).total_seconds(), each.resource_id, each.field_name, each.old_value, each.new_value)
        for each in changes
    ]


def values(changes):
    return [(each.field_name, each.old_value, each.new_value) for each in changes]


@contextmanager
def statements(engine):
    seen = []

    def see(connection, cursor, statement, *args):
        if statement != "BEGIN":
            seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", see)
    yield seen
    sa.event.remove(engine, "before_cursor_execute", see)


# --- field changes ----------------------------------------------------------------------------------------------


def test_field_changes_tell_the_whole_story_oldest_first_in_one_statement(story, engine):
    story.connection()
    with statements(engine) as seen:
        assert told(get_resource_changes(Customer, story)) == STORY
    assert len(seen) == 1


def test_a_field_change_says_who_what_when_why(story):
    change = get_resource_changes(Customer, story)[-1]
    assert (change.resource_type, change.resource_id, change.version) == ("Client", 1, 4)
    assert (change.changed_by, change.impersonated_by, change.reason, change.extra) == (str(ADA), None, "test", None)
    assert change.operation == "delete"
    assert isinstance(change.operation, Operation)
    assert change.timestamp.utcoffset() == timedelta(0)
    assert isinstance(change.changeset_id, UUID)


FILTERS = {
    "filter_resource_ids": {
        None: lambda line: True,
        1: lambda line: line[1] == 1,
        "2": lambda line: line[1] == 2,
        (1, 2): lambda line: True,
    },
    "filter_fields": {
        None: lambda line: True,
        "name": lambda line: line[2] == "name",
        ("id", "city"): lambda line: line[2] != "name",
    },
    "filter_user_ids": {
        None: lambda line: True,
        ADA: lambda line: USER[line[0]] == ADA,
        (str(BOB), 7): lambda line: USER[line[0]] == BOB,
    },
    "filter_date_range": {
        None: lambda line: True,
        (at(2), at(4)): lambda line: 2 <= line[0] <= 4,
        (at(2) + TICK, None): lambda line: line[0] > 2,
        (None, at(4) - TICK): lambda line: line[0] < 4,
    },
}


@pytest.mark.spread
def test_every_combination_of_filters_gives_what_all_of_them_let_through(story):
    for chosen in product(*(choices.items() for choices in FILTERS.values())):
        expected = [line for line in STORY if all(lets_through(line) for _, lets_through in chosen)]
        filters = {
            name: list(value) if isinstance(value, tuple) and name != "filter_date_range" else value
            for name, (value, _) in zip(FILTERS, chosen, strict=True)
        }
        assert told(get_resource_changes(Customer, story, **filters)) == expected, filters
        newest = told(get_resource_changes(Customer, story, **filters, newest_first=True))
        assert newest == expected[::-1], filters
        paged = told(get_resource_changes(Customer, story, **filters, offset=1, limit=3))
        assert paged == expected[1:4], filters


@pytest.mark.spread
@pytest.mark.parametrize("newest_first", [False, True])
def test_limit_and_offset_count_field_changes(story, engine, newest_first):
    expected = STORY[::-1] if newest_first else STORY
    for offset, limit in product(range(13), (0, 1, 2, 5, 20, None)):
        found = get_resource_changes(Customer, story, limit=limit, offset=offset, newest_first=newest_first)
        assert told(found) == expected[offset:][:limit]


def test_a_limit_reads_no_more_than_it_needs(story, engine):
    with statements(engine) as seen:
        get_resource_changes(Customer, story, limit=2)
    assert len(seen) == 1
    assert "LIMIT" in seen[0]


def test_filters_may_be_given_by_position(story):
    found = get_resource_changes(Customer, story, [1], ["name"], [ADA], (at(2), at(2)))
    assert told(found) == [(2, 1, "name", "Al", "Alan")]


def test_the_first_change_in_range_is_told_from_the_version_before_it(story):
    assert told(get_resource_changes(Customer, story, filter_date_range=(at(2), at(2)))) == [STORY[5]]
    assert told(get_resource_changes(Customer, story, filter_date_range=(at(2) + TICK, at(3)))) == [STORY[6]]


NOT_AN_INTEGER = [
    "one",
    "1x",
    "",
    " ",
    "1.0",
    "1_0",
    1.5,
    True,
    None,
    ADA,
    2**31,
    -(2**40),
    2**63,
    10**30,
    "9" * 40,
    b"1",
    (1, 2),
]


def test_changes_are_found_by_their_reason(story):
    assert get_resource_changes(Customer, story, filter_reasons=["other", "test"]) == get_resource_changes(
        Customer, story
    )
    assert get_resource_changes(Customer, story, filter_reasons="tes") == []


def test_blame_names_who_had_set_each_field_at_an_instant(story):
    def versions(seconds):
        found = blame(story, Customer, 1, at=at(seconds))
        return {name: (each.value, each.version) for name, each in found.items() if name in ("name", "city")}

    assert versions(-1) == {}
    assert versions(0) == {"name": ("Al", 1), "city": ("Rome", 1)}
    assert versions(2.5) == {"name": ("Alan", 2), "city": ("Rome", 1)}
    assert versions(4) == {"name": ("Alan", 2), "city": (None, 3)}
    assert versions(5) == {}
    with pytest.raises(QueryError, match="not a datetime"):
        blame(story, Customer, 1, at=3)


@pytest.mark.spread
@pytest.mark.parametrize("bad", NOT_AN_INTEGER, ids=repr)
def test_an_id_that_no_integer_key_can_be_matches_nothing(story, bad):
    assert get_resource_changes(Customer, story, filter_resource_ids=[bad]) == []
    assert versions_of(story, Customer, bad) == []
    assert blame(story, Customer, bad) == {}
    assert len(get_resource_changes(Customer, story, filter_resource_ids=[bad, "2"])) == 4


@pytest.mark.spread
@pytest.mark.parametrize("empty", ["filter_resource_ids", "filter_fields", "filter_user_ids"])
def test_an_empty_filter_matches_nothing(story, empty):
    assert get_resource_changes(Customer, story, **{empty: []}) == []


@pytest.mark.spread
@pytest.mark.parametrize("bad", ["no uuid", 5, "", None, ("a",)], ids=repr)
def test_uuid_keys_are_found_by_uuid_and_text_and_by_nothing_else(session, bad):
    session.add_all([Token(id=ADA, text="a"), Token(id=BOB, text="b")])
    session.commit()
    for given in (ADA, str(ADA), ADA.hex, str(ADA).upper()):
        assert {each.resource_id for each in get_resource_changes(Token, session, given)} == {ADA}
    assert get_resource_changes(Token, session, [bad]) == []


def test_composite_keys_are_tuples(session):
    session.add_all([Seat(row="A", number=1, guest="x"), Seat(row="A", number=2), Seat(row="B", number=1)])
    session.commit()

    def ids(given):
        return sorted({each.resource_id for each in get_resource_changes(Seat, session, given)})

    assert ids(None) == [("A", 1), ("A", 2), ("B", 1)]
    assert ids(("A", 1)) == ids([("A", "1")]) == ids([["A", 1]]) == [("A", 1)]
    assert ids([("A", 2), ("B", 1), ("C", 3)]) == [("A", 2), ("B", 1)]
    for nothing in (("A",), "A", ["A", 1], ("A", "one"), ("A", 2**70), ("A", 1, 1), ("A\0", 1)):
        assert ids(nothing) == []
    assert [version.guest for version in versions_of(session, Seat, ("A", 1))] == ["x"]
    assert blame(session, Seat, ("A", "1"))["guest"].value == "x"


def test_changes_of_one_instant_are_ordered_by_key_version_and_field(session):
    session.add_all(Seat(row=row, number=number) for row, number in [("B", 2), ("A", 10), ("B", 1), ("A", 9)])
    session.flush()
    with AuditContextManager(reason="another context"):
        session.get(Seat, ("A", 9)).guest = "x"
        session.commit()
    found = [(*each.resource_id, each.version, each.field_name) for each in get_resource_changes(Seat, session)]
    assert found == sorted(found)
    assert len(found) == 9


def test_only_tracked_fields_are_reported_under_the_chosen_id(session):
    product = Product(id=1, code="P-1", price=Decimal("1.50"), stock=1)
    session.add(product)
    session.commit()
    product.stock = 2
    session.commit()
    product.price = None
    session.commit()
    changes = get_resource_changes(Product, session, filter_resource_ids="P-1")
    assert values(changes) == [("price", None, Decimal("1.50")), ("price", Decimal("1.50"), None)]
    assert {each.resource_id for each in changes} == {"P-1"}
    assert [each.version for each in changes] == [1, 3]
    assert get_resource_changes(Product, session, filter_resource_ids="1") == []
    with pytest.raises(QueryError, match="no tracked field 'stock'"):
        get_resource_changes(Product, session, filter_fields="stock")
    assert list(blame(session, Product, 1)) == ["price"]


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("vip", False, None),
        ("vip", None, False),
        ("vip", True, False),
        ("score", 0.0, None),
        ("score", None, 0.0),
        ("name", "", None),
        ("name", "a", "A"),
        ("data", {"a": 1}, {"a": True}),
        ("data", [1], [False]),
        ("data", {"a": [None]}, {"a": []}),
        ("data", 0, False),
        ("data", {}, []),
    ],
    ids=repr,
)
def test_values_that_are_nearly_equal_are_different(session, field, before, after):
    customer = Customer(id=1, **{field: before})
    session.add(customer)
    session.commit()
    setattr(customer, field, after)
    session.commit()
    change = get_resource_changes(Customer, session)[-1]
    assert repr((change.field_name, change.old_value, change.new_value)) == repr((field, before, after))


def test_json_null_and_sql_null_are_both_none(session):
    customer = Customer(id=1, data=sa.JSON.NULL)
    session.add(customer)
    session.commit()
    customer.data = sa.null()
    session.commit()
    customer.data = {"a": None}
    session.commit()
    assert values(get_resource_changes(Customer, session)) == [("id", None, 1), ("data", None, {"a": None})]
    assert values(get_resource_changes(Customer, session, limit=1, newest_first=True)) == [("data", None, {"a": None})]


@pytest.mark.requires("arrays")  # those that have NaN, too
def test_nan_is_equal_to_itself(session):
    customer = Customer(id=1, score=math.nan)
    session.add(customer)
    session.commit()
    customer.name = "x"
    session.commit()
    assert values(get_resource_changes(Customer, session))[-1] == ("name", None, "x")
    assert blame(session, Customer, 1)["score"].version == 1


def test_a_limit_is_filled_though_the_database_tells_equal_values_apart(session, engine):
    customer = Customer(id=1, data={"n": 0, "m": 0})
    session.add(customer)
    session.commit()
    table = history_of(Customer).__table__
    first = dict(session.execute(sa.select(table)).mappings().one())
    versions = [
        first
        | {
            "audit_version": number,
            "valid_from": at(number),
            "valid_to": at(number + 1),
            "audit_operation": Operation.UPDATE,
            "data": {"m": number // 5, "n": number // 5} if number % 2 else {"n": number // 5, "m": number // 5},
        }
        for number in range(2, 30)
    ]
    session.commit()
    with engine.begin() as connection:
        connection.execute(sa.insert(table), versions)
    everything = get_resource_changes(Customer, session)
    assert get_resource_changes(Customer, session, limit=6) == everything[:6]
    assert get_resource_changes(Customer, session, limit=3, offset=2) == everything[2:5]


def test_a_baseline_reports_nothing_and_the_change_after_it_does(sessions, session, engine):
    with sqlaudit.tracking_disabled(session):
        session.add(Customer(id=1, name="old", city="Rome"))
        session.commit()
    session.get(Customer, 1).name = "new"
    session.commit()
    assert [version.audit_operation for version in versions_of(session, Customer, 1)] == ["baseline", "update"]
    assert values(get_resource_changes(Customer, session)) == [("name", "old", "new")]
    found = blame(session, Customer, 1)
    assert (found["name"].operation, found["city"].operation) == ("update", "baseline")


def test_a_base_class_reports_its_subclasses_and_a_subclass_only_itself(session, engine):
    dog, bird, other = Dog(id=1, name="Rex", breed="Pug"), Bird(id=2, name="Tom", wings=2), Animal(id=3, name="Eve")
    session.add_all([dog, bird, other])
    session.commit()
    dog.breed, bird.wings, other.name = "Lab", 1, "Eva"
    session.commit()
    session.delete(dog)
    session.commit()
    story = {
        1: [
            ("breed", "Pug", "Lab"),
            ("breed", "Lab", None),
            ("id", 1, None),
            ("kind", "dog", None),
            ("name", "Rex", None),
        ],
        2: [("wings", 2, 1)],
        3: [("name", "Eve", "Eva")],
    }
    for model, ids in ((Animal, [1, 2, 3]), (Dog, [1]), (Bird, [2])):
        with statements(engine) as seen:
            found = get_resource_changes(model, session, filter_date_range=(at(1), None))
        assert len(seen) == 1
        told_by_id = {id_: [(name, old, new) for _, i, name, old, new in told(found) if i == id_] for id_ in ids}
        assert told_by_id == {id_: story[id_] for id_ in ids}
        assert len(found) == sum(map(len, told_by_id.values()))
    assert [type(version) for version in versions_of(session, Animal, 2)] == [history_of(Bird)] * 2
    assert versions_of(session, Dog, 2) == []


def test_versions_and_blame_of_a_subclass_take_one_statement_and_tell_its_own_fields(session, engine):
    dog = Dog(id=1, name="Rex", breed="Pug")
    session.add(dog)
    session.commit()
    dog.breed = "Lab"
    session.commit()
    for model in (Animal, Dog):
        session.expunge_all()
        with statements(engine) as seen:
            assert [version.breed for version in versions_of(session, model, 1)] == ["Pug", "Lab"]
            found = blame(session, model, 1)
        assert len(seen) == 2
        assert {name: each.version for name, each in found.items()} == {"breed": 2, "id": 1, "kind": 1, "name": 1}


def _become_by_objects(session, before, after, values):
    session.delete(session.get_one(Animal, 1))
    session.flush()
    session.add(after(id=1, **values))


def _become_by_statements(session, before, after, values):
    old, new = ({each.local_table for each in sa.inspect(model).iterate_to_root()} for model in (before, after))
    values = {"id": 1, "kind": sa.inspect(after).polymorphic_identity, "wings": None, **values}
    for table in (Puppy.__table__, Dog.__table__):
        if table in old - new:
            session.execute(sa.delete(table))
    for table in (Animal.__table__, Dog.__table__, Puppy.__table__):
        if table in new:
            statement = sa.update(table) if table in old else sa.insert(table)
            session.execute(statement.values({name: values[name] for name in table.c.keys()}))  # noqa: SIM118  # no dict


_LIVES = {
    "a leaf leaves": [(Puppy, {"breed": "Pug", "toy": "ball"}), (Dog, {"breed": "Lab"})],
    "two levels leave": [(Puppy, {"breed": "Pug", "toy": "ball"}), (Animal, {})],
    "to one table": [(Dog, {"breed": "Pug"}), (Bird, {"wings": 2})],
    "from one table": [(Bird, {"wings": 2}), (Puppy, {"breed": "Pug", "toy": "ball"})],
    "and back with nothing": [(Dog, {"breed": None}), (Bird, {"wings": None}), (Dog, {"breed": None})],
    "and back": [(Dog, {"breed": "Pug"}), (Bird, {"wings": 2}), (Dog, {"breed": "Pug"})],
}


@pytest.mark.spread
@pytest.mark.parametrize("become", [_become_by_objects, _become_by_statements])
@pytest.mark.parametrize("life", _LIVES.values(), ids=_LIVES)
def test_what_a_row_loses_with_its_class_is_told_of_whoever_took_it(sessions, life, become):
    """A row is made or becomes of a class, then gets another name, in turn: nobody is told of what another did."""
    fields, held = ("breed", "kind", "name", "toy", "wings"), []

    def write(user, model, work):
        with AuditContextManager(user_id=user), sessions.begin() as session:
            work(session)
        with sessions() as session:
            row = session.get_one(Animal, 1)
            held.append((user, model, {name: getattr(row, name, None) for name in fields}))

    for number, (model, given) in enumerate(life):
        given, before = {"name": "Rex", **given}, held[-1][1] if held else None
        first, later = lambda s: s.add(model(id=1, **given)), lambda s: become(s, before, model, given)  # noqa: B023
        write(f"maker {number}", model, later if before else first)
        write(f"namer {number}", model, lambda s: setattr(s.get_one(Animal, 1), "name", f"Tom {number}"))  # noqa: B023

    expected = [
        (user, name, old[name], new[name])
        for (_, _, old), (user, _, new) in pairwise(held)
        for name in fields
        if old[name] != new[name]
    ]
    with sessions() as session:
        told_of = [changes_in(session, each.changeset_id) for each in changesets(session)]
        for found in (
            *(get_resource_changes(Animal, session, filter_resource_ids=ids) for ids in (None, 1, [1, 2])),
            list(chain(*told_of)),
        ):
            told = [(each.changed_by, each.field_name, each.old_value, each.new_value) for each in found]
            assert [each for each in told if each[0] != "maker 0"] == expected
        for model in (Animal, Dog, Puppy, Bird):
            history = history_of(model)
            of_model = [(user, history_of(class_)) for user, class_, _ in held if issubclass(class_, model)]
            for versions in (
                versions_of(session, model, 1),
                session.scalars(sqlaudit.all_versions(model)),
                session.scalars(sqlaudit.between(model, START, at(99))),
                session.scalars(sa.select(history).order_by(history.audit_version)),
            ):
                assert [(each.audit_changed_by, type(each)) for each in versions] == of_model
            blamed = {name: each.changed_by for name, each in blame(session, model, 1).items()}
            now, last = held[-1][1], {name: user for user, name, *_ in expected}
            known = [name for name in fields if hasattr(now, name)] if issubclass(now, model) else []
            assert blamed == {name: last.get(name, "maker 0") for name in (*known, *["id"][: len(known)])}


@pytest.mark.spread
@pytest.mark.parametrize("names", [["breed"], ["name"], ["breed", "name", "audit_reason"], None])
def test_a_version_of_a_subclass_loads_what_has_expired(session, names):
    """SQLAlchemy loads columns of one table of a hierarchy alone."""
    session.add(Puppy(id=1, name="Rex", breed="Pug", toy="ball"))
    session.commit()
    session.get_one(Puppy, 1).breed = "Lab"
    session.commit()
    for model in (Animal, Dog, Puppy):
        session.expunge_all()
        for version, breed in zip(versions_of(session, model, 1), ["Pug", "Lab"], strict=True):
            session.expire(version, names)
            assert (version.breed, version.name, version.toy) == (breed, "Rex", "ball")
        history = history_of(model)
        (deferred,) = session.scalars(
            sa.select(history).where(history.audit_version == 1).options(load_only(history.id))
        )
        assert (deferred.breed, deferred.name, deferred.toy) == ("Pug", "Rex", "ball")


def test_unflushed_changes_are_flushed_first(story):
    story.get(Customer, 2).name = "y"
    assert told(get_resource_changes(Customer, story))[-1][2:] == ("name", "x", "y")


# --- sessions ---------------------------------------------------------------------------------------------------


def given_by_generator(sessions):
    def get_db():
        with sessions() as session:
            yield session

    return get_db


@pytest.mark.spread
@pytest.mark.parametrize(
    "factory",
    [
        lambda sessions: sessions,
        given_by_generator,
        lambda sessions: lambda: sessions(),
        lambda sessions: contextmanager(given_by_generator(sessions)),
    ],
    ids=["sessionmaker", "generator", "callable", "contextmanager"],
)
def test_without_a_session_the_configured_factory_gives_one(story, sessions, engine, factory):
    story.close()
    sqlaudit.set_config(SQLAuditConfig(session_factory=factory(sessions)))
    assert told(get_resource_changes(Customer)) == STORY
    assert told(get_resource_changes(Customer, None, [2], limit=1)) == STORY[3:4]
    assert engine.pool.checkedout() == 0


def test_without_a_session_and_a_factory_it_raises():
    with pytest.raises(SQLAuditError, match="session_factory"):
        get_resource_changes(Customer)


def test_a_scoped_session_is_a_session(story, sessions):
    scoped = scoped_session(sessions)
    assert told(get_resource_changes(Customer, scoped)) == STORY
    assert len(versions_of(scoped, Customer, 1)) == 4
    scoped.remove()


def test_a_session_with_one_bind_per_model_reads_where_the_model_is(story, engine):
    with Session(binds={Customer: engine}) as session:
        assert told(get_resource_changes(Customer, session)) == STORY
        assert len(versions_of(session, Customer, 1)) == 4
        assert blame(session, Customer, 2)["name"].version == 2


@pytest.mark.parametrize("read", [get_resource_changes, stream_resource_changes])
def test_what_is_no_session_raises_at_the_call(read):
    with pytest.raises(QueryError, match="not a Session"):
        read(Customer, "session")
    for other in (versions_of, blame):
        with pytest.raises(QueryError, match="not a Session"):
            other("session", Customer, 1)


@pytest.mark.spread
@pytest.mark.parametrize(
    "read",
    [
        lambda session, given: get_resource_changes(Customer, session, filter_resource_ids=given),
        lambda session, given: get_resource_changes(Customer, session, filter_resource_ids=[1, given]),
        lambda session, given: versions_of(session, Customer, given),
        lambda session, given: blame(session, Customer, given),
        lambda session, given: sqlaudit.record_changes(session, Customer, [given]),
        lambda session, given: sqlaudit.restore(session, Customer, given, at=1),
    ],
    ids=["filter", "filter of several", "versions", "blame", "record changes", "restore"],
)
def test_an_object_is_no_id(story, read):
    with pytest.raises(QueryError, match="Give its key"):
        read(story, story.get_one(Customer, 2))


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [get_resource_changes, stream_resource_changes])
@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"filter_fields": "nmae"}, "no tracked field 'nmae'. It has city, data, id, name, score, vip"),
        ({"filter_fields": ["name", "full_name"]}, "full_name"),
        ({"filter_date_range": (at(1), at(0))}, "Give the earlier instant first"),
        ({"filter_date_range": at(1)}, "filter_date_range"),
        ({"filter_date_range": (at(1),)}, "filter_date_range"),
        ({"filter_date_range": ("2024-01-01", None)}, "not a datetime"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": "5"}, "limit is '5'"),
        ({"limit": True}, "limit is True"),
        ({"offset": -1}, "offset is -1"),
        ({"offset": None}, "offset is None"),
        ({"filter_user_ids": [None]}, "filter_user_ids"),
        ({"filter_user_ids": 1.5}, "filter_user_ids"),
    ],
    ids=str,
)
def test_a_filter_that_makes_no_sense_raises_at_the_call(read, filters, message):
    with pytest.raises(QueryError, match=message):
        read(Customer, Session(), **filters)


@pytest.mark.parametrize("model", [Untracked, Session, "Customer", 5])
def test_an_untracked_model_raises(model):
    for read in (get_resource_changes, stream_resource_changes):
        with pytest.raises(TrackingError, match="not a tracked model"):
            read(model, Session())
    for read in (versions_of, blame):
        with pytest.raises(TrackingError, match="not a tracked model"):
            read(Session(), model, 1)


def test_naive_dates_warn_and_are_local_times(story):
    local = at(2).astimezone().replace(tzinfo=None)
    with pytest.warns(SQLAuditWarning, match="local time"):
        found = get_resource_changes(Customer, story, filter_date_range=(local, local))
    assert told(found) == [STORY[5]]


@pytest.mark.no_tables
def test_a_missing_history_table_raises_with_the_remedy(engine):
    Customer.__table__.create(engine)
    with Session(engine) as session:
        for read in (
            lambda: get_resource_changes(Customer, session),
            lambda: versions_of(session, Customer, 1),
            lambda: blame(session, Customer, 1),
        ):
            with pytest.raises(sqlaudit.HistoryTableError, match="create_all"):
                read()
            session.rollback()


# --- streaming --------------------------------------------------------------------------------------------------


@pytest.fixture
def many(session, engine):
    """10,000 versions of 5,000 rows."""
    versions = [
        {
            "id": id_,
            "audit_version": version,
            "full_name": f"{version}",
            "valid_from": at(version),
            "valid_to": at(version + 1),
            "audit_operation": Operation.INSERT if version == 1 else Operation.UPDATE,
            "audit_changeset_id": ADA,
        }
        for id_ in range(5_000)
        for version in (1, 2)
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(history_of(Customer).__table__), versions)
    return session


@pytest.mark.spread
def test_a_stream_gives_the_same_in_flat_memory(many):
    with closing(stream_resource_changes(Customer, many)) as changes:
        count = sum(1 for _ in zip(range(2000), changes, strict=False))
        tracemalloc.start()
        count += sum(1 for _ in changes)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 15_000
    assert peak < 4_000_000


def test_a_stream_that_is_closed_early_leaves_the_connection_usable(many):
    changes = stream_resource_changes(Customer, many)
    assert next(changes).field_name == "id"
    changes.close()
    assert len(versions_of(many, Customer, 7)) == 2
    changes = stream_resource_changes(Customer, many, newest_first=True)
    next(changes)
    del changes
    assert len(get_resource_changes(Customer, many, limit=5)) == 5
    many.commit()


def test_a_stream_takes_the_filters_of_the_list(story):
    filters = {"filter_user_ids": BOB, "limit": 2, "offset": 1, "newest_first": True}
    assert list(stream_resource_changes(Customer, story, **filters)) == get_resource_changes(Customer, story, **filters)


# --- versions and blame -----------------------------------------------------------------------------------------


def test_versions_know_their_neighbours_and_their_changes(story, engine):
    first, second, third, last = versions_of(story, Customer, "1")
    assert first.previous is None
    assert first.next is second
    assert third.previous is second
    assert last.next is None
    assert last.audit_operation is Operation.DELETE
    for version in (first, second, third, last):
        expected = [each for each in get_resource_changes(Customer, story, 1) if each.version == version.audit_version]
        assert sorted(version.changes, key=lambda change: change.field_name) == expected


def test_neighbours_and_changes_of_models_that_hide_these_names(session):
    page = Page(id=1, previous="a", next="b", changes=5)
    session.add(page)
    session.commit()
    page.next = "c"
    session.commit()
    first, second = versions_of(session, Page, 1)
    assert (second.previous, second.next, second.changes) == ("a", "c", 5)
    assert neighbour(second, -1) is first
    assert neighbour(first, +1) is second
    assert values(changes_of(second)) == [("next", "b", "c")]


def test_versions_can_be_selected_like_any_model(story):
    history = history_of(Customer)
    assert Customer.History is history
    assert history.__qualname__ == "Customer.History"
    found = story.scalars(sa.select(history).where(history.name == "Alan").order_by(history.audit_version))
    assert [version.audit_version for version in found] == [2, 3, 4]


def test_blame_names_for_every_field_the_version_that_gave_its_value(story, engine):
    story.connection()
    with statements(engine) as seen:
        found = blame(story, Customer, 2)
    assert len(seen) == 1
    assert {name: (each.value, each.version) for name, each in found.items()} == {
        "city": ("x", 2),
        "data": (None, 1),
        "id": (2, 1),
        "name": ("x", 2),
        "score": (None, 1),
        "vip": (None, 1),
    }
    assert (found["name"].changed_by, found["name"].reason) == (str(BOB), "test")
    assert found["name"].timestamp == at(4)
    assert found["id"].timestamp == at(1)


def test_blame_of_a_deleted_row_is_empty_and_of_one_inserted_again_begins_anew(story):
    assert blame(story, Customer, 1) == {}
    assert blame(story, Customer, 3) == {}
    story.add(Customer(id=1, name="Alan"))
    story.commit()
    assert {each.version for each in blame(story, Customer, 1).values()} == {5}


@pytest.mark.spread
def test_blame_of_a_long_history_finds_the_oldest_value(many, engine):
    versions = [
        {
            "id": 1,
            "audit_version": version,
            "city": f"{version}",
            "full_name": "2",
            "valid_from": at(version),
            "valid_to": at(version + 1),
            "audit_operation": Operation.UPDATE,
            "audit_changeset_id": BOB,
        }
        for version in range(3, 1600)
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(history_of(Customer).__table__), versions)
    found = blame(many, Customer, 1)
    assert (found["city"].version, found["name"].version, found["vip"].version) == (1599, 2, 1)


def test_reads_work_in_an_async_session(story, async_engine):
    story.close()

    async def read():
        async with AsyncSession(async_engine) as session:
            changes = await session.run_sync(lambda inner: get_resource_changes(Customer, inner))
            streamed = await session.run_sync(lambda inner: list(stream_resource_changes(Customer, inner)))
            assert changes == streamed
            assert len(await session.run_sync(versions_of, Customer, 1)) == 4
            assert (await session.run_sync(blame, Customer, 2))["id"].version == 1
            return changes

    assert told(asyncio.run(read())) == STORY


def test_field_changes_are_values(story):
    change = get_resource_changes(Customer, story)[0]
    with pytest.raises(AttributeError):
        change.new_value = "x"
    assert change == get_resource_changes(Customer, story)[0]
    assert json.dumps(change.operation) == '"insert"'


class Stripped(sa.TypeDecorator):
    impl = sa.String(40)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return value and value.strip()


MANY_IDS = {
    "date": ([sa.Date()], lambda number: (START + timedelta(days=number)).date()),
    "datetime": ([sa.DateTime(timezone=True)], lambda number: START + timedelta(seconds=number)),
    "numeric": ([sa.Numeric(10, 2)], Decimal),
    "decorated": ([Stripped()], str),
    "uuid": ([sa.Uuid()], lambda number: UUID(int=number)),
    "composite": ([sa.Integer(), sa.String(20)], lambda number: (number, str(number))),
}


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("case", MANY_IDS)
def test_more_ids_than_a_driver_takes_parameters_are_looked_for(sessions, engine, base, case):
    types, make = MANY_IDS[case]
    members = {f"id{place}": mapped_column(type_, primary_key=True) for place, type_ in enumerate(types)}
    model = sqlaudit.track_table()(type("Thing", (base,), {"__tablename__": "things", **members}))
    base.metadata.create_all(engine)
    ids = [make(number) for number in range(1, 70_000)]
    key = ids[3] if isinstance(ids[3], tuple) else (ids[3],)
    with sessions.begin() as session:
        session.add(model(**dict(zip(members, key, strict=True))))
    with sessions() as session:
        changes = get_resource_changes(model, session, ids)
        assert {change.resource_id for change in changes} == {ids[3]}
