"""The oldest versions go, and nothing else changes: every read from the horizon on answers as before."""

import asyncio
import enum
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from ledger import (
    SOURCES,
    Account,
    Base,  # noqa: F401  # whose tables the tests find
    Clock,
    Entry,
    Person,
    Tag,
    Worker,
    changes,
    differences,
    labels,
    live,
    start,
    states,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

import sqlaudit
from effort import EFFORT
from registering import recording
from sqlaudit import HistoryTableError, PrunedError, QueryError, TrackingError, history_of
from sqlaudit.maintenance import Retention, check, hold, holds, maintenance_tables, prune, release
from sqlaudit.maintenance.holding import refuse_held
from sqlaudit.tracking.tables import tracked_table

START = datetime(2024, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)


@pytest.fixture
def ledger(tables, engine):
    """A sessionmaker and a clock."""
    clock = Clock(START)
    start(clock)
    with recording(engine) as maker:
        yield maker, clock


def versions(session: Session, source: Any) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(history_of(source)))


@pytest.mark.spread
@pytest.mark.parametrize("options", [{}, {"keep_tombstones": False}, {"keep_last": 2}], ids=str)
@pytest.mark.parametrize("seed", range(3 * EFFORT))
def test_from_the_horizon_on_every_read_answers_as_before(ledger, engine, seed, options):
    maker, clock = ledger
    chance = random.Random(seed)
    instants = live(maker, clock, chance, 14)
    horizon = chance.choice([instants[7], instants[9] - TICK, instants[9] + TICK, instants[-1]])
    clock.now = instants[-1] + timedelta(days=1)
    later = [when for when in (horizon, *instants, clock.now) if when >= horizon]
    with maker() as session:
        expected = [states(session, when) for when in later], changes(session, horizon)
        expected_differences = [differences(session, horizon, when) for when in later]
        before = {source: versions(session, source) for source in SOURCES}
    dry = prune(engine, *SOURCES, older_than=clock.now - horizon, dry_run=True, **options)
    report = prune(engine, *SOURCES, older_than=clock.now - horizon, chunk_size=chance.choice([1, 3, 1000]), **options)
    with maker() as session:
        assert [each.rows for each in dry.tables] == [each.rows for each in report.tables]
        for source, table in zip(SOURCES, report.tables, strict=True):
            assert before[source] - versions(session, source) == table.rows
        for when, answers in zip(later, expected[0], strict=True):
            assert states(session, when) == answers, when
        for name, answer in changes(session, horizon).items():
            assert answer == expected[1][name], name
        assert [differences(session, horizon, when) for when in later] == expected_differences
        session.commit()
        assert prune(engine, *SOURCES, older_than=clock.now - horizon, **options).rows == 0
        assert check(engine, *SOURCES).findings == ()


# --- one account ------------------------------------------------------------------------------------------------


def at(days: float) -> datetime:
    return START + timedelta(days=days)


@pytest.fixture
def lived(ledger):
    """An account, an entry, a link and two people, which change each day from day 0 to day 9; it is day 10."""
    maker, clock = ledger
    with maker() as session:
        for day in range(10):
            clock.now = at(day)
            with sqlaudit.AuditContextManager(user_id=f"user {day}", reason=f"day {day}"):
                if day == 0:
                    account = Account(id=1, name="0", entries=[Entry(number="a", amount=0)], tags=[Tag(id=1, name="0")])
                    people = [Person(id=1, name="0"), Worker(id=2, name="0", wage=0)]
                    session.add_all([account, *people, Account(id=2, name="steady")])
                else:
                    account.name, account.entries[0].amount = str(day), day
                    account.tags = [] if account.tags else [session.get(Tag, 1)]
                    people[0].name, people[1].wage = str(day), day
                session.commit()
        clock.now = at(10)
        yield session


def told(session: Session, source: Any, key: Any = 1) -> list[tuple[Any, ...]]:
    session.rollback()
    found = [(each.version, str(each.operation)) for each in sqlaudit.versions_of(session, source, key)]
    session.rollback()
    return found


