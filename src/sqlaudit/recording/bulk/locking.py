"""Which rows is an UPDATE or DELETE about to write? sqlaudit locks these rows and confines the statement to them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from sqlalchemy import (
    CHAR,
    Alias,
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    ForeignKeyConstraint,
    GenerativeSelect,
    Select,
    String,
    TextClause,
    Update,
    case,
    false,
    literal_column,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate

from sqlaudit.exceptions import CaptureError
from sqlaudit.recording.bulk.keys import MANY, Keys, KnownKeys, StoredKeys, among, can_store_keys, place_of, store_keys
from sqlaudit.recording.bulk.parsing import (
    Parameters,
    are_known,
    as_core,
    bound_value,
    conflict_clauses,
    conjuncts,
    criteria_options,
    elements,
    is_bound_alike,
    keys_in_criterion,
    limit_of,
    values_set,
)
from sqlaudit.recording.bulk.writes import Write
from sqlaudit.recording.cascades import lock_rows
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.recording.statements import has_open_version
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.keys import MYSQL, Key, RawKey, bound, one_of, raw_columns
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.foreign_keys import Source, followers_of
from sqlaudit.tracking.rights import lockable_tables
from sqlaudit.tracking.schema import candidate_keys
from sqlaudit.tracking.tables import TrackedTable

_STATE_OF_MYSQL: Final[Any] = select(
    literal_column("@@warning_count"), literal_column("@@sql_mode"), literal_column("@@sql_safe_updates")
).execution_options(**INTERNAL)


def prepare_change(write: Write, clause: Any, source: Source, parameters: Parameters) -> Any:
    """Lock the rows that an UPDATE or DELETE is about to write, and return the statement confined to them."""
    written = clause.table
    key = [written.c[column.key] for column in source.key] if isinstance(written, Alias) else list(source.key)
    values = {} if isinstance(clause, Delete) else values_set(clause, source, parameters)
    if values:
        write.conflict_clauses = conflict_clauses(clause, source, write.connection.dialect)
    if "REPLACE" in write.conflict_clauses:
        _expect_replaced(write, clause, source, key, values, parameters)
    if not values.keys().isdisjoint(source.key):
        new_key = [values.get(column, key_column) for column, key_column in zip(source.key, key, strict=True)]
        moved = _lock_rows_with_new_keys(write, clause, key, new_key, parameters)
        return clause if moved is None else _confined(write, clause, key, moved, values, parameters)
    if (isinstance(clause, Delete) or not clause._where_criteria) and not lockable_tables(
        write.connection, [source.live]
    ):
        return _note_unlockable_rows(write, clause, key, values, parameters)
    given_keys = keys_in_criterion(clause, key, parameters)
    if given_keys is None and isinstance(clause, Delete) and write.connection.dialect.name in MYSQL:
        write.is_row_by_row = _changes_what_it_reads(clause, source)
    keys = (
        _lock_found(write, clause, source, key, parameters)
        if given_keys is None
        else _lock_given(write, source, given_keys)
    )
    if given_keys is None:
        _check_warnings(write, clause)
    write.prepare_rows(keys, changed=None if isinstance(clause, Delete) else values.keys())
    if write.is_row_by_row:
        return clause  # the actions decide which of these rows, and of those that refer to them, it deletes
    if given_keys is not None and len(keys) == len(set(given_keys)):
        return clause  # all its keys are locked, so no other row can match
    return _confined(write, clause, key, keys, values, parameters)


def _expect_replaced(
    write: Write,
    clause: Any,
    source: Source,
    key: Sequence[Any],
    values: Mapping[Any, Any],
    parameters: Parameters,
) -> None:
    """Find the rows that SQLite will delete because an UPDATE gives their unique values to other rows."""
    connection, columns_of = write.connection, dict(zip(source.live.c, clause.table.c, strict=True))
    for columns in candidate_keys(source.live):
        if not values.keys().isdisjoint(columns):
            new_values = [_typed_as(column, values.get(column, columns_of[column])) for column in columns]
            new = _select_rows(write, clause, new_values, key, lock=False).select_from(clause.table).correlate(None)
            statement = select(*raw_columns(source.key, connection.dialect)).where(one_of(columns, new))
            chosen = statement.options(*criteria_options(clause))
            keys = {RawKey(row): None for execution in parameters for row in connection.execute(chosen, execution)}
            write.prepare_rows(KnownKeys(connection, ((*key, False) for key in keys)), changed=None, is_replaced=True)


def _note_unlockable_rows(
    write: Write, clause: Any, key: Sequence[Any], values: Mapping[Any, Any], parameters: Parameters
) -> Any:
    """Note the rows that a statement is about to write and the role cannot lock; return the statement unchanged."""
    read = raw_columns(key, write.connection.dialect)
    chosen = _select_rows(write, clause, [*read, _is_recorded(write.root, key)], key, lock=False)
    rows = {tuple(row): None for execution in parameters for row in write.connection.execute(chosen, execution)}
    keys = KnownKeys(write.connection, rows)
    write.prepare_rows(keys, changed=None if isinstance(clause, Delete) else values.keys())
    write.selected_count = len(keys)
    return clause


def _lock_given(write: Write, source: Source, given_keys: Sequence[Key]) -> KnownKeys:
    """Lock the rows whose keys a statement gives."""
    connection = write.connection
    if len(given_keys) == 1 and isinstance(source, TrackedTable):
        parameters = {f"sqlaudit_key_{place}": value for place, value in enumerate(given_keys[0])}
        locking = _locking_one(write, source)
        return KnownKeys(connection, connection.execute(locking, parameters, execution_options=INTERNAL))
    criteria = (one_of(source.key, chunk) for chunk in chunks(given_keys))
    locked = (
        connection.execute(_locking(write, source).where(criterion), execution_options=INTERNAL)
        for criterion in criteria
    )
    return KnownKeys(connection, (row for rows in locked for row in rows))


def _locking(write: Write, source: Source) -> Select[Any]:
    """Return a select that locks rows, of their raw keys and of whether they have open versions."""
    read = raw_columns(source.key, write.connection.dialect)
    return select(*read, _is_recorded(write.root, source.key)).order_by(*source.key).with_for_update()


def _locking_one(write: Write, source: TrackedTable) -> Select[Any]:
    """Return the select that locks the row with a given key, built once."""
    kept = source.statements.setdefault(write.connection.dialect, {})
    if _locking_one not in kept:
        same = (column == bound(column, f"sqlaudit_key_{place}") for place, column in enumerate(source.key))
        kept[_locking_one] = _locking(write, source).where(*same)
    chosen: Select[Any] = kept[_locking_one]
    return chosen


def _lock_found(write: Write, clause: Any, source: Source, key: Sequence[Any], parameters: Parameters) -> Keys:
    """Lock the rows that a statement's criterion selects."""
    connection, is_recorded = write.connection, _is_recorded(write.root, key)
    read = raw_columns(key, connection.dialect)
    chosen = _select_rows(write, clause, [*read, is_recorded], key)
    has_key = set(source.key) == set(source.live.primary_key)
    if len(parameters) == 1 and has_key and can_store_keys(connection, returns=bool(clause._returning)):
        with connection.execute(chosen, parameters[0], execution_options={"stream_results": True}) as result:
            rows = result.fetchmany(MANY + 1)
        if len(rows) <= MANY:
            return KnownKeys(connection, rows)
        if connection.dialect.name not in MYSQL or (_is_repeatable(write, clause) and _locks_gaps(connection)):
            selected = [*key, case((is_recorded, 1), else_=0), place_of(write.root, key)]
            every = _select_rows(write, clause, selected, key, parameters=parameters[0])
            write.stored = store_keys(connection, every, key, source.live, may_repeat=not _reads_only_its_table(clause))
        if write.stored is not None:
            return write.stored
    return KnownKeys(connection, (row for execution in parameters for row in connection.execute(chosen, execution)))


