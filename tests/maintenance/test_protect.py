"""The database itself refuses to rewrite an append-only history, except through maintenance's door."""

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from invariants import check_history
from registering import recording
from sqlaudit import AuditColumns, CaptureError, TrackingError, get_resource_changes, track_table, tracking_disabled
from sqlaudit.maintenance import check, maintenance_tables, prune
from sqlaudit.maintenance.door import writable_history
from sqlaudit.period import OPEN_END
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.protection import protecting, protection_of
from sqlaudit.tracking.tables import tracked_table

pytestmark = pytest.mark.new_tables


class Base(orm.DeclarativeBase):
    pass


@track_table(append_only=True)
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))


maintenance_tables(Base.metadata)
CUSTOMERS = tracked_table(Customer.__table__)
HISTORY = CUSTOMERS.history


def written(sessions: sessionmaker[Session]) -> None:
    """Write a history of two versions, the second of which is open."""
    with sessions.begin() as session:
        session.add(Customer(id=1, name="Ada"))
    with sessions.begin() as session:
        session.get(Customer, 1).name = "Ada L."


REWRITES: dict[str, Callable[[sa.Table], Any]] = {
    "a value of an open version": lambda history: sa.text(
        "UPDATE customers_history SET name = 'Eve' WHERE audit_version = 2"
    ),
    "its case alone": lambda history: sa.text("UPDATE customers_history SET name = 'ADA L.' WHERE audit_version = 2"),
    "a value with the end of the version": lambda history: (
        sa.update(history).where(history.c.audit_version == 2).values(name="Eve", valid_to=history.c.valid_from)
    ),
    "a closed version": lambda history: (
        sa.update(history).where(history.c.audit_version == 1).values(audit_reason="none")
    ),
    "the end of a closed version": lambda history: (
        sa.update(history).where(history.c.audit_version == 1).values(valid_to=history.c.valid_from)
    ),
    "a closed version that opens": lambda history: (
        sa.update(history).where(history.c.audit_version == 1).values(valid_to=OPEN_END)
    ),
    "a deletion": lambda history: sa.text("DELETE FROM customers_history WHERE audit_version = 1"),
    "a deletion of all": lambda history: sa.text("DELETE FROM customers_history"),
}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_the_database_refuses_to_rewrite_an_append_only_history(engine, sessions, rewrite):
    written(sessions)
    with engine.connect() as connection:
        before = connection.execute(sa.select(HISTORY)).all()
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="customers_history is append-only"):
        connection.execute(rewrite(HISTORY), execution_options={"sqlaudit_write": None})
    with engine.connect() as connection:
        assert connection.execute(sa.select(HISTORY)).all() == before


def rewrite_and_delete(connection: sa.Connection) -> None:
    connection.execute(sa.text("DELETE FROM customers_history WHERE audit_version = 1"))
    connection.execute(sa.text("UPDATE customers_history SET name = 'Eve' WHERE audit_version = 2"))


def rewrite_and_fail(connection: sa.Connection, statement: str) -> None:
    rewrite_and_delete(connection)
    if not statement:
        raise ZeroDivisionError
    connection.execute(sa.text(statement))


def names(connection: sa.Connection) -> list[Any]:
    return list(connection.scalars(sa.select(HISTORY.c.name).order_by(HISTORY.c.audit_version)))


def is_refused(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        try:
            connection.execute(sa.text("UPDATE customers_history SET name = 'Mallory'"))
        except sa.exc.DBAPIError as error:
            return "append-only" in str(error.orig)
    return False


def test_the_door_is_open_until_the_block_ends(engine, sessions):
    written(sessions)
    with engine.begin() as connection:
        with writable_history(connection, [CUSTOMERS]), writable_history(connection, [HISTORY]):
            rewrite_and_delete(connection)
        assert names(connection) == ["Eve"]
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), connection.begin_nested():
            connection.execute(sa.text("UPDATE customers_history SET name = 'again'"))
    assert is_refused(engine)
    with engine.connect() as connection:
        assert names(connection) == ["Eve"]


