"""One QEMU process: started, looked at, continued, stopped. What it is made of is said by command_line.py."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from haulier.errors import HaulierError, StepFailed
from haulier.hypervisor.command_line import MachineSpec, command_line
from haulier.hypervisor.layout import VmPlace, listening_socket
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.processes import end, last_words, log_size, spawn, wait_for_end

# For a QEMU to let go of a stream whose end it has told already.
_LET_GO_S = 10.0


async def launch(place: VmPlace, spec: MachineSpec) -> int:
    """Start QEMU with the guest not running yet, and wait until it answers. Returns its pid.

    The monitors' sockets are made here and handed to QEMU, so that readiness is a connection and not a guess. Raises
    StepFailed with QEMU's own words when it does not come up; nothing runs then.
    """
    since = log_size(place.qemu.log)
    with listening_socket(place.control) as control, listening_socket(place.qmp) as public:
        fds = (control.fileno(), public.fileno())
        argv = command_line(dataclasses.replace(spec, monitor_fds=fds))
        pid = spawn(place.qemu, argv, pass_fds=fds)
    try:
        async with open_monitor(place.control) as monitor:
            await monitor.execute("query-status")
    except HaulierError as error:
        wait_for_end(place.qemu, seconds=1.0)
        stop_now(place)
        words = last_words(place.qemu.log, since=since) or error.problem.message
        raise StepFailed(
            "qemu_not_started", f"QEMU did not start: {words}", "QEMU's own words; see its log."
        ) from error
    return pid


async def machine_type(monitor: Monitor) -> str:
    """The versioned machine type that runs, for example `pc-q35-7.2`: an alias means something else on a newer QEMU."""
    found: str = await monitor.execute("qom-get", path="/machine", property="type")
    return found.removesuffix("-machine")


async def status(monitor: Monitor) -> str:
    """The guest's run state in QEMU's words (`running`, `paused`, `postmigrate`, …)."""
    found: dict[str, Any] = await monitor.execute("query-status")
    return str(found["status"])


async def pause(monitor: Monitor) -> None:
    """Let the guest stand still; what it has written is at its disks then. Raises StepFailed when QEMU refuses."""
    await monitor.execute("stop")


async def resume(monitor: Monitor) -> None:
    """Let the guest run. Whoever calls this has won the right to (see docs/architecture.md); safe if it runs already.

    Raises StepFailed when QEMU refuses.
    """
    # QEMU 10 tells that a stream has failed or was cancelled before it lets go of the guest, and refuses `cont`
    # meanwhile. It lets a guest run that ran; of one that stays paused it tells no event.
    with suppress(TimeoutError):
        async with asyncio.timeout(_LET_GO_S):
            while await status(monitor) == "finish-migrate":  # noqa: ASYNC110 - no event of it
                await asyncio.sleep(0.02)
    if await status(monitor) != "running":
        await monitor.execute("cont")


async def resume_paused(monitor: Monitor) -> None:
    """The same for a guest that is known not to run yet: one command, because the guest stands still meanwhile."""
    await monitor.execute("cont")


async def shut_down(place: VmPlace, *, grace_s: float, hurried: Callable[[], bool] | None = None) -> bool:
    """Ask the guest to power off and wait for its QEMU to end, at most `grace_s` or until it is `hurried`; then end
    QEMU.

    Returns whether it had to be forced.
    """
    if place.qemu.pid() is not None and grace_s > 0:
        async with open_monitor(place.control) as monitor:
            await monitor.execute("system_powerdown")
        if wait_for_end(place.qemu, seconds=grace_s, enough=hurried):
            stop_now(place)
            return False
    return stop_now(place)


def stop_now(place: VmPlace, *, patience_s: float = 5.0) -> bool:
    """Make sure that no QEMU of this VM runs here. Safe to call twice. Returns whether one did.

    It is asked first, and killed when it has not ended after `patience_s`.
    """
    return end(place.qemu, patience_s=patience_s)


def said_last(place: VmPlace, *, since: int = 0) -> str:
    """QEMU's last words on this node, on one line."""
    return last_words(place.qemu.log, since=since)


# OVMF's code and its empty store of variables, by the size of the store: the one works with no other than its own.
_OVMF = {528 << 10: ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), 128 << 10: ("OVMF_CODE.fd", "OVMF_VARS.fd")}
_OVMF_FOLDER = Path("/usr/share/OVMF")


def find_firmware(name: str, *, variables_bytes: int | None) -> Path | None:
    """The code image of a firmware that is not QEMU's default, for a store of variables of this size (None: the VM has
    none, or one of unknown size); None where QEMU's own is meant. Raises StepFailed where it is not installed.
    """
    return _find_ovmf(variables_bytes or 528 << 10)[0] if name == "ovmf" else None


def find_variables(size_bytes: int) -> Path:
    """The empty store of UEFI variables of this size. Raises StepFailed where it is not installed.

    A volume of zeroes is no flash memory to OVMF: it would keep in RAM what it is told to remember.
    """
    return _find_ovmf(size_bytes)[1]


def _find_ovmf(variables_bytes: int) -> tuple[Path, Path]:
    code, variables = (_OVMF_FOLDER / name for name in _OVMF.get(variables_bytes, ("", "")))
    if not (code.is_file() and variables.is_file()):
        words = f"OVMF with {variables_bytes >> 10} KiB of variables is not installed on this node"
        raise StepFailed("firmware_missing", words, "Install the package ovmf.")
    return code, variables
