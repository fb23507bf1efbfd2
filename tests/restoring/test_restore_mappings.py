"""What restore and undo do with the many ways to map relationships and columns."""

import enum
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    MappedAsDataclass,
    Session,
    WriteOnlyMapped,
    attribute_keyed_dict,
    mapped_column,
    relationship,
    sessionmaker,
    with_loader_criteria,
)

import sqlaudit
from clock import Clock, at
from invariants import check_history
from registering import recording
from sqlaudit import QueryError, SQLAuditConfig, changesets, restore, undo

pytestmark = pytest.mark.usefixtures("clock")


class Base(DeclarativeBase):
    pass


def links(name: str, left: str, right: str, *columns: sa.Column[Any]) -> sa.Table:
    return sa.Table(
        f"rm_{name}",
        Base.metadata,
        sa.Column("left_id", sa.ForeignKey(f"rm_{left}.id"), primary_key=True),
        sa.Column("right_id", sa.ForeignKey(f"rm_{right}.id"), primary_key=True),
        *columns,
    )


friends = links("friends", "people", "people")
badges = links("badges", "people", "items")
queried = links("queried", "people", "items")


@sqlaudit.track_table()
class Person(Base):
    __tablename__ = "rm_people"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("rm_people.id", ondelete="SET NULL"))
    boss: Mapped["Person | None"] = relationship(remote_side=[id], back_populates="staff")
    staff: Mapped[list["Person"]] = relationship(back_populates="boss")
    friends: Mapped[list["Person"]] = relationship(
        secondary=friends,
        primaryjoin=lambda: Person.id == friends.c.left_id,
        secondaryjoin=lambda: Person.id == friends.c.right_id,
    )
    passport: Mapped["Passport | None"] = relationship(back_populates="person", cascade="all, delete-orphan")
    items: Mapped[dict[str, "Item"]] = relationship(
        collection_class=attribute_keyed_dict("label"), cascade="all, delete-orphan", foreign_keys="Item.owner_id"
    )
    badges: Mapped[set["Item"]] = relationship(secondary=badges, collection_class=set)
    lent: WriteOnlyMapped["Item"] = relationship(foreign_keys="Item.lender_id", passive_deletes=True)
    queried: DynamicMapped["Item"] = relationship(secondary=queried)
    big: Mapped[list["Item"]] = relationship(
        primaryjoin=lambda: sa.and_(Person.id == sa.orm.foreign(Item.owner_id), Item.label > "b"), viewonly=True
    )


@sqlaudit.track_table()
class Passport(Base):
    __tablename__ = "rm_passports"

    person_id: Mapped[int] = mapped_column(sa.ForeignKey(Person.id), primary_key=True)
    number: Mapped[str | None] = mapped_column(sa.String(50))
    person: Mapped[Person] = relationship(back_populates="passport")


@sqlaudit.track_table()
class Item(Base):
    __tablename__ = "rm_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(sa.String(10))
    owner_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Person.id))
    lender_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Person.id, ondelete="SET NULL"))


SOURCES = (Person, Passport, Item, friends, badges, queried)


def state_of(sessions: Any) -> dict[str, list[Any]]:
    """Return all that the database holds."""
    with sessions() as session:
        for source in SOURCES:
            check_history(session, source)
        return {
            table.name: sorted((tuple(row) for row in session.execute(sa.select(table))), key=repr)
            for table in (getattr(source, "__table__", source) for source in SOURCES)
        }


def last_changeset(sessions: Any) -> UUID:
    with sessions() as session:
        return changesets(session, newest_first=True, limit=1)[0].changeset_id


@pytest.fixture
def people(sessions):
    """Second 0: Ada, who has all kinds of relationships."""
    with sessions.begin() as session:
        one, two, three, four = (Item(id=number, label=f"i{number}") for number in range(1, 5))
        ada = Person(id=1, name="Ada", boss=Person(id=2, name="Bob"))
        session.add_all([ada, one, two, three, four, Person(id=3, name="Carl", boss=ada)])
        session.flush()
        ada.friends = [ada.boss, ada.staff[0]]
        ada.passport = Passport(number="P1")
        ada.items = {item.label: item for item in (one, two)}
        ada.badges = {one, three}
        ada.lent.add(four)
        ada.queried.append(four)
    return state_of(sessions)


ALL = ["staff", "boss", "friends", "passport", "items", "badges", "lent", "queried"]


