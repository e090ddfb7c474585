"""What a node can do: versions, machine types, accelerator, memory. Asked once when its worker starts."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from haulier.errors import StepFailed
from haulier.hypervisor.swtpm import swtpm_facts

_KVM_PROBE_S = 5.0
_OF_GUESTS = ("tap", "veth", "vnet", "fwbr", "fwln", "fwpr")


def node_facts(*, qemu: str, swtpm: str, accel: str) -> dict[str, Any]:
    """All facts as JSON can hold them. A tool that is missing is a fact too (`problem`), not an error."""
    facts: dict[str, Any] = {"cpus": os.cpu_count() or 1, "cpu_model": cpu_model(), "bridges": bridges(), **memory()}
    try:
        facts["qemu_version"] = qemu_version(qemu)
        facts["machines"] = machines(qemu)
        facts["accel"] = choose_accel(qemu, accel)
    except StepFailed as error:
        facts["qemu_problem"] = error.problem.as_dict()
    try:
        found = swtpm_facts(swtpm)
        facts |= {"swtpm_version": found.version, "libtpms_version": found.libtpms, "swtpm_too_old": found.is_too_old}
    except StepFailed as error:
        facts["swtpm_problem"] = error.problem.as_dict()
    return facts


def memory() -> dict[str, int]:
    """The host's RAM in bytes: all of it, and what a new guest could get now."""
    with open("/proc/meminfo") as file:  # noqa: PTH123 - a kernel file, read as one
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return {"ram_bytes": found["MemTotal"], "ram_free_bytes": found["MemAvailable"]}


def cpu_model() -> str | None:
    """What the host's CPU is called; guests that see it as it is can go to one of the same name only."""
    with open("/proc/cpuinfo") as file:  # noqa: PTH123 - a kernel file, read as one
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), None)


def bridges() -> list[str]:
    """The interfaces that guests' cards may be connected to: all but those that are a guest's own."""
    found = Path("/sys/class/net").iterdir()
    return sorted(each.name for each in found if not each.name.startswith(_OF_GUESTS))


def _ask(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise StepFailed("qemu_missing", f"{words[0]} does not work: {error}", "Install qemu-system-x86.") from error


def qemu_version(program: str) -> str:
    """For example `7.2.22`."""
    match = re.search(r"version (\d+\.\d+\.\d+)", _ask(program, "--version"))
    if match is None:
        raise StepFailed("qemu_missing", f"{program} does not tell its version", "Is it QEMU?")
    return match.group(1)


def machines(program: str) -> dict[str, str]:
    """Machine type by name; an alias (`q35`) maps to the versioned type that it means here, a type to itself."""
    found: dict[str, str] = {}
    for line in _ask(program, "-machine", "help").splitlines()[1:]:
        name, _, description = line.partition(" ")
        alias = re.search(r"\(alias of (\S+)\)", description)
        if name:
            found[name] = alias.group(1) if alias else name
    return found


def choose_accel(program: str, wanted: str) -> str:
    """`kvm` only if a guest really runs with it: /dev/kvm may exist and still not run one."""
    if wanted != "auto":
        return wanted
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and _kvm_runs(program) else "tcg"


def _kvm_runs(program: str) -> bool:
    """Let the firmware boot to its end, as it says on the debug port.

    Its banner alone proves too little: seen on a nested host, where it came, and guests ended in `internal-error`.
    """
    words = [program, "-accel", "kvm", "-nodefaults", "-display", "none", "-m", "32",
             "-chardev", "stdio,id=d", "-device", "isa-debugcon,iobase=0x402,chardev=d"]  # fmt: skip
    try:
        subprocess.run(words, capture_output=True, timeout=_KVM_PROBE_S, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired as ended:
        return b"No bootable device" in (ended.stdout or b"")
    except OSError:
        pass
    return False
