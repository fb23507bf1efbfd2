"""Sessions that travel: every statement is as of one instant, nothing is written, nothing is left behind."""

import asyncio
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from clock import START, Clock, at
from shop import (
    QUESTIONS,
    SECONDS,
    Address,
    Base,
    Customer,
    Line,
    Memo,
    Order,
    Tag,
    Visit,
    content,
    happen,  # noqa: F401  # what has happened when the tests begin
    tagging,
    tree,
    trees,
)
from sqlaudit import (
    QueryError,
    ReadOnlyError,
    SQLAuditConfig,
    SQLAuditWarning,
    TrackingError,
    as_of,
    as_of_column,
    between,
    history_of,
    time_travel,
    track_table,
)

TICK = timedelta(microseconds=1)


@pytest.fixture
def shop(happened: Any, clock: Any, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, on a database in which all has happened."""
    return sessions


@pytest.fixture
def trees_of_then(happened: Any) -> list[Any]:
    """What hung on all customers after each second."""
    return [answers["everything"] for answers in happened]


@pytest.fixture
def session(shop: sessionmaker[Session]) -> Iterator[Session]:
    """A session after all has happened."""
    with shop() as session:
        yield session


def names(session: Session) -> list[str]:
    return list(session.scalars(sa.select(Customer.name).order_by(Customer.id)))


# --- what is asked ----------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_is_the_one_of_then(shop, happened, question):
    ask, answers = QUESTIONS[question], [answers[question] for answers in happened]
    with shop() as session:
        for second in SECONDS:
            with time_travel(session, at(second)) as past:
                assert ask(past, sa.select) == answers[second], second
        assert ask(session, sa.select) == answers[-1]


def test_get_finds_the_row_of_then_and_only_that(session):
    with time_travel(session, at(3)) as past:
        bob = past.get(Customer, 2)
        assert bob is past.get_one(Customer, 2)
        assert (bob.name, [order.id for order in bob.orders]) == ("Bob", [3])
        assert past.get(Line, (3, 1)).product == "cup"
        assert past.get(Customer, 1, options=[orm.joinedload(Customer.team)]).team == []
        assert past.get(Customer, 3) is None
    with time_travel(session, at(4)) as past:
        assert past.get(Customer, 2) is None
        assert past.get(Customer, 3).name == "Cid"
        with pytest.raises(sa.exc.NoResultFound):
            past.get_one(Customer, 2)


def test_objects_of_the_session_are_the_same_however_they_are_found(session):
    with time_travel(session, at(3)) as past:
        ada = past.get(Customer, 1)
        assert ada is past.scalars(sa.select(Customer).where(Customer.id == 1)).one()
        assert past.get(Customer, 2).orders[0].customer is past.get(Customer, 2)
        assert ada.boss is past.get(Customer, 2)
        past.refresh(ada)
        past.expire_all()
        assert (ada.name, ada.boss.name) == ("Ada L.", "Bob")


def test_legacy_queries_are_of_then(session):
    with time_travel(session, at(0)) as past:
        query = past.query(Customer).options(orm.joinedload(Customer.orders)).order_by(Customer.id)
        assert [(each.name, each.orders[0].amount) for each in query] == [("Ada", 10), ("Bob", 20)]
        assert (query.count(), query.filter_by(name="Bob").one().id) == (2, 2)
        assert past.query(sa.func.max(Order.amount)).scalar() == 20
        assert past.query(past.query(Customer).filter_by(city="Rome").exists()).scalar()
        with pytest.raises(ReadOnlyError):
            past.query(Customer).delete()
        with pytest.raises(ReadOnlyError):
            past.query(Customer).update({"name": "Eve"})


def test_core_statements_are_of_then(session):
    customers, orders = Customer.__table__, Order.__table__
    with time_travel(session, at(0)) as past:
        assert past.scalars(sa.select(customers.c.name).order_by(customers.c.id)).all() == ["Ada", "Bob"]
        joined = sa.select(customers.c.name, sa.func.sum(orders.c.amount)).join_from(customers, orders)
        assert past.execute(joined.group_by(customers.c.name).order_by(customers.c.name)).all() == [
            ("Ada", 10),
            ("Bob", 20),
        ]
        union = sa.union_all(sa.select(customers.c.city), sa.select(Address.__table__.c.street))
        assert sorted(past.scalars(union)) == ["Home", "Oslo", "Rome", "Work"]
        assert len(past.execute(sa.select(tagging)).all()) == 3
        assert past.scalar(sa.select(sa.func.count()).select_from(Line)) == 3
        assert past.scalar(sa.select(sa.literal(7))) == 7
        assert past.scalar(sa.select(sa.exists(sa.select(Customer.id).where(Customer.name == "Bob")))) in (True, 1)


def test_lambda_statements_are_of_then(session):
    for second, name in ((0, "Ada"), (1, "Ada L.")):
        with time_travel(session, at(second)) as past:
            statement = sa.lambda_stmt(lambda: sa.select(Customer))
            statement += lambda statement: statement.where(Customer.id == 1)
            assert past.scalars(statement).one().name == name


def test_statements_of_another_instant_keep_it(session):
    with time_travel(session, at(3)) as past:
        before = as_of(Customer, at(0)).subquery()
        both = sa.select(Customer.name, before.c.name).join(before, before.c.id == Customer.id).order_by(Customer.id)
        assert past.execute(both).all() == [("Ada L.", "Ada"), ("Bob", "Bob")]


def test_versions_are_all_there_whenever_it_is(session):
    version = history_of(Customer)
    with time_travel(session, at(0)) as past:
        assert past.scalar(sa.select(sa.func.count()).select_from(version).where(version.id == 1)) == 6


def test_before_the_first_version_there_is_nothing(session):
    for when in (START - TICK, datetime.min.replace(tzinfo=UTC)):
        with time_travel(session, when) as past:
            assert past.scalars(sa.select(Customer)).all() == []
            assert past.get(Order, 1) is None
            assert past.scalar(sa.select(sa.func.count()).select_from(tagging)) == 0


def test_the_edges_belong_to_what_begins_there(session):
    for second, before, after in ((0, [], ["Ada", "Bob"]), (1, ["Ada", "Bob"], ["Ada L.", "Bob"])):
        for when, expected in ((at(second) - TICK, before), (at(second), after)):
            with time_travel(session, when) as past:
                assert names(past) == expected


# --- whom it is given -------------------------------------------------------------------------------------------


class OwnSession(Session):
    pass


@contextmanager
def engine_itself(engine: sa.Engine) -> Iterator[Any]:
    yield engine


@contextmanager
def connection(engine: sa.Engine) -> Iterator[Any]:
    with engine.connect() as connection:
        yield connection


@contextmanager
def session_without_hooks(engine: sa.Engine) -> Iterator[Any]:
    with Session(engine) as session:
        yield session


@contextmanager
def session_of_a_connection(engine: sa.Engine) -> Iterator[Any]:
    with engine.connect() as connection, Session(connection) as session:
        yield session


@contextmanager
def session_of_an_own_class(engine: sa.Engine) -> Iterator[Any]:
    with sessionmaker(engine, class_=OwnSession, autobegin=True, expire_on_commit=False)() as session:
        yield session


@contextmanager
def scoped(engine: sa.Engine) -> Iterator[Any]:
    session = orm.scoped_session(sessionmaker(engine))
    yield session
    session.remove()


@contextmanager
def session_with_binds(engine: sa.Engine) -> Iterator[Any]:
    with Session(binds={Base: engine}) as session:
        yield session


@contextmanager
def session_in_a_savepoint(engine: sa.Engine) -> Iterator[Any]:
    with Session(engine) as session, session.begin_nested():
        yield session


@contextmanager
def past_session(engine: sa.Engine) -> Iterator[Any]:
    with time_travel(engine, at(1)) as past:
        yield past


SOURCES = [
    engine_itself,
    connection,
    session_without_hooks,
    session_of_a_connection,
    session_of_an_own_class,
    scoped,
    session_with_binds,
    session_in_a_savepoint,
    past_session,
]


@pytest.mark.spread
@pytest.mark.parametrize("source", SOURCES)
def test_whoever_is_connected_can_travel(engine, trees_of_then, source):
    with source(engine) as given:
        for second in SECONDS:
            with time_travel(given, at(second)) as past:
                assert trees(past.scalars(sa.select(Customer))) == trees_of_then[second]
    assert engine.pool.checkedout() == 0


@pytest.mark.spread
@pytest.mark.parametrize("source", SOURCES)
def test_whatever_happens_no_connection_is_kept(engine, trees_of_then, source):
    def fail(given: Any) -> None:
        with time_travel(given, at(0)) as past:
            past.execute(sa.select(Customer))
            raise ZeroDivisionError

    with source(engine) as given, pytest.raises(ZeroDivisionError):
        fail(given)
    with source(engine) as given, time_travel(given, at(0)) as past:
        with pytest.raises(QueryError):
            past.execute(sa.select(Memo))
        assert len(names(past)) == 2
    assert engine.pool.checkedout() == 0


def test_a_stream_that_is_not_read_to_its_end_is_closed(engine, trees_of_then):
    with time_travel(engine, at(0)) as past:
        stream = past.scalars(sa.select(Line).execution_options(yield_per=1))
        assert next(stream).product in ("pen", "ink")
        stream.close()
    assert engine.pool.checkedout() == 0


def test_a_connection_is_as_it_was_afterwards(engine, trees_of_then):
    with engine.connect() as connection:
        with time_travel(connection, at(0)) as past:
            assert names(past) == ["Ada", "Bob"]
        assert not connection.closed
        assert not connection.in_transaction()
        with connection.begin():
            connection.execute(sa.insert(Address).values(id=9, street="new"))
            with time_travel(connection, at(0)) as past:
                assert names(past) == ["Ada", "Bob"]
            assert connection.in_transaction()
        assert connection.scalar(sa.select(Address.street).where(Address.id == 9)) == "new"


@pytest.mark.parametrize("source", [None, 5, "sqlite://", Session, sessionmaker()])
def test_what_is_not_connected_raises(source):
    with pytest.raises(QueryError, match="Give a session or an engine"):
        time_travel(source, START)


# --- nothing is written -----------------------------------------------------------------------------------------


def change(past: Session) -> None:
    past.get_one(Customer, 1).name = "Eve"
    past.flush()


def change_and_commit(past: Session) -> None:
    ada = past.get_one(Customer, 1)
    ada.name = "Eve"
    past.commit()


def add_a_child(past: Session) -> None:
    ada = past.get_one(Customer, 1)
    ada.orders.append(Order(id=9, amount=1))
    past.flush()


def empty_a_collection(past: Session) -> None:
    ada = past.get_one(Customer, 1)
    ada.tags.clear()
    past.flush()


def add_what_cascades(past: Session) -> None:
    past.get_one(Customer, 1).billing = Address(id=9, street="no")
    past.flush()


def begin_a_savepoint_with_a_change(past: Session) -> None:
    past.get_one(Customer, 1).name = "Eve"
    past.begin_nested()


def write_only(past: Session) -> None:
    past.get_one(Customer, 1).visits.add(Visit(id=9, text="no"))
    past.flush()


def merge_all(past: Session) -> None:
    getattr(past, "merge_all", past.merge)([Customer(id=1, name="Eve")])


WRITES: dict[str, Callable[[Session], Any]] = {
    "change": change,
    "change and commit": change_and_commit,
    "new child": add_a_child,
    "empty": empty_a_collection,
    "cascade": add_what_cascades,
    "savepoint": begin_a_savepoint_with_a_change,
    "write only": write_only,
    "add": lambda past: past.add(Customer(id=9, name="no")),
    "add all": lambda past: past.add_all([Customer(id=9, name="no")]),
    "delete": lambda past: past.delete(past.get_one(Customer, 1)),
    "merge": lambda past: past.merge(Customer(id=1, name="Eve")),
    "merge all": merge_all,
    "bulk save": lambda past: past.bulk_save_objects([Customer(id=9, name="no")]),
    "bulk insert": lambda past: past.bulk_insert_mappings(sa.inspect(Customer), [{"id": 9, "name": "no"}]),
    "bulk update": lambda past: past.bulk_update_mappings(sa.inspect(Customer), [{"id": 1, "name": "Eve"}]),
    "insert": lambda past: past.execute(sa.insert(Customer).values(id=9, name="no")),
    "insert many": lambda past: past.execute(sa.insert(Customer), [{"id": 9, "name": "no"}]),
    "insert returning": lambda past: past.scalars(sa.insert(Customer).returning(Customer), [{"id": 9, "name": "no"}]),
    "update": lambda past: past.execute(sa.update(Customer).values(name="Eve")),
    "update by key": lambda past: past.execute(sa.update(Customer), [{"id": 1, "name": "Eve"}]),
    "delete rows": lambda past: past.execute(sa.delete(Line)),
    "core insert": lambda past: past.execute(Address.__table__.insert().values(id=9, street="no")),
    "core update": lambda past: past.execute(Address.__table__.update().values(street="no")),
    "core delete": lambda past: past.execute(tagging.delete()),
    "untracked": lambda past: past.execute(sa.insert(Memo).values(id=9, customer_id=1, text="no")),
    "history": lambda past: past.execute(sa.delete(history_of(Customer))),
    "insert from select": lambda past: past.execute(
        sa.insert(Address).from_select(["id", "street"], sa.select(Customer.id + 10, Customer.name))
    ),
    "dml in a cte": lambda past: past.execute(sa.select(sa.delete(Line).returning(Line.number).cte())),
    "from statement": lambda past: past.scalars(
        sa.select(Customer).from_statement(sa.insert(Customer).values(id=9, name="no").returning(Customer))
    ),
    "create": lambda past: past.execute(
        sa.schema.CreateTable(sa.Table("new", sa.MetaData(), sa.Column("id", sa.Integer)))
    ),
    "drop": lambda past: past.execute(sa.schema.DropTable(Memo.__table__)),
    "ddl": lambda past: past.execute(sa.DDL("DROP TABLE memos")),
    "sequence": lambda past: past.scalar(sa.Sequence("memos_id_seq")),
}


@pytest.mark.spread
@pytest.mark.parametrize("write", WRITES)
def test_writes_of_every_kind_raise_and_change_nothing(session, write):
    before = content(session)
    with pytest.raises(ReadOnlyError), time_travel(session, at(0), untracked="live") as past:
        WRITES[write](past)
    session.commit()
    assert content(session) == before
    assert session.scalars(sa.select(Memo)).all() == []


def test_objects_of_the_past_change_nothing_through_the_session_of_the_present(session):
    before = content(session)
    with time_travel(session, at(0)) as past:
        ada = past.get_one(Customer, 1)
    ada.name = "Eve"
    session.add(ada)
    with pytest.raises(ReadOnlyError):
        session.commit()
    session.rollback()
    assert content(session) == before


def test_the_session_of_the_past_ends_no_transaction(session):
    session.add(Address(id=9, street="pending"))
    session.flush()
    transaction = session.get_transaction()
    with time_travel(session, at(0)) as past:
        for end in (past.commit, past.rollback, past.close, past.expunge_all):
            assert names(past) == ["Ada", "Bob"]
            end()
            assert session.get_transaction() is transaction
            assert session.in_transaction()
        with past.begin_nested():
            assert names(past) == ["Ada", "Bob"]
    assert session.get_one(Address, 9).street == "pending"
    session.rollback()
    assert session.get(Address, 9) is None


def test_there_is_no_way_round_by_the_connection(session):
    with time_travel(session, at(0)) as past:
        with pytest.raises(QueryError, match="reads live rows"):
            past.connection()
        with pytest.raises(QueryError, match="reads live rows"):
            past.connection(bind_arguments={"mapper": Customer})


# --- what cannot be turned to the past --------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize(
    "statement",
    [
        sa.text("SELECT name FROM customers"),
        sa.text("SELECT name FROM customers").columns(Customer.name),
        sa.select(Customer).from_statement(sa.text("SELECT * FROM customers")),
        sa.select(Customer.id).where(sa.text("id IN (SELECT customer_id FROM orders)")),
        sa.select(sa.text("(SELECT max(id) FROM customers)")),
        sa.select(sa.literal_column("(SELECT max(id) FROM customers)")),
        sa.select(sa.text("1")).select_from(sa.text("customers")),
        sa.select(Customer.id).order_by(sa.text("(SELECT 1 FROM orders)")),
        sa.select(sa.text("SELECT 1 AS n FROM customers").columns(sa.column("n")).subquery().c.n),
    ],
    ids=["text", "columns", "entities", "where", "column", "literal column", "from", "order", "subquery"],
)
def test_sql_that_is_written_by_hand_raises_if_it_reads(session, statement):
    with time_travel(session, at(0)) as past, pytest.raises(QueryError, match="Hand-written SQL"):
        past.execute(statement).all()


def test_sql_that_is_written_by_hand_is_run_if_allowed(session):
    with time_travel(session, at(0), text=True) as past:
        rows = past.execute(sa.text("SELECT name FROM customers ORDER BY id")).all()
        assert rows == [("live Ada L.",), ("live Cid",)]
        assert names(past) == ["Ada", "Bob"]


def test_fragments_that_read_no_table_are_allowed(session):
    with time_travel(session, at(0)) as past:
        fragments = sa.select(Customer.name).where(sa.text("city = :city")).order_by(sa.text("name"))
        assert past.scalars(fragments, {"city": "Rome"}).all() == ["Ada"]
        assert past.execute(sa.select(sa.literal_column("'x'"), Customer.id).where(Customer.id == 1)).all() == [
            ("x", 1)
        ]


UNTRACKED = {
    "model": sa.select(Memo),
    "column": sa.select(Memo.text),
    "table": sa.select(Memo.__table__),
    "join": sa.select(Customer).join(Memo, Memo.customer_id == Customer.id),
    "subquery": sa.select(Customer).where(Customer.id.in_(sa.select(Memo.customer_id))),
    "union": sa.union_all(sa.select(Memo.id), sa.select(Customer.id)),
    "other table object": sa.select(sa.table("customers", sa.column("id"))),
}


@pytest.mark.spread
@pytest.mark.parametrize("statement", UNTRACKED)
def test_tables_without_history_raise(session, statement):
    with time_travel(session, at(0)) as past, pytest.raises(QueryError, match="has no history"):
        past.execute(UNTRACKED[statement]).all()


def test_tables_without_history_are_read_live_if_allowed(session):
    session.add(Memo(id=1, customer_id=1, text="now"))
    session.commit()
    with time_travel(session, at(0), untracked="live") as past:
        memo = past.scalars(sa.select(Memo)).one()
        assert (memo.text, memo.customer.name) == ("now", "Ada")
        assert past.get(Memo, 1) is memo
        joined = sa.select(Memo.text, Customer.name).join(Memo.customer)
        assert past.execute(joined).all() == [("now", "Ada")]


def test_a_tracked_table_by_another_table_object_raises_even_if_untracked_ones_are_read_live(session):
    with time_travel(session, at(0), untracked="live") as past:
        for table in (
            sa.table("customers", sa.column("id")),
            sa.Table("customers", sa.MetaData(), sa.Column("id", sa.Integer)),
        ):
            with pytest.raises(QueryError, match="uses another Table object than the model"):
                past.execute(sa.select(table.c.id))


def test_an_untracked_table_may_have_the_name_of_a_tracked_one_elsewhere(base, engine, session):
    @track_table()
    class Memo(base):
        __tablename__ = "memos"
        id: Mapped[int] = mapped_column(primary_key=True)

    with time_travel(session, at(0), untracked="live") as past:
        assert past.scalars(sa.select(Base.metadata.tables["memos"].c.text)).all() == []


def test_an_unknown_word_for_untracked_raises(engine):
    with pytest.raises(QueryError, match="untracked"):
        time_travel(engine, START, untracked="ignore")


# --- beside each other ------------------------------------------------------------------------------------------


def test_travels_nest(session, trees_of_then):
    with time_travel(session, at(3)) as later:
        ada = later.get_one(Customer, 1)
        with time_travel(later, at(0)) as earlier:
            assert names(earlier) == ["Ada", "Bob"]
            assert earlier.get_one(Customer, 1).orders[0].amount == 10
            assert ada.orders[0].amount == 11
            with time_travel(session, at(5)) as now:
                assert trees(now.scalars(sa.select(Customer))) == trees_of_then[5]
        assert ada.boss.name == "Bob"
        assert names(later) == ["Ada L.", "Bob"]


def test_two_travels_at_once_do_not_mix(session, trees_of_then):
    with time_travel(session, at(0)) as one, time_travel(session, at(3)) as two, time_travel(session, at(0)) as same:
        found = {past: past.scalars(sa.select(Customer).order_by(Customer.id)).all() for past in (one, two, same)}
        assert trees(found[two]) == trees_of_then[3]
        assert trees(found[one]) == trees(found[same]) == trees_of_then[0]
        assert found[one][0] is not found[same][0]
        assert tree(session.get_one(Customer, 1)) == trees_of_then[5][0]


def test_an_as_of_of_the_present_session_goes_on_beside(session):
    with time_travel(session, at(0)) as past:
        assert session.scalars(as_of(Customer, at(3)).where(Customer.id == 1)).one().name == "Ada L."
        assert names(past) == ["Ada", "Bob"]
        assert names(session) == ["live Ada L.", "live Cid"]


@pytest.mark.parametrize("shared", ["engine", "maker"])
def test_threads_travel_each_to_their_own_instant(engine, shop, trees_of_then, shared):
    found: dict[int, list[Any]] = {second: [] for second in SECONDS}
    start = threading.Barrier(len(SECONDS))

    def travel(second: int) -> None:
        start.wait()
        for _ in range(5):
            source = engine if shared == "engine" else shop()
            with time_travel(source, at(second)) as past:
                found[second].append(trees(past.scalars(sa.select(Customer))))
            if source is not engine:
                source.close()

    threads = [threading.Thread(target=travel, args=(second,)) for second in SECONDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {second: [trees_of_then[second]] * 5 for second in SECONDS}
    assert engine.pool.checkedout() == 0


# --- its end ----------------------------------------------------------------------------------------------------


def test_after_the_end_nothing_is_read(session):
    with time_travel(session, at(0)) as past:
        ada = past.get_one(Customer, 1)
        _ = ada.orders
    assert (ada.name, ada.orders[0].amount) == ("Ada", 10)
    for obj, name in ((ada, "tags"), (ada.orders[0], "lines")):
        with pytest.raises(orm.exc.DetachedInstanceError):
            getattr(obj, name)
    for read in (
        partial(past.execute, sa.select(Customer)),
        partial(past.get, Customer, 1),
        partial(past.scalar, sa.select(sa.func.count(Customer.id))),
        past.query(Customer).all,
    ):
        with pytest.raises(QueryError, match=r"block of time_travel\(\) has ended"):
            read()


def test_the_session_of_the_present_is_as_it_was(session):
    live = session.get_one(Customer, 1)
    known = set(session.identity_map)
    with time_travel(session, at(0)) as past:
        trees(past.scalars(sa.select(Customer)))
        assert sa.inspect(live).expired_attributes == set()
    assert set(session.identity_map) == known
    assert live.name == "live Ada L."
    live.name = "Mia"
    session.commit()
    assert sqlaudit.versions_of(session, Customer, 1)[-1].name == "Mia"


def test_pending_changes_are_flushed_before_the_past_is_read(session):
    with time_travel(session, at(0)) as past:
        session.get_one(Customer, 1).name = "Mia"
        session.add(Customer(id=9, name="Neo"))
        assert names(past) == ["Ada", "Bob"]
        assert not session.dirty
        assert not session.new
    session.commit()
    assert names(session) == ["Mia", "live Cid", "Neo"]


def test_without_autoflush_pending_changes_stay(session):
    with time_travel(session, at(0)) as past:
        session.get_one(Customer, 1).name = "Mia"
        with session.no_autoflush:
            assert names(past) == ["Ada", "Bob"]
        assert session.dirty


def test_what_the_transaction_itself_wrote_is_of_its_instant(session):
    session.get_one(Customer, 1).name = "Mia"
    session.flush()
    for when, name in ((at(6) - TICK, "live Ada L."), (at(6), "Mia")):
        with time_travel(session, when) as past:
            assert past.get_one(Customer, 1).name == name
    session.rollback()
    with time_travel(session, at(6)) as past:
        assert past.get_one(Customer, 1).name == "live Ada L."


def test_a_rollback_of_the_present_ends_no_travel(session):
    with time_travel(session, at(0)) as past:
        ada = past.get_one(Customer, 1)
        session.get_one(Customer, 1).name = "Mia"
        session.rollback()
        assert (ada.name, [order.amount for order in ada.orders]) == ("Ada", [10])
        session.commit()
        assert [tag.label for tag in sorted(ada.tags, key=lambda tag: tag.id)] == ["vip", "new"]


# --- instants ---------------------------------------------------------------------------------------------------


def changeset_of_second(session: Session, second: int) -> UUID:
    """Return the id of the changeset of a second, by a model that was changed then."""
    for model in (Customer, Order, Tag):
        table = sqlaudit.tracking.tables.tracked_table(model.__table__)
        found = session.scalars(
            sa.select(table.role("changeset_id")).where(table.valid_from == at(second)).limit(1)
        ).first()
        if found is not None:
            return found
    raise AssertionError(f"nothing happened in second {second}")


@pytest.mark.spread
def test_a_changeset_id_is_the_instant_of_its_changeset(session, trees_of_then):
    for second in SECONDS:
        changeset = changeset_of_second(session, second)
        for when in (changeset, UUID(str(changeset))):
            with time_travel(session, when) as past:
                assert trees(past.scalars(sa.select(Customer))) == trees_of_then[second]
            assert trees(session.scalars(as_of(Customer, when))) == trees_of_then[second]
        with time_travel(session, changeset) as past:  # which changed no address in the seconds 1, 2 and 4
            streets = past.scalars(sa.select(Address.street).order_by(Address.id)).all()
        with time_travel(session, at(second)) as past:
            assert past.scalars(sa.select(Address.street).order_by(Address.id)).all() == streets
        with time_travel(session, changeset) as past:
            ada = session.scalars(Customer.as_of(changeset).where(Customer.id == 1)).one()
            assert past.get_one(Customer, 1).name == ada.name


def test_a_changeset_id_and_its_instant_give_the_same_object(session):
    changeset = changeset_of_second(session, 1)
    by_id = session.scalars(as_of(Customer, changeset).where(Customer.id == 1)).one()
    assert session.scalars(as_of(Customer, at(1)).where(Customer.id == 1)).one() is by_id


def test_the_text_of_a_changeset_id_gives_what_the_id_gives(session):
    changeset = changeset_of_second(session, 1)
    by_id = session.scalars(as_of(Customer, changeset).where(Customer.id == 1)).one()
    for text in (str(changeset), changeset.hex):
        assert session.scalars(as_of(Customer, text).where(Customer.id == 1)).one() is by_id
        assert session.scalars(Customer.as_of(text).where(Customer.id == 1)).one() is by_id
        with time_travel(session, text) as past:
            assert past.get_one(Customer, 1).name == by_id.name


@pytest.mark.parametrize("text", ["2024-01-01T00:00:00+00:00", "", "no"])
def test_a_text_that_is_no_changeset_id_raises(session, text):
    for read in (lambda: as_of(Customer, text), lambda: Customer.as_of(text), lambda: time_travel(session, text)):
        with pytest.raises(QueryError, match=r"Give an aware datetime, .* the UUID .* mark_named"):
            read()


def test_an_unknown_changeset_id_raises(session):
    with time_travel(session, uuid4()) as past, pytest.raises(QueryError, match="changeset"):
        past.execute(sa.select(Customer))
    with pytest.raises(QueryError, match="changeset"):
        session.execute(as_of(Customer, uuid4()))


def test_the_future_is_the_present_with_a_warning(session, trees_of_then):
    for when in (datetime.now(UTC) + timedelta(days=1), datetime.max.replace(tzinfo=UTC)):
        with pytest.warns(SQLAuditWarning, match="in the future") as warned:
            travel = time_travel(session, when)
        assert warned[0].filename == __file__
        with travel as past:
            assert trees(past.scalars(sa.select(Customer))) == trees_of_then[-1]


def test_a_naive_datetime_is_local_time_with_a_warning(session, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        with pytest.warns(SQLAuditWarning, match="local time"):
            travel = time_travel(session, at(1).astimezone().replace(tzinfo=None))
        with travel as past:
            assert names(past) == ["Ada L.", "Bob"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_aware_datetime_does_not_warn(session):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with time_travel(session, at(0)) as past:
            names(past)


@pytest.mark.spread
@pytest.mark.parametrize("when", ["2024-01-01", 5, None, START.date()])
def test_what_is_no_instant_raises(engine, when):
    with pytest.raises(QueryError, match=r"(not|neither) a datetime"):
        time_travel(engine, when)


@pytest.mark.spread
@pytest.mark.parametrize("question", ["joinedload", "lazyload", "selectinload", "cte", "has_and_any", "many_to_many"])
def test_statements_are_compiled_once_for_all_instants(engine, session, question):
    for second in (3, 0):
        with time_travel(session, at(second)) as past:
            QUESTIONS[question](past, sa.select)
        QUESTIONS[question](session, partial(as_of, when=at(second)))
    compiled = set(engine._compiled_cache)
    for second in SECONDS[1:]:
        with time_travel(session, at(second) + TICK) as past:
            QUESTIONS[question](past, sa.select)
        QUESTIONS[question](session, partial(as_of, when=at(second) + TICK))
    assert set(engine._compiled_cache) == compiled


def test_the_compiled_statements_of_the_present_stay_those_of_the_present(session):
    statement = sa.select(Customer.name).order_by(Customer.id)
    for _ in range(2):
        assert session.scalars(statement).all() == ["live Ada L.", "live Cid"]
        with time_travel(session, at(0)) as past:
            assert past.scalars(statement).all() == ["Ada", "Bob"]


# --- async ------------------------------------------------------------------------------------------------------


@pytest.fixture
def async_shop(session, async_engine) -> async_sessionmaker[Any]:
    session.commit()
    return async_sessionmaker(async_engine)


async def read_async(past: AsyncSession) -> tuple[Any, ...]:
    ada = await past.get_one(Customer, 1, options=[orm.selectinload(Customer.orders)])
    team = await ada.awaitable_attrs.team
    boss = await ada.awaitable_attrs.boss
    visits = (await past.scalars(ada.visits.select().order_by(Visit.id))).all()
    streamed = [each.name async for each in await past.stream_scalars(sa.select(Customer).order_by(Customer.id))]
    return (
        (ada.name, sorted(order.amount for order in ada.orders)),
        ([each.name for each in team], boss and boss.name),
        [visit.text for visit in visits],
        streamed,
    )


ASYNC_THEN = {
    0: (("Ada", [10]), (["Bob"], None), ["visits 1"], ["Ada", "Bob"]),
    3: (("Ada L.", [11, 20]), ([], "Bob"), ["again", "visits 2"], ["Ada L.", "Bob"]),
}


@pytest.mark.parametrize("source", ["session", "scoped", "engine", "connection"])
def test_async_sources_travel(async_shop, async_engine, source):
    async def travel() -> dict[int, Any]:
        found = {}
        for second in ASYNC_THEN:
            async with async_engine.connect() as connection, async_shop() as session:
                scoped = async_scoped_session(async_shop, asyncio.current_task)
                given = {"session": session, "scoped": scoped, "engine": async_engine, "connection": connection}[source]
                async with time_travel(given, at(second)) as past:
                    found[second] = await read_async(past)
                await scoped.remove()
        return found

    assert asyncio.run(travel()) == ASYNC_THEN


def test_tasks_travel_each_to_their_own_instant(async_shop, async_engine):
    async def travel(second: int) -> Any:
        async with time_travel(async_engine, at(second)) as past:
            await asyncio.sleep(0)
            return await read_async(past)

    async def travel_together() -> list[Any]:
        return await asyncio.gather(*(travel(second) for second in (0, 3, 0, 3)))

    assert asyncio.run(travel_together()) == [ASYNC_THEN[second] for second in (0, 3, 0, 3)]


def test_async_writes_raise(async_shop):
    async def change() -> None:
        async with async_shop() as session, time_travel(session, at(0)) as past:
            (await past.get_one(Customer, 1)).name = "Eve"
            await past.commit()

    async def add() -> None:
        async with async_shop() as session, time_travel(session, at(0)) as past:
            past.add(Customer(id=9, name="no"))

    async def update() -> None:
        async with async_shop() as session, time_travel(session, at(0)) as past:
            await past.execute(sa.update(Customer).values(name="Eve"))

    for write in (change, add, update):
        with pytest.raises(ReadOnlyError):
            asyncio.run(write())


def test_async_travels_end(async_shop):
    async def read_on() -> None:
        async with async_shop() as session:
            async with time_travel(session, at(0)) as past:
                ada = await past.get_one(Customer, 1)
            assert ada.name == "Ada"
            with pytest.raises(orm.exc.DetachedInstanceError):
                await ada.awaitable_attrs.orders
            with pytest.raises(QueryError, match=r"block of time_travel\(\) has ended"):
                await past.execute(sa.select(Customer))
            assert (await session.get_one(Customer, 1)).name == "live Ada L."

    asyncio.run(read_on())


def test_the_wrong_kind_of_with_raises(engine, async_shop, async_engine):
    async def travel() -> None:
        with pytest.raises(QueryError, match="async with"), time_travel(async_engine, at(0)):
            pass
        with pytest.raises(QueryError, match="without async"):
            async with time_travel(engine, at(0)):
                pass

    asyncio.run(travel())


# --- temporal joins ---------------------------------------------------------------------------------------------


class Utc(sa.TypeDecorator[datetime]):
    """A type of the user's own."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True


def invoices(base: Any) -> tuple[Any, Any]:
    @track_table()
    class Account(base):
        __tablename__ = "account"
        bank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        owner: Mapped[str] = mapped_column(sa.String(50))

    class Invoice(base):
        __tablename__ = "invoice"
        id: Mapped[int] = mapped_column(primary_key=True)
        bank: Mapped[int]
        number: Mapped[int]
        aware: Mapped[datetime] = mapped_column(sqlaudit.period.UTCDateTime())
        naive: Mapped[datetime] = mapped_column(
            sa.DateTime().with_variant(sa.dialects.mysql.DATETIME(fsp=6), "mysql", "mariadb")
        )
        day: Mapped[Any] = mapped_column(sa.Date)

    return Account, Invoice


@pytest.fixture
def billed(base, engine) -> Iterator[tuple[Session, Any, Any]]:
    """An account that was Ann's on the 1st, Bob's from the 2nd at noon, gone on the 3rd; an invoice each half day."""
    account, invoice = invoices(base)
    base.metadata.create_all(engine)
    days = iter([START, START + timedelta(days=1, hours=12), START + timedelta(days=2)])
    maker = sessionmaker(engine)
    sqlaudit.register_hooks(maker)
    sqlaudit.set_config(SQLAuditConfig(clock=lambda: next(days)))
    with maker() as session:
        session.add(account(bank=1, number=1, owner="Ann"))
        session.commit()
        session.get_one(account, (1, 1)).owner = "Bob"
        session.commit()
        session.delete(session.get_one(account, (1, 1)))
        session.commit()
        for half in range(-1, 6):
            then = START + timedelta(hours=12 * half)
            naive = then.replace(tzinfo=None)
            session.add(invoice(id=half + 2, bank=1, number=1, aware=then, naive=naive, day=naive.date()))
        session.commit()
        yield session, account, invoice
    sqlaudit.unregister_hooks(maker)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("aware", [None, "Ann", "Ann", "Ann", "Bob", None, None]),
        ("naive", [None, "Ann", "Ann", "Ann", "Bob", None, None]),
        ("day", [None, "Ann", "Ann", "Ann", "Ann", None, None]),
    ],
)
def test_a_temporal_join_gives_each_row_what_was_true_at_its_time(billed, column, expected):
    session, account, invoice = billed
    version, valid = as_of_column(account, getattr(invoice, column))
    on = sa.and_(version.bank == invoice.bank, version.number == invoice.number, valid)
    outer = sa.select(invoice.id, version.owner).outerjoin(version, on).order_by(invoice.id)
    assert [owner for _, owner in session.execute(outer)] == expected
    inner = sa.select(invoice, version).join(version, on).order_by(invoice.id)
    found = session.execute(inner).all()
    assert [version.owner for _, version in found] == [owner for owner in expected if owner]
    assert {type(version) for _, version in found} == {history_of(account)}
    optional = sa.select(version).select_from(invoice).outerjoin(version, on).order_by(invoice.id)
    assert [version and version.owner for version in session.scalars(optional)] == expected


