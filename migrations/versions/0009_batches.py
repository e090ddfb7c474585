"""Batches: migrations that were filed together, and what must be done before others.

Revision: 0009, follows on 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("stop_after", sa.BigInteger(), nullable=True),
        sa.Column("forgiven", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('open', 'paused', 'stopped', 'cancelled')", name=op.f("ck_batch_batchstate")),
        sa.CheckConstraint("stop_after > 0", name=op.f("ck_batch_stop_after")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
        sa.UniqueConstraint("key", name=op.f("uq_batch_key")),
    )
    with op.batch_alter_table("migration", table_kwargs={"sqlite_autoincrement": True}) as batch_op:
        batch_op.add_column(sa.Column("batch_id", _KEY, nullable=True))
        batch_op.add_column(sa.Column("planned_bytes", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        batch_op.add_column(sa.Column("target_auto", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.add_column(sa.Column("deadline", sa.DateTime(timezone=True), nullable=True))
        batch_op.create_foreign_key(op.f("fk_migration_batch_id_batch"), "batch", ["batch_id"], ["id"])
        batch_op.create_index(op.f("ix_migration_batch_id"), ["batch_id"])
    op.create_table(
        "migration_after",
        sa.Column("migration_id", _KEY, nullable=False),
        sa.Column("after_id", _KEY, nullable=False),
        sa.CheckConstraint("migration_id <> after_id", name=op.f("ck_migration_after_two")),
        sa.ForeignKeyConstraint(
            ["migration_id"], ["migration.id"], name=op.f("fk_migration_after_migration_id_migration")
        ),
        sa.ForeignKeyConstraint(["after_id"], ["migration.id"], name=op.f("fk_migration_after_after_id_migration")),
        sa.PrimaryKeyConstraint("migration_id", "after_id", name=op.f("pk_migration_after")),
    )
    op.create_index(op.f("ix_migration_after_after_id"), "migration_after", ["after_id"])


def downgrade() -> None:
    op.drop_table("migration_after")
    with op.batch_alter_table("migration", table_kwargs={"sqlite_autoincrement": True}) as batch_op:
        batch_op.drop_index(op.f("ix_migration_batch_id"))
        batch_op.drop_constraint(op.f("fk_migration_batch_id_batch"), type_="foreignkey")
        for name in ("deadline", "target_auto", "planned_bytes", "batch_id"):
            batch_op.drop_column(name)
    op.drop_table("batch")
