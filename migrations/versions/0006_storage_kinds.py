"""Storages that are no folders: the pool of a thin one, and the format that a volume is given where it goes.

Revision: 0006, follows on 0005

Attempts that are filed already leave each volume its format.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("storage") as batch_op:
        batch_op.add_column(sa.Column("pool", sa.String(), nullable=True))
        batch_op.create_check_constraint(
            op.f("ck_storage_thin_pool"), sa.text("(kind = 'lvmthin') = (pool IS NOT NULL)")
        )
    op.add_column("volume_transfer", sa.Column("target_format", sa.String(), nullable=True))
    op.execute(
        sa.text(
            "UPDATE volume_transfer SET target_format ="
            " (SELECT volume.format FROM volume WHERE volume.id = volume_transfer.volume_id)"
        )
    )
    with op.batch_alter_table("volume_transfer") as batch_op:
        batch_op.alter_column("target_format", existing_type=sa.String(), nullable=False)
        batch_op.create_check_constraint(
            op.f("ck_volume_transfer_tpmstate_stays_raw"), sa.text("role <> 'tpmstate' OR target_format = 'raw'")
        )


def downgrade() -> None:
    with op.batch_alter_table("volume_transfer") as batch_op:
        batch_op.drop_constraint(op.f("ck_volume_transfer_tpmstate_stays_raw"), type_="check")
        batch_op.drop_column("target_format")
    with op.batch_alter_table("storage") as batch_op:
        batch_op.drop_constraint(op.f("ck_storage_thin_pool"), type_="check")
        batch_op.drop_column("pool")
