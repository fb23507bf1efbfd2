"""How shall sqlaudit behave in this process? The configuration, and the current one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import isgenerator
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.orm import Session

from sqlaudit.exceptions import SQLAuditError


def utc_now() -> datetime:
    """Return the current instant: the clock, unless the configuration has another."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class SQLAuditConfig:
    """The settings of this process.

    :param session_factory: gives the session of a read that is called without one: a callable that returns a
        session, a generator of one (``yield db``) or a context manager of one; a ``sessionmaker`` is one
    :param user_model: the class of the application's users, for the application's own use
    :param user_model_user_id_field: the name of a column; a changed row that has it names its user by it,
        if nothing else does
    :param get_user_id_callback: gives the id of the acting user if no context does; ``None`` if there is none
    :param clock: gives the instant of a changeset: an aware datetime
    :param on_uncaptured: what to do when a write to a tracked table cannot be recorded: ``"warn"``, ``"raise"`` before
        it is executed, where that can be known, or ``"ignore"`` it
    :param strict: the same as ``on_uncaptured="raise"``
    :param require_user: refuse to flush changes of tracked rows for which no user is known
    :param require_reason: refuse to flush changes of tracked rows without a reason in the context
    """

    session_factory: Callable[[], Any] | None = None
    user_model: type[Any] | None = None
    user_model_user_id_field: str | None = None
    get_user_id_callback: Callable[[], str | int | UUID | None] | None = None
    clock: Callable[[], datetime] = utc_now
    on_uncaptured: Literal["warn", "raise", "ignore"] = "warn"
    strict: bool = False
    require_user: bool = False
    require_reason: bool = False

    def __post_init__(self) -> None:
        for name in ("session_factory", "get_user_id_callback", "clock"):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name != "clock"):
                raise SQLAuditError(f"{name} is {value!r}, which cannot be called; give a function.", value)
        if self.on_uncaptured not in ("warn", "raise", "ignore"):
            raise SQLAuditError(
                f"on_uncaptured is {self.on_uncaptured!r}; give 'warn', 'raise' or 'ignore'.", self.on_uncaptured
            )

    def now(self) -> datetime:
        """Return the clock's instant in UTC.

        :raises SQLAuditError: the clock gave a naive datetime
        """
        instant = self.clock()
        if not isinstance(instant, datetime) or instant.tzinfo is None:
            what = f"the naive datetime {instant}" if isinstance(instant, datetime) else repr(instant)
            raise SQLAuditError(
                f"The configured clock gave {what}; return an aware datetime, such as datetime.now(UTC).", instant
            )
        return instant.astimezone(UTC)


_DEFAULT = SQLAuditConfig()
_current: SQLAuditConfig | None = None


def set_config(config: SQLAuditConfig) -> None:
    """Make ``config`` the configuration of this process."""
    global _current
    if not isinstance(config, SQLAuditConfig):
        raise SQLAuditError(f"{config!r} is not a SQLAuditConfig; call set_config(SQLAuditConfig(…)).", config)
    _current = config


def get_config() -> SQLAuditConfig:
    """Return the configuration that was set.

    :raises SQLAuditError: none was
    """
    if _current is None:
        raise SQLAuditError("sqlaudit is not configured; call set_config(SQLAuditConfig(…)) first.")
    return _current


def has_config() -> bool:
    """Tell whether a configuration was set."""
    return _current is not None


def clear_config() -> None:
    """Return to the defaults."""
    global _current
    _current = None


def current_config() -> SQLAuditConfig:
    """Return the configuration that was set, or the defaults."""
    return _current or _DEFAULT


@contextmanager
def configured_session() -> Iterator[Session]:
    """Give a session of the configured factory, and end it as the factory does.

    :raises SQLAuditError: there is no factory, or it gives no session
    """
    factory = current_config().session_factory
    if factory is None:
        raise SQLAuditError(
            "No session was given and none can be made; pass session=…, "
            "or call set_config(SQLAuditConfig(session_factory=…))."
        )
    made = factory()
    if isgenerator(made):
        made = contextmanager(lambda: made)()
    if not isinstance(made, AbstractContextManager):
        raise SQLAuditError(f"The session factory gave {made!r}; it must give a Session, or yield one.", made)
    with made as session:
        if not isinstance(session, Session):
            raise SQLAuditError(f"The session factory gave {session!r}; it must give a Session, or yield one.", session)
        yield session
