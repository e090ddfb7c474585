"""QEMU's own word for a guest that stands still.

Revision: 0002, follows on 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # No batch: it would copy the table, and SQLite can do this much by itself.
    op.add_column("vm", sa.Column("run_state", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("vm", "run_state")
