"""The rows that follow a row are erased with it, in the versions in which they followed it, and in no others."""

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, mapped_column, relationship

import sqlaudit
from sqlaudit import ERASED, QueryError, TrackingError, track_table
from sqlaudit.maintenance import ErasedTable, erase, erasures, hold, maintenance_tables, replay_erasures
from sqlaudit.tracking.tables import tracked_table

SECRET = "Lovelace"


class Base(orm.DeclarativeBase):
    pass


@track_table(personal=["name", "email"])
class Client(Base):
    __tablename__ = "clients"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(30))
    email: Mapped[str | None] = mapped_column(sa.String(30))
    points: Mapped[int] = mapped_column(default=0)


@track_table(subject="client_id", personal=["address"])
class Purchase(Base):
    __tablename__ = "purchases"
    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[int | None] = mapped_column(sa.ForeignKey(Client.id))
    address: Mapped[str] = mapped_column("shipped_to", sa.String(30))
    total: Mapped[int] = mapped_column(default=0)


@track_table(subject="purchase", personal=["engraving"])
class Item(Base):
    __tablename__ = "items"
    purchase_id: Mapped[int] = mapped_column(sa.ForeignKey(Purchase.id), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    engraving: Mapped[str | None] = mapped_column(sa.String(30))
    purchase: Mapped[Purchase] = relationship()


@track_table(subject="number", personal=["text"])
class Photo(Base):
    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[int | None] = mapped_column("purchase_number")
    number: Mapped[int | None]
    text: Mapped[str | None] = mapped_column(sa.String(30))
    __table_args__ = (sa.ForeignKeyConstraint(["purchase_number", "number"], [Item.purchase_id, Item.number]),)


@track_table()
class Case(Base):
    __tablename__ = "cases"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    title: Mapped[str | None] = mapped_column(sa.String(30))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "case"}


@track_table(subject="client_id", personal=["title", "text"])
class Complaint(Case):
    __tablename__ = "complaints"
    id: Mapped[int] = mapped_column(sa.ForeignKey(Case.id), primary_key=True)
    client_id: Mapped[int] = mapped_column(sa.ForeignKey(Client.id))
    text: Mapped[str | None] = mapped_column(sa.String(30))
    __mapper_args__ = {"polymorphic_identity": "complaint"}


@track_table(subject="guardian_id", personal=["name"])
class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)
    guardian_id: Mapped[int | None] = mapped_column(sa.ForeignKey("members.id"))
    name: Mapped[str | None] = mapped_column(sa.String(30))


maintenance_tables(Base.metadata)
VALUES = {Purchase: {"address": "-"}}


def happen(maker):
    """Purchase 1 is Ada's, 2 was hers and is Bob's, 3 is Bob's, 4 was hers and is deleted; each has an item."""
    with maker() as session:
        ada, bob = Client(id=1, name=f"{SECRET}", email="ada@example.com"), Client(id=2, name="Bob")
        session.add_all([ada, bob])
        session.flush()
        purchases = [Purchase(id=id, client_id=1 + (id == 3), address=f"{SECRET} street {id}") for id in (1, 2, 3, 4)]
        session.add_all(purchases)
        session.flush()
        session.add_all(items := [Item(purchase_id=id, number=1, engraving=f"{SECRET} {id}") for id in (1, 2, 3, 4)])
        session.flush()
        photos = [Photo(id=id, order=id, number=1, text=SECRET) for id in (1, 2, 3)]
        session.add_all([*photos, Photo(id=4, text="nobody's")])
        session.add_all([Case(id=1, title="a case"), Complaint(id=2, title="angry", text=SECRET, client_id=1)])
        session.add_all([Complaint(id=3, title="calm", text="fine", client_id=2), Member(id=1, name=SECRET)])
        session.flush()
        session.add_all([Member(id=2, name=f"{SECRET} jr", guardian_id=1), Member(id=3, name="Zoe")])
        session.commit()
        purchases[1].client_id, purchases[1].address = 2, "Bob's street"
        session.delete(items[3])
        session.flush()
        session.delete(purchases[3])
        session.commit()
        items[1].engraving, purchases[0].total = "for Bob", 5
        session.commit()


@pytest.fixture
def session(session, happened, clock):
    return session


def everything(session):
    """All rows of all tables, as text."""
    return repr([session.execute(sa.select(*table.c)).all() for table in Base.metadata.sorted_tables])


def seen(session, model, key, *names):
    return [tuple(getattr(version, name) for name in names) for version in sqlaudit.versions_of(session, model, key)]


def erase_ada(session, **options):
    record = erase(session, Client, 1, reason="request", values=VALUES, **options)
    session.commit()
    return record


