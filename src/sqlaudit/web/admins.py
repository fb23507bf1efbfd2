"""Which attributes of a tracked model has no page of an admin to load? The versions: they are the whole history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import inspect


def without_versions(model: Any, names: Iterable[str]) -> list[str]:
    """Return names of attributes of a model without that of the relationship ``versions``, if it has been used.

    An admin would load all of them, for a form that cannot write them.
    """
    relationships = inspect(model).relationships
    return [
        name
        for name in names
        if name not in relationships or not hasattr(relationships[name].mapper.class_, "__sqlaudit_model__")
    ]
