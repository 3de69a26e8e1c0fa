"""The oldest version that still works with the schema, kept beside it: what the schema leaves behind does not start.

A migration that takes something away, or asks for something that earlier versions do not write, sets it to its own
revision (`op.execute("UPDATE schema_floor SET revision = '...'")`), one version after the code has stopped needing it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    floor = op.create_table(
        "schema_floor",
        sa.Column("revision", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_schema_floor"),
    )
    op.bulk_insert(floor, [{"revision": revision}])


def downgrade() -> None:
    op.drop_table("schema_floor")
