"""How is a database freed from what some changesets did? By :func:`undo`: what they changed, field by field.

A changeset's fields go back to the values that they had before it. What others changed since in the same fields is a
conflict; what they changed in other fields stays. Many changesets are undone as one, as if from the newest to the
oldest: a field goes back to its value before the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, and_
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import changeset_uuid, checked_range, checked_user
from sqlaudit.asynchronous import also_async
from sqlaudit.changes import Operation, RestoreReport
from sqlaudit.exceptions import QueryError
from sqlaudit.period import OPEN_END, Mark
from sqlaudit.restoring.application import carry_out
from sqlaudit.restoring.effects import Loss, add_effects, conflict_of, relationship_through
from sqlaudit.restoring.plan import LinkChange, Plan, column_equalities, differing, display_name, fields_of
from sqlaudit.restoring.request import (
    FieldNames,
    checked_fields,
    checked_values,
    flush_first,
    names_for,
    writing_session,
)
from sqlaudit.restoring.rows import (
    Condition,
    Link,
    LinkRow,
    LinkVersion,
    Row,
    display_key,
    is_written,
    links_now,
    links_since,
    numbers_where,
    rows_since,
    with_fields,
)
from sqlaudit.retrieval.changesets import tables_where, unknown_changeset_error
from sqlaudit.sql.documents import text_under
from sqlaudit.sql.keys import Key
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.horizons import refuse_pruned_in, refuse_pruned_versions
from sqlaudit.tracking.models import TrackedModel, link_columns, root_of
from sqlaudit.tracking.tables import TrackedTable

_AnyVersion: TypeAlias = Row | LinkVersion


@also_async
def undo(
    session: Session | scoped_session[Any],
    changeset_id: UUID | str | Iterable[UUID | str] | None = None,
    *,
    user_id: str | int | UUID | None = None,
    since: datetime | Mark | None = None,
    run_id: str | int | UUID | None = None,
    fields: Iterable[str] | Mapping[Any, Iterable[str]] | None = None,
    whole_rows: bool = False,
    force: bool = False,
    dry_run: bool = False,
    values: Mapping[Any, Any] | None = None,
) -> RestoreReport:
    """Undo what one or more database transactions did to tracked rows and links.

    .. code-block:: python

        undo(session, changeset_id)
        undo(session, user_id="intern", since=this_morning)

    Rows that they inserted are deleted, rows that they deleted come back, and the fields that they changed get the
    values that they had before. Other fields and quiet ones stay as they are now. Many transactions are undone as one,
    as if from the newest to the oldest.

    ``undo`` ends with a flush in the session's transaction. An undo is a changeset itself, and can be undone. It reads
    with a few statements per table that the changesets wrote and 1,000 rows.

    :param session: a session that records; if it is an ``AsyncSession``, await the result
    :param changeset_id: the ``audit_changeset_id`` of a version, or the ``changeset_id`` of a :class:`Changeset`; or
        several of them
    :param user_id: instead of ids: undo what this user did
    :param since: instead of ids: undo what was done from this instant on; an aware datetime or a :class:`Mark`
    :param run_id: instead of ids: undo what was done in this run of an agent or a job. All that are given must hold
    :param fields: undo only the changes of these fields, in rows that exist before and after: names of attributes, or
        names by class
    :param whole_rows: let rows become what they were before, with all their fields. A later change of any field of such
        a row is a conflict then
    :param force: undo even if there are conflicts, and lose these later changes, which the report lists
    :param dry_run: only report what would be done
    :param values: values that the history lacks, for excluded columns of rows that come back, or that a column can no
        longer hold: by class and attribute
    :raises UndoConflictError: a later transaction changed one of the fields, changed or deleted one of the rows, or
        refers to one that would be deleted
    :raises QueryError: there is no such changeset, an argument is invalid, or a row cannot become what it was
    :raises PrunedError: a history that the changesets wrote has been pruned since
    :raises SQLAuditError: the session does not record
    """
    session = writing_session(session)
    wanted = _checked_wanted(changeset_id, user_id, since, run_id)
    given_values = checked_values(values, None)
    if whole_rows and fields is not None:
        raise QueryError("Whole rows cannot be undone by some of their fields. Give fields or whole_rows.", fields)
    flush_first(session, dry_run)
    found = tables_where(session, wanted.condition)
    ids = sorted(set().union(*found.values()))
    for unknown in set(wanted.ids).difference(ids):
        raise unknown_changeset_error(unknown)
    refuse_pruned_versions(session, found, wanted.condition)
    refuse_pruned_in(session, found, wanted.since)
    plan = Plan(session, given_values, lock=not dry_run)
    undoing = _Undoing(plan, wanted.condition, whole_rows=whole_rows)
    undoing.fill(list(found), fields)
    lost = add_effects(plan, undoing.conflicts, force=force)
    return carry_out(plan, _reason(ids), dry_run, lost)


def _reason(ids: Sequence[UUID]) -> str:
    if len(ids) == 1:
        return f"undo of changeset {ids[0]}"
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return f"undo of {len(ids)} changesets: {', '.join(map(str, ids[:10]))}{more}"


# --- which versions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which versions are undone."""

    ids: tuple[UUID, ...]
    user: str | None
    since: datetime | None
    run: str | None

    def condition(self, source: TrackedTable | HistoryAlias) -> ColumnElement[bool]:
        conditions: list[ColumnElement[bool]] = []
        if self.ids:
            conditions.append(source.role("changeset_id").in_(self.ids))
        if self.user is not None:
            conditions.append(source.role("changed_by") == self.user)
        if self.since is not None:
            conditions.append(source.role("valid_from") >= self.since)
        if self.run is not None:
            conditions.append(text_under(source.role("extra"), "run_id") == self.run)
        return and_(*conditions)


