"""The Alembic plugin, driven through Alembic's own autogenerate."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.runtime import plugins
from sqlalchemy import orm

import sqlaudit
import sqlaudit_alembic


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


def test_a_revision_that_was_written_without_the_plugin_says_what_is_missing(base):
    @sqlaudit.track_table()
    class Customer(base):
        __tablename__ = "customers"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    with sa.create_engine("sqlite://").connect() as connection:
        revision = produce_migrations(MigrationContext.configure(connection), base.metadata)
        text = render_python_code(revision.upgrade_ops)
    with pytest.raises(SyntaxError) as error:
        compile(f"def upgrade():\n    {text}", "revision.py", "exec")
    assert "let env.py call sqlaudit_alembic.register()" in str(error.value.text)
