"""Who makes a request of a FastAPI application?

.. code-block:: python

    app = FastAPI(dependencies=[Depends(audit_context(get_context))])
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from inspect import Parameter, isawaitable, iscoroutinefunction, signature
from typing import Any

from sqlaudit.exceptions import MissingPackageError
from sqlaudit.integrations.asgi import scope_context
from sqlaudit.integrations.request import (
    Arguments,
    checked_function,
    manager_of,
    noting_errors,
    required_parameters,
)

try:
    from fastapi import Depends
    from fastapi.concurrency import run_in_threadpool
    from starlette.requests import HTTPConnection
except ImportError as error:
    raise MissingPackageError(__name__, "fastapi", "fastapi") from error


def audit_context(
    get_context: Callable[..., Arguments | Awaitable[Arguments]] | None = None,
) -> Callable[..., AsyncGenerator[None]]:
    """Return a dependency that sets the audit context around an endpoint, HTTP or WebSocket.

    It is ``async``, whatever ``get_context`` is: FastAPI runs a plain dependency in a thread, and a context that is set
    there reaches no endpoint. ``extra`` gets what :class:`~sqlaudit.integrations.asgi.AuditContextMiddleware` tells.

    :param get_context: a function of the request, plain or ``async``; or a dependency of FastAPI, whose parameters
        are dependencies themselves. It returns a dict of the arguments of :class:`~sqlaudit.AuditContextManager`, or
        ``None``. An ``HTTPException`` that it raises is the response
    :raises ContextError: ``get_context`` cannot be called; or, when a request comes, it returned something else
    """
    checked_function(get_context, "audit_context")
    if get_context is not None and not _takes_request(get_context):

        async def dependency(
            connection: HTTPConnection,
            given: Any = Depends(get_context),  # noqa: B008  # so FastAPI is told, and this is read once
        ) -> AsyncGenerator[None]:
            with scope_context(connection.scope), manager_of(given, "audit_context"):
                yield

        return dependency

    async def dependency_of_request(connection: HTTPConnection) -> AsyncGenerator[None]:
        given: Any = None
        with scope_context(connection.scope):
            if get_context is not None:
                with noting_errors("audit_context"):
                    if _is_async(get_context):
                        given = get_context(connection)
                    else:
                        given = await run_in_threadpool(get_context, connection)
                    given = await given if isawaitable(given) else given
            with manager_of(given, "audit_context"):
                yield

    return dependency_of_request


def _is_async(function: Callable[..., Any]) -> bool:
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def _takes_request(function: Callable[..., Any]) -> bool:
    """Return whether a function takes the request, and nothing that FastAPI would have to find out."""
    parameters = required_parameters(function)
    return len(signature(function).parameters) == len(parameters) == 1 and (
        parameters[0].name in ("request", "connection", "websocket") or parameters[0].annotation is Parameter.empty
    )
