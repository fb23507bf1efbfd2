"""What grows with a history? ``python -m tests.benchmarks --scale [--pictures DIRECTORY]``.

Histories grow in two ways: 1,000 rows have more and more versions, or there are more and more rows of two versions. In
each column of the tables, a history is ten times as long as in the one before. PostgreSQL tells how many blocks of
8 KiB the statements touch, MariaDB how many rows they read, and SQLite how many steps they take: no noise disturbs
that. All numbers are ratios to the first column; a line that still grows in the last column says so.
"""

import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from tests.benchmarks.pictures import growth_picture
from tests.long_history import BEGIN, Columns, explained, load, rows_read, steps_counted

from sqlaudit import (
    as_of,
    changes_in,
    changesets,
    get_resource_changes,
    history_of,
    register_hooks,
    track_table,
    unregister_hooks,
)

ROWS, VERSIONS = 1_000, 2
FEWEST_ROWS = 10_000
GROWTH = 2
"""A line whose last number is larger than the one before by more than this factor is said to grow."""
REPETITIONS = 3
CHANGED_ROWS, ROUNDS_OF_CHANGES = 100, 20
"""How many rows are changed at once, and how often, to see the bytes that a change takes."""


class Base(DeclarativeBase):
    pass


@track_table()
class Item(Columns, Base):
    __tablename__ = "benchmark_growth"


@track_table(as_of_index=True)
class IndexedItem(Columns, Base):
    __tablename__ = "benchmark_growth_indexed"


