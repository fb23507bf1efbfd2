"""A check finds each fault that is planted in a history, and nothing in one that sqlaudit has written."""

import asyncio
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit
from blocks import ROOT
from clock import Clock
from databases import OTHER_SCHEMA, Database
from invariants import check_history, told
from registering import recording
from sqlaudit import OPEN_END, AuditColumns, AuditContextManager, backfill, record_changes, track_table
from sqlaudit.maintenance import CheckReport, Finding, FindingCode, check, maintenance_tables
from sqlaudit.maintenance.door import writable_history
from sqlaudit.tracking.protection import trigger_names
from sqlaudit.tracking.tables import TrackedTable, tracked_table


class Base(DeclarativeBase):
    pass


visits = sa.Table(  # without a primary key
    "visits",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id"), nullable=False),
    sa.Column("animal_id", sa.ForeignKey("animals.id"), nullable=False),
)


@track_table(
    exclude=["secret"], quiet=["hits"], audit_columns=AuditColumns(valid_from="audit_from", valid_to="audit_to")
)
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("full_name", sa.String(40))
    city: Mapped[str | None] = mapped_column(sa.String(40))
    valid_from: Mapped[int | None]
    hits: Mapped[int] = mapped_column(default=0)
    secret: Mapped[str | None] = mapped_column(sa.String(40))
    animals: Mapped[list["Animal"]] = relationship(secondary=visits)


@track_table()
class Animal(Base):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str] = mapped_column(sa.String(40))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Dog(Animal):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
    tricks: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Cat(Animal):
    lives: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "cat"}


@track_table(as_of_index=True)
class Seat(Base):
    __tablename__ = "seats"
    row: Mapped[int] = mapped_column(primary_key=True)
    letter: Mapped[str] = mapped_column(sa.String(1), primary_key=True)
    owner_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Customer.id), index=True)


maintenance_tables(Base.metadata)
SOURCES = (Customer, Animal, Seat, visits)
customers, animals, dogs, seats = (model.__table__ for model in (Customer, Animal, Dog, Seat))


def tracked(live: Any) -> TrackedTable:
    table = tracked_table(live)
    assert table is not None
    return table


def happen(sessions: sessionmaker[Session]) -> None:
    """Write rows in every way that leaves its own kind of history."""
    orm.configure_mappers()
    with Session(sessions.kw["bind"]) as session:  # before there was a history
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(clock=sqlaudit.get_config().clock, on_uncaptured="ignore"))
        session.add_all([Customer(id=id, name="old") for id in (90, 91, 92)])
        session.commit()
    with sessions.begin() as session:
        session.add_all([Customer(id=id, name=f"customer {id}", secret="s") for id in range(1, 8)])
        session.add_all(
            [
                Dog(id=1, name="Rex", tricks=1),
                Cat(id=2, name="Tom"),
                Animal(id=3, name="Bug"),
                Dog(id=4, name="Fido", tricks=2),
            ]
        )
        session.flush()
        session.add_all([Seat(row=row, letter=letter, owner_id=1) for row in (1, 2) for letter in "ab"])
    with sessions.begin() as session:  # contexts of one transaction
        for user in ("ann", "bob"):
            with AuditContextManager(user_id=user):
                session.get_one(Customer, 1).name = user
                session.get_one(Dog, 1).tricks += 1
                session.flush()
        visitor = session.get_one(Customer, 2)
        visitor.animals = [session.get_one(Animal, 1), session.get_one(Animal, 2)]
    with sessions.begin() as session:
        session.get_one(Customer, 90).name = "known"  # with a baseline
        session.get_one(Customer, 2).hits = 100
        visitor = session.get_one(Customer, 2)
        visitor.animals.pop()
        session.execute(sa.update(Seat).values(owner_id=2))
        session.delete(session.get_one(Dog, 4))
        session.delete(session.get_one(Customer, 3))
    with sessions.begin() as session:
        session.add(Customer(id=3, name="again"))
        session.get_one(Seat, (1, "a")).row = 3
        session.execute(sa.delete(Seat).where(Seat.row == 2))
    with sessions.begin() as session:
        session.execute(sa.delete(Customer).where(Customer.id == 7))
        session.connection().execute(sa.update(customers).where(customers.c.id == 6).values(city="Rome"))
        record_changes(session, Customer, [6])
    with Session(sessions.kw["bind"]) as session:
        session.connection().execute(sa.delete(customers).where(customers.c.id == 92))
        session.commit()


