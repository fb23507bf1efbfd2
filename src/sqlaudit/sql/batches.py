"""How are many keys given to statements? In batches, or by a select that finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Enum,
    Select,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects import mysql

from sqlaudit.exceptions import CaptureError
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, bound, implementation_of, raw_columns, read_keys
from sqlaudit.sql.lists import one_of

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
CHUNK: Final = 1000
"""The number of keys in a batch."""


class KeyCollection(Protocol[T_co]):
    """Items that can be counted and read in batches, in memory or in the database."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


def chunks(keys: KeyCollection[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """Yield the keys in batches, one for each statement."""
    if isinstance(keys, (list, tuple)) and len(keys) <= size:
        if keys:
            yield keys
        return
    remaining = iter(keys)
    while chunk := list(islice(remaining, size)):
        yield chunk


class SelectedKeys:
    """Keys of rows that a select finds.

    :param chosen: a select of the columns of the key, and of nothing else
    """

    def __init__(self, connection: Connection, chosen: Select[Any]) -> None:
        self.connection = connection
        self.chosen = chosen

    @cached_property
    def _count(self) -> int:
        return self.connection.scalar(select(func.count()).select_from(self.chosen.subquery())) or 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Key]:
        for page in pages(self.connection, self.chosen, self.columns):
            yield from page

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        return list(self.chosen.selected_columns)

    def among(self, key: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """Return the condition that a row has one of the keys."""
        return one_of(key, self.chosen)


Batch = Sequence[Key] | SelectedKeys
"""The keys for one statement."""


def batches(keys: KeyCollection[Key]) -> Iterator[Batch]:
    """Yield the keys for each statement: selected keys all at once, as a subquery, and other keys in batches.

    MariaDB and MySQL get selected keys in batches, too: for a subquery they would scan and lock the whole history.
    """
    if not isinstance(keys, SelectedKeys) or TRAITS[keys.connection.dialect.name].locks_scanned_rows:
        yield from chunks(keys)
    elif keys:
        yield keys


def in_pages(
    read: Callable[[Select[Any]], Sequence[T]], statement: Select[Any], is_after: Callable[[T], ColumnElement[bool]]
) -> Iterator[Sequence[T]]:
    """Yield the rows that a select finds, in pages. Each page begins after the last row of the page before it.

    :param read: executes the select of a page
    :param statement: the select, in the order of a key
    :param is_after: gives the condition that a row follows another in this order
    """
    statement = statement.limit(CHUNK)
    page = read(statement)
    while page:
        yield page
        page = read(statement.where(is_after(page[-1])))


def pages(
    connection: Connection,
    statement: Select[Any],
    columns: Sequence[ColumnElement[Any]],
    read_page: Callable[[Select[Any]], Sequence[Key]] | None = None,
) -> Iterator[Sequence[Key]]:
    """Yield the keys that a select finds, in pages.

    :param read_page: executes the select of a page, by default on the connection
    """
    order = [sortable(column, connection.dialect) for column in columns]
    read = raw_columns(columns, connection.dialect)

    def is_after(key: Key) -> ColumnElement[bool]:
        ends = [bound(column, value=value) for column, value in zip(read, key, strict=True)]
        # SQLAlchemy refuses the operator > for booleans, so bool_op names it.
        return tuple_(*order) > tuple_(*ends) if len(ends) > 1 else order[0].bool_op(">")(ends[0])

    last = None
    statement = statement.with_only_columns(*read, maintain_column_froms=True).order_by(*order)
    for page in in_pages(read_page or partial(read_keys, connection), statement, is_after):
        if page[-1] == last:
            raise CaptureError(
                f"The database does not find the keys after {last}, because the key columns of the live table and of "
                "its history have different types. Give them the same types.",
                last,
            )
        last = page[-1]
        yield page


def sortable(column: ColumnElement[Any], dialect: Dialect) -> ColumnElement[Any]:
    """Return an expression for the column that sorts and compares consistently.

    MariaDB and MySQL sort an ENUM or a SET by its number, but compare its text.
    """
    is_enum = isinstance(implementation_of(column.type, dialect), (Enum, mysql.SET))
    has_number = is_enum and TRAITS[dialect.name].sorts_enums_by_number
    return func.concat(column, type_=column.type) if has_number else column
