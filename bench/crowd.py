"""Many nodes and VMs for the simulation, as rows: what would be there if all had been defined and started."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from bench.simulated import IDENTITY, SHARDS
from haulier.clock import now
from haulier.definition import Role, VmDefinition, VolumeSpec
from haulier.definition.batch_file import BatchEntry, BatchFile
from haulier.services.context import Context
from haulier.services.nodes import NodeChange, change_node, register_node
from models import LedgerRole, Node, TpmLedger, Vm, VmState, Volume, VolumeRole

_MACHINE = {"machine": "pc-i440fx-7.2", "cpu": "qemu64", "accel": "kvm", "qemu_version": "7.2.0"}
FACTS = {
    "qemu_version": "7.2.0", "accel": "kvm", "machines": {"pc": "pc-i440fx-7.2", "pc-i440fx-7.2": "pc-i440fx-7.2"},
    "swtpm_version": "0.7.1", "libtpms_version": "0.9.2", "swtpm_too_old": False,
    "ram_bytes": 1 << 40, "ram_free_bytes": 1 << 40,
}  # fmt: skip
_GIB = 1 << 30


def populate(context: Context, *, nodes: int, vms: int) -> None:
    """So many nodes with a storage each, and running VMs spread over them: one to four disks, one to sixteen GiB."""
    for number in range(nodes):
        name = f"n{number:04}"
        register_node(context, name, facts=FACTS, images=Path(f"/{name}/images"))
        change_node(context, name, NodeChange(address=f"10.{number >> 8}.{number & 255}.1"))
    with context.database.write() as session:
        hosts = session.scalars(select(Node).order_by(Node.name)).all()
        for number in range(vms):
            _add_vm(session, number, hosts[number % nodes])


def _add_vm(session: Session, number: int, node: Node) -> None:
    name, disks = f"vm{number:05}", 1 + number % 4
    specs = [
        *(
            VolumeSpec(f"scsi{disk}", Role.DISK, "local", f"{name}/disk{disk}.qcow2", format="qcow2", size_bytes=_GIB)
            for disk in range(disks)
        ),
        VolumeSpec("ide2", Role.CLOUDINIT, "local", f"{name}/ci.raw", size_bytes=1 << 20),
        VolumeSpec("tpmstate0", Role.TPMSTATE, "local", f"{name}/tpm.raw", size_bytes=4 << 20),
    ]
    ram_mib = 1024 << (number % 5)
    definition = VmDefinition(name=name, memory_mib=ram_mib, tpm_version="v2.0", uuid="u", volumes=tuple(specs))
    vm = Vm(
        name=name, node=node, definition=definition.as_dict(), created_at=now(), state=VmState.RUNNING, pid=7,
        qmp="/q", pinned=_MACHINE | {"ram_kib": ram_mib * 1024},
    )  # fmt: skip
    for spec in specs:
        vm.volumes.append(
            Volume(device=spec.device, role=VolumeRole(spec.role), storage=node.storages[0], name=spec.name,
                   format=spec.format, size_bytes=spec.size_bytes)
        )  # fmt: skip
    session.add(vm)
    path = f"{node.storages[0].path}/{name}/tpm.raw"
    session.add(
        TpmLedger(vm=vm, node=node, path=path, role=LedgerRole.ACTIVE, epoch=0, identity=IDENTITY, digest="00" * 32,
                  changed_at=now())
    )  # fmt: skip


def all_moves(*, nodes: int, vms: int) -> BatchFile:
    """Each VM goes to another node of those that the same worker plays."""

    def target(number: int) -> int:
        source = number % nodes
        return (source + SHARDS * (1 + number // nodes % (nodes // SHARDS - 1))) % nodes

    return BatchFile(
        tuple(
            BatchEntry(number + 1, f"vm{number:05}", f"n{target(number):04}", None, (), None) for number in range(vms)
        )
    )
