"""``track_table(partitions=8)``: PostgreSQL divides a history by the hash of the key, and all else is as elsewhere."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit_alembic
from blocks import ROOT, blocks
from databases import OTHER_SCHEMA, Database
from invariants import check_history
from registering import recording
from sqlaudit import (
    HistoryTableError,
    PrunedError,
    SQLAuditConfig,
    TrackingError,
    as_of,
    get_resource_changes,
    history_of,
    set_config,
    track_table,
    undo,
    versions_of,
)
from sqlaudit.cli.commands import program
from sqlaudit.maintenance import check, create_past_views, erase, history_grants, maintenance_tables, prune
from sqlaudit.maintenance.door import writable_history
from sqlaudit.sql.options import INTERNAL

Sessions = sessionmaker[Session]
ROWS = 40


class Base(DeclarativeBase):
    pass


tags = sa.Table(
    "customers_tags",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)


@track_table(partitions=4, as_of_index=True)
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))
    tags: Mapped[list[Tag]] = relationship(secondary=tags)


@track_table(partitions=3)
class Animal(Base):
    __tablename__ = "Animals"
    id: Mapped[int] = mapped_column("Id", primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Dog(Animal):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(sa.ForeignKey("Animals.Id"), primary_key=True)
    tricks: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "dog"}


@track_table(partitions=2)
class Seat(Base):
    __tablename__ = "seats"
    row: Mapped[int] = mapped_column(primary_key=True)
    letter: Mapped[str] = mapped_column(sa.String(1), primary_key=True)
    taken: Mapped[bool] = mapped_column(default=False)


maintenance_tables(Base.metadata)
SOURCES = (Customer, Tag, tags, Animal, Seat)


def happen(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Customer(id=id, name=f"customer {id}", tags=[]) for id in range(1, ROWS + 1)])
        session.add_all([Dog(id=1, tricks=1), Dog(id=2, tricks=2), Animal(id=3)])
        session.add_all([Seat(row=row, letter=letter) for row in range(3) for letter in "ab"])
    with sessions.begin() as session:
        session.execute(sa.update(Customer).values(name=Customer.name + "!"))
        session.execute(sa.update(Seat).values(taken=True))


# --- the tables -------------------------------------------------------------------------------------------------


def parts_of(history: str, count: int) -> set[str]:
    return {f"{history}_p{number}" for number in range(count)}


def tables_in(engine: sa.Engine, schema: str | None = None) -> set[str]:
    return set(sa.inspect(engine).get_table_names(schema))


@pytest.mark.no_tables
def test_partitions_are_created_and_dropped_with_their_history_and_only_where_there_are_any(
    engine: sa.Engine, database: Database
) -> None:
    Base.metadata.create_all(engine)
    Base.metadata.create_all(engine)
    divided = {
        *parts_of("customers_history", 4),
        *parts_of("Animals_history", 3),
        *parts_of("dogs_history", 3),
        *parts_of("seats_history", 2),
    }
    declared = {table.name for table in Base.metadata.tables.values()}
    assert tables_in(engine) == declared | (divided if "partitions" in database.capabilities else set())
    Base.metadata.drop_all(engine)
    assert tables_in(engine) == set()


@pytest.mark.requires("partitions")
def test_partitions_of_copies_and_of_long_names_have_names_of_their_own(engine: sa.Engine, base: Any) -> None:
    long = "very_" * 11 + "long"

    @track_table(partitions=2)
    class Reading(base):
        __tablename__ = long
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    copies = sa.MetaData()
    for table in base.metadata.tables.values():
        table.to_metadata(copies, schema=OTHER_SCHEMA)
    copies.create_all(engine)
    names = tables_in(engine)
    assert names == tables_in(engine, OTHER_SCHEMA)
    assert (len(names), max(len(name.encode()) for name in names)) == (4, 63)
    with recording(engine) as sessions, sessions.begin() as session:
        session.add(Reading())


# --- what happens in them ---------------------------------------------------------------------------------------


def test_histories_in_partitions_are_as_others(happened: None, engine: sa.Engine, sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.get_one(Customer, 1).tags = [Tag(id=1)]
        session.get_one(Customer, 2).name = "Bo"
        session.delete(session.get_one(Customer, 3))
        session.get_one(Dog, 1).tricks = 7
        session.delete(session.get_one(Dog, 2))
        session.execute(sa.delete(Seat).where(Seat.row == 0))
    with sessions.begin() as session:
        changed = session.scalars(sa.select(Customer).where(Customer.id > 30)).all()
        for customer in changed:
            customer.name = "many"
            session.flush()
        session.get_one(Customer, 4).id = 104
    with sessions() as session:
        [last, *_] = versions_of(session, Customer, 104, newest_first=True)
        undo(session, last.audit_changeset_id)
        session.commit()
        assert session.get(Customer, 104) is None
        for source in SOURCES:
            check_history(session, source)
        then = versions_of(session, Customer, 2)[1].valid_from
        assert session.scalars(as_of(Customer, then).where(Customer.id == 2)).one().name == "customer 2!"
        assert len(session.scalars(as_of(Customer, then)).all()) == ROWS
        assert len(get_resource_changes(Customer, session, filter_resource_ids=[2])) == 4
    assert check(engine, *SOURCES).is_sound


@pytest.mark.parametrize("count", [2, 3])
def test_maintenance_goes_through_partitions(happened: None, engine: sa.Engine, sessions: Sessions, count: int) -> None:
    planned = prune(engine, Customer, keep_last=1, dry_run=True)
    assert (planned.rows, planned.bytes is None or planned.bytes > 0) == (ROWS, True)
    assert prune(engine, Customer, keep_last=1).rows == ROWS
    with sessions.begin() as session:
        assert erase(session, Customer, count, fields=["name"], values={"name": "-"}, reason="asked").versions == 1
    assert check(engine, Customer).is_sound


# --- what is missing, refused or protected ----------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [0, 1, -8, True, 2.0, "8"])
def test_a_number_of_partitions_that_makes_no_sense_is_refused(base: Any, partitions: Any) -> None:
    class Reading(base):
        __tablename__ = "readings"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(TrackingError, match="Give an int from 2"):
        track_table(partitions=partitions)(Reading)


def test_a_subclass_may_divide_its_own_history_but_not_that_of_its_base(base: Any) -> None:
    @track_table()
    class Vehicle(base):
        __tablename__ = "vehicles"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}

    @track_table(partitions=8)
    class Car(Vehicle):
        __tablename__ = "cars"
        id: Mapped[int] = mapped_column(sa.ForeignKey("vehicles.id"), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "car"}

    class Bike(Vehicle):
        __mapper_args__ = {"polymorphic_identity": "bike"}

    divided = [table.name for table in base.metadata.tables.values() if table.kwargs.get("postgresql_partition_by")]
    assert divided == ["cars_history"]
    with pytest.raises(TrackingError, match="to the base class"):
        track_table(partitions=8)(Bike)


@pytest.mark.requires("partitions")
def test_a_partition_that_is_missing_is_found(engine: sa.Engine, session: Session) -> None:
    session.connection().exec_driver_sql("DROP TABLE customers_history_p1")
    [finding] = check(session, Customer).findings
    assert (finding.code, finding.table) == ("missing-partition", "customers")
    assert "REMAINDER" in finding.remedy
    session.add_all([Customer(id=id, name="new") for id in range(100, 140)])
    with pytest.raises(HistoryTableError, match="no partition"):
        session.flush()


@pytest.mark.requires("partitions")
def test_a_history_that_is_not_divided_is_found(engine: sa.Engine, base: Any) -> None:
    @track_table(partitions=2)
    class Reading(base):
        __tablename__ = "readings"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in (
            "ALTER TABLE readings_history RENAME TO other",
            "CREATE TABLE readings_history (LIKE other)",
            "DROP TABLE other",
            "ALTER TABLE readings_history ADD PRIMARY KEY (id, audit_version)",
        ):
            connection.exec_driver_sql(statement)
        for index in history_of(Reading).__table__.indexes:
            index.create(connection)
    [finding] = check(engine, Reading).findings
    assert (finding.code, "is to have 2 partitions" in finding.message) == ("missing-partition", True)


@pytest.mark.requires("partitions")
def test_partitions_of_an_append_only_history_refuse_to_be_rewritten(engine: sa.Engine, base: Any) -> None:
    @track_table(partitions=2, append_only=True)
    class Meter(base):
        __tablename__ = "Meters"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with recording(engine) as sessions, sessions.begin() as session:
        session.add_all([Meter(), Meter()])
    history = history_of(Meter).__table__
    for name in (history.name, "Meters_history_p0", "Meters_history_p1"):
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.execute(sa.DDL(f'TRUNCATE "{name}"'))
    with engine.connect() as connection, writable_history(connection, [history]):
        assert connection.execute(sa.delete(history).execution_options(**INTERNAL)).rowcount == 2
        connection.execute(sa.DDL('TRUNCATE "Meters_history_p0"'))
        connection.rollback()
    base.metadata.drop_all(engine)
    assert tables_in(engine) == set()


@pytest.mark.requires("partitions")
def test_a_role_needs_rights_on_the_history_alone_whose_policies_hold(happened: None, engine: sa.Engine) -> None:
    role = f"sqlaudit_role_{uuid.uuid4().hex}"
    statements = (
        f"GRANT USAGE ON SCHEMA public TO {role}",
        f"GRANT SELECT, UPDATE ON customers TO {role}",
        "ALTER TABLE customers ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE customers_history ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY half ON customers TO {role} USING (id % 2 = 0)",
        f"CREATE POLICY half ON customers_history TO {role} USING (id % 2 = 0)",
        f"SET LOCAL ROLE {role}",
    )
    with engine.connect() as connection, recording(connection) as sessions, sessions() as session:
        connection.execute(sa.DDL(f"CREATE ROLE {role}"))
        for grant in history_grants([Customer], "postgresql", app=role):
            connection.execute(grant)
        for statement in statements:
            connection.execute(sa.DDL(statement.replace("%", "%%")))
        assert len(session.scalars(sa.select(history_of(Customer))).all()) == ROWS
        session.execute(sa.update(Customer).values(name="x"))
        assert len(session.scalars(sa.select(history_of(Customer))).all()) == ROWS + ROWS // 2
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            connection.exec_driver_sql("TABLE customers_history_p0")


@pytest.mark.requires("partitions")
def test_views_of_the_past_read_partitions(happened: None, engine: sa.Engine) -> None:
    create_past_views(engine, Customer)
    with engine.connect() as connection:
        names = connection.exec_driver_sql("SELECT name FROM past.customers_as_of(now()) WHERE id = 1").scalars().all()
    assert names == ["customer 1!"]


@pytest.mark.no_tables
@pytest.mark.requires("partitions")
def test_the_command_line_tells_of_the_history_as_a_whole(engine: sa.Engine, database: Database) -> None:
    Base.metadata.create_all(engine)
    with recording(engine) as sessions:
        happen(sessions)
    url = database.url.render_as_string(hide_password=False)
    result = CliRunner().invoke(program, ["status", "--json", "--url", url], env={"SQLAUDIT_MODELS": ""})
    assert result.exit_code == 0, result.output
    found = {each["table"]: each for each in json.loads(result.stdout)}
    assert not [name for name in found if "_p0" in name]
    assert found["customers"]["versions"] == 2 * ROWS
    assert found["customers"]["bytes"] > 100_000  # of all partitions


# --- the recipes of the page ------------------------------------------------------------------------------------

CODE = [(language, text) for language, text, _ in blocks(ROOT / "docs/maintenance/partitions.md")]
_, BY_MONTH, NEXT_MONTH, DETACH = [text for language, text in CODE if language == "sql"]
[DIVIDE] = [text for language, text in CODE if "def upgrade" in text]


@pytest.fixture
def readings(engine: sa.Engine, base: Any) -> Any:
    """The model of the page, which is not divided."""

    @track_table()
    class Reading(base):
        __tablename__ = "readings"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        value: Mapped[int]

    maintenance_tables(base.metadata)
    base.metadata.create_all(engine)
    return Reading


def write(sessions: Sessions, when: datetime, *values: Any) -> None:
    set_config(SQLAuditConfig(clock=lambda: when))
    with sessions.begin() as session:
        for value in values:
            session.merge(value)


def differences(connection: sa.Connection, metadata: sa.MetaData) -> list[Any]:
    sqlaudit_alembic.register()
    options = {"autogenerate_plugins": ["alembic.autogenerate.*", "sqlaudit"]}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def assert_in_order(engine: sa.Engine, model: Any) -> None:
    report = check(engine, model)
    assert report.is_sound, report.findings
    with engine.connect() as connection:
        assert differences(connection, model.metadata) == []


@pytest.mark.requires("partitions")
def test_a_history_that_exists_is_divided_as_the_page_tells(engine: sa.Engine, readings: Any) -> None:
    with recording(engine) as sessions:
        write(sessions, day(5, 1), *(readings(id=id, value=0) for id in range(20)))
        write(sessions, day(5, 2), readings(id=1, value=1))
        with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
            namespace = {"op": op, "sa": sa}
            exec(DIVIDE, namespace)
            namespace["upgrade"]()
        write(sessions, day(5, 3), readings(id=1, value=2), readings(id=2, value=2))
        with sessions() as session:
            check_history(session, readings)
            assert [version.value for version in versions_of(session, readings, 1)] == [0, 1, 2]
    assert "readings_history_p7" in tables_in(engine)
    assert_in_order(engine, readings)


@pytest.mark.requires("partitions")
def test_a_history_is_divided_by_month_and_a_month_detached_as_the_page_tells(engine: sa.Engine, readings: Any) -> None:
    def run(script: str) -> None:
        with engine.connect() as connection:
            driver_connection: Any = connection.connection.driver_connection
            driver_connection.execute(script)
            driver_connection.commit()

    with recording(engine) as sessions:
        write(sessions, day(5, 1), *(readings(id=id, value=0) for id in range(4)))
        write(sessions, day(5, 2), readings(id=1, value=1))
        run(BY_MONTH)
        assert_in_order(engine, readings)
        write(sessions, day(6, 1), readings(id=1, value=2), readings(id=2, value=2))
        with sessions.begin() as session:
            session.delete(session.get_one(readings, 3))
        run(NEXT_MONTH)
        write(sessions, day(7, 2), readings(id=1, value=3), readings(id=4, value=3))
        with sessions.begin() as session:
            session.execute(sa.update(readings).values(value=readings.value + 10))
        assert_in_order(engine, readings)
        with sessions() as session:
            check_history(session, readings)
        run(DETACH)
        assert_in_order(engine, readings)
        with sessions() as session:
            past = session.scalars(as_of(readings, day(6, 1)).order_by(readings.id)).all()
            assert [(each.id, each.value) for each in past] == [(0, 0), (1, 2), (2, 2)]
            assert str(versions_of(session, readings, 1)[0].operation) == "baseline"
            with pytest.raises(PrunedError):
                session.scalars(as_of(readings, day(5, 2))).all()


def day(month: int, number: int) -> datetime:
    return datetime(2026, month, number, tzinfo=UTC)
