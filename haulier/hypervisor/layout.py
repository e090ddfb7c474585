"""Where things lie on a node: one folder per VM for sockets, pid files, keys and logs; one for images."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from haulier.hypervisor.processes import Daemon

# Two names and `control.sock` must fit behind a state folder of 60 bytes: a socket's path has room for 107.
_SHORT = 12
_DIGESTS = ".digests"


@dataclass(frozen=True, slots=True)
class VmPlace:
    """The folders of one VM on one node. `run` is short-lived and short-pathed (sockets), `logs` stays."""

    run: Path
    logs: Path

    def prepare(self) -> None:
        """Make the folders, readable by us alone. Safe to call twice."""
        for folder in (self.run, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    @property
    def qmp(self) -> Path:
        """The monitor for people and tools."""
        return self.run / "qmp.sock"

    @property
    def control(self) -> Path:
        """Haulier's own monitor: a monitor serves one client at a time."""
        return self.run / "control.sock"

    @property
    def tpm_socket(self) -> Path:
        return self.run / "swtpm.sock"

    @property
    def qemu(self) -> Daemon:
        return Daemon(self.run / "qemu.pid", f"{self.run}/qemu.pid", self.logs / "qemu.log")

    @property
    def swtpm(self) -> Daemon:
        return Daemon(self.run / "swtpm.pid", f"{self.run}/swtpm.pid", self.logs / "swtpm.log")

    @property
    def carrier(self) -> Daemon:
        """The storage daemon that receives volumes which no QEMU has open yet."""
        return Daemon(self.run / "carrier.pid", f"{self.run}/carrier.pid", self.logs / "carrier.log")

    @property
    def reader(self) -> Daemon:
        """The storage daemon that opens the disks of a VM that does not run, for a sync."""
        return Daemon(self.run / "reader.pid", f"{self.run}/reader.pid", self.logs / "reader.log")

    @property
    def reader_socket(self) -> Path:
        return self.run / "reader.sock"

    @property
    def marks_socket(self) -> Path:
        """Where the reader is told what of a disk differs from its replica."""
        return self.run / "marks.sock"

    def digests(self, export: str) -> Path:
        """The digests of a volume that is compared with another node's: too long for the folder of sockets."""
        return self.logs / f"{export}{_DIGESTS}"

    def forget_digests(self) -> None:
        """Nobody compares any more, or has them open. Safe to call twice."""
        for path in self.logs.glob(f"*{_DIGESTS}"):
            path.unlink(missing_ok=True)

    def note_epoch(self, epoch: int) -> None:
        """Write down, before the guest runs here, under which of the VM's epochs it was given to this QEMU."""
        self._epoch.write_text(f"{epoch}\n")

    def forget_epoch(self) -> None:
        """No QEMU here has been given the guest. Safe to call twice."""
        self._epoch.unlink(missing_ok=True)

    def epoch(self) -> int | None:
        """The epoch under which the QEMU here was given the guest; None if it was not."""
        try:
            return int(self._epoch.read_text())
        except (OSError, ValueError):
            return None

    @property
    def _epoch(self) -> Path:
        return self.run / "epoch"

    def keys(self, migration_key: str) -> Path:
        """The folder of one migration's key file."""
        return self.run / f"keys-{migration_key}"

    def clear(self) -> None:
        """Remove sockets, pid files, keys and digests; logs stay. Safe to call twice."""
        self.forget_digests()
        if self.run.is_dir():
            for path in sorted(self.run.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            self.run.rmdir()


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """The folders of one node: `root` for images and logs, `sockets` for what needs a short path."""

    root: Path
    sockets: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def quarantine(self) -> Path:
        """TPM states that were handed over wait here for their end; no start can name a file in it."""
        return self.root / "quarantine"

    @property
    def lock(self) -> Path:
        """Held by the node's worker: two for one node would undo each other's work."""
        return self.root / "worker.lock"

    def prepare(self) -> None:
        """Make the folders. Safe to call twice. Raises OSError when the socket folder belongs to somebody else."""
        for folder in (self.root, self.images, self.quarantine, self.sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.sockets.stat().st_uid != os.getuid():
            raise PermissionError(f"{self.sockets} belongs to another user")

    def forget_digests(self) -> None:
        """The same for all VMs, when the node's worker begins: a carrier that still serves some has them open."""
        for path in self.root.glob(f"vms/*/*{_DIGESTS}"):
            path.unlink(missing_ok=True)

    def vm(self, name: str) -> VmPlace:
        """The place of a VM; long names are shortened, because a socket's path has room for 107 bytes."""
        return VmPlace(self.sockets / short_name(name), self.root / "vms" / name)


def node_layout(state: Path, sockets: Path, name: str) -> NodeLayout:
    """The folders of the node called `name`, in a machine's state folder and its folder of sockets."""
    return NodeLayout(state / "nodes" / name, sockets / short_name(name))


def short_name(name: str) -> str:
    """A name of at most twelve bytes that stands for another one: itself, or its beginning and 40 bits of a hash.

    The tilde is in no name that people may give, so that no VM can be called as another one's short form.
    """
    if len(name) <= _SHORT:
        return name
    return f"{name[:3]}~{base64.b32encode(hashlib.sha256(name.encode()).digest())[:8].decode().lower()}"


def listening_socket(path: Path) -> socket.socket:
    """A listening Unix socket that only we may use, to be handed to a child: the child's readiness is then a
    connection's.

    An old socket of that name is replaced.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The folder is ours alone, so nobody gets in between the two; a umask would reach into other threads.
    listener.bind(os.fspath(path))
    path.chmod(0o600)
    listener.listen(4)
    return listener
