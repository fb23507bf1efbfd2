"""A read touches a bounded number of blocks, however many versions there are: see long_history.py."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.orm import Session

from clock import at
from long_history import LONG, Base, Item, explained, happen
from sqlaudit import as_of, changes_in, history_of, versions_of

__all__ = ["Base", "happen"]
pytestmark = pytest.mark.requires("block_counts")

SHORT = LONG + 42
"""A row with 10 versions. The rows of the reads below have 5,000 if they are not this one."""
WHEN = at(12_000)
"""The middle of the history."""


def a_row_as_of_an_instant(session: Session) -> Any:
    return session.scalars(as_of(Item, WHEN).where(Item.id == 7)).all()


def the_versions_of_a_row(session: Session) -> Any:
    return versions_of(session, Item, SHORT)


def the_changes_of_a_transaction(session: Session) -> Any:
    return changes_in(session, "00000000-0000-0000-0000-000000000aaa")


READS: dict[Callable[[Session], Any], int] = {
    a_row_as_of_an_instant: 100,
    the_versions_of_a_row: 50,
    the_changes_of_a_transaction: 50,
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
