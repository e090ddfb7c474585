"""Work on one VM at its node that is no migration: its volumes are made, it is started, it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from haulier.definition.storage import StorageKind
from haulier.errors import HaulierError, Problem, Refused
from haulier.hypervisor import machine
from haulier.hypervisor.command_line import MachineSpec
from haulier.hypervisor.images import image_info
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import open_monitor
from haulier.hypervisor.storage import driver_of
from haulier.hypervisor.swtpm import manufacture, stop_swtpm
from haulier.hypervisor.tpm_identity import read_identity
from haulier.hypervisor.tpm_state import read_state
from haulier.planner.guest_ram import guest_ram_kib
from haulier.services.defects import problems_of
from haulier.services.ledger import TpmCopy, record_active, recorded_identity
from haulier.services.operations import Order, end_operation, is_hurried, take_operation
from haulier.services.vm_rows import VmView, VolumeView, forget_vm, load_vm, record_sizes, record_state
from models import OperationKind, OperationState, VmState, VolumeRole
from tasks.celery import app
from tasks.guest import DiskFiles, launch_guest, machine_spec
from tasks.surroundings import context, this_node, this_swtpm

log = structlog.get_logger()
# Models that every host of the kind can run, and that mean the same on each QEMU.
_DEFAULT_CPU = {"tcg": "qemu64", "kvm": "kvm64"}


def carry_out(operation_id: int, work: Callable[[Order, VmView], None]) -> None:
    """Take an operation, do it, write down how it ended. A doubled message finds nothing to take."""
    around = context()
    order = take_operation(around, operation_id)
    if order is None:
        return
    state = OperationState.DONE
    problems: tuple[Problem, ...] = ()
    try:
        work(order, load_vm(around, order.vm_id))
    except Refused as error:
        state, problems = OperationState.REFUSED, problems_of(error)
    except HaulierError as error:
        state, problems = OperationState.FAILED, problems_of(error)
    except Exception as error:
        log.exception("operation.broken", operation=operation_id)
        state, problems = OperationState.FAILED, problems_of(error)
    with around.unit() as unit:
        end_operation(unit, operation_id, state, problems)


@app.task(name=f"haulier.vm.{OperationKind.CREATE}")
def create(operation_id: int) -> None:
    """Make the volumes that are not there; on any refusal nothing of the VM is left."""
    carry_out(operation_id, _create)


def _create(order: Order, vm: VmView) -> None:
    made: list[VolumeView] = []
    try:
        sizes = {volume.id: _made_or_found(volume, made) for volume in vm.volumes}
    except HaulierError as error:
        for volume in made:
            with contextlib.suppress(HaulierError):  # what cannot be removed is found when it is defined again
                _unmake(volume)
        forget_vm(context(), order.vm_id, keep_operation=order.operation_id)
        if isinstance(error, Refused):
            raise
        raise Refused(error.problem.code, error.problem.message, error.problem.hint) from error
    record_sizes(context(), order.vm_id, sizes)


def _unmake(volume: VolumeView) -> None:
    """Remove a volume that was made, and its folder when nothing else lies there."""
    driver_of(volume.at).remove(volume.path)
    if volume.path.parent != volume.at.folder:
        with contextlib.suppress(OSError):
            volume.path.parent.rmdir()


def _made_or_found(volume: VolumeView, made: list[VolumeView]) -> int:
    """The size of a volume in bytes; it is made if it is not there."""
    driver = driver_of(volume.at)
    driver.require_usable()
    driver.require(volume.path)
    if driver.exists(volume.path):
        return _found(volume)
    if volume.size_bytes is None or volume.role is VolumeRole.CDROM:
        raise Refused(
            "volume_missing", f"{volume.device}: {volume.path} is not there", "Give it a size to have it made."
        )
    variables = machine.find_variables(volume.size_bytes) if volume.role is VolumeRole.EFIDISK else None
    driver.make_blank(volume.path, format=volume.format, size_bytes=volume.size_bytes, content=variables)
    made.append(volume)
    return volume.size_bytes


def _found(volume: VolumeView) -> int:
    """A volume that was there before: is it what the definition says?"""
    driver_of(volume.at).require_unused(volume.path)
    if volume.role is VolumeRole.TPMSTATE:
        read_state(volume.path)
        if volume.size_bytes:
            return volume.size_bytes
    found = image_info(volume.path, format=volume.format).size_bytes
    # Of a logical volume the guest sees all, whatever is written, and firmware its own size. A device may be larger.
    is_whole = volume.at.kind is not StorageKind.BLOCK and volume.role is not VolumeRole.EFIDISK
    if is_whole or volume.size_bytes is None:
        return found
    if found < volume.size_bytes:
        words = f"{volume.device}: {volume.path} has {found} bytes, {volume.size_bytes} are asked for"
        raise Refused("device_too_small", words, "Provide a larger one.")
    return volume.size_bytes


@app.task(name=f"haulier.vm.{OperationKind.START}")
def start(operation_id: int) -> None:
    """Start the VM on this node: swtpm first, then QEMU, then the guest."""
    carry_out(operation_id, start_here)


def start_here(order: Order, vm: VmView) -> None:
    """Start the VM on this node. Raises Refused or StepFailed; nothing of it runs then."""
    place = this_node().place(vm.name)
    if vm.node != this_node().name:
        raise Refused("vm_elsewhere", f"VM {vm.name} is on {vm.node}", "It moved; start it again.")
    if problem := vm.facts.get("qemu_problem"):
        raise Refused(**problem)
    try:
        _start_processes(vm, place)
    except BaseException:
        machine.stop_now(place)
        stop_swtpm(place)
        place.clear()
        raise


def _start_processes(vm: VmView, place: VmPlace) -> None:
    for volume in vm.volumes:
        driver = driver_of(volume.at)
        driver.require(volume.path)
        # A device that is there may have to be switched on after a boot; QEMU says itself what it misses.
        if driver.exists(volume.path):
            driver.require_unused(volume.path)
    # What an earlier run left dead must not stand in the way of this one.
    machine.stop_now(place)
    stop_swtpm(place)
    if vm.tpm:
        _prepare_tpm(vm, vm.tpm, place)
    pinned = _pin(vm)
    spec = machine_spec(
        vm.definition,
        pinned,
        place=place,
        files={volume.device: DiskFiles(volume.image) for volume in vm.volumes},
        settings=context().settings,
    )
    pid = asyncio.run(_launch_and_run(place, spec, vm.tpm.path if vm.tpm else None, epoch=vm.epoch))
    seen = {"pid": pid, "qmp": str(place.qmp), "run_state": None}
    record_state(context(), vm.id, VmState.RUNNING, **seen, pinned=pinned)


async def _launch_and_run(place: VmPlace, spec: MachineSpec, tpm: Path | None, *, epoch: int) -> int:
    pid = await launch_guest(place, spec, tpm=tpm, swtpm=this_swtpm() if tpm else None)
    place.note_epoch(epoch)
    async with open_monitor(place.control) as monitor:
        await machine.resume(monitor)
    return pid


def _pin(vm: VmView) -> dict[str, Any]:
    """Fix what must be the same wherever the guest goes.

    A machine type that was fixed once stays: guests notice a new one.
    """
    facts = vm.facts
    wanted = vm.pinned.get("machine") or vm.definition.machine or "pc"
    known = facts["machines"]
    if wanted not in known:
        raise Refused("machine_unknown", f"QEMU {facts['qemu_version']} has no machine type {wanted}", "See `machine`.")
    return {
        "machine": known[wanted],
        "cpu": vm.definition.cpu or _DEFAULT_CPU[facts["accel"]],
        "accel": facts["accel"],
        "ram_kib": guest_ram_kib(vm.definition.memory_mib, accel=facts["accel"], qemu_version=facts["qemu_version"]),
        "qemu_version": facts["qemu_version"],
    }


def _prepare_tpm(vm: VmView, tpm: VolumeView, place: VmPlace) -> None:
    """Make a new TPM where there has never been one; otherwise make sure that it is the recorded one."""
    if problem := vm.facts.get("swtpm_problem"):
        raise Refused(**problem)
    if vm.facts["swtpm_too_old"]:
        raise Refused("swtpm_too_old", f"swtpm {vm.facts['swtpm_version']} is too old", "Install swtpm 0.7 or newer.")
    if vm.definition.tpm_version != "v2.0":
        raise Refused("tpm_version", "only TPM 2.0 is supported", "Write version=v2.0.")
    if not tpm.path.exists():
        raise Refused("volume_missing", f"{tpm.device}: {tpm.path} is not there", "Nothing is made in its place.")
    recorded = recorded_identity(context(), vm.id)
    state = read_state(tpm.path)
    if state.is_blank and recorded is not None:
        raise Refused(
            "tpm_state_blank",
            f"the TPM state of {vm.name} is blank, but the VM has a TPM with recorded keys",
            f"Put the right volume at {tpm.path}; a start would quietly make another TPM.",
        )
    if state.is_blank:
        manufacture(tpm.path, work=place.run)
        state = read_state(tpm.path)
    identity = read_identity(state.container, swtpm=context().settings.swtpm, scratch=place.run)
    if recorded not in (None, identity):
        raise Refused(
            "tpm_identity_differs", f"the TPM state at {tpm.path} is not the TPM of {vm.name}", "Find the right volume."
        )
    record_active(
        context(),
        TpmCopy(vm.id, vm.node_id, tpm.path),
        epoch=vm.epoch,
        digest=state.digest,
        identity=identity,
        swtpm_version=vm.facts["swtpm_version"],
        libtpms_version=vm.facts.get("libtpms_version"),
    )


@app.task(name=f"haulier.vm.{OperationKind.STOP}")
def stop(operation_id: int) -> None:
    """Stop the VM: ask the guest, wait as long as was allowed, end QEMU, then swtpm."""
    carry_out(operation_id, _stop)


def _is_hurried(operation_id: int) -> bool:
    # A database that is away for a moment hurries nobody.
    with contextlib.suppress(SQLAlchemyError):
        return is_hurried(context(), operation_id)
    return False


def _stop(order: Order, vm: VmView) -> None:
    place = this_node().place(vm.name)
    grace_s = order.arguments.get("grace_s", 0.0)
    asyncio.run(machine.shut_down(place, grace_s=grace_s, hurried=partial(_is_hurried, order.operation_id)))
    stop_swtpm(place)
    if vm.tpm and vm.tpm.path.exists():
        record_active(
            context(), TpmCopy(vm.id, vm.node_id, vm.tpm.path), epoch=vm.epoch, digest=read_state(vm.tpm.path).digest
        )
    place.clear()
    record_state(context(), vm.id, VmState.STOPPED, pid=None, qmp=None, run_state=None)
