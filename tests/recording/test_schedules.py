"""Transactions that overlap in every order: none that plain SQLAlchemy passes fails with us, and each is in history.

The clock goes back with every transaction, so that every version is late and has to give way.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from itertools import count, product
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

import sqlaudit
from databases import Server
from effort import EFFORT
from invariants import check_history
from overlap import (
    PATIENCE,
    Account,
    Base,  # noqa: F401  # whose tables the tests find
    PlainAccount,
    histories,
    is_conflict,
    until_it_passes,
    write,
)

pytestmark = [pytest.mark.requires("concurrent_writes"), pytest.mark.new_tables]

PAUSE = 0.003
"""Seconds after which the database is asked whether a step that has not returned waits for another transaction."""
ENOUGH = 200
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.fixture
def clock() -> None:
    """Every transaction is a second earlier than the one before."""
    seconds = count()
    sqlaudit.set_config(
        sqlaudit.SQLAuditConfig(clock=lambda: datetime(2024, 1, 1, tzinfo=UTC) - timedelta(seconds=next(seconds)))
    )


@pytest.fixture(params=LEVELS)
def sessions(request: pytest.FixtureRequest, database: Server, clock: None) -> Iterator[sessionmaker[Session]]:
    engine = database.create_engine(pool_size=20, isolation_level=request.param)
    sessions = sessionmaker(engine, expire_on_commit=False)
    sqlaudit.register_hooks(sessions)
    yield sessions
    sqlaudit.unregister_hooks(sessions)
    engine.dispose()


# --- schedules --------------------------------------------------------------------------------------------------

Step = Callable[[Session, type[Any], int, int, str], None]


def begin(session: Session, model: type[Any], first: int, distance: int, mark: str) -> None:
    session.scalars(sa.select(model.writes).where(model.id == first + 1)).all()  # the snapshot is taken here


def write_a(session: Session, model: type[Any], first: int, distance: int, mark: str) -> None:
    write(session, first, mark, model)


def write_b(session: Session, model: type[Any], first: int, distance: int, mark: str) -> None:
    write(session, first + distance, mark, model)


def write_both(session: Session, model: type[Any], first: int, distance: int, mark: str) -> None:
    session.execute(
        sa.update(model).where(model.id.in_([first, first + distance])).values(writes=model.writes + 1, written_by=mark)
    )


def commit(session: Session, model: type[Any], first: int, distance: int, mark: str) -> None:
    session.commit()


SHAPES: dict[str, Sequence[Step]] = {
    "A, B": (begin, write_a, write_b, commit),
    "B, A": (begin, write_b, write_a, commit),
    "A and B": (begin, write_both, commit),
    "A": (begin, write_a, commit),
    "B": (begin, write_b, commit),
}
PAIRS = [
    ("A, B", "A, B"),
    ("A, B", "B, A"),
    ("A, B", "A and B"),
    ("B, A", "A and B"),
    ("A and B", "A and B"),
    ("A", "B"),
]


class Transaction:
    """One of a schedule: takes its steps, as it is told to, in a thread of its own."""

    def __init__(self, session: Session, id: int, steps: Sequence[Step], *arguments: Any) -> None:
        self.session = session
        self.id = id
        self.arguments = arguments
        self.left = list(steps)
        self.error: sa.exc.DBAPIError | None = None
        self.future: Future[None] = Future()
        self.future.set_result(None)
        self.pool = ThreadPoolExecutor(1)

    @property
    def waits(self) -> bool:
        return not self.future.done()

    def submit(self) -> None:
        self.future = self.pool.submit(self.take, self.left.pop(0))

    def take(self, step: Step) -> None:
        if self.error is None:
            try:
                with sqlaudit.AuditContextManager(user_id=self.arguments[-1]):
                    step(self.session, *self.arguments)
            except sa.exc.DBAPIError as error:
                self.error = error
                self.left.clear()
                self.session.rollback()

    def end(self) -> None:
        self.pool.shutdown()
        self.session.close()
        self.future.result()
        assert self.error is None or is_conflict(self.error), self.error


def settle(database: Server, transactions: Sequence[Transaction]) -> None:
    """Wait until each has taken its step, or waits for another."""
    until = monotonic() + PATIENCE
    wait([each.future for each in transactions], PAUSE)
    while running := {each.id for each in transactions if each.waits}:
        if running <= database.waiting():
            return
        assert monotonic() < until, "one goes on for ever"
        wait([each.future for each in transactions], PAUSE)


Choose = Callable[[list[int]], int]
"""Chooses of the transactions that have steps left, and do not wait, whose turn it is."""


def play(
    sessions: sessionmaker[Session],
    database: Server,
    model: type[Any],
    first: int,
    distance: int,
    shapes: Sequence[str],
    choose: Choose,
    together: bool,
) -> list[bool]:
    """Run transactions on the accounts A, which is ``first``, and B, and tell which of them passed.

    :param together: all take their first step before any is chosen
    """
    all_: list[Transaction] = []
    for place, shape in enumerate(shapes):
        session = sessions()
        id = database.session_id(session.connection())
        all_.append(Transaction(session, id, SHAPES[shape], model, first, distance, str(place)))
    if together:
        for each in all_:
            each.submit()
            settle(database, all_)
    while any(each.left for each in all_):
        free = [place for place, each in enumerate(all_) if each.left and not each.waits]
        if not free:  # a deadlock, which the database will see
            assert wait([each.future for each in all_ if each.waits], PATIENCE, FIRST_COMPLETED).done, "a deadlock"
            continue
        all_[choose(free)].submit()
        settle(database, all_)
    assert not wait([each.future for each in all_], PATIENCE).not_done, "one waits for ever"
    for each in all_:
        each.end()
    return [each.error is None for each in all_]


class Schedule:
    """An order of steps: first as it is given, then always the first transaction that can go on.

    :ivar others: the orders that branch off behind what was given
    """

    def __init__(self, given: Sequence[int] = ()) -> None:
        self.given = list(given)
        self.taken: list[int] = []
        self.others: list[list[int]] = []

    def __call__(self, free: list[int]) -> int:
        place = len(self.taken)
        if place < len(self.given):
            chosen = self.given[place] if self.given[place] in free else free[0]
        else:
            chosen, *others = free
            self.others += [[*self.taken, other] for other in others]
        self.taken.append(chosen)
        return chosen


def fill(sessions: sessionmaker[Session]) -> Iterator[int]:
    """Make accounts, and give those that the schedules begin with, one after the other."""
    ids = range(0, 10 * ENOUGH, 10)
    with sessions.begin() as session:
        for model in (Account, PlainAccount):
            session.execute(sa.insert(model), [{"id": id + more} for id in ids for more in range(3)])
    return iter(ids)


class Ledger:
    """Plays schedules twice, without us and with us, and keeps how they went."""

    def __init__(self, sessions: sessionmaker[Session], database: Server, distance: int = 2) -> None:
        self.sessions = sessions
        self.database = database
        self.distance = distance
        self.ids = fill(sessions)
        self.writes: Counter[int] = Counter()
        self.worse: list[Any] = []

    def play(self, shapes: Sequence[str], choose: Schedule, together: bool = False) -> None:
        def pass_(model: type[Any], first: int, choose: Schedule) -> list[bool]:
            return play(self.sessions, self.database, model, first, self.distance, shapes, choose, together)

        plain = pass_(PlainAccount, next(self.ids), choose)
        for _ in range(3):  # the database chooses who of a deadlock may go on
            first = next(self.ids)
            ours = pass_(Account, first, Schedule(choose.taken))
            for shape, passed in zip(shapes, ours, strict=True):
                self.writes.update({first: passed and "A" in shape, first + self.distance: passed and "B" in shape})
            if sum(ours) >= sum(plain):
                return
        self.worse.append((shapes, choose.taken, plain, ours))

    def check(self) -> None:
        """Fail unless what passed, and nothing else, is in history."""
        with self.sessions() as session:
            check_history(session, Account)
            found = histories(session)
        for id, writes in self.writes.items():
            assert [each.writes for each in found[id]] == list(range(writes + 1))
            assert all(each.written_by == each.audit_changed_by for each in found[id])


@pytest.mark.parametrize("shapes", PAIRS, ids=" / ".join)
def test_two_transactions_pass_whenever_they_did_without_us(
    sessions: sessionmaker[Session], database: Server, shapes: Sequence[str]
) -> None:
    """Every order of their steps that makes a difference.

    A transaction begins with a read, which sees the same wherever it comes between two commits of others: the two
    begin together, unless one has ended before the other begins.
    """
    ledger = Ledger(sessions, database)
    for first, second in ((0, 1), (1, 0)):
        ledger.play(shapes, Schedule([first] * len(SHAPES[shapes[first]]) + [second] * len(SHAPES[shapes[second]])))
    todo = [Schedule()]
    while todo:
        schedule = todo.pop()
        ledger.play(shapes, schedule, together=EFFORT == 1)
        todo += [Schedule(given) for given in schedule.others]
    ledger.check()
    assert not ledger.worse


def sample(ledger: Ledger) -> None:
    choice = random.Random(3)
    for _ in range(12):
        order = [choice.randrange(3) for _ in range(12)]
        ledger.play(choice.choices(list(SHAPES), k=3), Schedule(order))
    ledger.check()


@pytest.mark.parametrize("sessions", ["READ COMMITTED", "REPEATABLE READ"], indirect=True)
def test_three_transactions_pass_whenever_they_did_without_us(
    sessions: sessionmaker[Session], database: Server
) -> None:
    ledger = Ledger(sessions, database)
    sample(ledger)
    assert not ledger.worse


@pytest.mark.requires("partial_indexes")
@pytest.mark.parametrize("sessions", ["READ COMMITTED", "REPEATABLE READ"], indirect=True)
def test_three_transactions_on_neighbours_pass_whenever_they_did_without_us(
    sessions: sessionmaker[Session], database: Server
) -> None:
    """Where the open version is guarded by a generated column, neighbours may deadlock.

    Its unique index has an entry (B, 0) that was deleted and is made again, and InnoDB's look for duplicates locks
    the gap before it, into which (A, 1) goes when A's version is closed: who writes A waits for who has written B,
    and deadlocks with it if that one writes A next.
    """
    ledger = Ledger(sessions, database, distance=1)
    sample(ledger)
    assert not ledger.worse


@pytest.mark.parametrize("sessions", ["SERIALIZABLE"], indirect=True)
def test_three_serializable_transactions_are_in_history_if_they_pass(
    sessions: sessionmaker[Session], database: Server
) -> None:
    """More may fail with us: PostgreSQL takes two that read and wrote one page of an index for a conflict."""
    sample(Ledger(sessions, database))


# --- phantoms ---------------------------------------------------------------------------------------------------

accounts: Any = Account.__table__

STATEMENTS: dict[str, Callable[[Session], Any]] = {
    "update": lambda s: s.execute(sa.update(Account).where(Account.writes == 1).values(written_by="first")),
    "delete": lambda s: s.execute(sa.delete(Account).where(Account.writes == 1)),
    "update of keys": lambda s: s.execute(
        sa.update(Account).where(Account.writes == 1).values(id=Account.id + 100),
        execution_options={"synchronize_session": False},
    ),
    "updates": lambda s: s.execute(
        accounts.update().where(accounts.c.writes == sa.bindparam("w")).values(written_by=sa.bindparam("by")),
        [{"w": 1, "by": "first"}, {"w": 2, "by": "again"}],
    ),
    "deletes": lambda s: s.execute(
        accounts.delete().where(accounts.c.writes == sa.bindparam("w")), [{"w": 1}, {"w": 2}, {"w": 7}]
    ),
}
MEANWHILE: dict[str, Callable[[Session], Any]] = {
    "starts to match": lambda s: s.execute(sa.update(Account).where(Account.id == 5).values(writes=1)),
    "matches another": lambda s: s.execute(sa.update(Account).where(Account.id == 3).values(writes=2)),
    "stops to match": lambda s: s.execute(sa.update(Account).where(Account.id == 3).values(writes=0)),
    "is inserted": lambda s: s.add(Account(id=4, writes=1)),
    "is inserted at the end": lambda s: s.execute(sa.insert(Account).values(id=9, writes=1)),
    "is deleted": lambda s: s.execute(sa.delete(Account).where(Account.id == 3)),
    "changes its key": lambda s: s.execute(sa.update(Account).where(Account.id == 3).values(id=4)),
}


LEVEL = random.Random(5)
"""Chooses for each a level at which they meet."""


@pytest.mark.parametrize(
    ("sessions", "statement", "meanwhile"),
    [(LEVEL.choice(LEVELS[:2]), *pair) for pair in product(STATEMENTS, MEANWHILE)],
    indirect=["sessions"],
)
def test_a_row_that_another_transaction_commits_under_a_statement_is_written_only_if_recorded(
    sessions: sessionmaker[Session], database: Server, statement: str, meanwhile: str
) -> None:
    """The other transaction runs when the rows are locked, and commits before they are written, unless it waits."""
    with sessions.begin() as session:
        session.add_all([Account(id=id, writes=writes) for id, writes in ((1, 1), (3, 1), (5, 0), (7, 2))])
    others: list[Future[Any]] = []

    def work(session: Session) -> None:
        MEANWHILE[meanwhile](session)

    def before(connection: Any, cursor: Any, sql: str, *args: Any) -> None:
        if not others and sql.startswith(("UPDATE accounts ", "DELETE FROM accounts ")):
            others.append(Future())  # the other transaction's statements pass here, too
            others.append(pool.submit(until_it_passes, sessions, work))
            until = monotonic() + PATIENCE
            while wait(others[1:], PAUSE).not_done and not database.waiting() and monotonic() < until:
                pass

    def first(session: Session) -> None:
        STATEMENTS[statement](session)

    engine = sessions.kw["bind"]
    with ThreadPoolExecutor(1) as pool:
        sa.event.listen(engine, "before_cursor_execute", before)
        until_it_passes(sessions, first)
        others[1].result(PATIENCE)
        sa.event.remove(engine, "before_cursor_execute", before)  # not while the other thread calls it
    with sessions() as session:
        check_history(session, Account)
