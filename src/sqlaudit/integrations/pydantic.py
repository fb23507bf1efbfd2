"""How does a history look to readers of the API of an application? Models of pydantic, with each field described.

.. code-block:: python

    @app.get("/tickets/{number}/history", response_model=list[FieldChangeModel])
    def history(number: int, session: OpenSession):
        return get_resource_changes(Ticket, session, filter_resource_ids=number)

Derive from them to add, rename or leave out fields. What sqlaudit returns needs no model: FastAPI takes it as it is,
and its JSON is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Generic, TypeVar
from uuid import UUID

from sqlalchemy import inspect

from sqlaudit.changes import Operation
from sqlaudit.context import Actor, ActorType
from sqlaudit.exceptions import MissingPackageError
from sqlaudit.tracking.history import Version, history_class_of, load_expired
from sqlaudit.tracking.links import Readable, model_of
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.value_types import value_types
from sqlaudit.wire import IN_JSON, Value

try:
    from pydantic import BaseModel, ConfigDict, Field, WrapValidator, computed_field, create_model, model_validator
except ImportError as error:
    raise MissingPackageError(__name__, "pydantic", "pydantic") from error

T = TypeVar("T")

_ROW: Final = "The kind of row or link that this is about."
_KEY: Final = "The primary key of the row; a list if it has several columns."
_VALUES: Final = "For each field that differs, a list of two: the value before and the value after."


class _Model(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


class _ActorModel(_Model, Actor):
    changed_by: str | None = Field(description="The user who made the change; null if no user is known.")
    impersonated_by: str | None = Field(description="The user who really acted, if changed_by was impersonated.")
    reason: str | None = Field(description="Why the change was made.")
    extra: Value = Field(description="What else is known of the circumstances, such as the id of the request.")

    @computed_field(  # type: ignore[prop-decorator]  # mypy knows no decorated properties
        description="The kind of actor: user, service, agent, system or anonymous; null if it is not known."
    )
    @property
    def actor_type(self) -> ActorType | None:
        return super().actor_type

    @computed_field(  # type: ignore[prop-decorator]  # as above
        description="The user for whom the actor worked; null if it worked for nobody else."
    )
    @property
    def on_behalf_of(self) -> str | None:
        return super().on_behalf_of

    @computed_field(  # type: ignore[prop-decorator]  # as above
        description="The run of an agent or a job in which the change was made."
    )
    @property
    def run_id(self) -> str | None:
        return super().run_id


class _VersionModel(_ActorModel):
    version: int = Field(description="The number of the version in the history of its row, from 1.")
    timestamp: datetime = Field(description="When the change was made, in UTC.")
    operation: Operation = Field(description="What was done to the row.")
    changeset_id: UUID = Field(
        description="The transaction that made the change. What was changed together has the same id."
    )


class FieldChangeModel(_VersionModel):
    """One change of one field of a row: who changed it, when, from what, to what, and why."""

    resource_type: str = Field(description=_ROW)
    resource_id: Value = Field(description="The id of the row; a list if it has several parts.")
    field_name: str = Field(description="The name of the field.")
    old_value: Value = Field(description="The value before the change; null if the row was created.")
    new_value: Value = Field(description="The value after the change; null if the row was deleted.")


class BlameModel(_VersionModel):
    """The value of one field, and who set it, when and why."""

    value: Value = Field(description="The value of the field.")
    unknown_before: bool = Field(False, description="The value may be older than this version; nobody is named then.")
    unknown_after: bool = Field(False, description="The value may have been changed since; nobody is named then.")


class ChangesetModel(_ActorModel):
    """All changes of one transaction: who made them, when and why."""

    changeset_id: UUID = Field(description="The id of the transaction.")
    timestamp: datetime = Field(description="When the changes were made, in UTC.")
    tables: tuple[str, ...] = Field(description="The names of the tables whose rows were changed.")


class ConflictModel(_Model):
    """A later change, which would be lost if an earlier one were undone."""

    resource_type: str = Field(description=_ROW)
    key: Value = Field(description=_KEY)
    fields: tuple[str, ...] = Field((), description="The fields that were changed later; none for the whole row.")
    changed_by: str | None = Field(None, description="The user who made the later change; null if none is known.")
    timestamp: datetime | None = Field(None, description="When the later change was made, in UTC; null if unknown.")
    changeset_id: UUID | None = Field(None, description="The transaction of the later change; null if unknown.")


class RestoredModel(_Model):
    """What was done to one row or link to make it again what it was."""

    operation: Operation = Field(description="What was done: insert if the row came back, delete if it was deleted.")
    resource_type: str = Field(description=_ROW)
    key: Value = Field(description=_KEY)
    fields: Mapping[str, tuple[Value, Value]] = Field(description=_VALUES)


class RestoreReportModel(_Model):
    """What was done, or would be done, to make rows again what they were."""

    items: tuple[RestoredModel, ...] = Field(description="Each row or link that is concerned.")
    conflicts: tuple[ConflictModel, ...] = Field((), description="The later changes that are lost.")


class RowDiffModel(_Model):
    """What differs between two states of a row."""

    resource_type: str = Field(description=_ROW)
    resource_id: Value = Field(description="The id of the row; a list if it has several parts.")
    operation: Operation | None = Field(
        description="What leads from the old state to the new one: insert, update or delete; null if nothing differs."
    )
    fields: Mapping[str, tuple[Value, Value]] = Field(description=_VALUES)
    is_unknown: bool = Field(False, description="The row was changed, but what differs is not known any more.")


class MarkModel(_Model):
    """An instant that has a name."""

    name: str = Field(description="The name of the instant.")
    at: datetime = Field(description="The instant, in UTC.")
    changed_by: str | None = Field(None, description="The user who named it; null if no user is known.")


class PageModel(_Model, Generic[T]):
    """A part of a longer list."""

    items: list[T] = Field(description="The items of this page, in the order of the list.")
    next: str | None = Field(description="The cursor of the next page; null on the last page.")
    total: int | None = Field(None, description="The number of items of all pages; null if it was not asked for.")


# --- versions ---------------------------------------------------------------------------------------------------

_AUDIT_COLUMNS: Final = {
    "version": "The number of the version in the history of its row, from 1.",
    "valid_from": "The instant from which the row was like this, in UTC.",
    "valid_to": "The instant until which the row was like this, in UTC; 9999-12-31T00:00:00Z if it still is.",
    "operation": "What made the version.",
    "changeset_id": "The transaction that made the version. What was changed together has the same id.",
    "changed_by": "The user who made the version; null if no user is known.",
    "impersonated_by": "The user who really acted, if the user was impersonated.",
    "reason": "Why the change was made.",
    "extra": "What else is known of the circumstances, such as the id of the request.",
}


_UNCHECKED: Final = WrapValidator(lambda value, handler: value)


def version_model(model_class: Readable) -> type[BaseModel]:
    """Return a pydantic model of the versions of a tracked model: ``TicketVersion`` for ``Ticket``.

    It has the attributes of the versions. Their descriptions are those of the fields of an SQLModel, or the ``doc`` or
    ``comment`` of the columns. Values are not validated: some may be older than the type that their column has now.

    :param model_class: a tracked model; or an association table or a relationship
    :raises TrackingError: the model or table is not tracked
    """
    model = model_of(model_class)
    mapper = inspect(history_class_of(model))
    descriptions = _descriptions_of(model)
    fields: dict[str, Any] = {
        name: (Annotated[type_, _UNCHECKED, IN_JSON], Field(description=descriptions.get(name)))
        for name, type_ in value_types(mapper, model).items()
    }
    name = f"{model.name}Version"
    doc = f"A {model.label} as it was for some time."
    return create_model(name, __base__=_ModelOfVersions, __doc__=doc, **fields)


class _ModelOfVersions(_Model):
    @model_validator(mode="before")
    @classmethod
    def _load_expired(cls, value: Any) -> Any:
        if isinstance(value, Version):
            load_expired(value)
        return value


def _descriptions_of(model: TrackedModel) -> dict[str, str | None]:
    of_fields: Mapping[str, Any] = getattr(model.mapper.class_, "model_fields", {})
    live_columns: dict[Any, Any] = {old: live for table in model.chain for live, old in table.columns}
    descriptions = {
        name: getattr(of_fields.get(name), "description", None) or live_columns[old].doc or live_columns[old].comment
        for name, old in model.columns.items()
    }
    return descriptions | {name: _AUDIT_COLUMNS[role] for role, name in model.table.names.items()}
