"""How does a row become what it was? By :func:`restore` to a version, with related rows, or in some fields alone.

It writes through the session, in its transaction, and ends with a flush. The flush records new versions with the
caller's context; without a reason there, the reason names the version. History is never rewritten.

It reads everything first, in sets, and raises before it changes anything. With an ``AsyncSession``, await it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from sqlalchemy import BinaryExpression, BooleanClauseList, func, inspect, select
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty, Session, scoped_session
from sqlalchemy.sql import operators

from sqlaudit.arguments import When, checked_when
from sqlaudit.asynchronous import also_async
from sqlaudit.changes import Operation, RestoreReport
from sqlaudit.exceptions import QueryError, ReadOnlyError, SQLAuditError, TrackingError
from sqlaudit.past.rendering import Instant
from sqlaudit.period import Mark
from sqlaudit.restoring.application import carry_out
from sqlaudit.restoring.effects import add_effects
from sqlaudit.restoring.plan import LinkChange, Plan, display_name
from sqlaudit.restoring.request import checked_fields, checked_values, flush_first, names_for, writing_session
from sqlaudit.restoring.rows import (
    Row,
    keys_inserted_after,
    links_at,
    links_now,
    rows_at,
    rows_now,
    rows_of_versions,
)
from sqlaudit.retrieval.changesets import instant_of_changeset
from sqlaudit.retrieval.ids import converted_ids
from sqlaudit.sql.keys import Key
from sqlaudit.sql.lists import one_of
from sqlaudit.tracking.history import Version
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import TrackedModel, link_columns, tracked_model, tracked_model_of
from sqlaudit.tracking.sessions import bind_arguments_for
from sqlaudit.tracking.tables import TrackedTable, tracked_table

_AnySession = Session | scoped_session[Any]
_Paths = dict[str, tuple[RelationshipProperty[Any], Any]]


@also_async
def restore(
    session: _AnySession,
    version: Any,
    key: Any = None,
    *,
    at: When | int | None = None,
    include: Iterable[str] = (),
    fields: Iterable[str] | None = None,
    values: Mapping[Any, Any] | None = None,
    dry_run: bool = False,
) -> RestoreReport:
    """Restore a row to a version, given the version, or the row's class, its key and ``at``.

    .. code-block:: python

        restore(session, Customer, 1, at=then, include=["orders"])

    A changed row gets its old values, a deleted row comes back with its key. A row that is in that state already is
    left alone, and so are excluded columns, and quiet columns of a row that is there. ``restore`` ends with a flush in
    the session's transaction. If the audit context has no reason, the reason names the version. It reads with one
    statement per table, path and 1,000 rows.

    :param session: a session that records; if it is an ``AsyncSession``, await the result
    :param version: an object of a history class, or a tracked class
    :param key: the primary key, if a class was given; a tuple if the key is composite
    :param at: an aware datetime, a :class:`Mark`, the number of a version, or a changeset id: the state right after
        that transaction
    :param include: relationships whose rows are restored to the same instant, too, as dotted paths. Changed and deleted
        rows are restored. In collections, rows that came later are deleted, and rows that belong elsewhere now come
        back. In many-to-many relationships, links that came later are deleted, but not the rows that they lead to;
        links that are inserted again get the defaults of their further columns
    :param fields: restore only these attributes, and leave the others as they are now
    :param values: values that the history lacks, for excluded columns of rows that come back, or that a column can no
        longer hold: by attribute of the class, or by class and attribute
    :param dry_run: only report what would be done
    :raises QueryError: there is no such state, a path or a field does not exist, or a row cannot become what it was
    :raises PrunedError: the state is from before the horizon of a history that was pruned
    :raises TrackingError: the class is not tracked
    :raises SQLAuditError: the session does not record
    """
    session = writing_session(session)
    model, wanted, at = _subject(version, key, at)
    paths = _path_tree(model.mapper, include)
    if paths and fields is not None:
        raise QueryError("fields restores a part of one row, and include whole rows. Call restore() for each.", fields)
    given_values = checked_values(values, model)
    flush_first(session, dry_run)
    row, instant = _row_at(session, model, wanted, at)
    plan = Plan(session, given_values, lock=not dry_run)
    assert row.valid_from is not None
    reason = f"from version {row.version} of {row.valid_from.isoformat()}"
    if fields is None:
        plan.want(row)
        _Including(plan, instant).include(paths, [row], [])
        reason = f"restored {reason}"
    else:
        names = _want_fields(plan, row, fields)
        reason = f"restored {', '.join(sorted(names))} {reason}"
    if paths:
        reason += f", with {', '.join(sorted(paths))}"
    add_effects(plan)
    return carry_out(plan, reason, dry_run)


# --- what is asked for ------------------------------------------------------------------------------------------


def _subject(version: Any, key: Any, at: Any) -> tuple[TrackedModel, Any, Any]:
    """Return the model, the key and the state that the arguments name.

    :raises SQLAuditError: they name none
    """
    if isinstance(version, type):
        if issubclass(version, Version):
            raise QueryError(f"{version.__qualname__} is a history class. Give one of its versions.", version)
        model = tracked_model_of(version)
        if at is None:
            raise QueryError(
                f"restore() needs to know which state of {version.__name__} {key!r} to restore. Pass at= with a "
                "datetime, a version number or a changeset id.",
                version,
            )
        return model, key, at
    if not isinstance(version, Version):
        raise _no_version_error(version)
    if key is not None or at is not None:
        raise QueryError(
            f"{type(version).__qualname__} is a version, which has a key and an instant already. Pass the version "
            "alone.",
            version,
        )
    identity = inspect(cast(Any, version)).identity
    if identity is None:
        raise QueryError(
            f"{version!r} was not read from a history. Give a version that versions_of() returns.", version
        )
    return version.__sqlaudit_model__, tuple(identity[:-1]), identity[-1]


def _no_version_error(version: Any) -> SQLAuditError:
    """Return the error for an object that is not a version: it says what the object is."""
    name = type(version).__name__
    try:
        state = inspect(version)
    except NoInspectionAvailable:
        state = None
    if not isinstance(state, InstanceState):
        return QueryError(
            f"{version!r} is not a version. Give a version that versions_of() returns, or a class, a key and at=.",
            version,
        )
    if tracked_model(state.mapper) is None:
        return TrackingError(
            f"{name} is not a tracked model, so it has no versions. Decorate it with @track_table().", version
        )
    if isinstance(state.identity_token, Instant):
        return ReadOnlyError(
            f"{name} {state.identity} {state.identity_token} is an object of the past and not a version. Call "
            f"restore(session, {name}, {state.identity}, at=…).",
            version,
        )
    return QueryError(
        f"This {name} is the live row and not a version of it. Call restore(session, {name}, key, at=…).", version
    )


# --- the state at an instant ------------------------------------------------------------------------------------


def _row_at(session: Session, model: TrackedModel, key: Any, at: Any) -> tuple[Row, datetime]:
    """Return the row in the state that ``at`` names, and the instant of that state.

    :raises QueryError: there is no such state
    """
    converted = converted_ids(model.root.table.history_key, [key])["ids"]
    keys = [key_found if isinstance(key_found, tuple) else (key_found,) for key_found in converted]
    if isinstance(at, bool) or not isinstance(at, (datetime, Mark, int, UUID, str)):
        raise QueryError(f"at is {at!r}. Give a datetime, a version number or a changeset id.", at)
    if isinstance(at, int):
        rows = rows_of_versions(session, model, dict.fromkeys(keys, at)) if -(2**31) < at < 2**31 else []
        instant = rows[0].valid_from if rows else None
        wanted = f"no version {at}"
    else:
        when = checked_when(at)
        instant = when if isinstance(when, datetime) else instant_of_changeset(session, when)
        rows = rows_at(session, model, model.root.table.key, keys, instant)
        wanted = f"no state at {instant.isoformat()}"
    rows = [row for row in rows if issubclass(row.mapper.class_, model.mapper.class_)]
    if not rows or instant is None:
        raise _no_row_error(session, model, key, keys, wanted)
    (row,) = rows
    if row.operation is Operation.DELETE:
        raise QueryError(
            f"Version {row.version} of {display_name(model, row.key)} records its deletion. Restore the version "
            "before it: version.previous.",
            row.model.mapper.class_,
        )
    return row, instant


def _no_row_error(session: Session, model: TrackedModel, key: Any, keys: Sequence[Key], wanted: str) -> QueryError:
    name, table = f"{model.mapper.class_.__name__} {key!r}", model.root.table
    statement = select(func.min(table.valid_from), func.min(table.version), func.max(table.version))
    with explaining_history_errors([table]):
        existing = [
            session.execute(
                statement.where(one_of(table.history_key, [key_part])),
                bind_arguments=bind_arguments_for(session, table.mapper),
            ).one()
            for key_part in keys
        ]
    if not existing or existing[0][0] is None:
        return QueryError(
            f"{name} has {wanted}, because it has no history. Check the key, or run backfill() for rows that are "
            "older than their tracking.",
            model.mapper.class_,
        )
    begin, first, last = existing[0]
    return QueryError(
        f"{name} has {wanted}. Its history begins at {begin.isoformat()} and has the versions {first} to {last}; see "
        "versions_of().",
        model.mapper.class_,
    )


def _want_fields(plan: Plan, row: Row, fields: Any) -> Collection[str]:
    """Plan that some fields of a row become what they were; return their names.

    :raises QueryError: the row has no such fields, or is deleted
    """
    names = names_for(checked_fields(fields, [row.model]), row.model)
    if plan.live(row.model.root, [row.key])[row.key] is None:
        raise QueryError(
            f"{display_name(row.model, row.key)} is deleted, so no field of it can be restored alone. Restore it "
            "without fields.",
            row.model.mapper.class_,
        )
    plan.want_fields(row, dict.fromkeys(names & row.values.keys(), row))
    return names


# --- related rows -----------------------------------------------------------------------------------------------


def _path_tree(mapper: Mapper[Any], paths: Iterable[str]) -> _Paths:
    """Return dotted paths as a tree of relationships.

    :raises QueryError: a path does not exist, or its rows cannot be restored
    """
    if not isinstance(paths, Iterable):
        raise QueryError(f"include is {paths!r}. Give a list of dotted paths of relationships.", paths)
    tree: _Paths = {}
    for path in [paths] if isinstance(paths, str) else paths:
        subtree, where = tree, mapper
        for name in str(path).split("."):
            relationship = _includable(where).get(name)
            if relationship is None:
                raise _no_path_error(where, path, name)
            subtree = subtree.setdefault(name, (relationship, {}))[1]
            where = relationship.mapper
    return tree


def _includable(mapper: Mapper[Any]) -> dict[str, RelationshipProperty[Any]]:
    return {
        relationship.key: relationship
        for descendant in mapper.self_and_descendants
        for relationship in descendant.relationships
        if _is_includable(relationship)
    }


def _is_includable(relationship: RelationshipProperty[Any]) -> bool:
    if relationship.viewonly or tracked_model(relationship.mapper) is None:
        return False
    if not all(_is_kept(column) for pair in relationship.local_remote_pairs for column in pair):
        return False
    if relationship.secondary is not None:
        return tracked_table(relationship.secondary) is not None and _is_plain(relationship.secondaryjoin)
    return _is_plain(relationship.primaryjoin)


def _is_kept(column: Any) -> bool:
    table = tracked_table(column.table)
    return table is not None and any(live is column for live, _ in table.columns)


def _is_plain(condition: Any) -> bool:
    """Return whether a join condition only compares columns by ``=`` and ``AND``."""
    if isinstance(condition, BooleanClauseList):
        return condition.operator is operators.and_ and all(map(_is_plain, condition.clauses))
    return isinstance(condition, BinaryExpression) and condition.operator is operators.eq


def _no_path_error(mapper: Mapper[Any], path: str, name: str) -> QueryError:
    names = ", ".join(sorted(_includable(mapper))) or "none"
    return QueryError(
        f"{mapper.class_.__name__} has no relationship {name!r} that can be included ({path!r}). A relationship can "
        "be included if it can be written, and leads to a tracked model by columns that are equal and not excluded: "
        f"{names}.",
        mapper.class_,
    )


class _Including:
    """Plans that related rows become what they were at an instant."""

    def __init__(self, plan: Plan, instant: datetime) -> None:
        self.plan = plan
        self.session = plan.session
        self.instant = instant

    def include(self, paths: _Paths, old_rows: Collection[Row], doomed: Collection[Row]) -> None:
        """Follow relationships from rows as they were (``target``), and from live rows that will be deleted."""
        for relationship, further in paths.values():
            sources = [
                [row for row in rows if relationship.parent.class_ in row.mapper.class_.__mro__]
                for rows in (old_rows, doomed)
            ]
            related: list[Row]
            going: list[Row]
            if relationship.secondary is not None:
                related, going = self._linked(relationship, *sources), []
            elif relationship.direction.name == "MANYTOONE":
                related, going = self._referred(relationship, sources[0]), []
            else:
                related, going = self._collected(relationship, *sources)
            for row in related:
                self.plan.want(row)
            for row in going:
                self.plan.want_absent(row.model, row.key)
            if further and (related or going):
                self.include(further, related, going)

    def _rows_then(
        self, relationship: RelationshipProperty[Any], columns: Sequence[Any], values: Collection[Key]
    ) -> list[Row]:
        rows = rows_at(self.session, _model_of(relationship), columns, values, self.instant)
        return [row for row in rows if issubclass(row.mapper.class_, relationship.mapper.class_)]

    def _referred(self, relationship: RelationshipProperty[Any], old_rows: Collection[Row]) -> list[Row]:
        local_columns, remote_columns = zip(*relationship.local_remote_pairs, strict=True)
        return self._rows_then(relationship, remote_columns, _distinct(row.get(local_columns) for row in old_rows))

    def _collected(
        self, relationship: RelationshipProperty[Any], then: Collection[Row], doomed: Collection[Row]
    ) -> tuple[list[Row], list[Row]]:
        """Return the rows that were in the collections, and the rows in them now that were inserted later."""
        local_columns, remote_columns = zip(*relationship.local_remote_pairs, strict=True)
        values = _distinct(row.get(local_columns) for row in then)
        old_rows = self._rows_then(relationship, remote_columns, values)
        now = rows_now(
            self.session,
            _model_of(relationship),
            remote_columns,
            _distinct([*values, *(row.get(local_columns) for row in doomed)]),
        )
        known = {row.key for row in old_rows}
        strangers = {
            row.key: row
            for row in now
            if row.key not in known and issubclass(row.mapper.class_, relationship.mapper.class_)
        }
        table = _model_of(relationship).root.table
        for row in rows_at(self.session, _model_of(relationship), table.key, list(strangers), self.instant):
            self.plan.want(row)  # it was in another collection
            del strangers[row.key]
        late = keys_inserted_after(self.session, table, list(strangers), self.instant)
        return old_rows, [row for key, row in strangers.items() if key in late]

    def _linked(
        self, relationship: RelationshipProperty[Any], old_rows: Collection[Row], doomed: Collection[Row]
    ) -> list[Row]:
        """Plan to insert and delete links; return the rows at the other ends of the old links."""
        table = cast(TrackedTable, tracked_table(relationship.secondary))
        columns = link_columns(relationship)
        local_columns, owner_columns = zip(*relationship.synchronize_pairs, strict=True)
        remote_columns = [column for column, _ in relationship.secondary_synchronize_pairs or ()]
        values = _distinct(row.get(local_columns) for row in old_rows)
        before = links_at(self.session, table, columns, owner_columns, values, self.instant)
        now = links_now(
            self.session,
            table,
            columns,
            owner_columns,
            _distinct([*values, *(row.get(local_columns) for row in doomed)]),
        )
        late = keys_inserted_after(
            self.session, table, [row.key for link, row in now.items() if link not in before], self.instant
        )
        for link, row in before.items():
            self.plan.restore_link(table, relationship, columns, link, row, now.get(link))
        for link, row in now.items():
            if link not in before and row.key in late:
                self.plan.link(LinkChange(Operation.DELETE, table, relationship, columns, link, row.key))
        return self._rows_then(relationship, remote_columns, _distinct(link[len(owner_columns) :] for link in before))


def _model_of(relationship: RelationshipProperty[Any]) -> TrackedModel:
    model = tracked_model(relationship.mapper)
    assert model is not None
    return model


def _distinct(values: Iterable[Key | None]) -> list[Key]:
    return [value for value in dict.fromkeys(values) if value is not None]
