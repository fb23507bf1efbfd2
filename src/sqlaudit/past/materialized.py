"""How is the past read as quickly as the present? From copies with the keys and indexes of the live tables.

In a session with copies, ``time_travel(…, materialize=True)``, the compiler renders a tracked table as the name of a
temporary table, and notes it in ``PastCompiler.past_copies``. Before the database executes such a statement, a listener
on the connection makes the copies that the statement reads and the connection lacks. Only the compiled statement has
the tables of eager loads and added criteria, and most statements come compiled from SQLAlchemy's cache.

A copy is good until its transaction ends, or a savepoint is rolled back. PostgreSQL and SQLite then undo the whole
table, and MariaDB only its rows. So the copy is made anew when it is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from datetime import datetime
from itertools import chain, count
from threading import Lock
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import (
    JSON,
    Column,
    ColumnClause,
    Connection,
    Dialect,
    LargeBinary,
    String,
    TableClause,
    Text,
    TwoPhaseTransaction,
    column,
    event,
    false,
    insert,
    literal_column,
    select,
    table,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.types import NullType, TypeEngine

from sqlaudit.exceptions import QueryError
from sqlaudit.past.rendering import PastCompiler, all_columns, all_rows_at, copy_name, instant_parameters
from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.keys import implementation_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.sql.temporary import DropTemporary
from sqlaudit.tracking.missing import explain_history_error, explaining_history_errors
from sqlaudit.tracking.schema import unique_together
from sqlaudit.tracking.tables import TrackedTable, shortened

_EVENTS: Final = ("before_cursor_execute", "commit", "rollback", "rollback_savepoint")
_SAVEPOINT: Final = "sqlaudit_past"
_TRANSLATED: Final = "schema_translate_map"
_EMPTY: Final = object()
_slots: Final[set[int]] = set()
_slots_lock: Final = Lock()


class Copies:
    """The copies that one session reads.

    :ivar slot: a number in the names of the copies. No other session of the process has it at the same time, and it is
        the smallest such number, so that the compiled statements of earlier sessions are used again
    """

    def __init__(self) -> None:
        self._when: datetime | None = None
        self._schemas: MutableMapping[Connection, dict[TrackedTable, Any]] = WeakKeyDictionary()
        """For each connection: the tables that were copied, each with the schema of its history, or ``_EMPTY``."""
        with _slots_lock:
            # From 1, because a cache key leaves out a 0.
            self.slot = next(number for number in count(1) if number not in _slots)
            _slots.add(self.slot)

    def slot_at(self, when: datetime) -> int:
        """Return the slot for a statement that reads as of the instant of the session."""
        self._when = when
        return self.slot

    def listen_on(self, connection: Connection) -> None:
        """Make copies before a connection executes statements that read them."""
        if connection not in self._schemas:
            self._schemas[connection] = {}
            for name in _EVENTS:
                event.listen(connection, name, getattr(self, f"_{name}"))

    def end(self) -> None:
        """Drop the copies."""
        is_dropped = True
        for connection in list(self._schemas):
            for name in _EVENTS:
                event.remove(connection, name, getattr(self, f"_{name}"))
            is_dropped = self._drop(connection) and is_dropped
        self._schemas.clear()
        if is_dropped:
            with _slots_lock:
                _slots.discard(self.slot)

    def _before_cursor_execute(
        self, connection: Connection, cursor: Any, text: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        compiled = getattr(context, "compiled", None)
        if isinstance(compiled, PastCompiler):
            for tracked, slot in compiled.past_copies.items():
                if slot == self.slot:
                    self._provide(connection, tracked, context.execution_options.get(_TRANSLATED) or {})

    def _commit(self, connection: Connection) -> None:
        if not _drops_on_commit(connection):
            self._drop(connection)  # or the next user of the pooled connection would have them
        self._schemas[connection] = {}

    def _rollback(self, connection: Connection) -> None:
        if TRAITS[connection.dialect.name].commits_ddl or connection._is_autocommit_isolation():
            self._drop(connection)
        self._schemas[connection] = {}

    def _rollback_savepoint(self, connection: Connection, name: str, context: None) -> None:
        self._schemas[connection] = dict.fromkeys(self._schemas[connection], _EMPTY)

    def _provide(self, connection: Connection, tracked: TrackedTable, translated: Mapping[str | None, str]) -> None:
        """Copy a table, unless its copy is there."""
        schemas = self._schemas[connection]
        schema = translated.get(tracked.history.schema, tracked.history.schema)
        if schemas.get(tracked, _EMPTY) == schema:
            return
        if isinstance(connection.get_transaction(), TwoPhaseTransaction):
            raise _cannot_copy(tracked, "a two-phase transaction cannot have temporary tables")
        is_autocommit = connection._is_autocommit_isolation()
        if TRAITS[connection.dialect.name].begins_late and not schemas and not is_autocommit:
            connection.dialect.do_savepoint(connection, _SAVEPOINT)  # begins the transaction, so that it undoes DDL
        schemas[tracked] = _EMPTY
        copy = _copy_of(tracked, self.slot)
        options = {**INTERNAL, _TRANSLATED: translated} if translated else INTERNAL
        with explaining_history_errors([tracked]):
            try:
                connection.execute(DropTemporary(copy), execution_options=options)
                connection.execute(
                    _CreateCopy(tracked, copy, drops_on_commit=_drops_on_commit(connection)), execution_options=options
                )
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                explain_history_error(error, [tracked])
                raise _cannot_copy(tracked, str(error.orig).partition("\n")[0]) from error
            when, literal = instant_parameters(self._when)
            rows = all_rows_at(tracked, connection.dialect, when, literal)
            connection.execute(insert(copy).from_select(list(copy.c), rows), execution_options=options)
        for statement in _finishing(tracked, copy, connection.dialect):
            connection.execute(statement, execution_options=options)
        schemas[tracked] = schema

    def _drop(self, connection: Connection) -> bool:
        """Drop the copies on a connection. Return whether they are gone, or will be after the transaction."""
        schemas, self._schemas[connection] = self._schemas[connection], {}
        if not schemas or connection.closed or connection.invalidated:
            return True
        savepoint = _SAVEPOINT if _drops_on_commit(connection) else None
        try:
            if savepoint:
                connection.dialect.do_savepoint(connection, savepoint)
        except (DBAPIError, InvalidRequestError):  # the transaction has failed, and can only roll back
            return True
        try:
            for tracked in schemas:
                connection.execute(DropTemporary(_copy_of(tracked, self.slot)), execution_options=INTERNAL)
        except (DBAPIError, InvalidRequestError):  # a result that reads a copy is open
            if savepoint:
                connection.dialect.do_rollback_to_savepoint(connection, savepoint)
            return False
        if savepoint:
            connection.dialect.do_release_savepoint(connection, savepoint)
        return True


def _drops_on_commit(connection: Connection) -> bool:
    return TRAITS[connection.dialect.name].drops_on_commit and not connection._is_autocommit_isolation()


def _cannot_copy(tracked: TrackedTable, reason: str) -> QueryError:
    return QueryError(
        f"The past of {tracked.live.fullname!r} could not be copied into a temporary table: {reason}. Call "
        "time_travel() without materialize=True, or let the role create temporary tables.",
        tracked.live,
    )


def _copy_of(tracked: TrackedTable, slot: int) -> TableClause:
    """Return the copy of a table. It is no Table, so that no schema map applies to it."""
    return table(copy_name(tracked, slot), *(column(each.name, each.type) for each in tracked.live.c))


class _CreateCopy(ExecutableDDLElement):
    """Create an empty copy of a table, whose columns have the types of its history's."""

    def __init__(self, tracked: TrackedTable, copy: TableClause, *, drops_on_commit: bool) -> None:
        self.tracked, self.copy, self.drops_on_commit = tracked, copy, drops_on_commit


