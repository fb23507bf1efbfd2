"""A clock that tests set: one second passes with every transaction that writes."""

from datetime import UTC, datetime, timedelta

START = datetime(2024, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Clock:
    """Gives the instants START, START + 1 s, START + 2 s … to the transactions that write, in turn."""

    def __init__(self) -> None:
        self.now = at(-1)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now
