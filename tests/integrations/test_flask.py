"""An extension of Flask sets the context around views, streams and teardown, and asks Flask-Login for the user."""

from collections.abc import Iterator
from typing import Any

import flask_login
import pytest
from flask import Blueprint, Flask, Response, abort, request, stream_with_context
from sqlalchemy.orm import Session, sessionmaker

from notes import Base, in_threads, write, written
from sqlaudit import AuditContext, ContextError, get_audit_context
from sqlaudit.integrations.flask import Audit

__all__ = ["Base"]


def application(sessions: sessionmaker[Session]) -> Flask:
    """Return an application with a view of each kind, which writes a note."""
    app, blueprint = Flask("notes"), Blueprint("tenants", "tenants", url_prefix="/tenants/<tenant>")

    @app.put("/plain/<int:item>")
    def plain(item: int) -> str:
        return write(sessions, request.headers["X-User"])

    @app.put("/stream")
    def stream() -> Response:
        user = request.headers["X-User"]

        def parts() -> Iterator[str]:
            yield "a"
            yield write(sessions, user)

        return Response(parts())

    @app.put("/stream-with-context")
    def stream_in_context() -> Response:
        @stream_with_context
        def parts() -> Iterator[str]:
            yield "a"
            yield write(sessions, request.headers["X-User"])

        return Response(parts())

    @app.put("/teardown")
    def teardown() -> str:
        return "written later"

    @app.teardown_request
    def write_at_the_end(error: BaseException | None) -> None:
        if request.path == "/teardown":
            write(sessions, request.headers["X-User"])

    @blueprint.put("/items")
    def of_a_blueprint(tenant: str) -> str:
        return write(sessions, request.headers["X-User"])

    app.register_blueprint(blueprint)
    return app


PATHS = {
    "/plain/7": "/plain/<int:item>",
    "/stream": "/stream",
    "/stream-with-context": "/stream-with-context",
    "/teardown": "/teardown",
    "/tenants/acme/items": "/tenants/<tenant>/items",
}


def with_login(app: Flask) -> Audit:
    manager = flask_login.LoginManager(app)

    @manager.request_loader
    def load(request: Any) -> Any:
        user = flask_login.UserMixin()
        user.id = request.headers.get("X-User")
        return user if user.id else None

    return Audit(app)


def with_function(app: Flask) -> Audit:
    audit = Audit(get_context=lambda: {"user_id": request.headers["X-User"], "actor_type": "user"})
    audit.init_app(app)
    return audit


@pytest.mark.parametrize("extend", [with_login, with_function])
@pytest.mark.spread
def test_fifty_requests_at_once_keep_their_users_apart(sessions: sessionmaker[Session], extend: Any) -> None:
    app = application(sessions)
    extend(app)
    paths = {f"user-{number}": [*PATHS][number % len(PATHS)] for number in range(50)}

    def put(user: str) -> int:
        headers = {"X-User": user, "X-Request-ID": f"of-{user}"}
        with app.test_client().put(paths[user], headers=headers) as response:
            response.get_data()
            return response.status_code

    assert set(in_threads(put)) == {200}
    notes = written(sessions)
    assert {user: notes[user].audit_extra for user in paths} == {
        user: {"request_id": f"of-{user}", "method": "PUT", "route": PATHS[path], "actor_type": "user"}
        for user, path in paths.items()
    }


# --- one request ------------------------------------------------------------------------------------------------


def seeing() -> tuple[Flask, list[AuditContext]]:
    """Return an application that remembers the context of each request."""
    app, seen = Flask("seeing"), list[AuditContext]()
    app.testing = True

    @app.get("/")
    def get() -> str:
        seen.append(get_audit_context())
        return ""

    return app, seen


def test_who_is_not_logged_in_is_anonymous() -> None:
    app, seen = seeing()
    with_login(app)
    app.test_client().get("/")
    assert (seen[0].user_id, seen[0].actor_type) == (None, "anonymous")


def test_a_function_adds_to_the_login_or_replaces_it() -> None:
    app, seen = seeing()
    audit = with_login(app)
    audit.get_context = lambda: {"reason": request.args["reason"], "user_id": request.args.get("service")}
    app.test_client().get("/?reason=test", headers={"X-User": "ana"})
    app.test_client().get("/?reason=test&service=nightly", headers={"X-User": "ana"})
    assert [(each.user_id, each.actor_type, each.reason) for each in seen] == [
        ("ana", "user", "test"),
        ("nightly", None, "test"),
    ]


def test_no_header_names_the_user() -> None:
    app, seen = seeing()
    Audit(app)
    app.test_client().get("/", headers={"X-User": "eve", "Authorization": "Basic ZXZlOmE=", "X-Request-ID": "r"})
    assert seen == [AuditContext(extra={"request_id": "r", "method": "GET", "route": "/"})]
    assert get_audit_context() == AuditContext()


def test_a_request_within_a_request_has_a_context_of_its_own() -> None:
    app, seen = seeing()
    Audit(app, lambda request: {"user_id": request.headers["X-User"]})

    @app.get("/outer")
    def outer() -> str:
        app.test_client().get("/", headers={"X-User": "inner"})
        seen.append(get_audit_context())
        return ""

    with app.app_context():
        app.test_client().get("/outer", headers={"X-User": "outer", "X-Request-ID": "r"})
    assert [each.user_id for each in seen] == ["inner", "outer"]
    assert [each.extra["route"] for each in seen] == ["/", "/outer"]
    assert {each.extra["request_id"] for each in seen} == {"r"}


def test_what_get_context_aborts_with_is_the_response() -> None:
    app, seen = seeing()
    Audit(app, lambda: abort(401))
    assert (app.test_client().get("/").status_code, seen) == (401, [])


@pytest.mark.parametrize("given", ["ana", {"user": "ana"}])
def test_junk_is_refused_before_the_view_runs(given: Any) -> None:
    app, seen = seeing()
    Audit(app, lambda: given)
    with pytest.raises(ContextError, match="get_context of Audit returned"):
        app.test_client().get("/")
    assert (seen, get_audit_context()) == ([], AuditContext())
    with pytest.raises(ContextError, match="has an Audit already"):
        Audit(app)
    with pytest.raises(ContextError, match="get_context of Audit is 5"):
        Audit(app, 5)  # type: ignore[arg-type]


def test_a_request_that_no_server_handles_leaves_no_context_behind() -> None:
    app, _ = seeing()
    Audit(app, lambda: {"user_id": "ana"})
    with app.test_request_context("/"):
        app.preprocess_request()
    assert get_audit_context() == AuditContext()


def test_a_client_that_keeps_its_request_keeps_no_context() -> None:
    app, seen = seeing()
    Audit(app, lambda: {"user_id": "ana"})
    with app.test_client() as client:
        client.get("/")
        assert request.path == "/"
        assert get_audit_context() == AuditContext()
    assert seen[0].user_id == "ana"
