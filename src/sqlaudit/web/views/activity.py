"""What happened lately, in numbers, and where is a certain change?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any, Final

from markupsafe import Markup
from starlette.responses import Response

from sqlaudit.changes import FieldChange
from sqlaudit.config import current_config
from sqlaudit.display import safe
from sqlaudit.period import TICK
from sqlaudit.retrieval.activity import Activity, activity
from sqlaudit.retrieval.field_changes import get_resource_changes
from sqlaudit.tracking.links import model_of
from sqlaudit.web.instants import instant_of, instant_text
from sqlaudit.web.markup import markup
from sqlaudit.web.problems import Problem
from sqlaudit.web.timeline import Teller
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit

_DAYS: Final = 30
_HEIGHT: Final = 100
_MOST_TABLES: Final = 30
"""The tables that one search reads."""
_MOST_SKIPPED: Final = 2_000
"""The changes of one instant that the pages of a search show: each page reads again what the pages before it showed."""


# --- numbers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bar:
    """A day of the chart: its place and size, in units of the chart."""

    x: float
    y: float
    height: float
    label: str
    url: str


def _activity(visit: Visit) -> Response:
    """Show how much happened on each of the last days, in which tables and by whom."""
    last = (visit.at or current_config().now()).astimezone(UTC)
    end = datetime(last.year, last.month, last.day, tzinfo=UTC)
    begin = end - min(timedelta(days=_DAYS - 1), end - datetime.min.replace(tzinfo=UTC))
    with visit.reading():
        found = activity(visit.session, begin, _DAYS)
    return visit.render(
        "activity.html",
        bars=list(_bars(visit, found, begin)),
        total=sum(found.days.values()),
        most=max(found.days.values(), default=0),
        days=_DAYS,
        tables=[(_table(visit, name), count) for name, count in found.tables.most_common(20)],
        users=[(_user(visit, user), count) for user, count in found.users.most_common(20)],
        runs=[(_run(visit, run.run_id), run) for run in found.runs],
    )


def _bars(visit: Visit, found: Activity, begin: datetime) -> Iterator[_Bar]:
    most = max(found.days.values(), default=0) or 1
    width = 1000 / _DAYS
    for number in range(_DAYS):
        day, count = begin + timedelta(days=number), found.days[number]
        height = round(_HEIGHT * count / most, 1)
        query = f"since:{day:%Y-%m-%d} until:{day + timedelta(days=1):%Y-%m-%d}"
        label = f"{day:%Y-%m-%d}: {count:,}"
        url = visit.url("search", {"q": query})
        yield _Bar(round(number * width + 2, 1), _HEIGHT - height, height, label, url)


def _table(visit: Visit, name: str) -> Markup:
    source = visit.browser.sources.by_name.get(name)
    if source is None:
        return markup("<bdi>{}</bdi>", safe(name))
    title = safe(visit.browser.sources.title_of(source))
    return markup('<a href="{}"><bdi>{}</bdi></a>', visit.table_url(source), title)


def _user(visit: Visit, user: str | None) -> Markup:
    if user is None:
        return visit.texts("nobody")
    return markup('<a href="{}">{}</a>', visit.url("changesets", {"user": user}), visit.show.short(user))


def _run(visit: Visit, run_id: str) -> Markup:
    return markup('<a href="{}">{}</a>', visit.url("run", {"id": run_id}), visit.show.short(run_id))


# --- search -----------------------------------------------------------------------------------------------------

_FILTERS: Final = {
    "who": "filter_user_ids",
    "field": "filter_fields",
    "from": "filter_old_values",
    "to": "filter_new_values",
    "op": "filter_operations",
    "kind": "filter_actor_types",
    "for": "filter_on_behalf_of",
    "run": "filter_run_ids",
    "reason": "filter_reasons",
}
"""The words of a search, and the filters that they are."""


def _search(visit: Visit) -> Response:
    """Show the latest changes that a search names, such as ``who:u42 field:price since:2026-03-01``."""
    text = visit.parameter("q") or ""
    is_asked = bool(text) and visit.parameter("edit") is None
    found: list[FieldChange] = []
    skipped = min(visit.number("skip"), _MOST_SKIPPED)
    if is_asked:
        words = _words(text)
        with visit.reading():
            found = _found(visit, words, skipped)
    size = visit.browser.page_size
    older, is_cut = _older(visit, text, found, size, skipped) if len(found) > size else (None, False)
    return visit.render(
        "search.html",
        text=text,
        is_asked=is_asked,
        stories=Teller(visit).stories(found[:size]),
        older=older,
        is_cut=is_cut,
        names=[*_FILTERS, "table", "since", "until"],
    )


def _older(visit: Visit, text: str, found: Sequence[FieldChange], size: int, skipped: int) -> tuple[str, bool]:
    """Return the URL of the changes after the first ones, and whether it leaves some out.

    The next page begins within an instant of which this one has shown a part.
    """
    until, following = found[size - 1].timestamp, found[size].timestamp
    shown = sum(1 for change in found[:size] if change.timestamp == until)
    if shown == size:  # this page is within the instant, too
        shown += skipped
    is_cut = until == following and shown > _MOST_SKIPPED
    if is_cut:
        until, shown = until - TICK, 0
    elif until != following:
        until, shown = following, 0
    rest = [word for word in _split(text) if not word.startswith("until:")]
    query = " ".join([*map(_quoted, rest), f"until:{instant_text(until)}"])
    return visit.here(q=query, skip=shown or None), is_cut


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quotation mark without another one
        return text.split()


def _quoted(word: str) -> str:
    name, _, value = word.partition(":")
    return f"{name}:{shlex.quote(value)}"


def _words(text: str) -> dict[str, list[str]]:
    """Return the values of a search by their words.

    :raises Problem: it has a word that names nothing
    """
    words: dict[str, list[str]] = {}
    for word in _split(text):
        name, colon, value = word.partition(":")
        if not colon or name not in (*_FILTERS, "table", "since", "until") or not value:
            raise Problem(400, "bad_search", word=word)
        words.setdefault(name, []).append(value)
    return words


def _found(visit: Visit, words: dict[str, list[str]], skipped: int) -> list[FieldChange]:
    """Return the changes of a page and one more, without the first ones of the instant at which it begins."""
    filters: dict[str, Any] = {_FILTERS[name]: words[name] for name in words.keys() & _FILTERS.keys()}
    begin, end = (_bound(visit, words, name) for name in ("since", "until"))
    if begin is not None or end is not None:
        filters["filter_date_range"] = begin, end
    size, found = skipped + visit.browser.page_size + 1, []
    for source, fields in _sources(visit, words):
        own = {"filter_fields": fields} if fields else {}
        found.append(get_resource_changes(source, visit.session, newest_first=True, limit=size, **{**filters, **own}))
    return list(islice(merge(*found, key=attrgetter("timestamp"), reverse=True), skipped, size))


def _bound(visit: Visit, words: dict[str, list[str]], name: str) -> datetime | None:
    if name not in words:
        return None
    instant = instant_of(visit.session, words[name][-1], visit.parameter("zone") or "", may_be_future=True)
    return instant if visit.at is None or name == "since" else min(instant, visit.at)


def _sources(visit: Visit, words: dict[str, list[str]]) -> Iterator[tuple[Any, list[str]]]:
    """Yield the tables to search, each with the fields that are asked for.

    :raises Problem: there are none, or too many
    """
    sources = visit.browser.sources
    chosen = [sources.named(name) for name in words.get("table", ())] or sources.roots
    if None in chosen:
        raise Problem(404, "unknown_table", name=", ".join(words["table"]))
    asked = set(words.get("field", ()))
    wanted = []
    for source in chosen:
        fields = {name for name, _ in model_of(source).reported_fields()}
        if visit.may(source) and (not asked or asked & fields):
            wanted.append((source, sorted(asked & fields)))
    if len(wanted) > _MOST_TABLES:
        raise Problem(400, "wide_search", count=_MOST_TABLES)
    yield from wanted


ACTIVITY: Final = View(page="activity", action="list", work=_activity)
SEARCH: Final = View(page="search", action="search", work=_search)
