"""Which rows does an upsert insert, and which does it update?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from functools import partial
from typing import Any

from sqlalchemy import (
    Column,
    ColumnClause,
    ColumnElement,
    CompoundSelect,
    Connection,
    CursorResult,
    Label,
    Select,
    TextClause,
    cast,
    literal_column,
    select,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate

from sqlaudit.recording.bulk.insert_values import inserted_values, keys_of_rows
from sqlaudit.recording.bulk.keys import KnownKeys
from sqlaudit.recording.bulk.parsing import DATABASE_ONLY, are_known
from sqlaudit.recording.bulk.returning import Rows, made_by_database, returned_keys, returning_keys, returns_keys
from sqlaudit.recording.bulk.writes import KeysOf, Write
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, raw_columns, read_keys
from sqlaudit.sql.lists import one_of
from sqlaudit.tracking.catalogue import are_volatile, can_lock_many
from sqlaudit.tracking.foreign_keys import FollowedTable, Source, referred_columns
from sqlaudit.tracking.schema import candidate_keys
from sqlaudit.tracking.tables import TrackedTable


def prepare_followed_upsert(write: Write, source: FollowedTable) -> Any:
    """Lock the rows of an untracked table that an INSERT may change, since tracked rows follow them."""
    parsed, changed = write.parsed, _columns_changed(write, source)
    if referred_columns((source,)).isdisjoint(changed):
        return parsed.statement
    write.may_change_keys = not changed.isdisjoint(source.key)
    rows = inserted_values(write, source.live.c)
    unique = list(candidate_keys(source.live))
    if (parsed.conflict_clause is not None and write.may_change_keys) or _may_be_found_by_default(unique, rows):
        _report_unfindable(source)
    _find_present(write, source, unique, rows, changed)
    return parsed.statement


def _report_unfindable(source: Source) -> None:
    report_unrecorded(
        f"An INSERT may conflict with rows of {source.live.fullname!r} by a value that the database generates, so "
        "history may not show what happens to these rows. Give all unique values, or update() or delete() the rows "
        "first.",
        source.live,
    )


def prepare_upsert(write: Write, tracked: TrackedTable) -> Any:
    """Prepare an INSERT that may change, replace or ignore existing rows: lock these, and make all keys known."""
    parsed, key, changed = write.parsed, tracked.key, _columns_changed(write, tracked)
    write.may_update, write.may_change_keys = True, not changed.isdisjoint(key)
    rows = inserted_values(write, tracked.live.c)
    unique = list(candidate_keys(tracked.live))
    present = _find_present(write, tracked, unique, rows, changed)
    has_conflict_clause = parsed.conflict_clause is not None
    traits = TRAITS[write.connection.dialect.name]
    is_new = len(unique) == 1 and not _is_found_otherwise(tracked, unique, rows)  # only its number is unique
    is_one_made = (
        (not has_conflict_clause or is_new) and len(rows or ()) == 1 and bool(made_by_database(tracked, rows or ()))
    )
    if is_one_made and returns_keys(write, tracked, rows):
        write.keys_of = lambda result: returned_keys(result, tracked) if result.rowcount else []
        return parsed.statement
    if has_conflict_clause and len(parsed.parameters) == 1 and write.connection.dialect.insert_returning:
        # PostgreSQL returns the keys as it stores them, and the role sees all rows that it updates.
        is_exact = traits.has_exact_conflicts and changed and rows is not None and not made_by_database(tracked, rows)
        if is_exact or _is_found_otherwise(tracked, unique, rows):
            return returning_keys(write, tracked, rows, changed)
    if is_reported := bool(changed) and _may_be_found_by_default(unique, rows):
        _report_unfindable(tracked)
    stays = (
        [key] if key and not (write.may_change_keys and has_conflict_clause) else []
    )  # a replaced row gets the given key
    if not write.may_change_keys:
        stays += [columns for columns in unique if set(columns) != set(key) and changed.isdisjoint(columns)]
    keys_by_columns = {tuple(columns): keys_of_rows(rows or (), columns) for columns in (*stays, *unique)}
    known = {columns: values for columns, values in keys_by_columns.items() if are_known(values)}
    staying = {columns: values for columns, values in known.items() if columns in map(tuple, stays)}
    if rows is None or not staying:
        return returning_keys(write, tracked, rows, changed)
    write.keys_of = _looking_for_rows(
        write,
        tracked,
        staying,
        known
        if changed and not has_conflict_clause
        else staying,  # a row may be replaced by a later one with its values
        present,
        changed=changed,
        is_reported=is_reported,
    )
    return parsed.statement


def _looking_for_rows(
    write: Write,
    tracked: TrackedTable,
    staying: Mapping[Any, Sequence[Key]],
    kept: Mapping[Any, Sequence[Key]],
    present: Mapping[Any, Set[Key]],
    *,
    changed: Set[Any],
    is_reported: bool,
) -> KeysOf:
    """Return a function that finds the rows that an upsert has inserted or updated, and notes if one is missing.

    An inserted row has all given values. An updated row may have only one of them, and another transaction may have
    inserted it in the meantime.

    :param staying: given values that the upsert does not change, by unique columns
    :param kept: given values by unique columns; at least one of them finds each given row
    :param present: the keys of the rows that existed before, by unique columns
    :param is_reported: True if sqlaudit has already warned that the upsert may find other rows
    """
    find = partial(_find_keys_by, write.connection, tracked.key, lock=_may_lock(write.connection, tracked, changed))
    values_by_column = next(iter(staying.values()))

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        keys_found = find(staying)
        keys = dict.fromkeys(key for keys in keys_found for key in keys)
        if any(len(keys) >= len(values_by_column) for keys in keys_found) or not (
            missing := _not_found(find, kept, range(len(values_by_column)))
        ):
            return list(keys)
        otherwise = {key for columns, keys in present.items() if columns not in staying for key in keys}
        inserted = keys.keys() - set().union(*present.values())
        is_left = not changed and 0 <= result.rowcount <= len(inserted)  # IGNORE also skips rows for other reasons
        if len(missing) > len(otherwise) and not (is_left or is_reported):
            write.missing_key = values_by_column[missing[0]]
        return list(keys)

    return keys_of


def _is_found_otherwise(source: Source, unique: Sequence[Sequence[Any]], rows: Rows) -> bool:
    """Return whether an upsert may conflict by a value that the database makes, or computes for an index."""
    indexed = (expression for index in source.live.indexes if index.unique for expression in index.expressions)
    if not all(isinstance(expression, Column) for expression in indexed):
        return True
    unique_values = [keys_of_rows(rows or (), columns) for columns in unique]
    is_numbered = bool(source.live.primary_key) and all(
        value is DATABASE_ONLY for key in unique_values[0] for value in key
    )
    return not all(map(are_known, unique_values[is_numbered:]))


def _may_be_found_by_default(unique: Sequence[Sequence[Any]], rows: Rows) -> bool:
    """Return whether an upsert may conflict by the default of a unique column outside the primary key."""
    columns = {column for columns in unique for column in columns if not column.primary_key}
    usual = [column for column in columns if column.default is not None or column.server_default is not None]
    return any(column.key not in row for row in rows or () for column in usual)


def _find_keys_by(
    connection: Connection, key: Sequence[Any], known: Mapping[Any, Sequence[Key]], *, lock: bool
) -> list[list[Key]]:
    """Return, for each set of unique columns, the keys of the rows that have the values."""
    return [_keys_where(connection, key, columns, values, lock=lock) for columns, values in known.items()]


def _not_found(
    find: Callable[[Mapping[Any, Sequence[Key]]], list[list[Key]]],
    known: Mapping[Any, Sequence[Key]],
    places: Sequence[int],
) -> list[int]:
    """Return the places of the given rows that no unique value finds, by bisection."""
    keys_found = find({columns: [values[place] for place in places] for columns, values in known.items()})
    if any(len(keys) >= len(places) for keys in keys_found):
        return []
    if len(places) == 1:
        return list(places)
    half = len(places) // 2
    return [*_not_found(find, known, places[:half]), *_not_found(find, known, places[half:])]


def _may_lock(connection: Connection, source: Source, changed: Collection[Any]) -> bool:
    """Return whether to lock the existing rows: if the INSERT leaves them, the role may lack the privilege.

    MariaDB and MySQL would not find all of them without a lock.
    """
    if not changed:
        return TRAITS[connection.dialect.name].reads_snapshots
    return can_lock_many(connection, source)


def _keys_where(
    connection: Connection, key: Sequence[Any], columns: Sequence[Any], values: Sequence[Key], *, lock: bool
) -> list[Key]:
    """Return the keys of the rows whose columns have one of the values."""
    chosen = _select_keys(connection, key, lock=lock)
    results = (read_keys(connection, chosen.where(one_of(columns, chunk))) for chunk in chunks(values))
    return [row_key for keys in results for row_key in keys]


def _select_keys(connection: Connection, key: Sequence[Any], *, lock: bool) -> Select[Any]:
    chosen = select(*raw_columns(key, connection.dialect)).order_by(*key)
    return chosen.with_for_update() if lock else chosen


def _columns_changed(write: Write, source: Source) -> set[Any]:
    """Return the columns that an INSERT changes in existing rows: all columns if it replaces the rows."""
    if "REPLACE" in write.parsed.conflict_clauses(write.connection.dialect):
        return set(source.live.c)
    conflict_clause = write.parsed.conflict_clause
    values = dict(
        getattr(conflict_clause, "update_values_to_set", None) or getattr(conflict_clause, "update", None) or ()
    )
    columns = {column.key: column for column in source.live.c}
    pairs = ((columns.get(name if isinstance(name, str) else name.key), value) for name, value in values.items())
    return {column for column, value in pairs if not _is_itself(value, column)}


def _is_itself(value: Any, column: Any) -> bool:
    """Return whether a column keeps its value: ``LAST_INSERT_ID(id)`` only sets MariaDB's ``lastrowid``."""
    is_last_insert_id = isinstance(value, FunctionElement) and getattr(value, "name", "").lower() == "last_insert_id"
    return is_last_insert_id and list(value.clauses) == [column]


