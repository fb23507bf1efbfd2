"""A write touches as many blocks whether its rows have 10 versions or 5,000: see long_history.py."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from databases import Database
from long_history import LONG, Base, Item, explained, happen

__all__ = ["Base", "happen"]
pytestmark = pytest.mark.requires("block_counts")

ROWS = {"long": 7, "short": LONG + 42}


def a_row_is_inserted(session: Session, key: int) -> None:
    session.add(Item(name="new", amount=1))
    session.flush()


def a_row_is_updated(session: Session, key: int) -> None:
    session.get_one(Item, key).name = "new"
    session.flush()


def a_row_is_updated_twice(session: Session, key: int) -> None:
    a_row_is_updated(session, key)
    session.get_one(Item, key).name = "newer"
    session.flush()


def a_row_is_deleted(session: Session, key: int) -> None:
    session.delete(session.get_one(Item, key))
    session.flush()


def a_deleted_row_is_inserted_again(session: Session, key: int) -> None:
    a_row_is_deleted(session, key)
    session.add(Item(id=key, name="new", amount=1))
    session.flush()


def a_statement_updates_a_row(session: Session, key: int) -> None:
    session.execute(sa.update(Item).where(Item.id == key).values(name=Item.name + "!"))


def a_statement_deletes_a_row(session: Session, key: int) -> None:
    session.execute(sa.delete(Item).where(Item.id == key))


def rows_are_updated(session: Session, key: int) -> None:
    for item in session.scalars(sa.select(Item).where(Item.id.in_([key, key + 1]))):
        item.name += "!"
    session.flush()


def rows_are_updated_twice(session: Session, key: int) -> None:
    rows_are_updated(session, key)
    rows_are_updated(session, key)


def rows_are_deleted(session: Session, key: int) -> None:
    for item in session.scalars(sa.select(Item).where(Item.id.in_([key, key + 1]))):
        session.delete(item)
    session.flush()


def deleted_rows_are_inserted_again(session: Session, key: int) -> None:
    rows_are_deleted(session, key)
    session.add_all([Item(id=key, name="new", amount=1), Item(id=key + 1, name="new", amount=1)])
    session.flush()


def a_statement_updates_rows(session: Session, key: int) -> None:
    session.execute(sa.update(Item).where(Item.id.in_([key, key + 1])).values(name=Item.name + "!"))


def a_statement_updates_rows_that_it_finds(session: Session, key: int) -> None:
    session.execute(sa.update(Item).where(Item.id.between(key, key + 1)).values(name=Item.name + "!"))


def a_statement_deletes_rows(session: Session, key: int) -> None:
    session.execute(sa.delete(Item).where(Item.id.in_([key, key + 1])))


WRITES: dict[Callable[[Session, int], None], int] = {
    a_row_is_inserted: 100,
    a_row_is_updated: 80,
    a_row_is_updated_twice: 200,
    a_row_is_deleted: 80,
    a_deleted_row_is_inserted_again: 200,
    a_statement_updates_a_row: 150,
    a_statement_deletes_a_row: 150,
    rows_are_updated: 150,
    rows_are_updated_twice: 450,
    rows_are_deleted: 150,
    deleted_rows_are_inserted_again: 400,
    a_statement_updates_rows: 250,
    a_statement_updates_rows_that_it_finds: 250,
    a_statement_deletes_rows: 250,
}
"""The most blocks that all statements of a write may touch."""


@pytest.fixture
def clean(database: Database) -> Iterator[None]:
    """Leave no deleted rows to the next test that counts blocks."""
    yield
    database.hold(None)


@pytest.mark.new_tables
def test_a_write_of_one_row_or_of_two_touches_few_blocks(engine, sessions, happened, clean):
    for write, most in WRITES.items():
        for row, key in ROWS.items():
            with sessions() as session, explained(engine) as statements:
                write(session, key)
                session.rollback()
            touched = sum(statement.blocks for statement in statements)
            assert touched <= most, (write.__name__, row, touched, statements)
            assert all("items_history" not in statement.scanned for statement in statements), statements