def test_a_temporal_join_may_use_an_alias_and_an_aggregate(billed):
    session, account, invoice = billed
    other = orm.aliased(invoice)
    version, valid = as_of_column(account, other.aware)
    counted = (
        sa.select(version.owner, sa.func.count())
        .select_from(other)
        .join(version, (version.number == other.number) & valid)
        .group_by(version.owner)
        .order_by(version.owner)
    )
    assert session.execute(counted).all() == [("Ann", 3), ("Bob", 1)]


@pytest.mark.parametrize("column", [Customer.name, Customer.id, START, "issued_at", None])
def test_a_temporal_join_by_what_is_no_time_raises(column):
    with pytest.raises(QueryError, match="not a column of dates"):
        as_of_column(Customer, column)


def test_a_temporal_join_to_an_untracked_model_raises():
    with pytest.raises(TrackingError, match="Memo"):
        as_of_column(Memo, history_of(Customer).valid_from)


def test_a_temporal_join_to_a_joined_hierarchy_has_the_columns_of_every_level(base, engine):
    @track_table()
    class Person(base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20))
        name: Mapped[str] = mapped_column(sa.String(50))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Employee(Person):
        __tablename__ = "employee"
        id: Mapped[int] = mapped_column(sa.ForeignKey("person.id"), primary_key=True)
        salary: Mapped[int]
        __mapper_args__ = {"polymorphic_identity": "employee"}

    class Payment(base):
        __tablename__ = "payment"
        id: Mapped[int] = mapped_column(primary_key=True)
        employee_id: Mapped[int]
        at: Mapped[datetime] = mapped_column(sqlaudit.period.UTCDateTime())

    base.metadata.create_all(engine)
    maker = sessionmaker(engine)
    sqlaudit.register_hooks(maker)
    sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
    with maker() as session:
        session.add(Employee(id=1, name="a", salary=10))
        session.commit()
        session.get_one(Employee, 1).salary = 20
        session.commit()
        session.get_one(Employee, 1).name = "b"
        session.commit()
        session.add_all(Payment(id=second + 1, employee_id=1, at=at(second)) for second in range(3))
        session.commit()
        for model in (Employee, Person):
            version, valid = as_of_column(model, Payment.at)
            joined = sa.select(version).select_from(Payment).join(version, (version.id == Payment.employee_id) & valid)
            found = session.scalars(joined.order_by(Payment.id)).all()
            assert [(each.name, each.salary) for each in found] == [("a", 10), ("a", 20), ("b", 20)]
    sqlaudit.unregister_hooks(maker)


