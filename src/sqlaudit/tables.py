"""Where are the versions of a table kept? The history table of a live table.

Both carry a :class:`TrackedTable` in ``table.info["sqlaudit"]``. A history table is made when a model is decorated,
so that ``create_all`` and Alembic see it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain, takewhile
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import (
    DDL,
    JSON,
    Column,
    Connection,
    Dialect,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    TableClause,
    Text,
    UniqueConstraint,
    Uuid,
    event,
    inspect,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapper, registry
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.schema import BLANK_SCHEMA, ExecutableDDLElement, conv
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from sqlaudit.changes import Operation
from sqlaudit.context import USER_ID_LENGTH
from sqlaudit.exceptions import TrackingError
from sqlaudit.period import OpenEnd, PeriodToIndex, UTCDateTime, is_open
from sqlaudit.readable import readable

INFO_KEY: Final = "sqlaudit"
_ON_CONFLICT: Final = "sqlaudit_on_conflict"
_MAX_IDENTIFIER: Final = 63  # PostgreSQL's, in bytes; the others allow at least as many
_TABLE_OPTIONS: Final = ("engine", "charset", "default_charset", "collate", "default_collate")
_known: WeakSet[MetaData] = WeakSet()
tracked_names: Final[set[str]] = set()
"""The names of all tables that have ever been tracked, and of their histories."""
unread: Final[set[ref[TrackedTable]]] = set()
"""The tables whose foreign keys have not been read since they were tracked, or got more columns."""


@dataclass(frozen=True, slots=True)
class AuditColumns:
    """The names of our columns in a history table, for models whose own columns clash with them."""

    version: str = "audit_version"
    valid_from: str = "valid_from"
    valid_to: str = "valid_to"
    operation: str = "audit_operation"
    changeset_id: str = "audit_changeset_id"
    changed_by: str = "audit_changed_by"
    impersonated_by: str = "audit_impersonated_by"
    reason: str = "audit_reason"
    extra: str = "audit_extra"

    def items(self) -> Iterator[tuple[str, str]]:
        """Yield each role and the name of its column."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))


class OperationText(TypeDecorator[Operation]):
    """An :class:`~sqlaudit.changes.Operation` as its text; an ``Enum`` would bring DDL of its own."""

    impl = String(16)
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str], Operation | None]:
        return {str(operation): operation for operation in Operation}.get


def audit_column_types() -> dict[str, TypeEngine[Any]]:
    """Return the type of our column of each role."""
    # Bob is not bob, whatever a database thinks of their names.
    user_id = String(USER_ID_LENGTH).with_variant(
        mysql.VARCHAR(USER_ID_LENGTH, collation="utf8mb4_bin"), "mysql", "mariadb"
    )
    return {
        "version": Integer(),
        "valid_from": UTCDateTime(),
        "valid_to": UTCDateTime(),
        "operation": OperationText(),
        # One type per database, whether a server answers or not: Uuid alone depends on MariaDB's version.
        "changeset_id": Uuid(native_uuid=False).with_variant(Uuid(), "postgresql"),
        "changed_by": user_id,
        "impersonated_by": user_id,
        "reason": Text().with_variant(mysql.LONGTEXT(collation="utf8mb4_bin"), "mysql", "mariadb"),
        "extra": JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql"),
    }


