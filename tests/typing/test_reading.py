"""What type checkers know of the reads."""

from typing import assert_type

from sqlalchemy.orm import Session

from sqlaudit import FieldChange, get_resource_changes


def field_changes(session: Session, model: type[object]) -> None:
    assert_type(get_resource_changes(model, session), list[FieldChange])
