"""What changes nothing costs nothing: no statement to a history for an equal value, no second compilation of a read."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from counting import counted
from sqlaudit import SQLAuditConfig, as_of, set_config, time_travel, track_table, tracking_disabled, versions_of

Name = sa.String(50)


class Base(orm.DeclarativeBase):
    pass


tagging = sa.Table(
    "tagging",
    Base.metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


class Country(Base):
    """Not tracked; the database changes items with it."""

    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(sa.String(2), primary_key=True)


@track_table()
class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)


@track_table()
class Group(Base):
    __tablename__ = "item_groups"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(Name)
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("item_groups.id", ondelete="CASCADE"))
    parent: Mapped["Group | None"] = relationship(remote_side=id, back_populates="children")
    children: Mapped[list["Group"]] = relationship(back_populates="parent")
    items: orm.WriteOnlyMapped["Item"] = relationship(back_populates="group")
    queried: orm.DynamicMapped["Item"] = relationship(viewonly=True)


@dataclass
class Both:
    name: str | None
    number: int | None


@track_table()
class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(Name)
    number: Mapped[int | None]
    data: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON)
    revision: Mapped[int] = mapped_column()
    group_id: Mapped[int | None] = mapped_column(sa.ForeignKey("item_groups.id"))
    country: Mapped[str | None] = mapped_column(sa.ForeignKey("countries.code", onupdate="CASCADE"))
    group: Mapped[Group | None] = relationship(back_populates="items")
    tags: Mapped[list[Tag]] = relationship(secondary=tagging)
    alias: orm.Synonym[str | None] = orm.synonym("name")
    both: Mapped["Both"] = orm.composite("name", "number")
    __mapper_args__ = {"version_id_col": revision}


def happen(sessions: orm.sessionmaker[Session]) -> None:
    with sessions.begin() as session:
        session.add(Country(code="NO"))
        group = Group(id=1, name="g", children=[Group(id=2, name="h")])
        session.add(Item(id=1, name="a", number=1, data={"x": [1]}, country="NO", group=group, tags=[Tag(id=1)]))


def there_and_back(session: Session) -> None:
    item = session.get_one(Item, 1)
    item.name, item.number = "b", 2
    item.name, item.number = "a", 1


def all_attributes(session: Session) -> None:
    item = session.get_one(Item, 1)
    for attribute in sa.inspect(Item).column_attrs:
        setattr(item, attribute.key, getattr(item, attribute.key))


def an_equal_document(session: Session) -> None:
    session.get_one(Item, 1).data = {"x": [1]}


def the_key_that_others_refer_to(session: Session) -> None:
    group = session.get_one(Group, 1)
    group.id = 3
    group.id = 1


def the_key_of_an_untracked_row(session: Session) -> None:
    country = session.get_one(Country, "NO")
    country.code = "NO"


def the_same_objects(session: Session) -> None:
    item = session.get_one(Item, 1)
    item.group, item.tags = session.get_one(Group, item.group.id), list(item.tags)


def a_link_removed_and_made_again(session: Session) -> None:
    item = session.get_one(Item, 1)
    item.tags.append(item.tags.pop())


def of_a_row_that_is_loaded_in_part(session: Session) -> None:
    item = session.get_one(Item, 1, options=[orm.load_only(Item.name, Item.revision)])
    item.name = "b"
    item.name = "a"


def a_merged_copy(session: Session) -> None:
    item = session.get_one(Item, 1)
    values = {attribute.key: getattr(item, attribute.key) for attribute in sa.inspect(Item).column_attrs}
    session.merge(Item(**values, tags=[Tag(id=1)]))


def by_a_synonym_and_a_composite(session: Session) -> None:
    item = session.get_one(Item, 1)
    item.alias = item.alias
    item.both = Both(item.name, item.number)


UNCHANGED = [
    a_merged_copy,
    by_a_synonym_and_a_composite,
    there_and_back,
    all_attributes,
    an_equal_document,
    the_key_that_others_refer_to,
    the_key_of_an_untracked_row,
    the_same_objects,
    a_link_removed_and_made_again,
    of_a_row_that_is_loaded_in_part,
]


@pytest.mark.spread
@pytest.mark.parametrize("assign", UNCHANGED, ids=lambda assign: assign.__name__)
def test_an_attribute_that_keeps_its_value_sends_no_statement(assign: Callable[[Session], None], happened, session):
    assign(session)
    with counted(session.get_bind()) as statements:
        session.flush()
    assert statements == []
    assert [version.audit_operation for version in versions_of(session, Item, 1)] == ["insert"]


@pytest.mark.parametrize("event", ["before_flush", "before_update"])
def test_what_a_listener_changes_after_all_is_told_whole(event, happened, sessions, session):
    def change(item: Item) -> None:
        item.name, item.number = "a", 7

    listener, target = {
        "before_flush": (lambda session, *rest: change(session.get_one(Item, 2)), sessions),
        "before_update": (lambda mapper, connection, item: change(item), Item),
    }[event]
    with tracking_disabled(session):
        session.add(Item(id=2, name="a", number=1))
    session.commit()
    item = session.get_one(Item, 2)
    item.name, item.number = "b", 2
    item.name, item.number = "a", 1
    sa.event.listen(target, event, listener)
    try:
        session.commit()
    finally:
        sa.event.remove(target, event, listener)
    told = [(str(version.audit_operation), version.number) for version in versions_of(session, Item, 2)]
    assert told == [("baseline", 1), ("update", 7)]


@pytest.mark.parametrize("id_", [1, 2], ids=["recorded", "older"])
def test_what_a_listener_takes_back_leaves_no_version(id_, happened, sessions, session):
    with tracking_disabled(session):
        session.add(Item(id=2, name="a", number=1))
    session.commit()
    item = session.get_one(Item, id_)
    item.name, item.number = "b", 2

    def take_back(session: Session, *rest: object) -> None:
        item.name, item.number = "a", 1

    sa.event.listen(sessions, "before_flush", take_back)
    try:
        session.commit()
    finally:
        sa.event.remove(sessions, "before_flush", take_back)
    assert [version.audit_operation for version in versions_of(session, Item, id_)] == (["insert"] if id_ == 1 else [])


def test_an_expression_with_the_same_value_leaves_no_version(happened, session):
    item = session.get_one(Group, 1)
    item.name = sa.func.lower(Group.name)
    session.commit()
    assert [version.audit_operation for version in versions_of(session, Group, 1)] == ["insert"]


def test_an_update_whose_new_values_are_read_back_is_recorded(base, engine, sessions):
    @track_table()
    class Stamped(base):
        __tablename__ = "stamped"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(Name)
        changes: Mapped[int] = mapped_column(default=0, onupdate=sa.text("changes + 1"))
        __mapper_args__ = {"eager_defaults": True}

    base.metadata.create_all(engine)
    with sessions.begin() as session:
        session.add(Stamped(id=1, name="a"))
    with sessions.begin() as session:
        session.get_one(Stamped, 1).name = Stamped.name + ""
    with sessions() as session:
        assert [version.changes for version in versions_of(session, Stamped, 1)] == [0, 1]


def test_lazy_loads_of_the_past_are_compiled_once_however_deep(happened, engine, session):
    set_config(SQLAuditConfig())
    parent = session.get_one(Group, 2)
    for number in range(3, 12):
        parent = Group(id=number, parent=parent)
        session.add(parent)
    session.commit()
    compiled: Counter[str] = Counter()

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        compiled[statement] += context.cache_hit is not sa.engine.interfaces.CacheStats.CACHE_HIT

    def walk(session: Session, items: Any) -> int:
        group, depth = session.scalars(items.where(Item.id == 1)).one().group, 0
        session.scalars(group.items.select()).all()
        group.queried.filter(Item.number > 0).all()
        while group.children:
            group, depth = group.children[0], depth + 1
        return depth

    def walk_back(session: Session, groups: Any) -> int:
        group, depth = session.scalars(groups.where(Group.id == 11)).one(), 0
        while group.parent is not None:
            group, depth = group.parent, depth + 1
        return depth

    now = datetime.now(UTC)
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        for time in range(3):
            with time_travel(session, now) as past:
                assert (walk(past, sa.select(Item)), walk_back(past, sa.select(Group))) == (10, 10)
                past.expunge_all()
            assert (walk(session, as_of(Item, now)), walk_back(session, as_of(Group, now))) == (10, 10)
            session.expunge_all()
            if time == 0:
                compiled.clear()
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    assert +compiled == Counter()
