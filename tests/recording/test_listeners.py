"""What listeners, defaults and triggers of the user's make of a flush is recorded."""

from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped, Session, load_only, mapped_column, relationship, sessionmaker

from clock import Clock, at
from databases import Database
from invariants import check_history, told
from registering import recording
from sqlaudit import SQLAuditConfig, record_changes, set_config, track_table, tracking_disabled

Sessions = sessionmaker[Session]


@pytest.fixture(autouse=True)
def nothing_is_missed() -> None:
    set_config(SQLAuditConfig(strict=True))


def model_of(base: Any, **columns: Any) -> Any:
    members = {
        "__tablename__": "parcels",
        "id": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        "name": mapped_column(sa.String(20)),
        "stamp": mapped_column(sa.Integer, default=0),
        **columns,
    }
    return track_table(exclude=[name for name in columns if name == "draft"])(type("Parcel", (base,), members))


# --- changes of an object that nobody knew of before the flush ---------------------------------------------------


def set_value(parcel: Any) -> None:
    parcel.stamp = 7


def set_sql(parcel: Any) -> None:
    parcel.stamp = sa.func.abs(-7)


CHANGES = {
    "a change": lambda parcel: setattr(parcel, "name", "b"),
    "an equal value": lambda parcel: setattr(parcel, "name", parcel.name),
    "an excluded column": lambda parcel: setattr(parcel, "draft", "b"),
    "a child": lambda parcel: parcel.leaves.append(type(parcel).leaves.property.mapper.class_(id=2)),
}


@pytest.fixture
def with_leaves(base: Any) -> tuple[Any, Any]:
    parcel = model_of(base, draft=mapped_column(sa.String(20), nullable=True), leaves=relationship("Leaf"))

    @track_table()
    class Leaf(base):
        __tablename__ = "leaves"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        parcel_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parcels.id"))

    return parcel, Leaf


@pytest.mark.spread
@pytest.mark.parametrize("eager", [False, True], ids=["", "eager"])
@pytest.mark.parametrize("late", [set_value, set_sql])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_listener_sets_before_an_update_is_recorded(
    base: Any, engine: sa.Engine, sessions: Sessions, with_leaves: Any, change: str, late: Any, eager: bool
) -> None:
    parcel, _ = with_leaves
    event.listen(parcel, "before_update", lambda mapper, connection, target: late(target))
    parcel.__mapper__.eager_defaults = eager
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(parcel(id=1, name="a"))
    with sessions() as session:
        CHANGES[change](session.get_one(parcel, 1))
        session.commit()
        assert told(session, parcel, "stamp") == [("insert", 0), ("update", 7)]
        check_history(session, parcel)


def test_the_baseline_of_a_row_that_a_listener_changes_has_the_old_values(
    base: Any, engine: sa.Engine, sessions: Sessions
) -> None:
    parcel = model_of(base)
    for late in (set_value, lambda target: setattr(target, "name", sa.func.upper("new"))):
        event.listen(parcel, "before_update", lambda mapper, connection, target, late=late: late(target))
    base.metadata.create_all(engine)
    with sessions() as session, tracking_disabled(session):
        session.add(parcel(id=1, name="old"))
        session.commit()
    with sessions() as session:
        session.get_one(parcel, 1).name = "new"
        session.commit()
        assert told(session, parcel, "name", "stamp") == [("baseline", "old", 0), ("update", "NEW", 7)]


def test_rows_that_follow_what_a_listener_changes_are_recorded(
    base: Any, engine: sa.Engine, sessions: Sessions
) -> None:
    parcel = model_of(base, code=mapped_column(sa.String(5), unique=True))

    @track_table()
    class Label(base):
        __tablename__ = "labels"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        code: Mapped[str | None] = mapped_column(sa.String(5), sa.ForeignKey("parcels.code", onupdate="CASCADE"))

    event.listen(parcel, "before_update", lambda mapper, connection, target: setattr(target, "code", "new"))
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(parcel(id=1, name="a", code="old"))
        session.flush()
        session.add(Label(id=1, code="old"))
    with sessions() as session:
        session.get_one(parcel, 1).name = "b"
        session.commit()
        assert told(session, Label, "code") == [("insert", "old"), ("update", "new")]
        check_history(session, Label)


