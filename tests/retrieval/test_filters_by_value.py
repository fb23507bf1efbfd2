"""Field changes with a value are those that Python finds among all, for every type; the database looks for them."""

import enum
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import product
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from clock import at
from counting import rows_read
from sqlaudit import ERASED, changes_page, get_resource_changes, restricted, track_table
from sqlaudit.changes import differ
from sqlaudit.maintenance import erase, maintenance_tables


class Mood(enum.StrEnum):
    CALM = "calm"
    ANGRY = "angry"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Lowered(sa.types.TypeDecorator[str]):
    impl = sa.String(20)
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value.lower()


class Loose(sa.String):
    """A text that equals others that differ in case alone."""

    def compare_values(self, x: Any, y: Any) -> bool:
        return x == y or (None not in (x, y) and bool(x.lower() == y.lower()))


def naive(*parts: int) -> datetime:
    return datetime(*parts)  # type: ignore[arg-type]  # noqa: DTZ001  # a column without a time zone


TREE = {"a": [1, {"b": None}], "c": True}
TYPES: dict[str, tuple[Any, list[Any]]] = {
    "text": (sa.String(20), ["ab", "AB", "ab ", "", "12", "%_\\'", "ü", "Ü"]),
    "long text": (sa.Text, ["ab", "AB", "ab\n", "null", "b" * 2000]),
    "padded": (sa.CHAR(5), ["ab", "abc", "ABC"]),
    "lowered": (Lowered, ["ab", "AB", "c"]),
    "loose": (Loose(20), ["ab", "AB", "c"]),
    "whole": (sa.Integer, [0, 1, -7, 12, 2147483647]),
    "big": (sa.BigInteger().with_variant(sa.Integer, "sqlite"), [0, 12, 2**53, 2**53 + 1, -(2**62)]),
    "price": (
        sa.Numeric(12, 2),
        [Decimal("12"), Decimal("12.50"), Decimal("12.51"), Decimal("-9999999.99"), Decimal(0)],
    ),
    "rate": (sa.Numeric(12, 4, asdecimal=False), [0.1, 0.3, 12.0, -1.5]),
    "ratio": (sa.Float, [0.1, 1 / 3, 12.0, 1e-7, 1e20, -2.5]),
    "real": (sa.REAL, [0.5, 0.1, 12.0, -2.5, 1e10]),
    "double": (sa.Double, [0.1, 1 / 3, 12.0, 1e300]),
    "flag": (sa.Boolean, [True, False]),
    "day": (sa.Date, [date(2024, 2, 29), date(1999, 12, 31), date(2024, 3, 1)]),
    "moment": (sa.DateTime, [naive(2024, 2, 29), naive(2024, 2, 29, 23, 59, 59), naive(1999, 12, 31, 12)]),
    "instant": (sa.DateTime(timezone=True), [at(1), at(2), datetime(2024, 2, 29, 23, 30, tzinfo=UTC)]),
    "clock": (sa.Time, [time(12), time(12, 0, 1), time(23, 59)]),
    "uuid": (sa.Uuid, [UUID(int=7), UUID(int=2**127 + 5)]),
    "uuid as text": (sa.Uuid(native_uuid=False, as_uuid=False), [str(UUID(int=7)), str(UUID(int=8))]),
    "mood": (sa.Enum(Mood, native_enum=False, length=10), [Mood.CALM, Mood.ANGRY]),
    "level": (sa.Enum(Level, native_enum=False, length=10, values_callable=lambda kind: ["l", "h"]), [*Level]),
    "colour": (sa.Enum("red", "blue", name="colours"), ["red", "blue"]),
    "tree": (sa.JSON(none_as_null=True), [TREE, [TREE], [1], [1.0, 2], "ab", "12", "", 12, 0.5, True, False, {}]),
    "tree b": (
        sa.JSON(none_as_null=True).with_variant(sa.dialects.postgresql.JSONB(none_as_null=True), "postgresql"),
        [TREE, {"c": True, "a": [1, {"b": None}]}, "ab", [1], 12],
    ),
    "null": (sa.JSON, [None, TREE, "null"]),
    "bytes": (sa.LargeBinary(20), [b"ab", b"\0\xff"]),
    "span": (sa.Interval, [timedelta(hours=36), timedelta(0)]),
    "pickled": (sa.PickleType, [{1: (2, 3)}, "ab"]),
}
OTHERS = [
    "ab",
    "\0",
    "\ud800",
    "12",
    "12.50",
    "true",
    "2024-02-29",
    "2024-02-29T23:59:59",
    "red",
    "calm",
    "x" * 500,
    str(UUID(int=7)),
]
"""What somebody may look for in any field."""


class Base(orm.DeclarativeBase):
    pass


