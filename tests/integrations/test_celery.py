"""A task writes as the user who sent it, in the worker: the context travels with the message, signed if need be."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker
from celery.signals import before_task_publish
from sqlalchemy.orm import Session, sessionmaker

from notes import USERS, Base, write, written
from sqlaudit import AuditContext, AuditContextManager, ContextError, get_audit_context
from sqlaudit.integrations.celery import install, uninstall

__all__ = ["Base"]


def new_app() -> Celery:
    app = Celery("notes", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(worker_hijack_root_logger=False, broker_transport_options={"polling_interval": 0.01})

    @app.task(name="told", shared=False, bind=True)
    def told(task: Any, previous: Any = None) -> dict[str, Any]:
        context = get_audit_context()
        return {"user": context.user_id, "reason": context.reason, "extra": context.extra, "run": context.run_id}

    @app.task(name="headers", shared=False, bind=True)
    def headers(task: Any) -> dict[str, Any]:
        return {name: value for name, value in task.request.headers.items() if name != "sqlaudit"}

    @app.task(name="failing", shared=False, bind=True, max_retries=1)
    def failing(task: Any) -> Any:
        if not task.request.retries:
            raise task.retry(countdown=0)
        return told.run()

    @app.task(name="writing", shared=False)
    def writing(author: str) -> str:
        return write(app.note_sessions, author)

    @app.task(name="sending", shared=False)
    def sending() -> str:
        return told.delay().id

    return app


@pytest.fixture(scope="session")
def worker() -> Iterator[Celery]:
    """An application whose tasks a worker runs in threads. It is the same for all tests: a worker starts slowly."""
    app = new_app()
    with start_worker(app, pool="threads", concurrency=8, perform_ping_check=False, shutdown_timeout=30):
        yield app


@pytest.fixture
def app(worker: Celery) -> Iterator[Celery]:
    install(worker)
    yield worker
    uninstall(worker)


def result_of(app: Celery, name: str = "told", **options: Any) -> Any:
    return app.tasks[name].apply_async(**options).get(timeout=20, interval=0.01)


@pytest.mark.spread
def test_fifty_tasks_at_once_keep_their_users_apart(app: Celery, sessions: sessionmaker[Session]) -> None:
    app.note_sessions = sessions

    def send(user: str) -> str:
        with AuditContextManager(user, actor_type="user", extra={"request_id": f"of-{user}"}):
            result = app.tasks["writing"].delay(user)
        result.get(timeout=60, interval=0.05)
        return result.id

    with ThreadPoolExecutor(len(USERS)) as threads:
        ids = dict(zip(USERS, threads.map(send, USERS), strict=True))
    notes = written(sessions)
    assert {user: notes[user].audit_extra for user in USERS} == {
        user: {"request_id": f"of-{user}", "actor_type": "user", "task": "writing", "task_id": ids[user]}
        for user in USERS
    }


def test_all_of_the_context_travels_and_nothing_is_left(app: Celery) -> None:
    context = {"user_id": "triage", "reason": "Grüße", "run_id": "r-1", "extra": {"a": [1, None]}}
    with AuditContextManager(**context):
        result = app.tasks["told"].delay()
    assert result.get(timeout=20, interval=0.01) == {
        "user": "triage",
        "reason": "Grüße",
        "run": "r-1",
        "extra": {"a": [1, None], "run_id": "r-1", "task": "told", "task_id": result.id},
    }
    after = app.tasks["told"].delay()
    assert after.get(timeout=20, interval=0.01) == {
        "user": None,
        "reason": None,
        "run": None,
        "extra": {"task": "told", "task_id": after.id},
    }


def test_what_a_task_sends_goes_on_in_its_context(app: Celery) -> None:
    told = app.tasks["told"]
    with AuditContextManager("ana", extra={"request_id": "r"}):
        results = [
            app.tasks["failing"].delay(),
            chain(told.s(), told.s()).delay(),
            chord(group(told.s(), told.s()), told.s()).delay(),
        ]
        sent = app.tasks["sending"].delay()
    results.append(app.AsyncResult(sent.get(timeout=20, interval=0.01)))
    for result in results:
        answer = result.get(timeout=20, interval=0.01)
        assert (answer["user"], answer["extra"]["request_id"]) == ("ana", "r")
        assert answer["extra"]["task_id"] == result.id


def test_the_headers_of_the_caller_arrive_as_before(app: Celery) -> None:
    with AuditContextManager("ana"):
        assert result_of(app, "headers", headers={"tenant": "acme"}) == {"tenant": "acme"}
        assert result_of(app, "headers", headers={"headers": {"tenant": "acme"}}) == {"tenant": "acme"}


def test_a_task_without_a_message_runs_in_the_context_of_its_caller(app: Celery) -> None:
    with AuditContextManager("ana", extra={"a": 1}):
        answer = app.tasks["told"].apply().get()
        assert (answer["user"], answer["extra"]["a"], answer["extra"]["task"]) == ("ana", 1, "told")
        assert get_audit_context() == AuditContext("ana", extra={"a": 1})
    with AuditContextManager("ana", extra=[1]):
        assert app.tasks["told"].apply().get()["extra"] == [1]


# --- signed -----------------------------------------------------------------------------------------------------


class Broker:
    """Somebody who can read and write the messages: the ``sqlaudit`` of their inner headers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.forged: list[Any] = []

    def listen(self) -> None:
        """Begin to listen, after the application does."""
        before_task_publish.connect(self.pass_on, weak=False)

    def pass_on(self, headers: dict[str, Any], **_: Any) -> None:
        self.seen.append((headers.get("headers") or {}).get("sqlaudit"))
        if self.forged:
            headers["headers"] = {"sqlaudit": self.forged[-1]}


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    before_task_publish.disconnect(broker.pass_on)


