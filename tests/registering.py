"""A sessionmaker whose sessions record within a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from sqlaudit import register_hooks, unregister_hooks


@contextmanager
def recording(
    engine: sa.Engine, metadata: sa.MetaData | None = None, **options: Any
) -> Iterator[sessionmaker[Session]]:
    """Give a sessionmaker whose sessions record; create the tables of `metadata`, if it is given."""
    if metadata is not None:
        metadata.create_all(engine)
    maker = sessionmaker(engine, **options)
    register_hooks(maker)
    try:
        yield maker
    finally:
        unregister_hooks(maker)
