"""What undo does: all that one transaction did is taken back, or nothing."""

import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit
from clock import START
from counting import counted
from invariants import check_history
from registering import recording
from sqlaudit import (
    AuditContextManager,
    QueryError,
    SQLAuditError,
    UndoConflictError,
    changesets,
    tracking_disabled,
    undo,
    versions_of,
)

pytestmark = [pytest.mark.usefixtures("clock"), pytest.mark.spread]


class Base(DeclarativeBase):
    pass


book_tags = sa.Table(
    "book_tags",
    Base.metadata,
    sa.Column("book_id", sa.ForeignKey("books.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@sqlaudit.track_table()
class Author(Base):
    __tablename__ = "writers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    email: Mapped[str | None] = mapped_column(sa.String(50), unique=True)
    books: Mapped[list["Book"]] = relationship(back_populates="author")


@sqlaudit.track_table()
class Book(Base):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column(sa.String(50))
    author_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Author.id))
    author: Mapped[Author | None] = relationship(back_populates="books")
    tags: Mapped[list["Tag"]] = relationship(secondary=book_tags)


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table()
class Chapter(Base):
    """Refers to a book, and nothing but the foreign key says so."""

    __tablename__ = "a_chapters"

    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(sa.ForeignKey(Book.id))


@sqlaudit.track_table()
class Log(Base):
    """Goes with its book when the database deletes that."""

    __tablename__ = "logs"

    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(sa.ForeignKey(Book.id, ondelete="CASCADE"))


SOURCES = (Author, Book, Tag, Chapter, Log, book_tags)


def state_of(sessions: Any) -> dict[str, list[Any]]:
    """Return all that the database holds."""
    with sessions() as session:
        for source in SOURCES:
            check_history(session, source, all_recorded=False)
        return {
            table.name: sorted((tuple(row) for row in session.execute(sa.select(table))), key=repr)
            for table in (getattr(source, "__table__", source) for source in SOURCES)
        }


def last_changeset(sessions: Any) -> UUID:
    with sessions() as session:
        return changesets(session, newest_first=True, limit=1)[0].changeset_id


def summary(report: Any) -> list[tuple[str, str, Any]]:
    return sorted((str(each.operation), each.resource_type, each.key) for each in report)


def happen(sessions):
    """Second 0: Ada with a book, tags and chapters; 1: all of it changes."""
    with sessions.begin() as session:
        red, blue = Tag(id=1, text="red"), Tag(id=2, text="blue")
        ada = Author(id=1, name="Ada", email="a")
        book = Book(id=1, title="one", author=ada, tags=[red, blue])
        session.add_all([book, Book(id=2, title="two", author=ada)])
        session.flush()
        session.add_all([Chapter(id=1, book_id=2), Chapter(id=2, book_id=1), Log(id=1, book_id=2)])
    before = state_of(sessions)
    with AuditContextManager(user_id="bob"), sessions.begin() as session:
        one, two = session.get_one(Book, 1), session.get_one(Book, 2)
        red, blue, green = session.get_one(Tag, 1), session.get_one(Tag, 2), Tag(id=3, text="green")
        one.title = "changed"
        one.tags.append(green)
        one.tags.remove(blue)
        one.author = Author(id=2, name="Bob")
        session.delete(session.get_one(Chapter, 1))
        session.flush()
        session.delete(two)
        session.delete(blue)
        session.flush()
        session.delete(session.get_one(Author, 1))
        session.flush()
        session.add(Author(id=3, name="Ada again", email="a"))
        session.add(Chapter(id=3, book_id=1))
    return before


def test_all_that_a_transaction_did_is_taken_back(sessions, happened):
    with sessions.begin() as session:
        report = undo(session, last_changeset(sessions))
        assert summary(report) == [
            ("delete", "Author", 2),
            ("delete", "Author", 3),
            ("delete", "Chapter", 3),
            ("delete", "Tag", 3),
            ("delete", "book_tags", (1, 3)),
            ("insert", "Author", 1),
            ("insert", "Book", 2),
            ("insert", "Chapter", 1),
            ("insert", "Log", 1),
            ("insert", "Tag", 2),
            ("insert", "book_tags", (1, 2)),
            ("update", "Book", 1),
        ]
    assert state_of(sessions) == happened


def test_an_undo_can_be_undone(sessions, happened):
    after = state_of(sessions)
    for expected in (happened, after, happened):
        with sessions.begin() as session:
            undo(session, str(last_changeset(sessions)))
        assert state_of(sessions) == expected


def test_an_undo_tells_its_source(sessions, happened):
    changeset = last_changeset(sessions)
    with AuditContextManager(user_id="eve"), sessions.begin() as session:
        undo(session, changeset)
    with sessions() as session:
        (entry,) = changesets(session, newest_first=True, limit=1)
        assert (entry.changed_by, entry.reason) == ("eve", f"undo of changeset {changeset}")
        assert len(entry.tables) == 6


def test_a_dry_run_reports_the_same_and_changes_nothing(sessions, happened):
    before = state_of(sessions)
    with sessions.begin() as session:
        report = undo(session, last_changeset(sessions), dry_run=True)
        assert not session.new
        assert not session.dirty
        assert not session.deleted
    assert state_of(sessions) == before
    with sessions.begin() as session:
        assert undo(session, last_changeset(sessions)) == report


def test_a_rolled_back_undo_leaves_nothing(sessions, happened):
    before = state_of(sessions)
    with sessions() as session:
        undo(session, last_changeset(sessions))
        session.rollback()
    assert state_of(sessions) == before


def test_a_rollback_forgets_the_reason_of_a_deletion(sessions):
    with sessions.begin() as session:
        session.add(Tag(id=1))
    with sessions() as session:
        tag = session.get_one(Tag, 1)
        undo(session, last_changeset(sessions))
        session.rollback()
        session.delete(tag)
        session.commit()
        assert [version.audit_reason for version in versions_of(session, Tag, 1)] == [None, None]


def test_a_transaction_can_undo_itself(sessions, happened):
    before = state_of(sessions)
    with sessions.begin() as session:
        session.get_one(Book, 1).title = "again"
        session.add(Tag(id=9))
        session.flush()
        undo(session, versions_of(session, Tag, 9)[0].audit_changeset_id)
    assert state_of(sessions) == before


@pytest.mark.parametrize("force", [False, True])
def test_later_changes_are_conflicts_unless_it_is_forced(sessions, happened, force):
    changeset = last_changeset(sessions)
    with AuditContextManager(user_id="eve"), sessions.begin() as session:
        session.get_one(Book, 1).title = "later"
        session.get_one(Author, 3).name = "later"
    later = last_changeset(sessions)
    before = state_of(sessions)
    with sessions.begin() as session:
        if force:
            undo(session, changeset, force=True)
        else:
            with pytest.raises(UndoConflictError, match=r"Book 1 .*eve") as caught:
                undo(session, changeset)
            conflicts = {(each.resource_type, each.key): each for each in caught.value.conflicts}
            assert conflicts.keys() == {("Book", 1), ("Author", 3)}
            for conflict in conflicts.values():
                assert (conflict.changed_by, conflict.changeset_id) == ("eve", later)
                assert conflict.timestamp == START + timedelta(seconds=2)
            assert not session.new
            assert not session.deleted
    assert state_of(sessions) == (happened if force else before)


@pytest.mark.parametrize("force", [False, True])
def test_a_later_row_that_refers_to_one_that_would_go_is_a_conflict(sessions, happened, force):
    changeset = last_changeset(sessions)
    with AuditContextManager(user_id="eve"), sessions.begin() as session:
        session.add(Book(id=9, author_id=2))
        session.flush()

    with sessions.begin() as session:
        if force:
            report = undo(session, changeset, force=True)
            assert ("update", "Book", 9) in summary(report)
        else:
            with pytest.raises(UndoConflictError) as caught:
                undo(session, changeset)
            (conflict,) = caught.value.conflicts
            assert (conflict.resource_type, conflict.key, conflict.changed_by) == ("Book", 9, "eve")
    if force:
        with sessions() as session:
            assert session.get_one(Book, 9).author_id is None
            check_history(session, Book)


@pytest.mark.parametrize("force", [False, True])
def test_a_later_link_to_a_row_that_would_go_is_a_conflict(sessions, happened, force):
    changeset = last_changeset(sessions)
    with sessions.begin() as session:
        session.add(Book(id=9, tags=[session.get_one(Tag, 3)]))
    with sessions.begin() as session:
        if force:
            assert ("delete", "book_tags", (9, 3)) in summary(undo(session, changeset, force=True))
        else:
            with pytest.raises(UndoConflictError) as caught:
                undo(session, changeset)
            (conflict,) = caught.value.conflicts
            assert (conflict.resource_type, conflict.key) == (book_tags.fullname, (9, 3))
    with sessions() as session:
        assert len(session.get_one(Book, 9).tags) == (0 if force else 1)
        check_history(session, book_tags)


def test_what_the_database_would_refuse_is_an_error_of_ours(sessions):
    with sessions.begin() as session:
        session.add(Book(id=1))
    changeset = last_changeset(sessions)
    with sessions.begin() as session:
        session.add(Chapter(id=1, book_id=1))
    with sessions.begin() as session, pytest.raises(QueryError, match="Chapter 1 refers to Book 1"):
        undo(session, changeset, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_conflicts_are_told_once(sessions, force):
    with sessions.begin() as session:
        session.add_all([Book(id=1), Tag(id=1)])
    changeset = last_changeset(sessions)
    with sessions.begin() as session:
        book = session.get_one(Book, 1)
        book.tags.append(session.get_one(Tag, 1))
    with sessions.begin() as session:
        if force:
            assert len(undo(session, changeset, force=True)) == 3
        else:
            with pytest.raises(UndoConflictError) as caught:
                undo(session, changeset)
            assert [each.resource_type for each in caught.value.conflicts] == [book_tags.fullname]


def test_a_row_loses_all_that_it_refers_to(engine, base):
    @sqlaudit.track_table()
    class Place(base):
        __tablename__ = "places"

        id: Mapped[int] = mapped_column(primary_key=True)
        arrivals: Mapped[list["Trip"]] = relationship(foreign_keys="Trip.goal_id")
        departures: Mapped[list["Trip"]] = relationship(foreign_keys="Trip.start_id")

    @sqlaudit.track_table()
    class Trip(base):
        __tablename__ = "trips"

        id: Mapped[int] = mapped_column(primary_key=True)
        start_id: Mapped[int | None] = mapped_column(sa.ForeignKey("places.id"))
        goal_id: Mapped[int | None] = mapped_column(sa.ForeignKey("places.id"))

    @sqlaudit.track_table()
    class Way(base):
        __tablename__ = "ways"

        id: Mapped[int] = mapped_column(primary_key=True)
        start_id: Mapped[int | None] = mapped_column(sa.ForeignKey("places.id", ondelete="SET NULL"))
        goal_id: Mapped[int | None] = mapped_column(sa.ForeignKey("places.id", ondelete="CASCADE"))

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Place(id=1), Place(id=2)])
        changeset = last_changeset(sessions)
        with sessions.begin() as session:
            for model in (Trip, Way):
                session.add_all([model(id=1, start_id=1, goal_id=2), model(id=2, start_id=1, goal_id=1)])
        with sessions.begin() as session:
            report = {(each.resource_type, each.key): each.fields for each in undo(session, changeset, force=True)}
            assert report["Trip", 1] == {"start_id": (1, None), "goal_id": (2, None)}
            assert report["Trip", 2] == {"start_id": (1, None), "goal_id": (1, None)}
        with sessions() as session:
            trips = session.scalars(sa.select(Trip).order_by(Trip.id))
            assert [(trip.start_id, trip.goal_id) for trip in trips] == [(None, None)] * 2
            assert not session.scalars(sa.select(Way)).all()
            for model in (Place, Trip, Way):
                check_history(session, model)