def _checked_wanted(changeset_id: Any, user_id: Any, since: Any, run_id: Any) -> _Wanted:
    """Return which versions are undone.

    :raises QueryError: the arguments name none, or are invalid
    """
    filters = (user_id, since, run_id)
    if filters == (None, None, None):
        several = isinstance(changeset_id, Iterable) and not isinstance(changeset_id, str)
        ids = dict.fromkeys(map(changeset_uuid, changeset_id if several else [changeset_id]))
        if not ids:
            raise QueryError(
                "No changeset is named. Give the id of a changeset or several ids; or user_id, since or run_id.",
                changeset_id,
            )
        return _Wanted(tuple(ids), None, None, None)
    if changeset_id is not None:
        raise QueryError(
            f"Changesets are named by ids and by {', '.join(_given(user_id=user_id, since=since, run_id=run_id))}. "
            "Give only one of the two.",
            changeset_id,
        )
    return _Wanted(
        (),
        None if user_id is None else checked_user("user_id", user_id),
        checked_range("The range", since, None).get("since"),
        None if run_id is None else checked_user("run_id", run_id),
    )


def _given(**arguments: Any) -> list[str]:
    return [name for name, value in arguments.items() if value is not None]


# --- what becomes of rows and links -----------------------------------------------------------------------------


class _Undoing:
    """Plans that rows and links lose what the wanted versions changed.

    :ivar fields: the fields to undo; ``None`` for all, and for rows that were inserted or deleted, and links
    :ivar conflicts: the later changes of others that would be lost
    """

    def __init__(self, plan: Plan, condition: Condition, *, whole_rows: bool) -> None:
        self.plan = plan
        self.session = plan.session
        self.condition = condition
        self.whole_rows = whole_rows
        self.fields: FieldNames | None = None
        self.conflicts: list[Loss] = []

    def fill(self, tables: Sequence[TrackedTable], fields: Any) -> None:
        """Add the rows and links to the plan.

        First it locks the rows. Then it reads what others did to them, because nobody does any more.
        """
        roots = list(dict.fromkeys(root_of(table) for table in tables if not table.is_association))
        if fields is not None:
            self.fields = checked_fields(fields, [model for root in roots for model in root.family()])
        numbers = {root: numbers_where(self.session, root.table, self.condition) for root in roots}
        for root, of_rows in numbers.items():
            self.plan.live(root, of_rows)
        for root, of_rows in numbers.items():
            versions = rows_since(self.session, root, self.condition, lock=self.plan.lock) if of_rows else {}
            for key, wanted in of_rows.items():
                self._want_row(root, versions[key], wanted)
        for table in tables:
            if table.is_association and fields is None:
                self._want_links(table)

    def _want_row(self, root: TrackedModel, versions: Sequence[Row], wanted: set[int]) -> None:
        row = _UndoneRow(self, root)
        for previous, version in pairwise([None, *versions]):
            assert version is not None
            row.follow(previous, version, is_wanted=version.version in wanted)
        row.want(versions[-1])

    def _want_links(self, table: TrackedTable) -> None:
        relationship = relationship_through(table)
        columns = link_columns(relationship)
        versions = links_since(self.session, table, columns, self.condition, lock=self.plan.lock)
        made: dict[Link, Key] = {}
        undone: list[_UndoneLink] = []
        for key, wanted in numbers_where(self.session, table, self.condition).items():
            link = _UndoneLink(table, key, is_whole=self.whole_rows)
            for previous, version in pairwise([None, *versions[key]]):
                assert version is not None
                link.follow(previous, version, is_wanted=version.version in wanted)
            self.conflicts += link.conflicts.until(key, versions[key][-1])
            made.update(dict.fromkeys(link.made, key))
            undone.append(link)
        links = [*made, *(link.link for link in undone if link.link is not None)]
        now = links_now(self.session, table, columns, columns, links)
        for undone_link in undone:
            if undone_link.link is not None:
                live = now.get(undone_link.link)
                live = live and live.with_key(undone_link.key)
                made_key = made.pop(undone_link.link, None)
                if live is None or live.key in (undone_link.key, made_key):
                    row = undone_link.wanted(live)
                    self.plan.restore_link(table, relationship, columns, undone_link.link, row, live)
                else:  # the table has another row of the same link
                    for made_link in undone_link.made:
                        made.pop(made_link, None)
        for made_link, key in made.items():
            if made_link in now:
                self.plan.link(LinkChange(Operation.DELETE, table, relationship, columns, made_link, key))


