"""What happens when an object is written, attached or merged? A flush records it, or sqlaudit warns or refuses."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.orm import InstanceState, Mapper, Session

from sqlaudit.exceptions import QueryError
from sqlaudit.hooks.scope import DISABLED, records, records_other_flush
from sqlaudit.past.objects import instant_of_state, refuse_change
from sqlaudit.past.rendering import Instant
from sqlaudit.past.running import PastSession
from sqlaudit.recording.bulk.append_only import is_history, is_migrating, rewriting_error
from sqlaudit.recording.flush import Flush, Updating
from sqlaudit.recording.policy import report_unrecorded
from sqlaudit.recording.tracked_mappers import followed_fields_changed
from sqlaudit.tracking.models import tracked_model
from sqlaudit.tracking.tables import INFO_KEY, tracked_table


def _inserted(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.group(state, connection).inserted.append(state)
    else:
        _unrecorded(mapper, connection, state)


def _inserting(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    flush: Flush | None = _session_of(state).info.get(INFO_KEY)
    if flush is not None and (flush.has_many_connections or flush.began is None):  # rare, and each insert calls this
        flush.inserting(state, connection)


def _updating(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        changed = flush.writing(state, connection, doomed=False)
        flush.group(state, connection).updating.append(Updating(state, changed))
    else:
        _unrecorded(mapper, connection, state)


def _updated(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if state.key is None:  # a new object took the row of a deleted one, without before_update
        _inserted(mapper, connection, state)


def _deleting(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.writing(state, connection, doomed=True)
    else:
        refuse_change(state)


def _deleted(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.group(state, connection).deleted.append(state)
    else:
        _unrecorded(mapper, connection, state)


_session_of: Final[Callable[[InstanceState[Any]], Session]] = attrgetter("session")


def _unrecorded(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    refuse_change(state)
    if records_other_flush(connection, mapper):
        return
    name = mapper.class_.__name__
    report_unrecorded(
        f"{name} was written by a session without hooks, so its history does not show the change. Call "
        "register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
        mapper.class_,
    )


MODEL_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "before_insert": _inserting,
    "after_insert": _inserted,
    "before_update": _updating,
    "after_update": _updated,
    "before_delete": _deleting,
    "after_delete": _deleted,
}


def is_live(table: object) -> bool:
    tracked = tracked_table(table)
    return tracked is not None and tracked.live is table


def written_by_other_mapper(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """Warn of an untracked object that is written to a tracked table; refuse to write a history table.

    :raises ReadOnlyError: the object is mapped to a history table
    """
    session = _session_of(state)
    history: Any = next(filter(is_history, mapper.tables), None)
    if history is not None and records(session) and not is_migrating(connection):
        raise rewriting_error(history)
    table = next(filter(is_live, mapper.tables), None)
    is_unseen = not session.info.get(DISABLED) and (records(session) or not records_other_flush(connection, mapper))
    if table is not None and tracked_model(mapper) is None and is_unseen:
        name = mapper.class_.__name__
        tracked = tracked_table(table)
        remedy = "Write the rows through the tracked model, or track this model instead."
        if tracked is not None and tracked.is_association:
            remedy = f"Decorate {name} with @track_table(), as the models that it links."
        report_unrecorded(
            f"{name} is not tracked, but writes the tracked table {table.fullname!r}, whose history does not show the "
            f"change. {remedy}",
            mapper.class_,
        )


def _updating_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _write_followed(mapper, connection, state, doomed=False)


def _deleting_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    _write_followed(mapper, connection, state, doomed=True)


def _write_followed(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any], *, doomed: bool) -> None:
    if (flush := _session_of(state).info.get(INFO_KEY)) is not None:
        flush.writing(state, connection, doomed=doomed)
    elif (doomed or followed_fields_changed(state)) and not records_other_flush(connection, mapper):
        report_unrecorded(
            f"{mapper.class_.__name__}, which is not tracked, was written by a session without hooks, so the history "
            "of tracked rows that refer to it will not show what foreign key actions do to them. Call "
            "register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
            mapper.class_,
        )


FOLLOWED_LISTENERS: Final[dict[str, Callable[..., Any]]] = {
    "before_insert": _inserting,
    "before_update": _updating_followed,
    "before_delete": _deleting_followed,
}


# Objects of the past.


def refuse_past_object(session: Session, state: InstanceState[Any]) -> None:
    """Refuse an object of the past in a session without hooks, in which it would load live rows.

    Every session calls this for each object that is added to it, but not for objects that it loads.
    """
    if instant_of_state(state) is not None:
        _refuse_without_hooks(session, state)
    elif isinstance(state.identity_token, Instant):  # make_transient() made it a new object
        state.identity_token, state.load_options = None, ()


def _refuse_without_hooks(session: Session, state: InstanceState[Any]) -> None:
    if isinstance(session, PastSession) or records(session):
        return
    raise QueryError(
        f"{state.class_.__name__} {state.identity} {instant_of_state(state)} was added to a session without hooks, "
        "which would load live rows for it. Call register_hooks(), or register_hooks(your_sessionmaker), at start-up.",
        state.obj(),
    )


class MergeGuard:
    """Mixed into a tracked model's key property: a merge sets the key, and fires no event for an object it loads."""

    __slots__ = ()

    def merge(self, session: Session, source: InstanceState[Any], *args: Any) -> None:
        if instant_of_state(source) is not None:
            _refuse_without_hooks(session, source)
        super().merge(session, source, *args)  # type: ignore[misc]  # the mixed class has it
