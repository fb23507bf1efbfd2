"""Does a restore do what it reports: all of it or nothing, nothing else, and does the session show it?"""

import itertools
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship, sessionmaker, validates

import sqlaudit
from invariants import check_history
from registering import recording
from sqlaudit import ContextError, SQLAuditConfig, UndoConflictError, changesets, restore, undo

pytestmark = pytest.mark.usefixtures("clock")
Sessions = sessionmaker[Session]


def last_changeset(sessions: Sessions) -> UUID:
    with sessions() as session:
        return changesets(session, newest_first=True, limit=1)[0].changeset_id


def rows(sessions: Sessions, *models: Any) -> list[list[tuple[Any, ...]]]:
    """Return the rows of models, whose histories keep their promises."""
    with sessions() as session:
        for model in models:
            check_history(session, model)
        tables = [model.__table__ for model in models]
        return [sorted((tuple(row) for row in session.execute(sa.select(table))), key=repr) for table in tables]


# --- all or nothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("within_savepoint", [False, True])
@pytest.mark.parametrize("refuser", ["validator", "listener"])
def test_of_what_is_refused_halfway_nothing_stays(engine, base, refuser, within_savepoint):
    refusing = False

    @sqlaudit.track_table()
    class Parent(base):
        __tablename__ = "parents"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(9))

    @sqlaudit.track_table()
    class Child(base):
        __tablename__ = "children"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(9))
        parent_id: Mapped[int] = mapped_column(sa.ForeignKey(Parent.id))

        @validates("name")
        def check(self, name: str, value: str) -> str:
            if refusing and refuser == "validator":
                raise ValueError(value)
            return value

    with recording(engine, base.metadata) as sessions:

        @sa.event.listens_for(sessions, "before_flush")
        def refuse(session: Session, context: Any, instances: Any) -> None:
            if refusing and refuser == "listener" and any(isinstance(obj, Child) for obj in session.dirty):
                raise ValueError("refused")

        with sessions.begin() as session:
            session.add(Parent(id=1, name="old"))
            session.flush()
            session.add(Child(id=1, name="old", parent_id=1))
        with sessions.begin() as session:
            session.get_one(Parent, 1).name = session.get_one(Child, 1).name = "new"
        changeset, refusing = last_changeset(sessions), True
        with sessions() as session:
            savepoint = session.begin_nested() if within_savepoint else None
            with pytest.raises(ValueError, match=r"old|refused"):
                undo(session, changeset)
            assert savepoint is None or not savepoint.is_active
            assert not session.dirty
            assert session.get_one(Parent, 1).name == session.get_one(Child, 1).name == "new"
            session.commit()
        assert rows(sessions, Parent, Child) == [[(1, "new")], [(1, "new", 1)]]


def test_a_missing_user_is_told_before_anything_is_written(engine, base, clock):
    sqlaudit.set_config(SQLAuditConfig(clock=clock, require_user=True))

    @sqlaudit.track_table(user_id_field="author")
    class Page(base):
        __tablename__ = "pages"

        id: Mapped[int] = mapped_column(primary_key=True)
        author: Mapped[str] = mapped_column(sa.String(9))

    @sqlaudit.track_table()
    class Word(base):
        __tablename__ = "words"

        id: Mapped[int] = mapped_column(primary_key=True)
        page_id: Mapped[int] = mapped_column(sa.ForeignKey(Page.id))

    with recording(engine, base.metadata) as sessions:
        with sqlaudit.AuditContextManager(user_id="ann"), sessions.begin() as session:
            session.add(Page(id=1, author="ann"))
            session.flush()
            session.add(Word(id=1, page_id=1))
        with sqlaudit.AuditContextManager(user_id="ann"), sessions.begin() as session:
            session.delete(session.get_one(Word, 1))
            session.flush()
            session.get_one(Page, 1).author = "bob"
        with sessions() as session:
            session.add(Page(id=2, author="cem"))
            with pytest.raises(ContextError, match="Word 1"):
                undo(session, last_changeset(sessions))
            session.commit()
        assert rows(sessions, Page, Word) == [[(1, "bob"), (2, "cem")], []]


