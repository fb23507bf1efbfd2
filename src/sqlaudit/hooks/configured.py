"""Which mappers are configured already when a model gets tracked, and have to do with it?

They are found by their tables and by the mappers that they refer to. A search through all mappers for each model would
take a time that grows with the square of their number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import FromClause, inspect
from sqlalchemy.orm import Mapper, RelationshipProperty

_configured: Final[WeakKeyDictionary[Any, WeakSet[Mapper[Any]]]] = WeakKeyDictionary()
"""The configured mappers that are mapped to a table, or have a relationship to a mapper."""
_new: Final[WeakSet[Mapper[Any]]] = WeakSet()


def remember_configured(mapper: Mapper[Any]) -> None:
    """Remember the tables and the relationships of a configured mapper."""
    _new.add(mapper)
    # not mapper.relationships, which still lacks one that has just been added
    relationships = [prop for prop in mapper.iterate_properties if isinstance(prop, RelationshipProperty)]
    for subject in (*mapper.tables, *(relationship.mapper for relationship in relationships)):
        _configured.setdefault(subject, WeakSet()).add(mapper)


def configured_mappers(subjects: Iterable[FromClause | Mapper[Any]]) -> set[Mapper[Any]]:
    """Return the configured mappers that are mapped to one of the tables, or refer to one of the mappers."""
    return _in_use(mapper for subject in subjects for mapper in _configured.get(subject, ()))


def newly_configured_mappers() -> set[Mapper[Any]]:
    """Return the mappers that have been configured, or have got attributes, since the last call."""
    mappers = _in_use(_new)
    _new.clear()
    return mappers


def _in_use(mappers: Iterable[Mapper[Any]]) -> set[Mapper[Any]]:
    return {mapper for mapper in mappers if inspect(mapper.class_, raiseerr=False) is mapper}
