"""Who answers a request? The application: it checks who asks, opens a session, and lets a view make the page."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from inspect import isawaitable
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, urlencode

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from sqlaudit.asynchronous import AsyncEngine, async_sessionmaker
from sqlaudit.exceptions import HistoryTableError, PrunedError, QueryError, SQLAuditError
from sqlaudit.hooks.sessions import register_hooks
from sqlaudit.integrations.request import Arguments, checked_function, manager_of
from sqlaudit.retrieval.cursors import checked_size
from sqlaudit.retrieval.ids import converted_ids
from sqlaudit.retrieval.key_texts import key_from_texts, key_texts
from sqlaudit.tracking.links import model_of
from sqlaudit.tracking.missing import is_forbidden
from sqlaudit.web.access import Authorize, permissions_for
from sqlaudit.web.instants import instant_text
from sqlaudit.web.limits import limited, too_slow, was_stopped
from sqlaudit.web.problems import Problem
from sqlaudit.web.rendering import text_of
from sqlaudit.web.security import HEADERS, Receive, Scope, Send, check_query, form_of, refuse_strangers
from sqlaudit.web.sources import Sources, path_part
from sqlaudit.web.texts import TEXTS, Texts
from sqlaudit.web.view import View
from sqlaudit.web.views import VIEWS
from sqlaudit.web.visit import PATHS, Page, Place, Visit

_log: Final = logging.getLogger("sqlaudit.web")


class HistoryBrowser:
    """Pages on which people see who changed what, when and why, and take it back. An ASGI application.

    .. code-block:: python

        app.mount("/history", HistoryBrowser(engine, Base, authorize=authorize))

    Without ``authorize``, it answers requests from this machine alone.

    :param engine_or_sessionmaker: an ``Engine``, an ``AsyncEngine``, or a maker of sessions that record, of either kind
    :param models: a declarative base, a MetaData, a module, tracked classes or association tables; one or several.
        Nothing else is shown
    :param authorize: a function, plain or ``async``, of the request, an action, a model and a key. The actions are
        ``"list"``, ``"view"``, ``"search"``, ``"export"``, ``"restore"`` and ``"undo"``. The model is a base class or
        an association table, and the key is that of a row, or ``None`` for lists. It returns ``True`` or ``False``;
        a criterion of the model, which every query gets; names of attributes whose values are masked; or an
        :class:`~sqlaudit.web.Access` with both. An ``HTTPException`` that it raises is the response, for instance to
        log in first
    :param get_context: a function, plain or ``async``, of the request. It returns a dict of the arguments of
        :class:`~sqlaudit.AuditContextManager` for what a visitor restores or undoes, or ``None``
    :param on_view: a function, plain or ``async``, of the request, the action, the model and the key, which is called
        after a page has been made; the model and the key may be ``None``
    :param title: the title of the pages
    :param texts: texts of another language, by the names in ``sqlaudit.web.texts``
    :param page_size: about how many changes a page shows, or rows that differ
    :param seconds: how long a page may read; then the database stops its statement, and no other one begins
    :param can_write: let visitors restore and undo
    :ivar sessions: the maker of its sessions; ``unregister_hooks(browser.sessions)`` ends what it does for an engine
    :raises QueryError: an argument is invalid
    """

    def __init__(
        self,
        engine_or_sessionmaker: Any,
        models: Any,
        *,
        authorize: Authorize | None = None,
        get_context: Callable[[Request], Arguments | Awaitable[Arguments]] | None = None,
        on_view: Callable[[Request, str, Any, Any], Any] | None = None,
        title: str | None = None,
        texts: Mapping[str, str] = MappingProxyType({}),
        page_size: int = 50,
        seconds: float = 10,
        can_write: bool = True,
    ) -> None:
        checked_function(get_context, "HistoryBrowser")
        for name, function in (("authorize", authorize), ("on_view", on_view)):
            if function is not None and not callable(function):
                raise QueryError(f"{name} is {function!r}, which cannot be called. Give a function.", function)
        if unknown := sorted(texts.keys() - TEXTS.keys()):
            raise QueryError(f"texts has {unknown[0]!r}, which no page has. See TEXTS in sqlaudit.web.texts.", texts)
        is_one = isinstance(models, type) or not isinstance(models, Collection)
        self.sources = Sources([models] if is_one else list(models))
        self.authorize = authorize
        self.get_context = get_context
        self.on_view = on_view
        self.title = title
        self.texts = Texts(texts)
        self.page_size = checked_size(page_size)
        self.seconds = seconds
        self.can_write = can_write
        self.sessions = _sessions_of(engine_or_sessionmaker)
        routes = [
            Route(
                "/" + PATHS[view.page].replace("{table}", "{table:path}"), self._endpoint(view), methods=[view.method]
            )
            for view in VIEWS
        ]
        self._app = Starlette(
            routes=[*routes, Route("/static/{name}", _static)],
            exception_handlers={HTTPException: self._refused},
        )
        self._app.router.redirect_slashes = False

    def path_of(self, model: Any, key: Any = None) -> str:
        """Return the path of the page of a row, or of a table, below the path at which the browser is mounted.

        :param model: a class or an association table that it shows
        :param key: the primary key, also as text; a tuple if it is composite
        :raises TrackingError: the model is not tracked
        :raises QueryError: the browser does not show the model, or it is no key of it
        """
        name = self.sources.name_of(model)
        if self.sources.by_name.get(name) is None:
            raise QueryError(f"HistoryBrowser does not show {name!r}. Give it the model.", model)
        path = f"/{PATHS['table'].format(table=quote(path_part(name)))}"
        if key is None:
            return path
        ids = converted_ids(model_of(model).root.table.history_key, [key])["ids"]
        if not ids:
            raise QueryError(f"{key!r} is no key of {name!r}. Give the primary key; a tuple if it is composite.", key)
        return f"{path}/row?{urlencode({'key': key_texts(ids[0])}, doseq=True)}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        raw = (scope.get("raw_path") or quote(scope["path"]).encode()).decode("latin-1").partition("?")[0]
        scope = {**scope, "path": _whole_path(scope)}
        if scope["path"].endswith("/") and not raw.endswith("/"):  # Litestar adds a slash
            scope["path"] = scope["path"].removesuffix("/")

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                known = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in HEADERS if each[0] not in known)]
            await send(message)

        try:
            if self.authorize is None:
                refuse_strangers(scope)
        except Problem as problem:
            await self._tell(Request(scope), problem)(scope, receive, send_with_headers)
            return
        if scope["path"] == scope.get("root_path", ""):  # the links on a page are relative to it
            query = scope.get("query_string", b"").decode("latin-1")
            url = f"./{raw.rpartition('/')[2]}/" + (f"?{query}" if query else "")
            await RedirectResponse(url)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    # --- pages --------------------------------------------------------------------------------------------------

    def _endpoint(self, view: View) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                check_query(request)
                form = await form_of(request) if view.method == "POST" else {}
                place = self._place(request, needs_key=view.needs_key)
                permissions = await permissions_for(
                    self.authorize, request, view.action, self.sources, place.source, place.key
                )
                context = None
                if self.get_context is not None and view.method == "POST":
                    context = self.get_context(request)
                    context = await context if isawaitable(context) else context

                def work(session: Session) -> Response:
                    with limited(session, self.seconds):
                        return view.work(Visit(self, request, session, permissions, place, form))

                with manager_of(context, "HistoryBrowser"):
                    response = await self._run(work)
                if self.on_view is not None and response.status_code < 400:
                    told = self.on_view(request, view.action, place.source, place.key)
                    await told if isawaitable(told) else None
            except HTTPException:  # of authorize: log in first, or elsewhere
                raise
            except Exception as error:
                return self._tell(request, _problem_of(self, error))
            return response

        return endpoint

    async def _run(self, work: Callable[[Session], Response]) -> Response:
        sessions = self.sessions
        if isinstance(sessions, sessionmaker):

            def run() -> Response:
                with sessions() as session:
                    return work(session)

            return await run_in_threadpool(run)
        async with sessions() as session:
            response: Response = await session.run_sync(work)
            return response

    def _place(self, request: Request, *, needs_key: bool) -> Place:
        """Return what a request names.

        :raises Problem: there is no such table or key
        """
        name = request.path_params.get("table")
        if name is None:
            return Place()
        source = self.sources.in_path(name)
        if source is None:
            raise Problem(404, "unknown_table", name=name)
        if not needs_key:
            return Place(source)
        table = model_of(source).root.table
        texts = request.query_params.getlist("key")
        key = key_from_texts(table, texts)
        if key is None:
            names = ", ".join(model_of(source).root.key_names)
            raise Problem(404, "no_key", key=text_of(tuple(texts)), table=name, names=names)
        return Place(source, key)

    # --- what is wrong ------------------------------------------------------------------------------------------

    async def _refused(self, request: Request, error: Exception) -> Response:
        """Answer a request that no page fits, or that the application refuses by an ``HTTPException``."""
        assert isinstance(error, HTTPException)
        name = {404: "not_found", 405: "not_allowed"}.get(error.status_code, "forbidden")
        response = self._tell(request, Problem(error.status_code, name))
        response.headers.update(error.headers or {})
        return response

    def _tell(self, request: Request, problem: Problem) -> Response:
        page = Page(self, request)
        values: dict[str, Any] = {
            name: page.show.value(value, limit=_LONGEST_PART) if isinstance(value, str) else value
            for name, value in problem.values.items()
        }
        horizon = values.pop("pruned_before", None)
        if horizon is not None:
            values["when"], horizon = page.show.time(horizon), _url_at(page, instant_text(horizon))
        next_name, next_url = _next_step(page, problem) or (None, None)
        return page.render(
            "problem.html",
            problem.status,
            name=problem.name,
            values=values,
            horizon=horizon,
            next_name=next_name,
            next_url=next_url,
        )


def _url_at(page: Page, instant: str) -> str | None:
    """Return the URL of the same page as of an instant; ``None`` for a search, whose words name the instant."""
    query = page.request.query_params
    if query.get("a") or query.get("b"):
        return page.here(a=instant, b=None, at=None, after=None)
    return None if query.get("q") else page.here(at=instant, after=None)


def _next_step(page: Page, problem: Problem) -> tuple[str, str] | None:
    """Return the name and the URL of what a visitor may do after a problem, if there is more than the first page."""
    if page.request.method != "GET":
        return None
    if problem.name in ("bad_search", "wide_search"):
        return "problem_search", page.here(edit="1")
    if problem.name in ("database_away", "too_slow"):
        return "problem_again", page.here()
    if problem.name in ("no_instant", "future", "unknown_mark", "unknown_changeset", "unknown_state", "pruned"):
        return ("problem_now", page.here(at=None, after=None)) if page.request.query_params.get("at") else None
    if problem.name == "unknown_version":
        return "problem_versions", page.here(a=None, b=None)
    source = page.browser.sources.in_path(page.request.path_params.get("table", ""))
    if problem.name in ("unknown_row", "no_key") and source is not None:
        return "problem_table", page.url("table", table=page.browser.sources.name_of(source))
    return None


def _problem_of(browser: HistoryBrowser, error: Exception) -> Problem:
    """Return what a visitor is told of an error. The message of one may name what only some may see."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, PrunedError):
        return Problem(410, "pruned", pruned_before=error.pruned_before)
    if isinstance(error, HistoryTableError):
        _log.error("%s", error)
        cause = error.__cause__
        return Problem(500, "no_rights" if isinstance(cause, DBAPIError) and is_forbidden(cause) else "no_history")
    if isinstance(error, QueryError):
        _log.info("%s", error)
        return Problem(400, "told", message=str(error)) if browser.authorize is None else Problem(400, "bad_request")
    if isinstance(error, SQLAuditError) and browser.authorize is None:
        _log.error("%s", error)
        return Problem(500, "told", message=str(error))
    if isinstance(error, DBAPIError) and was_stopped(error):
        return too_slow(browser.seconds)
    if isinstance(error, DBAPIError) and is_forbidden(error):
        _log.error("The database refuses a page of history: %s", error)
        return Problem(500, "no_rights")
    if isinstance(error, IntegrityError):
        _log.info("%s", error)
        return Problem(409, "conflicting")
    if isinstance(error, DataError):
        _log.info("%s", error)
        return Problem(400, "bad_request")
    if isinstance(error, (OperationalError, InterfaceError, PoolTimeoutError, OSError)):
        _log.error("The database does not answer a page of history: %s", error)
        return Problem(503, "database_away")
    _log.exception("A page of history could not be made.", exc_info=error)
    return Problem(500, "failed")


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_STATIC / name, media_type=_FILES[name], headers={"Cache-Control": "no-cache"})


