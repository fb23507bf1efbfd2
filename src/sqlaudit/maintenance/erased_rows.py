"""How are values of rows erased? Their columns become NULL in all versions, or in some, and in the live rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, and_, null, select, update
from sqlalchemy.orm import InstanceState, Session

from sqlaudit.erased import erased_columns, marked
from sqlaudit.exceptions import QueryError
from sqlaudit.maintenance.door import writable_history
from sqlaudit.maintenance.holding import refuse_held
from sqlaudit.maintenance.transactions import reading_latest
from sqlaudit.period import OPEN_END
from sqlaudit.recording.cascades import take_write_lock
from sqlaudit.recording.changeset import connection_for_versions
from sqlaudit.sql.batches import CHUNK, chunks
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.keys import Columns, Key
from sqlaudit.sql.lists import one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias
from sqlaudit.tracking.catalogue import can_lock_many
from sqlaudit.tracking.history import Version
from sqlaudit.tracking.maintenance_tables import required_maintenance_tables
from sqlaudit.tracking.models import TrackedModel, tracked_model
from sqlaudit.tracking.tables import TrackedTable, prepare_connection

# --- what can be erased -----------------------------------------------------------------------------------------


def erasable_columns(model: TrackedModel, fields: Collection[str] | str) -> list[Column[Any]]:
    """Return the history columns of fields: of all columns of a hierarchy that have their names.

    :param fields: the names, or ``"all"``
    :raises QueryError: a field cannot be erased
    """
    known = {name: column for submodel in model.family() for name, column in submodel.columns.items()}
    is_link = model.table.is_association
    reasons = dict.fromkeys(_key_names(model), "the key, by which versions are found")
    if is_link:
        ends = {live.key for live, _ in model.table.columns if live.foreign_keys} - reasons.keys()
        reasons |= dict.fromkeys(ends, "what the link refers to")
    if fields == "all":
        wanted = known.keys() - reasons.keys() - _telling(model)
    elif isinstance(fields, str) or not fields:
        raise QueryError(f'fields is {fields!r}. Give the names of the fields in a list, or "all".', fields)
    else:
        wanted = set(fields)
    for name in sorted(wanted):
        if name not in known:
            raise QueryError(
                f"{model.name} has no stored field {name!r}. It has "
                f"{', '.join(sorted(known.keys() - reasons.keys()))}.",
                name,
            )
        if name in reasons:
            raise QueryError(
                f"{model.name}.{name} is part of {reasons[name]}, so it cannot be erased. {_RECIPES[is_link]}",
                name,
            )
        if name in _telling(model):
            raise QueryError(
                f"{model.name}.{name} tells the class of a row, so it cannot be erased. Leave it out.", name
            )
    return columns_named(model, {known[name].name for name in wanted})


_RECIPES: Final = (
    "Change the key of the live row to one that names nobody, which makes a new history, delete the old row, and prune "
    "its history with keep_tombstones=False.",
    "Delete the link, and prune its history with keep_tombstones=False.",
)
"""What to do instead of erasing a key: that of a row, and that of a link."""


def columns_named(model: TrackedModel, names: Collection[str]) -> list[Column[Any]]:
    """Return the history columns of a hierarchy that have one of the names in the database."""
    columns = [column for submodel in model.family() for column in submodel.columns.values() if column.name in names]
    return list(dict.fromkeys(columns))


def _key_names(model: TrackedModel) -> set[str]:
    keys = {column for submodel in model.family() for table in submodel.chain for column in table.history_key}
    return {name for submodel in model.family() for name, column in submodel.columns.items() if column in keys}


def _telling(model: TrackedModel) -> set[str]:
    expression = model.discriminator
    told_by = set() if expression is None else {column.key for column in expression.base_columns}
    return {name for name, column in model.columns.items() if column.key in told_by}


def values_by_column(
    model: TrackedModel, values: Mapping[str, Any], columns: Collection[Column[Any]]
) -> dict[Column[Any], Any]:
    """Return what live rows get in the place of erased values.

    :raises QueryError: one is for a field that is not erased
    """
    known = {name: column for submodel in model.family() for name, column in submodel.columns.items()}
    for name in values:
        if name not in known or known[name] not in columns:
            raise QueryError(f"values has {name!r}, which is not erased. Add it to fields, or leave it out.", name)
    return {known[name]: value for name, value in values.items()}


# --- how it is erased -------------------------------------------------------------------------------------------


class RowsToErase:
    """Some rows of a hierarchy, and the columns to erase of them.

    :ivar wanted: the keys, each with the numbers of the versions to erase; ``None`` for all versions
    :ivar versions: the versions that have values to erase: key → number → ``extra``
    """

    def __init__(
        self,
        session: Session,
        model: TrackedModel,
        columns: Sequence[Column[Any]],
        values: Mapping[Column[Any], Any],
        wanted: Mapping[Key, Collection[int] | None],
        *,
        is_follower: bool = False,
    ) -> None:
        self.model, self.columns, self.values, self.wanted = model, columns, values, wanted
        self.is_follower = is_follower
        self.connection = connection_for_versions(session, model.table.mapper)
        self.tables = list(dict.fromkeys(table for submodel in model.family() for table in submodel.chain))
        prepare_connection(self.connection, self.tables)
        self.names = {column.name for column in columns}
        self.versions: dict[Key, dict[int, Any]] = {}
        self.have_history: set[Key] = set()
        self._live: dict[TrackedTable, list[Key]] = {}

    @property
    def count(self) -> int:
        """The number of versions that have values to erase."""
        return sum(map(len, self.versions.values()))

    def find(self) -> None:
        """Lock the live rows, and find what is to be erased. Nothing is written.

        :raises QueryError: a row is held, or a live row needs a value
        """
        required_maintenance_tables(self.connection, self.model.table.live.metadata, "erase()")
        take_write_lock(self.connection, self.model.table)
        for chunk in chunks(list(self.wanted)):
            refuse_held(self.connection, self.model.table, chunk, "erased")
        live = {table: self._locked(table) for table in self.tables}
        versions = list(self._versions(self.model.table))
        if not {key for key, _, valid_to, _ in versions if valid_to >= OPEN_END} <= {*live[self.model.table]}:
            live = {table: self._locked(table) for table in self.tables}  # another transaction has inserted rows again
        found: dict[Key, dict[int, Any]] = defaultdict(dict)
        to_erase = set()
        for key, number, valid_to, extra in versions:
            self.have_history.add(key)
            numbers = self.wanted.get(key, () if self.is_follower else None)  # a key may be spelt differently
            if (numbers is None or number in numbers) and not self.names <= set(erased_columns(extra)):
                found[key][number] = extra
                if numbers is None or valid_to >= OPEN_END:
                    to_erase.add(key)
        self.versions = dict(found)
        respelt = {key for keys in live.values() for key in keys} - self.have_history if to_erase else set()
        self._live = {table: [key for key in keys if key in to_erase | respelt] for table, keys in live.items()}
        self._refuse_null()

    def erase(self) -> None:
        """Erase what :meth:`find` has found."""
        if not self.versions:
            return
        for table in self.tables:
            self._erase_live(table)
        with writable_history(self.connection, self.tables):
            for table in self.tables:
                self._erase_versions(table)
            for table in self.tables:
                self._copy_live(table)

    def _locked(self, table: TrackedTable) -> list[Key]:
        """Lock the live rows in one table, and return their keys; one by one where a statement cannot lock many."""
        statement = select(*table.key).order_by(*table.key).with_for_update()
        size = CHUNK if can_lock_many(self.connection, table) else 1
        return [tuple(row) for row in self._rows(statement, table.key, size)]

    def _versions(self, table: TrackedTable) -> Iterator[tuple[Key, int, Any, Any]]:
        size = len(table.history_key)
        statement = select(*table.history_key, table.version, table.valid_to, table.role("extra"))
        for row in self._rows(reading_latest(statement, self.connection), table.history_key):
            yield tuple(row[:size]), *row[size:]

    def _rows(self, statement: Any, columns: Columns, size: int = CHUNK) -> Iterator[Any]:
        for chunk in chunks(list(self.wanted), size):
            statement_of_chunk = statement.where(_is_one_of(columns, chunk))
            yield from self.connection.execute(statement_of_chunk, execution_options=INTERNAL).all()

    def _pairs(self, table: TrackedTable) -> list[tuple[Column[Any], Column[Any]]]:
        return [(live, old) for live, old in table.columns if old in self.columns]

    def _refuse_null(self) -> None:
        names = {column: name for model in self.model.family() for name, column in model.columns.items()}
        lacking = [
            names[old]
            for table, keys in self._live.items()
            for column, old in self._pairs(table)
            if keys and not column.nullable and column.computed is None and self.values.get(old) is None
        ]
        if lacking:
            table, value = self.model.table.live, f"{{{lacking[0]!r}: …}}"
            raise QueryError(
                f"{', '.join(lacking)} of the live row of {table.fullname!r} cannot be NULL. "
                f"Give what it gets: values={f'{{{self.model.name}: {value}}}' if self.is_follower else value}.",
                table,
            )

    def _erase_versions(self, table: TrackedTable) -> None:
        """Erase the columns of the versions in one table: one statement for those that get the same ``extra``."""
        extra, by_extra = table.role("extra"), defaultdict[str, list[Key]](list)
        key_columns = table.history_key
        for key, number, _, known in self._versions(table):
            if number in self.versions.get(key, {}):
                by_extra[json.dumps(marked(known, self.names))].append((*key, number))
        nulls: dict[str, Any] = {old.key: null() for _, old in self._pairs(table)}
        for text, versions in by_extra.items():
            statement = update(table.history).values({**nulls, extra.key: json.loads(text)})
            for chunk in chunks(versions):
                if len(self.wanted) == 1:
                    numbers = [number for *_, number in chunk]
                    is_one = and_(all_equal(key_columns, chunk[0][:-1]), table.version.in_(numbers))
                else:
                    is_one = one_of((*key_columns, table.version), chunk)
                self.connection.execute(statement.where(is_one), execution_options=INTERNAL)

    def _erase_live(self, table: TrackedTable) -> None:
        new = {live: self.values.get(old, null()) for live, old in self._pairs(table) if live.computed is None}
        kept = {
            column: column
            for column in table.live.c
            if (column.onupdate or column.server_onupdate) and column.computed is None and column not in new
        }
        for chunk in chunks(self._live[table]) if new else ():
            statement = update(table.live).where(_is_one_of(table.key, chunk)).values({**kept, **new})
            self.connection.execute(statement, execution_options=INTERNAL)

    def _copy_live(self, table: TrackedTable) -> None:
        """Let the open versions have what the live rows have now, in the erased and the computed columns."""
        version = HistoryAlias(table, table.history)
        copied = [(live, old) for live, old in table.columns if old in self.columns or live.computed is not None]
        for key in self._live[table] if copied else ():
            stored = {
                old.key: select(table.recorded(live)).where(all_equal(table.key, key)).scalar_subquery()
                for live, old in copied
            }
            statement = update(table.history).where(version.has_key(key), version.is_open).values(stored)
            self.connection.execute(statement, execution_options=INTERNAL)


def _is_one_of(columns: Columns, keys: Sequence[Key]) -> ColumnElement[bool]:
    """Return the condition that a row has one of some keys. For one, a distributed database can route it to a shard."""
    return all_equal(columns, keys[0]) if len(keys) == 1 else one_of(columns, keys)


def refresh_objects(session: Session, erased: Iterable[RowsToErase]) -> None:
    """Refresh the objects of rows in a session: live ones, versions, and those of the past."""
    keys: dict[TrackedModel, set[Key]] = defaultdict(set)
    for rows in erased:
        keys[rows.model].update(rows.versions)
    for state in list(session.identity_map.all_states()):
        obj, model = state.obj(), tracked_model(state.mapper)
        if isinstance(obj, Version):
            model = obj.__sqlaudit_model__
        if obj is not None and model is not None and _key_of(state, model) in keys.get(model.root, ()):
            session.refresh(obj)


def _key_of(state: InstanceState[Any], model: TrackedModel) -> Key:
    identity = state.key[1] if state.key else ()
    return tuple(identity[: len(model.root.table.key)])