@pytest.fixture
def written(engine: sa.Engine, happened: Any) -> sa.Engine:
    return engine


def found_in(findings: Iterable[Finding]) -> list[tuple[str, str, Any]]:
    return [(str(finding.code), finding.table, finding.key) for finding in findings]


def found(report: CheckReport) -> list[tuple[str, str, Any]]:
    return found_in(report.findings)


def assert_sound(report: CheckReport) -> None:
    assert [*report.findings, *report.unchecked] == []
    assert report.is_sound


# --- sound histories --------------------------------------------------------------------------------------------


def test_a_history_that_sqlaudit_wrote_has_no_fault(written: sa.Engine) -> None:
    report = check(written, Base)
    with Session(written) as session:
        for source in (Animal, Seat, visits):
            check_history(session, source)
    assert found(report) == [("unrecorded-row", "customers", 91)]
    backfill(written, Customer)
    report = check(written, *SOURCES)
    assert_sound(report)
    assert (report.tables, report.repaired, report.changeset_ids) == (5, 0, ())
    with Session(written) as session:
        histories = [tracked(live).history for live in (customers, animals, dogs, seats, visits)]
        assert report.versions == sum(
            session.scalars(sa.select(sa.func.count()).select_from(each)).one() for each in histories
        )


def test_clocks_that_differ_leave_no_fault(engine: sa.Engine, sessions: sessionmaker[Session], clock: Clock) -> None:
    with sessions.begin() as session:
        session.add_all([Customer(id=id, name="a") for id in (1, 2, 3)])
    later = clock.now
    for begin in (timedelta(hours=1), timedelta(0), timedelta(minutes=30)):
        clock.now = later + begin
        with sessions.begin() as session:
            for id in (1, 2) if begin else (1, 2, 3):
                session.get_one(Customer, id).name += "b"
    clock.now = later - timedelta(days=1)
    with sessions.begin() as session:  # each row begins at an instant of its own
        session.add_all([Customer(id=4, name="new"), Animal(id=1, name="new")])
        session.delete(session.get_one(Customer, 1))
        session.get_one(Customer, 3).city = "Rome"
    with sessions.begin() as session:
        session.add(Customer(id=1, name="again"))
    assert_sound(check(engine, Base))


def test_a_history_that_begins_with_a_later_baseline_is_sound(written: sa.Engine) -> None:
    backfill(written, Customer)
    history = tracked(customers).history
    with written.begin() as connection:
        first = (history.c.id == 1, history.c.audit_version < 3)
        connection.execute(sa.delete(history).where(*first))
        pruned = sa.update(history).where(history.c.id == 1, history.c.audit_version == 3)
        connection.execute(pruned.values(audit_operation="baseline"))
    assert_sound(check(written, Base))


# --- faults -----------------------------------------------------------------------------------------------------

EARLY, LATE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


def change(live: Any, version: int, *, id: int = 1, **values: Any) -> Any:
    """Return a function that changes a version of a row, or of the row (3, 'a')."""
    history = tracked(live).history

    def plant(connection: sa.Connection) -> None:
        key = (id,) if "id" in history.c else (3, "a")
        is_row = [column == value for column, value in zip(tracked(live).history_key, key, strict=True)]
        connection.execute(sa.update(history).where(*is_row, history.c.audit_version == version).values(values))

    return plant


def execute(*statements: Callable[[], Any]) -> Any:
    def plant(connection: sa.Connection) -> None:
        for statement in statements:
            connection.execute(statement())

    return plant


def without_open_guard(plant: Callable[[sa.Connection], None]) -> Any:
    """Return a function that plants a fault that the database would refuse, were it not for a missing index."""

    def plant_without(connection: sa.Connection) -> None:
        history = tracked(customers).history
        quote = connection.dialect.identifier_preparer.quote
        on = f" ON {quote(history.name)}" if connection.dialect.name == "mariadb" else ""
        connection.execute(sa.DDL(f"DROP INDEX {quote(f'uq_{history.name}_open')}{on}"))
        plant(connection)

    return plant_without


def delete_version(live: Any, version: int, id: int = 1) -> Any:
    history = tracked(live).history
    return execute(lambda: sa.delete(history).where(history.c.id == id, history.c.audit_version == version))


