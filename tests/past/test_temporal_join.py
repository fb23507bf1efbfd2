"""Which timestamps are late enough for the versions of their own transaction? The guide to temporal joins has the list.

Python's timestamps are in tests/recording/test_timestamps.py. Here sqlaudit's clock is set by that of the database, so
that no test depends on how long it takes.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.mysql import DATETIME
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, Session, mapped_column

from clock import START, Clock
from sqlaudit import as_of, as_of_column, track_table

SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)
STAMP = sa.DateTime(timezone=True)
PRECISE = STAMP.with_variant(DATETIME(fsp=6), "mysql", "mariadb")


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))
    updated_at: Mapped[datetime] = mapped_column(STAMP, server_default=sa.func.now(), onupdate=sa.func.now())


class Invoice(Base):
    """Its customer is that of the same id."""

    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    booked_at: Mapped[datetime] = mapped_column(STAMP, server_default=sa.func.now())
    issued_at: Mapped[datetime | None] = mapped_column(STAMP)
    issued_precisely_at: Mapped[datetime | None] = mapped_column(PRECISE)
    due: Mapped[date | None]


def utc(stamp: datetime) -> datetime:
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)


def read(session: Session, expression: sa.ColumnElement[datetime]) -> datetime:
    return utc(session.scalars(sa.select(expression)).one())


def write_later_than_now(session: Session, clock: Clock, lateness: timedelta, write: Callable[[], object]) -> datetime:
    """Commit a transaction whose instant is later than the now() of its statements, which is returned."""
    while True:
        now = read(session, sa.func.now())
        clock.now = now + lateness - SECOND
        write()
        session.flush()
        if read(session, sa.func.now()) == now:
            session.commit()
            return now
        session.rollback()  # now() is the second of a statement, and a second has begun in between


def customer_at(session: Session, column: InstrumentedAttribute[datetime]) -> str | None:
    """Return the name that the customer had at the time that the row holds, or ``None`` if there was no customer."""
    version, valid = as_of_column(Customer, column)
    joined = (
        sa.select(version.name).select_from(column.class_).outerjoin(version, (version.id == column.class_.id) & valid)
    )
    return session.scalars(joined).one()


@pytest.mark.parametrize(("lateness", "name"), [(timedelta(), "Ada"), (TICK, None)])
def test_now_of_the_database_finds_an_inserted_row_only_if_the_instant_is_not_later(session, clock, lateness, name):
    def write() -> None:
        session.add_all([Customer(id=1, name="Ada"), Invoice(id=1)])

    now = write_later_than_now(session, clock, lateness, write)
    assert read(session, Invoice.booked_at) == read(session, Customer.updated_at) == now
    assert customer_at(session, Invoice.booked_at) == customer_at(session, Customer.updated_at) == name
    assert session.scalars(as_of(Customer, now).with_only_columns(Customer.name)).all() == ([name] if name else [])


@pytest.mark.parametrize(("lateness", "name"), [(timedelta(), "Bob"), (TICK, "Ada")])
def test_now_of_the_database_finds_a_changed_row_only_if_the_instant_is_not_later(session, clock, lateness, name):
    def write() -> None:
        session.get_one(Customer, 1).name = "Bob"

    session.add(Customer(id=1, name="Ada"))
    session.commit()
    now = write_later_than_now(session, clock, lateness, write)
    assert read(session, Customer.updated_at) == now
    assert customer_at(session, Customer.updated_at) == name
    assert session.scalars(as_of(Customer, now)).one().name == name


@pytest.mark.requires("now_of_the_transaction")
def test_now_is_the_begin_of_the_transaction(session, clock):
    begin = read(session, sa.func.now())
    clock.now = read(session, sa.func.clock_timestamp()) - SECOND
    session.add_all([Customer(id=1, name="Ada"), Invoice(id=1, issued_at=sa.func.clock_timestamp())])
    session.commit()
    assert begin == read(session, Invoice.booked_at) < read(session, Invoice.issued_at)
    assert customer_at(session, Invoice.booked_at) is None
    assert customer_at(session, Invoice.issued_at) == "Ada"


@pytest.mark.requires("now_in_seconds")
def test_now_is_the_begin_of_the_second(session, clock):
    def write() -> None:
        session.add_all([Customer(id=1, name="Ada"), Invoice(id=1)])

    now = write_later_than_now(session, clock, SECOND / 2, write)
    assert now.microsecond == 0
    assert customer_at(session, Invoice.booked_at) is None


@pytest.mark.requires("datetimes_in_seconds")
def test_now_with_six_digits_is_the_time_of_the_statement(session, clock):
    clock.now = read(session, sa.func.now(6, type_=PRECISE)) - SECOND
    session.add_all([Customer(id=1, name="Ada"), Invoice(id=1, issued_precisely_at=sa.func.now(6))])
    session.commit()
    assert customer_at(session, Invoice.issued_precisely_at) == "Ada"
    session.get_one(Invoice, 1).issued_precisely_at = sa.func.now()
    session.commit()
    assert read(session, Invoice.issued_precisely_at).microsecond == 0


INSTANT = START + SECOND * 0.75


def write_at_instant(session: Session, clock: Clock, **values: object) -> None:
    """Write a customer and an invoice in a transaction at INSTANT."""
    clock.now = INSTANT - SECOND
    session.add_all([Customer(id=1, name="Ada"), Invoice(id=1, **values)])
    session.commit()


def test_a_column_with_fractions_of_a_second_finds_the_version_of_its_instant(session, clock):
    write_at_instant(session, clock, issued_precisely_at=INSTANT)
    assert read(session, Invoice.issued_precisely_at) == INSTANT
    assert customer_at(session, Invoice.issued_precisely_at) == "Ada"


@pytest.mark.requires("datetimes_in_seconds")
def test_a_column_without_fractions_holds_the_begin_of_the_second(session, clock):
    write_at_instant(session, clock, issued_at=INSTANT)
    assert read(session, Invoice.issued_at) == START
    assert customer_at(session, Invoice.issued_at) is None


@pytest.mark.requires("datetimes_in_seconds")
def test_a_server_that_rounds_finds_what_is_true_up_to_half_a_second_later(session, clock):
    session.execute(sa.text("SET sql_mode = concat(@@sql_mode, ',TIME_ROUND_FRACTIONAL')"))  # as MySQL does
    write_at_instant(session, clock, issued_at=INSTANT)
    assert read(session, Invoice.issued_at) == START + SECOND
    assert customer_at(session, Invoice.issued_at) == "Ada"
    clock.now = INSTANT + TICK - SECOND
    session.get_one(Customer, 1).name = "Bob"
    session.commit()
    assert customer_at(session, Invoice.issued_at) == "Bob"


def test_a_date_is_the_begin_of_the_day(session, clock):
    write_at_instant(session, clock, due=INSTANT.date())
    assert customer_at(session, Invoice.due) is None
    session.get_one(Invoice, 1).due += timedelta(days=1)
    session.commit()
    assert customer_at(session, Invoice.due) == "Ada"


def test_a_date_finds_what_was_written_at_midnight(session, clock):
    clock.now = START - SECOND
    session.add_all([Customer(id=1, name="Ada"), Invoice(id=1, due=START.date())])
    session.commit()
    assert customer_at(session, Invoice.due) == "Ada"
