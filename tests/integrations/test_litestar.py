"""A plugin of Litestar sets the context around handlers of every kind."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from litestar import Litestar, Request, Router, WebSocket, get, put, websocket
from litestar.background_tasks import BackgroundTask
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult
from litestar.response import Response, Stream
from litestar.testing import TestClient
from sqlalchemy.orm import Session, sessionmaker

from notes import USERS, Base, at_once, write, written
from sqlaudit import ContextError, get_audit_context
from sqlaudit.integrations.litestar import AuditContextPlugin

__all__ = ["Base"]


class Authentication(AbstractAuthenticationMiddleware):
    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        await asyncio.sleep(0.001)
        return AuthenticationResult(user=connection.headers.get("X-User"), auth=None)


def user_of(connection: ASGIConnection[Any, Any, Any, Any]) -> dict[str, Any]:
    if connection.user is None:
        raise NotAuthorizedException("Who are you?")
    return {"user_id": connection.user, "actor_type": "user"}


async def user_of_later(connection: ASGIConnection[Any, Any, Any, Any]) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return user_of(connection)


def application(sessions: sessionmaker[Session], get_context: Any) -> Litestar:
    """Return an application with a handler of each kind, which writes a note."""

    @put("/async/{item:int}")
    async def asynchronous(request: Request[Any, Any, Any]) -> str:
        await asyncio.sleep(0.001)
        return write(sessions, request.user)

    @put("/plain", sync_to_thread=True)
    def plain(request: Request[Any, Any, Any]) -> str:
        return write(sessions, request.user)

    @put("/stream")
    async def stream(request: Request[Any, Any, Any]) -> Stream:
        async def parts() -> AsyncIterator[str]:
            yield "a"
            await asyncio.sleep(0.001)
            yield write(sessions, request.user)

        return Stream(parts())

    @put("/background")
    async def background(request: Request[Any, Any, Any]) -> Response[None]:
        return Response(None, background=BackgroundTask(write, sessions, request.user))

    @put("/items")
    async def of_a_router(request: Request[Any, Any, Any]) -> str:
        return write(sessions, request.user)

    @get("/seen", sync_to_thread=False)
    def seen() -> dict[str, Any]:
        return get_audit_context().extra

    @websocket("/socket/{room:str}")
    async def talk(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        await socket.send_text(write(sessions, socket.user))
        await socket.close()

    router = Router("/tenants/{tenant:str}", route_handlers=[of_a_router])
    return Litestar(
        [asynchronous, plain, stream, background, router, seen, talk],
        middleware=[Authentication],
        plugins=[AuditContextPlugin(get_context)],
        logging_config=None,  # its listener would outlive the test
    )


PATHS = {
    "/async/7": "/async/{item}",
    "/plain": "/plain",
    "/stream": "/stream",
    "/background": "/background",
    "/tenants/acme/items": "/tenants/{tenant}/items",
}


@pytest.mark.parametrize("get_context", [user_of, user_of_later])
@pytest.mark.spread
def test_fifty_requests_at_once_keep_their_users_apart(sessions: sessionmaker[Session], get_context: Any) -> None:
    app = application(sessions, get_context)
    paths = [path for _ in USERS for path in PATHS][: len(USERS)]

    async def all_of_them() -> list[Any]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            headers = [{"X-User": user, "X-Request-ID": f"of-{user}"} for user in USERS]
            return await at_once(client.put(path, headers=each) for path, each in zip(paths, headers, strict=True))

    assert {response.status_code for response in asyncio.run(all_of_them())} == {200}
    notes = written(sessions)
    assert {user: notes[user].audit_extra for user in USERS} == {
        user: {"request_id": f"of-{user}", "method": "PUT", "route": PATHS[path], "actor_type": "user"}
        for path, user in zip(paths, USERS, strict=True)
    }


@pytest.mark.spread
def test_a_websocket_has_the_context_too(sessions: sessionmaker[Session]) -> None:
    with (
        TestClient(application(sessions, user_of)) as client,
        client.websocket_connect("/socket/7", headers={"X-User": "ana"}) as socket,
    ):
        assert socket.receive_text() == "ana"
    extra = written(sessions)["ana"].audit_extra
    assert (extra["method"], extra["route"]) == ("WEBSOCKET", "/socket/{room}")


@pytest.mark.spread
def test_an_http_error_of_get_context_is_the_response(sessions: sessionmaker[Session]) -> None:
    with TestClient(application(sessions, user_of)) as client:
        assert client.get("/seen").status_code == 401
        assert client.get("/seen", headers={"X-User": "ana"}).json()["route"] == "/seen"


@pytest.mark.spread
def test_a_plugin_without_a_function_tells_of_the_request_only(sessions: sessionmaker[Session]) -> None:
    with TestClient(application(sessions, None)) as client:
        seen = client.get("/seen", headers={"X-Request-ID": "r"}).json()
    assert seen == {"request_id": "r", "method": "GET", "route": "/seen"}
    with pytest.raises(ContextError, match="get_context of AuditContextPlugin is 5"):
        AuditContextPlugin(5)  # type: ignore[arg-type]
