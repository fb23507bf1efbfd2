"""Is what the ORM, or the database on its own, does to children recorded?"""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from invariants import check_history, told
from registering import recording
from sqlaudit import AuditContextManager, history_of, track_table

Sessions = sessionmaker[Session]
CASCADE, SET_NULL = "CASCADE", "SET NULL"


class Base(DeclarativeBase):
    pass


@track_table()
class Parent(Base):
    __tablename__ = "parents"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    code: Mapped[str] = mapped_column(sa.String(20), unique=True)
    favourite_id: Mapped[int | None] = mapped_column(
        sa.ForeignKey("children.id", use_alter=True, name="fk_favourite", ondelete=SET_NULL)
    )
    children: Mapped[list["Child"]] = relationship(
        cascade="all, delete-orphan", back_populates="parent", foreign_keys="Child.parent_id"
    )
    favourite: Mapped["Child | None"] = relationship(foreign_keys=favourite_id, post_update=True)
    loose: Mapped[list["Loose"]] = relationship()
    cascaded: Mapped[list["Cascaded"]] = relationship(cascade="all, delete", passive_deletes=True)
    nulled: Mapped[list["Nulled"]] = relationship(passive_deletes="all")


@track_table()
class Child(Base):
    __tablename__ = "children"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id"))
    parent: Mapped[Parent | None] = relationship(back_populates="children", foreign_keys=parent_id)
    toys: Mapped[list["Toy"]] = relationship(cascade="all, delete-orphan")


@track_table()
class Toy(Base):
    """A row that the ORM deletes with an orphan."""

    __tablename__ = "toys"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    child_id: Mapped[int] = mapped_column(sa.ForeignKey("children.id"))


@track_table()
class Scratch(Base):
    """A row that the database deletes with what the ORM deletes with an orphan."""

    __tablename__ = "scratches"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    toy_id: Mapped[int] = mapped_column(sa.ForeignKey("toys.id", ondelete=CASCADE))


@track_table()
class Loose(Base):
    __tablename__ = "loose"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id"))


@track_table()
class Cascaded(Base):
    __tablename__ = "cascaded"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id", ondelete=CASCADE))


class Special(Cascaded):
    """A child in two tables."""

    __tablename__ = "special"

    id: Mapped[int] = mapped_column(sa.ForeignKey("cascaded.id", ondelete=CASCADE), primary_key=True)
    note: Mapped[str | None] = mapped_column(sa.String(20))


@track_table()
class Grandchild(Base):
    __tablename__ = "grandchildren"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    cascaded_id: Mapped[int] = mapped_column(sa.ForeignKey("cascaded.id", ondelete=CASCADE))


@track_table()
class Nulled(Base):
    __tablename__ = "nulled"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id", ondelete=SET_NULL))


@track_table()
class Coded(Base):
    """A child that follows a column of its parent that is not the key."""

    __tablename__ = "coded"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    code: Mapped[str | None] = mapped_column(sa.ForeignKey("parents.code", ondelete=CASCADE, onupdate=CASCADE))


@track_table()
class Node(Base):
    __tablename__ = "nodes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    above_id: Mapped[int | None] = mapped_column(sa.ForeignKey("nodes.id", ondelete=CASCADE))


@track_table()
class Key(Base):
    __tablename__ = "natural_keys"

    name: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
    following: Mapped[list["Following"]] = relationship(passive_updates=True)


@track_table()
class Following(Base):
    __tablename__ = "following"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.ForeignKey("natural_keys.name", onupdate=CASCADE))


