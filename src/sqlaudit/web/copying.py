"""How does a visitor take along what a page shows? A short text is copied from the page, and all of it is in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.responses import Response

from sqlaudit.display import safe
from sqlaudit.web.visit import Visit

_LONGEST: Final = 50_000
"""The characters of a text that a page shows to be copied."""
_MOST: Final = 500
"""The statements that a page shows."""


def copyable(text: str) -> str | None:
    """Return a text as a page shows it, without control characters; ``None`` if it is too long for a page."""
    return "\n".join(map(safe, text.splitlines())) if len(text) <= _LONGEST else None


def file_of(text: str, name: str, media_type: str) -> Response:
    """Return a text as a file that the browser saves, to the character.

    A surrogate alone, which UTF-8 cannot express, is written as JSON writes it.
    """
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.encode(errors="backslashreplace"), media_type=media_type, headers=headers)


def script_of(visit: Visit, statements: Sequence[str], name: str, **values: Any) -> Response:
    """Return the page that shows statements, or the file that has all of them.

    :param name: the name of the file
    :param values: what the page says of them
    """
    if visit.parameter("file"):
        return file_of("".join(f"{statement};\n" for statement in statements), name, "application/sql")
    shown: list[str] = []
    length = 0
    for statement in statements[:_MOST]:
        length += len(statement)
        if length > _LONGEST:
            break
        shown.append(f"{copyable(statement)};")
    more = len(statements) - len(shown)
    return visit.render("sql.html", text="\n".join(shown), more=more, file=visit.here(file=1), **values)
