"""An association table has columns of its own: what becomes of their values by undo and restore?"""

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

import sqlaudit
from invariants import check_history
from registering import recording
from sqlaudit import UndoConflictError, changesets, restore, undo

pytestmark = [pytest.mark.usefixtures("clock"), pytest.mark.spread]


@pytest.fixture
def shelf(engine, base):
    """A shelf with a book on it, in the place 7, with a note."""

    class Shelf(base):
        __tablename__ = "shelves"

        id: Mapped[int] = mapped_column(primary_key=True)
        books: Mapped[list["Book"]] = relationship(secondary="placed")

    class Book(base):
        __tablename__ = "books"

        id: Mapped[int] = mapped_column(primary_key=True)

    placed = sa.Table(
        "placed",
        base.metadata,
        sa.Column("shelf_id", sa.ForeignKey("shelves.id"), primary_key=True),
        sa.Column("book_id", sa.ForeignKey("books.id"), primary_key=True),
        sa.Column("place", sa.Integer),
        sa.Column("note", sa.String(20), server_default="new"),
        sa.Column("double", sa.Integer, sa.Computed("place * 2", persisted=True)),
    )
    sqlaudit.track_table()(Shelf)
    sqlaudit.track_table()(Book)
    base.registry.configure()
    base.metadata.create_all(engine)
    with recording(engine) as sessions:
        with sessions.begin() as session:
            session.add_all([Shelf(id=1), Book(id=1)])
            session.flush()
            session.execute(sa.insert(placed).values(shelf_id=1, book_id=1, place=7, note="old"))
        yield sessions, Shelf, placed


def run(shelf, step) -> sqlaudit.Changeset:
    """Commit one step, and return its changeset."""
    sessions, shelf_class, placed = shelf
    with sessions.begin() as session:
        if step == "clear":
            loaded = session.get_one(shelf_class, 1)
            loaded.books = []
        elif step == "delete":
            session.execute(sa.delete(placed))
        elif step == "delete the shelf":
            session.delete(session.get_one(shelf_class, 1))
        elif step == "again":
            session.execute(sa.insert(placed).values(shelf_id=1, book_id=1, place=1, note="again"))
        else:
            session.execute(sa.update(placed).values(step))
    with sessions() as session:
        return changesets(session, newest_first=True, limit=1)[0]


def links(shelf) -> list[tuple]:
    """Return the place, the note and the computed value of each link, and check the histories."""
    sessions, shelf_class, placed = shelf
    with sessions() as session:
        check_history(session, shelf_class)
        check_history(session, placed)
        return [tuple(row) for row in session.execute(sa.select(placed.c.place, placed.c.note, placed.c.double))]


@pytest.mark.parametrize(
    ("steps", "undone", "expected"),
    [
        pytest.param(["clear"], [0], (7, "old", 14), id="removed by its relationship"),
        pytest.param(["delete"], [0], (7, "old", 14), id="removed by a statement"),
        pytest.param(["delete the shelf"], [0], (7, "old", 14), id="removed with its end"),
        pytest.param([{"place": 8}], [0], (7, "old", 14), id="changed"),
        pytest.param([{"place": None, "note": None}], [0], (7, "old", 14), id="changed to NULL"),
        pytest.param([{"place": 8}, {"note": "x"}], [0], (7, "x", 14), id="another column stays"),
        pytest.param([{"place": 8}, {"place": 9}], [0, 1], (7, "old", 14), id="changed twice"),
        pytest.param([{"place": 8}, {"note": "x"}, "clear"], [0, 2], (7, "x", 14), id="changed and removed"),
        pytest.param([{"place": 8}, "clear"], [1], (8, "old", 16), id="removed with its last values"),
        pytest.param(["clear", "again"], [0, 1], (7, "old", 14), id="replaced"),
        pytest.param([{"note": None}, "clear"], [1], (7, None, 14), id="NULL in spite of a default"),
    ],
)
def test_a_link_gets_back_the_values_of_its_own_columns(shelf, steps, undone, expected):
    ids = [run(shelf, step).changeset_id for step in steps]
    before = links(shelf)
    sessions, *_ = shelf
    with sessions.begin() as session:
        planned = undo(session, [ids[place] for place in undone], dry_run=True)
        assert undo(session, [ids[place] for place in undone]).items == planned.items
    assert links(shelf) == [expected]
    with sessions() as session:
        last = changesets(session, newest_first=True, limit=1)[0]
    with sessions.begin() as session:
        undo(session, last.changeset_id)
    assert links(shelf) == before


@pytest.mark.parametrize(
    ("steps", "fields", "forced"),
    [
        pytest.param([{"place": 8}, {"place": 9}], ("place",), (7, "old", 14), id="the same column"),
        pytest.param([{"place": 8}, {"note": "x"}, "delete"], (), (7, "x", 14), id="removed since"),
        pytest.param(["clear", "again"], (), (7, "old", 14), id="made again since"),
    ],
)
def test_a_later_change_of_the_same_column_of_a_link_is_a_conflict(shelf, steps, fields, forced):
    first, *_, last = [run(shelf, step) for step in steps]
    sessions, *_ = shelf
    with sessions.begin() as session, pytest.raises(UndoConflictError) as caught:
        undo(session, first.changeset_id)
    (conflict,) = caught.value.conflicts
    assert (conflict.key, conflict.fields, conflict.changeset_id) == ((1, 1), fields, last.changeset_id)
    with sessions.begin() as session:
        undo(session, first.changeset_id, force=True)
    assert links(shelf) == [forced]


@pytest.mark.parametrize("step", ["clear", {"place": 8, "note": None}, "delete the shelf"], ids=str)
def test_an_included_relationship_gets_back_the_columns_of_its_links(shelf, step):
    sessions, shelf_class, _ = shelf
    with sessions() as session:
        (made,) = changesets(session)
    run(shelf, step)
    with sessions.begin() as session:
        restore(session, shelf_class, 1, at=made.changeset_id, include=["books"])
    assert links(shelf) == [(7, "old", 14)]


def test_of_links_between_the_same_rows_only_the_one_that_changed_is_undone(engine, base):
    twice = sa.Table(
        "twice",
        base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("owner_id", sa.ForeignKey("owners.id")),
        sa.Column("thing_id", sa.ForeignKey("things.id")),
        sa.Column("place", sa.Integer),
    )

    @sqlaudit.track_table()
    class Thing(base):
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)

    @sqlaudit.track_table()
    class Owner(base):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True)
        things: Mapped[list[Thing]] = relationship(Thing, secondary=twice)

    base.metadata.create_all(engine)
    with recording(engine) as sessions:
        with sessions.begin() as session:
            session.add_all([Owner(id=1), Owner(id=2), Thing(id=1)])
            session.flush()
            for key, place in ((1, 7), (2, 9)):
                session.execute(sa.insert(twice).values(id=key, owner_id=1, thing_id=1, place=place))
        for key in (1, 2):
            with sessions.begin() as session:
                session.execute(sa.update(twice).where(twice.c.id == key).values(place=8))
            with sessions.begin() as session:
                (last,) = changesets(session, newest_first=True, limit=1)
                undo(session, last.changeset_id)
                rows = session.execute(sa.select(twice.c.id, twice.c.owner_id, twice.c.place).order_by(twice.c.id))
                assert [tuple(row) for row in rows] == [(1, 1, 7), (2, 1, 9)]
                check_history(session, twice)
