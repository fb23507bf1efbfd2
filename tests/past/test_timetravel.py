"""What reads as of an instant give: the rows as they were then, and never live ones."""

import asyncio
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, sessionmaker

import sqlaudit
from clock import START, Clock, at
from sqlaudit import QueryError, ReadOnlyError, SQLAuditConfig, SQLAuditWarning, TrackingError, as_of, history_of

TICK = timedelta(microseconds=1)


class Base(DeclarativeBase):
    pass


@sqlaudit.track_table(exclude=["secret"])
class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))
    city: Mapped[str | None] = mapped_column(sa.String(50))
    secret: Mapped[str | None] = mapped_column(sa.String(50))


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int]


def happen(sessions: sessionmaker[Session]) -> None:
    """Let Ada be Ada, Bea, Cid, and deleted, in the seconds 0 to 3."""
    with sessions() as session:
        ada = Customer(id=1, name="Ada", city="Rome", secret="s")
        session.add(ada)
        session.commit()
        ada.name = "Bea"
        session.commit()
        ada.name, ada.city = "Cid", None
        session.commit()
        session.delete(ada)
        session.commit()


@pytest.fixture
def sessions(happened: None, clock: Clock, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, when that has happened."""
    return sessions


@pytest.fixture
def live(sessions):
    """A session in which a customer lives: Lea, once Kim; Kim from second 4, Lea from second 5."""
    with sessions() as session:
        customer = Customer(id=2, name="Kim", city="Oslo", secret="t")
        session.add(customer)
        session.commit()
        customer.name = "Lea"
        session.commit()
        yield session


def names(session: Session, when: datetime) -> list[str]:
    return [customer.name for customer in session.scalars(as_of(Customer, when))]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (START - TICK, []),
        (START, ["Ada"]),
        (START + TICK, ["Ada"]),
        (at(1) - TICK, ["Ada"]),
        (at(1), ["Bea"]),
        (at(2) - TICK, ["Bea"]),
        (at(2), ["Cid"]),
        (at(3) - TICK, ["Cid"]),
        (at(3), []),
        (at(3) + TICK, []),
    ],
)
def test_a_version_is_true_from_its_instant_until_the_next(sessions, when, expected):
    with sessions() as session:
        assert names(session, when) == expected


@pytest.mark.parametrize("zone", [timedelta(hours=14), timedelta(hours=-12)], ids=str)
def test_the_time_zone_of_the_instant_does_not_matter(sessions, zone):
    with sessions() as session:
        assert names(session, at(1).astimezone(timezone(zone))) == ["Bea"]


@pytest.mark.parametrize("when", [datetime.max.replace(tzinfo=UTC), sqlaudit.OPEN_END])
def test_the_future_is_the_present_with_a_warning(live, when):
    with pytest.warns(SQLAuditWarning, match="in the future"):
        statement = as_of(Customer, when)
    assert [customer.name for customer in live.scalars(statement)] == ["Lea"]


def test_the_beginning_of_time_is_empty(live):
    assert names(live, datetime.min.replace(tzinfo=UTC)) == []


def test_the_class_and_the_function_give_the_same(live):
    assert live.scalars(Customer.as_of(at(4))).one() is live.scalars(as_of(Customer, at(4))).one()


def test_it_composes_like_any_select(sessions):
    with sessions() as session:
        session.add_all(Customer(id=n, name=f"n{n}", city="Oslo" if n % 2 else "Rome") for n in range(10, 20))
        session.commit()
        when = at(4)
        for customer in session.scalars(sa.select(Customer)):
            customer.name = "later"
        session.commit()
        statement = (
            as_of(Customer, when).where(Customer.city == "Oslo").order_by(Customer.name.desc()).limit(2).offset(1)
        )
        assert [customer.name for customer in session.scalars(statement)] == ["n17", "n15"]
        columns = as_of(Customer, when).with_only_columns(Customer.city, sa.func.count(), maintain_column_froms=True)
        assert session.execute(columns.group_by(Customer.city).order_by(Customer.city)).all() == [
            ("Oslo", 5),
            ("Rome", 5),
        ]
        assert session.scalar(as_of(Customer, when).with_only_columns(sa.func.max(Customer.name))) == "n19"
        assert session.scalars(as_of(Customer, when).filter_by(id=12)).one().name == "n12"


def test_an_alias_reads_the_past_too(live):
    other = aliased(Customer)
    statement = as_of(Customer, at(4)).join(other, other.id == Customer.id).with_only_columns(Customer.name, other.name)
    assert live.execute(statement).all() == [("Kim", "Kim")]


def test_past_objects_are_distinct_from_live_ones_and_from_those_of_other_instants(live):
    now = live.get(Customer, 2)
    then, later = (live.scalars(as_of(Customer, when)).one() for when in (at(4), at(5)))
    assert (then.name, later.name, now.name) == ("Kim", "Lea", "Lea")
    assert len({id(each) for each in (now, then, later)}) == 3
    assert live.get(Customer, 2) is now
    assert live.scalars(sa.select(Customer)).all() == [now]


def test_the_instant_survives_commit_and_refresh(live):
    then = live.scalars(as_of(Customer, at(4))).one()
    live.commit()
    assert then.name == "Kim"
    live.refresh(then)
    assert then.name == "Kim"
    live.expire(then)
    assert then.city == "Oslo"


def test_populate_existing_reads_the_past_again(live):
    then = live.scalars(as_of(Customer, at(4))).one()
    again = live.scalars(as_of(Customer, at(4)).execution_options(populate_existing=True)).one()
    assert again is then
    assert then.name == "Kim"


def test_pending_changes_are_flushed_before_the_past_is_read(live):
    live.get(Customer, 2).name = "Mia"
    live.add(Customer(id=3, name="New"))
    assert names(live, at(4)) == ["Kim"]
    assert not live.dirty
    assert not live.new
    assert sorted(live.scalars(sa.select(Customer.name))) == ["Mia", "New"]


def test_without_autoflush_nothing_is_flushed(live):
    live.get(Customer, 2).name = "Mia"
    with live.no_autoflush:
        assert names(live, at(4)) == ["Kim"]
    assert live.dirty
    live.scalars(as_of(Customer, at(4)).execution_options(autoflush=False)).all()
    assert live.dirty


def test_live_reads_and_writes_go_on_after_a_read_of_the_past(live):
    names(live, at(4))
    customer = live.scalars(sa.select(Customer)).one()
    assert customer.name == "Lea"
    customer.name = "Mia"
    live.commit()
    assert [version.name for version in sqlaudit.versions_of(live, Customer, 2)] == ["Kim", "Lea", "Mia"]


@pytest.mark.parametrize("change", ["assign", "delete"])
def test_a_changed_past_object_fails_the_flush_and_the_database_keeps_nothing(live, change):
    then = live.scalars(as_of(Customer, at(4))).one()
    if change == "assign":
        then.name = "Eve"
    else:
        live.delete(then)
    with pytest.raises(ReadOnlyError, match="read-only"):
        live.flush()
    live.rollback()
    assert live.scalars(sa.select(Customer.name)).all() == ["Lea"]


def test_a_session_without_hooks_raises(live, engine):
    with Session(engine) as session, pytest.raises(QueryError, match="register_hooks"):
        session.scalars(as_of(Customer, at(4))).all()
    with engine.connect() as connection, pytest.raises(QueryError, match="register_hooks"):
        connection.execute(as_of(Customer, at(4)))


@pytest.mark.spread
@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (lambda past: sa.select(sa.func.count()).select_from(past.subquery()), [(1,)]),
        (lambda past: sa.select(Customer.name).where(Customer.id.in_(past.with_only_columns(Customer.id))), [("Lea",)]),
        (
            lambda past: sa.select(Customer.name).union_all(past.with_only_columns(Customer.name)),
            [("Lea",), ("Kim",)],
        ),
        (
            lambda past: sa.union_all(*(as_of(Customer, at(n)).with_only_columns(Customer.name) for n in (0, 1, 2, 4))),
            [("Ada",), ("Bea",), ("Cid",), ("Kim",)],
        ),
        (lambda past: sa.select(past.exists(), sa.select(Customer).where(Customer.name == "Kim").exists()), [(1, 0)]),
        (
            lambda past: sa.select(Customer.name, (then := past.cte()).c.name).join(then, then.c.id == Customer.id),
            [("Lea", "Kim")],
        ),
        (lambda past: sa.select(past.with_only_columns(sa.func.max(Customer.name)).scalar_subquery()), [("Kim",)]),
    ],
    ids=["from", "in", "union", "four instants", "exists", "cte", "scalar"],
)
def test_inside_another_statement_it_gives_columns(live, wrap, expected):
    assert live.execute(wrap(as_of(Customer, at(4)))).all() == expected


@pytest.mark.spread
@pytest.mark.parametrize(
    "wrap",
    [
        lambda past: sa.select(aliased(Customer, past.subquery())),
        lambda past: sa.select(Customer).from_statement(past),
        lambda past: sa.select(Customer).from_statement(past.union_all(past)),
        lambda past: as_of(Customer, at(4)).add_columns(aliased(Customer, past.subquery())),
    ],
    ids=["alias", "statement", "union", "two instants"],
)
def test_inside_another_statement_it_gives_no_objects(live, wrap):
    with pytest.raises(QueryError, match="can return columns, but no Customer objects"):
        live.scalars(wrap(as_of(Customer, at(5)))).all()


def test_a_cte_is_of_one_instant(live):
    rows = sa.select(Customer.id, Customer.name).cte()
    past = as_of(Customer, at(4)).join(rows, rows.c.id == Customer.id).with_only_columns(rows.c.name)
    assert live.execute(past).all() == [("Kim",)]
    for mixed in (past.union_all(sa.select(rows.c.name)), sa.select(rows.c.name).union_all(past)):
        with pytest.raises(QueryError, match="CTE"):
            live.execute(mixed)


def test_the_statement_is_compiled_once_for_all_instants(live, engine):
    names(live, at(0))
    before = set(engine._compiled_cache)
    assert [names(live, at(second)) for second in (3, 4, 5)] == [[], ["Kim"], ["Lea"]]
    assert set(engine._compiled_cache) == before


def test_an_untracked_table_raises_by_name_or_is_read_live(live):
    live.add(Note(id=1, customer_id=2))
    live.commit()
    joined = Note.customer_id == Customer.id
    with pytest.raises(QueryError, match="'notes' has no history"):
        live.execute(as_of(Customer, at(4)).join(Note, joined)).all()
    past = as_of(Customer, at(4), untracked="live").join(Note, joined).with_only_columns(Customer.name, Note.id)
    assert live.execute(past).all() == [("Kim", 1)]


def test_an_untracked_model_raises():
    with pytest.raises(TrackingError, match="Note"):
        as_of(Note, START)


def test_an_excluded_column_raises_on_the_object_and_is_null_in_sql(live):
    then = live.scalars(as_of(Customer, at(4))).one()
    with pytest.raises(QueryError, match=r"Customer.secret is excluded from history"):
        _ = then.secret
    assert live.execute(as_of(Customer, at(4)).with_only_columns(Customer.secret)).all() == [(None,)]
    assert live.get(Customer, 2).secret == "t"


@pytest.mark.parametrize("when", ["2024-01-01", 5, None, START.date()])
def test_what_is_no_datetime_raises(when):
    with pytest.raises(QueryError, match=r"(not|neither) a datetime"):
        as_of(Customer, when)


def test_a_sample_of_the_past_is_refused(live):
    sample = aliased(Customer, sa.tablesample(Customer.__table__, 50))
    with pytest.raises(QueryError, match="TABLESAMPLE"):
        live.execute(as_of(Customer, at(4)).with_only_columns(sample.name)).all()


def test_an_unknown_word_for_untracked_raises():
    with pytest.raises(QueryError, match="untracked"):
        as_of(Customer, START, untracked="ignore")


def test_a_naive_datetime_is_local_time_with_a_warning(sessions, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with pytest.warns(SQLAuditWarning, match="local time") as warned:
            statement = as_of(Customer, datetime(2024, 1, 1, 9, 0, 1))  # noqa: DTZ001  # what is tested
        assert warned[0].filename == __file__
        with sessions() as session:
            assert session.scalars(statement).one().name == "Bea"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_aware_datetime_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_of(Customer, START)


def test_schemas_and_names_that_need_quotes(engine, database):
    class Other(DeclarativeBase):
        pass

    @sqlaudit.track_table()
    class Here(Other):
        __tablename__ = "Order Items"
        id: Mapped[int] = mapped_column("Select", primary_key=True)
        text: Mapped[str] = mapped_column("a b", sa.String(50))

    @sqlaudit.track_table()
    class There(Other):
        __tablename__ = "Order Items"
        __table_args__ = {"schema": database.other_schema}
        id: Mapped[int] = mapped_column("Select", primary_key=True)
        text: Mapped[str] = mapped_column("a b", sa.String(50))

    Other.metadata.create_all(engine)
    maker = sessionmaker(engine)
    sqlaudit.register_hooks(maker)
    sqlaudit.set_config(SQLAuditConfig(clock=Clock()))
    with maker() as session:
        objects = [Here(id=1, text="here"), There(id=1, text="there")]
        session.add_all(objects)
        session.commit()
        for each in objects:
            each.text = "later"
        session.commit()
        assert session.scalars(as_of(Here, START).where(Here.text == "here")).one().text == "here"
        assert session.scalars(as_of(There, START).where(There.text == "there")).one().text == "there"
        both = as_of(Here, START).join(There, There.id == Here.id).with_only_columns(Here.text, There.text)
        assert session.execute(both).all() == [("here", "there")]
        aliases = aliased(There)
        assert session.scalars(as_of(There, at(1)).join(aliases, aliases.id == There.id)).one().text == "later"
    sqlaudit.unregister_hooks(maker)


def test_an_async_session_reads_the_past(sessions, async_engine):
    maker = async_sessionmaker(async_engine)
    sqlaudit.register_hooks(maker)

    async def read():
        async with maker() as session:
            customer = (await session.scalars(as_of(Customer, at(1)))).one()
            await session.commit()
            await session.refresh(customer)
            return customer.name

    try:
        assert asyncio.run(read()) == "Bea"
    finally:
        sqlaudit.unregister_hooks(maker)


def test_a_read_of_the_past_streams(sessions):
    with sessions() as session:
        session.add_all(Customer(id=n, name=f"n{n}") for n in range(10, 60))
        session.commit()
        past = session.scalars(as_of(Customer, at(4)).order_by(Customer.id).execution_options(yield_per=7))
        assert [customer.name for customer in past] == [f"n{n}" for n in range(10, 60)]
        assert session.scalar(sa.select(sa.func.count()).select_from(history_of(Customer))) == 54


@pytest.mark.no_tables
def test_a_missing_history_table_raises_with_the_remedy(engine):
    Customer.__table__.create(engine)
    maker = sessionmaker(engine)
    sqlaudit.register_hooks(maker)
    with maker() as session, pytest.raises(sqlaudit.HistoryTableError, match="create_all"):
        session.scalars(as_of(Customer, START)).all()
    sqlaudit.unregister_hooks(maker)


@pytest.mark.no_tables
def test_a_missing_history_table_raises_with_the_remedy_for_a_core_statement(engine):
    Customer.__table__.create(engine)
    with sqlaudit.time_travel(engine, START) as past, pytest.raises(sqlaudit.HistoryTableError, match="create_all"):
        past.execute(sa.select(Customer.__table__))


@pytest.mark.parametrize("column", ["nope", "notes.name"])
def test_a_column_that_is_absent_elsewhere_is_not_said_to_be_absent_from_history(live, column):
    past = as_of(Customer, at(4), untracked="live").join(Note, Note.customer_id == Customer.id)
    with pytest.raises(sa.exc.DBAPIError, match=column):
        live.execute(past.with_only_columns(Customer.id, sa.literal_column(column), maintain_column_froms=True))
    live.rollback()


@pytest.mark.parametrize("read", [lambda session: session.scalars(as_of(Customer, START)), sqlaudit.changesets])
def test_a_missing_history_column_raises_with_the_remedy(sessions, engine, read):
    with engine.begin() as connection:
        connection.execute(sa.DDL("ALTER TABLE customers_history DROP COLUMN audit_reason"))
        connection.execute(sa.DDL("ALTER TABLE customers_history DROP COLUMN city"))
    with sessions() as session, pytest.raises(sqlaudit.HistoryTableError, match=r"customers_history.*create_all"):
        read(session)


def test_a_read_of_a_row_of_the_past_makes_few_calls_beyond_those_of_a_live_read(live):
    def count_calls(statement_of: Callable[[], sa.Select[tuple[Customer]]]) -> int:
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        for _ in range(3):  # fills the caches
            live.expunge_all()
            live.scalars(statement_of().where(Customer.id == 2)).one()
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            live.scalars(statement_of().where(Customer.id == 2)).one()
        finally:
            sys.setprofile(before)
        return calls

    assert count_calls(lambda: as_of(Customer, at(4))) - count_calls(lambda: sa.select(Customer)) <= 50
