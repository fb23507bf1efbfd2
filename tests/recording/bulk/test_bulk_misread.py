"""Bulk statements that are easily misread: by names, by what the database adds, by who else writes."""

import enum
import gc
import itertools
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from databases import SQLALCHEMY_2_1, Database
from invariants import check_history, told
from sqlaudit import CaptureError, ReadOnlyError
from stock import do_nothing, insert_of, upsert

Name = sa.String(50)
Maker = sessionmaker[Session]


def begin(maker: Maker, base: Any, *objects: Any) -> None:
    base.metadata.create_all(maker.kw["bind"])
    with maker() as session:
        for each in objects:
            session.add(each)
            session.flush()
        session.commit()


def check(maker: Maker, *models: Any) -> None:
    with maker() as session:
        for model in models:
            check_history(session, model)


# --- a column that is called like another one's attribute


@pytest.fixture
def legacy(base: Any) -> Any:
    @sqlaudit.track_table()
    class Legacy(base):
        __tablename__ = "legacy"

        id: Mapped[int] = mapped_column("uid", primary_key=True)
        old_id: Mapped[int] = mapped_column("id")

    return Legacy


@pytest.mark.parametrize("how", ["list", "values", "multi_values", "table"])
def test_inserted_rows_are_found_though_a_column_is_called_like_the_keys_attribute(
    base: Any, sessions: Maker, legacy: Any, how: str
) -> None:
    begin(sessions, base)
    with sessions() as session:
        if how == "list":
            session.execute(sa.insert(legacy), [{"id": 1, "old_id": 7}, {"id": 2, "old_id": 8}])
        elif how == "values":
            session.execute(sa.insert(legacy).values({legacy.id: 1, legacy.old_id: 7}))
        elif how == "multi_values":
            session.execute(sa.insert(legacy).values([{"id": 1, "old_id": 7}, {"id": 2, "old_id": 8}]))
        else:
            session.execute(legacy.__table__.insert().values(uid=1, id=7))
        session.commit()
    check(sessions, legacy)


def test_an_inserted_row_is_not_taken_for_another_one(base: Any, sessions: Maker, legacy: Any) -> None:
    begin(sessions, base, legacy(id=1, old_id=7))
    with sessions() as session:
        session.execute(sa.insert(legacy), [{"id": 2, "old_id": 1}])  # silently without history
        session.commit()
    check(sessions, legacy)


def test_an_update_of_a_column_called_like_the_keys_attribute_moves_no_row(
    base: Any, sessions: Maker, legacy: Any
) -> None:
    begin(sessions, base, legacy(id=1, old_id=7))
    with sessions() as session:
        session.execute(sa.update(legacy).values({legacy.old_id: 50}))  # warns of a new row with the key 50
        session.commit()
        assert told(session, legacy, "old_id") == [("insert", 7), ("update", 50)]


# --- upserts that come upon a row by another key than the given primary key


@pytest.mark.parametrize("default", [{"default": "main"}, {"server_default": "main"}])
def test_an_upsert_finds_the_row_by_a_unique_key_that_has_a_default(
    base: Any, sessions: Maker, default: dict[str, Any]
) -> None:
    @sqlaudit.track_table()
    class Code(base):
        __tablename__ = "codes"
        __table_args__ = (sa.UniqueConstraint("tenant", "code"),)

        id: Mapped[int] = mapped_column(primary_key=True)
        tenant: Mapped[str] = mapped_column(Name, **default)
        code: Mapped[str] = mapped_column(Name)
        n: Mapped[int]

    begin(sessions, base, Code(id=1, code="a", n=1))
    with sessions() as session:
        session.execute(upsert(session, Code, {"n": 5}, "tenant", "code").values(id=9, code="a", n=5))
        session.commit()
        assert told(session, Code, "n") == [("insert", 1), ("update", 5)]


@pytest.mark.requires("on_conflict")
def test_an_upsert_finds_the_row_by_a_unique_expression(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class User(base):
        __tablename__ = "users"

        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(Name)
        n: Mapped[int]

    sa.Index("users_email", sa.func.lower(User.email), unique=True)
    begin(sessions, base, User(id=1, email="a@x", n=1))
    with sessions() as session:
        statement = insert_of(session)(User).values(id=9, email="A@X", n=5)
        lower = sa.func.lower(User.email)
        session.execute(statement.on_conflict_do_update(index_elements=[lower], set_={"n": 5}))
        session.commit()
        assert told(session, User, "n") == [("insert", 1), ("update", 5)]


@pytest.mark.requires("concurrent_writes")
def test_an_upsert_finds_the_row_that_another_transaction_inserts_meanwhile(
    base: Any, sessions: Maker, database: Any
) -> None:
    @sqlaudit.track_table()
    class Code(base):
        __tablename__ = "codes"

        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str] = mapped_column(Name, unique=True)
        n: Mapped[int]

    begin(sessions, base)

    def write() -> None:
        with sessions() as session:
            session.execute(upsert(session, Code, {"n": 5}, "code").values(id=9, code="a", n=5))
            session.commit()

    with sessions() as session:
        session.add(Code(id=1, code="a", n=1))
        session.flush()
        other = threading.Thread(target=write)
        other.start()
        while other.is_alive() and not database.waiting():
            time.sleep(0.01)
        session.commit()
        other.join()
        assert session.scalars(sa.select(Code.n)).all() == [5]
        assert told(session, Code, "n") == [("insert", 1), ("update", 5)]


