"""Admins lead from a row to its history."""

from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from desk import NAME, SCOPE, Base, Comment, Person, Setting, Tag, Ticket, happen, links_of, visitor, words_of
from fastapi import FastAPI
from sqlalchemy.orm import Session, sessionmaker

from sqlaudit import QueryError
from sqlaudit.web import HistoryBrowser

__all__ = ["Base", "happen"]

pytestmark = pytest.mark.spread
KEY = "/tables/settings/row?key=a%2Fb%2C+c&key=x%3F%26%3D%23%C3%BC"


@pytest.fixture
def browser(sessions: sessionmaker[Session], happened: list[str]) -> HistoryBrowser:
    return HistoryBrowser(sessions, [Ticket, Setting, Tag, Comment])


def test_a_browser_tells_where_a_row_is(browser: HistoryBrowser) -> None:
    assert browser.path_of(Ticket) == "/tables/tickets"
    assert browser.path_of(Ticket, 1) == browser.path_of(Ticket, "1") == "/tables/tickets/row?key=1"
    assert browser.path_of(Setting, (SCOPE, NAME)) == KEY
    assert "created this row" in words_of(visitor(browser).get(KEY).text)
    with pytest.raises(QueryError, match="no key of 'tickets'"):
        browser.path_of(Ticket, "x")
    with pytest.raises(QueryError, match="does not show 'people'"):
        browser.path_of(Person)


def app_with(browser: HistoryBrowser) -> FastAPI:
    app = FastAPI()
    app.mount("/history", browser)
    return app


def test_starlette_admin_has_a_link(browser: HistoryBrowser, engine: sa.Engine) -> None:
    admins, tab = (
        pytest.importorskip(name) for name in ("starlette_admin.contrib.sqla", "sqlaudit.web.starlette_admin")
    )

    class View(tab.HistoryTab, admins.ModelView):  # type: ignore[misc, name-defined]
        history_browser = browser

    assert Ticket.versions is not None  # from now on, it is a relationship of the model
    admin, app = admins.Admin(engine, secret_key="x" * 40), app_with(browser)
    for model, key in ((Ticket, "tickets"), (Setting, "settings"), (Tag, "tag"), (Comment, "comment")):
        admin.add_view(View(model, key=key))
    admin.mount_to(app)
    client = visitor(app)
    assert "/history/tables/tickets/row?key=1" in links_of(client.get("/admin/tickets/detail?pk=1").text)
    encoded = quote(f"{SCOPE.replace(',', '.,')},{NAME}", safe="")
    assert f"/history{KEY}" in links_of(client.get(f"/admin/settings/detail?pk={encoded}").text)
    assert client.get("/history/tables/tickets/row?key=1").status_code == 200


def test_sqladmin_has_an_action(browser: HistoryBrowser, engine: sa.Engine) -> None:
    admins, tab = (pytest.importorskip(name) for name in ("sqladmin", "sqlaudit.web.sqladmin"))

    class TicketAdmin(tab.HistoryTab, admins.ModelView, model=Ticket):  # type: ignore[misc, name-defined, call-arg]
        history_browser = browser

    class SettingAdmin(tab.HistoryTab, admins.ModelView, model=Setting):  # type: ignore[misc, name-defined, call-arg]
        history_browser = browser

    app: Any = app_with(browser)
    admin = admins.Admin(app, engine)
    admin.add_view(TicketAdmin)
    admin.add_view(SettingAdmin)
    client = visitor(app)
    page = client.get("/admin/ticket/details/1").text
    assert "versions" not in page
    assert "versions" not in client.get("/admin/ticket/edit/1").text
    [link] = [link for link in links_of(page) if "action/history" in link]
    answer = client.get(link)
    assert answer.url.path == "/history/tables/tickets/row"
    assert "ben changed price" in words_of(answer.text)
    pks = quote(f"{SCOPE};{NAME}", safe="")
    assert "changed" not in client.get(f"/admin/setting/action/history?pks={pks}").url.path
