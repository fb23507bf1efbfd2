"""What versions does a transaction leave? Flushes, savepoints, contexts and clocks."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from databases import Database
from invariants import check_history, told
from sqlaudit import (
    AuditContextManager,
    HistoryTableError,
    Operation,
    SQLAuditConfig,
    get_resource_changes,
    history_of,
    set_config,
    track_table,
    tracking_disabled,
    versions_of,
)

START = datetime(2030, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    size: Mapped[int | None]


@track_table()
class Animal(Base):
    __tablename__ = "animals"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(20))
    name: Mapped[str | None] = mapped_column(sa.String(50))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Dog(Animal):
    __tablename__ = "dogs"

    id: Mapped[int] = mapped_column(sa.ForeignKey("animals.id", onupdate="CASCADE"), primary_key=True)
    size: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "dog"}


@track_table()
class Need(Base):
    __tablename__ = "needs"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(50))


MODELS = pytest.mark.parametrize("model", [Item, Dog])
Sessions = sessionmaker[Session]


def check(sessions: Sessions, expected: list[tuple[Any, ...]], model: Any = Item, *fields: str) -> None:
    with sessions() as session:
        check_history(session, Item)
        check_history(session, Animal)
        assert told(session, model, *(fields or ("id", "name"))) == expected


def changesets(sessions: Sessions, model: Any = Item) -> int:
    with sessions() as session:
        return len(set(session.scalars(sa.select(history_of(model).audit_changeset_id))))


# --- one row, several flushes -----------------------------------------------------------------------------------


def insert(session: Session, model: Any, name: str = "a") -> None:
    session.add(model(id=1, name=name, size=1))


def rename(name: str) -> Callable[[Session, Any], None]:
    return lambda session, model: setattr(session.get(model, 1), "name", name)


def resize(session: Session, model: Any) -> None:
    session.get(model, 1).size += 1


def remove(session: Session, model: Any) -> None:
    session.delete(session.get(model, 1))


def insert_other(session: Session, model: Any) -> None:
    insert(session, model, "other")


STEPS = {
    "insert+update is an insert": ([], [insert, rename("b")], [("insert", "b")]),
    "insert+update+update is an insert": ([], [insert, rename("b"), resize, rename("c")], [("insert", "c")]),
    "insert+delete is nothing": ([], [insert, remove], []),
    "insert+delete+insert is an insert": ([], [insert, remove, insert_other], [("insert", "other")]),
    "insert+update+delete is nothing": ([], [insert, rename("b"), remove], []),
    "update+update is an update": ([insert], [rename("b"), rename("c")], [("insert", "a"), ("update", "c")]),
    "update+delete is a delete": ([insert], [rename("b"), remove], [("insert", "a"), ("delete", "a")]),
    "delete+insert is an update": ([insert], [remove, insert_other], [("insert", "a"), ("update", "other")]),
    "delete+insert of the same is nothing": ([insert], [remove, insert], [("insert", "a")]),
    "delete+insert+delete is a delete": ([insert], [remove, insert_other, remove], [("insert", "a"), ("delete", "a")]),
    "delete+insert+update is an update": ([insert], [remove, insert, rename("z")], [("insert", "a"), ("update", "z")]),
    "update+delete+insert is an update": (
        [insert],
        [rename("b"), remove, insert_other],
        [("insert", "a"), ("update", "other")],
    ),
}


@pytest.mark.spread
@MODELS
@pytest.mark.parametrize("scenario", STEPS)
def test_flushes_of_one_transaction_leave_one_version(sessions: Sessions, model: Any, scenario: str) -> None:
    before, steps, expected = STEPS[scenario]
    for transaction in (before, steps):
        with sessions.begin() as session:
            for step in transaction:
                step(session, model)
                session.flush()
    check(sessions, expected, model, "name")
    assert changesets(sessions, model) == len({operation for operation, _ in expected})


@pytest.mark.spread
@MODELS
@pytest.mark.parametrize("scenario", STEPS)
def test_flushes_in_several_transactions_leave_versions_that_meet(
    sessions: Sessions, model: Any, scenario: str
) -> None:
    before, steps, _ = STEPS[scenario]
    for step in (*before, *steps):
        with sessions.begin() as session:
            step(session, model)
    with sessions() as session:
        check_history(session, model)
        assert len(versions_of(session, model, 1)) == len(before) + len(steps)
    assert changesets(sessions, model) == len(before) + len(steps)


@pytest.mark.spread
@MODELS
@pytest.mark.parametrize("scenario", STEPS)
def test_a_version_that_another_context_supersedes_is_kept(sessions: Sessions, model: Any, scenario: str) -> None:
    before, steps, _ = STEPS[scenario]
    with sessions.begin() as session:
        for step in before:
            step(session, model)
    with sessions.begin() as session:
        for number, step in enumerate(steps):
            with AuditContextManager(user_id=f"user {number}"):
                step(session, model)
                session.flush()
    with sessions() as session:
        check_history(session, model)
        versions = versions_of(session, model, 1)[len(before) :]
        assert [each.audit_changed_by for each in versions] == [f"user {number}" for number in range(len(steps))]
        assert len({each.audit_changeset_id for each in versions}) == 1
        for each in versions[:-1]:
            assert each.valid_from == each.valid_to


def test_returning_to_a_value_under_one_context_may_leave_an_update_without_field_changes(sessions: Sessions) -> None:
    with sessions.begin() as session:
        insert(session, Item)
    with sessions.begin() as session:
        for name in ("b", "a"):
            rename(name)(session, Item)
            session.flush()
    with sessions() as session:
        check_history(session, Item)
        assert len(get_resource_changes(Item, session)) == 3  # the insert's


def test_returning_to_a_value_under_other_contexts_keeps_both_versions(sessions: Sessions) -> None:
    with sessions.begin() as session:
        insert(session, Item)
    with sessions.begin() as session:
        for user, name in (("ann", "b"), ("bob", "a")):
            with AuditContextManager(user_id=user):
                rename(name)(session, Item)
                session.flush()
    check(
        sessions,
        [("insert", "a", None), ("update", "b", "ann"), ("update", "a", "bob")],
        Item,
        "name",
        "audit_changed_by",
    )


def test_the_same_context_after_another_is_a_third_version(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for user, name in (("ann", "a"), ("bob", "b"), ("ann", "c")):
            with AuditContextManager(user_id=user):
                session.merge(Item(id=1, name=name))
                session.flush()
    check(
        sessions,
        [("insert", "a", "ann"), ("update", "b", "bob"), ("update", "c", "ann")],
        Item,
        "name",
        "audit_changed_by",
    )


@pytest.mark.parametrize("role", ["user_id", "reason", "impersonated_by", "extra"])
def test_each_part_of_the_context_tells_versions_apart(sessions: Sessions, role: str) -> None:
    with sessions.begin() as session:
        insert(session, Item)
        session.flush()
        with AuditContextManager(**{role: "x"}):
            rename("b")(session, Item)
            session.flush()
    check(sessions, [("insert", "a"), ("update", "b")], Item, "name")


def test_structured_extra_of_the_same_content_is_the_same_context(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for name in ("a", "b"):
            with AuditContextManager(extra={"request": [1, 2.5, None], "by": {"ip": "::1"}}):
                session.merge(Item(id=1, name=name))
                session.flush()
    check(sessions, [("insert", "b")], Item, "name")


def test_all_rows_of_a_transaction_share_changeset_and_instant(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Item(id=1), Dog(id=1)])
        session.flush()
        session.add_all([Item(id=2), Dog(id=2)])
    with sessions() as session:
        versions = [*session.scalars(sa.select(history_of(Item))), *session.scalars(sa.select(history_of(Dog)))]
        assert len(versions) == 4
        assert len({(each.audit_changeset_id, each.valid_from) for each in versions}) == 1


def test_a_session_has_a_changeset_for_each_of_its_transactions(sessions: Sessions) -> None:
    with sessions() as session:
        for number in range(3):
            session.add(Item(id=number))
            session.commit()
    assert changesets(sessions) == 3


@pytest.mark.spread
@pytest.mark.parametrize("rows", [2, 1000, 1001, 2500])
def test_any_number_of_rows_is_recorded(sessions: Sessions, rows: int) -> None:
    with sessions.begin() as session:
        session.add_all([Item(id=number, name="a") for number in range(rows)])
    with sessions.begin() as session:
        for item in session.scalars(sa.select(Item)):
            item.name = "b"
    with sessions.begin() as session:
        for item in session.scalars(sa.select(Item)):
            session.delete(item)
    with sessions() as session:
        check_history(session, Item)
        assert len(told(session, Item)) == 3 * rows
    assert changesets(sessions) == 3


def test_rows_of_every_kind_in_one_flush_are_recorded(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Item(id=number, name="a") for number in range(6)])
    with sessions.begin() as session:
        items = session.scalars(sa.select(Item).order_by(Item.id)).all()
        items[0].name = items[1].name = "b"
        session.delete(items[2])
        session.delete(items[3])
        items[4].id = 40
        session.add_all([Item(id=7, name="new"), Item(id=3, name="again")])
    check(
        sessions,
        [
            ("insert", 0, "a"),
            ("update", 0, "b"),
            ("insert", 1, "a"),
            ("update", 1, "b"),
            ("insert", 2, "a"),
            ("delete", 2, "a"),
            ("insert", 3, "a"),
            ("update", 3, "again"),
            ("insert", 4, "a"),
            ("delete", 4, "a"),
            ("insert", 5, "a"),
            ("insert", 7, "new"),
            ("insert", 40, "a"),
        ],
    )


# --- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "other"])
def test_a_key_that_is_deleted_and_inserted_in_one_flush_is_updated(sessions: Sessions, name: str) -> None:
    with sessions.begin() as session:
        insert(session, Item)
    with sessions.begin() as session:
        remove(session, Item)
        insert(session, Item, name)
    expected = [("insert", 1, "a")] + [("update", 1, name)] * (name != "a")
    check(sessions, expected)


@MODELS
def test_a_key_change_is_a_delete_and_an_insert_in_one_changeset(sessions: Sessions, model: Any, database: Any) -> None:
    with sessions.begin() as session:
        insert(session, model)
    with sessions.begin() as session:
        session.get(model, 1).id = 2
    check(sessions, [("insert", 1, "a"), ("delete", 1, "a"), ("insert", 2, "a")], model)
    assert changesets(sessions, model) == 2


def test_a_key_change_with_other_changes_is_recorded_once(sessions: Sessions) -> None:
    with sessions.begin() as session:
        insert(session, Item)
    with sessions.begin() as session:
        item = session.get(Item, 1)
        item.id, item.name = 2, "b"
    check(sessions, [("insert", 1, "a"), ("delete", 1, "a"), ("insert", 2, "b")])


def test_keys_may_move_into_each_others_places(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Item(id=1, name="one"), Item(id=2, name="two")])
    with sessions.begin() as session:
        one, two = session.get(Item, 1), session.get(Item, 2)
        two.id = 3
        session.flush()
        one.id = 2
    check(
        sessions,
        [
            ("insert", 1, "one"),
            ("delete", 1, "one"),
            ("insert", 2, "two"),
            ("update", 2, "one"),
            ("insert", 3, "two"),
        ],
    )


def test_keys_may_move_into_each_others_places_in_one_flush(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add_all([Item(id=2, name="two"), Item(id=3, name="three")])
    with sessions.begin() as session:  # the unit of work updates in the order of the old keys
        two, three = session.get(Item, 2), session.get(Item, 3)
        two.id, three.id = 1, 2
    check(
        sessions,
        [
            ("insert", 1, "two"),
            ("insert", 2, "two"),
            ("update", 2, "three"),
            ("insert", 3, "three"),
            ("delete", 3, "three"),
        ],
    )


def test_a_key_that_moves_away_and_back_leaves_no_trace(sessions: Sessions) -> None:
    with sessions.begin() as session:
        insert(session, Item)
    with sessions.begin() as session:
        item = session.get(Item, 1)
        for key in (2, 1):
            item.id = key
            session.flush()
    check(sessions, [("insert", 1, "a")])


def test_a_deleted_key_that_returns_later_goes_on_counting(sessions: Sessions) -> None:
    for step in (insert, remove, insert_other, remove, insert):
        with sessions.begin() as session:
            step(session, Item)
    check(
        sessions,
        [
            ("insert", 1, "a"),
            ("delete", 2, "a"),
            ("insert", 3, "other"),
            ("delete", 4, "other"),
            ("insert", 5, "a"),
        ],
        Item,
        "audit_version",
        "name",
    )


# --- savepoints, rollbacks, failures ----------------------------------------------------------------------------


def test_a_released_savepoint_is_part_of_its_transaction(sessions: Sessions) -> None:
    with sessions.begin() as session:
        insert(session, Item)
        with session.begin_nested():
            rename("b")(session, Item)
        with session.begin_nested():
            session.add(Item(id=2, name="inside"))
    check(sessions, [("insert", 1, "b"), ("insert", 2, "inside")])
    assert changesets(sessions) == 1


def test_a_rolled_back_savepoint_leaves_no_version(sessions: Sessions) -> None:
    with sessions.begin() as session:
        insert(session, Item)
        savepoint = session.begin_nested()
        rename("undone")(session, Item)
        session.add(Item(id=2, name="undone"))
        session.flush()
        savepoint.rollback()
        session.add(Item(id=3, name="after"))
    check(sessions, [("insert", 1, "a"), ("insert", 3, "after")])
    assert changesets(sessions) == 1


@pytest.mark.parametrize("depth", [1, 3])
def test_savepoints_that_are_left_open_end_with_the_transaction(sessions: Sessions, depth: int) -> None:
    with sessions.begin() as session:
        insert(session, Item)
    with sessions() as session:
        for number in range(depth):
            session.begin_nested()
            rename(f"b{number}")(session, Item)
            session.flush()
        while session.in_nested_transaction():
            session.commit()
        session.commit()
    check(sessions, [("insert", 1, "a"), ("update", 1, f"b{depth - 1}")])


def test_a_savepoint_that_is_left_open_is_undone_with_the_session(sessions: Sessions) -> None:
    with sessions() as session:
        insert(session, Item)
        session.commit()
        session.begin_nested()
        rename("undone")(session, Item)
        session.flush()
    check(sessions, [("insert", 1, "a")])


def test_the_outcome_of_inner_savepoints_is_the_databases(sessions: Sessions) -> None:
    with sessions.begin() as session:
        insert(session, Item)
        with session.begin_nested():
            rename("b")(session, Item)
            session.flush()
            inner = session.begin_nested()
            rename("undone")(session, Item)
            session.flush()
            inner.rollback()
            assert session.get(Item, 1).name == "b"
            remove(session, Item)
            session.flush()
            insert(session, Item, "c")
    check(sessions, [("insert", 1, "c")])


def test_what_a_rollback_undid_is_never_written_later(sessions: Sessions) -> None:
    with sessions() as session:
        insert(session, Item)
        session.flush()
        session.rollback()
        session.add(Item(id=2, name="kept"))
        session.commit()
    check(sessions, [("insert", 2, "kept")])


def test_a_changeset_ends_with_a_rollback(sessions: Sessions) -> None:
    clock = itertools.count()
    set_config(SQLAuditConfig(clock=lambda: START + timedelta(hours=next(clock))))
    with sessions() as session:
        insert(session, Item)
        session.flush()
        session.rollback()
        insert(session, Item)
        session.commit()
        assert versions_of(session, Item, 1)[0].valid_from == START + timedelta(hours=1)


@pytest.mark.parametrize("nested", [False, True])
def test_a_session_records_on_after_a_failed_flush(sessions: Sessions, nested: bool) -> None:
    with sessions() as session:
        insert(session, Item)
        session.commit()
        if nested:
            session.begin_nested()
        session.get(Item, 1).name = "undone"
        session.add(Need(id=1))
        with pytest.raises(sa.exc.DBAPIError):
            session.flush()
        session.rollback()
        rename("b")(session, Item)
        session.commit()
    check(sessions, [("insert", 1, "a"), ("update", 1, "b")])


def test_an_exception_in_the_users_own_listener_leaves_nothing_behind(sessions: Sessions) -> None:
    with sessions() as session:

        @sa.event.listens_for(session, "after_flush", once=True)
        def fail(*_: object) -> None:
            raise ZeroDivisionError

        insert(session, Item)
        with pytest.raises(ZeroDivisionError):
            session.flush()
        session.rollback()
        session.add(Item(id=2, name="kept"))
        session.commit()
    check(sessions, [("insert", 2, "kept")])


def test_a_missing_history_table_is_named_with_the_remedy_and_nothing_is_written(
    engine: sa.Engine, sessions: Sessions
) -> None:
    with sessions.begin() as session:
        insert(session, Item)
    history_of(Item).__table__.drop(engine)
    for step in (insert_other, rename("b"), remove):
        with sessions() as session:
            if step is insert_other:
                session.add(Item(id=2))
            else:
                step(session, Item)
            with pytest.raises(HistoryTableError, match=r"items_history.*create_all"):
                session.commit()
            session.rollback()
            assert session.execute(sa.select(Item.id, Item.name)).all() == [(1, "a")]


def test_a_missing_history_column_is_named_with_the_remedy(engine: sa.Engine, sessions: Sessions) -> None:
    with engine.begin() as connection:
        connection.execute(sa.DDL("ALTER TABLE items_history DROP COLUMN size"))
    with sessions() as session:
        insert(session, Item)
        with pytest.raises(HistoryTableError, match=r"items_history.*create_all"):
            session.commit()


def test_objects_that_are_only_loaded_cost_no_statement(
    engine: sa.Engine, sessions: Sessions, database: Database
) -> None:
    with sessions.begin() as session:
        session.add_all([Item(id=number, name="a") for number in range(50)])
    with sessions() as session:
        items = session.scalars(sa.select(Item).order_by(Item.id)).all()
        items[0].name = "b"
        seen: list[tuple[str, Any]] = []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            seen.append((statement, parameters))

        session.flush()
        sa.event.remove(engine, "before_cursor_execute", note)
        session.commit()
    statements = 1 if database.capabilities & {"writing_ctes", "compound_statements"} else 2
    assert len([statement for statement, _ in seen if "_history" in statement]) == statements
    check(
        sessions,
        [("insert", n, "a") for n in range(1)] + [("update", 0, "b")] + [("insert", n, "a") for n in range(1, 50)],
    )


# --- clocks -----------------------------------------------------------------------------------------------------


def run_with_clock(sessions: Sessions, *steps: tuple[timedelta, Callable[[Session, Any], None]], model: Any) -> None:
    for offset, step in steps:
        set_config(SQLAuditConfig(clock=lambda at=START + offset: at))  # type: ignore[misc]
        with sessions.begin() as session:
            step(session, model)


@MODELS
@pytest.mark.parametrize("skew", [timedelta(0), timedelta(microseconds=-1), timedelta(hours=-1)])
@pytest.mark.parametrize("step", [rename("b"), remove], ids=["update", "delete"])
def test_an_instant_that_is_not_later_moves_behind_what_it_supersedes(
    sessions: Sessions, model: Any, skew: timedelta, step: Callable[[Session, Any], None]
) -> None:
    run_with_clock(sessions, (timedelta(0), insert), (skew, step), model=model)
    with sessions() as session:
        check_history(session, model)
        first, second = versions_of(session, model, 1)
        assert (first.valid_from, second.valid_from) == (START, START + timedelta(microseconds=1))


@MODELS
def test_an_insert_after_a_later_delete_moves_behind_it(sessions: Sessions, model: Any) -> None:
    hour = timedelta(hours=1)
    run_with_clock(sessions, (0 * hour, insert), (2 * hour, remove), (hour, insert_other), model=model)
    with sessions() as session:
        check_history(session, model)
        *_, tombstone, again = versions_of(session, model, 1)
        assert again.valid_from == tombstone.valid_from + timedelta(microseconds=1)


@MODELS
def test_a_row_that_came_unseen_after_a_later_delete_has_its_baseline_behind_it(sessions: Sessions, model: Any) -> None:
    def insert_unseen(session: Session, model: Any) -> None:
        with tracking_disabled(session):
            insert(session, model)
            session.flush()

    hour = timedelta(hours=1)
    steps = [(0 * hour, insert), (2 * hour, remove), (3 * hour, insert_unseen), (hour, rename("b"))]
    run_with_clock(sessions, *steps, model=model)
    with sessions() as session:
        check_history(session, model)
        *_, tombstone, baseline, renamed = versions_of(session, model, 1)
        assert (baseline.audit_operation, renamed.name) == (Operation.BASELINE, "b")
        assert baseline.valid_from == renamed.valid_from == tombstone.valid_from + timedelta(microseconds=1)


@MODELS
def test_a_clock_that_stands_still_makes_no_overlaps(sessions: Sessions, model: Any) -> None:
    steps = (insert, rename("b"), resize, remove, insert_other, rename("c"), remove)
    run_with_clock(sessions, *((timedelta(0), step) for step in steps), model=model)
    with sessions() as session:
        check_history(session, model)
        assert len(versions_of(session, model, 1)) == len(steps)


@MODELS
@pytest.mark.parametrize("contexts", [("ann", "ann", "ann"), ("ann", "bob", "ann"), ("ann", "bob", "cid")])
def test_several_flushes_at_an_earlier_instant_stay_behind_the_first(
    sessions: Sessions, model: Any, contexts: tuple[str, ...]
) -> None:
    run_with_clock(sessions, (timedelta(0), insert), model=model)
    set_config(SQLAuditConfig(clock=lambda: START - timedelta(hours=1)))
    with sessions.begin() as session:
        for user, step in zip(contexts, (rename("b"), resize, remove), strict=True):
            with AuditContextManager(user_id=user):
                step(session, model)
                session.flush()
    with sessions() as session:
        check_history(session, model)
        last = versions_of(session, model, 1)[-1]
        assert (last.audit_operation, last.audit_changed_by) == (Operation.DELETE, contexts[-1])
        assert last.valid_from == START + timedelta(microseconds=1)


def test_only_the_row_that_must_moves(sessions: Sessions) -> None:
    hour = timedelta(hours=1)
    set_config(SQLAuditConfig(clock=lambda: START))
    with sessions.begin() as session:
        session.add(Item(id=2))
    set_config(SQLAuditConfig(clock=lambda: START + 2 * hour))
    with sessions.begin() as session:
        session.add(Item(id=1))
    set_config(SQLAuditConfig(clock=lambda: START + hour))
    with sessions.begin() as session:
        for item in session.scalars(sa.select(Item)):
            item.name = "b"
    with sessions() as session:
        check_history(session, Item)
        assert versions_of(session, Item, 1)[-1].valid_from == START + 2 * hour + timedelta(microseconds=1)
        assert versions_of(session, Item, 2)[-1].valid_from == START + hour
    assert changesets(sessions) == 3
