"""Random statements on tracked tables, and the same on untracked twins: the same results and rows, all of it recorded.

Each seed is a program of statements on rows with or without a history. SQLAlchemy alone executes it on the twins.
"""

from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from databases import Database
from effort import EFFORT
from invariants import check_history
from sqlaudit import Operation
from sqlaudit.tracking.tables import tracked_table
from stock import insert_of
from twins import (
    TRACKED,
    TWINS,
    Base,  # noqa: F401  # whose tables the tests find
    Generator,
    Models,
    fill,
    tables_of,
)

STATEMENTS = 8
HIERARCHY = {"person": "worker", "worker": "person"}
Rows = dict[tuple[Any, ...], Any]


def shown(value: Any) -> Any:
    state = sa.inspect(value, raiseerr=False)
    return value if state is None else (type(value).__name__, state.identity)


def outcome(maker: sessionmaker[Session], generator: Generator) -> tuple[str, Any]:
    """Execute a statement in a transaction of its own; return its text, and its results or its error."""
    statement, parameters = generator.statement()
    way, is_loaded = generator.way, generator.chance(0.5)
    options = {"synchronize_session": generator.pick(["auto", "auto", "fetch", False])}
    if parameters:
        options = {"synchronize_session": False}  # SQLAlchemy has no other way for executemany
    with maker() as session:
        text = f"{way} {options} {parameters}"
        objects = session.scalars(sa.select(generator.models.Item)).all() if is_loaded else []
        try:
            compiled = statement.compile(dialect=session.get_bind().dialect)
            text += f" {compiled} {compiled.params}"
            if way == "execute":
                result = session.execute(statement, parameters, execution_options=options)
            else:
                result = session.connection().execute(statement, parameters)
            returned = result.all() if statement.exported_columns else []
            # sqlite3 counts no rows of RETURNING and WITH, which sqlaudit does; drivers count executemany differently.
            is_uncounted = str(compiled).startswith("WITH") or statement.exported_columns or parameters
            count = None if is_uncounted or statement.is_insert else result.rowcount
        except Exception as error:  # of SQLAlchemy, a driver or, on a tracked table only, sqlaudit
            return text, type(error).__name__
        rows = sorted(repr([shown(value) for value in row]) for row in returned)
        states = [(sa.inspect(each).deleted, sorted(sa.inspect(each).expired_attributes)) for each in objects]
        session.commit()
    return text, (rows, count, states)


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


def check_versions(rows: Sequence[dict[str, Rows]], versions: Sequence[dict[str, Rows]]) -> None:
    """Check for one version of each changed row, a baseline before if it is the first, and none of other rows."""
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
                operation = Operation.UPDATE if key in before[name] else Operation.INSERT
                expected.append((operation, after[name][key]))
            added = new[name].get(key, [])[len(old[name].get(key, [])) :]
            assert added == expected, f"{name} {key}"


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")  # of cartesian products
@pytest.mark.parametrize("seed", range(20 * EFFORT))
def test_statements_do_the_same_to_tracked_tables_and_to_untracked_twins_and_are_recorded(
    seed: int, request: pytest.FixtureRequest, database: Database, engine: sa.Engine, sessions: sessionmaker[Session]
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
    for number in range(STATEMENTS):
        with plain() as reader:
            rows, versions = rows_of(reader, TRACKED), versions_of(reader)
        seeded = f"{seed} {number}"
        _, expected = outcome(plain, Generator(seeded, TWINS, make, database.capabilities))
        text, result = outcome(sessions, Generator(seeded, TRACKED, make, database.capabilities))
        with plain() as reader:
            now = rows_of(reader, TRACKED)
            try:
                assert result == expected
                assert now == rows_of(reader, TWINS)
                check_versions((rows, now), (versions, versions_of(reader)))
                for model in (TRACKED.Item, TRACKED.Part, TRACKED.Car, TRACKED.Person, TRACKED.Node):
                    check_history(reader, model, all_recorded=has_history)
            except AssertionError as error:
                raise AssertionError(f"statement {number} of seed {seed}: {text}: {error}") from error
