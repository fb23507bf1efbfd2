"""`assert_recorded` passes if the last version is as expected, and else says what was recorded instead."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from sqlaudit import AuditContextManager, QueryError, TrackingError, track_table, tracking_disabled
from sqlaudit.testing import assert_recorded

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    pass


ticket_tags = sa.Table(
    "ticket_tags",
    Base.metadata,
    sa.Column("ticket_id", sa.ForeignKey("tickets.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@track_table(quiet=["seen_at", "seen_by"])
class Comment(Base):
    __tablename__ = "comments"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ticket_id: Mapped[int] = mapped_column(sa.ForeignKey("tickets.id"))
    text: Mapped[str] = mapped_column(sa.String(50))
    seen_at: Mapped[int] = mapped_column(default=1, onupdate=2)
    seen_by: Mapped[str | None] = mapped_column(sa.String(50))


@track_table(tracked_fields=["title", "status"], exclude=["secret"])
class Ticket(Base):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(sa.String(50))
    status: Mapped[str] = mapped_column(sa.String(50), default="new")
    hits: Mapped[int] = mapped_column(default=0)
    secret: Mapped[str | None] = mapped_column(sa.String(50))
    kind: Mapped[str] = mapped_column(sa.String(50), default="ticket")
    tags: Mapped[list[Tag]] = relationship(secondary=ticket_tags)
    comments: Mapped[list[Comment]] = relationship()

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "ticket"}


class Bug(Ticket):
    __tablename__ = "bugs"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Ticket.id), primary_key=True, autoincrement=False)
    severity: Mapped[int]

    __mapper_args__ = {"polymorphic_identity": "bug"}


@track_table()
class Line(Base):
    __tablename__ = "lines"

    ticket: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Untracked(Base):
    __tablename__ = "untracked"

    id: Mapped[int] = mapped_column(primary_key=True)


def happen(sessions: Sessions) -> None:
    with AuditContextManager(user_id="ana", reason="it hurts"), sessions.begin() as session:
        session.add_all([Ticket(id=7, title="Ouch"), Bug(id=8, title="Crash", severity=1), Line(ticket=7, place=1)])
    with sessions.begin() as session:
        session.get_one(Bug, 8).severity = 2
        session.get_one(Ticket, 7).hits = 1
        session.get_one(Ticket, 7).status = "open"
    with AuditContextManager(user_id="ben"), sessions.begin() as session:
        session.get_one(Ticket, 7).status = "done"
        session.delete(session.get_one(Line, (7, 1)))


@pytest.fixture
def session(happened: None, session: Session) -> Session:
    return session


def failure(session: Session, model: Any, key: Any, **expected: Any) -> str:
    with pytest.raises(AssertionError) as failed:
        assert_recorded(session, model, key, **expected)
    return str(failed.value)


@pytest.mark.parametrize(
    ("model", "key", "expected"),
    [
        (Ticket, 7, {}),
        (Ticket, "7", {"operation": "update", "fields": {"status"}, "changed_by": "ben"}),
        (Ticket, 7, {"fields": ["status"], "values": {"status": "done", "title": "Ouch", "hits": 1}}),
        (Bug, 8, {"operation": "update", "fields": {"severity"}, "values": {"severity": 2, "title": "Crash"}}),
        (Ticket, 8, {"fields": {"severity"}}),
        (Line, (7, 1), {"operation": "delete", "fields": {"ticket", "place"}, "changed_by": "ben"}),
    ],
)
def test_it_passes_and_returns_the_last_version(session: Session, model: Any, key: Any, expected: Any) -> None:
    version = assert_recorded(session, model, key, **expected)
    assert version.audit_version == 3 if key in (7, "7") else 2
    assert version.next is None


def test_a_failure_says_what_was_expected_what_is_recorded_and_which_version_would_do(session: Session) -> None:
    assert failure(session, Ticket, 7, operation="insert", fields=set(), values={"hits": 2}, reason="moved") == (
        "The last version of Ticket 7 is not as expected.\n"
        "  operation: expected 'insert', recorded 'update'\n"
        "  reason: expected 'moved', recorded None\n"
        "  fields: expected no fields; recorded status\n"
        "  value of hits: expected 2, recorded 1\n"
        "Recorded, newest first:\n"
        "  3  update by 'ben': status 'open' → 'done'\n"
        "  2  update by nobody: hits 0 → 1, status 'new' → 'open'\n"
        "  1  insert by 'ana', reason 'it hurts': hits None → 0, id None → 7, kind None → 'ticket', "
        "status None → 'new', title None → 'Ouch'"
    )
    assert failure(session, Ticket, 7, operation="insert", changed_by="ana").endswith(
        "\nVersion 1 is as expected, but it is not the last one."
    )


def test_a_failure_shows_the_last_five_versions(session: Session) -> None:
    for number in range(4):
        session.get_one(Ticket, 7).title = str(number)
        session.commit()
    told = failure(session, Ticket, 7, operation="delete").splitlines()
    assert [line.split()[0] for line in told[3:]] == ["7", "6", "5", "4", "3", "…"]
    assert told[-1] == "  … and 2 before"


def test_an_update_in_the_transaction_of_its_insert_is_explained(session: Session) -> None:
    session.add(Ticket(id=9, title="x"))
    session.flush()
    session.get_one(Ticket, 9).title = "y"
    session.flush()
    assert "changeset_per_commit(connection)" in failure(session, Ticket, 9, operation="update")


def test_nothing_recorded_is_explained(session: Session, engine: sa.Engine, sessions: Sessions) -> None:
    def nothing(session: Session, key: int) -> str:
        told = failure(session, Ticket, key)
        assert told.startswith(f"Nothing is recorded of Ticket {key}. ")
        return told

    assert "There is no row with this key in 'tickets' either" in nothing(session, 99)
    with tracking_disabled(session):
        session.add(Ticket(id=9, title="x"))
    session.commit()
    assert "tracking_disabled()" in nothing(session, 9)
    with Session(engine) as other:
        assert "this session does not record" in nothing(other, 9)
    with sessions(autoflush=False) as other:
        other.add(Ticket(id=10, title="x"))
        assert "call session.flush()" in nothing(other, 10)


def test_without_hooks_they_are_asked_for(engine: sa.Engine, happened: None) -> None:
    with Session(engine) as session:
        assert "call register_hooks()" in failure(session, Ticket, 99)


@pytest.mark.spread
@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"operation": "updated"}, "operation is 'updated'. Give one of 'insert', 'update', 'delete', 'baseline'."),
        ({"fields": "status"}, r"fields is the text 'status'. Give a set of names: \{'status'\}"),
        ({"fields": {"secret"}}, "The history of Ticket has no field 'secret'. It has hits, id, kind, severity, "),
        ({"values": {"statuss": 1}}, "has no field 'statuss'"),
        ({"changed_by": 1.5}, "changed_by has 1.5"),
    ],
)
def test_what_cannot_be_expected_is_refused(session: Session, expected: Any, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        assert_recorded(session, Ticket, 7, **expected)


@pytest.mark.spread
def test_an_untracked_model_is_refused(session: Session) -> None:
    with pytest.raises(TrackingError, match="Untracked"):
        assert_recorded(session, Untracked, 1)


@pytest.fixture
def linked(session: Session) -> Session:
    """A ticket that got two tags and a comment in one transaction, and lost a tag in another."""
    with AuditContextManager(user_id="eve"):
        ticket = session.get_one(Ticket, 7)
        ticket.tags = [Tag(id=3), Tag(id=4)]
        ticket.comments = [Comment(id=1, text="Why?")]
        session.commit()
    ticket.comments[0].text = "Why not?"
    ticket.tags.pop()
    session.commit()
    return session


@pytest.mark.parametrize(
    ("model", "key", "expected"),
    [
        (Ticket.tags, 7, {}),
        (Ticket.tags, "7", {"operation": "unlink", "values": {"tag_id": 4}}),
        (ticket_tags, (7, 3), {"operation": "insert", "fields": {"ticket_id", "tag_id"}, "changed_by": "eve"}),
        (ticket_tags, (7, 4), {"operation": "delete"}),
        (Ticket.comments, 7, {"operation": "update", "fields": {"text"}, "values": {"text": "Why not?"}}),
        (Comment, 1, {"operation": "update", "fields": {"text"}}),
        (Comment, 1, {"operation": "update", "fields": {"text", "seen_at"}}),
    ],
)
def test_links_and_owned_rows_are_asserted_by_their_relationship_or_table(
    linked: Session, model: Any, key: Any, expected: Any
) -> None:
    assert assert_recorded(linked, model, key, **expected).operation in ("insert", "update", "delete")


def test_of_a_relationship_any_link_of_its_last_changeset_will_do(session: Session) -> None:
    session.get_one(Ticket, 7).tags = [Tag(id=3), Tag(id=4), Tag(id=5)]
    session.commit()
    for number in (3, 4, 5):
        version = assert_recorded(session, Ticket.tags, 7, operation="link", values={"tag_id": number})
        assert version.tag_id == number
    told = failure(session, Ticket.tags, 7, operation="link", values={"tag_id": 6}).splitlines()
    assert told[0] == "None of the 3 last versions of Ticket.tags 7 is as expected. The last one:"
    assert told[1] == "  value of tag_id: expected 6, recorded 5"
    assert told[3] == "  1  link by nobody: tag_id None → 5, ticket_id None → 7"


def test_what_is_not_as_expected_of_links_is_told(linked: Session) -> None:
    assert "operation: expected 'link', recorded 'unlink'" in failure(linked, Ticket.tags, 7, operation="link")
    assert "fields: expected seen_by, text; recorded seen_at, text" in failure(
        linked, Comment, 1, fields={"text", "seen_by"}
    )
    assert failure(linked, Ticket.tags, 8) == (
        "Nothing is recorded of Ticket.tags 8. No version in 'ticket_tags_history' refers to this Ticket, as far as "
        "the transaction of the session sees."
    )
    assert "There is no row with this key in 'ticket_tags' either" in failure(linked, ticket_tags, (7, 9))


def test_it_runs_in_an_async_session(async_engine: AsyncEngine, happened: None) -> None:
    async def run() -> None:
        async with AsyncSession(async_engine) as session:
            version = await assert_recorded(session, Ticket, 7, operation="update", fields={"status"})
            assert version.status == "done"

    asyncio.run(run())
