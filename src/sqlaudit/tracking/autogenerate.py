"""Does Alembic compare tracked tables without sqlaudit's plugin? Then the comparison stops.

In every comparison, Alembic calls the functions that are registered with ``alembic.autogenerate.comparators``, whatever
plugins are listed. When a model is tracked, sqlaudit registers :func:`refuse_comparison_without_plugin` there: at
once, if the process has imported Alembic, otherwise when it does. sqlaudit does not import Alembic for this.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final
from weakref import WeakSet

from sqlaudit.exceptions import SQLAuditError
from sqlaudit.tracking.tables import tracked_table

_AUTOGENERATE: Final = "alembic.autogenerate"
SET_UP: Final = (
    "In env.py, call sqlaudit_alembic.register() and list the plugin: "
    'context.configure(…, autogenerate_plugins=["alembic.autogenerate.*", "sqlaudit"]).'
)
contexts_with_plugin: Final[WeakSet[Any]] = WeakSet()
"""The comparisons (``AutogenContext``) in which the plugin takes part."""
_guarded: Final[WeakSet[ModuleType]] = WeakSet()


def guard_autogenerate() -> None:
    """Let Alembic refuse to compare tracked tables without the plugin, now or once it is imported."""
    module = sys.modules.get(_AUTOGENERATE)
    if module is not None:
        _guard(module)
    elif not any(isinstance(finder, _WaitForAlembic) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WaitForAlembic())


def _guard(module: ModuleType) -> None:
    if module not in _guarded and hasattr(module, "comparators"):
        _guarded.add(module)
        module.comparators.dispatch_for("schema")(refuse_comparison_without_plugin)


def refuse_comparison_without_plugin(autogen_context: Any, upgrade_ops: object, schemas: object) -> None:
    """Stop a comparison of tracked tables in which the plugin does not take part.

    :raises SQLAuditError: the comparison would propose to drop columns and tables that only history has
    """
    if autogen_context in contexts_with_plugin:
        return
    names = [table.fullname for table in autogen_context.sorted_tables if _is_tracked(table)]
    if names:
        raise SQLAuditError(
            f"Alembic compares {', '.join(names)} without sqlaudit's plugin, and would propose to drop history of "
            f"these tables. {SET_UP}",
            names,
        )


def _is_tracked(table: Any) -> bool:
    tracked = tracked_table(table)
    return tracked is not None and tracked.history.name != table.name


class _WaitForAlembic(MetaPathFinder):
    """Waits for the first import of Alembic's autogenerate, and guards the module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AUTOGENERATE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _GuardingLoader(spec.loader)
        return spec


class _GuardingLoader(Loader):
    """Loads a module by its own loader, and then guards it."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _guard(module)
