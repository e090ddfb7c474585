"""Compiles the probe guest. Knows gcc and nothing else; `python -m probe.build [folder]` does it by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["BuildError", "build"]

SOURCE_FOLDER = Path(__file__).parent / "guest"
DEFAULT_FOLDER = Path(".build/probe")
IMAGE_NAME = "probe.elf"

# 32-bit code by a 64-bit gcc without multilib: no libc, no libgcc, only the headers of gcc itself.
# -mgeneral-regs-only, as nobody enables the FPU; -fno-pic, as nobody relocates the image.
FLAGS = (
    "-m32",
    "-march=i686",
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-Os",
    "-std=gnu11",
    "-fno-pic",
    "-no-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-mgeneral-regs-only",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--build-id=none",
    "-Wl,-m,elf_i386",
)


class BuildError(RuntimeError):
    """The guest could not be built; the text says what is missing or what the compiler said."""


def build(folder: Path) -> Path:
    """Compile the guest into `folder` and return the image; an image newer than all sources is re-used.

    The image appears by an atomic rename, so two builds side by side do no harm.

    Raises:
        BuildError: gcc is missing, or it refused the source. An older image stays as it was.
    """
    image = folder / IMAGE_NAME
    sources = sorted(path for path in SOURCE_FOLDER.iterdir() if path.suffix in {".c", ".S"})
    inputs = [*SOURCE_FOLDER.iterdir(), Path(__file__)]
    if image.exists() and image.stat().st_mtime >= max(path.stat().st_mtime for path in inputs):
        return image
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        raise BuildError("the probe guest needs gcc: install it (Debian: apt-get install gcc) or set CC")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
        fresh = Path(scratch) / IMAGE_NAME
        _compile([compiler, *FLAGS, f"-Wl,-T,{SOURCE_FOLDER / 'link.ld'}", "-o", str(fresh), *map(str, sources)])
        fresh.replace(image)
    return image


def _compile(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{command[0]} could not build the probe guest:\n{result.stderr.strip()}")


def main(arguments: list[str]) -> int:
    """Build into the folder named on the command line and print where the image is."""
    try:
        print(build(Path(arguments[0]) if arguments else DEFAULT_FOLDER))
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
