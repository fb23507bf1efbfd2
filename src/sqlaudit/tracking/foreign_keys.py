"""Which tables does the database change on its own, when rows of which others go, or get other keys?

Foreign keys say so: ``ON DELETE CASCADE``, ``SET NULL``, ``ON UPDATE CASCADE`` … A table without history counts if
tracked rows follow its own, at once or by way of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Column, Table
from sqlalchemy.exc import NoReferencedTableError
from sqlalchemy.sql.schema import ForeignKeyConstraint

from sqlaudit.tracking.tables import TrackedTable, tracked_table, unread

_FOLLOWING: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
# Not in the info of tables without history, which Alembic would render.
_links: Final[WeakKeyDictionary[Table, WeakKeyDictionary[ForeignKeyConstraint, None]]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class FollowedTable:
    """A table without history whose rows tracked ones follow; it answers what a tracked one does."""

    live: Table
    is_association: ClassVar[bool] = False
    chains: ClassVar[tuple[Chain, ...]] = ()

    @property
    def key(self) -> tuple[Column[Any], ...]:
        """The primary key, or where there is none the columns that others refer to, which may be NULL."""
        return tuple(self.live.primary_key) or tuple(sorted(referred_columns((self,)), key=lambda column: column.name))


Source = TrackedTable | FollowedTable
Chain = tuple[TrackedTable, ...]
Sources = tuple[Source, ...]


def followers_of(sources: Sources) -> list[tuple[Source, ForeignKeyConstraint]]:
    """Return the tables whose rows the database changes on its own with those of some tables, and their links."""
    own = dict.fromkeys(source.live for source in sources)
    return [
        (tracked_table(link.table) or FollowedTable(link.table), link)
        for live in own
        for link in _links_to(live)
        if link.table not in own or link.table is live  # a table of a subclass goes with that of its base
    ]


def referred_columns(sources: Sources) -> set[Column[Any]]:
    """Return the columns that rows which the database changes on its own refer to."""
    return {element.column for _, link in followers_of(sources) for element in link.elements}


def untracked_source(table: Table) -> FollowedTable | None:
    """Return a table without history whose rows tracked ones follow."""
    links = _links_to(table)
    return FollowedTable(links[0].referred_table) if links and tracked_table(table) is None else None


def untracked_sources() -> Iterator[FollowedTable]:
    """Yield all tables without history whose rows tracked ones follow."""
    _read_new()
    yield from filter(None, map(untracked_source, list(_links)))


def _links_to(table: Table) -> list[ForeignKeyConstraint]:
    """Return the foreign keys by which rows follow those of a table, in the order in which they are locked."""
    _read_new()
    links = _links.get(table)
    return [link for each in links.keyrefs() if (link := each()) is not None] if links else []


def _read_new() -> None:
    """Let tables know by which foreign keys others follow them, those of other MetaData too, once these are tracked."""
    for new in tuple(unread):
        tracked = new()
        if tracked is None or tracked_table(tracked.live) is not tracked or _read(tracked.live):
            unread.discard(new)


def _read(live: Table) -> bool:
    """Read whom the rows of a table follow, at once or by way of tables without history; tell if all are known yet."""
    todo, seen, is_complete = [live], {live}, True
    while todo:
        for link in _own_links(todo.pop()):
            try:
                referred = link.referred_table
            except NoReferencedTableError:
                is_complete = False
                continue
            _links.setdefault(referred, WeakKeyDictionary())[link] = None
            if referred not in seen and tracked_table(referred) is None:
                seen.add(referred)
                todo.append(referred)
    return is_complete


def _own_links(table: Table) -> list[ForeignKeyConstraint]:
    """Return the foreign keys by which the rows of a table follow others."""
    tracked = tracked_table(table)
    is_link = tracked is not None and tracked.is_association
    followed = [link for link in table.foreign_key_constraints if is_link or not _FOLLOWING.isdisjoint(_rules_of(link))]
    return sorted(followed, key=lambda link: tuple(link.column_keys))


def _rules_of(constraint: ForeignKeyConstraint) -> Iterable[str]:
    return ((constraint.ondelete or "").upper(), (constraint.onupdate or "").upper())