def test_models_that_have_been_disposed_of_are_not_asked(engine):
    def make() -> Any:
        class Base(DeclarativeBase):
            pass

        @sqlaudit.track_table()
        class Thing(Base):
            __tablename__ = "things"

            id: Mapped[int] = mapped_column(primary_key=True)

        return Thing

    *old, new = [make() for _ in range(10)]
    for each in old:
        each.registry.dispose()
    with recording(engine, new.metadata) as sessions:
        with sessions.begin() as session:
            session.add(new(id=1))
        with sessions.begin() as session:
            assert summary(undo(session, last_changeset(sessions))) == [("delete", "Thing", 1)]


@pytest.mark.parametrize("how", ["alone", "related", "cascade", "database", "secondary"])
def test_an_untracked_row_that_cannot_go_along_is_named(engine, base, how):
    @sqlaudit.track_table()
    class Parent(base):
        __tablename__ = f"parents_{how}"

        id: Mapped[int] = mapped_column(primary_key=True)
        if how == "secondary":
            others: Mapped[list["Other"]] = relationship(secondary=f"children_{how}")
        elif how in ("related", "cascade"):
            children: Mapped[list["Child"]] = relationship(cascade="all" if how == "cascade" else "save-update")

    class Other(base):
        __tablename__ = f"others_{how}"

        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(base):
        __tablename__ = f"children_{how}"

        parent_id: Mapped[int] = mapped_column(
            sa.ForeignKey(f"parents_{how}.id", ondelete="CASCADE" if how == "database" else None), primary_key=True
        )
        other_id: Mapped[int] = mapped_column(sa.ForeignKey(f"others_{how}.id"), primary_key=True)

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Parent(id=1), Other(id=1)])
        changeset = last_changeset(sessions)
        with sessions.begin() as session:
            session.add(Child(parent_id=1, other_id=1))
        with sessions.begin() as session:
            if how in ("alone", "related"):
                with pytest.raises(QueryError, match=f"'children_{how}', which has no history, refers to Parent 1"):
                    undo(session, changeset)
                assert not session.deleted
            else:
                undo(session, changeset)
        with sessions() as session:
            left = 1 if how in ("alone", "related") else 0
            assert len(session.scalars(sa.select(Child)).all()) == left
            assert len(session.scalars(sa.select(Parent)).all()) == left