@dataclass
class Fault:
    plant: Callable[[sa.Connection], None]
    found: list[tuple[str, str, Any]]
    left: frozenset[str] = frozenset()
    """The codes of the findings that a repair leaves."""


_history_of_customers = tracked(customers).history
_history_of_dogs = tracked(dogs).history
ALL = frozenset(FindingCode)
FAULTS: dict[str, Fault] = {
    "a live row was changed": Fault(
        execute(lambda: sa.update(customers).where(customers.c.id == 1).values(city="Rome", hits=7)),
        [("unrecorded-change", "customers", 1)],
    ),
    "a live row was inserted": Fault(
        execute(lambda: sa.insert(customers).values(id=50, full_name="x", hits=0)),
        [("unrecorded-row", "customers", 50)],
    ),
    "a live row was deleted": Fault(
        execute(lambda: sa.delete(customers).where(customers.c.id == 5)),
        [("unrecorded-deletion", "customers", 5)],
    ),
    "a row of a composite key was changed": Fault(
        execute(lambda: sa.update(seats).where(seats.c.row == 3).values(owner_id=None)),
        [("unrecorded-change", "seats", (3, "a"))],
    ),
    "links were inserted twice, and one deleted": Fault(
        execute(
            lambda: sa.delete(visits),
            lambda: sa.insert(visits).values([(4, 3), (4, 3)]),
        ),
        [("unrecorded-row", "visits", (4, 3)), ("unrecorded-deletion", "visits", (2, 1))],
    ),
    "a subclass row was changed": Fault(
        execute(lambda: sa.update(dogs).values(tricks=9)), [("unrecorded-change", "dogs", 1)]
    ),
    "an object was deleted": Fault(
        execute(
            lambda: sa.delete(visits), lambda: sa.delete(dogs), lambda: sa.delete(animals).where(animals.c.id == 1)
        ),
        [
            ("unrecorded-deletion", "animals", 1),
            ("unrecorded-deletion", "dogs", 1),
            ("unrecorded-deletion", "visits", (2, 1)),
        ],
    ),
    "an object was inserted": Fault(
        execute(
            lambda: sa.insert(animals).values(id=8, kind="dog", name="Dot"),
            lambda: sa.insert(dogs).values(id=8, tricks=3),
        ),
        [("unrecorded-row", "animals", 8), ("unrecorded-row", "dogs", 8)],
    ),
    "an object left its subclass": Fault(
        execute(lambda: sa.delete(dogs), lambda: sa.update(animals).where(animals.c.id == 1).values(kind="animal")),
        [("unrecorded-change", "animals", 1), ("unrecorded-deletion", "dogs", 1)],
    ),
    "the open version is lost": Fault(delete_version(customers, 3), [("unrecorded-row", "customers", 1)]),
    "the open version has ended": Fault(
        change(customers, 3, audit_to=_history_of_customers.c.audit_from), [("unrecorded-row", "customers", 1)]
    ),
    "the open version ends in the future": Fault(
        change(customers, 3, audit_to=LATE), [("unrecorded-row", "customers", 1)], ALL
    ),
    "the first version is an update": Fault(
        change(customers, 1, id=4, audit_operation="update"), [("missing-version", "customers", 4)], ALL
    ),
    "the first version of a deleted row is lost": Fault(
        delete_version(customers, 1, id=7), [("missing-version", "customers", 7)], ALL
    ),
    "the open version of a subclass is lost": Fault(delete_version(dogs, 3), [("unrecorded-row", "dogs", 1)]),
    "an ended version of a subclass is open": Fault(
        execute(
            lambda: sa.delete(_history_of_dogs).where(
                _history_of_dogs.c.id == 1, _history_of_dogs.c.audit_version == 3
            ),
            lambda: (
                sa.update(_history_of_dogs)
                .where(_history_of_dogs.c.id == 1, _history_of_dogs.c.audit_version == 2)
                .values(valid_to=OPEN_END)
            ),
        ),
        [("different-period", "dogs", 1), ("unrecorded-change", "dogs", 1)],
    ),
    "two versions are open": Fault(
        without_open_guard(change(customers, 2, audit_to=OPEN_END)),
        [
            ("missing-index", "customers", None),
            ("open-not-last", "customers", 1),
            ("unrecorded-change", "customers", 1),
        ],
        frozenset({"missing-index"}),
    ),
    "a later version is not open": Fault(
        execute(
            lambda: (
                sa.update(_history_of_customers)
                .where(_history_of_customers.c.id == 1, _history_of_customers.c.audit_version == 3)
                .values(audit_to=_history_of_customers.c.audit_from)
            ),
            lambda: (
                sa.update(_history_of_customers)
                .where(_history_of_customers.c.id == 1, _history_of_customers.c.audit_version == 2)
                .values(audit_to=OPEN_END)
            ),
        ),
        [("open-not-last", "customers", 1), ("unrecorded-change", "customers", 1)],
    ),
    "a version in the middle is lost": Fault(delete_version(customers, 2), [("missing-version", "customers", 1)], ALL),
    "the first version is lost": Fault(delete_version(customers, 1), [("missing-version", "customers", 1)], ALL),
    "a version in the middle is lost before a baseline": Fault(
        execute(
            lambda: sa.delete(_history_of_customers).where(
                _history_of_customers.c.id == 1, _history_of_customers.c.audit_version == 2
            ),
            lambda: (
                sa.update(_history_of_customers)
                .where(_history_of_customers.c.id == 1, _history_of_customers.c.audit_version == 3)
                .values(audit_operation="baseline")
            ),
        ),
        [("missing-version", "customers", 1)],
        ALL,
    ),
    "a version begins too late": Fault(
        change(customers, 3, audit_from=LATE), [("gap", "customers", 1), ("two-instants", "customers", 1)], ALL
    ),
    "a version ends before it begins": Fault(
        change(customers, 1, audit_to=EARLY),
        [("reversed-period", "customers", 1), ("gap", "customers", 1)],
        ALL,
    ),
    "a version ends too late": Fault(change(customers, 1, audit_to=LATE), [("overlap", "customers", 1)], ALL),
    "a version ends too early": Fault(
        change(customers, 1, id=6, audit_to=datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC)), [("gap", "customers", 6)], ALL
    ),
    "a tombstone is in the middle": Fault(
        change(seats, 1, audit_operation="delete"),
        [("misplaced-tombstone", "seats", (3, "a"))],
        ALL,
    ),
    "a tombstone has become an update": Fault(
        execute(
            lambda: (
                sa.update(_history_of_customers)
                .where(_history_of_customers.c.id == 7, _history_of_customers.c.audit_version == 2)
                .values(audit_operation="update")
            )
        ),
        [("missing-tombstone", "customers", 7)],
        ALL,
    ),
    "an update has become an insert": Fault(
        change(customers, 3, audit_operation="insert"), [("missing-tombstone", "customers", 1)], ALL
    ),
    "a changeset has two instants": Fault(
        execute(
            lambda: sa.update(_history_of_customers).where(_history_of_customers.c.id == 4).values(audit_from=EARLY)
        ),
        [("two-instants", "customers", 4)],
        ALL,
    ),
    "a version of a subclass is orphaned": Fault(
        delete_version(animals, 2, id=4),
        [("missing-tombstone", "animals", 4), ("orphaned-version", "dogs", 4)],
        ALL,
    ),
    "a version of a subclass has another period": Fault(
        change(dogs, 3, valid_from=LATE), [("different-period", "dogs", 1)], ALL
    ),
}


