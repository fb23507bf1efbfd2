"""Who listens to SQLAlchemy? Sessions, engines and mapped classes.

.. code-block:: text

    register_hooks(Sessions)      sessions   before_flush, after_flush: a recording.flush.Flush
                                             do_orm_execute: reads of the past, bulk statements
                                  methods    bulk_save_objects and its kin, which have no events
    register_hooks(engine=e)      engines    before_execute, after_execute: a recording.bulk.recorder.Recorder
    @track_table()                models     mapper events: what a flush has written; a warning without hooks
                                  schema     create_all and drop_all

A statement passes several of these listeners. ``scope`` decides which one records it, so that it is recorded once.
Nothing is listened to before something is registered or tracked, and :func:`~sqlaudit.unregister_hooks` takes the
listeners of sessions and engines away.

This is also the path of version 0.5.
"""

from sqlaudit.hooks.pausing import tracking_disabled
from sqlaudit.hooks.sessions import register_hooks, registered_targets, unregister_hooks

__all__ = ["register_hooks", "registered_targets", "tracking_disabled", "unregister_hooks"]