# --- statements


@pytest.fixture
def thing(base: Any) -> Any:
    @sqlaudit.track_table()
    class Thing(base):
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        n: Mapped[int] = mapped_column(default=0)

    return Thing


@pytest.mark.requires("updates_of_two_tables")
def test_an_update_of_a_join_is_recorded_or_noticed(base: Any, sessions: Maker, thing: Any) -> None:
    class Other(base):
        __tablename__ = "others"

        id: Mapped[int] = mapped_column(primary_key=True)

    begin(sessions, base, thing(id=1, name="a"), Other(id=1))
    things: Any = thing.__table__
    with warnings.catch_warnings(record=True) as noticed, sessions() as session:
        warnings.simplefilter("always")
        join = things.join(Other.__table__, things.c.id == Other.id)
        session.execute(sa.update(join).values({things.c.n: 5}))
        session.commit()
        assert noticed or told(session, thing, "n") == [("insert", 0), ("update", 5)]


def test_a_list_of_parameters_may_find_many_rows_by_a_function(
    base: Any, sessions: Maker, thing: Any, database: Database
) -> None:
    begin(sessions, base)
    count = 150 if "concurrent_writes" in database.capabilities else 1_300  # of SQLite's terms, 1,000 can be nested
    things: Any = thing.__table__
    statement = things.update().where(sa.func.lower(things.c.name) == sa.bindparam("old")).values(n=sa.bindparam("new"))
    with sessions() as session:
        session.execute(sa.insert(thing), [{"id": n, "name": f"c{n}"} for n in range(1, count + 1)])
        session.commit()
        session.execute(statement, [{"old": f"c{n}", "new": n} for n in range(1, count + 1)])
        session.commit()
    check(sessions, thing)


def test_upserts_by_a_list_that_may_find_rows_by_a_default_are_noticed(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class Slot(base):
        __tablename__ = "slots"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name, unique=True, server_default="first")
        n: Mapped[int]

    begin(sessions, base, Slot(id=1, name="first", n=0))
    with sessions() as session:
        statement = upsert(session, Slot, {"n": sa.literal_column("5")}, "name")
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"slots.*by a value that the database generates"):
            session.connection().execute(statement, [{"id": 8, "n": 1}, {"id": 9, "n": 2}])
        sqlaudit.record_changes(session, Slot)
        session.commit()
        assert told(session, Slot, "n") == [("insert", 0), ("update", 5)]


@pytest.mark.parametrize("how", ["one", "list", "from the second on", "left alone"])
def test_upserts_of_keys_that_the_database_rounds_are_recorded_or_noticed(base: Any, sessions: Maker, how: str) -> None:
    @sqlaudit.track_table()
    class Price(base):
        __tablename__ = "prices"

        id: Mapped[Decimal] = mapped_column(sa.Numeric(5, 2), primary_key=True, autoincrement=False)
        n: Mapped[int]

    begin(sessions, base, Price(id=Decimal("5.25"), n=0))
    ids = [Decimal("5.25"), Decimal("5.25"), Decimal("1.005")]
    with sessions() as session, warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", sqlaudit.SQLAuditWarning)
        table: Any = Price.__table__
        statement = upsert(session, table, {"n": sa.literal_column("5")}, "id")
        statement = do_nothing(session, table) if how == "left alone" else statement
        if how == "list":
            session.connection().execute(statement, [{"id": id, "n": 1} for id in ids])
        else:
            for id in ids if how == "from the second on" else ids[-1:]:
                session.execute(statement.values(id=id, n=1))
        if any(issubclass(each.category, sqlaudit.SQLAuditWarning) for each in noticed):
            sqlaudit.record_changes(session, Price)
        session.commit()
    check(sessions, Price)


@pytest.mark.requires("replacing_inserts")
def test_what_may_be_replaced_by_a_default_is_noticed(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class Slot(base):
        __tablename__ = "slots"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name, unique=True, server_default="first")

    begin(sessions, base, Slot(id=1, name="first"))
    with sessions() as session:
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"slots.*by a value that the database generates"):
            session.execute(sa.insert(Slot).prefix_with("OR REPLACE"), {"id": 8})
        sqlaudit.record_changes(session, Slot)
        session.commit()
        assert told(session, Slot, "id") == [("insert", 1), ("delete", 1), ("insert", 8)]


