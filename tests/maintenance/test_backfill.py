"""Rows that are older than their tracking get baselines, whatever happens meanwhile, and nothing gets two."""

import asyncio
import enum
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from databases import OTHER_SCHEMA, Database, Server
from invariants import check_history, told
from overlap import (
    Account,
    Base,  # noqa: F401  # whose tables the tests find
)
from registering import recording
from sqlaudit import backfill
from sqlaudit.tracking.tables import tracked_table
from stock import Base as StockBase
from stock import Item, Part, Person, Tag, fill, item_tags

pytestmark = pytest.mark.new_tables

EARLIER = datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


class Wide(orm.DeclarativeBase):
    pass


class Elsewhere(orm.DeclarativeBase):
    pass


class Colour(enum.Enum):
    red = "r"
    green = "g"


@sqlaudit.track_table()
class Odd(Elsewhere):
    """A key of many columns, of types that databases store in their own ways."""

    __tablename__ = "odd Keys"
    __table_args__ = {"schema": OTHER_SCHEMA}

    colour: Mapped[Colour] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column("the text", sa.String(20), primary_key=True)
    uid: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    amount: Mapped[Decimal] = mapped_column(sa.Numeric(10, 2), primary_key=True)
    value: Mapped[int | None]


@sqlaudit.track_table()
class Shape(Wide):
    __tablename__ = "shapes"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "shape"}


class Circle(Shape):
    __tablename__ = "circles"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Shape.id), primary_key=True)
    radius: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "circle"}


class Disc(Circle):
    __tablename__ = "discs"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Circle.id), primary_key=True)
    colour: Mapped[str] = mapped_column(sa.String(10))
    __mapper_args__ = {"polymorphic_identity": "disc"}


class Square(Shape):
    side: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "square"}


def unrecorded(engine: sa.Engine, *objects: Any) -> None:
    """Write rows as they were written before there was a history."""
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
    with Session(engine) as session:
        session.add_all(objects)
        session.commit()
    sqlaudit.clear_config()


