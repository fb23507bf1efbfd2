"""Random lives of related rows, held against a plain-Python reference of what was true when.

``SQLAUDIT_TEST_EFFORT=10`` tries ten times as many.
"""

import copy
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

import sqlaudit
from databases import Database
from effort import profile
from reference import OPEN, Context, Reference, Rows, Version
from sqlaudit.maintenance.door import writable_history
from sqlaudit.tracking.protection import protecting, protection_of
from sqlaudit.tracking.registry import tracked_tables


class Base(DeclarativeBase):
    pass


membership = sa.Table(
    "membership",
    Base.metadata,
    sa.Column("parent_id", sa.ForeignKey("parents.id", onupdate="CASCADE", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id", onupdate="CASCADE", ondelete="CASCADE"), primary_key=True),
)


@sqlaudit.track_table()
class Parent(Base):
    __tablename__ = "parents"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(20))
    n: Mapped[int]
    data: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(sa.JSON(none_as_null=True)))
    children: Mapped[list["Child"]] = relationship(
        back_populates="parent", cascade="save-update, merge, delete", passive_deletes=True
    )
    tags: Mapped[list["Tag"]] = relationship(secondary=membership)


@sqlaudit.track_table()
class Child(Base):
    __tablename__ = "children"

    group: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    code: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(20))
    parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("parents.id", onupdate="CASCADE", ondelete="CASCADE"))
    parent: Mapped[Parent | None] = relationship(back_populates="children")


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str | None] = mapped_column(sa.String(20))


MODELS: dict[str, type[Any]] = {"parents": Parent, "children": Child, "tags": Tag}


@dataclass
class World:
    """What the application wants: things that keep their identity while their keys change."""

    parents: dict[int, dict[str, Any]] = field(default_factory=dict)
    children: dict[int, dict[str, Any]] = field(default_factory=dict)
    tags: dict[int, dict[str, Any]] = field(default_factory=dict)
    links: set[tuple[int, int]] = field(default_factory=set)

    def of(self, model: type[Any]) -> dict[int, dict[str, Any]]:
        return getattr(self, model.__tablename__)

    def key(self, model: type[Any], thing: int) -> tuple[Any, ...]:
        values = self.of(model)[thing]
        return tuple(values[column.name] for column in model.__table__.primary_key)

    def holder(self, model: type[Any], key: tuple[Any, ...]) -> int | None:
        return next((thing for thing in self.of(model) if self.key(model, thing) == key), None)

    def rows(self) -> Rows:
        rows: Rows = {}
        for model in MODELS.values():
            for thing, values in self.of(model).items():
                row = dict(values)
                if model is Child:
                    parent = row.pop("parent")
                    row["parent_id"] = None if parent is None else self.parents[parent]["id"]
                rows[model.__tablename__, self.key(model, thing)] = copy.deepcopy(row)
        for parent, tag in self.links:
            row = {"parent_id": self.parents[parent]["id"], "tag_id": self.tags[tag]["id"]}
            rows["membership", tuple(row.values())] = row
        return rows

    def unlink(self, thing: int, place: int) -> None:
        self.links = {link for link in self.links if link[place] != thing}


PICK = st.integers(0, 3)
PARENT_ID = st.integers(1, 3)
TAG_ID = st.integers(1, 2)
CHILD_KEY = st.tuples(st.integers(1, 2), st.sampled_from(["x", "y"]))
TEXT = st.sampled_from(["", "a", "A", "a ", "b"])
TEXT_OR_NULL = st.none() | TEXT
CONTENT = st.sampled_from([None, 1, "1", [1]])
# Its keys are in one order: for Python, {"k": 1, "l": 1} and {"l": 1, "k": 1} are equal, and for most databases not.
DATA = st.none() | st.dictionaries(st.sampled_from("kl"), CONTENT).map(lambda data: dict(sorted(data.items())))
NUMBER = st.integers(0, 2)


