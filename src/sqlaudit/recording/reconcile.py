"""Which changes did sqlaudit miss? It compares live rows with their open versions, and records the differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, literal_column, select, true, update
from sqlalchemy.orm import Session

from sqlaudit.asynchronous import also_async
from sqlaudit.context import get_audit_context
from sqlaudit.period import is_open
from sqlaudit.recording.capture import MissingRows, WriteContext
from sqlaudit.recording.cascades import split_by_chain, table_chains, take_write_lock
from sqlaudit.recording.changeset import changeset_of, connection_for_versions
from sqlaudit.recording.events import recorded_listeners, tell_recorded_by
from sqlaudit.recording.policy import report_unrecorded, warn_of_visible_history
from sqlaudit.recording.tracked_mappers import user_fields_of
from sqlaudit.retrieval.ids import converted_ids, listed_ids
from sqlaudit.sql.batches import chunks, pages
from sqlaudit.sql.comparing import all_equal
from sqlaudit.sql.keys import Key, raw_columns, read_keys
from sqlaudit.sql.lists import has_one_of
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.aliases import HistoryAlias, joined_versions
from sqlaudit.tracking.catalogue import can_lock_many
from sqlaudit.tracking.foreign_keys import Chain
from sqlaudit.tracking.history import rebased_on_history
from sqlaudit.tracking.models import base_table_of, tracked_model_of
from sqlaudit.tracking.rights import hides_rows, lockable_tables
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable


@also_async
def record_changes(session: Session, model_class: Any, which: Any = None) -> None:
    """Compare rows with their history, and record the differences as changes of this transaction.

    Use it for what sqlaudit could not record: hand-written SQL, other clients, triggers. The database compares each
    live row with its open version. A row without history is recorded as inserted. Rows that agree with their history
    are left alone.

    It executes a few statements per 1,000 rows, in flat memory and in the order of the keys. If row security hides a
    row from the role of the session, sqlaudit does not take the row for deleted, and warns if its version is open.

    .. code-block:: python

        record_changes(session, Customer)
        record_changes(session, Customer, Customer.city == "Rome")
        record_changes(session, Customer, [1, 2, 3])

    :param session: a session that records; if it is an ``AsyncSession``, await the result
    :param model_class: a tracked model, or an association table
    :param which: a list of keys, or a criterion that the live row or its open version fulfils; all rows if omitted
    :raises TrackingError: the model is not tracked
    """
    session, root = checked_session(session), base_table_of(model_class)
    session.flush()
    connection = connection_for_versions(session, root.mapper)
    warn_of_visible_history(connection, [root])
    take_write_lock(connection, root)
    write = WriteContext(connection, changeset_of(session, connection), get_audit_context())
    for keys in _pages(connection, root, model_class, which):
        reconcile_rows(write, root, keys)
    if recorded_listeners:
        tell_recorded_by(session)


def reconcile_rows(write: WriteContext, root: TrackedTable, keys: Sequence[Key], *, as_baselines: bool = False) -> None:
    """Record how rows differ from their histories.

    :param as_baselines: give a row without an open version a baseline; otherwise it is recorded as inserted
    """
    connection = write.connection
    departed = list(_departed_rows(connection, root, keys))
    for chain, keys_of_chain in (*departed, *split_by_chain(connection, root, keys)):
        capture = write.capture(chain, user_fields_of(chain))
        if as_baselines:
            capture.write_missing_baselines(keys_of_chain)
        capture.settle(
            keys_of_chain,
            inserted=frozenset(() if as_baselines else keys_of_chain),
            must_be_found=False,
            missing_rows=MissingRows.UNKNOWN,
            forgets=not as_baselines,
        )


def _pages(connection: Connection, root: TrackedTable, model_class: Any, asked_ids: Any) -> Iterator[Sequence[Key]]:
    """Yield the keys of the chosen rows in batches; a key may appear twice."""
    chain = (root,) if root.is_association else tracked_model_of(model_class).chain
    if asked_ids is not None and not isinstance(asked_ids, ColumnElement):
        asked_keys = converted_ids(root.key, listed_ids(asked_ids, composite=len(root.key) > 1))["ids"]
        yield from chunks([key if isinstance(key, tuple) else (key,) for key in asked_keys])
        return
    criterion = true() if asked_ids is None else asked_ids
    live = select(*root.key).select_from(model_class).where(criterion)
    if lockable_tables(connection, [root.live]) and can_lock_many(connection, root):
        live = live.with_for_update(of=root.live)
    yield from pages(connection, live, root.key)
    criterion_then = rebased_on_history(criterion, dict(pair for table in chain for pair in table.columns))
    versions = select(*root.history_key).select_from(joined_versions(chain))
    versions = versions.where(is_open(root.valid_to), criterion_then)
    yield from pages(connection, versions, root.history_key)


def _departed_rows(
    connection: Connection, root: TrackedTable, keys: Sequence[Key]
) -> Iterator[tuple[Chain, list[Key]]]:
    """Yield the rows that history has in the table of a subclass, though they are no longer there, by their chain.

    Such a row was deleted, or is of another class now.
    """
    dialect = connection.dialect
    for chain in table_chains(root)[:-1]:
        table = chain[-1]
        is_there = exists(literal_column("1")).where(all_equal(table.key, table.history_key))
        recorded = select(*raw_columns(table.history_key, dialect)).where(is_open(table.valid_to), ~is_there)
        for chunk in chunks(keys):
            statement = recorded.where(has_one_of(table.history_key, chunk, dialect))
            departed: list[Key] = list(read_keys(connection, statement))
            if departed and hides_rows(connection, [table.live]):
                report_unrecorded(
                    f"The role no longer sees the row {departed[0]} of the tracked table {table.live.fullname!r}: it "
                    "was deleted, or row security hides it. sqlaudit does not know which, and leaves its version "
                    "open. Call record_changes() as a role that the policies do not restrict.",
                    table.live,
                )
            elif departed:
                end_with_base(connection, root, chain[1:], departed)
                yield chain, departed


def end_with_base(connection: Connection, root: TrackedTable, tables: Sequence[TrackedTable], keys: list[Key]) -> None:
    """End versions in the tables of subclasses when the versions of the same numbers in the base table ended.

    They are still open if sqlaudit recorded a write of the row after the row had left the subclass unseen.
    """
    for table in tables:
        base_version = HistoryAlias(root)
        is_same = and_(base_version.has_key(table.history_key), base_version.version == table.version)
        has_ended = and_(is_same, ~base_version.is_open)
        statement = update(table.history).where(
            has_one_of(table.history_key, keys, connection.dialect),
            is_open(table.valid_to),
            exists(literal_column("1")).where(has_ended),
        )
        end = select(base_version.valid_to).where(has_ended).scalar_subquery()
        connection.execute(statement.values({table.valid_to: end}), execution_options=INTERNAL)
