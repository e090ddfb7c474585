"""What more may happen to a VM when its node is emptied: a long pause, or, by consent, a stop.

Revision: 0020, follows on 0019
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_POLICIES = ("live", "offline_if_stopped", "stay")
_POLICIES_NOW = ("live", "live_or_pause", "offline_if_stopped", "stop_by_consent", "stay")


def upgrade() -> None:
    _take_policies(_POLICIES_NOW)
    op.add_column("migration", sa.Column("may_pause", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("evacuation_vm", sa.Column("consent_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("evacuation_vm", sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "evacuation_vm", sa.Column("tried_after", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )


def _take_policies(policies: Iterable[str]) -> None:
    listed = ", ".join(f"'{policy}'" for policy in policies)
    with op.batch_alter_table("vm") as batch_op:
        batch_op.drop_constraint(op.f("ck_vm_evacuationpolicy"), type_="check")
        batch_op.create_check_constraint(op.f("ck_vm_evacuationpolicy"), f"evacuation IN ({listed})")


def downgrade() -> None:
    for column in ("tried_after", "stopped_at", "consent_at"):
        op.drop_column("evacuation_vm", column)
    op.drop_column("migration", "may_pause")
    # An older version knows neither; what it does by the usual policy is part of both.
    op.execute(
        sa.text(
            "UPDATE vm SET evacuation = 'offline_if_stopped' WHERE evacuation IN ('live_or_pause', 'stop_by_consent')"
        )
    )
    _take_policies(_POLICIES)
