"""Which keys do the rows of an INSERT have?"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    CursorResult,
    cast,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import REGCLASS

from sqlaudit.recording.bulk.insert_values import inserted_values, keys_of_rows
from sqlaudit.recording.bulk.parsing import Parameters, are_known
from sqlaudit.recording.bulk.returning import (
    asks_for_keys,
    has_last_number,
    number_to_give,
    returned_keys,
    returning_defaults,
    returning_keys,
    returns_keys,
)
from sqlaudit.recording.bulk.upserts import prepare_upsert
from sqlaudit.recording.bulk.writes import Write
from sqlaudit.sql.batches import CHUNK, KeyCollection, SelectedKeys
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.catalogue import sequence_of
from sqlaudit.tracking.tables import TrackedTable


def prepare_insert(write: Write, tracked: TrackedTable) -> Any:
    """Return an INSERT in a form that makes the keys of its rows known."""
    parsed, dialect = write.parsed, write.connection.dialect
    if parsed.conflict_clause is not None or parsed.conflict_clauses(dialect):
        return prepare_upsert(write, tracked)
    rows = inserted_values(write, tracked.key)
    if rows is not None and tracked.key and are_known(keys_of_rows(rows[:1], tracked.key)):
        known_keys = keys_of_rows(rows, tracked.key)
        if are_known(known_keys):
            write.keys_of = lambda result: known_keys
            return parsed.statement
    if returns_keys(write, tracked, rows):
        write.keys_of = lambda result: returned_keys(result, tracked)
        return parsed.statement
    is_numbered = TRAITS[dialect.name].counts_without_returning and has_last_number(write, tracked.live, many=False)
    if asks_for_keys(parsed, rows) and not is_numbered:
        return returning_defaults(write, tracked, rows)
    number, parameters = number_to_give(write, tracked, rows), parsed.parameters
    if number is not None and tracked.key == (number,) and len(parameters) > 1 and not parsed.returns_rows:
        if dialect.name == "sqlite" and _take_consecutive_keys(write, number, parameters):
            return parsed.statement
        is_drawn = dialect.name == "postgresql" and parsed.inserts_one_each
        if is_drawn and _take_keys_from_sequence(write, number, parameters):
            return parsed.statement
    return returning_keys(write, tracked, rows)


def _take_consecutive_keys(write: Write, key: Column[Any], parameters: Parameters) -> bool:
    """Return whether SQLite gives the rows of an executemany numbers above the last one, by which they are found.

    RETURNING would give the keys, too, but take twice as long as the INSERT.
    """
    connection = write.connection
    if connection._is_autocommit_isolation():  # another connection may insert in between
        return False
    last = connection.execute(select(func.coalesce(func.max(key), -1 << 63))).scalar_one()

    def keys_of(result: CursorResult[Any]) -> KeyCollection[Key]:
        if len(parameters) <= CHUNK:
            return list(zip(connection.scalars(select(key).where(key > last)), strict=True))
        return _keys_between(connection, key, last + 1, connection.scalar(select(func.max(key))))

    write.keys_of = keys_of
    return bool(last < (1 << 63) - 1)  # after the last number, SQLite chooses at random


def _take_keys_from_sequence(write: Write, key: Column[Any], parameters: Parameters) -> bool:
    """Give the rows of an executemany keys from PostgreSQL's sequence; return whether there is a usable sequence.

    RETURNING, for which SQLAlchemy puts the rows into few long statements, takes several times as long as the INSERT.
    """
    connection = write.connection
    sequence = connection.scalar(sequence_of(key, connection))
    if sequence is None:
        return False
    numbers = func.generate_series(1, len(parameters)).table_valued("number")
    drawn = connection.scalars(select(func.nextval(cast(sequence, REGCLASS))).select_from(numbers)).all()
    write.parameters = [{**execution, key.key: number} for execution, number in zip(parameters, drawn, strict=True)]

    def keys_of(result: CursorResult[Any]) -> KeyCollection[Key]:
        for execution in result.context.compiled_parameters:  # last_inserted_params() shows them
            execution.pop(key.key, None)
        first, last = drawn[0], drawn[-1]
        if len(drawn) > CHUNK and drawn == list(range(first, first + len(drawn))):
            return _keys_between(connection, key, first, last)
        return list(zip(drawn, strict=True))

    write.keys_of = keys_of
    return True


def _keys_between(connection: Connection, key: Column[Any], first: int, last: int | None) -> SelectedKeys:
    """Return the keys of all rows from the first to the last number; no keys if there is no last one."""
    number = key.table.alias().c[key.key]
    return SelectedKeys(connection, select(number).where(number.between(first, last)))