def test_what_a_trigger_makes_of_an_excluded_column_is_recorded(
    base: Any, database: Database, engine: sa.Engine, sessions: Sessions
) -> None:
    parcel = model_of(base, draft=mapped_column(sa.String(20), nullable=True))
    base.metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in SET_STAMP[database.name]:
            connection.exec_driver_sql(statement)
    with sessions.begin() as session:
        session.add(parcel(id=1, name="a"))
    with sessions() as session:
        session.get_one(parcel, 1).draft = "b"
        session.commit()
        assert told(session, parcel, "stamp") == [("insert", 0), ("update", 1)]


SET_STAMP = {
    "sqlite": [
        "CREATE TRIGGER t AFTER UPDATE OF draft ON parcels BEGIN"
        " UPDATE parcels SET stamp = stamp + 1 WHERE id = NEW.id; END"
    ],
    "postgresql": [
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.stamp := OLD.stamp + 1; RETURN NEW; END $$",
        "CREATE TRIGGER t BEFORE UPDATE ON parcels FOR EACH ROW EXECUTE FUNCTION f()",
    ],
    "mariadb": ["CREATE TRIGGER t BEFORE UPDATE ON parcels FOR EACH ROW SET NEW.stamp = OLD.stamp + 1"],
}


# --- what they write by the connection of the flush --------------------------------------------------------------


@pytest.fixture
def counter(base: Any) -> Any:
    @track_table()
    class Counter(base):
        __tablename__ = "counters"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        n: Mapped[int]

    return Counter


def orphaned(parent: Any, child: type[Any]) -> None:
    parent.owned.pop()


def left(parent: Any, child: type[Any]) -> None:
    parent.loose.pop()


def left_by_deletion(parent: Any, child: type[Any]) -> None:
    session = sa.inspect(parent).session
    session.delete(parent)


def added_late(parent: Any, child: type[Any]) -> None:
    def add(session: Session, context: Any, objects: Any) -> None:
        session.add(child(id=9))

    event.listen(sa.inspect(parent).session, "before_flush", add, once=True)
    parent.name = "b"


@pytest.mark.spread
@pytest.mark.parametrize("happens", [orphaned, left, left_by_deletion, added_late])
def test_what_a_listener_writes_for_an_object_that_joins_the_flush_late_is_recorded(
    base: Any, engine: sa.Engine, sessions: Sessions, counter: Any, happens: Any
) -> None:
    class Child(base):
        __tablename__ = "children"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        owner_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id"))
        friend_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id"))

    class Parent(base):
        __tablename__ = "parents"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str] = mapped_column(sa.String(20))
        owned: Mapped[list[Child]] = relationship(foreign_keys=Child.owner_id, cascade="all, delete-orphan")
        loose: Mapped[list[Child]] = relationship(foreign_keys=Child.friend_id)

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(counter(id=1, n=0))
        session.add(Parent(id=1, name="a", owned=[Child(id=1)], loose=[Child(id=2)]))

    def count(mapper: Any, connection: sa.Connection, target: Any) -> None:
        connection.execute(sa.update(counter).values(n=counter.n + 1))

    for name in ("after_insert", "after_update", "after_delete"):
        event.listen(Child, name, count)
    with sessions() as session:
        happens(session.get_one(Parent, 1), Child)
        session.commit()
        assert session.get_one(counter, 1).n > 0
        check_history(session, counter)


@pytest.mark.spread
@pytest.mark.parametrize("when", ["default", "onupdate"])
def test_what_a_default_writes_by_the_connection_is_recorded(
    base: Any, engine: sa.Engine, sessions: Sessions, counter: Any, when: str
) -> None:
    def drawn(context: Any) -> Any:
        context.connection.execute(sa.update(counter).values(n=counter.n + 1))
        return context.connection.scalar(sa.select(counter.n))

    parcel = model_of(base, number=mapped_column(sa.Integer, nullable=True, **{when: drawn}))
    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(counter(id=1, n=0))
    with sessions.begin() as session:
        session.add(parcel(id=1, name="a"))
    with sessions.begin() as session:
        session.get_one(parcel, 1).name = "b"
    with sessions() as session:
        assert session.get_one(counter, 1).n == 1
        for each in (counter, parcel):
            check_history(session, each)


CHILD_WRITES: dict[str, Any] = {
    "insert": lambda child: sa.insert(child).values(id=9, owner_id=1),
    "insert of several": lambda child: sa.insert(child).values([{"id": n, "owner_id": 1} for n in (8, 9)]),
    "update": lambda child: sa.update(child).where(child.id == 2).values(owner_id=1),
    "update of all": lambda child: sa.update(child).values(owner_id=1),
    "update of a key": lambda child: sa.update(child).where(child.id == 2).values(id=7, owner_id=1),
}


