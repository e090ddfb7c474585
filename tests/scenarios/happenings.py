"""What happens in the table beside what was asked for, by name.

Each is a function that begins the command, lets happen what it is called for, and gives the command's answer.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import update

from models import Volume
from tests.acceptance.commands import Answer, Command
from tests.acceptance.faults import Faults
from tests.acceptance.guest import Guest
from tests.acceptance.kinds import DEVICE_BYTES
from tests.acceptance.test_offline import spoil
from tests.acceptance.waiting import wait_until


@dataclass(frozen=True)
class Scene:
    """A VM on alpha that is to go to beta."""

    guest: Guest
    faults: Faults

    def there(self, name: str) -> Path:
        """A file of the VM in beta's images."""
        return self.guest.stack.images("beta") / self.guest.name / name

    def pids(self, program: str, node: str) -> list[int]:
        """Its processes of this program on a node."""
        return [process.pid for process in self.guest.stack.processes(program, node=node, vm=self.guest.name)]


Begin = Callable[[], Command]
Happening = Callable[[Scene, Begin], Answer]


def _while_held(point: str, act: Callable[[Scene], None]) -> Happening:
    """`act` is done with somebody held at a point of the code."""

    def happen(scene: Scene, begin: Begin) -> Answer:
        with scene.faults.holding(point):
            command = begin()
            scene.faults.wait_held(point)
            act(scene)
        return command.finish()

    return happen


def _nothing(_: Scene) -> None:
    """Nothing is done."""


def _around(act: Callable[[Scene], None], after: Callable[[Scene], None] = _nothing) -> Happening:
    """`act` is done before the command begins, `after` when it has ended."""

    def happen(scene: Scene, begin: Begin) -> Answer:
        act(scene)
        answer = begin().finish()
        after(scene)
        return answer

    return happen


def _told(program: str, word: str) -> Happening:
    """A program of the target fails in this way."""

    def happen(scene: Scene, begin: Begin) -> Answer:
        with scene.faults.told(program, "beta", word):
            return begin().finish()

    return happen


def _kill(program: str, node: str, number: signal.Signals = signal.SIGKILL) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        pids = scene.pids(program, node)
        assert pids, f"no {program} on {node}"
        for pid in pids:
            os.kill(pid, number)

    return act


def _kill_worker(node: str) -> Callable[[Scene], None]:
    return lambda scene: os.kill(scene.guest.stack.worker_pid(node), signal.SIGKILL)


def _cancel(scene: Scene) -> None:
    (row,) = scene.guest.stack.table("migration", vm_id=scene.guest.row()["id"])[-1:]
    scene.guest.stack.haulier("migration", "cancel", str(row["id"])).done()


def _refused_beside(code: str, *words: str) -> Callable[[Scene], None]:
    """Another command on the same VM is refused."""

    def act(scene: Scene) -> None:
        name = scene.guest.name
        answer = scene.guest.stack.haulier(*(name if word == "VM" else word for word in words))
        assert (answer.status, answer.document["code"]) == (2, code), answer

    return act


def _file_in_the_way(name: str) -> Happening:
    """A file of that name comes between the look and the making."""

    def happen(scene: Scene, begin: Begin) -> Answer:
        path = scene.there(name)
        with scene.faults.holding("reserve.run.begins"):
            command = begin()
            scene.faults.wait_held("reserve.run.begins")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"somebody else's")
        answer = command.finish()
        assert path.read_bytes() == b"somebody else's"
        path.unlink()
        return answer

    return happen


def _freeing_fails(scene: Scene, begin: Begin) -> Answer:
    """What is to be freed cannot be, for a while; it is tried again."""
    path = scene.there("disk0.raw")
    with scene.faults.told("qemu", "beta", "load"), scene.faults.holding("reserve.undo.begins"):
        command = begin()
        scene.faults.wait_held("reserve.undo.begins")
        path.unlink()
        path.mkdir()
    wait_until("failed undo", lambda: scene.guest.step("reserve").get("problem"))
    path.rmdir()
    return command.finish()


def _foreign_job(scene: Scene) -> None:
    guest = scene.guest
    guest.ask("blockdev-add", driver="null-co", node_name="theirs", size=64 << 20)
    guest.ask("blockdev-mirror", job_id="theirs", device="drive-virtio0", target="theirs", sync="none")


def _end_foreign_job(scene: Scene) -> None:
    scene.guest.ask("block-job-cancel", device="theirs", force=True)


