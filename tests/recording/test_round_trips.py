"""How many statements on the history does a write take, beyond those of the program?"""

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from counting import counted
from databases import Database
from registering import recording
from sqlaudit import track_table, versions_of


class Base(DeclarativeBase):
    pass


@track_table()
class Animal(Base):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str] = mapped_column(sa.String(50))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


@track_table()
class Dog(Animal):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(sa.ForeignKey("animals.id"), primary_key=True)
    trick: Mapped[str] = mapped_column(sa.String(50))
    __mapper_args__ = {"polymorphic_identity": "dog"}


def insert(session: Session, model: type[Animal], first: int = 1, count: int = 2) -> None:
    values = {"trick": "roll"} if model is Dog else {}
    session.add_all([model(id=number, name="a", **values) for number in range(first, first + count)])
    session.flush()


def update(session: Session, model: type[Animal]) -> None:
    for animal in session.scalars(sa.select(model)).all():
        animal.name += "b"
    session.flush()


def delete(session: Session, model: type[Animal]) -> None:
    for animal in session.scalars(sa.select(model)).all():
        session.delete(animal)
    session.flush()


Write = Callable[..., None]
STATEMENTS: dict[tuple[Write, type[Animal]], tuple[int, int]] = {
    (insert, Animal): (1, 1),
    (update, Animal): (1, 2),
    (delete, Animal): (1, 2),
    (insert, Dog): (2, 2),
    (update, Dog): (3, 4),
    (delete, Dog): (2, 4),
}
"""The number of statements on the history: where a statement may write in its WITH clause, and elsewhere."""


def statements_of(write: Write, model: type[Animal], sessions: sessionmaker[Session], count: int = 2) -> list[str]:
    """Return the statements on the history that a write of some rows takes."""
    steps = [insert, update, delete]
    for step in steps[: steps.index(write)]:
        with sessions.begin() as session:
            step(session, model, **({"count": count} if step is insert else {}))
    with sessions.begin() as session, counted(session.get_bind()) as statements:
        write(session, model)
    return [statement for statement in statements if "animals_history" in statement or "dogs_history" in statement]


@pytest.fixture(params=STATEMENTS, ids=lambda case: f"{case[0].__name__}-{case[1].__name__}")
def case(request: pytest.FixtureRequest) -> tuple[Write, type[Animal]]:
    return request.param


def test_a_write_takes_one_or_two_statements_per_table(case, sessions, database, tables):
    write, model = case
    with sessions.begin() as session:  # the first writes also ask the catalogue
        insert(session, model, 7)
        update(session, model)
        delete(session, model)
    at_once, one_by_one = STATEMENTS[case]
    expected = at_once if "writing_ctes" in database.capabilities else one_by_one
    statements = statements_of(write, model, sessions)
    assert len(statements) == expected, statements


@pytest.mark.requires("compound_statements")
@pytest.mark.parametrize("model", [Animal, Dog])
@pytest.mark.parametrize("write", [update, delete])
def test_a_write_of_one_row_takes_one_statement_for_all_its_tables(write, model, sessions, tables):
    with sessions.begin() as session:  # the first writes also ask the catalogue
        insert(session, model, 7, count=1)
        update(session, model)
        delete(session, model)
    assert len(statements_of(write, model, sessions, count=1)) == 1
    with sessions() as session:
        versions = [(version.audit_operation, version.name) for version in versions_of(session, model, 1)]
        both = [("insert", "a"), ("update", "ab")]
        assert versions == (both if write is update else [*both, ("delete", "ab")])


@pytest.mark.requires("writing_ctes")
def test_a_distributed_table_is_written_without_writing_ctes(case, engine, database: Database, tables):
    write, model = case
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE pg_dist_partition (logicalrelid regclass)",  # where Citus names what it distributes
            "INSERT INTO pg_dist_partition VALUES ('animals_history')",
        ):
            connection.execute(sa.DDL(statement))
    other_engine = database.create_engine(pool_size=2)
    with recording(other_engine) as sessions:
        statements = statements_of(write, model, sessions)
        assert not any(statement.startswith("WITH") for statement in statements)
        assert len(statements) >= STATEMENTS[case][1]
        with sessions() as session:
            steps = ["insert", "update", "delete"]
            versions = [version.audit_operation for version in versions_of(session, model, 1)]
            assert versions == steps[: steps.index(write.__name__) + 1]
    other_engine.dispose()
