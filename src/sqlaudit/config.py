"""How should sqlaudit behave in this process? As the current configuration says, or its defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from inspect import isgenerator
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy.orm import Session

from sqlaudit.context import get_audit_context, user_id_text
from sqlaudit.exceptions import SQLAuditError


def utc_now() -> datetime:
    """Return the current instant in UTC. This is the clock of the default configuration."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class SQLAuditConfig:
    """The settings of this process, for :func:`set_config`.

    :param session_factory: makes the session of a read that is called without one: a ``sessionmaker``, or a function
        that returns a session, yields one (``yield db``) or returns a context manager of one
    :param user_model: the class of the application's users; sqlaudit does not use it
    :param user_model_user_id_field: the name of a column. If nothing else names a user, and a changed row has this
        column, its value names the user
    :param get_user_id_callback: a function that returns the id of the acting user, or ``None``. It is called if no
        audit context names a user
    :param clock: a function that returns the instant of a changeset, as an aware datetime
    :param on_uncaptured: what to do about a write to a tracked table that cannot be recorded: ``"warn"``, ``"raise"``,
        if possible before the write is executed, or ``"ignore"``
    :param strict: the same as ``on_uncaptured="raise"``
    :param require_user: refuse to flush changes of tracked rows if no user is known
    :param require_reason: refuse to flush changes of tracked rows if the audit context has no reason
    :param redaction_key: the secret key of ``track_table(redact=…)``, of at least 16 bytes; a text stands for its bytes
        in UTF-8. If it is omitted, the environment variable ``SQLAUDIT_REDACTION_KEY`` has it
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
    redaction_key: str | bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("session_factory", "get_user_id_callback", "clock"):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name != "clock"):
                raise SQLAuditError(f"{name} is {value!r}, which cannot be called. Give a function.", value)
        if self.on_uncaptured not in ("warn", "raise", "ignore"):
            raise SQLAuditError(
                f"on_uncaptured is {self.on_uncaptured!r}. Give 'warn', 'raise' or 'ignore'.", self.on_uncaptured
            )
        if self.redaction_key is not None:
            _checked_key(self.redaction_key, "redaction_key")

    def now(self) -> datetime:
        """Return the instant of the clock, in UTC.

        :raises SQLAuditError: the clock returned a naive datetime
        """
        instant = (_replacing_clock or self.clock)()
        if not isinstance(instant, datetime) or instant.tzinfo is None:
            returned = f"the naive datetime {instant}" if isinstance(instant, datetime) else repr(instant)
            raise SQLAuditError(
                f"The configured clock returned {returned}. It must return an aware datetime, such as "
                "datetime.now(UTC).",
                instant,
            )
        return instant.astimezone(UTC)


_DEFAULT = SQLAuditConfig()
_current: SQLAuditConfig | None = None


def set_config(config: SQLAuditConfig) -> None:
    """Make ``config`` the configuration of this process."""
    global _current
    if not isinstance(config, SQLAuditConfig):
        raise SQLAuditError(f"{config!r} is not a SQLAuditConfig. Call set_config(SQLAuditConfig(…)).", config)
    _current = config


def get_config() -> SQLAuditConfig:
    """Return the configuration of this process.

    :raises SQLAuditError: no configuration was set
    """
    if _current is None:
        raise SQLAuditError(
            "sqlaudit is not configured. Call set_config(SQLAuditConfig(…)) first.",
        )
    return _current


def has_config() -> bool:
    """Return whether a configuration was set."""
    return _current is not None


def clear_config() -> None:
    """Return to the default settings."""
    global _current
    _current = None


_replacing_clock: Callable[[], datetime] | None = None


def replace_clock(clock: Callable[[], datetime] | None) -> Callable[[], datetime] | None:
    """Use a clock in place of that of any configuration, and return the clock that was in its place until now.

    :param clock: ``None`` to use the configuration's again
    """
    global _replacing_clock
    before, _replacing_clock = _replacing_clock, clock
    return before


def current_config() -> SQLAuditConfig:
    """Return the configuration that was set, or the defaults."""
    return _current or _DEFAULT


_SHORTEST_KEY: Final = 16
_KEY_VARIABLE: Final = "SQLAUDIT_REDACTION_KEY"


def redaction_key() -> bytes | None:
    """Return the key for the redaction of values, from the configuration or else from the environment.

    :raises SQLAuditError: the key is too short
    """
    key = current_config().redaction_key
    if key is not None:
        return _checked_key(key, "redaction_key")
    text = os.environ.get(_KEY_VARIABLE)
    return _checked_key(text, _KEY_VARIABLE) if text else None


def required_redaction_key() -> bytes:
    """Return the key for the redaction of values.

    :raises SQLAuditError: there is none, or it is too short
    """
    key = redaction_key()
    if key is None:
        raise SQLAuditError(
            "A tracked table redacts values, and no redaction key is configured. Call "
            f"set_config(SQLAuditConfig(redaction_key=…)), or set the environment variable {_KEY_VARIABLE}."
        )
    return key


def _checked_key(key: object, name: str) -> bytes:
    """Return a key as bytes. The errors do not show it.

    :raises SQLAuditError: it is neither bytes nor a text, or too short
    """
    if not isinstance(key, (str, bytes)):
        raise SQLAuditError(f"{name} is a {type(key).__name__}. Give bytes or a text.")
    encoded = key.encode() if isinstance(key, str) else key
    if len(encoded) < _SHORTEST_KEY:
        raise SQLAuditError(
            f"{name} has {len(encoded)} bytes, and who guesses it can guess the redacted values. Give at least "
            f"{_SHORTEST_KEY} random bytes, such as those of secrets.token_bytes(32)."
        )
    return encoded


@contextmanager
def configured_session() -> Iterator[Session]:
    """Yield a session from the configured factory, and end it as the factory does.

    :raises SQLAuditError: no factory is configured, or it returned something other than a session
    """
    factory = current_config().session_factory
    if factory is None:
        raise SQLAuditError(
            "No session was given, and no session factory is configured. Pass session=…, or call "
            "set_config(SQLAuditConfig(session_factory=…))."
        )
    made = factory()
    if isgenerator(made):
        made = contextmanager(lambda: made)()
    if not isinstance(made, AbstractContextManager):
        raise _no_session_error(made)
    with made as session:
        if not isinstance(session, Session):
            raise _no_session_error(session)
        yield session


def _no_session_error(made: object) -> SQLAuditError:
    return SQLAuditError(
        f"The session factory returned {made!r}. It must return a Session, or yield one. With asynchronous "
        "sessions, pass session=… to each read instead.",
        made,
    )


def current_user_id() -> str | None:
    """Return the user of the audit context, or else the one that the configured callback names, as text.

    :raises ContextError: the callback gives no id
    """
    user_id, callback = get_audit_context().user_id, current_config().get_user_id_callback
    if user_id is None and callback is not None:
        return user_id_text(callback(), "the id that get_user_id_callback gives")
    return user_id
