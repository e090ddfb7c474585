"""Attempts that are prepared wait at a second gate before their guests' RAM is moved.

Revision: 0008, follows on 0007

One that is past its mirrors already has gone through.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_MOMENTS = ("at_gate_since", "moving_at", "moved_at")


def upgrade() -> None:
    for name in _MOMENTS:
        op.add_column("attempt", sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.execute(
        sa.text(
            "UPDATE attempt SET moving_at = started_at WHERE finished_at IS NULL AND EXISTS (SELECT 1 FROM step"
            " WHERE step.attempt_id = attempt.id AND step.phase = 'hand_over' AND step.state <> 'waiting')"
        )
    )


def downgrade() -> None:
    # An older version has no gate, and nobody who would let one through that waits there.
    op.execute(
        sa.text(
            "UPDATE step SET state = 'ready', ready_at = (SELECT attempt.at_gate_since FROM attempt"
            " WHERE attempt.id = step.attempt_id) WHERE step.phase = 'hand_over' AND step.state = 'waiting'"
            " AND step.attempt_id IN (SELECT attempt.id FROM attempt WHERE attempt.at_gate_since IS NOT NULL"
            " AND attempt.moving_at IS NULL AND attempt.finished_at IS NULL)"
        )
    )
    for name in reversed(_MOMENTS):
        op.drop_column("attempt", name)
