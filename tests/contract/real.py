"""A QEMU without a guest for the tests of this folder: the firmware of an empty machine under TCG is enough."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from haulier.definition import Role, VmDefinition, VolumeSpec
from haulier.hypervisor import machine
from haulier.hypervisor.command_line import MachineSpec
from haulier.hypervisor.devices import Drive, node_name
from haulier.hypervisor.images import create_image
from haulier.hypervisor.layout import VmPlace
from haulier.hypervisor.monitor import Monitor, open_monitor
from haulier.hypervisor.nbd import NbdServer
from haulier.hypervisor.tls import KeyFolder

QEMU = os.environ.get("HAULIER_QEMU", "qemu-system-x86_64")
SWTPM = "swtpm"
SECRET, OTHER_SECRET = b"s" * 32, b"o" * 32
STATE_BYTES = 4 << 20
TOOLS = (QEMU, "qemu-img", "qemu-storage-daemon", SWTPM, "swtpm_setup")

T = TypeVar("T")


def run(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server() -> NbdServer:
    return NbdServer("127.0.0.1", free_port())


def keys(folder: Path, secret: bytes = SECRET) -> KeyFolder:
    made = KeyFolder(folder)
    made.write(secret, "1-1")
    return made


def spec(place: VmPlace, *drives: Drive, **fields: Any) -> MachineSpec:
    volumes = tuple(VolumeSpec(each.device, each.role, "local", each.device, format=each.format) for each in drives)
    usual: dict[str, Any] = {
        "definition": VmDefinition("vm", memory_mib=32, machine="pc-i440fx-7.2", cpu="qemu64", volumes=volumes),
        "program": QEMU,
        "accel": "tcg",
        "ram_kib": 32 * 1024 + 8,
        "run_dir": place.run,
        "log_dir": place.logs,
        "drives": drives,
        "uuid": "7b10d7af-b932-4c66-b2c3-3996152ec465",
    }
    return MachineSpec(**(usual | fields))


def disk(place: VmPlace, content: bytes, *, format: str = "raw", size_bytes: int = 1 << 20) -> Drive:
    """A disk that begins with `content`."""
    path = place.logs / f"disk.{format}"
    create_image(path, format=format, size_bytes=size_bytes)
    if content:
        subprocess.run(["dd", "of=" + str(path), "conv=notrunc", "status=none"], input=content, check=True, timeout=30)
    return Drive("virtio0", Role.DISK, node_name("virtio0"), path, format, False)


@asynccontextmanager
async def qemu(place: VmPlace, *drives: Drive, **fields: Any) -> AsyncIterator[Monitor]:
    """A QEMU that waits to be told to run, and a conversation with it."""
    await machine.launch(place, spec(place, *drives, **fields))
    async with open_monitor(place.control) as monitor:
        yield monitor
