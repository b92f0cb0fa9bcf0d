"""Create the table orders and grant SELECT to the application's role."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer_name", sa.String(120), nullable=False),
        sa.Column("status", sa.String(32), nullable=False, server_default="pending"),
    )
    op.execute("GRANT SELECT ON orders TO appuser")


def downgrade() -> None:
    op.drop_table("orders")
