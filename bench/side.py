"""One side of a migration done by hand: a folder with a disk and a TPM's state, its swtpm, its QEMU.

The machine is the product's own command line, so that floor and product move the same VM. Knows no database, no queue.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, QMPClient

from haulier.definition import Role, VmDefinition
from haulier.hypervisor.command_line import MachineSpec, command_line
from haulier.hypervisor.devices import Drive, node_name

DISK = "virtio0"
KEY_ID = "bench-tls"
_CONNECT_S = 20.0
_EVENT_S = 60.0


@dataclass(frozen=True, slots=True)
class Event:
    """One QMP event; `at` in seconds since 1970, stamped by QEMU itself."""

    name: str
    data: dict[str, Any]
    at: float


def listening(path: Path) -> socket.socket:
    """A listening socket to be handed to a child, so that a connection waits instead of failing."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen(1)
    return listener


@dataclass(slots=True)
class Side:
    """A QEMU with its swtpm. `open` starts both, `close` ends both; nothing of it outlives a `close`."""

    folder: Path
    definition: VmDefinition
    ram_kib: int
    disk_bytes: int
    qmp: QMPClient = field(init=False)
    listener: EventListener = field(init=False)
    daemon: subprocess.Popen[bytes] | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def qemu_pid(self) -> int:
        return self.processes[-1].pid

    def make_volumes(self, *, preallocate: bool = False) -> None:
        """New, empty volumes, as the product reserves them."""
        self.folder.mkdir(exist_ok=True)
        for path, size in ((self.disk, self.disk_bytes), (self.folder / "tpm", 4 << 20)):
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                file.truncate(size)
                if preallocate and path == self.disk:
                    os.posix_fallocate(file.fileno(), 0, size)

    async def open(self, *, incoming: bool) -> None:
        """Start swtpm, then QEMU with the guest not running, and connect to it."""
        tpm = self.folder / "swtpm.sock"
        with listening(tpm) as listener:
            fd = listener.fileno()
            self._start(
                ["swtpm", "socket", "--tpm2", "--tpmstate", f"backend-uri=file://{self.folder / 'tpm'},mode=0600",
                 "--ctrl", f"type=unixio,fd={fd}"], fd=fd,
            )  # fmt: skip
        monitor = self.folder / "qmp.sock"
        with listening(monitor) as listener:
            fd = listener.fileno()
            self._start(command_line(self._machine(tpm, fd, incoming=incoming)), fd=fd)
        self.qmp = QMPClient(self.folder.name)
        self.listener = EventListener()
        self.qmp.register_listener(self.listener)
        async with asyncio.timeout(_CONNECT_S):
            await self.qmp.connect(os.fspath(monitor))

    def _machine(self, tpm: Path, fd: int, *, incoming: bool) -> MachineSpec:
        drive = Drive(device=DISK, role=Role.DISK, node_name=node_name(DISK), path=self.disk)
        return MachineSpec(
            definition=self.definition,
            program="qemu-system-x86_64",
            accel="tcg",
            ram_kib=self.ram_kib,
            run_dir=self.folder,
            log_dir=self.folder,
            drives=(drive,),
            uuid="6f1d3b52-5a1e-4b0e-9d7e-0d2f8f6a1c11",
            tpm_socket=tpm,
            monitor_fds=(fd,),
            incoming=incoming,
        )

    def _start(self, words: list[str], *, fd: int) -> None:
        with (self.folder / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[fd])
            )

    def start_daemon(self, words: list[str], *, fd: int) -> None:
        with (self.folder / "log").open("ab") as log:
            self.daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[fd])

    def end_daemon(self) -> None:
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait()
            self.daemon = None

    async def close(self) -> None:
        """End QEMU, then swtpm. Safe to call twice and on a half-opened side."""
        try:
            await self.qmp.execute("quit")
            await self.qmp.disconnect()
        except Exception:  # noqa: BLE001, S110 - what did not end is killed below
            pass
        for process in reversed(self.processes):
            try:
                await asyncio.to_thread(process.wait, 5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    async def call(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401 - QMP answers have every shape
        """One command; underscores in argument names become dashes."""
        return await self.qmp.execute(command, {name.replace("_", "-"): value for name, value in arguments.items()})

    async def event(self, wanted: Callable[[Event], bool]) -> Event:
        """The next event that is wanted; the ones before it are gone. Raises TimeoutError when it never comes."""
        async with asyncio.timeout(_EVENT_S):
            while True:
                message: dict[str, Any] = dict(await self.listener.get())
                stamp = message["timestamp"]
                event = Event(
                    message["event"], message.get("data") or {}, stamp["seconds"] + stamp["microseconds"] / 1e6
                )
                if wanted(event):
                    return event