def test_rows_that_the_database_deletes_come_back(sessions):
    with sessions.begin() as session:
        session.add(Book(id=1))
        session.flush()
        session.add_all([Log(id=number, book_id=1) for number in range(1, 4)])
    before = state_of(sessions)
    with sessions.begin() as session:
        session.delete(session.get_one(Book, 1))
    with sessions.begin() as session:
        undo(session, last_changeset(sessions))
    assert state_of(sessions) == before


def test_a_row_that_a_later_transaction_deleted_is_missed(sessions):
    with sessions.begin() as session:
        session.add_all([Author(id=1), Book(id=1, author_id=1)])
    with sessions.begin() as session:
        session.get_one(Book, 1).author_id = None
    changeset = last_changeset(sessions)
    with sessions.begin() as session:
        session.delete(session.get_one(Author, 1))
    with sessions.begin() as session, pytest.raises(SQLAuditError, match=r"Book 1 .*'writers'"):
        undo(session, changeset)


def test_the_state_before_the_first_change_is_a_baseline(sessions):
    with sessions() as session, tracking_disabled(session):
        session.add_all([Author(id=1, name="old"), Author(id=2, name="old")])
        session.commit()
    before = state_of(sessions)
    with sessions.begin() as session:
        session.get_one(Author, 1).name = "new"
        session.delete(session.get_one(Author, 2))
    with sessions.begin() as session:
        assert summary(undo(session, last_changeset(sessions))) == [("insert", "Author", 2), ("update", "Author", 1)]
    assert state_of(sessions) == before


