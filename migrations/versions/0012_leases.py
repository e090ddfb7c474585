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

_CHECKED = "lease_until IS NULL OR (lease_s IS NOT NULL AND lease_s >= 0)"
# Whoever held something while the schema was changed holds it no longer than it may have been without this column.
_LENGTHS = {"step": 15.0, "operation": 21600.0}


def upgrade() -> None:
    for table, seconds in _LENGTHS.items():
        op.add_column(table, sa.Column("lease_s", sa.Double(), nullable=True))
        held = sa.table(table, sa.column("lease_s", sa.Double()), sa.column("lease_until", sa.DateTime()))
        op.execute(held.update().where(held.c.lease_until.is_not(None)).values(lease_s=seconds))
        with op.batch_alter_table(table) as batch_op:
            batch_op.create_check_constraint(op.f(f"ck_{table}_lease"), sa.text(_CHECKED))


def downgrade() -> None:
    for table in _LENGTHS:
        with op.batch_alter_table(table) as batch_op:
            batch_op.drop_constraint(op.f(f"ck_{table}_lease"), type_="check")
            batch_op.drop_column("lease_s")
