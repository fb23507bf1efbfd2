"""Which texts must no message show? The passwords and other secrets that URLs of databases contain."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

_SECRET: Final = re.compile(r"pass|pwd|secret|token|key|credential", re.IGNORECASE)


def secrets_of(url: Any) -> list[str]:
    """Return the passwords and other secrets that a URL of a database contains, the longest first."""
    values = [url.password, *(value for name, value in _query(url.query) if _SECRET.search(name))]
    texts = {str(value) for value in values if value}
    return sorted(texts | {quote(text, safe="") for text in texts}, key=len, reverse=True)


def _query(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = []
    for name, value in query.items():
        pairs += [(name, each) for each in ([value] if isinstance(value, str) else value)]
    return pairs


def without_secrets(text: str, secrets: list[str]) -> str:
    """Return a text in which ``***`` stands for each secret."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
