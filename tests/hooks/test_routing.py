"""Sessions that choose where a statement goes: what they write is recorded there, and nothing else becomes of them.

Each program runs twice: by a session without hooks, which says what is right, and by one that records.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, foreign, mapped_column, relationship, remote

import sqlaudit
from databases import SQLite
from invariants import check_history
from registering import recording


class Base(DeclarativeBase):
    pass


links = sa.Table(  # which may lie in another database than what it links
    "routed_links",
    Base.metadata,
    sa.Column("house_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tag_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("note", sa.String(20), server_default="n"),
)


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "routed_tags"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(20))


@sqlaudit.track_table()
class House(Base):
    __tablename__ = "routed_houses"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(20))
    size: Mapped[int] = mapped_column(default=0)
    tags: Mapped[list[Tag]] = relationship(
        secondary=links,
        primaryjoin=lambda: House.id == foreign(links.c.house_id),
        secondaryjoin=lambda: remote(Tag.id) == foreign(links.c.tag_id),
    )


@sqlaudit.track_table()
class Room(Base):
    """Goes with its house, which the database sees to."""

    __tablename__ = "routed_rooms"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    house_id: Mapped[int] = mapped_column(sa.ForeignKey(House.id, ondelete="CASCADE"))


houses: Any = House.__table__
SOURCES: list[Any] = [House, Room, Tag, links]


@pytest.fixture
def other_engine(tmp_path: Any) -> Iterator[sa.Engine]:
    """A second database."""
    engine = SQLite(tmp_path / "second").create_engine()
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


# --- who chooses, and how ---------------------------------------------------------------------------------------

Engines = tuple[sa.Engine, sa.Engine]
Asked = list[Any]


def _asked_of(mapper: Any, clause: Any, kw: Any) -> Any:
    kind = getattr(clause, "__visit_name__", None)
    return getattr(sa.inspect(mapper, raiseerr=False), "class_", None), kind, sorted(kw)


def _getting_bind(choose: Callable[..., int]) -> Callable[[Engines, Asked], Session]:
    """Make a session of a class whose get_bind() chooses, and keeps what it was asked."""

    def make(engines: Engines, asked: Asked) -> Session:
        class Routing(Session):
            def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **kw: Any) -> Any:
                asked.append(_asked_of(mapper, clause, kw))
                return bind or engines[choose(self, mapper, clause, len(asked))]

        return Routing()

    return make


def _is_change(clause: Any) -> bool:
    return isinstance(clause, (sa.Insert, sa.Update, sa.Delete))


def _is_tag(mapper: Any) -> bool:
    inspected = sa.inspect(mapper, raiseerr=False)
    return inspected is not None and inspected.class_ is Tag


def _binds(engines: Engines, asked: Asked) -> Session:
    return Session(binds={House: engines[0], Room: engines[0], houses: engines[0], Tag: engines[1], links: engines[1]})


def _fallback(engines: Engines, asked: Asked) -> Session:
    return Session(engines[0], binds={Tag: engines[1]})


def _listening(engines: Engines, asked: Asked) -> Session:
    """A session on the second engine whose statements a listener sends to the first if they write."""
    session = Session(engines[1])

    def choose(state: orm.ORMExecuteState) -> None:
        if not state.is_select:
            state.bind_arguments["bind"] = engines[0]

    sa.event.listen(session, "do_orm_execute", choose)
    return session


def _invoking(engines: Engines, asked: Asked) -> Session:
    """The same, by a listener that executes the statement."""
    session = Session(engines[1])

    def execute(state: orm.ORMExecuteState) -> Any:
        return state.invoke_statement(bind_arguments={"bind": engines[0]}) if not state.is_select else None

    sa.event.listen(session, "do_orm_execute", execute)
    return session


SESSIONS: dict[str, Callable[[Engines, Asked], Session]] = {
    "leader and follower": _getting_bind(
        lambda session, mapper, clause, _: 0 if session._flushing or _is_change(clause) else 1
    ),
    "by clause alone": _getting_bind(lambda session, mapper, clause, _: 0 if _is_change(clause) else 1),
    "by flushing alone": _getting_bind(lambda session, mapper, clause, _: int(not session._flushing)),
    "by mapper": _getting_bind(lambda session, mapper, clause, _: int(_is_tag(mapper))),
    "in turns": _getting_bind(lambda session, mapper, clause, number: number % 2),
    "in turns, the other": _getting_bind(lambda session, mapper, clause, number: (number + 1) % 2),
    "binds": _binds,
    "binds and a bind": _fallback,
    "a listener that chooses": _listening,
    "a listener that executes": _invoking,
}


# --- ways to write ----------------------------------------------------------------------------------------------
# Each has numbers of its own, from n on: rows n + 1, which are recorded, n + 2, which are older than their tracking.


def _detached(kind: Any, key: int) -> Any:
    blind = kind(id=key)
    orm.make_transient_to_detached(blind)
    return blind


def _blind(session: Session, n: int) -> None:
    for kind in (House, Tag):
        blind = _detached(kind, n + 1), _detached(kind, n + 2)
        session.add_all(blind)
        for each in blind:
            each.name = "blind"


def _change_links(session: Session, n: int) -> None:
    house = House(id=n + 7, name="linked", tags=[Tag(id=n + 7, name="a"), Tag(id=n + 8, name="b")])
    session.add(house)
    session.flush()
    house.tags = [house.tags[1], Tag(id=n + 9, name="c")]
    session.flush()
    session.delete(house)


def _move(session: Session, n: int) -> None:
    house, tag = House(id=n + 5, name="a"), Tag(id=n + 5, name="a")
    session.add_all([house, tag])
    session.flush()
    house.id, tag.id = n + 6, n + 6


def _delete(session: Session, n: int) -> None:
    for kind in (House, Tag):
        session.delete(_detached(kind, n + 2))


def _replace(session: Session, n: int) -> None:
    house = House(id=n + 3, name="old")
    session.add(house)
    session.flush()
    session.delete(house)
    session.add(House(id=n + 3, name="new"))


def _flush_first(session: Session, n: int) -> None:
    session.add(House(id=n + 3, name="a"))
    session.execute(sa.update(House).values(size=2))


def _rows(n: int) -> list[dict[str, Any]]:
    return [{"id": n + 4, "name": "b", "size": 1}, {"id": n + 5, "name": "c", "size": 1}]


def _tags(n: int) -> list[dict[str, Any]]:
    return [{"id": n + 4, "name": "b"}, {"id": n + 5, "name": "c"}]


WRITES: dict[str, Callable[[Session, int], Any]] = {
    "add": lambda session, n: session.add_all([House(id=n + 3, name="a"), Tag(id=n + 3, name="a")]),
    "blind update": _blind,
    "links": _change_links,
    "other keys": _move,
    "delete": _delete,
    "replace": _replace,
    "update()": lambda session, n: session.execute(sa.update(House).values(size=House.size + 1)),
    "update(), fetch": lambda session, n: session.execute(
        sa.update(Tag).values(name="u"), execution_options={"synchronize_session": "fetch"}
    ),
    "update() by key": lambda session, n: session.execute(
        sa.update(House), [{"id": n + 1, "size": 4}, {"id": n + 2, "size": 5}]
    ),
    "delete()": lambda session, n: session.execute(sa.delete(House).where(House.id == n + 2)),
    "insert(), one": lambda session, n: session.execute(sa.insert(House).values(id=n + 4, name="b")),
    "insert(), values": lambda session, n: session.execute(sa.insert(Tag).values(_tags(n))),
    "insert(), a list": lambda session, n: session.execute(sa.insert(House), _rows(n)),
    "insert(), a list, other table": lambda session, n: session.execute(sa.insert(Tag), _tags(n)),
    "insert(), returning": lambda session, n: session.scalars(sa.insert(House).returning(House.id), _rows(n)).all(),
    "Query.update": lambda session, n: session.query(House).filter(House.id == n + 1).update({"size": 3}),
    "a table": lambda session, n: session.execute(houses.update().values(size=6)),
    "a table, a list": lambda session, n: session.execute(houses.insert(), _rows(n)),
    "a table of links": lambda session, n: session.execute(links.insert().values(house_id=n + 1, tag_id=n + 2)),
    "bulk_save_objects": lambda session, n: session.bulk_save_objects(
        [House(id=n + 4, name="b"), Tag(id=n + 4, name="b")]
    ),
    "bulk_insert_mappings": lambda session, n: session.bulk_insert_mappings(House, _rows(n)),  # type: ignore[arg-type]
    "bulk_update_mappings": lambda session, n: session.bulk_update_mappings(
        House,  # type: ignore[arg-type]
        [{"id": n + 1, "size": 7}, {"id": n + 2, "size": 7}],
    ),
    "a mapper, given": lambda session, n: session.execute(
        sa.update(House).values(size=8), bind_arguments={"mapper": House}
    ),
    "connection()": lambda session, n: session.connection(bind_arguments={"mapper": House}).execute(
        houses.update().values(size=9)
    ),
    "after a flush": _flush_first,
}


def _fill(engine: sa.Engine, times: int = 1) -> None:
    """Write some rows that are recorded, and some that are older than their tracking."""
    numbers = range(0, 10 * times, 10)
    with recording(engine) as sessions, sessions() as session:
        session.add_all(House(id=n + 1, name="one", tags=[Tag(id=n + 1, name="one")]) for n in numbers)
        session.flush()
        session.add_all(Room(id=n + 1, house_id=n + 1) for n in numbers)
        session.flush()
        with sqlaudit.tracking_disabled(session):
            session.add_all(kind(id=n + 2, name="two") for n in numbers for kind in (House, Tag))
            session.flush()
            session.add_all(Room(id=n + 2, house_id=n + 2) for n in numbers)
        session.commit()


def _live(engine: sa.Engine) -> list[Any]:
    with engine.connect() as connection:
        tables = (table for table in Base.metadata.sorted_tables if not table.name.endswith("_history"))
        return [connection.execute(sa.select(table).order_by(*table.primary_key)).all() for table in tables]


def _empty(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


def _outcome(session: Session, write: Callable[[Session, int], Any], n: int) -> Any:
    """Write, commit, and return what became of it."""
    began: list[Any] = []
    sa.event.listen(session, "after_begin", lambda session, transaction, connection: began.append(connection.engine))
    try:
        with session:
            write(session, n)
            session.commit()
            return began, session.in_transaction(), None
    except (orm.exc.StaleDataError, sa.exc.SQLAlchemyError) as error:
        return began, session.in_transaction(), type(error)


@pytest.mark.spread
@pytest.mark.parametrize("kind", SESSIONS)
@pytest.mark.usefixtures("tables")
def test_what_a_session_writes_is_recorded_where_it_writes(
    engine: sa.Engine, other_engine: sa.Engine, kind: str
) -> None:
    found = []
    for is_recorded in (False, True):
        for each in (engine, other_engine):
            _empty(each)
            _fill(each, len(WRITES))
        outcomes = []
        for index, (name, write) in enumerate(WRITES.items()):
            asked: Asked = []
            session = SESSIONS[kind]((engine, other_engine), asked)
            with _recording_strictly(session) if is_recorded else _unheeded():
                outcomes.append((name, _outcome(session, write, 10 * index), asked))
        found.append((outcomes, _live(engine), _live(other_engine)))
    plain, recorded = found
    assert recorded == plain
    for each in (engine, other_engine):
        _check(each)


@contextmanager
def _unheeded() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sqlaudit.SQLAuditWarning)
        yield


@contextmanager
def _recording_strictly(session: Session) -> Iterator[None]:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(strict=True))
    sqlaudit.register_hooks(session)
    try:
        yield
    finally:
        sqlaudit.unregister_hooks(session)
        sqlaudit.clear_config()


def _check(engine: sa.Engine) -> None:
    with Session(engine) as session:
        for source in SOURCES:
            check_history(session, source, all_recorded=False)


@pytest.mark.usefixtures("tables")
def test_a_get_bind_that_takes_no_more_than_the_documented_arguments_is_asked_no_more(engine: sa.Engine) -> None:
    class Routing(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:  # type: ignore[override]
            return engine

    _fill(engine)
    session = Routing()
    with _recording_strictly(session), session:
        WRITES["update()"](session, 0)
        WRITES["insert(), a list"](session, 0)
        sqlaudit.restore(session, sqlaudit.versions_of(session, House, 1)[0])
        session.commit()
        assert session.scalars(sqlaudit.as_of(House, datetime.now(UTC))).all()
    _check(engine)


# --- what listeners write by the flush's connection -------------------------------------------------------------


class Visit(Base):
    """Is not tracked; listeners to its events write what is."""

    __tablename__ = "routed_visits"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(20))


def _given(connection: sa.Connection, target: Any) -> sa.Connection:
    return connection


def _of_session(connection: sa.Connection, target: Any) -> sa.Connection:
    session = orm.object_session(target)
    assert session is not None
    return session.connection()


BY_HAND = "UPDATE routed_houses SET size = size + 1"
WITHIN: dict[str, tuple[Callable[[sa.Connection, int], Any], bool]] = {
    "update": (lambda c, n: c.execute(houses.update().values(size=houses.c.size + 1)), True),
    "insert": (lambda c, n: c.execute(houses.insert().values(id=n + 5, name="x", size=0)), True),
    "insert, a list": (lambda c, n: c.execute(houses.insert(), [{"id": n + 5, "name": "x", "size": 0}]), True),
    "delete": (lambda c, n: c.execute(houses.delete().where(houses.c.id == n + 2)), True),
    "insert a link": (lambda c, n: c.execute(links.insert().values(house_id=n + 2, tag_id=n + 2)), True),
    "insert links": (lambda c, n: c.execute(links.insert(), [{"house_id": n + 2, "tag_id": n + 2}]), True),
    "delete links": (lambda c, n: c.execute(links.delete().where(links.c.tag_id == n + 1)), True),
    "by hand": (lambda c, n: c.execute(sa.text(BY_HAND)), False),
    "by the driver": (lambda c, n: c.exec_driver_sql(BY_HAND), False),
}
EVENTS = ("before_insert", "after_insert", "before_update", "after_update", "before_delete", "after_delete")


@pytest.mark.spread
@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.parametrize("connection_of", [_given, _of_session])
@pytest.mark.parametrize("written", [Visit, Tag])
@pytest.mark.usefixtures("tables")
def test_what_a_listener_of_a_mapper_writes_is_recorded_or_noticed(
    engine: sa.Engine, written: Any, connection_of: Any, within: str
) -> None:
    write, is_recorded = WITHIN[within]
    _fill(engine, len(EVENTS))
    with Session(engine) as session:
        session.add_all(Visit(id=10 * index + 2) for index in range(len(EVENTS)))
        session.commit()
    for index, name in enumerate(EVENTS):
        n, done = 10 * index, []

        def listener(mapper: Any, connection: Any, obj: Any, n: int = n, done: list[int] = done) -> None:
            if not done:
                done.append(n)
                write(connection_of(connection, obj), n)

        sa.event.listen(written, name, listener)
        try:
            with recording(engine) as sessions, sessions() as session, warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always", sqlaudit.SQLAuditWarning)
                if name.endswith("insert"):
                    session.add(written(id=n + 6, name="n"))
                elif name.endswith("update"):
                    session.get_one(written, n + 2).name = "changed"
                else:
                    session.delete(session.get_one(written, n + 2))
                session.commit()
                assert done
                assert len(seen) == int(not is_recorded), [name, *(str(each.message) for each in seen)]
                if not is_recorded:
                    sqlaudit.record_changes(session, House)
                    session.commit()
        finally:
            sa.event.remove(written, name, listener)
    _check(engine)


@pytest.mark.spread
@pytest.mark.parametrize("name", ["before_flush", "after_flush", "after_flush_postexec"])
@pytest.mark.parametrize("comes_first", [False, True])
@pytest.mark.parametrize("within", [each for each in WITHIN if WITHIN[each][1]])
@pytest.mark.usefixtures("tables")
def test_what_a_listener_of_a_session_writes_is_recorded(
    engine: sa.Engine, name: str, comes_first: bool, within: str
) -> None:
    done: list[str] = []

    def listener(session: Session, *_: Any) -> None:
        if not done:
            done.append(name)
            WITHIN[within][0](session.connection(), 0)

    _fill(engine)
    session = Session(engine)
    if comes_first:
        sa.event.listen(session, name, listener)
    with _recording_strictly(session), session:
        if not comes_first:
            sa.event.listen(session, name, listener)
        session.add(House(id=70, name="n", tags=[Tag(id=70, name="n")]))
        session.commit()
    assert done
    _check(engine)


@pytest.mark.spread
@pytest.mark.parametrize("comes_first", [False, True])
@pytest.mark.parametrize("within", WITHIN)
@pytest.mark.usefixtures("tables")
def test_what_a_listener_writes_by_the_connection_that_a_session_begins_with_is_recorded_or_noticed(
    engine: sa.Engine, comes_first: bool, within: str
) -> None:
    write, is_recorded = WITHIN[within]
    done: list[str] = []

    def listener(session: Session, transaction: Any, connection: sa.Connection) -> None:
        if not done:
            done.append(within)
            write(connection, 0)

    _fill(engine)
    session = Session(engine)
    if comes_first:
        sa.event.listen(session, "after_begin", listener)
    sqlaudit.register_hooks(session)
    if not comes_first:
        sa.event.listen(session, "after_begin", listener)
    try:
        with session, warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", sqlaudit.SQLAuditWarning)
            session.get_one(Tag, 1).name = "changed"
            session.commit()
            if not is_recorded:
                sqlaudit.record_changes(session, House)
                session.commit()
        assert len(seen) == int(not is_recorded), [str(each.message) for each in seen]
    finally:
        sqlaudit.unregister_hooks(session)
    assert done
    _check(engine)
