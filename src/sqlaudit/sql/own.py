"""Which statements are sqlaudit's own? Those with an execution option of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

WRITE: Final = "sqlaudit_write"
"""The execution option of a statement that is recorded, or is for another that is."""
OURS: Final[Mapping[str, Any]] = {WRITE: None}
"""The execution options of statements of sqlaudit's own, which nobody records, and which may write history."""