class _Conflicts:
    """Finds the later changes of one row or link that would be lost.

    Missing versions are a change by an unknown user. They are reported if no other conflict is known.
    """

    def __init__(self, table: TrackedTable) -> None:
        self.table = table
        self.known: list[Loss] = []
        self.unknown: list[Loss] = []

    def add(self, key: Key, version: _AnyVersion, fields: Iterable[Any] = ()) -> None:
        names = [field if isinstance(field, str) else field.key for field in fields]
        self.known.append(conflict_of(self.table, key, version, names))

    def check(self, key: Key, previous: _AnyVersion | None, version: _AnyVersion) -> None:
        """Notice that versions between two others are missing."""
        if previous is not None and not _follows(previous, version):
            self.unknown.append(conflict_of(self.table, key, timestamp=previous.valid_to))

    def until(self, key: Key, end: _AnyVersion) -> Sequence[Loss]:
        """Return the conflicts up to the last version that is there. Another one may have been removed."""
        if end.operation is not Operation.DELETE and end.valid_to != OPEN_END:
            self.unknown.append(conflict_of(self.table, key, timestamp=end.valid_to))
        return self.known or self.unknown[:1]


class _UndoneLink:
    """What becomes of a link: found by following its versions from the one before the first wanted one.

    :ivar link: the link that is to exist; ``None`` if none is
    :ivar made: the links that are not to exist
    :ivar old: further column → the value to put back
    :ivar is_whole: the link was made, removed, or changed as a whole, so that any later change is a conflict
    """

    def __init__(self, table: TrackedTable, key: Key, *, is_whole: bool) -> None:
        self.table = table
        self.key = key
        self.conflicts = _Conflicts(table)
        self.link: Link | None = None
        self.made: list[Link] = []
        self.old: dict[Any, Any] = {}
        self._last: Mapping[Any, Any] = {}
        self._is_touched = False
        self._always_whole = is_whole
        self.is_whole = False

    def follow(self, previous: LinkVersion | None, version: LinkVersion, *, is_wanted: bool) -> None:
        """Follow the link from one version to the next.

        :raises QueryError: the version is wanted, and the one before it is missing
        """
        changed: list[Any] | None = None
        if previous and previous.link == version.link and version.operation is Operation.UPDATE:
            changed = differing(previous.values, version.values, column_equalities(version.values))
        if self._is_touched:
            self.conflicts.check(self.key, previous, version)
        if is_wanted:
            self._take_back(previous, version, changed)
        elif self._is_touched and (self.is_whole or changed is None):
            self.conflicts.add(self.key, version)
        elif changed and (lost := [column for column in changed if column in self.old]):
            self.conflicts.add(self.key, version, lost)
        if version.operation is not Operation.DELETE:
            self._last = version.values

    def _take_back(self, previous: LinkVersion | None, version: LinkVersion, changed: list[Any] | None) -> None:
        is_made = version.operation is Operation.INSERT
        if not is_made and (previous is None or not _follows(previous, version)):
            raise _lost_error(f"{self.table.live.fullname} {display_key(self.key)!r}", version, self.table.live)
        if not self._is_touched and not is_made and previous is not None:
            self.link = previous.link
        if changed is None or self._always_whole:
            if not self.is_whole and previous is not None and not is_made:
                self.old = {**previous.values, **self.old}
            self.is_whole = True
        elif not self.is_whole and previous is not None:
            self.old = {column: previous.values[column] for column in changed} | self.old
        if version.operation is not Operation.DELETE and changed is None:
            self.made.append(version.link)
        self._is_touched = True

    def wanted(self, live: LinkRow | None) -> LinkRow:
        """Return the link as it is to be: what is not put back stays as it is, or was when the link was removed."""
        return LinkRow(self.key, {**(self._last if live is None else live.values), **self.old})


