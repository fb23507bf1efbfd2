"""priority of tickets"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("tickets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("priority", sa.Integer(), nullable=True))

    with op.batch_alter_table("tickets_history", schema=None) as batch_op:
        batch_op.add_column(sa.Column("priority", sa.Integer(), autoincrement=False, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("tickets_history", schema=None) as batch_op:
        batch_op.drop_column("priority")

    with op.batch_alter_table("tickets", schema=None) as batch_op:
        batch_op.drop_column("priority")