class TrackedTable:
    """A live table, its history table, and which column is which.

    :ivar live: the live table
    :ivar key: the columns of the live table that identify a row
    :ivar history: the history table
    :ivar names: the names of our columns in it
    :ivar as_of_index: whether it has indexes for reads of many rows as of an instant
    :ivar mapper: of the model whose rows it holds, or of one at an end of its links: both lie on that one's bind
    """

    def __init__(
        self,
        live: Table,
        key: Iterable[Column[Any]],
        *,
        exclude: Iterable[str] = (),
        name: str | None = None,
        names: AuditColumns | None = None,
        is_association: bool = False,
        as_of_index: bool = False,
        mapper: Mapper[Any] | None = None,
    ) -> None:
        self.live = live
        self.key = tuple(key)
        self.exclude = frozenset(exclude)
        self.is_association = is_association
        self.as_of_index = as_of_index
        self.mapper = mapper
        self.names = names or AuditColumns()
        self.chains: list[tuple[TrackedTable, ...]] = []  # those of the models whose objects have rows in this table
        self.cache: dict[Any, Any] = {}
        self.statements: WeakKeyDictionary[Dialect, Any] = WeakKeyDictionary()  # built once per dialect
        self.history = self._make_table(name)
        self._index_for_reads()
        live.info[INFO_KEY] = self.history.info[INFO_KEY] = self
        self.history.add_is_dependent_on(live)  # whose CREATE makes the types that both use
        _known.add(live.metadata)
        unread.add(ref(self))
        tracked_names.update((live.name, self.history.name))

    def __reduce__(self) -> Any:
        return _not_tracked, ()  # of a copy of the table, which pickle or deepcopy makes

    def _make_table(self, name: str | None) -> Table:
        live, metadata = self.live, self.live.metadata
        name = name or shortened(f"{live.name}_history")
        key = name if live.schema is None else f"{live.schema}.{name}"
        for table in (live, metadata.tables.get(key)):
            if (earlier := tracked_table(table)) is not None and earlier.is_over:
                earlier.discard()
        if key in metadata.tables:
            raise TrackingError(
                f"The history table of {live.fullname!r} cannot be named {key!r}, there is such a table already; "
                "choose another name: track_table(history_table_name=…).",
                live,
            )
        names = [column for role, column in self.names.items()]
        if len(set(names)) < len(names):
            raise TrackingError(f"{self.names} gives two columns one name; give each its own.", live)
        history = Table(
            quoted_name(name, getattr(live.name, "quote", None)),
            metadata,
            *(self._copy_of(column) for column in self._stored_columns()),
            *(
                Column(
                    getattr(self.names, role),
                    type_,
                    primary_key=role == "version",
                    autoincrement=False,
                    nullable=role in ("changed_by", "impersonated_by", "reason", "extra"),
                )
                for role, type_ in audit_column_types().items()
            ),
            schema=live.schema or BLANK_SCHEMA,
            **options_of(live),
        )
        where = is_open(history.c[self.names.valid_to])
        Index(
            conv(shortened(f"uq_{name}_open")),
            *(history.c[column.key] for column in self.key),
            unique=True,
            postgresql_where=where,
            sqlite_where=where,
        )
        _make_partial_only(history, history.name)
        event.listen(
            history, "before_create", lambda copy, *_, **kw: _make_partial_only(copy, history.name), propagate=True
        )
        Index(conv(shortened(f"ix_{name}_changeset")), history.c[self.names.changeset_id])
        for element in (*collation_statements(live, history), AddOpenGuard(history)):
            # A copy of the table, by Table.to_metadata(), gets what propagates.
            is_guard = isinstance(element, AddOpenGuard)
            on_mysql = element.execute_if(dialect=cast(str, ("mysql", "mariadb")))
            event.listen(history, "after_create", on_mysql, propagate=is_guard)
        return history

    def _index_for_reads(self) -> None:
        """Index the periods, and the foreign keys that the live table has indexes of."""
        if not self.as_of_index:
            return
        name, existing = self.history.name, {index.name for index in self.history.indexes}
        period = conv(shortened(f"ix_{name}_period"))
        if period not in existing:
            index = Index(period, PeriodToIndex(self.valid_from, self.valid_to), postgresql_using="gist")
            # Of an expression, an index takes the first column alone; Alembic compares them with those that it finds.
            index._columns.add(self.valid_from)
        for index in sorted(self.live.indexes, key=lambda index: str(index.name)):
            # An expression in it has no column of the table, and ends what is copied.
            stored = takewhile(lambda part: part in set(self._stored_columns()), index.expressions)
            columns = [self.history.c[column.key] for column in cast("Iterable[Column[Any]]", stored)]
            copy = conv(shortened(f"ix_{name}_{'_'.join(column.name for column in columns)}"))
            if columns and self.live.c[columns[0].key].foreign_keys and copy not in existing:
                existing.add(copy)
                Index(copy, *columns)

    def _stored_columns(self) -> Iterator[Column[Any]]:
        return (column for column in self.live.c if not column.system and column.name not in self.exclude)

    def refuse_column(self, column: Column[Any]) -> None:
        """Raise if the history table cannot store a column.

        :raises TrackingError: its name is one of ours
        """
        key = column.key or column.name  # a column that no table has yet may have no key
        refuse_clash(self.names, repr(self.live.fullname), {column.name, key}, self.live)
        if key.startswith("sqlaudit_"):
            raise TrackingError(
                f"{self.live.fullname!r} has a column {key!r}, and names that begin with 'sqlaudit_' are those "
                "of our parameters; give the column another key: mapped_column(…, key=…).",
                self.live,
            )

    def _copy_of(self, column: Column[Any]) -> Column[Any]:
        self.refuse_column(column)
        is_key = column in set(self.key)  # a set: == is the type's own, and may be anything
        copy: Column[Any] = Column(
            column.name, key=column.key, primary_key=is_key, nullable=not is_key, autoincrement=False
        )
        # Set afterwards, the type is shared without its DDL: no CHECK, no second CREATE TYPE.
        copy.type = readable(column.type)
        return copy

    def follow(self, column: Column[Any]) -> None:
        """Store a column that the live table gets, or that takes the place of another."""
        if column.key in self.history.c:
            self.history.c[column.key].type = readable(column.type)
        elif column in set(self._stored_columns()):
            self.history.append_column(self._copy_of(column))
        unread.add(ref(self))
        self.__dict__.pop("columns", None)
        for table in {self, *chain.from_iterable(self.chains)}:
            table.statements.clear()
            table.cache.clear()

    def complete(self) -> None:
        """Add what is known now: the type that a foreign key has from its target, and the indexes for reads."""
        for column, copy in self.columns:
            if isinstance(copy.type, NullType):
                copy.type = readable(column.type)
        self._index_for_reads()

    @property
    def is_over(self) -> bool:
        """Whether the class that it was tracked for is mapped to it no longer, or its MetaData has dropped it."""
        is_mapped = self.mapper is None or inspect(self.mapper.class_, raiseerr=False) is self.mapper
        return not is_mapped or self.live.metadata.tables.get(self.live.key) is not self.live

    def discard(self) -> None:
        """Let the table be tracked no more."""
        self.live.metadata.remove(self.history)
        for table in (self.live, self.history):
            table.info.pop(INFO_KEY, None)

    @cached_property
    def columns(self) -> list[tuple[Column[Any], Column[Any]]]:
        """The stored columns: (live column, history column)."""
        return [(column, self.history.c[column.key]) for column in self._stored_columns()]

    @property
    def history_key(self) -> tuple[Column[Any], ...]:
        """The columns of the history table that identify a row; a version needs its number, too."""
        return tuple(self.history.c[column.key] for column in self.key)

    def role(self, role: str) -> Column[Any]:
        """Return our column of a role: a field of :class:`AuditColumns`."""
        name: str = getattr(self.names, role)
        return self.history.c[name]

    @property
    def version(self) -> Column[int]:
        return self.role("version")

    @property
    def valid_from(self) -> Column[Any]:
        return self.role("valid_from")

    @property
    def valid_to(self) -> Column[Any]:
        return self.role("valid_to")


