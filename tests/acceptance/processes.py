"""Processes as the kernel sees them: which belong to a stack, and what a QEMU among them says about its guest."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haulier.hypervisor.monitor import open_monitor

# Nobody among these may outlive what it works for; workers and the broker are the supervisor's business.
VM_PROGRAMS = ("qemu-system-x86_64", "swtpm", "qemu-storage-daemon", "qemu-img")


@dataclass(frozen=True)
class Process:
    """One process; `argv` as it was started, `program` the last part of its first word."""

    pid: int
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        return Path(self.argv[0]).name

    def option(self, name: str) -> list[str]:
        """Every value that follows on the option `name`."""
        return [after for word, after in zip(self.argv, self.argv[1:], strict=False) if word == name]

    def __str__(self) -> str:
        return f"{self.pid} {' '.join(self.argv)[:160]}"


def processes_of(state: Path) -> list[Process]:
    """Every process that names the state folder in its command line or in its environment; zombies do neither."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            if command and _names(state, command + b"\0" + environment):
                words = command.rstrip(b"\0").decode(errors="replace").split("\0")
                found.append(Process(int(folder.name), tuple(words)))
    return found


def _names(state: Path, text: bytes) -> bool:
    """Whether the folder itself is named, and not one whose name only begins like it."""
    path = os.fsencode(state)
    return path + b"/" in text or path + b"\0" in text or text.endswith(path)


def ask(socket: Path, command: str, **arguments: object) -> Any:
    """Run one QMP command on a public monitor; it serves one client at a time."""
    return asyncio.run(_ask(socket, command, {name.replace("_", "-"): value for name, value in arguments.items()}))


async def _ask(socket: Path, command: str, arguments: dict[str, object]) -> Any:
    async with open_monitor(socket) as monitor:
        return await monitor.execute_raw(command, arguments)
