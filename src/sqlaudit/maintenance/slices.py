"""Which rows belong to the slice around a row? Those that refer to it, and the rows to which all of them refer."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, Dialect, Select, Table, select
from sqlalchemy.exc import NoReferencedTableError
from sqlalchemy.sql.schema import ForeignKeyConstraint

from sqlaudit.exceptions import QueryError
from sqlaudit.retrieval.ids import converted_ids, has_id
from sqlaudit.sql.batches import CHUNK
from sqlaudit.sql.keys import RawKey, raw_columns
from sqlaudit.sql.lists import has_one_of
from sqlaudit.tracking.tables import tracked_table

Columns = Sequence[Column[Any]]
Read = Callable[[Table, Select[Any], Mapping[str, Any]], Iterable[Sequence[Any]]]
"""A function that reads a select of a table, with parameters, as of the instant."""
_ALL: Final = ()


def key_of(table: Table) -> Columns:
    """Return the columns that identify the rows of a table."""
    tracked = tracked_table(table)
    return tuple(table.primary_key) or (tracked.key if tracked is not None else _ALL)


def references_of(table: Table, tables: Iterable[Table]) -> Iterator[tuple[ForeignKeyConstraint, Table]]:
    """Yield the foreign keys of a table that refer to one of the given tables, each with that table."""
    given = set(tables)
    for link in sorted(table.foreign_key_constraints, key=lambda link: tuple(link.column_keys)):
        try:
            referred = link.referred_table
        except NoReferencedTableError:
            continue
        if referred in given:
            yield link, referred


def chunks_of(keys: Iterable[RawKey]) -> Iterator[list[RawKey]]:
    rows = list(keys)
    return (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK))


class Slice:
    """The keys of the rows that belong to the slice around some rows.

    :param tables: the tables of which rows may be in the slice
    """

    def __init__(self, tables: Iterable[Table], dialect: Dialect, read: Read) -> None:
        self.tables = list(tables)
        self.dialect = dialect
        self.read = read
        self.keys: dict[Table, dict[RawKey, None]] = {table: {} for table in self.tables}
        self._links = [
            (table, link, referred) for table in self.tables for link, referred in references_of(table, self.tables)
        ]

    def add(self, table: Table, row_id: Any) -> None:
        """Add a row, and the rows that belong to its slice.

        :raises QueryError: there was no such row
        """
        key = key_of(table)
        parameters = converted_ids(key, [row_id])
        statement = select(*raw_columns(key, self.dialect)).where(has_id(key, parameters))
        rows = list(map(RawKey, self.read(table, statement, parameters)))
        if not rows:
            raise QueryError(f"{table.fullname!r} had no row {row_id!r} then. Give the key of a row.", row_id)
        self._add_parents(self._add_children(table, rows))

    def _note(self, table: Table, keys: Iterable[RawKey]) -> list[RawKey]:
        """Add keys; return those that are new."""
        known = self.keys[table]
        new = [key for key in dict.fromkeys(keys) if key not in known]
        known.update(dict.fromkeys(new))
        return new

    def _add_children(self, table: Table, rows: list[RawKey]) -> Mapping[Table, list[RawKey]]:
        """Add rows and all that refer to them, directly or through others. Return the new ones."""
        added: dict[Table, list[RawKey]] = defaultdict(list)
        todo = deque([(table, rows)])
        while todo:
            table, keys = todo.popleft()
            new = self._note(table, keys)
            added[table] += new
            for child, link, referred in self._links if new else ():
                if referred is table:
                    columns = [element.column for element in link.elements]
                    values = self._values(table, columns, new)
                    todo.append((child, self._rows_with(child, [element.parent for element in link.elements], values)))
        return added

    def _add_parents(self, added: Mapping[Table, list[RawKey]]) -> None:
        """Add the rows to which rows refer, directly or through others, and their parts in tables of subclasses."""
        todo = deque(added.items())
        while todo:
            table, keys = todo.popleft()
            for child, link, referred in self._links if keys else ():
                if child is table:
                    values = self._values(table, [element.parent for element in link.elements], keys)
                    rows = self._rows_with(referred, [element.column for element in link.elements], values)
                    todo.append((referred, self._note(referred, rows)))
            for other in self._parts_of(table) if keys else ():
                todo.append((other, self._note(other, self._rows_with(other, key_of(other), keys))))

    def _parts_of(self, table: Table) -> list[Table]:
        """Return the other tables that hold the objects of a table: those of the classes that inherit from it."""
        tracked = tracked_table(table)
        chains = tracked.chains if tracked is not None else []
        others = dict.fromkeys(other.live for chain in chains for other in chain)
        return [other for other in others if other is not table and other in self.keys]

    def _values(self, table: Table, columns: Columns, keys: list[RawKey]) -> list[RawKey]:
        """Return the values of columns in the rows with the given keys, without those that have a NULL."""
        identity = key_of(table)
        if tuple(columns) == tuple(identity):
            return keys
        found: dict[RawKey, None] = {}
        for chunk in chunks_of(keys):
            statement = select(*raw_columns(columns, self.dialect)).where(has_one_of(identity, chunk, self.dialect))
            rows = map(RawKey, self.read(table, statement, {}))
            found.update(dict.fromkeys(row for row in rows if None not in row))
        return list(found)

    def _rows_with(self, table: Table, columns: Columns, values: list[RawKey]) -> list[RawKey]:
        """Return the keys of the rows in which columns have one of the given values."""
        identity, found = key_of(table), list[RawKey]()
        for chunk in chunks_of(values):
            statement = select(*raw_columns(identity, self.dialect)).where(has_one_of(columns, chunk, self.dialect))
            found += map(RawKey, self.read(table, statement, {}))
        return found
