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
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from sqlaudit.erased import ERASED_USER, MARK
from sqlaudit.exceptions import ContextError

USER_ID_LENGTH: Final = 255
"""The length, in characters, of the columns that hold user ids."""

type_of_user_id = str | int | UUID
_NUL_IN_JSON: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class ActorType(StrEnum):
    """What kind of actor makes a change. Each is equal to its text in small letters.

    ``USER`` is a person; ``SERVICE`` a program with an account of its own; ``AGENT`` a program that decides for itself,
    such as a language model; ``SYSTEM`` the application itself; ``ANONYMOUS`` somebody who is not logged in.
    """

    USER = "user"
    SERVICE = "service"
    AGENT = "agent"
    SYSTEM = "system"
    ANONYMOUS = "anonymous"


ACTOR_FACTS: Final = ("actor_type", "on_behalf_of", "run_id")
"""What is told of an actor beside its id: the keys in ``extra`` under which it is stored."""


class Actor:
    """What the ``extra`` of an audit context tells of the actor, for contexts, changes, changesets and versions."""

    __slots__ = ()

    def __sqlaudit_extra__(self) -> Any:
        return self.extra  # type: ignore[attr-defined]  # a class without it has a method of its own

    @property
    def actor_type(self) -> ActorType | None:
        """The kind of actor; ``None`` if it is not known."""
        text = text_in(self.__sqlaudit_extra__(), "actor_type")
        return ActorType(text) if text in _ACTOR_TYPES else None

    @property
    def on_behalf_of(self) -> str | None:
        """The user for whom the actor works; ``None`` if it works for nobody else."""
        return text_in(self.__sqlaudit_extra__(), "on_behalf_of")

    @property
    def run_id(self) -> str | None:
        """The run of an agent or a job in which the change was made, or ``None``."""
        return text_in(self.__sqlaudit_extra__(), "run_id")


def text_in(extra: Any, name: str) -> str | None:
    """Return the text, or the number as text, that an ``extra`` holds under a name."""
    value = extra.get(name) if isinstance(extra, Mapping) else None
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


_ACTOR_TYPES: Final = frozenset(map(str, ActorType))


@dataclass(frozen=True, slots=True)
class LateExtra:
    """An ``extra`` that is made when it is read: a web framework knows the route of a request later than its user.

    :ivar make: a function that returns a new dict, of what JSON can express
    """

    make: Callable[[], Mapping[str, Any]]


class _Extra:
    """The attribute ``extra``: stored as JSON, so that changing a value that was read does not change the context."""

    def __get__(self, context: AuditContext | None, owner: type[AuditContext]) -> Any:
        if context is None:
            return None  # the default of the field
        text = context.__dict__["extra"]
        if isinstance(text, LateExtra):
            made = text.make()
            _refuse_reserved(made)
            return made
        return text if text is None else json.loads(text)

    def __set__(self, context: AuditContext, extra: Any) -> None:
        _refuse_reserved(extra)
        context.__dict__["extra"] = extra if extra is None or isinstance(extra, LateExtra) else _json(extra)


