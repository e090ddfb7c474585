"""Work on a replica at its node that is no sync: a lost VM is made of it, or it is removed."""

from __future__ import annotations

import asyncio

from haulier.errors import Refused
from haulier.hypervisor.storage import driver_of
from haulier.hypervisor.tpm_identity import read_identity
from haulier.hypervisor.tpm_state import TpmState, read_state
from haulier.services.nodes import find_node_id
from haulier.services.operations import Order
from haulier.services.recover import WholeReplica, load_replica, take_over
from haulier.services.replicas import record_dropped, record_ended, replicas_of
from haulier.services.vm_rows import VmView, load_vm
from models import OperationKind
from tasks.celery import app
from tasks.merging import merge_replica
from tasks.surroundings import context, this_node
from tasks.vm import carry_out, start_here


@app.task(name=f"haulier.vm.{OperationKind.DROP_REPLICA}")
def drop_replica(operation_id: int) -> None:
    """Remove a replica that is kept no longer: each file before its row, so that none is forgotten."""
    carry_out(operation_id, _drop_replica)


def _drop_replica(order: Order, vm: VmView) -> None:
    replication_id = int(order.arguments["replication"])
    for replica in replicas_of(context(), replication_id):
        driver = driver_of(replica.at)
        # The base before its overlay: a row without an overlay's file is taken for merged.
        for path in replica.paths:
            driver.require(path)
            (driver.destroy if replica.is_secret else driver.remove)(path)
        record_dropped(context(), replica.id)
    record_ended(context(), replication_id)


@app.task(name=f"haulier.vm.{OperationKind.RECOVER}")
def recover(operation_id: int) -> None:
    """Make the VM's replica on this node the VM, and start it."""
    carry_out(operation_id, _recover)


def _recover(order: Order, vm: VmView) -> None:
    if vm.node != this_node().name:
        node_id = find_node_id(context(), this_node().name)
        replica = load_replica(context(), vm.id, node_id)
        asyncio.run(merge_replica(context(), replica.replication_id))
        _prove_replica(vm, replica)
        take_over(context(), vm.id, node_id, operation_id=order.operation_id)
    start_here(order, load_vm(context(), vm.id))


def _prove_replica(vm: VmView, replica: WholeReplica) -> None:
    """What is here must be what was recorded, above all the TPM's state."""
    for path, at in replica.paths:
        driver = driver_of(at)
        driver.require(path)
        if not driver.exists(path):
            raise Refused("replica_missing", f"{path} of the replica of {vm.name} is not there", "Is it mounted?")
    if replica.tpm is None or replica.identity is None:
        return
    state = read_state(replica.tpm)
    # Asked of swtpm only what is known to be what was brought here.
    same = state.digest == replica.digest and _identity_of(vm, state) == replica.identity
    if not same:
        words = f"the TPM state at {replica.tpm} is not the one that was brought here"
        raise Refused("replica_tpm_differs", words, "Nothing was changed; look at the other replicas.")


def _identity_of(vm: VmView, state: TpmState) -> str:
    scratch = this_node().place(vm.name).run
    return read_identity(state.container, swtpm=context().settings.swtpm, scratch=scratch)
