"""The dynamic collection of an object of the past queries the past, however it is used."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, DynamicMapped, Mapped, mapped_column, relationship

from registering import recording
from sqlaudit import ReadOnlyError, SQLAuditConfig, as_of, set_config, track_table

THEN = datetime(2024, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase):
    pass


@track_table()
class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    entries: DynamicMapped["Entry"] = relationship(cascade="all, delete-orphan")


@track_table()
class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(sa.ForeignKey("accounts.id"))
    amount: Mapped[int]


def test_the_dynamic_collection_of_a_past_object_queries_the_past_and_writes_nothing(engine):
    instants = iter([THEN, THEN + timedelta(days=1)])
    with recording(engine) as maker, maker() as session:
        set_config(SQLAuditConfig(clock=lambda: next(instants)))
        session.add(Account(id=1, entries=[Entry(id=1, amount=5)]))
        session.commit()
        session.get_one(Entry, 1).amount = 9
        session.commit()
        entries = session.scalars(as_of(Account, THEN)).one().entries
        assert [each.amount for each in entries] == [5]
        assert [each.amount for each in entries.filter(Entry.amount == 5)] == [5]
        assert (entries.count(), entries.filter(Entry.amount == 9).count()) == (1, 0)
        assert session.query(entries.filter(Entry.amount == 5).exists()).scalar()
        rows = entries.order_by(Entry.id).subquery()
        assert session.scalars(sa.select(rows.c.amount)).all() == [5]
        for write in (lambda: entries.update({"amount": 7}), entries.delete):
            with pytest.raises(ReadOnlyError):
                write()
        session.rollback()
        assert session.scalars(sa.select(Entry.amount)).all() == [9]
