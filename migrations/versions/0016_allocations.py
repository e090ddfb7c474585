"""What is taken now is found without a look at all that was ever taken.

Revision: 0016, follows on 0015
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_HELD = sa.text("freed_at IS NULL")
_COLUMNS = ("attempt_id", "node_id")


def upgrade() -> None:
    for column in _COLUMNS:
        name = op.f(f"ix_allocation_{column}")
        op.create_index(name, "allocation", [column], sqlite_where=_HELD, postgresql_where=_HELD)


def downgrade() -> None:
    for column in _COLUMNS:
        op.drop_index(op.f(f"ix_allocation_{column}"), "allocation")
