"""What does a reader read? A model, or the links and rows that a relationship of a model leads to.

A link is a row of an association table. It is read like a row of a model, by a :class:`LinkModel`: no class is mapped
to its table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapped, Mapper, QueryableAttribute, RelationshipProperty, class_mapper

from sqlaudit.exceptions import QueryError, TrackingError
from sqlaudit.tracking.models import (
    Options,
    TrackedModel,
    attribute_of,
    root_of,
    tracked_model,
    tracked_model_of,
    tracked_table_of,
)
from sqlaudit.tracking.tables import TrackedTable, tracked_table

Readable = type[Any] | Table | Mapped[Any]
"""What has a history: a tracked model, a tracked table, or a relationship such as ``User.roles``.

A relationship is a ``QueryableAttribute``, which is a ``Mapped``. Type checkers take ``col(User.roles)``, of SQLModel,
for a ``Mapped``.
"""


class LinkModel(TrackedModel):
    """An association table, read as if it were a model. Its mapper is that of a model at one side."""

    def __init__(self, table: TrackedTable) -> None:
        self.mapper = cast("Mapper[Any]", table.mapper)
        self.options = Options()
        self.is_decorated = False
        self.parent = None
        self.table = table
        self.history_class = None
        self.has_grown = False

    @property
    def name(self) -> str:
        return self.table.live.name

    @property
    def qualname(self) -> str:
        return self.table.live.name

    @property
    def label(self) -> str:
        return self.table.live.fullname

    @property
    def identity(self) -> None:
        return None

    @property
    def discriminator(self) -> None:
        return None

    @property
    def key_names(self) -> list[str]:
        return [column.key for column in self.table.key]

    @property
    def columns(self) -> dict[str, Column[Any]]:  # not cached: the table may gain columns
        return {live.key: column for live, column in self.table.columns}

    def family(self) -> list[TrackedModel]:
        return [self]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Related:
    """What a relationship of a model leads to: links, or the rows that refer to the owner.

    :ivar name: the name of the relationship
    :ivar owner: the model that has the relationship
    :ivar model: what holds the links or rows
    :ivar owner_key: the history columns that refer to the owner, in the order of its key
    :ivar other_key: for links, the history columns that refer to the other side; else empty
    """

    name: str
    owner: TrackedModel
    model: TrackedModel
    owner_key: tuple[Column[Any], ...]
    other_key: tuple[Column[Any], ...]

    @property
    def has_links(self) -> bool:
        return bool(self.other_key)

    @property
    def ends(self) -> tuple[Column[Any], ...]:
        """The history columns that refer to the owner and, for links, to the other side."""
        return (*self.owner_key, *self.other_key)

    @property
    def may_move(self) -> bool:
        """Whether a link or row may lead to another owner or other side and keep its key."""
        return not set(self.model.root.table.history_key).issuperset(self.ends)


def model_of(source: Readable) -> TrackedModel:
    """Return what reads a source.

    :raises TrackingError: the source has no history
    :raises QueryError: the source is an attribute that leads to no rows of its own
    """
    if isinstance(source, Table):
        return _model_of_table(source)
    if isinstance(source, QueryableAttribute):
        return related_by(source).model
    return tracked_model_of(cast("type[Any]", source))


def _model_of_table(live: Table) -> TrackedModel:
    table = tracked_table_of(live)
    return _link_model(table) if table.is_association else root_of(table)


def _link_model(table: TrackedTable) -> LinkModel:
    if table.link_model is None:
        table.link_model = LinkModel(table)
    model: LinkModel = table.link_model
    return model


def related_by(attribute: QueryableAttribute[Any]) -> Related:
    """Return what a relationship leads to.

    :raises TrackingError: a class, or the association table, is not tracked
    :raises QueryError: it is no relationship, it leads from a row to the one that it refers to, or not by the key
    """
    mapper, prop = attribute.parent.mapper, attribute.property
    owner = tracked_model_of(mapper.class_)
    class_mapper(mapper.class_)  # configures it
    name = f"{mapper.class_.__name__}.{attribute.key}"
    if not isinstance(prop, RelationshipProperty):
        raise QueryError(f"{name} is not a relationship. Give the model, a table or a relationship.", attribute)
    kept = owner.root.table.cache
    if (Related, prop) not in kept:
        kept[Related, prop] = _related(owner, prop, name)
    related: Related = kept[Related, prop]
    return related


def related_names(owner: TrackedModel, names: str | Iterable[str]) -> list[Related]:
    """Return what relationships of a model lead to, by their names.

    :raises QueryError: the model has no such relationship
    """
    chosen = [names] if isinstance(names, str) else list(names)
    known = {prop.key for prop in owner.mapper.relationships}
    if unknown := [name for name in chosen if name not in known]:
        raise QueryError(
            f"{owner.name} has no relationship {', '.join(map(repr, unknown))}. It has "
            f"{', '.join(sorted(known)) or 'none'}.",
            unknown,
        )
    return [related_by(getattr(owner.mapper.class_, name)) for name in dict.fromkeys(chosen)]


def _related(owner: TrackedModel, prop: RelationshipProperty[Any], name: str) -> Related:
    target = tracked_model(prop.mapper)
    if target is None:
        raise TrackingError(
            f"{name} leads to {prop.mapper.class_.__name__}, which is not tracked. Decorate it with @track_table().",
            prop.mapper.class_,
        )
    if prop.secondary is None and prop.direction.name == "MANYTOONE":
        raise QueryError(
            f"{name} refers to one row of {target.name}, whose history does not belong to {owner.name}. Read "
            f"{target.name}.",
            prop,
        )
    owner_key = _in_order_of_key(owner, prop.synchronize_pairs, name)
    if prop.secondary is None:
        return Related(name=prop.key, owner=owner, model=target, owner_key=owner_key, other_key=())
    pairs = prop.secondary_synchronize_pairs or ()
    return Related(
        name=prop.key,
        owner=owner,
        model=_model_of_table(cast("Table", prop.secondary)),
        owner_key=owner_key,
        other_key=_in_order_of_key(target, pairs, name),
    )


def _in_order_of_key(model: TrackedModel, pairs: Iterable[tuple[Any, Any]], name: str) -> tuple[Column[Any], ...]:
    """Return the history columns that hold the key of a model, in its order.

    :param pairs: columns of the model, each with the column that refers to it
    """
    referring = {attribute_of(model.mapper, column): other for column, other in pairs}
    tables = {other: tracked_table(other.table) for other in referring.values()}
    stored = {other: table for other, table in tables.items() if table is not None and other.key in table.history.c}
    if referring.keys() != set(model.key_names) or len(stored) < len(tables):
        raise QueryError(
            f"{name} does not lead to its rows by the key of {model.name}, so its links and rows cannot be found by "
            "that key. Read the table or the model that holds them.",
            name,
        )
    found = (referring[key_name] for key_name in model.key_names)
    return tuple([stored[column].history.c[column.key] for column in found])
