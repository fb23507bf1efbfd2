"""Who makes a request of a Flask application?

.. code-block:: python

    audit = Audit(app)  # or Audit(), and audit.init_app(app) later
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from sqlaudit.context import ActorType, AuditContextManager
from sqlaudit.exceptions import ContextError, MissingPackageError
from sqlaudit.integrations.request import (
    Arguments,
    checked_function,
    manager_of,
    noting_errors,
    required_parameters,
    storable_path,
)
from sqlaudit.integrations.wsgi import AuditContextMiddleware

try:
    from flask import Flask, current_app, request
except ImportError as error:
    raise MissingPackageError(__name__, "flask", "flask") from error
try:
    from flask_login import current_user  # type: ignore[import-untyped]  # it has no types
except ImportError:
    current_user = None

_KEY: Final = "sqlaudit.audit"


class Audit:
    """Set the audit context for each request, until its response is sent. An extension of Flask.

    The user is that of Flask-Login, if the application uses it; somebody who is not logged in is ``anonymous``.
    ``extra`` gets ``request_id``, ``method``, ``route`` (the rule of the URL) and, if the request has a
    ``traceparent``, ``trace_id`` and ``span_id``.

    It asks for the user before each request, after what was registered by ``before_request`` earlier.

    :param app: the application
    :param get_context: a function, plain or ``async``, of the request, or without parameters. It returns a dict of the
        arguments of :class:`~sqlaudit.AuditContextManager`, or ``None``. If it names a user, Flask-Login is not asked.
        What it raises, by ``abort`` for instance, is the response
    :raises ContextError: ``get_context`` cannot be called; or, when a request comes, it returned something else
    """

    def __init__(
        self, app: Flask | None = None, get_context: Callable[..., Arguments | Awaitable[Arguments]] | None = None
    ) -> None:
        checked_function(get_context, "Audit")
        self.get_context = get_context
        self.takes_request = get_context is not None and bool(required_parameters(get_context))
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set the context for the requests of an application.

        :raises ContextError: the application has an ``Audit`` already
        """
        if "sqlaudit" in app.extensions:
            raise ContextError(f"{app!r} has an Audit already. Call Audit(app) or init_app(app) once.", app)
        app.extensions["sqlaudit"] = self
        app.wsgi_app = _Middleware(app.wsgi_app)  # type: ignore[method-assign]  # as Flask recommends
        app.before_request(self._enter)

    def _enter(self) -> None:
        if _KEY not in request.environ:
            return  # nobody would leave the context, in app.preprocess_request() for instance
        given: Any = None
        if self.get_context is not None:
            with noting_errors("Audit"):
                given = current_app.ensure_sync(self.get_context)(*[request] if self.takes_request else ())
        manager = manager_of(given, "Audit")
        if request.url_rule is not None:
            route = storable_path(request.script_root) + request.url_rule.rule
            AuditContextManager(extra={"route": route}).__enter__()
        if given is None or given.get("user_id") is None:
            AuditContextManager(**_logged_in()).__enter__()
        manager.__enter__()


class _Middleware(AuditContextMiddleware):
    """Leaves the blocks that :meth:`Audit._enter` has entered, when the response is sent."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        environ[_KEY] = True
        return super().__call__(environ, start_response)


def _logged_in() -> dict[str, Any]:
    if current_user is None or not hasattr(current_app, "login_manager"):
        return {}
    if not current_user.is_authenticated:
        return {"actor_type": ActorType.ANONYMOUS}
    return {"user_id": current_user.get_id(), "actor_type": ActorType.USER}