@pytest.mark.spread
@pytest.mark.parametrize("by_session", [False, True], ids=["connection", "session"])
@pytest.mark.parametrize("end", ["deleted", "moved"])
@pytest.mark.parametrize("way", CHILD_WRITES)
def test_what_a_foreign_key_action_does_to_rows_that_a_listener_has_written_is_recorded(
    base: Any, engine: sa.Engine, sessions: Sessions, way: str, end: str, by_session: bool
) -> None:
    @track_table()
    class Child(base):
        __tablename__ = "children"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        owner_id: Mapped[int | None] = mapped_column(sa.ForeignKey("owners.id", ondelete="CASCADE", onupdate="CASCADE"))

    @track_table()
    class Owner(base):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([Owner(id=1), Owner(id=2)])
        session.flush()
        session.add_all([Child(id=1, owner_id=1), Child(id=2, owner_id=2)])

    def write(mapper: Any, connection: sa.Connection, target: Any) -> None:
        (sa.inspect(target).session if by_session else connection).execute(CHILD_WRITES[way](Child))

    with sessions() as session:
        owner = session.get_one(Owner, 1)
        # SQLAlchemy deletes and updates an object after the listeners of its before_delete and before_update.
        event.listen(Owner, "before_delete" if end == "deleted" else "before_update", write)
        if end == "deleted":
            session.delete(owner)
        else:
            owner.id = 3
        session.commit()
        for each in (Owner, Child):
            check_history(session, each)


MOVED_WRITES: dict[str, Any] = {
    "delete": lambda part: sa.delete(part).where(part.owner_id == 3, part.number == 1),
    "delete of all": lambda part: sa.delete(part),
    "update": lambda part: sa.update(part).where(part.owner_id == 3).values(size=5),
    "update of a key": lambda part: sa.update(part).where(part.number == 2).values(number=7),
    "insert of the old key": lambda part: sa.insert(part).values(owner_id=2, number=9),
}


@pytest.mark.spread
@pytest.mark.parametrize("rows", ["new", "recorded", "older"])
@pytest.mark.parametrize("when", ["before_update", "after_update"])
@pytest.mark.parametrize("way", MOVED_WRITES)
def test_what_a_listener_writes_to_rows_whose_key_moves_with_another_is_recorded(
    base: Any, engine: sa.Engine, sessions: Sessions, way: str, when: str, rows: str
) -> None:
    @track_table()
    class Owner(base):
        __tablename__ = "owners"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    @track_table()
    class Part(base):
        __tablename__ = "parts"

        owner_id: Mapped[int] = mapped_column(sa.ForeignKey("owners.id", onupdate="CASCADE"), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        size: Mapped[int | None]

    base.metadata.create_all(engine)
    with sessions() as session:
        with tracking_disabled(session) if rows == "older" else nullcontext():
            session.add_all([Owner(id=1), Owner(id=2)])
            session.flush()
            session.execute(sa.insert(Part), [{"owner_id": 1, "number": number} for number in (1, 2)])
        if rows != "new":
            session.commit()
        event.listen(Owner, when, lambda _, connection, target: connection.execute(MOVED_WRITES[way](Part)))
        session.get_one(Owner, 1).id = 3
        session.commit()
        for each in (Owner, Part):
            check_history(session, each, all_recorded=rows != "older")
        first = {"new": [], "recorded": ["insert", "delete"], "older": ["baseline", "delete"]}[rows]
        old = [
            (operation, number) for operation, owner, number in told(session, Part, "owner_id", "number") if owner == 1
        ]
        assert old == [(operation, number) for number in (1, 2) for operation in first]


def test_the_first_flush_of_an_engine_is_recorded_once(base: Any, engine: sa.Engine, sessions: Sessions) -> None:
    clock = Clock()
    set_config(SQLAuditConfig(strict=True, clock=clock))
    parcel = model_of(base)
    event.listen(parcel, "before_insert", lambda *_: None)
    base.metadata.create_all(engine)
    engine.clear_compiled_cache()  # as empty as that of the unit of work
    with sessions.begin() as session:
        session.add(parcel(id=1, name="a"))
    assert clock.now == at(0)
    with sessions() as session:
        check_history(session, parcel)


# --- sessions that share a connection -----------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("is_over", [False, True])
def test_what_is_written_by_the_connection_of_a_session_is_recorded_whoever_shares_it(
    engine: sa.Engine, sessions: Sessions, base: Any, counter: Any, is_over: bool
) -> None:
    base.metadata.create_all(engine)
    with engine.connect() as connection:
        mine = sessions(bind=connection)
        given = mine.connection()
        other = sessions(bind=connection)
        other.add(counter(id=1, n=0))
        other.flush()
        if is_over:
            other.close()
            del other
        given.execute(sa.insert(counter).values(id=2, n=0))
        mine.commit()
        check_history(mine, counter)
        mine.close()


@pytest.mark.spread
@pytest.mark.parametrize("automatic", [{}, {"onupdate": 5}], ids=["", "onupdate"])
def test_a_parent_that_only_gets_a_child_is_not_asked_about(
    base: Any, engine: sa.Engine, sessions: Sessions, automatic: Any
) -> None:
    parcel = model_of(base, number=mapped_column(sa.Integer, nullable=True, **automatic), leaves=relationship("Leaf"))

    @track_table()
    class Leaf(base):
        __tablename__ = "leaves"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        parcel_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parcels.id"))

    base.metadata.create_all(engine)
    with sessions() as session, tracking_disabled(session):
        session.add(parcel(id=1, name="a"))
        session.commit()
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda c, cu, statement, *rest: statements.append(statement))
    with sessions() as session:
        parent = session.get_one(parcel, 1, options=[load_only(parcel.name)])
        parent.leaves.append(Leaf(id=1))
        session.commit()
        assert not [each for each in statements if "parcels_history" in each]
        record_changes(session, parcel)
        session.commit()
        check_history(session, parcel)


