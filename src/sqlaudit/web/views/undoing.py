"""How is a changeset taken back? A page shows the plan and what would be lost, and asks."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from sqlaudit.changes import RestoreReport
from sqlaudit.restoring.undo import undo
from sqlaudit.retrieval.field_changes import changes_in
from sqlaudit.web.plans import MOST, Work, carry_out, digest, planned, planned_rows, told_conflicts
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.views.changesets import entries_of
from sqlaudit.web.visit import Visit

_MOST: Final = 20_000
"""The field changes of a changeset that a page undoes: a plan of more would keep a server busy."""


def _ask(visit: Visit) -> Response:
    """Show what an undo would do."""
    return _page(visit, planned(visit, _undo_of(visit), "cannot_undo"))


def _do(visit: Visit) -> Response:
    """Undo the changeset, if that does what the visitor saw."""
    changeset_id = visit.request.path_params["changeset"]
    work = _undo_of(visit)
    plan = planned(visit, work, "cannot_undo")
    if plan.conflicts and "force" not in visit.form:
        return _page(visit, plan)
    carry_out(visit, work, plan)
    return visit.redirect(visit.url("changeset", {"done": "1"}, changeset=changeset_id))


def _undo_of(visit: Visit) -> Work:
    """Return the undo of the changeset of the page; its plan has the later changes that would be lost.

    :raises Problem: there is no such changeset, or it is too large for a page
    """
    changeset_id = visit.request.path_params["changeset"]
    with visit.reading():
        entries_of(visit, changeset_id)
        if len(changes_in(visit.session, changeset_id, limit=_MOST + 1)) > _MOST:
            raise Problem(409, "large_undo", count=f"{_MOST:,}", id=changeset_id)

    def work(*, dry_run: bool) -> RestoreReport:
        return undo(visit.session, changeset_id, force=True, dry_run=dry_run)

    return work


def _page(visit: Visit, plan: RestoreReport) -> Response:
    changeset_id = visit.request.path_params["changeset"]
    return visit.render_form(
        "plan.html",
        heading=visit.texts("undo_title", id=changeset_id),
        explanation=visit.texts("undo_plan"),
        rows=planned_rows(visit, plan),
        conflicts=told_conflicts(visit, plan.conflicts),
        digest=digest(plan),
        more=max(0, len(plan) - MOST),
        more_conflicts=max(0, len(plan.conflicts) - MOST),
        origin=visit.texts("changeset"),
        action=visit.texts("undo"),
        back=visit.url("changeset", changeset=changeset_id),
        choices=None,
    )


ASK: Final = View(page="undo", action="undo", work=_ask)
DO: Final = View(page="undo", action="undo", work=_do, method="POST")
