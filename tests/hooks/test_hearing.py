"""Who hears statements? An engine is listened to once, as soon as there is anything to hear, and for no longer."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from invariants import check_history, told
from registering import recording
from sqlaudit import register_hooks, track_table, unregister_hooks

EVENTS = ("before_execute", "after_execute", "before_cursor_execute", "handle_error")


class Base(DeclarativeBase):
    pass


@track_table()
class Lamp(Base):
    __tablename__ = "hearing_lamps"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))


def listeners_of(engine: sa.Engine) -> dict[str, int]:
    dialect = {"handle_error": engine.dialect}
    return {name: len(list(getattr(dialect.get(name, engine).dispatch, name))) for name in EVENTS}


def _statements(session: Session) -> None:
    session.add(Lamp(id=1, name="a"))
    session.flush()
    session.execute(sa.update(Lamp).values(name="b"))
    session.connection().execute(sa.insert(Lamp.__table__).values(id=2, name="a"))
    session.commit()
    session.execute(sa.delete(Lamp).where(Lamp.id == 1))
    session.commit()


@pytest.mark.spread
@pytest.mark.parametrize("options", [{}, {"logging_token": "x"}], ids=["the engine", "a copy with options"])
@pytest.mark.usefixtures("tables")
def test_an_engine_is_listened_to_once_and_no_longer_than_hooks_are_registered(
    engine: sa.Engine, options: dict[str, str]
) -> None:
    before = listeners_of(engine)
    used = engine.execution_options(**options) if options else engine
    register_hooks()
    register_hooks(engine=used)
    for _ in range(2):
        with Session(used) as session:
            _statements(session)
            session.execute(sa.delete(Lamp))
            session.commit()
        assert listeners_of(engine) == {name: count + 1 for name, count in before.items()}
    unregister_hooks()
    assert listeners_of(engine) == {name: count + 1 for name, count in before.items()}
    unregister_hooks(engine=used)
    assert listeners_of(engine) == before


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_statements_of_an_engine_and_of_its_copy_with_options_are_recorded_once(engine: sa.Engine) -> None:
    copy = engine.execution_options(logging_token="x")
    with recording(copy) as copies, recording(engine) as originals:
        with copies() as session:
            _statements(session)
        with originals() as session:
            session.execute(sa.update(Lamp).values(name="c"))
            session.commit()
            check_history(session, Lamp)
            assert told(session, Lamp, "name") == [("insert", "b"), ("delete", "b"), ("insert", "a"), ("update", "c")]


def _session_listener(session: Session, write: Callable[[sa.Connection], Any]) -> None:
    @sa.event.listens_for(session, "after_begin", once=True)
    def begun(session: Session, transaction: Any, connection: sa.Connection) -> None:
        write(connection)


@pytest.mark.spread
@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.usefixtures("tables")
def test_what_another_listener_writes_when_a_transaction_begins_is_recorded(
    engine: sa.Engine, comes_first: bool
) -> None:
    session = Session(engine)

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.insert(Lamp.__table__).values(id=7, name="early"))

    if comes_first:
        _session_listener(session, write)
    register_hooks(session)
    if not comes_first:
        _session_listener(session, write)
    with session:
        session.execute(sa.text("SELECT 1"))
        session.commit()
        check_history(session, Lamp)
        assert told(session, Lamp, "name") == [("insert", "early")]
    unregister_hooks(session)


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_a_session_that_is_unregistered_within_its_transaction_is_heard_no_longer(
    engine: sa.Engine, sessions: sessionmaker[Session]
) -> None:
    with sessions() as other, Session(engine) as session:
        register_hooks(session)
        session.connection()
        unregister_hooks(session)
        session.connection().execute(sa.insert(Lamp.__table__).values(id=1, name="a"))
        session.commit()
        assert told(other, Lamp, "name") == []


FIRST_MODEL = """
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
import sqlaudit

sqlaudit.register_hooks()
session = Session(sa.create_engine("sqlite://"))
session.execute(sa.text("SELECT 1"))  # the transaction begins before there is anything to record

class Base(DeclarativeBase):
    pass

@sqlaudit.track_table()
class Lamp(Base):
    __tablename__ = "lamps"
    id: Mapped[int] = mapped_column(primary_key=True)

Base.metadata.create_all(session.connection())
session.execute(sa.insert(Lamp).values(id=1))
session.connection().execute(sa.insert(Lamp.__table__).values(id=2))
session.commit()
print(session.scalars(sa.select(Lamp.History.id).order_by("id")).all())
"""


def test_the_first_model_may_be_tracked_within_a_transaction() -> None:
    ran = subprocess.run([sys.executable, "-c", FIRST_MODEL], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("[1, 2]\n", "")
