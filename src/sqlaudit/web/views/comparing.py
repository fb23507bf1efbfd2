"""What differs between two instants of a table: which rows came, went or changed?"""

from __future__ import annotations

from collections import Counter
from datetime import UTC
from typing import Final

from starlette.responses import Response

from sqlaudit.changes import Operation, Page, RowDiff
from sqlaudit.config import current_config
from sqlaudit.display import safe
from sqlaudit.past.comparing import compare_page
from sqlaudit.web.instants import instant_of, instant_text
from sqlaudit.web.plans import PlannedRow
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit


def _compare(visit: Visit) -> Response:
    """Show a page of what differs between two instants of the table; without a first one, a form."""
    zone, after = visit.parameter("zone") or "", visit.parameter("after")
    with visit.reading():
        end = visit.at or current_config().now().astimezone(UTC)
        if text := visit.parameter("b"):
            end = instant_of(visit.session, text, zone)
        begin = None
        found: Page[RowDiff] = Page(items=[], next=None)
        if text := visit.parameter("a"):
            begin = instant_of(visit.session, text, zone)
            begin, end = min(begin, end), max(begin, end)
            found = compare_page(visit.session, visit.source, begin, end, after=after, size=visit.browser.page_size)
    counts = Counter(row.operation for row in found)
    both = {"a": "" if begin is None else instant_text(begin), "b": instant_text(end)}  # the same on all pages
    return visit.render(
        "compare.html",
        begin=begin,
        end=end,
        a=both["a"],
        b=both["b"] if visit.parameter("b") or visit.at else "",
        rows=[_told(visit, row) for row in found],
        counts=[(operation, counts[operation]) for operation in Operation if counts[operation]],
        is_part=after is not None or found.next is not None,
        following=None if found.next is None else visit.here(**both, after=found.next),
        first=None if after is None else visit.here(**both, after=None),
    )


def _told(visit: Visit, row: RowDiff) -> PlannedRow:
    assert row.operation is not None
    name = "compare_unknown" if row.is_unknown else f"compare_{row.operation}"
    return PlannedRow(
        row.operation,
        visit.texts(name, row=visit.row_link(row.resource_type, row.resource_id)),
        [(safe(field), visit.show.change(row.operation, *pair)) for field, pair in sorted(row.fields.items())],
    )


COMPARE: Final = View(page="compare", action="list", work=_compare)
