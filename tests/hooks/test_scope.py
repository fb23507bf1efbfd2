"""Who records a statement while others, or other sessions, are under way on the same connection or engine?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    object_session,
    registry,
    relationship,
    sessionmaker,
)

import sqlaudit
from clock import Clock, at
from invariants import check_history, told
from registering import recording
from sqlaudit import AuditContextManager, register_hooks, tracking_disabled, unregister_hooks


class Base(DeclarativeBase):
    pass


links = sa.Table(
    "scope_links",
    Base.metadata,
    sa.Column("lamp_id", sa.ForeignKey("scope_lamps.id"), primary_key=True),
    sa.Column("room_id", sa.ForeignKey("scope_rooms.id"), primary_key=True),
)


@sqlaudit.track_table()
class Room(Base):
    __tablename__ = "scope_rooms"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(20))


@sqlaudit.track_table()
class Lamp(Base):
    __tablename__ = "scope_lamps"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(20))
    rooms: Mapped[list[Room]] = relationship(secondary=links)


def _default(context: Any) -> str:
    """Execute a statement that succeeds, and the one that fails in a test."""
    number = context.get_current_parameters()["id"]
    context.connection.execute(rooms.insert().values(id=100 + number))
    with suppress(sa.exc.SQLAlchemyError), context.connection.begin_nested():
        FAILING[FAILING_DEFAULT[0]](context.connection)
    return "x"


FAILING_DEFAULT: list[str] = []


@sqlaudit.track_table()
class Shade(Base):
    __tablename__ = "scope_shades"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(20), default=_default)


lamps, rooms = Lamp.__table__, Room.__table__
history: sa.Table = Lamp.History.__table__


@contextmanager
def listening(target: Any, name: str, listener: Callable[..., Any], **options: Any) -> Iterator[None]:
    sa.event.listen(target, name, listener, **options)
    try:
        yield
    finally:
        sa.event.remove(target, name, listener)


# --- sessions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"poolclass": sa.StaticPool}], ids=["per thread", "one"])
def test_sessions_that_share_a_database_in_memory_are_recorded_apart(options: dict[str, Any]) -> None:
    with recording(sa.create_engine("sqlite://", **options), Base.metadata) as sessions:
        with sessions() as one, sessions() as other:
            one.connection(), other.connection()
            with AuditContextManager(user_id="one"):
                one.execute(sa.insert(Lamp).values(id=1))
                one.connection().execute(lamps.insert().values(id=2))
            with AuditContextManager(user_id="other"):
                other.add(Lamp(id=3))
                other.flush()
                other.connection().execute(lamps.insert().values(id=4))
            with AuditContextManager(user_id="one"):
                one.connection().execute(lamps.insert().values(id=5))
            one.commit()
            other.commit()
        with sessions() as session:
            written = session.scalars(sa.select(Lamp.History).order_by("id")).all()
            assert [version.audit_changed_by for version in written] == ["one", "one", "other", "other", "one"]
            assert len({version.audit_changeset_id for version in written}) == 2


@pytest.mark.spread
@pytest.mark.parametrize("target_of", [lambda session: Session, lambda session: session], ids=["all", "one"])
@pytest.mark.usefixtures("tables")
def test_a_session_that_is_registered_within_its_transaction_records_from_then_on(
    engine: sa.Engine, target_of: Callable[[Session], Any]
) -> None:
    def note(mapper: Any, connection: sa.Connection, lamp: Lamp) -> None:
        connection.execute(rooms.insert().values(id=lamp.id))

    with Session(engine) as session:
        connection = session.connection()
        register_hooks(target_of(session))
        session.execute(sa.insert(Lamp).values(id=1))
        connection.execute(lamps.insert().values(id=2))
        with listening(Lamp, "after_insert", note):
            session.add(Lamp(id=3))
            session.commit()
        assert told(session, Lamp, "id") == [("insert", 1), ("insert", 2), ("insert", 3)]
        assert told(session, Room, "id") == [("insert", 3)]
        unregister_hooks(target_of(session))


@pytest.mark.spread
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_disabled", [True, False])
@pytest.mark.parametrize("event", ["before_flush", "after_flush"])
@pytest.mark.usefixtures("tables")
def test_of_the_sessions_on_a_connection_the_one_that_writes_records(
    engine: sa.Engine, is_first: bool, is_disabled: bool, event: str
) -> None:
    with recording(engine) as sessions, engine.connect() as connection:
        outer, inner = sessions(bind=connection), sessions(bind=connection)
        for session in (outer, inner) if is_first else (inner, outer):
            session.connection()

        def write(*args: Any) -> None:
            inner.execute(sa.insert(Lamp).values(id=2))
            inner.add(Lamp(id=3))
            inner.flush()

        with listening(outer, event, write):
            outer.add(Lamp(id=1))
            if is_disabled:
                outer.info["sqlaudit_disabled"] = 1  # tracking_disabled() would flush
            outer.flush()
            outer.info.pop("sqlaudit_disabled", None)
        inner.commit()
        outer.commit()
        connection.commit()
        with sessions() as session:
            expected = [("insert", 2), ("insert", 3)]
            assert told(session, Lamp, "id") == (expected if is_disabled else [("insert", 1), *expected])


@pytest.mark.spread
@pytest.mark.parametrize("is_of_engine", [True, False])
@pytest.mark.usefixtures("tables")
def test_a_statement_with_a_compiled_cache_of_the_users_is_none_of_the_flush(
    engine: sa.Engine, is_of_engine: bool
) -> None:
    options: dict[str, Any] = {"compiled_cache": {}}

    def note(mapper: Any, connection: sa.Connection, lamp: Lamp) -> None:
        connection.execute(rooms.insert().values(id=lamp.id), execution_options={} if is_of_engine else options)

    used = engine.execution_options(**options) if is_of_engine else engine
    with recording(used) as sessions, listening(Lamp, "after_insert", note), sessions() as session:
        session.add(Lamp(id=1))
        session.commit()
        check_history(session, Room)


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_an_object_of_an_untracked_class_is_reported_though_the_engine_is_registered(engine: sa.Engine) -> None:
    class Other:
        pass

    others = registry()
    others.map_imperatively(Other, lamps)
    other: Any = Other()
    other.id = 1
    with recording(engine) as sessions:
        register_hooks(sessions, engine=engine)
        with sessions() as session:
            session.add(other)
            with pytest.warns(sqlaudit.SQLAuditWarning, match="Other is not tracked"):
                session.flush()
            session.commit()
        unregister_hooks(engine=engine)
    others.dispose()


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_a_history_is_protected_on_the_engine_that_is_registered(engine: sa.Engine) -> None:
    other = sa.create_engine("sqlite://")
    with recording(engine) as sessions, sessions() as session:
        register_hooks(sessions, engine=other)
        session.execute(sa.insert(Lamp).values(id=1))
        session.commit()
        with pytest.raises(sqlaudit.ReadOnlyError):
            session.connection().execute(history.delete())
    with engine.begin() as connection:
        connection.execute(history.delete())
    unregister_hooks(engine=other)


# --- flushes ----------------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("end", ["close", "rollback"])
@pytest.mark.usefixtures("tables")
def test_the_instant_of_a_flush_that_failed_before_it_began_is_forgotten(
    sessions: sessionmaker[Session], clock: Clock, end: str
) -> None:
    def fail(*args: Any) -> None:
        raise ValueError

    with sessions() as session:
        session.add(Lamp(id=1))
        with listening(session, "before_flush", fail), pytest.raises(ValueError):  # noqa: PT011  # its own
            session.flush()
        getattr(session, end)()
        clock.now = at(100)
        session.execute(sa.insert(Lamp).values(id=2))
        session.commit()
        assert session.scalars(sa.select(Lamp.History.valid_from)).all() == [at(101)]


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_a_bulk_save_that_fails_in_a_savepoint_of_a_listener_does_not_end_the_flush(
    sessions: sessionmaker[Session],
) -> None:
    def note(mapper: Any, connection: sa.Connection, lamp: Lamp) -> None:
        session = object_session(lamp)
        assert session is not None
        with suppress(sa.exc.IntegrityError), session.begin_nested():
            session.bulk_save_objects([Room(id=1), Room(id=1)])

    with listening(Lamp, "after_insert", note), sessions() as session:
        session.add(Lamp(id=1))
        session.commit()
        check_history(session, Lamp)
        check_history(session, Room)
        assert told(session, Lamp, "id") == [("insert", 1)]


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_links_that_a_listener_adds_when_a_flush_begins_the_transaction_are_recorded(
    sessions: sessionmaker[Session],
) -> None:
    with sessions() as session:
        session.add_all([Lamp(id=1), Room(id=1)])
        session.commit()

        def link(session: Session, transaction: Any, connection: sa.Connection) -> None:
            connection.execute(links.insert().values(lamp_id=1, room_id=1))

        with listening(session, "after_begin", link, once=True):
            session.add(Lamp(id=2, rooms=[Room(id=2)]))
            session.commit()
        check_history(session, links)


@pytest.mark.parametrize("event", ["before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"])
def test_links_that_an_engine_event_adds_within_a_flush_are_recorded(
    sessions: sessionmaker[Session], engine: sa.Engine, event: str
) -> None:
    with sessions() as session:
        session.add_all([Lamp(id=1), Room(id=1), Room(id=2)])
        session.commit()
        waiting = [2]

        def link(connection: sa.Connection, statement: Any, *args: Any) -> None:
            if waiting and "INSERT INTO scope_links " in str(args[0] if "cursor" in event else statement):
                connection.execute(links.insert().values(lamp_id=1, room_id=waiting.pop()))

        with listening(engine, event, link):
            lamp = session.get_one(Lamp, 1)
            lamp.rooms.append(session.get_one(Room, 1))
            session.flush()
        session.commit()
        check_history(session, links)
        assert len(session.execute(sa.select(links)).all()) == 2


@pytest.mark.spread
@pytest.mark.parametrize("is_registered", [True, False], ids=["engine", "sessions"])
@pytest.mark.parametrize("model", [Lamp, Room])
@pytest.mark.usefixtures("tables")
def test_what_a_session_without_hooks_flushes_within_a_flush_is_recorded_or_reported(
    engine: sa.Engine, model: type[Any], is_registered: bool
) -> None:
    """Its statements look like those of the flush if both write objects of one model."""

    def write(mapper: Any, connection: sa.Connection, lamp: Lamp) -> None:
        with Session(connection, join_transaction_mode="rollback_only") as other:
            other.add(model(id=2))
            other.flush()

    with recording(engine) as sessions, sessions() as session, listening(Lamp, "after_insert", write, once=True):
        if is_registered:
            register_hooks(sessions, engine=engine)
        session.add(Lamp(id=1))
        if model is Lamp:
            with pytest.warns(sqlaudit.SQLAuditWarning, match="Lamp was written by a session without hooks"):
                session.commit()
            assert told(session, Lamp, "id") == [("insert", 1)]
        else:
            session.commit()
            check_history(session, Lamp)
            check_history(session, Room)
        unregister_hooks(engine=engine)


@pytest.mark.spread
@pytest.mark.parametrize("executes", ["session", "connection"])
@pytest.mark.usefixtures("tables")
def test_a_row_that_a_listener_changes_when_it_is_inserted_has_one_version(
    sessions: sessionmaker[Session], executes: str
) -> None:
    def change(mapper: Any, connection: sa.Connection, lamp: Lamp) -> None:
        executor: Any = connection if executes == "connection" else object_session(lamp)
        executor.execute(sa.update(lamps).where(lamps.c.id == lamp.id).values(name="changed"))

    with listening(Lamp, "after_insert", change), sessions() as session:
        session.add_all([Lamp(id=1), Lamp(id=2)])
        session.commit()
        check_history(session, Lamp)
        assert told(session, Lamp, "name") == [("insert", "changed")] * 2


# --- statements that fail ---------------------------------------------------------------------------------------


class Broken(sa.sql.expression.ColumnElement[str]):
    inherit_cache = True
    type = sa.String()


@compiles(Broken)
def _fail(element: Broken, compiler: Any, **kw: Any) -> str:
    raise sa.exc.CompileError("broken")


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_a_statement_that_failed_to_compile_leaves_nothing_to_the_next_transaction(
    recorded_engine: sa.Engine, sessions: sessionmaker[Session], clock: Clock
) -> None:
    with recorded_engine.connect() as connection:
        connection.execute(lamps.insert().values(id=1))
        connection.commit()
        with pytest.raises(sa.exc.CompileError) as kept:
            connection.execute(lamps.update().values(name=Broken()))
        connection.rollback()
        clock.now = at(100)
        connection.execute(lamps.update().values(name="new"))
        connection.commit()
        assert kept  # and with it, the statement
    with sessions() as session:
        check_history(session, Lamp)
        assert session.scalars(sa.select(Lamp.History.valid_from).order_by("valid_from")).all()[-1] == at(101)


FAILING: dict[str, Callable[[sa.Connection], Any]] = {
    "a tracked insert": lambda c: c.execute(rooms.insert(), [{"id": 1}, {"id": 1}]),
    "by hand": lambda c: c.execute(sa.text("INSERT INTO no_such_table VALUES (1)")),
    "a value": lambda c: c.execute(rooms.insert().values(id=sa.bindparam("missing"))),
}
UPDATE = lamps.update().where(lamps.c.id == sa.bindparam("key")).values(name=sa.bindparam("new"))
EXECUTE: dict[str, Callable[[Session], Any]] = {
    "connection": lambda s: s.connection().execute(UPDATE, [{"key": 1, "new": "a"}, {"key": 2, "new": "b"}]),
    "session": lambda s: s.execute(sa.update(Lamp), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]),
}


@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize("executed", EXECUTE)
@pytest.mark.parametrize("event", ["before_execute", "before_cursor_execute", "after_cursor_execute", "after_execute"])
@pytest.mark.usefixtures("tables")
def test_a_statement_that_fails_within_another_undoes_nothing_of_it(
    engine: sa.Engine, executed: str, event: str, failing: str
) -> None:
    within: list[Any] = []

    def fail(connection: sa.Connection, *args: Any) -> None:
        if not within:
            within.append(connection)
            with suppress(sa.exc.SQLAlchemyError), connection.begin_nested():
                FAILING[failing](connection)
            connection.execute(rooms.insert(), [{"id": 10 + len(within)}, {"id": 20 + len(within)}])
            within.clear()
            within.extend([connection] * 100)  # once

    with recording(engine) as sessions:
        register_hooks(sessions, engine=engine)
        with sessions() as session:
            session.add_all([Lamp(id=1), Lamp(id=2)])
            session.commit()
            session.connection()
            with listening(engine, event, fail):
                EXECUTE[executed](session)
            session.commit()
            check_history(session, Lamp)
            check_history(session, Room)
            assert told(session, Lamp, "name") == [("insert", None), ("update", "a"), ("insert", None), ("update", "b")]
            assert told(session, Room, "id") == [("insert", 11), ("insert", 21)]
        unregister_hooks(engine=engine)


@pytest.mark.parametrize("failing", FAILING)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.usefixtures("tables")
def test_a_column_default_may_execute_what_fails(
    recorded_engine: sa.Engine, sessions: sessionmaker[Session], failing: str, rows: int
) -> None:
    FAILING_DEFAULT[:] = [failing]
    with recorded_engine.begin() as connection:
        connection.execute(Shade.__table__.insert(), [{"id": number} for number in range(rows)])
    with sessions() as session:
        check_history(session, Shade)
        check_history(session, Room)
        assert told(session, Shade, "name") == [("insert", "x")] * rows
        assert told(session, Room, "id") == [("insert", 100 + number) for number in range(rows)]


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_a_listener_that_raises_before_a_list_is_sent_undoes_no_statement_after_it(
    recorded_engine: sa.Engine, sessions: sessionmaker[Session]
) -> None:
    def fail(connection: sa.Connection, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("UPDATE") and "scope_lamps SET name" in statement:
            raise ValueError(statement)

    rows = [{"key": 1, "new": "a"}, {"key": 2, "new": "b"}]
    with recorded_engine.begin() as connection:
        connection.execute(lamps.insert(), [{"id": 1}, {"id": 2}])
        with listening(recorded_engine, "before_cursor_execute", fail), suppress(ValueError):
            connection.execute(UPDATE, rows)
        connection.execute(rooms.insert(), [{"id": 1}, {"id": 2}])
        connection.execute(UPDATE, rows)
    with sessions() as session:
        check_history(session, Lamp)
        check_history(session, Room)
        assert session.scalars(sa.select(Lamp.name).order_by(Lamp.id)).all() == ["a", "b"]
        assert session.scalars(sa.select(Room.id).order_by(Room.id)).all() == [1, 2]


@pytest.mark.spread
@pytest.mark.usefixtures("tables")
def test_tracking_disabled_in_one_session_leaves_the_other_sessions_of_a_connection_alone(engine: sa.Engine) -> None:
    with recording(engine) as sessions, engine.connect() as connection:
        one, other = sessions(bind=connection), sessions(bind=connection)
        with tracking_disabled(one):
            one.execute(sa.insert(Lamp).values(id=1))
            other.execute(sa.insert(Lamp).values(id=2))
        one.commit()
        other.commit()
        connection.commit()
        with sessions() as session:
            assert told(session, Lamp, "id") == [("insert", 2)]
