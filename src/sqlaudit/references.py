"""Which tables does the database change on its own, when rows of which others go, or get other keys?

Foreign keys say so: ``ON DELETE CASCADE``, ``SET NULL``, ``ON UPDATE CASCADE`` … A table without history counts if
tracked rows follow its own, at once or by way of others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Column, MetaData, Table
from sqlalchemy.exc import NoReferencedTableError
from sqlalchemy.sql.schema import ForeignKeyConstraint

from sqlaudit.tables import INFO_KEY, TrackedTable, tracked_table

_FOLLOWING: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
_REFERENCES: Final = "sqlaudit_references"


@dataclass(frozen=True, slots=True)
class Untracked:
    """A table without history whose rows tracked ones follow; it answers what a tracked one does."""

    live: Table
    is_association: bool = field(default=False, init=False)
    chains: tuple[Chain, ...] = field(default=(), init=False)

    @property
    def key(self) -> tuple[Column[Any], ...]:
        """The primary key, or where there is none the columns that others refer to, which may be NULL."""
        return tuple(self.live.primary_key) or tuple(sorted(referred_columns((self,)), key=lambda column: column.name))


Source = TrackedTable | Untracked
Chain = tuple[TrackedTable, ...]
Sources = tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class _References:
    """Those of a MetaData.

    :ivar count: how many tables it had
    :ivar followers: the tables that follow a table, and by which foreign key
    :ivar untracked: the tables without history that are followed
    """

    count: int
    followers: dict[Table, list[tuple[Source, ForeignKeyConstraint]]]
    untracked: dict[Table, Untracked]


def followers_of(sources: Sources) -> list[tuple[Source, ForeignKeyConstraint]]:
    """Return the tables whose rows the database changes on its own with those of some tables, and their links."""
    own = dict.fromkeys(source.live for source in sources)
    followers = _references_in(sources[0].live.metadata).followers
    return [
        (follower, constraint)
        for live in own
        for follower, constraint in followers.get(live, ())
        if follower.live not in own or follower.live is live  # a table of a subclass goes with that of its base
    ]


def referred_columns(sources: Sources) -> set[Column[Any]]:
    """Return the columns that rows which the database changes on its own refer to."""
    return {element.column for _, constraint in followers_of(sources) for element in constraint.elements}


def untracked_source(table: Table) -> Untracked | None:
    """Return a table without history whose rows tracked ones follow."""
    return _references_in(table.metadata).untracked.get(table)


def _references_in(metadata: MetaData) -> _References:
    found: _References | None = metadata.info.get(_REFERENCES)
    if found is None or found.count != len(metadata.tables):
        found = metadata.info[_REFERENCES] = _read(metadata)
    return found


def _read(metadata: MetaData) -> _References:
    edges: dict[Table, list[tuple[Table, ForeignKeyConstraint]]] = defaultdict(list)
    for table in metadata.tables.values():
        for constraint, referred in _followed_by(table):
            edges[referred].append((table, constraint))
    seen = {table for table in metadata.tables.values() if tracked_table(table) is not None}
    grown = True
    while grown:
        more = {table for table, follow in edges.items() if not seen.isdisjoint(each for each, _ in follow)}
        grown = not more <= seen
        seen |= more
    untracked = {table: Untracked(table) for table in seen if tracked_table(table) is None}
    followers = {
        table: [(untracked.get(each) or each.info[INFO_KEY], constraint) for each, constraint in follow if each in seen]
        for table, follow in edges.items()
        if table in seen
    }
    return _References(len(metadata.tables), followers, untracked)


def _followed_by(table: Table) -> Iterator[tuple[ForeignKeyConstraint, Table]]:
    """Yield the foreign keys by which the rows of a table follow others, and the tables of these."""
    tracked = tracked_table(table)
    is_link = tracked is not None and tracked.is_association
    for constraint in table.foreign_key_constraints:
        if is_link or not _FOLLOWING.isdisjoint(_rules_of(constraint)):
            try:
                yield constraint, constraint.referred_table
            except NoReferencedTableError:  # it is not of this MetaData
                continue


def _rules_of(constraint: ForeignKeyConstraint) -> Iterable[str]:
    return ((constraint.ondelete or "").upper(), (constraint.onupdate or "").upper())
