"""Which objects are of the past? Those whose identity token is an :class:`Instant`. They are read-only."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import (
    InstanceState,
    Session,
)
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.lambdas import PyWrapper

from sqlaudit.arguments import When, checked_when
from sqlaudit.config import current_config, utc_now
from sqlaudit.exceptions import QueryError, ReadOnlyError, warn_caller
from sqlaudit.past.rendering import BeforeBaseline, Instant, Rules, UntrackedPolicy
from sqlaudit.period import OPEN_END, TICK

_LATEST: Final = OPEN_END - TICK  # the last instant that open versions contain


def instant_from(
    when: When,
    untracked: UntrackedPolicy = "raise",
    before_baseline: BeforeBaseline = "absent",
    *,
    text: bool = False,
) -> Instant:
    """Return the instant that a user gave. An instant in the future reads the present, with a warning.

    :raises QueryError: ``when`` is neither a datetime nor a changeset id, or a rule has an unknown value
    """
    if untracked not in ("raise", "live"):
        raise QueryError(f"untracked is {untracked!r}. Give 'raise' or 'live'.", untracked)
    if before_baseline not in ("absent", "warn", "raise"):
        raise QueryError(f"before_baseline is {before_baseline!r}. Give 'absent', 'warn' or 'raise'.", before_baseline)
    rules = Rules(untracked, text, before_baseline)
    if isinstance(when, PyWrapper):
        raise QueryError(
            "SQLAlchemy calls a lambda once and reuses its statement for all values of its variables, so an instant "
            "cannot be one of them. Make the statement before the lambda: statement = as_of(…), lambda_stmt(lambda: "
            "statement).",
            when,
        )
    instant = checked_when(when)
    if isinstance(instant, UUID):
        return Instant(instant, rules)
    if instant > utc_now() and instant > current_config().now():
        warn_caller(
            f"{instant.isoformat()} is in the future, so the statement reads the present. Give an instant that has "
            "passed.",
        )
    return Instant(min(instant, _LATEST), rules)


def instant_of_object(obj: object) -> Instant | None:
    """Return the instant as of which an object was read, or ``None`` for a live object."""
    return instant_of_state(instance_state(obj))


def instant_of_state(state: InstanceState[Any]) -> Instant | None:
    """Return the instant as of which the object of a state was read, or ``None`` for a live object."""
    token = state.key[2] if state.key else None  # merge(load=False) leaves state.identity_token empty
    return token if isinstance(token, Instant) else None


def refuse_change(state: InstanceState[Any]) -> None:
    """Raise if an object was read as of an instant.

    :raises ReadOnlyError: the object was read as of an instant
    """
    instant = instant_of_state(state)
    if instant is not None:
        raise ReadOnlyError(
            f"{state.class_.__name__} {state.identity} {instant} is read-only. Expunge or refresh it, and change the "
            "live object instead.",
            state.obj(),
        )


def is_unchanged_past(session: Session, state: InstanceState[Any], *, doomed: bool = False) -> bool:
    """Return whether an object was read as of an instant. It becomes clean if it was set to the values that it had.

    :param doomed: whether the session will delete the object
    :raises ReadOnlyError: the object was read as of an instant, and is changed or doomed
    """
    if instant_of_state(state) is None:
        return False
    if doomed or session.is_modified(state.obj()):
        refuse_change(state)
    state._commit_all(state.dict, session.identity_map)
    return True


def refuse_changes(session: Session) -> None:
    """Raise if the session has changed or deleted objects that were read as of an instant.

    :raises ReadOnlyError: an object was read as of an instant, and is changed or deleted
    """
    for doomed, objects in ((False, session.dirty), (True, session.deleted)):
        for obj in objects:
            is_unchanged_past(session, instance_state(obj), doomed=doomed)


def refuse_reference(state: InstanceState[Any], value: object, *args: object) -> None:
    """Raise if an object would refer to an object of another instant, and get its key.

    :raises ReadOnlyError: the value was read as of another instant
    """
    instant = None if value is None else instant_of_object(value)
    if instant is not None and instant != instant_of_state(state):
        referred: InstanceState[Any] = instance_state(value)
        raise ReadOnlyError(
            f"{referred.class_.__name__} {referred.identity} {instant} cannot be assigned to a "
            f"{state.class_.__name__} of another instant. Assign the live object.",
            value,
        )
