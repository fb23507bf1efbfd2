"""Fixtures for pytest. Name the module in the ``conftest.py`` at the top of your tests.

.. code-block:: python

    pytest_plugins = ["sqlaudit.testing.pytest"]

``audit_clock``
    A :class:`~sqlaudit.testing.Clock` in place of the configuration's while the test runs.

The audit context that a test sets is reset after it, so that no other test writes under its user.

It is no entry point: those load sqlaudit in every run of pytest in the environment, also of projects without it, and
before plugins that measure coverage.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sqlaudit.context import AuditContextManager
from sqlaudit.testing.clock import Clock


@pytest.fixture
def audit_clock() -> Iterator[Clock]:
    """A clock in place of the configuration's, which stands still until the test sets or moves it."""
    with Clock() as clock:
        yield clock


@pytest.fixture(autouse=True)
def _audit_context_ends_with_the_test() -> Iterator[None]:
    with AuditContextManager():
        yield
