"""A lease has a length: whether it is over is told by how long nobody renewed it, and not by the time of day.

Revision: 0012, follows on 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # None is the usual length: workers of the version before may still write rows.
    for table in ("step", "operation"):
        op.add_column(table, sa.Column("lease_s", sa.Double(), nullable=True))


def downgrade() -> None:
    for table in ("step", "operation"):
        with op.batch_alter_table(table) as batch_op:
            batch_op.drop_column("lease_s")
