"""Which rows does the database change on its own? Those that refer to rows that go, or get other keys.

Foreign keys say so (``ON DELETE CASCADE``, ``SET NULL``, ``ON UPDATE CASCADE`` …), and nobody tells afterwards what
they did: the rows are found, and locked, before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from sqlalchemy import Column, Connection, Table, and_, select
from sqlalchemy.sql.schema import ForeignKeyConstraint

from sqlaudit.capture import Capture
from sqlaudit.statements import Key, Portionable, chunks, one_of
from sqlaudit.tables import TrackedTable, tracked_tables

Chain = tuple[TrackedTable, ...]
_DELETING: Final = ("CASCADE", "SET NULL", "SET DEFAULT")


def referred_columns(chain: Chain) -> set[Column[Any]]:
    """Return the columns that rows which the database changes on its own refer to."""
    return {element.column for _, constraint in dependents_of(chain) for element in constraint.elements}


class Dependents:
    """The rows that go, or change, with others."""

    def __init__(self) -> None:
        self._found: list[tuple[Capture, list[Key]]] = []

    def find(self, capture: Capture, keys: Portionable[Key]) -> None:
        """Find what depends on rows that are about to be deleted, or to get other keys.

        The rows are locked first, so that no other transaction adds a dependent one meanwhile.
        """
        self._find(capture, keys, set())

    def _find(self, capture: Capture, keys: Portionable[Key], seen: set[tuple[Table, Key]]) -> None:
        chain, connection = capture.chain, capture.connection
        if not (dependents := dependents_of(chain)):
            return
        Capture(connection, capture.changeset, chain).baseline(keys)
        for chunk in chunks(keys):
            parents = select(*chain[0].live.primary_key).where(one_of(chain[0].key, chunk)).with_for_update()
            connection.execute(parents).all()
            for child, constraint in dependents:
                found = _children(connection, chain, child, constraint, chunk)
                children = [key for key in found if (child.live, key) not in seen]
                seen.update((child.live, key) for key in children)
                for child_chain, some in by_chain(connection, child, children):
                    child_capture = Capture(connection, capture.changeset, child_chain, context=capture.context)
                    child_capture.baseline(some)
                    self._found.append((child_capture, some))
                    self._find(child_capture, some, seen)

    def settle(self) -> None:
        """Record what has become of them."""
        for capture, keys in self._found:
            capture.settle(keys)


def record_moved_children(capture: Capture, keys: Sequence[Key]) -> None:
    """Record the rows whose own keys the database changed with those of their parents.

    :param keys: the new keys of the parents
    """
    for child, constraint in dependents_of(capture.chain):
        if not any(element.parent in child.key for element in constraint.elements):
            continue
        for chunk in chunks(keys):
            children = _children(capture.connection, capture.chain, child, constraint, chunk)
            for child_chain, some in by_chain(capture.connection, child, children):
                child_capture = Capture(capture.connection, capture.changeset, child_chain, context=capture.context)
                child_capture.settle(some, inserted=frozenset(some))
                record_moved_children(child_capture, some)


def chains_of(table: TrackedTable) -> list[Chain]:
    """Return the chains of tables that the objects of a hierarchy live in; the first that has a row is its own."""
    return sorted(table.chains, key=len, reverse=True) or [(table,)]


def by_chain(connection: Connection, table: TrackedTable, keys: Sequence[Key]) -> Iterator[tuple[Chain, list[Key]]]:
    """Divide the rows of a table by the tables that their objects live in."""
    remaining = list(keys)
    chains = chains_of(table)
    for chain in chains[:-1]:
        found: set[Key] = set()
        for chunk in chunks(remaining):
            rows = connection.execute(select(*chain[-1].key).where(one_of(chain[-1].key, chunk)))
            found.update(tuple(row) for row in rows)
        if found:
            yield chain, list(found)
        remaining = [key for key in remaining if key not in found]
    if remaining:
        yield chains[-1], remaining


def _children(
    connection: Connection,
    chain: Chain,
    child: TrackedTable,
    constraint: ForeignKeyConstraint,
    keys: Sequence[Key],
) -> list[Key]:
    """Return the keys of the rows that refer to rows of a chain by a foreign key, and lock them."""
    owner = next(table for table in chain if table.live is constraint.referred_table)
    parent = owner.live.alias()
    refers = [element.parent == parent.c[element.column.key] for element in constraint.elements]
    parents = select(parent).where(and_(*refers), one_of([parent.c[column.key] for column in owner.key], keys))
    return [tuple(row) for row in connection.execute(select(*child.key).where(parents.exists()).with_for_update())]


def dependents_of(chain: Chain) -> list[tuple[TrackedTable, ForeignKeyConstraint]]:
    """Return the tracked tables whose rows the database changes on its own with those of a chain, and its links."""
    own = {table.live for table in chain}
    metadata = chain[0].live.metadata
    found = chain[-1].cache.get("dependents")
    if found is None or found[0] != len(metadata.tables):
        found = chain[-1].cache["dependents"] = (
            len(metadata.tables),
            [
                (child, constraint)
                for child in tracked_tables(metadata)
                for constraint in child.live.foreign_key_constraints
                if constraint.referred_table in own
                and not (child.live in own and child.live is not constraint.referred_table)
                and (
                    child.is_association
                    or (constraint.ondelete or "").upper() in _DELETING
                    or (constraint.onupdate or "").upper() in _DELETING
                )
            ],
        )
    return cast("list[tuple[TrackedTable, ForeignKeyConstraint]]", found[1])