@pytest.mark.parametrize("changes", [True, False])
def test_a_sequence_is_asked_once_by_an_upsert_from_a_select(base: Any, sessions: Maker, changes: bool) -> None:
    numbers = sa.Sequence("slot_numbers", metadata=base.metadata, start=5)

    @sqlaudit.track_table()
    class Slot(base):
        __tablename__ = "slots"

        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        n: Mapped[int]

    begin(sessions, base, Slot(id=1, n=0), Slot(id=2, n=0), Slot(id=5, n=0))
    if not sessions.kw["bind"].dialect.supports_sequences:
        return
    with sessions() as session, warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", sqlaudit.SQLAuditWarning)
        table: Any = Slot.__table__
        statement = (
            upsert(session, table, {"n": sa.literal_column("9")}, "id") if changes else do_nothing(session, table)
        )
        session.execute(statement.from_select(["id", "n"], sa.select(numbers.next_value(), table.c.n)))
        session.commit()
        rows = session.execute(sa.select(table).order_by(table.c.id)).all()
    assert rows == [(1, 0), (2, 0), (5, 9 if changes else 0), (6, 0), (7, 0)]
    assert any("by a value that the database generates" in str(each.message) for each in noticed) == changes
    check(sessions, Slot)


@pytest.mark.requires("rules")
def test_an_insert_whose_keys_a_rule_keeps_from_being_returned_is_noticed(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class Slot(base):
        __tablename__ = "slots"

        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int]

    begin(sessions, base, Slot(id=1, n=0))
    with sessions() as session:
        session.connection().exec_driver_sql("CREATE RULE r AS ON INSERT TO slots WHERE NEW.n = 5 DO INSTEAD NOTHING")
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"rule of the table 'slots'"):
            session.execute(sa.insert(Slot).from_select(["id", "n"], sa.select(Slot.id + 1, Slot.n)))
        sqlaudit.record_changes(session, Slot)
        session.commit()
        assert told(session, Slot, "id") == [("insert", 1), ("insert", 2)]


def test_keys_with_a_nul_are_recorded(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class Slot(base):
        __tablename__ = "slots"

        id: Mapped[str] = mapped_column(Name, primary_key=True)
        n: Mapped[int]

    if sessions.kw["bind"].dialect.name == "postgresql":  # which stores none
        return
    begin(sessions, base, Slot(id="a", n=1), Slot(id="a\0b", n=1))
    with sessions() as session:
        session.execute(sa.update(Slot).where(Slot.n > sa.func.abs(0)).values(n=2))
        session.commit()
        session.add_all([Slot(id="c", n=1), Slot(id="c\0d", n=1)])
        session.flush()
        session.execute(sa.delete(Slot))
        session.commit()
    check(sessions, Slot)


REPLACING: dict[str, Callable[[Any], Any]] = {
    "insert": lambda table: table.insert().values(code="a", n=5),
    "insert of a list": lambda table: table.insert().values([{"code": "a", "n": 5}, {"code": "c", "n": 5}]),
    "insert with a key": lambda table: table.insert().values(id=2, code="a", n=5),
    "insert from a select": lambda table: table.insert().from_select(["code"], sa.select(table.c.code)),
    "update": lambda table: table.update().where(table.c.code == "b").values(code="c"),
    "update by an expression": lambda table: table.update().where(table.c.id < 3).values(code=table.c.code + "x"),
    "update to the values of others": lambda table: (
        table.update().where(table.c.id < 3).values(code=sa.case((table.c.id == 1, "c"), else_="a"))
    ),
    "update of all": lambda table: table.update().values(code="z"),
    "update of a key": lambda table: table.update().where(table.c.id == 1).values(id=3),
    "update of keys": lambda table: table.update().values(id=table.c.id + 1),
}


@pytest.mark.requires("replacing_inserts")
@pytest.mark.parametrize("by", ["prefix", "constraint", "column", "ignoring prefix", "ignoring constraint"])
@pytest.mark.parametrize("name", REPLACING)
def test_rows_in_the_way_are_recorded_as_what_becomes_of_them(base: Any, sessions: Maker, name: str, by: str) -> None:
    word = "IGNORE" if by.startswith("ignoring") else "REPLACE"
    unique = {"sqlite_on_conflict": word} if by.endswith("constraint") else {}
    column = {"sqlite_on_conflict_unique": word, "sqlite_on_conflict_primary_key": word} if by == "column" else {}

    @sqlaudit.track_table()
    class Slot(base):
        __table__ = sa.Table(
            "slots",
            base.metadata,
            sa.Column("id", sa.Integer, **{name: each for name, each in column.items() if "primary" in name}),
            sa.Column("code", Name, **{name: each for name, each in column.items() if "unique" in name}),
            sa.Column("n", sa.Integer),
            sa.PrimaryKeyConstraint("id", **unique),
            sa.UniqueConstraint("code", **unique),
        )

    base.metadata.create_all(sessions.kw["bind"])
    statement = REPLACING[name](Slot.__table__)
    with sessions() as session:
        session.execute(sa.insert(Slot), [{"id": id, "code": code, "n": 1} for id, code in enumerate("abc", start=1)])
        session.commit()
        session.execute(statement.prefix_with(f"OR {word}") if by.endswith("prefix") else statement)
        session.commit()
    check(sessions, Slot)


@pytest.mark.requires("replacing_inserts")
def test_a_flush_that_may_replace_rows_is_noticed(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class Slot(base):
        __tablename__ = "slots"

        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str] = mapped_column(Name, unique=True, sqlite_on_conflict_unique="REPLACE")

    base.metadata.create_all(sessions.kw["bind"])
    with sessions() as session:
        session.add(Slot(code="a"))
        with pytest.warns(sqlaudit.SQLAuditWarning, match=r"slots.*ON CONFLICT REPLACE"):
            session.flush()


def test_a_default_may_execute_a_statement_on_a_registered_engine(
    base: Any, sessions: Maker, engine: sa.Engine
) -> None:
    @sqlaudit.track_table()
    class Counter(base):
        __tablename__ = "counters"

        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int]

    counters: Any = Counter.__table__

    def next_number(context: Any) -> Any:
        context.connection.execute(counters.update().values(n=counters.c.n + 1))
        return context.connection.scalar(sa.select(counters.c.n))

    @sqlaudit.track_table()
    class Invoice(base):
        __tablename__ = "invoices"

        id: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(default=next_number)

    begin(sessions, base, Counter(id=1, n=0))
    sqlaudit.register_hooks(sessions, engine=engine)
    try:
        with engine.begin() as connection:
            connection.execute(sa.insert(Invoice).values(id=1))
    finally:
        sqlaudit.unregister_hooks(sessions, engine=engine)
    sqlaudit.register_hooks(sessions)
    check(sessions, Counter, Invoice)


