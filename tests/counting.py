"""Which statements does an engine execute?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import ORMExecuteState, Session


@contextmanager
def counted(engine: sa.Engine) -> Iterator[list[str]]:
    """Collect the statements that an engine executes within the block."""
    statements: list[str] = []

    def collect(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    sa.event.listen(engine, "before_cursor_execute", collect)
    try:
        yield statements
    finally:
        sa.event.remove(engine, "before_cursor_execute", collect)


@contextmanager
def rows_read(session: Session) -> Iterator[list[int]]:
    """Collect how many rows each statement of a session returns within the block."""
    counts: list[int] = []

    def count(state: ORMExecuteState) -> Any:
        rows = state.invoke_statement().freeze()
        counts.append(len(rows.data))
        return rows()

    sa.event.listen(session, "do_orm_execute", count)
    try:
        yield counts
    finally:
        sa.event.remove(session, "do_orm_execute", count)
