"""A small shop and six seconds of its life, for tests of time travel: its models, its story, and questions about it.

In the last second every row, every link and every parent changes, so that a query that reads live rows fails the test.
"""

from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship, sessionmaker

from sqlaudit import Temporal, track_table

SECONDS = range(6)
Name = sa.String(50)


class Base(AsyncAttrs, orm.DeclarativeBase):
    pass


tagging = sa.Table(
    "tagging",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Address(Base):
    __tablename__ = "addresses"

    id: Mapped[int] = mapped_column(primary_key=True)
    street: Mapped[str] = mapped_column(Name)


@track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(Name)
    customers: Mapped[list["Customer"]] = relationship(secondary=tagging, back_populates="tags")


@track_table(exclude=["secret"])
class Customer(Temporal, Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    city: Mapped[str | None] = mapped_column(Name)
    secret: Mapped[str | None] = mapped_column(Name)
    boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customers.id"))
    billing_id: Mapped[int | None] = mapped_column(sa.ForeignKey("addresses.id"))
    shipping_id: Mapped[int | None] = mapped_column(sa.ForeignKey("addresses.id"))

    boss: Mapped["Customer | None"] = relationship(remote_side=id, back_populates="team")
    team: Mapped[list["Customer"]] = relationship(back_populates="boss")
    billing: Mapped[Address | None] = relationship(foreign_keys=billing_id)
    shipping: Mapped[Address | None] = relationship(foreign_keys=shipping_id)
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", cascade="all, delete-orphan")
    tags: Mapped[list[Tag]] = relationship(secondary=tagging, back_populates="customers")
    visits: orm.WriteOnlyMapped["Visit"] = relationship(cascade="save-update", passive_deletes=True)
    calls: orm.DynamicMapped["Call"] = relationship(cascade="save-update", passive_deletes=True)
    labels: AssociationProxy[list[str]] = association_proxy("tags", "label")

    @hybrid_property
    def shout(self) -> Any:
        return self.name + "!"

    @hybrid_property
    def initial(self) -> Any:
        return self.name[0]

    @initial.inplace.expression
    @classmethod
    def _initial(cls) -> Any:
        return sa.func.substr(cls.name, 1, 1)


@track_table()
class Order(Temporal, Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"))

    customer: Mapped[Customer] = relationship(back_populates="orders")
    lines: Mapped[list["Line"]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="Line.number"
    )


@track_table()
class Line(Temporal, Base):
    __tablename__ = "lines"

    order_id: Mapped[int] = mapped_column(sa.ForeignKey("orders.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    product: Mapped[str] = mapped_column(Name)

    order: Mapped[Order] = relationship(back_populates="lines")


@track_table()
class Visit(Base):
    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"))
    text: Mapped[str] = mapped_column(Name)


@track_table()
class Call(Base):
    __tablename__ = "calls"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"))
    text: Mapped[str] = mapped_column(Name)


class Memo(Base):
    """Not tracked."""

    __tablename__ = "memos"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customers.id"))
    text: Mapped[str] = mapped_column(Name)
    customer: Mapped[Customer] = relationship()


_of_customer = sa.and_(Order.customer_id == Customer.id)
Customer.spent = orm.column_property(  # type: ignore[attr-defined]
    sa.select(sa.func.coalesce(sa.func.sum(Order.amount), 0))
    .where(_of_customer)
    .correlate_except(Order)
    .scalar_subquery()
)


# --- the story --------------------------------------------------------------------------------------------------


def open_shop(session: Session) -> None:
    home, work = Address(id=1, street="Home"), Address(id=2, street="Work")
    vip, new = Tag(id=1, label="vip"), Tag(id=2, label="new")
    ada = Customer(id=1, name="Ada", city="Rome", secret="s", billing=home, shipping=work, tags=[vip, new])
    bob = Customer(id=2, name="Bob", city="Oslo", secret="t", billing=work, shipping=work, tags=[new], boss=ada)
    pens = Order(id=1, amount=10, lines=[Line(number=1, product="pen"), Line(number=2, product="ink")])
    ada.orders.append(pens)
    bob.orders.append(Order(id=2, amount=20, lines=[Line(number=1, product="pen")]))
    session.add_all([ada, bob])
    session.flush()
    session.add_all(
        model(id=number, customer_id=number, text=f"{model.__tablename__} {number}")
        for model in (Visit, Call)
        for number in (1, 2)
    )


def rename_and_shorten(session: Session) -> None:
    ada = session.get_one(Customer, 1)
    ada.name, ada.city, ada.orders[0].amount = "Ada L.", None, 11
    del ada.orders[0].lines[1]
    session.get_one(Visit, 1).text = "again"
    session.get_one(Call, 1).text = "again"


def move(session: Session) -> None:
    ada, bob = session.get_one(Customer, 1), session.get_one(Customer, 2)
    ada.orders.append(bob.orders[0])
    ada.tags.remove(session.get_one(Tag, 1))
    ada.shipping = ada.billing
    bob.boss = None
    session.get_one(Visit, 2).customer_id = session.get_one(Call, 2).customer_id = 1


def come_back(session: Session) -> None:
    ada, bob = session.get_one(Customer, 1), session.get_one(Customer, 2)
    ada.tags.append(session.get_one(Tag, 1))
    ada.boss = bob
    bob.orders.append(Order(id=3, amount=5, lines=[Line(number=1, product="cup")]))
    session.get_one(Address, 1).street, session.get_one(Tag, 2).label = "House", "old"


def leave(session: Session) -> None:
    session.delete(session.get_one(Customer, 2))
    session.add(Customer(id=3, name="Cid", city="Rome", boss=session.get_one(Customer, 1)))


def turn_around(session: Session) -> None:
    """Change every row, link and parent."""
    ada, cid = session.get_one(Customer, 1), session.get_one(Customer, 3)
    for model, name in ((Customer, "name"), (Address, "street"), (Tag, "label"), (Line, "product"), (Call, "text")):
        for row in session.scalars(sa.select(model)):
            setattr(row, name, f"live {getattr(row, name)}")
    for each in (
        *session.scalars(sa.select(Order)),
        *session.scalars(sa.select(Visit)),
        *session.scalars(sa.select(Call)),
    ):
        each.customer_id = 3
    cid.boss = None
    session.flush()
    session.expire_all()
    ada.tags, cid.tags = [], [session.get_one(Tag, 1)]
    ada.boss, cid.city = cid, "Nice"
    ada.billing, ada.shipping = ada.shipping, session.get_one(Address, 2)
    for order in cid.orders:
        order.amount += 100


STORY = [open_shop, rename_and_shorten, move, come_back, leave, turn_around]


_SEEN: dict[str, list[dict[str, Any]]] = {}
"""The answers of each database when the story happened for the first time."""


def happen(sessions: sessionmaker[Session]) -> list[dict[str, Any]]:
    """Tell the story, one transaction a second; return the answers to all questions after each transaction."""
    seen = []
    for event in STORY:
        with sessions.begin() as session:
            event(session)
            database = session.connection().dialect.name
        if database not in _SEEN:
            with sessions() as session:
                seen.append(answers(session, sa.select))
    return _SEEN.setdefault(database, seen)


# --- questions --------------------------------------------------------------------------------------------------
# A question gets a session and a function `of`, which returns the SELECT of a model, now or as of an instant.

Of = Callable[[type[Any]], Any]
Question = Callable[[Session, Of], Any]
QUESTIONS: dict[str, Question] = {}


def question(function: Question) -> Question:
    QUESTIONS[function.__name__] = function
    return function


def answers(session: Session, of: Of) -> dict[str, Any]:
    """Return the answers to all questions; each begins with an empty session."""
    found = {}
    for name, ask in QUESTIONS.items():
        found[name] = ask(session, of)
        session.expunge_all()
    return found


def rows(session: Session, statement: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in session.execute(statement)]


def tree(customer: Customer) -> tuple[Any, ...]:
    """Return a customer and all related objects as plain values."""
    return (
        (customer.id, customer.name, customer.city, customer.spent),
        customer.boss and customer.boss.name,
        customer.billing and customer.billing.street,
        customer.shipping and customer.shipping.street,
        sorted((order.id, order.amount, [line.product for line in order.lines]) for order in customer.orders),
        sorted(tag.label for tag in customer.tags),
        sorted(each.name for each in customer.team),
    )


def trees(customers: Iterable[Customer]) -> list[tuple[Any, ...]]:
    return sorted((tree(customer) for customer in customers), key=lambda each: each[0][0])


@question
def everything(session, of):
    return trees(session.scalars(of(Customer)))


@question
def where(session, of):
    return rows(
        session, of(Customer).where(Customer.name.like("%a%")).with_only_columns(Customer.name).order_by(Customer.id)
    )


@question
def filter_by_a_joined_column(session, of):
    return sorted(line.product for line in session.scalars(of(Line).join(Line.order).filter_by(amount=20)))


@question
def inner_join(session, of):
    joined = of(Customer).join(Customer.orders).join(Order.lines)
    return rows(
        session, joined.with_only_columns(Customer.name, Order.id, Line.product).order_by(Order.id, Line.number)
    )


@question
def outer_join(session, of):
    joined = of(Customer).outerjoin(Customer.orders).with_only_columns(Customer.name, Order.amount)
    return rows(session, joined.order_by(Customer.id, Order.id))


@question
def self_join(session, of):
    boss = orm.aliased(Customer)
    joined = of(Customer).join(Customer.boss.of_type(boss)).with_only_columns(Customer.name, boss.name)
    return rows(session, joined.order_by(Customer.id))


@question
def has_and_any(session, of):
    rich, tagged = Customer.orders.any(Order.amount > 10), Customer.tags.any(Tag.label == "vip")
    at_home = Customer.shipping.has(Address.street == "Home")
    lonely = ~Customer.boss.has()
    return [
        rows(session, of(Customer).where(each).with_only_columns(Customer.name).order_by(Customer.id))
        for each in (rich, tagged, at_home, lonely)
    ]


@question
def exists_and_in(session, of):
    pens = sa.select(Line.order_id).where(Line.product.like("%pen"))
    return [
        rows(session, of(Order).where(each).with_only_columns(Order.id).order_by(Order.id))
        for each in (
            Order.id.in_(pens),
            sa.exists().where(Line.order_id == Order.id, Line.product.like("%ink")),
            ~sa.select(Line).where(Line.order_id == Order.id, Line.number > 1).exists(),
        )
    ]


@question
def contains_eager(session, of):
    statement = of(Customer).join(Customer.orders).where(Order.amount > 10).order_by(Customer.id, Order.id)
    found = session.scalars(statement.options(orm.contains_eager(Customer.orders))).unique()
    return [(customer.name, [order.amount for order in customer.orders]) for customer in found]


def _loaded(option: Callable[..., Any]) -> Question:
    def ask(session, of):
        options = [option(each) for each in (Customer.boss, Customer.billing, Customer.shipping, Customer.tags)]
        options += [option(Customer.team), getattr(option(Customer.orders), option.__name__)(Order.lines)]
        found = session.scalars(of(Customer).options(*options)).unique().all()
        with session.no_autoflush:
            return trees(found)

    return ask


for _option in (orm.joinedload, orm.selectinload, orm.subqueryload, orm.immediateload, orm.lazyload):
    QUESTIONS[_option.__name__] = _loaded(_option)


@question
def eager_loads_of_a_limited_select(session, of):
    limited = of(Customer).options(orm.joinedload(Customer.orders)).order_by(Customer.id.desc()).limit(1)
    by_subquery = limited.options(orm.subqueryload(Customer.tags))
    return [trees(session.scalars(each).unique()) for each in (limited, by_subquery)]


@question
def eager_loads_both_ways(session, of):
    up = orm.joinedload(Line.order).joinedload(Order.customer).selectinload(Customer.boss)
    return sorted(
        (line.product, line.order.amount, line.order.customer.name, line.order.customer.boss is None)
        for line in session.scalars(of(Line).options(up))
    )


@question
def filtered_eager_loads(session, of):
    some = orm.selectinload(Customer.orders.and_(Order.amount > 10))
    also = orm.with_loader_criteria(Tag, Tag.label != "new")
    found = session.scalars(of(Customer).options(some, orm.selectinload(Customer.tags), also).order_by(Customer.id))
    return [
        (each.name, sorted(order.id for order in each.orders), sorted(tag.label for tag in each.tags)) for each in found
    ]


@question
def two_paths(session, of):
    billing, shipping = orm.aliased(Address), orm.aliased(Address)
    joined = of(Customer).join(Customer.billing.of_type(billing)).join(Customer.shipping.of_type(shipping))
    return rows(session, joined.with_only_columns(Customer.name, billing.street, shipping.street).order_by(Customer.id))


@question
def many_to_many(session, of):
    joined = of(Customer).join(Customer.tags).with_only_columns(Customer.name, Tag.label)
    links = of(Customer).join(tagging).with_only_columns(tagging).order_by(*tagging.c)
    back = [sorted(each.name for each in tag.customers) for tag in session.scalars(of(Tag).order_by(Tag.id))]
    return rows(session, joined.order_by(Customer.id, Tag.id)), rows(session, links), back


@question
def order_limit_offset(session, of):
    ordered = of(Order).with_only_columns(Order.id, Order.amount).order_by(Order.amount.desc(), Order.id)
    return rows(session, ordered.limit(1)), rows(session, ordered.limit(2).offset(1))


@question
def aggregates(session, of):
    grouped = of(Order).join(Order.customer).group_by(Customer.name).order_by(Customer.name)
    columns = grouped.with_only_columns(Customer.name, sa.func.count(), sa.func.sum(Order.amount))
    total = of(Order).with_only_columns(sa.func.sum(Order.amount), sa.func.max(Order.amount))
    return rows(session, columns), rows(session, columns.having(sa.func.count() > 1)), rows(session, total)


@question
def cte(session, of):
    rich = sa.select(Order.customer_id, sa.func.sum(Order.amount).label("total")).group_by(Order.customer_id).cte()
    joined = of(Customer).join(rich, rich.c.customer_id == Customer.id).with_only_columns(Customer.name, rich.c.total)
    other = orm.aliased(rich)
    twice = of(Customer).join(rich, rich.c.customer_id == Customer.id).join(other, other.c.total >= rich.c.total)
    twice = twice.with_only_columns(Customer.name, rich.c.total, other.c.total)
    return [rows(session, joined.order_by(Customer.id)), rows(session, twice.order_by(Customer.id, other.c.total))]


@question
def recursive_cte(session, of):
    top = sa.select(Customer.id, sa.literal(0).label("depth")).where(Customer.boss_id.is_(None)).cte(recursive=True)
    below = orm.aliased(Customer)
    chain = top.union_all(sa.select(below.id, top.c.depth + 1).join(top, below.boss_id == top.c.id))
    joined = of(Customer).join(chain, chain.c.id == Customer.id).with_only_columns(Customer.name, chain.c.depth)
    return rows(session, joined.order_by(chain.c.depth, Customer.id))


@question
def grouped_by_key(session, of):
    """Select columns that depend on the grouped key; databases allow it for tables."""
    boss, count = orm.aliased(Customer), sa.func.count(Order.id)
    who = orm.load_only(Customer.name, Customer.city)
    found = session.execute(
        of(Customer)
        .options(who)
        .outerjoin(Customer.orders)
        .add_columns(count)
        .group_by(Customer.id)
        .having(Customer.name != "nobody")
        .order_by(sa.func.lower(Customer.name), Customer.id)
    )
    bosses = of(Customer).join(Customer.boss.of_type(boss)).with_only_columns(boss.name, sa.func.count())
    lines = of(Line).join(Line.order).with_only_columns(Line.product, Order.amount, sa.func.count())
    totals = of(Customer).join(Customer.orders).with_only_columns(Customer.name, sa.func.sum(Order.amount))
    return [
        [(customer.name, customer.city, orders) for customer, orders in found],
        rows(session, bosses.group_by(boss.id).order_by(boss.id)),
        rows(session, lines.group_by(Line.order_id, Line.number, Order.id).order_by(Order.id, Line.number)),
        rows(session, totals.group_by(Customer.id).order_by(Customer.id)),
    ]


@question
def union(session, of):
    cities = of(Customer).with_only_columns(Customer.city).where(Customer.city.is_not(None))
    streets = of(Address).with_only_columns(Address.street)
    return sorted(rows(session, cities.union(streets)))


@question
def window(session, of):
    rank = sa.func.rank().over(partition_by=Order.customer_id, order_by=Order.amount.desc())
    total = sa.func.sum(Order.amount).over(order_by=Order.id)
    return rows(session, of(Order).with_only_columns(Order.id, rank, total).order_by(Order.id))


@question
def subqueries(session, of):
    count = sa.select(sa.func.count()).where(Order.customer_id == Customer.id).correlate(Customer).scalar_subquery()
    scalar = of(Customer).with_only_columns(Customer.name, count).order_by(Customer.id)
    sums = sa.select(Order.customer_id, sa.func.sum(Order.amount).label("sum")).group_by(Order.customer_id).subquery()
    joined = of(Customer).outerjoin(sums, sums.c.customer_id == Customer.id).order_by(Customer.id)
    return rows(session, scalar), rows(session, joined.with_only_columns(Customer.name, sums.c.sum))


@question
def alias_of_a_subquery(session, of):
    big = orm.aliased(Order, sa.select(Order).where(Order.amount > 10).subquery())
    joined = of(Customer).join(big, big.customer_id == Customer.id)
    return rows(session, joined.with_only_columns(Customer.name, big.amount).order_by(big.id))


@question
def several_entities(session, of):
    found = session.execute(of(Customer).join(Customer.orders).add_columns(Order, Order.amount * 2).order_by(Order.id))
    return [(customer.name, order.amount, len(order.lines), double) for customer, order, double in found]


@question
def bundles_and_labels(session, of):
    bundle = orm.Bundle("who", Customer.id, Customer.name.label("called"))
    return [
        (row.who.id, row.who.called)
        for row in session.execute(of(Customer).with_only_columns(bundle).order_by(Customer.id))
    ]


@question
def hybrids(session, of):
    found = session.scalars(of(Customer).where(Customer.initial == "A").order_by(Customer.shout, Customer.id))
    return [(each.shout, each.initial) for each in found]


@question
def association_proxies(session, of):
    tagged = session.scalars(of(Customer).where(Customer.labels.contains("vip")).order_by(Customer.id)).all()
    return [(each.name, sorted(each.labels)) for each in tagged]


@question
def column_properties(session, of):
    found = session.scalars(of(Customer).where(Customer.spent > 5).order_by(Customer.spent, Customer.id))
    return [(each.name, each.spent) for each in found]


@question
def deferred_and_partial_loads(session, of):
    some = session.scalars(of(Customer).options(orm.load_only(Customer.city)).order_by(Customer.id)).all()
    late = session.scalars(of(Order).options(orm.defer(Order.amount)).order_by(Order.id)).all()
    return [(each.city, each.name, each.spent) for each in some], [each.amount for each in late]


@question
def streams(session, of):
    ordered = of(Customer).order_by(Customer.id)
    one_by_one = [each.name for each in session.scalars(ordered.execution_options(yield_per=1))]
    eager = ordered.options(orm.selectinload(Customer.orders).selectinload(Order.lines))
    return one_by_one, trees(session.scalars(eager.execution_options(stream_results=True)).all())


@question
def write_only_collections(session, of):
    found = session.scalars(of(Customer).order_by(Customer.id)).all()
    return [[visit.text for visit in session.scalars(each.visits.select().order_by(Visit.id))] for each in found]


@question
def dynamic_collections(session, of):
    found = session.scalars(of(Customer).order_by(Customer.id)).all()
    return [
        ([call.text for call in each.calls.order_by(Call.id)], each.calls.filter(Call.text == "again").count())
        for each in found
    ]


@question
def parents_in_criteria(session, of):
    found = session.scalars(of(Customer).order_by(Customer.id)).all()
    return [
        (
            rows(session, of(Order).where(Order.customer == each).with_only_columns(Order.id).order_by(Order.id)),
            rows(
                session,
                of(Tag).where(orm.with_parent(each, Customer.tags)).with_only_columns(Tag.label).order_by(Tag.id),
            ),
        )
        for each in found
    ]


@question
def distinct_and_case(session, of):
    size = sa.case((Order.amount > 10, "big"), else_="small").label("size")
    return rows(
        session, of(Order).with_only_columns(Order.customer_id, size).distinct().order_by(Order.customer_id, size)
    )


@question
def tables_and_their_aliases(session, of):
    customers, other = Customer.__table__, Customer.__table__.alias("other")
    joined = (
        of(Customer).join(other, other.c.boss_id == customers.c.id).with_only_columns(customers.c.name, other.c.name)
    )
    return rows(session, joined.order_by(customers.c.id, other.c.id))


# --- all there is -----------------------------------------------------------------------------------------------


def content(session: Session, *, history: bool = True) -> dict[str, list[Any]]:
    """Return the rows of every table, to check that nothing has changed."""
    return {
        name: sorted(map(repr, session.execute(sa.select(table))))
        for name, table in Base.metadata.tables.items()
        if history or not name.endswith("_history")
    }