def _lock_rows_with_new_keys(
    write: Write, clause: Any, key: Sequence[Any], new_key: Sequence[Any], parameters: Parameters
) -> KnownKeys | None:
    """Lock the rows whose keys an UPDATE changes, and note their new keys.

    :return: the old keys, and those that rows may have between two executions; ``None`` if these are unknown
    """
    connection, width = write.connection, len(key)
    values = [_typed_as(column, value) for value, column in zip(new_key, write.root.key, strict=True)]
    read, moved = raw_columns(key, connection.dialect), raw_columns(values, connection.dialect)
    chosen = _select_rows(write, clause, [*read, _is_recorded(write.root, key), *moved], key)
    rows = [tuple(row) for execution in parameters for row in connection.execute(chosen, execution)]
    _check_warnings(write, clause)
    write.new_keys = {RawKey(row[:width]): RawKey(row[width + 1 :]) for row in rows}
    meanwhile = _follow_key_changes(write, clause, key, new_key, parameters) if len(parameters) > 1 else ()
    write.prepare_rows(KnownKeys(connection, (row[: width + 1] for row in rows)), changed=None)
    if write.conflict_clauses and "REPLACE" not in write.conflict_clauses:
        there = (
            key
            for chunk in chunks(list(write.new_keys.values()))
            for key in lock_rows(connection, write.root.key, chunk)
        )
        write.prepare_rows(
            KnownKeys(connection, ((*key, False) for key in there)), changed=frozenset(), is_replaced=True
        )
    if meanwhile is None:
        return None
    return KnownKeys(connection, ((*key_between, True) for key_between in (*write.new_keys, *meanwhile)))