@pytest.fixture
def accounts(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        connection.execute(sa.insert(Account.__table__), [{"id": id, "writes": 0} for id in range(1, 26)])
    return engine


def check_accounts(engine: sa.Engine) -> dict[int, list[Any]]:
    with Session(engine) as session:
        check_history(session, Account)
        found: dict[int, list[Any]] = {}
        for version in session.scalars(sa.select(Account.History).order_by(Account.History.id, "audit_version")):
            found.setdefault(version.id, []).append(version)
        return found


# --- which rows -------------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("chunk_size", [1, 7, 25, 1000])
@pytest.mark.parametrize("give", ["engine", "session", "connection"])
def test_every_row_without_history_gets_one_open_baseline(accounts: sa.Engine, chunk_size: int, give: str) -> None:
    if give == "engine":
        report = backfill(accounts, Account, at=EARLIER, chunk_size=chunk_size)
    elif give == "session":
        with Session(accounts) as session:
            report = backfill(session, Account, at=EARLIER, chunk_size=chunk_size)
            session.commit()
    else:
        with accounts.begin() as connection:
            report = backfill(connection, Account, at=EARLIER, chunk_size=chunk_size)
    assert (report.rows, report.at) == (25, EARLIER)
    versions = [version for (version,) in check_accounts(accounts).values()]
    assert {str(version.audit_operation) for version in versions} == {"baseline"}
    assert {version.audit_changeset_id for version in versions} == {report.changeset_id}
    assert {(version.valid_from, version.valid_to) for version in versions} == {(EARLIER, sqlaudit.OPEN_END)}
    assert backfill(accounts, Account).rows == 0
    assert len(check_accounts(accounts)) == 25


def test_the_next_change_goes_on_from_a_baseline(accounts: sa.Engine) -> None:
    backfill(accounts, Account, at=EARLIER)
    with recording(accounts) as sessions, sessions.begin() as session:
        session.get_one(Account, 3).written_by = "ana"
    with Session(accounts) as session:
        check_history(session, Account)
        first, second = sqlaudit.versions_of(session, Account, 3)
        assert (first.audit_operation, first.valid_from, second.audit_version) == ("baseline", EARLIER, 2)
        (change,) = sqlaudit.get_resource_changes(Account, session)
        assert (change.field_name, change.old_value, change.new_value) == ("written_by", None, "ana")


def test_rows_with_a_history_are_left_alone_and_the_rest_is_gone_on_with(accounts: sa.Engine) -> None:
    with recording(accounts) as sessions, sessions.begin() as session:
        session.get_one(Account, 3).writes = 5
        session.delete(session.get_one(Account, 4))
    assert backfill(accounts, Account, chunk_size=4).rows == 23
    found = check_accounts(accounts)
    assert [str(each.audit_operation) for each in found[3]] == ["baseline", "update"]
    assert [str(each.audit_operation) for each in found[4]] == ["baseline", "delete"]


@pytest.mark.parametrize("give", ["engine", "session"])
def test_a_row_that_came_back_unseen_begins_after_its_deletion(accounts: sa.Engine, give: str) -> None:
    with recording(accounts) as sessions, sessions.begin() as session:
        session.delete(session.get_one(Account, 4))
        session.delete(session.get_one(Account, 9))
    unrecorded(accounts, Account(id=4, writes=77))
    with Session(accounts) as session:
        assert backfill(accounts if give == "engine" else session, Account, at=EARLIER, chunk_size=5).rows == 24
        session.commit()
    with Session(accounts) as session:
        check_history(session, Account)
        _, deletion, again = sqlaudit.versions_of(session, Account, 4)
        assert (deletion.audit_operation, again.audit_operation) == ("delete", "baseline")
        assert again.valid_from > deletion.valid_to
        assert [version.audit_operation for version in sqlaudit.versions_of(session, Account, 9)][1:] == ["delete"]


def test_an_empty_table_is_no_error(engine: sa.Engine) -> None:
    assert backfill(engine, Account).rows == 0


@pytest.mark.spread
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
@pytest.mark.parametrize("model", [Shape, Disc])
def test_all_tables_of_a_hierarchy_get_versions_of_one_number(
    engine: sa.Engine, chunk_size: int, model: type[Any]
) -> None:
    Wide.metadata.create_all(engine)
    unrecorded(
        engine,
        *(Shape(id=id) for id in (1, 7)),
        *(Circle(id=id, radius=id) for id in (2, 6)),
        *(Disc(id=id, radius=id, colour="red") for id in (3, 5)),
        Square(id=4, side=2),
    )
    assert backfill(engine, model, chunk_size=chunk_size).rows == 7
    with Session(engine) as session:
        check_history(session, Shape)
    with recording(engine, Wide.metadata) as sessions, sessions.begin() as session:
        session.get_one(Disc, 3).colour = "blue"
        session.delete(session.get_one(Circle, 2))
    assert backfill(engine, model).rows == 0
    with Session(engine) as session:
        check_history(session, Shape)
        assert [version.colour for version in sqlaudit.versions_of(session, Disc, 3)] == ["red", "blue"]


@pytest.mark.spread
@pytest.mark.parametrize("chunk_size", [1, 5, 16, 100])
def test_composite_keys_of_odd_types_in_another_schema(database: Database, engine: sa.Engine, chunk_size: int) -> None:
    engine = engine.execution_options(schema_translate_map={OTHER_SCHEMA: database.other_schema})
    Elsewhere.metadata.create_all(engine)
    uids = [uuid.UUID(int=number) for number in (3, 2**100)]
    amounts = [Decimal("-1.50"), Decimal("0.05")]
    unrecorded(
        engine,
        *(
            Odd(colour=colour, text=text, uid=uid, amount=amount)
            for colour in Colour
            for text in ("", "a b", "it's %s :x", "ü")
            for uid in uids
            for amount in amounts
        ),
    )
    assert backfill(engine, Odd, chunk_size=chunk_size).rows == 32
    with Session(engine) as session:
        check_history(session, Odd)
    assert backfill(engine, Odd, chunk_size=chunk_size).rows == 0


@pytest.mark.spread
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_association_tables_single_tables_and_uuids(engine: sa.Engine, chunk_size: int) -> None:
    StockBase.metadata.create_all(engine)
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="ignore"))
    with Session(engine) as session:
        fill(session)
        session.commit()
    orm.configure_mappers()
    for source in (Item, Part, Tag, Person, item_tags):
        table = source if isinstance(source, sa.Table) else source.__table__
        with Session(engine) as session:
            count = session.scalar(sa.select(sa.func.count()).select_from(table))
        assert count is not None
        assert backfill(engine, source, chunk_size=chunk_size).rows == count
        with Session(engine) as session:
            check_history(session, source)
            assert {operation for (operation, *_) in told(session, source)} <= {"baseline"}
        assert backfill(engine, source, chunk_size=chunk_size).rows == 0


