"""How much happened, on which days, in which tables, by whom, and in which runs?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Date,
    Integer,
    Select,
    String,
    func,
    literal,
    literal_column,
    null,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sqlaudit.changes import Operation
from sqlaudit.period import UTCDateTime
from sqlaudit.retrieval.changesets import known_tables, read_all
from sqlaudit.sql.dialects import MYSQL
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
    """Return what happened on some days. For each bind, a statement for each 100 tracked tables.

    Another one follows for each 100 tables in which anything happened.

    :param begin: the begin of the first day, in UTC
    """
    places = known_tables(session)
    tables = [table for place in places for table in place.tables]
    numbers = {table: number for number, table in enumerate(tables)}

    def versions(table: TrackedTable, *columns: ColumnElement[Any]) -> Select[Any]:
        is_recent = table.valid_from >= _instant(begin), table.valid_from < _instant(begin + days * _DAY)
        is_change = table.role("operation") != _BASELINE
        return select(*columns).where(*is_recent, is_change)

    def days_of(table: TrackedTable) -> Any:
        found = versions(table, utc_day(table.valid_from).label("day")).subquery().c
        return select(literal(numbers[table], Integer), found.day, func.count()).group_by(found.day)

    def users_and_runs_of(table: TrackedTable) -> Any:
        who, run = table.role("changed_by"), text_under(table.role("extra"), "run_id")
        columns = who.label("who"), run.label("run"), table.valid_from.label("at")
        each = versions(table, *columns).subquery().c
        grouped = select(each.who, each.run, func.count().label("count"), func.max(each.at).label("latest"))
        found = grouped.group_by(each.who, each.run).cte(f"activity_{numbers[table]}").c
        count, nothing = func.sum(found.count).label("count"), sql_cast(null(), String).label("run")
        users = select(_USER, found.who, nothing, count, func.max(found.latest).label("latest"))
        users = users.group_by(found.who).order_by(count.desc()).limit(_MOST)
        runs = select(_RUN, found.who, found.run, found.count, found.latest).where(found.run.is_not(None))
        runs = runs.order_by(found.latest.desc()).limit(_MOST)
        return select(*union_all(*(select(*part.subquery().c) for part in (users, runs))).subquery().c)

    found_days, found_tables = Counter[int](), Counter[str]()
    busy: set[TrackedTable] = set()
    for number, day, count in read_all(session, places, days_of, {}):
        found_days[(day - begin.date()).days] += count
        found_tables[tables[number].live.fullname] += count
        busy.add(tables[number])
    busy_places = (replace(place, tables=tuple(filter(busy.__contains__, place.tables))) for place in places)
    users, runs = Counter[str | None](), []
    for kind, who, *run in read_all(session, busy_places, users_and_runs_of, {}):
        if kind:
            runs.append((who, *run))
        else:
            users[who] += int(run[1])
    return Activity(found_days, found_tables, users, list(_runs(runs)))


def _instant(at: datetime) -> ColumnElement[datetime]:
    return literal(at, UTCDateTime())


_BASELINE: Final[ColumnElement[str]] = literal_column(f"'{Operation.BASELINE.value}'")
_USER, _RUN = (literal_column(str(kind), Integer).label("kind") for kind in (0, 1))


class utc_day(FunctionElement[date]):
    """The day of an instant in UTC. It costs less than comparing the instant with the begins of many days."""

    type = Date()
    inherit_cache = True


@compiles(utc_day)
def _day_in_utc(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST(({compiler.process(element.clauses, **kw)} AT TIME ZONE 'UTC') AS DATE)"


@compiles(utc_day, "sqlite")
def _day_of_text(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:
    return f"substr({compiler.process(element.clauses, **kw)}, 1, 10)"


@compiles(utc_day, *MYSQL)
def _day_of_utc(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS DATE)"


def _runs(rows: Iterable[Any]) -> Iterator[Run]:
    """Yield the latest runs of all tables, each once."""
    runs: dict[tuple[str, str | None], Run] = {}
    for who, run_id, count, latest in rows:
        known = runs.get((run_id, who), Run(run_id, who, 0, latest))
        runs[run_id, who] = Run(run_id, who, known.changes + int(count), max(latest, known.latest))
    yield from sorted(runs.values(), key=lambda run: run.latest, reverse=True)[:_MOST]