@compiles(_CreateCopy)
def _create_from_select(element: _CreateCopy, compiler: DDLCompiler, definitions: str = "", **kw: Any) -> str:
    definitions += " ON COMMIT DROP" if element.drops_on_commit else ""
    rows = all_columns(element.tracked, compiler.dialect).where(false()).subquery("past")
    # In a subquery, because a type may convert the columns of the outermost select to what Python reads.
    text = compiler.sql_compiler.process(select(literal_column("*")).select_from(rows), literal_binds=True)
    return f"CREATE TEMPORARY TABLE {compiler.preparer.format_table(element.copy)}{definitions} AS {text}"


@compiles(_CreateCopy, *MYSQL)
def _create_with_indexes(element: _CreateCopy, compiler: DDLCompiler, **kw: Any) -> str:
    # Here, because CREATE INDEX would commit.
    indexes = (f"INDEX {_list(columns, compiler)}" for columns in _indexed(element.tracked, compiler.dialect))
    definitions = ", ".join((f"PRIMARY KEY {_list(element.tracked.key, compiler)}", *indexes))
    return _create_from_select(element, compiler, f" ({definitions})")


@compiles(_CreateCopy, "sqlite")
def _create_with_types(element: _CreateCopy, compiler: DDLCompiler, **kw: Any) -> str:
    # Without AS, which would lose the collations.
    stored = dict(element.tracked.columns)
    types = {column: stored.get(column, column).type for column in element.tracked.live.c}
    definitions = [
        f"{compiler.preparer.quote(column.name)} {'' if isinstance(type_, NullType) else _text_of(type_, compiler)}"
        for column, type_ in types.items()
    ]
    definitions.append(f"PRIMARY KEY {_list(element.tracked.key, compiler)}")
    return f"CREATE TEMPORARY TABLE {compiler.preparer.format_table(element.copy)} ({', '.join(definitions)})"


