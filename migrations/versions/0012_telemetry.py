"""Kept counts, the index that finds the job queued longest, and where a job came from.

The column is added to `jobs` without batch mode, as in 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(24), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("bucket", sa.String(16), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tallies"),
    )
    op.add_column("jobs", sa.Column("origin", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True))
    queued = sa.text("state = 'queued'")
    op.create_index(
        "ix_jobs_state_queued_at", "jobs", ["state", "queued_at"], sqlite_where=queued, postgresql_where=queued
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_state_queued_at", "jobs")
    op.drop_column("jobs", "origin")
    op.drop_table("tallies")
