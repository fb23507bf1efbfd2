"""Statements that write more rows than Python keeps the keys of: their keys are stored, and all is as with few."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker, with_loader_criteria

import sqlaudit
from counting import counted
from invariants import check_history, told
from recording import recording

MANY = 1_050
OLD = 30
"""How many of the rows are older than their tracking."""


class Base(DeclarativeBase):
    pass


@sqlaudit.track_table()
class Animal(Base):
    __tablename__ = "many_animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    weight: Mapped[int]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Cow(Animal):
    __tablename__ = "many_cows"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Animal.id, ondelete="CASCADE"), primary_key=True)
    milk: Mapped[int]
    __mapper_args__ = {"polymorphic_identity": "cow"}


@sqlaudit.track_table()
class Tick(Base):
    __tablename__ = "many_ticks"

    id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[int]


class Bite(Base):
    __tablename__ = "many_bites"

    tick: Mapped[int] = mapped_column(primary_key=True)
    nth: Mapped[int] = mapped_column(primary_key=True)


animals: Any = Animal.__table__
bites: Any = Bite.__table__
cows: Any = Cow.__table__
ticks: Any = Tick.__table__


@pytest.fixture(autouse=True)
def python_keeps_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python keep no more keys than one statement is given: ten times as many make these tests last."""
    monkeypatch.setattr("sqlaudit.bulk.locking.MANY", 1_000)


