"""A write reads no more rows of a long history than of a short one on MariaDB, which has no partial indexes."""

from collections.abc import Callable, Sequence

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from long_history import Base, Item, load, rows_read
from registering import recording
from sqlaudit import versions_of

__all__ = ["Base"]
pytestmark = pytest.mark.requires("counts_of_rows_read")


ROWS = {"one row": ([1], [3]), "two rows": ([1, 2], [3, 4])}
"""The keys of rows with two versions, and of as many with 500."""


@pytest.fixture
def histories(engine, tables) -> None:
    load(engine, Item, (2, 2), (2, 500))


def items(session: Session, ids: Sequence[int]) -> Sequence[Item]:
    return session.scalars(sa.select(Item).where(Item.id.in_(ids))).all()


def update(session: Session, *ids: int) -> None:
    for item in items(session, ids):
        item.name += "!"
    session.flush()


def update_twice(session: Session, *ids: int) -> None:
    update(session, *ids)
    update(session, *ids)


def delete(session: Session, *ids: int) -> None:
    for item in items(session, ids):
        session.delete(item)
    session.flush()


def delete_and_insert_again(session: Session, *ids: int) -> None:
    delete(session, *ids)
    session.add_all([Item(id=id, name="new", amount=1) for id in ids])
    session.flush()


def update_by_statement(session: Session, *ids: int) -> None:
    session.execute(sa.update(Item).where(Item.id.in_(ids)).values(name=Item.name + "!"))


def update_found_by_statement(session: Session, *ids: int) -> None:
    session.execute(sa.update(Item).where(Item.id.between(min(ids), max(ids))).values(name=Item.name + "!"))


def delete_by_statement(session: Session, *ids: int) -> None:
    session.execute(sa.delete(Item).where(Item.id.in_(ids)))


WRITES = (
    update,
    update_twice,
    delete,
    delete_and_insert_again,
    update_by_statement,
    update_found_by_statement,
    delete_by_statement,
)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("short", "long"), ROWS.values(), ids=ROWS)
def test_a_write_reads_no_more_of_a_long_history_than_of_a_short_one(
    write: Callable[..., None], short: Sequence[int], long: Sequence[int], sessions, histories
):
    read = []
    for ids in (short, short, long):  # the first time, it also asks the catalogue
        with sessions() as session:
            before = rows_read(session)
            write(session, *ids)
            read.append(rows_read(session) - before)
            session.rollback()
    _, of_short, of_long = read
    assert of_long <= of_short


def test_a_history_table_that_lacks_the_column_is_written_too(engine, database, histories):
    with engine.begin() as connection:
        connection.execute(sa.DDL("ALTER TABLE items_history DROP INDEX uq_items_history_open"))
        connection.execute(sa.DDL("ALTER TABLE items_history DROP COLUMN audit_version_closed"))
    other_engine = database.create_engine(pool_size=2)  # which has not asked the catalogue yet
    with recording(other_engine) as sessions, sessions() as session:
        update_twice(session, 1)
        session.commit()
        delete(session, 1)
        session.commit()
        operations = [version.audit_operation for version in versions_of(session, Item, 1)]
        assert operations == ["insert", "update", "update", "delete"]
    other_engine.dispose()
