"""How much happened, on which days, in which tables, by whom, and in which runs?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Integer, case, func, literal, select
from sqlalchemy.orm import Session

from sqlaudit.changes import Operation
from sqlaudit.period import UTCDateTime
from sqlaudit.retrieval.changesets import known_tables, read_all
from sqlaudit.sql.documents import text_under
from sqlaudit.tracking.tables import TrackedTable

_DAY: Final = timedelta(days=1)
_MOST: Final = 20
"""The users and runs that are read of each table."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of an agent or a job.

    :ivar changes: the number of versions that it wrote
    :ivar latest: the instant of the last one
    """

    run_id: str
    changed_by: str | None
    changes: int
    latest: datetime


@dataclass(frozen=True, slots=True)
class Activity:
    """How many versions were written.

    :ivar days: by number of the day, from 0
    :ivar tables: by full name of the live table
    :ivar users: by user, those with the most changes; ``None`` for nobody known
    :ivar runs: the latest runs
    """

    days: Counter[int]
    tables: Counter[str]
    users: Counter[str | None]
    runs: list[Run]


def activity(session: Session, begin: datetime, days: int) -> Activity:
    """Return what happened on some days. Three statements per bind and 100 tracked tables.

    :param begin: the begin of the first day
    """
    places = known_tables(session)
    tables = [table for place in places for table in place.tables]
    numbers = {table: number for number, table in enumerate(tables)}
    ends = [literal(begin + (day + 1) * _DAY, UTCDateTime()) for day in range(days)]

    def versions(table: TrackedTable, *columns: ColumnElement[Any]) -> Any:
        is_recent = table.valid_from >= literal(begin, UTCDateTime()), table.valid_from < ends[-1]
        is_change = table.role("operation") != Operation.BASELINE
        return select(table.valid_from.label("at"), *columns).where(*is_recent, is_change)

    def days_of(table: TrackedTable) -> Any:
        day = case(*((table.valid_from < end, number) for number, end in enumerate(ends[:-1])), else_=days - 1)
        found = versions(table, day.label("day")).subquery().c
        return select(literal(numbers[table], Integer), found.day, func.count()).group_by(found.day)

    def users_of(table: TrackedTable) -> Any:
        found = versions(table, table.role("changed_by").label("who")).subquery().c
        count = func.count()
        most = select(found.who, count.label("count")).group_by(found.who).order_by(count.desc()).limit(_MOST)
        return select(*most.subquery().c)

    def runs_of(table: TrackedTable) -> Any:
        run = text_under(table.role("extra"), "run_id").label("run")
        found = versions(table, table.role("changed_by").label("who"), run).subquery().c
        latest = func.max(found.at).label("latest")
        groups = select(found.run, found.who, func.count().label("count"), latest).where(found.run.is_not(None))
        return select(*groups.group_by(found.run, found.who).order_by(latest.desc()).limit(_MOST).subquery().c)

    found_days, found_tables = Counter[int](), Counter[str]()
    for number, day, count in read_all(session, places, days_of, {}):
        found_days[day] += count
        found_tables[tables[number].live.fullname] += count
    users = Counter[str | None]()
    for who, count in read_all(session, places, users_of, {}):
        users[who] += count
    return Activity(found_days, found_tables, users, list(_runs(read_all(session, places, runs_of, {}))))


def _runs(rows: Iterator[Any]) -> Iterator[Run]:
    """Yield the latest runs of all tables, each once."""
    runs: dict[tuple[str, str | None], Run] = {}
    for run_id, who, count, latest in rows:
        known = runs.get((run_id, who), Run(run_id, who, 0, latest))
        runs[run_id, who] = Run(run_id, who, known.changes + count, max(latest, known.latest))
    yield from sorted(runs.values(), key=lambda run: run.latest, reverse=True)[:_MOST]
