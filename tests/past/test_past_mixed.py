"""Past and present side by side: neither gets hold of the other's objects, rows or keys."""

import pickle
import warnings
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit
from clock import Clock, at
from registering import recording
from sqlaudit import QueryError, ReadOnlyError, SQLAuditWarning, as_of, time_travel, track_table

pytestmark = pytest.mark.spread


class Base(DeclarativeBase):
    pass


tagging = sa.Table(
    "tagging",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@track_table()
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str] = mapped_column(sa.String(20))


@track_table(exclude=["secret"])
class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(20))
    secret: Mapped[str | None] = mapped_column(sa.String(20))
    tags: Mapped[list[Tag]] = relationship(secondary=tagging)
    orders: Mapped[list["Order"]] = relationship(overlaps="customer")


@track_table()
class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    amount: Mapped[int]
    customer_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customers.id"))
    customer: Mapped[Customer | None] = relationship(overlaps="orders")


class Note(Base):
    """Not tracked."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int | None] = mapped_column(sa.ForeignKey("customers.id"))
    customer: Mapped[Customer | None] = relationship()


def happen(sessions: sessionmaker[Session]) -> None:
    """Let all be "then" in the second 0, and "now" since the second 1."""
    with sessions() as session:
        tag = Tag(id=1, label="then")
        ada, bob = (Customer(id=number, name="then", secret="s", tags=[tag]) for number in (1, 2))
        session.add_all(Order(id=number, amount=0, customer=ada) for number in (1, 2))
        session.add(bob)
        session.commit()
        for row in (tag, ada, bob):
            setattr(row, "label" if row is tag else "name", "now")
        for order in session.scalars(sa.select(Order)):
            order.amount = 1
        session.commit()


@pytest.fixture
def sessions(happened: None, clock: Clock, sessions: sessionmaker[Session]) -> sessionmaker[Session]:
    """Sessions that record, when that has happened."""
    return sessions


def then(session: Session, model: Any, id: int = 1) -> Any:
    return session.scalars(as_of(model, at(0)).where(model.id == id)).one()


# --- sessions without hooks -------------------------------------------------------------------------------------


def expunged(session: Session, model: Any) -> Any:
    past = then(session, model)
    session.expunge(past)
    return past


@pytest.mark.parametrize(
    "give",
    [
        lambda plain, order: plain.add(order),
        lambda plain, order: plain.add_all([order]),
        lambda plain, order: plain.add(pickle.loads(pickle.dumps(order))),
        lambda plain, order: plain.merge(order),
        lambda plain, order: plain.merge(order, load=False),
        lambda plain, order: plain.delete(order),
        lambda plain, order: plain.enable_relationship_loading(order),
    ],
    ids=["add", "add all", "unpickle", "merge", "merge without loading", "delete", "relationship loading"],
)
def test_a_session_without_hooks_takes_no_object_of_the_past(engine, session, give):
    order = expunged(session, Order)
    with Session(engine) as plain:
        plain.get_one(Customer, 1)  # which a past order would take for its customer
        with pytest.raises(QueryError, match=r"Order \(1,\) as of 2024-01-01T00:00:00\+00:00 .* register_hooks"):
            give(plain, order)
        assert order not in plain


def test_a_session_with_hooks_of_any_kind_takes_an_object_of_the_past(engine, session):
    order = expunged(session, Order)
    with recording(engine) as sessions, sessions() as other:
        other.get_one(Customer, 1)
        other.add(order)
        assert order.customer.name == "then"


# --- objects of the past that are made new ones -----------------------------------------------------------------


@pytest.mark.parametrize("given_to", ["the same session", "a session without hooks"])
def test_an_object_of_the_past_that_was_made_transient_is_added_as_a_new_one(engine, session, given_to):
    order = then(session, Order)
    orm.make_transient(order)
    session.rollback()
    order.id = 9
    with session if given_to == "the same session" else Session(engine) as other, warnings.catch_warnings():
        warnings.simplefilter("ignore", SQLAuditWarning)  # that the session without hooks writes
        other.add(order)
        other.flush()
        assert sa.inspect(order).identity_token is None
        assert other.get(Order, 9) is order
        assert (order.amount, order.customer.name) == (0, "now")
        order.amount = 5
        other.commit()
        assert other.scalars(sa.select(Order.amount).where(Order.id == 9)).all() == [5]


def test_an_excluded_column_of_an_object_that_was_made_transient_can_be_set(session):
    ada = then(session, Customer)
    orm.make_transient(ada)
    ada.id = 9
    assert ada.secret is None
    ada.secret = "new"
    session.add(ada)
    session.commit()
    assert session.get_one(Customer, 9).secret == "new"


# --- columns that are never stored ------------------------------------------------------------------------------

IN_TWO_PLACES = {
    "rows of one entity": lambda: as_of(Customer, at(0)).join(Order, Order.customer_id == Customer.id),
    "two entities": lambda: as_of(Order, at(0)).join(Order.customer).add_columns(Customer),
    "an alias": lambda: (
        as_of(Customer, at(0)).join(other := orm.aliased(Customer), other.id == Customer.id).add_columns(other)
    ),
    "a joined load": lambda: (
        as_of(Order, at(0)).join(Order.customer).add_columns(Customer).options(orm.joinedload(Order.customer))
    ),
    "a contained load": lambda: (
        as_of(Order, at(0)).join(Order.customer).add_columns(Customer).options(orm.contains_eager(Order.customer))
    ),
    "a load of a few columns": lambda: as_of(Customer, at(0)).options(orm.load_only(Customer.secret)),
    "an undeferred column": lambda: as_of(Customer, at(0)).options(orm.defer(Customer.name), orm.undefer("*")),
}


@pytest.mark.parametrize("statement", IN_TWO_PLACES.values(), ids=IN_TWO_PLACES)
def test_an_excluded_column_raises_however_often_a_result_has_the_object(session, statement):
    customers = {each for row in session.execute(statement()).unique() for each in row if isinstance(each, Customer)}
    assert customers
    for again in range(2):
        for customer in customers:
            with pytest.raises(QueryError, match=r"Customer\.secret is excluded from history"):
                _ = customer.secret
            assert customer.name == "then"
        if again == 0:
            session.execute(statement()).unique().all()
    assert session.get_one(Customer, 1).secret == "s"


def test_an_excluded_column_that_is_asked_for_alone_raises(session):
    ada = then(session, Customer)
    for ask in (session.refresh, session.expire):
        ask(ada, ["secret"])
        with pytest.raises(QueryError, match=r"Customer\.secret is excluded from history"):
            _ = ada.secret
    assert not session.dirty


def test_an_excluded_column_that_is_deferred_raises_too(session, base, engine):
    @track_table(exclude=["photo"])
    class Person(base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        photo: Mapped[str] = mapped_column(sa.String(20), deferred=True)

    base.metadata.create_all(engine)
    session.add(Person(id=1, photo="live"))
    session.commit()
    for options in ([], [orm.undefer(Person.photo)]):
        past = session.scalars(as_of(Person, at(2)).options(*options)).one()
        with pytest.raises(QueryError, match=r"Person\.photo is excluded from history"):
            _ = past.photo
    assert session.get_one(Person, 1).photo == "live"


@pytest.fixture
def house(session, base, engine) -> tuple[Session, Any, Any]:
    """A session, a doctor and her patients; nothing is known of who is whose patient."""

    @track_table()
    class Doctor(base):
        __tablename__ = "doctors"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        patients: Mapped[list["Patient"]] = relationship(back_populates="doctor")

    @track_table(exclude=["doctor_id"])
    class Patient(base):
        __tablename__ = "patients"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        doctor_id: Mapped[int] = mapped_column(sa.ForeignKey("doctors.id"))
        doctor: Mapped[Doctor] = relationship(back_populates="patients")

    base.metadata.create_all(engine)
    session.add(Patient(id=1, doctor=Doctor(id=1)))
    session.commit()
    return session, Doctor, Patient


@pytest.mark.parametrize(
    "load",
    [orm.lazyload, orm.joinedload, orm.selectinload, orm.subqueryload, orm.immediateload, orm.contains_eager],
)
def test_a_relationship_by_an_excluded_column_raises(house, load):
    session, doctor_class, patient_class = house
    for model, name in ((doctor_class, "patients"), (patient_class, "doctor")):
        statement = as_of(model, at(2)).options(load(getattr(model, name)))
        if load is orm.contains_eager:
            statement = statement.outerjoin(getattr(model, name))
        past = session.scalars(statement).unique().one()
        with pytest.raises(QueryError, match=f"{name} needs a column that is excluded from history"):
            getattr(past, name)
        session.expire(past)
        with pytest.raises(QueryError, match=f"{name} needs a column that is excluded from history"):
            getattr(past, name)


def test_a_relationship_by_an_excluded_column_is_there_in_the_present(house):
    session, doctor_class, _ = house
    session.scalars(as_of(doctor_class, at(2))).all()
    for load in (orm.lazyload, orm.joinedload, orm.selectinload):
        session.expunge_all()
        (doctor,) = session.scalars(sa.select(doctor_class).options(load(doctor_class.patients))).unique()
        assert [patient.doctor for patient in doctor.patients] == [doctor]


@pytest.fixture
def team(session, base, engine) -> tuple[Session, Any]:
    """A session that holds a person with two others; what each earns is excluded from history."""

    @track_table(exclude=["wage"])
    class Person(base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        wage: Mapped[int | None] = mapped_column()
        boss_id: Mapped[int | None] = mapped_column(sa.ForeignKey("people.id"))
        is_paid = orm.column_property(sa.func.coalesce(wage.column, 0) > 0)
        late_is_paid = orm.column_property(wage.column.is_not(None), deferred=True)

    of_boss, rich = Person.boss_id == orm.remote(Person.id), sa.select(Person).where(Person.wage > 5)
    other, of_rich, of_ranked = (
        orm.aliased(Person),
        orm.aliased(Person, rich.subquery()),
        sa.select(Person.id, Person.wage),
    )
    ranked = of_ranked.subquery()
    relations = {
        "boss": {"primaryjoin": of_boss},
        "rich_team": {"argument": of_rich, "primaryjoin": Person.id == of_rich.boss_id},
        "equals": {
            "secondary": ranked,
            "primaryjoin": Person.wage == orm.foreign(ranked.c.wage),
            "secondaryjoin": Person.id == orm.foreign(ranked.c.id),
        },
        "rich_dynamic": {
            "primaryjoin": sa.and_(Person.id == orm.foreign(orm.remote(Person.boss_id)), orm.remote(Person.wage) > 5),
            "lazy": "dynamic",
        },
        "rich_write_only": {
            "primaryjoin": sa.and_(Person.id == orm.foreign(orm.remote(Person.boss_id)), orm.remote(Person.wage) > 5),
            "lazy": "write_only",
        },
    }
    for name, options in relations.items():
        Person.__mapper__.add_property(name, relationship(**{"argument": Person, "viewonly": True, **options}))
    count = sa.select(sa.func.count(other.id)).where(other.boss_id == Person.id)
    Person.team_size = orm.column_property(count.correlate_except(other).scalar_subquery())
    Person.rich_size = orm.column_property(count.where(other.wage > 5).correlate_except(other).scalar_subquery())
    base.metadata.create_all(engine)
    session.add_all([Person(id=1, wage=1), Person(id=2, wage=9, boss_id=1), Person(id=3, boss_id=1)])
    session.commit()
    return session, Person


@pytest.mark.parametrize(
    "name",
    ["is_paid", "late_is_paid", "rich_size", "rich_team", "equals", "rich_dynamic", "rich_write_only"],
)
@pytest.mark.parametrize("load", [orm.lazyload, orm.joinedload, orm.selectinload])
def test_what_is_computed_from_an_excluded_column_raises(team, name, load):
    """Else a count of the past would be 0, and a collection empty."""
    session, person_class = team
    options = [orm.undefer("*"), *(load(each) for each in (person_class.rich_team, person_class.equals))]
    past = session.scalars(as_of(person_class, at(2)).where(person_class.id == 1).options(*options)).unique().one()
    for again in range(2):
        with pytest.raises(QueryError, match=rf"Person\.{name} needs a column that is excluded from history"):
            past.rich_write_only.select() if name == "rich_write_only" else getattr(past, name)
        if again == 0:
            session.expire(past)
    assert (past.team_size, past.boss) == (2, None)
    live = session.get_one(person_class, 1)
    assert (live.is_paid, live.late_is_paid, live.rich_size, live.team_size) == (True, True, 1, 2)
    assert [each.id for each in live.rich_team] == [each.id for each in live.rich_dynamic] == [2]
    assert [each.id for each in session.scalars(live.rich_write_only.select())] == [2]


# --- bulk statements --------------------------------------------------------------------------------------------

BULK = {
    "update": lambda session, model, options: session.execute(
        sa.update(model).where(model.amount < 9).values(amount=7), execution_options=options
    ),
    "delete": lambda session, model, options: session.execute(
        sa.delete(model).where(model.amount < 9), execution_options=options
    ),
    "update of a query": lambda session, model, options: (
        session.query(model).filter(model.amount < 9).update({"amount": 7}, **options)
    ),
    "delete of a query": lambda session, model, options: (
        session.query(model).filter(model.amount < 9).delete(**options)
    ),
}


@pytest.mark.parametrize("synchronize", [None, "auto", "evaluate", "fetch", False])
@pytest.mark.parametrize("write", BULK.values(), ids=BULK)
def test_a_bulk_statement_leaves_objects_of_the_past_alone(session, write, synchronize):
    past, live = then(session, Order), session.get_one(Order, 2)
    write(session, Order, {} if synchronize is None else {"synchronize_session": synchronize})
    assert past in session
    assert sa.inspect(past).dict["amount"] == 0
    assert not session.is_modified(past)
    if synchronize is not False:
        assert live not in session or live.amount == 7
    session.commit()
    assert (past.amount, past.customer.name) == (0, "then")


@pytest.mark.filterwarnings("ignore::sqlaudit.SQLAuditWarning")
def test_a_bulk_statement_in_a_lambda_leaves_objects_of_the_past_alone(session):
    past, live = then(session, Order), session.get_one(Order, 2)
    session.execute(sa.lambda_stmt(lambda: sa.update(Order).where(Order.amount < 9).values(amount=7)))
    assert (sa.inspect(past).dict["amount"], live.amount) == (0, 7)


@pytest.mark.requires("update_returning")
@pytest.mark.filterwarnings("ignore::sqlaudit.SQLAuditWarning")
def test_objects_are_selected_from_a_statement_beside_those_of_the_past(session):
    past = then(session, Order)
    statement = sa.update(Order).where(Order.id == 2).values(amount=7).returning(Order)
    assert [order.amount for order in session.scalars(sa.select(Order).from_statement(statement))] == [7]
    assert sa.inspect(past).dict["amount"] == 0


def test_a_bulk_update_by_keys_leaves_objects_of_the_past_alone(session):
    past, live = then(session, Order), session.get_one(Order, 1)
    session.execute(sa.update(Order), [{"id": 1, "amount": 7}, {"id": 2, "amount": 8}])
    assert (past.amount, live.amount) == (0, 7)


# --- references from one to the other ---------------------------------------------------------------------------


REFERENCES = {
    "assign": lambda session, ada: setattr(session.get_one(Order, 1), "customer", ada),
    "assign to a new object": lambda session, ada: session.add(Order(id=9, amount=1, customer=ada)),
    "assign to an untracked object": lambda session, ada: session.add(Note(id=9, customer=ada)),
    "append": lambda session, ada: session.get_one(Customer, 2).tags.append(then(session, Tag)),
    "replace": lambda session, ada: setattr(session.get_one(Customer, 2), "tags", [then(session, Tag)]),
    "append to a new object": lambda session, ada: session.add(Customer(id=9, name="new", tags=[then(session, Tag)])),
    "assign one of another instant": lambda session, ada: setattr(
        session.scalars(as_of(Order, at(1)).where(Order.id == 1)).one(), "customer", ada
    ),
    "append a past child": lambda session, ada: session.get_one(Customer, 2).orders.append(then(session, Order)),
    "append to a past parent": lambda session, ada: ada.orders.append(session.get_one(Order, 1)),
}


@pytest.mark.parametrize("refer", REFERENCES.values(), ids=REFERENCES)
def test_no_live_object_takes_the_key_of_a_past_one(session, refer):
    before = session.execute(sa.select(Order.id, Order.customer_id)).all(), session.execute(sa.select(tagging)).all()
    ada = then(session, Customer, 2)

    def write() -> None:
        refer(session, ada)
        session.commit()

    with pytest.raises(ReadOnlyError, match=r"\(\d,\) as of 2024-01-01T00:00:00\+00:00 "):
        write()
    session.rollback()
    assert before == (
        session.execute(sa.select(Order.id, Order.customer_id)).all(),
        session.execute(sa.select(tagging)).all(),
    )


def test_what_is_refused_leaves_the_live_object_as_it_was(session):
    order, bob = session.get_one(Order, 1), session.get_one(Customer, 2)
    for refer in (
        lambda: setattr(order, "customer", then(session, Customer)),
        lambda: bob.tags.append(then(session, Tag)),
    ):
        with pytest.raises(ReadOnlyError, match="Assign the live object"):
            refer()
    assert (order.customer.name, [tag.label for tag in bob.tags]) == ("now", ["now"])
    assert not session.is_modified(order)
    session.commit()


# --- sessions of the past ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [orm.lazyload, orm.joinedload, orm.selectinload, orm.subqueryload, orm.immediateload])
def test_a_session_of_the_past_reads_a_statement_of_another_instant_as_of_that_one(session, load):
    with time_travel(session, at(1)) as past:
        now = past.get_one(Order, 1)
        order = past.scalars(as_of(Order, at(0)).where(Order.id == 1).options(load(Order.customer))).unique().one()
        assert (now.amount, now.customer.name, now.customer.tags[0].label) == (1, "now", "now")
        assert (order.amount, order.customer.name, order.customer.tags[0].label) == (0, "then", "then")
        past.expire(order)
        past.refresh(order.customer)
        assert (order.amount, order.customer.name) == (0, "then")
        assert past.get_one(Order, 1) is now
        assert past.scalars(sa.select(Order).where(Order.id == 1)).one() is now
        assert past.scalar(sa.select(Customer.name).where(Customer.id == 1)) == "now"
        order.amount = 5
        with pytest.raises(ReadOnlyError):
            past.flush()
        past.expunge(order)


def test_a_session_of_the_past_reads_a_statement_of_another_changeset_as_of_that_one(session):
    changesets = [version.audit_changeset_id for version in sqlaudit.versions_of(session, Customer, 1)]
    with time_travel(session, changesets[1]) as past:
        assert [past.scalar(as_of(Customer, each).with_only_columns(Customer.name)) for each in changesets] == [
            "then",
            "now",
        ]
        order = past.scalars(as_of(Order, changesets[0]).where(Order.id == 1)).one()
        assert (order.customer.name, past.get_one(Customer, 1).name) == ("then", "now")


# --- objects of the past that nothing happens to ----------------------------------------------------------------


def merge_a_graph(session: Session, order: Order, sessions: sessionmaker[Session]) -> Session:
    session.expunge_all()
    session.rollback()
    other = sessions()
    merged = other.merge(order)
    assert (merged.amount, merged.customer.name, merged.customer.tags[0].label) == (0, "then", "then")
    return other


def merge_into_what_is_there(session: Session, order: Order, sessions: sessionmaker[Session]) -> Session:
    session.expunge_all()
    session.rollback()
    other = sessions()
    there = [then(other, Order), *then(other, Customer).orders, *then(other, Customer).tags]
    assert other.merge(order) is there[0]
    other.merge(order)
    return other


def assign_what_it_has(session: Session, order: Order, sessions: sessionmaker[Session]) -> Session:
    order.amount, order.customer, order.customer.tags = 0, order.customer, list(order.customer.tags)
    return session


def change_it_and_back(session: Session, order: Order, sessions: sessionmaker[Session]) -> Session:
    order.amount = 9
    order.amount = 0
    return session


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("happen", [merge_a_graph, merge_into_what_is_there, assign_what_it_has, change_it_and_back])
def test_an_object_of_the_past_that_is_as_it_was_can_be_flushed(sessions, session, happen, tracking):
    order = then(session, Order)
    assert (order.customer.name, len(order.customer.orders), len(order.customer.tags)) == ("then", 2, 1)
    with happen(session, order, sessions) as other:
        assert other.dirty
        if tracking:
            other.flush()
        else:
            other.info["sqlaudit_disabled"] = 1
            other.flush()
        assert not other.dirty
        other.get_one(Order, 2).amount = 2
        other.commit()
        versions = sqlaudit.versions_of(other, Order, 1), sqlaudit.versions_of(other, Order, 2)
        assert [len(each) for each in versions] == [2, 3 if tracking else 2]


def test_a_session_of_the_past_ends_though_an_object_was_given_what_it_has(session):
    with time_travel(session, at(0)) as past:
        order = past.get_one(Order, 1)
        order.amount = 0
    with pytest.raises(ReadOnlyError), time_travel(session, at(0)) as past:
        past.get_one(Order, 1).amount = 1


def test_a_merged_object_of_the_past_that_was_changed_is_refused(sessions, session):
    order = then(session, Order)
    with sessions() as other:
        other.merge(order).amount = 5
        with pytest.raises(ReadOnlyError, match="is read-only"):
            other.flush()


# --- lambdas ----------------------------------------------------------------------------------------------------


def names_by_lambda(session: Session, statement: Any, least: int) -> list[tuple[int, str]]:
    by_lambda = sa.lambda_stmt(lambda: statement.where(Customer.id >= least))
    by_lambda += lambda given: given.order_by(Customer.id)
    return [(each.id, each.name) for each in session.scalars(by_lambda)]


def test_a_statement_of_the_past_in_a_lambda_is_of_its_own_instant_each_time(session):
    changesets = [version.audit_changeset_id for version in sqlaudit.versions_of(session, Customer, 1)]
    instants = at(0), at(1), at(0), *changesets
    for when, name in zip(instants, ("then", "now", "then", "then", "now"), strict=True):
        assert names_by_lambda(session, as_of(Customer, when), 1) == [(1, name), (2, name)]
        assert names_by_lambda(session, as_of(Customer, when), 2) == [(2, name)]
    assert names_by_lambda(session, sa.select(Customer), 2) == [(2, "now")]
    with time_travel(session, at(0)) as past:
        assert names_by_lambda(past, sa.select(Customer), 2) == [(2, "then")]
        assert names_by_lambda(past, as_of(Customer, at(1)), 2) == [(2, "now")]


def test_a_subquery_of_the_past_in_a_lambda_is_of_its_own_instant_each_time(session):
    def names(rows: Any) -> list[str]:
        return list(session.scalars(sa.lambda_stmt(lambda: sa.select(rows.c.name).where(rows.c.id == 1))))

    assert [names(as_of(Customer, at(second)).subquery()) for second in (0, 1, 0)] == [["then"], ["now"], ["then"]]


def test_an_instant_that_is_a_variable_of_a_lambda_is_refused(session):
    for when in (at(0), at(1)):
        with pytest.raises(QueryError, match="Make the statement before the lambda"):
            session.scalars(sa.lambda_stmt(lambda: as_of(Customer, when)))  # noqa: B023  # called at once