@pytest.mark.spread
@pytest.mark.parametrize("rows", ["its own", "all"])
@pytest.mark.parametrize("listens_first", [False, True])
def test_a_new_row_that_a_listener_changes_by_the_connection_is_an_insert(
    base: Any, engine: sa.Engine, rows: str, listens_first: bool
) -> None:
    class Parcel(base):
        __tablename__ = "parcels"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parcel"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        slug: Mapped[str | None] = mapped_column(sa.String(20))

    class Letter(Parcel):
        __tablename__ = "letters"
        __mapper_args__ = {"polymorphic_identity": "letter"}

        id: Mapped[int] = mapped_column(sa.ForeignKey(Parcel.id), primary_key=True)

    table = Parcel.__table__

    def name(mapper: Any, connection: sa.Connection, target: Any) -> None:
        update = sa.update(table).values(slug="s")
        connection.execute(update.where(table.c.id == target.id) if rows == "its own" else update)

    if listens_first:
        event.listen(Parcel, "after_insert", name, propagate=True)
    track_table()(Parcel)
    if not listens_first:
        event.listen(Parcel, "after_insert", name, propagate=True)
    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Parcel(), Parcel(), Letter()])
        with sessions() as session:
            check_history(session, Parcel)
            assert told(session, Parcel, "slug") == [("insert", "s")] * 3
        with sessions.begin() as session:
            session.add(Letter(id=9, slug="t"))
        with sessions() as session:
            check_history(session, Parcel)
            assert told(session, Parcel, "slug") == [("insert", "s")] * 4


@pytest.mark.spread
@pytest.mark.parametrize("name", ["before_update", "after_update"])
@pytest.mark.parametrize("column", ["slug", "note"])
@pytest.mark.parametrize("rows", ["its own", "all"])
def test_an_older_row_that_a_listener_changes_by_the_connection_has_its_old_values_in_the_baseline(
    base: Any, engine: sa.Engine, name: str, column: str, rows: str
) -> None:
    @track_table()
    class Parcel(base):
        __tablename__ = "parcels"

        id: Mapped[int] = mapped_column(primary_key=True)
        slug: Mapped[str] = mapped_column(sa.String(20))
        note: Mapped[str] = mapped_column(sa.String(20))

    table = Parcel.__table__

    def change(mapper: Any, connection: sa.Connection, target: Any) -> None:
        update = sa.update(table).values({column: "by the listener"})
        connection.execute(update.where(table.c.id == target.id) if rows == "its own" else update)

    base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": key, "slug": "old", "note": "old"} for key in (1, 2)])
    event.listen(Parcel, name, change)
    with recording(engine) as sessions:
        with sessions.begin() as session:
            for parcel in session.scalars(sa.select(Parcel)):
                parcel.slug = "new"
        with sessions() as session:
            check_history(session, Parcel)
            versions = told(session, Parcel, "slug", "note")
            assert [each for each in versions if each[0] == "baseline"] == [("baseline", "old", "old")] * 2
            assert [operation for operation, *_ in versions] == ["baseline", "update"] * 2
