"""Transactions that overlap: every version tells of its own, and they queue up in one line."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

import sqlaudit
from databases import Database
from effort import EFFORT
from overlap import (
    PATIENCE,
    Account,
    Base,  # noqa: F401  # whose tables the tests find
    PlainAccount,
    histories,
    is_conflict,
    is_deadlock,
    until_it_passes,
    write,
)

pytestmark = [pytest.mark.requires("concurrent_writes"), pytest.mark.new_tables]

THREADS, TRANSACTIONS, SHARED = 16, 10 * EFFORT, 5
accounts: Any = Account.__table__


@pytest.fixture(params=["READ COMMITTED", "REPEATABLE READ"])
def sessions(request: pytest.FixtureRequest, database: Database) -> Iterator[sessionmaker[Session]]:
    level = {} if request.param == "default" else {"isolation_level": request.param}
    engine = database.create_engine(pool_size=THREADS, **level)
    sessions = sessionmaker(engine, expire_on_commit=False)
    sqlaudit.register_hooks(sessions)
    yield sessions
    sqlaudit.unregister_hooks(sessions)
    engine.dispose()


# --- many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions", ["default"], indirect=True)
def test_many_transactions_on_the_same_rows_leave_one_line_of_versions_each(sessions: sessionmaker[Session]) -> None:
    own = range(100, 100 + THREADS)
    with sessions.begin() as session:
        session.add_all(Account(id=id) for id in (*range(1, SHARED + 1), *own))
    commits = threading.Condition()
    written: Counter[int] = Counter()

    def run(thread: int) -> None:
        choice = random.Random(thread)
        for number in range(TRANSACTIONS):
            shared = sorted(choice.sample(range(1, SHARED + 1), 2))
            stays_behind = choice.random() < 0.5
            user, reason = f"thread {thread}", f"{thread}/{number}"

            def work(session: Session) -> None:
                write(session, own[thread], reason)  # noqa: B023  # is called at once
                if stays_behind:  # noqa: B023
                    with commits:  # so that others, which began later, commit first
                        commits.wait(timeout=0.01)
                for id in shared:  # noqa: B023
                    write(session, id, reason)  # noqa: B023

            with sqlaudit.AuditContextManager(user_id=user, reason=reason):
                until_it_passes(sessions, work)
            with commits:
                written.update([own[thread], *shared])
                commits.notify_all()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS)))

    with sessions() as session:
        found = histories(session)
    assert {id: len(versions) - 1 for id, versions in found.items()} == written
    began = {version.audit_changeset_id: version.valid_from for id in own for version in found[id]}
    moved = 0
    for versions in found.values():
        for writes, version in enumerate(versions[1:], 1):
            assert version.writes == writes
            assert version.written_by == version.audit_reason
            assert version.audit_changed_by == f"thread {version.audit_reason.split('/')[0]}"
            moved += version.valid_from > began[version.audit_changeset_id]
    assert moved, "no transaction that began first wrote last"
    changesets = Counter(version.audit_changeset_id for versions in found.values() for version in versions[1:])
    assert set(changesets.values()) == {3}
    assert len(changesets) == THREADS * TRANSACTIONS


# --- two, in a given order --------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> list[datetime]:
    """Instants, one second apart, that have been given out."""
    given: list[datetime] = []

    def tick() -> datetime:
        given.append(datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=len(given)))
        return given[-1]

    sqlaudit.set_config(sqlaudit.SQLAuditConfig(clock=tick))
    return given


@pytest.fixture
def other_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def as_user(user: str, work: Callable[[], Any]) -> Any:
    with sqlaudit.AuditContextManager(user_id=user):
        return work()


def overtake(sessions: sessionmaker[Session], model: type[Any], *, reading: bool) -> bool:
    """Let a transaction that begins first write account 9 last; tell whether the database lets it.

    :param reading: whether it has read account 9 before
    """
    with sessions.begin() as session:
        session.add_all(model(id=id) for id in (1, 5, 9))
    with sessions() as first, sessions() as second:
        mine, shared = (first.get_one(model, id) for id in (1, 9))
        others = second.get_one(model, 9)
        first.commit()
        second.commit()
        with sqlaudit.AuditContextManager(user_id="first"):
            mine.written_by = "first"
            first.flush()
            if reading:
                first.refresh(shared)
        with sqlaudit.AuditContextManager(user_id="second"):
            others.written_by = "second"
            second.commit()
        with sqlaudit.AuditContextManager(user_id="first"):
            shared.written_by = "first, later"
            try:
                first.commit()
            except sa.exc.DBAPIError as error:
                if not is_conflict(error):
                    raise
                return False
            return True


@pytest.mark.parametrize("reading", [False, True])
def test_a_transaction_that_began_first_and_wrote_last_comes_last(
    sessions: sessionmaker[Session], clock: list[datetime], reading: bool
) -> None:
    passed = overtake(sessions, PlainAccount, reading=reading)
    assert overtake(sessions, Account, reading=reading) == passed

    with sessions() as session:
        found = histories(session)
    _, first, second = clock
    told = {
        id: [(version.valid_from, version.audit_changed_by, version.written_by) for version in versions[1:]]
        for id, versions in found.items()
    }
    if passed:
        late = second + timedelta(microseconds=1)
        assert told == {
            1: [(first, "first", "first")],
            5: [],
            9: [(second, "second", "second"), (late, "first", "first, later")],
        }
        assert found[1][1].audit_changeset_id == found[9][2].audit_changeset_id
    else:
        assert told == {1: [], 5: [], 9: [(second, "second", "second")]}


@pytest.mark.parametrize("sessions", ["READ COMMITTED"], indirect=True)
def test_inserts_of_different_keys_do_not_wait_for_each_other(
    sessions: sessionmaker[Session], other_thread: ThreadPoolExecutor
) -> None:
    with sessions.begin() as session:
        session.add_all([Account(id=1), Account(id=9)])

    def insert() -> None:
        with sessions.begin() as second:
            second.add(Account(id=6))

    with sessions() as first:
        first.add(Account(id=5))
        first.flush()
        other_thread.submit(insert).result(PATIENCE)
        first.commit()

    with sessions() as session:
        assert {id: len(versions) for id, versions in histories(session).items()} == {1: 1, 5: 1, 6: 1, 9: 1}


@pytest.mark.parametrize("sessions", ["READ COMMITTED"], indirect=True)
def test_updates_of_different_rows_do_not_wait_for_each_other(
    sessions: sessionmaker[Session], other_thread: ThreadPoolExecutor
) -> None:
    with sessions.begin() as session:
        session.add_all([Account(id=id) for id in (1, 2)])

    def update() -> None:
        with sessions.begin() as second:
            write(second, 2, "second")

    with sessions() as first:
        write(first, 1, "first")
        other_thread.submit(update).result(PATIENCE)
        first.commit()

    with sessions() as session:
        assert {id: len(versions) for id, versions in histories(session).items()} == {1: 2, 2: 2}


def by_objects(session: Session, ids: Collection[int]) -> None:
    for account in session.scalars(sa.select(Account).where(Account.id.in_(ids))).all():
        account.writes = Account.writes + 1
    session.flush()


def by_one_statement(session: Session, ids: Collection[int]) -> None:
    statement = sa.update(Account).where(Account.id.in_(ids)).values(writes=Account.writes + 1)
    session.execute(statement, execution_options={"synchronize_session": False})


def by_executions(session: Session, ids: Collection[int]) -> None:
    statement = accounts.update().where(accounts.c.id == sa.bindparam("one"))
    session.execute(statement.values(writes=accounts.c.writes + 1), [{"one": id} for id in sorted(ids)])


WRITERS: list[Callable[[Session, Collection[int]], None]] = [by_objects, by_one_statement, by_executions]


@pytest.mark.parametrize("sessions", ["READ COMMITTED", "REPEATABLE READ"], indirect=True)
def test_flushes_of_many_different_rows_do_not_wait_for_each_other(
    sessions: sessionmaker[Session], other_thread: ThreadPoolExecutor
) -> None:
    """Even if the rows are a good part of the table, which a database may then read as a whole."""
    with sessions.begin() as session:
        session.add_all([Account(id=id) for id in range(32)])

    def update() -> None:
        with sessions.begin() as second:
            by_objects(second, range(0, 32, 4))

    with sessions() as first:
        by_objects(first, range(2, 32, 4))
        other_thread.submit(update).result(PATIENCE)
        first.commit()

    with sessions() as session:
        assert all(len(versions) == 1 + (id % 2 == 0) for id, versions in histories(session).items())


@pytest.mark.parametrize(
    ("sessions", "distance"),
    [("READ COMMITTED", 1), ("REPEATABLE READ", 2)],  # on MariaDB, neighbours may deadlock: see test_schedules
    indirect=["sessions"],
)
def test_writers_of_overlapping_rows_do_not_deadlock(sessions: sessionmaker[Session], distance: int) -> None:
    """Each touches its rows in the order of their keys; UPDATE alone would not, on PostgreSQL."""
    ids = range(0, 12 * distance, distance)
    with sessions.begin() as session:
        session.add_all(Account(id=id) for id in range(12 * distance))
    written: Counter[int] = Counter()
    deadlocks: Counter[str] = Counter()
    lock = threading.Lock()

    def run(thread: int) -> None:
        choice = random.Random(thread)
        for _ in range(8 * EFFORT):
            some, writer, passed = choice.sample(ids, choice.randint(2, 6)), choice.choice(WRITERS), False
            while not passed:
                with sessions() as session:
                    try:
                        writer(session, some)
                        session.commit()
                        passed = True
                    except sa.exc.DBAPIError as error:
                        if not is_conflict(error):
                            raise
                        with lock:
                            deadlocks[writer.__name__] += is_deadlock(error)
            with lock:
                written.update(some)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS)))
    with sessions() as session:
        found = histories(session)
    assert {id: len(versions) - 1 for id, versions in found.items() if len(versions) > 1} == written
    assert not +deadlocks


@pytest.mark.parametrize("sessions", ["READ COMMITTED"], indirect=True)
@pytest.mark.parametrize("writer", [by_objects, by_one_statement])
def test_writers_of_neighbours_do_not_deadlock_if_they_are_late(
    sessions: sessionmaker[Session], writer: Callable[[Session, Collection[int]], None]
) -> None:
    """Accounts 1 and 4 have versions of a later instant, so their versions are closed by themselves.

    On MariaDB, a new version of account 2 or 5 locks the place where the version of account 1 or 4 is closed.
    """
    day = iter([1, 3, 2, 2])
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(clock=lambda: datetime(2024, 1, next(day), tzinfo=UTC)))
    with sessions.begin() as session:
        session.add_all(Account(id=id) for id in range(7))
    with sessions.begin() as session:
        by_one_statement(session, [1, 4])
    both, closes = threading.Barrier(2), Counter[int]()

    def meet(connection: sa.Connection, cursor: Any, statement: str, *rest: Any) -> None:
        if "UPDATE accounts_history " in statement:
            closes[threading.get_ident()] += 1
            if closes[threading.get_ident()] == 2:
                both.wait(PATIENCE)

    def run(ids: Collection[int]) -> None:
        with sessions.begin() as session:
            writer(session, ids)

    engine = sessions.kw["bind"]
    sa.event.listen(engine, "before_cursor_execute", meet)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, [(2, 4), (1, 5)]))
    sa.event.remove(engine, "before_cursor_execute", meet)
    assert list(closes.values()) == [2, 2]
    with sessions() as session:
        assert [len(versions) for versions in histories(session).values()] == [1, 3, 2, 1, 3, 2, 1]


def test_an_insert_that_waits_for_a_delete_of_the_same_key_follows_its_tombstone(
    sessions: sessionmaker[Session], other_thread: ThreadPoolExecutor
) -> None:
    with sessions.begin() as session:
        session.add(Account(id=1))
    inserting = threading.Event()

    def work(session: Session) -> None:
        session.add(Account(id=1, written_by="second"))
        inserting.set()
        session.flush()

    with sessions() as first:
        first.delete(first.get_one(Account, 1))
        as_user("first", first.flush)
        inserted: Future[None] = other_thread.submit(as_user, "second", lambda: until_it_passes(sessions, work))
        assert inserting.wait(PATIENCE)
        first.commit()
    inserted.result(PATIENCE)

    with sessions() as session:
        told = session.execute(
            sa.select(Account.History.audit_operation, Account.History.audit_changed_by).order_by("audit_version")
        ).all()
    assert told == [("insert", None), ("delete", "first"), ("insert", "second")]


# --- bulk statements --------------------------------------------------------------------------------------------


STATEMENTS = {
    "update": sa.update(Account).where(Account.writes < 5).values(written_by="first"),
    "delete": sa.delete(Account).where(Account.writes < 5),
    "update of a named row": sa.update(Account).where(Account.id == 6).values(written_by="first"),
    "delete of a named row": sa.delete(Account).where(Account.id == 6),
}
MEANWHILE: dict[str, Callable[[Session], Any]] = {
    "a row comes to match": lambda session: setattr(session.get_one(Account, 9), "writes", 0),
    "a row is added": lambda session: session.add(Account(id=6, writes=1)),
    "another row changes": lambda session: setattr(session.get_one(Account, 9), "writes", 8),
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_writes_no_row_that_its_history_does_not_show(
    sessions: sessionmaker[Session], clock: list[datetime], name: str, meanwhile: str
) -> None:
    """Another transaction commits when the rows of a statement have been found, and before it runs."""
    with sessions.begin() as session:
        session.add_all([Account(id=1), Account(id=2, writes=1), Account(id=9, writes=9)])
    engine, others = sessions.kw["bind"], iter([MEANWHILE[meanwhile]])
    timeout = "SET lock_timeout = '100ms'" if engine.name == "postgresql" else "SET innodb_lock_wait_timeout = 0"

    def let_the_other_commit(
        connection: sa.Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement.startswith(("UPDATE accounts ", "DELETE FROM accounts ")):
            for work in others:  # MariaDB's REPEATABLE READ keeps it out, as it would without us
                with suppress(sa.exc.OperationalError), sessions.begin() as second:
                    second.execute(sa.text(timeout))
                    work(second)

    sa.event.listen(engine, "before_cursor_execute", let_the_other_commit)
    until_it_passes(sessions, lambda session: session.execute(STATEMENTS[name]))
    sa.event.remove(engine, "before_cursor_execute", let_the_other_commit)
    assert next(others, None) is None
    with sessions() as session:
        histories(session)


def test_a_statement_waits_for_a_row_and_finds_it_as_it_is_then(
    sessions: sessionmaker[Session], other_thread: ThreadPoolExecutor
) -> None:
    with sessions.begin() as session:
        session.add_all([Account(id=id) for id in (1, 2)])
    began = threading.Event()

    def work(session: Session) -> None:
        began.set()
        session.execute(sa.update(Account).where(Account.written_by.is_(None)).values(writes=7))

    with sessions() as first:
        write(first, 1, "first")
        written: Future[None] = other_thread.submit(until_it_passes, sessions, work)
        assert began.wait(PATIENCE)
        first.commit()
    written.result(PATIENCE)
    with sessions() as session:
        found = histories(session)
    assert [version.writes for version in found[1]] == [0, 1]
    assert [version.writes for version in found[2]] == [0, 7]


@pytest.mark.parametrize("sessions", ["READ COMMITTED"], indirect=True)
def test_many_statements_on_overlapping_rows_leave_one_line_of_versions_each(sessions: sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.add_all(Account(id=id) for id in range(1, 21))

    def run(thread: int) -> None:
        choice = random.Random(thread)
        for number in range(10):
            ids = choice.sample(range(1, 21), 8)
            mark = f"{thread}/{number}"
            statement = sa.update(Account).where(Account.id.in_(ids), Account.writes < 10**6)
            until_it_passes(
                sessions,
                lambda session: session.execute(
                    statement.values(writes=Account.writes + 1, written_by=mark)  # noqa: B023  # is called at once
                ),
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    with sessions() as session:
        found = histories(session)
        assert sum(len(versions) - 1 for versions in found.values()) == 8 * 10 * 8
