"""How many were begun in a time is looked for by that.

Revision: 0014, follows on 0013
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_BEGUN = "ix_attempt_started_at"


# A revision of its own: to lock this table and another one in one transaction is a deadlock with a worker that does so
# in its own order.
def upgrade() -> None:
    op.create_index(op.f(_BEGUN), "attempt", ["started_at"])


def downgrade() -> None:
    op.drop_index(op.f(_BEGUN), "attempt")
