"""What must never be is refused by SQL itself, on both databases, and the same rows are allowed once they are closed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import Connection, DateTime, Engine, Enum, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError

from models import Base, Event, Vm, make_sessions
from models.base import UtcDateTime
from tests.integration.rows import EXAMPLES, NOW, Row, example, store, store_world

OPEN = ("queued", "running", "handed_over", "rolling_back", "needs_operator")
CLOSED = ("done", "undone", "refused", "cancelled")


@dataclass(frozen=True, slots=True)
class Never:
    """A row that SQL refuses under the name `by`, beside the row `beside` if one is needed, and how it would be allowed.

    Each of `allowed` is a pair of changes: to `beside`, and to the row. `sqlite` is what SQLite names for a unique index.
    """

    what: str
    table: str
    by: str
    row: Row
    allowed: tuple[tuple[Row, Row], ...]
    beside: Row | None = None
    sqlite: str = field(default="")


def closed_beside(column: str, *words: object) -> tuple[tuple[Row, Row], ...]:
    """The pairs in which either row is closed: the older one, or the newer one."""
    return tuple(pair for word in words for pair in (({column: word}, {}), ({}, {column: word})))


NEVER = (
    *(
        Never(
            f"two open migrations of one VM: {first} and {second}",
            "migration",
            "uq_migration_one_open",
            {"state": second},
            (*closed_beside("state", *CLOSED), ({}, {"vm_id": 2})),
            {"state": first},
            "migration.vm_id",
        )
        for first in OPEN
        for second in OPEN
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
            {"role": "tpmstate", "method": method},
            (({}, {"method": "tpm_sync"}),),
        )
        for method in ("mirror", "delta", "copy", "recreate", "none")
    ),
    *(
        Never(
            f"a {role} that crosses by tpm_sync",
            "volume_transfer",
            "ck_volume_transfer_tpm_sync_for_tpmstate_only",
            {"role": role, "method": "tpm_sync"},
            (({}, {"method": "mirror"}), ({}, {"role": "tpmstate"})),
        )
        for role in ("disk", "efidisk", "cloudinit", "cdrom", "unused", "vmstate")
    ),
    Never(
        "two live allocations of one address and port",
        "allocation",
        "uq_allocation_port",
        {"kind": "port", "path": None, "address": "10.0.0.1", "port": 49152},
        (*closed_beside("freed_at", NOW), ({}, {"port": 49153}), ({}, {"address": "10.0.0.2"})),
        {},
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
        "ck_allocation_port_has_number",
        {"kind": "port", "address": "10.0.0.1", "port": None},
        (({}, {"port": 49152}),),
    ),
    Never(
        "a port on what is no port",
        "allocation",
        "ck_allocation_port_has_number",
        {"port": 49152},
        (({}, {"port": None}),),
    ),
    Never(
        "a memory allocation without a size",
        "allocation",
        "ck_allocation_memory_has_bytes",
        {"kind": "memory", "path": None, "bytes": None},
        (({}, {"bytes": 1}),),
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
        {"device": "tpmstate0", "name": "tpm0"},
        "volume.vm_id",
    ),
    Never(
        "tpmstate as qcow2",
        "volume",
        "ck_volume_tpmstate_is_raw",
        {"role": "tpmstate", "format": "qcow2"},
        (({}, {"format": "raw"}), ({}, {"role": "disk"})),
    ),
    Never("a volume of no size", "volume", "ck_volume_size", {"size_bytes": 0}, (({}, {"size_bytes": 1}),)),
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
    *(
        Never(f"ports {first} to {last}", "node", "ck_node_ports", {"port_first": first, "port_last": last}, allowed)
        for first, last in ((0, 10), (20, 10), (60000, 65536))
        for allowed in [(({}, {"port_first": 1, "port_last": 65535}), ({}, {"port_first": 7, "port_last": 7}))]
    ),
    Never("an unknown network", "node", "ck_node_network", {"network": "nat"}, (({}, {"network": "isolated"}),)),
    Never("an epoch below 0", "vm", "ck_vm_epoch", {"epoch": -1}, (({}, {"epoch": 0}),)),
    Never(
        "two attempts of one number",
        "attempt",
        "uq_attempt_migration_id_number",
        {},
        (({}, {"number": 10}),),
        {},
        "attempt.migration_id, attempt.number",
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
)

FORBIDDEN = pytest.mark.parametrize("never", NEVER, ids=lambda never: never.what)


@pytest.fixture
def world(engine: Engine) -> Engine:
    """A database with the rows that the examples point to."""
    with engine.begin() as connection:
        store_world(connection)
    return engine


def refusal(error: IntegrityError) -> str:
    """What the database says has been broken: the constraint's name, or for a unique index of SQLite its columns."""
    diagnosis: Any = getattr(error.orig, "diag", None)
    if diagnosis is not None:
        return str(diagnosis.constraint_name)
    return str(error.orig).split(": ", 1)[1]


@FORBIDDEN
def test_refused(world: Engine, never: Never) -> None:
    with world.begin() as connection:
        if never.beside is not None:
            store(connection, never.table, **never.row | never.beside if never.beside else example_beside(never))
        before = count(connection, never.table)
    with pytest.raises(IntegrityError) as caught, world.begin() as connection:
        store(connection, never.table, **never.row)
    assert refusal(caught.value) == (never.sqlite if never.sqlite and world.dialect.name == "sqlite" else never.by)
    with world.begin() as connection:
        assert count(connection, never.table) == before