class Life(RuleBasedStateMachine):
    """One session's work. `world` is what it wants, `flushed` what it has written."""

    def __init__(self, engine: sa.Engine, *, is_append_only: bool = False) -> None:
        super().__init__()
        with engine.begin() as connection, writable_history(connection, tracked_tables(Base.metadata)):
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(table.delete())
        self.engine = engine
        self.maker = sessionmaker(engine, autoflush=False)
        sqlaudit.register_hooks(self.maker)
        self.now = datetime(2024, 1, 1, tzinfo=UTC)
        self.instants: list[datetime] = []
        self.has_written = False
        sqlaudit.set_config(sqlaudit.SQLAuditConfig(clock=self.clock, strict=True))
        sqlaudit.clear_audit_context()
        self.context = Context()
        self.reference = Reference(is_append_only)
        self.committed = World()
        self.flushed = World()
        self.world = World()
        self.savepoints: list[tuple[Any, World, Any]] = []
        self.things = 0
        self.objects: dict[int, Any] = {}
        self.session = self.maker()

    def clock(self) -> datetime:
        self.instants.append(self.now)
        return self.now

    def teardown(self) -> None:
        try:
            if sys.exception() is None:
                self.commit()
                check_as_of(self.session, self.reference)
        finally:
            self.session.close()
            sqlaudit.unregister_hooks(self.maker)

    # -- things and their objects

    def pick(self, model: type[Any], pick: int) -> int:
        things = list(self.world.of(model))
        return things[pick % len(things)]

    def object(self, model: type[Any], thing: int) -> Any:
        if thing not in self.objects:
            self.objects[thing] = self.session.get_one(model, self.flushed.key(model, thing))
        return self.objects[thing]

    def is_free(self, model: type[Any], key: tuple[Any, ...], new: bool) -> bool:
        """Tell whether a thing may take a key; a new one may even take that of a thing deleted in the same flush."""
        holder = self.flushed.holder(model, key)
        taken = holder is not None and not (new and holder not in self.world.of(model))
        return self.world.holder(model, key) is None and not taken

    def keys_move(self) -> bool:
        """Tell whether there are parents or tags that the database does not know by their keys yet."""
        return any(
            thing not in self.flushed.of(model) or self.flushed.key(model, thing) != self.world.key(model, thing)
            for model in (Parent, Tag)
            for thing in self.world.of(model)
        )

    def add(self, model: type[Any], **values: Any) -> None:
        key = tuple(values[column.name] for column in model.__table__.primary_key)
        if not self.is_free(model, key, new=True):
            return
        self.things += 1
        self.world.of(model)[self.things] = copy.deepcopy(values)
        if model is Child and values["parent"] is not None:
            values["parent"] = self.object(Parent, values["parent"])
        self.objects[self.things] = model(**values)
        self.session.add(self.objects[self.things])

    def rename(self, model: type[Any], thing: int, key: tuple[Any, ...]) -> None:
        if self.reference.is_append_only and self.world.links != self.flushed.links:
            self.flush()  # the database moves links before the unit of work deletes them, and the history keeps that
        if self.is_free(model, key, new=False):
            for column, value in zip(model.__table__.primary_key, key, strict=True):
                self.world.of(model)[thing][column.name] = value
                setattr(self.object(model, thing), column.name, value)

    def edit(self, model: type[Any], thing: int, name: str, value: Any) -> None:
        self.world.of(model)[thing][name] = copy.deepcopy(value)
        setattr(self.object(model, thing), name, value)

    @initialize(parents=st.integers(0, 2), children=st.integers(0, 2), tags=st.integers(0, 2))
    def begin(self, parents: int, children: int, tags: int) -> None:
        for id in range(1, parents + 1):
            self.add(Parent, id=id, name="a", n=0, data={"k": 0})
        for id in range(1, tags + 1):
            self.add(Tag, id=id, label="a")
        for code in "xy"[:children]:
            self.add(Child, group=1, code=code, text="a", parent=self.pick(Parent, 0) if parents else None)
        self.world.links = {(parent, tag) for parent in self.world.parents for tag in self.world.tags}
        for parent, tag in self.world.links:
            self.objects[parent].tags.append(self.objects[tag])
        self.commit()

    # -- parents

    @rule(id=PARENT_ID, name=TEXT, n=NUMBER, data=DATA)
    def add_parent(self, id: int, name: str, n: int, data: Any) -> None:
        self.add(Parent, id=id, name=name, n=n, data=data)

    @precondition(lambda self: self.world.parents)
    @rule(pick=PICK, name=TEXT)
    def edit_name(self, pick: int, name: str) -> None:
        self.edit(Parent, self.pick(Parent, pick), "name", name)

    @precondition(lambda self: self.world.parents)
    @rule(pick=PICK, data=DATA)
    def edit_data(self, pick: int, data: Any) -> None:
        self.edit(Parent, self.pick(Parent, pick), "data", data)

    @precondition(lambda self: self.world.parents)
    @rule(pick=PICK, value=NUMBER)
    def edit_data_in_place(self, pick: int, value: int) -> None:
        parent = self.pick(Parent, pick)
        if "k" in (self.world.parents[parent]["data"] or ()):
            self.world.parents[parent]["data"]["k"] = value
            self.object(Parent, parent).data["k"] = value

    @precondition(lambda self: self.world.parents)
    @rule(pick=PICK)
    def increment_in_sql(self, pick: int) -> None:
        parent = self.pick(Parent, pick)
        if parent in self.flushed.parents:
            self.world.parents[parent]["n"] = self.flushed.parents[parent]["n"] + 1
            self.object(Parent, parent).n = Parent.n + 1

    @precondition(lambda self: self.world.parents)
    @rule(pick=PICK, id=PARENT_ID)
    def rename_parent(self, pick: int, id: int) -> None:
        self.rename(Parent, self.pick(Parent, pick), (id,))

    @precondition(lambda self: self.world.parents)
    @rule(pick=PICK, load_children=st.booleans())
    def delete_parent(self, pick: int, load_children: bool) -> None:
        parent = self.pick(Parent, pick)
        if self.world.children != self.flushed.children or self.keys_move():
            self.flush()  # SQLAlchemy would look for children and links by keys that no row has yet
        deleted = self.object(Parent, parent)
        if load_children:
            len(deleted.children)
        self.session.delete(deleted)
        del self.world.parents[parent]
        self.world.unlink(parent, 0)
        for child in [child for child, row in self.world.children.items() if row["parent"] == parent]:
            del self.world.children[child]
        self.flush()

    # -- children

    @rule(key=CHILD_KEY, text=TEXT_OR_NULL, pick=st.none() | PICK)
    def add_child(self, key: tuple[int, str], text: str | None, pick: int | None) -> None:
        parent = self.pick(Parent, pick) if pick is not None and self.world.parents else None
        self.add(Child, group=key[0], code=key[1], text=text, parent=parent)

    @precondition(lambda self: self.world.children)
    @rule(pick=PICK, text=TEXT_OR_NULL)
    def edit_text(self, pick: int, text: str | None) -> None:
        self.edit(Child, self.pick(Child, pick), "text", text)

    @precondition(lambda self: self.world.children)
    @rule(pick=PICK, parent=st.none() | PICK)
    def move_child(self, pick: int, parent: int | None) -> None:
        child = self.pick(Child, pick)
        target = self.pick(Parent, parent) if parent is not None and self.world.parents else None
        self.world.children[child]["parent"] = target
        self.object(Child, child).parent = None if target is None else self.object(Parent, target)

    @precondition(lambda self: self.world.children)
    @rule(pick=PICK, key=CHILD_KEY)
    def rename_child(self, pick: int, key: tuple[int, str]) -> None:
        self.rename(Child, self.pick(Child, pick), key)

    @precondition(lambda self: self.world.children)
    @rule(pick=PICK, at_once=st.booleans())
    def delete_child(self, pick: int, at_once: bool) -> None:
        if at_once:
            self.flush()
        child = self.pick(Child, pick)
        deleted = self.object(Child, child)
        if not at_once:
            deleted.parent = None  # a parent that is saved, too, would save it again
        (self.session.delete if child in self.flushed.children else self.session.expunge)(deleted)
        del self.world.children[child], self.objects[child]
        if at_once:
            self.flush()

    # -- tags

    @rule(id=TAG_ID, label=TEXT_OR_NULL)
    def add_tag(self, id: int, label: str | None) -> None:
        self.add(Tag, id=id, label=label)

    @precondition(lambda self: self.world.tags)
    @rule(pick=PICK, id=TAG_ID)
    def rename_tag(self, pick: int, id: int) -> None:
        self.rename(Tag, self.pick(Tag, pick), (id,))

    @precondition(lambda self: self.world.tags)
    @rule(pick=PICK)
    def delete_tag(self, pick: int) -> None:
        tag = self.pick(Tag, pick)
        self.flush()
        self.session.delete(self.object(Tag, tag))
        del self.world.tags[tag]
        self.world.unlink(tag, 1)
        self.flush()

    @precondition(lambda self: self.world.parents and self.world.tags)
    @rule(parent=PICK, tag=PICK)
    def link_or_unlink(self, parent: int, tag: int) -> None:
        link = self.pick(Parent, parent), self.pick(Tag, tag)
        if self.keys_move():
            self.flush()
        tags = self.object(Parent, link[0]).tags
        (tags.remove if link in self.world.links else tags.append)(self.object(Tag, link[1]))
        self.world.links ^= {link}

    # -- the session

    @rule()
    def flush(self) -> None:
        self.session.flush()
        self.note_flush()

    def note_flush(self) -> None:
        if self.reference.flush(self.world.rows(), self.context):
            self.has_written = True
        if self.has_written:
            assert len(set(self.instants)) == 1, "a transaction takes one instant, at its first capture"
        gone = [
            (model, self.flushed.key(model, thing), thing)
            for model in MODELS.values()
            for thing in self.flushed.of(model)
            if thing not in self.world.of(model)
        ]
        if gone or self.keys_move():
            self.session.expire_all()  # the database may have changed rows on its own
        for model, key, thing in gone:
            self.objects.pop(thing, None)
            if self.world.holder(model, key) is None:
                assert self.session.get(model, key) is None
        self.flushed = copy.deepcopy(self.world)

    @rule()
    def savepoint(self) -> None:
        nested = self.session.begin_nested()
        self.note_flush()
        self.savepoints.append((nested, copy.deepcopy(self.world), self.reference.savepoint()))

    @precondition(lambda self: self.savepoints)
    @rule()
    def release_savepoint(self) -> None:
        nested, _, _ = self.savepoints.pop()
        nested.commit()
        self.note_flush()

    @precondition(lambda self: self.savepoints)
    @rule()
    def rollback_to_savepoint(self) -> None:
        nested, self.world, state = self.savepoints.pop()
        nested.rollback()
        self.reference.rollback_to(state)
        self.rolled_back()

    def rolled_back(self) -> None:
        self.flushed = copy.deepcopy(self.world)
        self.objects.clear()

    @rule()
    def commit(self) -> None:
        self.session.commit()
        self.note_flush()
        assert len(set(self.instants)) <= 1, "a transaction takes one instant"
        self.reference.commit(self.instants[0] if self.instants else None)
        self.committed = copy.deepcopy(self.world)
        self.transaction_ended()
        check_history(self.session, self.reference)

    def rollback(self) -> None:
        self.session.rollback()
        self.world = copy.deepcopy(self.committed)
        self.reference.rollback()
        self.rolled_back()
        self.transaction_ended()

    def transaction_ended(self) -> None:
        self.savepoints.clear()
        self.has_written = False
        self.instants.clear()

    def fail_a_flush(self) -> None:
        self.session.add(Parent(id=9, name=None, n=0))
        with pytest.raises(sa.exc.IntegrityError):
            self.session.flush()
        if self.savepoints:
            self.rollback_to_savepoint()
        else:
            self.rollback()

    @rule()
    def expire(self) -> None:
        if self.world == self.flushed:
            self.session.expire_all()

    def close(self) -> None:
        self.session.close()
        self.rollback()

    @rule(how=st.sampled_from(["rollback", "fail_a_flush", "close"]))
    def abandon(self, how: str) -> None:
        getattr(self, how)()

    # -- who, why and when

    @rule(user=st.sampled_from([None, "ann", "bob"]), reason=st.sampled_from([None, "why"]))
    def change_context(self, user: str | None, reason: str | None) -> None:
        self.context = Context(user, reason)
        sqlaudit.set_audit_context(user_id=user, reason=reason)

    @precondition(lambda self: self.has_written or not self.instants)  # a flush that wrote nothing may have taken it
    @rule(microseconds=st.sampled_from([-3_000_000, -2, -1, 1, 2, 5_000_000]))
    def tick(self, microseconds: int) -> None:
        self.now += timedelta(microseconds=microseconds)


