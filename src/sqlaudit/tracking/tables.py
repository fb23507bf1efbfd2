"""Where are the versions of a table kept? In its history table.

Both tables carry a :class:`TrackedTable` in ``table.info["sqlaudit"]``. The history table is made when a model is
decorated, so that ``create_all`` and Alembic see it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import chain, takewhile
from types import MappingProxyType
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import (
    DDL,
    JSON,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    inspect,
    type_coerce,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapper
from sqlalchemy.schema import BLANK_SCHEMA, ExecutableDDLElement, conv
from sqlalchemy.sql.compiler import DDLCompiler
from sqlalchemy.sql.elements import quoted_name
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from sqlaudit.changes import Operation
from sqlaudit.context import USER_ID_LENGTH
from sqlaudit.exceptions import TrackingError
from sqlaudit.period import OpenEnd, PeriodToIndex, UTCDateTime, is_open
from sqlaudit.sql.old_values import readable_type
from sqlaudit.sql.redacting import REDACTED_LENGTH, Redaction, prepare_redaction, redacted
from sqlaudit.tracking.schema import table_options

INFO_KEY: Final = "sqlaudit"
_MAX_IDENTIFIER: Final = 63  # in bytes, on PostgreSQL; other databases allow at least as many
OWN_INDEXES: Final = {"changeset": "changeset_id", "instant": "valid_from"}
"""The audit columns by which each history is indexed: end of the index's name → role.

By instant, the latest transactions and changes are found without reading all others.
"""
_known: WeakSet[MetaData] = WeakSet()
excluding: Final[WeakSet[TrackedTable]] = WeakSet()
"""The tracked tables that exclude columns."""
hashing: Final[WeakSet[TrackedTable]] = WeakSet()
"""The tracked tables that hash or mask columns, which takes a key."""
tracked_names: Final[set[str]] = set()
"""The names of all tables that this process has ever tracked, and of their history tables."""
unread: Final[dict[ref[TrackedTable], str | None]] = {}
"""The tables whose foreign keys have not all been read since they were tracked or gained columns.

