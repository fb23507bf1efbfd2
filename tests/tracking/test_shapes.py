"""Shapes of mappings that come later, end, or are no plain table: tracked right, or refused with the reason."""

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.declarative import AbstractConcreteBase, ConcreteBase, DeferredReflection
from sqlalchemy.orm import Mapped, mapped_column, relationship, with_loader_criteria

from invariants import check_history
from lifecycle import live_and_die
from sqlaudit import (
    QueryError,
    ReadOnlyError,
    SQLAuditConfig,
    SQLAuditWarning,
    TrackingError,
    as_of,
    changes_in,
    get_resource_changes,
    history_of,
    restore,
    set_config,
    time_travel,
    track_table,
    undo,
    versions_of,
)

Name = sa.String(50)


def item(base: type[Any]) -> Any:
    @track_table()
    class Item(base):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)

    return Item


def hierarchy(base: type[Any]) -> tuple[Any, Any]:
    @track_table()
    class Party(base):
        __tablename__ = "party"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "party"}

    class Person(Party):
        __tablename__ = "person"
        person_id: Mapped[int] = mapped_column(primary_key=True)
        party_id: Mapped[int] = mapped_column(sa.ForeignKey("party.id"), unique=True)
        name: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_identity": "person"}

    return Party, Person


# --- joined tables with keys of their own -----------------------------------------------------------------------


def test_a_joined_table_may_have_a_key_of_its_own_beside_the_foreign_key(base, engine, sessions):
    party, person = hierarchy(base)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(party())
    live_and_die(sessions, person, {"name": "a"}, {"name": "b"})
    with sessions() as session:
        check_history(session, party)
    assert [column.name for column in history_of(person).__table__.primary_key] == ["party_id", "audit_version"]


def test_a_further_joined_table_may_refer_to_any_column_that_is_equal_to_the_key(base, engine, sessions):
    party, person = hierarchy(base)

    class Employee(person):
        __tablename__ = "employee"
        employee_id: Mapped[int] = mapped_column(sa.ForeignKey("person.party_id"), primary_key=True)
        salary: Mapped[int | None]
        __mapper_args__ = {"polymorphic_identity": "employee"}

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(party())
    live_and_die(sessions, Employee, {"name": "a", "salary": 1}, {"name": "b", "salary": 2})


def test_a_joined_table_that_does_not_know_the_key_is_refused(base):
    _, person = hierarchy(base)
    with pytest.raises(
        TrackingError, match=r"'employee' of Employee has no column that is equal to the key of 'party'"
    ):

        class Employee(person):
            __tablename__ = "employee"
            employee_id: Mapped[int] = mapped_column(sa.ForeignKey("person.person_id"), primary_key=True)
            __mapper_args__ = {"polymorphic_identity": "employee"}

    assert "employee_history" not in base.metadata.tables


# --- classes that are not mapped, or not to a table -------------------------------------------------------------


def test_a_class_that_is_not_mapped_yet_keeps_no_other_from_being_tracked(base, engine, sessions):
    class Other(orm.DeclarativeBase):
        pass

    class Document(AbstractConcreteBase, Other):
        strict_attrs = True

    with pytest.raises(TrackingError, match=r"Document is not mapped yet. Call track_table\(\)\(Document\) once it is"):
        track_table()(Document)

    models = []
    for name in ("letter", "invoice"):
        columns = {"id": mapped_column(sa.Integer, primary_key=True), "text": mapped_column(Name)}
        options = {"__tablename__": name, "__mapper_args__": {"polymorphic_identity": name, "concrete": True}}
        models.append(track_table()(type(name.title(), (Document,), columns | options)))
    customer = item(base)
    base.metadata.create_all(engine)
    Other.metadata.create_all(engine)
    live_and_die(sessions, customer, {"name": "a"}, {"name": "b"})
    with sessions.begin() as session:
        session.add_all(model(text="a") for model in models)
    now = datetime.now(UTC)
    for model in models:
        with sessions.begin() as session:
            session.execute(sa.update(model).values(text="b"))
    with sessions() as session:
        assert [[version.text for version in versions_of(session, model, 1)] for model in models] == [["a", "b"]] * 2
        with time_travel(session, now) as past:
            assert [paper.text for paper in past.scalars(sa.select(Document))] == ["a", "a"]
    Other.metadata.drop_all(engine)


