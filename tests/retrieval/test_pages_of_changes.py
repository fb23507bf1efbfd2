"""Field changes by pages: whole transactions, in both orders, whatever their instants are."""

import enum
from collections import Counter
from datetime import timedelta

import pytest
from sqlalchemy import JSON, Boolean, Column, Date, Enum, ForeignKey, Numeric, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from clock import at
from sqlaudit import (
    QueryError,
    SQLAuditConfig,
    changes_page,
    changesets_page,
    get_resource_changes,
    set_config,
    stream_resource_changes,
    track_table,
    versions_of,
)


class Base(DeclarativeBase):
    pass


class Mood(enum.Enum):
    CALM = "calm"
    ANGRY = "angry"


ticket_tags = Table(
    "ticket_tags",
    Base.metadata,
    Column("ticket_id", ForeignKey("tickets.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(String(20), default="new")
    hours: Mapped[int | None]
    price: Mapped[object | None] = mapped_column(Numeric(10, 2))
    due: Mapped[object | None] = mapped_column(Date)
    mood: Mapped[Mood | None] = mapped_column(Enum(Mood, native_enum=False, length=10))
    is_open: Mapped[bool | None] = mapped_column(Boolean)
    data: Mapped[object | None] = mapped_column(JSON(none_as_null=True))
    tags: Mapped[list["Tag"]] = relationship(secondary=ticket_tags)


@track_table()
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)


def altered(cursor):
    """Return cursors that a visitor has changed."""
    return [cursor[:10] + "_" + cursor[11:], cursor[:12] + "A" * (len(cursor) - 12), cursor + "AAAA", "A" * len(cursor)]


def all_pages(session, *args, size, **kw):
    pages, after = [], None
    while True:
        page = changes_page(session, *args, size=size, after=after, **kw)
        assert page.items, "the last page says that it is the last"
        pages.append(page.items)
        after = page.next
        if after is None:
            return pages
        assert after.isascii()
        assert len(after) < 30


def check(session, *args, **kw):
    """Check that pages of every size hold all changes once, in their order, and split no transaction."""
    for newest_first in (False, True):
        expected = get_resource_changes(args[0], session, *args[1:], newest_first=newest_first, **kw)
        assert expected
        for size in (1, 2, 3, 7, len(expected), len(expected) + 1):
            pages = all_pages(session, *args, size=size, newest_first=newest_first, **kw)
            flat = [change for page in pages for change in page]
            assert len(flat) == len(expected)
            assert sorted(map(repr, flat)) == sorted(map(repr, expected))
            for page in pages:
                assert page == [change for change in expected if change in page]
            places = {}
            for number, page in enumerate(pages):
                for change in page:
                    places.setdefault(change.changeset_id, set()).add(number)
            assert all(len(numbers) == 1 for numbers in places.values())


@pytest.fixture
def lived(tables, clock, session):
    tag = Tag(id=1)
    tickets = [Ticket(id=number) for number in range(1, 5)]
    session.add_all([*tickets, tag])
    session.commit()
    tickets[0].tags.append(tag)
    tickets[0].hours = 5
    session.commit()
    set_config(SQLAuditConfig(clock=lambda: at(10)))  # several transactions of one instant
    for ticket in tickets:
        ticket.hours, ticket.status = 5 + ticket.id, "open"
        session.commit()
    clock.now = at(11)
    set_config(SQLAuditConfig(clock=clock))
    tickets[0].tags.remove(tag)
    tickets[1].status = "closed"
    session.commit()
    session.delete(tickets[3])
    session.commit()
    for hours in range(20, 24):
        tickets[0].hours = hours
        session.commit()
    return session


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"include": ["tags"]},
        {"filter_fields": "status", "filter_date_range": (at(1), at(12))},
        {"filter_resource_ids": 1},
        {"filter_resource_ids": "1", "filter_fields": ["hours"]},
        {"filter_resource_ids": [1, 2], "include": "tags"},
        {"filter_operations": ["update", "unlink"], "include": "tags"},
    ],
    ids=str,
)
def test_pages_hold_everything_once_and_whole_transactions(lived, filters):
    ids = [filters.pop("filter_resource_ids")] if "filter_resource_ids" in filters else []
    check(lived, Ticket, *ids, **filters)


