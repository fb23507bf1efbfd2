"""Which attributes of past objects were erased? Those that their versions name. The objects have ``ERASED`` there.

A statement of the past selects the columns of models, and not the ``extra`` of versions. Once it has been executed, the
rows with erasures are looked up. For those that are loaded, their versions at the instant are, too. Databases without
erasures take one statement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, event, select
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.attributes import instance_state

from sqlaudit.erased import ERASED, erased_columns
from sqlaudit.period import was_valid
from sqlaudit.retrieval.key_texts import parsed_key
from sqlaudit.sql.batches import CHUNK, chunks
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.horizons import base_of
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of
from sqlaudit.tracking.models import root_of, tracked_model
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import TrackedTable, known_metadata

ERASED_ROWS: Final = "sqlaudit_erased_rows"
"""The execution option of a statement that loads past objects: an :class:`ErasedRows`."""
_KEYS: Final = "keys of erasures"
"""Where a table keeps the keys that it has read from the texts of erasures, by these."""


class ErasedRows:
    """The rows with erased values at the instant of a statement.

    :ivar tables: base table → its rows
    """

    def __init__(self) -> None:
        self.tables: dict[TrackedTable, _RowsOfTable] = {}

    def look(self, connection: Connection, tables: Iterable[TrackedTable] | None, when: datetime) -> None:
        """Look up which rows have erasures, once the statement has been executed. Streams look before, at all of them.

        :param tables: the tables that the statement reads; ``None`` for all tables of the database, before a stream
        """
        is_stream = tables is None
        if tables is None:
            tables = [table for metadata in known_metadata() for table in tracked_tables(metadata)]
        by_metadata: dict[Any, set[TrackedTable]] = defaultdict(set)
        for table in tables:
            if not table.is_association and maintenance_tables_of(table.live.metadata) is not None:
                by_metadata[table.live.metadata].add(base_of(table))
        for metadata, bases in by_metadata.items():
            for base, keys in _keys_with_erasures(connection, metadata, bases).items():
                rows = self.tables[base] = _RowsOfTable(connection, base, when, keys)
                if is_stream:
                    rows.look_at_all()
                _listen(root_of(base).mapper)

    def columns_of(self, base: TrackedTable, key: Key) -> Iterable[str]:
        """Return the names of the erased columns of a row."""
        rows = self.tables.get(base)
        return () if rows is None else rows.columns_of(key)


class _RowsOfTable:
    """The rows of one hierarchy that have erasures, in some of their versions.

    Most statements load few of them, so their versions are looked up when they are loaded: first one, and the more the
    more are loaded. All raw rows of a result have been fetched by then, unless it is a stream.
    """

    def __init__(self, connection: Connection, base: TrackedTable, when: datetime, keys: set[Key]) -> None:
        self._connection = connection
        self._base = base
        self._when = when
        self._unseen = keys
        self._columns: dict[Key, Iterable[str]] = {}
        self._size = 1

    def columns_of(self, key: Key) -> Iterable[str]:
        if key in self._unseen:
            self._unseen.discard(key)
            self._look_at([key, *(self._unseen.pop() for _ in range(min(self._size - 1, len(self._unseen))))])
            self._size = min(self._size * 10, CHUNK)
        return self._columns.get(key, ())

    def look_at_all(self) -> None:
        for chunk in chunks(list(self._unseen)):
            self._look_at(chunk)
        self._unseen = set()

    def _look_at(self, keys: Sequence[Key]) -> None:
        base = self._base
        statement = select(base.role("extra"), *base.history_key).where(
            was_valid(base.valid_from, base.valid_to, self._when), one_of(base.history_key, keys)
        )
        for extra, *key in self._connection.execute(statement, execution_options=INTERNAL).all():
            if columns := erased_columns(extra):
                self._columns[tuple(key)] = columns


def _keys_with_erasures(
    connection: Connection, metadata: Any, bases: Iterable[TrackedTable]
) -> dict[TrackedTable, set[Key]]:
    tables, by_name = maintenance_tables_of(metadata), {base.history.fullname: base for base in bases}
    assert tables is not None
    if not table_exists(connection, tables.erasures):
        return {}
    columns = tables.erasures.c
    statement = select(columns.history_table, columns.row_key).where(
        columns.history_table.in_(sorted(by_name)), columns.row_key.is_not(None)
    )
    found: dict[TrackedTable, set[Key]] = defaultdict(set)
    for name, text in connection.execute(statement, execution_options=INTERNAL):
        base = by_name[name]
        known: dict[str, Key] = base.cache.setdefault(_KEYS, {})
        if text not in known:
            known[text] = parsed_key(base, text)
        found[base].add(known[text])
    return found


def _listen(mapper: Mapper[Any]) -> None:
    for name in ("load", "refresh"):
        if not event.contains(mapper.class_, name, _hide_erased):
            event.listen(mapper.class_, name, _hide_erased, propagate=True)


def _hide_erased(obj: Any, context: Any, *_: object) -> None:
    rows = None if context is None else context.execution_options.get(ERASED_ROWS)
    if rows is None or not rows.tables:
        return
    state = instance_state(obj)
    model = tracked_model(state.mapper)
    if model is not None and state.key is not None:
        columns = rows.columns_of(model.root.table, state.key[1])
        for name, column in model.columns.items() if columns else ():
            if column.name in columns and name in state.dict:
                state.dict[name] = ERASED
