"""Do all versions of a changeset begin at one instant? They do, in all tables, unless an earlier version forbids it.

A version never begins before the version that it follows. If its transaction's instant is not later than that, it
begins a microsecond after it. So the instants of one changeset may differ, and such versions are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    CTE,
    Connection,
    Select,
    and_,
    func,
    not_,
    or_,
    select,
    union_all,
)

from sqlaudit.changes import Operation
from sqlaudit.maintenance.findings import Collector, FindingCode
from sqlaudit.maintenance.sequences import is_a, read_rows
from sqlaudit.period import is_tick_after
from sqlaudit.recording.clauses import ONE
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.tables import TrackedTable

_SORTED: Final = "SQL_BIG_RESULT"
"""Makes MariaDB and MySQL sort the versions. A temporary table of groups, their default, takes 10 times as long."""


class Instants:
    """The instants of the changesets in the histories of base tables and association tables."""

    def __init__(self, connection: Connection, tables: Sequence[TrackedTable]) -> None:
        self.connection = connection
        self.tables = tables

    def count(self) -> int:
        """Return how many changesets have versions that begin at different instants, for whatever reason."""
        suspects = self._suspects().subquery()
        return self.connection.scalar(select(func.count()).select_from(suspects)) or 0

    def _suspects(self) -> Select[Any]:
        if len(self.tables) == 1:
            version = HistoryAlias(self.tables[0])
            grouped = self._sorted(select(version.changeset_id).group_by(version.changeset_id))
            return grouped.having(func.min(version.valid_from) != func.max(version.valid_from))
        each = [self._extremes(HistoryAlias(table)) for table in self.tables]
        of_tables = union_all(*each).subquery()
        changeset_id, first, last = of_tables.c
        grouped = self._sorted(select(changeset_id).group_by(changeset_id))
        return grouped.having(func.min(first) != func.max(last))

    def _extremes(self, version: HistoryAlias) -> Select[Any]:
        first, last = func.min(version.valid_from), func.max(version.valid_from)
        statement = select(version.changeset_id.label("changeset_id"), first.label("first"), last.label("last"))
        return self._sorted(statement.group_by(version.changeset_id))

    @staticmethod
    def _sorted(statement: Select[Any]) -> Select[Any]:
        for dialect in MYSQL:
            statement = statement.prefix_with(_SORTED, dialect=dialect)
        return statement

    def list_faults(self, findings: Collector) -> None:
        """List the versions that begin at another instant than most of their changeset, without a reason."""
        suspects = self._suspects().cte("sqlaudit_suspects")
        usual = self._usual_instants(suspects)
        for table in self.tables:
            version, statement = self._free(HistoryAlias(table), suspects)
            statement = statement.join(usual, usual.c.changeset_id == version.changeset_id)
            statement = statement.where(version.valid_from != usual.c.begin).with_only_columns(
                version.version, version.valid_from, version.changeset_id, usual.c.begin
            )
            for key, raw_key, values in read_rows(self.connection, table, statement, version.key):
                findings.add(FindingCode.TWO_INSTANTS, table, _told(*values), _REMEDY, key=key, raw_key=raw_key)

    def _usual_instants(self, suspects: CTE) -> CTE:
        """Return the instant at which most versions of each changeset begin."""
        free = [statement for _, statement in (self._free(HistoryAlias(table), suspects) for table in self.tables)]
        versions = union_all(*free).subquery()
        changeset_id, begin = versions.c
        place = func.row_number().over(partition_by=changeset_id, order_by=(func.count().desc(), begin))
        counted = select(changeset_id.label("changeset_id"), begin.label("begin"), place.label("place"))
        ordered = counted.group_by(changeset_id, begin).subquery()
        return select(ordered.c.changeset_id, ordered.c.begin).where(ordered.c.place == ONE).cte("sqlaudit_usual")

    def _free(self, version: HistoryAlias, suspects: CTE) -> tuple[HistoryAlias, Select[Any]]:
        """Return the select of the versions of suspect changesets that no earlier version has moved."""
        before = HistoryAlias(version.table)
        is_before = and_(before.has_key(version.key), before.version == version.version - ONE)
        moved = or_(
            is_tick_after(version.valid_from, before.valid_from),
            and_(version.valid_from == before.valid_from, version.changeset_id == before.changeset_id),
            # The version after one that ended by hand begins when that ended, if that is later.
            and_(version.valid_from == before.valid_to, is_a(version, Operation.BASELINE)),
        )
        is_free = or_(and_(before.version.is_(None), version.version == ONE), not_(moved))
        statement = (
            select(version.changeset_id.label("changeset_id"), version.valid_from.label("begin"))
            .select_from(version.clause.outerjoin(before.clause, is_before))
            .where(version.changeset_id.in_(select(suspects.c[0])), is_free)
        )
        return version, statement


def _told(number: int, begin: datetime, changeset_id: UUID, usual: datetime) -> str:
    return (
        f"Version {number} begins at {begin.isoformat()}, but other versions of its changeset {changeset_id} begin "
        f"at {usual.isoformat()}."
    )


_REMEDY: Final = (
    "Find out who wrote to the history table. If you know the instant of the transaction, correct the versions by hand."
)
