"""A checkout holds the rows of an instant, from any database in any other, and its foreign keys hold."""

import asyncio
import enum
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship, sessionmaker

from clock import at
from connecting import opened
from databases import DATABASES, OTHER_SCHEMA, Database
from sqlaudit import AuditColumns, QueryError, as_of, backfill, mark, marks_table, track_table
from sqlaudit.maintenance import checkout

KINDS = sorted(DATABASES)


def rows_of(url: sa.URL, statement: Any) -> list[Any]:
    with opened(url) as engine, engine.connect() as connection:
        return [tuple(row) for row in connection.execute(statement)]


# --- rows and references ----------------------------------------------------------------------------------------


class Base(orm.DeclarativeBase):
    pass


marks_table(Base.metadata)


class Region(Base):
    """Not tracked."""

    __tablename__ = "regions"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))


links = sa.Table(
    "customer_tags",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)


@track_table(
    exclude=["secret"], quiet=["seen"], audit_columns=AuditColumns(valid_from="since", valid_to="until", version="no")
)
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    email: Mapped[str] = mapped_column("e_mail", sa.String(50), unique=True)
    valid_from: Mapped[date | None]
    secret: Mapped[str] = mapped_column(sa.String(20), default="psst")
    seen: Mapped[int] = mapped_column(default=0)
    boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customers.id"))
    region_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Region.id))
    tags: Mapped[list[Tag]] = relationship(secondary=links)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Company(Customer):
    __tablename__ = "companies"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Customer.id), primary_key=True)
    staff: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "company"}


@track_table()
class Order(Base):
    __tablename__ = "orders"
    __table_args__ = (sa.Index("by_customer", "customer_id"),)

    year: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(sa.String(8), primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey(Customer.id))


