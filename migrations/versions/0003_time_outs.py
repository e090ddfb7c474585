"""How long a migration may take, and how long it may show no progress.

Revision: 0003, follows on 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("timeout_s", "stall_s"):
        op.add_column("migration", sa.Column(name, sa.Double(), nullable=False, server_default=sa.text("0")))


def downgrade() -> None:
    for name in ("stall_s", "timeout_s"):
        op.drop_column("migration", name)
