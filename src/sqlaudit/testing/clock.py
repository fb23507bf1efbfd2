"""What time is it in a test? As late as the test says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Self

from sqlaudit.config import replace_clock, utc_now
from sqlaudit.exceptions import SQLAuditError
from sqlaudit.period import TICK


class Clock:
    """A clock that a test sets and moves.

    .. code-block:: python

        with Clock(datetime(2026, 1, 1, tzinfo=UTC)) as clock:
            session.commit()
            clock.move(days=1)
            session.commit()

    Within the block it takes the place of the configuration's clock, in all threads, whatever configuration is set. It
    stands still until the test moves it, except for a microsecond from one changeset to the next, so that each has an
    instant of its own. It can also be the ``clock`` of a :class:`~sqlaudit.SQLAuditConfig`.

    :param start: an aware datetime; the time of the system if omitted
    :raises SQLAuditError: ``start`` is not an aware datetime
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._replaced: list[Callable[[], datetime] | None] = []
        self.set(utc_now() if start is None else start)

    @property
    def now(self) -> datetime:
        """The instant of the latest changeset, or the one that the clock was set or moved to since, in UTC."""
        return self._now

    def set(self, instant: datetime) -> datetime:
        """Set the clock, forwards or backwards, and return the instant in UTC.

        :param instant: an aware datetime, the instant of the next changeset
        :raises SQLAuditError: it is not an aware datetime
        """
        if not isinstance(instant, datetime) or instant.tzinfo is None:
            raise SQLAuditError(
                f"A clock cannot be set to {instant!r}. Give an aware datetime, such as datetime(2026, 1, 1, "
                "tzinfo=UTC).",
                instant,
            )
        self._start = self._now = instant.astimezone(UTC)
        self._is_taken = False
        return self._now

    def move(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> datetime:
        """Move the clock, and return the instant of the next changeset, in UTC. Negative numbers move it back.

        It moves from the instant to which it was last set or moved, without the microseconds that have passed since.
        """
        return self.set(self._start + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds))

    def __call__(self) -> datetime:
        """Return the instant of a changeset."""
        if self._is_taken:
            self._now += TICK
        self._is_taken = True
        return self._now

    def __enter__(self) -> Self:
        self._replaced.append(replace_clock(self))
        return self

    def __exit__(self, *exc: object) -> None:
        replace_clock(self._replaced.pop())

    def __repr__(self) -> str:
        return f"<Clock {self._now.isoformat()}>"
