"""Which Python types do the values of versions have?"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Any, Final

from sqlalchemy import JSON
from sqlalchemy.orm import Mapper
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlaudit.changes import PLAIN, Operation
from sqlaudit.tracking.models import TrackedModel

_AUDIT_TYPES: Final[dict[str, Any]] = {"operation": Operation, "valid_from": datetime, "valid_to": datetime}
_RESULT_METHODS: Final = ("process_result_value", "result_processor", "column_expression")
"""The methods by which a decorator gives other values than the type that it decorates."""


def value_types(mapper: Mapper[Any], model: TrackedModel) -> dict[str, Any]:
    """Return the Python types of the attributes of versions: name → type. It is ``Any`` if it is not known.

    They describe: a value may be older than the type that its column has now.

    :param mapper: the mapper of the history class of the model
    """
    live_columns: dict[Any, Any] = {
        old: live for table in model.chain for live, old in table.columns if live.name not in table.hashed
    }
    audit_types = {name: _AUDIT_TYPES.get(role) for role, name in model.table.names.items()}
    types: dict[str, Any] = {}
    for attribute in mapper.column_attrs:
        column = attribute.columns[0]
        type_ = audit_types.get(attribute.key) or _python_type(live_columns.get(column, column).type)
        types[attribute.key] = type_ if type_ is Any or not column.nullable else type_ | None
    return types


def gives_other_values(type_: TypeDecorator[Any]) -> bool:
    """Return whether a decorator may give other values than the type that it decorates."""
    decorator = type(type_)
    return any(getattr(decorator, name) is not getattr(TypeDecorator, name) for name in _RESULT_METHODS)


def _python_type(type_: TypeEngine[Any]) -> Any:
    if isinstance(type_, JSON):
        return Any
    if isinstance(type_, TypeDecorator) and type(type_).python_type is TypeDecorator.python_type:
        return Any if gives_other_values(type_) else _python_type(type_.impl_instance)
    try:
        python_type = type_.python_type
    except NotImplementedError:
        return Any
    return python_type if python_type in (*PLAIN, list, dict) or issubclass(python_type, Enum) else Any