def test_pages_of_links(lived):
    check(lived, Ticket.tags)
    check(lived, ticket_tags)


def test_a_transaction_with_several_instants_is_on_one_page(tables, clock, sessions):
    """A transaction supersedes what others wrote after it began: its later versions have later instants."""
    with sessions() as session:
        session.add_all([Ticket(id=number) for number in range(1, 4)])
        session.commit()
    for ticket_id, instant in ((2, at(50)), (3, at(60))):
        set_config(SQLAuditConfig(clock=lambda instant=instant: instant))
        with sessions.begin() as session:
            session.get(Ticket, ticket_id).hours = 1
    set_config(SQLAuditConfig(clock=lambda: at(10)))
    with sessions.begin() as session:
        for ticket in session.query(Ticket):
            ticket.hours = 2
    with sessions() as session:
        check(session, Ticket)
        check(session, Ticket, None, "hours")
        instants = [
            change.timestamp for change in get_resource_changes(Ticket, session, None, "hours", filter_new_values=2)
        ]
        assert instants == [at(10), at(50) + timedelta(microseconds=1), at(60) + timedelta(microseconds=1)]


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("include", [[], ["tags"]])
@pytest.mark.spread
def test_a_page_may_leave_out_the_rest_of_a_large_transaction(tables, session, newest_first, include):
    tickets = [Ticket(id=number, hours=0) for number in range(1, 21)]
    session.add(tickets[0])
    session.commit()
    session.add_all([*tickets[1:], Tag(id=1)])
    tickets[0].tags.append(session.get(Tag, 1))
    session.commit()
    tickets[3].hours = 7
    session.commit()
    whole = get_resource_changes(Ticket, session, include=include, newest_first=newest_first)
    sizes = Counter(change.changeset_id for change in whole)
    pages, after = [], None
    while not pages or after is not None:
        page = changes_page(session, Ticket, include=include, newest_first=newest_first, size=3, most=5, after=after)
        after = page.next
        pages.append(page)
    assert max(map(len, pages)) == 5
    shown = [change for page in pages for change in page]
    assert shown == [change for change in whole if change in shown]
    counts = Counter(change.changeset_id for change in shown)
    assert all(counts[transaction] == size or 4 <= counts[transaction] <= 5 for transaction, size in sizes.items())
    with pytest.raises(QueryError, match="Give at least the size"):
        changes_page(session, Ticket, size=3, most=2)


def pages_of_at_most(session, most, **kw):
    pages, after = [], None
    while not pages or after is not None:
        page = changes_page(session, Ticket, size=3, most=most, after=after, **kw)
        after = page.next
        assert page.items
        pages.append(page.items)
        assert len(page.items) <= most
    return pages


def check_bounded(session, most, **kw):
    """Check that each transaction is on one page, the small ones whole, though pages are bounded."""
    whole = get_resource_changes(Ticket, session, **kw)
    sizes = Counter(change.changeset_id for change in whole)
    pages = pages_of_at_most(session, most, **kw)
    shown = [change for page in pages for change in page]
    assert len({*map(repr, shown)}) == len(shown)
    assert all(page == [change for change in whole if change in page] for page in pages)
    counts = Counter(change.changeset_id for change in shown)
    assert counts.keys() == sizes.keys()
    assert all(counts[transaction] == size for transaction, size in sizes.items() if size <= most)
    for page in pages:
        of_page = Counter(change.changeset_id for change in page)
        assert all(counts[transaction] == count for transaction, count in of_page.items())


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("include", [[], ["tags"]])
def test_many_transactions_of_one_instant_are_told_one_after_the_other(tables, sessions, clock, newest_first, include):
    """Such as those that were imported from a log which knows no fractions of a second."""
    with sessions.begin() as session:
        session.add_all([Ticket(id=1), Tag(id=1)])
    clock.now = at(10)
    set_config(SQLAuditConfig(clock=lambda: at(10)))
    for number in (9, 7, 5, 3, 2):
        with sessions.begin() as session:
            session.add_all(Ticket(id=number * 10 + place, hours=1) for place in range(number))
            session.add(Ticket(id=number, tags=[session.get(Tag, 1)]))
    set_config(SQLAuditConfig(clock=clock))
    clock.now = at(20)
    with sessions.begin() as session:
        session.get(Ticket, 1).hours = 1
    with sessions() as session:
        for most in (3, 7, 12, 30, 500):
            check_bounded(session, most, newest_first=newest_first, include=include)


