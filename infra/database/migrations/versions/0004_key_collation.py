"""Compare idempotency keys bytewise.

Otherwise an update of the C library's collations could corrupt their unique index, and one key
could create two orders.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # This rebuilds the index but not the table. Keys are kept for a day, so the index is small.
    op.execute('ALTER TABLE order_requests ALTER key TYPE varchar(255) COLLATE "C"')


def downgrade() -> None:
    op.execute('ALTER TABLE order_requests ALTER key TYPE varchar(255) COLLATE "default"')
