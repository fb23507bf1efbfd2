"""What is known of a request, and who makes it?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

from sqlaudit.context import AuditContextManager, get_audit_context
from sqlaudit.exceptions import ContextError

Arguments = Mapping[str, Any] | None
"""What a ``get_context`` returns: the arguments of :class:`~sqlaudit.AuditContextManager`, or ``None``."""

_ARGUMENTS: Final = [name for name in inspect.signature(AuditContextManager.__init__).parameters if name != "self"]
_REQUEST_ID: Final = re.compile(r"[!-~]([ -~]{0,126}[!-~])?")
_LONGEST_PATH: Final = 500
_TRACEPARENT: Final = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace_id>(?!0{32})[0-9a-f]{32})-(?P<span_id>(?!0{16})[0-9a-f]{16})"
    r"-[0-9a-f]{2}(?P<more>-.*)?"
)
"""A header ``traceparent`` of W3C Trace Context. Only versions after 00 have more parts."""


def request_facts(header: Callable[[str], str | None], method: str) -> dict[str, Any]:
    """Return what ``extra`` tells of a request: ``request_id``, ``method`` and, if it is traced, its trace and span.

    The id is that of the header ``X-Request-ID``, if it is at most 128 printable characters of ASCII. Otherwise it is
    that of the request within which this one is handled, or a new one.

    :param header: a function that returns the value of a header by its name, or ``None``
    """
    surrounding = get_audit_context().extra
    facts = {"request_id": header("x-request-id") or "", "method": method}
    if not _REQUEST_ID.fullmatch(facts["request_id"]):
        known = surrounding.get("request_id") if isinstance(surrounding, Mapping) else None
        facts["request_id"] = known or str(uuid4())
    trace = _TRACEPARENT.fullmatch(header("traceparent") or "")
    if trace is not None and not (trace["version"] == "00" and trace["more"]):
        facts |= {name: trace[name] for name in ("trace_id", "span_id")}
    return facts


def storable_path(path: str) -> str:
    """Return a path with what every database can store: a client may send any character, and very many of them."""
    return path.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:_LONGEST_PATH]


def required_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that a caller has to give."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each for each in parameters if each.default is inspect.Parameter.empty and each.kind not in variadic]


def checked_function(get_context: object, owner: str) -> None:
    """Raise if a ``get_context`` is neither a function nor ``None``.

    :raises ContextError: it cannot be called
    """
    if get_context is not None and not callable(get_context):
        raise ContextError(
            f"get_context of {owner} is {get_context!r}, which cannot be called. Give a function that returns a dict "
            "of AuditContextManager's arguments, or None.",
            get_context,
        )


@contextmanager
def noting_errors(owner: str) -> Iterator[None]:
    """Add to an error of the application's ``get_context`` where it was called."""
    try:
        yield
    except Exception as error:
        error.add_note(f"get_context of {owner} raised this, so the request was not handled.")
        raise


def manager_of(given: object, owner: str) -> AuditContextManager:
    """Return the manager that sets what a ``get_context`` returned.

    :raises ContextError: it is no dict of the arguments of :class:`~sqlaudit.AuditContextManager`, or one is invalid
    """
    if given is None:
        return AuditContextManager()
    if isinstance(given, Awaitable):
        if inspect.iscoroutine(given):
            given.close()
        raise ContextError(f"get_context of {owner} is asynchronous. Give a plain function.", given)
    if not isinstance(given, Mapping):
        raise ContextError(
            f"get_context of {owner} returned {given!r}. Return a dict of AuditContextManager's arguments, such as "
            '{"user_id": "ana"}, or None.',
            given,
        )
    if unknown := [name for name in given if name not in _ARGUMENTS]:
        raise ContextError(
            f"get_context of {owner} returned {unknown[0]!r}, which is no argument of AuditContextManager. It takes "
            f"{', '.join(_ARGUMENTS)}. Put anything else into extra.",
            given,
        )
    if not isinstance(given.get("extra"), Mapping | None):
        raise ContextError(
            f"get_context of {owner} returned {given['extra']!r} as extra, where what is known of the request is "
            "stored, too. Return a dict as extra.",
            given,
        )
    with noting_errors(owner):
        return AuditContextManager(**given)
