"""The first people of the help desk, ``python -m helpdesk.seed``: ana, who is an admin, and ben."""

import asyncio

from sqlmodel import select

from helpdesk.database import Sessions, engine
from helpdesk.models import Role, User
from sqlaudit import AuditContextManager


async def seed() -> None:
    async with AuditContextManager("seed", actor_type="system"), Sessions.begin() as session:
        if (await session.exec(select(User))).first() is None:
            session.add(User(name="ana", token="token-of-ana", roles=[Role(name="admin")]))
            session.add(User(name="ben", token="token-of-ben"))


async def main() -> None:
    await seed()
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
