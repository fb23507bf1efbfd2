"""Objects of a class hierarchy have one history, whichever tables they live in."""

from itertools import accumulate, count
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, mapped_column

from lifecycle import live_and_die
from sqlaudit import TrackingError, get_resource_changes, history_of, track_table, versions_of

pytestmark = pytest.mark.spread

Name = sa.String(50)


def single(base, late=False, decorate=lambda name: lambda each: each):
    """Three classes in one table; the base class is tracked before or after the others are declared."""

    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        name: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    if not late:
        track_table()(Person)

    @decorate("Employee")
    class Employee(Person):
        salary: Mapped[int | None] = mapped_column("pay")
        __mapper_args__ = {"polymorphic_identity": "employee"}

    @decorate("Boss")
    class Boss(Employee):
        title: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_identity": "boss"}

    if late:
        track_table()(Person)
    return Person, Employee, Boss


def joined(base, late=False, decorate=lambda name: lambda each: each):
    """The same, in three tables, whose keys have different names."""

    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        name: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    if not late:
        track_table()(Person)

    @decorate("Employee")
    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column("person_id", sa.ForeignKey("person.id"), primary_key=True)
        salary: Mapped[int | None] = mapped_column("pay")
        __mapper_args__ = {"polymorphic_identity": "employee"}

    @decorate("Boss")
    class Boss(Employee):
        __tablename__ = "boss"
        boss_id: Mapped[int] = mapped_column(sa.ForeignKey("employee.person_id"), primary_key=True)
        title: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {"polymorphic_identity": "boss"}

    if late:
        track_table()(Person)
    return Person, Employee, Boss


ARRANGEMENTS = pytest.mark.parametrize(
    ("hierarchy", "late"),
    [(single, False), (single, True), (joined, False), (joined, True)],
    ids=["single-before", "single-after", "joined-before", "joined-after"],
)


@ARRANGEMENTS
def test_objects_of_every_level_have_a_history(hierarchy, late, base, engine, sessions):
    levels = hierarchy(base, late)
    base.metadata.create_all(engine)
    new, changed = {"name": "a", "salary": 1, "title": "x"}, {"name": "b", "salary": 2, "title": "y"}
    ids = count(1)
    for model, names in zip(levels, accumulate([[name] for name in new]), strict=True):
        for change in (names, *([name] for name in names)):
            row = {"id": next(ids)} | {name: new[name] for name in names}
            versions = live_and_die(sessions, model, row, {name: changed[name] for name in change})
            assert {type(version) for version in versions} == {history_of(model)}
    base.metadata.drop_all(engine)
    assert sa.inspect(engine).get_table_names() == []


@ARRANGEMENTS
def test_the_versions_of_a_base_class_are_of_each_object_s_own_class(hierarchy, late, base, engine, sessions):
    person, employee, boss = hierarchy(base, late)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([person(id=1), employee(id=2, salary=5), boss(id=3, salary=6, title="x")])
    with sessions() as session:
        versions = [versions_of(session, person, key)[0] for key in (1, 2, 3)]
        assert [type(version) for version in versions] == [person.History, employee.History, boss.History]
        assert (versions[1].salary, versions[2].salary, versions[2].title) == (5, 6, "x")
        assert session.scalars(sa.select(employee.History.id).order_by(employee.History.id)).all() == [2, 3]
        assert versions_of(session, boss, 2) == []


@ARRANGEMENTS
def test_the_changes_of_a_base_class_tell_the_fields_of_its_subclasses(hierarchy, late, base, engine, sessions):
    person, employee, boss = hierarchy(base, late)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([person(id=1), employee(id=2, salary=5), boss(id=3, salary=6, title="x")])
    with sessions.begin() as session:
        session.get_one(boss, 3).title = "y"

    def told(model: Any) -> set[tuple[Any, str, Any]]:
        changes = get_resource_changes(model, session)
        return {
            (c.resource_id, c.field_name, c.new_value) for c in changes if c.field_name in ("name", "salary", "title")
        }

    with sessions() as session:
        of_bosses = {(3, "salary", 6), (3, "title", "x"), (3, "title", "y")}
        assert told(boss) == of_bosses
        assert told(employee) == told(person) == of_bosses | {(2, "salary", 5)}