@track_table()
class Part(Base):
    """A child whose own key is its parent's, so that the database changes it."""

    __tablename__ = "parts"

    name: Mapped[str] = mapped_column(sa.ForeignKey("natural_keys.name", onupdate=CASCADE), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


TRACKED = (Parent, Child, Toy, Scratch, Loose, Cascaded, Grandchild, Nulled, Coded, Node, Key, Following, Part)


def check(sessions: Sessions, all_recorded: bool = True) -> None:
    with sessions() as session:
        for model in TRACKED:
            check_history(session, model, all_recorded=all_recorded)


def found(sessions: Sessions, model: Any, *fields: str) -> list[tuple[Any, ...]]:
    with sessions() as session:
        return told(session, model, *fields)


def one_changeset(sessions: Sessions, *models: Any) -> bool:
    """Whether the deletions of all these were recorded together, for the same user."""
    with sessions() as session:
        seen = {
            (each.audit_changeset_id, each.valid_from, each.audit_changed_by)
            for model in models
            for each in session.scalars(sa.select(history_of(model)))
            if each.audit_operation == "delete"
        }
    return len(seen) == 1 and seen.pop()[2] == "ann"


def delete(sessions: Sessions, model: Any, key: Any) -> None:
    with AuditContextManager(user_id="ann"), sessions.begin() as session:
        session.delete(session.get_one(model, key))


# --- what the ORM does ------------------------------------------------------------------------------------------


def test_children_that_the_orm_deletes_have_tombstones(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a", children=[Child(id=1), Child(id=2)]))
    delete(sessions, Parent, 1)
    check(sessions)
    assert found(sessions, Child, "id", "parent_id") == [
        ("insert", 1, 1),
        ("delete", 1, 1),
        ("insert", 2, 1),
        ("delete", 2, 1),
    ]
    assert one_changeset(sessions, Parent, Child)


def test_an_orphan_has_a_tombstone(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a", children=[Child(id=1), Child(id=2)]))
    with sessions.begin() as session:
        parent = session.get_one(Parent, 1)
        parent.children.remove(parent.children[0])
    check(sessions)
    assert found(sessions, Child, "id", "parent_id") == [("insert", 1, 1), ("delete", 1, 1), ("insert", 2, 1)]


def test_what_goes_with_an_orphan_has_tombstones(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a", children=[Child(id=1, toys=[Toy(id=1)])]))
        session.flush()
        session.add(Scratch(id=1, toy_id=1))
    with sessions.begin() as session:
        parent = session.get_one(Parent, 1)
        parent.children.clear()
    check(sessions)
    assert found(sessions, Toy, "id") == [("insert", 1), ("delete", 1)]
    assert found(sessions, Scratch, "id") == [("insert", 1), ("delete", 1)]


def test_what_another_listener_deletes_and_changes_is_recorded(sessions: Sessions, engine: sa.Engine) -> None:
    def join_in(session: Session, *args: Any) -> None:
        session.delete(session.get_one(Parent, 1))
        older.parent_id = None

    with sessions.begin() as session:
        session.add_all([Parent(id=1, code="a"), Parent(id=2, code="b")])
        session.flush()
        session.add(Cascaded(id=1, parent_id=1))
    with engine.begin() as connection:
        connection.execute(sa.insert(Loose).values(id=1, parent_id=2))
    with sessions.begin() as session:
        older, changed = session.get_one(Loose, 1), session.get_one(Parent, 1)
        session.expire(older)
        changed.code = "c"
        sa.event.listen(session, "before_flush", join_in)
    check(sessions)
    assert found(sessions, Cascaded, "parent_id") == [("insert", 1), ("delete", 1)]
    assert found(sessions, Loose, "parent_id") == [("baseline", 2), ("update", None)]


def test_children_that_the_orm_parts_from_their_parent_have_versions(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a", loose=[Loose(id=1)]))
    delete(sessions, Parent, 1)
    check(sessions)
    assert found(sessions, Loose, "parent_id") == [("insert", 1), ("update", None)]


def test_children_that_the_orm_moves_have_versions(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Parent(id=1, code="a", loose=[Loose(id=1)]), Parent(id=2, code="b")])
    with sessions.begin() as session:
        one, two = session.get_one(Parent, 1), session.get_one(Parent, 2)
        two.loose.append(one.loose.pop())
    check(sessions)
    assert found(sessions, Loose, "parent_id") == [("insert", 1), ("update", 2)]


def test_a_post_update_is_part_of_its_flush(sessions: Sessions) -> None:
    with sessions.begin() as session:
        child = Child(id=1)
        session.add(Parent(id=1, code="a", children=[child], favourite=child))
    check(sessions)
    assert found(sessions, Parent, "favourite_id") == [("insert", 1)]
    with sessions.begin() as session:
        session.get_one(Parent, 1).favourite = None
    check(sessions)
    assert found(sessions, Parent, "favourite_id") == [("insert", 1), ("update", None)]
    with sessions.begin() as session:
        parent = session.get_one(Parent, 1)
        parent.favourite = session.get_one(Child, 1)
    check(sessions)
    delete(sessions, Parent, 1)
    check(sessions)
    assert found(sessions, Parent, "favourite_id")[-2][0] == "update"
    assert found(sessions, Parent, "id")[-1] == ("delete", 1)


def test_a_post_update_of_an_otherwise_unchanged_row_is_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        child = Child(id=1)
        session.add(Parent(id=1, code="a", children=[child], favourite=child))
    with sessions.begin() as session:
        parent = session.get_one(Parent, 1)
        session.delete(parent.children[0])
        parent.favourite = None
    check(sessions)
    assert found(sessions, Parent, "favourite_id") == [("insert", 1), ("update", None)]


# --- what the database does -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", [False, True])
def test_children_that_the_database_deletes_have_tombstones(sessions: Sessions, loaded: bool) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a"))
        session.add(Parent(id=2, code="b"))
        session.flush()
        session.add_all([Cascaded(id=1, parent_id=1), Cascaded(id=2, parent_id=1), Cascaded(id=3, parent_id=2)])
    with AuditContextManager(user_id="ann"), sessions.begin() as session:
        parent = session.get_one(Parent, 1)
        if loaded:
            assert len(parent.cascaded) == 2
        session.delete(parent)
    check(sessions)
    assert found(sessions, Cascaded, "id", "parent_id") == [
        ("insert", 1, 1),
        ("delete", 1, 1),
        ("insert", 2, 1),
        ("delete", 2, 1),
        ("insert", 3, 2),
    ]
    assert one_changeset(sessions, Parent, Cascaded)


def test_children_in_two_tables_and_their_children_have_tombstones(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a"))
        session.flush()
        session.add_all([Cascaded(id=1, parent_id=1), Special(id=2, parent_id=1, note="x")])
        session.flush()
        session.add_all([Grandchild(id=1, cascaded_id=1), Grandchild(id=2, cascaded_id=2)])
    delete(sessions, Parent, 1)
    check(sessions)
    assert found(sessions, Special, "note") == [("insert", "x"), ("delete", "x")]
    assert found(sessions, Grandchild, "id") == [("insert", 1), ("delete", 1), ("insert", 2), ("delete", 2)]
    assert one_changeset(sessions, Parent, Cascaded, Special, Grandchild)


def test_children_that_the_database_parts_from_their_parent_have_versions(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a"))
        session.flush()
        session.add(Nulled(id=1, parent_id=1))
    delete(sessions, Parent, 1)
    check(sessions)
    assert found(sessions, Nulled, "parent_id", "audit_changed_by") == [("insert", 1, None), ("update", None, "ann")]


def test_children_of_a_column_that_is_no_key_have_tombstones(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a"))
        session.flush()
        session.add(Coded(id=1, code="a"))
    delete(sessions, Parent, 1)
    check(sessions)
    assert found(sessions, Coded, "code") == [("insert", "a"), ("delete", "a")]


def test_a_tree_that_the_database_deletes_has_tombstones(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for number in range(1, 6):
            session.add(Node(id=number, above_id=number - 1 or None))
            session.flush()
    delete(sessions, Node, 2)
    check(sessions)
    assert [each for each in found(sessions, Node, "id") if each[0] == "delete"] == [("delete", n) for n in range(2, 6)]


@pytest.mark.requires("cyclic_cascades")  # InnoDB refuses to delete a cycle
def test_a_tree_with_a_cycle_ends(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Node(id=1), Node(id=2, above_id=1)])
        session.flush()
        session.get_one(Node, 1).above_id = 2
    delete(sessions, Node, 1)
    check(sessions)
    assert [each for each in found(sessions, Node, "id") if each[0] == "delete"] == [("delete", 1), ("delete", 2)]


@pytest.mark.parametrize("criterion", [sa.true(), Node.above_id.is_(None) | (Node.above_id < 9)], ids=["all", "some"])
def test_a_statement_takes_rows_and_those_that_go_with_them_by_cascade(sessions: Sessions, criterion: Any) -> None:
    """Of which MariaDB and SQLite count only the former."""
    with sessions.begin() as session:
        for number in (1, 2, 3):
            session.add(Node(id=number, above_id=number - 1 or None))
            session.flush()
    with sessions.begin() as session:
        session.execute(sa.delete(Node).where(criterion))
    with sessions() as session:
        check_history(session, Node)
    assert [each for each in found(sessions, Node, "id") if each[0] == "delete"] == [("delete", n) for n in (1, 2, 3)]


def test_children_older_than_their_tracking_keep_what_was_before(engine: sa.Engine, sessions: Sessions) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(Parent.__table__).values(id=1, code="a"))
        for model in (Cascaded, Nulled):
            connection.execute(sa.insert(model.__table__).values(id=1, parent_id=1))
    delete(sessions, Parent, 1)
    check(sessions)
    assert found(sessions, Cascaded, "parent_id") == [("baseline", 1), ("delete", 1)]
    assert found(sessions, Nulled, "parent_id") == [("baseline", 1), ("update", None)]


def test_what_comes_to_a_parent_that_goes_in_the_same_flush_goes_with_it(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Parent(id=1, code="a"), Parent(id=2, code="b")])
        session.flush()
        session.add(Cascaded(id=1, parent_id=1))
        session.flush()
        session.add(Grandchild(id=1, cascaded_id=1))
    with sessions(autoflush=False) as session:
        session.get_one(Cascaded, 1).parent_id = 2
        session.add(Cascaded(id=2, parent_id=2))
        session.delete(session.get_one(Parent, 2))
        session.commit()
    check(sessions)
    assert found(sessions, Cascaded, "id") == [("insert", 1), ("delete", 1)]
    assert found(sessions, Grandchild, "id") == [("insert", 1), ("delete", 1)]


def test_a_rolled_back_cascade_leaves_no_trace(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a"))
        session.flush()
        session.add_all([Cascaded(id=1, parent_id=1), Nulled(id=1, parent_id=1)])
    with sessions() as session:
        session.delete(session.get_one(Parent, 1))
        session.flush()
        session.rollback()
    check(sessions)
    assert found(sessions, Cascaded, "id") == [("insert", 1)]
    assert found(sessions, Nulled, "id") == [("insert", 1)]


def test_children_are_recorded_when_several_parents_go(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Parent(id=number, code=str(number)) for number in range(20)])
        session.flush()
        session.add_all([Cascaded(id=number, parent_id=number) for number in range(20)])
    with sessions.begin() as session:
        for parent in session.scalars(sa.select(Parent)):
            session.delete(parent)
    check(sessions)
    assert len(found(sessions, Cascaded)) == 40


def test_children_follow_a_key_that_the_database_changes(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Key(name="a", following=[Following(id=1)]))
    with AuditContextManager(user_id="ann"), sessions.begin() as session:
        session.get_one(Key, "a").name = "b"
    check(sessions)
    assert found(sessions, Key, "name") == [("insert", "a"), ("delete", "a"), ("insert", "b")]
    assert found(sessions, Following, "name", "audit_changed_by") == [("insert", "a", None), ("update", "b", "ann")]


def test_children_follow_a_column_that_is_no_key(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Parent(id=1, code="a"))
        session.flush()
        session.add(Coded(id=1, code="a"))
    with AuditContextManager(user_id="ann"), sessions.begin() as session:
        session.get_one(Parent, 1).code = "b"
    check(sessions)
    assert found(sessions, Coded, "code", "audit_changed_by") == [("insert", "a", None), ("update", "b", "ann")]


def test_children_whose_own_keys_the_database_changes_are_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Key(name="a"))
        session.flush()
        session.add_all([Part(name="a", number=1), Part(name="a", number=2)])
    with sessions.begin() as session:
        session.get_one(Key, "a").name = "b"
    check(sessions)
    assert found(sessions, Part, "name", "number") == [
        ("insert", "a", 1),
        ("delete", "a", 1),
        ("insert", "a", 2),
        ("delete", "a", 2),
        ("insert", "b", 1),
        ("insert", "b", 2),
    ]


@pytest.mark.spread
@pytest.mark.parametrize("way", ["object", "statement"])
@pytest.mark.parametrize("ondelete", [CASCADE, SET_NULL])
def test_rows_that_refer_to_another_table_of_their_own_hierarchy_are_recorded(
    engine: sa.Engine, base: Any, ondelete: str, way: str
) -> None:
    @track_table()
    class Employee(base):
        __tablename__ = "employees"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(10))
        chief_id: Mapped[int | None] = mapped_column(
            sa.ForeignKey("managers.id", use_alter=True, name="fk_chief", ondelete=ondelete)
        )
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}

    class Manager(Employee):
        __tablename__ = "managers"

        id: Mapped[int] = mapped_column(sa.ForeignKey(Employee.id, ondelete=CASCADE), primary_key=True)
        aide_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Employee.id, ondelete=SET_NULL))
        __mapper_args__ = {"polymorphic_identity": "manager", "inherit_condition": id == Employee.id}

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Manager(id=1), Manager(id=2), Employee(id=3)])
            session.flush()
            session.get_one(Manager, 2).aide_id = 1
            session.get_one(Employee, 3).chief_id = 1
        with sessions.begin() as session:
            if way == "object":
                session.delete(session.get_one(Manager, 1))
            else:
                session.execute(sa.delete(Employee).where(Employee.id == 1))
        with sessions() as session:
            check_history(session, Employee)
            last = "delete" if ondelete == CASCADE else "update"
            assert [operation for operation, key in told(session, Employee, "id") if key == 3] == ["insert", last]
            assert told(session, Manager, "id", "aide_id")[-1] == ("update", 2, None)
