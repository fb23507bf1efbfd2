"""What is asked of a restore, and may the session do it? The checks of sessions, values and fields."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session

from sqlaudit.exceptions import QueryError, ReadOnlyError, SQLAuditError
from sqlaudit.hooks.scope import records
from sqlaudit.past.running import PastSession
from sqlaudit.restoring.plan import GivenValues, fields_of
from sqlaudit.tracking.models import TrackedModel, tracked_model_of
from sqlaudit.tracking.sessions import checked_session


def writing_session(session: object) -> Session:
    """Return the session that a restore writes through.

    :raises SQLAuditError: it does not record what it writes, or cannot restore
    """
    session = checked_session(session)
    if isinstance(session, PastSession):
        raise ReadOnlyError(
            f"This session reads {session.instant} and cannot write. Restore in a session of the present.", session
        )
    if isinstance(session, ShardedSession):
        raise QueryError(
            "A ShardedSession cannot restore, because a key may be in several shards. Use a session on the engine of "
            "the shard.",
            session,
        )
    if not records(session):
        raise SQLAuditError(
            "The session has no hooks, so sqlaudit would not record what it restores. Call register_hooks(), or "
            "register_hooks(your_sessionmaker), at start-up.",
            session,
        )
    return session


def flush_first(session: Session, dry_run: bool) -> None:
    """Flush the session before anything is read; for a dry run, autoflush it.

    :raises QueryError: the session is flushing
    """
    if dry_run:
        session._autoflush()
    elif session._flushing:
        raise QueryError(
            "The session is flushing, so a restore cannot flush the pending changes first. Restore before the flush, "
            "or after the commit.",
            session,
        )
    else:
        session.flush()


def checked_values(values: Mapping[Any, Any] | None, model: TrackedModel | None) -> GivenValues:
    """Return the values that users give, by class and attribute.

    :raises QueryError: they are not given as a dict, or a class has no such attribute
    :raises TrackingError: a class is not tracked
    """
    if not isinstance(values, Mapping | None):
        raise QueryError(
            f"values is {values!r}. Give a dict of values by attribute, or by class and attribute.", values
        )
    by_class: dict[Any, Mapping[str, Any]] = {}
    for name, value in (values or {}).items():
        if isinstance(name, type):
            by_class[name] = value
        elif model is not None:
            by_class[model.mapper.class_] = {**by_class.get(model.mapper.class_, {}), name: value}
        else:
            raise QueryError(
                f"values has {name!r} outside of a class. Give values by class and attribute: values={{Customer: "
                f"{{{name!r}: …}}}}.",
                values,
            )
    for class_, given_values in by_class.items():
        mapper = tracked_model_of(class_).mapper
        known = {name for descendant in mapper.self_and_descendants for name in descendant.column_attrs.keys()}  # noqa: SIM118
        if not isinstance(given_values, Mapping) or (unknown := sorted(set(map(str, given_values)) - known)):
            names = ", ".join(map(repr, unknown)) if isinstance(given_values, Mapping) else repr(given_values)
            raise QueryError(
                f"{class_.__name__} has no column {names} that could get a value. It has {', '.join(sorted(known))}.",
                values,
            )
    return by_class


FieldNames = Mapping[type[Any], frozenset[str]]
"""The fields that users name, by class."""


def checked_fields(fields: Any, models: Collection[TrackedModel]) -> FieldNames:
    """Return the fields that users name, by class.

    :param models: the models that names without a class belong to
    :raises QueryError: no field is named, or a model has no such field that history stores and a statement can write
    :raises TrackingError: a class is not tracked
    """
    if isinstance(fields, Mapping):
        return {class_: _checked_names(names, tracked_model_of(class_).family()) for class_, names in fields.items()}
    names = _checked_names(fields, models)
    return {model.mapper.class_: names for model in models}


def _checked_names(names: Any, models: Collection[TrackedModel]) -> frozenset[str]:
    chosen = frozenset([names] if isinstance(names, str) else names if isinstance(names, Iterable) else ())
    if not chosen:
        raise QueryError(f"fields is {names!r}. Give names of attributes, or names by class.", names)
    known = {name for model in models for name in fields_of(model).columns.keys() - fields_of(model).unwritten}
    if unknown := sorted(map(str, chosen - known)):
        classes = " and ".join(sorted({model.mapper.class_.__name__ for model in models}))
        raise QueryError(
            f"{classes} cannot get back {', '.join(map(repr, unknown))}, because history does not store it, or no "
            f"statement can write it. Name some of {', '.join(sorted(known))}.",
            names,
        )
    return chosen


def names_for(fields: FieldNames, model: TrackedModel) -> frozenset[str]:
    """Return the fields that users name for a model."""
    return frozenset().union(*(names for class_, names in fields.items() if issubclass(model.mapper.class_, class_)))
