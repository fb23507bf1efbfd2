"""Teach Alembic about history tables.

Name the plugin in ``env.py``, once, and list it beside Alembic's own::

    import sqlaudit_alembic
    from alembic.runtime.plugins import Plugin

    Plugin.setup_plugin_from_module(sqlaudit_alembic, "sqlaudit")

    context.configure(
        ...,
        autogenerate_plugins=["alembic.autogenerate.*", "sqlaudit"],
    )

Alembic ignores a plugin that ``autogenerate_plugins`` does not list.
"""

from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import UpgradeOps
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy.orm import configure_mappers

__all__ = ["setup"]


def setup(plugin: Plugin) -> None:
    """Register what this package adds to autogenerate."""
    plugin.add_autogenerate_comparator(_complete_metadata, "autogenerate", priority=DispatchPriority.FIRST)


def _complete_metadata(autogen_context: AutogenContext, upgrade_ops: UpgradeOps) -> PriorityDispatchResult:
    """Configure every mapper before anything is compared.

    The history table of an association table joins the MetaData only then, and nothing in
    an ``env.py`` configures mappers: such a table would look like one to be dropped.
    """
    configure_mappers()
    return PriorityDispatchResult.CONTINUE
