"""Is what the database does to tracked rows recorded, when they follow rows of a table that is not tracked?"""

import gc
import operator
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.orm
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit
from counting import counted
from invariants import check_history, told
from registering import recording
from stock import upsert

Sessions = sessionmaker[Session]
GOES: dict[str, Any] = {"ondelete": "CASCADE", "onupdate": "CASCADE"}


class Base(DeclarativeBase):
    pass


class Tenant(Base):
    __tablename__ = "followed_tenants"

    code: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20), default="")
    kind: Mapped[str] = mapped_column(sa.String(10))
    orders: Mapped[list["Order"]] = relationship(passive_deletes="all")
    rooms: Mapped[list["Room"]] = relationship(cascade="all, delete-orphan")
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "tenant"}


class Firm(Tenant):
    __tablename__ = "followed_firms"

    code: Mapped[str] = mapped_column(sa.ForeignKey(Tenant.code, **GOES), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "firm"}


class Room(Base):
    """Untracked, deleted by the ORM with its tenant."""

    __tablename__ = "followed_rooms"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(sa.ForeignKey(Tenant.code))


@sqlaudit.track_table()
class Order(Base):
    __tablename__ = "followed_orders"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(sa.ForeignKey(Tenant.code, **GOES))


@sqlaudit.track_table()
class Member(Base):
    """Its key has that of its tenant in it."""

    __tablename__ = "followed_members"

    tenant: Mapped[str] = mapped_column(sa.ForeignKey(Tenant.code, **GOES), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@sqlaudit.track_table()
class Chair(Base):
    __tablename__ = "followed_chairs"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    room: Mapped[int | None] = mapped_column(sa.ForeignKey(Room.id, ondelete="SET NULL"))


class Box(Base):
    """Untracked, between an order and what is in it."""

    __tablename__ = "followed_boxes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    order: Mapped[int] = mapped_column(sa.ForeignKey(Order.id, ondelete="CASCADE"))


@sqlaudit.track_table()
class Thing(Base):
    __tablename__ = "followed_things"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    box: Mapped[int] = mapped_column(sa.ForeignKey(Box.id, ondelete="CASCADE"))


TRACKED = (Order, Member, Chair, Thing)
tenants: Any = Tenant.__table__


def happen(sessions: Sessions) -> None:
    with sessions() as session:
        session.add_all([Tenant(code="a", rooms=[Room(id=1)]), Firm(code="b"), Tenant(code="c", rooms=[Room(id=3)])])
        session.flush()
        session.add_all([Order(id=1, tenant="a"), Order(id=2, tenant="b"), Order(id=3, tenant="c")])
        session.add_all([Member(tenant=tenant, number=1) for tenant in "abc"])
        session.flush()
        session.add_all([Box(id=id, order=id) for id in (1, 2, 3)])
        session.add_all([Chair(id=id, room=id) for id in (1, 3)])
        session.flush()
        session.add_all([Thing(id=id, box=id) for id in (1, 2, 3)])
        session.commit()


@pytest.fixture
def sessions(happened: None, sessions: Sessions) -> Sessions:
    """Sessions that record, when that has happened."""
    return sessions


def by_the_orm(session: Session) -> None:
    session.delete(session.get_one(Tenant, "a"))
    session.delete(session.get_one(Tenant, "b"))


def by_a_statement(session: Session) -> None:
    session.query(Room).where(Room.tenant == "a").delete()
    session.execute(sa.delete(Firm).where(Firm.code == "b"))
    session.execute(sa.delete(Tenant).where(Tenant.code < "c"))


def by_a_list(session: Session) -> None:
    connection = session.connection()
    connection.execute(sa.delete(Room).where(Room.tenant == "a"))
    statement = tenants.delete().where(tenants.c.code == sa.bindparam("which"))
    connection.execute(statement, [{"which": "a"}, {"which": "b"}])


def delete_late(session: Session) -> None:
    """Let a listener delete what the flush did not know of."""

    def before_flush(session: Session, *args: Any) -> None:
        by_the_orm(session)

    sa.event.listen(session, "before_flush", before_flush, once=True)
    session.add(Room(id=9, tenant="c"))


@pytest.mark.parametrize("delete", [by_the_orm, by_a_statement, by_a_list, delete_late])
def test_what_goes_with_untracked_rows_is_recorded(sessions: Sessions, delete: Callable[[Session], None]) -> None:
    with sessions() as session:
        with sqlaudit.AuditContextManager(reason="they left"):
            delete(session)
            session.commit()
        assert set(session.scalars(sa.select(Order.id))) == {3}
        for model in TRACKED:
            check_history(session, model)
        assert told(session, Order, "id", "audit_reason") == [
            ("insert", 1, None),
            ("delete", 1, "they left"),
            ("insert", 2, None),
            ("delete", 2, "they left"),
            ("insert", 3, None),
        ]
        assert told(session, Thing, "id")[:2] == [("insert", 1), ("delete", 1)]
        assert told(session, Chair, "id", "room")[:2] == [("insert", 1, 1), ("update", 1, None)]


def move_by_the_orm(session: Session) -> None:
    session.get_one(Tenant, "a").code = "x"


def move_by_a_statement(session: Session) -> None:
    session.execute(sa.update(Tenant).where(Tenant.code == "a").values(code="x"))


def move_by_a_list(session: Session) -> None:
    statement = tenants.update().where(tenants.c.code == sa.bindparam("old")).values(code=sa.bindparam("new"))
    session.connection().execute(statement, [{"old": "a", "new": "x"}, {"old": "nobody", "new": "y"}])


@pytest.mark.parametrize("move", [move_by_the_orm, move_by_a_statement, move_by_a_list])
def test_keys_that_follow_those_of_untracked_rows_are_recorded(
    sessions: Sessions, move: Callable[[Session], None]
) -> None:
    with sessions() as session:
        session.query(Room).where(Room.tenant == "a").delete()
        move(session)
        session.commit()
        for model in TRACKED:
            check_history(session, model)
        assert told(session, Order, "id", "tenant")[:2] == [("insert", 1, "a"), ("update", 1, "x")]
        assert told(session, Member, "tenant") == [
            ("insert", "a"),
            ("delete", "a"),
            ("insert", "b"),
            ("insert", "c"),
            ("insert", "x"),
        ]


def test_rows_that_follow_a_tracked_one_by_way_of_an_untracked_one_are_recorded(sessions: Sessions) -> None:
    with sessions() as session:
        session.delete(session.get_one(Order, 1))
        session.flush()
        session.execute(sa.delete(Order).where(Order.id == 2))
        session.commit()
        for model in TRACKED:
            check_history(session, model)
        assert told(session, Thing, "id") == [
            ("insert", 1),
            ("delete", 1),
            ("insert", 2),
            ("delete", 2),
            ("insert", 3),
        ]


def test_what_else_is_done_to_untracked_rows_asks_no_history(engine: sa.Engine, sessions: Sessions) -> None:
    with sessions() as session, counted(engine) as statements:
        session.get_one(Tenant, "a").name = "Anne"
        session.add(Tenant(code="d"))
        session.commit()
        session.execute(upsert(session, tenants, {"name": "Bob"}, "code").values(code="b", name="Bob", kind="tenant"))
        session.execute(sa.update(Tenant).values(name="Eve"))
        session.commit()
        assert not [text for text in statements if "_history" in text]


@pytest.mark.requires("replacing_inserts")
def test_what_is_replaced_takes_tracked_rows_with_it(sessions: Sessions) -> None:
    with sessions() as session:
        statement = tenants.insert().prefix_with("OR REPLACE")
        session.execute(statement.values(code="b", name="new", kind="tenant"))
        session.commit()
        for model in TRACKED:
            check_history(session, model)
        assert ("delete", 2) in told(session, Order, "id")


def test_a_table_without_a_primary_key_is_noticed(base: Any, sessions: Sessions) -> None:
    codes = sa.Table("codes", base.metadata, sa.Column("code", sa.String(5), unique=True), sa.Column("n", sa.Integer))

    @sqlaudit.track_table()
    class User(base):  # type: ignore[misc]
        __tablename__ = "code_users"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str] = mapped_column(sa.ForeignKey("codes.code", ondelete="CASCADE"))

    with sessions() as session:
        base.metadata.create_all(session.connection())
        session.execute(codes.insert(), [{"code": "a"}, {"code": None}])
        session.add(User(id=1, code="a"))
        session.commit()
        session.execute(codes.update().values(n=1))
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"'codes', which has no primary key"):
            session.execute(codes.delete())
        sqlaudit.record_changes(session, User)
        session.commit()
        assert told(session, User, "id") == [("insert", 1), ("delete", 1)]
        assert not session.execute(sa.select(codes)).all()


