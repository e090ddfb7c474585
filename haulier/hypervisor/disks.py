"""Disks of a running VM: served by the target's QEMU over NBD, mirrored by the source's.

The TPM's state is no disk: QEMU never has it open, and nothing here takes a volume's role for granted (`Mirror` refuses
it).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from haulier.errors import Refused, StepFailed
from haulier.hypervisor.dead_links import cut_links
from haulier.hypervisor.devices import PREFIX, node_name, overlay_node
from haulier.hypervisor.monitor import Event, Monitor
from haulier.hypervisor.nbd import NbdServer, require_answer
from haulier.hypervisor.sockets import hand_to_qemu, listen_on
from haulier.hypervisor.tls import OBJECT_ID

_LISTENER = "haulier-nbd"


@dataclass(frozen=True, slots=True)
class Mirror:
    """One disk on its way: the device, its role, and where the target serves it."""

    device: str
    role: str
    server: NbdServer
    tls: bool

    def __post_init__(self) -> None:
        require_mirrorable(self.device, self.role)

    @property
    def job(self) -> str:
        return f"{PREFIX}{self.device}"


def require_mirrorable(device: str, role: str) -> None:
    """Raise Refused for a TPM's state: only swtpm has it open, a mirror of it would copy what QEMU never sees."""
    if role == "tpmstate":
        raise Refused(
            "tpmstate_never_mirrored",
            f"{device} holds a TPM's state and cannot be mirrored or exported",
            "It crosses by the phase sync_tpm.",
        )


@dataclass(frozen=True, slots=True)
class MirrorProgress:
    """How far one mirror is, in bytes; `total` grows while the guest writes."""

    device: str
    done: int
    total: int


async def serve_disks(
    monitor: Monitor,
    disks: Sequence[tuple[str, str]],
    *,
    server: NbdServer,
    tls: bool,
    overlays: Collection[str] = (),
) -> None:
    """On the target: open an NBD server and export the given (device, role) pairs for writing; of the devices that have
    one, the overlay.

    Raises StepFailed when the port is taken (nothing is served then) or an export fails.
    """
    for device, role in disks:
        require_mirrorable(device, role)
    await hand_to_qemu(monitor, listen_on(server), _LISTENER)
    await monitor.execute(
        "nbd-server-start",
        addr={"type": "fd", "data": {"str": _LISTENER}},
        tls_creds=OBJECT_ID if tls else None,
    )
    for device, _ in disks:
        await monitor.execute(
            "block-export-add",
            type="nbd",
            id=f"{PREFIX}{device}",
            node_name=overlay_node(device) if device in overlays else node_name(device),
            name=device,
            writable=True,
        )


async def stop_serving(monitor: Monitor) -> None:
    """On the target: close the NBD server with all exports, so that the guest's devices can take the disks over."""
    await monitor.execute("nbd-server-stop")


async def connect_export(monitor: Monitor, node: str, export: str, *, server: NbdServer, tls: bool) -> None:
    """On the source: open an export of the target as a block node.

    Raises StepFailed when the target does not answer.
    """
    await require_answer(server)
    await monitor.execute_raw(
        "blockdev-add",
        {
            "driver": "nbd",
            "node-name": node,
            "server": {"type": "inet", "host": server.address, "port": str(server.port)},
            "export": export,
            # Without it a run of zeroes fills the target's holes (QEMU 10; 7.2 leaves them out).
            "discard": "unmap",
            **({"tls-creds": OBJECT_ID} if tls else {}),
        },
    )


async def start_mirror(monitor: Monitor, mirror: Mirror, *, max_bytes_per_s: int = 0) -> None:
    """On the source: connect to the target's export and begin to copy the whole disk onto it (0: as fast as it
    goes). Raises StepFailed when the target does not answer.
    """
    await connect_export(monitor, mirror.job, mirror.device, server=mirror.server, tls=mirror.tls)
    await _mirror(monitor, mirror, sync="full", max_bytes_per_s=max_bytes_per_s)


async def follow_writes(monitor: Monitor, mirror: Mirror, *, max_bytes_per_s: int = 0) -> None:
    """On the source: copy only what is written from now on, onto an export that is connected already and holds the
    rest. Raises StepFailed with QEMU's words.
    """
    await _mirror(monitor, mirror, sync="none", max_bytes_per_s=max_bytes_per_s)


async def _mirror(monitor: Monitor, mirror: Mirror, *, sync: str, max_bytes_per_s: int) -> None:
    await monitor.execute(
        "blockdev-mirror",
        job_id=mirror.job,
        device=node_name(mirror.device),
        target=mirror.job,
        sync=sync,
        speed=max_bytes_per_s,
    )


