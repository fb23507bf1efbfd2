"""Who sends a request, and what may they do?"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Header, HTTPException
from fastapi.security import APIKeyHeader
from sqlalchemy.orm import selectinload
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from helpdesk.database import Sessions
from helpdesk.models import User


async def open_session() -> AsyncIterator[AsyncSession]:
    async with Sessions() as session:
        yield session


OpenSession = Annotated[AsyncSession, Depends(open_session)]


async def current_user(session: OpenSession, token: Annotated[str, Depends(APIKeyHeader(name="X-Token"))]) -> User:
    user = (await session.exec(select(User).where(User.token == token).options(selectinload(User.roles)))).one_or_none()
    if user is None:
        raise HTTPException(401, "Who are you?")
    return user


CurrentUser = Annotated[User, Depends(current_user)]


async def who(user: CurrentUser, reason: Annotated[str | None, Header(alias="X-Reason")] = None) -> dict[str, Any]:
    """Tell sqlaudit who acts and why, for as long as the request takes."""
    return {"user_id": user.name, "actor_type": "user", "reason": reason}


def admin(user: CurrentUser) -> None:
    if "admin" not in {role.name for role in user.roles}:
        raise HTTPException(403, "Only an admin may do that.")
