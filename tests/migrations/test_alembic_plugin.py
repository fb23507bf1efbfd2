"""The Alembic plugin, driven through Alembic's own autogenerate."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import op as op_of_alembic
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.runtime import plugins
from sqlalchemy import orm
from sqlalchemy.dialects import mysql

import sqlaudit
import sqlaudit_alembic
from sqlaudit.maintenance import maintenance_tables
from sqlaudit_alembic import op


@pytest.fixture
def plugin() -> Iterator[None]:
    sqlaudit_alembic.register()
    sqlaudit_alembic.register()  # an env.py that is run again
    yield
    plugins._all_plugins["sqlaudit"].remove()  # Alembic has no public way to find a plugin


@pytest.fixture
def metadata() -> Iterator[sa.MetaData]:
    """A MetaData that gets its second table when its mapper is configured."""

    class Base(orm.DeclarativeBase):
        pass

    class Link(Base):
        __tablename__ = "link"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    @sa.event.listens_for(Link, "mapper_configured")
    def add_history(mapper: orm.Mapper[Link], _cls: type[Link]) -> None:
        sa.Table("link_history", mapper.local_table.metadata, sa.Column("id", primary_key=True))

    yield Base.metadata
    Base.registry.dispose()


def tables_to_add(metadata: sa.MetaData, *autogenerate_plugins: str) -> list[str]:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"autogenerate_plugins": list(autogenerate_plugins)})
        found = [table.name for _, table in compare_metadata(context, metadata)]
    engine.dispose()
    return sorted(found)


@pytest.mark.usefixtures("plugin")
def test_autogenerate_sees_tables_that_appear_when_mappers_are_configured(metadata):
    assert tables_to_add(metadata, "alembic.autogenerate.*", "sqlaudit") == ["link", "link_history"]


@pytest.mark.usefixtures("plugin")
def test_a_plugin_that_is_not_listed_is_ignored(metadata):
    assert tables_to_add(metadata, "alembic.autogenerate.*") == ["link"]


ALEMBIC = ["alembic.autogenerate.*"]


def tracked_base(base: Any) -> Any:
    """Two models with links between them, whose mappers are not configured."""
    links = sa.Table(
        "links",
        base.metadata,
        sa.Column("left_id", sa.ForeignKey("left.id"), primary_key=True),
        sa.Column("right_id", sa.ForeignKey("right.id"), primary_key=True),
    )

    @sqlaudit.track_table()
    class Left(base):
        __tablename__ = "left"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        rights: orm.Mapped[list["Right"]] = orm.relationship(secondary=links)

    @sqlaudit.track_table()
    class Right(base):
        __tablename__ = "right"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    return base


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("options", [{}, {"autogenerate_plugins": ALEMBIC}, {"compare_type": False}])
@pytest.mark.parametrize("compare", [compare_metadata, produce_migrations])
def test_a_comparison_of_tracked_tables_without_the_plugin_stops_and_names_the_line_to_add(base, options, compare):
    tracked_base(base)
    with sa.create_engine("sqlite://").connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        with pytest.raises(sqlaudit.SQLAuditError, match=r"sqlaudit_alembic\.register\(\).*autogenerate_plugins=\["):
            compare(context, base.metadata)


@pytest.mark.usefixtures("plugin")
def test_a_comparison_without_the_plugin_drops_no_history_of_models_that_were_not_imported(base):
    tracked_base(base)
    with sa.create_engine("sqlite://").connect() as connection:
        base.metadata.create_all(connection)
        context = MigrationContext.configure(connection)
        with pytest.raises(sqlaudit.SQLAuditError, match=r"left_history.*autogenerate_plugins=\["):
            compare_metadata(context, sa.MetaData())


@pytest.mark.usefixtures("plugin")
def test_a_comparison_with_the_plugin_finds_the_history_of_links_though_no_mapper_is_configured(base):
    tracked_base(base)
    with sa.create_engine("sqlite://").connect() as connection:
        base.metadata.create_all(connection)
    other = tracked_base(type("Base", (orm.DeclarativeBase,), {}))
    with sa.create_engine("sqlite://").connect() as connection:
        base.metadata.create_all(connection)
        options = {"autogenerate_plugins": [*ALEMBIC, "sqlaudit"]}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), other.metadata) == []
    other.registry.dispose()


@pytest.mark.usefixtures("plugin")
def test_a_log_of_autogenerate_tells_of_no_history_that_is_removed(base, caplog):
    tracked_base(base)
    options = {"autogenerate_plugins": [*ALEMBIC, "sqlaudit"]}
    with sa.create_engine("sqlite://").connect() as connection:
        base.metadata.create_all(connection)
        for column in ("old", "older"):
            connection.exec_driver_sql(f"ALTER TABLE left_history ADD COLUMN {column} VARCHAR(5) NOT NULL DEFAULT ''")
        connection.exec_driver_sql("CREATE TABLE gone_history AS SELECT * FROM left_history")
        caplog.set_level("INFO")
        found = produce_migrations(MigrationContext.configure(connection, opts=options), base.metadata)
    assert not [record.getMessage() for record in caplog.records if "removed" in record.getMessage()]
    text = render_python_code(found.upgrade_ops)
    assert (text.count("nullable=True"), "drop" in text) == (2, False)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("declare", [sqlaudit.marks_table, maintenance_tables])
def test_a_revision_creates_the_tables_that_are_declared_with_types_of_sqlalchemy_alone(base, declare):
    tracked_base(base)
    declare(base.metadata)
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"autogenerate_plugins": [*ALEMBIC, "sqlaudit"]})
        code = render_python_code(produce_migrations(context, base.metadata).upgrade_ops)
        exec(f"if True:\n{code}", {"op": Operations(context), "sa": sa, "mysql": mysql})
        assert compare_metadata(context, base.metadata) == []
    assert set(sa.inspect(engine).get_table_names()) == {table.name for table in base.metadata.tables.values()}
    engine.dispose()


LATE = """
import sqlalchemy as sa
from sqlalchemy import orm
{before}
import sqlaudit

