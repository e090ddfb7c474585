"""What there is: nodes, their storages, VMs, the volumes VMs own and the replicas of those."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, Key, only_where, word
from models.enums import EvacuationPolicy, Locality, NodeState, VmState, VolumeRole


class Node(Base):
    """A host that runs QEMU; exactly one worker consumes its queue `node.<name>`.

    `address` is what other nodes connect to; ports for migrations come from `port_first`..`port_last`, both included.
    `facts` is what the worker saw at its start (program versions, accelerator, memory): shown and compared, never
    secret. `closed_by` is who had it take nothing new, if it was no person.
    """

    __tablename__ = "node"
    __table_args__ = (
        CheckConstraint("port_first > 0 AND port_first <= port_last AND port_last < 65536", name="ports"),
        CheckConstraint("network IN ('bridge', 'isolated')", name="network"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    address: Mapped[str]
    state: Mapped[NodeState] = mapped_column(word(NodeState), default=NodeState.ONLINE)
    port_first: Mapped[int]
    port_last: Mapped[int]
    network: Mapped[str] = mapped_column(default="bridge")
    closed_by: Mapped[str | None]
    heartbeat_at: Mapped[datetime | None]
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)

    storages: Mapped[list[Storage]] = relationship(back_populates="node")


class Storage(Base):
    """A place for volumes on one node. `shared` says that other nodes see the same files under the same name.

    `kind` is one of `StorageKind` (haulier/definition/storage.py): `folder`, `mount` for a folder in another file
    system, which must be mounted before it is used, `lvm`, `lvmthin`, `block`. A volume is at its name below `path`;
    `pool` is the thin pool that it is made in.
    """

    __tablename__ = "storage"
    __table_args__ = (
        UniqueConstraint("node_id", "name"),
        CheckConstraint("(kind = 'lvmthin') = (pool IS NOT NULL)", name="thin_pool"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    name: Mapped[str]
    kind: Mapped[str]
    path: Mapped[str]
    pool: Mapped[str | None]
    shared: Mapped[bool] = mapped_column(default=False)

    node: Mapped[Node] = relationship(back_populates="storages")


class Vm(Base):
    """A virtual machine. `epoch` counts its hand-overs: only the holder of the newest one may run the guest.

    `definition` is what its owner wrote, with MACs and UUID filled in; `pinned` is what a start fixed for as long as
    the guest runs (machine type, CPU model, RAM in KiB, accelerator), empty while it is stopped and has never run.
    `run_state` is QEMU's own word for a guest that stands still (`paused`, `io-error`, …), as its node saw it last.
    `evacuation` is what may happen to it when its node is emptied.
    """

    __tablename__ = "vm"
    __table_args__ = (CheckConstraint("epoch >= 0", name="epoch"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    node_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    state: Mapped[VmState] = mapped_column(word(VmState), default=VmState.STOPPED)
    run_state: Mapped[str | None]
    evacuation: Mapped[EvacuationPolicy] = mapped_column(
        word(EvacuationPolicy),
        default=EvacuationPolicy.OFFLINE_IF_STOPPED,
        server_default=EvacuationPolicy.OFFLINE_IF_STOPPED,
    )
    epoch: Mapped[int] = mapped_column(default=0)
    definition: Mapped[dict[str, Any]]
    pinned: Mapped[dict[str, Any]] = mapped_column(default=dict)
    pid: Mapped[int | None]
    qmp: Mapped[str | None]
    created_at: Mapped[datetime]

    node: Mapped[Node] = relationship()
    volumes: Mapped[list[Volume]] = relationship(back_populates="vm", order_by="Volume.id")


class Volume(Base):
    """What a VM owns on a storage. `name` is the file's name inside the storage's folder; an empty drive has no row.

    `size_bytes` is unknown only until the node has looked at a volume that was there before its VM was defined.
    """

    __tablename__ = "volume"
    __table_args__ = (
        UniqueConstraint("vm_id", "device"),
        UniqueConstraint("id", "role"),
        # Two VMs, or two devices of one, must never hold the same file; an ISO image is only read.
        only_where("uq_volume_one_owner", "storage_id", "name", where="role <> 'cdrom'"),
        CheckConstraint("size_bytes > 0", name="size"),
        CheckConstraint("role <> 'tpmstate' OR format = 'raw'", name="tpmstate_is_raw"),
        only_where("uq_volume_one_tpmstate", "vm_id", where="role = 'tpmstate'"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vm.id"))
    device: Mapped[str]
    role: Mapped[VolumeRole] = mapped_column(word(VolumeRole))
    storage_id: Mapped[int] = mapped_column(ForeignKey("storage.id"), index=True)
    name: Mapped[str]
    format: Mapped[str]
    size_bytes: Mapped[int | None]
    locality: Mapped[Locality] = mapped_column(word(Locality), default=Locality.LOCAL)

    vm: Mapped[Vm] = relationship(back_populates="volumes")
    storage: Mapped[Storage] = relationship()
    replicas: Mapped[list[Replica]] = relationship(back_populates="volume")


class Replication(Base):
    """The wish to have a replica of a VM on another node: of all its volumes, all of one moment (a generation).

    `generation` counts the moments that were brought over whole; `synced_at` is when the newest was. `every_s` is how
    often a new one is made, None for by hand; `due_at` is when, None while that is not known. `failures` counts the
    syncs in a row that came to nothing, `problem` is why the newest of them did. `ended_at`: nobody wants it any more,
    and there is no replica of it.
    """

    __tablename__ = "replication"
    __table_args__ = (
        only_where("uq_replication_one", "vm_id", "target_id", where="ended_at IS NULL"),
        CheckConstraint("every_s > 0", name="every"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    vm_id: Mapped[int] = mapped_column(ForeignKey("vm.id"))
    target_id: Mapped[int] = mapped_column(ForeignKey("node.id"))
    every_s: Mapped[float | None]
    generation: Mapped[int] = mapped_column(default=0)
    synced_at: Mapped[datetime | None]
    due_at: Mapped[datetime | None]
    failures: Mapped[int] = mapped_column(default=0)
    problem: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]

    vm: Mapped[Vm] = relationship()
    target: Mapped[Node] = relationship()
    replicas: Mapped[list[Replica]] = relationship(back_populates="replication", order_by="Replica.id")


class Replica(Base):
    """An older copy of a volume on another node, with the generation it holds; all of a VM's reach one together.

    `overlay` is the name of a qcow2 over the file `name`, as long as there is one: the two together are the copy then.
    `seen` is what the source's file looked like, of a volume that is copied as a whole.
    """

    __tablename__ = "replica"
    __table_args__ = (
        UniqueConstraint("volume_id", "storage_id"),
        UniqueConstraint("storage_id", "name"),
        UniqueConstraint("storage_id", "overlay"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    replication_id: Mapped[int] = mapped_column(ForeignKey("replication.id"))
    volume_id: Mapped[int] = mapped_column(ForeignKey("volume.id"))
    storage_id: Mapped[int] = mapped_column(ForeignKey("storage.id"))
    name: Mapped[str]
    overlay: Mapped[str | None]
    seen: Mapped[dict[str, Any] | None]
    generation: Mapped[int]
    synced_at: Mapped[datetime]

    replication: Mapped[Replication] = relationship(back_populates="replicas")
    volume: Mapped[Volume] = relationship(back_populates="replicas")
    storage: Mapped[Storage] = relationship()
