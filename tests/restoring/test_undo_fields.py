"""What undo leaves alone: what others have changed since, in other fields. And the undo of many transactions as one."""

import itertools
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import sqlaudit
from clock import START
from invariants import check_history
from registering import recording
from sqlaudit import (
    AuditContextManager,
    QueryError,
    TrackingError,
    UndoConflictError,
    changesets,
    history_of,
    restore,
    undo,
    versions_of,
)

pytestmark = [pytest.mark.usefixtures("clock"), pytest.mark.spread]


TOUCHES = itertools.count(100)


class Base(DeclarativeBase):
    pass


ticket_tags = sa.Table(
    "ticket_tags",
    Base.metadata,
    sa.Column("ticket_id", sa.ForeignKey("tickets.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@sqlaudit.track_table(exclude=["secret"])
class Ticket(Base):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column("headline", sa.String(50))
    status: Mapped[str | None] = mapped_column(sa.String(50))
    data: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    price: Mapped[int | None]
    secret: Mapped[str | None] = mapped_column(sa.String(50))
    touched: Mapped[int | None] = mapped_column(default=0, onupdate=lambda: next(TOUCHES))
    length: Mapped[int | None] = mapped_column(sa.Computed("length(headline)", persisted=True))
    comments: Mapped[list["Comment"]] = relationship(back_populates="ticket")
    tags: Mapped[list["Tag"]] = relationship(secondary=ticket_tags)


@sqlaudit.track_table()
class Comment(Base):
    __tablename__ = "comments"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column(sa.String(50))
    ticket_id: Mapped[int | None] = mapped_column(sa.ForeignKey("tickets.id"))
    ticket: Mapped[Ticket | None] = relationship(back_populates="comments")


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)


def change(sessions: Any, user: str | None = None, key: int = 1, run: str | None = None, **values: Any) -> UUID:
    """Set attributes of a ticket in a transaction of its own; return its changeset."""
    with AuditContextManager(user_id=user, run_id=run), sessions.begin() as session:
        ticket = session.get(Ticket, key)
        if ticket is None:
            session.add(Ticket(id=key, **values))
        else:
            for name, value in values.items():
                setattr(ticket, name, value)
    return last_changeset(sessions)


def delete(sessions: Any, user: str | None = None, key: int = 1) -> UUID:
    with AuditContextManager(user_id=user), sessions.begin() as session:
        session.delete(session.get_one(Ticket, key))
    return last_changeset(sessions)


def last_changeset(sessions: Any) -> UUID:
    with sessions() as session:
        return changesets(session, newest_first=True, limit=1)[0].changeset_id


def held(sessions: Any, key: int = 1) -> tuple[Any, ...] | None:
    """Return what the database holds of a ticket: title, status, data, price."""
    with sessions() as session:
        for source in (Ticket, Comment, Tag, ticket_tags):
            check_history(session, source)
        columns = (Ticket.title, Ticket.status, Ticket.data, Ticket.price)
        row = session.execute(sa.select(*columns).where(Ticket.id == key)).first()
        return None if row is None else tuple(row)


def conflicts_of(sessions: Any, *args: Any, **options: Any) -> list[tuple[Any, ...]]:
    """Return the conflicts of an undo, in which nothing happens: (label, key, fields, user)."""
    with sessions.begin() as session:
        with pytest.raises(UndoConflictError) as refused:
            undo(session, *args, **options)
        assert not session.new
        assert not session.dirty
    return sorted((each.resource_type, each.key, each.fields, each.changed_by) for each in refused.value.conflicts)


def test_what_others_changed_in_other_fields_stays(sessions):
    change(sessions, title="old", status="open", data={"a": 1}, price=1)
    changeset = change(sessions, "ada", title="new", price=2, data=None)
    change(sessions, "bob", status="closed")
    before = held(sessions)
    with sessions.begin() as session:
        (item,) = undo(session, changeset, dry_run=True)
        assert item.fields == {"title": ("new", "old"), "price": (2, 1), "data": (None, {"a": 1})}
    assert held(sessions) == before
    with sessions.begin() as session:
        assert undo(session, changeset).items == (item,)
    assert held(sessions) == ("old", "closed", {"a": 1}, 1)


@pytest.mark.parametrize("force", [False, True])
def test_only_a_later_change_of_the_same_field_is_a_conflict(sessions, force):
    change(sessions, title="old", status="open", price=1)
    changeset = change(sessions, "ada", title="new", price=2)
    change(sessions, "bob", title="newer", status="closed")
    change(sessions, "cem", status="closed again", data=[1])
    if force:
        with sessions.begin() as session:
            (lost,) = undo(session, changeset, force=True, dry_run=True).conflicts
            assert (lost.resource_type, lost.key, lost.fields, lost.changed_by) == ("Ticket", 1, ("title",), "bob")
            assert undo(session, changeset, force=True).conflicts == (lost,)
        assert held(sessions) == ("old", "closed again", [1], 1)
    else:
        assert conflicts_of(sessions, changeset) == [("Ticket", 1, ("title",), "bob")]
        with sessions.begin() as session, pytest.raises(UndoConflictError, match=r"Ticket 1 \(title, by bob at"):
            undo(session, changeset)
        assert held(sessions) == ("newer", "closed again", [1], 2)


def test_the_whole_row_becomes_what_it_was_if_that_is_asked_for(sessions):
    change(sessions, title="old", status="open", price=1)
    changeset = change(sessions, "ada", title="new")
    change(sessions, "bob", status="closed")
    assert conflicts_of(sessions, changeset, whole_rows=True) == [("Ticket", 1, (), "bob")]
    with sessions.begin() as session:
        undo(session, changeset, whole_rows=True, force=True)
    assert held(sessions) == ("old", "open", None, 1)


@pytest.mark.parametrize("force", [False, True])
def test_a_later_deletion_is_a_conflict_and_the_row_comes_back_with_what_others_changed(sessions, force):
    change(sessions, title="old", status="open", price=1)
    changeset = change(sessions, "ada", title="new")
    change(sessions, "bob", status="closed")
    delete(sessions, "cem")
    if force:
        with sessions.begin() as session:
            undo(session, changeset, force=True)
    else:
        assert conflicts_of(sessions, changeset) == [("Ticket", 1, (), "cem")]
    assert held(sessions) == (("old", "closed", None, 1) if force else None)


def test_what_is_set_whenever_a_row_changes_is_no_conflict(sessions):
    change(sessions, title="old", status="open", touched=1)
    changeset = change(sessions, "ada", title="new", touched=2)
    change(sessions, "bob", status="closed", touched=3)
    with sessions.begin() as session:
        (item,) = undo(session, changeset)
        assert item.fields == {"title": ("new", "old")}
        assert session.get_one(Ticket, 1).touched == 3


def test_a_mandatory_column_that_came_later_does_not_matter(engine, base):
    @sqlaudit.track_table()
    class Account(base):
        __tablename__ = "accounts"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))
        level: Mapped[int] = mapped_column(default=1)

    history = history_of(Account).__table__
    with recording(engine, base.metadata) as sessions:
        for name in ("a", "b", "c"):
            with sessions.begin() as session:
                session.merge(Account(id=1, name=name))
        with engine.begin() as connection:  # which has no hooks: what a migration leaves, if it fills open versions
            connection.execute(sa.update(history).where(history.c.audit_version < 3).values(level=None))
        for number, expected in ((3, "b"), (2, "a")):
            with sessions.begin() as session:
                changeset = versions_of(session, Account, 1)[number - 1].audit_changeset_id
                (item,) = undo(session, changeset, force=number == 2)
                assert item.fields == {"name": ("c" if number == 3 else "b", expected)}


