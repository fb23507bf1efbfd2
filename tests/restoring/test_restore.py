"""What restore does: rows, and what they are related to, are again as they were."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    composite,
    deferred,
    mapped_column,
    relationship,
    sessionmaker,
    synonym,
    validates,
)

import sqlaudit
from clock import Clock, at
from counting import counted
from invariants import check_history, told
from registering import recording
from sqlaudit import (
    AuditContextManager,
    ContextError,
    QueryError,
    ReadOnlyError,
    SQLAuditConfig,
    SQLAuditError,
    TrackingError,
    UndoConflictError,
    as_of,
    changesets,
    history_of,
    restore,
    time_travel,
    undo,
    versions_of,
)

pytestmark = [pytest.mark.usefixtures("clock"), pytest.mark.spread]


class Base(DeclarativeBase):
    pass


customer_tags = sa.Table(
    "customer_tags",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@sqlaudit.track_table(exclude=["password"])
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column("full_name", sa.String(50))
    email: Mapped[str | None] = mapped_column(sa.String(50), unique=True)
    data: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    points: Mapped[int | None] = mapped_column(default=5)
    notes: Mapped[str | None] = deferred(mapped_column(sa.String(50)))
    password: Mapped[str] = mapped_column(sa.String(50), default="?")
    region_id: Mapped[int | None] = mapped_column(sa.ForeignKey("regions.id"))
    region: Mapped["Region | None"] = relationship()
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", cascade="all, delete-orphan")
    tags: Mapped[list["Tag"]] = relationship(secondary=customer_tags, back_populates="customers")
    title = synonym("name")


@sqlaudit.track_table()
class Region(Base):
    __tablename__ = "regions"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table()
class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey(Customer.id))
    customer: Mapped[Customer] = relationship(back_populates="orders")
    lines: Mapped[list["Line"]] = relationship(cascade="all, delete-orphan")


@sqlaudit.track_table()
class Line(Base):
    __tablename__ = "lines"

    order_id: Mapped[int] = mapped_column(sa.ForeignKey(Order.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))
    customers: Mapped[list[Customer]] = relationship(secondary=customer_tags, back_populates="tags")


@sqlaudit.track_table()
class Note(Base):
    """Refers to a customer, and nothing but the foreign key says so."""

    __tablename__ = "a_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey(Customer.id))


class Untracked(Base):
    __tablename__ = "untracked"

    id: Mapped[int] = mapped_column(primary_key=True)


def summary(report: Any) -> list[tuple[str, str, Any, list[str]]]:
    """Give (operation, label, key, names of the fields), sorted."""
    return sorted(
        (str(operation), resource_type, key, sorted(fields)) for operation, resource_type, key, fields in report
    )


# --- one row ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ada(sessions):
    """Second 0: Ada; 1: she is renamed; 2: she is deleted."""
    with sessions.begin() as session:
        session.add(
            Customer(id=1, name="Ada", email="a", data={"n": [1]}, points=sa.null(), notes="x", password="secret")
        )
    with sessions.begin() as session:
        customer = session.get_one(Customer, 1)
        customer.name, customer.data, customer.points, customer.notes = "Bob", None, 7, None


def delete(sessions, model, key):
    with sessions.begin() as session:
        session.delete(session.get_one(model, key))


def values(customer: Customer) -> tuple[Any, ...]:
    return customer.name, customer.email, customer.data, customer.points, customer.notes


OLD = ("Ada", "a", {"n": [1]}, None, "x")
NEW = ("Bob", "a", None, 7, None)


def test_a_changed_row_gets_its_old_values(sessions, ada):
    with sessions.begin() as session:
        report = restore(session, Customer, 1, at=at(0))
        assert summary(report) == [("update", "Customer", 1, ["data", "name", "notes", "points"])]
        assert report.items[0].fields["name"] == ("Bob", "Ada")
    with sessions() as session:
        customer = session.get_one(Customer, 1)
        assert values(customer) == OLD
        assert customer.password == "secret"
        assert [row[0] for row in told(session, Customer)] == ["insert", "update", "update"]
        check_history(session, Customer)


@pytest.mark.spread(False)
def test_a_deleted_row_is_brought_back(sessions, ada):
    delete(sessions, Customer, 1)
    with sessions.begin() as session:
        report = restore(session, Customer, 1, at=at(0))
        assert summary(report) == [("insert", "Customer", 1, ["data", "email", "id", "name", "notes"])]
    with sessions() as session:
        assert values(session.get_one(Customer, 1)) == OLD
        assert [row[0] for row in told(session, Customer)] == ["insert", "update", "delete", "insert"]
        check_history(session, Customer)


@pytest.mark.parametrize("which", ["datetime", "number", "changeset", "text", "version"])
def test_the_state_can_be_named_in_many_ways(sessions, ada, which):
    with sessions.begin() as session:
        version = versions_of(session, Customer, 1)[0]
        names = {"datetime": at(0.5), "number": 1, "changeset": version.audit_changeset_id}
        names["text"] = str(version.audit_changeset_id)
        if which == "version":
            restore(session, version)
        else:
            restore(session, Customer, "1", at=names[which])
    with sessions() as session:
        assert values(session.get_one(Customer, 1)) == OLD


def test_a_row_in_that_state_is_left_alone(sessions, ada):
    with sessions.begin() as session:
        report = restore(session, Customer, 1, at=at(1))
        assert not report
        assert list(report) == []
    with sessions() as session:
        assert len(told(session, Customer)) == 2


def test_a_dry_run_reports_the_same_and_changes_nothing(sessions, ada):
    with sessions.begin() as session:
        customer = session.get_one(Customer, 1)
        first = restore(session, Customer, 1, at=at(0), dry_run=True)
        assert not session.dirty
        assert not session.new
        assert customer.name == "Bob"
        assert restore(session, Customer, 1, at=at(0)) == first


def test_what_the_session_holds_is_flushed_first(sessions, ada):
    with sessions.begin() as session:
        customer = session.get_one(Customer, 1)
        customer.name = "Eve"
        restore(session, Customer, 1, at=at(0))
        assert customer.name == "Ada"


def test_a_stale_object_is_seen_as_the_database_has_it(sessions, ada):
    with sessions(expire_on_commit=False) as session:
        customer = session.get_one(Customer, 1)
        session.commit()
        with sessions.begin() as other:
            other.get_one(Customer, 1).name = "Eve"
        restore(session, Customer, 1, at=at(1))
        session.commit()
        assert customer.name == "Bob"
    with sessions() as session:
        assert session.get_one(Customer, 1).name == "Bob"


@pytest.mark.spread(False)
def test_a_json_null_is_not_sql_null(sessions):
    with sessions.begin() as session:
        session.add_all([Customer(id=1, data=sa.JSON.NULL), Customer(id=2, data=sa.null())])
    nulls = sa.select(Customer.data.is_(None)).order_by(Customer.id)
    with sessions() as session:
        before = session.scalars(nulls).all()
    for key in (1, 2):
        with sessions.begin() as session:
            session.get_one(Customer, key).data = {"n": 1}
    with sessions.begin() as session:
        restore(session, Customer, 1, at=1)
        restore(session, Customer, 2, at=1)
    with sessions() as session:
        assert session.scalars(nulls).all() == before
    for key in (1, 2):
        delete(sessions, Customer, key)
    with sessions.begin() as session:
        restore(session, Customer, 1, at=1)
        restore(session, Customer, 2, at=1)
    with sessions() as session:
        assert session.scalars(nulls).all() == before


# --- why, and by whom -------------------------------------------------------------------------------------------


def test_a_restore_tells_its_source(sessions, ada):
    with sessions() as session, AuditContextManager(user_id="eve"):
        restore(session, Customer, 1, at=at(0))
        session.commit()
        version = versions_of(session, Customer, 1)[-1]
        assert version.audit_reason == f"restored from version 1 of {at(0).isoformat()}"
        assert version.audit_changed_by == "eve"


def test_a_reason_of_the_context_precedes(sessions, ada):
    with sessions() as session, AuditContextManager(reason="asked for"):
        restore(session, Customer, 1, at=at(0))
        session.commit()
        assert versions_of(session, Customer, 1)[-1].audit_reason == "asked for"


def test_the_reason_is_that_of_the_restored_rows_alone(sessions, ada):
    with sessions() as session:
        session.add(other := Customer(id=2))
        session.commit()
        restore(session, Customer, 1, at=at(0), include=["tags"])
        other.name = "Carl"
        session.add(tag := Tag(id=9))
        other.tags.append(tag)
        session.commit()
        assert versions_of(session, Customer, 2)[-1].audit_reason is None
        assert versions_of(session, Tag, 9)[-1].audit_reason is None
        session.get_one(Customer, 1).name = "Dan"
        session.commit()
        assert versions_of(session, Customer, 1)[-1].audit_reason is None


@pytest.mark.parametrize("nested", [True, False], ids=["savepoint", "transaction"])
def test_a_rollback_forgets_the_reason(sessions, ada, nested):
    with sessions() as session:
        customer = session.get_one(Customer, 1)
        if nested:
            with session.begin_nested() as savepoint:
                restore(session, Customer, 1, at=at(0))
                savepoint.rollback()
        else:
            restore(session, Customer, 1, at=at(0))
            session.rollback()
        customer.name = "Dan"
        session.commit()
        assert versions_of(session, Customer, 1)[-1].audit_reason is None


@pytest.mark.parametrize("way", [restore, sqlaudit.undo])
def test_what_was_done_is_in_the_database_and_in_history_on_return(sessions, ada, way):
    with sessions() as session:
        customer = session.get_one(Customer, 1)
        last = versions_of(session, Customer, 1)[-1].audit_changeset_id
        if way is restore:
            restore(session, Customer, 1, at=at(0))
        else:
            sqlaudit.undo(session, last)
        assert not session.dirty
        with session.no_autoflush:
            assert session.scalar(sa.select(Customer.name)) == "Ada"
            assert versions_of(session, Customer, 1)[-1].name == "Ada"
        session.rollback()
        assert customer.name == "Bob"
        assert len(versions_of(session, Customer, 1)) == 2


def test_a_restore_needs_no_further_reason(sessions, ada):
    sqlaudit.set_config(SQLAuditConfig(clock=Clock(), require_reason=True))
    with sessions() as session:
        restore(session, Customer, 1, at=1)
        session.commit()
        restore(session, Customer, 1, at=2)
        session.get_one(Tag, 1) if session.get(Tag, 1) else session.add(Tag(id=1))
        with pytest.raises(ContextError, match="Tag"):
            session.flush()


# --- what is related --------------------------------------------------------------------------------------------


@pytest.fixture
def graph(sessions):
    """Second 0: Ada in a region with two orders, lines and tags; 1: everything changes."""
    with sessions.begin() as session:
        north = Region(id=1, name="north")
        red, blue = Tag(id=1, text="red"), Tag(id=2, text="blue")
        ada = Customer(id=1, name="Ada", region=north, tags=[red, blue])
        first = Order(id=1, text="first", customer=ada, lines=[Line(number=1, text="1"), Line(number=2, text="2")])
        session.add_all([ada, Customer(id=2, name="Bob"), first, Order(id=2, text="second", customer=ada)])
    with sessions.begin() as session:
        ada, bob = session.get_one(Customer, 1), session.get_one(Customer, 2)
        first, second = session.get_one(Order, 1), session.get_one(Order, 2)
        first.text = "changed"
        first.lines.remove(first.lines[0])
        first.lines.append(Line(number=3))
        second.customer = bob
        session.add(Order(id=3, customer=ada, text="late", lines=[Line(number=1)]))
        green = Tag(id=3, text="green")
        ada.tags = [session.get_one(Tag, 1), green]
        session.flush()
        session.delete(session.get_one(Tag, 2))
        ada.region = None
        session.flush()
        session.delete(session.get_one(Region, 1))
        ada.name = "Ada L."


def state_of(session: Session) -> dict[str, Any]:
    """Return all that the database holds of the graph."""
    tables = [Region, Customer, Order, Line, Tag, Note]
    rows = {model.__name__: [tuple(r) for r in session.execute(sa.select(model.__table__))] for model in tables}
    return {
        **{name: sorted(found, key=repr) for name, found in rows.items()},
        "links": sorted(tuple(row) for row in session.execute(sa.select(customer_tags))),
    }


def check_all(session: Session) -> None:
    for source in (Region, Customer, Order, Line, Tag, Note, customer_tags):
        check_history(session, source)


@pytest.mark.spread(False)
def test_related_rows_are_as_they_were(sessions, graph):
    with sessions.begin() as session:
        report = restore(session, Customer, 1, at=at(0), include=["orders.lines", "tags", "region"])
        assert summary(report) == [
            ("delete", "Line", (1, 3), ["number", "order_id"]),
            ("delete", "Line", (3, 1), ["number", "order_id"]),
            ("delete", "Order", 3, ["customer_id", "id", "text"]),
            ("delete", "customer_tags", (1, 3), ["customer_id", "tag_id"]),
            ("insert", "Line", (1, 1), ["number", "order_id", "text"]),
            ("insert", "Region", 1, ["id", "name"]),
            ("insert", "Tag", 2, ["id", "text"]),
            ("insert", "customer_tags", (1, 2), ["customer_id", "tag_id"]),
            ("update", "Customer", 1, ["name", "region_id"]),
            ("update", "Order", 1, ["text"]),
            ("update", "Order", 2, ["customer_id"]),
        ]
        ada = session.get_one(Customer, 1)
        assert sorted(order.id for order in ada.orders) == [1, 2]
        assert sorted(tag.text for tag in ada.tags) == ["blue", "red"]
        assert ada.region.name == "north"
        assert sorted(line.number for line in session.get_one(Order, 1).lines) == [1, 2]
        assert session.get_one(Tag, 3).text == "green"
    with sessions() as session:
        check_all(session)
        reasons = {
            reason
            for model in (Customer, Order, Line, Tag, Region)
            for reason in session.scalars(
                sa.select(history_of(model).audit_reason).where(history_of(model).valid_from == at(2))
            )
        }
        links = Base.metadata.tables["customer_tags_history"]
        reasons |= set(session.scalars(sa.select(links.c.audit_reason).where(links.c.valid_from == at(2))))
        assert reasons == {f"restored from version 1 of {at(0).isoformat()}, with orders, region, tags"}


def test_related_rows_in_the_session_are_seen_as_restored(sessions, graph):
    with sessions.begin() as session:
        ada = session.get_one(Customer, 1)
        assert [[line.number for line in order.lines] for order in ada.orders]
        assert [tag.customers for tag in ada.tags]
        restore(session, Customer, 1, at=at(0), include=["orders.lines", "tags", "region"])
        assert sorted(order.id for order in ada.orders) == [1, 2]
        assert sorted(tag.text for tag in ada.tags) == ["blue", "red"]
        assert ada.region.name == "north"
        assert sorted(line.number for line in session.get_one(Order, 1).lines) == [1, 2]


def test_collections_in_the_session_lose_what_is_undone(sessions, graph):
    with sessions.begin() as session:
        session.add_all([Customer(id=8), Tag(id=8)])
    with sessions.begin() as session:
        customer, tag = session.get_one(Customer, 8), session.get_one(Tag, 8)
        customer.tags.append(Tag(id=9))
        tag.customers.append(Customer(id=9))
        session.flush()
        changeset = versions_of(session, Tag, 9)[0].audit_changeset_id
    with sessions.begin() as session:
        customer, tag = session.get_one(Customer, 8), session.get_one(Tag, 8)
        assert customer.tags
        assert tag.customers
        undo(session, changeset)
        assert not customer.tags
        assert not tag.customers


def test_without_include_related_rows_are_left_alone(sessions, graph):
    with sessions.begin() as session:
        report = restore(session, Order, 1, at=at(0))
        assert {item.resource_type for item in report} == {"Order"}
    with sessions() as session:
        assert sorted(line.number for line in session.get_one(Order, 1).lines) == [2, 3]


@pytest.mark.spread(False)
def test_a_deleted_tree_is_brought_back(sessions, graph):
    with sessions.begin() as session:
        before = state_of(session)
        bob = session.get_one(Customer, 2)
        ada = session.get_one(Customer, 1)
        ada.tags.clear()
        session.delete(ada)
        session.delete(bob)
    with sessions.begin() as session:
        restore(session, Customer, 1, at=at(1), include=("orders.lines", "tags"))
        restore(session, Customer, 2, at=at(1), include="orders")
    with sessions() as session:
        after = state_of(session)
        assert after == before
        check_all(session)


def test_paths_may_go_in_circles(sessions, graph):
    with sessions.begin() as session:
        restore(session, Order, 1, at=at(0), include=["customer.orders.customer.region"])
    with sessions() as session:
        assert session.get_one(Customer, 1).region.name == "north"
        assert session.get_one(Order, 2).customer_id == 1


def test_a_row_that_was_there_all_along_is_not_deleted(sessions):
    with sessions.begin() as session:
        session.add(Customer(id=1))
    with sessions() as session, sqlaudit.tracking_disabled(session):
        session.add(Order(id=1, customer_id=1))
        session.commit()
    with sessions.begin() as session:
        assert not restore(session, Customer, 1, at=at(0), include=["orders"])


def test_a_row_that_must_go_takes_along_what_the_model_says(sessions, graph):
    with sessions.begin() as session:
        report = restore(session, Customer, 1, at=at(0), include=["orders", "region"], dry_run=True)
        assert ("delete", "Line", (3, 1), ["number", "order_id"]) in summary(report)
        assert restore(session, Customer, 1, at=at(0), include=["orders", "region"]) == report
    with sessions() as session:
        assert session.get(Order, 3) is None
        check_all(session)


def test_a_foreign_key_alone_orders_what_is_brought_back(sessions):
    with sessions.begin() as session:
        session.add(Customer(id=1))
        session.flush()
        session.add(Note(id=1, customer_id=1))
    with sessions.begin() as session:
        session.delete(session.get_one(Note, 1))
        session.flush()
        session.delete(session.get_one(Customer, 1))
    with sessions.begin() as session:
        with pytest.raises(QueryError, match="customers"):
            restore(session, Note, 1, at=at(0))
        changeset = versions_of(session, Note, 1)[-1].audit_changeset_id
        sqlaudit.undo(session, changeset)
    with sessions() as session:
        assert session.get_one(Note, 1).customer_id == 1
        check_all(session)


# --- kinds of models --------------------------------------------------------------------------------------------


class Kinds(DeclarativeBase):
    pass


class Point:
    def __init__(self, x: int | None, y: int | None) -> None:
        self.x, self.y = x, y

    def __composite_values__(self) -> tuple[int | None, int | None]:
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.__composite_values__() == other.__composite_values__()

    __hash__ = None


@sqlaudit.track_table()
class Gadget(Kinds):
    """Has columns that the database, or the mapper, gives values."""

    __tablename__ = "gadgets"
    __mapper_args__ = {"version_id_col": sa.Column("counter", sa.Integer, nullable=False)}

    id: Mapped[int] = mapped_column(primary_key=True)
    counter = __mapper_args__["version_id_col"]
    size: Mapped[int] = mapped_column(default=1)
    double: Mapped[int | None] = mapped_column(sa.Computed("size * 2", persisted=True))
    touched: Mapped[int | None] = mapped_column(default=0, onupdate=99)
    kind: Mapped[str] = mapped_column(sa.String(10), server_default="plain")
    x: Mapped[int | None]
    y: Mapped[int | None]
    point = composite(Point, "x", "y")


@sqlaudit.track_table()
class Animal(Kinds):
    __tablename__ = "animals"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str | None] = mapped_column(sa.String(50))


class Dog(Animal):
    __tablename__ = "dogs"
    __mapper_args__ = {"polymorphic_identity": "dog"}

    id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
    breed: Mapped[str | None] = mapped_column(sa.String(50))


class Puppy(Dog):
    __tablename__ = "puppies"
    __mapper_args__ = {"polymorphic_identity": "puppy"}

    id: Mapped[int] = mapped_column(sa.ForeignKey(Dog.id), primary_key=True)
    weeks: Mapped[int | None]


class Bird(Animal):
    __mapper_args__ = {"polymorphic_identity": "bird"}

    wings: Mapped[int | None]


@sqlaudit.track_table()
class Vehicle(Kinds):
    __tablename__ = "vehicles"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table()
class Boat(Vehicle):
    __tablename__ = "boats"
    __mapper_args__ = {"concrete": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    length: Mapped[int | None]


@sqlaudit.track_table()
class Node(Kinds):
    """A tree."""

    __tablename__ = "nodes"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("nodes.id"))
    children: Mapped[list["Node"]] = relationship(cascade="all")


@sqlaudit.track_table()
class Leaf(Kinds):
    """A tree, of which nothing but the foreign key tells."""

    __tablename__ = "leaves"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("leaves.id"))


@sqlaudit.track_table()
class Team(Kinds):
    """Refers to one of its members."""

    __tablename__ = "teams"

    id: Mapped[int] = mapped_column(primary_key=True)
    captain_id: Mapped[int | None] = mapped_column(sa.ForeignKey("members.id", use_alter=True, name="captain"))


@sqlaudit.track_table()
class Member(Kinds):
    __tablename__ = "members"

    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(sa.ForeignKey(Team.id))


@pytest.fixture
def kinds(engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
    with recording(engine, Kinds.metadata) as sessions:
        yield sessions


@pytest.mark.spread(False)
def test_columns_that_others_give_values_do_not_stand_in_the_way(kinds):
    with kinds.begin() as session:
        session.add(Gadget(id=1, size=2, x=1, y=2))
    with kinds.begin() as session:
        gadget = session.get_one(Gadget, 1)
        gadget.size, gadget.kind, gadget.x = 3, "fancy", 9
    with kinds.begin() as session:
        gadget = session.get_one(Gadget, 1)
        assert (gadget.touched, gadget.point) == (99, Point(9, 2))
        report = restore(session, Gadget, 1, at=at(0))
        assert summary(report) == [("update", "Gadget", 1, ["kind", "size", "touched", "x"])]
        assert gadget.point == Point(1, 2)
    with kinds() as session:
        gadget = session.get_one(Gadget, 1)
        assert (gadget.size, gadget.double, gadget.touched, gadget.kind) == (2, 4, 0, "plain")
        assert gadget.counter == 3
    delete(kinds, Gadget, 1)
    with kinds.begin() as session:
        restore(session, Gadget, 1, at=at(1))
    with kinds() as session:
        gadget = session.get_one(Gadget, 1)
        assert (gadget.size, gadget.double, gadget.touched, gadget.kind) == (3, 6, 99, "fancy")
        check_history(session, Gadget)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (Animal, {"name": "a"}),
        (Dog, {"name": "a", "breed": "b"}),
        (Puppy, {"name": "a", "breed": "b", "weeks": 3}),
        (Bird, {"name": "a", "wings": 2}),
        (Vehicle, {"name": "a"}),
        (Boat, {"name": "a", "length": 4}),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_a_restored_object_is_of_its_class(kinds, model, values):
    root = model if model in (Vehicle, Boat) else Animal
    with kinds.begin() as session:
        session.add(model(id=1, **values))
    with kinds.begin() as session:
        obj = session.get_one(root, 1)
        for name, value in values.items():
            setattr(obj, name, None if value == "b" else value * 2)
    with kinds.begin() as session:
        restore(session, root, 1, at=at(0))
    with kinds() as session:
        obj = session.get_one(root, 1)
        assert type(obj) is model
        assert {name: getattr(obj, name) for name in values} == values
    delete(kinds, root, 1)
    with kinds.begin() as session:
        report = restore(session, model, 1, at=at(0))
        assert report.items[0].resource_type == model.__name__
    with kinds() as session:
        obj = session.get_one(root, 1)
        assert type(obj) is model
        assert {name: getattr(obj, name) for name in values} == values
        check_history(session, root)


def test_a_row_that_has_become_another_class_is_refused(kinds):
    with kinds.begin() as session:
        session.add(Bird(id=1))
    delete(kinds, Animal, 1)
    with kinds.begin() as session:
        session.add(Dog(id=1))
    with kinds.begin() as session:
        with pytest.raises(QueryError, match="was a Bird"):
            restore(session, Animal, 1, at=at(0))
        with pytest.raises(QueryError, match="Dog"):
            restore(session, Dog, 1, at=at(0))


@pytest.mark.parametrize("model", [Node, Leaf])
def test_a_tree_can_be_made_and_ended(kinds, model):
    with kinds.begin() as session:
        for key, parent in ((3, None), (2, 3), (1, 2), (4, 1)):
            session.add(model(id=key, parent_id=parent))
            session.flush()
    tree = sa.select(model.id, model.parent_id).order_by(model.id)
    with kinds() as session:
        first = versions_of(session, model, 1)[0].audit_changeset_id
        before = session.execute(tree).all()
    with kinds.begin() as session:
        sqlaudit.undo(session, first)
    with kinds() as session:
        assert not session.execute(tree).all()
        second = versions_of(session, model, 1)[-1].audit_changeset_id
    with kinds.begin() as session:
        sqlaudit.undo(session, second)
    with kinds() as session:
        assert session.execute(tree).all() == before
        check_history(session, model)


def test_a_tree_is_included_down_to_a_depth(kinds):
    with kinds.begin() as session:
        session.add(Node(id=1, children=[Node(id=2, children=[Node(id=3)])]))
    delete(kinds, Node, 1)
    with kinds.begin() as session:
        restore(session, Node, 1, at=at(0), include=["children.children.children"])
    with kinds() as session:
        assert session.get_one(Node, 1).children[0].children[0].id == 3


def test_rows_that_refer_to_one_another_can_be_made_and_ended(kinds):
    with kinds.begin() as session:
        session.add(team := Team(id=1))
        session.flush()
        session.add(Member(id=1, team_id=1))
        session.flush()
        team.captain_id = 1
    with kinds.begin() as session:
        first = versions_of(session, Member, 1)[0].audit_changeset_id
        sqlaudit.undo(session, first)
    with kinds.begin() as session:
        assert session.get(Team, 1) is None
        assert session.get(Member, 1) is None
        sqlaudit.undo(session, versions_of(session, Member, 1)[-1].audit_changeset_id)
    with kinds() as session:
        assert session.get_one(Team, 1).captain_id == 1
        assert session.get_one(Member, 1).team_id == 1
        check_history(session, Team)
        check_history(session, Member)


@pytest.mark.spread(False)
@pytest.mark.parametrize(("optional", "mandatory"), [("a", "b"), ("b", "a")])
def test_of_references_in_a_circle_those_that_can_be_null_give_way(engine, base, optional, mandatory):
    class Row:
        id: Mapped[int] = mapped_column(primary_key=True)

    @sqlaudit.track_table()
    class Optional(Row, base):
        __tablename__ = optional

        other_id: Mapped[int | None] = mapped_column(sa.ForeignKey(f"{mandatory}.id", use_alter=True, name="other"))

    @sqlaudit.track_table()
    class Mandatory(Row, base):
        __tablename__ = mandatory

        other_id: Mapped[int] = mapped_column(sa.ForeignKey(f"{optional}.id"))

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(one := Optional(id=1))
            session.flush()
            session.add(Mandatory(id=1, other_id=1))
            session.flush()
            one.other_id = 1
        for count in (0, 1, 0):
            with sessions.begin() as session:
                undo(session, changesets(session, newest_first=True, limit=1)[0].changeset_id)
            with sessions() as session:
                for model in (Optional, Mandatory):
                    assert session.scalars(sa.select(model.other_id)).all() == [1] * count
                    check_history(session, model)


class Always(DeclarativeBase):
    pass


@sqlaudit.track_table()
class Ticket(Always):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(sa.Identity(always=True), primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))


@pytest.mark.requires("identity_always")
def test_a_key_that_the_database_always_makes_is_brought_back(engine):
    with recording(engine, Always.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Ticket(text="a"), Ticket(text="b")])
        for key in (1, 2):
            delete(sessions, Ticket, key)
        with sessions.begin() as session:
            changesets = {versions_of(session, Ticket, key)[-1].audit_changeset_id for key in (1, 2)}
            for changeset in changesets:
                sqlaudit.undo(session, changeset)
        with sessions() as session:
            assert session.get_one(Ticket, 1).text == "a"
            assert session.get_one(Ticket, 2).text == "b"
            check_history(session, Ticket)
            session.add(Ticket(id=7))
            with pytest.raises(sa.exc.DBAPIError):
                session.flush()


class Checked(DeclarativeBase):
    pass


@sqlaudit.track_table()
class Rule(Checked):
    __tablename__ = "rules"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))
    forbidden: bool = False

    @validates("text")
    def check(self, name: str, value: str) -> str:
        if self.forbidden:
            raise ValueError(value)
        return value


@pytest.mark.parametrize("deleted", [False, True])
def test_what_a_model_refuses_changes_nothing(engine, monkeypatch, deleted):
    with recording(engine, Checked.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Rule(id=1, text="old"))
        with sessions.begin() as session:
            rule = session.get_one(Rule, 1)
            session.delete(rule) if deleted else setattr(rule, "text", "new")
        monkeypatch.setattr(Rule, "forbidden", True)
        with sessions() as session:
            with pytest.raises(ValueError, match="old"):
                restore(session, Rule, 1, at=1)
            assert not session.new
            assert not session.dirty
            session.commit()
            assert len(versions_of(session, Rule, 1)) == 2


# --- what stands in the way -------------------------------------------------------------------------------------


class Secrets(DeclarativeBase):
    pass


@sqlaudit.track_table(exclude=["hash"])
class Account(Secrets):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    hash: Mapped[str] = mapped_column(sa.String(50))
    level: Mapped[int] = mapped_column()


@pytest.fixture
def secrets(engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
    with recording(engine, Secrets.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Account(id=1, name="a", hash="h", level=1))
        yield sessions


@pytest.mark.parametrize("values", [{"hash": "new"}, {Account: {"hash": "new"}}], ids=["plain", "by class"])
def test_an_excluded_column_that_cannot_be_null_needs_a_value(secrets, values):
    delete(secrets, Account, 1)
    with secrets.begin() as session:
        with pytest.raises(QueryError, match="hash"):
            restore(session, Account, 1, at=at(0))
        assert not session.new
        restore(session, Account, 1, at=at(0), values=values)
    with secrets() as session:
        account = session.get_one(Account, 1)
        assert (account.hash, account.name) == ("new", "a")


def test_an_excluded_column_is_left_alone(secrets):
    with secrets.begin() as session:
        account = session.get_one(Account, 1)
        account.name, account.hash = "b", "other"
    with secrets.begin() as session:
        restore(session, Account, 1, at=at(0), values={"hash": "new"})
    with secrets() as session:
        account = session.get_one(Account, 1)
        assert (account.hash, account.name) == ("other", "a")


def test_an_excluded_reference_is_followed_by_the_database_alone(engine):
    class Base(DeclarativeBase):
        pass

    @sqlaudit.track_table()
    class Owner(Base):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True)
        pets: Mapped[list["Pet"]] = relationship(back_populates="owner")

    @sqlaudit.track_table(exclude=["owner_id"])
    class Pet(Base):
        __tablename__ = "pets"

        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int] = mapped_column(sa.ForeignKey("owners.id"))
        owner: Mapped[Owner] = relationship(back_populates="pets")

    with recording(engine, Base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Owner(id=1), Owner(id=2, pets=[Pet(id=2)])])
        with sessions.begin() as session:
            session.add(Pet(id=1, owner_id=1))
        with sessions.begin() as session:
            for model, path in ((Owner, "pets"), (Pet, "owner")):
                with pytest.raises(QueryError, match=f"no relationship '{path}' that can be included"):
                    restore(session, model, 2, at=1, include=[path])
            changeset = versions_of(session, Owner, 1)[0].audit_changeset_id
            with pytest.raises(UndoConflictError, match=r"Pet 1"):
                undo(session, changeset)
            with pytest.raises(QueryError, match=r"Pet 1 refers to Owner"):
                undo(session, changeset, force=True)
            assert not session.deleted
            undo(session, versions_of(session, Pet, 1)[0].audit_changeset_id)
            undo(session, changeset)
        with sessions() as session:
            assert not session.scalars(sa.select(Owner)).all()
    Base.registry.dispose()


def test_a_column_that_old_versions_lack_is_named(secrets, engine):
    history = history_of(Account).__table__
    with secrets.begin() as session:
        session.get_one(Account, 1).level = 2
    with engine.begin() as connection:  # which has no hooks
        connection.execute(sa.update(history).where(history.c.audit_version == 1).values(level=None))
    with secrets.begin() as session:
        with pytest.raises(QueryError, match="level"):
            restore(session, Account, 1, at=at(0))
        restore(session, Account, 1, at=at(0), values={"level": 3})
    with secrets() as session:
        assert session.get_one(Account, 1).level == 3
    delete(secrets, Account, 1)
    with secrets.begin() as session:
        with pytest.raises(QueryError, match="level"):
            restore(session, Account, 1, at=at(0), values={"hash": "h"})
        restore(session, Account, 1, at=at(0), values={"hash": "h", "level": 4})
    with secrets() as session:
        assert session.get_one(Account, 1).level == 4


@pytest.mark.spread(False)
def test_a_unique_value_that_another_row_has_now_is_named(sessions, ada):
    with sessions.begin() as session:
        session.get_one(Customer, 1).email = "b"
        session.flush()
        session.add(Customer(id=2, email="a"))
    with (
        sessions.begin() as session,
        pytest.raises(QueryError, match=r"Customer 1 cannot get back its email.*Customer 2"),
    ):
        restore(session, Customer, 1, at=at(0))


@pytest.mark.spread(False)
def test_a_given_value_that_is_not_unique_is_named(engine, base):
    @sqlaudit.track_table(exclude=["token"])
    class Key(base):
        __tablename__ = "keys"

        id: Mapped[int] = mapped_column(primary_key=True)
        token: Mapped[str] = mapped_column(sa.String(50), unique=True)

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Key(id=number, token=f"t{number}") for number in (1, 2, 3)])
        with sessions.begin() as session:
            for number in (1, 2):
                session.delete(session.get_one(Key, number))
        with sessions.begin() as session:
            changeset = changesets(session, newest_first=True, limit=1)[0].changeset_id
            with pytest.raises(QueryError, match=r"Key 1 cannot get back its token.*Key 3"):
                restore(session, Key, 1, at=1, values={"token": "t3"})
            with pytest.raises(QueryError, match=r"Key 2 cannot get back its token.*Key 1"):
                undo(session, changeset, values={Key: {"token": "t4"}})
            assert not session.new


@pytest.mark.requires("case_insensitive")
def test_values_that_the_database_takes_for_equal_are_not_unique(engine, base):
    @sqlaudit.track_table()
    class Account(base):
        __tablename__ = "accounts"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50), unique=True)

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Account(id=1, name="a"))
        with sessions.begin() as session:
            session.delete(session.get_one(Account, 1))
        with sessions.begin() as session:
            session.add(Account(id=2, name="A"))
        with (
            sessions.begin() as session,
            pytest.raises(QueryError, match=r"Account 1 cannot .* name, because Account 2"),
        ):
            restore(session, Account, 1, at=1)


def test_a_row_that_refers_to_one_that_is_gone_is_named(sessions, graph):
    with sessions.begin() as session:
        with pytest.raises(QueryError, match=r"Customer 1 would refer to a row of 'regions'"):
            restore(session, Customer, 1, at=at(0))
        assert not session.dirty


REFUSED = {
    "no instant": ((Customer, 1), QueryError, "at="),
    "before it began": ((Customer, 1, at(-9)), QueryError, "begins at"),
    "unknown key": ((Customer, 9, at(0)), QueryError, "no history"),
    "key of another type": ((Customer, "x", at(0)), QueryError, "no history"),
    "key of another width": ((Customer, (1, 2), at(0)), QueryError, "no history"),
    "unknown version": ((Customer, 1, 99), QueryError, "versions 1 to 2"),
    "negative version": ((Customer, 1, -1), QueryError, "version -1"),
    "bool": ((Customer, 1, True), QueryError, "version number"),
    "float": ((Customer, 1, 1.5), QueryError, "version number"),
    "text": ((Customer, 1, "yesterday"), QueryError, "changeset id"),
    "unknown changeset": ((Customer, 1, UUID(int=1)), QueryError, "changeset"),
    "untracked class": ((Untracked, 1, at(0)), TrackingError, "not a tracked model"),
    "unmapped class": ((str, 1, at(0)), TrackingError, "not a tracked model"),
    "name of a class": (("Customer", 1, at(0)), QueryError, "not a version"),
    "nothing": ((None,), QueryError, "not a version"),
    "untracked object": ((Untracked(id=1),), TrackingError, "not a tracked model"),
    "live object": ((Customer(id=1),), QueryError, "live row"),
    "history class": ((history_of(Customer), 1, at(0)), QueryError, "history class"),
    "new version": ((history_of(Customer)(),), QueryError, "not read from a history"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(sessions, ada, case):
    (version, *rest), error, hint = REFUSED[case]
    key, when = [*rest, None, None][:2]
    with sessions() as session, pytest.raises(error, match=hint):
        restore(session, version, key, at=when)


@pytest.mark.parametrize("path", ["order", "orders.line", "orders.lines.text", "name", "title", "", "orders."])
def test_a_path_that_does_not_exist_is_refused(sessions, ada, path):
    with sessions() as session, pytest.raises(QueryError, match=r"lines|orders, region, tags|none"):
        restore(session, Customer, 1, at=at(0), include=[path])


@pytest.mark.parametrize("values", [{"nam": 1}, {Untracked: {"id": 1}}, {Customer: 3}, {3: 4}], ids=repr)
def test_values_for_what_does_not_exist_are_refused(sessions, ada, values):
    with sessions() as session, pytest.raises(SQLAuditError):
        restore(session, Customer, 1, at=at(0), values=values)


def test_a_text_that_is_no_changeset_id_is_refused(sessions, ada):
    with sessions() as session, pytest.raises(QueryError, match="neither a datetime nor a changeset id"):
        restore(session, Customer, 1, at="2024-01-01")


def test_a_tombstone_is_no_state(sessions, ada):
    delete(sessions, Customer, 1)
    with sessions() as session:
        version = versions_of(session, Customer, 1)[-1]
        with pytest.raises(QueryError, match=r"version\.previous"):
            restore(session, version)
        with pytest.raises(QueryError, match="no state"):
            restore(session, Customer, 1, at=at(2))
        assert restore(session, version.previous)


def test_a_version_has_its_instant(sessions, ada):
    with sessions() as session, pytest.raises(QueryError, match="alone"):
        restore(session, versions_of(session, Customer, 1)[0], at=at(0))


def test_a_session_without_hooks_is_refused(sessions, ada, engine):
    with Session(engine) as session, pytest.raises(SQLAuditError, match="register_hooks"):
        restore(session, Customer, 1, at=at(0))


def test_a_session_that_is_flushing_is_refused(sessions, ada):
    with sessions() as session:

        @sa.event.listens_for(session, "before_flush")
        def restore_too(session: Session, context: Any, instances: Any) -> None:
            assert restore(session, Customer, 1, at=at(0), dry_run=True)
            restore(session, Customer, 1, at=at(0))

        session.add(Region(id=9))
        with pytest.raises(QueryError, match="is flushing"):
            session.flush()


def test_a_sharded_session_is_refused(sessions, ada, engine):
    session = ShardedSession(
        shards={"one": engine},
        shard_chooser=lambda *args, **kw: "one",
        identity_chooser=lambda *args, **kw: ["one"],
        execute_chooser=lambda context: ["one"],
    )
    with session, pytest.raises(QueryError, match="shard"):
        restore(session, Customer, 1, at=at(0))


def test_objects_of_the_past_are_no_versions(sessions, ada):
    with sessions() as session:
        past = session.scalars(as_of(Customer, at(0))).one()
        with pytest.raises(ReadOnlyError, match="at="):
            restore(session, past)
        with time_travel(session, at(0)) as travelled, pytest.raises(ReadOnlyError):
            restore(travelled, Customer, 1, at=at(0))


@pytest.mark.spread(False)
def test_an_async_session_restores_through_run_sync(async_engine):
    async def main() -> None:
        async with AsyncSession(async_engine) as session:
            session.add(Customer(id=1, name="Ada", orders=[Order(id=1)]))
            await session.commit()
            await session.delete(await session.get_one(Customer, 1))
            await session.commit()
            report = await session.run_sync(restore, Customer, 1, at=1, include=["orders"])
            await session.commit()
            assert len(report) == 2
            assert (await session.get_one(Customer, 1)).name == "Ada"
        await async_engine.dispose()

    sqlaudit.register_hooks()
    try:
        asyncio.run(main())
    finally:
        sqlaudit.unregister_hooks()


# --- in sets ----------------------------------------------------------------------------------------------------


def test_a_graph_takes_the_same_statements_whatever_its_size(sessions, engine):
    counts = []
    for key, size in ((1, 5), (2, 60)):
        with sessions.begin() as session:
            session.add(customer := Customer(id=key, name="Ada", region=Region(id=key)))
            for number in range(size):
                lines = [Line(number=n) for n in range(3)]
                customer.orders.append(Order(id=key * 1000 + number, text=str(number), lines=lines))
                customer.tags.append(Tag(id=key * 1000 + number))
        with sessions.begin() as session:
            customer = session.get_one(Customer, key)
            customer.tags.clear()
            for number, order in enumerate(list(customer.orders)):
                if number % 3 == 0:
                    customer.orders.remove(order)
                elif number % 3 == 1:
                    order.text = "changed"
                else:
                    order.lines[0].text = "changed"
                    order.lines.append(Line(number=9))
            late = [Order(id=key * 1000 + 500 + number, lines=[Line(number=1)]) for number in range(size)]
            customer.orders.extend(late)
            customer.tags.extend(Tag(id=key * 1000 + 500 + number) for number in range(size))
        with sessions.begin() as session, counted(engine) as statements:
            report = restore(session, Customer, key, at=1, include=["orders.lines", "tags", "region"])
            assert len(report) > 3 * size
            session.flush()
        counts.append(len(statements))
    assert counts[0] == counts[1] < 150
    with sessions() as session:
        check_all(session)