def test_the_keys_of_a_table_without_implicit_returning_are_known_or_noticed(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class Quiet(base):
        __tablename__ = "quiet"
        __table_args__ = {"implicit_returning": False}

        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int]

    begin(sessions, base)
    with warnings.catch_warnings(record=True) as noticed, sessions() as session:
        warnings.simplefilter("always")
        session.execute(sa.insert(Quiet), [{"n": 1}, {"n": 2}])
        session.bulk_insert_mappings(Quiet, [{"n": 3}, {"n": 4}])
        session.commit()
        assert noticed or told(session, Quiet, "n") == [("insert", n) for n in (1, 2, 3, 4)]


@pytest.mark.requires("streamed_writes")
@pytest.mark.parametrize("options", [{"yield_per": 2}, {"stream_results": True}])
def test_a_streamed_result_is_whole(base: Any, sessions: Maker, thing: Any, options: dict[str, Any]) -> None:
    things: Any = thing.__table__
    begin(sessions, base, *(thing(id=n, name="a") for n in range(1, 31)))
    with sessions() as session:
        statement = sa.delete(things).where(things.c.n == 0).returning(things.c.id)
        result = session.execute(statement, execution_options=options)
        assert sorted(result.scalars()) == list(range(1, 31))
        session.commit()
    check(sessions, thing)


@pytest.mark.spread
def test_what_a_statement_wrote_is_not_kept_by_the_cache_of_statements(
    base: Any, sessions: Maker, thing: Any, engine: sa.Engine
) -> None:
    begin(sessions, base, thing(id=1, name="a"))

    def written_by(maker: Any) -> Any:
        with maker() as session:
            session.execute(sa.update(thing).values(n=thing.n + 1))
            session.commit()
            return weakref.ref(session)

    plain = written_by(sessionmaker(engine))
    gc.collect()
    assert plain() is None
    engine.clear_compiled_cache()
    recorded = written_by(sessions)
    gc.collect()
    assert recorded() is None


ITEMS: dict[str, Callable[[Any], Any]] = {
    "an item of an array": lambda box: sa.update(box).where(box.id == 1).values({box.numbers[2]: 9}),
    "a part of an array": lambda box: sa.update(box).values({box.numbers[2:3]: [8, 9]}),
    "items of a table": lambda box: box.__table__.update().values({box.__table__.c.numbers[1]: 9}),
    "items in an order": lambda box: sa.update(box).ordered_values((box.numbers[1], 9), (box.n, 5)),
}
if SQLALCHEMY_2_1:
    ITEMS["an item of a document"] = lambda box: sa.update(box).values(
        {box.document["a"]: sa.cast(5, postgresql.JSONB)}
    )


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("name", ITEMS)
def test_an_update_of_items_is_recorded(base: Any, sessions: Maker, name: str) -> None:
    def box(table: str) -> Any:
        columns = {
            "id": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
            "numbers": mapped_column(postgresql.ARRAY(sa.Integer)),
            "document": mapped_column(postgresql.JSONB),
            "n": mapped_column(sa.Integer),
        }
        return type(table.title(), (base,), {"__tablename__": table, **columns})

    plain, tracked = box("plain"), sqlaudit.track_table()(box("tracked"))
    begin(
        sessions, base, *(box(id=id, numbers=[1, 2, 3], document={"a": 1}) for box in (plain, tracked) for id in (1, 2))
    )
    rows = []
    with sessions() as session:
        for model in (plain, tracked):
            statement = ITEMS[name](model)
            count = session.execute(statement, execution_options={"synchronize_session": False}).rowcount
            session.commit()
            rows.append((count, session.execute(sa.select(model.__table__).order_by(model.id)).all()))
    assert rows[0] == rows[1]
    check(sessions, tracked)


