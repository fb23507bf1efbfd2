"""Which keys have the rows that an INSERT makes?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from functools import cache, partial
from typing import Any
from typing import cast as cast_type

from sqlalchemy import (
    Column,
    Connection,
    CursorResult,
    Insert,
    Integer,
    Select,
    TextClause,
    cast,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import REGCLASS
from sqlalchemy.engine.cursor import _NO_CURSOR_DML
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import iterate

from sqlaudit.bulk.keys import KnownKeys
from sqlaudit.bulk.reading import (
    SQL,
    Parameters,
    are_known,
    column_named,
    column_of_parameter,
    conflict_words,
    is_null,
    value_given,
)
from sqlaudit.bulk.writes import KeysOf, Write, let_read_again
from sqlaudit.capture import uncaptured
from sqlaudit.catalogue import are_volatile, refuses_returning, sequence_of
from sqlaudit.keytypes import MYSQL, Key, RawKey, differ_raw, keys_read, one_of, raw
from sqlaudit.references import Source, Untracked, referred_columns
from sqlaudit.statements import CHUNK, Portionable, SelectedKeys, chunks
from sqlaudit.tables import TrackedTable, keys_of_table


def prepare_insert(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """See to it that the keys of the rows that an INSERT makes will be known, and return it so."""
    if clause._post_values_clause is not None or conflict_words(clause, tracked, write.connection.dialect):
        return _prepare_upsert(write, clause, tracked, parameters)
    rows = _rows_given(write, clause, tracked, tracked.key)
    if rows is not None and tracked.key and are_known(_columns_of(rows[:1], tracked.key)):
        given = _columns_of(rows, tracked.key)
        if are_known(given):
            write.keys_of = lambda result: given
            return clause
    if _tells_keys(write, clause, tracked, rows):
        write.keys_of = lambda result: _keys_told(result, tracked)
        return clause
    is_numbered = write.connection.dialect.name in MYSQL and _has_last_number(write, clause, tracked.live, many=False)
    if _asks_for_keys(clause, rows) and not is_numbered:
        return _returning_defaults(write, clause, tracked, rows)
    number, dialect = _number_to_give(tracked, clause, rows), write.connection.dialect.name
    if number is not None and tracked.key == (number,) and len(parameters) > 1 and not clause._returning:
        if dialect == "sqlite" and _is_numbered(write, number, parameters):
            return clause
        if dialect == "postgresql" and _is_drawn(write, number, parameters):
            return clause
    return _returning_keys(write, clause, tracked, rows)


def prepare_followed_upsert(write: Write, clause: Any, source: Untracked, parameters: Parameters) -> Any:
    """Lock the rows of a table without history that an INSERT may come upon, for tracked ones follow them."""
    changed = _columns_changed(write, clause, source)
    if referred_columns((source,)).isdisjoint(changed):
        return clause
    write.may_move = not changed.isdisjoint(source.key)
    rows = _rows_given(write, clause, source, source.live.c)
    unique = list(keys_of_table(source.live))
    if (clause._post_values_clause is not None and write.may_move) or _may_be_found_by_default(unique, rows):
        _notice_unfound(source)
    _find_present(write, clause, source, unique, rows, changed)
    return clause


def _notice_unfound(source: Source) -> None:
    uncaptured(
        f"A statement may come upon rows of {source.live.fullname!r} by a value that the database gives, and history "
        "may not show what becomes of them; give all values that are unique, or update() or delete() the rows first.",
        source.live,
    )


def _prepare_upsert(write: Write, clause: Any, tracked: TrackedTable, parameters: Parameters) -> Any:
    """Do the same for an INSERT that may come upon rows, which are locked, and changes, replaces or leaves them."""
    key, changed = tracked.key, _columns_changed(write, clause, tracked)
    write.may_update, write.may_move = True, not changed.isdisjoint(key)
    rows = _rows_given(write, clause, tracked, tracked.live.c)
    unique = list(keys_of_table(tracked.live))
    present = _find_present(write, clause, tracked, unique, rows, changed)
    is_told, is_postgresql = clause._post_values_clause is not None, write.connection.dialect.name == "postgresql"
    is_one_made = not is_told and len(rows or ()) == 1 and bool(_made_by_database(tracked, rows or ()))
    if is_one_made and _tells_keys(write, clause, tracked, rows):
        write.keys_of = lambda result: _keys_told(result, tracked) if result.rowcount else []
        return clause
    if is_told and len(parameters) == 1 and write.connection.dialect.insert_returning:
        # PostgreSQL tells the keys as it stores them; what it updates, it shows anyway.
        is_exact = is_postgresql and changed and rows is not None and not _made_by_database(tracked, rows)
        if is_exact or _is_found_otherwise(tracked, unique, rows):
            return _returning_keys(write, clause, tracked, rows, changed)
    if is_noticed := bool(changed) and _may_be_found_by_default(unique, rows):
        _notice_unfound(tracked)
    stays = [key] if key and not (write.may_move and is_told) else []  # what is replaced gets the given key
    if not write.may_move:
        stays += [columns for columns in unique if set(columns) != set(key) and changed.isdisjoint(columns)]
    given = {tuple(columns): _columns_of(rows or (), columns) for columns in (*stays, *unique)}
    known = {columns: values for columns, values in given.items() if are_known(values)}
    staying = {columns: values for columns, values in known.items() if columns in map(tuple, stays)}
    if rows is None or not staying:
        return _returning_keys(write, clause, tracked, rows, changed)
    write.keys_of = _looking_for_rows(
        write,
        tracked,
        staying,
        known if changed and not is_told else staying,  # what is replaced gives way to others with its values
        present,
        changed=changed,
        is_noticed=is_noticed,
    )
    return clause


def _looking_for_rows(
    write: Write,
    tracked: TrackedTable,
    staying: Mapping[Any, Sequence[Key]],
    kept: Mapping[Any, Sequence[Key]],
    present: Mapping[Any, Set[Key]],
    *,
    changed: Set[Any],
    is_noticed: bool,
) -> KeysOf:
    """Return what finds the rows that an upsert has inserted or come upon, and notes if one is missing.

    What it has inserted has all values given; others may have inserted meanwhile what it has updated, by one of them.

    :param staying: the values given that it does not change, by the columns that are unique
    :param kept: those one of which is found of each row given
    :param present: the keys of the rows that were there before, by such columns
    :param is_noticed: whether sqlaudit has warned that it may come upon others
    """
    find = partial(_keys_by, write.connection, tracked.key, lock=_locks(write.connection, changed))
    given = next(iter(staying.values()))

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        found = find(staying)
        keys = dict.fromkeys(each for keys in found for each in keys)
        if any(len(keys) >= len(given) for keys in found) or not (missing := _not_found(find, kept, range(len(given)))):
            return list(keys)
        otherwise = {each for columns, keys in present.items() if columns not in staying for each in keys}
        inserted = keys.keys() - set().union(*present.values())
        is_left = not changed and 0 <= result.rowcount <= len(inserted)  # IGNORE leaves rows for other reasons, too
        if len(missing) > len(otherwise) and not (is_left or is_noticed):
            write.lost = given[missing[0]]
        return list(keys)

    return keys_of


def _is_found_otherwise(
    source: Source, unique: Sequence[Sequence[Any]], rows: Sequence[Mapping[str, Any]] | None
) -> bool:
    """Tell whether an upsert may come upon a row by a value that the database gives, or computes for an index."""
    indexed = (each for index in source.live.indexes if index.unique for each in index.expressions)
    if not all(isinstance(each, Column) for each in indexed):
        return True
    given = [_columns_of(rows or (), columns) for columns in unique]
    is_numbered = bool(source.live.primary_key) and all(value is SQL for key in given[0] for value in key)
    return not all(map(are_known, given[is_numbered:]))


def _may_be_found_by_default(unique: Sequence[Sequence[Any]], rows: Sequence[Mapping[str, Any]] | None) -> bool:
    """Tell whether an upsert may come upon a row by the default of a column, not counting those that make keys."""
    columns = {column for columns in unique for column in columns if not column.primary_key}
    usual = [each for each in columns if each.default is not None or each.server_default is not None]
    return any(column.key not in row for row in rows or () for column in usual)


def _rows_given(
    write: Write, clause: Any, source: Source, columns: Iterable[Column[Any]]
) -> list[dict[str, Any]] | None:
    """Return the values that an INSERT gives to columns, by the keys of these; ``None`` if a query gives them.

    NULL is none where the database makes a number of it.
    """
    if clause.select is not None:
        return None
    asked, parameters, number = set(columns), write.parameters, source.live.autoincrement_column
    dialect = cast_type("DefaultDialect", write.connection.dialect)
    is_numbered = number is not None and dialect.insert_null_pk_still_autoincrements
    null_key = number.key if number is not None and is_numbered and number.default is None else None
    given = [_named(clause, each) for several in clause._multi_values for each in several] or [clause._values or {}]
    named = [_by_column(each, lambda name: column_named(clause, source, name), asked) for each in given]
    own = _by_column(
        {name: name for name in parameters[0]}, lambda name: column_of_parameter(clause, source, name), asked
    )
    if not own and not any(named):  # as of most keys that the database gives
        return [{}] * (len(parameters) * len(named))
    merged = (
        (values | {key: each[name] for key, name in own.items() if name in each}, each)
        for each in parameters
        for values in named
    )
    return [
        {
            key: value_given(value, each, source.live.c[key])
            for key, value in row.items()
            if key != null_key or not is_null(value, each)
        }
        for row, each in merged
    ]


def _named(clause: Any, values: Any) -> Mapping[Any, Any]:
    """Return the values of a row by the columns that they are for, where they are given in the order of these."""
    return values if isinstance(values, Mapping) else dict(zip(clause.table.c, values, strict=False))


def _by_column(
    values: Mapping[Any, Any], column_of: Callable[[Any], Column[Any] | None], asked: Set[Column[Any]]
) -> dict[str, Any]:
    """Return values by the keys of the columns that they are for, as far as these are asked for."""
    pairs = ((column_of(name), value) for name, value in values.items())
    return {column.key: value for column, value in pairs if column is not None and column in asked}


def _columns_of(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column[Any]]) -> list[Key]:
    return [tuple([row.get(column.key, SQL) for column in columns]) for row in rows]


def _asks_for_keys(clause: Any, rows: Sequence[Mapping[str, Any]] | None) -> bool:
    """Tell whether SQLAlchemy asks for the primary keys of the rows that an INSERT makes, as far as it expects any."""
    if clause._return_defaults:
        return True
    return rows is not None and len(rows) == 1 and not (clause._returning or clause._multi_values or clause._inline)


def _tells_keys(write: Write, clause: Any, tracked: TrackedTable, rows: Sequence[Mapping[str, Any]] | None) -> bool:
    """Tell whether the result of an INSERT has the keys of its rows on its own."""
    if rows is None or clause._multi_values or not set(tracked.key) <= set(tracked.live.primary_key):
        return False
    made = _made_by_database(tracked, rows)
    if not made:
        return bool(clause._return_defaults or not clause._returning)
    if clause._inline or not _asks_for_keys(clause, rows):
        return False
    if differ_raw(made, write.connection.dialect):
        return False  # the program's types would read them
    if len(rows) > 1 and len(tracked.key) > 1 and not clause._sort_by_parameter_order:
        return False  # it would give rows the parts of each other's keys
    number = tracked.live.autoincrement_column
    if number is not None and number.default is not None and write.connection.dialect.name in MYSQL:
        number = None  # they tell no number of a sequence
    return all(
        _is_expected(write, clause, column, len(rows) > 1)
        and (column is number or not any(column.key in row for row in rows))
        for column in made
    )


def _made_by_database(tracked: TrackedTable, rows: Iterable[Mapping[str, Any]]) -> list[Column[Any]]:
    """Return the columns of the key that the database gives values, or computes them."""
    return [column for column in tracked.key if not all(_is_in_python(column, row) for row in rows)]


def _is_expected(write: Write, clause: Any, column: Column[Any], many: bool) -> bool:
    """Tell whether SQLAlchemy asks for the value that the database gives a column of the key."""
    live, dialect = column.table, write.connection.dialect
    number = live.autoincrement_column
    if _has_last_number(write, clause, live, many=many):
        return column is number or column.default is not None
    is_returned = live.implicit_returning and (
        dialect.insert_executemany_returning if many else dialect.insert_returning
    )
    return is_returned and (column is number or column.default is not None or column.server_default is not None)


def _has_last_number(write: Write, clause: Any, live: Any, *, many: bool) -> bool:
    """Tell whether SQLAlchemy takes the key of an INSERT from the ``lastrowid`` of its cursor."""
    dialect = cast_type("DefaultDialect", write.connection.dialect)
    can = dialect.postfetch_lastrowid and not dialect.favor_returning_over_lastrowid
    return can and live.autoincrement_column is not None and not many and not clause._return_defaults


def _is_in_python(column: Column[Any], row: Mapping[str, Any]) -> bool:
    """Tell whether Python gives the value of a column, or its default does."""
    default = column.default
    is_default = default is not None and (default.is_callable or default.is_scalar)
    return row[column.key] is not SQL if column.key in row else is_default


def _number_to_give(tracked: TrackedTable, clause: Any, rows: Sequence[Mapping[str, Any]] | None) -> Column[Any] | None:
    """Return the column of the key by which the database numbers all rows of an INSERT."""
    number = tracked.live.autoincrement_column
    if number is None or number not in tracked.key or not isinstance(number.type, Integer):
        return None
    names = [clause._select_names or ()] if rows is None else rows
    return None if number.default is not None or any(number.key in given for given in names) else number


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


def _keys_by(
    connection: Connection, key: Sequence[Any], known: Mapping[Any, Sequence[Key]], *, lock: bool
) -> list[list[Key]]:
    """Return the keys of the rows that have unique values, by the columns of these."""
    return [_keys_where(connection, key, columns, values, lock=lock) for columns, values in known.items()]


def _not_found(
    find: Callable[[Mapping[Any, Sequence[Key]]], list[list[Key]]],
    known: Mapping[Any, Sequence[Key]],
    places: Sequence[int],
) -> list[int]:
    """Return the places of the rows given that are found by none of their unique values, looking for halves of them."""
    found = find({columns: [values[place] for place in places] for columns, values in known.items()})
    if any(len(keys) >= len(places) for keys in found):
        return []
    if len(places) == 1:
        return list(places)
    half = len(places) // 2
    return [*_not_found(find, known, places[:half]), *_not_found(find, known, places[half:])]


def _locks(connection: Connection, changed: Collection[Any]) -> bool:
    """Tell whether the rows that an INSERT may come upon are locked: if it leaves them, the role need have no right to.

    MariaDB and MySQL would not find all of them without a lock.
    """
    return bool(changed) or connection.dialect.name in MYSQL


def _keys_told(result: CursorResult[Any], tracked: TrackedTable) -> list[Key]:
    places = [list(tracked.live.primary_key).index(column) for column in tracked.key]
    told: Sequence[Any] = result.inserted_primary_key_rows
    return [tuple([row[place] for place in places]) for row in told]


def _keys_where(
    connection: Connection, key: Sequence[Any], columns: Sequence[Any], values: Sequence[Key], *, lock: bool
) -> list[Key]:
    """Return the keys of the rows whose columns have one of the values."""
    chosen = _chosen(connection, key, lock=lock)
    found = (keys_read(connection, chosen.where(one_of(columns, chunk))) for chunk in chunks(values))
    return [each for keys in found for each in keys]


def _chosen(connection: Connection, key: Sequence[Any], *, lock: bool) -> Select[Any]:
    chosen = select(*raw(key, connection.dialect)).order_by(*key)
    return chosen.with_for_update() if lock else chosen


def _counting(
    write: Write, clause: Any, tracked: TrackedTable, rows: Sequence[Mapping[str, Any]] | None, changed: Set[Any]
) -> Callable[[CursorResult[Any], Sequence[Key]], None]:
    """Return what lets a result of MariaDB count, and have the ``lastrowid``, as it does without RETURNING.

    :param changed: the columns that it changes of rows that it comes upon: these count twice
    """
    connection, key = write.connection, tracked.key
    number = _number_to_give(tracked, clause, rows)
    is_key = _asks_for_keys(clause, rows) and _has_last_number(write, clause, tracked.live, many=False)
    read = raw([*key, *changed], connection.dialect)

    def values_of(keys: Iterable[Key]) -> dict[Key, tuple[Any, ...]]:
        found = (
            connection.execute(select(*read).where(one_of(read[: len(key)], chunk)).with_for_update())
            for chunk in chunks(list(keys))
        )
        return {RawKey(row[: len(key)]): tuple(row[len(key) :]) for rows in found for row in rows}

    before = values_of(each for _, keys in write.captures for each in keys) if changed else {}

    def count(result: CursorResult[Any], keys: Sequence[Key]) -> None:
        context: Any = result.context
        after = values_of(before) if before else {}
        new = dict.fromkeys(each for each in keys if each not in before)
        if changed:
            moved = len(before.keys() - after.keys())
            differing = sum(before[each] != after[each] for each in before.keys() & after.keys())
            context._rowcount = len(keys) + moved + differing
        place = None if number is None else key.index(number)
        last = 0 if place is None else min((each[place] for each in new or (() if rows is None else keys)), default=0)
        context.get_lastrowid = lambda: last
        if is_key:
            context.inserted_primary_key_rows = context._setup_ins_pk_from_lastrowid()

    return count


def _return_nothing(result: CursorResult[Any]) -> None:
    """Let a result be one of a statement that returns no rows."""
    result._metadata = result._no_result_metadata
    result.cursor_strategy = _NO_CURSOR_DML
    result._reset_memoizations()


def _can_return(write: Write, tracked: TrackedTable) -> bool:
    """Tell whether the database can return the keys of rows that are inserted."""
    dialect = write.connection.dialect
    if refuses_returning(write.connection, tracked):
        uncaptured(
            f"A rule of the table {tracked.live.fullname!r} keeps PostgreSQL from returning the keys of what is "
            "inserted, and history will not show the rows; give their keys, or call record_changes() then.",
            tracked.live,
        )
        return False
    if dialect.insert_executemany_returning if len(write.parameters) > 1 else dialect.insert_returning:
        return True
    uncaptured(
        f"The keys of what is inserted into {tracked.live.fullname!r} are not given, and the database cannot return "
        "them; its history will not show the rows. Give their keys, or add objects to a session.",
        tracked.live,
    )
    return False


def _returning_defaults(
    write: Write, clause: Any, tracked: TrackedTable, rows: Sequence[Mapping[str, Any]] | None
) -> Any:
    """Return an INSERT, whose keys SQLAlchemy asks for, that also returns those that SQLAlchemy does not expect."""
    if not _can_return(write, tracked):
        return clause
    made, many = _made_by_database(tracked, rows or ()), len(write.parameters) > 1
    is_asked, columns = bool(clause._returning or clause._supplemental_returning), _raw_key(write, tracked)
    returned = clause._return_defaults or any(
        _is_expected(write, clause, column, many) or any(column.key in row for row in rows or ()) for column in made
    )

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        told, rowcount, width = result.returned_defaults_rows or (), result.context.rowcount, len(columns)
        if not is_asked:
            result.context._rowcount = rowcount = len(told)
            result.all()
        if returned or is_asked:
            result._metadata = _without_last(result._metadata, width)
            own = [tuple(row[:-width]) for row in told]
            let_read_again(result, own, rowcount)
            result.context.returned_default_rows = result.all()
            if is_asked:
                let_read_again(result, own, rowcount)
        else:
            _return_nothing(result)
        return [RawKey(row[-width:]) for row in told]

    write.keys_of = keys_of
    return clause.return_defaults(*clause._return_defaults_columns or (), supplemental_cols=columns)


def _returning_keys(
    write: Write,
    clause: Any,
    tracked: TrackedTable,
    rows: Sequence[Mapping[str, Any]] | None,
    changed: Set[Any] = frozenset(),
) -> Any:
    """Return an INSERT that returns the keys of its rows behind what it returns, of which its result tells nothing.

    :param changed: the columns that it changes of rows that it comes upon
    """
    if clause._return_defaults:
        return _returning_defaults(write, clause, tracked, None)
    if not _can_return(write, tracked):
        return clause
    returns_rows, width = bool(clause._returning), len(tracked.key)
    count = _counting(write, clause, tracked, rows, changed) if write.connection.dialect.name in MYSQL else None

    def keys_of(result: CursorResult[Any]) -> list[Key]:
        rowcount = result.context.rowcount
        read = [tuple(row) for row in result.all()]
        keys: list[Key] = [RawKey(row[-width:]) for row in read]
        if returns_rows:
            result._metadata = _without_last(result._metadata, width)
            let_read_again(result, [row[:-width] for row in read], rowcount)
        else:
            result.context._rowcount = len(read)
            result.context._is_explicit_returning = False
            _return_nothing(result)
            if count is not None:
                count(result, keys)
        return keys

    write.keys_of = keys_of
    columns = _raw_key(write, tracked)
    if clause._annotations.get("dml_strategy") == "orm":
        if returns_rows:
            clause = clause._generate()
            clause.__class__ = _returning_for_orm(clause.__class__)
            clause.sqlaudit_columns = columns
            return clause
        clause = clause._annotate({"dml_strategy": "raw"})  # the ORM would load what is returned
    elif not returns_rows:
        clause = clause._generate()
        clause._with_options = ()  # which are for what is loaded
    return clause.returning(*columns)


def _raw_key(write: Write, tracked: TrackedTable) -> list[Any]:
    read = raw(tracked.key, write.connection.dialect)
    return [column.label(f"sqlaudit_key_{place}") for place, column in enumerate(read)]


@cache
def _returning_for_orm(kind: type[Insert]) -> type[Any]:
    """Return the class of INSERTs of which the ORM, when it compiles them, asks for the columns of what it loads."""

    def returning(self: Any, *columns: Any, **kw: Any) -> Any:
        return kind.returning(self, *columns, *self.sqlaudit_columns, **kw)

    return type(kind.__name__, (kind,), {"returning": returning, "inherit_cache": True})


def _without_last(metadata: Any, count: int) -> Any:
    """Return what a result knows of its columns without the last ones."""
    keys = list(metadata._keys)[:-count]
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


def _columns_changed(write: Write, clause: Any, source: Source) -> set[Any]:
    """Return the columns that an INSERT changes of rows that it comes upon; all of them if it replaces these."""
    if "REPLACE" in conflict_words(clause, source, write.connection.dialect):
        return set(source.live.c)
    told = clause._post_values_clause
    values = dict(getattr(told, "update_values_to_set", None) or getattr(told, "update", None) or ())
    columns = {column.key: column for column in source.live.c}
    pairs = ((columns.get(each if isinstance(each, str) else each.key), value) for each, value in values.items())
    return {column for column, value in pairs if not _is_itself(value, column)}


def _is_itself(value: Any, column: Any) -> bool:
    """Tell whether a column keeps its value: ``LAST_INSERT_ID(id)`` only tells it to MariaDB's ``lastrowid``."""
    is_told = isinstance(value, FunctionElement) and getattr(value, "name", "").lower() == "last_insert_id"
    return is_told and list(value.clauses) == [column]


