"""Indexes that keep lists of very many jobs short: what is listed is read off an index, in its order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

DELETED = sa.text("deleted_at IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_jobs_deleted_at", "jobs")
    op.create_index("ix_jobs_deleted_at", "jobs", ["deleted_at"], sqlite_where=DELETED, postgresql_where=DELETED)
    op.drop_index("ix_jobs_dataset_id", "jobs")
    op.create_index("ix_jobs_dataset_id_created_at_id", "jobs", ["dataset_id", "created_at", "id"])
    op.add_column("job_labels", sa.Column("created_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE job_labels SET created_at = (SELECT created_at FROM jobs WHERE jobs.id = job_labels.job_id)")
    op.drop_index("ix_job_labels_key_value_job_id", "job_labels")
    with op.batch_alter_table("job_labels") as table:
        table.alter_column("created_at", nullable=False)
    op.create_index("ix_job_labels_key_value_created_at_job_id", "job_labels", ["key", "value", "created_at", "job_id"])


def downgrade() -> None:
    op.drop_index("ix_job_labels_key_value_created_at_job_id", "job_labels")
    with op.batch_alter_table("job_labels") as table:
        table.drop_column("created_at")
    op.create_index("ix_job_labels_key_value_job_id", "job_labels", ["key", "value", "job_id"])
    op.drop_index("ix_jobs_dataset_id_created_at_id", "jobs")
    op.create_index("ix_jobs_dataset_id", "jobs", ["dataset_id"])
    op.drop_index("ix_jobs_deleted_at", "jobs")
    op.create_index("ix_jobs_deleted_at", "jobs", ["deleted_at"])
