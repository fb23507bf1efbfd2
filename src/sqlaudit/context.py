"""Who did it, on whose behalf and why? The audit context, a contextvar.

Each thread and each asyncio task has its own. Nothing but the functions here changes it: a flush, a commit or
a rollback never does.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from sqlaudit.exceptions import ContextError

USER_ID_LENGTH: Final = 255
"""The length, in characters, of the columns that hold user ids."""

type_of_user_id = str | int | UUID
_NUL_IN_JSON: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class _Extra:
    """The attribute ``extra``: stored as JSON, so that changing a value that was read does not change the context."""

    def __get__(self, context: AuditContext | None, owner: type[AuditContext]) -> Any:
        if context is None:
            return None  # the default of the field
        text = context.__dict__["extra"]
        return text if text is None else json.loads(text)

    def __set__(self, context: AuditContext, extra: Any) -> None:
        context.__dict__["extra"] = None if extra is None else _json(extra)


@dataclass(frozen=True)
class AuditContext:
    """Who changes something, why, on whose behalf, and anything else worth keeping.

    :param user_id: the user who acts. An int or a UUID is stored as text, of at most 255 characters. An empty text
        means no user
    :param reason: why
    :param impersonated_by: the user who really acts, if ``user_id`` is impersonated; of the same types as ``user_id``
    :param extra: any value that JSON can express: a request id, an address …
    :raises ContextError: an id is too long, a text has a character that databases refuse, or ``extra`` is not JSON
    """

    user_id: str | None = None
    reason: str | None = None
    impersonated_by: str | None = None
    extra: Any = _Extra()

    def __post_init__(self) -> None:
        object.__setattr__(self, "user_id", user_id_text(self.user_id, "user_id"))
        object.__setattr__(self, "impersonated_by", user_id_text(self.impersonated_by, "impersonated_by"))
        if self.reason is not None:
            if not isinstance(self.reason, str):
                raise ContextError(f"reason is {self.reason!r}. Give a str.", self.reason)
            _check_text(self.reason, "reason")

    def overlaid_with(self, inner: AuditContext) -> AuditContext:
        """Return this context, with the values that ``inner`` sets replaced. Two dicts as ``extra`` are merged."""
        values = {
            field.name: getattr(self, field.name) if getattr(inner, field.name) is None else getattr(inner, field.name)
            for field in fields(self)
        }
        if isinstance(self.extra, Mapping) and isinstance(inner.extra, Mapping):
            values["extra"] = {**self.extra, **inner.extra}
        return AuditContext(**values)


def _json(extra: Any) -> str:
    try:
        text = json.dumps(extra, allow_nan=False, ensure_ascii=False)
        text.encode()
        if _NUL_IN_JSON.search(text):
            raise ValueError("it has a NUL character")
    except (TypeError, ValueError) as error:
        raise ContextError(
            f"extra cannot be stored as JSON ({error}). Use only text, numbers, and lists and dicts of these.", extra
        ) from error
    return text


def user_id_text(user_id: type_of_user_id | None, name: str = "user_id") -> str | None:
    """Return a user id as the text that is stored; ``None`` and an empty text are ``None``.

    :raises ContextError: it is neither text, int nor UUID, or longer than its column
    """
    if user_id is None or user_id == "":
        return None
    if isinstance(user_id, bool) or not isinstance(user_id, type_of_user_id):
        raise ContextError(f"{name} is {user_id!r}. Give a str, an int or a UUID.", user_id)
    text = str(user_id)
    _check_text(text, name)
    if len(text) > USER_ID_LENGTH:
        raise ContextError(
            f"{name} has {len(text)} characters, but its column holds {USER_ID_LENGTH}. Give a shorter id, and put "
            "the rest into extra.",
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
    raise ContextError(
        f"{name} is {text!r}, and databases cannot store one of its characters. Leave that character out.", text
    )


_EMPTY: Final = AuditContext()


@dataclass(frozen=True, slots=True)
class _Frame:
    """The audit context within one block.

    The entered blocks form a linked list, innermost first. Generators may end their blocks in any order, so a block
    that ends removes its own frame from the list, wherever it is, and sqlaudit makes the frames within it anew.

    :ivar block: the manager, or the steps of a generator, that entered the block; ``None`` outside all blocks
    :ivar given: what the block sets on top of the outer context; ``None`` if :func:`set_audit_context` replaced it
    :ivar context: the context within the block
    """

    outer: _Frame | None
    block: object
    given: AuditContext | None
    context: AuditContext

    def of(self, block: object) -> _Frame | None:
        """Return the innermost frame of a block, or ``None`` if the block is not entered."""
        frame: _Frame | None = self
        while frame is not None and frame.block is not block:
            frame = frame.outer
        return frame

    def with_outer(self, outer: _Frame, new: _Frame) -> _Frame:
        """Return this list of frames with ``new`` in place of ``outer``, which is one of them."""
        if self is outer:
            return new
        assert self.outer is not None
        around = self.outer.with_outer(outer, new)
        context = self.context if self.given is None else around.context.overlaid_with(self.given)
        return replace(self, outer=around, context=context)


_current: ContextVar[_Frame] = ContextVar("sqlaudit_context", default=_Frame(None, None, None, _EMPTY))  # noqa: B039  # frozen


def get_audit_context() -> AuditContext:
    """Return the current context. It is empty if none was set."""
    return _current.get().context


def set_audit_context(
    user_id: type_of_user_id | None = None,
    reason: str | None = None,
    impersonated_by: type_of_user_id | None = None,
    extra: Any = None,
) -> None:
    """Replace the whole context of this thread or task, until the surrounding block ends.

    The parameters are those of :class:`AuditContext`.

    :raises ContextError: a value is invalid: see :class:`AuditContext`
    """
    _set(_context(user_id, reason, impersonated_by, extra))


def clear_audit_context() -> None:
    """Empty the context of this thread or task, until the surrounding block ends."""
    _set(_EMPTY)


def _set(context: AuditContext) -> None:
    _current.set(replace(_current.get(), given=None, context=context))


def _context(
    user_id: type_of_user_id | None, reason: str | None, impersonated_by: type_of_user_id | None, extra: Any
) -> AuditContext:
    return AuditContext(user_id_text(user_id), reason, user_id_text(impersonated_by, "impersonated_by"), extra)


_Function = TypeVar("_Function", bound=Callable[..., Any])


class AuditContextManager:
    """Set the audit context for a ``with`` or ``async with`` block, or for a decorated function.

    .. code-block:: python

        with AuditContextManager(user_id="ana", reason="moved"):
            session.commit()

    Arguments that are omitted keep their values from the surrounding context. Two dicts as ``extra`` are merged. When
    the block ends, the surrounding context is current again. One manager can be used by many threads and tasks at once,
    and again within its own block.

    As a decorator it takes functions, coroutine functions, generator functions of both kinds, class methods and static
    methods. The context is set while the function runs; for a generator each time that it is resumed, and not while its
    caller runs. A coroutine or generator that the function returns runs in the context, too.

    The parameters are those of :class:`AuditContext`.

    :raises ContextError: a value is invalid: see :class:`AuditContext`
    """

    def __init__(
        self,
        user_id: type_of_user_id | None = None,
        reason: str | None = None,
        impersonated_by: type_of_user_id | None = None,
        extra: Any = None,
    ) -> None:
        self._context = _context(user_id, reason, impersonated_by, extra)

    def __enter__(self) -> AuditContext:
        frame = self._frame_in(_current.get(), self)
        _current.set(frame)
        return frame.context

    def _frame_in(self, outer: _Frame, block: object) -> _Frame:
        return _Frame(outer, block, self._context, outer.context.overlaid_with(self._context))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A framework may leave the block in another copy of the contextvars than it entered. Then nothing changes.
        inner = _current.get()
        frame = inner.of(self)
        if frame is not None and frame.outer is not None:
            _current.set(inner.with_outer(frame, frame.outer))

    async def __aenter__(self) -> AuditContext:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def __call__(self, function: _Function) -> _Function:
        """Return the function with this context around each call of it.

        :raises ContextError: the argument is a class, or cannot be called
        """
        decorated: Any = function
        if isinstance(decorated, (classmethod, staticmethod)):
            return cast(_Function, type(decorated)(self(decorated.__func__)))
        if isinstance(function, type) or not callable(function):  # a property cannot be called
            raise ContextError(
                f"AuditContextManager decorates functions, and {function!r} is not a function. Decorate the methods "
                "of a class, and write decorators such as @property above @AuditContextManager(…).",
                function,
            )
        wrapper: Any = self._returning(function)
        for is_of_kind, kind in (
            (inspect.iscoroutinefunction, self._coroutine),
            (inspect.isasyncgenfunction, self._async_generator),
            (_makes_generators, self._generator),
        ):
            if is_of_kind(function) or is_of_kind(decorated.__call__):
                wrapper = kind(function)
        functools.update_wrapper(wrapper, function)
        return cast(_Function, wrapper)

    def _returning(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that calls the given one, and wraps a coroutine or generator that it returns."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if isinstance(result, AbstractContextManager | AbstractAsyncContextManager) and hasattr(result, "gen"):
                result.gen = self._running_later(result.gen)  # a context manager that contextlib made from a generator
            return self._running_later(result)

        return wrapper

    def _running_later(self, result: Any) -> Any:
        if inspect.iscoroutine(result):
            return self._coroutine(lambda: result)()
        if inspect.isasyncgen(result):
            return self._async_generator(lambda: result)()
        if inspect.isgenerator(result):
            generator = self._generator(lambda: result)
            return (types.coroutine(generator) if inspect.isawaitable(result) else generator)()
        return result

    def _coroutine(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return wrapper

    def _async_generator(self, function: Callable[..., AsyncGenerator[Any, Any]]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            generator, running = function(*args, **kwargs), _Steps(self)
            step, value = generator.asend, None
            try:
                while True:
                    with running:
                        try:
                            item = await step(value)
                        except StopAsyncIteration:
                            return
                    try:
                        step, value = generator.asend, (yield item)
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step, value = generator.athrow, error
            finally:
                with running:
                    await generator.aclose()

        return wrapper

    def _generator(self, function: Callable[..., Generator[Any, Any, Any]]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            generator, running = function(*args, **kwargs), _Steps(self)
            step, value = generator.send, None
            try:
                while True:
                    with running:
                        try:
                            item = step(value)
                        except StopIteration as end:
                            return end.value
                    try:
                        step, value = generator.send, (yield item)
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        step, value = generator.throw, error
            finally:
                with running:
                    generator.close()

        return wrapper


class _Steps:
    """The steps of one decorated generator. Each runs in a block. Blocks that a step leaves open return in the next."""

    def __init__(self, manager: AuditContextManager) -> None:
        self._outer = _current.get()
        self._inner = manager._frame_in(self._outer, self)

    def __enter__(self) -> None:
        _current.set(self._inner.with_outer(self._outer, _current.get()))

    def __exit__(self, *exc: object) -> None:
        inner = _current.get()
        frame = inner.of(self)
        if frame is not None and frame.outer is not None:
            self._inner, self._outer = inner, frame.outer
            _current.set(self._outer)


def _makes_generators(function: Callable[..., Any]) -> bool:
    """Return whether a function is a generator function, but not one decorated by :func:`types.coroutine`."""
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return inspect.isgeneratorfunction(function) and not flags & inspect.CO_ITERABLE_COROUTINE
