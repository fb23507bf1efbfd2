"""A feed gives each changeset once, in the order of time, and skips none, in whatever order transactions commit."""

import time
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import sqlaudit
from clock import at
from overlap import PATIENCE
from sqlaudit import (
    AuditContextManager,
    QueryError,
    SQLAuditConfig,
    changes_since,
    changesets,
    changesets_page,
    set_config,
)

NO_AGE = timedelta(0)


class Base(DeclarativeBase):
    pass


@sqlaudit.track_table()
class Row(Base):
    __tablename__ = "feed_rows"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))


class Consumer:
    """Reads the feed in short transactions, and keeps its cursor and what it was given."""

    def __init__(self, sessions, **options):
        self.sessions, self.options = sessions, options
        self.cursor, self.given = None, []

    def read(self):
        with self.sessions() as session:
            page = changes_since(session, self.cursor, **self.options)
        self.cursor = page.next
        self.given += page
        return len({entry.changeset_id for entry in page})

    def read_until(self, count):
        """Read until so many entries were given; transactions of other tests on the server may be running."""
        end = time.monotonic() + 3 * PATIENCE
        while len(self.given) < count and time.monotonic() < end:
            self.read()
            time.sleep(0.01)
        return [entry.reason for entry in self.given]


def set_time(seconds):
    set_config(SQLAuditConfig(clock=lambda: at(seconds)))


def write(sessions, seconds, id):
    """Return a session that has written a row at an instant, under its number as the reason, and not committed it."""
    set_time(seconds)
    session = sessions()
    with AuditContextManager(reason=str(id)):
        session.add(Row(id=id))
        session.flush()
    return session


def test_no_transaction_that_commits_late_is_skipped(sessions, engine):
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    is_numbered = engine.dialect.name == "postgresql"
    consumer = Consumer(sessions, min_age=NO_AGE if is_numbered else timedelta(seconds=10))
    late = write(sessions, 1, 1)
    with write(sessions, 2, 2) as session:
        set_time(3)
        consumer.read()
        session.commit()
    set_time(4)
    consumer.read()
    with write(sessions, 5, 3) as session:
        session.commit()
    set_time(6)
    for _ in range(3):
        consumer.read()
    assert consumer.given == []
    late.commit()
    late.close()
    set_time(7 if is_numbered else 20)
    assert consumer.read_until(3) == ["1", "2", "3"]
    assert consumer.read() == 0


def test_a_transaction_that_looks_for_its_rows_before_it_writes_is_not_skipped(sessions, engine):
    """A bulk statement has an instant, and may then look or wait for rows for long."""
    if engine.dialect.name != "postgresql":
        pytest.skip("no other transactions have numbers")
    consumer = Consumer(sessions, min_age=NO_AGE)
    with sessions() as late:
        late.execute(sa.select(Row).with_for_update())
        set_time(2)
        consumer.read()
        with write(sessions, 3, 2) as session:
            session.commit()
        set_time(4)
        for _ in range(3):
            consumer.read()
        set_time(1)
        with AuditContextManager(reason="1"):
            late.add(Row(id=1))
            late.commit()
    set_time(5)
    assert consumer.read_until(2) == ["1", "2"]


def test_what_committed_out_of_order_is_given_in_order_once_it_has_an_age(sessions, engine):
    """Where transactions have no numbers, what is younger than the longest of them waits."""
    consumer = Consumer(sessions, min_age=timedelta(seconds=10))
    for seconds, id in ((3, 1), (1, 2), (2, 3)):
        with write(sessions, seconds, id) as session:
            session.commit()
        set_time(4)
        consumer.read()
        assert consumer.given == []
    set_time(13)  # the age of the newest is not more than 10 seconds
    assert consumer.read_until(2) == ["2", "3"]
    consumer.read()
    assert len(consumer.given) == 2
    set_time(14)
    assert consumer.read_until(3) == ["2", "3", "1"]


def test_a_feed_gives_each_changeset_once_at_equal_instants(sessions):
    for instant, count in ((1, 3), (2, 5), (3, 1)):
        set_time(instant)
        for _ in range(count):
            with sessions.begin() as session:
                for user in ("ada", "bob"):
                    with AuditContextManager(user_id=user):
                        session.add(Row(id=(session.scalar(sa.select(sa.func.max(Row.id))) or 0) + 1))
                        session.flush()
    set_time(4)
    with sessions() as session:
        everything = changesets(session)
    for size in (1, 2, 4, 99):
        consumer = Consumer(sessions, size=size, min_age=NO_AGE)
        consumer.read_until(18)
        assert consumer.given == everything
        assert consumer.read() == 0


