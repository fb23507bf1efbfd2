"""Which statements are sqlaudit's own? Those with the execution option ``sqlaudit_write``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

WRITE: Final = "sqlaudit_write"
"""The execution option of statements that sqlaudit handles already: a weak reference to the write that records the
statement, or ``None`` for a statement of sqlaudit's own."""
INTERNAL: Final[Mapping[str, Any]] = {WRITE: None}
"""The execution options of sqlaudit's own statements. They are not recorded, and may write history tables."""
