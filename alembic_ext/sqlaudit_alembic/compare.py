"""What does autogenerate propose for history tables? The result of Alembic's own comparison, rewritten."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import JSON, Column, Index, Table
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import configure_mappers
from sqlalchemy.types import NullType, TypeEngine

from sqlaudit import SQLAuditError
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.widening import becomes_utc, is_same_kind, wide_enough
from sqlaudit.tracking.autogenerate import SET_UP, contexts_with_plugin
from sqlaudit.tracking.partitions import partitions_in_database
from sqlaudit.tracking.protection import is_protected, protects_by_column, triggers_in_database
from sqlaudit.tracking.tables import (
    INFO_KEY,
    OWN_INDEXES,
    AuditColumns,
    TrackedTable,
    guard_name,
    shortened,
    tracked_table,
)
from sqlaudit_alembic.inspection import takes_json_only
from sqlaudit_alembic.ops import (
    BackfillHistoryOp,
    BecomeUTCOp,
    ColumnsLeaveOp,
    CreateHistoryTableOp,
    Place,
    ProtectHistoryOp,
    RenewHistoryOp,
    StaysProtectedOp,
    WidenHistoryOp,
)

DROPPED_OPTION = "sqlaudit_dropped_tables"
_log = logging.getLogger(__name__)


def complete_metadata(autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Configure every mapper before the comparison, and exclude from it what only history has.

    The history table of an association table joins the MetaData only when mappers are configured, and nothing in an
    ``env.py`` configures them. Autogenerate would propose to drop the table.
    """
    configure_mappers()
    contexts_with_plugin.add(autogen_context)
    autogen_context._object_filters.append(_KeptHistory(autogen_context).is_compared)
    return PriorityDispatchResult.CONTINUE


