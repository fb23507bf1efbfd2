"""Every table can be reached, whatever its name: no name is taken for a page, another table or a part of a path."""

from typing import Any
from urllib.parse import urljoin

import pytest
import sqlalchemy as sa
from desk import crawled, links_of, visitor, words_of
from mounts import MOUNTS
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sqlaudit import AuditContextManager, track_table
from sqlaudit.web import HistoryBrowser

NAMES = [
    *("note", "note/row", "note/row/row", "note/check", "note/compare", "row", "/note", "note/", "//"),
    *(".", "..", "../note", "a b?c#d&e;f=g", "ü+\\\"'<b>", "100%", "%2e", "note%2Frow", "note~2Frow", "~"),
]


class Base(DeclarativeBase):
    pass


def _tracked(number: int, name: str) -> Any:
    columns = {"id": sa.Column(sa.Integer, primary_key=True, autoincrement=False)}
    names = {"history_table_name": f"names_history_{number}", "table_label": f"Thing {number}"}
    made = type(f"Thing{number}", (Base,), {"__module__": __name__, "__tablename__": name, **columns})
    return track_table(**names)(made)


THINGS = [_tracked(number, name) for number, name in enumerate(NAMES)]


def happen(sessions: sessionmaker[Session]) -> None:
    for number, thing in enumerate(THINGS):
        with AuditContextManager(f"user {number}"), sessions.begin() as session:
            session.add(thing(id=number))


def is_told(text: str, number: int) -> bool:
    return f"user {number} created Thing {number} {number}" in words_of(text)


@pytest.mark.parametrize("mounted", MOUNTS)
@pytest.mark.spread
def test_every_table_and_row_can_be_reached(sessions: sessionmaker[Session], happened: None, mounted: Any) -> None:
    browser = HistoryBrowser(sessions, Base)
    app, prefix = mounted(browser)
    client = visitor(app)
    first = f"http://127.0.0.1{prefix}/"
    tables = {urljoin(first, link) for link in links_of(client.get(first).text) if "tables/" in link}
    assert tables == {f"http://127.0.0.1{prefix}{browser.path_of(thing)}" for thing in THINGS}
    assert len(tables) == len(NAMES)
    for number, thing in enumerate(THINGS):
        path = prefix + browser.path_of(thing)
        page = client.get(path).text
        assert is_told(page, number), (NAMES[number], words_of(page))
        [row] = {link for link in links_of(page) if "/row?" in link}
        assert urljoin(first, urljoin(path, row)) == f"http://127.0.0.1{prefix}{browser.path_of(thing, number)}"
        assert f"Thing {number} {number}" in words_of(client.get(prefix + browser.path_of(thing, number)).text)
        assert "1 version was checked" in words_of(client.get(f"{path}/check").text)


@pytest.mark.spread
def test_all_links_of_tables_with_any_name_work(sessions: sessionmaker[Session], happened: None) -> None:
    client = visitor(HistoryBrowser(sessions, Base))
    assert len(crawled(client, of_a_kind=1, most=150)) == 150


@pytest.mark.spread
def test_older_links_to_tables_with_slashes_still_work(sessions: sessionmaker[Session], happened: None) -> None:
    client = visitor(HistoryBrowser(sessions, Base))
    for link, number in (
        ("note", 0),
        ("note/row/row?key=1", 1),
        ("note/check/row?key=3", 3),
        ("100%25/row?key=14", 14),
    ):
        assert f"Thing {number} " in words_of(client.get(f"/tables/{link}").text)
    problem = client.get("/tables/note~2Frow/row?key=77")
    assert problem.status_code == 404
    [remedy] = {link for link in links_of(problem.text) if "tables" in link}
    assert is_told(client.get(urljoin("/tables/note~2Frow/row", remedy)).text, 1)
