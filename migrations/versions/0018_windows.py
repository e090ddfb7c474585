"""Nodes have maintenance windows, in which they are empty.

Revision: 0018, follows on 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "maintenance_window",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("node_id", _KEY, nullable=False),
        sa.Column("cron", sa.String(), nullable=True),
        sa.Column("zone", sa.String(), nullable=False),
        sa.Column("duration_s", sa.Double(), nullable=False),
        sa.Column("restore", sa.Boolean(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("duration_s > 0", name=op.f("ck_maintenance_window_duration")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_maintenance_window_node_id_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_maintenance_window")),
    )
    op.create_index(op.f("ix_maintenance_window_node_id"), "maintenance_window", ["node_id"])
    op.add_column("evacuation", sa.Column("restore_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("evacuation", "restore_at")
    op.drop_table("maintenance_window")
