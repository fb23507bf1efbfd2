"""Where are the keys of the rows that a statement will write? In Python, or, if many, in a temporary table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast
from uuid import uuid4

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    TwoPhaseTransaction,
    and_,
    any_,
    case,
    exists,
    insert,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy import cast as cast_to
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql import operators

from sqlaudit.recording.cascades import split_by_chain, table_chains
from sqlaudit.sql.batches import SelectedKeys
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import AsConstant, Key, KeyArray, RawKey, bound, raw_columns
from sqlaudit.sql.lists import JSONList, are_unchanged_by_json, one_of, one_of_arrays, one_of_json, takes_json_list
from sqlaudit.sql.options import INTERNAL
from sqlaudit.sql.temporary import DropTemporary
from sqlaudit.tracking.foreign_keys import Source, Sources
from sqlaudit.tracking.schema import table_options

MANY: Final = 10_000
"""How many keys are kept in Python before a temporary table is created."""
_SAVEPOINT: Final = "sqlaudit_keys"
_LEFT: Final = "sqlaudit_left"


class KnownKeys:
    """Keys of rows, kept in Python.

    :param rows: raw keys, each followed by whether the row has an open version
    """

    def __init__(self, connection: Connection, rows: Iterable[Sequence[Any]]) -> None:
        self.connection = connection
        self._is_recorded: dict[Key, bool] = {RawKey(row[:-1]): row[-1] for row in rows}

    def __len__(self) -> int:
        return len(self._is_recorded)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._is_recorded)

    @property
    def unrecorded(self) -> list[Key]:
        """The keys of rows without an open version."""
        return [key for key, is_recorded in self._is_recorded.items() if not is_recorded]

    def split_by_chain(self, root: Source) -> Iterator[tuple[Sources, KnownKeys]]:
        """Divide the keys by the chain of tables that their objects live in."""
        if len(chains := table_chains(root)) == 1:
            yield chains[0], self
            return
        for chain, keys in split_by_chain(self.connection, root, list(self)):
            yield chain, KnownKeys(self.connection, ((*key, self._is_recorded[key]) for key in keys))

    def among(self, key: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition that a row has one of the keys."""
        return among(self.connection.dialect, key, list(self))


class StoredKeys(SelectedKeys):
    """Keys of rows, kept in a temporary table; otherwise like :class:`KnownKeys`.

    :param table: has the columns of the key, whether the row has an open version, and the index of its object's chain
        in :func:`~sqlaudit.recording.cascades.table_chains`
    :param criteria: choose the rows of the table
    """

    def __init__(self, connection: Connection, table: Table, *criteria: ColumnElement[bool]) -> None:
        super().__init__(connection, select(*table.primary_key).where(*criteria))
        self.table = table
        self.criteria = criteria

    @property
    def unrecorded(self) -> StoredKeys:
        return self._where(self.table.c.is_recorded == 0)

    def split_by_chain(self, root: Source) -> Iterator[tuple[Sources, StoredKeys]]:
        if len(chains := table_chains(root)) == 1:
            yield chains[0], self
            return
        for place, chain in enumerate(chains):
            if keys_of_chain := self._where(self.table.c.place == place):
                yield chain, keys_of_chain

    def drop(self) -> None:
        _drop(self.connection, self.table)

    def _where(self, criterion: ColumnElement[bool]) -> StoredKeys:
        return StoredKeys(self.connection, self.table, *self.criteria, criterion)


Keys = KnownKeys | StoredKeys


def among(
    dialect: Dialect, key: Sequence[Any], keys: Sequence[Key], *, for_executemany: bool = False
) -> ColumnElement[bool]:
    """Return the condition that a row has one of the raw keys.

    :param for_executemany: True for an executemany, which takes no list as a parameter
    """
    key = raw_columns(key, dialect)
    is_constant = isinstance(key[0].type, AsConstant)
    if is_constant and for_executemany:  # and no constant either
        key, is_constant = [cast_to(column, Text()) for column in key], False
    if TRAITS[dialect.name].has_arrays and not is_constant:
        return _among_arrays(key, keys)
    if len(key) == 1 and takes_json_list(key[0], dialect) and are_unchanged_by_json(keys):
        return one_of_json(key[0], literal([value for (value,) in keys], JSONList(key[0].type)))
    if not keys:  # false() would drop the joins of the statement, and SQLAlchemy warns of that
        return literal_column("1 = 0", Boolean())
    if not for_executemany:
        return one_of(key, keys)
    same = (
        [column == bound(column, value=value) for column, value in zip(key, key_values, strict=True)]
        for key_values in keys
    )
    return or_(*(and_(*condition) for condition in same))


