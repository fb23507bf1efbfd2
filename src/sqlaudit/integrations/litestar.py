"""Who makes a request of a Litestar application?

.. code-block:: python

    app = Litestar(route_handlers, plugins=[AuditContextPlugin(get_context)])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlaudit.exceptions import MissingPackageError
from sqlaudit.integrations.asgi import AuditContextMiddleware, Scope
from sqlaudit.integrations.request import Arguments, checked_function

try:
    from litestar.config.app import AppConfig
    from litestar.connection import ASGIConnection
    from litestar.middleware import DefineMiddleware
    from litestar.plugins import InitPlugin
except ImportError as error:
    raise MissingPackageError(__name__, "litestar", "litestar") from error


class AuditContextPlugin(InitPlugin):
    """Set the audit context for each request and each WebSocket.

    It adds an :class:`~sqlaudit.integrations.asgi.AuditContextMiddleware` after the middleware of the application, such
    as its authentication, so that ``connection.user`` is known.

    :param get_context: a function, plain or ``async``, of the connection. It returns a dict of the arguments of
        :class:`~sqlaudit.AuditContextManager`, or ``None``. An ``HTTPException`` that it raises is the response
    :raises ContextError: ``get_context`` cannot be called; or, when a request comes, it returned something else
    """

    def __init__(
        self,
        get_context: Callable[[ASGIConnection[Any, Any, Any, Any]], Arguments | Awaitable[Arguments]] | None = None,
    ) -> None:
        checked_function(get_context, "AuditContextPlugin")
        self.get_context = get_context

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware."""
        get_context = self.get_context

        def context_of(scope: Scope) -> Arguments | Awaitable[Arguments]:
            connection: ASGIConnection[Any, Any, Any, Any] = ASGIConnection(scope)  # type: ignore[arg-type]  # a dict
            return None if get_context is None else get_context(connection)

        app_config.middleware.append(DefineMiddleware(AuditContextMiddleware, get_context=context_of))  # type: ignore[arg-type]  # ASGI of one's own types
        return app_config
