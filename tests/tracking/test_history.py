"""History tables and history classes: what they are, and what they refuse."""

import enum
import pickle
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, mapped_column

from lifecycle import live_and_die
from sqlaudit import AuditColumns, ReadOnlyError, TrackingError, history_of, track_table, versions_of
from sqlaudit.period import OPEN_END


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Base(orm.DeclarativeBase):
    pass


class Country(Base):
    __tablename__ = "country"
    code: Mapped[str] = mapped_column(sa.String(2), primary_key=True)


@track_table()
class Customer(Base):
    """A column of every constraint and default that a table can have."""

    __tablename__ = "customer"
    __table_args__ = (
        sa.CheckConstraint("age > 0", name="ck_age"),
        sa.UniqueConstraint("full_name", "age", name="uq_name_age"),
    )
    ident: Mapped[int] = mapped_column("id", sa.Identity(), primary_key=True)
    name: Mapped[str] = mapped_column("full_name", sa.String(50), unique=True)
    age: Mapped[int] = mapped_column(default=1, onupdate=2, server_default="3", index=True)
    double_age: Mapped[int] = mapped_column(sa.Computed("age * 2"))
    country: Mapped[Any] = mapped_column(sa.ForeignKey("country.code"))
    colour: Mapped[Colour | None] = mapped_column(sa.Enum(Colour, name="colour", create_constraint=True))
    active: Mapped[bool | None] = mapped_column(sa.Boolean(create_constraint=True, name="ck_active"))


@pytest.fixture
def ada(engine, sessions) -> int:
    """The key of a customer with two versions."""
    with sessions.begin() as session:
        session.add(Country(code="de"))
        session.add(customer := Customer(name="Ada", age=5, country="de", colour=Colour.RED))
        session.flush()
        key: int = customer.ident
    with sessions.begin() as session:
        session.get_one(Customer, key).name = "Grace"
    return key


# --- the table --------------------------------------------------------------------------------------------------


def stored_columns(engine: sa.Engine) -> dict[str, Any]:
    """Reflect the history table, but for the guard that takes the place of a partial index."""
    columns = sa.inspect(engine).get_columns("customer_history")
    return {column["name"]: column for column in columns if column["name"] != "audit_version_closed"}


def test_a_history_table_has_the_columns_of_the_live_table_and_ours(ada, engine):
    columns = stored_columns(engine)
    stored = {"id", "full_name", "age", "double_age", "country", "colour", "active"}
    assert set(columns) == stored | {name for _, name in AuditColumns().items()}
    never_null = {"id", "audit_version", "valid_from", "valid_to", "audit_operation", "audit_changeset_id"}
    assert {name for name, column in columns.items() if not column["nullable"]} == never_null


def test_the_columns_of_a_history_table_have_the_types_of_the_live_ones(ada, engine):
    live, old = (
        {column["name"]: str(column["type"]) for column in sa.inspect(engine).get_columns(table)}
        for table in ("customer", "customer_history")
    )
    assert {name: old[name] for name in live} == live


def test_the_key_of_a_history_table_is_the_live_key_and_the_version(ada, engine):
    key = sa.inspect(engine).get_pk_constraint("customer_history")
    assert key["constrained_columns"] == ["id", "audit_version"]


def test_a_history_table_has_no_rules_of_the_live_table(ada, engine):
    found = sa.inspect(engine)
    assert found.get_foreign_keys("customer_history") == []
    assert [check["name"] for check in found.get_check_constraints("customer_history")] == []
    uniques = {unique["name"] for unique in found.get_unique_constraints("customer_history")}
    assert uniques <= {"uq_customer_history_open"}
    assert {index["name"] for index in found.get_indexes("customer_history")} - {"uq_customer_history_open"} == {
        "ix_customer_history_changeset",
        "ix_customer_history_instant",
    }
    for column in stored_columns(engine).values():
        assert column["default"] in (None, "NULL")
        assert not column.get("computed")
        assert not column.get("identity")
        assert column.get("autoincrement") in (False, "auto", None)


def test_a_history_table_in_python_has_no_rules_either():
    table = history_of(Customer).__table__
    for column in table.c:
        assert (column.default, column.onupdate, column.server_default, column.server_onupdate) == (None,) * 4
        assert (column.computed, column.identity, column.foreign_keys) == (None, None, set())
    assert {type(each) for each in table.constraints} == {sa.PrimaryKeyConstraint}
    assert table.metadata is Base.metadata


def test_the_database_refuses_two_open_versions_of_one_row(ada, engine):
    history = history_of(Customer).__table__
    with engine.connect() as connection:
        newest = connection.execute(sa.select(history).where(history.c.valid_to == OPEN_END)).mappings().one()
        second = {**newest, "audit_version": newest["audit_version"] + 1}
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.insert(history).values(second))
        connection.execute(sa.insert(history).values({**second, "valid_to": newest["valid_from"]}))
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(
                sa.update(history)
                .where(history.c.audit_version == newest["audit_version"] + 1)
                .values(valid_to=OPEN_END)
            )