def test_a_change_of_context_within_a_transaction_is_undone_as_one(sessions):
    with sessions.begin() as session:
        session.add(Author(id=1, name="zero"))
    before = state_of(sessions)
    with sessions.begin() as session:
        author = session.get_one(Author, 1)
        for number, user in enumerate(("ada", "bob")):
            with AuditContextManager(user_id=user):
                author.name = user
                session.add(Author(id=10 + number))
                session.flush()
    with sessions.begin() as session:
        undo(session, last_changeset(sessions))
    assert state_of(sessions) == before


def test_a_changed_key_is_changed_back(sessions):
    with sessions.begin() as session:
        session.add(Author(id=1, name="one", email="a"))
    before = state_of(sessions)
    with sessions.begin() as session:
        session.get_one(Author, 1).id = 7
    with sessions.begin() as session:
        assert summary(undo(session, last_changeset(sessions))) == [("delete", "Author", 7), ("insert", "Author", 1)]
    assert state_of(sessions) == before


@pytest.mark.parametrize(
    ("changeset", "hint"), [(UUID(int=1), "000000000001"), ("one", "a changeset id"), (None, "a changeset id")]
)
def test_an_unknown_changeset_cannot_be_undone(sessions, changeset, hint):
    with sessions() as session, pytest.raises(QueryError, match=hint):
        undo(session, changeset)