# --- the checks -------------------------------------------------------------------------------------------------


def check_history(session: Session, reference: Reference) -> None:
    """Check the tables against the reference, and the history against the rules that need no reference."""
    found: dict[Any, list[Version]] = {}
    changesets: dict[Any, int] = {}
    live: Rows = {}
    for table in (*(model.__table__ for model in MODELS.values()), membership):
        keys = [column.name for column in table.primary_key]
        for row in session.execute(sa.select(table)).mappings():
            live[table.name, tuple(row[name] for name in keys)] = dict(row)
        history = Base.metadata.tables[f"{table.name}_history"]
        for row in session.execute(sa.select(history).order_by(history.c.audit_version)).mappings():
            place = table.name, tuple(row[name] for name in keys)
            version = Version(
                row["audit_version"],
                row["audit_operation"],
                {column.name: row[column.name] for column in table.c},
                Context(row["audit_changed_by"], row["audit_reason"]),
                row["valid_from"],
                row["valid_to"],
                row["audit_changeset_id"],
            )
            found.setdefault(place, []).append(version)
    assert live == reference.rows
    assert {place: versions[-1].row for place, versions in found.items() if versions[-1].valid_to == OPEN} == live
    for versions in found.values():
        check_contiguous(versions)
    for place, versions in found.items():
        for version, expected in zip(versions, reference.history.get(place, []), strict=False):
            number = changesets.setdefault(version.transaction, expected.transaction)
            assert number == expected.transaction, "two transactions share a changeset id"
    assert len(changesets) == len(set(changesets.values())), "one transaction has two changeset ids"
    numbered = {
        place: [
            Version(**{**vars(version), "transaction": changesets.get(version.transaction)}) for version in versions
        ]
        for place, versions in found.items()
    }
    for place in {**numbered, **reference.history}:
        assert numbered.get(place) == reference.history.get(place), place
    for name, model in MODELS.items():
        check_replay(session, name, model, live)
    session.rollback()