def _check_warnings(write: Write, clause: Any) -> None:
    """Note MariaDB's and MySQL's ``sql_safe_updates``, and check that the SELECT with a criterion gave no warnings.

    :raises CaptureError: it did, for ``'abc' = 7``, for instance, which may make an UPDATE fail
    """
    if write.connection.dialect.name not in MYSQL:
        return
    warnings, mode, write.is_safe = write.connection.execute(_STATE_OF_MYSQL).one()
    if warnings and "STRICT" in mode and isinstance(clause, Update):
        raise CaptureError(
            f"The criterion of an UPDATE of the table {write.root.live.fullname!r} makes the database warn, of a value "
            "that is compared with another type or of a division by zero, and may make the UPDATE fail; compare "
            "columns with values of their types.",
            write.root.live,
        )


def _typed_as(column: Any, value: Any) -> ColumnElement[Any]:
    """Return a new value of a column, read by the column's type and bound as the statement binds it."""
    if isinstance(value, BindParameter) and not value.type._isnull and not is_bound_alike(value, column):
        value = Grouping(value)
    return type_coerce(value, column.type)


def _is_recorded(source: Source, key: Sequence[Any]) -> ColumnElement[bool]:
    """Return the condition that a row needs no baseline."""
    return has_open_version(source, key) if isinstance(source, TrackedTable) else true()


