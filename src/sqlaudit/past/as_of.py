"""How does one statement read the past? As of an instant, or as versions.

Objects that are read as of an instant carry it as their identity token (:mod:`sqlaudit.past.objects`). So the session
keeps them apart from the live objects, and whatever they load later is read as of the same instant.
:mod:`sqlaudit.past.rendering` renders the SQL.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from sqlalchemy import (
    Select,
    false,
    select,
)
from sqlalchemy.orm import QueryableAttribute

from sqlaudit.arguments import When, checked_range
from sqlaudit.past.objects import instant_from
from sqlaudit.past.pruned import SINCE
from sqlaudit.past.rendering import BeforeBaseline, UntrackedPolicy, past_statement
from sqlaudit.period import Mark, as_utc
from sqlaudit.tracking.history import history_of
from sqlaudit.tracking.links import LinkModel, Readable, model_of

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


MYPY = False  # True to mypy, which can copy the type of a function. Pyright cannot, but infers the return type


class AsOf(Protocol[R_co]):
    def __call__(
        self,
        when: When,
        *,
        untracked: UntrackedPolicy = "raise",
        before_baseline: BeforeBaseline = "absent",
    ) -> R_co: ...


def _typed_like(
    function: Callable[[M], R],
) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[Concatenate[M, P], R]]:
    return lambda function_like: function_like


def _method_returning(function: Callable[[M], R]) -> Callable[[Callable[..., Any]], Callable[[Any, Any, M], AsOf[R]]]:
    return lambda method: method


if MYPY:

    @_typed_like(select)
    def as_of(
        model_class: type[Any],
        when: When,
        *,
        untracked: UntrackedPolicy = "raise",
        before_baseline: BeforeBaseline = "absent",
    ) -> Any: ...

    class AsOfMethod:
        @_method_returning(select)
        def __get__(self, instance: object, owner: Any) -> Any: ...

else:

    def as_of(
        model_class: type[M],
        when: When,
        *,
        untracked: UntrackedPolicy = "raise",
        before_baseline: BeforeBaseline = "absent",
    ):
        """Return ``select(model_class)`` as of an instant.

        .. code-block:: python

            session.scalars(as_of(Customer, then).where(Customer.city == "Rome"))

        Extend it like any select, and execute it in a session with hooks, sync or async. It returns objects as they
        were then. They are distinct from the live objects, and read-only: flushing a changed one raises. Whatever they
        load later is read as of the same instant. In a subquery, a CTE or a union, the statement gives columns, beside
        the present or another instant.

        :param model_class: a tracked model; or an association table, for its rows; or a relationship, such as
            ``User.roles``, for the rows of its association table
        :param when: an aware datetime; or a :class:`Mark`; or a changeset id, also as text: the state right after that
            transaction. A naive datetime is taken as local time, with a warning. An instant in the future means the
            present, with a warning
        :param untracked: what to do with tables without history: ``"raise"``, or read their present rows: ``"live"``
        :param before_baseline: what to do if a row may have existed then, but its history begins later with a baseline,
            or versions are missing: leave the row ``"absent"``, ``"warn"`` or ``"raise"``. The latter two execute one
            more statement per table. A read by key checks that row, any other read checks all rows
        :raises TrackingError: the model is not tracked
        :raises QueryError: ``when`` is neither a datetime nor a changeset id
        """
        model = model_of(model_class)
        if isinstance(model_class, QueryableAttribute):
            model_class = model.table.live if isinstance(model, LinkModel) else model.mapper.class_
        return past_statement(
            _for_exec(select(model_class), model_class, model_class), instant_from(when, untracked, before_baseline)
        )


def between(model_class: Readable, start: datetime | Mark, end: datetime | Mark) -> Select[Any]:
    """Select the versions whose period overlaps ``[start, end)``, in the order of time.

    A range that ends where it begins is empty, and overlaps no period.

    :param model_class: a tracked model, an association table or a relationship
    :param start: an aware datetime or a :class:`Mark`; a naive one is taken as local time, with a warning
    :param end: the same; not included
    :raises TrackingError: the model is not tracked
    :raises QueryError: an end is not a datetime, or the range ends before it begins
    :raises PrunedError: when a session with hooks executes the statement: the history was pruned, and the range begins
        before its horizon
    """
    table = model_of(model_class).root.table
    period = checked_range("The range", as_utc(start), as_utc(end))
    valid_from, valid_to = table.valid_from, table.valid_to
    statement = all_versions(model_class).execution_options(**{SINCE: period["since"]})
    if period["since"] == period["until"]:
        return statement.where(false())
    return statement.where(valid_from < period["until"], valid_to > period["since"], valid_from < valid_to)


def all_versions(model_class: Readable) -> Select[Any]:
    """Select all versions of a model's rows, in the order of time.

    :param model_class: a tracked model, an association table or a relationship
    :raises TrackingError: the model is not tracked
    """
    table = model_of(model_class).root.table
    versions = history_of(model_class)
    statement = _for_exec(select(versions), versions, model_class)
    return statement.order_by(table.valid_from, *table.history_key, table.version)


def _for_exec(statement: R, entity: Any, model_class: Any) -> R:
    """Return a select of an entity, for a class of SQLModel by its own ``select``: so its ``exec`` gives objects."""
    sqlmodel = sys.modules.get("sqlmodel")
    if sqlmodel is None or not isinstance(model_class, sqlmodel.main.SQLModelMetaclass):
        return statement
    return cast(R, sqlmodel.select(entity))
