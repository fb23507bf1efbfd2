"""What can a page not show, and what may its reader do instead? A problem has a status and a text."""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """A page that cannot be shown.

    :ivar status: the status code of the response
    :ivar name: the name of the text that says what is wrong; its title has this name and ``_title``
    :ivar values: the values that the text names
    """

    def __init__(self, status: int, name: str, /, **values: Any) -> None:
        super().__init__(name)
        self.status = status
        self.name = name
        self.values = values