def by_objects(session: Session, model: Any, key: Any) -> None:
    session.delete(session.get_one(model, key))


def by_statements(session: Session, model: Any, key: Any) -> None:
    values = key if isinstance(key, tuple) else (key,)
    session.execute(sa.delete(model).where(*map(operator.eq, sa.inspect(model).primary_key, values)))


@pytest.mark.parametrize("delete", [by_objects, by_statements])
def test_a_tree_of_untracked_rows_takes_tracked_ones_with_it(
    base: Any, sessions: Sessions, delete: Callable[[Session, Any, Any], None]
) -> None:
    class Folder(base):  # type: ignore[misc]
        __tablename__ = "folders"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        parent: Mapped[int | None] = mapped_column(sa.ForeignKey("folders.id", ondelete="CASCADE"))

    @sqlaudit.track_table()
    class File(base):  # type: ignore[misc]
        __tablename__ = "files"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        folder: Mapped[int] = mapped_column(sa.ForeignKey(Folder.id, ondelete="CASCADE"))

    with sessions() as session:
        base.metadata.create_all(session.connection())
        for id in range(1, 8):
            session.add(Folder(id=id, parent=id // 2 or None))
            session.flush()
        session.add_all([File(id=id, folder=id) for id in range(1, 8)])
        session.commit()
        delete(session, Folder, 2)
        session.commit()
        check_history(session, File)
        assert set(session.scalars(sa.select(File.id))) == {1, 3, 6, 7}


@pytest.mark.parametrize("delete", [by_objects, by_statements])
def test_composite_keys_of_untracked_rows_are_followed(
    base: Any, sessions: Sessions, delete: Callable[[Session, Any, Any], None]
) -> None:
    class Shelf(base):  # type: ignore[misc]
        __tablename__ = "shelves"
        room: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    @sqlaudit.track_table()
    class Book(base):  # type: ignore[misc]
        __tablename__ = "books"
        __table_args__ = (
            sa.ForeignKeyConstraint(["room", "shelf"], ["shelves.room", "shelves.number"], ondelete="SET NULL"),
        )
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        room: Mapped[str | None] = mapped_column(sa.String(5))
        shelf: Mapped[int | None]

    with sessions() as session:
        base.metadata.create_all(session.connection())
        session.add_all([Shelf(room=room, number=number) for room in "ab" for number in (1, 2)])
        session.flush()
        session.add_all([Book(id=1, room="a", shelf=1), Book(id=2, room="a", shelf=2), Book(id=3, room="b", shelf=1)])
        session.commit()
        delete(session, Shelf, ("a", 1))
        session.commit()
        check_history(session, Book)
        assert told(session, Book, "id", "room", "shelf")[:2] == [("insert", 1, "a", 1), ("update", 1, None, None)]
        assert len(told(session, Book)) == 4


@pytest.mark.parametrize("is_tracked", [False, True])
@pytest.mark.parametrize("delete", [by_objects, by_statements])
def test_foreign_keys_to_tables_of_other_bases_are_followed(
    sessions: Sessions, delete: Callable[[Session, Any, Any], None], is_tracked: bool
) -> None:
    """One of them has no tracked model at all."""
    bases: list[Any] = [sqlalchemy.orm.declarative_base() for _ in range(3)]

    class City(bases[0]):  # type: ignore[misc]
        __tablename__ = "cities"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    class Street(bases[1]):  # type: ignore[misc]
        __tablename__ = "streets"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        city: Mapped[int] = mapped_column(sa.ForeignKey(City.id, ondelete="CASCADE"))

    @sqlaudit.track_table()
    class House(bases[2]):  # type: ignore[misc]
        __tablename__ = "houses"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        street: Mapped[int | None] = mapped_column(sa.ForeignKey(Street.id, ondelete="SET NULL"))

    if is_tracked:
        sqlaudit.track_table()(City)
    with sessions() as session:
        for each in bases:
            each.metadata.create_all(session.connection())
        for made in (City(id=1), Street(id=2, city=1), House(id=3, street=2)):
            session.add(made)
            session.flush()
        session.commit()
        delete(session, City, 1)
        session.commit()
        assert told(session, House, "id", "street") == [("insert", 3, 2), ("update", 3, None)]
        with pytest.warns(sqlaudit.SQLAuditWarning, match="'streets'"):
            session.execute(sa.text("DELETE FROM streets"))
    for each in bases:
        each.registry.dispose()


@pytest.mark.parametrize("delete", [by_objects, by_statements])
def test_a_base_of_another_database_is_not_asked(
    engine: sa.Engine, delete: Callable[[Session, Any, Any], None]
) -> None:
    """Where databases don't look at foreign keys, a table may refer to one that is elsewhere."""
    here, there = (sqlalchemy.orm.declarative_base() for _ in range(2))

    class Person(here):  # type: ignore[misc]
        __tablename__ = "persons"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    @sqlaudit.track_table()
    class Visit(there):  # type: ignore[misc]
        __tablename__ = "visits"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        person: Mapped[int] = mapped_column(sa.ForeignKey(Person.id, ondelete="CASCADE"))

    other = sa.create_engine("sqlite://")
    here.metadata.create_all(engine)
    there.metadata.create_all(other)
    sessions = sessionmaker(binds={here: engine, there: other})
    sqlaudit.register_hooks(sessions)
    with sessions() as session:
        session.add_all([Person(id=1), Visit(id=1, person=1)])
        session.commit()
        delete(session, Person, 1)
        session.commit()
        assert told(session, Visit, "person") == [("insert", 1)]
    with Session(other) as session:
        check_history(session, Visit)
    sqlaudit.unregister_hooks(sessions)
    other.dispose()
    for each in (here, there):
        each.registry.dispose()


def test_a_foreign_key_that_a_subclass_adds_later_is_followed(base: Any, sessions: Sessions) -> None:
    class Shelf(base):  # type: ignore[misc]
        __tablename__ = "shelves"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    @sqlaudit.track_table()
    class Item(base):  # type: ignore[misc]
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    with sessions() as session:
        session.add(Item(id=0))  # a flush has asked who follows whom
        with pytest.raises(sa.exc.DBAPIError):  # there are no tables yet
            session.flush()
        session.rollback()

        class Book(Item):
            shelf: Mapped[int | None] = mapped_column(sa.ForeignKey(Shelf.id, ondelete="SET NULL"))
            __mapper_args__ = {"polymorphic_identity": "book"}

        base.metadata.create_all(session.connection())
        for made in (Shelf(id=1), Book(id=1, shelf=1)):
            session.add(made)
            session.flush()
        session.commit()
        session.execute(sa.delete(Shelf))
        session.commit()
        assert told(session, Book, "shelf") == [("insert", 1), ("update", None)]


@pytest.mark.spread
def test_a_base_may_go_whose_tables_refer_to_those_of_another(engine: sa.Engine, sessions: Sessions) -> None:
    """Tests and plug-ins make such: what they refer to remains, and would keep what it knew of them."""
    lasting, passing = (sqlalchemy.orm.declarative_base() for _ in range(2))
    things = sa.Table("things", lasting.metadata, sa.Column("id", sa.Integer, primary_key=True))

    @sqlaudit.track_table()
    class Part(passing):  # type: ignore[misc]
        __tablename__ = "parts"
        id: Mapped[int] = mapped_column(primary_key=True)
        thing: Mapped[int] = mapped_column(sa.ForeignKey(things.c.id, ondelete="CASCADE"))

    with sessions() as session:
        lasting.metadata.create_all(session.connection())
        passing.metadata.create_all(session.connection())
        session.execute(things.delete())
        session.commit()
    passing.registry.dispose()
    engine.clear_compiled_cache()
    remains = weakref.ref(passing.metadata)
    del passing, Part, session
    gc.collect()
    assert remains() is None


def test_a_rollback_leaves_no_trace_of_what_would_have_gone(sessions: Sessions) -> None:
    with sessions() as session:
        before = [told(session, model) for model in TRACKED]
        by_a_statement(session)
        session.rollback()
        nested = session.begin_nested()
        by_the_orm(session)
        session.flush()
        nested.rollback()
        session.commit()
        assert [told(session, model) for model in TRACKED] == before
        for model in TRACKED:
            check_history(session, model)


def test_a_connection_of_a_registered_engine_tells_of_it(engine: sa.Engine, sessions: Sessions) -> None:
    sqlaudit.register_hooks(sessions, engine=engine)
    try:
        with engine.begin() as connection:
            connection.execute(sa.delete(Room))
            connection.execute(tenants.delete().where(tenants.c.code == "c"))
        with Session(engine) as plain:
            plain.delete(plain.get_one(Tenant, "b"))
            plain.commit()
    finally:
        sqlaudit.unregister_hooks(sessions, engine=engine)
    with sessions() as session:
        for model in TRACKED:
            check_history(session, model)
        assert told(session, Order, "id")[-3:] == [("delete", 2), ("insert", 3), ("delete", 3)]


def test_a_session_without_hooks_is_noticed(engine: sa.Engine, sessions: Sessions) -> None:
    with Session(engine) as session:
        session.delete(session.get_one(Tenant, "b"))
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"not tracked.*session without hooks"):
            session.flush()


@pytest.mark.parametrize("sql", ["DELETE FROM followed_tenants WHERE code = 'b'", "TRUNCATE followed_tenants"])
def test_sql_by_hand_that_takes_tracked_rows_with_it_is_noticed(sessions: Sessions, sql: str) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
    with sessions() as session, pytest.raises(sqlaudit.CaptureError, match="followed_tenants"):
        session.execute(sa.text(sql))


def test_sql_by_hand_that_takes_none_is_not(sessions: Sessions) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(on_uncaptured="raise"))
    with sessions() as session:
        session.execute(sa.text("UPDATE followed_tenants SET name = 'x'"))


