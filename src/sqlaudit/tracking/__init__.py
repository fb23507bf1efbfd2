"""What is tracked, and where are its versions kept?

A :class:`~sqlaudit.tracking.tables.TrackedTable` ties a live table to its history table. Both tables carry it in
``table.info["sqlaudit"]``. A :class:`~sqlaudit.tracking.models.TrackedModel` ties a mapped class to its *chain*: the
tracked tables that hold one object, from the base class's table to the class's own.

.. code-block:: text

    class Animal                     chain (animals,)
    class Dog(Animal)                chain (animals, dogs)         joined-table inheritance
    class Cat(Animal)                chain (animals,)              single-table inheritance
    Table("customer_tags", …)        chain (customer_tags,)        an association table, which has no model

Each table of a chain has a history table of its own: ``animals_history`` and ``dogs_history``. A version of a dog is
one row in each, with the same number.

``tables``, ``models``
    The two classes above.
``history``
    The mapped class of versions: ``Customer.History``, :func:`~sqlaudit.history_of`.
``aliases``
    :class:`~sqlaudit.tracking.aliases.HistoryAlias`: a history table that a statement reads more than once.
``registry``, ``schema``, ``sessions``
    The tracked tables of a MetaData; what a table's definition says; where a session keeps a model's rows.
``foreign_keys``, ``catalogue``, ``rights``
    What the database changes on its own; its triggers, rules and types; what a role may see.
``missing``, ``autogenerate``
    Errors that name the remedy: a history table is missing, or Alembic runs without the plugin.
"""
