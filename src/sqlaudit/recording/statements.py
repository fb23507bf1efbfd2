"""How are versions written in SQL? By statements that are built once per table and dialect.

The instant, the keys and the context are bound parameters. The statements use no database clock, no volatile function
and no MERGE, so that they also run on a distributed PostgreSQL. Only :meth:`Statements.close_and_snapshot` and
:meth:`Statements.close_and_tombstone` have data-modifying CTEs, or are blocks of statements, to save a round trip where
a server accepts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from enum import Enum, auto
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from typing import cast as cast_type
from weakref import WeakKeyDictionary, ref

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Date,
    DateTime,
    Dialect,
    Executable,
    Exists,
    FromClause,
    Insert,
    Integer,
    Select,
    String,
    Text,
    Update,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    type_coerce,
    update,
)
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.base import Generative
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.changes import Operation
from sqlaudit.period import OpenEnd, UTCDateTime, is_open
from sqlaudit.sql.batches import SelectedKeys
from sqlaudit.sql.comparing import COMPARED_BY_VALUE, all_equal, any_of, differs
from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.keys import KeyArray, KeyTypes, bound, implementation_of, raw_columns
from sqlaudit.sql.lists import (
    JSONList,
    in_bound_list,
    one_of_arrays,
    one_of_json,
    rows_of_arrays,
    rows_of_json,
    takes_array,
    takes_json_list,
)
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias, joined_live_tables
from sqlaudit.tracking.catalogue import are_distributed, distributed_tables
from sqlaudit.tracking.foreign_keys import Source
from sqlaudit.tracking.tables import TrackedTable, guard_index_name, guard_name

UserFields = tuple[Column[Any] | None, Column[Any] | None]
"""The live columns that name the user of a row: one is read before the configured callback, one after it."""

NO_USER_FIELDS: Final[UserFields] = (None, None)


class user_text(FunctionElement[str]):
    """The user id in a column of the row, as text."""

    type = String()
    inherit_cache = True


@compiles(user_text)
def _user_text(element: user_text, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    type_ = column.type
    while isinstance(type_, TypeDecorator):
        type_ = type_.load_dialect_impl(compiler.dialect)
    if isinstance(type_, Uuid) and not (type_.native_uuid and compiler.dialect.supports_native_uuid):
        lengths = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
        parts = [func.substr(column, start, length, type_=String()) for start, length in lengths]
        text: ColumnElement[str] = parts[0]
        for part in parts[1:]:
            text = text.concat("-").concat(part)
        return compiler.process(func.lower(text), **kw)
    return compiler.process(cast(column, String(255)), **kw)


class CopyingInsert(Insert):
    """An INSERT that copies dates such as ``0000-00-00`` or 31 February even if the SQL mode now forbids them."""

    inherit_cache = True


@compiles(CopyingInsert, *MYSQL)
def _keep_dates(element: CopyingInsert, compiler: SQLCompiler, **kw: Any) -> str:
    text: str = compiler.visit_insert(element, **kw)  # type: ignore[no-untyped-call]  # SQLAlchemy's
    if not getattr(compiler.dialect, "is_mariadb", False):
        return text.replace("INSERT ", "INSERT /*+ SET_VAR(sql_mode='STRICT_ALL_TABLES,ALLOW_INVALID_DATES') */ ", 1)
    strict = " OR ".join(f"FIND_IN_SET('STRICT_{which}_TABLES', @@sql_mode)" for which in ("TRANS", "ALL"))
    mode = f"IF({strict}, 'STRICT_ALL_TABLES,ALLOW_INVALID_DATES', 'ALLOW_INVALID_DATES')"
    return f"SET STATEMENT sql_mode = {mode} FOR {text}"


def copying_into(table: TrackedTable) -> Insert:
    """Return an INSERT into a history table that copies values of its live table."""
    has_dates = any(isinstance(column.type, (Date, DateTime, TypeDecorator)) for column, _ in table.columns)
    return (CopyingInsert if has_dates else Insert)(table.history)


class CompoundStatement(Generative, Executable, ClauseElement):
    """A block of statements, of which MariaDB executes all if the first writes one row, and else only that.

    Its rowcount is the number of rows that all of them have written.
    """

    inherit_cache = True
    _traverse_internals = [("statements", InternalTraversal.dp_clauseelement_list)]  # noqa: RUF012  # as SQLAlchemy does

    def __init__(self, *statements: Executable) -> None:
        self.statements: list[Any] = list(statements)


@compiles(CompoundStatement)
def _block(element: CompoundStatement, compiler: SQLCompiler, **kw: Any) -> str:
    first, *others = (compiler.process(statement, **kw) for statement in element.statements)
    compiler.isinsert = compiler.isupdate = False  # else SQLAlchemy takes the block for its first statement
    return f"BEGIN NOT ATOMIC {first}; IF ROW_COUNT() = 1 THEN {'; '.join(others)}; END IF; END"


T = TypeVar("T")
_ONE: Final[ColumnElement[Any]] = literal_column("1")
_at = bindparam("sqlaudit_at", type_=UTCDateTime())


def has_open_version(
    table: TrackedTable, key: Sequence[ColumnElement[Any]], *, with_guard: Set[TrackedTable] = frozenset()
) -> ColumnElement[bool]:
    """Return the condition that the row with a key has an open version.

    :param with_guard: see :func:`~sqlaudit.tracking.catalogue.tables_with_guard`
    """
    past = table.cache.get(HistoryAlias)
    if past is None:  # an alias builds all its columns again
        past = table.cache[HistoryAlias] = HistoryAlias(table)
    found = [_is_found_by_guard(past)] if table in with_guard else []
    return _exists(past, past.has_key(key), past.is_open, *found)


def _is_found_by_guard(past: HistoryAlias) -> ColumnElement[bool]:
    """Return a condition that holds for open versions, by which MariaDB and MySQL find them.

    Without partial indexes they would read and lock all versions of the rows.
    """
    guard = column(guard_name(past.table), Integer())
    guard.table = past.clause
    return guard == literal_column("0")


def _exists(source: FromClause | HistoryAlias, *criteria: ColumnElement[bool]) -> Exists:
    clause = source.clause if isinstance(source, HistoryAlias) else source
    return exists(select(_ONE).select_from(clause).where(*criteria))


def _literal(operation: Operation) -> ColumnElement[Any]:
    return literal_column(f"'{operation.value}'")


def key_types_of(table: TrackedTable, dialect: Dialect) -> KeyTypes:
    """Return what the types of a table's key allow."""
    statements = table.statements.setdefault(dialect, {})
    types: KeyTypes | None = statements.get(KeyTypes)
    if types is None:
        types = statements[KeyTypes] = KeyTypes(table.key, dialect)
    return types