def test_values_are_given_by_class(sessions, happened):
    with sessions() as session, pytest.raises(QueryError, match="by class"):
        undo(session, last_changeset(sessions), values={"name": "x"})


def test_a_session_without_hooks_is_refused(sessions, happened, engine):
    with Session(engine) as session, pytest.raises(SQLAuditError, match="register_hooks"):
        undo(session, last_changeset(sessions))


def test_an_undo_takes_the_same_statements_whatever_its_size(sessions, engine):
    counts = []
    for first, size in ((1000, 6), (2000, 99)):
        with sessions.begin() as session:
            session.add(author := Author(id=first, name="old"))
            tag = Tag(id=first)
            for number in range(first, first + size):
                author.books.append(Book(id=number, title="old", tags=[tag]))
            session.flush()
            session.add_all([Chapter(id=number, book_id=number) for number in range(first, first + size)])
        with sessions.begin() as session:
            for book in session.scalars(sa.select(Book).where(Book.id >= first)):
                if book.id % 3 == 0:
                    session.execute(sa.select(1))
                    session.delete(session.get_one(Chapter, book.id))
                elif book.id % 3 == 1:
                    book.title = "new"
                else:
                    book.author_id = None
                    book.tags.clear()
            session.flush()
            for book in session.scalars(sa.select(Book).where(Book.id >= first, Book.id % 3 == 0)):
                session.delete(book)
            session.add_all([Book(id=number + 500, title="new") for number in range(first, first + size)])
        for _ in range(2):  # once more, to undo the undo
            changeset = last_changeset(sessions)
            with sessions.begin() as session, counted(engine) as statements:
                assert len(undo(session, changeset)) >= 2 * size
                session.flush()
            counts.append(len(statements))
    assert counts[0] == counts[2] < 150
    assert counts[1] == counts[3] < 150


def test_rows_that_exchanged_unique_values_get_them_back(sessions):
    with sessions.begin() as session:
        session.add_all([Author(id=number, email=str(number)) for number in range(1, 4)])
    before = state_of(sessions)
    with sessions.begin() as session:
        one, two, three = (session.get_one(Author, number) for number in range(1, 4))
        one.email = None
        session.flush()
        two.email, three.email = "1", None
        session.flush()
        one.email, three.email = "3", "2"
    with sessions.begin() as session:
        undo(session, last_changeset(sessions))
    assert state_of(sessions) == before


# the columns of a list's items that can be NULL, what is unique, and what the rows 1, 2 and 3 exchange
EXCHANGES = {
    "all": (["list", "place"], [("list", "place")], {1: {"place": 2}, 2: {"place": 1}}),
    "what_changes": (["place"], [("list", "place")], {1: {"place": 2}, 2: {"place": 1}}),
    "what_stays": (["list"], [("list", "place")], {1: {"place": 2}, 2: {"place": 1}}),
    "of_two_constraints": (
        ["place", "name"],
        [("list", "place"), ("name",)],
        {1: {"place": 2, "name": 2}, 2: {"place": 1, "name": 1}},
    ),
    "with_two_others": (
        ["place", "name"],
        [("list", "place"), ("name",)],
        {1: {"place": 2}, 2: {"place": 1, "name": 3}, 3: {"name": 2}},
    ),
    "all_around": (["list"], [("list", "place")], {1: {"place": 2}, 2: {"place": 3}, 3: {"place": 1}}),
}


