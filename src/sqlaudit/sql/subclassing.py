"""How does a copy of a statement, or a compiler, get more to do than the original? By a subclass of its own class."""

from __future__ import annotations

from functools import cache
from typing import Any

Traversed = tuple[tuple[str, Any], ...]
"""Attributes that SQLAlchemy traverses, for the cache key among others, and how."""


@cache
def subclass_with(mixin: Any, original: Any, traversed: Traversed = ()) -> type[Any]:
    """Return a subclass of a statement's or compiler's class, to which a mixin is added.

    :param traversed: the attributes that the mixin adds to those of a statement
    """
    if issubclass(original, mixin):
        made: type[Any] = original
        return made
    namespace: dict[str, Any] = {}
    if traversed:
        namespace = {"inherit_cache": True, "_traverse_internals": [*original._traverse_internals, *traversed]}
        if (own := getattr(original, "_cache_key_traversal", None)) is not None:  # inherited by SQLModel's Select
            namespace["_cache_key_traversal"] = [*own, *traversed]
    return type(f"{mixin.__name__}{original.__name__}", (mixin, original), namespace)


def copied_with_class(made_class: Any, original: Any) -> Any:
    """Return a copy of an object that is an instance of a subclass of its class."""
    made = made_class.__new__(made_class)
    made.__dict__.update(original.__dict__)
    return made
