"""Statements that name the keys of their rows read the partitions of these keys, where a history is long."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from long_history import BEGIN, Columns, load
from sqlaudit import as_of, get_resource_changes, history_of, track_table

LATER = BEGIN + timedelta(days=1)
pytestmark = pytest.mark.requires("partitions")


class Base(DeclarativeBase):
    pass


@track_table(partitions=4)
class Item(Columns, Base):
    __tablename__ = "items"


def happen(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        engine = session.get_bind()
    load(engine, Item, (8_000, 5))


def one_row_is_updated(session: Session, ids: list[int]) -> None:
    session.get_one(Item, ids[0]).name = "new"
    session.flush()


def rows_are_updated(session: Session, ids: list[int]) -> None:
    for item in session.scalars(sa.select(Item).where(Item.id.in_(ids))):
        item.name = "new"
    session.flush()


def rows_are_updated_twice(session: Session, ids: list[int]) -> None:
    rows_are_updated(session, ids)
    for item in session.scalars(sa.select(Item).where(Item.id.in_(ids))):
        item.name = "newer"
    session.flush()


def rows_are_deleted(session: Session, ids: list[int]) -> None:
    for item in session.scalars(sa.select(Item).where(Item.id.in_(ids))):
        session.delete(item)
    session.flush()


def a_statement_updates_a_row(session: Session, ids: list[int]) -> None:
    session.execute(sa.update(Item).where(Item.id == ids[0]).values(name="new"))


def a_statement_updates_rows(session: Session, ids: list[int]) -> None:
    session.execute(sa.update(Item).where(Item.id.in_(ids)).values(name="new"))


def a_statement_deletes_rows(session: Session, ids: list[int]) -> None:
    session.execute(sa.delete(Item).where(Item.id.in_(ids)))


def a_row_is_read_as_it_was(session: Session, ids: list[int]) -> None:
    session.scalars(as_of(Item, LATER).where(Item.id == ids[0])).one()


def rows_are_read_as_they_were(session: Session, ids: list[int]) -> None:
    assert len(session.scalars(as_of(Item, LATER).where(Item.id.in_(ids))).all()) == len(ids)


def the_changes_of_a_row_are_read(session: Session, ids: list[int]) -> None:
    assert get_resource_changes(Item, session, filter_resource_ids=[ids[0]])


@pytest.mark.parametrize(
    "work",
    [
        one_row_is_updated,
        rows_are_updated,
        rows_are_updated_twice,
        rows_are_deleted,
        a_statement_updates_a_row,
        a_statement_updates_rows,
        a_statement_deletes_rows,
        a_row_is_read_as_it_was,
        rows_are_read_as_they_were,
        the_changes_of_a_row_are_read,
    ],
)
def test_only_the_partitions_of_the_keys_are_read(
    happened: None, session: Session, work: Callable[[Session, list[int]], None]
) -> None:
    places: dict[str, list[int]] = {}
    version = history_of(Item)
    place = sa.cast(sa.cast(sa.column("tableoid"), sa.dialects.postgresql.REGCLASS), sa.Text)
    for name, id in session.execute(sa.select(place, version.id).where(version.audit_version == 1)):
        places.setdefault(name, []).append(id)
    session.rollback()
    name, ids = max(places.items(), key=lambda item: len(item[1]))
    scanned = set()
    for _ in range(8):
        # A plan for all keys is the hardest. The server keeps it, and reads none of the indexes to make it, once the
        # driver has sent the statement five times.
        session.execute(sa.text("SET LOCAL plan_cache_mode = force_generic_plan"))
        before = scans_so_far(session)
        work(session, ids[:3])
        scanned = {part for part, _ in scans_so_far(session) - before}
        session.rollback()
    assert scanned == {name}


def scans_so_far(session: Session) -> set[tuple[str, int]]:
    """Return how many scans of each partition of the history there were, by the names of the partitions."""
    statement = "SELECT relname, seq_scan + idx_scan FROM pg_stat_xact_user_tables WHERE relname LIKE :name"
    return {(name, scans) for name, scans in session.execute(sa.text(statement), {"name": "items_history_p_"})}