def test_a_union_of_concrete_tables_has_a_history_of_each(base, engine, sessions):
    kept = orm.declarative_base(metadata=base.metadata)  # SQLAlchemy 2.0 looks for its classes again and again

    @track_table()
    class Person(ConcreteBase, kept):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_identity": "person", "concrete": True}

    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)
        salary: Mapped[int | None]
        __mapper_args__ = {"polymorphic_identity": "employee", "concrete": True}

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([Person(id=1, name="a"), Employee(id=1, name="a", salary=1)])
    with sessions.begin() as session:
        for person in session.scalars(sa.select(Person)):
            person.name = "b"
    with sessions.begin() as session:
        for model, key in ((Person, 1), (Employee, 1)):
            first, second = versions_of(session, model, key)
            assert (first.name, second.name) == ("a", "b")
            with pytest.raises(QueryError, match=f"{model.__name__} is mapped to a union of tables"):
                restore(session, first)
    with sessions() as session:
        then = versions_of(session, Person, 1)[1].valid_from
        found = session.scalars(as_of(Person, then)).all()
        assert {(type(person), person.name) for person in found} == {(Person, "b"), (Employee, "b")}


def test_a_subclass_that_only_reads_by_a_select_is_left_alone(base, engine, sessions):
    model = item(base)

    class Named(model):
        __table__ = sa.select(model.__table__).where(model.name.is_not(None)).subquery("named")
        __mapper_args__ = {"concrete": True}

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([model(name="a"), model()])
    with sessions() as session:
        assert [each.name for each in session.scalars(sa.select(Named))] == ["a"]
        assert len(get_resource_changes(model, session, filter_fields=["id"])) == 2


def test_a_subclass_that_is_mapped_to_a_join_is_refused(base):
    model = item(base)
    one = sa.Table("one", base.metadata, sa.Column("one_id", sa.ForeignKey("items.id"), primary_key=True))
    two = sa.Table("two", base.metadata, sa.Column("two_id", sa.ForeignKey("one.one_id"), primary_key=True))
    with pytest.raises(TrackingError, match=r"Both is mapped to .* which is not a table"):
        type("Both", (model,), {"__table__": one.join(two)})


