"""Which rows does the database change on its own? Those that refer to rows that go, or get other keys.

Nobody tells afterwards what their foreign keys did: the rows are found, and locked, before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast, overload

from sqlalchemy import ColumnElement, Connection, Table, exists, literal_column, select
from sqlalchemy.sql.schema import ForeignKeyConstraint

from sqlaudit.absent import explained
from sqlaudit.capture import Capture, Changeset, lacking, lacks_reason, lacks_user
from sqlaudit.config import current_config
from sqlaudit.context import AuditContext
from sqlaudit.keytypes import Key, RawKey, having, is_raw, keys_read, raw
from sqlaudit.references import Chain, Source, Sources, Untracked, followers_of
from sqlaudit.rights import lockable
from sqlaudit.statements import Portionable, chunks, key_types_of
from sqlaudit.tables import TrackedTable, is_there

S = TypeVar("S", bound=Source)


@dataclass(frozen=True, slots=True)
class Occasion:
    """In which transaction, and by whom, rows are written."""

    connection: Connection
    changeset: Changeset
    context: AuditContext

    def capture(self, chain: Sources) -> Capture:
        return Capture(self.connection, self.changeset, cast("Chain", chain), context=self.context)

    def require_context(self, source: Source) -> None:
        """See that there are a user and a reason, if they are required, for what follows an untracked row.

        :raises ContextError: there are not
        """
        config, name = current_config(), source.live.fullname
        write = f"Tracked rows are to be changed with those of the table {name!r} that they refer to"
        if lacks_reason(config, self.context):
            raise lacking("reason", write, source.live)
        if lacks_user(config, self.context):
            raise lacking("user", write, source.live)


class Dependents:
    """The rows that go, or change, with others."""

    def __init__(self) -> None:
        self.written: set[tuple[TrackedTable, Key]] = set()
        """Rows that somebody else records."""
        self._found: list[tuple[Capture, Sequence[Key]]] = []
        self._referred: list[tuple[Occasion, Sources, Portionable[Key]]] = []

    def find(self, occasion: Occasion, sources: Sources, keys: Portionable[Key]) -> None:
        """Find what depends on rows that are about to be deleted, or to get other keys.

        The rows are locked first, so that no other transaction adds a dependent one meanwhile.

        :param sources: the tables that the rows are in
        """
        before = len(self._found)
        self._find(occasion, sources, keys, set())
        if len(self._found) > before and isinstance(sources[0], Untracked):
            occasion.require_context(sources[0])

    def _find(
        self, occasion: Occasion, sources: Sources, keys: Portionable[Key], seen: set[tuple[Source, Key]]
    ) -> None:
        if not (followers := followers_of(sources)):
            return
        connection, key = occasion.connection, sources[0].key
        if isinstance(sources[0], TrackedTable):
            occasion.capture(sources).baseline(keys)
        if any(_moves_with_other_columns(sources, *each) for each in followers):
            self._referred.append((occasion, sources, keys))
        to_lock = lockable(connection, list({sources[0].live, *(follower.live for follower, _ in followers)}))
        for chunk in chunks(keys):
            if sources[0].live in to_lock:
                lock(connection, key, chunk)
            for follower, constraint in followers:
                with explained([follower] if isinstance(follower, TrackedTable) else [], record=True):
                    found = _followers_in(connection, sources, follower, constraint, chunk, to_lock)
                new = [each for each in found if (follower, each) not in seen]
                seen.update((follower, each) for each in new)
                for chain, some in by_chain(connection, follower, new):
                    if isinstance(follower, TrackedTable):
                        untold = [each for each in some if (follower, each) not in self.written]
                        capture = occasion.capture(chain)
                        capture.baseline(untold)
                        self._found.append((capture, untold))
                    self._find(occasion, chain, some, seen)

    def number_in(self, source: Source) -> int:
        """Return how many of them are in a table."""
        return sum(len(keys) for capture, keys in self._found if capture.chain[0] is source)

    def settle(self) -> None:
        """Record what has become of them."""
        for capture, keys in self._found:
            capture.settle(keys)
        for occasion, sources, referred in self._referred:
            for chunk in chunks(referred):
                record_moved(occasion, sources, chunk)


def record_moved(occasion: Occasion, sources: Sources, keys: Portionable[Key]) -> None:
    """Record the rows whose own keys the database changed with those of the rows that they refer to.

    :param keys: the new keys of these
    """
    for follower, constraint in followers_of(sources):
        if not any(element.parent in follower.key for element in constraint.elements):
            continue
        to_lock = lockable(occasion.connection, [follower.live])
        for chunk in chunks(keys):
            found = _followers_in(occasion.connection, sources, follower, constraint, chunk, to_lock)
            for chain, some in by_chain(occasion.connection, follower, found):
                if isinstance(follower, TrackedTable):
                    occasion.capture(chain).settle(some, inserted=frozenset(some))
                record_moved(occasion, chain, some)


def _moves_with_other_columns(sources: Sources, follower: Source, constraint: ForeignKeyConstraint) -> bool:
    """Tell whether the key of a follower repeats what is unique in a row, but is not the row's own key."""
    keys = {column for source in sources for column in source.key}
    return any(each.parent in follower.key and each.column not in keys for each in constraint.elements)


