"""Which histories have a retention? Those of models that state one, and of the links between such models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta

from sqlaudit.tracking.models import TrackedModel, root_of, tracked_model
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.retention import Retention
from sqlaudit.tracking.tables import TrackedTable, known_metadata, tracked_table


def retentions() -> dict[TrackedTable, Retention]:
    """Return the retention of each base table and association table that has one.

    An association table has one if the models on both sides have one: it keeps what either of them keeps.
    """
    found: dict[TrackedTable, Retention] = {}
    for metadata in known_metadata():
        find_association_tables(metadata)
        sides: dict[TrackedTable, list[TrackedModel]] = defaultdict(list)
        for table in tracked_tables(metadata):
            if table.is_association or table.mapper is None or tracked_model(table.mapper) is None:
                continue
            root = root_of(table)
            if table is not root.table:
                continue
            if root.options.retention is not None:
                found[table] = root.options.retention
            for model in root.family():
                for relationship in model.mapper.relationships:
                    links, target = tracked_table(relationship.secondary), tracked_model(relationship.mapper)
                    if links is not None and links.is_association and target is not None:
                        sides[links] += [root, target.root]
        for links, models in sides.items():
            stated = [model.options.retention for model in models if model.options.retention is not None]
            if len(stated) == len(models):
                found[links] = _keeping_all(stated)
    return found


def _keeping_all(retentions: Iterable[Retention]) -> Retention:
    """Return the retention that keeps what one of several keeps."""
    several = list(retentions)
    ages: list[timedelta] = [each.age for each in several if each.age is not None]
    counts = [each.keep_last for each in several if each.keep_last is not None]
    return Retention(
        older_than=max(ages, default=None),
        keep_last=max(counts, default=None),
        keep_tombstones=any(each.keep_tombstones for each in several),
    )
