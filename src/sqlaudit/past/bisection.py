"""Which version of one row was true then? A bisection finds it, where a statement gives the row's key.

The primary key of a history table has the versions of a row by number, not by time. Where a select equates the key of
a tracked table with parameters, :func:`given_key` finds the parameters, and :func:`version_at` bisects the numbers: it
reads a dozen versions of 10,000, by the primary key alone. This relies on ``valid_from`` not decreasing with the
number. If the bisection meets a missing number, because a version was removed, the statement reads all versions of the
row instead. Where a select gives the keys of several rows, :func:`ranges_at` bisects the numbers of each.

This condition is added to the one on the period. If :func:`given_key` finds no key, the select is merely slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    Select,
    String,
    Uuid,
    and_,
    case,
    func,
    literal_column,
    select,
)
from sqlalchemy import column as a_column
from sqlalchemy.sql import operators

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import KeyArray
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.catalogue import is_for_citus
from sqlaudit.tracking.tables import TrackedTable

GivenKey: TypeAlias = Sequence[BindParameter[Any]]
_Place: TypeAlias = tuple[Any, str]
"""A column of a select: the table or alias, and its key there."""
_ZERO: Final = literal_column("0", Integer())
_ONE: Final = literal_column("1", Integer())
_TWO: Final = literal_column("2", Integer())
_SHORT: Final = literal_column("16", Integer())
"""So few versions of each of several rows are read rather than bisected."""


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
    joins = [join for join in froms if isinstance(join, Join)]
    values_by_column = _columns_equal_to_parameters(where, joins, _equalities)
    key = [values_by_column[source, column.key] for column in tracked.key if (source, column.key) in values_by_column]
    if len(key) < len(tracked.key):
        return None
    return key if all(_is_one_row(*pair, dialect) for pair in zip(tracked.key, key, strict=True)) else None


def given_keys(
    tracked: TrackedTable,
    source: FromClause,
    where: Iterable[ColumnElement[bool]],
    froms: Iterable[FromClause],
    dialect: Dialect,
) -> BindParameter[Any] | None:
    """Return the parameter of keys, as in ``id IN (…)``, to which a select restricts a tracked table, or ``None``.

    The arguments are those of :func:`given_key`. On PostgreSQL the values must be in the parameter, not given at
    execution, because the array of them is another parameter. Citus refuses a recursive search for several rows.
    """
    if len(tracked.key) > 1 or not TRAITS[dialect.name].looks_up_ranges or is_for_citus(dialect):
        return None
    [column] = tracked.key
    joins = [join for join in froms if isinstance(join, Join)]
    keys = _columns_equal_to_parameters(where, joins, _memberships).get((source, column.key))
    if keys is None or not _is_one_row(column, keys, dialect):
        return None
    if TRAITS[dialect.name].has_arrays and (not keys.unique or not isinstance(keys.type, (Integer, Uuid))):
        return None
    return keys


def _is_one_row(column: ColumnElement[Any], parameter: BindParameter[Any], dialect: Dialect) -> bool:
    """Return whether the database compares by the rules of the column's type, under which the key is unique.

    Otherwise several rows may match: on MySQL and MariaDB the texts ``'5'`` and ``'05'`` both equal the number 5.
    """
    kind, parameter_kind = column.type._type_affinity, parameter.type._type_affinity
    comparable = (Integer, Uuid) if TRAITS[dialect.name].converts_to_compare else (Integer, Uuid, String)
    return kind is parameter_kind and kind is not None and issubclass(kind, comparable)


def _columns_equal_to_parameters(
    where: Iterable[ColumnElement[bool]],
    joins: Sequence[Join],
    sides: Callable[[Iterable[Any]], Iterator[tuple[Any, Any]]],
) -> dict[_Place, BindParameter[Any]]:
    """Return the columns that equal a parameter in every row that a select returns, unless they are NULL.

    :param sides: a function that yields a column and its parameter in every condition: ``_equalities``, or
        ``_memberships`` for columns that have one of the values of a parameter

    An equality in a join's ON clause propagates the key: in both directions for an inner join; only from left to right
    for an outer join, whose ON clause does not restrict the left side.
    """
    values: dict[_Place, BindParameter[Any]] = {}
    same: list[tuple[_Place, _Place]] = []
    where = list(where)
    for left, right in sides(where):
        if isinstance(left, ColumnClause) and isinstance(right, BindParameter):
            values.setdefault(_place(left), right)
    for left, right in _equalities(where):
        if isinstance(left, ColumnClause) and isinstance(right, ColumnClause):
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
    for equation in _comparisons(conditions, operators.eq):
        yield equation.left, equation.right
        yield equation.right, equation.left


def _memberships(conditions: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the two sides of each ``IN`` that is true if all conditions are true."""
    for membership in _comparisons(conditions, operators.in_op):
        yield membership.left, membership.right


