"""Which rows is an UPDATE or DELETE about to write? sqlaudit locks these rows and confines the statement to them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Final

from sqlalchemy import (
    CHAR,
    BindParameter,
    ColumnElement,
    Connection,
    ForeignKeyConstraint,
    GenerativeSelect,
    Select,
    String,
    TextClause,
    case,
    false,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate

from sqlaudit.exceptions import CaptureError
from sqlaudit.recording.bulk.keys import MANY, Keys, KnownKeys, StoredKeys, among, can_store_keys, place_of, store_keys
from sqlaudit.recording.bulk.parsing import (
    ParsedWrite,
    are_known,
    bound_value,
    conjuncts,
    elements,
    is_bound_alike,
    without_criteria,
)
from sqlaudit.recording.bulk.writes import Write
from sqlaudit.recording.cascades import lock_rows
from sqlaudit.recording.clauses import has_open_version
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.keys import Key, RawKey, bound, raw_columns
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.catalogue import ask_once, can_lock_many, tables_with_guard
from sqlaudit.tracking.foreign_keys import Source, followers_of
from sqlaudit.tracking.rights import lockable_tables
from sqlaudit.tracking.schema import candidate_keys
from sqlaudit.tracking.tables import TrackedTable

_STATE_OF_MYSQL: Final[Any] = select(
    literal_column("@@warning_count"), literal_column("@@sql_mode"), literal_column("@@sql_safe_updates")
).execution_options(**INTERNAL)


def prepare_change(write: Write) -> Any:
    """Lock the rows that an UPDATE or DELETE is about to write, and return the statement confined to them."""
    parsed, source = write.parsed, write.source
    statement, values = parsed.statement, parsed.values
    write.locks_many = can_lock_many(write.connection, source)
    if values:
        write.conflict_clauses = parsed.conflict_clauses(write.connection.dialect)
    if "REPLACE" in write.conflict_clauses:
        _expect_replaced(write)
    if not values.keys().isdisjoint(source.key):
        moved = _lock_rows_with_new_keys(write)
        return statement if moved is None else _confined(write, moved)
    if not (parsed.criteria and not parsed.is_delete) and not lockable_tables(write.connection, [source.live]):
        return _note_unlockable_rows(write)
    given_keys = parsed.keys_in_criterion(parsed.key)
    if given_keys is None:
        if parsed.is_delete and write.connection.dialect.name in MYSQL:
            write.is_row_by_row = _changes_what_it_reads(parsed, source)
        keys: Keys = _lock_found(write)
        _check_warnings(write)
    else:
        keys = _lock_given(write, given_keys)
    write.prepare_rows(keys, changed=parsed.changed)
    if write.is_row_by_row:
        return statement  # the actions decide which of these rows, and of those that refer to them, it deletes
    if given_keys is not None and len(keys) == len(set(given_keys)):
        return statement  # all its keys are locked, so no other row can match
    return _confined(write, keys)


def _expect_replaced(write: Write) -> None:
    """Find the rows that SQLite will delete because an UPDATE gives their unique values to other rows."""
    parsed, source, connection = write.parsed, write.source, write.connection
    columns_of = dict(zip(source.live.c, parsed.statement.table.c, strict=True))
    for columns in candidate_keys(source.live):
        if not parsed.values.keys().isdisjoint(columns):
            new_values = [_typed_as(column, parsed.values.get(column, columns_of[column])) for column in columns]
            new = _select_rows(write, new_values, lock=False).select_from(parsed.statement.table).correlate(None)
            chosen = select(*raw_columns(source.key, connection.dialect)).where(one_of(columns, new))
            chosen = chosen.options(*parsed.criteria_options)
            keys = {RawKey(row): None for row in _rows_of_executions(write, chosen)}
            write.prepare_rows(KnownKeys(connection, ((*key, False) for key in keys)), changed=None, is_replaced=True)


def _note_unlockable_rows(write: Write) -> Any:
    """Note the rows that a statement is about to write and the role cannot lock; return the statement unchanged."""
    read = raw_columns(write.parsed.key, write.connection.dialect)
    chosen = _select_rows(write, [*read, _is_recorded(write, write.parsed.key)], lock=False)
    keys = KnownKeys(write.connection, {tuple(row): None for row in _rows_of_executions(write, chosen)})
    write.prepare_rows(keys, changed=write.parsed.changed)
    write.selected_count = len(keys)
    return write.parsed.statement


def _rows_of_executions(write: Write, chosen: Select[Any]) -> Iterator[Any]:
    """Yield the rows that a select finds with the parameters of each execution."""
    for execution in write.parsed.parameters:
        yield from write.connection.execute(chosen, execution, execution_options=INTERNAL)


def _lock_given(write: Write, given_keys: Sequence[Key]) -> KnownKeys:
    """Lock the rows whose keys a statement gives."""
    connection, source = write.connection, write.source
    if len(given_keys) == 1 and isinstance(source, TrackedTable):
        parameters = {f"sqlaudit_key_{place}": value for place, value in enumerate(given_keys[0])}
        locking = _locking_one(write, source)
        return KnownKeys(connection, connection.execute(locking, parameters, execution_options=INTERNAL))
    statements = (_locking(write, source).where(one_of(source.key, chunk)) for chunk in chunks(given_keys))
    locked = (connection.execute(statement, execution_options=INTERNAL) for statement in statements)
    return KnownKeys(connection, (row for rows in locked for row in rows))


def _locking(write: Write, source: Source, key: Sequence[Any] | None = None) -> Select[Any]:
    """Return a select of raw keys, and of whether the rows have open versions, which locks the rows.

    :param key: the bound key of the one row
    """
    is_one, read = key is not None, raw_columns(source.key, write.connection.dialect)
    chosen = select(*read, _is_recorded(write, key or source.key, is_one=is_one)).order_by(*source.key)
    return chosen.with_for_update() if is_one or write.locks_many else chosen


def _locking_one(write: Write, source: TrackedTable) -> Select[Any]:
    """Return the select that locks the row with a given key, built once."""
    kept = source.statements.setdefault(write.connection.dialect, {})
    if _locking_one not in kept:
        key = [bound(column, f"sqlaudit_key_{place}") for place, column in enumerate(source.key)]
        kept[_locking_one] = _locking(write, source, key).where(all_equal(source.key, key))
    chosen: Select[Any] = kept[_locking_one]
    return chosen


def _lock_found(write: Write) -> Keys:
    """Lock the rows that a statement's criterion selects."""
    parsed, source, connection = write.parsed, write.source, write.connection
    is_recorded = _is_recorded(write, parsed.key)
    chosen = _select_rows(write, [*raw_columns(parsed.key, connection.dialect), is_recorded])
    has_key = set(source.key) == set(source.live.primary_key)
    can_store = write.locks_many and can_store_keys(connection, returns=parsed.returns_rows)
    if len(parsed.parameters) == 1 and has_key and can_store:
        options = {"stream_results": True, **INTERNAL}
        with connection.execute(chosen, parsed.parameters[0], execution_options=options) as result:
            rows = result.fetchmany(MANY + 1)
        if len(rows) <= MANY:
            return KnownKeys(connection, rows)
        is_confined = not TRAITS[connection.dialect.name].locks_scanned_rows
        if is_confined or (_is_repeatable(write) and _locks_gaps(connection)):
            selected = [*parsed.key, case((is_recorded, 1), else_=0), place_of(write.root, parsed.key)]
            every = _select_rows(write, selected, parameters=parsed.parameters[0])
            may_repeat = not parsed.reads_only_its_table
            write.stored = store_keys(connection, every, parsed.key, source.live, may_repeat=may_repeat)
        if write.stored is not None:
            return write.stored
    return KnownKeys(connection, _rows_of_executions(write, chosen))