def test_the_database_accepts_open_versions_of_different_rows(base, engine):
    @track_table(audit_columns=AuditColumns(valid_to="until"))
    class Seat(base):
        __tablename__ = "seat"
        row: Mapped[int] = mapped_column("Row No", primary_key=True, autoincrement=False)
        letter: Mapped[str] = mapped_column(sa.String(1), primary_key=True)

    base.metadata.create_all(engine)
    history = history_of(Seat).__table__
    version = {
        "audit_version": 1,
        "valid_from": OPEN_END,
        "until": OPEN_END,
        "audit_operation": "insert",
        "audit_changeset_id": uuid.UUID(int=1),
    }
    with engine.connect() as connection:
        connection.execute(sa.insert(history), [{**version, "Row No": 1, "letter": letter} for letter in "AB"])
        with pytest.raises(sa.exc.IntegrityError), connection.begin_nested():
            connection.execute(sa.insert(history), [{**version, "Row No": 1, "letter": "A", "audit_version": 2}])


LONG = "t" * 60


@pytest.mark.no_tables
def test_long_names_are_shortened_the_same_way_every_time_and_stay_apart(engine):
    def names(*tables: str) -> list[str]:
        metadata = sa.MetaData()
        registry = orm.registry(metadata=metadata)
        for table in tables:
            live = sa.Table(table, metadata, sa.Column("id", sa.Integer, primary_key=True))
            model = type("Long", (), {"__module__": table})
            registry.map_imperatively(model, live)
            track_table()(model)
        metadata.create_all(engine)
        found = sa.inspect(engine).get_table_names()
        metadata.drop_all(engine)
        registry.dispose()
        return sorted(set(found) - set(tables))

    first = names(LONG + "a", LONG + "b", "é" * 31)
    assert first == names("é" * 31, LONG + "b", LONG + "a")
    assert len(first) == 3
    assert max(len(name.encode()) for name in first) <= 63


# --- creating and dropping --------------------------------------------------------------------------------------


def linked(base: type[Any]) -> Any:
    """Two tracked models and an association table; the types of its columns come from their targets."""
    link = sa.Table(
        "customer_group",
        base.metadata,
        sa.Column("customer_id", sa.ForeignKey("customer.id"), primary_key=True),
        sa.Column("group_id", sa.ForeignKey("group.id"), primary_key=True),
    )

    @track_table()
    class Member(base):
        __tablename__ = "customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        first_id: Mapped[Any] = mapped_column(sa.ForeignKey("group.id"), nullable=True)
        groups: Mapped[list["Group"]] = orm.relationship(secondary=link)

    @track_table()
    class Group(base):
        __tablename__ = "group"
        id: Mapped[str] = mapped_column(sa.String(20), primary_key=True)

    return Member, Group


ALL = {"customer", "group", "customer_group", "customer_history", "group_history", "customer_group_history"}


def test_create_all_before_mappers_are_configured_creates_all_history_tables(base, engine):
    _models = linked(base)
    base.metadata.create_all(engine)
    assert set(sa.inspect(engine).get_table_names()) == ALL
    base.metadata.create_all(engine)


def test_create_all_beside_tables_that_are_there_creates_all_history_tables(base, engine):
    class Before(orm.DeclarativeBase):
        pass

    _models = linked(Before)
    tables = [Before.metadata.tables[name] for name in ("group", "customer", "customer_group")]
    for table in tables:
        table.create(engine)
    _others = linked(base)
    base.metadata.create_all(engine)
    assert set(sa.inspect(engine).get_table_names()) == ALL


def test_drop_all_before_mappers_are_configured_drops_all_history_tables(base, engine):
    class Other(orm.DeclarativeBase):
        pass

    _others = linked(Other)
    Other.metadata.create_all(engine)
    Other.registry.dispose()
    _models = linked(base)
    base.metadata.drop_all(engine)
    assert sa.inspect(engine).get_table_names() == []


def test_create_all_of_some_tables_creates_these(base, engine):
    member, _ = linked(base)
    tables = [base.metadata.tables[name] for name in ("group", "customer")]
    base.metadata.create_all(engine, tables=[*tables, history_of(member).__table__])
    assert set(sa.inspect(engine).get_table_names()) == {"group", "customer", "customer_history"}


@pytest.mark.parametrize("configured", [False, True])
def test_create_all_of_an_association_table_alone_creates_its_history(configured, base, engine):
    _models = linked(base)
    if configured:
        orm.configure_mappers()
    tables = [base.metadata.tables[name] for name in ("group", "customer", "customer_group")]
    base.metadata.create_all(engine, tables=tables)
    assert set(sa.inspect(engine).get_table_names()) == {
        "group",
        "customer",
        "customer_group",
        "customer_group_history",
    }


