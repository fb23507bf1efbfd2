"""What happened, what it looked like then, and how to take it back."""

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime
from sqlalchemy.orm import selectinload
from sqlmodel import select

from helpdesk.access import OpenSession, admin
from helpdesk.models import Ticket, User
from helpdesk.tickets import TicketOut, load_ticket
from sqlaudit import (
    Blame,
    Changeset,
    FieldChange,
    Page,
    QueryError,
    RestoreReport,
    UndoConflictError,
    blame,
    changes_in,
    changes_page,
    changesets_page,
    get_resource_changes,
    restore,
    undo,
)
from sqlaudit.integrations.sqlmodel import time_travel

router = APIRouter()


@router.get("/tickets")
async def read_tickets(session: OpenSession, at: AwareDatetime | None = None) -> list[TicketOut]:
    """List the tickets as they are, or as they were at the instant ``at``, with their tags and comments."""
    tickets = select(Ticket) if at is None else Ticket.as_of(at)
    everything = selectinload(Ticket.tags), selectinload(Ticket.comments)
    found = await session.exec(tickets.options(*everything).order_by(Ticket.id))
    return [TicketOut.model_validate(ticket) for ticket in found]


@router.get("/tickets/{number}")
async def read_ticket(number: int, session: OpenSession, at: AwareDatetime | None = None) -> TicketOut:
    """Return a ticket as it is, or as it was: ``load_ticket`` does not know which of the two it reads."""
    if at is None:
        return TicketOut.model_validate(await load_ticket(session, number))
    async with time_travel(session, at) as past:
        return TicketOut.model_validate(await load_ticket(past, number))


@router.get("/tickets/{number}/history")
async def read_history(
    number: int, session: OpenSession, after: str | None = None, size: int = 50
) -> Page[FieldChange]:
    """Return what happened to a ticket, its comments and its tags, in pages of whole transactions."""
    return await changes_page(session, Ticket, number, include=["tags", "comments"], after=after, size=size)


@router.get("/tickets/{number}/blame")
async def read_blame(number: int, session: OpenSession) -> dict[str, Blame]:
    """Tell of each field who set the value that it has."""
    return await blame(session, Ticket, number)


@router.post("/tickets/{number}/restore")
async def restore_ticket(number: int, at: AwareDatetime, session: OpenSession) -> RestoreReport:
    """Make a ticket what it was, with its tags and comments, also if it was deleted."""
    report = await restore(session, Ticket, number, at=at, include=["tags", "comments"])
    await session.commit()
    return report


@router.get("/users/{number}/roles/history")
async def read_roles(number: int, session: OpenSession) -> list[FieldChange]:
    """Tell who gave a user which role."""
    return await get_resource_changes(User.roles, session, number)


@router.get("/changesets")
async def read_changesets(
    session: OpenSession, user: str | None = None, after: str | None = None, size: int = 50
) -> Page[Changeset]:
    """Return the transactions of everybody, or of one user, the latest first."""
    return await changesets_page(session, user_id=user, newest_first=True, after=after, size=size)


@router.get("/changesets/{changeset_id}")
async def read_changeset(changeset_id: str, session: OpenSession) -> list[FieldChange]:
    return await changes_in(session, changeset_id)


@router.post("/changesets/{changeset_id}/undo", dependencies=[Depends(admin)])
async def undo_changeset(changeset_id: str, session: OpenSession, dry_run: bool = False) -> RestoreReport:
    """Take a transaction back, or tell with ``dry_run`` what this would do."""
    report = await undo(session, changeset_id, dry_run=dry_run)
    await session.commit()
    return report


@router.post("/runs/{run_id}/undo", dependencies=[Depends(admin)])
async def undo_run(run_id: str, session: OpenSession) -> RestoreReport:
    """Take back all that one run of a job did."""
    report = await undo(session, run_id=run_id)
    await session.commit()
    return report


def answer_errors(app: FastAPI) -> None:
    @app.exception_handler(UndoConflictError)
    def conflict(request: Request, error: UndoConflictError) -> JSONResponse:
        conflicts = [conflict.to_dict(mode="json") for conflict in error.conflicts]
        return JSONResponse({"detail": "Others have changed this since.", "conflicts": conflicts}, status_code=409)

    @app.exception_handler(QueryError)
    def unreadable(request: Request, error: QueryError) -> JSONResponse:
        """Answer a cursor, a changeset or an instant that does not exist."""
        return JSONResponse({"detail": str(error)}, status_code=422)
