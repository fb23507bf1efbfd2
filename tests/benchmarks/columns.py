"""The twelve columns of the models that are measured."""

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


class Columns:
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(50))
    email: Mapped[str] = mapped_column(sa.String(50))
    city: Mapped[str] = mapped_column(sa.String(50))
    age: Mapped[int]
    rank: Mapped[int]
    score: Mapped[float]
    active: Mapped[bool]
    joined: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    phone: Mapped[str | None] = mapped_column(sa.String(50))
    note: Mapped[str | None] = mapped_column(sa.Text)
    visits: Mapped[int | None]