def _text_of(type_: TypeEngine[Any], compiler: DDLCompiler) -> str:
    return compiler.dialect.type_compiler_instance.process(type_)


def _list(columns: Iterable[ColumnClause[Any]], compiler: DDLCompiler) -> str:
    return f"({', '.join(compiler.preparer.quote(column.name) for column in columns)})"


class _IndexCopy(ExecutableDDLElement):
    """Index columns of a copy."""

    def __init__(self, copy: TableClause, columns: Sequence[ColumnClause[Any]], place: int) -> None:
        self.copy, self.columns, self.place = copy, columns, place


@compiles(_IndexCopy)
def _render_index(element: _IndexCopy, compiler: DDLCompiler, **kw: Any) -> str:
    name = compiler.preparer.quote(shortened(f"{element.copy.name}_{element.place}"))
    copy = compiler.preparer.format_table(element.copy)
    # The key of the copy comes first, and SQLite has it as the primary key.
    unique = "" if element.place else "UNIQUE "
    return f"CREATE {unique}INDEX {name} ON {copy} {_list(element.columns, compiler)}"


class _AnalyzeCopy(ExecutableDDLElement):
    """Tell the planner what is in a copy."""

    def __init__(self, copy: TableClause) -> None:
        self.copy = copy


@compiles(_AnalyzeCopy)
def _render_analyze(element: _AnalyzeCopy, compiler: DDLCompiler, **kw: Any) -> str:
    return f"ANALYZE {compiler.preparer.format_table(element.copy)}"


def _finishing(tracked: TrackedTable, copy: TableClause, dialect: Dialect) -> Iterator[ExecutableDDLElement]:
    """Yield the statements that index a filled copy, where its creation did not."""
    traits = TRAITS[dialect.name]
    if traits.commits_ddl:
        return
    for place, columns in enumerate(chain([tracked.key], _indexed(tracked, dialect))):
        if place or traits.has_typed_columns:
            yield _IndexCopy(copy, columns, place)
    if traits.needs_analyze:
        yield _AnalyzeCopy(copy)


def _indexed(tracked: TrackedTable, dialect: Dialect) -> Iterator[Sequence[Column[Any]]]:
    """Yield each group of columns that a copy has an index of, besides the key.

    An index with options, for instance of some rows only, is left out.
    """
    live, stored = tracked.live, {column for column, _ in tracked.columns}
    indexes = sorted((index for index in live.indexes if not index.dialect_kwargs), key=lambda index: str(index.name))
    groups: Iterable[Sequence[Any]] = chain(
        unique_together(live),
        sorted((tuple(key.columns) for key in live.foreign_key_constraints), key=str),
        (tuple(index.expressions) for index in indexes),
    )
    for columns in dict.fromkeys(groups):
        if (
            stored.issuperset(columns)
            and columns != tracked.key
            and all(_can_be_indexed(column, dialect) for column in columns)
        ):
            yield columns


def _can_be_indexed(column: Column[Any], dialect: Dialect) -> bool:
    """Return whether an index of a column needs no length."""
    type_ = implementation_of(column.type, dialect)
    if not TRAITS[dialect.name].limits_bytes:
        return True
    return not isinstance(type_, (Text, JSON)) and not (
        isinstance(type_, (String, LargeBinary)) and type_.length is None
    )