@pytest.mark.parametrize("case", EXCHANGES)
def test_values_that_are_unique_together_go_back_and_nothing_else_changes(engine, base, case):
    nullable, unique, exchanged = EXCHANGES[case]
    columns = {name: mapped_column(sa.Integer, nullable=name in nullable) for name in ("list", "place", "name")}
    constraints = tuple([sa.UniqueConstraint(*names) for names in unique])
    members = {"id": mapped_column(sa.Integer, primary_key=True), "__table_args__": constraints, **columns}
    item = sqlaudit.track_table()(type("Item", (base,), {"__tablename__": "list_items", **members}))

    def rows() -> list[Any]:
        with sessions() as session:
            check_history(session, item)
            return session.execute(sa.select(item.__table__).order_by(item.id)).all()

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([item(id=number, list=1, place=number, name=number) for number in range(1, 4)])
        before = rows()
        with sessions.begin() as session:
            for away in (100, 0):
                for number, values in exchanged.items():
                    session.execute(
                        sa.update(item)
                        .where(item.id == number)
                        .values({name: value + away for name, value in values.items()})
                    )
        after = rows()
        assert after != before
        for expected in (before, after, before):
            with sessions.begin() as session:
                report = undo(session, last_changeset(sessions))
            assert rows() == expected
            assert {each.key: {*each.fields} for each in report} == {
                number: {*values} for number, values in exchanged.items()
            }


@pytest.mark.requires("deferred_constraints")
@pytest.mark.parametrize("ways", ["exchanged", "moved_on", "passed_to_a_new_row"])
def test_unique_values_that_the_database_compares_at_the_end_go_back(engine, base, ways):
    @sqlaudit.track_table()
    class Item(base):
        __tablename__ = "list_items"
        __table_args__ = (sa.UniqueConstraint("place", deferrable=True, initially="DEFERRED"),)

        id: Mapped[int] = mapped_column(primary_key=True)
        place: Mapped[int]

    def places() -> list[tuple[int, int]]:
        with sessions() as session:
            check_history(session, Item)
            return [tuple(row) for row in session.execute(sa.select(Item.id, Item.place).order_by(Item.id))]

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Item(id=number, place=number) for number in range(1, 5)])
        before = places()
        with sessions.begin() as session:
            items = session.scalars(sa.select(Item).order_by(Item.id)).all()
            if ways == "passed_to_a_new_row":
                session.delete(items[0])
                session.add(Item(id=5, place=1))
            for item in items[1:]:
                item.place = 6 - item.place if ways == "exchanged" else item.place + 1
        after = places()
        for expected in (before, after, before):
            with sessions.begin() as session:
                undo(session, last_changeset(sessions))
            assert places() == expected


def test_a_unique_value_goes_back_from_a_row_that_must_go_last(engine, base):
    @sqlaudit.track_table()
    class Seat(base):
        __tablename__ = "seats"

        id: Mapped[int] = mapped_column(primary_key=True)
        label: Mapped[str | None] = mapped_column(sa.String(50), unique=True)
        next_id: Mapped[int | None] = mapped_column(sa.ForeignKey("seats.id"))

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add(Seat(id=1, label="a"))
        with sessions.begin() as session:
            seat = session.get_one(Seat, 1)
            seat.label = "b"
            session.flush()
            session.add(Seat(id=2, label="a"))
            session.flush()
            seat.next_id = 2
        for expected in ([(1, "a", None)], [(1, "b", 2), (2, "a", None)]):
            with sessions.begin() as session:
                undo(session, last_changeset(sessions))
            with sessions() as session:
                seats = session.scalars(sa.select(Seat).order_by(Seat.id))
                assert [(seat.id, seat.label, seat.next_id) for seat in seats] == expected
                check_history(session, Seat)


