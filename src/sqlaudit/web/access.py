"""What may a visitor see? The answers of the application's ``authorize``, as criteria and masks of every query."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

from sqlalchemy import ColumnElement, and_, false, not_, or_, true
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from sqlaudit.exceptions import SQLAuditError
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.sources import all_sources
from sqlaudit.web.problems import Problem
from sqlaudit.web.sources import Sources

Criterion = ColumnElement[bool] | bool
Answer = Any
"""What an ``authorize`` returns: a bool, names of attributes to mask, a criterion, or an :class:`Access`."""
Authorize = Callable[[Request, str, Any, Any], Answer | Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Access:
    """What a visitor may see of a model, if a criterion or names of attributes alone do not say it.

    :param criterion: an expression of the model's columns; ``True`` for all rows, ``False`` for none
    :param masked: the names of attributes whose values the visitor may not see
    """

    criterion: Any = True
    masked: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a visitor may see on a page.

    :ivar criteria: a criterion for each base class and association table of which not all rows may be seen
    :ivar masks: the attributes that may not be seen, by base class and association table
    """

    criteria: Mapping[Any, Criterion] = field(default_factory=dict)
    masks: Mapping[Any, frozenset[str]] = field(default_factory=dict)

    @property
    def are_whole(self) -> bool:
        """Whether everything may be seen."""
        return not self.criteria and not self.masks

    def allow(self, source: Any) -> bool:
        """Return whether some rows of a source may be seen."""
        return self.criteria.get(root_source(source), True) is not False

    def masked_in(self, source: Any) -> frozenset[str]:
        return self.masks.get(root_source(source), frozenset())


def root_source(source: Any) -> Any:
    """Return the class that authorization is asked for: the base class of a hierarchy; or the association table."""
    model = model_of(source)
    return model.table.live if model.table.is_association else model.root.mapper.class_


async def permissions_for(
    authorize: Authorize | None, request: Request, action: str, shown: Sources, subject: Any, key: Any
) -> Permissions:
    """Return what a visitor may see on a page. Who restores or undoes has to be allowed to view, too.

    :param shown: what the browser shows; nothing else may be seen
    :param subject: the source that the page is about, if there is one
    :param key: the key of the row that the page is about, if there is one
    :raises Problem: the visitor may not see the subject; or, if the page has none, anything
    """
    sources = shown.roots
    actions = ("view", action) if action in ("restore", "undo") else (action,)
    answers: dict[Any, Access] = dict.fromkeys(set(all_sources()).difference(sources), Access(False))
    if authorize is not None:
        asked = [(source, None) for source in sources]
        own = None if subject is None or key is None else root_source(subject)
        asked += [] if own is None else [(own, key)]
        given = [await _answers(authorize, request, each, asked) for each in actions]
        allowed = [_all_of(*each) for each in zip(*given, strict=True)]
        answers |= dict(zip(sources, allowed, strict=False))
        if own is not None:
            answers[own] = _for_row(model_of(own), key, answers[own], allowed[-1])
    needed = sources if subject is None else [root_source(subject)]
    if all(answers.get(source, Access()).criterion is False for source in needed):
        raise Problem(403, "forbidden")
    for source, part in shown.parts.items():
        access = answers.get(source, Access())
        answers[source] = Access(and_(_expression(access), part), access.masked)
    return Permissions(
        criteria={source: access.criterion for source, access in answers.items() if access.criterion is not True},
        masks={source: frozenset(access.masked) for source, access in answers.items() if access.masked},
    )


async def _answers(
    authorize: Authorize, request: Request, action: str, asked: Iterable[tuple[Any, Any]]
) -> list[Access]:
    def call() -> list[Any]:
        return [authorize(request, action, source, key) for source, key in asked]

    asked = list(asked)
    given = await run_in_threadpool(call)  # it may ask a database
    answers = [await answer if isawaitable(answer) else answer for answer in given]
    return [_access(source, answer) for (source, _), answer in zip(asked, answers, strict=True)]


def _all_of(*answers: Access) -> Access:
    """Return what each of several answers allows."""
    masked = frozenset[str]().union(*(answer.masked for answer in answers))
    criteria = [answer.criterion for answer in answers if answer.criterion is not True]
    if not criteria or any(criterion is False for criterion in criteria):
        return Access(not criteria, masked)
    return Access(and_(*criteria), masked)


def _access(source: Any, answer: Any) -> Access:
    """Return what an answer of the application says.

    :raises SQLAuditError: it says nothing
    """
    if isinstance(answer, Access):
        return Access(_access(source, answer.criterion).criterion, frozenset(answer.masked))
    if isinstance(answer, (bool, ColumnElement)):
        return Access(answer)
    if callable(element := getattr(answer, "__clause_element__", None)):
        return Access(element())
    if isinstance(answer, Collection) and not isinstance(answer, (str, bytes, Mapping)):
        return Access(masked=frozenset(answer))
    raise SQLAuditError(
        f"authorize returned {answer!r} for {model_of(source).name}. Return True or False, a criterion of the model, "
        "a collection of names of attributes to mask, or an Access.",
        answer,
    )


def _for_row(model: TrackedModel, key: Any, listed: Access, own: Access) -> Access:
    """Return what may be seen on the page of a row: of this row what the answer for its key says, else as in lists.

    :raises Problem: the row may not be seen
    """
    if own.criterion is False:
        raise Problem(403, "forbidden")
    masked = frozenset({*listed.masked, *own.masked})
    if own.criterion is listed.criterion or (
        isinstance(own.criterion, ColumnElement)
        and isinstance(listed.criterion, ColumnElement)
        and own.criterion.compare(listed.criterion)
    ):
        return Access(own.criterion, masked)
    parts = key if isinstance(key, tuple) else (key,)
    is_row = and_(*(column == part for column, part in zip(model.root.table.key, parts, strict=True)))
    criterion = or_(and_(is_row, _expression(own)), and_(not_(is_row), _expression(listed)))
    return Access(criterion, masked)


def _expression(access: Access) -> Any:
    return access.criterion if not isinstance(access.criterion, bool) else true() if access.criterion else false()
