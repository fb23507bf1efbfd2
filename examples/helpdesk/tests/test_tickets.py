"""The daily work is recorded, with its user, its reason and its request."""

from fastapi.testclient import TestClient

from conftest import BEN


def told(changes: list[dict]) -> list[tuple]:
    return [(c["changed_by"], c["operation"], c["field_name"], c["new_value"]) for c in changes]


def test_a_request_without_a_token_is_refused(client: TestClient) -> None:
    assert client.post("/tickets", json={"title": "Printer"}, headers={"X-Token": "?"}).status_code == 401


def test_the_history_tells_who_did_what_to_a_ticket_its_comments_and_its_tags(client: TestClient) -> None:
    assert client.post("/tickets", json={"title": "Printer on fire"}).json()["id"] == 1
    client.put("/tickets/1/tags/fire", headers=BEN)
    client.post("/tickets/1/comments", json={"text": "Use the other one."}, headers=BEN)
    client.patch("/tickets/1", json={"status": "closed"}, headers={"X-Reason": "put out"})
    client.delete("/tickets/1/tags/fire", headers=BEN)
    history = client.get("/tickets/1/history").json()
    assert told(history["items"]) == [
        ("ana", "insert", "id", 1),
        ("ana", "insert", "status", "new"),
        ("ana", "insert", "title", "Printer on fire"),
        ("ben", "link", "tags", [1]),
        ("ben", "insert", "author_id", 2),
        ("ben", "insert", "id", 1),
        ("ben", "insert", "text", "Use the other one."),
        ("ben", "insert", "ticket_id", 1),
        ("ana", "update", "status", "closed"),
        ("ben", "unlink", "tags", None),
    ]
    closed = history["items"][-2]
    assert (closed["reason"], closed["actor_type"]) == ("put out", "user")
    assert closed["extra"]["route"] == "/tickets/{number}"


def test_a_long_history_comes_in_pages(client: TestClient) -> None:
    client.post("/tickets", json={"title": "Printer"})
    for status in ("open", "closed", "open"):
        client.patch("/tickets/1", json={"status": status})
    pages, after = [], {}
    while after is not None:
        page = client.get("/tickets/1/history", params={"size": 1, **after}).json()
        pages.append([change["new_value"] for change in page["items"]])
        after = page["next"] and {"after": page["next"]}
    assert pages == [[1, "new", "Printer"], ["open"], ["closed"], ["open"]]
    assert client.get("/tickets/1/history?after=nonsense").status_code == 422


def test_somebody_gave_a_user_a_role(client: TestClient) -> None:
    assert client.put("/users/2/roles/admin", headers=BEN).status_code == 403
    assert client.put("/users/2/roles/admin").status_code == 204
    assert told(client.get("/users/2/roles/history").json()) == [("ana", "link", "roles", [1])]
