"""How are histories protected by a migration, and how does a protection follow the columns and names of its table?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic.operations.base import Operations
from sqlalchemy import MetaData, Table
from sqlalchemy.schema import ExecutableDDLElement

from sqlaudit import SQLAuditError
from sqlaudit.sql.dialects import MYSQL
from sqlaudit.tracking.protection import (
    CreateTrigger,
    Protection,
    maintainers_in,
    protecting,
    protects_by_column,
    triggers_in_database,
    unprotecting,
)
from sqlaudit.tracking.tables import guard_name_for
from sqlaudit_alembic.inspection import columns_of, created, inspector_of, key_of, need_history
from sqlaudit_alembic.ops import Place, ProtectHistoryOp, UnprotectHistoryOp


@Operations.implementation_for(ProtectHistoryOp)
def protect_history(operations: Operations, operation: ProtectHistoryOp) -> None:
    need_history(inspector_of(operations), operation.place)
    if operation.maintainers and operations.get_context().dialect.name not in MYSQL:
        maintainers = ", ".join(operation.maintainers)
        raise SQLAuditError(
            f"This database knows maintainers by their rights. Leave maintainers={[*operation.maintainers]!r} out, and "
            f"GRANT TRIGGER ON {operation.place.history} TO {maintainers}.",
            operation,
        )
    protection = _protection(operations, operation, operation.maintainers)
    for statement in protecting(protection, operations.get_context().dialect.name):
        _execute(operations, statement)


@Operations.implementation_for(UnprotectHistoryOp)
def unprotect_history(operations: Operations, operation: UnprotectHistoryOp) -> None:
    need_history(inspector_of(operations), operation.place)
    _unprotect(operations, operation.place)


@contextmanager
def following_protection(operations: Operations, place: Place, renamed: Place | None = None) -> Iterator[None]:
    """Let the triggers of a protected history follow a change of its columns or of its name.

    Nothing happens in ``--sql`` mode, where it is unknown whether the history is protected.

    :param renamed: the place after the change, if it is another
    """
    if operations.get_context().as_sql or not (triggers := _triggers(operations, place)):
        yield
        return
    maintainers = tuple(dict.fromkeys(name for text in triggers.values() for name in maintainers_in(text)))
    _unprotect(operations, place)
    yield
    operations.invoke(ProtectHistoryOp(renamed or place, maintainers=maintainers))


def _unprotect(operations: Operations, place: Place) -> None:
    names = place.names
    protection = Protection(place.history, place.schema, (), (), names.version, names.valid_from, names.valid_to)
    for statement in unprotecting(protection, operations.get_context().dialect.name):
        operations.execute(statement)


def _triggers(operations: Operations, place: Place) -> dict[str, str]:
    history = Table(place.history, MetaData(), schema=place.schema)
    return triggers_in_database(operations.get_bind(), history)


def _protection(operations: Operations, operation: ProtectHistoryOp, maintainers: tuple[str, ...]) -> Protection:
    place, inspector, names = operation.place, inspector_of(operations), operation.place.names
    if inspector is not None:
        key, columns = key_of(inspector, place), columns_of(inspector, place.history, place.schema)
        maintainers = maintainers or tuple(
            name for text in _triggers(operations, place).values() for name in maintainers_in(text)
        )
    else:
        key, columns = _names_in_operation(operations, operation)
    columns = [name for name in columns if name != guard_name_for(names)]
    return Protection(
        place.history,
        place.schema,
        tuple(key),
        tuple(columns),
        names.version,
        names.valid_from,
        names.valid_to,
        tuple(dict.fromkeys(maintainers)),
    )


def _names_in_operation(operations: Operations, operation: ProtectHistoryOp) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the key and of all columns of the history.

    :raises SQLAuditError: they are unknown, and the triggers have to name them
    """
    place, audit = operation.place, [name for _, name in operation.place.names.items()]
    if operation.key and operation.columns:
        return operation.key, [*operation.columns, *audit]
    created_table = created.get(operations.get_context(), {}).get((place.schema, place.table))
    if created_table is not None:
        return created_table.key, [*(column.name for column in created_table.columns), *audit]
    if not protects_by_column(operations.get_context().dialect.name):
        return (), []
    raise SQLAuditError(
        f"In --sql mode the columns of {place.history!r} are unknown, and the triggers have to name them. Give the "
        f"names of all columns that it stores: op.protect_history({place.table!r}, key=[…], columns=[…]).",
        operation,
    )


def _execute(operations: Operations, statement: ExecutableDDLElement) -> None:
    context = operations.get_context()
    if not (context.as_sql and context.dialect.name in MYSQL and isinstance(statement, CreateTrigger)):
        operations.execute(statement)
        return
    # The clients of MariaDB and MySQL would end the statement at the semicolon in the trigger.
    compiled = str(statement.compile(dialect=context.dialect)).strip()
    context.impl.static_output(f"DELIMITER //\n{compiled}\n//\nDELIMITER ;\n")
