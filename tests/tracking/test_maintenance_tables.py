"""The tables of maintenance are there for those who declare them, and everyone else is told how."""

import pytest
import sqlalchemy as sa

from sqlaudit import QueryError, TrackingError
from sqlaudit.maintenance import maintenance_tables
from sqlaudit.tracking.maintenance_tables import maintenance_tables_of, required_maintenance_tables

NAMES = {"sqlaudit_horizons", "sqlaudit_holds"}


def test_a_metadata_has_the_tables_once_they_are_declared():
    metadata = sa.MetaData()
    assert maintenance_tables_of(metadata) is None
    made = maintenance_tables(metadata)
    assert set(metadata.tables) >= NAMES
    assert maintenance_tables(metadata) is made is maintenance_tables_of(metadata)
    metadata.clear()
    assert maintenance_tables_of(metadata) is None
    assert maintenance_tables(metadata).horizons.fullname == "sqlaudit_horizons"


@pytest.mark.no_tables
@pytest.mark.parametrize("given", ["argument", "metadata"])
def test_the_tables_may_be_in_another_schema(engine, database, given):
    schema = database.other_schema
    metadata = sa.MetaData(schema=schema if given == "metadata" else None)
    made = maintenance_tables(metadata, schema=schema if given == "argument" else None)
    assert made.holds.fullname == f"{schema}.sqlaudit_holds"
    metadata.create_all(engine)
    assert set(sa.inspect(engine).get_table_names(schema=schema)) >= NAMES
    with engine.connect() as connection:
        assert required_maintenance_tables(connection, metadata, "prune()") is made


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_table_of_the_user_keeps_its_name(name):
    metadata = sa.MetaData()
    sa.Table(name, metadata)
    with pytest.raises(TrackingError, match=f"'{name}', and a table of this name exists already. Give another schema"):
        maintenance_tables(metadata)
    assert set(metadata.tables) == {name}


@pytest.mark.no_tables
def test_what_needs_the_tables_says_how_to_get_them(engine):
    metadata = sa.MetaData()
    with engine.connect() as connection:
        with pytest.raises(QueryError, match=r"prune\(\) needs .* Write maintenance_tables\(Base.metadata\) next to"):
            required_maintenance_tables(connection, metadata, "prune()")
        maintenance_tables(metadata)
        with pytest.raises(QueryError, match=r"the database lacks: .*'sqlaudit_holds'.*create_all"):
            required_maintenance_tables(connection, metadata, "prune()")
    metadata.create_all(engine)
    with engine.connect() as connection:
        assert required_maintenance_tables(connection, metadata, "prune()") is maintenance_tables_of(metadata)
