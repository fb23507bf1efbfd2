"""A plugin for pytest: sqlaudit's hooks are registered in a suite of tests that track nothing. SQLAlchemy's is one.

The suite takes away every listener of sessions and mappers after some of its tests. So each test begins with what
sqlaudit listens to; and before the first test and after the last, a model of the plugin's own is tracked and recorded.
"""

from collections.abc import Callable
from typing import Any

import pytest

_LISTENERS: list[tuple[Any, str, Callable[..., Any], dict[str, Any]]] = []


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    # SQLAlchemy's suite wants to be the first to import SQLAlchemy.
    from sqlalchemy import event  # noqa: PLC0415
    from sqlalchemy.testing import config  # noqa: PLC0415

    listen = event.listen

    def listen_and_note(target: Any, name: str, listener: Any, **options: Any) -> None:
        listen(target, name, listener, **options)
        if isinstance(target, type) and listener.__module__.startswith("sqlaudit."):
            _LISTENERS.append((target, name, listener, options))

    event.listen = listen_and_note
    from sqlaudit import register_hooks  # noqa: PLC0415

    register_hooks(engine=config.db)
    _check_recording()
    event.listen = listen


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _listen_again()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    _listen_again()
    _check_recording()
    terminalreporter.line("sqlaudit still records")


def _listen_again() -> None:
    from sqlalchemy import event  # noqa: PLC0415

    for target, name, listener, options in _LISTENERS:
        if not event.contains(target, name, listener):
            event.listen(target, name, listener, **options)


def _check_recording() -> None:
    import sqlalchemy as sa  # noqa: PLC0415
    from sqlalchemy import orm  # noqa: PLC0415

    from sqlaudit import track_table, versions_of  # noqa: PLC0415

    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Note(Base):
        __tablename__ = "notes_of_sqlaudit"
        id = orm.mapped_column(sa.Integer, primary_key=True)

    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Note(id=1))
        session.commit()
        assert len(versions_of(session, Note, 1)) == 1
    engine.dispose()