@track_table()
class Line(Base):
    __tablename__ = "order_lines"
    __table_args__ = (
        sa.ForeignKeyConstraint(["year", "number"], [Order.year, Order.number], ondelete="CASCADE"),
        sa.UniqueConstraint("year", "number", "place"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    year: Mapped[int]
    number: Mapped[str] = mapped_column(sa.String(8))
    place: Mapped[int]


def happen(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:  # 0
        session.add_all([Region(id=1, name="north"), Tag(id=1), Tag(id=2)])
        session.flush()
        session.add(Company(id=1, email="a@x", staff=5, region_id=1, tags=[session.get(Tag, 1)]))
        session.flush()
        session.add(Customer(id=2, kind="person", email="b@x", boss_id=1))
        session.add(Customer(id=3, kind="person", email="c@x", boss_id=1))
        session.flush()
        for number, customer in (("n1", 2), ("n2", 3)):
            session.add(Order(year=2024, number=number, customer_id=customer))
            session.flush()
            session.add_all(
                [
                    Line(id=uuid.UUID(int=customer * 10 + place), year=2024, number=number, place=place)
                    for place in (1, 2)
                ]
            )
    with sessions.begin() as session:  # 1
        session.get(Company, 1).email = "new@x"
        session.get(Company, 1).tags = [session.get(Tag, 2)]
        session.delete(session.get(Line, uuid.UUID(int=21)))
        session.get(Order, (2024, "n2")).customer_id = 2
        session.add(Customer(id=4, kind="person", email="d@x"))


TABLES: dict[str, Any] = {
    "customers": sa.text("SELECT id, e_mail, seen, boss_id, region_id FROM customers ORDER BY id"),
    "companies": sa.text("SELECT id, staff FROM companies"),
    "customer_tags": sa.text("SELECT customer_id, tag_id FROM customer_tags"),
    "order_lines": sa.text("SELECT number, place FROM order_lines ORDER BY number, place"),
}
FIRST = {
    "customers": [(1, "a@x", 0, None, 1), (2, "b@x", 0, 1, None), (3, "c@x", 0, 1, None)],
    "companies": [(1, 5)],
    "customer_tags": [(1, 1)],
    "order_lines": [("n1", 1), ("n1", 2), ("n2", 1), ("n2", 2)],
}


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, empty: Callable[[str], sa.URL]) -> sa.URL:
    return empty(request.param)


def held(url: sa.URL) -> dict[str, list[Any]]:
    return {name: rows_of(url, statement) for name, statement in TABLES.items()}


def references(url: sa.URL) -> set[tuple[str, str, str]]:
    """Return the foreign keys of the tables of a checkout."""
    with opened(url) as engine:
        inspector = sa.inspect(engine)
        return {
            (table, ",".join(link["constrained_columns"]), link["referred_table"])
            for table in inspector.get_table_names()
            for link in inspector.get_foreign_keys(table)
        }


def test_a_checkout_holds_the_rows_of_an_instant_and_their_references(happened, engine, url):
    report = checkout(engine, at(0), url)
    assert held(url) == FIRST
    assert rows_of(url, sa.select(sa.text("secret")).select_from(sa.text("customers")).distinct()) == [(None,)]
    assert references(url) == {
        ("customers", "boss_id", "customers"),
        ("companies", "id", "customers"),
        ("customer_tags", "customer_id", "customers"),
        ("customer_tags", "tag_id", "tags"),
        ("orders", "customer_id", "customers"),
        ("order_lines", "year,number", "orders"),
    }
    assert report.at == at(0)
    assert report.tables["customers"] == 3
    assert report.rows == sum(report.tables.values()) == 13
    assert report.notes == (
        "customers.secret is NULL: it is excluded from history.",
        "The foreign key customers(region_id) leads to regions, which is not in the checkout.",
    )


def test_a_checkout_of_now_holds_the_live_rows_and_included_tables(happened, engine, url):
    checkout(engine, at(1), url, include=[Region])
    assert rows_of(url, sa.text("SELECT name FROM regions")) == [("north",)]
    assert ("customers", "region_id", "regions") in references(url)
    with engine.connect() as connection:
        live = {name: [tuple(row) for row in connection.execute(statement)] for name, statement in TABLES.items()}
    assert held(url) == live


def test_new_rows_of_a_checkout_get_numbers_of_their_own(happened, engine, url):
    checkout(engine, at(0), url)
    customers: Any = Customer.__table__
    with opened(url) as target, target.begin() as connection:
        connection.execute(sa.insert(customers).values(kind="person", e_mail="e@x", secret="", seen=0))
        assert list(connection.scalars(sa.select(customers.c.id).order_by("id"))) == [1, 2, 3, 4]


def test_a_reference_to_a_missing_row_costs_its_constraint_and_no_value(happened, engine, url):
    history = Customer.__table__.metadata.tables["customers_history"]
    with engine.begin() as connection:
        connection.execute(history.delete().where(history.c.id == 1), execution_options={"sqlaudit_write": None})
    report = checkout(engine, at(0), url)
    assert held(url)["customers"] == FIRST["customers"][1:]
    assert references(url) == {
        ("customer_tags", "tag_id", "tags"),
        ("orders", "customer_id", "customers"),
        ("order_lines", "year,number", "orders"),
    }
    assert (
        "The foreign key customers(boss_id) is left out: 2 rows refer to rows that are not in the checkout."
        in report.notes
    )
    with opened(url) as target, target.connect() as connection:
        assert {index["name"] for index in sa.inspect(connection).get_indexes("customers")} > set()


def test_a_unique_constraint_that_did_not_hold_then_is_left_out(happened, engine, url):
    history = Customer.__table__.metadata.tables["customers_history"]
    with engine.begin() as connection:
        connection.execute(history.update().values(e_mail="same"), execution_options={"sqlaudit_write": None})
    report = checkout(engine, at(0), url)
    assert "customers: e_mail is not unique, as it must be today." in report.notes
    assert [row[1] for row in held(url)["customers"]] == ["same"] * 3


@pytest.mark.no_tables
def test_tables_of_schemas_have_them_on_postgresql_and_get_names_of_their_own_elsewhere(engine, sessions, base, url):
    @track_table()
    class Inner(base):
        __tablename__ = "things"
        __table_args__ = {"schema": OTHER_SCHEMA}  # as SQLAlchemy declares it

        id: Mapped[int] = mapped_column(primary_key=True)

    @track_table()
    class Outer(base):
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)
        inner_id: Mapped[int] = mapped_column(sa.ForeignKey(Inner.id))

    @track_table()
    class Alone(base):
        __tablename__ = "alone"
        __table_args__ = {"schema": OTHER_SCHEMA}  # as SQLAlchemy declares it

        id: Mapped[int] = mapped_column(primary_key=True)

    if engine.dialect.name == "mariadb":
        engine = engine.execution_options(schema_translate_map={OTHER_SCHEMA: f"{engine.url.database}_other"})
    base.metadata.create_all(engine)
    sessions.configure(bind=engine)
    with sessions.begin() as session:
        session.add_all([Inner(id=5), Alone(id=6)])
        session.flush()
        session.add(Outer(id=7, inner_id=5))
    checkout(engine, datetime.now(UTC), url)
    schema = f"{OTHER_SCHEMA}." if url.get_backend_name() == "postgresql" else ""
    inner = f"{OTHER_SCHEMA}.things" if schema else f"{OTHER_SCHEMA}_things"
    assert rows_of(url, sa.text(f"SELECT inner_id FROM things JOIN {inner} i ON i.id = inner_id")) == [(5,)]  # noqa: S608  # literals
    assert rows_of(url, sa.text(f"SELECT id FROM {schema}alone")) == [(6,)]  # noqa: S608  # literals


# --- a slice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "customers", "numbers"),
    [
        pytest.param((Customer, 2), [1, 2], ["n1", "n1"], id="a row with a parent and grandchildren"),
        pytest.param((Customer, "3"), [1, 3], ["n2", "n2"], id="an id as text"),
        pytest.param((Company, 1), [1, 2, 3], ["n1", "n1", "n2", "n2"], id="a subclass"),
        pytest.param((Order, (2024, "n1")), [1, 2], ["n1", "n1"], id="a composite key"),
        pytest.param((Line, uuid.UUID(int=31)), [1, 3], ["n2"], id="a row that none refers to"),
        pytest.param((Tag, 1), [1], [], id="a row with a link"),
    ],
)
def test_a_slice_holds_a_row_those_that_refer_to_it_and_all_their_parents(
    happened, engine, empty, rows, customers, numbers
):
    url = empty("sqlite")
    seen: list[tuple[int, int]] = []
    report = checkout(engine, at(0), url, rows=rows, progress=lambda done, total: seen.append((done, total)))
    found = held(url)
    assert [row[0] for row in found["customers"]] == customers
    assert [row[0] for row in found["order_lines"]] == numbers
    assert found["companies"] == [(1, 5)]  # the part of a row in the table of its subclass belongs to it
    assert seen[-1] == (report.rows, report.rows)
    assert rows_of(url, sa.text("PRAGMA foreign_key_check")) == []