def changed_by_of_all(engine: sa.Engine) -> dict[tuple[Any, ...], str | None]:
    """Return who wrote each version: (history table, key, number) → user."""
    users = {}
    with engine.connect() as connection:
        for table in map(tracked, (customers, animals, dogs, seats, visits)):
            columns = [*table.history_key, table.version, table.role("changed_by")]
            for *version, user in connection.execute(sa.select(*columns)):
                users[table.history.name, *version] = user
    return users


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_mended_or_left_with_the_reason(written: sa.Engine, name: str) -> None:
    fault = FAULTS[name]
    backfill(written, Customer)
    with written.begin() as connection:
        fault.plant(connection)
    report = check(written, Base)
    assert sorted(found(report), key=str) == sorted(fault.found, key=str)
    assert all(finding.message and finding.remedy and finding.repair is None for finding in report.findings)
    assert not (report.is_sound and fault.found)

    before = changed_by_of_all(written)
    with AuditContextManager(user_id="ops"):
        report = check(written, Base, repair=True)
    assert sorted(found(report), key=str) == sorted(fault.found, key=str)
    for finding in report.findings:
        assert finding.is_repaired == (finding.code not in fault.left)
        assert str(finding.repair).startswith("The " if finding.is_repaired else "Left: ")
    left = [finding for finding in report.findings if not finding.is_repaired]
    assert (report.repaired, report.is_sound) == (len(report.findings) - len(left), not left)
    again = check(written, Base)
    assert sorted(found(again), key=str) == sorted(found_in(left), key=str)
    after = changed_by_of_all(written)
    assert before.items() <= after.items()  # nothing is lost or rewritten
    assert {after[version] for version in after.keys() - before.keys()} <= {"ops", None}  # baselines have no user


