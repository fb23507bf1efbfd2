"""How many blocks does a statement touch where history is long? PostgreSQL tells, for 100,000 versions.

A block is 8 KiB of a table or an index. Unlike a time, the number of blocks that a statement touches does not depend on
what else the machine does. A test module that imports `Base` and `happen` finds the versions in its database.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from clock import START
from sqlaudit import history_of, track_table

LONG, VERSIONS_OF_LONG = 10, 5_000
"""The rows 1 to 10 have 5,000 versions each."""
SHORT, VERSIONS_OF_SHORT = 5_000, 10
"""The rows from 11 on have 10 versions each."""
ROWS_OF_CHANGESET = 4


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))
    amount: Mapped[int]
    note: Mapped[str | None] = mapped_column(sa.String(50))


def happen(sessions: sessionmaker[Session]) -> None:
    """Write rows and their versions in the order of time, a transaction each second; the last ones are open."""
    live, history = Item.__tablename__, history_of(Item).__table__.name
    values = {
        "long": LONG,
        "rows": LONG + SHORT,
        "of_long": VERSIONS_OF_LONG,
        "of_short": VERSIONS_OF_SHORT,
        "size": ROWS_OF_CHANGESET,
        "begin": START,
    }
    with sessions() as session:
        engine = session.get_bind()
    with engine.begin() as connection:  # without the session: nothing is recorded
        for statement in (_VERSIONS.format(history), _LIVE.format(live, history), _NUMBERS.format(live)):
            connection.execute(sa.text(statement), values)
        connection.execute(sa.text("ANALYZE"))


_VERSIONS = """
INSERT INTO {} (id, name, amount, note, audit_version, valid_from, valid_to, audit_operation, audit_changeset_id,
  audit_changed_by, audit_reason)
WITH versions AS (
  SELECT id, version, row_number() OVER (ORDER BY (version + id * 0.618 % 1) / count, id) / :size AS changeset
  FROM generate_series(1, :rows) AS id
    CROSS JOIN LATERAL (SELECT CASE WHEN id <= :long THEN :of_long ELSE :of_short END AS count) AS counts
    CROSS JOIN LATERAL generate_series(1, count) AS version
)
SELECT id, 'name ' || id, version, 'a note', version, :begin + changeset * interval '1 second',
  coalesce(:begin + lead(changeset) OVER (PARTITION BY id ORDER BY version) * interval '1 second', '9999-12-31T00:00Z'),
  CASE version WHEN 1 THEN 'insert' ELSE 'update' END, lpad(to_hex(changeset), 32, '0')::uuid,
  'user ' || changeset % 7, 'because'
FROM versions ORDER BY changeset, id
"""
_LIVE = """
INSERT INTO {} (id, name, amount, note)
SELECT id, name, amount, note FROM {} WHERE valid_to = '9999-12-31T00:00Z' ORDER BY id
"""
_NUMBERS = "SELECT setval(pg_get_serial_sequence('{}', 'id'), :rows)"


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