Those that refer to an undefined table have its key as value, once it is known."""


@dataclass(frozen=True, slots=True)
class AuditColumns:
    """Other names for the columns of sqlaudit in a history table, for models that have columns of the same names.

    .. code-block:: python

        @track_table(audit_columns=AuditColumns(valid_from="audit_from"))
        class Price(Base): ...

    :param version: the number of the version in the history of its row, from 1
    :param valid_from: when the version began to be true, included
    :param valid_to: when it ceased to be true, not included; :data:`OPEN_END` for the current version
    :param operation: what made the version, an :class:`Operation`
    :param changeset_id: the database transaction that wrote the version
    :param changed_by: the user
    :param impersonated_by: the user who really acted, if ``changed_by`` was impersonated
    :param reason: why
    :param extra: what else the audit context held, as JSON
    """

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
        return ((role, getattr(self, role)) for role in _ROLES)


_ROLES: Final = tuple(field.name for field in fields(AuditColumns))
_NULLABLE: Final = ("changed_by", "impersonated_by", "reason", "extra")


class OperationText(TypeDecorator[Operation]):
    """An :class:`~sqlaudit.changes.Operation`, stored as its text. An ``Enum`` would add DDL of its own."""

    impl = String(16)
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str], Operation | None]:
        return {str(operation): operation for operation in Operation}.get


@cache
def audit_column_types() -> Mapping[str, TypeEngine[Any]]:
    """Return the type of the audit column of each role, which all history tables share."""
    # A collation that distinguishes Bob from bob.
    user_id = String(USER_ID_LENGTH).with_variant(
        mysql.VARCHAR(USER_ID_LENGTH, collation="utf8mb4_bin"), "mysql", "mariadb"
    )
    return {
        "version": Integer(),
        "valid_from": UTCDateTime(),
        "valid_to": UTCDateTime(),
        "operation": OperationText(),
        # The same type with and without a connection: plain Uuid depends on MariaDB's version.
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
    :ivar names: the names of the audit columns in the history table
    :ivar quiet: the names of the columns that are stored, and whose changes alone make no version
    :ivar redact: the columns of which history stores something else: name → what it stores
    :ivar as_of_index: whether the history table has indexes for reads of many rows as of an instant
    :ivar append_only: whether recording changes no version but to end it, because the database refuses it
    :ivar partitions: into how many partitions PostgreSQL divides the history by the hash of the key, or ``None``
    :ivar mapper: the mapper of the model or, for an association table, of a model at one side: both tables are on its
        bind
    """

    def __init__(
        self,
        live: Table,
        key: Iterable[Column[Any]],
        *,
        exclude: Iterable[str] = (),
        quiet: Iterable[str] = (),
        redact: Mapping[str, Redaction] = MappingProxyType({}),
        name: str | None = None,
        names: AuditColumns | None = None,
        is_association: bool = False,
        as_of_index: bool = False,
        append_only: bool = False,
        partitions: int | None = None,
        mapper: Mapper[Any] | None = None,
    ) -> None:
        self.live = live
        self.key = tuple(key)
        self.exclude = frozenset(exclude)
        self.quiet = frozenset(quiet)
        self.redact = redact
        self.is_association = is_association
        self.as_of_index = as_of_index
        self.append_only = append_only
        self.partitions = partitions
        self.mapper = mapper
        self.names = names or AuditColumns()
        self.chains: list[tuple[TrackedTable, ...]] = []  # of the models whose objects have rows in this table
        self.link_model: Any = None  # reads an association table, see sqlaudit.tracking.links
        self.cache: dict[Any, Any] = {}
        self.statements: WeakKeyDictionary[Dialect, Any] = WeakKeyDictionary()  # what is kept per dialect
        self.history = self._make_table(name)
        self._index_for_reads()
        live.info[INFO_KEY] = self.history.info[INFO_KEY] = self
        self.history.add_is_dependent_on(live)  # its CREATE makes the types that both use
        _known.add(live.metadata)
        if self.exclude:
            excluding.add(self)
        if self.hashed:
            hashing.add(self)
        unread[ref(self)] = None
        tracked_names.update((live.name, self.history.name))

    def __reduce__(self) -> Any:
        return _not_tracked_error, ()  # a pickled or deep copy of a table is not tracked

    def _make_table(self, name: str | None) -> Table:
        live, metadata = self.live, self.live.metadata
        if not isinstance(live.info, dict):
            raise TrackingError(
                f"The info of the table {live.fullname!r} is {live.info!r}, and sqlaudit needs a dict to keep what it "
                "knows of the table there. Give the Table a dict as its info.",
                live,
            )
        name = name or shortened(f"{live.name}_history")
        key = name if live.schema is None else f"{live.schema}.{name}"
        for table in (live, metadata.tables.get(key)):
            if (earlier := tracked_table(table)) is not None and earlier.is_obsolete:
                earlier.discard()
        if key in metadata.tables:
            raise TrackingError(
                f"The history table of {live.fullname!r} cannot be named {key!r}, because a table of this name exists "
                "already. Choose another name: track_table(history_table_name=…).",
                live,
            )
        names = dict(self.names.items())
        if len(set(names.values())) < len(names):
            raise TrackingError(f"{self.names} gives two audit columns the same name. Give each its own name.", live)
        stored = self._stored_columns()
        self.refuse_columns(stored)
        history = Table(
            quoted_name(name, getattr(live.name, "quote", None)),
            metadata,
            *map(self._copy_of, stored),
            *(
                _column(name, name, audit_column_types()[role], is_key=role == "version", nullable=role in _NULLABLE)
                for role, name in names.items()
            ),
            schema=live.schema or BLANK_SCHEMA,
            **table_options(live),
            **self._division(),
        )
        where = is_open(history.c[self.names.valid_to])
        Index(
            conv(shortened(f"uq_{name}_open")),
            *(history.c[column.key] for column in self.key),
            unique=True,
            postgresql_where=where,
            sqlite_where=where,
        )
        make_partial_only(history, history.name)
        for suffix, role in OWN_INDEXES.items():
            Index(conv(shortened(f"ix_{name}_{suffix}")), history.c[getattr(self.names, role)])
        return history

    def _division(self) -> dict[str, Any]:
        """Return the option by which PostgreSQL divides the history table."""
        if self.partitions is None:
            return {}
        quote = postgresql.dialect().identifier_preparer.quote  # type: ignore[no-untyped-call]  # SQLAlchemy's
        return {"postgresql_partition_by": f"HASH ({', '.join(quote(column.name) for column in self.key)})"}

    def _index_for_reads(self) -> None:
        """Add indexes of the periods, and of the foreign keys that are indexed in the live table."""
        if not self.as_of_index:
            return
        name, existing = self.history.name, {index.name for index in self.history.indexes}
        period = conv(shortened(f"ix_{name}_period"))
        if period not in existing:
            index = Index(period, PeriodToIndex(self.valid_from, self.valid_to), postgresql_using="gist")
            # An Index takes only the first column of an expression. Alembic compares its columns with the database's.
            index._columns.add(self.valid_from)
        for index in sorted(self.live.indexes, key=lambda index: str(index.name)):
            # Only the columns before the first expression are copied.
            stored = takewhile(set(self._stored_columns()).__contains__, index.expressions)
            columns = [self.history.c[column.key] for column in cast("Iterable[Column[Any]]", stored)]
            copy = conv(shortened(f"ix_{name}_{'_'.join(column.name for column in columns)}"))
            if columns and self.live.c[columns[0].key].foreign_keys and copy not in existing:
                existing.add(copy)
                Index(copy, *columns)

    def _stored_columns(self) -> list[Column[Any]]:
        return [column for column in self.live.c if not column.system and column.name not in self.exclude]

    def refuse_columns(self, columns: Iterable[Column[Any]]) -> None:
        """Raise if the history table cannot store one of the columns.

        :raises TrackingError: sqlaudit needs its name for an audit column or for a parameter
        """
        # A column that is not in a table yet may have no key.
        keys = {column.key or column.name: column.name for column in columns}
        refuse_clash(self.names, repr(self.live.fullname), {*keys, *keys.values()}, self.live)
        for key in keys:
            if not key.startswith("sqlaudit_"):
                continue
            raise TrackingError(
                f"{self.live.fullname!r} has a column {key!r}, and sqlaudit needs the names that begin with "
                "'sqlaudit_' for its bind parameters. Give the column another key: mapped_column(…, key=…).",
                self.live,
            )

    def _copy_of(self, column: Column[Any]) -> Column[Any]:
        is_key = column in set(self.key)  # in a set, because a type may define == as anything
        return _column(column.name, column.key, self._type_of(column), is_key=is_key, nullable=not is_key)

    def _type_of(self, column: Column[Any]) -> TypeEngine[Any]:
        return String(REDACTED_LENGTH) if column.name in self.hashed else readable_type(column.type)

    def store_column(self, column: Column[Any]) -> None:
        """Store a column that the live table has gained, or that has replaced another."""
        if column.key in self.history.c:
            self.history.c[column.key].type = self._type_of(column)
        elif column in set(self._stored_columns()):
            self.history.append_column(self._copy_of(column))
        unread[ref(self)] = None
        self.__dict__.pop("columns", None)
        if self.link_model is not None:
            self.link_model.has_grown = True
        for table in {self, *chain.from_iterable(self.chains)}:
            table.statements.clear()
            table.cache.clear()

    def complete(self) -> None:
        """Add what was unknown at first: the types that foreign keys take from their targets, and indexes for reads."""
        for column, copy in self.columns:
            if isinstance(copy.type, NullType):
                copy.type = readable_type(column.type)
        self._index_for_reads()

    @property
    def is_obsolete(self) -> bool:
        """Whether the tracked class no longer has this mapper, or the MetaData no longer has the live table."""
        is_mapped = self.mapper is None or inspect(self.mapper.class_, raiseerr=False) is self.mapper
        return not is_mapped or self.live.metadata.tables.get(self.live.key) is not self.live

    def discard(self) -> None:
        """Stop tracking the live table, and remove the history table from the MetaData."""
        self.live.metadata.remove(self.history)
        for table in (self.live, self.history):
            table.info.pop(INFO_KEY, None)

    @cached_property
    def columns(self) -> list[tuple[Column[Any], Column[Any]]]:
        """The stored columns: (live column, history column)."""
        return [(column, self.history.c[column.key]) for column in self._stored_columns()]

    @cached_property
    def hashed(self) -> frozenset[str]:
        """The names of the columns of which history stores a hash or a mask, as a text of its own."""
        return frozenset(name for name, redaction in self.redact.items() if isinstance(redaction, str))

    def recorded(self, live: Column[Any], value: ColumnElement[Any] | None = None) -> ColumnElement[Any]:
        """Return the expression that history stores of a live column.

        :param value: the value of the column, if it is not that of the live row
        """
        value = live if value is None else value
        redaction = self.redact.get(live.name) if self.redact else None
        if redaction is None:
            return value
        expression = redacted(value, redaction)
        return expression if isinstance(redaction, str) else type_coerce(expression, self.history.c[live.key].type)

    @property
    def history_key(self) -> tuple[Column[Any], ...]:
        """The columns of the history table that identify a row. With ``version``, they identify a version."""
        return tuple([self.history.c[column.key] for column in self.key])

    def role(self, role: str) -> Column[Any]:
        """Return the audit column of a role: a field of :class:`AuditColumns`."""
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