def test_versions_that_followed_are_erased_and_no_others(session):
    before = {model: seen(session, model, 1, "id") for model in (Client, Purchase)}
    erase_ada(session)
    assert seen(session, Client, 1, "name", "email", "points") == [(ERASED, ERASED, 0)]
    assert seen(session, Purchase, 1, "address", "total") == [(ERASED, 0), (ERASED, 5)]
    assert seen(session, Purchase, 2, "client_id", "address") == [(1, ERASED), (2, "Bob's street")]
    assert seen(session, Purchase, 3, "address") == [(f"{SECRET} street 3",)]
    assert seen(session, Purchase, 4, "operation", "address") == [("insert", ERASED), ("delete", ERASED)]
    assert {model: seen(session, model, 1, "id") for model in (Client, Purchase)} == before


def test_what_follows_a_follower_is_erased_while_that_followed(session):
    erase_ada(session)
    assert seen(session, Item, (1, 1), "engraving") == [(ERASED,)]
    assert seen(session, Item, (2, 1), "engraving") == [(ERASED,), ("for Bob",)]
    assert seen(session, Item, (3, 1), "engraving") == [(f"{SECRET} 3",)]
    assert seen(session, Item, (4, 1), "operation", "engraving") == [("insert", ERASED), ("delete", ERASED)]


def test_rows_follow_by_a_key_of_several_columns(session):
    erase_ada(session)
    texts = [seen(session, Photo, id, "text") for id in (1, 2, 3, 4)]
    assert texts == [[(ERASED,)], [(ERASED,)], [(SECRET,)], [("nobody's",)]]


def test_live_rows_are_erased_while_they_follow(session):
    erase_ada(session)
    addresses = session.execute(sa.select(Purchase.id, Purchase.address).order_by(Purchase.id)).all()
    assert addresses == [(1, "-"), (2, "Bob's street"), (3, f"{SECRET} street 3")]
    engravings = session.scalars(sa.select(Item.engraving).order_by(Item.purchase_id)).all()
    assert engravings == [None, "for Bob", f"{SECRET} 3"]
    for model in (Client, Purchase, Item, Complaint):
        sqlaudit.record_changes(session, model)
    assert [len(seen(session, Purchase, id)) for id in (1, 2, 3)] == [2, 2, 1]


def test_a_subject_of_a_subclass_counts_for_its_rows(session):
    erase_ada(session)
    assert seen(session, Case, 2, "title", "text") == [(ERASED, ERASED)]
    assert seen(session, Case, 3, "title", "text") == [("calm", "fine")]
    assert session.get(Complaint, 2).title is None


@pytest.mark.spread
def test_a_row_may_follow_a_row_of_its_own_table_in_a_circle(session):
    session.get(Member, 1).guardian_id = 2
    session.commit()
    erase(session, Member, 2, reason="request")
    session.commit()
    assert [seen(session, Member, id, "name") for id in (1, 2, 3)] == [[(SECRET,), (ERASED,)], [(ERASED,)], [("Zoe",)]]


@pytest.mark.spread
def test_the_record_names_each_table_and_how_many_versions(session):
    record = erase_ada(session, fields=["name"])
    assert record.followers == (
        ErasedTable("cases", 1, ("text", "title"), 1),
        ErasedTable("items", 3, ("engraving",), 4),
        ErasedTable("photos", 2, ("text",), 2),
        ErasedTable("purchases", 3, ("shipped_to",), 5),
    )
    assert erasures(session, Client) == [record]
    assert sorted((each.key, each.versions, each.caused_by) for each in erasures(session, Purchase)) == [
        (1, 2, record.erasure_id),
        (2, 1, record.erasure_id),
        (4, 2, record.erasure_id),
    ]


@pytest.mark.spread
def test_erasing_again_does_nothing_but_to_new_followers(session):
    erase_ada(session)
    again = erase_ada(session)
    assert (again.versions, again.followers, len(erasures(session, Client))) == (0, (), 1)
    session.add(Purchase(id=9, client_id=1, address="a new one"))
    session.commit()
    record = erase_ada(session)
    assert (record.versions, record.followers) == (0, (ErasedTable("purchases", 1, ("shipped_to",), 1),))
    assert erasures(session, Client)[1:] == [record]


@pytest.mark.spread
def test_a_dry_run_reports_the_same_and_writes_nothing(session):
    before = everything(session)
    planned = erase_ada(session, dry_run=True)
    assert everything(session) == before
    record = erase_ada(session)
    assert (record.versions, record.followers) == (planned.versions, planned.followers)


