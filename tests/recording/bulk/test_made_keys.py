"""Keys that the database makes, wholly or in part: rows are recorded whatever inserts them, and results are plain."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

import sqlaudit
from invariants import check_history, told
from registering import recording

pytestmark = pytest.mark.filterwarnings("ignore:Column .* is marked as a member of the primary key")


class random_text(FunctionElement[str]):
    type = sa.String(36)
    inherit_cache = True


@compiles(random_text, "sqlite")
@compiles(random_text, "postgresql")
@compiles(random_text, "mysql", "mariadb")
def _random_text(element: random_text, compiler: SQLCompiler, **kw: Any) -> str:
    made = {"sqlite": "(lower(hex(randomblob(16))))", "postgresql": "gen_random_uuid()::text"}
    return made.get(compiler.dialect.name, "(uuid())")


class Stripped(sa.TypeDecorator[str]):
    impl = sa.String(36)
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and value.strip()


class Marked(sa.TypeDecorator[str]):
    """Reads what no row is found by again."""

    impl = sa.String(36)
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and f"{value}!"


KINDS: dict[str, Callable[[], Any]] = {
    "a server default": lambda: sa.Column(sa.String(36), server_default=random_text(), primary_key=True),
    "a server default of a type of the user's": lambda: sa.Column(
        Stripped(), server_default=random_text(), primary_key=True
    ),
    "a default in SQL": lambda: sa.Column(sa.String(36), default=random_text(), primary_key=True),
    "a default that the model does not know": lambda: sa.Column(
        sa.String(36), server_default=random_text(), primary_key=True, info={"unknown": True}
    ),
    "a default of Python's": lambda: sa.Column(sa.String(36), default=lambda: str(uuid4()), primary_key=True),
}
NUMBERS: dict[str, Callable[[], Any]] = {
    "an identity": lambda: sa.Column(sa.Integer, sa.Identity(), primary_key=True),
    "an identity that nobody may give": lambda: sa.Column(sa.Integer, sa.Identity(always=True), primary_key=True),
    "a serial": lambda: sa.Column(sa.Integer, autoincrement=True, primary_key=True),
    "a sequence": lambda: sa.Column(sa.Integer, sa.Sequence("made_numbers"), primary_key=True),
}
SHAPES = ["alone", "before a given part", "behind a given part", "in another order than the table's", "of the mapper"]


def model_of(base: Any, column: Any, shape: str) -> Any:
    """Return a tracked model with a key, made as the column says, or a composite one of which that is a part."""
    tenant = sa.Column("tenant", sa.Integer, primary_key=shape != "alone", autoincrement=False)
    column.name = column.key = "id"
    values = sa.Column("x", sa.Integer), sa.Column("d", sa.Integer, server_default="7")
    columns = [tenant, column, *values] if shape.startswith(("behind", "in")) else [column, tenant, *values]
    order = [sa.PrimaryKeyConstraint("tenant", "id")] if shape.startswith("before") else []
    order = [sa.PrimaryKeyConstraint("id", "tenant")] if shape.startswith("in another") else order

    class Made(base):  # type: ignore[misc]
        __table__ = sa.Table("made", base.metadata, *columns, *order)
        __mapper_args__ = {"primary_key": [column]} if shape == "of the mapper" else {}

    return sqlaudit.track_table()(Made)


class Rows:
    """Makes rows, and counts them."""

    made = 0

    def __call__(self, count: int) -> list[dict[str, Any]]:
        self.made += count
        return [{"tenant": 1, "x": number} for number in range(self.made - count, self.made)]


def insert_by_statements(execute: Callable[..., Any], rows: Rows, entity: Any) -> None:
    insert, x, table = sa.insert(entity), getattr(entity, "c", entity).x, getattr(entity, "__table__", entity)
    execute(insert, rows(1)[0])
    execute(insert, rows(1))
    execute(insert, rows(2))
    execute(insert.values(rows(1)[0]))
    execute(insert.values(rows(2)))
    execute(insert.inline(), rows(1)[0])
    execute(insert.from_select(["tenant", "x"], sa.select(sa.literal(1), sa.literal(rows(1)[0]["x"]))))
    execute(insert.values(rows(1)[0]).returning(x))
    execute(insert.values(rows(2)).returning(x))
    execute(insert.returning(x), rows(2))
    execute(insert.returning(entity), rows(2))
    execute(insert.values(rows(1)[0]).return_defaults())
    execute(table.insert().return_defaults(), rows(2))
    execute(table.insert().return_defaults(table.c.d), rows(2))


def insert_by_methods(session: Session, rows: Rows, model: Any) -> None:
    for count in (1, 2):
        session.bulk_save_objects([model(**row) for row in rows(count)])
        session.bulk_insert_mappings(model, rows(count))


def check(base: Any, engine: sa.Engine, column: Any, shape: str) -> None:
    """See that rows are recorded whatever inserts them, and no warning is given."""
    model, rows = model_of(base, column, shape), Rows()
    with recording(engine, base.metadata) as sessions, recording_engine(engine):
        if column.info:
            column.server_default = None
        with sessions() as session:
            insert_by_methods(session, rows, model)
            insert_by_statements(session.execute, rows, model)
            insert_by_statements(session.connection().execute, rows, model.__table__)
            session.commit()
        with engine.begin() as connection:
            insert_by_statements(connection.execute, rows, model.__table__)
            insert_by_statements(connection.execute, rows, model)
        with sessions() as session:
            assert sorted(x for _, x in told(session, model, "x")) == list(range(rows.made))
            check_history(session, model)


@contextmanager
def recording_engine(engine: sa.Engine) -> Iterator[None]:
    sqlaudit.register_hooks(sqlaudit_sessions := type("Sessions", (Session,), {}), engine=engine)
    try:
        yield
    finally:
        sqlaudit.unregister_hooks(sqlaudit_sessions, engine=engine)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_recorded_by_keys_that_are_made(base: Any, engine: sa.Engine, kind: str, shape: str) -> None:
    check(base, engine, KINDS[kind](), shape)


@pytest.mark.requires("serial_columns")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", NUMBERS)
def test_rows_are_recorded_by_numbers_that_are_made(base: Any, engine: sa.Engine, kind: str, shape: str) -> None:
    check(base, engine, NUMBERS[kind](), shape)


@pytest.mark.parametrize("kind", ["a serial", "a sequence"])
def test_a_row_is_recorded_by_a_number_that_is_given_in_sql(base: Any, engine: sa.Engine, kind: str) -> None:
    model = model_of(base, NUMBERS[kind](), "alone")
    with recording(engine, base.metadata) as sessions, sessions() as session:
        session.execute(sa.insert(model).values(id=sa.literal(700) + 1, tenant=1, x=1))
        session.connection().execute(model.__table__.insert().values(id=sa.literal(700) + 2, tenant=1, x=2))
        session.commit()
        check_history(session, model)
        assert told(session, model, "id") == [("insert", 701), ("insert", 702)]


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_a_result_shows_no_column_of_sqlaudits(base: Any, engine: sa.Engine, shape: str) -> None:
    model = model_of(base, KINDS["a server default"](), shape)
    insert = model.__table__.insert()
    with recording(engine, base.metadata) as sessions, sessions() as session:
        for statement, parameters in (
            (insert.values(tenant=sa.literal(4) + 1, x=6), {}),
            (insert.values(x=6, tenant=1).return_defaults(), {}),
            (insert.return_defaults(), [{"tenant": 1, "x": 1}, {"tenant": 1, "x": 2}]),
        ):
            result = session.connection().execute(statement, parameters)
            told_names = [row._fields for row in result.returned_defaults_rows or ()]
            assert "sqlaudit" not in str([list(result.keys()) if result.returns_rows else [], told_names])
        session.commit()
        check_history(session, model)


def test_rows_are_recorded_by_numbers_that_the_model_does_not_expect(base: Any, engine: sa.Engine) -> None:
    if engine.dialect.name == "sqlite":
        check(base, engine, sa.Column(sa.Integer, primary_key=True, autoincrement=False), "alone")


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_recorded_by_made_keys_that_are_read_otherwise(base: Any, engine: sa.Engine, shape: str) -> None:
    column = sa.Column(Marked(), server_default=random_text(), primary_key=True)
    model, rows = model_of(base, column, shape), Rows()
    with recording(engine, base.metadata) as sessions, sessions() as session:
        insert_by_statements(session.execute, rows, model)
        insert_by_statements(session.connection().execute, rows, model.__table__)
        session.commit()
        assert sorted(x for _, x in told(session, model, "x")) == list(range(rows.made))


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_rows_that_are_given_as_tuples_are_recorded(base: Any, engine: sa.Engine, shape: str) -> None:
    model = model_of(base, sa.Column(sa.String(36), primary_key=True), shape)
    values = [{"tenant": 1, "id": f"given {number}", "x": number, "d": 7} for number in (1, 2)]
    with recording(engine, base.metadata) as sessions, sessions() as session:
        given = [tuple(row[column.key] for column in model.__table__.c) for row in values]
        session.connection().execute(model.__table__.insert().values(given))
        session.commit()
        check_history(session, model)
        assert told(session, model, "x") == [("insert", 1), ("insert", 2)]


# --- what executions select of each other


def _next(table: Any) -> Any:
    return sa.select(sa.func.coalesce(sa.func.max(table.c.place), 0) + 1).scalar_subquery()


SELECTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "a value": lambda table: {"place": _next(table)},
    "a value of text": lambda table: {"place": sa.text(f"(SELECT coalesce(max(place), 0) + 1 FROM {table.name})")},  # noqa: S608
    "a default": lambda table: {},
}
LISTS: dict[str, Callable[[Session, Any, Any, Any], Any]] = {
    "a list of a session": lambda s, model, values, rows: s.execute(sa.insert(model).values(values), rows),
    "a list for a table": lambda s, model, values, rows: s.execute(model.__table__.insert().values(values), rows),
    "a list of a connection": lambda s, model, values, rows: s.connection().execute(
        model.__table__.insert().values(values), rows
    ),
}


@pytest.mark.parametrize("selected", SELECTED)
def test_each_of_many_inserts_sees_what_those_before_it_have_inserted(
    base: Any, engine: sa.Engine, selected: str
) -> None:
    def numbered(name: str) -> Any:
        columns: dict[str, Any] = {
            "id": sa.Column(sa.Integer, primary_key=True),
            "tenant": sa.Column(sa.Integer, primary_key=True, server_default="7", autoincrement=False),
            "kind": sa.Column(sa.Integer),
            "place": sa.Column(sa.Integer),
        }
        model = type(name.title(), (base,), {"__tablename__": name, **columns})
        if selected == "a default":
            sa.ColumnDefault(_next(model.__table__))._set_parent(model.__table__.c.place)
        return model

    plain, tracked = numbered("plain"), sqlaudit.track_table()(numbered("tracked"))
    with recording(engine, base.metadata) as sessions, sessions() as session:
        found = []
        for model in (plain, tracked):
            for start, insert in enumerate(LISTS.values()):
                rows = [{"id": 10 * start + number, "kind": start} for number in (1, 2, 3)]
                values = SELECTED[selected](model.__table__)
                insert(session, model, values, rows)
                session.commit()
            found.append(session.scalars(sa.select(model.place).order_by(model.id)).all())
        assert found[1] == found[0] == list(range(1, 10))
        check_history(session, tracked)
