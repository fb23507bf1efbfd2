"""``track_table(as_of_index=True)``: whole tables as of an instant are the same, and found by an index."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import orm
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqlaudit_alembic
from clock import Clock, at
from sqlaudit import AuditContextManager, TrackingError, as_of, history_of, time_travel, track_table
from sqlaudit.tracking.tables import tracked_table

Sessions = orm.sessionmaker[Session]
TICK = timedelta(microseconds=1)


class Base(DeclarativeBase):
    pass


@track_table(as_of_index=True)
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[int]


@track_table(as_of_index=True, exclude=["secret_id"])
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"), unique=True)
    secret_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customers.id"), index=True)
    amount: Mapped[int] = mapped_column(index=True)
    __table_args__ = (
        sa.Index("by_customer", "customer_id", "amount", unique=True),
        sa.Index("by_amount", "amount", "customer_id"),
        sa.Index("by_secret", "customer_id", "secret_id", "amount"),
    )


def happen(sessions: Sessions) -> None:
    """Customers and their orders, changed each second, some gone and come again; some versions have an empty period."""
    for second in range(12):
        with sessions() as session:
            for id in range(1, 5):
                customer, order = session.get(Customer, id), session.get(Order, id)
                if customer is None:
                    session.add(Customer(id=id, name=second))
                    session.flush()
                    session.add(Order(id=id, customer_id=id, amount=second))
                elif order is not None and (second + id) % 4 == 0:
                    session.delete(order)
                    session.flush()
                    session.delete(customer)
                elif second % id == 0:
                    customer.name = second
                    session.flush()
                    with AuditContextManager(user_id="ada"):
                        customer.name = second + 100
                        session.flush()
                elif order is not None:
                    order.amount += 1
            session.commit()


@pytest.fixture
def sold(happened: None, clock: Clock, sessions: Sessions) -> Sessions:
    """Sessions that record, when that has happened."""
    return sessions


def instants(session: Session) -> list[Any]:
    version = history_of(Customer)
    ends = {*session.scalars(sa.select(version.valid_from)), *session.scalars(sa.select(version.valid_to))}
    assert session.scalar(sa.select(sa.func.count()).where(version.valid_from == version.valid_to))
    near = [end + tick for end in ends if end.year < 9999 for tick in (-TICK, 0 * TICK, TICK)]
    return [at(-100_000), *near, at(100_000)]


def then(table: Any, when: Any) -> Any:
    tracked = tracked_table(table)
    assert tracked is not None
    return sa.select(*(old for _, old in tracked.columns)).where(tracked.valid_from <= when, tracked.valid_to > when)


def test_a_whole_table_is_as_it_was_at_every_boundary(sold):
    with sold() as session:
        for when in instants(session):
            expected = sorted(map(tuple, session.execute(then(Customer.__table__, when))))
            found = sorted((each.id, each.name) for each in session.scalars(as_of(Customer, when)))
            assert found == expected, when
            assert bool(found) == (at(0) <= when)
            session.expunge_all()


def test_a_join_is_as_it_was_at_every_boundary(sold):
    question = sa.select(Customer.name, Order.amount).outerjoin(Order, Order.customer_id == Customer.id)
    with sold() as session:
        for when in instants(session):
            customers, orders = (then(model.__table__, when).subquery() for model in (Customer, Order))
            expected = sa.select(customers.c.name, orders.c.amount).outerjoin(
                orders, orders.c.customer_id == customers.c.id
            )
            with time_travel(session, when) as past:
                for id in (None, 2):
                    chosen = question if id is None else question.where(Customer.id == id)
                    plain = expected if id is None else expected.where(customers.c.id == id)
                    found = sorted(map(tuple, past.execute(chosen)), key=repr)
                    assert found == sorted(map(tuple, session.execute(plain)), key=repr), when


def test_a_statement_of_another_instant_is_compiled_once(engine, sold):
    cache: dict[Any, Any] = {}
    found = []
    for second in (0.5, 1, 11, 0.5):
        with time_travel(engine.execution_options(compiled_cache=cache), at(second)) as past:
            found.append({(each.id, each.name) for each in past.scalars(sa.select(Customer))})
    assert len(cache) == 1
    assert found[0] == found[3] == {(id, 0) for id in range(1, 5)}
    assert found[0] != found[1] != found[2]


def indexes(engine: sa.Engine, table: str) -> dict[str, tuple[Any, bool]]:
    return {
        index["name"]: (tuple(filter(None, index["column_names"])), bool(index["unique"]))
        for index in sa.inspect(engine).get_indexes(table)
    }


def test_the_indexes_of_foreign_keys_are_copied_and_not_unique(engine):
    made = {name: index for name, index in indexes(engine, "orders_history").items() if name.startswith("ix_")}
    made.pop("ix_orders_history_period")
    assert made == {
        "ix_orders_history_changeset": (("audit_changeset_id",), False),
        "ix_orders_history_customer_id": (("customer_id",), False),
        "ix_orders_history_customer_id_amount": (("customer_id", "amount"), False),
        "ix_orders_history_instant": (("valid_from",), False),
    }


def test_a_history_has_no_such_indexes_unasked(engine, base):
    @track_table()
    class Line(base):
        __tablename__ = "lines"
        id: Mapped[int] = mapped_column(primary_key=True)
        line_id: Mapped[int | None] = mapped_column(sa.ForeignKey("lines.id"), index=True)

    assert {index.name for index in history_of(Line).__table__.indexes} == {
        "ix_lines_history_changeset",
        "ix_lines_history_instant",
        "uq_lines_history_open",
    }


def test_autogenerate_sees_no_difference(engine):
    sqlaudit_alembic.register()
    with engine.connect() as connection:
        options = {"autogenerate_plugins": ["alembic.autogenerate.*", "sqlaudit"]}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
    assert not [step for step in found if "ix_" in str(step[1])]


def family(base: type[Any]) -> Any:
    @track_table()
    class Animal(base):
        __tablename__ = "animals"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    return Animal


def test_a_subclass_may_have_its_own_table_indexed(base):
    animal = family(base)

    @track_table(as_of_index=True)
    class Dog(animal):
        __tablename__ = "dogs"
        id: Mapped[int] = mapped_column(sa.ForeignKey("animals.id"), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "dog"}

    class Puppy(Dog):
        __tablename__ = "puppies"
        id: Mapped[int] = mapped_column(sa.ForeignKey("dogs.id"), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "puppy"}

    indexed = {table.name for table in base.metadata.tables.values() if any("period" in i.name for i in table.indexes)}
    assert indexed == {"dogs_history", "puppies_history"}


def test_a_subclass_cannot_have_the_table_of_its_base_indexed(base):
    animal = family(base)

    class Cat(animal):
        __mapper_args__ = {"polymorphic_identity": "cat"}

    with pytest.raises(TrackingError, match="to the base class"):
        track_table(as_of_index=True)(Cat)


def test_a_foreign_key_of_a_single_table_subclass_has_its_index_copied(base):
    @track_table(as_of_index=True)
    class Animal(base):
        __tablename__ = "animals"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Cat(Animal):
        mother_id: Mapped[int | None] = mapped_column(sa.ForeignKey("animals.id"), index=True)
        __mapper_args__ = {"polymorphic_identity": "cat"}

    base.registry.configure()
    names = {index.name for index in tracked_table(Animal.__table__).history.indexes}
    assert {"ix_animals_history_mother_id", "ix_animals_history_period"} <= names
