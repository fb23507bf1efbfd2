"""The job of each night, ``python -m helpdesk.nightly``: tickets that nobody has changed for a month become stale."""

import asyncio
from datetime import UTC, datetime, timedelta

from sqlmodel import select, update

from helpdesk.database import Sessions, engine
from helpdesk.models import Status, Ticket
from sqlaudit import OPEN_END, AuditContextManager

A_MONTH = timedelta(days=30)


async def mark_stale(now: datetime, run_id: str) -> int:
    """Mark the tickets whose current version is a month old, as one transaction, and return how many there were."""
    unchanged = select(Ticket.History.id).where(
        Ticket.History.valid_to == OPEN_END, Ticket.History.valid_from <= now - A_MONTH
    )
    stale = (
        update(Ticket)
        .where(Ticket.status.in_([Status.NEW, Status.OPEN]), Ticket.id.in_(unchanged))
        .values(status=Status.STALE)
    )
    async with (
        AuditContextManager("nightly", actor_type="service", run_id=run_id, reason="unchanged for a month"),
        Sessions.begin() as session,
    ):
        return (await session.exec(stale)).rowcount


async def main() -> None:
    now = datetime.now(UTC)
    run_id = f"nightly-{now:%Y-%m-%d}"
    print(f"{run_id}: {await mark_stale(now, run_id)} stale tickets")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