def _not_tracked() -> None:
    return None


def refuse_clash(ours: AuditColumns, owner: str, names: Collection[str], subject: object) -> None:
    for role, name in ours.items():
        if name in names:
            other = f"audit_{role}_2" if name.startswith("audit_") else f"audit_{role}"
            raise TrackingError(
                f"{owner} has a column {name!r}, and its history table needs a column of that name; rename ours: "
                f"track_table(audit_columns=AuditColumns({role}={other!r})).",
                subject,
            )


def shortened(name: str) -> str:
    """Return ``name``, or if it is too long for a database its beginning and a digest of the whole."""
    if len(name.encode()) <= _MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: _MAX_IDENTIFIER - 9].decode(errors="ignore") + "_" + digest


def _make_partial_only(history: Table, name: str) -> None:
    """Let the index of open versions be made only where there are partial ones.

    A copy of the table, by ``Table.to_metadata()``, has the index without its condition.
    """
    for index in history.indexes:
        if index.name == shortened(f"uq_{name}_open"):
            index.ddl_if(dialect=cast(str, ("postgresql", "sqlite")))


class AddOpenGuard(ExecutableDDLElement):
    """Let MySQL and MariaDB, which have no partial indexes, refuse two open versions of one row.

    An invisible generated column, unique within a row's life, is 0 for the open version and the number of the
    version for all others. InnoDB looks for duplicates beyond a new entry, too, and locks the one that follows: mostly
    another version of the same row. But where an entry for 0 is made again, it locks the gap before it, too, and two
    writers of neighbouring keys may then wait for each other, or deadlock.
    """

    def __init__(self, history: Table) -> None:
        self.history = history


