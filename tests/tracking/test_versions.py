"""A row leads to its versions by a relationship, and a page of versions to their changes by one statement."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column

from counting import counted
from sqlaudit import (
    AuditColumns,
    AuditContextManager,
    FieldChange,
    Operation,
    Temporal,
    TrackingError,
    get_resource_changes,
    time_travel,
    track_table,
    versions_of,
)

Text = sa.String(20)


class Base(orm.DeclarativeBase):
    pass


@track_table()
class Animal(Temporal, Base):
    __tablename__ = "animals"
    herd: Mapped[str] = mapped_column(Text, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


@track_table()
class Dog(Animal):
    __tablename__ = "dogs"
    herd: Mapped[str] = mapped_column(Text, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    trick: Mapped[str | None] = mapped_column(Text)
    __table_args__ = (sa.ForeignKeyConstraint(["herd", "number"], ["animals.herd", "animals.number"]),)
    __mapper_args__ = {"polymorphic_identity": "dog"}


@track_table(audit_columns=AuditColumns(operation="what"))
class Report(Base):
    """It has columns of the names of attributes of versions and models."""

    __tablename__ = "reports"
    id: Mapped[int] = mapped_column(primary_key=True)
    versions: Mapped[int]
    reason: Mapped[str] = mapped_column(Text)


def happen(sessions: orm.sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.add_all([Animal(herd="a", number=number, name="0") for number in range(3)])
        session.add_all([Dog(herd="b", number=number, name="0") for number in range(3)])
    for name in ("1", "2"):
        with AuditContextManager("ann", reason=name), sessions.begin() as session:
            for animal in session.scalars(sa.select(Animal)):
                animal.name = name
                if isinstance(animal, Dog):
                    animal.trick = name


def selects(statements: list[str]) -> list[str]:
    return [statement for statement in statements if statement.startswith("SELECT")]


def compared(change: FieldChange) -> tuple[Any, ...]:
    return str(change.resource_id), change.version, change.field_name, str(change.old_value), str(change.new_value)


@pytest.mark.parametrize(
    ("load", "statements"), [(orm.selectinload, 2), (orm.joinedload, 1), (orm.subqueryload, 2), (orm.lazyload, 7)]
)
def test_versions_load_with_their_rows_and_have_their_changes_without_a_statement(
    load, statements, session, engine, happened
):
    query = sa.select(Animal).options(load(Animal.versions)).order_by(Animal.herd, Animal.number)
    with counted(engine) as executed:
        animals = session.scalars(query).unique().all()
        versions = [list(animal.versions) for animal in animals]
        changes = [change for several in versions for version in several for change in version.changes]
    assert len(selects(executed)) == statements
    assert [[version.version for version in several] for several in versions] == [[1, 2, 3]] * 6
    assert {type(version) for several in versions for version in several} == {Animal.History, Dog.History}
    assert sorted(map(compared, changes)) == sorted(map(compared, get_resource_changes(Animal, session)))


def test_a_page_of_versions_reads_what_precedes_them_by_one_statement(session, engine, happened):
    newest = sa.select(Animal.History).where(Animal.History.version == 3)
    with counted(engine) as executed:
        versions = session.scalars(newest).all()
        names = [(change.field_name, change.old_value) for version in versions for change in version.changes]
        names += [("name", version.previous.name) for version in versions]
        assert {version.previous.previous.version for version in versions} == {1}
    assert len(selects(executed)) == 3  # one for the versions before, one for those before these
    assert sorted(names) == [("name", "1")] * 12 + [("trick", "1")] * 3


def test_a_version_that_is_no_longer_there_is_asked_for_once(session, engine, happened):
    history = Animal.__table__.metadata.tables["animals_history"]
    gone = sa.delete(history).where(history.c.audit_version == 2, history.c.herd == "a")
    with engine.begin() as connection:
        connection.execute(gone)
    versions = session.scalars(sa.select(Animal.History).where(Animal.History.version == 3)).all()
    with counted(engine) as executed:
        for _ in range(2):
            assert [len(version.changes) for version in versions if version.herd == "a"] == [0, 0, 0]
    assert len(selects(executed)) == 1


@pytest.mark.requires("case_insensitive")
def test_the_version_before_is_found_by_another_spelling_of_the_key(sessions, happened):
    with sessions.begin() as session:
        session.execute(sa.update(Animal).where(Animal.herd == "a", Animal.number == 1).values(herd="A", name="3"))
    with sessions() as session:
        (version,) = versions_of(session, Animal, ("a", 1), newest_first=True, limit=1)
        assert (version.herd, version.previous.herd, version.previous.name) == ("A", "a", "2")


def test_attributes_of_versions_are_columns_in_queries(session, happened):
    history = Dog.History
    query = sa.select(history).where(history.operation == Operation.UPDATE, history.reason == "2")
    dogs = session.scalars(query.order_by(history.timestamp, history.number)).all()
    assert [(dog.trick, dog.changed_by, dog.extra, dog.impersonated_by) for dog in dogs] == [
        ("2", "ann", None, None)
    ] * 3
    assert len({dog.changeset_id for dog in dogs}) == 1


def test_columns_of_the_model_hide_attributes_of_versions_of_the_same_names(session):
    session.add(Report(id=1, versions=7, reason="r"))
    session.commit()
    (version,) = versions_of(session, Report, 1)
    assert (version.versions, version.reason, version.operation) == (7, "r", "insert")


def test_an_object_of_the_past_has_all_its_versions(session, happened):
    then = versions_of(session, Dog, ("b", 1))[0].valid_from
    with time_travel(session, then) as past:
        animal = past.get_one(Dog, ("b", 1))
        assert (animal.name, [version.name for version in animal.versions]) == ("0", ["0", "1", "2"])
        assert [len(version.changes) for version in animal.versions] == [4, 2, 2]


def test_a_changed_list_of_versions_writes_nothing(sessions, happened):
    with sessions.begin() as session:
        animal = session.get_one(Animal, ("a", 0))
        animal.versions.clear()
        animal.name = "3"
    with sessions.begin() as session:
        animal = session.get_one(Animal, ("a", 0))
        assert len(animal.versions) == 4
        session.delete(animal)
    with sessions() as session:
        assert len(versions_of(session, Animal, ("a", 0))) == 5


def test_a_class_that_is_not_tracked_has_no_versions(base):
    class Plain(Temporal, base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(TrackingError, match=r"Plain is not a tracked model. Decorate it"):
        _ = Plain.versions


def test_concrete_subclasses_have_versions_of_their_own(base, engine, sessions):
    @track_table()
    class Shop(base):
        __tablename__ = "shops"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Stand(Shop):
        __tablename__ = "stands"
        id: Mapped[int] = mapped_column(primary_key=True)
        __mapper_args__ = {"concrete": True}

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all(rows := [Shop(id=1), Stand(id=1)])
        session.commit()
        histories: list[Any] = [type(version) for row in rows for version in row.versions]
        assert [history.__qualname__.split(".")[-2] for history in histories] == ["Shop", "Stand"]
