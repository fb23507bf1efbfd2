"""A write reads no more rows of a long history than of a short one on MariaDB, which has no partial indexes."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from clock import START
from registering import recording
from sqlaudit import OPEN_END, Operation, history_of, track_table, versions_of

pytestmark = pytest.mark.requires("counts_of_rows_read")


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))


VERSIONS = {1: 2, 2: 2, 3: 500, 4: 500}
"""How many versions each row has."""


@pytest.fixture
def histories(engine, tables) -> None:
    versions = [
        {
            "id": id,
            "name": "old",
            "audit_version": number,
            "valid_from": START + timedelta(minutes=number),
            "valid_to": START + timedelta(minutes=number + 1) if number < count else OPEN_END,
            "audit_operation": Operation.UPDATE,
            "audit_changeset_id": UUID(int=number),
        }
        for id, count in VERSIONS.items()
        for number in range(1, count + 1)
    ]
    with engine.begin() as connection:
        connection.execute(sa.insert(Item), [{"id": id, "name": "old"} for id in VERSIONS])
        connection.execute(sa.insert(history_of(Item)), versions)
        connection.execute(sa.DDL("ANALYZE TABLE items, items_history"))


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
    session.add_all([Item(id=id, name="new") for id in ids])
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


def rows_read(session: Session) -> int:
    counts = session.connection().exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
    return sum(int(count) for _, count in counts)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("short", "long"), [((1,), (3,)), ((1, 2), (3, 4))], ids=["one row", "two rows"])
def test_a_write_reads_no_more_of_a_long_history_than_of_a_short_one(
    write: Callable[..., None], short: tuple[int, ...], long: tuple[int, ...], sessions, histories
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
        assert operations == ["update", "update", "update", "delete"]
    other_engine.dispose()
