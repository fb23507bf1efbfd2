"""What do pages of compared rows hold? What `compare` yields, whatever their size."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

from sqlalchemy.orm import Session

from sqlaudit import Page, RowDiff, compare, compare_page
from sqlaudit.past import comparing


def pages_of(session: Session, models: Any, a: Any, b: Any, size: int) -> Iterator[Page[RowDiff]]:
    after = None
    while True:
        page = compare_page(session, models, a, b, after=after, size=size)
        yield page
        after = page.next
        if after is None:
            return
        assert len(page) == size
        assert after.isascii()


def check_pages(session: Session, models: Any, a: Any, b: Any) -> list[RowDiff]:
    """Check that pages of each size hold the rows that differ, once and in their order, and return these rows."""
    rows = list(compare(session, models, a, b))
    for size, ahead in ((1, 1), (2, 3), (3, 5_000), (len(rows) or 1, 2), (len(rows) + 1, 5_000)):
        with mock.patch.object(comparing, "_AHEAD", ahead):  # as if thousands of versions were that few
            pages = list(pages_of(session, models, a, b, size))
        assert all(page.items for page in pages) or not rows, "the last page says that it is the last"
        # By their texts, because NaN does not equal NaN.
        assert [repr(row) for page in pages for row in page] == [repr(row) for row in rows]
    assert compare_page(session, models, a, b, size=1, count=True).total == len(rows)
    return rows
