"""Do two columns hold different values? Comparisons in SQL that are exact to the byte on every database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Boolean,
    ColumnElement,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Time,
    Uuid,
    and_,
    false,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.sql.batches import chunks
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.sql.keys import implementation_of

_GROUP: Final = 50


def all_equal(left: Iterable[ColumnElement[Any]], right: Iterable[Any]) -> ColumnElement[bool]:
    """Return the condition that each column equals the column or the value at the same position on the right."""
    return and_(*(one == other for one, other in zip(left, right, strict=True)))


class differs(FunctionElement[bool]):
    """True if two columns of one type hold different values, exact to the byte. NULL equals NULL.

    ``IS DISTINCT FROM`` alone considers 'a' and 'A' equal under a case-insensitive collation. On PostgreSQL it cannot
    compare ``json``, and considers intervals of 30 days and of one month equal.
    """

    type = Boolean()
    inherit_cache = True


COMPARED_BY_VALUE: Final = (Integer, Numeric, Float, Boolean, DateTime, Date, Time, Uuid, LargeBinary)


def may_be_respelt(type_: TypeEngine[Any]) -> bool:
    """Return whether a database may consider two values of a type the same key: 'Ab' and 'aB' in some collations."""
    return isinstance(type_, TypeDecorator) or not isinstance(type_, (*COMPARED_BY_VALUE, Enum))


def _sides(element: differs, compiler: SQLCompiler, **kw: Any) -> tuple[TypeEngine[Any], str, str]:
    left, right = element.clauses
    return implementation_of(left.type, compiler.dialect), compiler.process(left, **kw), compiler.process(right, **kw)


@compiles(differs)
def _differs(element: differs, compiler: SQLCompiler, **kw: Any) -> str:
    type_, left, right = _sides(element, compiler, **kw)
    if isinstance(type_, ARRAY):
        type_ = implementation_of(type_.item_type, compiler.dialect)
    as_text = isinstance(type_, Enum) or type(type_).__name__ in ("CITEXT", "INTERVAL", "JSON", "JSONB")
    if as_text or not isinstance(type_, (*COMPARED_BY_VALUE, String)):
        left, right = f"CAST({left} AS TEXT)", f"CAST({right} AS TEXT)"
    elif isinstance(type_, String) and type_.collation is not None:
        left, right = f'{left} COLLATE "C"', f'{right} COLLATE "C"'
    return f"{left} IS DISTINCT FROM {right}"


@compiles(differs, "sqlite")
def _differs_on_sqlite(element: differs, compiler: SQLCompiler, **kw: Any) -> str:
    type_, left, right = _sides(element, compiler, **kw)
    return f"{left} IS NOT {right}" if isinstance(type_, COMPARED_BY_VALUE) else f"{left} COLLATE BINARY IS NOT {right}"


@compiles(differs, *MYSQL)
def _differs_on_mysql(element: differs, compiler: SQLCompiler, **kw: Any) -> str:
    type_, left, right = _sides(element, compiler, **kw)
    if not isinstance(type_, (*COMPARED_BY_VALUE, mysql.BIT)):
        left, right = f"CAST({left} AS BINARY)", f"CAST({right} AS BINARY)"
    return f"NOT ({left} <=> {right})"


class any_of(FunctionElement[bool]):
    """True if at least one of many conditions is true.

    SQLite refuses expressions that are more than 1000 levels deep. Each ``OR`` adds a level, so the conditions are
    grouped.
    """

    type = Boolean()
    inherit_cache = True


@compiles(any_of)
def _any_of(element: any_of, compiler: SQLCompiler, **kw: Any) -> str:
    conditions = [compiler.process(condition, **kw) for condition in element.clauses]
    groups = [" OR ".join(group) for group in chunks(conditions, _GROUP)]
    return f"(({') OR ('.join(groups)}))" if groups else compiler.process(false(), **kw)