def test_some_fields_are_undone_and_rows_that_came_or_went_are_left(sessions):
    change(sessions, title="old", status="open", price=1)
    change(sessions, key=2, title="gone")
    with sessions.begin() as session:
        ticket = session.get_one(Ticket, 1)
        ticket.title, ticket.status, ticket.price = "new", "closed", 2
        ticket.comments.append(Comment(id=1, title="made"))
        ticket.tags.append(Tag(id=1))
        session.delete(session.get_one(Ticket, 2))
    changeset = last_changeset(sessions)
    change(sessions, "bob", status="later")
    with sessions.begin() as session:
        report = undo(session, changeset, fields=["title"])
        assert [(item.resource_type, item.key, item.fields) for item in report] == [
            ("Ticket", 1, {"title": ("new", "old")})
        ]
    assert held(sessions) == ("old", "later", None, 2)
    assert conflicts_of(sessions, changeset, fields={Ticket: ["price", "status"]}) == [
        ("Ticket", 1, ("status",), "bob")
    ]
    with sessions.begin() as session:
        assert not undo(session, changeset, fields={Comment: "title"})
        assert len(undo(session, changeset, fields={Ticket: ["price"]})) == 1
    assert held(sessions) == ("old", "later", None, 1)
    with sessions.begin() as session:
        ticket = session.get_one(Ticket, 1)
        ticket.tags, ticket.comments = [], []
    delete(sessions)
    with sessions.begin() as session:
        assert not undo(session, changeset, fields="title", force=True)
    assert held(sessions) is None


