"""Migrations wait: their place in the queue, the limits that hold them.

Revision: 0007, follows on 0006

Nothing waited before: what is open is at work.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_AT_WORK = "state IN ('running', 'handed_over', 'rolling_back')"
_OPEN = "state IN ('queued', 'running', 'handed_over', 'rolling_back')"
_WAITS = "state = 'queued'"


def upgrade() -> None:
    op.create_table(
        "queue_limit",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("gate", sa.String(length=24), nullable=False),
        sa.Column("scope", sa.String(length=24), nullable=False),
        sa.Column("node_id", _KEY, nullable=True),
        sa.Column("peer_id", _KEY, nullable=True),
        sa.Column("allowed", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("gate IN ('prepare', 'move')", name=op.f("ck_queue_limit_gate")),
        sa.CheckConstraint("scope IN ('cluster', 'out', 'in', 'pair')", name=op.f("ck_queue_limit_limitscope")),
        sa.CheckConstraint("allowed >= 0", name=op.f("ck_queue_limit_allowed")),
        sa.CheckConstraint("(scope = 'cluster') = (node_id IS NULL)", name=op.f("ck_queue_limit_scope_has_node")),
        sa.CheckConstraint("(scope = 'pair') = (peer_id IS NOT NULL)", name=op.f("ck_queue_limit_pair_has_peer")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_queue_limit_node_id_node")),
        sa.ForeignKeyConstraint(["peer_id"], ["node.id"], name=op.f("fk_queue_limit_peer_id_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_limit")),
    )
    _unique("queue_limit", "uq_queue_limit_cluster", "gate", where="scope = 'cluster'")
    _unique("queue_limit", "uq_queue_limit_node", "gate", "scope", "node_id", where="scope IN ('out', 'in')")
    _unique("queue_limit", "uq_queue_limit_pair", "gate", "node_id", "peer_id", where="scope = 'pair'")
    op.add_column("migration", sa.Column("rank", sa.Double(), nullable=False, server_default=sa.text("0")))
    op.drop_index("uq_migration_one_open", table_name="migration")
    _unique("migration", "uq_migration_one_at_work", "vm_id", where=_AT_WORK)
    _unique("migration", "uq_migration_one_wish", "vm_id", where=f"replication_id IS NULL AND {_OPEN}")
    op.create_index(
        "ix_migration_queue",
        "migration",
        ["rank", "id"],
        sqlite_where=sa.text(_WAITS),
        postgresql_where=sa.text(_WAITS),
    )


def downgrade() -> None:
    # What waits has no attempt, and no older version would begin it.
    op.execute(sa.text("UPDATE migration SET state = 'cancelled', finished_at = created_at WHERE state = 'queued'"))
    for name in ("ix_migration_queue", "uq_migration_one_wish", "uq_migration_one_at_work"):
        op.drop_index(name, table_name="migration")
    _unique("migration", "uq_migration_one_open", "vm_id", where=_OPEN)
    op.drop_column("migration", "rank")
    op.drop_table("queue_limit")


def _unique(table: str, name: str, *columns: str, where: str) -> None:
    clause = sa.text(where)
    op.create_index(name, table, [*columns], unique=True, sqlite_where=clause, postgresql_where=clause)
