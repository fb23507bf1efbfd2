"""A read touches a bounded number of blocks, however many versions there are: see long_history.py."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from sqlalchemy.orm import Session

from long_history import BEGIN, LONG, Base, Item, explained, happen
from sqlaudit import (
    as_of,
    changes_in,
    changes_page,
    changesets,
    changesets_page,
    compare,
    compare_page,
    diff,
    get_resource_changes,
    history_of,
    versions_of,
)
from sqlaudit.retrieval import changeset_reader, pages

__all__ = ["Base", "happen"]
pytestmark = pytest.mark.requires("block_counts")

SHORT = LONG + 42
"""A row with 10 versions. The rows of the reads below have 5,000 if they are not this one."""
WHEN = BEGIN + timedelta(seconds=12_000)
SOON = WHEN + timedelta(seconds=10)
"""The middle of the history, and 10 transactions later."""


def a_row_as_of_an_instant(session: Session) -> Any:
    return session.scalars(as_of(Item, WHEN).where(Item.id == 7)).all()


def ten_rows_as_of_an_instant(session: Session) -> Any:
    return session.scalars(as_of(Item, WHEN).where(Item.id.in_(range(1, 11)))).all()


def ten_rows_of_few_versions_as_of_an_instant(session: Session) -> Any:
    return session.scalars(as_of(Item, WHEN).where(Item.id.in_(range(500, 5_000, 450)))).all()


def the_versions_of_a_row(session: Session) -> Any:
    return versions_of(session, Item, SHORT)


def the_latest_transactions(session: Session) -> Any:
    return changesets(session, limit=20, newest_first=True)


def the_latest_transactions_of_a_user(session: Session) -> Any:
    return changesets(session, limit=20, newest_first=True, user_id="user 3")


def the_first_transactions(session: Session) -> Any:
    return changesets(session, limit=20)


def the_next_transactions(session: Session) -> Any:
    return changesets(session, limit=20, since=WHEN)


def the_transactions_of_a_time(session: Session) -> Any:
    return changesets(session, since=WHEN, until=SOON)


def the_changes_of_a_transaction(session: Session) -> Any:
    return changes_in(session, "00000000-0000-0000-0000-000000000aaa")


def the_latest_changes(session: Session) -> Any:
    return get_resource_changes(Item, session, limit=10, newest_first=True)


def the_latest_changes_by_a_user(session: Session) -> Any:
    return get_resource_changes(Item, session, filter_user_ids="user 3", limit=10, newest_first=True)


def the_first_changes(session: Session) -> Any:
    return get_resource_changes(Item, session, limit=10)


def the_changes_of_a_time(session: Session) -> Any:
    return get_resource_changes(Item, session, filter_date_range=(WHEN, SOON))


def the_next_changes(session: Session) -> Any:
    return get_resource_changes(Item, session, filter_date_range=(WHEN, None), limit=10)


def at_place(module: Any, *place: Any) -> Any:
    """Let any cursor name a place far from the first page, to which nobody wants to turn pages."""
    return mock.patch.object(module, "place_in", return_value=place)


def a_page(session: Session, *ids: int, place: int, newest_first: bool = False) -> Any:
    with at_place(pages, place):
        return changes_page(session, Item, *ids, size=10, newest_first=newest_first, after="a cursor").items


def a_page_far_from_the_first(session: Session) -> Any:
    return a_page(session, place=int(WHEN.timestamp()) * 1_000_000)


def a_page_far_from_the_latest(session: Session) -> Any:
    return a_page(session, place=int(WHEN.timestamp()) * 1_000_000, newest_first=True)


def a_page_of_a_row(session: Session) -> Any:
    return a_page(session, 7, place=2_500)


def the_latest_changes_of_a_row(session: Session) -> Any:
    return get_resource_changes(Item, session, 7, newest_first=True, limit=10)


def the_latest_versions_of_a_row(session: Session) -> Any:
    return versions_of(session, Item, 7, newest_first=True, limit=10)


def what_differs_between_two_instants(session: Session) -> Any:
    return list(compare(session, Item, WHEN, SOON))


def the_first_page_of_what_differs(session: Session) -> Any:
    return compare_page(session, Item, WHEN, SOON, size=10).items


def what_differs_in_a_row(session: Session) -> Any:
    return diff(session, Item, 7, WHEN, WHEN + timedelta(hours=1))


def a_page_of_transactions(session: Session, **filters: Any) -> Any:
    with at_place(changeset_reader, int(WHEN.timestamp()) * 1_000_000, bytes(16)):
        return changesets_page(session, size=20, after="a cursor", **filters).items


def a_page_of_transactions_far_from_the_first(session: Session) -> Any:
    return a_page_of_transactions(session)


def a_page_of_transactions_far_from_the_latest(session: Session) -> Any:
    return a_page_of_transactions(session, newest_first=True)


def the_latest_transactions_that_wrote_a_row(session: Session) -> Any:
    return changesets(session, model=Item, key=SHORT, limit=3, newest_first=True)


READS: dict[Callable[[Session], Any], int] = {
    a_row_as_of_an_instant: 100,
    ten_rows_as_of_an_instant: 600,
    ten_rows_of_few_versions_as_of_an_instant: 250,
    the_versions_of_a_row: 50,
    the_latest_versions_of_a_row: 50,
    the_latest_transactions: 50,
    the_latest_transactions_of_a_user: 200,
    the_first_transactions: 50,
    the_next_transactions: 50,
    the_transactions_of_a_time: 100,
    the_changes_of_a_transaction: 50,
    the_latest_changes: 150,
    the_latest_changes_by_a_user: 150,
    the_first_changes: 150,
    the_changes_of_a_time: 250,
    the_next_changes: 150,
    a_page_of_transactions_far_from_the_first: 150,
    a_page_of_transactions_far_from_the_latest: 300,
    the_latest_transactions_that_wrote_a_row: 300,
    what_differs_between_two_instants: 500,
    the_first_page_of_what_differs: 2_500,  # of 2,000 versions by their keys, if they are not in the index alone
    what_differs_in_a_row: 200,
    a_page_far_from_the_first: 500,
    a_page_far_from_the_latest: 500,
    a_page_of_a_row: 50,
    the_latest_changes_of_a_row: 50,
}
"""The most blocks that all statements of a read may touch. Their tables have more than 1,500."""


@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
def test_a_read_touches_few_blocks(read, engine, sessions, happened):
    with sessions() as session, explained(engine) as statements:
        assert read(session)
        assert sum(statement.blocks for statement in statements) <= READS[read], statements
        assert all(not statement.scanned for statement in statements), statements


def test_a_read_without_an_index_touches_many_blocks(engine, sessions, happened):
    version = history_of(Item)
    with sessions() as session, explained(engine) as statements:
        session.query(version).where(version.amount == 7).all()
        [statement] = statements
        assert statement.blocks > 1_000
        assert statement.scanned == {"items_history"}
