"""How does a row become what it was? A page shows what would change, whole or in some fields, and asks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from markupsafe import Markup
from starlette.responses import Response

from sqlaudit.changes import RestoreReport
from sqlaudit.display import safe
from sqlaudit.erased import ERASED
from sqlaudit.exceptions import PrunedError, QueryError
from sqlaudit.past.comparing import state_of
from sqlaudit.restoring.restore import restore
from sqlaudit.retrieval.field_changes import versions_of
from sqlaudit.web.instants import instant_text
from sqlaudit.web.plans import MOST, Work, carry_out, digest, planned, planned_rows
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit


def _ask(visit: Visit) -> Response:
    """Show what a restore would do."""
    plan = planned(visit, _restore_of(visit), "cannot_restore")
    chosen = visit.parameters("field")
    every = plan if not chosen else planned(visit, _restore_of(visit, []), "cannot_restore")
    names = sorted({name for item in every for name in item.fields if item.operation == "update"} | set(chosen))
    assert visit.at is not None
    return visit.render_form(
        "plan.html",
        heading=visit.texts("restore_title", row=_name(visit)),
        explanation=visit.texts("restore_plan", when=visit.show.time(visit.at)),
        rows=planned_rows(visit, plan),
        conflicts=[],
        digest=digest(plan),
        more=max(0, len(plan) - MOST),
        more_conflicts=0,
        origin=_name(visit),
        action=visit.texts("restore"),
        back=visit.row_url("row", visit.source, visit.key),
        choices=[(safe(name), name in chosen) for name in names],
    )


def _do(visit: Visit) -> Response:
    """Restore the row, if that does what the visitor saw."""
    work = _restore_of(visit)
    carry_out(visit, work, planned(visit, work, "cannot_restore"))
    return visit.redirect(visit.row_url("row", visit.source, visit.key, at=None))


def _restore_of(visit: Visit, chosen: Sequence[str] | None = None) -> Work:
    """Return the restore of the row of the page to its instant.

    :param chosen: the fields; those of the form if omitted. Without any, all that are neither hidden nor erased
    :raises Problem: the page has no instant, or is about a link
    """
    at = visit.at
    if at is None:
        raise Problem(400, "restore_when")
    if visit.has_links:
        raise Problem(400, "cannot_restore")
    chosen = visit.parameters("field") if chosen is None else chosen
    masked = visit.permissions.masked_in(visit.source)
    if not masked.isdisjoint(chosen):
        raise Problem(403, "cannot_restore")

    def work(*, dry_run: bool) -> RestoreReport:
        def restored(fields: Sequence[str]) -> RestoreReport:
            return restore(visit.session, visit.source, visit.key, at=at, fields=fields or None, dry_run=dry_run)

        if masked and not chosen:
            _refuse_unknown(visit)
            return restored(_fields_but_lost(visit, at))
        try:
            return restored(chosen)
        except PrunedError:
            raise
        except QueryError:  # mostly because a value was erased
            _refuse_unknown(visit)
            fields = [] if chosen else _fields_but_lost(visit, at)
            if not fields:
                raise
            return restored(fields)

    return work


def _refuse_unknown(visit: Visit) -> None:
    """Raise if the row of the page has no history that the visitor may see.

    :raises Problem: it has none
    """
    if not versions_of(visit.session, visit.source, visit.key, limit=1):
        raise visit.unknown_row()


def _fields_but_lost(visit: Visit, at: datetime) -> list[str]:
    """Return the fields without those that are hidden or erased; none if there are no such fields."""
    try:
        version = state_of(visit.session, visit.model, visit.source, visit.key, at)
    except PrunedError:
        raise
    except QueryError:
        return []  # restore() says why
    if version is None:
        return []
    model = version.__sqlaudit_model__
    lost = {name for name in model.columns if getattr(version, name) is ERASED}
    lost |= visit.permissions.masked_in(visit.source)
    return [name for name in model.columns if name not in {*lost, *model.key_names}] if lost else []


def _name(visit: Visit) -> Markup:
    return visit.row_name(visit.title, visit.key)


ASK: Final = View(page="restore", action="restore", work=_ask, needs_key=True)
DO: Final = View(page="restore", action="restore", work=_do, needs_key=True, method="POST")


def restore_url(visit: Visit, at: datetime | None) -> str | None:
    """Return the URL of the page that restores the row of a page to an instant; ``None`` if it cannot be."""
    if not visit.browser.can_write or at is None or visit.has_links:
        return None
    return visit.row_url("restore", visit.source, visit.key, at=instant_text(at))