def _bitmap_of_nobody(scene: Scene) -> None:
    scene.guest.ask("block-dirty-bitmap-add", node="drive-virtio0", name="haulier-r999-g7")


def _resize(scene: Scene) -> None:
    path = scene.guest.volumes()["virtio0"]
    subprocess.run(["qemu-img", "resize", "-q", "-f", "raw", path, "+1M"], check=True)


def _resize_back(scene: Scene) -> None:
    path = scene.guest.volumes()["virtio0"]
    subprocess.run(["qemu-img", "resize", "-q", "-f", "raw", "--shrink", path, "64M"], check=True)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.aside")


def _take_away(scene: Scene) -> None:
    path = scene.guest.volumes()["virtio0"]
    path.rename(_aside(path))


def _put_back(scene: Scene) -> None:
    path = scene.guest.volumes()["virtio0"]
    _aside(path).rename(path)


def _leave_a_file(scene: Scene) -> None:
    (scene.guest.volumes()["virtio0"].parent / "nobodys.raw").write_bytes(b"left alone")


def _find_the_file(scene: Scene) -> None:
    path = scene.guest.stack.images("alpha") / scene.guest.name / "nobodys.raw"
    assert path.read_bytes() == b"left alone"
    path.unlink()


def _forget_size(scene: Scene) -> None:
    _set_size(scene, None)


def _remember_size(scene: Scene) -> None:
    _set_size(scene, 64 << 20)


def _set_size(scene: Scene, size_bytes: int | None) -> None:
    vm = scene.guest.row()["id"]
    with scene.guest.stack.database.write() as session:
        session.execute(
            update(Volume).where(Volume.vm_id == vm, Volume.device == "virtio0").values(size_bytes=size_bytes)
        )


def _provided(size_bytes: int) -> Callable[[Scene], None]:
    """An administrator has prepared devices for it on the target."""

    def act(scene: Scene) -> None:
        for name in ("disk0", "tpm"):
            scene.faults.kinds.provide("beta", f"{scene.guest.name}-{name}", size_bytes=size_bytes)

    return act


def _lvremove_fails(node: str, held: str, program: str | None) -> Happening:
    """A volume of the node cannot be removed, for a while; it is tried again."""

    def happen(scene: Scene, begin: Begin) -> Answer:
        phase, way, _ = held.split(".")
        with contextlib.ExitStack() as faults:
            if program:
                faults.enter_context(scene.faults.told(program, "beta", "load"))
            with scene.faults.told("lvremove", node, "fail"), scene.faults.holding(held):
                command = begin()
                scene.faults.wait_held(held)
            # It is told to fail as long as it has not.
            with scene.faults.told("lvremove", node, "fail"):
                wait_until(f"failed {way} of {phase}", lambda: scene.guest.step(phase).get("problem"))
        return command.finish()

    return happen


@contextlib.contextmanager
def _frozen(scene: Scene, program: str, node: str) -> Iterator[None]:
    _kill(program, node, signal.SIGSTOP)(scene)
    try:
        yield
    finally:
        _kill(program, node, signal.SIGCONT)(scene)


def _status_query_fails(scene: Scene, begin: Begin) -> Answer:
    """The source's QEMU does not answer for a while."""
    with _frozen(scene, "qemu-system-x86_64", "alpha"):
        return begin().finish()


def _stop_is_under_way(scene: Scene, begin: Begin) -> Answer:
    """Somebody stops the VM, which takes a while."""
    guest = scene.guest
    with _frozen(scene, "qemu-system-x86_64", "alpha"):
        stop = guest.stack.begin("vm", "stop", guest.name, "--grace-s", "60")
        busy = {"vm_id": guest.row()["id"], "kind": "stop", "state": "running"}
        wait_until("the stop", lambda: guest.stack.table("operation", **busy))
        answer = begin().finish()
    stop.finish().done()
    guest.start()
    return answer


def _name_is_taken(scene: Scene) -> None:
    """Another VM of beta has a volume of that name."""
    stack, name = scene.guest.stack, f"{scene.guest.name}-other"
    path = stack.state / f"{name}.conf"
    path.write_text(f"name: {name}\nmemory: 64\nide2: local:vm-9-cloudinit.raw,media=cdrom,size=4M\n")
    stack.haulier("vm", "define", str(path), "--node", "beta").done()


