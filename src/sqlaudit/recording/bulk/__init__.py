"""Which rows does a statement write? From INSERT, UPDATE and DELETE, whoever executes them, to keys and versions.

Before an UPDATE or DELETE runs, the rows that it is about to write are locked, in the order of their keys, and those
without history get baselines. Then it is confined to these rows, so that it writes what is known whatever other
transactions commit meanwhile; what it returns is what it returned without us. An INSERT is asked for the keys of its
rows, where they are not given, by RETURNING, unless the database has a cheaper way to number many rows. Only keys pass
through Python, never values.

A :class:`~sqlaudit.recording.bulk.recorder.Recorder` listens to a connection, where all statements pass: those of
``session.execute``, of ``Query.update``, of ``bulk_insert_mappings`` and its kin, and those that never saw a session.
"""
