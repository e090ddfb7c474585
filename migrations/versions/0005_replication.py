"""Replicas are made: replications, their syncs, overlays; nodes that are lost.

Revision: 0005, follows on 0004

Replica rows were made by nobody before, so there are none to be carried over.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Table, column, name of the words, the words before and those that are added.
_WORDS = (
    ("node", "state", "nodestate", ("online", "maintenance"), ("lost",)),
    ("operation", "kind", "operationkind", ("create", "start", "stop"), ("recover", "drop_replica")),
    (
        "step",
        "phase",
        "phase",
        (
            "check",
            "reserve",
            "sync_tpm",
            "copy_cold",
            "open_target",
            "mirror_disks",
            "move_memory",
            "hand_over",
            "retire_source",
        ),
        ("send_generation", "take_generation"),
    ),
)


def upgrade() -> None:
    op.create_table(
        "replication",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("vm_id", _KEY, nullable=False),
        sa.Column("target_id", _KEY, nullable=False),
        sa.Column("every_s", sa.Double(), nullable=True),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("every_s > 0", name=op.f("ck_replication_every")),
        sa.ForeignKeyConstraint(["target_id"], ["node.id"], name=op.f("fk_replication_target_id_node")),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.id"], name=op.f("fk_replication_vm_id_vm")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replication")),
    )
    with op.batch_alter_table("replication") as batch_op:
        batch_op.create_index(
            "uq_replication_one",
            ["vm_id", "target_id"],
            unique=True,
            sqlite_where=sa.text("ended_at IS NULL"),
            postgresql_where=sa.text("ended_at IS NULL"),
        )
    op.execute(sa.text("DELETE FROM replica"))
    with op.batch_alter_table("replica") as batch_op:
        batch_op.add_column(sa.Column("replication_id", _KEY, nullable=False))
        batch_op.add_column(sa.Column("overlay", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("seen", sa.JSON(), nullable=True))
        batch_op.create_foreign_key(
            op.f("fk_replica_replication_id_replication"), "replication", ["replication_id"], ["id"]
        )
        batch_op.create_unique_constraint(op.f("uq_replica_storage_id_overlay"), ["storage_id", "overlay"])
    with op.batch_alter_table("migration", table_kwargs={"sqlite_autoincrement": True}) as batch_op:
        batch_op.add_column(sa.Column("replication_id", _KEY, nullable=True))
        batch_op.create_foreign_key(
            op.f("fk_migration_replication_id_replication"), "replication", ["replication_id"], ["id"]
        )
    op.add_column("volume_transfer", sa.Column("base_name", sa.String(), nullable=True))
    for table, column, name, before, added in _WORDS:
        _take_words(table, column, name, (*before, *added))


def _take_words(table: str, column: str, name: str, words: Iterable[str]) -> None:
    """From now on the column holds these words and no others."""
    listed = ", ".join(f"'{word}'" for word in words)
    with op.batch_alter_table(table) as batch_op:
        batch_op.drop_constraint(op.f(f"ck_{table}_{name}"), type_="check")
        batch_op.create_check_constraint(op.f(f"ck_{table}_{name}"), sa.text(f"{column} IN ({listed})"))


def downgrade() -> None:
    for table, column, name, before, _ in _WORDS:
        _take_words(table, column, name, before)
    op.drop_column("volume_transfer", "base_name")
    with op.batch_alter_table("migration", table_kwargs={"sqlite_autoincrement": True}) as batch_op:
        batch_op.drop_constraint(op.f("fk_migration_replication_id_replication"), type_="foreignkey")
        batch_op.drop_column("replication_id")
    op.execute(sa.text("DELETE FROM replica"))
    with op.batch_alter_table("replica") as batch_op:
        batch_op.drop_constraint(op.f("uq_replica_storage_id_overlay"), type_="unique")
        batch_op.drop_constraint(op.f("fk_replica_replication_id_replication"), type_="foreignkey")
        for column in ("seen", "overlay", "replication_id"):
            batch_op.drop_column(column)
    op.drop_table("replication")
