"""All parts of an ASGI application write as the user of the request: streams, background tasks, mounts, WebSockets."""

import asyncio
import copy
import pickle
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from notes import USERS, Base, at_once, write, written
from sqlaudit import AuditContext, AuditContextManager, ContextError, get_audit_context
from sqlaudit.integrations.asgi import AuditContextMiddleware

__all__ = ["Base"]


def by_header(scope: Any) -> dict[str, Any]:
    return {"user_id": dict(scope["headers"])[b"x-user"].decode(), "actor_type": "user"}


async def by_header_later(scope: Any) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return by_header(scope)


def application(sessions: sessionmaker[Session], get_context: Any) -> Starlette:
    """Return an application with an endpoint of each kind, which writes a note."""

    async def asynchronous(request: Request) -> PlainTextResponse:
        await asyncio.sleep(0.001)
        return PlainTextResponse(write(sessions, request.headers["x-user"]))

    def plain(request: Request) -> PlainTextResponse:
        return PlainTextResponse(write(sessions, request.headers["x-user"]))

    def stream(request: Request) -> StreamingResponse:
        def parts() -> Iterator[str]:
            yield "a"
            yield write(sessions, request.headers["x-user"])

        return StreamingResponse(parts())

    async def asynchronous_stream(request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "a"
            await asyncio.sleep(0.001)
            yield write(sessions, request.headers["x-user"])

        return StreamingResponse(parts())

    async def background(request: Request) -> PlainTextResponse:
        return PlainTextResponse("", background=BackgroundTask(write, sessions, request.headers["x-user"]))

    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive_text()
        write(sessions, socket.headers["x-user"])
        await socket.close()

    async def passing_on(request: Request, call_next: Any) -> Any:
        return await call_next(request)  # BaseHTTPMiddleware runs the application in another task

    return Starlette(
        routes=[
            Route("/async/{item:int}", asynchronous),
            Route("/plain", plain, methods=["PUT"]),
            Route("/stream", stream),
            Route("/async-stream", asynchronous_stream),
            Route("/background", background),
            Mount("/mounted", routes=[Route("/{item}", plain)]),
            Mount("/app", AuditContextMiddleware(Starlette(routes=[Route("/{item}", plain)]))),
            WebSocketRoute("/socket/{room}", socket),
        ],
        middleware=[
            Middleware(AuditContextMiddleware, get_context=get_context),
            Middleware(BaseHTTPMiddleware, dispatch=passing_on),
        ],
    )


PATHS = {
    "/async/7": ("GET", "/async/{item}"),
    "/plain": ("PUT", "/plain"),
    "/stream": ("GET", "/stream"),
    "/async-stream": ("GET", "/async-stream"),
    "/background": ("GET", "/background"),
    "/mounted/7": ("GET", "/mounted/{item}"),
    "/app/7": ("GET", "/app/{item}"),
    "/socket/7": ("WEBSOCKET", "/socket/{room}"),
}


async def talk(app: Any, path: str, user: str) -> None:
    """Open a WebSocket and send a message."""
    received = asyncio.Queue[dict[str, Any]]()
    for message in ({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}):
        received.put_nowait(message)
    headers = [(b"x-user", user.encode()), (b"x-request-id", f"of {user}".replace(" ", "-").encode())]
    scope = {"type": "websocket", "path": path, "headers": headers, "query_string": b"", "subprotocols": []}

    async def send(message: Any) -> None:
        pass

    await app(scope, received.get, send)


@pytest.mark.parametrize("get_context", [by_header, by_header_later])
@pytest.mark.spread
def test_fifty_requests_at_once_keep_their_users_apart(
    sessions: sessionmaker[Session], get_context: Callable[[Any], Any]
) -> None:
    app = application(sessions, get_context)
    paths = [path for _ in USERS for path in PATHS][: len(USERS)]

    async def request(client: httpx2.AsyncClient, path: str, user: str) -> None:
        method, _ = PATHS[path]
        if method == "WEBSOCKET":
            await talk(app, path, user)
        else:
            headers = {"X-User": user, "X-Request-ID": f"of-{user}"}
            assert (await client.request(method, path, headers=headers)).status_code == 200

    async def all_of_them() -> None:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            await at_once(request(client, path, user) for path, user in zip(paths, USERS, strict=True))

    asyncio.run(all_of_them())
    notes = written(sessions)
    assert {user: notes[user].audit_extra for user in USERS} == {
        user: {"request_id": f"of-{user}", "method": PATHS[path][0], "route": PATHS[path][1], "actor_type": "user"}
        for path, user in zip(paths, USERS, strict=True)
    }


# --- what is known of a request ---------------------------------------------------------------------------------


def context_of(headers: dict[str, str], get_context: Any = None, app: Any = None, **scope: Any) -> AuditContext:
    """Return the context in which an application handles a request."""
    seen = []

    async def remember(scope: Any, receive: Any, send: Any) -> None:
        seen.append(get_audit_context())

    call = AuditContextMiddleware(app or remember, get_context)
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    asyncio.run(call({"type": "http", "method": "GET", "path": "/a/b", "headers": encoded, **scope}, None, None))
    (context,) = seen
    return context


SPAN = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"}
TRACE = "-".join(SPAN.values())


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{TRACE}-01", SPAN),
        (f"01-{TRACE}-01-more", SPAN),
        (f"00-{TRACE}-01-more", {}),
        (f"ff-{TRACE}-01", {}),
        (f"00-{TRACE.upper()}-01", {}),
        (f"00-{'0' * 32}-{SPAN['span_id']}-01", {}),
        (f"00-{SPAN['trace_id']}-{'0' * 16}-01", {}),
        ("junk", {}),
    ],
)
def test_a_trace_is_noted_as_the_w3c_writes_it(traceparent: str, expected: dict[str, str]) -> None:
    extra = context_of({"traceparent": traceparent, "x-request-id": "r"}).extra
    assert extra == {"request_id": "r", "method": "GET", "route": "/a/b"} | expected