def test_links_that_a_table_without_a_key_holds_twice_get_one_version(engine: sa.Engine, base: type[Any]) -> None:
    links = sa.Table(
        "links",
        base.metadata,
        sa.Column("left_id", sa.ForeignKey("sides.id"), nullable=False),
        sa.Column("right_id", sa.ForeignKey("sides.id"), nullable=False),
    )

    @sqlaudit.track_table()
    class Side(base):  # type: ignore[misc]
        __tablename__ = "sides"
        id: Mapped[int] = mapped_column(primary_key=True)
        others: Mapped[list["Side"]] = orm.relationship(
            secondary=links, primaryjoin=id == links.c.left_id, secondaryjoin=id == links.c.right_id
        )

    orm.configure_mappers()
    base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(Side.__table__), [{"id": 1}, {"id": 2}])
        pairs = [(1, 2), (1, 2), (2, 2), (2, 1), (1, 2)]
        connection.execute(sa.insert(links), [{"left_id": a, "right_id": b} for a, b in pairs])
    assert backfill(engine, links, chunk_size=2).rows == 3
    assert backfill(engine, links).rows == 0
    with Session(engine) as session:
        check_history(session, links)


@pytest.mark.requires("concurrent_writes")
def test_a_registered_engine_takes_a_backfill_for_none_of_the_applications_writes(accounts: sa.Engine) -> None:
    sqlaudit.register_hooks(engine=accounts)
    try:
        assert backfill(accounts, Account, chunk_size=10).rows == 25
    finally:
        sqlaudit.unregister_hooks(Session, engine=accounts)
    check_accounts(accounts)


# --- transactions -----------------------------------------------------------------------------------------------


def test_in_a_session_it_is_part_of_its_transaction(accounts: sa.Engine) -> None:
    with recording(accounts) as sessions, sessions() as session:
        session.add(Account(id=100))
        assert backfill(session, Account, chunk_size=3).rows == 25
        session.rollback()
        assert told(session, Account) == []
        session.add(Account(id=100))
        backfill(session, Account, chunk_size=3)
        session.get_one(Account, 3).writes = 4
        session.flush()
        sqlaudit.record_changes(session, Account)
        session.commit()
        (new,) = sqlaudit.versions_of(session, Account, 100)
        assert new.audit_operation == "insert"
        assert [version.audit_operation for version in sqlaudit.versions_of(session, Account, 3)] == [
            "baseline",
            "update",
        ]
    check_accounts(accounts)


class Killed(BaseException):
    pass


def test_one_that_was_killed_is_gone_on_with_by_calling_again(accounts: sa.Engine) -> None:
    def die(done: int, total: int) -> None:
        if done > 10:
            raise Killed

    with pytest.raises(Killed):
        backfill(accounts, Account, chunk_size=5, progress=die)
    with Session(accounts) as session:
        assert len(told(session, Account)) == 15
    assert backfill(accounts, Account, chunk_size=5).rows == 10
    check_accounts(accounts)


def test_progress_is_told_to_the_end(accounts: sa.Engine) -> None:
    calls: list[tuple[int, int]] = []
    backfill(accounts, Account, chunk_size=10, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(10, 25), (20, 25), (25, 25)]


