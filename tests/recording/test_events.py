"""Listeners are told what was recorded, after a flush or statement, and what is left of it, after the commit."""

import asyncio
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

import sqlaudit
from registering import recording
from sqlaudit import AuditContextManager, Recording, record_changes, tracking_disabled
from sqlaudit.recording import events


class Base(DeclarativeBase):
    pass


links = sa.Table(
    "events_links",
    Base.metadata,
    sa.Column("person_id", sa.ForeignKey("events_people.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("events_tags.id"), primary_key=True),
)


@sqlaudit.track_table()
class Person(Base):
    __tablename__ = "events_people"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(20))
    name: Mapped[str | None] = mapped_column(sa.String(50))
    tags: Mapped[list["Tag"]] = relationship(secondary=links)


class Pilot(Person):
    __tablename__ = "events_pilots"
    __mapper_args__ = {"polymorphic_identity": "pilot"}

    id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id), primary_key=True)
    plane: Mapped[str | None] = mapped_column(sa.String(50))


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "events_tags"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@contextmanager
def listening(name, listener):
    event.listen(Recording, name, listener)
    try:
        yield
    finally:
        event.remove(Recording, name, listener)


@pytest.fixture
def told():
    """What the listeners were told: (event, rows)."""
    told = []

    def rows_of(items):
        return sorted((item.resource_type, item.key, str(item.operation)) for item in items)

    with (
        listening("recorded", lambda connection, items: told.append(("recorded", rows_of(items)))),
        listening("committed", lambda items: told.append(("committed", rows_of(items)))),
    ):
        yield told
    assert not events.recorded_listeners
    assert not events.committed_listeners


def test_a_flush_and_a_commit_tell_what_they_recorded(sessions, told):
    with sessions() as session:
        session.add_all([Person(id=1, tags=[Tag(id=5)]), Pilot(id=2)])
        session.flush()
        rows = [
            ("Person", 1, "insert"),
            ("Pilot", 2, "insert"),
            ("Tag", 5, "insert"),
            ("events_links", (1, 5), "insert"),
        ]
        assert told == [("recorded", rows)]
        session.commit()
        assert told.pop() == ("committed", rows)
        told.clear()
        ada, pilot = session.get_one(Person, 1), session.get_one(Pilot, 2, options=[selectinload(Pilot.tags)])
        ada.name = "Ada"
        session.delete(pilot)
        session.commit()
        rows = [("Person", 1, "update"), ("Pilot", 2, "delete")]
        assert told == [("recorded", rows), ("committed", rows)]
        told.clear()
        session.scalars(sa.select(Person)).all()
        session.commit()
        assert told == []


def test_statements_tell_what_they_recorded(sessions, recorded_engine, told):
    with sessions.begin() as session:
        session.add_all([Tag(id=1), *(Person(id=id, name="Ada") for id in (1, 2, 3))])
    told.clear()
    with sessions() as session:
        session.execute(sa.update(Person).where(Person.id < 3).values(name="Bob"))
        assert told.pop() == ("recorded", [("Person", 1, "update"), ("Person", 2, "update")])
        session.connection().execute(sa.insert(links).values(person_id=1, tag_id=1))
        assert told.pop() == ("recorded", [("events_links", (1, 1), "insert")])
        with tracking_disabled(session):
            session.execute(sa.update(Person).where(Person.id == 3).values(name="Eve"))
        record_changes(session, Person)
        assert told.pop() == ("recorded", [("Person", 3, "update")])
        session.commit()
        written = [("Person", 1, "update"), ("Person", 2, "update"), ("Person", 3, "update")]
        assert told == [("committed", [*written, ("events_links", (1, 1), "insert")])]
    told.clear()
    with recorded_engine.connect() as connection:
        connection.execute(sa.delete(links))
        assert told.pop() == ("recorded", [("events_links", (1, 1), "delete")])
        connection.commit()
        assert told.pop() == ("committed", [("events_links", (1, 1), "delete")])
        connection.execute(sa.insert(Tag).values(id=7))
        connection.rollback()
        connection.commit()
        connection.execute(sa.insert(Tag).values(id=8))
        connection.commit()
        assert told[1:] == [("recorded", [("Tag", 8, "insert")]), ("committed", [("Tag", 8, "insert")])]


def test_nothing_is_told_after_a_commit_of_what_was_rolled_back(sessions, told):
    with sessions() as session:
        session.add(Tag(id=1))
        session.flush()
        with session.begin_nested() as savepoint:
            session.add(Tag(id=2))
            session.flush()
            savepoint.rollback()
        session.execute(sa.delete(Tag).where(Tag.id == 1))
        session.add(Tag(id=3))
        session.commit()
        assert told.pop() == ("committed", [("Tag", 3, "insert")])
        session.add(Tag(id=4))
        session.flush()
        session.rollback()
        told.clear()
        session.commit()
    assert told == []


