"""What a Linux guest takes from Debian: the cloud kernel with some of its modules, busybox, and other packages' files.

All is fetched with apt-get for the release that runs here, unpacked with dpkg-deb, and installed nowhere.
"""

from __future__ import annotations

import lzma
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from probe.build import BuildError, run_tool

__all__ = ["download", "fetch_busybox", "fetch_kernel", "in_load_order"]

META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
_BUILT_IN = "modules.builtin"


def download(packages: Iterable[str], folder: Path) -> list[Path]:
    """Fetch these packages into `folder` and return where they are, in the same order.

    Raises:
        BuildError: apt-get is missing, or it cannot have one of them.
    """
    names = list(packages)
    run_tool(["apt-get", "-q", "-o", "APT::Sandbox::User=", "download", *names], folder=folder)
    return [_newest(name, folder) for name in names]


def _newest(package: str, folder: Path) -> Path:
    found = sorted(folder.glob(f"{package}_*.deb"))
    if not found:
        raise BuildError(f"apt-get downloaded no {package}")
    return found[-1]


def fetch_kernel(kernel: Path, modules: Path, *, folders: Collection[str]) -> None:
    """Leave the modules that stand in folders of these names, and then the kernel.

    While that is missing, nothing counts as fetched.

    Raises:
        BuildError: a tool is missing, or the package cannot be had.
    """
    modules.mkdir(exist_ok=True)
    fresh = kernel.with_suffix(".new")

    def place(name: PurePosixPath) -> Path | None:
        if name.name.startswith("vmlinuz-"):
            return fresh
        # Packed since Debian 13.
        module = name.name.removesuffix(".xz")
        wanted = module == _BUILT_IN or (module.endswith(".ko") and name.parent.name in folders)
        return modules / module if wanted else None

    with tempfile.TemporaryDirectory(dir=kernel.parent, prefix=".fetch-") as scratch:
        [meta] = download([META_PACKAGE], Path(scratch))
        [image] = download([_image_package(meta)], Path(scratch))
        _unpack(image, place)
    fresh.replace(kernel)


def fetch_busybox(busybox: Path) -> None:
    """Leave the static busybox.

    Raises:
        BuildError: a tool is missing, or the package cannot be had.
    """
    fresh = busybox.with_suffix(".new")
    with tempfile.TemporaryDirectory(dir=busybox.parent, prefix=".fetch-") as scratch:
        [package] = download([BUSYBOX_PACKAGE], Path(scratch))
        _unpack(package, lambda name: fresh if name.parts[-2:] == ("bin", "busybox") else None)
    fresh.replace(busybox)


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


def in_load_order(folder: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the wanted modules behind those they need. The package has no modules.dep: each module tells itself.

    Raises:
        BuildError: one of them is neither here nor built in.
    """
    files = {path.stem.replace("-", "_"): path for path in folder.glob("*.ko")}
    built_in = {PurePosixPath(line).stem.replace("-", "_") for line in (folder / _BUILT_IN).read_text().split()}
    order: dict[str, Path] = {}
    for name in wanted:
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
