"""Draw order ids by a default, because RDS Proxy pins a connection that calls nextval."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE order_requests ALTER order_id SET DEFAULT nextval('orders_id_seq')")


def downgrade() -> None:
    op.execute("ALTER TABLE order_requests ALTER order_id DROP DEFAULT")
