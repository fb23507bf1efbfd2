"""A dependency of FastAPI sets the context around endpoints of every kind."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.security import APIKeyHeader
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from notes import USERS, Base, Note, at_once, write, written
from sqlaudit import AuditContext, ContextError, get_audit_context, register_hooks, unregister_hooks
from sqlaudit.integrations.asgi import AuditContextMiddleware
from sqlaudit.integrations.fastapi import audit_context

__all__ = ["Base"]

User = Annotated[str, Header(alias="X-User")]


def application(sessions: sessionmaker[Session], **options: Any) -> FastAPI:
    """Return an application with an endpoint of each kind, which writes a note."""
    app, router = FastAPI(**options), APIRouter(prefix="/tenants/{tenant}")

    @app.put("/async/{item}")
    async def asynchronous(item: int, user: User) -> str:
        await asyncio.sleep(0.001)
        return write(sessions, user)

    @app.put("/plain")
    def plain(user: User) -> str:
        return write(sessions, user)

    @app.put("/stream")
    async def stream(user: User) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "a"
            await asyncio.sleep(0.001)
            yield write(sessions, user)

        return StreamingResponse(parts())

    @app.put("/background")
    async def background(user: User, tasks: BackgroundTasks) -> None:
        tasks.add_task(write, sessions, user)

    def open_session() -> Iterator[Session]:
        with sessions.begin() as session:
            yield session  # it commits after the endpoint has returned

    @app.put("/committed-later")
    def add(user: User, session: Annotated[Session, Depends(open_session)]) -> None:
        session.add(Note(author=user))

    @router.put("/items")
    def of_a_router(tenant: str, user: User) -> str:
        return write(sessions, user)

    app.include_router(router, prefix="/v1")
    return app


PATHS = {
    "/async/7": "/async/{item}",
    "/plain": "/plain",
    "/stream": "/stream",
    "/background": "/background",
    "/committed-later": "/committed-later",
    "/v1/tenants/acme/items": "/v1/tenants/{tenant}/items",
}


def plain_function(request: Request) -> dict[str, Any]:
    return {"user_id": request.headers["x-user"]}


async def asynchronous_function(request: Request) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return {"user_id": request.headers["x-user"]}


def current_user(key: Annotated[str, Depends(APIKeyHeader(name="X-User"))]) -> str:
    return key


def dependency(user: Annotated[str, Depends(current_user)]) -> dict[str, Any]:
    return {"user_id": user}


def with_a_default(user=Depends(current_user)) -> dict[str, Any]:  # noqa: B008  # as FastAPI once wrote it
    return {"user_id": user}


class Callable:
    async def __call__(self, connection: Any) -> dict[str, Any]:
        return {"user_id": connection.headers["x-user"]}


def by_middleware(sessions: sessionmaker[Session]) -> FastAPI:
    app = application(sessions)
    app.add_middleware(AuditContextMiddleware, get_context=lambda scope: plain_function(Request(scope)))
    return app


@pytest.mark.parametrize(
    "get_context",
    [plain_function, asynchronous_function, dependency, with_a_default, Callable(), by_middleware],
)
@pytest.mark.spread
def test_fifty_requests_at_once_keep_their_users_apart(sessions: sessionmaker[Session], get_context: Any) -> None:
    if get_context is by_middleware:
        app = by_middleware(sessions)
    else:
        app = application(sessions, dependencies=[Depends(audit_context(get_context))])
    paths = [path for _ in USERS for path in PATHS][: len(USERS)]

    async def all_of_them() -> list[Any]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            headers = [{"X-User": user, "X-Request-ID": f"of-{user}"} for user in USERS]
            return await at_once(client.put(path, headers=each) for path, each in zip(paths, headers, strict=True))

    assert {response.status_code for response in asyncio.run(all_of_them())} == {200}
    notes = written(sessions)
    assert {user: notes[user].audit_extra for user in USERS} == {
        user: {"request_id": f"of-{user}", "method": "PUT", "route": PATHS[path]}
        for path, user in zip(paths, USERS, strict=True)
    }


@pytest.mark.spread
def test_fifty_requests_of_async_sessions_keep_their_users_apart(
    async_engine: AsyncEngine, sessions: sessionmaker[Session]
) -> None:
    async_sessions = async_sessionmaker(async_engine)
    app = FastAPI(dependencies=[Depends(audit_context(plain_function))])
    limit = asyncio.Semaphore(10)

    async def open_session() -> AsyncIterator[AsyncSession]:
        async with limit, async_sessions() as session:
            yield session

    @app.put("/")
    async def put(user: User, session: Annotated[AsyncSession, Depends(open_session)]) -> None:
        session.add(Note(author=user))
        await session.commit()

    async def all_of_them() -> None:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://test") as client:
            await at_once(client.put("/", headers={"X-User": user}) for user in USERS)

    register_hooks(async_sessions)
    try:
        asyncio.run(all_of_them())
    finally:
        unregister_hooks(async_sessions)
    assert written(sessions).keys() == set(USERS)


def seeing(**options: Any) -> tuple[FastAPI, list[AuditContext]]:
    """Return an application that remembers the context of each request."""
    app, seen = FastAPI(**options), list[AuditContext]()

    @app.get("/")
    def get() -> None:
        seen.append(get_audit_context())

    @app.websocket("/socket/{room}")
    async def talk(socket: WebSocket, room: str) -> None:
        await socket.accept()
        seen.append(get_audit_context())
        await socket.close()

    return app, seen


def test_a_websocket_has_the_context_too() -> None:
    app, seen = seeing(dependencies=[Depends(audit_context(lambda connection: {"reason": "chat"}))])
    with TestClient(app).websocket_connect("/socket/7"):
        pass
    assert (seen[0].reason, seen[0].extra["method"], seen[0].extra["route"]) == ("chat", "WEBSOCKET", "/socket/{room}")


def test_a_mounted_application_adds_to_the_context() -> None:
    app, seen = seeing(dependencies=[Depends(audit_context(lambda request: {"reason": "mounted"}))])
    main = FastAPI()
    main.add_middleware(AuditContextMiddleware, get_context=lambda scope: {"user_id": "ana", "reason": "main"})
    main.mount("/{tenant}", app)
    TestClient(main, root_path="/api").get("/api/acme/")
    assert (seen[0].user_id, seen[0].reason, seen[0].extra["route"]) == ("ana", "mounted", "/api/acme/")


def test_a_dependency_without_a_function_tells_of_the_request_only() -> None:
    app, seen = seeing(dependencies=[Depends(audit_context())])
    TestClient(app).get("/", headers={"X-User": "eve", "X-Request-ID": "r"})
    assert seen == [AuditContext(extra={"request_id": "r", "method": "GET", "route": "/"})]


@pytest.mark.parametrize("is_dependency", [False, True])
def test_an_http_error_of_get_context_is_the_response(is_dependency: bool) -> None:
    def refuse_request(request: Request) -> None:
        raise HTTPException(401, "Who are you?")

    def refuse(user: User = "") -> None:
        raise HTTPException(401, "Who are you?")

    app, seen = seeing(dependencies=[Depends(audit_context(refuse if is_dependency else refuse_request))])
    response = TestClient(app).get("/")
    assert (response.status_code, response.json(), seen) == (401, {"detail": "Who are you?"}, [])


@pytest.mark.parametrize("given", ["ana", {"user": "ana"}])
def test_junk_is_refused_before_the_endpoint_runs(given: Any) -> None:
    app, seen = seeing(dependencies=[Depends(audit_context(lambda request: given))])
    with pytest.raises(ContextError, match="get_context of audit_context returned"):
        TestClient(app).get("/")
    assert seen == []
    with pytest.raises(ContextError, match="get_context of audit_context is 5"):
        audit_context(5)  # type: ignore[arg-type]
