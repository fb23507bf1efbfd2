"""What did it look like then? Reads as of an instant.

A statement of the past is the user's own, with a mark. When it is compiled, each tracked table is rendered as the
versions that were true at the instant:

.. code-block:: sql

    -- select(Customer).where(Customer.city == "Rome")
    SELECT customers.id, customers.name, customers.city
    FROM (SELECT id, name, city FROM customers_history
          WHERE valid_to > :when AND valid_from <= :when) AS customers
    WHERE customers.city = 'Rome'

The objects that it loads carry the instant in their identity token. So the session keeps them apart from the live
objects, and whatever they load later is read as of the same instant.

``as_of``, ``temporal_join``, ``session``
    The public reads: :func:`~sqlaudit.as_of`, :func:`~sqlaudit.as_of_column`, :class:`~sqlaudit.time_travel`.
``comparing``
    Two states of a row, or of a table: :func:`~sqlaudit.diff`, :func:`~sqlaudit.compare`,
    :func:`~sqlaudit.compare_page`.
``marks``
    Instants with a name: :func:`~sqlaudit.mark`.
``running``
    How a session executes a statement of the past.
``rendering``, ``bisection``
    The SQL. Where a statement gives the key of one row, ``bisection`` finds its version without reading the others.
``materialized``
    Copies of the rows of an instant in temporary tables, which a whole session reads in place of the history.
``objects``, ``attributes``, ``collections``
    What objects of the past may do, what they lack, and how their dynamic relationships read.
``baselines``
    Rows that existed at the instant, before their history begins.
"""
