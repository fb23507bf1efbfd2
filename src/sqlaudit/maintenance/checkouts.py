"""How is the past looked at with any tool? ``checkout`` makes a database of its own of the rows as of an instant.

.. code-block:: python

    checkout(engine, datetime(2026, 3, 31, tzinfo=UTC), to="sqlite:///march.db")

The rows stream from one database into the other. Foreign keys and unique constraints come last, where all rows meet
them. The history tables are not copied.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Connection,
    Dialect,
    Engine,
    Enum,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Select,
    Table,
    Text,
    and_,
    exists,
    func,
    insert,
    inspect,
    literal_column,
    select,
    text,
    type_coerce,
)
from sqlalchemy.exc import NoReferencedTableError, StatementError
from sqlalchemy.orm import Mapper, Session, scoped_session
from sqlalchemy.schema import AddConstraint, PrimaryKeyConstraint, conv

from sqlaudit.arguments import When
from sqlaudit.asynchronous import also_async_where
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.progress import Callback, progress_reporter
from sqlaudit.maintenance.slices import Slice, chunks_of, key_of
from sqlaudit.maintenance.target import filled_at_once, opened_target, refused_rows_error
from sqlaudit.maintenance.transfer import Transfer, are_of_one_kind, as_any_text, transfer_of
from sqlaudit.past.objects import instant_from
from sqlaudit.past.rendering import BeforeBaseline
from sqlaudit.past.session import time_travel
from sqlaudit.retrieval.changesets import instant_of_changeset, known_tables
from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.keys import AsText, undecorated
from sqlaudit.sql.lists import has_one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.registry import tracked_tables
from sqlaudit.tracking.schema import table_options, unique_together
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable, shortened, tracked_table
from sqlaudit.wire import Report

_log: Final = logging.getLogger(__package__)
_ROWS: Final = 1_000
"""How many rows are in memory at a time."""


@dataclass(frozen=True, slots=True, repr=False)
class CheckoutReport(Report):
    """What :func:`checkout` made.

    :param at: the instant as of which the rows are, in UTC
    :param rows: the number of rows that were copied
    :param tables: the number of rows of each table, by the name of the live table
    :param notes: what the checkout has otherwise than the live tables: foreign keys that lead to no row, unique
        constraints that the rows do not meet, columns of other types, columns whose values are not in history
    """

    at: datetime
    rows: int
    tables: dict[str, int]
    notes: tuple[str, ...]


@also_async_where
def checkout(
    where: Engine | Connection | Session | scoped_session[Any],
    when: When,
    to: str | URL | Engine,
    *,
    include: Iterable[Any] = (),
    rows: tuple[Any, Any] | None = None,
    before_baseline: BeforeBaseline = "absent",
    progress: Callback | bool | None = None,
) -> CheckoutReport:
    """Copy the tracked tables as they were at an instant into an empty database of SQLite, PostgreSQL or MariaDB.

    .. code-block:: python

        checkout(engine, then, "sqlite:///march.db")

    The tables have their names, columns, primary keys, indexes, unique constraints and foreign keys. All columns except
    the key may be NULL, and there are no defaults, checks and triggers, because the rows of the past need not meet
    those of today. Excluded columns are NULL. A foreign key is left out if it leads to a table that is not in the
    checkout, or if a row that it leads to is missing; the report says so. No value is changed for it.

    On SQLite and MariaDB, tables of a schema lose it: ``sales.orders`` becomes ``orders``, or ``sales_orders`` if
    several tables have this name. Values that the target cannot hold, such as NaN, are NULL and noted.

    :param where: an engine, a connection or a session to read with. If it is asynchronous, await the result; the
        target is always written synchronously
    :param when: an aware datetime; or a :class:`Mark`; or a changeset id, also as text: the state right after that
        transaction. A naive datetime is taken as local time, with a warning
    :param to: a URL with a synchronous driver, or an engine. It must have no tables. A file of SQLite must not exist,
        and gets its name when it is complete. If anything fails, nothing is left
    :param include: models and tables without history to copy as they are now
    :param rows: a model and the key of a row, to copy the slice around that row: the row, the rows that refer to it
        directly or through others, and the rows to which all of these refer
    :param before_baseline: what to do about rows that existed then, but whose history begins later: leave them
        ``"absent"``, or ``"warn"`` or ``"raise"``
    :param progress: ``True`` for a bar on the terminal, which needs the extra ``progress``; or a function that is
        called with the number of rows done and the number of all rows
    :raises QueryError: an argument is invalid, the target has tables or cannot be reached
    :raises HistoryTableError: the database lacks a history table
    :raises SQLAuditError: the target refuses a row
    """
    included = [table for source in include for table in _tables_of(source)]
    with _reading(where) as session:
        instant = instant_from(when).when
        at = instant_of_changeset(session, instant) if isinstance(instant, UUID) else instant
        with (
            progress_reporter(progress, "checkout") as report_progress,
            opened_target(to) as target,
            time_travel(session, at, untracked="live", before_baseline=before_baseline) as past,
        ):
            start = None if rows is None else _start_of(rows)
            source = _Source(session, past, included, start)
            if start is not None:
                source.confine(*start)
            return _Checkout(source, target, at).run(report_progress)


def _tables_of(source: Any) -> list[Table]:
    """Return the tables that a user includes.

    :raises QueryError: it is neither a table nor a model
    """
    if isinstance(source, Table):
        return [source]
    mapper = inspect(source, raiseerr=False)
    if isinstance(mapper, Mapper):
        return [table for table in mapper.tables if isinstance(table, Table)]
    raise QueryError(f"include has {source!r}. Give models and tables.", source)


def _start_of(rows: Any) -> tuple[TrackedTable, Any]:
    """Return the table and the key of the row around which a user wants the slice.

    :raises QueryError: it is not a model and a key
    """
    if not isinstance(rows, tuple) or len(rows) != 2:
        raise QueryError(f"rows is {rows!r}. Give a model and a key: rows=(Customer, 42).", rows)
    source, row_id = rows
    return model_of(source).root.table, row_id


@contextmanager
def _reading(where: Any) -> Iterator[Session]:
    """Give a session to read with. That of an engine sees one state of the database all the time."""
    if isinstance(where, Engine) and TRAITS[where.dialect.name].locks_rows:
        where = where.execution_options(isolation_level="REPEATABLE READ")
    if isinstance(where, (Engine, Connection)):
        with Session(where) as session:
            yield session
    else:
        session = checked_session(where)
        session.flush()
        yield session


# --- what is read -----------------------------------------------------------------------------------------------


class _Source:
    """The tables to copy, and the rows of them as of the instant."""

    def __init__(
        self, session: Session, past: Session, included: Sequence[Table], start: tuple[TrackedTable, Any] | None
    ) -> None:
        self.past = past
        self.binds: dict[Table, dict[str, Any]] = {}
        of_user = {table.metadata for table in included} | ({start[0].live.metadata} if start is not None else set())
        for place in known_tables(session, [table for metadata in of_user for table in tracked_tables(metadata)]):
            self.binds |= dict.fromkeys((table.live for table in place.tables), place.bind_arguments)
        for table in included:
            if table not in self.binds:
                self.binds[table] = {"bind": session.get_bind(clause=table)}
        if not self.binds:
            raise QueryError("checkout() finds no tracked tables. Import the modules of the models first.", session)
        self.tables = list(self.binds)
        self.slice: Slice | None = None

    def dialect_of(self, table: Table) -> Dialect:
        return self.past.get_bind(**self.binds[table]).dialect

    def confine(self, start: TrackedTable, row_id: Any) -> None:
        """Copy the slice around a row only.

        :raises QueryError: the database does not have the table, or there was no such row
        """
        if start.live not in self.binds:
            raise QueryError(f"The database has no history of {start.live.fullname!r}. Give another model.", start.live)
        tables = [table for table in self.tables if key_of(table)]
        self.slice = Slice(tables, self.dialect_of(start.live), self._read)
        self.slice.add(start.live, row_id)

    def _read(self, table: Table, statement: Select[Any], parameters: Mapping[str, Any]) -> Iterable[Sequence[Any]]:
        tracked = tracked_table(table)
        with explaining_history_errors([] if tracked is None else [tracked]):
            return self.past.execute(statement, parameters, bind_arguments=dict(self.binds[table])).all()

    def selects(self, table: Table, columns: Sequence[Any]) -> Iterator[Select[Any]]:
        """Yield the statements that select columns of the rows to copy."""
        statement = select(*columns).select_from(table)
        if self.slice is None:
            yield statement
            return
        for chunk in chunks_of(self.slice.keys.get(table, {})):
            yield statement.where(has_one_of(key_of(table), chunk, self.dialect_of(table)))

    def count(self, table: Table) -> int:
        if self.slice is not None:
            return len(self.slice.keys.get(table, {}))
        [[number]] = self._read(table, select(func.count()).select_from(table), {})
        return cast(int, number)

    def has_old_labels(self, column: Column[Any]) -> bool:
        """Return whether rows have labels that the column's enum no longer has."""
        enum = undecorated(column.type, self.dialect_of(column.table))
        if not isinstance(enum, Enum):
            return False
        label = type_coerce(column, AsText())
        return any(
            value is not None and value not in enum.enums
            for statement in self.selects(column.table, [label])
            for [value] in self._read(column.table, statement.distinct(), {})
        )

    def rows(self, table: Table, columns: Sequence[Any]) -> Iterator[Sequence[Sequence[Any]]]:
        """Yield the rows of a table in parts of at most 1,000."""
        tracked = tracked_table(table)
        with explaining_history_errors([] if tracked is None else [tracked]):
            for statement in self.selects(table, columns):
                result = self.past.execute(
                    statement,
                    bind_arguments=dict(self.binds[table]),
                    execution_options={"stream_results": True, "yield_per": _ROWS},
                )
                with closing(result):
                    yield from result.partitions()


