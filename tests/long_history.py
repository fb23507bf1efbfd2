"""What do statements read where history is long? PostgreSQL tells blocks, MariaDB rows, and SQLite steps.

A block is 8 KiB of a table or an index. Unlike a time, the number of blocks or rows that a statement reads does not
depend on what else the machine does. A test module that imports `Base` and `happen` finds 100,000 versions in its
database; the benchmarks load many more.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit import OPEN_END, Operation, history_of, track_table

LONG, VERSIONS_OF_LONG = 10, 5_000
"""The rows 1 to 10 have 5,000 versions each."""
SHORT, VERSIONS_OF_SHORT = 5_000, 10
"""The rows from 11 on have 10 versions each."""
ROWS_OF_CHANGESET = 4
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


class Columns:
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))
    amount: Mapped[int]
    note: Mapped[str | None] = mapped_column(sa.String(50))


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Columns, Base):
    __tablename__ = "items"


# --- loading ------------------------------------------------------------------------------------------------------


def happen(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        engine = session.get_bind()
    load(engine, Item, (LONG, VERSIONS_OF_LONG), (SHORT, VERSIONS_OF_SHORT))


def load(engine: sa.Engine, model: type[Any], *groups: tuple[int, int]) -> datetime:
    """Insert rows of a model that has `Columns`, and their versions, in the order of time.

    There is a transaction each second, of four versions on average. The versions of a row are spread evenly over all
    transactions, and the last one is open.

    :param groups: a number of rows, and how many versions each of them has
    :returns: the instant after the last transaction
    """
    transactions = sum(rows * versions for rows, versions in groups) // ROWS_OF_CHANGESET
    selects, first = [], 1
    for rows, versions in groups:
        selects.append(_select_versions(engine.dialect.name, first, rows, versions, transactions))
        first += rows
    in_order = sa.union_all(*selects).order_by("valid_from", "id")
    names = list(selects[0].selected_columns.keys())
    with engine.begin() as connection:  # without a session: nothing is recorded
        if engine.dialect.name == "mariadb":
            connection.execute(sa.text("SET max_recursive_iterations = 4294967295"))
        version = history_of(model)
        with _indexed_afterwards(connection, version.__table__):
            connection.execute(sa.insert(version).from_select(names, in_order))
        current = sa.select(version.id, version.name, version.amount, version.note).where(version.valid_to == OPEN_END)
        connection.execute(sa.insert(model).from_select(["id", "name", "amount", "note"], current.order_by(version.id)))
        if engine.dialect.name == "postgresql":
            sequence = sa.func.pg_get_serial_sequence(model.__tablename__, "id")
            connection.execute(sa.select(sa.func.setval(sequence, first - 1)))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in (model.__table__, history_of(model).__table__):
            connection.execute(sa.DDL(_ANALYZE[engine.dialect.name]).against(table))
    return BEGIN + timedelta(seconds=transactions)


@contextmanager
def _indexed_afterwards(connection: sa.Connection, table: sa.Table) -> Iterator[None]:
    """Create the indexes of a table after it is filled, which PostgreSQL does many times faster."""
    indexes = table.indexes if connection.dialect.name == "postgresql" else ()
    for index in indexes:
        index.drop(connection)
    yield
    for index in indexes:
        index.create(connection)


_GOLDEN = 618_033_989
"""A multiplier, prime to powers of ten, that spreads the rows of neighbouring ids over the transactions."""


def _select_versions(dialect: str, first: int, rows: int, versions: int, transactions: int) -> sa.Select[Any]:
    ids, numbers = _numbers(first, first + rows - 1), _numbers(1, versions)
    id, version = ids.c.n, numbers.c.n

    def transaction_of(version: Any) -> Any:
        place = (version - 1) * rows + id * _GOLDEN % rows
        return place * transactions // (versions * rows)

    began, ended = transaction_of(version), transaction_of(version + 1)
    insert, update = (_bound("audit_operation", operation) for operation in (Operation.INSERT, Operation.UPDATE))
    instant = _INSTANTS[dialect]
    values = {
        "id": id,
        "name": sa.literal("name ") + sa.cast(id, sa.String(20)),
        "amount": version,
        "note": sa.literal("a note"),
        "audit_version": version,
        "valid_from": instant(began),
        "valid_to": sa.case((version < versions, instant(ended)), else_=_bound("valid_to", OPEN_END)),
        "audit_operation": sa.case((version == 1, insert), else_=update),
        "audit_changeset_id": _CHANGESET_IDS[dialect](began),
        "audit_changed_by": sa.literal("user ") + sa.cast(began % 7, sa.String(20)),
        "audit_reason": sa.literal("because"),
    }
    columns = [value.label(name) for name, value in values.items()]
    return sa.select(*columns).select_from(ids.join(numbers, sa.true()))


def _numbers(first: int, last: int) -> sa.CTE:
    numbers = sa.select(sa.cast(first, sa.BigInteger).label("n")).cte(recursive=True)
    return numbers.union_all(sa.select(numbers.c.n + 1).where(numbers.c.n < last))


def _bound(column: str, value: Any) -> Any:
    return sa.literal(value, history_of(Item).__table__.c[column].type)


_INSTANTS: dict[str, Callable[[Any], Any]] = {
    "postgresql": lambda seconds: sa.literal(BEGIN) + seconds * sa.literal(timedelta(seconds=1)),
    "mariadb": lambda seconds: sa.func.timestampadd(sa.text("SECOND"), seconds, _bound("valid_from", BEGIN)),
    "sqlite": lambda seconds: sa.func.datetime(int(BEGIN.timestamp()) + seconds, "unixepoch") + ".000000",
}
"""The instant of a transaction, by its number."""
_CHANGESET_IDS: dict[str, Callable[[Any], Any]] = {
    "postgresql": lambda number: sa.cast(sa.func.lpad(sa.func.to_hex(number), 32, "0"), sa.Uuid),
    "mariadb": lambda number: sa.func.lpad(sa.func.hex(number), 32, "0"),
    "sqlite": lambda number: sa.func.printf("%032x", number),
}
_ANALYZE = {
    "postgresql": "VACUUM ANALYZE %(fullname)s",
    "mariadb": "ANALYZE TABLE %(fullname)s",
    "sqlite": "ANALYZE %(fullname)s",
}


# --- counting -----------------------------------------------------------------------------------------------------


def rows_read(session: Session) -> int:
    """Return how many rows and index entries a connection of MariaDB has read so far."""
    counts = session.connection().exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'")
    return sum(int(count) for _, count in counts)


@contextmanager
def steps_counted(session: Session) -> Iterator[list[int]]:
    """Give a list of one number: how many loops and jumps SQLite makes within the block, some for each row it reads."""
    connection: Any = session.connection().connection.dbapi_connection
    count = [0]

    def step() -> None:
        count[0] += 1

    connection.set_progress_handler(step, 1)
    try:
        yield count
    finally:
        connection.set_progress_handler(None, 0)


_EXPLAINED = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Explained:
    """A statement that was executed.

    :ivar blocks: how many blocks it touched
    :ivar scanned: the tables of which it read every row
    """

    statement: str
    blocks: int
    scanned: frozenset[str]


@contextmanager
def explained(engine: sa.Engine) -> Iterator[list[Explained]]:
    """Collect the statements that an engine executes within the block, without those on transactions and the catalogue.

    Just before a statement is executed, EXPLAIN executes it in a savepoint, and says what it touches. That includes
    neither foreign keys nor triggers.
    """
    statements: list[Explained] = []

    def explain(connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        *_, is_many = rest
        if _EXPLAINED.match(statement) and "pg_catalog" not in statement:
            with connection.connection.cursor() as other:
                other.execute("SAVEPOINT explained")
                plans = [_plan(other, statement, each) for each in (parameters if is_many else [parameters])]
                other.execute("ROLLBACK TO SAVEPOINT explained; RELEASE SAVEPOINT explained")
            blocks = sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans)
            scanned = frozenset(name for plan in plans for name in _scanned(plan))
            statements.append(Explained(statement, blocks, scanned))

    sa.event.listen(engine, "before_cursor_execute", explain)
    try:
        yield statements
    finally:
        sa.event.remove(engine, "before_cursor_execute", explain)


def _plan(cursor: Any, statement: str, parameters: Any) -> dict[str, Any]:
    cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
    [[found]] = cursor.fetchall()
    plan: dict[str, Any] = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return plan


def _scanned(plan: dict[str, Any]) -> Iterator[str]:
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from _scanned(part)
