"""The volumes of a storage are looked for by that, each time that one is to be made there.

Revision: 0015, follows on 0014
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_INDEX = "ix_volume_storage_id"


def upgrade() -> None:
    op.create_index(op.f(_INDEX), "volume", ["storage_id"])


def downgrade() -> None:
    op.drop_index(op.f(_INDEX), "volume")
