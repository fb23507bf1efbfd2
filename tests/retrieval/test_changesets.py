"""What changesets tell: every transaction that wrote tracked rows, in all the tables that a session can read."""

from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

import sqlaudit
from clock import at
from counting import counted
from registering import recording
from sqlaudit import (
    AuditContextManager,
    Changeset,
    QueryError,
    SQLAuditConfig,
    SQLAuditError,
    changes_in,
    changesets,
    changesets_page,
    history_of,
    set_config,
    tracking_disabled,
)
from sqlaudit.retrieval.changesets import instant_of_changeset

pytestmark = [pytest.mark.usefixtures("clock"), pytest.mark.spread]


class Base(DeclarativeBase):
    pass


links = sa.Table(
    "changesets_links",
    Base.metadata,
    sa.Column("customer_id", sa.ForeignKey("changesets_customers.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("changesets_tags.id"), primary_key=True),
)


@sqlaudit.track_table()
class Customer(Base):
    __tablename__ = "changesets_customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    tags: Mapped[list["Tag"]] = relationship(secondary=links)


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "changesets_tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))


class Elsewhere(DeclarativeBase):
    pass


@sqlaudit.track_table()
class Parcel(Elsewhere):
    __tablename__ = "changesets_parcels"

    id: Mapped[int] = mapped_column(primary_key=True)


def changeset_of(session: Session, model: type, number: int = 1) -> UUID:
    """Return the changeset of a version of the only row."""
    history = history_of(model)
    return session.scalars(sa.select(history.audit_changeset_id).where(history.audit_version == number)).one()


def happen(sessions):
    """Second 0: Ada adds a customer and a tag; 1: Bob links them; 2: Ada renames the customer."""
    with AuditContextManager(user_id="ada", reason="new", extra={"ip": "::1", "n": 1}), sessions.begin() as session:
        session.add_all([Customer(id=1, name="Ada"), Tag(id=1)])
    with AuditContextManager(user_id="bob", impersonated_by="eve"), sessions.begin() as session:
        customer = session.get_one(Customer, 1)
        customer.tags.append(session.get_one(Tag, 1))
    with AuditContextManager(user_id="ada"), sessions.begin() as session:
        session.get_one(Customer, 1).name = "Ada L."


# --- all changesets ---------------------------------------------------------------------------------------------


def test_changesets_tell_who_wrote_what_when_and_why(sessions, happened):
    with sessions() as session:
        first, second, third = changesets(session)
    assert first == Changeset(
        changeset_id=first.changeset_id,
        timestamp=at(0),
        changed_by="ada",
        reason="new",
        impersonated_by=None,
        extra={"ip": "::1", "n": 1},
        tables=("changesets_customers", "changesets_tags"),
    )
    assert (second.changed_by, second.impersonated_by, second.tables) == ("bob", "eve", ("changesets_links",))
    assert (third.timestamp, third.reason, third.tables) == (at(2), None, ("changesets_customers",))


@pytest.mark.parametrize(
    ("filters", "seconds"),
    [
        ({}, [0, 1, 2]),
        ({"newest_first": True}, [2, 1, 0]),
        ({"limit": 2}, [0, 1]),
        ({"limit": 2, "newest_first": True}, [2, 1]),
        ({"limit": 0}, []),
        ({"since": at(1)}, [1, 2]),
        ({"until": at(1)}, [0, 1]),
        ({"since": at(1), "until": at(1)}, [1]),
        ({"since": at(9)}, []),
        ({"user_id": "ada"}, [0, 2]),
        ({"user_id": "nobody"}, []),
        ({"user_id": "ada", "limit": 1, "newest_first": True}, [2]),
        ({"limit": 1, "offset": 1}, [1]),
        ({"offset": 1, "newest_first": True}, [1, 0]),
        ({"offset": 3, "limit": 2}, []),
        ({"reason": "new"}, [0]),
        ({"reason": "New"}, []),
        ({"extra": {"ip": "::1"}}, [0]),
        ({"extra": {"ip": "::1", "n": 1}}, [0]),
        ({"extra": {"ip": "::1", "n": 2}}, []),
        ({"extra": {}}, [0, 1, 2]),
        ({"model": Customer}, [0, 2]),
        ({"model": links}, [1]),
        ({"model": [links, Tag]}, [0, 1]),
        ({"model": Customer, "key": "1", "newest_first": True, "limit": 1}, [2]),
        ({"model": Customer, "key": 2}, []),
        ({"model": Customer, "key": "one"}, []),
        ({"model": Customer.tags, "key": 1}, [1]),
        ({"model": links, "key": (1, 1)}, [1]),
        ({"model": Customer, "user_id": "ada", "since": at(1)}, [2]),
    ],
)
def test_changesets_can_be_chosen(sessions, happened, filters, seconds):
    with sessions() as session:
        assert [each.timestamp for each in changesets(session, **filters)] == [at(second) for second in seconds]


@pytest.mark.parametrize(
    "filters",
    [
        {"limit": -1},
        {"limit": "2"},
        {"since": "yesterday"},
        {"until": 3},
        {"since": at(1), "until": at(0)},
        {"user_id": b"ada"},
        {"user_id": True},
        {"offset": -1},
        {"reason": 7},
        {"extra": "ip"},
        {"extra": {"ip": None}},
        {"key": 1},
        {"model": [Customer, Tag], "key": 1},
        {"model": Base},
    ],
)
def test_filters_that_make_no_sense_are_refused(sessions, filters):
    with sessions() as session, pytest.raises(SQLAuditError):
        changesets(session, **filters)


def test_a_transaction_that_changed_its_context_is_told_once_for_each(sessions):
    with sessions.begin() as session:
        with AuditContextManager(user_id="ada", reason="one"):
            session.add(customer := Customer(id=1, name="Ada"))
            session.flush()
        with AuditContextManager(user_id="bob", reason="two"):
            customer.name = "Bob"
            session.add(Tag(id=1))
            session.flush()
    with sessions() as session:
        first, second = changesets(session)
        assert first.changeset_id == second.changeset_id
        assert [(each.changed_by, each.reason) for each in (first, second)] == [("ada", "one"), ("bob", "two")]
        assert first.tables == ("changesets_customers",)
        assert second.tables == ("changesets_customers", "changesets_tags")
        assert [each.changed_by for each in changesets(session, user_id="bob")] == ["bob"]


def test_a_context_that_did_not_write_the_row_is_not_told(sessions):
    with sessions.begin() as session:
        for number, user in enumerate(("ada", "bob"), 1):
            with AuditContextManager(user_id=user):
                session.add(Customer(id=number))
                session.flush()
    with sessions() as session:
        for key, user in ((1, "ada"), (2, "bob")):
            assert [entry.changed_by for entry in changesets(session, model=Customer, key=key)] == [user]


def all_pages(session, size, **filters):
    pages, after = [], None
    while True:
        page = changesets_page(session, size=size, after=after, **filters)
        pages.append(page.items)
        after = page.next
        if after is None:
            return pages


def test_pages_of_changesets_hold_each_once(sessions):
    """Some transactions have the same instant, one has two contexts, and the instants of one are far apart."""
    for number in range(1, 6):
        with sessions.begin() as session:
            session.add_all([Customer(id=number), Tag()])
    for instant in (at(20), at(30), at(30), at(30), at(25)):
        set_config(SQLAuditConfig(clock=lambda instant=instant: instant))
        with sessions.begin() as session:
            for user in ("ada", "bob"):
                with AuditContextManager(user_id=user):
                    for customer in session.scalars(sa.select(Customer).where(Customer.id.in_([instant.second, 1, 2]))):
                        customer.name = f"{user} {customer.name}"
                    session.add(Tag())
                    session.flush()
    with sessions() as session:
        for filters in ({}, {"user_id": "bob"}, {"model": Tag}, {"model": Customer, "key": 1, "since": at(3)}):
            for newest_first in (False, True):
                found = changesets(session, newest_first=newest_first, **filters)
                assert len(found) > 4
                for size in (1, 2, 3, 99):
                    pages = all_pages(session, size, newest_first=newest_first, **filters)
                    assert [entry for page in pages for entry in page] == found
                    assert all(len({entry.changeset_id for entry in page}) <= size for page in pages)
        assert changesets_page(session, size=2, count=True).total == len(changesets(session))


def test_a_cursor_of_changesets_belongs_to_its_query(sessions, happened):
    with sessions() as session:
        cursor = changesets_page(session, size=1).next
        assert [entry.timestamp for entry in changesets_page(session, size=1, after=cursor)] == [at(1)]
        for filters in ({"newest_first": True}, {"user_id": "ada"}, {"model": Tag}, {"extra": {"a": 1}}):
            with pytest.raises(QueryError, match="another query"):
                changesets_page(session, after=cursor, **filters)
        with pytest.raises(QueryError, match="not a cursor"):
            changesets_page(session, after="x")
        with pytest.raises(QueryError, match="was altered"):
            changesets_page(session, after=cursor[:12] + "f" * 10 + cursor[22:])
        with pytest.raises(QueryError, match="size is 0"):
            changesets_page(session, size=0)


def test_the_baseline_of_a_first_change_is_no_context_of_its_own(sessions):
    with sessions() as session, tracking_disabled(session):
        session.add(Customer(id=1, name="Ada"))
        session.commit()
    with AuditContextManager(user_id="bob"), sessions.begin() as session:
        session.get_one(Customer, 1).name = "Bob"
    with sessions() as session:
        (only,) = changesets(session)
        assert only.changed_by == "bob"


def test_baselines_alone_are_a_changeset(sessions, engine, happened):
    with engine.begin() as connection:
        history = history_of(Customer).__table__
        connection.execute(sa.update(history).values(audit_operation="baseline", audit_changed_by=None))
    with sessions() as session:
        assert at(2) in [each.timestamp for each in changesets(session)]


def test_changesets_take_the_same_statements_however_many_there_are(sessions, engine):
    counts = []
    for number in range(1, 31):
        with sessions.begin() as session:
            session.add(Customer(id=number))
        if number in (1, 30):
            with sessions() as session, counted(engine) as statements:
                assert len(changesets(session)) == number
                assert len(changesets(session, limit=5)) == min(number, 5)
            counts.append(len([statement for statement in statements if "UNION ALL" in statement]))
    assert counts == [3, 3]


# --- what a changeset changed -----------------------------------------------------------------------------------


def test_the_changes_in_a_changeset_are_those_of_all_tables(sessions, happened):
    with sessions() as session:
        first, second, third = (each.changeset_id for each in changesets(session))
        told = [
            [(each.resource_type, each.resource_id, each.field_name, each.old_value, each.new_value) for each in found]
            for found in (changes_in(session, first), changes_in(session, str(second)), changes_in(session, third))
        ]
    assert sorted(told[0]) == [
        ("Customer", 1, "id", None, 1),
        ("Customer", 1, "name", None, "Ada"),
        ("Tag", 1, "id", None, 1),
    ]
    assert told[1] == [
        ("changesets_links", (1, 1), "customer_id", None, 1),
        ("changesets_links", (1, 1), "tag_id", None, 1),
    ]
    assert told[2] == [("Customer", 1, "name", "Ada", "Ada L.")]


def test_the_changes_in_a_changeset_say_who_made_them(sessions, happened):
    with sessions() as session:
        second = changesets(session)[1]
        for change in changes_in(session, second.changeset_id):
            assert (change.changed_by, change.impersonated_by) == ("bob", "eve")
            assert (change.timestamp, change.changeset_id, change.version) == (at(1), second.changeset_id, 1)


@pytest.mark.parametrize("limit", [0, 1, 3, 99])
@pytest.mark.spread
def test_the_first_changes_in_a_changeset_can_be_read_alone(sessions, happened, limit):
    with sessions() as session:
        first = changesets(session)[0].changeset_id
        assert changes_in(session, first, limit=limit) == changes_in(session, first)[:limit]


def test_an_unknown_changeset_changed_nothing_that_could_be_told(sessions):
    with sessions() as session:
        with pytest.raises(QueryError, match="00000000-0000-0000-0000-000000000001"):
            changes_in(session, UUID(int=1))
        with pytest.raises(QueryError, match="a changeset id"):
            changes_in(session, "one")


# --- the instant of a changeset ---------------------------------------------------------------------------------


def test_a_changeset_stands_for_its_instant(sessions):
    with sessions.begin() as session:
        session.add(Customer(id=1, name="Ada"))
    with sessions.begin() as session:
        session.add(Tag(id=1))
    with sessions() as session:
        first, second = changeset_of(session, Customer), changeset_of(session, Tag)
        assert instant_of_changeset(session, first) == at(0)
        assert instant_of_changeset(session, str(second)) == at(1)


def test_links_alone_make_a_changeset(sessions):
    with sessions.begin() as session:
        session.add_all([Customer(id=1), Tag(id=1)])
    with sessions.begin() as session:
        customer = session.get_one(Customer, 1)
        customer.tags.append(session.get_one(Tag, 1))
    with sessions() as session:
        history = Base.metadata.tables["changesets_links_history"]
        linked = session.scalars(sa.select(history.c.audit_changeset_id)).one()
        assert instant_of_changeset(session, linked) == at(1)


def test_what_is_not_flushed_yet_counts(sessions):
    with sessions() as session:
        session.add(Customer(id=1))
        session.flush()
        changeset = changeset_of(session, Customer)
        customer = session.get_one(Customer, 1)
        customer.name = "Ada"
        assert instant_of_changeset(session, changeset) == at(0)
        assert not session.dirty


@pytest.mark.parametrize("given", ["no uuid", 42, None, b"x"])
def test_what_is_no_uuid_is_no_changeset(sessions, given):
    with sessions() as session, pytest.raises(QueryError, match="a changeset id"):
        instant_of_changeset(session, given)


def test_a_changeset_that_no_table_has_is_unknown(sessions):
    with sessions() as session, pytest.raises(QueryError, match="00000000-0000-0000-0000-000000000001"):
        instant_of_changeset(session, UUID(int=1))


def test_tables_on_other_binds_are_looked_at_and_those_without_a_bind_are_not(database, engine, sessions):
    other = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with recording(other, Elsewhere.metadata) as elsewhere, elsewhere.begin() as session:
        session.add(Parcel(id=1))
        session.flush()
        changeset = changeset_of(session, Parcel)
    with sessions() as session, pytest.raises(QueryError):
        instant_of_changeset(session, changeset)
    with Session(binds={Customer: engine, Tag: engine}) as session, pytest.raises(QueryError):
        instant_of_changeset(session, changeset)
    with Session(binds={Base: engine, Elsewhere: other}) as session:
        assert instant_of_changeset(session, changeset)
    other.dispose()


class Older(DeclarativeBase):
    """Has a table of the same name, which is another."""


@sqlaudit.track_table()
class OldTag(Older):
    __tablename__ = "changesets_tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    colour: Mapped[str | None] = mapped_column(sa.String(50))


def test_of_two_tables_of_one_name_the_one_in_the_database_is_read(sessions, happened):
    with sessions() as session:
        first = changesets(session)[0]
        assert [each.resource_type for each in changes_in(session, first.changeset_id)].count("Tag") == 1
        assert "OldTag" not in {each.resource_type for each in changes_in(session, first.changeset_id)}


def test_of_two_tables_with_equal_histories_the_one_whose_live_table_is_there_is_read(sessions, happened, base):
    @sqlaudit.track_table(exclude=["hidden"])
    class Twin(base):
        __tablename__ = Tag.__tablename__

        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = mapped_column(sa.String(50))
        hidden: Mapped[str | None] = mapped_column(sa.String(50))

    with sessions() as session:
        first = changesets(session)[0]
        told = {each.resource_type for each in changes_in(session, first.changeset_id)}
        assert "Tag" in told
        assert "Twin" not in told


def test_a_limit_returns_the_first_of_all_changesets(sessions, clock):
    def write(*names: str, customers: int = 3) -> None:
        with sessions.begin() as session:
            for customer in session.scalars(sa.select(Customer).order_by(Customer.id).limit(customers)):
                customer.name = names[0]
            session.add_all(Tag(text=name) for name in names)

    with sessions.begin() as session:
        session.add_all(Customer(name="") for _ in range(60))
    for number in range(12):  # some have many versions in one table, some in the other
        write(*(["tag"] * (number % 5) ** 3), f"{number}", customers=number * 7 % 60)
    clock.now = at(3)
    write("late", customers=60)  # each version begins just after the one before it, so the changeset has many instants
    for number in range(3):
        write(f"{number} again", customers=30)
    with sessions() as session:
        everything = changesets(session)
        assert len(everything) == 17
        for limit in (0, 1, 2, 3, 7, 12, 16, 17, 40):
            assert changesets(session, limit=limit) == everything[:limit]
            assert changesets(session, limit=limit, newest_first=True) == everything[::-1][:limit]
            since = everything[2].timestamp
            later = changesets(session, since=since)
            assert changesets(session, since=since, limit=limit) == later[:limit]


def test_a_model_is_found_though_another_one_has_a_table_of_its_name(tables, base, sessions):
    @sqlaudit.track_table()
    class Same(base):
        __tablename__ = Tag.__tablename__

        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = mapped_column(sa.String(50))

    with sessions.begin() as session:
        session.add(Tag(id=1, text="a"))
    with sessions() as session:
        for model in (Tag, Same):
            (changeset,) = changesets(session, model=model, key=1)
            assert changeset.tables == (Tag.__tablename__,)
            assert list(changesets_page(session, model=model)) == [changeset]
