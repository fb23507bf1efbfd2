"""How is a change told in a sentence? "U changed price 10 → 12 and status of Order 7", with links and chips."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup, escape

from sqlaudit.changes import FieldChange, Operation
from sqlaudit.display import safe
from sqlaudit.period import TICK
from sqlaudit.retrieval.grouping import by_row, by_transaction
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.models import tracked_model
from sqlaudit.web.instants import instant_text
from sqlaudit.web.markup import markup
from sqlaudit.web.rendering import text_of
from sqlaudit.web.visit import Visit

_LINKS: Final = (Operation.LINK, Operation.UNLINK)
_INLINE: Final = 60
"""The characters of values that stand in the sentence itself."""


@dataclass(frozen=True, slots=True)
class RowStory:
    """What a transaction did to one row.

    :ivar sentence: what happened, with the values if they are few and short
    :ivar changes: the changes that the sentence does not tell
    """

    sentence: Markup
    operation: Operation
    changes: Sequence[FieldChange]


@dataclass(frozen=True, slots=True)
class Story:
    """What a transaction did under one audit context.

    :ivar info: any of its changes, for who, when and why
    :ivar url: the URL of the page of the transaction
    :ivar before: the instant right before it, and ``after`` right after it, for a URL
    :ivar diff: the URL of the page that shows how the row of the page differs since then; ``None`` if it does not
    """

    info: FieldChange
    url: str
    rows: Sequence[RowStory]
    before: str
    after: str
    diff: str | None


def stories(visit: Visit, changes: Iterable[FieldChange], subject: tuple[str, Any] | None = None) -> list[Story]:
    """Return what changes tell, by transaction and row.

    :param subject: the label and the key of the row that the page is about
    """
    return [_story(visit, group, subject) for group in by_transaction(changes)]


def _story(visit: Visit, group: Sequence[FieldChange], subject: tuple[str, Any] | None) -> Story:
    info = group[0]
    return Story(
        info,
        visit.url("changeset", changeset=str(info.changeset_id)),
        row_stories(visit, group, subject),
        before=instant_text(info.timestamp - TICK),
        after=instant_text(info.timestamp),
        diff=_diff(visit, group, subject),
    )


def _diff(visit: Visit, group: Sequence[FieldChange], subject: tuple[str, Any] | None) -> str | None:
    """Return the URL of what a transaction changed in the row of the page, word by word."""
    if visit.key is None or subject != (visit.model.label, visit.key):
        return None
    of_row = [change for change in group if (change.resource_type, change.resource_id) == subject]
    numbers = [change.version for change in of_row if change.operation is Operation.UPDATE]
    if not numbers:
        return None
    return visit.row_url("diff", visit.source, visit.key, a=min(numbers) - 1, b=max(numbers), at=None)


def row_stories(visit: Visit, changes: Iterable[FieldChange], subject: tuple[str, Any] | None = None) -> list[RowStory]:
    """Return what changes tell, by row."""
    return [_row_story(visit, of_row, subject) for of_row in by_row(changes)]


def _row_story(visit: Visit, changes: Sequence[FieldChange], subject: tuple[str, Any] | None) -> RowStory:
    first, texts = changes[0], visit.texts
    is_subject = subject == (first.resource_type, first.resource_id)
    row = texts("this_row") if is_subject else visit.row_link(first.resource_type, first.resource_id)
    who, operation = visit.show.who(first, _by(visit, first.changed_by, subject)), first.operation
    if operation in _LINKS:
        keys = [change.new_value if operation is Operation.LINK else change.old_value for change in changes]
        names = visit.show.listed([_other(visit, first, key) for key in keys])
        sentence = texts(f"sentence_{operation}", who=who, key=names, fields=_chip(visit, first.field_name))
        return RowStory(sentence, operation, [])
    if operation is not Operation.UPDATE:
        return RowStory(texts(f"sentence_{operation}", who=who, row=row), operation, changes)
    is_short = len(changes) <= 2 and sum(map(_length, changes)) <= _INLINE
    fields = visit.show.listed(
        [_field(visit, change, is_filter=is_subject, with_values=is_short) for change in changes], most=6
    )
    name = "sentence_update" if is_subject else "sentence_update_row"
    return RowStory(texts(name, who=who, fields=fields, row=row), operation, [] if is_short else changes)


def _by(visit: Visit, user: str | None, subject: tuple[str, Any] | None) -> str | None:
    """Return the URL of what else a user did: to the row of the page, or anywhere."""
    if user is None:
        return None
    if subject is not None:
        return visit.here(user=list(dict.fromkeys([*visit.parameters("user"), user])), after=None)
    return visit.url("search", {"q": f"who:{shlex.quote(user)}", "at": visit.at_text()})


def _other(visit: Visit, change: FieldChange, key: Any) -> Markup:
    """Return a link to the row to which a link leads; its key if the row is not known."""
    parts = key[0] if isinstance(key, tuple) and len(key) == 1 else key
    source = visit.browser.sources.labelled(change.resource_type)
    prop = None if source is None else model_of(source).mapper.relationships.get(change.field_name)
    other = None if prop is None else tracked_model(prop.mapper)
    return escape(text_of(key)) if other is None else visit.row_link(other.label, parts)


def _length(change: FieldChange) -> int:
    return len(text_of(change.old_value)) + len(text_of(change.new_value))


def _field(visit: Visit, change: FieldChange, *, is_filter: bool, with_values: bool) -> Markup:
    name = _chip(visit, change.field_name, is_filter=is_filter)
    if not with_values:
        return name
    return markup("{} {}", name, visit.show.change(change.operation, change.old_value, change.new_value))


def _chip(visit: Visit, field_name: str, *, is_filter: bool = False) -> Markup:
    """Return the name of a field; as a filter, it is a link to the changes of this field alone."""
    name = markup("<bdi>{}</bdi>", safe(field_name))
    if not is_filter:
        return markup('<span class="chip">{}</span>', name)
    fields = list(dict.fromkeys([*visit.parameters("field"), field_name]))
    return markup('<a class="chip" href="{}">{}</a>', visit.here(field=fields, after=None), name)