# --- what is written --------------------------------------------------------------------------------------------


class _Checkout:
    """The tables of a checkout."""

    def __init__(self, source: _Source, engine: Engine, at: datetime) -> None:
        self.source = source
        self.engine = engine
        self.at = at
        self.notes: list[str] = []
        self.names = _names_in(engine.dialect, source.tables)
        self.transfers = {table: self._transfers(table) for table in source.tables}
        self.unique: dict[Table, list[tuple[str, ...]]] = {table: [] for table in source.tables}

    @property
    def dialect(self) -> Dialect:
        return self.engine.dialect

    def run(self, report_progress: Callback | None) -> CheckoutReport:
        links = [link for table in self.source.tables for link in self._links_of(table)]
        is_inline = not self.dialect.supports_alter
        first = self._tables(links if is_inline else ())
        total = sum(map(self.source.count, self.source.tables)) if report_progress else 0
        copied: dict[str, int] = {}
        with filled_at_once(self.engine, first) as connection:
            for table in self.source.tables:
                made = self._made(first, table)
                made.create(connection, checkfirst=True)
                done = sum(copied.values())
                copied[table.fullname] = 0
                for number in self._copy(connection, table, made):
                    copied[table.fullname] += number
                    if report_progress:
                        report_progress(done + copied[table.fullname], total)
                _log.debug("%s: checked out %d rows", table.fullname, copied[table.fullname])
            for table in self.source.tables:
                self._index(connection, table, self._made(first, table))
            kept = [link for link in links if self._holds(connection, link, first)]
            self._connect(connection, links, kept, is_inline=is_inline)
            self._restart_sequences(connection, first)
        return CheckoutReport(self.at, sum(copied.values()), copied, tuple(self.notes))

    # --- tables

    def _transfers(self, table: Table) -> list[Transfer]:
        indexed = {column for columns in _groups_of(table) for column in columns}
        source, tracked, made = self.source.dialect_of(table), tracked_table(table), []
        for column in table.c:
            if column.system:
                continue
            has_old_labels = self.source.has_old_labels(column)
            transfer = transfer_of(
                column, source, self.dialect, is_indexed=column in indexed, has_old_labels=has_old_labels
            )
            if tracked is not None and column.name in tracked.hashed:
                transfer = as_any_text(transfer, self.dialect, is_indexed=column in indexed)
            made.append(transfer)
            if tracked is not None and column.name in tracked.redact:
                self.notes.append(f"{column} is redacted: it has what history stores in place of its values.")
            elif tracked is not None and column.name in tracked.exclude:
                self.notes.append(f"{column} is NULL: it is excluded from history.")
            elif has_old_labels:
                self.notes.append(
                    f"{column} is {_type_name(transfer.type, self.dialect)}: it has labels that its type lost."
                )
            elif transfer.is_replaced:
                self.notes.append(
                    f"{column} is {_type_name(transfer.type, self.dialect)}: {self.dialect.name} has no type like "
                    f"{_type_name(column.type, source)}."
                )
        return made

    def _tables(self, links: Iterable[ForeignKeyConstraint]) -> MetaData:
        """Return the tables with the given foreign keys and without indexes."""
        metadata = MetaData()
        for table in self.source.tables:
            name, schema = self.names[table]
            columns = [
                Column(
                    transfer.column.name,
                    transfer.type,
                    nullable=not transfer.column.primary_key,
                    autoincrement=transfer.column is table.autoincrement_column,
                )
                for transfer in self.transfers[table]
            ]
            made = Table(name, metadata, *columns, schema=schema, **self._options(table))
            if table.primary_key:
                made.append_constraint(PrimaryKeyConstraint(*[column.name for column in table.primary_key]))
            for constraint in [each for each in made.constraints if isinstance(each, CheckConstraint)]:
                made.constraints.discard(constraint)
        for link in links:
            self._made(metadata, link.table).append_constraint(self._copied(link, metadata))
        return metadata

    def _made(self, metadata: MetaData, table: Table) -> Table:
        name, schema = self.names[table]
        return metadata.tables[name if schema is None else f"{schema}.{name}"]

    def _options(self, table: Table) -> dict[str, Any]:
        name = self.dialect.name
        if name not in MYSQL:
            return {}
        if are_of_one_kind(self.source.dialect_of(table), self.dialect):
            return {f"{name}_{key.partition('_')[2]}": value for key, value in table_options(table).items()}
        collation = "utf8mb4_nopad_bin" if getattr(self.dialect, "is_mariadb", False) else "utf8mb4_bin"
        return {f"{name}_charset": "utf8mb4", f"{name}_collate": collation}  # no other databases ignore case

    # --- rows

    def _copy(self, connection: Connection, table: Table, made: Table) -> Iterator[int]:
        """Copy the rows of a table; yield the number of rows of each part."""
        transfers = self.transfers[table]
        names = [f"c{place}" for place in range(len(transfers))]
        values = {transfer.column.name: transfer.writing(name) for name, transfer in zip(names, transfers, strict=True)}
        statement = insert(made).values(values)
        converts = [(place, each.convert) for place, each in enumerate(transfers) if each.convert is not None]
        lost: Counter[int] = Counter()
        for part in self.source.rows(table, [transfer.reading for transfer in transfers]):
            rows = [list(row) for row in part]
            for place, convert in converts:
                for row in rows:
                    value = row[place]
                    row[place] = convert(value)
                    lost[place] += value is not None and row[place] is None
            try:
                connection.execute(
                    statement, [dict(zip(names, row, strict=True)) for row in rows], execution_options=INTERNAL
                )
            except (StatementError, TypeError, ValueError, OverflowError) as error:
                raise refused_rows_error(table.fullname, error) from error
            yield len(rows)
        for place, number in lost.items():
            if number:
                self.notes.append(
                    f"{transfers[place].column} is NULL in {_rows(number)}: {self.dialect.name} has no such number."
                )

    # --- indexes

    def _index(self, connection: Connection, table: Table, made: Table) -> None:
        """Create the unique constraints that hold, and the indexes of columns without options."""
        for columns in dict.fromkeys(unique_together(table)):
            names = tuple(column.name for column in columns)
            if self._is_unique(connection, made, names):
                self.unique[table].append(names)
            else:
                self.notes.append(f"{table.fullname}: {', '.join(names)} is not unique, as it must be today.")
        for names in dict.fromkeys(tuple(column.name for column in columns) for columns in _groups_of(table)[1:]):
            if any(column not in made.c for column in names) or not self._can_index(made, names):
                continue
            is_unique = names in self.unique[table]
            name = conv(shortened(f"{'uq' if is_unique else 'ix'}_{made.name}_{'_'.join(names)}"))
            Index(name, *(made.c[column] for column in names), unique=is_unique).create(connection)

    def _can_index(self, made: Table, names: Sequence[str]) -> bool:
        return not any(isinstance(made.c[name].type, Text) and TRAITS[self.dialect.name].limits_bytes for name in names)

    @staticmethod
    def _is_unique(connection: Connection, made: Table, names: Sequence[str]) -> bool:
        columns = [made.c[name] for name in names]
        twice: Select[Any] = (
            select(literal_column("1")).where(*(column.is_not(None) for column in columns)).group_by(*columns)
        )
        return connection.execute(twice.having(func.count() > 1).limit(1)).first() is None

    # --- foreign keys

    def _links_of(self, table: Table) -> Iterator[ForeignKeyConstraint]:
        """Yield the foreign keys of a table that lead to tables of the checkout."""
        names = {transfer.column for transfer in self.transfers[table]}
        for link in sorted(table.foreign_key_constraints, key=lambda link: tuple(link.column_keys)):
            try:
                referred = link.referred_table
            except NoReferencedTableError as error:
                self.notes.append(f"{_told(link)} leads to {error.table_name}, which is not in the checkout.")
                continue
            if referred not in self.names:
                self.notes.append(f"{_told(link)} leads to {referred.fullname}, which is not in the checkout.")
            elif {element.parent for element in link.elements} <= names:
                yield link

    def _holds(self, connection: Connection, link: ForeignKeyConstraint, metadata: MetaData) -> bool:
        """Return whether the rows of the checkout meet a foreign key."""
        child, parent = self._made(metadata, link.table), self._made(metadata, link.referred_table)
        other = parent.alias()
        pairs = [(child.c[element.parent.name], other.c[element.column.name]) for element in link.elements]
        names = tuple(element.column.name for element in link.elements)
        if set(names) != {column.name for column in link.referred_table.primary_key} and not any(
            set(names) == set(unique) for unique in self.unique[link.referred_table]
        ):
            self.notes.append(f"{_told(link)} is left out: it leads to columns that are not unique.")
            return False
        is_complete = and_(*(column.is_not(None) for column, _ in pairs))
        has_parent = exists(literal_column("1")).where(*(one == referred for one, referred in pairs))
        dangling = connection.scalar(select(func.count()).select_from(child).where(is_complete, ~has_parent)) or 0
        if dangling:
            self.notes.append(
                f"{_told(link)} is left out: {_rows(dangling)} refer to rows that are not in the checkout."
            )
        return not dangling

    def _copied(self, link: ForeignKeyConstraint, metadata: MetaData) -> ForeignKeyConstraint:
        parent = self._made(metadata, link.referred_table)
        return ForeignKeyConstraint(
            [element.parent.name for element in link.elements],
            [parent.c[element.column.name] for element in link.elements],
            ondelete=_action(link.ondelete),
            onupdate=_action(link.onupdate),
        )

    def _connect(
        self,
        connection: Connection,
        links: Sequence[ForeignKeyConstraint],
        kept: Sequence[ForeignKeyConstraint],
        *,
        is_inline: bool,
    ) -> None:
        """Let the tables have the foreign keys that hold, and no others.

        :param is_inline: whether the tables were created with all of them, as SQLite must have them
        """
        metadata = self._tables(kept)
        if not is_inline:
            for made in metadata.tables.values():
                for link in sorted(made.foreign_key_constraints, key=lambda link: tuple(link.column_keys)):
                    connection.execute(AddConstraint(link))
            return
        if broken := dict.fromkeys(link.table for link in links if link not in kept):
            connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")  # which leaves references to the table alone
            for table in broken:
                self._create_again(connection, table, self._made(metadata, table))
            connection.exec_driver_sql("PRAGMA legacy_alter_table = OFF")

    def _create_again(self, connection: Connection, table: Table, made: Table) -> None:
        quote = self.dialect.identifier_preparer.quote
        old = quote(shortened(f"{made.name}_sqlaudit_old"))
        connection.exec_driver_sql(f"ALTER TABLE {quote(made.name)} RENAME TO {old}")
        for index in inspect(connection).get_indexes(shortened(f"{made.name}_sqlaudit_old")):
            connection.exec_driver_sql(f"DROP INDEX {quote(str(index['name']))}")
        made.create(connection)
        connection.exec_driver_sql(f"INSERT INTO {quote(made.name)} SELECT * FROM {old}")  # noqa: S608  # quoted names
        connection.exec_driver_sql(f"DROP TABLE {old}")
        self.unique[table] = []
        self._index(connection, table, made)

    # --- sequences

    def _restart_sequences(self, connection: Connection, metadata: MetaData) -> None:
        """Let new rows of PostgreSQL get numbers that no row has."""
        if self.dialect.name != "postgresql":
            return
        for table in metadata.tables.values():
            column = table.autoincrement_column
            if column is not None:
                preparer = self.dialect.identifier_preparer
                name = preparer.format_table(table)
                name = name.replace("%%", "%") if preparer._double_percents else name
                sequence = func.pg_get_serial_sequence(name, column.name)
                highest = func.coalesce(func.max(column), 0)
                connection.execute(select(func.setval(sequence, highest + 1, text("false"))))


