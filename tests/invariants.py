"""What holds for every history? The checks that tests run after each scenario."""

import itertools
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqlaudit import OPEN_END, Operation, history_of
from sqlaudit.period import TICK
from sqlaudit.tracking.models import tracked_model_of
from sqlaudit.tracking.tables import TrackedTable, tracked_table

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

    :param all_recorded: False if live rows may be older than their tracking, and have no version
    """
    if isinstance(source, sa.Table):
        base = tracked_table(source)
        tables: list[TrackedTable] = []
    else:
        root = tracked_model_of(source).root
        base = root.table
        tables = [each.table for each in root.family()]
    assert base is not None, f"{source} is not tracked"
    above = _versions(session, base)
    lives = [
        (f"{base.live.name} {key}", list(versions))
        for key, versions in itertools.groupby(above, lambda one: one["key"])
    ]
    _check_life(lives)
    _check_changesets(lives, is_append_only=base.append_only)
    _check_against_live(session, base, above, all_recorded)
    for table in dict.fromkeys(tables):
        if table is not base:
            versions = _versions(session, table)
            _check_against_live(session, table, versions, all_recorded)
            _check_follows(table, versions, above)


Version = dict[str, Any]
Lives = list[tuple[str, list[Version]]]
"""The name of each row, and its versions in order."""


def _versions(session: Session, table: TrackedTable) -> list[Version]:
    roles, names = [role for role, _ in table.names.items()], [live.key for live, _ in table.columns]
    first, last = len(roles), len(roles) + len(names)
    columns = [*map(table.role, roles), *(old for _, old in table.columns), *table.history_key]
    statement = sa.select(*(column.label(f"c{place}") for place, column in enumerate(columns)))
    return [
        {
            **dict(zip(roles, row, strict=False)),
            "values": dict(zip(names, row[first:last], strict=True)),
            "key": tuple(row[last:]),
        }
        for row in session.execute(statement.order_by(*table.history_key, table.version))
    ]


def _check_life(lives: Lives) -> None:
    """Check that numbers have no gaps, that periods meet, and that only the last version is open."""
    for row, versions in lives:
        assert [each["version"] for each in versions] == list(range(1, len(versions) + 1)), f"{row}: gaps in numbers"
        for each in versions:
            assert each["valid_from"] <= each["valid_to"], f"{row}: a period ends before it begins: {each}"
            if each["operation"] is Operation.DELETE:
                assert each["valid_from"] == each["valid_to"], f"{row}: a tombstone with a duration: {each}"
        for one, following in itertools.pairwise(versions):  # in order, because as-of reads bisect the numbers
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


def _check_changesets(lives: Lives, *, is_append_only: bool) -> None:
    """Check for one version per row, changeset and context, and one instant per changeset, unless moved by a tick.

    An append-only history may have more versions of one context.
    """
    began: dict[Any, Any] = {}
    for _, versions in lives:
        for each in versions:
            began[each["changeset_id"]] = min(began.get(each["changeset_id"], OPEN_END), each["valid_from"])
    for row, versions in lives:
        for one, following in itertools.pairwise(versions):
            same_context = all(one[role] == following[role] for role in CONTEXT)
            if one["changeset_id"] == following["changeset_id"] and one["operation"] is not Operation.BASELINE:
                assert is_append_only or not same_context, f"{row}: two versions of one change: {one} {following}"
            if following["valid_from"] > began[following["changeset_id"]]:
                moved = one["valid_from"] + TICK == following["valid_from"]
                ours = one["changeset_id"] == following["changeset_id"] and one["valid_from"] == following["valid_from"]
                assert moved or ours, f"{row}: not the instant of its changeset: {following}"
        assert versions[0]["valid_from"] == began[versions[0]["changeset_id"]], f"{row}: {versions[0]}"


def _check_against_live(session: Session, table: TrackedTable, versions: list[Version], all_recorded: bool) -> None:
    """Check that the open versions equal the live rows."""
    keys = [column.key for column in table.key]
    live = {
        tuple(row[key] for key in keys): {column.key: row[column.key] for column, _ in table.columns}
        for row in session.execute(sa.select(*(c.label(c.key) for c in table.live.c))).mappings()
    }
    open_versions = {each["key"]: each for each in versions if each["valid_to"] == OPEN_END}
    assert open_versions.keys() <= live.keys(), f"{table.live.name}: open versions of rows that are gone"
    if all_recorded:
        assert live.keys() <= open_versions.keys(), f"{table.live.name}: live rows without an open version"
    for key, version in open_versions.items():
        assert version["values"] == live[key], f"{table.live.name} {key}: the open version is not the live row"


def _check_follows(table: TrackedTable, versions: list[Version], above: list[Version]) -> None:
    """Check that the versions of a subclass table match versions of the base table."""
    twins = {(each["key"], each["version"]): each for each in above}
    for version in versions:
        twin = twins.get((version["key"], version["version"]))
        assert twin is not None, f"{table.live.name}: a version without its base: {version}"
        expected = twin
        if version["operation"] is Operation.DELETE and twin["operation"] is not Operation.DELETE:
            # The row has lost its row in the subclass table, and lives on in the base table.
            expected = twin | {"operation": Operation.DELETE, "valid_to": twin["valid_from"]}
        for role, _ in table.names.items():
            assert version[role] == expected[role], f"{table.live.name}: {role} differs: {version} {twin}"
