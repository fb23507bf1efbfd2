"""Which history must a sequence of flushes leave? A model in plain Python.

It does not use sqlaudit. A test passes it the rows and the context after each flush, and how the transaction ends, and
compares the library's history with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

OPEN = datetime(9999, 12, 31, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

Place = tuple[str, tuple[Any, ...]]
"""The name of a table and a key in it."""
Row = dict[str, Any]
Rows = dict[Place, Row]


@dataclass(frozen=True)
class Context:
    user: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Step:
    """What one context did to one row in one transaction; `None` stands for an absent row."""

    context: Context
    before: Row | None
    after: Row | None

    @property
    def operation(self) -> str:
        return "insert" if self.before is None else "delete" if self.after is None else "update"


@dataclass(frozen=True)
class Version:
    number: int
    operation: str
    row: Row
    context: Context
    valid_from: datetime
    valid_to: datetime
    transaction: int


@dataclass
class Reference:
    """The rows and their history, as committed and as the running transaction has changed them."""

    is_append_only: bool = False
    """Whether history keeps what one transaction did to a row twice under one context."""
    rows: Rows = field(default_factory=dict)
    history: dict[Place, list[Version]] = field(default_factory=dict)
    _committed: Rows = field(default_factory=dict)
    _steps: dict[Place, list[Step]] = field(default_factory=dict)
    _transactions: int = 0

    def flush(self, rows: Rows, context: Context) -> bool:
        """Note the rows that exist after a flush; return whether the flush changed any."""
        changed = [place for place in {**self.rows, **rows} if self.rows.get(place) != rows.get(place)]
        for place in changed:
            steps = self._steps.setdefault(place, [])
            before = self.rows.get(place)
            if steps and steps[-1].context == context and not self.is_append_only:
                before = steps.pop().before
            if before != rows.get(place):
                steps.append(Step(context, before, rows.get(place)))
        self.rows = rows
        return bool(changed)

    def savepoint(self) -> Any:
        return self.rows, {place: list(steps) for place, steps in self._steps.items()}

    def rollback_to(self, savepoint: Any) -> None:
        self.rows, self._steps = savepoint

    def rollback(self) -> None:
        self.rows, self._steps = self._committed, {}

    def commit(self, instant: datetime | None) -> None:
        """Record versions of the transaction's steps, from `instant` on."""
        for place, steps in self._steps.items():
            if steps:
                assert instant is not None, "the transaction took no instant"
                self._record(self.history.setdefault(place, []), steps, instant)
        self._transactions += 1
        self._committed, self._steps = self.rows, {}

    def _record(self, versions: list[Version], steps: list[Step], at: datetime) -> None:
        if versions:
            at = max(at, versions[-1].valid_from + MICROSECOND)
            if versions[-1].valid_to == OPEN:
                versions[-1] = replace(versions[-1], valid_to=at)
        for step in steps:
            end = OPEN if step is steps[-1] and step.after is not None else at
            row = step.after if step.after is not None else step.before
            assert row is not None
            number = len(versions) + 1
            versions.append(Version(number, step.operation, row, step.context, at, end, self._transactions))

    def as_of(self, when: datetime) -> Rows:
        return {
            place: version.row
            for place, versions in self.history.items()
            for version in versions
            if version.valid_from <= when < version.valid_to
        }

    def boundaries(self) -> Iterator[datetime]:
        """Yield every instant at which a version begins or ends, and one microsecond before and after it."""
        instants = {
            instant
            for versions in self.history.values()
            for version in versions
            for instant in (version.valid_from, version.valid_to)
        } - {OPEN}
        yield from sorted({instant + n * MICROSECOND for instant in instants for n in (-1, 0, 1)})
