"""With every heartbeat a node's worker looks at its host: guests that have ended, programs that should not be there.

Seen first, asked later: a program counts by the pid it had before the rows were read, so that one which was started
meanwhile is never taken for an old one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from haulier.errors import HaulierError
from haulier.hypervisor.layout import NodeLayout, VmPlace
from haulier.hypervisor.machine import status
from haulier.hypervisor.monitor import open_monitor
from haulier.hypervisor.processes import Daemon, end
from haulier.hypervisor.swtpm import stop_swtpm
from haulier.planner.recovery import ProgramAct, decide_program
from haulier.services.context import Context
from haulier.services.programs import find_program, note_program
from haulier.services.vm_rows import VmView, load_vm_named, record_observed, vms_that_should_run
from models import VmState

log = structlog.get_logger()
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The programs of one VM that ran when the host was looked at, with their pids; in the order in which they end.

    `epoch` is the one under which its QEMU was given the guest.
    """

    vm: str
    place: VmPlace
    pids: tuple[tuple[str, Daemon, int], ...]
    epoch: int | None

    @property
    def programs(self) -> list[str]:
        return [name for name, _, _ in self.pids]


class HostWatch:
    """One for a worker's life: what was told once is not told again. `guest_ram_bytes`: the RAM that each VM's QEMU
    had when it was looked at last, by the VMs' names.
    """

    def __init__(self, context: Context, node_id: int, layout: NodeLayout) -> None:
        self._context = context
        self._node_id = node_id
        self._layout = layout
        self._told: set[tuple[str, ...]] = set()
        self.guest_ram_bytes: dict[str, int] = {}

    def look(self) -> None:
        """Look once. Safe to call at any time; what a migration or an operation works on is left to it."""
        seen = tuple(_programs(self._layout))
        guests = vms_that_should_run(self._context, self._node_id)
        for vm in guests:
            self._look_after(vm)
        ram = ((vm.name, self._layout.vm(vm.name).qemu.resident_bytes()) for vm in guests)
        self.guest_ram_bytes = {name: size for name, size in ram if size}
        theirs = {vm.name for vm in guests}
        for each in seen:
            if each.vm not in theirs:
                self._decide(each)

    def _decide(self, seen: Seen) -> None:
        finding = find_program(self._context, self._node_id, seen.vm, epoch=seen.epoch)
        match decide_program(finding):
            case ProgramAct.TELL:
                self._tell("programs.unknown", seen)
            case ProgramAct.STOP:
                self._stop(seen)
            case ProgramAct.ADOPT if vm := load_vm_named(self._context, seen.vm):
                self._note_pause(vm, seen.place, pid=seen.pids[0][2], qmp=str(seen.place.qmp))

    def _look_after(self, vm: VmView) -> None:
        """A QEMU that ended by itself was powered off by its guest; one that left its pid file behind was killed."""
        place = self._layout.vm(vm.name)
        if (pid := place.qemu.pid()) is not None:
            self._note_pause(vm, place)
            if vm.tpm and place.swtpm.pid() is None:
                # The guest runs on and its TPM does not answer; a new swtpm could not be connected to this QEMU.
                self._tell("tpm.lost", Seen(vm.name, place, (("qemu", place.qemu, pid),), None))
            return
        state = VmState.STOPPED if place.qemu.ended_by_itself() else VmState.LOST
        if not record_observed(self._context, vm, state, pid=None, qmp=None, run_state=None):
            return
        stop_swtpm(place)
        place.clear()
        log.warning("vm.ended", vm=vm.name, state=state)

    def _note_pause(self, vm: VmView, place: VmPlace, **values: object) -> None:
        """Somebody may have paused or continued the guest by its own monitor, or QEMU after an error; the row
        follows.
        """
        with contextlib.suppress(HaulierError, TimeoutError):
            word = asyncio.run(_status(place))
            state, run_state = (VmState.RUNNING, None) if word == "running" else (VmState.PAUSED, word)
            if (state, run_state) != (vm.state, vm.run_state):
                record_observed(self._context, vm, state, run_state=run_state, **values)

    def _tell(self, kind: str, seen: Seen) -> None:
        key = (kind, seen.vm, *(str(pid) for _, _, pid in seen.pids))
        if key not in self._told:
            self._told.add(key)
            log.warning(kind, vm=seen.vm, programs=seen.programs)
            note_program(self._context, self._node_id, kind, vm=seen.vm, programs=seen.programs)

    def _stop(self, seen: Seen) -> None:
        """What was seen ends, QEMU before its swtpm; what was started since then stays."""
        there = [(name, daemon) for name, daemon, pid in seen.pids if daemon.pid() == pid]
        if not there:
            return
        # Told first: if we end in between, the next look finds the rest and tells again.
        programs = [name for name, _ in there]
        log.warning("programs.stopped", vm=seen.vm, programs=programs)
        note_program(self._context, self._node_id, "programs.stopped", vm=seen.vm, programs=programs)
        for _, daemon in there:
            end(daemon)
        seen.place.forget_digests()


def _programs(layout: NodeLayout) -> Iterator[Seen]:
    """The VMs of which something runs on this host."""
    for folder in sorted((layout.root / "vms").glob("*")):
        place = layout.vm(folder.name)
        daemons = (("qemu", place.qemu), ("swtpm", place.swtpm), ("carrier", place.carrier), ("reader", place.reader))
        found = tuple((name, daemon, pid) for name, daemon in daemons if (pid := daemon.pid()) is not None)
        if found:
            yield Seen(folder.name, place, found, place.epoch() if found[0][0] == "qemu" else None)


async def _status(place: VmPlace) -> str:
    # A QEMU that hangs must not make its whole node look silent.
    async with asyncio.timeout(_LOOK_S), open_monitor(place.control) as monitor:
        return await status(monitor)