def test_a_parameter_that_is_called_like_a_column_that_is_set_is_refused(
    base: Any, sessions: Maker, thing: Any
) -> None:
    begin(sessions, base, thing(id=1, name="a"))
    things: Any = thing.__table__
    statement = things.update().where(things.c.name == sa.bindparam("name")).values(n=sa.bindparam("value"))
    with sessions() as session:
        for each in (statement, statement.where(sa.func.lower(things.c.name) == sa.bindparam("name"))):
            with pytest.raises(sa.exc.CompileError, match="'name' is reserved"):
                session.execute(each, {"name": "a", "value": 5})
        session.commit()
        assert told(session, thing, "name", "n") == [("insert", "a", 0)]


# --- record_changes() and SQL by hand


def test_record_changes_of_rows_whose_key_is_a_boolean(base: Any, sessions: Maker) -> None:
    @sqlaudit.track_table()
    class Flag(base):
        __tablename__ = "flags"

        on: Mapped[bool] = mapped_column("is_on", primary_key=True)
        n: Mapped[int]

    begin(sessions, base, Flag(on=True, n=1))
    with sessions() as session:
        sqlaudit.record_changes(session, Flag)
    check(sessions, Flag)


# --- parameters that are bound in another way than the key -------------------------------------------------------


class Prefix(sa.TypeDecorator[str]):
    impl = sa.String(50)
    cache_ok = True

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value and self.prefix + value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value and value.removeprefix(self.prefix)


class Colour(enum.Enum):
    RED = 1


# name: (type of the key, key that is inserted, the same in another type, or another key in another type)
BOUND_OTHERWISE: dict[str, tuple[Any, Any, Any]] = {
    "another decorator": (Prefix("a:"), "x", sa.literal("x", Prefix("b:"))),
    "below a decorator": (Prefix("a:"), "x", sa.literal("a:x", sa.String(50))),
    "an enum": (sa.String(50), "RED", sa.literal(Colour.RED, sa.Enum(Colour, native_enum=False))),
    "a UUID as a text": (
        sa.Uuid(native_uuid=False),
        uuid.UUID(int=7),
        sa.literal(str(uuid.UUID(int=7)), sa.Uuid(as_uuid=False, native_uuid=False)),
    ),
    "a text of another length": (sa.String(50), "x", sa.literal("x", sa.String(3))),
    "a larger number": (sa.Integer(), 7, sa.literal(7, sa.BigInteger)),
}


@pytest.mark.parametrize("name", BOUND_OTHERWISE)
def test_a_row_is_found_by_a_parameter_of_another_type_as_without_tracking(
    base: Any, engine: sa.Engine, sessions: Maker, name: str
) -> None:
    type_, key, other = BOUND_OTHERWISE[name]

    def thing(table: str) -> Any:
        columns = {"id": mapped_column(type_, primary_key=True), "n": mapped_column(sa.Integer)}
        return type(table.title(), (base,), {"__tablename__": table, **columns})

    plain, tracked = thing("plain"), sqlaudit.track_table()(thing("tracked"))
    base.metadata.create_all(engine)
    writes = [
        lambda model: sa.insert(model).values(id=key, n=1),
        lambda model: sa.update(model).where(model.id == other).values(n=2),
        lambda model: sa.delete(model).where(model.id == other),
        lambda model: sa.delete(model),
        lambda model: sa.insert(model).values(id=other, n=3),
        lambda model: sa.update(model).where(model.id == other).values(n=4),
        lambda model: sa.update(model).where(model.n == 4).values(id=other, n=5),
    ]
    with sessions() as session:
        for write in writes:
            rows = []
            for model in (plain, tracked):
                statement = write(model)
                result = session.execute(statement)
                count = None if statement.is_insert else result.rowcount
                session.commit()
                stored = sa.select(sa.type_coerce(model.__table__.c.id, sa.String), model.n)
                rows.append((count, session.execute(stored).all()))
            assert rows[0] == rows[1]
            check_history(session, tracked)


# --- what MariaDB refuses in an UPDATE, but only warns of in a SELECT --------------------------------------------

REFUSED: dict[str, Callable[[Any], Any]] = {
    "a text as a number": lambda table: table.c.name == 7,
    "a text as a date": lambda table: sa.cast(table.c.name, sa.Date) < sa.func.now(),
    "a division by zero": lambda table: 1 / (table.c.n - 1) >= 0,
    "one in a function": lambda table: sa.func.coalesce(1 / (table.c.n - 1), 1) == 1,
}