def change_all(sessions: Any) -> None:
    with sessions.begin() as session:
        ada, carl = session.get_one(Person, 1), session.get_one(Person, 3)
        ada.name, ada.boss, carl.boss = "Eve", None, None
        ada.friends = [carl, Person(id=9)]
        ada.passport.number = "P2"
        four = session.get_one(Item, 4)
        ada.badges.add(four)
        ada.badges.remove(session.get_one(Item, 1))
        ada.queried.remove(four)
        ada.queried.append(session.get_one(Item, 3))
        ada.lent.remove(four)
        ada.lent.add(session.get_one(Item, 3))
        del ada.items["i1"]
        ada.items["new"] = Item(id=9, label="new")


@pytest.mark.spread
def test_relationships_of_all_kinds_are_restored(sessions, people):
    change_all(sessions)
    with sessions.begin() as session:
        ada = session.get_one(Person, 1)
        assert (ada.passport, len(ada.items), len(ada.badges), len(ada.friends)) == (ada.passport, 2, 2, 2)
        restore(session, Person, 1, at=at(0), include=ALL)
        assert sorted(ada.items) == ["i1", "i2"]
        assert {item.id for item in ada.badges} == {1, 3}
        assert ada.passport.number == "P1"
    with sessions.begin() as session:
        session.delete(session.get_one(Person, 9))
    assert state_of(sessions) == people


@pytest.mark.spread
def test_relationships_of_all_kinds_are_undone(sessions, people):
    change_all(sessions)
    after = state_of(sessions)
    for expected in (people, after, people):
        with sessions.begin() as session:
            undo(session, last_changeset(sessions))
        assert state_of(sessions) == expected


@pytest.mark.spread
def test_a_deleted_object_comes_back_with_all_its_relationships(sessions, people):
    with sessions.begin() as session:
        ada = session.get_one(Person, 1)
        ada.friends.clear()
        ada.queried.remove(session.get_one(Item, 4))
        session.flush()
        session.delete(ada)
    gone = state_of(sessions)
    assert gone != people
    with sessions.begin() as session:
        restore(session, Person, 1, at=at(0), include=ALL)
    assert state_of(sessions) == people
    for expected in (gone, people):
        with sessions.begin() as session:
            undo(session, last_changeset(sessions))
        assert state_of(sessions) == expected


@pytest.mark.spread
def test_an_orphan_that_was_brought_back_is_one_again(sessions, people):
    with sessions.begin() as session:
        ada = session.get_one(Person, 1)
        del ada.items["i2"]
    with sessions.begin() as session:
        restore(session, Item, 2, at=at(0))
        ada = session.get_one(Person, 1)
        assert sorted(ada.items) == ["i1", "i2"]
        del ada.items["i2"]
        session.flush()
        assert session.get(Item, 2) is None


@pytest.mark.spread
def test_an_object_that_the_session_has_just_deleted_comes_back(sessions, people):
    with sessions.begin() as session:
        passport = session.get_one(Passport, 1)
        session.delete(passport)
        restore(session, Passport, 1, at=at(0))
        assert session.get_one(Passport, 1).number == "P1"
    assert state_of(sessions) == people


@pytest.mark.spread
@pytest.mark.parametrize("flushed", [True, False])
def test_without_autoflush_all_the_same(sessions, people, flushed):
    change_all(sessions)
    with sessions(autoflush=False) as session:
        ada = session.get_one(Person, 1)
        ada.name = "Fay"
        restore(session, Person, 1, at=at(0), include=ALL)
        if flushed:
            session.flush()
        session.commit()
        session.delete(session.get_one(Person, 9))
        session.commit()
    assert state_of(sessions) == people


@pytest.mark.spread
@pytest.mark.parametrize("path", ["big", "name", "items.owner"])
def test_what_cannot_be_written_cannot_be_included(sessions, people, path):
    with sessions() as session, pytest.raises(QueryError, match=r"badges|none"):
        restore(session, Person, 1, at=at(0), include=[path])


# --- tables -----------------------------------------------------------------------------------------------------


