"""Every part of a response of a WSGI application is made as the user of its request."""

from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from sqlalchemy.orm import Session, sessionmaker

from notes import Base, in_threads, write, written
from sqlaudit import AuditContext, AuditContextManager, ContextError, get_audit_context, set_audit_context
from sqlaudit.integrations.wsgi import AuditContextMiddleware

__all__ = ["Base"]


def by_header(environ: dict[str, Any]) -> dict[str, Any]:
    return {"user_id": environ["HTTP_X_USER"]}


def environment(**values: Any) -> dict[str, Any]:
    environ = {"SCRIPT_NAME": "/app", "PATH_INFO": "/notes", "HTTP_X_REQUEST_ID": "r"} | values
    setup_testing_defaults(environ)
    return environ


def run(app: Any, **values: Any) -> list[bytes]:
    """Call an application as a server does."""
    body = app(environment(**values), lambda status, headers: None)
    try:
        return list(body)
    finally:
        if hasattr(body, "close"):
            body.close()


class Body:
    """A body that writes a note after its first part, and remembers who closes it."""

    closed: list[tuple[str, str | None]] = []

    def __init__(self, sessions: sessionmaker[Session], user: str) -> None:
        self.sessions = sessions
        self.user = user

    def __iter__(self) -> Iterator[bytes]:
        yield b"a"
        yield write(self.sessions, self.user).encode()

    def close(self) -> None:
        self.closed.append((self.user, get_audit_context().user_id))


@pytest.mark.spread
def test_fifty_requests_at_once_keep_their_users_apart(sessions: sessionmaker[Session]) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        user = environ["HTTP_X_USER"]
        return Body(sessions, user) if user.endswith(("1", "3", "5")) else [write(sessions, user).encode()]

    Body.closed = []
    app = AuditContextMiddleware(application, by_header)
    bodies = in_threads(lambda user: b"".join(run(app, HTTP_X_USER=user)))
    notes = written(sessions)
    assert {body.decode().removeprefix("a") for body in bodies} == notes.keys()
    assert len(Body.closed) == 15
    assert all(user == closed_by for user, closed_by in Body.closed)
    assert notes["user-7"].audit_extra == {"request_id": "r", "method": "GET", "route": "/app/notes"}


def test_one_thread_forgets_each_request() -> None:
    seen = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        seen.append(get_audit_context().user_id)
        set_audit_context("somebody else")  # which lasts until the end of the request
        yield b"a"
        seen.append(get_audit_context().user_id)
        if environ["HTTP_X_USER"] == "ben":
            raise LookupError
        yield b"b"

    app = AuditContextMiddleware(application, by_header)
    with AuditContextManager("the server"):
        assert run(app, HTTP_X_USER="ana") == [b"a", b"b"]
        assert get_audit_context() == AuditContext("the server")
        with pytest.raises(LookupError):
            run(app, HTTP_X_USER="ben")
        assert get_audit_context() == AuditContext("the server")
    assert seen == ["ana", "somebody else", "ben", "somebody else"]


@pytest.mark.parametrize(
    ("path", "route"),
    [("/é".encode(), "/app/é"), (b"/\xff\0", "/app/\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}")],
    ids=ascii,
)
def test_a_path_is_text_whatever_a_client_sends(path: bytes, route: str) -> None:
    seen = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(get_audit_context().extra["route"])
        return []

    run(AuditContextMiddleware(application), PATH_INFO=path.decode("latin-1"))
    assert seen == [route]


def test_no_header_names_the_user() -> None:
    seen = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(get_audit_context())
        return []

    run(AuditContextMiddleware(application), HTTP_X_USER="eve", REMOTE_USER="eve", HTTP_AUTHORIZATION="Basic ZXZlOmE=")
    assert (seen[0].user_id, seen[0].actor_type) == (None, None)


def test_junk_is_refused_before_the_application_runs() -> None:
    async def asynchronous(environ: dict[str, Any]) -> None:
        pass

    def failing(environ: dict[str, Any]) -> None:
        raise LookupError("no such token")

    def never(environ: dict[str, Any], start_response: Any) -> None:
        raise AssertionError("the application runs")

    for get_context, message in ((asynchronous, "is asynchronous. Give a plain function"), (str, 'returned "{')):
        with pytest.raises(ContextError, match=message):
            run(AuditContextMiddleware(never, get_context))  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="no such token"):
        run(AuditContextMiddleware(never, failing))  # type: ignore[arg-type]
    assert get_audit_context() == AuditContext()
    with pytest.raises(ContextError, match="get_context of AuditContextMiddleware is 'ana', which cannot be called"):
        AuditContextMiddleware(never, "ana")  # type: ignore[arg-type]
