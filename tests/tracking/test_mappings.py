"""Every way to map a table, and every kind of name, has a history: a row's life is told whole."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column
from sqlmodel import Field, SQLModel

from lifecycle import live_and_die, stored_fields
from sqlaudit import AuditColumns, get_resource_changes, history_of, track_table, versions_of

Name = sa.String(100)


# --- styles of mapping ------------------------------------------------------------------------------------------


def declarative_base_class(base):
    @track_table()
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)

    return Customer


def declarative_base_function(base):
    @track_table()
    class Customer(orm.declarative_base(metadata=base.metadata)):
        __tablename__ = "customer"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(Name)

    return Customer


def decorator_of_a_registry(base):
    @track_table()
    @base.registry.mapped
    class Customer:
        __tablename__ = "customer"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(Name)

    return Customer


def mixins(base):
    class HasId:
        id: Mapped[int] = mapped_column(primary_key=True)

    class Named:
        name: Mapped[str | None] = mapped_column(Name)

        @orm.declared_attr.directive
        def __tablename__(cls) -> str:
            return cls.__name__.lower()

        @orm.declared_attr
        def created_at(cls) -> Mapped[datetime]:
            return mapped_column(sa.DateTime, server_default=sa.func.now())

    @track_table()
    class Customer(HasId, Named, base):
        pass

    return Customer


def abstract_base(base):
    class Abstract(base):
        __abstract__ = True
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)

    @track_table()
    class Customer(Abstract):
        __tablename__ = "customer"

    return Customer


def dataclass_mapping(base):
    @track_table()
    class Customer(orm.MappedAsDataclass, base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str | None] = mapped_column(Name, default="nobody")

    return Customer


def declarative_table(base):
    @track_table()
    class Customer(base):
        __table__ = sa.Table(
            "customer", base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", Name)
        )

    return Customer


def imperative(base):
    class Customer:
        def __init__(self, name):
            self.name = name

    table = sa.Table("customer", base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", Name))
    base.registry.map_imperatively(Customer, table)
    return track_table()(Customer)


def imperative_dataclass(base):
    @dataclass
    class Customer:
        name: str
        id: int | None = None

    table = sa.Table("customer", base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", Name))
    base.registry.map_imperatively(Customer, table)
    return track_table()(Customer)


def sqlmodel_table(base):
    class Model(SQLModel, registry=base.registry):
        metadata = base.metadata

    @track_table()
    class Customer(Model, table=True):
        id: int | None = Field(default=None, primary_key=True)
        name: str | None = Field(max_length=100)

    return Customer


STYLES = [
    declarative_base_class,
    declarative_base_function,
    decorator_of_a_registry,
    mixins,
    abstract_base,
    dataclass_mapping,
    declarative_table,
    imperative,
    imperative_dataclass,
    sqlmodel_table,
]


@pytest.mark.spread
@pytest.mark.parametrize("make", STYLES, ids=lambda make: make.__name__)
def test_every_style_of_mapping_has_a_history(make, base, engine, sessions):
    customer = make(base)
    base.metadata.create_all(engine)
    live_and_die(sessions, customer, {"name": "Ada"}, {"name": "Grace"})
    base.metadata.drop_all(engine)
    assert sa.inspect(engine).get_table_names() == []


@pytest.mark.parametrize("make", STYLES, ids=lambda make: make.__name__)
def test_a_decorated_class_knows_its_history_class(make, base):
    customer = make(base)
    assert customer.History is history_of(customer)
    assert customer.History.__qualname__ == f"{customer.__qualname__}.History"


# --- names ------------------------------------------------------------------------------------------------------


def composite_key(base):
    @track_table()
    class Seat(base):
        __tablename__ = "seat"
        row: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        letter: Mapped[str] = mapped_column(sa.String(2), primary_key=True)
        guest: Mapped[str | None] = mapped_column(Name)

    return Seat, {"row": 3, "letter": "B", "guest": "Ada"}, {"guest": None}


def attributes_that_differ_from_columns(base):
    @track_table(tracked_fields=["ident", "title", "size"])
    class Item(base):
        __tablename__ = "item"
        ident: Mapped[int] = mapped_column("item_id", primary_key=True)
        title: Mapped[str] = mapped_column("txt_title", Name)
        size: Mapped[int] = mapped_column("title")

    return Item, {"title": "a", "size": 1}, {"title": "b"}


def swapped_attributes(base):
    @track_table()
    class Swapped(base):
        __tablename__ = "swapped"
        b: Mapped[int] = mapped_column("a", primary_key=True)
        a: Mapped[int] = mapped_column("b")
        c: Mapped[str] = mapped_column("d", Name)
        d: Mapped[str] = mapped_column("c", Name)

    return Swapped, {"b": 4, "a": 1, "c": "c", "d": "d"}, {"a": 2, "c": "x"}


def column_keys(base):
    @track_table()
    class Item(base):
        __tablename__ = "item"
        __table_args__ = {"implicit_returning": True}
        ident: Mapped[int] = mapped_column("item_id", key="the_id", primary_key=True)
        title: Mapped[str] = mapped_column("txt_title", Name, key="the_title")

    return Item, {"title": "a"}, {"title": "b"}


def table_with_column_keys(base):
    table = sa.Table(
        "item",
        base.metadata,
        sa.Column("item_id", sa.Integer, key="id", primary_key=True),
        sa.Column("txt title", Name, key="title"),
    )

    @track_table()
    class Item(base):
        __table__ = table

    return Item, {"title": "a"}, {"title": "b"}


def names_of_our_methods(base):
    names = ["values", "keys", "items", "metadata_", "next", "previous", "changes", "get", "c", "columns", "key"]
    columns = {name: mapped_column(name, Name) for name in names}
    ident = mapped_column(sa.Integer, primary_key=True)
    model = track_table()(type("Odd", (base,), {"__tablename__": "odd", "id": ident, **columns}))
    return model, dict.fromkeys(names, "a"), dict.fromkeys(names, "b")


def names_of_history_columns_without_prefix(base):
    names = ["version", "operation", "changeset_id", "changed_by", "reason", "extra"]
    columns = {name: mapped_column(name, Name) for name in names}
    ident = mapped_column(sa.Integer, primary_key=True)
    model = track_table()(type("Odd", (base,), {"__tablename__": "odd", "id": ident, **columns}))
    return model, dict.fromkeys(names, "a"), dict.fromkeys(names, "b")


def reserved_words(base):
    @track_table()
    class Order(base):
        __tablename__ = "order"
        select: Mapped[int] = mapped_column("select", primary_key=True, autoincrement=False)
        group: Mapped[str] = mapped_column("from", Name, primary_key=True)
        where: Mapped[str] = mapped_column("where", Name)

    return Order, {"select": 1, "group": "g", "where": "a"}, {"where": "b"}


def mixed_case(base):
    @track_table()
    class MixedCase(base):
        __tablename__ = "MixedCase"
        Id: Mapped[int] = mapped_column("Id", primary_key=True)
        FullName: Mapped[str] = mapped_column("Full Name", Name)

    return MixedCase, {"FullName": "a"}, {"FullName": "b"}


def quoted_lower_case(base):
    @track_table()
    class Quoted(base):
        __tablename__ = sa.sql.quoted_name("quoted", quote=True)
        id: Mapped[int] = mapped_column(sa.sql.quoted_name("id", quote=True), primary_key=True)
        name: Mapped[str] = mapped_column("name", Name, quote=True)

    return Quoted, {"name": "a"}, {"name": "b"}


def non_ascii(base):
    @track_table()
    class Zubehör(base):
        __tablename__ = "zubehör"
        größe: Mapped[int] = mapped_column(primary_key=True)
        überschrift: Mapped[str] = mapped_column("überschrift", Name)
        название: Mapped[str] = mapped_column(Name)

    return Zubehör, {"überschrift": "ä", "название": "Ж"}, {"überschrift": "ö"}


def awkward_characters(base):
    @track_table()
    class Awkward(base):
        __tablename__ = "awk'ward"
        id: Mapped[int] = mapped_column(primary_key=True)
        percent: Mapped[str] = mapped_column("per%cent", Name)
        colon: Mapped[str] = mapped_column("co:lon", Name)
        quote: Mapped[str] = mapped_column('a "quote" `here`', Name)
        paren: Mapped[str] = mapped_column("pa(r)en [x]", Name)

    return Awkward, dict.fromkeys(["percent", "colon", "quote", "paren"], "a"), {"percent": "b", "paren": "c"}


def a_column_prefix(base):
    @track_table()
    class Prefixed(base):
        __table__ = sa.Table(
            "prefixed", base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", Name)
        )
        __mapper_args__ = {"column_prefix": "_"}

    return Prefixed, {"_name": "a"}, {"_name": "b"}


def long_names(base):
    @track_table()
    class Long(base):
        __tablename__ = "t" * 60
        id: Mapped[int] = mapped_column("i" * 60, primary_key=True)
        name: Mapped[str] = mapped_column("n" * 63, Name)

    return Long, {"name": "a"}, {"name": "b"}


def a_wide_table(base):
    names = [f"column_{number}" for number in range(200)]
    columns = {name: mapped_column(sa.Integer) for name in names}
    ident = mapped_column(sa.Integer, primary_key=True)
    model = track_table()(type("Wide", (base,), {"__tablename__": "wide", "id": ident, **columns}))
    return model, dict.fromkeys(names, 1), {"column_199": 2}


def nothing_but_a_key(base):
    @track_table()
    class Bare(base):
        __tablename__ = "bare"
        one: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        two: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    return Bare


NAMES = [
    composite_key,
    attributes_that_differ_from_columns,
    swapped_attributes,
    column_keys,
    table_with_column_keys,
    names_of_our_methods,
    names_of_history_columns_without_prefix,
    reserved_words,
    mixed_case,
    quoted_lower_case,
    non_ascii,
    awkward_characters,
    a_column_prefix,
    long_names,
    a_wide_table,
]


@pytest.mark.spread
@pytest.mark.parametrize("make", NAMES, ids=lambda make: make.__name__)
def test_every_kind_of_name_has_a_history(make, base, engine, sessions):
    model, new, change = make(base)
    base.metadata.create_all(engine)
    live_and_die(sessions, model, new, change)
    base.metadata.drop_all(engine)
    assert sa.inspect(engine).get_table_names() == []


def test_a_table_that_is_all_key_has_a_history(base, engine, sessions):
    bare = nothing_but_a_key(base)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([bare(one=1, two=2), bare(one=1, two=3)])
    with sessions.begin() as session:
        session.get_one(bare, (1, 2)).two = 4
    with sessions() as session:
        told = [
            [version.audit_operation for version in versions_of(session, bare, key)] for key in [(1, 2), (1, 3), (1, 4)]
        ]
    assert told == [["insert", "delete"], ["insert"], ["insert"]]


# --- attributes that are no plain columns -----------------------------------------------------------------------


def test_only_columns_are_stored_of_a_model_with_all_kinds_of_attributes(base, engine, sessions):
    @track_table()
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        born: Mapped[int | None]
        note: Mapped[str | None] = mapped_column(sa.Text, deferred=True)
        photo: Mapped[str | None] = orm.deferred(mapped_column(sa.Text), group="big")
        scan: Mapped[str | None] = mapped_column(sa.Text, deferred=True, deferred_group="big", deferred_raiseload=True)
        alias = orm.synonym("name")
        initial: Mapped[str] = orm.column_property(sa.func.substr(name, 1, 1))
        same = orm.query_expression()

        @hybrid_property
        def age(self) -> int:
            return 2000 - self.born

    base.metadata.create_all(engine)
    names = {"id", "name", "born", "note", "photo", "scan"}
    assert stored_fields(Customer) == names

    def change(customer: Any) -> None:
        customer.alias = "Grace"

    new = {"name": "Ada", "born": 1815, "note": "n" * 9, "photo": "p", "scan": None}
    first, second, _ = live_and_die(sessions, Customer, new, change, raising=frozenset({"scan"}))
    assert (first.name, second.name, second.note, second.photo) == ("Ada", "Grace", "n" * 9, "p")
    assert {"alias", "initial", "age", "same"}.isdisjoint(dir(first))


def test_a_change_of_a_row_whose_columns_are_not_loaded_is_stored_whole(base, engine, sessions):
    @track_table()
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        note: Mapped[str | None] = mapped_column(sa.Text, deferred=True)

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Customer(id=1, name="Ada", note="long"))
    with sessions.begin() as session:
        customer = session.scalars(sa.select(Customer).options(orm.load_only(Customer.id))).one()
        customer.note = "longer"
        session.flush()
        assert "name" not in sa.inspect(customer).dict
    with sessions() as session:
        versions = versions_of(session, Customer, 1)
    assert [(v.name, v.note) for v in versions] == [("Ada", "long"), ("Ada", "longer")]


def test_a_composite_attribute_is_stored_by_its_columns(base, engine, sessions):
    @dataclass
    class Point:
        x: int
        y: int

    @track_table()
    class Vertex(base):
        __tablename__ = "vertex"
        id: Mapped[int] = mapped_column(primary_key=True)
        at: Mapped[Point] = orm.composite(mapped_column("x"), mapped_column("y"))

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(vertex := Vertex(at=Point(1, 2)))
        session.flush()
        vertex_id = vertex.id
    with sessions.begin() as session:
        session.get_one(Vertex, vertex_id).at = Point(1, 5)
    with sessions() as session:
        assert [
            (str(c.operation), c.old_value, c.new_value)
            for c in get_resource_changes(Vertex, session)
            if c.field_name.endswith("y")
        ] == [("insert", None, 2), ("update", 2, 5)]


# --- schemas ----------------------------------------------------------------------------------------------------


def customer_in(base, schema):
    table = sa.Table(
        "customer", base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", Name), schema=schema
    )
    return track_table()(type(f"CustomerIn{schema}", (base,), {"__table__": table}))


def test_the_history_of_a_table_in_a_schema_is_in_that_schema(base, database, engine, sessions):
    customer = customer_in(base, database.other_schema)
    base.metadata.create_all(engine)
    assert set(sa.inspect(engine).get_table_names(database.other_schema)) == {"customer", "customer_history"}
    live_and_die(sessions, customer, {"name": "a"}, {"name": "b"})
    base.metadata.drop_all(engine)
    assert sa.inspect(engine).get_table_names(database.other_schema) == []


def test_the_history_of_a_table_in_the_schema_of_its_metadata_is_there_too(database, engine, sessions):
    class Base(orm.DeclarativeBase):
        metadata = sa.MetaData(schema=database.other_schema)

    customer = customer_in(Base, None)
    blank = customer_in(Base, sa.schema.BLANK_SCHEMA)
    Base.metadata.create_all(engine)
    assert set(sa.inspect(engine).get_table_names(database.other_schema)) == {"customer", "customer_history"}
    assert set(sa.inspect(engine).get_table_names()) == {"customer", "customer_history"}
    live_and_die(sessions, customer, {"name": "a"}, {"name": "b"})
    live_and_die(sessions, blank, {"name": "c"}, {"name": "d"})
    Base.registry.dispose()


def test_tables_of_one_name_in_two_schemas_keep_two_histories(base, database, engine, sessions):
    here, there = customer_in(base, None), customer_in(base, database.other_schema)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([here(id=1, name="here"), there(id=1, name="there")])
    with sessions.begin() as session:
        session.get_one(there, 1).name = "away"
    with sessions() as session:
        told = [[version.name for version in versions_of(session, model, 1)] for model in (here, there)]
    assert told == [["here"], ["there", "away"]]


@pytest.mark.parametrize("token", [None, "tenant"])
def test_a_schema_translate_map_moves_the_history_with_its_table(token, base, database, engine, sessions):
    customer = customer_in(base, token)
    translated = engine.execution_options(schema_translate_map={token: database.other_schema})
    base.metadata.create_all(translated)
    assert set(sa.inspect(engine).get_table_names(database.other_schema)) == {"customer", "customer_history"}
    assert sa.inspect(engine).get_table_names() == []
    sessions.configure(bind=translated)
    live_and_die(sessions, customer, {"name": "a"}, {"name": "b"})


# --- options ----------------------------------------------------------------------------------------------------


def customer_with(base, **options: Any) -> Any:
    @track_table(**options)
    class Customer(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column("full_name", Name)
        password: Mapped[str | None] = mapped_column("secret", Name)
        editor: Mapped[int | None]

    return Customer


def test_tracked_fields_choose_what_is_reported_not_what_is_stored(base, engine, sessions):
    customer = customer_with(base, tracked_fields=["name"])
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(customer(id=1, name="a", password="x"))
    with sessions.begin() as session:
        session.get_one(customer, 1).password = "y"
    with sessions() as session:
        versions = versions_of(session, customer, 1)
        assert [version.password for version in versions] == ["x", "y"]
        assert [change.field_name for change in get_resource_changes(customer, session)] == ["name"]
        assert [[change.field_name for change in version.changes] for version in versions] == [["name"], []]


def test_excluded_columns_are_not_stored_and_cause_no_version(base, engine, sessions):
    customer = customer_with(base, exclude=["password"])
    base.metadata.create_all(engine)
    assert "secret" not in {column["name"] for column in sa.inspect(engine).get_columns("customer_history")}
    with sessions.begin() as session:
        session.add(customer(id=1, name="a", password="x"))
    with sessions.begin() as session:
        session.get_one(customer, 1).password = "y"
    with sessions.begin() as session:
        session.get_one(customer, 1).name = "b"
    with sessions() as session:
        versions = versions_of(session, customer, 1)
        assert [version.name for version in versions] == ["a", "b"]
        assert not hasattr(versions[0], "password")
        assert {change.field_name for change in get_resource_changes(customer, session)} == {"id", "name"}


def test_a_row_s_life_is_told_without_its_excluded_column(base, engine, sessions):
    customer = customer_with(base, exclude={"password"})
    base.metadata.create_all(engine)
    new = {"id": 1, "name": "a"}
    live_and_die(sessions, customer, new, {"name": "b"}, exclude=frozenset({"password"}))


def test_a_table_label_names_the_resource(base, engine, sessions):
    customer = customer_with(base, table_label="Kunde")
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(customer(id=1, name="a"))
    with sessions() as session:
        assert {change.resource_type for change in get_resource_changes(customer, session)} == {"Kunde"}
        assert {change.resource_type for change in versions_of(session, customer, 1)[0].changes} == {"Kunde"}


def test_without_a_table_label_the_class_names_the_resource(base, engine, sessions):
    customer = customer_with(base)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(customer(id=1, name="a"))
    with sessions() as session:
        assert {change.resource_type for change in get_resource_changes(customer, session)} == {"Customer"}


def test_a_resource_id_field_gives_the_id_of_a_resource(base, engine, sessions):
    customer = customer_with(base, resource_id_field="name")
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([customer(id=1, name="ada"), customer(id=2, name="grace")])
    with sessions() as session:
        changes = get_resource_changes(customer, session, filter_resource_ids="grace")
        assert {change.resource_id for change in changes} == {"grace"}
        assert {change.new_value for change in changes} == {2, "grace"}
        assert {change.resource_id for change in versions_of(session, customer, 1)[0].changes} == {"ada"}


class Guid(sa.TypeDecorator[uuid.UUID]):
    impl = sa.Uuid
    cache_ok = True


def test_a_user_id_field_of_a_type_of_the_users_own_gives_the_same_text_everywhere(base, engine, sessions):
    @track_table(user_id_field="editor")
    class Page(base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        editor: Mapped[uuid.UUID] = mapped_column(Guid)

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Page(id=1, editor=uuid.UUID(int=7)))
    with sessions() as session:
        (version,) = versions_of(session, Page, 1)
    assert version.audit_changed_by == str(uuid.UUID(int=7))


def test_a_table_without_a_primary_key_may_have_columns_that_cannot_be_grouped(base, engine, sessions):
    table = sa.Table("log", base.metadata, sa.Column("line", sa.Integer), sa.Column("data", sa.JSON))

    @track_table()
    class Log(base):
        __table__ = table
        __mapper_args__ = {"primary_key": [table.c.line]}

    base.metadata.create_all(engine)
    live_and_die(sessions, Log, {"line": 1, "data": [1]}, {"data": [2]})


def test_a_user_id_field_names_the_user_of_each_row(base, engine, sessions):
    customer = customer_with(base, user_id_field="editor")
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([customer(id=1, name="a", editor=7), customer(id=2, name="b", editor=8)])
    with sessions.begin() as session:
        session.get_one(customer, 1).editor = 9
    with sessions.begin() as session:
        session.delete(session.get_one(customer, 1))
    with sessions() as session:
        told = [[version.audit_changed_by for version in versions_of(session, customer, key)] for key in (1, 2)]
    assert told == [["7", "9", "9"], ["8"]]


RENAMED = AuditColumns(
    version="v",
    valid_from="true_from",
    valid_to="true_to",
    operation="op",
    changeset_id="tx",
    changed_by="who",
    impersonated_by="behalf",
    reason="why",
    extra="more",
)


def test_our_columns_can_all_be_renamed(base, engine, sessions):
    customer = customer_with(base, audit_columns=RENAMED)
    base.metadata.create_all(engine)
    assert {name for _, name in RENAMED.items()} < set(history_of(customer).__table__.c.keys())
    live_and_die(sessions, customer, {"name": "a"}, {"name": "b"}, columns=RENAMED)


def test_a_model_with_business_periods_of_its_own_can_be_tracked(base, engine, sessions):
    columns = AuditColumns(valid_from="audit_valid_from", valid_to="audit_valid_to")

    @track_table(audit_columns=columns)
    class Price(base):
        __tablename__ = "price"
        id: Mapped[int] = mapped_column(primary_key=True)
        valid_from: Mapped[datetime] = mapped_column(sa.DateTime)
        valid_to: Mapped[datetime | None] = mapped_column(sa.DateTime)

    base.metadata.create_all(engine)
    new = {"valid_from": datetime(2020, 1, 1)}  # noqa: DTZ001  # the column is naive
    live_and_die(sessions, Price, new, {"valid_to": datetime(2021, 1, 1)}, columns=columns)  # noqa: DTZ001


def test_a_history_table_can_have_a_name_of_its_own(base, engine, sessions):
    customer = customer_with(base, history_table_name="Kunden Historie")
    base.metadata.create_all(engine)
    assert sa.inspect(engine).has_table("Kunden Historie")
    live_and_die(sessions, customer, {"name": "a"}, {"name": "b"})