def test_the_door_closes_if_the_block_or_its_statement_fails(engine, sessions):
    written(sessions)
    with engine.connect() as connection:
        with pytest.raises(ZeroDivisionError), writable_history(connection, [CUSTOMERS]):
            rewrite_and_fail(connection, "")
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), connection.begin_nested():
            connection.execute(sa.text("UPDATE customers_history SET name = 'again'"))
        connection.rollback()
        with pytest.raises(sa.exc.DBAPIError), writable_history(connection, [CUSTOMERS]):
            rewrite_and_fail(connection, "SELECT nothing")
        connection.rollback()
        assert names(connection) == ["Ada", "Ada L."]
    assert is_refused(engine)


def test_a_rollback_takes_back_what_was_done_through_the_door(engine, sessions):
    written(sessions)
    with engine.connect() as connection:
        with writable_history(connection, [CUSTOMERS]):
            rewrite_and_delete(connection)
            connection.rollback()
        assert names(connection) == ["Ada", "Ada L."]
    assert is_refused(engine)


def test_the_door_does_nothing_where_nothing_is_protected(engine, sessions):
    with engine.begin() as connection, writable_history(connection, []):
        connection.execute(sa.text("SELECT 1"))


# --- recording --------------------------------------------------------------------------------------------------


class Animal(Base):
    __tablename__ = "animals"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    region: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str | None] = mapped_column(sa.String(20))
    secret: Mapped[str | None] = mapped_column(sa.String(20))
    seen: Mapped[int] = mapped_column(default=0)
    keepers: Mapped[list["Keeper"]] = orm.relationship(secondary=lambda: KEEPERS)

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


track_table(append_only=True, audit_columns=AuditColumns(valid_to="true until"), exclude=["secret"], quiet=["seen"])(
    Animal
)


class Dog(Animal):
    __tablename__ = "dogs"

    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
    tricks: Mapped[int] = mapped_column(default=0)

    __table_args__ = (sa.ForeignKeyConstraint(["id", "region"], ["animals.id", "animals.region"]),)
    __mapper_args__ = {"polymorphic_identity": "dog"}


@track_table()
class Keeper(Base):
    __tablename__ = "keepers"

    id: Mapped[int] = mapped_column(primary_key=True)


KEEPERS = sa.Table(
    "animal_keepers",
    Base.metadata,
    sa.Column("animal_id", primary_key=True),
    sa.Column("region", primary_key=True),
    sa.Column("keeper_id", sa.ForeignKey("keepers.id"), primary_key=True),
    sa.ForeignKeyConstraint(["animal_id", "region"], ["animals.id", "animals.region"]),
)


def insert(session: Session, model: type[Any] = Customer) -> None:
    session.add(Customer(id=2, name="new"))
    session.flush()


def change(session: Session, name: str = "changed") -> None:
    session.get(Customer, 2).name = name
    session.flush()


def remove(session: Session) -> None:
    session.delete(session.get(Customer, 2))
    session.flush()


def change_many(session: Session) -> None:
    session.execute(sa.update(Customer).values(name="many"))


def insert_many(session: Session) -> None:
    session.execute(sa.insert(Customer), [{"id": 2, "name": "new"}])


def remove_many(session: Session) -> None:
    session.execute(sa.delete(Customer))


INSERTED, CHANGED, REMOVED = ("insert", "new", True), ("update", "changed", True), ("delete", "changed", True)
TRANSACTIONS: dict[str, tuple[bool, list[Callable[[Session], None]], list[tuple[str, str, bool]]]] = {
    # whether the row exists before; what the transaction does; the versions it leaves, and whether each is empty
    "insert and update": (False, [insert, change], [INSERTED, ("update", "changed", False)]),
    "insert and delete": (False, [insert, remove], [INSERTED, ("delete", "new", True)]),
    "update and update": (True, [change, change_many], [CHANGED, ("update", "many", False)]),
    "update and delete": (True, [change, remove], [CHANGED, REMOVED]),
    "update and update back": (
        True,
        [change, lambda session: change(session, "new")],
        [CHANGED, ("update", "new", False)],
    ),
    "delete and insert": (True, [remove, insert], [("delete", "new", True), ("insert", "new", False)]),
    "in bulk": (
        False,
        [insert_many, change_many, remove_many, insert_many],
        [INSERTED, ("update", "many", True), ("delete", "many", True), ("insert", "new", False)],
    ),
}