@dataclass(frozen=True)
class Size:
    """How long is a history?

    :ivar middle: an instant in the middle of it
    """

    rows: int
    versions: int

    @property
    def total(self) -> int:
        return self.rows * self.versions

    @property
    def middle(self) -> datetime:
        return BEGIN + timedelta(seconds=self.total // 8)  # a transaction each second writes four versions

    def keys(self, place: int, count: int) -> list[int]:
        """Return keys of rows that lie far from each other, others for each place."""
        return [1 + (self.rows * n // count + 37 * place) % self.rows for n in range(count)]


Work = Callable[[Session, Size, int], Any]
"""What is measured: its last argument is the number of the repetition."""


# --- what is measured ---------------------------------------------------------------------------------------------


def insert(session: Session, size: Size, place: int) -> None:
    session.add(Item(name="new", amount=1))
    session.flush()


def update(session: Session, size: Size, place: int) -> None:
    session.get_one(Item, *size.keys(place, 1)).name += "!"
    session.flush()


def update_twice(session: Session, size: Size, place: int) -> None:
    update(session, size, place)
    update(session, size, place)


def delete(session: Session, size: Size, place: int) -> None:
    session.delete(session.get_one(Item, *size.keys(place, 1)))
    session.flush()


def one_row(session: Session, size: Size, place: int) -> None:
    [key] = size.keys(place, 1)
    session.scalars(as_of(Item, size.middle).where(Item.id == key)).all()


def ten_rows(session: Session, size: Size, place: int) -> None:
    session.scalars(as_of(Item, size.middle).where(Item.id.in_(size.keys(place, 10)))).all()


def all_rows(model: type[Any]) -> Work:
    def read(session: Session, size: Size, place: int) -> None:
        assert session.scalars(as_of(model, size.middle).with_only_columns(sa.func.count(model.id))).one()

    return read


def latest_changesets(session: Session, size: Size, place: int) -> None:
    assert len(changesets(session, limit=20, newest_first=True)) == 20


def one_changeset(session: Session, size: Size, place: int) -> None:
    assert changes_in(session, f"{size.total // 8 + place:032x}")


def latest_changes(session: Session, size: Size, place: int) -> None:
    assert len(get_resource_changes(Item, session, limit=10, newest_first=True)) == 10


def changes_of_a_time(session: Session, size: Size, place: int) -> None:
    period = (size.middle, size.middle + timedelta(seconds=10))
    assert get_resource_changes(Item, session, filter_date_range=period)


@dataclass(frozen=True)
class Line:
    """A line of the tables, and a picture.

    :ivar work: what is measured; without it, the bytes of a change
    """

    name: str
    work: Work | None


LINES = [
    Line("insert of a row", insert),
    Line("update of a row", update),
    Line("update of a row in two flushes", update_twice),
    Line("delete of a row", delete),
    Line("one row as of an instant", one_row),
    Line("ten rows as of an instant", ten_rows),
    Line("all rows as of an instant", all_rows(Item)),
    Line("all rows with as_of_index", all_rows(IndexedItem)),
    Line("latest 20 changesets", latest_changesets),
    Line("changes of a changeset", one_changeset),
    Line("latest 10 field changes", latest_changes),
    Line("field changes of ten seconds", changes_of_a_time),
    Line("bytes of a change", None),
]


# --- measuring ----------------------------------------------------------------------------------------------------


def _blocks(session: Session, work: Callable[[], Any]) -> float:
    engine = session.get_bind()
    assert isinstance(engine, sa.Engine)
    with explained(engine) as statements:
        work()
    return sum(statement.blocks for statement in statements)


def _rows(session: Session, work: Callable[[], Any]) -> float:
    first, before = rows_read(session), rows_read(session)
    work()
    return rows_read(session) - before - (before - first)  # to ask reads rows, too


def _steps(session: Session, work: Callable[[], Any]) -> float:
    with steps_counted(session) as steps:
        work()
    return steps[0]


METERS = {"postgresql": ("blocks", _blocks), "mariadb": ("rows", _rows), "sqlite": ("steps", _steps)}


def cost(sessions: sessionmaker[Session], dialect: str, work: Work | None, size: Size) -> float:
    """Return the median cost of a work that is rolled back, or the bytes of a change."""
    if work is None:
        return bytes_of_change(sessions, OCCUPIED[dialect], size)
    _, meter = METERS[dialect]
    costs = []
    for place in range(REPETITIONS + 1):
        with sessions() as session:
            costs.append(meter(session, partial(work, session, size, place)))
    return statistics.median(costs[1:])  # the first one fills the caches


def bytes_of_change(sessions: sessionmaker[Session], occupied: sa.Executable, size: Size) -> float:
    """Return by how much the database grows for each change of a row."""
    keys = size.keys(0, CHANGED_ROWS)
    with sessions() as session:
        before = session.execute(occupied).scalar_one()
    for number in range(ROUNDS_OF_CHANGES):
        with sessions() as session:
            for item in session.scalars(sa.select(Item).where(Item.id.in_(keys))):
                item.name = f"name {number:06}"
            session.commit()
    with sessions() as session:
        return (session.execute(occupied).scalar_one() - before) / (CHANGED_ROWS * ROUNDS_OF_CHANGES)


OCCUPIED: dict[str, sa.Executable] = {
    "postgresql": sa.select(sa.func.pg_total_relation_size(history_of(Item).__table__.name)),
    "sqlite": sa.text(
        "SELECT (page_count - freelist_count) * page_size "
        "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    ),
}
"""How many bytes the history occupies; on SQLite, the whole database. MariaDB tells only how many it has reserved."""


@contextmanager
def filled(engine: sa.Engine, size: Size) -> Iterator[sessionmaker[Session]]:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    register_hooks(sessions)
    try:
        for model in (Item, IndexedItem):
            load(engine, model, (size.rows, size.versions))
        yield sessions
    finally:
        unregister_hooks(sessions)
        Base.metadata.drop_all(engine)


@dataclass(frozen=True)
class Way:
    """A way in which a history grows.

    :ivar numbers: what its name counts, for each size
    """

    name: str
    numbers: list[int]
    sizes: list[Size]


def ways_to_grow(versions: int, rows: int) -> list[Way]:
    of_rows, numbers = list(_tens(1, versions)), list(_tens(FEWEST_ROWS, rows))
    ways = [
        Way(f"{ROWS:,} rows, more versions of each", of_rows, [Size(ROWS, number) for number in of_rows]),
        Way(f"more rows, {VERSIONS} versions of each", numbers, [Size(number, VERSIONS) for number in numbers]),
    ]
    return [way for way in ways if way.sizes]


def _tens(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 10


def measure_growth(
    url: sa.URL, only: str, versions: int, rows: int, pictures: Path | None
) -> dict[str, dict[str, dict[str, str]]]:
    """Print how the cost of each line grows with the history, draw it, and return the ratios.

    :param versions: the most versions of a row
    :param rows: the most rows
    :param pictures: a directory
    :returns: per way to grow, size and line
    """
    engine = sa.create_engine(url)
    dialect = engine.dialect.name
    meter, _ = METERS[dialect]
    lines = [line for line in LINES if only in line.name and (line.work or dialect in OCCUPIED)]
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {line.name: {} for line in lines}
    print(f"\n{dialect} ({engine.driver}), SQLAlchemy {sa.__version__}: {meter}, ratio to the shortest history")
    figures: dict[str, dict[str, dict[str, str]]] = {}
    for way in ways_to_grow(versions, rows):
        of_size: list[dict[str, str]] = [{} for _ in way.sizes]
        figures[way.name] = {f"{number:,}": column for number, column in zip(way.numbers, of_size, strict=True)}
        costs: dict[str, list[float]] = {line.name: [] for line in lines}
        for size in way.sizes:
            with filled(engine, size) as sessions:
                for line in lines:
                    costs[line.name].append(cost(sessions, dialect, line.work, size))
        width = max(8, len(f"{way.numbers[-1]:,}"))
        print(f"  {way.name:<33} {' '.join(f'{number:{width},}' for number in way.numbers)}")
        for line in lines:
            ratios = [each / costs[line.name][0] for each in costs[line.name]]
            mark = "  grows" if len(ratios) > 1 and ratios[-1] > GROWTH * ratios[-2] else ""
            print(f"  {line.name:<33} {' '.join(f'{ratio:{width}.2f}' for ratio in ratios)}{mark}", flush=True)
            for column, ratio in zip(of_size, ratios, strict=True):
                column[line.name] = f"{ratio:.2f}"
            curves[line.name][way.name] = [(size.total, ratio) for size, ratio in zip(way.sizes, ratios, strict=True)]
    engine.dispose()
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for line in lines:
            file = pictures / f"{dialect}-{re.sub('[^a-z0-9]+', '-', line.name.lower())}.svg"
            file.write_text(growth_picture(line.name, meter if line.work else "bytes", curves[line.name]))
    return figures
