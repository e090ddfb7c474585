"""A cell: one fault at one point of one migration, and the questions at its end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from haulier.errors import HaulierError
from tests.acceptance.commands import Command
from tests.acceptance.guest import TICKS_PER_S, Guest
from tests.acceptance.invariant import assert_all_is_well
from tests.acceptance.waiting import let_pass, wait_until
from tests.matrix.cluster import SOURCE, TARGET, Cluster
from tests.matrix.faults import FAULTS, Fault, Scene

# In the order in which a migration comes to them. At each somebody is held, the fault happens, and all goes on.
POINTS = (
    "check.run.begins",
    "reserve.run.ends",
    "sync_tpm.run.ends",
    "copy_cold.run.ends",
    "open_target.run.ends",
    "mirror_disks.run.ends",
    "move_memory.run.begins",
    "move_memory.paused",
    "move_memory.completed",
    "move_memory.noted",
    "hand_over.loaded",
    "hand_over.proved",
    "hand_over.committed",
    "retire_source.run.begins",
)
HANDED_OVER = POINTS[POINTS.index("hand_over.committed") :]
_OPEN = ("queued", "running", "handed_over", "rolling_back")
_HEALED_S = 150.0


@dataclass(frozen=True)
class Result:
    """How a cell ended: the migration's state, where the VM is and what its row calls it, seconds until then.

    `pause_ms` is the longest time that the guest stood still, by its own account; None if it died or was not asked.
    """

    fault: str
    point: str
    migration: str
    node: str
    vm: str
    seconds: float
    pause_ms: float | None

    @property
    def end(self) -> str:
        """In a word."""
        return f"{self.migration}, {self.vm} on {self.node}"


def run_cell(cluster: Cluster, guest: Guest, fault: Fault, point: str, *, ask_pause: bool) -> Result:
    """Play it. Raises AssertionError or TimeoutError when something is not as it must be."""
    scene = Scene(cluster, guest)
    guest.tpm_may_fail = fault.name.endswith("swtpm")
    with cluster.points.holding(point):
        command = guest.begin_migrate(TARGET)
        cluster.points.wait_held(point)
        began = time.monotonic()
        fault.strike(scene)
    _last(scene, fault)
    vm = wait_until("the system has healed", lambda: _settled(cluster, guest), deadline_s=_HEALED_S, every_s=0.1)
    seconds = time.monotonic() - began
    migration = cluster.table("migration", vm_id=vm["id"])[-1]
    pause_ms = _longest_pause_ms(guest) if ask_pause and vm["state"] == "running" else None
    result = Result(fault.name, point, str(migration["state"]), vm["node"], str(vm["state"]), seconds, pause_ms)
    assert result.end in allowed_ends(fault.name, point), f"{result.end}: {migration['problems']}"
    _no_traceback(command)
    _examine(cluster, guest, vm)
    return result


def _longest_pause_ms(guest: Guest) -> float:
    # The guest tells a pause up to two seconds after it (probe/README.md).
    guest.wait_ticks(5 * TICKS_PER_S // 2)
    verdict = guest.verdict()
    return max(verdict.longest_gap_us, verdict.longest_pause_us) / 1000


def _last(scene: Scene, fault: Fault) -> None:
    """Let the fault last as long as it does."""
    if fault.heal is None:
        return
    try:
        if fault.lasts_s is not None:
            let_pass(fault.lasts_s)
        else:
            wait_until("the migration is over", lambda: _is_over(scene), deadline_s=_HEALED_S, every_s=0.1)
    finally:
        fault.heal(scene)


def _is_over(scene: Scene) -> bool:
    with suppress(SQLAlchemyError):
        rows = scene.cluster.table("migration", vm_id=scene.guest.row()["id"])
        return bool(rows) and rows[-1]["state"] not in _OPEN
    return False


def _settled(cluster: Cluster, guest: Guest) -> dict[str, Any] | None:
    """The VM's row, once nothing is under way any more and its QEMU does what the row says."""
    with suppress(SQLAlchemyError, HaulierError, OSError):
        vm = guest.row()
        rows = cluster.table("migration", vm_id=vm["id"])
        if not rows or rows[-1]["needs_operator"] or rows[-1]["state"] in _OPEN:
            return None
        runs = vm["state"] in ("running", "paused")
        if set(guest.qemus()) != ({vm["node"]} if runs else set()):
            return None
        if runs and guest.ask("query-status")["status"] != (vm["run_state"] or vm["state"]):
            return None
        if not all(cluster.beats(node) for node in cluster.nodes):
            return None
        return vm
    return None