def _column(name: str, key: str, type_: TypeEngine[Any], *, is_key: bool, nullable: bool) -> Column[Any]:
    """Make a column that shares a type without its DDL: no CHECK, no second CREATE TYPE."""
    column: Column[Any] = Column(key=key, primary_key=is_key, nullable=nullable, autoincrement=False)
    column.name, column.type = name, type_
    return column


def _not_tracked_error() -> None:
    return None


def refuse_clash(audit_columns: AuditColumns, owner: str, names: Collection[str], subject: object) -> None:
    for role, name in audit_columns.items():
        if name in names:
            other = f"audit_{role}_2" if name.startswith("audit_") else f"audit_{role}"
            raise TrackingError(
                f"{owner} has a column {name!r}, and its history table needs an audit column of that name. Rename the "
                f"audit column: track_table(audit_columns=AuditColumns({role}={other!r})).",
                subject,
            )


def alias_name(table: Table) -> str:
    """Return the name under which a select stands for a table in a statement: a part of it, or its past."""
    return table.name if table.schema is None else shortened(f"{table.schema}.{table.name}")


def shortened(name: str) -> str:
    """Return ``name``; if it is too long for PostgreSQL, its beginning and a digest of the whole name."""
    if len(name.encode()) <= _MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: _MAX_IDENTIFIER - 9].decode(errors="ignore") + "_" + digest


