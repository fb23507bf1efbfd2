"""What did a run of an agent or a job do, transaction by transaction?"""

from __future__ import annotations

import shlex
from typing import Any, Final

from starlette.responses import Response

from sqlaudit.retrieval.changeset_reader import changesets_page
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.views.changesets import PAGE, told
from sqlaudit.web.visit import Visit


def _one(visit: Visit) -> Response:
    """Show the transactions of a run, the latest first.

    :raises Problem: there are none that the visitor may see
    """
    run_id = visit.parameter("id") or ""
    until: Any = {} if visit.at is None else {"until": visit.at}
    with visit.reading():
        page = changesets_page(
            visit.session, run_id=run_id, newest_first=True, after=visit.parameter("after"), size=PAGE, **until
        )
    if not page.items and not visit.parameter("after"):
        raise unknown_run(run_id)
    return visit.render(
        "run.html",
        run=visit.show.text(run_id),
        entries=told(visit, page),
        older=None if page.next is None else visit.here(after=page.next),
        newest=visit.here(after=None) if visit.parameter("after") else None,
        changes_url=visit.url("search", {"q": f"run:{shlex.quote(run_id)}", "at": visit.at_text()}),
        undo_url=visit.url("undo_run", {"id": run_id}) if visit.browser.can_write else None,
        is_done=visit.parameter("done") is not None,
    )


def unknown_run(run_id: str) -> Problem:
    """Return the problem that no history has a change of a run that the visitor may see."""
    return Problem(404, "unknown_run", id=run_id)


RUN: Final = View(page="run", action="view", work=_one)