def ask_once(
    connection: Connection, chain: Sequence[TrackedTable], question: Callable[[Connection, Sequence[TrackedTable]], T]
) -> T:
    """Return what a function finds in the catalogue about the tables of a chain; an engine asks once."""
    kept = chain[-1].statements.setdefault(connection.dialect, {})
    if question not in kept:
        kept[question] = question(connection, chain)
    return cast_type(T, kept[question])


def can_lock_many(connection: Connection, source: Source) -> bool:
    """Return whether one statement can lock many rows of a table. Citus refuses it if it distributes the table."""
    if isinstance(source, TrackedTable):
        return not ask_once(connection, (source,), are_distributed)
    return not distributed_tables(connection, [source.live])


class Prepared:
    """A statement compiled for one dialect: to execute it, only the parameters have to be bound.

    This halves the cost of the two statements, measured on a transaction that changes one row. The statement itself
    takes ten times the memory of its text, and is built again for the few connections that need it.
    """

    def __init__(self, statement: Executable, rebuild: Callable[[], Executable]) -> None:
        self._statement: Executable | None = statement
        self._rebuild = rebuild
        self._is_compiled = False
        self._sql: str | None = None
        self._positions: list[str] | None = None
        self._constants: dict[str, Any] = {}
        self._types: dict[str, TypeEngine[Any]] = {}

    @property
    def statement(self) -> Executable:
        if (statement := self._statement) is None:
            statement = self._statement = self._rebuild()
        return statement

    def _compile(self, dialect: Dialect) -> None:
        compiled = cast_type(SQLCompiler, self.statement.compile(dialect=dialect))  # type: ignore[attr-defined]
        for name, bind in compiled.binds.items():
            if name.startswith("sqlaudit_"):
                self._types[name] = bind.type
            else:
                processor = _processor(bind.type, dialect)
                self._constants[name] = bind.value if processor is None else processor(bind.value)
        self._positions = compiled.positiontup
        if dialect.bind_typing is not BindTyping.SETINPUTSIZES and not any(
            bind.expanding or bind.literal_execute for bind in compiled.binds.values()
        ):
            self._sql, self._statement = compiled.string, None
        self._is_compiled = True

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        if not self._is_compiled:
            self._compile(connection.dialect)
        if self._sql is None or "schema_translate_map" in connection.get_execution_options():
            return connection.execute(self.statement, parameters)
        bound = self._constants.copy()
        for name, processor in self._processors(connection.dialect):
            bound[name] = parameters[name] if processor is None else processor(parameters[name])
        values = bound if self._positions is None else tuple(map(bound.__getitem__, self._positions))
        return connection.exec_driver_sql(self._sql, values, execution_options=INTERNAL)

    def _processors(self, dialect: Dialect) -> list[tuple[str, Any]]:
        """Return the functions that convert the parameters to values for the driver.

        They refer to the dialect, so the dialect keeps them; kept here, they would keep the dialect alive.
        """
        try:
            return cast_type("list[tuple[str, Any]]", vars(dialect)[_PROCESSORS][self])
        except KeyError:
            processors_of_dialect = vars(dialect).setdefault(_PROCESSORS, WeakKeyDictionary())
            processors = processors_of_dialect[self] = [
                (name, _processor(type_, dialect)) for name, type_ in self._types.items()
            ]
            return processors