_LONGEST_PART: Final = 1_000
"""The characters of an address, or of an error's message, that a page repeats at first."""
_STATIC: Final = Path(__file__).with_name("static")
_FILES: Final = {"history.css": "text/css", "history.js": "text/javascript", "icon.svg": "image/svg+xml"}


def _whole_path(scope: Scope) -> str:
    """Return the path of a request with its root path, which a proxy may have removed from it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    of_proxy: str = scope.get("app_root_path", "")  # the rest is where the browser is mounted
    is_cut = not path.startswith(root) and root.startswith(of_proxy) and path.startswith(root[len(of_proxy) :])
    return of_proxy + path if is_cut else path


def _sessions_of(given: Any) -> Any:
    """Return a maker of sessions that record.

    :raises QueryError: it is neither an engine nor a maker of sessions
    """
    if isinstance(given, (sessionmaker, async_sessionmaker)):
        return given
    if isinstance(given, Engine):
        sessions: Any = sessionmaker(given)
    elif isinstance(given, AsyncEngine):
        sessions = async_sessionmaker(given)
    else:
        raise QueryError(
            f"HistoryBrowser was given {given!r}. Give an Engine, an AsyncEngine, a sessionmaker or an "
            "async_sessionmaker.",
            given,
        )
    register_hooks(sessions)
    return sessions