@pytest.mark.parametrize("newest_first", [False, True])
def test_what_follows_a_large_transaction_with_several_instants_is_told(tables, sessions, clock, newest_first):
    """Its first changes fill a page; its last one is later than what others wrote meanwhile."""
    with sessions.begin() as session:
        session.add_all(Ticket(id=number) for number in range(1, 16))
    for ticket_id, instant in ((2, at(50)), (3, at(60)), (12, at(55)), (13, at(55))):
        set_config(SQLAuditConfig(clock=lambda instant=instant: instant))
        with sessions.begin() as session:
            session.get(Ticket, ticket_id).hours = 1
    set_config(SQLAuditConfig(clock=lambda: at(10)))
    for numbers in (range(1, 11), range(11, 16)):
        with sessions.begin() as session:
            for number in numbers:
                session.get(Ticket, number).hours = 2
    with sessions() as session:
        for most in (3, 4, 5, 10, 11, 500):
            check_bounded(session, most, newest_first=newest_first)


def test_a_page_counts_all_changes_where_asked(lived):
    first = changes_page(lived, Ticket, size=2, count=True)
    assert first.total == len(get_resource_changes(Ticket, lived)) > len(first)
    assert changes_page(lived, Ticket, size=2, count=True, after=first.next).total == first.total
    assert changes_page(lived, Ticket, size=2).total is None
    assert list(changes_page(lived, Ticket, 9)) == []
    assert changes_page(lived, Ticket, 9, count=True).total == 0


def test_a_cursor_belongs_to_its_query(lived):
    cursor = changes_page(lived, Ticket, filter_user_ids=None, filter_fields={"hours", "status"}, size=1).next
    changes_page(lived, Ticket, filter_fields={"status", "hours"}, after=cursor)
    one_row = changes_page(lived, Ticket, "1", size=1).next
    changes_page(lived, Ticket, 1, after=one_row)
    for args, kw in [
        ((Ticket,), {}),
        ((Tag,), {}),
        ((Ticket, 1), {}),
        ((Ticket.tags,), {}),
        ((Ticket,), {"filter_fields": {"hours", "status"}, "newest_first": True}),
        ((Ticket,), {"filter_fields": {"hours", "status"}, "filter_new_values": 1}),
    ]:
        with pytest.raises(QueryError, match="another query"):
            changes_page(lived, *args, after=cursor, **kw)
    for text in ("", "x", "ö", cursor + "=", 7, cursor[:5]):
        with pytest.raises(QueryError, match="not a cursor"):
            changes_page(lived, Ticket, after=text)
    for text in altered(cursor):
        with pytest.raises(QueryError, match="was altered"):
            changes_page(lived, Ticket, filter_fields={"status", "hours"}, after=text)


@pytest.mark.parametrize("size", [0, -1, None, "5", True, 1.5])
def test_a_page_has_at_least_one_item(lived, size):
    with pytest.raises(QueryError, match="size is"):
        changes_page(lived, Ticket, size=size)


def test_a_filter_that_does_not_exist_is_refused(lived):
    for read in (changes_page, lambda session, *args, **kw: get_resource_changes(*args, session, **kw)):
        with pytest.raises(TypeError, match=r"no keyword argument 'changeset_ids'.*filter_operations"):
            read(lived, Ticket, changeset_ids=[])
    with pytest.raises(TypeError, match="'limit'"):
        changes_page(lived, Ticket, limit=5)
    with pytest.raises(TypeError, match="'limit'"):
        changesets_page(lived, limit=5)


# --- filters ----------------------------------------------------------------------------------------------------


def told(changes):
    return [(change.resource_id, change.old_value, change.new_value) for change in changes]


def test_changes_are_filtered_by_operation(lived):
    changes = get_resource_changes(Ticket, lived, include="tags")
    for operations in ("insert", ["delete"], ["link", "unlink"], {"update", "link"}, ["baseline"]):
        wanted = [change for change in changes if change.operation in operations]
        assert get_resource_changes(Ticket, lived, include="tags", filter_operations=operations) == wanted
        of_one = [change for change in changes if change.resource_id == 1 and change.operation in operations]
        kw = {"include": "tags", "filter_operations": operations}
        assert list(stream_resource_changes(Ticket, lived, 1, **kw)) == of_one
    with pytest.raises(QueryError, match=r"'updated'.*Give some of insert, update"):
        get_resource_changes(Ticket, lived, filter_operations=["update", "updated"])


