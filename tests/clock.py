"""A clock for tests: each transaction that writes gets an instant one second after the one before."""

from datetime import UTC, datetime, timedelta

START = datetime(2024, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Clock:
    """Gives the transactions that write the instants START, START + 1 s, START + 2 s … in turn."""

    def __init__(self) -> None:
        self.now = at(-1)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now
