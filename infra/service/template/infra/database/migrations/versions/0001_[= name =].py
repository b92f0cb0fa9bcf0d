"""Create the table [= name =], and grant the application its privileges on all tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # This includes tables and sequences of later revisions, which need no GRANT of their own.
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public"
        " GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO [= name =]_app"
    )
    op.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public"
        " GRANT USAGE, SELECT ON SEQUENCES TO [= name =]_app"
    )
    op.create_table(
        "[= name =]",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("text", sa.String(200), nullable=False),
        sa.Column(
            "changed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.PrimaryKeyConstraint("key", name="pk_[= name =]"),
    )


def downgrade() -> None:
    op.drop_table("[= name =]")
