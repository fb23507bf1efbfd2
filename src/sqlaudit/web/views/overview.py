"""How large are the histories, how fast do they grow, how long are they kept, and are they sound?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup
from starlette.responses import Response

from sqlaudit.display import NOTHING, safe, size
from sqlaudit.maintenance.checking import check
from sqlaudit.maintenance.growth import TableStatus, status_of
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.retention import Retention
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit

_PAGE: Final = 50
"""The tables of a page: the versions of each are counted."""
_FINDINGS: Final = 20


@dataclass(frozen=True, slots=True)
class _Line:
    title: str
    url: str
    check_url: str
    status: TableStatus
    bytes: str
    bytes_a_day: str
    retention: Markup


def _overview(visit: Visit) -> Response:
    """Show the size and the growth of the histories of which all rows may be seen."""
    sources = [source for source in visit.browser.sources.by_name.values() if visit.sees_all(source)]
    begin = visit.number("page") * _PAGE
    shown = sources[begin : begin + _PAGE]
    return visit.render(
        "overview.html",
        lines=list(_lines(visit, shown)),
        following=visit.here(page=visit.number("page") + 1) if len(sources) > begin + _PAGE else None,
    )


def _lines(visit: Visit, sources: list[Any]) -> Iterator[_Line]:
    for source in sources:
        model = model_of(source)
        where = bind_arguments_for(visit.session, model.mapper)
        status = status_of(visit.session.connection(bind_arguments=where), model.table)
        name = visit.browser.sources.name_of(source)
        yield _Line(
            safe(visit.browser.sources.title_of(source)),
            visit.table_url(source),
            visit.url("check", table=name),
            status,
            size(status.bytes),
            size(status.bytes_a_day),
            _retention(visit, model.root.options.retention),
        )


def _retention(visit: Visit, retention: Retention | None) -> Markup:
    if retention is None:
        return visit.texts("kept_for_ever")
    age = NOTHING if retention.older_than is None else str(retention.older_than)
    return visit.texts("kept_last" if retention.keep_last else "kept_for", age=age, count=retention.keep_last)


def _check(visit: Visit) -> Response:
    """Show the faults of a history."""
    if not visit.sees_all(visit.source):
        raise Problem(403, "forbidden")
    report = check(visit.session, visit.source, limit=_FINDINGS)
    return visit.render("check.html", report=report, count=sum(report.counts.values()))


OVERVIEW: Final = View(page="overview", action="list", work=_overview)
CHECK: Final = View(page="check", action="list", work=_check)
