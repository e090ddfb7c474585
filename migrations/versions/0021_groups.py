"""Nodes are in groups, of which few are out at once; rolls take a group's nodes in turn; windows may be of a group.

Windows of groups are gone after a downgrade: an older version knows none.

Revision: 0021, follows on 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_OVER = "state IN ('done', 'cancelled')"


def upgrade() -> None:
    op.create_table(
        "node_group",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("max_at_once", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("max_at_once >= 1", name=op.f("ck_node_group_max_at_once")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node_group")),
        sa.UniqueConstraint("name", name=op.f("uq_node_group_name")),
    )
    op.create_table(
        "node_group_node",
        sa.Column("group_id", _KEY, nullable=False),
        sa.Column("node_id", _KEY, nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["node_group.id"], name=op.f("fk_node_group_node_group_id_node_group")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_node_group_node_node_id_node")),
        sa.PrimaryKeyConstraint("group_id", "node_id", name=op.f("pk_node_group_node")),
    )
    op.create_index(op.f("ix_node_group_node_node_id"), "node_group_node", ["node_id"])
    for name, kind in (("hold_s", sa.Double()), ("drained_at", sa.DateTime(timezone=True))):
        op.add_column("evacuation", sa.Column(name, kind, nullable=True))
    _create_rolls()
    with op.batch_alter_table("maintenance_window") as batch_op:
        batch_op.alter_column("node_id", existing_type=_KEY, nullable=True)
        batch_op.add_column(sa.Column("group_id", _KEY, nullable=True))
        batch_op.add_column(sa.Column("hold_s", sa.Double(), nullable=True))
        batch_op.create_foreign_key(
            op.f("fk_maintenance_window_group_id_node_group"), "node_group", ["group_id"], ["id"]
        )
        batch_op.create_check_constraint(
            op.f("ck_maintenance_window_node_or_group"), "(node_id IS NULL) <> (group_id IS NULL)"
        )
        batch_op.create_check_constraint(op.f("ck_maintenance_window_hold"), "hold_s >= 0")
        batch_op.create_index(op.f("ix_maintenance_window_group_id"), ["group_id"])


def _create_rolls() -> None:
    op.create_table(
        "roll",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("group_id", _KEY, nullable=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("hold_s", sa.Double(), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("restore_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("window_id", sa.BigInteger(), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('running', 'paused', 'done', 'cancelled')", name=op.f("ck_roll_rollstate")),
        sa.CheckConstraint(f"group_id IS NOT NULL OR {_OVER}", name=op.f("ck_roll_open_has_group")),
        sa.CheckConstraint("hold_s >= 0", name=op.f("ck_roll_hold")),
        sa.ForeignKeyConstraint(["group_id"], ["node_group.id"], name=op.f("fk_roll_group_id_node_group")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_roll")),
    )
    is_open = sa.text(f"NOT ({_OVER})")
    op.create_index(
        "uq_roll_one_open", "roll", ["group_id"], unique=True, sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_table(
        "roll_node",
        sa.Column("roll_id", _KEY, nullable=False),
        sa.Column("node_id", _KEY, nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("evacuation_id", _KEY, nullable=True),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.CheckConstraint("state IN ('waiting', 'out', 'done', 'left_out')", name=op.f("ck_roll_node_rollnodestate")),
        sa.CheckConstraint("evacuation_id IS NOT NULL OR state <> 'out'", name=op.f("ck_roll_node_out_by_evacuation")),
        sa.ForeignKeyConstraint(["roll_id"], ["roll.id"], name=op.f("fk_roll_node_roll_id_roll")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_roll_node_node_id_node")),
        sa.ForeignKeyConstraint(
            ["evacuation_id"], ["evacuation.id"], name=op.f("fk_roll_node_evacuation_id_evacuation")
        ),
        sa.PrimaryKeyConstraint("roll_id", "node_id", name=op.f("pk_roll_node")),
    )
    op.create_index(op.f("ix_roll_node_node_id"), "roll_node", ["node_id"])


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM maintenance_window WHERE node_id IS NULL"))
    with op.batch_alter_table("maintenance_window") as batch_op:
        batch_op.drop_index(op.f("ix_maintenance_window_group_id"))
        for name in ("hold", "node_or_group"):
            batch_op.drop_constraint(op.f(f"ck_maintenance_window_{name}"), type_="check")
        batch_op.drop_constraint(op.f("fk_maintenance_window_group_id_node_group"), type_="foreignkey")
        for name in ("hold_s", "group_id"):
            batch_op.drop_column(name)
        batch_op.alter_column("node_id", existing_type=_KEY, nullable=False)
    for table in ("roll_node", "roll"):
        op.drop_table(table)
    for name in ("drained_at", "hold_s"):
        op.drop_column("evacuation", name)
    for table in ("node_group_node", "node_group"):
        op.drop_table(table)