def _lock_rows_with_new_keys(write: Write) -> KnownKeys | None:
    """Lock the rows whose keys an UPDATE changes, and note their new keys.

    :return: the old keys, and those that rows may have between two executions; ``None`` if these are unknown
    """
    parsed, connection, key = write.parsed, write.connection, write.parsed.key
    new_key = [parsed.values.get(column, key_column) for column, key_column in zip(write.source.key, key, strict=True)]
    width, values = len(key), [_typed_as(column, value) for value, column in zip(new_key, write.root.key, strict=True)]
    read, moved = raw_columns(key, connection.dialect), raw_columns(values, connection.dialect)
    chosen = _select_rows(write, [*read, _is_recorded(write, key), *moved])
    rows = [tuple(row) for row in _rows_of_executions(write, chosen)]
    _check_warnings(write)
    write.new_keys = {RawKey(row[:width]): RawKey(row[width + 1 :]) for row in rows}
    write.prepare_rows(KnownKeys(connection, (row[: width + 1] for row in rows)), changed=None)
    between = _follow_key_changes(write, new_key) if len(parsed.parameters) > 1 else ()
    if write.conflict_clauses and "REPLACE" not in write.conflict_clauses:
        batches = chunks(list(write.new_keys.values()))
        existing = (key for chunk in batches for key in lock_rows(connection, write.root, chunk))
        conflicting = KnownKeys(connection, ((*key, False) for key in existing))
        write.prepare_rows(conflicting, changed=frozenset(), is_replaced=True)
    if between is None:
        return None
    return KnownKeys(connection, ((*key, True) for key in (*write.new_keys, *between)))


