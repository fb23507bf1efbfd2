"""Every type of column, and everything that fills one, is stored as the database holds it."""

import enum
import json
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import Mapped, mapped_column

from databases import SQLALCHEMY_2_1
from lifecycle import Values, live_and_die
from sqlaudit import get_resource_changes, track_table, versions_of


class Colour(enum.Enum):
    RED = "rot"
    GREEN = "grün"


class Tags(sa.TypeDecorator[frozenset[str]]):
    """A set of words, kept as text."""

    impl = sa.String(100)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else ",".join(sorted(value))

    def process_result_value(self, value: Any, dialect: Any) -> frozenset[str] | None:
        return None if value is None else frozenset(value.split(","))


class Upper(sa.TypeDecorator[str]):
    """Text that the database changes on its way in and on its way out."""

    impl = sa.String(100)
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.upper(bindparam)

    def column_expression(self, column: Any) -> Any:
        return sa.func.lower(column, type_=sa.String())


class Cents(sa.TypeDecorator[Decimal]):
    """An amount, kept as an integer."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: Any, dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


def model_of(base: type[Any], type_: Any, **options: Any) -> Any:
    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(type_, nullable=True, **options)

    return Thing


SUMMER = timezone(timedelta(hours=2))
NAIVE = datetime(2024, 2, 29, 23, 59, 59, 123456)  # noqa: DTZ001  # for columns without time zone
PRECISE = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

# name: (type, a value, another)
Types = dict[str, tuple[Any, Any, Any]]
TYPES: Types = {
    "integer": (sa.Integer, 1, -1),
    "small": (sa.SmallInteger, 1, 2),
    "big": (sa.BigInteger, 2**62 + 1, 2**62 + 2),
    "text": (sa.Text, "a", "A"),
    "spaces": (sa.String(20), "a", "a "),
    "empty": (sa.String(20), "", None),
    "emoji": (sa.Unicode(20), "é 🎉", "é 🎊"),
    "fixed": (sa.CHAR(3), "abc", "abd"),
    "collated": (sa.String(20).with_variant(sa.String(20, collation="NOCASE"), "sqlite"), "abc", "ABC"),
    "accents": (sa.String(20), "resume", "résumé"),
    "boolean": (sa.Boolean, True, False),
    "checked_boolean": (sa.Boolean(create_constraint=True, name="ck_value"), False, True),
    "numeric": (sa.Numeric(20, 4), Decimal("1234567890.1234"), Decimal("1234567890.1235")),
    "asfloat": (sa.Numeric(10, 2, asdecimal=False), 1.5, 2.5),
    "float": (sa.Float, 0.5, 0.25),
    "double": (sa.Double, 0.1, 0.1 + 2**-54),
    "date": (sa.Date, date(2024, 2, 29), date(1, 1, 1)),
    "time": (sa.Time, time(1, 2, 3), time(23, 59, 59)),
    "naive": (PRECISE, NAIVE, NAIVE + timedelta(microseconds=1)),
    "interval": (sa.Interval, timedelta(days=30), timedelta(days=31, seconds=3)),
    "uuid": (sa.Uuid, uuid.UUID(int=1), uuid.UUID(int=2)),
    "uuid_text": (sa.Uuid(as_uuid=False), str(uuid.UUID(int=1)), str(uuid.UUID(int=2))),
    "uuid_char": (sa.Uuid(native_uuid=False), uuid.UUID(int=1), uuid.UUID(int=2)),
    "binary": (sa.LargeBinary, b"\x00\xff", b"\x00\xfe"),
    "varbinary": (sa.LargeBinary(100), b"a", b"A"),
    "pickle": (sa.PickleType, {"a": (1, 2)}, {"a": (1, 3)}),
    "json": (sa.JSON, {"a": [1, None, "x"]}, {"a": [1, None, "y"]}),
    "json_none": (sa.JSON(none_as_null=True), {"a": 1}, None),
    "json_scalar": (sa.JSON, "text", 3),
    "json_case": (sa.JSON, {"a": "x"}, {"a": "X"}),
    "enum": (sa.Enum(Colour, name="colour"), Colour.RED, Colour.GREEN),
    "enum_text": (sa.Enum(Colour, native_enum=False, length=20), Colour.RED, Colour.GREEN),
    "enum_checked": (
        sa.Enum(Colour, native_enum=False, length=20, create_constraint=True, name="ck_colour"),
        Colour.RED,
        Colour.GREEN,
    ),
    "enum_values": (
        sa.Enum(Colour, name="farbe", values_callable=lambda colours: [colour.value for colour in colours]),
        Colour.RED,
        Colour.GREEN,
    ),
    "enum_strings": (sa.Enum("a", "b", name="letter"), "a", "b"),
    "decorator": (Tags, frozenset("ab"), frozenset("bc")),
    "amount": (Cents, Decimal("1.25"), Decimal("1.5")),
    "upper": (Upper, "abc", "abd"),
}


# the same, of PostgreSQL's own
POSTGRESQL_TYPES: Types = {
    "jsonb": (postgresql.JSONB, {"a": [1, {"b": None}]}, {"a": [2, {"b": None}]}),
    "jsonb_none": (postgresql.JSONB(none_as_null=True), {"a": "1"}, None),
    "json_order": (postgresql.JSON, {"a": 1, "b": 2}, {"b": 2, "a": 3}),
    "integers": (postgresql.ARRAY(sa.Integer), [1, 2, None], [1, 2]),
    "texts": (sa.ARRAY(sa.Text), ["a", "b"], ["a", "B"]),
    "matrix": (postgresql.ARRAY(sa.Integer, dimensions=2), [[1, 2], [3, 4]], [[1, 2], [3, 5]]),
    "enums": (postgresql.ARRAY(sa.Enum(Colour, name="hue")), [Colour.RED], [Colour.RED, Colour.GREEN]),
    "enum_native": (postgresql.ENUM(Colour, name="hue"), Colour.RED, Colour.GREEN),
    "interval_native": (postgresql.INTERVAL, timedelta(days=30), timedelta(days=30, microseconds=1)),
    "range": (postgresql.INT4RANGE, postgresql.Range(1, 5), postgresql.Range(1, 6)),
    "aware": (
        sa.DateTime(timezone=True),
        datetime(2024, 2, 29, 12, tzinfo=SUMMER),
        datetime(2024, 2, 29, 12, tzinfo=UTC),
    ),
    "aware_time": (sa.Time(timezone=True), time(12, tzinfo=UTC), time(12, tzinfo=SUMMER)),
    "bytewise": (postgresql.TEXT(collation="C"), "a", "A"),
    "tsvector": (postgresql.TSVECTOR, "'a':1", "'a':1 'b':2"),
}


@pytest.fixture
def types(database) -> Types:
    """The types that a database has."""
    return TYPES | (POSTGRESQL_TYPES if "arrays" in database.capabilities else {})


def wide_model(base: type[Any], types: Types) -> Any:
    """Make a model with a column of each type."""
    columns = {name: mapped_column(type_, nullable=True) for name, (type_, _, _) in types.items()}
    ident = mapped_column(sa.Integer, primary_key=True)
    return track_table()(type("Wide", (base,), {"__tablename__": "wide", "id": ident, **columns}))


@pytest.mark.parametrize("direction", [1, -1], ids=["to", "fro"])
def test_values_of_every_type_are_told_as_they_are_held(direction, types, base, engine, sessions):
    wide = wide_model(base, types)
    base.metadata.create_all(engine)
    before, after = ({name: case[which] for name, case in types.items()} for which in (1, 2)[::direction])
    versions = live_and_die(sessions, wide, before, after)
    for version, values in zip(versions, [before, after, after], strict=True):
        assert {name: getattr(version, name) for name in types} == values
    base.metadata.drop_all(engine)
    assert sa.inspect(engine).get_table_names() == []


JSON = {
    "big": 2**62 + 1,
    "boolean": True,
    "numeric": "1234567890.1234",
    "float": 0.5,
    "date": "2024-02-29",
    "time": "01:02:03",
    "naive": "2024-02-29T23:59:59.123456",
    "interval": "P30D",
    "uuid": "00000000-0000-0000-0000-000000000001",
    "binary": "AP8=",
    "pickle": {"a": [1, 2]},
    "json": {"a": [1, None, "x"]},
    "json_scalar": "text",
    "enum": "rot",
    "enum_values": "rot",
    "decorator": ["a", "b"],
    "amount": "1.25",
    "matrix": [[1, 2], [3, 4]],
    "enums": ["rot"],
    "range": {"lower": 1, "upper": 5, "bounds": "[)", "empty": False},
    "ranges": [{"lower": 1, "upper": 2, "bounds": "[)", "empty": False}],
    "address": "192.0.2.7",
    "aware": "2024-02-29T10:00:00Z",
    "aware_time": "12:00:00+00:00",
}


def test_values_of_every_type_go_into_json(types, base, engine, sessions):
    more = {
        "ranges": (postgresql.INT4MULTIRANGE, [postgresql.Range(1, 2)], []),
        "address": (postgresql.INET, "192.0.2.7", "192.0.2.8"),
    }
    types = {**types, **more} if "range" in types else types
    wide = wide_model(base, types)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(wide(id=1, **{name: value for name, (_, value, _) in types.items()}))
    with sessions() as session:
        (version,) = versions_of(session, wide, 1)
        changes = {change.field_name: change for change in get_resource_changes(wide, session)}
        told = json.loads(json.dumps(version.to_dict("json"), allow_nan=False))
        assert {name: told[name] for name in JSON.keys() & types.keys()} == {n: JSON[n] for n in JSON.keys() & types}
        assert version.to_dict() == {name: getattr(version, name) for name in told}
        for name in types:
            assert json.loads(json.dumps(changes[name].to_dict(mode="json")))["new_value"] == told[name]
            assert changes[name].to_dict()["new_value"] == getattr(version, name)


def each_alone(
    base: type[Any], engine: Any, sessions: Any, types: Types, old: Values, change: Callable[[Any, str], object]
) -> dict[str, list[str]]:
    """Change a row for each type, and give the operations of each row's versions."""
    wide = wide_model(base, types)
    base.metadata.create_all(engine)
    ids = {name: number for number, name in enumerate(types, 1)}
    with sessions.begin() as session:
        session.add_all(wide(id=ids[name], **{name: old[name]}) for name in types)
    with sessions.begin() as session:
        for name in types:
            change(session.get_one(wide, ids[name]), name)
    with sessions() as session:
        return {name: [str(v.audit_operation) for v in versions_of(session, wide, ids[name])] for name in types}


