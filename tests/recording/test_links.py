"""Is every link of a many-to-many relationship recorded, from either side?"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    Session,
    WriteOnlyMapped,
    foreign,
    mapped_column,
    relationship,
    sessionmaker,
)

from invariants import check_history, told
from registering import recording
from sqlaudit import AuditContextManager, ContextError, SQLAuditConfig, set_config, track_table, tracking_disabled

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    pass


def link_table(name: str, *columns: Any, primary_key: bool = True, ondelete: str | None = None) -> sa.Table:
    return sa.Table(
        name,
        Base.metadata,
        sa.Column("post_id", sa.ForeignKey("posts.id", ondelete=ondelete), primary_key=primary_key, nullable=False),
        sa.Column("tag_id", sa.ForeignKey("tags.id", ondelete=ondelete), primary_key=primary_key, nullable=False),
        *columns,
    )


plain = link_table("post_tags")
no_key = link_table("post_tags_no_key", primary_key=False)
surrogate = link_table("post_tags_surrogate", sa.Column("id", sa.Integer, primary_key=True), primary_key=False)
extra = link_table("post_tags_extra", sa.Column("weight", sa.Integer, server_default=sa.text("3"), nullable=False))
cascading = link_table("post_tags_cascading", ondelete="CASCADE")
written = link_table("post_tags_written")
dynamic = link_table("post_tags_dynamic")
friends = sa.Table(
    "friends",
    Base.metadata,
    sa.Column("left_id", sa.ForeignKey("posts.id"), primary_key=True),
    sa.Column("right_id", sa.ForeignKey("posts.id"), primary_key=True),
)
untracked_links = sa.Table(
    "post_labels",
    Base.metadata,
    sa.Column("post_id", sa.ForeignKey("posts.id"), primary_key=True),
    sa.Column("label_id", sa.ForeignKey("labels.id"), primary_key=True),
)


@track_table()
class Post(Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    plain: Mapped[list["Tag"]] = relationship(secondary=plain, back_populates="posts")
    no_key: Mapped[list["Tag"]] = relationship(secondary=no_key)
    surrogate: Mapped[list["Tag"]] = relationship(secondary=surrogate)
    extra: Mapped[list["Tag"]] = relationship(secondary=extra)
    cascading: Mapped[list["Tag"]] = relationship(secondary=cascading, passive_deletes=True)
    written: WriteOnlyMapped["Tag"] = relationship(secondary=written, passive_deletes=True)
    dynamic: DynamicMapped["Tag"] = relationship(secondary=dynamic)
    friends: Mapped[list["Post"]] = relationship(
        secondary=friends,
        primaryjoin=lambda: Post.id == friends.c.left_id,
        secondaryjoin=lambda: Post.id == friends.c.right_id,
    )
    labels: Mapped[list["Label"]] = relationship(secondary=untracked_links)
    memberships: Mapped[list["Membership"]] = relationship(cascade="all, delete-orphan", back_populates="post")
    members: Mapped[list["Tag"]] = relationship(secondary="memberships", overlaps="memberships,post,tag")


@track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    posts: Mapped[list[Post]] = relationship(secondary=plain, back_populates="plain")


class Label(Base):
    __tablename__ = "labels"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@track_table()
class Membership(Base):
    """A link that is an object, too."""

    __tablename__ = "memberships"

    post_id: Mapped[int] = mapped_column(sa.ForeignKey("posts.id"), primary_key=True)
    tag_id: Mapped[int] = mapped_column(sa.ForeignKey("tags.id"), primary_key=True)
    role: Mapped[str | None] = mapped_column(sa.String(50))
    post: Mapped[Post] = relationship(back_populates="memberships", overlaps="members")
    tag: Mapped[Tag] = relationship(overlaps="members")


shelf_signs = sa.Table(
    "shelf_signs",
    Base.metadata,
    sa.Column("shelf_id", sa.Integer, primary_key=True),
    sa.Column("sign_id", sa.Integer, primary_key=True),
)


@track_table()
class Sign(Base):
    __tablename__ = "signs"

    id: Mapped[int] = mapped_column(primary_key=True)


@track_table()
class Shelf(Base):
    """Its links are held by no foreign key that the database, or sqlaudit, could follow."""

    __tablename__ = "shelves"

    id: Mapped[int] = mapped_column(primary_key=True)
    signs: Mapped[list[Sign]] = relationship(
        secondary=shelf_signs,
        primaryjoin=lambda: Shelf.id == foreign(shelf_signs.c.shelf_id),
        secondaryjoin=lambda: Sign.id == foreign(shelf_signs.c.sign_id),
        passive_updates=False,
    )


LINKS = {"plain": plain, "no_key": no_key, "surrogate": surrogate, "extra": extra, "cascading": cascading}
KINDS = pytest.mark.parametrize("kind", LINKS)
PAIR = ("post_id", "tag_id")


@pytest.fixture
def sessions(engine: sa.Engine) -> Iterator[Sessions]:
    with recording(engine) as maker:

        @sa.event.listens_for(maker, "loaded_as_persistent")
        def keep(session: Session, obj: object) -> None:  # a session alone holds its objects weakly
            session.info.setdefault("kept", []).append(obj)

        with maker.begin() as session:
            session.add_all([Post(id=1), Post(id=2), Tag(id=1), Tag(id=2), Tag(id=3)])
        yield maker


def links_of(session: Session, kind: str) -> Any:
    return getattr(session.get_one(Post, 1), kind)


def check(
    sessions: Sessions, table: sa.Table, expected: list[tuple[Any, ...]], *fields: str, older: bool = False
) -> None:
    with sessions() as session:
        check_history(session, table, all_recorded=not older)
        check_history(session, Post)
        check_history(session, Tag)
        assert told(session, table, *(fields or PAIR)) == expected


def link(session: Session, kind: str, *tags: int) -> None:
    links_of(session, kind).extend([session.get_one(Tag, tag) for tag in tags])


@pytest.mark.spread
@KINDS
def test_links_are_recorded_when_made_and_removed(sessions: Sessions, kind: str) -> None:
    with AuditContextManager(user_id="ann"), sessions.begin() as session:
        link(session, kind, 1, 2)
    with AuditContextManager(user_id="bob"), sessions.begin() as session:
        links_of(session, kind).remove(session.get_one(Tag, 1))
    check(
        sessions,
        LINKS[kind],
        [("insert", 1, 1, "ann"), ("delete", 1, 1, "bob"), ("insert", 1, 2, "ann")],
        *PAIR,
        "audit_changed_by",
    )


@pytest.mark.spread
@KINDS
def test_links_of_a_new_parent_are_recorded(sessions: Sessions, kind: str) -> None:
    with sessions.begin() as session:
        session.add(Post(id=3, **{kind: [Tag(id=4), session.get_one(Tag, 1)]}))
    check(
        sessions,
        LINKS[kind],
        sorted([("insert", 3, 4), ("insert", 3, 1)], key=lambda each: kind == "surrogate" or each),
    )


@pytest.mark.spread
@KINDS
def test_links_go_with_their_parent(sessions: Sessions, kind: str) -> None:
    with sessions.begin() as session:
        link(session, kind, 1, 2)
    with sessions.begin() as session:
        session.delete(session.get_one(Post, 1))
    check(sessions, LINKS[kind], [("insert", 1, 1), ("delete", 1, 1), ("insert", 1, 2), ("delete", 1, 2)])


@pytest.mark.spread
@KINDS
def test_links_that_are_replaced_are_recorded(sessions: Sessions, kind: str) -> None:
    with sessions.begin() as session:
        link(session, kind, 1, 2)
    with sessions.begin() as session:
        setattr(session.get_one(Post, 1), kind, [session.get_one(Tag, 2), session.get_one(Tag, 3)])
    with sessions() as session:
        check_history(session, LINKS[kind])
        assert sorted(told(session, LINKS[kind], *PAIR)) == [
            ("delete", 1, 1),
            ("insert", 1, 1),
            ("insert", 1, 2),
            ("insert", 1, 3),
        ]


@pytest.mark.parametrize("kind", [kind for kind in LINKS if kind != "surrogate"])
def test_a_link_that_is_removed_and_made_again_in_one_transaction_leaves_no_trace(
    sessions: Sessions, kind: str
) -> None:
    with sessions.begin() as session:
        link(session, kind, 1, 2)
    with sessions.begin() as session:
        tags = links_of(session, kind)
        tag = session.get_one(Tag, 1)
        tags.remove(tag)
        session.flush()
        tags.append(tag)
    check(sessions, LINKS[kind], [("insert", 1, 1), ("insert", 1, 2)])


@pytest.mark.spread
@KINDS
def test_a_link_that_is_made_and_removed_in_one_transaction_leaves_no_trace(sessions: Sessions, kind: str) -> None:
    with sessions.begin() as session:
        link(session, kind, 1)
        session.flush()
        links_of(session, kind).clear()
    check(sessions, LINKS[kind], [])


@pytest.mark.spread
@KINDS
def test_a_link_that_returns_later_goes_on_counting(sessions: Sessions, kind: str) -> None:
    for _ in range(2):
        with sessions.begin() as session:
            link(session, kind, 1)
        with sessions.begin() as session:
            links_of(session, kind).clear()
    with sessions() as session:
        check_history(session, LINKS[kind])
        assert [each for each, *_ in told(session, LINKS[kind], *PAIR)] == ["insert", "delete"] * 2


@pytest.mark.spread
@KINDS
def test_links_in_a_rolled_back_savepoint_leave_no_trace(sessions: Sessions, kind: str) -> None:
    with sessions.begin() as session:
        link(session, kind, 1)
    with sessions.begin() as session:
        savepoint = session.begin_nested()
        links_of(session, kind).clear()
        link(session, kind, 2)
        session.flush()
        savepoint.rollback()
        link(session, kind, 3)
    check(sessions, LINKS[kind], [("insert", 1, 1), ("insert", 1, 3)])


def test_links_are_recorded_from_the_other_side(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.get_one(Tag, 1).posts.append(session.get_one(Post, 1))
    with sessions.begin() as session:
        session.get_one(Tag, 1).posts.append(session.get_one(Post, 2))
        session.get_one(Tag, 1).posts.remove(session.get_one(Post, 1))
    with sessions.begin() as session:
        session.delete(session.get_one(Tag, 1))
    check(sessions, plain, [("insert", 1, 1), ("delete", 1, 1), ("insert", 2, 1), ("delete", 2, 1)])


def test_a_link_that_both_sides_made_is_recorded_once(sessions: Sessions) -> None:
    with sessions.begin() as session:
        post, tag = session.get_one(Post, 1), session.get_one(Tag, 1)
        post.plain.append(tag)
        assert tag.posts == [post]
        session.flush()
        tag.posts.remove(post)
        post.plain.append(tag)
    check(sessions, plain, [("insert", 1, 1)])


def test_both_parents_may_go_in_one_flush(sessions: Sessions) -> None:
    with sessions.begin() as session:
        link(session, "plain", 1, 2)
    with sessions.begin() as session:
        session.delete(session.get_one(Post, 1))
        session.delete(session.get_one(Tag, 1))
    check(sessions, plain, [("insert", 1, 1), ("delete", 1, 1), ("insert", 1, 2), ("delete", 1, 2)])


def test_columns_that_the_database_fills_are_in_the_links_history(sessions: Sessions) -> None:
    with sessions.begin() as session:
        link(session, "extra", 1)
    check(sessions, extra, [("insert", 1, 1, 3)], *PAIR, "weight")


def test_a_statement_that_writes_links_needs_the_required_user(sessions: Sessions) -> None:
    set_config(SQLAuditConfig(require_user=True))
    making = sa.insert(plain).values(post_id=1, tag_id=1)
    with sessions.begin() as session:
        for execute in (session.execute, session.connection().execute):
            with pytest.raises(ContextError, match="'post_tags' is to be written without a user"):
                execute(making)
        with AuditContextManager(user_id="ana"):
            session.execute(making)
    with sessions() as session:
        assert session.scalars(sa.select(Base.metadata.tables["post_tags_history"].c.audit_changed_by)).all() == ["ana"]


def test_links_of_write_only_collections_are_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        post = session.get_one(Post, 1)
        post.written.add_all([session.get_one(Tag, 1), session.get_one(Tag, 2)])
    with sessions.begin() as session:
        session.get_one(Post, 1).written.remove(session.get_one(Tag, 1))
    check(sessions, written, [("insert", 1, 1), ("delete", 1, 1), ("insert", 1, 2)])


def test_links_of_dynamic_collections_are_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        post = session.get_one(Post, 1)
        post.dynamic.append(session.get_one(Tag, 1))
        post.dynamic.append(session.get_one(Tag, 2))
    with sessions.begin() as session:
        session.get_one(Post, 1).dynamic.remove(session.get_one(Tag, 1))
    with sessions.begin() as session:
        session.delete(session.get_one(Post, 1))
    check(sessions, dynamic, [("insert", 1, 1), ("delete", 1, 1), ("insert", 1, 2), ("delete", 1, 2)])


def test_links_of_a_table_with_itself_are_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        one, two = session.get_one(Post, 1), session.get_one(Post, 2)
        one.friends.extend([one, two])
        two.friends.append(one)
    with sessions.begin() as session:
        session.get_one(Post, 1).friends.remove(session.get_one(Post, 2))
    check(
        sessions,
        friends,
        [("insert", 1, 1), ("insert", 1, 2), ("delete", 1, 2), ("insert", 2, 1)],
        "left_id",
        "right_id",
    )


def test_an_association_object_that_serves_as_secondary_is_recorded_either_way(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Membership(post_id=1, tag_id=1, role="owner"))
        link(session, "members", 2)
    with sessions.begin() as session:
        session.get_one(Membership, (1, 2)).role = "guest"
    with sessions.begin() as session:
        links_of(session, "members").remove(session.get_one(Tag, 2))
        session.delete(session.get_one(Membership, (1, 1)))
    with sessions() as session:
        check_history(session, Membership)
        assert told(session, Membership, "tag_id", "role") == [
            ("insert", 1, "owner"),
            ("delete", 1, "owner"),
            ("insert", 2, None),
            ("update", 2, "guest"),
            ("delete", 2, "guest"),
        ]


def test_links_with_untracked_tables_are_not_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.get_one(Post, 1).labels.append(Label(id=1))
    assert "post_labels_history" not in Base.metadata.tables


def _remove(session: Session, kind: str) -> None:
    links_of(session, kind).remove(session.get_one(Tag, 1))


def _delete_parent(session: Session, kind: str) -> None:
    session.delete(session.get_one(Post, 1))


@pytest.mark.spread
@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("end", [_remove, _delete_parent])
def test_a_link_older_than_its_tracking_keeps_what_was_before(
    engine: sa.Engine, sessions: Sessions, kind: str, end: Callable[[Session, str], None]
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(LINKS[kind]).values(post_id=1, tag_id=1))
    with sessions.begin() as session:
        end(session, kind)
    check(sessions, LINKS[kind], [("baseline", 1, 1), ("delete", 1, 1)])


@pytest.mark.spread
@KINDS
def test_links_that_stay_are_not_looked_at(engine: sa.Engine, sessions: Sessions, kind: str) -> None:
    with sessions.begin() as session:
        session.get_one(Post, 1)
        session.add_all([Tag(id=number) for number in range(100, 140)])
        session.flush()
        link(session, kind, *range(100, 140))
    with sessions() as session:
        tags = links_of(session, kind)
        tags.append(session.get_one(Tag, 1))
        seen: list[str] = []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        session.flush()
        sa.event.remove(engine, "before_cursor_execute", note)
        session.commit()
    assert len([statement for statement in seen if "history" in statement]) <= 12
    with sessions() as session:
        check_history(session, LINKS[kind])
        assert len(told(session, LINKS[kind])) == 41


def test_a_change_of_the_parents_key_moves_its_links(sessions: Sessions) -> None:
    with sessions.begin() as session:
        link(session, "no_key", 1)
    with sessions.begin() as session:
        links_of(session, "no_key").clear()
        session.flush()
        session.get_one(Post, 1).id = 9
        session.flush()
        session.get_one(Post, 9).no_key.append(session.get_one(Tag, 1))
    check(sessions, no_key, [("insert", 1, 1), ("delete", 1, 1), ("insert", 9, 1)])


def test_links_without_foreign_keys_follow_the_key_of_their_owner(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Shelf(id=1, signs=[Sign(id=1), Sign(id=2)]))
    with sessions.begin() as session:
        session.get_one(Shelf, 1).id = 5
    with sessions() as session:
        check_history(session, shelf_signs)
        assert told(session, shelf_signs, "shelf_id", "sign_id") == [
            ("insert", 1, 1),
            ("delete", 1, 1),
            ("insert", 1, 2),
            ("delete", 1, 2),
            ("insert", 5, 1),
            ("insert", 5, 2),
        ]


@pytest.mark.parametrize("older", [False, True])
def test_a_link_to_a_row_that_the_same_flush_deletes_leaves_no_trace(
    engine: sa.Engine, sessions: Sessions, older: bool
) -> None:
    if older:
        with engine.begin() as connection:
            connection.execute(sa.insert(cascading).values(post_id=1, tag_id=1))
    with sessions.begin() as session:
        tag = session.get_one(Tag, 1)
        session.get_one(Post, 2).cascading.append(tag)
        session.delete(tag)
    check(sessions, cascading, [("baseline", 1, 1), ("delete", 1, 1)] if older else [])


class Code(sa.TypeDecorator[str]):
    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else f"c{value}"

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.removeprefix("c")


KEYS: dict[str, tuple[Any, list[Any]]] = {
    "integer": (sa.Integer, [*range(1, 9)]),
    "string": (sa.String(20), list("abcdefgh")),
    "uuid": (sa.Uuid, [uuid.UUID(int=number) for number in range(1, 9)]),
    "date": (sa.Date, [date(2024, 1, number) for number in range(1, 9)]),
    "decorated": (Code, list("abcdefgh")),
}


@pytest.mark.parametrize("has_third", [False, True], ids=["pair", "three"])
@pytest.mark.parametrize("kind", KEYS)
def test_links_whose_key_the_unit_of_work_changes_are_recorded(
    base: Any, engine: sa.Engine, kind: str, has_third: bool
) -> None:
    type_, values = KEYS[kind]
    third = [sa.Column("kind", sa.Integer, primary_key=True, default=1, autoincrement=False)] if has_third else []
    moving = sa.Table(
        "moving",
        base.metadata,
        sa.Column("owner_id", type_, primary_key=True, autoincrement=False),
        sa.Column("thing_id", type_, primary_key=True, autoincrement=False),
        *third,
    )

    @track_table()
    class Thing(base):
        __tablename__ = "moved_things"
        id: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)

    @track_table()
    class Owner(base):
        __tablename__ = "moved_owners"
        id: Mapped[Any] = mapped_column(type_, primary_key=True, autoincrement=False)
        things: Mapped[list[Thing]] = relationship(
            secondary=moving,
            primaryjoin=lambda: Owner.id == foreign(moving.c.owner_id),
            secondaryjoin=lambda: Thing.id == foreign(moving.c.thing_id),
            passive_updates=False,
        )

    set_config(SQLAuditConfig(strict=True))
    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            things = [Thing(id=value) for value in values[:3]]
            session.add_all([Owner(id=values[0], things=things), Owner(id=values[1], things=things[:2])])
        for new in ((values[4], values[5]), (values[5], values[6]), (values[6], values[4])):  # also to keys of others
            with sessions.begin() as session:
                owners = session.scalars(sa.select(Owner).order_by(Owner.id)).all()
                for owner, key in zip(reversed(owners), reversed(new), strict=True):
                    owner.id = key
                    session.flush()
            with sessions() as session:
                check_history(session, moving)
        with sessions.begin() as session:
            one, two = session.scalars(sa.select(Owner).order_by(Owner.id)).all()
            one.id, two.id = values[2], values[3]
        with sessions() as session:
            check_history(session, moving)
            left = session.execute(sa.select(moving.c.owner_id, moving.c.thing_id)).all()
            assert len(left) == 5
            assert {owner for owner, _ in left} == {values[2], values[3]}


class Single(DeclarativeBase):
    pass


singles = sa.Table(
    "singles",
    Single.metadata,
    sa.Column("book_id", sa.ForeignKey("books.id"), primary_key=True),
    sa.Column("cover_id", sa.ForeignKey("covers.id"), primary_key=True),
)


@track_table()
class Book(Single):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    cover: Mapped["Cover | None"] = relationship(secondary=singles, back_populates="books")


@track_table()
class Cover(Single):
    __tablename__ = "covers"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    books: Mapped[list[Book]] = relationship(secondary=singles, back_populates="cover")


@pytest.mark.spread
@pytest.mark.parametrize("state", ["loaded", "expired", "never loaded", "of the other side"])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("to", ["none", "another", "a new one", "nothing"])
def test_a_single_link_is_recorded_whether_the_old_one_was_loaded_or_not(
    engine: sa.Engine, to: str, state: str, older: bool
) -> None:
    with recording(engine, Single.metadata) as sessions:
        with sessions.begin() as session, tracking_disabled(session) if older else nullcontext():
            session.add_all([Book(id=1, cover=Cover(id=1)), Cover(id=2)])
        with sessions.begin() as session:
            book, old, other = session.get_one(Book, 1), session.get_one(Cover, 1), session.get_one(Cover, 2)
            if state == "loaded":
                assert book.cover is old
            elif state == "expired":
                session.expire(book)
            if state == "of the other side" and to in ("another", "none"):
                old.books.remove(book)
                if to == "another":
                    other.books.append(book)
            elif to == "nothing":
                del book.cover
            else:
                book.cover = {"none": None, "another": other, "a new one": Cover(id=3)}[to]
        with sessions() as session:
            check_history(session, singles, all_recorded=not older)
            before = ("baseline" if older else "insert", 1)
            after = {"another": [("insert", 2)], "a new one": [("insert", 3)]}.get(to, [])
            assert told(session, singles, "cover_id") == [before, ("delete", 1), *after]
