"""Sweeps: jobs that belong together, each with the values that it tries.

Columns are added to `jobs` without batch mode, as in 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("request", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
    )
    op.create_index("ix_sweeps_created_at_id", "sweeps", ["created_at", "id"])
    op.add_column("jobs", sa.Column("sweep_id", sa.String(48), nullable=True))
    op.add_column("jobs", sa.Column("trial", JSON, nullable=True))
    op.create_index("ix_jobs_sweep_id_created_at_id", "jobs", ["sweep_id", "created_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_sweep_id_created_at_id", "jobs")
    op.drop_column("jobs", "trial")
    op.drop_column("jobs", "sweep_id")
    op.drop_table("sweeps")
