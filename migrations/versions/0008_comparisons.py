"""Comparisons of two models on one dataset."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
# Work that waits fails if a model of it is deleted.
MOVES = "'queued>running', 'queued>failed', 'running>queued', 'running>succeeded', 'running>failed'"


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(48), nullable=False),
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
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("dataset_id", sa.String(48), nullable=False),
        sa.Column("first_model", sa.String(200), nullable=False),
        sa.Column("second_model", sa.String(200), nullable=False),
        sa.Column("models", JSON, nullable=False),
        sa.Column("split", sa.String(200), nullable=True),
        sa.Column("max_images", sa.Integer(), nullable=True),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("images_done", sa.BigInteger(), nullable=True),
        sa.Column("images_total", sa.BigInteger(), nullable=True),
        sa.Column("result", JSON, nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_comparisons_dataset_id_datasets"),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
    )
    op.create_index("ix_comparisons_state_created_at_id", "comparisons", ["state", "created_at", "id"])
    op.create_index("ix_comparisons_created_at_id", "comparisons", ["created_at", "id"])
    for column in ("dataset_id", "first_model", "second_model"):
        op.create_index(f"ix_comparisons_{column}", "comparisons", [column])
    op.create_table(
        "comparison_files",
        sa.Column("comparison_id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("storage_key", sa.String(300), nullable=False),
        sa.ForeignKeyConstraint(
            ["comparison_id"],
            ["comparisons.id"],
            name="fk_comparison_files_comparison_id_comparisons",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("comparison_id", "name", name="pk_comparison_files"),
    )
    op.create_index("ix_comparison_files_storage_key", "comparison_files", ["storage_key"])
    if op.get_bind().dialect.name == "postgresql":
        guard_postgresql()
    else:
        guard_sqlite()


def downgrade() -> None:
    op.drop_table("comparison_files")
    op.drop_table("comparisons")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION guard_comparisons_state()")


def guard_postgresql() -> None:
    op.execute(
        f"""
        CREATE FUNCTION guard_comparisons_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'INSERT' THEN
                IF NEW.state <> 'queued' THEN
                    RAISE EXCEPTION 'comparisons cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
                END IF;
            ELSIF NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({MOVES}) THEN
                RAISE EXCEPTION 'comparisons cannot move from % to %', OLD.state, NEW.state
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER guard_comparisons_state BEFORE INSERT OR UPDATE ON comparisons "
        "FOR EACH ROW EXECUTE FUNCTION guard_comparisons_state()"
    )


def guard_sqlite() -> None:
    op.execute(
        "CREATE TRIGGER guard_comparisons_state_insert BEFORE INSERT ON comparisons WHEN NEW.state <> 'queued' "
        "BEGIN SELECT RAISE(ABORT, 'comparisons cannot begin in this state'); END"
    )
    op.execute(
        "CREATE TRIGGER guard_comparisons_state_update BEFORE UPDATE ON comparisons "
        f"WHEN NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({MOVES}) "
        "BEGIN SELECT RAISE(ABORT, 'comparisons cannot move to this state'); END"
    )
