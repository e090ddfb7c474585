"""The table of what must never be: rows that SQL itself refuses, each with what would be allowed."""

from __future__ import annotations

from dataclasses import dataclass

from tests.integration.rows import EXAMPLES, NOW, VOLUME_OF, Row

OPEN = ("queued", "running", "handed_over", "rolling_back")
AT_WORK = OPEN[1:]
CLOSED = ("done", "undone", "refused", "cancelled")
PORT: Row = {"kind": "port", "path": None, "address": "10.0.0.1", "port": 49152}
MEMORY: Row = {"kind": "memory", "path": None, "bytes": 4096}


@dataclass(frozen=True, slots=True)
class Never:
    """A row that SQL refuses under the name `by`, next to the row `beside` if one is needed, and what would be allowed.

    `row` and `beside` are changes to the table's example. Each of `allowed` is a pair of further changes: to `beside`,
    and to the row. `sqlite` is what SQLite says instead: the columns of a unique index, of a foreign key only that it
    is one.
    """

    what: str
    table: str
    by: str
    row: Row
    allowed: tuple[tuple[Row, Row], ...]
    beside: Row | None = None
    sqlite: str = ""


def closed_beside(column: str, *words: object) -> tuple[tuple[Row, Row], ...]:
    """The pairs in which either row is closed: the older one, or the newer one."""
    older: list[tuple[Row, Row]] = [({column: word}, {}) for word in words]
    newer: list[tuple[Row, Row]] = [({}, {column: word}) for word in words]
    return (*older, *newer)


def crossing(role: str) -> Row:
    """What a transfer of a volume of this role holds."""
    return {"role": role, "method": "tpm_sync" if role == "tpmstate" else "mirror"}


