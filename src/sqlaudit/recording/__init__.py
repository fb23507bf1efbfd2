"""Which versions does a write make?

A flush and a bulk statement both end in keys of rows. :class:`~sqlaudit.recording.capture.Capture` turns these keys
into versions, by SQL that copies rows from the live table to the history table. Only the old values that a flush knows
of a row without history come from Python.

.. code-block:: text

    session.flush()                      connection.execute(update(customers))
        |                                    |
    flush.Flush                          bulk.recorder.Recorder
        |                                    |
        +--------> keys of changed rows <----+
                           |
                   capture.Capture           close, snapshot, tombstone, baseline
                           |
                   settle, if a statement    last, and those above
                   wrote fewer rows than keys

:mod:`~sqlaudit.recording.events` tells listeners what was recorded.
:mod:`~sqlaudit.recording.changeset` gives the transaction its id and its instant, :mod:`~sqlaudit.recording.cascades`
finds the rows that the database changes by its foreign keys, and :mod:`~sqlaudit.recording.policy` refuses what the
configuration forbids.

The statements of one row of ``customers(id, name)`` on PostgreSQL follow. A test compares them with those that are
sent. ``close`` ends the open version of a row that was changed:

.. code-block:: sql

    UPDATE customers_history SET valid_to = :at
    WHERE customers_history.id = :key_0
      AND customers_history.valid_to = '9999-12-31 00:00:00+00:00'
      AND customers_history.valid_from < :at
      AND (EXISTS (SELECT 1 FROM customers
                   WHERE customers.id = :key_0
                     AND (customers.name IS DISTINCT FROM customers_history.name)))

``snapshot`` copies the live row, as its next version:

.. code-block:: sql

    INSERT INTO customers_history (
        id, name, audit_version, valid_from, valid_to, audit_operation, audit_changeset_id,
        audit_changed_by, audit_impersonated_by, audit_reason, audit_extra)
    SELECT customers.id, customers.name,
           coalesce((SELECT customers_history_1.audit_version FROM customers_history AS customers_history_1
                     WHERE customers_history_1.id = :key_0
                     ORDER BY customers_history_1.audit_version DESC LIMIT 1), 0) + 1,
           :at, '9999-12-31 00:00:00+00:00', 'update', :changeset,
           :user, :impersonated_by, :reason, :extra
    FROM customers WHERE customers.id = :key_0

On PostgreSQL ``close_and_snapshot`` does both in one round trip, unless Citus distributes the tables:

.. code-block:: sql

    WITH closed AS (
        UPDATE customers_history SET valid_to = :at
        WHERE customers_history.id = :key_0
          AND customers_history.valid_to = '9999-12-31 00:00:00+00:00'
          AND customers_history.valid_from < :at
          AND (EXISTS (SELECT 1 FROM customers
                       WHERE customers.id = :key_0
                         AND (customers.name IS DISTINCT FROM customers_history.name)))
        RETURNING customers_history.id AS id, customers_history.audit_version AS audit_version)
    INSERT INTO customers_history (
        id, name, audit_version, valid_from, valid_to, audit_operation, audit_changeset_id,
        audit_changed_by, audit_impersonated_by, audit_reason, audit_extra)
    SELECT customers.id, customers.name, closed.audit_version + 1,
           :at, '9999-12-31 00:00:00+00:00', 'update', :changeset,
           :user, :impersonated_by, :reason, :extra
    FROM customers JOIN closed ON closed.id = customers.id
    WHERE customers.id = :key_0

On MariaDB a block does both for one row, ``BEGIN NOT ATOMIC <close>; IF ROW_COUNT() = 1 THEN <snapshot>; END IF; END``.

``tombstone`` records a deletion by a copy of the last version, which begins and ends at the instant. On PostgreSQL, one
round trip writes it and ends the last version, in the same way:

.. code-block:: sql

    INSERT INTO customers_history (
        id, name, audit_version, valid_from, valid_to, audit_operation, audit_changeset_id,
        audit_changed_by, audit_impersonated_by, audit_reason, audit_extra)
    SELECT customers_history_1.id, customers_history_1.name, customers_history_1.audit_version + 1,
           :at, :at, 'delete', :changeset, :user, :impersonated_by, :reason, :extra
    FROM customers_history AS customers_history_1
    WHERE customers_history_1.id = :key_0
      AND customers_history_1.valid_to = '9999-12-31 00:00:00+00:00'
      AND customers_history_1.valid_from < :at
      AND NOT (EXISTS (SELECT 1 FROM customers WHERE customers.id = :key_0))

``baseline`` is a snapshot of a row without history, written before the row changes:

.. code-block:: sql

    INSERT INTO customers_history (
        id, name, audit_version, valid_from, valid_to, audit_operation, audit_changeset_id,
        audit_changed_by, audit_impersonated_by, audit_reason, audit_extra)
    SELECT customers.id, customers.name,
           coalesce((SELECT customers_history_1.audit_version FROM customers_history AS customers_history_1
                     WHERE customers_history_1.id = :key_0
                     ORDER BY customers_history_1.audit_version DESC LIMIT 1), 0) + 1,
           :at, '9999-12-31 00:00:00+00:00', 'baseline', :changeset, NULL, NULL, NULL, NULL
    FROM customers
    WHERE customers.id = :key_0
      AND coalesce((SELECT CASE WHEN (customers_history_1.valid_to = '9999-12-31 00:00:00+00:00')
                                THEN customers_history_1.valid_to ELSE customers_history_1.valid_from END
                    FROM customers_history AS customers_history_1
                    WHERE customers_history_1.id = :key_0
                    ORDER BY customers_history_1.audit_version DESC LIMIT 1) <= :at, true)

``last`` reads a row's last version, and whether the live row is gone or differs from it:

.. code-block:: sql

    SELECT customers_history.id, customers_history.audit_version, customers_history.valid_from,
           customers_history.valid_to, customers_history.audit_operation, customers_history.audit_changeset_id,
           customers_history.audit_changed_by, customers_history.audit_impersonated_by,
           customers_history.audit_reason, customers_history.audit_extra,
           CASE WHEN (NOT (EXISTS (SELECT 1 FROM customers WHERE customers.id = :key_0)))
                THEN :param_1 ELSE :param_2 END AS gone,
           CASE WHEN (EXISTS (SELECT 1 FROM customers
                              WHERE customers.id = :key_0
                                AND (customers.name IS DISTINCT FROM customers_history.name)))
                THEN :param_3 ELSE :param_4 END AS changed,
           NULL AS row_user
    FROM customers_history
    WHERE customers_history.id = :key_0
      AND customers_history.audit_version = (
          SELECT customers_history_1.audit_version FROM customers_history AS customers_history_1
          WHERE customers_history_1.id = :key_0
          ORDER BY customers_history_1.audit_version DESC LIMIT 1 FOR SHARE)
    FOR UPDATE
"""
