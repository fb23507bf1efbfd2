"""Which rows are unknown as of an instant, because their history begins later?

A row existed before its first version if this version is a baseline, or if earlier versions have been removed. History
does not know what the row was then. A read as of an instant leaves the row out, warns, or raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Dialect, Select, and_, exists, or_, select
from sqlalchemy.orm import Session

from sqlaudit.changes import Operation
from sqlaudit.exceptions import QueryError, warn_caller
from sqlaudit.past.rendering import Past, PastCompiler
from sqlaudit.sql.comparing import all_equal
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.horizons import is_pruned_in
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.tables import TrackedTable


def check_for_unknown_rows(session: Session, statement: Past, parameters: Any, dialect: Dialect) -> None:
    """Warn or raise if a statement may read rows that existed at its instant, but are unknown.

    One statement for each table that it reads.

    :raises QueryError: a row is unknown, and the statement's rule is ``"raise"``
    """
    compiled: Any = statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # the statement's own
    if not isinstance(compiled, PastCompiler):
        return
    names: dict[Any, str] = compiled.bind_names
    values = compiled.construct_params(parameters if isinstance(parameters, dict) else None)
    seen: set[Any] = set()
    for past, tracked, key in compiled.past_reads:
        rule, when = past._past_rules.before_baseline, cast(datetime, past._past_when.value)
        parts = [names.get(part, part.key) for part in key or ()]
        key_values = tuple(values[part] for part in parts) if parts and values.keys() >= set(parts) else None
        if rule == "absent" or (tracked, key_values, when) in seen:
            continue
        seen.add((tracked, key_values, when))
        unknown = _first_unknown_row(session, tracked, key_values, when)
        if unknown is not None:
            *row, number, operation, begins = unknown
            name = f"{tracked.live.fullname!r} {row[0] if len(row) == 1 else tuple(row)!r}"
            message = (
                f"What {name} was as of {when.isoformat()} is unknown, because its history begins with version "
                f"{number}, of {begins.isoformat()}, "
                f"{'a baseline' if operation is Operation.BASELINE else 'and lacks earlier ones'}. Read as of a later "
                "instant, pass before_baseline='absent' to leave such rows out, or adopt tables with backfill(…, "
                "at=…)."
            )
            if rule == "raise":
                raise QueryError(message, tracked.live)
            warn_caller(message)


def _first_unknown_row(session: Session, tracked: TrackedTable, key: Sequence[Any] | None, when: datetime) -> Any:
    """Return key, number, operation and ``valid_from`` of a version before which its row is unknown, or ``None``."""
    source = getattr(session, "source", session)  # time_travel() reads history through the session that it was given
    base = tracked.chains[0][0] if tracked.chains else tracked
    statement = _is_unknown_before(base, when, is_known=is_pruned_in(source, base))
    if base is not tracked:
        statement = statement.where(exists().where(all_equal(tracked.history_key, base.history_key)))
    if key is not None:
        statement = statement.where(all_equal(base.history_key, key))
    with explaining_history_errors([base]):
        return source.execute(statement, bind_arguments=bind_arguments_for(source, base.mapper)).first()


def _is_unknown_before(table: TrackedTable, when: datetime, *, is_known: bool) -> Select[Any]:
    """Select the versions before which rows are unknown.

    :param is_known: whether rows did not exist before an insert whose predecessor is missing: it was pruned, and had
        ended before the horizon
    """
    version, before, earlier = HistoryAlias(table, table.history), HistoryAlias(table), HistoryAlias(table)
    number, valid_from, operation = version.version, version.valid_from, version.operation
    follows: ColumnElement[bool] = exists().where(before.is_version_of(version, -1))
    if is_known:
        follows = or_(operation == Operation.INSERT, follows)
    is_first = ~exists().where(earlier.has_key(version.key), earlier.version < number, earlier.valid_from > when)
    lasts = exists().where(before.is_version_of(version, -1), before.valid_to > when)  # a row that was recorded again
    is_unknown = or_(and_(operation == Operation.BASELINE, ~lasts), and_(number > 1, ~follows))
    return (
        select(*table.history_key, number, operation, valid_from)
        .where(valid_from > when, is_unknown, is_first)
        .order_by(*table.history_key)
        .limit(1)
    )