# --- nothing else -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cascade", ["all", "all, delete-orphan"])
@pytest.mark.parametrize("ondelete", [None, "CASCADE"])
def test_no_cascade_takes_along_what_the_undo_does_not_delete(engine, base, cascade, ondelete):
    @sqlaudit.track_table()
    class Address(base):
        __tablename__ = "addresses"

        id: Mapped[int] = mapped_column(primary_key=True)

    @sqlaudit.track_table()
    class Guest(base):
        __tablename__ = "guests"

        id: Mapped[int] = mapped_column(primary_key=True)
        address_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Address.id, ondelete=ondelete))
        address: Mapped[Address | None] = relationship(cascade=cascade, single_parent=True)

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Address(id=1))
        with sessions.begin() as session:
            session.add(Guest(id=1, address=session.get_one(Address, 1)))
        changeset = last_changeset(sessions)
        with sessions.begin() as session:
            assert session.get_one(Guest, 1).address.id == 1
            assert [(each.model, each.key) for each in undo(session, changeset)] == [(Guest, 1)]
        assert rows(sessions, Address, Guest) == [[(1,)], []]
        with sessions.begin() as session:
            undo(session, last_changeset(sessions))
        assert rows(sessions, Address, Guest) == [[(1,)], [(1, 1)]]


@pytest.mark.parametrize("cascade", ["all", "save-update"])
def test_members_of_a_collection_without_a_foreign_key_are_reported(engine, base, cascade):
    @sqlaudit.track_table()
    class Note(base):
        __tablename__ = "notes"

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(9))
        owner_id: Mapped[int | None]

    @sqlaudit.track_table()
    class Owner(base):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True)
        notes: Mapped[list[Note]] = relationship(
            primaryjoin=lambda: sa.and_(Owner.id == sa.orm.foreign(Note.owner_id), Note.kind == "owner"),
            cascade=cascade,
        )

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Owner(id=1))
        changeset = last_changeset(sessions)
        with sessions.begin() as session:
            session.add_all([Note(id=1, kind="owner", owner_id=1), Note(id=2, kind="pet", owner_id=1)])
        with sessions.begin() as session, pytest.raises(UndoConflictError, match="Note 1"):
            undo(session, changeset)
        with sessions.begin() as session:
            reported = {(each.model, each.key): str(each.operation) for each in undo(session, changeset, force=True)}
            assert reported == {(Owner, 1): "delete", (Note, 1): "delete" if cascade == "all" else "update"}
        left = [] if cascade == "all" else [(1, "owner", None)]
        assert rows(sessions, Owner, Note) == [[], [*left, (2, "pet", 1)]]
        with sessions.begin() as session:
            undo(session, last_changeset(sessions))
        assert rows(sessions, Owner, Note) == [[(1,)], [(1, "owner", 1), (2, "pet", 1)]]


def test_members_that_the_unit_of_work_never_touches_stay(engine, base):
    @sqlaudit.track_table()
    class Note(base):
        __tablename__ = "notes"

        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int | None]

    @sqlaudit.track_table()
    class Owner(base):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True)
        notes: Mapped[list[Note]] = relationship(
            primaryjoin=lambda: Owner.id == sa.orm.foreign(Note.owner_id), passive_deletes="all"
        )

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Owner(id=1))
        changeset = last_changeset(sessions)
        with sessions.begin() as session:
            session.add(Note(id=1, owner_id=1))
        with sessions.begin() as session:
            assert [(each.model, each.key) for each in undo(session, changeset)] == [(Owner, 1)]
        assert rows(sessions, Owner, Note) == [[], [(1, 1)]]


def test_links_that_have_a_class_as_well_are_deleted_once(engine, base):
    @sqlaudit.track_table()
    class Tag(base):
        __tablename__ = "tags"

        id: Mapped[int] = mapped_column(primary_key=True)

    @sqlaudit.track_table()
    class Tagging(base):
        __tablename__ = "taggings"

        post_id: Mapped[int] = mapped_column(sa.ForeignKey("posts.id"), primary_key=True)
        tag_id: Mapped[int] = mapped_column(sa.ForeignKey(Tag.id), primary_key=True)

    @sqlaudit.track_table()
    class Post(base):
        __tablename__ = "posts"

        id: Mapped[int] = mapped_column(primary_key=True)
        taggings: Mapped[list[Tagging]] = relationship(cascade="all, delete-orphan", overlaps="tags")
        tags: Mapped[list[Tag]] = relationship(secondary="taggings", overlaps="taggings")

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Tag(id=1))
        with sessions.begin() as session:
            session.add(Post(id=1, tags=[session.get_one(Tag, 1)]))
        for count in (0, 1, 0):
            with sessions.begin() as session:
                undo(session, last_changeset(sessions))
            assert rows(sessions, Tag, Post, Tagging) == [[(1,)], [(1,)] * count, [(1, 1)] * count]