def _comparisons(conditions: Iterable[Any], operator: Any) -> Iterator[BinaryExpression[Any]]:
    """Yield each comparison by an operator that is true if all conditions are true."""
    for condition in conditions:
        if isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
            yield from _comparisons(condition.clauses, operator)
        elif isinstance(condition, BinaryExpression) and condition.operator is operator:
            yield condition


def _place(column: ColumnClause[Any]) -> _Place:
    return column.table, column.key


def version_at(tracked: TrackedTable, key: GivenKey, when: ColumnElement[datetime]) -> ColumnElement[int]:
    """Return the number of a row's last version that begins no later than an instant.

    It is looked up in the base table, which has all versions. The table of a subclass lacks those from a time when the
    row was of another class.
    """
    base = _base_of(tracked)
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


def ranges_at(
    tracked: TrackedTable, keys: BindParameter[Any], when: ColumnElement[datetime], dialect: Dialect
) -> FromClause:
    """Return a select of ranges of version numbers, from ``low`` to ``low + size``, of the rows with given keys.

    A range contains the last version of its row that begins no later than an instant. A short history is one range.
    """
    base = _base_of(tracked)
    last, first = HistoryAlias(base), HistoryAlias(base)
    [column] = last.key
    size: ColumnElement[int] = func.max(last.version) + _ONE
    start: Select[Any]
    if TRAITS[dialect.name].has_arrays:
        array = keys._clone()
        array.expanding, array.type = False, KeyArray(keys.type)
        given = func.unnest(array).table_valued(a_column("key", keys.type)).render_derived()
        column = given.c.key
        size = select(size).where(last.has_key([column])).scalar_subquery()
        start = select(column.label("key"), _ZERO.label("low"), size.label("size")).distinct()
    else:
        start = select(column.label("key"), _ZERO.label("low"), size.label("size"))
        start = start.where(column.in_(keys)).group_by(column)
    search = start.cte(recursive=True, nesting=True)
    key, low, size = search.c
    half = size // _TWO
    # The versions from the middle on have begun if the first of them has, whatever its number is.
    middle = select(first.valid_from).where(first.has_key([key]), first.version >= low + half)
    begin = middle.order_by(first.version).limit(_ONE).correlate(search).scalar_subquery()
    skipped = case((begin <= when, half), else_=_ZERO)
    search = search.union_all(select(key, low + skipped, size - half).where(size > _SHORT))
    is_short: ColumnElement[Any] = search.c.size <= _SHORT
    if not TRAITS[dialect.name].has_arrays:
        # SQLite expects a million rows of a CTE, and may read all versions in order to avoid as many lookups. As a
        # Boolean, the function would be compared with 1, and SQLite would not recognise it.
        is_short = func.unlikely(is_short)
    return select(*search.c).where(is_short).subquery()


def _base_of(tracked: TrackedTable) -> TrackedTable:
    return tracked.chains[0][0] if tracked.chains else tracked
