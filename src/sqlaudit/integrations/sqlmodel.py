"""What do the sessions of SQLModel return? Objects, by ``exec``, of the past, too: type checkers know it.

.. code-block:: python

    from sqlaudit.integrations.sqlmodel import Temporal, time_travel

    @track_table()
    class Ticket(Temporal, SQLModel, table=True): ...

    session.exec(Ticket.as_of(then)).one()  # a Ticket
    with time_travel(session, then) as past:
        past.exec(select(Ticket)).all()

Whoever runs no type checker, and gives ``time_travel`` sessions alone, needs none of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from sqlaudit import decorators
from sqlaudit.exceptions import MissingPackageError
from sqlaudit.past import session as past

try:
    from sqlmodel import Session
    from sqlmodel.ext.asyncio.session import AsyncSession
except ImportError as error:
    raise MissingPackageError(__name__, "sqlmodel", "sqlmodel") from error

if TYPE_CHECKING:
    from sqlmodel.sql.expression import SelectOfScalar

    from sqlaudit.arguments import When
    from sqlaudit.past.rendering import BeforeBaseline, UntrackedPolicy


class Temporal(decorators.Temporal):
    """A mixin that tells type checkers which attributes ``track_table`` adds to a model of SQLModel.

    It is :class:`sqlaudit.Temporal`, whose ``as_of`` returns a select for ``exec``.
    """

    if TYPE_CHECKING:

        @classmethod
        def as_of(
            cls,
            when: When,
            *,
            untracked: UntrackedPolicy = "raise",
            before_baseline: BeforeBaseline = "absent",
        ) -> SelectOfScalar[Self]: ...


class time_travel(past.time_travel):
    """A ``with`` block with a session of SQLModel, in which every query reads the past: :class:`sqlaudit.time_travel`.

    Give it a ``Session`` or an ``AsyncSession`` of SQLModel, or an engine or a connection.
    """

    _session_class = Session
    _async_session_class = AsyncSession

    if TYPE_CHECKING:

        def __enter__(self) -> Session: ...

        async def __aenter__(self) -> AsyncSession: ...
