"""Who makes a request of an ASGI application?

.. code-block:: python

    app.add_middleware(AuditContextMiddleware, get_context=get_context)  # Starlette, FastAPI
    app = AuditContextMiddleware(app, get_context)  # any ASGI application
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from inspect import isawaitable
from typing import Any

from sqlaudit.context import AuditContextManager, LateExtra
from sqlaudit.integrations.request import (
    Arguments,
    checked_function,
    manager_of,
    noting_errors,
    request_facts,
    storable_path,
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class AuditContextMiddleware:
    """Set the audit context for each HTTP request and each WebSocket, until its response and background tasks are done.

    It is pure ASGI: the application, streaming bodies, background tasks and mounted applications all run in the
    context. ``extra`` gets ``request_id``, ``method``, ``route`` and, if the request has a ``traceparent``,
    ``trace_id`` and ``span_id``.

    :param app: the ASGI application
    :param get_context: a function, plain or ``async``, of the scope. It returns a dict of the arguments of
        :class:`~sqlaudit.AuditContextManager`, or ``None``. What it raises ends the request
    :raises ContextError: ``get_context`` cannot be called; or, when a request comes, it returned something else
    """

    def __init__(
        self, app: ASGIApp, get_context: Callable[[Scope], Arguments | Awaitable[Arguments]] | None = None
    ) -> None:
        checked_function(get_context, "AuditContextMiddleware")
        self.app = app
        self.get_context = get_context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given: Any = None
        with scope_context(scope):
            if self.get_context is not None:
                with noting_errors("AuditContextMiddleware"):
                    given = self.get_context(scope)
                    given = await given if isawaitable(given) else given
            with manager_of(given, "AuditContextMiddleware"):
                await self.app(scope, receive, send)


def scope_context(scope: Scope) -> AuditContextManager:
    """Return the manager that tells what is known of a request. The route is looked up when a version is written."""

    def header(name: str) -> str | None:
        wanted = name.encode()
        return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)

    facts = request_facts(header, scope.get("method", "WEBSOCKET"))
    return AuditContextManager(extra=LateExtra(lambda: {**facts, "route": route_of(scope)}))


def route_of(scope: Scope) -> str:
    """Return the route of a request, such as ``/customers/{id}``, or its path as long as no route is known.

    FastAPI, Litestar and new versions of Starlette note the route in the scope.
    """
    route = scope.get("route")
    included = scope.get("fastapi", {}).get("effective_route_context")
    if included is not None and included.original_route is route:
        route = included  # it has the prefix of its router
    template = getattr(route, "path_format", None) or scope.get("path_template")
    if not isinstance(template, str):
        return storable_path(scope["path"])
    if hasattr(route, "routes"):  # the root path is that of the mounted application already
        template = "/{path}"
    return storable_path(scope.get("root_path", "").rstrip("/")) + template