@pytest.mark.parametrize("rows", [(Customer, 42), (Customer, "x"), (Customer,), "Customer", (Order, 1)])
def test_a_slice_around_no_row_is_refused_and_leaves_nothing(happened, engine, empty, rows):
    url = empty("sqlite")
    with pytest.raises(QueryError):
        checkout(engine, at(0), url, rows=rows)
    assert list(Path(url.database).parent.iterdir()) == []


# --- where it goes, and what it is read with --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_has_tables_is_refused_and_left_as_it_is(happened, engine, empty, kind):
    url = empty(kind)
    with opened(url) as target, target.begin() as connection:
        connection.execute(sa.text("CREATE TABLE tags (id INTEGER)"))
    with pytest.raises(QueryError, match=r"has tables already: tags|exists already"):
        checkout(engine, at(0), url)
    with opened(url) as target:
        assert sa.inspect(target).get_table_names() == ["tags"]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("sqlite://", "Give its path"),
        ("sqlite:////no/such/directory/x.db", "does not exist"),
        ("nonsense", "cannot use the URL"),
        ("nonsense://x:secret@y/z", "cannot use the URL"),
        ("sqlite+aiosqlite:///x.db", "synchronous driver"),
        ("postgresql+psycopg://x:secret@127.0.0.1:1/z", "cannot connect"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused(happened, engine, to, message):
    with pytest.raises(QueryError, match=message) as caught:
        checkout(engine, at(0), to)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkout_that_fails_leaves_nothing(happened, engine, empty, kind):
    url = empty(kind)

    def stop(done: int, total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkout(engine, at(0), url, progress=stop)
    if kind == "sqlite":
        assert list(Path(url.database).parent.iterdir()) == []
    with opened(url) as target:
        assert sa.inspect(target).get_table_names() == []


def test_a_checkout_reads_with_sessions_connections_and_engines_of_both_kinds(happened, engine, sessions, empty):
    with sessions() as session, engine.connect() as connection:
        for where in (session, connection):
            checkout(where, at(0), url := empty("sqlite"))
            assert held(url) == FIRST
            Path(url.database).unlink()
    memory = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    checkout(engine, at(0), memory)
    with memory.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM customers")) == 3
    memory.dispose()


def test_a_checkout_reads_with_an_asynchronous_engine(happened, async_engine: AsyncEngine, empty):
    url = empty("sqlite")

    async def main() -> Any:
        return await checkout(async_engine, at(0), url)

    assert asyncio.run(main()).rows == 13
    assert held(url) == FIRST


def test_a_changeset_or_a_mark_stands_for_its_instant(happened, engine, sessions, clock, empty):
    clock.now = at(-0.8)
    with sessions() as session:
        made = mark(session, "before")
        session.rollback()
        [changeset] = session.scalars(
            sa.select(sa.text("audit_changeset_id")).select_from(sa.text("tags_history")).limit(1)
        )
    first, second = empty("sqlite"), empty("sqlite")
    assert checkout(engine, made, first).at == made.at
    assert checkout(engine, str(changeset), second).at == at(0)
    assert held(first) == held(second) == FIRST


# --- values -----------------------------------------------------------------------------------------------------


class Wide(orm.DeclarativeBase):
    pass


class Colour(enum.Enum):
    red = "r"
    green = "g"


class Reversed(sa.TypeDecorator[str]):
    """A text that is stored in reverse."""

    impl = sa.String(50)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value and value[::-1]

    process_result_value = process_bind_param


@track_table()
class Thing(Wide):
    __tablename__ = 'odd "Things" 100%'

    text: Mapped[str] = mapped_column("the key", sa.String(50), primary_key=True)
    colour: Mapped[Colour] = mapped_column(primary_key=True)
    long: Mapped[str | None] = mapped_column(sa.Text)
    secret: Mapped[str | None] = mapped_column(Reversed)
    amount: Mapped[Decimal | None] = mapped_column(sa.Numeric(12, 4))
    ratio: Mapped[float | None] = mapped_column(sa.Double)
    big: Mapped[int | None] = mapped_column(sa.BigInteger)
    flag: Mapped[bool | None]
    data: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    uid: Mapped[uuid.UUID | None]
    document: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    naive: Mapped[datetime | None] = mapped_column(
        sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    )
    aware: Mapped[datetime | None] = mapped_column(
        sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
    )
    day: Mapped[date | None]
    moment: Mapped[time | None]
    lapse: Mapped[timedelta | None] = mapped_column(
        sa.Interval().with_variant(sa.Interval(second_precision=6), "mysql", "mariadb")
    )
    shade: Mapped[str | None] = mapped_column(sa.Enum("light", "dark", name="shade"))


@track_table()
class Count(Wide):
    __tablename__ = "50 %"

    id: Mapped[int] = mapped_column(primary_key=True)


def full(**values: Any) -> dict[str, Any]:
    return {
        "long": "ä€😀 'quoted' \"double\" \\n %s :x\n\t",
        "secret": "abc",
        "amount": Decimal("-1234.5678"),
        "ratio": 0.1 + 0.2,
        "big": -(2**63),
        "flag": False,
        "data": bytes(range(256)),
        "uid": uuid.UUID(int=7),
        "document": {"a": [1, None, "ü", {"b": 1.5}], "z": ""},
        "naive": datetime(1969, 7, 20, 1, 2, 3, 4),  # noqa: DTZ001  # naive it is
        "aware": datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
        "day": date(1, 1, 1),
        "moment": time(23, 59, 59),
        "lapse": timedelta(days=3, seconds=4, microseconds=5),
        "shade": "dark",
    } | values


ROWS: dict[tuple[str, Colour], dict[str, Any]] = {
    ("a", Colour.red): full(),
    ("A", Colour.red): full(long="", data=b"", document=[], big=0, ratio=-0.0, amount=Decimal(0), flag=True),
    ("a ", Colour.green): dict.fromkeys(full()) | {"document": sa.null()},
    ("null of JSON", Colour.green): {"document": None},
    ("%(x)s", Colour.green): full(document="text", secret="", naive=datetime(9999, 12, 31)),  # noqa: DTZ001  # naive it is
}


def as_utc(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def things(session: Session, statement: Any) -> dict[Any, dict[str, Any]]:
    return {
        (each.text, each.colour): {name: getattr(each, name) for name in full()} | {"aware": as_utc(each.aware)}
        for each in session.scalars(statement)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.no_tables
def test_values_of_all_types_are_the_same_in_any_database(database: Database, engine, sessions, empty, kind):
    Wide.metadata.create_all(engine)
    keys = [key for key in ROWS if database.name != "mariadb" or key[0] not in ("A", "a ")]
    with sessions.begin() as session:
        session.add_all([Thing(text=text, colour=colour, **ROWS[text, colour]) for text, colour in keys])
        session.add(Count(id=1))
    with sessions.begin() as session:
        for thing in session.scalars(sa.select(Thing)):
            thing.long = "later"
    with sessions() as session:
        history = Thing.__table__.metadata.tables['odd "Things" 100%_history']
        first = session.scalar(sa.select(sa.func.min(history.c.valid_from)))
        then = things(session, as_of(Thing, first))
        is_null = sa.select(Thing.text).where(Thing.document.is_(sa.null()))
        nulls = list(session.scalars(is_null))
    assert len(then) == len(keys)
    checkout(engine, first, url := empty(kind))
    with opened(url) as target, Session(target) as session:
        assert things(session, sa.select(Thing)) == then
        assert list(session.scalars(is_null)) == nulls
        counts: Any = Count.__table__
        session.connection().execute(sa.insert(counts).values())
        assert list(session.scalars(sa.select(counts.c.id).order_by("id"))) == [1, 2]


class Loose(orm.DeclarativeBase):
    pass


@track_table()
class Sample(Loose):
    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[Any | None] = mapped_column(sa.Double)
    exact: Mapped[Any | None] = mapped_column(sa.Numeric)
    words: Mapped[Any | None] = mapped_column(postgresql.ARRAY(sa.String))
    document: Mapped[Any | None] = mapped_column(postgresql.JSONB)
    days: Mapped[Any | None] = mapped_column(postgresql.DATERANGE)
    address: Mapped[Any | None] = mapped_column(postgresql.INET)
    pairs: Mapped[Any | None] = mapped_column(postgresql.HSTORE().with_variant(sa.JSON(), "sqlite"))
    shades: Mapped[Any | None] = mapped_column(postgresql.ARRAY(sa.Enum("light", "dark", name="shade_of_array")))
    moment: Mapped[Any | None] = mapped_column(sa.DateTime(timezone=True))
    bits: Mapped[Any | None] = mapped_column(postgresql.BIT(3))
    span: Mapped[Any | None] = mapped_column(postgresql.INTERVAL)


SAMPLES = """
INSERT INTO samples (id, value, exact, words, document, days, address, shades, moment, bits, span) VALUES
(1, 'NaN', 'NaN', '{"a,b",NULL,"c\\"d"}', '{"b": 1e400, "a": null}', '[2024-01-01,)', '::1/64', '{dark,light}',
 'infinity', '101', '1 month 2 days'),
(2, '-Infinity', '1e100', '{}', 'null', 'empty', '10.0.0.1', NULL, '0044-03-15 12:00 BC', '000', '-1 sec'),
(3, 1e-300, '0.00000000000000000001', '{{x},{y}}', NULL, NULL, NULL, '{}', '2024-01-01 00:00:00.000001+05', NULL, NULL)
"""


@pytest.mark.requires("arrays")
@pytest.mark.no_tables
def test_postgresql_gives_another_postgresql_every_value_as_it_is(engine, empty):
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS hstore"))
    Loose.metadata.create_all(engine)
    write_samples(engine, SAMPLES)
    url = empty("postgresql")
    with opened(url) as target, target.begin() as connection:
        connection.execute(sa.text("CREATE EXTENSION hstore"))
    checkout(engine, datetime.now(UTC), url)
    whole = sa.text("SELECT s::text FROM samples s ORDER BY id")
    with engine.connect() as connection:
        assert rows_of(url, whole) == [tuple(row) for row in connection.execute(whole)]


def write_samples(engine: sa.Engine, statement: str) -> None:
    """Write rows by SQL, and record them."""
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    backfill(engine, Sample, at=datetime(2020, 1, 1, tzinfo=UTC))


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("kind", ["mariadb", "sqlite"])
@pytest.mark.no_tables
def test_types_and_numbers_that_a_database_lacks_are_replaced_and_noted(engine, empty, kind):
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS hstore"))
    Loose.metadata.create_all(engine)
    text = SAMPLES.replace("'infinity'", "NULL").replace("0044-03-15 12:00 BC", "0044-03-15").replace("1e400", "2")
    write_samples(engine, text.replace("'1e100'", "1.5"))
    report = checkout(engine, datetime.now(UTC), url := empty(kind))
    [first, second, third] = rows_of(
        url, sa.text("SELECT value, words, days, address, bits, shades FROM samples ORDER BY id")
    )
    infinite = -float("inf") if kind == "sqlite" else None
    assert first == (None, '["a,b", null, "c\\"d"]', first[2], "::1/64", "101", '["dark", "light"]')
    assert "2024-01-01" in first[2]
    assert second[:2] == (infinite, "[]")
    assert third[1:] == ('[["x"], ["y"]]', None, None, None, "[]")
    assert f"samples.words is JSON: {kind} has no type like VARCHAR[]." in report.notes
    assert any(note.startswith("samples.value is NULL in ") for note in report.notes)


@pytest.mark.no_tables
@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_an_enum_has_lost_are_kept_as_texts(engine, sessions, empty, base, kind):
    @track_table()
    class Shirt(base):
        __tablename__ = "shirts"

        id: Mapped[int] = mapped_column(primary_key=True)
        size: Mapped[str] = mapped_column(sa.Enum("small", "large", name="size", native_enum=False, length=20))

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Shirt(id=1, size="small"))
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE shirts_history SET size = 'huge'"), execution_options={"sqlaudit_write": None}
        )
    report = checkout(engine, datetime.now(UTC), url := empty(kind))
    assert rows_of(url, sa.text("SELECT size FROM shirts")) == [("huge",)]
    assert [note for note in report.notes if "shirts.size" in note]
