"""How does a long task go through a table? By ranges of keys, of which only the ends pass through Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, and_, or_, select, tuple_

from sqlaudit.sql.batches import sortable
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Columns, Key, RawKey, bound, raw_columns


def order_of(columns: Columns, dialect: Dialect) -> list[ColumnElement[Any]]:
    """Return the expressions that sort rows by their keys."""
    return [sortable(column, dialect) for column in columns]


def compared_with(columns: Columns, operator: str, key: Key, dialect: Dialect) -> ColumnElement[bool]:
    """Return the condition that a row's key is before or after a raw key: ``>``, ``>=`` or ``<=``."""
    raw = raw_columns(columns, dialect)
    values = [bound(column, value=value) for column, value in zip(raw, key, strict=True)]
    return _compared(order_of(columns, dialect), values, operator)


def is_beside(
    columns: Columns, operator: str, values: Sequence[ColumnElement[Any]], dialect: Dialect
) -> ColumnElement[bool]:
    """Return the condition on a row's key and a raw key, whose values are parameters: ``>``, ``>=`` or ``<``."""
    order = order_of(columns, dialect)
    if len(order) > 1 and TRAITS[dialect.name].compares_rows_by_index:
        return tuple_(*order).bool_op(operator)(tuple_(*values))
    return _compared(order, values, operator)


def range_after(connection: Connection, columns: Columns, last: Key | None, size: int) -> tuple[Key, Key] | None:
    """Return the first and the last key of the ``size`` rows that follow a key, or ``None`` if no row follows."""
    dialect = connection.dialect
    key, order = raw_columns(columns, dialect), order_of(columns, dialect)
    statement = select(*key).order_by(*order).limit(1)
    following = statement if last is None else statement.where(compared_with(columns, ">", last, dialect))
    first = connection.execute(following).first()
    if first is None:
        return None
    from_here = statement.where(compared_with(columns, ">=", RawKey(first), dialect))
    end = connection.execute(from_here.offset(size - 1)).first()
    if end is None:
        backwards = select(*key).order_by(*(column.desc() for column in order)).limit(1)
        end = connection.execute(backwards).one()
    return RawKey(first), RawKey(end)


def is_in_range(
    columns: Columns, first: Sequence[ColumnElement[Any]], last: Sequence[ColumnElement[Any]], dialect: Dialect
) -> ColumnElement[bool]:
    """Return the condition that a row's key is in a range, whose ends are parameters."""
    if len(columns) > 1 and TRAITS[dialect.name].compares_rows_by_index:
        return and_(tuple_(*columns) >= tuple_(*first), tuple_(*columns) <= tuple_(*last))
    order = order_of(columns, dialect)
    return and_(_compared(order, first, ">="), _compared(order, last, "<="))


def _compared(
    columns: Sequence[ColumnElement[Any]], values: Sequence[ColumnElement[Any]], operator: str
) -> ColumnElement[bool]:
    """Compare a key with values, in the order of its index, by ``>``, ``>=``, ``<`` or ``<=``.

    The condition names single columns, because MariaDB scans no index range for ``(a, b) > (x, y)``. Every database
    scans one for the first column.
    """
    if len(columns) == 1:
        return columns[0].bool_op(operator)(values[0])
    cases, last = [], len(columns) - 1
    for place, (column, value) in enumerate(zip(columns, values, strict=True)):
        same = [left == right for left, right in zip(columns[:place], values[:place], strict=True)]
        cases.append(and_(*same, column.bool_op(operator if place == last else operator[0])(value)))
    return and_(columns[0].bool_op(f"{operator[0]}=")(values[0]), or_(*cases))
