"""What else changes when rows are deleted, and who would lose by it? Rows and links that refer to deleted rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy import select
from sqlalchemy.orm import RelationshipProperty, Session

from sqlaudit.changes import Conflict, Operation
from sqlaudit.exceptions import QueryError, UndoConflictError
from sqlaudit.restoring.plan import LinkChange, Plan, Referring, display_name
from sqlaudit.restoring.rows import Columns, display_key, keys_now, links_now, rows_where
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.models import attribute_of, link_columns, root_of
from sqlaudit.tracking.registry import mappers_of
from sqlaudit.tracking.tables import TrackedTable, tracked_table

Loss: TypeAlias = tuple[TrackedTable, Conflict]
"""A later change that would be lost: the table of the row or link, and what is reported."""


def add_effects(plan: Plan, conflicts: Sequence[Loss] | None = None, *, force: bool = False) -> list[Conflict]:
    """Add the effects of its deletions to a plan, and check it; return the later changes that are lost.

    :param conflicts: the later changes that would be lost, beside those of rows and links that refer to deleted rows;
        ``None`` for a restore, to which later changes do not matter
    :param force: let them be lost
    :raises UndoConflictError: there are later changes
    :raises QueryError: a row or link cannot become what it was
    """
    lost = list(conflicts or ())
    while True:
        plan.compare()
        referring, links = list(plan.referring()), list(_links_of_doomed(plan))
        if conflicts is not None:
            referring += plan.referring_to_absent()
            links_to_absent = plan.links_to_absent()
            lost += _conflicts_of_rows(plan, referring)
            lost = _merged([*lost, *_conflicts_of_links(plan, [*links, *links_to_absent])])
            if lost and not force:
                raise _conflict_error(lost)
            for change in links_to_absent:
                plan.unlink(change)
        for change in links:
            plan.link(change)
        if not referring:
            break
        for reference in referring:
            if reference.effect is None:
                raise QueryError(
                    f"{display_name(reference.row.model, reference.row.key)} refers to {reference.name}, which "
                    "would be deleted. Include it, or delete it first.",
                    reference.row.mapper.class_,
                )
            plan.apply_delete_effect(reference.row, reference.effect)
    plan.check_write_only()
    plan.check_untracked()
    plan.check_references()
    plan.check_unique()
    plan.check_respelt()
    return [conflict for _, conflict in lost]


# --- conflicts --------------------------------------------------------------------------------------------------


def conflict_of(table: TrackedTable, key: Key, version: Any = None, fields: Iterable[str] = (), **known: Any) -> Loss:
    """Return the conflict with a version of a row or link, or with a version that has been removed.

    :param version: an object with the audit attributes of a version
    :param fields: the fields of the row that the version changed; empty for the whole row
    """
    if version is not None:
        known = {
            "changed_by": version.changed_by,
            "timestamp": version.valid_from,
            "changeset_id": version.changeset_id,
        }
    if not table.is_association:
        table = root_of(table).table
    label = table.live.fullname if table.is_association else root_of(table).label
    return table, Conflict(resource_type=label, key=display_key(key), fields=tuple(sorted(fields)), **known)


def _merged(losses: Iterable[Loss]) -> list[Loss]:
    """Return one conflict for each row and changeset."""
    merged: dict[Any, Loss] = {}
    for table, conflict in losses:
        place = table, conflict.key, conflict.changeset_id
        _, other = merged.setdefault(place, (table, conflict))
        if other is not conflict:
            is_whole = not (other.fields and conflict.fields)
            fields = () if is_whole else sorted({*other.fields, *conflict.fields})
            merged[place] = table, replace(other, fields=tuple(fields))
    return list(merged.values())


def _conflict_error(losses: Sequence[Loss]) -> UndoConflictError:
    conflicts = [conflict for _, conflict in losses]
    lines = [
        f"{conflict.resource_type} {conflict.key!r}"
        f" ({''.join(f'{field}, ' for field in conflict.fields)}by {conflict.changed_by or 'unknown'}"
        f" at {conflict.timestamp})"
        for conflict in conflicts
    ]
    table = losses[0][0]
    more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
    return UndoConflictError(
        f"Later changes would be lost: {', '.join(lines[:10])}{more}. Undo their changesets together with this one, or "
        "pass force=True.",
        table.live if table.is_association else root_of(table).mapper.class_,
        conflicts,
    )


def _conflicts_of_rows(plan: Plan, referring: Iterable[Referring]) -> Iterator[Loss]:
    """Yield the changes that made rows refer to rows that will be deleted, as conflicts."""
    by_columns: dict[tuple[TrackedTable, Columns], dict[Key, Key | None]] = defaultdict(dict)
    for reference in referring:
        table = tracked_table(reference.columns[0].table) if reference.columns else None
        place = table or reference.row.model.root.table, reference.columns
        by_columns[place][reference.row.key] = reference.row.get(reference.columns)
    for (table, columns), values in by_columns.items():
        yield from _last_changes(plan.session, table, columns, values)


def _conflicts_of_links(plan: Plan, links: Iterable[LinkChange]) -> Iterator[Loss]:
    by_table: dict[TrackedTable, dict[Key, Key | None]] = defaultdict(dict)
    for change in links:
        by_table[change.table][change.key] = None
    for table, values in by_table.items():
        yield from _last_changes(plan.session, table, (), values)


def _last_changes(
    session: Session, table: TrackedTable, columns: Columns, wanted: Mapping[Key, Key | None]
) -> Iterator[Loss]:
    """Yield the changes by which rows got values in some columns, as conflicts; the last ones if that is not known.

    One statement per 1,000 rows.

    :param wanted: key → values
    """
    key, width, stored = table.history_key, len(table.key), dict(table.columns)
    kept = [column for column in columns if column in stored]
    roles = table.role("changed_by"), table.valid_from, table.role("changeset_id")
    statement = select(*keys_now(table), *(stored[column] for column in kept), table.role("operation"), *roles)
    last: dict[Key, tuple[Key, Any]] = {}
    by_value: dict[tuple[Key, Key], Any] = {}
    for row in rows_where(session, table, statement.order_by(table.version), key, list(wanted)):
        row_key, values, (operation, *version) = row[:width], row[width:-4], row[-4:]
        is_change = not kept or operation is Operation.INSERT or row_key not in last or last[row_key][0] != values
        if is_change and operation is not Operation.DELETE:
            last[row_key] = values, version
            by_value[row_key, values] = version
    for row_key, value in wanted.items():
        version = by_value.get((row_key, value or ())) or last.get(row_key, ((), ()))[1]
        known = dict(zip(("changed_by", "timestamp", "changeset_id"), version, strict=False))
        names = [] if table.mapper is None else [attribute_of(table.mapper, column) or column.key for column in kept]
        yield conflict_of(table, row_key, fields=names, **known)


# --- links ------------------------------------------------------------------------------------------------------


def _links_of_doomed(plan: Plan) -> Iterator[LinkChange]:
    """Yield the deletions of links of rows that will be deleted, except those in the plan."""
    for table, filter_columns, values in plan.referring_links():
        relationship = relationship_through(table)
        columns = link_columns(relationship)
        for link, now in links_now(plan.session, table, columns, filter_columns, values).items():
            change = LinkChange(Operation.DELETE, table, relationship, columns, link, now.key)
            planned = plan.links.get((table, change.identity))
            if planned is None or planned.operation is Operation.UPDATE:
                yield change


def relationship_through(table: TrackedTable) -> RelationshipProperty[Any]:
    """Return a relationship that writes an association table.

    :raises QueryError: there is none
    """
    assert table.mapper is not None
    for mapper in sorted(mappers_of(table.mapper.registry), key=lambda mapper: mapper is not table.mapper):
        for relationship in mapper.relationships:
            if relationship.secondary is table.live and not relationship.viewonly:
                return relationship
    raise QueryError(
        f"No relationship writes {table.live.fullname!r} any more, so its links cannot be restored. Insert or delete "
        "them yourself.",
        table.live,
    )
