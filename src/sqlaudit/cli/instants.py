"""Which instant does a person mean? A date, a time ago, a version, a transaction or a mark."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from sqlaudit.cli.failures import UsageProblem
from sqlaudit.past.marks import mark_named

INSTANT_HELP = "an instant ('2026-03-01 14:00', 'yesterday 14:00', '3 days ago'), a changeset id, or mark:NAME"

_LATELY: Final = re.compile(
    r"(?:last )?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day ?)?(?:\d\d?:\d\d)?", re.IGNORECASE
)
"""A day of the last week, a time of the last day, or both."""
_NUMBERS: Final = re.compile(r"(\d+)[-/.](\d+)[-/.](\d+)")


def instant_of(text: str) -> datetime:
    """Return the instant that a text names, in the time zone of the machine unless the text names another.

    :raises UsageProblem: the text cannot be read
    """
    with suppress(ValueError):
        return datetime.fromisoformat(text).astimezone()
    dateparser: Any = import_module("dateparser")  # takes half a second, and most commands need none
    settings: dict[str, Any] = {"RETURN_AS_TIMEZONE_AWARE": True, "PREFER_DATES_FROM": "past"}
    settings["STRICT_PARSING"] = not _LATELY.fullmatch(text)  # otherwise it completes "5" and "march" to some day
    parsed: datetime | None = dateparser.parse(text, languages=["en"], settings=settings)
    numbers = _NUMBERS.match(text)
    if parsed and numbers and tuple(map(int, numbers.groups())) != (parsed.year, parsed.month, parsed.day):
        parsed = None  # a day and a month in an order that the user may not mean
    if parsed is None:
        raise UsageProblem(
            f"{text!r} is not an instant. Write one such as '2026-03-01 14:00', 'yesterday 14:00' or '3 days ago'."
        )
    return parsed.astimezone()


def state(session: Session, text: str, *, versions: bool = False) -> Any:
    """Return what a text names: an instant, a changeset id, a :class:`~sqlaudit.Mark`, or the number of a version.

    :param versions: read a whole number as that of a version
    :raises UsageProblem: the text cannot be read
    :raises QueryError: there is no such mark
    """
    if versions and text.isdecimal() and len(text) < 10:
        return int(text)
    if text.startswith("mark:"):
        return mark_named(session, text.removeprefix("mark:"))
    with suppress(ValueError):
        return UUID(text)
    return instant_of(text)
