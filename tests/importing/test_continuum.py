"""What SQLAlchemy-Continuum and sqlalchemy-history have recorded becomes history, and tells what they tell."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column, relationship

import sqlaudit
from invariants import check_history, told
from registering import recording
from sqlaudit import ImportReport, as_of, get_resource_changes, import_continuum, versions_of

pytestmark = [pytest.mark.no_tables, pytest.mark.slow]

PEERS = ["sqlalchemy_continuum", "sqlalchemy_history"]
OPERATIONS = {0: "insert", 1: "update", 2: "delete"}


class Base(DeclarativeBase):
    pass


links = sa.Table(
    "post_tags",
    Base.metadata,
    sa.Column("post_id", sa.ForeignKey("posts.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("tags.id"), primary_key=True),
)


@sqlaudit.track_table()
class Post(Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column("title", sa.String(20))
    kind: Mapped[str] = mapped_column(sa.String(10))
    tags: Mapped[list["Tag"]] = relationship(secondary=links)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "post"}


class Article(Post):
    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(sa.ForeignKey(Post.id), primary_key=True)
    words: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "article"}


@sqlaudit.track_table()
class Tag(Base):
    __tablename__ = "tags"

    id: Mapped[int] = mapped_column(primary_key=True)


SOURCES = (Post, Tag, links)
transactions = sa.table("transaction", sa.column("id"), sa.column("issued_at", sa.DateTime))


class Left(NamedTuple):
    """What a peer leaves in a database, and what it tells of that."""

    tables: sa.MetaData
    rows: dict[str, list[dict[str, Any]]]
    told: dict[str, Any]


LEFT: dict[tuple[str, str], Left] = {}
"""By the names of the peer and of the database; a run of a peer takes seconds."""


def run(peer: str, engine: sa.Engine) -> Left:
    program, url = Path(__file__).parents[1] / "peer_history.py", engine.url.render_as_string(hide_password=False)
    ran = subprocess.run([sys.executable, program, peer, url], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        rows = {
            table.name: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
            for table in tables.sorted_tables
        }
    return Left(tables, rows, json.loads(ran.stdout))


@pytest.fixture(params=PEERS)
def reported(request: pytest.FixtureRequest, engine: sa.Engine) -> dict[str, Any]:
    """What a peer tells of what it has recorded; its tables are in the database."""
    key = (request.param, engine.dialect.name)
    if key in LEFT:
        left = LEFT[key]
        left.tables.create_all(engine)
        with engine.begin() as connection:
            for table in left.tables.sorted_tables:
                if left.rows[table.name]:
                    connection.execute(table.insert(), left.rows[table.name])
    else:
        LEFT[key] = left = run(request.param, engine)
    configure_mappers()
    Base.metadata.create_all(engine)
    return left.told


def imported(session: Session) -> dict[Any, ImportReport]:
    reports = {source: import_continuum(session, source) for source in SOURCES}
    session.commit()
    return reports


def test_their_versions_become_ours(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with Session(engine) as session:
        reports = imported(session)
        for source in SOURCES:
            check_history(session, source)
        assert reports[Post] == ImportReport(rows=4, versions=10, left_alone=0, baselines=1, recorded=2)
        assert (reports[links].rows, reports[links].versions) == (2, 3)
        theirs: dict[int, list[dict[str, Any]]] = {}
        for each in reported["Post"]:
            theirs.setdefault(each["id"], []).append(each)
        for id, versions in theirs.items():
            ours = versions_of(session, Post, id)[: len(versions)]
            assert [str(version.audit_operation) for version in ours] == [OPERATIONS[v["operation"]] for v in versions]
            users = [None if v["user_id"] is None else str(v["user_id"]) for v in versions]
            assert [version.audit_changed_by for version in ours] == users
            assert {version.audit_extra["remote_addr"] for version in ours} == {"10.0.0.1"}
            for version, their in zip(ours, versions, strict=True):
                at = datetime.fromisoformat(their["at"]).replace(tzinfo=UTC)
                assert timedelta(0) <= version.valid_from - at < timedelta(milliseconds=1)  # if they have only seconds


def test_their_changes_become_ours(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with Session(engine) as session:
        imported(session)
        ours: list[tuple[int, str, Any, Any]] = []
        for model in (Post, Article):
            for change in get_resource_changes(model, session, filter_user_ids=["7"]):
                ours.append((change.resource_id, change.field_name, change.old_value, change.new_value))
        for each in reported["Post"]:
            if each["operation"] == 1 and each["user_id"] == 7:
                for field, (old, new) in each["changes"].items():
                    assert (each["id"], field, old, new) in ours
        assert (2, "name", "b", "b2") in ours


def test_what_they_missed_is_recorded_as_of_now(engine: sa.Engine, reported: dict[str, Any]) -> None:
    began = datetime.now(UTC)
    with Session(engine) as session:
        with sqlaudit.AuditContextManager(reason="import"):
            imported(session)
        last = versions_of(session, Post, 1)[-1]
        assert (last.name, last.audit_reason, last.valid_from >= began) == ("unseen", "import", True)
        assert [version.audit_operation for version in versions_of(session, Post, 4)] == ["insert", "delete"]
        assert [version.audit_operation for version in versions_of(session, Post, 5)] == ["baseline"]


def test_the_past_can_be_read(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with recording(engine) as maker, maker() as session:
        imported(session)
        then = versions_of(session, Post, 1)[0].valid_from
        past = {post.id: post for post in session.scalars(as_of(Post, then))}
        assert {id: post.name for id, post in past.items()} == {1: "a", 2: "b", 3: "c", 4: "stays"}
        assert past[2].words == 5
        assert {tag.id for tag in past[1].tags} == {1, 2}
        session.get_one(Post, 1).name = "later"
        session.commit()
        check_history(session, Post)


@pytest.mark.spread
def test_what_a_plugin_of_theirs_wrote_is_in_extra(engine: sa.Engine, reported: dict[str, Any]) -> None:
    meta = sa.Table(
        "transaction_meta",
        sa.MetaData(),
        sa.Column("transaction_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(50), primary_key=True),
        sa.Column("value", sa.Text),
    )
    with Session(engine) as session:
        meta.create(session.connection())
        session.execute(meta.insert().values(transaction_id=2, key="ticket", value="T-7"))
        imported(session)
        first, second, _ = versions_of(session, Post, 1)
        assert second.audit_extra == {"remote_addr": "10.0.0.1", "ticket": "T-7"}
        assert first.audit_extra == {"remote_addr": "10.0.0.1"}


@pytest.mark.spread
def test_one_transaction_of_theirs_is_one_changeset(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with Session(engine) as session:
        imported(session)
        first = versions_of(session, Post, 1)[0].audit_changeset_id
        assert first.version == 7
        assert versions_of(session, Post, 2)[0].audit_changeset_id == first
        assert versions_of(session, Tag, 1)[0].audit_changeset_id == first
        (changeset,) = [each for each in sqlaudit.changesets(session) if each.changeset_id == first]
        assert changeset.changed_by == "7"


@pytest.mark.spread
def test_it_is_done_once(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with Session(engine) as session:
        imported(session)
        before = told(session, Post, "id")
        again = imported(session)
        assert again[Post] == ImportReport(rows=0, versions=0, left_alone=4, baselines=0, recorded=0)
        assert told(session, Post, "id") == before


@pytest.mark.spread
def test_a_connection_does_too_and_a_rollback_undoes_it(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with engine.connect() as connection:
        assert import_continuum(connection, Post).rows == 4
        connection.rollback()
        assert not connection.scalar(sa.select(sa.func.count()).select_from(Post.History))
        connection.rollback()
        assert import_continuum(connection, Post).rows == 4
        connection.commit()
    with Session(engine) as session:
        check_history(session, Post)


@pytest.mark.spread
def test_the_migration_that_the_documentation_shows_imports(engine: sa.Engine, reported: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "peers.md").read_text(encoding="utf-8")
    block = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
    with engine.begin() as connection:
        names = {"import_continuum": import_continuum, "Post": Post, "Tag": Tag, "post_tags": links}
        names["op"] = SimpleNamespace(get_bind=lambda: connection)
        exec(block, names)
        names["upgrade"]()
    with Session(engine) as session:
        for source in SOURCES:
            check_history(session, source)


@pytest.mark.spread
def test_a_clock_that_went_back_moves_versions(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with engine.begin() as connection:
        later = sa.update(transactions).where(transactions.c.id > 3)
        connection.execute(later.values(issued_at=datetime(2020, 1, 1)))  # noqa: DTZ001  # theirs are naive
    with Session(engine) as session:
        imported(session)
        for source in SOURCES:
            check_history(session, source)
        times = [version.valid_from for version in versions_of(session, Post, 2)]
        assert times == sorted(set(times))
        assert {version.audit_operation for version in versions_of(session, Post, 2)} == {"insert", "update", "delete"}


@pytest.mark.spread
def test_what_is_not_there_is_named(engine: sa.Engine, reported: dict[str, Any]) -> None:
    with Session(engine) as session:
        for given, words in [
            ({"table_name": "nowhere"}, "The table 'nowhere'"),
            ({"table_name": "%s"}, "'posts' .* no column operation_type, transaction_id"),
            ({"transaction_table": "nowhere"}, "The table 'nowhere'"),
            ({"transaction_table": "tags"}, "'tags' has no column issued_at"),
        ]:
            with pytest.raises(sqlaudit.QueryError, match=words):
                import_continuum(session, Post, **given)
        session.execute(sa.update(transactions).where(transactions.c.id == 2).values(issued_at=None))
        with pytest.raises(sqlaudit.QueryError, match="versions of transaction 2"):
            import_continuum(session, Post)
        assert told(session, Post) == []
