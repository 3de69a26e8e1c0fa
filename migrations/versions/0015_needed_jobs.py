"""Indices over the few jobs that go on, or start, from another's checkpoint: asked whenever a job is deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

COLUMNS = ("resumes_from", "init_checkpoint_id")


def upgrade() -> None:
    for column in COLUMNS:
        there = sa.text(f"{column} IS NOT NULL")
        op.create_index(f"ix_jobs_{column}", "jobs", [column], sqlite_where=there, postgresql_where=there)


def downgrade() -> None:
    for column in COLUMNS:
        op.drop_index(f"ix_jobs_{column}", "jobs")