@pytest.mark.parametrize("direction", [1, -1], ids=["to", "fro"])
def test_a_change_of_one_value_of_any_type_makes_a_version(direction, types, base, engine, sessions):
    before, after = ({name: case[which] for name, case in types.items()} for which in (1, 2)[::direction])
    told = each_alone(base, engine, sessions, types, before, lambda row, name: setattr(row, name, after[name]))
    assert told == {name: ["insert", "update"] for name in types}


def test_a_change_in_digits_that_the_database_does_not_show_makes_a_version(base, engine, sessions):
    types: Types = {"single": (sa.Float, 1234567.0, 1234568.0)}  # MariaDB shows 1234570 for both
    told = each_alone(
        base, engine, sessions, types, {"single": 1234567.0}, lambda row, _: setattr(row, "single", 1234568.0)
    )
    assert told == {"single": ["insert", "update"]}


def test_null_and_a_value_of_any_type_are_told_apart(types, base, engine, sessions):
    nulls, values = dict.fromkeys(types, sa.null()), {name: value for name, (_, value, _) in types.items()}
    told = each_alone(base, engine, sessions, types, nulls, lambda row, name: setattr(row, name, values[name]))
    assert told == {name: ["insert", "update"] for name in types}


def test_a_write_of_the_value_that_is_there_makes_no_version(types, base, engine, sessions):
    values = {name: value for name, (_, value, _) in types.items()}
    told = each_alone(base, engine, sessions, types, values, orm.attributes.flag_modified)
    assert told == {name: ["insert"] for name in types}


