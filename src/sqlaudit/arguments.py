"""Does an argument of a read make sense? Checks that several reads share."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlaudit.exceptions import QueryError
from sqlaudit.period import as_utc


def checked_count(name: str, value: Any) -> int:
    """Return a number of things.

    :raises QueryError: it is none
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise QueryError(f"{name} is {value!r}; give a number from 0, or none.", value)
    return value


def checked_user(name: str, user: object) -> str:
    """Return a user id as it is stored.

    :raises QueryError: it cannot be one
    """
    if isinstance(user, bool) or not isinstance(user, (str, int, UUID)):
        raise QueryError(f"{name} has {user!r}; a user id is a str, an int or a UUID.", user)
    return str(user)


def checked_range(name: str, since: datetime | None, until: datetime | None) -> dict[str, datetime]:
    """Return the parameters ``since`` and ``until``, as far as they are given, in UTC.

    :raises QueryError: one is no datetime, or the range ends before it begins
    """
    given = {key: as_utc(date) for key, date in (("since", since), ("until", until)) if date is not None}
    if len(given) == 2 and given["since"] > given["until"]:
        raise QueryError(
            f"{name} ends at {given['until']}, before it begins at {given['since']}; turn it around.", (since, until)
        )
    return given
