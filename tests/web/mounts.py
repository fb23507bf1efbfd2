"""A browser in each framework, and the path at which it is mounted there."""

from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from litestar import Litestar, asgi
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sqlaudit.web import HistoryBrowser


def in_fastapi(browser: HistoryBrowser) -> Any:
    app, outer = FastAPI(), FastAPI()
    app.mount("/history", browser)
    outer.mount("/app", app)
    return outer, "/app/history"


def in_starlette(browser: HistoryBrowser) -> Any:
    return Starlette(routes=[Mount("/h", browser)]), "/h"


def in_litestar(browser: HistoryBrowser) -> Any:
    return Litestar([asgi("/history", is_mount=True, copy_scope=True)(browser)]), "/history"


def in_flask(browser: HistoryBrowser) -> Any:
    a2wsgi = pytest.importorskip("a2wsgi")
    app = Flask("shop")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/history": a2wsgi.ASGIMiddleware(browser)})  # type: ignore[method-assign]
    return a2wsgi.WSGIMiddleware(app.wsgi_app), "/history"


MOUNTS = [in_fastapi, in_starlette, in_litestar, in_flask]
