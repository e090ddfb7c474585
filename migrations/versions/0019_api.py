"""Tokens of the HTTP API, what is done when an alert fires, the alerts that were received, and who began
evacuations and closed nodes.

Revision: 0019, follows on 0018
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_FIRES = sa.text("state != 'resolved'")
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _word(name: str, *words: str) -> sa.Enum:
    return sa.Enum(*words, name=name, native_enum=False, create_constraint=True, length=24)


def upgrade() -> None:
    op.create_table(
        "api_token",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("scope", _word("tokenscope", "read", "write", "hook"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_token_digest")),
        sa.UniqueConstraint("name", name=op.f("uq_api_token_name")),
    )
    op.create_table(
        "alert_rule",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("alertname", sa.String(), nullable=False),
        sa.Column("action", _word("alertaction", "evacuate", "cordon"), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("restore", sa.Boolean(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_rule")),
        sa.UniqueConstraint("alertname", name=op.f("uq_alert_rule_alertname")),
    )
    op.create_table(
        "alert",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("alertname", sa.String(), nullable=False),
        sa.Column("action", _word("alertaction", "evacuate", "cordon"), nullable=False),
        sa.Column("restore", sa.Boolean(), nullable=False),
        sa.Column("node_id", _KEY, nullable=True),
        sa.Column("evacuation_id", _KEY, nullable=True),
        sa.Column(
            "state",
            _word("alertstate", "waiting", "done", "overruled", "refused", "dry_run", "resolved"),
            nullable=False,
        ),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["evacuation_id"], ["evacuation.id"], name=op.f("fk_alert_evacuation_id_evacuation")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_alert_node_id_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert")),
    )
    op.create_index(
        "uq_alert_one_firing", "alert", ["fingerprint"], unique=True, sqlite_where=_FIRES, postgresql_where=_FIRES
    )
    op.create_index(op.f("ix_alert_evacuation_id"), "alert", ["evacuation_id"])
    op.add_column("evacuation", sa.Column("cause", sa.String(), nullable=True))
    op.add_column("node", sa.Column("closed_by", sa.String(), nullable=True))
    op.create_index(op.f("ix_alert_state"), "alert", ["state"])


def downgrade() -> None:
    op.drop_column("node", "closed_by")
    op.drop_column("evacuation", "cause")
    op.drop_table("alert")
    op.drop_table("alert_rule")
    op.drop_table("api_token")
