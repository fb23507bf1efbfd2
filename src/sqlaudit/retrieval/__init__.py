"""What happened? Versions, field changes, blame and changesets, read from history.

A version is a whole row. A field change is what two consecutive versions differ in, found by one statement that joins
each version with the one before it:

.. code-block:: text

    customers_history                                field changes
    version  operation  name  city
    1        insert     Ada   London       ──►       name None → Ada, city None → London
    2        update     Ada   Rome         ──►       city London → Rome
    3        delete     Ada   Rome         ──►       name Ada → None, city Rome → None

``field_changes``
    :func:`~sqlaudit.get_resource_changes`, :func:`~sqlaudit.versions_of`, :func:`~sqlaudit.blame`,
    :func:`~sqlaudit.changes_in`.
``pages``
    :func:`~sqlaudit.changes_page`: field changes by pages; ``cursors`` says where the next one begins, and ``filters``
    which operations and values are asked for.
``changeset_reader``
    :func:`~sqlaudit.changesets`, :func:`~sqlaudit.changesets_page`: what transactions did, in all tables that a session
    can read.
``feed``
    :func:`~sqlaudit.changes_since`: what is new since a consumer last asked.
``changesets``
    What one transaction did: its tables and its instant.
``ids``
    Ids that a reader gives as text, converted to the types of the key.

The functions can be imported from here, too: this is their path of version 0.5.
"""

from sqlaudit.retrieval.field_changes import (
    blame,
    changes_in,
    get_resource_changes,
    stream_resource_changes,
    versions_of,
)

__all__ = ["blame", "changes_in", "get_resource_changes", "stream_resource_changes", "versions_of"]