@pytest.mark.parametrize(("exists", "steps", "expected"), TRANSACTIONS.values(), ids=TRANSACTIONS)
def test_what_a_transaction_does_twice_stays_with_an_empty_period(session, clock, exists, steps, expected):
    if exists:
        insert(session)
        session.commit()
    for step in steps:
        step(session)
    session.commit()
    versions = session.execute(sa.select(HISTORY).order_by(HISTORY.c.audit_version)).all()
    left = versions[1:] if exists else versions
    assert [(v.audit_operation, v.name, v.valid_from == v.valid_to) for v in left] == expected
    assert len({v.audit_changeset_id for v in left}) == 1
    check_history(session, Customer)
    assert check(session, Customer).is_sound
    live = session.scalars(sa.select(Customer.name)).all()
    assert session.scalars(sa.select(Customer.name)).all() == live
    assert [past.name for past in session.scalars(Customer.as_of(clock.now))] == live
    changes = get_resource_changes(Customer, session, filter_fields=["name"])
    assert (changes[-1].new_value if changes else None) == (live[0] if live else None)


@pytest.mark.parametrize("how", ["unit of work", "statement"])
def test_the_first_change_of_an_older_row_writes_its_baseline_as_it_was(session, how):
    with tracking_disabled(session):
        session.add(Customer(id=1, name="before"))
        session.commit()
    if how == "unit of work":
        session.get(Customer, 1).name = "after"
    else:
        session.execute(sa.update(Customer).values(name="after"))
    session.commit()
    versions = session.execute(sa.select(HISTORY).order_by(HISTORY.c.audit_version)).all()
    assert [(v.audit_operation, v.name) for v in versions] == [("baseline", "before"), ("update", "after")]
    (only,) = get_resource_changes(Customer, session)
    assert (only.old_value, only.new_value) == ("before", "after")


def test_a_statement_that_changes_nothing_of_an_older_row_leaves_an_open_baseline(session):
    with tracking_disabled(session):
        session.add(Customer(id=1, name="same"))
        session.commit()
    session.execute(sa.update(Customer).values(name="same"))
    session.commit()
    (only,) = session.execute(sa.select(HISTORY)).all()
    assert (only.audit_operation, only.valid_to) == ("baseline", OPEN_END)
    assert get_resource_changes(Customer, session) == []


def test_maintenance_opens_the_door_itself(engine, sessions):
    written(sessions)
    with sessions.begin() as session:
        session.get(Customer, 1).name = "Countess of Lovelace"
    assert prune(engine, Customer, keep_last=1).rows == 2
    with sessions.begin() as session, tracking_disabled(session):
        session.get(Customer, 1).name = "unseen"
        session.flush()
    assert check(engine, Customer, repair=True).repaired == 1
    with engine.connect() as connection:
        assert names(connection) == ["Countess of Lovelace", "unseen"]
    assert is_refused(engine)


def test_tables_of_subclasses_and_links_are_protected_and_recorded(session):
    dog = Dog(id=1, region="eu", name="Rex", keepers=[Keeper(id=1)])
    session.add(dog)
    session.flush()
    dog.name, dog.tricks = "Rexy", 2
    session.flush()
    dog.keepers.clear()
    session.flush()
    session.delete(dog)
    session.commit()
    expected = ["insert", "update", "delete"]
    for live in (Animal.__table__, Dog.__table__):
        history = tracked_table(live).history
        assert list(session.scalars(sa.select(history.c.audit_operation).order_by(history.c.audit_version))) == expected
    links = tracked_table(KEEPERS).history
    assert list(session.scalars(sa.select(links.c.audit_operation).order_by(links.c.audit_version))) == [
        "insert",
        "delete",
    ]
    assert not tracked_table(Keeper.__table__).append_only
    for live in (Animal.__table__, Dog.__table__, KEEPERS):
        history = tracked_table(live).history
        for statement in (sa.delete(history), sa.update(history).values(audit_reason="none")):
            with pytest.raises(sa.exc.DBAPIError, match="append-only"), session.begin_nested():
                session.connection().execute(statement, execution_options={"sqlaudit_write": None})


