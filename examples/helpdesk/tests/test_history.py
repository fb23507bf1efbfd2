"""The past can be read, and what was done can be taken back."""

from datetime import UTC, datetime

import pytest
from fastapi.testclient import TestClient

from conftest import BEN
from sqlaudit.testing import Clock


@pytest.fixture
def monday(client: TestClient, audit_clock: Clock) -> str:
    """A ticket with a tag and a comment, and the instant at which it was like that."""
    audit_clock.set(datetime(2026, 3, 2, 9, tzinfo=UTC))
    client.post("/tickets", json={"title": "Printer"})
    client.put("/tickets/1/tags/fire")
    client.post("/tickets/1/comments", json={"text": "Help!"})
    monday = audit_clock.move(hours=1).isoformat()
    audit_clock.move(days=1)
    return monday


def test_a_ticket_and_the_list_are_read_as_of_an_instant(client: TestClient, monday: str) -> None:
    before = client.get("/tickets/1").json()
    client.delete("/tickets/1/tags/fire")
    client.patch("/tickets/1", json={"status": "closed"})
    client.delete("/tickets/1")
    assert client.get("/tickets/1").status_code == 404
    assert client.get("/tickets/1", params={"at": monday}).json() == before
    assert client.get("/tickets", params={"at": monday}).json() == [before]
    assert client.get("/tickets").json() == []


def test_blame_tells_who_set_each_field(client: TestClient, monday: str) -> None:
    client.patch("/tickets/1", json={"status": "open"}, headers=BEN)
    blame = client.get("/tickets/1/blame").json()
    assert {name: blame[name]["changed_by"] for name in ("title", "status")} == {"title": "ana", "status": "ben"}


def test_a_deleted_ticket_comes_back_with_its_tags_and_comments(client: TestClient, monday: str) -> None:
    before = client.get("/tickets/1").json()
    client.delete("/tickets/1")
    assert client.post("/tickets/1/restore", params={"at": monday}).status_code == 200
    assert client.get("/tickets/1").json() == before


def test_a_changeset_is_shown_and_undone(client: TestClient, monday: str) -> None:
    client.patch("/tickets/1", json={"title": "Coffee", "status": "closed"}, headers=BEN)
    (changeset,) = client.get("/changesets?user=ben").json()["items"]
    address = f"/changesets/{changeset['changeset_id']}"
    assert {change["field_name"] for change in client.get(address).json()} == {"title", "status"}
    assert client.post(f"{address}/undo", headers=BEN).status_code == 403
    (item,) = client.post(f"{address}/undo?dry_run=true").json()["items"]
    assert item["fields"]["title"] == ["Coffee", "Printer"]
    assert client.get("/tickets/1").json()["title"] == "Coffee"
    assert client.post(f"{address}/undo").status_code == 200
    assert client.get("/tickets/1").json()["title"] == "Printer"


def test_what_others_have_changed_since_is_not_undone(client: TestClient, monday: str) -> None:
    client.patch("/tickets/1", json={"title": "Coffee"}, headers=BEN)
    client.patch("/tickets/1", json={"title": "Tea"})
    (changeset,) = client.get("/changesets?user=ben").json()["items"]
    response = client.post(f"/changesets/{changeset['changeset_id']}/undo")
    assert response.status_code == 409
    assert [conflict["fields"] for conflict in response.json()["conflicts"]] == [["title"]]
    assert client.get("/tickets/1").json()["title"] == "Tea"
