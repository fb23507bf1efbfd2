"""The configuration: what it refuses, and what it makes flushes refuse."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from sqlaudit import (
    AuditContextManager,
    CaptureError,
    ContextError,
    SQLAuditConfig,
    SQLAuditError,
    SQLAuditWarning,
    clear_config,
    get_config,
    has_config,
    set_config,
)


class Base(DeclarativeBase):
    pass


@sqlaudit.track_table(user_id_field="editor")
class Page(Base):
    __tablename__ = "pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None] = mapped_column(sa.String(50))
    editor: Mapped[str | None] = mapped_column(sa.String(50))


class Untracked(Base):
    __tablename__ = "untracked"

    id: Mapped[int] = mapped_column(primary_key=True)


def stored(session: Session) -> tuple[list[str | None], int]:
    """The texts of the live rows, and how many versions there are."""
    history = sqlaudit.history_of(Page)
    texts = list(session.scalars(sa.select(Page.text).order_by(Page.id)))
    return texts, session.scalar(sa.select(sa.func.count()).select_from(history))


def test_a_configuration_is_set_read_and_cleared():
    assert not has_config()
    with pytest.raises(SQLAuditError, match="set_config"):
        get_config()
    config = SQLAuditConfig(lambda: None)
    set_config(config)
    assert has_config()
    assert get_config() is config
    clear_config()
    assert not has_config()


def test_the_first_arguments_may_be_given_by_position():
    def callback():
        return None

    config = SQLAuditConfig(sessionmaker, Page, "editor", callback)
    assert (config.session_factory, config.user_model, config.user_model_user_id_field) == (
        sessionmaker,
        Page,
        "editor",
    )
    assert config.get_user_id_callback is callback


@pytest.mark.parametrize("name", ["session_factory", "get_user_id_callback", "clock"])
def test_what_must_be_called_must_be_callable(name):
    with pytest.raises(SQLAuditError, match=f"{name} is 5"):
        SQLAuditConfig(**{name: 5})


def test_only_a_configuration_can_be_set():
    with pytest.raises(SQLAuditError, match="SQLAuditConfig"):
        set_config({"strict": True})


@pytest.mark.parametrize(
    "gives", [lambda: 5, lambda: iter([5]), lambda: (each for each in [5])], ids=["int", "iterator", "generator"]
)
def test_a_factory_that_gives_no_session_raises(gives):
    set_config(SQLAuditConfig(session_factory=gives))
    with pytest.raises(SQLAuditError, match="must return a Session"):
        sqlaudit.get_resource_changes(Page)


def test_the_clock_gives_the_instants_in_utc(session):
    noon = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    set_config(SQLAuditConfig(clock=lambda: noon))
    session.add(Page(id=1))
    session.commit()
    (version,) = sqlaudit.versions_of(session, Page, 1)
    assert version.valid_from == noon
    assert version.valid_from.tzinfo is UTC


@pytest.mark.parametrize(
    ("instant", "what"),
    [(datetime(2024, 1, 1), "naive"), (1704067200.0, "returned 1704067200.0"), (None, "returned None")],  # noqa: DTZ001  # what is tested
)
def test_a_clock_without_aware_instants_fails_the_flush_and_nothing_is_written(session, instant, what):
    set_config(SQLAuditConfig(clock=lambda: instant))
    session.add(Page(id=1))
    with pytest.raises(SQLAuditError, match=what):
        session.commit()
    session.rollback()
    assert stored(session) == ([], 0)


REQUIREMENTS = [
    ({"require_user": True}, {"reason": "r"}, "without a user", {"user_id": "u"}),
    ({"require_reason": True}, {"user_id": "u"}, "without a reason", {"reason": "r"}),
    ({"require_user": True, "require_reason": True}, {}, "without a reason", {"user_id": "u", "reason": "r"}),
]


@pytest.mark.parametrize(("settings", "lacking", "message", "enough"), REQUIREMENTS)
def test_a_flush_without_what_is_required_writes_nothing_and_loses_nothing(session, settings, lacking, message, enough):
    session.add_all([Page(id=1, text="a"), Page(id=2, text="b")])
    session.commit()
    first, second = session.scalars(sa.select(Page).order_by(Page.id))
    set_config(SQLAuditConfig(**settings))
    first.text = "c"
    session.delete(second)
    session.add(Page(id=3, text="d"))
    with pytest.raises(ContextError, match=message), AuditContextManager(**lacking):
        session.flush()
    assert (len(session.dirty), len(session.deleted), len(session.new)) == (1, 1, 1)
    with AuditContextManager(**enough):
        session.commit()
    assert stored(session) == (["c", "d"], 5)


def test_a_required_user_may_come_from_the_row_or_the_callback(session):
    set_config(SQLAuditConfig(require_user=True))
    session.add(Page(id=1, editor="e"))
    session.commit()
    set_config(SQLAuditConfig(require_user=True, get_user_id_callback=lambda: 5))
    session.add(Page(id=2))
    session.commit()
    for nobody in (None, ""):
        set_config(SQLAuditConfig(require_user=True, get_user_id_callback=lambda nobody=nobody: nobody))
        session.add(Page(id=3, editor=nobody))
        with pytest.raises(ContextError):
            session.commit()
        session.rollback()


def test_an_expired_row_may_name_the_required_user(session):
    session.add(Page(id=1, editor="e"))
    session.commit()
    set_config(SQLAuditConfig(require_user=True))
    page = session.get(Page, 1)
    session.expire(page)
    page.text = "x"
    session.commit()
    assert [version.audit_changed_by for version in sqlaudit.versions_of(session, Page, 1)] == ["e", "e"]


def test_nothing_is_required_of_untracked_and_unchanged_rows(session):
    page = Page(id=1, text="a")
    session.add(page)
    session.commit()
    set_config(SQLAuditConfig(require_user=True, require_reason=True))
    page.text = page.text
    session.add(Untracked(id=1))
    session.commit()


def test_a_write_that_cannot_be_recorded_warns_or_in_strict_mode_raises_and_writes_nothing(session, engine):
    with Session(engine) as unhooked:
        unhooked.add(Page(id=1, text="a"))
        with pytest.warns(SQLAuditWarning, match="without hooks"):
            unhooked.commit()
    with pytest.warns(SQLAuditWarning, match="Hand-written SQL"):
        session.execute(sa.text("UPDATE pages SET text = 'b'"))
    session.commit()
    set_config(SQLAuditConfig(strict=True))
    with Session(engine) as unhooked:
        unhooked.add(Page(id=2, text="a"))
        with pytest.raises(CaptureError, match="without hooks"):
            unhooked.commit()
    with pytest.raises(CaptureError, match="Hand-written SQL"):
        session.execute(sa.text("UPDATE pages SET text = 'c'"))
    session.rollback()
    assert stored(session) == (["b"], 0)