def check_contiguous(versions: list[Version]) -> None:
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))
    assert all(version.valid_from <= version.valid_to for version in versions)
    assert all(version.valid_to != OPEN for version in versions[:-1])
    for before, after in itertools.pairwise(versions):
        if before.operation == "delete":
            assert before.valid_to <= after.valid_from
        else:
            assert before.valid_to == after.valid_from


def check_replay(session: Session, name: str, model: type[Any], live: Rows) -> None:
    """Check that the field changes lead from nothing to the live rows, in order."""
    rows: dict[Any, dict[str, Any]] = {}
    order = []
    for change in sqlaudit.get_resource_changes(model, session=session):
        row = rows.setdefault(change.resource_id, dict.fromkeys(model.__table__.columns.keys()))
        assert row[change.field_name] == change.old_value
        row[change.field_name] = change.new_value
        order.append((change.timestamp, change.resource_id, change.version, change.field_name))
    assert order == sorted(order)
    left = {
        (name, key if isinstance(key, tuple) else (key,)): row
        for key, row in rows.items()
        if any(value is not None for value in row.values())
    }
    assert left == {place: row for place, row in live.items() if place[0] == name}


def check_as_of(session: Session, reference: Reference) -> None:
    """Check that reads of the past agree with the reference at, before and after every boundary."""
    for when in reference.boundaries():
        expected = reference.as_of(when)
        for _, link in [place for place in expected if place[0] == "membership"]:
            if not {("parents", link[:1]), ("tags", link[1:])} <= expected.keys():
                del expected["membership", link]  # the clock went back, and its ends are younger
        assert dict(read_past(session, when)) == expected, when
    session.rollback()


