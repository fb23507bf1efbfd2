"""A session that has read already erases and spares what other transactions have committed since."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column

from registering import recording
from sqlaudit import ERASED, QueryError, history_of, track_table, versions_of
from sqlaudit.maintenance import erase, hold, maintenance_tables, prune


class Base(orm.DeclarativeBase):
    pass


@track_table()
class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(20))


@track_table(subject="patient_id", personal=["text"])
class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(sa.ForeignKey(Patient.id))
    text: Mapped[str | None] = mapped_column(sa.String(20))


maintenance_tables(Base.metadata)


@pytest.fixture
def maker(tables, engine) -> Iterator[orm.sessionmaker[Session]]:
    with recording(engine) as maker:
        with maker() as session:
            session.add(Patient(id=1, name="Ada"))
            session.flush()
            session.add(Note(id=1, patient_id=1, text="Ada"))
            session.commit()
            session.get_one(Patient, 1).name = session.get_one(Note, 1).text = "Ada 2"
            session.commit()
        yield maker


def begin(session: Session) -> None:
    """Let a transaction read, so that it has a snapshot if its isolation level gives it one."""
    session.execute(sa.select(sa.func.count()).select_from(Patient)).scalar_one()


@pytest.mark.requires("concurrent_writes")
def test_versions_that_were_committed_since_are_erased(maker):
    with maker() as session:
        begin(session)
        with maker() as other:
            for text in ("Ada 3", "Ada 4"):
                other.get_one(Patient, 1).name = other.get_one(Note, 1).text = text
                other.commit()
        record = erase(session, Patient, 1, fields=["name"], reason="request")
        session.commit()
        assert (record.versions, [each.versions for each in record.followers]) == (4, [4])
        assert {each.name for each in versions_of(session, Patient, 1)} == {ERASED}
        assert {each.text for each in versions_of(session, Note, 1)} == {ERASED}
        assert {*session.scalars(sa.select(Patient.name)), *session.scalars(sa.select(Note.text))} == {None}


CALLS: dict[str, Any] = {
    "erase": lambda session: erase(session, Patient, 1, fields=["name"], reason="request"),
    "erase what follows": lambda session: erase(session, Patient, 1, fields=["name"], reason="request"),
    "prune": lambda session: prune(session, Patient, Note, keep_last=1),
}


@pytest.mark.requires("concurrent_writes")
@pytest.mark.parametrize("call", CALLS)
def test_a_hold_that_was_committed_since_is_respected(maker, call):
    held = Note if call == "erase what follows" else Patient
    with maker() as session:
        begin(session)
        with maker() as other:
            hold(other, held, 1, reason="lawsuit")
            other.commit()
        refusal = pytest.raises(QueryError, match="has a legal hold") if call != "prune" else contextlib.nullcontext()
        with refusal:
            CALLS[call](session)
        session.commit()
        text = history_of(held).name if held is Patient else history_of(held).text
        assert sorted(session.scalars(sa.select(text))) == ["Ada", "Ada 2"]


@pytest.mark.requires("replacing_inserts")  # SQLite
def test_nobody_writes_while_an_erasure_looks_where_no_row_can_be_locked(maker, engine, database):
    impatient = database.create_engine(connect_args={"timeout": 0})
    refusals = []

    def write(connection: sa.Connection, cursor: Any, statement: str, *args: Any) -> None:
        if statement.startswith("SELECT") and "FROM patients_history" in statement:
            with impatient.connect() as other, pytest.raises(sa.exc.OperationalError, match="locked") as error:
                other.exec_driver_sql("INSERT INTO patients VALUES (2, 'Bob')")
            refusals.append(error)

    sa.event.listen(engine, "before_cursor_execute", write)
    with maker() as session:
        assert erase(session, Patient, 1, fields=["name"], reason="request").versions == 2
        session.commit()
    assert refusals