def test_each_context_of_a_transaction_is_told(sessions):
    committed = []
    with listening("committed", committed.extend), sessions() as session:
        for user in ("ada", "bob"):
            with AuditContextManager(user_id=user, reason=f"for {user}"):
                session.merge(Person(id=1, name=user))
                session.flush()
        session.commit()
    assert [(item.changed_by, item.reason, item.version) for item in committed] == [
        ("ada", "for ada", 1),
        ("bob", "for bob", 2),
    ]
    assert len({item.changeset_id for item in committed}) == 1
    assert committed[0].to_dict("json")["operation"] == "insert"


def test_a_listener_that_raises_after_a_flush_or_statement_fails_it(sessions, recorded_engine):
    def refuse(connection, items):
        raise ZeroDivisionError

    with listening("recorded", refuse):
        with sessions() as session:
            session.add(Tag(id=1))
            with pytest.raises(ZeroDivisionError):
                session.commit()
        with sessions() as session, pytest.raises(ZeroDivisionError):
            session.execute(sa.insert(Tag).values(id=2))
        with recorded_engine.connect() as connection:
            with pytest.raises(ZeroDivisionError):
                connection.execute(sa.insert(Tag).values(id=3))
            connection.commit()
    with sessions() as session:
        assert session.scalars(sa.select(Tag)).all() == []


def test_a_listener_that_raises_after_a_commit_is_heard_and_the_transaction_is_committed(sessions, recorded_engine):
    def refuse(items):
        raise ZeroDivisionError

    with listening("committed", refuse):
        with sessions() as session:
            session.add(Tag(id=1))
            with pytest.raises(ZeroDivisionError):
                session.commit()
        with pytest.raises(ZeroDivisionError), recorded_engine.begin() as connection:
            connection.execute(sa.insert(Tag).values(id=2))
    with sessions() as session:
        assert sorted(tag.id for tag in session.scalars(sa.select(Tag))) == [1, 2]


def test_a_listener_may_write_in_the_transaction(sessions):
    def follow(connection, items):
        new = [item.key for item in items if item.resource_type == "Person" and item.operation == "insert"]
        if new:
            connection.execute(sa.insert(Tag), [{"id": key} for key in new])

    with listening("recorded", follow), sessions.begin() as session:
        session.add(Person(id=4))
    with sessions() as session:
        assert [tag.id for tag in session.scalars(sa.select(Tag))] == [4]
        assert [version.audit_operation for version in session.scalars(sa.select(Tag.History))] == ["insert"]


def test_a_session_in_a_transaction_of_its_connection_tells_at_the_commit_of_that(engine, told):
    with recording(engine) as maker, engine.connect() as connection:
        with connection.begin(), maker(bind=connection) as session:
            session.add(Tag(id=1))
            session.commit()
            assert [name for name, _ in told] == ["recorded"]
        assert [name for name, _ in told] == ["recorded", "committed"]


@pytest.mark.spread
def test_an_async_session_tells(async_engine, tables, base, told):
    async def write():
        class Recorded(Session):
            pass

        sqlaudit.register_hooks(Recorded)
        try:
            async with AsyncSession(async_engine, sync_session_class=Recorded) as session:
                session.add(Tag(id=1))
                await session.commit()
        finally:
            sqlaudit.unregister_hooks(Recorded)
            await async_engine.dispose()

    asyncio.run(write())
    assert told == [("recorded", [("Tag", 1, "insert")]), ("committed", [("Tag", 1, "insert")])]


def test_a_commit_in_two_phases_tells(engine, told):
    if engine.dialect.name != "mysql" and engine.dialect.name != "mariadb":
        pytest.skip("prepared transactions are not enabled, or there are none")
    with recording(engine, twophase=True) as maker, maker() as session:
        session.add(Tag(id=1))
        session.commit()
        assert told == [("recorded", [("Tag", 1, "insert")]), ("committed", [("Tag", 1, "insert")])]


def test_a_session_of_several_databases_tells_when_all_have_committed(sessions, engine, tmp_path, told):
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    Base.metadata.create_all(other)
    with recording(engine, binds={Tag: other}) as maker, maker() as session:
        session.add_all([Tag(id=1), Person(id=2)])
        session.commit()
        assert [name for name, _ in told] == ["recorded", "recorded", "committed"]
        assert told[-1] == ("committed", [("Person", 2, "insert"), ("Tag", 1, "insert")])
    other.dispose()


def test_a_transaction_that_the_database_has_aborted_commits_as_without_listeners(recorded_engine, told):
    with recorded_engine.connect() as connection:
        connection.execute(sa.insert(Tag).values(id=1))
        with pytest.raises(sa.exc.DBAPIError):
            connection.execute(sa.text("SELECT * FROM no_such_table"))
        connection.commit()
    is_aborted = recorded_engine.dialect.name == "postgresql"  # so that COMMIT rolls back
    assert [name for name, _ in told] == ["recorded"] if is_aborted else ["recorded", "committed"]
