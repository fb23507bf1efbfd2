"""Random statements on tracked tables, and the same on untracked twins: the same results and rows, all of it recorded.

Each seed is a program of transactions on rows with or without a history. SQLAlchemy alone executes it on the twins.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import CompileError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from databases import Database
from effort import EFFORT
from invariants import check_history
from sqlaudit import Operation
from sqlaudit.sql import batches
from sqlaudit.tracking.tables import tracked_table
from stock import do_nothing, insert_of, upsert
from twins import (
    TRACKED,
    TWINS,
    Base,  # noqa: F401  # whose tables the tests find
    Generator,
    Level,
    Models,
    fill,
    tables_of,
)

TRANSACTIONS = 6
HIERARCHY = {"person": "worker", "worker": "person"}
BASES = {"worker": "person"}
Rows = dict[tuple[Any, ...], Any]


def shown(value: Any) -> Any:
    state = sa.inspect(value, raiseerr=False)
    return value if state is None else (type(value).__name__, state.identity)


def outcome(session: Session, generator: Generator, statement: Any, parameters: Any) -> Any:
    """Execute a statement, and return its results."""
    way, is_loaded = generator.way, generator.chance(0.5)
    options = {"synchronize_session": generator.pick(["auto", "auto", "fetch", False])}
    if parameters:
        options = {"synchronize_session": False}  # SQLAlchemy has no other way for executemany
    objects = session.scalars(sa.select(generator.models.Item)).all() if is_loaded else []
    entity = None if generator.written.is_core else generator.written.target
    is_plain = not (statement.is_insert or parameters or statement._prefixes or statement.exported_columns)
    count, returned = None, []
    if way == "query" and entity is not None and is_plain and not statement.kwargs:
        query = session.query(entity).filter(*statement._where_criteria).options(*statement._with_options)
        if statement.is_update:
            count = query.update(dict(statement._values or ()), **options)
        else:
            count = query.delete(**options)
    elif way == "connection":
        result = session.connection().execute(statement, parameters)
    elif way == "from_statement" and entity is not None and statement.exported_columns and statement.is_dml:
        result = session.execute(sa.select(entity).from_statement(statement), parameters, execution_options=options)
    else:
        given = statement
        if way == "lambda" and is_plain and "SELECT" not in str(statement):  # which recurses endlessly in SQLAlchemy
            given = sa.lambda_stmt(lambda: statement)
        result = session.execute(given, parameters, execution_options=options)
    if count is None:
        returned = result.all() if statement.exported_columns else []
        count = None if statement.exported_columns else getattr(result, "rowcount", None)
    # sqlite3 counts no rows of RETURNING and WITH, which sqlaudit does; drivers count executemany differently.
    if statement.is_insert or parameters or "WITH " in str(statement):
        count = None
    rows = sorted(repr([shown(value) for value in row]) for row in returned)
    states = [(sa.inspect(each).deleted, sorted(sa.inspect(each).expired_attributes)) for each in objects]
    return rows, count, states


def told(session: Session, statement: Any, parameters: Any) -> str:
    """Return a statement as a text."""
    try:
        compiled = statement.compile(dialect=session.get_bind().dialect)
    except SQLAlchemyError as error:
        return str(error)
    return f"{compiled} {parameters or compiled.params}"


def transact(maker: sessionmaker[Session], generator: Generator, texts: list[str]) -> list[Any]:
    """Execute a transaction of statements, some in savepoints; return the results and errors."""
    results: list[Any] = []
    number = generator.pick([1, 1, 1, 2, 3])
    with maker() as session:
        for _ in range(number):
            is_nested, is_kept = number > 1 and generator.chance(0.3), generator.chance(0.5)
            try:
                savepoint = session.begin_nested() if is_nested else None
                statement, parameters = generator.statement()
                texts.append(f"{generator.way} {is_nested=} {is_kept=}: {told(session, statement, parameters)}")
                results.append(outcome(session, generator, statement, parameters))
            except Exception as error:  # of SQLAlchemy, a driver or, on a tracked table only, sqlaudit
                texts.append(f"{error}")
                is_refused = isinstance(error, (CompileError, InvalidRequestError))  # it, or its select
                results.append("refused" if is_refused else type(error).__name__)
                if savepoint is None:
                    return results
                savepoint.rollback()
                continue
            if savepoint is not None:
                (savepoint.commit if is_kept else savepoint.rollback)()
        session.commit()
    return results


def rows_of(session: Session, models: Models) -> dict[str, Rows]:
    return {
        name: {tuple(row[key.name] for key in table.primary_key): tuple(row.values()) for row in rows}
        for name, model in tables_of(models).items()
        for table in [model.__table__]
        for rows in [session.execute(sa.select(table)).mappings().all()]
    }


def versions_of(session: Session) -> dict[str, Rows]:
    """Return the operations and values of the versions of each row."""
    versions: dict[str, Rows] = {}
    for name, model in tables_of(TRACKED).items():
        table = tracked_table(model.__table__)
        columns, keys = dict(table.columns), dict(zip(table.key, table.history_key, strict=True))
        key, values = [keys[c] for c in model.__table__.primary_key], [columns[c] for c in model.__table__.c]
        statement = sa.select(table.role("operation"), *key, *values).order_by(table.version)
        of_rows = versions[name] = defaultdict(list)
        for operation, *row in session.execute(statement):
            of_rows[tuple(row[: len(key)])].append((operation, tuple(row[len(key) :])))
    return versions


def check_versions(rows: Sequence[dict[str, Rows]], versions: Sequence[dict[str, Rows]], *, is_one: bool) -> None:
    """Check for one version of each changed row, a baseline before if it is the first, and none of other rows.

    :param is_one: False if several statements may have changed a row to and fro, of which a version may remain
    """
    (before, after), (old, new) = rows, versions
    for name in before:
        for key in before[name] | after[name]:
            changed = [
                other for other in (name, HIERARCHY.get(name, name)) if before[other].get(key) != after[other].get(key)
            ]
            expected = []
            if changed and key in before[name] and not old[name].get(key):
                expected.append((Operation.BASELINE, before[name][key]))
            if changed and key not in after[name]:
                expected.append((Operation.DELETE, before[name][key]))
            elif changed:
                operation = Operation.UPDATE if key in before[BASES.get(name, name)] else Operation.INSERT
                expected.append((operation, after[name][key]))
            added = new[name].get(key, [])[len(old[name].get(key, [])) :]
            if not (is_one or changed) and key in after[name] and added:
                baselines = [] if old[name].get(key) else [(Operation.BASELINE, before[name][key])]
                expected = [*baselines, (Operation.UPDATE, after[name][key])]
            assert added == expected, f"{name} {key}"


Act = Callable[[sessionmaker[Session], Models], Any]


def check_same(plain: sessionmaker[Session], sessions: sessionmaker[Session], act: Act, *, has_history: bool) -> None:
    """Fail unless a transaction does the same to tracked tables as to their twins, and is recorded."""
    with plain() as reader:
        rows, versions = rows_of(reader, TRACKED), versions_of(reader)
    expected, results = act(plain, TWINS), act(sessions, TRACKED)
    with plain() as reader:
        now = rows_of(reader, TRACKED)
        assert results == expected
        assert now == rows_of(reader, TWINS)
        check_versions((rows, now), (versions, versions_of(reader)), is_one=len(results) == 1)
        for model in tables_of(TRACKED).values():
            if model is not TRACKED.Worker:
                check_history(reader, model, all_recorded=has_history)


@pytest.mark.spread
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # of cartesian products
@pytest.mark.parametrize("seed", range(10 * EFFORT))
def test_statements_do_the_same_to_tracked_tables_and_to_untracked_twins_and_are_recorded(
    seed: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    database: Database,
    engine: sa.Engine,
    sessions: sessionmaker[Session],
) -> None:
    random, plain = Random(seed), sessionmaker(engine)
    has_history = random.random() < 0.5
    with plain() as session:
        fill(session, TWINS)
        make = insert_of(session)
    with (sessions if has_history else plain)() as session:
        fill(session, TRACKED)
    if random.random() < 0.5:
        request.getfixturevalue("recorded_engine")
    if random.random() < 0.3:
        monkeypatch.setattr(batches.chunks, "__defaults__", (2,))
        monkeypatch.setattr("sqlaudit.sql.batches.CHUNK", 2)
        monkeypatch.setattr("sqlaudit.recording.bulk.inserts.CHUNK", 2)
        monkeypatch.setattr("sqlaudit.recording.bulk.locking.MANY", 2)
    for number in range(TRANSACTIONS):
        texts: list[str] = []

        def act(maker: sessionmaker[Session], models: Models, number: int = number, texts: list[str] = texts) -> Any:
            texts.clear()
            return transact(maker, Generator(f"{seed} {number}", models, make, database), texts)

        try:
            check_same(plain, sessions, act, has_history=has_history)
        except AssertionError as error:
            told = "\n".join(texts)
            raise AssertionError(f"transaction {number} of seed {seed}:\n{told}\n{error}") from error


FOUND: dict[str, Callable[[Session, Models], Any]] = {
    "insert of a subclass row of an existing row": lambda s, m: m.Worker.__table__.insert().values(id=2, wage=1),
    "upsert of a subclass row of an existing row": lambda s, m: upsert(s, m.Worker.__table__, {"wage": 5}, "id").values(
        [{"id": 1, "wage": 1}, {"id": 2, "wage": 1}]
    ),
    "a subclass row that goes to another row": lambda s, m: (
        m.Worker.__table__.update().values(id=2).where(m.Worker.__table__.c.id == 1)
    ),
    "delete by a reference that the delete empties": lambda s, m: sa.delete(m.Node).where(m.Node.up_id.in_([1, 2])),
    "delete by the lack of a reference": lambda s, m: sa.delete(m.Node).where(m.Node.up_id.is_(None)),
    "delete by a function of a reference": lambda s, m: sa.delete(m.Node).where(sa.func.coalesce(m.Node.up_id, 1) > 1),
    "delete by text of a reference": lambda s, m: sa.delete(m.Node).where(sa.text("up_id >= 1")),
    "delete by a reference of another": lambda s, m: sa.delete(m.Node).where(
        m.Node.id.in_(sa.select(sa.select(m.Node.up_id).subquery().c.up_id))
    ),
    "delete by what a deleted row empties elsewhere": lambda s, m: sa.delete(m.Item).where(
        m.Item.stock.in_(sa.select(m.Car.item_id))
    ),
    "delete by keys and a reference": lambda s, m: sa.delete(m.Node).where(m.Node.id == 3, m.Node.up_id == 1),
    "insert or update of what is selected without a type": lambda s, m: upsert(
        s, m.Grade.__table__, {"points": 9}, "level"
    ).from_select(["level", "rank", "points"], _selected(m, Level.L3)),
    "insert or nothing of what is selected without a type": lambda s, m: do_nothing(s, m.Grade.__table__).from_select(
        ["level", "rank", "points"], _selected(m, Level.L85)
    ),
}
REPLACING: dict[str, Callable[[Session, Models], Any]] = {
    "replace the base row of a subclass row": lambda s, m: (
        m.Person.__table__.insert().prefix_with("OR REPLACE").values(id=3, kind="person", age=1)
    ),
    "replace the base row of a subclass row by the same": lambda s, m: (
        m.Person.__table__.insert().prefix_with("OR REPLACE").values(id=3, kind="person", age=3, name="a")
    ),
    "ignore keys that other rows have": lambda s, m: _moved_to_others(m).prefix_with("OR IGNORE"),
    "replace rows by their keys": lambda s, m: _moved_to_others(m).prefix_with("OR REPLACE"),
    "ignore keys that are given twice": lambda s, m: _moved_to_one(m).prefix_with("OR IGNORE"),
}
WITH_LIMITS: dict[str, Callable[[Session, Models], Any]] = {
    "delete by a reference and a limit": lambda s, m: (
        sa.delete(m.Node).where(m.Node.up_id.is_not(None)).with_dialect_options(mariadb_limit=3)
    ),
    "ignore keys that other rows have": lambda s, m: _moved_to_others(m).prefix_with("IGNORE"),
    "ignore keys that are given twice": lambda s, m: _moved_to_one(m).prefix_with("IGNORE"),
}


def _selected(models: Models, level: Level) -> sa.Select[Any]:
    return sa.select(sa.literal(level, models.Grade.__table__.c.level.type), sa.null(), sa.literal(1)).where(sa.true())


def _moved_to_others(models: Models) -> sa.Update:
    return sa.update(models.Part).where(models.Part.no < 5).values(no=models.Part.no + 2)


def _moved_to_one(models: Models) -> sa.Update:
    return sa.update(models.Task).where(models.Task.code.in_([5, 6, 7])).values(code=1)


def _check_found(
    program: Callable[[Session, Models], Any], sessions: sessionmaker[Session], engine: sa.Engine, has_history: bool
) -> None:
    plain = sessionmaker(engine)
    with plain() as session:
        fill(session, TWINS)
    with (sessions if has_history else plain)() as session:
        fill(session, TRACKED)

    def act(maker: sessionmaker[Session], models: Models) -> list[Any]:
        with maker() as session:
            statement = program(session, models)
            result = session.execute(statement, execution_options={"synchronize_session": False})
            session.commit()
        return [None if statement.is_insert else result.rowcount]

    check_same(plain, sessions, act, has_history=has_history)


@pytest.mark.parametrize("has_history", [True, False])
@pytest.mark.parametrize("name", FOUND)
def test_a_statement_writes_the_rows_that_it_writes_without_tracking(
    sessions: sessionmaker[Session], engine: sa.Engine, name: str, has_history: bool
) -> None:
    _check_found(FOUND[name], sessions, engine, has_history)


@pytest.mark.requires("replacing_inserts")
@pytest.mark.parametrize("has_history", [True, False])
@pytest.mark.parametrize("name", REPLACING)
def test_a_statement_replaces_and_ignores_the_rows_that_it_does_without_tracking(
    sessions: sessionmaker[Session], engine: sa.Engine, name: str, has_history: bool
) -> None:
    _check_found(REPLACING[name], sessions, engine, has_history)


@pytest.mark.requires("limited_updates")
@pytest.mark.parametrize("has_history", [True, False])
@pytest.mark.parametrize("name", WITH_LIMITS)
def test_a_statement_with_a_limit_or_ignore_writes_the_rows_that_it_writes_without_tracking(
    sessions: sessionmaker[Session], engine: sa.Engine, name: str, has_history: bool
) -> None:
    _check_found(WITH_LIMITS[name], sessions, engine, has_history)
