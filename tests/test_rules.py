"""The rules of meaning, each in its plainest form; the other modules test their corners."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from databases import Database
from invariants import check_history, told
from sqlaudit import (
    OPEN_END,
    AuditContextManager,
    CaptureError,
    ContextError,
    SQLAuditConfig,
    SQLAuditWarning,
    get_audit_context,
    get_resource_changes,
    history_of,
    set_config,
    track_table,
    versions_of,
)

Sessions = sessionmaker[Session]
START = datetime(2030, 1, 1, tzinfo=UTC)


class Base(DeclarativeBase):
    pass


@track_table(tracked_fields=["name"], exclude=["secret"], user_id_field="editor")
class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(sa.String(50))
    balance: Mapped[int] = mapped_column(server_default=sa.text("5"))
    double: Mapped[int] = mapped_column(sa.Computed("balance * 2"))
    secret: Mapped[str | None] = mapped_column(sa.String(50))
    editor: Mapped[str | None] = mapped_column(sa.String(50))
    owner: Mapped[str | None] = mapped_column(sa.String(50))


def write(sessions: Sessions, **values: Any) -> None:
    with sessions.begin() as session:
        session.merge(Account(id=1, **values))


def versions(sessions: Sessions, *fields: str) -> list[tuple[Any, ...]]:
    with sessions() as session:
        check_history(session, Account)
        return told(session, Account, *fields)


def test_rule_1_a_snapshot_is_what_the_database_holds(sessions: Sessions) -> None:
    write(sessions, name="a")
    with sessions.begin() as session:
        session.get_one(Account, 1).balance = Account.balance + 1  # type: ignore[assignment]
    assert versions(sessions, "balance", "double") == [("insert", 5, 10), ("update", 6, 12)]


def test_rule_2_all_stored_columns_are_kept_and_excluded_ones_never(sessions: Sessions) -> None:
    write(sessions, name="a", secret="x", owner="ann")
    write(sessions, owner="bob")
    write(sessions, secret="y")
    assert versions(sessions, "name", "owner") == [("insert", "a", "ann"), ("update", "a", "bob")]
    assert "secret" not in history_of(Account).__table__.c
    with sessions() as session:
        assert [change.field_name for change in get_resource_changes(Account, session)] == ["name"]


def test_rule_3_a_transaction_has_one_changeset_and_one_instant(sessions: Sessions) -> None:
    instants = iter([START, START + timedelta(hours=1)])
    set_config(SQLAuditConfig(clock=lambda: next(instants)))
    with sessions.begin() as session:
        for key in (1, 2, 3):
            session.add(Account(id=key))
            session.flush()
    with sessions() as session:
        seen = session.scalars(sa.select(history_of(Account))).all()
        assert {each.valid_from for each in seen} == {START}
        assert len({each.audit_changeset_id for each in seen}) == 1
        assert seen[0].audit_changeset_id.version == 7


def test_rule_4_a_transaction_has_one_version_for_each_row_and_context(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for user, name in (("ann", "a"), ("ann", "b"), ("bob", "c")):
            with AuditContextManager(user_id=user):
                session.merge(Account(id=1, name=name))
                session.flush()
    assert versions(sessions, "name", "audit_changed_by") == [("insert", "b", "ann"), ("update", "c", "bob")]
    with sessions() as session:
        first, second = versions_of(session, Account, 1)
        assert first.valid_from == first.valid_to == second.valid_from


def test_rule_5_a_change_that_is_none_writes_nothing(sessions: Sessions) -> None:
    write(sessions, name="a")
    with sessions.begin() as session:
        account = session.get_one(Account, 1)
        account.name = "b"
        account.name = "a"
        account.owner = None
    assert versions(sessions, "name") == [("insert", "a")]


def test_rule_6_a_delete_leaves_a_tombstone_with_the_last_values(sessions: Sessions) -> None:
    write(sessions, name="a")
    with AuditContextManager(user_id="ann", reason="closed"), sessions.begin() as session:
        session.delete(session.get_one(Account, 1))
    assert versions(sessions, "name", "audit_changed_by", "audit_reason") == [
        ("insert", "a", None, None),
        ("delete", "a", "ann", "closed"),
    ]
    with sessions() as session:
        first, tombstone = versions_of(session, Account, 1)
        assert first.valid_to == tombstone.valid_from == tombstone.valid_to


def test_rule_7_periods_meet_even_if_the_clock_goes_back(sessions: Sessions) -> None:
    for hours, name in ((0, "a"), (-1, "b"), (-2, "c"), (1, "d")):
        set_config(SQLAuditConfig(clock=lambda hours=hours: START + timedelta(hours=hours)))  # type: ignore[misc]
        write(sessions, name=name)
    assert versions(sessions, "name") == [("insert", "a"), ("update", "b"), ("update", "c"), ("update", "d")]
    with sessions() as session:
        seen = versions_of(session, Account, 1)
        tick = timedelta(microseconds=1)
        boundaries = [START, START + tick, START + 2 * tick, START + timedelta(hours=1)]
        assert [each.valid_from for each in seen] == boundaries
        assert [each.valid_to for each in seen] == [*boundaries[1:], OPEN_END]


def test_rule_8_the_first_change_of_an_older_row_has_a_baseline(engine: sa.Engine, sessions: Sessions) -> None:
    with engine.begin() as connection:
        connection.execute(sa.insert(Account.__table__).values(id=1, name="a"))
    with AuditContextManager(user_id="ann"):
        write(sessions, name="b")
    assert versions(sessions, "name", "audit_changed_by") == [("baseline", "a", None), ("update", "b", "ann")]
    with sessions() as session:
        [change] = get_resource_changes(Account, session)
        assert (change.old_value, change.new_value, change.changed_by) == ("a", "b", "ann")


def test_rule_9_history_is_what_the_database_kept(sessions: Sessions) -> None:
    write(sessions, name="a")
    with sessions() as session:
        account = session.get_one(Account, 1)
        with session.begin_nested():
            account.name = "released"
        savepoint = session.begin_nested()
        account.name = "undone"
        session.flush()
        savepoint.rollback()
        session.commit()
        account.name = "undone, too"
        session.flush()
        session.rollback()
        session.commit()
    assert versions(sessions, "name") == [("insert", "a"), ("update", "released")]


def test_rule_10_the_user_is_the_contexts_or_the_rows_or_the_callbacks(sessions: Sessions) -> None:
    set_config(SQLAuditConfig(get_user_id_callback=lambda: "callback", user_model_user_id_field="owner"))
    with AuditContextManager(user_id="context"):
        write(sessions, name="a", editor="field", owner="owner")
        assert get_audit_context().user_id == "context"
    write(sessions, name="b")
    write(sessions, name="c", editor=None)
    set_config(SQLAuditConfig(get_user_id_callback=lambda: None, user_model_user_id_field="owner"))
    write(sessions, name="d")
    write(sessions, name="e", owner=None)
    assert versions(sessions, "audit_changed_by") == [
        ("insert", "context"),
        ("update", "field"),
        ("update", "callback"),
        ("update", "owner"),
        ("update", None),
    ]


def test_rule_11_what_cannot_be_recorded_warns_or_raises(engine: sa.Engine, sessions: Sessions) -> None:
    write(sessions, name="a")
    with sessions() as session, pytest.warns(SQLAuditWarning, match="'accounts'"):
        session.execute(sa.text("UPDATE accounts SET name = 'b'"))
    set_config(SQLAuditConfig(strict=True))
    with sessions() as session, pytest.raises(CaptureError, match="'accounts'"):
        session.execute(sa.text("UPDATE accounts SET name = 'b'"))
    set_config(SQLAuditConfig(require_reason=True))
    with pytest.raises(ContextError, match="reason"):
        write(sessions, name="c")
    set_config(SQLAuditConfig())
    history_of(Account).__table__.drop(engine)
    with pytest.raises(CaptureError, match="create_all"):
        write(sessions, name="d")
    with sessions() as session:
        assert session.scalar(sa.select(Account.name)) == "a"


@pytest.mark.parametrize("written", [0, 1, 2])
def test_rule_12_cost_follows_what_is_written_not_what_is_loaded(
    engine: sa.Engine, sessions: Sessions, database: Database, written: int
) -> None:
    with sessions.begin() as session:
        session.add_all([Account(id=key) for key in range(100)])
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with sessions() as session:
        accounts = session.scalars(sa.select(Account)).all()
        for account in accounts[:written]:
            account.name = "b"
        sa.event.listen(engine, "before_cursor_execute", note)
        session.flush()
        sa.event.remove(engine, "before_cursor_execute", note)
        session.commit()
    saves_round_trips = "writing_ctes" in database.capabilities or (
        written == 1 and "compound_statements" in database.capabilities
    )
    per_flush = 1 if saves_round_trips else 2
    of_history = [statement for statement in statements if "accounts_history" in statement]
    assert len(of_history) == (per_flush if written else 0)
    assert len(versions(sessions)) == 100 + written
