"""What comes next? Field changes by pages, each of which begins where the one before it ended.

A page is read by its place in time, not by counting what came before it: the thousandth page costs what the first one
costs. It holds whole transactions. These are the steps for a page of many rows, each of which is a statement or two for
the model and for each relationship:

1. Read as many changes as the page should have, and one more. They name the transactions of the page. If the one more
   is of the same instant as the last, name all transactions of that instant.
2. Read all changes of these transactions. Versions that one transaction wrote may have several instants, if it
   superseded versions that others had written after it began. So leave out the transactions of which an earlier page
   has changes, and keep all changes of the others.
3. If transactions of one instant have more changes than a page may have, tell them one after the other, by their ids.
4. Find out whether the one more is of a transaction that follows. If it is not, look for one: the last page says that
   it is the last.

For one row, the numbers of its versions take the place of time: a transaction's versions of a row follow each other,
and one statement reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from struct import Struct
from typing import Any, Final, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, select
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
    rows_of,
)
from sqlaudit.retrieval.cursors import checked_size, cursor_of, digest_of, place_in
from sqlaudit.retrieval.filters import ChangeFilters
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.links import Readable
from sqlaudit.tracking.sessions import checked_session

_CURSOR: Final = Struct(">q")
"""The number of a version, or an instant in microseconds."""
_CURSOR_WITHIN: Final = Struct(">q16s")
"""An instant in microseconds, and the id of one of the transactions of this instant."""


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
    ends at an instant that several transactions share, or if ``most`` leaves transactions to the next page. For one
    row without relationships and filters, it executes one.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model, a relationship or an association table
    :param after: the ``next`` of the page before; ``None`` for the first page
    :param size: the number of field changes that suffice for a page
    :param most: the number of field changes that a page may have at most: it ends before a transaction that no longer
        fits. A larger transaction has a page of its own, with its first changes, and :func:`changes_in` has all. Those
        of one row are not limited
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
    is_of_one_row = len(report.readers) == 1 and report.readers[0].of_one_row
    forms = [_CURSOR] if is_of_one_row else [_CURSOR, _CURSOR_WITHIN]
    place = () if after is None else place_in(after, digest, *forms)
    end: bytes | None
    if is_of_one_row:
        items, version = _page_of_one_row(session, query, place[0] if place else None, size)
        end = None if version is None else _CURSOR.pack(version)
    else:
        items, reached = _page_of_many_rows(session, query, _place(*place) if place else None, size, most)
        end = None if reached is None else reached.pack()
    return Page(
        items=items,
        next=None if end is None else cursor_of(digest, end),
        total=sum(1 for _ in report.changes(session, yield_per=BATCH)) if count else None,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a page of many rows ended.

    :ivar at: an instant, up to which all is told
    :ivar last: if the page ended within the instant: the transaction of it up to which all is told
    """

    at: datetime
    last: UUID | None = None

    def pack(self) -> bytes:
        microseconds = (self.at - EPOCH) // TICK
        if self.last is None:
            return _CURSOR.pack(microseconds)
        return _CURSOR_WITHIN.pack(microseconds, self.last.bytes)


def _place(microseconds: int, last: bytes | None = None) -> _Place:
    return _Place(EPOCH + microseconds * TICK, None if last is None else UUID(bytes=last))


def _page_of_one_row(
    session: Session, query: ChangeQuery, after: int | None, size: int
) -> tuple[list[FieldChange], int | None]:
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
    session: Session, query: ChangeQuery, after: _Place | None, size: int, most: int | None
) -> tuple[list[FieldChange], _Place | None]:
    dates = date_range(query.filter_date_range)
    query = replace(query, filter_date_range=(dates.get("since"), dates.get("until")))
    items, end, more = _next_transactions(session, query, after, size, most)
    if end is None:
        return items, None
    is_new = (
        more is not None
        and more.timestamp != end.at
        and all(change.changeset_id != more.changeset_id for change in items)
        and (after is None or not _is_told(session, query, more.changeset_id, after.at))
    )
    has_next = is_new or _next_transactions(session, query, end, 1, most)[0]
    return items, end if has_next else None


