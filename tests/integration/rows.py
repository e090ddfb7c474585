"""Rows for tests of the schema: one valid row of each table, written past the models so that only SQL can refuse it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert

from models import Base

Row = dict[str, Any]

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# One volume of each role, by its key; 2 is another disk.
VOLUME_OF = {"disk": 1, "efidisk": 3, "tpmstate": 4, "cloudinit": 5, "cdrom": 6, "unused": 7, "vmstate": 8}

# In the order in which they can be stored. Node 1 and its VM 1 are everybody's; node 2 is the target.
EXAMPLES: dict[str, Row] = {
    "node": {"name": "n", "address": "10.0.0.9", "state": "online", "port_first": 49152, "port_last": 49215}
    | {"network": "bridge", "facts": {}},
    "storage": {"node_id": 1, "name": "s", "kind": "folder", "path": "/s", "shared": False},
    "vm": {
        "name": "v",
        "node_id": 1,
        "state": "running",
        "epoch": 3,
        "definition": {},
        "pinned": {},
        "created_at": NOW,
    },
    "volume": {"vm_id": 1, "device": "scsi9", "role": "disk", "storage_id": 1, "name": "f", "format": "qcow2"}
    | {"size_bytes": 4096, "locality": "local"},
    "replication": {"vm_id": 2, "target_id": 2, "every_s": 900.0, "generation": 1, "failures": 0, "created_at": NOW},
    "replica": {"replication_id": 1, "volume_id": 1, "storage_id": 2, "name": "r", "generation": 1, "synced_at": NOW},
    "evacuation": {"node_id": 2, "state": "running", "node_was": "online", "tried_after": 0, "plans": 0}
    | {"created_at": NOW},
    "evacuation_vm": {"evacuation_id": 1, "vm_id": 2, "is_home": False},
    "node_group": {"name": "g", "max_at_once": 1, "created_at": NOW},
    "node_group_node": {"group_id": 1, "node_id": 1},
    "roll": {"group_id": 1, "name": "g", "state": "running", "hold_s": 60.0, "created_at": NOW},
    "roll_node": {"roll_id": 1, "node_id": 1, "place": 1, "state": "out", "evacuation_id": 1},
    "maintenance_window": {"node_id": 1, "cron": "0 2 * * 6", "zone": "UTC", "duration_s": 7200.0, "restore": False}
    | {"next_at": NOW, "created_at": NOW},
    "api_token": {"name": "t", "digest": "d", "scope": "read", "created_at": NOW},
    "alert_rule": {"alertname": "DiskFails", "action": "evacuate", "label": "instance", "restore": False}
    | {"dry_run": False, "created_at": NOW},
    "alert": {"fingerprint": "f", "starts_at": NOW, "alertname": "DiskFails", "action": "evacuate", "restore": False}
    | {"node_id": 1, "state": "waiting", "received": 1, "created_at": NOW},
    "placement_rule": {"name": "apart", "kind": "apart", "hard": True, "created_at": NOW},
    "placement_rule_vm": {"rule_id": 1, "vm_id": 1},
    "placement_rule_node": {"rule_id": 1, "node_id": 1},
    "batch": {"key": "k", "state": "open", "forgiven": 0, "created_at": NOW},
    "migration": {"vm_id": 1, "source_id": 1, "target_id": 2, "state": "queued", "offline": False, "priority": 50}
    | {"epoch": 3, "cancel_asked": False, "needs_operator": False, "problems": [], "created_at": NOW},
    "migration_after": {"migration_id": 1, "after_id": 2},
    "queue_limit": {"gate": "prepare", "scope": "pair", "node_id": 1, "peer_id": 2, "allowed": 2},
    "queue_label": {"label": "l", "paused": False, "allowed": 6, "period_s": 3600},
    "attempt": {"migration_id": 1, "number": 9, "started_at": NOW},
    "step": {"attempt_id": 1, "position": 0, "phase": "check", "side": "control", "queue": "control"}
    | {"state": "waiting", "fence": 0, "marks": {}, "notes": {}, "progress": {}},
    "bandwidth_share": {"step_id": 1, "share_bytes_per_s": 0, "using_bytes_per_s": 0, "fixed": False},
    "volume_transfer": {"attempt_id": 1, "volume_id": 1, "role": "disk", "method": "mirror", "reason": "live"}
    | {"source_storage_id": 1, "source_name": "f", "target_storage_id": 2, "target_name": "f"}
    | {"target_format": "raw", "bytes": 0, "bytes_total": 4096},
    "allocation": {"attempt_id": 1, "node_id": 2, "kind": "volume", "purpose": "disk", "path": "/s/f", "taken_at": NOW},
    "operation": {"vm_id": 1, "node_id": 1, "kind": "start", "arguments": {}, "state": "ready", "problems": []}
    | {"created_at": NOW},
    "tpm_ledger": {"vm_id": 1, "node_id": 1, "path": "/s/tpm", "role": "active", "epoch": 3, "identity": "ab"}
    | {"changed_at": NOW},
    "event": {"at": NOW, "kind": "started", "data": {}},
}


def example(table: str, **changes: object) -> Row:
    """A valid row of `table` but for `changes`."""
    return EXAMPLES[table] | changes


def store(connection: Connection, table: str, **changes: object) -> None:
    """Insert `example(table, …)`; words go as plain strings, which SQLAlchemy passes on without a look at the enum."""
    connection.execute(insert(Base.metadata.tables[table]), example(table, **changes))


def store_world(connection: Connection) -> None:
    """Two nodes with a storage each; two VMs with a disk and a closed migration each; a closed attempt of the first
    migration with a step; a replication of the first VM; a third VM with a volume of every other role.
    """
    for node in (1, 2):
        store(connection, "node", id=node, name=f"node{node}", address=f"10.0.0.{node}")
        store(connection, "storage", id=node, node_id=node, name="local")
    for vm in (1, 2):
        store(connection, "vm", id=vm, name=f"vm{vm}")
        store(connection, "volume", id=vm, vm_id=vm, device="scsi0", name=f"disk{vm}")
        store(connection, "migration", id=vm, vm_id=vm, state="done")
    store(connection, "replication", id=1, vm_id=1)
    store(connection, "evacuation", id=1, node_id=1, state="restored")
    store(connection, "placement_rule", id=1, name="first")
    store(connection, "node_group", id=1, name="first")
    store(connection, "roll", id=1, state="done")
    store(connection, "attempt", id=1, number=1, finished_at=NOW)
    store(connection, "step", id=1, phase="reserve", side="target", state="done")
    store(connection, "vm", id=3, name="vm3")
    for role, volume in VOLUME_OF.items():
        if role != "disk":
            store(connection, "volume", id=volume, vm_id=3, device=role, role=role, name=role, format="raw")
    if connection.dialect.name == "postgresql":
        _count_on_after_given_keys(connection)


def _count_on_after_given_keys(connection: Connection) -> None:
    counted = ("node", "storage", "vm", "volume", "migration", "replication", "attempt", "step", "evacuation")
    for table in (*counted, "placement_rule", "node_group", "roll"):
        connection.exec_driver_sql(f"SELECT setval('{table}_id_seq', 100)")
