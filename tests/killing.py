"""Does history show what a process wrote before it was killed at random?

``test_killed`` runs this as a program, because it forks: ``python killing.py URL SEED KILLS``.
"""

import os
import random
import signal
import sys
import time
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqlaudit
from sqlaudit.tracking.tables import tracked_table


class Base(DeclarativeBase):
    pass


@sqlaudit.track_table()
class Load(Base):
    __tablename__ = "loads"

    id: Mapped[int] = mapped_column(primary_key=True)
    moves: Mapped[int] = mapped_column(default=0)
    place: Mapped[str] = mapped_column(sa.String(50), default="")


IDS: Final = range(1, 31)
DURATION: Final = 0.06
"""Seconds after its first transaction within which a process is killed: the time of a few transactions."""


def work(session: Session, choice: random.Random) -> None:
    """Write several rows by objects, bulk statements and changes of keys."""
    some = choice.sample(IDS, 6)
    for load in session.scalars(sa.select(Load).where(Load.id.in_(some[:2]))):
        load.moves += 1
    session.flush()
    session.execute(sa.update(Load).where(Load.id.in_(some)).values(moves=Load.moves + 1, place=str(some)))
    session.execute(sa.delete(Load).where(Load.id.in_(some[2:4])))
    session.execute(sa.insert(Load), [{"id": id} for id in some[2:4]])
    session.execute(sa.update(Load).where(Load.id == some[4]).values(id=100))
    session.execute(sa.update(Load).where(Load.id == 100).values(id=some[4]))


def write_for_ever(engine: sa.Engine, seed: int, ready: int) -> None:
    choice = random.Random(seed)
    with Session(engine) as session:
        while True:
            work(session, choice)
            session.commit()
            os.write(ready, b".")


def disagreement(engine: sa.Engine) -> str:
    """Return how the live rows differ from their open versions; ``""`` if they don't."""
    table = tracked_table(Load.__table__)
    assert table is not None
    with engine.connect() as connection:
        connection.execution_options(isolation_level="SERIALIZABLE")  # the server may still be committing
        live = {tuple(row) for row in connection.execute(sa.select(Load.__table__))}
        versions = sa.select(*(old for _, old in table.columns)).where(table.valid_to == sqlaudit.OPEN_END)
        recorded = {tuple(row) for row in connection.execute(versions)}
    return "" if live == recorded and len(live) == len(IDS) else f"{live ^ recorded}"


def main(url: str, seed: str, kills: str) -> None:
    sqlaudit.register_hooks()
    choice = random.Random(int(seed))
    engine = sa.create_engine(url, poolclass=sa.NullPool)  # so that no connection is open when it forks
    with Session(engine) as session:
        session.execute(sa.insert(Load), [{"id": id} for id in IDS])
        work(session, choice)  # compile the statements once, before forking
        session.commit()
    for number in range(int(kills)):
        ready, started = os.pipe()
        child = os.fork()
        if child == 0:
            write_for_ever(engine, number, started)
        os.read(ready, 1)
        time.sleep(choice.random() * DURATION)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(started)
        if difference := disagreement(engine):
            sys.exit(f"after kill {number}: {difference}")


if __name__ == "__main__":
    arguments: Any = sys.argv[1:]
    main(*arguments)