@ARRANGEMENTS
def test_a_decorated_subclass_has_options_of_its_own(hierarchy, late, base, engine, sessions):
    options = {
        "Employee": {"tracked_fields": ["salary"], "table_label": "Angestellte"},
        "Boss": {"tracked_fields": ["title"], "user_id_field": "title"},
    }

    def decorate(name):
        return (lambda each: decorated.append((each, name)) or each) if late else track_table(**options[name])

    decorated: list[tuple[Any, str]] = []
    _, employee, boss = hierarchy(base, late, decorate)
    for each, name in decorated:
        track_table(**options[name])(each)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([employee(id=2, salary=5), boss(id=3, salary=6, title="x")])
    with sessions() as session:
        changes = get_resource_changes(boss, session)
        assert [(c.field_name, c.resource_type, c.changed_by) for c in changes] == [("title", "Boss", "x")]
        changes = get_resource_changes(employee, session, filter_resource_ids=2)
        assert [(c.field_name, c.resource_type, c.changed_by) for c in changes] == [("salary", "Angestellte", None)]


def test_a_decorated_joined_subclass_may_exclude_columns_and_name_its_history_table(base, engine, sessions):
    def decorate(name):
        return (
            track_table(exclude=["salary"], history_table_name="pay_log") if name == "Employee" else lambda each: each
        )

    _, employee, boss = joined(base, decorate=decorate)
    base.metadata.create_all(engine)
    assert sa.inspect(engine).has_table("pay_log")
    assert not sa.inspect(engine).has_table("employee_history")
    live_and_die(sessions, employee, {"name": "a"}, {"name": "b"}, exclude=frozenset({"salary"}))
    live_and_die(sessions, boss, {"id": 9, "name": "a", "title": "x"}, {"title": "y"}, exclude=frozenset({"salary"}))


def test_every_table_of_a_joined_object_has_the_same_versions(base, engine, sessions):
    *_, boss = joined(base)
    base.metadata.create_all(engine)
    live_and_die(sessions, boss, {"name": "a", "salary": 1, "title": "x"}, {"salary": 2})
    with engine.connect() as connection:
        told = [
            connection.execute(
                sa.select(*(history.c[name] for name in ("audit_version", "valid_from", "valid_to", "audit_operation")))
            ).all()
            for history in (base.metadata.tables[f"{name}_history"] for name in ("person", "employee", "boss"))
        ]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 3


def test_a_discriminator_may_be_an_expression(base, engine, sessions):
    @track_table()
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        salary: Mapped[int | None] = mapped_column()
        name: Mapped[str | None] = mapped_column(Name)
        __mapper_args__ = {
            "polymorphic_on": sa.case((salary.column > 0, "employee"), else_="person"),
            "polymorphic_identity": "person",
        }

    class Employee(Person):
        __mapper_args__ = {"polymorphic_identity": "employee"}

    base.metadata.create_all(engine)
    first, *_ = live_and_die(sessions, Employee, {"name": "a", "salary": 1}, {"name": "b"})
    assert type(first) is history_of(Employee)


def test_a_discriminator_may_be_a_column_property(base, engine, sessions):
    @track_table()
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        salary: Mapped[int | None] = mapped_column()
        name: Mapped[str | None] = mapped_column(Name)
        kind: Mapped[str] = orm.column_property(sa.case((salary.column > 0, "employee"), else_="person"))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Employee(Person):
        __mapper_args__ = {"polymorphic_identity": "employee"}

    base.metadata.create_all(engine)
    first, *_ = live_and_die(sessions, Employee, {"name": "a", "salary": 1}, {"name": "b"})
    assert type(first) is history_of(Employee)


