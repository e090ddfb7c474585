"""Migrations have labels, by which they are paused or begun at a rate.

Revision: 0013, follows on 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queue_label",
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("allowed", sa.BigInteger(), nullable=True),
        sa.Column("period_s", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("allowed > 0 AND period_s > 0", name=op.f("ck_queue_label_rate")),
        sa.CheckConstraint("(allowed IS NULL) = (period_s IS NULL)", name=op.f("ck_queue_label_rate_is_whole")),
        sa.CheckConstraint("paused OR allowed IS NOT NULL", name=op.f("ck_queue_label_says_something")),
        sa.PrimaryKeyConstraint("label", name=op.f("pk_queue_label")),
    )
    op.add_column("migration", sa.Column("label", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("migration", "label")
    op.drop_table("queue_label")
