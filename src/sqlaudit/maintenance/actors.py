"""How does a user vanish from history, who changed rows of others? By :func:`erase_actor`: what they did stays.

.. code-block:: python

    erase_actor(engine, "u42", names=["Ada Lovelace"], reason="request of 5 May")

It goes through histories by ranges of keys. Where a version has the user, ``ERASED_USER`` takes the user's place.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    case,
    cast,
    insert,
    literal_column,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import checked_count
from sqlaudit.asynchronous import also_async_where
from sqlaudit.config import current_config, current_user_id
from sqlaudit.context import user_id_text
from sqlaudit.erased import ERASED_USER, MARK
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.door import writable_history
from sqlaudit.maintenance.erasing import ErasedTable
from sqlaudit.maintenance.holding import Held, held_in
from sqlaudit.maintenance.transactions import Runner, runner_for
from sqlaudit.past.marks import marks_table_of
from sqlaudit.period import UTCDateTime
from sqlaudit.sql.batches import chunks
from sqlaudit.sql.keys import Key, RawKey, bound, raw_columns
from sqlaudit.sql.lists import has_one_of, one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.sql.ranges import is_in_range, range_after
from sqlaudit.tracking.history import Version
from sqlaudit.tracking.horizons import base_of
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of, required_maintenance_tables
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import base_table_of, tracked_model
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.schema import schema_of, table_exists
from sqlaudit.tracking.tables import TrackedTable, known_metadata
from sqlaudit.wire import Report

_ROLES: Final = ("changed_by", "impersonated_by", "reason", "extra")


@dataclass(frozen=True, slots=True, repr=False)
class ActorErasure(Report):
    """What was erased of a user, whom it does not name.

    :param versions: the number of versions that named the user
    :param held: the number of versions that still name the user, because of a legal hold
    :param tables: the tables of these versions
    :param reason: why
    :param erased_by: the user who erased; ``None`` if no user is known
    :param erased_at: when, in UTC
    """

    versions: int
    held: int
    tables: tuple[ErasedTable, ...]
    reason: str
    erased_by: str | None
    erased_at: datetime


@also_async_where
def erase_actor(
    where: Engine | Connection | Session | scoped_session[Any],
    user_id: str | int | UUID,
    *models: type[Any] | Table,
    names: Iterable[str] | None = None,
    reason: str,
    dry_run: bool = False,
    chunk_size: int = 10_000,
) -> ActorErasure:
    """Erase a user from the versions that the user wrote, and from what these and others tell of the user.

    .. code-block:: python

        names = ["u42", "Ada Lovelace"]
        erase_actor(engine, "u42", names=names, reason="request of 5 May")

    In ``changed_by`` and ``impersonated_by``, and where ``extra`` has the user as ``on_behalf_of``, the id becomes
    ``ERASED_USER``, the text ``"(erased)"``, which no other user can have. In ``reason`` and ``extra`` each name
    becomes this text wherever it stands as a whole word, whoever wrote the version; numbers in ``extra`` that are equal
    to a name do, too. It is the same for the users and the reasons of holds, erasures and marks. What was changed, when
    and in which changeset stays. The values of rows stay, too: for these, call :func:`erase`.

    Versions that a :func:`hold` protects are left alone, and counted. Call it again once the hold is released. It is
    recorded for each table as an erasure without a key, and without the user: call it again after a restore from an
    older backup, too. You can stop it and start it again.

    :param where: an engine: each range of keys is a transaction of its own. Or a session or a connection: everything
        happens in its transaction. If it is asynchronous, await the result
    :param user_id: the user
    :param models: tracked models, each for its whole hierarchy, and association tables; all histories if omitted
    :param names: what else stands for the user in ``reason`` and ``extra``; the user id if omitted
    :param reason: why; the user is that of the audit context
    :param dry_run: only report what would be erased
    :param chunk_size: about how many versions a range of keys has
    :raises TrackingError: a model is not tracked
    :raises ContextError: the user id is no text, int or UUID, or is too long
    :raises QueryError: no user, an empty name or an empty reason is given; or the database lacks the tables of
        maintenance
    :raises HistoryTableError: the database lacks a history table
    """
    if checked_count("chunk_size", chunk_size) == 0:
        raise QueryError("chunk_size is 0. Give the number of versions of a chunk, such as 10_000.", chunk_size)
    user = user_id_text(user_id)
    if user is None:
        raise QueryError("The user is empty. Give the id of the user to erase.", user_id)
    if not isinstance(reason, str) or not reason.strip() or "\0" in reason:
        raise QueryError(f"The reason of an erasure is {reason!r}. Give a text that says why.", reason)
    person = _Person(user, _checked_names([user] if names is None else names))
    now, erased_by = current_config().now(), person.user(current_user_id())
    reason = person.text(reason)
    found, held = [], 0
    histories = list(_histories(where, models))
    for base in histories:
        with runner_for(where, base) as runner:
            task = _ErasingActor(base, person, runner, chunk_size, (reason, erased_by, now), is_dry=dry_run)
            with explaining_history_errors(task.tables):
                task.run()
        held += task.held
        if task.versions:
            found.append(ErasedTable(base.live.fullname, task.rows, task.fields, task.versions))
    for metadata, base in {base.live.metadata: base for base in histories}.items() if not dry_run else ():
        with runner_for(where, base) as runner:
            runner(_erase_in_own_tables, metadata, person)
    if isinstance(where, (Session, scoped_session)) and found and not dry_run:
        _refresh_versions(where, person)
    return ActorErasure(sum(each.versions for each in found), held, tuple(found), reason, erased_by, now)


def _checked_names(names: Iterable[str]) -> list[str]:
    """Return the names, the longest first.

    :raises QueryError: they are no list of texts that are not empty
    """
    found = [names] if isinstance(names, str) else list(names)
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in found):
        raise QueryError(f"names is {names!r}. Give a list of texts that are not empty.", names)
    return sorted(set(found), key=lambda name: (-len(name), name))


class _Person:
    """What stands for a user, and what stands there afterwards.

    :ivar id: the user id
    :ivar names: the names, the longest first
    """

    def __init__(self, user_id: str, names: Sequence[str]) -> None:
        self.id, self.names = user_id, names
        self._name = re.compile("|".join(map(_as_whole_word, names))) if names else None

    def user(self, value: str | None) -> str | None:
        return ERASED_USER if value == self.id else value

    def text(self, value: Any) -> Any:
        if self._name is None or not isinstance(value, str):
            return value
        return self._name.sub(ERASED_USER, value)

    def document(self, value: Any) -> Any:
        """Return what JSON expresses without the user."""
        if isinstance(value, Mapping):
            told = {self.text(name): self.document(each) for name, each in value.items() if name != MARK}
            told |= {MARK: value[MARK]} if MARK in value else {}
            if told.get("on_behalf_of") == self.id:
                told["on_behalf_of"] = ERASED_USER
            return told
        if isinstance(value, list):
            return [self.document(each) for each in value]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return ERASED_USER if is_number and str(value) in self.names else self.text(value)

    def taken_out_of(
        self, changed_by: str | None, impersonated_by: str | None, reason: str | None, extra: Any
    ) -> list[Any]:
        """Return what a version tells of its context without the user."""
        return [self.user(changed_by), self.user(impersonated_by), self.text(reason), self.document(extra)]

    def is_in(self, *told: Any) -> bool:
        """Return whether a version tells of the user, given its context as for :meth:`taken_out_of`."""
        return self.taken_out_of(*told) != [*told]

    def may_be_in(self, users: Iterable[Any], texts: Iterable[Any], documents: Iterable[Any]) -> ColumnElement[bool]:
        """Return a condition that columns meet if they name the user, and others may meet, too."""
        conditions = [column == self.id for column in users]
        conditions += [column.contains(name, autoescape=True) for column in texts for name in self.names]
        wanted = {
            json.dumps(text, ensure_ascii=is_ascii)[1:-1]
            for text in (self.id, *self.names)
            for is_ascii in (False, True)
        }
        conditions += [
            cast(column, Text).contains(text, autoescape=True) for column in documents for text in sorted(wanted)
        ]
        return or_(*conditions)


def _as_whole_word(name: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
    return f"{before}{re.escape(name)}{after}"


# --- histories --------------------------------------------------------------------------------------------------


def _histories(where: Any, models: Iterable[Any]) -> Iterator[TrackedTable]:
    """Yield the base tables of the models, or of all histories in the database, and association tables.

    :raises QueryError: the database lacks the tables of maintenance
    """
    named, seen = dict.fromkeys(map(base_table_of, models)), set()
    for base in named or _all_histories():
        try:
            with runner_for(where, base) as runner:
                connection = runner.connection
                place = connection.engine, schema_of(connection, base.history), base.history.name
                if not named and (place in seen or not runner(table_exists, base.history)):
                    continue
                seen.add(place)
                runner(required_maintenance_tables, base.live.metadata, "erase_actor()")
                yield base
        except UnboundExecutionError:
            if named:
                raise


def _all_histories() -> dict[TrackedTable, None]:
    """Return the histories of every MetaData; if two have one of the same name, first that with maintenance tables."""
    found: dict[TrackedTable, None] = {}
    for metadata in sorted(known_metadata(), key=lambda each: maintenance_tables_of(each) is None):
        find_association_tables(metadata)
        for table in tracked_tables(metadata):
            if table.mapper is None or tracked_model(table.mapper) is not None:  # else its registry is disposed of
                found[base_of(table)] = None
    return found


class _ErasingActor:
    """Erases a user from the history of one hierarchy.

    :ivar tables: the base table, and those of subclasses
    :ivar fields: the names of the columns that may name a user
    :ivar versions: the number of versions that named the user
    :ivar rows: the number of their rows
    :ivar held: the number of versions that are held
    """

    def __init__(
        self,
        base: TrackedTable,
        person: _Person,
        runner: Runner,
        chunk_size: int,
        record: tuple[str, str | None, datetime],
        *,
        is_dry: bool,
    ) -> None:
        self.base, self.person, self.runner, self.chunk_size = base, person, runner, chunk_size
        self.record, self.is_dry = record, is_dry
        self.tables = list(dict.fromkeys([base, *(table for chain in base.chains for table in chain)]))
        self.fields = tuple(sorted(base.role(role).name for role in _ROLES))
        self.erasure_id = uuid4()
        self.versions = self.rows = self.held = 0

    def run(self) -> None:
        last: Key | None = None
        while (ends := self.runner(range_after, self.base.history_key, last, self.chunk_size)) is not None:
            last = ends[1]
            versions, rows, held = self.runner(self._erase, ends)
            self.versions, self.rows, self.held = self.versions + versions, self.rows + rows, self.held + held

    def _erase(self, connection: Connection, ends: tuple[Key, Key]) -> tuple[int, int, int]:
        """Erase the user from the versions in a range of keys; return how many versions, rows and held versions."""
        protected = held_in(connection, self.base)
        found = {table: self._changes(connection, table, ends, protected) for table in self.tables}
        changes, held = found[self.base]
        keys = [key for of_values in changes.values() for key in of_values]
        if not self.is_dry and any(changes for changes, _ in found.values()):
            with writable_history(connection, self.tables):
                for table, (of_table, _) in found.items():
                    self._write(connection, table, of_table)
            self._record(connection, len(keys))
        return len(keys), len({key[:-1] for key in keys}), held

    def _changes(
        self, connection: Connection, table: TrackedTable, ends: tuple[Key, Key], protected: Held
    ) -> tuple[dict[str, list[RawKey]], int]:
        """Return the versions to change, by what they get, as JSON; and the number of those that are held."""
        dialect, key = connection.dialect, (*table.history_key, table.version)
        users, roles = [table.role(role) for role in _ROLES[:2]], [table.role(role) for role in _ROLES]
        raw = raw_columns(table.history_key, dialect)
        first, last = ([bound(column, value=part) for column, part in zip(raw, end, strict=True)] for end in ends)
        is_held = [one_of(table.history_key, protected.keys)] if protected.keys else []
        is_held += [table.role("changeset_id").in_(protected.changesets)] if protected.changesets else []
        one, zero = literal_column("1", Integer), literal_column("0", Integer)
        statement = select(
            *raw_columns(key, dialect), *roles, case((or_(*is_held), one), else_=zero) if is_held else zero
        )
        statement = statement.where(
            is_in_range(table.history_key, first, last, dialect), self.person.may_be_in(users, roles[2:3], roles[3:])
        )
        changes: dict[str, list[RawKey]] = defaultdict(list)
        held = 0
        for *number, changed_by, impersonated_by, reason, extra, is_protected in connection.execute(
            statement, execution_options=INTERNAL
        ):
            told = changed_by, impersonated_by, reason, extra
            if not self.person.is_in(*told):
                continue
            if is_protected:
                held += 1
            else:
                changes[json.dumps(self.person.taken_out_of(*told))].append(RawKey(number))
        return changes, held

    def _write(self, connection: Connection, table: TrackedTable, changes: Mapping[str, Sequence[RawKey]]) -> None:
        key, names = (*table.history_key, table.version), [table.role(role).key for role in _ROLES]
        for text, keys in changes.items():
            values = dict(zip(names, json.loads(text), strict=True))
            for chunk in chunks(keys):
                statement = update(table.history).where(has_one_of(key, chunk, connection.dialect)).values(values)
                connection.execute(statement, execution_options=INTERNAL)

    def _record(self, connection: Connection, versions: int) -> None:
        """Record the erasure together with its first versions, and count later ones."""
        known = required_maintenance_tables(connection, self.base.live.metadata, "erase_actor()").erasures
        is_this = known.c.erasure_id == self.erasure_id
        counted = update(known).where(is_this).values(versions=known.c.versions + versions)
        if connection.execute(counted, execution_options=INTERNAL).rowcount:
            return
        reason, user, at = self.record
        values = {
            "erasure_id": self.erasure_id,
            "history_table": self.base.history.fullname,
            "fields": list(self.fields),
            "versions": versions,
            "reason": reason,
            "erased_by": user,
            "erased_at": type_coerce(at, UTCDateTime()),
        }
        connection.execute(insert(known).values(values), execution_options=INTERNAL)


# --- the tables of sqlaudit -------------------------------------------------------------------------------------


def _erase_in_own_tables(connection: Connection, metadata: MetaData, person: _Person) -> None:
    """Erase the user from holds, erasures and marks."""
    tables = maintenance_tables_of(metadata)
    assert tables is not None
    _erase_in(connection, tables.holds, person, "held_by", "reason")
    _erase_in(connection, tables.erasures, person, "erased_by", "reason")
    marks = marks_table_of(metadata)
    if marks is not None and table_exists(connection, marks):
        _erase_in(connection, marks, person, "changed_by", None)


def _erase_in(connection: Connection, table: Table, person: _Person, user: str, text: str | None) -> None:
    columns = table.c
    (key,) = table.primary_key
    texts = [] if text is None else [columns[text]]
    statement = select(key, columns[user], *texts).where(person.may_be_in([columns[user]], texts, []))
    for row in connection.execute(statement, execution_options=INTERNAL).all():
        values = {user: person.user(row[1])} | ({} if text is None else {text: person.text(row[2])})
        connection.execute(update(table).where(key == row[0]).values(values), execution_options=INTERNAL)


def _refresh_versions(session: Session | scoped_session[Any], person: _Person) -> None:
    """Refresh the versions in a session that name the user."""
    for obj in list(session):
        if isinstance(obj, Version) and person.is_in(obj.changed_by, obj.impersonated_by, obj.reason, obj.extra):
            session.refresh(obj)