def test_a_foreign_key_without_a_type_has_that_of_its_target_in_history(base, engine, sessions):
    member, group = linked(base)
    base.metadata.create_all(engine)
    columns = {column["name"]: column["type"] for column in sa.inspect(engine).get_columns("customer_history")}
    assert isinstance(columns["first_id"], sa.String)
    with sessions.begin() as session:
        session.add(group(id="x"))
    live_and_die(sessions, member, {}, {"first_id": "x"})


def test_reflected_tables_can_be_tracked(base, engine, sessions):
    metadata = sa.MetaData()
    sa.Table(
        "customer",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(20), index=True),
    )
    metadata.create_all(engine)

    class Reflected(orm.DeclarativeBase):
        pass

    @track_table()
    class Customer(Reflected):
        __table__ = sa.Table("customer", Reflected.metadata, autoload_with=engine)

    Reflected.metadata.create_all(engine)
    live_and_die(sessions, Customer, {"name": "a"}, {"name": "b"})
    Reflected.registry.dispose()


# --- the class --------------------------------------------------------------------------------------------------


def test_a_history_class_is_known_by_its_model_and_found_again():
    assert Customer.History is history_of(Customer)
    assert Customer.History.__qualname__ == "Customer.History"
    assert Customer.History.__module__ == __name__
    with pytest.raises(TrackingError, match=r"Country is not a tracked model. Decorate it"):
        history_of(Country)


def test_versions_pickle(ada, sessions):
    with sessions() as session:
        versions = versions_of(session, Customer, ada)
        copies = pickle.loads(pickle.dumps(versions))
    assert [type(copy) for copy in copies] == [Customer.History] * 2
    assert [(c.ident, c.audit_version, c.name, c.colour) for c in copies] == [
        (ada, 1, "Ada", Colour.RED),
        (ada, 2, "Grace", Colour.RED),
    ]


def test_versions_know_their_neighbours_and_their_changes(ada, sessions):
    with sessions() as session:
        first, second = versions_of(session, Customer, ada)
        assert (first.previous, first.next, second.previous, second.next) == (None, second, first, None)
        told = {c.field_name: (c.old_value, c.new_value) for c in second.changes}
        assert told == {"name": ("Ada", "Grace"), "age": (5, 2), "double_age": (10, 4)}
        assert {c.field_name: c.new_value for c in first.changes} == {
            "ident": ada,
            "name": "Ada",
            "age": 5,
            "double_age": 10,
            "country": "de",
            "colour": Colour.RED,
        }


def change(session: orm.Session, version: Any) -> None:
    version.name = "Eve"


def delete(session: orm.Session, version: Any) -> None:
    session.delete(version)


def add(session: orm.Session, version: Any) -> None:
    session.add(type(version)(ident=1, audit_version=9))


@pytest.mark.parametrize("act", [change, delete, add])
@pytest.mark.parametrize("hooks", [True, False])
def test_a_version_cannot_be_written(act, hooks, ada, engine, sessions):
    make = sessions if hooks else orm.sessionmaker(engine)
    with make() as session:
        act(session, versions_of(session, Customer, ada)[0])
        with pytest.raises(ReadOnlyError, match=r"Customer\.History .*versions are never changed. Expunge"):
            session.flush()
        session.rollback()
        assert [version.name for version in versions_of(session, Customer, ada)] == ["Ada", "Grace"]


def test_versions_of_one_row_sort_filter_and_count_like_any_entity(ada, sessions):
    history = Customer.History
    with sessions() as session:
        statement = sa.select(history.name).where(history.ident == ada).order_by(history.audit_version.desc())
        assert session.scalars(statement).all() == ["Grace", "Ada"]
        assert session.scalar(sa.select(sa.func.count()).select_from(history)) == 2


def test_a_model_s_own_attributes_take_precedence_over_those_of_versions(base, engine, sessions):
    @track_table()
    class Odd(base):
        __tablename__ = "odd"
        id: Mapped[int] = mapped_column(primary_key=True)
        previous: Mapped[str] = mapped_column(sa.String(5))
        changes: Mapped[str] = mapped_column(sa.String(5))
        History: Mapped[str] = mapped_column(sa.String(5))
        as_of: Mapped[str] = mapped_column(sa.String(5))

    base.metadata.create_all(engine)
    names = ["previous", "changes", "History", "as_of"]
    live_and_die(sessions, Odd, dict.fromkeys(names, "a"), dict.fromkeys(names, "b"))


def test_models_of_one_name_in_two_bases_have_their_own_history(engine, sessions):
    made = []
    for suffix in "ab":

        class Local(orm.DeclarativeBase):
            pass

        @track_table()
        class Thing(Local):
            __tablename__ = f"thing_{suffix}"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(5))

        Local.metadata.create_all(engine)
        made.append(Thing)
    for thing in made:
        live_and_die(sessions, thing, {"name": "a"}, {"name": "b"})
    assert made[0].History is not made[1].History
    for thing in made:
        thing.registry.dispose()
