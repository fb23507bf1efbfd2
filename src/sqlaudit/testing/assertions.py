"""Was it recorded? An assertion, whose failure says what was recorded instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import checked_user
from sqlaudit.asynchronous import also_async
from sqlaudit.changes import Equality, Operation, diff, differ, equalities_of
from sqlaudit.exceptions import QueryError
from sqlaudit.hooks.scope import records
from sqlaudit.hooks.sessions import registered_targets
from sqlaudit.retrieval.field_changes import versions_of
from sqlaudit.retrieval.ids import converted_ids, has_id
from sqlaudit.tracking.history import version_info
from sqlaudit.tracking.models import TrackedModel, tracked_model_of
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session

_SHOWN: Final = 5


@also_async
def assert_recorded(
    session: Session | scoped_session[Any],
    model_class: type[Any],
    resource_id: Any,
    *,
    operation: str | None = None,
    fields: Iterable[str] | None = None,
    values: Mapping[str, Any] | None = None,
    changed_by: object = None,
    reason: str | None = None,
) -> Any:
    """Fail unless the last version of a row is as expected, and return it. What is omitted may be anything.

    .. code-block:: python

        assert_recorded(session, Ticket, 7, operation="update", fields={"status"})

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model
    :param resource_id: the primary key, also as text; a tuple if the key is composite
    :param operation: ``"insert"``, ``"update"``, ``"delete"`` or ``"baseline"``
    :param fields: the names of exactly those fields that the version changed, tracked for reports or not
    :param values: values that the version has, by the name of the field
    :param changed_by: the user
    :param reason: why
    :raises AssertionError: the last version is another one, or there is none; the message says what was recorded
    :raises TrackingError: the model is not tracked
    :raises QueryError: there is no such operation or field
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    session = checked_session(session)
    model = tracked_model_of(model_class)
    expected = _Expected(
        operation=None if operation is None else _operation(operation),
        fields=None if fields is None else _field_names(model, fields),
        values=values or {},
        changed_by=None if changed_by is None else checked_user("changed_by", changed_by),
        reason=reason,
    )
    _field_names(model, expected.values)
    row = f"{model.mapper.class_.__name__} {resource_id!r}"
    recorded = [
        _Recorded.of(version, before)
        for before, version in pairwise([None, *versions_of(session, model_class, resource_id)])
    ]
    if not recorded:
        raise AssertionError(f"Nothing is recorded of {row}. {_why_nothing(session, model, resource_id)}")
    last = recorded[-1]
    if mismatches := list(expected.mismatches(last)):
        lines = [f"The last version of {row} is not as expected.", *(f"  {mismatch}" for mismatch in mismatches)]
        lines.append("Recorded, newest first:")
        lines += [f"  {version}" for version in recorded[: -_SHOWN - 1 : -1]]
        if len(recorded) > _SHOWN:
            lines.append(f"  … and {len(recorded) - _SHOWN} before")
        lines += _hints(expected, recorded)
        raise AssertionError("\n".join(lines))
    return last.version


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A version, and the fields that it changed: name → [old value, new value]."""

    version: Any
    info: Mapping[str, Any]
    changes: Mapping[str, list[Any]]

    @classmethod
    def of(cls, version: Any, before: Any) -> _Recorded:
        model: TrackedModel = version.__sqlaudit_model__
        info, names = version_info(version), sorted(model.columns)
        is_known = before is not None and version_info(before)["version"] == info["version"] - 1
        old = [getattr(before, name, None) for name in names] if is_known else None
        new = [getattr(version, name) for name in names]
        changes = diff(names, info["operation"], old, new, _equalities(model))
        return cls(version, info, {name: values for name, *values in changes})

    def __str__(self) -> str:
        user, reason = self.info["changed_by"], self.info["reason"]
        why = f", reason {reason!r}" if reason is not None else ""
        fields = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in self.changes.items())
        by = "by nobody" if user is None else f"by {user!r}"
        return f"{self.info['version']}  {self.info['operation']} {by}{why}: {fields or 'no fields'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    operation: Operation | None
    fields: frozenset[str] | None
    values: Mapping[str, Any]
    changed_by: str | None
    reason: str | None

    def mismatches(self, recorded: _Recorded) -> Iterator[str]:
        """Yield a line for each thing in which a version is not as expected."""
        info, version = recorded.info, recorded.version
        for name in ("operation", "changed_by", "reason"):
            wanted, was = getattr(self, name), info[name]
            if wanted is not None and wanted != was:
                yield f"{name}: expected {_text(wanted)}, recorded {_text(was)}"
        if self.fields is not None and self.fields != recorded.changes.keys():
            yield f"fields: expected {_listed(self.fields)}; recorded {_listed(recorded.changes)}"
        equalities = _equalities(version.__sqlaudit_model__)
        for name, value in self.values.items():
            was = getattr(version, name, None)
            if differ(was, value, equalities.get(name)):
                yield f"value of {name}: expected {value!r}, recorded {was!r}"


def _equalities(model: TrackedModel) -> Mapping[str, Equality]:
    return equalities_of(model.columns.items())


def _text(value: object) -> str:
    return repr(str(value)) if isinstance(value, str) else repr(value)  # the repr of an Operation is long


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no fields"


def _operation(operation: str) -> Operation:
    try:
        return Operation(operation)
    except ValueError:
        raise QueryError(
            f"operation is {operation!r}. Give one of {', '.join(repr(str(known)) for known in Operation)}.", operation
        ) from None


def _field_names(model: TrackedModel, fields: Iterable[str]) -> frozenset[str]:
    """Return the names of fields.

    :raises QueryError: they are one text, or the model and its subclasses store no such field
    """
    if isinstance(fields, str):
        raise QueryError(f"fields is the text {fields!r}. Give a set of names: {{{fields!r}}}.", fields)
    names = frozenset(fields)
    known = {name for submodel in model.family() for name in submodel.columns}
    if unknown := names - known:
        raise QueryError(
            f"The history of {model.mapper.class_.__name__} has no field {', '.join(sorted(map(repr, unknown)))}. It "
            f"has {_listed(known)}.",
            model.mapper.class_,
        )
    return names


def _why_nothing(session: Session, model: TrackedModel, resource_id: Any) -> str:
    if not registered_targets():
        return "No session records: call register_hooks() before the tests write."
    if not session.autoflush and any(isinstance(obj, model.mapper.class_) for obj in (*session.new, *session.dirty)):
        return "The session has changes that are not flushed: call session.flush() or session.commit() first."
    key = tuple(model.root.table.key)
    ids, where = converted_ids(key, [resource_id]), bind_arguments_for(session, model.mapper)
    if session.execute(select(*key).where(has_id(key, ids)), ids, bind_arguments=where).first() is None:
        name = model.root.table.live.fullname
        return (
            f"There is no row with this key in {name!r} either, as far as the transaction of the session sees. A row "
            "that one transaction inserts and deletes leaves no version."
        )
    if not records(session):
        return "The row exists, but this session does not record: give register_hooks() the sessions of the test."
    return (
        "The row exists, so something has written it that does not record: hand-written SQL, a session without hooks, "
        "or code inside tracking_disabled()."
    )


def _hints(expected: _Expected, recorded: Sequence[_Recorded]) -> Iterator[str]:
    """Yield what may explain the difference to someone who expected something else."""
    *earlier, last = recorded
    for version in reversed(earlier):
        if not any(expected.mismatches(version)):
            yield f"Version {version.info['version']} is as expected, but it is not the last one."
            return
    if expected.operation is Operation.UPDATE and last.info["operation"] is Operation.INSERT:
        yield (
            "An insert and the updates of the same transaction are one version, an insert. If the test runs in an "
            "outer transaction, its commits are one transaction, too: call changeset_per_commit(connection)."
        )
