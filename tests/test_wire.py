"""What sqlaudit returns is told in short, as a dict, as JSON, and as the response of an application."""

import enum
import importlib.metadata
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Network
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import sqlaudit
from clock import Clock
from sqlaudit import (
    AuditContextManager,
    BackfillReport,
    Blame,
    Changeset,
    Conflict,
    FieldChange,
    Mark,
    Page,
    QueryError,
    RestoreReport,
    RowDiff,
    UndoConflictError,
    Version,
    backfill,
    blame,
    changes_page,
    changesets,
    diff,
    get_resource_changes,
    track_table,
    undo,
    versions_of,
)
from sqlaudit.wire import json_value

Sessions = sessionmaker[Session]


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = "rot"


@track_table(table_label="thing")
class Thing(Base):
    __tablename__ = "things"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "plain"}

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(sa.String(20))
    price: Mapped[Decimal | None] = mapped_column(sa.Numeric(10, 2))
    content: Mapped[bytes | None]
    colour: Mapped[Colour | None]
    anything: Mapped[Any] = mapped_column(sa.PickleType, nullable=True)


class Noted(Thing):
    __mapper_args__ = {"polymorphic_identity": "noted"}

    note: Mapped[str | None] = mapped_column(sa.String(20))


def happen(sessions: Sessions) -> None:
    ana = AuditContextManager(user_id="ana", actor_type="agent", on_behalf_of="ben", run_id="r-1", reason="trial")
    with ana, sessions.begin() as session:
        odd = {"nan": float("nan"), 1: {2, 3}, None: (timedelta(1), Decimal("NaN"))}
        thing = Thing(id=1, price=Decimal("1.50"), content=b"\xff\x00", colour=Colour.RED, anything=odd)
        session.add_all([thing, Noted(id=2, note="x")])
    with sessions.begin() as session:
        session.get_one(Thing, 1).price = Decimal(2)


def answering(value: Any) -> Callable[[], Any]:
    return lambda: value


def conflicts(session: Session) -> list[Conflict]:
    with pytest.raises(UndoConflictError) as refused:
        undo(session, changesets(session)[0].changeset_id)
    return list(refused.value.conflicts)


# --- values -----------------------------------------------------------------------------------------------------


@dataclass
class Point:
    x: int
    y: Decimal


class Model:
    """What a model of pydantic offers."""

    def model_dump(self) -> dict[str, Any]:
        return {"at": Decimal(1)}


class Vector:
    """What an array of NumPy offers."""

    def tolist(self) -> list[float]:
        return [0.5, float("inf")]


VALUES: list[tuple[Any, Any]] = [
    (float("nan"), "NaN"),
    (float("-inf"), "-Infinity"),
    (Decimal("1E+3"), "1E+3"),
    (datetime(2024, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))), "2024-01-02T01:00:00Z"),
    (datetime(2024, 1, 2, 3, 0, 0, 5, tzinfo=UTC), "2024-01-02T03:00:00.000005Z"),
    (datetime(2024, 1, 2, 3), "2024-01-02T03:00:00"),  # noqa: DTZ001  # a column without time zone
    (date(1, 1, 1), "0001-01-01"),
    (time(1, 2, 3, 4), "01:02:03.000004"),
    (timedelta(0), "PT0S"),
    (timedelta(days=400), "P400D"),
    (timedelta(days=1, hours=1, minutes=2, seconds=3, microseconds=500), "P1DT1H2M3.0005S"),
    (-timedelta(minutes=90), "-PT1H30M"),
    (timedelta(microseconds=-1), "-PT0.000001S"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (memoryview(b"a"), "YQ=="),
    (bytearray(b"a"), "YQ=="),
    (frozenset({"b", "a"}), ["a", "b"]),
    (
        {"a": {Decimal(2)}, 3: None, True: 1, None: 0, (1, 2): 5},
        {"a": ["2"], "3": None, "true": 1, "null": 0, "[1, 2]": 5},
    ),
    (enum.IntEnum("Level", ["LOW"]).LOW, 1),  # type: ignore[attr-defined]  # made here
    (IPv4Network("192.0.2.0/24"), "192.0.2.0/24"),
    (Point(1, Decimal("0.5")), {"x": 1, "y": "0.5"}),
    (Model(), {"at": "1"}),
    (Vector(), [0.5, "Infinity"]),
    (complex(1, 2), "(1+2j)"),
]


def test_a_value_of_any_type_has_a_form_in_json() -> None:
    assert [json_value(value) for value, _ in VALUES] == [expected for _, expected in VALUES]
    assert json.loads(json.dumps(json_value(VALUES), allow_nan=False)) == [[expected] * 2 for _, expected in VALUES]


# --- reports ----------------------------------------------------------------------------------------------------


