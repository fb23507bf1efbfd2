"""What has a check found? Findings, each with a code of a closed list, and the report that counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlaudit.sql.keys import RawKey
from sqlaudit.tracking.tables import TrackedTable
from sqlaudit.wire import Report


class FindingCode(StrEnum):
    """What :func:`check` finds. The codes are a closed list."""

    MISSING_TABLE = "missing-table"
    """The database lacks the history table."""
    MISSING_COLUMN = "missing-column"
    """The history table lacks a column that the model needs."""
    NARROW_COLUMN = "narrow-column"
    """A column of the history table cannot hold all values of its column in the live table."""
    MISSING_INDEX = "missing-index"
    """The history table lacks its primary key or an index."""
    MISSING_PARTITION = "missing-partition"
    """The model divides its history, and the history table is not divided, or lacks partitions (PostgreSQL)."""
    MISSING_PROTECTION = "missing-protection"
    """The model says that its history is append-only, and the history table lacks triggers that make it so."""
    MISSING_POLICY = "missing-policy"
    """The live table has row security that the history table lacks (PostgreSQL)."""
    MISSING_GRANT = "missing-grant"
    """A role may write the live table, and lacks a right on the history table (PostgreSQL, MariaDB and MySQL)."""
    REVERSED_PERIOD = "reversed-period"
    """A version ends before it begins."""
    OVERLAP = "overlap"
    """A version begins before the version before it ends."""
    GAP = "gap"
    """A version begins after the version before it ends, although neither a tombstone nor a baseline explains it."""
    OPEN_NOT_LAST = "open-not-last"
    """A version is open although later versions of the row follow it."""
    MISSING_VERSION = "missing-version"
    """A number is missing among the versions of a row."""
    MISPLACED_TOMBSTONE = "misplaced-tombstone"
    """A tombstone has a duration or precedes all other versions, or neither an insert nor a baseline follows it."""
    MISSING_TOMBSTONE = "missing-tombstone"
    """The last version of a deleted row is no tombstone, or an insert follows a version that is none."""
    TWO_INSTANTS = "two-instants"
    """Versions of one changeset begin at different instants."""
    ORPHANED_VERSION = "orphaned-version"
    """A version in the history of a subclass table has no version in the history of the base table."""
    DIFFERENT_PERIOD = "different-period"
    """A version in the history of a subclass table has another period, operation or changeset than in the base."""
    UNRECORDED_ROW = "unrecorded-row"
    """A live row has no open version."""
    UNRECORDED_CHANGE = "unrecorded-change"
    """A live row differs from its open version. Quiet and excluded columns are not compared."""
    UNRECORDED_DELETION = "unrecorded-deletion"
    """A version is open although its live row is gone."""


@dataclass(frozen=True, slots=True, repr=False)
class Finding(Report):
    """One fault that :func:`check` found.

    :param code: what kind of fault it is
    :param table: the live table, with its schema if it has one
    :param key: the key of the row, a tuple if it is composite; ``None`` if the fault is not one of a row
    :param message: what is wrong
    :param remedy: how to mend it
    :param repair: with ``repair=True``: what has been done, or why nothing has been done. Otherwise ``None``
    :param is_repaired: whether it has been mended
    """

    code: FindingCode
    table: str
    key: Any
    message: str
    remedy: str
    repair: str | None = None
    is_repaired: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Report):
    """What :func:`check` found, and what it did.

    :param findings: the faults: of each code and table, at most as many as the ``limit`` says
    :param counts: how many faults of each code there are, including those that are not listed
    :param counts_by_table: how many faults each live table has, those without any left out
    :param repaired: how many faults have been mended
    :param tables: how many tracked tables have been checked
    :param versions: how many versions have been checked; of an object that several tables hold, one for each
    :param unchecked: what could not be checked, and why
    :param changeset_ids: the changesets of the versions by which faults have been mended
    """

    findings: tuple[Finding, ...]
    counts: Mapping[FindingCode, int]
    counts_by_table: Mapping[str, int]
    repaired: int
    tables: int
    versions: int
    unchecked: tuple[str, ...]
    changeset_ids: tuple[UUID, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no fault was found, or all have been mended, and everything could be checked."""
        return sum(self.counts.values()) == self.repaired and not self.unchecked


@dataclass(slots=True)
class Listed:
    """A finding in the list of a running check.

    :ivar raw_key: the raw key of the row, by which a repair finds it again
    """

    finding: Finding
    tracked: TrackedTable
    raw_key: RawKey | None = None


class Collector:
    """The findings of a running check, in flat memory.

    :param limit: how many findings of one code and one table are listed
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.listed: list[Listed] = []
        self.counts: Counter[FindingCode] = Counter()
        self.by_table: Counter[tuple[FindingCode, TrackedTable]] = Counter()
        self.unchecked: list[str] = []
        self.versions = 0
        self.repaired = 0
        self.changeset_ids: list[UUID] = []

    def add(
        self,
        code: FindingCode,
        tracked: TrackedTable,
        message: str,
        remedy: str,
        *,
        key: tuple[Any, ...] | None = None,
        raw_key: RawKey | None = None,
    ) -> None:
        self.counts[code] += 1
        self.by_table[code, tracked] += 1
        if self.by_table[code, tracked] <= self.limit:
            one = key[0] if key is not None and len(key) == 1 else key
            finding = Finding(code, tracked.live.fullname, one, message, remedy)
            self.listed.append(Listed(finding, tracked, raw_key))

    def note(self, listed: Listed, repair: str, *, is_repaired: bool) -> None:
        """Say in a listed finding what a repair did, or why it did nothing."""
        listed.finding = replace(listed.finding, repair=repair, is_repaired=is_repaired)

    def _counts_by_table(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for (_, tracked), count in self.by_table.items():
            counts[tracked.live.fullname] += count
        return dict(counts)

    def report(self, tables: int) -> CheckReport:
        return CheckReport(
            findings=tuple(listed.finding for listed in self.listed),
            counts=dict(self.counts),
            counts_by_table=self._counts_by_table(),
            repaired=self.repaired,
            tables=tables,
            versions=self.versions,
            unchecked=tuple(self.unchecked),
            changeset_ids=tuple(self.changeset_ids),
        )
