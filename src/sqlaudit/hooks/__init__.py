"""Who listens to SQLAlchemy? Sessions, engines and mapped classes.

.. code-block:: text

    register_hooks(Sessions)      sessions   before_flush, after_flush: a recording.flush.Flush
                                             do_orm_execute: reads of the past, and the begin of a bulk statement
                                             after_begin: which connection is in which session's transaction
                                  methods    bulk_save_objects and its kin, which have no events
    register_hooks(engine=e)      engines    before_execute, after_execute, …: all statements of an engine
    @track_table()                mappers    classes, as they are made, configured and changed
                                  objects    mapper events: what a flush has written; a warning without hooks
                                  schema     create_all and drop_all

An engine is listened to as soon as a session with hooks uses it, and once, however many sessions use it. ``scope``
decides who records a statement: the flush that executes it, the call of a session, or, for a statement that a
connection executes directly, a recorder of its own. sqlaudit's own statements have an execution option
(``sql.options``) and are ignored at the first line.

Nothing is listened to before something is registered or tracked, and :func:`~sqlaudit.unregister_hooks` takes the
listeners of sessions and engines away.

This is also the path of version 0.5.
"""

from sqlaudit.hooks.pausing import tracking_disabled
from sqlaudit.hooks.sessions import register_hooks, registered_targets, unregister_hooks

__all__ = ["register_hooks", "registered_targets", "tracking_disabled", "unregister_hooks"]