def make_partial_only(history: Table, name: str) -> None:
    """Let only databases with partial indexes create the index of open versions.

    ``Table.to_metadata()`` copies the index, but not this condition.
    """
    for index in history.indexes:
        if index.name == shortened(f"uq_{name}_open"):
            index.ddl_if(dialect=cast(str, ("postgresql", "sqlite")))


class AddOpenGuard(ExecutableDDLElement):
    """Let MySQL and MariaDB, which have no partial indexes, refuse two open versions of one row.

    An invisible generated column, unique together with the key, is 0 for the open version and the number of the
    version for all others. InnoDB's duplicate check also locks the entry after a new one, which is mostly another
    version of the same row. When an entry with 0 is inserted again, the check also locks the gap before it. Two
    transactions that write neighbouring keys can therefore wait for each other. They can deadlock if one of them closes
    versions after it has opened others: if it flushes twice, not within a flush or a statement.
    """

    def __init__(self, history: Table) -> None:
        self.history = history


class MatchCollations(ExecutableDDLElement):
    """Let MySQL and MariaDB build the statement that gives a history table the collations of its live table.

    The live table may be older than the defaults of its server. Columns of two collations can't be compared, and two
    keys that differ in the live table may be equal in another collation.
    """

    def __init__(self, live: Table, history: Table) -> None:
        self.live, self.history = live, history


def collation_statements(live: Table, history: Table) -> tuple[ExecutableDDLElement, ...]:
    """Return the statements that give a new history table the collations of its live table. Scripts can hold them."""
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
        table = table.replace("%%", "%")  # the literal doubles them again
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
        f"SET @{_COLLATE} = IFNULL((SELECT CONCAT({alter}, t.table_collation, IFNULL(({columns}), '')) "  # noqa: S608  # literals
        f"FROM information_schema.tables t WHERE t.table_schema = {where} AND t.table_name = {live}), 'DO 0')"
    )


def guard_name(tracked: TrackedTable) -> str:
    """Return the name of the generated column that :class:`AddOpenGuard` adds."""
    return guard_name_for(tracked.names)


def guard_name_for(names: AuditColumns) -> str:
    """Return the name of the generated column for a history table whose audit columns have these names."""
    return f"{names.version}_closed"


def guard_index_name(tracked: TrackedTable) -> str:
    """Return the name of the index that :class:`AddOpenGuard` adds."""
    return shortened(f"uq_{tracked.history.name}_open")


@compiles(AddOpenGuard)
def _render_open_guard(element: AddOpenGuard, compiler: DDLCompiler, **kw: Any) -> str:
    # The target may be a copy of the history table by Table.to_metadata(), which has the same listeners.
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


def prepare_connection(connection: Connection, tables: Iterable[TrackedTable]) -> None:
    """Let the statements of a connection record tables, if these hash or mask columns.

    :raises SQLAuditError: they do, and no key is configured
    """
    if any(table.hashed for table in tables):
        prepare_redaction(connection)


def tracked_table(table: object) -> TrackedTable | None:
    """Return the tracked table of a live table or a history table, or ``None``.

    A copy by ``Table.to_metadata()`` has the original's info, but is not tracked.
    """
    info = table.info if isinstance(table, Table) else None
    tracked: TrackedTable | None = info.get(INFO_KEY) if isinstance(info, dict) else None  # SQLAlchemy allows any info
    # Compared by ==, because ORM statements have annotated tables.
    return tracked if tracked is not None and (tracked.live == table or tracked.history == table) else None


def forget_metadata(metadata: MetaData) -> None:
    """Exclude a MetaData from :func:`known_metadata`, because its tables describe a database and not models."""
    _known.discard(metadata)


def known_metadata() -> list[MetaData]:
    """Return every MetaData of this process that has tracked tables."""
    return list(_known)
