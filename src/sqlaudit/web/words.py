"""What differs between two texts? Word by word; and between two documents of JSON, line by line of their trees."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Final

from markupsafe import Markup

from sqlaudit.display import safe
from sqlaudit.web.markup import markup
from sqlaudit.wire import json_value

_WORD: Final = re.compile(r"\w+|\s+|[^\w\s]")
_MOST_WORDS: Final = 3_000
"""Texts with more words are shown one after the other, because comparing takes the square of their number."""
_MOST_CHARACTERS: Final = 50_000
_LEAST: Final = 0.5
"""The part of the words that two texts have in common, below which nobody could read them as one."""
_CONTEXT: Final = 40
"""The equal characters that are shown beside a difference."""
_CONTEXT_LINES: Final = 3
_CUT: Final = Markup('<span class="cut">…</span>\n')


def differing_words(old: str, new: str, *, most: int = _MOST_WORDS) -> Markup | None:
    """Return two texts as one, with what was removed and added; ``None`` if they are too long, or too different.

    Equal parts are shortened to what is beside a difference.

    :param most: the words of texts that are compared
    """
    if len(old) + len(new) > _MOST_CHARACTERS:
        return None
    before, after = _WORD.findall(old), _WORD.findall(new)
    if len(before) + len(after) > most:
        return None
    html, matcher = Markup(), SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() < _LEAST:
        return None
    blocks = matcher.get_opcodes()
    for number, (kind, i1, i2, j1, j2) in enumerate(blocks):
        if kind == "equal":
            html += _equal("".join(before[i1:i2]), is_first=number == 0, is_last=number == len(blocks) - 1)
            continue
        if i2 > i1:
            html += markup("<del>{}</del>", _lines(before[i1:i2]))
        if j2 > j1:
            html += markup("<ins>{}</ins>", _lines(after[j1:j2]))
    return html


def _equal(text: str, *, is_first: bool, is_last: bool) -> Markup:
    if len(text) <= 2 * _CONTEXT:
        return markup("{}", _lines([text]))
    head, tail = "" if is_first else text[:_CONTEXT], "" if is_last else text[-_CONTEXT:]
    return markup('{}<span class="cut">…</span>{}', _lines([head]), _lines([tail]))


def _lines(words: Sequence[str]) -> str:
    return "\n".join(map(safe, "".join(words).split("\n")))


def differing_lines(old: Any, new: Any) -> Markup | None:
    """Return the trees of two documents of JSON as one, with the lines that were removed and added.

    It is ``None`` if one of them is no document, or they are too long.
    """
    trees = [json_value(value) for value in (old, new)]
    if not all(isinstance(tree, (dict, list)) for tree in trees):
        return None
    texts = [json.dumps(tree, ensure_ascii=False, indent=2, sort_keys=True) for tree in trees]
    if sum(map(len, texts)) > _MOST_CHARACTERS:
        return None
    before, after = ([*map(safe, text.splitlines())] for text in texts)
    if len(before) + len(after) > _MOST_WORDS:
        return None
    html = Markup()
    groups = list(SequenceMatcher(None, before, after, autojunk=False).get_grouped_opcodes(_CONTEXT_LINES))
    for number, group in enumerate(groups):
        if number or group[0][1] or group[0][3]:
            html += _CUT
        for kind, i1, i2, j1, j2 in group:
            if kind == "equal":
                html += markup("{}\n", "\n".join(before[i1:i2]))
            else:
                html += Markup().join(_marked("del", before[i1:i2])) + Markup().join(_marked("ins", after[j1:j2]))
    if groups and (groups[-1][-1][2], groups[-1][-1][4]) != (len(before), len(after)):
        html += _CUT
    return html


def _marked(tag: str, lines: Sequence[str]) -> Iterator[Markup]:
    for line in lines:
        yield markup("<{0}>{1}</{0}>\n", Markup(tag), line)