def _check_warnings(write: Write) -> None:
    """Note MariaDB's and MySQL's ``sql_safe_updates``, and check that the SELECT with a criterion gave no warnings.

    :raises CaptureError: it did, for ``'abc' = 7``, for instance, which may make an UPDATE fail
    """
    if write.connection.dialect.name not in MYSQL:
        return
    warnings, mode, write.is_safe = write.connection.execute(_STATE_OF_MYSQL).one()
    if warnings and "STRICT" in mode and not write.parsed.is_delete:
        raise CaptureError(
            f"The criterion of an UPDATE of the table {write.root.live.fullname!r} causes a database warning, about a "
            "comparison of different types or a division by zero, which may make the UPDATE fail. Compare columns "
            "with values of their types.",
            write.root.live,
        )


def _typed_as(column: Any, value: Any) -> ColumnElement[Any]:
    """Return a new value of a column, read by the column's type and bound as the statement binds it."""
    if isinstance(value, BindParameter) and not value.type._isnull and not is_bound_alike(value, column):
        value = Grouping(value)
    return type_coerce(value, column.type)


def _is_recorded(write: Write, key: Sequence[Any], *, is_one: bool = False) -> ColumnElement[bool]:
    """Return the condition that a row needs no baseline, or false if only the statement for baselines can tell.

    :param is_one: True if the key is bound
    """
    root = write.root
    if not isinstance(root, TrackedTable):
        return true()
    if not (write.locks_many or is_one):  # Citus may refuse it beside the criterion of the statement
        return false()
    return has_open_version(root, key, with_guard=ask_once(write.connection, (root,), tables_with_guard))


def _confined(write: Write, keys: Keys) -> Any:
    """Return the statement confined to the rows that have been locked."""
    parsed, connection, key = write.parsed, write.connection, write.parsed.key
    statement, written = parsed.statement, parsed.statement.table
    traits = TRAITS[connection.dialect.name]
    others_wait = not traits.locks_rows or (traits.locks_scanned_rows and isinstance(keys, StoredKeys))
    if others_wait and _is_repeatable(write):
        return statement
    if write.is_safe:
        write.selected_count = len(keys)
        return statement
    alone = parsed.reads_only_its_table
    # Else the hint lands behind another table.
    is_single = not parsed.is_delete and alone and parsed.tables_of_values <= {written}
    if is_single and traits.locks_scanned_rows and written.primary_key:
        # It scans a small table, and waits for locks of rows that it does not write.
        statement = statement.with_hint("FORCE INDEX (PRIMARY)", selectable=written)
    if len(parsed.parameters) > 1:
        return statement.where(among(connection.dialect, key, list(keys), for_executemany=True))
    among_keys = keys.among(key)
    write.confined_to = written, among_keys, len(write.new_keys) or len(keys)
    is_refused = not {getattr(column, "key", None) for column in parsed.values}.isdisjoint(_parameter_names(parsed))
    # Run again, it may select other rows, unless they are not locked: then it must select them again.
    if write.locks_many and alone and not is_refused and not (traits.locks_scanned_rows and _is_repeatable(write)):
        statement = without_criteria(statement)
    return statement.where(among_keys)


def _changes_what_it_reads(parsed: ParsedWrite, source: Source) -> bool:
    """Return whether foreign key actions change what the criterion of a DELETE reads."""
    links, waiting = dict[ForeignKeyConstraint, None](), [source]
    while waiting:
        new = [(follower, link) for follower, link in followers_of((waiting.pop(),)) if link not in links]
        links.update((link, None) for _, link in new)
        waiting += [follower for follower, _ in new]
    changed, tables = {each.parent for link in links for each in link.elements}, {link.table for link in links}
    parts = [part for criterion in parsed.all_criteria for part in elements(criterion)] if links else []
    if source.live in tables and any(isinstance(part, TextClause) for part in parts):
        return True
    columns = [column for part in parts if isinstance(part, ColumnElement) for column in part.base_columns]
    return any(
        column in changed or getattr(column, "table", source.live) in tables - {source.live} for column in columns
    )


