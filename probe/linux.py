"""A small Linux guest that prints the probe's lines: Debian's cloud kernel and busybox, and one static program.

The program is the probe's own source above system calls (`guest/linux/linux.c`); a busybox script (`guest/linux/init`)
loads the drivers and becomes it. TPM (tpm_crb), CMOS clock and serial port are built into the cloud kernel; only
virtio is modular. By hand: `python -m probe.linux [folder]`.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from probe.build import SOURCE_FOLDER, BuildError, compile_guest, is_fresh, sources_of
from probe.debian import fetch_busybox, fetch_kernel, in_load_order
from probe.initramfs import Entry, write_initramfs

__all__ = ["APPEND", "LinuxGuest", "build_linux_guest"]

DEFAULT_FOLDER = Path(".build/linux")
PLATFORM_FOLDER = SOURCE_FOLDER / "linux"
INIT = PLATFORM_FOLDER / "init"
MODULES = ("virtio_pci", "virtio_blk")
# Where the kernel's tree keeps them and those they need.
MODULE_FOLDERS = frozenset({"virtio", "block"})
FLAGS = ("-O2", "-static", "-s", "-std=gnu11", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror")

# Quiet, so that kernel messages do not tear the probe's lines, but a panic is seen. A TCG guest's boot is
# mostly device probing and calibration: what a VM without graphics and keyboard can do without is off.
APPEND = (
    "console=ttyS0 quiet loglevel=1 panic=-1 tsc=reliable no_timer_check nokaslr mitigations=off audit=0 "
    "i8042.noaux i8042.nokbd cryptomgr.notests random.trust_cpu=on"
)


@dataclass(frozen=True, kw_only=True)
class LinuxGuest:
    """What QEMU's -kernel, -initrd and -append take; the probe's own options may be added to `append`."""

    kernel: Path
    initrd: Path
    append: str


def build_linux_guest(folder: Path) -> LinuxGuest:
    """Fetch kernel and busybox with apt-get (once), compile the program, pack all into `folder`.

    Raises:
        BuildError: a tool is missing, the package cannot be had, or the compiler refused the source. What an
            earlier call has built stays usable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        # Tests that run side by side ask at the same moment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(folder)


def _build(folder: Path) -> LinuxGuest:
    kernel, busybox, modules, program = (folder / name for name in ("vmlinuz", "busybox", "modules", "probe"))
    if not kernel.exists():
        fetch_kernel(kernel, modules, folders=MODULE_FOLDERS)
    if not busybox.exists():
        fetch_busybox(busybox)
    if not is_fresh(program, [*sources_of(PLATFORM_FOLDER), Path(__file__)]):
        compile_guest(PLATFORM_FOLDER, program, flags=FLAGS)
    initrd = folder / "initrd"
    if not is_fresh(initrd, [INIT, program, busybox, kernel]):
        write_initramfs(initrd, _entries(program, busybox, modules))
    return LinuxGuest(kernel=kernel, initrd=initrd, append=APPEND)


def _entries(program: Path, busybox: Path, modules: Path) -> Iterator[Entry]:
    yield from (Entry.folder(name) for name in ("bin", "modules"))
    yield Entry.program("init", INIT)
    yield Entry.program("bin/busybox", busybox)
    yield Entry.program("bin/probe", program)
    yield from (Entry.file(f"modules/{n:02}.ko", path) for n, path in enumerate(in_load_order(modules, MODULES)))


def main(arguments: list[str]) -> int:
    """Build into the folder named on the command line and print QEMU's options for it."""
    try:
        guest = build_linux_guest(Path(arguments[0]) if arguments else DEFAULT_FOLDER)
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"-kernel {guest.kernel} -initrd {guest.initrd} -append '{guest.append}'")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
