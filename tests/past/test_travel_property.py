"""Random lives of a shop: every question, asked as of an instant, has the answer that it had at that instant.

``SQLAUDIT_TEST_EFFORT=10`` tries ten times as many.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import sqlalchemy as sa
from hypothesis import event, given
from hypothesis import strategies as st
from sqlalchemy.orm import Session, sessionmaker

import sqlaudit
from clock import START
from databases import Database
from effort import profile
from shop import (
    Address,
    Base,
    Call,
    Customer,
    Line,
    Order,
    Tag,
    Visit,
    answers,
    trees,
)
from sqlaudit import SQLAuditConfig, as_of, time_travel

NAMES = ["Ada", "Bob", "Cid", "Ann"]
TAGS = ["vip", "new", "old"]
PRODUCTS = ["pen", "ink", "cup"]
Pick = Callable[[int], int]
"""Draws a number below another."""


class Clock:
    """Gives an instant some time after the last one to each transaction that writes."""

    def __init__(self) -> None:
        self.now = START
        self.step = timedelta(seconds=1)

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


# --- what can happen: each takes a session and a way to draw --------------------------------------------------


def some(session: Session, model: type[Any], pick: Pick) -> Any:
    """Return one of a model's objects, or ``None`` if there are none."""
    found = session.scalars(sa.select(model).order_by(*sa.inspect(model).primary_key)).all()
    return found[pick(len(found))] if found else None


def free_id(session: Session, model: type[Any], pick: Pick) -> int | None:
    """Return a key that no row has, often one that a row had before."""
    free = sorted({1, 2, 3, 4} - set(session.scalars(sa.select(model.id))))
    return free[pick(len(free))] if free else None


def open_an_account(session: Session, pick: Pick) -> None:
    if (id := free_id(session, Customer, pick)) is not None:
        billing, shipping = some(session, Address, pick), some(session, Address, pick)
        boss = some(session, Customer, pick) if pick(2) else None
        session.add(
            Customer(
                id=id,
                name=NAMES[pick(4)],
                city=[None, "Rome", "Oslo"][pick(3)],
                billing=billing,
                shipping=shipping,
                boss=boss,
            )
        )


def rename(session: Session, pick: Pick) -> None:
    if customer := some(session, Customer, pick):
        customer.name = NAMES[pick(4)]


def move_house(session: Session, pick: Pick) -> None:
    if customer := some(session, Customer, pick):
        customer.city = [None, "Rome", "Oslo"][pick(3)]
        customer.shipping = some(session, Address, pick) if pick(2) else None


def rename_a_street(session: Session, pick: Pick) -> None:
    if address := some(session, Address, pick):
        address.street = ["Home", "Work", "House"][pick(3)]
    else:
        session.add_all([Address(id=1, street="Home"), Address(id=2, street="Work")])


def follow(session: Session, pick: Pick) -> None:
    customer, boss = some(session, Customer, pick), some(session, Customer, pick)
    if customer is not boss:
        customer.boss = boss if pick(3) else None


def close_an_account(session: Session, pick: Pick) -> None:
    if customer := some(session, Customer, pick):
        for model in (Visit, Call):
            for row in session.scalars(sa.select(model).where(model.customer_id == customer.id)):
                session.delete(row)
        session.flush()
        session.delete(customer)


def order(session: Session, pick: Pick) -> None:
    customer, id = some(session, Customer, pick), free_id(session, Order, pick)
    if customer and id is not None:
        lines = [Line(number=number + 1, product=PRODUCTS[pick(3)]) for number in range(pick(3))]
        customer.orders.append(Order(id=id, amount=5 * pick(5), lines=lines))


def change_an_order(session: Session, pick: Pick) -> None:
    if order := some(session, Order, pick):
        order.amount = 5 * pick(5)


def move_an_order(session: Session, pick: Pick) -> None:
    if order := some(session, Order, pick):
        order.customer = some(session, Customer, pick)


def cancel(session: Session, pick: Pick) -> None:
    if order := some(session, Order, pick):
        session.delete(order)


def cancel_and_order_again(session: Session, pick: Pick) -> None:
    if order := some(session, Order, pick):
        id, customer = order.id, order.customer
        session.delete(order)
        session.flush()
        session.expire(customer)
        customer.orders.append(Order(id=id, amount=20, lines=[Line(number=2, product="cup")]))


def change_a_line(session: Session, pick: Pick) -> None:
    if line := some(session, Line, pick):
        line.product = PRODUCTS[pick(3)]


def strike_a_line(session: Session, pick: Pick) -> None:
    if line := some(session, Line, pick):
        session.delete(line)


def tag_or_untag(session: Session, pick: Pick) -> None:
    customer, tag = some(session, Customer, pick), some(session, Tag, pick)
    if customer and tag:
        (customer.tags.remove if tag in customer.tags else customer.tags.append)(tag)


