"""A migration may be tried again after a failure: how often, and not before when; what each try came to.

Revision: 0010, follows on 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    with op.batch_alter_table("migration", table_kwargs={"sqlite_autoincrement": True}) as batch_op:
        batch_op.add_column(sa.Column("tries", sa.BigInteger(), nullable=False, server_default=sa.text("1")))
        batch_op.add_column(sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_check_constraint(op.f("ck_migration_tries"), sa.text("tries > 0"))
    with op.batch_alter_table("attempt") as batch_op:
        batch_op.add_column(sa.Column("target_id", _KEY, nullable=True))
        batch_op.add_column(sa.Column("problem", sa.JSON(), nullable=True))
        batch_op.create_foreign_key(op.f("fk_attempt_target_id_node"), "node", ["target_id"], ["id"])


def downgrade() -> None:
    with op.batch_alter_table("attempt") as batch_op:
        batch_op.drop_constraint(op.f("fk_attempt_target_id_node"), type_="foreignkey")
        for name in ("problem", "target_id"):
            batch_op.drop_column(name)
    with op.batch_alter_table("migration", table_kwargs={"sqlite_autoincrement": True}) as batch_op:
        batch_op.drop_constraint(op.f("ck_migration_tries"), type_="check")
        for name in ("not_before", "tries"):
            batch_op.drop_column(name)
