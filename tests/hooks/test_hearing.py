"""Who hears statements? An engine is listened to once, as soon as there is anything to hear, and for no longer."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from invariants import check_history, told
from registering import recording
from sqlaudit import SQLAuditWarning, register_hooks, track_table, unregister_hooks

EVENTS = ("before_execute", "after_execute", "before_cursor_execute", "handle_error")


class Base(DeclarativeBase):
    pass


@track_table()
class Lamp(Base):
    __tablename__ = "hearing_lamps"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20))
    shades: Mapped[list["Shade"]] = relationship(secondary="hearing_lamp_shades")


@track_table()
class Shade(Base):
    __tablename__ = "hearing_shades"

    id: Mapped[int] = mapped_column(primary_key=True)


lamp_shades = sa.Table(
    "hearing_lamp_shades",
    Base.metadata,
    sa.Column("lamp_id", sa.ForeignKey("hearing_lamps.id"), primary_key=True),
    sa.Column("shade_id", sa.ForeignKey("hearing_shades.id"), primary_key=True),
)


def listeners_of(engine: sa.Engine) -> dict[str, int]:
    dialect = {"handle_error": engine.dialect}  # which the engines of several tests share
    return {name: len(set(getattr(dialect.get(name, engine).dispatch, name))) for name in EVENTS}


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


def _replacing(
    connection: sa.Connection, clause: Any, multiple: Any, single: Any, options: Any
) -> tuple[Any, Any, Any]:
    if getattr(clause, "get_execution_options", dict)().get("is_given"):
        clause = sa.update(Lamp.__table__).values(name="replaced")
    return clause, multiple, single


REPLACED: dict[str, Any] = {
    "a tracked update": sa.update(Lamp.__table__).values(name="given"),
    "an untracked update": sa.update(sa.table("hearing_plain", sa.column("name"))).values(name="given"),
    "a select": sa.select(sa.literal(1)),
}


@pytest.mark.spread
@pytest.mark.parametrize("replaced", REPLACED)
@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("is_session", [True, False])
@pytest.mark.usefixtures("tables")
def test_what_a_listener_executes_in_the_place_of_a_statement_is_recorded_or_reported(
    engine: sa.Engine, is_session: bool, comes_first: bool, replaced: str
) -> None:
    with recording(engine) as sessions, sessions() as session:
        session.add(Lamp(id=1, name="a"))
        session.commit()
    used = engine.execution_options()  # which has the listeners of the engine, and then its own
    target = sa.Engine if comes_first else used
    with recording(used) as sessions:
        register_hooks(sessions, engine=used)
        sa.event.listen(target, "before_execute", _replacing, retval=True)
        try:
            with warnings.catch_warnings(record=True) as reported, used.begin() as connection:
                warnings.simplefilter("always", SQLAuditWarning)
                with sessions(bind=connection) as session:
                    given = REPLACED[replaced].execution_options(is_given=True)
                    (session.connection() if is_session else connection).execute(given)
                    session.commit()
        finally:
            sa.event.remove(target, "before_execute", _replacing)
        unregister_hooks(engine=used)
        with Session(engine) as session:
            written = told(session, Lamp, "name")[1:]
    if reported:
        assert not comes_first or replaced == "a select"
        assert ["has replaced a statement" in str(each.message) for each in reported] == [True]
        assert written == []
    else:
        assert written == [("update", "replaced")]


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_a_listener_that_copies_each_statement_replaces_none(
    engine: sa.Engine, sessions: sessionmaker[Session]
) -> None:
    def copy(connection: sa.Connection, clause: Any, multiple: Any, single: Any, options: Any) -> tuple[Any, Any, Any]:
        is_write = isinstance(clause, sa.UpdateBase)
        return clause.execution_options(is_copied=True) if is_write else clause, multiple, single

    used = engine.execution_options()
    with sessions(bind=used) as session:
        session.connection()
        sa.event.listen(used, "before_execute", copy, retval=True)
        session.add(Lamp(id=1, name="a", shades=[Shade(id=1)]))
        session.flush()
        session.execute(sa.update(Lamp).values(name="b"))
        session.connection().execute(lamp_shades.delete())
        session.execute(lamp_shades.insert(), [{"lamp_id": 1, "shade_id": 1}])
        session.commit()
        for source in (Lamp, Shade, lamp_shades):
            check_history(session, source)


def test_an_engine_may_be_listened_to_while_another_thread_calls_its_listeners() -> None:
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False})
    called, goes_on = Event(), Event()

    @sa.event.listens_for(engine, "before_cursor_execute")
    def wait(*args: Any) -> None:
        called.set()
        assert goes_on.wait(60)

    def execute() -> int | None:
        with engine.connect() as connection:
            return connection.scalar(sa.text("SELECT 1"))

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(execute)
        assert called.wait(60)
        register_hooks(engine=engine)
        goes_on.set()
        assert running.result(60) == 1
    unregister_hooks()
    unregister_hooks(engine=engine)


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


def test_threads_that_use_an_engine_for_the_first_time_at_once_leave_it_with_each_listener() -> None:
    """Otherwise statements that follow would not be recorded."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    register_hooks()
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(40):
                engine = sa.create_engine("sqlite://", connect_args={"check_same_thread": False})
                begin = Barrier(4)

                def connect(engine: sa.Engine = engine, begin: Barrier = begin) -> None:
                    begin.wait()
                    with Session(engine) as session:
                        session.connection()

                for used in [pool.submit(connect) for _ in range(4)]:
                    used.result()
                assert listeners_of(engine) == dict.fromkeys(EVENTS, 1)
                engine.dispose()
    finally:
        sys.setswitchinterval(interval)
        unregister_hooks()