class Folded(sa.TypeDecorator[str]):
    """Text that SQL expressions compare in a way of its own."""

    impl = sa.String(20)
    cache_ok = True

    class comparator_factory(sa.String.Comparator[str]):
        def __eq__(self, other: Any) -> Any:
            return sa.func.lower(self.expr).op("=")(sa.func.lower(other))


def test_a_type_that_compares_in_its_own_way_is_stored_exactly(base, engine, sessions):
    thing = model_of(base, Folded)
    base.metadata.create_all(engine)
    live_and_die(sessions, thing, {"value": "a"}, {"value": "A"})


def test_a_type_that_compares_in_its_own_way_has_baselines(base, engine, sessions):
    thing = model_of(base, Folded)
    base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(thing.__table__).values(id=1, value="a"))
    with sessions.begin() as session:
        session.get_one(thing, 1).value = "A"
    with sessions() as session:
        versions = versions_of(session, thing, 1)
    assert [(str(v.audit_operation), v.value) for v in versions] == [("baseline", "a"), ("update", "A")]


def test_an_aware_datetime_is_told_as_the_database_returns_it(base, engine, sessions):
    thing = model_of(base, sa.DateTime(timezone=True))
    base.metadata.create_all(engine)
    first = datetime(2024, 2, 29, 12, tzinfo=UTC)
    live_and_die(sessions, thing, {"value": first}, {"value": first + timedelta(days=1)})


