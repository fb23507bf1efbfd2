"""What type checkers know of reads of the past."""

from datetime import UTC, datetime
from typing import Any, assert_type
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, ForeignKey, Select, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    relationship,
    scoped_session,
    selectinload,
)

from sqlaudit import Temporal, Version, all_versions, as_of, as_of_column, between, time_travel, track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Temporal, Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column()
    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


@track_table()
class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"))
    issued_at: Mapped[datetime] = mapped_column()
    customer: Mapped[Customer] = relationship(back_populates="orders")


class Vip(Customer):
    rank: Mapped[int] = mapped_column()


WHEN = datetime(2024, 1, 1, tzinfo=UTC)


def a_select_of_the_past_has_the_type_of_a_select(session: Session) -> None:
    same = select(Customer)
    same = as_of(Customer, WHEN)
    same = Customer.as_of(WHEN)
    same = Customer.as_of(UUID(int=1), untracked="live", before_baseline="warn")
    same = same.where(Customer.name == "Ada").order_by(Customer.id).limit(1)
    assert_type(session.scalars(same).all()[0], Customer)
    assert_type(session.scalars(same).one().name, str)
    assert_type(session.scalars(same).one().orders[0].customer, Customer)


def it_gives_the_class_that_it_is_asked_of(session: Session) -> None:
    assert_type(session.scalars(as_of(Order, UUID(int=1))).one(), Order)
    assert_type(session.scalars(as_of(Order, str(UUID(int=1)))).one(), Order)
    assert_type(session.scalars(Vip.as_of(WHEN)).one(), Vip)
    assert_type(session.scalars(Vip.as_of(WHEN)).one().rank, int)


def it_composes(session: Session) -> None:
    orders = Customer.as_of(WHEN).join(Customer.orders).options(selectinload(Customer.orders))
    assert_type(session.scalars(orders).first(), Customer | None)
    names = Customer.as_of(WHEN).with_only_columns(Customer.name)
    assert_type(session.scalars(names).one(), str)
    alias = aliased(Customer, Customer.as_of(WHEN).subquery())
    assert_type(session.scalars(select(alias.name)).one(), str)


async def it_runs_in_async_sessions(session: AsyncSession) -> None:
    assert_type((await session.scalars(Customer.as_of(WHEN))).one(), Customer)


def versions_are_selected(session: Session) -> None:
    assert_type(between(Customer, WHEN, WHEN), Select[Any])
    assert_type(Customer.between(WHEN, WHEN), Select[Any])
    assert_type(all_versions(Customer), Select[Any])
    assert_type(Customer.all_versions(), Select[Any])
    assert_type(Customer.History, type[Version[Customer]])
    customers = session.scalars(select(Customer).options(selectinload(Customer.versions))).all()
    assert_type(customers[0].versions, list[Version[Customer]])


def a_temporal_join(session: Session) -> None:
    customer, valid = as_of_column(Customer, Order.issued_at)
    assert_type(valid, ColumnElement[bool])
    joined = select(Order).join(customer, (customer.id == Order.customer_id) & valid)
    assert_type(session.scalars(joined).one(), Order)


def a_session_that_travels(engine: Engine, session: Session, scoped: scoped_session[Session]) -> None:
    for given in (engine, session, scoped):
        with time_travel(given, WHEN) as past:
            assert_type(past, Session)
            assert_type(past.get_one(Customer, 1), Customer)
    with time_travel(session, UUID(int=1), untracked="live", before_baseline="raise", text=True) as past:
        assert_type(past.scalars(select(Customer)).one(), Customer)


async def an_async_session_that_travels(engine: AsyncEngine, session: AsyncSession) -> None:
    async with time_travel(engine, WHEN) as past:
        assert_type(past, AsyncSession)
    async with time_travel(session, WHEN) as past:
        assert_type(await past.get(Customer, 1), Customer | None)