def _no_traceback(command: Command) -> None:
    answer = command.finish()
    assert "Traceback" not in answer.errors, answer.errors


def _examine(cluster: Cluster, guest: Guest, vm: dict[str, Any]) -> None:
    """Nothing lost, nothing left over. A guest that died, or whose TPM did, is started anew and knows everything."""
    if vm["run_state"] == "io-error":
        guest.ask("cont")
        wait_until("the row says so", lambda: guest.row()["state"] == "running")
    swtpm = cluster.vm_process("swtpm", vm["node"], guest.name)
    if vm["state"] == "running" and swtpm is None:
        guest.stop()
    if guest.row()["state"] in ("lost", "stopped"):
        assert_all_is_well(cluster)
        guest.start()
    guest.wait_ticks()
    assert_all_is_well(cluster, guest)


# What `check` sees by itself, before anything is touched.
_REFUSED = ("full", "frozen", "source_swtpm")


def allowed_ends(fault: str, point: str) -> frozenset[str]:
    """How a cell may end: the guest runs on the source of an undone migration, or on the target of one that is done."""
    ends = {f"done, running on {TARGET}"}
    if point not in HANDED_OVER:
        ends.add(f"undone, running on {SOURCE}")
    if point == POINTS[0] and fault in _REFUSED:
        ends = {f"refused, running on {SOURCE}"}
    if fault == "full" and POINTS.index(point) >= POINTS.index("mirror_disks.run.ends"):
        # QEMU pauses a guest that has no room to write to; it goes on when there is.
        ends.add(f"done, paused on {TARGET}")
    if fault == "source_qemu":
        # The guest's own death, and no migration's.
        ends |= {f"undone, lost on {SOURCE}"}
        ends |= {f"refused, lost on {SOURCE}"} if point == POINTS[0] else set()
    if fault == "target_qemu":
        ends |= {f"done, lost on {TARGET}"}
    return frozenset(ends)


def all_cells() -> Iterable[tuple[Fault, str]]:
    """The whole matrix, row by row."""
    return ((fault, point) for fault in FAULTS for point in POINTS)


# Every fault, the most telling ones at several of the places that differ in what is to be done about it.
_IN_CI = {
    "source_worker": ("sync_tpm.run.ends", "mirror_disks.run.ends", "move_memory.paused", "move_memory.noted",
                      "retire_source.run.begins"),
    "target_worker": ("reserve.run.ends", "open_target.run.ends", "hand_over.proved", "hand_over.committed"),
    "source_guardian": ("move_memory.paused",),
    "target_guardian": ("hand_over.committed",),
    "control_worker": ("check.run.begins",),
    "beat": ("move_memory.run.begins",),
    "broker": ("open_target.run.ends", "move_memory.noted"),
    "database": ("mirror_disks.run.ends", "hand_over.loaded"),
    "source_qemu": ("mirror_disks.run.ends",),
    "target_qemu": ("move_memory.paused", "hand_over.committed"),
    "source_swtpm": ("move_memory.run.begins",),
    "target_swtpm": ("move_memory.paused",),
    "cut": ("move_memory.paused",),
    "loss": ("hand_over.loaded",),
    "full": ("open_target.run.ends",),
    "frozen": ("hand_over.proved",),
}  # fmt: skip


def cross_section() -> Iterable[tuple[Fault, str]]:
    """What CI plays."""
    return (cell for cell in all_cells() if cell[1] in _IN_CI.get(cell[0].name, ()))
