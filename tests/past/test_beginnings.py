"""A row whose history begins with a baseline was there before: a read from before leaves it out, warns, or raises."""

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, joinedload, mapped_column, relationship, selectinload

from clock import at
from sqlaudit import (
    QueryError,
    SQLAuditWarning,
    as_of,
    backfill,
    history_of,
    time_travel,
    track_table,
    tracking_disabled,
)
from sqlaudit.maintenance import check

pytestmark = pytest.mark.usefixtures("clock")


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(20))
    orders: Mapped[list["Order"]] = relationship(back_populates="customer")


@track_table()
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"))
    customer: Mapped[Customer] = relationship(back_populates="orders")


UNKNOWN = r"'customers' 1 .*is unknown.*version {}.*before_baseline='absent'.*at="


@pytest.fixture
def adopted(sessions: Any, engine: sa.Engine) -> Any:
    """Customer 1 is older than its tracking, and got a baseline at 1; customer 2 came at 0, and an order at 2."""
    with sessions.begin() as session, tracking_disabled(session):
        session.add(Customer(id=1, name="Ada"))
    with sessions.begin() as session:
        session.add(Customer(id=2, name="Bob"))
    backfill(engine, Customer, at=at(1))
    with sessions.begin() as session:
        session.add_all([Order(id=1, customer_id=1), Order(id=2, customer_id=2)])
    return sessions


def ids(found: Any) -> list[int]:
    return sorted(each.id for each in found)


ASK: dict[str, Any] = {
    "objects": lambda session, rule: ids(session.scalars(as_of(Customer, at(0.5), before_baseline=rule))),
    "columns": lambda session, rule: session.scalars(
        as_of(Customer, at(0.5), before_baseline=rule).with_only_columns(Customer.id)
    ).all(),
    "the key": lambda session, rule: ids(
        session.scalars(as_of(Customer, at(0.5), before_baseline=rule).where(Customer.id.in_([1, 2])))
    ),
    "a subquery": lambda session, rule: session.scalars(
        as_of(Customer, at(0.5), before_baseline=rule)
        .with_only_columns(Customer.id)
        .where(Customer.id.in_(sa.select(Customer.id)))
    ).all(),
    "a time travel": lambda session, rule: _travel(session, rule, lambda past: ids(past.scalars(sa.select(Customer)))),
    "a table": lambda session, rule: _travel(
        session, rule, lambda past: past.scalars(sa.select(Customer.__table__.c.id)).all()
    ),
    "a query": lambda session, rule: _travel(session, rule, lambda past: ids(past.query(Customer).all())),
}


def _travel(session: Any, rule: Any, ask: Any) -> Any:
    with time_travel(session, at(0.5), before_baseline=rule) as past:
        return ask(past)


@pytest.mark.spread
@pytest.mark.parametrize("ask", ASK)
def test_a_row_whose_baseline_is_later_is_absent_or_told(adopted: Any, ask: str) -> None:
    with adopted() as session:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ASK[ask](session, "absent") == [2]
        with pytest.warns(SQLAuditWarning, match=UNKNOWN.format(1)):
            assert ASK[ask](session, "warn") == [2]
        with pytest.raises(QueryError, match=UNKNOWN.format(1)):
            ASK[ask](session, "raise")


@pytest.mark.parametrize("rule", ["warn", "raise"])
def test_what_is_known_is_read_in_silence(adopted: Any, rule: Any) -> None:
    with warnings.catch_warnings(), adopted() as session:
        warnings.simplefilter("error")
        assert ids(session.scalars(as_of(Customer, at(1), before_baseline=rule))) == [1, 2]
        assert session.scalar(as_of(Customer, at(0.5), before_baseline=rule).where(Customer.id == 2)).name == "Bob"
        assert session.scalar(as_of(Customer, at(0.5), before_baseline=rule).where(Customer.id == 3)) is None
        assert not session.scalars(as_of(Order, at(0.5), before_baseline=rule)).all()  # they were inserted later
        with time_travel(session, at(0.5), before_baseline=rule) as past:
            assert past.get_one(Customer, 2).orders == []
        with time_travel(session, at(5), before_baseline=rule) as past:
            loaded = past.scalars(sa.select(Order).options(joinedload(Order.customer))).all()
            assert {each.customer.name for each in loaded} == {"Ada", "Bob"}