WAYS = {
    "as_of": lambda session, when: session.scalars(sqlaudit.as_of(Account, when)).all(),
    "as_of by key": lambda session, when: session.scalars(sqlaudit.as_of(Account, when).where(Account.id == 2)).all(),
    "as_of by keys": lambda session, when: session.scalars(
        sqlaudit.as_of(Account, when).where(Account.id.in_([1, 2]))
    ).all(),
    "as_of of links": lambda session, when: session.execute(sqlaudit.as_of(labels, when)).all(),
    "as_of of a subclass": lambda session, when: session.scalars(sqlaudit.as_of(Worker, when)).all(),
    "as_of of an indexed table": lambda session, when: session.scalars(sqlaudit.as_of(Person, when)).all(),
    "in a subquery": lambda session, when: session.execute(
        sa.select(Tag.id).where(sqlaudit.as_of(Entry, when).with_only_columns(Entry.number).exists())
    ).all(),
    "in a Core statement": lambda session, when: _travel(
        session, when, lambda past: past.execute(sa.select(sa.func.count()).select_from(Account.__table__)).all()
    ),
    "get": lambda session, when: _travel(session, when, lambda past: past.get(Account, 2)),
    "materialized": lambda session, when: _travel(
        session, when, lambda past: past.scalars(sa.select(Account)).all(), materialize=True
    ),
    "between": lambda session, when: session.scalars(sqlaudit.between(Account, when, at(20))).all(),
    "versions_of": lambda session, when: sqlaudit.versions_of(session, Account, 1, since=when),
    "get_resource_changes": lambda session, when: sqlaudit.get_resource_changes(
        Account, session, filter_date_range=(when, None)
    ),
    "until": lambda session, when: sqlaudit.get_resource_changes(Account, session, filter_date_range=(None, when)),
    "stream": lambda session, when: list(
        sqlaudit.stream_resource_changes(Account, session, filter_date_range=(when, None))
    ),
    "changes_page": lambda session, when: sqlaudit.changes_page(session, Account, filter_date_range=(when, None)),
    "compare": lambda session, when: list(sqlaudit.compare(session, [Tag, Account], when, at(9))),
    "compare_page": lambda session, when: sqlaudit.compare_page(session, [Tag, Account], when, at(9)),
    "diff": lambda session, when: sqlaudit.diff(session, Account, 2, when, at(9)),
    "restore": lambda session, when: sqlaudit.restore(session, Account, 1, at=when, dry_run=True),
    "restore with others": lambda session, when: sqlaudit.restore(
        session, Account, 1, at=when, include=["entries", "tags"], dry_run=True
    ),
    "undo": lambda session, when: sqlaudit.undo(session, since=when, dry_run=True, force=True),
}


def _travel(session: Session, when: Any, ask: Any, **options: Any) -> Any:
    with sqlaudit.time_travel(session, when, **options) as past:
        return ask(past)


@pytest.mark.spread
@pytest.mark.parametrize("way", WAYS)
def test_a_read_before_the_horizon_raises_and_a_later_one_does_not(lived, engine, way):
    lived.commit()
    horizon = prune(engine, Account, Entry, Person, labels, older_than="5d").tables[0].pruned_before
    assert horizon == at(5)
    WAYS[way](lived, horizon)
    lived.rollback()
    with pytest.raises(PrunedError, match=r"was pruned before 2024-01-06T00:00:00\+00:00") as raised:
        WAYS[way](lived, horizon - TICK)
    assert raised.value.pruned_before == horizon
    assert lived.scalar(sa.select(sa.func.count()).select_from(Account)) == 2  # the transaction goes on


def read_feed(session, cursor=None, **options):
    """Read a page of the feed once one is ready, in transactions of its own."""
    for _ in range(500):
        page = sqlaudit.changes_since(session, cursor, min_age=timedelta(0), **options)
        cursor = page.next
        session.commit()
        if page.items:
            break
        time.sleep(0.01)
    return page


