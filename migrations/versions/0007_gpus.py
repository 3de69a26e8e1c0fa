"""GPUs: how many a job needs, and how many a worker has.

Columns are added to `jobs` without batch mode, as in 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("jobs", "workers"):
        op.add_column(table, sa.Column("gpus", sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    for table in ("workers", "jobs"):
        op.drop_column(table, "gpus")
