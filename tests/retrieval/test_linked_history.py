"""Who gave this user that role? Links and owned rows are read by their table, and in the history of their owner."""

import pytest
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Integer, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from clock import at
from sqlaudit import (
    AuditContextManager,
    Operation,
    QueryError,
    SQLAuditWarning,
    TrackingError,
    all_versions,
    as_of,
    between,
    changes_in,
    changes_page,
    changesets,
    get_resource_changes,
    history_of,
    stream_resource_changes,
    track_table,
    versions_of,
)


class Base(DeclarativeBase):
    pass


ticket_tags = Table(
    "ticket_tags",
    Base.metadata,
    Column("ticket_id", ForeignKey("tickets.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer),
)
places = Table(
    "shop_places",
    Base.metadata,
    Column("tag_id", ForeignKey("tags.id")),
    Column("country", String(2)),
    Column("number", Integer),
)


@track_table()
class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50))
    author_id: Mapped[int | None] = mapped_column(ForeignKey("authors.id"))
    tags: Mapped[list["Tag"]] = relationship(secondary=ticket_tags)
    comments: Mapped[list["Comment"]] = relationship(back_populates="ticket")
    author: Mapped["Author | None"] = relationship()
    notes: Mapped[list["Note"]] = relationship()


@track_table()
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


@track_table()
class Comment(Base):
    __tablename__ = "comments"
    id: Mapped[int] = mapped_column(primary_key=True)
    ticket_id: Mapped[int | None] = mapped_column(ForeignKey("tickets.id"))
    text: Mapped[str] = mapped_column(String(50))
    kind: Mapped[str] = mapped_column(String(10))
    ticket: Mapped[Ticket | None] = relationship(back_populates="comments")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "comment"}


class Reply(Comment):
    __mapper_args__ = {"polymorphic_identity": "reply"}


@track_table()
class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    ticket_id: Mapped[int] = mapped_column(ForeignKey("tickets.id"))


def said(changes):
    return [
        (c.resource_type, c.resource_id, c.operation.value, c.field_name, c.old_value, c.new_value) for c in changes
    ]


@pytest.fixture
def lived(tables, clock, session):
    """Ticket 7 gets tag 3 and a comment, and loses the tag; the comment moves to ticket 8, and is deleted there."""

    def commit(user):
        with AuditContextManager(user_id=user):
            session.commit()

    first, second, tag = Ticket(id=7, title="a"), Ticket(id=8, title="b"), Tag(id=3, name="x")
    session.add_all([first, second, tag])
    commit("u0")
    first.tags.append(tag)
    comment = Reply(id=1, text="hm", ticket=first)
    session.add(comment)
    first.title = "c"
    commit("u1")
    first.tags.remove(tag)
    commit("u2")
    comment.ticket = second
    commit("u3")
    session.delete(comment)
    commit("u4")
    first.tags.append(tag)
    commit("u5")
    return session


LINKED = ("Ticket", 7, "link", "tags", None, (3,))
UNLINKED = ("Ticket", 7, "unlink", "tags", (3,), None)
MOVED = ("Comment", 1, "update", "ticket_id", 7, 8)
COMMENTED = [
    ("Comment", 1, "insert", "id", None, 1),
    ("Comment", 1, "insert", "kind", None, "reply"),
    ("Comment", 1, "insert", "text", None, "hm"),
    ("Comment", 1, "insert", "ticket_id", None, 7),
]
DELETED = [
    ("Comment", 1, "delete", "id", 1, None),
    ("Comment", 1, "delete", "kind", "reply", None),
    ("Comment", 1, "delete", "text", "hm", None),
    ("Comment", 1, "delete", "ticket_id", 8, None),
]
RENAMED = ("Ticket", 7, "update", "title", "a", "c")
WHOLE = [RENAMED, LINKED, *COMMENTED, UNLINKED, MOVED, LINKED]


def test_a_relationship_tells_who_made_its_links(lived):
    changes = get_resource_changes(Ticket.tags, lived, 7)
    assert said(changes) == [LINKED, UNLINKED, LINKED]
    assert [change.changed_by for change in changes] == ["u1", "u2", "u5"]
    assert get_resource_changes(Ticket.tags, lived, 8) == []
    assert said(get_resource_changes(Ticket.tags, lived, ["7", 8], filter_user_ids="u2")) == [UNLINKED]
    assert said(get_resource_changes(Ticket.tags, lived, newest_first=True, limit=1)) == [LINKED]