def test_a_consumer_that_has_not_seen_what_was_pruned_is_told(lived, engine):
    lived.commit()
    behind, done = read_feed(lived, size=2).next, read_feed(lived, size=50).next
    horizon = prune(engine, Account, older_than="5d").tables[0].pruned_before
    with pytest.raises(PrunedError, match=r"'ledger_accounts' was pruned .* up to 2024-01-02") as raised:
        sqlaudit.changes_since(lived, behind)
    assert raised.value.pruned_before == horizon
    with pytest.raises(PrunedError):
        sqlaudit.changes_since(lived, since=at(4))
    lived.rollback()
    for options in ({"since": horizon}, {"model": Entry}):
        assert read_feed(lived, behind, **options).items[0].timestamp >= at(2)
    assert read_feed(lived).items[0].timestamp == at(0)
    assert sqlaudit.changes_since(lived, done, min_age=timedelta(0)).items == []


def test_an_object_of_the_past_loads_nothing_that_has_been_pruned_since(lived, engine):
    account = lived.scalars(sqlaudit.as_of(Account, at(2)).where(Account.id == 1)).one()
    lived.commit()
    prune(engine, Entry, older_than="5d")
    assert len(account.tags) == 1  # whose history is whole
    with pytest.raises(PrunedError, match="'ledger_entries' was pruned before"):
        _ = account.entries


def test_the_oldest_version_that_stays_is_a_baseline_that_keeps_its_user(lived, engine):
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(clock=Clock(at(10))))
    prune(engine, Account, Entry, Person, labels, older_than="5d")
    baseline, *later = sqlaudit.versions_of(lived, Account, 1)
    assert (baseline.version, baseline.operation, baseline.valid_from, baseline.valid_to) == (
        5,
        "baseline",
        at(4),
        at(5),
    )
    assert (baseline.name, baseline.changed_by, baseline.reason) == ("4", "user 4", "day 4")
    assert [each.version for each in later] == [6, 7, 8, 9, 10]
    assert told(lived, Account, 2) == [(1, "insert")]
    assert told(lived, Person, 2)[0] == (5, "baseline")
    assert type(sqlaudit.versions_of(lived, Person, 2)[0].previous) is type(None)
    reported = sqlaudit.get_resource_changes(Account, lived, 1)
    assert [(each.version, each.old_value, each.new_value) for each in reported] == [
        (day + 1, str(day - 1), str(day)) for day in range(5, 10)
    ]
    assert sqlaudit.get_resource_changes(Person, lived, 2)[0].version == 6
    with pytest.raises(PrunedError):
        sqlaudit.changes_in(lived, baseline.changeset_id)
    with pytest.raises(PrunedError):
        sqlaudit.undo(lived, baseline.changeset_id)
    sqlaudit.restore(lived, Account, 1, at=5)
    lived.commit()
    assert sqlaudit.versions_of(lived, Account, 1)[-1].version == 11
    [first, *_] = sqlaudit.versions_of(lived, Account, 1)
    assert first.operation == "baseline"


def test_nobody_is_blamed_for_what_may_be_older_than_a_history(lived, engine):
    prune(engine, Account, older_than="1h")
    blames = sqlaudit.blame(lived, Account, 1)
    assert {(each.version, each.unknown_before, each.changed_by) for each in blames.values()} == {(10, True, None)}
    assert sqlaudit.blame(lived, Account, 2)["name"].unknown_before is False


def test_numbers_go_on_and_a_pruned_history_can_be_written(lived, engine):
    prune(engine, Account, Person, older_than="1h")
    lived.get(Account, 1).name = "new"
    lived.get(Person, 2).wage = 100
    lived.commit()
    assert told(lived, Account) == [(10, "baseline"), (11, "update")]
    assert told(lived, Person, 2) == [(10, "baseline"), (11, "update")]
    assert lived.scalars(sqlaudit.as_of(Worker, at(10)).where(Worker.id == 2)).one().wage == 100


