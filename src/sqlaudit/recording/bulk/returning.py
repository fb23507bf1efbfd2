"""How does an INSERT return the keys of its rows, while its caller gets only what it asked for?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from typing import Any
from typing import cast as cast_type

from sqlalchemy import (
    Column,
    CursorResult,
    Integer,
    SelectBase,
    TextClause,
    select,
)
from sqlalchemy.engine.cursor import _NO_CURSOR_DML
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.schema import ColumnElementColumnDefault
from sqlalchemy.sql.visitors import iterate

from sqlaudit.recording.bulk.parsing import (
    DATABASE_ONLY,
    ParsedWrite,
    executed_row_by_row,
    with_returning,
    with_supplemental_returning,
)
from sqlaudit.recording.bulk.writes import Write, rewind_result
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.keys import Key, RawKey, raw_columns, raw_values_differ
from sqlaudit.sql.lists import one_of
from sqlaudit.tracking.catalogue import refuses_returning
from sqlaudit.tracking.tables import TrackedTable

Rows = Sequence[Mapping[str, Any]] | None
"""The values that an INSERT gives to each row, by column key; ``None`` for INSERT … SELECT."""


def asks_for_keys(parsed: ParsedWrite, rows: Rows) -> bool:
    """Return whether SQLAlchemy asks for the primary keys of an INSERT's rows, as far as it expects the database's."""
    if parsed.returns_defaults:
        return rows is not None
    is_one = rows is not None and len(rows) == 1
    return is_one and not (parsed.returns_rows or parsed.has_several_rows or parsed.is_inline)


def returns_keys(write: Write, tracked: TrackedTable, rows: Rows) -> bool:
    """Return whether the result of an INSERT has the keys of its rows without further columns."""
    parsed = write.parsed
    if rows is None or parsed.has_several_rows or not set(tracked.key) <= set(tracked.live.primary_key):
        return False
    made = made_by_database(tracked, rows)
    if not made:
        return parsed.returns_defaults or not parsed.returns_rows
    if parsed.is_inline or not asks_for_keys(parsed, rows):
        return False
    if raw_values_differ(made, write.connection.dialect):
        return False  # the program's types would convert them
    if len(rows) > 1 and len(tracked.key) > 1 and not parsed.is_sorted:
        return False  # the parts of a key may come from different rows
    number = tracked.live.autoincrement_column
    if number is not None and number.default is not None and write.connection.dialect.name in MYSQL:
        number = None  # lastrowid is not the number of a sequence
    return all(
        is_expected(write, column, len(rows) > 1) and (column is number or not any(column.key in row for row in rows))
        for column in made
    )


def made_by_database(tracked: TrackedTable, rows: Iterable[Mapping[str, Any]]) -> list[Column[Any]]:
    """Return the columns of the key whose values come from the database."""
    return [column for column in tracked.key if not all(_is_in_python(column, row) for row in rows)]


def is_expected(write: Write, column: Column[Any], many: bool) -> bool:
    """Return whether SQLAlchemy asks for the value that the database gives to a column of the key."""
    live, dialect = column.table, write.connection.dialect
    number = live.autoincrement_column
    if has_last_number(write, live, many=many):
        return column is number or column.default is not None
    is_returned = live.implicit_returning and (
        dialect.insert_executemany_returning if many else dialect.insert_returning
    )
    return is_returned and (column is number or column.default is not None or column.server_default is not None)


def has_last_number(write: Write, live: Any, *, many: bool) -> bool:
    """Return whether SQLAlchemy takes the key of an INSERT from the ``lastrowid`` of the cursor."""
    dialect = cast_type("DefaultDialect", write.connection.dialect)
    can = dialect.postfetch_lastrowid and not dialect.favor_returning_over_lastrowid
    return can and live.autoincrement_column is not None and not many and not write.parsed.returns_defaults


def _is_in_python(column: Column[Any], row: Mapping[str, Any]) -> bool:
    """Return whether a column's value is given in Python, by the row or by a default."""
    default = column.default
    is_default = default is not None and (default.is_callable or default.is_scalar)
    return row[column.key] is not DATABASE_ONLY if column.key in row else is_default


