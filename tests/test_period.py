"""Periods: instants come back as they went in, on every database."""

import time
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from sqlaudit import OPEN_END, QueryError, SQLAuditWarning
from sqlaudit.period import TICK, OpenEnd, UTCDateTime, as_utc, is_open, was_valid

METADATA = sa.MetaData()
PERIODS = sa.Table(
    "periods",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("start", UTCDateTime()),
    sa.Column("end", UTCDateTime()),
)
INSTANT = datetime(2024, 6, 1, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
def connection(engine):
    METADATA.create_all(engine)
    with engine.begin() as connection:
        yield connection


@pytest.mark.parametrize(
    "instant",
    [
        INSTANT,
        INSTANT.replace(microsecond=0),
        INSTANT.replace(microsecond=1),
        INSTANT.replace(year=1, month=2),
        OPEN_END,
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("hours", [0, 5, -8])
def test_an_instant_comes_back_in_utc_to_the_microsecond(connection, instant, hours):
    given = instant and instant.astimezone(timezone(timedelta(hours=-abs(hours) if instant == OPEN_END else hours)))
    connection.execute(sa.insert(PERIODS).values(id=1, start=given))
    found = connection.scalar(sa.select(PERIODS.c.start))
    assert found == instant
    assert found is None or found.tzinfo is UTC


def test_the_open_end_as_a_literal_is_the_open_end_as_a_value(connection):
    connection.execute(sa.insert(PERIODS), [{"id": 1, "start": INSTANT, "end": OPEN_END}])
    connection.execute(sa.insert(PERIODS).values(id=2, start=INSTANT, end=OpenEnd()))
    connection.execute(sa.insert(PERIODS), [{"id": 3, "start": INSTANT, "end": INSTANT + TICK}])
    assert connection.scalars(sa.select(PERIODS.c.id).where(is_open(PERIODS.c.end))).all() == [1, 2]
    assert connection.scalars(sa.select(PERIODS.c.end).where(PERIODS.c.id == 2)).one() == OPEN_END


def test_a_period_contains_its_start_and_not_its_end(connection):
    later = INSTANT + timedelta(seconds=1)
    connection.execute(sa.insert(PERIODS), [{"id": 1, "start": INSTANT, "end": later}])
    connection.execute(sa.insert(PERIODS), [{"id": 2, "start": INSTANT, "end": INSTANT}])
    for when, expected in [(INSTANT - TICK, []), (INSTANT, [1]), (later - TICK, [1]), (later, [])]:
        found = connection.scalars(sa.select(PERIODS.c.id).where(was_valid(PERIODS.c.start, PERIODS.c.end, when)))
        assert found.all() == expected


def test_aware_datetimes_become_utc():
    found = as_utc(INSTANT.astimezone(timezone(timedelta(hours=3))))
    assert found == INSTANT
    assert found.tzinfo is UTC


def test_naive_datetimes_are_local_times_with_a_warning(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with pytest.warns(SQLAuditWarning, match="local time"):
            assert as_utc(datetime(2024, 6, 1, 9)) == datetime(2024, 6, 1, tzinfo=UTC)  # noqa: DTZ001  # what is tested
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("bad", ["2024-06-01", date(2024, 6, 1), 0, None], ids=repr)
def test_what_is_no_datetime_raises(bad):
    with pytest.raises(QueryError, match="not a datetime"):
        as_utc(bad)


@pytest.mark.parametrize(
    ("edge", "hours"), [(datetime.max.replace(tzinfo=UTC), -5), (datetime.min.replace(tzinfo=UTC), 5)]
)
def test_what_utc_cannot_express_raises(edge, hours):
    with pytest.raises(QueryError, match="cannot be converted to UTC"):
        as_utc(edge.replace(tzinfo=timezone(timedelta(hours=hours))))