def _names_in(dialect: Dialect, tables: Sequence[Table]) -> dict[Table, tuple[str, str | None]]:
    """Return the name and the schema that each table has in the target."""
    if dialect.name == "postgresql":
        return {table: (table.name, table.schema) for table in tables}
    common = Counter(table.name for table in tables)
    return {
        table: (
            table.name
            if common[table.name] == 1 or table.schema is None
            else shortened(f"{table.schema}_{table.name}"),
            None,
        )
        for table in tables
    }


def _groups_of(table: Table) -> list[tuple[Column[Any], ...]]:
    """Return the columns of the primary key, and those of each unique constraint, foreign key and plain index."""
    indexes = sorted((index for index in table.indexes if not index.dialect_kwargs), key=lambda index: str(index.name))
    plain: list[tuple[Any, ...]] = [tuple(index.expressions) for index in indexes]
    links = sorted((tuple(link.columns) for link in table.foreign_key_constraints), key=str)
    return [
        tuple(table.primary_key),
        *unique_together(table),
        *links,
        *(columns for columns in plain if all(isinstance(column, Column) for column in columns)),
    ]


def _action(action: str | None) -> str | None:
    """Return a foreign key action that every database knows."""
    return None if (action or "").upper() == "SET DEFAULT" else action


def _told(link: ForeignKeyConstraint) -> str:
    return f"The foreign key {link.table.fullname}({', '.join(column.name for column in link.columns)})"


def _rows(number: int) -> str:
    return f"{number:,} {'row' if number == 1 else 'rows'}"


def _type_name(type_: Any, dialect: Dialect) -> str:
    return str(type_.compile(dialect)).partition("(")[0]