@pytest.mark.spread
def test_a_repr_says_what_matters_in_one_line(happened: Any, session: Session) -> None:
    (change,) = get_resource_changes(Thing, session, filter_fields="price", filter_date_range=(None, None))[1:]
    at = change.timestamp.isoformat()
    assert repr(change) == (
        f"FieldChange(version=2, timestamp={at}, operation=update, changeset_id={change.changeset_id}, "
        f"resource_type='thing', resource_id=1, field_name='price', old_value=Decimal('1.50'), "
        f"new_value=Decimal('2.00'))"
    )
    first, second = versions_of(session, Thing, 1)
    assert repr(second) == (
        f"<Thing.History id=1 audit_version=2 valid_from={at} valid_to=9999-12-31T00:00:00+00:00 "
        "audit_operation=update audit_changed_by=None>"
    )
    session.expire(first)
    session.expunge(first)
    assert repr(first) == "<Thing.History id=1 audit_version=1>", "a repr loads nothing"


@pytest.mark.spread
def test_a_report_is_a_dict_of_its_attributes(happened: Any, session: Session) -> None:
    changes = get_resource_changes(Thing, session, filter_resource_ids=1)
    told = changes[0].to_dict()
    assert told["operation"] == changes[0].operation
    assert told["timestamp"] is changes[0].timestamp
    assert (told["actor_type"], told["on_behalf_of"], told["run_id"]) == ("agent", "ben", "r-1")
    page = changes_page(session, Thing, size=1, count=True)
    assert page.to_dict() == {"items": [c.to_dict() for c in page], "next": page.next, "total": page.total}
    report = undo(session, changesets(session)[-1].changeset_id, dry_run=True)
    assert report.to_dict() == {"items": tuple(item.to_dict() for item in report), "conflicts": ()}
    (item,) = report.to_dict("json")["items"]
    assert (item["operation"], item["resource_type"], item["key"]) == ("update", "thing", 1)
    assert [Decimal(text) for text in item["fields"]["price"]] == [Decimal(2), Decimal("1.5")]
    for value in (*changes, page, report, *conflicts(session)):
        json.dumps(value.to_dict(mode="json"), allow_nan=False)
        assert value.to_dict(mode="json") == json_value(value)
    (conflict,) = conflicts(session)
    assert pickle.loads(pickle.dumps(conflict)) == conflict


@pytest.mark.no_tables
def test_an_unknown_mode_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(QueryError, match=r"""mode is 'xml'. Give "python" or "json"."""):
        RestoreReport(()).to_dict("xml")  # type: ignore[arg-type]  # what is tested


def test_the_package_says_its_version() -> None:
    assert sqlaudit.__version__ == importlib.metadata.version("sqlaudit")


# --- responses --------------------------------------------------------------------------------------------------

ENDPOINTS: dict[str, tuple[Any, Callable[[Session], Any]]] = {
    "/changes": (list[FieldChange], lambda session: get_resource_changes(Thing, session)),
    "/page": (Page[FieldChange], lambda session: changes_page(session, Thing, size=1)),
    "/changesets": (list[Changeset], changesets),
    "/blame": (dict[str, Blame], lambda session: blame(session, Thing, 1)),
    "/conflicts": (list[Conflict], conflicts),
    "/undo": (RestoreReport, lambda session: undo(session, changesets(session)[-1].changeset_id, dry_run=True)),
    "/diff": (RowDiff, lambda session: diff(session, Thing, 1, 1, 2)),
    "/mark": (Mark, lambda session: Mark("before", Clock().now)),
    "/backfill": (BackfillReport, lambda session: backfill(session, Thing, at=Clock().now)),
    "/versions": (list[Thing.History], lambda session: versions_of(session, Thing, 1) + versions_of(session, Thing, 2)),  # type: ignore[attr-defined]  # it has one
    "/versions/typed": (list[Version[Thing]], lambda session: versions_of(session, Thing, 1)),
    "/versions/any": (list[Version], lambda session: versions_of(session, Thing, 1)),
}


@pytest.mark.spread
def test_reports_and_versions_are_response_models_as_they_are(happened: Any, session: Session) -> None:
    app, returned = FastAPI(), {}
    for path, (model, read) in ENDPOINTS.items():
        returned[path] = read(session)
        app.get(path, response_model=model)(answering(returned[path]))
    client = TestClient(app)
    for path, value in returned.items():
        response = client.get(path)
        assert response.json() == json_value([v.to_dict() for v in value] if "versions" in path else value), path


def test_openapi_knows_the_attributes_of_reports_and_versions() -> None:
    app = FastAPI()
    for path, (model, _) in ENDPOINTS.items():
        app.get(path, response_model=model)(lambda: None)
    told = app.openapi()
    change = told["components"]["schemas"]["FieldChange"]
    assert change["description"] == "A difference in one field between two consecutive versions of a row."
    assert change["properties"]["timestamp"]["format"] == "date-time"
    assert {"old_value", "actor_type", "run_id"} <= change["properties"].keys()

    def schema_of(path: str) -> Any:
        return told["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["items"]

    schema = schema_of("/versions")
    assert schema_of("/versions/typed") == schema
    assert schema_of("/versions/any") == {"type": "object", "additionalProperties": True}
    assert schema["title"] == "Thing.History"
    assert [kind["type"] for kind in schema["properties"]["price"]["anyOf"]] == ["string", "null"]
    assert schema["properties"]["id"]["type"] == "integer"
    assert schema["properties"]["valid_from"]["format"] == "date-time"
    assert "type" not in schema["properties"]["anything"]