def make_a_tag(session: Session, pick: Pick) -> None:
    if (id := free_id(session, Tag, pick)) is not None:
        session.add(Tag(id=id, label=TAGS[pick(3)]))


def rename_a_tag(session: Session, pick: Pick) -> None:
    if tag := some(session, Tag, pick):
        tag.label = TAGS[pick(3)]


def drop_a_tag(session: Session, pick: Pick) -> None:
    if tag := some(session, Tag, pick):
        session.delete(tag)


def visit_or_call(session: Session, pick: Pick) -> None:
    model = (Visit, Call)[pick(2)]
    customer, id = some(session, Customer, pick), free_id(session, model, pick)
    if customer and id is not None:
        session.add(model(id=id, customer_id=customer.id, text=["again", "first"][pick(2)]))


def undo_in_a_savepoint(session: Session, pick: Pick) -> None:
    savepoint = session.begin_nested()
    rename(session, pick)
    order(session, pick)
    session.flush()
    savepoint.rollback()


EVENTS = [
    open_an_account,
    rename,
    move_house,
    rename_a_street,
    follow,
    close_an_account,
    order,
    change_an_order,
    move_an_order,
    cancel,
    cancel_and_order_again,
    change_a_line,
    strike_a_line,
    tag_or_untag,
    make_a_tag,
    rename_a_tag,
    drop_a_tag,
    visit_or_call,
    undo_in_a_savepoint,
]


# --- the test ---------------------------------------------------------------------------------------------------


def begin(session: Session) -> None:
    """Fill the shop, so that most of what happens finds something to happen to."""
    home, work = Address(id=1, street="Home"), Address(id=2, street="Work")
    tags = [Tag(id=number + 1, label=label) for number, label in enumerate(TAGS[:2])]
    ids = count(1)
    for id, name in enumerate(NAMES[:3], 1):
        orders = [Order(id=next(ids), amount=10 * id, lines=[Line(number=1, product="pen")])]
        session.add(
            Customer(id=id, name=name, city="Rome", billing=home, shipping=work, tags=tags[: id - 1], orders=orders)
        )
    session.flush()
    session.add_all(model(id=1, customer_id=1, text="first") for model in (Visit, Call))


def ask_all(session: Session, of: Callable[[type[Any]], Any]) -> dict[str, Any]:
    """Return the answers to all questions, and what is got by key."""
    found = answers(session, of)
    found["get"] = trees(each for id in (1, 2, 3, 4) if (each := get(session, of, id)) is not None)
    session.expunge_all()
    return found


def get(session: Session, of: Callable[[type[Any]], Any], id: int) -> Customer | None:
    if of is sa.select:
        return session.get(Customer, id)
    return session.scalars(of(Customer).where(Customer.id == id)).one_or_none()


def live(maker: sessionmaker[Session], data: Any) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """Let things happen, and give after each transaction the instant from which on there are which answers."""
    clock: Clock = sqlaudit.get_config().clock  # type: ignore[assignment]

    def pick(below: int) -> int:
        return data.draw(st.integers(0, below - 1)) if below > 1 else 0

    for transaction in range(data.draw(st.integers(1, 4), label="transactions") + 1):
        clock.step = timedelta(microseconds=data.draw(st.sampled_from([1, 2, 1_000_000]), label="step"))
        with maker() as session:
            if transaction == 0:
                begin(session)
            else:
                for happen in data.draw(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=5), label="events"):
                    event(happen.__name__)
                    happen(session, pick)
                    session.flush()
                    session.expire_all()
            if data.draw(st.integers(0, 9), label="fate") == 9:
                session.rollback()
            session.commit()
        with maker() as session:
            yield clock.now, ask_all(session, sa.select)


def check(maker: sessionmaker[Session], data: Any) -> None:
    seen = list(live(maker, data))
    ends = [instant for instant, _ in seen[1:]] + [seen[-1][0] + timedelta(seconds=1)]
    with maker() as session:
        for (since, answers), until in zip(seen, ends, strict=True):
            for when in {since, max(since, until - timedelta(microseconds=1))}:
                with time_travel(session, when) as past:
                    compare(ask_all(past, sa.select), answers, when)
                compare(ask_all(session, partial(as_of, when=when)), answers, when)


def compare(found: dict[str, Any], expected: dict[str, Any], when: datetime) -> None:
    for name, answer in expected.items():
        assert found[name] == answer, f"{name} as of {when}"


def test_every_question_has_the_answer_of_then(database: Database, engine: sa.Engine) -> None:
    maker = sessionmaker(engine)
    sqlaudit.register_hooks(maker)

    @profile(database, few=1, many=1, report_multiple_bugs=False)
    @given(st.data())
    def answers_agree(data: Any) -> None:
        with engine.begin() as connection:
            connection.execute(sa.update(Customer.__table__).values(boss_id=None))
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
        sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
        check(maker, data)

    try:
        answers_agree()
    finally:
        sqlaudit.unregister_hooks(maker)