def test_a_relationship_tells_the_changes_of_the_rows_that_its_owner_had(lived):
    assert said(get_resource_changes(Ticket.comments, lived, 7)) == [*COMMENTED, MOVED]
    assert said(get_resource_changes(Ticket.comments, lived, 8)) == [MOVED, *DELETED]
    both = said(get_resource_changes(Ticket.comments, lived, [7, 8]))
    assert both == said(get_resource_changes(Ticket.comments, lived)) == [*COMMENTED, MOVED, *DELETED]
    assert said(get_resource_changes(Ticket.comments, lived, 7, filter_fields="ticket_id")) == [COMMENTED[-1], MOVED]


def test_the_history_of_a_row_includes_its_links_and_rows_in_one_order(lived):
    def read(**options):
        return said(get_resource_changes(Ticket, lived, 7, include=["tags", "comments"], **options))

    created = [("Ticket", 7, "insert", name, None, value) for name, value in (("id", 7), ("title", "a"))]
    assert read() == [*created, *WHOLE]
    assert read(newest_first=True) == read()[::-1]
    for size in (1, 3, 4):
        pages = [read(limit=size, offset=offset) for offset in range(0, len(WHOLE) + 3, size)]
        assert [change for page in pages for change in page] == read()
    assert said(stream_resource_changes(Ticket, lived, 7, include=["tags", "comments"])) == read()
    assert read(filter_fields="title", filter_user_ids=["u1"]) == [RENAMED, LINKED, *COMMENTED]


def test_by_its_table_a_link_is_a_row(lived):
    changes = get_resource_changes(ticket_tags, lived, (7, 3), limit=2)
    assert said(changes) == [
        ("ticket_tags", (7, 3), "insert", "tag_id", None, 3),
        ("ticket_tags", (7, 3), "insert", "ticket_id", None, 7),
    ]
    versions = versions_of(lived, ticket_tags, (7, 3))
    assert [(version.audit_operation, version.tag_id, version.place) for version in versions] == [
        (Operation.INSERT, 3, None),
        (Operation.DELETE, 3, None),
        (Operation.INSERT, 3, None),
    ]
    first, second, _ = versions
    assert first.next is second
    assert second.previous is first
    assert [change.field_name for change in second.changes] == ["ticket_id", "tag_id"]
    assert isinstance(first, history_of(ticket_tags))
    assert history_of(Ticket.tags) is history_of(ticket_tags)
    assert set(said(changes_in(lived, second.audit_changeset_id))) == {
        ("ticket_tags", (7, 3), "delete", "tag_id", 3, None),
        ("ticket_tags", (7, 3), "delete", "ticket_id", 7, None),
    }
    assert lived.scalars(all_versions(ticket_tags)).all() == versions
    assert lived.scalars(between(ticket_tags, at(0), at(1.5))).all() == [first]


def test_versions_of_a_relationship_are_those_of_all_that_it_has_led_to(lived):
    assert [version.audit_version for version in versions_of(lived, Ticket.tags, 7)] == [1, 2, 3]
    assert versions_of(lived, Ticket.tags, 8) == []
    assert [version.ticket_id for version in versions_of(lived, Ticket.comments, 8)] == [8, 8]


def test_links_are_read_as_of_an_instant(lived):
    for source in (ticket_tags, Ticket.tags):
        assert [lived.execute(as_of(source, at(second))).all() for second in (0, 1, 2)] == [[], [(7, 3, None)], []]
    assert lived.execute(as_of(ticket_tags, at(1)).where(ticket_tags.c.ticket_id == 8)).all() == []
    assert [comment.text for comment in lived.scalars(as_of(Ticket.comments, at(1)))] == ["hm"]