@pytest.mark.parametrize("keep", [True, False])
def test_a_deleted_row_leaves_its_tombstone_if_it_is_kept(lived, engine, keep):
    clock = sqlaudit.get_config().clock
    lived.delete(lived.get(Person, 2))
    lived.commit()
    clock.now = at(30)
    prune(engine, Person, older_than="1d", keep_tombstones=keep)
    assert told(lived, Person, 2) == ([(11, "delete")] if keep else [])
    assert lived.scalar(sa.select(sa.func.count()).select_from(history_of(Worker).__table__)) == int(keep)
    lived.add(Worker(id=2, name="again", wage=1))
    lived.commit()
    assert told(lived, Person, 2) == ([(11, "delete"), (12, "insert")] if keep else [(1, "insert")])
    clock.now = at(60)
    prune(engine, Person, older_than="1d", keep_tombstones=keep)
    assert told(lived, Person, 2) == [(12 if keep else 1, "insert")]


def test_a_number_of_versions_alone_moves_the_horizon_to_the_youngest_cut(lived, engine):
    report = prune(engine, Account, keep_last=3)
    assert (report.rows, report.tables[0].pruned_before) == (7, at(7) + TICK)
    assert told(lived, Account) == [(8, "baseline"), (9, "update"), (10, "update")]
    assert told(lived, Account, 2) == [(1, "insert")]
    assert prune(engine, Account, keep_last=3).rows == 0
    assert lived.scalars(sqlaudit.as_of(Account, at(7) + TICK).where(Account.id == 1)).one().name == "7"


def test_age_and_number_must_both_allow_it(lived, engine):
    assert prune(engine, Account, older_than="5d", keep_last=8).rows == 2
    assert told(lived, Account)[0] == (3, "baseline")


def test_a_dry_run_tells_rows_and_bytes_and_changes_nothing(lived, engine):
    before = [told(lived, source, 1) for source in (Account, Person)]
    lived.commit()
    report = prune(engine, Account, Person, older_than="5d", dry_run=True)
    assert (report.rows, report.dry_run) == (12, True)
    assert [(each.table, each.rows) for each in report.tables] == [("ledger_accounts", 4), ("ledger_people", 8)]
    assert report.bytes is None or report.bytes > 12 * 50
    assert (report.bytes is None) == (engine.dialect.name == "sqlite" and not has_dbstat(engine))
    assert [told(lived, source, 1) for source in (Account, Person)] == before
    assert lived.scalars(sqlaudit.as_of(Account, at(2))).all()


