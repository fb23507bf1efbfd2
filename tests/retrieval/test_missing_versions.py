"""What is missing from a history gives no wrong answer: two ways to ask agree, and what nobody knows is unknown."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from clock import at
from sqlaudit import (
    AuditContextManager,
    QueryError,
    UndoConflictError,
    as_of,
    blame,
    changes_in,
    get_resource_changes,
    history_of,
    restore,
    stream_resource_changes,
    time_travel,
    track_table,
    undo,
    versions_of,
)

pytestmark = pytest.mark.usefixtures("clock")

VERSIONS = 9
MISSING = [
    [1],
    [1, 2, 3],
    [2],
    [3],
    [4],
    [5],
    [6],
    [3, 4, 5],
    [2, 4, 6, 8],
    [4, 5, 6, 7, 8],
    [9],
    [8, 9],
    [1, 9],
    [1, 5],
]


class Base(DeclarativeBase):
    pass


@track_table()
class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(20))
    name: Mapped[str] = mapped_column(sa.String(20))
    city: Mapped[str] = mapped_column(sa.String(20))
    boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("people.id"))
    staff: Mapped[list["Person"]] = relationship()
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Clerk(Person):
    __tablename__ = "clerks"
    id: Mapped[int] = mapped_column(sa.ForeignKey("people.id"), primary_key=True)
    pay: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "clerk"}


HISTORIES = [history_of(each).__table__ for each in (Clerk, Person)]


@pytest.fixture
def life(sessions: Any) -> Any:
    """One person, and one clerk, of nine versions each, each by another user; the city never changes."""
    for number in range(VERSIONS):
        with AuditContextManager(user_id=f"user {number + 1}"), sessions.begin() as session:
            if number == 0:
                session.add_all([Person(id=1, name="0", city="Rome"), Clerk(id=2, name="0", city="Rome", pay=0)])
            for person in session.scalars(sa.select(Person)) if number else ():
                person.name = str(number)
                if isinstance(person, Clerk):
                    person.pay = number
    return sessions


def remove(engine: sa.Engine, numbers: list[int]) -> None:
    with engine.begin() as connection:  # which has no hooks
        for history in HISTORIES:
            connection.execute(sa.delete(history).where(history.c.audit_version.in_(numbers)))


def values(rows: Any) -> list[Any]:
    return sorted((row.id, row.name, getattr(row, "pay", None)) for row in rows)


@pytest.mark.spread
@pytest.mark.parametrize("numbers", MISSING, ids=str)
def test_a_row_is_the_same_by_its_key_and_among_all(life: Any, engine: sa.Engine, numbers: list[int]) -> None:
    remove(engine, numbers)
    table: Any = Clerk.__table__
    with life() as session:
        for half_seconds in range(-1, 2 * VERSIONS + 1):
            when = at(half_seconds / 2)
            everything = values(session.scalars(as_of(Person, when)))
            remaining = half_seconds // 2 + 1 not in numbers and half_seconds >= 0
            open_end = half_seconds // 2 + 1 > VERSIONS and VERSIONS not in numbers
            assert bool(everything) == (open_end or (remaining and half_seconds // 2 < VERSIONS)), when
            found = [session.scalar(as_of(Person, when).where(Person.id == key)) for key in (1, 2)]
            assert values(filter(None, found)) == everything, when
            with time_travel(session, when) as past:
                assert values(filter(None, [past.get(Person, key) for key in (1, 2)])) == everything, when
                pays = past.scalars(sa.select(table.c.pay)).all()
                assert past.scalars(sa.select(table.c.pay).where(table.c.id == 2)).all() == pays, when


def test_a_table_that_lacks_versions_of_its_base_is_the_same_by_its_key(life: Any, engine: sa.Engine) -> None:
    clerks, people = HISTORIES
    table: Any = Clerk.__table__
    with engine.begin() as connection:
        connection.execute(sa.delete(people).where(people.c.audit_version.in_([3, 5])))
        connection.execute(sa.delete(clerks).where(clerks.c.audit_version == 7))
    for second in range(VERSIONS):
        with life() as session, time_travel(session, at(second)) as past:
            pays = past.scalars(sa.select(table.c.pay)).all()
            assert past.scalars(sa.select(table.c.pay).where(table.c.id == 2)).all() == pays == [second] * (second != 6)
            assert values(filter(None, [past.get(Clerk, 2)])) == values(past.scalars(sa.select(Clerk)))


def told(found: Any) -> tuple[Any, ...]:
    return found.version, found.changed_by, found.unknown_before


@pytest.mark.spread
@pytest.mark.parametrize(
    ("numbers", "name", "city"),
    [
        ([], (9, "user 9", False), (1, "user 1", False)),
        ([1], (9, "user 9", False), (2, None, True)),
        ([1, 2, 3], (9, "user 9", False), (4, None, True)),
        ([1, 2, 3, 4, 5, 6, 7, 8], (9, None, True), (9, None, True)),
        ([8], (9, None, True), (9, None, True)),
        ([4, 5], (9, "user 9", False), (6, None, True)),
        ([9], (8, None, False), (1, None, False)),
        ([8, 9], (7, None, False), (1, None, False)),
        ([1, 9], (8, None, False), (2, None, True)),
    ],
    ids=str,
)
def test_blame_names_nobody_who_is_unknown(
    life: Any, engine: sa.Engine, numbers: list[int], name: Any, city: Any
) -> None:
    remove(engine, numbers)
    with life() as session:
        for model, key in ((Person, 1), (Clerk, 2)):
            found = blame(session, model, key)
            assert (told(found["name"]), told(found["city"])) == (name, city)
            assert {each.unknown_after for each in found.values()} == {VERSIONS in numbers}
            assert all(each.reason is each.extra is each.impersonated_by is None for each in found.values())
        assert told(blame(session, Clerk, 2)["pay"]) == name


def place_of(changes: Any) -> set[tuple[Any, ...]]:
    """Tell which changes these are, but for those of the columns that only clerks have."""
    return {(each.resource_id, each.version, each.field_name) for each in changes if each.field_name != "pay"}


@pytest.mark.spread
@pytest.mark.parametrize("numbers", MISSING, ids=str)
def test_field_changes_tell_only_what_is_known(life: Any, engine: sa.Engine, numbers: list[int]) -> None:
    with life() as session:
        before = get_resource_changes(Person, session)
    remove(engine, numbers)
    known = [
        each
        for each in before
        if each.version not in numbers and (each.version == 1 or each.version - 1 not in numbers)
    ]
    with life() as session:
        assert get_resource_changes(Person, session) == known
        assert list(stream_resource_changes(Person, session)) == known
        for key in (1, 2):
            of_row = [each for each in known if each.resource_id == key]
            assert get_resource_changes(Person, session, key) == of_row
            listed = [change for version in versions_of(session, Person, key) for change in version.changes]
            assert place_of(listed) == place_of(of_row)
        for changeset_id in {each.changeset_id for each in known}:
            of_changeset = [each for each in known if each.changeset_id == changeset_id]
            assert place_of(changes_in(session, changeset_id)) == place_of(of_changeset)


def test_what_was_before_a_missing_version_is_neither_restored_nor_undone(life: Any, engine: sa.Engine) -> None:
    remove(engine, [1, 2, 5])
    with life() as session:
        third, sixth = (versions_of(session, Person, 1)[place].audit_changeset_id for place in (0, 2))
        for changeset_id in (third, sixth):
            with pytest.raises(QueryError, match="no longer has"):
                undo(session, changeset_id, force=True)
        with pytest.raises(QueryError, match="has the versions 3 to 9"):
            restore(session, Person, 1, at=at(1))
        with pytest.raises(QueryError, match="has no state"):
            restore(session, Person, 1, at=at(4))
        assert session.get_one(Person, 1).name == "8"


def test_a_later_change_whose_version_is_missing_is_a_conflict(life: Any, engine: sa.Engine) -> None:
    remove(engine, [9])
    with life() as session:
        *_, seventh, eighth = (each.audit_changeset_id for each in versions_of(session, Person, 1))
        for changeset_id, changed_by, second in ((seventh, "user 8", 7), (eighth, None, 8)):
            with pytest.raises(UndoConflictError) as refused:
                undo(session, changeset_id)
            conflicts = [(each.key, each.changed_by, each.timestamp) for each in refused.value.conflicts]
            assert conflicts == [(key, changed_by, at(second)) for key in (1, 2)]
        assert session.get_one(Person, 1).name == "8"
        undo(session, eighth, force=True)
        assert session.get_one(Person, 1).name == "6"


def test_a_later_deletion_whose_version_is_missing_is_a_conflict(life: Any, engine: sa.Engine) -> None:
    with life.begin() as session:
        session.delete(session.get_one(Person, 1))
    remove(engine, [10])
    with life() as session:
        changeset_id = versions_of(session, Person, 1)[-1].audit_changeset_id
        with pytest.raises(UndoConflictError, match=r"Person 1 \(by unknown at"):
            undo(session, changeset_id)
        assert session.get(Person, 1) is None


def test_a_row_whose_early_versions_are_missing_is_not_taken_for_one_that_came_later(
    life: Any, engine: sa.Engine
) -> None:
    with life.begin() as session:
        session.add(Person(id=3, name="new", city="Rome", boss_id=1))
    with life.begin() as session:
        session.delete(session.get_one(Person, 3))
    with life.begin() as session:
        session.add(Person(id=3, name="again", city="Rome", boss_id=1))
        session.add(Person(id=4, name="late", city="Rome", boss_id=1))
    with engine.begin() as connection:
        people = HISTORIES[1]
        connection.execute(sa.delete(people).where(people.c.id == 3, people.c.audit_version < 3))
    with life.begin() as session:
        restore(session, Person, 1, at=at(9.5), include=["staff"])
    with life() as session:
        assert {each.id for each in session.scalars(sa.select(Person))} == {1, 2, 3}


def test_blame_of_a_baseline_says_that_it_may_be_older(sessions: Any, engine: sa.Engine) -> None:
    with Session(engine) as plain, plain.begin():
        plain.connection().execute(
            sa.insert(Person.__table__), {"id": 1, "kind": "person", "name": "Ada", "city": "Rome"}
        )
    with AuditContextManager(user_id="bob"), sessions.begin() as session:
        session.get_one(Person, 1).name = "Bob"
    with sessions() as session:
        found = blame(session, Person, 1)
        assert (told(found["name"]), told(found["city"])) == ((2, "bob", False), (1, None, True))
