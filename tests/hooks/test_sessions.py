"""Is every kind of session recorded? Binds, shards, connections, two phases, scopes, async, merge and bulk."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, scoped_session, sessionmaker

from clock import at
from databases import SQLite
from differences import check_pages
from invariants import check_history, told
from registering import recording
from sqlaudit import (
    AuditContextManager,
    QueryError,
    blame,
    compare_page,
    get_resource_changes,
    history_of,
    register_hooks,
    track_table,
    tracking_disabled,
    unregister_hooks,
    versions_of,
)

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    pass


@track_table()
class Author(Base):
    __tablename__ = "authors"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50), unique=True)
    rank: Mapped[int] = mapped_column(server_default=sa.text("5"))
    books: Mapped[list["Book"]] = relationship(back_populates="author", cascade="all, delete-orphan")


@track_table()
class Book(Base):
    __tablename__ = "books"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None] = mapped_column(sa.String(50))
    author_id: Mapped[int | None] = mapped_column(sa.ForeignKey("authors.id"))
    author: Mapped[Author | None] = relationship(back_populates="books")


class Alone(DeclarativeBase):
    pass


@track_table()
class Elsewhere(Alone):
    __tablename__ = "elsewhere"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))


@track_table()
class Piece(Alone):
    __tablename__ = "pieces"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shard: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str | None] = mapped_column(sa.String(50))


@pytest.fixture
def other_engine(tmp_path: Any) -> Iterator[sa.Engine]:
    """A second database."""
    database = SQLite(tmp_path / "second")
    engine = database.create_engine()
    Alone.metadata.create_all(engine)
    yield engine
    engine.dispose()


def check(session: Session) -> None:
    for model in (Author, Book):
        check_history(session, model)


# --- several databases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_base", [False, True])
def test_each_bind_keeps_the_history_of_its_models(engine: sa.Engine, other_engine: sa.Engine, by_base: bool) -> None:
    binds: Any = {Base: engine, Alone: other_engine} if by_base else {Author: engine, Elsewhere: other_engine}
    with recording(engine) as maker, maker(bind=None, binds=binds) as session:
        session.add_all([Author(id=1, name="a"), Elsewhere(id=1, name="a")])
        session.commit()
        session.get_one(Author, 1).name = session.get_one(Elsewhere, 1).name = "b"
        session.commit()
        session.delete(session.get_one(Elsewhere, 1))
        session.commit()
    found: dict[Any, list[Any]] = {}
    for model, bind, expected in (
        (Author, engine, [("insert", "a"), ("update", "b")]),
        (Elsewhere, other_engine, [("insert", "a"), ("update", "b"), ("delete", "b")]),
    ):
        with Session(bind) as session:
            check_history(session, model)
            assert told(session, model, "name") == expected
            found[model] = told(session, model, "audit_changeset_id", "valid_from")
    assert found[Author] == found[Elsewhere][:2]  # one transaction of the session, in two databases


def test_histories_are_read_from_the_binds_of_their_models(
    clock: Any, engine: sa.Engine, other_engine: sa.Engine
) -> None:
    binds: Any = {Base: engine, Alone: other_engine}
    with recording(engine) as maker, maker(bind=None, binds=binds) as session:
        session.add_all([Author(id=1, name="a"), Elsewhere(id=1, name="a")])
        session.commit()
        for model in (Author, Elsewhere):
            assert len(versions_of(session, model, 1)) == 1
            assert "name" in blame(session, model, 1)
            assert any(change.field_name == "name" for change in get_resource_changes(model, session))
            (version,) = session.scalars(sa.select(history_of(model)))
            assert session.get(history_of(model), (1, 1)) is version
            session.refresh(version)
            session.expire(version)
            assert version.name == "a"
            assert session.scalar(sa.select(sa.func.count()).select_from(history_of(model))) == 1
        rows = check_pages(session, [Elsewhere, Author], at(-1), at(0))
        assert [(row.resource_type, row.resource_id) for row in rows] == [("Elsewhere", 1), ("Author", 1)]


def test_each_shard_keeps_the_history_of_its_rows(engine: sa.Engine, other_engine: sa.Engine) -> None:
    Alone.metadata.create_all(engine)

    def by_instance(mapper: Any, instance: Any, clause: Any = None) -> str:
        return str(instance.shard)

    maker = sessionmaker(
        class_=ShardedSession,
        shards={"one": engine, "two": other_engine},
        shard_chooser=by_instance,
        identity_chooser=lambda *args, **kw: ["one", "two"],
        execute_chooser=lambda context: ["one", "two"],
    )
    register_hooks(maker)
    with maker() as session:
        session.add_all([Piece(id=number, shard=shard, name="a") for number in (1, 2) for shard in ("one", "two")])
        session.commit()
        for piece in session.scalars(sa.select(Piece)).all():
            piece.name = f"b {piece.shard}"
        session.commit()
        for piece in session.scalars(sa.select(Piece).where(Piece.id == 2)).all():
            session.delete(piece)
        session.commit()
        session.execute(sa.update(Piece).values(name="c"))
        session.commit()
        with pytest.raises(QueryError, match="session of one shard"):
            compare_page(session, Piece, at(-1), at(1))
    unregister_hooks(maker)
    for shard, bind in (("one", engine), ("two", other_engine)):
        with Session(bind) as session:
            check_history(session, Piece)
            assert told(session, Piece, "id", "name") == [
                ("insert", 1, "a"),
                ("update", 1, f"b {shard}"),
                ("update", 1, "c"),
                ("insert", 2, "a"),
                ("update", 2, f"b {shard}"),
                ("delete", 2, f"b {shard}"),
            ]


# --- connections ------------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "rollback_only"])
@pytest.mark.parametrize("keep", [True, False])
def test_sessions_on_a_connection_share_its_transaction(
    engine: sa.Engine, sessions: Sessions, mode: Any, keep: bool
) -> None:
    with engine.connect() as connection:
        transaction = connection.begin()
        for name in ("a", "b"):
            with AuditContextManager(user_id=name), sessions(bind=connection, join_transaction_mode=mode) as session:
                session.merge(Author(id=1, name=name))
                session.commit()
        with sessions(bind=connection, join_transaction_mode=mode) as session:
            session.add(Author(id=2, name="c"))
            session.commit()
        if keep:
            transaction.commit()
        else:
            transaction.rollback()
    with sessions() as session:
        check(session)
        assert told(session, Author, "id", "name") == (
            [("insert", 1, "a"), ("update", 1, "b"), ("insert", 2, "c")] if keep else []
        )
        assert len(set(session.scalars(sa.select(history_of(Author).audit_changeset_id)))) == keep


def test_transactions_of_one_connection_are_changesets_of_their_own(engine: sa.Engine, sessions: Sessions) -> None:
    with engine.connect() as connection:
        for name in ("a", "b"):
            with connection.begin(), sessions(bind=connection) as session:
                session.merge(Author(id=1, name=name))
                session.commit()
    with sessions() as session:
        check(session)
        assert len(set(session.scalars(sa.select(history_of(Author).audit_changeset_id)))) == 2


def test_a_session_in_a_rolled_back_savepoint_of_its_connection_leaves_nothing(
    engine: sa.Engine, sessions: Sessions
) -> None:
    with engine.begin() as connection:
        savepoint = connection.begin_nested()
        with sessions(bind=connection) as session:
            session.add(Author(id=1, name="undone"))
            session.commit()
        savepoint.rollback()
        with sessions(bind=connection) as session:
            session.add(Author(id=1, name="kept"))
            session.commit()
    with sessions() as session:
        check(session)
        assert told(session, Author, "name") == [("insert", "kept")]


def test_a_reused_pooled_connection_starts_a_new_changeset(sessions: Sessions, engine: sa.Engine) -> None:
    for name in ("a", "b", "c"):
        with sessions.begin() as session:
            session.merge(Author(id=1, name=name))
    with sessions() as session:
        check(session)
        assert len(set(session.scalars(sa.select(history_of(Author).audit_changeset_id)))) == 3


def test_a_session_in_autocommit_mode_is_recorded(engine: sa.Engine, sessions: Sessions) -> None:
    with sessions(bind=engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add(Author(id=1, name="a"))
        session.commit()
        session.get_one(Author, 1).name = "b"
        session.commit()
    with sessions() as session:
        check(session)
        assert told(session, Author, "name") == [("insert", "a"), ("update", "b")]


@pytest.mark.parametrize("spec", [None, sa.Connection])
def test_a_mock_of_a_connection_is_called_as_without_hooks(spec: Any) -> None:
    statement = sa.text("SELECT 1")

    def calls(maker: Sessions) -> list[Any]:
        connection = Mock(spec, engine=object())
        connection.in_transaction.return_value = False
        bind = Mock(connect=Mock(return_value=connection))
        with maker(bind=bind) as session:
            assert session.connection() is connection
            session.execute(statement)
            session.commit()
        return connection.mock_calls

    with recording(Mock()) as maker:
        assert calls(maker) == calls(sessionmaker()) != []


@pytest.mark.requires("two_phase")
def test_two_phase_commits_are_recorded(sessions: Sessions) -> None:
    with sessions(twophase=True) as session:
        session.add(Author(id=1, name="a"))
        session.commit()
        session.get_one(Author, 1).name = "b"
        session.prepare()
        session.commit()
    with sessions() as session:
        check(session)
        assert told(session, Author, "name") == [("insert", "a"), ("update", "b")]


# --- kinds of sessions ------------------------------------------------------------------------------------------


def test_a_scoped_session_is_recorded(engine: sa.Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    register_hooks(scoped)
    scoped.add(Author(id=1, name="a"))
    scoped.commit()
    with tracking_disabled(scoped):
        scoped.get_one(Author, 1).name = "silent"
    scoped.get_one(Author, 1).name = "b"
    scoped.commit()
    assert get_resource_changes(Author, scoped)  # type: ignore[arg-type]  # stands for a session
    assert told(scoped(), Author, "name") == [("insert", "a"), ("update", "b")]
    scoped.remove()
    unregister_hooks(scoped)


async def _work(session: AsyncSession) -> None:
    author = Author(name="a", books=[Book(title="one"), Book(title="two")])
    session.add(author)
    await session.commit()
    await session.refresh(author, ["books"])
    author.name = "b"
    author.books.pop()
    async with session.begin_nested():
        author.books[0].title = "three"
    await session.commit()
    await session.refresh(author, ["books"])
    await session.delete(author)
    await session.commit()

    def verify(sync: Session) -> None:
        check(sync)
        assert told(sync, Author, "name") == [("insert", "a"), ("update", "b"), ("delete", "b")]
        assert told(sync, Book, "title") == [
            ("insert", "one"),
            ("update", "three"),
            ("delete", "three"),
            ("insert", "two"),
            ("delete", "two"),
        ]

    await session.run_sync(verify)


@pytest.mark.parametrize("kind", ["sessionmaker", "scoped"])
def test_an_async_session_is_recorded(async_engine: AsyncEngine, kind: str) -> None:
    async def run() -> None:
        maker = async_sessionmaker(async_engine, expire_on_commit=False)
        target: Any = maker if kind == "sessionmaker" else async_scoped_session(maker, asyncio.current_task)
        register_hooks(target)
        try:
            async with target() as session:
                await _work(session)
        finally:
            unregister_hooks(target)

    asyncio.run(run())


def test_concurrent_tasks_keep_their_contexts(async_engine: AsyncEngine, database: Any) -> None:
    async def run() -> None:
        maker = async_sessionmaker(async_engine)
        register_hooks(maker)

        async def request(number: int) -> None:
            with AuditContextManager(user_id=f"user {number}"):
                async with maker() as session:
                    session.add(Author(name=f"user {number}"))
                    await asyncio.sleep(0)
                    await session.commit()

        try:
            if "concurrent_writes" not in database.capabilities:
                for number in range(4):
                    await request(number)
            else:
                await asyncio.gather(*(request(number) for number in range(4)))
            async with maker() as session:
                versions = (await session.scalars(sa.select(history_of(Author)))).all()
                assert len(versions) == 4
                assert all(each.audit_changed_by == each.name for each in versions)
        finally:
            unregister_hooks(maker)

    asyncio.run(run())


# --- merge and bulk ---------------------------------------------------------------------------------------------


def test_a_savepoint_that_a_listener_rolls_back_does_not_end_the_recording(sessions: Sessions) -> None:
    def add_another(session: Session, *args: Any) -> None:
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            raise ZeroDivisionError  # which takes back all that is pending, too
        session.add(Author(id=1, name="a"))

    with sessions() as session:
        sa.event.listen(session, "before_flush", add_another)
        session.add(Author(id=2, name="b"))
        session.commit()
        check(session)
        assert told(session, Author, "name") == [("insert", "a")]


def test_merge_is_recorded_as_what_it_does(sessions: Sessions) -> None:
    for name in ("a", "a", "b"):
        with sessions.begin() as session:
            session.merge(Author(id=1, name=name, books=[Book(id=1, title=name)]))
    with sessions() as session:
        check(session)
        assert told(session, Author, "name") == [("insert", "a"), ("update", "b")]
        assert told(session, Book, "title") == [("insert", "a"), ("update", "b")]


def test_merge_without_loading_is_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Author(id=1, name="a"))
    with sessions() as session:
        cached = session.get_one(Author, 1)
    with sessions.begin() as session:
        session.merge(cached, load=False).name = "b"
    with sessions() as session:
        check(session)
        assert told(session, Author, "name") == [("insert", "a"), ("update", "b")]


def test_an_object_that_moves_to_another_session_is_recorded_there(sessions: Sessions) -> None:
    with sessions(expire_on_commit=False) as session:
        author = Author(id=1, name="a")
        session.add(author)
        session.commit()
    author.name = "b"
    with sessions.begin() as session:
        session.add(author)
    with sessions() as session:
        check(session)
        assert told(session, Author, "name") == [("insert", "a"), ("update", "b")]


@pytest.mark.spread
@pytest.mark.parametrize("return_defaults", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_bulk_saved_objects_are_recorded(sessions: Sessions, return_defaults: bool, rows: int) -> None:
    with AuditContextManager(user_id="ann"), sessions.begin() as session:
        session.bulk_save_objects([Author(name=f"a{n}") for n in range(rows)], return_defaults=return_defaults)
    with sessions() as session:
        authors = session.scalars(sa.select(Author).order_by(Author.id)).all()
        session.expunge_all()
        for author in authors:
            author.name += "b"  # type: ignore[operator]
        session.bulk_save_objects([*authors, Author(name="new")], return_defaults=return_defaults)
        session.commit()
        check(session)
        assert sorted(told(session, Author, "name", "rank", "audit_changed_by"), key=lambda each: each[1]) == [
            version
            for number in range(rows)
            for version in [("insert", f"a{number}", 5, "ann"), ("update", f"a{number}b", 5, None)]
        ] + [("insert", "new", 5, None)]


def test_bulk_saved_objects_without_changes_make_no_version(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Author(id=1, name="a"))
    with sessions() as session:
        author = session.get_one(Author, 1)
        session.bulk_save_objects([author])
        author.name = "a"
        session.bulk_save_objects([author])
        session.commit()
        check(session)
        assert told(session, Author, "name") == [("insert", "a")]


def test_a_bulk_save_takes_part_in_the_transaction(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Author(id=1, name="a"))
        session.flush()
        session.bulk_save_objects([Author(id=2, name="b")])
        session.get_one(Author, 2).name = "c"
    with sessions() as session:
        check(session)
        assert told(session, Author, "id", "name") == [("insert", 1, "a"), ("insert", 2, "c")]
        assert len(set(session.scalars(sa.select(history_of(Author).audit_changeset_id)))) == 1


@pytest.mark.parametrize("where", ["transaction", "savepoint"])
def test_a_failed_bulk_save_leaves_nothing(sessions: Sessions, where: str) -> None:
    with sessions() as session:
        session.add(Author(id=1, name="a"))
        session.commit()
        if where == "savepoint":
            session.add(Author(id=7, name="first"))
            session.flush()
            session.begin_nested()
        with pytest.raises(sa.exc.IntegrityError):
            session.bulk_save_objects([Author(name="b"), Author(name="a")])
        session.rollback()
        session.add(Author(id=9, name="after"))
        session.commit()
        check(session)
        names = [name for _, name in told(session, Author, "name")]
        assert names in (["a", "after"], ["a", "first", "after"])


@pytest.mark.parametrize("size", [0, 2])
def test_bulk_saves_of_several_models_are_recorded(sessions: Sessions, size: int) -> None:
    with sessions.begin() as session:
        session.bulk_save_objects([each(id=n) for each in (Author, Book) for n in range(1, size + 1)])
    with sessions() as session:
        check(session)
        assert len(told(session, Book)) == size


def test_an_older_row_that_is_bulk_saved_gets_a_baseline(engine: sa.Engine, sessions: Sessions) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(Author.__table__).values(id=1, name="a"))
    with sessions() as session:
        author = session.get_one(Author, 1)
        author.name = "b"
        session.expunge(author)
        session.bulk_save_objects([author])
        session.commit()
        check(session)
        assert told(session, Author, "name") == [("baseline", "a"), ("update", "b")]


# --- pausing ----------------------------------------------------------------------------------------------------


def test_what_is_written_while_tracking_is_disabled_is_left_out(sessions: Sessions) -> None:
    with sessions() as session:
        author = Author(id=1, name="a")
        session.add(author)
        with tracking_disabled(session):  # what was pending is recorded
            author.name = "silent"
            with tracking_disabled(session):
                session.add(Author(id=2, name="silent too"))
            session.add(Author(id=3, name="silent still"))
        author.name = "b"
        session.commit()
        assert told(session, Author, "id", "name") == [("insert", 1, "b")]


@pytest.mark.parametrize("fail", [ZeroDivisionError, KeyboardInterrupt])
def test_tracking_is_on_again_after_an_exception(sessions: Sessions, fail: type[BaseException]) -> None:
    def work(session: Session) -> None:
        with tracking_disabled(session), tracking_disabled(session):
            session.add(Author(id=1, name="silent"))
            session.flush()
            raise fail

    with sessions() as session:
        with pytest.raises(fail):
            work(session)
        session.rollback()
        session.add(Author(id=2, name="a"))
        session.commit()
        check(session)
        assert told(session, Author, "name") == [("insert", "a")]


@pytest.mark.spread
@pytest.mark.parametrize("end", [Session.rollback, Session.commit, Session.close], ids=["rollback", "commit", "close"])
def test_tracking_is_on_again_after_the_transaction_ended_inside(
    sessions: Sessions, end: Callable[[Session], None]
) -> None:
    with sessions() as session:
        with tracking_disabled(session):
            session.add(Author(id=1, name="silent"))
            session.flush()
            end(session)
        session.add(Author(id=2, name="a"))
        session.commit()
        assert told(session, Author, "name") == [("insert", "a")]


def test_tracking_is_on_again_after_the_flush_at_the_end_failed(sessions: Sessions) -> None:
    def work(session: Session) -> None:
        with tracking_disabled(session):
            session.add_all([Author(id=2, name="a"), Author(id=3, name="a")])

    with sessions() as session:
        with pytest.raises(sa.exc.IntegrityError):
            work(session)
        session.rollback()
        session.add(Author(id=2, name="a"))
        session.commit()
        check(session)
        assert told(session, Author, "name") == [("insert", "a")]


def test_bulk_writes_while_tracking_is_disabled_are_left_out(sessions: Sessions) -> None:
    with sessions() as session:
        with tracking_disabled(session):
            session.bulk_save_objects([Author(id=1, name="silent")])
            session.bulk_insert_mappings(Author, [{"id": 2, "name": "silent too"}])
            session.execute(sa.update(Author).values(rank=1))
        session.commit()
        assert told(session, Author) == []


def test_one_session_pauses_without_the_others(sessions: Sessions) -> None:
    with sessions() as silent, sessions() as loud:
        with tracking_disabled(silent):
            loud.add(Author(id=1, name="a"))
            loud.commit()
        check(loud)
        assert told(loud, Author, "name") == [("insert", "a")]


@pytest.mark.parametrize("given", ["an engine", "sessions"])
def test_tracking_is_disabled_in_a_session_only(engine: sa.Engine, sessions: Any, given: str) -> None:
    with pytest.raises(QueryError, match="is not a Session"):
        tracking_disabled(engine if given == "an engine" else sessions)


def test_tracking_can_be_disabled_in_an_async_session(async_engine: AsyncEngine) -> None:
    async def run() -> None:
        maker = async_sessionmaker(async_engine)
        register_hooks(maker)
        try:
            async with maker() as session:
                session.add(Author(id=1, name="a"))
                async with tracking_disabled(session):
                    session.add(Author(id=2, name="silent"))
                with contextlib.suppress(ZeroDivisionError):
                    async with tracking_disabled(session):
                        session.add(Author(id=3, name="pending"))
                        raise ZeroDivisionError
                await session.commit()
                assert await session.run_sync(told, Author, "id") == [("insert", 1), ("insert", 3)]
        finally:
            unregister_hooks(maker)

    asyncio.run(run())
