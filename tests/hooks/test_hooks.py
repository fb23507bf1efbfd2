"""Which sessions record, from when until when, and what of writes that cannot be recorded?"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from invariants import check_history, told
from sqlaudit import (
    CaptureError,
    SQLAuditConfig,
    SQLAuditError,
    SQLAuditWarning,
    register_hooks,
    set_config,
    track_table,
    unregister_hooks,
)
from sqlaudit.hooks.sessions import registered_targets


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))


class Untracked(Base):
    __tablename__ = "untracked"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))


class OurSession(Session):
    """A session class of the user's, which does something of its own."""

    def bulk_save_objects(self, *args: Any, **kw: Any) -> None:
        self.info["bulk"] = True
        super().bulk_save_objects(*args, **kw)


# --- targets ----------------------------------------------------------------------------------------------------


def _session(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    return Session, lambda: Session(engine)


def _subclass(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    return OurSession, lambda: OurSession(engine)


def _maker(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    maker = sessionmaker(engine)
    return maker, maker


def _maker_of_subclass(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    maker = sessionmaker(engine, class_=OurSession)
    return maker, maker


def _scoped(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    scoped = scoped_session(sessionmaker(engine))
    return scoped, scoped


def _one(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    session = Session(engine)
    return session, lambda: session


def _async_maker(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    maker = async_sessionmaker()
    return maker, lambda: _bound(maker(), engine)


def _async_scoped(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    scoped = async_scoped_session(async_sessionmaker(), lambda: 0)
    return scoped, lambda: _bound(scoped(), engine)


def _async_session(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    return AsyncSession, lambda: _bound(AsyncSession(), engine)


def _one_async(engine: sa.Engine) -> tuple[Any, Callable[[], Session]]:
    session = AsyncSession()
    return session, lambda: _bound(session, engine)


def _bound(session: AsyncSession, engine: sa.Engine) -> Session:
    """The session inside of an asynchronous one; what drivers do is tested elsewhere."""
    session.sync_session.bind = engine
    return session.sync_session


TARGETS = pytest.mark.parametrize(
    "target_of",
    [
        _session,
        _subclass,
        _maker,
        _maker_of_subclass,
        _scoped,
        _one,
        _async_maker,
        _async_scoped,
        _async_session,
        _one_async,
    ],
)


def _write(session: Session, key: int) -> None:
    session.add(Item(id=key, name="a"))
    session.commit()
    session.bulk_save_objects([Item(id=key + 1, name="b")])
    session.commit()


@pytest.mark.spread
@TARGETS
def test_a_target_records_until_it_is_unregistered(engine: sa.Engine, target_of: Any) -> None:
    target, open_session = target_of(engine)
    register_hooks(target)
    register_hooks(target)
    assert len(registered_targets()) == 1
    with open_session() as session:
        _write(session, 1)
    unregister_hooks(target)
    unregister_hooks(target)
    assert not registered_targets()
    with open_session() as session:
        with pytest.warns(SQLAuditWarning, match="Item was written by a session without hooks"):
            _write(session, 10)
        check_history(session, Item, all_recorded=False)
        assert told(session, Item, "id") == [("insert", 1), ("insert", 2)]


@pytest.mark.parametrize("connected", [False, True], ids=["engine", "connection"])
def test_unregistering_an_engine_leaves_sessions_alone(engine: sa.Engine, connected: bool) -> None:
    with engine.connect() as connection:
        tenant = connection if connected else engine
        register_hooks()
        register_hooks(engine=tenant)
        unregister_hooks(engine=tenant)
        assert registered_targets() == (Session,)
    with Session(engine) as session:
        _write(session, 1)
        check_history(session, Item)
    unregister_hooks(Session, engine=engine)
    assert registered_targets() == ()


@pytest.mark.spread
@TARGETS
def test_unregistering_leaves_no_trace(engine: sa.Engine, target_of: Any) -> None:
    classes = (Session, OurSession, AsyncSession)
    names = ("bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings")
    before = [(dict(vars(each)), [vars(each).get(name) for name in names]) for each in classes]
    events = [list(getattr(Session().dispatch, name)) for name in ("before_flush", "after_flush", "do_orm_execute")]
    target, _ = target_of(engine)
    register_hooks(target)
    unregister_hooks(target)
    after = [(dict(vars(each)), [vars(each).get(name) for name in names]) for each in classes]
    for (old, old_methods), (new, new_methods) in zip(before, after, strict=True):
        assert old_methods == new_methods
        assert old.keys() == new.keys()
    assert events == [
        list(getattr(Session().dispatch, name)) for name in ("before_flush", "after_flush", "do_orm_execute")
    ]
    if isinstance(target, Session):
        assert not set(names) & set(vars(target))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_overlapping_targets_record_once(engine: sa.Engine, order: tuple[int, ...]) -> None:
    maker = sessionmaker(engine, class_=OurSession)
    targets = [Session, OurSession, maker]
    for place in order:
        register_hooks(targets[place])
    with maker() as session:
        _write(session, 1)
        session.get_one(Item, 1).name = "c"
        session.commit()
        check_history(session, Item)
        assert told(session, Item, "id") == [("insert", 1), ("update", 1), ("insert", 2)]
    remaining = list(order)
    while remaining:
        unregister_hooks(targets[remaining.pop(0)])
        if remaining:
            with maker() as session:
                session.bulk_save_objects([Item(id=10 + len(remaining))])
                session.add(Item(id=20 + len(remaining)))
                session.commit()
    with maker() as session:
        check_history(session, Item)
    assert "bulk_save_objects" not in vars(maker.class_)


def test_a_users_own_session_methods_still_run(engine: sa.Engine) -> None:
    register_hooks(Session)
    with OurSession(engine) as session:
        session.bulk_save_objects([Item(id=1, name="a")])
        session.commit()
        assert session.info["bulk"] is True
        assert told(session, Item, "id") == [("insert", 1)]
    unregister_hooks(Session)


def test_sessions_of_other_makers_are_left_alone(engine: sa.Engine, sessions: sessionmaker[Session]) -> None:
    assert not hasattr(sessionmaker(engine).class_.bulk_save_objects, "__wrapped__")
    with sessionmaker(engine)() as session:
        session.add(Item(id=1))
        with pytest.warns(SQLAuditWarning, match="without hooks"):
            session.commit()


def test_hooks_work_for_sessions_that_were_opened_before(engine: sa.Engine) -> None:
    with Session(engine) as session:
        register_hooks()
        _write(session, 1)
        check_history(session, Item)
    unregister_hooks()


@pytest.mark.parametrize("given", [None, 1, object, "Session", Item])
def test_a_target_that_makes_no_sessions_is_refused(given: Any) -> None:
    with pytest.raises(SQLAuditError, match="does not make sessions"):
        register_hooks(given)
    with pytest.raises(SQLAuditError, match="does not make sessions"):
        unregister_hooks(given)


def test_an_engine_as_a_target_is_told_how_it_is_recorded(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for given in (engine, connection):
            with pytest.raises(SQLAuditError, match=r"makes no sessions.*write register_hooks\(engine=…\)"):
                register_hooks(given)


# --- statements, and writes that are not recorded ---------------------------------------------------------------


def _state(session: Session) -> list[Any]:
    return [tuple(row) for row in session.execute(sa.select(Item.id, Item.name).order_by(Item.id))]


def test_a_statement_under_overlapping_targets_is_recorded_once(engine: sa.Engine) -> None:
    maker = sessionmaker(engine, class_=OurSession)
    for target in (Session, maker):
        register_hooks(target)
    try:
        with maker() as session:
            session.bulk_insert_mappings(Item, [{"id": 7}])  # type: ignore[arg-type]
            session.commit()
            session.execute(sa.update(Item).values(name="b"))
            session.commit()
            session.execute(sa.delete(Item))
            session.commit()
            assert told(session, Item, "name") == [("insert", None), ("update", "b"), ("delete", "b")]
    finally:
        for target in (Session, maker):
            unregister_hooks(target)


def test_bulk_writes_of_other_tables_do_not_warn(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        session.execute(sa.insert(Untracked).values(id=1))
        session.execute(sa.update(Untracked).values(name="b"))
        session.execute(sa.update(Untracked.__table__).values(name="c"))  # type: ignore[arg-type]
        session.bulk_insert_mappings(Untracked, [{"id": 2}])  # type: ignore[arg-type]
        session.bulk_save_objects([Untracked(id=3)])
        session.execute(sa.delete(Untracked))
        session.commit()


class Strange(Base):
    """Not tracked."""

    __tablename__ = "strange"

    a: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    b: Mapped[int | None]
    c: Mapped[int | None] = mapped_column(default=sa.select(sa.literal(3)).scalar_subquery())


strange: Any = Strange.__table__
OF_OTHERS: dict[str, Callable[[Session], Any]] = {
    "objects": lambda s: [s.add(Strange(a=8)), s.flush(), setattr(s.get_one(Strange, 8), "b", 7), s.flush()],
    "a key that changes": lambda s: [setattr(s.get_one(Strange, 1), "a", 7), s.flush()],
    "insert of a list": lambda s: s.execute(sa.insert(Strange), [{"a": 8}, {"a": 9}]) and None,
    "insert of values": lambda s: s.execute(sa.insert(Strange).values([{"a": 8}, {"a": 9}])) and None,
    "insert from a select, by a list": lambda s: (
        s.execute(
            strange.insert().from_select(["a"], sa.select(strange.c.a + sa.bindparam("x", type_=sa.Integer))),
            [{"x": 10}, {"x": 20}],
        ).rowcount
    ),
    "update": lambda s: s.execute(sa.update(Strange).where(Strange.a == 1).values(b=5)).rowcount,
    "update by keys": lambda s: s.execute(sa.update(Strange), [{"a": 1, "b": 5}, {"a": 2, "b": 6}]) and None,
    "update of a key": lambda s: s.execute(strange.update().values(a=strange.c.a + 10)).rowcount,
    "update in an order": lambda s: (
        s.execute(sa.update(Strange).ordered_values((Strange.b, Strange.a), (Strange.c, 5))).rowcount
    ),
    "update by a parameter's function": lambda s: (
        s.execute(strange.update().where(strange.c.a == sa.bindparam("x", callable_=lambda: 1)).values(b=5)).rowcount
    ),
    "update by a query of its own": lambda s: (
        s.execute(strange.update().where(strange.c.a.in_(sa.select(sa.literal(1)))).values(b=sa.text("a + 1"))).rowcount
    ),
    "delete": lambda s: s.execute(sa.delete(Strange).where(Strange.a > 1)).rowcount,
    "delete many times": lambda s: (
        s.execute(strange.delete().where(strange.c.a == sa.bindparam("x")), [{"x": 1}, {"x": 2}]).rowcount
    ),
    "text": lambda s: s.execute(sa.text("UPDATE strange SET b = a")).rowcount,  # type: ignore[attr-defined]
    "a bulk method": lambda s: s.bulk_insert_mappings(Strange, [{"a": 8}]),  # type: ignore[arg-type]
    "a connection": lambda s: s.connection().execute(strange.update().values(b=1)).rowcount,
}


@pytest.mark.spread
@pytest.mark.parametrize("name", OF_OTHERS)
def test_statements_for_tables_that_are_not_tracked_are_sent_as_without_hooks(engine: sa.Engine, name: str) -> None:
    sent: list[list[Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        sent[-1].append((statement, str(parameters)))

    with engine.begin() as connection:
        connection.execute(strange.insert(), [{"a": 1}, {"a": 2}])
    sa.event.listen(engine, "before_cursor_execute", note)
    for is_registered in (False, True):
        sessions = type("Sessions", (Session,), {})
        if is_registered:
            register_hooks(sessions, engine=engine)
        try:
            with sessions(engine) as session, warnings.catch_warnings():
                warnings.simplefilter("error", SQLAuditWarning)
                sent.append([])
                done = OF_OTHERS[name](session)
                sent[-1].append(done if isinstance(done, int) else None)
        finally:
            unregister_hooks(sessions, engine=engine)
    assert sent[1] == sent[0]
    assert len(sent[0]) > 1


WRITES = {
    "insert": lambda session: session.add(Item(id=2)),
    "update": lambda session: setattr(session.get(Item, 1), "name", "b"),
    "delete": lambda session: session.delete(session.get(Item, 1)),
}


@pytest.mark.spread
@pytest.mark.parametrize("write", WRITES)
def test_a_session_without_hooks_warns(engine: sa.Engine, sessions: sessionmaker[Session], write: str) -> None:
    with sessions.begin() as session:
        session.add(Item(id=1, name="a"))
    with Session(engine) as session:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            WRITES[write](session)
            session.flush()
        assert "register_hooks" in str(caught[0].message)
        assert len(caught) == 1
        session.commit()
    with sessions() as session:
        assert _state(session) != [(1, "a")]


@pytest.mark.parametrize("write", WRITES)
def test_a_session_without_hooks_raises_in_strict_mode_and_nothing_is_kept(
    engine: sa.Engine, sessions: sessionmaker[Session], write: str
) -> None:
    with sessions.begin() as session:
        session.add(Item(id=1, name="a"))
    set_config(SQLAuditConfig(strict=True))

    def attempt(session: Session) -> None:
        WRITES[write](session)
        session.commit()

    with Session(engine) as session, pytest.raises(CaptureError, match="register_hooks"):
        attempt(session)
    with sessions() as session:
        assert _state(session) == [(1, "a")]


def test_reads_and_untracked_writes_of_a_session_without_hooks_do_not_warn(engine: sa.Engine) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Session(engine) as session:
            session.scalars(sa.select(Item)).all()
            session.add(Untracked(id=1))
            session.commit()
