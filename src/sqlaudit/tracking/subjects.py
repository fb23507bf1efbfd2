"""Whose data are the rows of a model? Those of the row that they follow: its ``subject``.

An order with ``track_table(subject="customer_id")`` follows its customer. What follows an order follows the customer,
too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement
from sqlalchemy.orm import RelationshipProperty

from sqlaudit.exceptions import TrackingError
from sqlaudit.tracking.models import TrackedModel, root_of, tracked_model
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.tables import TrackedTable, tracked_table


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """How rows of one hierarchy follow rows of another.

    :ivar model: the topmost model of the rows that follow
    :ivar target: the topmost model of the rows that they follow
    :ivar table: the table that has the columns
    :ivar live: the live columns that refer to the key of the target, in its order
    :ivar old: the history columns
    """

    model: TrackedModel
    target: TrackedModel
    table: TrackedTable
    live: tuple[Column[Any], ...]
    old: tuple[Column[Any], ...]


def subjects_of_metadata(model: TrackedModel) -> list[Subject]:
    """Return the subjects of all models in the MetaData of a model.

    :raises TrackingError: a subject is not what it has to be
    """
    metadata = model.table.live.metadata
    find_association_tables(metadata)  # configures the mappers
    roots = {root_of(table): None for table in tracked_tables(metadata) if _has_model(table)}
    found: dict[tuple[Column[Any], ...], Subject] = {}
    for each in (submodel for root in roots for submodel in root.family()):
        if each.options.subject is not None:
            subject = _subject(each, each.options.subject)
            found.setdefault(subject.old, subject)
    return list(found.values())


def _has_model(table: TrackedTable) -> bool:
    return not table.is_association and table.mapper is not None and tracked_model(table.mapper) is not None


def personal_names(model: TrackedModel) -> set[str]:
    """Return the fields of a hierarchy that its models declare personal."""
    return {name for submodel in model.family() for name in submodel.options.personal}


def _subject(model: TrackedModel, name: str) -> Subject:
    """Return what the ``subject`` of a model stands for.

    :raises TrackingError: it refers to no row of a tracked model by its key
    """
    prop = model.mapper.get_property(name)
    if isinstance(prop, RelationshipProperty):
        pairs = prop.local_remote_pairs if prop.direction.name == "MANYTOONE" else []
    else:
        pairs = _referred_by(model.mapper.columns[name])
    target = tracked_table(pairs[0][1].table) if pairs else None
    table = tracked_table(pairs[0][0].table) if pairs else None
    if table is None or target is None or target.is_association or {remote for _, remote in pairs} != {*target.key}:
        raise TrackingError(
            f"{model.name}.{name} is the subject of {model.name}, and does not refer to a row of a tracked model by "
            "its primary key. Name a column with such a foreign key, or a many-to-one relationship.",
            model.mapper.class_,
        )
    referring = {remote: local for local, remote in pairs}
    live: tuple[Any, ...] = tuple([referring[column] for column in target.key])
    not_stored = {*table.exclude, *table.redact}
    if unknown := [column.name for column in live if column.table is not table.live or column.name in not_stored]:
        raise TrackingError(
            f"{model.name} has the subject {name!r}, and its versions do not store {', '.join(unknown)}, so nothing "
            "tells which row they followed. Remove it from exclude and redact.",
            model.mapper.class_,
        )
    return Subject(model.root, root_of(target), table, live, tuple([table.history.c[column.key] for column in live]))


def _referred_by(column: ColumnElement[Any]) -> Sequence[tuple[Column[Any], Column[Any]]]:
    """Return the columns of the foreign key that has a column, each with the column that it refers to."""
    constraints: Iterable[Any] = [key.constraint for key in column.foreign_keys if key.constraint is not None]
    tracked = [each for each in constraints if tracked_table(each.referred_table) is not None]
    return [(element.parent, element.column) for element in tracked[0].elements] if len(tracked) == 1 else []
