"""A framework that is not installed is named, with what to install."""

import importlib
import sys

import pytest

from sqlaudit import MissingPackageError, SQLAuditError


@pytest.mark.parametrize(
    ("name", "missing", "packages"),
    [
        ("fastapi", "fastapi", "fastapi"),
        ("litestar", "litestar.plugins", "litestar"),
        ("flask", "flask", "flask"),
        ("pydantic", "pydantic", "pydantic"),
        ("sqlmodel", "sqlmodel", "sqlmodel"),
        ("celery", "celery", "celery and itsdangerous"),
        ("celery", "itsdangerous", "celery and itsdangerous"),
    ],
)
def test_a_framework_that_is_missing_is_named(
    name: str, missing: str, packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"sqlaudit.integrations.{name}", raising=False)
    message = f"sqlaudit.integrations.{name} needs {packages}, which cannot be imported. Run pip install 'sqlaudit"
    with pytest.raises(ImportError) as caught:
        importlib.import_module(f"sqlaudit.integrations.{name}")
    assert isinstance(caught.value, SQLAuditError)
    assert isinstance(caught.value, MissingPackageError)
    assert str(caught.value) == f"{message}[{name}]'."
    assert caught.value.name == f"sqlaudit.integrations.{name}"
