"""What would be done, and is it what the visitor saw? A plan is shown first, and carried out only if it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from markupsafe import Markup
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from sqlaudit.changes import Conflict, Operation, RestoreReport
from sqlaudit.context import AuditContextManager
from sqlaudit.display import safe
from sqlaudit.exceptions import PrunedError, QueryError, SQLAuditError
from sqlaudit.web.markup import markup
from sqlaudit.web.problems import Problem
from sqlaudit.web.rendering import text_of
from sqlaudit.web.visit import Visit

MOST: Final = 200
"""The rows and conflicts of a plan that are shown."""


class Work(Protocol):
    """An undo or a restore."""

    def __call__(self, *, dry_run: bool) -> RestoreReport: ...


def planned(visit: Visit, work: Work, refusal: str) -> RestoreReport:
    """Return what would be done.

    A visitor who may see a part of the rows may do what concerns this part alone: then the plan is the same, whether
    it is made from all rows or from those that the visitor may see.

    :param refusal: the name of the problem that it cannot be done
    Who sees a part is told that it cannot be done, and never why: a reason may tell of rows that others may see.

    :raises Problem: it cannot be done, or concerns what the visitor may not see
    """
    if not visit.browser.can_write:
        raise Problem(403, "read_only")
    is_whole = visit.permissions.are_whole
    try:
        with visit.reading():
            plan = work(dry_run=True)
    except PrunedError:
        raise
    except QueryError as error:
        if visit.browser.authorize is None or is_whole:
            raise Problem(409, "told", message=str(error)) from error
        raise Problem(403, refusal) from error
    visit.session.expunge_all()
    if not is_whole and not _is_plan_of_all(work, plan):
        raise Problem(403, refusal)
    visit.session.expunge_all()
    return plan


def _is_plan_of_all(work: Work, plan: RestoreReport) -> bool:
    """Return whether a plan of the rows that a visitor may see is the plan of all rows."""
    try:
        return digest(work(dry_run=True)) == digest(plan)
    except (QueryError, Problem):  # of rows that only others may see: a table that was pruned, for instance
        return False


def carry_out(visit: Visit, work: Work, plan: RestoreReport) -> None:
    """Do what a plan says, and commit it.

    :param plan: what :func:`planned` has returned in this request
    :raises Problem: something has changed since the visitor saw the plan, or it could not be rolled back
    """
    [shown] = visit.form.get("plan", [""])[:1]
    [reason] = visit.form.get("reason", [""])[:1]
    if digest(plan) != shown:
        raise Problem(409, "changed_since")
    if _commits_each_statement(visit.session):
        raise Problem(409, "autocommit")
    try:
        with AuditContextManager(**({"reason": reason.strip()} if reason.strip() else {})):
            done = work(dry_run=False)
    except QueryError:
        raise
    except (SQLAuditError, StaleDataError) as error:  # stale: rows that somebody else has deleted since
        raise Problem(409, "changed_since") from error
    if digest(done) != shown:
        raise Problem(409, "changed_since")  # and the transaction is rolled back
    visit.session.commit()


def _commits_each_statement(session: Session) -> bool:
    """Return whether a connection of a session's transaction has the isolation level AUTOCOMMIT."""
    transaction: Any = session.get_transaction()
    connections = () if transaction is None else transaction._connections.values()
    return any(connection._is_autocommit_isolation() for connection, *_ in connections)


def digest(report: RestoreReport) -> str:
    """Return a short text that differs for plans that differ."""
    told = report.to_dict("json")
    parts = [sorted(json.dumps(item, sort_keys=True) for item in told[name]) for name in ("items", "conflicts")]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


# --- how it is shown --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row of a plan."""

    operation: Operation
    sentence: Markup
    changes: Sequence[tuple[str, Markup]]


def planned_rows(visit: Visit, plan: RestoreReport) -> list[PlannedRow]:
    """Return the first rows of a plan, in the order of their names."""
    items = sorted(plan, key=lambda item: (item.resource_type, str(item.key)))[:MOST]
    return [
        PlannedRow(
            item.operation,
            visit.texts(f"plan_{item.operation}", row=visit.row_link(item.resource_type, item.key)),
            [(safe(name), visit.show.change(item.operation, *pair)) for name, pair in sorted(item.fields.items())],
        )
        for item in items
    ]


def told_conflicts(visit: Visit, conflicts: Sequence[Conflict]) -> list[Markup]:
    """Return the first of the later changes that would be lost, as sentences."""
    return [_conflict(visit, conflict) for conflict in conflicts[:MOST]]


def _conflict(visit: Visit, conflict: Conflict) -> Markup:
    fields: Any = visit.texts("conflict_whole")
    if conflict.fields:
        fields = visit.show.listed([text_of(name) for name in conflict.fields])
    if conflict.changeset_id is not None:
        url = visit.url("changeset", changeset=str(conflict.changeset_id))
        fields = markup('<a href="{}">{}</a>', url, fields)
    return visit.texts(
        "conflict",
        row=visit.row_link(conflict.resource_type, conflict.key),
        fields=fields,
        who=visit.texts("nobody") if conflict.changed_by is None else visit.show.value(conflict.changed_by),
        when="" if conflict.timestamp is None else visit.show.time(conflict.timestamp),
    )
