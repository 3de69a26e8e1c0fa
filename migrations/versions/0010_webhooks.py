"""Webhook endpoints and their deliveries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
# What waits fails if its endpoint is disabled; what has ended is sent again when a user asks for it.
MOVES = (
    "'queued>running', 'queued>failed', 'running>queued', 'running>succeeded', 'running>failed', "
    "'succeeded>queued', 'failed>queued'"
)


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(48), nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("url", sa.String(2000), nullable=False),
        sa.Column("description", sa.String(500), nullable=True),
        sa.Column("format", sa.String(24), nullable=False),
        sa.Column("events", JSON, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    op.create_index("ix_webhook_endpoints_project_created_at_id", "webhook_endpoints", ["project", "created_at", "id"])
    op.create_index("ix_webhook_endpoints_created_at_id", "webhook_endpoints", ["created_at", "id"])
    op.create_table(
        "webhook_deliveries",
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
        sa.Column("endpoint_id", sa.String(48), nullable=False),
        sa.Column("message_id", sa.String(48), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("attempts", JSON, nullable=False),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name="fk_webhook_deliveries_endpoint_id_webhook_endpoints",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    for columns in (
        ["state", "not_before", "id"],
        ["endpoint_id", "created_at", "id"],
        ["endpoint_id", "state", "created_at", "id"],
        ["finished_at"],
    ):
        op.create_index(f"ix_webhook_deliveries_{'_'.join(columns)}", "webhook_deliveries", columns)
    if op.get_bind().dialect.name == "postgresql":
        guard_postgresql()
    else:
        guard_sqlite()


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhook_endpoints")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION guard_webhook_deliveries_state()")


def guard_postgresql() -> None:
    op.execute(
        f"""
        CREATE FUNCTION guard_webhook_deliveries_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'INSERT' THEN
                IF NEW.state <> 'queued' THEN
                    RAISE EXCEPTION 'deliveries cannot begin as %', NEW.state USING ERRCODE = 'check_violation';
                END IF;
            ELSIF NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({MOVES}) THEN
                RAISE EXCEPTION 'deliveries cannot move from % to %', OLD.state, NEW.state
                    USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER guard_webhook_deliveries_state BEFORE INSERT OR UPDATE ON webhook_deliveries "
        "FOR EACH ROW EXECUTE FUNCTION guard_webhook_deliveries_state()"
    )


def guard_sqlite() -> None:
    op.execute(
        "CREATE TRIGGER guard_webhook_deliveries_state_insert BEFORE INSERT ON webhook_deliveries "
        "WHEN NEW.state <> 'queued' "
        "BEGIN SELECT RAISE(ABORT, 'deliveries cannot begin in this state'); END"
    )
    op.execute(
        "CREATE TRIGGER guard_webhook_deliveries_state_update BEFORE UPDATE ON webhook_deliveries "
        f"WHEN NEW.state <> OLD.state AND OLD.state || '>' || NEW.state NOT IN ({MOVES}) "
        "BEGIN SELECT RAISE(ABORT, 'deliveries cannot move to this state'); END"
    )
