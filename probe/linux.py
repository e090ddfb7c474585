"""A small Linux guest that prints the probe's lines: Debian's cloud kernel and busybox, and one static program.

The program is the probe's own source above system calls (`guest/linux/linux.c`); a busybox script (`guest/linux/init`)
loads the drivers and becomes it. TPM (tpm_crb), CMOS clock and serial port are built into the cloud kernel; only
virtio is modular. By hand: `python -m probe.linux [folder]`.
"""

from __future__ import annotations

import fcntl
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from probe.build import SOURCE_FOLDER, BuildError, compile_guest, is_fresh, run_tool, sources_of

__all__ = ["LinuxGuest", "build_linux_guest"]

DEFAULT_FOLDER = Path(".build/linux")
PLATFORM_FOLDER = SOURCE_FOLDER / "linux"
INIT = PLATFORM_FOLDER / "init"
META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
MODULES = ("virtio_pci", "virtio_blk")
_BUILT_IN = "modules.builtin"
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
        _fetch_kernel(kernel, modules)
    if not busybox.exists():
        _fetch_busybox(busybox)
    if not is_fresh(program, [*sources_of(PLATFORM_FOLDER), Path(__file__)]):
        compile_guest(PLATFORM_FOLDER, program, flags=FLAGS)
    initrd = folder / "initrd"
    if not is_fresh(initrd, [INIT, program, busybox, kernel]):
        programs = {"init": INIT, "bin/busybox": busybox, "bin/probe": program}
        _write_initrd(initrd, programs, modules=_in_load_order(modules))
    return LinuxGuest(kernel=kernel, initrd=initrd, append=APPEND)


def _fetch_kernel(kernel: Path, modules: Path) -> None:
    """Leave the modules and then the kernel: while that is missing, nothing counts as fetched."""
    modules.mkdir(exist_ok=True)
    fresh = kernel.with_suffix(".new")
    with tempfile.TemporaryDirectory(dir=kernel.parent, prefix=".fetch-") as scratch:
        meta = _download(META_PACKAGE, Path(scratch))
        _unpack(_download(_image_package(meta), Path(scratch)), lambda name: _place(name, fresh, modules))
    fresh.replace(kernel)


def _fetch_busybox(busybox: Path) -> None:
    fresh = busybox.with_suffix(".new")
    with tempfile.TemporaryDirectory(dir=busybox.parent, prefix=".fetch-") as scratch:
        package = _download(BUSYBOX_PACKAGE, Path(scratch))
        _unpack(package, lambda name: fresh if name.parts[-2:] == ("bin", "busybox") else None)
    fresh.replace(busybox)


def _download(package: str, folder: Path) -> Path:
    run_tool(["apt-get", "-q", "-o", "APT::Sandbox::User=", "download", package], folder=folder)
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise BuildError(f"apt-get downloaded no {package}")
    return found[-1]


def _image_package(meta: Path) -> str:
    """The meta package names the image of the day, as in "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)"."""
    depends = run_tool(["dpkg-deb", "-f", str(meta), "Depends"])
    found = re.search(r"linux-image-[0-9][^ ,(]*", depends)
    if found is None:
        raise BuildError(f"{meta.name} depends on no kernel image: {depends.strip()}")
    return found[0]


def _unpack(package: Path, place: Callable[[PurePosixPath], Path | None]) -> None:
    """Take the files out of the package for which `place` says where they go, unpacked if they are packed."""
    taken = 0
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacker,
        tarfile.open(fileobj=unpacker.stdout, mode="r|") as archive,
    ):
        for member in archive:
            goal = place(PurePosixPath(member.name))
            content = archive.extractfile(member) if goal and member.isfile() else None
            if goal and content:
                packed = member.name.endswith(".xz")
                goal.write_bytes(lzma.decompress(content.read()) if packed else content.read())
                taken += 1
    if unpacker.returncode != 0 or not taken:
        raise BuildError(f"{package.name} could not be unpacked, or holds nothing of what is looked for")


def _place(name: PurePosixPath, kernel: Path, modules: Path) -> Path | None:
    """The kernel, the drivers for virtio and block devices, and the list of those that are built in."""
    if name.name.startswith("vmlinuz-"):
        return kernel
    # Packed since Debian 13.
    module = name.name.removesuffix(".xz")
    if module == _BUILT_IN or (module.endswith(".ko") and name.parent.name in {"virtio", "block"}):
        return modules / module
    return None


def _in_load_order(folder: Path) -> list[Path]:
    """The modules we want behind those they need. The package has no modules.dep: each module tells itself."""
    files = {path.stem.replace("-", "_"): path for path in folder.glob("*.ko")}
    built_in = {PurePosixPath(line).stem.replace("-", "_") for line in (folder / _BUILT_IN).read_text().split()}
    order: dict[str, Path] = {}
    for name in MODULES:
        if name not in built_in:
            _visit(name, files, order)
    return list(order.values())


def _visit(name: str, files: Mapping[str, Path], order: dict[str, Path]) -> None:
    if name in order:
        return
    if name not in files:
        raise BuildError(f"the kernel package has no module {name}")
    depends = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
    for needed in depends[1].decode().split(",") if depends and depends[1] else []:
        _visit(needed.replace("-", "_"), files, order)
    order[name] = files[name]


def _write_initrd(initrd: Path, programs: Mapping[str, Path], *, modules: Iterable[Path]) -> None:
    """Not compressed: unpacking would cost the guest more than reading."""
    entries = [(name, 0o040755, b"") for name in ("bin", "modules")]
    entries += [(name, 0o100755, path.read_bytes()) for name, path in programs.items()]
    entries += [(f"modules/{n:02}.ko", 0o100644, path.read_bytes()) for n, path in enumerate(modules)]
    fresh = initrd.with_suffix(".new")
    fresh.write_bytes(b"".join(_cpio([*entries, ("TRAILER!!!", 0, b"")])))
    fresh.replace(initrd)


def _cpio(entries: Iterable[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """Archive in the "newc" form: a header of 14 hex fields, the name, the content, each padded to 4 bytes."""
    for inode, (name, mode, content) in enumerate(entries, start=1):
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % number for number in fields) + name.encode() + b"\0"
        yield head + bytes(-len(head) % 4)
        yield content + bytes(-len(content) % 4)


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
