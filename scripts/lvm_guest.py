"""LVM in a small Linux guest, for machines whose kernel has no device-mapper: its commands run there, word for word.

    with LvmGuest.start(folder) as guest:
        done = guest.run(["lvs", "--reportformat", "json", "pve"])

The guest has a volume group `pve` with a thin pool `data`. By hand: `python -m scripts.lvm_guest 'lvs -a' vgs ...` runs
each argument as a line of shell in a new guest and prints what came of it.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from haulier.hypervisor.tools import Done
from probe.build import BuildError
from probe.linux import LinuxGuest
from scripts.lvm_image import build_lvm_image

__all__ = ["DISK_BYTES", "POOL", "VOLUME_GROUP", "LvmGuest", "LvmGuestError"]

DEFAULT_IMAGE_FOLDER = Path(".build/lvm")
VOLUME_GROUP, POOL = "pve", "data"
DISK_BYTES = 256 << 20
DISKS = 2
_POOL_SIZE = "96m"
_QEMU = "qemu-system-x86_64"
_BOOT_DEADLINE_S = 120.0
_DEADLINE_S = 60.0
_CONSOLE_TAIL_LINES = 20


class LvmGuestError(RuntimeError):
    """The guest did not boot, did not answer, or could not be prepared; the text ends with what its console says."""


class LvmGuest:
    """A running guest that takes commands; `start` makes one."""

    def __init__(self, channel: socket.socket, folder: Path) -> None:
        self._channel = channel
        self._answers = channel.makefile("rb")
        self._folder = folder

    @classmethod
    @contextmanager
    def start(cls, folder: Path, *, image_folder: Path = DEFAULT_IMAGE_FOLDER) -> Iterator[LvmGuest]:
        """Boot a guest whose disks are in `folder`; QEMU is dead when the block is over, as after a power cut.

        Disks that a guest has left there are used again: its volume groups are activated then, as a host does at boot.

        Raises:
            BuildError: the guest cannot be built here.
            LvmGuestError: it did not boot.
        """
        image = build_lvm_image(image_folder)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = [_make_disk(disk) for disk in _disks(folder)]
        host, guest_end = socket.socketpair()
        with host, _running(_command(image, folder, channel_fd=guest_end.fileno()), folder, guest_end):
            guest = cls(host, folder)
            with guest._answers:
                guest._boot()
                guest._prepare(new=all(fresh))
                yield guest

    def run(self, words: Sequence[str], *, deadline_s: float = _DEADLINE_S) -> Done:
        """Run one command in the guest, found by PATH, its standard input empty; the words arrive as they are. Bytes of
        its outputs that are no UTF-8 stand in the texts as surrogates (`errors="surrogateescape"`).

        Raises:
            LvmGuestError: no answer in time, or the guest is gone. It takes no further commands.
        """
        # A shell with nothing else to do becomes the command; a missing one gives status 127.
        line = f"exec {shlex.join(words)}"
        request = base64.b64encode(os.fsencode(line)) + b"\n"
        try:
            self._channel.settimeout(deadline_s)
            self._channel.sendall(request)
            status, *sizes = (int(field) for field in self._read_line().split())
            stdout, stderr = (os.fsdecode(self._read(size)) for size in sizes)
        except OSError as error:
            raise self._failure(f"does not answer to: {shlex.join(words)} ({error})") from error
        return Done(status=status, stdout=stdout, stderr=stderr)

    @contextmanager
    def held_open(self, device: str) -> Iterator[None]:
        """Keep a process in the guest that has this device open, as a VM would have."""
        script = 'exec 3<"$1"; sleep 1000000 >/dev/null 2>&1 & echo $!'
        holder = self._must(["sh", "-c", script, "sh", device]).stdout.strip()
        try:
            yield
        finally:
            # The device is closed when the process is gone, not when it is told to go.
            self._must(["sh", "-c", 'kill "$1"; while [ -e "/proc/$1/fd/3" ]; do sleep 0.01; done', "sh", holder])

    def _boot(self) -> None:
        try:
            self._channel.settimeout(_BOOT_DEADLINE_S)
            self._read_line()
        except OSError as error:
            raise self._failure(f"does not boot ({error})") from error

    def _prepare(self, *, new: bool) -> None:
        if not new:
            self._must(["vgchange", "--activate", "ay"])
            return
        self._must(["vgcreate", VOLUME_GROUP, "/dev/vda"])
        self._must(["lvcreate", "--type", "thin-pool", "--size", _POOL_SIZE, "--name", POOL, VOLUME_GROUP])

    def _must(self, words: Sequence[str]) -> Done:
        done = self.run(words)
        if done.status != 0:
            raise self._failure(f"refused: {shlex.join(words)}: {done.stderr.strip()}")
        return done

    def _read_line(self) -> bytes:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise ConnectionResetError("it has ended")
        return line

    def _read(self, size: int) -> bytes:
        content = self._answers.read(size)
        if len(content) < size:
            raise ConnectionResetError("it has ended")
        return content

    def _failure(self, what: str) -> LvmGuestError:
        told = [_tail(self._folder / name) for name in ("qemu.stderr", "console.log")]
        return LvmGuestError("\n".join([f"the LVM guest {what}", *filter(None, told)]))


@contextmanager
def _running(command: Sequence[str], folder: Path, channel: socket.socket) -> Iterator[None]:
    """QEMU with its end of the channel, of which this process keeps no copy: it would hide that QEMU has ended."""
    with (folder / "qemu.stderr").open("wb") as stderr:
        with channel:
            process = _spawn(command, folder, stderr, channel)
        with process:
            try:
                yield
            finally:
                process.kill()


def _spawn(command: Sequence[str], folder: Path, stderr: BinaryIO, channel: socket.socket) -> subprocess.Popen[bytes]:
    fds = [channel.fileno()]
    try:
        return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stderr=stderr, pass_fds=fds)
    except FileNotFoundError as error:
        raise LvmGuestError(f"the LVM guest needs {command[0]}, which is not installed") from error


def _command(image: LinuxGuest, folder: Path, *, channel_fd: int) -> list[str]:
    return [
        *(_QEMU, "-machine", "q35", "-accel", "tcg", "-m", "256M", "-nodefaults", "-no-user-config"),
        # With rdrand, as the first UUID would wait seconds for random numbers.
        *("-cpu", "qemu64,+rdrand", "-display", "none", "-no-reboot", "-rtc", "base=utc"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.append),
        *("-chardev", "file,id=console,path=console.log", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=channel,fd={channel_fd}", "-device", "virtio-serial-pci,max_ports=2"),
        *("-device", "virtserialport,chardev=channel,nr=1"),
        *(word for disk in _disks(folder) for word in _disk_options(disk)),
    ]


def _disks(folder: Path) -> list[Path]:
    return [folder / f"disk{n}.raw" for n in range(DISKS)]


def _make_disk(disk: Path) -> bool:
    """Make an empty one, unless it is there already; say which."""
    new = not disk.exists()
    if new:
        disk.touch()
        os.truncate(disk, DISK_BYTES)
    return new


def _disk_options(disk: Path) -> list[str]:
    file = {"driver": "file", "filename": str(disk.absolute())}
    node = {"driver": "raw", "node-name": disk.stem, "file": file, "discard": "unmap", "cache": {"no-flush": True}}
    return ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={disk.stem}"]


def _tail(log: Path) -> str:
    with suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-_CONSOLE_TAIL_LINES:])
    return ""


def main(lines: list[str]) -> int:
    """Run lines of shell in a new guest; exit status 1 if one of them failed, 2 if there was no guest for them."""
    failed = False
    try:
        with tempfile.TemporaryDirectory(prefix="lvm-guest-") as folder, LvmGuest.start(Path(folder)) as guest:
            for line in lines:
                done = guest.run(["sh", "-c", line])
                print(f"$ {line}\n{done.stdout}{done.stderr}[{done.status}]", flush=True)
                failed = failed or done.status != 0
    except (BuildError, LvmGuestError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
