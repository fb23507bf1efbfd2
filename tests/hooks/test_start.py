"""What does start-up cost? Calls of Python functions, whose number grows with that of the models, and memory."""

import gc
import subprocess
import sys
from functools import cache
from typing import Any
from weakref import ref

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, mapped_column, sessionmaker

from sqlaudit import history_of, register_hooks, track_table, unregister_hooks

PROGRAM = """
import gc
import sys
import tracemalloc
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Session, configure_mappers, mapped_column, relationship
from sqlaudit import register_hooks, track_table

track = track_table if sys.argv[2] == "tracked" else lambda: lambda model: model
order = sys.argv[3]


def define(base, place, referred):
    columns = {f"c{number}": mapped_column(sa.Integer) for number in range(14)}
    columns["id"] = mapped_column(sa.Integer, primary_key=True)
    columns["of"] = mapped_column(sa.ForeignKey(f"t{referred}.id", ondelete="CASCADE") if referred >= 0 else sa.Integer)
    if referred >= 0:
        columns["owner"] = relationship(f"T{referred}")
    return type(f"T{place}", (base,), {"__tablename__": f"t{place}", "__module__": __name__, **columns})


def start(count):
    base = type("Base", (DeclarativeBase,), {})
    models = []
    for place in range(count):
        last = count - 1 if place < count - 1 else -1
        models.append(define(base, place, last if order == "owner last" else place - 1))
        if order != "decorated when configured":
            track()(models[-1])
        if order == "configured after each":
            configure_mappers()
    configure_mappers()
    if order == "decorated when configured":
        for model in models:
            track()(model)
    base.metadata.create_all(engine := sa.create_engine("sqlite://"))
    return models, engine


def write_once(models, engine):
    with Session(engine) as session:
        for model in models:
            session.add(model())
            session.commit()


def count_call(frame, event, argument):
    global calls
    calls += event == "call"


calls = 0
register_hooks()
write_once(*start(2))  # what happens once
if sys.argv[4] == "calls":
    sys.setprofile(count_call)
    start(int(sys.argv[1]))
    sys.setprofile(None)
    print(calls)
else:
    tracemalloc.start()
    write_once(*(kept := start(int(sys.argv[1]))))
    gc.collect()
    print(tracemalloc.get_traced_memory()[0])
"""
ORDERS = ["configured once", "configured after each", "decorated when configured", "owner last"]


@cache
def cost_to_start(count: int, order: str, *, tracked: bool = True, unit: str = "calls") -> int:
    """Return what a program costs that defines and configures models, and creates their tables.

    :param unit: the calls of Python functions, or ``memory``: the bytes in use after one row of each was written
    """
    arguments = [str(count), "tracked" if tracked else "plain", order, unit]
    told = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True)
    return int(told.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_twice_as_many_models_take_twice_as_many_calls_to_start(order):
    assert cost_to_start(60, order) < 2.05 * cost_to_start(30, order)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_tracked_models_take_less_than_1_65_times_the_calls_of_plain_ones_to_start(order):
    assert cost_to_start(30, order) < 1.65 * cost_to_start(30, order, tracked=False)


@pytest.mark.slow
def test_a_tracked_model_of_16_columns_takes_less_than_150_kilobytes_once_it_is_written():
    tracked, plain = (cost_to_start(30, ORDERS[0], tracked=tracked, unit="memory") for tracked in (True, False))
    assert tracked - plain < 30 * 150_000


def test_models_are_released_when_their_registry_is_disposed():
    # without a relationship: older releases of SQLAlchemy keep its columns (their issue 13566)
    base: Any = type("Base", (DeclarativeBase,), {})
    columns = {"id": mapped_column(sa.Integer, primary_key=True), "text": mapped_column(sa.Text)}
    owner = type("Owner", (base,), {"__tablename__": "owner", **columns})
    columns = {"id": mapped_column(sa.Integer, primary_key=True), "secret": mapped_column(sa.Text)}
    columns["owner_id"] = mapped_column(sa.ForeignKey("owner.id", ondelete="CASCADE"))
    thing = track_table(exclude=["secret"])(type("Thing", (base,), {"__tablename__": "thing", **columns}))
    engine = sa.create_engine("sqlite://")
    base.metadata.create_all(engine)
    register_hooks(sessions := sessionmaker(engine))
    with sessions() as session:
        session.add_all([owner(id=1), thing(owner_id=1)])
        session.commit()
        session.delete(session.scalars(sa.select(owner)).one())
        session.commit()
        session.scalars(sa.select(history_of(thing))).all()
    unregister_hooks(sessions)
    engine.dispose()
    released = [ref(part) for part in (owner, thing, history_of(thing), thing.__table__, base.metadata)]
    base.registry.dispose()
    del base, columns, owner, thing, engine, session, sessions
    gc.collect()
    assert not [part() for part in released if part() is not None]