# --- structure --------------------------------------------------------------------------------------------------


def ddl(*statements: str) -> Callable[[sa.Connection], None]:
    def plant(connection: sa.Connection) -> None:
        for statement in statements:
            connection.execute(sa.DDL(statement))

    return plant


def drop_index(name: str) -> Callable[[sa.Connection], None]:
    def plant(connection: sa.Connection) -> None:
        on = " ON customers_history" if connection.dialect.name == "mariadb" else ""
        connection.execute(sa.DDL(f"DROP INDEX {name}{on}"))

    return plant


STRUCTURES: dict[str, tuple[Callable[[sa.Connection], None], list[tuple[str, str]], str]] = {
    "no table": (
        ddl("DROP TABLE dogs_history"),
        [("missing-table", "dogs")],
        "lacks the history table 'dogs_history'",
    ),
    "no stored column": (
        ddl("ALTER TABLE customers_history DROP COLUMN city"),
        [("missing-column", "customers")],
        "'customers_history' lacks the column 'city'",
    ),
    "no audit column": (
        ddl("ALTER TABLE customers_history DROP COLUMN audit_reason"),
        [("missing-column", "customers")],
        "lacks the column 'audit_reason'",
    ),
    "no index of changesets": (
        drop_index("ix_customers_history_changeset"),
        [("missing-index", "customers")],
        "lacks the index 'ix_customers_history_changeset'",
    ),
    "no index of instants": (
        drop_index("ix_customers_history_instant"),
        [("missing-index", "customers")],
        "lacks the index 'ix_customers_history_instant'",
    ),
    "no guard of open versions": (
        drop_index("uq_customers_history_open"),
        [("missing-index", "customers")],
        "Two versions of one row may be open",
    ),
    "another name of an index": (
        lambda connection: (
            drop_index("ix_customers_history_changeset")(connection),
            connection.execute(sa.DDL("CREATE INDEX other ON customers_history (audit_changeset_id, id)")),
        ),
        [],
        "",
    ),
}


@pytest.mark.new_tables
@pytest.mark.parametrize("name", STRUCTURES)
def test_what_a_history_table_lacks_is_found_and_left_to_a_migration(engine: sa.Engine, name: str) -> None:
    plant, expected, words = STRUCTURES[name]
    with engine.begin() as connection:
        connection.execute(sa.insert(customers).values(id=1, full_name="x", hits=0))
    Base.metadata.create_all(engine)
    backfill(engine, Customer)
    with engine.begin() as connection:
        plant(connection)
    report = check(engine, Base, repair=True)
    assert [(finding.code, finding.table) for finding in report.findings] == expected
    for finding in report.findings:
        assert words in finding.message
        assert (finding.is_repaired, finding.repair) == (False, "Left: the schema is changed by a migration.")


@pytest.mark.no_tables
@pytest.mark.parametrize(
    ("live", "history", "is_narrow"),
    [
        (sa.String(40), sa.String(20), True),
        (sa.String(20), sa.String(40), False),
        (sa.Text(), sa.String(40), True),
        (sa.BigInteger(), sa.Integer(), True),
        (sa.Integer(), sa.BigInteger(), False),
        (sa.Numeric(10, 2), sa.Numeric(8, 2), True),
        (sa.Integer(), sa.Text(), False),
    ],
    ids=str,
)
def test_a_history_column_that_lags_behind_its_live_column_is_found(
    database: Database, engine: sa.Engine, base: type[Any], live: Any, history: Any, is_narrow: bool
) -> None:
    @track_table()
    class Thing(base):  # type: ignore[misc]
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(live, nullable=True)

    column = tracked(Thing.__table__).history.c.value
    column.type = history
    base.metadata.create_all(engine)
    column.type = live
    codes = [finding.code for finding in check(engine, Thing).findings]
    assert codes == (["narrow-column"] if is_narrow and database.name != "sqlite" else [])


