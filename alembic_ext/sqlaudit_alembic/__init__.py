"""Teach Alembic about history tables.

Name the plugin in ``env.py``, once, and list it beside Alembic's own::

    import sqlaudit_alembic

    sqlaudit_alembic.register()

    context.configure(
        ...,
        autogenerate_plugins=["alembic.autogenerate.*", "sqlaudit"],
    )

Alembic ignores a plugin that ``autogenerate_plugins`` does not list: a comparison of tracked tables stops without it.

What ``alembic revision --autogenerate`` proposes then:

* for a newly tracked model ``op.create_history_table`` and ``op.backfill_history``;
* for a column that is added, the same for history, where it may be NULL; and if the database gives it a value, or
  history has kept one of that name, ``op.renew_history``, which writes a baseline of each row: no field change is
  reported, and no version is rewritten;
* for a column that is dropped, nothing for history, which keeps it: ``version.extra_columns`` reads it;
  and for the downgrade, which brings it back empty, ``op.renew_history``;
* for a model that is append-only, and whose history lacks triggers, ``op.protect_history``;
* for a model that is no longer tracked, nothing: its history stays.

A table with a history that ``target_metadata`` does not know stops it: its model was not imported. If it is gone for
good, ``context.configure(sqlaudit_dropped_tables=["customers"])`` lets the table be dropped, and history stays.

What is written by hand: ``op.rename_tracked_column``, ``op.rename_tracked_table``, ``op.drop_history_column``,
``op.drop_history_table``, and ``op.renew_history`` behind an ``op.execute`` that changes rows.
"""

import sys

from alembic.autogenerate import comparators
from alembic.runtime import plugins
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority

from sqlaudit_alembic import (
    compare,
    protection,  # noqa: F401  # these four give Alembic the operations
    renames,  # noqa: F401
    render,
    structure,  # noqa: F401
    versions,  # noqa: F401
)

__all__ = ["register", "setup"]

_NAME = "sqlaudit"
_guards: list[object] = []


def register() -> None:
    """Register the plugin with Alembic as ``sqlaudit``, once in a process. Call it in ``env.py``."""
    if _NAME not in plugins._all_plugins:
        Plugin.setup_plugin_from_module(sys.modules[__name__], _NAME)
    if compare.refuse_to_drop not in _guards:  # for comparisons that don't list the plugin
        _guards.append(compare.refuse_to_drop)
        comparators.dispatch_for("autogenerate", priority=DispatchPriority.LAST)(compare.refuse_to_drop)


def setup(plugin: Plugin) -> None:
    """Add what autogenerate does for history to a plugin. :func:`register` calls it."""
    render.register()
    plugin.add_autogenerate_comparator(
        compare.complete_metadata, "autogenerate", "sqlaudit_models", priority=DispatchPriority.FIRST
    )
    plugin.add_autogenerate_comparator(compare.compare_types, "column", "types", priority=DispatchPriority.FIRST)
    plugin.add_autogenerate_comparator(
        compare.refuse_other_columns_and_keys, "table", "sqlaudit_shape", priority=DispatchPriority.FIRST
    )
    plugin.add_autogenerate_comparator(
        compare.follow_history, "autogenerate", "sqlaudit_history", priority=DispatchPriority.LAST
    )
