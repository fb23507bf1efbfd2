"""Of which clauses do the statements on a history consist? How they find rows, compare versions and name the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final
from typing import cast as cast_type
from weakref import ref

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    Column,
    ColumnElement,
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
    Uuid,
    and_,
    any_,
    bindparam,
    cast,
    column,
    exists,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.base import Generative
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator

from sqlaudit.changes import Operation
from sqlaudit.recording.prepared import Steps
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
from sqlaudit.tracking.aliases import HistoryAlias, joined_live_tables
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


ONE: Final[ColumnElement[Any]] = literal_column("1")


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
    return has_row(past, past.has_key(key), past.is_open, *found)


def _is_found_by_guard(past: HistoryAlias) -> ColumnElement[bool]:
    """Return a condition that holds for open versions, by which MariaDB and MySQL find them.

    Without partial indexes they would read and lock all versions of the rows.
    """
    guard = column(guard_name(past.table), Integer())
    guard.table = past.clause
    return guard == literal_column("0")


def has_row(source: FromClause | HistoryAlias, *criteria: ColumnElement[bool]) -> Exists:
    clause = source.clause if isinstance(source, HistoryAlias) else source
    return exists(select(ONE).select_from(clause).where(*criteria))


def operation_text(operation: Operation) -> ColumnElement[Any]:
    return literal_column(f"'{operation.value}'")


def key_types_of(table: TrackedTable, dialect: Dialect) -> KeyTypes:
    """Return what the types of a table's key allow."""
    statements = table.statements.setdefault(dialect, {})
    types: KeyTypes | None = statements.get(KeyTypes)
    if types is None:
        types = statements[KeyTypes] = KeyTypes(table.key, dialect)
    return types


class Clauses(Steps):
    """The clauses of the statements that write the versions of objects that live in a chain of tables.

    Each statement selects its rows by ``sqlaudit_key_0``, … (one row) or by ``sqlaudit_keys`` (if ``many``).

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
        super().__init__()
        self.chain = chain
        self.base = chain[0]
        self.many = many
        self.raw_keys = raw_keys
        self.as_text = as_text
        self.with_guard = with_guard
        self.are_distributed = are_distributed
        self.selected = selected
        self.user_fields = user_fields
        self._are_divided = any(table.partitions for table in chain)
        self._dialect = ref(dialect)

    @property
    def dialect(self) -> Dialect:
        return cast_type(Dialect, self._dialect())

    @property
    def key_types(self) -> KeyTypes:
        return key_types_of(self.base, self.dialect)

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
            # For each row of a join PostgreSQL reads the partition of its key, and for an array it may read all.
            return one_of_arrays(columns, lists) if more or self._are_divided else column == any_(*lists)
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
        text: ColumnElement[str] = operation_text(operation)
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
        source: FromClause = joined_live_tables(self.chain, isouter=True)
        differences: list[ColumnElement[bool]] = []
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
        differences += [self._differs(live, old) for live, old in pairs]
        if not differences:
            return false()
        same_row = self._is_same_row(self.base.key, history.key)
        return has_row(source, same_row, any_of(*differences)).correlate(history.clause)

    def _differs(self, live: Column[Any], old: ColumnElement[Any]) -> ColumnElement[bool]:
        """Return the condition that a version has not what it would store of the live column now."""
        value = self._recorded(live)
        return differs(cast(value, Text()), self._text_of(old)) if live in self.as_text else differs(value, old)

    def _recorded(self, live: Column[Any]) -> ColumnElement[Any]:
        return next(table for table in self.chain if table.live is live.table).recorded(live)

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
        newest = newest.order_by(past.version.desc()).limit(ONE)
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
        return ~has_row(self.base.live, self._is_same_row(self.base.key, history.key))

    def unsettled(self, key: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """Return the condition that the history of the row with a key does not agree with the live row.

        An open baseline of this changeset does not count as agreeing, since no change followed it.
        """
        base, past = self.base, HistoryAlias(self.base)
        agrees = has_row(
            past,
            past.has_key(key),
            past.is_open,
            or_(past.operation != operation_text(Operation.BASELINE), past.changeset_id != self._changeset),
            ~self._has_changed(past),
        )
        is_live = has_row(base.live, all_equal(base.key, key))
        has_null = or_(*(column.is_(None) for column in key))  # about which Capture warns
        return or_(has_null, and_(is_live, ~agrees), and_(~is_live, has_open_version(base, key)))
