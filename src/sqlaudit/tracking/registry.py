"""Which tables are tracked? The tables of models, and the association tables between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    Column,
    MetaData,
    Table,
)
from sqlalchemy.orm import Mapper, registry
from sqlalchemy.orm.mapper import _all_registries

from sqlaudit.tracking.tables import INFO_KEY, TrackedTable, tracked_table


def track_secondary(
    secondary: Table, columns: Iterable[Column[Any]], mapper: Mapper[Any], *, append_only: bool = False
) -> TrackedTable:
    """Give an association table a history table.

    :param columns: the columns that refer to the two sides: the key, if the table has no primary key
    :param append_only: whether the history of one side is append-only
    """
    tracked = tracked_table(secondary)
    if tracked is None or tracked.is_obsolete:
        key = secondary.primary_key or columns
        tracked = TrackedTable(secondary, key, is_association=True, mapper=mapper, append_only=append_only)
    return tracked


def tracked_tables(metadata: MetaData) -> list[TrackedTable]:
    """Return the tracked tables of a MetaData."""
    return [
        tracked
        for table in metadata.tables.values()
        if (tracked := tracked_table(table)) is not None and tracked.live is table
    ]


def find_association_tables(metadata: MetaData) -> None:
    """Configure the mappers of a MetaData's tracked models, so that the association tables between them get tracked.

    A mapper cannot be configured while a class that it refers to is not mapped. It is left unchanged: nothing can be
    written through its relationships before they are configured.
    """
    for mapper_registry in list(metadata.info.get(INFO_KEY, ())):
        try:
            mapper_registry.configure(cascade=True)
        except Exception as error:
            _allow_another_configuration(error)


def _allow_another_configuration(error: Exception) -> None:
    """Let mappers be configured again that failed, because sqlaudit tried earlier than the user would have."""
    for mapper in [mapper for mapper_registry in _all_registries() for mapper in mappers_of(mapper_registry)]:
        if mapper._configure_failed is error:
            del mapper._configure_failed
            for prop in mapper._props.values():
                prop._configure_started = prop._configure_finished


def mappers_of(mapper_registry: registry) -> list[Mapper[Any]]:
    """Return the mappers of a registry. ``registry.mappers`` raises while one of its classes is not mapped."""
    return [manager.mapper for manager in list(mapper_registry._managers) if manager.is_mapped]