def models(schema: str | None) -> tuple[Any, Any, Any]:
    """Return a parent, its child and the association table between them, whose links have a key of their own."""

    class Models(DeclarativeBase):
        metadata = sa.MetaData(schema=schema)

    prefix = "" if schema is None else f"{schema}."

    @sqlaudit.track_table()
    class Parent(Models):
        __tablename__ = "rm_parents"

        id: Mapped[int] = mapped_column(primary_key=True)
        children: Mapped[list["Child"]] = relationship(  # defined below
            primaryjoin="and_(Parent.id == Child.parent_id, Parent.kind == Child.parent_kind)",
            foreign_keys="[Child.parent_id, Child.parent_kind]",
        )
        kind: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
        linked: Mapped[list["Child"]] = relationship(secondary=lambda: linking)  # defined below

    @sqlaudit.track_table()
    class Child(Models):
        __tablename__ = "rm_children"
        __table_args__ = (sa.ForeignKeyConstraint(["parent_id", "parent_kind"], [Parent.id, Parent.kind]),)

        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int | None]
        parent_kind: Mapped[str | None] = mapped_column(sa.String(5))

    linking = sa.Table(
        "rm_linking",
        Models.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("parent_id", sa.Integer, nullable=False),
        sa.Column("parent_kind", sa.String(5), nullable=False),
        sa.Column("child_id", sa.ForeignKey(f"{prefix}rm_children.id"), nullable=False),
        sa.Column("note", sa.String(10), server_default="new"),
        sa.ForeignKeyConstraint(
            ["parent_id", "parent_kind"], [f"{prefix}rm_parents.id", f"{prefix}rm_parents.kind"], ondelete="CASCADE"
        ),
    )
    return Parent, Child, linking


@pytest.mark.spread
@pytest.mark.parametrize("where", ["default", "schema", "binds", "connection"])
def test_composite_keys_schemas_and_binds_are_no_matter(database, engine, where):
    parent, child, linking = models(database.other_schema if where == "schema" else None)
    sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
    with recording(engine, parent.metadata) as sessions, engine.connect() as connection:
        if where == "binds":
            sessions.configure(bind=None, binds={parent: engine, child: engine})
        elif where == "connection":
            connection.commit()
            sessions.configure(bind=connection)
        with sessions.begin() as session:
            children = [child(id=number) for number in range(1, 4)]
            session.add(parent(id=1, kind="a", children=children[:2], linked=children[1:]))
        tables = [parent.__table__, child.__table__, linking]
        columns = [[column for column in table.c if column.name != "id"] for table in tables]

        def rows() -> list[Any]:
            with Session(engine) as session:
                for source in (parent, child, linking):
                    check_history(session, source)
                return [session.execute(sa.select(*some).order_by(*some)).all() for some in columns]

        before = rows()
        with sessions.begin() as session:
            first = changesets(session)[0].changeset_id
            undo(session, first)
        assert rows() == [[], [], []]
        with sessions.begin() as session:
            restore(session, parent, (1, "a"), at=first, include=["children", "linked"])
        assert rows() == before


# --- columns ----------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Data(MappedAsDataclass, DeclarativeBase):
    pass


@sqlaudit.track_table(exclude=["secret", "token"])
class Thing(Data):
    __tablename__ = "rm_things"

    code: Mapped[UUID] = mapped_column(primary_key=True)
    place: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    colour: Mapped[Colour | None] = mapped_column(sa.Enum(Colour))
    data: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON()))
    when: Mapped[datetime | None] = mapped_column("when_it_was", sa.DateTime())
    blob: Mapped[bytes | None] = mapped_column(sa.LargeBinary, default=None, deferred=True)
    flag: Mapped[bool] = mapped_column(default=False)
    secret: Mapped[str] = mapped_column(sa.String(50), default="made", init=False)
    token: Mapped[str | None] = mapped_column(sa.String(50), default=None)


@pytest.fixture
def things(engine: sa.Engine) -> Iterator[sessionmaker[Session]]:
    sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
    with recording(engine, Data.metadata) as sessions:
        yield sessions


CODE = UUID(int=7)


def fields(thing: Thing) -> tuple[Any, ...]:
    return thing.price, thing.colour, thing.data, thing.when, thing.blob, thing.flag


