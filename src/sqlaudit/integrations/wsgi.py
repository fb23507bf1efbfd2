"""Who makes a request of a WSGI application?

.. code-block:: python

    application = AuditContextMiddleware(application, get_context)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlaudit.context import AuditContextManager, Steps
from sqlaudit.integrations.request import (
    Arguments,
    checked_function,
    manager_of,
    noting_errors,
    request_facts,
    storable_path,
)

WSGIApp = Callable[[dict[str, Any], Any], Iterable[bytes]]


class AuditContextMiddleware:
    """Set the audit context for each request, until its response is sent.

    ``extra`` gets ``request_id``, ``method``, ``route``, which is the path, and, if the request has a ``traceparent``,
    ``trace_id`` and ``span_id``.

    :param app: the WSGI application
    :param get_context: a function of the environment. It returns a dict of the arguments of
        :class:`~sqlaudit.AuditContextManager`, or ``None``. What it raises ends the request
    :raises ContextError: ``get_context`` cannot be called; or, when a request comes, it returned something else
    """

    def __init__(self, app: WSGIApp, get_context: Callable[[dict[str, Any]], Arguments] | None = None) -> None:
        checked_function(get_context, "AuditContextMiddleware")
        self.app = app
        self.get_context = get_context

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def header(name: str) -> str | None:
            return environ.get(f"HTTP_{name.upper().replace('-', '_')}")

        facts = request_facts(header, environ["REQUEST_METHOD"])
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        facts["route"] = storable_path(path.encode("latin-1", "replace").decode(errors="replace"))
        steps = Steps(AuditContextManager(extra=facts))
        with steps:
            given = None
            if self.get_context is not None:
                with noting_errors("AuditContextMiddleware"):
                    given = self.get_context(environ)
            manager_of(given, "AuditContextMiddleware").__enter__()  # each step enters it anew, and leaves it
            body = self.app(environ, start_response)
        of_server = environ.get("wsgi.file_wrapper")  # a file that the server sends by itself
        is_made = isinstance(body, (list, tuple)) or (isinstance(of_server, type) and isinstance(body, of_server))
        return body if is_made else _Body(body, steps)


class _Body(Iterator[bytes]):
    """The body of a response, each part of which is made in the context of the request."""

    def __init__(self, body: Iterable[bytes], steps: Steps) -> None:
        self.body = body
        self.steps = steps
        with steps:
            self.parts = iter(body)

    def __next__(self) -> bytes:
        with self.steps:
            return next(self.parts)

    def close(self) -> None:
        if (close := getattr(self.body, "close", None)) is not None:
            with self.steps:
                close()
