"""What holds of every history, whatever happened: the checks that tests run after each scenario."""

import itertools
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqlaudit import OPEN_END, Operation, history_of
from sqlaudit.models import tracked_model_of
from sqlaudit.period import TICK
from sqlaudit.tables import TrackedTable, tracked_table

CONTEXT = ("changed_by", "impersonated_by", "reason", "extra")


def told(session: Session, source: Any, *fields: str) -> list[tuple[Any, ...]]:
    """Return (operation, value, …) of each version of a model or an association table, by key and number."""
    if isinstance(source, sa.Table):
        table = tracked_table(source)
        assert table is not None, f"{source} is not tracked"
        columns = [table.role("operation"), *(table.history.c[field] for field in fields)]
        statement = sa.select(*columns).order_by(*table.history_key, table.version)
        return [(str(operation), *values) for operation, *values in session.execute(statement)]
    table = tracked_model_of(source).root.table
    versions = session.scalars(
        sa.select(history_of(source))
        .order_by(*table.history_key, table.version)
        .execution_options(populate_existing=True)
    )
    operation = table.names.operation
    return [(str(getattr(each, operation)), *(getattr(each, field) for field in fields)) for each in versions]


def check_history(session: Session, source: Any, *, all_recorded: bool = True) -> None:
    """Fail unless the history of a model (its whole hierarchy) or an association table keeps its promises.

    :param all_recorded: whether every live row must have a version; not so for rows older than their tracking
    """
    if isinstance(source, sa.Table):
        base = tracked_table(source)
        tables: list[TrackedTable] = []
    else:
        root = tracked_model_of(source).root
        base = root.table
        tables = [each.table for each in root.family()]
    assert base is not None, f"{source} is not tracked"
    _check_life(session, base)
    _check_changesets(session, base)
    for table in dict.fromkeys([base, *tables]):
        _check_against_live(session, table, all_recorded)
        if table is not base:
            _check_follows(session, table, base)


def _versions(session: Session, table: TrackedTable) -> list[dict[str, Any]]:
    roles = [table.role(role).label(f"audit.{role}") for role, _ in table.names.items()]
    values = [old.label(f"value.{live.key}") for live, old in table.columns]
    keys = [column.label(f"key.{place}") for place, column in enumerate(table.history_key)]
    statement = sa.select(*roles, *values, *keys).order_by(*table.history_key, table.version)
    return [
        {
            **{role: row[f"audit.{role}"] for role, _ in table.names.items()},
            "values": {live.key: row[f"value.{live.key}"] for live, _ in table.columns},
            "key": tuple(row[f"key.{place}"] for place in range(len(keys))),
        }
        for row in session.execute(statement).mappings()
    ]


def _lives(session: Session, table: TrackedTable) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    for key, versions in itertools.groupby(_versions(session, table), key=lambda version: version["key"]):
        yield f"{table.live.name} {key}", list(versions)


def _check_life(session: Session, table: TrackedTable) -> None:
    """Numbers without gaps, periods that meet, nothing open but the last."""
    for row, versions in _lives(session, table):
        assert [each["version"] for each in versions] == list(range(1, len(versions) + 1)), f"{row}: gaps in numbers"
        for each in versions:
            assert each["valid_from"] <= each["valid_to"], f"{row}: a period ends before it begins: {each}"
            if each["operation"] is Operation.DELETE:
                assert each["valid_from"] == each["valid_to"], f"{row}: a tombstone with a duration: {each}"
        for one, following in itertools.pairwise(versions):  # without gaps, and in order: the number is bisected
            assert one["valid_from"] <= following["valid_from"], f"{row}: a later number, earlier: {one} {following}"
            assert one["valid_to"] != OPEN_END, f"{row}: an open version that is not the last: {one}"
            if one["operation"] is Operation.DELETE:
                assert one["valid_to"] <= following["valid_from"], f"{row}: periods overlap: {one} {following}"
                assert following["operation"] in (Operation.INSERT, Operation.BASELINE), f"{row}: {following}"
            else:
                assert one["valid_to"] == following["valid_from"], f"{row}: periods do not meet: {one} {following}"
                assert following["operation"] is not Operation.INSERT, f"{row}: a living row is inserted: {following}"
        last = versions[-1]
        assert (last["operation"] is Operation.DELETE) == (last["valid_to"] != OPEN_END), f"{row}: {last}"


def _check_changesets(session: Session, table: TrackedTable) -> None:
    """One version per row, transaction and context; one instant per changeset, unless it had to give way."""
    began: dict[Any, Any] = {}
    for _, versions in _lives(session, table):
        for each in versions:
            began[each["changeset_id"]] = min(began.get(each["changeset_id"], OPEN_END), each["valid_from"])
    for row, versions in _lives(session, table):
        for one, following in itertools.pairwise(versions):
            same_context = all(one[role] == following[role] for role in CONTEXT)
            if one["changeset_id"] == following["changeset_id"] and one["operation"] is not Operation.BASELINE:
                assert not same_context, f"{row}: two versions of one change: {one} {following}"
            if following["valid_from"] > began[following["changeset_id"]]:
                moved = one["valid_from"] + TICK == following["valid_from"]
                ours = one["changeset_id"] == following["changeset_id"] and one["valid_from"] == following["valid_from"]
                assert moved or ours, f"{row}: not the instant of its changeset: {following}"
        assert versions[0]["valid_from"] == began[versions[0]["changeset_id"]], f"{row}: {versions[0]}"


def _check_against_live(session: Session, table: TrackedTable, all_recorded: bool) -> None:
    """The open versions are the live rows."""
    keys = [column.key for column in table.key]
    live = {
        tuple(row[key] for key in keys): {column.key: row[column.key] for column, _ in table.columns}
        for row in session.execute(sa.select(*(c.label(c.key) for c in table.live.c))).mappings()
    }
    open_versions = {each["key"]: each for each in _versions(session, table) if each["valid_to"] == OPEN_END}
    assert open_versions.keys() <= live.keys(), f"{table.live.name}: open versions of rows that are gone"
    if all_recorded:
        assert live.keys() <= open_versions.keys(), f"{table.live.name}: live rows without an open version"
    for key, version in open_versions.items():
        assert version["values"] == live[key], f"{table.live.name} {key}: the open version is not the live row"


def _check_follows(session: Session, table: TrackedTable, base: TrackedTable) -> None:
    """A table further down its hierarchy has the same versions as the base table."""
    above = {(each["key"], each["version"]): each for each in _versions(session, base)}
    for version in _versions(session, table):
        twin = above.get((version["key"], version["version"]))
        assert twin is not None, f"{table.live.name}: a version without its base: {version}"
        expected = twin
        if version["operation"] is Operation.DELETE and twin["operation"] is not Operation.DELETE:
            # The row was of a subclass, and is one of its base class alone since.
            expected = twin | {"operation": Operation.DELETE, "valid_to": twin["valid_from"]}
        for role, _ in table.names.items():
            assert version[role] == expected[role], f"{table.live.name}: {role} differs: {version} {twin}"
