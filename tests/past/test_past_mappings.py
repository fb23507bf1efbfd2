"""Every way to map a table has a past: hierarchies, schemas, names that need quotes, renamed columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship
from sqlmodel import Field, SQLModel

from clock import Clock, at
from sqlaudit import (
    AuditColumns,
    QueryError,
    SQLAuditConfig,
    as_of,
    register_hooks,
    set_config,
    time_travel,
    track_table,
    unregister_hooks,
)

pytestmark = pytest.mark.spread

Name = sa.String(50)


@pytest.fixture
def sessions(engine) -> Iterator[orm.sessionmaker[Session]]:
    maker = orm.sessionmaker(engine)
    register_hooks(maker)
    set_config(SQLAuditConfig(clock=Clock()))
    yield maker
    unregister_hooks(maker)


def pasts(session: Session, second: float) -> Iterator[tuple[Session, Any]]:
    """Give the two ways to read as of a second: a session, and what makes the select of a model."""
    yield session, lambda model: as_of(model, at(second))
    with time_travel(session, at(second)) as past:
        yield past, sa.select


# --- hierarchies ------------------------------------------------------------------------------------------------


def joined(base):
    @track_table()
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        name: Mapped[str | None] = mapped_column(Name)
        boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id"))
        team: Mapped[list["Person"]] = relationship()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column("person_id", sa.ForeignKey("person.id"), primary_key=True)
        salary: Mapped[int | None] = mapped_column("pay")
        __mapper_args__ = {"polymorphic_identity": "employee"}

    class Boss(Employee):
        __tablename__ = "boss"
        boss_key: Mapped[int] = mapped_column(sa.ForeignKey("employee.person_id"), primary_key=True)
        title: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_identity": "boss"}

    return Person, Employee, Boss


def single(base):
    @track_table()
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        name: Mapped[str | None] = mapped_column(Name)
        boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id"))
        team: Mapped[list["Person"]] = relationship()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Employee(Person):
        salary: Mapped[int | None] = mapped_column("pay")
        __mapper_args__ = {"polymorphic_identity": "employee"}

    class Boss(Employee):
        title: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_identity": "boss"}

    return Person, Employee, Boss


def told(found: Any) -> list[tuple[Any, ...]]:
    return sorted(
        (each.id, type(each).__name__, each.name, getattr(each, "salary", None), getattr(each, "title", None))
        for each in found
    )


def company(person: Any, employee: Any, boss: Any) -> list[Any]:
    """Someone of each class; the boss leads all of them."""
    three = person(id=1, name="p"), employee(id=2, name="e", salary=10), boss(id=3, name="b", salary=20, title="x")
    three[2].team = [three[0], three[1]]
    return list(three)


THEN = [(1, "Person", "p", None, None), (2, "Employee", "e", 10, None), (3, "Boss", "b", 20, "x")]


@pytest.fixture
def people(request, base, engine, sessions) -> tuple[Any, ...]:
    """Three classes of a hierarchy, with an object each, all changed in second 1 and gone in second 2."""
    classes = request.param(base)
    base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all(company(*classes))
        session.commit()
        for each in session.scalars(sa.select(classes[0])):
            each.name = "later"
            if isinstance(each, classes[1]):
                each.salary = 99
            if isinstance(each, classes[2]):
                each.title, each.team = "later", []
        session.commit()
        for each in session.scalars(sa.select(classes[0]).order_by(classes[0].id)):
            session.delete(each)
        session.commit()
    return classes


HIERARCHIES = pytest.mark.parametrize("people", [joined, single], ids=["joined", "single"], indirect=True)


@HIERARCHIES
def test_every_level_of_a_hierarchy_is_as_it_was(people, sessions):
    with sessions() as session:
        for place, model in enumerate(people):
            for read, of in pasts(session, 0):
                assert told(read.scalars(of(model))) == THEN[place:]
            for read, of in pasts(session, 2):
                assert told(read.scalars(of(model))) == []


@HIERARCHIES
def test_columns_of_every_level_are_criteria(people, sessions):
    _, employee, boss = people
    with sessions() as session:
        for read, of in pasts(session, 0):
            assert (
                told(read.scalars(of(boss).where(boss.name == "b", boss.salary == 20, boss.title == "x"))) == THEN[2:]
            )
            assert told(read.scalars(of(employee).where(employee.salary > 15))) == THEN[2:]
            columns = of(boss).with_only_columns(boss.id, boss.name, boss.salary, boss.title)
            assert read.execute(columns).all() == [(3, "b", 20, "x")]


@HIERARCHIES
def test_polymorphic_loads_are_as_they_were(people, sessions):
    person, _, boss = people
    everyone = orm.with_polymorphic(person, "*", flat=True)
    with sessions() as session:
        for read, of in pasts(session, 0):
            titled = of(person).join(everyone, everyone.id == person.id).where(everyone.Boss.title == "x")
            assert told(read.scalars(titled)) == THEN[2:]
            columns = titled.with_only_columns(everyone.name, everyone.Boss.title).order_by(everyone.id)
            assert read.execute(columns).all() == [("b", "x")]
        with time_travel(session, at(0)) as past:
            assert told(past.scalars(sa.select(everyone))) == THEN
            assert told(past.scalars(sa.select(orm.with_polymorphic(person, [boss], aliased=True)))) == THEN
            assert told([past.get_one(person, id) for id in (1, 2, 3)]) == THEN


@HIERARCHIES
def test_polymorphic_loads_after_the_rows_are_of_then_too(people, sessions):
    person, employee, boss = people
    eager = orm.selectin_polymorphic(person, [employee, boss])
    with sessions() as session:
        for second, expected in ((1, (3, "Boss", "later", 99, "later")), (0, THEN[2])):
            for read, of in pasts(session, second):
                assert told(read.scalars(of(person).options(eager)))[2] == expected
        with sessions() as fresh:
            assert fresh.scalars(sa.select(person).options(eager)).all() == []


@HIERARCHIES
@pytest.mark.parametrize("option", [orm.lazyload, orm.joinedload, orm.selectinload, orm.subqueryload])
def test_a_relationship_to_a_hierarchy_gives_objects_of_every_class(people, sessions, option):
    _, employee, boss = people
    with sessions() as session:
        for read, of in pasts(session, 0):
            leader = read.scalars(of(boss).options(option(boss.team))).unique().one()
            assert told(leader.team) == THEN[:2]
            sub = option(boss.team.of_type(employee)) if option is not orm.lazyload else option(boss.team)
            assert told(read.scalars(of(boss).options(sub)).unique().one().team) == THEN[:2]


@HIERARCHIES
def test_a_join_to_a_subclass_is_of_then(people, sessions):
    _, employee, boss = people
    with sessions() as session:
        for read, of in pasts(session, 0):
            joined = orm.aliased(employee)
            aliased = of(boss).join(boss.team.of_type(joined)).with_only_columns(boss.name, joined.name, joined.salary)
            assert read.execute(aliased).all() == [("b", "e", 10)]


def test_concrete_classes_have_a_past_each(base, engine, sessions):
    @track_table()
    class Animal(base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)

    @track_table()
    class Cat(Animal):
        __tablename__ = "cat"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        lives: Mapped[int]
        __mapper_args__ = {"concrete": True}

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all([Animal(id=1, name="a"), Cat(id=1, name="c", lives=9)])
        session.commit()
        for model in (Animal, Cat):
            session.scalars(sa.select(model)).one().name = "later"
        session.commit()
        for read, of in pasts(session, 0):
            assert read.scalars(of(Animal)).one().name == "a"
            cat = read.scalars(of(Cat).where(Cat.lives == 9)).one()
            assert (type(cat), cat.name) == (Cat, "c")
            both = of(Animal).join(Cat, Cat.id == Animal.id).with_only_columns(Animal.name, Cat.name)
            assert read.execute(both).all() == [("a", "c")]


def test_a_polymorphic_union_of_concrete_classes_is_of_then(engine, sessions):
    class Base(orm.DeclarativeBase):
        """Never disposed of: SQLAlchemy goes on asking a ConcreteBase."""

    @track_table()
    class Animal(ConcreteBase, Base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_identity": "animal", "concrete": True}

    @track_table()
    class Cat(Animal):
        __tablename__ = "cat"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        lives: Mapped[int]
        __mapper_args__ = {"polymorphic_identity": "cat", "concrete": True}

    Base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all([Animal(id=1, name="a"), Cat(id=2, name="c", lives=9)])
        session.commit()
        for each in session.scalars(sa.select(Animal)).all():
            each.name = "later"
        session.commit()
        for read, of in pasts(session, 0):
            found = read.scalars(of(Animal)).all()
            assert told(found) == [(1, "Animal", "a", None, None), (2, "Cat", "c", None, None)]


# --- keys, schemas and names ------------------------------------------------------------------------------------


def test_composite_keys_and_their_relationships(base, engine, sessions):
    @track_table()
    class House(base):
        __tablename__ = "house"
        street: Mapped[str] = mapped_column(Name, primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        color: Mapped[str] = mapped_column(Name)
        rooms: Mapped[list["Room"]] = relationship(back_populates="house", order_by="Room.name")

    @track_table()
    class Room(base):
        __tablename__ = "room"
        street: Mapped[str] = mapped_column(Name, primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str] = mapped_column(Name, primary_key=True)
        size: Mapped[int]
        house: Mapped[House] = relationship(back_populates="rooms")
        __table_args__ = (sa.ForeignKeyConstraint(["street", "number"], ["house.street", "house.number"]),)

    base.metadata.create_all(engine)
    with sessions() as session:
        house = House(street="a", number=1, color="red", rooms=[Room(name="k", size=1), Room(name="l", size=2)])
        session.add_all([house, House(street="a", number=2, color="blue")])
        session.commit()
        house.color = "green"
        session.delete(house.rooms[1])
        session.commit()
        key = sa.tuple_(House.street, House.number)
        for read, of in pasts(session, 0):
            for option in (orm.lazyload, orm.joinedload, orm.selectinload, orm.subqueryload):
                found = of(House).where(key.in_([("a", 1)])).options(option(House.rooms))
                past = read.scalars(found).unique().one()
                assert (past.color, [room.size for room in past.rooms]) == ("red", [1, 2])
                read.expunge_all()
            assert read.scalars(of(Room).where(Room.size == 2)).one().house.color == "red"
        with time_travel(session, at(0)) as past:
            assert past.get_one(Room, ("a", 1, "l")).size == 2
            assert past.get(House, {"street": "a", "number": 3}) is None


def customer_and_order(base: Any, schema: str | None) -> tuple[Any, Any]:
    prefix = "" if schema is None else f"{schema}."

    @track_table()
    class Customer(base):
        __tablename__ = "customer"
        __table_args__ = {"schema": schema}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        orders: Mapped[list["Order"]] = relationship(back_populates="customer")

    @track_table()
    class Order(base):
        __tablename__ = "orders"
        __table_args__ = {"schema": schema}
        id: Mapped[int] = mapped_column(primary_key=True)
        customer_id: Mapped[int] = mapped_column(sa.ForeignKey(f"{prefix}customer.id"))
        customer: Mapped[Customer] = relationship(back_populates="orders")

    return Customer, Order


def check_schema(session: Session, customer: Any, order: Any) -> None:
    """Fail unless a customer and its order are found as they were, whatever schema they lie in."""
    session.add(customer(id=1, name="then", orders=[order(id=1)]))
    session.commit()
    session.get_one(customer, 1).name = "later"
    session.delete(session.get_one(order, 1))
    session.commit()
    for read, of in pasts(session, 0):
        assert read.scalars(of(customer).join(customer.orders).where(order.id == 1)).one().name == "then"
        for option in (orm.lazyload, orm.joinedload, orm.selectinload):
            found = read.scalars(of(customer).options(option(customer.orders))).unique().one()
            assert [each.id for each in found.orders] == [1]
            read.expunge_all()
        alias = orm.aliased(order)
        columns = of(customer).join(alias, alias.customer_id == customer.id).with_only_columns(customer.name, alias.id)
        assert read.execute(columns).all() == [("then", 1)]
        assert read.execute(of(customer).where(~customer.orders.any())).all() == []


def test_a_schema_of_the_table(base, database, engine, sessions):
    customer, order = customer_and_order(base, database.other_schema)
    base.metadata.create_all(engine)
    with sessions() as session:
        check_schema(session, customer, order)


def test_a_schema_of_the_metadata(database, engine, sessions):
    class Base(orm.DeclarativeBase):
        metadata = sa.MetaData(schema=database.other_schema)

    @track_table()
    class Customer(Base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        orders: Mapped[list["Order"]] = relationship(back_populates="customer")

    @track_table()
    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customer.id"))
        customer: Mapped[Customer] = relationship(back_populates="orders")

    Base.metadata.create_all(engine)
    with sessions() as session:
        check_schema(session, Customer, Order)
    Base.registry.dispose()


@pytest.mark.parametrize("token", [None, "tenant"])
@pytest.mark.parametrize("where", ["engine", "session"])
def test_a_schema_that_is_translated(token, where, base, database, engine, sessions):
    customer, order = customer_and_order(base, token)
    translation = {token: database.other_schema}
    translated = engine.execution_options(schema_translate_map=translation)
    base.metadata.create_all(translated)
    sessions.configure(bind=translated)
    with sessions() as session:
        if where == "session":
            session.connection(execution_options={"schema_translate_map": translation})
        check_schema(session, customer, order)


def test_one_statement_for_many_translated_schemas(base, database, engine, sessions):
    customer, _ = customer_and_order(base, "tenant")
    schemas = (None, database.other_schema)
    for schema in schemas:
        translated = engine.execution_options(schema_translate_map={"tenant": schema})
        base.metadata.create_all(translated)
        sessions.configure(bind=translated)
        with sessions() as session:
            session.add(customer(id=1, name=f"in {schema}"))
            session.commit()
            session.delete(session.get_one(customer, 1))
            session.commit()
    for schema, second in zip(schemas, (0, 2), strict=True):
        with sessions(bind=engine.execution_options(schema_translate_map={"tenant": schema})) as session:
            for read, of in pasts(session, second):
                assert read.scalars(of(customer)).one().name == f"in {schema}"


def test_tables_of_one_name_in_two_schemas_in_one_statement(base, database, engine, sessions):
    def customer(name, schema):
        columns = {"id": mapped_column(sa.Integer, primary_key=True), "name": mapped_column(Name)}
        args = {"__tablename__": "customer", "__table_args__": {"schema": schema}}
        return track_table()(type(name, (base,), args | columns))

    here, there = customer("Here", None), customer("There", database.other_schema)
    base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all([here(id=1, name="here"), there(id=1, name="there")])
        session.commit()
        for model in (here, there):
            session.get_one(model, 1).name = "later"
        session.commit()
        for read, of in pasts(session, 0):
            both = of(here).join(there, there.id == here.id)
            assert read.execute(both.with_only_columns(here.name, there.name)).all() == [("here", "there")]
            assert [each.name for each in read.execute(both.add_columns(there)).one()] == ["here", "there"]
            inside = of(here).where(sa.exists().where(there.id == here.id, there.name == "there"))
            assert read.scalars(inside).one().name == "here"
            union = of(here).with_only_columns(here.name).union(of(there).with_only_columns(there.name))
            assert sorted(read.scalars(union)) == ["here", "there"]


def test_names_that_need_quotes(base, engine, sessions):
    @track_table()
    class Customer(base):
        __tablename__ = "My Customer"
        id: Mapped[int] = mapped_column("Select", primary_key=True)
        name: Mapped[str] = mapped_column("Full Name", Name)
        orders: Mapped[list["Order"]] = relationship(back_populates="customer")

    @track_table()
    class Order(base):
        __tablename__ = "Order"
        id: Mapped[int] = mapped_column("ID", primary_key=True)
        customer_id: Mapped[int] = mapped_column("customerId", sa.ForeignKey("My Customer.Select"))
        customer: Mapped[Customer] = relationship(back_populates="orders")

    base.metadata.create_all(engine)
    with sessions() as session:
        check_schema(session, Customer, Order)


def test_columns_that_rename_ours(base, engine, sessions):
    @track_table(audit_columns=AuditColumns(valid_from="since", valid_to="until", version="number"))
    class Price(base):
        __tablename__ = "price"
        id: Mapped[int] = mapped_column(primary_key=True)
        valid_from: Mapped[int]
        valid_to: Mapped[int | None]
        audit_version: Mapped[str] = mapped_column(Name)

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add(Price(id=1, valid_from=1, audit_version="a"))
        session.commit()
        price = session.get_one(Price, 1)
        price.valid_from, price.valid_to, price.audit_version = 2, 3, "b"
        session.commit()
        for read, of in pasts(session, 0):
            past = read.scalars(of(Price).where(Price.valid_from == 1, Price.valid_to.is_(None))).one()
            assert (past.valid_from, past.valid_to, past.audit_version) == (1, None, "a")


def test_excluded_columns_of_every_level_raise(base, engine, sessions):
    @track_table(exclude=["secret"])
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        secret: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    @track_table(exclude=["hidden"])
    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
        hidden: Mapped[str | None] = mapped_column(Name)
        salary: Mapped[int]
        __mapper_args__ = {"polymorphic_identity": "employee"}

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add(Employee(id=1, secret="s", hidden="h", salary=5))
        session.commit()
        for read, of in pasts(session, 0):
            for model in (Person, Employee):
                employee = read.scalars(of(model)).one()
                assert employee.salary == 5
                for name in ("secret", "hidden"):
                    with pytest.raises(QueryError, match=f"{name} is excluded"):
                        getattr(employee, name)
        assert (session.get_one(Employee, 1).secret, session.get_one(Employee, 1).hidden) == ("s", "h")


def test_a_deferred_excluded_column_raises(base, engine, sessions):
    @track_table(exclude=["picture"])
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name, deferred=True)
        picture: Mapped[str | None] = mapped_column(Name, deferred=True)

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add(Customer(id=1, name="then", picture="p"))
        session.commit()
        session.get_one(Customer, 1).name = "later"
        session.commit()
        for read, of in pasts(session, 0):
            for option in ((), (orm.undefer("*"),)):
                past = read.scalars(of(Customer).options(*option)).one()
                assert past.name == "then"
                with pytest.raises(QueryError, match="picture is excluded"):
                    _ = past.picture


# --- styles of mapping ------------------------------------------------------------------------------------------


def imperative(base):
    @dataclass
    class Customer:
        name: str
        id: int | None = None

    table = sa.Table("customer", base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", Name))
    base.registry.map_imperatively(Customer, table)
    return track_table()(Customer)


def sqlmodel(base):
    class Model(SQLModel, registry=base.registry):
        metadata = base.metadata

    @track_table()
    class Customer(Model, table=True):
        id: int | None = Field(default=None, primary_key=True)
        name: str | None = Field(max_length=100)

    return Customer


def dataclass_mapped(base):
    @track_table()
    class Customer(orm.MappedAsDataclass, base, kw_only=True):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True, default=None)
        name: Mapped[str] = mapped_column(Name)

    return Customer


def composed(base):
    @dataclass
    class FullName:
        first: str

    @track_table()
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        first: Mapped[str] = mapped_column(Name)
        full: Mapped[FullName] = orm.composite(FullName, "first")
        name: Mapped[str] = orm.synonym("first")

    return Customer


@pytest.mark.parametrize("make", [imperative, sqlmodel, dataclass_mapped, composed])
def test_every_style_of_mapping_has_a_past(make, base, engine, sessions):
    customer = make(base)
    base.metadata.create_all(engine)
    with sessions() as session:
        session.add(customer(id=1, name="then"))
        session.commit()
        session.get_one(customer, 1).name = "later"
        session.commit()
        assert session.scalars(customer.as_of(at(0))).one().name == "then"
        for read, of in pasts(session, 0):
            past = read.scalars(of(customer).where(customer.name == "then")).one()
            assert past.name == "then"
            if make is composed:
                assert past.full.first == "then"
        assert session.get_one(customer, 1).name == "later"