# --- many changesets --------------------------------------------------------------------------------------------


def test_what_a_user_did_is_undone_as_one(sessions):
    change(sessions, "ada", title="a", status="open", price=1)
    change(sessions, "eve", title="b")
    change(sessions, "ada", status="closed")
    change(sessions, "eve", title="c", price=2)
    change(sessions, "eve", key=2, title="made")
    change(sessions, "eve", key=2, title="and changed")
    change(sessions, "ada", key=3, title="kept")
    delete(sessions, "eve", key=3)
    with sessions.begin() as session:
        report = undo(session, user_id="eve")
        assert sorted((str(item.operation), item.key) for item in report) == [
            ("delete", 2),
            ("insert", 3),
            ("update", 1),
        ]
        assert versions_of(session, Ticket, 1)[-1].audit_reason.startswith("undo of 5 changesets: ")
    assert held(sessions) == ("a", "closed", None, 1)
    assert held(sessions, 2) is None
    assert held(sessions, 3) == ("kept", None, None, None)
    with sessions.begin() as session:
        assert not undo(session, user_id="nobody")
        undo(session, last_changeset(sessions))
    assert held(sessions) == ("c", "closed", None, 2)
    assert held(sessions, 3) is None


def test_one_conflict_refuses_all_that_is_undone_together(sessions):
    change(sessions, "ada", title="a", status="open")
    change(sessions, "eve", title="b")
    change(sessions, "bob", title="c")
    change(sessions, "eve", title="d", status="closed")
    assert conflicts_of(sessions, user_id="eve") == [("Ticket", 1, ("title",), "bob")]
    assert held(sessions) == ("d", "closed", None, None)
    with sessions.begin() as session:
        undo(session, last_changeset(sessions))
    assert held(sessions) == ("c", "open", None, None)
    with sessions.begin() as session:
        undo(session, user_id="eve", force=True)
    assert held(sessions) == ("a", "open", None, None)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"run_id": "r1"}, ("new 3", "new", None, None)),
        ({"run_id": "R1"}, ("new 3", "new", None, 3)),
        ({"since": START + timedelta(seconds=2)}, ("new 1", "old", None, None)),
        ({"user_id": "bot", "since": START + timedelta(seconds=2)}, ("new 3", "old", None, None)),
        ({"user_id": "bot", "run_id": "r2"}, ("new 3", "old", None, 3)),
    ],
    ids=str,
)
def test_changesets_are_chosen_by_user_instant_and_run(sessions, chosen, expected):
    change(sessions, title="old", status="old")  # second 0
    change(sessions, "ada", title="new 1")
    change(sessions, "bot", run="r2", status="new")  # second 2
    change(sessions, "ada", title="new 3")
    change(sessions, "bot", run="r1", price=3)
    with sessions.begin() as session:
        undo(session, **chosen)
    assert held(sessions) == expected


def test_of_a_transaction_of_two_users_only_what_one_did_is_undone(sessions):
    change(sessions, title="old", status="open")
    with sessions.begin() as session:
        ticket = session.get_one(Ticket, 1)
        for user, name in (("ada", "title"), ("eve", "status")):
            with AuditContextManager(user_id=user):
                setattr(ticket, name, user)
                session.flush()
    with sessions.begin() as session:
        undo(session, user_id="eve")
    assert held(sessions) == ("ada", "open", None, None)