def follow_history(autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Rewrite the operations that all comparisons have found.

    :raises SQLAuditError: a table that has a history would be dropped, because the MetaData does not know it
    """
    kept = _kept_history_of(autogen_context)
    kept.refuse_orphans(upgrade_ops)
    added = {
        (operation.schema, operation.table_name): operation
        for operation in upgrade_ops.ops
        if isinstance(operation, ops.CreateTableOp)
    }
    dropped = list(_renewals_of_downgrade(autogen_context, upgrade_ops.ops))
    rewritten = [new for old in upgrade_ops.ops for new in _rewritten(autogen_context, old, set(added))]
    rewritten.sort(
        key=lambda operation: isinstance(operation, BackfillHistoryOp)
    )  # last: live tables have all columns then
    changes = [*kept.relaxed(), *dropped, *rewritten, *_renewals(autogen_context, rewritten)]
    protections = list(_protections(autogen_context, changes))
    stay = [StaysProtectedOp(protection) for protection, was_protected in protections if was_protected]
    upgrade_ops.ops = [*stay, *changes, *(protection for protection, _ in protections)]
    return PriorityDispatchResult.CONTINUE


def refuse_to_drop(autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Stop a comparison without the plugin if it would drop history, even if the MetaData has no tracked table.

    :raises SQLAuditError: it would drop a history table
    """
    tables = [operation.to_table() for operation in upgrade_ops.ops if isinstance(operation, ops.DropTableOp)]
    names = [table.name for table in tables if _looks_like_history(table)]
    if names and autogen_context not in contexts_with_plugin:
        raise SQLAuditError(
            f"Alembic would propose to drop the history tables {', '.join(names)}, because sqlaudit's plugin takes no "
            f"part in the comparison. {SET_UP}",
            names,
        )
    return PriorityDispatchResult.CONTINUE


def _tracked(autogen_context: AutogenContext, schema: str | None, name: str) -> TrackedTable | None:
    default = autogen_context.dialect.default_schema_name if autogen_context.dialect else None
    for table in autogen_context.sorted_tables:
        if table.name == name and (table.schema == schema or (schema is None and table.schema == default)):
            return tracked_table(table)
    return None


# --- what only the database knows --------------------------------------------------------------------------------


class _KeptHistory:
    """What a comparison leaves alone: history tables, and columns of history tables, that the MetaData lacks."""

    def __init__(self, autogen_context: AutogenContext) -> None:
        self.autogen_context = autogen_context
        self.tables: list[Table] = []
        connection = autogen_context.connection
        self.partitions = {} if connection is None else partitions_in_database(connection)
        self.columns: dict[TrackedTable, list[Column[Any]]] = {}

    def is_compared(self, item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
        """Return whether Alembic compares an item: it neither drops nor logs an item that it does not compare."""
        if kind == "table":
            is_kept = reflected and (_looks_like_history(item) or self._is_partition(item))
            self.tables += [item] if is_kept else []
            return not is_kept
        tracked = _tracked(self.autogen_context, item.table.schema, item.table.name)
        if tracked is None or tracked.history.name != item.table.name:
            return True
        if kind == "column" and reflected:
            self.columns.setdefault(tracked, []).append(item)
            return False
        if name != shortened(f"uq_{tracked.history.name}_open"):
            return True
        is_partial = TRAITS[self.autogen_context.dialect.name].has_partial_indexes
        return is_partial and not _is_open_index_with_end(compare_to, tracked)

    def _is_partition(self, table: Table) -> bool:
        """Return whether a table is a partition of a history table, whatever the names of its columns."""
        inspector = self.autogen_context.inspector
        whole = self.partitions.get((table.schema or inspector.default_schema_name or "", table.name))
        if whole is None:
            return False
        schema = None if whole[0] == inspector.default_schema_name else whole[0]
        tracked = _tracked(self.autogen_context, schema, whole[1])
        if tracked is not None:
            return tracked.history.name == whole[1]
        indexes = {index["name"] for index in inspector.get_indexes(whole[1], schema=whole[0])}
        return shortened(f"ix_{whole[1]}_changeset") in indexes

    def names(self, tracked: TrackedTable) -> set[str]:
        """Return the names of the columns that only history still has."""
        return {column.name for column in self.columns.get(tracked, ())}

    def relaxed(self) -> Iterator[ops.MigrateOperation]:
        """Yield operations that make columns nullable that only history has."""
        for tracked, columns in self.columns.items():
            changes = [
                ops.AlterColumnOp(
                    str(tracked.history.name),
                    column.name,
                    schema=tracked.history.schema,
                    existing_type=column.type,
                    existing_nullable=False,
                    modify_nullable=True,
                )
                for column in columns
                if column.name != guard_name(tracked) and not column.nullable
            ]
            if changes:
                yield WidenHistoryOp(str(tracked.history.name), changes, schema=tracked.history.schema)

    def refuse_orphans(self, upgrade_ops: ops.UpgradeOps) -> None:
        """Stop if a table that has a history would be dropped.

        :raises SQLAuditError: it would
        """
        meant = set(self.autogen_context.opts.get(DROPPED_OPTION, ()))
        drops = [operation.to_table() for operation in upgrade_ops.ops if isinstance(operation, ops.DropTableOp)]
        orphans = sorted(
            table.name
            for table in drops
            if table.name not in meant and any(_is_history_of(history, table) for history in self.tables)
        )
        if orphans:
            names = ", ".join(orphans)
            raise SQLAuditError(
                f"target_metadata lacks the tables {names}, whose history the database holds, so Alembic would "
                "propose to drop them. If their models exist, import the modules of all models in env.py. If a table "
                "was renamed, write op.rename_tracked_table(old, new) in a revision before you generate one. If the "
                f"models are gone for good, list the tables: context.configure(…, {DROPPED_OPTION}={orphans!r}); "
                "sqlaudit keeps their history.",
                orphans,
            )


def _is_open_index_with_end(index: Any, tracked: TrackedTable) -> bool:
    """Return whether an index of the database refuses two open versions in a history that is divided by their end.

    PostgreSQL then wants the end among the columns of the index.
    """
    names = set(index.columns.keys()) if isinstance(index, Index) and index.unique else set()
    return names == {*(column.name for column in tracked.history_key), tracked.valid_to.name}


def _kept_history_of(autogen_context: AutogenContext) -> _KeptHistory:
    owners = (getattr(object_filter, "__self__", None) for object_filter in autogen_context._object_filters)
    return next(owner for owner in owners if isinstance(owner, _KeptHistory))


def _looks_like_history(table: Table) -> bool:
    """Return whether a table is a history table, or a partition of one, by its audit columns or an index."""
    audit_names = {name for _, name in AuditColumns().items()}
    indexes = {index.name for index in table.indexes}
    return audit_names <= set(table.c.keys()) or shortened(f"ix_{table.name}_changeset") in indexes


def _is_history_of(history: Table, live: Table) -> bool:
    """Return whether a history table without a model may belong to a table, by its name, or its columns and key."""
    if history.schema != live.schema:
        return False
    key = {column.name for column in live.primary_key}
    has_all = set(live.c.keys()) <= set(history.c.keys()) and key < {column.name for column in history.primary_key}
    return history.name == shortened(f"{live.name}_history") or (bool(key) and has_all)


# --- what the MetaData knows -------------------------------------------------------------------------------------


def _rewritten(
    autogen_context: AutogenContext,
    operation: ops.MigrateOperation,
    added: set[tuple[str | None, str]],
) -> Iterator[ops.MigrateOperation]:
    place = (getattr(operation, "schema", None), getattr(operation, "table_name", ""))
    tracked = _tracked(autogen_context, *place)
    if isinstance(operation, ops.CreateTableOp) and isinstance(operation.info, dict):
        operation.info = {name: value for name, value in operation.info.items() if name != INFO_KEY}
    is_ours = tracked is not None and tracked.history.name == place[1]
    if tracked is None or not is_ours or not isinstance(operation, ops.CreateTableOp | ops.ModifyTableOps):
        yield operation
    elif isinstance(operation, ops.CreateTableOp):
        created = create_op(tracked)
        yield created
        if (place[0], tracked.live.name) not in added and _can_be_copied(tracked, "backfill()"):
            yield BackfillHistoryOp(created.place, redact=tracked.redact)
    else:
        changes = [new for old in operation.ops for new in _for_history(autogen_context, old, tracked, place in added)]
        wider = [change for change in changes if isinstance(change, ops.AlterColumnOp)]
        for kind, group in (
            (WidenHistoryOp, wider),
            (ops.ModifyTableOps, [change for change in changes if change not in wider]),
        ):
            if group:
                yield kind(operation.table_name, group, schema=operation.schema)


def place_of(tracked: TrackedTable) -> Place:
    """Return the place of a table's history, with only the names that are not the defaults."""
    usual = dict(AuditColumns().items())
    name = tracked.history.name
    return Place(
        str(tracked.live.name),
        None if name == shortened(f"{tracked.live.name}_history") else str(name),
        {role: column for role, column in tracked.names.items() if column != usual[role]},
        tracked.live.schema,
    )


def create_op(tracked: TrackedTable) -> CreateHistoryTableOp:
    """Return the operation that creates a history table."""
    columns = [history for _, history in tracked.columns]
    return CreateHistoryTableOp(
        place_of(tracked),
        columns,
        [column.name for column in tracked.history_key],
        tracked.as_of_index,
        tracked.partitions,
    )


def _for_history(
    autogen_context: AutogenContext, operation: ops.MigrateOperation, tracked: TrackedTable, is_new: bool
) -> Iterator[ops.MigrateOperation]:
    """Yield what remains of an operation on a history table."""
    name = tracked.history.name
    own_names = {shortened(f"ix_{name}_{suffix}") for suffix in (*OWN_INDEXES, "period")}
    own_names.add(shortened(f"uq_{name}_open"))
    index = getattr(operation, "index_name", None) or getattr(operation, "constraint_name", None)
    if is_new and index in own_names:
        return
    if isinstance(operation, ops.AlterColumnOp):
        operation.kw.pop("autoincrement", None)  # only the live table has it
        wanted = operation.modify_type
        if wanted is not None:  # set by compare_types, or by a user's function that was called first
            operation.modify_type = _type_for_history(autogen_context, tracked, operation.column_name, operation)
        if not operation.has_changes():
            return
        existing, wanted = operation.existing_type, operation.modify_type
        if existing is not None and wanted is not None and becomes_utc(existing, wanted, autogen_context.dialect):
            operation = BecomeUTCOp.of(operation)
    yield operation


def _type_for_history(
    autogen_context: AutogenContext, tracked: TrackedTable, column: str, operation: ops.AlterColumnOp
) -> TypeEngine[Any] | None:
    is_key = column in {key_column.name for key_column in tracked.history_key}
    existing, wanted = operation.existing_type, operation.modify_type
    if existing is None or wanted is None or isinstance(existing, NullType):
        return wanted
    if is_key and not is_same_kind(existing, wanted, autogen_context.dialect):
        raise SQLAuditError(
            f"The type of the key {column!r} of {tracked.live.fullname!r} changes from {existing!r} to {wanted!r}, so "
            "sqlaudit could no longer match the keys in history with those of the rows. Add a new tracked table that "
            "has the new key, copy the rows, and keep the old history table.",
            tracked.live,
        )
    wide = wide_enough(existing, wanted, autogen_context.dialect)
    if is_key and wide is not None and tracked.partitions and autogen_context.dialect.name == "postgresql":
        raise SQLAuditError(
            f"The type of the key {column!r} of {tracked.live.fullname!r} changes from {existing!r} to {wanted!r}, and "
            "PostgreSQL changes no column by which a table is divided into partitions. Copy the history into a table "
            "with the new type first, in a revision of your own, as the page on partitions of sqlaudit's "
            "documentation tells.",
            tracked.live,
        )
    if wide is None and isinstance(existing, mysql.LONGTEXT) and not isinstance(wanted, JSON):
        connection = autogen_context.connection
        if connection is not None and takes_json_only(connection, tracked.history, column):
            return mysql.LONGTEXT()
    return wide


def compare_types(
    autogen_context: AutogenContext,
    operation: ops.AlterColumnOp,
    schema: str | None,
    table: str,
    name: str,
    existing: Column[Any],
    wanted: Column[Any],
) -> PriorityDispatchResult:
    """Compare the type of a history column in Alembic's place: the column is widened, never narrowed."""
    tracked = _tracked(autogen_context, schema, table)
    context = autogen_context.migration_context
    if tracked is None or tracked.history.name != table or isinstance(existing.type, NullType):
        return PriorityDispatchResult.CONTINUE
    operation.existing_type = existing.type
    if not context.impl.compare_type(existing, wanted):
        return PriorityDispatchResult.STOP
    operation.modify_type = wanted.type
    operation.modify_type = _type_for_history(autogen_context, tracked, name, operation)
    if operation.modify_type is not None:
        _log.info("Detected that %r.%r has to hold %r, and what it holds", table, name, wanted.type)
    return PriorityDispatchResult.STOP


def refuse_other_columns_and_keys(
    autogen_context: AutogenContext,
    operations: ops.ModifyTableOps,
    schema: str | None,
    table: str,
    existing: Table | None,
    wanted: Table | None,
) -> PriorityDispatchResult:
    """Stop if a history table lacks an audit column, or has another key than the model.

    :raises SQLAuditError: it does
    """
    tracked = _tracked(autogen_context, schema, table)
    if existing is None or tracked is None or tracked.history.name != table:
        return PriorityDispatchResult.CONTINUE
    names = {name for _, name in tracked.names.items()}
    if lacking := sorted(names - {column.name for column in existing.c}):
        raise SQLAuditError(
            f"The history table {table!r} has no column {', '.join(lacking)}, which the audit_columns of "
            f"{tracked.live.fullname!r} name, and autogenerate would add an empty one. Rename the old column in a "
            f"revision of your own, op.execute('ALTER TABLE {table} RENAME COLUMN … TO {lacking[0]}'), and run "
            "autogenerate after it.",
            tracked.live,
        )
    before = [column.name for column in existing.primary_key if column.name not in names]
    now = [column.name for column in tracked.history_key]
    if set(before) != set(now):
        raise SQLAuditError(
            f"The primary key of {tracked.live.fullname!r} is {', '.join(now)}, but its history table {table!r} has "
            f"the key {', '.join(before)}, under which different rows would share their versions. Give the table a "
            "new history table: track_table(history_table_name=…). Autogenerate creates and fills it, and keeps the "
            "old one.",
            tracked.live,
        )
    return PriorityDispatchResult.CONTINUE


def _protections(
    autogen_context: AutogenContext, operations: Sequence[ops.MigrateOperation]
) -> Iterator[tuple[ProtectHistoryOp, bool]]:
    """Yield an operation for each append-only history that would lack triggers, and whether it has any before."""
    connection = autogen_context.connection
    for table in autogen_context.sorted_tables:
        tracked = tracked_table(table)
        if tracked is None or tracked.live is not table or not tracked.append_only or connection is None:
            continue
        place = place_of(tracked)
        is_new = any(isinstance(each, CreateHistoryTableOp) and each.place == place for each in operations)
        if is_new:
            yield ProtectHistoryOp(place), False
        elif not is_protected(connection, tracked.history, (stored.name for stored in _refused(tracked))):
            has_triggers = bool(triggers_in_database(connection, tracked.history))
            yield ProtectHistoryOp(place), has_triggers
        elif protects_by_column(connection.dialect.name) and any(
            isinstance(each, ops.ModifyTableOps)
            and (each.schema, each.table_name) == (tracked.history.schema, tracked.history.name)
            for each in operations
        ):  # Alembic's batch mode for SQLite copies a table without its triggers
            yield ProtectHistoryOp(place), True


def _refused(tracked: TrackedTable) -> Iterator[Column[Any]]:
    """Yield the columns of a history table that no UPDATE may change."""
    return (column for column in tracked.history.c if column is not tracked.valid_to)


def _renewals(
    autogen_context: AutogenContext, operations: Sequence[ops.MigrateOperation]
) -> Iterator[ops.MigrateOperation]:
    """Yield operations that copy values that the migration gave to rows into history, for all tables of a hierarchy."""
    new = {
        (created.place.schema, created.place.table)
        for created in operations
        if isinstance(created, CreateHistoryTableOp)
    }
    renewed: dict[TrackedTable, None] = {}
    for operation, tracked in _changes_of_live_tables(autogen_context, operations):
        if (operation.schema, operation.table_name) not in new and _fills(operation, tracked, operations):
            renewed |= dict.fromkeys(_family(tracked))
    for table in autogen_context.sorted_tables:
        stored = tracked_table(table)
        if stored is not None and stored.live is table and _is_stored_anew(stored, operations):
            renewed |= dict.fromkeys(_family(stored))
    for tracked in renewed:
        if _can_be_copied(tracked, "record_changes()"):
            yield _renewal(tracked, [live.name for live, _ in tracked.columns])


def _renewals_of_downgrade(
    autogen_context: AutogenContext, operations: Sequence[ops.MigrateOperation]
) -> Iterator[ops.MigrateOperation]:
    """Yield operations whose reverse renews history after a downgrade has added columns again, empty."""
    dropped: dict[TrackedTable, list[str]] = {}
    for operation, tracked in _changes_of_live_tables(autogen_context, operations):
        kept = _kept_history_of(autogen_context).names(tracked)
        names = [name for name in _names(ops.DropColumnOp, [operation]) if name in kept]
        if names:
            dropped |= {table: dropped.get(table, []) for table in _family(tracked)} | {tracked: names}
    for table, names in reversed(dropped.items()):
        added = _names(ops.AddColumnOp, operations, table.live.schema, table.live.name)
        stored = [live.name for live, _ in table.columns if live.name not in added]
        if _can_be_copied(table, "record_changes()"):
            yield ColumnsLeaveOp(_renewal(table, [*stored, *names]))


def _changes_of_live_tables(
    autogen_context: AutogenContext, operations: Sequence[ops.MigrateOperation]
) -> Iterator[tuple[ops.ModifyTableOps, TrackedTable]]:
    for operation in operations:
        if isinstance(operation, ops.ModifyTableOps):
            tracked = _tracked(autogen_context, operation.schema, operation.table_name)
            if tracked and tracked.live.name == operation.table_name:
                yield operation, tracked


def _names(
    kind: type[ops.AddColumnOp | ops.DropColumnOp],
    operations: Sequence[ops.MigrateOperation],
    schema: str | None = None,
    table: str | None = None,
) -> list[str]:
    """Return the names of the columns that operations add to, or drop from, a table; by default, any table."""
    return [
        change.column.name if isinstance(change, ops.AddColumnOp) else change.column_name
        for operation in operations
        if isinstance(operation, ops.ModifyTableOps)
        and (table is None or (operation.schema, operation.table_name) == (schema, table))
        for change in operation.ops
        if isinstance(change, kind) and isinstance(change, ops.AddColumnOp | ops.DropColumnOp)
    ]


def _renewal(table: TrackedTable, columns: Sequence[str]) -> RenewHistoryOp:
    key = [column.name for column in table.history_key]
    redact = {name: redaction for name, redaction in table.redact.items() if name in columns}
    return RenewHistoryOp(place_of(table), key=key, columns=columns, redact=redact)


def _can_be_copied(tracked: TrackedTable, remedy: str) -> bool:
    """Return whether a revision can say how history stores a table; it cannot contain functions that redact."""
    functions = sorted(tracked.redact.keys() - tracked.hashed)
    if functions:
        _log.warning(
            "The rows of %r are not copied to history by this revision, because functions redact %s. Call %s after it.",
            tracked.live.fullname,
            ", ".join(functions),
            remedy,
        )
    return not functions


def _family(tracked: TrackedTable) -> list[TrackedTable]:
    """Return the tables of the hierarchies that a table belongs to, base tables first."""
    roots = [chain[0] for chain in tracked.chains] or [tracked]
    return list(dict.fromkeys(table for root in roots for chain in [(root,), *root.chains] for table in chain))


def _fills(operation: ops.ModifyTableOps, tracked: TrackedTable, operations: Sequence[ops.MigrateOperation]) -> bool:
    """Return whether an added column has a value, or is one that history has kept."""
    stored = {live.name for live, _ in tracked.columns}
    new = _names(ops.AddColumnOp, operations, operation.schema, tracked.history.name)
    return any(
        isinstance(change, ops.AddColumnOp)
        and change.column.name in stored
        and (_has_value(change.column) or change.column.name not in new)
        for change in operation.ops
    )


def _is_stored_anew(tracked: TrackedTable, operations: Sequence[ops.MigrateOperation]) -> bool:
    """Return whether history gets a column that the live table has already: the column is no longer excluded."""
    added = _names(ops.AddColumnOp, operations, tracked.history.schema, str(tracked.history.name))
    return not set(added) <= set(_names(ops.AddColumnOp, operations, tracked.live.schema, str(tracked.live.name)))


def _has_value(column: Any) -> bool:
    return column.server_default is not None or column.computed is not None or column.identity is not None