def test_a_key_of_another_type_than_integer_identifies_versions(base, engine, sessions):
    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        one: Mapped[uuid.UUID] = mapped_column(primary_key=True)
        two: Mapped[date] = mapped_column(primary_key=True)
        three: Mapped[Colour] = mapped_column(sa.Enum(Colour, name="colour"), primary_key=True)
        four: Mapped[Decimal] = mapped_column(sa.Numeric(8, 2), primary_key=True)
        value: Mapped[int]

    base.metadata.create_all(engine)
    key = {"one": uuid.UUID(int=5), "two": date(2024, 1, 2), "three": Colour.GREEN, "four": Decimal("1.50")}
    live_and_die(sessions, Thing, {**key, "value": 1}, {"value": 2})


KEYS: dict[str, tuple[Any, Any]] = {
    "uuid": (sa.Uuid, uuid.UUID(int=9)),
    "uuid_char": (sa.Uuid(native_uuid=False), uuid.UUID(int=9)),
    "text": (sa.String(20), "é'\"%:x"),
    "binary": (sa.LargeBinary(20).with_variant(mysql.VARBINARY(20), "mysql", "mariadb"), b"\x00\xff"),
    "naive": (PRECISE, NAIVE),
    "decorator": (Tags, frozenset("ab")),
    "amount": (Cents, Decimal("2.50")),
    "enum": (sa.Enum(Colour, name="colour"), Colour.RED),
    "boolean": (sa.Boolean, True),
}


@pytest.mark.parametrize("name", KEYS)
def test_rows_are_found_by_a_key_of_every_type(name, base, engine, sessions):
    type_, value = KEYS[name]

    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        id: Mapped[Any] = mapped_column(type_, primary_key=True)
        value: Mapped[int]

    base.metadata.create_all(engine)
    live_and_die(sessions, Thing, {"id": value, "value": 1}, {"value": 2})


# --- values that change in place --------------------------------------------------------------------------------


def json_dict() -> Any:
    return MutableDict.as_mutable(sa.JSON().with_variant(postgresql.JSONB(), "postgresql"))


def test_an_edit_of_a_mutable_dict_in_place_is_stored(base, engine, sessions):
    thing = model_of(base, json_dict())
    base.metadata.create_all(engine)
    versions = live_and_die(
        sessions, thing, {"value": {"a": 1, "b": [1]}}, lambda obj: obj.value.update(a=2, c={"d": None})
    )
    assert [version.value for version in versions[:2]] == [{"a": 1, "b": [1]}, {"a": 2, "b": [1], "c": {"d": None}}]


