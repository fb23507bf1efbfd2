"""Migrations of a real project: revisions written by autogenerate, run, and taken back, with rows in the tables."""

import dataclasses
import enum
import hmac
import re
import textwrap
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime import plugins
from alembic.script import ScriptDirectory
from sqlalchemy import orm
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects.postgresql import ARRAY, Range

import sqlaudit_alembic.ops as ops
from databases import Database
from effort import EFFORT
from invariants import check_history, told
from sqlaudit import (
    ERASED,
    AuditColumns,
    AuditContextManager,
    HistoryTableError,
    PrunedError,
    QueryError,
    SQLAuditConfig,
    SQLAuditError,
    UndoConflictError,
    as_of,
    blame,
    changesets,
    clear_config,
    get_resource_changes,
    register_hooks,
    restore,
    set_config,
    track_table,
    undo,
    unregister_hooks,
    versions_of,
)
from sqlaudit.maintenance import check, erase, erasures, hold, holds, maintenance_tables, prune, replay_erasures
from sqlaudit.sql.widening import wide_enough
from stock import upsert

ENV = """
import sqlaudit_alembic
from alembic import context

sqlaudit_alembic.register()

attributes = context.config.attributes
options = dict(
    target_metadata=attributes["metadata"],
    autogenerate_plugins=["alembic.autogenerate.*", "sqlaudit"],
    compare_type=True,
    compare_server_default=True,
    **attributes.get("options", {}),
)
if context.is_offline_mode():
    context.configure(url=attributes["url"], literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with attributes["engine"].connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
"""
MAKO = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None

def upgrade():
    ${upgrades if upgrades else "pass"}

def downgrade():
    ${downgrades if downgrades else "pass"}