@pytest.fixture
def kept(base: type[Any]) -> Any:
    @track_table(append_only=True)
    class Kept(base):  # type: ignore[misc]
        __tablename__ = "kept"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(20))

    return Kept


def test_an_append_only_history_is_mended_without_rewriting_it(engine: sa.Engine, kept: Any) -> None:
    with recording(engine, kept.metadata) as sessions:
        for name in ("a", "b"):
            with sessions.begin() as session:
                for id in (1, 2, 3):
                    session.merge(kept(id=id, name=name))
    assert_sound(check(engine, kept))
    live = kept.__table__
    with engine.begin() as connection:
        connection.execute(sa.update(live).where(live.c.id == 1).values(name="c"))
        connection.execute(sa.delete(live).where(live.c.id == 2))
        connection.execute(sa.insert(live).values(id=4, name="new"))
        with writable_history(connection, [tracked(live)]):
            history = tracked(live).history
            third = sa.update(history).where(history.c.id == 3)
            connection.execute(third.where(history.c.audit_version == 2).values(valid_to=history.c.valid_from))
            connection.execute(third.where(history.c.audit_version == 1).values(valid_to=OPEN_END))
    report = check(engine, kept, repair=True)
    assert {finding.code: finding.is_repaired for finding in report.findings} == {
        "open-not-last": True,
        "unrecorded-row": True,
        "unrecorded-change": True,
        "unrecorded-deletion": True,
    }
    assert_sound(check(engine, kept))


def test_the_triggers_that_an_append_only_history_lacks_are_found(engine: sa.Engine, kept: Any) -> None:
    kept.metadata.create_all(engine)
    with engine.begin() as connection:
        name = trigger_names("kept_history", engine.dialect.name)[0]
        on = " ON kept_history" if engine.dialect.name == "postgresql" else ""
        connection.execute(sa.DDL(f"DROP TRIGGER {name}{on}"))
    (finding,) = check(engine, kept, repair=True).findings
    assert (finding.code, finding.is_repaired) == ("missing-protection", False)
    assert name in finding.message
    assert "op.protect_history('kept')" in finding.remedy


ROLE = "sqlaudit_check_app"


@pytest.fixture
def role(engine: sa.Engine) -> Iterator[str]:
    """A role that may write the table of customers, and that nobody has given rights on its history."""
    is_postgresql = engine.dialect.name == "postgresql"
    name = ROLE if is_postgresql else f"'{ROLE}'@'%'"
    begin = f"CREATE ROLE {ROLE}" if is_postgresql else f"CREATE USER {name}"
    end = f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}" if is_postgresql else f"DROP USER {name}"
    with engine.begin() as connection:
        connection.exec_driver_sql(begin.replace("%", "%%"))
        connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE ON customers TO {name}".replace("%", "%%"))
    yield name
    with engine.begin() as connection:
        connection.exec_driver_sql(end.replace("%", "%%"))


@pytest.mark.requires("concurrent_writes")
@pytest.mark.new_tables
def test_rights_that_a_writer_lacks_on_the_history_are_found(engine: sa.Engine, role: str) -> None:
    (finding,) = check(engine, Base, repair=True).findings
    assert (finding.code, finding.table, finding.is_repaired) == ("missing-grant", "customers", False)
    assert "has no SELECT, INSERT, UPDATE, DELETE on its history 'customers_history'" in finding.message
    assert finding.remedy.startswith(f"GRANT SELECT, INSERT, UPDATE, DELETE ON customers_history TO {role}.")
    with engine.begin() as connection:
        granted = f"GRANT SELECT, INSERT, UPDATE (audit_to), DELETE ON customers_history TO {role}"
        connection.exec_driver_sql(granted.replace("%", "%%"))
    assert_sound(check(engine, Base))