def test_an_edit_of_a_mutable_list_in_place_is_stored(base, engine, sessions):
    thing = model_of(base, MutableList.as_mutable(sa.JSON()))
    base.metadata.create_all(engine)
    versions = live_and_die(sessions, thing, {"value": [1]}, lambda obj: obj.value.append(2))
    assert [version.value for version in versions[:2]] == [[1], [1, 2]]


def test_a_mutable_dict_set_to_an_equal_value_makes_no_version(base, engine, sessions):
    thing = model_of(base, json_dict())
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(thing(id=1, value={"a": 1}))
    with sessions.begin() as session:
        session.get_one(thing, 1).value["a"] = 1
    with sessions() as session:
        assert len(versions_of(session, thing, 1)) == 1


# --- what the database or SQLAlchemy fills in -------------------------------------------------------------------


def test_defaults_of_both_sides_are_stored(base, engine, sessions):
    numbers = iter(range(100))

    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))
        by_server: Mapped[int] = mapped_column(server_default="7")
        by_clock: Mapped[datetime] = mapped_column(PRECISE, server_default=sa.text("CURRENT_TIMESTAMP"))
        by_python: Mapped[int] = mapped_column(default=8)
        by_call: Mapped[int] = mapped_column(default=lambda: next(numbers))
        by_sql: Mapped[int] = mapped_column(default=sa.select(sa.literal(4) + 5).scalar_subquery())
        by_insert: Mapped[uuid.UUID] = mapped_column(insert_default=uuid.uuid4)

    base.metadata.create_all(engine)
    first, *_ = live_and_die(sessions, Thing, {"name": "a"}, {"name": "b", "by_server": 6})
    assert (first.by_server, first.by_python, first.by_call, first.by_sql) == (7, 8, 0, 9)


@pytest.mark.parametrize("eager", [True, False, "auto"])
def test_what_onupdate_sets_is_stored(eager, base, engine, sessions):
    numbers = iter(range(1, 100))

    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        __mapper_args__ = {"eager_defaults": eager}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))
        edits: Mapped[int] = mapped_column(default=0, onupdate=lambda: next(numbers))
        revision: Mapped[int] = mapped_column(server_default="10", onupdate=sa.text("revision + 1"))

    base.metadata.create_all(engine)
    first, second, _ = live_and_die(sessions, Thing, {"name": "a"}, {"name": "b"})
    assert [(v.edits, v.revision) for v in (first, second)] == [(0, 10), (1, 11)]


def check_computed_column(base, engine, sessions, *, persisted):
    @track_table()
    class Box(base):
        __tablename__ = "box"
        id: Mapped[int] = mapped_column(primary_key=True)
        width: Mapped[int]
        area: Mapped[int] = mapped_column(sa.Computed("width * width", persisted=persisted))
        name: Mapped[str | None] = mapped_column(sa.String(20))

    base.metadata.create_all(engine)
    first, second, _ = live_and_die(sessions, Box, {"width": 2}, {"width": 3})
    assert (first.area, second.area) == (4, 9)


def test_computed_columns_are_stored(base, engine, sessions):
    check_computed_column(base, engine, sessions, persisted=True)


@pytest.mark.requires("virtual_columns")
def test_columns_that_are_computed_when_they_are_read_are_stored(base, engine, sessions):
    check_computed_column(base, engine, sessions, persisted=False)


@pytest.mark.parametrize("always", [True, False])
def test_a_key_that_the_database_numbers_is_stored(always, base, engine, sessions):
    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(sa.Identity(always=always, start=5), primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))

    base.metadata.create_all(engine)
    live_and_die(sessions, Thing, {"name": "a"}, {"name": "b"})


@pytest.mark.requires("identity_always")
def test_an_identity_that_is_no_key_is_stored(base, engine, sessions):
    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(sa.Identity(always=True, start=5))
        name: Mapped[str] = mapped_column(sa.String(20))

    base.metadata.create_all(engine)
    first, *_ = live_and_die(sessions, Thing, {"name": "a"}, {"name": "b"})
    assert first.number == 5


