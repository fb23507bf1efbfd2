"""A browser works in any framework, under any prefix, in any language."""

from typing import Any
from urllib.parse import quote, unquote

import pytest
import sqlalchemy as sa
from desk import Base, crawled, happen, links_of, visitor, words_of
from mounts import MOUNTS, in_starlette
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.routing import Mount

from sqlaudit import unregister_hooks
from sqlaudit.web import HistoryBrowser

__all__ = ["Base", "happen"]


@pytest.mark.parametrize("mounted", MOUNTS)
@pytest.mark.spread
def test_no_link_leads_astray_under_a_prefix(
    sessions: sessionmaker[Session], happened: list[str], mounted: Any
) -> None:
    app, prefix = mounted(HistoryBrowser(sessions, Base))
    client = visitor(app)
    pages = crawled(client, f"http://127.0.0.1{prefix}/", most=30)
    assert all(url.startswith(f"http://127.0.0.1{prefix}/") for url in pages)
    assert len(pages) == 30
    assert "You see" in words_of(client.get(f"{prefix}/tables/tickets/row?key=1&at=2024-01-01").text)
    assert client.get(f"{prefix}/static/history.css").headers["content-type"].startswith("text/css")
    assert client.get(f"{prefix}/static/history.css").status_code == 200
    assert links_of(client.get(prefix).text)


def behind_a_proxy(app: Any) -> Any:
    """Return an application behind a proxy that removes a part of the path."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/behind/it"} if scope["type"] == "http" else scope, receive, send)

    return served


@pytest.mark.spread
def test_a_proxy_may_remove_a_part_of_the_path(sessions: sessionmaker[Session], happened: list[str]) -> None:
    browser = HistoryBrowser(sessions, Base)
    for app, prefix in ((browser, ""), in_starlette(browser)):
        client = visitor(behind_a_proxy(app))
        assert len(crawled(client, f"http://127.0.0.1{prefix}/", most=5)) == 5


@pytest.mark.parametrize("prefix", ["/a b", "/hä;x=1", "/100%", "/~x@:1+(y)"])
@pytest.mark.spread
def test_a_prefix_may_have_any_characters(sessions: sessionmaker[Session], happened: list[str], prefix: str) -> None:
    client = visitor(Starlette(routes=[Mount(prefix, HistoryBrowser(sessions, Base))]))
    first = client.get(f"{quote(prefix)}?at=2024-01-01")
    assert "You see" in words_of(first.text)
    assert unquote(first.url.path) == f"{prefix}/"
    assert len(crawled(client, f"http://127.0.0.1{quote(prefix)}/", most=5)) == 5


@pytest.mark.spread
def test_an_engine_is_enough(engine: sa.Engine, happened: list[str]) -> None:
    browser = HistoryBrowser(engine, Base.metadata)
    try:
        assert "Comment 1" in words_of(visitor(browser).get("/tables/tickets/row?key=1&at=2024-01-01T00:00:02").text)
    finally:
        unregister_hooks(browser.sessions)


@pytest.mark.spread
def test_the_texts_may_be_of_another_language(sessions: sessionmaker[Session], happened: list[str]) -> None:
    texts = {"language": "de", "title": "Verlauf", "sentence_update": "{who} hat {fields} geändert"}
    page = visitor(HistoryBrowser(sessions, Base, texts=texts)).get("/tables/tickets/row?key=1").text
    assert '<html lang="de">' in page
    assert "ben hat price 10.00 → 12.00, status new → open geändert" in words_of(page)