def _may_differ(connection: Connection, statement: Any) -> bool:
    """Return whether a select may find other values when it is executed again, or has side effects: ``nextval()``."""
    parts = list(iterate(statement))
    names = [getattr(element, "name", None) for element in parts if isinstance(element, FunctionElement)]
    if None in names or any(isinstance(element, TextClause) and "(" in element.text for element in parts):
        return True
    return bool(names) and are_volatile(connection, {str(name).lower() for name in names})


def _with_column_names(statement: Any) -> Any:
    """Return a select whose columns all have names of their own: text() and literal_column() have none."""
    if isinstance(statement, CompoundSelect):
        statement = statement._generate()
        statement.selects = [_with_column_names(statement.selects[0]), *statement.selects[1:]]
    elif isinstance(statement, Select):
        renamed, names = dict[int, Any](), set[str]()
        for place, column in enumerate(statement._raw_columns):
            if isinstance(column, TextClause) and not column._bindparams:
                renamed[place] = literal_column(column.text)
            elif isinstance(column, ColumnClause) and column.is_literal:
                renamed[place] = column
            elif isinstance(column, Label) and column.name in names:
                renamed[place] = column.element
            elif isinstance(column, Label):
                names.add(column.name)
        if renamed:
            columns: list[Any] = list(statement._raw_columns)
            for place, column in renamed.items():
                columns[place] = column.label(f"sqlaudit_{place}")
            statement = statement.with_only_columns(*columns, maintain_column_froms=True)
    return statement