def test_changes_are_filtered_by_values(lived):
    kw = {"filter_fields": "status"}
    assert told(get_resource_changes(Ticket, lived, **kw, filter_new_values="closed")) == [(2, "open", "closed")]
    assert told(get_resource_changes(Ticket, lived, **kw, filter_old_values=("open", "x"), limit=1)) == [
        (2, "open", "closed")
    ]
    assert told(get_resource_changes(Ticket, lived, 4, **kw, filter_new_values=[None])) == [(4, "open", None)]
    assert told(get_resource_changes(Ticket, lived, filter_old_values="5", filter_new_values=[6, 7])) == [(1, 5, 6)]
    assert get_resource_changes(Ticket, lived, filter_new_values="no such") == []
    assert told(get_resource_changes(Ticket.tags, lived, filter_old_values=1)) == [(1, (1,), None)]
    assert told(get_resource_changes(Ticket.tags, lived, filter_new_values=["1", 2])) == [(1, None, (1,))]


@pytest.mark.parametrize(
    ("field", "old", "new", "given"),
    [
        ("price", 1, 2, "2.00"),
        ("mood", Mood.CALM, Mood.ANGRY, Mood.ANGRY),
        ("is_open", False, True, True),
        ("data", {"a": 1}, {"a": [1]}, {"a": [1]}),
        ("data", [1], [2], [[2]]),
    ],
)
def test_values_of_all_types_are_compared_as_python_does(tables, session, field, old, new, given):
    session.add(Ticket(id=1, hours=1, **{field: old}))
    session.commit()
    setattr(session.get(Ticket, 1), field, new)
    session.commit()
    [change] = get_resource_changes(Ticket, session, filter_new_values=given)
    assert (change.field_name, change.new_value) == (field, new)
    assert get_resource_changes(Ticket, session, filter_fields=field, filter_old_values=given) == []


def test_values_are_looked_for_as_far_as_it_takes(tables, session):
    """A limit counts what the filters leave."""
    ticket = Ticket(id=1)
    session.add_all([ticket, Ticket(id=2)])
    session.commit()
    for hours in range(30):
        ticket.hours = hours
        session.commit()
    for ids in (None, 1, [1, 2]):
        found = get_resource_changes(Ticket, session, ids, "hours", filter_new_values=[25, 28], limit=2)
        assert [change.new_value for change in found] == [25, 28]
        [found] = get_resource_changes(Ticket, session, ids, filter_new_values=3, newest_first=True, limit=1)
        assert found.new_value == 3


def test_filters_may_be_iterators(lived):
    changes = get_resource_changes(Ticket, lived, iter([1]), include="tags")
    assert {change.operation for change in changes} == {"insert", "update", "link", "unlink"}


def test_versions_are_limited_and_begin_at_an_instant(lived):
    every = versions_of(lived, Ticket, 1)
    assert len(every) > 5
    for newest_first in (False, True):
        ordered = every[::-1] if newest_first else every
        assert versions_of(lived, Ticket, "1", newest_first=newest_first) == ordered
        for limit in (0, 1, 3, len(every), 99):
            assert versions_of(lived, Ticket, 1, limit=limit, newest_first=newest_first) == ordered[:limit]
        since = every[2].valid_from
        later = [version for version in ordered if version.valid_from >= since]
        assert versions_of(lived, Ticket, 1, since=since, newest_first=newest_first) == later
        assert versions_of(lived, Ticket, 1, since=since, newest_first=newest_first, limit=2) == later[:2]
        links = versions_of(lived, Ticket.tags, 1, newest_first=newest_first, limit=1)
        assert [link.audit_operation for link in links] == ["delete" if newest_first else "insert"]
    assert versions_of(lived, Ticket, "none such") == []
    with pytest.raises(QueryError, match="limit"):
        versions_of(lived, Ticket, 1, limit=-1)
    with pytest.raises(QueryError, match="datetime"):
        versions_of(lived, Ticket, 1, since="today")
