"""Roles with the rights that sqlaudit grants can do what they are for, and nothing else."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column

from databases import Database
from registering import recording
from sqlaudit import QueryError, TrackingError, as_of, get_resource_changes, track_table
from sqlaudit.maintenance import history_grants, maintenance_tables
from sqlaudit.maintenance.door import writable_history
from sqlaudit.period import OPEN_END
from sqlaudit.sql.options import INTERNAL
from sqlaudit.tracking.tables import tracked_table

pytestmark = [pytest.mark.new_tables, pytest.mark.requires("concurrent_writes")]  # where there are roles


class Base(orm.DeclarativeBase):
    pass


LINKS = sa.Table(
    "paper_topics",
    Base.metadata,
    sa.Column("paper_id", sa.ForeignKey("papers.id"), primary_key=True),
    sa.Column("topic_id", sa.ForeignKey("topics.id"), primary_key=True),
)


@track_table(append_only=True)
class Paper(Base):
    __tablename__ = "papers"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(sa.String(50))
    topics: Mapped[list["Topic"]] = orm.relationship(secondary=LINKS)


class Report(Paper):
    __tablename__ = "reports"

    id: Mapped[int] = mapped_column(sa.ForeignKey("papers.id"), primary_key=True)
    pages: Mapped[int] = mapped_column(default=1)


@track_table()
class Topic(Base):
    __tablename__ = "topics"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


maintenance_tables(Base.metadata)
PAPERS = tracked_table(Paper.__table__)
HISTORY = PAPERS.history


@dataclass
class Roles:
    app: sa.Engine
    reader: sa.Engine
    maintainer: sa.Engine


@pytest.fixture
def roles(database: Database, engine: sa.Engine) -> Iterator[Roles]:
    """Engines of three roles with the rights that sqlaudit grants, and those on live tables that each needs."""
    names = [f"sqlaudit_{role}_{uuid.uuid4().hex[:8]}" for role in ("app", "reader", "maintainer")]
    app, reader, maintainer = names
    is_postgresql = engine.dialect.name == "postgresql"
    live = [table.name for table in (Paper.__table__, Report.__table__, Topic.__table__, LINKS)]
    create = "CREATE ROLE {} LOGIN" if is_postgresql else "CREATE USER '{}'@'localhost'"
    with engine.begin() as connection:
        for name in names:
            connection.exec_driver_sql(create.format(name))
            if is_postgresql:
                connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA public TO {name}")
                connection.exec_driver_sql(f"GRANT ALL ON papers_history TO {name}")  # which is revoked
        at = "" if is_postgresql else "@localhost"
        for statement in history_grants(
            Base.metadata, engine.dialect.name, app=app + at, reader=reader + at, maintainer=maintainer + at
        ):
            connection.execute(statement)
        for table in live:
            connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {app}{at}")
            connection.exec_driver_sql(f"GRANT SELECT ON {table} TO {maintainer}{at}")
    with ExitStack() as stack:
        engines = [sa.create_engine(database.url.set(username=name), poolclass=sa.NullPool) for name in names]
        for each in engines:
            stack.callback(each.dispose)
        yield Roles(*engines)
    with engine.begin() as connection:
        for name in names:
            if is_postgresql:
                connection.exec_driver_sql(f"DROP OWNED BY {name}")
            connection.exec_driver_sql(f"DROP ROLE {name}" if is_postgresql else f"DROP USER '{name}'@'localhost'")


def live_of_papers(engine: sa.Engine) -> None:
    """Let a role write what an application writes."""
    with recording(engine) as sessions:
        with sessions.begin() as session:
            session.add(Report(id=1, title="first", topics=[Topic(id=1)]))
            session.add_all(Paper(id=number, title="other") for number in range(2, 5))
        with sessions.begin() as session:
            report = session.get(Report, 1)
            report.title = "second"
            session.flush()
            report.pages = 2
            report.topics.clear()
        with sessions.begin() as session:
            session.execute(sa.update(Paper).where(Paper.id > 1).values(title="in bulk"))
            session.execute(sa.delete(Paper).where(Paper.id > 2))
            session.delete(session.get(Report, 1))


def test_the_role_of_an_application_records(roles, engine):
    live_of_papers(roles.app)
    with recording(engine) as sessions, sessions() as session:
        titles = [change.new_value for change in get_resource_changes(Paper, session, 1, filter_fields=["title"])]
        assert titles == ["first", "second", None]
        assert session.scalars(sa.select(Paper.title)).all() == ["in bulk"]
        assert session.scalar(sa.select(sa.func.count()).select_from(tracked_table(LINKS).history)) == 2


FORBIDDEN: dict[str, Callable[[sa.Connection], Any]] = {
    "a value": lambda connection: connection.execute(sa.update(HISTORY).values(title="forged")),
    "a deletion": lambda connection: connection.execute(sa.delete(HISTORY)),
    "a truncation": lambda connection: connection.exec_driver_sql("TRUNCATE TABLE papers_history"),
    "an earlier end": lambda connection: connection.execute(
        sa.update(HISTORY).where(HISTORY.c.valid_to != OPEN_END).values(valid_to=HISTORY.c.valid_from)
    ),
    "a version that opens again": lambda connection: connection.execute(
        sa.update(HISTORY).where(HISTORY.c.valid_to != OPEN_END).values(valid_to=OPEN_END)
    ),
}


@pytest.mark.parametrize("through_the_door", [False, True])
@pytest.mark.parametrize("forbidden", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_role_of_an_application_rewrites_nothing(roles, engine, forbidden, through_the_door):
    live_of_papers(roles.app)
    statement = sa.select(HISTORY).order_by(HISTORY.c.id, HISTORY.c.audit_version)
    with engine.connect() as connection:
        before = connection.execute(statement).all()
    with (
        roles.app.connect() as connection,
        pytest.raises(sa.exc.DBAPIError),
        writable_history(connection, [PAPERS] if through_the_door else []),
    ):
        forbidden(connection)
    with engine.connect() as connection:
        assert connection.execute(statement).all() == before


def test_a_reader_reads_and_writes_nothing(roles):
    live_of_papers(roles.app)
    with Session(roles.reader) as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(HISTORY))
        for statement in (sa.delete(HISTORY), sa.insert(HISTORY).from_select(HISTORY.c, sa.select(HISTORY))):
            with pytest.raises(sa.exc.DBAPIError, match="denied"), session.begin_nested():
                session.connection().execute(statement)
    with recording(roles.reader) as sessions, sessions() as session:
        assert session.scalars(as_of(Topic, datetime.now(UTC))).all() != []


def test_a_maintainer_rewrites_history_through_the_door_alone(roles):
    live_of_papers(roles.app)
    delete = sa.delete(HISTORY).where(HISTORY.c.id == 1).execution_options(**INTERNAL)
    with roles.maintainer.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
        connection.execute(delete)
    with roles.maintainer.begin() as connection, writable_history(connection, [PAPERS]):
        assert connection.execute(delete).rowcount > 0
    with roles.maintainer.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
        connection.execute(sa.delete(HISTORY))


def rendered(*models: Any, dialect: sa.Dialect, **roles: str) -> list[str]:
    return [str(each.compile(dialect=dialect)) for each in history_grants(models, dialect.name, **roles)]


def test_a_history_that_is_not_append_only_is_granted_whole(engine):
    statements = rendered(Topic, dialect=engine.dialect, app="the app")
    quoted = '"the app"' if engine.dialect.name == "postgresql" else "'the app'"
    assert f"GRANT SELECT, INSERT, UPDATE, DELETE ON topics_history TO {quoted}" in statements


def test_a_model_stands_for_its_hierarchy_and_its_links(engine):
    statements = rendered(Report, dialect=engine.dialect, reader="auditor")
    granted = {statement.split(" ON ")[1].split()[0] for statement in statements if statement.startswith("GRANT")}
    assert granted >= {"papers_history", "reports_history", "paper_topics_history", "sqlaudit_horizons"}


def test_what_has_no_rights_or_no_history_is_refused():
    with pytest.raises(QueryError, match="no rights to grant on 'sqlite'"):
        history_grants([Paper], "sqlite", app="app")
    with pytest.raises(TrackingError):
        history_grants([Database], "postgresql", app="app")