@pytest.mark.requires("arrays")
def test_a_sequence_numbers_rows_not_versions(base, engine, sessions):
    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(sa.Sequence("thing_numbers", start=5), primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))

    base.metadata.create_all(engine)
    live_and_die(sessions, Thing, {"name": "a"}, {"name": "b"})
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.nextval("thing_numbers"))) == 6


@pytest.mark.parametrize(
    "generator", [None, lambda version: "x" if version is None else version + "x"], ids=["numbers", "generated"]
)
def test_the_version_counter_of_a_mapper_is_stored(generator, base, engine, sessions):
    ticks = mapped_column(sa.Integer if generator is None else sa.String(20), nullable=False)

    @track_table()
    class Thing(base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))
        counter: Mapped[Any] = ticks
        __mapper_args__ = {"version_id_col": ticks} | ({} if generator is None else {"version_id_generator": generator})

    base.metadata.create_all(engine)
    first, second, _ = live_and_die(sessions, Thing, {"name": "a"}, {"name": "b"})
    assert [first.counter, second.counter] == ([1, 2] if generator is None else ["x", "xx"])


def test_sql_expressions_are_stored_as_what_they_gave(base, engine, sessions):
    thing = model_of(base, sa.Integer)
    base.metadata.create_all(engine)

    def change(obj: Any) -> None:
        obj.value = thing.value + 1

    first, second, _ = live_and_die(sessions, thing, {"value": sa.literal(2) * 3}, change)
    assert (first.value, second.value) == (6, 7)


# --- types that are objects of the database ---------------------------------------------------------------------


@pytest.mark.requires("enum_types")
def test_an_enum_type_that_tables_share_is_created_and_dropped_once(base, database, engine, sessions):
    shared = sa.Enum(Colour, name="colour", schema=database.other_schema)
    of_metadata = sa.Enum("a", "b", name="letter", metadata=base.metadata)

    @track_table()
    class One(base):
        __tablename__ = "one"
        id: Mapped[int] = mapped_column(primary_key=True)
        colour: Mapped[Colour] = mapped_column(shared)
        letter: Mapped[str] = mapped_column(of_metadata)

    @track_table()
    class Two(base):
        __tablename__ = "two"
        id: Mapped[int] = mapped_column(primary_key=True)
        colour: Mapped[Colour] = mapped_column(shared)
        letter: Mapped[str] = mapped_column(of_metadata)

    def names() -> set[str]:
        types = [*sa.inspect(engine).get_enums(), *sa.inspect(engine).get_enums(schema=database.other_schema)]
        assert len(types) == len({enum_["name"] for enum_ in types})
        return {enum_["name"] for enum_ in types}

    for _ in range(2):
        base.metadata.create_all(engine)
        base.metadata.create_all(engine)
        assert names() == {"colour", "letter"}
        live_and_die(sessions, One, {"colour": Colour.RED, "letter": "a"}, {"colour": Colour.GREEN, "letter": "b"})
        base.metadata.drop_all(engine)
        assert names() == set()


@pytest.mark.requires("enum_types")
@pytest.mark.parametrize("order", [1, -1] if SQLALCHEMY_2_1 else [-1])  # 2.0 drops a type with any of its tables
def test_live_and_history_tables_can_be_created_one_by_one(order, base, engine):
    thing = model_of(base, sa.Enum(Colour, name="colour"))
    tables = [thing.__table__, thing.History.__table__]
    for table in tables:
        table.create(engine, checkfirst=True)
    for table in tables[::order]:
        table.drop(engine, checkfirst=True)
    assert sa.inspect(engine).get_table_names() == []


def test_the_changes_of_an_enum_are_members_of_it(base, engine, sessions):
    thing = model_of(base, sa.Enum(Colour, name="colour"))
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(thing(id=1, value=Colour.RED))
    with sessions() as session:
        (change,) = get_resource_changes(thing, session, filter_fields="value")
    assert change.new_value is Colour.RED
