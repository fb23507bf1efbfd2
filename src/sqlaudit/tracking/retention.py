"""Which versions may be pruned? Those that a retention does not keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlaudit.exceptions import QueryError

_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_DURATION: Final = re.compile(r"\s*(\d+)\s*([hdw])\s*")


@dataclass(frozen=True, slots=True)
class Retention:
    """Which versions :func:`~sqlaudit.maintenance.prune` keeps. It removes the oldest versions of a row, and no others.

    A version is removed if all that is given allows it. The open version of a row is always kept.

    .. code-block:: python

        @track_table(retention=Retention(older_than="90d", keep_last=10))
        class Ticket(Base): ...

    :param older_than: remove only versions that ended longer ago: a positive ``timedelta``, or a text such as
        ``"36h"``, ``"90d"`` or ``"52w"``
    :param keep_last: keep so many of the newest versions of each row
    :param keep_tombstones: keep the last version of a deleted row, which says what it was, when it was deleted, and by
        whom
    :raises QueryError: a value is invalid, or neither ``older_than`` nor ``keep_last`` is given
    """

    older_than: timedelta | str | None = None
    keep_last: int | None = None
    keep_tombstones: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "older_than", _checked_duration(self.older_than))
        is_count = isinstance(self.keep_last, int) and not isinstance(self.keep_last, bool) and self.keep_last > 0
        if self.keep_last is not None and not is_count:
            raise QueryError(f"keep_last is {self.keep_last!r}. Give an int from 1, or leave it out.", self.keep_last)
        if self.older_than is None and self.keep_last is None:
            raise QueryError(
                "Nothing says which versions may be removed. Give older_than, keep_last, or both.",
                self,
            )

    @property
    def age(self) -> timedelta | None:
        """``older_than`` as a ``timedelta``."""
        return self.older_than if isinstance(self.older_than, timedelta) else None

    @property
    def kept(self) -> int:
        """How many of a row's newest versions are kept, whatever their age."""
        return max(self.keep_last or 0, int(self.keep_tombstones))


def _checked_duration(value: Any) -> timedelta | None:
    """Return a duration as a ``timedelta``.

    :raises QueryError: it is neither a positive ``timedelta`` nor the text of one
    """
    duration = value
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        try:
            duration = int(match[1]) * _UNITS[match[2]]
        except OverflowError:
            duration = timedelta(0)
    if duration is None or (isinstance(duration, timedelta) and duration > timedelta(0)):
        return duration
    raise QueryError(
        f"older_than is {value!r}. Give a positive timedelta, or a text of hours, days or weeks: '36h', '90d', '52w'.",
        value,
    )