def has_dbstat(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        options = connection.exec_driver_sql("PRAGMA compile_options").scalars().all()
    return "ENABLE_DBSTAT_VTAB" in options


def test_a_row_that_came_again_begins_with_its_insert(lived, engine):
    clock = sqlaudit.get_config().clock
    lived.delete(lived.get(Person, 2))
    lived.commit()
    clock.now = at(11)
    lived.add(Worker(id=2, name="again", wage=1))
    lived.commit()
    assert check(engine, Person).findings == ()
    clock.now = at(20)
    prune(engine, Person, older_than="9d")
    assert told(lived, Person, 2) == [(12, "insert")]
    assert check(engine, Person).findings == ()
    [change, *_] = sqlaudit.get_resource_changes(Person, lived, 2, filter_date_range=(at(11), None))
    assert (change.operation, change.old_value) == ("insert", None)
    lived.rollback()
    with engine.begin() as connection:
        connection.execute(sa.delete(history_of(Worker).__table__))
        connection.execute(sa.delete(history_of(Person).__table__).where(history_of(Person).id == 1))
    assert check(engine, Person).findings


def test_nothing_to_prune_moves_no_horizon(lived, engine):
    assert prune(engine, Account, older_than="11d") == prune(engine, Account, older_than="11d")
    assert prune(engine, Account, older_than="11d").tables[0].pruned_before is None
    assert prune(engine, Account, older_than="5d").tables[0].pruned_before == at(5)
    assert prune(engine, Account, older_than="6d").tables[0].pruned_before == at(5)  # it never goes back


# --- how it works -----------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def test_a_prune_that_was_stopped_has_told_the_horizon_and_can_go_on(lived, engine):
    lived.add_all(Account(id=id, name="x") for id in range(3, 9))
    lived.commit()
    for name in "ab":
        for account in lived.scalars(sa.select(Account)):
            account.name += name
        lived.commit()
    sqlaudit.get_config().clock.now = at(40)
    lived.commit()
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        prune(engine, Account, older_than="1d", chunk_size=1, progress=stop)
    assert told(lived, Account, 1)[0][1] == "baseline"
    assert told(lived, Account, 8)[0] == (1, "insert")
    with pytest.raises(PrunedError):
        lived.scalars(sqlaudit.as_of(Account, at(2))).all()
    lived.rollback()
    prune(engine, Account, older_than="1d", chunk_size=1)
    assert [len(told(lived, Account, id)) for id in range(1, 9)] == [1] * 8


def test_the_horizon_is_committed_before_anything_is_removed(lived, engine, database):
    lived.commit()
    other, seen = database.create_engine(), []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def look(connection, cursor, statement, *rest):
        if statement.startswith("DELETE"):
            with other.connect() as reader:
                seen.append(reader.scalar(sa.text("SELECT count(*) FROM sqlaudit_horizons")))

    prune(engine, Account, older_than="5d")
    other.dispose()
    assert seen == [1]


@pytest.mark.requires("concurrent_writes")
def test_a_transaction_that_has_read_the_past_goes_on_reading_it(lived, engine):
    lived.commit()
    with sqlaudit.time_travel(lived, at(2)) as past:
        assert past.get(Account, 1).name == "2"
        with ThreadPoolExecutor() as pool:
            pruning = pool.submit(prune, engine, Account, older_than="5d")
            for _ in range(5):
                past.expunge_all()
                assert past.scalars(sa.select(Account).where(Account.id == 1)).one().name == "2"
                with suppress(TimeoutError):
                    pruning.result(0.1)
            lived.commit()
            assert pruning.result().rows == 4
        with pytest.raises(PrunedError):
            past.scalars(sa.select(Account)).all()


@pytest.mark.requires("arrays")  # PostgreSQL; on the others, prune has locks that let nobody write
def test_what_is_written_between_the_statements_of_a_prune_leaves_no_fault(lived, engine, database):
    lived.commit()
    other = database.create_engine()

    @sa.event.listens_for(engine, "after_cursor_execute")
    def write(connection, cursor, statement, *rest):
        if statement.startswith(("DELETE FROM ledger_", "UPDATE ledger_")):
            with makers.begin() as session:
                session.get_one(Worker, 2).wage += 1

    with recording(other) as makers:
        assert prune(engine, Person, older_than="1h", keep_last=2).rows == 16
    versions = told(lived, Worker, 2)
    other.dispose()
    assert versions[0][1] == "baseline"
    assert {operation for _, operation in versions[1:]} == {"update"}
    assert check(engine, Person).is_sound


def test_a_transaction_looks_at_the_horizons_once_where_that_is_enough(lived, engine):
    lived.commit()
    looks = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def look(connection, cursor, statement, *rest):
        looks.extend(["look"] if "FROM sqlaudit_horizons" in statement else [])

    for _ in range(3):
        lived.scalars(sqlaudit.as_of(Account, at(2))).all()
    assert len(looks) == (3 if engine.dialect.name == "sqlite" else 1)
    lived.commit()
    lived.scalars(sqlaudit.as_of(Account, at(2))).all()
    assert len(looks) == (4 if engine.dialect.name == "sqlite" else 2)


@pytest.mark.parametrize("give", ["session", "connection"])
def test_a_session_prunes_in_its_own_transaction(lived, engine, give):
    where = lived if give == "session" else lived.connection()
    assert prune(where, Account, Person, older_than="5d").rows == 12
    with pytest.raises(PrunedError):
        lived.scalars(sqlaudit.as_of(Account, at(2))).all()
    lived.rollback()
    assert told(lived, Account)[0] == (1, "insert")
    assert lived.scalars(sqlaudit.as_of(Account, at(2))).all()


def test_an_asynchronous_engine_prunes(tables, async_engine):
    async def run():
        report = await prune(async_engine, Account, older_than="5d")
        dry = await prune(async_engine, Account, keep_last=1, dry_run=True)
        async with AsyncSession(async_engine) as session:
            assert await holds(session) == []
        return report.rows, dry.rows

    assert asyncio.run(run()) == (0, 0)


# --- holds ------------------------------------------------------------------------------------------------------


def test_a_held_row_is_not_pruned_until_every_hold_is_released(lived, engine):
    with sqlaudit.AuditContextManager(user_id="ana"):
        first = hold(lived, Account, "1", reason="lawsuit")
        second = hold(lived, Person, 2, reason="audit")
        link = hold(lived, labels, (1, 1), reason="audit")
    sqlaudit.get_config().clock.now += TICK
    third = hold(lived, Account, 1, reason="another lawsuit")
    sqlaudit.get_config().clock.now = at(10)
    lived.commit()
    assert (first.table, first.key, first.reason, first.held_by, first.held_at) == (
        "ledger_accounts",
        1,
        "lawsuit",
        "ana",
        at(10),
    )
    assert holds(lived, Account) == [first, third]
    assert {each.hold_id for each in holds(lived)} == {each.hold_id for each in (first, second, third, link)}
    lived.commit()
    report = prune(engine, Account, Person, labels, older_than="5d")
    assert [each.rows for each in report.tables] == [0, 4, 0]
    assert (told(lived, Account)[0], told(lived, Person, 2)[0]) == ((1, "insert"), (1, "insert"))
    release(lived, first)
    lived.commit()
    assert prune(engine, Account, older_than="5d").rows == 0
    release(lived, str(third.hold_id))
    lived.commit()
    assert prune(engine, Account, older_than="5d").rows == 4
    with pytest.raises(QueryError, match="There is no hold"):
        release(lived, first)


def test_what_a_held_changeset_changed_stays_known(lived, engine):
    changeset = sqlaudit.versions_of(lived, Account, 1)[3].changeset_id
    made = hold(lived, changeset_id=changeset, reason="audit")
    assert (made.table, made.key, made.changeset_id) == (None, None, changeset)
    assert holds(lived) == [made]
    lived.commit()
    prune(engine, Account, Entry, Person, older_than="5d")
    assert told(lived, Account)[:2] == [(3, "baseline"), (4, "update")]
    assert told(lived, Person, 2)[:2] == [(3, "baseline"), (4, "update")]
    [change] = [each for each in sqlaudit.get_resource_changes(Account, lived, 1) if each.changeset_id == changeset]
    assert (change.old_value, change.new_value) == ("2", "3")
    lived.commit()
    release(lived, made)
    lived.commit()
    prune(engine, Account, older_than="5d", keep_tombstones=False)
    assert told(lived, Account)[0] == (5, "baseline")


def test_what_is_held_refuses_to_be_erased(lived):
    table = tracked_table(Account.__table__)
    connection = lived.connection()
    refuse_held(connection, table, [(1,), (2,)], "erased")
    hold(lived, Account, 2, reason="lawsuit")
    refuse_held(connection, table, [(1,)], "erased")
    with pytest.raises(QueryError, match="'ledger_accounts' 2 has a legal hold, so it cannot be erased"):
        refuse_held(connection, table, [(1,), (2,)], "erased")
    hold(lived, changeset_id=sqlaudit.versions_of(lived, Account, 1)[-1].changeset_id, reason="audit")
    with pytest.raises(QueryError, match="'ledger_accounts' 1 has a legal hold"):
        refuse_held(connection, table, [(1,)], "erased")


class Colour(enum.Enum):
    red = "r"


KEYS = {
    "int": (sa.Integer(), 7),
    "text": (sa.String(20), 'a "quoted" Ä'),
    "uuid": (sa.Uuid(), uuid.UUID(int=5)),
    "enum": (sa.Enum(Colour), Colour.red),
    "bytes": (sa.LargeBinary(20).with_variant(mysql.VARBINARY(20), "mysql", "mariadb"), b"\x00\xff"),
    "date": (sa.Date(), date(2024, 1, 2)),
    "datetime": (
        sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"),
        datetime(2024, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001  # the column has no zone
    ),
    "decimal": (sa.Numeric(10, 2), Decimal("1.50")),
    "boolean": (sa.Boolean(), True),
}


@pytest.mark.spread
@pytest.mark.parametrize("kind", KEYS)
def test_a_row_is_held_by_a_key_of_any_type(base, engine, kind):
    type_, key = KEYS[kind]

    @sqlaudit.track_table()
    class Thing(base):
        __tablename__ = "things"
        id: Mapped[Any] = mapped_column(type_, primary_key=True)
        part: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int]

    maintenance_tables(base.metadata)
    base.metadata.create_all(engine)
    start(Clock(START))
    with recording(engine) as maker, maker() as session:
        session.add_all([Thing(id=key, part=part, n=0) for part in (1, 2)])
        session.commit()
        for n in (1, 2):
            sqlaudit.get_config().clock.now = at(n)
            for part in (1, 2):
                session.get(Thing, (key, part)).n = n
            session.commit()
        assert hold(session, Thing, (key, 1), reason="lawsuit").key == (key, 1)
        session.commit()
        assert [each.key for each in holds(session, Thing)] == [(key, 1)]
        session.commit()
        sqlaudit.get_config().clock.now = at(3)
        assert prune(engine, Thing, keep_last=1).rows == 2
        assert [len(sqlaudit.versions_of(session, Thing, (key, part))) for part in (1, 2)] == [3, 1]


BAD_HOLDS = {
    "no reason": (lambda session: hold(session, Account, 1, reason=" "), "text that says why"),
    "no row": (lambda session: hold(session, reason="x"), "a row or a changeset"),
    "both": (lambda session: hold(session, Account, 1, changeset_id=uuid.uuid4(), reason="x"), "a row or a changeset"),
    "no key": (lambda session: hold(session, Account, "x", reason="x"), "no key of 'ledger_accounts'"),
    "no changeset": (lambda session: hold(session, changeset_id=uuid.uuid4(), reason="x"), "has a changeset"),
    "no hold": (lambda session: release(session, "x"), "not the id of a hold"),
}


@pytest.mark.parametrize("case", BAD_HOLDS)
def test_a_hold_that_makes_no_sense_is_refused(ledger, case):
    maker, _ = ledger
    work, message = BAD_HOLDS[case]
    with maker() as session, pytest.raises(QueryError, match=message):
        work(session)


# --- policies ---------------------------------------------------------------------------------------------------


def test_each_model_is_pruned_as_its_retention_says(base, engine):
    links = sa.Table(
        "ab",
        base.metadata,
        sa.Column("a_id", sa.ForeignKey("a.id"), primary_key=True),
        sa.Column("b_id", sa.ForeignKey("b.id"), primary_key=True),
    )

    @sqlaudit.track_table(retention=Retention(older_than="5d"))
    class A(base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int] = mapped_column(default=0)

    @sqlaudit.track_table(retention=Retention(older_than="7d", keep_last=1))
    class B(base):
        __tablename__ = "b"
        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int] = mapped_column(default=0)
        all_a: Mapped[list[A]] = relationship(secondary=links)

    @sqlaudit.track_table()
    class C(base):
        __tablename__ = "c"
        id: Mapped[int] = mapped_column(primary_key=True)

    maintenance_tables(base.metadata)
    base.metadata.create_all(engine)
    clock = Clock(START)
    start(clock)
    with recording(engine) as maker, maker() as session:
        a, b = A(id=1), B(id=1)
        session.add_all([a, b, C(id=1)])
        for day in range(10):
            clock.now = at(day)
            a.n = b.n = day
            b.all_a = [] if b.all_a else [a]
            session.commit()
        clock.now = at(10)
        report = prune(engine)
        assert {each.table: each.pruned_before for each in report.tables} == {"a": at(5), "b": at(3), "ab": at(3)}
        assert told(session, A)[0] == (5, "baseline")
        assert told(session, B)[0] == (3, "baseline")
        session.commit()
        assert prune(engine, A, older_than="1h").tables[0].pruned_before == at(10) - timedelta(hours=1)
        with pytest.raises(QueryError, match="Nothing says which versions of 'c' may be removed"):
            prune(engine, C)


