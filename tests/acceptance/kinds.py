"""Storages of every kind on both nodes: prepared devices, and haulier/fakes' LVM behind programs of LVM's names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from haulier.fakes.lvm import FakeLvm
from tests.acceptance.stack import ROOT, Stack

MIB = 1 << 20
GROUP_BYTES, POOL_BYTES = 2048 * MIB, 1024 * MIB
# Larger than what is put there.
DEVICE_BYTES = 70 * MIB
WORDS = "told to fail by the test"

_PROGRAMS = ("lvs", "vgs", "lvcreate", "lvchange", "lvremove", "lvrename")
_PROGRAM = """#!/bin/sh
if [ -e '{told}'/"$HAULIER_NODE".{name} ]; then
    echo "  {words}" >&2
    exit 5
fi
PYTHONPATH='{root}' exec '{python}' -m haulier.fakes.lvm '{folder}' {name} "$@"
"""


class Kinds:
    """The storages `devices`, `thick` and `thin` of the nodes, and what is behind them."""

    def __init__(self, folder: Path, *, told: Path) -> None:
        self._folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)
        self.lvm = FakeLvm(folder / "lvm")
        self._registered: set[Path] = set()
        words = {"told": told, "words": WORDS, "root": ROOT, "python": sys.executable, "folder": folder / "lvm"}
        for name in _PROGRAMS:
            path = self.programs / name
            path.write_text(_PROGRAM.format(name=name, **words))
            path.chmod(0o755)
        for node in ("alpha", "beta"):
            self.devices(node).mkdir()
            self.lvm.add_group(self.group(node), size_bytes=GROUP_BYTES, pool="data", pool_bytes=POOL_BYTES)

    def group(self, node: str) -> str:
        """A node's volume group: the nodes of a test are one host."""
        return f"haulier-{os.getpid()}-{node}"

    def devices(self, node: str) -> Path:
        """The folder of a node's prepared devices."""
        return self._folder / node

    def provide(self, node: str, name: str, *, size_bytes: int = DEVICE_BYTES) -> Path:
        """Prepare a device: its front is zero, and behind it is what was there before."""
        image = self._folder / f"{node}-{name}.img"
        image.write_bytes(bytes(MIB) + b"x" * (size_bytes - MIB))
        made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
        link = self.devices(node) / name
        link.symlink_to(made.stdout.strip())
        return link

    def register(self, stack: Stack) -> None:
        """Have the stack know them, once."""
        if stack.state in self._registered:
            return
        self._registered.add(stack.state)
        for node in stack.nodes:
            group = self.group(node)
            path = stack.state / f"{node}.cfg"
            path.write_text(
                f"block: devices\n\tpath {self.devices(node)}\n\n"
                f"lvm: thick\n\tvgname {group}\n\nlvmthin: thin\n\tvgname {group}\n\tthinpool data\n"
            )
            stack.haulier("node", "set", node, "--storages", str(path)).done()

    def remove(self) -> None:
        """Let go of all; what is still open goes when it is closed."""
        self.lvm.remove_all()
        for link in self._folder.glob("*/*"):
            if link.is_block_device():
                subprocess.run(["losetup", "--detach", link.resolve()], check=True)
                link.unlink()
