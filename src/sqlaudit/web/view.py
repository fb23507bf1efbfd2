"""What is a view? A page, what a visitor has to be allowed for it, and the function that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response

from sqlaudit.web.visit import Visit


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A view of history.

    :ivar page: its name in :data:`~sqlaudit.web.visit.PATHS`
    :ivar action: what ``authorize`` is asked for
    :ivar work: the function that makes the response; it runs in a thread, or in a greenlet of an asynchronous session
    :ivar needs_key: whether the query has the key of a row
    """

    page: str
    action: str
    work: Callable[[Visit], Response]
    needs_key: bool = False
    method: str = "GET"
