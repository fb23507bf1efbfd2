"""A timestamp that a write stores is not earlier than the versions of its transaction: as of it, they are there."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from clock import Clock, at
from sqlaudit import (
    SQLAuditConfig,
    as_of,
    as_of_column,
    register_hooks,
    set_config,
    track_table,
    unregister_hooks,
    versions_of,
)

ticking = Clock()
"""The clock of the rows and of sqlaudit: each question takes a second."""
STAMP = sa.DateTime(timezone=True)


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))
    updated_at: Mapped[datetime] = mapped_column(STAMP, default=ticking, onupdate=ticking)


class Batch(Base):
    """It is not tracked, and is written before the customers that refer to it."""

    __tablename__ = "batches"
    id: Mapped[int] = mapped_column(primary_key=True)
    begun_at: Mapped[datetime] = mapped_column(STAMP, default=ticking)
    invoices: Mapped[list["Invoice"]] = relationship(back_populates="batch")


class Invoice(Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"))
    batch_id: Mapped[int | None] = mapped_column(sa.ForeignKey("batches.id"))
    issued_at: Mapped[datetime] = mapped_column(STAMP, default=ticking)
    customer: Mapped[Customer] = relationship()
    batch: Mapped[Batch | None] = relationship(back_populates="invoices")


@pytest.fixture(autouse=True)
def _one_clock() -> None:
    ticking.now = at(-1)
    set_config(SQLAuditConfig(clock=ticking))


def row(name: str, number: int = 1) -> dict[str, Any]:
    return {"id": number, "name": name}


def rows(name: str) -> list[dict[str, Any]]:
    return [row(name, 2), row(name)]


def change(session: Session) -> None:
    session.get_one(Customer, 1).name = "Bob"
    session.flush()


def add(session: Session, *customers: Customer) -> None:
    session.add_all(customers)
    session.flush()


BY_NAME = sa.update(Customer).where(Customer.name == "Ada").values(name="Bob")
T: Any = Customer.__table__
INSERTS: dict[str, Callable[[Session], Any]] = {
    "a flush": lambda session: add(session, Customer(**row("Bob"))),
    "a flush of two": lambda session: add(session, Customer(**row("Bob", 2)), Customer(**row("Bob"))),
    "a statement": lambda session: session.execute(sa.insert(Customer).values(row("Bob"))),
    "a list": lambda session: session.execute(sa.insert(Customer), rows("Bob")),
    "bulk_save_objects": lambda session: session.bulk_save_objects([Customer(**each) for each in rows("Bob")]),
    "bulk_insert_mappings": lambda session: session.bulk_insert_mappings(sa.inspect(Customer), rows("Bob")),
    "the table": lambda session: session.execute(sa.insert(T).values(row("Bob"))),
    "the session's connection": lambda session: session.connection().execute(sa.insert(T).values(row("Bob"))),
    "a list by the connection": lambda session: session.connection().execute(sa.insert(T), rows("Bob")),
}
UPDATES: dict[str, Callable[[Session], Any]] = {
    "a flush": change,
    "a statement": lambda session: session.execute(BY_NAME),
    "a statement by key": lambda session: session.execute(
        sa.update(Customer).where(Customer.id == 1).values(name="Bob")
    ),
    "a list": lambda session: session.execute(sa.update(Customer), rows("Bob")),
    "bulk_update_mappings": lambda session: session.bulk_update_mappings(sa.inspect(Customer), rows("Bob")),
    "the table": lambda session: session.execute(sa.update(T).values(name="Bob")),
    "the session's connection": lambda session: session.connection().execute(sa.update(T).values(name="Bob")),
}


def stamps(session: Session, column: Any) -> list[datetime]:
    return [stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC) for stamp in session.scalars(sa.select(column))]


def check(session: Session) -> None:
    """Fail unless every customer is there as of its own timestamp."""
    session.rollback()
    found = stamps(session, Customer.updated_at)
    assert found
    for stamp in found:
        assert "Bob" in {each.name for each in session.scalars(as_of(Customer, stamp))}
    then, valid = as_of_column(Customer, Customer.updated_at)
    joined = sa.select(then.name).select_from(Customer).join(then, (then.id == Customer.id) & valid)
    assert session.scalars(joined).all() == ["Bob"] * len(found)


@pytest.mark.parametrize("how", INSERTS)
def test_a_row_is_there_as_of_the_timestamp_that_its_insert_gave_it(sessions, how):
    with sessions() as session:
        INSERTS[how](session)
        session.commit()
        check(session)


@pytest.mark.parametrize("how", UPDATES)
def test_a_row_is_changed_as_of_the_timestamp_that_its_update_gave_it(sessions, how):
    with sessions() as session:
        session.execute(sa.insert(Customer), rows("Ada"))
        session.commit()
        UPDATES[how](session)
        session.commit()
        session.execute(sa.delete(Customer).where(Customer.name == "Ada"))
        session.commit()
        check(session)


@pytest.mark.parametrize("many", [False, True])
def test_so_it_is_by_a_registered_engine(recorded_engine, sessions, many):
    with recorded_engine.begin() as connection:
        connection.execute(sa.insert(T), rows("Ada") if many else row("Ada"))
    with recorded_engine.begin() as connection:
        connection.execute(sa.update(T).values(name="Bob"))
    with recorded_engine.connect() as connection:  # its transaction begins with the statement
        connection.execute(sa.insert(T), row("Bob", 3))
        connection.commit()
    with sessions() as session:
        check(session)


def test_a_session_without_hooks_on_a_registered_engine_is_no_different(engine, sessions):
    plain = type("Plain", (Session,), {})
    register = {"target": sessions, "engine": engine}
    register_hooks(**register)
    try:
        with plain(engine) as session:
            add(session, Customer(**row("Ada")))
            session.commit()
            change(session)
            session.commit()
        with sessions() as session:
            check(session)
    finally:
        unregister_hooks(**register)


def test_a_temporal_join_loses_nobody_of_the_same_flush(sessions):
    with sessions() as session:
        batch = Batch(id=1)
        add(session, batch, Invoice(id=1, batch=batch, customer=Customer(**row("Ada"))))
        session.commit()
        for column in (Invoice.issued_at, Batch.begun_at):
            then, valid = as_of_column(Customer, column)
            statement = sa.select(then.name).select_from(Invoice).join(Batch)
            joined = statement.join(then, (then.id == Invoice.customer_id) & valid)
            assert session.scalars(joined).all() == ["Ada"]


@pytest.fixture
def stamping(sessions) -> Iterator[None]:
    """A listener that was there before the hooks, and stamps what is about to be flushed."""
    target = sessions.class_

    def stamp(session: Session, *args: Any) -> None:
        for obj in (*session.new, *session.dirty):
            obj.updated_at = ticking()

    unregister_hooks(sessions)
    sa.event.listen(target, "before_flush", stamp)
    register_hooks(sessions)
    yield
    sa.event.remove(target, "before_flush", stamp)


@pytest.mark.usefixtures("stamping")
def test_a_listener_that_stamps_objects_comes_after_the_instant(sessions):
    with sessions() as session:
        add(session, Customer(**row("Ada")))
        session.commit()
        change(session)
        session.commit()
        check(session)


@pytest.mark.usefixtures("recorded_engine")
def test_what_a_listener_of_a_flush_executes_is_of_the_instant_before_the_flush(sessions):
    def follow(mapper: Any, connection: sa.Connection, customer: Customer) -> None:
        connection.execute(sa.insert(T), row("Bob", customer.id + 1))

    with sessions() as session:
        sa.event.listen(Customer, "after_insert", follow)
        try:
            add(session, Customer(**row("Bob")))
        finally:
            sa.event.remove(Customer, "after_insert", follow)
        session.commit()
        check(session)


def test_a_row_that_a_later_listener_adds_to_a_flush_is_there_as_of_its_timestamp(sessions):
    def follow(session: Session, *args: Any) -> None:
        session.add(Customer(**row("Bob")))

    with sessions() as session:
        sa.event.listen(session, "before_flush", follow)
        add(session, Batch(id=1))
        session.commit()
        check(session)


def test_several_statements_of_a_bulk_method_are_of_the_instant_before_the_first(sessions):
    with sessions() as session:
        session.execute(sa.insert(Customer), rows("Ada"))
        session.commit()
        changed = [Customer(id=1, name="Bob"), Customer(id=3, name="Bob"), Customer(id=2, name="Bob")]
        for customer in (changed[0], changed[2]):
            orm.make_transient_to_detached(customer)
            orm.attributes.flag_modified(customer, "name")
        session.bulk_save_objects(changed)
        session.commit()
        check(session)


def test_a_flush_of_untracked_rows_fixes_no_instant(sessions):
    with sessions() as session:
        add(session, Batch(id=1))  # at 0
        assert ticking.now == at(0)
        ticking.now = at(10)
        add(session, Customer(**row("Ada")))
        session.commit()
        (version,) = versions_of(session, Customer, 1)
        assert version.valid_from == at(11)
