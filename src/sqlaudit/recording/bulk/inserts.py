"""Which keys have the rows that an INSERT makes?"""

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

from sqlaudit.recording.bulk.given import columns_of, rows_given
from sqlaudit.recording.bulk.parsing import Parameters, are_known, conflict_words
from sqlaudit.recording.bulk.returning import (
    asks_for_keys,
    has_last_number,
    keys_told,
    number_to_give,
    returning_defaults,
    returning_keys,
    tells_keys,
)
from sqlaudit.recording.bulk.upserts import prepare_upsert
from sqlaudit.recording.bulk.writes import Write
from sqlaudit.sql.batches import CHUNK, Portionable, SelectedKeys
from sqlaudit.sql.keys import MYSQL, Key
from sqlaudit.tracking.catalogue import sequence_of
from sqlaudit.tracking.tables import TrackedTable


def prepare_insert(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """See to it that the keys of the rows that an INSERT makes will be known, and return it so."""
    if clause._post_values_clause is not None or conflict_words(clause, tracked, write.connection.dialect):
        return prepare_upsert(write, clause, tracked, parameters)
    rows = rows_given(write, clause, tracked, tracked.key)
    if rows is not None and tracked.key and are_known(columns_of(rows[:1], tracked.key)):
        given = columns_of(rows, tracked.key)
        if are_known(given):
            write.keys_of = lambda result: given
            return clause
    if tells_keys(write, clause, tracked, rows):
        write.keys_of = lambda result: keys_told(result, tracked)
        return clause
    is_numbered = write.connection.dialect.name in MYSQL and has_last_number(write, clause, tracked.live, many=False)
    if asks_for_keys(clause, rows) and not is_numbered:
        return returning_defaults(write, clause, tracked, rows)
    number, dialect = number_to_give(tracked, clause, rows), write.connection.dialect.name
    if number is not None and tracked.key == (number,) and len(parameters) > 1 and not clause._returning:
        if dialect == "sqlite" and _is_numbered(write, number, parameters):
            return clause
        if dialect == "postgresql" and _is_drawn(write, number, parameters):
            return clause
    return returning_keys(write, clause, tracked, rows)


def _is_numbered(write: Write, key: Column[Any], parameters: Parameters) -> bool:
    """Tell whether SQLite numbers the rows that many executions insert: each is new whose number is above the last.

    RETURNING would tell as much, but take twice as long as the INSERT.
    """
    connection = write.connection
    if connection._is_autocommit_isolation():  # others may insert meanwhile
        return False
    last = connection.execute(select(func.coalesce(func.max(key), -1 << 63))).scalar_one()

    def keys_of(result: CursorResult[Any]) -> Portionable[Key]:
        if len(parameters) <= CHUNK:
            return list(zip(connection.scalars(select(key).where(key > last)), strict=True))
        return _between(connection, key, last + 1, connection.scalar(select(func.max(key))))

    write.keys_of = keys_of
    return bool(last < (1 << 63) - 1)  # after which the numbers are chosen at random


def _is_drawn(write: Write, key: Column[Any], parameters: Parameters) -> bool:
    """Draw the keys of what many executions insert from PostgreSQL's sequence, if there is one, and give them.

    RETURNING would take several times as long as the INSERT, whose rows it puts into few long statements.
    """
    connection = write.connection
    sequence = connection.scalar(sequence_of(key, connection))
    if sequence is None:
        return False
    numbers = func.generate_series(1, len(parameters)).table_valued("number")
    drawn = connection.scalars(select(func.nextval(cast(sequence, REGCLASS))).select_from(numbers)).all()
    write.parameters = [{**each, key.key: number} for each, number in zip(parameters, drawn, strict=True)]

    def keys_of(result: CursorResult[Any]) -> Portionable[Key]:
        for each in result.context.compiled_parameters:  # which last_inserted_params() tells
            each.pop(key.key, None)
        first, last = drawn[0], drawn[-1]
        if len(drawn) > CHUNK and drawn == list(range(first, first + len(drawn))):
            return _between(connection, key, first, last)
        return list(zip(drawn, strict=True))

    write.keys_of = keys_of
    return True


def _between(connection: Connection, key: Column[Any], first: int, last: int | None) -> SelectedKeys:
    """Return the keys of the rows from one number to another, all of which are meant; of none, if that is ``None``."""
    number = key.table.alias().c[key.key]
    return SelectedKeys(connection, select(number).where(number.between(first, last)))
