"""Which tables does the database change on its own when a row of another table is deleted or gets another key?

A row *follows* another if a foreign key action changes it with the other: ``ON DELETE CASCADE``, ``SET NULL``, ``ON
UPDATE CASCADE`` … A table without history counts if tracked rows follow its rows, directly or through other tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Column, Table
from sqlalchemy.exc import NoReferencedTableError
from sqlalchemy.sql.schema import ForeignKeyConstraint

from sqlaudit.tracking.tables import TrackedTable, tracked_table, unread

_FOLLOWING: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
_generation: Final = [object()]  # another one when foreign keys have been read
# Not in table.info: Alembic would render the info of tables without history.
_links: Final[WeakKeyDictionary[Table, WeakKeyDictionary[ForeignKeyConstraint, None]]] = WeakKeyDictionary()
_newly_followed: Final[WeakSet[Table]] = WeakSet()


@dataclass(frozen=True, slots=True)
class FollowedTable:
    """A table without history whose rows are followed by tracked rows; a :data:`Source` like a tracked table."""

    live: Table
    is_association: ClassVar[bool] = False
    chains: ClassVar[tuple[Chain, ...]] = ()

    @property
    def key(self) -> tuple[Column[Any], ...]:
        """The primary key; without one, the columns that foreign keys refer to, which may be NULL."""
        return tuple(self.live.primary_key) or tuple(sorted(referred_columns((self,)), key=lambda column: column.name))


Source = TrackedTable | FollowedTable
Chain = tuple[TrackedTable, ...]
Sources = tuple[Source, ...]


def followers_of(sources: Sources) -> list[tuple[Source, ForeignKeyConstraint]]:
    """Return the tables whose rows follow rows of the given tables, each with its foreign key."""
    own = dict.fromkeys(source.live for source in sources)
    return [
        (tracked_table(link.table) or FollowedTable(link.table), link)
        for live in own
        for link in _links_to(live)
        if link.table not in own or link.table is live or not _leads_to_base(link)
    ]


def _leads_to_base(link: ForeignKeyConstraint) -> bool:
    """Tell whether a foreign key between two tables of one object is that by which a subclass has the base's key."""
    return {element.parent for element in link.elements} == set(link.table.primary_key)


def referred_columns(sources: Sources) -> frozenset[Column[Any]]:
    """Return the columns of the given tables to which the foreign keys of their followers refer."""
    _read_new_tables()
    kept = sources[-1].cache if sources and isinstance(sources[-1], TrackedTable) else {}
    key = (referred_columns, *sources)
    if key not in kept or kept[key][0] is not _generation[0]:
        found = frozenset(element.column for _, link in followers_of(sources) for element in link.elements)
        kept[key] = (_generation[0], found)
    columns: frozenset[Column[Any]] = kept[key][1]
    return columns


def untracked_source(table: Table) -> FollowedTable | None:
    """Return a table as a followed table, or ``None`` if it is tracked or no tracked rows follow its rows."""
    links = _links_to(table)
    return FollowedTable(links[0].referred_table) if links and tracked_table(table) is None else None


def untracked_sources() -> Iterator[FollowedTable]:
    """Yield all tables without history whose rows are followed by tracked rows."""
    _read_new_tables()
    yield from filter(None, map(untracked_source, list(_links)))


def newly_followed_tables() -> set[Table]:
    """Return the tables whose rows are followed by a foreign key that was read since the last call."""
    _read_new_tables()
    tables = {*_newly_followed}
    _newly_followed.clear()
    return tables


def _links_to(table: Table) -> list[ForeignKeyConstraint]:
    """Return the foreign keys by which rows follow rows of a table, in the order in which sqlaudit locks the rows."""
    _read_new_tables()
    links = _links.get(table)
    return [link for link_reference in links.keyrefs() if (link := link_reference()) is not None] if links else []


def _read_new_tables() -> None:
    """Read the foreign keys of newly tracked tables. A table stays unread while it refers to an undefined table."""
    for new, undefined in tuple(unread.items()):
        tracked = new()
        if tracked is None or tracked_table(tracked.live) is not tracked:
            del unread[new]
        elif not undefined or undefined in tracked.live.metadata.tables:
            unread[new] = _read_foreign_keys(tracked.live)
            if unread[new] is None:
                del unread[new]
        else:
            continue
        _generation[0] = object()


def _read_foreign_keys(live: Table) -> str | None:
    """Read which tables the rows of a table follow, directly or through tables without history.

    :return: the key of an undefined table to which their foreign keys refer, ``""`` if it belongs to another MetaData,
        or ``None``
    """
    todo, seen = [live], {live}
    undefined: str | None = None
    while todo:
        for link in _links_of(todo.pop()):
            try:
                referred = link.referred_table
            except NoReferencedTableError as error:
                undefined = error.table_name if link.table.metadata is live.metadata else ""
                continue
            _newly_followed.add(referred)
            _links.setdefault(referred, WeakKeyDictionary())[link] = None
            if referred not in seen and tracked_table(referred) is None:
                seen.add(referred)
                todo.append(referred)
    return undefined


def _links_of(table: Table) -> list[ForeignKeyConstraint]:
    """Return the foreign keys by which rows of a table follow others: all, for an association table."""
    tracked = tracked_table(table)
    is_link = tracked is not None and tracked.is_association
    followed = [
        link for link in table.foreign_key_constraints if is_link or not _FOLLOWING.isdisjoint(_actions_of(link))
    ]
    return sorted(followed, key=lambda link: tuple(link.column_keys))


def _actions_of(constraint: ForeignKeyConstraint) -> Iterable[str]:
    return ((constraint.ondelete or "").upper(), (constraint.onupdate or "").upper())
