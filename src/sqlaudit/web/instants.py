"""Which instant does a visitor name? An instant in ISO 8601, a changeset, or a mark."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy.orm import Session

from sqlaudit.config import current_config
from sqlaudit.exceptions import QueryError
from sqlaudit.past.marks import mark_named
from sqlaudit.retrieval.changesets import instant_of_changeset
from sqlaudit.web.problems import Problem


def instant_of(session: Session, text: str, zone: str = "", *, may_be_future: bool = False) -> datetime:
    """Return the instant that a text names, in UTC.

    :param zone: the name of the time zone of a text without one; UTC if it is unknown
    :raises Problem: it names none, or one in the future
    """
    text = text.strip()
    if text.startswith("mark:"):
        try:
            return mark_named(session, text.removeprefix("mark:")).at
        except QueryError:
            raise Problem(404, "unknown_mark", name=text.removeprefix("mark:")) from None
    with suppress(ValueError):
        changeset_id = UUID(text)
        try:
            return instant_of_changeset(session, changeset_id)
        except QueryError:
            raise Problem(404, "unknown_changeset", id=text) from None
    try:
        given = datetime.fromisoformat(text)
        instant = (given if given.tzinfo is not None else given.replace(tzinfo=_zone(zone))).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Problem(400, "no_instant", text=text) from None
    if instant > current_config().now() and not may_be_future:
        raise Problem(400, "future", text=text)
    return instant


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name) if name else UTC
    except (ValueError, OSError, LookupError):  # LookupError: zoneinfo's own
        return UTC


@lru_cache(maxsize=1_000)
def instant_text(instant: datetime) -> str:
    """Return an instant as the text that a URL has."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