def test_progress_may_be_a_bar_on_the_terminal(accounts: sa.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    backfill(accounts, Account, chunk_size=10, progress=True)
    out = capsys.readouterr().out
    assert "accounts" in out
    assert "25/25" in out


def test_it_runs_in_asynchronous_applications(async_engine: AsyncEngine) -> None:
    async def run() -> None:
        async with async_engine.begin() as connection:
            await connection.execute(sa.insert(Account.__table__), [{"id": id} for id in range(5)])
        async with AsyncSession(async_engine) as session:
            assert (await session.run_sync(backfill, Account)).rows == 5
        assert (await backfill(async_engine, Account, chunk_size=2)).rows == 5

    asyncio.run(run())


# --- beside others ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["READ COMMITTED", "REPEATABLE READ"])
def sessions(
    request: pytest.FixtureRequest, database: Database, accounts: sa.Engine
) -> Iterator[sessionmaker[Session]]:
    engine = database.create_engine(pool_size=20, isolation_level=request.param)
    with recording(engine, expire_on_commit=False) as sessions:
        yield sessions
    engine.dispose()


def change(session: Session) -> None:
    session.get_one(Account, 3).writes = 1


def change_twice(session: Session) -> None:
    for writes in (1, 2):
        with sqlaudit.AuditContextManager(reason=str(writes)):
            session.get_one(Account, 3).writes = writes
            session.flush()


def delete(session: Session) -> None:
    session.delete(session.get_one(Account, 3))


def delete_and_insert(session: Session) -> None:
    delete(session)
    session.flush()
    session.add(Account(id=3, writes=9))


def insert(session: Session) -> None:
    session.add(Account(id=300, writes=9))


def update_by_statement(session: Session) -> None:
    session.execute(sa.update(Account).where(Account.id.in_([3, 20])).values(writes=4))


WORKS = [change, change_twice, delete, delete_and_insert, insert, update_by_statement]


@pytest.mark.requires("concurrent_writes")
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("work", WORKS)
def test_it_waits_for_a_row_that_another_transaction_writes(
    sessions: sessionmaker[Session],
    accounts: sa.Engine,
    database: Server,
    work: Callable[[Session], None],
    end: str,
) -> None:
    with ThreadPoolExecutor(1) as pool, sessions() as session:
        work(session)
        session.flush()
        passed = threading.Event()
        running = pool.submit(
            backfill, accounts, Account, chunk_size=4, progress=lambda done, total: done == total and passed.set()
        )
        while not (passed.wait(0.01) or database.waiting() or running.done()):
            pass  # on PostgreSQL, the other rows are done before it waits; on MariaDB, neighbours may have to wait, too
        getattr(session, end)()
        running.result(10)
    found = check_accounts(accounts)
    assert [version.audit_operation for version in found[1]] == ["baseline"]
    if end == "rollback":
        assert [version.audit_operation for version in found[3]] == ["baseline"]


@pytest.mark.requires("concurrent_writes")
@pytest.mark.parametrize("sessions", ["READ COMMITTED"], indirect=True)
@pytest.mark.parametrize("work", WORKS)
def test_another_transaction_waits_for_the_rows_of_a_portion_and_goes_on_from_their_baselines(
    sessions: sessionmaker[Session], accounts: sa.Engine, work: Callable[[Session], None]
) -> None:
    def write() -> None:
        with sessions.begin() as session:
            work(session)

    with ThreadPoolExecutor(1) as pool, Session(accounts.execution_options()) as session:
        session.connection(execution_options={"isolation_level": "READ COMMITTED"})
        backfill(session, Account, chunk_size=4)
        running = pool.submit(write)
        if work is not insert:
            with pytest.raises(TimeoutError):
                running.result(0.3)
        session.commit()
        running.result(10)
    found = check_accounts(accounts)
    if work is not insert:
        first, *_ = found[3]
        assert first.audit_operation == "baseline"
        assert first.valid_to > first.valid_from


@pytest.mark.requires("concurrent_writes")
def test_random_writers_meanwhile_get_one_line_of_versions(
    sessions: sessionmaker[Session], accounts: sa.Engine
) -> None:
    stop = threading.Event()

    def run(thread: int) -> int:
        choice, count = random.Random(thread), 0

        def once(session: Session) -> None:
            for id in choice.sample(range(1, 30), 3):
                account = session.get(Account, id)
                if account is None:
                    session.add(Account(id=id))
                elif choice.random() < 0.3:
                    session.delete(account)
                else:
                    account.writes = Account.writes + 1  # type: ignore[assignment]
                session.flush()

        while not stop.is_set():
            with sessions() as session:
                try:
                    once(session)
                    session.commit()
                    count += 1
                except (sa.exc.DBAPIError, orm.exc.StaleDataError, sa.exc.SAWarning):  # two have written one row
                    session.rollback()
        return count

    with ThreadPoolExecutor(5) as pool:
        writers = [pool.submit(run, thread) for thread in range(4)]
        try:
            written = sum(backfill(accounts, Account, chunk_size=size).rows for size in (2, 1, 5, 3))
        finally:
            stop.set()
        assert all(writer.result(20) for writer in writers)
    assert written > 0
    backfill(accounts, Account)
    check_accounts(accounts)


@pytest.mark.requires("concurrent_writes")
def test_two_backfills_at_once_write_no_baseline_twice(accounts: sa.Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda size: backfill(accounts, Account, chunk_size=size), (1, 2, 3, 4)))
    assert sum(report.rows for report in reports) == 25
    assert all(len(versions) == 1 for versions in check_accounts(accounts).values())