def chains_of(table: S) -> list[tuple[S, ...]]:
    """Return the chains of tables that the objects of a hierarchy live in; the first that has a row is its own."""
    return cast("list[tuple[S, ...]]", sorted(table.chains, key=len, reverse=True) or [(table,)])


@overload
def by_chain(
    connection: Connection, table: S, keys: Sequence[Key]
) -> Iterator[tuple[tuple[S, ...], Sequence[Key]]]: ...


@overload
def by_chain(
    connection: Connection, table: S, keys: Portionable[Key]
) -> Iterator[tuple[tuple[S, ...], Portionable[Key]]]: ...


def by_chain(
    connection: Connection, table: S, keys: Portionable[Key]
) -> Iterator[tuple[tuple[S, ...], Portionable[Key]]]:
    """Divide the rows of a table by the tables that their objects live in."""
    if len(chains := chains_of(table)) == 1:
        if keys:
            yield chains[0], keys
        return
    remaining = list(keys)
    for chain in chains[:-1]:
        found: set[Key] = set()
        for chunk in chunks(remaining):
            found.update(_present(connection, chain[-1], chunk))
        if found:
            yield chain, list(found)
        remaining = [key for key in remaining if key not in found]
    if remaining:
        yield chains[-1], remaining


def _followers_in(
    connection: Connection,
    sources: Sources,
    follower: Source,
    constraint: ForeignKeyConstraint,
    keys: Sequence[Key],
    to_lock: Collection[Table],
) -> list[Key]:
    """Return the keys of the rows that refer to rows with some keys by a foreign key, and lock them.

    :param to_lock: the tables that the role may lock rows of
    """
    owner = next(source for source in sources if source.live is constraint.referred_table)
    if follower.live.metadata is not owner.live.metadata and not is_there(connection, follower.live):
        return []
    referred = owner.live.alias()
    refers = [element.parent == referred.c[element.column.key] for element in constraint.elements]
    key, dialect = [referred.c[column.key] for column in owner.key], connection.dialect
    is_referred = exists(literal_column("1")).where(*refers, having(key, keys, dialect))
    found = select(*raw(follower.key, dialect)).where(is_referred)
    return list(keys_read(connection, found.with_for_update() if follower.live in to_lock else found))


def lock(connection: Connection, key: Sequence[ColumnElement[Any]], keys: Sequence[Key]) -> list[RawKey]:
    """Lock the rows that have some keys, in their order, and return their raw keys."""
    chosen = select(*raw(key, connection.dialect)).where(having(key, keys, connection.dialect))
    return list(keys_read(connection, chosen.order_by(*key).with_for_update()))


def _present(connection: Connection, table: TrackedTable | Untracked, keys: Sequence[Key]) -> list[Key]:
    """Return those keys that rows of a tracked table have."""
    types = key_types_of(cast("TrackedTable", table), connection.dialect)
    found: list[Key] | None = None
    if len(keys) == 1 or types.go_together or is_raw(keys):
        chosen = select(*types.read(table.key, raw_ones=is_raw(keys)))
        rows = connection.execute(chosen.where(having(table.key, keys, connection.dialect))).all()
        found = types.recognised(keys, rows)
    return [each for key in keys for each in _present(connection, table, [key])] if found is None else found
