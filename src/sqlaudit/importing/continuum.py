"""How do the version tables of SQLAlchemy-Continuum and sqlalchemy-history become a history of sqlaudit?

Both libraries keep a table ``<table>_version``: the row, the id of a transaction, and its operation (0 insert, 1
update, 2 delete). sqlaudit computes periods from the order of the transactions alone, because the end that a version
has there is not reliable, for example after a change of its key. The database copies the values from table to table;
only the transactions pass through Python.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    FromClause,
    Insert,
    MetaData,
    Select,
    String,
    Subquery,
    Table,
    and_,
    case,
    exists,
    func,
    insert,
    inspect,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import NullType, TypeEngine

from sqlaudit.asynchronous import also_async_where
from sqlaudit.changes import Operation
from sqlaudit.context import user_id_text
from sqlaudit.exceptions import QueryError
from sqlaudit.importing.targets import column_names_of, import_target, reconcile_after_import
from sqlaudit.maintenance.door import writable_history
from sqlaudit.period import OPEN_END, TICK, OpenEnd, as_utc
from sqlaudit.recording.changeset import changeset_id_of
from sqlaudit.sql.batches import in_pages
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.keys import Key
from sqlaudit.sql.options import INTERNAL
from sqlaudit.sql.temporary import DropTemporary
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import base_table_of
from sqlaudit.tracking.tables import TrackedTable, audit_column_types, prepare_connection
from sqlaudit.wire import Report

_INSERTED: Final = 0
_DELETED: Final = 2
_REMEDY: Final = "Give the names that the other library uses: table_name=…, transaction_table=…."
_TIE: Final = timedelta(seconds=1)
"""How much earlier than its predecessor a transaction may seem to be: some databases store whole seconds."""
_AUDIT_ROLES: Final = ("changed_by", "extra", "changeset_id")
"""The roles of the audit columns that the other library's transaction fills."""
_log: Final = logging.getLogger(__package__)


@dataclass(frozen=True, slots=True, repr=False)
class ImportReport(Report):
    """What :func:`import_continuum` wrote.

    :param rows: the number of rows, deleted ones included, whose history was taken over from the other library
    :param versions: the number of their versions
    :param left_alone: the number of rows that had a history of sqlaudit already
    :param baselines: the number of live rows that the other library did not know; they have a baseline of now
    :param recorded: the number of versions of now that make the history agree with the live rows, because the other
        library had missed changes
    """

    rows: int
    versions: int
    left_alone: int
    baselines: int
    recorded: int


@also_async_where
def import_continuum(
    where: Session | Connection,
    model_class: Any,
    *,
    table_name: str = "%s_version",
    transaction_column_name: str = "transaction_id",
    operation_type_column_name: str = "operation_type",
    transaction_table: str = "transaction",
    transaction_schema: str | None = None,
) -> ImportReport:
    """Import what SQLAlchemy-Continuum or sqlalchemy-history recorded of a model, in the caller's transaction.

    Each transaction of the other library becomes a changeset with its instant and its user; its further columns, such
    as an address, become ``extra``. A transaction gets the same id whichever table is imported first. Rows that have a
    history of sqlaudit are left alone, so a second import does nothing more. Transactions of one instant, common where
    MariaDB stores whole seconds, follow each other by 1 µs, and so do two versions of a row if a clock went back.

    :param where: a session or a connection; if it is asynchronous, await the result. In a migration, ``op.get_bind()``
    :param model_class: a tracked model, whose whole hierarchy is imported, or an association table
    :param table_name: the option of the other library of this name
    :param transaction_column_name: the option of the other library of this name
    :param operation_type_column_name: the option of the other library of this name
    :param transaction_table: the name of the table of transactions, whose times are UTC
    :param transaction_schema: the schema of the table of transactions
    :raises TrackingError: the model is not tracked
    :raises QueryError: the tables do not exist, or a version has no transaction
    :raises HistoryTableError: the database lacks the history table
    """
    names = _Names(
        table_name, transaction_column_name, operation_type_column_name, transaction_table, transaction_schema
    )
    with import_target(where, base_table_of(model_class)) as (session, connection):
        return _import(session, connection, model_class, names)


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of the other library's tables and columns."""

    versions: str
    transaction_id: str
    operation_type: str
    transactions: str
    schema: str | None