@pytest.fixture
def sessions(engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    """Sessions on many animals; each hundredth is a cow."""
    with recording(engine) as sessions, engine.begin() as connection:
        values = [{"id": n, "kind": "animal" if n % 100 else "cow", "weight": n % 7} for n in range(1, MANY + 1)]
        connection.execute(animals.insert(), values)
        connection.execute(cows.insert(), [{"id": n, "milk": 1} for n in range(100, MANY + 1, 100)])
        connection.commit()
        with sessions() as session:
            sqlaudit.record_changes(session, Animal, Animal.id > OLD)
            session.commit()
        yield sessions


def operations(session: Session, model: Any = Animal) -> Counter[tuple[str, ...]]:
    """Count what became of the rows, by the operations of their versions."""
    lives: dict[int, tuple[str, ...]] = {}
    for operation, id_ in told(session, model, "id"):
        lives[id_] = (*lives.get(id_, ()), operation)
    return Counter(lives.values())


def test_an_update_records_all_rows_that_it_changes_and_no_others(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        result: Any = session.execute(sa.update(Animal).values(weight=sa.case((Animal.weight == 0, 0), else_=9)))
        session.commit()
        check_history(session, Animal, all_recorded=False)
        lives = operations(session)
    assert result.rowcount == MANY
    unchanged = sum(n % 7 == 0 for n in range(OLD + 1, MANY + 1))
    changed_old = sum(n % 7 != 0 for n in range(1, OLD + 1))
    assert lives == {
        ("insert",): unchanged,
        ("insert", "update"): MANY - OLD - unchanged,
        ("baseline", "update"): changed_old,
    }


def test_a_delete_records_each_row_in_the_tables_that_it_was_in(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        result: Any = session.execute(
            sa.delete(Animal).where(Animal.weight >= 0), execution_options={"synchronize_session": False}
        )
        session.commit()
        check_history(session, Animal)
        lives, milk = operations(session), operations(session, Cow)
    assert result.rowcount == MANY
    assert lives == {("insert", "delete"): MANY - OLD, ("baseline", "delete"): OLD}
    assert milk == {("insert", "delete"): MANY // 100}


@pytest.mark.requires("cheap_temporary_tables")
@pytest.mark.parametrize("change", [ticks.update().values(place=2), ticks.delete()], ids=["update", "delete"])
def test_the_number_of_statements_does_not_depend_on_that_of_the_rows(engine: sa.Engine, change: Any) -> None:
    few_and_many = []
    with recording(engine) as sessions, sessions() as session:
        session.execute(ticks.insert(), [{"id": n, "place": 1} for n in range(1, 3 * MANY)])
        session.commit()
        for is_chosen in (ticks.c.id < MANY, ticks.c.id >= MANY):
            with counted(engine) as statements:
                session.execute(change.where(is_chosen))
            few_and_many.append(len(statements))
            session.commit()
        check_history(session, Tick)
    assert few_and_many[0] == few_and_many[1]


def test_a_row_that_a_statement_finds_several_times_is_recorded_once(engine: sa.Engine) -> None:
    with recording(engine) as sessions, sessions() as session:
        session.execute(ticks.insert(), [{"id": n, "place": 1} for n in range(1, MANY)])
        session.execute(bites.insert(), [{"tick": n, "nth": nth} for n in range(1, MANY) for nth in range(2)])
        session.commit()
        session.execute(ticks.update().where(ticks.c.id == bites.c.tick).values(place=2))
        session.commit()
        check_history(session, Tick)
        assert operations(session, Tick) == {("insert", "update"): MANY - 1}


@pytest.mark.requires("cheap_temporary_tables", "update_returning")
def test_no_table_of_keys_is_left(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        for _ in range(2):
            session.execute(animals.update().values(weight=animals.c.weight + 1).returning(animals.c.id))
            with session.execute(sa.select(animals), execution_options={"yield_per": 10}) as reading:
                next(reading)
                session.execute(animals.update().values(weight=animals.c.weight + 1))
        session.execute(animals.update().values(weight=9))
        assert sa.inspect(session.connection()).get_temp_table_names() == []
        session.commit()
        check_history(session, Animal, all_recorded=False)


@pytest.mark.requires("update_returning")
def test_what_a_statement_returns_is_returned(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        returned = session.scalars(sa.update(animals).values(weight=animals.c.weight + 1).returning(animals.c.id)).all()
        session.rollback()
    assert sorted(returned) == list(range(1, MANY + 1))


def test_a_statement_that_asks_other_tables_records_what_it_changes(sessions: sessionmaker[Session]) -> None:
    herd = sa.select(sa.func.count()).select_from(cows).scalar_subquery()
    with sessions() as session:
        session.execute(animals.update().where(herd > 0).values(weight=9))
        session.commit()
        check_history(session, Animal)
        assert session.scalar(sa.select(sa.func.count()).where(animals.c.weight == 9)) == MANY


def test_a_criterion_that_is_added_to_a_subquery_is_added_where_many_rows_are_looked_for(
    sessions: sessionmaker[Session],
) -> None:
    with sessions() as session, session.begin():
        session.execute(sa.insert(Tick), [{"id": n, "place": n % 50} for n in range(1, MANY + 1)])
        session.execute(sa.insert(Bite), [{"tick": n, "nth": n % 50} for n in range(1, MANY + 1)])
    bitten = sa.update(Tick).where(Tick.id.in_(sa.select(Bite.tick))).values(place=99)
    with sessions() as session:
        session.execute(
            bitten.options(with_loader_criteria(Bite, Bite.nth > 0)), execution_options={"synchronize_session": False}
        )
        session.commit()
        check_history(session, Tick)
        assert session.scalar(sa.select(sa.func.count()).where(ticks.c.place == 99)) == MANY - MANY // 50


def test_a_statement_that_fails_leaves_nothing_and_the_next_one_works(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        savepoint = session.begin_nested()
        with pytest.raises(sa.exc.DBAPIError):  # MariaDB and MySQL have their own idea of what is amiss
            session.execute(animals.update().values(weight=sa.case((animals.c.id == MANY, None), else_=9)))
        savepoint.rollback()
        session.execute(animals.update().values(weight=animals.c.weight + 1))
        session.commit()
        check_history(session, Animal)
        assert operations(session) == {("insert", "update"): MANY - OLD, ("baseline", "update"): OLD}


def test_a_database_that_gives_no_temporary_table_takes_the_keys_from_python(
    sessions: sessionmaker[Session], engine: sa.Engine
) -> None:
    refused = []

    def refuse(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> tuple[str, Any]:
        if "TEMPORARY TABLE" in statement and "CREATE" in statement:
            refused.append(statement)
            statement = "CREATE TEMPORARY TABLE twice (id INTEGER, id INTEGER)"
        return statement, parameters

    sa.event.listen(engine, "before_cursor_execute", refuse, retval=True)
    with sessions() as session:
        session.execute(animals.update().values(weight=animals.c.weight + 1))
        session.commit()
        check_history(session, Animal)
    sa.event.remove(engine, "before_cursor_execute", refuse)
    assert len(refused) == 1


@pytest.mark.requires("two_phase")
def test_a_transaction_that_will_be_prepared_has_no_temporary_table(
    sessions: sessionmaker[Session], engine: sa.Engine
) -> None:
    two_phase = sessionmaker(engine, twophase=True)
    sqlaudit.register_hooks(two_phase)
    with two_phase() as session:
        session.execute(animals.update().values(weight=animals.c.weight + 1))
        session.prepare()
        session.commit()
        check_history(session, Animal)
    sqlaudit.unregister_hooks(two_phase)


@pytest.mark.requires("concurrent_writes")  # on SQLite, it is the suite that begins transactions
def test_each_execution_of_a_connection_that_commits_by_itself_is_recorded(
    sessions: sessionmaker[Session], engine: sa.Engine
) -> None:
    recorded = engine.execution_options(isolation_level="AUTOCOMMIT")
    sqlaudit.register_hooks(sessions, engine=recorded)
    with recorded.connect() as connection:
        connection.execute(animals.update().values(weight=animals.c.weight + 1))
    sqlaudit.unregister_hooks(sessions, engine=recorded)
    with sessions() as session:
        check_history(session, Animal)


@pytest.mark.requires("limited_updates")
def test_a_statement_with_a_limit_records_the_rows_that_it_changes(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        result: Any = session.execute(
            animals.update().with_dialect_options(mysql_limit=MANY - 20, mariadb_limit=MANY - 20).values(weight=9)
        )
        session.commit()
        assert result.rowcount == MANY - 20
        check_history(session, Animal, all_recorded=False)


def test_keys_are_told_apart_as_their_table_does(base: Any, engine: sa.Engine) -> None:
    @sqlaudit.track_table()
    class Bug(base):
        __tablename__ = "many_bugs"
        __table_args__ = {"mysql_collate": "utf8mb4_bin", "mariadb_collate": "utf8mb4_bin"}

        id: Mapped[str] = mapped_column(sa.String(20), primary_key=True)
        legs: Mapped[int]

    with recording(engine, base.metadata) as sessions, sessions() as session:
        session.execute(
            sa.insert(Bug), [{"id": f"{letter}{n}", "legs": 6} for n in range(MANY // 2) for letter in "bB"]
        )
        session.commit()
        session.execute(sa.update(Bug).values(legs=5))
        session.commit()
        check_history(session, Bug)