def test_a_subclass_is_append_only_with_its_base_class_or_not_at_all(base):
    @track_table()
    class Vehicle(base):
        __tablename__ = "vehicles"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Car(Vehicle):
        __tablename__ = "cars"
        id: Mapped[int] = mapped_column(sa.ForeignKey("vehicles.id"), primary_key=True)

    with pytest.raises(TrackingError, match="Pass append_only to the base class"):
        track_table(append_only=True)(Car)


def test_a_model_that_is_not_append_only_is_told_that_its_history_is(session, engine):
    with engine.begin() as connection:
        keepers = tracked_table(Keeper.__table__)
        for statement in protecting(protection_of(keepers), engine.dialect.name):
            connection.execute(statement)
    session.add(Keeper(id=1))
    session.flush()
    session.delete(session.get(Keeper, 1))
    with pytest.raises(CaptureError, match=r"track_table\(append_only=True\)"):
        session.flush()


@pytest.mark.requires("arrays")  # PostgreSQL
@pytest.mark.parametrize("statement", ["TRUNCATE customers_history", "TRUNCATE customers_history, customers CASCADE"])
def test_a_truncate_is_refused(engine, sessions, statement):
    written(sessions)
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
        connection.exec_driver_sql(statement)
    with engine.begin() as connection, writable_history(connection, [CUSTOMERS]):
        connection.exec_driver_sql(statement)


@pytest.mark.requires("arrays")
def test_a_search_path_of_ones_own_opens_no_door(engine, sessions):
    written(sessions)
    traps = """
        CREATE SCHEMA trap;
        CREATE FUNCTION trap.yes(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT true';
        CREATE OPERATOR trap.= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = trap.yes);
        SET search_path = trap, public, pg_catalog
    """
    with engine.connect() as connection:
        for trap in traps.split(";"):
            connection.exec_driver_sql(trap)
        assert connection.scalar(sa.text("SELECT now() = now() - INTERVAL '1 day'"))
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.execute(sa.text("UPDATE public.customers_history SET valid_to = now() WHERE audit_version < 2"))


@pytest.mark.requires("replacing_inserts")
@pytest.mark.parametrize("column", ["audit_version", "rowid"])
def test_an_insert_cannot_replace_a_version(engine, sessions, column):
    written(sessions)
    with engine.connect() as connection:
        before = names(connection)
    values = {"id": 1, "audit_version": 7, "valid_from": OPEN_END, "valid_to": OPEN_END, "audit_operation": "update"}
    values |= {"audit_changeset_id": uuid.uuid4(), column: 1}
    columns = (HISTORY.c.get(name, sa.column("rowid")) for name in values)
    table = sa.table(HISTORY.name, *(sa.column(column.name, column.type) for column in columns))
    replacing = sa.insert(table).prefix_with("OR REPLACE")
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError, match="append-only"):
        connection.execute(replacing.values(values))
    with engine.connect() as connection:
        assert names(connection) == before


def test_dropping_the_tables_leaves_nothing(engine):
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    Base.metadata.drop_all(engine)
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            left = sa.text("SELECT proname FROM pg_proc WHERE proname LIKE '%\\_protect'")
            assert list(connection.scalars(left)) == []


# --- tables and databases of all kinds --------------------------------------------------------------------------


class Elsewhere(orm.DeclarativeBase):
    pass


@track_table(append_only=True, history_table_name='the "past" of parcels')
class Parcel(Elsewhere):
    """A table of another schema, whose columns have many types and odd names."""

    __tablename__ = "parcels"
    __table_args__ = {"schema": "elsewhere"}

    id: Mapped[uuid.UUID] = mapped_column("the 'id'", primary_key=True, default=uuid.uuid4)
    note: Mapped[str | None] = mapped_column("select", sa.Text)
    data: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    weight: Mapped[float] = mapped_column("weight %", default=0.1)
    price: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2), default=Decimal("9.90"))
    photo: Mapped[bytes | None]
    sent: Mapped[datetime | None]
    is_large: Mapped[bool] = mapped_column(default=False)