def _import(session: Session, connection: Connection, model_class: Any, names: _Names) -> ImportReport:
    root = base_table_of(model_class)
    subclass_tables = list(dict.fromkeys(table for chain in root.chains for table in chain[1:]))
    with explaining_history_errors([root, *subclass_tables]):
        prepare_connection(connection, [root, *subclass_tables])
        version_table, *others = [_version_table(connection, table, names) for table in (root, *subclass_tables)]
        left_alone = _count(connection, _select_keys(version_table, root).where(_has_history(root, version_table)))
        with _transactions(connection, names, version_table) as transactions:
            statement = _versions(root, version_table, transactions).execution_options(preserve_rowcount=True)
            versions = connection.execute(statement).rowcount
            for table, their in zip(subclass_tables, others, strict=True):
                connection.execute(_versions_of_subclass_table(root, table, their, transactions))
        rows = _count(connection, _select_keys(version_table, root)) - left_alone
        _keep_in_order(connection, [root, *subclass_tables], version_table)
        baselines, recorded = reconcile_after_import(session, connection, model_class)
    report = ImportReport(rows, versions, left_alone, baselines, recorded)
    _log.info("%s: %r", root.live.fullname, report)
    return report


def _count(connection: Connection, rows: Select[Any]) -> int:
    return connection.scalar(select(func.count()).select_from(rows.subquery())) or 0


# --- the other library's tables ---------------------------------------------------------------------------------


def _version_table(connection: Connection, table: TrackedTable, names: _Names) -> Table:
    """Return a version table of the other library: the columns that history stores, transaction and operation.

    :raises QueryError: there is no such table, or it lacks a needed column
    """
    name = names.versions.replace("%s", table.live.name)
    needed = {*(column.name for column in table.key), names.transaction_id, names.operation_type}
    existing_columns = column_names_of(connection, name, table.live.schema, _REMEDY)
    if lacking := needed - existing_columns:
        raise QueryError(
            f"{name!r} cannot be imported as the history of {table.live.fullname!r}, because it has no column "
            f"{', '.join(sorted(lacking))}. {_REMEDY}",
            table.live,
        )
    stored = [Column(live.name, live.type, key=live.key) for live, _ in table.columns if live.name in existing_columns]
    numbers = (
        Column(names.transaction_id, BigInteger(), key="transaction_id"),
        Column(names.operation_type, BigInteger(), key="operation_type"),
    )
    return Table(name, MetaData(), *stored, *numbers, schema=table.live.schema)


def _key_in(table: TrackedTable, source: FromClause) -> list[ColumnElement[Any]]:
    return [source.c[column.key] for column in table.key]


def _select_keys(version_table: Table, root: TrackedTable) -> Select[Any]:
    """Return the SELECT of the keys that have versions in the other library."""
    return select(*_key_in(root, version_table)).distinct()


def _has_history(root: TrackedTable, source: FromClause) -> ColumnElement[bool]:
    history = HistoryAlias(root)
    return exists(literal_column("1")).select_from(history.clause).where(history.has_key(_key_in(root, source)))


# --- its transactions -------------------------------------------------------------------------------------------


@contextmanager
def _transactions(connection: Connection, names: _Names, version_table: Table) -> Iterator[Table]:
    """Give a temporary table of the other library's transactions, with the values of sqlaudit's audit columns."""
    source, types = _table_of_transactions(connection, names, version_table), audit_column_types()
    stored = Table(
        f"sqlaudit_transactions_{uuid4().hex}",
        MetaData(),
        Column("number", BigInteger(), primary_key=True, autoincrement=False),
        Column("valid_from", types["valid_from"]),
        *(Column(role, types[role]) for role in _AUDIT_ROLES),
        prefixes=["TEMPORARY"],
    )
    stored.create(connection)
    last = None
    for page in _pages_of(connection, source, names):
        rows = [_audit_values(names.transactions, transaction) for transaction in page]
        for values in rows:
            if last is not None and last - _TIE < values["valid_from"] <= last:
                values["valid_from"] = last + TICK
            last = values["valid_from"]
        connection.execute(insert(stored), rows)
    yield stored
    connection.execute(DropTemporary(stored))


