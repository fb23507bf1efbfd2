"""What did the transactions do, and what did one of them do?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from markupsafe import Markup
from starlette.responses import Response

from sqlaudit.arguments import changeset_uuid
from sqlaudit.changes import Changeset
from sqlaudit.display import safe
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.patches import patch
from sqlaudit.retrieval.changeset_reader import changesets, changesets_page
from sqlaudit.retrieval.changesets import instant_of_changeset
from sqlaudit.retrieval.field_changes import changes_in
from sqlaudit.web.copying import script_of
from sqlaudit.web.instants import instant_text
from sqlaudit.web.markup import markup
from sqlaudit.web.problems import Problem
from sqlaudit.web.timeline import RowStory, Teller
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit

_MOST: Final = 500
"""The changes of a transaction that a page shows."""
_LAST: Final = 19
"""The last page of a transaction: each reads again what the pages before it show."""
PAGE: Final = 30
"""The transactions of a page."""


def _list(visit: Visit) -> Response:
    """Show the transactions, the latest first."""
    filters = {"user_id": visit.parameter("user"), "reason": visit.parameter("reason"), "until": visit.at}
    given: Any = {name: value for name, value in filters.items() if value is not None}
    with visit.reading():
        page = changesets_page(visit.session, newest_first=True, after=visit.parameter("after"), size=PAGE, **given)
    return visit.render(
        "changesets.html",
        entries=told(visit, page),
        user=visit.parameter("user") or "",
        reason=visit.parameter("reason") or "",
        older=None if page.next is None else visit.here(after=page.next),
        newest=visit.here(after=None) if visit.parameter("after") else None,
    )


def told(visit: Visit, entries: Iterable[Changeset]) -> list[tuple[Changeset, Markup, str]]:
    """Return what a list tells of transactions: each with the tables that it wrote and the URL of its page."""
    return [
        (entry, _tables(visit, entry), visit.url("changeset", changeset=str(entry.changeset_id))) for entry in entries
    ]


def _tables(visit: Visit, entry: Changeset) -> Markup:
    names = []
    for name in entry.tables:
        source = visit.browser.sources.by_name.get(name)
        title = safe(name if source is None else visit.browser.sources.title_of(source))
        names.append(markup("<bdi>{}</bdi>", title))
    return visit.show.listed(names)


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    rows: Sequence[RowStory]


def _one(visit: Visit) -> Response:
    """Show all that a transaction did, by table, and under which contexts."""
    changeset_id = visit.request.path_params["changeset"]
    page = min(visit.number("page"), _LAST)
    begin, end = page * _MOST, (page + 1) * _MOST
    with visit.reading():
        entries = entries_of(visit, changeset_id)
        changes = changes_in(visit.session, entries[0].changeset_id, limit=end + 1)
    shown, teller = changes[begin:end], Teller(visit)
    has_more = len(changes) > end
    return visit.render(
        "changeset.html",
        changeset=changeset_id,
        entries=entries,
        facts=[list(_facts(visit, entry)) for entry in entries],
        tables=[
            _Table(safe(label), teller.row_stories(group))
            for label, group in groupby(shown, attrgetter("resource_type"))
        ],
        most=end if has_more and page == _LAST else None,
        first=visit.here(page=None, done=None) if page else None,
        following=visit.here(page=page + 1, done=None) if has_more and page < _LAST else None,
        sql_url=visit.url("sql", changeset=changeset_id),
        undo_url=visit.url("undo", changeset=changeset_id) if visit.browser.can_write else None,
        is_done=visit.parameter("done") is not None,
        at=instant_text(entries[0].timestamp),
    )


def entries_of(visit: Visit, changeset_id: str) -> list[Changeset]:
    """Return what each context of a changeset wrote.

    :raises Problem: there is no such changeset, or the visitor may not see anything of it
    """
    try:
        wanted = changeset_uuid(changeset_id)
        instant = instant_of_changeset(visit.session, wanted)
    except QueryError:
        raise unknown_changeset(changeset_id) from None
    of_instant = changesets(visit.session, since=instant, until=instant)
    entries = [entry for entry in of_instant if entry.changeset_id == wanted]
    if not entries:
        raise unknown_changeset(changeset_id)
    return entries


def unknown_changeset(changeset_id: str) -> Problem:
    """Return the problem that no history has a changeset that the visitor may see."""
    return Problem(404, "unknown_changeset", id=changeset_id)


def _facts(visit: Visit, entry: Changeset) -> Iterator[tuple[str, Markup]]:
    """Yield the further facts of a context: what its ``extra`` has, apart from what the badge tells."""
    extra = entry.extra if isinstance(entry.extra, dict) else {"extra": entry.extra} if entry.extra is not None else {}
    for name, value in sorted(extra.items()):
        if name == "run_id" and entry.run_id:
            url = visit.url("run", {"id": entry.run_id})
            yield visit.texts("run_title"), markup('<a href="{}">{}</a>', url, visit.show.short(value))
        elif name not in ("actor_type", "on_behalf_of"):
            yield safe(str(name)), visit.show.value(value)


def _sql(visit: Visit) -> Response:
    """Show the statements that do again what a transaction did. A part of its rows would not do that."""
    changeset_id = visit.request.path_params["changeset"]
    if not visit.sees_all_tables:
        raise Problem(403, "forbidden")
    with visit.reading():
        entries_of(visit, changeset_id)
        statements = patch(visit.session, changeset_id)
    return script_of(
        visit,
        statements,
        "changeset.sql",
        heading=changeset_id,
        told=visit.texts("sql_text"),
        back=visit.url("changeset", changeset=changeset_id),
        back_name=visit.texts("changeset"),
    )


CHANGESETS: Final = View(page="changesets", action="list", work=_list)
CHANGESET: Final = View(page="changeset", action="view", work=_one)
SQL: Final = View(page="sql", action="export", work=_sql)