@pytest.mark.parametrize("request_id", [None, "", " ", "a\tb", "é", "x" * 129])
def test_a_request_gets_an_id_unless_its_own_can_be_kept(request_id: str | None) -> None:
    headers = {} if request_id is None else {"x-request-id": request_id}
    assert re.fullmatch(r"[0-9a-f-]{36}", context_of(headers).extra["request_id"])
    assert context_of({"x-request-id": "x" * 128}).extra["request_id"] == "x" * 128
    with AuditContextManager(extra={"request_id": "of the outer request"}):
        assert context_of(headers).extra["request_id"] == "of the outer request"


PATHS_OF_CLIENTS = [
    ("/é/😀", "/é/😀"),
    ("/a\0b", "/a\N{REPLACEMENT CHARACTER}b"),
    ("/a\udcffb", "/a?b"),
    ("/" + "x" * 9_999, "/" + "x" * 499),
]


@pytest.mark.parametrize(("path", "route"), PATHS_OF_CLIENTS, ids=ascii)
@pytest.mark.spread
def test_whatever_path_a_client_sends_the_write_is_stored(
    sessions: sessionmaker[Session], path: str, route: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        write(sessions, "ana")

    asyncio.run(AuditContextMiddleware(app, by_header)(request_for(path), None, None))  # type: ignore[arg-type]
    assert written(sessions)["ana"].audit_extra["route"] == route


def request_for(path: str) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "headers": [(b"x-user", b"ana")]}


def test_no_header_names_the_user() -> None:
    headers = {"x-user": "eve", "authorization": "Basic ZXZlOmE=", "from": "eve", "x-forwarded-user": "eve"}
    context = context_of(headers)
    assert (context.user_id, context.actor_type) == (None, None)


def test_the_application_may_say_more_and_other_things() -> None:
    given = {"reason": "test", "extra": {"route": "mine", "tenant": 1}, "run_id": "r"}
    context = context_of({"x-request-id": "i"}, lambda scope: given)
    assert context.extra == {"request_id": "i", "method": "GET", "route": "mine", "tenant": 1, "run_id": "r"}
    assert context_of({"x-request-id": "i"}, lambda scope: None).reason is None


def test_the_context_of_a_request_can_be_given_to_another_process() -> None:
    context = context_of({"x-request-id": "r"}, lambda scope: {"user_id": "ana"})
    assert pickle.loads(pickle.dumps(context)) == context == copy.deepcopy(context)
    assert context.extra["route"] == "/a/b"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ana", "get_context of AuditContextMiddleware returned 'ana'. Return a dict of AuditContextManager's"),
        ({"user": "ana"}, "returned 'user', which is no argument of AuditContextManager. It takes user_id, reason"),
        ({"user_id": 1.5}, "user_id is 1.5"),
        ({"extra": [1]}, r"returned \[1\] as extra"),
        ({"extra": {"a": object()}}, "extra cannot be stored as JSON"),
        ({"actor_type": "robot"}, "actor_type is 'robot'"),
    ],
)
def test_junk_is_refused_before_the_application_runs(given: Any, message: str) -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application runs")

    with pytest.raises(ContextError, match=message):
        context_of({}, lambda scope: given, never)
    assert get_audit_context() == AuditContext()


def test_what_get_context_raises_says_where_it_comes_from() -> None:
    def failing(scope: Any) -> None:
        raise LookupError("no such token")

    with pytest.raises(LookupError, match="no such token") as caught:
        context_of({}, failing)
    assert caught.value.__notes__ == [
        "get_context of AuditContextMiddleware raised this, so the request was not handled."
    ]
    with pytest.raises(ContextError, match="get_context of AuditContextMiddleware is 'ana', which cannot be called"):
        AuditContextMiddleware(application, "ana")  # type: ignore[arg-type]


def test_the_lifespan_of_an_application_has_no_context() -> None:
    seen = []

    async def remember(scope: Any, receive: Any, send: Any) -> None:
        seen.append(get_audit_context())

    asyncio.run(AuditContextMiddleware(remember, by_header)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [AuditContext()]