HAPPENINGS: dict[str, Happening] = {
    "nothing": _around(_nothing),
    "guest is paused": _around(lambda scene: scene.guest.ask("stop"), lambda scene: scene.guest.ask("cont")),
    "a file of nobody lies beside": _around(_leave_a_file, _find_the_file),
    "a file is in the first disk's way": _file_in_the_way("disk0.raw"),
    "a file is in the second disk's way": _file_in_the_way("disk1.qcow2"),
    "freeing fails": _freeing_fails,
    "target's QEMU does not start": _told("qemu", "open"),
    "target's QEMU cannot load": _told("qemu", "load"),
    "target's swtpm does not start": _told("swtpm", "open"),
    "target's TPM keeps an older state": _told("swtpm", "shadow"),
    "carrier is killed": _while_held("copy_cold.run.begins", _kill("qemu-storage-daemon", "beta")),
    "TPM's copy is spoilt": _while_held("copy_cold.run.ends", lambda scene: spoil(scene.there("tpm.raw"))),
    "target's QEMU is killed before the mirrors": _while_held(
        "mirror_disks.run.begins", _kill("qemu-system-x86_64", "beta")
    ),
    "target's QEMU is killed in the pause": _while_held("move_memory.paused", _kill("qemu-system-x86_64", "beta")),
    "target's QEMU is killed when it has loaded": _while_held("hand_over.loaded", _kill("qemu-system-x86_64", "beta")),
    "target's QEMU hangs when it has loaded": _while_held(
        "hand_over.loaded", _kill("qemu-system-x86_64", "beta", signal.SIGSTOP)
    ),
    "target's QEMU is killed after the commit": _while_held("hand_over.committed", _kill("qemu-system-x86_64", "beta")),
    "target's swtpm is killed when it has loaded": _while_held("hand_over.loaded", _kill("swtpm", "beta")),
    "target's worker is killed before the commit": _while_held("hand_over.proved", _kill_worker("beta")),
    "target's worker is killed after the commit": _while_held("hand_over.committed", _kill_worker("beta")),
    "source's worker is killed in the pause": _while_held("move_memory.paused", _kill_worker("alpha")),
    "source's worker is killed at the mirrors": _while_held("mirror_disks.run.ends", _kill_worker("alpha")),
    "it is cancelled at the mirrors": _while_held("mirror_disks.run.ends", _cancel),
    "it is cancelled before the commit": _while_held("hand_over.proved", _cancel),
    "it is cancelled while it copies": _while_held("copy_cold.run.ends", _cancel),
    "it is cancelled while it sends": _while_held("send_generation.begun", _cancel),
    "another migration is asked for": _while_held(
        "mirror_disks.run.begins", _refused_beside("migration_open", "migrate", "VM", "--to", "beta")
    ),
    "a stop is asked for": _while_held(
        "mirror_disks.run.begins", _refused_beside("migration_open", "vm", "stop", "VM", "--now")
    ),
    "a sync is asked for": _while_held(
        "mirror_disks.run.begins", _refused_beside("migration_open", "replicate", "VM", "--to", "beta")
    ),
    "somebody's block job runs": _around(_foreign_job, _end_foreign_job),
    "a bitmap of nobody is left": _around(_bitmap_of_nobody),
    "disk has another size": _around(_resize, _resize_back),
    "disk is not there": _around(_take_away, _put_back),
    "its name is taken on the target": _around(_name_is_taken),
    "its size was not recorded": _around(_forget_size, _remember_size),
    "source's QEMU does not answer": _status_query_fails,
    "a stop is under way": _stop_is_under_way,
    "devices are provided": _around(_provided(DEVICE_BYTES)),
    "devices are too small": _around(_provided(2 << 20)),
    "target's lvcreate fails": _told("lvcreate", "fail"),
    "target's volume group is not there": _told("vgs", "fail"),
    "target's lvs fails": _told("lvs", "fail"),
    "target's lvremove fails for a while": _lvremove_fails("beta", "reserve.undo.begins", "qemu"),
    "source's lvremove fails for a while": _lvremove_fails("alpha", "retire_source.run.begins", None),
    "target's worker is killed while it takes": _while_held("take_generation.run.begins", _kill_worker("beta")),
    "source's worker is killed while it sends": _while_held("send_generation.begun", _kill_worker("alpha")),
    "target's carrier is killed while it sends": _while_held(
        "send_generation.run.begins", _kill("qemu-storage-daemon", "beta")
    ),
    "source's QEMU is killed while it sends": _while_held(
        "send_generation.begun", _kill("qemu-system-x86_64", "alpha")
    ),
}
