"""All tables of the first release.

Revision: 0001, follows on nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("vm", sa.String(), nullable=True),
        sa.Column("node", sa.String(), nullable=True),
        sa.Column("migration", sa.BigInteger(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.create_index("ix_event_at", ["at"], unique=False)

    op.create_table(
        "node",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("online", "maintenance", name="nodestate", native_enum=False, create_constraint=True, length=24),
            nullable=False,
        ),
        sa.Column("port_first", sa.BigInteger(), nullable=False),
        sa.Column("port_last", sa.BigInteger(), nullable=False),
        sa.Column("network", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.CheckConstraint("network IN ('bridge', 'isolated')", name=op.f("ck_node_network")),
        sa.CheckConstraint(
            "port_first > 0 AND port_first <= port_last AND port_last < 65536", name=op.f("ck_node_ports")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
        sa.UniqueConstraint("name", name=op.f("uq_node_name")),
    )
    op.create_table(
        "storage",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_storage_node_id_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_storage")),
        sa.UniqueConstraint("node_id", "name", name=op.f("uq_storage_node_id_name")),
    )
    op.create_table(
        "vm",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "stopped",
                "running",
                "paused",
                "lost",
                name="vmstate",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("pinned", sa.JSON(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=True),
        sa.Column("qmp", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("epoch >= 0", name=op.f("ck_vm_epoch")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_vm_node_id_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vm")),
        sa.UniqueConstraint("name", name=op.f("uq_vm_name")),
    )
    op.create_table(
        "migration",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("vm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("source_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("target_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "running",
                "handed_over",
                "rolling_back",
                "done",
                "undone",
                "refused",
                "cancelled",
                name="migrationstate",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("offline", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("cancel_asked", sa.Boolean(), nullable=False),
        sa.Column("needs_operator", sa.Boolean(), nullable=False),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.Column("downtime_ms", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("source_id <> target_id", name=op.f("ck_migration_two_nodes")),
        sa.ForeignKeyConstraint(["source_id"], ["node.id"], name=op.f("fk_migration_source_id_node")),
        sa.ForeignKeyConstraint(["target_id"], ["node.id"], name=op.f("fk_migration_target_id_node")),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.id"], name=op.f("fk_migration_vm_id_vm")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_migration")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("migration", schema=None) as batch_op:
        batch_op.create_index(
            "uq_migration_one_open",
            ["vm_id"],
            unique=True,
            sqlite_where=sa.text("state IN ('queued', 'running', 'handed_over', 'rolling_back')"),
            postgresql_where=sa.text("state IN ('queued', 'running', 'handed_over', 'rolling_back')"),
        )

    op.create_table(
        "operation",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("vm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "create", "start", "stop", name="operationkind", native_enum=False, create_constraint=True, length=24
            ),
            nullable=False,
        ),
        sa.Column("arguments", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "ready",
                "running",
                "done",
                "refused",
                "failed",
                name="operationstate",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("vm_id IS NOT NULL OR state <> 'ready'", name=op.f("ck_operation_ready_has_vm")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_operation_node_id_node")),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.id"], name=op.f("fk_operation_vm_id_vm")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation")),
    )
    with op.batch_alter_table("operation", schema=None) as batch_op:
        batch_op.create_index(
            "uq_operation_one_open",
            ["vm_id"],
            unique=True,
            sqlite_where=sa.text("state IN ('ready', 'running')"),
            postgresql_where=sa.text("state IN ('ready', 'running')"),
        )

    op.create_table(
        "tpm_ledger",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("vm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column(
            "role",
            sa.Enum(
                "reserved",
                "active",
                "quarantined",
                "destroyed",
                name="ledgerrole",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("identity", sa.String(), nullable=True),
        sa.Column("swtpm_version", sa.String(), nullable=True),
        sa.Column("libtpms_version", sa.String(), nullable=True),
        sa.Column("keep_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role <> 'active' OR identity IS NOT NULL", name=op.f("ck_tpm_ledger_active_has_identity")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_tpm_ledger_node_id_node")),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.id"], name=op.f("fk_tpm_ledger_vm_id_vm")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tpm_ledger")),
    )
    with op.batch_alter_table("tpm_ledger", schema=None) as batch_op:
        batch_op.create_index(
            "uq_tpm_ledger_one_active",
            ["vm_id"],
            unique=True,
            sqlite_where=sa.text("role = 'active'"),
            postgresql_where=sa.text("role = 'active'"),
        )
        batch_op.create_index(
            "uq_tpm_ledger_one_row_a_file",
            ["node_id", "path"],
            unique=True,
            sqlite_where=sa.text("role <> 'destroyed'"),
            postgresql_where=sa.text("role <> 'destroyed'"),
        )

    op.create_table(
        "volume",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("vm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column(
            "role",
            sa.Enum(
                "disk",
                "efidisk",
                "tpmstate",
                "cloudinit",
                "cdrom",
                "unused",
                "vmstate",
                name="volumerole",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("storage_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column(
            "locality",
            sa.Enum("local", "shared", name="locality", native_enum=False, create_constraint=True, length=24),
            nullable=False,
        ),
        sa.CheckConstraint("role <> 'tpmstate' OR format = 'raw'", name=op.f("ck_volume_tpmstate_is_raw")),
        sa.CheckConstraint("size_bytes > 0", name=op.f("ck_volume_size")),
        sa.ForeignKeyConstraint(["storage_id"], ["storage.id"], name=op.f("fk_volume_storage_id_storage")),
        sa.ForeignKeyConstraint(["vm_id"], ["vm.id"], name=op.f("fk_volume_vm_id_vm")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume")),
        sa.UniqueConstraint("id", "role", name=op.f("uq_volume_id_role")),
        sa.UniqueConstraint("vm_id", "device", name=op.f("uq_volume_vm_id_device")),
    )
    with op.batch_alter_table("volume", schema=None) as batch_op:
        batch_op.create_index(
            "uq_volume_one_owner",
            ["storage_id", "name"],
            unique=True,
            sqlite_where=sa.text("role <> 'cdrom'"),
            postgresql_where=sa.text("role <> 'cdrom'"),
        )
        batch_op.create_index(
            "uq_volume_one_tpmstate",
            ["vm_id"],
            unique=True,
            sqlite_where=sa.text("role = 'tpmstate'"),
            postgresql_where=sa.text("role = 'tpmstate'"),
        )

    op.create_table(
        "attempt",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("migration_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["migration_id"], ["migration.id"], name=op.f("fk_attempt_migration_id_migration")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
        sa.UniqueConstraint("migration_id", "number", name=op.f("uq_attempt_migration_id_number")),
    )
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.create_index(
            "uq_attempt_one_open",
            ["migration_id"],
            unique=True,
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )

    op.create_table(
        "replica",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("volume_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("storage_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["storage_id"], ["storage.id"], name=op.f("fk_replica_storage_id_storage")),
        sa.ForeignKeyConstraint(["volume_id"], ["volume.id"], name=op.f("fk_replica_volume_id_volume")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replica")),
        sa.UniqueConstraint("storage_id", "name", name=op.f("uq_replica_storage_id_name")),
        sa.UniqueConstraint("volume_id", "storage_id", name=op.f("uq_replica_volume_id_storage_id")),
    )
    op.create_table(
        "allocation",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "volume", "port", "memory", name="allocationkind", native_enum=False, create_constraint=True, length=24
            ),
            nullable=False,
        ),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("port", sa.BigInteger(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("freed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(kind = 'memory') = (bytes IS NOT NULL)", name=op.f("ck_allocation_memory_has_bytes")),
        sa.CheckConstraint(
            "(kind = 'port') = (port IS NOT NULL) AND (kind = 'port') = (address IS NOT NULL)",
            name=op.f("ck_allocation_port_has_address"),
        ),
        sa.CheckConstraint("(kind = 'volume') = (path IS NOT NULL)", name=op.f("ck_allocation_volume_has_path")),
        sa.CheckConstraint("port BETWEEN 1 AND 65535", name=op.f("ck_allocation_port_range")),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_allocation_attempt_id_attempt")),
        sa.ForeignKeyConstraint(["node_id"], ["node.id"], name=op.f("fk_allocation_node_id_node")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allocation")),
    )
    with op.batch_alter_table("allocation", schema=None) as batch_op:
        batch_op.create_index(
            "uq_allocation_port",
            ["address", "port"],
            unique=True,
            sqlite_where=sa.text("port IS NOT NULL AND freed_at IS NULL"),
            postgresql_where=sa.text("port IS NOT NULL AND freed_at IS NULL"),
        )
        batch_op.create_index(
            "uq_allocation_volume",
            ["node_id", "path"],
            unique=True,
            sqlite_where=sa.text("path IS NOT NULL AND freed_at IS NULL"),
            postgresql_where=sa.text("path IS NOT NULL AND freed_at IS NULL"),
        )

    op.create_table(
        "step",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column(
            "phase",
            sa.Enum(
                "check",
                "reserve",
                "sync_tpm",
                "copy_cold",
                "open_target",
                "mirror_disks",
                "move_memory",
                "hand_over",
                "retire_source",
                name="phase",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column(
            "side",
            sa.Enum("control", "source", "target", name="side", native_enum=False, create_constraint=True, length=24),
            nullable=False,
        ),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "waiting",
                "ready",
                "running",
                "done",
                "failed",
                "undo_ready",
                "undoing",
                "undone",
                name="stepstate",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("marks", sa.JSON(), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("problem", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_step_attempt_id_attempt")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_step")),
        sa.UniqueConstraint("attempt_id", "phase", "side", name=op.f("uq_step_attempt_id_phase_side")),
    )
    with op.batch_alter_table("step", schema=None) as batch_op:
        batch_op.create_index("ix_step_open", ["state", "lease_until"], unique=False)

    op.create_table(
        "volume_transfer",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("attempt_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("volume_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "role",
            sa.Enum(
                "disk",
                "efidisk",
                "tpmstate",
                "cloudinit",
                "cdrom",
                "unused",
                "vmstate",
                name="volumerole",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column(
            "method",
            sa.Enum(
                "mirror",
                "delta",
                "copy",
                "tpm_sync",
                "recreate",
                "none",
                name="transfermethod",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("source_storage_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("source_name", sa.String(), nullable=False),
        sa.Column("target_storage_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("target_name", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("digest_source", sa.String(), nullable=True),
        sa.Column("digest_target", sa.String(), nullable=True),
        sa.Column("identity_source", sa.String(), nullable=True),
        sa.Column("identity_target", sa.String(), nullable=True),
        sa.CheckConstraint(
            "method <> 'tpm_sync' OR role = 'tpmstate'", name=op.f("ck_volume_transfer_tpm_sync_for_tpmstate_only")
        ),
        sa.CheckConstraint(
            "role <> 'tpmstate' OR method = 'tpm_sync'", name=op.f("ck_volume_transfer_tpmstate_by_tpm_sync_only")
        ),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_volume_transfer_attempt_id_attempt")),
        sa.ForeignKeyConstraint(
            ["source_storage_id"], ["storage.id"], name=op.f("fk_volume_transfer_source_storage_id_storage")
        ),
        sa.ForeignKeyConstraint(
            ["target_storage_id"], ["storage.id"], name=op.f("fk_volume_transfer_target_storage_id_storage")
        ),
        sa.ForeignKeyConstraint(
            ["volume_id", "role"], ["volume.id", "volume.role"], name=op.f("fk_volume_transfer_volume_id_role_volume")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume_transfer")),
        sa.UniqueConstraint("attempt_id", "volume_id", name=op.f("uq_volume_transfer_attempt_id_volume_id")),
    )


def downgrade() -> None:
    op.drop_table("volume_transfer")
    with op.batch_alter_table("step", schema=None) as batch_op:
        batch_op.drop_index("ix_step_open")

    op.drop_table("step")
    with op.batch_alter_table("allocation", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_allocation_volume",
            sqlite_where=sa.text("path IS NOT NULL AND freed_at IS NULL"),
            postgresql_where=sa.text("path IS NOT NULL AND freed_at IS NULL"),
        )
        batch_op.drop_index(
            "uq_allocation_port",
            sqlite_where=sa.text("port IS NOT NULL AND freed_at IS NULL"),
            postgresql_where=sa.text("port IS NOT NULL AND freed_at IS NULL"),
        )

    op.drop_table("allocation")
    op.drop_table("replica")
    with op.batch_alter_table("attempt", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_attempt_one_open",
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )

    op.drop_table("attempt")
    with op.batch_alter_table("volume", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_volume_one_tpmstate",
            sqlite_where=sa.text("role = 'tpmstate'"),
            postgresql_where=sa.text("role = 'tpmstate'"),
        )
        batch_op.drop_index(
            "uq_volume_one_owner", sqlite_where=sa.text("role <> 'cdrom'"), postgresql_where=sa.text("role <> 'cdrom'")
        )

    op.drop_table("volume")
    with op.batch_alter_table("tpm_ledger", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_tpm_ledger_one_row_a_file",
            sqlite_where=sa.text("role <> 'destroyed'"),
            postgresql_where=sa.text("role <> 'destroyed'"),
        )
        batch_op.drop_index(
            "uq_tpm_ledger_one_active",
            sqlite_where=sa.text("role = 'active'"),
            postgresql_where=sa.text("role = 'active'"),
        )

    op.drop_table("tpm_ledger")
    with op.batch_alter_table("operation", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_operation_one_open",
            sqlite_where=sa.text("state IN ('ready', 'running')"),
            postgresql_where=sa.text("state IN ('ready', 'running')"),
        )

    op.drop_table("operation")
    with op.batch_alter_table("migration", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_migration_one_open",
            sqlite_where=sa.text("state IN ('queued', 'running', 'handed_over', 'rolling_back')"),
            postgresql_where=sa.text("state IN ('queued', 'running', 'handed_over', 'rolling_back')"),
        )

    op.drop_table("migration")
    op.drop_table("vm")
    op.drop_table("storage")
    op.drop_table("node")
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.drop_index("ix_event_at")

    op.drop_table("event")
