"""Has this machine what a node needs? Each answer says what was found, what is needed, and what to do."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from haulier.errors import HaulierError
from haulier.hypervisor.facts import choose_accel, qemu_version
from haulier.hypervisor.images import free_bytes
from haulier.hypervisor.swtpm import swtpm_facts
from haulier.planner.guest_ram import version_of
from haulier.settings import Settings

_OLDEST_QEMU = (7, 2)


@dataclass(frozen=True, slots=True)
class Check:
    """One answer."""

    name: str
    ok: bool
    found: str
    needed: str
    hint: str


def examine(settings: Settings) -> dict[str, Any]:
    """All checks, none of which changes anything."""
    checks = [look(settings) for look in _CHECKS]
    return {
        "ok": all(check.ok for check in checks),
        "checks": [
            {"name": c.name, "ok": c.ok, "found": c.found, "needed": c.needed, "hint": "" if c.ok else c.hint}
            for c in checks
        ],
    }


def _qemu(settings: Settings) -> Check:
    needed, hint = "7.2 or newer", "Install qemu-system-x86."
    try:
        found = qemu_version(settings.qemu)
    except HaulierError as error:
        return Check("qemu", False, error.problem.message, needed, hint)
    return Check("qemu", version_of(found) >= _OLDEST_QEMU, found, needed, hint)


def _accel(settings: Settings) -> Check:
    try:
        found = choose_accel(settings.qemu, settings.accel)
    except HaulierError as error:
        return Check("accelerator", False, error.problem.message, "kvm or tcg", "Install qemu-system-x86.")
    return Check("accelerator", True, found, "kvm; tcg is slow but works", "")


def _swtpm(settings: Settings) -> Check:
    try:
        found = swtpm_facts(settings.swtpm)
    except HaulierError as error:
        return Check("swtpm", False, error.problem.message, "0.7 or newer", "Install swtpm.")
    return Check("swtpm", not found.is_too_old, found.version, "0.7 or newer", "Install a newer swtpm.")


def _program(name: str, package: str) -> Callable[[Settings], Check]:
    def look(_settings: Settings) -> Check:
        path = shutil.which(name)
        return Check(name, path is not None, path or "not found", "on the PATH", f"Install {package}.")

    return look


def _python(_settings: Settings) -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), found, "3.11 or newer", "Install a newer Python.")


def _room(settings: Settings) -> Check:
    free = free_bytes(settings.state)
    return Check("room", free > 1 << 30, f"{free >> 20} MiB", "1024 MiB", f"Make room under {settings.state}.")


def _writable(settings: Settings) -> Check:
    folder = settings.state
    while not folder.exists():
        folder = folder.parent
    ok = os.access(folder, os.W_OK)
    return Check("state folder", ok, str(settings.state), "writable", "Set HAULIER_STATE.")


_CHECKS: tuple[Callable[[Settings], Check], ...] = (
    _python,
    _qemu,
    _accel,
    _program("qemu-img", "qemu-utils"),
    _program("qemu-storage-daemon", "qemu-system-x86 (qemu-system-common)"),
    _swtpm,
    _program("swtpm_setup", "swtpm-tools"),
    _writable,
    _room,
)