# --- ranges -----------------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (at(-1), at(0), []),
        (at(-1), at(0) + TICK, ["Ada"]),
        (at(0), at(1), ["Ada"]),
        (at(0), at(1) + TICK, ["Ada", "Ada L."]),
        (at(1) - TICK, at(1), ["Ada"]),
        (at(1), at(1) + TICK, ["Ada L."]),
        (at(1), at(1), []),
        (at(1) + TICK, at(1) + TICK, []),
        (at(4) - TICK, at(4), ["Ada L."]),
        (at(4), at(99), ["Ada L.", "live Ada L."]),
        (datetime.min.replace(tzinfo=UTC), START, []),
        (at(5), datetime.max.replace(tzinfo=UTC), ["live Ada L."]),
    ],
)
def test_a_range_has_the_versions_that_overlap_it(session, start, end, expected):
    version = history_of(Customer)
    found = session.scalars(between(Customer, start, end).where(version.id == 1)).all()
    assert [each.name for each in found] == expected
    assert found == session.scalars(Customer.between(start, end).where(version.id == 1)).all()


def test_a_range_has_deleted_rows_but_no_tombstones(session):
    version = history_of(Customer)
    found = session.scalars(between(Customer, at(3), at(9)).where(version.id == 2)).all()
    assert [(each.name, each.valid_to) for each in found] == [("Bob", at(4))]
    assert session.scalars(between(Customer, at(4), at(9)).where(version.id == 2)).all() == []
    assert [str(each.audit_operation) for each in session.scalars(Customer.all_versions().where(version.id == 2))] == [
        "insert",
        "update",
        "delete",
    ]


