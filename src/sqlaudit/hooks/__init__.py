"""Who listens to SQLAlchemy? Sessions, engines and mapped classes; nothing is listened to before it is registered.

This module keeps the import path of version 0.5.
"""

from sqlaudit.hooks.pausing import tracking_disabled
from sqlaudit.hooks.sessions import register_hooks, registered_targets, unregister_hooks

__all__ = ["register_hooks", "registered_targets", "tracking_disabled", "unregister_hooks"]
