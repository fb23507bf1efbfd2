"""Who did it, on whose behalf and why? The audit context, a contextvar.

Each thread and each asyncio task has its own. Nothing but the functions here changes it: a flush, a commit or
a rollback never does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from sqlaudit.exceptions import ContextError

USER_ID_LENGTH: Final = 255
"""The length, in characters, of the columns that hold user ids."""

type_of_user_id = str | int | UUID
_NUL_IN_JSON: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class AuditContext:
    """Who changes something, why, on whose behalf, and anything else worth keeping.

    :param user_id: the user who acts; an int or a UUID is kept as its text, of at most 255 characters
    :param reason: why
    :param impersonated_by: the user who really acts, if ``user_id`` is impersonated; as ``user_id``
    :param extra: any value that JSON can express: a request id, an address …
    :raises ContextError: an id is too long, a text is one that no database takes, or ``extra`` is not JSON
    """

    user_id: str | None = None
    reason: str | None = None
    impersonated_by: str | None = None
    extra: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "user_id", user_id_text(self.user_id, "user_id"))
        object.__setattr__(self, "impersonated_by", user_id_text(self.impersonated_by, "impersonated_by"))
        if self.reason is not None:
            if not isinstance(self.reason, str):
                raise ContextError(f"reason is {self.reason!r}; give it as text.", self.reason)
            _check_text(self.reason, "reason")
        if self.extra is not None:
            try:
                text = json.dumps(self.extra, allow_nan=False, ensure_ascii=False)
                text.encode()
                if _NUL_IN_JSON.search(text):
                    raise ValueError("it has a NUL character")
                # Through JSON and back: what is kept is what is read later, and no caller can change it any more.
                object.__setattr__(self, "extra", json.loads(text))
            except (TypeError, ValueError) as error:
                raise ContextError(
                    f"extra cannot be written as JSON ({error}); give text, numbers, lists and dicts of them.",
                    self.extra,
                ) from error

    def overlaid_with(self, inner: AuditContext) -> AuditContext:
        """Return this context with everything that ``inner`` gives; two mappings as ``extra`` are merged."""
        values = {
            field.name: getattr(self, field.name) if getattr(inner, field.name) is None else getattr(inner, field.name)
            for field in fields(self)
        }
        if isinstance(self.extra, Mapping) and isinstance(inner.extra, Mapping):
            values["extra"] = {**self.extra, **inner.extra}
        return AuditContext(**values)


def user_id_text(user_id: type_of_user_id | None, name: str = "user_id") -> str | None:
    """Return a user id as the text that is stored; ``None`` stays ``None``.

    :raises ContextError: it is neither text, int nor UUID, or longer than its column
    """
    if user_id is None:
        return None
    if isinstance(user_id, bool) or not isinstance(user_id, type_of_user_id):
        raise ContextError(f"{name} is {user_id!r}; give a str, an int or a UUID.", user_id)
    text = str(user_id)
    _check_text(text, name)
    if len(text) > USER_ID_LENGTH:
        raise ContextError(
            f"{name} has {len(text)} characters, its column holds {USER_ID_LENGTH}; give a shorter id "
            "and put the rest into extra.",
            user_id,
        )
    return text


def _check_text(text: str, name: str) -> None:
    """Raise if a text has characters that databases refuse: a NUL, or half of a surrogate pair."""
    try:
        if "\0" not in text:
            text.encode()
            return
    except UnicodeEncodeError:
        pass
    raise ContextError(f"{name} is {text!r}, with a character that databases cannot store; leave it out.", text)


_EMPTY: Final = AuditContext()
_current: ContextVar[AuditContext] = ContextVar("sqlaudit_context", default=_EMPTY)


def get_audit_context() -> AuditContext:
    """Return the current context; an empty one if none was set."""
    return _current.get()


def set_audit_context(
    user_id: type_of_user_id | None = None,
    reason: str | None = None,
    impersonated_by: type_of_user_id | None = None,
    extra: Any = None,
) -> None:
    """Replace the whole context of this thread or task.

    :raises ContextError: see :class:`AuditContext`
    """
    _current.set(_context(user_id, reason, impersonated_by, extra))


def clear_audit_context() -> None:
    """Forget the context of this thread or task."""
    _current.set(_EMPTY)


def _context(
    user_id: type_of_user_id | None, reason: str | None, impersonated_by: type_of_user_id | None, extra: Any
) -> AuditContext:
    return AuditContext(user_id_text(user_id), reason, user_id_text(impersonated_by, "impersonated_by"), extra)


class AuditContextManager(ContextDecorator):
    """Overlay the context inside a ``with`` block (or a decorated function) with what is given.

    What is not given keeps its value from the surrounding context, which returns when the block ends.

    :raises ContextError: see :class:`AuditContext`
    """

    def __init__(
        self,
        user_id: type_of_user_id | None = None,
        reason: str | None = None,
        impersonated_by: type_of_user_id | None = None,
        extra: Any = None,
    ) -> None:
        self._context = _context(user_id, reason, impersonated_by, extra)
        self._entered: list[tuple[Token[AuditContext], AuditContext]] = []

    def _recreate_cm(self) -> Self:
        # A decorated function may run in many threads and tasks at once: each call has a manager of its own.
        return type(self)(**{field.name: getattr(self._context, field.name) for field in fields(AuditContext)})

    def __enter__(self) -> AuditContext:
        outer = _current.get()
        inner = outer.overlaid_with(self._context)
        self._entered.append((_current.set(inner), outer))
        return inner

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        token, outer = self._entered.pop()
        try:
            _current.reset(token)
        except ValueError:  # frameworks may leave the block in another copy of the contextvars than they entered it
            _current.set(outer)
