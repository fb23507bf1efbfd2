"""How is a transaction repeated elsewhere? ``patch`` tells what it did as the statements of an SQL script.

``row_patch`` does so for two states of a row. The values are read as the database stores them, and written as literals
that it reads without loss. So the script is for a database of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Dialect, ForeignKeyConstraint, Select, Table, select
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import When, changeset_uuid
from sqlaudit.asynchronous import also_async
from sqlaudit.changes import Operation
from sqlaudit.maintenance.slices import references_of
from sqlaudit.past.comparing import state_of
from sqlaudit.retrieval.changesets import is_of_changeset, known_tables, tables_of_changeset
from sqlaudit.retrieval.ids import converted_ids, is_id, one_id
from sqlaudit.sql.dialects import MYSQL, TRAITS
from sqlaudit.sql.keys import raw_columns
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.history import version_info
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session
from sqlaudit.tracking.tables import TrackedTable

_NUL: Final = "\0"


@also_async
def patch(session: Session | scoped_session[Any], changeset_id: UUID | str) -> list[str]:
    """Return the SQL statements that do again what a transaction did, for a database of the same kind.

    .. code-block:: python

        print(";\\n".join([*patch(session, changeset_id), ""]))

    New rows come first, each after the rows that it refers to; then changes, of the changed columns only; then
    deletions. Excluded and computed columns are left out. Executed on a checkout of the instant before, the statements
    make that of the instant after. They fail where rows swap unique values.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param changeset_id: the ``audit_changeset_id`` of a version, or the ``changeset_id`` of a :class:`Changeset`
    :return: the statements, each without a semicolon; none if the transaction changed no row, such as a backfill
    :raises QueryError: ``changeset_id`` is no UUID, or no history has a version of this changeset
    """
    session = checked_session(session)
    wanted = changeset_uuid(changeset_id)
    tables = tables_of_changeset(session, wanted)
    places = {table: place.bind_arguments for place in known_tables(session, tables) for table in place.tables}
    changes: list[_Change] = []
    for table in tables:
        where = places[table]
        dialect = session.get_bind(**where).dialect
        rows = session.execute(_versions(table, dialect), {"changeset": wanted}, bind_arguments=dict(where))
        changes += _changes(table, _Script(dialect), rows)
    return list(_statements(changes))


def row_patch(
    session: Session, model_class: type[Any] | Table, resource_id: Any, a: When | int, b: When | int
) -> list[str]:
    """Return the SQL statements that lead from one state of a row to another, for a database of the same kind.

    The states are those of :func:`~sqlaudit.diff`; the new one may be earlier. A row of a subclass has a statement for
    each of its tables. Excluded and computed columns are left out.

    :raises TrackingError: the model is not tracked
    :raises QueryError: the row has no history or no such version, or its state is unknown, because versions have been
        removed
    """
    asked = model_of(model_class)
    model = asked.root  # a row that changes its class has all its states there
    source = model_class if asked is model else model.mapper.class_
    where = bind_arguments_for(session, model.mapper)
    script = _Script(session.get_bind(**where).dialect)
    ids = converted_ids(model.root.table.history_key, [resource_id])
    before, after = (
        {} if version is None else dict(_literals_of(session, script, version, ids))
        for version in (state_of(session, model, source, resource_id, when) for when in (a, b))
    )
    changes = []
    for table in dict.fromkeys([*before, *after]):
        state = before.get(table) or after[table]
        key = {column.name: state[column.name] for column in table.key}
        changes.append(_Change(table.live, script, key, before.get(table), after.get(table)))
    return list(_statements([*_without_computed(changes)]))


def _literals_of(
    session: Session, script: _Script, version: Any, ids: Mapping[str, list[Any]]
) -> Iterator[tuple[TrackedTable, dict[str, str]]]:
    """Yield each table of a row with the literals of its stored columns in a version, by name."""
    model: TrackedModel = version.__sqlaudit_model__
    number, where = version_info(version)["version"], bind_arguments_for(session, model.mapper)
    for table in model.chain:
        columns = [raw_columns([column], script.dialect)[0] for _, column in table.columns]
        statement = select(*columns).where(is_id(table.history_key, one_id(ids)), table.version == number)
        values = session.execute(statement, one_id(ids), bind_arguments=where, execution_options=INTERNAL).one()
        names = [live.name for live, _ in table.columns]
        yield table, dict(zip(names, map(script.literal, values), strict=True))


# --- what changed -----------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class _Change:
    """What the transaction did to a row.

    :ivar before: the literals of the row's columns before the transaction, by name; ``None`` if there was no row
    :ivar after: those after it
    """

    table: Table
    script: _Script
    key: dict[str, str]
    before: dict[str, str] | None
    after: dict[str, str] | None
    postponed: list[ForeignKeyConstraint] = field(default_factory=list)


def _versions(table: TrackedTable, dialect: Dialect) -> Select[Any]:
    """Return the select of the versions of a changeset, each with the one before it."""
    version, previous = HistoryAlias(table), HistoryAlias(table)
    return (
        select(
            version.operation,
            previous.operation,
            *(raw_columns([column], dialect)[0] for column in (*version.stored, *previous.stored)),
        )
        .select_from(version.clause.outerjoin(previous.clause, version.is_version_of(previous, 1)))
        .where(is_of_changeset(table, version.clause))
        .order_by(*version.key, version.version)
    )


def _changes(table: TrackedTable, script: _Script, rows: Iterable[Sequence[Any]]) -> Iterator[_Change]:
    live = [column for column, _ in table.columns]
    names = [column.name for column in live]
    key_names = [column.name for column in table.key]
    found: dict[tuple[str, ...], _Change] = {}
    for operation, earlier, *values in rows:
        state = dict(zip(names, map(script.literal, values[: len(names)]), strict=True))
        previous = dict(zip(names, map(script.literal, values[len(names) :]), strict=True))
        identity = tuple(state[name] for name in key_names)
        change = found.get(identity)
        if change is None:
            had_row = earlier is not None and earlier is not Operation.DELETE
            key = {name: state[name] for name in key_names}
            change = found[identity] = _Change(table.live, script, key, previous if had_row else None, None)
            if not had_row and operation is not Operation.INSERT:
                change.before = state if operation is Operation.BASELINE else {}
        change.after = None if operation is Operation.DELETE else state
    yield from _without_computed(found.values())


def _without_computed(changes: Iterable[_Change]) -> Iterator[_Change]:
    for change in changes:
        for name in [column.name for column in change.table.c if column.computed is not None]:
            for literals in (change.before, change.after):
                (literals or {}).pop(name, None)
        yield change


# --- in which order ---------------------------------------------------------------------------------------------


def _statements(changes: Sequence[_Change]) -> Iterator[str]:
    new = [change for change in changes if change.before is None and change.after is not None]
    gone = [change for change in changes if change.before is not None and change.after is None]
    for change in _parents_first(new, lambda change: change.after or {}):
        yield change.script.insert(change)
    for change in changes:
        yield from change.script.updates(change)
    doomed = list(_parents_first(gone, lambda change: change.before or {}))
    for change in doomed:
        yield from change.script.releases(change)
    for change in reversed(doomed):
        yield change.script.delete(change)


def _parents_first(changes: Sequence[_Change], state: Callable[[_Change], Mapping[str, str]]) -> list[_Change]:
    """Return changes so that each row comes after those that it refers to.

    Foreign keys that lead round in a circle are noted in ``postponed``.
    """
    tables = dict.fromkeys(change.table for change in changes)
    links = {table: list(references_of(table, tables)) for table in tables}
    rows: dict[Any, _Change] = {}
    for referring in links.values():
        for link, referred in referring:
            names = tuple(element.column.name for element in link.elements)
            for change in changes:
                if change.table is referred:
                    rows.setdefault((referred, names, tuple(state(change).get(name) for name in names)), change)
    done: dict[_Change, None] = {}
    started: set[_Change] = set()

    def parents(change: _Change) -> Iterator[tuple[ForeignKeyConstraint, _Change]]:
        for link, referred in links[change.table]:
            names = tuple(element.column.name for element in link.elements)
            values = tuple(state(change).get(element.parent.name) for element in link.elements)
            parent = rows.get((referred, names, values))
            if parent is not None and parent is not change:
                yield link, parent

    for change in changes:
        stack = [(change, parents(change))] if change not in started else []
        started.add(change)
        while stack:
            child, waiting = stack[-1]
            for link, parent in waiting:
                if parent not in started:
                    started.add(parent)
                    stack.append((parent, parents(parent)))
                    break
                if parent not in done:
                    child.postponed.append(link)
            else:
                done[child] = None
                stack.pop()
    return list(done)


# --- as SQL -----------------------------------------------------------------------------------------------------


class _Script:
    """Writes statements for a dialect, as a script has them: percent signs are not doubled for a driver."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect, self.name = dialect, dialect.name
        self.has_booleans = dialect.supports_native_boolean
        self.preparer = type(dialect)(paramstyle="named").identifier_preparer  # type: ignore[call-arg]  # each has it

    def literal(self, value: Any) -> str:
        """Return the literal of a value that was read by :func:`sqlaudit.sql.keys.raw_columns`."""
        if value is None:
            return "NULL"
        if isinstance(value, bool):
            return str(value).upper() if self.has_booleans else str(int(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            digits = bytes(value).hex()
            return f"'\\x{digits}'" if self.name == "postgresql" else f"X'{digits}'"
        if isinstance(value, (float, Decimal)) and not math.isfinite(value):
            if TRAITS[self.name].has_infinity:
                return self._quoted(str(value))
            return "9e999" if value > 0 else "-9e999"
        if isinstance(value, float):
            return repr(value)
        if isinstance(value, (int, Decimal)):
            return str(value)
        is_stored_plainly = isinstance(value, UUID) and self.name != "postgresql"  # MariaDB's UUID takes both forms
        return self._quoted(value.hex if is_stored_plainly else str(value))

    def _quoted(self, text: str) -> str:
        if _NUL in text and self.name == "sqlite":  # it would end the statement
            return f"CAST(X'{text.encode().hex()}' AS TEXT)"
        if self.name in MYSQL:
            text = text.replace("\\", "\\\\")
        return "'" + text.replace("'", "''") + "'"

    def insert(self, change: _Change) -> str:
        values = dict(change.after or {})
        values.update(dict.fromkeys(self._postponed(change), "NULL"))
        names = ", ".join(map(self.preparer.quote, values))
        is_identity = any(column.identity is not None and column.identity.always for column in change.table.c)
        overriding = " OVERRIDING SYSTEM VALUE" if is_identity and TRAITS[self.name].overrides_identity else ""
        return f"INSERT INTO {self._table(change)} ({names}){overriding} VALUES ({', '.join(values.values())})"  # noqa: S608  # quoted

    def updates(self, change: _Change) -> Iterator[str]:
        """Yield the statement that changes a row, or that adds the references of a new one."""
        if change.after is None:
            return
        if change.before is None:
            values = {name: change.after[name] for name in self._postponed(change)}
        else:
            values = {name: value for name, value in change.after.items() if change.before.get(name) != value}
        if values:
            yield self._update(change, values)

    def releases(self, change: _Change) -> Iterator[str]:
        """Yield the statement that removes references of a row that will be deleted, if they lead round in a circle."""
        if names := self._postponed(change):
            yield self._update(change, dict.fromkeys(names, "NULL"))

    def delete(self, change: _Change) -> str:
        return f"DELETE FROM {self._table(change)} WHERE {self._is_row(change)}"  # noqa: S608  # quoted

    def _update(self, change: _Change, values: Mapping[str, str]) -> str:
        assignments = ", ".join(f"{self.preparer.quote(name)} = {value}" for name, value in values.items())
        return f"UPDATE {self._table(change)} SET {assignments} WHERE {self._is_row(change)}"  # noqa: S608  # quoted

    def _table(self, change: _Change) -> str:
        return self.preparer.format_table(change.table)

    def _is_row(self, change: _Change) -> str:
        return " AND ".join(
            f"{self.preparer.quote(name)} {'IS' if value == 'NULL' else '='} {value}"
            for name, value in change.key.items()
        )

    @staticmethod
    def _postponed(change: _Change) -> list[str]:
        """Return the columns of the postponed foreign keys that may be NULL."""
        columns = (element.parent for link in change.postponed for element in link.elements)
        return list(dict.fromkeys(column.name for column in columns if column.nullable))
