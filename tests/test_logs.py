"""The logs say what an operator wants to know, and nothing of a write that is recorded as usual."""

import logging

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from clock import Clock, at
from sqlaudit import (
    SQLAuditConfig,
    SQLAuditWarning,
    backfill,
    register_hooks,
    restore,
    set_config,
    track_table,
    unregister_hooks,
)

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    pass


@track_table()
class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(sa.String(50))


Logs = list[tuple[str, str, str]]


def told(caplog: pytest.LogCaptureFixture) -> Logs:
    """Return (logger, level, message) of what sqlaudit has logged, and forget it."""
    records = [record for record in caplog.records if record.name.startswith("sqlaudit")]
    caplog.clear()
    return [(record.name, record.levelname, record.getMessage()) for record in records]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sqlaudit")


def test_a_write_that_is_recorded_as_usual_logs_nothing(
    clock: Clock, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with sessions.begin() as session:
        session.add_all([Note(id=1, text="a"), Note(id=2, text="b")])
    with sessions.begin() as session:
        session.get_one(Note, 1).text = "c"
        session.delete(session.get_one(Note, 2))
        session.execute(sa.update(Note).values(text="d"))
    assert told(caplog) == []


def test_the_log_has_what_is_not_usual(
    clock: Clock, engine: sa.Engine, sessions: Sessions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with engine.begin() as connection:
        connection.execute(sa.insert(Note), [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}])
    with sessions.begin() as session:
        session.get_one(Note, 1).text = "c"
    assert told(caplog) == [("sqlaudit.recording", "DEBUG", "notes: 1 rows have no open version; they get baselines")]

    with sessions.begin() as session:
        backfill(session, Note)
    assert told(caplog)[-1] == ("sqlaudit.maintenance", "INFO", "notes: backfilled 1 rows")

    clock.now = at(-10)
    with sessions.begin() as session:
        session.get_one(Note, 1).text = "d"
    ((logger, level, message),) = told(caplog)
    assert (logger, level) == ("sqlaudit.recording", "INFO")
    assert message.startswith("notes: 1 versions begin later than their transaction")

    with sessions.begin() as session:
        restore(session, Note, 1, at=2, dry_run=True)
        assert told(caplog) == []
        restore(session, Note, 1, at=2)
    (*_, (logger, level, message)) = told(caplog)
    assert (logger, level) == ("sqlaudit.restoring", "INFO")
    assert message.startswith("restored from version 2 of")
    assert message.endswith(": 1 update")


@pytest.mark.spread
def test_each_write_that_cannot_be_recorded_is_logged(sessions: Sessions, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    by_hand = sa.text("UPDATE notes SET text = 'x'")
    for on_uncaptured, expected in (("warn", 2), ("ignore", 0)):
        set_config(SQLAuditConfig(on_uncaptured=on_uncaptured))  # type: ignore[arg-type]  # one of them
        with sessions() as session:
            for _ in range(2):
                if expected:
                    with pytest.warns(SQLAuditWarning):
                        session.execute(by_hand)
                else:
                    session.execute(by_hand)
        records = told(caplog)
        assert [(name, level) for name, level, _ in records] == [("sqlaudit.recording", "WARNING")] * expected
        assert all("'notes'" in message for *_, message in records)


@pytest.mark.no_tables
def test_what_is_recorded_from_now_on_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Own(Session):
        pass

    for _ in range(2):
        register_hooks(Own)
    unregister_hooks(Own)
    assert [(name, level, text.partition(" <")[0]) for name, level, text in told(caplog)] == [
        ("sqlaudit.hooks", "INFO", "Recording what"),
        ("sqlaudit.hooks", "INFO", "No longer recording what"),
    ]