class MatchCollations(ExecutableDDLElement):
    """Let MySQL and MariaDB find out how a history table gets the collations that its live table has.

    The live table may be older than the defaults of its server. Columns of two collations can't be compared, and keys
    of another collation are equal where those of the live table are not.
    """

    def __init__(self, live: Table, history: Table) -> None:
        self.live, self.history = live, history


def collation_statements(live: Table, history: Table) -> tuple[ExecutableDDLElement, ...]:
    """Return what gives a history table that was created the collations of its live table; SQL alone, for scripts."""
    return (
        MatchCollations(live, history),
        *map(DDL, (f"PREPARE {_COLLATE} FROM @{_COLLATE}", f"EXECUTE {_COLLATE}", f"DEALLOCATE PREPARE {_COLLATE}")),
    )


_COLLATE: Final = "sqlaudit_collate"


@compiles(MatchCollations)
def _render_match_collations(element: MatchCollations, compiler: DDLCompiler, **kw: Any) -> str:
    def literal(text: str) -> str:
        return compiler.sql_compiler.render_literal_value(text, String())

    schema = compiler.preparer.schema_for_object(element.history)
    where = "DATABASE()" if schema is None else literal(schema)
    live, history = literal(element.live.name), literal(element.history.name)
    table = compiler.preparer.format_table(element.history)
    if compiler.preparer._double_percents:
        table = table.replace("%%", "%")  # which the literal doubles
    alter = literal(f"ALTER TABLE {table} DEFAULT COLLATE ")
    modify = "CONCAT(', MODIFY `', REPLACE(h.column_name, '`', '``'), '` ', h.column_type, ' CHARACTER SET ', "
    modify += "l.character_set_name, ' COLLATE ', l.collation_name, IF(h.is_nullable = 'YES', ' NULL', ' NOT NULL'))"
    columns = (
        f"SELECT GROUP_CONCAT({modify} SEPARATOR '') FROM information_schema.columns h "  # noqa: S608  # literals
        "JOIN information_schema.columns l ON l.table_schema = h.table_schema AND l.column_name = h.column_name "
        f"WHERE h.table_schema = {where} AND h.table_name = {history} AND l.table_name = {live} "
        "AND h.collation_name <> l.collation_name"
    )
    return (
        f"SET @{_COLLATE} = IFNULL((SELECT CONCAT({alter}, t.table_collation, IFNULL(({columns}), '')) "  # noqa: S608
        f"FROM information_schema.tables t WHERE t.table_schema = {where} AND t.table_name = {live}), 'DO 0')"
    )


def guard_name(tracked: TrackedTable) -> str:
    """Return the name of the generated column that :class:`AddOpenGuard` adds."""
    return f"{tracked.version.name}_closed"


@compiles(AddOpenGuard)
def _render_open_guard(element: AddOpenGuard, compiler: DDLCompiler, **kw: Any) -> str:
    # A copy of the history table, by Table.to_metadata(), has its listeners, too.
    history = element.target if isinstance(element.target, Table) else element.history
    quote = compiler.preparer.quote
    tracked: TrackedTable = element.history.info[INFO_KEY]
    guard = quote(guard_name(tracked))
    open_end = compiler.sql_compiler.process(OpenEnd())
    key = ", ".join([*(quote(column.name) for column in tracked.history_key), guard])
    return (
        f"ALTER TABLE {compiler.preparer.format_table(history)} ADD COLUMN {guard} INTEGER GENERATED ALWAYS "
        f"AS (IF({quote(tracked.valid_to.name)} = {open_end}, 0, {quote(tracked.version.name)})) VIRTUAL INVISIBLE, "
        f"ADD UNIQUE INDEX {quote(shortened(f'uq_{history.name}_open'))} ({key})"
    )


def tracked_table(table: object) -> TrackedTable | None:
    """Return what makes a table tracked, or ``None``.

    A copy that ``Table.to_metadata()`` has made has the original's info, and is another table.
    """
    tracked: TrackedTable | None = table.info.get(INFO_KEY) if isinstance(table, Table) else None
    # Not by identity: statements of the ORM have annotated tables.
    return tracked if tracked is not None and (tracked.live == table or tracked.history == table) else None


