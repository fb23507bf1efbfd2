"""Which SQL does SQLAlchemy lack? Idioms that all packages above use. Nothing here knows about tracked tables.

``keys``
    Keys that find their rows again, whatever their types: values that Python cannot hold, or would change, are read as
    text (:class:`~sqlaudit.sql.keys.RawKey`).
``batches``
    Many keys in batches of 1,000, or as a select that finds them (:class:`~sqlaudit.sql.batches.SelectedKeys`).
``ranges``
    Rows in the order of their keys: by ranges, or after a key.
``lists``
    Many keys in one parameter: an array on PostgreSQL, JSON on SQLite.
``comparing``
    :class:`~sqlaudit.sql.comparing.differs`: whether two columns hold different values, exact to the byte.
``documents``
    What a column of JSON holds under a name.
``old_values``, ``texts``, ``fitting``
    Values that a column held before its type changed: how they are read, and whether the column can hold them again.
``widening``
    Which type holds the values of two types: a column of history holds all that its live column ever held.
``dialects``
    What is peculiar to each database, as one table of facts (:class:`~sqlaudit.sql.dialects.Traits`).
``options``
    The execution option by which sqlaudit knows its own statements.
``temporary``
    The end of a temporary table.

For example, ``differs(customers.c.name, history.c.name)`` renders as

.. code-block:: text

    PostgreSQL  customers.name IS DISTINCT FROM customers_history.name
    SQLite      customers.name COLLATE BINARY IS NOT customers_history.name
    MariaDB     NOT (CAST(customers.name AS BINARY) <=> CAST(customers_history.name AS BINARY))
"""
