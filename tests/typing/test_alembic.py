"""What type checkers know of the operations in a revision."""

from typing import assert_type

import sqlalchemy as sa

from sqlaudit_alembic import op


def upgrade() -> None:
    op.add_column("customers", sa.Column("id", sa.Integer(), nullable=False))
    op.execute("UPDATE customers SET id = 1")
    assert_type(op.get_bind(), sa.Connection)
    op.create_history_table("customers", sa.Column("id", sa.Integer()), key=["id"], schema="shop")
    op.backfill_history("customers", columns=["id"])
    op.renew_history("customers", key=["id"])
    op.rename_tracked_column("customers", "id", "number")
    op.rename_tracked_table("customers", "clients", key=["number"])
    op.drop_history_column("clients", "name", type_=sa.String(50))
    op.drop_history_table("clients")


def mistakes() -> None:
    op.create_history_table("customers")  # type: ignore[call-arg]  # key is missing
    op.rename_tracked_column("customers", "id")  # type: ignore[call-arg]
    op.backfill_history("customers", at="now")  # type: ignore[arg-type]
    op.no_such_operation()  # type: ignore[attr-defined]
