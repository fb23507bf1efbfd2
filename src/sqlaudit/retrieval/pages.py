"""What comes next? Field changes by pages, each of which begins where the one before it ended.

A page is read by its place in time, not by counting what came before it: the thousandth page costs what the first one
costs. It holds whole transactions. These are the steps for a page of many rows, each of which is a statement or two for
the model and for each relationship:

1. Read as many changes as the page should have, and one more. They name the transactions of the page. If the one more
   is of the same instant as the last, name all transactions of that instant.
2. Read all changes of these transactions. Versions that one transaction wrote may have several instants, if it
   superseded versions that others had written after it began. So leave out the transactions of which an earlier page
   has changes, and keep all changes of the others.
3. Find out whether the one more is of a transaction that follows. If it is not, look for one: the last page says that
   it is the last.

For one row, the numbers of its versions take the place of time: a transaction's versions of a row follow each other,
and one statement reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from struct import Struct
from typing import Any, Final, Unpack
from uuid import UUID

from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import checked_count
from sqlaudit.asynchronous import also_async
from sqlaudit.changes import FieldChange, Page
from sqlaudit.exceptions import QueryError
from sqlaudit.period import EPOCH, TICK
from sqlaudit.retrieval.change_reader import (
    BATCH,
    ChangeQuery,
    ChangeReport,
    DateRange,
    change_query,
    date_range,
)
from sqlaudit.retrieval.cursors import checked_size, cursor_text, digest_of, place_in
from sqlaudit.retrieval.filters import ChangeFilters
from sqlaudit.tracking.links import Readable
from sqlaudit.tracking.sessions import checked_session

_CURSOR: Final = Struct(">8sq")
"""The digest of a query, and the number of a version or an instant in microseconds."""


@also_async
def changes_page(
    session: Session | scoped_session[Any],
    model_class: Readable,
    filter_resource_ids: Any = None,
    filter_fields: str | Iterable[str] | None = None,
    filter_user_ids: Any = None,
    filter_date_range: DateRange | None = None,
    *,
    after: str | None = None,
    size: int = 50,
    most: int | None = None,
    count: bool = False,
    **filters: Unpack[ChangeFilters],
) -> Page[FieldChange]:
    """Return a page of the field changes of a model's rows, and the cursor of the next page.

    .. code-block:: python

        page = changes_page(session, Customer, size=50)
        page = changes_page(session, Customer, size=50, after=page.next)

    A page holds whole transactions, so that it may have more than ``size`` field changes. It costs the same however far
    it is from the first one. It executes at most four statements, and four for each relationship; a few more if it
    ends at an instant that several transactions share. For one row without relationships and filters, it executes one.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model, a relationship or an association table
    :param after: the ``next`` of the page before; ``None`` for the first page
    :param size: the number of field changes that suffice for a page
    :param most: the number of field changes that a page may have at most; of a larger transaction, it has the first
        ones, and :func:`changes_in` has all. Those of one row are not limited
    :param count: also count the field changes of all pages, which reads all of them
    :param filters: the other parameters are those of :func:`get_resource_changes`, without ``limit`` and ``offset``
    :raises TrackingError: the model, or what a relationship leads to, is not tracked
    :raises QueryError: a filter is invalid, ``size`` is less than 1, ``most`` is less than ``size``, or ``after`` is
        not a cursor of this query
    :raises PrunedError: the history was pruned, and the date range begins before its horizon
    """
    session, size = checked_session(session), checked_size(size)
    if most is not None and checked_count("most", most) < size:
        raise QueryError(f"most is {most}, and size is {size}. Give at least the size.", most)
    query = change_query(
        model_class,
        filters,
        filter_resource_ids=filter_resource_ids,
        filter_fields=filter_fields,
        filter_user_ids=filter_user_ids,
        filter_date_range=filter_date_range,
    )
    report = ChangeReport(query)
    report.refuse_pruned(session, filter_date_range)
    digest = _digest_of(report)
    place = None if after is None else place_in(after, digest, _CURSOR)[0]
    is_of_one_row = len(report.readers) == 1 and report.readers[0].of_one_row
    if is_of_one_row:
        items, end = _page_of_one_row(session, query, place, size)
    else:
        items, end = _page_of_many_rows(session, query, place, size, most)
    return Page(
        items=items,
        next=None if end is None else cursor_text(_CURSOR.pack(digest, end)),
        total=sum(1 for _ in report.changes(session, yield_per=BATCH)) if count else None,
    )


_Place = int | None


def _page_of_one_row(
    session: Session, query: ChangeQuery, after: _Place, size: int
) -> tuple[list[FieldChange], _Place]:
    limit = size + 1
    while True:
        changes = list(ChangeReport(replace(query, after_version=after, limit=limit)).changes(session))
        end = size
        while end < len(changes) and changes[end].changeset_id == changes[end - 1].changeset_id:
            end += 1
        if end < len(changes):
            return changes[:end], changes[end - 1].version
        if len(changes) < limit:
            return changes, None
        limit *= 4


def _page_of_many_rows(
    session: Session, query: ChangeQuery, after: _Place, size: int, most: int | None
) -> tuple[list[FieldChange], _Place]:
    dates = date_range(query.filter_date_range)
    query = replace(query, filter_date_range=(dates.get("since"), dates.get("until")))
    begin = None if after is None else EPOCH + after * TICK
    items, edge, more = _next_transactions(session, query, begin, size, most)
    if edge is None or more is None:
        return items, None
    is_new = (
        more.timestamp != edge
        and all(change.changeset_id != more.changeset_id for change in items)
        and (begin is None or not _is_told(session, query, more.changeset_id, begin))
    )
    has_next = is_new or _next_transactions(session, query, edge, 1, most)[0]
    return items, (edge - EPOCH) // TICK if has_next else None


def _next_transactions(
    session: Session, query: ChangeQuery, begin: datetime | None, size: int, most: int | None
) -> tuple[list[FieldChange], datetime | None, FieldChange | None]:
    """Return the changes of the transactions that follow an instant, their last instant, and a change after ``size``.

    The change after may be of these transactions, or of one of which an earlier page has changes.
    """
    while True:
        rest = query if begin is None else _beyond(query, begin)
        first = [] if rest is None else list(ChangeReport(replace(rest, limit=size + 1)).changes(session))
        if len(first) <= size and (begin is None or not first):
            return first, None, None
        page, more = first[:size], first[size:]
        edge = page[-1].timestamp
        if more and more[0].timestamp == edge:
            page += ChangeReport(replace(query, filter_date_range=(edge, edge), limit=most)).changes(session)
        changesets = list(dict.fromkeys(change.changeset_id for change in page))
        items = list(ChangeReport(replace(query, changeset_ids=changesets, limit=most)).changes(session))
        if begin is not None:
            told = {change.changeset_id for change in items if not _is_beyond(change, begin, query)}
            items = [change for change in items if change.changeset_id not in told]
        if items or not more:
            return items, edge, more[0] if more else None
        begin = edge


def _is_told(session: Session, query: ChangeQuery, changeset_id: UUID, begin: datetime) -> bool:
    """Return whether an earlier page has the changes of a transaction: it has a change up to the begin of this page."""
    dates = date_range(query.filter_date_range)
    dates |= {"since": begin} if query.newest_first else {"until": begin}
    up_to = replace(query, filter_date_range=(dates.get("since"), dates.get("until")))
    return any(ChangeReport(replace(up_to, changeset_ids=[changeset_id], limit=1)).changes(session))


def _beyond(query: ChangeQuery, begin: datetime) -> ChangeQuery | None:
    """Return a query without the changes up to an instant, in the order of the query; ``None`` if it has no others."""
    dates = date_range(query.filter_date_range)
    dates |= {"until": begin - TICK} if query.newest_first else {"since": begin + TICK}
    since, until = dates.get("since"), dates.get("until")
    if since is not None and until is not None and since > until:
        return None
    return replace(query, filter_date_range=(since, until))


def _is_beyond(change: FieldChange, begin: datetime, query: ChangeQuery) -> bool:
    return change.timestamp < begin if query.newest_first else change.timestamp > begin


def _digest_of(report: ChangeReport) -> bytes:
    return digest_of(
        *(
            [
                reader.model.root.table.live.key,
                reader.model.qualname,
                reader.related and reader.related.name,
                reader.newest_first,
                reader.query.filter_fields,
                {name: value for name, value in reader.parameters.items() if name not in ("limit", "offset")},
                [values and values.values for values in reader.values],
                reader.query.filter_operations,
            ]
            for reader in report.readers
        )
    )