class Base(orm.DeclarativeBase):
    pass

@sqlaudit.track_table()
class Customer(Base):
    __tablename__ = "customers"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

import sys
assert ("alembic" in sys.modules) == bool({before!r})
with sa.create_engine("sqlite://").connect() as connection:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    try:
        compare_metadata(MigrationContext.configure(connection), Base.metadata)
    except sqlaudit.SQLAuditError as error:
        print(error)
"""


@pytest.mark.parametrize("before", ["", "import alembic.command", "import alembic"])
def test_a_program_that_never_imports_the_plugin_is_stopped_whenever_it_imports_alembic(before):
    program = LATE.format(before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'autogenerate_plugins=["alembic.autogenerate.*", "sqlaudit"]' in done.stdout


def test_the_op_that_type_checkers_know_is_that_of_alembic():
    assert {*dir(op)} >= {"create_history_table", "rename_tracked_table", "add_column", "batch_alter_table"}
    with pytest.raises(AttributeError, match="no_such_operation"):
        op.no_such_operation("pets")
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection, Operations.context(MigrationContext.configure(connection)):
        op.create_table("pets", sa.Column("id", sa.Integer, primary_key=True))
        op.create_history_table("pets", sa.Column("id", sa.Integer), key=["id"])
        with op.batch_alter_table("pets") as batch:
            batch.add_column(sa.Column("name", sa.String(10)))
        op_of_alembic.rename_tracked_table("pets", "animals")
        assert op.get_bind() is connection
        assert sa.inspect(connection).get_table_names() == ["animals", "animals_history"]
    engine.dispose()


REVISION = """
import sys
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

import sqlaudit_alembic  # env.py

assert "sqlaudit_alembic.op" not in sys.modules
with sa.create_engine("sqlite://").connect() as connection:
    with Operations.context(MigrationContext.configure(connection)):
        from sqlaudit_alembic import op  # the first revision

        op.create_table("pets", sa.Column("id", sa.Integer, primary_key=True))
        op.create_history_table("pets", sa.Column("id", sa.Integer), key=["id"])
    print(sa.inspect(connection).get_table_names())
"""


def test_the_first_revision_may_import_the_op_while_a_migration_runs():
    """Alembic loads a revision when it runs it, so nothing has imported the module before."""
    done = subprocess.run([sys.executable, "-c", REVISION], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['pets', 'pets_history']\n", "")
