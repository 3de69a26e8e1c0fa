"""Access: keys of the API, and the project that each resource belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
OWNED = ("datasets", "uploads", "models", "predictions", "comparisons")
LISTED = ("datasets", "sweeps", "models", "comparisons")


def upgrade() -> None:
    for table in OWNED:
        op.add_column(table, sa.Column("project", sa.String(64), nullable=False, server_default="default"))
    op.execute(
        "UPDATE models SET project = (SELECT project FROM jobs WHERE jobs.id = models.job_id) "
        "WHERE EXISTS (SELECT 1 FROM jobs WHERE jobs.id = models.job_id)"
    )
    op.execute("UPDATE predictions SET project = (SELECT project FROM models WHERE models.id = predictions.model_id)")
    with op.batch_alter_table("sweeps") as sweeps:
        sweeps.alter_column("project", server_default="default", existing_type=sa.String(64), existing_nullable=False)
    for table in LISTED:
        op.create_index(f"ix_{table}_project_created_at_id", table, ["project", "created_at", "id"])
    _rekey(["project", "operation", "key"], add=True)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("project", sa.String(64), nullable=True),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("hint", sa.String(16), nullable=False),
        sa.Column("previous_sha256", sa.String(64), nullable=True),
        sa.Column("previous_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
    )
    op.create_index("ix_api_keys_project_created_at_id", "api_keys", ["project", "created_at", "id"])
    op.create_index("ix_api_keys_previous_sha256", "api_keys", ["previous_sha256"])


def downgrade() -> None:
    op.drop_table("api_keys")
    _rekey(["operation", "key"], add=False)
    for table in LISTED:
        op.drop_index(f"ix_{table}_project_created_at_id", table)
    with op.batch_alter_table("sweeps") as sweeps:
        sweeps.alter_column("project", server_default=None, existing_type=sa.String(64), existing_nullable=False)
    for table in OWNED:
        op.drop_column(table, "project")


def _rekey(columns: list[str], *, add: bool) -> None:
    """Give idempotency_keys another primary key; without projects there is room for the keys of one alone."""
    if not add:
        op.execute("DELETE FROM idempotency_keys WHERE project <> ''")
    with op.batch_alter_table("idempotency_keys") as table:
        table.drop_constraint("pk_idempotency_keys", type_="primary")
        if add:
            table.add_column(sa.Column("project", sa.String(64), nullable=False, server_default=""))
        else:
            table.drop_column("project")
        table.create_primary_key("pk_idempotency_keys", columns)