def read_past(session: Session, when: datetime) -> Iterator[Any]:
    for name, model in MODELS.items():
        for past in session.scalars(model.as_of(when)):
            row = {column: getattr(past, column) for column in model.__table__.columns.keys()}  # noqa: SIM118  # no dict
            yield (name, tuple(row[column.name] for column in model.__table__.primary_key)), row
            for tag in past.tags if model is Parent else ():
                link = {"parent_id": past.id, "tag_id": tag.id}
                yield ("membership", tuple(link.values())), link
    session.expunge_all()


# --- the test ---------------------------------------------------------------------------------------------------


def test_history_agrees_with_what_was_true_when(database: Database, engine: sa.Engine) -> None:
    lives = profile(database, few=8, many=20, stateful_step_count=40, report_multiple_bugs=False)
    run_state_machine_as_test(lambda: Life(engine), settings=lives)


@pytest.fixture
def append_only(engine: sa.Engine) -> Iterator[None]:
    """Let the database refuse to rewrite the history of all tables."""
    tables = tracked_tables(Base.metadata)
    with engine.begin() as connection:
        for table in tables:
            table.append_only = True
            for statement in protecting(protection_of(table), engine.dialect.name):
                connection.execute(statement)
    yield
    for table in tables:
        table.append_only = False