Thing: Any = track_table()(
    type(
        "Thing",
        (Base,),
        {
            "__module__": __name__,
            "__tablename__": "things",
            "id": sa.Column(sa.Integer, primary_key=True, autoincrement=False),
            **{name: sa.Column(type_) for name, (type_, _) in TYPES.items()},
        },
    )
)


def happen(sessions: orm.sessionmaker[orm.Session]) -> None:
    """Give two rows the values of each type, one after the other, and some twice; then delete one of them."""
    with sessions() as session:
        things = [Thing(id=1, **{name: values[0] for name, (_, values) in TYPES.items()}), Thing(id=2)]
        session.add_all(things)
        session.commit()
        for step, thing in product(range(13), things):
            for name, (_, values) in TYPES.items():
                if (step + thing.id) % 3:
                    setattr(thing, name, [*values, None][step * thing.id % (len(values) + 1)])
            session.commit()
        session.delete(things[1])
        session.commit()


def chosen(changes: Any, name: str | None, sides: dict[str, Any]) -> list[Any]:
    """Return the changes of a field that have values, as Python compares them."""
    equal = {"loose": lambda one, other: one.lower() == other.lower()}

    def has(change: Any, side: str, values: list[Any]) -> bool:
        value = change.old_value if side == "filter_old_values" else change.new_value
        return any(not differ(value, wanted, equal.get(change.field_name)) for wanted in values)

    fields = [change for change in changes if name in (None, change.field_name)]
    return [change for change in fields if all(has(change, side, values) for side, values in sides.items())]


SIDES = ("filter_old_values", "filter_new_values")


@pytest.mark.parametrize("name", TYPES)
def test_values_of_every_type_are_found_as_python_compares_them(session, happened, name):
    changes = get_resource_changes(Thing, session, filter_fields=name)
    assert len(changes) > 8
    values = TYPES[name][1]
    read = {repr(change.new_value): change.new_value for change in changes}
    some = list({**{repr(value): value for value in values}, **read, "None": None}.values())
    for value, side in product(some, SIDES):
        sides = {side: [value]}
        assert get_resource_changes(Thing, session, None, name, **sides) == chosen(changes, name, sides), sides
    for old, new in product([None, *values[:2]], repeat=2):
        sides = {"filter_old_values": [old, values[-1]], "filter_new_values": [new]}
        expected = chosen(changes, name, sides)
        assert get_resource_changes(Thing, session, None, name, **sides) == expected, sides
        newest = get_resource_changes(Thing, session, [1, 2], name, newest_first=True, limit=2, **sides)
        assert newest == expected[::-1][:2]
    page = changes_page(session, Thing, filter_fields=name, filter_new_values=some[:-1], size=100)
    assert page.items == chosen(changes, name, {"filter_new_values": some[:-1]})
    assert len(page) > 2


def test_every_driver_gives_the_values_to_the_database(happened, by_driver):
    def look(session: orm.Session) -> None:
        for name, (_, values) in TYPES.items():
            changes = get_resource_changes(Thing, session, filter_fields=name)
            for value, side in product((values[0], None), SIDES):
                sides = {side: [value]}
                found = get_resource_changes(Thing, session, None, name, **sides)
                assert found == chosen(changes, name, sides), (name, sides)

    by_driver(look)


@pytest.mark.parametrize("side", SIDES)
def test_values_are_found_in_any_field_and_as_text(session, happened, side):
    changes = get_resource_changes(Thing, session)
    for text in OTHERS:
        found = get_resource_changes(Thing, session, **{side: text})
        assert found == [change for change in changes if change in found]
        fields = {change.field_name for change in found}
        assert fields >= {change.field_name for change in chosen(changes, None, {side: [text]})}
        for row in (1, 2):  # the versions of one row are read in their order, and compared
            of_row = [change for change in found if change.resource_id == row]
            assert get_resource_changes(Thing, session, row, **{side: text}) == of_row
    assert get_resource_changes(Thing, session, None, "price", **{side: "12.50"})
    assert get_resource_changes(Thing, session, **{side: ["no such value", "99999999"]}) == []


@pytest.mark.parametrize(
    ("name", "value", "size"), [("whole", 12, 999), ("moment", naive(2024, 2, 29), 999), ("bytes", b"ab", 40_000)]
)
def test_there_may_be_any_number_of_values(session, happened, name, value, size):
    changes = get_resource_changes(Thing, session, filter_fields=name)
    sides = {"filter_new_values": [value, *range(10**6, 10**6 + size)]}
    found = get_resource_changes(Thing, session, None, name, **sides)
    assert found == chosen(changes, name, {"filter_new_values": [value]})
    assert found


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ["text", "whole", "rate", "ratio", "flag", "day", "uuid", "mood", "colour"])
def test_only_versions_with_the_value_are_read(session, happened, name, side):
    value = "12" if name == "text" else TYPES[name][1][0]
    with rows_read(session) as counts:
        found = get_resource_changes(Thing, session, None, name, **{side: value})
    assert counts == [len(found)]
    assert found