'''


class Project:
    """An application with migrations, whose models change from one release to the next."""

    def __init__(self, directory: Path, database: Database, engine: sa.Engine) -> None:
        self.engine, self.database = engine, database
        (directory / "versions").mkdir(parents=True)
        (directory / "env.py").write_text(ENV, encoding="utf-8")
        (directory / "script.py.mako").write_text(MAKO, encoding="utf-8")
        self.config = Config()
        self.config.set_main_option("script_location", str(directory))
        self.config.set_main_option("path_separator", "os")
        self.config.attributes.update(engine=engine, url=database.url, options={})
        self.output = ""

    def release(self, base: Any) -> None:
        self.config.attributes["metadata"] = base.metadata

    def autogenerate(self) -> str:
        script = command.revision(self.config, "change", autogenerate=True)
        return Path(script.path).read_text(encoding="utf-8")

    def write(self, upgrade: str, downgrade: str = "pass") -> None:
        script = command.revision(self.config, "by hand")
        path = Path(script.path)
        head, _, _ = path.read_text(encoding="utf-8").partition("def upgrade")
        body = textwrap.indent(textwrap.dedent(upgrade), "    "), textwrap.indent(textwrap.dedent(downgrade), "    ")
        path.write_text(
            f"{head}import sqlaudit_alembic\ndef upgrade():\n{body[0]}\n\ndef downgrade():\n{body[1]}\n",
            encoding="utf-8",
        )

    @property
    def head(self) -> str:
        return str(ScriptDirectory.from_config(self.config).get_current_head())

    def upgrade(self) -> None:
        command.upgrade(self.config, "head")

    def downgrade(self) -> None:
        command.downgrade(self.config, "-1")

    def migrate(self) -> str:
        text = self.autogenerate()
        self.upgrade()
        command.check(self.config)
        return text


@pytest.fixture
def project(tmp_path: Path, database: Database, engine: sa.Engine) -> Iterator[Project]:
    yield Project(tmp_path / "migrations", database, engine)
    if "sqlaudit" in plugins._all_plugins:
        plugins._all_plugins["sqlaudit"].remove()


def models(*, track: bool = True, redact: Any = None, **columns: Callable[[], Any]) -> Any:
    """A release of an application with one model."""

    class Base(orm.DeclarativeBase):
        pass

    body = {name: make() for name, make in columns.items()}
    customer = type(
        "Customer",
        (Base,),
        {
            "__tablename__": "customers",
            "id": sa.Column(sa.Integer, primary_key=True),
            "name": sa.Column(sa.String(50), nullable=False),
            **body,
        },
    )
    Base.Customer = track_table(redact=redact)(customer) if track else customer
    releases.append(Base.registry)
    return Base


releases: list[orm.registry] = []


@pytest.fixture(autouse=True)
def no_release_outlives_its_test() -> Iterator[None]:
    yield
    while releases:
        releases.pop().dispose()


def begin(project, recorder, base, **values):
    """Release models, and record a customer of theirs."""
    project.release(base)
    project.migrate()
    with recorder() as session:
        session.add(base.Customer(id=1, name="Ada", **values))
        session.commit()
    return base


@pytest.fixture
def recorder(engine: sa.Engine) -> Iterator[orm.sessionmaker[orm.Session]]:
    maker = orm.sessionmaker(engine)
    register_hooks(maker)
    yield maker
    unregister_hooks(maker)


def test_a_newly_tracked_model_is_given_its_history_and_baselines(project, recorder, engine):
    project.release(models(track=False))
    project.migrate()
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO customers (id, name) VALUES (1, 'Ada'), (2, 'Bo')"))
    base = models()
    project.release(base)
    text = project.migrate()
    assert "op.backfill_history('customers')" in text
    assert "import sqlaudit_alembic" in text
    assert "info=" not in text
    with recorder() as session:
        assert told(session, base.Customer, "name") == [("baseline", "Ada"), ("baseline", "Bo")]
        then = datetime.now(UTC)
        session.get(base.Customer, 1).name = "Ida"
        session.commit()
        check_history(session, base.Customer)
        assert [each.name for each in session.scalars(as_of(base.Customer, then).order_by("id"))] == ["Ada", "Bo"]
    project.downgrade()
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version", "customers"}
    project.upgrade()
    command.check(project.config)


def iban() -> Any:
    return sa.Column(sa.String(12))


def test_a_revision_redacts_what_it_copies(project, recorder, engine, capsys, monkeypatch):
    project.release(models(track=False, iban=iban))
    project.migrate()
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO customers (id, name, iban) VALUES (1, 'Ada', 'DE89')"))
    since, base = project.head, models(redact={"iban": "hash"}, iban=iban)
    project.release(base)
    assert "op.backfill_history('customers', redact={'iban': 'hash'})" in project.autogenerate()
    with pytest.raises(SQLAuditError, match="cannot redact in --sql mode, because the script would contain the key"):
        script_of(project, capsys, since)
    with pytest.raises(SQLAuditError, match="no redaction key is configured"):
        project.upgrade()
    monkeypatch.setenv("SQLAUDIT_REDACTION_KEY", "a key that nobody guesses")
    project.upgrade()
    command.check(project.config)
    with recorder() as session:
        hashed = hmac.new(b"a key that nobody guesses", b"DE89", "sha256").hexdigest()
        assert told(session, base.Customer, "iban") == [("baseline", hashed)]
        assert check(session, base.Customer).findings == ()


def test_an_existing_history_is_redacted_by_a_revision(project, recorder, monkeypatch):
    monkeypatch.setenv("SQLAUDIT_REDACTION_KEY", "a key that nobody guesses")
    project.config.attributes["options"] = {"render_as_batch": True}
    begin(project, recorder, models(iban=iban), iban="DE89")
    base = models(redact={"iban": "mask"}, iban=iban)
    project.release(base)
    project.migrate()  # widens the column
    project.write(
        "op.execute('UPDATE customers_history SET iban = NULL')\nop.renew_history('customers', redact={'iban': 'mask'})"
    )
    project.upgrade()
    with recorder() as session:
        masked = "**** " + hmac.new(b"a key that nobody guesses", b"DE89", "sha256").hexdigest()[:8]
        assert told(session, base.Customer, "iban") == [("insert", None), ("baseline", masked)]
        assert check(session, base.Customer).findings == ()


def test_a_revision_does_not_copy_what_a_function_redacts(project, recorder, caplog):
    project.release(models(track=False, iban=iban))
    project.migrate()
    project.release(models(redact={"iban": lambda column: sa.func.substr(column, 1, 2)}, iban=iban))
    assert "backfill_history" not in project.autogenerate()
    assert "because functions redact iban. Call backfill() after it." in caplog.text


def test_baselines_are_written_once(project, recorder, engine):
    base = models()
    project.release(base)
    project.migrate()
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO customers (id, name) VALUES (1, 'Ada')"))
    for _ in range(2):
        project.write("op.backfill_history('customers')")
        project.upgrade()
        with recorder() as session:
            assert told(session, base.Customer, "name") == [("baseline", "Ada")]


@pytest.mark.parametrize("batch", [False, True])
def test_a_column_with_a_default_is_filled_and_is_nobodys_edit(project, recorder, engine, batch):
    project.config.attributes["options"] = {"render_as_batch": batch}
    base = begin(project, recorder, models())
    with recorder() as session:
        session.get(base.Customer, 1).name = "Ida"
        session.commit()
    then = datetime.now(UTC)
    later = models(status=lambda: sa.Column(sa.String(10), nullable=False, server_default="new"))
    project.release(later)
    assert "renew_history" in project.migrate()
    with recorder() as session:
        assert told(session, later.Customer, "name", "status") == [
            ("insert", "Ada", None),
            ("update", "Ida", None),
            ("baseline", "Ida", "new"),
        ]
        check_history(session, later.Customer)
        assert not get_resource_changes(later.Customer, session, filter_fields=["status"])
        assert session.scalars(as_of(later.Customer, then)).one().status is None
        session.get(later.Customer, 1).status = "old"
        session.commit()
        (change,) = get_resource_changes(later.Customer, session, filter_fields=["status"])
        assert (change.old_value, change.new_value) == ("new", "old")
    project.downgrade()
    with recorder() as session:
        assert session.scalars(as_of(base.Customer, then)).one().name == "Ida"


def test_blame_looks_past_what_a_migration_wrote(project, recorder):
    base = models()
    project.release(base)
    project.migrate()
    with recorder() as session, AuditContextManager(user_id="u"):
        session.add(base.Customer(id=1, name="Ada"))
        session.commit()
        session.get(base.Customer, 1).name = "Ida"
        session.commit()
    later = models(status=lambda: sa.Column(sa.String(10), nullable=False, server_default="new"))
    project.release(later)
    project.migrate()
    with recorder() as session:
        found = blame(session, later.Customer, 1)
        assert [(name, each.version, each.changed_by) for name, each in found.items()] == [
            ("id", 1, "u"),
            ("name", 2, "u"),
            ("status", 3, None),
        ]


def test_what_was_before_a_migration_is_not_lost_when_it_is_undone_or_restored(project, recorder):
    base = begin(project, recorder, models())
    with recorder() as session:
        session.get(base.Customer, 1).name = "Ida"
        session.commit()
    later = models(status=lambda: sa.Column(sa.String(10), nullable=False, server_default="new"))
    project.release(later)
    project.migrate()
    base.registry.dispose()  # all models that the process knows are asked of a changeset: let it know the release alone
    with recorder() as session:
        first, second, renewed = versions_of(session, later.Customer, 1)
        assert [each.changeset_id for each in changesets(session)] == [
            each.audit_changeset_id for each in (first, second, renewed)
        ]
        assert not undo(session, renewed.audit_changeset_id).items
        with pytest.raises(QueryError, match=r"no value of status in its version 1,.* values={Customer: {.status"):
            restore(session, first)
        values = {later.Customer: {"status": "old"}}
        with pytest.raises(UndoConflictError):
            undo(session, second.audit_changeset_id, values=values, whole_rows=True)
        undo(session, second.audit_changeset_id)
        session.commit()
        restore(session, first, values=values)
        session.commit()
        assert told(session, later.Customer, "name", "status")[2:] == [
            ("baseline", "Ida", "new"),
            ("update", "Ada", "new"),
            ("update", "Ada", "old"),
        ]
        check_history(session, later.Customer)


@pytest.mark.parametrize("batch", [False, True])
def test_a_dropped_column_stays_in_history(project, recorder, engine, batch):
    project.config.attributes["options"] = {"render_as_batch": batch}
    begin(project, recorder, models(city=lambda: sa.Column(sa.String(20))), city="Rome")
    then = datetime.now(UTC)
    later = models()
    project.release(later)
    project.migrate()
    with recorder() as session:
        (version,) = versions_of(session, later.Customer, 1)
        assert version.extra_columns == {"city": "Rome"}
        assert session.scalars(as_of(later.Customer, then)).one().name == "Ada"
        session.get(later.Customer, 1).name = "Ida"
        session.commit()
        session.execute(sa.update(later.Customer).values(name="Eda"))
        session.commit()
        check_history(session, later.Customer)
    project.write("op.drop_history_column('customers', 'city')")
    project.upgrade()
    assert "city" not in {column["name"] for column in sa.inspect(engine).get_columns("customers_history")}


@pytest.mark.parametrize("batch", [False, True])
def test_a_column_that_comes_back_is_as_the_live_table_has_it(project, recorder, batch):
    project.config.attributes["options"] = {"render_as_batch": batch}
    base = begin(project, recorder, models(city=lambda: sa.Column(sa.String(20))), city="Rome")
    project.release(models())
    assert project.autogenerate().count("op.renew_history(") == 1
    project.upgrade()
    project.downgrade()
    with recorder() as session:
        check_history(session, base.Customer)
        assert told(session, base.Customer, "city") == [("insert", "Rome"), ("baseline", None)]
    project.upgrade()
    project.release(base)
    assert "op.renew_history(" in project.migrate()
    with recorder() as session:
        check_history(session, base.Customer)
        assert not get_resource_changes(base.Customer, session, filter_fields=["city"])[1:]


def test_a_downgrade_that_brings_a_column_back_runs_as_sql(project, recorder, capsys):
    base = begin(project, recorder, models(city=lambda: sa.Column(sa.String(20))), city="Rome")
    since = project.head
    project.release(models(zip=lambda: sa.Column(sa.String(20))))
    project.migrate()
    run_as_sql(project, capsys, f"{project.head}:{since}")
    with recorder() as session:
        assert told(session, base.Customer, "city") == [("insert", "Rome"), ("baseline", None)]
        check_history(session, base.Customer)


@pytest.mark.parametrize("as_sql", [False, True])
def test_a_table_that_is_tracked_and_given_a_column_at_once_is_given_baselines_once(
    project, recorder, engine, capsys, as_sql
):
    project.release(models(track=False))
    project.migrate()
    since = project.head
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO customers (id, name) VALUES (1, 'Ada')"))
    later = models(status=lambda: sa.Column(sa.String(10), nullable=False, server_default="new"))
    project.release(later)
    project.autogenerate()
    run_as_sql(project, capsys, since) if as_sql else project.upgrade()
    command.check(project.config)
    with recorder() as session:
        assert told(session, later.Customer, "status") == [("baseline", "new")]


def test_a_column_that_the_live_table_has_is_not_dropped_from_history(project):
    project.release(models(city=lambda: sa.Column(sa.String(20))))
    project.migrate()
    project.write("op.drop_history_column('customers', 'city')")
    with pytest.raises(SQLAuditError, match="'customers' still has the column 'city'"):
        project.upgrade()


def test_a_column_that_history_dropped_can_be_made_again(project, recorder):
    project.release(models(city=lambda: sa.Column(sa.String(20))))
    project.migrate()
    later = models()
    project.release(later)
    project.migrate()
    with recorder() as session:
        session.add(later.Customer(id=1, name="Ada"))
        session.commit()
    project.write(
        "op.drop_history_column('customers', 'city', type_=sa.String(20))",
        "op.add_column('customers_history', sa.Column('city', sa.String(20)))",
    )
    project.upgrade()
    with recorder() as session:
        (version,) = versions_of(session, later.Customer, 1)
        assert version.extra_columns == {}
        check_history(session, later.Customer)
    project.downgrade()
    with recorder() as session:
        (version,) = versions_of(session, later.Customer, 1)
        assert version.extra_columns == {"city": None}
        check_history(session, later.Customer)


def test_a_migration_of_rows_that_the_documentation_shows_is_nobodys_edit(project, recorder):
    page = (Path(__file__).parents[2] / "docs" / "migrations.md").read_text(encoding="utf-8")
    setup, *others = re.findall(r"^```py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (migration,) = (block for block in others if 'op.execute("UPDATE customers' in block)
    assert all(line.strip() in ENV for line in setup.splitlines() if "sqlaudit" in line)
    begin(project, recorder, models())
    project.write(migration.removeprefix("def upgrade():\n"))
    project.upgrade()
    later = models(country=lambda: sa.Column(sa.String(2)))
    project.release(later)
    command.check(project.config)
    with recorder() as session:
        check_history(session, later.Customer)
        assert told(session, later.Customer, "country") == [("insert", None), ("baseline", "CH")]
        assert not get_resource_changes(later.Customer, session, filter_fields=["country"])
        session.get(later.Customer, 1).country = "IT"
        session.commit()
        (change,) = get_resource_changes(later.Customer, session, filter_fields=["country"])
        assert (change.old_value, change.new_value) == ("CH", "IT")


def test_every_operation_has_a_reverse():
    column = sa.Column("id", sa.Integer)
    created = ops.CreateHistoryTableOp(ops.Place("t"), [column], ["id"])
    assert isinstance(created.reverse(), ops.DropHistoryTableOp)
    assert created.reverse().reverse().to_diff_tuple() == created.to_diff_tuple()
    renamed = ops.RenameTrackedColumnOp(ops.Place("t"), "a", "b").reverse()
    assert (renamed.old, renamed.new) == ("b", "a")
    moved = ops.RenameTrackedTableOp(ops.Place("t"), "t", "u").reverse()
    assert (moved.place.table, moved.old, moved.new) == ("u", "u", "t")
    dropped = ops.DropHistoryColumnOp(ops.Place("t"), "a", sa.String(5)).reverse()
    assert (dropped.table_name, dropped.column.name) == ("t_history", "a")
    assert not ops.BackfillHistoryOp(ops.Place("t")).reverse().ops
    with pytest.raises(SQLAuditError, match="Give drop_history_column its type_="):
        ops.DropHistoryColumnOp(ops.Place("t"), "a").reverse()
    with pytest.raises(SQLAuditError, match="Give drop_history_table its columns and its key="):
        ops.DropHistoryTableOp(ops.Place("t"), [], []).reverse()


def test_history_outlives_tracking_until_it_is_dropped_by_hand(project, engine):
    project.release(models())
    project.migrate()
    project.release(models(track=False))
    command.check(project.config)
    project.write("op.drop_history_table('customers')")
    project.upgrade()
    assert not sa.inspect(engine).has_table("customers_history")


def test_models_that_were_not_imported_stop_autogenerate(project, engine):
    project.release(models())
    project.migrate()

    class Empty(orm.DeclarativeBase):
        pass

    project.release(Empty)
    with pytest.raises(SQLAuditError, match=r"customers.*import the modules of all models in env\.py"):
        project.autogenerate()
    project.config.attributes["options"] = {"sqlaudit_dropped_tables": ["customers"]}
    project.migrate()
    assert sa.inspect(engine).has_table("customers_history")
    assert not sa.inspect(engine).has_table("customers")


def test_models_that_were_not_imported_stop_autogenerate_by_whatever_name_their_history_goes(project):
    class Base(orm.DeclarativeBase):
        pass

    @track_table(audit_columns=AuditColumns(valid_from="since"), history_table_name="clients_past")
    class Client(Base):
        __tablename__ = "clients"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    class Empty(orm.DeclarativeBase):
        pass

    project.release(Base)
    project.migrate()
    project.release(Empty)
    with pytest.raises(SQLAuditError, match="lacks the tables clients"):
        project.autogenerate()


def test_columns_and_tables_are_renamed_with_their_history(project, recorder, engine):
    base = begin(project, recorder, models())
    project.write(
        "op.rename_tracked_column('customers', 'name', 'title')\nop.rename_tracked_table('customers', 'clients')",
        "op.rename_tracked_table('clients', 'customers')\nop.rename_tracked_column('customers', 'title', 'name')",
    )
    project.upgrade()

    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Client(Base):
        __tablename__ = "clients"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        title: orm.Mapped[str] = orm.mapped_column(sa.String(50))

    project.release(Base)
    command.check(project.config)
    with recorder() as session:
        session.get(Client, 1).title = "Ida"
        session.commit()
        assert told(session, Client, "title") == [("insert", "Ada"), ("update", "Ida")]
    project.downgrade()
    project.release(base)
    with recorder() as session:
        check_history(session, base.Customer)


@pytest.mark.parametrize("taken", ["clients", "clients_history"])
def test_a_table_is_not_renamed_to_a_name_that_is_taken(project, engine, taken):
    project.release(models())
    project.migrate()
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {taken} (id INTEGER)")
    project.write("op.rename_tracked_table('customers', 'clients')")
    with pytest.raises(SQLAuditError, match=f"A table '{taken}' exists already. Choose another name"):
        project.upgrade()
    assert {"customers", "customers_history"} <= set(sa.inspect(engine).get_table_names())


def test_a_column_of_ours_is_not_renamed(project):
    project.release(models())
    project.migrate()
    project.write("op.rename_tracked_column('customers', 'name', 'valid_from')")
    with pytest.raises(SQLAuditError, match="'valid_from' is the name of an audit column"):
        project.upgrade()


def test_what_is_not_there_is_not_renamed(project):
    project.release(models())
    project.migrate()
    project.write("op.rename_tracked_column('customers', 'nickname', 'name2')")
    with pytest.raises(SQLAuditError, match=r"'customers' has no column 'nickname'\. It has id, name"):
        project.upgrade()


def test_a_history_gets_the_index_that_it_lacks(project, engine):
    project.release(models())
    project.migrate()
    with engine.begin() as connection:
        sa.Index(
            "ix_customers_history_instant",
            sa.Table("customers_history", sa.MetaData(), autoload_with=connection).c.valid_from,
        ).drop(connection)
    project.migrate()
    assert "ix_customers_history_instant" in {
        index["name"] for index in sa.inspect(engine).get_indexes("customers_history")
    }
    command.check(project.config)


@pytest.mark.filterwarnings("ignore:autogenerate skipping", "ignore:Skipped unsupported reflection")  # on SQLite
def test_indexes_follow_a_rename(project, recorder, engine):
    def release(table: str, column: str) -> Any:
        class Base(orm.DeclarativeBase):
            metadata = sa.MetaData(
                naming_convention={"ix": "index_of_%(column_0_label)s", "pk": "key_of_%(table_name)s"}
            )

        class Group(Base):
            __tablename__ = "groups"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

        body = {
            "__tablename__": table,
            "id": sa.Column(sa.Integer, primary_key=True),
            column: sa.Column(sa.ForeignKey("groups.id"), index=True),
        }
        Base.Model = track_table(as_of_index=True)(type("Model", (Base,), body))
        return Base

    base = release("customers", "group_id")
    project.release(base)
    project.migrate()
    with recorder() as session:
        session.add(base.Model(id=1))
        session.commit()
    project.write(
        """
        op.drop_index('index_of_customers_group_id', 'customers') if op.get_bind().dialect.name == 'sqlite' else None
        op.rename_tracked_column('customers', 'group_id', 'team_id')
        op.rename_tracked_table('customers', 'clients')
        """,
        """
        op.rename_tracked_table('clients', 'customers')
        op.rename_tracked_column('customers', 'team_id', 'group_id')
        """,
    )
    before = {index["name"] for index in sa.inspect(engine).get_indexes("customers_history")}
    project.upgrade()
    renamed = {index["name"] for index in sa.inspect(engine).get_indexes("clients_history")}
    assert renamed == {str(name).replace("customers", "clients").replace("group_id", "team_id") for name in before}
    later = release("clients", "team_id")
    with recorder() as session:
        session.get(later.Model, 1)
        check_history(session, later.Model)
    project.downgrade()
    assert {index["name"] for index in sa.inspect(engine).get_indexes("customers_history")} == before


@pytest.mark.filterwarnings("ignore:autogenerate skipping")  # of SQLite's index of an expression
@pytest.mark.parametrize("as_sql", [False, True])
def test_names_that_were_shortened_follow_a_rename(project, recorder, engine, capsys, as_sql):
    def release(table: str) -> Any:
        class Base(orm.DeclarativeBase):
            pass

        body = {"__tablename__": table, "id": sa.Column(sa.Integer, primary_key=True), "name": sa.Column(sa.String(9))}
        Base.Model = track_table(as_of_index=True)(type("Model", (Base,), body))
        return Base

    long = "customers_" + "x" * 45
    base, later = release(long), release("clients")
    project.release(base)
    project.migrate()
    since = project.head
    with recorder() as session:
        session.add(base.Model(id=1, name="Ada"))
        session.commit()
    options = ", key=['id'], as_of_index=True" if as_sql else ""
    project.write(f"op.rename_tracked_table({long!r}, 'clients'{options})")
    run_as_sql(project, capsys, since) if as_sql else project.upgrade()
    project.release(later)
    command.check(project.config)
    with engine.connect() as connection, pytest.raises(sa.exc.DatabaseError):
        connection.exec_driver_sql("CREATE INDEX ix_clients_history_period ON clients_history (id)")
    with recorder() as session:
        session.get(later.Model, 1).name = "Ida"
        session.commit()
        check_history(session, later.Model)


def test_a_rename_to_a_name_that_is_taken_does_nothing(project, engine):
    project.release(models(city=lambda: sa.Column(sa.String(20))))
    project.migrate()
    project.write("op.rename_tracked_column('customers', 'name', 'city')")
    with pytest.raises(SQLAuditError, match="'customers' already has a column 'city'"):
        project.upgrade()
    names = {column["name"] for column in sa.inspect(engine).get_columns("customers_history")}
    assert {"name", "city"} <= names


def test_sql_mode_gives_sql_that_runs(project, recorder, engine, capsys):
    base = models()
    project.release(base)
    project.autogenerate()
    project.write(
        "op.execute(\"INSERT INTO customers (id, name) VALUES (1, 'Ada')\")\nop.backfill_history('customers')"
    )
    capsys.readouterr()
    run_as_sql(project, capsys)
    command.check(project.config)
    with recorder() as session:
        assert told(session, base.Customer, "name") == [("baseline", "Ada")]
        session.get(base.Customer, 1).name = "Ida"
        session.commit()
        check_history(session, base.Customer)


def test_a_version_that_begins_later_than_its_renewal_ends_when_it_begins(project, recorder):
    set_config(SQLAuditConfig(clock=lambda: datetime.now(UTC) + timedelta(hours=1)))
    base = begin(project, recorder, models())
    clear_config()
    project.write("op.renew_history('customers')")
    project.upgrade()
    with recorder() as session:
        assert told(session, base.Customer, "name") == [("insert", "Ada"), ("baseline", "Ada")]
        check_history(session, base.Customer)


def test_renames_and_renewals_run_as_sql(project, recorder, engine, capsys):
    begin(project, recorder, models())
    since = project.head
    project.write(
        """
        op.rename_tracked_column('customers', 'name', 'title')
        op.rename_tracked_table('customers', 'clients', key=['id'])
        op.execute("UPDATE clients SET title = 'Ida'")
        op.renew_history('clients', key=['id'], columns=['id', 'title'])
        """
    )
    run_as_sql(project, capsys, since)

    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Client(Base):
        __tablename__ = "clients"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        title: orm.Mapped[str] = orm.mapped_column(sa.String(50))

    project.release(Base)
    command.check(project.config)
    with recorder() as session:
        assert told(session, Client, "title") == [("insert", "Ada"), ("baseline", "Ida")]
        check_history(session, Client)


def test_what_only_a_database_knows_is_asked_for_in_sql_mode(project):
    project.release(models())
    project.write("op.backfill_history('customers')")
    with pytest.raises(SQLAuditError, match=r"op\.backfill_history\('customers', key="):
        command.upgrade(project.config, "head", sql=True)


def test_a_script_is_dated_by_its_run_in_utc_and_never_by_its_generation(project, recorder, engine, capsys):
    base = begin(project, recorder, models())
    since = project.head
    project.write(
        """
        op.execute("UPDATE customers SET name = 'Ida'")
        op.execute("INSERT INTO customers (id, name) VALUES (2, 'Bo')")
        op.renew_history('customers', key=['id'], columns=['id', 'name'])
        op.backfill_history('customers', key=['id'], columns=['id', 'name'])
        """
    )
    script = script_of(project, capsys, since)
    assert script == script_of(project, capsys, since)
    assert str(datetime.now(UTC).year) not in script
    zones = {"postgresql": "SET TIME ZONE 'Asia/Tokyo'", "mariadb": "SET time_zone = '+09:00'"}
    before = datetime.now(UTC)
    run_script(engine, script, zones.get(engine.dialect.name))
    with recorder() as session:
        assert told(session, base.Customer, "name") == [("insert", "Ada"), ("baseline", "Ida"), ("baseline", "Bo")]
        check_history(session, base.Customer)
        versions = [versions_of(session, base.Customer, id)[-1] for id in (1, 2)]
        assert len({version.valid_from for version in versions}) == 1
        assert before - timedelta(milliseconds=1) <= versions[0].valid_from <= datetime.now(UTC)
        (changeset,) = {version.audit_changeset_id for version in versions}
        assert (changeset.version, changeset.variant) == (7, uuid.RFC_4122)
        assert abs((changeset.int >> 80) - before.timestamp() * 1000) < 60_000
        assert changeset in {each.changeset_id for each in changesets(session)}
    run_script(engine, script.replace("'Bo'", "'Cy'").replace("(2,", "(3,"))
    with recorder() as session:
        assert versions_of(session, base.Customer, 3)[0].audit_changeset_id != changeset
        check_history(session, base.Customer)


def test_a_script_may_be_dated_by_hand(project, recorder, engine, capsys):
    base = begin(project, recorder, models())
    since = project.head
    project.write(
        """
        from datetime import UTC, datetime
        op.execute("INSERT INTO customers (id, name) VALUES (2, 'Bo')")
        op.backfill_history('customers', key=['id'], columns=['id', 'name'], at=datetime(2020, 1, 1, tzinfo=UTC))
        """
    )
    script = script_of(project, capsys, since)
    assert script == script_of(project, capsys, since)
    run_script(engine, script)
    with recorder() as session:
        (version,) = versions_of(session, base.Customer, 2)
        assert (version.valid_from, version.audit_changeset_id.version) == (datetime(2020, 1, 1, tzinfo=UTC), 7)


def run_as_sql(project: Project, capsys: Any, since: str | None = None) -> None:
    """Let the driver alone run the SQL that Alembic gives for all revisions, for those since one, or back (from:to)."""
    script = script_of(project, capsys, since)
    if since is None:
        with project.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")  # which autogenerate has made
    run_script(project.engine, script)


def script_of(project: Project, capsys: Any, since: str | None = None) -> str:
    capsys.readouterr()
    if since and ":" in since:
        command.downgrade(project.config, since, sql=True)
    else:
        command.upgrade(project.config, f"{since}:head" if since else "head", sql=True)
    return re.sub(r"^--.*$", "", capsys.readouterr().out, flags=re.MULTILINE)


def run_script(engine: sa.Engine, script: str, first: str | None = None) -> None:
    with engine.connect() as connection:
        if first is not None:
            connection.exec_driver_sql(first)
        for statement in script.split(";"):
            if statement.strip() and statement.strip().upper() not in ("BEGIN", "COMMIT"):
                connection.exec_driver_sql(statement.strip().replace("%", "%%"))
        connection.commit()
        connection.invalidate()  # with what its session was told


@pytest.mark.spread
@pytest.mark.parametrize(
    "line",
    [
        "op.backfill_history('customers')",
        "op.renew_history('customers')",
        "op.rename_tracked_table('customers', 'clients')",
        "op.rename_tracked_column('customers', 'name', 'title')",
        "op.drop_history_column('customers', 'name')",
        "op.drop_history_table('customers')",
    ],
)
def test_a_history_that_is_not_there_is_told(project, engine, line):
    project.release(models(track=False))
    project.migrate()
    project.write(line)
    with pytest.raises(SQLAuditError, match="The history table 'customers_history' of 'customers' does not exist"):
        project.upgrade()
    assert {column["name"] for column in sa.inspect(engine).get_columns("customers")} == {"id", "name"}


def test_a_revision_that_was_run_already_says_so(project, engine):
    project.release(models())
    project.migrate()
    command.stamp(project.config, "base")
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE customers")
    with pytest.raises(SQLAuditError, match=r"'customers_history' exists already.*alembic stamp"):
        project.upgrade()


def test_the_type_of_a_column_changes_in_history_too(project, recorder, engine):
    project.config.attributes["options"] = {"render_as_batch": True}
    begin(project, recorder, models(city=lambda: sa.Column(sa.String(20))), city="Rome")
    later = models(city=lambda: sa.Column(sa.String(200)))
    project.release(later)
    assert project.migrate().count("type_=sa.String(length=200)") == 2
    with recorder() as session:
        session.get(later.Customer, 1).city = "x" * 150
        session.commit()
        check_history(session, later.Customer)
        assert told(session, later.Customer, "city") == [("insert", "Rome"), ("update", "x" * 150)]
    with engine.connect() as connection, pytest.raises(sa.exc.IntegrityError):
        connection.exec_driver_sql("UPDATE customers_history SET valid_to = '9999-12-31 00:00:00.000000'")
    project.write("pass")


@pytest.mark.filterwarnings("ignore:autoincrement and existing_autoincrement")  # what Alembic says of live tables
def test_a_numbered_key_grows_with_its_history(project, recorder):
    project.config.attributes["options"] = {"render_as_batch": True}

    def release(type_: Any) -> Any:
        class Base(orm.DeclarativeBase):
            pass

        body = {"__tablename__": "customers", "name": sa.Column(sa.String(50))}
        body["id"] = sa.Column(type_, primary_key=True)
        Base.Customer = track_table()(type("Customer", (Base,), body))
        return Base

    base, later = release(sa.Integer), release(sa.BigInteger)
    project.release(base)
    project.migrate()
    with recorder() as session:
        session.add(base.Customer(name="Ada"))
        session.commit()
    project.release(later)
    project.migrate()
    with recorder() as session:
        session.get(later.Customer, 1).name = "Ida"
        session.add(later.Customer(id=2**40, name="Bo"))
        session.commit()
        check_history(session, later.Customer)
        assert told(session, later.Customer, "name") == [("insert", "Ada"), ("update", "Ida"), ("insert", "Bo")]


def test_the_type_of_a_key_changes_in_history_too(project, recorder):
    project.config.attributes["options"] = {"render_as_batch": True}

    def release(type_: Any) -> Any:
        class Base(orm.DeclarativeBase):
            pass

        body = {"__tablename__": "customers", "name": sa.Column(sa.String(50))}
        body["id"] = sa.Column(type_, primary_key=True)
        Base.Customer = track_table()(type("Customer", (Base,), body))
        return Base

    base = release(sa.String(5))
    project.release(base)
    project.migrate()
    with recorder() as session:
        session.add(base.Customer(id="a", name="Ada"))
        session.commit()
    later = release(sa.String(50))
    project.release(later)
    project.migrate()
    with recorder() as session:
        session.get(later.Customer, "a").name = "Ida"
        session.add(later.Customer(id="a" * 40, name="Bo"))
        session.commit()
        check_history(session, later.Customer)
        assert told(session, later.Customer, "name") == [("insert", "Ada"), ("update", "Ida"), ("insert", "Bo")]


def test_tables_of_another_schema_are_followed(project, recorder, engine, database):
    schema = database.other_schema
    project.config.attributes["options"] = {
        "include_schemas": True,
        "include_name": lambda name, type_, parents: type_ != "schema" or name in (None, schema),
    }

    def release(table: str, column: str) -> Any:
        class Base(orm.DeclarativeBase):
            pass

        body = {"__tablename__": table, "__table_args__": {"schema": schema}, column: sa.Column(sa.String(20))}
        body["id"] = sa.Column(sa.Integer, primary_key=True)
        Base.Model = track_table()(type("Model", (Base,), body))
        return Base

    base = release("customers", "name")
    project.release(base)
    text = project.autogenerate()
    assert f"schema={schema!r}" in text
    project.upgrade()
    with recorder() as session:
        session.add(base.Model(id=1, name="Ada"))
        session.commit()
    project.write(
        """
        op.rename_tracked_column('customers', 'name', 'title', schema='$schema')
        op.rename_tracked_table('customers', 'clients', schema='$schema')
        op.execute("INSERT INTO $schema.clients (id, title) VALUES (2, 'Bo')")
        op.backfill_history('clients', schema='$schema')
        op.execute("UPDATE $schema.clients SET title = 'Ida' WHERE id = 1")
        op.renew_history('clients', schema='$schema')
        """.replace("$schema", schema)
    )
    project.upgrade()
    later = release("clients", "title")
    with recorder() as session:
        check_history(session, later.Model)
        assert told(session, later.Model, "title") == [
            ("insert", "Ada"),
            ("baseline", "Ida"),
            ("baseline", "Bo"),
            ("baseline", "Bo"),
        ]
    indexes = {index["name"] for index in sa.inspect(engine).get_indexes("clients_history", schema=schema)}
    assert "ix_clients_history_changeset" in indexes


def test_baselines_may_be_dated(project, recorder, engine):
    base = models()
    project.release(base)
    project.migrate()
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO customers (id, name) VALUES (1, 'Ada')"))
    project.write(
        "from datetime import datetime, UTC\nop.backfill_history('customers', at=datetime(2020, 1, 1, tzinfo=UTC))"
    )
    project.upgrade()
    with recorder() as session:
        (version,) = versions_of(session, base.Customer, 1)
        assert version.valid_from == datetime(2020, 1, 1, tzinfo=UTC)
        assert session.scalars(as_of(base.Customer, datetime(2021, 1, 1, tzinfo=UTC))).one().name == "Ada"


def test_what_is_no_value_leaves_history_alone(project):
    project.config.attributes["options"] = {"render_as_batch": True}
    project.release(models(city=lambda: sa.Column(sa.String(20), comment="where", nullable=True)))
    project.migrate()
    project.release(models(city=lambda: sa.Column(sa.String(20), comment="place", nullable=False, server_default="x")))
    text = project.migrate()
    assert "customers" in text
    assert "customers_history" not in text


@pytest.mark.filterwarnings("ignore:autogenerate skipping")  # of SQLite's index of an expression
def test_our_columns_may_have_other_names(project, recorder, engine):
    class Base(orm.DeclarativeBase):
        pass

    @track_table(audit_columns=AuditColumns(valid_from="since"), history_table_name="clients_past", as_of_index=True)
    class Client(Base):
        __tablename__ = "clients"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        valid_from: orm.Mapped[int]

    project.release(Base)
    project.migrate()
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO clients (id, valid_from) VALUES (1, 7)"))
    project.write("op.backfill_history('clients', history_table='clients_past', audit_columns={'valid_from': 'since'})")
    project.upgrade()
    with recorder() as session:
        assert told(session, Client, "valid_from") == [("baseline", 7)]
        session.get(Client, 1).valid_from = 8
        session.commit()
        check_history(session, Client)


def release_with(audit_columns: AuditColumns = AuditColumns(), history_table: str | None = None, **columns: Any) -> Any:  # noqa: B008
    """A release of the model of :func:`models` with options of its history."""

    class Base(orm.DeclarativeBase):
        pass

    body = {"__tablename__": "customers", "id": sa.Column(sa.Integer, primary_key=True, autoincrement=False)}
    customer = type("Customer", (Base,), {**body, "name": sa.Column(sa.String(50), nullable=False), **columns})
    Base.Customer = track_table(audit_columns=audit_columns, history_table_name=history_table)(customer)
    releases.append(Base.registry)
    return Base


@pytest.mark.spread
@pytest.mark.parametrize("role", [role for role, _ in AuditColumns().items()])
def test_a_column_of_ours_that_gets_another_name_is_renamed_by_hand_and_never_added_empty(project, recorder, role):
    base, usual = begin(project, recorder, models()), getattr(AuditColumns(), role)
    with recorder() as session, AuditContextManager(user_id="ada", reason="why"):
        session.get(base.Customer, 1).name = "Eve"
        session.commit()
    columns = AuditColumns(**{role: "our_own"})
    later = release_with(columns, **{usual: sa.Column(usual, sa.Integer)})
    project.release(later)
    with pytest.raises(SQLAuditError, match=r"no column our_own.*ALTER TABLE customers_history RENAME COLUMN"):
        project.autogenerate()
    project.write(f"op.execute('ALTER TABLE customers_history RENAME COLUMN {usual} TO our_own')")
    project.upgrade()
    project.migrate()
    with recorder() as session:
        session.get(later.Customer, 1).__setattr__(usual, 7)
        session.commit()
        check_history(session, later.Customer)
        versions = versions_of(session, later.Customer, 1)
        assert [getattr(version, usual) for version in versions] == [None, None, 7]
        assert [getattr(version, columns.changed_by) for version in versions] == [None, "ada", None]


def test_a_key_of_more_columns_is_refused_until_its_rows_get_a_new_history(project, recorder, engine):
    begin(project, recorder, models(tenant=lambda: sa.Column(sa.Integer, nullable=False, server_default="1")))
    if engine.dialect.name == "sqlite":  # which makes a primary key with a new table
        project.write("op.drop_table('customers')")
    elif engine.dialect.name == "postgresql":
        project.write(
            "op.execute('ALTER TABLE customers DROP CONSTRAINT customers_pkey, ADD PRIMARY KEY (id, tenant)'\n)"
        )
    else:
        project.write(
            "op.execute('ALTER TABLE customers MODIFY id INTEGER, DROP PRIMARY KEY, ADD PRIMARY KEY (id, tenant)')"
        )
    project.upgrade()

    def release(history_table: str | None) -> Any:
        tenant = sa.Column(sa.Integer, primary_key=True, autoincrement=False, server_default="1")
        project.release(base := release_with(history_table=history_table, tenant=tenant))
        return base

    release(None)
    with pytest.raises(SQLAuditError, match=r"The primary key of 'customers' is id, tenant.*history_table_name"):
        project.autogenerate()
    base = release("tenants_customers")
    project.migrate()
    with recorder() as session:
        session.add(base.Customer(id=1, tenant=2, name="Bob"))
        session.commit()
        check_history(session, base.Customer)
    assert sa.inspect(engine).has_table("customers_history")


class Size(enum.Enum):
    small = "s"
    large = "l"


def odd_release(**columns: Callable[[], Any]) -> Any:
    """Names to be quoted, too long ones, types with DDL of their own, computed and excluded columns, subclasses."""

    class Base(orm.DeclarativeBase):
        metadata = sa.MetaData(naming_convention={"ix": "ix_%(column_0_label)s", "pk": "pk_%(table_name)s"})

    body = {name: make() for name, make in columns.items()}

    class Item(Base):
        __tablename__ = "Order Items of an application whose tables have long names"
        number = sa.Column("select", sa.Integer, primary_key=True, autoincrement=False)
        line = sa.Column("Line No", sa.String(5), primary_key=True)
        size = sa.Column(sa.Enum(Size, name="size"), nullable=False)
        price = sa.Column(sa.Numeric(10, 2), sa.CheckConstraint("price > 0"))
        double = sa.Column(sa.Numeric(12, 2), sa.Computed("price * 2", persisted=True))
        data = sa.Column(sa.JSON)
        made = sa.Column(sa.DateTime(timezone=True), index=True)
        secret = sa.Column(sa.String(10))
        kind = sa.Column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}

    for name, column in body.items():
        setattr(Item, name, column)
    track_table(exclude=["secret"])(Item)

    class Special(Item):
        extra = sa.Column(sa.Boolean)
        __mapper_args__ = {"polymorphic_identity": "special"}

    Base.Item, Base.Special = Item, Special
    return Base


@pytest.mark.filterwarnings("ignore:Computed default")  # of the live table, which Alembic cannot compare on SQLite
def test_odd_models_are_followed(project, recorder, engine):
    base = odd_release()
    project.release(base)
    project.migrate()
    with recorder() as session:
        session.add(base.Special(number=1, line="a b", size=Size.small, price=2, extra=True, secret="x"))
        session.commit()
    then = datetime.now(UTC)
    later = odd_release(
        count=lambda: sa.Column("how many", sa.Integer, server_default="3", nullable=False),
        other=lambda: sa.Column(sa.Enum(Size, name="size")),
    )
    project.release(later)
    project.migrate()
    with recorder() as session:
        check_history(session, later.Item)
        (item,) = session.scalars(sa.select(later.Item))
        item.price, item.count = 5, 4
        session.commit()
        check_history(session, later.Item)
        past = session.scalars(as_of(later.Item, then)).one()
        assert (past.price, past.double, past.count, past.extra) == (2, 4, None, True)
    project.downgrade()
    with recorder() as session:
        assert session.scalars(as_of(base.Item, then)).one().double == 4
        check_history(session, base.Item)
    project.upgrade()
    command.check(project.config)
    project.downgrade()
    project.downgrade()
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]


def test_association_tables_are_followed(project, engine):
    class Base(orm.DeclarativeBase):
        pass

    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("a", sa.ForeignKey("left.id"), primary_key=True),
        sa.Column("b", sa.ForeignKey("right.id"), primary_key=True),
    )

    @track_table()
    class Right(Base):
        __tablename__ = "right"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    @track_table()
    class Left(Base):
        __tablename__ = "left"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        rights: orm.Mapped[list[Right]] = orm.relationship(secondary=links)

    project.release(Base)
    assert "op.create_history_table('links'" in project.migrate()
    project.downgrade()
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]


def test_both_tables_of_joined_inheritance_are_renewed_alike(project, recorder):
    def release(**columns: Any) -> Any:
        class Base(orm.DeclarativeBase):
            pass

        @track_table()
        class Person(Base):
            __tablename__ = "persons"
            id = sa.Column(sa.Integer, primary_key=True)
            kind = sa.Column(sa.String(10))
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

        body = {name: make() for name, make in columns.items()}
        arguments = {"__tablename__": "engineers", "__mapper_args__": {"polymorphic_identity": "engineer"}}
        identity = {"id": sa.Column(sa.ForeignKey("persons.id"), primary_key=True)}
        Base.Engineer = type("Engineer", (Person,), {**arguments, **identity, **body})
        Base.Person = Person
        return Base

    base = release()
    project.release(base)
    project.migrate()
    with recorder() as session:
        session.add_all([base.Engineer(id=1), base.Person(id=2)])
        session.commit()
    later = release(level=lambda: sa.Column(sa.Integer, nullable=False, server_default="3"))
    project.release(later)
    project.migrate()
    with recorder() as session:
        check_history(session, later.Person)
        session.get(later.Engineer, 1).level = 4
        session.commit()
        check_history(session, later.Person)
        changes = get_resource_changes(later.Engineer, session, filter_fields=["level"])
        assert [(each.old_value, each.new_value) for each in changes] == [(3, 4)]
    project.release(base)
    project.migrate()
    project.downgrade()
    with recorder() as session:
        check_history(session, later.Person)
        assert [version.level for version in versions_of(session, later.Engineer, 1)] == [None, 3, 4, 3]


@pytest.mark.requires("enum_types")
def test_values_are_added_to_an_enum_and_partitions_are_left_alone(project, recorder, engine):
    base = models(size=lambda: sa.Column(sa.Enum("s", "m", name="size")))
    project.release(base)
    project.migrate()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TYPE size ADD VALUE 'l'")
        connection.exec_driver_sql("ALTER TABLE customers_history RENAME TO leaf")
        connection.exec_driver_sql("CREATE TABLE customers_history (LIKE leaf INCLUDING ALL) PARTITION BY HASH (id)")
        connection.exec_driver_sql("DROP TABLE leaf")
        connection.exec_driver_sql(
            "CREATE TABLE customers_history_p0 PARTITION OF customers_history FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        )
        names = sa.inspect(connection).get_indexes("customers_history")
        for index in names:
            [column] = index["column_names"]
            end = {"audit_changeset_id": "changeset", "valid_from": "instant"}.get(column)
            new = f"ix_customers_history_{end}" if end else "uq_customers_history_open"
            connection.exec_driver_sql(f"ALTER INDEX {index['name']} RENAME TO {new}")
    project.release(models(size=lambda: sa.Column(sa.Enum("s", "m", "l", name="size"))))
    command.check(project.config)
    with recorder() as session:
        session.add(base.Customer(id=1, name="Ada", size="m"))
        session.commit()
        check_history(session, base.Customer)


def divided_models(
    *, name: str = "readings", partitions: int | None = 3, key: Any = sa.Integer, append_only: bool = True
) -> Any:
    """A release of an application with one model whose history is divided, and whose audit columns have other names."""

    class Base(orm.DeclarativeBase):
        pass

    @track_table(partitions=partitions, append_only=append_only, audit_columns=AuditColumns(reason="why"))
    class Reading(Base):
        __tablename__ = name
        id: orm.Mapped[int] = orm.mapped_column(key, primary_key=True)
        value: orm.Mapped[int]

    Base.Reading = Reading
    releases.append(Base.registry)
    return Base


@pytest.mark.requires("partitions")
def test_partitions_are_created_kept_renamed_and_dropped(project, recorder, engine):
    base = divided_models()
    project.release(base)
    text = project.migrate()
    assert "op.create_history_table('readings'" in text
    assert "partitions=3" in text
    with engine.begin() as connection:  # as a user may divide a partition further
        for statement in (
            "DROP TABLE readings_history_p2",
            "CREATE TABLE mine PARTITION OF readings_history FOR VALUES WITH (MODULUS 3, REMAINDER 2) "
            "PARTITION BY HASH (id)",
            "CREATE TABLE mine_all PARTITION OF mine FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        ):
            connection.exec_driver_sql(statement)
    command.check(project.config)
    with recorder() as session:
        session.add_all([base.Reading(id=id, value=id) for id in range(1, 20)])
        session.commit()
        check_history(session, base.Reading)
    project.write(
        "op.rename_tracked_table('readings', 'values', audit_columns={'reason': 'why'})",
        "op.rename_tracked_table('values', 'readings', audit_columns={'reason': 'why'})",
    )
    project.upgrade()
    later = divided_models(name="values")
    project.release(later)
    command.check(project.config)
    expected = {"values_history", "values_history_p0", "values_history_p1", "mine", "mine_all"}
    assert expected < set(sa.inspect(engine).get_table_names())
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="append-only"):
        connection.exec_driver_sql("TRUNCATE values_history_p1")
    with recorder() as session:
        session.get(later.Reading, 1).value = 7
        session.commit()
        check_history(session, later.Reading)
    project.downgrade()
    project.downgrade()
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version"}


@pytest.mark.requires("partitions")
def test_a_script_creates_and_renames_partitions_too(project, engine, capsys):
    project.release(divided_models(append_only=False))
    project.autogenerate()
    project.write("op.rename_tracked_table('readings', 'values', partitions=3, audit_columns={'reason': 'why'})")
    project.write("op.protect_history('values', audit_columns={'reason': 'why'})")
    script = script_of(project, capsys)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    with engine.connect() as connection:
        connection.connection.driver_connection.execute(script)
    names = {name for name in sa.inspect(engine).get_table_names() if name.startswith("values_history")}
    assert names == {"values_history", *(f"values_history_p{number}" for number in range(3))}
    project.release(divided_models(name="values"))
    command.check(project.config)


@pytest.mark.requires("partitions")
def test_what_partitions_make_impossible_is_refused_and_what_they_do_not_change_is_quiet(project, recorder):
    project.release(divided_models(partitions=None))
    project.migrate()
    project.release(divided_models(partitions=8))
    command.check(project.config)
    project.release(divided_models(partitions=8, key=sa.BigInteger))
    with pytest.raises(SQLAuditError, match="PostgreSQL changes no column by which a table is divided"):
        project.autogenerate()


def test_a_key_is_renamed(project, recorder):
    begin(project, recorder, models())
    project.write("op.rename_tracked_column('customers', 'id', 'number')")
    project.upgrade()

    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Customer(Base):
        __tablename__ = "customers"
        number: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(sa.String(50))

    project.release(Base)
    command.check(project.config)
    with recorder() as session:
        session.get(Customer, 1).name = "Ida"
        session.commit()
        check_history(session, Customer)


def test_an_asynchronous_environment_migrates_too(tmp_path, async_engine, database):
    engine = database.create_engine()
    project = Project(tmp_path / "migrations", database, engine)
    environment = tmp_path / "migrations" / "env.py"
    start, _, _ = ENV.partition("if context.is_offline_mode()")
    environment.write_text(
        start
        + """
import asyncio

def run(connection):
    context.configure(connection=connection, **options)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    async with attributes["async_engine"].connect() as connection:
        await connection.run_sync(run)
        await connection.commit()

asyncio.run(main())
""",
        encoding="utf-8",
    )
    project.config.attributes["async_engine"] = async_engine
    project.release(models(track=False))
    project.migrate()
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO customers (id, name) VALUES (1, 'Ada')"))
    base = models()
    project.release(base)
    project.migrate()
    with orm.Session(engine) as session:
        assert told(session, base.Customer, "name") == [("baseline", "Ada")]
        check_history(session, base.Customer)
    project.downgrade()
    assert not sa.inspect(engine).has_table("customers_history")
    engine.dispose()
    plugins._all_plugins["sqlaudit"].remove()


def test_a_column_that_is_no_longer_excluded_is_nobodys_edit(project, recorder):
    def release(exclude):
        class Base(orm.DeclarativeBase):
            pass

        @track_table(exclude=exclude)
        class Customer(Base):
            __tablename__ = "customers"
            id = sa.Column(sa.Integer, primary_key=True)
            name = sa.Column(sa.String(50))
            draft = sa.Column(sa.String(50))

        Base.Customer = Customer
        project.release(Base)
        return Base

    base = release(["draft"])
    project.migrate()
    with recorder() as session:
        session.add(base.Customer(id=1, name="Ada", draft="old"))
        session.commit()
    base = release([])
    assert project.migrate().count("op.renew_history(") == 1
    with recorder() as session:
        check_history(session, base.Customer)
        session.get(base.Customer, 1).name = "Ida"
        session.commit()
        changes = get_resource_changes(base.Customer, session=session, filter_fields=["draft"])
        assert not changes
        check_history(session, base.Customer)


@pytest.mark.spread
@pytest.mark.parametrize(
    "line",
    [
        "op.backfill_history('customers', histroy_table='x')",
        "op.rename_tracked_column('customers', 'name', 'title', shema='x')",
        "op.backfill_history('customers', key='id')",
        "op.backfill_history('customers', key=['name'])",
        "op.renew_history('customers', columns=['nobody'])",
        "op.backfill_history('customers', at=datetime(2999, 1, 1, tzinfo=UTC))",
        "op.renew_history('customers', at=datetime(2999, 1, 1, tzinfo=UTC))",
        "op.create_history_table('others', sa.Column('id', sa.Integer), key=[])",
        "op.create_history_table('others', *[sa.Column('id', sa.Integer)] * 2, key=['id'])",
        "op.create_history_table('others', sa.Column('id', sa.Integer), key=['id'], schema='nowhere')",
        "op.create_history_table('others', sa.Column('id', sa.Integer), key=['id'], history_table='h' * 100_000)",
        "op.rename_tracked_table('customers', '')",
        "op.rename_tracked_table('customers', 'c' * 100_000)",
        "op.rename_tracked_column('customers', 'name', '')",
        "op.rename_tracked_column('customers', 'name', 'n' * 100_000)",
    ],
)
def test_what_makes_no_sense_is_refused(project, recorder, line):
    base = begin(project, recorder, models())
    project.write(f"from datetime import UTC, datetime\n{line}")
    with pytest.raises(SQLAuditError):
        project.upgrade()
    with recorder() as session:
        assert told(session, base.Customer, "name") == [("insert", "Ada")]
        check_history(session, base.Customer)


def test_a_column_of_the_key_is_not_dropped_though_its_live_table_is_gone(project, engine):
    project.release(models())
    project.migrate()
    project.write("op.drop_table('customers')")
    project.upgrade()
    project.write("op.drop_history_column('customers', 'id')")
    with pytest.raises(SQLAuditError, match="belongs to the key of 'customers_history'"):
        project.upgrade()
    assert sa.inspect(engine).get_pk_constraint("customers_history")["constrained_columns"] == ["id", "audit_version"]


# --- migrations that fail, and tables that are older than the server's defaults ----------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "op.create_history_table('others', sa.Column('id', sa.Integer), key=['id'])",
        "op.create_history_table('others', sa.Column('id', sa.Integer), key=['id'])\nop.backfill_history('others')",
        "op.rename_tracked_column('customers', 'name', 'title')",
        "op.rename_tracked_table('customers', 'clients')",
        "op.renew_history('customers')",
    ],
)
def test_a_migration_that_fails_leaves_nothing_that_stops_the_next_try(project, recorder, engine, line):
    base = begin(project, recorder, models())
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE others (id INTEGER PRIMARY KEY)")
    project.write(f"{line}\nassert op.get_context().config.attributes.get('may_pass')")
    before = shape_of(engine)
    with pytest.raises(AssertionError):
        project.upgrade()
    assert shape_of(engine) == before
    with recorder() as session:
        assert told(session, base.Customer, "name") == [("insert", "Ada")]
        check_history(session, base.Customer)
    project.config.attributes["may_pass"] = True
    project.upgrade()


def shape_of(engine: sa.Engine) -> dict[str, Any]:
    inspector = sa.inspect(engine)
    return {
        name: (
            [column["name"] for column in inspector.get_columns(name)],
            sorted(str(index["name"]) for index in inspector.get_indexes(name)),
        )
        for name in inspector.get_table_names()
    }


@pytest.mark.requires("case_insensitive")
@pytest.mark.parametrize("how", ["create_all", "migration", "script"])
@pytest.mark.parametrize("collation", ["utf8mb4_unicode_ci", "utf8mb4_bin", "utf8mb4_general_ci", "latin1_swedish_ci"])
def test_history_has_the_collations_of_a_table_that_is_older_than_the_servers_defaults(
    project, recorder, engine, capsys, collation, how
):
    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Product(Base):
        __tablename__ = "products"
        code = sa.Column(sa.String(20), primary_key=True)
        name = sa.Column(sa.String(50))
        other = sa.Column(sa.String(50))

    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE products (code VARCHAR(20) NOT NULL PRIMARY KEY, name VARCHAR(50), "
            f"other VARCHAR(50) COLLATE utf8mb4_czech_ci) COLLATE {collation}"
        )
        connection.exec_driver_sql("INSERT INTO products VALUES ('old', 'é', 'č')")
    project.release(Base)
    if how == "create_all":
        Base.metadata.create_all(engine)
    else:
        project.autogenerate()
        run_as_sql(project, capsys) if how == "script" else project.upgrade()
    given = sa.text(
        "SELECT column_name, collation_name, is_nullable FROM information_schema.columns "
        "WHERE table_schema = DATABASE() AND table_name = :name AND column_name IN ('code', 'name', 'other')"
    )
    with engine.connect() as connection:
        assert {*connection.execute(given, {"name": "products_history"})} == {
            *connection.execute(given, {"name": "products"})
        }
    is_binary = collation.endswith("bin")
    with recorder() as session:
        session.add_all([Product(code="q", name="1")] + [Product(code="Q", name="2")] * is_binary)
        session.get_one(Product, "old").name = "É"
        session.commit()
        session.execute(sa.update(Product).where(Product.code == "q").values(other="Č"))
        session.commit()
        session.delete(session.get_one(Product, "q"))
        session.commit()
        check_history(session, Product)
        assert len(versions_of(session, Product, "q")) == 3


@pytest.mark.requires("case_insensitive")
def test_rows_with_dates_that_a_session_may_not_write_are_changed_and_recorded(project, recorder, engine):
    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Person(Base):
        __tablename__ = "persons"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(20))
        born = sa.Column(sa.Date)
        seen = sa.Column(sa.DateTime)

    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET sql_mode = 'ALLOW_INVALID_DATES'")
        connection.exec_driver_sql(
            "INSERT INTO persons (born, seen) VALUES ('0000-00-00', '0000-00-00'), ('2020-00-00', NULL), "
            "('2020-02-31', '2020-02-31 01:00:00')"
        )
        connection.commit()
        connection.invalidate()  # with its mode
    project.release(Base)
    project.write("op.renew_history('persons')")
    strict = sa.text("SET sql_mode = 'TRADITIONAL,NO_ZERO_DATE,NO_ZERO_IN_DATE'")
    with recorder() as session:
        session.execute(strict)
        for id in (1, 2, 3):
            session.execute(sa.update(Person).where(Person.id == id).values(name="a"))
        session.commit()
        session.execute(strict)
        session.execute(sa.update(Person).values(name="b"))
        session.commit()
        session.execute(strict)
        session.execute(sa.delete(Person).where(Person.id == 1))
        session.commit()
        past = sa.text("SELECT CAST(born AS CHAR) FROM persons_history WHERE id = :id ORDER BY audit_version")
        assert session.scalars(past, {"id": 1}).all() == ["0000-00-00"] * 4
        assert session.scalars(past, {"id": 2}).all() == ["2020-00-00"] * 3
        assert session.scalars(past, {"id": 3}).all() == ["2020-02-31"] * 3
        assert session.scalar(sa.text("SELECT @@sql_mode")).startswith("STRICT")
        session.rollback()
        session.connection().invalidate()
    project.upgrade()


# --- history is wide enough for its past -------------------------------------------------------------------------

OLD_DAY, NEW_DAY = datetime.fromisoformat("2024-01-01 13:30"), date(2024, 1, 2)
AWARE, LATER = (OLD_DAY.replace(day=day, tzinfo=UTC) for day in (1, 2))
NEXT_DAY, MYSQL = LATER.replace(tzinfo=None), ("mysql", "mariadb")
ADDRESS = ip_address("10.0.0.9")
BIT = getattr(postgresql, "BitString", str)  # of SQLAlchemy 2.1
VARBINARY = sa.LargeBinary().with_variant(mysql.VARBINARY(10), *MYSQL)
CHANGES: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "shorter text": (sa.String(50), "x" * 40, "short", sa.String(10), "brief"),
    "text of a length": (sa.Text(), "x" * 40, "short", sa.String(10), "brief"),
    "smaller scale": (sa.Numeric(10, 4), Decimal("1.2345"), Decimal(2), sa.Numeric(10, 2), Decimal("12345678.90")),
    "whole numbers": (sa.Numeric(6, 2), Decimal("1.25"), Decimal(2), sa.BigInteger(), 2**60),
    "smaller number": (sa.BigInteger(), 2**40, 2, sa.Integer(), 3),
    "larger number": (sa.Integer(), 2**30, 2, sa.BigInteger(), 2**60),
    "instant to date": (sa.DateTime(), OLD_DAY, datetime.fromisoformat("2024-01-02"), sa.Date(), NEW_DAY),
    "date to instant": (sa.Date(), NEW_DAY, date(2024, 1, 3), sa.DateTime(), OLD_DAY),
    "number to text": (sa.Integer(), 2**30, 2, sa.String(3), "abc"),
    "shorter bytes": (sa.LargeBinary(), b"\xff" * 40, b"s", VARBINARY, b"brief"),
    "smaller text": (sa.Text().with_variant(mysql.LONGTEXT(), *MYSQL), "x" * 70000, "short", sa.Text(), "brief"),
    "smaller bytes": (
        sa.LargeBinary().with_variant(mysql.LONGBLOB(), *MYSQL),
        b"\xff" * 70000,
        b"s",
        sa.LargeBinary(),
        b"brief",
    ),
}


@pytest.mark.parametrize("turn", [0, 1] if EFFORT > 1 else [0])
@pytest.mark.parametrize("case", CHANGES)
def test_the_type_of_a_live_column_changes_and_history_holds_what_it_held(project, recorder, engine, case, turn):
    """In every second case in batch mode; with more effort, each in both ways."""
    before, first, fitting, after, last = CHANGES[case]
    batch = engine.dialect.name == "sqlite" or (list(CHANGES).index(case) + turn) % 2 == 1
    if engine.dialect.name == "sqlite" and (turn == 1 or " to " in case):
        pytest.skip("SQLite alters no column but in batch mode, in which Alembic makes numbers of live dates")
    project.config.attributes["options"] = {"render_as_batch": batch}
    base = begin(project, recorder, models(value=lambda: sa.Column(before)), value=first)
    with recorder() as session:
        session.get(base.Customer, 1).value = fitting
        session.commit()
    held = raw_values(engine)
    later = models(value=lambda: sa.Column(after))
    project.release(later)
    project.migrate()
    assert [value.removesuffix(" 00:00:00") for value in raw_values(engine)[:2]] == [
        value.removesuffix(" 00:00:00") for value in held
    ]
    with recorder() as session:
        session.get(later.Customer, 1).value = last
        session.flush()
        session.get(later.Customer, 1).name = "Ida"
        session.commit()
        session.execute(sa.update(later.Customer).values(name="Eda"))
        session.commit()
        assert [version.value for version in versions_of(session, later.Customer, 1)][2:] == [last, last]
        assert session.scalars(as_of(later.Customer, datetime.now(UTC))).one().value == last
        is_restored_or_refused(session, later.Customer)
        check_history(session, later.Customer)
    held = raw_values(engine)
    if case not in ("larger number", "date to instant", "number to text", "whole numbers", "smaller scale"):
        project.downgrade()  # the live rows fit, and history is left as wide as it is
        assert raw_values(engine) == held


def is_restored_or_refused(session: orm.Session, model: Any) -> None:
    """Restore the first version of a row: it is as it was then, or nothing of it is written."""
    first = versions_of(session, model, 1)[0].value
    try:
        restore(session, model, 1, at=1)
    except QueryError as error:
        assert "as its value in its version 1" in str(error)  # noqa: PT017  # some values can be restored
        assert not session.dirty
    session.commit()
    restored = session.get(model, 1)
    assert restored.name == "Eda" or restored.value == first


UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]
KINDS: dict[str, tuple[Any, Any, Any, Any, Any, str]] = {
    "text to number": (sa.String(10), "abc", "7", sa.Integer(), 12, "value::integer"),
    "text to amount": (sa.String(10), "abc", "7.50", sa.Numeric(8, 2), Decimal("1.25"), "value::numeric"),
    "number to truth": (sa.Integer(), 7, 1, sa.Boolean(), False, "value::boolean"),
    "text to date": (sa.String(30), "abc", "2024-01-01", sa.Date(), NEW_DAY, "value::date"),
    "number to instant": (sa.Integer(), 7, 0, sa.DateTime(), OLD_DAY, "to_timestamp(value)"),
    "text to uuid": (sa.String(36), "abc", str(UUIDS[0]), sa.Uuid(), UUIDS[1], "value::uuid"),
    "text to json": (sa.Text(), "abc", "1", sa.JSON(), {"a": 1}, "value::json"),
    "text to bytes": (sa.String(36), "abc", "xyz", sa.LargeBinary(), b"jkl", "convert_to(value, 'utf8')"),
    "bytes to text": (sa.LargeBinary(), b"\xff", b"s", sa.Text(), "brief", "convert_from(value, 'utf8')"),
    "number to float": (sa.BigInteger(), 2**53 + 1, 5, sa.Double(), 2.5, "value::double precision"),
    "json to text": (sa.JSON(), {"a": 1}, {}, sa.Text(), "brief", "value::text"),
    "text to interval": (sa.String(30), "abc", "1 day", sa.Interval(), timedelta(days=-1, hours=5), "value::interval"),
    "text to address": (sa.String(30), "abc", "10.0.0.2", postgresql.INET(), ADDRESS, "value::inet"),
    "text to range": (sa.String(30), "abc", "[1,5)", postgresql.INT8RANGE(), Range(1, 2**40), "value::int8range"),
    "text to numbers": (sa.Text(), "abc", "{1,NULL}", ARRAY(sa.Numeric()), [Decimal("1.5"), None], "value::numeric[]"),
    "text to texts": (sa.String(30), "abc", "{}", ARRAY(sa.Text()), ['a "b", \\', "NULL", ""], "value::text[]"),
    "texts to numbers": (ARRAY(sa.Text()), ["a", None], ["3"], ARRAY(sa.Integer()), [5], "value::integer[]"),
    "numbers to texts": (ARRAY(sa.Integer()), [1, None], [3], ARRAY(sa.Text()), ["x"], "value::text[]"),
    "larger numbers": (ARRAY(sa.Integer()), [1, None], [3], ARRAY(sa.BigInteger()), [2**40], "value::bigint[]"),
    "smaller numbers": (ARRAY(sa.BigInteger()), [2**40], [3], ARRAY(sa.Integer()), [5], "value::integer[]"),
    "fewer bits": (postgresql.BIT(5), "10101", "11100", postgresql.BIT(3), "101", "value::bit(3)"),
    "json to binary": (postgresql.JSON(), {"b": 1, "a": 2.5}, {}, postgresql.JSONB(), {"c": 1}, "value::jsonb"),
    "json of binary": (postgresql.JSONB(), {"b": 1, "a": 2.5}, {}, postgresql.JSON(), {"c": 1}, "value::json"),
    "without a zone": (sa.DateTime(timezone=True), AWARE, LATER, sa.DateTime(), OLD_DAY, "value AT TIME ZONE 'UTC'"),
    "with a zone": (sa.DateTime(), OLD_DAY, NEXT_DAY, sa.DateTime(timezone=True), AWARE, "value AT TIME ZONE 'UTC'"),
    "date with a zone": (sa.Date(), NEW_DAY, date(2024, 1, 3), sa.DateTime(timezone=True), AWARE, "value::timestamptz"),
}
ZONES = ("with a zone", "without a zone", "date with a zone")
ONLY_POSTGRESQL = (*ZONES, "text to uuid", "number to instant", "text to interval")
"""Kinds that other databases have, too, but can't convert live rows to."""
"""Which of PostgreSQL's expressions converts what the live column holds; history is not converted."""


EARLIER = {
    "text to bytes": ("abc", b"abc"),
    "bytes to text": ("\\xff", b"\xff"),
    "json to text": ('{"a": 1}',),
    "texts to numbers": ("{a,NULL}",),
    "numbers to texts": (["1", None],),
    "with a zone": (AWARE,),
    "date with a zone": (AWARE.replace(day=2, hour=0, minute=0),),
    "without a zone": (OLD_DAY,),
    "fewer bits": (BIT("10101"),),
}
"""How the first value is read afterwards, where it is not as it was, or its text."""


@pytest.mark.parametrize("case", KINDS)
def test_a_live_column_becomes_of_another_kind(project, recorder, engine, case):
    before, first, fitting, after, last, using = KINDS[case]
    is_postgresqls = any(type(each).__module__.startswith(postgresql.__name__) for each in (before, after))
    if (case in ONLY_POSTGRESQL or is_postgresqls) and engine.dialect.name != "postgresql":
        pytest.skip("its live rows can't be converted by a change of the column's type")
    if engine.dialect.name == "sqlite":
        pytest.skip("to SQLite, a column is of every kind")
    base = begin(project, recorder, models(value=lambda: sa.Column(before)), value=first)
    with recorder() as session:
        session.get(base.Customer, 1).value = fitting
        session.add(base.Customer(id=2, name="Bo", value=first))  # which the migration makes fitting
        session.commit()
    later = models(value=lambda: sa.Column(after))
    project.release(later)
    project.autogenerate()
    path = Path(ScriptDirectory.from_config(project.config).get_revision("head").path)
    up, down, rest = path.read_text(encoding="utf-8").partition("def downgrade")
    alter = re.compile(r"op\.alter_column\('customers', 'value',.*?nullable=True", re.DOTALL)
    up = alter.sub(lambda found: f'{found[0]}, postgresql_using="{using}"', up)
    cleaning = "UPDATE customers SET value = (SELECT value FROM (SELECT value FROM customers WHERE id = 1) AS fitting)"
    up = up.replace("def upgrade():\n", f"def upgrade():\n    op.execute({cleaning!r})\n")
    path.write_text(up + down + rest, encoding="utf-8")
    project.upgrade()
    command.check(project.config)
    with recorder() as session:
        session.get(later.Customer, 2).name = "Bob"
        session.commit()
        session.get(later.Customer, 1).value = last
        session.flush()
        session.get(later.Customer, 1).name = "Ida"
        session.commit()
        for statement in (
            sa.update(later.Customer).values(name="Eda"),
            upsert(session, later.Customer, {"name": "Uma"}, "id").values(id=1, name="Uma", value=last),
            upsert(session, later.Customer, {"name": "Uma"}, "id").values(id=1, name="Uma", value=last),
        ):
            session.execute(statement)
            session.commit()
        versions = versions_of(session, later.Customer, 1)
        assert versions[0].value in EARLIER.get(case, (first, str(first), bool(first)))
        assert [(each.name, each.value) for each in versions[2:]] == [
            ("Ida", last),
            ("Eda", last),
            ("Uma", last),
        ]
        when = datetime.now(UTC)
        assert session.scalars(as_of(later.Customer, when).where(later.Customer.id == 1)).one().value == last
        check_history(session, later.Customer)
        session.execute(sa.update(later.Customer).values(name="Eda"))
        session.commit()
        is_restored_or_refused(session, later.Customer)
        check_history(session, later.Customer)
        session.delete(session.get(later.Customer, 1))
        session.commit()
        check_history(session, later.Customer)


@pytest.mark.parametrize(
    ("before", "after", "value", "conversion"),
    [
        (sa.String(10), sa.String(100), "x" * 50, "value"),
        (sa.Integer(), sa.BigInteger(), 2**40, "value"),
        (sa.Integer(), sa.String(50), "x" * 50, "value::text"),
    ],
    ids=["longer", "greater", "of_another_kind"],
)
@pytest.mark.parametrize("write", ["flush", "bulk"])
def test_a_live_column_that_alone_was_changed_by_hand_is_told_with_the_remedy(
    project, recorder, engine, before, after, value, conversion, write
):
    begin(project, recorder, models(value=lambda: sa.Column(before)))
    types = f"type_=sa.{after!r}, existing_type=sa.{before!r}, postgresql_using={conversion!r}"
    project.write(f"with op.batch_alter_table('customers') as batch:\n    batch.alter_column('value', {types})")
    project.upgrade()
    later = models(value=lambda: sa.Column(after))
    project.release(later)

    def give_value() -> None:
        with recorder() as session:
            if write == "flush":
                session.get(later.Customer, 1).value = value
            else:
                session.execute(sa.update(later.Customer).values(value=value))
            session.commit()

    if engine.dialect.name != "sqlite":  # which minds no types
        with pytest.raises(HistoryTableError, match="'customers_history' cannot hold the values of its column"):
            give_value()
        project.config.attributes["options"] = {"render_as_batch": True}
        project.migrate()
    give_value()
    with recorder() as session:
        assert told(session, later.Customer, "value")[-1] == ("update", value)
        check_history(session, later.Customer)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (sa.String(10), sa.Integer()),
        (sa.Integer(), sa.String(10)),
        (sa.String(50), sa.Uuid()),
        (sa.DateTime(), sa.Date()),
        (sa.Double(), sa.Numeric(10, 2)),
    ],
)
def test_a_key_that_becomes_of_another_kind_is_refused(project, before, after):
    project.config.attributes["options"] = {"render_as_batch": True}
    for key in (before, after):
        base = models(id=lambda key=key: sa.Column(key, primary_key=True, autoincrement=False))
        project.release(base)
        if key is before:
            project.migrate()
    with pytest.raises(SQLAuditError, match=r"key 'id' of 'customers' changes from .* Add a new tracked table"):
        project.autogenerate()


def test_instants_that_get_a_zone_are_in_utc_whatever_the_session_has(project, recorder, engine, database):
    if engine.dialect.name != "postgresql":
        pytest.skip("others have no time zones")
    begin(project, recorder, models(value=lambda: sa.Column(sa.DateTime())), value=OLD_DAY)
    later = models(value=lambda: sa.Column(sa.DateTime(timezone=True)))
    project.release(later)
    text = project.autogenerate()
    assert "postgresql_using=\"value AT TIME ZONE 'UTC'\"" in text
    with engine.begin() as connection:
        name = connection.dialect.identifier_preparer.quote(connection.engine.url.database)
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    engine.dispose()
    try:
        project.upgrade()
        with recorder() as session:
            assert versions_of(session, later.Customer, 1)[0].value == AWARE
        project.downgrade()
        assert raw_values(engine) == [str(OLD_DAY)]
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} RESET timezone")
        engine.dispose()


UNSIGNED = mysql.INTEGER(unsigned=True)
MARIADB, POSTGRESQL, SQLITE = (
    sa.make_url("mariadb+pymysql://"),
    sa.make_url("postgresql+psycopg://"),
    sa.make_url("sqlite://"),
)
WIDENINGS: list[tuple[sa.URL, Any, Any, str | None]] = [
    (MARIADB, mysql.LONGTEXT(), sa.Text(), None),
    (MARIADB, mysql.TEXT(), sa.Text(), None),
    (MARIADB, sa.String(100), mysql.MEDIUMTEXT(), "MEDIUMTEXT"),
    (MARIADB, mysql.LONGTEXT(), sa.Float(), None),
    (MARIADB, mysql.LONGBLOB(), mysql.VARBINARY(10), None),
    (MARIADB, mysql.BLOB(), sa.Text(), "LONGBLOB"),
    (MARIADB, sa.String(10), sa.LargeBinary(), "LONGBLOB"),
    (MARIADB, mysql.BIT(16), sa.Integer(), "INTEGER"),
    (MARIADB, mysql.BIT(4), mysql.BIT(16), "BIT(16)"),
    (MARIADB, mysql.BIT(16), mysql.BIT(4), None),
    (MARIADB, mysql.BIT(64), sa.Integer(), "NUMERIC(20, 0)"),
    (MARIADB, mysql.BIT(16), sa.Text(), "LONGBLOB"),
    (MARIADB, UNSIGNED, sa.Integer(), "BIGINT"),
    (MARIADB, mysql.FLOAT(), sa.Double(), "DOUBLE"),
    (MARIADB, mysql.DOUBLE(), sa.Float(), None),
    (MARIADB, mysql.DATETIME(fsp=6), sa.DateTime(), None),
    (MARIADB, mysql.DATETIME(), mysql.DATETIME(fsp=6), "DATETIME(6)"),
    (MARIADB, mysql.TIMESTAMP(fsp=3), sa.DateTime(), "DATETIME(3)"),
    (MARIADB, mysql.DATETIME(), mysql.TIMESTAMP(fsp=3), "DATETIME(3)"),
    (MARIADB, mysql.SET("a", "b"), sa.String(2), "LONGTEXT"),
    (MARIADB, sa.Numeric(10, 0), sa.Numeric(), None),
    (POSTGRESQL, sa.Text(), sa.String(10), None),
    (POSTGRESQL, sa.String(5), sa.CHAR(10), "VARCHAR(10)"),
    (POSTGRESQL, sa.CHAR(10), sa.String(5), "VARCHAR(10)"),
    (POSTGRESQL, postgresql.TIME(precision=0), postgresql.TIME(precision=6), "TIME(6) WITHOUT TIME ZONE"),
    (POSTGRESQL, postgresql.TIMESTAMP(precision=6), postgresql.TIMESTAMP(precision=0), None),
    (POSTGRESQL, sa.REAL(), sa.Double(), "DOUBLE PRECISION"),
    (POSTGRESQL, sa.Double(), sa.REAL(), None),
    (POSTGRESQL, postgresql.JSON(), postgresql.JSONB(), None),
    (POSTGRESQL, postgresql.JSONB(), sa.JSON(), "JSON"),
    (POSTGRESQL, postgresql.BIT(3, varying=True), postgresql.BIT(3), None),
    (SQLITE, sa.LargeBinary(), sa.Text(), None),
    (SQLITE, sa.String(5), sa.Integer(), None),
    (SQLITE, sa.Integer(), sa.Float(), None),
    (SQLITE, sa.Float(), sa.BigInteger(), "NUMERIC"),
    (SQLITE, sa.Numeric(10, 4), sa.String(3), "TEXT"),
]


@pytest.mark.parametrize(("url", "existing", "wanted", "expected"), WIDENINGS)
@pytest.mark.spread
def test_history_gets_no_narrower_and_is_asked_once(url, existing, wanted, expected):
    dialect = url.get_dialect()()
    wide = wide_enough(existing, wanted, dialect)
    assert (wide and dialect.type_compiler_instance.process(wide)) == expected
    assert wide is None or wide_enough(wide, wanted, dialect) is None


def raw_values(engine: sa.Engine) -> list[str]:
    statement = "SELECT value FROM customers_history ORDER BY audit_version"
    with engine.connect() as connection:
        return [
            str(value.normalize() if isinstance(value, Decimal) else value)
            for value in connection.scalars(sa.text(statement))
        ]


@pytest.mark.requires("case_insensitive")
@pytest.mark.parametrize("mode", ["", "STRICT_TRANS_TABLES"])
def test_an_enum_that_loses_a_value_and_gets_another_has_all_of_them_in_history(project, recorder, engine, mode):
    begin(project, recorder, models(kind=lambda: sa.Column(sa.Enum("old", "new"))), kind="old")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE customers SET kind = 'new'")
    later = models(kind=lambda: sa.Column(sa.Enum("new", "newer")))
    project.release(later)
    project.migrate()
    with recorder() as session:
        session.execute(sa.text("SET sql_mode = :mode"), {"mode": mode})
        session.get(later.Customer, 1).kind = "newer"
        session.commit()
        versions = versions_of(session, later.Customer, 1)
        assert (versions[0].kind, versions[-1].kind) == ("old", "newer")
        session.connection().invalidate()


@pytest.mark.requires("enum_types")
def test_a_value_is_taken_out_of_an_enum_as_the_documentation_says(project, recorder, engine):
    class Before(enum.Enum):
        draft, legacy, live = range(3)

    class After(enum.Enum):
        draft, live = 0, 2

    base = begin(project, recorder, models(state=lambda: sa.Column(sa.Enum(Before, name="state"))), state=Before.legacy)
    with recorder() as session:
        session.get(base.Customer, 1).state = Before.live
        session.commit()
    page = (Path(__file__).parents[2] / "docs" / "migrations.md").read_text()
    (recipe,) = re.findall(r"def upgrade\(\):\n((?:    .*\n)*?    op\.execute\(\"DROP TYPE.*\n)", page)
    project.write(textwrap.dedent(recipe))
    project.upgrade()
    later = models(state=lambda: sa.Column(sa.Enum(After, name="state")))
    project.release(later)
    command.check(project.config)
    with recorder() as session:
        session.get(later.Customer, 1).state = After.draft
        session.commit()
        assert [v.state for v in versions_of(session, later.Customer, 1)] == ["legacy", After.live, After.draft]
        found = session.scalars(as_of(later.Customer, datetime.now(UTC)).where(later.Customer.state == After.draft))
        assert found.one().name == "Ada"
        check_history(session, later.Customer)


# --- append-only histories --------------------------------------------------------------------------------------


def append_only_models(**columns: Callable[[], Any]) -> Any:
    base = models(track=False, **columns)
    track_table(append_only=True)(base.Customer)
    return base


def is_protected(engine: sa.Engine, history: str = "customers_history", **columns: Any) -> bool:
    """Return whether the database refuses a change of each of the columns, and a deletion."""
    history_table = sa.table(history, *map(sa.column, columns))
    rewrites = [sa.update(history_table).values({name: value}) for name, value in columns.items()]
    for rewrite in (*rewrites, sa.delete(history_table)):
        with engine.connect() as connection:
            try:
                connection.execute(rewrite, execution_options={"sqlaudit_write": None})
            except sa.exc.DBAPIError as error:
                if "append-only" not in str(error.orig):
                    raise
            else:
                return False
    return True


def add(recorder, base) -> None:
    with recorder.begin() as session:
        session.add(base.Customer(id=1, name="Ada"))


def edit(recorder, base, **values: Any) -> None:
    with recorder.begin() as session:
        for name, value in values.items():
            setattr(session.get(base.Customer, 1), name, value)


def test_a_history_is_protected_from_its_first_migration_on_and_with_each_column(project, recorder, engine):
    base = append_only_models()
    project.release(base)
    assert "op.protect_history('customers')" in project.migrate()
    add(recorder, base)
    edit(recorder, base, name="changed")
    assert is_protected(engine, name="Eve", audit_reason="none")

    later = append_only_models(country=lambda: sa.Column(sa.String(20), server_default="CH"))
    project.release(later)
    text = project.migrate()
    assert ("op.protect_history('customers')" in text) == (engine.dialect.name != "postgresql")
    edit(recorder, later, country="IT")
    assert is_protected(engine, name="Eve", country="AT")

    project.downgrade()
    project.release(base)
    edit(recorder, base, name="again")
    assert is_protected(engine, name="Eve")
    project.downgrade()
    assert not sa.inspect(engine).has_table("customers_history")


def test_a_history_is_protected_later_and_the_downgrade_ends_that(project, recorder, engine):
    project.release(base := models())
    project.migrate()
    add(recorder, base)
    assert not is_protected(engine, name="Eve")
    project.release(base := append_only_models())
    assert project.migrate().count("protect_history") == 2  # one of them in the downgrade
    edit(recorder, base, name="changed")
    assert is_protected(engine, name="Eve")
    project.downgrade()
    assert not is_protected(engine, name="Eve")
    project.upgrade()
    assert is_protected(engine, name="Eve")


def test_a_protection_that_was_lost_is_proposed_again(project, recorder, engine):
    project.release(base := append_only_models())
    project.migrate()
    add(recorder, base)
    project.write("op.unprotect_history('customers')", "op.protect_history('customers')")
    project.upgrade()
    assert not is_protected(engine, name="Eve")
    assert "op.protect_history('customers')" in project.migrate()
    assert is_protected(engine, name="Eve")


def test_a_protection_follows_names_and_columns(project, recorder, engine):
    project.release(base := append_only_models(town=lambda: sa.Column(sa.String(20))))
    project.migrate()
    add(recorder, base)
    project.write("op.rename_tracked_column('customers', 'name', 'title')")
    project.write("with op.batch_alter_table('customers') as batch: batch.drop_column('town')")
    project.write("op.drop_history_column('customers', 'town')")
    project.write("op.rename_tracked_table('customers', 'clients')")
    project.upgrade()
    assert is_protected(engine, "clients_history", title="Eve")

    class Base(orm.DeclarativeBase):
        pass

    @track_table(append_only=True)
    class Client(Base):
        __tablename__ = "clients"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        title: orm.Mapped[str] = orm.mapped_column(sa.String(50))

    releases.append(Base.registry)
    with recorder.begin() as session:
        session.get(Client, 1).title = "changed"
    with engine.connect() as connection:
        history = Base.metadata.tables["clients_history"]
        assert connection.scalar(sa.select(sa.func.count()).select_from(history)) == 2
    project.release(Base)
    command.check(project.config)


def test_a_history_is_protected_by_sql(project, recorder, engine, capsys):
    project.release(base := append_only_models())
    project.migrate()
    project.downgrade()
    script = script_of(project, capsys)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    run_client_script(engine, script)
    add(recorder, base)
    edit(recorder, base, name="changed")
    assert is_protected(engine, name="Eve")
    since = project.head
    project.write(
        "op.unprotect_history('customers')", "op.protect_history('customers', key=['id'], columns=['id', 'name'])"
    )
    run_client_script(engine, script_of(project, capsys, since))
    assert not is_protected(engine, name="Eve")


def run_client_script(engine: sa.Engine, script: str) -> None:
    """Run a script as the client of the database divides it into statements."""
    pattern = r"\s*DELIMITER //\n(.*?)//\nDELIMITER ;|((?:\$sqlaudit\$.*?\$sqlaudit\$|BEGIN SELECT RAISE.*?END|[^;])+);"
    with engine.connect() as connection:
        for match in re.finditer(pattern, script, re.DOTALL):
            statement = (match[1] or match[2]).strip()
            if statement.upper() not in ("", "BEGIN", "COMMIT"):
                connection.exec_driver_sql(statement.replace("%", "%%"))
        connection.commit()
        connection.invalidate()


def test_histories_of_subclasses_links_and_other_names_are_protected(project, recorder, engine):
    class Base(orm.DeclarativeBase):
        pass

    links = sa.Table(
        "animal_owners",
        Base.metadata,
        sa.Column("animal_id", sa.ForeignKey("animals.id"), primary_key=True),
        sa.Column("owner_id", sa.ForeignKey("owners.id"), primary_key=True),
    )
    other_names = AuditColumns(valid_to="true until", version="edition")

    @track_table(append_only=True, history_table_name="animals of old", audit_columns=other_names)
    class Animal(Base):
        __tablename__ = "animals"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(sa.String(20))
        kind: orm.Mapped[str] = orm.mapped_column(sa.String(20))
        owners: orm.Mapped[list[Any]] = orm.relationship("Owner", secondary=links)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Dog(Animal):
        __tablename__ = "dogs"
        id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("animals.id"), primary_key=True)
        tricks: orm.Mapped[int]
        __mapper_args__ = {"polymorphic_identity": "dog"}

    @track_table()
    class Owner(Base):
        __tablename__ = "owners"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    releases.append(Base.registry)
    project.release(Base)
    text = project.migrate()
    assert text.count("op.protect_history(") == 3
    with recorder.begin() as session:
        session.add(Dog(id=1, name="Rex", tricks=1, owners=[Owner(id=1)]))
    with recorder.begin() as session:
        dog = session.get(Dog, 1)
        dog.name, dog.tricks = "Rexy", 2
        dog.owners.clear()
    with recorder() as session:
        check_history(session, Dog)
        check_history(session, links)
    assert is_protected(engine, "animals of old", name="Eve", edition=9)
    assert is_protected(engine, "dogs_history", tricks=9)
    assert is_protected(engine, "animal_owners_history", animal_id=9)
    assert not is_protected(engine, "owners_history", id=9)
    project.downgrade()


@pytest.mark.parametrize("as_sql", [False, True])
def test_what_was_erased_held_and_pruned_follows_a_rename(project, recorder, engine, capsys, as_sql):
    base = models(email=lambda: sa.Column(sa.String(20)))
    maintenance_tables(base.metadata)
    begin(project, recorder, base, email="ada@example.com")
    with recorder() as session:
        session.get(base.Customer, 1).email = "ada@example.org"
        session.add(base.Customer(id=2, name="Bo"))
        session.commit()
        erase(session, base.Customer, 1, fields=["name"], reason="request", values={"name": "-"})
        hold(session, base.Customer, 2, reason="lawsuit")
        session.commit()
    prune(engine, base.Customer, keep_last=1)
    since, options = project.head, ", maintenance=True" if as_sql else ""
    key = ", key=['id']" if as_sql else ""
    project.write(
        f"""
        op.rename_tracked_column('customers', 'name', 'title'{options})
        op.rename_tracked_table('customers', 'clients'{options}{key})
        """,
        """
        op.rename_tracked_table('clients', 'customers')
        op.rename_tracked_column('customers', 'title', 'name')
        """,
    )
    run_as_sql(project, capsys, since) if as_sql else project.upgrade()

    class Base(orm.DeclarativeBase):
        pass

    @track_table()
    class Client(Base):
        __tablename__ = "clients"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        title: orm.Mapped[str] = orm.mapped_column(sa.String(50))
        email: orm.Mapped[str | None] = orm.mapped_column(sa.String(20))

    maintenance_tables(Base.metadata)
    project.release(Base)

    def check(model, name):
        with recorder() as session:
            (version,) = versions_of(session, model, 1)
            assert (getattr(version, name), version.email) == (ERASED, "ada@example.org")
            (erasure,) = erasures(session, model)
            assert (erasure.key, erasure.fields) == (1, (name,))
            assert [each.key for each in holds(session, model)] == [2]
            with pytest.raises(PrunedError):
                session.scalars(as_of(model, version.timestamp - timedelta(days=1))).all()
            assert replay_erasures(session, model, [erasure], values={name: "-"}) == 0
            stale = dataclasses.replace(erasure, fields=("nickname",))
            with pytest.raises(QueryError, match=r"names nickname, which .* does not have"):
                replay_erasures(session, model, [stale])

    check(Client, "title")
    if not as_sql:
        project.downgrade()
        project.release(base)
        check(base.Customer, "name")


def test_erased_values_of_a_subclass_follow_a_rename_of_its_column(project, recorder):
    def release(field: str) -> Any:
        class Base(orm.DeclarativeBase):
            pass

        @track_table(append_only=True)
        class Person(Base):
            __tablename__ = "people"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            kind: orm.Mapped[str] = orm.mapped_column(sa.String(10))
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

        body = {
            "__tablename__": "workers",
            "id": sa.Column(sa.ForeignKey("people.id"), primary_key=True),
            field: sa.Column(sa.Integer),
            "__mapper_args__": {"polymorphic_identity": "worker"},
        }
        Base.Worker = type("Worker", (Person,), body)
        maintenance_tables(Base.metadata)
        releases.append(Base.registry)
        return Base

    base = release("wage")
    project.release(base)
    project.migrate()
    with recorder() as session:
        session.add(base.Worker(id=1, wage=10))
        session.commit()
        erase(session, base.Worker, 1, fields=["wage"], reason="request")
        session.commit()
    project.write("op.rename_tracked_column('workers', 'wage', 'pay')")
    project.upgrade()
    later = release("pay")
    project.release(later)
    with recorder() as session:
        assert versions_of(session, later.Worker, 1)[0].pay is ERASED
        with pytest.raises(sa.exc.DBAPIError):
            session.execute(sa.text("UPDATE people_history SET kind = 'x'"))


def test_a_migration_that_fails_leaves_erasures_under_their_old_names(project, recorder):
    base = models()
    maintenance_tables(base.metadata)
    begin(project, recorder, base)
    with recorder() as session:
        erase(session, base.Customer, 1, fields=["name"], reason="request", values={"name": "-"})
        session.commit()
    project.write(
        """
        op.rename_tracked_column('customers', 'name', 'title')
        op.rename_tracked_table('customers', 'clients')
        op.create_table('others', sa.Column('id', sa.Integer))  # commits on MariaDB
        assert False
        """
    )
    with pytest.raises(AssertionError):
        project.upgrade()
    with recorder() as session:
        assert versions_of(session, base.Customer, 1)[0].name is ERASED
        assert [each.fields for each in erasures(session, base.Customer)] == [("name",)]
