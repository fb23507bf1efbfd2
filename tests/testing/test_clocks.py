"""The clock of a test, and the fixtures of the plugin for pytest."""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from blocks import ROOT, blocks
from sqlaudit import SQLAuditConfig, SQLAuditError, as_of, set_config, time_travel, track_table, unregister_hooks
from sqlaudit.config import current_config
from sqlaudit.testing import Clock, assert_recorded

pytest_plugins = ["pytester"]

START = datetime(2026, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)


class Base(DeclarativeBase):
    pass


@track_table()
class Ticket(Base):
    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    status: Mapped[str] = mapped_column(sa.String(50))


PLAIN = ("-p", "no:cacheprovider", "-p", "no:slipcover", "-W", "error")


def test_changesets_have_the_instants_of_the_clock(sessions: sessionmaker[Session]) -> None:
    """Also after the application has set its configuration, and later than the time of the system."""

    def set_status(status: str) -> datetime:
        with sessions.begin() as session:
            session.merge(Ticket(id=1, status=status))
        with sessions() as session:
            return assert_recorded(session, Ticket, 1, values={"status": status}).valid_from

    with Clock(START) as clock:
        set_config(SQLAuditConfig())
        assert set_status("new") == START == clock.now
        assert set_status("open") == START + TICK == clock.now
        assert clock.move(days=1, hours=1, minutes=1, seconds=1) == START + timedelta(1, 3661) == clock.now
        assert set_status("done") == clock.now
        later = clock.set(datetime.now(timezone(timedelta(hours=2))) + timedelta(days=30))
        assert later.tzinfo is UTC
        assert set_status("old") == clock.now == later
        with sessions() as session:
            for when, status in ((START, "new"), (START + TICK, "open"), (START + timedelta(2), "done")):
                assert session.scalars(as_of(Ticket, when)).one().status == status
            with time_travel(session, clock.now) as past:
                assert past.get_one(Ticket, 1).status == "old"
    assert current_config().now() < later


@pytest.mark.spread
def test_clocks_can_be_nested_and_configured() -> None:
    outer, inner = Clock(START), Clock(START + timedelta(days=1))
    with outer, inner:
        with inner:
            assert current_config().now() == inner.now
        assert current_config().now() == inner.now
        set_config(SQLAuditConfig(clock=outer))
        assert current_config().now() == inner.now
    assert current_config().now() == START == outer.now
    assert repr(outer) == "<Clock 2026-01-01T00:00:00+00:00>"
    assert abs(Clock().now - datetime.now(UTC)) < timedelta(days=1)


@pytest.mark.parametrize("wrong", [datetime(2026, 1, 1), "2026-01-01"], ids=["naive", "text"])  # noqa: DTZ001
def test_a_clock_is_set_to_aware_datetimes(wrong: Any) -> None:
    with pytest.raises(SQLAuditError, match="Give an aware datetime"):
        Clock(wrong)


def test_the_files_of_the_page_run(pytester: pytest.Pytester) -> None:
    page = blocks(ROOT / "docs" / "guide" / "testing.md")
    files = {match[1]: text for _, text, _ in page if (match := re.match(r"# (\w+)\.py\n", text))}
    assert files.keys() == {"conftest", "test_clock", "test_rolled_back"}
    pytester.makepyfile(tickets=page[0][1], **files)
    try:
        pytester.runpytest_inprocess(*PLAIN).assert_outcomes(passed=3)
    finally:
        unregister_hooks()


def test_the_plugin_gives_a_clock_and_ends_the_audit_context_with_the_test(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from datetime import UTC, datetime

        import pytest

        from sqlaudit import set_audit_context

        pytest_plugins = ["sqlaudit.testing.pytest"]

        @pytest.fixture(scope="session", autouse=True)
        def suite():
            set_audit_context(user_id="suite")
        """
    )
    pytester.makepyfile(
        """
        from datetime import UTC, datetime

        from sqlaudit import get_audit_context, set_audit_context
        from sqlaudit.config import current_config

        def test_one(audit_clock):
            assert get_audit_context().user_id == "suite"
            set_audit_context(user_id="ana")
            assert audit_clock.set(datetime(2026, 1, 1, tzinfo=UTC)) == current_config().now()

        def test_two():
            assert get_audit_context().user_id == "suite"
            assert current_config().now() > datetime(2026, 1, 1, tzinfo=UTC)
        """
    )
    pytester.runpytest_inprocess(*PLAIN).assert_outcomes(passed=2)
