"""The bandwidth of nodes and links has a budget, which those that carry bytes share.

Revision: 0011, follows on 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_GATE = "ck_queue_limit_gate"
_SOME = "ck_queue_limit_some_bandwidth"


def upgrade() -> None:
    op.create_table(
        "bandwidth_share",
        sa.Column("step_id", _KEY, autoincrement=False, nullable=False),
        sa.Column("share_bytes_per_s", sa.BigInteger(), nullable=True),
        sa.Column("using_bytes_per_s", sa.BigInteger(), nullable=True),
        sa.Column("fixed", sa.Boolean(), nullable=False),
        sa.CheckConstraint("share_bytes_per_s >= 0", name=op.f("ck_bandwidth_share_share")),
        sa.CheckConstraint("using_bytes_per_s >= 0", name=op.f("ck_bandwidth_share_using")),
        sa.ForeignKeyConstraint(["step_id"], ["step.id"], name=op.f("fk_bandwidth_share_step_id_step")),
        sa.PrimaryKeyConstraint("step_id", name=op.f("pk_bandwidth_share")),
    )
    with op.batch_alter_table("queue_limit") as batch_op:
        batch_op.drop_constraint(op.f(_GATE), type_="check")
        batch_op.create_check_constraint(op.f(_GATE), sa.text("gate IN ('prepare', 'move', 'bandwidth')"))
        batch_op.create_check_constraint(op.f(_SOME), sa.text("gate <> 'bandwidth' OR allowed > 0"))


def downgrade() -> None:
    # An older version would take the bytes for a number of migrations.
    op.execute(sa.text("DELETE FROM queue_limit WHERE gate = 'bandwidth'"))
    with op.batch_alter_table("queue_limit") as batch_op:
        batch_op.drop_constraint(op.f(_SOME), type_="check")
        batch_op.drop_constraint(op.f(_GATE), type_="check")
        batch_op.create_check_constraint(op.f(_GATE), sa.text("gate IN ('prepare', 'move')"))
    op.drop_table("bandwidth_share")