def test_a_required_reason_is_required_for_what_follows(sessions: Sessions) -> None:
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(require_reason=True))
    with sessions() as session:
        with pytest.raises(sqlaudit.ContextError, match=r"followed_tenants.*reason"):
            session.execute(sa.delete(Tenant).where(Tenant.code == "b"))
        session.rollback()
        session.delete(session.get_one(Tenant, "b"))
        with pytest.raises(sqlaudit.ContextError, match=r"followed_tenants.*reason"):
            session.flush()
        session.rollback()
        assert session.scalar(sa.select(sa.func.count()).select_from(Order)) == 3
        with sqlaudit.AuditContextManager(reason="it left"):
            session.execute(sa.delete(Tenant).where(Tenant.code == "b"))
        session.commit()


@pytest.mark.spread
@pytest.mark.parametrize("is_tracked", [False, True])
@pytest.mark.parametrize("how", ["object", "statement", "list"])
def test_keys_that_follow_what_is_unique_in_a_row_but_not_its_key_are_recorded(
    base: Any, engine: sa.Engine, how: str, is_tracked: bool
) -> None:
    class Country(base):
        __tablename__ = "countries"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        code: Mapped[str] = mapped_column(sa.String(10), unique=True)

    if is_tracked:
        sqlaudit.track_table()(Country)

    @sqlaudit.track_table()
    class Town(base):
        __tablename__ = "towns"
        country: Mapped[str] = mapped_column(sa.ForeignKey(Country.code, **GOES), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    @sqlaudit.track_table()
    class Street(base):
        __tablename__ = "streets"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        country: Mapped[str] = mapped_column(sa.String(10))
        town: Mapped[int]
        __table_args__ = (sa.ForeignKeyConstraint(["country", "town"], ["towns.country", "towns.number"], **GOES),)

    with recording(engine, base.metadata) as sessions, sessions() as session:
        for each in (Country(id=1, code="a"), Town(country="a", number=1), Street(id=1, country="a", town=1)):
            session.add(each)
            session.flush()
        session.commit()
        if how == "object":
            session.get_one(Country, 1).code = "z"
        elif how == "statement":
            session.execute(sa.update(Country).where(Country.id == 1).values(code="z"))
        else:
            session.execute(sa.update(Country), [{"id": 1, "code": "z"}])
        session.commit()
        assert told(session, Town, "country") == [("insert", "a"), ("delete", "a"), ("insert", "z")]
        assert told(session, Street, "country") == [("insert", "a"), ("update", "z")]
        check_history(session, Town)
        check_history(session, Street)
