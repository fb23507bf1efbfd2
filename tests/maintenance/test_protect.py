"""The database itself refuses to rewrite an append-only history, except through maintenance's door."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

from databases import Database
from sqlaudit import track_table
from sqlaudit.maintenance.door import writable_history
from sqlaudit.period import OPEN_END
from sqlaudit.tracking.protection import protecting, protection_of
from sqlaudit.tracking.tables import tracked_table

pytestmark = pytest.mark.new_tables


class Base(orm.DeclarativeBase):
    pass


@track_table()
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))


CUSTOMERS = tracked_table(Customer.__table__)
HISTORY = CUSTOMERS.history


def written(sessions: sessionmaker[Session]) -> None:
    """Write a history of two versions, the second of which is open."""
    with sessions.begin() as session:
        session.add(Customer(id=1, name="Ada"))
    with sessions.begin() as session:
        session.get(Customer, 1).name = "Ada L."


@pytest.fixture(autouse=True)
def _protected(engine: sa.Engine, database: Database) -> None:
    with engine.begin() as connection:
        for statement in protecting(protection_of(CUSTOMERS), engine.dialect.name):
            connection.execute(statement)


REWRITES: dict[str, Callable[[sa.Table], Any]] = {
    "a value of an open version": lambda history: sa.text(
        "UPDATE customers_history SET name = 'Eve' WHERE audit_version = 2"
    ),
    "its case alone": lambda history: sa.text("UPDATE customers_history SET name = 'ADA L.' WHERE audit_version = 2"),
    "a value with the end of the version": lambda history: (
        sa.update(history).where(history.c.audit_version == 2).values(name="Eve", valid_to=history.c.valid_from)
    ),
    "a closed version": lambda history: (
        sa.update(history).where(history.c.audit_version == 1).values(audit_reason="none")
    ),
    "the end of a closed version": lambda history: (
        sa.update(history).where(history.c.audit_version == 1).values(valid_to=history.c.valid_from)
    ),
    "a closed version that opens": lambda history: (
        sa.update(history).where(history.c.audit_version == 1).values(valid_to=OPEN_END)
    ),
    "a deletion": lambda history: sa.text("DELETE FROM customers_history WHERE audit_version = 1"),
    "a deletion of all": lambda history: sa.text("DELETE FROM customers_history"),
}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES)
def test_the_database_refuses_to_rewrite_an_append_only_history(engine, sessions, rewrite):
    written(sessions)
    with engine.connect() as connection:
        before = connection.execute(sa.select(HISTORY)).all()
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="customers_history is append-only"):
        connection.execute(rewrite(HISTORY), execution_options={"sqlaudit_write": None})
    with engine.connect() as connection:
        assert connection.execute(sa.select(HISTORY)).all() == before


def rewrite_and_delete(connection: sa.Connection) -> None:
    connection.execute(sa.text("DELETE FROM customers_history WHERE audit_version = 1"))
    connection.execute(sa.text("UPDATE customers_history SET name = 'Eve' WHERE audit_version = 2"))


def rewrite_and_fail(connection: sa.Connection, statement: str) -> None:
    rewrite_and_delete(connection)
    if not statement:
        raise ZeroDivisionError
    connection.execute(sa.text(statement))


def names(connection: sa.Connection) -> list[Any]:
    return list(connection.scalars(sa.select(HISTORY.c.name).order_by(HISTORY.c.audit_version)))


def is_refused(engine: sa.Engine) -> bool:
    with engine.connect() as connection:
        try:
            connection.execute(sa.text("UPDATE customers_history SET name = 'Mallory'"))
        except sa.exc.DBAPIError as error:
            return "append-only" in str(error.orig)
    return False


def test_the_door_is_open_until_the_block_ends(engine, sessions):
    written(sessions)
    with engine.begin() as connection:
        with writable_history(connection, [CUSTOMERS]), writable_history(connection, [HISTORY]):
            rewrite_and_delete(connection)
        assert names(connection) == ["Eve"]
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), connection.begin_nested():
            connection.execute(sa.text("UPDATE customers_history SET name = 'again'"))
    assert is_refused(engine)
    with engine.connect() as connection:
        assert names(connection) == ["Eve"]


def test_the_door_closes_if_the_block_or_its_statement_fails(engine, sessions):
    written(sessions)
    with engine.connect() as connection:
        with pytest.raises(ZeroDivisionError), writable_history(connection, [CUSTOMERS]):
            rewrite_and_fail(connection, "")
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), connection.begin_nested():
            connection.execute(sa.text("UPDATE customers_history SET name = 'again'"))
        connection.rollback()
        with pytest.raises(sa.exc.DBAPIError), writable_history(connection, [CUSTOMERS]):
            rewrite_and_fail(connection, "SELECT nothing")
        connection.rollback()
        assert names(connection) == ["Ada", "Ada L."]
    assert is_refused(engine)


def test_a_rollback_takes_back_what_was_done_through_the_door(engine, sessions):
    written(sessions)
    with engine.connect() as connection:
        with writable_history(connection, [CUSTOMERS]):
            rewrite_and_delete(connection)
            connection.rollback()
        assert names(connection) == ["Ada", "Ada L."]
    assert is_refused(engine)


def test_the_door_does_nothing_where_nothing_is_protected(engine, sessions):
    with engine.begin() as connection, writable_history(connection, []):
        connection.execute(sa.text("SELECT 1"))