def test_a_later_row_that_refers_to_one_is_told_with_the_transaction_that_made_it_refer(sessions):
    made = change(sessions, "ada", title="made")
    with AuditContextManager(user_id="bob"), sessions.begin() as session:
        session.add(Comment(id=1))
    with AuditContextManager(user_id="cem"), sessions.begin() as session:
        session.get_one(Comment, 1).ticket_id = 1
    referring = last_changeset(sessions)
    with AuditContextManager(user_id="dan"), sessions.begin() as session:
        session.get_one(Comment, 1).title = "later"
    with AuditContextManager(user_id="eve"), sessions.begin() as session:
        ticket = session.get_one(Ticket, 1)
        ticket.tags.append(Tag(id=1))
    linking = last_changeset(sessions)
    assert conflicts_of(sessions, made) == [
        ("Comment", 1, ("ticket_id",), "cem"),
        ("ticket_tags", (1, 1), (), "eve"),
    ]
    with sessions.begin() as session:
        report = undo(session, made, force=True, dry_run=True)
        assert {each.changeset_id for each in report.conflicts} == {referring, linking}
        assert not undo(session, [made, str(referring), linking]).conflicts
    assert held(sessions) is None
    with sessions() as session:
        comment = session.get_one(Comment, 1)
        assert (comment.title, comment.ticket_id) == ("later", None)


def test_what_would_come_back_to_refer_to_a_row_that_goes_is_a_conflict(sessions):
    change(sessions, "ada", title="made")
    with AuditContextManager(user_id="bob"), sessions.begin() as session:
        ticket = session.get_one(Ticket, 1)
        ticket.comments, ticket.tags = [Comment(id=1, title="kept"), Comment(id=2)], [Tag(id=1)]
    with AuditContextManager(user_id="ada"), sessions.begin() as session:
        ticket = session.get_one(Ticket, 1)
        session.delete(session.get_one(Comment, 2))
        ticket.comments, ticket.tags = [], []
    assert conflicts_of(sessions, user_id="ada") == [
        ("Comment", 1, ("ticket_id",), "bob"),
        ("Comment", 2, ("ticket_id",), "bob"),
        ("ticket_tags", (1, 1), (), "bob"),
    ]
    with sessions.begin() as session:
        report = undo(session, user_id="ada", force=True)
        assert sorted((item.resource_type, item.key) for item in report) == [("Comment", 2), ("Ticket", 1)]
    assert held(sessions) is None
    with sessions() as session:
        comments = sa.select(Comment.id, Comment.ticket_id).order_by(Comment.id)
        assert [tuple(row) for row in session.execute(comments)] == [(1, None), (2, None)]


def test_a_link_that_came_and_went_is_undone_as_one(sessions):
    change(sessions)
    ids = []
    for tags in ([1], [], [1, 2]):
        with AuditContextManager(user_id="eve"), sessions.begin() as session:
            ticket = session.get_one(Ticket, 1)
            ticket.tags = [session.get(Tag, key) or Tag(id=key) for key in tags]
        ids.append(last_changeset(sessions))
    assert conflicts_of(sessions, ids[1]) == [("ticket_tags", (1, 1), (), "eve")]
    with sessions.begin() as session:
        undo(session, ids[1:])
        assert [tag.id for tag in session.get_one(Ticket, 1).tags] == [1]
    with sessions.begin() as session:
        undo(session, [*ids, last_changeset(sessions)])
        assert not session.get_one(Ticket, 1).tags
        assert not session.scalars(sa.select(Tag)).all()
    held(sessions)


# --- restore ----------------------------------------------------------------------------------------------------


def test_some_fields_of_a_row_are_restored(sessions):
    change(sessions, title="old", status="open", price=1, data=[1])
    change(sessions, title="new", status="closed", price=2, data=[2])
    with sessions.begin() as session:
        (item,) = restore(session, Ticket, 1, at=1, fields=["price", "data"])
        assert item.fields == {"price": (2, 1), "data": ([2], [1])}
        version = versions_of(session, Ticket, 1)[-1]
        assert version.audit_reason.startswith("restored data, price from version 1 of ")
        assert not restore(session, versions_of(session, Ticket, 1)[0], fields="price")
    assert held(sessions) == ("new", "closed", [1], 1)
    delete(sessions)
    with sessions.begin() as session, pytest.raises(QueryError, match="Ticket 1 is deleted"):
        restore(session, Ticket, 1, at=1, fields=["price"])


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.spread(False)
@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({}, "None is not a changeset id"),
        ({"changeset_id": []}, "No changeset is named"),
        ({"changeset_id": [UUID(int=1)]}, "000000000001"),
        ({"changeset_id": UUID(int=1), "user_id": "ada"}, "by ids and by user_id"),
        ({"user_id": True}, "user_id has True"),
        ({"run_id": 1.5}, "run_id has 1.5"),
        ({"since": "yesterday"}, "yesterday"),
        ({"user_id": "ada", "fields": ["titel"]}, r"Ticket cannot get back 'titel'.*status, title"),
        ({"user_id": "ada", "fields": ["length"]}, "'length'"),
        ({"user_id": "ada", "fields": {Ticket: ["secret"]}}, "'secret'"),
        ({"user_id": "ada", "fields": []}, "names of attributes"),
        ({"user_id": "ada", "fields": 5}, "fields is 5"),
        ({"user_id": "ada", "fields": ["title"], "whole_rows": True}, "fields or whole_rows"),
    ],
    ids=str,
)
def test_what_cannot_be_undone_is_refused_with_the_reason(sessions, arguments, hint):
    change(sessions, "ada", title="a")
    with sessions.begin() as session, pytest.raises(QueryError, match=hint):
        undo(session, **arguments)


