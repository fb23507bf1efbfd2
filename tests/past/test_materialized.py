"""Sessions that travel with copies: the same answers as from history, each table copied once, nothing left behind."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from clock import at
from counting import counted
from shop import (
    QUESTIONS,
    SECONDS,
    Base,
    Customer,
    Line,
    Memo,
    Order,
    Tag,
    happen,  # noqa: F401  # what has happened when the tests begin
)
from sqlaudit import HistoryTableError, QueryError, as_of, time_travel
from sqlaudit.past.rendering import Instant, past_statement

CREATE = "CREATE TEMPORARY TABLE"
THEN = {0: ["Ada", "Bob"], 3: ["Ada L.", "Bob"]}
NAMES = sa.select(Customer.name).order_by(Customer.id)


@pytest.fixture
def session(happened: Any, clock: Any, sessions: sessionmaker[Session]) -> Iterator[Session]:
    """A session after all has happened."""
    with sessions() as session:
        yield session


def copies_in(statements: list[str]) -> list[str]:
    """Return the names of the copies that are created."""
    created = [statement for statement in statements if statement.startswith(CREATE)]
    return [re.search(r"sqlaudit_past_\d+_\w+", statement)[0] for statement in created]


def tables_of(names: list[str]) -> list[str]:
    return [re.sub(r"sqlaudit_past_\d+_", "", name) for name in names]


def exists(session: Session, name: str) -> bool:
    try:
        with session.begin_nested():
            session.connection().exec_driver_sql(f"SELECT 1 FROM {name}").close()  # noqa: S608  # a name of ours
    except sa.exc.DBAPIError:
        return False
    return True


# --- answers ----------------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_is_the_one_of_then(session, happened, question):
    ask, answers = QUESTIONS[question], [answers[question] for answers in happened]
    for second in SECONDS:
        with time_travel(session, at(second), materialize=True) as past:
            assert [ask(past, sa.select), ask(past, sa.select)] == [answers[second]] * 2, second
    assert ask(session, sa.select) == answers[-1]


def test_blocks_inside_each_other_read_each_their_own_instant(session):
    with (
        time_travel(session, at(0), materialize=True) as first,
        time_travel(session, at(3), materialize=True) as second,
    ):
        for _ in range(2):
            assert (first.scalars(NAMES).all(), second.scalars(NAMES).all()) == (THEN[0], THEN[3])
        assert session.scalars(NAMES).all() == ["live Ada L.", "live Cid"]


def test_another_instant_inside_is_read_from_history(session):
    then = as_of(Customer, at(3)).subquery()
    both = sa.select(Customer.name, then.c.name).join(then, then.c.id == Customer.id).order_by(Customer.id)
    with time_travel(session, at(0), materialize=True) as past:
        assert past.execute(both).all() == list(zip(THEN[0], THEN[3], strict=True))
        other = past.scalars(as_of(Customer, at(3)).order_by(Customer.id)).all()
        assert [customer.name for customer in other] == THEN[3]
        assert past.scalars(NAMES).all() == THEN[0]


def test_tables_without_history_are_read_live(session):
    with time_travel(session, at(0), materialize=True, untracked="live") as past:
        memos = past.scalars(sa.select(Memo.text).join(Memo.customer).order_by(Memo.id)).all()
    with time_travel(session, at(0), untracked="live") as past:
        assert memos == past.scalars(sa.select(Memo.text).join(Memo.customer).order_by(Memo.id)).all()


def test_what_the_session_writes_meanwhile_is_not_read(session):
    with time_travel(session, at(3), materialize=True) as past:
        assert past.scalars(NAMES).all() == THEN[3]
        session.add(Customer(id=9, name="Dan"))
        session.flush()
        assert past.scalars(NAMES).all() == THEN[3]


# --- copies -----------------------------------------------------------------------------------------------------


def test_each_table_is_copied_once_when_it_is_first_read(engine, session):
    with time_travel(session, at(3), materialize=True) as past:
        with counted(engine) as statements:
            past.scalars(NAMES).all()
        assert tables_of(copies_in(statements)) == ["customers"]
        with counted(engine) as statements:
            past.scalars(sa.select(Customer).options(orm.joinedload(Customer.orders))).unique().all()
        assert tables_of(copies_in(statements)) == ["orders"]
        with counted(engine) as statements:
            past.scalars(sa.select(Customer).join(Customer.orders)).all()
            past.scalars(NAMES).all()
        assert len(statements) == 2


def test_a_read_by_key_copies_nothing(engine, session):
    with counted(engine) as statements, time_travel(session, at(3), materialize=True) as past:
        line = past.get(Line, (3, 1))
        assert (line.product, line.order.amount, past.get(Tag, 99)) == ("cup", 5, None)
    assert not [statement for statement in statements if "sqlaudit_past_" in statement]


def test_a_session_without_the_option_copies_nothing(engine, session):
    with counted(engine) as statements, time_travel(session, at(3)) as past:
        past.scalars(NAMES).all()
    assert not [statement for statement in statements if "sqlaudit_past_" in statement]


def test_a_copy_has_the_keys_of_the_table(engine, session):
    with counted(engine) as statements, time_travel(session, at(3), materialize=True) as past:
        past.scalars(sa.select(Line.product)).all()
        past.scalars(sa.select(Order.amount)).all()
    made = " ".join(statements)
    assert re.search(r"(PRIMARY KEY|UNIQUE INDEX .*lines_0 ON .*lines) \(order_id, number\)", made)
    assert re.search(r"(INDEX|_orders_1 ON .*_orders) \(customer_id\)", made)


def test_the_next_session_uses_the_compiled_statements_of_the_last(engine, session):
    def read(second: int) -> None:
        with time_travel(session, at(second), materialize=True) as past:
            past.scalars(NAMES).all()
            past.scalars(sa.select(Customer).options(orm.selectinload(Customer.orders))).all()

    read(0)
    compiled = set(engine._compiled_cache)
    read(3)
    assert set(engine._compiled_cache) == compiled


def test_mysql_reads_a_copy_in_one_place_of_a_statement(happened):
    customers = Customer.__table__
    boss = customers.alias("boss")
    statement = sa.select(customers.c.name, boss.c.name).join(boss, boss.c.id == customers.c.boss_id)
    ready = past_statement(statement, Instant(at(0)), slot=1)
    assert str(ready.compile(dialect=mysql.dialect())).count("sqlaudit_past_1_customers") == 1
    assert str(ready.compile()).count("sqlaudit_past_1_customers") == 2


# --- transactions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["commit", "rollback", "close"])
def test_the_copy_is_made_anew_in_the_next_transaction(engine, session, ending):
    with time_travel(session, at(3), materialize=True) as past:
        assert past.scalars(NAMES).all() == THEN[3]
        getattr(session, ending)()
        with counted(engine) as statements:
            assert past.scalars(NAMES).all() == THEN[3]
        assert tables_of(copies_in(statements)) == ["customers"]
        assert past.scalars(NAMES).all() == THEN[3]


def test_the_answer_is_the_same_after_a_savepoint_is_rolled_back(session):
    with time_travel(session, at(3), materialize=True) as past:
        tags = past.scalars(sa.select(Tag.label).order_by(Tag.id)).all()
        savepoint = session.begin_nested()
        assert past.scalars(NAMES).all() == THEN[3]
        savepoint.rollback()
        assert past.scalars(NAMES).all() == THEN[3]
        assert past.scalars(sa.select(Tag.label).order_by(Tag.id)).all() == tags


def test_the_copy_stays_after_a_savepoint_is_released(engine, session):
    with time_travel(session, at(3), materialize=True) as past:
        with session.begin_nested():
            past.scalars(NAMES).all()
        with counted(engine) as statements:
            assert past.scalars(NAMES).all() == THEN[3]
        assert len(statements) == 1


@pytest.mark.parametrize("ending", ["end", "error", "failed statement", "commit", "rollback"])
def test_no_copy_is_left_behind(engine, session, ending):
    copies: list[str] = []
    try:
        with counted(engine) as statements, time_travel(session, at(3), materialize=True) as past:
            past.scalars(NAMES).all()
            copies += copies_in(statements)
            if ending == "error":
                raise ZeroDivisionError
            if ending == "failed statement":
                past.scalars(sa.select(sa.column("nothing")).select_from(Customer))
            if ending in ("commit", "rollback"):
                getattr(session, ending)()
    except (ZeroDivisionError, sa.exc.DBAPIError):
        if ending == "failed statement":
            session.rollback()
    [copy] = copies
    assert not exists(session, copy)
    session.rollback()
    assert not exists(session, copy)


def test_no_copy_is_left_behind_where_the_driver_begins_transactions_late():
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    for _ in range(2):
        with time_travel(engine, at(3), materialize=True) as past:
            assert past.scalars(NAMES).all() == []
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT name FROM sqlite_temp_master").all() == []
    engine.dispose()


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")  # as without copies
@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "after"])
def test_an_open_result_does_not_undo_what_is_committed(session, is_inside):
    with time_travel(session, at(3), materialize=True) as past:
        session.add(Tag(id=99, label="new"))
        session.flush()
        result = past.execute(NAMES, execution_options={"yield_per": 1})
        assert result.fetchone() == ("Ada L.",)
        if is_inside:
            session.commit()
    session.commit()
    result.close()
    assert session.get(Tag, 99).label == "new"
    with time_travel(session, at(3), materialize=True) as past:
        assert past.scalars(NAMES).all() == THEN[3]


def test_an_engine_that_commits_each_statement_can_have_copies(engine, session):
    session.commit()
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with counted(engine) as statements, Session(autocommit) as source:
        with time_travel(source, at(3), materialize=True) as past:
            assert past.scalars(NAMES).all() == past.scalars(NAMES).all() == THEN[3]
        assert len(copies_in(statements)) == 1
        assert not exists(source, copies_in(statements)[0])


# --- errors -----------------------------------------------------------------------------------------------------


def test_a_database_that_refuses_a_temporary_table_raises_an_error_that_names_the_option(engine, session):
    def refuse(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> tuple[str, Any]:
        return statement.replace(CREATE, "CREATE NO TABLE"), parameters

    sa.event.listen(engine, "before_cursor_execute", refuse, retval=True)
    with (
        time_travel(session, at(3), materialize=True) as past,
        pytest.raises(QueryError, match=r"'customers' could not be copied .* materialize=True"),
    ):
        past.scalars(NAMES)
    sa.event.remove(engine, "before_cursor_execute", refuse)
    session.rollback()
    assert session.scalars(NAMES).all() == ["live Ada L.", "live Cid"]


def test_a_schema_map_does_not_move_the_copy(engine, session):
    connection = session.connection()
    default = sa.inspect(connection).default_schema_name
    moved = {"schema_translate_map": {None: default}}
    with time_travel(session, at(3), materialize=True) as past:
        assert past.scalars(NAMES, execution_options=moved).all() == THEN[3]
        assert past.scalars(NAMES).all() == THEN[3]
        with pytest.raises(HistoryTableError):
            past.scalars(NAMES, execution_options={"schema_translate_map": {None: "sqlaudit_nowhere"}}).all()


# --- async ------------------------------------------------------------------------------------------------------


def test_an_async_session_reads_copies(session, async_engine):
    session.commit()

    async def read() -> list[str]:
        async with AsyncSession(async_engine) as source:
            async with time_travel(source, at(3), materialize=True) as past:
                names = [(await past.scalars(NAMES)).all() for _ in range(2)]
                assert names[0] == names[1]
            return list(names[0])

    assert asyncio.run(read()) == THEN[3]


@pytest.mark.requires("two_phase")
def test_a_two_phase_transaction_refuses_copies(engine, session):
    session.commit()
    with (
        Session(engine, twophase=True) as source,
        time_travel(source, at(3), materialize=True) as past,
        pytest.raises(QueryError, match="a two-phase transaction"),
    ):
        past.scalars(NAMES)
