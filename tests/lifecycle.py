"""Does the history of a row show its life, from insert to delete?"""

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from sqlaudit import AuditColumns, as_of, get_resource_changes, history_of, versions_of
from sqlaudit.period import OPEN_END

Values = Mapping[str, Any]


def stored_fields(model: type[Any]) -> set[str]:
    """Return the names of the attributes that a history class takes from a model: the attributes of its columns."""
    return {attr.key for attr in sa.inspect(model).column_attrs if isinstance(attr.columns[0], sa.Column)}


def values_of(obj: Any, names: set[str]) -> dict[str, tuple[type, Any]]:
    """Return the values of attributes with their types, which `==` does not always compare."""
    return {name: (type(getattr(obj, name)), getattr(obj, name)) for name in names}


def live_and_die(
    sessions: orm.sessionmaker[orm.Session],
    model: type[Any],
    new: Values,
    change: Values | Callable[[Any], object],
    *,
    exclude: frozenset[str] = frozenset(),
    raising: frozenset[str] = frozenset(),
    columns: AuditColumns = AuditColumns(),  # noqa: B008  # frozen
) -> list[Any]:
    """Insert, update and delete a row in three transactions; check its history in all ways; return its versions.

    `exclude` names fields that are not stored, `raising` fields that a live object refuses to load.
    """
    names = stored_fields(model) - exclude
    assert stored_fields(history_of(model)) == names | {name for _, name in columns.items()}
    names -= raising

    with sessions.begin() as session:
        session.add(obj := model(**new))
        session.flush()
        key = tuple(sa.inspect(obj).identity)
    held = [_held(sessions, model, key, names)]
    with sessions.begin() as session:
        obj = session.get_one(model, key)
        if callable(change):
            change(obj)
        else:
            for name, value in change.items():
                setattr(obj, name, value)
    held.append(_held(sessions, model, key, names))
    assert held[0] != held[1], "the change is none"
    with sessions.begin() as session:
        session.delete(session.get_one(model, key))

    with sessions() as session:
        versions = versions_of(session, model, key)
        _check_versions(versions, [*held, held[1]], columns)
        _check_changes(session, model, key, [*held, held[1]])
        _check_as_of(session, model, versions, held, columns)
    return versions


def _held(sessions: Any, model: type[Any], key: tuple[Any, ...], names: set[str]) -> dict[str, tuple[type, Any]]:
    with sessions() as session:
        return values_of(session.get_one(model, key), names)


def _check_versions(versions: list[Any], expected: list[dict[str, Any]], columns: AuditColumns) -> None:
    assert [getattr(version, columns.operation) for version in versions] == ["insert", "update", "delete"]
    assert [getattr(version, columns.version) for version in versions] == [1, 2, 3]
    assert len({getattr(version, columns.changeset_id) for version in versions}) == 3
    first, second, tombstone = ([getattr(v, columns.valid_from), getattr(v, columns.valid_to)] for v in versions)
    assert first[0] < first[1] == second[0] < second[1] == tombstone[0] == tombstone[1] < OPEN_END
    assert [values_of(version, set(expected[0])) for version in versions] == expected


def _check_changes(session: orm.Session, model: type[Any], key: tuple[Any, ...], held: list[dict[str, Any]]) -> None:
    new, changed, _ = ({name: value for name, (_, value) in each.items()} for each in held)
    found = get_resource_changes(model, session, filter_resource_ids=[key if len(key) > 1 else key[0]])
    told = {(str(c.operation), c.field_name): (c.old_value, c.new_value) for c in found}
    assert len(told) == len(found)
    assert told == {
        **{("insert", name): (None, value) for name, value in new.items() if value is not None},
        **{("update", name): (new[name], value) for name, value in changed.items() if value != new[name]},
        **{("delete", name): (value, None) for name, value in changed.items() if value is not None},
    }
    assert {c.resource_id for c in found} == {key if len(key) > 1 else key[0]}
    for change in found:
        types = tuple(each[change.field_name][0] for each in held)
        for value in (change.old_value, change.new_value):  # a plain dict may stand for a MutableDict
            assert value is None or any(issubclass(type_, type(value)) for type_ in types)


def _check_as_of(
    session: orm.Session, model: type[Any], versions: list[Any], held: list[dict[str, Any]], columns: AuditColumns
) -> None:
    *instants, deletion = (getattr(version, columns.valid_from) for version in versions)
    for instant, state in zip(instants, held, strict=True):
        assert values_of(session.scalars(as_of(model, instant)).one(), set(state)) == state
    assert session.scalars(as_of(model, deletion)).all() == []
