"""How does a migration write versions? By SQL that is the same online and in ``--sql`` mode."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from alembic.operations.base import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Column,
    ColumnElement,
    MetaData,
    String,
    Table,
    alias,
    and_,
    case,
    exists,
    func,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.engine import Inspector

from sqlaudit import HistoryTableError, Operation, SQLAuditError
from sqlaudit.arguments import instant_or_now
from sqlaudit.period import OpenEnd, is_open
from sqlaudit.recording.changeset import ChangesetStamp, changeset_at
from sqlaudit.recording.clauses import CopyingInsert
from sqlaudit.sql.redacting import Redaction, prepare_redaction, redacted
from sqlaudit.tracking.tables import audit_column_types
from sqlaudit_alembic.inspection import columns_of, created, inspector_of, key_of, need_history, need_live
from sqlaudit_alembic.offline import ForgetRun, RememberRun, RunChangeset, RunInstant
from sqlaudit_alembic.ops import BackfillHistoryOp, Place, RenewHistoryOp

_changesets: WeakKeyDictionary[MigrationContext, ChangesetStamp] = WeakKeyDictionary()
_remembered: WeakSet[MigrationContext] = WeakSet()


@dataclass(frozen=True, slots=True)
class _Run:
    """The instant and the changeset of a run's versions: values, or in a script what the database remembers."""

    at: Any
    changeset_id: Any


@dataclass(frozen=True, slots=True)
class _Pair:
    """A live table and its history table, with the columns that versions need."""

    place: Place
    live: Table
    history: Table
    key: tuple[str, ...]
    columns: tuple[str, ...]
    redact: Mapping[str, Redaction]

    def recorded(self, name: str) -> ColumnElement[Any]:
        """Return the expression that history stores of a live column."""
        column = self.live.c[name]
        return redacted(column, self.redact[name]) if name in self.redact else column

    def audit_column(self, role: str, of: Any = None) -> Any:
        return (self.history if of is None else of).c[getattr(self.place.names, role)]

    def same_row(self, left: Any, right: Any) -> Any:
        return and_(*(left.c[name] == right.c[name] for name in self.key))


def _pair(operations: Operations, operation: BackfillHistoryOp | RenewHistoryOp) -> _Pair:
    place, inspector = operation.place, inspector_of(operations)
    need_live(inspector, place)
    need_history(inspector, place)
    names = (
        _names_in_operation(operations, operation) if inspector is None else _names_in_database(inspector, operation)
    )
    if inspector is not None:
        _refuse_unknown(operation, names)
    key, columns = operation.key or names[0], operation.columns or names[1]
    plain, types, metadata = tuple(dict.fromkeys((*key, *columns))), audit_column_types(), MetaData()
    audit = [Column[Any](name, types[role]) for role, name in place.names.items()]
    live = Table(place.table, metadata, *map(Column[Any], plain), schema=place.schema)
    history = Table(place.history, metadata, *map(Column[Any], plain), *audit, schema=place.schema)
    if operation.redact:
        _prepare_redaction(operations, operation, set(plain) - set(key))
    return _Pair(place, live, history, tuple(key), plain, operation.redact)


def _prepare_redaction(
    operations: Operations, operation: BackfillHistoryOp | RenewHistoryOp, columns: Collection[str]
) -> None:
    """Let a migration hash and mask.

    :raises SQLAuditError: it is a script, there is no key, or the history does not have a column
    """
    if operations.get_context().as_sql:
        raise SQLAuditError(
            f"op.{operation.directive}({operation.place.table!r}) cannot redact in --sql mode, because the script "
            "would contain the key. Run the migration against the database.",
            operation,
        )
    if unknown := operation.redact.keys() - columns:
        raise SQLAuditError(
            f"redact names {', '.join(sorted(unknown))}, which {operation.place.history!r} does not have outside of "
            f"its key. It has {', '.join(sorted(columns))}.",
            operation,
        )
    if any(isinstance(redaction, str) for redaction in operation.redact.values()):
        prepare_redaction(operations.get_bind())


def _refuse_unknown(operation: BackfillHistoryOp | RenewHistoryOp, existing_names: _Names) -> None:
    place = operation.place
    if unknown := {*operation.key, *operation.columns} - {*existing_names[0], *existing_names[1]}:
        raise SQLAuditError(
            f"{place.table!r} and {place.history!r} do not both have {', '.join(sorted(unknown))}. Both have "
            f"{', '.join(existing_names[1])}.",
            operation,
        )
    if operation.key and set(operation.key) != set(existing_names[0]):
        raise SQLAuditError(
            f"The key of {place.history!r} is {', '.join(existing_names[0])}. Name these columns, or leave key out.",
            operation,
        )


_Names = tuple[Sequence[str], Sequence[str]]
"""The names of the key columns, and of all columns that history stores."""