def test_joined_tables_need_no_discriminator(base, engine, sessions):
    @track_table()
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)

    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
        salary: Mapped[int | None]

    base.metadata.create_all(engine)
    live_and_die(sessions, Employee, {"name": "a", "salary": 1}, {"salary": 2})
    live_and_die(sessions, Person, {"id": 9, "name": "a"}, {"name": "b"})


def test_joined_tables_may_have_a_composite_key(base, engine, sessions):
    @track_table()
    class Place(base):
        __tablename__ = "place"
        country: Mapped[str] = mapped_column(sa.String(2), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str | None] = mapped_column(Name)

    class Shop(Place):
        __tablename__ = "shop"
        no: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        land: Mapped[str] = mapped_column(sa.String(2), primary_key=True)
        hours: Mapped[int | None]
        __table_args__ = (sa.ForeignKeyConstraint(["land", "no"], ["place.country", "place.number"]),)

    base.metadata.create_all(engine)
    live_and_die(sessions, Shop, {"country": "de", "number": 1, "name": "a", "hours": 1}, {"hours": 2})


def test_joined_tables_may_have_columns_of_one_name(base, engine, sessions):
    @track_table()
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        note: Mapped[str | None] = mapped_column(Name)

    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
        remark: Mapped[str | None] = mapped_column("note", Name)

    base.metadata.create_all(engine)
    first, second, _ = live_and_die(sessions, Employee, {"note": "a", "remark": "b"}, {"remark": "c"})
    assert [(first.note, first.remark), (second.note, second.remark)] == [("a", "b"), ("a", "c")]


def test_single_table_subclasses_of_joined_ones_have_a_history(base, engine, sessions):
    _, employee, _ = joined(base)

    class Trainee(employee):
        year: Mapped[int | None]
        __mapper_args__ = {"polymorphic_identity": "trainee"}

    base.metadata.create_all(engine)
    live_and_die(sessions, Trainee, {"name": "a", "year": 1}, {"year": 2})
    live_and_die(sessions, Trainee, {"id": 9, "name": "a", "year": 1}, {"name": "b"})


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("decorated", [False, True])
def test_concrete_tables_have_histories_of_their_own(late, decorated, base, engine, sessions):
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)

    if not late:
        track_table()(Person)

    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(Name)
        salary: Mapped[int | None]
        __mapper_args__ = {"concrete": True}

    if late:
        track_table()(Person)
    if decorated:
        track_table(table_label="Angestellte", history_table_name="pay_log")(Employee)
    base.metadata.create_all(engine)
    assert set(sa.inspect(engine).get_table_names()) == {
        "person",
        "person_history",
        "employee",
        "pay_log" if decorated else "employee_history",
    }
    live_and_die(sessions, Employee, {"id": 1, "name": "a", "salary": 1}, {"salary": 2})
    live_and_die(sessions, Person, {"id": 2, "name": "a"}, {"name": "b"})


def test_a_concrete_subclass_of_an_untracked_class_may_be_tracked(base, engine, sessions):
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)

    @track_table()
    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(primary_key=True)
        salary: Mapped[int | None]
        __mapper_args__ = {"concrete": True}

    base.metadata.create_all(engine)
    live_and_die(sessions, Employee, {"salary": 1}, {"salary": 2})
    assert "person_history" not in base.metadata.tables


def test_a_change_of_a_single_table_column_that_came_after_the_first_statement_is_stored(base, engine, sessions):
    person, *_ = single(base)
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(person(id=1, name="a"))
    base.metadata.drop_all(engine)

    class Guest(person):
        room: Mapped[int | None]
        __mapper_args__ = {"polymorphic_identity": "guest"}

    base.metadata.create_all(engine)
    live_and_die(sessions, Guest, {"name": "a", "room": 1}, {"room": 2})


def test_a_joined_subclass_of_an_untracked_class_is_refused(base):
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)

    with pytest.raises(TrackingError, match=r"Employee shares its rows with Person.*. Decorate Person"):
        track_table()(Employee)
    assert "employee_history" not in base.metadata.tables
