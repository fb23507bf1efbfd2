"""Who let a Celery task do this? The audit context travels with the message of the task.

.. code-block:: python

    app = Celery(…)
    install(app, sign_with=os.environ["AUDIT_KEY"])
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, cast

from sqlaudit.context import AuditContext, AuditContextManager, get_audit_context
from sqlaudit.exceptions import ContextError, MissingPackageError

try:
    from celery import Celery, signals  # type: ignore[import-untyped]  # it has no types
    from celery.app.task import Context  # type: ignore[import-untyped]  # it has no types
    from itsdangerous import BadData, URLSafeSerializer
except ImportError as error:
    raise MissingPackageError(__name__, "celery", "celery and itsdangerous") from error

_HEADER: Final = "sqlaudit"
_log: Final = logging.getLogger(__name__)


def install(app: Celery, sign_with: str | bytes | Sequence[str | bytes] | None = None) -> None:
    """Let the audit context travel with the tasks of an application, in the inner headers of their messages.

    Call it where the application is made, for those who send tasks and for the workers. A worker sets the context while
    a task runs, and empties it afterwards. ``extra`` gets ``task``, the name, and ``task_id``. A task that is called
    without a message, such as ``task.apply()``, runs in the context of its caller.

    :param app: the application. A second call replaces what the first one installed
    :param sign_with: a secret. A worker trusts no context that was not signed with it, logs it, and runs the task
        without a user. Of several secrets, the last one signs, and all are tried
    :raises ContextError: the secret is empty; or it is not that of another application of this process, since Celery
        does not say which of them sends a message
    """
    carrier = _Carrier(app, sign_with)
    for other, its_carrier in _installed.items():
        if other != app and its_carrier.secrets != carrier.secrets:
            raise ContextError(
                f"{other!r} was installed with another sign_with, and Celery does not say which application sends a "
                "message. Give both the same.",
                app,
            )
    uninstall(app)
    _installed[app] = carrier
    for name, receiver in carrier.receivers:
        getattr(signals, name).connect(receiver, weak=False, dispatch_uid=(__name__, id(carrier)))


def uninstall(app: Celery) -> None:
    """Take back what :func:`install` did."""
    if (carrier := _installed.pop(app, None)) is not None:
        for name, _ in carrier.receivers:
            getattr(signals, name).disconnect(dispatch_uid=(__name__, id(carrier)))


class _Carrier:
    """Puts the context into the messages of an application, and takes it out."""

    def __init__(self, app: Celery, sign_with: str | bytes | Sequence[str | bytes] | None) -> None:
        self.app = app
        self.signer: URLSafeSerializer | None = None
        self.secrets: list[bytes] | None = None
        if sign_with is not None:
            given = [sign_with] if isinstance(sign_with, (str, bytes)) else sign_with
            self.secrets = [secret.encode() if isinstance(secret, str) else secret for secret in given]
            if not all(self.secrets or [b""]):
                raise ContextError("sign_with is empty, and anybody could sign with it. Give a long random text.")
            options = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}
            self.signer = URLSafeSerializer(self.secrets, salt=__name__, signer_kwargs=options)
        self.receivers: tuple[tuple[str, Callable[..., None]], ...] = (
            ("before_task_publish", self._send),
            ("task_prerun", self._begin),
            ("task_postrun", self._end),
        )

    def _send(self, sender: str, headers: dict[str, Any], **_: Any) -> None:
        inner = dict(Context(headers).headers or {})  # those that the caller gave, or of the message that is sent again
        had_context = inner.pop(_HEADER, None) is not None
        if (context := get_audit_context()) != AuditContext():
            told = {name: getattr(context, name) for name in _TOLD}
            signer = self.signer
            inner[_HEADER] = json.dumps(told) if signer is None else signer.dumps([sender, headers.get("id"), told])
        if had_context or _HEADER in inner:
            headers["headers"] = inner

    def _begin(self, task: Any, task_id: str, **_: Any) -> None:
        if task.app != self.app:  # which may be a proxy
            return
        text = None if task.request.is_eager else (task.request.headers or {}).get(_HEADER)
        managers = [] if text is None else [self._received(text, task.name, task_id)]
        task.request.sqlaudit_managers = managers
        for manager in managers:
            manager.__enter__()
        if isinstance(get_audit_context().extra, Mapping | None):
            managers.append(AuditContextManager(extra={"task": task.name, "task_id": task_id}))
            managers[-1].__enter__()

    def _received(self, text: object, name: str, task_id: str) -> AuditContextManager:
        try:
            if self.signer is None:
                told = json.loads(cast("str", text))
            else:
                *signed_for, told = self.signer.loads(cast("str", text))
                if signed_for != [name, task_id]:
                    raise BadData(f"it was signed for another task, {signed_for}")
            return AuditContextManager(**told)
        except (BadData, ContextError, TypeError, ValueError) as error:
            _log.warning(
                "The audit context in the message of %s[%s] is not trusted, so the task runs without a user: %s. Give "
                "the same sign_with to install() where tasks are sent and where they run.",
                name,
                task_id,
                error,
            )
            return AuditContextManager()

    def _end(self, task: Any, **_: Any) -> None:
        for manager in reversed(task.request.__dict__.pop("sqlaudit_managers", ())):
            manager.__exit__(None, None, None)


_TOLD: Final = [field.name for field in fields(AuditContext)]
_installed: dict[Celery, _Carrier] = {}
"""What :func:`install` made for each application."""
