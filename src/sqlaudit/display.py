"""How is a value written for a person? On one line, without control characters, and short."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime
from typing import Any, Final

from sqlaudit.erased import ERASED
from sqlaudit.wire import json_value

NOTHING: Final = "-"
"""Stands for a value that is not there: NULL, or an unknown user."""
_ELLIPSIS: Final = "…"
_CONTEXT: Final = 6
"""How many equal characters are shown before a difference."""
_NAMED_CONTROLS: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def safe(text: str) -> str:
    """Return a text whose control and formatting characters are written as escapes, such as ``\\x1b``.

    Otherwise a value could move the cursor, set the title of the window, or reverse the order of what follows.
    """
    return text if text.isprintable() else "".join(map(_safe_character, text))


def _safe_character(character: str) -> str:
    if character in _NAMED_CONTROLS:
        return _NAMED_CONTROLS[character]
    if unicodedata.category(character)[0] == "C" or character in "\u2028\u2029":
        number = ord(character)
        return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return character


def shown(value: Any) -> str:
    """Return a value as text: texts and numbers as they are, all else as JSON expresses it."""
    if value is None:
        return NOTHING
    if value is ERASED:
        return str(ERASED)
    if isinstance(value, datetime):
        return instant(value) if value.tzinfo is not None else value.isoformat(" ")
    if isinstance(value, tuple):  # a key
        return ", ".join(map(shown, value))
    form = json_value(value)
    return safe(form if isinstance(form, str) else json.dumps(form, ensure_ascii=False))


def instant(value: datetime, *, seconds: bool = True) -> str:
    """Return an instant in the time zone of the reader, with the offset if this zone is not UTC.

    :param seconds: to the second, and not only to the minute
    """
    local = value.astimezone()
    text = local.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
    return f"{text}Z" if local.utcoffset() == UTC.utcoffset(None) else f"{text}{local.strftime('%z')}"


def size(count: float | None) -> str:
    """Return a number of bytes in a readable unit."""
    if count is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def shortened(text: str, width: int) -> str:
    """Return a text of at most ``width`` characters, whose end is cut off."""
    return text if len(text) <= width else text[: max(0, width - 1)] + _ELLIPSIS


def shortened_pair(old: str, new: str, width: int) -> tuple[str, str]:
    """Return two texts of at most ``width`` characters together, shortened around the place where they differ."""
    if len(old) + len(new) <= width:
        return old, new
    of_old = max(width // 2, width - len(new)) if len(old) > width // 2 else len(old)
    of_new = width - of_old
    same = _equal_characters(old, new)
    longest = max(len(old) - of_old, len(new) - of_new) + 1
    start = max(0, min(same - _CONTEXT, longest))
    return _from(old, start, of_old), _from(new, start, of_new)


def _equal_characters(old: str, new: str) -> int:
    """Return how many characters two texts have in common at their begin. A text may be very long."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _from(text: str, start: int, width: int) -> str:
    return shortened(text if start == 0 else _ELLIPSIS + text[start:], width)