def test_unique_values_that_are_passed_on_go_back(sessions):
    with sessions.begin() as session:
        session.add_all([Author(id=number, email=str(number)) for number in range(1, 4)])
    before = state_of(sessions)
    with sessions.begin() as session:
        for number in (3, 2, 1):
            session.get_one(Author, number).email = str(number + 1)
            session.flush()
        session.add(Author(id=4, email="1"))
    after = state_of(sessions)
    for expected in (before, after):
        with sessions.begin() as session:
            undo(session, last_changeset(sessions))
        assert state_of(sessions) == expected


@pytest.mark.requires("concurrent_writes")
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_change_that_another_transaction_commits_meanwhile_is_not_lost(sessions, database, level, when):
    other = sessionmaker(sessions.kw["bind"].execution_options(isolation_level=level))
    sqlaudit.register_hooks(other)
    with sessions.begin() as session:
        session.add(Tag(id=1, text="red"))
    with sessions.begin() as session:
        session.get_one(Tag, 1).text = "blue"
    asked = threading.Event()

    def take_back() -> None:
        with other.begin() as session:
            undo(session, changeset)

    changeset = last_changeset(sessions)
    with ThreadPoolExecutor() as pool, other() as early, sessions() as late:
        assert early.get_one(Tag, 1).text == "blue"  # its snapshot, if it has one, is of now
        late.get_one(Tag, 1).text = "green"
        late.flush()
        if when == "before":
            late.commit()
            undone = pool.submit(undo, early, changeset)
        else:
            sa.event.listen(sessions.kw["bind"], "before_cursor_execute", lambda *_: asked.set())
            undone = pool.submit(take_back)
            asked.wait()
            with suppress(FuturesTimeout):
                undone.result(0.5)
            late.commit()
        with pytest.raises((UndoConflictError, sa.exc.OperationalError)) as refused:
            undone.result()
    if (level, database.name) != ("REPEATABLE READ", "postgresql"):  # where whoever comes second has to try again
        assert refused.type is UndoConflictError
    with sessions() as session:
        assert session.get_one(Tag, 1).text == "green"
    sqlaudit.unregister_hooks(other)


def test_an_undo_waits_for_a_writer_and_then_sees_what_it_wrote(tables, database):
    engine = sa.create_engine(database.url)  # as an application does: with the driver's own transactions on SQLite
    with recording(engine) as sessions:
        _undo_twice_at_once(sessions)
    engine.dispose()


def _undo_twice_at_once(sessions):
    with sessions.begin() as session:
        session.add(Tag(id=1, text="red"))
    with sessions.begin() as session:
        session.get_one(Tag, 1).text = "blue"
    changeset = last_changeset(sessions)

    def take_back() -> None:
        with sessions.begin() as session:
            undo(session, changeset)

    with ThreadPoolExecutor() as pool, sessions() as first:
        undo(first, changeset)
        second = pool.submit(take_back)
        with suppress(FuturesTimeout):
            second.result(0.3)
        first.commit()
        with pytest.raises(UndoConflictError):
            second.result()
    with sessions() as session:
        assert [version.text for version in versions_of(session, Tag, 1)] == ["red", "blue", "red"]


def test_a_default_that_the_database_would_set_is_not_guessed(sessions, engine, base):
    @sqlaudit.track_table()
    class Shelf(base):
        __tablename__ = "shelves"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    @sqlaudit.track_table()
    class Book(base):
        __tablename__ = "books"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        shelf_id: Mapped[int | None] = mapped_column(
            sa.ForeignKey("shelves.id", ondelete="SET DEFAULT"), server_default=sa.text("1")
        )

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Shelf(id=1))
    with sessions.begin() as session:
        session.add(Shelf(id=2))
    with sessions.begin() as session:
        session.add(Book(id=1, shelf_id=2))
    with sessions() as session:
        changeset = versions_of(session, Shelf, 2)[0].audit_changeset_id
        with pytest.raises(QueryError, match="Book 1 refers to Shelf 2, which would be deleted"):
            undo(session, changeset, force=True)
