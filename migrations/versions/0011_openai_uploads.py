"""Uploads that OpenAI's clients announce: what for, and the dataset that was made of one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("purpose", sa.String(200), nullable=True))
    op.add_column("uploads", sa.Column("dataset_id", sa.String(48), nullable=True))


def downgrade() -> None:
    op.drop_column("uploads", "dataset_id")
    op.drop_column("uploads", "purpose")
