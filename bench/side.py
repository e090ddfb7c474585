"""One side of a migration done by hand: a folder with a disk and a TPM's state, its swtpm, its QEMU.

The machine has the product's own command line, so that floor and product move the same VM. Knows no database, no queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError

from haulier.definition import Role
from haulier.hypervisor.command_line import Drive, MachineSpec, command_line, node_name

DISK = "virtio0"
_CONNECT_S = 20.0
_EVENT_S = 60.0
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class Event:
    """One QMP event; `at` in seconds since 1970, stamped by QEMU itself."""

    name: str
    data: dict[str, Any]
    at: float


@dataclass(slots=True)
class Side:
    """A QEMU with its swtpm. `open` starts both, `close` ends both; nothing of it outlives a `close`.

    `machine` is the VM without what differs between two sides: its folders, its sockets, its disk.
    """

    folder: Path
    machine: MachineSpec
    disk_bytes: int
    qmp: QMPClient = field(init=False)
    _listener: EventListener = field(init=False, default_factory=EventListener)
    _processes: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)

    def make_volumes(self) -> None:
        """New, empty volumes, as the product reserves them."""
        self.folder.mkdir(exist_ok=True)
        for name, size in (("disk.raw", self.disk_bytes), ("tpm", 4 << 20)):
            with (self.folder / name).open("wb") as file:
                file.truncate(size)

    async def open(self, *, incoming: bool) -> None:
        """Start swtpm, then QEMU with the guest not running, and connect to it. Raises TimeoutError or QMPError."""
        tpm, monitor = self.folder / "swtpm.sock", self.folder / "qmp.sock"
        with _listening(tpm) as listener:
            fd = listener.fileno()
            volume = f"backend-uri=file://{self.folder / 'tpm'},mode=0600"
            self._start(["swtpm", "socket", "--tpm2", "--tpmstate", volume, "--ctrl", f"type=unixio,fd={fd}"], fd)
        with _listening(monitor) as listener:
            fd = listener.fileno()
            self._start(command_line(self._machine(tpm, fd, incoming=incoming)), fd)
        self.qmp = QMPClient(self.folder.name)
        self._listener = EventListener()
        self.qmp.register_listener(self._listener)
        async with asyncio.timeout(_CONNECT_S):
            await self.qmp.connect(os.fspath(monitor))

    def _machine(self, tpm: Path, monitor_fd: int, *, incoming: bool) -> MachineSpec:
        path = self.folder / "disk.raw"
        base = self.machine
        return MachineSpec(
            definition=base.definition,
            program=base.program,
            accel=base.accel,
            ram_kib=base.ram_kib,
            uuid=base.uuid,
            run_dir=self.folder,
            log_dir=self.folder,
            drives=(Drive(device=DISK, role=Role.DISK, node_name=node_name(DISK), path=path),),
            tpm_socket=tpm,
            monitor_fds=(monitor_fd,),
            incoming=incoming,
        )

    def _start(self, words: list[str], fd: int) -> None:
        # A child that kept our own output open would hold up whoever reads it.
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[fd])
        self._processes.append(process)

    async def close(self) -> None:
        """End QEMU, then swtpm. Safe to call twice and on a side that is half open."""
        with contextlib.suppress(QMPError, OSError, EOFError, AttributeError):  # AttributeError: never connected
            await self.qmp.execute("quit")
            await self.qmp.disconnect()
        for process in reversed(self._processes):
            try:
                await asyncio.to_thread(process.wait, _END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    async def call(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401 - QMP answers have every shape
        """One command; underscores in argument names become dashes."""
        return await self.qmp.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    async def give(self, made: socket.socket, name: str) -> None:
        """Hand a socket to QEMU under a name; ours is closed."""
        with made:
            self.qmp.send_fd_scm(made.fileno())
            await self.call("getfd", fdname=name)

    async def event(self, wanted: Callable[[Event], bool]) -> Event:
        """The next event that is wanted; the ones before it are gone. Raises TimeoutError when it never comes."""
        async with asyncio.timeout(_EVENT_S):
            while True:
                message: dict[str, Any] = dict(await self._listener.get())
                stamp = message["timestamp"]
                at = stamp["seconds"] + stamp["microseconds"] / 1e6
                event = Event(str(message["event"]), dict(message.get("data") or {}), at)
                if wanted(event):
                    return event


def _listening(path: Path) -> socket.socket:
    """A listening socket to be handed to a child: whoever connects waits until the child answers."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen(1)
    return listener
