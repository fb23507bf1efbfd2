"""Do histories keep their promises? sqlaudit compares versions with each other, with the live rows and with the models.

.. code-block:: python

    report = check(engine)
    for finding in report.findings:
        print(finding.code, finding.table, finding.key, finding.message)

:mod:`~sqlaudit.maintenance.structure` looks at tables, columns, indexes and rights,
:mod:`~sqlaudit.maintenance.sequences` at the versions of each row, :mod:`~sqlaudit.maintenance.comparisons` at the live
rows, and :mod:`~sqlaudit.maintenance.instants` at the changesets. :mod:`~sqlaudit.maintenance.repair` mends faults.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, Final, TypeAlias

from sqlalchemy import Connection, Engine, MetaData, Table, inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session

from sqlaudit.arguments import checked_count
from sqlaudit.asynchronous import also_async_where
from sqlaudit.context import AuditContextManager, get_audit_context
from sqlaudit.maintenance.comparisons import Comparison
from sqlaudit.maintenance.findings import CheckReport, Collector
from sqlaudit.maintenance.instants import Instants
from sqlaudit.maintenance.progress import Callback, progress_reporter
from sqlaudit.maintenance.repair import Repair
from sqlaudit.maintenance.sequences import Parts, Sequences
from sqlaudit.maintenance.structure import check_structure
from sqlaudit.maintenance.transactions import InSavepoints, InTransactions, Runner, connection_of, own_connection
from sqlaudit.recording.events import recorded_listeners, tell_recorded_by
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.missing import explaining_history_errors
from sqlaudit.tracking.models import base_table_of, tracked_model
from sqlaudit.tracking.registry import find_association_tables, tracked_tables
from sqlaudit.tracking.rights import hides_rows
from sqlaudit.tracking.sessions import checked_session
from sqlaudit.tracking.tables import TrackedTable, known_metadata

_log: Final = logging.getLogger(__package__)
_USUAL_CACHE: Final = -2_000
_LARGER_CACHE: Final = -16_000
Hierarchy: TypeAlias = list[TrackedTable]
"""The base table of a hierarchy, and the tables of its subclasses; or an association table alone."""


@also_async_where
def check(
    where: Engine | Connection | Session | scoped_session[Any],
    *models: Any,
    repair: bool = False,
    limit: int = 1_000,
    progress: Callback | bool | None = None,
) -> CheckReport:
    """Find the faults of histories, and mend them if you wish.

    It reads each history a few times, in statements of which each sees one state of the database, and waits for
    nobody. The application can go on writing. Memory stays flat.

    .. code-block:: python

        report = check(engine)
        report = check(engine, Customer, repair=True)

    With ``repair``, sqlaudit mends what it can without inventing history. It records live rows that have changed
    unrecorded, as new versions of the current audit context; it writes baselines of rows without versions; it ends
    open versions that others follow. Each finding says what was done, or why nothing was.

    :param where: an engine; each batch of repairs is then a transaction of its own. Or a session or a connection:
        everything happens in its transaction. If it is asynchronous, await the result
    :param models: tracked models, each with its whole hierarchy; association tables; or a ``MetaData`` or declarative
        base with all its tracked tables. Without any, all models of the process
    :param repair: mend what can be mended
    :param limit: how many faults of one code and one table the report lists; it counts all
    :param progress: ``True`` for a bar on the terminal, which needs the extra ``progress``; or a function that is
        called with the number of tables done and the number of all tables
    :raises TrackingError: a model is not tracked
    :raises QueryError: an argument is invalid
    """
    hierarchies = _hierarchies_of(models)
    findings = Collector(checked_count("limit", limit))
    must_exist = bool(models) or len(known_metadata()) == 1  # another MetaData may be of another database
    with progress_reporter(progress, "check") as report_progress, AuditContextManager(reason=_reason()):
        if isinstance(where, Engine):
            with own_connection(where) as connection, _larger_cache(connection):
                run: Runner = InTransactions(connection)
                checked = _Check(run, findings, hierarchies, connection.begin, report_progress, must_exist)
                checked.run(Repair(run, findings, None, in_transactions=True) if repair else None)
        else:
            session = None if isinstance(where, Connection) else checked_session(where)
            for connection, group in _by_connection(where, hierarchies, must_exist=must_exist):
                run = InSavepoints(connection)
                checked = _Check(run, findings, group, nullcontext, report_progress, must_exist)
                checked.run(Repair(run, findings, session, in_transactions=False) if repair else None)
            if repair and session is not None and recorded_listeners:
                tell_recorded_by(session)
    for code, count in sorted(findings.counts.items()):
        _log.warning("check found %d faults: %s", count, code)
    return findings.report(sum(map(len, hierarchies)))


@contextmanager
def _larger_cache(connection: Connection) -> Iterator[None]:
    """Let SQLite keep more pages in memory, unless somebody has chosen how many.

    The versions before others are all over the history. Measured, a check takes a quarter less time.
    """
    if connection.dialect.name != "sqlite" or _cache_size(connection) != _USUAL_CACHE:
        yield
        return
    _cache_size(connection, _LARGER_CACHE)
    try:
        yield
    finally:
        _cache_size(connection, _USUAL_CACHE)


def _cache_size(connection: Connection, new: int | None = None) -> Any:
    """Return the size of SQLite's page cache, in KiB if it is negative; or set it."""
    pragma = "PRAGMA cache_size" if new is None else f"PRAGMA cache_size = {new}"
    with connection.begin():
        result = connection.exec_driver_sql(pragma, execution_options=INTERNAL)
        return result.scalar() if result.returns_rows else None


