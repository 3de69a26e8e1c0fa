"""Jobs, datasets, checkpoints, workers, idempotency keys, and the triggers that guard their states."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

JOB_MOVES = (
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
DATASET_MOVES = ("processing>ready", "processing>invalid", "processing>failed")
GUARDS = (
    ("jobs", JOB_MOVES, ("validating_files", "queued")),
    ("datasets", DATASET_MOVES, ("processing",)),
)


def upgrade() -> None:
    create_tables()
    guard = guard_postgresql if op.get_bind().dialect.name == "postgresql" else guard_sqlite
    for table, moves, initial in GUARDS:
        guard(table, quoted(moves), quoted(initial))
    freeze_events()


def downgrade() -> None:
    tables = (
        "checkpoint_files",
        "metric_points",
        "log_chunks",
        "job_events",
        "checkpoints",
        "attempts",
        "jobs",
        "workers",
        "idempotency_keys",
        "datasets",
    )
    for table in tables:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        for function in ("guard_jobs_state", "guard_datasets_state", "guard_job_events"):
            op.execute(f"DROP FUNCTION {function}()")


def quoted(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def guard_postgresql(table: str, moves: str, initial: str) -> None:
    op.execute(
        f"""
        CREATE FUNCTION guard_{table}_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'INSERT' THEN
                IF NEW.state NOT IN ({initial}) THEN
                    RAISE EXCEPTION '{table} cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
                END IF;
            ELSIF NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({moves}) THEN
                RAISE EXCEPTION '{table} cannot move from % to %', OLD.state, NEW.state
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        f"CREATE TRIGGER guard_{table}_state BEFORE INSERT OR UPDATE ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION guard_{table}_state()"
    )


def guard_sqlite(table: str, moves: str, initial: str) -> None:
    op.execute(
        f"CREATE TRIGGER guard_{table}_state_insert BEFORE INSERT ON {table} WHEN NEW.state NOT IN ({initial}) "
        f"BEGIN SELECT RAISE(ABORT, '{table} cannot begin in this state'); END"
    )
    op.execute(
        f"CREATE TRIGGER guard_{table}_state_update BEFORE UPDATE ON {table} "
        f"WHEN NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({moves}) "
        f"BEGIN SELECT RAISE(ABORT, '{table} cannot move to this state'); END"
    )


def freeze_events() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            """
            CREATE FUNCTION guard_job_events() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'job_events are append-only' USING ERRCODE = 'check_violation';
            END $$
            """
        )
        op.execute(
            "CREATE TRIGGER guard_job_events BEFORE UPDATE ON job_events "
            "FOR EACH ROW EXECUTE FUNCTION guard_job_events()"
        )
    else:
        op.execute(
            "CREATE TRIGGER guard_job_events BEFORE UPDATE ON job_events "
            "BEGIN SELECT RAISE(ABORT, 'job_events are append-only'); END"
        )


def create_tables() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("filename", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("storage_key", sa.String(300), nullable=True),
        sa.Column("report", JSON, nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("lost_attempts", sa.Integer(), nullable=False),
        sa.Column("hb_seq", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String(200), nullable=True),
        sa.Column("next_publish_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
    )
    op.create_index("ix_datasets_created_at_id", "datasets", ["created_at", "id"], unique=False)
    op.create_index("ix_datasets_state_created_at_id", "datasets", ["state", "created_at", "id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("operation", sa.String(48), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("response", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("operation", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "workers",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(200), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(200), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=True),
        sa.Column("phase", sa.String(200), nullable=True),
        sa.Column("request", sa.String(24), nullable=True),
        sa.Column("base_model", sa.String(200), nullable=False),
        sa.Column("dataset_id", sa.String(48), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("resolved", JSON, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_runtime_s", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lost_attempts", sa.Integer(), nullable=False),
        sa.Column("hb_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker_id", sa.String(200), nullable=True),
        sa.Column("worker_device", sa.String(200), nullable=True),
        sa.Column("next_publish_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", JSON, nullable=True),
        sa.Column("trainable", JSON, nullable=True),
        sa.Column("best", JSON, nullable=True),
        sa.Column("result", JSON, nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("last_event_seq", sa.BigInteger(), nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_jobs_dataset_id_datasets"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"], unique=False)
    op.create_index("ix_jobs_dataset_id", "jobs", ["dataset_id"], unique=False)
    op.create_index(
        "ix_jobs_state_priority_created_at_id", "jobs", ["state", "priority", "created_at", "id"], unique=False
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(200), nullable=False),
        sa.Column("worker_device", sa.String(200), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(24), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "epoch", name="pk_attempts"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(200), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("metric", sa.String(200), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_checkpoints_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
    )
    op.create_index("ix_checkpoints_job_id_created_at_id", "checkpoints", ["job_id", "created_at", "id"], unique=False)
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("level", sa.String(200), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_job_events"),
        sa.UniqueConstraint("id", name="uq_job_events_id"),
    )
    op.create_table(
        "log_chunks",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_log_chunks_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "offset", name="pk_log_chunks"),
    )
    op.create_table(
        "metric_points",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Double(), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_metric_points_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "name", "step", name="pk_metric_points"),
    )
    op.create_table(
        "checkpoint_files",
        sa.Column("checkpoint_id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("storage_key", sa.String(300), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.id"],
            name="fk_checkpoint_files_checkpoint_id_checkpoints",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "name", name="pk_checkpoint_files"),
    )