def _next_transactions(
    session: Session, query: ChangeQuery, begin: _Place | None, size: int, most: int | None
) -> tuple[list[FieldChange], _Place | None, FieldChange | None]:
    """Return the changes of the transactions that follow a place, the place where they end, and a change after these.

    The place is ``None`` if nothing follows. The change may be of these transactions, too, or of one of which an
    earlier page has changes.
    """
    while True:
        if begin is not None and begin.last is not None:
            items, last = _next_of_instant(session, query, begin.at, begin.last, size, most)
            if items:
                return items, _Place(begin.at, last), None
            begin = _Place(begin.at)
        rest = query if begin is None else _beyond(query, begin.at)
        first = [] if rest is None else list(ChangeReport(replace(rest, limit=size + 1)).changes(session))
        if len(first) <= size and (begin is None or not first):
            return first, None, None
        page, more = first[:size], first[size:]
        edge = page[-1].timestamp
        if more and more[0].timestamp == edge:
            of_edge = replace(query, filter_date_range=(edge, edge), limit=None if most is None else most + 1)
            page = [change for change in page if change.timestamp != edge]
            page += ChangeReport(of_edge).changes(session)
        fitting, items = _fitting(session, query, page, None if begin is None else begin.at, most)
        if not fitting:
            begin = _Place(page[0].timestamp, _before_all(query))
            continue
        begin, is_last = _Place(fitting[-1].timestamp), not more and len(fitting) == len(page)
        if items or is_last:
            return items, None if is_last else begin, more[0] if more else None


def _fitting(
    session: Session, query: ChangeQuery, page: Sequence[FieldChange], begin: datetime | None, most: int | None
) -> tuple[Sequence[FieldChange], list[FieldChange]]:
    """Return as many changes of a page as have transactions that fit on it, and all changes of these transactions.

    A transaction that is larger than a page fits alone. Nothing is returned if those of one instant do not fit.
    """
    while page:
        if most is None or len(page) <= most:  # otherwise some of the last instant may be missing
            changesets = list(dict.fromkeys(change.changeset_id for change in page))
            items = _changes_of(session, query, changesets, begin, None if most is None else most + 1)
            if most is None or len(items) <= most or len({change.changeset_id for change in items}) == 1:
                return page, items[:most]
        instants = list(dict.fromkeys(change.timestamp for change in page))
        page = [change for change in page if change.timestamp in instants[: len(instants) // 2]]
    return [], []


def _changes_of(
    session: Session, query: ChangeQuery, changesets: Sequence[UUID], begin: datetime | None, limit: int | None
) -> list[FieldChange]:
    """Return the changes of transactions, without those of which an earlier page has changes."""
    while changesets:
        changes = list(ChangeReport(replace(query, changeset_ids=changesets, limit=limit)).changes(session))
        told = {change.changeset_id for change in changes if begin and not _is_beyond(change, begin, query)}
        if not told or limit is None or len(changes) < limit:
            return [change for change in changes if change.changeset_id not in told]
        changesets = [changeset_id for changeset_id in changesets if changeset_id not in told]
    return []


# --- several transactions of one instant, with more changes than a page may have ---------------------------------


def _next_of_instant(
    session: Session, query: ChangeQuery, at: datetime, last: UUID, size: int, most: int | None
) -> tuple[list[FieldChange], UUID]:
    """Return the changes of the next transactions of an instant, and the last of these transactions."""
    begin = at + TICK if query.newest_first else at - TICK
    limit = None if most is None else most + 1
    while changesets := _transactions_of(session, query, at, last, size):
        while True:
            changes = _changes_of(session, query, changesets, begin, limit)
            if most is None or len(changes) <= most or len(changesets) == 1:
                break
            changesets = changesets[: len(changesets) // 2]
        last = changesets[-1]
        if changes:
            return changes[:most], last
    return [], last


def _transactions_of(session: Session, query: ChangeQuery, at: datetime, last: UUID | None, count: int) -> list[UUID]:
    """Return the transactions that have versions of an instant, in the order of their ids: those after the last one."""
    found: set[UUID] = set()
    for reader in ChangeReport(query).readers:
        table = reader.model.root.table
        changeset_id: ColumnElement[UUID] = table.role("changeset_id")
        statement = select(changeset_id).distinct().where(table.valid_from == at).limit(count)
        if last is not None:
            statement = statement.where(changeset_id < last if query.newest_first else changeset_id > last)
        statement = statement.order_by(changeset_id.desc() if query.newest_first else changeset_id)
        found.update(row[0] for row in rows_of(session, reader.model, statement, {}, INTERNAL))
    return sorted(found, reverse=query.newest_first)[:count]


def _before_all(query: ChangeQuery) -> UUID:
    return UUID(int=(1 << 128) - 1 if query.newest_first else 0)


# --- places -----------------------------------------------------------------------------------------------------


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