@pytest.mark.parametrize("deleted", [False, True])
def test_columns_of_many_types_are_restored(things, deleted):
    old = (Decimal("1.50"), Colour.RED, {"a": [1]}, datetime(2020, 1, 2, 3, 4, 5), b"\\x00\\xff", True)  # noqa: DTZ001
    with things.begin() as session:
        thing = Thing(
            code=CODE, place="x", price=old[0], colour=old[1], data=old[2], when=old[3], blob=old[4], flag=True
        )
        thing.token = "kept"
        session.add(thing)
    with things.begin() as session:
        thing = session.get_one(Thing, (CODE, "x"))
        if deleted:
            session.delete(thing)
        else:
            thing.price, thing.colour, thing.data["a"], thing.when, thing.blob, thing.flag = [None] * 5 + [False]
    with things.begin() as session:
        report = restore(session, Thing, (str(CODE), "x"), at=at(0), values={"token": "new"})
        assert report.items[0].key == (CODE, "x")
        assert str(report.items[0].fields["price"][1]) == "1.50"
        assert isinstance(session.get_one(Thing, (CODE, "x")).data, MutableDict)
    with things() as session:
        thing = session.get_one(Thing, (CODE, "x"))
        assert fields(thing) == old
        assert (thing.secret, thing.token) == ("made", "new" if deleted else "kept")
        check_history(session, Thing)


# --- what the session does not show -----------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("loaded", [False, True])
def test_rows_that_a_listener_hides_are_restored(engine, base, loaded):
    """Applications mark rows as deleted, and let no query find them."""
    marked = sa.Table(
        f"links_{loaded}",
        base.metadata,
        sa.Column("folder_id", sa.ForeignKey(f"folders_{loaded}.id"), primary_key=True),
        sa.Column("file_id", sa.ForeignKey(f"files_{loaded}.id"), primary_key=True),
    )

    class Marked:
        id: Mapped[int] = mapped_column(primary_key=True)
        is_deleted: Mapped[bool] = mapped_column(default=False)

    @sqlaudit.track_table()
    class File(Marked, base):
        __tablename__ = f"files_{loaded}"

    @sqlaudit.track_table()
    class Folder(Marked, base):
        __tablename__ = f"folders_{loaded}"

        name: Mapped[str | None] = mapped_column(sa.String(50))
        files: Mapped[list[File]] = relationship(secondary=marked)

    def state() -> Any:
        with sessions() as session:
            for source in (Folder, File, marked):
                check_history(session, source)
            tables = (Folder.__table__, File.__table__, marked)
            return [sorted(tuple(row) for row in session.execute(sa.select(table))) for table in tables]

    with recording(engine, base.metadata) as sessions:

        @sa.event.listens_for(sessions, "do_orm_execute")
        def hide(execution: Any) -> None:
            if execution.is_select and not (execution.is_column_load or execution.execution_options.get("skip")):
                criterion = with_loader_criteria(Marked, lambda cls: cls.is_deleted.is_(False), include_aliases=True)
                execution.statement = execution.statement.options(criterion)

        with sessions.begin() as session:
            session.add(Folder(id=1, name="a", files=[File(id=1), File(id=2)]))
        before = state()
        with sessions.begin() as session:
            folder = session.get_one(Folder, 1)
            folder.name = "b"
            del folder.files[0]
        with sessions() as session:
            unlinking = changesets(session, newest_first=True, limit=1)[0].changeset_id
        with sessions.begin() as session:
            for each in (session.get_one(Folder, 1), session.get_one(File, 1), session.get_one(File, 2)):
                each.is_deleted = True
        with sessions.begin() as session:
            every = {"skip": True} if loaded else {}
            held = [session.scalars(sa.select(each), execution_options=every).all() for each in (Folder, File)]
            assert bool(held[0]) is loaded
            undo(session, unlinking, force=True)
            assert sorted(tuple(row) for row in session.execute(sa.select(marked))) == [(1, 1), (1, 2)]
            restore(session, Folder, 1, at=1, include=["files"])
        assert state() == before
        with sessions.begin() as session:
            session.get_one(Folder, 1).is_deleted = True
        with sessions.begin() as session:
            session.add(Folder(id=3, is_deleted=True))
        with sessions.begin() as session:
            undo(session, changesets(session, newest_first=True, limit=1)[0].changeset_id)
        with sessions() as session:
            everyone = session.scalars(sa.select(Folder.id), execution_options={"skip": True})
            assert everyone.all() == [1]


def partly_mapped(base: Any, how: dict[str, Any]) -> Any:
    """A class that knows two columns of its table."""
    table = sa.Table(
        "leads",
        base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(50)),
        sa.Column("legacy", sa.String(50)),
        sa.Column("code", sa.String(10), server_default="new", nullable=False),
        sa.Column("data", sa.JSON),
        sa.Column("touched", sa.Integer, default=0, onupdate=99),
        sa.Column("length", sa.Integer, sa.Computed("length(legacy)", persisted=True)),
    )
    return type("Lead", (base,), {"__table__": table, "__mapper_args__": how})


