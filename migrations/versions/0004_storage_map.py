"""A migration may put volumes onto other storages than those of the same name.

Revision: 0004, follows on 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("migration", sa.Column("storage_map", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("migration", "storage_map")
