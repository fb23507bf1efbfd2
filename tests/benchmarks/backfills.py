"""What does a backfill cost? Its speed beside that of an ``INSERT … SELECT`` of the same columns, and its memory."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase
from tests.benchmarks.columns import NOON, Columns
from tests.benchmarks.reads import WIDE, fill_live

from sqlaudit import OPEN_END, Operation, backfill, history_of, track_table
from sqlaudit.tracking.tables import tracked_table

LEAST = {"postgresql": 0.6}
REPETITIONS = 3


class Base(DeclarativeBase):
    pass


@track_table()
class Old(Columns, Base):
    __tablename__ = "benchmark_old"


def copy_bare(engine: sa.Engine) -> None:
    """Copy the rows, as if nobody else wrote and nothing had been copied before."""
    live, table = sa.inspect(Old).local_table, tracked_table(Old.__table__)
    assert table is not None
    given: dict[str, Any] = {"version": 1, "valid_from": NOON, "valid_to": OPEN_END, "operation": Operation.BASELINE}
    given["changeset_id"] = UUID(int=7)
    values = {column.name: column for column in live.c}
    values |= {table.role(role).name: sa.literal(value, table.role(role).type) for role, value in given.items()}
    with engine.begin() as connection:
        connection.execute(sa.insert(table.history).from_select(list(values), sa.select(*values.values())))


def measure_backfill(engine: sa.Engine, rows: int, clock: Callable[[], float]) -> None:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        fill_live(connection, Old, rows, WIDE)
    speeds: dict[str, list[float]] = {"bare": [], "backfill": []}
    for _ in range(REPETITIONS):
        for name, copy in (("bare", copy_bare), ("backfill", lambda engine: backfill(engine, Old))):
            history = history_of(Old).__table__
            history.drop(engine)
            history.create(engine)
            began = clock()
            copy(engine)
            speeds[name].append(rows / (clock() - began))
    share = max(speeds["backfill"]) / max(speeds["bare"])
    least = LEAST.get(engine.dialect.name, 0)
    mark = "" if share >= least else "  TOO SLOW"
    print(f"  {f'backfill of {rows:,} rows':<50} {share:5.2f}  ≥ {least:.2f} of the speed of INSERT … SELECT{mark}")
    peaks = [peak_of(engine, rows, part) for part in (10, 1)]
    verdict = "flat" if peaks[1] <= peaks[0] + 1 else "NOT FLAT"
    name = "memory, backfill of a tenth and of all"
    print(f"  {name:<50} {verdict}: {peaks[0]:.1f} MiB, {peaks[1]:.1f} MiB", flush=True)
    Base.metadata.drop_all(engine)


def peak_of(engine: sa.Engine, rows: int, part: int) -> float:
    """Return what Python's memory peaks at when a part of the rows has no history."""
    table = tracked_table(Old.__table__)
    assert table is not None
    with engine.begin() as connection:
        connection.execute(sa.delete(table.history).where(table.history.c.id <= rows // part))
    gc.collect()
    tracemalloc.start()
    backfill(engine, Old)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return peak