@dataclass(frozen=True)
class AuditContext(Actor):
    """Who changes something, why, on whose behalf, and anything else worth keeping.

    :param user_id: the user who acts. An int or a UUID is stored as text, of at most 255 characters. An empty text
        means no user
    :param reason: why
    :param impersonated_by: the user who really acts, if ``user_id`` is impersonated; of the same types as ``user_id``
    :param extra: any value that JSON can express: a request id, an address … Under ``actor_type``, ``on_behalf_of`` and
        ``run_id`` it tells more of the actor, and the attributes of these names read it there
    :raises ContextError: an id is too long or reserved, a text has a character that databases refuse, or ``extra`` is
        not JSON, or has the reserved name ``sqlaudit_erased``
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

    def __reduce__(self) -> Any:
        return AuditContext, (self.user_id, self.reason, self.impersonated_by, self.extra)  # without a LateExtra

    def overlaid_with(self, inner: AuditContext) -> AuditContext:
        """Return this context, with the values that ``inner`` sets replaced. Two dicts as ``extra`` are merged.

        Who has a name is no longer anonymous.

        :raises ContextError: one ``extra`` tells of the actor, and the other one is no dict
        """
        values = {
            field.name: getattr(self, field.name) if getattr(inner, field.name) is None else getattr(inner, field.name)
            for field in fields(self)
            if field.name != "extra"
        }
        extra = self._extra_with(inner)
        if any(isinstance(context.__dict__["extra"], LateExtra) for context in (self, inner)):
            return AuditContext(**values, extra=LateExtra(lambda: self._extra_with(inner)))
        return AuditContext(**values, extra=extra)

    def _extra_with(self, inner: AuditContext) -> Any:
        extra = self.extra
        if inner.user_id is not None and text_in(extra, "actor_type") == ActorType.ANONYMOUS:
            extra = {name: value for name, value in extra.items() if name != "actor_type"} or None
        return _merged(extra, inner.extra)


def _merged(outer: Any, inner: Any) -> Any:
    """Return the ``extra`` of a context within another one.

    :raises ContextError: one tells of the actor, and the other one is no dict
    """
    if outer is None or inner is None:
        return outer if inner is None else inner
    dicts = [extra for extra in (outer, inner) if isinstance(extra, Mapping)]
    if len(dicts) == 2:
        return {**outer, **inner}
    if facts := [name for extra in dicts for name in ACTOR_FACTS if name in extra]:
        raise ContextError(
            f"extra is {inner!r} within a context whose extra is {outer!r}, and {facts[0]} would be lost. Give a dict "
            "as extra.",
            inner,
        )
    return inner


def _refuse_reserved(extra: Any) -> None:
    """Raise if an ``extra`` has the name under which versions tell which of their values were erased.

    :raises ContextError: it has
    """
    if isinstance(extra, Mapping) and MARK in extra:
        raise ContextError(
            f"extra has {MARK!r}, under which sqlaudit tells which values of a version were erased. Give it another "
            "name.",
            extra,
        )


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
    text = _id_text(user_id, name)
    if text is not None and len(text) > USER_ID_LENGTH:
        raise ContextError(
            f"{name} has {len(text)} characters, but its column holds {USER_ID_LENGTH}. Give a shorter id, and put "
            "the rest into extra.",
            user_id,
        )
    return text


def _id_text(value: type_of_user_id | None, name: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, type_of_user_id):
        raise ContextError(f"{name} is {value!r}. Give a str, an int or a UUID.", value)
    text = str(value)
    if text == ERASED_USER:
        raise ContextError(f"{name} is {text!r}, which stands for users who were erased. Give another id.", value)
    _check_text(text, name)
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
    *,
    actor_type: ActorType | str | None = None,
    on_behalf_of: type_of_user_id | None = None,
    run_id: type_of_user_id | None = None,
) -> None:
    """Replace the whole context of this thread or task, until the surrounding block ends.

    The parameters are those of :class:`AuditContextManager`.

    :raises ContextError: a value is invalid: see :class:`AuditContextManager`
    """
    _set(_context(user_id, reason, impersonated_by, extra, actor_type, on_behalf_of, run_id))


def clear_audit_context() -> None:
    """Empty the context of this thread or task, until the surrounding block ends."""
    _set(_EMPTY)


def _set(context: AuditContext) -> None:
    _current.set(replace(_current.get(), given=None, context=context))


def _context(
    user_id: type_of_user_id | None,
    reason: str | None,
    impersonated_by: type_of_user_id | None,
    extra: Any,
    actor_type: ActorType | str | None,
    on_behalf_of: type_of_user_id | None,
    run_id: type_of_user_id | None,
) -> AuditContext:
    facts = {
        "actor_type": _checked_type(actor_type),
        "on_behalf_of": _id_text(on_behalf_of, "on_behalf_of"),
        "run_id": _id_text(run_id, "run_id"),
    }
    known = {name: fact for name, fact in facts.items() if fact is not None}
    if known and not (extra is None or isinstance(extra, Mapping)):
        raise ContextError(
            f"extra is {extra!r}, and {next(iter(known))} is stored in extra. Give a dict as extra.", extra
        )
    extra = {**(extra or {}), **known} if known else extra
    return AuditContext(user_id_text(user_id), reason, user_id_text(impersonated_by, "impersonated_by"), extra)


def _checked_type(actor_type: ActorType | str | None) -> str | None:
    if actor_type is None or (isinstance(actor_type, str) and actor_type in _ACTOR_TYPES):
        return actor_type and str(actor_type)
    raise ContextError(f"actor_type is {actor_type!r}. Give one of {', '.join(ActorType)}.", actor_type)


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

    The kind of actor, for whom it works and in which run are stored in ``extra`` under these names.

    :param user_id: the user who acts; see :class:`AuditContext`
    :param reason: why
    :param impersonated_by: the user who really acts, if ``user_id`` is impersonated
    :param extra: any value that JSON can express
    :param actor_type: what ``user_id`` is: ``"user"``, ``"service"``, ``"agent"``, ``"system"`` or ``"anonymous"``
    :param on_behalf_of: the user for whom a service or an agent works
    :param run_id: the run of an agent or a job
    :raises ContextError: a value is invalid: see :class:`AuditContext`; the kind of actor is not one of these; or
        ``extra`` is no dict, and something of the actor is to be stored there
    """

    def __init__(
        self,
        user_id: type_of_user_id | None = None,
        reason: str | None = None,
        impersonated_by: type_of_user_id | None = None,
        extra: Any = None,
        *,
        actor_type: ActorType | str | None = None,
        on_behalf_of: type_of_user_id | None = None,
        run_id: type_of_user_id | None = None,
    ) -> None:
        self._context = _context(user_id, reason, impersonated_by, extra, actor_type, on_behalf_of, run_id)

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
            generator, running = function(*args, **kwargs), Steps(self)
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
            generator, running = function(*args, **kwargs), Steps(self)
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


class Steps:
    """The steps of one generator. Each runs in a block. Blocks that a step leaves open return in the next."""

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
