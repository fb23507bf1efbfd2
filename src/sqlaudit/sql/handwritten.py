"""May hand-written SQL read tables? Its words tell."""

from __future__ import annotations

import re
from typing import Final

_READS_TABLES: Final = re.compile(r"\b(select|from|join|table|with)\b", re.IGNORECASE)


def may_read_tables(text: str) -> bool:
    """Return whether a part of a statement that was written by hand may read tables."""
    return _READS_TABLES.search(text) is not None