def _parameter_names(parsed: ParsedWrite) -> set[str]:
    """Return the parameters' names in a criterion; SQLAlchemy refuses the names of columns that the statement sets."""
    parts = (part for criterion in parsed.criteria for part in iterate(criterion))
    return {part.key for part in parts if isinstance(part, BindParameter)}


def _is_repeatable(write: Write) -> bool:
    """Return whether the criterion of a statement selects the same rows again if no other transaction writes."""
    parsed = write.parsed
    is_limited = parsed.limit(write.connection.dialect) is not None
    return parsed.reads_only_its_table and not is_limited and not any(map(_may_differ, parsed.all_criteria))


def _locks_gaps(connection: Connection) -> bool:
    """Return whether MariaDB and MySQL also lock gaps, so that nobody can add a row that a locking select finds."""
    return connection.get_isolation_level() in ("REPEATABLE READ", "SERIALIZABLE")


def _follow_key_changes(write: Write, new_key: Sequence[Any]) -> Sequence[Key] | None:
    """Note the final keys of rows whose keys several executions may change, one after the other.

    :return: the keys that they have in between; ``None`` if these are unknown, so that the statement is not confined
    """
    parsed, key = write.parsed, write.parsed.key
    read = raw_columns(key, write.connection.dialect)
    # Is each given key the same value as the raw key?
    is_plain = all(
        read_column is column or type(column.type) in (String, CHAR)
        for read_column, column in zip(read, key, strict=True)
    )
    old = parsed.keys_in_criterion(key) if is_plain else None
    seen = {*(old or ()), *write.new_keys, *write.new_keys.values()}
    if old is not None and len(list(conjuncts(parsed.criteria))) == len(key) and _are_distinct_in_any_collation(seen):
        if len(set(old)) == len(old) and set(old).isdisjoint(write.new_keys.values()):
            return ()  # no row is moved twice
        new = [
            tuple(
                was if to is column else bound_value(to, execution, column)
                for to, column, was in zip(new_key, key, old_key, strict=True)
            )
            for old_key, execution in zip(old, parsed.parameters, strict=True)
        ]
        if are_known(new) and _are_distinct_in_any_collation({*seen, *new}):
            for row in write.new_keys:
                place = row
                for before, after in zip(old, new, strict=True):
                    place = after if place == before else place
                write.new_keys[row] = place
            return new
    if _finds_new_keys(write):
        return None
    name = write.root.live.fullname
    report_unrecorded(
        f"An executemany changes keys of the table {name!r} that it may change again, so sqlaudit does not know the "
        "final keys, and history may not show them. Execute the statement once for each parameter set.",
        write.root.live,
    )
    return None


def _finds_new_keys(write: Write) -> bool:
    """Return whether the rows of an UPDATE can be found afterwards: each row ends where an execution has put it."""
    parsed, connection, root = write.parsed, write.connection, write.root
    places = [(column, parsed.values[column]) for column in root.key if column in parsed.values]
    is_given = all(isinstance(value, BindParameter) for _, value in places) and parsed.reads_only_its_table
    if not is_given or not isinstance(root, TrackedTable) or len(root.chains) > 1:
        return False
    there = select(*raw_columns(root.key, connection.dialect)).where(
        *(column == _typed_as(column, value) for column, value in places)
    )

    def find() -> list[Key]:
        return list(dict.fromkeys(RawKey(row) for row in _rows_of_executions(write, there)))

    others = [key for key in find() if key not in write.new_keys]
    write.prepare_rows(KnownKeys(connection, ((*key, False) for key in others)), changed=frozenset(), is_replaced=True)
    write.find_new_keys = find
    return True


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


def _select_rows(
    write: Write, columns: Sequence[Any], *, lock: bool = True, parameters: Mapping[str, Any] | None = None
) -> Select[Any]:
    """Return a select of columns of the rows that a statement is about to write, which by default locks them.

    :param parameters: the parameters to bind in it
    """
    parsed, dialect = write.parsed, write.connection.dialect
    chosen = parsed.select_rows(columns, None if write.is_row_by_row else dialect, parameters=parameters)
    chosen = chosen.order_by(*parsed.key)
    return chosen.with_for_update(of=parsed.key[0].table) if lock and write.locks_many else chosen
