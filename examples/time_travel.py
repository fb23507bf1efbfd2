"""An invoice application asks its past: what was ordered, what did the report say, and what has the intern done?

    python examples/time_travel.py [URL]

Runs on SQLite in memory, or on any database that SQLAlchemy reaches, and drops its tables again.
"""

import sys
from datetime import UTC, datetime

from sqlalchemy import DateTime, ForeignKey, String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from sqlaudit import (
    AuditContextManager,
    SQLAuditConfig,
    Temporal,
    as_of_column,
    changes_in,
    changesets,
    register_hooks,
    restore,
    set_config,
    time_travel,
    track_table,
    undo,
    versions_of,
)


class Base(DeclarativeBase):
    pass


@track_table()
class Customer(Temporal, Base):
    __tablename__ = "time_travel_customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    address: Mapped[str] = mapped_column(String(100))
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", order_by="Order.id")


@track_table()
class Product(Temporal, Base):
    __tablename__ = "time_travel_products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    price: Mapped[int]


@track_table()
class Order(Temporal, Base):
    __tablename__ = "time_travel_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    customer: Mapped[Customer] = relationship(back_populates="orders")
    lines: Mapped[list["Line"]] = relationship(order_by="Line.number", cascade="all, delete-orphan")


@track_table()
class Line(Temporal, Base):
    __tablename__ = "time_travel_lines"

    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey(Product.id))
    quantity: Mapped[int]
    product: Mapped[Product] = relationship()


class Calendar:
    """Lets months of business go by while the program runs; an application needs none of this."""

    today = datetime(2026, 1, 12, 9, tzinfo=UTC)


set_config(SQLAuditConfig(clock=lambda: Calendar.today))
register_hooks()
engine = create_engine(sys.argv[1] if len(sys.argv) > 1 else "sqlite://")
Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)


def business(session: Session) -> None:
    """What happened from January to April 2026."""
    with AuditContextManager(user_id="ana"):
        lamp, chair = Product(id=1, name="lamp", price=40), Product(id=2, name="chair", price=90)
        ada = Customer(id=1, name="Ada", address="1 Harbour Road, London")
        bob = Customer(id=2, name="Bob", address="5 Rue du Lac, Lyon")
        session.add_all([lamp, chair, ada, bob])
        session.commit()

        Calendar.today = datetime(2026, 2, 3, 15, tzinfo=UTC)
        first = Order(id=1, customer=ada, placed_at=Calendar.today)
        first.lines = [Line(number=1, product=lamp, quantity=2), Line(number=2, product=chair, quantity=1)]
        session.add(first)
        session.commit()

        Calendar.today = datetime(2026, 2, 20, 11, tzinfo=UTC)
        second = Order(id=2, customer=bob, placed_at=Calendar.today)
        second.lines = [Line(number=1, product=chair, quantity=6)]
        session.add(second)
        session.commit()

    with AuditContextManager(user_id="ben"):
        Calendar.today = datetime(2026, 3, 9, 10, tzinfo=UTC)
        lamp.price, chair.price = 45, 100
        ada.address = "8 Via Appia, Rome"
        first.lines[0].quantity = 3
        session.delete(second)
        session.commit()

    Calendar.today = datetime(2026, 4, 1, 17, tzinfo=UTC)
    with AuditContextManager(user_id="intern", reason="tidying up"):
        for customer in (ada, bob):
            customer.address = customer.address.upper()
        for product in (lamp, chair):
            product.price *= 100
        session.delete(first.lines[1])
        session.commit()

    Calendar.today = datetime(2026, 4, 2, 9, tzinfo=UTC)


def print_order(order: Order) -> None:
    print(f"  order {order.id} for {order.customer.name}, {order.customer.address}")
    for line in order.lines:
        print(f"    {line.quantity} x {line.product.name} at {line.product.price}")


def print_sales(session: Session) -> None:
    """A report like any other: it knows nothing of time travel."""
    total = func.sum(Line.quantity * Product.price)
    report = (
        select(Customer.name, total)
        .join(Customer.orders)
        .join(Order.lines)
        .join(Line.product)
        .group_by(Customer.name)
        .order_by(Customer.name)
    )
    for name, amount in session.execute(report):
        print(f"  {name} {amount}")


with Session(engine) as session:
    business(session)

with Session(engine) as session:
    print("What does order 1 look like?")
    order = session.get_one(Order, 1)
    print_order(order)

    print("What did it look like when it was placed?")
    placed = versions_of(session, Order, 1)[0].valid_from
    then = Order.as_of(placed).where(Order.id == 1).options(selectinload(Order.lines))
    print_order(session.scalars(then).one())  # its customer and products, too, are those of the time

    print("What are the sales?")
    print_sales(session)

    print("What would the report have said on 1 March?")
    with time_travel(session, datetime(2026, 3, 1, tzinfo=UTC)) as past:
        print_sales(past)

    print("What has the intern done?")
    (edit,) = changesets(session, user_id="intern")
    print(f"  on {edit.timestamp:%d %B}, {edit.reason}: {len(changes_in(session, edit.changeset_id))} field changes")
    for change in changes_in(session, edit.changeset_id):
        if change.operation == "update":
            print(f"  {change.resource_type} {change.field_name}: {change.old_value} → {change.new_value}")

    print("Take it back.")
    with AuditContextManager(user_id="ana"):
        for item in undo(session, edit.changeset_id):
            print(f"  {item.operation} {item.resource_type} {item.key}")
        session.commit()
    print_order(session.get_one(Order, 1))

    print("And Bob wants his order, after all.")
    with AuditContextManager(user_id="ana", reason="Bob called"):
        restore(session, Order, 2, at=datetime(2026, 3, 1, tzinfo=UTC), include=["lines"])
        session.commit()
    print_order(session.get_one(Order, 2))

    print("What was the price of each line when it was ordered?")
    product, valid = as_of_column(Product, Order.placed_at)
    lines = (
        select(Order.id, product.name, product.price)
        .join(Order.lines)
        .join(product, (product.id == Line.product_id) & valid)
        .order_by(Order.id, Line.number)
    )
    for order_id, name, price in session.execute(lines):
        print(f"  order {order_id}: {name} at {price}")

Base.metadata.drop_all(engine)
engine.dispose()
