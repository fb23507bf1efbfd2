"""Which rows does a statement write? From INSERT, UPDATE and DELETE, whoever executes them, to keys and versions.

.. code-block:: text

    UPDATE customers SET city = 'Rome' WHERE city = 'Paris'

    1. parsing    it writes the tracked table customers, and sets city
    2. locking    SELECT id … WHERE city = 'Paris' ORDER BY id FOR UPDATE      -> keys 3, 7
                  a baseline for each of these rows that has no history
    3.            UPDATE customers SET city = 'Rome' WHERE id IN (3, 7)
    4. writes     close and snapshot for 3 and 7

The UPDATE is confined to the rows that were locked, so that it writes the rows that sqlaudit knows, whatever other
transactions commit meanwhile. What the statement returns is what it would return without sqlaudit. Where the keys
cannot be trusted to find their rows again, the criterion is kept, and the number of rows is compared. The criterion is
also kept where Citus distributes the table, since it refuses to lock many rows: like PostgreSQL, the UPDATE then leaves
out a row that no longer fulfils the criterion.

An INSERT returns the keys of its rows (``inserts``, ``upserts``, ``returning``), unless they are given, or the database
has a cheaper way to number many rows. Only keys pass through Python, never values; many keys are kept in a temporary
table (``keys``).

A :class:`~sqlaudit.recording.bulk.recorder.Recorder` prepares a statement and writes its versions, whoever executes it:
``session.execute``, ``Query.update``, ``bulk_insert_mappings``, or a connection outside of any session.
``hooks.engines`` hears the statements.
"""
