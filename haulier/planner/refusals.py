"""Everything that can be refused before anything is touched: each rule looks at facts and gives a problem or nothing.

All rules are asked, so that a person hears all reasons at once and not one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from haulier.definition import VmDefinition
from haulier.errors import Problem
from haulier.planner.guest_ram import loses_dirty_pages
from haulier.planner.methods import Choice

# A guest that gets all of a host's free RAM leaves none for QEMU itself and for the page cache of its disks.
RAM_HEADROOM = 64 << 20
DISK_HEADROOM = 16 << 20
# Of a VM in one of these states a QEMU has the volumes open.
STARTED = ("running", "paused")


def refuse_host_access(definition: VmDefinition, *, own_storages: bool) -> tuple[Problem, ...]:
    """What of a definition reaches past the VM's own storages into the host; for who has no permission to do that.

    `own_storages` says that the definition came with storages of its own, which may be any folder of the host.
    """
    return tuple(_host_access(definition, own_storages=own_storages))


def _host_access(definition: VmDefinition, *, own_storages: bool) -> Iterator[Problem]:
    if definition.args:
        yield Problem(
            "args_not_allowed",
            "`args` go to QEMU as they stand, and may open any file of the host",
            "Leave `args` out, or have the host's administrator define the VM with `haulier vm define`.",
        )
    hint = "Only the host's administrator may, with `haulier vm define`."
    for volume in definition.volumes:
        if volume.storage is None and volume.name is not None:
            yield Problem("host_file_not_allowed", f"{volume.device}: {volume.name} is a file of the host", hint)
    for index, target in enumerate(definition.serials):
        if target != "socket":
            yield Problem("host_device_not_allowed", f"serial{index}: {target} is a device of the host", hint)
    if own_storages:
        yield Problem("storages_not_allowed", "a storage of one's own may be any folder of the host", hint)


@dataclass(frozen=True, slots=True)
class MissingStorage:
    """One that the target does not have; `source` is the storage whose volumes were to go there, if they could go onto
    another one.
    """

    name: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class FilingFacts:
    """What the database knows when a migration is asked for."""

    vm: str
    vm_state: str
    vm_node: str
    target: str
    offline: bool
    open_migration: int | None
    source_silent_s: float | None
    target_silent_s: float | None
    target_state: str
    choices: tuple[Choice, ...] = ()
    open_operation: str | None = None
    missing_storages: tuple[MissingStorage, ...] = ()
    unused_maps: tuple[str, ...] = ()
    names_taken: tuple[str, ...] = ()


def refuse_filing(facts: FilingFacts) -> tuple[Problem, ...]:
    """The reasons why this migration cannot be filed; none means that it can."""
    return tuple(_filing(facts))


def _filing(facts: FilingFacts) -> Iterator[Problem]:
    yield from _busy(facts.vm, migration=facts.open_migration, operation=facts.open_operation)
    if facts.vm_node == facts.target:
        yield Problem("already_there", f"VM {facts.vm} is on {facts.target} already", "Name another node.")
    if facts.offline and facts.vm_state in STARTED:
        yield Problem("vm_running", f"VM {facts.vm} is {facts.vm_state}", "Migrate it live, without --offline.")
    if not facts.offline and facts.vm_state not in STARTED:
        yield Problem("vm_not_running", f"VM {facts.vm} is {facts.vm_state}", "--offline moves it as it is.")
    if facts.target_state != "online":
        yield closed_node(facts.target, facts.target_state)
    for name, silent_s in ((facts.vm_node, facts.source_silent_s), (facts.target, facts.target_silent_s)):
        if silent_s is not None:
            yield silent_node(name, silent_s)
    for missing in facts.missing_storages:
        hint = f"haulier node set {facts.target} --storages storage.cfg"
        if missing.source:
            hint += f", or --storage-map {missing.source}:OTHER"
        yield Problem("storage_missing", f"node {facts.target} has no storage {missing.name}", hint)
    for storage in facts.unused_maps:
        yield Problem(
            "storage_map_unused", f"VM {facts.vm} has nothing on the storage {storage}", f"haulier vm show {facts.vm}"
        )
    for name in facts.names_taken:
        words = f"{name} is another VM's on {facts.target}, and this one cannot have another name"
        yield Problem("name_taken", words, "Put it onto another storage with --storage-map.")
    yield from (choice.refusal for choice in facts.choices if choice.refusal)


def lost_source(name: str) -> Problem:
    """Why nothing can leave a node that was declared lost."""
    hint = "A VM that has a replica is started from that: haulier recover VM --on NODE."
    return Problem("node_lost", f"node {name} was declared lost: nothing can leave it", hint)


def closed_node(name: str, state: str) -> Problem:
    """Why a node that is not online takes nothing."""
    match state:
        case "lost":
            return Problem("node_lost", f"node {name} was declared lost", f"haulier node show {name}")
        case "draining" | "drained":
            words = "is being emptied" if state == "draining" else "was emptied"
            return Problem(
                "node_draining", f"node {name} {words}", f"haulier restore {name}, or haulier evacuation list"
            )
        case _:
            hint = f"haulier node maintenance {name} off"
            return Problem("node_in_maintenance", f"node {name} is in maintenance", hint)


def _busy(vm: str, *, migration: int | None, operation: str | None) -> Iterator[Problem]:
    if migration is not None:
        words = f"VM {vm} is already in migration {migration}"
        yield Problem("migration_open", words, f"haulier migration show {migration}")
    if operation is not None:
        yield Problem("operation_open", f"VM {vm} is busy: {operation} is not over", "Wait for it.")


def silent_node(name: str, silent_s: float) -> Problem:
    """The problem of a node whose worker does not answer; `silent_s` is infinite if it never did, and negative if what
    was heard last is of a time that is yet to come.
    """
    hint = "Start it (`haulier up` for a local one). If its host is off for good: haulier node lost, then recover."
    if silent_s < 0:
        since, hint = f"beats {-silent_s:.0f} s ahead of our time", "Bring the clocks of both hosts into step."
    else:
        since = "does not run" if silent_s == float("inf") else f"was last heard of {silent_s:.0f} s ago"
    return Problem("node_silent", f"the worker of node {name} {since}", hint)


@dataclass(frozen=True, slots=True)
class RecoveryFacts:
    """What the database knows when a VM is to be started from its replica.

    `without_replica` are the devices of which there is none there, `generations` those that the others hold.
    """

    vm: str
    vm_node: str
    node_state: str
    on: str
    on_state: str
    on_silent_s: float | None
    open_migration: int | None
    open_operation: str | None
    replicated: bool
    without_replica: tuple[str, ...]
    generations: tuple[int, ...]
    missing_storages: tuple[str, ...] = ()
    local_images: tuple[str, ...] = ()


def refuse_recovery(facts: RecoveryFacts) -> tuple[Problem, ...]:
    """The reasons why this VM cannot be started from a replica there; none means that it can."""
    return tuple(_recovery(facts))


def _recovery(facts: RecoveryFacts) -> Iterator[Problem]:
    if facts.vm_node == facts.on and facts.node_state != "lost":
        yield Problem("already_there", f"VM {facts.vm} is on {facts.on}", f"haulier vm show {facts.vm}")
        return
    if facts.node_state != "lost":
        yield Problem(
            "node_not_lost",
            f"node {facts.vm_node}, where {facts.vm} is, has not been declared lost",
            f"If it is off for certain: haulier node lost {facts.vm_node} --yes-it-is-off",
        )
    if facts.on_state == "lost":
        yield Problem("node_lost", f"node {facts.on} was declared lost", "Name another node.")
    elif facts.on_silent_s is not None:
        yield silent_node(facts.on, facts.on_silent_s)
    yield from _busy(facts.vm, migration=facts.open_migration, operation=facts.open_operation)
    if not facts.replicated:
        yield Problem("no_replica", f"there is no replica of {facts.vm} on {facts.on}", "haulier replication list")
    elif facts.without_replica or len(set(facts.generations)) != 1:
        lacking = ", ".join(facts.without_replica) or "its volumes are of more than one moment"
        words = f"the replica of {facts.vm} on {facts.on} is not whole: {lacking}"
        yield Problem("replica_incomplete", words, "haulier replication list")
    for storage in facts.missing_storages:
        words = f"node {facts.on} does not see the shared storage {storage}"
        yield Problem("storage_missing", words, f"haulier node set {facts.on} --storages storage.cfg")
    for device in facts.local_images:
        words = f"{device} held an ISO image of {facts.vm_node} alone"
        yield Problem("cdrom_local", words, "Nothing but that node has it.")


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the source sees of the running guest and its programs."""

    vm: str
    status: str
    accel: str
    qemu_version: str
    ram_kib: int
    foreign_jobs: tuple[str, ...] = ()
    blocked_reasons: tuple[str, ...] = ()


