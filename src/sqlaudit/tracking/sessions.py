"""Which session did the caller give, and which of its binds has a model's rows?"""

from __future__ import annotations

from inspect import signature
from typing import Any, Final

from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Mapper, Session, scoped_session

from sqlaudit.asynchronous import AsyncSession, async_scoped_session
from sqlaudit.exceptions import QueryError

SESSIONS: Final = (Session, scoped_session, AsyncSession, async_scoped_session)
"""The classes of what a caller may give as a session."""


def checked_session(session: object) -> Session:
    """Return the Session that the caller gave, itself or as a ``scoped_session``.

    :raises QueryError: the argument is not a Session
    """
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session):
        return session
    if isinstance(session, type):
        raise QueryError(
            f"The class {session.__name__} is given where a session belongs. Give a session there, and a model in its "
            "own place.",
            session,
        )
    raise QueryError(f"{session!r} is not a Session. Give a Session.", session)


def bind_arguments_for(session: Session, mapper: Mapper[Any] | None) -> dict[str, Any]:
    """Return the bind arguments for reads of a mapper's rows and of their history, which is on the same bind."""
    if isinstance(session, ShardedSession) or not _takes_bind(session):
        return {"mapper": mapper}
    return {"bind": session.get_bind(mapper)}


def _takes_bind(session: Session) -> bool:
    """Return whether the session's ``get_bind()`` accepts the argument ``bind``, as SQLAlchemy's own does."""
    if getattr(session.get_bind, "__func__", None) is Session.get_bind:
        return True
    parameters = signature(session.get_bind).parameters.values()
    return any(parameter.name == "bind" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
