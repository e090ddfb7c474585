"""Nodes as targets that nobody has named: which take VMs now, and what a VM needs of one."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from haulier.planner.placement import Host
from haulier.planner.refusals import STARTED
from haulier.services.context import Context
from haulier.services.liveness import silent_s
from models import Node, NodeState, Vm, VolumeRole


def hosts_now(context: Context, session: Session) -> list[Host]:
    """The nodes that take VMs now."""
    limit_s = context.settings.node_silent_after_s
    return [
        Host(
            node.name,
            int(node.facts.get("ram_free_bytes") or 0),
            frozenset(storage.name for storage in node.storages),
        )
        for node in session.scalars(
            select(Node).where(Node.state == NodeState.ONLINE).options(selectinload(Node.storages))
        )
        if silent_s(node, limit_s=limit_s) is None
    ]


def ram_bytes_of(vm: Vm) -> int:
    """What it needs of a host's RAM; one that does not run needs none."""
    return int(vm.pinned.get("ram_kib", 0)) * 1024 if vm.state in STARTED else 0


def storages_of(vm: Vm) -> frozenset[str]:
    """The names of the storages that it has volumes on."""
    return frozenset(volume.storage.name for volume in vm.volumes if volume.role is not VolumeRole.CDROM)
