"""What changesets tell: every transaction that wrote tracked rows, in all the tables that a session can read."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit
from invariants import recording
from sqlaudit import QueryError, SQLAuditConfig, history_of
from sqlaudit.changesets import instant_of_changeset

START = datetime(2024, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase):
    pass


links = sa.Table(
    "changesets_links",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("changesets_customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("changesets_tags.id"), primary_key=True),
)


@sqlaudit.track_table()
class Customer(Base):
    __tablename__ = "changesets_customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    tags: Mapped[list["Tag"]] = relationship(secondary=links)


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "changesets_tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))


class Elsewhere(DeclarativeBase):
    pass


@sqlaudit.track_table()
class Parcel(Elsewhere):
    __tablename__ = "changesets_parcels"

    id: Mapped[int] = mapped_column(primary_key=True)


class Clock:
    """Gives the instants START, START + 1 s … to the transactions that write, in turn."""

    def __init__(self) -> None:
        self.now = START - timedelta(seconds=1)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@pytest.fixture
def maker(engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
    with recording(engine, Base.metadata) as maker:
        yield maker


def changeset_of(session: Session, model: type, number: int = 1) -> UUID:
    """Return the changeset of a version of the only row."""
    history = history_of(model)
    return session.scalars(sa.select(history.audit_changeset_id).where(history.audit_version == number)).one()


# --- the instant of a changeset ---------------------------------------------------------------------------------


def test_a_changeset_stands_for_its_instant(maker):
    with maker.begin() as session:
        session.add(Customer(id=1, name="Ada"))
    with maker.begin() as session:
        session.add(Tag(id=1))
    with maker() as session:
        first, second = changeset_of(session, Customer), changeset_of(session, Tag)
        assert instant_of_changeset(session, first) == at(0)
        assert instant_of_changeset(session, str(second)) == at(1)


def test_links_alone_make_a_changeset(maker):
    with maker.begin() as session:
        session.add_all([Customer(id=1), Tag(id=1)])
    with maker.begin() as session:
        customer = session.get_one(Customer, 1)
        customer.tags.append(session.get_one(Tag, 1))
    with maker() as session:
        history = Base.metadata.tables["changesets_links_history"]
        linked = session.scalars(sa.select(history.c.audit_changeset_id)).one()
        assert instant_of_changeset(session, linked) == at(1)


def test_what_is_not_flushed_yet_counts(maker):
    with maker() as session:
        session.add(Customer(id=1))
        session.flush()
        changeset = changeset_of(session, Customer)
        customer = session.get_one(Customer, 1)
        customer.name = "Ada"
        assert instant_of_changeset(session, changeset) == at(0)
        assert not session.dirty


@pytest.mark.parametrize("given", ["no uuid", 42, None, b"x"])
def test_what_is_no_uuid_is_no_changeset(maker, given):
    with maker() as session, pytest.raises(QueryError, match="no changeset id"):
        instant_of_changeset(session, given)


def test_a_changeset_that_no_table_has_is_unknown(maker):
    with maker() as session, pytest.raises(QueryError, match="00000000-0000-0000-0000-000000000001"):
        instant_of_changeset(session, UUID(int=1))


def test_tables_on_other_binds_are_looked_at_and_those_without_a_bind_are_not(database, engine, maker):
    other = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with recording(other, Elsewhere.metadata) as elsewhere, elsewhere.begin() as session:
        session.add(Parcel(id=1))
        session.flush()
        changeset = changeset_of(session, Parcel)
    with maker() as session, pytest.raises(QueryError):
        instant_of_changeset(session, changeset)
    with Session(binds={Customer: engine, Tag: engine}) as session, pytest.raises(QueryError):
        instant_of_changeset(session, changeset)
    with Session(binds={Base: engine, Elsewhere: other}) as session:
        assert instant_of_changeset(session, changeset)
    other.dispose()
