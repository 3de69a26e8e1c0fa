"""Quotas of projects, and the record of what they have used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

LIMITS = ("max_active_jobs", "max_running_gpus", "max_gpu_seconds_per_month", "max_stored_bytes", "max_datasets")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("attempt_started_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "project_quotas",
        sa.Column("project", sa.String(64), nullable=False),
        *(sa.Column(limit, sa.BigInteger(), nullable=True) for limit in LIMITS),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project", name="pk_project_quotas"),
    )
    op.create_table(
        "attempt_usage",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.Column("project", sa.String(64), nullable=False, server_default="default"),
        sa.PrimaryKeyConstraint("job_id", "epoch", "day", name="pk_attempt_usage"),
    )
    op.create_table(
        "job_outcomes",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("outcome", sa.String(24), nullable=False),
        sa.Column("project", sa.String(64), nullable=False, server_default="default"),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_outcomes"),
    )
    for table in ("attempt_usage", "job_outcomes"):
        op.create_index(f"ix_{table}_project_day", table, ["project", "day"])
    _record_the_past()


def _record_the_past() -> None:
    """Attempts that crossed midnight count for the day on which they ended."""
    if op.get_bind().dialect.name == "postgresql":
        seconds = "EXTRACT(EPOCH FROM attempts.ended_at - attempts.started_at)"
        attempt_day, job_day = "(attempts.ended_at AT TIME ZONE 'UTC')::date", "(finished_at AT TIME ZONE 'UTC')::date"
    else:
        seconds = "(julianday(attempts.ended_at) - julianday(attempts.started_at)) * 86400"
        attempt_day, job_day = "date(attempts.ended_at)", "date(finished_at)"
    op.execute(
        "INSERT INTO attempt_usage (job_id, epoch, day, gpu_seconds, project) "  # noqa: S608 - of constants
        f"SELECT attempts.job_id, attempts.epoch, {attempt_day}, jobs.gpus * {seconds}, jobs.project "
        "FROM attempts JOIN jobs ON jobs.id = attempts.job_id WHERE attempts.ended_at > attempts.started_at"
    )
    op.execute(
        "INSERT INTO job_outcomes (job_id, day, outcome, project) "  # noqa: S608 - of constants
        f"SELECT id, {job_day}, state, project FROM jobs WHERE finished_at IS NOT NULL"
    )
    op.execute(
        "UPDATE jobs SET attempt_started_at = (SELECT started_at FROM attempts "
        "WHERE attempts.job_id = jobs.id AND attempts.epoch = jobs.epoch) "
        "WHERE state IN ('running', 'pausing', 'cancelling')"
    )


def downgrade() -> None:
    for table in ("job_outcomes", "attempt_usage", "project_quotas"):
        op.drop_table(table)
    op.drop_column("jobs", "attempt_started_at")
