"""Does a restore do what it reports: all of it or nothing, nothing else, and does the session show it?"""

import itertools
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, WriteOnlyMapped, mapped_column, relationship, sessionmaker, validates

import sqlaudit
from invariants import check_history
from registering import recording
from sqlaudit import ContextError, QueryError, SQLAuditConfig, UndoConflictError, changesets, restore, undo

pytestmark = [pytest.mark.usefixtures("clock"), pytest.mark.spread]
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


@pytest.mark.parametrize("passive", [False, True])
def test_an_object_whose_write_only_relationship_forbids_its_deletion_is_refused(engine, base, passive):
    @sqlaudit.track_table()
    class Author(base):
        __tablename__ = "authors"

        id: Mapped[int] = mapped_column(primary_key=True)
        books: WriteOnlyMapped["Book"] = relationship(passive_deletes=passive)

    @sqlaudit.track_table()
    class Book(base):
        __tablename__ = "books"

        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Author.id, ondelete="SET NULL"))

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Author(id=1))
        changeset = last_changeset(sessions)
        for dry_run in (True, False):
            with sessions.begin() as session:
                if passive:
                    undo(session, changeset, dry_run=dry_run)
                else:
                    with pytest.raises(QueryError, match=r"Author 1 would be deleted.*'books' lacks passive_deletes"):
                        undo(session, changeset, dry_run=dry_run)
        assert rows(sessions, Author) == [[] if passive else [(1,)]]


def test_a_row_whose_subclass_row_is_missing_does_not_become_one_of_the_base_class(engine, base):
    @sqlaudit.track_table()
    class Animal(base):
        __tablename__ = "animals"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(9))

    class Dog(Animal):
        __tablename__ = "dogs"
        __mapper_args__ = {"polymorphic_identity": "dog"}

        id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
        breed: Mapped[str | None] = mapped_column(sa.String(9))

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Dog(id=1, breed="pug"), Dog(id=2)])
        with sessions.begin() as session:
            session.execute(sa.delete(Dog.__table__))
        for dry_run in (True, False):
            with sessions.begin() as session, pytest.raises(QueryError, match=r"Animal 1 was a Dog then"):
                undo(session, last_changeset(sessions), dry_run=dry_run)
            with sessions.begin() as session, pytest.raises(QueryError, match=r"Animal 2 was a Dog then"):
                restore(session, Dog, 2, at=1, dry_run=dry_run)
        with sessions.begin() as session:
            assert not restore(session, Animal, 1, at=2)
        assert rows(sessions, Animal, Dog) == [[(1, "dog"), (2, "dog")], []]


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
            assert [(each.resource_type, each.key) for each in undo(session, changeset)] == [("Guest", 1)]
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
            report = undo(session, changeset, force=True)
            reported = {(each.resource_type, each.key): str(each.operation) for each in report}
            assert reported == {("Owner", 1): "delete", ("Note", 1): "delete" if cascade == "all" else "update"}
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
            assert [(each.resource_type, each.key) for each in undo(session, changeset)] == [("Owner", 1)]
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


@pytest.mark.parametrize(
    "how",
    [{"lazy": "select"}, {"uselist": False}, {"lazy": "dynamic"}, {"lazy": "write_only", "passive_deletes": True}],
)
@pytest.mark.parametrize("cascade", ["all", "all, delete-orphan"])
def test_objects_that_may_have_one_parent_get_back_their_links(engine, base, how, cascade):
    owned = sa.Table(
        "owned",
        base.metadata,
        sa.Column("owner_id", sa.ForeignKey("owners.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("thing_id", sa.ForeignKey("things.id", ondelete="CASCADE"), primary_key=True),
    )

    @sqlaudit.track_table()
    class Thing(base):
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)

    @sqlaudit.track_table()
    class Owner(base):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True)
        things = relationship(Thing, secondary=owned, cascade=cascade, single_parent=True, **how)

    def state() -> Any:
        with engine.connect() as connection:
            tables = (Owner.__table__, Thing.__table__, owned)
            return [sorted(map(tuple, connection.execute(sa.select(table)))) for table in tables]

    with recording(engine, base.metadata) as sessions:
        states = [state()]

        def write(session: Session, step: int) -> None:
            if step == 0:
                session.add_all([Owner(id=1), Owner(id=2), Thing(id=1)])
            elif step == 1:
                session.execute(owned.insert().values(owner_id=1, thing_id=1))
            elif step == 2:
                session.execute(owned.update().values(owner_id=2))
            elif step == 3:
                session.delete(session.get_one(Thing, 1))
                session.execute(owned.delete())
            else:
                session.delete(session.get_one(Owner, 2))

        for step in range(5):
            with sessions.begin() as session:
                write(session, step)
            states.append(state())
        with sessions() as session:
            done = [each.changeset_id for each in changesets(session)]
        for place, changeset in reversed(list(enumerate(done))):
            with sessions.begin() as session:
                held = session.scalars(sa.select(Owner)).all() if place % 2 else []
                undo(session, changeset, force=True)
                session.flush()
                del held
            assert state() == states[place]


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
