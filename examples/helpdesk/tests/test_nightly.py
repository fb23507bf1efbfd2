"""The job marks what nobody has touched, under its own name, and its run can be taken back."""

from fastapi.testclient import TestClient
from helpdesk.database import Sessions
from helpdesk.models import Status, Ticket
from helpdesk.nightly import mark_stale

from sqlaudit.testing import Clock, assert_recorded


async def one_night(clock: Clock) -> int:
    count = await mark_stale(clock.now, "night-1")
    async with Sessions() as session:
        await assert_recorded(
            session,
            Ticket,
            1,
            operation="update",
            fields={"status"},
            values={"status": Status.STALE},
            changed_by="nightly",
        )
    return count


def test_tickets_that_nobody_has_changed_become_stale(client: TestClient, audit_clock: Clock) -> None:
    for title in ("Printer", "Coffee", "Chair"):
        client.post("/tickets", json={"title": title})
    client.patch("/tickets/3", json={"status": "closed"})
    audit_clock.move(days=29)
    client.patch("/tickets/2", json={"status": "open"})
    audit_clock.move(days=2)
    assert client.portal.call(one_night, audit_clock) == 1
    assert [ticket["status"] for ticket in client.get("/tickets").json()] == ["stale", "open", "closed"]
    assert client.post("/runs/night-1/undo").status_code == 200
    assert [ticket["status"] for ticket in client.get("/tickets").json()] == ["new", "open", "closed"]
