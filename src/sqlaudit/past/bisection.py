"""Which version of one row was true then? A bisection finds it, where a statement gives the row's key.

The primary key of a history table has the versions of a row by number, not by time. Where a select equates the key of
a tracked table with parameters, :func:`given_key` finds the parameters, and :func:`version_at` bisects the numbers: it
reads a dozen versions of 10,000, by the primary key alone. This relies on ``valid_from`` not decreasing with the
number. If the bisection meets a missing number, because a version was removed, the statement reads all versions of the
row instead.

This condition is added to the one on the period. If :func:`given_key` finds no key, the select is merely slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnClause,
    ColumnElement,
    Dialect,
    FromClause,
    Integer,
    Join,
    ScalarSelect,
    String,
    Uuid,
    and_,
    case,
    func,
    literal_column,
    select,
)
from sqlalchemy.sql import operators

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.tables import TrackedTable

GivenKey: TypeAlias = Sequence[BindParameter[Any]]
_Place: TypeAlias = tuple[Any, str]
"""A column of a select: the table or alias, and its key there."""
_ONE: Final = literal_column("1", Integer())
_TWO: Final = literal_column("2", Integer())


def given_key(
    tracked: TrackedTable,
    source: FromClause,
    where: Iterable[ColumnElement[bool]],
    froms: Iterable[FromClause],
    dialect: Dialect,
) -> GivenKey | None:
    """Return the parameters that a select equates with the key of a tracked table, or ``None``.

    :param source: the table, or its alias
    :param where: the criteria of the select
    :param froms: everything that the select reads from: the joins and the elements that they join
    """
    values_by_column = _columns_equal_to_parameters(where, [join for join in froms if isinstance(join, Join)])
    key = [values_by_column[source, column.key] for column in tracked.key if (source, column.key) in values_by_column]
    if len(key) < len(tracked.key):
        return None
    return key if all(_is_one_row(*pair, dialect) for pair in zip(tracked.key, key, strict=True)) else None


def _is_one_row(column: ColumnElement[Any], parameter: BindParameter[Any], dialect: Dialect) -> bool:
    """Return whether the database compares by the rules of the column's type, under which the key is unique.

    Otherwise several rows may match: on MySQL and MariaDB the texts ``'5'`` and ``'05'`` both equal the number 5.
    """
    kind, parameter_kind = column.type._type_affinity, parameter.type._type_affinity
    comparable = (Integer, Uuid) if TRAITS[dialect.name].converts_to_compare else (Integer, Uuid, String)
    return kind is parameter_kind and kind is not None and issubclass(kind, comparable)


def _columns_equal_to_parameters(
    where: Iterable[ColumnElement[bool]], joins: Sequence[Join]
) -> dict[_Place, BindParameter[Any]]:
    """Return the columns that equal a parameter in every row that a select returns, unless they are NULL.

    An equality in a join's ON clause propagates the key: in both directions for an inner join; only from left to right
    for an outer join, whose ON clause does not restrict the left side.
    """
    values: dict[_Place, BindParameter[Any]] = {}
    same: list[tuple[_Place, _Place]] = []
    for left, right in _equalities(where):
        if isinstance(left, ColumnClause) and isinstance(right, BindParameter):
            values.setdefault(_place(left), right)
        elif isinstance(left, ColumnClause) and isinstance(right, ColumnClause):
            same.append((_place(left), _place(right)))
    for join in joins:
        if join.full or join.onclause is None:
            continue
        before, after = set(join.left._from_objects), set(join.right._from_objects)
        for left, right in _equalities([join.onclause]):
            if isinstance(left, ColumnClause) and isinstance(right, ColumnClause):
                forwards = left.table in before and right.table in after
                if forwards or (not join.isouter and left.table in after and right.table in before):
                    same.append((_place(left), _place(right)))
    while derived := {to: values[place] for place, to in same if place in values and to not in values}:
        values |= derived
    return values


def _equalities(conditions: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the two sides, in both orders, of each equation that is true if all conditions are true."""
    for condition in conditions:
        if isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
            yield from _equalities(condition.clauses)
        elif isinstance(condition, BinaryExpression) and condition.operator is operators.eq:
            yield condition.left, condition.right
            yield condition.right, condition.left


def _place(column: ColumnClause[Any]) -> _Place:
    return column.table, column.key


def version_at(tracked: TrackedTable, key: GivenKey, when: ColumnElement[datetime]) -> ColumnElement[int]:
    """Return the number of a row's last version that begins no later than an instant.

    It is looked up in the base table, which has all versions. The table of a subclass lacks those from a time when the
    row was of another class.
    """
    base = tracked.chains[0][0] if tracked.chains else tracked
    first, last, middle = HistoryAlias(base), HistoryAlias(base), HistoryAlias(base)
    # Two subqueries: for both numbers in one, SQLite would read every version.
    lowest = select(func.min(first.version)).where(first.has_key(key)).scalar_subquery()
    highest = select(func.max(last.version)).where(last.has_key(key)).scalar_subquery()
    search = select(lowest.label("low"), (highest + _ONE).label("high")).cte(recursive=True, nesting=True)
    low, high, has_begun = search.c.low, search.c.high, middle.valid_from <= when
    search = search.union_all(
        select(case((has_begun, middle.version), else_=low), case((has_begun, high), else_=middle.version))
        .join_from(search, middle.clause, and_(middle.has_key(key), middle.version == (low + high) // _TWO))
        .where(high - low > _ONE)
    )
    number = select(search.c.low).where(search.c.high - search.c.low <= _ONE).scalar_subquery()
    return func.coalesce(number, _last_begun_version(tracked, key, when))


def _last_begun_version(tracked: TrackedTable, key: GivenKey, when: ColumnElement[datetime]) -> ScalarSelect[int]:
    """Return the number for :func:`version_at` by reading all versions of the row."""
    every = HistoryAlias(tracked)
    begun = select(every.version).where(every.has_key(key), every.valid_from <= when)
    return begun.order_by(every.version.desc()).limit(_ONE).scalar_subquery()
