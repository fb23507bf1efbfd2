"""Type checkers know the integrations as applications use them."""

from collections.abc import Mapping
from typing import Any

from fastapi import Depends, FastAPI, Request
from flask import Flask
from litestar import Litestar
from litestar.connection import ASGIConnection
from starlette.applications import Starlette
from starlette.middleware import Middleware

from sqlaudit.integrations import asgi, wsgi
from sqlaudit.integrations.fastapi import audit_context
from sqlaudit.integrations.flask import Audit
from sqlaudit.integrations.litestar import AuditContextPlugin


async def of_scope(scope: Mapping[str, Any]) -> dict[str, str] | None:
    return {"user_id": scope["user"]}


def of_request(request: Request) -> dict[str, object]:
    return {"user_id": 7, "actor_type": "user"}


def of_connection(connection: ASGIConnection[Any, Any, Any, Any]) -> dict[str, str]:
    return {"user_id": connection.user}


def of_environ(environ: dict[str, Any]) -> None:
    return None


def applications() -> None:
    app = FastAPI(dependencies=[Depends(audit_context(of_request)), Depends(audit_context())])
    app.add_middleware(asgi.AuditContextMiddleware, get_context=of_scope)
    Starlette(middleware=[Middleware(asgi.AuditContextMiddleware, get_context=of_scope)])
    asgi.AuditContextMiddleware(app, of_scope)
    Litestar([], plugins=[AuditContextPlugin(of_connection), AuditContextPlugin()])
    flask = Flask("app")
    Audit(flask, lambda: {"user_id": "ana"})
    Audit(get_context=lambda request: None).init_app(flask)
    wsgi.AuditContextMiddleware(flask.wsgi_app, of_environ)