NEVER = (
    *(
        Never(
            f"two open migrations of one VM: {first} and {second}",
            "migration",
            "uq_migration_one_wish" if "queued" in (first, second) else "uq_migration_one_at_work",
            {"state": second},
            (*closed_beside("state", *CLOSED), ({}, {"vm_id": 2})),
            {"state": first},
            "migration.vm_id",
        )
        for first in OPEN
        for second in OPEN
    ),
    *(
        Never(
            f"a migration beside one that waits for an operator: {state}",
            "migration",
            "uq_migration_one_wish",
            {},
            (*closed_beside("state", *CLOSED), ({}, {"vm_id": 2})),
            {"state": state, "needs_operator": True},
            "migration.vm_id",
        )
        for state in OPEN
    ),
    *(
        Never(
            f"a sync beside a migration at work: {state}",
            "migration",
            "uq_migration_one_at_work",
            {"state": state, "replication_id": 1},
            (*closed_beside("state", *CLOSED), ({"state": "queued"}, {}), ({}, {"state": "queued"})),
            {"state": state},
            "migration.vm_id",
        )
        for state in AT_WORK
    ),
    *(
        Never(
            f"two limits of one {scope}",
            "queue_limit",
            f"uq_queue_limit_{index}",
            place,
            (({"gate": "move"}, {}), ({}, {"gate": "move"}), *others),
            place,
            columns,
        )
        for scope, index, place, others, columns in (
            ("cluster", "cluster", {"scope": "cluster", "node_id": None, "peer_id": None}, (), "queue_limit.gate"),
            (
                "node",
                "node",
                {"scope": "in", "peer_id": None},
                (({}, {"scope": "out"}), ({}, {"node_id": 2})),
                "queue_limit.gate, queue_limit.scope, queue_limit.node_id",
            ),
            (
                "pair",
                "pair",
                {},
                (({}, {"node_id": 2, "peer_id": 1}),),
                "queue_limit.gate, queue_limit.node_id, queue_limit.peer_id",
            ),
        )
    ),
    Never("a batch twice", "batch", "uq_batch_key", {}, (({}, {"key": "l"}),), {}, "batch.key"),
    Never(
        "a batch that stops before it begins",
        "batch",
        "ck_batch_stop_after",
        {"stop_after": 0},
        (({}, {"stop_after": 1}),),
    ),
    Never(
        "a migration after itself",
        "migration_after",
        "ck_migration_after_two",
        {"after_id": 1},
        (({}, {"after_id": 2}),),
    ),
    Never("a migration that is never tried", "migration", "ck_migration_tries", {"tries": 0}, (({}, {"tries": 1}),)),
    Never("a limit below 0", "queue_limit", "ck_queue_limit_allowed", {"allowed": -1}, (({}, {"allowed": 0}),)),
    Never("a rate of nothing", "queue_label", "ck_queue_label_rate", {"allowed": 0}, (({}, {"allowed": 1}),)),
    Never("a rate in no time", "queue_label", "ck_queue_label_rate", {"period_s": 0}, (({}, {"period_s": 1}),)),
    Never(
        "a rate without its time",
        "queue_label",
        "ck_queue_label_rate_is_whole",
        {"period_s": None},
        (({}, {"period_s": 1}), ({}, {"allowed": None, "paused": True})),
    ),
    Never(
        "a label that is held by nothing",
        "queue_label",
        "ck_queue_label_says_something",
        {"allowed": None, "period_s": None},
        (({}, {"allowed": 1, "period_s": 1}), ({}, {"paused": True})),
    ),
    Never(
        "a budget of nothing",
        "queue_limit",
        "ck_queue_limit_some_bandwidth",
        {"gate": "bandwidth", "allowed": 0},
        (({}, {"allowed": 1}), ({}, {"gate": "move"})),
    ),
    Never(
        "a share below 0",
        "bandwidth_share",
        "ck_bandwidth_share_share",
        {"share_bytes_per_s": -1},
        (({}, {"share_bytes_per_s": None}),),
    ),
    Never(
        "a use below 0",
        "bandwidth_share",
        "ck_bandwidth_share_using",
        {"using_bytes_per_s": -1},
        (({}, {"using_bytes_per_s": None}),),
    ),
    Never(
        "a limit of the cluster that names a node",
        "queue_limit",
        "ck_queue_limit_scope_has_node",
        {"scope": "cluster", "peer_id": None},
        (({}, {"node_id": None}), ({}, {"scope": "out"})),
    ),
    Never(
        "a node's limit without a node",
        "queue_limit",
        "ck_queue_limit_scope_has_node",
        {"scope": "out", "node_id": None, "peer_id": None},
        (({}, {"node_id": 1}), ({}, {"scope": "cluster"})),
    ),
    Never(
        "a pair's limit without the target",
        "queue_limit",
        "ck_queue_limit_pair_has_peer",
        {"peer_id": None},
        (({}, {"peer_id": 2}), ({}, {"scope": "in"})),
    ),
    Never(
        "a node's limit with a target",
        "queue_limit",
        "ck_queue_limit_pair_has_peer",
        {"scope": "out"},
        (({}, {"peer_id": None}), ({}, {"scope": "pair"})),
    ),
    Never(
        "waiting for an operator as a state of its own",
        "migration",
        "ck_migration_migrationstate",
        {"state": "needs_operator"},
        tuple(({}, {"state": state, "needs_operator": True}) for state in OPEN),
    ),
    Never(
        "two active ledger rows of one VM",
        "tpm_ledger",
        "uq_tpm_ledger_one_active",
        {"node_id": 2},
        (*closed_beside("role", "reserved", "quarantined", "destroyed"), ({}, {"vm_id": 2})),
        {},
        "tpm_ledger.vm_id",
    ),
    Never(
        "two ledger rows of one file",
        "tpm_ledger",
        "uq_tpm_ledger_one_row_a_file",
        {"vm_id": 2},
        (*closed_beside("role", "destroyed"), ({}, {"node_id": 2}), ({}, {"path": "/s/other"})),
        {},
        "tpm_ledger.node_id, tpm_ledger.path",
    ),
    Never(
        "an active ledger row without identity",
        "tpm_ledger",
        "ck_tpm_ledger_active_has_identity",
        {"identity": None},
        tuple(({}, {"role": role}) for role in ("reserved", "quarantined", "destroyed")),
    ),
    *(
        Never(
            f"a tpmstate volume that crosses by {method}",
            "volume_transfer",
            "ck_volume_transfer_tpmstate_by_tpm_sync_only",
            {"volume_id": VOLUME_OF["tpmstate"], "role": "tpmstate", "method": method},
            (({}, {"method": "tpm_sync"}),),
        )
        for method in ("mirror", "delta", "copy", "recreate", "none")
    ),
    *(
        Never(
            f"a {role} that crosses by tpm_sync",
            "volume_transfer",
            "ck_volume_transfer_tpm_sync_for_tpmstate_only",
            {"volume_id": VOLUME_OF[role], "role": role, "method": "tpm_sync"},
            (({}, {"method": "mirror"}), ({}, {"volume_id": VOLUME_OF["tpmstate"], "role": "tpmstate"})),
        )
        for role in ("disk", "efidisk", "cloudinit", "cdrom", "unused", "vmstate")
    ),
    Never(
        "a tpmstate volume that is another format afterwards",
        "volume_transfer",
        "ck_volume_transfer_tpmstate_stays_raw",
        {"volume_id": VOLUME_OF["tpmstate"], **crossing("tpmstate"), "target_format": "qcow2"},
        (({}, {"target_format": "raw"}), ({}, {"volume_id": VOLUME_OF["disk"], **crossing("disk")})),
    ),
    Never(
        "a thin storage without its pool",
        "storage",
        "ck_storage_thin_pool",
        {"kind": "lvmthin"},
        (({}, {"pool": "data"}), ({}, {"kind": "lvm"})),
    ),
    Never(
        "a pool of a storage that is not thin",
        "storage",
        "ck_storage_thin_pool",
        {"kind": "lvm", "pool": "data"},
        (({}, {"kind": "lvmthin"}), ({}, {"pool": None})),
    ),
    *(
        Never(
            f"a {own} volume that is recorded as {recorded}",
            "volume_transfer",
            "fk_volume_transfer_volume_id_role_volume",
            {"volume_id": VOLUME_OF[own], **crossing(recorded)},
            (({}, crossing(own)), ({}, {"volume_id": VOLUME_OF[recorded]})),
            sqlite="FOREIGN KEY constraint failed",
        )
        for own in VOLUME_OF
        for recorded in VOLUME_OF
        if own != recorded
    ),
    Never(
        "two live allocations of one address and port",
        "allocation",
        "uq_allocation_port",
        PORT,
        (*closed_beside("freed_at", NOW), ({}, {"port": 49153}), ({}, {"address": "10.0.0.2"})),
        PORT,
        "allocation.address, allocation.port",
    ),
    Never(
        "two live allocations of one file",
        "allocation",
        "uq_allocation_volume",
        {},
        (*closed_beside("freed_at", NOW), ({}, {"node_id": 1}), ({}, {"path": "/s/other"})),
        {},
        "allocation.node_id, allocation.path",
    ),
    Never(
        "a port allocation without a port",
        "allocation",
        "ck_allocation_port_has_address",
        PORT | {"port": None},
        (({}, {"port": 49152}),),
    ),
    Never(
        "a port allocation without an address",
        "allocation",
        "ck_allocation_port_has_address",
        PORT | {"address": None},
        (({}, {"address": "10.0.0.1"}),),
    ),
    Never(
        "a port allocation without port and address",
        "allocation",
        "ck_allocation_port_has_address",
        PORT | {"address": None, "port": None},
        (({}, {"address": "10.0.0.1", "port": 49152}),),
    ),
    Never(
        "a port on what is no port",
        "allocation",
        "ck_allocation_port_has_address",
        {"port": 49152},
        (({}, {"port": None}),),
    ),
    *(
        Never(
            f"a port and its address on {row['kind']}",
            "allocation",
            "ck_allocation_port_has_address",
            row | {"address": "10.0.0.1", "port": 49152},
            (({}, {"address": None, "port": None}),),
        )
        for row in (EXAMPLES["allocation"], MEMORY)
    ),
    *(
        Never(
            f"port {number}",
            "allocation",
            "ck_allocation_port_range",
            PORT | {"port": number},
            (({}, {"port": 1}), ({}, {"port": 65535})),
        )
        for number in (-1, 0, 65536)
    ),
    Never(
        "a volume allocation without a path",
        "allocation",
        "ck_allocation_volume_has_path",
        {"path": None},
        (({}, {"path": "/s/f"}),),
    ),
    *(
        Never(
            f"a path on {row['kind']}",
            "allocation",
            "ck_allocation_volume_has_path",
            row | {"path": "/s/f"},
            (({}, {"path": None}),),
        )
        for row in (PORT, MEMORY)
    ),
    Never(
        "a memory allocation without a size",
        "allocation",
        "ck_allocation_memory_has_bytes",
        MEMORY | {"bytes": None},
        (({}, {"bytes": 1}),),
    ),
    *(
        Never(
            f"a size on {row['kind']}",
            "allocation",
            "ck_allocation_memory_has_bytes",
            row | {"bytes": 1},
            (({}, {"bytes": None}),),
        )
        for row in (EXAMPLES["allocation"], PORT)
    ),
    Never(
        "a migration onto its own node",
        "migration",
        "ck_migration_two_nodes",
        {"target_id": 1},
        (({}, {"target_id": 2}), ({}, {"source_id": 2})),
    ),
    Never(
        "a volume owned by two VMs",
        "volume",
        "uq_volume_one_owner",
        {"vm_id": 2},
        (({"role": "cdrom"}, {"role": "cdrom"}), ({}, {"storage_id": 2}), ({}, {"name": "other"})),
        {},
        "volume.storage_id, volume.name",
    ),
    Never(
        "one file behind two devices of a VM",
        "volume",
        "uq_volume_one_owner",
        {"device": "scsi1"},
        (({"role": "cdrom"}, {"role": "cdrom"}), ({}, {"name": "other"})),
        {},
        "volume.storage_id, volume.name",
    ),
    Never(
        "two volumes at one device",
        "volume",
        "uq_volume_vm_id_device",
        {"name": "other"},
        (({}, {"device": "scsi1"}), ({}, {"vm_id": 2})),
        {},
        "volume.vm_id, volume.device",
    ),
    Never(
        "a second tpmstate volume",
        "volume",
        "uq_volume_one_tpmstate",
        {"role": "tpmstate", "format": "raw", "device": "tpmstate1", "name": "tpm1"},
        (({}, {"vm_id": 2}), ({"role": "unused"}, {}), ({}, {"role": "unused"})),
        {"role": "tpmstate", "format": "raw", "device": "tpmstate0", "name": "tpm0"},
        "volume.vm_id",
    ),
    Never(
        "tpmstate as qcow2",
        "volume",
        "ck_volume_tpmstate_is_raw",
        {"role": "tpmstate", "format": "qcow2"},
        (({}, {"format": "raw"}), ({}, {"role": "disk"})),
    ),
    Never(
        "a volume of no size",
        "volume",
        "ck_volume_size",
        {"size_bytes": 0},
        (({}, {"size_bytes": 1}), ({}, {"size_bytes": None})),
    ),
    *(
        Never(
            f"two open operations of one VM: {first} and {second}",
            "operation",
            "uq_operation_one_open",
            {"state": second},
            (*closed_beside("state", "done", "refused", "failed"), ({}, {"vm_id": 2})),
            {"state": first},
            "operation.vm_id",
        )
        for first in ("ready", "running")
        for second in ("ready", "running")
    ),
    Never(
        "an operation that is to begin on no VM",
        "operation",
        "ck_operation_ready_has_vm",
        {"vm_id": None, "state": "ready"},
        (({}, {"vm_id": 1}), *(({}, {"state": state}) for state in ("running", "done", "refused", "failed"))),
    ),
    *(
        Never(
            f"ports {first} to {last}",
            "node",
            "ck_node_ports",
            {"port_first": first, "port_last": last},
            (({}, {"port_first": 1, "port_last": 65535}), ({}, {"port_first": 7, "port_last": 7})),
        )
        for first, last in ((0, 10), (20, 10), (60000, 65536))
    ),
    Never("an unknown network", "node", "ck_node_network", {"network": "nat"}, (({}, {"network": "isolated"}),)),
    Never("an epoch below 0", "vm", "ck_vm_epoch", {"epoch": -1}, (({}, {"epoch": 0}),)),
    Never(
        "two attempts of one number",
        "attempt",
        "uq_attempt_migration_id_number",
        {},
        (({}, {"number": 10}), ({}, {"migration_id": 2})),
        {"finished_at": NOW},
        "attempt.migration_id, attempt.number",
    ),
    Never(
        "two unfinished attempts of one migration",
        "attempt",
        "uq_attempt_one_open",
        {"number": 10},
        (*closed_beside("finished_at", NOW), ({}, {"migration_id": 2})),
        {},
        "attempt.migration_id",
    ),
    Never(
        "one phase twice on one side of an attempt",
        "step",
        "uq_step_attempt_id_phase_side",
        {},
        (({}, {"side": "source"}), ({}, {"phase": "reserve"})),
        {},
        "step.attempt_id, step.phase, step.side",
    ),
    Never(
        "one volume crossing twice in an attempt",
        "volume_transfer",
        "uq_volume_transfer_attempt_id_volume_id",
        {},
        (({}, {"volume_id": 2}),),
        {},
        "volume_transfer.attempt_id, volume_transfer.volume_id",
    ),
    Never(
        "two replicas of one volume on one storage",
        "replica",
        "uq_replica_volume_id_storage_id",
        {"name": "other"},
        (({}, {"storage_id": 1}), ({}, {"volume_id": 2})),
        {},
        "replica.volume_id, replica.storage_id",
    ),
    Never(
        "one file that is two replicas",
        "replica",
        "uq_replica_storage_id_name",
        {"volume_id": 2},
        (({}, {"name": "other"}), ({}, {"storage_id": 1})),
        {},
        "replica.storage_id, replica.name",
    ),
    Never(
        "one overlay of two replicas",
        "replica",
        "uq_replica_storage_id_overlay",
        {"volume_id": 2, "name": "other", "overlay": "o"},
        (({}, {"overlay": "other"}), ({}, {"overlay": None}), ({}, {"storage_id": 1})),
        {"overlay": "o"},
        "replica.storage_id, replica.overlay",
    ),
    Never(
        "two replications of one VM to one node",
        "replication",
        "uq_replication_one",
        {},
        (*closed_beside("ended_at", NOW), ({}, {"target_id": 1}), ({}, {"vm_id": 3})),
        {},
        "replication.vm_id, replication.target_id",
    ),
    Never(
        "a replication every no time at all",
        "replication",
        "ck_replication_every",
        {"every_s": 0.0},
        (({}, {"every_s": None}),),
    ),
)
