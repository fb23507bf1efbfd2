"""Notes that say themselves who should have written them: for tests of requests and tasks that run at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlaudit import AuditContext, get_audit_context, track_table


class Base(DeclarativeBase):
    pass


@track_table()
class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    author: Mapped[str] = mapped_column(sa.String(50))


USERS = [f"user-{number}" for number in range(50)]


def write(sessions: sessionmaker[Session], author: str) -> str:
    with sessions.begin() as session:
        session.add(Note(author=author))
    return author


def written(sessions: sessionmaker[Session]) -> dict[str, Any]:
    """Return the version of each author's note, and fail if another user has written it."""
    with sessions() as session:
        versions = session.scalars(sa.select(Note.History).order_by(Note.History.id)).all()
    assert [version.audit_changed_by for version in versions] == [version.author for version in versions]
    notes = {version.author: version for version in versions}
    assert len(notes) == len(versions)
    assert get_audit_context() == AuditContext()
    return notes


async def at_once(works: Iterable[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*works)


def in_threads(work: Callable[[str], Any]) -> list[Any]:
    """Call a function with each user, all at once."""

    async def all_of_them() -> list[Any]:
        return await at_once(asyncio.to_thread(work, user) for user in USERS)

    return asyncio.run(all_of_them())