def test_a_subclass_has_the_retention_of_its_base(base):
    @sqlaudit.track_table(retention=Retention(keep_last=5))
    class Animal(base):
        __tablename__ = "animals"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Dog(Animal):
        __tablename__ = "dogs"
        id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "dog"}

    with pytest.raises(TrackingError, match="Pass retention to Animal"):
        sqlaudit.track_table(retention=Retention(keep_last=5))(Dog)
    with pytest.raises(TrackingError, match="Give a Retention"):
        sqlaudit.track_table(retention="90d")(Dog)


NO_DURATIONS = ["", "90", "d", "-1d", "0d", "1.5d", "3 months", "99999999999999d", timedelta(0), 90, True]


@pytest.mark.parametrize("text", NO_DURATIONS, ids=repr)
def test_a_duration_that_cannot_be_read_is_refused(text):
    with pytest.raises(QueryError, match=r"older_than is .* Give a positive timedelta, or a text"):
        Retention(older_than=text)


@pytest.mark.parametrize(
    ("text", "duration"),
    [("36h", timedelta(hours=36)), (" 90 d ", timedelta(days=90)), ("52w", timedelta(weeks=52))],
)
def test_a_duration_may_be_text(text, duration):
    assert Retention(older_than=text).older_than == duration == Retention(older_than=duration).older_than


