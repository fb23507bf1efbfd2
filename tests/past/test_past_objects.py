"""Objects of the past stay in the past, whatever the session holds of the present."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    contains_eager,
    immediateload,
    joinedload,
    lazyload,
    load_only,
    mapped_column,
    relationship,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    with_loader_criteria,
)

from registering import recording
from sqlaudit import QueryError, ReadOnlyError, SQLAuditConfig, clear_config, set_config, time_travel, track_table

THEN = datetime(2024, 1, 1, tzinfo=UTC)
LATER = THEN + timedelta(days=1)


class Base(DeclarativeBase):
    pass


@track_table()
class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(20))
    name: Mapped[str] = mapped_column(sa.String(20))
    boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("people.id"))
    boss: Mapped["Person | None"] = relationship(remote_side=[id], back_populates="staff")
    staff: Mapped[list["Person"]] = relationship(back_populates="boss", order_by=id)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Driver(Person):
    __tablename__ = "drivers"
    id: Mapped[int] = mapped_column(sa.ForeignKey("people.id"), primary_key=True)
    licence: Mapped[str] = mapped_column(sa.String(20))
    __mapper_args__ = {"polymorphic_identity": "driver"}


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    """A session that holds the present: Eve, who was Ada, is the boss of Bob, whose licence was renewed."""
    instants = iter([THEN, LATER])
    with recording(engine) as maker, maker() as session:
        set_config(SQLAuditConfig(clock=lambda: next(instants)))
        ada = Person(id=1, name="Ada")
        bob = Driver(id=2, name="Bob", licence="old", boss=ada)
        session.add(bob)
        session.commit()
        ada.name, bob.licence = "Eve", "new"
        session.commit()
        session.info["present"] = [ada, bob, ada.name, bob.licence, ada.staff, bob.boss]
        yield session
        assert (ada.name, bob.licence) == ("Eve", "new")


@pytest.mark.spread
@pytest.mark.parametrize("load", [lazyload, joinedload, selectinload, subqueryload, immediateload])
def test_what_it_refers_to_is_of_the_past_though_the_live_one_is_loaded(session, load):
    bob = session.scalars(Driver.as_of(THEN).options(load(Driver.boss))).one()
    assert bob.boss.name == "Ada"
    assert bob.boss.staff == [bob]
    assert bob.boss is not session.get(Person, 1)


@pytest.mark.parametrize("polymorphic", [[], [selectin_polymorphic(Person, [Driver])]], ids=["lazy", "selectin"])
def test_the_columns_of_a_subclass_are_of_the_past(session, polymorphic):
    _, bob = session.scalars(Person.as_of(THEN).order_by(Person.id).options(*polymorphic)).all()
    assert bob.licence == "old"
    session.expire(bob, ["licence"])
    assert bob.licence == "old"
    session.expire(bob)
    assert (bob.licence, bob.boss.name) == ("old", "Ada")


def test_deferred_columns_are_of_the_past(session):
    ada = session.scalars(Person.as_of(THEN).where(Person.id == 1).options(load_only(Person.kind))).one()
    assert ada.name == "Ada"


@pytest.mark.parametrize("source", ["session", "engine"])
def test_a_session_in_the_past_knows_no_object_of_the_present(session, engine, source):
    session.commit()
    with time_travel(session if source == "session" else engine, THEN) as past:
        bob = past.get(Person, 2)
        assert (bob.licence, bob.boss.name, bob.boss.staff) == ("old", "Ada", [bob])
        assert past.get(Person, 1) is bob.boss
        _, again = past.scalars(sa.select(Person).order_by(Person.id).options(selectin_polymorphic(Person, [Driver])))
        assert again is bob


def test_objects_of_a_past_alias_are_refused_in_loader_options(session):
    then = aliased(Person, Person.as_of(THEN).where(Person.id == 1).subquery())
    statement = sa.select(Person).join(Person.boss.of_type(then)).options(contains_eager(Person.boss.of_type(then)))
    with pytest.raises(QueryError, match="can return columns, but no Person objects"):
        session.scalars(statement).all()


def test_versions_can_be_joined_in_the_past(session, engine):
    versions = Person.History
    statement = sa.select(versions.name, Person.name).join(Person, Person.id == versions.id).where(Person.id == 1)
    with time_travel(engine, THEN) as past:
        assert sorted(past.execute(statement).all()) == [("Ada", "Ada"), ("Eve", "Ada")]


def test_an_edit_in_a_session_of_the_past_raises_at_its_end(session, engine):
    session.commit()
    travel = time_travel(engine, THEN)
    past = travel.__enter__()
    past.get(Person, 1).name = "Eva"
    with pytest.raises(ReadOnlyError):
        travel.__exit__(None, None, None)
    session.refresh(session.info["present"][0])


@pytest.mark.parametrize(
    "write", ["DELETE FROM people", "/* all */ DELETE FROM people", "WITH x AS (SELECT 1) UPDATE people SET name = 'x'"]
)
def test_text_that_is_allowed_writes_nothing(session, engine, write):
    session.commit()
    with time_travel(engine, THEN, text=True) as past:
        assert past.scalar(sa.text("SELECT name FROM people WHERE id = 1")) == "Eve"
        assert (
            past.scalar(sa.select(sa.text("replace(name, 'A', 'O')")).select_from(Person).where(Person.id == 1))
            == "Oda"
        )
        with pytest.raises(ReadOnlyError):
            past.execute(sa.text(write))


def test_a_session_of_the_past_keeps_the_filters_of_its_source(session):
    @sa.event.listens_for(session, "do_orm_execute")
    def only_bosses(state):
        if state.is_select and state.session.info["tenant"]:
            state.statement = state.statement.options(with_loader_criteria(Person, Person.boss_id.is_(None)))

    session.info["tenant"] = 1
    with time_travel(session, THEN) as past:
        assert [each.name for each in past.scalars(sa.select(Person))] == ["Ada"]


def test_a_past_object_from_a_cache_stays_in_the_past(session):
    bob = session.scalars(Driver.as_of(THEN)).one()
    session.expunge(bob)
    cached = session.merge(bob, load=False)
    assert (cached.boss.name, cached.boss.staff) == ("Ada", [cached])
    session.expire(cached)
    assert (cached.name, cached.licence) == ("Bob", "old")


def test_a_function_and_a_legacy_union_read_the_past(session):
    with time_travel(session, THEN) as past:
        assert past.scalar(sa.func.max(Person.name)) == "Bob"
        assert past.scalar(sa.func.lower("X")) == "x"
        adas, bobs = (past.query(Person).filter_by(name=name) for name in ("Ada", "Bob"))
        assert {each.name for each in adas.union(bobs)} == {"Ada", "Bob"}


def test_a_bulk_statement_leaves_objects_of_the_past_alone(session):
    past, live = session.scalars(Person.as_of(THEN).where(Person.id == 1)).one(), session.get_one(Person, 1)
    clear_config()  # the clock has no more instants
    session.execute(sa.update(Person).where(Person.id == 1).values(name="Ida"))
    assert (past.name, live.name) == ("Ada", "Ida")
    session.rollback()