class _UndoneRow:
    """What becomes of a row: found by following its versions from the one before the first wanted one.

    :ivar old: field → the version that has the value to put back
    :ivar is_whole: the row becomes as a whole what it was, because it was inserted or deleted since
    :ivar whole: what it was then; ``None`` if it was not there
    :ivar last: the last version in which it was there
    """

    def __init__(self, undoing: _Undoing, root: TrackedModel) -> None:
        self.undoing = undoing
        self.root = root
        self.conflicts = _Conflicts(root.table)
        self.old: dict[Any, Row] = {}
        self.is_whole = False
        self.whole: Row | None = None
        self.last: Row | None = None

    def follow(self, previous: Row | None, version: Row, *, is_wanted: bool) -> None:
        """Follow the row from one version to the next.

        :raises QueryError: the version is wanted, and the one before it is missing
        """
        before = None if version.operation is Operation.INSERT else _existing(previous)
        after = _existing(version)
        is_touched = self.is_whole or bool(self.old)
        changed = self._changed(before, after) if is_wanted or is_touched else None
        if is_touched:
            self.conflicts.check(version.key, previous, version)
        if is_wanted:
            if version.operation is not Operation.INSERT and not (previous and before and _follows(previous, version)):
                raise _lost_error(display_name(self.root, version.key), version, self.root.mapper.class_)
            self._take_back(before, after, changed)
        elif is_touched and changed is not None and not self.is_whole:
            self._keep(version, changed)
        elif is_touched:
            self.conflicts.add(version.key, version)
        self.last = after or self.last

    def _take_back(self, before: Row | None, after: Row | None, changed: set[Any] | None) -> None:
        if before is not None and changed is not None and not self.undoing.whole_rows:
            self.old = dict.fromkeys(changed, before) | self.old
        elif self.undoing.fields is None:
            if not self.is_whole:
                row = before or (self.last if self.old else None)
                self.is_whole, self.whole = True, row and with_fields(row, self.old)
        elif after is None:
            self.old = {}

    def _keep(self, version: Row, changed: set[Any]) -> None:
        """Let stay what others changed, unless it is a conflict. What is set whenever a row changes is none."""
        lost = changed & self.old.keys()
        if not lost:
            return
        automatic = self.undoing.plan.automatic_fields(version.model)
        for field in lost & automatic:
            del self.old[field]
        if lost - automatic:
            self.conflicts.add(version.key, version, lost - automatic)

    def want(self, end: Row) -> None:
        """Add the row to the plan.

        :param end: its last version
        """
        plan = self.undoing.plan
        if self.is_whole or self.old:
            self.undoing.conflicts += self.conflicts.until(end.key, end)
        if self.is_whole:
            if self.whole is None:
                plan.want_absent(self.root, end.key)
            else:
                plan.want(self.whole)
        elif self.old and self.last and (self.undoing.fields is None or plan.live(self.root, [end.key])[end.key]):
            plan.want_fields(self.last, self.old)

    def _changed(self, before: Row | None, after: Row | None) -> set[Any] | None:
        """Return the fields that differ between two states, without those that only the database or the mapper writes.

        Quiet fields are left out, too, unless the user names them. A NOT NULL column that was NULL came later, so it
        has not changed, unless the user gives a value.

        :return: ``None`` if the row was inserted or deleted, or became of another class
        """
        if before is None or after is None or before.model is not after.model:
            return None
        fields, given = fields_of(after.model), self.undoing.plan.given(after.model)
        changed = set(differing(before.values, after.values, fields.equalities)) - fields.unwritten
        changed -= {name for name in changed & fields.mandatory - given.keys() if before.values[name] is None}
        if self.undoing.fields is not None:
            return changed & names_for(self.undoing.fields, after.model)
        return (changed - fields.quiet) | {
            column
            for column in differing(before.unmapped, after.unmapped, {})
            if is_written(column) and (column.nullable or before.unmapped[column] is not None)
        }


def _follows(previous: _AnyVersion, version: _AnyVersion) -> bool:
    """Return whether no version is missing between two."""
    return version.version == (previous.version or 0) + 1


def _existing(version: Row | None) -> Row | None:
    """Return a version, or ``None`` if there is none or the row was deleted then."""
    return None if version is None or version.operation is Operation.DELETE else version


def _lost_error(name: str, version: _AnyVersion, subject: Any) -> QueryError:
    return QueryError(
        f"History no longer has the state of {name} before changeset {version.changeset_id}, so the changeset cannot "
        "be undone as a whole. Restore single rows.",
        subject,
    )