BAD_CALLS = {
    "nothing": (lambda engine: prune(engine, Account), "Nothing says which versions"),
    "no model": (lambda engine: prune(engine, older_than="1d"), "need models"),
    "no number": (lambda engine: prune(engine, Account, keep_last=0), "keep_last is 0"),
    "no size": (lambda engine: prune(engine, Account, keep_last=1, chunk_size=0), "chunk_size is 0"),
    "too old": (lambda engine: prune(engine, Account, older_than=timedelta.max), "shorter duration"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_call_that_makes_no_sense_is_refused(ledger, engine, case):
    call, message = BAD_CALLS[case]
    with pytest.raises(QueryError, match=message):
        call(engine)


def test_a_database_without_the_tables_is_not_pruned(base, engine):
    @sqlaudit.track_table()
    class Note(base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with pytest.raises(QueryError, match=r"prune\(\) needs tables of its own"):
        prune(engine, Note, keep_last=1)
    assert prune(engine, Note, keep_last=1, dry_run=True).rows == 0
    maintenance_tables(base.metadata)
    with pytest.raises(QueryError, match=r"lacks: 'sqlaudit_horizons'"):
        prune(engine, Note, keep_last=1)
    with recording(engine) as maker, maker() as session:
        with pytest.raises(HistoryTableError, match="lacks the table 'sqlaudit_horizons'"):
            session.scalars(sqlaudit.as_of(Note, START)).all()
        session.rollback()
        with pytest.raises(QueryError, match="lacks: 'sqlaudit_horizons'"):
            hold(session, Note, 1, reason="x")


def test_a_history_that_is_append_only_can_be_pruned(base, engine):
    @sqlaudit.track_table(append_only=True)
    class Note(base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int]

    maintenance_tables(base.metadata)
    base.metadata.create_all(engine)
    clock = Clock(START)
    start(clock)
    with recording(engine) as maker, maker() as session:
        note = Note(id=1, n=0)
        session.add(note)
        for day in range(5):
            clock.now, note.n = at(day), day
            session.commit()
        assert prune(engine, Note, keep_last=2).rows == 3
        assert told(session, Note) == [(4, "baseline"), (5, "update")]
        with pytest.raises(sa.exc.DBAPIError), engine.begin() as connection:
            connection.execute(sa.delete(history_of(Note).__table__))
