"""What does an argument mean, and is it valid? Instants, changesets, users and numbers, as users give them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from sqlaudit.config import current_config
from sqlaudit.context import ActorType
from sqlaudit.exceptions import QueryError
from sqlaudit.period import Mark, as_utc

When: TypeAlias = datetime | Mark | UUID | str
"""An instant, a mark, or the id of a changeset."""


def checked_count(name: str, value: Any) -> int:
    """Return a count.

    :raises QueryError: it is not an int from 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise QueryError(f"{name} is {value!r}. Give an int that is not negative, or leave it out.", value)
    return value


def checked_user(name: str, user: object) -> str:
    """Return the id of a user or a run as the text that history stores.

    :raises QueryError: it is neither text, int nor UUID
    """
    if isinstance(user, bool) or not isinstance(user, (str, int, UUID)):
        raise QueryError(f"{name} has {user!r}. Give ids as str, int or UUID.", user)
    return str(user)


def checked_actor_type(name: str, actor_type: object) -> str:
    """Return a kind of actor as the text that history stores.

    :raises QueryError: there is no such kind
    """
    if not isinstance(actor_type, str) or actor_type not in map(str, ActorType):
        raise QueryError(f"{name} has {actor_type!r}. Give {', '.join(ActorType)}.", actor_type)
    return str(actor_type)


def checked_reason(name: str, reason: object) -> str:
    """Return a reason.

    :raises QueryError: it is no text
    """
    if not isinstance(reason, str):
        raise QueryError(f"{name} has {reason!r}. Give reasons as str.", reason)
    return reason


def checked_range(name: str, since: datetime | Mark | None, until: datetime | Mark | None) -> dict[str, datetime]:
    """Return the parameters ``since`` and ``until`` in UTC, without those that are ``None``.

    :raises QueryError: one is not a datetime, or the range ends before it begins
    """
    parameters = {key: as_utc(date) for key, date in (("since", since), ("until", until)) if date is not None}
    if len(parameters) == 2 and parameters["since"] > parameters["until"]:
        raise QueryError(
            f"{name} ends at {parameters['until']}, before it begins at {parameters['since']}. Give the earlier "
            "instant first.",
            (since, until),
        )
    return parameters


def instant_or_now(at: datetime | Mark | None) -> datetime:
    """Return the instant that the user gives, in UTC, or the configured clock's if it is ``None``.

    :raises QueryError: the instant is in the future
    """
    now = current_config().now()
    if at is None:
        return now
    if (instant := as_utc(at)) > now:
        raise QueryError(f"at is {at}, which is in the future. Give an instant that has passed, or leave it out.", at)
    return instant


def changeset_uuid(changeset_id: UUID | str) -> UUID:
    """Return the id of a changeset as a UUID.

    :raises QueryError: it is neither a UUID nor the text of one
    """
    if isinstance(changeset_id, UUID):
        return changeset_id
    try:
        return UUID(changeset_id)
    except (TypeError, ValueError, AttributeError):
        raise QueryError(
            f"{changeset_id!r} is not a changeset id. Give the UUID that a version has as audit_changeset_id.",
            changeset_id,
        ) from None


def checked_when(when: When) -> datetime | UUID:
    """Return a user's ``when`` as a datetime in UTC or, for the id of a changeset, as a UUID.

    :raises QueryError: it is neither a datetime nor the id of a changeset
    """
    if not isinstance(when, str):
        return when if isinstance(when, UUID) else as_utc(when)
    try:
        return UUID(when)
    except ValueError:
        raise QueryError(
            f"{when!r} is neither a datetime nor a changeset id. Give an aware datetime, such as datetime.now(UTC), "
            "the UUID that a version has as audit_changeset_id, or a mark by its name: mark_named(session, …).",
            when,
        ) from None
