"""How is a row joined with another row as it was at the time of the first? By the period of the other's versions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Date,
    DateTime,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from sqlaudit.exceptions import QueryError
from sqlaudit.period import UTCDateTime, was_valid
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import implementation_of
from sqlaudit.tracking.history import history_of
from sqlaudit.tracking.models import tracked_model_of


class _UTC(FunctionElement[datetime]):
    """A column of dates or datetimes, comparable with the ends of periods. Naive values are in UTC."""

    type = UTCDateTime()
    inherit_cache = True


@compiles(_UTC)
def _render_utc(element: _UTC, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    type_, text = implementation_of(column.type, compiler.dialect), compiler.process(column, **kw)
    if compiler.dialect.name == "postgresql" and not getattr(type_, "timezone", False):
        return f"(CAST({text} AS TIMESTAMP) AT TIME ZONE 'UTC')"
    if not TRAITS[compiler.dialect.name].has_datetimes:  # but texts, which have to be of one length to be compared
        return f"({text} || ' 00:00:00.000000')" if isinstance(type_, Date) else f"substr({text} || '.000000', 1, 26)"
    return text


def as_of_column(model_class: type[Any], when: Any) -> tuple[Any, ColumnElement[bool]]:
    """Join each row with the version of another row that was true at a time in the first row: a temporal join.

    .. code-block:: python

        customer, valid = as_of_column(Customer, Invoice.issued_at)
        select(Invoice, customer).join(
            customer, (customer.id == Invoice.customer_id) & valid
        )

    selects each invoice with the customer as it was when the invoice was issued, in one statement. An outer join gives
    ``None`` for a row that did not exist then.

    A timestamp that Python computes during the flush, such as ``default=lambda: datetime.now(UTC)``, is not earlier
    than the versions of this flush, so the join finds these versions. Other timestamps are earlier: a value that your
    code sets before the flush; PostgreSQL's ``now()``, which is the start of the transaction; and a value without
    fractions of a second or without a time, which is the start of its second or day (SQLite's ``CURRENT_TIMESTAMP``,
    ``now()`` and ``DATETIME`` on MariaDB, a date). MySQL rounds to the nearest second. Use ``DATETIME(fsp=6)`` on
    MariaDB and MySQL.

    :param model_class: a tracked model
    :param when: a column of dates or datetimes, in UTC
    :return: an alias of the model's history class, and the condition that its version was true then
    :raises TrackingError: the model is not tracked
    :raises QueryError: ``when`` is not a column of dates or datetimes
    """
    names = tracked_model_of(model_class).table.names
    column = when.__clause_element__() if hasattr(when, "__clause_element__") else when
    type_ = getattr(column, "type", None)
    if not isinstance(type_.impl_instance if isinstance(type_, TypeDecorator) else type_, (DateTime, Date)):
        raise QueryError(f"{when!r} is not a column of dates or datetimes. Give one, such as Invoice.issued_at.", when)
    version = aliased(history_of(model_class))
    instant = _UTC(column)
    return version, was_valid(getattr(version, names.valid_from), getattr(version, names.valid_to), instant)
