"""A quiet column is stored, but its changes alone make no version, and nobody compares it with the live row."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Mapped, Session, mapped_column

from counting import counted
from sqlaudit import (
    Operation,
    backfill,
    changesets,
    get_resource_changes,
    record_changes,
    restore,
    track_table,
    tracking_disabled,
    undo,
    versions_of,
)


class Base(orm.DeclarativeBase):
    pass


@track_table(quiet=["hits", "touched"])
class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    title: Mapped[str] = mapped_column(sa.String(50))
    hits: Mapped[int] = mapped_column("hit_count", default=0)
    touched: Mapped[int] = mapped_column(default=0, onupdate=sa.text("touched + 1"))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "page"}


@track_table(quiet=["score"])
class Article(Page):
    __tablename__ = "articles"
    id: Mapped[int] = mapped_column(sa.ForeignKey("pages.id"), primary_key=True)
    body: Mapped[str] = mapped_column(sa.String(50), default="")
    score: Mapped[int] = mapped_column(default=0)
    __mapper_args__ = {"polymorphic_identity": "article"}


def happen(sessions: orm.sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.add_all([Page(id=1, title="a"), Article(id=2, title="b")])
    with sessions() as session, tracking_disabled(session):
        session.add(Page(id=3, title="old"))
        session.commit()


def numbers(session: Session, key: int) -> list[tuple[Any, ...]]:
    return [(version.audit_operation, version.title, version.hits) for version in versions_of(session, Page, key)]


def flushed(session: Session) -> None:
    for page in session.scalars(sa.select(Page)):
        page.hits += 1
    session.flush()
    session.get_one(Article, 2).score = 5


scores = Article.__table__
QUIET_WRITES: dict[str, Callable[[Session], Any]] = {
    "objects": flushed,
    "statement": lambda session: session.execute(sa.update(Page).values(hits=Page.hits + 1)),
    "executemany": lambda session: session.execute(sa.update(Page), [{"id": 1, "hits": 1}, {"id": 2, "hits": 2}]),
    "subclass table": lambda session: session.execute(sa.update(scores).values(score=3).where(scores.c.id == 2)),
}


@pytest.mark.parametrize("write", QUIET_WRITES.values(), ids=QUIET_WRITES)
def test_a_quiet_change_alone_sends_nothing_to_the_history(write, sessions, engine, happened):
    with counted(engine) as statements, sessions.begin() as session:
        write(session)
    assert statements
    assert not [statement for statement in statements if "history" in statement]
    with sessions() as session:
        assert [len(versions_of(session, Page, key)) for key in (1, 2, 3)] == [1, 1, 0]


def test_a_quiet_change_beside_others_that_may_make_versions_makes_none(sessions, happened):
    """Statements that set other columns, too, but to what they are."""
    with sessions.begin() as session:
        session.execute(sa.update(Page).values(hits=7, title=Page.title))
        page = session.get_one(Page, 1)
        page.title, page.hits = "x", 8
        session.flush()
        page.title, page.hits = "a", 9
    with sessions() as session:
        assert [len(versions_of(session, Page, key)) for key in (1, 2, 3)] == [1, 1, 0]


def test_a_version_has_the_value_of_the_moment_at_which_it_was_written(sessions, happened):
    for title, hits in (("b", 5), ("b", 6), ("c", 7), ("c", 8)):
        with sessions.begin() as session:
            page = session.get_one(Page, 1)
            page.title, page.hits = title, hits
            session.flush()
            page.hits += 100
    with sessions.begin() as session:
        session.delete(session.get_one(Page, 1))
    with sessions() as session:
        assert numbers(session, 1) == [
            (Operation.INSERT, "a", 0),
            (Operation.UPDATE, "b", 5),
            (Operation.UPDATE, "c", 7),
            (Operation.DELETE, "c", 7),
        ]
        changes = get_resource_changes(Page, session, 1, ["hits"], filter_operations="update")
        assert [(change.old_value, change.new_value) for change in changes] == [(0, 5), (5, 7)]


def test_the_baseline_of_a_row_without_history_has_the_quiet_values_before_its_first_change(sessions, happened):
    with sessions.begin() as session:
        session.get_one(Page, 3).hits = 4
    with sessions.begin() as session:
        page = session.get_one(Page, 3)
        page.title, page.hits = "new", 5
    with sessions() as session:
        assert numbers(session, 3) == [(Operation.BASELINE, "old", 4), (Operation.UPDATE, "new", 5)]


def test_record_changes_and_backfill_leave_quiet_columns_out(sessions, happened):
    with sessions.begin() as session:
        backfill(session, Page)
    with sessions() as session, tracking_disabled(session):
        session.execute(sa.text("UPDATE pages SET hit_count = 9, touched = 9"))
        session.execute(sa.text("UPDATE articles SET score = 9"))
        session.commit()
    for _ in range(2):
        with sessions.begin() as session:
            record_changes(session, Page)
            backfill(session, Page)
    with sessions() as session, tracking_disabled(session):
        session.execute(sa.text("UPDATE articles SET body = 'x'"))
        session.commit()
    with sessions.begin() as session:
        record_changes(session, Page)
    with sessions() as session:
        assert [len(versions_of(session, Page, key)) for key in (1, 2, 3)] == [1, 2, 1]
        assert (article := versions_of(session, Article, 2)[-1]).score == article.hits == 9


TRIGGERS = {
    "sqlite": ["CREATE TRIGGER heat AFTER UPDATE OF hits ON posts BEGIN UPDATE posts SET title = 'hot'; END"],
    "mariadb": ["CREATE TRIGGER heat BEFORE UPDATE ON posts FOR EACH ROW SET NEW.title = 'hot'"],
    "postgresql": [
        "CREATE FUNCTION heat() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.title := 'hot'; RETURN NEW; END$$",
        "CREATE TRIGGER heat BEFORE UPDATE ON posts FOR EACH ROW EXECUTE FUNCTION heat()",
    ],
}


@pytest.mark.parametrize("is_bulk", [False, True])
def test_what_a_trigger_changes_with_a_quiet_column_is_recorded(is_bulk, base, sessions, engine, database):
    @track_table(quiet=["hits"])
    class Post(base):
        __tablename__ = "posts"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(sa.String(10))
        hits: Mapped[int]

    base.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in TRIGGERS[database.name]:
            connection.exec_driver_sql(statement)
    with sessions.begin() as session:
        session.add(Post(id=1, title="cold", hits=0))
    with sessions.begin() as session:
        if is_bulk:
            session.execute(sa.update(Post).values(hits=1))
        else:
            session.get_one(Post, 1).hits = 1
    with sessions() as session:
        assert [(version.title, version.hits) for version in versions_of(session, Post, 1)] == [("cold", 0), ("hot", 1)]


@pytest.mark.requires("compound_statements")
@pytest.mark.parametrize("option", ["quiet", "exclude"])
@pytest.mark.parametrize("is_bulk", [False, True])
def test_what_the_database_stamps_with_a_quiet_or_excluded_column_is_recorded(is_bulk, option, base, sessions, engine):
    @track_table(**{option: ["hits"]})
    class Post(base):
        __tablename__ = "posts"
        id: Mapped[int] = mapped_column(primary_key=True)
        hits: Mapped[int]
        stamp: Mapped[datetime] = mapped_column(
            mysql.DATETIME(fsp=6), server_default=sa.text("CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6)")
        )

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Post(id=1, hits=0))
    with sessions.begin() as session:
        if is_bulk:
            session.execute(sa.update(Post).values(hits=1))
        else:
            session.get_one(Post, 1).hits = 1
    with sessions() as session:
        first, second = versions_of(session, Post, 1)
        assert second.stamp == session.get_one(Post, 1).stamp > first.stamp


def test_restore_leaves_quiet_columns_as_they_are_unless_they_are_named(sessions, happened):
    with sessions.begin() as session:
        page = session.get_one(Page, 1)
        page.title, page.hits = "b", 5
    with sessions.begin() as session:
        session.get_one(Page, 1).hits = 6
    with sessions.begin() as session:
        assert not restore(session, Page, 1, at=2)
        (restored,) = restore(session, Page, 1, at=1)
        assert restored.fields == {"title": ("b", "a")}
        assert session.get_one(Page, 1).hits == 6
        (restored,) = restore(session, Page, 1, at=1, fields=["hits"])
        assert restored.fields == {"hits": (6, 0)}
        session.delete(session.get_one(Page, 1))
    with sessions.begin() as session:
        restore(session, Page, 1, at=2)
        assert session.get_one(Page, 1).hits == 5


def test_undo_leaves_quiet_columns_as_they_are_and_finds_no_conflict_in_them(sessions, happened):
    for change in ({"title": "c", "hits": 5, "score": 5}, {"hits": 6}, {"body": "x", "hits": 7, "score": 7}):
        with sessions.begin() as session:
            article = session.get_one(Article, 2)
            for name, value in change.items():
                setattr(article, name, value)
    with sessions.begin() as session:
        _, renamed, edited = (changeset.changeset_id for changeset in changesets(session))
        (undone,) = undo(session, renamed)
        assert undone.fields == {"title": ("c", "b")}
        (undone,) = undo(session, edited, whole_rows=True, force=True)
        article = session.get_one(Article, 2)
        assert (article.title, article.body, article.hits, article.score) == ("c", "", 7, 7)