# --- rows that refer to one another -----------------------------------------------------------------------------


@pytest.mark.parametrize("related", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_rows_of_one_table_in_a_circle_go_and_come_back(engine, base, related, count):
    updates = itertools.count()

    class Spouse:
        id: Mapped[int] = mapped_column(primary_key=True)
        updated: Mapped[int | None] = mapped_column(onupdate=lambda: next(updates))
        spouse_id: Mapped[int | None] = mapped_column(sa.ForeignKey("people.id"))

    if related:

        @sqlaudit.track_table()
        class Person(Spouse, base):
            __tablename__ = "people"

            of: Mapped[list["Person"]] = relationship(back_populates="spouse")
            spouse: Mapped["Person | None"] = relationship(back_populates="of", remote_side="Person.id")
    else:

        @sqlaudit.track_table()
        class Person(Spouse, base):  # type: ignore[no-redef]
            __tablename__ = "people"

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all(people := [Person(id=key) for key in range(1, count + 1)])
            session.flush()
            for key, person in enumerate(people):
                person.spouse_id = (key + 1) % count + 1
        (before,) = rows(sessions, Person)
        for expected in ([], before, []):
            with sessions.begin() as session:
                undo(session, last_changeset(sessions))
            assert rows(sessions, Person) == [expected]


@pytest.mark.parametrize("itself", [False, True])
def test_rows_that_refer_to_a_subclass_of_their_class_go_and_come_back(engine, base, itself):
    @sqlaudit.track_table()
    class Employee(base):
        __tablename__ = "employees"

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(10))
        chief_id: Mapped[int | None] = mapped_column(sa.ForeignKey("managers.id", use_alter=True, name="fk_chief"))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}

    class Manager(Employee):
        __tablename__ = "managers"

        id: Mapped[int] = mapped_column(sa.ForeignKey(Employee.id), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "manager", "inherit_condition": id == Employee.id}

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Manager(id=2), Employee(id=1), Employee(id=3)])
            session.flush()
            for key in (2,) if itself else (1, 3):
                session.get_one(Employee, key).chief_id = 2
        (before,) = rows(sessions, Employee)
        for expected in ([], before, []):
            with sessions.begin() as session:
                undo(session, last_changeset(sessions))
            assert rows(sessions, Employee) == [expected]


# --- what the session shows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("cascade", ["save-update", "all, delete-orphan"])
@pytest.mark.parametrize("lazy", ["select", "joined", "selectin"])
def test_loaded_relationships_show_what_was_restored(engine, base, lazy, cascade, constrained):
    @sqlaudit.track_table()
    class Team(base):
        __tablename__ = "teams"

        id: Mapped[int] = mapped_column(primary_key=True)
        players: Mapped[list["Player"]] = relationship(
            primaryjoin=lambda: Team.id == sa.orm.foreign(Player.team_id), viewonly=True
        )

    @sqlaudit.track_table()
    class Player(base):
        __tablename__ = "players"

        id: Mapped[int] = mapped_column(primary_key=True)
        team_id: Mapped[int] = mapped_column(*[sa.ForeignKey(Team.id)] * constrained)
        team: Mapped[Team] = relationship(
            primaryjoin=lambda: Team.id == sa.orm.foreign(Player.team_id),
            lazy=lazy,
            cascade=cascade,
            single_parent=True,
        )

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([one := Team(id=1), Team(id=2)])
            session.flush()
            session.add(Player(id=1, team=one))
        with sessions.begin() as session:
            session.get_one(Player, 1).team_id = 2
        with sessions() as session:
            player, one, two = session.get_one(Player, 1), session.get_one(Team, 1), session.get_one(Team, 2)
            assert player.team is two
            assert (one.players, two.players) == ([], [player])
            assert restore(session, Player, 1, at=1)
            assert player.team is one
            assert (one.players, two.players) == ([player], [])
            assert not session.dirty
            session.commit()
        assert rows(sessions, Team, Player) == [[(1,), (2,)], [(1, 1)]]