_PROCESSORS: Final = "sqlaudit_processors"


def _processor(type_: TypeEngine[Any], dialect: Dialect) -> Any:
    return type_.dialect_impl(dialect).bind_processor(dialect)


class LiveRows(Enum):
    """The live rows of which a snapshot writes versions."""

    ALL = auto()
    """All rows."""
    NEW = auto()
    """The rows without history, whose versions get number 1.

    Where a look for the history of a new key would lock its neighbours, so that inserts deadlock, the primary key of
    the history table refuses a second version number 1. The database undoes only that statement."""
    CLOSED = auto()
    """The rows whose last version was closed at the instant."""
    ABSENT = auto()
    """The rows without an open version and without a version that begins after the instant."""


class OpenVersions(Enum):
    """The open versions that a step ends."""

    ALL = auto()
    """All open versions."""
    CHANGED = auto()
    """The versions that differ from their live rows."""
    DELETED = auto()
    """The versions whose live rows are deleted."""


P = ParamSpec("P")
S = TypeVar("S", bound="Statements")


def step(build: Callable[Concatenate[S, P], list[Executable]]) -> Callable[Concatenate[S, P], list[Prepared]]:
    """Let a method that builds the statements of one step return them compiled, and build them once per choice."""

    @wraps(build)
    def prepared(self: S, /, *choices: P.args, **named: P.kwargs) -> list[Prepared]:
        kept = (build, *choices, *named.values())
        try:
            return self.built[kept]
        except KeyError:
            statements = built(self, *choices, **named)
            self.built[kept] = [
                Prepared(statement, lambda place=place: built(self, *choices, **named)[place])  # type: ignore[misc]
                for place, statement in enumerate(statements)
            ]
            return self.built[kept]

    def built(self: S, /, *choices: P.args, **named: P.kwargs) -> list[Executable]:
        return [
            statement.execution_options(preserve_rowcount=True, **INTERNAL)
            for statement in build(self, *choices, **named)
        ]

    return prepared