def test_a_range_that_ends_before_it_begins_raises():
    with pytest.raises(QueryError, match="Give the earlier instant first"):
        between(Customer, at(1), at(0))


@pytest.mark.parametrize("edge", ["2024-01-01", None, START.date()])
def test_a_range_of_what_is_no_datetime_raises(edge):
    with pytest.raises(QueryError, match="not a datetime"):
        between(Customer, edge, at(1))
    with pytest.raises(QueryError, match="not a datetime"):
        between(Customer, at(0), edge)


def test_a_range_of_naive_datetimes_warns():
    with pytest.warns(SQLAuditWarning, match="local time"):
        between(Customer, datetime(2024, 1, 1), at(1))  # noqa: DTZ001  # what is tested


def test_ranges_and_versions_of_untracked_models_raise():
    for ask in (lambda: between(Memo, at(0), at(1)), lambda: sqlaudit.all_versions(Memo)):
        with pytest.raises(TrackingError, match="Memo"):
            ask()


def test_a_column_that_cannot_be_grouped_by_is_counted_in_groups_by_key(base, engine, sessions, clock):
    @track_table()
    class Note(base):
        __tablename__ = "travel_notes"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        title: orm.Mapped[str] = orm.mapped_column(sa.String(20))
        data: orm.Mapped[dict[str, int] | None] = orm.mapped_column(sa.JSON)

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Note(id=1, title="then", data={"a": 1}))
    with sessions.begin() as session:
        session.get_one(Note, 1).title = "now"
    with sessions() as session, time_travel(session, at(0)) as past:
        statement = sa.select(Note.title, sa.func.count(Note.data)).group_by(Note.id)
        assert past.execute(statement).all() == [("then", 1)]


def test_versions_are_grouped_by_the_key_of_their_row(session):
    history = sqlaudit.history_of(Customer)
    statement = sa.select(history.id, sa.func.max(history.audit_version)).group_by(history.id).order_by(history.id)
    with time_travel(session, at(0)) as past:
        assert past.execute(statement).all() == session.execute(statement).all()


def test_a_session_of_the_past_makes_the_queries_of_its_source(shop):
    class Queries(orm.Query):
        def of_rome(self):
            return self.filter(Customer.city == "Rome")

    with shop(query_cls=Queries) as session, time_travel(session, at(0)) as past:
        assert [customer.name for customer in past.query(Customer).of_rome()] == ["Ada"]


def test_a_past_session_has_the_info_of_its_source_and_nothing_of_the_hooks(shop):
    with shop(info={"tenant": 1}) as session:
        session.add(Tag(id=9, label="new"))
        session.flush()
        with time_travel(session, at(0)) as past:
            assert past.info == {"tenant": 1}