def _table_of_transactions(connection: Connection, names: _Names, version_table: Table) -> Table:
    """Return the other library's table of transactions.

    :raises QueryError: there is no such table, or it lacks a column, or a transaction that has versions
    """
    name = names.transactions
    existing_columns = column_names_of(connection, name, names.schema, _REMEDY)
    if lacking := {"id", "issued_at"} - existing_columns:
        raise QueryError(
            f"{name!r} has no column {', '.join(sorted(lacking))}, so it is not a table of transactions. {_REMEDY}",
            name,
        )
    types: dict[str, TypeEngine[Any]] = {"id": BigInteger(), "issued_at": DateTime()}
    columns = (Column(column_name, types.get(column_name, NullType())) for column_name in sorted(existing_columns))
    source = Table(name, MetaData(), *columns, schema=names.schema)
    is_known = and_(source.c.id == version_table.c.transaction_id, source.c.issued_at.is_not(None))
    is_missing = ~exists(literal_column("1")).select_from(source).where(is_known)
    if missing := connection.scalar(select(version_table.c.transaction_id).where(is_missing).limit(1)):
        raise QueryError(
            f"{version_table.name!r} has versions of transaction {missing}, and {name!r} has no row with the time of "
            "this transaction. Insert the row, with id and issued_at, or give another transaction_table=….",
            name,
        )
    return source


def _pages_of(connection: Connection, source: Table, names: _Names) -> Iterator[Sequence[dict[str, Any]]]:
    """Yield pages of the other library's transactions, with what its plugin wrote to ``transaction_meta``."""
    meta = Table("transaction_meta", MetaData(), *map(Column, ("transaction_id", "key", "value")), schema=names.schema)
    has_meta = inspect(connection).has_table(meta.name, schema=names.schema)

    def read(statement: Select[Any]) -> list[dict[str, Any]]:
        return [dict(row) for row in connection.execute(statement).mappings()]

    ordered = select(source).where(source.c.issued_at.is_not(None)).order_by(source.c.id)
    for page in in_pages(read, ordered, lambda transaction: source.c.id > transaction["id"]):
        by_id = {transaction["id"]: transaction for transaction in page}
        statement = select(meta).where(meta.c.transaction_id.in_(list(by_id)))
        for number, key, value in connection.execute(statement) if has_meta else ():
            by_id[number].setdefault(key, value)
        yield page


def _audit_values(name: str, transaction: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a transaction of the other library to the values of sqlaudit's audit columns."""
    values = dict(transaction)
    number, at, user = values.pop("id"), values.pop("issued_at"), values.pop("user_id", None)
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else as_utc(at)
    extra = {key: _as_json(value) for key, value in values.items() if value is not None}
    changed_by = None if user is None else user_id_text(str(user), "the user_id of a transaction")
    return {
        "number": number,
        "valid_from": at,
        "changeset_id": changeset_id_of(f"{name} {number}", at),
        "changed_by": changed_by,
        "extra": extra or None,
    }


def _as_json(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, dict)) else str(value)


# --- its versions -----------------------------------------------------------------------------------------------


def _versions(root: TrackedTable, version_table: Table, transactions: Table) -> Insert:
    """Return the INSERT of the versions of all rows that have no history, in the order of the transactions."""
    row = _key_in(root, version_table)
    audit_columns = [transactions.c.valid_from, *(transactions.c[role] for role in _AUDIT_ROLES)]
    before = func.lag(version_table.c.operation_type).over(partition_by=row, order_by=version_table.c.transaction_id)
    known = (
        select(*version_table.c, *audit_columns, before.label("sqlaudit_before"))
        .join(transactions, transactions.c.number == version_table.c.transaction_id)
        .where(~_has_history(root, version_table))
        .subquery()
    )
    order: dict[str, Any] = {"partition_by": _key_in(root, known), "order_by": known.c.transaction_id}
    numbered = (
        select(
            *known.c,
            func.row_number().over(**order).label("sqlaudit_number"),
            func.lead(known.c.valid_from).over(**order).label("sqlaudit_next"),
        )
        # The deletion of a deleted row is ignored.
        .where(or_(known.c.operation_type != _DELETED, func.coalesce(known.c.sqlaudit_before, 0) != _DELETED))
        .subquery()
    )
    audit = {
        "version": numbered.c.sqlaudit_number,
        "valid_from": numbered.c.valid_from,
        "valid_to": _end_of(numbered),
        "operation": _operation_of(numbered),
        **{role: numbered.c[role] for role in _AUDIT_ROLES},
    }
    return _insert_into_history(root, version_table, numbered, audit)


