"""A write reads no more rows of a long history than of a short one on MariaDB, which has no partial indexes."""

from collections.abc import Callable
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


VERSIONS = {1: 2, 2: 500}
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


def update(session: Session, id: int) -> None:
    session.get_one(Item, id).name += "!"
    session.flush()


def update_twice(session: Session, id: int) -> None:
    update(session, id)
    update(session, id)


def delete(session: Session, id: int) -> None:
    session.delete(session.get_one(Item, id))
    session.flush()


def rows_read(session: Session) -> int:
    counts = session.connection().exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
    return sum(int(count) for _, count in counts)


@pytest.mark.parametrize("write", [update, update_twice, delete])
def test_a_write_reads_no_more_of_a_long_history_than_of_a_short_one(
    write: Callable[[Session, int], None], sessions, histories
):
    read = []
    for id in (1, *VERSIONS):  # the first time, it also asks the catalogue
        with sessions() as session:
            before = rows_read(session)
            write(session, id)
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
