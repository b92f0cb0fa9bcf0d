"""Create order_requests for idempotency keys, and an index for pages by status."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "order_requests",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("order_id", sa.Integer, nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
            index=True,
        ),
    )
    op.create_index("ix_orders_status_id", "orders", ["status", "id"])
    op.execute("GRANT INSERT ON orders TO appuser")
    op.execute("GRANT USAGE ON SEQUENCE orders_id_seq TO appuser")
    # UPDATE only of the key: ON CONFLICT DO UPDATE sets it to itself, to return the existing row.
    op.execute("GRANT SELECT, INSERT, DELETE, UPDATE (key) ON order_requests TO appuser")


def downgrade() -> None:
    op.execute("REVOKE USAGE ON SEQUENCE orders_id_seq FROM appuser")
    op.execute("REVOKE INSERT ON orders FROM appuser")
    op.drop_index("ix_orders_status_id", "orders")
    op.drop_table("order_requests")
