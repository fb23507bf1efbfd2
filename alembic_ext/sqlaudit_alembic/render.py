"""How does a revision contain the operations? As calls of ``op``."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _alter_column, _render_column, _repr_type, renderers
from sqlalchemy import Column

from sqlaudit_alembic.ops import BecomeUTCOp, HistoryOp

_IMPORT = "import sqlaudit_alembic  # noqa: F401"


def register() -> None:
    """Register the renderers of the operations with Alembic, once."""
    if not any(target is HistoryOp for target, _ in renderers._registry):
        renderers.dispatch_for(HistoryOp)(render)
        renderers.dispatch_for(BecomeUTCOp)(_render_conversion)


def render(autogen_context: AutogenContext, operation: HistoryOp) -> str:
    """Return an operation as a call of ``op``, and add the import that the revision needs."""
    autogen_context.imports.add(_IMPORT)
    prefix = autogen_context.opts["alembic_module_prefix"] or ""
    arguments = [repr(operation.place.table), *(_text(argument, autogen_context) for argument in operation.arguments())]
    arguments += [f"{name}={_option(name, value, autogen_context)}" for name, value in operation.options().items()]
    separator = ",\n" if any(isinstance(argument, Column) for argument in operation.arguments()) else ", "
    return f"{prefix}{operation.directive}({separator.join(arguments)})"


def _render_conversion(autogen_context: AutogenContext, operation: BecomeUTCOp) -> str:
    """Return what Alembic renders, and add ``postgresql_using``, which it omits."""
    using = operation.kw["postgresql_using"]
    return f"{_alter_column(autogen_context, operation).removesuffix(')')},\n{' ' * 11}postgresql_using={using!r})"


def _text(value: Any, autogen_context: AutogenContext) -> str:
    if isinstance(value, Column):
        copy: Column[Any] = Column(value.name, value.type, nullable=value.nullable)
        return str(_render_column(copy, autogen_context))
    return repr(value)


def _option(name: str, value: Any, autogen_context: AutogenContext) -> str:
    return _repr_type(value, autogen_context) if name == "type_" else repr(value)