def _names_in_database(inspector: Inspector, operation: BackfillHistoryOp | RenewHistoryOp) -> _Names:
    """Find the names in the database.

    :raises HistoryTableError: the history table lacks an audit column
    """
    place, audit_names = operation.place, {name for _, name in operation.place.names.items()}
    existing_columns = columns_of(inspector, place.history, place.schema)
    if lacking := audit_names - set(existing_columns):
        raise HistoryTableError(
            f"{place.history!r} has no audit column {', '.join(sorted(lacking))}. If it has another name, pass "
            "audit_columns={role: name}.",
            operation,
        )
    live = set(columns_of(inspector, place.table, place.schema))
    return key_of(inspector, place), [name for name in existing_columns if name in live and name not in audit_names]


def _names_in_operation(operations: Operations, operation: BackfillHistoryOp | RenewHistoryOp) -> _Names:
    """Find the names in the operation, or in the operation that created the history in this run.

    :raises SQLAuditError: neither has them
    """
    place = operation.place
    if operation.key and operation.columns:
        return operation.key, operation.columns
    created_table = created.get(operations.get_context(), {}).get((place.schema, place.table))
    if created_table is None:
        raise SQLAuditError(
            f"In --sql mode the columns of {place.history!r} are unknown. Give the names of all columns that it "
            f"stores: op.{operation.directive}({place.table!r}, key=[…], columns=[…]).",
            operation,
        )
    return created_table.key, [column.name for column in created_table.columns]


def _run(operations: Operations, operation: BackfillHistoryOp | RenewHistoryOp) -> _Run:
    """Return the instant and the changeset: all operations of a run share them, unless an instant was given."""
    context, at = operations.get_context(), operation.at
    if not context.as_sql:
        changeset = changeset_at(instant_or_now(at))
        changeset = changeset if at is not None else _changesets.setdefault(context, changeset)
        return _Run(_literal(changeset.at, "valid_from"), _literal(changeset.id, "changeset_id"))
    if at is not None:
        _remember(operations, "sqlaudit_given")
        return _Run(_literal(instant_or_now(at), "valid_from"), RunChangeset("sqlaudit_given"))
    if context not in _remembered:
        _remembered.add(context)
        _remember(operations, "sqlaudit_run")
    return _Run(RunInstant("sqlaudit_run"), RunChangeset("sqlaudit_run"))


def _remember(operations: Operations, name: str) -> None:
    if operations.get_context().dialect.name == "sqlite":
        operations.execute(ForgetRun(name))
    operations.execute(RememberRun(name))


def _literal(value: Any, role: str) -> Any:
    return literal(value, audit_column_types()[role])


def _insert_into_history(pair: _Pair, audit: dict[str, Any], source: Any, *criteria: Any) -> Any:
    names = [*pair.columns, *(getattr(pair.place.names, role) for role in audit)]
    values = [*map(pair.recorded, pair.columns), *audit.values()]
    return CopyingInsert(pair.history).from_select(names, select(*values).select_from(source).where(*criteria))


def _baseline(run: _Run, version: Any, valid_from: Any) -> dict[str, Any]:
    return {
        "version": version,
        "valid_from": valid_from,
        "valid_to": OpenEnd(),
        "operation": literal(str(Operation.BASELINE), String()),
        "changeset_id": run.changeset_id,
    }


@Operations.implementation_for(BackfillHistoryOp)
def backfill_history(operations: Operations, operation: BackfillHistoryOp) -> None:
    pair, run = _pair(operations, operation), _run(operations, operation)
    known = alias(pair.history)
    without_history = ~exists(select(literal_column("1")).select_from(known).where(pair.same_row(pair.live, known)))
    audit = _baseline(run, literal_column("1"), run.at)
    operations.execute(_insert_into_history(pair, audit, pair.live, without_history))


@Operations.implementation_for(RenewHistoryOp)
def renew_history(operations: Operations, operation: RenewHistoryOp) -> None:
    """Close the open versions of live rows, then write their baselines; rows without history are left alone.

    A version that began after the instant gets an empty period, and the baseline begins when that version began.
    """
    pair, run = _pair(operations, operation), _run(operations, operation)
    at = run.at
    began = pair.audit_column("valid_from")
    living = exists(select(literal_column("1")).select_from(pair.live).where(pair.same_row(pair.live, pair.history)))
    operations.execute(
        update(pair.history)
        .values({pair.audit_column("valid_to"): case((began > at, began), else_=at)})
        .where(is_open(pair.audit_column("valid_to")), living)
    )
    last, other = alias(pair.history), alias(pair.history)
    newest = (
        select(func.max(pair.audit_column("version", other))).where(pair.same_row(other, pair.live)).scalar_subquery()
    ).correlate(pair.live)
    audit = _baseline(
        run, pair.audit_column("version", last) + literal_column("1"), pair.audit_column("valid_to", last)
    )
    source = pair.live.join(last, pair.same_row(pair.live, last))
    operations.execute(
        _insert_into_history(
            pair,
            audit,
            source,
            pair.audit_column("version", last) == newest,
            pair.audit_column("operation", last) != literal(str(Operation.DELETE), String()),
        )
    )
