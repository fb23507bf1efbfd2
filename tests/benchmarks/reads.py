"""What does the past cost to read? Ratios to the read of the present in the same run.

Of each table there are two, of which one has ``as_of_index``. The rows change in groups, in order of time, so that
at any instant the versions that are true lie among all the others.
"""

import gc
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from tests.benchmarks.columns import NOON, Columns

from sqlaudit import OPEN_END, Operation, history_of, time_travel, track_table

ROWS, VERSIONS = 10_000, 100
OLD, VERSIONS_OF_OLD = 1, 10_000
"""A row with a long history of its own."""
PEOPLE, ORDERS_OF_EACH, LINES_OF_EACH, CHANGES = 1_000, 10, 3, 10
GROUPS = 10
GETS = 100
INSTANTS = {"oldest": 0.0, "middle": 0.5, "90 %": 0.9, "now": 2.0}


class Base(DeclarativeBase):
    pass


class Row:
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    amount: Mapped[int]
    note: Mapped[str | None] = mapped_column(sa.String(50))


def models(prefix: str, indexed: bool) -> dict[str, Any]:
    """Make a table to read alone and three to join."""
    made: dict[str, Any] = {}
    bases: dict[str, Any] = {"item": (Columns, Base), "long": (Columns, Base)}
    parents = {"person": None, "order": "person", "line": "order"}
    for name in (*bases, *parents):
        attributes: dict[str, Any] = {"__tablename__": f"benchmark_{prefix}_{name}"}
        if parents.get(name):
            target = f"benchmark_{prefix}_{parents[name]}.id"
            attributes["parent_id"] = mapped_column(sa.ForeignKey(target), index=True)
        model = type(f"{prefix}{name}", bases.get(name, (Row, Base)), attributes)
        made[name] = track_table(as_of_index=indexed)(model)
    return made


SETS = {"": models("plain", False), ", as_of_index": models("indexed", True)}


# --- filling ----------------------------------------------------------------------------------------------------


def digits(count: int) -> Any:
    """Return the select of the numbers from 1 to a power of ten."""
    places = len(str(count)) - 1
    tens = [sa.union_all(*(sa.select(sa.literal_column(str(n)).label("n")) for n in range(10))).subquery()]
    tens += [tens[0].alias() for _ in range(places - 1)]
    number = sum(
        (each.c.n * sa.literal_column(str(10**place)) for place, each in enumerate(tens)), sa.literal_column("1")
    )
    source = tens[0]
    for each in tens[1:]:
        source = source.join(each, each.c.n >= tens[0].c.n - sa.literal_column("9"))  # all of them
    return sa.select(number.label("n")).select_from(source).subquery()


def fill_live(connection: sa.Connection, model: type[Any], count: int, values: dict[str, Any]) -> None:
    number = digits(10 ** len(str(count - 1))).c.n
    columns = {"id": number} | {key: sa.literal(value) for key, value in values.items()}
    if "parent_id" in model.__table__.c:
        fan = LINES_OF_EACH if count > PEOPLE * ORDERS_OF_EACH else ORDERS_OF_EACH
        columns["parent_id"] = (number - sa.literal_column("1")) // sa.literal_column(str(fan)) + sa.literal_column("1")
    source = sa.select(*columns.values()).where(number <= count).order_by(number)
    connection.execute(sa.insert(model).from_select(list(columns), source))


def fill_history(connection: sa.Connection, model: type[Any], count: int, versions: int) -> None:
    """Give every row its versions, a group of rows each second."""
    live, history, size = model.__table__, history_of(model).__table__, max(1, count // GROUPS)
    groups = range(0, count, size)
    for number in range(1, versions + 1):
        for group, first in enumerate(groups):
            begin = NOON + timedelta(seconds=(number - 1) * len(groups) + group)
            end = begin + timedelta(seconds=len(groups)) if number < versions else OPEN_END
            values: dict[str, Any] = {column.key: column for column in live.c} | {
                name: sa.literal(value, history.c[name].type)
                for name, value in {
                    "audit_version": number,
                    "valid_from": begin,
                    "valid_to": end,
                    "audit_operation": Operation.UPDATE,
                    "audit_changeset_id": UUID(int=number),
                }.items()
            }
            rows = sa.select(*values.values()).where(live.c.id > first, live.c.id <= first + size)
            connection.execute(sa.insert(history).from_select(list(values), rows))


WIDE = {
    "name": "name",
    "email": "ada@example.com",
    "city": "Geneva",
    "age": 40,
    "rank": 2,
    "score": 1.5,
    "active": True,
    "joined": NOON,
    "phone": "022",
    "note": "note " * 5,
    "visits": 3,
}


def fill(engine: sa.Engine, names: tuple[str, ...], chosen: dict[str, Any]) -> None:
    people, orders = PEOPLE, PEOPLE * ORDERS_OF_EACH
    sizes = {
        "item": (ROWS, VERSIONS, WIDE),
        "long": (OLD, VERSIONS_OF_OLD, WIDE),
        "person": (people, CHANGES, {"amount": 1, "note": "note"}),
        "order": (orders, CHANGES, {"amount": 1, "note": "note"}),
        "line": (orders * LINES_OF_EACH, CHANGES, {"amount": 1, "note": "note"}),
    }
    for name in names:
        count, versions, values = sizes[name]
        with engine.begin() as connection:
            fill_live(connection, chosen[name], count, values)
            fill_history(connection, chosen[name], count, versions)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.DDL("VACUUM ANALYZE"))
        elif engine.dialect.name != "sqlite":
            for name in names:
                for table in (chosen[name].__table__, history_of(chosen[name]).__table__):
                    connection.execute(sa.DDL("ANALYZE TABLE %(fullname)s").against(table)).close()