def unique_together(table: Table, *, partial: bool = False, deferred: bool = True) -> Iterator[tuple[Column[Any], ...]]:
    """Yield the columns of a table that are unique together, but for its primary key.

    :param partial: also those that are unique only among some rows
    :param deferred: also those that the database compares at the end of the transaction only
    """
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            is_deferred = constraint.deferrable and (constraint.initially or "").upper() == "DEFERRED"
            if deferred or not is_deferred:
                yield tuple(constraint.columns)
    for index in table.indexes:
        has_condition = any(option.get("where") is not None for option in index.dialect_options.values())
        columns = [each for each in index.expressions if isinstance(each, Column)]
        if index.unique and len(columns) == len(index.expressions) and (partial or not has_condition):
            yield tuple(columns)


def options_of(table: Table) -> dict[str, Any]:
    """Return what MariaDB and MySQL are told of a table when it is created: how it compares texts, say."""
    names = [f"{dialect}_{option}" for dialect in ("mysql", "mariadb") for option in _TABLE_OPTIONS]
    return {name: table.kwargs[name] for name in names if table.kwargs.get(name) is not None}


def keys_of_table(table: Table) -> Iterator[tuple[Column[Any], ...]]:
    """Yield the columns of a table that are unique together, its primary key first."""
    if table.primary_key:
        yield tuple(table.primary_key)
    yield from unique_together(table, partial=True)


def words_of_constraints(table: Table) -> str:
    """Return what SQLite does about rows in the way of new values, as the constraints of a table say: REPLACE, say."""
    if (words := table.info.get(_ON_CONFLICT)) is None:
        unique = [each for each in table.constraints if isinstance(each, (PrimaryKeyConstraint, UniqueConstraint))]
        names = ("sqlite_on_conflict_unique", "sqlite_on_conflict_primary_key")
        said = [each.dialect_kwargs.get("sqlite_on_conflict") for each in unique]
        said += [column.dialect_kwargs.get(name) for each in unique for column in each.columns for name in names]
        words = table.info[_ON_CONFLICT] = " ".join(each.upper() for each in said if each)
    return words


def track_secondary(secondary: Table, columns: Iterable[Column[Any]], mapper: Mapper[Any]) -> TrackedTable:
    """Give an association table, whose links these columns make, a history table."""
    tracked = tracked_table(secondary)
    if tracked is None or tracked.is_over:
        key = secondary.primary_key or columns
        tracked = TrackedTable(secondary, key, is_association=True, mapper=mapper)
    return tracked


def tracked_tables(metadata: MetaData) -> list[TrackedTable]:
    """Return the tracked tables of a MetaData."""
    return [
        tracked
        for table in metadata.tables.values()
        if (tracked := tracked_table(table)) is not None and tracked.live is table
    ]


def find_association_tables(metadata: MetaData) -> None:
    """Configure the mappers of a MetaData's tracked models, which makes the association tables between them known.

    Mappers that cannot be configured yet, for a class that they refer to is not mapped, are left as they were: nothing
    can be written by their relationships before they are configured.
    """
    for each in list(metadata.info.get(INFO_KEY, ())):
        try:
            each.configure(cascade=True)
        except Exception as error:
            _let_try_again(error)


def _let_try_again(error: Exception) -> None:
    """Let mappers forget that configuring them has failed, for it was tried earlier than the user would have done."""
    for mapper in [mapper for each in _all_registries() for mapper in mappers_of(each)]:
        if mapper._configure_failed is error:
            del mapper._configure_failed
            for prop in mapper._props.values():
                prop._configure_started = prop._configure_finished


def mappers_of(of: registry) -> list[Mapper[Any]]:
    """Return the mappers of a registry; its own list of them raises while a class of it is not mapped."""
    return [manager.mapper for manager in list(of._managers) if manager.is_mapped]


def forget(metadata: MetaData) -> None:
    """Take the tracked tables of a MetaData for none of this process: they describe a database, not models."""
    _known.discard(metadata)


def known_metadata() -> list[MetaData]:
    """Return every MetaData of this process that has tracked tables."""
    return list(_known)


def schema_of(connection: Connection, table: Table | TableClause) -> str | None:
    """Return the schema that a table has on a connection, which may translate it."""
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema: str | None = translated.get(table.schema, table.schema)
    return schema


def is_there(connection: Connection, table: Table) -> bool:
    """Tell whether a table is in the database of a connection. One statement."""
    return inspect(connection).has_table(table.name, schema=schema_of(connection, table))
