"""What differs between two states of a row?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from markupsafe import Markup
from starlette.responses import Response

from sqlaudit.changes import RowDiff
from sqlaudit.display import safe
from sqlaudit.exceptions import PrunedError, QueryError
from sqlaudit.past.comparing import diff, state_of
from sqlaudit.retrieval.field_changes import latest_infos
from sqlaudit.web.instants import instant_of
from sqlaudit.web.markup import markup
from sqlaudit.web.problems import Problem
from sqlaudit.web.view import View
from sqlaudit.web.visit import Visit
from sqlaudit.web.words import differing_lines, differing_words

_VERSIONS: Final = 60
"""The latest versions that can be chosen; others by an instant."""
_LONGEST_JSON: Final = 50_000


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    change: Markup
    is_changed: bool


def _diff(visit: Visit) -> Response:
    """Show what differs between two versions or instants of the row; without any, what the latest change did."""
    with visit.reading():
        latest = latest_infos(visit.session, visit.source, visit.key, _VERSIONS)
        if not latest:
            raise visit.unknown_row()
        newest = latest[0].version
        b = visit.parameter("b") or visit.at_text() or str(newest)
        a = visit.parameter("a") or (str(max(int(b) - 1, 1)) if b.isdecimal() else str(newest))
        first, second = _state(visit, a), _state(visit, b)
        try:
            found = diff(visit.session, visit.source, visit.key, first, second)
            lines = list(_changed(visit, found))
            if visit.parameter("all"):
                lines = sorted([*lines, *_unchanged(visit, found, second)], key=lambda line: line.name)
        except PrunedError:
            raise
        except QueryError:
            raise Problem(404, "unknown_version", a=a, b=b) from None
    return visit.render(
        "diff.html",
        heading=visit.row_name(visit.title, visit.key),
        found=found,
        lines=lines,
        versions=latest,
        a=a,
        b=b,
        is_all=visit.parameter("all") is not None,
        swapped=visit.here(a=b, b=a),
        copied=_json_of(found),
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


def _json_of(found: RowDiff) -> str | None:
    """Return a difference as JSON; ``None`` if it is too long to be copied from a page."""
    text = json.dumps(found.to_dict("json"), ensure_ascii=False, indent=2)
    return "\n".join(map(safe, text.splitlines())) if len(text) <= _LONGEST_JSON else None


DIFF: Final = View(page="diff", action="view", work=_diff, needs_key=True)
