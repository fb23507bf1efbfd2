"""Which tables have a history, and what happened in one of them lately?"""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from sqlaudit.display import safe
from sqlaudit.retrieval.pages import changes_page
from sqlaudit.web.timeline import Teller
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit


def _home(visit: Visit) -> Response:
    """Show the tables."""
    wanted = (visit.parameter("q") or "").casefold()
    sources = visit.browser.sources
    tables = [
        (safe(name), sources.title_of(source), visit.table_url(source))
        for name, source in sources.by_name.items()
        if visit.may(source) and (wanted in name.casefold() or wanted in sources.title_of(source).casefold())
    ]
    return visit.render("home.html", tables=tables, wanted=visit.parameter("q") or "")


def _table(visit: Visit) -> Response:
    """Show the latest changes of a table, and a form that opens a row."""
    dates = None if visit.at is None else (None, visit.at)
    with visit.reading():
        page = changes_page(
            visit.session,
            visit.source,
            filter_date_range=dates,
            newest_first=True,
            after=visit.parameter("after"),
            size=visit.browser.page_size,
            most=visit.most,
        )
    return visit.render(
        "table.html",
        key_names=[*map(safe, visit.model.root.key_names)],
        row_url=visit.url("row", table=visit.name),
        compare_url=visit.url("compare", {"at": visit.at_text()}, table=visit.name),
        stories=Teller(visit).stories(page),
        is_cut=visit.is_cut(page),
        older=None if page.next is None else visit.here(after=page.next),
        newest=visit.here(after=None) if visit.parameter("after") else None,
    )


HOME: Final = View(page="home", action="list", work=_home)
TABLE: Final = View(page="table", action="list", work=_table)