class Statements:
    """The statements that write the versions of objects that live in a chain of tables.

    Each statement selects its rows by ``sqlaudit_key_0``, … (one row) or by ``sqlaudit_keys`` (if ``many``).
    The statements for the base table decide which versions are written; those for the other tables copy them. Each step
    returns the statements of its tables; the one for the base table comes first.

    :param chain: the tables, from the base of the hierarchy to the objects' own
    :param user_fields: the live columns that name the user of a row, before and after the callback
    :param dialect: the dialect that the statements are compiled for
    :param selected: limits the statements to these rows; the key parameters are not used then
    :param raw_keys: True if the keys are raw, False if they are given (see :mod:`~sqlaudit.sql.keys`)
    :param as_text: see :func:`~sqlaudit.tracking.catalogue.columns_compared_as_text`
    :param with_guard: see :func:`~sqlaudit.tracking.catalogue.tables_with_guard`
    :param are_distributed: True if Citus distributes the tables. It refuses locks of many rows, and a subquery for each
        item of an array
    """

    def __init__(
        self,
        chain: Sequence[TrackedTable],
        user_fields: UserFields,
        many: bool,
        dialect: Dialect,
        selected: SelectedKeys | None = None,
        *,
        raw_keys: bool = False,
        as_text: Set[Column[Any]] = frozenset(),
        with_guard: Set[TrackedTable] = frozenset(),
        are_distributed: bool = False,
    ) -> None:
        self.chain = chain
        self.base = chain[0]
        self.many = many
        self.raw_keys = raw_keys
        self.as_text = as_text
        self.with_guard = with_guard
        self.are_distributed = are_distributed
        self.selected = selected
        self.user_fields = user_fields
        self._dialect = ref(dialect)
        self.built: dict[Any, list[Prepared]] = {}

    @property
    def dialect(self) -> Dialect:
        return cast_type(Dialect, self._dialect())

    @property
    def key_types(self) -> KeyTypes:
        return key_types_of(self.base, self.dialect)

    # -- parts

    def _has_one_of_keys(self, columns: Sequence[ColumnElement[Any]], *, again: bool = False) -> ColumnElement[bool]:
        """Return the condition that the columns have one of the keys.

        :param again: True if the statement has such a condition already. SQLAlchemy 2.0.40 expands a list of tuples
            in one place only
        """
        if self.selected is not None:
            return self.selected.among(columns)
        if not self.many:
            return self._has_key(columns)
        (column, *more) = columns = self._compared(declared := columns)
        if (lists := self._lists(columns)) is not None:
            return one_of_arrays(columns, lists) if more else column == any_(*lists)
        if more and self.are_distributed:
            return tuple_(*declared).in_(self._read_from_texts(declared))
        if not more and takes_json_list(column, self.dialect):
            return one_of_json(column, bindparam("sqlaudit_keys", type_=JSONList(column.type)))
        return in_bound_list(columns, "sqlaudit_keys_again" if more and again else "sqlaudit_keys")

    def _lists(self, columns: Sequence[ColumnElement[Any]]) -> list[BindParameter[Any]] | None:
        """Return the parameters for arrays of the values of columns, or ``None`` if the database takes no arrays."""
        if not all(takes_array(column, self.dialect) for column in columns):
            return None
        names = ["sqlaudit_keys"] if len(columns) == 1 else [f"sqlaudit_keys_{place}" for place in range(len(columns))]
        return [bindparam(name, type_=KeyArray(column.type)) for name, column in zip(names, columns, strict=True)]

    @staticmethod
    def _read_from_texts(columns: Sequence[ColumnElement[Any]]) -> Select[Any]:
        """Return a select of the keys that are given as arrays of texts. Of a list of constants Citus refuses more."""
        texts = [literal_column("", Text()) for _ in columns]
        lists = [bindparam(f"sqlaudit_keys_{place}", type_=KeyArray(Text())) for place, _ in enumerate(columns)]
        return select(
            *(cast(text, column.type) for text, column in zip(rows_of_arrays(texts, lists).c, columns, strict=True))
        )

    def _has_key(self, columns: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """Return the condition that the columns equal the key of the one row."""
        named = enumerate(self._compared(columns))
        return and_(*(column == bound(column, f"sqlaudit_key_{place}") for place, column in named))

    def _is_same_row(
        self, columns: Sequence[ColumnElement[Any]], row: Sequence[ColumnElement[Any]]
    ) -> ColumnElement[bool]:
        """Return the condition that the columns of a subquery equal the key of a row of the statement.

        The key of the one row is bound. Compared with a column of the statement, it would make the database evaluate
        the subquery for each version of the row, and a distributed PostgreSQL refuses the statement.
        """
        return all_equal(columns, row) if self.many else self._has_key(columns)

    def _compared(self, columns: Sequence[ColumnElement[Any]]) -> Sequence[ColumnElement[Any]]:
        """Return the expressions that are compared with the keys."""
        return raw_columns(columns, self.dialect) if self.raw_keys else columns

    def _user(self, columns: Mapping[Any, ColumnElement[Any]] | None) -> ColumnElement[Any]:
        """Return a row's user: from the context, else its first user column, the callback, its last user column."""
        first, last = self.user_fields
        context_user = bindparam("sqlaudit_user", type_=String())
        if first is None and last is None:
            return context_user
        callback = bindparam("sqlaudit_callback_user", type_=String())
        parts: list[ColumnElement[Any]] = [context_user]
        for field, following in ((first, [callback]), (last, [])):
            if field is not None:
                column = field if columns is None else columns.get(field)
                parts += [] if column is None else [func.nullif(user_text(column), literal_column("''"))]
            parts += following
        return func.coalesce(*parts)

    def _audit_values(self, operation: Operation, user: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """Return the audit columns after the period, ordered as :class:`~sqlaudit.tracking.history.AuditColumns`."""
        text: ColumnElement[str] = _literal(operation)
        if operation is Operation.BASELINE:
            return [text, self._changeset, null(), null(), null(), null()]
        return [
            text,
            self._changeset,
            user,
            bindparam("sqlaudit_impersonated_by", type_=String()),
            bindparam("sqlaudit_reason", type_=self.base.role("reason").type),
            bindparam("sqlaudit_extra", type_=self.base.role("extra").type),
        ]

    @property
    def _changeset(self) -> ColumnElement[Any]:
        return bindparam("sqlaudit_changeset", type_=self.base.role("changeset_id").type)

    def _insert_into_history(self, table: TrackedTable, source: Any) -> Executable:
        history = HistoryAlias(table, table.history)
        return copying_into(table).from_select([*history.stored, *history.audit], source, include_defaults=False)

    def _has_changed(self, history: HistoryAlias) -> ColumnElement[bool]:
        """Return the condition that an open version and its live row differ in stored columns or subclass tables.

        Quiet columns may differ: they alone make no version.
        """
        source, differences = joined_live_tables(self.chain, isouter=True), []
        quiet = self.base.quiet
        pairs = [(live, old) for live, old in history.columns if live.name not in quiet and self._may_change(live)]
        for table in self.chain[1:]:
            other = HistoryAlias(table)
            source = source.outerjoin(
                other.clause,
                and_(
                    all_equal(self.base.key, other.key),
                    other.version == history.version,
                    other.is_open,
                ),
            )
            without = {*table.quiet, *(column.name for column in table.key)}
            pairs += [(live, old) for live, old in other.columns if live.name not in without]
            differences.append(differs(table.key[0], other.key[0]))
        differences += [
            differs(cast(live, Text()), self._text_of(old)) if live in self.as_text else differs(live, old)
            for live, old in pairs
        ]
        if not differences:
            return false()
        same_row = self._is_same_row(self.base.key, history.key)
        return _exists(source, same_row, any_of(*differences)).correlate(history.clause)

    def _text_of(self, old: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return a history column as text; on MariaDB and MySQL a cast fails for bytes that are not valid text."""
        return type_coerce(old, Text()) if TRAITS[self.dialect.name].converts_to_compare else cast(old, Text())

    def _may_change(self, column: Column[Any]) -> bool:
        """Return whether a column may change in a row; one of the key may if it has equal spellings, 'a' and 'A'."""
        return column not in self.base.key or not isinstance(
            implementation_of(column.type, self.dialect), COMPARED_BY_VALUE
        )

    def _newest(
        self, past: HistoryAlias, row: Sequence[ColumnElement[Any]], value: ColumnElement[Any] | None = None
    ) -> Select[Any]:
        """Return the select of a value of the last version of a row with a key, by default of its number."""
        newest = select(past.version if value is None else value).where(self._is_same_row(past.key, row))
        newest = newest.order_by(past.version.desc()).limit(_ONE)
        # Else MariaDB and MySQL may scan a whole index backwards, and wait for transactions that write other rows.
        return cast_type("Select[Any]", self._by_primary_key(newest, past.clause, past.key, always=True))

    def _is_last(self, history: HistoryAlias) -> ColumnElement[bool]:
        """Return the condition that a version is the last one of its row, and lock that version FOR SHARE if possible.

        Of many rows the last versions are found first, by their keys. A subquery that compares with a column of the
        statement would be evaluated for each version.
        """
        past = HistoryAlias(history.table)
        if not self.many:
            newest = self._newest(past, history.key).with_for_update(read=True)
            return and_(self._has_key(history.key), history.version == newest.scalar_subquery())
        if self.are_distributed or TRAITS[self.dialect.name].locks_scanned_rows:
            number = func.max(past.version).label("sqlaudit_last")
            each = select(*past.key, number).where(self._has_one_of_keys(past.key)).group_by(*past.key)
            each = self._by_primary_key(each, past.clause, past.key)
            last_of_keys = (each if self.are_distributed else each.with_for_update(read=True)).subquery()
            is_last = all_equal((*history.key, history.version), last_of_keys.c)
            return and_(
                self._has_one_of_keys(history.key, again=True), is_last
            )  # whatever is scanned, no other row is locked
        keys = list(self._keys(past).c)
        newest = self._newest(HistoryAlias(history.table), keys).with_for_update(read=True)
        last = select(*keys, newest.scalar_subquery())
        return tuple_(*history.key, history.version).in_(last)

    def _keys(self, past: HistoryAlias) -> FromClause:
        """Return a table of the keys of many rows: of the given ones if possible, else of those that have versions."""
        columns = self._compared(past.key)
        if (lists := self._lists(columns)) is not None:
            return rows_of_arrays(columns, lists)
        if len(columns) == 1 and takes_json_list(columns[0], self.dialect):
            return rows_of_json(bindparam("sqlaudit_keys", type_=JSONList(columns[0].type)))
        return select(*past.key).where(self._has_one_of_keys(past.key)).distinct().subquery()

    def _by_primary_key(self, statement: Any, source: Any, key: Sequence[Any], *, always: bool = False) -> Any:
        """Force a statement with many keys, or with one too, to find the rows by the primary key.

        MariaDB scans the table if the keys are a good part of it (an eighth, measured). At its default isolation level
        it then locks all rows: it waits for transactions that wrote other rows, and they may wait for this one.
        """
        leads = set(list(source.primary_key)[: len(key)]) == set(key)
        return self._by_index(statement, source, "PRIMARY") if leads and (self.many or always) else statement

    def _by_index(self, statement: Any, source: Any, index: str) -> Any:
        if not TRAITS[self.dialect.name].locks_scanned_rows:
            return statement
        # Into the hint of a SELECT alone SQLAlchemy puts the table's name, for %(name)s.
        name = index.replace("%", "%%") if isinstance(statement, Select) else index
        return statement.with_hint(text=f"FORCE INDEX ({name})", selectable=source)

    def _is_open(self, past: HistoryAlias) -> ColumnElement[bool]:
        return and_(past.is_open, _is_found_by_guard(past)) if past.table in self.with_guard else past.is_open

    def _by_open_guard(self, statement: Any, past: HistoryAlias) -> Any:
        """Force a statement with many keys to find the open versions by their index, or else by the primary key."""
        if past.table not in self.with_guard:
            return self._by_primary_key(statement, past.clause, past.key)
        index = self.dialect.identifier_preparer.quote(guard_index_name(past.table))
        return self._by_index(statement, past.clause, index) if self.many else statement

    def _is_deleted(self, history: HistoryAlias) -> ColumnElement[bool]:
        return ~_exists(self.base.live, self._is_same_row(self.base.key, history.key))

    def unsettled(self, key: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """Return the condition that the history of the row with a key does not agree with the live row.

        An open baseline of this changeset does not count as agreeing, since no change followed it.
        """
        base, past = self.base, HistoryAlias(self.base)
        agrees = _exists(
            past,
            past.has_key(key),
            past.is_open,
            or_(past.operation != _literal(Operation.BASELINE), past.changeset_id != self._changeset),
            ~self._has_changed(past),
        )
        is_live = _exists(base.live, all_equal(base.key, key))
        has_null = or_(*(column.is_(None) for column in key))  # about which Capture warns
        return or_(has_null, and_(is_live, ~agrees), and_(~is_live, has_open_version(base, key)))

    # -- steps

    @step
    def snapshot(self, operation: Operation, rows: LiveRows) -> list[Executable]:
        """Write versions of live rows, which begin at the instant and are open."""
        return self._snapshot(operation, rows)

    def _snapshot(self, operation: Operation, rows: LiveRows) -> list[Executable]:
        base, past = self.base, HistoryAlias(self.base)
        last = self._newest(past, base.key).scalar_subquery()
        number = _ONE if rows is LiveRows.NEW else func.coalesce(last, literal_column("0")) + _ONE
        statement = self._by_primary_key(self._new_versions(operation, number), base.live, base.key)
        if rows is LiveRows.NEW and not TRAITS[self.dialect.name].locks_scanned_rows:
            # For a bound key PostgreSQL may scan the table to answer EXISTS, if it expects to find a version soon.
            has_versions = _exists(past, past.has_key(base.key)) if self.many else last.is_not(None)
            statement = statement.where(~has_versions)
        if rows is LiveRows.ABSENT:  # no version but the last is open, or begins later than the last
            ends_or_begins = case((past.is_open, past.valid_to), else_=past.valid_from)
            latest = self._newest(past, base.key, ends_or_begins).scalar_subquery()
            # Not coalesce(latest, :at): of an instant and a parameter MariaDB makes a text, and compares texts.
            statement = statement.where(func.coalesce(latest <= _at, true()))
        if rows is LiveRows.CLOSED:
            statement = statement.where(self._newest(past, base.key, past.valid_to).scalar_subquery() == _at)
        return [self._insert_into_history(base, statement), *self._copies_to_subclass_tables()]

    @step
    def close_and_snapshot(self) -> list[Executable]:
        """End the open versions that differ from their live rows, and write the next ones, which begin at the instant.

        The statement for the base table does what the first statements of :meth:`close` and :meth:`snapshot` do. Its
        rowcount is the number of rows that it has handled. A block of statements, which handles one row, does all that
        the two steps do, and has a rowcount if it has handled the row.
        """
        base = self.base
        if TRAITS[self.dialect.name].has_compound_statements:
            closes = self._closes(OpenVersions.CHANGED, guarded=True)
            return [CompoundStatement(*closes, *self._snapshot(Operation.UPDATE, LiveRows.ALL))]
        past = self._closed_in_cte(base, OpenVersions.CHANGED, (*base.history_key, base.version))
        statement = self._new_versions(Operation.UPDATE, past.version + _ONE, past)
        return [
            self._insert_into_history(base, statement),
            *(self._close(table, OpenVersions.CHANGED, guarded=True) for table in self.chain[1:]),
            *self._copies_to_subclass_tables(),
        ]

    def _new_versions(
        self, operation: Operation, number: ColumnElement[Any], closed: HistoryAlias | None = None
    ) -> Select[Any]:
        """Return the select of the versions of live rows, which begin at the instant and are open.

        :param closed: the versions that precede them, in the FROM clause; the rows without one are left out
        """
        base = self.base
        statement = select(
            *(live for live, _ in base.columns),
            number,
            _at,
            OpenEnd(),
            *self._audit_values(operation, self._user(None)),
        ).where(self._has_one_of_keys(base.key, again=closed is not None))
        of_base = {column for column, _ in base.columns}
        needs_base_only = all(field is None or field in of_base for field in self.user_fields)
        source = base.live if needs_base_only else joined_live_tables(self.chain, isouter=True)
        if closed is not None:
            source = source.join(closed.clause, closed.has_key(base.key))
        if base.is_association and not base.live.primary_key:  # it may have duplicate rows
            # Not DISTINCT: with it PostgreSQL takes the untyped literals for text.
            statement = statement.group_by(*(live for live, _ in base.columns))
            statement = statement if closed is None else statement.group_by(closed.version)
        return statement.select_from(source)

    def _copies_to_subclass_tables(self) -> Iterator[Executable]:
        for table in self.chain[1:]:
            yield self._copy_to_subclass_table(table, table.live, [live for live, _ in table.columns])

    def _copy_to_subclass_table(self, table: TrackedTable, source: Any, values: list[Any]) -> Executable:
        """Write, for a subclass table, the versions that this changeset has opened in the base table."""
        base_history, past = HistoryAlias(self.base), HistoryAlias(table)
        same_row = [source.c[column.key] for column in table.key]
        statement = (
            select(*values, *base_history.audit)
            .select_from(source.join(base_history.clause, base_history.has_key(same_row)))
            .where(
                self._has_one_of_keys(same_row),
                self._is_open(base_history),
                base_history.changeset_id == self._changeset,
                ~_exists(past, self._is_same_row(past.key, same_row), self._is_open(past)),
            )
        )
        return self._insert_into_history(table, self._by_primary_key(statement, source, same_row))

    @step
    def close(self, versions: OpenVersions, *, guarded: bool) -> list[Executable]:
        """End open versions.

        :param guarded: exclude the versions that do not begin before the instant
        """
        return self._closes(versions, guarded)

    def _closes(self, versions: OpenVersions, guarded: bool) -> list[Executable]:
        return [self._close(table, versions, guarded) for table in self.chain]

    def _close(self, table: TrackedTable, versions: OpenVersions, guarded: bool) -> Update:
        base, history, past = self.base, table.history, HistoryAlias(table, table.history)
        statement: Update = (
            update(history)
            .where(self._has_one_of_keys(table.history_key), self._is_open(past))
            .values({table.valid_to: _at})
        )
        statement = self._by_open_guard(statement, past)
        if table is not base:
            same = self._is_same_row(base.history_key, table.history_key), base.version == table.version
            return statement.where(_exists(base.history, *same, base.valid_to != OpenEnd()))
        if guarded:
            statement = statement.where(table.valid_from < _at)
        if versions is OpenVersions.CHANGED:
            statement = statement.where(self._has_changed(past))
        elif versions is OpenVersions.DELETED:
            statement = statement.where(self._is_deleted(past))
        return statement

    def _closed_in_cte(
        self, table: TrackedTable, versions: OpenVersions, columns: Iterable[Column[Any]]
    ) -> HistoryAlias:
        """Return the versions that a CTE ends, with some of their columns."""
        # The labels are not cut off, as SQLAlchemy does with long names of a CTE's columns.
        labelled = [column.label(column.key) for column in columns]
        closed = self._close(table, versions, guarded=True).returning(*labelled)
        return HistoryAlias(table, closed.cte("sqlaudit_closed"))

    @step
    def tombstone(self, versions: OpenVersions, *, guarded: bool) -> list[Executable]:
        """Write the tombstones of rows whose versions are still open; see :meth:`close`."""
        return self._tombstone(versions, guarded)

    def _tombstone(self, versions: OpenVersions, guarded: bool) -> list[Executable]:
        statements: list[Executable] = []
        for table in self.chain:
            past = HistoryAlias(table)
            statement = self._tombstones(past).where(self._has_one_of_keys(past.key), self._is_open(past))
            if table is self.base:
                if guarded:
                    statement = statement.where(past.valid_from < _at)
                if versions is OpenVersions.DELETED:
                    statement = statement.where(self._is_deleted(past))
            statements.append(self._insert_into_history(table, self._by_open_guard(statement, past)))
        return statements

    @step
    def close_and_tombstone(self, versions: OpenVersions) -> list[Executable]:
        """End open versions and write the tombstones that follow them, with one statement per table or for all.

        The statement does what those of :meth:`close` and :meth:`tombstone` do; for the rowcount see
        :meth:`close_and_snapshot`.
        """
        if TRAITS[self.dialect.name].has_compound_statements:
            return [CompoundStatement(*self._tombstone(versions, guarded=True), *self._closes(versions, guarded=True))]
        statements: list[Executable] = []
        for table in self.chain:
            past = self._closed_in_cte(table, versions, table.history.c)
            statements.append(self._insert_into_history(table, self._tombstones(past)))
        return statements

    def _tombstones(self, past: HistoryAlias) -> Select[Any]:
        """Return the select of the tombstones that follow versions."""
        if past.table is self.base:
            values = self._audit_values(Operation.DELETE, self._user(dict(past.columns)))
            return select(*past.stored, past.version + _ONE, _at, _at, *values)
        base_history = HistoryAlias(self.base)
        return (
            select(*past.stored, *base_history.audit)
            .select_from(past.clause.join(base_history.clause, base_history.has_key(past.key)))
            .where(
                base_history.version == past.version + _ONE,
                base_history.operation == _literal(Operation.DELETE),
            )
        )

    @step
    def tombstone_left_tables(self) -> list[Executable]:
        """Write the tombstones of rows that are gone from a subclass table, where the base table has a new version."""
        statements: list[Executable] = []
        for table in self.chain[1:]:
            past, base_history = HistoryAlias(table), HistoryAlias(self.base)
            audit_values = {role: base_history.role(role) for role, _ in self.base.names.items()}
            audit_values |= {"operation": _literal(Operation.DELETE), "valid_to": base_history.valid_from}
            statement = (
                select(*past.stored, *audit_values.values())
                .select_from(past.clause.join(base_history.clause, base_history.has_key(past.key)))
                .where(
                    self._has_one_of_keys(past.key),
                    self._is_open(base_history),
                    base_history.version == past.version + _ONE,
                    base_history.changeset_id == self._changeset,
                    base_history.valid_from == past.valid_to,
                    past.operation != _literal(Operation.DELETE),
                    ~_exists(table.live, self._is_same_row(table.key, past.key)),
                )
            )
            statements.append(self._insert_into_history(table, statement))
        return statements

    @step
    def remove(self) -> list[Executable]:
        """Delete one version, by its number."""
        return [
            delete(table.history).where(
                self._has_key(table.history_key),
                table.version == bindparam("sqlaudit_version", type_=Integer()),
            )
            for table in self.chain
        ]

    @step
    def reopen(self) -> list[Executable]:
        """Make one version, by its number, the open one again, unless it is the tombstone of a subclass table."""
        return [
            update(table.history)
            .where(
                self._has_key(table.history_key),
                table.version == bindparam("sqlaudit_version", type_=Integer()),
                table.role("operation") != _literal(Operation.DELETE),
            )
            .values({table.valid_to: OpenEnd()})
            for table in self.chain
        ]

    @step
    def forget_baseline(self) -> list[Executable]:
        """Delete the baselines of this changeset that no change followed."""
        return [
            delete(table.history).where(
                self._has_one_of_keys(table.history_key),
                self._is_open(HistoryAlias(table, table.history)),
                table.role("operation") == _literal(Operation.BASELINE),
                table.role("changeset_id") == self._changeset,
            )
            for table in self.chain
        ]

    @step
    def last(self) -> list[Executable]:
        """Read the last version of each row, and whether the live row is gone or differs from it."""
        base, history = self.base, HistoryAlias(self.base, self.base.history)
        user: ColumnElement[Any] = null()
        if self.user_fields is not NO_USER_FIELDS:
            row = (
                select(self._user(None))
                .select_from(joined_live_tables(self.chain, isouter=True))
                .where(self._is_same_row(base.key, base.history_key))
                .scalar_subquery()
            )
            user = func.coalesce(row, self._user(dict(base.columns)))
        statement = select(
            *self.key_types.read(base.history_key, as_raw=self.raw_keys),
            *history.audit,
            case((self._is_deleted(history), 1), else_=0).label("sqlaudit_gone"),
            case((self._has_changed(history), 1), else_=0).label("sqlaudit_changed"),
            user.label("sqlaudit_row_user"),
        ).where(self._is_last(history))
        if not (self.many and self.are_distributed):
            statement = statement.with_for_update()
        return [self._by_primary_key(statement, base.history, base.history_key)]

    @step
    def keys(self, columns: tuple[Column[Any], ...]) -> list[Executable]:
        """Find the live rows and the open versions whose ``columns`` of the base table have one of the given values."""
        return [
            select(*self._compared(self.base.key)).where(self._has_one_of_keys(columns)),
            select(*self._compared(self.base.history_key)).where(
                self._has_one_of_keys([self.base.history.c[column.key] for column in columns]),
                is_open(self.base.valid_to),
            ),
        ]
