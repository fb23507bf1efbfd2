"""What does a page of the browser of history cost? Ratios to a page that shows what its bare statement returns.

That page is a plain Starlette application: it loads the objects of one statement in a session, of a class that is
mapped to the history table by hand, and writes their attributes as a table by Jinja2. Both pages are asked for without
a server and a network. A row has ten versions.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import sqlalchemy as sa
from jinja2 import Environment
from sqlalchemy.orm import DeclarativeBase, sessionmaker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from tests.benchmarks.columns import NOON, Columns
from tests.benchmarks.reads import fill_live

from sqlaudit import OPEN_END, Operation, history_of, track_table, unregister_hooks
from sqlaudit.tracking.sources import all_sources
from sqlaudit.web import HistoryBrowser

VERSIONS = 10
TIMES = 30
THEN = NOON + timedelta(minutes=5, seconds=30)
TABLE = Environment(autoescape=True).from_string(
    "<!doctype html><title>{{ title }}</title><table>{% for row in rows %}<tr>{% for value in row %}<td>{{ value }}"
    "</td>{% endfor %}</tr>{% endfor %}</table>"
)


class Base(DeclarativeBase):
    pass


class Plain(DeclarativeBase):
    pass


@track_table()
class Shown(Columns, Base):
    __tablename__ = "benchmark_shown"


def fill(engine: sa.Engine, rows: int) -> None:
    """Write the rows and their versions, each of which a minute after the one before."""
    live, history = Shown.__table__, history_of(Shown).__table__
    values = {
        "name": "name", "email": "a@example.com", "city": "Geneva", "age": 7, "rank": 2, "score": 1.5, "active": True,
        "joined": NOON, "phone": "022", "note": "note " * 5, "visits": 3,
    }  # fmt: skip
    with engine.begin() as connection:
        fill_live(connection, Shown, rows, values)
        for number in range(1, VERSIONS + 1):
            begin = NOON + timedelta(minutes=number)
            end = begin + timedelta(minutes=1) if number < VERSIONS else OPEN_END
            audited = {
                "audit_version": number,
                "valid_from": begin,
                "valid_to": end,
                "audit_operation": Operation.INSERT if number == 1 else Operation.UPDATE,
                "audit_changeset_id": UUID(int=number),
                "audit_changed_by": f"user {number % 3}",
                "audit_reason": f"ticket {number}",
            }
            columns: dict[str, Any] = {column.key: column for column in live.c}
            columns |= {"name": sa.literal(f"name {number}"), "rank": sa.literal(number % 4)}
            columns |= {name: sa.literal(value, history.c[name].type) for name, value in audited.items()}
            connection.execute(sa.insert(history).from_select(list(columns), sa.select(*columns.values())))


class Written(Plain):
    """A version, to those who write a page themselves."""

    __table__ = history_of(Shown).__table__


class Live(Plain):
    __table__ = Shown.__table__


def bare_statements() -> dict[str, tuple[str, dict[str, Any], sa.Select[Any]]]:
    """Return the path and the query of each page of a row, and its bare statement."""
    of_row = sa.select(Written).where(Written.id == sa.bindparam("id"))
    latest = of_row.order_by(Written.audit_version.desc()).limit(60)
    then = Written.valid_from <= THEN
    both = sa.select(Written, Live).join(Live, Live.id == Written.id).where(Written.id == sa.bindparam("id"))
    at = {"at": THEN.isoformat()}
    return {
        "row": ("row", {}, latest),
        "row as of an instant": ("row", at, latest),  # for the marks of the slider, too
        "blame": ("blame", {}, latest),
        "diff": ("diff", {"a": 9, "b": 10}, of_row.where(Written.audit_version.in_([9, 10]))),
        "plan of a restore": ("restore", at, both.where(then, Written.valid_to > THEN)),
    }


def bare_page(sessions: sessionmaker[Any], statement: sa.Select[Any]) -> Any:
    def page(request: Request) -> Response:
        with sessions() as session:
            found = session.execute(statement, {"id": int(request.query_params["key"])}).all()
            rows = [[getattr(each, column.key) for each in row for column in each.__table__.c] for row in found]
        return HTMLResponse(TABLE.render(title="bare", rows=rows))

    return Starlette(routes=[Route("/{path:path}", page)])


async def get(application: Any, path: str, query: dict[str, Any]) -> None:
    """Ask an application for a page.

    :raises AssertionError: its status is not 200
    """
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http", "method": "GET", "scheme": "http", "http_version": "1.1", "root_path": "",
        "path": path, "raw_path": path.encode(), "query_string": urlencode(query).encode(),
        "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await application(scope, receive, send)
    assert messages[0]["status"] == 200, b"".join(message.get("body", b"") for message in messages)


def measure_pages(engine: sa.Engine, rounds: int, rows: int, clock: Callable[[], float] = time.perf_counter) -> None:
    """Print what each page of a row costs: the median of the rounds' ratios, and the statements that it executes."""
    Base.metadata.create_all(engine)
    fill(engine, rows)
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.DDL("VACUUM ANALYZE"))
    browser = HistoryBrowser(engine, all_sources())  # there are models of other benchmarks, and none is hidden
    try:
        for name, ratio, statements in asyncio.run(_measured(engine, browser, rounds, rows, clock)):
            print(f"  {'page: ' + name:<50} {ratio:5.2f}  {statements:>25} statements")
    finally:
        unregister_hooks(browser.sessions)
        Base.metadata.drop_all(engine)


async def _measured(
    engine: sa.Engine, browser: HistoryBrowser, rounds: int, rows: int, clock: Callable[[], float]
) -> list[tuple[str, float, int]]:
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    found = []
    for name, (path, query, statement) in bare_statements().items():
        bare, path = bare_page(sessionmaker(engine), statement), f"/tables/{Shown.__tablename__}/{path}"
        keys = _keys(rows)
        for application in (bare, browser):
            await get(application, path, {**query, "key": next(keys)})
        ratios = []
        for _ in range(rounds):
            times = dict.fromkeys((bare, browser), 0.0)
            for _ in range(TIMES):
                for application in times:
                    begin = clock()
                    await get(application, path, {**query, "key": next(keys)})
                    times[application] += clock() - begin
            ratios.append(times[browser] / times[bare])
        sa.event.listen(engine, "before_cursor_execute", add)
        count = 0
        await get(browser, path, {**query, "key": next(keys)})
        sa.event.remove(engine, "before_cursor_execute", add)
        found.append((name, statistics.median(ratios), count))
    return found


def _keys(rows: int) -> Iterator[int]:
    """Yield keys from all over the table."""
    place = 0
    while True:
        place = (place + 7_919) % rows
        yield place + 1
