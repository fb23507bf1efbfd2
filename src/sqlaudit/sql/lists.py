"""How does one parameter hold any number of values? As an array on PostgreSQL, and as JSON on SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final
from typing import cast as cast_type

from sqlalchemy import (
    BindParameter,
    Boolean,
    ColumnElement,
    Dialect,
    FromClause,
    Integer,
    Select,
    String,
    Uuid,
    and_,
    any_,
    bindparam,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy import column as a_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import (
    AsConstant,
    Columns,
    Key,
    KeyArray,
    are_bound_in_sql,
    bound,
    implementation_of,
    is_array,
    is_raw,
    raw_columns,
    share_statements,
)

_IN_JSON: Final = (Integer, String, Uuid)


class JSONList(TypeDecorator[list[Any]]):
    """Many values in one parameter as JSON, for SQLite, which has no arrays."""

    impl = String
    cache_ok = True

    def __init__(self, item_type: TypeEngine[Any]) -> None:
        super().__init__()
        self.item_type = item_type

    def process_bind_param(self, value: list[Any] | None, dialect: Dialect) -> str:
        processor = self.item_type.dialect_impl(dialect).bind_processor(dialect)
        items = value or [] if processor is None else [processor(item) for item in value or ()]
        if isinstance(implementation_of(self.item_type, dialect), String):  # SQLite finds no text by a number in JSON
            items = [str(int(item)) if isinstance(item, int) else item for item in items]
        return json.dumps(items)


def takes_array(column: ColumnElement[Any], dialect: Dialect) -> bool:
    """Return whether many values of a column are given to the database as an array."""
    return TRAITS[dialect.name].has_arrays and not isinstance(column.type, AsConstant)


def takes_json_list(column: ColumnElement[Any], dialect: Dialect) -> bool:
    """Return whether many values of a column are given to the database as a :class:`JSONList`."""
    return TRAITS[dialect.name].has_json_each and isinstance(implementation_of(column.type, dialect), _IN_JSON)


def are_unchanged_by_json(keys: Iterable[Key]) -> bool:
    """Return whether SQLite reads the keys from JSON unchanged: no bytes, and it cuts off a text at a NUL character."""
    return not any(
        isinstance(value, (bytes, str)) and (isinstance(value, bytes) or "\0" in value) for key in keys for value in key
    )


def one_of_json(column: ColumnElement[Any], values: BindParameter[Any]) -> ColumnElement[bool]:
    return column.in_(select(rows_of_json(values)))


class Condition(FunctionElement[bool]):
    """A condition that an index can serve: without the ``= 1`` that SQLAlchemy adds on SQLite and MariaDB."""

    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Any:
        return self


class is_among(Condition):
    """True if a column has one of the values of a parameter: an array, JSON, or else an expanded list.

    :param clauses: the column, and an expanding parameter
    """

    inherit_cache = True


@compiles(is_among)
def _is_among(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = element.clauses
    return compiler.process(column.in_(cast_type("BindParameter[Any]", values)), **kw)


@compiles(is_among, "postgresql")
def _is_among_array(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = element.clauses
    key = cast_type("BindParameter[Any]", values).key
    return compiler.process(column == any_(bindparam(key, type_=KeyArray(values.type))), **kw)


@compiles(is_among, "sqlite")
def _is_among_json(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = element.clauses
    if not takes_json_list(values, compiler.dialect):
        return _is_among(element, compiler, **kw)
    key = cast_type("BindParameter[Any]", values).key
    return compiler.process(one_of_json(column, bindparam(key, type_=JSONList(values.type))), **kw)


class are_among(Condition):
    """True if several columns together have one of the keys of a parameter: a list of tuples.

    :param clauses: the columns, an expanding parameter of the keys, and a parameter of the values of each column,
        which PostgreSQL takes as arrays
    """

    inherit_cache = True


def _columns_and_lists(element: are_among) -> tuple[list[Any], Any, list[Any]]:
    clauses = list(element.clauses)
    width = len(clauses) // 2
    return clauses[:width], clauses[width], clauses[width + 1 :]


@compiles(are_among)
def _are_among(element: are_among, compiler: SQLCompiler, **kw: Any) -> str:
    columns, keys, lists = _columns_and_lists(element)
    types = [values.type.item_type for values in lists]
    return compiler.process(tuple_(*columns, types=types).in_(keys), **kw)


@compiles(are_among, "postgresql")
def _are_among_arrays(element: are_among, compiler: SQLCompiler, **kw: Any) -> str:
    columns, _, lists = _columns_and_lists(element)
    dialect = compiler.dialect
    if not all(takes_array(column, dialect) and share_statements(column.type, dialect) for column in columns):
        return _are_among(element, compiler, **kw)
    return compiler.process(one_of_arrays(columns, lists), **kw)


def one_of_arrays(columns: Sequence[Any], lists: Sequence[Any]) -> ColumnElement[bool]:
    """Return the condition that several columns together have the values at one place of several arrays."""
    return tuple_(*columns).in_(select(rows_of_arrays(columns, lists)))


def rows_of_arrays(columns: Sequence[Any], lists: Sequence[Any]) -> FromClause:
    """Return a table of the values of columns at each place of several arrays."""
    names = [a_column(f"k{place}", column.type) for place, column in enumerate(columns)]
    return func.unnest(*lists).table_valued(*names).render_derived()


def rows_of_json(values: BindParameter[Any]) -> FromClause:
    return func.json_each(values).table_valued("value")


def one_of(columns: Columns, keys: Sequence[Key] | Select[Any]) -> ColumnElement[bool]:
    """Return the condition that the columns have one of the keys, or a key that a select finds."""
    if isinstance(keys, Select):
        return (tuple_(*columns) if len(columns) > 1 else columns[0]).in_(keys)
    is_array_in_tuple = len(columns) > 1 and any(is_array(column.type) for column in columns)
    if are_bound_in_sql(columns) or is_array_in_tuple or (len(columns) > 1 and len(keys) == 1):
        same = (and_(*map(operators.eq, columns, map(_as_parameter, columns, key))) for key in keys)
        return or_(false(), *same)
    if len(columns) == 1:
        return in_bound_list(columns, None, keys)
    lists = [literal([key[place] for key in keys], KeyArray(column.type)) for place, column in enumerate(columns)]
    return are_among(*columns, _bound_list(columns, None, keys), *lists)


def _as_parameter(column: ColumnElement[Any], value: Any) -> BindParameter[Any]:
    return bound(column, value=value)


def has_one_of(columns: Columns, keys: Sequence[Key], dialect: Dialect) -> ColumnElement[bool]:
    """Return the condition that the columns have one of the keys, which are all given or all raw."""
    return one_of(raw_columns(columns, dialect) if is_raw(keys) else columns, keys)


def in_bound_list(columns: Columns, name: str | None = None, keys: Sequence[Key] = ()) -> ColumnElement[bool]:
    """Return the condition that the columns have one of the keys, with one expanding parameter for all of them."""
    values = _bound_list(columns, name, keys)
    return columns[0].in_(values) if len(columns) == 1 else tuple_(*columns).in_(values)


def _bound_list(columns: Columns, name: str | None, keys: Sequence[Key]) -> BindParameter[Any]:
    settings: dict[str, Any] = {"expanding": True, "literal_execute": isinstance(columns[0].type, AsConstant)}
    if len(columns) == 1:
        settings["type_"] = columns[0].type
        keys = [key[0] for key in keys]
    if name is not None:
        return bindparam(name, **settings)
    return bindparam(None, list(keys), unique=True, **settings)
