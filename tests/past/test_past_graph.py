"""Reads of a whole graph as of an instant: whatever is asked, the answer is the one of then, and nobody changes it."""

import asyncio
import pickle
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

import sqlaudit
from clock import at
from databases import SQLALCHEMY_2_1
from shop import (
    QUESTIONS,
    SECONDS,
    Address,
    Base,  # noqa: F401  # whose tables the tests find
    Call,
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
from sqlaudit import QueryError, ReadOnlyError, as_of


@pytest.fixture
def shop(happened: Any, clock: Any, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, on a database in which all has happened."""
    return sessions


@pytest.fixture
def session(shop: sessionmaker[Session]) -> Iterator[Session]:
    """A session after all has happened."""
    with shop() as session:
        yield session


def then(session: Session, second: float, id: int = 1, model: type[Any] = Customer) -> Any:
    return session.scalars(as_of(model, at(second)).where(model.id == id)).one_or_none()


# --- the answers ------------------------------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_is_the_one_of_then(shop, happened, question):
    ask, answers = QUESTIONS[question], [answers[question] for answers in happened]
    assert any(answer != answers[-1] for answer in answers), "the story never changes the answer"
    with shop() as session:
        for second in SECONDS:
            assert ask(session, partial(as_of, when=at(second))) == answers[second], second
        assert ask(session, sa.select) == answers[-1]


def test_a_row_that_moved_is_with_its_parent_of_then(session):
    ada, bob = then(session, 1), then(session, 1, 2)
    assert ([order.id for order in ada.orders], [order.id for order in bob.orders]) == ([1], [2])
    assert bob.orders[0].customer is bob
    assert sorted(order.id for order in then(session, 2).orders) == [1, 2]
    assert then(session, 2, 2).orders == []
    assert then(session, 2, 2, Order).customer is then(session, 2)


def test_a_membership_that_was_removed_and_made_again_is_a_member_when_it_was_one(session):
    labels = [sorted(tag.label for tag in then(session, second).tags) for second in SECONDS]
    assert labels == [["new", "vip"], ["new", "vip"], ["new"], ["old", "vip"], ["old", "vip"], []]
    members = [sorted(each.name for each in then(session, second, 1, Tag).customers) for second in SECONDS]
    assert members == [["Ada"], ["Ada L."], [], ["Ada L."], ["Ada L."], ["live Cid"]]


def test_a_deleted_row_has_its_children_until_it_is_deleted(session):
    bob = then(session, 3, 2)
    assert (bob.name, [line.product for order in bob.orders for line in order.lines]) == ("Bob", ["cup"])
    assert then(session, 4, 2) is None
    assert then(session, 4, 3, Order) is None
    assert then(session, 4).boss is None


def test_the_end_of_a_second_is_no_other_instant_than_its_beginning(shop, happened):
    with shop() as session:
        for second in SECONDS:
            last = at(second + 1) - timedelta(microseconds=1)
            assert trees(session.scalars(as_of(Customer, last))) == happened[second]["everything"]


IN_BATCHES: dict[str, Any] = {"yield_per": 50} if SQLALCHEMY_2_1 else {"stream_results": True}
"""SQLAlchemy 2.0 refuses ``yield_per`` with these eager loads, in the present, too."""


def test_batches_load_eagerly(shop, trees_of_then):
    with shop() as session:
        orders = orm.selectinload(Customer.orders).selectinload(Order.lines)
        # One batch is all of them: not every driver runs another statement while it streams.
        past = session.scalars(as_of(Customer, at(3)).options(orders).execution_options(**IN_BATCHES)).all()
        assert {each.id: tree(each) for each in past} == trees_of_then[3]


# --- what is loaded later ---------------------------------------------------------------------------------------


@pytest.fixture
def trees_of_then(happened: Any) -> list[dict[int, Any]]:
    """What hung on each customer after each second."""
    return [{found[0][0]: found for found in answers["everything"]} for answers in happened]


def rename_everything(session: Session) -> None:
    for model, name in ((Customer, "name"), (Address, "street"), (Tag, "label"), (Line, "product")):
        for row in session.scalars(sa.select(model)):
            setattr(row, name, "renamed")


def change_here(session: Session, maker: sessionmaker[Session]) -> None:
    rename_everything(session)
    session.commit()


def change_elsewhere(session: Session, maker: sessionmaker[Session]) -> None:
    session.commit()
    with maker.begin() as other:
        rename_everything(other)


def change_and_roll_back(session: Session, maker: sessionmaker[Session]) -> None:
    rename_everything(session)
    session.flush()
    session.rollback()


def change_without_a_flush(session: Session, maker: sessionmaker[Session]) -> None:
    rename_everything(session)


def expire(session: Session, maker: sessionmaker[Session]) -> None:
    session.expire_all()


def walk(session: Session, maker: sessionmaker[Session]) -> None:
    for past in [each for each in session.identity_map.values() if isinstance(each, Customer)]:
        tree(past)
    change_here(session, maker)


@pytest.mark.spread
@pytest.mark.parametrize(
    "change", [change_here, change_elsewhere, change_and_roll_back, change_without_a_flush, expire, walk]
)
def test_what_is_loaded_later_is_of_then_too(shop, trees_of_then, change):
    with shop() as session:
        found = {second: session.scalars(as_of(Customer, at(second))).all() for second in SECONDS}
        change(session, shop)
        for second, customers in found.items():
            assert {each.id: tree(each) for each in customers} == trees_of_then[second]


def test_instants_in_one_session_do_not_mix(shop, trees_of_then):
    with shop() as session:
        live = session.get_one(Customer, 1)
        found = [(second, then(session, second)) for second in SECONDS]
        for _, ada in found:  # in turn, one relationship each
            _ = ada.orders
        for _, ada in reversed(found):
            _ = [tag.customers for tag in ada.tags]
        for second, ada in found:
            assert tree(ada) == trees_of_then[second][1]
            reached = [ada, *ada.orders, *ada.tags, *ada.team, *(line for order in ada.orders for line in order.lines)]
            assert {sa.inspect(each).identity_token for each in reached} == {sa.inspect(ada).identity_token}
        assert sa.inspect(live).identity_token is None
        assert tree(live) == trees_of_then[-1][1]


def test_a_refresh_reads_then_again(session):
    ada = then(session, 0)
    orders = ada.orders
    session.refresh(ada, ["name", "orders", "tags"])
    assert (ada.name, ada.orders, sorted(ada.labels)) == ("Ada", orders, ["new", "vip"])
    session.refresh(orders[0])
    assert orders[0].amount == 10
    session.expire(ada, ["boss", "shipping", "city"])
    assert (ada.boss, ada.shipping.street, ada.city) == (None, "Work", "Rome")


def test_an_object_that_was_let_go_reads_then_when_it_is_added_again(session):
    ada = then(session, 0)
    session.expunge(ada)
    with pytest.raises(orm.exc.DetachedInstanceError):
        _ = ada.orders
    session.add(ada)
    assert [order.amount for order in ada.orders] == [10]
    assert then(session, 0) is ada


def test_an_object_that_was_pickled_stays_one_of_then(session):
    ada = then(session, 0)
    assert [order.amount for order in ada.orders] == [10]
    session.expunge_all()
    again = pickle.loads(pickle.dumps(ada))
    assert (again.name, again.orders[0].amount) == ("Ada", 10)
    with pytest.raises(QueryError, match="secret is excluded"):
        _ = again.secret
    session.add(again)
    assert [line.product for line in again.orders[0].lines] == ["pen", "ink"]
    again.name = "Eve"
    with pytest.raises(ReadOnlyError):
        session.flush()


def test_a_merge_into_another_session_gives_one_of_then(shop, session):
    ada = then(session, 0)
    _ = ada.orders, ada.tags
    with shop() as other:
        merged = other.merge(ada)
        with other.no_autoflush:
            assert (merged.name, [order.amount for order in merged.orders], merged.boss) == ("Ada", [10], None)
            assert sorted(tag.label for tag in merged.tags) == ["new", "vip"]
            assert merged is then(other, 0)
        other.rollback()
        assert other.get_one(Customer, 1).name == "live Ada L."


def test_a_raise_load_raises(session):
    ada = session.scalars(as_of(Customer, at(0)).options(orm.raiseload("*")).where(Customer.id == 1)).one()
    with pytest.raises(sa.exc.InvalidRequestError, match="raise"):
        _ = ada.orders


# --- two instants in one statement ------------------------------------------------------------------------------


def test_a_subquery_of_another_instant_keeps_its_own(session):
    before = as_of(Order, at(0)).subquery()
    moved = as_of(Order, at(2)).join(before, before.c.id == Order.id).where(before.c.customer_id != Order.customer_id)
    columns = moved.with_only_columns(Order.id, before.c.customer_id, Order.customer_id)
    assert session.execute(columns).all() == [(2, 2, 1)]
    assert [order.customer.name for order in session.scalars(moved)] == ["Ada L."]


def test_criteria_of_another_instant_keep_their_own(session):
    was_tagged = as_of(Customer, at(0)).join(tagging).join(Tag).where(Tag.label == "vip").with_only_columns(Customer.id)
    assert [each.name for each in session.scalars(as_of(Customer, at(2)).where(Customer.id.in_(was_tagged)))] == [
        "Ada L."
    ]
    gone = as_of(Customer, at(3)).where(Customer.id.not_in(as_of(Customer, at(4)).with_only_columns(Customer.id)))
    assert [(each.name, each.orders[0].id) for each in session.scalars(gone)] == [("Bob", 3)]


def test_the_present_can_be_compared_with_the_past(session):
    past = as_of(Customer, at(0)).with_only_columns(Customer.id, Customer.name).cte("past")
    both = sa.select(Customer.name, past.c.name).join(past, past.c.id == Customer.id)
    assert session.execute(both).all() == [("live Ada L.", "Ada")]


# --- the collections that are queries ---------------------------------------------------------------------------


@pytest.mark.spread
@pytest.mark.parametrize(
    "write",
    [
        lambda ada: ada.visits.add(Visit(id=9, text="no")),
        lambda ada: ada.visits.add_all([Visit(id=9, text="no")]),
        lambda ada: ada.visits.remove(sa.orm.object_session(ada).get_one(Visit, 1)),
        lambda ada: ada.visits.insert(),
        lambda ada: ada.visits.update(),
        lambda ada: ada.visits.delete(),
        lambda ada: ada.calls.append(Call(id=9, text="no")),
        lambda ada: ada.calls.add(Call(id=9, text="no")),
        lambda ada: ada.calls.remove(ada.calls.first()),
    ],
    ids=["add", "add all", "remove", "insert", "update", "delete", "append", "add to dynamic", "remove from dynamic"],
)
def test_the_collections_that_are_queries_refuse_to_write(session, write):
    before = content(session)
    ada = then(session, 0)

    def change() -> None:
        write(ada)
        session.commit()

    with pytest.raises(ReadOnlyError):
        change()
    session.rollback()
    assert content(session) == before


def test_the_collections_that_are_queries_compose(session):
    ada = then(session, 2)
    visits = ada.visits.select().where(Visit.text.like("visits%")).order_by(Visit.id.desc()).limit(1)
    assert [(visit.text, visit.customer_id) for visit in session.scalars(visits)] == [("visits 2", 1)]
    assert [call.text for call in ada.calls.filter_by(id=1)] == ["again"]
    assert (ada.calls.count(), ada.calls.order_by(Call.id.desc()).first().id) == (2, 2)
    assert [visit.id for visit in session.scalars(session.get_one(Customer, 3).visits.select())] == [1, 2]


# --- nobody changes the past, or by it the present --------------------------------------------------------------


def assign(session: Session, ada: Customer) -> None:
    ada.name = "Eve"


def assign_a_relationship(session: Session, ada: Customer) -> None:
    ada.shipping = None


def assign_a_live_object(session: Session, ada: Customer) -> None:
    ada.boss = session.get_one(Customer, 3)


def assign_an_excluded_column(session: Session, ada: Customer) -> None:
    ada.secret = "new"


def empty_a_collection(session: Session, ada: Customer) -> None:
    ada.orders.clear()


def unlink(session: Session, ada: Customer) -> None:
    ada.tags.pop()


def link(session: Session, ada: Customer) -> None:
    ada.tags.append(Tag(id=9, label="no"))


def add_a_child(session: Session, ada: Customer) -> None:
    ada.orders.append(Order(id=9, amount=1))


def be_given_a_child(session: Session, ada: Customer) -> None:
    session.add(Order(id=9, amount=1, customer=ada))


def take_a_live_child(session: Session, ada: Customer) -> None:
    session.get_one(Order, 1).customer = ada


def join_a_live_collection(session: Session, ada: Customer) -> None:
    cid = session.get_one(Customer, 3)
    cid.team.append(ada)


def give_a_past_child_to_a_live_parent(session: Session, ada: Customer) -> None:
    cid = session.get_one(Customer, 3)
    cid.orders.append(ada.orders[0])


def tag_a_live_object_with_a_past_tag(session: Session, ada: Customer) -> None:
    cid = session.get_one(Customer, 3)
    cid.tags.append(ada.tags[0])


def change_a_child(session: Session, ada: Customer) -> None:
    ada.orders[0].lines[0].product = "no"


def delete(session: Session, ada: Customer) -> None:
    session.delete(ada)


def delete_a_child(session: Session, ada: Customer) -> None:
    session.delete(ada.orders[0])


def flag(session: Session, ada: Customer) -> None:
    orm.attributes.flag_modified(ada, "name")


def assign_and_change_a_live_object(session: Session, ada: Customer) -> None:
    session.get_one(Customer, 1).name = ada.name = "Eve"


def save_in_bulk(session: Session, ada: Customer) -> None:
    ada.name = "Eve"
    session.bulk_save_objects([ada])


def change_without_tracking(session: Session, ada: Customer) -> None:
    with sqlaudit.tracking_disabled(session):
        ada.name = "Eve"


def delete_without_tracking(session: Session, ada: Customer) -> None:
    with sqlaudit.tracking_disabled(session):
        session.delete(ada)


MISUSES = [
    assign,
    assign_a_relationship,
    assign_a_live_object,
    assign_an_excluded_column,
    empty_a_collection,
    unlink,
    link,
    add_a_child,
    be_given_a_child,
    take_a_live_child,
    join_a_live_collection,
    give_a_past_child_to_a_live_parent,
    tag_a_live_object_with_a_past_tag,
    change_a_child,
    delete,
    delete_a_child,
    flag,
    assign_and_change_a_live_object,
    save_in_bulk,
    change_without_tracking,
    delete_without_tracking,
]


@pytest.mark.spread
@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("second", [0, 5])
def test_a_change_of_the_past_raises_and_changes_nothing(session, misuse, second):
    if second == 5:  # when past and present are equal
        cid = session.get_one(Customer, 3)
        cid.shipping, cid.tags = session.get_one(Address, 1), list(session.scalars(sa.select(Tag)))
        session.commit()
    before = content(session)
    past = then(session, second if second == 0 else 6, 1 if second == 0 else 3)

    def change() -> None:
        misuse(session, past)
        session.commit()

    with pytest.raises(ReadOnlyError):
        change()
    session.rollback()
    assert content(session) == before


def with_hooks(session: Session, maker: sessionmaker[Session]) -> Session:
    return maker()


def without_hooks(session: Session, maker: sessionmaker[Session]) -> Session:
    return Session(session.get_bind())


def merge(session: Session, ada: Customer) -> None:
    session.merge(ada).name = "Eve"


def merge_what_was_changed(session: Session, ada: Customer) -> None:
    ada.name = "Eve"
    session.merge(ada)


def merge_without_loading(session: Session, ada: Customer) -> None:
    session.merge(ada, load=False).name = "Eve"


def add(session: Session, ada: Customer) -> None:
    session.add(ada)
    ada.name = "Eve"


def add_and_delete(session: Session, ada: Customer) -> None:
    session.add(ada)
    session.delete(ada)


def add_a_changed_child(session: Session, ada: Customer) -> None:
    ada.orders[0].amount = 99
    session.add(ada)


BY_OTHERS = [merge, merge_what_was_changed, merge_without_loading, add, add_and_delete, add_a_changed_child]


@pytest.mark.spread
@pytest.mark.parametrize(
    ("other", "misuse"),
    [
        *((with_hooks, misuse) for misuse in (*BY_OTHERS, save_in_bulk)),
        *((without_hooks, misuse) for misuse in BY_OTHERS),
    ],
)
def test_another_session_cannot_change_the_past_either(shop, session, other, misuse):
    before = content(session)
    ada = then(session, 0)
    _ = ada.orders
    session.expunge_all()
    session.rollback()

    def change(session: Session) -> None:
        misuse(session, ada)
        session.commit()

    with other(session, shop) as another:
        # Without hooks, it is the attempt to read on that fails first.
        with pytest.raises((ReadOnlyError, QueryError)):
            change(another)
        another.rollback()
    assert content(session) == before


def test_a_past_object_that_is_added_unchanged_writes_nothing(shop, session):
    before = content(session)
    ada = then(session, 0)
    _ = ada.orders
    session.expunge_all()
    session.rollback()
    with shop() as another:
        another.add(ada)
        another.commit()
    assert content(session) == before


def test_a_session_whose_hooks_are_gone_never_loads_live_rows_into_a_past_object(shop, session):
    ada = then(session, 0)
    sqlaudit.unregister_hooks(shop)
    with pytest.raises(QueryError, match="register_hooks"):
        _ = ada.orders
    session.expire(ada)
    with pytest.raises(QueryError, match="register_hooks"):
        _ = ada.name


def test_after_a_refused_change_the_session_reads_and_writes_on(session):
    ada = then(session, 0)
    ada.name = "Eve"
    with pytest.raises(ReadOnlyError):
        session.commit()
    session.rollback()
    assert ada.name == "Ada"
    session.get_one(Customer, 1).name = "Mia"
    session.commit()
    assert [then(session, second).name for second in (0, 7)] == ["Ada", "Mia"]


def test_locks_are_not_for_the_past(session):
    assert session.scalars(as_of(Customer, at(0)).with_for_update().where(Customer.id == 1)).one().name == "Ada"


@pytest.mark.parametrize("second", [0, 3])
def test_a_statement_that_is_printed_with_its_values_reads_the_same(session, second):
    past = (
        as_of(Customer, at(second)).join(Customer.orders).with_only_columns(Customer.name, Order.id).order_by(Order.id)
    )
    printed = past.compile(session.get_bind(), compile_kwargs={"literal_binds": True}).string
    assert session.connection().exec_driver_sql(printed).all() == session.execute(past).all()


# --- what has no history, and what is not stored ----------------------------------------------------------------


def test_an_untracked_table_anywhere_in_the_statement_raises(session):
    memo = Memo.customer_id == Customer.id
    for statement in (
        as_of(Customer, at(0)).join(Memo, memo),
        as_of(Customer, at(0)).where(sa.exists().where(memo)),
        as_of(Customer, at(0)).where(Customer.id.in_(sa.select(Memo.customer_id))),
        as_of(Customer, at(0)).with_only_columns(sa.select(sa.func.count(Memo.id)).scalar_subquery()),
        as_of(Customer, at(0)).join(rows := sa.select(Memo.customer_id).cte(), rows.c.customer_id == Customer.id),
    ):
        with pytest.raises(QueryError, match="'memos' has no history"):
            session.execute(statement)


def test_an_untracked_table_is_read_live_if_allowed(session):
    session.add(Memo(id=1, customer_id=1, text="now"))
    session.commit()
    past = as_of(Customer, at(0), untracked="live").join(Memo, Memo.customer_id == Customer.id)
    assert session.execute(past.with_only_columns(Customer.name, Memo.text)).all() == [("Ada", "now")]
    memo = session.execute(past.add_columns(Memo)).one()[1]
    assert (memo.text, memo.customer.name) == ("now", "Ada")


@pytest.mark.parametrize(
    "option", [orm.joinedload, orm.selectinload, orm.subqueryload, orm.immediateload, orm.lazyload]
)
def test_an_excluded_column_raises_however_the_object_was_loaded(session, option):
    order = session.scalars(as_of(Order, at(0)).where(Order.id == 1).options(option(Order.customer))).unique().one()
    ada = order.customer
    for again in (lambda: None, lambda: session.refresh(ada), lambda: session.expire(ada), session.commit):
        again()
        assert ada.name == "Ada"
        with pytest.raises(QueryError, match=r"Customer\.secret is excluded from history"):
            _ = ada.secret


def test_an_excluded_column_of_the_live_object_is_there(session):
    then(session, 0)
    assert session.get_one(Customer, 1).secret == "s"
    assert session.execute(as_of(Customer, at(0)).where(Customer.secret == "s")).all() == []
    assert len(session.execute(as_of(Customer, at(0)).where(Customer.secret.is_(None))).all()) == 2


# --- async ------------------------------------------------------------------------------------------------------


@pytest.fixture
def async_shop(session, async_engine) -> Iterator[async_sessionmaker[Any]]:
    session.commit()
    maker = async_sessionmaker(async_engine)
    sqlaudit.register_hooks(maker)
    yield maker
    sqlaudit.unregister_hooks(maker)


def test_async_sessions_load_eagerly_and_lazily_as_of_then(async_shop):
    async def read() -> None:
        async with async_shop() as session:
            eager = orm.selectinload(Customer.orders).selectinload(Order.lines), orm.joinedload(Customer.billing)
            ada = (await session.scalars(as_of(Customer, at(1)).where(Customer.id == 1).options(*eager))).one()
            assert [line.product for line in ada.orders[0].lines] == ["pen"]
            assert ada.billing.street == "Home"
            (await session.get_one(Customer, 1)).name = "later"
            await session.commit()
            assert sorted(tag.label for tag in await ada.awaitable_attrs.tags) == ["new", "vip"]
            (bob,) = await ada.awaitable_attrs.team
            assert await bob.awaitable_attrs.name == "Bob"
            assert [order.amount for order in await bob.awaitable_attrs.orders] == [20]
            visits = (await session.scalars(ada.visits.select())).all()
            assert [visit.text for visit in visits] == ["again"]
            await session.refresh(ada, ["name", "shipping"])
            assert (ada.name, ada.shipping.street) == ("Ada L.", "Work")

    asyncio.run(read())


def test_async_sessions_stream_the_past(async_shop):
    async def read() -> list[str]:
        async with async_shop() as session:
            names = as_of(Customer, at(3)).order_by(Customer.id)
            return [each.name async for each in await session.stream_scalars(names)]

    assert asyncio.run(read()) == ["Ada L.", "Bob"]


def test_async_sessions_refuse_changes_of_the_past(async_shop):
    async def change() -> None:
        async with async_shop() as session:
            (await session.scalars(as_of(Customer, at(0)).where(Customer.id == 1))).one().name = "Eve"
            await session.commit()

    with pytest.raises(ReadOnlyError):
        asyncio.run(change())
