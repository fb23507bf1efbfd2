"""How does a value look on a page? As HTML: escaped, isolated from the direction of its neighbours, and short."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sqlaudit.changes import Operation
from sqlaudit.display import safe, shortened, shortened_pair
from sqlaudit.erased import ERASED
from sqlaudit.web.instants import instant_text
from sqlaudit.web.markup import markup
from sqlaudit.web.texts import Texts
from sqlaudit.web.words import differing_words
from sqlaudit.wire import json_value

ENVIRONMENT: Final = Environment(
    loader=PackageLoader("sqlaudit.web"),
    autoescape=True,
    auto_reload=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_LONGEST: Final = 300
"""The characters of a value that are shown at first."""
_MOST_LINES: Final = 10
"""The lines of a value that are shown at first."""
_LONGEST_PAIR: Final = 160
_SHORT: Final = 80
"""The characters of two texts that are shown one after the other, and not word by word."""
_MOST_WORDS: Final = 1_000
"""The words of two texts that are compared; a page may have a hundred such pairs."""
_LONGEST_WHOLE: Final = 20_000
"""The characters of a value that are shown at all."""
_ARROW: Final = '<del>{}</del> <span class="arrow" aria-label="→">→</span> <ins>{}</ins>'
_MADE: Final = (Operation.INSERT, Operation.LINK)
_REMOVED: Final = (Operation.DELETE, Operation.UNLINK)


class Renderer:
    """Writes values as HTML, with the texts of one language."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def value(self, value: Any, *, limit: int = _LONGEST) -> Markup:
        """Return a value; a long one is shortened, and can be unfolded."""
        if value is None:
            return self._absent("none")
        if value is ERASED:
            return self._absent("erased")
        if isinstance(value, datetime):
            return self.time(value) if value.tzinfo is not None else _plain(value.isoformat(" "))
        if isinstance(value, (str, bytes)):
            value = value[: _LONGEST_WHOLE + 1]
        text = _lines_of(value) if isinstance(value, str) else text_of(value)
        if len(text) <= limit and text.count("\n") < _MOST_LINES:
            return _plain(text)
        return markup(
            '<details class="long"><summary>{} <span class="hint">{}</span></summary><pre>{}</pre></details>',
            _plain(shortened(" ".join(text.split()), limit)),
            self.texts("more"),
            shortened(_with_lines(value), _LONGEST_WHOLE),
        )

    def short(self, value: Any) -> Markup:
        """Return a value of which the beginning is enough, for a link or a sentence: nothing can be unfolded there."""
        return _plain(self.text(value))

    def text(self, value: Any) -> str:
        """Return a value as text on one line, where HTML cannot be."""
        return shortened(text_of(value), 60)

    def hidden(self) -> Markup:
        """Return what stands for a value that the visitor may not see."""
        return self._absent("hidden")

    def change(self, operation: Operation | None, old: Any, new: Any) -> Markup:
        """Return an old and a new value, shortened around the difference."""
        if operation in _MADE:
            return markup("<ins>{}</ins>", self.value(new))
        if operation in _REMOVED:
            return markup("<del>{}</del>", self.value(old))
        if isinstance(old, (dict, list)) and isinstance(new, (dict, list)):
            texts = text_of(old), text_of(new)
            old, new = (old, new) if texts[0] == texts[1] else texts  # equal if both were cut
        if not isinstance(old, str) or not isinstance(new, str):
            return markup(_ARROW, self.value(old), self.value(new))
        if len(old) + len(new) > _SHORT and (words := differing_words(old, new, most=_MOST_WORDS)) is not None:
            return markup('<span class="words">{}</span>', words)
        before, after = shortened_pair(old, new, _LONGEST_PAIR)
        return markup(_ARROW, _plain(safe(before)), _plain(safe(after)))

    def time(self, value: datetime) -> Markup:
        """Return an instant. The script shows it in the time zone of the reader."""
        exact = instant_text(value)
        shown = value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        return markup('<time datetime="{}" title="{}">{}</time>', exact, exact, self.texts("utc", instant=shown))

    def who(self, info: Any, url: str | None = None) -> Markup:
        """Return a badge for who made a change, for whom, and who really acted.

        :param url: what else this user did
        """
        kind = info.actor_type
        if info.changed_by is None:
            badge = markup('<span class="who unknown">{}</span>', self.texts("nobody"))
        else:
            badge = markup('<b class="who {}"><bdi>{}</bdi></b>', kind or "user", safe(info.changed_by))
            if url is not None:
                badge = markup('<a class="by" href="{}" title="{}">{}</a>', url, self.texts("who_else"), badge)
        if kind is not None and kind != "user":
            badge += markup(' <span class="kind {}">{}</span>', kind, self.texts(f"actor_{kind}"))
        if info.impersonated_by:
            badge = self.texts("who_really", who=badge, whom=_who(info.impersonated_by))
        if info.on_behalf_of:
            badge = self.texts("who_for", who=badge, whom=_who(info.on_behalf_of))
        return badge

    def listed(self, items: Sequence[Any], *, most: int = 8) -> Markup:
        """Return items with commas between them, and how many are left out."""
        shown = [escape(item) for item in items[:most]]
        if len(items) > most:
            shown.append(self.texts("and_more", count=len(items) - most))
        return Markup(", ").join(shown)

    def _absent(self, name: str) -> Markup:
        return markup('<span class="absent">{}</span>', self.texts(name))


def text_of(value: Any) -> str:
    """Return a value as text on one line, without control characters; a very long one is cut."""
    if type(value) is int:  # most keys
        return str(value)
    if isinstance(value, tuple):  # a key
        return ", ".join(map(text_of, value))
    if isinstance(value, (datetime, date)):
        return instant_text(value) if isinstance(value, datetime) and value.tzinfo else value.isoformat()
    form = json_value(value)
    text = form if isinstance(form, str) else json.dumps(form, ensure_ascii=False)
    return safe(shortened(text, _LONGEST_WHOLE))


def _with_lines(value: Any) -> str:
    """Return a value as text with its lines, and JSON as a tree."""
    form = json_value(value)
    return _lines_of(form if isinstance(form, str) else json.dumps(form, ensure_ascii=False, indent=2))


def _lines_of(text: str) -> str:
    """Return a text with its lines, without other control characters; a very long one is cut."""
    return "\n".join(map(safe, shortened(text, _LONGEST_WHOLE).split("\n")))


def _plain(text: str) -> Markup:
    return markup("<bdi>{}</bdi>", text)


def _who(name: str) -> Markup:
    return markup('<b class="who"><bdi>{}</bdi></b>', safe(name))
