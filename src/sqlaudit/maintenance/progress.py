"""How does a user see the progress of a long task? By a bar on the terminal, or a function of the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlaudit.exceptions import SQLAuditError

try:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
except ImportError:
    Progress = None  # type: ignore[assignment,misc]  # the extra is not installed


Callback = Callable[[int, int], object]
"""A function that is called with the number of rows done and the number of all rows."""


@contextmanager
def progress_reporter(progress: Callback | bool | None, title: str) -> Iterator[Callback | None]:
    """Give the function to call with the progress, or ``None``.

    :raises SQLAuditError: ``progress`` is neither a boolean nor a function, or rich is not installed
    """
    if progress is None or progress is False:
        yield None
    elif callable(progress):
        yield progress
    elif progress is not True:
        raise SQLAuditError(
            f"progress is {progress!r}. Give True for a bar on the terminal, or a function of (done, total).", progress
        )
    elif Progress is None:
        raise SQLAuditError(
            "progress=True needs rich to draw a bar, and rich is not installed. Run pip install 'sqlaudit[progress]', "
            "or give a function of (done, total)."
        )
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as bar:
            task = bar.add_task(title)
            yield lambda done, total: bar.update(task, completed=done, total=total)