def _operation_of(version: Subquery) -> ColumnElement[Any]:
    is_first = or_(version.c.sqlaudit_number == literal_column("1"), version.c.sqlaudit_before == _DELETED)
    return case(
        (version.c.operation_type == _DELETED, _text(Operation.DELETE)),
        (and_(is_first, version.c.operation_type == _INSERTED), _text(Operation.INSERT)),
        (is_first, _text(Operation.BASELINE)),  # the state before is unknown
        else_=_text(Operation.UPDATE),
    )


def _end_of(version: Subquery) -> ColumnElement[Any]:
    return case(
        (version.c.operation_type == _DELETED, version.c.valid_from),
        (version.c.sqlaudit_next.is_not(None), version.c.sqlaudit_next),
        else_=OpenEnd(),
    )


def _text(operation: Operation) -> ColumnElement[str]:
    return literal(str(operation), String())


def _versions_of_subclass_table(
    root: TrackedTable, table: TrackedTable, version_table: Table, transactions: Table
) -> Insert:
    """Return the INSERT of a subclass table's versions, where the base table has a version of the transaction."""
    base_history, history, key = HistoryAlias(root), HistoryAlias(table), _key_in(table, version_table)
    has_version = exists(literal_column("1")).where(history.has_key(key), history.version == base_history.version)
    source = (
        select(*version_table.c, *(base_history.role(role).label(f"sqlaudit_{role}") for role, _ in root.names.items()))
        .join(transactions, transactions.c.number == version_table.c.transaction_id)
        .join(
            base_history.clause,
            and_(base_history.has_key(key), base_history.changeset_id == transactions.c.changeset_id),
        )
        .where(~has_version)
        .subquery()
    )
    return _insert_into_history(
        table, version_table, source, {role: source.c[f"sqlaudit_{role}"] for role, _ in root.names.items()}
    )


def _insert_into_history(
    table: TrackedTable, version_table: Table, source: Subquery, audit: Mapping[str, Any]
) -> Insert:
    stored = [
        (old, table.recorded(live, source.c[live.key])) for live, old in table.columns if live.key in version_table.c
    ]
    columns = [*(old for old, _ in stored), *map(table.role, audit)]
    values = select(*(value for _, value in stored), *audit.values())
    return insert(table.history).from_select(columns, values, include_defaults=False).execution_options(**INTERNAL)


# --- the order of time ------------------------------------------------------------------------------------------


def _keep_in_order(connection: Connection, tables: Sequence[TrackedTable], version_table: Table) -> None:
    """Move versions that don't begin later than the version before: of one instant, or after a clock went back."""
    root = tables[0]
    earlier, later = HistoryAlias(root), HistoryAlias(root)
    follows = and_(later.has_key(earlier.key), later.version == earlier.version + literal_column("1"))
    imported = (
        exists(literal_column("1")).select_from(version_table).where(earlier.has_key(_key_in(root, version_table)))
    )
    wrong = later.valid_from <= earlier.valid_from
    wrong_keys = (
        select(*earlier.key).select_from(earlier.clause.join(later.clause, follows)).where(wrong, imported).distinct()
    )
    for row in [tuple(found_key) for found_key in connection.execute(wrong_keys)]:
        _move(connection, tables, row)


def _move(connection: Connection, tables: Sequence[TrackedTable], key: Key) -> None:
    root = tables[0]
    of_row = select(root.version, root.valid_from, root.role("operation")).where(
        all_equal(root.history_key, _values(key))
    )
    versions = connection.execute(of_row.order_by(root.version)).all()
    instants: list[datetime] = []
    for _, at, _ in versions:
        instants.append(max(at, instants[-1] + TICK) if instants else at)
    with writable_history(connection, tables):
        for place, (number, _, operation) in enumerate(versions):
            begin, is_last = instants[place], place == len(versions) - 1
            end = begin if operation is Operation.DELETE else OPEN_END if is_last else instants[place + 1]
            for table in tables:
                of_version = and_(all_equal(table.history_key, _values(key)), table.version == number)
                moved = update(table.history).where(of_version).values({table.valid_from: begin, table.valid_to: end})
                connection.execute(moved.execution_options(**INTERNAL))


def _values(key: Key) -> list[ColumnElement[Any]]:
    return [literal(value) for value in key]
