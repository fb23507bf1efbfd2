"""What does autogenerate propose for history? Alembic's own comparison, and what makes it right for history tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import Table
from sqlalchemy.orm import configure_mappers

from sqlaudit import SQLAuditError
from sqlaudit.statements import MYSQL
from sqlaudit.tables import INFO_KEY, AuditColumns, TrackedTable, guard_name, shortened, tracked_table
from sqlaudit_alembic.ops import BackfillHistoryOp, ColumnsLeaveOp, CreateHistoryTableOp, Place, RenewHistoryOp

DROPPED_OPTION = "sqlaudit_dropped_tables"


def complete_metadata(autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Configure every mapper before anything is compared.

    The history table of an association table joins the MetaData only then, and nothing in an ``env.py`` configures
    mappers: such a table would look like one to be dropped.
    """
    configure_mappers()
    return PriorityDispatchResult.CONTINUE


def follow_history(autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Rewrite what was found, once all of it has been.

    :raises SQLAuditError: a table that has a history would be dropped, because the MetaData does not know it
    """
    kept = _histories_to_keep(autogen_context, upgrade_ops)
    added = {(each.schema, each.table_name): each for each in upgrade_ops.ops if isinstance(each, ops.CreateTableOp)}
    dropped = list(_renewals_of_downgrade(autogen_context, upgrade_ops.ops))
    rewritten = [new for old in upgrade_ops.ops for new in _rewritten(autogen_context, old, kept, set(added))]
    rewritten.sort(key=lambda each: isinstance(each, BackfillHistoryOp))  # when live tables have all their columns
    upgrade_ops.ops = [*dropped, *rewritten, *_renewals(autogen_context, rewritten)]
    return PriorityDispatchResult.CONTINUE


def _tracked(autogen_context: AutogenContext, schema: str | None, name: str) -> TrackedTable | None:
    default = autogen_context.dialect.default_schema_name if autogen_context.dialect else None
    for table in autogen_context.sorted_tables:
        if table.name == name and (table.schema == schema or (schema is None and table.schema == default)):
            return tracked_table(table)
    return None


# --- tables that the MetaData does not know ----------------------------------------------------------------------


def _looks_like_history(table: Table, indexes: Collection[str]) -> bool:
    """Tell whether a table is a history table, or a partition of one: by our columns, or our indexes."""
    ours = {name for _, name in AuditColumns().items()}
    return ours <= set(table.c.keys()) or shortened(f"ix_{table.name}_changeset") in indexes


def _indexes_dropped(upgrade_ops: ops.UpgradeOps) -> dict[tuple[str | None, str], set[str]]:
    """Return the names of the indexes that would be dropped, by table: those of a table that would be are, too."""
    found: dict[tuple[str | None, str], set[str]] = defaultdict(set)
    for each in upgrade_ops.ops:
        if isinstance(each, ops.ModifyTableOps):
            names = (str(drop.index_name) for drop in each.ops if isinstance(drop, ops.DropIndexOp))
            found[each.schema, each.table_name].update(names)
    return found


def _histories_to_keep(autogen_context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> set[tuple[str | None, str]]:
    drops = [each.to_table() for each in upgrade_ops.ops if isinstance(each, ops.DropTableOp)]
    indexes = _indexes_dropped(upgrade_ops)
    kept = [table for table in drops if _looks_like_history(table, indexes[table.schema, str(table.name)])]
    meant = set(autogen_context.opts.get(DROPPED_OPTION, ()))
    orphans = sorted(
        table.name
        for table in drops
        if table not in kept and table.name not in meant and any(_is_history_of(history, table) for history in kept)
    )
    if orphans:
        names = ", ".join(orphans)
        raise SQLAuditError(
            f"The database has {names} and the history of it, and target_metadata has not: it would be "
            "dropped. Import the modules of all models in env.py. If the models are gone for good, say so: "
            f"context.configure(…, {DROPPED_OPTION}={orphans!r}); their history will be kept.",
            orphans,
        )
    return {(table.schema, str(table.name)) for table in kept}


def _is_history_of(history: Table, live: Table) -> bool:
    """Tell whether a history table that no model has may be that of a table: by its name, or by its columns and key."""
    if history.schema != live.schema:
        return False
    key = {column.name for column in live.primary_key}
    has_all = set(live.c.keys()) <= set(history.c.keys()) and key < {column.name for column in history.primary_key}
    return history.name == shortened(f"{live.name}_history") or (bool(key) and has_all)


# --- tables that it does -----------------------------------------------------------------------------------------


def _rewritten(
    autogen_context: AutogenContext,
    operation: ops.MigrateOperation,
    kept: set[tuple[str | None, str]],
    added: set[tuple[str | None, str]],
) -> Iterator[ops.MigrateOperation]:
    place = (getattr(operation, "schema", None), getattr(operation, "table_name", ""))
    if place in kept:
        return
    tracked = _tracked(autogen_context, *place)
    if isinstance(operation, ops.CreateTableOp):
        operation.info = {name: value for name, value in (operation.info or {}).items() if name != INFO_KEY}
    is_ours = tracked is not None and tracked.history.name == place[1]
    if tracked is None or not is_ours or not isinstance(operation, ops.CreateTableOp | ops.ModifyTableOps):
        yield operation
    elif isinstance(operation, ops.CreateTableOp):
        created = create_op(tracked)
        yield created
        if (place[0], tracked.live.name) not in added:
            yield BackfillHistoryOp(created.place)
    else:
        operation.ops = [
            new for old in operation.ops for new in _for_history(autogen_context, old, tracked, place in added)
        ]
        if operation.ops:
            yield operation


def place_of(tracked: TrackedTable) -> Place:
    """Return where the history of a table lies, saying only what is unusual."""
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
        place_of(tracked), columns, [column.name for column in tracked.history_key], tracked.as_of_index
    )


def _for_history(
    autogen_context: AutogenContext, operation: ops.MigrateOperation, tracked: TrackedTable, is_new: bool
) -> Iterator[ops.MigrateOperation]:
    """Yield what remains of a change of a history table: nothing is dropped, and what is kept may be NULL."""
    name = tracked.history.name
    guard = shortened(f"uq_{name}_open")
    ours = {guard, shortened(f"ix_{name}_changeset"), shortened(f"ix_{name}_period")}
    dialect = autogen_context.dialect.name if autogen_context.dialect else ""
    index = getattr(operation, "index_name", None) or getattr(operation, "constraint_name", None)
    if (is_new and index in ours) or (dialect in MYSQL and index == guard):
        return
    if isinstance(operation, ops.DropColumnOp):
        yield from _kept_column(operation, tracked)
    else:
        if isinstance(operation, ops.AlterColumnOp):
            operation.kw.pop("autoincrement", None)  # of the live table
        yield operation


def _kept_column(operation: ops.DropColumnOp, tracked: TrackedTable) -> Iterator[ops.MigrateOperation]:
    column = operation.to_column()
    if column.name == guard_name(tracked) or column.nullable:
        return
    yield ops.AlterColumnOp(
        operation.table_name,
        operation.column_name,
        schema=operation.schema,
        existing_type=column.type,
        existing_nullable=False,
        modify_nullable=True,
    )


def _renewals(
    autogen_context: AutogenContext, operations: Sequence[ops.MigrateOperation]
) -> Iterator[ops.MigrateOperation]:
    """Yield what takes values that rows have from the migration into history: of all tables of a hierarchy."""
    new = {(each.place.schema, each.place.table) for each in operations if isinstance(each, CreateHistoryTableOp)}
    renewed: dict[TrackedTable, None] = {}
    for operation, tracked in _changes_of_live_tables(autogen_context, operations):
        if (operation.schema, operation.table_name) not in new and _fills(operation, tracked, operations):
            renewed |= dict.fromkeys(_family(tracked))
    for table in autogen_context.sorted_tables:
        stored = tracked_table(table)
        if stored is not None and stored.live is table and _is_stored_anew(stored, operations):
            renewed |= dict.fromkeys(_family(stored))
    for tracked in renewed:
        yield _renewal(tracked, [live.name for live, _ in tracked.columns])


def _renewals_of_downgrade(
    autogen_context: AutogenContext, operations: Sequence[ops.MigrateOperation]
) -> Iterator[ops.MigrateOperation]:
    """Yield what renews history when columns that it keeps are back in the live table, empty."""
    dropped: dict[TrackedTable, list[str]] = {}
    for operation, tracked in _changes_of_live_tables(autogen_context, operations):
        kept = _names(ops.DropColumnOp, operations, operation.schema, tracked.history.name)
        names = [name for name in _names(ops.DropColumnOp, [operation]) if name in kept]
        if names:
            dropped |= {table: dropped.get(table, []) for table in _family(tracked)} | {tracked: names}
    for table, names in reversed(dropped.items()):
        added = _names(ops.AddColumnOp, operations, table.live.schema, table.live.name)
        stored = [live.name for live, _ in table.columns if live.name not in added]
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
    """Return the names of the columns that are added to, or dropped from, a table, or any."""
    return [
        each.column.name if isinstance(each, ops.AddColumnOp) else each.column_name
        for operation in operations
        if isinstance(operation, ops.ModifyTableOps)
        and (table is None or (operation.schema, operation.table_name) == (schema, table))
        for each in operation.ops
        if isinstance(each, kind) and isinstance(each, ops.AddColumnOp | ops.DropColumnOp)
    ]


def _renewal(table: TrackedTable, columns: Sequence[str]) -> RenewHistoryOp:
    return RenewHistoryOp(place_of(table), key=[column.name for column in table.history_key], columns=columns)


def _family(tracked: TrackedTable) -> list[TrackedTable]:
    """Return the tables whose versions go together, the topmost first."""
    roots = [chain[0] for chain in tracked.chains] or [tracked]
    return list(dict.fromkeys(table for root in roots for chain in [(root,), *root.chains] for table in chain))


def _fills(operation: ops.ModifyTableOps, tracked: TrackedTable, operations: Sequence[ops.MigrateOperation]) -> bool:
    """Tell whether a column is added that has a value, or that history, which kept it, has one of."""
    stored = {live.name for live, _ in tracked.columns}
    new = _names(ops.AddColumnOp, operations, operation.schema, tracked.history.name)
    return any(
        isinstance(each, ops.AddColumnOp)
        and each.column.name in stored
        and (_has_value(each.column) or each.column.name not in new)
        for each in operation.ops
    )


def _is_stored_anew(tracked: TrackedTable, operations: Sequence[ops.MigrateOperation]) -> bool:
    """Tell whether history is given a column that the live table has already: it is no longer excluded."""
    added = _names(ops.AddColumnOp, operations, tracked.history.schema, str(tracked.history.name))
    return not set(added) <= set(_names(ops.AddColumnOp, operations, tracked.live.schema, str(tracked.live.name)))


def _has_value(column: Any) -> bool:
    return column.server_default is not None or column.computed is not None or column.identity is not None
