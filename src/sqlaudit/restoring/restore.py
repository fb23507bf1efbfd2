"""How do rows become what they were? By :func:`restore` to a version, or :func:`undo` of a changeset.

Both write through the session, in its transaction, and end with a flush. The flush records new versions with the
caller's context; without a reason there, the reason names the version or the changeset. History is never rewritten.

Both read everything first, in sets, and raise before they change anything. With an ``AsyncSession``, use
``await session.run_sync(restore, Customer, 42, at=when)``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from typing import Any, cast
from uuid import UUID

from sqlalchemy import BinaryExpression, BooleanClauseList, func, inspect, select
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty, Session, scoped_session
from sqlalchemy.sql import operators

from sqlaudit.arguments import changeset_uuid, checked_when
from sqlaudit.changes import Conflict, Operation, Restored, RestoreReport
from sqlaudit.context import AuditContextManager, get_audit_context
from sqlaudit.exceptions import QueryError, ReadOnlyError, SQLAuditError, TrackingError, UndoConflictError
from sqlaudit.hooks.scope import records
from sqlaudit.past.rendering import Instant
from sqlaudit.past.running import PastSession
from sqlaudit.period import OPEN_END
from sqlaudit.restoring.application import execute_plan
from sqlaudit.restoring.ordering import Ordering
from sqlaudit.restoring.plan import Change, GivenValues, LinkChange, Plan, display_name, displayed
from sqlaudit.restoring.rows import (
    Columns,
    Row,
    Written,
    display_key,
    keys_inserted_after,
    keys_now,
    link_and_key_columns,
    links_at,
    links_now,
    rows_at,
    rows_now,
    rows_of_versions,
    rows_where,
    written_by,
)
from sqlaudit.retrieval.changesets import instant_of_changeset, tables_of_changeset
from sqlaudit.retrieval.ids import converted_ids
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.keys import Key, one_of
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.history import Version
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import TrackedModel, link_columns, root_of, tracked_model, tracked_model_of
from sqlaudit.tracking.registry import mappers_of
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session
from sqlaudit.tracking.tables import TrackedTable, tracked_table

_AnySession = Session | scoped_session[Any]
_Paths = dict[str, tuple[RelationshipProperty[Any], Any]]


def restore(
    session: _AnySession,
    version: Any,
    key: Any = None,
    *,
    at: datetime | int | UUID | str | None = None,
    include: Iterable[str] = (),
    values: Mapping[Any, Any] | None = None,
    dry_run: bool = False,
) -> RestoreReport:
    """Restore a row to a version, given the version, or the row's class, its key and ``at``.

    .. code-block:: python

        restore(session, Customer, 1, at=then, include=["orders"])

    A changed row gets its old values, a deleted row comes back with its key. A row that is in that state already is
    left alone, and so are excluded columns. ``restore`` ends with a flush in the session's transaction. If the audit
    context has no reason, the reason names the version. It reads with one statement per table, path and 1,000 rows.

    :param session: a session that records; with an ``AsyncSession``, ``await session.run_sync(restore, version)``
    :param version: an object of a history class, or a tracked class
    :param key: the primary key, if a class was given; a tuple if the key is composite
    :param at: an aware datetime, the number of a version, or a changeset id: the state right after that transaction
    :param include: relationships whose rows are restored to the same instant, too, as dotted paths. Changed and deleted
        rows are restored. In collections, rows that came later are deleted, and rows that belong elsewhere now come
        back. In many-to-many relationships, links that came later are deleted, but not the rows that they lead to;
        links that are inserted again get the defaults of their further columns
    :param values: values that the history lacks, for excluded columns of rows that come back, or that a column can no
        longer hold: by attribute of the class, or by class and attribute
    :param dry_run: only report what would be done
    :raises QueryError: there is no such state, a path does not exist, or a row cannot become what it was
    :raises TrackingError: the class is not tracked
    :raises SQLAuditError: the session does not record
    """
    session = _writing_session(session)
    model, wanted, at = _subject(version, key, at)
    paths = _path_tree(model.mapper, include)
    given_values = _checked_values(values, model)
    _flush_first(session, dry_run)
    row, instant = _row_at(session, model, wanted, at)
    plan = Plan(session, given_values, lock=not dry_run)
    plan.want(row)
    _Including(plan, instant).include(paths, [row], [])
    assert row.valid_from is not None
    reason = f"restored from version {row.version} of {row.valid_from.isoformat()}"
    if paths:
        reason += f", with {', '.join(sorted(paths))}"
    _add_effects(plan)
    return _execute(plan, reason, dry_run)


def undo(
    session: _AnySession,
    changeset_id: UUID | str,
    *,
    force: bool = False,
    dry_run: bool = False,
    values: Mapping[Any, Any] | None = None,
) -> RestoreReport:
    """Undo what one database transaction did to tracked rows and links.

    Rows that it inserted are deleted, rows that it deleted come back, and rows that it changed become what they were
    before. ``undo`` ends with a flush in the session's transaction. An undo is a changeset itself, and can be undone.
    It reads with a few statements per table that the changeset wrote and 1,000 rows.

    :param session: a session that records; with an ``AsyncSession``, ``await session.run_sync(undo, changeset_id)``
    :param changeset_id: the ``audit_changeset_id`` of a version, or the ``changeset_id`` of a :class:`Changeset`
    :param force: undo even if rows have changed since, and lose these later changes
    :param dry_run: only report what would be done
    :param values: values that the history lacks, for excluded columns of rows that come back, or that a column can no
        longer hold: by class and attribute
    :raises UndoConflictError: a later transaction changed one of the rows, or refers to one that would be deleted
    :raises QueryError: there is no such changeset, or a row cannot become what it was
    :raises SQLAuditError: the session does not record
    """
    session = _writing_session(session)
    wanted, given_values = changeset_uuid(changeset_id), _checked_values(values, None)
    _flush_first(session, dry_run)
    plan = Plan(session, given_values, lock=not dry_run)
    undoing = _Undoing(plan, wanted)
    undoing.fill()
    _add_effects(plan, None if force else undoing.later)
    return _execute(plan, f"undo of changeset {wanted}", dry_run)


# --- what is asked for ------------------------------------------------------------------------------------------


def _writing_session(session: object) -> Session:
    """Return the session that a restore writes through.

    :raises SQLAuditError: it does not record what it writes, or cannot restore
    """
    if hasattr(session, "run_sync"):
        raise QueryError(
            "An AsyncSession cannot be used directly. Write through its run_sync: await session.run_sync(restore, "
            "version).",
            session,
        )
    session = checked_session(session)
    if isinstance(session, PastSession):
        raise ReadOnlyError(
            f"This session reads {session.instant} and cannot write. Restore in a session of the present.", session
        )
    if isinstance(session, ShardedSession):
        raise QueryError(
            "A ShardedSession cannot restore, because a key may be in several shards. Use a session on the engine of "
            "the shard.",
            session,
        )
    if not records(session):
        raise SQLAuditError(
            "The session has no hooks, so sqlaudit would not record what it restores. Call register_hooks(), or "
            "register_hooks(your_sessionmaker), at start-up.",
            session,
        )
    return session


def _flush_first(session: Session, dry_run: bool) -> None:
    """Flush the session before anything is read; for a dry run, autoflush it.

    :raises QueryError: the session is flushing
    """
    if dry_run:
        session._autoflush()
    elif session._flushing:
        raise QueryError(
            "The session is flushing, so a restore cannot flush the pending changes first. Restore before the flush, "
            "or after the commit.",
            session,
        )
    else:
        session.flush()


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


def _checked_values(values: Mapping[Any, Any] | None, model: TrackedModel | None) -> GivenValues:
    """Return the values that users give, by class and attribute.

    :raises QueryError: they are not given as a dict, or a class has no such attribute
    :raises TrackingError: a class is not tracked
    """
    if not isinstance(values, Mapping | None):
        raise QueryError(
            f"values is {values!r}. Give a dict of values by attribute, or by class and attribute.", values
        )
    by_class: dict[Any, Mapping[str, Any]] = {}
    for name, value in (values or {}).items():
        if isinstance(name, type):
            by_class[name] = value
        elif model is not None:
            by_class[model.mapper.class_] = {**by_class.get(model.mapper.class_, {}), name: value}
        else:
            raise QueryError(
                f"values has {name!r} outside of a class. Give values by class and attribute: values={{Customer: "
                f"{{{name!r}: …}}}}.",
                values,
            )
    for class_, given_values in by_class.items():
        mapper = tracked_model_of(class_).mapper
        known = {name for descendant in mapper.self_and_descendants for name in descendant.column_attrs.keys()}  # noqa: SIM118
        if not isinstance(given_values, Mapping) or (unknown := sorted(set(map(str, given_values)) - known)):
            names = ", ".join(map(repr, unknown)) if isinstance(given_values, Mapping) else repr(given_values)
            raise QueryError(
                f"{class_.__name__} has no column {names} that could get a value. It has {', '.join(sorted(known))}.",
                values,
            )
    return by_class


# --- the state at an instant ------------------------------------------------------------------------------------


def _row_at(session: Session, model: TrackedModel, key: Any, at: Any) -> tuple[Row, datetime]:
    """Return the row in the state that ``at`` names, and the instant of that state.

    :raises QueryError: there is no such state
    """
    converted = converted_ids(model.root.table.history_key, [key])["ids"]
    keys = [key_found if isinstance(key_found, tuple) else (key_found,) for key_found in converted]
    if isinstance(at, bool) or not isinstance(at, (datetime, int, UUID, str)):
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
            self.session, table, [key for link, key in now.items() if link not in before], self.instant
        )
        for link, key in before.items():
            if link not in now:
                self.plan.link(LinkChange(Operation.INSERT, table, relationship, columns, link, key))
        for link, key in now.items():
            if link not in before and key in late:
                self.plan.link(LinkChange(Operation.DELETE, table, relationship, columns, link, key))
        return self._rows_then(relationship, remote_columns, _distinct(link[len(owner_columns) :] for link in before))


def _model_of(relationship: RelationshipProperty[Any]) -> TrackedModel:
    model = tracked_model(relationship.mapper)
    assert model is not None
    return model


def _distinct(values: Iterable[Key | None]) -> list[Key]:
    return [value for value in dict.fromkeys(values) if value is not None]


# --- what a changeset did ---------------------------------------------------------------------------------------


class _Undoing:
    """Plans that the rows and links that a changeset wrote become what they were before it."""

    def __init__(self, plan: Plan, changeset_id: UUID) -> None:
        self.plan = plan
        self.session = plan.session
        self.changeset_id = changeset_id
        self.written: dict[TrackedTable, list[Written]] = {}

    def fill(self) -> None:
        """Add the rows and links to the plan."""
        tables = tables_of_changeset(self.session, self.changeset_id)
        for root in dict.fromkeys(root_of(table) for table in tables if not table.is_association):
            self.written[root.table] = written_by(self.session, root.table, self.changeset_id)
            self._want_rows(root, self.written[root.table])
        for table in tables:
            if table.is_association:
                self.written[table] = written_by(self.session, table, self.changeset_id)
                self._want_links(table, self.written[table])

    def later(self) -> list[Conflict]:
        """Return later changes of the rows and links. Call it when the rows are locked and cannot change any more."""
        return [conflict for table, written in self.written.items() for conflict in self._later(table, written)]

    def _want_rows(self, root: TrackedModel, written: Collection[Written]) -> None:
        numbers = {written_row.key: written_row.before for written_row in written if written_row.before is not None}
        rows = {row.key: row for row in rows_of_versions(self.session, root, numbers)}
        for written_row in written:
            if written_row.before is None:
                self.plan.want_absent(root, written_row.key)
            elif written_row.key in rows and rows[written_row.key].operation is not Operation.DELETE:
                self.plan.want(rows[written_row.key])
            else:
                raise QueryError(
                    f"History no longer has the state of {display_name(root, written_row.key)} before changeset "
                    f"{self.changeset_id}, so the changeset cannot be undone as a whole. Restore single rows.",
                    root.mapper.class_,
                )

    def _want_links(self, table: TrackedTable, written: Collection[Written]) -> None:
        relationship = _relationship_through(table)
        columns = link_columns(relationship)
        wanted = [
            (*written_link.key, written_link.before) for written_link in written if written_link.before is not None
        ]
        removed_keys = [written_link.key for written_link in written if written_link.before is None]
        number = (*table.history_key, table.version)
        before = self._links(table, columns, number, wanted)
        made = self._links(table, columns, table.history_key, removed_keys)
        now = links_now(self.session, table, columns, columns, _distinct(link for link, _ in [*before, *made]))
        for link, key in before:
            if link not in now:
                self.plan.link(LinkChange(Operation.INSERT, table, relationship, columns, link, key))
        for link, key in made:
            if link in now:
                self.plan.link(LinkChange(Operation.DELETE, table, relationship, columns, link, key))

    def _links(
        self, table: TrackedTable, columns: Columns, filter_columns: Sequence[Any], values: Collection[Key]
    ) -> list[tuple[Key, Key]]:
        """Return the links of versions, with their keys."""
        width = len(columns)
        links = rows_where(self.session, table, select(*link_and_key_columns(table, columns)), filter_columns, values)
        return list(dict.fromkeys((row[:width], row[width:]) for row in links))

    def _later(self, table: TrackedTable, written: Collection[Written]) -> list[Conflict]:
        """Return the later changes of rows of a table, including changes whose versions have been removed."""
        if not written:
            return []
        history, key = HistoryAlias(table), table.history_key
        last = (
            select(*history.key, func.max(history.version).label("sqlaudit_last"))
            .where(history.changeset_id == self.changeset_id, history.operation != Operation.BASELINE)
            .group_by(*history.key)
            .subquery()
        )
        audit_columns = table.role("changed_by"), table.valid_from, table.role("changeset_id")
        is_later = table.version > last.c.sqlaudit_last
        statement = (
            select(*key, *audit_columns, is_later, table.valid_to, table.role("operation"))
            .select_from(table.history.join(last, all_equal(key, [last.c[column.key] for column in key])))
            .where(table.version >= last.c.sqlaudit_last)
            .order_by(*key, table.version)
        )
        if self.plan.lock:  # a locking read is not confined to the transaction's snapshot
            statement = statement.with_for_update(read=True, of=table.history)
        with explaining_history_errors([table]):
            rows = self.session.execute(statement, bind_arguments=bind_arguments_for(self.session, table.mapper)).all()
        conflicts = []
        for row, following in zip_longest(rows, rows[1:]):
            *values, later, ended, operation = row
            if later:
                conflicts.append(_conflict(table, tuple(values[: len(key)]), *values[len(key) :]))
            elif (following is None or not following[-3]) and operation is not Operation.DELETE and ended != OPEN_END:
                # The version that ended this one has been removed.
                conflicts.append(_conflict(table, tuple(values[: len(key)]), timestamp=ended))
        return list({(conflict.key, conflict.changeset_id): conflict for conflict in conflicts}.values())


def _conflict(
    table: TrackedTable, key: Key, changed_by: Any = None, timestamp: Any = None, changeset: Any = None
) -> Conflict:
    model = table.live if table.is_association else root_of(table).mapper.class_
    return Conflict(
        model=model, key=display_key(key), changed_by=changed_by, timestamp=timestamp, changeset_id=changeset
    )


def _relationship_through(table: TrackedTable) -> RelationshipProperty[Any]:
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


# --- the effects of deletions -----------------------------------------------------------------------------------


def _add_effects(plan: Plan, later: Callable[[], list[Conflict]] | None = None) -> None:
    """Add the effects of its deletions to a plan, and check it.

    :param later: returns the later changes that an undo must not lose; ``None`` if they may be lost
    :raises UndoConflictError: there are later changes
    :raises QueryError: a row or link cannot become what it was
    """
    while True:
        plan.compare()
        referring = list(plan.referring())
        if later is not None:
            conflicts = [*later(), *_last_changes(plan, [row for _, row, _ in referring])]
            conflicts += _links_of_doomed(plan, conflicting=True)
            if conflicts:
                raise _conflict_error(list(dict.fromkeys(conflicts)))
            break
        _links_of_doomed(plan, conflicting=False)
        if not referring:
            break
        for effect, row, doomed in referring:
            if effect is None:
                raise QueryError(
                    f"{display_name(row.model, row.key)} refers to {doomed.name}, which would be deleted. Include it, "
                    "or delete it first.",
                    row.mapper.class_,
                )
            plan.apply_delete_effect(row, effect)
    plan.check_write_only()
    plan.check_untracked()
    plan.check_references()
    plan.check_unique()
    plan.check_respelt()


def _last_changes(plan: Plan, rows: Collection[Row]) -> list[Conflict]:
    """Return the last change of each live row, as a conflict."""
    by_root: dict[TrackedModel, dict[Key, None]] = defaultdict(dict)
    for row in rows:
        by_root[row.model.root][row.key] = None
    return [conflict for root, keys in by_root.items() for conflict in _latest(plan.session, root.table, list(keys))]


def _latest(session: Session, table: TrackedTable, keys: Collection[Key]) -> Iterator[Conflict]:
    key = table.history_key
    audit_columns = table.role("changed_by"), table.valid_from, table.role("changeset_id")
    statement = select(*keys_now(table), *audit_columns).order_by(*key, table.version)
    changes = {row[: len(key)]: row[len(key) :] for row in rows_where(session, table, statement, key, keys)}
    for row_key in keys:
        yield _conflict(table, row_key, *changes.get(row_key, ()))


def _links_of_doomed(plan: Plan, *, conflicting: bool) -> list[Conflict]:
    """Plan to delete the links of rows that will be deleted; or return unplanned ones as conflicts."""
    conflicts: list[Conflict] = []
    for table, filter_columns, values in plan.referring_links():
        relationship = _relationship_through(table)
        columns = link_columns(relationship)
        strangers = {}
        for link, key in links_now(plan.session, table, columns, filter_columns, values).items():
            change = LinkChange(Operation.DELETE, table, relationship, columns, link, key)
            if (table, change.identity) not in plan.links:
                strangers[key] = change
        if conflicting:
            conflicts += _latest(plan.session, table, list(strangers))
        else:
            for change in strangers.values():
                plan.link(change)
    return conflicts


def _conflict_error(conflicts: Sequence[Conflict]) -> UndoConflictError:
    lines = [
        f"{getattr(conflict.model, '__name__', None) or conflict.model.fullname} {conflict.key!r}"
        f" (by {conflict.changed_by or 'unknown'} at {conflict.timestamp})"
        for conflict in conflicts
    ]
    more = f" and {len(lines) - 10} more" if len(lines) > 10 else ""
    return UndoConflictError(
        f"Later changes would be lost: {', '.join(lines[:10])}{more}. Undo these first, or pass force=True.",
        conflicts[0].model,
        conflicts,
    )


def _execute(plan: Plan, reason: str, dry_run: bool) -> RestoreReport:
    report = RestoreReport((*map(_reported, plan.changes), *map(_reported_link, plan.links.values())))
    if report and not dry_run:
        with AuditContextManager(reason=get_audit_context().reason or reason):
            execute_plan(plan, Ordering(plan.changes).stages())
    return report


def _reported(change: Change) -> Restored:
    fields = change.fields | {column.key: (old, displayed(new)) for column, (old, new) in change.unmapped.items()}
    return Restored(change.operation, change.mapper.class_, display_key(change.key), fields)


def _reported_link(change: LinkChange) -> Restored:
    made = change.operation is Operation.INSERT
    fields = {column.key: (None, value) if made else (value, None) for column, value in change.by_column.items()}
    return Restored(change.operation, change.table.live, display_key(change.key), fields)
