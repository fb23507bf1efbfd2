"""What can be read with nothing but a URL? Every history table of the database, through classes made for it.

A history table has all columns of its live table, so the class is made from the history table alone. It can only read:
it knows neither the foreign keys nor the options of the application's model.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Engine, MetaData, Table, inspect
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.orm import registry

from sqlaudit.decorators import track_table
from sqlaudit.tracking.partitions import partitions_in_database
from sqlaudit.tracking.tables import AuditColumns

_SUFFIX: Final = "_history"


def reflected_models(engine: Engine) -> list[Any]:
    """Return a tracked class for each history table of the default schema of a database, and of its other schemas."""
    inspector = inspect(engine)
    models = registry()
    with engine.connect() as connection:
        partitions = partitions_in_database(connection)
    schemas = [None, *(name for name in inspector.get_schema_names() if name != inspector.default_schema_name)]
    classes = []
    for schema in schemas if engine.dialect.name == "postgresql" else [None]:
        columns_by_table = inspector.get_multi_columns(schema=schema)
        for (_, name), columns in sorted(columns_by_table.items(), key=lambda item: item[0][1]):
            if _is_history(columns) and (schema or inspector.default_schema_name, name) not in partitions:
                key = inspector.get_pk_constraint(name, schema)["constrained_columns"]
                classes.append(_reflected_model(models, schema, name, columns, key))
    return classes


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
