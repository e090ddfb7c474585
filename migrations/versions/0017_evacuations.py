"""Nodes are emptied and filled again; rules say which VMs are beside each other.

Revision: 0017, follows on 0016
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NODE_STATES = ("online", "maintenance", "lost")
_NODE_STATES_NOW = ("online", "draining", "drained", "maintenance", "lost")
_STATES = ("planned", "running", "paused", "blocked", "drained", "cancelled", "restoring", "restored")
_OPEN = sa.text("state NOT IN ('cancelled', 'restored')")


def upgrade() -> None:
    _take_node_states(_NODE_STATES_NOW)
    with op.batch_alter_table("vm") as batch_op:
        batch_op.add_column(
            sa.Column("evacuation", sa.String(length=24), nullable=False, server_default="offline_if_stopped")
        )
        batch_op.create_check_constraint(
            op.f("ck_vm_evacuationpolicy"), _one_of("evacuation", ("live", "offline_if_stopped", "stay"))
        )
    _create_evacuations()
    with op.batch_alter_table("batch") as batch_op:
        batch_op.add_column(sa.Column("evacuation_id", _KEY, nullable=True))
        batch_op.add_column(sa.Column("homeward", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch_op.create_foreign_key(op.f("fk_batch_evacuation_id_evacuation"), "evacuation", ["evacuation_id"], ["id"])
        batch_op.create_index(op.f("ix_batch_evacuation_id"), ["evacuation_id"])
    _create_rules()


def _create_evacuations() -> None:
    op.create_table(
        "evacuation",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("node_id", _KEY, nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("node_was", sa.String(length=24), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tried_after", sa.BigInteger(), nullable=False),
        sa.Column("plans", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(_one_of("state", _STATES), name=op.f("ck_evacuation_evacuationstate")),
        sa.CheckConstraint(
            _one_of("node_was", _NODE_STATES_NOW),
            name=op.f("ck_evacuation_nodestate"),
        ),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_evacuation_node_id_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evacuation")),
    )
    op.create_index(
        "uq_evacuation_one_open", "evacuation", ["node_id"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN
    )
    op.create_table(
        "evacuation_vm",
        sa.Column("evacuation_id", _KEY, nullable=False),
        sa.Column("vm_id", _KEY, nullable=False),
        sa.Column("target_id", _KEY, nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("is_home", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evacuation_id"], ["evacuation.id"], name=op.f("fk_evacuation_vm_evacuation_id_evacuation")
        ),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.id"], name=op.f("fk_evacuation_vm_vm_id_vm")),
        sa.ForeignKeyConstraint(["target_id"], ["node.id"], name=op.f("fk_evacuation_vm_target_id_node")),
        sa.PrimaryKeyConstraint("evacuation_id", "vm_id", name=op.f("pk_evacuation_vm")),
    )
    op.create_index(op.f("ix_evacuation_vm_vm_id"), "evacuation_vm", ["vm_id"])


def _create_rules() -> None:
    op.create_table(
        "placement_rule",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("hard", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            _one_of("kind", ("together", "apart", "only_on", "not_on")), name=op.f("ck_placement_rule_rulekind")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_placement_rule")),
        sa.UniqueConstraint("name", name=op.f("uq_placement_rule_name")),
    )
    for what in ("vm", "node"):
        table, column = f"placement_rule_{what}", f"{what}_id"
        op.create_table(
            table,
            sa.Column("rule_id", _KEY, nullable=False),
            sa.Column(column, _KEY, nullable=False),
            sa.ForeignKeyConstraint(
                ["rule_id"], ["placement_rule.id"], name=op.f(f"fk_{table}_rule_id_placement_rule")
            ),
            sa.ForeignKeyConstraint([column], [f"{what}.id"], name=op.f(f"fk_{table}_{column}_{what}")),
            sa.PrimaryKeyConstraint("rule_id", column, name=op.f(f"pk_{table}")),
        )
    op.create_index(op.f("ix_placement_rule_vm_vm_id"), "placement_rule_vm", ["vm_id"])


def _one_of(column: str, words: Iterable[str]) -> str:
    listed = ", ".join(f"'{word}'" for word in words)
    return f"{column} IN ({listed})"


def _take_node_states(states: Iterable[str]) -> None:
    with op.batch_alter_table("node") as batch_op:
        batch_op.drop_constraint(op.f("ck_node_nodestate"), type_="check")
        batch_op.create_check_constraint(op.f("ck_node_nodestate"), _one_of("state", states))


def downgrade() -> None:
    for table in ("placement_rule_node", "placement_rule_vm", "placement_rule"):
        op.drop_table(table)
    with op.batch_alter_table("batch") as batch_op:
        batch_op.drop_index(op.f("ix_batch_evacuation_id"))
        batch_op.drop_constraint(op.f("fk_batch_evacuation_id_evacuation"), type_="foreignkey")
        batch_op.drop_column("homeward")
        batch_op.drop_column("evacuation_id")
    op.drop_table("evacuation_vm")
    op.drop_table("evacuation")
    with op.batch_alter_table("vm") as batch_op:
        batch_op.drop_constraint(op.f("ck_vm_evacuationpolicy"), type_="check")
        batch_op.drop_column("evacuation")
    # An older version knows no emptied node; one in maintenance takes nothing either.
    op.execute(sa.text("UPDATE node SET state = 'maintenance' WHERE state IN ('draining', 'drained')"))
    _take_node_states(_NODE_STATES)
