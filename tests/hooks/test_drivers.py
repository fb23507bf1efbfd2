"""Every way to write, every read, and the errors that each driver gives, which are the database's own."""

import contextlib
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column

import sqlaudit
from clock import Clock
from invariants import check_history
from sqlaudit import track_table
from stock import do_nothing, upsert

Run = Callable[[Callable[[Session], Any]], Any]


class Base(orm.DeclarativeBase):
    type_annotation_map = {str: sa.String(50), dict[str, Any]: sa.JSON}


drive_links = sa.Table(
    "drive_links",
    Base.metadata,
    sa.Column("thing_id", sa.ForeignKey("drive_things.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("mark_id", sa.ForeignKey("drive_marks.id", ondelete="CASCADE"), primary_key=True),
)


@track_table()
class Mark(Base):
    __tablename__ = "drive_marks"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    name: Mapped[str]


@track_table()
class Thing(Base):
    __tablename__ = "drive_things"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    made: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    data: Mapped[dict[str, Any] | None]
    marks: Mapped[list[Mark]] = orm.relationship(secondary=drive_links, passive_deletes=True)
    parts: Mapped[list["Part"]] = orm.relationship(cascade="all, delete-orphan", passive_deletes=True)


@track_table()
class Part(Base):
    __tablename__ = "drive_parts"

    thing_id: Mapped[int] = mapped_column(sa.ForeignKey("drive_things.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(default=1)


SOURCES = (Thing, Part, Mark, drive_links)
things = Thing.__table__


def by_objects(session: Session) -> None:
    marks = [Mark(id=uuid.UUID(int=number), name="m") for number in (1, 2)]
    made = datetime(2024, 2, 29, tzinfo=UTC)
    session.add(Thing(id=1001, name="a", price=Decimal("1.50"), made=made, data={"a": [1]}, marks=marks[:1]))
    session.add_all([Thing(name=name, parts=[Part(place="x"), Part(place="y")]) for name in ("b", "c")])
    session.commit()
    first, second = session.scalars(sa.select(Thing).order_by(Thing.name).limit(2))
    first.price, first.marks = Decimal("2.50"), marks[1:]
    second.parts = second.parts[:1]
    session.commit()
    session.delete(second)
    session.commit()


def by_statements(session: Session) -> None:
    for number in (1001, 1003):
        session.execute(sa.insert(Thing).values(id=number, name=f"n{number}"))
    session.execute(sa.insert(things), [{"name": "n4"}, {"name": "n5"}])
    session.execute(sa.insert(Thing), [{"name": "n6"}, {"name": "n7"}])
    session.execute(
        sa.insert(Part), [{"thing_id": number, "place": place} for number in (1001, 1003) for place in "xy"]
    )
    session.execute(things.insert().from_select(["name"], sa.select(things.c.name + " copy")))
    session.commit()
    session.execute(sa.update(Thing).where(Thing.name.like("n%")).values(price=3))
    session.execute(sa.update(Thing), [{"id": 1001, "price": 4}, {"id": 1003, "price": 5}])
    session.execute(sa.update(Part).where(Part.place == "x").values(size=Part.size + 1))
    session.execute(sa.update(Part).where(Part.thing_id == 1001, Part.place == "y").values(place="z"))
    session.commit()
    session.execute(upsert(session, things, {"price": 6}, "name").values(name="n1001"))
    session.execute(do_nothing(session, things).values(name="n1003"))
    session.commit()
    session.execute(sa.delete(Part).where(Part.place == "x"))
    session.execute(sa.delete(Thing).where(Thing.id == 1001))
    session.commit()


def by_bulk_methods(session: Session) -> None:
    session.bulk_save_objects([Thing(id=1, name="a"), Thing(id=2, name="b")])
    session.bulk_insert_mappings(Thing, [{"id": 3, "name": "c"}])
    session.bulk_update_mappings(Thing, [{"id": 1, "price": 3}, {"id": 3, "price": 4}])
    session.commit()


def by_savepoints(session: Session) -> None:
    session.add(Thing(id=1, name="a"))
    session.flush()
    savepoint = session.begin_nested()
    session.add(Thing(id=2, name="b"))
    session.flush()
    savepoint.rollback()
    session.get_one(Thing, 1).name = "c"
    session.commit()


def past_sqlaudit(session: Session) -> None:
    with sqlaudit.tracking_disabled(session):
        session.add_all([Thing(id=number, name=f"n{number}", parts=[Part(place="x")]) for number in range(1, 6)])
        session.commit()
    sqlaudit.backfill(session, Thing)
    session.commit()
    with sqlaudit.tracking_disabled(session):
        session.execute(sa.update(Thing).where(Thing.id < 3).values(price=1))
        session.execute(sa.delete(Thing).where(Thing.id == 5))
        session.commit()
    for source in SOURCES:
        sqlaudit.record_changes(session, source)
    session.commit()


def by_many_ids(session: Session) -> None:
    """More than any database takes parameters: 65,535 on PostgreSQL and MariaDB, 32,766 on SQLite."""
    ids = list(range(1, 70_001))
    session.add_all([Thing(id=number, name=str(number)) for number in (1, 69_999)])
    session.commit()
    users = list(map(str, ids))
    assert sqlaudit.get_resource_changes(Thing, session=session, filter_user_ids=users) == []
    changes = sqlaudit.get_resource_changes(Thing, session=session, filter_resource_ids=ids, filter_fields=["name"])
    assert [each.new_value for each in changes] == ["1", "69999"]


WAYS = [by_objects, by_statements, by_bulk_methods, by_savepoints, past_sqlaudit]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_is_recorded(by_driver: Run, way: Callable[[Session], None]) -> None:
    by_driver(way)
    by_driver(lambda session: [check_history(session, source) for source in SOURCES])


@pytest.mark.slow
def test_more_ids_than_a_statement_takes_parameters_are_read(by_driver: Run) -> None:
    by_driver(by_many_ids)
    by_driver(lambda session: check_history(session, Thing))


# --- reads ------------------------------------------------------------------------------------------------------


def reads(session: Session) -> None:
    ids = [change.changeset_id for change in sqlaudit.changesets(session)]
    thing, at = session.scalars(sa.select(Thing)).one(), [each.timestamp for each in sqlaudit.changesets(session)]
    key = thing.id
    assert [version.name for version in sqlaudit.versions_of(session, Thing, key)] == ["a", "b", "c"]
    assert [version.name for version in sqlaudit.versions_of(session, Thing, str(key))] == ["a", "b", "c"]
    for when in (at[0], ids[0]):
        past = session.scalars(sqlaudit.as_of(Thing, when).where(Thing.name == "a")).one()
        assert (past.price, past.data) == (Decimal("1.50"), {"a": [1]})
        assert past.made.replace(tzinfo=UTC) == datetime(2024, 2, 29, tzinfo=UTC)
        assert [part.place for part in past.parts] == ["x"]
        assert [mark.id for mark in past.marks] == [uuid.UUID(int=1)]
        with sqlaudit.time_travel(session, when) as then:
            joined = sa.select(Thing.name, sa.func.count()).join(Thing.parts).group_by(Thing.name)
            assert then.execute(joined).all() == [("a", 1)]
            assert then.get_one(Thing, key, options=[orm.selectinload(Thing.parts)]).parts[0].size == 1
    assert len(session.scalars(sqlaudit.between(Thing, at[0], at[2])).all()) == 2
    assert len(session.scalars(sqlaudit.all_versions(Thing)).all()) == 3
    for filters in (
        {},
        {"filter_resource_ids": [key]},
        {"filter_fields": ["name"]},
        {"filter_date_range": (at[0], at[2])},
    ):
        changes = sqlaudit.get_resource_changes(Thing, session=session, **filters)
        assert [each.new_value for each in changes if each.field_name == "name"] == ["a", "b", "c"]
    assert len(sqlaudit.get_resource_changes(Thing, session=session, filter_user_ids=["eve"], limit=2)) == 2
    assert {change.resource_type for change in sqlaudit.changes_in(session, ids[0])} >= {"Thing", "Part", "Mark"}
    assert [
        len(sqlaudit.changesets(session, since=at[1], limit=1)),
        sqlaudit.instant_of_changeset(session, ids[1]),
    ] == [
        1,
        at[1],
    ]
    assert sqlaudit.blame(session, Thing, key)["name"].changed_by == "eve"
    for args, filters in (
        ([Thing], {}),
        ([Thing, key], {"filter_new_values": ["b", "c"]}),
        ([Thing], {"include": "parts", "filter_operations": ["update"]}),
    ):
        changes = sqlaudit.get_resource_changes(args[0], session, *args[1:], **filters)
        page = sqlaudit.changes_page(session, *args, size=1, **filters)
        rest = sqlaudit.changes_page(session, *args, after=page.next, **filters)
        assert page.items + rest.items == changes
    cursor = sqlaudit.changes_since(session, min_age=timedelta(0)).next
    sqlaudit.changes_since(session, cursor, min_age=timedelta(0))
    page = sqlaudit.changesets_page(session, model=Thing, key=key, user_id="eve", size=1)
    rest = sqlaudit.changesets_page(session, model=Thing, key=key, user_id="eve", after=page.next)
    assert [each.timestamp for each in page.items + rest.items] == at
    assert len(sqlaudit.changesets(session, extra={"no": "such"}, reason="x")) == 0
    [differs] = sqlaudit.compare(session, Thing, at[0], at[2])
    assert differs == sqlaudit.diff(session, Thing, key, 1, ids[2])
    assert differs.fields["name"] == ("a", "c")
    models = [Thing, Part], at[0] - timedelta(seconds=1), at[2]
    page = sqlaudit.compare_page(session, *models, size=1)
    rest = sqlaudit.compare_page(session, *models, after=page.next)
    assert page.items + rest.items == list(sqlaudit.compare(session, *models))


def take_back(session: Session) -> None:
    last = sqlaudit.changesets(session)[-1].changeset_id
    assert sqlaudit.undo(session, last).items[0].fields == {"name": ("c", "b")}
    session.commit()
    first = next(iter(sqlaudit.versions_of(session, Thing, session.scalars(sa.select(Thing.id)).one())))
    sqlaudit.restore(session, first)
    session.commit()
    assert session.scalars(sa.select(Thing.name)).one() == "a"


def test_every_read_and_the_way_back_work(by_driver: Run) -> None:
    def happen(session: Session) -> None:
        made = datetime(2024, 2, 29, tzinfo=UTC)
        thing = Thing(name="a", price=Decimal("1.50"), made=made, data={"a": [1]}, parts=[Part(place="x")])
        thing.marks.append(Mark(id=uuid.UUID(int=1), name="m"))
        session.add(thing)
        with sqlaudit.AuditContextManager(user_id="eve", extra={"ip": 1}):
            for name in ("a", "b", "c"):
                thing.name = name
                session.commit()

    sqlaudit.set_config(sqlaudit.SQLAuditConfig(clock=Clock()))
    by_driver(happen)
    by_driver(reads)
    by_driver(take_back)
    by_driver(lambda session: [check_history(session, source) for source in SOURCES])


# --- errors -----------------------------------------------------------------------------------------------------


def complaint_of(error: sa.exc.DBAPIError) -> str:
    fields = next(iter(error.orig.args), None)
    return fields["M"] if isinstance(fields, dict) else str(error.orig).partition("\n")[0]


def add_twice(session: Session) -> None:
    session.add(Thing(name="a"))
    session.flush()


ERRORS: dict[str, Callable[[Session], Any]] = {
    "a unique value, by an object": add_twice,
    "a unique value, by a statement": lambda session: session.execute(sa.insert(Thing).values(name="a")),
    "a unique value, by a list": lambda session: session.execute(sa.insert(things), [{"name": "b"}, {"name": "a"}]),
    "a unique value, by an update": lambda session: session.execute(sa.update(Thing).values(name="a")),
    "a foreign key": lambda session: session.execute(sa.insert(Part).values(thing_id=77, place="x")),
    "no value": lambda session: session.execute(sa.insert(Thing).values(name=None)),
    "a function that there is none": lambda session: session.execute(sa.update(Thing).values(name=sa.func.nowhere())),
    "a table that there is none": lambda session: session.execute(sa.text("SELECT 1 FROM nowhere")),
}


@pytest.mark.parametrize("what", ERRORS)
def test_the_errors_of_the_driver_are_those_without_sqlaudit(by_driver: Run, what: str) -> None:
    def fail(session: Session) -> tuple[Any, ...]:
        with pytest.raises(sa.exc.DBAPIError) as raised:
            ERRORS[what](session)
        with contextlib.suppress(sa.exc.SQLAlchemyError):  # PostgreSQL takes no statement until the transaction ends
            session.execute(sa.update(Thing).where(Thing.name == "b").values(price=1))
        session.rollback()
        return type(raised.value), type(raised.value.orig), complaint_of(raised.value)

    def fail_untracked(session: Session) -> tuple[Any, ...]:
        with sqlaudit.tracking_disabled(session):
            return fail(session)

    by_driver(lambda session: [session.add_all([Thing(name="a"), Thing(name="b")]), session.commit()])
    assert by_driver(fail) == by_driver(fail_untracked)
    by_driver(lambda session: check_history(session, Thing))


@pytest.mark.requires("concurrent_writes")
def test_a_statement_in_a_failed_transaction_fails_as_it_does_without_sqlaudit(by_driver: Run) -> None:
    def fail(session: Session) -> type[BaseException]:
        with pytest.raises(sa.exc.DBAPIError):
            session.execute(sa.text("SELECT 1 FROM nowhere"))
        try:
            session.execute(sa.update(Thing).values(price=1))
        except sa.exc.DBAPIError as error:
            return type(error.orig)
        return type(None)

    def fail_untracked(session: Session) -> type[BaseException]:
        with sqlaudit.tracking_disabled(session):
            return fail(session)

    assert by_driver(fail) is by_driver(fail_untracked)


@pytest.mark.parametrize("lost", ["table", "column"])
def test_what_a_history_lacks_is_named_with_the_remedy(by_driver: Run, lost: str) -> None:
    ways: list[Callable[[Session], Any]] = [
        lambda session: session.execute(sa.insert(Mark).values(id=uuid.UUID(int=1), name="x")),
        lambda session: [session.add(Mark(id=uuid.UUID(int=2), name="x")), session.flush()],
        lambda session: sqlaudit.versions_of(session, Mark, uuid.UUID(int=1)),
        lambda session: session.scalars(sqlaudit.as_of(Mark, datetime.now(UTC))).all(),
        lambda session: sqlaudit.backfill(session, Mark),
    ]

    def lose(session: Session) -> None:
        session.add(Mark(id=uuid.UUID(int=3), name="x"))
        session.flush()
        session.connection().exec_driver_sql("DELETE FROM drive_marks_history")
        history: Any = sqlaudit.history_of(Mark).__table__
        drop = sa.DDL("ALTER TABLE drive_marks_history DROP COLUMN name")
        session.connection().execute(sa.schema.DropTable(history) if lost == "table" else drop)
        session.commit()

    def miss(session: Session) -> None:
        for way in ways:
            with pytest.raises(sqlaudit.HistoryTableError, match=r"drive_marks_history.*create_all"):
                way(session)
            session.rollback()

    by_driver(lose)
    by_driver(miss)


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("way", ["objects", "a list"])
def test_links_that_are_deleted_under_a_policy_are_not_taken_for_hidden(by_driver: Run, way: str) -> None:
    role = f"sqlaudit_role_{uuid.uuid4().hex}"
    before = [
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA public TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
        *(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY" for table in ("drive_links", "drive_links_history")),
        *(f"CREATE POLICY p ON {table} USING (thing_id > 0)" for table in ("drive_links", "drive_links_history")),
        f"SET LOCAL ROLE {role}",
    ]

    def delete_links(session: Session) -> None:
        marks = [Mark(id=uuid.UUID(int=number), name="m") for number in (1, 2, 3)]
        thing = Thing(id=2001, name="linked", marks=marks)
        for statement in before:
            session.connection().exec_driver_sql(statement)
        session.add(thing)
        session.flush()
        if way == "objects":
            thing.marks = marks[:1]
            session.flush()
        else:
            by_mark = sa.delete(drive_links).where(drive_links.c.mark_id == sa.bindparam("mark"))
            session.connection().execute(by_mark, [{"mark": mark.id} for mark in marks[1:]])
        session.connection().exec_driver_sql("RESET ROLE")
        check_history(session, drive_links)
        session.rollback()

    by_driver(delete_links)