def refuse_source(facts: SourceFacts) -> tuple[Problem, ...]:
    """The reasons against a live migration that only the source can see."""
    return tuple(_source(facts))


def _source(facts: SourceFacts) -> Iterator[Problem]:
    if facts.status not in ("running", "paused"):
        yield Problem(
            "guest_state", f"the guest is `{facts.status}` in QEMU's words", "Only running or paused migrates."
        )
    if loses_dirty_pages(accel=facts.accel, qemu_version=facts.qemu_version, ram_kib=facts.ram_kib):
        yield Problem(
            "ram_multiple_of_256k",
            f"QEMU {facts.qemu_version} without KVM loses RAM of a guest of {facts.ram_kib} KiB (a multiple of 256)",
            "Stop and start the VM: it gets 8 KiB more then.",
        )
    for job in facts.foreign_jobs:
        yield foreign_job(facts.vm, job)
    for reason in facts.blocked_reasons:
        yield Problem("qemu_blocks_migration", f"QEMU: {reason}", "Remove the device that blocks.")


def foreign_job(vm: str, job: str) -> Problem:
    """The problem of a block job that somebody else has started on a disk."""
    return Problem("block_job_running", f"the block job {job} runs on a disk of {vm}", "Let it end first.")


def still_there(vm: str, *, program: str, pid: int) -> Problem:
    """The problem of a VM that is to be moved as one that does not run, although a program of it does."""
    return Problem("vm_running", f"{program} (pid {pid}) of VM {vm} runs", f"haulier vm show {vm}")


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What the target has, beside what the guest needs there: a VM that does not run needs no accelerator and no RAM,
    one that never has needs no machine type either.
    """

    node: str
    facts: dict[str, Any]
    machine: str | None
    accel: str | None
    ram_kib: int
    ram_free_bytes: int
    needed_by_storage: dict[str, int]
    free_by_storage: dict[str, int]
    has_tpm: bool = False
    source_swtpm: str | None = None
    source_libtpms: str | None = None
    bridges_missing: tuple[str, ...] = field(default=())
    leftovers: tuple[str, ...] = ()


def refuse_target(facts: TargetFacts) -> tuple[Problem, ...]:
    """The reasons against this target that only it can see."""
    return tuple(problem for rule in (_programs, _tpm, _room, _leftovers) for problem in rule(facts))


def _programs(facts: TargetFacts) -> Iterator[Problem]:
    if problem := facts.facts.get("qemu_problem"):
        yield Problem(**problem)
        return
    if facts.machine is not None and facts.machine not in facts.facts["machines"]:
        yield Problem(
            "machine_unknown",
            f"QEMU {facts.facts['qemu_version']} on {facts.node} has no machine type {facts.machine}",
            "Install a newer QEMU there.",
        )
    if facts.accel not in (None, facts.facts["accel"]):
        yield Problem(
            "accel_differs",
            f"the guest runs with {facts.accel}, {facts.node} would run it with {facts.facts['accel']}",
            "Both nodes need the same accelerator (HAULIER_ACCEL).",
        )
    for bridge in facts.bridges_missing:
        yield Problem("bridge_missing", f"node {facts.node} has no bridge {bridge}", "Make it, or choose another node.")


def _tpm(facts: TargetFacts) -> Iterator[Problem]:
    if not facts.has_tpm:
        return
    if problem := facts.facts.get("swtpm_problem"):
        yield Problem(**problem)
        return
    here = facts.facts["swtpm_version"]
    if facts.facts["swtpm_too_old"]:
        yield Problem("swtpm_too_old", f"node {facts.node} has swtpm {here}", "Install swtpm 0.7 or newer there.")
    here_libtpms = facts.facts.get("libtpms_version")
    if facts.source_libtpms and here_libtpms and is_older(here_libtpms, facts.source_libtpms):
        yield Problem(
            "libtpms_older",
            f"libtpms on {facts.node} is {here_libtpms}, the state was written by {facts.source_libtpms}",
            "A state of a newer libtpms may be unreadable for an older one: upgrade the target first.",
        )


def is_older(here: str, there: str) -> bool:
    """Whether one version is before another.

    By major and minor only: a patch release does not change the format of the state."""
    return [int(part) for part in here.split(".")[:2]] < [int(part) for part in there.split(".")[:2]]


def _room(facts: TargetFacts) -> Iterator[Problem]:
    needed = facts.ram_kib * 1024 + RAM_HEADROOM
    if facts.ram_kib and needed > facts.ram_free_bytes:
        yield Problem(
            "no_ram",
            f"node {facts.node} has {_mib(facts.ram_free_bytes)} MiB of RAM free, {_mib(needed)} are needed",
            "Choose another node, or make room.",
        )
    for storage, bytes_needed in facts.needed_by_storage.items():
        if storage not in facts.free_by_storage:
            yield Problem("storage_missing", f"node {facts.node} has no storage {storage}", "Define it there.")
        elif bytes_needed + DISK_HEADROOM > facts.free_by_storage[storage]:
            yield Problem(
                "no_space",
                f"storage {storage} on {facts.node} has {_mib(facts.free_by_storage[storage])} MiB free, "
                f"{_mib(bytes_needed)} are needed",
                "Choose another node, or make room.",
            )


def _leftovers(facts: TargetFacts) -> Iterator[Problem]:
    for leftover in facts.leftovers:
        yield Problem(
            "process_there", f"{leftover} of this VM runs on {facts.node}", "Look at it, then end it by hand."
        )


def _mib(number: int) -> int:
    return number >> 20


def as_problems(rows: Iterable[dict[str, str]]) -> tuple[Problem, ...]:
    """Problems back from the form in which rows keep them."""
    return tuple(Problem(**row) for row in rows)
