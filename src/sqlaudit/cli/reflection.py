"""What can be read with nothing but a URL? Every history table of the database, through classes made for it.

A history table has all columns of its live table, so the class is made from the history table alone. It can only read:
it knows neither the foreign keys nor the options of the application's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Column, Engine, MetaData, Table, inspect
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import registry

from sqlaudit.decorators import track_table
from sqlaudit.tracking.horizons import read_horizons
from sqlaudit.tracking.maintenance_tables import maintenance_tables
from sqlaudit.tracking.partitions import partitions_in_database
from sqlaudit.tracking.tables import AuditColumns

_SUFFIX: Final = "_history"
_MAINTENANCE: Final = {"sqlaudit_horizons", "sqlaudit_holds", "sqlaudit_erasures"}
"""The tables that say what has been pruned, and what has been erased."""


def reflected_models(engine: Engine) -> list[Any]:
    """Return a tracked class for each history table of the default schema of a database, and of its other schemas."""
    inspector = inspect(engine)
    models = registry()
    with engine.connect() as connection:
        partitions = partitions_in_database(connection)
    schemas = [None, *(name for name in inspector.get_schema_names() if name != inspector.default_schema_name)]
    found = {
        schema: {name: columns for (_, name), columns in inspector.get_multi_columns(schema=schema).items()}
        for schema in (schemas if engine.dialect.name == "postgresql" else [None])
    }
    of_maintenance = [schema for schema, tables in found.items() if tables.keys() >= _MAINTENANCE]
    pruned = _pruned_histories(engine, of_maintenance)
    classes = []
    for schema, columns_by_table in found.items():
        for name, columns in sorted(columns_by_table.items()):
            if _is_history(columns) and (schema or inspector.default_schema_name, name) not in partitions:
                key = inspector.get_pk_constraint(name, schema)["constrained_columns"]
                named = inspector.default_schema_name if schema is None else schema
                own_schema = named if f"{named}.{name}" in pruned else schema  # the models may name the default schema
                model = _reflected_model(models, own_schema, name, columns, key)
                if of_maintenance:
                    maintenance_tables(model.__table__.metadata, schema=of_maintenance[0])
                classes.append(model)
    return classes


def _pruned_histories(engine: Engine, schemas: Sequence[str | None]) -> set[str]:
    """Return the full names of the histories that have been pruned.

    :param schemas: the schemas that have tables of maintenance
    """
    found: set[str] = set()
    for schema in schemas[:1]:
        with engine.connect() as connection, suppress(DBAPIError):  # without the right, reads of the past are refused
            found |= {*read_horizons(connection, maintenance_tables(MetaData(), schema=schema).horizons)}
    return found


def _is_history(columns: list[ReflectedColumn]) -> bool:
    return {name for _, name in AuditColumns().items()} <= {column["name"] for column in columns}


def _reflected_model(
    models: registry, schema: str | None, history: str, columns: list[ReflectedColumn], key: list[str]
) -> type[Any]:
    roles = {name for _, name in AuditColumns().items()}
    live = history.removesuffix(_SUFFIX) or history
    own = [
        Column(column["name"], column["type"], primary_key=column["name"] in key)
        for column in columns
        if column["name"] not in roles and "computed" not in column  # as the guard of the open version on MariaDB is
    ]
    # A table without any relative in a MetaData of its own: the live table may be gone, or have changed since.
    table = Table(live if live != history else f"{history} (live)", MetaData(), *own, schema=schema)
    model = type(live, (), {"__table__": table, "__module__": __name__})
    models.mapped(model)
    return track_table(history_table_name=history, table_label=live)(model)
