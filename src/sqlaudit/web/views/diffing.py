"""What differs between two states of a row?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup
from starlette.responses import Response

from sqlaudit.changes import RowDiff, VersionInfo
from sqlaudit.display import safe
from sqlaudit.exceptions import PrunedError, QueryError
from sqlaudit.maintenance.patches import row_patch
from sqlaudit.past.comparing import diff, state_of
from sqlaudit.retrieval.field_changes import latest_infos
from sqlaudit.web.copying import copyable, file_of, script_of
from sqlaudit.web.instants import instant_of
from sqlaudit.web.markup import markup
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit
from sqlaudit.web.words import differing_lines, differing_words

_VERSIONS: Final = 60
"""The latest versions that can be chosen; others by an instant."""


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    change: Markup
    is_changed: bool


@dataclass(frozen=True, slots=True)
class _Diff:
    """Two states of the row, as the address names them or by default, and what differs between them."""

    a: str
    b: str
    first: int | datetime
    second: int | datetime
    found: RowDiff


def _diff(visit: Visit) -> Response:
    """Show what differs between two versions or instants of the row; without any, what the latest change did."""
    with visit.reading():
        latest = _latest(visit, _VERSIONS)
        asked = _asked(visit, latest)
        lines = list(_changed(visit, asked.found))
        if visit.parameter("all"):
            lines = sorted([*lines, *_unchanged(visit, asked.found, asked.second)], key=lambda line: line.name)
    text = _json_of(asked.found)
    states = {"a": asked.a, "b": asked.b, "zone": visit.parameter("zone")}
    return visit.render(
        "diff.html",
        heading=visit.row_name(visit.title, visit.key),
        found=asked.found,
        lines=lines,
        versions=latest,
        a=asked.a,
        b=asked.b,
        is_all=visit.parameter("all") is not None,
        swapped=visit.here(a=asked.b, b=asked.a),
        copied=copyable(text),
        length=len(text),
        json_url=visit.row_url("diff_json", visit.source, visit.key, **states),
        sql_url=visit.row_url("diff_sql", visit.source, visit.key, **states),
    )


def _latest(visit: Visit, limit: int) -> list[VersionInfo]:
    latest = latest_infos(visit.session, visit.source, visit.key, limit)
    if not latest:
        raise visit.unknown_row()
    return latest


def _asked(visit: Visit, latest: Sequence[VersionInfo]) -> _Diff:
    newest = latest[0].version
    b = visit.parameter("b") or visit.at_text() or str(newest)
    a = visit.parameter("a") or (str(max(int(b) - 1, 1)) if b.isdecimal() else str(newest))
    first, second = _state(visit, a), _state(visit, b)
    try:
        return _Diff(a, b, first, second, diff(visit.session, visit.source, visit.key, first, second))
    except PrunedError:
        raise
    except QueryError:
        raise Problem(404, "unknown_version", a=a, b=b) from None


def _json(visit: Visit) -> Response:
    """Give what differs between two states of the row as a file of JSON."""
    with visit.reading():
        return file_of(_json_of(_asked(visit, _latest(visit, 1)).found), "diff.json", "application/json")


def _sql(visit: Visit) -> Response:
    """Show the statements that lead from one state of the row to another. A part of its values would not do that."""
    if not visit.sees_all(visit.source):
        raise Problem(403, "forbidden")
    with visit.reading():
        asked = _asked(visit, _latest(visit, 1))
        statements = row_patch(visit.session, visit.source, visit.key, asked.first, asked.second)
    return script_of(
        visit,
        statements,
        "diff.sql",
        heading=visit.row_name(visit.title, visit.key),
        told=visit.texts("diff_sql"),
        back=visit.row_url("diff", visit.source, visit.key, a=asked.a, b=asked.b, zone=visit.parameter("zone")),
        back_name=visit.texts("diff"),
    )


def _state(visit: Visit, text: str) -> int | datetime:
    """Return the state that a text names: the number of a version, or an instant."""
    if text.isdecimal() and len(text) < 10:
        return int(text)
    return instant_of(visit.session, text, visit.parameter("zone") or "")


def _changed(visit: Visit, found: RowDiff) -> Iterator[_Line]:
    for name, (old, new) in sorted(found.fields.items()):
        yield _Line(safe(name), _difference(visit, found, old, new), True)


def _difference(visit: Visit, found: RowDiff, old: Any, new: Any) -> Markup:
    """Return how two values differ: word by word for texts, as a tree for JSON, else one after the other."""
    html = None
    if isinstance(old, str) and isinstance(new, str) and max(len(old), len(new)) > 20:
        html = differing_words(old, new)
    elif isinstance(old, (dict, list)) and isinstance(new, (dict, list)):
        html = differing_lines(old, new)
    if html is None:
        return visit.show.change(found.operation, old, new)
    return markup('<pre class="difference">{}</pre>', html)


def _unchanged(visit: Visit, found: RowDiff, state: Any) -> Iterator[_Line]:
    """Yield the fields of a state that do not differ."""
    version = state_of(visit.session, visit.model, visit.source, visit.key, state)
    for name in () if version is None else version.__sqlaudit_model__.columns:
        if name not in found.fields:
            is_hidden = visit.is_hidden(visit.source, name)
            shown = visit.show.hidden() if is_hidden else visit.show.value(getattr(version, name))
            yield _Line(safe(name), shown, False)


def _json_of(found: RowDiff) -> str:
    return json.dumps(found.to_dict("json"), ensure_ascii=False, indent=2)


DIFF: Final = View(page="diff", action="view", work=_diff, needs_key=True)
DIFF_JSON: Final = View(page="diff_json", action="export", work=_json, needs_key=True)
DIFF_SQL: Final = View(page="diff_sql", action="export", work=_sql, needs_key=True)