@pytest.mark.parametrize("linked", [False, True])
def test_tables_can_be_created_before_a_class_is_reflected(linked, base, engine, sessions):
    with engine.begin() as connection:
        reflected = sa.Table("reflected", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
        reflected.create(connection)

    class Reflected(DeferredReflection, base):
        __abstract__ = True

    class Late(Reflected):
        __tablename__ = "reflected"

    link = sa.Table(
        "link",
        base.metadata,
        sa.Column("item", sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("late", sa.Integer, primary_key=True),
    )
    model = item(base)
    if linked:
        model.others = relationship(
            "Late",
            secondary=link,
            primaryjoin=lambda: model.id == link.c.item,
            secondaryjoin=lambda: Late.id == link.c.late,
        )
    with pytest.raises(TrackingError, match=r"Late is not mapped yet. .* after prepare\(\)"):
        track_table()(Late)
    base.metadata.create_all(engine)
    Reflected.prepare(engine)
    track_table()(Late)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(late := Late(id=1))
        session.add(new := model(id=1))
        if linked:
            new.others.append(late)
    with sessions() as session:
        assert [len(versions_of(session, each, 1)) for each in (model, Late)] == [1, 1]


# --- what comes later -------------------------------------------------------------------------------------------


def add_columns(engine: sa.Engine, name: str, *tables: str) -> None:
    """Add a column to tables and their histories, as a migration does."""
    with engine.begin() as connection:
        for table in tables:
            for each in (table, f"{table}_history"):
                connection.exec_driver_sql(f"ALTER TABLE {each} ADD COLUMN {name} INTEGER")


@pytest.mark.spread
@pytest.mark.parametrize("used", [False, True])
def test_a_column_that_comes_later_is_recorded(used, base, engine, sessions):
    model = item(base)
    base.metadata.create_all(engine)
    add_columns(engine, "size", "items")
    if used:
        live_and_die(sessions, model, {"name": "a"}, {"name": "b"})
    model.size = mapped_column(sa.Integer)
    engine.clear_compiled_cache()  # SQLAlchemy would go on selecting without the column
    live_and_die(sessions, model, {"id": 5, "name": "a", "size": 1}, {"size": 2})
    with sessions.begin() as session:
        session.add(model(id=6, size=1))
    with sessions.begin() as session:
        session.execute(sa.update(model).where(model.id == 6).values(size=3))
    with sessions() as session:
        versions = versions_of(session, model, 6)
        assert [version.size for version in versions] == [1, 3]
        undo(session, versions[-1].audit_changeset_id)
        assert session.get_one(model, 6, populate_existing=True).size == 1
        check_history(session, model)


def test_a_column_that_only_its_table_gets_is_recorded(base, engine, sessions):
    model = item(base)
    base.metadata.create_all(engine)
    add_columns(engine, "size", "items")
    with sessions.begin() as session:
        session.add(model(id=1))
    model.__table__.append_column(sa.Column("size", sa.Integer))
    with sessions.begin() as session:
        session.execute(sa.update(model.__table__).values(size=3))
    with sessions() as session:
        assert [version.size for version in versions_of(session, model, 1)] == [None, 3]


def test_columns_that_come_later_in_a_hierarchy_are_recorded_at_every_level(base, engine, sessions):
    party, person = hierarchy(base)
    base.metadata.create_all(engine)
    add_columns(engine, "size", "party")
    add_columns(engine, "age", "person")
    with sessions.begin() as session:
        session.add_all([party(id=1), person(id=2)])
    assert history_of(person)
    party.size = mapped_column(sa.Integer)
    person.age = mapped_column(sa.Integer)
    with sessions.begin() as session:
        session.get_one(party, 1).size = 5
        session.get_one(person, 2).size, session.get_one(person, 2).age = 7, 8
    with sessions() as session:
        assert [version.size for version in versions_of(session, party, 1)] == [None, 5]
        assert [(version.size, version.age) for version in versions_of(session, person, 2)] == [(None, None), (7, 8)]
        check_history(session, party)


def test_a_column_of_our_name_that_comes_later_is_refused(base):
    model = item(base)
    with pytest.raises(
        TrackingError, match=r"has a column 'valid_from'.*AuditColumns\(valid_from='audit_valid_from'\)"
    ):
        model.valid_from = mapped_column(sa.Integer)
    assert model.__table__.c.keys() == ["id", "name"]


@pytest.mark.spread
@pytest.mark.parametrize("used", [False, True])
def test_a_relationship_that_comes_later_has_a_history_of_its_links(used, base, engine, sessions):
    model = item(base)

    @track_table()
    class Tag(base):
        __tablename__ = "tags"
        id: Mapped[int] = mapped_column(primary_key=True)

    link = sa.Table(
        "link",
        base.metadata,
        sa.Column("item", sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("tag", sa.ForeignKey("tags.id"), primary_key=True),
    )
    base.metadata.create_all(engine)
    if used:
        with sessions.begin() as session:
            session.add(model())
    model.tags = relationship(Tag, secondary=link, backref="items")
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([model(id=7, tags=[Tag(id=1)]), Tag(id=2, items=[model(id=8)])])
    with sessions() as session:
        check_history(session, link)
        assert session.scalar(sa.select(sa.func.count()).select_from(base.metadata.tables["link_history"])) == 2


@pytest.mark.spread
def test_a_relationship_to_a_class_that_is_tracked_later_refuses_objects_of_the_past(base, engine, sessions):
    item(base)

    class Topic(base):
        __tablename__ = "topics"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Note: ...

    columns = sa.Column("id", sa.Integer, primary_key=True), sa.Column("topic_id", sa.ForeignKey("topics.id"))
    mapper = base.registry.map_imperatively(Note, sa.Table("notes", base.metadata, *columns))
    base.registry.configure()
    mapper.add_property("topic", relationship(Topic))
    track_table()(Topic)
    base.metadata.create_all(engine)
    with sessions() as session:
        session.add(Topic(id=1))
        session.commit()
        past = session.scalars(as_of(Topic, datetime.now(UTC))).one()
        with pytest.raises(ReadOnlyError, match="Assign the live object"):
            Note(topic=past)


# --- what ends, and copies --------------------------------------------------------------------------------------


@pytest.mark.spread
def test_classes_can_be_mapped_and_tracked_anew(engine, sessions):
    metadata = sa.MetaData()
    table = sa.Table("items", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", Name))
    tags = sa.Table("tags", metadata, sa.Column("id", sa.Integer, primary_key=True))
    link = sa.Table(
        "link",
        metadata,
        sa.Column("item", sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("tag", sa.ForeignKey("tags.id"), primary_key=True),
    )

    class Item:
        pass

    class Tag:
        pass

    for time in range(1, 4):
        registry = orm.registry(metadata=metadata)
        registry.map_imperatively(Tag, tags)
        registry.map_imperatively(Item, table, properties={"tags": relationship(Tag, secondary=link)})
        track_table()(Item)
        track_table()(Tag)
        metadata.create_all(engine)
        with sessions.begin() as session:
            session.add(new := Item())
            new.id, new.name, new.tags = time, "a", [Tag()]
        with sessions.begin() as session:
            session.execute(sa.update(Item).where(table.c.id == time).values(name="b"))
        with sessions() as session:
            assert [version.name for version in versions_of(session, Item, time)] == ["a", "b"]
            check_history(session, Item)
            check_history(session, link)
        registry.dispose()
    with sessions() as session, pytest.warns(SQLAuditWarning, match="no longer mapped to it.*track_table"):
        session.execute(table.update().values(name="c"))


def test_a_class_can_be_defined_anew_when_its_metadata_has_dropped_the_table(base, engine, sessions):
    base.metadata.remove(item(base).__table__)
    with pytest.warns(sa.exc.SAWarning, match="already contains a class"):
        model = item(base)
    base.metadata.create_all(engine)
    live_and_die(sessions, model, {"name": "a"}, {"name": "b"})


def test_a_copy_of_a_tracked_table_is_another_table(base, engine, sessions):
    item(base)
    other = orm.declarative_base()
    table = base.metadata.tables["items"].to_metadata(other.metadata)
    model = type("Other", (other,), {"__table__": table})
    other.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([model(id=1), model(id=2)])
        session.flush()
        session.execute(sa.update(model).where(model.id == 1).values(name="b"))
        session.execute(sa.update(model), [{"id": 2, "name": "b"}])
        session.execute(sa.delete(model).where(model.id == 2))
        assert session.scalars(sa.select(model.name)).all() == ["b"]
    with engine.begin() as connection:
        connection.execute(sa.delete(table))
    track_table()(model)
    other.metadata.create_all(engine)
    live_and_die(sessions, model, {"name": "a"}, {"name": "b"})
    other.metadata.drop_all(engine)
    other.registry.dispose()


def test_tables_that_are_created_from_copies_are_those_of_the_originals(base, engine, sessions):
    model, copies = item(base), sa.MetaData()
    for table in list(base.metadata.tables.values()):
        table.to_metadata(copies)
    copies.create_all(engine)
    with sessions.begin() as session:
        session.add(model(id=1, name="a"))
    for name in ("b", "c"):
        with sessions.begin() as session:
            session.get_one(model, 1).name = name
    with sessions() as session:
        assert [version.name for version in versions_of(session, model, 1)] == ["a", "b", "c"]


def test_a_pickled_metadata_is_one_of_tables_that_are_not_tracked(base, engine):
    item(base)
    copies = pickle.loads(pickle.dumps(base.metadata))  # our own
    copies.create_all(engine)
    with engine.begin() as connection:
        connection.execute(copies.tables["items"].insert().values(id=1))
        assert connection.scalars(sa.select(copies.tables["items"].c.id)).all() == [1]


# --- classes that are selected from several tables ---------------------------------------------------------------


SELECTED_FROM = {
    "a join of all": ({"with_polymorphic": "*"}, {}),
    "an inline subclass": ({}, {"polymorphic_load": "inline"}),
    "its table": ({}, {}),
}
WRITES: dict[str, Any] = {
    "an update": lambda a, x: [(sa.update(a).where(a.id > 1).values(n=5), None)],
    "a delete": lambda a, x: [(sa.delete(x).where(x.id == 2), None), (sa.delete(a).where(a.n == 1), None)],
    "a list": lambda a, x: [(sa.insert(a), [{"id": 7, "kind": "a"}, {"id": 8, "kind": "a"}])],
    "a list of the subclass": lambda a, x: [(sa.insert(x), [{"id": 7, "kind": "x", "v": 7}])],
    "one of the subclass by columns of both": lambda a, x: [(sa.update(x).where(a.n == 1).values(v=5), None)],
    "one of the subclass by its own": lambda a, x: [(sa.update(x).where(x.v == 1).values(v=5), None)],
    "one that is restricted": lambda a, x: [
        (sa.update(a).options(with_loader_criteria(a, a.n == 1)).values(n=6), None),
        (sa.update(x).options(with_loader_criteria(x, x.v == 0)).values(v=6), None),
    ],
}


@pytest.mark.spread
@pytest.mark.filterwarnings("ignore:.*cartesian product:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("selected_from", SELECTED_FROM)
def test_a_class_is_written_by_its_table_whatever_it_is_selected_from(selected_from, write, base, engine, sessions):
    of_base, of_subclass = SELECTED_FROM[selected_from]

    def hierarchy(prefix: str) -> tuple[Any, Any]:
        a = type(
            f"{prefix}A",
            (base,),
            {
                "__tablename__": f"{prefix}_a",
                "id": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
                "kind": mapped_column(sa.String(5)),
                "n": mapped_column(sa.Integer, default=0),
                "__mapper_args__": {"polymorphic_on": "kind", "polymorphic_identity": "a", **of_base},
            },
        )
        x = type(
            f"{prefix}X",
            (a,),
            {
                "__tablename__": f"{prefix}_x",
                "id": mapped_column(sa.ForeignKey(f"{prefix}_a.id", ondelete="CASCADE"), primary_key=True),
                "v": mapped_column(sa.Integer, default=0),
                "__mapper_args__": {"polymorphic_identity": "x", **of_subclass},
            },
        )
        return a, x

    plain, tracked = hierarchy("plain"), hierarchy("tracked")
    track_table()(tracked[0])
    base.metadata.create_all(engine)
    set_config(SQLAuditConfig(strict=True))
    written = []
    for a, x in (plain, tracked):
        with sessions() as session:
            session.add_all([a(id=1, n=1), x(id=2, n=1), x(id=3, n=2, v=1)])
            session.commit()
            options = {"synchronize_session": False}
            counts = []
            for statement, rows in WRITES[write](a, x):
                result = session.execute(statement, *([rows] if rows else []), execution_options=options)
                counts.append(None if statement.is_insert else result.rowcount)
            session.commit()
            tables = (a.__table__, x.__table__)
            written.append((counts, [session.execute(sa.select(each).order_by(each.c.id)).all() for each in tables]))
    assert written[0] == written[1]
    with sessions() as session:
        check_history(session, tracked[0])


# --- statements that name other classes than the one that they write ------------------------------------------------
# What SQLAlchemy adds of a class to a select, it adds to those within a statement, and not to the statement itself.


def _first_two(animal: Any) -> Any:
    return with_loader_criteria(animal, lambda cls: cls.id < 3, include_aliases=True)


NAMING: dict[str, Any] = {
    "a subclass": lambda toy, animal, dog: sa.update(toy).where(toy.owner == dog.id).values(n=5),
    "a subclass, and its values": lambda toy, animal, dog: (
        sa.update(toy).where(toy.owner == dog.id).values(n=dog.n + 5)
    ),
    "a subclass in a subquery": lambda toy, animal, dog: (
        sa.update(toy).where(toy.owner.in_(sa.select(dog.id))).values(n=5)
    ),
    "a subclass that is written": lambda toy, animal, dog: sa.update(dog).where(toy.owner == dog.id).values(n=5),
    "a class that is restricted": lambda toy, animal, dog: (
        sa.update(toy).where(toy.owner == animal.id).values(n=5).options(_first_two(animal))
    ),
    "one in a subquery": lambda toy, animal, dog: (
        sa.update(toy).where(toy.owner.in_(sa.select(animal.id))).values(n=5).options(_first_two(animal))
    ),
    "one in a subquery of a deletion": lambda toy, animal, dog: (
        sa.delete(toy).where(toy.owner.in_(sa.select(animal.id))).options(_first_two(animal))
    ),
    "one in an EXISTS": lambda toy, animal, dog: (
        sa.update(toy).where(sa.exists().where(animal.id == toy.owner)).values(n=5).options(_first_two(animal))
    ),
    "one in a scalar subquery": lambda toy, animal, dog: (
        sa.update(toy)
        .where(toy.id <= sa.select(sa.func.max(animal.id)).scalar_subquery())
        .values(n=5)
        .options(_first_two(animal))
    ),
    "one by a relationship": lambda toy, animal, dog: (
        sa.update(toy).where(toy.animal.has(animal.n == 0)).values(n=5).options(_first_two(animal))
    ),
    "one in a value": lambda toy, animal, dog: (
        sa.update(toy)
        .values(n=sa.select(sa.func.count(animal.id)).where(animal.id >= toy.id).scalar_subquery())
        .options(_first_two(animal))
    ),
    "one in the value of a key": lambda toy, animal, dog: (
        sa.update(toy)
        .where(toy.id == 6)
        .values(id=sa.select(sa.func.max(animal.id) + 10).scalar_subquery())
        .options(_first_two(animal))
    ),
    "nothing, by the table alone": lambda toy, animal, dog: (
        sa.update(dog).values(n=5).execution_options(dml_strategy="core_only").options(_first_two(animal))
    ),
}


@pytest.mark.spread
@pytest.mark.parametrize("name", NAMING)
def test_a_statement_that_names_other_classes_writes_the_same_rows(name, base, engine, sessions):
    def family(prefix: str) -> tuple[Any, Any, Any]:
        animal = type(
            f"{prefix}Animal",
            (base,),
            {
                "__tablename__": f"{prefix}_animals",
                "id": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
                "kind": mapped_column(sa.String(10)),
                "n": mapped_column(sa.Integer, default=0),
                "__mapper_args__": {"polymorphic_on": "kind", "polymorphic_identity": "animal"},
            },
        )
        dog = type(f"{prefix}Dog", (animal,), {"__mapper_args__": {"polymorphic_identity": "dog"}})
        toy = type(
            f"{prefix}Toy",
            (base,),
            {
                "__tablename__": f"{prefix}_toys",
                "id": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
                "owner": mapped_column(sa.ForeignKey(f"{prefix}_animals.id")),
                "n": mapped_column(sa.Integer, default=0),
                "animal": relationship(animal),
            },
        )
        return toy, animal, dog

    plain, tracked = family("plain"), family("tracked")
    for model in tracked[:2]:
        track_table()(model)
    base.metadata.create_all(engine)
    written = []
    for toy, animal, dog in (plain, tracked):
        with sessions() as session:
            session.add_all((dog if id % 2 else animal)(id=id) for id in range(1, 5))
            session.flush()
            session.add_all(toy(id=id, owner=id % 4 + 1) for id in range(1, 7))
            session.commit()
            statement = NAMING[name](toy, animal, dog)
            count = session.execute(statement, execution_options={"synchronize_session": False}).rowcount
            session.commit()
            tables = (toy.__table__, animal.__table__)
            written.append((count, [session.execute(sa.select(each).order_by(each.c.id)).all() for each in tables]))
    assert written[0] == written[1]
    with sessions() as session:
        for model in tracked[:2]:
            check_history(session, model)


# --- keys with NULL, and very wide tables -----------------------------------------------------------------------


@pytest.mark.requires("null_in_keys")
def test_a_row_with_null_in_its_key_is_written_with_a_warning(base, engine, sessions):
    @track_table()
    class Place(base):
        __tablename__ = "place"
        row: Mapped[int] = mapped_column(primary_key=True)
        seat: Mapped[str | None] = mapped_column(Name, primary_key=True, nullable=True)
        guest: Mapped[int | None]

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Place(row=2, seat="b"))
    writes = {
        "update()": sa.update(Place).where(Place.row == 3).values(guest=2),
        "insert() of many": sa.insert(Place).values([{"row": 4, "seat": None}, {"row": 5, "seat": "b"}]),
        "update() of all": sa.update(Place).values(guest=4),
        "delete()": sa.delete(Place).where(Place.row == 4),
    }
    with sessions() as session:
        session.add_all([Place(row=1), Place(row=3)])
        with pytest.warns(SQLAuditWarning, match="has NULL in its key"):
            session.commit()
        for write in writes.values():
            with pytest.warns(SQLAuditWarning, match="has NULL in its key"):
                session.execute(write)
            session.commit()
    with sessions() as session:
        kept = session.execute(sa.select(Place.row, Place.guest).order_by(Place.row)).all()
        assert kept == [(1, 4), (2, 4), (3, 4), (5, 4)]
        assert [version.guest for version in versions_of(session, Place, (2, "b"))] == [None, 4]
        assert [version.guest for version in versions_of(session, Place, (5, "b"))] == [None, 4]


@pytest.mark.spread
@pytest.mark.parametrize("width", [496, 1_000])
def test_a_very_wide_table_has_a_history(width, base, engine, sessions):
    names = [f"column_{number}" for number in range(width)]
    columns = {name: mapped_column(sa.Integer) for name in names}
    ident = mapped_column(sa.Integer, primary_key=True)
    wide = track_table()(type("Wide", (base,), {"__tablename__": "wide", "id": ident, **columns}))
    base.metadata.create_all(engine)
    live_and_die(sessions, wide, {"id": 1, **dict.fromkeys(names, 1)}, {names[-1]: 2})
    with sessions.begin() as session:
        session.add_all([wide(id=2), wide(id=3)])
    with sessions.begin() as session:
        session.execute(sa.update(wide).values(dict.fromkeys(names, 5)))
    with sessions() as session:
        check_history(session, wide)
        undo(session, versions_of(session, wide, 2)[-1].audit_changeset_id)
        check_history(session, wide)
        told = [change for key in (1, 2, 3) for change in get_resource_changes(wide, session, key)]
        told.sort(key=lambda change: (change.timestamp, change.resource_id, change.version))
        assert get_resource_changes(wide, session) == told
        assert get_resource_changes(wide, session, limit=width + 5, offset=3) == told[3 : width + 8]
        assert get_resource_changes(wide, session, limit=width * 2, newest_first=True) == told[: -width * 2 - 1 : -1]
        updated = {change.changeset_id for change in told if change.operation == "update"}
        assert [change for each in sorted(updated) for change in changes_in(session, each)] == [
            change for change in told if change.changeset_id in updated
        ]
