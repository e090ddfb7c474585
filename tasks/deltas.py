"""A disk that crosses as the difference to its replica: sent by the source, merged by the target.

The difference goes first, in rounds, as long as the guest has written much meanwhile. Then the guest stands still for a
moment: the last round is sent, and a mirror of all later writes begins where it ends. From then on it is a mirror like
any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from haulier.errors import StepFailed
from haulier.fault_points import fault_point
from haulier.hypervisor import machine
from haulier.hypervisor.dead_links import cut_on_failure
from haulier.hypervisor.devices import PREFIX, node_name, overlay_node
from haulier.hypervisor.disks import Mirror, connect_export, follow_writes, start_mirror, wait_until_done
from haulier.hypervisor.generations import (
    DiskBackup,
    begin_generation,
    bitmap_name,
    drop_bitmap,
    read_bitmaps,
)
from haulier.hypervisor.images import flush_folder, remove_image
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.overlays import (
    bring_together,
    forget_overlay,
    go_on_with_base,
    is_on_base,
    record_writes,
)
from haulier.services.allocations import free_allocations
from haulier.services.attempts import TransferView
from models import AllocationKind, Phase, Side, TransferMethod
from tasks.backups import bitmap_of, usable_bitmaps
from tasks.jobs import report_jobs, watch_jobs
from tasks.merging import merge_into
from tasks.runner import StepRun, reporting

_ROUND = f"{PREFIX}round-"
_ROUNDS = 6
# So much may be sent with the guest standing still: it takes some milliseconds.
_LITTLE_BYTES = 4 << 20


async def send_all(work: StepRun, monitor: Monitor, mirrors: Sequence[Mirror]) -> dict[str, int]:
    """Begin to mirror all disks: as a whole, or, of one with a replica and a bitmap that says what that lacks, what is
    written later, once the difference has been sent. Returns how many bytes that was, by device.

    Raises StepFailed with QEMU's words. The guest runs on; if our process dies, `undo_deltas` sees to that.
    """
    at_most = await work.allowance.pace(jobs=len(mirrors))
    backups = await _backups(work, monitor)
    known = {each.device for each in backups}
    for mirror in mirrors:
        if mirror.device not in known:
            await start_mirror(monitor, mirror, max_bytes_per_s=at_most)
    following = [mirror for mirror in mirrors if mirror.device in known]
    if not following:
        return {}
    for mirror in following:
        await connect_export(monitor, mirror.job, mirror.device, server=mirror.server, tls=mirror.tls)
    rounds = _Rounds(work, monitor, backups)
    for _ in range(_ROUNDS):
        await rounds.send()
        if await rounds.left_bytes() <= _LITTLE_BYTES:
            break
    await fault_point("mirror_disks.rounds_sent")
    async with _standing(work, monitor):
        await rounds.send(hurry=True)
        for mirror in following:
            await follow_writes(monitor, mirror)
        await fault_point("mirror_disks.standing")
        if await rounds.left_bytes():
            # It was paused when we came, and somebody has let it run: between round and mirror a write would be lost.
            raise StepFailed("guest_runs_again", "the guest was let run meanwhile", "Migrate it once more.")
    await rounds.forget()
    return rounds.sent


@contextlib.asynccontextmanager
async def _standing(work: StepRun, monitor: Monitor) -> AsyncIterator[None]:
    """The guest stands still inside the block, if it ran, and no longer than a guest may; a dead link ends it, too.

    Whoever undoes the step knows that it was us who stopped it.
    """
    limit_s, ran = work.context.settings.pause_lease_s, await machine.status(monitor) == "running"
    begun = time.monotonic()
    try:
        # The links are cut before the guest is let run again: a QEMU that waits for one obeys nobody.
        async with cut_on_failure(monitor), asyncio.timeout(limit_s):
            if ran:
                work.note(we_stopped=True)
                await machine.pause(monitor)
            yield
    except TimeoutError as error:
        words = f"the rest of the difference was not sent in {limit_s:g} s"
        raise StepFailed("stalled", words, "Is the link between the nodes up?") from error
    finally:
        if ran:
            await machine.resume(monitor)
    if ran:
        work.note(we_stopped=False, stood_ms=round((time.monotonic() - begun) * 1000, 1))


async def _backups(work: StepRun, monitor: Monitor) -> list[DiskBackup]:
    deltas = work.view.by_method(TransferMethod.DELTA)
    usable = await usable_bitmaps(monitor, deltas)
    return [
        DiskBackup(each.device, str(each.role), each.format, each.device, since)
        for each in deltas
        if (since := bitmap_of(each)) and (each.device, since) in usable
    ]


class _Rounds:
    """Backups one after the other, each of what was written since the one before began."""

    def __init__(self, work: StepRun, monitor: Monitor, backups: Sequence[DiskBackup]) -> None:
        self._work = work
        self._monitor = monitor
        self._backups = list(backups)
        self._number = 0
        self.sent: dict[str, int] = {}

    async def send(self, *, hurry: bool = False) -> None:
        """One round. In a `hurry` a guest stands still for it: its few bytes are not held back."""
        before, self._number = self._number, self._number + 1
        name = f"{_ROUND}{self._number}"
        at_most = 0 if hurry else await self._work.allowance.pace(jobs=len(self._work.view.mirrored))
        backups = self._backups if before == 0 else [replace(each, since=f"{_ROUND}{before}") for each in self._backups]
        jobs = await begin_generation(
            self._monitor, backups, bitmap=name, number=self._number, max_bytes_per_s=at_most, lasting=False
        )
        look = report_jobs if hurry else watch_jobs
        async with reporting(lambda: look(self._work, self._monitor, before=self.sent)):
            done = await wait_until_done(self._monitor, jobs)
        for device, length in done.items():
            self.sent[device] = self.sent.get(device, 0) + length
        if before:
            for each in self._backups:
                await drop_bitmap(self._monitor, each.device, f"{_ROUND}{before}")

    async def left_bytes(self) -> int:
        """How much was written since the newest round began."""
        found = await read_bitmaps(self._monitor, [each.device for each in self._backups])
        return sum(each.dirty_bytes for each in found if each.name == f"{_ROUND}{self._number}")

    async def forget(self) -> None:
        """The newest round's bitmap has done its work."""
        for each in self._backups:
            await drop_bitmap(self._monitor, each.device, f"{_ROUND}{self._number}")