def of_a_sibling(base: Any) -> Any:
    """A class that shares its table with one that has more columns."""

    class Contact(base):
        __tablename__ = "leads"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "contact"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(10))
        name: Mapped[str | None] = mapped_column(sa.String(50))

    class Lead(Contact):
        __mapper_args__ = {"polymorphic_identity": "lead"}

        legacy: Mapped[str | None] = mapped_column(sa.String(50))
        code: Mapped[str | None] = mapped_column(sa.String(10), server_default="new")
        data: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
        touched: Mapped[int | None] = mapped_column(default=0, onupdate=99)
        length: Mapped[int | None] = mapped_column(sa.Computed("length(legacy)", persisted=True))

    return Contact


PARTLY_MAPPED = {
    "included": lambda base: partly_mapped(base, {"include_properties": ["id", "name"]}),
    "excluded": lambda base: partly_mapped(
        base, {"exclude_properties": ["legacy", "code", "data", "touched", "length"]}
    ),
    "sibling": of_a_sibling,
}


@pytest.mark.spread
@pytest.mark.parametrize("case", PARTLY_MAPPED)
def test_columns_to_which_a_class_maps_no_attribute_come_back(engine, base, case):
    model = sqlaudit.track_table()(PARTLY_MAPPED[case](base))
    table = model.__table__

    def held() -> list[Any]:
        with engine.connect() as connection:
            columns = [sa.type_coerce(table.c.data, sa.String) if c is table.c.data else c for c in table.c]
            return list(connection.execute(sa.select(*columns)))

    with recording(engine, base.metadata) as sessions:
        states = [held()]

        def write(session: Session, step: int) -> None:
            rows = sa.update(table).where(table.c.id == 1)
            if step == 0:
                session.add(model(id=1, name="Ada"))
            elif step == 1:
                session.execute(rows.values(legacy="old", code="a", data=["x"], touched=1))
            elif step == 2:
                session.execute(rows.values(legacy=None, code="b", data=sa.null(), touched=2))
            elif step == 3:
                session.get_one(model, 1).name = "Eve"
            elif step == 4:
                session.execute(rows.values(legacy="older", data=sa.JSON.NULL, touched=sa.null()))
            else:
                session.delete(session.get_one(model, 1))

        for step in range(6):
            with sessions.begin() as session:
                write(session, step)
            states.append(held())
        with sessions() as session:
            done = [each.changeset_id for each in changesets(session)]
        for changeset, before in zip(reversed(done), reversed(states[:-1]), strict=True):
            with sessions.begin() as session:
                assert undo(session, changeset, force=True)
            assert held() == before
        for version in (2, 5):
            with sessions.begin() as session:
                restore(session, model, 1, at=version)
                assert not restore(session, model, 1, at=version)
            assert held() == states[version]
        with sessions() as session:
            check_history(session, model)
            last, *_ = changesets(session, newest_first=True)
            assert last.reason.startswith("restored from version 5")


@pytest.mark.spread
def test_a_link_that_lacks_a_value_is_refused(engine, base):
    rated = sa.Table(
        "rated",
        base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("film_id", sa.ForeignKey("films.id")),
        sa.Column("list_id", sa.ForeignKey("lists.id")),
        sa.Column("stars", sa.Integer, nullable=False),
    )

    @sqlaudit.track_table()
    class Film(base):
        __tablename__ = "films"

        id: Mapped[int] = mapped_column(primary_key=True)

    @sqlaudit.track_table()
    class List(base):
        __tablename__ = "lists"

        id: Mapped[int] = mapped_column(primary_key=True)
        films: Mapped[list[Film]] = relationship(secondary=rated)

    with recording(engine, base.metadata) as sessions:
        with sessions.begin() as session:
            session.add_all([Film(id=1), List(id=1)])
            session.flush()
            session.connection().execute(rated.insert().values(film_id=1, list_id=1, stars=5))
        with sessions.begin() as session:
            list_ = session.get_one(List, 1)
            list_.films.clear()
        with sessions.begin() as session, pytest.raises(QueryError, match=r"link of 'rated' .* its column stars"):
            undo(session, changesets(session, newest_first=True, limit=1)[0].changeset_id)