def test_a_row_is_asked_of_by_its_key(adopted: Any) -> None:
    with adopted() as session, time_travel(session, at(0.5), before_baseline="raise") as past:
        assert past.get_one(Customer, 2).name == "Bob"
        with pytest.raises(QueryError, match=UNKNOWN.format(1)):
            past.get(Customer, 1)


@pytest.mark.parametrize("load", [None, joinedload, selectinload])
def test_what_a_past_object_loads_is_asked_of_by_the_same_rule(adopted: Any, engine: sa.Engine, load: Any) -> None:
    with adopted.begin() as session, tracking_disabled(session):
        session.add(Order(id=3, customer_id=2))
    backfill(engine, Order, at=at(3))
    options = [] if load is None else [load(Customer.orders)]
    with adopted() as session:
        statement = as_of(Customer, at(2.5), before_baseline="raise").options(*options)
        with pytest.raises(QueryError, match="'orders' 3"):
            assert [each.orders for each in session.scalars(statement).unique()]


def test_a_row_whose_early_versions_are_missing_was_there_too(adopted: Any, engine: sa.Engine) -> None:
    history: Any = history_of(Customer).__table__
    with adopted.begin() as session:
        session.get_one(Customer, 2).name = "Bo"
    with engine.begin() as connection:
        connection.execute(sa.delete(history).where(history.c.id == 2, history.c.audit_version == 1))
    with adopted() as session, pytest.raises(QueryError, match=r"'customers' 2 .*version 2"):
        session.scalars(as_of(Customer, at(2), before_baseline="raise"))


@pytest.mark.parametrize("when", [0, 2])
def test_a_baseline_after_a_lost_part_of_the_history_leaves_what_was_before_known(
    adopted: Any, engine: sa.Engine, when: int
) -> None:
    history = history_of(Customer)
    with engine.begin() as connection:
        ended = sa.update(history).where(history.id == 2).values(valid_to=at(1))
        connection.execute(ended)
    check(engine, Customer, repair=True)
    with adopted() as session:
        statement = as_of(Customer, at(when), before_baseline="raise").where(Customer.id == 2)
        refusal = pytest.raises(QueryError, match=r"'customers' 2 .*is unknown.*version 2") if when else nullcontext()
        with refusal:
            assert session.scalars(statement).one().name == "Bob"


def test_a_first_change_tells_that_the_row_is_older(sessions: Any) -> None:
    with sessions.begin() as session, tracking_disabled(session):
        session.add(Customer(id=1, name="Ada"))
    with sessions.begin() as session:
        session.get_one(Customer, 1).name = "Ada King"
    with sessions() as session, pytest.raises(QueryError, match=UNKNOWN.format(1)):
        session.scalars(as_of(Customer, at(-1), before_baseline="raise"))


def test_a_backfill_of_an_earlier_instant_lets_it_be_known(sessions: Any, engine: sa.Engine) -> None:
    with sessions.begin() as session, tracking_disabled(session):
        session.add(Customer(id=1, name="Ada"))
    backfill(engine, Customer, at=at(-1000))
    with sessions() as session:
        assert ids(session.scalars(as_of(Customer, at(-1), before_baseline="raise"))) == [1]


def test_a_read_within_another_statement_is_refused_unless_that_asks(adopted: Any) -> None:
    inner = as_of(Customer, at(0.5), before_baseline="raise").with_only_columns(Customer.id)
    with adopted() as session:
        with pytest.raises(QueryError, match="inside another statement"):
            session.scalars(sa.select(Order).where(Order.customer_id.in_(inner)))
        outer = as_of(Order, at(5), before_baseline="raise").where(Order.customer_id.in_(inner))
        with pytest.raises(QueryError, match=UNKNOWN.format(1)):
            session.scalars(outer)
        assert "customers_history" in str(inner)


def test_a_rule_is_one_of_three_words() -> None:
    with pytest.raises(QueryError, match="'absent', 'warn' or 'raise'"):
        as_of(Customer, at(0), before_baseline="ignore")  # type: ignore[arg-type]
    assert Customer.__name__ == "Customer"
