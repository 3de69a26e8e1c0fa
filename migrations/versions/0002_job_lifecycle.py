"""Projects, retries, initial adapters, validation datasets, deletion and labels of jobs; a queued job may be paused.

Columns are added without foreign keys and without batch mode: on SQLite both would recreate the table `jobs`,
whose removal takes the events, metrics and checkpoints of every job with it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

MOVES_BEFORE = (
    "validating_files>queued",
    "validating_files>failed",
    "validating_files>cancelled",
    "queued>running",
    "queued>cancelled",
    "running>succeeded",
    "running>failed",
    "running>queued",
    "running>cancelling",
    "running>pausing",
    "cancelling>cancelled",
    "pausing>paused",
    "pausing>succeeded",
    "pausing>failed",
    "pausing>cancelling",
    "paused>queued",
    "paused>cancelled",
)
MOVES = (*MOVES_BEFORE, "queued>paused")
INITIAL = ("validating_files", "queued")
INDEXES = (
    ("state", "priority", "project", "created_at", "id"),
    ("state", "created_at", "id"),
    ("project", "created_at", "id"),
    ("base_model", "created_at", "id"),
    ("validation_dataset_id",),
    ("deleted_at",),
)
INDEX_BEFORE = ("state", "priority", "created_at", "id")


def upgrade() -> None:
    for column in new_columns():
        op.add_column("jobs", column)
    op.drop_index(name_of(INDEX_BEFORE), "jobs")
    for columns in INDEXES:
        op.create_index(name_of(columns), "jobs", list(columns))
    op.create_table(
        "job_labels",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("value", sa.String(512), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_labels_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "key", "value", name="pk_job_labels"),
    )
    op.create_index("ix_job_labels_key_value_job_id", "job_labels", ["key", "value", "job_id"])
    label_jobs()
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.create_table(
        "estimates",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("base_model", sa.String(200), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("result", JSON, nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_estimates"),
    )
    op.create_index("ix_estimates_due_at", "estimates", ["due_at"])
    op.create_index("ix_estimates_created_at", "estimates", ["created_at"])
    guard_moves(MOVES)


def downgrade() -> None:
    guard_moves(MOVES_BEFORE)
    op.drop_table("estimates")
    op.drop_column("workers", "memory_bytes")
    op.drop_table("job_labels")
    for columns in INDEXES:
        op.drop_index(name_of(columns), "jobs")
    for column in new_columns():
        op.drop_column("jobs", column.name)
    op.create_index(name_of(INDEX_BEFORE), "jobs", list(INDEX_BEFORE))


def new_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("project", sa.String(64), nullable=False, server_default="default"),
        sa.Column("validation_dataset_id", sa.String(48), nullable=True),
        sa.Column("init_checkpoint_id", sa.String(48), nullable=True),
        sa.Column("retry_of", sa.String(48), nullable=True),
        sa.Column("resumes_from", sa.String(48), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
    ]


def name_of(columns: tuple[str, ...]) -> str:
    return f"ix_jobs_{'_'.join(columns)}"


def label_jobs() -> None:
    jobs = sa.table("jobs", sa.column("id"), sa.column("tags", JSON), sa.column("metadata", JSON))
    labels = sa.table("job_labels", sa.column("job_id"), sa.column("key"), sa.column("value"))
    connection = op.get_bind()
    for job_id, tags, metadata in connection.execute(sa.select(jobs)).all():
        pairs = [*(("", tag) for tag in tags), *metadata.items()]
        if pairs:
            rows = [{"job_id": job_id, "key": key, "value": value} for key, value in pairs]
            connection.execute(labels.insert(), rows)


def guard_moves(moves: tuple[str, ...]) -> None:
    allowed, initial = (", ".join(f"'{value}'" for value in values) for values in (moves, INITIAL))
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"""
            CREATE OR REPLACE FUNCTION guard_jobs_state() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF TG_OP = 'INSERT' THEN
                    IF NEW.state NOT IN ({initial}) THEN
                        RAISE EXCEPTION 'jobs cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
                    END IF;
                ELSIF NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({allowed}) THEN
                    RAISE EXCEPTION 'jobs cannot move from % to %', OLD.state, NEW.state
                        USING ERRCODE = 'check_violation';
                END IF;
                RETURN NEW;
            END $$
            """
        )
    else:
        op.execute("DROP TRIGGER guard_jobs_state_update")
        op.execute(
            "CREATE TRIGGER guard_jobs_state_update BEFORE UPDATE ON jobs "
            f"WHEN NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({allowed}) "
            "BEGIN SELECT RAISE(ABORT, 'jobs cannot move to this state'); END"
        )
