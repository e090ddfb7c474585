"""The faults: what each does, and how long it lasts. Nobody helps but a supervisor."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.guest import Guest
from tests.matrix.cluster import SOURCE, TARGET, Cluster


@dataclass(frozen=True)
class Scene:
    """What a fault happens to."""

    cluster: Cluster
    guest: Guest

    def kill(self, pid: int) -> None:
        """End a process at once; one that is not there is not there."""
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_program(self, program: str) -> None:
        """Kill what the supervisor holds, which it starts again."""
        self.kill(self.cluster.pid_of(program))

    def kill_worker(self, node: str) -> None:
        """Kill the process of a node's worker that works; its guardian begins it again."""
        self.kill(self.cluster.worker_pid(node))

    def kill_of_vm(self, program: str, node: str) -> None:
        """Kill a process of the VM on a node."""
        process = self.cluster.vm_process(program, node, self.guest.name)
        self.kill(process.pid if process else 0)


Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Fault:
    """One fault; `lasts_s` is None for one that lasts until the migration is over."""

    name: str
    does: str
    strike: Act
    heal: Act | None = None
    lasts_s: float | None = None


def _freeze(scene: Scene) -> None:
    os.kill(scene.cluster.worker_pid(TARGET), signal.SIGSTOP)


def _thaw(scene: Scene) -> None:
    os.kill(scene.cluster.worker_pid(TARGET), signal.SIGCONT)


def _filler(scene: Scene) -> Path:
    return scene.cluster.images(TARGET) / "filler"


def _fill(scene: Scene) -> None:
    filler = _filler(scene)
    filler.touch()
    while free := shutil.disk_usage(filler.parent).free:
        with filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), filler.stat().st_size, min(free, 1 << 20))


def _empty(scene: Scene) -> None:
    _filler(scene).unlink(missing_ok=True)


def _drop(what: str) -> Act:
    def act(scene: Scene) -> None:
        for host in scene.cluster.hosts.values():
            host.drop(what)

    return act


def _repair(scene: Scene) -> None:
    for host in scene.cluster.hosts.values():
        host.repair()


FAULTS = (
    Fault("source_worker", "kill -9 of the source's worker", lambda it: it.kill_worker(SOURCE)),
    Fault("target_worker", "kill -9 of the target's worker", lambda it: it.kill_worker(TARGET)),
    Fault(
        "source_guardian",
        "kill -9 of the source's worker and its guardian",
        lambda it: it.kill_program(f"node-{SOURCE}"),
    ),
    Fault(
        "target_guardian",
        "kill -9 of the target's worker and its guardian",
        lambda it: it.kill_program(f"node-{TARGET}"),
    ),
    Fault("control_worker", "kill -9 of the control worker", lambda it: it.kill_program("control")),
    Fault("beat", "kill -9 of beat", lambda it: it.kill_program("beat")),
    Fault("broker", "kill -9 of Redis, which has written nothing down", lambda it: it.kill_program("broker")),
    Fault(
        "database",
        "kill -9 of PostgreSQL, back after 5 s",
        lambda it: it.cluster.server.kill(),
        lambda it: it.cluster.server.start(),
        5.0,
    ),
    Fault("source_qemu", "kill -9 of the source's QEMU", lambda it: it.kill_of_vm("qemu-system-x86_64", SOURCE)),
    Fault("target_qemu", "kill -9 of the target's QEMU", lambda it: it.kill_of_vm("qemu-system-x86_64", TARGET)),
    Fault("source_swtpm", "kill -9 of the source's swtpm", lambda it: it.kill_of_vm("swtpm", SOURCE)),
    Fault("target_swtpm", "kill -9 of the target's swtpm", lambda it: it.kill_of_vm("swtpm", TARGET)),
    Fault("cut", "the cable between the nodes is cut", _drop("drop"), _repair),
    Fault("loss", "one packet in five is lost", _drop("numgen random mod 5 == 0 drop"), _repair),
    Fault("full", "the target's storage is full", _fill, _empty),
    Fault("frozen", "SIGSTOP of the target's worker, SIGCONT after 15 s", _freeze, _thaw, 15.0),
)