@pytest.mark.usefixtures("append_only")
def test_append_only_history_agrees_with_what_was_true_when(database: Database, engine: sa.Engine) -> None:
    lives = profile(database, few=8, many=20, stateful_step_count=40, report_multiple_bugs=False)
    run_state_machine_as_test(lambda: Life(engine, is_append_only=True), settings=lives)


# --- what random lives have found -------------------------------------------------------------------------------


def test_links_follow_a_key_that_the_database_changes(engine: sa.Engine) -> None:
    life = Life(engine)
    life.begin(parents=1, children=1, tags=1)
    life.session.expire_all()
    life.rename_parent(pick=0, id=2)
    life.teardown()


def test_a_link_that_was_never_written_leaves_no_trace(engine: sa.Engine) -> None:
    life = Life(engine)
    life.begin(parents=1, children=0, tags=0)
    life.add_tag(id=1, label=None)
    life.flush()
    life.link_or_unlink(parent=0, tag=0)
    life.delete_parent(pick=0, load_children=False)
    life.teardown()


def test_a_link_that_goes_while_its_key_moves_leaves_one_tombstone(engine: sa.Engine) -> None:
    life = Life(engine)
    life.begin(parents=1, children=0, tags=1)
    life.link_or_unlink(parent=0, tag=0)
    life.rename_parent(pick=0, id=2)
    life.teardown()


@pytest.mark.usefixtures("append_only")
def test_an_append_only_history_keeps_a_link_that_moves_before_it_goes_with_an_empty_period(engine: sa.Engine) -> None:
    life = Life(engine, is_append_only=True)
    life.begin(parents=1, children=0, tags=1)
    life.object(Parent, 1).tags.clear()
    life.object(Tag, 2).id = 2
    life.session.commit()
    history = Base.metadata.tables["membership_history"]
    statement = sa.select(history).order_by(history.c.tag_id, history.c.audit_version)
    versions = life.session.execute(statement).all()
    assert [(row.tag_id, row.audit_operation) for row in versions] == [
        (1, "insert"),
        (1, "delete"),
        (2, "insert"),
        (2, "delete"),
    ]
    assert all(row.valid_from == row.valid_to for row in versions[1:])
    life.session.close()
    sqlaudit.unregister_hooks(life.maker)