def _may_differ(connection: Connection, statement: Any) -> bool:
    """Tell whether a select may find something else when it is executed again, or does something: by nextval(), say."""
    parts = list(iterate(statement))
    names = [getattr(each, "name", None) for each in parts if isinstance(each, FunctionElement)]
    if None in names or any(isinstance(each, TextClause) and "(" in each.text for each in parts):
        return True
    return bool(names) and are_volatile(connection, {str(name).lower() for name in names})


def _find_present(
    write: Write,
    clause: Any,
    source: Source,
    unique: Sequence[Sequence[Any]],
    rows: Sequence[Mapping[str, Any]] | None,
    changed: set[Any],
) -> dict[Sequence[Any], set[Key]]:
    """Find the rows that an INSERT may come upon, and give baselines to those without history.

    :param changed: the columns that it changes of them
    :return: their keys, by the columns that are unique
    """
    connection, key = write.connection, source.key
    lock = _locks(connection, changed)
    found: dict[Sequence[Any], set[Key]] = {}
    if rows is None and _may_differ(connection, clause.select):
        if changed:
            _notice_unfound(source)
        return found
    for columns in unique:
        if rows is not None:
            given = [values for values in _columns_of(rows, columns) if are_known([values])]
            found[columns] = set(_keys_where(connection, key, columns, given, lock=lock))
            continue
        names = [name if isinstance(name, str) else name.key for name in clause._select_names]
        if {column.key for column in columns} <= set(names):
            given_by = clause.select.subquery()
            values = select(*(list(given_by.c)[names.index(column.key)] for column in columns))
            chosen = _chosen(connection, key, lock=lock).where(one_of(columns, values))
            found[columns] = set(keys_read(connection, chosen))
    keys = dict.fromkeys(key for keys in found.values() for key in keys)
    write.expect(KnownKeys(connection, ((*key, False) for key in keys)), changed=None if write.may_move else changed)
    return found