@pytest.mark.spread(False)
def test_fields_that_cannot_be_restored_are_refused_with_the_reason(sessions):
    change(sessions, title="a")
    with sessions.begin() as session:
        for fields, hint in (("titel", "'titel'"), (["length"], "'length'"), ([], "names of"), (["secret"], "secret")):
            with pytest.raises(QueryError, match=hint):
                restore(session, Ticket, 1, at=1, fields=fields)
        with pytest.raises(QueryError, match=r"Call restore\(\) for each"):
            restore(session, Ticket, 1, at=1, fields=["title"], include=["comments"])
        with pytest.raises(TrackingError):
            undo(session, user_id="ada", fields={Session: ["title"]})


# --- columns that the database stamps


STAMP = "CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6)"
STAMPED = {
    "declared": (sa.text(STAMP), None),
    "only in the database": (None, f"ALTER TABLE stamped MODIFY stamp DATETIME(6) DEFAULT {STAMP}"),
}


@pytest.mark.requires("compound_statements")
@pytest.mark.parametrize("is_mapped", [True, False])
@pytest.mark.parametrize(("default", "statement"), STAMPED.values(), ids=STAMPED)
def test_a_column_that_the_database_stamps_is_written_as_it_was_and_is_no_conflict_if_it_is_mapped(
    default, statement, is_mapped, base, sessions, engine
):
    table = sa.Table(
        "stamped",
        base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.String(20)),
        sa.Column("status", sa.String(20)),
        sa.Column("legacy", sa.String(20)),
        sa.Column("stamp", mysql.DATETIME(fsp=6), server_default=default),
    )
    excluded = [] if is_mapped else ["legacy", "stamp"]

    @sqlaudit.track_table()
    class Stamped(base):
        __table__ = table
        __mapper_args__ = {"exclude_properties": excluded}  # SQLAlchemy's way

    base.metadata.create_all(engine)
    with sessions() as session:
        if statement:
            session.execute(sa.text(statement))
        writes = [
            table.insert().values(id=1, title="a", status="new", legacy="x"),
            table.update().values(title="b", legacy="y", stamp=table.c.stamp),
            table.update().values(status="done"),
        ]
        stamps, changesets = [], []
        for write in writes:
            session.execute(write)
            session.commit()
            stamps.append(session.scalar(sa.select(table.c.stamp)))
            changesets.append(sqlaudit.changesets(session)[-1].changeset_id)
        assert stamps[0] == stamps[1] < stamps[2]

        sqlaudit.undo(session, changesets[1], force=not is_mapped)
        session.commit()
        undone = session.execute(sa.select(table)).one()
        assert (undone.title, undone.status, undone.legacy) == ("a", "done", "x")

        session.execute(table.update().values(title="c", legacy="z", stamp=stamps[0]))
        session.commit()
        sqlaudit.restore(session, Stamped, 1, at=1)
        session.commit()
        assert tuple(session.execute(sa.select(table)).one()) == (1, "a", "new", "x", stamps[0])

        session.execute(table.update().values(title="d"))
        session.commit()
        renamed = sqlaudit.changesets(session)[-1].changeset_id
        session.execute(table.update().values(status="late"))
        session.commit()
        assert bool(sqlaudit.undo(session, renamed, force=not is_mapped).conflicts) != is_mapped
        assert session.scalar(sa.select(table.c.title)) == "a"