# --- what cannot be done ----------------------------------------------------------------------------------------


def test_an_instant_in_the_future_is_refused(accounts: sa.Engine) -> None:
    with pytest.raises(sqlaudit.QueryError, match="in the future"):
        backfill(accounts, Account, at=datetime.now(UTC) + timedelta(hours=1))


def test_a_naive_instant_is_local_time(accounts: sa.Engine) -> None:
    with pytest.warns(sqlaudit.SQLAuditWarning, match="local time"):
        report = backfill(accounts, Account, at=EARLIER.replace(tzinfo=None))
    assert report.at == EARLIER.replace(tzinfo=None).astimezone(UTC)


def test_arguments_that_make_no_sense_are_refused(accounts: sa.Engine) -> None:
    plain = sa.Table("plain", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    history = Account.History.__table__
    for where, model, given, error, words in [
        (accounts, Account, {"chunk_size": 0}, sqlaudit.QueryError, "chunk_size is 0"),
        (accounts, Account, {"chunk_size": -5}, sqlaudit.QueryError, "chunk_size is -5"),
        (accounts, Account, {"at": "yesterday"}, sqlaudit.QueryError, "not a datetime"),
        (accounts, Account, {"progress": "yes"}, sqlaudit.SQLAuditError, "progress is 'yes'"),
        (accounts, int, {}, sqlaudit.TrackingError, "int is not a tracked model"),
        (accounts, plain, {}, sqlaudit.TrackingError, "'plain' is not a tracked table"),
        (accounts, history, {}, sqlaudit.TrackingError, "is not a tracked table"),
        ("sqlite://", Account, {}, sqlaudit.QueryError, "is not a Session"),
    ]:
        with pytest.raises(error, match=words):
            backfill(where, model, **given)  # type: ignore[arg-type]
    with Session(accounts) as session:
        assert told(session, Account) == []


@pytest.mark.parametrize("give", ["engine", "session"])
def test_an_absent_history_table_is_named(accounts: sa.Engine, give: str) -> None:
    table = tracked_table(Account.__table__)
    assert table is not None
    table.history.drop(accounts)
    with pytest.raises(sqlaudit.HistoryTableError, match="accounts_history"), Session(accounts) as session:
        backfill(accounts if give == "engine" else session, Account)


def test_a_bar_without_its_library_names_the_extra(accounts: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlaudit.maintenance.progress.Progress", None)
    with pytest.raises(sqlaudit.SQLAuditError, match=r"pip install 'sqlaudit\[progress\]'"):
        backfill(accounts, Account, progress=True)