def _reason() -> str:
    return get_audit_context().reason or "check(…, repair=True)"


def _hierarchies_of(models: Sequence[Any]) -> list[Hierarchy]:
    """Return the tables of models: of each hierarchy the base table, and the tables of subclasses.

    :raises TrackingError: one is not tracked
    """
    bases: dict[TrackedTable, None] = {}
    for source in models or known_metadata():
        metadata = source if isinstance(source, MetaData) else _metadata_of_base(source)
        if metadata is None:
            bases[base_table_of(source)] = None
            continue
        find_association_tables(metadata)
        for table in tracked_tables(metadata):
            if not table.is_obsolete and table.mapper is not None and tracked_model(table.mapper) is not None:
                bases[table if table.is_association else table.chains[0][0]] = None
    return [list(dict.fromkeys((base, *chain.from_iterable(base.chains)))) for base in bases]


def _metadata_of_base(source: Any) -> MetaData | None:
    """Return the MetaData of a declarative base, or ``None`` if the source is a model or a table."""
    metadata = getattr(source, "metadata", None)
    is_model = isinstance(source, Table) or inspect(source, raiseerr=False) is not None
    return metadata if isinstance(metadata, MetaData) and not is_model else None


def _by_connection(
    where: Any, hierarchies: Sequence[Hierarchy], *, must_exist: bool
) -> Iterator[tuple[Connection, list[Hierarchy]]]:
    """Yield the connections of a session, each with the hierarchies whose tables it reads.

    :param must_exist: False to leave out the tables for which the session has no bind
    """
    groups: dict[Connection, list[Hierarchy]] = {}
    for hierarchy in hierarchies:
        try:
            connection = connection_of(where, hierarchy[0])
        except UnboundExecutionError:
            if must_exist:
                raise
            continue
        groups.setdefault(connection, []).append(hierarchy)
    yield from groups.items()


class _Check:
    """A check on one connection.

    :param transaction: begins a transaction for the reads of a hierarchy, unless the caller has begun one
    :param must_exist: see :func:`~sqlaudit.maintenance.structure.check_structure`
    """

    def __init__(
        self,
        run: Runner,
        findings: Collector,
        hierarchies: Sequence[Hierarchy],
        transaction: Callable[[], AbstractContextManager[Any]],
        report_progress: Callback | None,
        must_exist: bool,
    ) -> None:
        self.must_exist = must_exist
        self.connection = run.connection
        self.findings = findings
        self.hierarchies = hierarchies
        self.transaction = transaction
        self.report_progress = report_progress
        self.comparisons: list[tuple[Hierarchy, list[Comparison]]] = []

    def run(self, repair: Repair | None) -> None:
        total = sum(map(len, self.hierarchies))
        done = 0
        for hierarchy in self.hierarchies:
            with self.transaction(), explaining_history_errors(hierarchy):
                self._check_hierarchy(hierarchy)
            done += len(hierarchy)
            if self.report_progress:
                self.report_progress(done, total)
        if self.comparisons:
            with self.transaction():
                instants = Instants(self.connection, [hierarchy[0] for hierarchy, _ in self.comparisons])
                if instants.count():
                    instants.list_faults(self.findings)
        if repair is not None:
            for hierarchy, comparisons in self.comparisons:
                repair.mend(hierarchy, comparisons)
            repair.explain_rest()

    def _check_hierarchy(self, tables: Hierarchy) -> None:
        structures = {
            table: check_structure(self.connection, table, self.findings, must_exist=self.must_exist)
            for table in tables
        }
        base = tables[0]
        known = [table for table, structure in structures.items() if structure.has_versions]
        if base not in known:
            return
        if hides_rows(self.connection, [one for table in known for one in (table.live, table.history)]):
            self.findings.unchecked.append(
                f"Row security hides rows of {base.live.fullname!r} or of its history from the role, so its versions "
                "have not been checked. Check as a role that the policies do not restrict."
            )
            return
        comparisons = []
        for table in known:
            versions = Sequences(self.connection, table) if table is base else Parts(self.connection, base, table)
            counted = versions.count()
            self.findings.versions += counted.versions
            versions.list_faults(counted, self.findings)
            comparison = Comparison(self.connection, table, structures[table].stored)
            comparison.list_faults(comparison.count(), counted.open, self.findings)
            comparisons.append(comparison)
        self.comparisons.append((known, comparisons))
