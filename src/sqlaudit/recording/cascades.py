"""Which rows does the database change by foreign key actions? Those that refer to deleted rows or changed keys.

The database does not report these rows, so sqlaudit finds and locks them beforehand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TypeVar, cast, overload

from sqlalchemy import Connection, Table, exists, false, literal_column, select, type_coerce, update
from sqlalchemy.sql.schema import ForeignKeyConstraint

from sqlaudit.recording.capture import Capture, WriteContext
from sqlaudit.recording.clauses import key_types_of
from sqlaudit.recording.policy import lacking, require_context
from sqlaudit.sql.batches import KeyCollection, chunks
from sqlaudit.sql.comparing import may_be_respelt
from sqlaudit.sql.dialects import TRAITS
from sqlaudit.sql.keys import Key, RawKey, is_raw, raw_columns, read_keys
from sqlaudit.sql.lists import has_one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.catalogue import can_lock_many
from sqlaudit.tracking.foreign_keys import Chain, FollowedTable, Source, Sources, followers_of
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.rights import lockable_tables
from sqlaudit.tracking.schema import table_exists
from sqlaudit.tracking.tables import TrackedTable

S = TypeVar("S", bound=Source)


class Dependents:
    """The rows that foreign key actions delete or change together with other rows."""

    def __init__(self) -> None:
        self.written: set[tuple[TrackedTable, Key]] = set()
        """Rows that the flush records itself."""
        self._found: list[tuple[Capture, Sequence[Key]]] = []
        self._referred: list[tuple[WriteContext, Sources, KeyCollection[Key]]] = []
        self._are_expected = False

    def find(self, write: WriteContext, sources: Sources, keys: KeyCollection[Key]) -> None:
        """Find the rows that depend on rows that are about to be deleted, or to get other keys.

        The rows that are about to change are locked first, if the role may, so that nobody adds a dependent row.

        :param sources: the tables of the rows that are about to change
        :raises ContextError: tracked rows depend on an untracked table, and a required user or reason is missing
        """
        before = len(self._found)
        if followers_of(sources):
            take_write_lock(write.connection, sources[0])
        self._find(write, sources, keys, set())
        if len(self._found) > before and isinstance(sources[0], FollowedTable):
            live = sources[0].live
            message_start = (
                f"Tracked rows are to be changed with those of the table {live.fullname!r} that they refer to"
            )
            require_context(lacking(write.context), message_start, live)

    def _find(
        self, write: WriteContext, sources: Sources, keys: KeyCollection[Key], seen: set[tuple[Source, Key]]
    ) -> None:
        if not (followers := followers_of(sources)):
            return
        connection = write.connection
        self._are_expected = True
        if any(_follows_unique_columns(sources, *follower_and_constraint) for follower_and_constraint in followers):
            self._referred.append((write, sources, keys))
        to_lock = lockable_tables(connection, list({sources[0].live, *(follower.live for follower, _ in followers)}))
        for chunk in chunks(keys):
            if sources[0].live in to_lock and TRAITS[connection.dialect.name].locks_rows:
                lock_rows(connection, sources[0], chunk)
            for follower, constraint in followers:
                with explaining_history_errors([follower] if isinstance(follower, TrackedTable) else [], record=True):
                    dependent_keys = _followers_in(connection, sources, follower, constraint, chunk, to_lock)
                new = [dependent for dependent in dependent_keys if (follower, dependent) not in seen]
                seen.update((follower, dependent) for dependent in new)
                for chain, keys_of_chain in split_by_chain(connection, follower, new):
                    if isinstance(follower, TrackedTable):
                        unrecorded = [
                            dependent for dependent in keys_of_chain if (follower, dependent) not in self.written
                        ]
                        capture = write.capture(cast("Chain", chain))
                        capture.baseline(unrecorded)
                        self._found.append((capture, unrecorded))
                    self._find(write, chain, keys_of_chain, seen)

    def add(self, capture: Capture, keys: KeyCollection[Key]) -> None:
        """Add rows that were written after :meth:`find`, and that may refer to the rows that are about to change."""
        if self._are_expected and keys:
            self._found.append((capture, list(keys)))

    def keys_in(self, source: Source) -> set[Key]:
        """Return the keys of the dependent rows of a table."""
        return {key for capture, keys in self._found if capture.chain[0] is source for key in keys}

    def settle(self, *, is_last: bool = True) -> None:
        """Record what the foreign key actions did to the dependent rows.

        :param is_last: False if they may still do more, so that rows that have not changed keep their baselines
        """
        for capture, keys in self._found:
            capture.settle(keys, forgets=is_last)
        for write, sources, referred in self._referred:
            for chunk in chunks(referred):
                record_changed_keys(write, sources, chunk)


def record_changed_keys(write: WriteContext, sources: Sources, keys: KeyCollection[Key]) -> None:
    """Record the rows whose primary keys the database changed together with the keys that they refer to.

    :param keys: the new keys of the referred rows
    """
    for follower, constraint in followers_of(sources):
        if not any(element.parent in follower.key for element in constraint.elements):
            continue
        to_lock = lockable_tables(write.connection, [follower.live])
        for chunk in chunks(keys):
            followers = _followers_in(write.connection, sources, follower, constraint, chunk, to_lock)
            for chain, keys_of_chain in split_by_chain(write.connection, follower, followers):
                if isinstance(follower, TrackedTable):
                    write.capture(cast("Chain", chain)).settle(keys_of_chain, inserted=frozenset(keys_of_chain))
                record_changed_keys(write, chain, keys_of_chain)


def _follows_unique_columns(sources: Sources, follower: Source, constraint: ForeignKeyConstraint) -> bool:
    """Return whether the key of a follower has a foreign key to a unique column outside the key of the sources."""
    keys = {column for source in sources for column in source.key}
    return any(element.parent in follower.key and element.column not in keys for element in constraint.elements)


def table_chains(table: S) -> list[tuple[S, ...]]:
    """Return the chains of tables of a hierarchy; an object lives in the first whose last table has its row."""
    return cast("list[tuple[S, ...]]", sorted(table.chains, key=len, reverse=True) or [(table,)])


@overload
def split_by_chain(
    connection: Connection, table: S, keys: Sequence[Key]
) -> Iterator[tuple[tuple[S, ...], Sequence[Key]]]: ...


@overload
def split_by_chain(
    connection: Connection, table: S, keys: KeyCollection[Key]
) -> Iterator[tuple[tuple[S, ...], KeyCollection[Key]]]: ...


def split_by_chain(
    connection: Connection, table: S, keys: KeyCollection[Key]
) -> Iterator[tuple[tuple[S, ...], KeyCollection[Key]]]:
    """Divide the rows of a table by the chain of tables that their objects live in."""
    if len(chains := table_chains(table)) == 1:
        if keys:
            yield chains[0], keys
        return
    remaining = list(keys)
    for chain in chains[:-1]:
        keys_found: set[Key] = set()
        for chunk in chunks(remaining):
            keys_found.update(_existing_keys(connection, chain[-1], chunk))
        if keys_found:
            yield chain, list(keys_found)
        remaining = [key for key in remaining if key not in keys_found]
    if remaining:
        yield chains[-1], remaining


def _followers_in(
    connection: Connection,
    sources: Sources,
    follower: Source,
    constraint: ForeignKeyConstraint,
    keys: Sequence[Key],
    to_lock: Collection[Table],
) -> Sequence[Key]:
    """Find the rows of a follower that refer to the rows with the given keys; lock them and return their keys.

    :param to_lock: the tables whose rows the role may lock
    """
    owner = next(source for source in sources if source.live is constraint.referred_table)
    if follower.live.metadata is not owner.live.metadata and not table_exists(connection, follower.live):
        return []
    dialect, can_lock = connection.dialect, can_lock_many(connection, follower)
    refers = {element.column: element.parent for element in constraint.elements}
    if refers.keys() == {*owner.key} and not (can_lock and any(may_be_respelt(column.type) for column in owner.key)):
        # Where the rows of the two tables are on different servers, Citus cannot join them.
        is_referred = has_one_of([type_coerce(refers[column], column.type) for column in owner.key], keys, dialect)
    else:
        referred = owner.live.alias()
        key = [referred.c[column.key] for column in owner.key]
        same = (parent == referred.c[column.key] for column, parent in refers.items())
        is_referred = exists(literal_column("1")).where(*same, has_one_of(key, keys, dialect))
    statement = select(*raw_columns(follower.key, dialect)).where(is_referred)
    return read_keys(connection, statement.with_for_update() if can_lock and follower.live in to_lock else statement)


def lock_rows(connection: Connection, source: Source, keys: Sequence[Key]) -> list[RawKey]:
    """Lock the rows that have the given keys, in the order of the keys, if possible, and return their raw keys."""
    chosen = select(*raw_columns(source.key, connection.dialect)).order_by(*source.key)
    chosen = chosen.where(has_one_of(source.key, keys, connection.dialect))
    if len(keys) == 1 or can_lock_many(connection, source):
        chosen = chosen.with_for_update()
    return read_keys(connection, chosen)


def take_write_lock(connection: Connection, source: Source) -> None:
    """Take the write lock on SQLite, which cannot lock rows, so that nobody writes between two statements."""
    if not TRAITS[connection.dialect.name].locks_rows:  # an UPDATE takes it even if it finds no row
        kept = source.cache if isinstance(source, TrackedTable) else {}
        if take_write_lock not in kept:
            column = source.version if isinstance(source, TrackedTable) else source.key[0]
            kept[take_write_lock] = update(column.table).where(false()).values({column: column})
        connection.execute(kept[take_write_lock], execution_options=INTERNAL)


def _existing_keys(connection: Connection, table: TrackedTable | FollowedTable, keys: Sequence[Key]) -> list[Key]:
    """Return the keys for which a table has a row."""
    types = key_types_of(cast("TrackedTable", table), connection.dialect)
    existing_keys: list[Key] | None = None
    if len(keys) == 1 or types.go_together or is_raw(keys):
        chosen = select(*types.read(table.key, as_raw=is_raw(keys)))
        rows = connection.execute(chosen.where(has_one_of(table.key, keys, connection.dialect))).all()
        existing_keys = types.recognised(keys, rows)
    return (
        [existing for key in keys for existing in _existing_keys(connection, table, [key])]
        if existing_keys is None
        else existing_keys
    )