def number_to_give(write: Write, tracked: TrackedTable, rows: Rows) -> Column[Any] | None:
    """Return the column of the key in which the database numbers all rows of an INSERT, or ``None``."""
    number = tracked.live.autoincrement_column
    if number is None or number not in tracked.key or not isinstance(number.type, Integer):
        return None
    names: Sequence[Collection[str]] = [write.parsed.select_names] if rows is None else rows
    return None if number.default is not None or any(number.key in row_names for row_names in names) else number


def returned_keys(result: CursorResult[Any], tracked: TrackedTable) -> list[Key]:
    places = [list(tracked.live.primary_key).index(column) for column in tracked.key]
    returned_rows: Sequence[Any] = result.inserted_primary_key_rows
    return [tuple([row[place] for place in places]) for row in returned_rows]


def _counting(
    write: Write, tracked: TrackedTable, rows: Rows, changed: Set[Any]
) -> Callable[[CursorResult[Any], Sequence[Key]], None]:
    """Return a function that gives a MariaDB result the rowcount and ``lastrowid`` that it has without RETURNING.

    :param changed: the columns that the INSERT changes in existing rows; a row that differs then counts twice
    """
    connection, key = write.connection, tracked.key
    number = number_to_give(write, tracked, rows)
    is_key = asks_for_keys(write.parsed, rows) and has_last_number(write, tracked.live, many=False)
    read = raw_columns([*key, *changed], connection.dialect)

    def values_of(keys: Iterable[Key]) -> dict[Key, tuple[Any, ...]]:
        results = (
            connection.execute(select(*read).where(one_of(read[: len(key)], chunk)).with_for_update())
            for chunk in chunks(list(keys))
        )
        return {RawKey(row[: len(key)]): tuple(row[len(key) :]) for rows in results for row in rows}

    before = values_of(row_key for _, keys in write.captures for row_key in keys) if changed else {}

    def count(result: CursorResult[Any], keys: Sequence[Key]) -> None:
        context: Any = result.context
        after = values_of(before) if before else {}
        new = dict.fromkeys(row_key for row_key in keys if row_key not in before)
        if changed:
            moved = len(before.keys() - after.keys())
            differing = sum(before[row_key] != after[row_key] for row_key in before.keys() & after.keys())
            context._rowcount = len(keys) + moved + differing
        place = None if number is None else key.index(number)
        last = (
            0
            if place is None
            else min((row_key[place] for row_key in new or (() if rows is None else keys)), default=0)
        )
        context.get_lastrowid = lambda: last
        if is_key:
            context.inserted_primary_key_rows = context._setup_ins_pk_from_lastrowid()

    return count


def _return_nothing(result: CursorResult[Any]) -> None:
    """Turn a result into one of a statement that returns no rows."""
    result._metadata = result._no_result_metadata
    result.cursor_strategy = _NO_CURSOR_DML
    result._reset_memoizations()


def _can_return(write: Write, tracked: TrackedTable) -> bool:
    """Return whether the keys of inserted rows can be returned; report it if not."""
    dialect = write.connection.dialect
    if refuses_returning(write.connection, tracked):
        report_unrecorded(
            f"A rule of the table {tracked.live.fullname!r} keeps PostgreSQL from returning the keys of inserted "
            "rows, so sqlaudit cannot record them. Give their keys, or call record_changes() afterwards.",
            tracked.live,
        )
        return False
    if not write.parsed.inserts_one_each:
        report_unrecorded(
            f"An executemany of an INSERT of several rows into {tracked.live.fullname!r} returns no keys, so sqlaudit "
            "cannot record the rows. Execute the INSERT once for each parameter set.",
            tracked.live,
        )
        return False
    if dialect.insert_executemany_returning if len(write.parameters) > 1 else dialect.insert_returning:
        return True
    report_unrecorded(
        f"The keys of the rows inserted into {tracked.live.fullname!r} are not given, and the database cannot return "
        "them, so sqlaudit cannot record the rows. Give their keys, or add objects to a session.",
        tracked.live,
    )
    return False