def _confined(
    write: Write,
    clause: Any,
    key: Sequence[Any],
    keys: Keys,
    values: Mapping[Any, Any],
    parameters: Parameters,
) -> Any:
    """Return the statement confined to the rows that have been locked."""
    connection, written = write.connection, clause.table
    is_mysql = connection.dialect.name in MYSQL
    others_wait = connection.dialect.name == "sqlite" or (is_mysql and isinstance(keys, StoredKeys))
    if others_wait and _is_repeatable(write, clause):
        return clause
    if write.is_safe:
        write.selected_count = len(keys)
        return clause
    alone = _reads_only_its_table(clause)
    named = {source for value in values.values() for source in getattr(value, "_from_objects", ())}
    single = isinstance(clause, Update) and alone and named <= {written}  # else the hint lands behind another table
    if single and is_mysql and written.primary_key:
        # It scans a small table, and waits for locks of rows that it does not write.
        clause = clause.with_hint("FORCE INDEX (PRIMARY)", selectable=written)
    if len(parameters) > 1:
        return clause.where(among(connection.dialect, key, list(keys), for_executemany=True))
    among_keys = keys.among(key)
    write.confined_to = written, among_keys, len(write.new_keys) or len(keys)
    is_refused = not {getattr(column, "key", None) for column in values}.isdisjoint(_parameter_names(clause))
    # Run again, it may select other rows.
    if alone and not is_refused and not (is_mysql and _is_repeatable(write, clause)):
        clause = clause._generate()
        clause._where_criteria = ()
    return clause.where(among_keys)


def _changes_what_it_reads(clause: Any, source: Source) -> bool:
    """Return whether foreign key actions change what the criterion of a DELETE reads."""
    links, waiting = dict[ForeignKeyConstraint, None](), [source]
    while waiting:
        new = [(follower, link) for follower, link in followers_of((waiting.pop(),)) if link not in links]
        links.update((link, None) for _, link in new)
        waiting += [follower for follower, _ in new]
    changed, tables = {each.parent for link in links for each in link.elements}, {link.table for link in links}
    parts = [part for criterion in _criteria(clause) for part in elements(criterion)] if links else []
    if source.live in tables and any(isinstance(part, TextClause) for part in parts):
        return True
    columns = [column for part in parts if isinstance(part, ColumnElement) for column in part.base_columns]
    return any(
        column in changed or getattr(column, "table", source.live) in tables - {source.live} for column in columns
    )


def _parameter_names(clause: Any) -> set[str]:
    """Return the parameters' names in a criterion; SQLAlchemy refuses the names of columns that the statement sets."""
    parts = (part for criterion in clause._where_criteria for part in iterate(criterion))
    return {part.key for part in parts if isinstance(part, BindParameter)}


def _reads_only_its_table(clause: Any) -> bool:
    """Return whether the criterion of a statement reads only the table that the statement writes."""
    return all(set(criterion._from_objects) <= {clause.table} for criterion in _criteria(clause))


def _is_repeatable(write: Write, clause: Any) -> bool:
    """Return whether the criterion of a statement selects the same rows again if no other transaction writes."""
    is_limited = limit_of(clause, write.connection.dialect) is not None
    return _reads_only_its_table(clause) and not is_limited and not any(map(_may_differ, _criteria(clause)))


def _locks_gaps(connection: Connection) -> bool:
    """Return whether MariaDB and MySQL also lock gaps, so that nobody can add a row that a locking select finds."""
    return connection.get_isolation_level() in ("REPEATABLE READ", "SERIALIZABLE")


def _follow_key_changes(
    write: Write, clause: Any, key: Sequence[Any], new_key: Sequence[Any], parameters: Parameters
) -> Sequence[Key] | None:
    """Note the final keys of rows whose keys several executions may change, one after the other.

    :return: the keys that they have in between; ``None`` if these are unknown, so that the statement is not confined
    """
    read = raw_columns(key, write.connection.dialect)
    # Is each given key the same value as the raw key?
    is_plain = all(
        read_column is column or type(column.type) in (String, CHAR)
        for read_column, column in zip(read, key, strict=True)
    )
    old = keys_in_criterion(clause, key, parameters) if is_plain else None
    seen = {*(old or ()), *write.new_keys, *write.new_keys.values()}
    if (
        old is not None
        and len(list(conjuncts(clause._where_criteria))) == len(key)
        and _are_distinct_in_any_collation(seen)
    ):
        if len(set(old)) == len(old) and set(old).isdisjoint(write.new_keys.values()):
            return ()  # no row is moved twice
        new = [
            tuple(
                was if to is column else bound_value(to, execution, column)
                for to, column, was in zip(new_key, key, old_key, strict=True)
            )
            for old_key, execution in zip(old, parameters, strict=True)
        ]
        if are_known(new) and _are_distinct_in_any_collation({*seen, *new}):
            for row in write.new_keys:
                place = row
                for before, after in zip(old, new, strict=True):
                    place = after if place == before else place
                write.new_keys[row] = place
            return new
    name = write.root.live.fullname
    report_unrecorded(
        f"A list of parameters moves rows of the table {name!r} by keys that it may move again, and history may not "
        "show where they end; execute the statement once for each.",
        write.root.live,
    )
    return None