@pytest.mark.requires("limited_updates")
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "READ COMMITTED"])
@pytest.mark.parametrize("criterion", REFUSED)
def test_a_criterion_that_the_database_refuses_writes_nothing(
    base: Any, engine: sa.Engine, sessions: Maker, criterion: str, isolation: str
) -> None:
    thing = _named_things(base, engine, sessions)
    with sessions() as session:
        session.connection(execution_options={"isolation_level": isolation})
        with pytest.raises((sa.exc.OperationalError, CaptureError)):
            session.execute(sa.update(thing).values(n=9).where(REFUSED[criterion](thing.__table__)))
        session.rollback()
        assert session.scalars(sa.select(thing.n).order_by(thing.id)).all() == [1, 2, 3]
        check_history(session, thing)


@pytest.mark.requires("limited_updates")
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "READ COMMITTED"])
def test_safe_updates_refuse_what_they_refuse_without_tracking(
    base: Any, engine: sa.Engine, sessions: Maker, isolation: str
) -> None:
    thing = _named_things(base, engine, sessions)
    with sessions() as session:
        connection = session.connection(execution_options={"isolation_level": isolation})
        connection.exec_driver_sql("SET sql_safe_updates = 1")
        for write in (sa.update(thing).values(n=9), sa.delete(thing)):
            with pytest.raises(sa.exc.DBAPIError, match="1175"):
                session.execute(write)
        session.execute(sa.update(thing).where(thing.id > 1).values(n=9))
        connection.exec_driver_sql("SET sql_safe_updates = 0")
        session.commit()
        assert session.scalars(sa.select(thing.n).order_by(thing.id)).all() == [1, 9, 9]
        check_history(session, thing)


def _named_things(base: Any, engine: sa.Engine, sessions: Maker) -> Any:
    @sqlaudit.track_table()
    class Thing(base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str] = mapped_column(Name)
        n: Mapped[int]

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add_all([Thing(id=1, name="abc", n=1), Thing(id=2, name="7", n=2), Thing(id=3, name="7up", n=3)])
    return Thing


# --- statements that write within others --------------------------------------------------------------------------


def _joined(thing: Any, within: Any) -> Any:
    return sa.select(thing).join(within, within.c.id == thing.id)


WITHIN: dict[str, Callable[[Any, Any], Any]] = {
    "a join": _joined,
    "a join of tables": lambda thing, within: sa.select(thing.id).select_from(
        thing.__table__.join(within, within.c.id == thing.__table__.c.id)
    ),
    "a criterion": lambda thing, within: sa.select(thing).where(thing.id.in_(sa.select(within.c.id))),
    "an EXISTS": lambda thing, within: sa.select(thing).where(sa.exists().where(within.c.id == thing.id)),
    "a column": lambda thing, within: sa.select(sa.select(sa.func.count()).select_from(within).scalar_subquery()),
    "another CTE": lambda thing, within: sa.select(sa.select(within.c.id).cte("outer_one").c.id),
    "a subquery": lambda thing, within: sa.select(sa.select(within.c.id).where(within.c.id > 0).subquery().c.id),
    "a union": lambda thing, within: sa.union_all(sa.select(thing.id), sa.select(within.c.id)),
    "objects": lambda thing, within: sa.select(thing).from_statement(_joined(thing, within)),
}


@pytest.mark.requires("writing_ctes")
@pytest.mark.parametrize("written", ["rows", "history", "by hand"])
@pytest.mark.parametrize("by", [Session.execute, lambda session, statement: session.connection().execute(statement)])
@pytest.mark.parametrize("place", WITHIN)
def test_a_cte_that_writes_is_noticed_wherever_it_is(
    base: Any, engine: sa.Engine, sessions: Maker, place: str, by: Any, written: str
) -> None:
    thing = _named_things(base, engine, sessions)
    if written == "by hand":
        within: Any = sa.text("DELETE FROM things WHERE id = 1 RETURNING id").columns(thing.__table__.c.id).cte("w")
    else:
        table = thing.__table__ if written == "rows" else thing.History.__table__
        within = sa.delete(table).where(table.c.id == 1).returning(table.c.id).cte("w")
    sqlaudit.set_config(sqlaudit.SQLAuditConfig(strict=True))
    with sessions() as session:
        with pytest.raises(ReadOnlyError if written == "history" else CaptureError):
            by(session, WITHIN[place](thing, within))
        session.rollback()
        assert len(told(session, thing)) == 3
        check_history(session, thing)


LIMITS: dict[str, Callable[[Any], Any]] = {
    "a limit for mysql": lambda write: write.with_dialect_options(mysql_limit=1),
    "a limit for mariadb": lambda write: write.with_dialect_options(mariadb_limit=1),
}
if SQLALCHEMY_2_1:
    LIMITS["a limit"] = lambda write: write.ext(mysql.limit(1))