@pytest.mark.requires("rules")
@pytest.mark.new_tables
def test_policies_that_a_history_lacks_are_found(engine: sa.Engine) -> None:
    steps = {
        "ALTER TABLE customers ENABLE ROW LEVEL SECURITY": ["it shows the versions of rows that are hidden"],
        "CREATE POLICY mine ON customers FOR UPDATE USING (id < 10)": ["it shows the versions"],
        "ALTER TABLE customers_history ENABLE ROW LEVEL SECURITY": ["none for SELECT, INSERT, UPDATE, DELETE"],
        "CREATE POLICY reading ON customers_history FOR SELECT USING (id < 10)": ["none for INSERT, UPDATE, DELETE"],
        "CREATE POLICY mine ON customers_history USING (id < 10)": [],
        "ALTER TABLE customers FORCE ROW LEVEL SECURITY": ["applies to its owner"],
        "ALTER TABLE customers_history FORCE ROW LEVEL SECURITY": [],
    }
    for statement, words in steps.items():
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
        findings = check(engine, Base).findings
        assert [str(finding.code) for finding in findings] == ["missing-policy"] * len(words)
        assert all(part in finding.message for part, finding in zip(words, findings, strict=True))


@pytest.mark.requires("rules")
@pytest.mark.new_tables
def test_a_role_that_does_not_see_all_rows_is_told_so(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for name in ("customers", "customers_history"):
            connection.exec_driver_sql(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
            connection.exec_driver_sql(f"CREATE POLICY mine ON {name} USING (id < 10)")
        connection.exec_driver_sql(f"CREATE ROLE {ROLE}")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {ROLE}")
        connection.exec_driver_sql(f"GRANT ALL ON customers, customers_history TO {ROLE}")
        connection.execute(sa.insert(customers).values(id=50, full_name="x", hits=0))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"SET ROLE {ROLE}")
            report = check(connection, Customer)
        assert report.findings == ()
        assert "Check as a role that the policies do not restrict" in report.unchecked[0]
        assert not report.is_sound
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


# --- beside others ----------------------------------------------------------------------------------------------


def write_at_random(sessions: sessionmaker[Session], seed: int, stop: threading.Event) -> int:
    choice, count = random.Random(seed), 0
    while count == 0 or not stop.is_set():
        with sessions() as session:
            try:
                for id in sorted(choice.sample(range(1, 20), 2)):
                    customer, dog = session.get(Customer, id), session.get(Dog, id)
                    if customer is None or dog is None:
                        session.add_all(
                            [Customer(id=id, name="a"), Dog(id=id, name="a", tricks=0)][customer is not None :]
                        )
                    elif choice.random() < 0.2:
                        session.delete(customer)
                        session.delete(dog)
                    else:
                        customer.name = str(choice.random())
                        dog.tricks += 1
                    session.flush()
                session.commit()
                count += 1
            except (sa.exc.DBAPIError, orm.exc.StaleDataError, sa.exc.SAWarning):  # another thread was faster
                session.rollback()
    return count


@pytest.mark.parametrize("repair", [False, True])
def test_a_check_beside_writers_finds_nothing(database: Database, engine: sa.Engine, repair: bool) -> None:
    own = database.create_engine(pool_size=10)
    stop = threading.Event()
    with recording(own) as sessions, ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write_at_random, sessions, seed, stop) for seed in range(3)]
        try:
            reports = [check(engine, Base, repair=repair) for _ in range(4)]
        finally:
            stop.set()
        assert all(writer.result(60) > 0 for writer in writers)
    own.dispose()
    for report in reports:
        assert_sound(report)
    assert_sound(check(engine, Base))


# --- how it is called -------------------------------------------------------------------------------------------


def test_a_session_checks_and_repairs_in_its_transaction(session: Session) -> None:
    session.add_all([Customer(id=id, name="a") for id in (1, 2)])
    assert_sound(check(session, Customer))
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
    session.connection().exec_driver_sql("UPDATE customers SET city = 'Rome'")
    assert check(session, Base).counts == {"unrecorded-change": 2}
    report = check(session, Customer, repair=True)
    assert (report.repaired, report.is_sound) == (2, True)
    assert len(report.changeset_ids) == 1
    session.rollback()
    assert told(session, Customer) == []