def _typed(value: ColumnElement[Any], column: Any, connection: Connection) -> ColumnElement[Any]:
    """Return a value of a subquery in the type of a column: PostgreSQL takes one without a type for a text."""
    is_cast = TRAITS[connection.dialect.name].compares_same_types_only and not column.type._isnull
    return cast(value, column.type) if is_cast else value


def _find_present(
    write: Write,
    source: Source,
    unique: Sequence[Sequence[Any]],
    rows: Rows,
    changed: set[Any],
) -> dict[Sequence[Any], set[Key]]:
    """Find the existing rows that an INSERT may conflict with, and write baselines of those without history.

    :param changed: the columns that it changes in them
    :return: their keys, by unique columns
    """
    connection, key, statement = write.connection, source.key, write.parsed.statement
    lock = _may_lock(connection, source, changed)
    keys_found: dict[Sequence[Any], set[Key]] = {}
    if rows is None and _may_differ(connection, statement.select):
        if changed:
            _report_unfindable(source)
        return keys_found
    names = write.parsed.select_names
    selected = [] if rows is not None else list(_with_column_names(statement.select).subquery().c)
    if len(selected) < len(names):  # text() hides what it selects
        if changed:
            _report_unfindable(source)
        return keys_found
    for columns in unique:
        if rows is not None:
            known_values = [values for values in keys_of_rows(rows, columns) if are_known([values])]
            keys_found[columns] = set(_keys_where(connection, key, columns, known_values, lock=lock))
            continue
        if {column.key for column in columns} <= set(names):
            values = select(*(_typed(selected[names.index(column.key)], column, connection) for column in columns))
            chosen = _select_keys(connection, key, lock=lock).where(one_of(columns, values))
            keys_found[columns] = set(read_keys(connection, chosen))
    keys = dict.fromkeys(key for keys in keys_found.values() for key in keys)
    write.prepare_rows(
        KnownKeys(connection, ((*key, False) for key in keys)), changed=None if write.may_change_keys else changed
    )
    return keys_found