@pytest.mark.requires("limited_updates")
@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_counts_as_it_does_without_tracking(base: Any, engine: sa.Engine, sessions: Maker, limit: str) -> None:
    thing = _named_things(base, engine, sessions)
    things = thing.__table__
    writes = (
        things.update().values(n=9),
        things.update().where(things.c.id > 1).values(n=8),
        things.update().where(things.c.id > 1).values(id=things.c.id + 10),
        things.delete(),
    )
    seen = []
    for make in (sessionmaker(engine), sessions):
        with make() as session:
            seen.append([session.execute(LIMITS[limit](write)).rowcount for write in writes])
            seen[-1] += session.execute(sa.select(things).order_by(things.c.id)).all()
            if make is sessions:
                session.commit()
                check_history(session, thing)
    assert seen[1] == seen[0]


# --- what a statement names in unusual ways


def _does_the_same(engine: sa.Engine, sessions: Maker, thing: Any, write: Callable[[Session], Any]) -> None:
    """See that a write has the result and the rows that it has without tracking, and is recorded."""
    seen = []
    for make in (sessionmaker(engine), sessions):
        with make() as session:
            seen.append([getattr(write(session), "rowcount", None)])
            seen[-1] += session.execute(sa.select(thing.__table__).order_by(thing.id)).all()
            if make is sessions:
                session.commit()
                check_history(session, thing)
    assert seen[1] == seen[0]


LATER: dict[str, Any] = {"synchronize_session": False}
CALLED: dict[str, Callable[[Session, Any, Any], Any]] = {
    "update of a row": lambda s, thing, number: s.execute(
        sa.update(thing).where(thing.id == number).values(n=9), execution_options=LATER
    ),
    "update of a row of a table": lambda s, thing, number: s.execute(
        thing.__table__.update().where(thing.__table__.c.id == number).values(n=9)
    ),
    "update by a criterion": lambda s, thing, number: s.execute(
        sa.update(thing).where(thing.n <= number).values(n=9), execution_options=LATER
    ),
    "update by a query": lambda s, thing, number: s.execute(
        sa.update(thing).where(thing.id.in_(sa.select(thing.id).where(thing.id == number))).values(n=9),
        execution_options=LATER,
    ),
    "update to a value": lambda s, thing, number: s.execute(sa.update(thing).values(n=number)),
    "update of a key": lambda s, thing, number: s.execute(
        sa.update(thing).where(thing.id == number).values(id=number + 10), execution_options=LATER
    ),
    "update by a connection": lambda s, thing, number: s.connection().execute(
        sa.update(thing).where(thing.id == number).values(n=9)
    ),
    "delete of a row": lambda s, thing, number: s.execute(
        sa.delete(thing).where(thing.id == number), execution_options=LATER
    ),
    "delete by a criterion": lambda s, thing, number: s.execute(
        sa.delete(thing).where(thing.n <= number), execution_options=LATER
    ),
    "insert": lambda s, thing, number: s.execute(sa.insert(thing).values(id=number + 10, n=1, name="d")) and None,
    "insert into a table": lambda s, thing, number: (
        s.execute(thing.__table__.insert().values(id=4711, n=number, name="d")) and None
    ),
    "insert of values": lambda s, thing, number: (
        s.execute(sa.insert(thing).values([{"id": 10, "n": number, "name": "d"}, {"id": 11, "n": 1, "name": "e"}]))
        and None
    ),
    "insert of values with a key": lambda s, thing, number: (
        s.execute(thing.__table__.insert().values([{"id": _next_from(10), "n": 1, "name": "d"}])) and None
    ),
    "insert of a key": lambda s, thing, number: (
        s.execute(thing.__table__.insert().values(id=_next_from(10), n=1, name="d")) and None
    ),
}


def _next_from(first: int) -> Any:
    return sa.bindparam("next", callable_=itertools.count(first).__next__, type_=sa.Integer)


@pytest.mark.spread
@pytest.mark.parametrize("name", CALLED)
def test_a_function_that_gives_a_parameter_is_called_as_without_tracking(
    base: Any, engine: sa.Engine, sessions: Maker, name: str
) -> None:
    thing = _named_things(base, engine, sessions)
    _does_the_same(engine, sessions, thing, lambda session: CALLED[name](session, thing, _next_from(1)))


SET_TOGETHER: dict[str, Callable[[Any], Any]] = {
    "from a query": lambda t: t.update().values(
        {sa.tuple_(t.c.n, t.c.name): sa.select(7, sa.literal("z")).scalar_subquery()}
    ),
    "from a query of rows": lambda t: (
        lambda other: t.update().values(
            {
                sa.tuple_(t.c.n, t.c.name): sa.select(other.c.n + 1, other.c.name)
                .where(other.c.id == t.c.id)
                .scalar_subquery()
            }
        )
    )(t.alias("other")),
    "from columns": lambda t: t.update().values({sa.tuple_(t.c.n, t.c.name): sa.tuple_(t.c.n + 1, t.c.name)}),
    "of a row": lambda t: (
        t.update()
        .where(t.c.id == 2)
        .values({sa.tuple_(t.c.n, t.c.name): sa.select(7, sa.literal("z")).scalar_subquery()})
    ),
    "a key": lambda t: (
        t.update().where(t.c.id == 2).values({sa.tuple_(t.c.n, t.c.id): sa.select(7, sa.literal(77)).scalar_subquery()})
    ),
    "keys": lambda t: (
        lambda other: t.update().values(
            {
                sa.tuple_(t.c.id, t.c.n): sa.select(other.c.id + 10, sa.literal(5))
                .where(other.c.id == t.c.id)
                .scalar_subquery()
            }
        )
    )(t.alias("other")),
    "a key and others beside": lambda t: (
        t.update().where(t.c.id == 2).values({sa.tuple_(t.c.id, t.c.n): sa.tuple_(t.c.id + 50, t.c.n), t.c.name: "y"})
    ),
}