def test_followers_are_erased_again_after_a_restore(session):
    erase(session, Client, 1, reason="request", values=VALUES)
    kept, of_purchases = erasures(session, Client), erasures(session, Purchase)
    session.rollback()  # as a restore from an older backup
    assert replay_erasures(session, Purchase, of_purchases) == 0
    assert replay_erasures(session, Client, kept, values=VALUES) == 13
    assert replay_erasures(session, Client, kept, values=VALUES) == 0
    session.commit()
    assert erasures(session, Client) == kept
    assert seen(session, Purchase, 2, "address") == [(ERASED,), ("Bob's street",)]


@pytest.mark.spread
def test_objects_of_followers_are_refreshed(session):
    purchase, past = session.get(Purchase, 1), _past_of(session)
    erase(session, Client, 1, reason="request", values=VALUES)
    assert (purchase.address, past.address) == ("-", ERASED)


def _past_of(session):
    then = sqlaudit.versions_of(session, Purchase, 1)[0].timestamp
    return session.scalars(sqlaudit.as_of(Purchase, then).where(Purchase.id == 1)).one()


def test_a_hold_on_a_follower_refuses_the_whole_erasure(session):
    hold(session, Item, (2, 1), reason="lawsuit")
    session.commit()
    before = everything(session)
    with pytest.raises(QueryError, match=r"'items' .* has a legal hold"):
        erase_ada(session)
    session.commit()
    assert everything(session) == before


@pytest.mark.spread
def test_a_row_that_sql_moved_past_sqlaudit_follows_as_it_is_now(session, engine):
    live = Purchase.__table__
    with engine.begin() as connection:
        connection.execute(sa.update(live).where(live.c.id == 3).values(client_id=1))
    erase_ada(session)
    assert seen(session, Purchase, 3, "address") == [(ERASED,)]
    session.expire_all()
    assert session.get(Purchase, 3).address == "-"


REFUSALS = {
    "a follower's column that cannot be NULL": ({"values": {}}, r"of 'purchases' .*=\{Purchase: \{'address': …"),
    "a value of a follower that is not erased": ({"values": {Purchase: {"total": 1}}}, "not erased"),
    "a value of a model that follows nothing": ({"values": {Client: {"name": "-"}}}, "Client, whose rows follow no"),
}


@pytest.mark.spread
@pytest.mark.parametrize(("arguments", "message"), REFUSALS.values(), ids=list(REFUSALS))
def test_what_cannot_be_erased_is_refused_and_nothing_is_written(session, arguments, message):
    before = everything(session)
    with pytest.raises(QueryError, match=message):
        erase(session, Client, 1, reason="request", **arguments)
    session.commit()
    assert everything(session) == before


@pytest.mark.spread
def test_a_follower_without_history_is_refused(session, engine):
    with engine.begin() as connection:
        new = {"id": 8, "client_id": 1, "shipped_to": "unknown", "total": 1}
        connection.execute(sa.insert(Purchase.__table__).values(new))
    with pytest.raises(QueryError, match=r"'purchases' 8 follows .* backfill"):
        erase_ada(session)


@pytest.mark.no_tables
def test_a_model_without_personal_fields_needs_fields(base):
    @track_table()
    class Note(base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)

    with orm.Session() as session, pytest.raises(QueryError, match="declares no personal fields"):
        erase(session, Note, 1, reason="request")


# --- declarations -----------------------------------------------------------------------------------------------


@pytest.mark.no_tables
def test_names_are_checked_when_they_are_given(base):
    class Note(base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str]
        hidden: Mapped[str]

    for options, message in (
        ({"subject": "client"}, "Note has no attribute 'client' for subject"),
        ({"personal": ["txt"]}, "Note has no column 'txt' for personal"),
        ({"personal": ["id"]}, "Note.id cannot be personal, because it shows"),
        ({"personal": ["hidden"], "exclude": ["hidden"]}, "Note.hidden cannot be personal, because it is excluded"),
        ({"personal": ["text"], "subject": "text"}, "Note.text cannot be personal, because it is the subject"),
    ):
        with pytest.raises(TrackingError, match=message):
            track_table(**options)(Note)
    assert tracked_table(Note.__table__) is None


@pytest.mark.spread
@pytest.mark.parametrize("subject", ["text", "notes", "untracked_id"])
def test_a_subject_that_refers_to_no_tracked_row_is_refused_before_anything_is_erased(base, session, subject):
    class Untracked(base):
        __tablename__ = "untracked"
        id: Mapped[int] = mapped_column(primary_key=True)

    @track_table(subject=subject)
    class Note(base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None]
        untracked_id: Mapped[int] = mapped_column(sa.ForeignKey(Untracked.id))
        parent_id: Mapped[int] = mapped_column(sa.ForeignKey("notes.id"))
        notes: Mapped[list["Note"]] = relationship()

    with pytest.raises(TrackingError, match=f"Note.{subject} is the subject of Note, and does not refer"):
        erase(session, Note, 1, fields=["text"], reason="request")