async def wait_until_ready(monitor: Monitor, mirrors: Sequence[Mirror]) -> None:
    """Wait until every mirror holds what its disk holds; from then on each write goes to both.

    Raises StepFailed when a mirror ends before, with QEMU's words.
    """
    jobs = {job["device"]: job["ready"] for job in await _jobs(monitor)}
    for mirror in mirrors:
        if mirror.job not in jobs:
            words = f"the mirror of {mirror.device} has ended already"
            raise StepFailed("mirror_failed", words, "See QEMU's log. Is the target's storage full?")
    waiting = {job for job, ready in jobs.items() if not ready and job in {mirror.job for mirror in mirrors}}
    while waiting:
        event = await monitor.wait_for(lambda event: event.data.get("device") in waiting and _is_about_jobs(event))
        if event.name == "BLOCK_JOB_READY":
            waiting.discard(event.data["device"])
        else:
            raise _failed(event)


async def read_progress(monitor: Monitor) -> tuple[MirrorProgress, ...]:
    """How far the mirrors or backups are."""
    return tuple(MirrorProgress(_device_of(job["device"]), job["offset"], job["len"]) for job in await _jobs(monitor))


def _device_of(job: str) -> str:
    """A backup that was begun again has a number behind its device."""
    return job.removeprefix(PREFIX).partition(".")[0]


async def set_speeds(monitor: Monitor, of_each: Callable[[int], int]) -> int:
    """On the source: tell the jobs that still carry how fast each of so many may go, in bytes/s; 0 is as fast as it
    goes. A mirror that is ready follows the guest, and has no limit: the guest would wait for it in its pause.

    Returns how many carry. Raises StepFailed when a job ends meanwhile.
    """
    jobs = await _jobs(monitor)
    carrying = sum(not job["ready"] for job in jobs)
    each = of_each(carrying)
    for job in jobs:
        speed = 0 if job["ready"] else each
        if job["speed"] != speed:
            await monitor.execute("block-job-set-speed", device=job["device"], speed=speed)
    return carrying


async def finish_mirrors(monitor: Monitor, mirrors: Sequence[Mirror]) -> None:
    """With the guest paused: bring the last writes over and let go, so that both sides hold the same.

    Cancelling a ready mirror without force drains it and keeps the source on its own disk. Raises StepFailed when one
    did not end well; the target's disk is then worth nothing.
    """
    jobs = [mirror.job for mirror in mirrors]
    for job in jobs:
        await monitor.execute("block-job-cancel", device=job)
    await wait_until_done(monitor, jobs)


async def end_jobs(monitor: Monitor, *, cut: bool = False) -> None:
    """On the source: end whatever mirror or backup of ours still runs. Safe to call twice.

    A job waits for what is under way to the target, over a dead link for ever, unless the links are `cut`.
    """
    running = {job["device"] for job in await _jobs(monitor)}
    if cut:
        await cut_links(monitor)
    for job in running:
        with suppress(StepFailed):  # it has just ended by itself
            await monitor.execute("block-job-cancel", device=job, force=True)
    while running:
        ended = await monitor.wait_for(lambda event: event.name in _ENDINGS and event.data.get("device") in running)
        running.discard(ended.data["device"])


async def drop_jobs(monitor: Monitor) -> None:
    """The same over links that are cut, and their nodes are removed, too. Safe to call twice."""
    await end_jobs(monitor, cut=True)
    for node in await monitor.execute("query-named-block-nodes", flat=True):
        if node["node-name"].startswith(PREFIX):
            await monitor.execute("blockdev-del", node_name=node["node-name"])


async def wait_until_done(monitor: Monitor, jobs: Sequence[str]) -> dict[str, int]:
    """Wait until every one of these jobs has ended well. Returns how many bytes each has been through, by its device.

    Raises StepFailed when one has not, with QEMU's words. They must have been started in this very conversation: it has
    not missed their ends then.
    """
    waiting, done = set(jobs), {}
    while waiting:
        event = await monitor.wait_for(lambda event: event.name in _ENDINGS and event.data.get("device") in waiting)
        if event.name != "BLOCK_JOB_COMPLETED" or event.data.get("error"):
            raise _failed(event)
        job = event.data["device"]
        waiting.discard(job)
        done[_device_of(job)] = int(event.data.get("offset", 0))
    return done


_ENDINGS = ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")


def _is_about_jobs(event: Event) -> bool:
    return event.name in (*_ENDINGS, "BLOCK_JOB_READY", "BLOCK_JOB_ERROR")


async def _jobs(monitor: Monitor) -> list[dict[str, Any]]:
    return [job for job in await monitor.execute("query-block-jobs") if job["device"].startswith(PREFIX)]


def _failed(event: Event) -> StepFailed:
    device = _device_of(str(event.data.get("device", "")))
    words = event.data.get("error") or event.name
    kind = event.data.get("type", "mirror")
    return StepFailed(f"{kind}_failed", f"the {kind} of {device} ended: {words}", "Is the target's storage full?")
