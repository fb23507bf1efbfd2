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
from sqlaudit.tracking.links import LinkModel, model_of
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
    :ivar recovery: the URL of the page that restores the row, if it was deleted
    """

    sentence: Markup
    operation: Operation
    changes: Sequence[FieldChange]
    recovery: str | None = None


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


class Teller:
    """Tells on one page what changes did. A page repeats its users and fields, so that each is written once.

    :param subject: the label and the key of the row that the page is about, if it is about one
    """

    def __init__(self, visit: Visit, subject: tuple[str, Any] | None = None) -> None:
        self.visit = visit
        self.subject = subject
        self._badges: dict[Any, Markup] = {}
        self._chips: dict[tuple[str, bool], Markup] = {}

    def stories(self, changes: Iterable[FieldChange]) -> list[Story]:
        """Return what changes tell, by transaction and row."""
        return [self._story(group) for group in by_transaction(changes)]

    def row_stories(self, changes: Iterable[FieldChange]) -> list[RowStory]:
        """Return what changes tell, by row."""
        return [self._row_story(of_row) for of_row in by_row(changes)]

    def _story(self, group: Sequence[FieldChange]) -> Story:
        info = group[0]
        return Story(
            info,
            self.visit.url("changeset", changeset=str(info.changeset_id)),
            self.row_stories(group),
            before=instant_text(info.timestamp - TICK),
            after=instant_text(info.timestamp),
            diff=self._diff(group),
        )

    def _diff(self, group: Sequence[FieldChange]) -> str | None:
        """Return the URL of what a transaction changed in the row of the page, word by word."""
        visit = self.visit
        if visit.key is None or self.subject != (visit.model.label, visit.key):
            return None
        of_row = [change for change in group if (change.resource_type, change.resource_id) == self.subject]
        numbers = [change.version for change in of_row if change.operation is Operation.UPDATE]
        if not numbers:
            return None
        return visit.row_url("diff", visit.source, visit.key, a=min(numbers) - 1, b=max(numbers), at=None)

    def _row_story(self, changes: Sequence[FieldChange]) -> RowStory:
        first, texts, show = changes[0], self.visit.texts, self.visit.show
        is_subject = self.subject == (first.resource_type, first.resource_id)
        row = texts("this_row") if is_subject else self.visit.row_link(first.resource_type, first.resource_id)
        who, operation = self._badge(first), first.operation
        if operation in _LINKS:
            keys = [change.new_value if operation is Operation.LINK else change.old_value for change in changes]
            names = show.listed([self._other(first, key) for key in keys])
            field = self._chip(first.field_name, is_filter=False)
            return RowStory(texts(f"sentence_{operation}", who=who, key=names, fields=field), operation, [])
        if operation is not Operation.UPDATE:
            sentence = texts(f"sentence_{operation}", who=who, row=row)
            return RowStory(sentence, operation, changes, None if is_subject else self._recovery(first))
        fields = [self._chip(change.field_name, is_filter=is_subject) for change in changes]
        is_short = len(changes) <= 2 and sum(map(_length, changes)) <= _INLINE
        if is_short:
            values = [show.change(operation, change.old_value, change.new_value) for change in changes]
            fields = [markup("{} {}", *pair) for pair in zip(fields, values, strict=True)]
        name = "sentence_update" if is_subject else "sentence_update_row"
        sentence = texts(name, who=who, fields=show.listed(fields, most=6), row=row)
        return RowStory(sentence, operation, [] if is_short else changes)

    def _recovery(self, change: FieldChange) -> str | None:
        """Return the URL of the page that restores a row that a change deleted; ``None`` if there is none."""
        visit, source = self.visit, self.visit.browser.sources.labelled(change.resource_type)
        is_row = source is not None and not isinstance(model_of(source), LinkModel) and visit.may(source)
        if change.operation is not Operation.DELETE or not is_row or not visit.browser.can_write:
            return None
        return visit.row_url("restore", source, change.resource_id, at=instant_text(change.timestamp - TICK))

    def _badge(self, info: FieldChange) -> Markup:
        """Return who made a change, with a link to what else this user did: to the row of the page, or anywhere."""
        actor = (info.changed_by, info.actor_type, info.impersonated_by, info.on_behalf_of)
        if (badge := self._badges.get(actor)) is None:
            badge = self._badges[actor] = self.visit.show.who(info, self._by(info.changed_by))
        return badge

    def _by(self, user: str | None) -> str | None:
        visit = self.visit
        if user is None:
            return None
        if self.subject is not None:
            return visit.here(user=list(dict.fromkeys([*visit.parameters("user"), user])), after=None)
        return visit.url("search", {"q": f"who:{shlex.quote(user)}", "at": visit.at_text()})

    def _other(self, change: FieldChange, key: Any) -> Markup:
        """Return a link to the row to which a link leads; its key if the row is not known."""
        parts = key[0] if isinstance(key, tuple) and len(key) == 1 else key
        source = self.visit.browser.sources.labelled(change.resource_type)
        prop = None if source is None else model_of(source).mapper.relationships.get(change.field_name)
        other = None if prop is None else tracked_model(prop.mapper)
        return escape(text_of(key)) if other is None else self.visit.row_link(other.label, parts)

    def _chip(self, field_name: str, *, is_filter: bool) -> Markup:
        """Return the name of a field; as a filter, it is a link to the changes of this field alone."""
        if (chip := self._chips.get((field_name, is_filter))) is None:
            chip = markup("<bdi>{}</bdi>", safe(field_name))
            if is_filter:
                fields = list(dict.fromkeys([*self.visit.parameters("field"), field_name]))
                chip = markup('<a class="chip" href="{}">{}</a>', self.visit.here(field=fields, after=None), chip)
            else:
                chip = markup('<span class="chip">{}</span>', chip)
            self._chips[field_name, is_filter] = chip
        return chip


def _length(change: FieldChange) -> int:
    return len(text_of(change.old_value)) + len(text_of(change.new_value))
