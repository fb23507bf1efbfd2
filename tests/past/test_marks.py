"""Instants with a name: made, found, removed, and usable wherever an instant is."""

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from clock import at
from sqlaudit import (
    AuditContextManager,
    Mark,
    QueryError,
    SQLAuditConfig,
    TrackingError,
    as_of,
    between,
    changes_page,
    changesets,
    get_resource_changes,
    mark,
    mark_named,
    marks,
    marks_table,
    remove_mark,
    restore,
    set_config,
    time_travel,
    track_table,
    versions_of,
)


class Base(DeclarativeBase):
    pass


@track_table()
class Price(Base):
    __tablename__ = "prices"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


marks_table(Base.metadata)


@pytest.fixture
def lived(tables, clock, session):
    """A price of 1, a mark, and a price of 2."""
    price = Price(id=1, amount=1)
    session.add(price)
    session.commit()
    with AuditContextManager(user_id="ana"):
        mark(session, "before the import")
        session.commit()
    price.amount = 2
    session.commit()
    return session


def test_a_mark_has_an_instant_and_its_user(lived):
    before = mark_named(lived, "before the import")
    assert before == Mark("before the import", at(1), "ana")
    assert marks(lived) == [before]
    later = mark(lived, "later")
    assert marks(lived) == [before, later]
    assert later.changed_by is None
    lived.rollback()
    assert marks(lived) == [before]
    remove_mark(lived, "before the import")
    assert marks(lived) == []


def test_a_mark_is_usable_wherever_an_instant_is(lived):
    before = mark_named(lived, "before the import")
    assert lived.scalars(as_of(Price, before)).one().amount == 1
    with time_travel(lived, before) as past:
        assert past.get(Price, 1).amount == 1
    later = mark(lived, "later")
    assert [version.amount for version in lived.scalars(between(Price, before, later))] == [1, 2]
    assert [version.amount for version in versions_of(lived, Price, 1, since=before)] == [2]
    assert [entry.timestamp for entry in changesets(lived, since=before, until=later)] == [at(2)]
    dates = {"filter_date_range": (before, later)}
    changes = get_resource_changes(Price, lived, **dates)
    assert [change.new_value for change in changes] == [2]
    assert changes_page(lived, Price, **dates).items == changes
    [restored] = restore(lived, Price, 1, at=before)
    assert restored.fields == {"amount": (2, 1)}


def test_what_is_pending_is_before_the_mark(lived):
    lived.get(Price, 1).amount = 3
    made = mark(lived, "later")
    lived.commit()
    assert lived.scalars(as_of(Price, made)).one().amount == 3


def test_the_user_of_a_mark_may_come_from_the_callback(lived):
    set_config(SQLAuditConfig(get_user_id_callback=lambda: 7))
    assert mark(lived, "m").changed_by == "7"


def test_a_name_is_given_once_and_case_matters(lived):
    with pytest.raises(QueryError, match="There is a mark 'before the import' already, of 2024"):
        mark(lived, "before the import")
    mark(lived, "Before the import")
    with pytest.raises(QueryError, match=r"no mark 'x'\. The latest marks are: 'before the import', 'Before"):
        mark_named(lived, "x")
    with pytest.raises(QueryError, match="no mark 'x'"):
        remove_mark(lived, "x")
    with pytest.raises(QueryError, match="mark_named"):
        as_of(Price, "before the import")


@pytest.mark.parametrize("name", ["", "x" * 256, None, 7, "a\0", "\ud800", b"before", ["before the import"]], ids=ascii)
def test_what_cannot_be_a_name_is_refused_and_is_no_mark(lived, name):
    with pytest.raises(QueryError, match="1 to 255 characters"):
        mark(lived, name)
    for work in (mark_named, remove_mark):
        with pytest.raises(QueryError, match="There is no mark"):
            work(lived, name)
    assert len(marks(lived)) == 1


def test_the_table_of_marks_is_declared_once(lived):
    assert marks_table(Base.metadata) is Base.metadata.tables["sqlaudit_marks"]
    other = sa.MetaData()
    sa.Table("prices", other)
    with pytest.raises(TrackingError, match="already"):
        marks_table(other, "prices")


@pytest.mark.no_tables
def test_a_database_without_the_table_is_told_from_one_with_it(engine, session):
    for work in (marks, lambda session: mark(session, "m"), lambda session: remove_mark(session, "m")):
        with pytest.raises(QueryError, match=r"no table .*'sqlaudit_marks'"):
            work(session)
    assert session.scalar(sa.select(1)) == 1


def test_marks_are_where_the_tracked_tables_are(tables, clock, engine):
    with Session(binds={Price: engine}) as session:
        mark(session, "m")
        assert [found.name for found in marks(session)] == ["m"]
    with Session(binds={Price: engine}) as session:
        assert marks(session) == []