# --- what is read -----------------------------------------------------------------------------------------------


Read = Callable[[Session, dict[str, Any]], Any]


def get(name: str) -> Read:
    def read(session: Session, chosen: dict[str, Any]) -> Any:
        for _ in range(GETS):
            session.expunge_all()
            assert session.get(chosen[name], 1) is not None

    return read


def whole(session: Session, chosen: dict[str, Any]) -> Any:
    assert len(session.scalars(sa.select(chosen["item"])).all()) == ROWS


def joined(person: int | None) -> Read:
    def read(session: Session, chosen: dict[str, Any]) -> Any:
        people, orders, lines = chosen["person"], chosen["order"], chosen["line"]
        statement = (
            sa.select(sa.func.count(), sa.func.sum(people.amount + orders.amount + lines.amount))
            .select_from(people)
            .join(orders, orders.parent_id == people.id)
            .join(lines, lines.parent_id == orders.id)
        )
        each = ORDERS_OF_EACH * LINES_OF_EACH
        if person is None:
            assert session.execute(statement).one()[0] == PEOPLE * each
        else:
            for _ in range(GETS // 10):
                assert session.execute(statement.where(people.id == person)).one()[0] == each

    return read


READS: list[tuple[str, tuple[str, ...], int, Read]] = [
    ("as of: one row of 100 versions", ("item",), VERSIONS, get("item")),
    ("as of: one row of 10,000 versions", ("long",), VERSIONS_OF_OLD, get("long")),
    ("as of: whole table, 10,000 rows of 100 versions", ("item",), VERSIONS, whole),
    ("as of: join of three tables, whole", ("person", "order", "line"), CHANGES, joined(None)),
    ("as of: join of three tables, one customer", ("person", "order", "line"), CHANGES, joined(5)),
]


def instants(versions: int, groups: int) -> Iterator[datetime]:
    """Give the oldest instant at which all rows are there, the middle, 90 %, and one after everything."""
    last = (versions - 1) * groups
    for share in INSTANTS.values():
        yield NOON + timedelta(seconds=groups + share * (last - groups), microseconds=1)


def timed(read: Read, session: Session, chosen: dict[str, Any], clock: Callable[[], float]) -> float:
    session.expunge_all()
    gc.collect()
    begin = clock()
    read(session, chosen)
    return clock() - begin


def measure_reads(
    engine: sa.Engine, repetitions: int, only: str, clock: Callable[[], float]
) -> Iterator[tuple[str, list[float]]]:
    """Print the ratios of reads as of four instants, and yield them."""
    wanted = [read for read in READS if only in read[0]]
    if not wanted:
        return
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    names = tuple(dict.fromkeys(name for _, tables, _, _ in wanted for name in tables))
    print(f"  {'':<56} {'  '.join(f'{name:>6}' for name in INSTANTS)}", flush=True)
    try:
        for chosen in SETS.values():
            fill(engine, names, chosen)
        for title, tables, versions, read in wanted:
            for index, chosen in SETS.items():
                if index and read.__qualname__.startswith("get."):
                    continue  # which needs none
                ratios = list(
                    measure_read(
                        engine, chosen, read, versions, 1 if tables == ("long",) else GROUPS, repetitions, clock
                    )
                )
                print(f"  {title + index:<56} {'  '.join(f'{ratio:6.2f}' for ratio in ratios)}", flush=True)
                yield title + index, ratios
            if (
                read.__qualname__.startswith("joined.") and "whole" in title
            ):  # once copied, in the round that is left out
                title, chosen = f"{title}, materialize", SETS[""]
                ratios = list(measure_read(engine, chosen, read, versions, GROUPS, repetitions, clock, True))
                print(f"  {title:<56} {'  '.join(f'{ratio:6.2f}' for ratio in ratios)}", flush=True)
                yield title, ratios
    finally:
        Base.metadata.drop_all(engine)


def measure_read(
    engine: sa.Engine,
    chosen: dict[str, Any],
    read: Read,
    versions: int,
    groups: int,
    repetitions: int,
    clock: Callable[[], float],
    materialize: bool = False,
) -> Iterator[float]:
    for when in instants(versions, groups):
        with Session(engine) as present, time_travel(engine, when, materialize=materialize) as past:
            times: dict[str, list[float]] = {"past": [], "present": []}
            for repetition in range(repetitions + 1):
                for side in ("past", "present") if repetition % 2 else ("present", "past"):
                    times[side].append(timed(read, past if side == "past" else present, chosen, clock))
        yield min(times["past"][1:]) / min(times["present"][1:])
