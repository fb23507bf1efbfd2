"""Who set each field of a row, when and why?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from markupsafe import Markup
from starlette.responses import Response

from sqlaudit.changes import Blame
from sqlaudit.display import safe
from sqlaudit.period import TICK
from sqlaudit.retrieval.field_changes import blame, versions_of
from sqlaudit.web.instants import instant_text
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit

_AGES: Final = 5
"""The shades of age."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A field and who set it.

    :ivar age: its shade: 0 for the latest change of the row, greater for older ones
    :ivar history: the URL of the changes of this field, and ``before`` of this page right before the latest one
    """

    name: str
    value: Markup
    blame: Blame
    is_unknown: bool
    age: int
    history: str
    changeset: str
    before: str


def _blame(visit: Visit) -> Response:
    """Show the fields of the row, as it is or as it was, and who set them."""
    if visit.has_links:
        raise Problem(404, "not_found")
    with visit.reading():
        found = blame(visit.session, visit.source, visit.key, at=visit.at)
        if not found and not versions_of(visit.session, visit.source, visit.key, limit=1):
            raise visit.unknown_row()
    return visit.render("blame.html", heading=visit.row_name(visit.title, visit.key), lines=list(_lines(visit, found)))


def _lines(visit: Visit, found: Mapping[str, Blame]) -> Iterator[_Line]:
    ages = _ages_of({each.timestamp for each in found.values()})
    for name, each in found.items():
        is_hidden = visit.is_hidden(visit.source, name)
        yield _Line(
            safe(name),
            visit.show.hidden() if is_hidden else visit.show.value(each.value),
            each,
            is_unknown=is_hidden or each.unknown_before or each.unknown_after,
            age=ages[each.timestamp],
            history=visit.row_url("row", visit.source, visit.key, field=name),
            changeset=visit.url("changeset", changeset=str(each.changeset_id)),
            before=visit.row_url("blame", visit.source, visit.key, at=instant_text(each.timestamp - TICK)),
        )


def _ages_of(instants: set[datetime]) -> dict[datetime, int]:
    """Return the shades of instants: by their order, because a day may matter as much as a year."""
    order = sorted(instants, reverse=True)
    steps = max(len(order) - 1, 1)
    return {instant: place * (_AGES - 1) // steps for place, instant in enumerate(order)}


BLAME: Final = View(page="blame", action="view", work=_blame, needs_key=True)