def test_a_changeset_whose_instants_lie_apart_is_given_once(sessions):
    """A transaction that began earlier supersedes a later version, so that one of its versions has a later instant."""
    with write(sessions, 5, 1) as session:
        session.commit()
    with write(sessions, 1, 2) as session:
        session.get_one(Row, 1).name = "moved"
        session.commit()
    consumer = Consumer(sessions, min_age=NO_AGE)
    set_time(3)
    consumer.read()
    set_time(6)
    consumer.read_until(3)
    with sessions() as session:
        assert consumer.given == changesets(session)


@pytest.mark.spread
def test_cursors_and_ages_that_are_invalid_are_refused(sessions):
    with write(sessions, 1, 1) as session:
        session.commit()
    with write(sessions, 2, 2) as session:
        session.commit()
    with sessions() as session:
        with pytest.raises(QueryError, match="another query"):
            changes_since(session, changesets_page(session, size=1).next)
        with pytest.raises(QueryError, match="not a cursor"):
            changes_since(session, "x")
        cursor = changes_since(session).next
        with pytest.raises(QueryError, match="was altered"):
            changes_since(session, cursor[:12] + "f" * 10 + cursor[22:])
        with pytest.raises(QueryError, match="size is 0"):
            changes_since(session, size=0)
        for min_age in (5, timedelta(seconds=-1)):
            with pytest.raises(QueryError, match="Give a timedelta that is not negative"):
                changes_since(session, min_age=min_age)


# --- filters ----------------------------------------------------------------------------------------------------


@sqlaudit.track_table()
class Other(Base):
    __tablename__ = "feed_others"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def lived(sessions):
    """Write the changesets 1 to 12: every third one of another model, and by two users in turn."""
    for number in range(1, 13):
        set_time(number)
        user = "ana" if number % 2 else "ben"
        with AuditContextManager(user, reason=str(number), extra={"job": number % 4}), sessions.begin() as session:
            session.add(Other(id=number) if number % 3 == 0 else Row(id=number))
    set_time(100)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, range(1, 13)),
        ({"model": Other}, [3, 6, 9, 12]),
        ({"model": [Row, Other], "user_id": "ben"}, [2, 4, 6, 8, 10, 12]),
        ({"model": Row, "key": "4"}, [4]),
        ({"since": at(9)}, [9, 10, 11, 12]),
        ({"since": at(9), "model": Other}, [9, 12]),
        ({"extra": {"job": 3}}, [3, 7, 11]),
        ({"reason": "5"}, [5]),
        ({"user_id": "eve"}, []),
    ],
    ids=str,
)
@pytest.mark.spread
@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.usefixtures("lived")
def test_a_feed_gives_what_its_filters_choose(sessions, filters, expected, size):
    consumer = Consumer(sessions, min_age=timedelta(seconds=10), size=size, **filters)
    assert consumer.read_until(len(expected)) == [str(number) for number in expected]
    consumer.read()
    assert consumer.read() == 0
    set_time(200)
    with AuditContextManager("ben", reason="later", extra={"job": 3}), sessions.begin() as session:
        session.add_all([Row(id=99), Other(id=99)])
    set_time(300)
    is_chosen = not {"key", "reason"} & filters.keys() and filters.get("user_id") != "eve"
    consumer.read_until(len(expected) + is_chosen)
    assert [entry.reason for entry in consumer.given[len(expected) :]] == ["later"] * is_chosen


@pytest.mark.usefixtures("lived")
def test_a_consumer_that_changes_its_filters_goes_on_from_where_it_was(sessions):
    consumer = Consumer(sessions, min_age=timedelta(seconds=10), size=2, model=Other)
    assert consumer.read_until(2) == ["3", "6"]
    consumer.options = {"min_age": timedelta(seconds=10)}
    assert consumer.read_until(8) == ["3", "6", "7", "8", "9", "10", "11", "12"]


@pytest.mark.usefixtures("lived")
def test_a_consumer_whose_filters_choose_nothing_comes_along(sessions):
    """It does not read all that it is not interested in again with each call."""
    consumer, twin = (Consumer(sessions, min_age=timedelta(seconds=10), **kw) for kw in ({"reason": "none"}, {}))
    end = time.monotonic() + 3 * PATIENCE
    while len(twin.given) < 12 and time.monotonic() < end:
        consumer.read()
        twin.read()
    consumer.read()
    set_time(200)
    with AuditContextManager(reason="later"), sessions.begin() as session:
        session.add(Row(id=99))
    set_time(300)
    consumer.options = twin.options
    assert consumer.read_until(1) == ["later"]


def test_filters_that_a_feed_does_not_have_are_refused(sessions):
    with sessions() as session:
        for name in ("until", "newest_first", "limit"):
            with pytest.raises(TypeError, match=rf"no keyword argument '{name}'.*since"):
                changes_since(session, **{name: None})
        with pytest.raises(QueryError, match="model is not given"):
            changes_since(session, key=7)