def _among_arrays(key: Sequence[Any], keys: Sequence[Key]) -> ColumnElement[bool]:
    lists = [
        literal([key_values[place] for key_values in keys], KeyArray(column.type)) for place, column in enumerate(key)
    ]
    if len(key) == 1:
        return cast("ColumnElement[bool]", key[0] == any_(lists[0]))
    return one_of_arrays(key, lists)


def place_of(root: Source, key: Sequence[Any]) -> ColumnElement[int]:
    """Return the index, in :func:`~sqlaudit.recording.cascades.table_chains`, of the chain that has a row."""
    subclass_chains = table_chains(root)[:-1]
    if not subclass_chains:
        return literal_column("0", Integer())
    conditions = (
        exists(literal_column("1")).where(*map(operators.eq, chain[-1].key, key)) for chain in subclass_chains
    )
    return case(*((condition, place) for place, condition in enumerate(conditions)), else_=len(subclass_chains))


def store_keys(
    connection: Connection, chosen: Select[Any], key: Sequence[ColumnElement[Any]], live: Table, *, may_repeat: bool
) -> StoredKeys | None:
    """Store the keys of rows in a temporary table; return ``None`` if the database refuses to create it.

    :param chosen: selects the columns of the table of :class:`StoredKeys`
    :param live: the table of the rows, whose options say how MariaDB and MySQL compare texts
    :param may_repeat: True if ``chosen`` may select a row several times
    """
    for table in connection.info.pop(_LEFT, ()):
        _drop(connection, table)
    table = Table(
        f"sqlaudit_keys_{uuid4().hex}",
        MetaData(),
        *(Column(f"key_{place}", primary_key=True, autoincrement=False) for place in range(len(key))),
        Column("is_recorded", Integer),
        Column("place", Integer),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
        **table_options(live),
    )
    for copy, original in zip(table.primary_key, key, strict=True):
        copy.type = original.type  # set afterwards, so that its DDL events are not attached
    if not _create(connection, table):
        return None
    options = chosen._with_options  # SQLAlchemy reads them from the outermost statement
    if may_repeat:  # PostgreSQL does not allow FOR UPDATE with DISTINCT, so lock in a subquery
        names = [f"sqlaudit_{place}" for place, _ in enumerate(table.c)]
        named = chosen.with_only_columns(*map(ColumnElement.label, chosen.selected_columns, names))
        chosen = select(named.subquery()).distinct()
    connection.execute(insert(table).from_select(list(table.c), chosen).options(*options), execution_options=INTERNAL)
    return StoredKeys(connection, table)


def _drop(connection: Connection, table: Table) -> None:
    """Drop a temporary table; if SQLite refuses because a result is open, retry before the next one is created."""
    try:
        connection.execute(DropTemporary(table), execution_options=INTERNAL)
    except DBAPIError:  # other databases drop it with the transaction or connection
        connection.info.setdefault(_LEFT, []).append(table)


def can_store_keys(connection: Connection, *, returns: bool) -> bool:
    """Return whether a temporary table may be created: a two-phase transaction with one could not be prepared.

    :param returns: True for a statement with RETURNING, during which SQLite cannot drop the table
    """
    return (
        (not returns or TRAITS[connection.dialect.name].drops_tables_while_reading)
        and not connection._is_autocommit_isolation()
        and not isinstance(connection.get_transaction(), TwoPhaseTransaction)
        and None not in (connection.get_execution_options().get("schema_translate_map") or {})
    )


def _create(connection: Connection, table: Table) -> bool:
    """Create a temporary table; return whether the database allowed it."""
    dialect = connection.dialect
    dialect.do_savepoint(connection, _SAVEPOINT)
    try:
        connection.execute(CreateTable(table), execution_options=INTERNAL)
    except DBAPIError:
        dialect.do_rollback_to_savepoint(connection, _SAVEPOINT)
        return False
    finally:
        dialect.do_release_savepoint(connection, _SAVEPOINT)
    return True
