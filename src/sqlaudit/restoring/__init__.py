"""How does a row become again what it was? From versions to a plan, and from the plan to flushes.

.. code-block:: text

    restore.restore    undo.undo      which rows, fields and links, and what shall they be?
        |                  |
        +--- request ------+          is it asked for correctly, and may the session do it?
        |
    plan.Plan  <-- rows               what are they now? What has to change, and may it?
        |
    effects.add_effects               what else changes when rows are deleted, and which later changes would be lost?
        |
    ordering.Ordering                 in which order, so that foreign keys and unique values allow it?
        |
    application.carry_out             objects of the session, flushed table by table

Everything is read and checked before anything changes: a conflict, or a row that cannot be what it was, raises an
error and leaves the session as it is. A dry run ends with the plan. What is flushed is recorded like any other write,
so that history is never rewritten.
"""
