"""What happened? Versions, field changes, blame and changesets, read from history.

This module keeps the import path of version 0.5.
"""

from sqlaudit.retrieval.field_changes import (
    blame,
    changes_in,
    get_resource_changes,
    stream_resource_changes,
    versions_of,
)

__all__ = ["blame", "changes_in", "get_resource_changes", "stream_resource_changes", "versions_of"]
