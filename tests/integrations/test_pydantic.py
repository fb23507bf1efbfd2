"""The models of pydantic say the same as what they are models of, and describe each field."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, TypeAdapter, create_model
from sqlalchemy.orm import Mapped, Session, mapped_column, sessionmaker
from sqlmodel import Field, SQLModel

import sqlaudit
from sqlaudit import (
    AuditContextManager,
    UndoConflictError,
    blame,
    changes_page,
    changesets,
    diff,
    get_resource_changes,
    track_table,
    undo,
    versions_of,
)
from sqlaudit.integrations import pydantic
from sqlaudit.integrations.pydantic import (
    BlameModel,
    ChangesetModel,
    ConflictModel,
    FieldChangeModel,
    PageModel,
    RestoreReportModel,
    RowDiffModel,
    version_model,
)
from sqlaudit.wire import json_value


class Base(sa.orm.DeclarativeBase):
    pass


@track_table()
class Ticket(Base):
    """A ticket, with values that JSON cannot express."""

    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2), doc="What it costs.")
    content: Mapped[bytes | None] = mapped_column(comment="What was attached.")
    ratio: Mapped[float | None]


def happen(sessions: sessionmaker[Session]) -> None:
    agent = AuditContextManager(user_id="bot", actor_type="agent", on_behalf_of="ben", run_id="r-1")
    with agent, sessions.begin() as session:
        session.add(Ticket(id=1, price=Decimal("1.50"), content=b"\xff", ratio=0.5))
    with sessions.begin() as session:
        session.get_one(Ticket, 1).price = Decimal(2)


def answering(value: Any) -> Callable[[], Any]:
    return lambda: value


def conflicts(session: Session) -> list[Any]:
    with pytest.raises(UndoConflictError) as refused:
        undo(session, changesets(session)[0].changeset_id)
    return list(refused.value.conflicts)


def test_each_model_has_the_fields_of_what_it_is_a_model_of() -> None:
    named = [value for name, value in vars(pydantic).items() if name[0] != "_" and isinstance(value, type)]
    models = [model for model in named if issubclass(model, BaseModel)]
    models.remove(BaseModel)
    for model in models:
        report = getattr(sqlaudit, model.__name__.removesuffix("Model"))
        assert model.model_fields.keys() == {field.name for field in fields(report)}, model
    assert len(models) == 9


@pytest.mark.spread
def test_a_model_gives_the_json_of_what_it_is_a_model_of(happened: Any, session: Session) -> None:
    last = changesets(session)[-1].changeset_id
    answers: dict[str, tuple[Any, Any]] = {
        "/changes": (list[FieldChangeModel], get_resource_changes(Ticket, session)),
        "/page": (PageModel[FieldChangeModel], changes_page(session, Ticket, size=1, count=True)),
        "/changesets": (list[ChangesetModel], changesets(session)),
        "/blame": (dict[str, BlameModel], blame(session, Ticket, 1)),
        "/conflicts": (list[ConflictModel], conflicts(session)),
        "/undo": (RestoreReportModel, undo(session, last, dry_run=True)),
        "/diff": (RowDiffModel, diff(session, Ticket, 1, 1, 2)),
        "/versions": (list[version_model(Ticket)], versions_of(session, Ticket, 1)),  # type: ignore[misc]  # made here
    }
    app = FastAPI()
    for path, (model, value) in answers.items():
        app.get(path, response_model=model)(answering(value))
    client = TestClient(app)
    for path, (model, value) in answers.items():
        expected = json_value([v.to_dict() for v in value] if path == "/versions" else value)
        response = client.get(path)
        assert response.json() == expected, path
        if path != "/versions":
            adapter = TypeAdapter(model)
            assert adapter.dump_python(adapter.validate_json(response.text), mode="json") == expected
    told = app.openapi()["components"]["schemas"]
    assert not [(name, field) for name, field in undescribed(told) if (name, field) not in KEPT_BARE]
    assert told["TicketVersion"]["properties"]["price"]["description"] == "What it costs."
    assert told["TicketVersion"]["properties"]["content"]["description"] == "What was attached."


KEPT_BARE = {("TicketVersion", "id"), ("TicketVersion", "ratio")}
"""Columns without a comment."""


def undescribed(schemas: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the model and the field of each field that nothing describes."""
    for name, schema in schemas.items():
        for field, told in schema.get("properties", {}).items():
            if "description" not in told:
                yield name, field


@pytest.mark.spread
def test_a_value_that_its_column_no_longer_accepts_is_told_as_it_is(happened: Any, session: Session) -> None:
    (version, _) = versions_of(session, Ticket, 1)
    session.expunge(version)
    sa.orm.attributes.set_committed_value(version, "price", "much")
    told = version_model(Ticket).model_validate(version).model_dump(mode="json")
    assert told["price"] == "much"


def test_the_descriptions_of_an_sqlmodel_are_taken_over() -> None:
    registry = sa.orm.registry()

    class Local(SQLModel, registry=registry):
        pass

    @track_table()
    class Visit(Local, table=True):
        id: int | None = Field(default=None, primary_key=True)
        day: date = Field(description="The day of the visit.")

    schema = version_model(Visit).model_json_schema(mode="serialization")
    assert schema["properties"]["day"]["description"] == "The day of the visit."
    assert {"type": "string", "format": "date"} in schema["properties"]["day"]["anyOf"]
    assert "it still is" in schema["properties"]["valid_to"]["description"]
    registry.dispose()


def test_a_model_can_be_derived_from() -> None:
    short = create_model("Short", __base__=FieldChangeModel, extra=(Any, Field(exclude=True)))
    assert "extra" not in short.model_json_schema(mode="serialization")["properties"]
