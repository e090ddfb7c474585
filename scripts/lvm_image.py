"""Builds the Linux guest in which LVM runs: Debian's cloud kernel with device-mapper, busybox, and Debian's own lvm2.

All is as Debian delivers it but for the first process (`lvm_guest/init`) and the settings (`lvm_guest/lvm.conf`).
Knows nothing of QEMU; that is `lvm_guest.py`.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from probe.build import BuildError, is_fresh, run_tool
from probe.debian import download, fetch_busybox, fetch_kernel, in_load_order
from probe.initramfs import Entry, write_initramfs
from probe.linux import APPEND, LinuxGuest

__all__ = ["build_lvm_image"]

SOURCE_FOLDER = Path(__file__).parent / "lvm_guest"
INIT, SETTINGS = SOURCE_FOLDER / "init", SOURCE_FOLDER / "lvm.conf"
PACKAGES = ("lvm2", "dmsetup", "thin-provisioning-tools", "util-linux", "dash")
# All their other names, as lvs or thin_check, come along. dash, because busybox's shell prefers its own blkdiscard.
PROGRAMS = ("lvm", "dmsetup", "pdata_tools", "blkdiscard", "blockdev", "dash")
# Debian 12 has some of them directly below the root.
PROGRAM_FOLDERS = ("sbin", "bin", "usr/sbin", "usr/bin")
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "dm_mod", "dm_thin_pool", "dm_snapshot")
# Where the kernel's tree keeps them and those they need.
MODULE_FOLDERS = frozenset({"virtio", "block", "char", "md", "persistent-data", "lib"})


def build_lvm_image(folder: Path) -> LinuxGuest:
    """Fetch the packages with apt-get (once) and pack what is wanted of them into `folder`.

    Raises:
        BuildError: a tool is missing, or a package cannot be had. What an earlier call has built stays usable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        # Tests that run side by side ask at the same moment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(folder.absolute())


def _build(folder: Path) -> LinuxGuest:
    kernel, busybox, modules, root, initrd = (
        folder / name for name in ("vmlinuz", "busybox", "modules", "root", "initrd")
    )
    if not kernel.exists():
        fetch_kernel(kernel, modules, folders=MODULE_FOLDERS)
    if not busybox.exists():
        fetch_busybox(busybox)
    if not all((root / "sbin" / name).exists() for name in PROGRAMS):
        _fetch_programs(root)
    if not is_fresh(initrd, [INIT, SETTINGS, Path(__file__), kernel, busybox, root]):
        write_initramfs(initrd, _entries(root, busybox, in_load_order(modules, MODULES)))
    return LinuxGuest(kernel=kernel, initrd=initrd, append=APPEND)


def _fetch_programs(root: Path) -> None:
    """Leave a folder with the programs in `sbin` and the libraries they need in `lib`."""
    fresh = root.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in ("sbin", "lib"):
        (fresh / name).mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".fetch-") as scratch:
        unpacked = Path(scratch) / "root"
        for package in download([*PACKAGES, *_library_packages()], Path(scratch)):
            run_tool(["dpkg-deb", "-x", str(package), str(unpacked)])
        for name in PROGRAMS:
            _take_program(name, unpacked, fresh)
    shutil.rmtree(root, ignore_errors=True)
    fresh.replace(root)


def _library_packages() -> list[str]:
    """The libraries' packages have other names in each release of Debian."""
    told = run_tool(["apt-cache", "depends", "--recurse", "--important", *PACKAGES])
    return sorted(set(re.findall(r"^(?:lib|zlib1g)\S*", told, re.MULTILINE)))


def _take_program(name: str, unpacked: Path, goal: Path) -> None:
    found = [unpacked / folder / name for folder in PROGRAM_FOLDERS if (unpacked / folder / name).exists()]
    if not found:
        raise BuildError(f"the packages {', '.join(PACKAGES)} have no program {name}")
    for path in found[0].parent.iterdir():
        if path == found[0] or (path.is_symlink() and path.readlink() == Path(name)):
            shutil.copy2(path, goal / "sbin", follow_symlinks=False)
    for library in _libraries(found[0], unpacked):
        shutil.copy2(library, goal / "lib" / library.name)


def _libraries(program: Path, unpacked: Path) -> Iterator[Path]:
    """Ask the release's own loader, which comes first, what else it would load."""
    folders = [*unpacked.glob("lib/*-linux-gnu"), *unpacked.glob("usr/lib/*-linux-gnu")]
    loader = next(path for folder in folders for path in folder.glob("ld-linux-*.so.*"))
    yield loader
    told = run_tool([str(loader), "--library-path", ":".join(map(str, folders)), "--list", str(program)])
    for name, place in re.findall(r"^\s*(\S+) => (.+?)(?: \(0x\w+\))?$", told, re.MULTILINE):
        if not Path(place).is_relative_to(unpacked):
            raise BuildError(f"no package brings {name}, which {program.name} needs")
        yield Path(place)


def _entries(root: Path, busybox: Path, modules: list[Path]) -> Iterator[Entry]:
    folders = ("bin", "dev", "etc", "etc/lvm", "lib", "modules", "proc", "run", "sbin", "sys", "tmp", "usr")
    yield from (Entry.folder(name) for name in folders)
    yield Entry.program("init", INIT)
    yield Entry.file("etc/lvm/lvm.conf", SETTINGS)
    yield Entry.program("bin/busybox", busybox)
    yield from (Entry.file(f"modules/{n:02}.ko", path) for n, path in enumerate(modules))
    # Where programs look for their loader, LVM for thin_check, and scripts for their shell.
    for name, goal in (("lib64", "lib"), ("usr/sbin", "../sbin"), ("bin/sh", "/sbin/dash")):
        yield Entry.link(name, goal)
    for path in sorted(root.glob("*/*")):
        name = str(path.relative_to(root))
        yield Entry.link(name, str(path.readlink())) if path.is_symlink() else Entry.program(name, path)
