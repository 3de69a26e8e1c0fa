"""Artifacts of jobs, models with exports and predictions, and what zip archives of checkpoints need."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
WORK = ("exports", "predictions")
KEYS = (  # which the sweep asks for by many at once
    ("checkpoint_files", "storage_key"),
    ("artifacts", "storage_key"),
    ("exports", "storage_key"),
    ("predictions", "image_key"),
    ("predictions", "overlay_key"),
)
MOVES = "'queued>running', 'running>queued', 'running>succeeded', 'running>failed'"


def upgrade() -> None:
    op.add_column("checkpoint_files", sa.Column("crc32", sa.BigInteger(), nullable=True))
    op.add_column("checkpoints", sa.Column("archive_sha256", sa.String(64), nullable=True))
    create_artifacts()
    create_models()
    create_exports()
    create_predictions()
    for table, column in KEYS:
        op.create_index(f"ix_{table}_{column}", table, [column])
    guard = guard_postgresql if op.get_bind().dialect.name == "postgresql" else guard_sqlite
    for table in WORK:
        guard(table)


def downgrade() -> None:
    op.drop_index("ix_checkpoint_files_storage_key", "checkpoint_files")
    for table in ("predictions", "exports", "model_files", "models", "artifacts"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        for table in WORK:
            op.execute(f"DROP FUNCTION guard_{table}_state()")
    op.drop_column("checkpoints", "archive_sha256")
    op.drop_column("checkpoint_files", "crc32")


def create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("job_id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("storage_key", sa.String(300), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_artifacts_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_artifacts"),
    )


def create_models() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("job_id", sa.String(48), nullable=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("base_model", sa.String(200), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("metric", sa.String(200), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("archive_sha256", sa.String(64), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_models_job_id_jobs", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    op.create_index("ix_models_created_at_id", "models", ["created_at", "id"])
    op.create_index("ix_models_base_model_created_at_id", "models", ["base_model", "created_at", "id"])
    op.create_index("ix_models_job_id", "models", ["job_id"])
    op.create_table(
        "model_files",
        sa.Column("model_id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("crc32", sa.BigInteger(), nullable=True),
        sa.Column("storage_key", sa.String(300), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_model_files_model_id_models", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model_id", "name", name="pk_model_files"),
    )
    op.create_index("ix_model_files_storage_key", "model_files", ["storage_key"])


def work_columns(table: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("model_id", sa.String(48), nullable=False),
        sa.Column("state", sa.String(24), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("lost_attempts", sa.Integer(), nullable=False),
        sa.Column("hb_seq", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.String(200), nullable=True),
        sa.Column("next_publish_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=f"fk_{table}_model_id_models", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
    ]


def create_exports() -> None:
    op.create_table(
        "exports",
        *work_columns("exports"),
        sa.Column("format", sa.String(200), nullable=False),
        sa.Column("filename", sa.String(200), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(64), nullable=True),
        sa.Column("storage_key", sa.String(300), nullable=True),
        sa.UniqueConstraint("model_id", "format", name="uq_exports_model_id_format"),
    )
    op.create_index("ix_exports_state_created_at_id", "exports", ["state", "created_at", "id"])


def create_predictions() -> None:
    op.create_table(
        "predictions",
        *work_columns("predictions"),
        sa.Column("image_key", sa.String(300), nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("request", JSON, nullable=False),
        sa.Column("result", JSON, nullable=True),
        sa.Column("overlay_key", sa.String(300), nullable=True),
        sa.Column("overlay_bytes", sa.BigInteger(), nullable=True),
        sa.Column("overlay_sha256", sa.String(64), nullable=True),
    )
    op.create_index("ix_predictions_state_created_at_id", "predictions", ["state", "created_at", "id"])
    op.create_index("ix_predictions_created_at", "predictions", ["created_at"])


def guard_postgresql(table: str) -> None:
    op.execute(
        f"""
        CREATE FUNCTION guard_{table}_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'INSERT' THEN
                IF NEW.state <> 'queued' THEN
                    RAISE EXCEPTION '{table} cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
                END IF;
            ELSIF NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({MOVES}) THEN
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


def guard_sqlite(table: str) -> None:
    op.execute(
        f"CREATE TRIGGER guard_{table}_state_insert BEFORE INSERT ON {table} WHEN NEW.state <> 'queued' "
        f"BEGIN SELECT RAISE(ABORT, '{table} cannot begin in this state'); END"
    )
    op.execute(
        f"CREATE TRIGGER guard_{table}_state_update BEFORE UPDATE ON {table} "
        f"WHEN NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({MOVES}) "
        f"BEGIN SELECT RAISE(ABORT, '{table} cannot move to this state'); END"
    )