def test_a_repair_has_the_context_and_a_reason(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(customers).values(id=1, full_name="x", hits=0))
    backfill(engine, Customer)
    for reason, context in (("check(…, repair=True)", {}), ("migration", {"reason": "migration"})):
        with engine.begin() as connection:
            connection.execute(sa.update(customers).values(full_name=reason))
        with AuditContextManager(user_id="ops", **context):
            check(engine, Customer, repair=True)
        with Session(engine) as session:
            version = sqlaudit.versions_of(session, Customer, 1)[-1]
            assert (version.changed_by, version.reason, version.operation) == ("ops", reason, "update")


def test_all_faults_are_counted_and_mended_but_a_limited_number_is_listed(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(customers), [{"id": id, "full_name": "x", "hits": 0} for id in range(1, 1206)])
    report = check(engine, Base, limit=2)
    assert (len(report.findings), report.counts, report.is_sound) == (2, {"unrecorded-row": 1205}, False)
    report = check(engine, Base, limit=2, repair=True)
    assert [finding.is_repaired for finding in report.findings] == [True, True]
    assert (report.repaired, report.is_sound, len(report.changeset_ids)) == (1205, True, 2)
    assert_sound(check(engine, Base))
    assert report.to_dict("json")["counts"] == {"unrecorded-row": 1205}


@pytest.mark.requires("null_in_keys")
def test_a_row_with_null_in_its_key_is_left(engine: sa.Engine, base: type[Any]) -> None:
    @track_table()
    class Loose(base):  # type: ignore[misc]
        __tablename__ = "loose"
        a: Mapped[str] = mapped_column(sa.String(5), primary_key=True, nullable=True)

    base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(Loose.__table__), [{"a": None}, {"a": "x"}])
    report = check(engine, Loose, repair=True)
    assert {finding.key: finding.is_repaired for finding in report.findings} == {None: False, "x": True}
    assert report.repaired == 1


@pytest.mark.new_tables
def test_another_schema_is_checked_and_translated(database: Database, engine: sa.Engine, base: type[Any]) -> None:
    @track_table()
    class Far(base):  # type: ignore[misc]
        __tablename__ = "far"
        __table_args__ = {"schema": OTHER_SCHEMA}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(5))

    engine = engine.execution_options(schema_translate_map={OTHER_SCHEMA: database.other_schema})
    base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(Far.__table__).values(id=1, name="x"))
    report = check(engine, Far, repair=True)
    assert [(finding.code, finding.table, finding.is_repaired) for finding in report.findings] == [
        ("unrecorded-row", f"{OTHER_SCHEMA}.far", True)
    ]
    assert_sound(check(engine, Far))


def test_progress_is_told_in_tables(engine: sa.Engine) -> None:
    calls: list[tuple[int, int]] = []
    check(engine, Customer, Animal, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (3, 3)]


def test_it_runs_in_asynchronous_applications(async_engine: AsyncEngine) -> None:
    async def run() -> None:
        async with async_engine.begin() as connection:
            await connection.execute(sa.insert(customers).values(id=1, full_name="x", hits=0))
            assert (await check(connection, Customer)).counts == {"unrecorded-row": 1}
        assert (await check(async_engine, Customer, repair=True)).repaired == 1

    asyncio.run(run())


@pytest.mark.requires("counts_of_steps")
def test_a_larger_cache_is_the_check_s_alone(engine: sa.Engine) -> None:
    statements: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for usual, changes in (("-2000", ["-16000", "-2000"]), ("-3000", [])):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"PRAGMA cache_size = {usual}")
        statements.clear()
        check(engine, Customer)
        assert [text for text in statements if "cache_size =" in text] == [f"PRAGMA cache_size = {n}" for n in changes]


def test_arguments_that_make_no_sense_are_refused(engine: sa.Engine) -> None:
    for where, model, given, error, words in [
        (engine, Customer, {"limit": -5}, sqlaudit.QueryError, "limit is -5"),
        (engine, Customer, {"progress": "yes"}, sqlaudit.SQLAuditError, "progress is 'yes'"),
        (engine, int, {}, sqlaudit.TrackingError, "int is not a tracked model"),
        (engine, _history_of_customers, {}, sqlaudit.TrackingError, "is not a tracked table"),
        ("sqlite://", Customer, {}, sqlaudit.QueryError, "is not a Session"),
    ]:
        with pytest.raises(error, match=words):
            check(where, model, **given)  # type: ignore[call-overload]


def test_the_page_lists_all_codes() -> None:
    page = (ROOT / "docs/maintenance/check.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE) == [str(code) for code in FindingCode]