CHANGES: dict[str, Any] = {
    "note": "A",
    "data": {"b": [1, None], "a": "ä"},
    "weight": 1 / 3,
    "price": Decimal("9.95"),
    "photo": b"\x00\xff",
    "sent": datetime(2024, 1, 2, 3, 4, 5),  # noqa: DTZ001  # as a column without time zone has it
    "is_large": True,
}


@pytest.mark.no_tables
def test_versions_with_values_of_all_types_end_and_are_never_rewritten(database, engine):
    engine = engine.execution_options(schema_translate_map={"elsewhere": database.other_schema})
    Elsewhere.metadata.create_all(engine)
    history = tracked_table(Parcel.__table__).history
    with recording(engine) as sessions, sessions() as session:
        parcel = Parcel()
        session.add(parcel)
        session.commit()
        for name, value in CHANGES.items():
            setattr(parcel, name, value)
            session.commit()
        assert session.scalar(sa.select(sa.func.count()).select_from(history)) == len(CHANGES) + 1
    for column in history.c:
        rewrite = sa.update(history).where(history.c.audit_version == 1).values({column: column_value(column)})
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.execute(rewrite, execution_options={"sqlaudit_write": None})
    with engine.begin() as connection:
        with writable_history(connection, [tracked_table(Parcel.__table__)]):
            connection.execute(sa.delete(history).where(history.c.audit_version == 1))
        assert connection.scalar(sa.select(sa.func.count()).select_from(history)) == len(CHANGES)
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
        connection.execute(sa.delete(history))


def column_value(column: sa.Column[Any]) -> Any:
    """Return a value that the first version of a parcel does not have."""
    if column.name in ("valid_from", "valid_to"):
        return OPEN_END - timedelta(days=1)
    if isinstance(column.type, sa.Uuid):
        return uuid.uuid4()
    attribute = next((name for name in CHANGES if Parcel.__table__.c[column_of(name)].name == column.name), None)
    return CHANGES[attribute] if attribute else {"audit_version": 99, "audit_operation": "delete"}.get(column.name, "x")


def column_of(attribute: str) -> str:
    return sa.inspect(Parcel).attrs[attribute].columns[0].key


@pytest.mark.requires("replacing_inserts")
def test_the_door_of_sqlite_needs_no_transaction_that_has_begun(database, sessions):
    written(sessions)
    engine = sa.create_engine(database.url)  # whose driver begins a transaction with the first statement that writes
    with engine.connect() as connection:
        with writable_history(connection, [CUSTOMERS]):
            rewrite_and_delete(connection)
        connection.rollback()
        assert names(connection) == ["Ada", "Ada L."]
    assert is_refused(engine)
    engine.dispose()


@pytest.mark.requires("arrays")
def test_partitions_of_a_history_are_protected_and_only_the_rights_on_the_whole_count(engine, base):
    @track_table(append_only=True)
    class Meter(base):
        __tablename__ = "meters"
        id: Mapped[int] = mapped_column(primary_key=True)
        reading: Mapped[int]

    meters = tracked_table(Meter.__table__)
    Meter.__table__.create(engine)
    meters.history.dialect_options["postgresql"]["partition_by"] = "HASH (id)"
    meters.history.create(engine)
    role = f"sqlaudit_role_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE meters_history_0 PARTITION OF meters_history FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
            f"CREATE ROLE {role}",
            f"GRANT ALL ON meters_history TO {role}",
            f"GRANT USAGE ON SCHEMA public TO {role}",
        ):
            connection.exec_driver_sql(statement)
    with recording(engine) as sessions:
        with sessions.begin() as session:
            session.add(Meter(id=1, reading=1))
        with sessions.begin() as session:
            session.get(Meter, 1).reading = 2
    for name in ("meters_history", "meters_history_0"):
        with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
            connection.execute(sa.delete(sa.table(name)))
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SET LOCAL ROLE {role}")
        with writable_history(connection, [meters]):
            assert connection.execute(sa.delete(meters.history).execution_options(**INTERNAL)).rowcount == 2
        connection.rollback()
        connection.exec_driver_sql(f"DROP OWNED BY {role}")
        connection.exec_driver_sql(f"DROP ROLE {role}")
        connection.commit()