@pytest.mark.requires("row_values_in_set")
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("name", SET_TOGETHER)
def test_columns_that_are_set_together_are_recorded(
    base: Any, engine: sa.Engine, sessions: Maker, name: str, tracked: bool
) -> None:
    thing = _named_things(base, engine, sessions)
    if tracked:
        _does_the_same(engine, sessions, thing, lambda s: s.execute(SET_TOGETHER[name](thing.__table__)))
        return
    copy = sa.Table(
        "others", base.metadata, sa.Column("id", sa.Integer), sa.Column("n", sa.Integer), sa.Column("name", Name)
    )
    copy.create(engine)
    with sessions() as session:
        session.execute(copy.insert(), {"id": 2, "n": 2, "name": "b"})
        assert session.execute(SET_TOGETHER[name](copy)).rowcount == 1


SEVERAL_WITH_EACH: dict[str, Callable[[Any], tuple[Any, list[dict[str, Any]]]]] = {
    "from a query": lambda t: (
        t.insert().from_select(
            ["n", "name"], sa.select(t.c.n, t.c.name + sa.bindparam("x", type_=Name)).where(t.c.n < 3)
        ),
        [{"x": "!"}, {"x": "?"}],
    ),
    "from a query, with keys": lambda t: (
        t.insert().from_select(
            ["id", "n"], sa.select(t.c.id + sa.bindparam("x", type_=sa.Integer), t.c.n).where(t.c.id < 4)
        ),
        [{"x": 10}, {"x": 20}],
    ),
    "values": lambda t: (
        t.insert().values([{"n": sa.bindparam("x")}, {"n": sa.bindparam("y")}]),
        [{"x": 5, "y": 6}] * 2,
    ),
    "values, with keys": lambda t: (
        t.insert().values([{"id": sa.bindparam("x")}, {"id": sa.bindparam("y")}]),
        [{"x": 15, "y": 16}, {"x": 25, "y": 26}],
    ),
    "values, with keys in SQL": lambda t: (
        t.insert().values(
            [{"id": sa.bindparam("x", type_=sa.Integer) + 1}, {"id": sa.bindparam("y", type_=sa.Integer) + 1}]
        ),
        [{"x": 15, "y": 16}, {"x": 25, "y": 26}],
    ),
}


@pytest.mark.parametrize("by", [Session.execute, lambda session, *args: session.connection().execute(*args)])
@pytest.mark.parametrize("name", SEVERAL_WITH_EACH)
def test_a_list_that_inserts_several_rows_with_each_is_recorded_or_noticed(
    base: Any, engine: sa.Engine, sessions: Maker, name: str, by: Any
) -> None:
    @sqlaudit.track_table()
    class Thing(base):
        __tablename__ = "things"

        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int | None]
        name: Mapped[str | None] = mapped_column(Name)

    begin(sessions, base, *(Thing(n=n, name="a") for n in (1, 2, 3)))
    statement, parameters = SEVERAL_WITH_EACH[name](Thing.__table__)
    seen = []
    for make in (sessionmaker(engine), sessions):
        with make() as session, warnings.catch_warnings(record=True) as noticed:
            warnings.simplefilter("always", sqlaudit.SQLAuditWarning)
            by(session, statement, parameters)
            seen.append(session.execute(sa.select(Thing.n, Thing.name).order_by(Thing.n, Thing.name)).all())
            if make is sessions:
                session.commit()
                check_history(session, Thing, all_recorded=not noticed)
                assert all("once for each parameter set" in str(each.message) for each in noticed)
    assert seen[1] == seen[0]
    assert len(seen[1]) > 4


@pytest.mark.requires("arrays")
@pytest.mark.parametrize("change", [sa.update, sa.delete])
def test_a_criterion_that_postgresql_refuses_is_not_said_to_be_the_historys_fault(
    base: Any, engine: sa.Engine, sessions: Maker, change: Any
) -> None:
    thing = _named_things(base, engine, sessions)
    statement = change(thing).where(thing.name == sa.cast(7, sa.Integer))
    with sessions() as session, pytest.raises(sa.exc.ProgrammingError, match="character varying = integer"):
        session.execute(statement.values(n=9) if change is sa.update else statement, execution_options=LATER)