async def undo_deltas(work: StepRun, monitor: Monitor, *, we_stopped: bool) -> None:
    """Let a guest run again that we had stopped, and forget the rounds. Safe to call twice."""
    if we_stopped:
        await machine.resume(monitor)
    devices = [each.device for each in work.view.by_method(TransferMethod.DELTA)]
    for found in await read_bitmaps(monitor, devices):
        if found.name.startswith(_ROUND):
            await drop_bitmap(monitor, found.device, found.name)


async def record_later_writes(work: StepRun, monitor: Monitor) -> None:
    """On the target, before the guest runs there: what it writes from now on is what the source's volumes lack, which
    become its replica. Safe to call twice.
    """
    turn = work.view.turn
    if turn is None:
        return
    nodes = [
        (overlay_node(each.device), False)
        if each.method is TransferMethod.DELTA
        else (node_name(each.device), each.target_format == "qcow2")
        for each in work.view.mirrored
    ]
    await record_writes(monitor, nodes, bitmap=bitmap_name(turn.replication_id, turn.generation))


async def merge_deltas(work: StepRun) -> None:
    """On the target, with the guest running or dead: the overlays are merged into their bases, and go. Safe to call
    twice, and after having died anywhere in it.
    """
    view = work.view
    deltas = view.by_method(TransferMethod.DELTA)
    if deltas and work.place.qemu.pid() is not None:
        async with open_monitor(work.place.control) as monitor:
            await _merge_running(work, monitor, deltas)
    for each in deltas:
        await merge_into(each.final_path, each.target_path)
        free_allocations(work.context, view.attempt_id, kind=AllocationKind.VOLUME, path=each.target_path)


async def _merge_running(work: StepRun, monitor: Monitor, deltas: Sequence[TransferView]) -> None:
    turn = work.view.turn
    bitmap = bitmap_name(turn.replication_id, turn.generation) if turn else None
    if work.view.notes[Phase.HAND_OVER, Side.TARGET].get("we_stopped"):
        # An earlier try died with the guest standing still.
        await _let_run_on_what_it_has(work, monitor, deltas)
    for each in deltas:
        await bring_together(monitor, each.device)
    await fault_point("hand_over.merge_ready")
    ran = await machine.status(monitor) == "running"
    if ran:
        work.note(we_stopped=True)
        await machine.pause(monitor)
    try:
        for each in deltas:
            await go_on_with_base(monitor, each.device, bitmap=bitmap, persistent=each.format == "qcow2")
        await fault_point("hand_over.on_bases")
    finally:
        if ran:
            await _let_run_on_what_it_has(work, monitor, deltas)
        else:
            await _remove_merged(monitor, deltas)
    await fault_point("hand_over.merged")
    for each in deltas:
        await forget_overlay(monitor, each.device)


async def _let_run_on_what_it_has(work: StepRun, monitor: Monitor, deltas: Sequence[TransferView]) -> None:
    """Let the guest run that we had stopped: some of its disks may be on their bases, and some not."""
    await _remove_merged(monitor, deltas)
    await machine.resume(monitor)
    work.note(we_stopped=False)


async def _remove_merged(monitor: Monitor, deltas: Sequence[TransferView]) -> None:
    """No write of the guest may come between the base alone and the end of the overlay's file: who finds that file
    beside a QEMU that has died merges it, and would undo the write.
    """
    for each in deltas:
        if await is_on_base(monitor, each.device):
            remove_image(each.target_path)
            flush_folder(each.target_path.parent)