def _are_distinct_in_any_collation(keys: Set[Key]) -> bool:
    """Return whether any database distinguishes the keys, even one that takes 'a' for 'Á' or for 'a '."""
    return len({tuple(map(_collation_fold, key)) for key in keys}) == len(keys)


def _collation_fold(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    letters = unicodedata.normalize("NFKD", value.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).rstrip()


def _may_differ(criterion: ColumnElement[bool]) -> bool:
    """Return whether a criterion may select other rows when it is evaluated again, by ``random()`` or a LIMIT."""
    return any(isinstance(element, (FunctionElement, TextClause, GenerativeSelect)) for element in iterate(criterion))


def take_write_lock(connection: Connection, source: Source) -> None:
    """Take the write lock on SQLite, which cannot lock rows, so that nobody writes between two statements."""
    if connection.dialect.name == "sqlite":  # an UPDATE takes it even if it finds no row
        kept = source.cache if isinstance(source, TrackedTable) else {}
        if take_write_lock not in kept:
            column = source.version if isinstance(source, TrackedTable) else source.key[0]
            kept[take_write_lock] = update(column.table).where(false()).values({column: column})
        connection.execute(kept[take_write_lock], execution_options=INTERNAL)


def _select_rows(
    write: Write,
    clause: Any,
    columns: Sequence[Any],
    key: Sequence[Any],
    *,
    lock: bool = True,
    parameters: Mapping[str, Any] | None = None,
) -> Select[Any]:
    """Return a select of columns of the rows that a statement is about to write, which by default locks them.

    :param parameters: the parameters to bind in it
    """
    statement = as_core(select(*columns)).where(*_criteria(clause)).order_by(*key).add_cte(*clause._independent_ctes)
    if parameters:  # before the options, which SQLAlchemy 2.0 cannot copy
        statement = statement.params(parameters)
    statement = statement.options(*criteria_options(clause))
    if lock:
        statement = statement.with_for_update(of=key[0].table)
    return statement if write.is_row_by_row else statement.limit(limit_of(clause, write.connection.dialect))


def _criteria(clause: Any) -> list[ColumnElement[bool]]:
    """Return the criteria of a statement, including those that SQLAlchemy will add."""
    return [*clause._where_criteria, *_criteria_added(clause)]


def _criteria_added(clause: Any) -> list[ColumnElement[bool]]:
    """Return the criteria that SQLAlchemy will add to a statement, for loader options or single-table inheritance.

    In a statement for an alias, too, SQLAlchemy adds criteria of the table itself.
    """
    entity = clause.table._annotations.get("parententity")
    if entity is None or clause._annotations.get("dml_strategy") == "core_only":
        return []
    options_by_key: dict[Any, list[Any]] = {}
    for option in criteria_options(clause):
        option.get_global_criteria(options_by_key)
    mapper = entity.mapper
    options = options_by_key.get(("additional_entity_criteria", mapper), ())
    added = [
        option._resolve_where_criteria(mapper)
        for option in options
        if option.include_aliases or option.entity is mapper
    ]
    if mapper._single_table_criterion is not None:
        added.append(mapper._single_table_criterion)
    return added
