"""How is a changeset, or all that a run did, taken back? A page shows the plan and what would be lost, and asks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from markupsafe import Markup
from sqlalchemy import ColumnElement, Select, func, literal_column, select
from starlette.responses import Response

from sqlaudit.arguments import changeset_uuid
from sqlaudit.changes import RestoreReport
from sqlaudit.exceptions import QueryError
from sqlaudit.restoring.undo import undo
from sqlaudit.retrieval.changesets import known_tables, read_all
from sqlaudit.sql.documents import text_under
from sqlaudit.tracking.tables import TrackedTable
from sqlaudit.web.markup import markup
from sqlaudit.web.plans import MOST, Work, carry_out, digest, planned, planned_rows, told_conflicts
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.views.changesets import unknown_changeset
from sqlaudit.web.views.runs import unknown_run
from sqlaudit.web.visit import Visit

_MOST: Final = 10_000
"""The versions that a page undoes: a plan of more would keep a server busy."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a page undoes.

    :ivar arguments: what chooses it for :func:`~sqlaudit.undo`
    :ivar condition: what its versions meet
    :ivar command: what undoes it at the command line
    :ivar url: a function that returns the URL of its own page, given a query
    :ivar unknown: the problem that the visitor may not see anything of it
    """

    arguments: Mapping[str, Any]
    condition: Callable[[TrackedTable], ColumnElement[bool]]
    command: str
    heading: Markup
    origin: Markup
    url: Callable[[Mapping[str, str]], str]
    unknown: Problem


def _changeset(visit: Visit) -> _Subject:
    """Return the changeset of the page.

    :raises Problem: the page does not name one
    """
    text = visit.request.path_params["changeset"]
    unknown = unknown_changeset(text)
    try:
        changeset_id = changeset_uuid(text)
    except QueryError:
        raise unknown from None
    return _Subject(
        {"changeset_id": changeset_id},
        lambda table: table.role("changeset_id") == changeset_id,
        command=f"sqlaudit undo {changeset_id}",
        heading=visit.texts("undo_title", id=markup('<span class="hint">{}</span>', text)),
        origin=visit.texts("changeset"),
        url=lambda query: visit.url("changeset", query, changeset=text),
        unknown=unknown,
    )


def _run(visit: Visit) -> _Subject:
    """Return the run of the page."""
    run_id = visit.parameter("id") or ""
    return _Subject(
        {"run_id": run_id},
        lambda table: text_under(table.role("extra"), "run_id") == run_id,
        command=f"sqlaudit undo --run {shlex.quote(run_id)}",
        heading=visit.texts("undo_run_title", run=visit.show.text(run_id)),
        origin=visit.texts("run_title"),
        url=lambda query: visit.url("run", {"id": run_id, **query}),
        unknown=unknown_run(run_id),
    )


def _ask(subject_of: Callable[[Visit], _Subject], visit: Visit) -> Response:
    """Show what an undo would do."""
    subject = subject_of(visit)
    return _page(visit, subject, planned(visit, _undo_of(visit, subject), "cannot_undo"))


def _do(subject_of: Callable[[Visit], _Subject], visit: Visit) -> Response:
    """Undo the subject, if that does what the visitor saw."""
    subject = subject_of(visit)
    work = _undo_of(visit, subject)
    plan = planned(visit, work, "cannot_undo")
    if plan.conflicts and "force" not in visit.form:
        return _page(visit, subject, plan)
    carry_out(visit, work, plan)
    return visit.redirect(subject.url({"done": "1"}))


def _undo_of(visit: Visit, subject: _Subject) -> Work:
    """Return the undo of a subject; its plan has the later changes that would be lost."""

    def work(*, dry_run: bool) -> RestoreReport:
        if dry_run:
            count = _versions(visit, subject)
            if count == 0:
                raise subject.unknown
            if count > _MOST:
                raise Problem(409, "large_undo", count=f"{_MOST:,}", command=subject.command)
        return undo(visit.session, **subject.arguments, force=True, dry_run=dry_run)

    return work


def _versions(visit: Visit, subject: _Subject) -> int:
    """Return the number of versions of a subject. Of each table, no more than a page undoes are counted, and one."""

    def count(table: TrackedTable) -> Any:
        versions: Select[Any] = select(literal_column("1")).select_from(table.history).where(subject.condition(table))
        return select(func.count()).select_from(versions.limit(_MOST + 1).subquery())

    return sum(row[0] for row in read_all(visit.session, known_tables(visit.session), count, {}))


def _page(visit: Visit, subject: _Subject, plan: RestoreReport) -> Response:
    return visit.render_form(
        "plan.html",
        heading=subject.heading,
        explanation=visit.texts("undo_plan"),
        rows=planned_rows(visit, plan),
        conflicts=told_conflicts(visit, plan.conflicts),
        digest=digest(plan),
        more=max(0, len(plan) - MOST),
        more_conflicts=max(0, len(plan.conflicts) - MOST),
        origin=subject.origin,
        action=visit.texts("undo"),
        back=subject.url({}),
        choices=None,
    )


def _views(page: str, subject_of: Callable[[Visit], _Subject]) -> list[View]:
    return [
        View(page=page, action="undo", work=partial(_ask, subject_of)),
        View(page=page, action="undo", work=partial(_do, subject_of), method="POST"),
    ]


CHANGESET: Final = _views("undo", _changeset)
RUN: Final = _views("undo_run", _run)