# --- columns that have changed their type -----------------------------------------------------------------------

STORED = {
    "text": (
        sa.String(60),
        ["12", "012", "12.0", "1e1", "x", "true", "2024-02-29", "20240229", "[1]", '"x"', str(UUID(int=7)), "12:00"],
    ),
    "whole": (sa.Integer, [0, 1, 12]),
}
READ = ["text", "whole", "price", "ratio", "flag", "day", "instant", "clock", "uuid", "mood", "tree"]


def release(type_: Any) -> Any:
    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Thing(Base):
        __tablename__ = "things"
        id = sa.Column(sa.Integer, primary_key=True)
        value = sa.Column(type_)

    return Thing


@pytest.mark.no_tables
@pytest.mark.parametrize("stored", STORED)
def test_values_of_a_type_that_has_changed_are_found(sessions, stored):
    type_, values = STORED[stored]
    before = release(type_)
    with sessions() as session:
        before.metadata.create_all(session.connection())
        thing = before(id=1)
        session.add(thing)
        session.commit()
        for value in [*values, None, values[0]]:
            thing.value = value
            session.commit()
    for name in READ:
        after = release(TYPES[name][0])
        with sessions() as session:
            changes = get_resource_changes(after, session, filter_fields="value")
            some = {
                repr(value): value for value in [*(change.new_value for change in changes), TYPES[name][1][0], "12"]
            }
            for value, side in product(some.values(), SIDES):
                found = get_resource_changes(after, session, [1, 2], "value", **{side: [value]})
                told = get_resource_changes(after, session, [1], "value", **{side: [value]})
                assert found == told, (name, side, value)


# --- rows of every shape ----------------------------------------------------------------------------------------


class Other(orm.DeclarativeBase):
    pass


@track_table(redact={"phone": lambda column: sa.func.upper(column)})
class Animal(Other):
    __tablename__ = "animals"
    place: orm.Mapped[str] = orm.mapped_column(sa.String(10), primary_key=True)
    number: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    kind: orm.Mapped[str] = orm.mapped_column(sa.String(10))
    name: orm.Mapped[str | None] = orm.mapped_column("the name", sa.String(20))
    phone: orm.Mapped[str | None] = orm.mapped_column(sa.String(20))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # SQLAlchemy's


@track_table()
class Dog(Animal):
    __tablename__ = "dogs"
    place: orm.Mapped[str] = orm.mapped_column(sa.String(10), primary_key=True)
    number: orm.Mapped[int] = orm.mapped_column(primary_key=True, autoincrement=False)
    tricks: orm.Mapped[int | None]
    trainer: orm.Mapped[str | None] = orm.mapped_column(sa.String(20))
    __table_args__ = (sa.ForeignKeyConstraint([place, number], [Animal.place, Animal.number]),)
    __mapper_args__ = {"polymorphic_identity": "dog"}  # SQLAlchemy's


@pytest.mark.no_tables
def test_values_are_found_in_hierarchies_hidden_and_erased_ones_are_not(sessions):
    maintenance_tables(Other.metadata)
    with sessions() as session:
        Other.metadata.create_all(session.connection())
        session.commit()
        rows = [Animal(place="a", number=1, name="Rex"), Dog(place="a", number=2, name="Rex", tricks=1)]
        rows += [Dog(place="b", number=1, name="Ada", trainer="Rex"), Animal(place="b", number=2, phone="ada")]
        session.add_all(rows)
        session.commit()
        for name, tricks in (("Ada", 1), ("Rex", 2), (None, 3), ("Ada", None), ("Rex", 1)):
            for row in rows:
                row.name, row.phone = name, "ada" if name else "rex"
                if isinstance(row, Dog):
                    row.tricks, row.trainer = tricks, "Ada" if tricks == 1 else "Rex"
            session.commit()
        session.delete(rows[1])
        session.delete(rows[3])
        session.commit()
    for is_erased, model, masked in product((False, True), (Animal, Dog), ([], ["name"], ["trainer"])):
        if is_erased:
            with sessions() as session:
                erase(session, Animal, ("a", 2), reason="asked for", fields=["name"])
                session.commit()
        with sessions() as session, restricted(session, {Animal: Animal.number < 3}, masked={Dog: masked}):
            changes = get_resource_changes(model, session)
            assert any(change.new_value is ERASED for change in changes) is is_erased
            for value, side in product(["Rex", "Ada", "ADA", "REX", 1, 3, None, ERASED, "dog"], SIDES):
                sides = {side: [value]}
                assert get_resource_changes(model, session, **sides) == chosen(changes, None, sides), (model, sides)
            sides = {"filter_old_values": ["Rex", 1], "filter_new_values": ["Ada", 2, None]}
            assert get_resource_changes(model, session, **sides) == chosen(changes, None, sides)
