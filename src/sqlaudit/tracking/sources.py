"""Which tracked models does a base have, and by which names do people call them?

A source is a tracked class or an association table: what a reader reads.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from sqlalchemy import MetaData, Table
from sqlalchemy.orm import Mapper

from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.models import tracked_model
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.tables import TrackedTable, known_metadata, tracked_table


def sources_in(part: Any) -> list[Any]:
    """Return the tracked classes and association tables of a declarative base, a registry, a MetaData or a module.

    Of a tracked class or an association table, it is the only one.
    """
    parts = vars(part).values() if isinstance(part, ModuleType) else [part]
    return list(dict.fromkeys(source for each in parts for source in _sources_in(each)))


def _sources_in(part: Any) -> list[Any]:
    mapper = getattr(part, "__mapper__", None)
    if isinstance(mapper, Mapper):
        return [part] if tracked_model(mapper) is not None else []
    if isinstance(part, Table):
        table = tracked_table(part)
        return [] if table is None or table.live is not part else [_source_of(table)]
    metadata = part if isinstance(part, MetaData) else getattr(part, "metadata", None)
    if not isinstance(metadata, MetaData):
        return []
    return [_source_of(table) for table in tracked_tables(metadata)]


def all_sources() -> list[Any]:
    """Return all tracked classes and association tables of the process; of a hierarchy of classes, the base class."""
    sources = []
    for metadata in known_metadata():
        find_association_tables(metadata)
        tables = tracked_tables(metadata)
        sources += [_source_of(each) for each in tables if each.mapper is None or tracked_model(each.mapper)]
    return list(roots(sources))


def roots(sources: list[Any]) -> list[Any]:
    """Return the association tables, and of the classes the base classes of their hierarchies."""
    models = (model_of(source) for source in sources)
    found = (model.table.live if model.table.is_association else model.root.mapper.class_ for model in models)
    return list(dict.fromkeys(found))


def _source_of(table: TrackedTable) -> Any:
    return table.live if table.is_association or table.mapper is None else table.mapper.class_


def name_of(source: Any) -> str:
    """Return the full name of a source's live table."""
    return model_of(source).table.live.fullname


def other_names_of(source: Any) -> list[str]:
    """Return the further names by which people call a source: those of its table and class, and its label."""
    if isinstance(source, Table):
        return [source.name]
    model = model_of(source)
    return [model.table.live.name, model.name, model.label]