@pytest.mark.parametrize("secret", ["secret", b"secret", ["old", "secret"]], ids=repr)
def test_what_is_signed_is_trusted(app: Celery, secret: Any, broker: Broker) -> None:
    install(app, sign_with=secret)
    broker.listen()
    with AuditContextManager("ana"):
        assert result_of(app)["user"] == "ana"
        assert result_of(app, "failing")["user"] == "ana"
    assert result_of(app)["user"] is None
    assert "ana" not in broker.seen[0]
    assert broker.seen[-1] is None


@pytest.mark.parametrize(
    "text", ['{"user_id": "eve"}', "", "junk", 7, None, {"user_id": "eve"}, "replayed", "other"], ids=repr
)
def test_what_is_not_signed_is_not_trusted(
    app: Celery, text: Any, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    install(app, sign_with="secret" if text != "other" else "other")
    broker.listen()
    if text in ("replayed", "other"):
        with AuditContextManager("eve"):
            assert result_of(app)["user"] == "eve"
        text = broker.seen[0]
        install(app, sign_with="secret")
        before_task_publish.disconnect(broker.pass_on)
        broker.listen()
    broker.forged.append(text)
    with caplog.at_level(logging.WARNING, "sqlaudit"), AuditContextManager("ana"):
        result = app.tasks["told"].delay()
        answer = result.get(timeout=20, interval=0.01)
    assert (answer["user"], answer["extra"]) == (None, {"task": "told", "task_id": result.id})
    if text is not None:
        assert f"The audit context in the message of told[{result.id}] is not trusted" in caplog.text


@pytest.mark.parametrize("text", ["", "junk", "[]", '{"user": "eve"}', '{"user_id": 1.5}', 7], ids=repr)
def test_junk_in_a_message_names_nobody(
    app: Celery, text: Any, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.listen()
    broker.forged.append(text)
    with caplog.at_level(logging.WARNING, "sqlaudit"):
        assert result_of(app)["user"] is None
    assert "is not trusted" in caplog.text


@pytest.mark.parametrize("secret", ["", b"", [], ["secret", ""]], ids=repr)
def test_an_empty_secret_is_refused(app: Celery, secret: Any) -> None:
    with pytest.raises(ContextError, match="sign_with is empty"):
        install(app, sign_with=secret)
    with AuditContextManager("ana"):
        assert result_of(app)["user"] == "ana"


# --- two applications -------------------------------------------------------------------------------------------


def test_two_applications_of_a_process_share_the_secret(app: Celery) -> None:
    install(app, sign_with="secret")
    other = Celery("other", broker="memory://", set_as_current=False)
    for another in ("another secret", None):
        with pytest.raises(ContextError, match=r"<Celery notes .* was installed with another sign_with"):
            install(other, sign_with=another)
    install(other, sign_with="secret")
    try:
        with AuditContextManager("ana"):
            assert result_of(app)["user"] == "ana"
    finally:
        uninstall(other)


def test_what_was_installed_can_be_uninstalled(app: Celery) -> None:
    install(app)
    uninstall(app)
    uninstall(app)
    with AuditContextManager("ana"):
        assert result_of(app)["user"] is None