def returning_defaults(write: Write, tracked: TrackedTable, rows: Rows) -> Any:
    """Return an INSERT, whose keys SQLAlchemy asks for, that also returns the keys that SQLAlchemy does not expect."""
    parsed = write.parsed
    if not _can_return(write, tracked):
        return parsed.statement
    made, many = made_by_database(tracked, rows or ()), len(write.parameters) > 1
    is_asked, columns = parsed.returns_more, _raw_key(write, tracked)
    returned = parsed.returns_defaults or any(
        is_expected(write, column, many) or any(column.key in row for row in rows or ()) for column in made
    )

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        returned_rows, rowcount, width = result.returned_defaults_rows or (), result.context.rowcount, len(columns)
        if not is_asked:
            result.context._rowcount = rowcount = len(returned_rows)
            result.all()
        if returned or is_asked:
            result._metadata = _without_last(result._metadata, width)
            own = [tuple(row[:-width]) for row in returned_rows]
            rewind_result(result, own, rowcount)
            result.context.returned_default_rows = result.all()
            if is_asked:
                rewind_result(result, own, rowcount)
        else:
            _return_nothing(result)
        return [RawKey(row[-width:]) for row in returned_rows]

    write.keys_of = keys_of
    return with_supplemental_returning(_executed_row_by_row(write, tracked), columns)


def returning_keys(write: Write, tracked: TrackedTable, rows: Rows, changed: Set[Any] = frozenset()) -> Any:
    """Return an INSERT that also returns the keys of its rows; its result hides these columns.

    :param changed: the columns that the INSERT changes in existing rows
    """
    parsed = write.parsed
    if parsed.returns_defaults and parsed.statement.select is None:  # else SQLAlchemy returns none
        return returning_defaults(write, tracked, None)
    if not _can_return(write, tracked):
        return parsed.statement
    returns_rows, width = parsed.returns_rows, len(tracked.key)
    is_counted = not TRAITS[write.connection.dialect.name].counts_without_returning
    count = None if is_counted else _counting(write, tracked, rows, changed)

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        rowcount = result.context.rowcount
        read = [tuple(row) for row in result.all()]
        keys: list[Key] = [RawKey(row[-width:]) for row in read]
        if returns_rows:
            result._metadata = _without_last(result._metadata, width)
            rewind_result(result, [row[:-width] for row in read], rowcount)
        else:
            result.context._rowcount = len(read)
            result.context._is_explicit_returning = False
            _return_nothing(result)
            if count is not None:
                count(result, keys)
        return keys

    write.keys_of = keys_of
    return with_returning(_executed_row_by_row(write, tracked), _raw_key(write, tracked))


def _executed_row_by_row(write: Write, tracked: TrackedTable) -> Any:
    """Return an INSERT each execution of which sees the rows of the executions before it, if it selects any.

    With RETURNING, SQLAlchemy puts the rows of many executions into one statement.
    """
    parsed = write.parsed
    if len(write.parameters) == 1 or parsed.returns_rows or parsed.returns_defaults:
        return parsed.statement
    (named,) = parsed.inserted_rows
    values = {parsed.column_named(name): value for name, value in named.items()}
    bound = {parsed.column_of_parameter(name) for name in write.parameters[0]}
    usual = [
        column.default.arg
        for column in tracked.live.c
        if isinstance(column.default, ColumnElementColumnDefault) and column not in values.keys() | bound
    ]
    parts = (part for value in (*values.values(), *usual) for part in iterate(value))
    if any(isinstance(part, (SelectBase, TextClause)) for part in parts):
        return executed_row_by_row(parsed.statement)
    return parsed.statement


def _raw_key(write: Write, tracked: TrackedTable) -> list[Any]:
    read = raw_columns(tracked.key, write.connection.dialect)
    return [column.label(f"sqlaudit_key_{place}") for place, column in enumerate(read)]


def _without_last(metadata: Any, count: int) -> Any:
    """Return the metadata of a result without its last columns."""
    keys = list(metadata.keys)[:-count]
    return metadata._make_new_metadata(
        unpickled=False,
        processors=[None] * len(keys),
        keys=keys,
        keymap={key: entry for key, entry in metadata._keymap.items() if entry[0] is None or entry[0] < len(keys)},
        tuplefilter=None,
        translated_indexes=None,
        safe_for_cache=False,
        keymap_by_result_column_idx=None,
    )
