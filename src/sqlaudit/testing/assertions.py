"""Was it recorded? An assertion, whose failure says what was recorded instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import QueryableAttribute, Session, scoped_session

from sqlaudit.arguments import checked_user
from sqlaudit.asynchronous import also_async
from sqlaudit.changes import Equality, Operation, diff, differ, equalities_of, hashable
from sqlaudit.exceptions import QueryError
from sqlaudit.hooks.scope import records
from sqlaudit.hooks.sessions import registered_targets
from sqlaudit.retrieval.field_changes import versions_of
from sqlaudit.retrieval.ids import converted_ids, has_id
from sqlaudit.tracking.history import erased_fields_of, stored_values, version_info
from sqlaudit.tracking.links import Readable, Related, model_of, related_by
from sqlaudit.tracking.models import TrackedModel
from sqlaudit.tracking.sessions import bind_arguments_for, checked_session

_SHOWN: Final = 5
_OPERATIONS_OF_LINKS: Final = {Operation.INSERT: Operation.LINK, Operation.DELETE: Operation.UNLINK}


@also_async
def assert_recorded(
    session: Session | scoped_session[Any],
    model_class: Readable,
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
        assert_recorded(session, Ticket.tags, 7, operation="link", values={"tag_id": 3})

    Of a relationship, it looks at the links or rows that its last changeset wrote, and returns the version of one that
    is as expected.

    :param session: a session; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model or an association table; or a relationship, for the links or rows to which it
        has led
    :param resource_id: the primary key, also as text; a tuple if the key is composite. For a relationship, the key of
        its owner
    :param operation: ``"insert"``, ``"update"``, ``"delete"`` or ``"baseline"``; for a relationship with an association
        table, ``"link"`` or ``"unlink"``
    :param fields: the names of exactly those fields that the version changed, tracked for reports or not. Quiet fields
        may be left out
    :param values: values that the version has, by the name of the field
    :param changed_by: the user
    :param reason: why
    :raises AssertionError: the last version is another one, or there is none; the message says what was recorded
    :raises TrackingError: the model, or what the relationship leads to, is not tracked
    :raises QueryError: there is no such operation or field
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    session = checked_session(session)
    model = model_of(model_class)
    related = related_by(model_class) if isinstance(model_class, QueryableAttribute) else None
    expected = _Expected(
        operation=None if operation is None else _operation(operation),
        fields=None if fields is None else _field_names(model, fields),
        values=values or {},
        changed_by=None if changed_by is None else checked_user("changed_by", changed_by),
        reason=reason,
    )
    _field_names(model, expected.values)
    row = f"{model.name if related is None else f'{related.owner.name}.{related.name}'} {resource_id!r}"
    are_links = related is not None and bool(related.other_key)
    recorded = list(_all_recorded(versions_of(session, model_class, resource_id), are_links))
    if not recorded:
        why = _why_nothing(session, model, resource_id) if related is None else _why_no_related(session, related)
        raise AssertionError(f"Nothing is recorded of {row}. {why}")
    last = recorded[-1]
    latest = [last] if related is None else [each for each in recorded if each.changeset_id == last.changeset_id]
    for version in reversed(latest):
        if not any(expected.mismatches(version)):
            return version.version
    lines = [f"The last version of {row} is not as expected."]
    if len(latest) > 1:
        lines = [f"None of the {len(latest)} last versions of {row} is as expected. The last one:"]
    lines += [f"  {mismatch}" for mismatch in expected.mismatches(last)]
    lines.append("Recorded, newest first:")
    lines += [f"  {version}" for version in recorded[: -_SHOWN - 1 : -1]]
    if len(recorded) > _SHOWN:
        lines.append(f"  … and {len(recorded) - _SHOWN} before")
    lines += _hints(expected, recorded)
    raise AssertionError("\n".join(lines))


def _all_recorded(versions: Iterable[Any], are_links: bool) -> Iterator[_Recorded]:
    """Yield versions of one row or of several, each with what it changed."""
    before: dict[Any, Any] = {}
    for version in versions:
        key = hashable(tuple(getattr(version, name) for name in version.__sqlaudit_model__.root.key_names))
        yield _Recorded.of(version, before.get(key), are_links)
        before[key] = version


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A version, and the fields that it changed: name → [old value, new value]."""

    version: Any
    info: Mapping[str, Any]
    changes: Mapping[str, list[Any]]

    @classmethod
    def of(cls, version: Any, before: Any, is_link: bool) -> _Recorded:
        model: TrackedModel = version.__sqlaudit_model__
        info, names = version_info(version), sorted(model.columns)
        is_known = before is not None and version_info(before)["version"] == info["version"] - 1
        old, new = stored_values(before, names) if is_known else None, stored_values(version, names)
        erased = erased_fields_of(before) if is_known else (), erased_fields_of(version)
        changes = diff(names, info["operation"], old, new, _equalities(model), erased)
        operation = _OPERATIONS_OF_LINKS.get(info["operation"]) if is_link else None
        return cls(
            version, info | ({"operation": operation} if operation else {}), {name: values for name, *values in changes}
        )

    @property
    def changeset_id(self) -> Any:
        return self.info["changeset_id"]

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
        quiet = version.__sqlaudit_model__.options.quiet
        if self.fields is not None and not self.fields <= recorded.changes.keys() <= self.fields | quiet:
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
            f"The history of {model.name} has no field {', '.join(sorted(map(repr, unknown)))}. It has "
            f"{_listed(known)}.",
            unknown,
        )
    return names


def _why_nothing_at_all(session: Session, model: TrackedModel) -> str | None:
    if not registered_targets():
        return "No session records: call register_hooks() before the tests write."
    if not session.autoflush and any(isinstance(obj, model.mapper.class_) for obj in (*session.new, *session.dirty)):
        return "The session has changes that are not flushed: call session.flush() or session.commit() first."
    return None


def _why_no_related(session: Session, related: Related) -> str:
    return _why_nothing_at_all(session, related.owner) or (
        f"No version in {related.model.root.table.history.fullname!r} refers to this {related.owner.name}, as far as "
        "the transaction of the session sees."
    )


def _why_nothing(session: Session, model: TrackedModel, resource_id: Any) -> str:
    if why := _why_nothing_at_all(session, model):
        return why
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
