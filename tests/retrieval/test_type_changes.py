"""Types that change over the years: old values stay as they were and readable, and harm no other read."""

import enum
import pickle
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm

from sqlaudit import (
    CaptureError,
    QueryError,
    as_of,
    blame,
    changes_in,
    changesets,
    get_resource_changes,
    record_changes,
    restore,
    track_table,
    undo,
    versions_of,
)

pytestmark = pytest.mark.no_tables

Before = enum.Enum("State", ["draft", "legacy", "live"])
After = enum.Enum("State", ["draft", "live"])


class Marked(sa.types.TypeDecorator[str]):
    """Stands for what encrypts: it reads only what its key wrote."""

    impl = sa.String(20)
    cache_ok = True

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return value and f"{self.key}:{value}"

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:
        if value is not None and not value.startswith(f"{self.key}:"):
            raise ValueError(value)
        return value and value.removeprefix(f"{self.key}:")


class Pickled(sa.types.TypeDecorator[Any]):
    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> bytes:
        return pickle.dumps(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return pickle.loads(bytes(value))


def enumeration(*values: Any) -> sa.Enum:
    return sa.Enum(*values, native_enum=False, length=20)


CASES = {
    "enum": (enumeration(Before), Before.draft, Before.legacy, enumeration(After), After.live, "legacy"),
    "enum of texts": (enumeration("a", "b", "c"), "a", "b", enumeration("a", "c"), "c", "b"),
    "key that is lost": (Marked("x"), "a", "b", Marked("y"), "c", "x:b"),
    "text, then UUID": (sa.String(40), "0" * 32, "none", sa.Uuid(native_uuid=False), None, "none"),
    "class that is gone": (sa.LargeBinary(), pickle.dumps(1), b"broken", Pickled(), 2, b"broken"),
}


def release(type_: Any, table: str = "posts") -> Any:
    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Post(Base):
        __tablename__ = table
        id = sa.Column(sa.Integer, primary_key=True)
        title = sa.Column(sa.String(20))
        value = sa.Column(type_)

    return Post


@pytest.mark.spread
@pytest.mark.parametrize("case", CASES)
def test_a_value_that_its_type_reads_no_longer_is_as_the_database_has_it_and_harms_no_other(sessions, clock, case):
    before, first, unread, after, last, raw = CASES[case]
    old = release(before)
    with sessions() as session:
        old.metadata.create_all(session.connection())
        session.add(old(id=1, title="a", value=first))
        session.commit()
        session.get(old, 1).value = unread
        session.commit()
        when = clock.now
    new = release(after)
    with sessions() as session:
        session.execute(sa.update(new).values(value=last))
        session.commit()
        session.get(new, 1).title = "b"
        session.commit()
        values = [version.value for version in versions_of(session, new, 1)]
        assert [bytes(value) if isinstance(raw, bytes) else value for value in values[1:2]] == [raw]
        assert values[2:] == [last, last]
        changes = get_resource_changes(new, session, filter_fields=["value"])
        assert [change.version for change in changes] == [1, 2, 3]
        assert blame(session, new, 1)["title"].version == 4
        second = changesets(session)[1].changeset_id
        assert [change.field_name for change in changes_in(session, second)] == ["value"]
        assert session.scalars(as_of(new, when).where(new.title == "a")).one().value in (raw, values[1])
        assert restore(session, new, 1, at=clock.now, dry_run=True).items == ()


def test_a_value_that_is_gone_is_not_restored_unless_another_is_given(sessions, clock):
    old = release(enumeration(Before))
    with sessions() as session:
        old.metadata.create_all(session.connection())
        session.add(old(id=1, title="a", value=Before.legacy))
        session.commit()
    new = release(enumeration(After))
    with sessions() as session:
        session.execute(sa.update(new).values(value=After.live))
        session.commit()
        first, _ = versions_of(session, new, 1)
        with pytest.raises(QueryError, match=r"'legacy' as its value in its version 1.*values={Post: {'value'"):
            restore(session, first)
        restore(session, first, values={new: {"value": After.draft}})
        session.commit()
        assert session.get_one(new, 1).value is After.draft
        session.delete(session.get_one(new, 1))
        session.commit()
        with pytest.raises(QueryError, match="'legacy' as its value"):
            restore(session, first)


FORMER = {
    "number": (sa.Numeric(10, 4), Decimal("1.2345"), sa.Numeric(10, 2)),
    "range": (sa.BigInteger(), 2**40, sa.Integer()),
    "text": (sa.String(50), "x" * 40, sa.String(10)),
    "kind": (sa.String(50), "abc", sa.Integer()),
    "bytes": (sa.LargeBinary(), b"\xff", sa.Text()),
    "instant": (sa.DateTime(), datetime.fromisoformat("2024-01-01 13:30"), sa.Date()),
    "float": (sa.Double(), 1.25, sa.Integer()),
    "no JSON": (sa.Text(), "{bad", sa.JSON()),
}


@pytest.mark.parametrize("case", FORMER)
def test_a_value_that_its_column_may_not_hold_is_restored_as_it_was_or_refused(sessions, clock, case):
    before, first, after = FORMER[case]
    old = release(before)
    stored = sa.select(sa.literal_column("value")).select_from(old.__table__)
    with sessions() as session:
        old.metadata.create_all(session.connection())
        session.add(old(id=1, title="a", value=first))
        session.commit()
        raw = session.scalar(stored)
        session.get(old, 1).value = None
        session.commit()
    new = release(after)
    with sessions() as session:
        try:
            restore(session, new, 1, at=1)
        except QueryError as error:
            assert "as its value in its version 1" in str(error)  # noqa: PT017  # SQLite holds every value
            assert "values={Post: {'value'" in str(error)  # noqa: PT017
            raw = None
        session.commit()
        assert session.scalar(stored) == raw


def test_a_change_beside_a_value_that_is_gone_is_undone(sessions, clock):
    old = release(enumeration(Before), "undone")
    with sessions() as session:
        old.metadata.create_all(session.connection())
        session.add(old(id=1, title="a", value=Before.legacy))
        session.commit()
    new = release(enumeration(After), "undone")
    with sessions() as session:
        session.execute(sa.update(new).values(value=After.live))
        session.commit()
        session.get_one(new, 1).title = "b"
        session.commit()
        undo(session, changesets(session)[-1].changeset_id)
        session.commit()
        assert (session.get_one(new, 1).title, session.get_one(new, 1).value) == ("a", After.live)


@pytest.mark.requires("enum_types")
def test_history_that_keeps_an_enum_as_text_is_written_read_and_compared(sessions, clock):
    old = release(sa.Enum(Before, name="state"))
    with sessions() as session:
        old.metadata.create_all(session.connection())
        session.add(old(id=1, title="a", value=Before.legacy))
        session.commit()
        session.get(old, 1).value = Before.live
        session.commit()
        for statement in (
            "ALTER TABLE posts_history ALTER COLUMN value TYPE TEXT",
            "ALTER TYPE state RENAME TO state_old",
            "CREATE TYPE state AS ENUM ('draft', 'live')",
            "ALTER TABLE posts ALTER COLUMN value TYPE state USING value::text::state",
            "DROP TYPE state_old",
        ):
            session.connection().exec_driver_sql(statement)
        session.commit()
    new = release(sa.Enum(After, name="state"))
    with sessions() as session:
        post = session.get_one(new, 1)
        post.value, post.title = After.draft, "b"
        session.flush()
        post.value = After.live
        session.commit()
        session.execute(sa.update(new).values(value=After.draft))
        session.execute(sa.update(new).where(new.value == After.draft).values(title="c"))
        session.commit()
        assert [v.value for v in versions_of(session, new, 1)] == ["legacy", After.live, After.live, After.draft]
        history = sa.select(new.History.audit_version)
        assert session.scalars(history.where(new.History.value == After.draft)).all() == [4]
        assert session.scalars(history.where(new.History.value.in_([After.draft, After.live]))).all() == [2, 3, 4]
        assert session.scalars(as_of(new, clock.now).where(new.value == After.draft)).one().title == "c"
        assert session.scalars(as_of(new, clock.now).where(new.value.in_([After.live]))).all() == []
        session.delete(session.get_one(new, 1))
        session.commit()
        assert len(get_resource_changes(new, session, filter_fields=["value"])) == 4


@pytest.mark.requires("limited_updates")
def test_keys_that_a_database_does_not_find_behind_each_other_end_with_an_error(sessions):
    def release_of(type_: Any) -> Any:
        class Base(orm.DeclarativeBase):
            pass

        @track_table()
        class Post(Base):
            __tablename__ = "posts"
            id = sa.Column(type_, primary_key=True)
            title = sa.Column(sa.String(20))

        return Post

    old = release_of(sa.CHAR(32))
    with sessions() as session:
        old.metadata.create_all(session.connection())
        session.add_all(old(id="0" * 31 + digit, title="a") for digit in "56")
        session.commit()
        session.connection().exec_driver_sql("ALTER TABLE posts MODIFY id UUID NOT NULL")
        session.commit()
    new = release_of(sa.Uuid())
    with sessions() as session:
        with pytest.raises(CaptureError, match="does not find the keys after"):
            record_changes(session, new)
        session.rollback()
