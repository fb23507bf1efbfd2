"""The daily work: tickets, their comments and tags, and the roles of people. Nothing here knows of the history."""

from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import selectinload
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from helpdesk.access import CurrentUser, OpenSession, admin
from helpdesk.models import Comment, Role, Status, Tag, Ticket, User

router = APIRouter()


class NewTicket(BaseModel):
    title: str


class TicketUpdate(BaseModel):
    title: str | None = None
    status: Status | None = None
    priority: int | None = None
    assignee_id: int | None = None


class NewComment(BaseModel):
    text: str


class TagOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str


class CommentOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    author_id: int
    text: str


class TicketOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    title: str
    status: Status
    priority: int | None
    assignee_id: int | None
    tags: list[TagOut]
    comments: list[CommentOut]


async def load_ticket(session: AsyncSession, number: int) -> Ticket:
    """Return a ticket with all that belongs to it; it is loaded now, as a lazy load cannot wait."""
    ticket = await session.get(Ticket, number, options=[selectinload(Ticket.tags), selectinload(Ticket.comments)])
    if ticket is None:
        raise HTTPException(404, f"There is no ticket {number}.")
    return ticket


async def named(session: AsyncSession, model: Any, name: str) -> Any:
    """Return the tag or role of this name, a new one if there is none."""
    return (await session.exec(select(model).where(model.name == name))).one_or_none() or model(name=name)


@router.post("/tickets", status_code=201)
async def create(body: NewTicket, session: OpenSession) -> TicketOut:
    ticket = Ticket(title=body.title, tags=[], comments=[])
    session.add(ticket)
    await session.commit()
    return TicketOut.model_validate(ticket)


@router.patch("/tickets/{number}")
async def update(number: int, body: TicketUpdate, session: OpenSession) -> TicketOut:
    ticket = await load_ticket(session, number)
    for name, value in body.model_dump(exclude_unset=True).items():
        setattr(ticket, name, value)
    await session.commit()
    return TicketOut.model_validate(ticket)


@router.delete("/tickets/{number}", status_code=204)
async def delete(number: int, session: OpenSession) -> None:
    await session.delete(await load_ticket(session, number))
    await session.commit()


@router.post("/tickets/{number}/comments", status_code=201)
async def comment(number: int, body: NewComment, user: CurrentUser, session: OpenSession) -> TicketOut:
    ticket = await load_ticket(session, number)
    ticket.comments.append(Comment(author_id=user.id, text=body.text))
    await session.commit()
    return TicketOut.model_validate(ticket)


@router.put("/tickets/{number}/tags/{name}", status_code=204)
async def add_tag(number: int, name: str, session: OpenSession) -> None:
    ticket = await load_ticket(session, number)
    if name not in {tag.name for tag in ticket.tags}:
        ticket.tags.append(await named(session, Tag, name))
        await session.commit()


@router.delete("/tickets/{number}/tags/{name}", status_code=204)
async def remove_tag(number: int, name: str, session: OpenSession) -> None:
    ticket = await load_ticket(session, number)
    ticket.tags = [tag for tag in ticket.tags if tag.name != name]
    await session.commit()


@router.put("/users/{number}/roles/{name}", status_code=204, dependencies=[Depends(admin)])
async def give_role(number: int, name: str, session: OpenSession) -> None:
    user = await session.get(User, number, options=[selectinload(User.roles)])
    if user is None:
        raise HTTPException(404, f"There is no user {number}.")
    if name not in {role.name for role in user.roles}:
        user.roles.append(await named(session, Role, name))
        await session.commit()