def test_what_a_relationship_does_not_lead_to_is_refused(lived):
    for source, error, text in (
        (Ticket.author, QueryError, "Read Author"),
        (Ticket.notes, TrackingError, "Note, which is not tracked"),
        (Ticket.title, QueryError, "Ticket.title is not a relationship"),
        (Note.__table__, TrackingError, "'notes' is not a tracked table"),
        (Note.id, TrackingError, "Note is not a tracked model"),
    ):
        for read in (
            lambda source=source: get_resource_changes(source, lived, 7),
            lambda source=source: versions_of(lived, source, 7),
            lambda source=source: history_of(source),
            lambda source=source: as_of(source, at(1)),
        ):
            with pytest.raises(error, match=text):
                read()
    for include, text in (("tag", "no relationship 'tag'"), (["tags", "author"], "Read Author")):
        with pytest.raises(QueryError, match=text):
            get_resource_changes(Ticket, lived, 7, include=include)
    with pytest.raises(QueryError, match="only a model has relationships"):
        get_resource_changes(Ticket.tags, lived, 7, include="comments")
    with pytest.raises(QueryError, match="a link has no fields"):
        get_resource_changes(Ticket.tags, lived, 7, filter_fields="place")


# --- other shapes of relationships


def test_links_of_composite_keys_of_subclasses_and_of_one_table(engine, sessions, base, clock):
    follows = Table(
        "follows",
        base.metadata,
        Column("follower_shop", Integer),
        Column("follower_number", Integer),
        Column("followed_number", Integer),
        Column("followed_shop", Integer),
        ForeignKeyConstraint(["follower_shop", "follower_number"], ["people.shop", "people.nr"]),
        ForeignKeyConstraint(["followed_shop", "followed_number"], ["people.shop", "people.nr"]),
    )

    @track_table()
    class Person(base):
        __tablename__ = "people"
        shop: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        number: Mapped[int] = mapped_column("nr", primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(String(10))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Chief(Person):
        __tablename__ = "chiefs"
        shop: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        followed: Mapped[list[Person]] = relationship(
            secondary=follows,
            primaryjoin=lambda: (Chief.shop == follows.c.follower_shop) & (Chief.number == follows.c.follower_number),
            secondaryjoin=lambda: (
                (Person.shop == follows.c.followed_shop) & (Person.number == follows.c.followed_number)
            ),
        )
        reports: Mapped[list["Report"]] = relationship()
        __table_args__ = (ForeignKeyConstraint(["shop", "number"], ["people.shop", "people.nr"]),)
        __mapper_args__ = {"polymorphic_identity": "chief"}

    @track_table(table_label="report")
    class Report(base):
        __tablename__ = "reports"
        id: Mapped[int] = mapped_column(primary_key=True)
        number: Mapped[int]
        shop: Mapped[int]
        __table_args__ = (ForeignKeyConstraint(["shop", "number"], ["chiefs.shop", "chiefs.number"]),)

    base.metadata.create_all(engine)
    with sessions() as session:
        chief, other = Chief(shop=1, number=2), Person(shop=3, number=4)
        session.add_all([chief, other, Report(id=1, shop=1, number=2)])
        session.flush()
        chief.followed.append(other)
        session.commit()
        expected = [("Chief", (1, 2), "link", "followed", None, (3, 4))]
        owned = [("report", 1, "insert", name, None, value) for name, value in (("id", 1), ("number", 2), ("shop", 1))]
        assert said(get_resource_changes(Chief.followed, session, ("1", 2))) == expected
        assert get_resource_changes(Chief.followed, session, (3, 4)) == []
        assert said(get_resource_changes(Chief.reports, session, [(1, 2), (2, 1)])) == owned
        everything = said(get_resource_changes(Chief, session, (1, 2), include=["followed", "reports"]))
        assert everything[-4:] == [*expected, *owned]
        [version] = versions_of(session, follows, (1, 2, 3, 4))
        assert (version.follower_shop, version.followed_shop) == (1, 3)


def test_a_link_class_is_read_like_a_model(engine, sessions, base, clock):
    @track_table()
    class Membership(base):
        __tablename__ = "memberships"
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
        role_id: Mapped[int] = mapped_column(ForeignKey("roles.id"), primary_key=True)
        since: Mapped[int | None]

    @track_table()
    class User(base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        roles: Mapped[list["Role"]] = relationship(secondary="memberships")
        memberships: Mapped[list[Membership]] = relationship(viewonly=True)

    @track_table()
    class Role(base):
        __tablename__ = "roles"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add(User(id=1, roles=[Role(id=5)]))
        session.commit()
        session.get_one(Membership, (1, 5)).since = 2024
        session.commit()
        user = session.get_one(User, 1)
        user.roles.clear()
        session.commit()
        assert said(get_resource_changes(User.roles, session, 1)) == [
            ("User", 1, "link", "roles", None, (5,)),
            ("User", 1, "unlink", "roles", (5,), None),
        ]
        changes = said(get_resource_changes(User.memberships, session, 1))
        assert ("Membership", (1, 5), "update", "since", None, 2024) in changes
        assert history_of(User.roles) is history_of(Membership.__table__) is Membership.History


def test_the_first_write_of_an_untracked_link_class_says_what_to_add(engine, sessions, base, clock):
    class Membership(base):
        __tablename__ = "memberships"
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
        role_id: Mapped[int] = mapped_column(ForeignKey("roles.id"), primary_key=True)

    @track_table()
    class User(base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        roles: Mapped[list["Role"]] = relationship(secondary=Membership.__table__)

    @track_table()
    class Role(base):
        __tablename__ = "roles"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all([User(id=1, roles=[Role(id=5)]), Role(id=6)])
        session.commit()
        assert said(get_resource_changes(User.roles, session, 1)) == [("User", 1, "link", "roles", None, (5,))]
        session.add(Membership(user_id=1, role_id=6))
        with pytest.warns(SQLAuditWarning, match=r"Decorate Membership with @track_table\(\)"):
            session.commit()


def test_ids_that_relationships_cannot_translate_are_refused(session, base, clock):
    @track_table(resource_id_field="code")
    class Shop(base):
        __tablename__ = "shops"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str] = mapped_column(String(10), unique=True)
        orders: Mapped[list["Order"]] = relationship()

    @track_table()
    class Order(base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        shop_code: Mapped[str] = mapped_column(ForeignKey("shops.code"))

    with pytest.raises(QueryError, match="does not lead to its rows by the key of Shop"):
        get_resource_changes(Shop.orders, session, 1)


# --- links and rows that move


def links_with_ids(base):
    return Table(
        "marks_of",
        base.metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("item_id", ForeignKey("items.id")),
        Column("label_id", ForeignKey("labels.id")),
    )


def link_class(base):
    @track_table()
    class MarkOf(base):
        __tablename__ = "marks_of"
        number: Mapped[int] = mapped_column("id", primary_key=True, autoincrement=False)
        item: Mapped[int | None] = mapped_column("item_id", ForeignKey("items.id"))
        label: Mapped[int | None] = mapped_column("label_id", ForeignKey("labels.id"))

    return MarkOf.__table__


@pytest.mark.parametrize("make_links", [links_with_ids, link_class])
def test_a_link_that_moves_is_removed_from_one_pair_and_made_for_another(make_links, engine, sessions, base, clock):
    links = make_links(base)

    @track_table()
    class Item(base):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)
        labels: Mapped[list["Label"]] = relationship(secondary=links, viewonly=make_links is link_class)

    @track_table()
    class Label(base):
        __tablename__ = "labels"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all([Item(id=1), Item(id=2), Label(id=5), Label(id=6)])
        session.flush()
        writes = [
            links.insert().values(id=9, item_id=1, label_id=5),
            links.update().values(label_id=6),
            links.update().values(item_id=2),
            links.update().values(item_id=1, label_id=5),
            links.update().values(item_id=None),
            links.update().values(item_id=2),
            links.delete(),
            links.insert().values(id=9, item_id=1, label_id=6),
        ]
        for write in writes:
            session.execute(write)
            session.commit()

        def linked(item, label):
            return ("Item", item, "link", "labels", None, (label,))

        def unlinked(item, label):
            return ("Item", item, "unlink", "labels", (label,), None)

        of_one = [linked(1, 5), unlinked(1, 5), linked(1, 6), unlinked(1, 6), linked(1, 5), unlinked(1, 5)]
        of_two = [linked(2, 6), unlinked(2, 6), linked(2, 5), unlinked(2, 5)]
        everything = [*of_one[:4], *of_two[:2], *of_one[4:], *of_two[2:], linked(1, 6)]

        for ids, expected in ((1, [*of_one, linked(1, 6)]), ("2", of_two), ([1, 2], everything), (None, everything)):
            assert said(get_resource_changes(Item.labels, session, ids)) == expected
            assert said(get_resource_changes(Item.labels, session, ids, newest_first=True)) == expected[::-1]
            for operation in ("link", "unlink", "update"):
                only = [change for change in expected if change[2] == operation]
                assert said(get_resource_changes(Item.labels, session, ids, filter_operations=operation)) == only
            assert said(get_resource_changes(Item.labels, session, ids, offset=2, limit=3)) == expected[2:5]
            only = [change for change in expected if change[5] == (6,)]
            assert said(get_resource_changes(Item.labels, session, ids, filter_new_values=6)) == only
            pages = changes_page(session, Item.labels, ids, size=1), changes_page(session, Item.labels, ids, size=99)
            assert said(pages[0]) == expected[:1]
            assert said(pages[1]) == expected
            found = [entry.changeset_id for entry in changesets(session, model=Item.labels, key=ids)]
            told = dict.fromkeys(change.changeset_id for change in get_resource_changes(Item.labels, session, ids))
            assert ids not in (1, "2") or found == [*told]


def test_a_place_that_another_takes_in_one_transaction_is_an_unlink_and_a_link(engine, sessions, base, clock):
    places = Table(
        "places",
        base.metadata,
        Column("item_id", ForeignKey("items.id"), primary_key=True),
        Column("place", Integer, primary_key=True),
        Column("label_id", ForeignKey("labels.id")),
    )

    @track_table()
    class Item(base):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(primary_key=True)
        labels: Mapped[list["Label"]] = relationship(secondary=places)

    @track_table()
    class Label(base):
        __tablename__ = "labels"
        id: Mapped[int] = mapped_column(primary_key=True)

    base.metadata.create_all(engine)
    with sessions() as session:
        session.add_all([Item(id=1), Label(id=5), Label(id=6)])
        session.flush()
        session.execute(places.insert().values(item_id=1, place=1, label_id=5))
        session.commit()
        session.execute(places.delete())
        session.execute(places.insert().values(item_id=1, place=1, label_id=6))
        session.commit()
        swapped = [("Item", 1, "unlink", "labels", (5,), None), ("Item", 1, "link", "labels", None, (6,))]
        linked = ("Item", 1, "link", "labels", None, (5,))
        assert said(get_resource_changes(Item.labels, session, 1)) == [linked, *swapped]
        assert said(get_resource_changes(Item, session, 1, include="labels"))[-2:] == swapped


def test_a_row_that_gets_the_key_of_one_of_another_owner_is_not_of_both(tables, clock, sessions):
    with sessions.begin() as session:
        session.add_all([Ticket(id=7, title="a"), Ticket(id=8, title="b"), Comment(id=1, text="hm", ticket_id=7)])
    with sessions.begin() as session:
        session.delete(session.get_one(Comment, 1))
    with sessions.begin() as session:
        session.add(Comment(id=1, text="well", ticket_id=8))
    with sessions() as session:
        made, removed, made_again = (entry.changeset_id for entry in changesets(session, model=Comment))
        for owner, expected in ((7, [made, removed]), (8, [made_again])):
            changes = get_resource_changes(Ticket.comments, session, owner)
            assert [*dict.fromkeys(change.changeset_id for change in changes)] == expected
            found = changesets(session, model=Ticket.comments, key=owner)
            assert [entry.changeset_id for entry in found] == expected


def test_the_changeset_that_moves_a_row_is_of_both_owners(lived):
    moved = next(change for change in get_resource_changes(Comment, lived) if change.operation == "update")
    for owner in (7, 8):
        found = changesets(lived, model=Ticket.comments, key=owner)
        assert moved.changeset_id in [entry.changeset_id for entry in found]
        told = {change.changeset_id for change in get_resource_changes(Ticket.comments, lived, owner)}
        assert {entry.changeset_id for entry in found} == told
