"""Which methods of a session must be recorded, but fire no events? They are wrapped while it is registered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Any, Final

from sqlalchemy import inspect
from sqlalchemy.orm import (
    Mapper,
    Session,
)

from sqlaudit.hooks.scope import DISABLED, is_recording, recording_statements
from sqlaudit.past.objects import instant_of_state, refuse_change
from sqlaudit.recording.bulk.append_only import is_history
from sqlaudit.recording.tracked_mappers import sources_of
from sqlaudit.tracking.models import tracked_model


def _recording_bulk_save(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def bulk_save_objects(session: Session, objects: Iterable[object], *args: Any, **kw: Any) -> None:
        objects = list(objects)
        mappers: dict[Mapper[Any], None] = {}
        for state in map(inspect, objects):
            refuse_change(state)
            mappers[state.mapper] = None
        return _record_bulk(session, mappers, lambda: original(session, objects, *args, **kw))

    return bulk_save_objects


def _recording_bulk_mappings(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def method(session: Session, mapper: Any, *args: Any, **kw: Any) -> None:
        return _record_bulk(session, [inspect(mapper)], lambda: original(session, mapper, *args, **kw))

    return method


def _record_bulk(session: Session, mappers: Collection[Mapper[Any]], write: Callable[[], None]) -> None:
    """Record what a method writes to the tables of mappers, in one database or several.

    :raises ReadOnlyError: a mapper maps a history table
    """
    written = any(tracked_model(mapper) is not None or sources_of(mapper) for mapper in mappers)
    is_of_interest = (written and not session.info.get(DISABLED)) or any(
        is_history(mapper.local_table) for mapper in mappers
    )
    if not is_of_interest or is_recording(session):
        return write()
    with recording_statements(session):
        return write()


def _looking_up_in_past(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def _identity_lookup(session: Session, *args: Any, lazy_loaded_from: Any = None, **kw: Any) -> Any:
        """Look up what an object of the past refers to among the objects of its instant."""
        instant = None if lazy_loaded_from is None else instant_of_state(lazy_loaded_from)
        if instant is not None:
            kw["identity_token"] = instant
        return original(session, *args, lazy_loaded_from=lazy_loaded_from, **kw)

    return _identity_lookup


_METHODS: Final[dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "_identity_lookup": _looking_up_in_past,
    "bulk_save_objects": _recording_bulk_save,
    "bulk_insert_mappings": _recording_bulk_mappings,
    "bulk_update_mappings": _recording_bulk_mappings,
}


@dataclass(frozen=True, slots=True)
class _Inherited:
    """The inherited method of a target that does not define it, looked up at each call."""

    target: Any
    name: str

    def __call__(self, session: Session, *args: Any, **kw: Any) -> Any:
        if isinstance(self.target, type):
            return getattr(super(self.target, session), self.name)(*args, **kw)
        return getattr(type(session), self.name)(session, *args, **kw)


def wrap_methods(target: Any) -> None:
    for name, wrap in _METHODS.items():
        method = wrap(vars(target).get(name) or _Inherited(target, name))
        setattr(target, name, method if isinstance(target, type) else MethodType(method, target))


def unwrap_methods(target: Any) -> None:
    for name in _METHODS:
        original = getattr(vars(target).get(name), "__wrapped__", None)
        if original is None:  # other code has replaced the wrapper
            continue
        delattr(target, name)
        if not isinstance(original, _Inherited):
            setattr(target, name, original)
